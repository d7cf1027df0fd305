"""The peer's side by a stand-in interpreter, and its results against ours; the real one, where an environment of kvpress is named."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from palimpsest.context import make
from palimpsest.errors import InputError, MissingDependencyError
from palimpsest.evaluation.context_prompts import passkey_samples
from palimpsest.evaluation.haystack import Haystack
from palimpsest.experiments.peers import kvpress_peer
from palimpsest.experiments.peers.kvpress_peer import answering_bytes, compare, equal_budget, run_kvpress
from palimpsest.models import HFModel
from palimpsest.models.quiet import quiet

FILLER = ["The sea was calm. Nobody spoke of it. A boat went out, and it came back.\n" * 3]
STAND_IN = """
import json, sys
job = json.load(open(sys.argv[1]))
rows = [
    {"id": s["id"], "question": i, "method": m["name"], "keep": m["keep"], "exact": i % 2 == 0, "logprob": -1.0 * len(q["answer"]),
     "bytes": 1000, "peak_bytes": 2000, "answering_bytes": 1500, "prefill_seconds": 0.1, "decode_tokens_per_second": 5.0 + job["threads"]}
    for m in job["methods"] for s in job["samples"] for i, q in enumerate(s["questions"])
]
json.dump({"versions": {"kvpress": "0"}, "rows": rows}, open(sys.argv[2], "w"))
"""


@pytest.fixture
def samples(tiny_model: HFModel) -> Any:
    return passkey_samples(Haystack(tiny_model.tokenizer, FILLER, cycle=True), 160, [0.5], 3)


def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    (tmp_path / "stand_in.py").write_text(text)
    monkeypatch.setattr(kvpress_peer, "SCRIPT", tmp_path / "stand_in.py")


def test_both_sides_are_joined_on_the_sample(tiny_model: HFModel, samples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, tmp_path, STAND_IN)
    rows, table = compare(tiny_model, sys.executable, "folder", samples, keep=60, methods=("h2o", "tova"), new_tokens=2)
    assert [(row.method, row.n, row.theirs, row.their_decode) for row in rows] == [("h2o", 3, 1.0, 6.0), ("tova", 3, 1.0, 6.0)]
    assert table.height == 6
    assert table["their_logprob"].to_list() == [-float(len(s.questions[0].answer)) for s in samples] * 2
    assert set(table["id"]) == {sample.id for sample in samples}
    asked = len(samples[0].questions[0].ids) + len(samples[0].questions[0].answer)
    assert rows[0].our_answering <= (60 + asked) * 2 * 2 * 2 * 16 * 4  # equal bytes: no more than as many keys and values alone
    assert rows[0].keep == 60


@pytest.mark.parametrize("name", ["h2o", "tova", "streaming-llm", "knorm"])
def test_bytes_and_not_entries_are_equal(tiny_model: HFModel, samples: Any, name: str) -> None:
    sample, keep = samples[0], 60
    asked = len(sample.questions[0].ids) + len(sample.questions[0].answer)
    found = equal_budget(tiny_model, name, sample, keep)
    held = [answering_bytes(tiny_model, make(name, budget=budget), sample) for budget in (found, found + 1)]
    assert held[0] <= (keep + asked) * 2 * 2 * 2 * 16 * 4 < held[1]
    assert 0.75 * (keep + asked) < found < keep + asked


def test_a_budget_that_a_method_cannot_do_with_is_told(tiny_model: HFModel, samples: Any) -> None:
    with pytest.raises(InputError, match="sinks"):
        equal_budget(tiny_model, "streaming-llm", samples[0], 1)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("import no_such_module_anywhere", MissingDependencyError, "no_such_module_anywhere"),
        ("raise SystemExit('There is no press')", InputError, "There is no press"),
        ("pass", InputError, "it ended with 0"),
        (STAND_IN.replace('for s in job["samples"]', 'for s in job["samples"][:1]'), InputError, "3 answers here, 1 there"),
    ],
)
def test_a_peer_that_fails_is_told(
    tiny_model: HFModel, samples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: Any, said: str
) -> None:
    script(monkeypatch, tmp_path, text)
    with pytest.raises(kind, match=said):
        compare(tiny_model, sys.executable, "folder", samples, keep=60, methods=("h2o",), new_tokens=1)


def test_an_interpreter_that_is_not_there(samples: Any) -> None:
    with pytest.raises(MissingDependencyError, match="cannot be started"):
        run_kvpress("/nowhere/python", "folder", samples, [("h2o", 10)])


@pytest.mark.skipif(not os.environ.get("PALIMPSEST_KVPRESS"), reason="PALIMPSEST_KVPRESS names no interpreter with kvpress")
def test_kvpress_itself_answers_as_this_library_does_where_nothing_is_dropped(tiny_model: HFModel, samples: Any, tmp_path: Path) -> None:
    with quiet():
        tiny_model.model.save_pretrained(tmp_path / "model")
    keep = float(len(samples[0].context))
    methods = [("full", 0.0), ("h2o", keep), ("tova", keep), ("snapkv", keep)]
    found = run_kvpress(os.environ["PALIMPSEST_KVPRESS"], tmp_path / "model", samples, methods, new_tokens=1)
    from palimpsest.evaluation.context_bench import ask

    ours = ask(tiny_model, tiny_model.tokenizer, None, samples, chunk=1000).table["logprob"].to_list()
    for name, _ in methods:
        assert found.filter(method=name)["logprob"].to_list() == pytest.approx(ours, abs=1e-3)
    assert json.dumps(found.to_dicts())
