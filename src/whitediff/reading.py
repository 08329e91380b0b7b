"""How an input is read, where its file does not say or says something wrong.

Every option is declared here, once: commands, manifests and Python take them from
`ReadingOptions`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from .errors import ArgumentError

__all__ = [
    "Declaration",
    "ReadingOptions",
    "VarianceKind",
    "VarianceSource",
    "declarations",
    "file_options",
    "option_cards",
    "option_names",
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
        File, with an extension in brackets where wanted.
    kind
        What its pixels are; None: as the name of its extension says, else variance.
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
            Parsed.
        """
        kinds: tuple[VarianceKind, ...] = ("variance", "sigma", "weight")
        for kind in kinds:
            if text.startswith(f"{kind}:"):
                return cls(text.removeprefix(f"{kind}:"), kind)
        return cls(text)


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What commands need to know of an option.

    Attributes
    ----------
    name
        Field of `ReadingOptions`.
    kind
        Of its value: a number, a file, either of these, or text.
    help
        One sentence.
    keyword
        What the card that records it is called behind WDS (science) or WDT (template).
    """

    name: str
    kind: Literal["number", "file", "number or file", "text"]
    help: str
    keyword: str


def _declared(
    kind: Literal["number", "file", "number or file", "text"], keyword: str, text: str
) -> dict[str, str]:
    return {"kind": kind, "keyword": keyword, "help": text}


@dataclasses.dataclass(frozen=True)
class ReadingOptions:
    """How an input is read.

    Attributes
    ----------
    variance
        Where the variance is, or its mean, image_unit²; takes precedence over the file's own
        plane where it is a file.
    gain
        Electrons per image unit; positive.  For counts per second: per count.
    read_noise
        Electrons per pixel; not negative.
    exposure_time
        Seconds; positive.  Takes precedence over the header's.
    mask
        File of the mask, with an extension in brackets where wanted.
    mask_bits
        Which bits of the mask make a pixel bad, counted from 0: text such as ``1,4-6``, or their
        numbers.  Of a mask with codes instead of bits: which codes.
    saturation
        Level from which pixels are saturated, image unit; positive.  Takes
        precedence over the header's.

    Raises
    ------
    ArgumentError
        If a number is out of its range.
    """

    variance: VarianceSource | float | None = dataclasses.field(
        default=None,
        metadata=_declared(
            "number or file",
            "VARIN",
            "Mean variance of the {side}, or a file with its variance plane (KIND:FILE for KIND"
            " sigma or weight).",
        ),
    )
    gain: float | None = dataclasses.field(
        default=None,
        metadata=_declared(
            "number",
            "GAIN",
            "Electrons per count, for a {side} without a variance plane  [default: GAIN].",
        ),
    )
    read_noise: float | None = dataclasses.field(
        default=None, metadata=_declared("number", "RDN", "Electrons  [default: RDNOISE].")
    )
    exposure_time: float | None = dataclasses.field(
        default=None,
        metadata=_declared(
            "number",
            "EXPT",
            "Seconds, for a {side} in units per second  [default: EXPTIME].",
        ),
    )
    mask: str | None = dataclasses.field(
        default=None, metadata=_declared("file", "MASK", "Mask of the {side}  [default: its own].")
    )
    mask_bits: str | tuple[int, ...] | None = dataclasses.field(
        default=None,
        metadata=_declared(
            "text",
            "MBITS",
            "Bits of the mask that make a pixel bad, from 0, such as 1,4-6  [default: those of its"
            " instrument, else all].",
        ),
    )
    saturation: float | None = dataclasses.field(
        default=None,
        metadata=_declared(
            "number",
            "SATUR",
            "Level from which pixels are saturated  [default: SATURATE, else the value that many"
            " of the highest pixels share].",
        ),
    )

    def __post_init__(self) -> None:
        found = self._complaint()
        if found is not None:
            raise ArgumentError(" ".join(found))

    def _complaint(self) -> tuple[str, str] | None:
        """Option that is out of its range, and what it must be."""
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
        """Numbers of the bits that make a pixel bad, ascending; None where nobody says."""
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


def declarations() -> tuple[Declaration, ...]:
    """Declarations of all options.

    Returns
    -------
    declarations
        In the order of the fields.
    """
    return tuple(
        Declaration(field.name, **field.metadata) for field in dataclasses.fields(ReadingOptions)
    )


def option_names(*sides: str) -> tuple[str, ...]:
    """Names of the options of some inputs.

    Parameters
    ----------
    *sides
        ``science``, ``template``.

    Returns
    -------
    names
        Such as ``science_gain``.
    """
    return tuple(f"{side}_{each.name}" for side in sides for each in declarations())


def file_options(*sides: str) -> tuple[str, ...]:
    """Names of those options of some inputs that may be files.

    Parameters
    ----------
    *sides
        ``science``, ``template``.

    Returns
    -------
    names
        Such as ``science_variance``.
    """
    return tuple(
        f"{side}_{each.name}" for side in sides for each in declarations() if "file" in each.kind
    )


def reading_options(values: Mapping[str, Any], **paths: str) -> dict[str, ReadingOptions]:
    """Options of several inputs from values as commands and manifests have them.

    Parameters
    ----------
    values
        Name such as ``science_gain`` → value, which may be None; a variance may be text:
        ``FILE`` or ``KIND:FILE``.
    **paths
        Input (``science``, ``template``) → its file, for messages.

    Returns
    -------
    options
        Input → its options.

    Raises
    ------
    TypeError
        If a name is no option.
    ArgumentError
        If a value is out of its range.
    """
    unknown = set(values) - set(option_names(*paths))
    if unknown:
        raise TypeError(f"{', '.join(sorted(unknown))}: no such option of reading.")
    result = {}
    for side, path in paths.items():
        own = {
            each.name: values[f"{side}_{each.name}"]
            for each in declarations()
            if values.get(f"{side}_{each.name}") is not None
        }
        if isinstance(own.get("variance"), str):
            own["variance"] = VarianceSource.parse(own["variance"])
        try:
            result[side] = ReadingOptions(**own)
        except ArgumentError as error:
            name, _, requirement = str(error).partition(" ")
            option = f"--{side}-{name}".replace("_", "-")
            raise ArgumentError(f"{path}: {option} {requirement}") from error
    return result


def option_cards(values: Mapping[str, Any], *sides: str) -> dict[str, tuple[Any, str]]:
    """Cards that record which options were given.

    Parameters
    ----------
    values
        As for `reading_options`.
    *sides
        ``science``, ``template``.

    Returns
    -------
    cards
        Keyword → (value or None, comment).
    """
    return {
        f"WD{side[0].upper()}{each.keyword}": (
            values.get(f"{side}_{each.name}"),
            f"{side} {each.name.replace('_', ' ')}, as given",
        )
        for side in sides
        for each in declarations()
    }
