"""Actions by name: what the routes speak of."""

from __future__ import annotations

from collections.abc import Callable

from palimpsest.errors import InputError
from palimpsest.governance.actions.base import Action
from palimpsest.governance.actions.memit import MemitEdit
from palimpsest.governance.actions.overrides import GuardRule, StoreDelete, StoreUpsert
from palimpsest.governance.actions.rome import RomeEdit
from palimpsest.governance.actions.training import FullUpdate, LoraUpdate
from palimpsest.governance.actions.unlearn import Unlearn
from palimpsest.governance.items import ChangeRequest

ACTIONS: dict[str, Callable[[ChangeRequest], Action]] = {
    "rome": lambda request: RomeEdit(request.facts),
    "memit": lambda request: MemitEdit(request.facts),
    "lora": LoraUpdate,
    "full": FullUpdate,
    "ga": lambda request: Unlearn(request, "ga"),
    "graddiff": lambda request: Unlearn(request, "graddiff"),
    "npo": lambda request: Unlearn(request, "npo"),
    "rmu": lambda request: Unlearn(request, "rmu"),
    "store": lambda request: StoreUpsert(request.facts, request.source),
    "store_delete": lambda request: StoreDelete(request.facts),
    "guard": lambda request: GuardRule(request.facts),
}


def make_action(name: str, request: ChangeRequest) -> Action:
    """The action of a name for a request, with its default settings.

    Raises:
        InputError: there is no such action, or it cannot carry out this request.
    """
    if name not in ACTIONS:
        raise InputError(f"There is no action {name!r}.", f"Choose one of {', '.join(ACTIONS)}.")
    return ACTIONS[name](request)
