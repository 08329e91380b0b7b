"""PSF of an image from its stars: photutils' ePSF, and how it varies over the frame."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
from astropy.stats import sigma_clipped_stats
from astropy.utils.exceptions import AstropyUserWarning

from ..errors import ArgumentError, DataError, one_line
from ..polynomials import chebyshev_products
from ..threads import single_threaded_algebra

__all__ = ["measure_psf"]

type Array = npt.NDArray[Any]

_FEWEST = 3
_MOST = 250
_STARS_PER_TERM = 8
_USABLE_FRACTION = 0.8
_OVERSAMPLING = 2
_CENTERING_BOX = 13
_CLIP = 4.0
_PASSES = 3


@single_threaded_algebra()
def measure_psf(
    image: Array,
    variance: Array,
    bad: Array,
    x: Array,
    y: Array,
    *,
    size: int,
    order: int,
) -> tuple[Array, int]:
    """Measure the PSF of an image from its stars.

    Parameters
    ----------
    image, variance
        ``(ny, nx)``; the background may be anything smooth.
    bad
        ``(ny, nx)`` boolean: pixels not to use.
    x, y
        ``(n,)`` 0-based positions of isolated, unsaturated stars, good to a pixel.
    size
        Odd side of the PSF images.
    order
        Largest total order of the variation; less where stars are few.

    Returns
    -------
    coefficients
        ``(n_terms, size, size)`` images for ``whitediff.polynomials.chebyshev_terms(order)``
        of 2(x + 0.5)/nx - 1 and the like in y, 0 for terms that the stars are too few for.
        The sum of the first is 1, that of the others 0: unit sum everywhere.
    n_stars
        Number of stars used.

    Raises
    ------
    ArgumentError
        If the side is even.
    DataError
        If fewer than 3 stars can be used.

    Notes
    -----
    `photutils.psf.EPSFBuilder` (Anderson & King 2000) measures the mean PSF, and the stars'
    centres and fluxes.  It neither weights pixels nor varies with position: what it leaves of
    the stars is fitted, pixel by pixel and weighted by the inverse variance, with the
    polynomials.  Coefficients are shrunk ring by ring to what exceeds their noise.
    """
    if size % 2 == 0:
        raise ArgumentError(f"The side of a PSF image must be odd; got {size}.")
    stars = _cut(image, variance, bad, x, y, size)
    if len(stars) < _FEWEST:
        raise DataError(f"Only {len(stars)} stars can be used; a PSF needs {_FEWEST}.")
    mean, fitted = _mean_psf(stars, size)
    if len(fitted) < _FEWEST:
        raise DataError(f"Only {len(fitted)} stars could be fitted; a PSF needs {_FEWEST}.")
    known = order
    while known and len(fitted) < _STARS_PER_TERM * (known + 1) * (known + 2) // 2:
        known -= 1
    coefficients = np.zeros(((order + 1) * (order + 2) // 2, size, size))
    varying = _vary(mean, fitted, image.shape, known)
    coefficients[: len(varying)] = varying
    return coefficients, len(fitted)


def _cut(
    image: Array, variance: Array, bad: Array, x: Array, y: Array, size: int
) -> list[dict[str, Any]]:
    """Stamps less their background, the most significant stars."""
    half = size // 2
    ny, nx = image.shape
    usable = ~bad & np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    offset = np.arange(-size, size + 1)
    ring = np.maximum(abs(offset)[:, None], abs(offset)[None, :]) > half
    core = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1]) <= max(2, size / 8)
    stars: list[dict[str, Any]] = []
    for x_star, y_star in zip(x, y, strict=True):
        i, j = int(np.floor(x_star + 0.5)), int(np.floor(y_star + 0.5))
        if not (half <= i < nx - half and half <= j < ny - half):
            continue
        box = np.s_[j - half : j + half + 1, i - half : i + half + 1]
        good = usable[box]
        if good.mean() < _USABLE_FRACTION or not good[core].all():
            continue
        rows, columns = offset + j, offset + i
        rows, columns = rows.clip(0, ny - 1), columns.clip(0, nx - 1)
        around = np.ix_(rows, columns)
        sky = image[around][ring & usable[around]]
        level = float(sigma_clipped_stats(sky, sigma=2.5)[1]) if len(sky) > size else 0.0
        data = np.where(good, image[box] - level, 0.0).astype(np.float64)
        weight = np.where(good, 1 / np.where(good, variance[box], 1.0), 0.0)
        flux = float(data[core].sum())
        noise = float(np.sqrt((1 / weight[core]).sum()))
        if flux > 0:
            stars.append(
                {"data": data, "weight": weight, "i": i, "j": j, "rank": flux / noise,
                 "dx": float(x_star) - i, "dy": float(y_star) - j}
            )  # fmt: skip
    stars.sort(key=lambda star: -star["rank"])
    return stars[:_MOST]


def _mean_psf(stars: list[dict[str, Any]], size: int) -> tuple[Array, list[dict[str, Any]]]:
    """Mean PSF, and what it leaves of the stars in units of their flux, centred."""
    from photutils.psf import EPSFBuilder, EPSFStar, EPSFStars

    half = size // 2
    cutouts = [
        EPSFStar(
            star["data"],
            weights=np.sqrt(star["weight"]),
            cutout_center=(half + star["dx"], half + star["dy"]),
            id_label=k,
        )
        for k, star in enumerate(stars)
    ]
    builder = EPSFBuilder(
        oversampling=_OVERSAMPLING,
        recentering_boxsize=_CENTERING_BOX,
        center_accuracy=5e-3,
        maxiters=8,
        progress_bar=False,
    )
    with warnings.catch_warnings():
        # Stars that could not be fitted are left out below.
        warnings.simplefilter("ignore", AstropyUserWarning)
        try:
            result = builder(EPSFStars(cutouts))
        except ValueError as error:
            raise DataError(
                f"None of {len(stars)} stars could be fitted ({one_line(error)}); give a PSF."
            ) from error
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    mean = np.asarray(result.epsf.evaluate(columns, rows, 1.0, 0.0, 0.0))
    total = float(mean.sum())
    fitted = []
    for cutout in result.fitted_stars.all_good_stars:
        star = stars[cutout.id_label]
        dx, dy = (float(c) - half for c in cutout.cutout_center)
        if max(abs(dx - star["dx"]), abs(dy - star["dy"])) > 1:
            continue
        model = np.asarray(result.epsf.evaluate(columns, rows, 1.0, dx, dy))
        flux = float(
            (star["weight"] * model * star["data"]).sum() / (star["weight"] * model**2).sum()
        )
        if not flux > 0:
            continue
        left = np.where(star["weight"] > 0, star["data"] / flux - model, 0.0)
        near_bad = scipy.ndimage.binary_dilation(star["weight"] == 0, np.ones((3, 3)))
        fitted.append(
            {
                "left": scipy.ndimage.shift(left, (-dy, -dx), order=3, mode="nearest") / total,
                "weight": np.where(near_bad, 0.0, star["weight"] * (flux * total) ** 2),
                "x": star["i"] + dx,
                "y": star["j"] + dy,
            }
        )
    return mean / total, fitted


def _vary(mean: Array, fitted: list[dict[str, Any]], shape: tuple[int, ...], order: int) -> Array:
    """Polynomial, of unit sum everywhere."""
    ny, nx = shape
    size = mean.shape[0]
    left = np.stack([star["left"].ravel() for star in fitted])
    weight = np.stack([star["weight"].ravel() for star in fitted])
    # A bright star is no better than the model that it is compared with.
    floor = 0.02 * mean.ravel()
    weight = np.where(weight > 0, 1 / (1 / np.where(weight > 0, weight, 1) + floor**2), 0.0)
    column = np.array([2 * (star["x"] + 0.5) / nx - 1 for star in fitted])
    row = np.array([2 * (star["y"] + 0.5) / ny - 1 for star in fitted])
    terms = chebyshev_products(order, column, row)
    ridge = 1e-9 * float(weight.sum(0).max()) * np.eye(terms.shape[1])
    coefficients = np.zeros((terms.shape[1], size * size))
    errors = np.zeros_like(coefficients)
    used = weight
    for _ in range(_PASSES):
        normal = np.einsum("sk,sp,sl->pkl", terms, used, terms) + ridge
        right = np.einsum("sk,sp->pk", terms, used * left)
        coefficients = np.linalg.solve(normal, right[..., None])[..., 0].T
        errors = np.diagonal(np.linalg.inv(normal), axis1=1, axis2=2).T
        deviation = (left - terms @ coefficients) * np.sqrt(weight)
        used = np.where(abs(deviation) > _CLIP, 0.0, weight)
    coefficients[0] += mean.ravel()

    half = size // 2
    radius = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1]).ravel()
    ring = np.floor(radius + 0.5).astype(int)
    ring = np.minimum(ring, half)
    count = np.bincount(ring)
    for k, (values, variances) in enumerate(zip(coefficients, errors, strict=True)):
        level = np.zeros(size * size)
        if k == 0:
            level = (np.bincount(ring, values) / count)[ring]
        power = np.bincount(ring, (values - level) ** 2) / count
        noise = np.bincount(ring, variances) / count
        keep = np.clip(1 - noise / np.where(power > 0, power, np.inf), 0, 1)
        coefficients[k] = level + (values - level) * keep[ring]
    coefficients /= coefficients[0].sum()
    coefficients[1:] -= coefficients[1:].sum(1)[:, None] * coefficients[0]
    return coefficients.reshape(-1, size, size)
