"""Context methods from words: `build_method("infllm", {"n_local": "1024", "topk": "4"})`, for the command line and for tables.

The name is one of `palimpsest.context.catalogue`; the options are the fields of the method's dataclass, read by their types. A field that
is itself a method (ThinK's `after`) is given by name, and its own options with a dot: `after=h2o`, `after.budget=512`.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from palimpsest.context.attach import ContextMethod
from palimpsest.context.catalogue import method
from palimpsest.errors import InputError

_TRUE, _FALSE, _NONE = ("true", "yes", "1"), ("false", "no", "0"), ("none", "null")


def build_method(name: str, options: Mapping[str, str] | None = None) -> ContextMethod:
    """A method of the catalogue with these hyper-parameters.

    Args:
        name: as `palimpsest context list` shows it.
        options: field → text.

    Raises:
        InputError: a name that is unknown or no method to attach, an option that the method does not have, that cannot be read, or that
            is missing.

    Example:
        >>> build_method("infllm", {"n_local": "1024", "topk": "4"})      # doctest: +SKIP
        InfLLM(n_init=128, n_local=1024, …)
    """
    made = method_class(name)
    hints = get_type_hints(made)
    known = {field.name: field for field in fields(made) if field.init}  # type: ignore[arg-type]
    own = dict(options or {})
    inner: dict[str, dict[str, Any]] = {}
    for key in [key for key in own if "." in key]:
        outer, _, rest = key.partition(".")
        inner.setdefault(outer, {})[rest] = own.pop(key)
    for key in [*own, *inner]:
        if key not in known:
            raise InputError(f"{name} has no option {key!r}.", f"It has: {', '.join(known) or 'none'}.")
    for key in inner:
        if key not in own:
            raise InputError(f"{name} was given options of {key!r}, but not {key} itself.", f"Name the method too: {key}=NAME.")
    missing = [key for key, field in known.items() if field.default is MISSING and field.default_factory is MISSING and key not in own]
    if missing:
        raise InputError(f"{name} needs {', '.join(missing)}.", f"Give it, for example: {missing[0]}=256.")
    idle = [key for key in method(name).needs if own.get(key, "none").lower() in _NONE]
    if idle:
        raise InputError(f"{name} does nothing without {', '.join(idle)}.", f"Give {idle[0]}=… .")
    return made(**{key: _value(name, key, text, hints[key], inner.get(key, {})) for key, text in own.items()})


def method_class(name: str) -> type[ContextMethod]:
    """The class of a method of the catalogue.

    Raises:
        InputError: an unknown name, or an entry that is not attached to a model, such as a trained encoding.
    """
    entry = method(name).entry_point
    module, _, attribute = entry.partition(":")
    found = getattr(import_module(module), attribute, None)
    if not isinstance(found, type) or not issubclass(found, ContextMethod):
        raise InputError(f"{name} is not a method that can be put on a model: it is {entry}.", "Choose one of `palimpsest context list`.")
    return found


def _value(name: str, key: str, text: str, kind: Any, inner: Mapping[str, str]) -> Any:
    """The text of an option as what the field's type says."""
    wrong = InputError(f"{name} cannot read {key}={text!r}.", f"Give {_words(kind)}.")
    if get_origin(kind) in (Union, types.UnionType):
        if type(None) in get_args(kind) and text.lower() in _NONE:
            return None
        for option in get_args(kind):
            if option is not type(None):
                try:
                    return _value(name, key, text, option, inner)
                except InputError:
                    if isinstance(option, type) and issubclass(option, ContextMethod):
                        raise  # it says more than that the text cannot be read
        raise wrong
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise wrong
        return text
    if isinstance(kind, type) and issubclass(kind, ContextMethod):
        return build_method(text, inner)
    if kind is bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise wrong
        return text.lower() in _TRUE
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError as error:
            raise wrong from error
    if kind is str:
        return text
    raise InputError(f"{key} of {name} cannot be given as text.", "Use it from Python.")


def _words(kind: Any) -> str:
    """What a type takes, in words."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_words(option) for option in get_args(kind))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
    return names.get(kind, "the name of a method")
