"""ROME: one fact is written into one layer by a rank-one change of its MLP's down-projection.

Meng, Bau, Andonian and Belinkov, NeurIPS 2022, arXiv 2202.05262, equation 2. With key k*, value v* (see `edit_target`) and C = E[k kᵀ],

    W' = W + (v* − W k*) uᵀ / (uᵀ k*),   u = C⁻¹ k*,

the change of least norm in the metric of C for which W' k* = v*. Several facts are written one after the other; `rounds` of the settings go
through them again, for facts that a later one displaced (ours). The layer is by default at
a third of the depth, as the authors' layer 17 of 48 in GPT-2 XL. An edit that does not take raises, with the weights as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from palimpsest.errors import InputError
from palimpsest.governance.actions.base import Action, Cost, Handle, keep_weights
from palimpsest.governance.actions.covariance import key_moments
from palimpsest.governance.actions.decoder import DownProjection, down_projections, require_layers
from palimpsest.governance.actions.edit_target import EditSettings, contexts_of, draw_prefixes, mean_keys, require_taken, value_change
from palimpsest.governance.items import FactChange
from palimpsest.governance.system import System
from palimpsest.taxonomy import AccessPath, Controllability, Location, Persistence, Quadruple, Revert, WritePath

EDITED = Quadruple(
    Location.WEIGHTS,
    Persistence.PERMANENT,
    WritePath.EDIT,
    AccessPath.FORWARD,
    Controllability(versioned=True, scope_limited=True, revert=Revert.EXACT),
)


class RomeEdit(Action):
    """Writes facts into one layer.

    Args:
        facts: with targets.
        layer: which layer's down-projection; by default at a third of the depth.
        settings: of the search for the value.
        cache: where second moments are kept, see `key_moments`.

    Raises:
        InputError: no facts, or one without a target.

    Example:
        >>> edit = RomeEdit([change])                            # doctest: +SKIP
        >>> handle = edit.apply(system)                          # doctest: +SKIP
        >>> edit.revert(system, handle)                          # doctest: +SKIP
    """

    name = "rome"
    memory: ClassVar[Quadruple] = EDITED

    def __init__(
        self, facts: Sequence[FactChange], layer: int | None = None, settings: EditSettings | None = None, cache: Path | None = None
    ) -> None:
        self.facts, self.layer, self.settings, self.cache = written(facts), layer, settings or EditSettings(), cache

    def _place(self, system: System) -> DownProjection:
        places = down_projections(system.model)
        layer = len(places) // 3 if self.layer is None else self.layer
        require_layers(places, [layer])
        return places[layer]

    def _apply(self, system: System, handle: Handle) -> None:
        place = self._place(system)
        keep_weights(system, handle, [place.name])
        moment = key_moments(system, [place], self.cache)[place.layer]
        prefixes = draw_prefixes(system, self.settings)
        for turn in range(self.settings.rounds):
            for fact in self.facts:
                if turn and system.recalls([fact.prompt], [str(fact.target)])[0]:
                    continue  # only what a later fact displaced
                contexts = contexts_of(system, fact, prefixes, self.settings.lookup)
                delta = value_change(system, fact, contexts, place, self.settings)
                key = mean_keys(system, contexts, [place])[place.layer]
                handle.details["key"], handle.details["value"] = key, place.weight.double().cpu() @ key + delta
                place.add(rank_one(key, delta, moment).to(place.weight.device))
                system.touched()
        handle.details["report"] = {"layer": place.layer, **require_taken(system, self.facts, "ROME")}

    def estimate_cost(self, system: System) -> Cost:
        """One pass over the general text, and for each fact the search in all contexts."""
        place = self._place(system)
        lengths = [len(system.model.tokenizer.encode(f"{fact.prompt} {fact.target}")) for fact in self.facts]
        contexts = 1 + sum(count for count, _ in self.settings.prefixes)
        prefixes = sum(count * length for count, length in self.settings.prefixes)
        searched = sum(self.settings.steps * (contexts * length + prefixes) for length in lengths)
        return Cost(sum(map(len, system.general)) + searched, searched, place.weight.numel())


def rank_one(key: torch.Tensor, delta: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """ROME's update: δ uᵀ / (uᵀ k*), float64 (d, m), with u = C⁻¹ k*.

    Args:
        key: (m,) k*.
        delta: (d,) v* − W k*.
        moment: (m, m) C.
    """
    u = torch.linalg.solve(moment, key)
    return torch.outer(delta, u) / torch.dot(u, key)


def written(facts: Sequence[FactChange]) -> tuple[FactChange, ...]:
    """The facts of an edit.

    Raises:
        InputError: none, or one without a target.
    """
    if not facts:
        raise InputError("The edit has no facts.", "Give at least one.")
    empty = [fact.key for fact in facts if fact.target is None]
    if empty:
        raise InputError(f"{' / '.join(empty[0])} has no new value.", "An edit writes one; to forget, unlearn.")
    return tuple(facts)
