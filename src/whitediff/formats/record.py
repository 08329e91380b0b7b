"""Record of how a whitediff file was made, from its header and tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import astropy.io.fits
import astropy.table

from ..errors import FileFormatError
from .files import opened, split_extension
from .headers import unescaped
from .tables import read_table_hdu

if TYPE_CHECKING:
    from .own.write import CardValue

__all__ = [
    "Record",
    "decorrelated",
    "given_zero_point",
    "history_cards",
    "is_score",
    "read_record",
    "score_depth",
]

_HISTORY = (
    "WDTASK", "WDVERS", "WDSCI", "WDTMPL", "WDDIFF", "WDKERN", "WDPSF", "WDCONV", "WDSCORE",
    "WDSOFTW", "WDNREG",
)  # fmt: skip
_PRODUCTS = ("subtract", "decorrelate", "decorrelate-stack")
_PIPELINE = "pipeline task"


@dataclasses.dataclass(frozen=True)
class Record:
    """How a difference or score was made.

    Attributes
    ----------
    header
        Primary header of the file, with texts still encoded (`whitediff.formats.headers.escaped`).
    stars
        Table STARS of ``subtract`` (`whitediff.matching.fitted_stars.star_table`), or None.
    log
        Table LOG of ``subtract`` (seconds, kind (option, stage, warning) and text), or None.
    """

    header: astropy.io.fits.Header
    stars: astropy.table.Table | None
    log: astropy.table.Table | None

    @property
    def is_score(self) -> bool:
        """Whether the product is a score image."""
        return self.header.get("WDSCORE") is True

    def name(self, keyword: str) -> str | None:
        """Name of an input file.

        Parameters
        ----------
        keyword
            Card, such as WDSCI.

        Returns
        -------
        name
            Name as it was given; None if there is none, or several in one card.
        """
        value = self.header.get(keyword)
        if not isinstance(value, str) or "; " in value:
            return None
        return unescaped(value)


def decorrelated(primary: astropy.io.fits.Header) -> str | None:
    """Command or task of whitediff that decorrelated the noise of a file's image.

    Parameters
    ----------
    primary
        Primary header of the file.

    Returns
    -------
    name
        Name, such as ``subtract``; None if the noise was not decorrelated.
    """
    task, name = primary.get("WDTASK"), primary.get("WDWHITE")
    if task in _PRODUCTS:
        return str(task)
    return name if isinstance(name, str) else None


def is_score(path: str | Path) -> bool:
    """Whether a file holds a score that whitediff made.

    Parameters
    ----------
    path
        FITS file.

    Returns
    -------
    is_score
        True or False.

    Raises
    ------
    FileFormatError
        If the file is not FITS.
    """
    return _value(path, "WDSCORE") is True


def score_depth(path: str | Path) -> float | None:
    """Flux of a 5 sigma point source on a score.

    Parameters
    ----------
    path
        FITS file.

    Returns
    -------
    flux
        Value of WDDEPTH; None without a positive one.

    Raises
    ------
    FileFormatError
        If the file is not FITS.
    """
    value = _number(path, "WDDEPTH")
    return value if value is not None and value > 0 else None


def history_values(path: str | Path) -> dict[str, CardValue]:
    """Values of the cards in which whitediff records how a product was made.

    Parameters
    ----------
    path
        FITS file.

    Returns
    -------
    values
        Keyword → value, its text decoded.

    Raises
    ------
    FileFormatError
        If the file is not FITS.
    """
    file, _ = split_extension(path)
    with opened(file) as hdus:
        cards = [card for card in hdus[0].header.cards if card.keyword.startswith("WD")]
        return {
            card.keyword: unescaped(card.value) if isinstance(card.value, str) else card.value
            for card in cards
        }


def given_zero_point(path: str | Path) -> float | None:
    """Zero point that a difference or score was made with, if one was given.

    Parameters
    ----------
    path
        FITS file.

    Returns
    -------
    zero_point
        Value of WDZERO; None without this card.

    Raises
    ------
    FileFormatError
        If the file is not FITS.
    """
    return _number(path, "WDZERO")


def _value(path: str | Path, keyword: str) -> object:
    """Value of a card of the primary header; None without it."""
    file, _ = split_extension(path)
    with opened(file) as hdus:
        value: object = hdus[0].header.get(keyword)
        return value


def _number(path: str | Path, keyword: str) -> float | None:
    value = _value(path, keyword)
    return value if isinstance(value, float) and math.isfinite(value) else None


def history_cards(path: str | Path) -> Mapping[str, tuple[CardValue, str]]:
    """Cards of a whitediff product that stay true however it is stored.

    Parameters
    ----------
    path
        FITS file.

    Returns
    -------
    cards
        Keyword → (value, comment): the command that made the product, and its inputs; empty for
        other files.  Cards that only `whitediff.formats.read_solution` needs are left out.

    Raises
    ------
    FileFormatError
        If the file is not FITS.
    """
    file, _ = split_extension(path)
    with opened(file) as hdus:
        header = hdus[0].header
        if "WDTASK" not in header:
            return {}
        cards = {name: header.cards[name] for name in _HISTORY if name in header}
        return {
            name: (
                unescaped(card.value) if isinstance(card.value, str) else card.value,
                card.comment,
            )
            for name, card in cards.items()
        }


def read_record(path: str | Path) -> Record:
    """Read how a difference or score was made.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    record
        `Record`.

    Raises
    ------
    FileFormatError
        If the file was not made by ``whitediff subtract``, ``decorrelate`` or
        ``decorrelate-stack``, or by a pipeline task that stores a kernel.
    """
    file, _ = split_extension(path)
    with opened(file) as hdus:
        header = hdus[0].header.copy()
        task = header.get("WDTASK")
        # Tasks also store pairs and matched templates, which have no kernel and are no products.
        if task not in _PRODUCTS and not (task == _PIPELINE and "KERNEL" in hdus):
            made = "has no card WDTASK" if task is None else f"was made by {task!r}"
            raise FileFormatError.of(
                file,
                f"is no difference or score of whitediff (it {made}); name an output of"
                " whitediff subtract, decorrelate or decorrelate-stack.",
            )
        return Record(header, read_table_hdu(hdus, "STARS"), read_table_hdu(hdus, "LOG"))
