"""Tables as HDUs of the files that whitediff writes."""

from __future__ import annotations

import warnings
from typing import Any

import astropy.io.fits
import astropy.table
import astropy.utils.exceptions
import numpy as np

from .headers import escaped, unescaped
from .stamps import find_hdu

__all__ = ["read_table_hdu", "table_hdu"]


def table_hdu(table: astropy.table.Table, name: str) -> Any:
    """HDU that holds a table, its columns' units and descriptions.

    Parameters
    ----------
    table
        Columns of numbers, booleans and text.
    name
        Extension name.

    Returns
    -------
    hdu
        Binary table; what is not printable ASCII in a text is percent-encoded.
    """
    stored = table.copy()
    for column in stored.columns.values():
        if column.dtype.kind == "U":
            texts = np.array([escaped(text) for text in column] or [""])
            stored.replace_column(column.name, texts[: len(column)])
    hdu = astropy.io.fits.table_to_hdu(stored)
    hdu.name = name
    for i, column in enumerate(table.columns.values(), 1):
        if column.description:
            hdu.header.set(f"TCOMM{i}", column.description, after=f"TFORM{i}")
    return hdu


def read_table_hdu(hdus: astropy.io.fits.HDUList, name: str) -> astropy.table.Table | None:
    """Table from an HDU as `table_hdu` makes it.

    Parameters
    ----------
    hdus
        HDUs of a file.
    name
        Extension name.

    Returns
    -------
    table
        Its own copy; None where there is no table of that name.
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
        table[column.name].unit = column.unit
        table[column.name].description = hdu.header.get(f"TCOMM{i}")
    return table
