"""The Alard–Lupton fit: one linear least-squares problem for the whole field.

Stamps around stars in the image to be convolved (*source*) and in the image to be matched
(*target*) determine ``κ(x, y) = a₀·B₀ + Σ_b f_b(x, y)·B_b`` and a background.  The f_b and the
background are Chebyshev polynomials of the position over the frame.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..numerics.polynomials import chebyshev_products
from ..numerics.stats import median_deviation
from ..numerics.threads import single_threaded_algebra
from ..stars.stamps import Stamps
from .basis import KernelBasis
from .design import Design, FitOptions, Solved
from .normals import Normals, normal_equations, residual_statistics

__all__ = [
    "FEW_PIXELS",
    "OTHER_SUM",
    "KernelFit",
    "choose_kernel_order",
    "fit_kernel",
    "held_out_coefficients",
]

type Array = npt.NDArray[Any]

_CHUNK = 64
"""Number of stamps, each fitted on its own, that are solved in one call."""

_SINGLE_SMOOTHNESS = 1e-6
"""Weight of the penalty, relative to the data, where stamps are fitted one by one."""

_SINGLE_CUT = 1e-12
"""Eigenvalue of a stamp's scaled matrix, relative to the largest, below which it is not used."""

_MANY = 100
"""Number of basis images beyond which a single stamp is fitted with the penalty."""

_EVIDENCE = 2.0
"""Least gain of the criterion by a higher order: less is not worth a mention."""

_EXCHANGES = 99
"""Number of random exchanges of the stars' places."""

_FOLDS = 5
"""Parts of the stars, each of which is predicted from the others."""

_USUAL_SPREAD = 0.02
"""Usual relative change of a star's brightness between two images."""

FEW_PIXELS = "too few good pixels"
_NOT_DESCRIBED = "no kernel of its own fits"
OTHER_SUM = "its flux ratio is an outlier"
_NOT_COMMON = "the common kernel does not fit"
"""Reasons for which a stamp is rejected."""


@dataclasses.dataclass(frozen=True)
class KernelFit:
    """A fitted kernel and background, and how good they are.

    Attributes
    ----------
    kernel_coefficients
        ``(n_basis, order + 1, order + 1)``; ``[b, p, q]`` multiplies ``T_p(y) T_q(x) B_b``.
    background_coefficients
        ``(order + 1, order + 1)``, image_unit.
    used
        ``(n_stamps,)`` boolean: stamps that were not rejected.
    residual_mean, residual_rms
        ``(n_stamps,)`` mean and rms of the residual over its sigma.
    rejected
        ``(n_stamps,)`` text: reason for which a stamp was rejected; empty if it was not.
    kernel_sum, kernel_sum_error
        Kernel's sum in the middle of the frame, and its standard deviation.
    condition
        Condition number of the scaled normal matrix.
    effective_unknowns
        Number of unknowns that the penalty leaves: the trace of the influence matrix.
    degrees_of_freedom, chi_square
        Degrees of freedom and χ² of the final fit, over all used pixels.
    """

    kernel_coefficients: Array
    background_coefficients: Array
    used: Array
    residual_mean: Array
    residual_rms: Array
    rejected: Array
    kernel_sum: float
    kernel_sum_error: float
    condition: float
    effective_unknowns: float
    degrees_of_freedom: int
    chi_square: float

    def in_units(self, source: float, target: float) -> KernelFit:
        """The fit in other units.

        Parameters
        ----------
        source, target
            Units of the two fitted images, as multiples of the new units.

        Returns
        -------
        fit
            Kernel and background for images in the new units.
        """
        factor = target / source
        return dataclasses.replace(
            self,
            kernel_coefficients=self.kernel_coefficients * factor,
            background_coefficients=self.background_coefficients * target,
            kernel_sum=self.kernel_sum * factor,
            kernel_sum_error=self.kernel_sum_error * factor,
        )

    @property
    def kernel_order(self) -> int:
        """Spatial order of the kernel."""
        return self.kernel_coefficients.shape[1] - 1

    @property
    def background_order(self) -> int:
        """Spatial order of the background."""
        return self.background_coefficients.shape[0] - 1

    def coefficients_at(self, x: Array, y: Array) -> Array:
        """Coefficients of the basis images, and the background, at positions.

        Parameters
        ----------
        x, y
            ``(n,)``, scaled to −1 … 1 over the frame.

        Returns
        -------
        coefficients
            ``(n, n_basis + 1)``; the last is the background.
        """
        kernel = [np.polynomial.chebyshev.chebval2d(y, x, c) for c in self.kernel_coefficients]
        background = np.polynomial.chebyshev.chebval2d(y, x, self.background_coefficients)
        return np.stack([*kernel, background], axis=1)

    @property
    def reduced_chi_square(self) -> float:
        """Chi-square per degree of freedom; NaN without one."""
        if self.degrees_of_freedom <= 0:
            return math.nan
        return self.chi_square / self.degrees_of_freedom


# Threads of small matrix products hinder each other, badly where cores are busy.
@single_threaded_algebra()
def fit_kernel(
    stamps: Stamps,
    basis: KernelBasis,
    options: FitOptions | None = None,
    *,
    normals: Normals | None = None,
) -> KernelFit:
    """Fit a spatially varying kernel and background to stamps around stars.

    Parameters
    ----------
    stamps
        Stamps.
    basis
        Basis images of the kernel.
    options
        `FitOptions`.
    normals
        `whitediff.matching.normals.normal_equations` of the stamps, where they are known.

    Returns
    -------
    fit
        `KernelFit`.

    Raises
    ------
    ArgumentError
        If the stamps do not have the support that the basis needs.
    DataError
        If there are too few stamps for the unknowns, or the fit is singular.

    Notes
    -----
    Alard & Lupton 1998 and Alard 2000, with a weight for every pixel instead of one for
    every stamp.  Stamps are rejected that their own fit does not describe, then stamps of
    outlying brightness, then, round after round, stamps that the common fit does not describe.
    One round rejects at most a quarter of the stamps that are left, the worst first.

    Details that the source's PSF does not determine would be fitted to noise; the basis' penalty
    prevents that.  Its weights maximise the restricted likelihood (Wood 2011, J. R. Stat. Soc. B
    73, 3, section 2, with a Gaussian likelihood of unknown scale).  Where the source's variance
    is known, the attenuation by its noise is undone (Fuller 1987, Measurement Error Models,
    section 2.2: the expectation of the noise is subtracted from the normal matrix), except where
    there is next to nothing but noise.
    """
    options = options or FitOptions()
    if normals is None:
        normals = normal_equations(stamps, basis)
    design = _design(stamps, basis, options)
    used = normals.pixels > len(basis) + 1
    described, ordinary = _single_fits(normals, basis, options, used)
    reasons = ((~used, FEW_PIXELS), (~described, _NOT_DESCRIBED), (~ordinary, OTHER_SUM))
    rejected = np.select(
        [flaw for flaw, _ in reasons], [why for _, why in reasons], default=_NOT_COMMON
    )
    used &= described & ordinary
    for round_number in range(options.rejections + 1):
        solved = design.solve(normals, used)
        mean, rms = residual_statistics(normals, design.local(solved.solution))
        bad = used & ((np.abs(mean) > options.largest_mean) | (rms > options.largest_rms))
        if round_number == options.rejections or not bad.any():
            break
        badness = np.maximum(np.abs(mean) / options.largest_mean, rms / options.largest_rms)
        most = max(1, int(used.sum()) // 4)
        worst = np.argsort(np.where(bad, badness, 0))[::-1][: min(most, int(bad.sum()))]
        used[worst] = False
    rejected[used] = ""
    solution = solved.solution
    chi_square = float((rms[used] ** 2 * normals.pixels[used]).sum())
    middle = design.sum_gradient()
    return KernelFit(
        kernel_coefficients=design.kernel_coefficients(solution),
        background_coefficients=design.background_coefficients(solution),
        used=used,
        residual_mean=mean,
        residual_rms=rms,
        rejected=rejected,
        kernel_sum=float(middle @ solution),
        kernel_sum_error=design.sum_error(normals, used, solved),
        condition=solved.condition,
        effective_unknowns=solved.effective,
        degrees_of_freedom=int(normals.pixels[used].sum() - solved.effective),
        chi_square=chi_square,
    )


def _design(stamps: Stamps, basis: KernelBasis, options: FitOptions) -> Design:
    kernel_terms = chebyshev_products(options.kernel_order, stamps.x, stamps.y)
    background_terms = chebyshev_products(options.background_order, stamps.x, stamps.y)
    if not options.background:
        background_terms = background_terms[:, :0]
    return Design(basis, kernel_terms, background_terms, options)


@single_threaded_algebra()
def choose_kernel_order(
    stamps: Stamps,
    basis: KernelBasis,
    options: FitOptions,
    *,
    criterion: Literal["bic", "cross-validation"],
    largest: int = 3,
    normals: Normals | None = None,
) -> FitOptions:
    """Choose the spatial order of the kernel from the data.

    Parameters
    ----------
    stamps, basis, options, normals
        As for `fit_kernel`.
    criterion
        ``bic``: smallest ``n ln(χ²) + ln(n)·unknowns``, n the number of pixels; if the noise is
        known, χ² replaces ``n ln(χ²)``.  ``cross-validation``: smallest χ² of stars predicted
        from four fifths of the stars, without themselves.
    largest
        Largest order to try; the search ends at an order for which the stars do not suffice.

    Returns
    -------
    options
        Options with the chosen order; 0 where the stars are too few to choose.

    Notes
    -----
    Schwarz 1978, Ann. Statist. 6, 461, for noise of unknown scale: misfits that no order
    describes count as noise.  Unknowns are counted as the penalty leaves them.  A higher order is
    taken where it is better by 2 (Kass & Raftery 1995, JASA 90, 773), and where its terms explain
    more than with the stars' places exchanged, in each of 99 random exchanges (Fisher 1935, The
    Design of Experiments, section 21: by chance once in 100).  The latter is needed because
    misfits that no kernel of this basis describes exceed the noise of bright stars, and any
    polynomial fits them.  All orders are judged by the same stars: those that a constant kernel
    of their own describes.
    """
    if normals is None:
        normals = normal_equations(stamps, basis)
    used = normals.pixels > len(basis) + 1
    used &= np.logical_and(*_single_fits(normals, basis, options, used))
    # Stars that suffice for a fit may be too few to leave any out: then nothing varies.
    best, least = dataclasses.replace(options, kernel_order=0), math.inf
    for order in range(largest + 1):
        tried = dataclasses.replace(options, kernel_order=order)
        try:
            design = _design(stamps, basis, tried)
            solved = design.solve(normals, used)
            if criterion == "bic":
                value = _information(solved, float(normals.pixels[used].sum()), tried)
            else:
                value = _predicted(normals, design, used)
        except DataError:
            break
        is_better = value < least - _EVIDENCE
        if order == 0 or (is_better and _depends_on_place(normals, design, used, solved.penalty)):
            best, least = tried, value
    return best


def _depends_on_place(normals: Normals, design: Design, used: Array, penalty: Array) -> bool:
    """Whether the highest terms explain more than after any exchange of the stars' places."""
    explained = design.explained(normals, used, penalty)
    # A seed that only the stars decide: the same stamps give the same order.
    members, rng = np.flatnonzero(used), np.random.default_rng(len(used))
    return all(
        design.with_places_exchanged(used, rng.permutation(members)).explained(
            normals, used, penalty
        )
        < explained
        for _ in range(_EXCHANGES)
    )


def _information(solved: Solved, pixels: float, options: FitOptions) -> float:
    """Bayesian information criterion, with effective unknowns."""
    n, value = max(pixels, 2.0), solved.chi_square
    if not options.known_noise:
        value = n * math.log(max(value, 1e-300))
    return value + math.log(n) * solved.effective


def _predicted(normals: Normals, design: Design, used: Array) -> float:
    """χ² of the used stars, each predicted from the other folds."""
    _, rms = residual_statistics(normals, _held_out(normals, design, used))
    return float((rms**2 * normals.pixels)[used].sum())


def _held_out(normals: Normals, design: Design, used: Array) -> Array:
    """Coefficients of every stamp, by a fit to the other folds."""
    fold = np.cumsum(used) % _FOLDS
    local = np.zeros((len(used), len(design.basis) + 1))
    for k in range(_FOLDS):
        solved = design.solve(normals, used & (fold != k))
        # A stamp that is not used is in no fit: any fold may predict it.
        local[fold == k] = design.local(solved.solution)[fold == k]
    return local


@single_threaded_algebra()
def held_out_coefficients(
    stamps: Stamps, basis: KernelBasis, options: FitOptions, used: Array, *, normals: Normals
) -> Array:
    """Coefficients of every stamp, by fits to other stars.

    Parameters
    ----------
    stamps, basis, options, normals
        As for `fit_kernel`.
    used
        ``(n,)`` boolean: stamps to fit.

    Returns
    -------
    local
        ``(n, n_basis + 1)``: for each stamp, by a fit to four fifths of the stamps without it.

    Raises
    ------
    DataError
        If there are too few stamps to leave any out.
    """
    return _held_out(normals, _design(stamps, basis, options), used)


def _single_fits(
    normals: Normals, basis: KernelBasis, options: FitOptions, used: Array
) -> tuple[Array, Array]:
    """Stamps that a kernel of their own describes; of these, the stamps of usual brightness."""
    m = len(basis) + 1
    local = np.zeros((len(normals.right), m))
    ridge = np.zeros((m, m))
    if basis.penalty is not None and len(basis) > _MANY:
        ridge[:-1, :-1] = basis.penalty / np.trace(basis.penalty)
    for start in range(0, len(local), _CHUNK):
        part = np.arange(start, min(start + _CHUNK, len(local)))
        part = part[used[part]]
        gram = normals.gram[part]
        traces = np.trace(gram, axis1=1, axis2=2)[:, None, None]
        # Faint stars do not determine every basis image: the shortest solution suffices.
        if ridge.any():
            inverse = np.linalg.inv(gram + _SINGLE_SMOOTHNESS * traces * ridge)
        else:
            # Scale first: the constant's column has another unit than the images' columns.
            size = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
            scale = 1 / np.where(size > 0, size, np.inf)
            scale = scale[:, :, None] * scale[:, None, :]
            inverse = scale * np.linalg.pinv(gram * scale, rcond=_SINGLE_CUT, hermitian=True)
        local[part] = (inverse @ normals.right[part, :, None])[:, :, 0]
    mean, rms = residual_statistics(normals, local)
    good = used & (np.abs(mean) <= options.largest_mean) & (rms <= options.largest_rms)
    ordinary = good
    if good.sum() >= 3:
        ratio, error = _brightness_ratios(normals, good, ridge)
        # The usual spread limits weights: one star, however bright, does not decide what is usual.
        weight = np.where(good, 1 / (error**2 + _USUAL_SPREAD**2), 0)
        if not weight.any():
            return good, good
        order = np.argsort(ratio)
        usual = ratio[order][np.searchsorted(np.cumsum(weight[order]), weight.sum() / 2)]
        # In units of each stamp's own error, since faint stars scatter more.  Scatter of all stars
        # beyond their errors widens the limit: the sum may vary over the field.
        offset = (ratio - usual) / np.sqrt(error**2 + math.pi / (2 * weight.sum()))
        spread = max(1.0, median_deviation(offset[good], about=0.0))
        ordinary = good & (np.abs(offset) <= options.sum_clip * spread)
    return good, ordinary


def _brightness_ratios(normals: Normals, good: Array, ridge: Array) -> tuple[Array, Array]:
    """Ratios of stars' brightness in target and source, over the common ratio; their errors.

    One kernel for all stars is used, with a level for each: a kernel for each star would follow
    its noise, the more the fainter the star.
    """
    # Eliminate each star's level from its normal equations.
    level = normals.gram[:, -1, -1]
    share = normals.gram[:, :-1, -1] / np.where(level > 0, level, np.inf)[:, None]
    grams = normals.gram[:, :-1, :-1] - share[:, :, None] * normals.gram[:, None, -1, :-1]
    rights = normals.right[:, :-1] - share * normals.right[:, -1:]
    total = grams[good].sum(axis=0)
    total += _SINGLE_SMOOTHNESS * np.trace(total) * ridge[:-1, :-1]
    kernel = np.linalg.pinv(total, rcond=_SINGLE_CUT, hermitian=True) @ rights[good].sum(axis=0)
    light = np.einsum("m,nmk,k->n", kernel, grams, kernel)
    if normals.noise is not None:
        light -= np.einsum("m,nmk,k->n", kernel, normals.noise[:, :-1, :-1], kernel)
    seen = light > 0
    light = np.where(seen, light, 1)
    ratio = np.where(seen, (rights @ kernel) / light, 1)
    return ratio, np.where(seen, 1 / np.sqrt(light), np.inf)
