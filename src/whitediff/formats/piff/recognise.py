"""Is this a PSF model of Piff?"""

from __future__ import annotations

import astropy.io.fits
import numpy as np

__all__ = ["fitted_range", "recognise"]


def recognise(hdus: astropy.io.fits.HDUList) -> str | None:
    """Kind of model that a file of Piff holds.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    detail
        Such as ``Simple``; None if it is none.
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
        From and to, counted from 0; None where the file does not say.
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
