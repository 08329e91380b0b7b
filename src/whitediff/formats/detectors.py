"""Files with an image for each of several detectors."""

from __future__ import annotations

from pathlib import Path

from ..errors import FileFormatError
from .files import opened, split_extension
from .identify import identify
from .plain import image_names

__all__ = ["detectors", "of_detector"]


def detectors(path: str | Path) -> list[str]:
    """Images of a file, one for each detector.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    names
        As they are named in brackets, such as ``S2`` or ``SCI,3``.

    Raises
    ------
    FileFormatError
        If it has none.
    """
    file, _ = split_extension(path)
    with opened(file) as hdus:
        identity = identify(hdus)
        archive = identity is not None and identity.format in ("whitediff", "lsst.images")
        names = [] if archive else image_names(hdus)
    if not names:
        raise FileFormatError(
            f"{file}: has no extensions with images of several detectors; leave out --hdu."
        )
    return names


def of_detector(path: str, name: str) -> str:
    """Name of a file's image of one detector.

    Parameters
    ----------
    path
        File, perhaps after ``KIND:``; one that names an extension already stays as it is.
    name
        Detector, as of `detectors`.

    Returns
    -------
    path
        With the extension in brackets.

    Raises
    ------
    FileFormatError
        If the file has no such image.
    """
    kind, text = "", path
    for prefix in ("variance:", "sigma:", "weight:"):
        if path.startswith(prefix):
            kind, text = prefix, path.removeprefix(prefix)
    file, extension = split_extension(text)
    if extension is not None:
        return path
    _, extension = split_extension(f"file[{name}]")
    with opened(file) as hdus:
        if extension not in hdus and not (isinstance(extension, int) and extension < len(hdus)):
            known = ", ".join(image_names(hdus)) or "no extension with an image"
            raise FileFormatError(f"{file}: has no image of the detector {name}; it has {known}.")
    return f"{kind}{text}[{name}]"
