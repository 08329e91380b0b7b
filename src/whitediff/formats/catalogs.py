"""Catalogues as ECSV, CSV, FITS or Parquet files, by their names, and as DS9 regions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import astropy.io.fits
import astropy.units as u
import numpy as np
import numpy.typing as npt
from astropy.table import QTable, Table

from ..errors import FileFormatError, one_line
from ..outputs import replacing, staged
from ..paths import catalog_kind, regular
from .files import Extension, opened, split_extension
from .finished import finish
from .limits import check_table, current
from .tables import known_unit, unit_text

__all__ = ["read_catalog", "write_catalog", "write_regions"]

type Array = npt.NDArray[Any]

_NAMES = {"ecsv": "ECSV", "csv": "CSV", "parquet": "Parquet"}
_META = "CATMETA"
_COLORS = {"dipole": "magenta", "extended": "cyan", "artifact": "yellow"}


def write_catalog(table: Table, path: str | Path, overwrite: bool = False) -> None:
    """Write a catalogue; it appears complete or not at all.

    Parameters
    ----------
    table
        Catalogue; units, descriptions and metadata are written with it.
    path
        Output; its suffix (.ecsv, .csv, .fits or .parquet) determines the kind.
    overwrite
        Whether an existing file may be replaced.

    Raises
    ------
    OutputExistsError
        If the output exists and may not be replaced.
    FileFormatError
        If the catalogue cannot be written, or the suffix is unknown.

    Notes
    -----
    A FITS table has the descriptions in cards TCOMMn, and the metadata as JSON in CATMETA.
    A Parquet file has unit and description in each field's metadata, and the table's metadata as
    JSON in the schema's entry "meta".  CSV holds the numbers alone.
    """
    path = Path(path)
    writers = {"ecsv": _write_ecsv, "csv": _write_csv, "fits": _write_fits}
    write = (writers | {"parquet": _write_parquet})[catalog_kind(path)]
    with replacing(path, overwrite=overwrite) as temporary:
        write(table, temporary)
        if write is _write_fits:
            finish(temporary)


def read_catalog(path: str | Path) -> QTable:
    """Read a catalogue, or any table in a file of the same kinds.

    Parameters
    ----------
    path
        File, whose suffix (.ecsv, .csv, .fits or .parquet) determines the kind; ``file.fits[EXT]``
        names the extension of a FITS file with several tables.

    Returns
    -------
    table
        Table; columns with a unit are quantities of astropy.

    Raises
    ------
    FileFormatError
        If there is no such file, its kind is unknown, or it holds no table.
    """
    file, extension = split_extension(path)
    kind = catalog_kind(file)
    regular(staged(file))
    if kind == "fits":
        return _read_fits(file, extension)
    if extension is not None:
        raise FileFormatError.of(path, "only FITS files have extensions; name the file alone.")
    read: Callable[[Path], QTable] = _read_parquet if kind == "parquet" else _read_text
    try:
        check_table(staged(file))
        return read(staged(file))
    except FileFormatError:
        raise
    except Exception as error:
        # The readers raise errors of any kind for a damaged file.
        raise FileFormatError.of(
            file,
            f"cannot be read as {_NAMES[kind]}"
            f" ({one_line(error)}); is it complete and of this kind?",
        ) from error


def _write_ecsv(table: Table, path: Path) -> None:
    table.write(path, format="ascii.ecsv")


def _write_csv(table: Table, path: Path) -> None:
    plain = Table({name: _plain(table, name)[0] for name in table.colnames})
    plain.write(path, format="ascii.csv")


def _read_text(path: Path) -> QTable:
    return QTable.read(path, format=f"ascii.{catalog_kind(path)}")


def _plain(table: Table, name: str) -> tuple[Array, str, str]:
    """Values, unit and description of a column."""
    column = table[name]
    unit = getattr(column, "unit", None)
    values = np.asarray(getattr(column, "value", column))
    return values, unit_text(unit), column.info.description or ""


def _with_unit(values: Array, unit: str, description: str | None, table: QTable, name: str) -> None:
    table[name] = u.Quantity(values, u.Unit(unit), copy=False) if unit else values
    table[name].info.description = description or None


def _write_fits(table: Table, path: Path) -> None:
    plain = Table()
    units, descriptions = {}, {}
    for name in table.colnames:
        values, units[name], descriptions[name] = _plain(table, name)
        if values.dtype.kind == "U":
            # FITS has only ASCII; an empty column still needs a width.
            values = np.char.encode(values.astype(f"<U{max(1, values.dtype.itemsize // 4)}"))
        plain[name] = values
    hdu = astropy.io.fits.table_to_hdu(plain)
    hdu.name = "CATALOG"
    for i, name in enumerate(table.colnames, 1):
        if units[name]:
            hdu.columns[i - 1].unit = units[name]
        if descriptions[name]:
            hdu.header[f"TCOMM{i}"] = descriptions[name]
    hdu.header[_META] = (json.dumps(_serialisable(table.meta)), "")
    astropy.io.fits.HDUList([astropy.io.fits.PrimaryHDU(), hdu]).writeto(path)


def _read_fits(path: Path, extension: Extension) -> QTable:
    with opened(path) as hdus:
        if extension is not None:
            try:
                hdu = hdus[extension]
            except (KeyError, IndexError) as error:
                raise FileFormatError.of(path, f"has no extension {extension!r}.") from error
        else:
            hdu = next((h for h in hdus if isinstance(h, astropy.io.fits.BinTableHDU)), None)
        if hdu is None or not isinstance(
            hdu, astropy.io.fits.BinTableHDU | astropy.io.fits.TableHDU
        ):
            raise FileFormatError.of(path, "holds no table; is it an image?")
        header = hdu.header
        read = Table.read(hdu, mask_invalid=False)
        table = QTable()
        for i, name in enumerate(read.colnames, 1):
            values = np.asarray(read[name])
            if values.dtype.kind == "S":
                values = np.char.decode(values)
            values = values.astype(values.dtype.newbyteorder("="), copy=False)
            unit = known_unit(read[name].unit)
            table[name] = values if unit is None else u.Quantity(values, unit, copy=False)
            table[name].info.description = header.get(f"TCOMM{i}")
        table.meta.update(json.loads(header[_META]) if _META in header else {})
    return table


def _serialisable(meta: Mapping[str, object]) -> dict[str, Any]:
    """Metadata for JSON: NumPy's numbers as plain numbers, unknown types as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            return value.tolist()
        return value if isinstance(value, str | int | float | bool | None) else str(value)

    return {str(key): plain(value) for key, value in meta.items()}


def _write_parquet(table: Table, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    fields, arrays = [], []
    for name in table.colnames:
        values, unit, description = _plain(table, name)
        array = pyarrow.array(values.tolist() if values.dtype.kind == "U" else values)
        if values.dtype.kind == "U":
            array = array.cast(pyarrow.string())
        arrays.append(array)
        about = {"unit": unit, "description": description}
        fields.append(
            pyarrow.field(name, array.type, metadata={k: v for k, v in about.items() if v})
        )
    # Checksums cover only the pages; a copy of the column names reveals damage to the schema.
    meta = {"meta": json.dumps(_serialisable(table.meta)), "columns": json.dumps(table.colnames)}
    pyarrow.parquet.write_table(
        pyarrow.Table.from_arrays(arrays, schema=pyarrow.schema(fields, metadata=meta)),
        path,
        write_page_checksum=True,
    )


def _read_parquet(path: Path) -> QTable:
    import pyarrow.parquet

    read = pyarrow.parquet.read_table(path, page_checksum_verification=current().checksums)
    table = QTable()
    names = (read.schema.metadata or {}).get(b"columns")
    if names is not None and json.loads(names) != read.column_names:
        raise FileFormatError.of(
            path,
            f"damaged: its columns are {', '.join(read.column_names)}, and were written as"
            f" {', '.join(json.loads(names))}; copy or download it again.",
        )
    for field in read.schema:
        about = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
        values = read.column(field.name).to_numpy()
        if values.dtype.kind == "O":
            values = values.astype(str) if len(values) else np.zeros(0, "<U1")
        _with_unit(values, about.get("unit", ""), about.get("description"), table, field.name)
    stored = (read.schema.metadata or {}).get(b"meta")
    if stored is not None:
        table.meta.update(json.loads(stored))
    return table


def write_regions(
    table: Table, path: str | Path, overwrite: bool = False, *, radius: float | None = None
) -> None:
    """Write the sources of a catalogue as regions for DS9.

    Parameters
    ----------
    table
        Catalogue with ra and dec, or else x and y; meta's x0 and y0 are the image's first pixel.
    path
        Output.
    overwrite
        Whether an existing file may be replaced.
    radius
        Radius of the circles, pixels; None: the catalogue's aperture radius, or 5.

    Raises
    ------
    OutputExistsError
        If the output exists and may not be replaced.
    FileFormatError
        If the regions cannot be written.

    Notes
    -----
    Positive sources are green, negative ones red, dipoles magenta, extended ones cyan and
    artefacts yellow; the text is the number and, if known, the significance.
    """
    if radius is None:
        radius = float(table.meta.get("aperture_radius", 5.0))
    sky = "ra" in table.colnames

    def values(name: str) -> Array:
        return np.asarray(getattr(table[name], "value", table[name]))

    if sky:
        first, second = values("ra"), values("dec")
    else:
        first = values("x") - table.meta.get("x0", 0) + 1
        second = values("y") - table.meta.get("y0", 0) + 1
    names = values("id") if "id" in table.colnames else np.arange(1, len(table) + 1)
    strength = values("significance") if "significance" in table.colnames else None
    labels = values("classification") if "classification" in table.colnames else None
    lines = [
        "# Region file format: DS9 version 4.1",
        'global color=green width=1 font="helvetica 10 normal roman"',
        "icrs" if sky else "image",
    ]
    for i in range(len(table)):
        if not (np.isfinite(first[i]) and np.isfinite(second[i])):
            continue
        text, color = f"{names[i]}", "green"
        if strength is not None and np.isfinite(strength[i]):
            text += f" {strength[i]:+.1f}"
            color = "green" if strength[i] > 0 else "red"
        if labels is not None:
            color = _COLORS.get(str(labels[i]), color)
        place = f"{first[i]:.7f},{second[i]:.7f}" if sky else f"{first[i]:.3f},{second[i]:.3f}"
        size = f"{radius:g}i" if sky else f"{radius:g}"
        lines.append(f"circle({place},{size}) # color={color} text={{{text}}}")
    with replacing(Path(path), overwrite=overwrite) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
