"""Manifests: tables of the pairs to subtract, in CSV, ECSV or Parquet."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import ArgumentError, FileFormatError, WhitediffError, one_line
from ..exposures.zero_points import check_zero_point
from ..formats.files import split_extension
from ..formats.limits import check_table
from ..options import Declaration
from ..reading import reading_options
from ..runs.options import PRODUCTS, SETTLED_OPTIONS

__all__ = [
    "Item",
    "kind_and_file",
    "located",
    "make_items",
    "read_rows",
]

_OWN_COLUMNS = ("science", "template", "name", "products")
_KINDS = ("variance", "sigma", "weight")
_SIDES = ("science", "template")
_MOST_LIKE = 0.8


@dataclasses.dataclass(frozen=True)
class Item:
    """One pair of a batch.

    Attributes
    ----------
    name
        Unique name; with ``/`` if products go to subdirectories.
    science, template
        Absolute names of files, possibly with an extension in brackets.
    outputs
        Kind of product → absolute name of the file to write.
    options
        Further options of ``whitediff subtract``: name → value.
    files
        Names of the options whose values are files.
    extra
        Columns of the manifest that are no options; they go into the results.
    """

    name: str
    science: str
    template: str
    outputs: dict[str, str]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: tuple[str, ...] = ()
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a table as text.

    Parameters
    ----------
    path
        ``.csv`` (UTF-8; lines that begin with ``#`` are left out), ``.ecsv``, ``.parquet`` or
        ``.parq``.

    Returns
    -------
    rows
        Column → text, empty for a missing value.

    Raises
    ------
    FileFormatError
        If the file does not exist, is of another kind, cannot be read, or has no rows.
    """
    if not path.exists():
        raise FileFormatError.of(path, "no such file; a manifest is a table with one pair a row.")
    readers: dict[str, Callable[[Path], Iterable[Mapping[str, Any]]]] = {
        ".csv": _csv_rows,
        ".ecsv": _ecsv_rows,
        ".parquet": _parquet_rows,
        ".parq": _parquet_rows,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise FileFormatError.of(
            path, "a manifest's name must end in .csv, .ecsv or .parquet, which says what it is."
        )
    try:
        check_table(path)
        rows = [_texts(row) for row in reader(path)]
    except WhitediffError:
        raise
    except UnicodeError as error:
        raise FileFormatError.of(path, "is not in UTF-8; save it in that encoding.") from error
    except Exception as error:
        raise FileFormatError.of(
            path, f"cannot be read as {path.suffix[1:].upper()} ({one_line(error)})."
        ) from error
    rows = [row for row in rows if any(row.values())]
    if not rows:
        raise FileFormatError.of(path, "has no rows; a manifest has one pair a row.")
    return rows


def _csv_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        lines = (line for line in stream if not line.lstrip().startswith("#"))
        rows = csv.DictReader(lines, skipinitialspace=True, strict=True)
        for number, row in enumerate(rows, 1):
            if None in row.values() or any(name is None for name in row):
                raise FileFormatError.of(
                    path,
                    f"row {number} has not as many cells as the header; is a comma missing,"
                    " or a cell with one not in quotes?",
                )
            yield {name.strip(): value for name, value in row.items()}


def _ecsv_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    from astropy.table import Table

    table = Table.read(path, format="ascii.ecsv")
    return ({name: row[name] for name in table.colnames} for row in table)


def _parquet_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    for row in rows:
        # astropy writes the mask of a column as a further column NAME.mask.
        for mask in [name for name in row if name.endswith(".mask")]:
            if row.pop(mask):
                row[mask.removesuffix(".mask")] = None
    return rows


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value) for name, value in row.items()}


def _text(value: Any) -> str:
    """Value of a cell as a user would type it; empty for a missing value."""
    if value is None or value is np.ma.masked:
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        number = float(value)
        # Many tables store columns of integers with gaps as floats.
        return "" if math.isnan(number) else str(int(number) if number.is_integer() else number)
    return str(value).strip()


def make_items(
    rows: Sequence[Mapping[str, str]],
    path: Path,
    output: Path,
    *,
    products: Sequence[str] = ("difference",),
    types: Mapping[str, Declaration] | None = None,
    options: Mapping[str, object] | None = None,
    refused: Mapping[str, str] | None = None,
) -> list[Item]:
    """Make the items of a batch from the rows of a manifest.

    Parameters
    ----------
    rows
        Result of `read_rows`.
    path
        The manifest: relative paths in it start from its directory.
    output
        Directory for the products.
    products
        Kinds of products from `PRODUCTS`, for rows without their own in a column ``products``.
    types
        Column → declaration of the option that it gives.
    options
        Values of options that a row does not give; names of files in them are absolute.
    refused
        Column that would have no effect → remedy for the message.

    Returns
    -------
    items
        One for each row.

    Raises
    ------
    ArgumentError
        If a column is missing, refused or a misspelt option, a value cannot be understood, two
        rows would write the same file, a row would write a file that a row reads, or a link
        would lead out of the output directory.
    """
    types = types or {}
    names = {name.replace("-", "_"): name for row in rows for name in row}
    _check_columns(path, rows, names, types)
    for name, remedy in (refused or {}).items():
        if name in names:
            raise ArgumentError.of(
                path, f"the column {names[name]!r} has no effect in a batch; {remedy}."
            )
    base = path.absolute().parent
    _check_numbers(f"{path}, the options for all rows", options or {})
    items = [
        _make_item(f"{path}, row {number}", row, base, output, products, types, dict(options or {}))
        for number, row in enumerate(rows, 1)
    ]
    _check_unique(path, items)
    _check_inside(path, items, output)
    _check_apart(path, items)
    return items


def _check_columns(
    path: Path,
    rows: Sequence[Mapping[str, str]],
    names: Mapping[str, str],
    types: Mapping[str, Declaration],
) -> None:
    missing = [name for name in ("science", "template") if name not in names]
    if missing:
        raise ArgumentError.of(
            path,
            f"has no column {' and no column '.join(missing)} (it has"
            f" {', '.join(names.values())}); a manifest needs science and template.",
        )
    for number, row in enumerate(rows, 1):
        for name in ("science", "template"):
            if not row.get(name):
                raise ArgumentError(f"{path}, row {number}: has no {name}; fill in the file.")
    known = [*_OWN_COLUMNS, *types]
    for name, spelling in names.items():
        like = difflib.get_close_matches(name, known, n=1, cutoff=_MOST_LIKE)
        if name not in known and like:
            raise ArgumentError.of(
                path, f"the column {spelling!r} is no option; is {like[0]!r} meant? Rename it."
            )


def _make_item(
    where: str,
    row: Mapping[str, str],
    base: Path,
    output: Path,
    products: Sequence[str],
    types: Mapping[str, Declaration],
    options: dict[str, Any],
) -> Item:
    cells: dict[str, str] = {name.replace("-", "_"): text for name, text in row.items() if text}
    science, template = (located(cells.pop(name), base) for name in ("science", "template"))
    name = _name(where, cells.pop("name", "") or _default_name(science))
    chosen = cells.pop("products", "")
    kinds = list(products) if not chosen else chosen.replace(",", " ").split()
    for kind in kinds:
        if kind not in PRODUCTS:
            raise ArgumentError(
                f"{where}: {kind!r} is no product; products are {', '.join(PRODUCTS)}."
            )
    given = [key for key in cells if key in types]
    for key in given:
        options[key] = _converted(where, key, cells.pop(key), types[key], base)
    if "align_method" in given and not (options.get("align") or options.get("register")):
        raise ArgumentError(
            f"{where}: align_method has no effect without align; set that to true, or leave it out."
        )
    if options.get("kernel"):
        vain = [key for key in given if key in SETTLED_OPTIONS]
        vain = [key for key in vain if options[key] is not False]
        if vain:
            raise ArgumentError(
                f"{where}: {', '.join(vain)} has no effect with kernel, which takes all of this"
                " from the earlier output; leave one of them out."
            )
    _check_numbers(where, options)
    return Item(
        name=name,
        science=science,
        template=template,
        outputs={
            kind: str(output.absolute() / f"{name}.{kind}.fits") for kind in dict.fromkeys(kinds)
        },
        options=options,
        files=tuple(name for name, each in types.items() if each.is_file and options.get(name)),
        extra=cells,
    )


def _check_numbers(where: str, options: Mapping[str, Any]) -> None:
    """Refuse numbers out of their range before any pair is begun."""
    try:
        reading_options(options, **dict.fromkeys(_SIDES, where))
    except ArgumentError as error:
        # Authors of a manifest know columns, not options of the command line.
        columns = re.sub("--[a-z-]+", lambda m: m[0][2:].replace("-", "_"), str(error))
        raise ArgumentError(columns) from error
    try:
        check_zero_point(options.get("zero_point"))
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {error}") from error


def _converted(where: str, name: str, text: str, kind: Declaration, base: Path) -> Any:
    texts = [part.strip() for part in text.split(";")] if kind.several else [text]
    try:
        values = [kind.read(part) for part in texts]
    except ValueError as error:
        raise ArgumentError(f"{where}: {name} {text!r}: {one_line(error)}.") from error
    if kind.is_file:
        values = [each if isinstance(each, float) else located(str(each), base) for each in values]
    return tuple(values) if kind.several else values[0]


def located(text: str, base: Path) -> str:
    """Absolute name of a file.

    Parameters
    ----------
    text
        Name of a file, ``KIND:FILE``, or an address.
    base
        Directory from which relative names start.

    Returns
    -------
    name
        Absolute name, with its KIND; an address stays as it is.
    """
    if "://" in text:
        return text
    kind, file = kind_and_file(text)
    path = os.path.normpath(base / os.path.expanduser(file))
    return f"{kind}:{path}" if kind else path


def kind_and_file(text: str) -> tuple[str, str]:
    """Parts of ``KIND:FILE``, the name of a file with a variance.

    Parameters
    ----------
    text
        KIND is ``variance``, ``sigma`` or ``weight``; any other colon belongs to the file, whose
        name may contain a time.

    Returns
    -------
    kind, file
        The kind is empty if none is given.
    """
    kind, colon, file = text.partition(":")
    return (kind, file) if colon and kind in _KINDS else ("", text)


def _default_name(science: str) -> str:
    path, extension = split_extension(science.rpartition("://")[2])
    name = path.name
    for suffix in (".gz", ".fz", ".bz2", ".xz", ".fits", ".fit", ".fts"):
        name = name.removesuffix(suffix)
    if extension is None:
        return name
    parts = extension if isinstance(extension, tuple) else (extension,)
    return "-".join([name, *map(str, parts)])


def _name(where: str, text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.name or any(c < " " for c in text):
        raise ArgumentError(
            f"{where}: the name {text!r} must be a file's name without suffix, inside the output"
            " directory."
        )
    return str(path)


def _check_unique(path: Path, items: Sequence[Item]) -> None:
    first: dict[str, int] = {}
    for number, item in enumerate(items, 1):
        # Some file systems ignore case, and the journal knows items by name.
        other = first.setdefault(item.name.casefold(), number)
        if other != number:
            raise ArgumentError.of(
                path,
                f"rows {other} and {number} would both write {item.name!r}; give each a"
                " different name in a column 'name'.",
            )


def _check_inside(path: Path, items: Sequence[Item], output: Path) -> None:
    """Refuse products that links would put outside of the output directory."""
    home = Path(os.path.realpath(output))

    @functools.cache
    def real(directory: str) -> Path:
        return Path(os.path.realpath(directory))

    for number, item in enumerate(items, 1):
        for file in item.outputs.values():
            directory, name = os.path.split(file)
            place = real(directory) / name
            if place.is_symlink():
                place = Path(os.path.realpath(place))
            if not place.is_relative_to(home):
                raise ArgumentError(
                    f"{path}, row {number}: {file} would lie in {place.parent}, where a link leads"
                    " out of the output directory; take the link away, or choose another name."
                )


def _check_apart(path: Path, items: Sequence[Item]) -> None:
    """Refuse products that would replace an input; a failure would even remove it."""

    @functools.cache
    def real(directory: str) -> str:
        return os.path.realpath(directory)

    def place(file: str) -> tuple[str, str]:
        directory, name = os.path.split(file)
        return real(directory), name

    read: dict[tuple[str, str], int] = {}
    for number, item in enumerate(items, 1):
        files = [item.science, item.template]
        for name in item.files:
            values = item.options[name]
            several = values if isinstance(values, tuple | list) else (values,)
            files += [kind_and_file(value)[1] for value in several if isinstance(value, str)]
        for file in files:
            if "://" not in file:
                read.setdefault(place(str(split_extension(file)[0])), number)
    for number, item in enumerate(items, 1):
        for output in item.outputs.values():
            other = read.get(place(output))
            if other is not None:
                raise ArgumentError(
                    f"{path}, row {number}: would write {output}, which row {other} reads; name"
                    " another output directory, or another name."
                )
