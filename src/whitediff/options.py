"""Options: declared once, in frozen classes, and given by plain names everywhere.

An options class declares its fields with `declared`, and nested options classes with `part`.
Command line, manifests and Python take their options from these declarations.  `flattened` turns
options into flat tables that a file can hold, and `rebuilt` turns them back.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "Declaration",
    "changed",
    "declarations",
    "declared",
    "flattened",
    "from_words",
    "given_words",
    "part",
    "rebuilt",
    "words_of",
]

_UNFIT = object()


_LONGEST = 200
"""Letters of a wrong value that a message shows."""


@dataclasses.dataclass(frozen=True)
class Declaration:
    """Declaration of one option, for the command line, manifests and Python.

    Attributes
    ----------
    name
        Keyword in Python, column of a manifest, and, with dashes, option of a command.
    hint
        Type of the option's values.
    default
        Value if none is given.
    help
        Sentence for users.
    path
        Names of the fields that lead to the option from the options class.
    group
        Heading under which help lists the option.
    parse
        Function from text to the value, which raises ValueError with a sentence; None if the
        hint is enough to convert text.
    metavar
        Name of the value in help.
    least
        Smallest integer that is allowed.
    is_file
        Text names a file that is read.
    is_output, is_directory
        The value names a file, or directory, that is written.
    required
        The command line must give the option.
    several
        The option may be given several times; the value is a tuple.
    check
        Function of the value that refuses it before any work; None for no check.
    short
        One-letter name on the command line; empty for none.
    keyword
        End of the keyword of the FITS card that records the option; empty for none.
    """

    name: str
    hint: Any
    default: Any
    help: str
    path: tuple[str, ...] = ()
    group: str = ""
    parse: Callable[[str], Any] | None = None
    metavar: str | None = None
    least: int | None = None
    is_file: bool = False
    is_output: bool = False
    is_directory: bool = False
    required: bool = False
    several: bool = False
    check: Callable[[Any], None] | None = None
    short: str = ""
    keyword: str = ""

    @property
    def choices(self) -> tuple[str, ...]:
        """Allowed texts; empty if the option takes other values too."""
        alternatives = [each for each in _alternatives(self.hint) if each is not types.NoneType]
        if all(typing.get_origin(each) is typing.Literal for each in alternatives):
            return tuple(one for each in alternatives for one in typing.get_args(each))
        return ()

    @property
    def is_number(self) -> bool:
        """Whether the option takes numbers and nothing else."""
        hints = set(_alternatives(self.hint)) - {types.NoneType}
        return bool(hints) and hints <= {int, float}

    @property
    def is_flag(self) -> bool:
        """Whether the option is a flag, which takes true or false."""
        return bool in _alternatives(self.hint)

    def taken(self, value: object) -> Any:
        """Convert a value to the type that the options class declares.

        Parameters
        ----------
        value
            Value given in Python; text is parsed if the option has a parser.

        Returns
        -------
        value
            Value of the declared type.

        Raises
        ------
        ArgumentError
            If the value has another type, is none of the choices, is less than `least`, or
            cannot be parsed.
        """
        if value is None and self.default is None:
            return None
        if self.several:
            values = value if isinstance(value, tuple | list) else (value,)
            return tuple(self._one(each) for each in values)
        return self._one(value)

    def read(self, text: str) -> object:
        """Convert the text of a table's cell to a value.

        Parameters
        ----------
        text
            One value.

        Returns
        -------
        value
            Value of the declared type.

        Raises
        ------
        ValueError
            If the text is no value of this type; the message is a sentence.
        """
        if self.parse is not None:
            return self.parse(text)
        if self.is_flag:
            known = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
            if text.lower() not in known:
                raise ValueError(f"{text!r} is not a valid boolean, true or false")
            return known[text.lower()]
        if self.choices:
            if text not in self.choices:
                names = ", ".join(repr(each) for each in self.choices)
                raise ValueError(f"{text!r} is not one of {names}")
            return text
        hints = _alternatives(self.hint)
        for hint, name in ((int, "integer"), (float, "float")):
            if hint in hints:
                try:
                    value = hint(text)
                except ValueError:
                    raise ValueError(f"{text!r} is not a valid {name}") from None
                if self.least is not None and value < self.least:
                    raise ValueError(f"{value} is not in the range x>={self.least}")
                return value
        return text

    def _one(self, value: Any) -> Any:
        hints = _alternatives(self.hint)
        is_number = type(value) is int and int not in hints and float not in hints
        if self.parse is not None and (isinstance(value, str) or is_number):
            try:
                return self.parse(str(value))
            except ValueError as error:
                raise ArgumentError(f"{self.name} {error}.") from error
        if self.several:
            hints = tuple(one for each in hints for one in _alternatives(typing.get_args(each)[0]))
        if isinstance(value, os.PathLike) and str in hints and Path not in hints:
            return os.fspath(value)
        if isinstance(value, str) and Path in hints:
            return Path(value)
        # Scalars of NumPy do not have the exact types that the checks below want.
        if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
            value = value.item()
        for hint in hints:
            found = _fitting(value, hint)
            if found is not _UNFIT:
                if self.least is not None and type(found) is int and found < self.least:
                    raise ArgumentError(f"{self.name} must be at least {self.least}; got {found}.")
                return found
        wanted = f"one of {', '.join(self.choices)}" if self.choices else _in_words(hints)
        text = repr(value)
        if len(text) > _LONGEST or "\n" in text:
            text = f"an object of the type {type(value).__name__}"
        raise ArgumentError(f"{self.name} must be {wanted}; got {text}.")


def declared(default: object, help: str, **known: object) -> Any:
    """Field of an options class that users can give.

    Parameters
    ----------
    default
        Value if none is given.
    help
        Sentence for users; ``{…}`` stands for a word that `part` fills in.
    **known
        Further attributes of `Declaration`.

    Returns
    -------
    field
        Field of a frozen dataclass.
    """
    return dataclasses.field(default=default, metadata={"help": help} | known)


def part(kind: type, *, prefix: str = "", without: tuple[str, ...] = (), **words: str) -> Any:
    """Field of an options class that holds another options class.

    Parameters
    ----------
    kind
        Inner class; its options become options of the outer class.
    prefix
        Start of their names in the outer class.
    without
        Options of the inner class that users cannot give through the outer class.
    **words
        Words that replace ``{…}`` in their help.

    Returns
    -------
    field
        Field of a frozen dataclass.
    """
    metadata = {"part": kind, "prefix": prefix, "without": without, "words": words}
    return dataclasses.field(default_factory=kind, metadata=metadata)


def declarations(kind: type) -> Mapping[str, Declaration]:
    """Options that users can give to an options class and its parts.

    Parameters
    ----------
    kind
        Frozen dataclass whose fields are made by `declared` and `part`; other fields are no
        options.

    Returns
    -------
    declarations
        Name → `Declaration`, in the order of the fields.
    """
    return _declarations(kind)


@functools.lru_cache(maxsize=64)
def _declarations(kind: Any) -> Mapping[str, Declaration]:
    hints = typing.get_type_hints(kind)
    found: dict[str, Declaration] = {}
    for field in dataclasses.fields(kind):
        known = dict(field.metadata)
        if "part" in known:
            for name, each in declarations(known["part"]).items():
                if name not in known["without"]:
                    whole = known["prefix"] + name
                    text = each.help.format(**known["words"]) if known["words"] else each.help
                    text = text[:1].upper() + text[1:]
                    path = (field.name, *each.path)
                    found[whole] = dataclasses.replace(each, name=whole, path=path, help=text)
        elif "help" in known:
            found[field.name] = Declaration(
                field.name, hints[field.name], field.default, path=(field.name,), **known
            )
    return types.MappingProxyType(found)


def from_words[T](
    kind: type[T], words: Mapping[str, object], files: Mapping[str, object] | None = None
) -> T:
    """Make options from the values that a user gave.

    Parameters
    ----------
    kind
        Options class.
    words
        Name → value; a missing name has its default.
    files
        Prefix of the options that belong to a file, without the ``_`` → the file, for messages.

    Returns
    -------
    options
        Options, checked by their classes.

    Raises
    ------
    ArgumentError
        If a name is unknown, or a value refused.
    """
    known = declarations(kind)
    for name in words:
        if name not in known:
            like = difflib.get_close_matches(name, known, n=1)
            hint = f"is {like[0]} meant" if like else f"options are {', '.join(known)}"
            raise ArgumentError(f"There is no option {name!r}; {hint}{'?' if like else '.'}")
    values = {known[name].path: known[name].taken(value) for name, value in words.items()}
    return _assembled(kind, values, files or {})


def _assembled(kind: Any, values: Mapping[tuple[str, ...], Any], files: Mapping[str, Any]) -> Any:
    own = {path[0]: value for path, value in values.items() if len(path) == 1}
    for field in dataclasses.fields(kind):
        inner = {path[1:]: v for path, v in values.items() if path[0] == field.name and path[1:]}
        if not inner:
            continue
        prefix = field.metadata["prefix"]
        try:
            own[field.name] = _assembled(field.metadata["part"], inner, files)
        except ArgumentError as error:
            # The message begins with the option's name in its part; users know the prefixed one.
            name, _, requirement = str(error).partition(" ")
            if not prefix or name not in declarations(field.metadata["part"]):
                raise
            file = files.get(prefix.rstrip("_"))
            where = f"{file}: " if isinstance(file, str) else ""
            option = f"--{prefix}{name}".replace("_", "-")
            raise ArgumentError(f"{where}{option} {requirement}") from error
    return kind(**own)


def words_of(options: object) -> dict[str, Any]:
    """Values of options by the names that users know.

    Parameters
    ----------
    options
        Options, as from `from_words`.

    Returns
    -------
    words
        Name → value, for all options.
    """
    words = {}
    for name, each in declarations(type(options)).items():
        value = options
        for step in each.path:
            value = getattr(value, step)
        words[name] = value
    return words


def given_words(options: object) -> dict[str, object]:
    """Values of options that differ from the defaults, by the names that users know.

    Parameters
    ----------
    options
        Options, as from `from_words`.

    Returns
    -------
    words
        Name → value.
    """
    known = declarations(type(options))
    return {
        name: value
        for name, value in words_of(options).items()
        if not _is_default(value, known[name].default)
    }


def _is_default(value: object, default: object) -> bool:
    """Whether a word has its default; images and the like, which compare by pixel, never have."""
    if value is default:
        return True
    equal = value == default
    return equal if isinstance(equal, bool) else False


def flattened(options: DataclassInstance) -> dict[str, object]:
    """Values of nested options by dotted names.

    Parameters
    ----------
    options
        Frozen dataclass of numbers, texts, flags, tuples of them, None, and such dataclasses.

    Returns
    -------
    values
        ``"match.fit.kernel_order"`` → value, in the order of declaration.  A part that is None
        appears by its own name alone.
    """
    values: dict[str, object] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            inner = flattened(value)  # type: ignore[arg-type]
            values |= {f"{field.name}.{name}": each for name, each in inner.items()}
        else:
            values[field.name] = value
    return values


def changed(options: DataclassInstance) -> dict[str, object]:
    """Values that differ from the default of their class.

    Parameters
    ----------
    options
        As for `flattened`; all fields have defaults.

    Returns
    -------
    values
        Dotted name → value, as from `flattened`.
    """
    usual = flattened(type(options)())
    return {
        name: value
        for name, value in flattened(options).items()
        if name not in usual or usual[name] != value
    }


def rebuilt[T](kind: type[T], values: Mapping[str, object]) -> T:
    """Make options from their flat values.

    Parameters
    ----------
    kind
        Class of the options.
    values
        Dotted name → value, as from `flattened`; tuples may have become lists.  A missing name
        has its default.

    Returns
    -------
    options
        Options, checked by their classes and against the types that these declare.

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
    """Members of a union of types, type aliases resolved; other types stand alone."""
    if isinstance(hint, typing.TypeAliasType):
        return _alternatives(hint.__value__)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(each for one in typing.get_args(hint) for each in _alternatives(one))
    return (hint,)


def _checked(value: Any, hint: Any, name: str) -> Any:
    """Value as the declared type; ArgumentError if it does not fit."""
    for each in _alternatives(hint):
        found = _fitting(value, each)
        if found is not _UNFIT:
            return found
    raise ArgumentError(f"The option {name!r} cannot be {value!r}.")


def _fitting(value: Any, hint: Any) -> Any:
    """Value as a single type; `_UNFIT` if it does not fit."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        fits = any(value == one and type(value) is type(one) for one in arguments)
        return value if fits else _UNFIT
    if typing.get_origin(hint) is tuple:
        return _fitting_tuple(value, arguments)
    if hint is float and type(value) in (int, float):
        return float(value)
    # isinstance would take a flag for an integer.
    exact = hint in (int, bool, float)
    fits = isinstance(hint, type) and (type(value) is hint if exact else isinstance(value, hint))
    return value if fits else _UNFIT


def _fitting_tuple(value: Any, hints: tuple[Any, ...]) -> Any:
    """Value as a tuple of types; `_UNFIT` if it does not fit."""
    if not isinstance(value, list | tuple):
        return _UNFIT
    if hints[-1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        return _UNFIT
    parts = []
    for one, hint in zip(value, hints, strict=True):
        fits = (_fitting(one, each) for each in _alternatives(hint))
        parts.append(next((each for each in fits if each is not _UNFIT), _UNFIT))
    return _UNFIT if _UNFIT in parts else tuple(parts)


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}


def _in_words(hints: tuple[Any, ...]) -> str:
    """Types, for a message."""
    named: list[str] = []
    for each in hints:
        if typing.get_origin(each) is typing.Literal:
            named += [repr(one) for one in typing.get_args(each)]
        elif typing.get_origin(each) is tuple:
            named.append(f"{len(typing.get_args(each))} values")
        elif each is not types.NoneType:
            named.append(_WORDS.get(each, getattr(each, "__name__", str(each))))
    return " or ".join(dict.fromkeys(named))
