"""Variance planes of images that came without one, or with an incomplete one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, DataError
from ..numerics.interpolation import mean_around
from ..numerics.planes import every_nth, usable_pixels
from ..numerics.stats import ENOUGH_PIXELS, robust_sigma, rounding_step
from .local import relative_variance
from .photons import (
    Choice,
    PhotonScale,
    Transfer,
    chosen_scale,
    counted_photons,
    photon_transfer,
    scatter_of,
    why_contradicted,
)
from .sources import SourceLevel, levels_and_background, unstepped
from .structure import HighFrequencies, high_frequencies

__all__ = [
    "ABSOLUTE",
    "NoiseModel",
    "exposure_map_variance",
    "first_look",
    "noise_variance",
    "relative_weight_variance",
    "with_left_out_photons",
]

type Array = npt.NDArray[Any]

_INVERSE = (0.67, 1.5)
"""Measured variance times weight: within these limits, a weight is an inverse variance."""
ABSOLUTE = (0.1, 10.0)
"""Measured variance over a plane: within these limits, the plane is a variance that may be off by a
factor, which is corrected later."""
_NO_DOUBT = (0.8, 1.25)
"""Measured variance over a plane, from the differences of neighbours alone: within these limits, no
closer look is needed."""
_AROUND = 5
"""Side of a square, pixels, whose mean measures the photons of emission well enough."""
_FEW_ELECTRONS = 50.0
"""Electrons in a pixel below which its own count is a poor measure of the mean."""
_LEAST_SHARE = 0.1
"""Share of the usual variance: sky that varies by less is ignored, and no pixel gets less."""
_ROUNDS = 4
_CLOSE = 0.05
"""Relative difference of predicted and measured variance that is allowed where the sky varies."""
_MORE = 0.01
"""Relative excess of the scatter over the noise from which light scatters, too."""
_BRIGHT_SIGMAS, _LEAST_BRIGHT, _LEAST_RISE = 30.0, 50, 0.03
"""Height of bright pixels above the background, sigmas; how many there must be; relative rise on
them from which a variance plane includes photon noise."""
_UNEVEN, _UNEVEN_IF_GUESSED = 3.0, 1.5
"""Ratio of the variances of the noisiest and the quietest fiftieth of the pixels, each over the
prediction, from which a gain does not explain the noise: a header's gain, a guessed one."""
_AS_PREDICTED = 0.75
_BESIDE = 16
"""Distance along both axes, pixels, at which a source's light is gone."""


@dataclasses.dataclass(frozen=True)
class NoiseModel:
    """A variance plane, and where it came from.

    Attributes
    ----------
    variance
        ``(ny, nx)`` image_unit².
    background_variance
        Variance of source-free pixels, image_unit².
    description
        How it was found, in words, with the numbers.
    warning
        Why the variance departs from the header; empty where it does not.
    """

    variance: Array
    background_variance: float
    description: str
    warning: str = ""


def noise_variance(
    image: Array,
    unusable: Array | None = None,
    *,
    gain: float | None = None,
    read_noise: float | None = None,
    trust_model: bool = False,
    meaning: str = "counts",
    alternatives: Sequence[PhotonScale] = (),
    unexplained: str = "",
) -> NoiseModel:
    """Variance plane of an image that came without one.

    Parameters
    ----------
    image
        ``(ny, nx)``, in any unit.
    unusable
        ``(ny, nx)`` boolean: pixels to leave out of the measurement.
    gain
        Electrons per image unit.
    read_noise
        Electrons per pixel; measured if only the gain is known.
    trust_model
        Use gain and read noise even where the scatter contradicts them.
    meaning
        Meaning of the image's unit with that gain.
    alternatives
        Other possible meanings, tried where the noise contradicts the gain.
    unexplained
        Why there is no gain, for the warning.

    Returns
    -------
    model
        With a gain: ``level/gain + (read_noise/gain)²``, where the level is the smooth
        background plus the sources, provided that this agrees within a quarter with the
        scatter of source-free pixels.  Where it does not: the measured scatter, plus the sources'
        own photons at the gain that `photons.chosen_scale` finds.  Without a gain: the
        measured scatter.  Where emission with structure fills the field, the scatter is measured at
        high frequencies (`whitediff.noise.structure`), and the level on 5 × 5 pixels.

    Raises
    ------
    ArgumentError
        If the gain is not positive or the read noise negative.
    DataError
        If no usable pixel is left, or the scatter is zero.
    """
    if gain is not None and not (math.isfinite(gain) and gain > 0):
        raise ArgumentError(f"The gain must be positive; got {gain:g}.")
    if read_noise is not None and not (math.isfinite(read_noise) and read_noise >= 0):
        raise ArgumentError(f"The read noise must not be negative; got {read_noise:g}.")
    expected = None if gain is None else PhotonScale(gain, read_noise or 0.0, meaning)
    field = _measured_field(image, unusable, expected, is_scale_known=bool(gain or alternatives))
    choice, transfer = _scale_of(field, expected, alternatives, trust_model=trust_model)
    warning = unexplained
    if expected is not None and not choice.is_expected:
        why = field.why_contradicted(expected, transfer)
        warning = (
            f"a gain of {expected.gain:g} electrons per unit ({expected.meaning}) gives a variance"
            f" of {expected.variance(field.level):.4g} at the background level {field.level:.4g},"
            f" but {field.variance:.4g} is measured, so {why}"
        )
    if choice.scale is None:
        return field.scatter(warning, choice.reason)
    if not choice.is_expected:
        warning += f"{'; ' if warning else ''}its pixels are taken for {choice.scale.meaning}"
        warning += f", {choice.scale.gain:.4g} electrons per unit ({choice.reason})"
    varies = not (field.is_structured or trust_model) and field.varies(choice.scale.gain)
    predicted = choice.scale.variance(field.level)
    # Where the sky varies, so does its noise, which shows whether a constant was subtracted.
    if choice.models_background and not (varies and abs(predicted / field.variance - 1) > _CLOSE):
        return field.photons_and_read_noise(choice.scale, read_noise, warning)
    why = ""
    if choice.is_expected and field.reaches(choice.scale):
        why = "; the depth differs, which gain and read noise do not tell of"
    elif choice.is_expected:
        reason = field.why_contradicted(choice.scale, transfer)
        why = (
            f"; gain and read noise alone would give {predicted:.4g} at the background level"
            f" {field.level:.4g}, so {reason}"
        )
    return field.scatter_and_photons(choice.scale.gain, warning, why, varies=varies)


@dataclasses.dataclass(frozen=True)
class _Field:
    """Noise, background and sources as measured on an image.

    Attributes
    ----------
    image, usable, sources, background, free
        Planes: the image, its usable pixels, those with a source, the background beneath, and
        usable pixels without a source.
    base
        Plane that counts as no light when photons are measured.
    emission
        Light of a structured field above its usual level, whose photons count as sources' do.
    level
        Usual level of the background, image unit.
    variance
        Variance at that level, image unit².
    whole_scatter
        Variance of all source-free pixels, whatever their level, image unit².
    on_pixels
        How the variance was measured, in words.
    is_structured
        Whether emission with structure fills the field.
    """

    image: Array
    usable: Array
    sources: Array
    background: Array
    free: Array
    base: Array
    emission: Array | float
    level: float
    variance: float
    whole_scatter: float
    on_pixels: str
    is_structured: bool

    def why_contradicted(self, scale: PhotonScale, transfer: Transfer | None) -> str:
        return why_contradicted(scale, level=self.level, measured=self.variance, transfer=transfer)

    def varies(self, gain: float) -> bool:
        """Whether the sky varies enough for its photons to matter, and its noise varies with it.

        A level that was subtracted, or added without noise, changes no noise.
        """
        above = _varying_sky(self.background, self.level, gain, self.variance)
        if not isinstance(above, np.ndarray):
            return False
        sky = self._sampled(above)
        residual = self._sampled(self.image) - self._sampled(self.background)
        low, high = np.quantile(sky, (1 / 3, 2 / 3))
        dark, bright = sky <= low, sky >= high
        predicted = math.log(
            (self.variance + float(np.median(sky[bright])) / gain)
            / (self.variance + float(np.median(sky[dark])) / gain)
        )
        scatters = robust_sigma(residual[bright]), robust_sigma(residual[dark])
        return min(scatters) > 0 and 2 * math.log(scatters[0] / scatters[1]) > predicted / 2

    def has_noise_of(self, scale: PhotonScale, *, most: float) -> bool:
        """Whether a scale explains how the noise differs over the frame, within a factor."""
        ratio = self._over_photons(scale)
        return ratio is None or bool(ratio[1] < most * ratio[0])

    def reaches(self, scale: PhotonScale) -> bool:
        """Whether a scale predicts the noise of one part of a frame whose depth differs."""
        ratio = self._over_photons(scale)
        if ratio is None or ratio[1] < _UNEVEN_IF_GUESSED * ratio[0]:
            return False
        return bool(ratio[0] < 1 / _AS_PREDICTED and ratio[1] > _AS_PREDICTED)

    def _over_photons(self, scale: PhotonScale) -> tuple[float, float] | None:
        """Variance of the quietest and the noisiest parts over what a scale predicts there."""
        relative = None if self.is_structured else self.relative
        if relative is None:
            return None
        photons = np.maximum(self._sampled(self.background), 0) / scale.gain
        ratio = self._sampled(relative) * self.variance / (photons + scale.variance(0.0))
        low, high = np.quantile(ratio, (0.02, 0.98))
        return float(low), float(high)

    def _sampled(self, plane: Array) -> Array:
        """Values of a plane at source-free pixels, as many as a scatter needs."""
        return every_nth(plane, self.free, ENOUGH_PIXELS)

    @functools.cached_property
    def relative(self) -> Array | None:
        """Variance over the usual one, where it differs over the frame; see `relative_variance`."""
        return relative_variance(self.image, self.free, self.usable)

    def scatter(self, warning: str, reason: str) -> NoiseModel:
        """Noise model of the measured scatter alone."""
        if warning:
            warning += (
                "; no photon noise of sources is added, so that bright ones get too small errors,"
                " unless a gain in the image's unit or a variance plane is given"
                f"{f' ({reason})' if reason else ''}"
            )
        plane, where = self._over_frame()
        told = f"{self.on_pixels}{where or ' everywhere'}"
        return NoiseModel(plane, self.variance, told, warning)

    def _over_frame(self) -> tuple[Array, str]:
        """Measured variance of every pixel's background, and how it differs, in words."""
        relative = self.relative
        if relative is None:
            return np.full(self.image.shape, self.variance), ""
        left = self._sampled(self.image) - self._sampled(self.background)
        usual = self._sampled(relative)
        # Where the noise is large, its peaks are taken for sources, and its scatter is too small.
        quiet = usual <= np.median(usual)
        sigma = robust_sigma(left[quiet] / np.sqrt(usual[quiet]))
        # Faint sources are taken to have the same share of the scatter everywhere.
        plane = relative * np.float32(sigma**2 * min(1.0, self.variance / self.whole_scatter))
        least, middle, most = (float(f(plane)) for f in (np.min, np.median, np.max))
        return plane, f"; as the depth differs, {least:.3g} to {most:.3g}, usually {middle:.3g}"

    def photons_and_read_noise(
        self, scale: PhotonScale, read_noise: float | None, warning: str
    ) -> NoiseModel:
        """Noise model that gain and read noise predict."""
        predicted = scale.variance(self.level)
        read_variance = (scale.read_noise / scale.gain) ** 2
        if read_noise is None:
            # Unknown read noise: the measured variance less the background's photons.
            read_variance = max(self.variance - max(self.level, 0.0) / scale.gain, 0.0)
            predicted = max(self.level, 0.0) / scale.gain + read_variance
        known = math.sqrt(read_variance) * scale.gain
        return NoiseModel(
            np.maximum(self.background, 0) / scale.gain
            + read_variance
            + self._source_photons(scale.gain),
            predicted,
            f"from gain {scale.gain:g} and read noise {known:.4g}: {predicted:.4g} at the"
            f" background level {self.level:.4g} (measured: {self.variance:.4g})",
            warning,
        )

    def scatter_and_photons(
        self, gain: float, warning: str, why: str, *, varies: bool
    ) -> NoiseModel:
        """Noise model of the measured scatter, plus photons of the light above the usual level."""
        emission = self.emission
        if varies:
            # Differences of the sky survive the subtraction of a constant.
            variance = _variance_at_level(
                self.image, self.background, self.level, self.free, gain, self.whole_scatter
            )
            emission = _varying_sky(self.background, self.level, gain, variance)
            plane: Array | float = variance
            told = f"measured: {variance:.4g} at the usual level of a sky that varies"
        else:
            variance = self.variance
            plane, where = self._over_frame()
            told = f"{self.on_pixels}{where}"
        return NoiseModel(
            plane + self._source_photons(gain) + emission / gain,
            variance,
            f"{told}, plus the sources' photons at gain {gain:.4g}{why}",
            warning,
        )

    def _source_photons(self, gain: float) -> Array:
        # Sources only, since elsewhere a pixel's own noise would set its variance.
        light = _without_own_noise(self.image - self.background, self.usable, gain)
        result: Array = np.where(self.sources, light, 0) / gain
        return result


def _measured_field(
    image: Array, unusable: Array | None, expected: PhotonScale | None, *, is_scale_known: bool
) -> _Field:
    usable = usable_pixels(image, unusable)
    sources, background, free = _apart(unstepped(image, usable), usable)
    if not free.any():
        raise DataError("No source-free pixel is left to measure the noise on.")
    counts = counted_photons(image, usable)
    if counts is not None and counts.problem:
        raise DataError(f"The image {counts.problem}.")
    left = (image - background)[free]
    scatter = scatter_of(left, counts, step=rounding_step(image[usable]))
    if not scatter > 0:
        raise DataError(
            f"The scatter of the source-free pixels is {scatter:g}, since most have the same value;"
            " an image without noise needs its variance given, and one that counts few photons to"
            " be binned."
        )
    variance, level = scatter, float(np.median(background))
    if expected is not None:
        at_level = _variance_at_level(image, background, level, free, expected.gain, scatter)
        if expected.predicts(level=level, measured=at_level):
            variance = at_level
    field = _Field(
        image=image,
        usable=usable,
        sources=sources,
        background=background,
        free=free,
        base=background,
        emission=0.0,
        level=level,
        variance=variance,
        whole_scatter=scatter,
        on_pixels=f"measured on {int(free.sum())} source-free pixels: {variance:.4g}",
        is_structured=False,
    )
    found = high_frequencies(image, usable)
    if found is None:
        return field
    if found.contradicts(variance) or _explains_what_scatter_does_not(
        expected, found, variance, level
    ):
        return _structured(field, found, is_scale_known=is_scale_known)
    predicted = expected is not None and expected.predicts(level=level, measured=variance)
    if not predicted and variance > found.factor * (1 + _MORE + 3 * found.error):
        # Faint stars and wings of sources add to the scatter.
        return dataclasses.replace(
            field,
            variance=found.factor,
            on_pixels=f"measured at frequencies free of sources: {found.factor:.4g}",
        )
    return field


def _structured(field: _Field, found: HighFrequencies, *, is_scale_known: bool) -> _Field:
    """Field full of emission: each pixel has its own level, and few pixels are without light."""
    on_pixels = (
        f"measured at high frequencies: {found.usual_factor:.4g} (with the structure of the"
        f" field, pixels scatter by {field.variance:.4g})"
    )
    if not is_scale_known:
        return dataclasses.replace(
            field, variance=found.usual_factor, on_pixels=on_pixels, is_structured=True
        )
    around = mean_around(field.image, field.usable, _AROUND)
    background = np.where(field.sources, field.background, around)
    return dataclasses.replace(
        field,
        background=background,
        base=np.full(field.image.shape, found.level),
        emission=np.maximum(background - found.level, 0),
        level=found.level,
        variance=found.factor,
        on_pixels=on_pixels,
        is_structured=True,
    )


def _scale_of(
    field: _Field,
    expected: PhotonScale | None,
    alternatives: Sequence[PhotonScale],
    *,
    trust_model: bool,
) -> tuple[Choice, Transfer | None]:
    """Meaning of the image's unit, and the gain that its sources tell."""
    level, variance = field.level, field.variance
    if expected is not None and (trust_model or expected.predicts(level=level, measured=variance)):
        models = trust_model or field.has_noise_of(expected, most=_UNEVEN)
        return Choice(expected, models, True, ""), None
    transfer = None
    if expected is not None or alternatives or not field.is_structured:
        transfer = photon_transfer(field.image, field.base, field.usable, variance=variance)
    choice = chosen_scale(expected, alternatives, level=level, measured=variance, transfer=transfer)
    if choice.scale is None or not choice.models_background:
        return choice, transfer
    if not field.has_noise_of(choice.scale, most=_UNEVEN_IF_GUESSED):
        # Parts of different depth have the predicted noise in the mean, but only by chance.
        if transfer is not None and transfer.is_known:
            choice = dataclasses.replace(choice, models_background=False)
        elif expected is not None and field.reaches(expected):
            choice = Choice(expected, False, True, "")
        else:
            choice = Choice(None, False, False, "")
    return choice, transfer


def _apart(image: Array, usable: Array) -> tuple[Array, Array, Array]:
    """Pixels with a source, the background, and usable pixels without a source."""
    levels, background = levels_and_background(image, ~usable)
    sources = levels > SourceLevel.NONE
    return sources, background, usable & ~sources


def _explains_what_scatter_does_not(
    expected: PhotonScale | None, found: HighFrequencies, scatter: float, level: float
) -> bool:
    """Whether the header's gain predicts the noise at high frequencies, but not the scatter."""
    if expected is None or expected.predicts(level=level, measured=scatter):
        return False
    return scatter > found.factor and expected.predicts(level=found.level, measured=found.factor)


def with_left_out_photons(
    image: Array,
    variance: Array,
    unusable: Array | None = None,
    *,
    expected: PhotonScale | None = None,
    alternatives: Sequence[PhotonScale] = (),
) -> NoiseModel | None:
    """Variance plane with the photon noise of the sources, if it lacked it.

    Parameters
    ----------
    image
        ``(ny, nx)``, in any unit.
    variance
        ``(ny, nx)`` image_unit².  Inverse weights of coadds, for one, often hold the background's
        noise alone.
    unusable
        ``(ny, nx)`` boolean: pixels to leave out.
    expected, alternatives
        As for `noise_variance`.

    Returns
    -------
    model
        The plane plus the sources' photons; or the plane as it is, where the gain is unknown.
        None where the plane rises with the light of bright sources, where sources are too few or
        too faint to tell, and where the plane is off by more than a factor of ten, so that it is
        something else.
    """
    usable = _with_variance(image, variance, unusable)
    if not _ignores_light(image, variance, usable):
        return None
    sources, background, free = _apart(unstepped(image, usable), usable)
    if not free.any():
        return None
    # The plane may be off by a factor that is corrected later, so photons are added in its unit.
    factor = _scatter_over(variance, image, background, free)
    if not _is_between(factor, ABSOLUTE):
        return None
    usual = float(np.median(variance[free]))
    apart = image - background, sources & usable, usable
    choice = _photons_told(apart, background, usual * factor, expected, alternatives)
    said = "its variance plane does not rise with its stars' light"
    if choice.scale is None:
        text = (
            f"{said}; if it leaves out their photon noise, errors of bright sources are too small,"
            " unless a gain in the image's unit is given"
        )
        return NoiseModel(variance, usual, text)
    result = _with_photons_of(apart, variance, choice.scale.gain * usual * factor)
    text = (
        f"{said}, so that it leaves out their photon noise, which is added at"
        f" {choice.scale.gain:.4g} electrons per unit ({choice.reason or choice.scale.meaning})"
    )
    return NoiseModel(result, usual, text)


def relative_weight_variance(
    image: Array,
    variance: Array,
    unusable: Array | None = None,
    *,
    expected: PhotonScale | None = None,
    alternatives: Sequence[PhotonScale] = (),
    adds_photons: bool = True,
) -> NoiseModel | None:
    """Variance plane of an image whose weights are relative: their unit is unknown.

    Parameters
    ----------
    image
        ``(ny, nx)``, in any unit.
    variance
        ``(ny, nx)``: inverse weights, in any unit; not finite where there is no measurement.
    unusable
        ``(ny, nx)`` boolean: pixels to leave out of the measurement.
    expected, alternatives
        As for `noise_variance`.
    adds_photons
        Whether the photon noise of sources is added; it is not for a difference.

    Returns
    -------
    model
        In proportion to the inverse weights, and as large as the scatter of source-free pixels,
        plus the sources' photons, if the weights leave them out.  None where the weights explain
        that scatter as they are, within a factor of ten; where they are variances by mistake; and
        where no pixel is free of sources.
    """
    usable = _with_variance(image, variance, unusable)
    if not usable.any() or _is_between(first_look(image, variance, usable), _NO_DOUBT):
        return None
    sources, background, free = _apart(unstepped(image, usable), usable)
    if not free.any():
        return None
    factor = _scatter_over(variance, image, background, free)
    found = high_frequencies(image, usable, variance)
    if found is not None and found.contradicts(factor):
        factor = found.usual_factor
    values = variance[usable]
    is_constant = bool(values.min() == values.max())
    if not factor > 0 or _is_between(factor, ABSOLUTE):
        return None
    if not is_constant and _is_between(
        _scatter_over(1 / variance, image, background, free), _INVERSE
    ):
        # A variance plane that was read as weights.
        return None
    weights = f"all {1 / float(values[0]):.4g} or 0" if is_constant else "relative"
    text = (
        f"its weights are {weights}, not inverse variances (1/weight is {1 / factor:.3g} times the"
        " measured variance), so they are scaled to the measured noise"
    )
    scaled = variance.astype(np.float64) * factor
    usual = float(np.median(scaled[free]))
    if not adds_photons or _ignores_light(image, scaled, usable) is False:
        return NoiseModel(scaled, usual, text)
    apart = image - background, sources & usable, usable
    choice = _photons_told(apart, background, usual, expected, alternatives)
    if choice.scale is None:
        text += "; without a gain in the image's unit, the photon noise of sources is not added"
        return NoiseModel(scaled, usual, text)
    text += (
        f", and the sources' photons are added at {choice.scale.gain:.4g} electrons per unit"
        f" ({choice.reason or choice.scale.meaning})"
    )
    return NoiseModel(_with_photons_of(apart, scaled, choice.scale.gain * usual), usual, text)


def _with_variance(image: Array, variance: Array, unusable: Array | None) -> Array:
    """Usable pixels that have a value and a variance."""
    usable: Array = usable_pixels(image, unusable) & np.isfinite(variance) & (variance > 0)
    return usable


def _is_between(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] < value < limits[1]


def _scatter_over(variance: Array, image: Array, background: Array, free: Array) -> float:
    """Variance of source-free pixels over the plane that predicts it; 0 if they do not differ."""
    sigma = np.sqrt(variance[free])
    counts, step = counted_photons(image, free), rounding_step(image[free])
    return scatter_of((image - background)[free], counts, step=step, errors=sigma)


def _photons_told(
    apart: tuple[Array, Array, Array],
    background: Array,
    measured: float,
    expected: PhotonScale | None,
    alternatives: Sequence[PhotonScale],
) -> Choice:
    """Meaning of an image's unit, from its light, the pixels with a source, and usable pixels."""
    light, _, usable = apart
    transfer = photon_transfer(light, np.zeros_like(light), usable, variance=measured)
    level = float(np.median(background))
    return chosen_scale(expected, alternatives, level=level, measured=measured, transfer=transfer)


def _with_photons_of(
    apart: tuple[Array, Array, Array], variance: Array, gain_of_variance: float
) -> Array:
    """Plane with the photons of sources.

    Where fewer exposures overlap or less light falls, a unit stands for fewer electrons, but the
    product of gain and variance is the same: that product is given.
    """
    light, lit, _ = apart
    result: Array = variance.astype(np.float64)
    result[lit] += np.maximum(light[lit], 0) * variance[lit] / gain_of_variance
    return result


def _without_own_noise(light: Array, usable: Array, gain: float) -> Array:
    """Light whose photons make noise; where it is few electrons, the mean of 3 × 3 pixels.

    With its own few electrons, a pixel that has fewer by chance would get too large a weight.
    """
    around = mean_around(light, usable, 3)
    few = around * gain < _FEW_ELECTRONS
    return np.maximum(np.where(few & usable, around, light), 0)


def first_look(image: Array, variance: Array, usable: Array) -> float:
    """Measured variance over the plane that predicts it, from differences of neighbours.

    The differences need no sky or sources to be told apart.

    Parameters
    ----------
    image
        ``(ny, nx)``, in any unit.
    variance
        ``(ny, nx)`` image_unit².
    usable
        ``(ny, nx)`` boolean: pixels with a value and a variance.

    Returns
    -------
    factor
        Robust variance of the differences of neighbours along rows, over the plane's prediction;
        NaN where no two neighbours are usable.
    """
    rows = slice(None, None, max(1, image.size // ENOUGH_PIXELS))
    left, right = np.s_[rows, :-1], np.s_[rows, 1:]
    both = usable[left] & usable[right]
    step = image[right][both].astype(np.float64) - image[left][both]
    together = variance[right][both].astype(np.float64) + variance[left][both]
    return robust_sigma(step / np.sqrt(together)) ** 2 if both.any() else math.nan


def _ignores_light(image: Array, variance: Array, usable: Array) -> bool | None:
    """Whether a variance plane is the same on bright sources as beside them.

    None where there are too few bright pixels to tell.
    """
    step = max(1, image.size // ENOUGH_PIXELS)
    known = np.flatnonzero(usable.ravel()[::step]) * step
    if not known.size:
        return None
    values, plane = image.ravel()[known].astype(np.float64), variance.ravel()[known]
    # With a plane that is too small, peaks of noise would count as bright sources.
    factor = first_look(image, variance, usable)
    usual = float(np.median(plane)) * (factor if factor > 1 else 1.0)
    above = values - np.median(values)
    bright = above > _BRIGHT_SIGMAS * math.sqrt(usual)
    if np.count_nonzero(bright) < _LEAST_BRIGHT:
        return None
    y, x = np.unravel_index(known[bright], image.shape)

    def beside(of: Array) -> Array:
        ny, nx = of.shape
        around = [
            of[np.clip(y + dy, 0, ny - 1), np.clip(x + dx, 0, nx - 1)]
            for dy in (-_BESIDE, _BESIDE)
            for dx in (-_BESIDE, _BESIDE)
        ]
        result: Array = np.median(around, axis=0)
        return result

    # Beside a pixel of a large galaxy there is as much light, so the plane is as high.
    stands_out = values[bright] - beside(image) > 0.5 * above[bright]
    if np.count_nonzero(stands_out) < _LEAST_BRIGHT:
        rise = plane[bright] / np.median(plane)
    else:
        rise = (plane[bright] / beside(variance))[stands_out]
    # A plane that rises at all includes photon noise, at whatever gain.
    return bool(abs(np.median(rise) - 1) < _LEAST_RISE)


def _variance_at_level(
    image: Array, background: Array, level: float, free: Array, gain: float, scatter: float
) -> float:
    """Variance of the source-free pixels at the usual level of a sky that varies.

    Where the sky's photons make variances differ, the scatter of all pixels mixes them.
    """
    if not np.any(_varying_sky(background, level, gain, scatter)):
        return scatter
    step = max(1, np.count_nonzero(free) // ENOUGH_PIXELS)
    residual, sky = (image - background)[free][::step], background[free][::step]
    sky = sky - level
    measured = scatter
    for _ in range(_ROUNDS):
        shape = np.maximum(1 + sky / (gain * measured), _LEAST_SHARE)
        measured = robust_sigma(residual / np.sqrt(shape)) ** 2
    return measured


def _varying_sky(background: Array, level: float, gain: float, variance: float) -> Array | float:
    """Sky above its usual level, image unit; 0 if its photons make no difference.

    It is limited below, so that at least a tenth of the variance is left.
    """
    above = background - level
    step = max(1, above.size // ENOUGH_PIXELS)
    if not robust_sigma(above.ravel()[::step]) > _LEAST_SHARE * variance * gain:
        return 0.0
    return np.maximum(above, (_LEAST_SHARE - 1) * variance * gain)


def exposure_map_variance(
    image: Array,
    times: Array,
    unusable: Array | None = None,
    *,
    gain: float | None = None,
    gain_of_time: bool = True,
    is_sure: bool = False,
) -> NoiseModel | None:
    """Variance plane of an image whose weights are exposure times.

    Parameters
    ----------
    image
        ``(ny, nx)``, in any unit.
    times
        ``(ny, nx)`` seconds; 0 where there is no measurement.
    unusable
        ``(ny, nx)`` boolean: pixels to leave out of the measurement.
    gain
        Electrons per image unit; for a rate, electrons per unit and second.  None: no photons are
        added.
    gain_of_time
        Whether the image is a rate, so that the gain of a pixel is ``gain · time``.
    is_sure
        Whether the weights are known to be times, even if they explain the scatter as inverse
        variances.

    Returns
    -------
    model
        Inversely proportional to the time, and as large as the scatter of source-free pixels,
        plus the sources' photons.  None where the weights explain that scatter as they are, within
        a factor of 1.5, and are not known to be times; and where no source-free pixel is left.
    """
    usable = usable_pixels(image, unusable) & (times > 0)
    if not usable.any():
        return None
    sources, background, free = _apart(image, usable)
    if not free.any():
        return None
    above = image - background
    unit_variance = robust_sigma(above[free] * np.sqrt(times[free])) ** 2
    explained = _INVERSE[0] < unit_variance < _INVERSE[1]
    if not unit_variance > 0 or (explained and not is_sure):
        return None
    known = np.where(times > 0, times, np.inf)
    variance = np.where(times > 0, unit_variance / known, np.inf)
    text = (
        f"its weights are exposure times in seconds, not inverse variances (1/weight is"
        f" {1 / unit_variance:.3g} times the measured variance), so they are scaled to the measured"
        f" noise"
    )
    if gain is None:
        text += "; without a gain, the photon noise of sources is not added"
    else:
        per_unit = gain * known if gain_of_time else gain
        variance += np.where(sources & (times > 0), np.maximum(above, 0), 0) / per_unit
        text += ", and the photon noise of sources is added"
    background_variance = float(np.median(variance[free]))
    return NoiseModel(variance, background_variance, text)
