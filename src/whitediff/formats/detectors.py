"""Files with an image for each of several detectors."""

from __future__ import annotations

from pathlib import Path

from ..errors import FileFormatError
from .files import opened, split_extension
from .plain import image_names
from .registry import format_of, identify

__all__ = ["detectors", "kernel_of_detector", "of_detector"]


def detectors(path: str | Path) -> list[str]:
    """Images of a file, one for each detector.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    names
        Names as they stand in brackets, such as ``S2`` or ``SCI,3``.

    Raises
    ------
    FileFormatError
        If the file has no such images.
    """
    file, _ = split_extension(path)
    with opened(file) as hdus:
        identity = identify(hdus)
        one = identity is not None and format_of(identity).holds_one_exposure
        names = [] if one else image_names(hdus)
    if not names:
        raise FileFormatError.of(
            file, "has no extensions with images of several detectors; leave out --hdu."
        )
    return names


def of_detector(path: str, name: str) -> str:
    """Name of a file's image of one detector.

    Parameters
    ----------
    path
        File, perhaps after ``KIND:``; a path that already names an extension stays as it is.
    name
        Detector, as in `detectors`.

    Returns
    -------
    path
        Path with the extension in brackets.

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
            raise FileFormatError.of(file, f"has no image of the detector {name}; it has {known}.")
    return f"{kind}{text}[{name}]"


def kernel_of_detector(path: str, name: str) -> str:
    """Name of a file's kernel or PSF for one detector.

    Parameters
    ----------
    path
        File.
    name
        Detector, as in `detectors`.

    Returns
    -------
    path
        Path with the extension in brackets; unchanged if one kernel or PSF serves all detectors,
        or the file itself says which detector each is for.

    Raises
    ------
    FileFormatError
        If the file has an image for each detector, but none for this one.
    """
    with opened(split_extension(path)[0]) as hdus:
        identity = identify(hdus)
        several = len([hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS", 0)]) > 1
        versions = {(hdu.name, hdu.ver) for hdu in hdus}
    if identity is None or not format_of(identity).says_little or not several:
        return path
    if identity.kind == "image":
        return of_detector(path, name)
    # KERNEL,2 belongs to SCI,2.
    stamp, version = identity.kind.upper(), name.partition(",")[2].strip()
    own = version.isdigit() and (stamp, int(version)) in versions and (stamp, 2) in versions
    return f"{path}[{stamp},{version}]" if own and split_extension(path)[1] is None else path
