"""Is this a difference of HOTPANTS, or its kernel?"""

from __future__ import annotations

import astropy.io.fits

from .command import Command

__all__ = ["kernel_table", "layer", "missing_layers", "recognise"]

_TABLE = "Convolution Kernel Information"
_LAYERS = {
    "HOTPanTS Noise Image": "noise image",
    "Hotpants output Mask Image": "mask image",
    "Convolved Image": "convolved image",
    "Noise-scaled (sigma) Difference Image": "noise-scaled difference",
}


def recognise(hdus: astropy.io.fits.HDUList) -> str | None:
    """Kind of a HOTPANTS file.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    kind
        ``difference``, ``kernel`` (of ``-oki``), ``noise image``, ``mask image``,
        ``convolved image`` or ``noise-scaled difference``; None for other files.
    """
    header = hdus[0].header
    software = header.get("SOFTNAME")
    if isinstance(software, str) and software.strip().lower() == "hotpants":
        return "difference"
    if header.get("NAXIS", 0) and {"DIFFCMD", "PHOTNORM", "MASKVAL"} <= set(header):
        return "difference"
    if not header.get("NAXIS", 0) and kernel_table(hdus) is not None:
        return "kernel"
    return layer(hdus[0])


def layer(hdu: astropy.io.fits.hdu.base._BaseHDU) -> str | None:
    """Name of HOTPANTS' image in an HDU.

    Parameters
    ----------
    hdu
        HDU.

    Returns
    -------
    name
        Name, as in `recognise`; None for other images.
    """
    title = hdu.header.get("OBJECT")
    return _LAYERS.get(title.strip()) if isinstance(title, str) else None


def missing_layers(hdus: astropy.io.fits.HDUList) -> list[str]:
    """Layers that a difference's command asked for, but its file lacks.

    Parameters
    ----------
    hdus
        HDUs of a difference.

    Returns
    -------
    names
        ``noise`` and ``mask``, if they are missing.
    """
    command = Command.parse(str(hdus[0].header.get("DIFFCMD", "")))
    found = {layer(hdu) for hdu in hdus[1:]}
    return [
        name
        for name, option in (("noise", "nim"), ("mask", "ndm"))
        if not command.options.keys().isdisjoint({option, "allm"}) and f"{name} image" not in found
    ]


def kernel_table(hdus: astropy.io.fits.HDUList) -> astropy.io.fits.BinTableHDU | None:
    """Table with the solutions of all regions, the last HDU.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    table
        Table; None if there is none.
    """
    last = hdus[-1]
    if not isinstance(last, astropy.io.fits.BinTableHDU):
        return None
    titles = (last.header.get("EXTNAME"), last.header.get("OBJECT"))
    named = any(isinstance(title, str) and title.strip() == _TABLE for title in titles)
    return last if named or {"NGAUSS", "FWKERN", "CKORDER"} <= set(last.header) else None
