"""Options classes as flat tables of names and values, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from .errors import ArgumentError

__all__ = ["changed", "flattened", "rebuilt"]


def flattened(options: Any) -> dict[str, Any]:
    """Values of nested options by dotted names.

    Parameters
    ----------
    options
        Frozen dataclass of numbers, texts, flags, tuples of them, None, and of such dataclasses.

    Returns
    -------
    values
        ``"match.fit.kernel_order"`` → value, in the order of declaration.  Of a part that is None
        there is its own name alone.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            inner = flattened(value)
            values |= {f"{field.name}.{name}": each for name, each in inner.items()}
        else:
            values[field.name] = value
    return values


def changed(options: Any) -> dict[str, Any]:
    """Values that are not the default of their class.

    Parameters
    ----------
    options
        As for `flattened`; all its fields have defaults.

    Returns
    -------
    values
        As of `flattened`.
    """
    usual = flattened(type(options)())
    return {
        name: value
        for name, value in flattened(options).items()
        if name not in usual or usual[name] != value
    }


def rebuilt[T](kind: type[T], values: Mapping[str, Any]) -> T:
    """Options from their flat values.

    Parameters
    ----------
    kind
        Class of the options.
    values
        As of `flattened`; tuples may have become lists.  What is missing has its default.

    Returns
    -------
    options
        Checked by their classes, and against the types that these declare.

    Raises
    ------
    ArgumentError
        If a name is unknown, or a value has another type than its field or is refused.
    """
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        first, dot, rest = name.partition(".")
        if first not in hints:
            raise ArgumentError(f"There is no option {name!r}.")
        if dot:
            parts.setdefault(first, {})[rest] = value
        else:
            given[first] = _checked(value, hints[first], name)
    for name, inner in parts.items():
        classes = [each for each in _alternatives(hints[name]) if dataclasses.is_dataclass(each)]
        if not classes:
            raise ArgumentError(f"The option {name!r} has no parts.")
        part: type[Any] = classes[0]  # type: ignore[assignment]
        given[name] = rebuilt(part, inner)
    return kind(**given)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Types of which a value may be one."""
    if isinstance(hint, typing.TypeAliasType):
        return _alternatives(hint.__value__)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(each for one in typing.get_args(hint) for each in _alternatives(one))
    return (hint,)


def _checked(value: Any, hint: Any, name: str) -> Any:
    """Value of the declared type."""
    for each in _alternatives(hint):
        arguments = typing.get_args(each)
        if typing.get_origin(each) is typing.Literal:
            if any(value == one and type(value) is type(one) for one in arguments):
                return value
        elif typing.get_origin(each) is tuple and isinstance(value, list | tuple):
            if arguments[-1] is Ellipsis:
                arguments = (arguments[0],) * len(value)
            if len(arguments) == len(value):
                return tuple(
                    _checked(one, kind, name) for one, kind in zip(value, arguments, strict=True)
                )
        elif each is float and type(value) in (int, float):
            return float(value)
        elif isinstance(each, type) and type(value) is each:
            return value
    raise ArgumentError(f"The option {name!r} cannot be {value!r}.")
