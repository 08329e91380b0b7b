"""Names of files, and checks that are possible before a file is opened."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import FileFormatError
from .extras import is_installed

__all__ = [
    "catalog_kind",
    "check_catalog_path",
    "check_input",
    "check_suffix",
    "is_address",
    "regular",
    "split_name",
    "without_fsspec",
]

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")
_WITH_EXTENSION = re.compile(r"(?P<path>.+)\[(?P<extension>[^\[\]]+)\]")

_CATALOGS = {
    ".ecsv": "ecsv",
    ".csv": "csv",
    ".fits": "fits",
    ".fit": "fits",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_SUFFIXES = {
    "FITS file": (".fits", ".fit", ".fts"),
    "picture (PNG)": (".png",),
    "web page": (".html", ".htm"),
    "JSON file": (".json",),
    "file of regions": (".reg",),
}
_OTHER_SUFFIXES = (".csv", ".ecsv", ".jpg", ".jpeg", ".parquet", ".pdf", ".pq", ".svg", ".txt")


def is_address(text: str) -> bool:
    """Whether a name is an address such as ``https://…``, ``s3://…`` or ``gs://…``.

    Parameters
    ----------
    text
        Name of a file.

    Returns
    -------
    found
        True or False.
    """
    return _ADDRESS.match(text) is not None


def without_fsspec(address: str) -> FileFormatError:
    """Error about an address if the package that fetches files is missing.

    Parameters
    ----------
    address
        Address of a file.

    Returns
    -------
    error
        Error for the caller to raise.
    """
    return FileFormatError.of(
        address,
        "remote files are read with fsspec, which is not installed; install whitediff[remote].",
    )


def split_name(text: str) -> tuple[str, str | None]:
    """Split ``file.fits[EXT]`` into the file and the extension.

    Parameters
    ----------
    text
        Name or address, possibly with an extension in brackets.

    Returns
    -------
    file, extension
        The extension is None if none is named; the name of an existing file is not split.

    Examples
    --------
    >>> split_name("night1.fits[SCI,2]")
    ('night1.fits', 'SCI,2')
    """
    exists = not is_address(text) and os.path.exists(text)
    match = None if exists else _WITH_EXTENSION.fullmatch(text)
    return (text, None) if match is None else (match["path"], match["extension"])


def regular(path: Path) -> None:
    """Check that a path is a regular file, before it is opened.

    Parameters
    ----------
    path
        File.

    Raises
    ------
    FileFormatError
        If the file is missing, empty, a directory, a pipe or a device.
    """
    try:
        exists, is_file, is_dir = path.exists(), path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{str(path)!r}: is no name of a file.") from error
    if not exists:
        raise FileFormatError.of(path, "no such file.")
    if is_dir:
        raise FileFormatError.of(path, "is a directory, not a file.")
    if not is_file:
        raise FileFormatError.of(
            path, "is a pipe or a device, and no regular file; store what it gives in one."
        )
    # Files of the system that make their content while they are read have size 0, too.
    if path.stat().st_size == 0:
        raise FileFormatError.of(path, "is empty; copy or download it again.")


def check_input(name: str) -> None:
    """Refuse a file that cannot be read, before any work.

    Parameters
    ----------
    name
        ``FILE`` or ``FILE[EXT]``; for an address, only the package that fetches it is checked.

    Raises
    ------
    FileFormatError
        As from `regular`, or if it is an address and fsspec is missing.
    """
    file, _ = split_name(name)
    if not is_address(file):
        regular(Path(file))
    elif not is_installed("fsspec"):
        raise without_fsspec(file)


def check_suffix(path: Path, kind: str) -> None:
    """Refuse an output whose name ends in the suffix of another kind.

    Parameters
    ----------
    path
        Output.
    kind
        Kind of its content, a key of this module's table of suffixes.

    Raises
    ------
    FileFormatError
        If its name ends in the suffix of another kind.
    """
    own = _SUFFIXES[kind]
    others = {suffix for each in _SUFFIXES.values() for suffix in each} | set(_OTHER_SUFFIXES)
    if path.suffix.lower() in others - set(own):
        raise FileFormatError.of(
            path, f"is to be a {kind}, but its name ends in {path.suffix}; end it in {own[0]}."
        )


def catalog_kind(path: Path) -> str:
    """Kind of a catalogue, by its name.

    Parameters
    ----------
    path
        Catalogue.

    Returns
    -------
    kind
        ``ecsv``, ``fits``, ``parquet``, or ``csv``.

    Raises
    ------
    FileFormatError
        If its suffix is of no known kind, or the kind needs a package that is missing.
    """
    kind = _CATALOGS.get(path.suffix.lower())
    if kind is None:
        raise FileFormatError.of(
            path,
            f"the kind of a catalogue goes by its name, which must end in"
            f" {', '.join(list(_CATALOGS)[:-1])} or {list(_CATALOGS)[-1]}; this one ends in"
            f" {path.suffix or 'nothing'}.",
        )
    if kind == "parquet" and not is_installed("pyarrow"):
        raise FileFormatError.of(
            path,
            "Parquet needs the package pyarrow, which is not installed; run pip"
            " install 'whitediff[parquet]' or name the catalogue .ecsv or .fits.",
        )
    return kind


def check_catalog_path(path: str | Path) -> None:
    """Check that a catalogue of this name can be written, before any work is done.

    Parameters
    ----------
    path
        Catalogue.

    Raises
    ------
    FileFormatError
        As from `catalog_kind`.
    """
    catalog_kind(Path(path))
