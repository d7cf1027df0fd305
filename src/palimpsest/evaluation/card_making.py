"""From measurements to an evaluation card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from palimpsest.evaluation.card import FORMAT, EvaluationCard, load_card
from palimpsest.evaluation.settings import Setting
from palimpsest.measurement import Measurement, plain
from palimpsest.taxonomy import Quadruple


def results_of(measurement: Measurement, layer: str) -> list[dict[str, Any]]:
    """Every figure with an interval in a measurement's summary, as results of a card; its name is its path in the summary.

    Args:
        measurement: any of the layers'.
        layer: of `Result`.
    """
    found = []
    for path, value, n in _intervals(plain(measurement.summary), (measurement.name,), measurement.table.height):
        found.append({"layer": layer, "metric": "/".join(path), "value": value, "n": n})
    return found


def _intervals(value: Any, path: tuple[str, ...], n: int) -> Iterator[tuple[tuple[str, ...], dict[str, float], int]]:
    if isinstance(value, dict):
        here = value["n"] if isinstance(value.get("n"), int) else n
        if {"estimate", "low", "high"} <= value.keys():
            yield path, {key: value[key] for key in ("estimate", "low", "high")}, here
        for key, entry in value.items():
            yield from _intervals(entry, (*path, key), here)
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _intervals(entry, (*path, str(number)), n)


def card_of_run(
    measured: Measurement,
    *,
    memory: Sequence[Quadruple],
    data_name: str,
    licence: str,
    limits: Sequence[str],
    cutoff: date | None = None,
    adapters: Sequence[str] = (),
    layers: Mapping[str, Measurement] | None = None,
    missing: Mapping[str, str] | None = None,
    ledger_head: str | None = None,
    device: str = "cpu",
) -> EvaluationCard:
    """The card of a run of the three-setting protocol.

    Args:
        measured: what `ThreeSettingRun.run` returned.
        memory: the memories that were active.
        data_name, licence, cutoff: of the data, and the last day of the model's training data.
        limits: what the results do not say, in words.
        adapters: hashes of adapters on top of the model.
        layers: further measurements, by layer.
        missing: by setting that was not run, the reason.
        ledger_head: of a governed model.
        device: what it was computed on.

    Raises:
        InputError: what makes no card, listed.
    """
    provenance, summary = measured.provenance, measured.summary
    model, template = provenance["model"], provenance["template"]
    reasons = dict(missing or {})
    gains = [
        {
            "layer": "protocol",
            "metric": f"gain/{name}",
            "value": pair["difference"],
            "n": pair["n"],
            "test": pair["test"],
            "p_adjusted": pair["adjusted"],
        }
        for name, pair in summary["gains"].items()
    ]
    accuracies = [
        {"layer": "protocol", "metric": f"accuracy/{name}", "value": value, "n": summary["n"]}
        for name, value in summary["accuracy"].items()
    ]
    further = [result for layer, measurement in (layers or {}).items() for result in results_of(measurement, layer)]
    card = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "identity": {
            **{key: model[key] for key in ("name", "door", "fingerprint", "tokenizer")},
            "adapters": list(adapters),
            "accessed": datetime.now(UTC).date().isoformat() if model["door"] == "endpoint" else None,
        },
        "memory": list(memory),
        "data": {
            "name": data_name,
            **provenance["data"],
            "item_ids": provenance["item_ids"],
            "cutoff": cutoff,
            "licence": licence,
        },
        "settings": {
            setting.value: {"run": setting.value in summary["accuracy"], "reason": reasons.get(setting.value)} for setting in Setting
        },
        "prompting": {
            "template": template["text"],
            **{key: template[key] for key in ("filler", "separator", "sampler", "rule")},
            "stop": list(template["stop"]),
            "refusals": provenance["refusals"],
        },
        "budgets": provenance["budget"],
        "results": [*accuracies, *gains, *further],
        "temporal": summary["freshness"],
        "refusals": {name: {part: row["refused"] for part, row in slices.items()} for name, slices in summary["refusals"].items()},
        "leaks": {key: provenance["leaks"][key] for key in ("policy", "counts", "excluded")},
        "snapshot": provenance["snapshot"],
        "live": provenance["live"],
        "raters": [],
        "compute": {
            "seconds": sum(sum(parts.values()) for parts in provenance["timing"].values()) * summary["n"],
            "device": device,
            "packages": provenance["environment"]["packages"],
        },
        "seeds": provenance["seeds"],
        "limits": list(limits),
        "governed": ledger_head is not None,
        "ledger_head": ledger_head,
    }
    return load_card(card)
