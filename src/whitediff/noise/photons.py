"""Electrons per unit of an image: headers may err, and photon noise tells."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics.planes import every_nth
from ..numerics.stats import clipped_sigma, median_deviation, robust_sigma

__all__ = [
    "Choice",
    "Counts",
    "PhotonScale",
    "Transfer",
    "chosen_scale",
    "counted_photons",
    "photon_transfer",
    "scatter_of",
    "why_contradicted",
]

type Array = npt.NDArray[Any]

_BLOCK, _STEP = 32, 16
_BAND = 2.8
"""Radians per pixel beyond which a PSF wider than some 3 pixels has no power left."""
_CHECK_BAND = 2.5
_MOST_BLOCKS = 3000
_LEAST_BLOCKS = 20
_LEAST_RISE = 0.5
"""Least rise of the noise, over its level without sources, from which a gain can be measured."""
_PEAK_SIGMA = 20.0
_LEAST_PEAKS, _MOST_PEAKS = 3, 40
_LEAST_SHARE = 0.76
"""Mean of a peak's four neighbours over its own height, as in a Gaussian of 3.1 pixels."""
_LEAST_BRIGHT = 8
_MOST_STEEPENING = 1.6
_ROUNDS, _CLIP = 8, 4.0
_FITTING = (0.8, 1.25)
"""Predicted over measured variance of the background: they agree within these limits."""
_LEAST_PHOTONS, _CLOSE = 0.5, 0.05
"""Share of the background's photons in the variance from which an agreement is no chance; below
it, relative difference within which a prediction must agree."""
_NEARER = 2.0
"""Errors by which another gain must be nearer to the measured one than the header's gain is."""
_FEWEST_COUNTED, _MANY_COUNTED = 0.4, 10.0
"""Photons per pixel below which a Gaussian noise model fails, and from which it holds."""
_COUNTED = (0.8, 1.25)
"""Mean over variance of photon counts; a detector's read noise would lead out of these limits."""
_COUNTING_BLOCK, _MOST_COUNTED, _ENOUGH_COUNTED, _ROUNDING = 16, 4000, 20_000, 1e-4
_PRECISE, _KNOWN = 0.15, 0.3
"""Relative errors below which a measured gain is used itself, and decides between others."""


@dataclasses.dataclass(frozen=True)
class PhotonScale:
    """A possible meaning of an image's unit.

    Attributes
    ----------
    gain
        Electrons per image unit; positive.
    read_noise
        Electrons per pixel, of all exposures in the pixel together; not negative.
    meaning
        Name of the unit, such as "counts".
    """

    gain: float
    read_noise: float
    meaning: str

    def variance(self, level: float) -> float:
        """Predicted variance of the background.

        Parameters
        ----------
        level
            Level of the background, image unit; a negative one has no photons.

        Returns
        -------
        variance
            Variance of a pixel, image_unit².
        """
        return max(level, 0.0) / self.gain + (self.read_noise / self.gain) ** 2

    def predicts(self, *, level: float, measured: float) -> bool:
        """Whether the predicted variance of the background agrees with the measured one.

        Parameters
        ----------
        level, measured
            Level and variance of the background, image unit and image_unit².

        Returns
        -------
        fits
            They agree within a quarter.
        """
        return _FITTING[0] < self.variance(level) / measured < _FITTING[1]


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Gain measured on the image itself.

    Attributes
    ----------
    gain
        Electrons per image unit.
    error
        Relative error of the gain.
    """

    gain: float
    error: float

    @property
    def is_known(self) -> bool:
        """Whether the gain is known well enough to tell units apart."""
        return self.error < _KNOWN


@dataclasses.dataclass(frozen=True)
class Choice:
    """Chosen meaning of an image's unit.

    Attributes
    ----------
    scale
        The chosen scale; None where no scale fits.
    models_background
        Whether the scale predicts the background's noise, too.
    is_expected
        Whether it is the header's scale.
    reason
        Reason for the choice, in words.
    """

    scale: PhotonScale | None
    models_background: bool
    is_expected: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class Counts:
    """Photons between the sources of an image that counts few of them.

    Attributes
    ----------
    mean
        Photons per pixel.
    unit
        Image units of a photon; 1 where pixels are whole numbers.
    """

    mean: float
    unit: float

    @property
    def problem(self) -> str:
        """Why such an image cannot be subtracted, with the remedy, to follow its name; or ""."""
        counts = f"counts {self.mean:.2g} photons per pixel between its sources"
        if self.mean < _FEWEST_COUNTED:
            side = math.ceil(math.sqrt(1 / self.mean))
            return (
                f"{counts}, whose noise is far from Gaussian below {_FEWEST_COUNTED:g}; add up"
                f" squares of {side} × {side} pixels (bin both images)"
            )
        if self.unit != 1:
            return (
                f"{counts}, each of {self.unit:.4g} image units; divide it by that, so that its"
                " pixels are whole numbers and the noise of so few can be told"
            )
        return ""


def scatter_of(
    values: Array, counts: Counts | None, *, step: float | None, errors: Array | None = None
) -> float:
    """Variance of source-free pixels, whether they hold many photons or few.

    Parameters
    ----------
    values
        ``(n,)`` pixels less their background.
    counts
        Result of `counted_photons`: quartiles say little about a few photons.
    step
        Step to whose multiples pixels were rounded before the background was subtracted.
    errors
        ``(n,)`` positive: divisors of the values; None for 1.

    Returns
    -------
    variance
        Variance from the inter-quartile range; for counts, the clipped variance.
    """
    steps: Array | float | None = step
    if errors is not None:
        values = values / errors
        steps = None if step is None else step / errors
    sigma = robust_sigma(values, step=steps) if counts is None else clipped_sigma(values)
    return sigma**2


def counted_photons(image: Array, usable: Array) -> Counts | None:
    """Photons per pixel between the sources of an image that counts few of them.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    usable
        ``(ny, nx)`` boolean.

    Returns
    -------
    counts
        None unless pixels are multiples of a unit (a constant sky may have been subtracted), a
        usual pixel has fewer than 10 units, and the variance is Poisson's within a quarter: read
        noise would add to it.
    """
    sample = every_nth(image, usable, _ENOUGH_COUNTED).astype(np.float64)
    if not sample.size or not (sample > 0).any():
        return None
    strips, known = (_strips(plane) for plane in (image, usable))
    # Where a usual pixel has few photons, some pixel has none: its value is the subtracted sky.
    lowest = min(float(sample.min()), float(strips.min(where=known, initial=0.0)))
    sample -= lowest
    unit = 1.0 if (sample == np.rint(sample)).all() else float(sample[sample > 0].min())
    if np.median(sample) > _MANY_COUNTED * unit:
        return None
    if not _are_multiples(sample, unit):
        return None
    numbers = np.where(known, strips - lowest, 0).astype(np.float64)
    if not _are_multiples(numbers, unit):
        return None
    numbers /= unit
    known, first, second = (plane.sum(axis=(1, 3)) for plane in (known, numbers, numbers**2))
    whole = known > _COUNTING_BLOCK**2 / 2
    if not whole.any():
        return None
    means = first[whole] / known[whole]
    variances = (second[whole] / known[whole] - means**2) * known[whole] / (known[whole] - 1)
    mean = float(np.median(means))
    if not (0 < mean < _MANY_COUNTED and _is_poissonian(mean, float(np.median(variances)))):
        return None
    return Counts(mean, unit)


def _strips(plane: Array) -> Array:
    """Blocks from evenly spread rows of blocks, enough to measure on: ``(n, side, m, side)``."""
    side = _COUNTING_BLOCK
    ny, nx = (n // side for n in plane.shape)
    step = max(1, ny * nx // _MOST_COUNTED)
    blocks: Array = plane[: ny * side, : nx * side].reshape(ny, side, nx, side)[::step]
    return blocks


def _are_multiples(values: Array, unit: float) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = values / unit
        off = np.abs(numbers - np.rint(numbers))
    # Overflows leave NaN, which fails the comparison.
    return bool((off <= _ROUNDING * np.maximum(numbers, 1)).all())


def _is_poissonian(mean: float, variance: float) -> bool:
    return _COUNTED[0] * variance < mean < _COUNTED[1] * variance


def photon_transfer(
    image: Array, background: Array, usable: Array, *, variance: float
) -> Transfer | None:
    """Gain of an image, from the rise of its noise with its level.

    Parameters
    ----------
    image
        ``(ny, nx)``, image unit.
    background
        ``(ny, nx)``, image unit.
    usable
        ``(ny, nx)`` boolean.
    variance
        Variance of the background's pixels, image_unit².

    Returns
    -------
    transfer
        None where the sources are too few, too faint or too sharp.

    Notes
    -----
    Pixels are taken in blocks of 32 under a Hann window w.  Outside the PSF's band, the power over
    Σ w² is the mean variance, weighted with w²; the level is weighted likewise.  Sharp sources
    show as a difference between two bands.  An offset of the level and a correlation of the noise
    have no effect.
    """
    if _is_sharp(image, background, usable, math.sqrt(variance)):
        return None
    levels, powers = _blocks(image, background, usable)
    if len(levels) < _LEAST_BLOCKS:
        return None
    found = [_slope(levels, power) for power in powers]
    if any(each is None for each in found):
        return None
    (rise, error), (other, other_error) = (each for each in found if each is not None)
    if not (rise > 0 and abs(other - rise) < 4 * math.hypot(error, other_error) + 0.1 * rise):
        return None
    return Transfer(1 / (rise * variance), error / rise)


def _is_sharp(image: Array, background: Array, usable: Array, sigma: float) -> bool:
    """Whether stars are so sharp that no band is free of them, or too few to judge by."""
    inner = image[1:-1, 1:-1]
    sides = [image[1:-1, :-2], image[1:-1, 2:], image[:-2, 1:-1], image[2:, 1:-1]]
    with np.errstate(invalid="ignore"):
        peaks = inner - background[1:-1, 1:-1] > _PEAK_SIGMA * sigma
        for side in sides:
            peaks &= inner > side
    peaks &= usable[1:-1, 1:-1]
    y, x = np.nonzero(peaks)
    if len(y) < _LEAST_PEAKS:
        return True
    height = inner[y, x] - background[1:-1, 1:-1][y, x]
    around = np.mean([side[y, x] for side in sides], axis=0) - background[1:-1, 1:-1][y, x]
    brightest = np.argsort(height)[-_MOST_PEAKS:]
    shares = (around / height)[brightest]
    return not np.median(shares[np.isfinite(shares)]) > _LEAST_SHARE


def _blocks(image: Array, background: Array, usable: Array) -> tuple[Array, tuple[Array, Array]]:
    """Mean levels of blocks above the background, and their power in two bands."""
    ny, nx = image.shape
    corners = [
        (y, x)
        for y in range(0, ny - _BLOCK + 1, _STEP)
        for x in range(0, nx - _BLOCK + 1, _STEP)
        if usable[y : y + _BLOCK, x : x + _BLOCK].all()
    ]
    profile = np.hanning(_BLOCK + 2)[1:-1]
    window = np.outer(profile, profile)
    total = float((window**2).sum())
    ky, kx = np.fft.fftfreq(_BLOCK) * 2 * np.pi, np.fft.rfftfreq(_BLOCK) * 2 * np.pi
    radius = np.hypot(ky[:, None], kx)
    bands = (radius >= _BAND, (radius >= _CHECK_BAND) & (radius < _BAND))
    if len(corners) > _MOST_BLOCKS:
        # Blocks with the most light determine the rise; the others, the noise without light.
        light = np.array([_light(image, background, y, x) for y, x in corners])
        order = np.argsort(light)
        half = _MOST_BLOCKS // 2
        rest = order[:-half]
        picked = np.concatenate([order[-half:], rest[:: max(1, len(rest) // half)]])
        corners = [corners[i] for i in picked]
    levels = np.empty(len(corners))
    powers = np.empty((2, len(corners)))
    for i, (y, x) in enumerate(corners):
        part = np.s_[y : y + _BLOCK, x : x + _BLOCK]
        block = image[part].astype(float) - background[part]
        levels[i] = (block * window**2).sum() / total
        power = np.abs(np.fft.rfft2(block * window)) ** 2 / total
        powers[:, i] = [power[band].mean() for band in bands]
    return levels, (powers[0], powers[1])


def _light(image: Array, background: Array, y: int, x: int) -> float:
    part = np.s_[y : y + _BLOCK : 2, x : x + _BLOCK : 2]
    return float((image[part] - background[part]).sum())


def _slope(levels: Array, powers: Array) -> tuple[float, float] | None:
    """Rise of the power per unit of the level, relative to the power without light; its error."""
    dark = levels <= np.quantile(levels, 0.5)
    floor = float(np.median(powers[dark]))
    bright = levels >= np.quantile(levels, 0.9)
    level = float(np.median(levels[bright]))
    if not (floor > 0 and level > 0):
        return None
    rise = float(np.median((powers[bright] / floor - 1) / levels[bright]))
    kept = np.ones(len(levels), bool)
    intercept = 1.0
    for _ in range(_ROUNDS):
        model = np.maximum(intercept + rise * np.maximum(levels, 0), 0.1)
        residual = powers / floor / model - 1
        scatter = median_deviation(residual)
        kept = np.abs(residual) <= _CLIP * scatter
        matrix = np.stack([np.ones(kept.sum()), levels[kept]], 1) / model[kept, None]
        normal = matrix.T @ matrix
        if abs(np.linalg.det(normal)) == 0:
            return None
        intercept, rise = np.linalg.solve(normal, matrix.T @ (powers[kept] / floor / model[kept]))
    if not intercept > 0:
        return None
    if _rises_faster(levels, powers / floor - intercept, rise):
        return None
    # Blocks overlap by half: a third of them, thanks to the window, count as independent.
    error = float(np.sqrt(np.linalg.inv(normal)[1, 1])) * scatter * math.sqrt(3)
    if rise * np.quantile(levels[kept], 0.98) < _LEAST_RISE * intercept:
        return None
    return float(rise / intercept), error / float(intercept)


def _rises_faster(levels: Array, powers: Array, rise: float) -> bool:
    """Whether power rises faster than light: the power of sharp sources rises as its square."""
    telling = levels * rise > _LEAST_RISE
    if telling.sum() < _LEAST_BRIGHT:
        return True
    ratio = powers[telling] / levels[telling]
    upper = levels[telling] > np.median(levels[telling])
    return bool(np.median(ratio[upper]) > _MOST_STEEPENING * np.median(ratio[~upper]))


def chosen_scale(
    expected: PhotonScale | None,
    alternatives: Sequence[PhotonScale],
    *,
    level: float,
    measured: float,
    transfer: Transfer | None,
) -> Choice:
    """Choose the meaning of an image's unit.

    Parameters
    ----------
    expected
        Scale from the header.
    alternatives
        Other possible scales, the likeliest first.
    level, measured
        Level of the background, image unit, and its variance, image_unit².
    transfer
        Gain measured on the image, if any.

    Returns
    -------
    choice
        The expected scale where it predicts the background's noise, or where nothing contradicts
        it.  Else a scale that the noise supports; else the measured one, where it is precise; else
        none.
    """
    scales = [*([] if expected is None else [expected]), *alternatives]
    if expected is not None and expected.predicts(level=level, measured=measured):
        return Choice(expected, True, True, "")
    possible = [s for s in scales if s.variance(level) < _FITTING[1] * measured]
    if transfer is not None and transfer.is_known:
        near = [s for s in possible if _agrees(s.gain, transfer)]
        telling = [
            s for s in near if _tells(s, level, measured, others_excluded=expected not in near)
        ]
        others = [_distance(s.gain, transfer) for s in near if s is not expected]
        if (
            expected is not None
            and expected in near
            and not telling
            and _distance(expected.gain, transfer) < min(others, default=math.inf) + _NEARER
        ):
            return Choice(expected, False, True, _transfer_text(transfer))
        if near:
            # All within 1.5 errors are equally near: the likeliest, which comes first, wins.
            best = min(telling or near, key=lambda s: max(_distance(s.gain, transfer), 1.5))
            return Choice(best, bool(telling), False, _transfer_text(transfer))
        if transfer.error < _PRECISE:
            own = PhotonScale(transfer.gain, 0.0, "a unit that no header card explains")
            return Choice(own, False, False, _transfer_text(transfer))
        return Choice(None, False, False, _transfer_text(transfer))
    contradicted = expected is None or expected not in possible
    telling = [s for s in alternatives if _tells(s, level, measured, others_excluded=contradicted)]
    if telling:
        return Choice(telling[0], True, False, "which predicts the noise of the background")
    if not contradicted:
        return Choice(expected, False, True, "")
    return Choice(None, False, False, "")


def why_contradicted(
    scale: PhotonScale, *, level: float, measured: float, transfer: Transfer | None
) -> str:
    """Likely reason why an image's background does not have the predicted noise.

    Parameters
    ----------
    scale
        Scale that predicts the noise.
    level, measured
        Level of the background, image unit, and its variance, image_unit².
    transfer
        Gain measured on the image, if any.

    Returns
    -------
    reason
        All possible reasons, in words.
    """
    more = scale.variance(level) > measured
    sky = "a level was added to the image" if more else "the sky was subtracted"
    unit = "the gain is of another unit: the image was scaled or averaged"
    if transfer is not None and transfer.is_known:
        return sky if _agrees(scale.gain, transfer) else unit
    if more and scale.variance(0.0) * _FITTING[0] > measured:
        # No level explains more than the read noise alone.
        return unit
    return f"{sky}, or {unit}"


def _tells(scale: PhotonScale, level: float, measured: float, *, others_excluded: bool) -> bool:
    """Whether a scale predicts the measured noise, and not by chance."""
    if not scale.predicts(level=level, measured=measured):
        return False
    if level / scale.gain > _LEAST_PHOTONS * measured:
        return True
    return others_excluded and abs(scale.variance(level) / measured - 1) < _CLOSE


def _agrees(gain: float, transfer: Transfer) -> bool:
    return abs(math.log(gain / transfer.gain)) < 0.2 + 3 * transfer.error


def _distance(gain: float, transfer: Transfer) -> float:
    """Distance from the measured gain, in errors."""
    return abs(math.log(gain / transfer.gain)) / max(transfer.error, 0.01)


def _transfer_text(transfer: Transfer) -> str:
    return (
        f"a gain of {transfer.gain:.3g} ± {transfer.error * transfer.gain:.2g} is measured from how"
        " the noise rises with the sources' light"
    )
