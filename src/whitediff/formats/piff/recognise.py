"""Is this a PSF model of Piff?"""

from __future__ import annotations

import astropy.io.fits
import numpy as np

__all__ = ["facts", "fitted_range", "recognise"]


def recognise(hdus: astropy.io.fits.HDUList) -> str | None:
    """Kind of model in a file of Piff.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    detail
        Kind, such as ``Simple``; None if the file is not from Piff.
    """
    for hdu in hdus[1:]:
        if not isinstance(hdu, astropy.io.fits.BinTableHDU) or hdu.name.lower() != "psf":
            continue
        names = [str(name) for name in hdu.columns.names]
        if "piff_version" in names or "PIFF_VERSION" in hdu.header:
            return str(hdu.data["type"][0]) if "type" in names and len(hdu.data) else "unknown type"
    return None


def fitted_range(
    hdus: astropy.io.fits.HDUList,
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Range of pixel coordinates of the stars that a model was fitted to.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    x, y
        First and last coordinate, from 0; None if the file does not give them.
    """
    if recognise(hdus) is None:
        return None
    for hdu in hdus[1:]:
        if (
            hdu.name.lower() == "psf_stars"
            and {"x", "y"} <= set(hdu.columns.names)
            and len(hdu.data)
        ):
            x, y = np.asarray(hdu.data["x"]), np.asarray(hdu.data["y"])
            if (
                np.isfinite(x).all()
                and np.isfinite(y).all()
                and max(abs(x).max(), abs(y).max()) < 1e6
            ):
                return (
                    (float(x.min()) - 1, float(x.max()) - 1),
                    (float(y.min()) - 1, float(y.max()) - 1),
                )
    return None


def facts(hdus: astropy.io.fits.HDUList) -> dict[str, str]:
    """Description of a model from the tables of its file, without Piff.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    facts
        Label → text: parts of the model, detectors, and number of stars that it was fitted to.
    """
    found: dict[str, str] = {}
    for hdu in hdus[1:]:
        if not isinstance(hdu, astropy.io.fits.BinTableHDU):
            continue
        name, columns = hdu.name.lower(), [str(column) for column in hdu.columns.names]
        if name.endswith(("_model", "_interp")) and "type" in columns and len(hdu.data):
            settings = [
                f"{column} {hdu.data[column][0]}"
                for column in columns
                if column in ("size", "scale", "order") and np.ndim(hdu.data[column][0]) == 0
            ]
            what = "PSF" if name.endswith("_model") else "interpolation"
            found.setdefault(what, ", ".join([str(hdu.data["type"][0]), *settings]))
        elif name == "psf_wcs" and "chipnums" in columns:
            found["detectors"] = ", ".join(str(n) for n in np.asarray(hdu.data["chipnums"])[:20])
        elif name == "psf_stars":
            found["fitted to"] = f"{len(hdu.data)} stars"
    return found
