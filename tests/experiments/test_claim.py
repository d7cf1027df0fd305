"""Claims: verdicts follow from figures, and the harness keeps, replaces and refuses as it says."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from palimpsest.catalogue import SYSTEMS, experiment_file
from palimpsest.errors import InputError
from palimpsest.experiments.claim import Check, Claim, available, decides, experiment, merge, reproduce
from palimpsest.measurement import Curve, Series


def test_the_scale_that_decides():
    assert (decides("smoke"), decides("cpu")) == (False, True)
    for scale in ("gpu", "CPU", ""):
        with pytest.raises(InputError, match=f"no scale {scale!r}"):
            decides(scale)


@pytest.mark.parametrize(
    ("relation", "below", "equal", "above"),
    [
        ("<=", True, True, False),
        ("<", True, False, False),
        (">=", False, True, True),
        (">", False, False, True),
        ("==", False, True, False),
    ],
)
def test_a_check_holds_exactly_when_its_relation_does(relation, below, equal, above):
    assert [Check("x", figure, relation, 0.5).passed for figure in (0.25, 0.5, 0.75)] == [below, equal, above]


def test_a_missing_figure_never_passes_and_a_reported_one_always_does():
    assert not Check("x", None, "<=", 0.5).passed
    assert Check("x", None).passed
    assert Check("x", 0.3).passed


def test_nan_never_passes():
    assert not any(Check("x", float("nan"), relation, 0.5).passed for relation in ("<=", "<", ">=", ">", "=="))


def test_a_claim_without_checks_has_shown_nothing():
    assert not Claim("rome", "…", [], environment={}).passed
    assert Claim("rome", "…", [Check("x", 1.0, ">", 0.0)], environment={}).passed
    assert not Claim("rome", "…", [Check("x", 1.0, ">", 0.0), Check("y", 1.0, "<", 0.0)], environment={}).passed


def test_a_claim_becomes_strict_json():
    curve = Curve("c", "t", "x", "y", [Series("s", [{"x": 1.0, "y": 2.0}])])
    claim = Claim("rome", "…", [Check("x", float("nan"), ">", 0.0)], rows=[{"a": float("inf")}], curves=[curve], environment={})
    value = json.loads(json.dumps(claim.to_dict(), allow_nan=False))
    assert value["checks"][0]["ours"] is None
    assert value["checks"][0]["passed"] is False
    assert value["rows"] == [{"a": None}]
    assert Curve.from_dict(value["curves"][0]).to_dict() == curve.to_dict()


@pytest.fixture
def figures(monkeypatch) -> dict[int, float]:
    """An experiment in the place of `rome`: the figure of each seed, which the test may change, against 0.5."""
    values = {0: 0.6, 1: 0.7, 2: 0.8}
    module = types.ModuleType("palimpsest.experiments.rome")
    module.run = lambda scale, seed: Claim("rome", "It holds.", [Check("x", values[seed], ">=", 0.5)], environment={})
    monkeypatch.setitem(sys.modules, "palimpsest.experiments.rome", module)
    return values


def test_every_seed_is_run_reported_and_written(figures, tmp_path: Path):
    seen = []
    result = reproduce("rome", "cpu", (2, 0, 1), tmp_path, seen.append)
    assert [(claim.seed, claim.scale) for claim in seen] == [(2, "cpu"), (0, "cpu"), (1, "cpu")]
    assert [run["seed"] for run in result["runs"]] == [0, 1, 2]
    assert result["passed"] is True
    assert json.loads((tmp_path / "rome.cpu.json").read_text()) == result


def test_one_failed_seed_fails_the_claim(figures):
    figures[1] = 0.4
    assert reproduce("rome")["passed"] is False


def test_other_seeds_are_kept_and_the_same_seed_is_replaced(figures, tmp_path: Path):
    reproduce("rome", "cpu", (0, 1), tmp_path)
    figures[1] = 0.4
    result = reproduce("rome", "cpu", (1, 2), tmp_path)
    assert [run["checks"][0]["ours"] for run in result["runs"]] == [0.6, 0.4, 0.8]
    assert result["passed"] is False


def test_a_failed_run_keeps_what_was_finished(figures, tmp_path: Path):
    del figures[2]
    with pytest.raises(KeyError):
        reproduce("rome", "cpu", (0, 1, 2), tmp_path)
    assert [run["seed"] for run in json.loads((tmp_path / "rome.cpu.json").read_text())["runs"]] == [0, 1]


def test_scales_have_their_own_files(figures, tmp_path: Path):
    reproduce("rome", "smoke", (0,), tmp_path)
    reproduce("rome", "cpu", (0,), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rome.cpu.json", "rome.smoke.json"]


def test_seeds_that_ran_side_by_side_are_merged_into_what_one_command_writes(figures, tmp_path: Path):
    whole = reproduce("rome", "cpu", (0, 1, 2), tmp_path / "whole")
    for seed in (2, 0, 1):
        reproduce("rome", "cpu", (seed,), tmp_path / str(seed))
    result = merge("rome", "cpu", [tmp_path / "2", tmp_path / "1" / "rome.cpu.json", tmp_path / "0"], tmp_path / "merged")
    seconds = [{**value, "runs": [{**run, "seconds": 0} for run in value["runs"]]} for value in (whole, result)]
    assert seconds[0] == seconds[1]
    assert json.loads((tmp_path / "merged" / "rome.cpu.json").read_text()) == result


def test_a_merge_keeps_other_seeds_and_replaces_the_same_one(figures, tmp_path: Path):
    reproduce("rome", "cpu", (0, 1), tmp_path / "out")
    figures[1] = 0.4
    reproduce("rome", "cpu", (1,), tmp_path / "again")
    result = merge("rome", "cpu", [tmp_path / "again"], tmp_path / "out")
    assert [run["checks"][0]["ours"] for run in result["runs"]] == [0.6, 0.4]
    assert result["passed"] is False


def test_what_does_not_belong_together_is_not_merged(figures, tmp_path: Path, monkeypatch):
    reproduce("rome", "cpu", (0,), tmp_path / "a")
    reproduce("rome", "smoke", (1,), tmp_path / "b")
    before = (tmp_path / "a" / "rome.cpu.json").read_text()
    other = lambda scale, seed: Claim("rome", "It holds.", [Check("x", 0.7, ">", 0.5)], environment={})  # noqa: E731
    monkeypatch.setattr(sys.modules["palimpsest.experiments.rome"], "run", other)
    reproduce("rome", "cpu", (1,), tmp_path / "c")
    for sources, message in (
        ([], "no results"),
        (["nowhere"], "cannot be read"),
        (["b/rome.smoke.json"], "smoke scale"),
        (["c"], "seeds 0 and 1"),
        (["c", "c"], "two of the results"),
    ):
        with pytest.raises(InputError, match=message):
            merge("rome", "cpu", [tmp_path / source for source in sources], tmp_path / "a")
    assert (tmp_path / "a" / "rome.cpu.json").read_text() == before


@pytest.mark.parametrize(("version", "merged"), [("0.1.0", True), (None, True), ("0.2.0", False)])
def test_runs_of_two_versions_are_not_merged(figures, tmp_path: Path, version, merged):
    for seed, installed in ((0, "0.1.0"), (1, version)):
        result = reproduce("rome", "cpu", (seed,), tmp_path / str(seed))
        result["runs"][0]["environment"] = {"packages": {} if installed is None else {"palimpsest-lm": installed}}
        (tmp_path / str(seed) / "rome.cpu.json").write_text(json.dumps(result))
    sources = [tmp_path / "0", tmp_path / "1"]
    if merged:
        assert len(merge("rome", "cpu", sources, tmp_path / "out")["runs"]) == 2
    else:
        with pytest.raises(InputError, match="one set-up"):
            merge("rome", "cpu", sources, tmp_path / "out")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"runs": 3}', '{"runs": [{}]}'])
def test_a_broken_result_file_is_refused_and_left_alone(figures, tmp_path: Path, text):
    (tmp_path / "rome.cpu.json").write_text(text)
    with pytest.raises(InputError, match="not a result file"):
        reproduce("rome", "cpu", (0,), tmp_path)
    assert (tmp_path / "rome.cpu.json").read_text() == text


@pytest.mark.parametrize(("slug", "scale", "seeds"), [("rome", "huge", (0,)), ("rome", "cpu", ()), ("no-such-system", "cpu", (0,))])
def test_what_cannot_be_run_is_refused(figures, slug, scale, seeds):
    with pytest.raises(InputError):
        reproduce(slug, scale, seeds)


def test_an_unknown_experiment_lists_the_known_ones():
    with pytest.raises(InputError) as caught:
        experiment("no-such-system")
    assert all(slug in str(caught.value) for slug in available())


def test_a_module_that_an_experiment_misses_is_not_hidden(monkeypatch, tmp_path: Path):
    """Only the experiment's own absence is "no experiment"; a missing dependency inside it stays visible."""
    import palimpsest.experiments

    (tmp_path / "made_up.py").write_text("import no_such_dependency\n")
    monkeypatch.setattr(palimpsest.experiments, "__path__", [*palimpsest.experiments.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        experiment("made-up")


def test_available_lists_the_catalogue_slugs_that_have_an_experiment():
    assert available() == [system.slug for system in SYSTEMS if experiment_file(system.slug).is_file()]
    assert all(callable(experiment(slug)) for slug in available())
