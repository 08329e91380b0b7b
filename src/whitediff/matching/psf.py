"""PSF of an image, and its variation over the frame, measured from stars."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError, DataError
from ..interruptions import heed
from ..numerics.interpolation import patched
from ..numerics.polynomials import chebyshev_products, chebyshev_terms
from ..numerics.profiles import FWHM_TO_SIGMA, UNDERSAMPLED_FWHM, full_width_half_maximum
from ..numerics.sinc import moved_stamps
from ..numerics.splines import grown_stamps, shifted_stamps, smoothed_stamps
from ..numerics.stats import MAD_TO_SIGMA, median_deviation
from ..numerics.threads import scipy_part, single_threaded_algebra
from .fine import FineTable, fitted_rings, fitted_table

__all__ = ["MeasuredPsf", "measure_psf", "star_width"]

type Array = npt.NDArray[Any]

_FEWEST = 3
_MOST, _MOST_OFFERED = 100, 200
"""Most stars that are used, and that are looked at."""
_STARS_PER_TERM = 12
_USABLE_FRACTION = 0.8
_MIDDLE, _MOST_BAD_MIDDLE = 1, 2
"""Half-width of a star's middle, pixels, and the number of its pixels that may be bad."""
_CLIP = 4.0
_PASSES = 4
_FLOOR = 0.02
"""Least error of a PSF's model in a pixel, relative to the star's brightness there."""
_NEIGHBOUR, _SHARED = (4.0, 3.0), 3.0
"""Sigmas from which a smoothed residual is a neighbour's, beside stars without and with diffracted
light (its spikes exceed the profile); and from which a residual common to stars is the PSF's."""
_CROWDED = (1.5, 8.0)
"""Scatter of the sky at the scale of a star, over the scatter by noise, from which on unseen
sources count as noise, and from which on they hide the wings."""
_BRIGHT, _FAR_LARGER = 0.1, 5.0
"""Brightness, over a star's brightest pixel, from which a pixel shows how the variance rises with
light; and ratio to the variance so expected that a noisy count does not reach."""
_PROFILE_WIDTH_ERROR, _FALL_ERROR = 0.1, 0.3
"""Largest errors of a fitted profile, whatever lies around the stars: of its width, relative, and
of five times its inverse exponent."""
_RINGS, _RING_FLOOR, _GROUPS, _STEP = 2, 0.01, 8, 0.01
"""Rings in a half width, their relative error beyond noise, groups of stars of which each is left
out, and the step of derivatives."""
_SHARERS, _FEWEST_SHARERS = 15, 5
"""Most and fewest of the brightest stars whose common residual is taken for the PSF's."""
_WIDTH_ERROR = 0.006
"""Error of ln(width) beyond which a star cannot be told from a small galaxy."""
_SCATTERS = (0.003, 0.008, 0.02, 0.05)
"""Scatters of ln(width) between stars, beyond their errors, to average over: departures from a
linear variation make the first, neighbours the third, departures from a parabola the last."""
_STAR_PARTS = (0.1, 0.2, 0.4, 0.7, 0.98)
"""Shares of stars among the sources to average over; with the last there is no galaxy."""
_GALAXY_WIDTHS = (0.06, 0.12, 0.25)
"""Most by which ln(width) of galaxies that may be taken for stars exceeds the stars'; to average
over."""
_NEGLIGIBLE, _FACTORS = 1e-12, 100
"""Probability that adds nothing to a mean; factors whose product double precision holds."""
_OTHERS = 0.02
"""Share of sources that may have any width."""
_AROUND, _PLACES = 0.02, 241
"""Range of ln(width) beyond the precise sources' in which the stars' width is sought, and the
number of widths tried."""
_CLEAR, _APART = 3.0, 2.0
"""Radius around a star in which its width is measured, and distance between places without a star;
both in half widths."""
_FEWEST_PLACES, _MOST_PLACES = 30, 2000
_GALAXY_WINGS = 3.0
"""Relative error of the light, over the error of the width, if the PSF is a small galaxy's."""
_HOLE = 0.5
"""How much darker the sky may be under a star that is used, over the scatter of the sky by unseen
sources at the scale of a star."""
_UNKNOWN_WIDTH, _TILTINGS = 0.05, 3
_ENOUGH = 24
_LARGEST_CHI_SQUARE = 3.0
_UNLIKE, _MANY_UNLIKE = 6.0, 1 / 6
"""Chi-square, over the usual one, of stars with another PSF than the others; and share of such
stars that a few binaries and neighbours do not reach."""
_LARGEST_STEP = 0.5
_LEVEL_ERROR = 1.5
"""Errors of levels, over those from the pixels' noise: there are unseen sources."""
_WIDTH_STARS, _ENOUGH_FOR_MEDIAN = 50, 10
_MOST_OF_WINDOW, _MOST_SHEAR = 0.95, 0.9
_FINE = 4.0
"""Full width, pixels, from which on interpolation widens a star by less than 0.1 %."""
_SLOPE_ORDER, _NO_SLOPE, _PER_SLOPE = 2, (0.0,) * 5, 2
"""Order of the polynomials that ln(width) follows over the field, their coefficients for a constant
width, and the least number of stars for each term."""
_BETA = (1.5, 100.0)
_TURBULENCE = ((0.657, 1 / 11.14, 0.9682), (0.321, 1 / 2.782, 1.112), (0.022, 6 / 11, 3.167))
"""Share, 1/beta and half width of Moffat profiles whose sum is Kolmogorov's profile within 1.2 %,
up to 12 full widths from the middle; beyond, it falls alike."""
_SHARE = (0.0, 1.5)
"""Least and largest share of turbulence."""
_USUAL_SHARE = (0.5, 0.5)
_USUAL_FALL = (0.3, 0.15)
"""Priors, value and standard deviation: of the share of turbulence, and of the other part's
1/beta."""
_GAUSSIAN = 0.02
"""1/beta below which a profile is as good as Gaussian."""
_NARROW_PASSES = 4
_TABLE_REACH = 3.0
"""Radius, in full widths, that the table finer than the pixels covers."""
_PHASES = 4
"""Places between two pixels, in each direction, over which a narrow PSF is averaged."""
_NARROW_STARS, _EVALUATIONS = 25, 12
"""Number of the brightest stars, which suffice for a profile; and most evaluations in a fit."""
_RINGED, _RING_MISFIT = 4.5, 2.0
"""With diffracted light: radius, in half widths, within which no neighbour is looked for; and
difference of rings from the profile, relative to it, that is allowed farther out."""
_RINGS_DIFFER = 0.5
"""Expected difference of rings beyond the table from the profile, relative to it."""
_TINY = 0.05
"""Pixels, for derivatives."""
_DIFFRACTION = 1 / 1.5
"""1/beta of the profile that falls like light diffracted at an aperture's edge, averaged over its
rings: with the third power of the distance."""
_DIFFRACTED = (0.0, 1.0)
_USUAL_DIFFRACTION = (0.0, 0.3)
"""Least and largest share of diffracted light; prior of the share, value and standard deviation.
An unobstructed aperture has 0.31, one obstructed to a third 0.47, stars widened by the atmosphere
have none."""
_FOUND_DIFFRACTION, _NO_TURBULENCE = (0.5, 0.4), (0.0, 0.3)
"""Priors, value and standard deviation, of the shares of diffracted light and of turbulence, where
there is diffracted light."""
_DARK = 2.4
"""Radius of the first dark ring, in half widths.  Farther out, dark and bright rings are two half
widths apart; the rings of fits are as wide, and average over them."""
_SMOOTH, _RINGED_LIGHT = (0.03, 0.1), (0.3, 0.3)
"""Differences of rings from the profile, relative to it, inside of the dark ring and farther out:
for stars widened by the atmosphere or a blur, and for those of an aperture."""
_KNOWN_CORE = (0.06, 0.3)
"""The same differences for diffracted light, once the core is measured."""
_WITHOUT, _SURE = (0.8, 0.1, 0.1), 0.9
"""Prior probabilities of stars without diffracted light, with its rings, and with its wings alone
after a blur; and probability from which diffracted light is believed."""
_FARTHER = 1.4
"""Diffracted light beyond the stamps, over the profile's: struts make it 1 to 1.9."""
_LEAST_DIFFRACTION = 0.1
"""Share of diffracted light above which it is part of the profile."""
_STEEPEST, _MOST_TURBULENCE = 0.5, 0.5
"""Largest 1/beta in a fit to rings, and largest share of turbulence beside diffracted light."""
_DIFFRACTED_PASSES = 5
_FREE = 0.3
"""Prior relative error of the flux in a fit to rings, which are to correct it."""
_FINER, _RING_ROUNDS, _LITTLE_GAIN, _LITTLE_RELATIVE = 4, 20, 0.01, 1e-4
"""Nodes in a ring; in fits of profiles, the most rounds, the gain of chi-square below which one to
rings ends, and, over chi-square, one to pixels."""
_DAMPINGS = (0.0, 0.01, 0.1, 1.0, 10.0)
_SCATTERED, _LEAST_SCATTERED = 0.03, 0.01
"""Share of diffracted light, over the share of turbulence, assumed where the rings do not show it;
and the least error of the share, which is else as large as the share.  Apertures that spread light
over a tenth of the atmosphere's width, 4 m in good seeing or 0.5 m in bad, have 0.02 to 0.08: too
little to measure in the rings of some tens of stars."""
_NODES = 4096
_WINGS_FROM, _LEAST_MISFIT, _WORSE_IN_WINGS = 3.0, 0.1, 3.0
"""Radius, in half widths, where the wings begin; least relative error of the profile in them, and
its ratio to the error inside."""
_WINGS_ALONE = 2.0
"""Relative error of pixels, over the profile's misfit: with it, a core that no profile fits leaves
the share of turbulence to the wings."""
_FAR_OFF, _SHAPE_REACH = 0.15, 8.0
"""Residual of a typical star, over the profile (root of the sums of squares), from which its shape
is another; and radius, in half widths, within which the residual is the star's."""
_LARGE_PART, _AROUND_PEAKS = 0.1, 2
"""Residual, over a star's peak, that marks another peak of the PSF; and pixels around it in which
no neighbour is looked for."""
_LEVEL_FROM = 4.0
"""Radius, in half widths, from which on pixels give a star's background."""
_ANGLES = 64


@dataclasses.dataclass
class _Stars:
    """Stamps of stars and the stars' parameters.

    ``shape`` is the frame's.  ``data``, ``variance``, ``weight`` and ``known`` are ``(n, side,
    side)``: bad pixels have no weight, but are known where they could be interpolated.  All others
    are ``(n,)``: ``column`` and ``row`` of the middle pixel, ``dx`` and ``dy`` from it to the
    star's centre, ``flux``, ``level`` of the sky beyond the one that was subtracted when the stamp
    was cut, ``sky_variance`` without the star's own noise, and ``alike``: whether it has turned
    out to be a star.
    """

    shape: tuple[int, int]
    data: Array
    variance: Array
    weight: Array
    known: Array
    column: Array
    row: Array
    dx: Array
    dy: Array
    flux: Array
    level: Array
    sky_variance: Array
    alike: Array

    def __len__(self) -> int:
        return len(self.flux)

    def part(self, which: Array) -> _Stars:
        """Some of the stars."""
        names = [field.name for field in dataclasses.fields(self)][1:]
        return dataclasses.replace(self, **{name: getattr(self, name)[which] for name in names})

    def in_double_precision(self) -> _Stars:
        """The same stars, the stamps in double precision."""
        stamps = {name: getattr(self, name) for name in ("data", "variance", "weight")}
        return dataclasses.replace(
            self, **{name: plane.astype(np.float64) for name, plane in stamps.items()}
        )

    def each(self, values: Array) -> Array:
        """A value for every star, ``(n, 1, 1)``, of the stamps' type."""
        return values[:, None, None].astype(self.data.dtype, copy=False)

    def terms(self, order: int) -> Array:
        """Polynomials of the stars' positions, ``(n, n_terms)``."""
        ny, nx = self.shape
        column = 2 * (self.column + self.dx + 0.5) / nx - 1
        row = 2 * (self.row + self.dy + 0.5) / ny - 1
        return chebyshev_products(order, column, row)

    def weighed(self, expected: Array) -> _Stars:
        """Stars whose weights follow from the sky's variance and from the expected light.

        Variances from the pixels' own counts would favour low counts, and lose light.  A variance
        that is far larger than expected has another reason, and is kept.
        """
        known, sky = self.weight > 0, self.each(self.sky_variance)
        bright = expected > _BRIGHT * expected.max(axis=(1, 2), keepdims=True)
        bright &= known
        light = float(expected[bright].sum(dtype=float))
        excess = float((self.variance - sky)[bright].sum(dtype=float))
        per_light = max(0.0, excess / light) if light > 0 else 0.0
        smooth = sky + per_light * np.maximum(expected, 0)
        smooth = np.where(self.variance > _FAR_LARGER * smooth, self.variance, smooth)
        return dataclasses.replace(self, weight=known / smooth)

    @property
    def sky_free(self) -> Array:
        return self.known * (self.data - self.each(self.level))


@dataclasses.dataclass(frozen=True)
class _Moffat:
    """Elliptical profile of unit flux: a Moffat profile plus turbulence's of the same half width.

    ``half_width`` is at half maximum, pixels; ``inverse_beta`` 1/beta of the Moffat profile;
    ``turbulence`` the share of turbulence's.  ``slope`` has the coefficients of ln(width) over the
    field (`polynomials.chebyshev_terms(2)` without the first), ``misfit`` the relative difference
    of the mean star's core from the profile, and ``diffraction`` the share of diffracted light;
    None where it is not fitted.
    """

    half_width: float
    inverse_beta: float
    turbulence: float = 0.0
    shear: tuple[float, float] = (0.0, 0.0)
    slope: tuple[float, ...] = _NO_SLOPE
    misfit: float = 0.0
    diffraction: float | None = None

    def __call__(self, dx: Array, dy: Array, stretch: Any = 1.0) -> Array:
        width2 = (self.half_width * stretch) ** 2
        square = self.square(dx, dy) / width2
        if square.size < _NODES:
            return self._at(square) / width2
        # Powers are slow: interpolate a table in ln(1 + r²), in which the profile is smooth.
        square += 1
        far = np.log(square, out=square)
        step = float(far.max()) / (_NODES - 1)
        usual = float(np.mean(width2))
        profile = self._at(np.expm1(step * np.arange(_NODES + 1))) / usual
        far *= 1 / step
        node = far.astype(np.int32)
        far -= node
        far *= np.take(np.diff(profile).astype(far.dtype), node)
        far += np.take(profile.astype(far.dtype), node)
        far *= usual / width2
        return far

    def _at(self, square: Array) -> Array:
        """Profile, of half width 1, at squared distances."""
        return np.sum([share * _moffat(square, *shape) for share, *shape in self.parts], axis=0)

    def slopes_at(self, square: Array) -> tuple[Array, Array, Array, Array, Array]:
        """The same, and its derivatives.

        They are by the squared distance, 1/beta, and the shares of turbulence and of diffracted
        light.
        """
        own, own_fall, by_inverse_beta = _moffat_slopes(square, self.inverse_beta, 1.0)
        blurred, blurred_fall = np.zeros((2, *np.shape(square)))
        for share, beta, width in _TURBULENCE:
            value, fall, _ = _moffat_slopes(square, beta, width)
            blurred += share * value
            blurred_fall += share * fall
        far, far_fall, _ = _moffat_slopes(square, _DIFFRACTION, 1.0)
        turbulence, diffracted = self.turbulence, self.diffracted
        rest = 1 - turbulence - diffracted
        by_turbulence = blurred - own
        if self.diffraction is None and 0 < turbulence < 1:
            by_turbulence += _SCATTERED * (far - own)
        return (
            rest * own + turbulence * blurred + diffracted * far,
            rest * own_fall + turbulence * blurred_fall + diffracted * far_fall,
            rest * by_inverse_beta,
            by_turbulence,
            far - own,
        )

    @property
    def diffracted(self) -> float:
        """Share of diffracted light: the fitted one, or the usual one beside turbulence."""
        if self.diffraction is not None:
            return self.diffraction
        return _SCATTERED * min(max(self.turbulence, 0.0), 1.0)

    @property
    def parts(self) -> list[tuple[float, float, float]]:
        """Share, 1/beta and half width, over the whole's, of each Moffat profile in the sum."""
        diffracted = self.diffracted
        own = (1 - self.turbulence - diffracted, self.inverse_beta, 1.0)
        parts = [(self.turbulence * share, beta, width) for share, beta, width in _TURBULENCE]
        if diffracted:
            parts.append((diffracted, _DIFFRACTION, 1.0))
        return [own, *parts]

    def square(self, dx: Array, dy: Array) -> Array:
        """Squared elliptical distances: on an ellipse, those of the circle of equal area."""
        size = math.hypot(*self.shear)
        along = math.sinh(size) / size if size > 0 else 1.0
        round_, first = math.cosh(size), along * self.shear[0]
        result: Array = (round_ - first) * dx**2 + (round_ + first) * dy**2
        if self.shear[1]:
            result -= (2 * along * self.shear[1] * dx) * dy
        return result

    def square_slopes(self, dx: Array, dy: Array) -> tuple[Array, Array, Array, Array]:
        """Derivatives of `square` by dx, dy and both components of the shear."""
        size = math.hypot(*self.shear)
        along = math.sinh(size) / size if size > 0 else 1.0
        first, second = self.shear
        by_dx = 2 * ((math.cosh(size) - along * first) * dx - along * second * dy)
        by_dy = 2 * ((math.cosh(size) + along * first) * dy - along * second * dx)
        # With z = size: d cosh(z) = along · s·ds, and d along = bend · s·ds.
        bend = (math.cosh(size) - along) / size**2 if size > 1e-4 else 1 / 3
        straight, diagonal = dx**2 - dy**2, 2 * dx * dy
        both = along * (dx**2 + dy**2) - bend * (first * straight + second * diagonal)
        return by_dx, by_dy, first * both - along * straight, second * both - along * diagonal

    def beyond(self, side: int) -> float:
        """Share of the light outside of a square around the middle."""
        angle = 2 * np.pi * (np.arange(_ANGLES) + 0.5) / _ANGLES
        x, y = np.cos(angle), np.sin(angle)
        metric = self.square(x, y)
        # Integrate along each direction from the square's edge to infinity.
        start = side / 2 / np.maximum(abs(x), abs(y)) / self.half_width
        square = start**2 * metric
        light = sum(share * _moffat_beyond(square, *shape) for share, *shape in self.parts)
        return float((light / metric).mean())

    def centred(self, side: int, stretch: Any = 1.0) -> Array:
        """Stamp of a star centred on the middle pixel, by default in the middle of the frame."""
        offset = np.arange(side) - side // 2
        return self(offset[None, :], offset[:, None], stretch)

    def at(self, stars: _Stars, side: int, factor: float = 1.0) -> Array:
        """Stamps of stars at their own centres, ``(n, side, side)``; widths times a factor."""
        offset = np.arange(side, dtype=stars.data.dtype) - side // 2
        columns = offset[None, None, :] - stars.each(stars.dx)
        rows = offset[None, :, None] - stars.each(stars.dy)
        stretch = factor * self.stretch(stars.terms(_SLOPE_ORDER))
        return self(columns, rows, stretch.astype(stars.data.dtype, copy=False))

    def stretch(self, terms: Array) -> Array:
        """Local widths over ``half_width``, ``(n, 1, 1)``."""
        return np.exp(terms[:, 1:] @ np.array(self.slope))[:, None, None]


def _moffat(square: Array, inverse_beta: float, half_width: float) -> Array:
    """Moffat profile of unit flux at squared distances."""
    scale2 = half_width**2 / math.expm1(inverse_beta * math.log(2))
    norm = (1 / inverse_beta - 1) / (math.pi * scale2)
    result: Array = norm * (1 + square / scale2) ** (-1 / inverse_beta)
    return result


def _moffat_slopes(
    square: Array, inverse_beta: float, half_width: float
) -> tuple[Array, Array, Array]:
    """Moffat profile of unit flux, and its derivatives by the squared distance and by 1/beta."""
    power = math.exp(inverse_beta * math.log(2))
    scale2, beta = half_width**2 / (power - 1), 1 / inverse_beta
    part = square / scale2
    inverse = 1 / (1 + part)
    logarithm = -np.log(inverse)
    value = (beta - 1) / (math.pi * scale2) * np.exp(-beta * logarithm)
    fall = -beta / scale2 * value * inverse
    # Of ln(scale²) by 1/beta.
    narrower = -math.log(2) * power / (power - 1)
    by_beta = -(beta**2) / (beta - 1) - narrower + beta**2 * logarithm
    by_beta += beta * narrower * part * inverse
    return value, fall, value * by_beta


def _moffat_beyond(square: Array, inverse_beta: float, half_width: float) -> Array:
    """Share of a Moffat profile's light beyond squared distances."""
    scale2 = half_width**2 / math.expm1(inverse_beta * math.log(2))
    result: Array = (1 + square / scale2) ** (1 - 1 / inverse_beta)
    return result


class MeasuredPsf(NamedTuple):
    """PSF measured from stars.

    Attributes
    ----------
    images
        ``(n_terms, size, size)`` images for ``polynomials.chebyshev_terms(order)`` of
        2(x + 0.5)/nx - 1 and the like in y; 0 for terms for which stars are too few.  The first
        has sum 1, all others sum 0: the PSF has unit sum everywhere.
    stars
        Number of stars used.
    enclosed
        Share of a star's light inside of the images.
    flux_error
        Standard deviation of the logarithm of fluxes that the PSF measures, which depends on how
        well the stars determine the light in the wings.
    """

    images: Array
    stars: int
    enclosed: float
    flux_error: float


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
) -> MeasuredPsf:
    """Measure the PSF of an image from its stars.

    Parameters
    ----------
    image, variance
        ``(ny, nx)``; any smooth background.
    bad
        ``(ny, nx)`` boolean: pixels not to use.
    x, y
        ``(n,)`` 0-based positions of unsaturated stars, good to a pixel, the most significant
        first: 200 are looked at, and 100 used.  Faint neighbours and small galaxies among them do
        no harm.
    size
        Odd side of the PSF images.
    order
        Largest total order of the variation; lowered where stars are few.

    Returns
    -------
    psf
        `MeasuredPsf`.

    Raises
    ------
    ArgumentError
        If the side is even.
    DataError
        If fewer than 3 stars can be used.

    Notes
    -----
    The PSF is an analytic profile and a table of its residuals (as in DAOPHOT, Stetson 1987).
    The profile is evaluated at every star's own centre, so that only the small residuals are
    interpolated; they are fitted pixel by pixel, and vary with the position.  Profile and table
    are fitted in turns with the stars' centres, fluxes and local backgrounds.  Residuals are
    shrunk ring by ring to their excess over noise: wings that are lost in noise are the
    profile's.  Sources wider than the stars around them are left out.  Where rings around the
    brightest stars show an aperture's diffraction, the profile has light that falls with the
    third power of the distance; half of the light outside of the images then counts as error.
    """
    if size % 2 == 0:
        raise ArgumentError(f"The side of a PSF image must be odd; got {size}.")
    stars = _in_units_of_the_noise(_cut(image, variance, bad, x, y, size))
    if len(stars) < _FEWEST:
        raise DataError(f"Only {len(stars)} stars can be used; a PSF needs {_FEWEST}.")
    width = _recentre(stars, size // 4)
    if not width > 0:
        raise DataError(f"{len(stars)} stars have no common profile; give a PSF.")
    profile = _Moffat(width / 2, 1 / 5, _USUAL_SHARE[0], _shear(stars, width))
    if width < UNDERSAMPLED_FWHM:
        profile = dataclasses.replace(profile, diffraction=_USUAL_DIFFRACTION[0])
        return _measure_narrow(stars, profile, size, order)
    return _measure_wide(stars, profile, size, order)


def _measure_wide(stars: _Stars, profile: _Moffat, size: int, order: int) -> MeasuredPsf:
    """PSF of stars whose residuals can be interpolated.

    Where rings around bright stars show diffracted light, all is measured again with such light.
    """
    first, unseen = (stars, profile), 0.0
    residual = _first_residual(stars, profile, size)
    has_shape = bool(residual.any())
    # If stars have a shape of their own, their common light far out must not count as neighbours.
    stars.alike[:] = has_shape
    passes = _PASSES if profile.diffraction is None else _DIFFRACTED_PASSES
    for iteration in range(passes):
        last = iteration == passes - 1
        stars, used, weight, alike = _stars_apart(
            stars, profile, residual, size, first=iteration == 0
        )
        if iteration == 0 and profile.diffraction is None:
            diffracted, unseen = _diffraction(used, profile)
            if diffracted is not None:
                return _measure_wide(first[0], diffracted, size, order)
        left, weight = _left(used, weight, profile)
        if not last:
            before = profile
            if profile.diffraction is None:
                profile, scale = _fit_profile(profile, left, weight)
            else:
                fit = _fit_rings(
                    _rings(left, weight, profile), profile, diffracted=True, off=_RINGED_LIGHT
                )
                profile, scale = fit.profile, fit.scale
            profile = dataclasses.replace(
                profile, slope=tuple(np.add(profile.slope, alike.slope).tolist())
            )
            stars.flux, used.flux = stars.flux * scale, used.flux * scale
            side, terms = left.shape[1], used.terms(_SLOPE_ORDER)
            change = before.centred(side, before.stretch(terms)) / scale
            change -= profile.centred(side, profile.stretch(terms))
            left = left / scale + change
        if iteration > 0 or has_shape:
            own = order
            while own and len(used) < _STARS_PER_TERM * (own + 1) * (own + 2) // 2:
                own -= 1
            residual = _vary(left, weight, used, profile, size, own)
    if profile.diffraction is None:
        known = _flux_error(left, weight, profile)
    else:
        fit = _fit_rings(_rings(left, weight, profile), profile, diffracted=True, off=_KNOWN_CORE)
        known = math.sqrt(fit.covariance[0, 0])
    error = math.hypot(known, alike.error, unseen)
    # Small galaxies among the stars make profile and table too wide: narrow the profile.
    profile = dataclasses.replace(profile, half_width=profile.half_width * math.exp(alike.wider))
    coefficients = _expansion(profile, size, order)
    coefficients[: len(residual)] += residual
    inside, beyond = float(coefficients[0].sum()), profile.beyond(size)
    if profile.diffraction is not None:
        beyond *= _FARTHER
        # Farther out than stamps reach, the profile is no better than it is in the rings.
        error = math.hypot(error, _RINGS_DIFFER * beyond)
    return MeasuredPsf(unit_sum(coefficients), len(used), inside / (inside + beyond), error)


def _first_residual(stars: _Stars, profile: _Moffat, size: int) -> Array:
    """Residual of a typical bright star from the profile, ``(1, size, size)``; 0 if small.

    Stars that no profile resembles, such as rings or double peaks, need it: a fit of the profile
    cannot tell stars from other sources before their shape is known.
    """
    bright = stars.part(np.arange(len(stars)) < _SHARERS)
    data = _moved(bright.sky_free, -bright.dx, -bright.dy)
    margin = (data.shape[1] - size) // 2
    data = data[:, margin : margin + size, margin : margin + size]
    offset = np.arange(size) - size // 2
    square = profile.square(offset[None, :], offset[:, None]) / profile.half_width**2
    own, core = profile.centred(size), square < _WINGS_FROM**2
    scale = np.einsum("nij,ij->n", data, own * core) / float((own[core] ** 2).sum())
    good = scale > 0
    if good.sum() < _FEWEST:
        return np.zeros((1, size, size))
    unit = data[good] / scale[good, None, None]
    typical = np.median(unit, axis=0)
    noise = MAD_TO_SIGMA * np.median(abs(unit - typical), axis=0)
    # The median of a few stars may still hold a neighbour of one of them.
    reach = _SHAPE_REACH if good.sum() >= _FEWEST_SHARERS else _WINGS_FROM
    near = square < reach**2
    left = np.where(near, typical - own, 0.0)
    excess = float((left**2 - noise**2 / good.sum())[near].sum())
    is_far_off = excess > _FAR_OFF**2 * float((own**2).sum())
    return left[None] if is_far_off else np.zeros((1, size, size))


def _stars_apart(
    stars: _Stars, profile: _Moffat, residual: Array | FineTable | None, size: int, *, first: bool
) -> tuple[_Stars, _Stars, Array, _Alike]:
    """Sources with their fits, the stars among them, the stars' weights, and `_Alike`."""
    # A PSF may be measured beside the main thread, which waits for it when it is interrupted.
    heed()
    stars, model, weight = _fit_stars(stars, profile, residual, size)
    if len(stars) < _FEWEST:
        raise DataError(f"Only {len(stars)} stars could be fitted; a PSF needs {_FEWEST}.")
    alike = _alike(stars, model, weight, profile)
    stars.alike = np.isin(np.arange(len(stars)), alike.which)
    if first:
        # Now light that stars have in common, such as rings, is known not to be neighbours.
        stars, model, weight = _fit_stars(stars, profile, residual, size)
        alike = _alike(stars, model, weight, profile)
    return stars, stars.part(alike.which), weight[alike.which], alike


def _measure_narrow(stars: _Stars, profile: _Moffat, size: int, order: int) -> MeasuredPsf:
    """PSF of stars that are too narrow for the pixels.

    Such stars cannot be interpolated.  Profile and table are fitted to pixels at the stars' own
    centres.  The PSF is the mean of its images at places all over a pixel, each moved to the
    middle: the fluxes that it measures are right on average over these places.
    """
    # Differences of profiles stand for derivatives here, which single precision would drown.
    stars = stars.in_double_precision()
    table: FineTable | None = None
    for iteration in range(_NARROW_PASSES):
        stars, used, weight, alike = _stars_apart(stars, profile, table, size, first=iteration == 0)
        weight = weight * used.flux[:, None, None] ** 2
        if iteration < _NARROW_PASSES - 1:
            profile, scale = _fit_narrow(profile, used, weight)
            profile = dataclasses.replace(
                profile, slope=tuple(np.add(profile.slope, alike.slope).tolist())
            )
            stars.flux, used.flux = stars.flux * scale, used.flux * scale
            weight = weight * scale**2
        if iteration:
            table = _table(profile, used, weight)
    images, scatter = _over_phases(profile, table, size, order)
    inside, beyond = float(images[0].sum()), profile.beyond(size)
    enclosed = inside / (inside + beyond)
    # Farther out than stamps reach, the profile is no better than it is in the rings.
    known = _narrow_flux_error(profile, used, weight)
    error = math.hypot(known, scatter, _RINGS_DIFFER * beyond, alike.error)
    return MeasuredPsf(unit_sum(images), len(used), enclosed, error)


def _unit_rest(profile: _Moffat, stars: _Stars) -> Array:
    """Residuals of stars of unit flux from the profile, at their own centres."""
    rest: Array = stars.sky_free / stars.each(stars.flux)
    rest -= profile.at(stars, rest.shape[1])
    return rest.astype(np.float64)


def _brightest(stars: _Stars, weight: Array) -> tuple[_Stars, Array]:
    first = np.argsort(-stars.flux, kind="stable")[:_NARROW_STARS]
    return stars.part(first), weight[first]


def _with_floor(weight: Array, floor: Array) -> Array:
    result: Array = np.where(weight > 0, 1 / (1 / np.where(weight > 0, weight, 1) + floor**2), 0.0)
    return result


def _fit_narrow(profile: _Moffat, stars: _Stars, weight: Array) -> tuple[_Moffat, float]:
    """Profile fitted to stars at their own centres, and their flux over the assumed one."""
    stars, weight = _brightest(stars, weight)
    side = stars.data.shape[1]
    current = profile.at(stars, side)
    data = stars.sky_free / stars.flux[:, None, None]
    robust = _with_floor(weight, max(_FLOOR, _WINGS_ALONE * profile.misfit) * current)

    def shaped(values: Array) -> _Moffat:
        _, log_width, inverse_beta, share, first, second, diffraction = map(float, values)
        return dataclasses.replace(
            profile,
            half_width=math.exp(log_width),
            inverse_beta=inverse_beta,
            turbulence=share,
            shear=(first, second),
            diffraction=diffraction,
        )

    def rest_of(values: Array) -> Array:
        rest = data - values[0] * shaped(values).at(stars, side)
        # Every star has a level of its own.
        level = (robust * rest).sum(axis=(1, 2)) / total
        result: Array = rest - level[:, None, None]
        return result

    def deviation_of(values: Array) -> Array:
        (usual, spread), (diffracted, off) = _USUAL_SHARE, _USUAL_DIFFRACTION
        expected = [(values[3] - usual) / spread, (values[6] - diffracted) / off]
        return np.append((rest_of(values) * np.sqrt(robust)).ravel(), expected)

    width = math.log(profile.half_width)
    diffraction = 0.0 if profile.diffraction is None else profile.diffraction
    start = [1.0, width, profile.inverse_beta, profile.turbulence, *profile.shear, diffraction]
    lower = [0.2, width - 1, 1 / _BETA[1], _SHARE[0], -1, -1, _DIFFRACTED[0]]
    upper = [5.0, width + 1, 1 / _BETA[0], _SHARE[1], 1, 1, _DIFFRACTED[1]]
    found = np.clip(start, lower, upper)
    for _ in range(2):
        total = np.maximum(robust.sum(axis=(1, 2)), 1e-300)
        found = (
            scipy_part("optimize")
            .least_squares(
                deviation_of,
                found,
                bounds=(lower, upper),
                x_scale=0.1,
                ftol=1e-4,
                max_nfev=_EVALUATIONS,
            )
            .x
        )
        rest = rest_of(found)
        robust = np.where(rest**2 * robust > _CLIP**2, 0.0, robust)
    result = shaped(found)
    columns, rows = _offsets(stars, stars.data.shape[1])
    core = (weight > 0) & (result.square(columns, rows) < (_WINGS_FROM * result.half_width) ** 2)
    noise = 1 / np.where(core, weight, 1)
    light = float(((found[0] * result.at(stars, side))[core] ** 2).sum())
    excess = max(0.0, float((rest**2 - noise)[core & (robust > 0)].sum())) / max(light, 1e-300)
    return dataclasses.replace(result, misfit=math.sqrt(excess)), float(found[0])


def _offsets(stars: _Stars, side: int) -> tuple[Array, Array]:
    """Offsets of pixels from their star's centre, columns and rows: ``(n, side, side)``."""
    offset = np.arange(side) - side // 2
    columns = offset[None, None, :] - stars.dx[:, None, None]
    rows = offset[None, :, None] - stars.dy[:, None, None]
    both = np.broadcast_arrays(columns, rows)
    return both[0], both[1]


def _table(profile: _Moffat, stars: _Stars, weight: Array) -> FineTable:
    """Table of stars' residuals from the profile: finer than pixels, and in rings farther out."""
    columns, rows = _offsets(stars, stars.data.shape[1])
    inverse, radius = weight, np.hypot(columns, rows)
    weight = _with_floor(weight, _FLOOR * profile.at(stars, stars.data.shape[1]))
    reach = _TABLE_REACH * 2 * profile.half_width
    near = radius < reach + 1
    plain = dataclasses.replace(profile, slope=_NO_SLOPE)
    left = _unit_rest(profile, stars)
    own = profile.at(stars, left.shape[1])
    rings = fitted_rings(left, inverse, own, radius, first=reach, off=_RINGS_DIFFER)
    rings[: math.ceil(reach)] = 0
    rest, weight, columns, rows = (each[near] for each in (left, weight, columns, rows))
    table = fitted_table(rest, weight, columns, rows, plain, reach=reach)
    far = (rest - table(columns, rows)) ** 2 * weight > _CLIP**2
    table = fitted_table(rest, np.where(far, 0.0, weight), columns, rows, plain, reach=reach)
    return dataclasses.replace(table, rings=rings)


def _over_phases(
    profile: _Moffat, table: FineTable | None, size: int, order: int
) -> tuple[Array, float]:
    """Mean of the PSF's images at places all over a pixel, as polynomials of the position.

    Also the relative scatter of the fluxes that it measures at those places.
    """
    offset = np.arange(size) - size // 2
    place = (np.arange(_PHASES) + 0.5) / _PHASES - 0.5
    dx, dy = (a.ravel() for a in np.meshgrid(place, place))
    columns, rows = np.broadcast_arrays(
        offset[None, None, :] - dx[:, None, None], offset[None, :, None] - dy[:, None, None]
    )
    left = np.zeros(columns.shape) if table is None else table(columns, rows)

    def back(images: Array) -> Array:
        return moved_stamps(images, -dy, -dx, size // 2)[0]

    u, v = _nodes()
    stretch = profile.stretch(chebyshev_products(_SLOPE_ORDER, u, v))
    images = np.stack([back(profile(columns, rows, each)).mean(axis=0) for each in stretch])
    terms = chebyshev_products(order, u, v)
    flat = np.linalg.lstsq(terms, images.reshape(len(u), -1), rcond=None)[0]
    found = flat.reshape(-1, size, size)
    if table is not None:
        found[0] += back(left).mean(axis=0)
    at_phases = back(profile(columns, rows) + left)
    fluxes = np.einsum("nij,ij->n", at_phases, found[0]) / float((found[0] ** 2).sum())
    return found, float(np.std(fluxes))


def _narrow_flux_error(profile: _Moffat, stars: _Stars, weight: Array) -> float:
    """Relative error of the light as from `_flux_error`, but for stars at their own centres.

    Rings lie around each star's own centre; an error of the profile in a ring is common to all.
    """
    stars, weight = _brightest(stars, weight)
    own = profile.at(stars, stars.data.shape[1])
    across, along = _offsets(stars, stars.data.shape[1])
    ring = np.floor(_RINGS * np.sqrt(profile.square(across, along)) / profile.half_width)
    ring = np.unique(ring, return_inverse=True)[1].reshape(own.shape)
    diffraction = 0.0 if profile.diffraction is None else profile.diffraction
    changed = [
        dataclasses.replace(profile, half_width=profile.half_width * (1 + _STEP)),
        dataclasses.replace(profile, inverse_beta=profile.inverse_beta - _STEP / 5),
        dataclasses.replace(profile, turbulence=profile.turbulence + _STEP),
        dataclasses.replace(profile, diffraction=diffraction + _STEP),
    ]
    slopes = [(each.at(stars, own.shape[1]) - own) / _STEP for each in changed]
    rings = int(ring.max()) + 1
    parameters = 1 + len(slopes)
    normal = np.zeros((_GROUPS, parameters + rings, parameters + rings))
    right = np.zeros((_GROUPS, parameters + rings))
    rest = _unit_rest(profile, stars)
    for k in range(len(stars)):
        columns = np.zeros((own[k].size, parameters + rings))
        columns[:, :parameters] = np.stack([own[k], *(each[k] for each in slopes)], -1).reshape(
            -1, parameters
        )
        columns[np.arange(len(columns)), parameters + ring[k].ravel()] = own[k].ravel()
        weights = weight[k].ravel()
        weighed = columns * weights[:, None]
        # Less the star's own level.
        mean = weighed.sum(axis=0) / max(float(weights.sum()), 1e-300)
        values = rest[k].ravel()
        normal[k % _GROUPS] += columns.T @ weighed - np.outer(mean, mean) * weights.sum()
        right[k % _GROUPS] += weighed.T @ values - mean * float(weights @ values)
    (usual, spread), (diffracted, off) = _USUAL_SHARE, _USUAL_DIFFRACTION
    prior = np.full(parameters + rings, _RING_FLOOR**-2.0)
    prior[:parameters] = 0, _PROFILE_WIDTH_ERROR**-2, _FALL_ERROR**-2, spread**-2, off**-2
    pull = np.zeros(len(prior))
    pull[3:parameters] = usual - profile.turbulence, diffracted - diffraction

    def solved(normal: Array, right: Array) -> tuple[float, float]:
        inverse = np.linalg.inv(normal + np.diag(prior))
        variance = inverse[0, 0] if inverse[0, 0] > 0 else 1.0
        return float((inverse @ (right + prior * pull))[0]), math.sqrt(variance)

    _, formal = solved(normal.sum(axis=0), right.sum(axis=0))
    filled = range(min(_GROUPS, len(stars)))
    left_out = [solved(normal.sum(0) - normal[k], right.sum(0) - right[k])[0] for k in filled]
    return max(formal, math.sqrt((len(left_out) - 1) * float(np.var(left_out))))


def unit_sum(coefficients: Array) -> Array:
    """Polynomial images, scaled to unit sum everywhere.

    Parameters
    ----------
    coefficients
        ``(n_terms, ny, nx)``, the constant term first.

    Returns
    -------
    coefficients
        The first has sum 1, all others sum 0.
    """
    coefficients = coefficients / coefficients[0].sum()
    coefficients[1:] -= coefficients[1:].sum(axis=(1, 2))[:, None, None] * coefficients[0]
    return coefficients


def star_width(image: Array, bad: Array, x: Array, y: Array, *, reach: int) -> float:
    """Full width at half maximum of an image's stars.

    Parameters
    ----------
    image
        ``(ny, nx)``; any smooth background.
    bad
        ``(ny, nx)`` boolean: pixels not to use.
    x, y
        ``(n,)`` 0-based positions, good to a few pixels, the most significant first.
    reach
        Pixels around a star that hold its profile, and some background.

    Returns
    -------
    fwhm
        Full width of the stars' median, pixels, each star of unit flux and moved to the middle by
        its own centroid; of fewer than ten stars, the mean.  NaN if no star can be used.
    """
    x, y = x[:_WIDTH_STARS], y[:_WIDTH_STARS]
    stars = _cut(image, np.ones((1, 1)), bad, x, y, 2 * reach + 1, outer=0)
    return _recentre(stars, reach) if len(stars) else math.nan


def _cut(
    image: Array,
    variance: Array,
    bad: Array,
    x: Array,
    y: Array,
    size: int,
    *,
    outer: int | None = None,
) -> _Stars:
    """Stamps with their surroundings, the most significant stars first."""
    half = size // 2
    reach = half + (max(half // 2, 4) if outer is None else outer)
    ny, nx = image.shape
    offset = np.arange(-reach, reach + 1)
    radius = np.hypot(offset[:, None], offset[None, :])
    square = np.maximum(abs(offset)[:, None], abs(offset)[None, :])
    core, within = radius <= max(2, size / 8), square <= half
    middle = square <= _MIDDLE
    border = square > (half if outer is None else half - 2)
    found: list[tuple[Any, ...]] = []
    for x_star, y_star in zip(x[:_MOST_OFFERED], y[:_MOST_OFFERED], strict=True):
        i, j = math.floor(x_star + 0.5), math.floor(y_star + 0.5)
        if not (0 <= i < nx and 0 <= j < ny):
            continue
        rows, columns = offset + j, offset + i
        around = np.ix_(rows.clip(0, ny - 1), columns.clip(0, nx - 1))
        inside = ((rows >= 0) & (rows < ny))[:, None] & ((columns >= 0) & (columns < nx))[None, :]
        data = image[around].astype(np.float64)
        noise = variance[around] if variance.size > 1 else np.ones(data.shape)
        good = inside & ~bad[around] & np.isfinite(data) & np.isfinite(noise) & (noise > 0)
        if (
            good[within].mean() < _USABLE_FRACTION
            or good[core].mean() < _USABLE_FRACTION
            or np.count_nonzero(~good[middle]) > _MOST_BAD_MIDDLE
        ):
            continue
        sky = data[border & good]
        level = clipped_median(sky) if len(sky) > size else 0.0
        around_it = noise[border & good]
        sky_noise = clipped_mean(around_it if len(around_it) > size else noise[good])
        noise = np.where(good, noise, sky_noise)
        data, hole = patched(data - level, ~good)
        flux = float(data[core].sum())
        if flux > 0:
            # Rank stars as if no pixel were bad.
            rank = flux / math.sqrt(float(np.median(noise[core & good])))
            place = i, j, float(x_star) - i, float(y_star) - j
            found.append((rank, data, noise, good / noise, ~hole, *place, flux, 0.0, sky_noise))
    found.sort(key=lambda star: -star[0])
    columns = list(zip(*found[:_MOST], strict=True))[1:] or [()] * 11
    unknown = np.zeros(len(columns[0]), dtype=bool)
    return _Stars((ny, nx), *[np.array(column) for column in [*columns, unknown]])


def _in_units_of_the_noise(stars: _Stars) -> _Stars:
    """Stars in a unit near their noise, so that no squared value is very large or small.

    In this unit, without the sky, single precision holds a pixel to far below its noise.
    """
    weights = stars.weight[stars.weight > 0]
    # The noise itself: single precision then rounds alike whatever the image's unit.
    unit = float(np.median(weights)) ** -0.5 if weights.size else 1.0
    return dataclasses.replace(
        stars,
        data=(stars.data / unit).astype(np.float32),
        variance=(stars.variance / unit**2).astype(np.float32),
        sky_variance=stars.sky_variance / unit**2,
        weight=(stars.weight * unit**2).astype(np.float32),
        flux=stars.flux / unit,
    )


def clipped_mean(values: Array) -> float:
    """Mean of the values within 4 sigma of their median."""
    middle = float(np.median(values))
    limit = _CLIP * median_deviation(values, about=middle)
    return float(values[abs(values - middle) <= limit].mean())


def clipped_median(values: Array) -> float:
    """Median of the values, clipped at 2.5 sigma."""
    for _ in range(3):
        middle = float(np.median(values))
        near = abs(values - middle)
        limit = 2.5 * median_deviation(values, about=middle)
        if not limit > 0:
            break
        values = values[near <= limit]
    return float(np.median(values))


def _recentre(stars: _Stars, reach: int) -> float:
    """Find the stars' centres, with a Gaussian window of their own width; return their width."""
    middle, side = stars.data.shape[1] // 2, 2 * reach + 1
    offset = np.arange(side) - reach
    data = stars.sky_free[
        :, middle - reach : middle + reach + 1, middle - reach : middle + reach + 1
    ]
    sigma, width = max(1.5, side / 16), math.nan
    for _ in range(3):
        for _ in range(4):
            columns = offset[None, :] - stars.dx[:, None]
            rows = offset[None, :] - stars.dy[:, None]
            # A star that the window loses stays where it was found.
            across = np.exp(-0.5 * (columns / sigma) ** 2)
            along = np.exp(-0.5 * (rows / sigma) ** 2)
            total = np.einsum("nyx,ny,nx->n", data, along, across)
            total = np.where(total > 0, total, np.inf)
            # The window halves the displacement of a source of its own width.
            step_x = 2 * np.einsum("nyx,ny,nx->n", data, along, across * columns) / total
            step_y = 2 * np.einsum("nyx,ny,nx->n", data, along * rows, across) / total
            stars.dx = stars.dx + step_x.clip(-1, 1)
            stars.dy = stars.dy + step_y.clip(-1, 1)
        lost = np.hypot(stars.dx, stars.dy) > reach / 2
        stars.dx[lost], stars.dy[lost] = 0.0, 0.0
        centred = _moved(data, -stars.dx, -stars.dy)
        rows, columns = np.exp(-0.5 * (offset / sigma) ** 2), np.exp(-0.5 * (offset / sigma) ** 2)
        flux = np.einsum("nyx,y,x->n", centred, rows, columns)
        good = flux > 0
        if not good.any():
            return math.nan
        typical = _typical(centred[good], flux[good])
        if not typical.max() > 0:
            return math.nan
        width = full_width_half_maximum(typical)
        peak = np.array(np.unravel_index(int(np.argmax(typical)), typical.shape)) - reach
        if math.hypot(*peak) > width / 2 + 1:
            # Stars with several peaks: a narrower window would centre each on another peak.
            break
        sigma = max(0.8, FWHM_TO_SIGMA * width)
    if width < _FINE:
        # The typical star was widened by interpolation once.  Moved there and back, it is widened
        # by as much again, which shows the amount.
        alike = typical * flux[good, None, None]
        there = _moved(alike, stars.dx[good], stars.dy[good])
        back = _moved(there, -stars.dx[good], -stars.dy[good])
        width -= full_width_half_maximum(_typical(back, flux[good])) - width
    return width


def _shear(stars: _Stars, width: float) -> tuple[float, float]:
    """Elongation of the typical star, along the axes and the diagonals, by its second moments."""
    brightest = stars.part(np.arange(len(stars)) < _SHARERS)
    typical = _typical(brightest.sky_free, brightest.flux)
    offset = np.arange(len(typical)) - len(typical) // 2
    window2 = (FWHM_TO_SIGMA * width) ** 2
    light = typical * np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * window2))
    place = np.stack(np.meshgrid(offset, offset)).reshape(2, -1)
    if not light.sum() > 0:
        return 0.0, 0.0
    moments = (light.ravel() * place) @ place.T / light.sum()
    # The window narrows the star: correct its moments for that.
    values, axes = np.linalg.eigh(moments)
    if not 0 < values[0] <= values[1] < _MOST_OF_WINDOW * window2:
        return 0.0, 0.0
    widths = 1 / (1 / values - 1 / window2)
    size = 0.5 * np.log(widths[1] / widths[0])
    stretch = size * (np.outer(axes[:, 1], axes[:, 1]) - np.outer(axes[:, 0], axes[:, 0]))
    first, second = np.clip(stretch[0], -_MOST_SHEAR, _MOST_SHEAR).tolist()
    return first, second


def _typical(stamps: Array, flux: Array) -> Array:
    """Median of stars of unit flux; for few stars, the mean, weighted by flux."""
    if len(stamps) < _ENOUGH_FOR_MEDIAN:
        mean: Array = stamps.sum(axis=0) / flux.sum()
        return mean
    median: Array = np.median(stamps / flux[:, None, None], axis=0)
    return median


def _moved(stamps: Array, dx: Array, dy: Array) -> Array:
    """Stamps moved by parts of a pixel."""
    return shifted_stamps(stamps, dy, dx, order=5, mode="nearest")


def _nodes() -> tuple[Array, Array]:
    """Columns and rows of places all over the frame, from -1 to 1: ``(25,)`` each."""
    nodes = np.cos(np.pi * (np.arange(5) + 0.5) / 5)
    column, row = np.meshgrid(nodes, nodes)
    return column.ravel(), row.ravel()


def _expansion(profile: _Moffat, size: int, order: int) -> Array:
    """The profile with its varying width, as polynomials of the position."""
    column, row = _nodes()
    stretch = profile.stretch(chebyshev_products(_SLOPE_ORDER, column, row))
    images = profile.centred(size, stretch).reshape(len(column), -1)
    terms = chebyshev_products(order, column, row)
    return np.linalg.lstsq(terms, images, rcond=None)[0].reshape(-1, size, size)


def _models(
    profile: _Moffat, residual: Array | FineTable | None, stars: _Stars, half: int | None = None
) -> Array:
    """Every star's PSF, ``(n, side, side)``, or its middle of ``2 half + 1`` pixels a side."""
    side = stars.data.shape[1] if half is None else 2 * half + 1
    model = profile.at(stars, side)
    if residual is None:
        return model
    if isinstance(residual, FineTable):
        model += residual(*_offsets(stars, side))
        return model
    if residual.any():
        order = (math.isqrt(8 * len(residual) + 1) - 3) // 2
        terms = stars.terms(order).astype(model.dtype)
        local = np.tensordot(terms, residual.astype(model.dtype), axes=1)
        reach = min(side, residual.shape[1]) // 2
        inner = _middle(side, reach)
        model[inner] += shifted_stamps(local, stars.dy, stars.dx, order=3, half=reach)
    return model


def _middle(side: int, half: int) -> Any:
    """Slices of the middle of stamps, ``2 half + 1`` pixels a side."""
    part = slice(side // 2 - half, side // 2 + half + 1)
    return np.s_[:, part, part]


def _core(side: int, reach: float) -> tuple[int, Array]:
    """Half side of the middle of stamps that holds a circle, and the circle's pixels in it."""
    half = min(math.ceil(reach) + 1, side // 2)
    offset = np.arange(-half, half + 1)
    return half, np.hypot(offset[:, None], offset[None, :]) <= reach


def _fit_stars(
    stars: _Stars, profile: _Moffat, residual: Array | FineTable | None, size: int
) -> tuple[_Stars, Array, Array]:
    """Fit fluxes, centres and levels; return stars, models, and weights without neighbours."""
    side = stars.data.shape[1]
    offset = np.arange(side) - side // 2
    around = (
        profile.square(offset[None, :], offset[:, None]) > (_LEVEL_FROM * profile.half_width) ** 2
    )
    reach = 2.5 * profile.half_width
    core = np.hypot(offset[:, None], offset[None, :]) <= reach
    half, circle = _core(side, reach)
    box = _middle(side, half)
    start = np.stack([stars.dx, stars.dy])
    model = _models(profile, residual, stars)
    stars = stars.weighed(stars.each(stars.flux) * model)
    inner_weight = stars.weight[box].astype(np.float64)
    noise = np.where(inner_weight > 0, 1 / np.where(inner_weight > 0, inner_weight, 1), np.inf)
    sky_free = stars.sky_free[box]
    inner = model[box]
    for _ in range(2):
        by_row, by_column = _slopes(profile, residual, stars, inner, half)
        flux = stars.flux[:, None, None]
        floor = (_FLOOR * flux * inner) ** 2
        weight = circle / (noise + floor)
        columns = np.stack([inner, -flux * by_column, -flux * by_row], 1)
        normal, right = _normal_equations(columns, weight, sky_free)
        values = np.linalg.solve(normal, right[..., None])[..., 0]
        step = values[:, 1:].clip(-_LARGEST_STEP, _LARGEST_STEP)
        stars = dataclasses.replace(
            stars, flux=values[:, 0], dx=stars.dx + step[:, 0], dy=stars.dy + step[:, 1]
        )
        inner = _models(profile, residual, stars, half)
    model = _models(profile, residual, stars)
    expected = stars.each(stars.flux) * model
    rest = (stars.weight > 0) * (stars.data - stars.each(stars.level) - expected)
    if profile.diffraction is not None:
        # The first bright ring, which no profile has, must not be taken for a neighbour.
        core = np.hypot(offset[:, None], offset[None, :]) <= _RINGED * profile.half_width
    if isinstance(residual, np.ndarray):
        core = core | _other_peaks(profile, residual[0], side)
    limit = _NEIGHBOUR[profile.diffraction is not None]
    masked = _without_neighbours(rest, expected, stars, core, profile, limit)
    sky = masked * around
    total = sky.sum(axis=(1, 2), dtype=float)
    change = (sky * rest).sum(axis=(1, 2), dtype=float) / np.where(total > 0, total, np.inf)
    stars = dataclasses.replace(stars, level=stars.level + change)
    good = (stars.flux > 0) & np.isfinite(stars.flux)
    good &= abs(np.stack([stars.dx, stars.dy]) - start).max(0) < 1
    return stars.part(good), model[good], masked[good]


def _normal_equations(columns: Array, weight: Array, values: Array) -> tuple[Array, Array]:
    """Normal matrices ``(n, k, k)`` and right sides ``(n, k)`` of fits to stamps.

    ``columns`` is ``(n, k, ny, nx)``; weights and values are ``(n, ny, nx)``.
    """
    flat = columns.reshape(*columns.shape[:2], -1).astype(np.float64, copy=False)
    weighed = flat * weight.reshape(len(flat), 1, -1)
    right = weighed @ values.reshape(len(flat), -1, 1).astype(np.float64, copy=False)
    return weighed @ flat.transpose(0, 2, 1), right[..., 0]


def _other_peaks(profile: _Moffat, residual: Array, side: int) -> Array:
    """Pixels near peaks of a star that its profile lacks, ``(side, side)``."""
    peak = float((profile.centred(len(residual)) + residual).max())
    large = scipy.ndimage.binary_dilation(residual > _LARGE_PART * peak, iterations=_AROUND_PEAKS)
    found: Array = np.pad(large, (side - len(large)) // 2)
    return found


def _slopes(
    profile: _Moffat, residual: Array | FineTable | None, stars: _Stars, model: Array, half: int
) -> tuple[Array, Array]:
    """Derivatives of the models' middles by row and column."""
    if isinstance(residual, np.ndarray):
        along, across = np.gradient(model, axis=(1, 2))
        return along, across

    def moved(dx: float, dy: float) -> Array:
        there = dataclasses.replace(stars, dx=stars.dx + dx, dy=stars.dy + dy)
        return _models(profile, residual, there, half)

    # Moving the star forwards equals moving the pixels back: hence the signs.
    along = (moved(0, -_TINY) - moved(0, _TINY)) / (2 * _TINY)
    across = (moved(-_TINY, 0) - moved(_TINY, 0)) / (2 * _TINY)
    return along, across


def _without_neighbours(
    rest: Array, expected: Array, stars: _Stars, core: Array, profile: _Moffat, limit: float
) -> Array:
    """Weights, zero where a smoothed residual outside of a star's core exceeds so many sigmas.

    A residual that all stars have in proportion to their light is the PSF's, and no neighbour.
    """
    sigma = max(0.8, 2 * FWHM_TO_SIGMA * profile.half_width)
    weight = stars.weight
    floor = 2 * _FLOOR if profile.diffraction is None else _RING_MISFIT
    inverse = weight / (1 + weight * (floor * expected) ** 2)
    # The square of a Gaussian window is a narrower Gaussian of a smaller sum.
    power = smoothed_stamps(inverse, sigma / math.sqrt(2)) / (4 * math.pi * sigma**2)
    signal = smoothed_stamps(rest * inverse, sigma)
    norm = smoothed_stamps(inverse, sigma)
    signal -= stars.each(stars.flux) * norm * _shared(signal, norm, stars)
    deviate = abs(signal) / np.sqrt(np.where(power > 0, power, np.inf))
    # Unseen sources are under the stars as well as around them, and count as noise: masking those
    # that exceed the pixels' noise would leave a sky darker than the sky under the stars.
    told = deviate[~core & (power > 0)]
    crowding = max(1.0, MAD_TO_SIGMA * float(np.median(told))) if told.size else 1.0
    lower, upper = _CROWDED
    if crowding < lower:
        crowding = 1.0
    # Beyond the upper limit the surroundings say nothing about the wings anyway.
    stands_out = deviate > limit * (crowding if crowding < upper else 1.0)
    stands_out &= ~core
    reach = math.ceil(1.5 * sigma)
    near = grown_stamps(stands_out, reach) & ~core
    unseen = (crowding**2 - 1) * stars.each(stars.sky_variance)
    return ~near * (weight / (1 + weight * unseen))


def _shared(signal: Array, norm: Array, stars: _Stars) -> Array:
    """Common smoothed residual of the brightest stars, for unit flux; 0 where not significant."""
    flux = stars.flux
    bright = np.argsort(-flux * stars.alike * np.sqrt(norm.max(axis=(1, 2))))[:_SHARERS]
    bright = bright[stars.alike[bright]]
    if len(bright) < _FEWEST_SHARERS:
        return np.zeros(signal.shape[1:])
    known = norm[bright] > 0
    unit = np.where(known, signal[bright], 0) / np.where(known, norm[bright], 1)
    unit /= stars.each(flux)[bright]
    common = np.median(unit, axis=0)
    scatter = MAD_TO_SIGMA * np.median(abs(unit - common), axis=0)
    found: Array = np.where(abs(common) > _SHARED * scatter / math.sqrt(len(bright)), common, 0)
    return found


class _Alike(NamedTuple):
    """Stars among sources.

    ``which`` are the stars' indices; ``slope`` has the coefficients of ln(width) over the frame;
    ``wider`` is the excess of the stars' ln(width) over the profile's, and ``error`` its error
    averaged over the frame.
    """

    which: Array
    slope: tuple[float, ...]
    wider: float
    error: float


def _alike(stars: _Stars, model: Array, weight: Array, profile: _Moffat) -> _Alike:
    """Sources that fit and are as narrow as any around: the stars."""
    side = model.shape[1]
    half, circle = _core(side, 3 * profile.half_width)
    box, inner = _middle(side, half), 2 * half + 1
    step = 0.01
    flux = stars.flux[:, None, None]
    expected = flux * model[box]
    width = profile.at(stars, inner, 1 + step) - profile.at(stars, inner, 1 - step)
    by_row, by_column = np.gradient(expected, axis=(1, 2))
    columns = np.stack([expected, by_column, by_row, flux * width / (2 * step)], 1)
    own = weight[box].astype(np.float64)
    used = circle & (own > 0)
    inverse = np.where(used, own / (1 + own * (_FLOOR * expected) ** 2), 0.0)
    rest = stars.sky_free[box] - expected
    normal, right = _normal_equations(columns, inverse, rest)
    covariance = np.linalg.inv(normal)
    excess = np.einsum("nab,nb->na", covariance, right)[:, 3]
    error = np.sqrt(covariance[:, 3, 3])
    chi_square = np.einsum("nyx,nyx->n", inverse, rest**2) - (excess / error) ** 2
    estimator = np.einsum("na,nayx->nyx", covariance[:, 3], columns * inverse[:, None])
    error = np.hypot(error, _confusion(stars, model, weight, estimator, profile))
    chi_square /= used.sum(axis=(1, 2))
    usual = max(float(np.median(chi_square)), 1 / 3)
    fits = chi_square < _LARGEST_CHI_SQUARE * usual
    best = np.sort(error[fits])
    if len(best) < _FEWEST:
        return _Alike(np.argsort(chi_square)[:_FEWEST], _NO_SLOPE, 0.0, _UNKNOWN_WIDTH)
    # Slopes that the profile already has were worth their freedom before: they cost nothing now.
    had = 2 if any(profile.slope[2:]) else 1 if any(profile.slope) else 0
    trials = []
    for order in range(_SLOPE_ORDER + 1):
        terms = stars.terms(order)[:, 1:]
        if order and fits.sum() < _PER_SLOPE * (terms.shape[1] + 1):
            break
        end, tilt, unknown = _tilted(excess, error, fits, terms)
        cost = 0.5 * len(tilt) * math.log(fits.sum()) if order > had else 0.0
        trials.append((end.evidence - cost, order, end, tilt, unknown, terms @ tilt))
    had = min(had, len(trials) - 1)
    _, order, end, tilt, unknown, tilted = max(trials[had:], key=lambda trial: trial[0])
    limit = max(_WIDTH_ERROR, best[min(_ENOUGH, len(best)) - 1])
    precise = error <= limit
    keep = fits & precise & (end.probability > 0.5)
    if keep.sum() < _FEWEST:
        rank = np.argsort(-np.where(fits, end.probability, 0), kind="stable")
        keep = np.isin(np.arange(len(stars)), rank[:_FEWEST])
    along = dict(zip(chebyshev_terms(order)[1:], tilt, strict=True))
    slope = tuple(float(along.get(term, 0.0)) for term in chebyshev_terms(_SLOPE_ORDER)[1:])
    # By chance, the stars that are used may be a little wider or narrower than all stars.
    excess = excess - tilted
    used = np.average(excess[keep], weights=1 / (error[keep] ** 2 + end.scatter**2))
    u, v = _nodes()
    away = chebyshev_products(order, u, v)[:, 1:]
    elsewhere = float(np.einsum("ni,ij,nj->n", away, unknown, away).mean())
    # Some may be galaxies after all, but no wider than their errors allow.
    share = error[keep] ** -2.0 / (error[keep] ** -2.0).sum()
    chance = end.probability[keep] * (1 - end.probability[keep])
    galaxies = float((share**2 * chance * (error[keep] ** 2 + end.error**2)).sum())
    width_error = math.sqrt(end.error**2 + elsewhere + _GALAXY_WINGS**2 * galaxies)
    width_error = math.hypot(width_error, _unseen_light(stars.part(keep), weight[keep], profile))
    unlike = precise & (chi_square > _UNLIKE * usual)
    if unlike.sum() >= max(_FEWEST, _MANY_UNLIKE * precise.sum()):
        # The PSF varies in a way that so few stars do not determine.
        width_error = math.hypot(width_error, float(np.sqrt(np.mean(excess[unlike] ** 2))))
    return _Alike(np.flatnonzero(keep), slope, end.place - float(used), width_error)


def _confusion(
    stars: _Stars, model: Array, weight: Array, estimator: Array, profile: _Moffat
) -> Array:
    """Errors of the stars' ln(width) by unseen neighbours, beyond the noise, ``(n,)``.

    They are the scatter of the same linear estimators, ``(n, side, side)``, at places around the
    stars.
    """
    half = estimator.shape[1] // 2
    reach = stars.data.shape[1] // 2 - half
    step = max(1, math.ceil(_APART * profile.half_width))
    offset = step * np.arange(-(reach // step), reach // step + 1)
    rows, columns = (a.ravel() for a in np.meshgrid(offset, offset))
    outside = np.hypot(rows, columns) > 2 * _CLEAR * profile.half_width
    rows, columns = rows[outside], columns[outside]
    rest = stars.sky_free - stars.each(stars.flux) * model
    side = estimator.shape[1:]
    whole = ~grown_stamps(~(stars.known & (stars.weight > 0)), half)
    middle = rest.shape[1] // 2
    star, place = np.nonzero(whole[:, middle + rows, middle + columns])
    if len(star) < _FEWEST_PLACES:
        return np.zeros(len(stars))
    every = math.ceil(len(star) / _MOST_PLACES)
    star, place = star[::every], place[::every]
    windows = np.lib.stride_tricks.sliding_window_view(rest, side, (1, 2))
    patches = windows[star, reach + rows[place], reach + columns[place]].reshape(len(star), -1)
    found = patches @ estimator.reshape(len(stars), -1).T.astype(patches.dtype)
    scatter = MAD_TO_SIGMA * np.median(abs(found - np.median(found, axis=0)), axis=0)
    noise2 = (estimator**2).sum(axis=(1, 2)) / float(np.median(weight[weight > 0]))
    return np.sqrt(np.maximum(scatter**2 - noise2, 0))


def _unseen_light(stars: _Stars, weight: Array, profile: _Moffat) -> float:
    """Relative loss of stars' light due to unseen sources.

    Only stars without neighbours are used: the sky is brighter around them than under them.
    """
    excess = float(np.median(_unseen_variance(stars, weight)))
    sky = math.sqrt(excess / _area(profile))
    area = math.pi * (_LEVEL_FROM * profile.half_width) ** 2
    return _HOLE * sky * area * float(stars.flux.sum() / (stars.flux**2).sum())


def _unseen_variance(stars: _Stars, weight: Array) -> Array:
    """Variance that unseen sources add to the stars' skies, ``(n,)``."""
    most = weight.max(axis=(1, 2)).astype(np.float64)
    whole = np.where(most > 0, 1 / np.where(most > 0, most, 1), 0.0)
    added: Array = np.maximum(whole - stars.sky_variance, 0.0)
    return added


def _area(profile: _Moffat) -> float:
    """Effective number of pixels under the window with which neighbours are sought."""
    return 4 * math.pi * max(0.8, 2 * FWHM_TO_SIGMA * profile.half_width) ** 2


class _NarrowEnd(NamedTuple):
    """Narrow end of the sources' widths, where the stars are.

    ``place`` is its ln(width) over the profile's, ``error`` its error, ``scatter`` the stars'
    scatter beyond their errors, ``probability`` each source's of being a star, and ``evidence`` the
    logarithm of the mean likelihood.
    """

    place: float
    error: float
    scatter: float
    probability: Array
    evidence: float


def _tilted(
    excess: Array, error: Array, fits: Array, terms: Array
) -> tuple[_NarrowEnd, Array, Array]:
    """Narrow end of widths, coefficients of its variation over the field, their covariance."""
    tilt = np.zeros(terms.shape[1])
    if not len(tilt):
        return _narrow_end(excess, error, fits), tilt, np.zeros((0, 0))
    # At first all sources count as stars: galaxies are wider everywhere, and add no slope.
    probability, scatter = fits.astype(float), _SCATTERS[-1]
    for _ in range(_TILTINGS):
        share = np.sqrt(probability / (error**2 + scatter**2))
        design = np.column_stack([np.ones(len(excess)), terms]) * share[:, None]
        normal = design.T @ design
        normal += 1e-9 * normal[0, 0] * np.eye(len(normal))
        inverse = np.linalg.inv(normal)
        tilt = (inverse @ (design.T @ (excess * share)))[1:]
        # Shrink the coefficients to their excess over noise.
        tilt *= _beyond_noise(tilt**2, np.diagonal(inverse)[1:])
        end = _narrow_end(excess - terms @ tilt, error, fits)
        probability, scatter = end.probability, end.scatter
    return end, tilt, inverse[1:, 1:]


def _narrow_end(excess: Array, error: Array, fits: Array) -> _NarrowEnd:
    """Tell stars from small galaxies, which are wider, by a mixture of widths.

    The mixture has stars of one width but for a scatter, galaxies that are wider by up to some
    width, and a few others.  Its unknown parameters are averaged over, weighted by likelihood.
    """
    value, sigma = excess[fits], error[fits]
    precise = value[np.argsort(sigma, kind="stable")[:_ENOUGH]]
    place = np.linspace(precise.min() - _AROUND, precise.max() + _AROUND, _PLACES)
    off = value[:, None, None] - place[:, None]
    # (n, places, scatters)
    spread = np.hypot(sigma[:, None, None], np.array(_SCATTERS))
    star = _normal(off / spread) / spread
    wider = scipy.special.ndtr(off / sigma[:, None, None])
    evidence, galaxies, total = [], [], np.empty_like(star)
    for widest in _GALAXY_WIDTHS:
        galaxies.append(
            (wider - scipy.special.ndtr((off - widest) / sigma[:, None, None])) / widest
        )
        for part in _STAR_PARTS:
            np.multiply(star, part, out=total)
            total += (1 - part - _OTHERS) * galaxies[-1] + _OTHERS
            evidence.append(_log_product(total))
    likelihood = np.stack(evidence)
    largest = float(likelihood.max())
    likelihood = np.exp(likelihood - largest)
    total_evidence = largest + math.log(float(likelihood.mean()))
    likelihood /= likelihood.sum()
    of_place, of_scatter = likelihood.sum(axis=(0, 2)), likelihood.sum(axis=(0, 1))
    mean = float(of_place @ place)
    deviation = math.sqrt(float(of_place @ (place - mean) ** 2))
    probability = np.zeros(len(excess))
    kinds = ((galaxy, part) for galaxy in galaxies for part in _STAR_PARTS)
    for (galaxy, part), weights in zip(kinds, likelihood, strict=True):
        # Most places are far too unlikely to add anything.
        at, which = np.nonzero(weights > _NEGLIGIBLE)
        own = part * star[:, at, which]
        share = own / (own + (1 - part - _OTHERS) * galaxy[:, at, 0] + _OTHERS)
        probability[fits] += share @ weights[at, which]
    scatter = float(of_scatter @ np.array(_SCATTERS))
    return _NarrowEnd(mean, deviation, scatter, probability, total_evidence)


def _log_product(values: Array) -> Array:
    """Logarithm of the product over the first axis, of factors between 1e-3 and 1e3."""
    parts = np.array_split(values, math.ceil(len(values) / _FACTORS))
    result: Array = np.sum([np.log(part.prod(axis=0)) for part in parts], axis=0)
    return result


def _normal(deviate: Array) -> Array:
    result: Array = np.exp(-0.5 * deviate**2) / math.sqrt(2 * np.pi)
    return result


def _left(stars: _Stars, weight: Array, profile: _Moffat) -> tuple[Array, Array]:
    """Residuals of stars of unit flux, moved to the middle pixel, and their weights."""
    model = profile.at(stars, stars.data.shape[1])
    rest = (stars.weight > 0) * (stars.sky_free / stars.each(stars.flux) - model)
    moved = shifted_stamps(rest, -stars.dy, -stars.dx, order=3, mode="nearest")
    near_bad = grown_stamps(weight == 0, 1)
    # In units of the flux, which single precision need not hold.
    return moved.astype(np.float64), ~near_bad * weight * stars.flux[:, None, None] ** 2


def _fit_profile(profile: _Moffat, left: Array, weight: Array) -> tuple[_Moffat, float]:
    """Profile of the mean star, and its flux over the assumed one."""
    side = left.shape[1]
    current = profile.centred(side)
    floor = (max(_FLOOR, _WINGS_ALONE * profile.misfit) * current) ** 2
    robust = np.where(weight > 0, 1 / (1 / np.where(weight > 0, weight, 1) + floor), 0.0)
    total = robust.sum(0)
    known = total > 0
    mean = (robust * left).sum(0) / np.where(known, total, 1)
    for _ in range(2):
        deviation = (left - mean) ** 2 * robust
        clipped = np.where(deviation > _CLIP**2, 0.0, robust)
        total = clipped.sum(0)
        known = total > 0
        mean = (clipped * left).sum(0) / np.where(known, total, 1)
    mean = mean + current
    error = np.sqrt(np.where(known, 1 / np.where(known, total, 1), np.inf) + floor)
    offset = np.arange(side) - side // 2
    columns, rows = offset[None, :], offset[:, None]

    brightest = float(current.max())

    def shaped(values: Array) -> _Moffat:
        log_width, inverse_beta, share, first, second = map(float, values[4:])
        return dataclasses.replace(
            profile,
            half_width=math.exp(log_width),
            inverse_beta=inverse_beta,
            turbulence=share,
            shear=(first, second),
        )

    (usual, spread), (fall, off) = _USUAL_SHARE, _USUAL_FALL

    def deviation_of(values: Array) -> tuple[Array, Array]:
        scale, level, x0, y0, _, inverse_beta, share = values[:7]
        trial = shaped(values)
        dx, dy, width2 = columns - x0, rows - y0, trial.half_width**2
        square = trial.square(dx, dy) / width2
        model, by_square, by_beta, by_share, _ = trial.slopes_at(square)
        by_dx, by_dy, by_first, by_second = trial.square_slopes(dx, dy)
        slopes = [
            model,
            np.full(model.shape, brightest * width2),
            -scale * by_square * by_dx / width2,
            -scale * by_square * by_dy / width2,
            -2 * scale * (model + by_square * square),
            scale * by_beta,
            scale * by_share,
            scale * by_square * by_first / width2,
            scale * by_square * by_second / width2,
        ]
        inverse = -1 / (error[known] * width2)
        expected = [(share - usual) / spread, (inverse_beta - fall) / off]
        rest = ((mean - level * brightest)[known] * width2 - scale * model[known]) * -inverse
        design = np.zeros((len(rest) + 2, 9))
        for k, slope in enumerate(slopes):
            design[:-2, k] = slope[known] * inverse
        design[-2, 6], design[-1, 5] = 1 / spread, 1 / off
        return np.append(rest, expected), design

    width = math.log(profile.half_width)
    lower = np.array([0.2, -1, -2, -2, width - 1, 1 / _BETA[1], _SHARE[0], -1, -1])
    upper = np.array([5.0, 1, 2, 2, width + 1, 1 / _BETA[0], _SHARE[1], 1, 1])

    def found_from(inverse_beta: float, share: float) -> tuple[Array, float]:
        start = np.array([1.0, 0.0, 0.0, 0.0, width, inverse_beta, share, *profile.shear])
        values, rest, _ = _least_squares(
            deviation_of, start.clip(lower, upper), lower, upper, relative=_LITTLE_RELATIVE
        )
        return values, float(rest @ rest)

    found, cost = found_from(profile.inverse_beta, profile.turbulence)
    if found[5] < _GAUSSIAN or found[6] > _SHARE[1] - _TINY:
        # Turbulence less a Gaussian imitates a Moffat profile: start again without turbulence.
        found, _ = min((found, cost), found_from(_USUAL_FALL[0], 0.0), key=lambda each: each[1])
    scale, found_profile = float(found[0]), shaped(found)
    model = scale * found_profile(columns - found[2], rows - found[3])
    core = known & (profile.square(columns, rows) < (_WINGS_FROM * profile.half_width) ** 2)
    wrong = (mean - model - found[1] * brightest)[core]
    noise = 1 / total[core]
    excess = max(0.0, float((wrong**2 - noise).sum())) / float((model[core] ** 2).sum())
    return dataclasses.replace(found_profile, misfit=math.sqrt(excess)), scale


class _Rings(NamedTuple):
    """Mean star in rings around its middle, each star with its own level.

    ``square`` ``(m,)`` holds squared distances of nodes, ``mean`` ``(k, m)`` the nodes' shares in
    the rings, ``normal`` ``(k, k)`` and ``right`` ``(k,)`` the normal equations of the rings'
    values.
    """

    square: Array
    mean: Array
    normal: Array
    right: Array

    def of(self, profile: _Moffat) -> Array:
        """A profile's means over the rings, ``(k,)``."""
        width2 = profile.half_width**2
        result: Array = self.mean @ (profile._at(self.square / width2) / width2)
        return result

    def slopes_of(self, profile: _Moffat) -> tuple[Array, Array]:
        """The same, and derivatives.

        They are by ln(half width), 1/beta, and the shares of turbulence and of diffracted light:
        ``(k, 4)``.
        """
        width2 = profile.half_width**2
        square = self.square / width2
        value, by_square, *others = profile.slopes_at(square)
        slopes = np.stack([-2 * (value + square * by_square), *others], axis=1)
        return self.mean @ value / width2, self.mean @ slopes / width2


def _rings(left: Array, weight: Array, profile: _Moffat) -> _Rings:
    """Rings of the mean star, from residuals after the profile, which is added again."""
    side = left.shape[1]
    offset = np.arange(side) - side // 2
    square = profile.square(offset[None, :], offset[:, None]).ravel()
    fine = np.floor(_RINGS * _FINER * np.sqrt(square) / profile.half_width).astype(int)
    fine = np.unique(fine, return_inverse=True)[1]
    radius = np.sqrt(square) / profile.half_width
    first = math.ceil(_RINGS * _DARK)
    ring = np.where(radius < _DARK, _RINGS * radius, first + (radius - _DARK) / 2).astype(int)
    ring = np.unique(ring, return_inverse=True)[1]
    count = np.bincount(fine)
    mean = np.zeros((int(ring.max()) + 1, len(count)))
    mean[ring, fine] = 1
    mean *= count
    mean /= mean.sum(axis=1, keepdims=True)
    members = np.zeros((len(ring), len(mean)))
    members[np.arange(len(ring)), ring] = 1
    weights = weight.reshape(len(left), -1)
    light = (weights * left.reshape(len(left), -1)) @ members
    weights = weights @ members
    total = weights.sum(axis=1, keepdims=True)
    share = weights / np.where(total > 0, total, np.inf)
    normal = np.diag(weights.sum(axis=0)) - weights.T @ share
    right = light.sum(axis=0) - share.T @ light.sum(axis=1)
    rings = _Rings(np.bincount(fine, square) / count, mean, normal, right)
    return rings._replace(right=right + normal @ rings.of(profile))


class _RingFit(NamedTuple):
    """Profile fitted to rings.

    ``scale`` is the flux over the assumed one.  ``covariance`` is that of the scale, ln(half
    width), 1/beta and the shares of turbulence and, if fitted, of diffracted light.  ``evidence``
    is the logarithm of the rings' likelihood, averaged over all profiles of the kind.
    """

    profile: _Moffat
    scale: float
    covariance: Array
    evidence: float


def _fit_rings(
    rings: _Rings, profile: _Moffat, *, diffracted: bool, off: tuple[float, float]
) -> _RingFit:
    """Fit a profile, with or without diffracted light, to rings that differ by ``off`` from it."""

    def shaped(values: Array) -> _Moffat:
        _, log_width, inverse_beta, share, *light = map(float, values)
        return dataclasses.replace(
            profile,
            half_width=math.exp(log_width),
            inverse_beta=inverse_beta,
            turbulence=share,
            diffraction=light[0] if light else 0.0,
        )

    far = np.sqrt(rings.mean @ rings.square) > _DARK * profile.half_width
    differ = np.where(far, off[1], off[0]) * rings.of(profile)
    both = np.column_stack([rings.normal, rings.right])
    reduced = np.linalg.solve(rings.normal + np.diag(differ**-2.0), both)
    normal = rings.normal - rings.normal @ reduced[:, :-1]
    right = rings.right - rings.normal @ reduced[:, -1]
    # A basis of the rings in which errors are independent and 1.
    power, basis = np.linalg.eigh(normal)
    told = power > 1e-9 * power[-1]
    root = np.sqrt(power[told])
    basis = basis[:, told].T
    target = basis @ right / root
    basis *= root[:, None]
    width = math.log(profile.half_width)
    share, share_off = _NO_TURBULENCE if diffracted else _USUAL_SHARE
    fall, fall_off = _USUAL_FALL
    expected = np.array([1.0, width, fall, share, _FOUND_DIFFRACTION[0]])
    spread = np.array([_FREE, _PROFILE_WIDTH_ERROR, fall_off, share_off, _FOUND_DIFFRACTION[1]])
    lower = np.array([0.2, width - 1, 1 / _BETA[1], _SHARE[0], _DIFFRACTED[0]])
    upper = np.array(
        [5.0, width + 1, _STEEPEST, _MOST_TURBULENCE if diffracted else _SHARE[1], _DIFFRACTED[1]]
    )
    start = np.array(
        [1.0, width, profile.inverse_beta, profile.turbulence, profile.diffraction or 0.0]
    )
    free = 5 if diffracted else 4

    def deviation_of(values: Array) -> tuple[Array, Array]:
        model, slopes = rings.slopes_of(shaped(values))
        design = basis @ np.column_stack([model, values[0] * slopes[:, : free - 1]])
        rest = np.append(
            target - basis @ (values[0] * model), (values - expected[:free]) / spread[:free]
        )
        return rest, np.concatenate([-design, np.diag(1 / spread[:free])])

    values, rest, slopes = _least_squares(
        deviation_of, start[:free].clip(lower[:free], upper[:free]), lower[:free], upper[:free]
    )
    covariance = np.linalg.inv(slopes.T @ slopes)
    # Laplace's approximation: freedom that the rings do not need lowers the evidence.
    freedom = np.linalg.slogdet(np.eye(len(differ)) + rings.normal * differ**2)[1]
    narrowed = np.linalg.slogdet(covariance)[1] / 2 - float(np.log(spread[:free]).sum())
    evidence = narrowed - freedom / 2 - float(rest @ rest) / 2
    return _RingFit(shaped(values), float(values[0]), covariance, evidence)


def _least_squares(
    deviation_of: Callable[[Array], tuple[Array, Array]],
    values: Array,
    lower: Array,
    upper: Array,
    *,
    relative: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Bounded least squares: values, deviations there, and their slopes.

    ``deviation_of`` returns deviations and slopes.  The fit ends where the gain of the sum of
    squares is less than 0.01, or less than a part ``relative`` of it.  For so few numbers SciPy's
    takes several times as long.
    """
    rest, slopes = deviation_of(values)
    first = 0
    for _ in range(_RING_ROUNDS):
        pull, normal, total = slopes.T @ rest, slopes.T @ slopes, float(rest @ rest)
        gain = 0.0
        # A little less than the damping that was needed last is a good guess.
        for attempt in range(max(first - 1, 0), len(_DAMPINGS)):
            there = _damped_step(values, pull, normal, _DAMPINGS[attempt], lower, upper)
            then, slopes_there = deviation_of(there)
            gain = total - float(then @ then)
            if gain > 0:
                values, rest, slopes, first = there, then, slopes_there, attempt
                break
        else:
            break
        # A step that damping made short gains little anywhere.
        if first == 0 and gain < max(0.0 if relative else _LITTLE_GAIN, relative * total):
            break
    return values, rest, slopes


def _damped_step(
    values: Array, pull: Array, normal: Array, damping: float, lower: Array, upper: Array
) -> Array:
    """Values after a step of Levenberg and Marquardt.

    Values that would leave the bounds stay on them; the others are solved without them.
    """
    damped = normal + damping * np.diag(normal.diagonal())
    there, inside = values.copy(), np.ones(len(values), dtype=bool)
    for _ in range(len(values)):
        known = pull + damped @ np.where(inside, 0.0, there - values)
        there[inside] = (
            values
            - np.linalg.solve(
                np.where(np.outer(inside, inside), damped, np.eye(len(values))),
                np.where(inside, known, 0.0),
            )
        )[inside]
        outside = (there < lower) | (there > upper)
        if not outside.any():
            break
        there = there.clip(lower, upper)
        inside &= ~outside
    return there


def _diffraction(stars: _Stars, profile: _Moffat) -> tuple[_Moffat | None, float]:
    """Profile with diffracted light; None where the rings around bright stars do not show it.

    In the latter case also the relative error of fluxes, in case that there is such light: the
    flux then missing, times the square root of its probability.
    """
    stars = stars.part(np.argsort(-stars.flux, kind="stable")[:_SHARERS])
    # Masks that expect diffracted light do not take it for neighbours.
    trial = dataclasses.replace(profile, diffraction=_FOUND_DIFFRACTION[0])
    side = stars.data.shape[1]
    offset = np.arange(side) - side // 2
    radius = np.hypot(offset[:, None], offset[None, :])
    expected = stars.each(stars.flux) * trial.at(stars, side)
    rest = (stars.weight > 0) * (stars.sky_free - expected)
    rest -= np.median(rest[:, radius > _LEVEL_FROM * profile.half_width], axis=1)[:, None, None]
    core = radius <= _RINGED * profile.half_width
    weight = _without_neighbours(rest, expected, stars, core, trial, _NEIGHBOUR[0])
    # Light of unseen sources is correlated over a star's pixels: it averages down less than noise.
    shared = (_area(profile) - 1) * _unseen_variance(stars, weight)
    weight = weight / (1 + weight * shared[:, None, None])
    left, weight = _left(stars, weight, trial)
    rings = _rings(left, weight, trial)
    plain = _fit_rings(rings, trial, diffracted=False, off=_SMOOTH)
    kinds = [_fit_rings(rings, trial, diffracted=True, off=off) for off in (_RINGED_LIGHT, _SMOOTH)]
    evidence = np.array([each.evidence for each in (plain, *kinds)])
    probability = np.array(_WITHOUT) * np.exp(evidence - evidence.max())
    probability /= probability.sum()
    if probability[0] < 1 - _SURE:
        fit = kinds[int(np.argmax(probability[1:]))]
        if (fit.profile.diffraction or 0.0) > _LEAST_DIFFRACTION:
            return fit.profile, 0.0
    missing = [(each.scale / plain.scale - 1) ** 2 for each in kinds]
    return None, math.sqrt(float(probability[1:] @ missing))


def _flux_error(left: Array, weight: Array, profile: _Moffat) -> float:
    """Relative error of the light of the mean star, whose wings are hard to tell from the level.

    It comes from a linear fit to rings: scale, width, fall, the shares of turbulence and of
    diffracted light, and a level for each star.  It is the larger of the formal error and the
    jackknife's over eight groups of stars.
    """
    side = left.shape[1]
    offset = np.arange(side) - side // 2
    x, y = offset[None, :], offset[:, None]
    ring = np.floor(_RINGS * np.sqrt(profile.square(x, y)) / profile.half_width).astype(int).ravel()
    members = np.zeros((side**2, int(ring.max()) + 1))
    members[np.arange(side**2), ring] = 1
    members = members[:, members.any(axis=0)]
    own = profile.centred(side).ravel()
    changed = [
        dataclasses.replace(profile, half_width=profile.half_width * (1 + _STEP)),
        dataclasses.replace(profile, inverse_beta=profile.inverse_beta - _STEP / 5),
        dataclasses.replace(profile, turbulence=profile.turbulence + _STEP),
        dataclasses.replace(profile, diffraction=profile.diffracted + _STEP),
    ]
    columns = [own, *((each.centred(side).ravel() - own) / _STEP for each in changed)]
    design = (members.T @ np.stack(columns, 1)) / members.sum(axis=0)[:, None]
    weights = weight.reshape(len(left), -1)
    light = (weights * left.reshape(len(left), -1)) @ members
    weights = weights @ members
    total = weights.sum(axis=1, keepdims=True)
    share = weights / np.where(total > 0, total, np.inf)
    group = np.arange(len(left)) % _GROUPS
    normal = np.zeros((_GROUPS, design.shape[0], design.shape[0]))
    right = np.zeros((_GROUPS, design.shape[0]))
    for k in range(_GROUPS):
        own_weights, own_share = weights[group == k], share[group == k]
        normal[k] = np.diag(own_weights.sum(axis=0)) - own_weights.T @ own_share
        own_light = light[group == k]
        right[k] = own_light.sum(axis=0) - own_share.T @ own_light.sum(axis=1)
    # The family of profiles describes no ring better than this.
    free = np.diag((_RING_FLOOR * design[:, 0]) ** -2.0)
    usual, spread = _USUAL_SHARE
    diffracted = max(profile.diffracted, _LEAST_SCATTERED)
    errors = np.array([_PROFILE_WIDTH_ERROR, _FALL_ERROR, spread, diffracted])
    prior = np.diag([0, *errors**-2.0])

    def solved(normal: Array, right: Array) -> tuple[float, float]:
        reduced = np.linalg.solve(normal + free, np.column_stack([normal, right]))
        normal, right = normal - normal @ reduced[:, :-1], right - normal @ reduced[:, -1]
        inverse = np.linalg.inv(design.T @ normal @ design + prior)
        pulled = prior @ [0, 0, 0, usual - profile.turbulence, 0]
        # Rounding may leave no variance where stars have no weight: then nothing is known.
        variance = inverse[0, 0] if inverse[0, 0] > 0 else 1.0
        return float((inverse @ (design.T @ right + pulled))[0]), math.sqrt(variance)

    _, formal = solved(normal.sum(axis=0), right.sum(axis=0))
    filled = np.unique(group)
    left_out = [solved(normal.sum(0) - normal[k], right.sum(0) - right[k])[0] for k in filled]
    return max(formal, math.sqrt((len(filled) - 1) * float(np.var(left_out))))


def _vary(
    left: Array,
    weight: Array,
    stars: _Stars,
    profile: _Moffat,
    size: int,
    order: int,
) -> Array:
    """Polynomials, over the field, of the residuals from the profile: ``(n_terms, size, size)``."""
    side = left.shape[1]
    margin = (side - size) // 2
    # All pixels of a star share the error of its level, measured around them.
    surroundings = weight.sum(axis=(1, 2)) - weight[:, margin:-margin, margin:-margin].sum((1, 2))
    share = weight.max(axis=(1, 2))
    level_noise = share**2 / np.where(surroundings > 0, surroundings, np.inf)
    pedestal = _LEVEL_ERROR**2 * float(level_noise.sum() / share.sum() ** 2)
    inner = np.s_[:, margin : margin + size, margin : margin + size]
    left, weight = (a[inner].reshape(len(left), -1) for a in (left, weight))
    # The model's own error limits the weight of bright stars.
    floor = _FLOOR * profile.centred(size).ravel()
    weight = np.where(weight > 0, 1 / (1 / np.where(weight > 0, weight, 1) + floor**2), 0.0)
    terms = stars.terms(order)
    ridge = 1e-9 * float(weight.sum(0).max()) * np.eye(terms.shape[1])
    products = np.einsum("sk,sl->skl", terms, terms).reshape(len(terms), -1)
    coefficients, normal = np.zeros((terms.shape[1], size * size)), ridge
    used = weight
    for _ in range(3):
        normal = (used.T @ products).reshape(-1, *ridge.shape) + ridge
        right = (used * left).T @ terms
        coefficients = np.linalg.solve(normal, right[..., None])[..., 0].T
        deviation = (left - terms @ coefficients) * np.sqrt(weight)
        used = np.where(abs(deviation) > _CLIP, 0.0, weight)
    errors = np.diagonal(np.linalg.inv(normal), axis1=1, axis2=2).T
    half = size // 2
    radius = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1]).ravel()
    ring = np.minimum(np.floor(radius + 0.5).astype(int), half)
    count = np.bincount(ring)
    expected = np.bincount(ring, profile.centred(size).ravel()) / count
    far = np.s_[math.ceil(_WINGS_FROM * profile.half_width) :]
    for k, (values, variances) in enumerate(zip(coefficients, errors, strict=True)):
        noise = np.bincount(ring, variances) / count
        level = np.bincount(ring, values) / count if k == 0 else np.zeros(len(count))
        structure = values - level[ring]
        uncertain = noise / count + pedestal
        level *= _beyond_noise(level**2, uncertain)
        # Errors of levels and faint neighbours look like wings: believe the profile's wings, as far
        # as the profile fits inside of them.
        misfit = max(_LEAST_MISFIT, _WORSE_IN_WINGS * profile.misfit)
        believed = (misfit * expected[far]) ** 2
        level[far] *= believed / (believed + uncertain[far])
        power = np.bincount(ring, structure**2) / count
        coefficients[k] = level[ring] + structure * _beyond_noise(power, noise)[ring]
    return coefficients.reshape(-1, size, size)


def _beyond_noise(power: Array, noise: Array) -> Array:
    """Fraction of a power that is not noise."""
    return np.clip(1 - noise / np.where(power > 0, power, np.inf), 0, 1)
