"""Safe replacement of Piff's reader for the tables of its files.

Piff unpickles the WCS of a file, and evaluates settings that look like Python.  But it reads files
through an object with a few methods, and accepts the one from this module.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import numpy.typing as npt

from ...errors import FileFormatError
from .pickles import unpickled
from .trusted import check_struct, literal

__all__ = ["TrustedReader", "read_wcs"]

type Array = npt.NDArray[Any]

_STARS = "stars"


class TrustedReader:
    """Reader that `piff.PSF._read` accepts instead of `piff.FitsReader`.

    Parameters
    ----------
    hdus
        HDUs of the file.
    path
        File, for messages.
    base
        Prefix of the tables' names; None for none.
    """

    def __init__(self, hdus: astropy.io.fits.HDUList, path: Path, base: str | None = None) -> None:
        self._hdus, self._path, self._base = hdus, path, base

    def get_full_name(self, name: str) -> str:
        """Full name of an extension.

        Parameters
        ----------
        name
            Name of a part.

        Returns
        -------
        name
            Name with the prefix of this reader.
        """
        return name if self._base is None else f"{self._base}_{name}"

    @contextlib.contextmanager
    def nested(self, name: str) -> Iterator[TrustedReader]:
        """Reader for the parts of a part.

        Parameters
        ----------
        name
            Name of the part.

        Yields
        ------
        reader
            Reader of the same file, with this part as prefix.
        """
        yield TrustedReader(self._hdus, self._path, self.get_full_name(name))

    def read_struct(self, name: str) -> dict[str, object] | None:
        """Settings of a part.

        Parameters
        ----------
        name
            Name of the part.

        Returns
        -------
        struct
            Name → value; None if there is no such part.

        Raises
        ------
        FileFormatError
            If Piff must not be given these settings.
        """
        hdu = self._table(name)
        if hdu is None:
            return None
        where = self._where(name)
        if len(hdu.data) != 1:
            raise FileFormatError(f"{where}: has {len(hdu.data)} rows of settings, not one.")
        struct = {column: _value(hdu.data[column][0]) for column in hdu.columns.names}
        for column, value in struct.items():
            if isinstance(value, str) and value.startswith("{"):
                struct[column] = literal(value, f"{where}, {column}")
        check_struct(struct, where)
        return struct

    def read_table(self, name: str, metadata: dict[str, object] | None = None) -> Array | None:
        """Table of numbers.

        Parameters
        ----------
        name
            Name of the table.
        metadata
            Dictionary that is filled with the cards of the table's header.

        Returns
        -------
        table
            Structured array; None if there is no such table, and always for the table of stars,
            which is not needed.
        """
        hdu = None if name == _STARS else self._table(name)
        if hdu is None:
            return None
        if metadata is not None:
            metadata.update({card.keyword: card.value for card in hdu.header.cards})
        columns = {column: _native(np.asarray(hdu.data[column])) for column in hdu.columns.names}
        table = np.zeros(
            len(hdu.data), [(column, v.dtype, v.shape[1:]) for column, v in columns.items()]
        )
        for column, values in columns.items():
            table[column] = values
        return table

    def read_wcs_map(
        self, name: str, logger: object
    ) -> tuple[dict[int, object] | None, object | None]:
        """WCS of each detector, and pointing of the telescope.

        Parameters
        ----------
        name
            Name of the table.
        logger
            Logger of Piff; not used.

        Returns
        -------
        wcs, pointing
            Detector's number → `galsim.BaseWCS`, and `galsim.CelestialCoord`; None for either that
            the file lacks.

        Raises
        ------
        FileFormatError
            If a pickle holds anything else.
        """
        hdu = self._table(name)
        if hdu is None:
            return None, None
        wcs = read_wcs(hdu, self._where(name))
        names = hdu.columns.names
        if "ra" not in names or "dec" not in names:
            return wcs, None
        galsim = importlib.import_module("galsim")
        ra, dec = (float(np.atleast_1d(hdu.data[column])[0]) for column in ("ra", "dec"))
        return wcs, galsim.CelestialCoord(ra * galsim.hours, dec * galsim.degrees)

    def read_bandpass(self, name: str) -> None:
        """Bandpass of a model, which Piff asks for from version 1.7 on.

        Parameters
        ----------
        name
            Name of the table.

        Returns
        -------
        bandpass
            None, since models that depend on the wavelength are not read.

        Raises
        ------
        FileFormatError
            If there is such a table.
        """
        if self._table(name) is not None:
            raise FileFormatError.of(
                self._path,
                "its PSF depends on the wavelength; only models of the position can be read.",
            )

    def _where(self, name: str) -> str:
        return f"{self._path}: {self.get_full_name(name)}"

    def _table(self, name: str) -> astropy.io.fits.BinTableHDU | None:
        full = self.get_full_name(name).lower()
        return next(
            (
                hdu
                for hdu in self._hdus[1:]
                if hdu.name.lower() == full and isinstance(hdu, astropy.io.fits.BinTableHDU)
            ),
            None,
        )


def read_wcs(hdu: astropy.io.fits.BinTableHDU, where: str) -> dict[int, object]:
    """WCS of each detector of a model of Piff.

    Parameters
    ----------
    hdu
        Table with the pickles, in base 64 and in several columns.
    where
        File and part, for messages.

    Returns
    -------
    wcs
        Detector's number → `galsim.BaseWCS`.

    Raises
    ------
    FileFormatError
        If a pickle names anything that is not on the lists, or holds no WCS.
    """
    galsim = importlib.import_module("galsim")
    found: dict[int, object] = {}
    parts = sorted(column for column in hdu.columns.names if column.startswith("wcs_str_"))
    for row, number in enumerate(np.asarray(hdu.data["chipnums"])):
        text = "".join(str(_value(hdu.data[part][row])) for part in parts)
        try:
            raw = base64.b64decode(text.encode("ascii", "replace"), validate=True)
        except binascii.Error as error:
            raise FileFormatError(
                f"{where}: the coordinates of detector {number} are damaged; copy or download it"
                " again."
            ) from error
        wcs = unpickled(raw, where)
        if not isinstance(wcs, galsim.BaseWCS):
            raise FileFormatError(
                f"{where}: the coordinates of detector {number} are a {type(wcs).__name__}, and no"
                " WCS of GalSim."
            )
        found[int(number)] = wcs
    return found


def _value(value: Any) -> Any:
    """Value of a table in the type that Piff expects."""
    if isinstance(value, bytes):
        return value.decode("latin1").rstrip("\0 ")
    if isinstance(value, np.str_):
        return str(value)
    if isinstance(value, np.ndarray):
        return _native(value)
    return value


def _native(values: Array) -> Array:
    """Array in the machine's byte order, with bytes as text."""
    if values.dtype.kind == "S":
        return np.char.decode(values, "latin1")
    return values.astype(values.dtype.newbyteorder("="))
