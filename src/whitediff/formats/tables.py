"""Tables as HDUs of whitediff's files."""

from __future__ import annotations

import warnings

import astropy.io.fits
import astropy.table
import astropy.units
import astropy.utils.exceptions
import numpy as np

from .headers import escaped, unescaped
from .stamps import find_hdu

__all__ = ["known_unit", "read_table_hdu", "table_hdu", "unit_text"]


def table_hdu(table: astropy.table.Table, name: str) -> astropy.io.fits.BinTableHDU:
    """HDU that holds a table, with the units and descriptions of its columns.

    Parameters
    ----------
    table
        Columns of numbers, booleans and text.
    name
        Extension name.

    Returns
    -------
    hdu
        Binary table; characters of a text that are not printable ASCII are percent-encoded.
    """
    stored = table.copy()
    for column in stored.columns.values():
        if column.dtype.kind == "U":
            texts = np.array([escaped(text) for text in column] or [""])
            stored.replace_column(column.name, texts[: len(column)])
    units = [unit_text(column.unit) for column in stored.columns.values()]
    for column in stored.columns.values():
        column.unit = None
    hdu = astropy.io.fits.table_to_hdu(stored)
    hdu.name = name
    for i, unit in enumerate(units):
        if unit:
            hdu.columns[i].unit = unit
    for i, column in enumerate(table.columns.values(), 1):
        if column.description:
            hdu.header.set(f"TCOMM{i}", column.description, after=f"TFORM{i}")
    return hdu


def unit_text(unit: astropy.units.UnitBase | None) -> str:
    """Text of a unit in a FITS header or table.

    Parameters
    ----------
    unit
        Unit of an image or column.

    Returns
    -------
    text
        In the notation of the FITS standard, or in astropy's if the standard lacks the unit, such
        as the electron.  Empty if there is no unit.
    """
    if unit is None:
        return ""
    try:
        return str(unit.to_string("fits"))
    except ValueError:
        return str(unit.to_string())


def known_unit(unit: astropy.units.UnitBase | None) -> astropy.units.UnitBase | None:
    """Unit of a column that was read, even if the FITS standard lacks it.

    Parameters
    ----------
    unit
        Unit as astropy reads it from FITS.

    Returns
    -------
    unit
        Unit that astropy knows by this text, if there is one.
    """
    if isinstance(unit, astropy.units.UnrecognizedUnit):
        return astropy.units.Unit(str(unit), parse_strict="silent")
    return unit


def read_table_hdu(hdus: astropy.io.fits.HDUList, name: str) -> astropy.table.Table | None:
    """Table from an HDU that `table_hdu` made.

    Parameters
    ----------
    hdus
        HDUs of a file.
    name
        Extension name.

    Returns
    -------
    table
        Copy of the table; None if there is no table of that name.
    """
    hdu = find_hdu(hdus, (name,))
    if hdu is None or not isinstance(hdu, astropy.io.fits.BinTableHDU):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", astropy.utils.exceptions.AstropyWarning)
        read = astropy.table.Table.read(hdu, format="fits", mask_invalid=False)
    table = astropy.table.Table()
    for i, column in enumerate(read.columns.values(), 1):
        if column.dtype.kind in "SU":
            texts = np.asarray(column).astype(str)
            table[column.name] = np.array([unescaped(text) for text in texts] or [""])[: len(texts)]
        else:
            values = np.asarray(column)
            table[column.name] = values.astype(values.dtype.newbyteorder("="))
        table[column.name].unit = known_unit(column.unit)
        table[column.name].description = hdu.header.get(f"TCOMM{i}")
    return table
