"""MEMIT: many facts at once, spread over the down-projections of several layers.

Meng, Sharma, Andonian, Belinkov and Bau, "Mass-Editing Memory in a Transformer", ICLR 2023, arXiv 2210.07229, equations 14, 19 and 20. For
every fact the state z of the residual stream after the last of the layers S is found that makes the model say the new object (the search
of `edit_target`: what is added to the last layer's value is added to the stream). Then, layer by layer from the first on, with the keys
K (m × facts) and the distance R (d × facts) that the states still are from z,

    W ← W + (R / layers left) Kᵀ (λ C + K Kᵀ)⁻¹,

keys and distances being measured anew after each layer. With one fact and one layer this is ROME's direction u = C⁻¹ k, shorter by the
factor kᵀu / (λ + kᵀu), and ROME itself as λ → 0. λ is given per unit of the MLP, λ = `weight` · m, since kᵀ C⁻¹ k of an ordinary key is m:
the authors' 20,000 for the 6,400 units of GPT-2 XL are 3.1. Their five layers make up for it; where there are fewer, take less.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from palimpsest.errors import InputError
from palimpsest.governance.actions.base import Action, Cost, Handle, keep_weights
from palimpsest.governance.actions.covariance import key_moments
from palimpsest.governance.actions.decoder import DownProjection, captured_states, down_projections, feed, logits_of, require_layers
from palimpsest.governance.actions.edit_target import (
    Contexts,
    EditSettings,
    contexts_of,
    draw_prefixes,
    mean_keys,
    require_taken,
    value_change,
)
from palimpsest.governance.actions.rome import EDITED, written
from palimpsest.governance.items import FactChange
from palimpsest.governance.system import System
from palimpsest.taxonomy import Quadruple

SPREAD = 5  # layers of the authors' settings


class MemitEdit(Action):
    """Writes facts into several layers.

    Args:
        facts: with targets.
        layers: ascending; by default up to `SPREAD` layers that end at a third of the depth.
        weight: λ / m.
        settings: of the search for the states.
        cache: where second moments are kept, see `key_moments`.

    Raises:
        InputError: no facts, one without a target, or a weight below 0.

    Example:
        >>> handle = MemitEdit(changes, layers=(3, 4, 5)).apply(system)      # doctest: +SKIP
    """

    name = "memit"
    memory: ClassVar[Quadruple] = EDITED

    def __init__(
        self,
        facts: Sequence[FactChange],
        layers: Sequence[int] | None = None,
        weight: float = 0.1,
        settings: EditSettings | None = None,
        cache: Path | None = None,
    ) -> None:
        if not weight >= 0:
            raise InputError(f"The weight of the second moment is {weight}.", "Give 0 or more.")
        self.facts, self.layers, self.weight = written(facts), layers, weight
        self.settings, self.cache = settings or EditSettings(), cache

    def _places(self, system: System) -> list[DownProjection]:
        places = down_projections(system.model)
        last = len(places) // 3
        layers = list(range(max(0, last - SPREAD + 1), last + 1)) if self.layers is None else list(self.layers)
        require_layers(places, layers)
        return [places[layer] for layer in layers]

    def _apply(self, system: System, handle: Handle) -> None:
        places = self._places(system)
        keep_weights(system, handle, [place.name for place in places])
        moments = key_moments(system, places, self.cache)
        prefixes = draw_prefixes(system, self.settings)
        contexts = [contexts_of(system, fact, prefixes, self.settings.lookup) for fact in self.facts]
        deltas = [value_change(system, fact, c, places[-1], self.settings) for fact, c in zip(self.facts, contexts, strict=True)]
        goal = mean_states(system, contexts, places[-1]) + torch.stack(deltas, dim=1)  # (d, facts)
        handle.details["goal"] = goal
        for k, place in enumerate(places):
            keys = torch.stack([mean_keys(system, c, [place])[place.layer] for c in contexts], dim=1)  # (m, facts)
            rest = (goal - mean_states(system, contexts, places[-1])) / (len(places) - k)
            place.add(spread_update(keys, rest, moments[place.layer], self.weight * len(keys)).to(place.weight.device))
        handle.details["report"] = {"layers": [place.layer for place in places], **require_taken(system, self.facts, "MEMIT")}

    def estimate_cost(self, system: System) -> Cost:
        """One pass over the general text, and for each fact the search and two passes a layer in all contexts."""
        places = self._places(system)
        contexts = 1 + sum(count for count, _ in self.settings.prefixes)
        prefixes = sum(count * length for count, length in self.settings.prefixes)
        once = sum(contexts * len(system.model.tokenizer.encode(f"{fact.prompt} {fact.target}")) + prefixes for fact in self.facts)
        searched = self.settings.steps * once
        parameters = sum(place.weight.numel() for place in places)
        return Cost(sum(map(len, system.general)) + searched + 2 * len(places) * once, searched, parameters)


def spread_update(keys: torch.Tensor, rest: torch.Tensor, moment: torch.Tensor, weight: float) -> torch.Tensor:
    """MEMIT's update of one layer: R Kᵀ (λ C + K Kᵀ)⁻¹, float64 (d, m).

    Args:
        keys: (m, facts) K.
        rest: (d, facts) R.
        moment: (m, m) C.
        weight: λ.
    """
    # with C⁻¹ applied first (Woodbury), λ = 0 is allowed, and the system to solve has as many rows as there are facts
    u = torch.linalg.solve(moment, keys)
    small = weight * torch.eye(keys.shape[1], dtype=keys.dtype) + keys.T @ u
    return rest @ torch.linalg.solve(small, u.T)


def mean_states(system: System, contexts: Sequence[Contexts], place: DownProjection) -> torch.Tensor:
    """The residual stream after a layer at the subject's last token, the mean over contexts: float64 (d, facts)."""
    columns = []
    with torch.no_grad(), captured_states(place) as states:
        for one in contexts:
            fed = feed(system.model, one.rows)
            logits_of(system.model, fed)
            where = torch.tensor([lookup + fed.offset for lookup in one.lookups], device=states["state"].device)
            columns.append(states["state"][torch.arange(len(where)), where].double().mean(dim=0).cpu())
    return torch.stack(columns, dim=1)
