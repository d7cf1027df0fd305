"""The interface of an action: apply it to a system, take it back, say before what it costs and how well it can be taken back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from palimpsest.errors import EditFailedError
from palimpsest.governance.system import System
from palimpsest.taxonomy import Quadruple, Revert


@dataclass(frozen=True)
class Cost:
    """What an action takes.

    Attributes:
        tokens: tokens that go through the model forwards.
        backward: of these, tokens that go backwards too.
        parameters: weights that it may change.
    """

    tokens: int = 0
    backward: int = 0
    parameters: int = 0


@dataclass
class Handle:
    """What is needed to take an action back.

    Attributes:
        state: hashes of the system before.
        weights: parameter name -> its value before, for those that may have changed.
        details: what the action wants to remember, and what it reports (plain JSON types under "report").
    """

    state: dict[str, str]
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


class Action(ABC):
    """One change to a system.

    Attributes:
        name: in routes and in the log.
        memory: what kind of memory it writes.
        reversibility: how well `revert` restores what was.
    """

    name: ClassVar[str]
    memory: ClassVar[Quadruple]
    reversibility: ClassVar[Revert] = Revert.EXACT

    def apply(self, system: System) -> Handle:
        """Changes the system; if anything goes wrong on the way, the system is as before.

        Raises:
            EditFailedError: the change was made but did not take, and was taken back.
        """
        handle = Handle(system.state)
        try:
            self._apply(system, handle)
        except BaseException:
            self.revert(system, handle)
            raise
        system.touched()
        return handle

    def revert(self, system: System, handle: Handle) -> None:
        """Takes the change back and checks by hash that the system is what it was.

        Raises:
            EditFailedError: it is not (something else changed it meanwhile).
        """
        self._revert(system, handle)
        system.touched()
        now = system.state
        if now != handle.state:
            different = [part for part, digest in handle.state.items() if now[part] != digest]
            raise EditFailedError(
                f"After {self.name} was taken back, the {' and the '.join(different)} differs from what it was before.",
                "Something else changed it meanwhile: restore a saved version.",
            )

    def estimate_cost(self, system: System) -> Cost:
        """What `apply` would take; nothing is computed."""
        return Cost()

    @abstractmethod
    def _apply(self, system: System, handle: Handle) -> None:
        """Changes the system; fills the handle *before* it changes anything."""

    def _revert(self, system: System, handle: Handle) -> None:
        """Puts back the weights of the handle; an action that changes something else says how that is taken back."""
        parameters = dict(system.model.model.named_parameters())
        with torch.no_grad():
            for name, value in handle.weights.items():
                parameters[name].copy_(value)


def keep_weights(system: System, handle: Handle, names: Iterable[str] | None = None) -> None:
    """Copies parameters into the handle; all of them by default."""
    wanted = None if names is None else set(names)
    for name, parameter in system.model.model.named_parameters():
        if wanted is None or name in wanted:
            handle.weights[name] = parameter.detach().clone()
