"""Checks of an archive's content before lsst.images makes objects of it.

The archive's JSON may hold settings of Piff, some of which are evaluated as Python, and addresses
in the file, where anything may lie.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import astropy.io.fits

from ...errors import FileFormatError, one_line
from ..piff.trusted import check_struct, literal

__all__ = ["check_archive", "check_schema"]

_SCHEMA = re.compile(r"https?://[A-Za-z0-9.-]+/[A-Za-z0-9._/-]+")
_ADDRESSES = {"JSON": ("JSONADDR", "JSONSIZE"), "INDEX": ("INDXADDR", "INDXSIZE")}


def check_schema(hdus: astropy.io.fits.HDUList, path: Path) -> None:
    """Make sure that the card DATAMODL names a schema.

    Parameters
    ----------
    hdus, path
        As in `check_archive`.

    Raises
    ------
    FileFormatError
        If DATAMODL is anything else.  lsst.images takes it for an address, but fetches nothing.
    """
    schema = hdus[0].header.get("DATAMODL")
    if not isinstance(schema, str) or not _SCHEMA.fullmatch(schema):
        raise FileFormatError.of(
            path,
            f"DATAMODL is {schema!r}, and no name of a schema of lsst.images; copy or"
            " download it again.",
        )


def check_archive(hdus: astropy.io.fits.HDUList, path: Path) -> None:
    """Make sure that an archive can safely be given to lsst.images.

    Parameters
    ----------
    hdus
        HDUs of the file.
    path
        File, for messages.

    Raises
    ------
    FileFormatError
        If the addresses in the primary header do not point to the extensions JSON and INDEX, or
        the JSON holds settings that Piff must not be given.
    """
    header = hdus[0].header
    check_schema(hdus, path)
    for name, cards in _ADDRESSES.items():
        if name not in hdus:
            raise FileFormatError.of(
                path,
                f"cannot be read as an lsst.images archive, since it has no extension"
                f" {name}; is it complete?",
            )
        info = hdus[name].fileinfo()
        start, stop = info["hdrLoc"], info["datLoc"] + info["datSpan"]
        said = tuple(header.get(card) for card in cards)
        if said != (start, stop - start):
            raise FileFormatError.of(
                path,
                f"{cards[0]} and {cards[1]} are {said[0]!r} and {said[1]!r}, but its {name}"
                f" is at {start}, with {stop - start} bytes; copy or download it again.",
            )
    try:
        blocks = [bytes(row["JSON"].tobytes()) for row in hdus["JSON"].data]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise FileFormatError.of(
            path, f"its JSON cannot be read ({one_line(error)}); copy or download it again."
        ) from error

    def looked_at(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # A dictionary would hide all but the last pair of a repeated name.
        for name, value in pairs:
            if name == "structs" and isinstance(value, dict):
                for part, struct in value.items():
                    if isinstance(struct, dict):
                        check_struct(struct, f"{path}: the PSF's {part}")
            if name == "PARAMS_LENS":
                literal(str(value), f"{path}: the PSF's {name}")
        return dict(pairs)

    for block in blocks:
        try:
            json.loads(block, object_pairs_hook=looked_at)
        except (ValueError, RecursionError) as error:
            raise FileFormatError.of(
                path,
                f"its JSON cannot be understood ({one_line(error)}); copy or download it again.",
            ) from error
