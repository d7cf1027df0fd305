"""Steps: what is done stays done, what changed is done again, and a damaged result is never taken for one."""

import polars as pl
import pytest

from palimpsest.errors import StorageError
from palimpsest.evaluation.steps import Job, Step
from palimpsest.measurement import Measurement


def make(name, calls, key=1):
    def run(progress):
        calls.append(name)
        progress(1, 2)
        return Measurement(name, pl.DataFrame({"x": [1.5]}), {"x": 1.5}, {"seed": 0})

    return Step(name, f"doing {name}", 10.0, {"key": key}, run)


def test_a_finished_step_is_read_not_run(tmp_path):
    calls = []
    Job(tmp_path).run([make("a", calls), make("b", calls)])
    again = Job(tmp_path)
    again.run([make("a", calls), make("b", calls), make("c", calls)])
    assert calls == ["a", "b", "c"]
    assert again.resumed == ["a", "b"]
    assert again.results["a"].summary == {"x": 1.5}
    assert set(again.seconds) == {"a", "b", "c"}


def test_a_step_whose_key_changed_is_run_again(tmp_path):
    calls = []
    Job(tmp_path).run([make("a", calls, key=1)])
    Job(tmp_path).run([make("a", calls, key=2)])
    assert calls == ["a", "a"]


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b'{"name": "a"}', b"[1, 2]"])
def test_a_damaged_result_is_run_again(tmp_path, damage):
    calls = []
    Job(tmp_path).run([make("a", calls)])
    (tmp_path / "a.json").write_bytes(damage)
    job = Job(tmp_path)
    job.run([make("a", calls)])
    assert calls == ["a", "a"]
    assert job.resumed == []
    assert Measurement.load(tmp_path / "a.json").summary == {"x": 1.5}


def test_progress_counts_units_of_all_steps(tmp_path):
    heard = []
    Job(tmp_path, lambda *told: heard.append(told)).run([make("a", []), make("b", [])])
    assert heard[0] == ("doing a", 0.0, 20.0)
    assert ("doing b", 15.0, 20.0) in heard
    assert heard[-1][1:] == (20.0, 20.0)
    assert [done for _, done, _ in heard] == sorted(done for _, done, _ in heard)


def test_a_failed_step_leaves_nothing_and_keeps_the_others(tmp_path):
    def fail(progress):
        raise RuntimeError("no")

    calls = []
    with pytest.raises(RuntimeError):
        Job(tmp_path).run([make("a", calls), Step("b", "b", 1.0, {}, fail)])
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        Job(tmp_path / "file").run([make("a", [])])
