"""`palimpsest schedule`: a trace served in simulated time, real steps measured, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.measurement import Measurement
from palimpsest.models.hf import quiet

runner = CliRunner()


def run(*arguments: object, code: int = 0):
    answer = runner.invoke(app, ["schedule", *map(str, arguments)])
    assert answer.exit_code == code, answer.output
    return answer


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model) -> Path:
    """A trace whose lengths the prompt tells, and a model."""
    root = tmp_path_factory.mktemp("schedule")
    rng = np.random.default_rng(0)
    kinds = (("Name a fruit", 4), ("Explain the moon", 60), ("Write a long story", 400))
    with (root / "trace.jsonl").open("w") as file:
        for kind in rng.choice(3, size=1000, p=(0.6, 0.37, 0.03)):
            text, length = kinds[kind]
            file.write(json.dumps({"prompt": text, "prompt_tokens": 20, "output_tokens": int(length + rng.integers(3))}) + "\n")
    with quiet():
        tiny_model.model.save_pretrained(root / "model")
    tiny_model.tokenizer.save(root / "model" / "tokenizer.json")
    (root / "model" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return root


def test_a_trace_is_served(place):
    out, plot = place / "out.json", place / "used.png"
    value = json.loads(run("simulate", place / "trace.jsonl", "--out", out, "--plot", plot, "--json").stdout)
    assert Measurement.load(out).summary == value["summary"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    speed_up = value["summary"]["speed_up"]
    assert list(speed_up) == ["longest", "predicted", "true", "by lot"]
    assert speed_up["longest"] == 1 < speed_up["by lot"] < speed_up["predicted"]
    assert speed_up["true"] > 2
    assert value["summary"]["bucket_accuracy"] == 1.0
    assert 0.5 < value["summary"]["majority_share"] < 0.7
    assert value["table"]["requests"] == [500] * 4
    shown = run("simulate", place / "trace.jsonl").stdout
    assert "predicted" in shown
    assert "right bucket for 100 %" in shown.replace("\u00a0", " ")


def test_a_promised_latency_limits_the_batch(place):
    free, bound = (json.loads(run("simulate", place / "trace.jsonl", *more, "--json").stdout) for more in ((), ("--latency", 0.033)))
    assert max(bound["table"]["mean_batch"]) < max(free["table"]["mean_batch"])
    assert bound["provenance"]["max_batch"] > 0


def test_measured_steps_can_be_simulated(place):
    cost = place / "cost.json"
    options = ("--batch", 1, "--batch", 3, "--length", 8, "--prompt", 16, "--prompt", 40, "--repeats", 1)
    value = json.loads(run("measure", place / "model", *options, "--out", cost, "--json").stdout)
    assert value["bytes_per_token"] == 2 * 2 * 32 * 4
    assert [step[:2] for step in value["steps"]] == [[1, 8], [3, 24], [16, 16], [40, 40]]
    assert "bytes" in run("measure", place / "model", *options).stdout
    served = json.loads(run("simulate", place / "trace.jsonl", "--cost", cost, "--slots", 3, "--json").stdout)
    assert served["provenance"]["bytes_per_token"] == value["bytes_per_token"]
    assert "Give --slots" in run("simulate", place / "trace.jsonl", "--cost", cost, code=2).output


def test_what_goes_wrong_is_said(place):
    trace = place / "trace.jsonl"
    assert "no data sheet" in run("simulate", trace, "--machine", "abacus", code=2).output
    assert "leave no cache" in run("simulate", trace, "--machine", "a100-40gb", code=2).output
    assert "no measured steps" in run("simulate", trace, "--cost", trace, code=2).output
    assert "leaves some of both" in run("simulate", trace, "--train", 1, code=2).output
    (place / "bad.jsonl").write_text('{"prompt": "a", "prompt_tokens": 3}\n')
    assert "Request 1" in run("simulate", place / "bad.jsonl", code=2).output
    for arrival in ("NaN", "Infinity", "-1", "true", "1" * 400):
        (place / "bad.jsonl").write_text(f'{{"prompt_tokens": 3, "output_tokens": 3, "arrival": {arrival}}}\n')
        assert "from 0 on" in run("simulate", place / "bad.jsonl", code=2).output
    assert "leaves some of both" in run("simulate", trace, "--train", "nan", code=2).output
    for wrong in ({"base": "NaN"}, {"per_fed": -1}, {"bytes_per_token": 0}, {"base": "much"}):
        cost = {"base": 1, "per_fed": 1, "per_cached": 1, "error": 0, "bytes_per_token": 8, "steps": [], **wrong}
        (place / "wrong.json").write_text(json.dumps(cost))
        assert "no measured steps" in run("simulate", trace, "--cost", place / "wrong.json", "--slots", 2, code=2).output
    (place / "one.jsonl").write_text('{"prompt_tokens": 3, "output_tokens": 3}\n')
    assert "at least two" in run("simulate", place / "one.jsonl", code=2).output
