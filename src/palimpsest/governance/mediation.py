"""Proposition 3 of system 104: an edit is sound only if the weights that it claims to have edited carry its effect.

With m the margin of a changed fact, log p(new | cue) − log p(old | cue) (mean per token), and the edited weights alone put back into
the changed model, the share of the effect that they mediate is

    1 − (m_restored − m_before) / (m_after − m_before),   sums over the facts.

It is 1 when nothing else was changed, and near 0 when the effect comes from elsewhere. An edit is accepted when the share reaches the
policy's `mediation`, no other weight changed (`untouched`), and locality holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from palimpsest.errors import InputError
from palimpsest.governance.items import FactChange
from palimpsest.governance.system import System
from palimpsest.governance.versions import tensor_hash


def mediation(before: System, after: System, edited: Sequence[str], facts: Sequence[FactChange]) -> float:
    """The share of an edit's effect that goes when the edited weights alone are put back.

    Args:
        before, after: the system without and with the edit.
        edited: names of the parameters that the edit claims to have changed.
        facts: the changed facts, those with a new and an old value are used.

    Raises:
        InputError: no such fact, an unknown parameter, or an edit without any effect.
    """
    used = [fact for fact in facts if fact.target is not None and fact.old is not None]
    if not used:
        raise InputError("No fact has both a new and an old value.", "Mediation is about a margin between two values.")
    old, new = dict(before.model.model.named_parameters()), dict(after.model.model.named_parameters())
    unknown = [name for name in edited if name not in new]
    if unknown or not edited:
        raise InputError(f"The edited weights are {list(edited)}.", "Name parameters of the model.")
    restored = after.shadow()
    parameters = dict(restored.model.model.named_parameters())
    with torch.no_grad():
        for name in edited:
            parameters[name].copy_(old[name])
    first, last, between = (_margin(system, used) for system in (before, after, restored))
    if last == first:
        raise InputError("The edit has no effect on the margin.", "There is nothing to mediate.")
    return 1 - (between - first) / (last - first)


def untouched(before: System, after: System, edited: Sequence[str]) -> list[str]:
    """Parameters that changed although the edit does not claim them: a sound edit has none."""
    old, new = dict(before.model.model.named_parameters()), dict(after.model.model.named_parameters())
    return [name for name, value in new.items() if name not in edited and _hash(value) != _hash(old[name])]


def _hash(value: torch.Tensor) -> str:
    return tensor_hash(value.detach().cpu().contiguous())


def _margin(system: System, facts: Sequence[FactChange]) -> float:
    prompts = [fact.prompt for fact in facts]
    new = system.logprobs(prompts, [str(fact.target) for fact in facts])
    old = system.logprobs(prompts, [str(fact.old) for fact in facts])
    return float(np.sum(new - old))
