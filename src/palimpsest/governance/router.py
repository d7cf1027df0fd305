"""Which action for which request: rules as data, the first that fits decides (104, DMM-Gov).

The rules stand in `routing.toml`. Each names conditions on the features of a request and the actions that may carry it out, best first; a
`joint` rule needs all of its actions together. The decision names the rule, and the log keeps it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from palimpsest.errors import InputError
from palimpsest.governance.items import ChangeRequest
from palimpsest.governance.policy import Policy


@dataclass(frozen=True)
class Route:
    """How a request may be carried out.

    Attributes:
        rule: the rule that fired.
        why: its reason in words.
        actions: names of actions, best first.
        joint: whether all of them are needed together.
    """

    rule: str
    why: str
    actions: tuple[str, ...]
    joint: bool = False


def features(request: ChangeRequest, policy: Policy) -> dict[str, Any]:
    """What the rules look at: kind, volatile, attributed, uncertain, facts ("none", "one", "few", "many")."""
    n = len(request.facts)
    return {
        "kind": str(request.kind),
        "volatile": request.expected_days is not None and request.expected_days < policy.volatile_days,
        "attributed": request.attributed,
        "uncertain": not request.scope,
        "facts": "none" if n == 0 else "one" if n == 1 else "few" if n <= policy.edit_max else "many",
    }


def route(request: ChangeRequest, policy: Policy) -> Route:
    """The first rule all of whose conditions hold.

    Raises:
        InputError: no rule fits.

    Example:
        >>> from palimpsest.governance.items import FactChange, Kind
        >>> fact = FactChange("Ada", "home", "Ada lives in", "Rome", "Paris")
        >>> route(ChangeRequest(Kind.UPDATE, (fact,)), Policy()).actions
        ('rome', 'memit', 'store')
    """
    seen = features(request, policy)
    for name, rule in rules().items():
        if all(seen[what] in (wanted if isinstance(wanted, list) else [wanted]) for what, wanted in rule["when"].items()):
            return Route(name, rule["why"], tuple(rule["actions"]), rule.get("joint", False))
    raise InputError(f"No rule fits a request with {seen}.", "Name the action yourself, or add a rule to routing.toml.")


@cache
def rules() -> dict[str, dict[str, Any]]:
    """All rules by name, in order."""
    return tomllib.loads((Path(__file__).parent / "routing.toml").read_text(encoding="utf-8"))
