"""Options for reading an input whose file lacks something or is wrong.

Every option is declared here, once: commands, manifests and Python take them from
`ReadingOptions` (`whitediff.options.declarations`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from .errors import ArgumentError
from .options import declarations, declared, from_words, words_of

__all__ = [
    "ReadingOptions",
    "VarianceKind",
    "VarianceSource",
    "checked_reading",
    "number_or_variance",
    "option_cards",
    "options_of_cards",
    "reading_options",
]

_LAST_BIT = 61
_RANGE = re.compile(r"\d{1,9}(-\d{1,9})?")

type VarianceKind = Literal["variance", "sigma", "weight"]


@dataclasses.dataclass(frozen=True)
class VarianceSource:
    """A file that gives the variance of another.

    Attributes
    ----------
    path
        File, optionally with an extension in brackets.
    kind
        Quantity that its pixels hold; None: as the name of its extension says, else variance.
    """

    path: str
    kind: VarianceKind | None = None

    @classmethod
    def parse(cls, text: str) -> VarianceSource:
        """Parse ``FILE`` or ``KIND:FILE``.

        Parameters
        ----------
        text
            KIND is ``variance``, ``sigma`` or ``weight``.

        Returns
        -------
        source
            File and kind; the kind is None if the text has none.
        """
        kinds: tuple[VarianceKind, ...] = ("variance", "sigma", "weight")
        for kind in kinds:
            if text.startswith(f"{kind}:"):
                return cls(text.removeprefix(f"{kind}:"), kind)
        return cls(text)

    def __str__(self) -> str:
        return self.path if self.kind is None else f"{self.kind}:{self.path}"


def number_or_variance(text: str) -> VarianceSource | float:
    """Parse a variance as users give it.

    Parameters
    ----------
    text
        A number, ``FILE`` or ``KIND:FILE``.

    Returns
    -------
    variance
        The number, or the file that holds the variance.
    """
    try:
        return float(text)
    except ValueError:
        return VarianceSource.parse(text)


@dataclasses.dataclass(frozen=True)
class ReadingOptions:
    """Options for reading an input.

    Attributes
    ----------
    variance
        File of the variance, or its mean, image_unit²; a file takes precedence over the input's
        own plane.
    gain
        Electrons per image unit; positive.  For counts per second: per count.
    read_noise
        Electrons per pixel; not negative.
    exposure_time
        Seconds; positive.  Takes precedence over the header's.
    mask
        File of the mask, optionally with an extension in brackets.
    mask_bits
        Bits of the mask that make a pixel bad, counted from 0: text such as ``1,4-6``, or their
        numbers.  If the mask has codes instead of bits: the codes.
    saturation
        Level from which pixels are saturated, image unit; positive.  Takes
        precedence over the header's.

    Raises
    ------
    ArgumentError
        If a number is out of its range.
    """

    variance: VarianceSource | float | None = declared(
        None,
        "Variance of the {side}: its mean, or a file with its plane (KIND:FILE for KIND sigma or"
        " weight)  [default: its own plane].",
        parse=number_or_variance,
        metavar="NUMBER|FILE",
        is_file=True,
        keyword="VARIN",
        group="Inputs",
    )
    gain: float | None = declared(
        None,
        "Gain of the {side}, electrons per count, where it has no variance plane  [default: GAIN].",
        keyword="GAIN",
        group="Inputs",
    )
    read_noise: float | None = declared(
        None,
        "Read noise of the {side}, electrons, where it has no variance plane  [default: RDNOISE].",
        keyword="RDN",
        group="Inputs",
    )
    exposure_time: float | None = declared(
        None,
        "Exposure time of the {side}, seconds, where its unit is per second  [default: EXPTIME].",
        keyword="EXPT",
        group="Inputs",
    )
    mask: str | None = declared(
        None,
        "File with the mask of the {side}  [default: its own mask].",
        metavar="FILE",
        is_file=True,
        keyword="MASK",
        group="Inputs",
    )
    mask_bits: str | tuple[int, ...] | None = declared(
        None,
        "Bits of the mask of the {side} that make a pixel bad, from 0, such as 1,4-6  [default:"
        " those of its instrument, else all].",
        keyword="MBITS",
        group="Inputs",
    )
    saturation: float | None = declared(
        None,
        "Level from which pixels of the {side} are saturated  [default: SATURATE, else the value"
        " that many of the highest pixels share].",
        keyword="SATUR",
        group="Inputs",
    )

    def __post_init__(self) -> None:
        found = self._complaint()
        if found is not None:
            raise ArgumentError(" ".join(found))

    def _complaint(self) -> tuple[str, str] | None:
        """Name of an option that is out of its range, and the requirement; None if all are in."""
        if isinstance(self.variance, float | int) and not _is_positive(self.variance):
            return "variance", f"must be a positive number or a file; got {self.variance:g}."
        for name, unit in (("gain", " of electrons per count"), ("exposure_time", " of seconds")):
            value = getattr(self, name)
            if value is not None and not _is_positive(value):
                return name, f"must be a positive number{unit}; got {value:g}."
        if self.read_noise is not None and not 0 <= self.read_noise < math.inf:
            kind = "a negative number" if self.read_noise < 0 else "an infinite or undefined number"
            return "read_noise", f"must not be {kind} of electrons; got {self.read_noise:g}."
        if self.saturation is not None and not _is_positive(self.saturation):
            kind = "a positive number" if math.isfinite(self.saturation) else "a number"
            return "saturation", f"must be {kind}, far above the sky; got {self.saturation:g}."
        try:
            self.mask_bit_numbers  # noqa: B018
        except ValueError as error:
            return "mask_bits", f"{error}."
        return None

    @property
    def mask_bit_numbers(self) -> tuple[int, ...] | None:
        """Numbers of the bits that make a pixel bad, ascending; None if none are given."""
        return None if self.mask_bits is None else _bit_numbers(self.mask_bits)


def _bit_numbers(said: str | tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(said, str):
        parts = said.replace(",", " ").split()
        if not parts or not all(_RANGE.fullmatch(part) for part in parts):
            raise ValueError(f"must be numbers and ranges, such as 1,4-6; got {said!r}")
        ends = [tuple(int(end) for end in part.split("-")) for part in parts]
    else:
        ends = [(number,) for number in (said if isinstance(said, Iterable) else (said,))]
        if not ends or any(isinstance(n, bool) or int(n) != n for (n,) in ends):
            raise ValueError(f"must be numbers of bits; got {said!r}")
    found: set[int] = set()
    for first, *others in ends:
        last = others[0] if others else first
        if last < first:
            raise ValueError(f"must not have an empty range; got {first}-{last}")
        if first < 0 or last > _LAST_BIT:
            raise ValueError(
                f"must be from 0 to {_LAST_BIT}; got {first if first < 0 else last} (give numbers,"
                " not values: bit 3 has the value 8)"
            )
        found.update(range(int(first), int(last) + 1))
    return tuple(sorted(found))


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf


def reading_options(values: Mapping[str, object], **paths: str) -> dict[str, ReadingOptions]:
    """Make the options of several inputs from the values of a manifest.

    Parameters
    ----------
    values
        Name such as ``science_gain`` → value, which may be None; a variance may be text:
        ``FILE`` or ``KIND:FILE``.  Other names are left alone.
    **paths
        Input (``science``, ``template``) → its file, for messages.

    Returns
    -------
    options
        Input → its options.

    Raises
    ------
    ArgumentError
        If a value is out of its range.
    """
    result = {}
    for side, path in paths.items():
        own = {
            name: each.taken(values[f"{side}_{name}"])
            for name, each in declarations(ReadingOptions).items()
            if values.get(f"{side}_{name}") is not None
        }
        with checked_reading(side, path):
            result[side] = ReadingOptions(**own)
    return result


@contextlib.contextmanager
def checked_reading(side: str, path: str) -> Iterator[None]:
    """Context in which an error of `ReadingOptions` names the file and the option.

    Parameters
    ----------
    side
        ``science`` or ``template``.
    path
        File of this input.

    Yields
    ------
    None
    """
    try:
        yield
    except ArgumentError as error:
        name, _, requirement = str(error).partition(" ")
        option = f"--{side}-{name}".replace("_", "-")
        raise ArgumentError.of(path, f"{option} {requirement}") from error


def option_cards(**inputs: ReadingOptions) -> dict[str, tuple[str | float | None, str]]:
    """Cards that record which options were given.

    Parameters
    ----------
    **inputs
        ``science``, ``template`` → options of this input.

    Returns
    -------
    cards
        Keyword → (value or None, comment).
    """
    return {
        f"WD{side[0].upper()}{each.keyword}": (
            _told(words_of(options)[name]),
            f"{side} {name.replace('_', ' ')}, as given",
        )
        for side, options in inputs.items()
        for name, each in declarations(ReadingOptions).items()
    }


def options_of_cards(values: Mapping[str, object], side: str) -> ReadingOptions:
    """Options that `option_cards` recorded.

    Parameters
    ----------
    values
        Keyword → value.
    side
        ``science`` or ``template``.

    Returns
    -------
    options
        Options of this input; the default ones where no card tells of any.
    """
    words = {}
    for name, each in declarations(ReadingOptions).items():
        value = values.get(f"WD{side[0].upper()}{each.keyword}")
        if isinstance(value, str) or (isinstance(value, float | int) and value is not True):
            words[name] = float(value) if each.is_number else each.read(str(value))
    return from_words(ReadingOptions, words)


def _told(value: Any) -> str | float | None:
    if isinstance(value, tuple):
        return ",".join(str(each) for each in value)
    return str(value) if isinstance(value, VarianceSource) else value
