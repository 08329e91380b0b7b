"""The unknowns of a kernel fit over a field, and their most likely values."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError, DataError, TooFewSourcesError
from ..numerics.polynomials import chebyshev_products, chebyshev_terms
from .basis import KernelBasis
from .normals import Normals

__all__ = ["Design", "FitOptions", "Solved"]

type Array = npt.NDArray[Any]

_LARGEST_CONDITION = 1e13

_START_SMOOTHNESS = 1e-3
_SMOOTHNESS_RANGE = 1e15, 1e9
"""Start of the search for the penalty's weight, and factors by which it goes down and up.  Much
further up, rounding errors of the kernels that cost nothing would outweigh the data."""

_SHIFTS = (3.0, -3.0)
"""Changes of each logarithm that are tried before the search."""
_NEWTON_STEPS, _HALVINGS, _LONGEST_STEP, _LEAST_CURVATURE = 20, 10, 3.0, 0.05
"""Most steps of a search, and most halvings of one; longest step, and least second derivative that
its length follows."""
_LITTLE_DEVIANCE = 0.05
"""Gain of the deviance that ends the search."""

_MANY_UNKNOWNS = 500
"""Number of unknowns from which on the weights are searched for only once."""

_LARGEST_PIVOT_RATIO = 1e9
"""Squared ratio of the Cholesky factor's diagonal, up to which penalties may grow."""

_LEAST_SIGNAL = 0.05
"""Signal's share of the source's power, below which a direction of the unknowns is not corrected
for the source's noise."""

_LARGEST_LEVERAGE = 4.0
"""Largest factor by which the change without a group of stars is raised because the fit followed
that group."""

_MOST_GROUPS = 40
"""Most groups of stars; each is left out in turn for the error of the kernel's sum."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to fit.

    Attributes
    ----------
    kernel_order, background_order
        Orders of the Chebyshev polynomials in x and y together.
    background
        Fit a background; if False, it is zero.
    constant_sum
        Keep the kernel's sum the same over the field.
    smoothness
        Weight of the basis' penalty, relative to the data's own curvature; None: the most
        likely weights, one for the mean kernel and one for each order of its variation.
    known_noise
        Believe the weights' scale when the penalty's weight is chosen.  For correlated noise,
        whose scatter from pixel to pixel says little about its power at the scale of a star; the
        weights then stand for that power.
    rejections
        Most rounds of rejection.
    largest_mean, largest_rms
        Largest mean and rms of a stamp's residual over its sigma: stamps beyond are rejected.
    sum_clip
        Robust sigmas from the median beyond which a stamp is rejected for its own kernel sum.
    """

    kernel_order: int = 1
    background_order: int = 2
    background: bool = True
    constant_sum: bool = True
    smoothness: float | None = None
    known_noise: bool = False
    rejections: int = 3
    largest_mean: float = 0.25
    largest_rms: float = 1.5
    sum_clip: float = 3.0

    def __post_init__(self) -> None:
        for name in ("kernel_order", "background_order", "rejections"):
            if getattr(self, name) < 0:
                raise ArgumentError(f"{name} must not be negative; got {getattr(self, name)}.")
        for name in ("smoothness", "largest_mean", "largest_rms", "sum_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ArgumentError(f"{name} must be positive; got {value:g}.")


@dataclasses.dataclass(frozen=True)
class Solved:
    """Solution of the normal equations.

    Attributes
    ----------
    solution
        ``(size,)`` unknowns.
    inverse
        ``(size, size)`` matrix that takes the right side to the unknowns.
    penalty
        ``(size, size)`` matrix that was added to the normal matrix.
    covariance
        ``(size, size)`` covariance of the unknowns, if the noise is white and the weights hold
        all of it.
    condition
        Condition number of the scaled matrix.
    effective
        Effective number of unknowns, which the penalties lower.
    chi_square
        χ² of the unknowns before they are corrected for the source's noise, which raises χ².
    """

    solution: Array
    inverse: Array
    penalty: Array
    covariance: Array
    condition: float
    effective: float
    chi_square: float


class Design:
    """Relation between the unknowns of a field and the coefficients of each stamp."""

    def __init__(
        self,
        basis: KernelBasis,
        kernel_terms: Array,
        background_terms: Array,
        options: FitOptions,
    ) -> None:
        self.basis, self.options = basis, options
        self.kernel_terms, self.background_terms = kernel_terms, background_terms
        self._weights_found: Array | None = None
        n_kernel = kernel_terms.shape[1]
        self.first = 1 if options.constant_sum else n_kernel
        self.n_varying = (len(basis) - 1) * n_kernel
        self.size = self.first + self.n_varying + background_terms.shape[1]

    def _parts(self) -> tuple[slice, slice, slice]:
        varying = self.first + self.n_varying
        return slice(0, self.first), slice(self.first, varying), slice(varying, self.size)

    def _unknown_of(self) -> Array:
        """Unknown that belongs to each (coefficient of a stamp, spatial term); −1 for none."""
        n_kernel, n_background = self.kernel_terms.shape[1], self.background_terms.shape[1]
        first, varying, background = self._parts()
        table = np.full((len(self.basis) + 1, max(n_kernel, n_background)), -1)
        table[0, : self.first] = np.arange(first.start, first.stop)
        table[1:-1, :n_kernel] = np.arange(varying.start, varying.stop).reshape(-1, n_kernel)
        table[-1, :n_background] = np.arange(background.start, background.stop)
        return table

    def _sum(self, grams: Array, used: Array) -> Array:
        """Normal matrix of the unknowns: the sum over the stamps that are used."""
        grams, kernel, level = grams[used], self.kernel_terms[used], self.background_terms[used]
        n, n_kernel, m = len(grams), kernel.shape[1], grams.shape[1] - 1
        # Products of matrices: the terms of all stamps with their grams.
        pairs = (kernel[:, :, None] * kernel[:, None, :]).reshape(n, -1)
        summed = (pairs.T @ grams[:, :-1, :-1].reshape(n, -1)).reshape(n_kernel, n_kernel, m, m)
        both = summed.transpose(2, 0, 3, 1).reshape(m * n_kernel, -1)
        mixed = np.einsum("np,nb,nq->bpq", kernel, grams[:, :-1, -1], level, optimize=True)
        mixed = mixed.reshape(m * n_kernel, -1)
        # The first coefficient may have fewer terms.
        kept = np.r_[: self.first, n_kernel : m * n_kernel]
        total = np.empty((self.size, self.size))
        _, _, background = self._parts()
        unknowns = slice(0, background.start)
        total[unknowns, unknowns] = both[np.ix_(kept, kept)]
        total[unknowns, background] = mixed[kept]
        total[background, unknowns] = mixed[kept].T
        total[background, background] = (level * grams[:, -1:, -1]).T @ level
        return total

    def _sum_right(self, rights: Array, used: Array) -> Array:
        first, varying, background = self._parts()
        result = np.empty(self.size)
        kernel, level = self.kernel_terms[used], self.background_terms[used]
        result[first] = rights[used, 0] @ kernel[:, : self.first]
        result[varying] = (rights[used, 1:-1].T @ kernel).ravel()
        result[background] = rights[used, -1] @ level
        return result

    def solve(self, normals: Normals, used: Array) -> Solved:
        """Most likely solution from some of the stamps."""
        n_used = int(used.sum())
        # Each spatial term is an image of its own: a varying kernel needs more stars than terms.
        n_kernel = self.kernel_terms.shape[1]
        fewest = max(3, 2 * n_kernel if n_kernel > 1 else 1, self.background_terms.shape[1])
        if n_used < fewest:
            orders = self.options.kernel_order or self.options.background_order
            remedy = "the images have too few stars in common; larger parts of them have more"
            if orders:
                remedy = "lower the orders"
            elif 2 * n_used < len(used):
                remedy = (
                    "the others are too unlike to share a kernel, as they are where the stars of"
                    " one image are not in the other, or where no kernel makes the PSF of one"
                    " image into that of the other"
                )
            raise TooFewSourcesError(
                f"{n_used} of {len(used)} stamps are usable, but kernel order"
                f" {self.options.kernel_order} and background order"
                f" {self.options.background_order} need at least {fewest}; {remedy}.",
                found=n_used,
                required=fewest,
            )
        gram, right = self._sum(normals.gram, used), self._sum_right(normals.right, used)
        penalties = self._penalties()
        weights = self._weights(
            gram,
            right,
            float(normals.square[used].sum()),
            float(normals.pixels[used].sum()),
            penalties,
        )
        penalty = np.zeros_like(gram)
        for weight, (single, _) in zip(weights, penalties, strict=True):
            penalty += weight * single
        matrix = gram + penalty
        # Unit diagonal: the condition then does not depend on the units of the unknowns.
        scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
        scaled = matrix * np.outer(scale, scale)
        eigenvalues = scipy.linalg.eigvalsh(scaled)
        condition = float(eigenvalues[-1] / max(eigenvalues[0], 1e-300))
        if not condition < _LARGEST_CONDITION:
            raise DataError(
                f"The fit of {self.size} unknowns to {n_used} stamps is singular (condition"
                f" {condition:.1g}); lower the spatial orders or use more stars."
            )
        factor = scipy.linalg.cho_factor(scaled)
        inverse = np.outer(scale, scale) * scipy.linalg.cho_solve(factor, np.eye(self.size))
        effective = float(np.einsum("ij,ij->", inverse, gram))
        first = inverse @ right
        chi_square = float(normals.square[used].sum() - (right + penalty @ first) @ first)
        if normals.noise is not None:
            inverse = _without_attenuation(matrix, self._sum(normals.noise, used))
        covariance = inverse @ gram @ inverse
        return Solved(
            inverse @ right, inverse, penalty, covariance, condition, effective, chi_square
        )

    def explained(self, normals: Normals, used: Array, penalty: Array) -> float:
        """Decrease of the penalised misfit by the best unknowns."""
        matrix, right = (
            self._sum(normals.gram, used) + penalty,
            self._sum_right(normals.right, used),
        )
        scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
        factor = scipy.linalg.cholesky(matrix * np.outer(scale, scale), lower=True)
        half = scipy.linalg.solve_triangular(factor, scale * right, lower=True)
        return float(half @ half)

    def with_places_exchanged(self, used: Array, order: Array) -> Design:
        """Design in which stars exchange their spatial terms of the highest order.

        Parameters
        ----------
        used
            ``(n,)`` boolean: stars that exchange their terms.
        order
            Indices of these stars, in another order.
        """
        order_of = [p + q for p, q in chebyshev_terms(self.options.kernel_order)]
        highest = np.array(order_of) == self.options.kernel_order
        terms = self.kernel_terms.copy()
        terms[np.ix_(used, highest)] = self.kernel_terms[np.ix_(order, highest)]
        return Design(self.basis, terms, self.background_terms, self.options)

    def sum_error(self, normals: Normals, used: Array, solved: Solved) -> float:
        """Standard deviation of the kernel's sum in the middle of the frame.

        The larger of two: from the weights, and from the sum's changes when groups of stars are
        left out (the jackknife of Quenouille and Tukey; Efron 1982, The Jackknife, the Bootstrap
        and Other Resampling Plans, chapter 3) with unchanged penalties.  The weights know nothing
        of misfits that no kernel describes, nor of noise that a kernel correlates.
        """
        gradient = self.sum_gradient()
        by_weights = math.sqrt(max(0.0, float(gradient @ solved.covariance @ gradient)))
        members = np.flatnonzero(used)
        number = min(len(members), _MOST_GROUPS)
        # Without the source's noise, as in the solution.
        grams = normals.gram if normals.noise is None else normals.gram - normals.noise
        local = self.local(solved.solution)
        scores = normals.right - np.einsum("nmk,nk->nm", grams, local)
        changes = np.empty(number)
        for k in range(number):
            # Stars are sorted by brightness: this way every group has bright and faint ones.
            group = np.zeros(len(used), bool)
            group[members[k::number]] = True
            change = solved.inverse @ self._sum_right(scores, group)
            changes[k] = gradient @ change
            if self.size >= _MANY_UNKNOWNS:
                continue
            left = np.eye(self.size) - solved.inverse @ self._sum(grams, group)
            with contextlib.suppress(np.linalg.LinAlgError):
                whole = float(gradient @ np.linalg.solve(left, change))
                # Bounded, since penalties stay as they are: without a star that alone holds the
                # shape they would be others.
                most = _LARGEST_LEVERAGE * abs(changes[k])
                changes[k] = min(max(whole, -most), most)
        by_stars = math.sqrt((number - 1) * float(np.var(changes)))
        return max(by_weights, by_stars)

    def _penalties(self) -> list[tuple[Array, int]]:
        """Penalties on the kernel's mean and on each order of its variation, and their ranks."""
        if self.basis.penalty is None:
            return []
        table = self._unknown_of()[:-1, : self.kernel_terms.shape[1]]
        # Real PSFs vary far more to first order than beyond: one weight for all would bend
        # the slope or leave noise in the curvature.
        orders = np.array([p + q for p, q in chebyshev_terms(self.options.kernel_order)])
        result = []
        for order in range(self.options.kernel_order + 1):
            columns = table[:, orders == order].T
            single, rank = self._penalty(columns[0] >= 0)
            penalty = np.zeros((self.size, self.size))
            for unknowns in columns:
                kept = unknowns[unknowns >= 0]
                penalty[np.ix_(kept, kept)] = single
            result.append((penalty, rank * len(columns)))
        return result

    def _penalty(self, kept: Array) -> tuple[Array, int]:
        """Penalty on some of the coefficients, the others zero, and its rank."""
        assert self.basis.penalty is not None
        penalty, typical = self.basis.penalty[np.ix_(kept, kept)], self.basis.typical
        if typical is None:
            return penalty, len(penalty)
        # Only combinations of typical kernels whose other coefficients are zero, such as their
        # differences: where a PSF widens, one typical kernel turns into another.
        typical = typical[kept] @ scipy.linalg.null_space(typical[~kept])
        if typical.shape[1] == 0:
            return penalty, len(penalty)
        # The roughness of the remainder after the nearest typical kernel is subtracted.
        rough = penalty @ typical
        common = typical.T @ rough
        return penalty - rough @ np.linalg.solve(common, rough.T), len(penalty) - typical.shape[1]

    def _weights(
        self,
        gram: Array,
        right: Array,
        square: float,
        pixels: float,
        penalties: list[tuple[Array, int]],
    ) -> Array:
        """Weights of the penalties: as asked for, or of largest restricted likelihood."""
        kernel = float(np.trace(gram)) - float(np.diag(gram)[self._parts()[2]].sum())
        scales = np.array([kernel / np.trace(penalty) for penalty, _ in penalties])
        if not penalties or not kernel > 0:
            return scales
        if self.options.smoothness is not None:
            return self.options.smoothness * scales
        if self._weights_found is not None:
            return self._weights_found * scales
        ranks = np.array([rank for _, rank in penalties])
        free = pixels - (self.size - ranks.sum())
        likelihood = _Likelihood(
            gram,
            right,
            square,
            max(free, 1.0),
            [
                (scale * penalty, rank)
                for scale, (penalty, rank) in zip(scales, penalties, strict=True)
            ],
            known_noise=self.options.known_noise,
        )
        found = np.exp(likelihood.likeliest())
        if self.size >= _MANY_UNKNOWNS:
            # Rejecting a few stamps changes little, and to search again costs minutes.
            self._weights_found = found
        return found * scales

    def local(self, solution: Array) -> Array:
        """``(n_stamps, n_basis + 1)`` coefficients of every stamp."""
        first, varying, background = self._parts()
        table = solution[varying].reshape(len(self.basis) - 1, -1)
        result = np.empty((len(self.kernel_terms), len(self.basis) + 1))
        result[:, 0] = self.kernel_terms[:, : self.first] @ solution[first]
        result[:, 1:-1] = self.kernel_terms @ table.T
        result[:, -1] = self.background_terms @ solution[background]
        return result

    def kernel_coefficients(self, solution: Array) -> Array:
        """Chebyshev matrices of the basis images' coefficients."""
        first, varying, _ = self._parts()
        order = self.options.kernel_order
        table = np.zeros((len(self.basis), self.kernel_terms.shape[1]))
        table[0, : self.first] = solution[first]
        table[1:] = solution[varying].reshape(len(self.basis) - 1, -1)
        matrices = np.zeros((len(self.basis), order + 1, order + 1))
        for column, (p, q) in enumerate(chebyshev_terms(order)):
            matrices[:, p, q] = table[:, column]
        return matrices

    def background_coefficients(self, solution: Array) -> Array:
        """Chebyshev matrix of the background."""
        order = self.options.background_order
        if not self.options.background:
            return np.zeros((1, 1))
        matrix = np.zeros((order + 1, order + 1))
        terms = chebyshev_terms(order)
        for (p, q), value in zip(terms, solution[self._parts()[2]], strict=True):
            matrix[p, q] = value
        return matrix

    def sum_gradient(self) -> Array:
        """Derivative by the unknowns of the kernel's sum in the middle of the frame."""
        gradient = np.zeros(self.size)
        middle = chebyshev_products(self.options.kernel_order, np.zeros(1), np.zeros(1))[0]
        gradient[: self.first] = middle[: self.first]
        return gradient


@dataclasses.dataclass(frozen=True)
class _Likelihood:
    """Restricted likelihood of the weights of penalties (Wood 2011, section 2).

    ``square`` is the weighted square of the data, ``free`` their number less that of unknowns
    without a penalty; ``penalties`` hold matrices and their ranks.
    """

    gram: Array
    right: Array
    square: float
    free: float
    penalties: list[tuple[Array, int]]
    known_noise: bool

    def likeliest(self) -> Array:
        """Logarithms of the weights of largest likelihood, by Newton's method within bounds."""
        down, up = (math.log(factor) for factor in _SMOOTHNESS_RANGE)
        start = np.full(len(self.penalties), math.log(_START_SMOOTHNESS))
        lower, upper = start - down, start + up
        best, value = start, self.deviance(start)
        # Far from the best weights the deviance is flat or bent the wrong way: begin near them.
        # The highest order first, else it takes what the lower ones explain.
        for which in np.eye(len(start))[::-1]:
            for shift in _SHIFTS:
                before = value
                while True:
                    there = (best + shift * which).clip(lower, upper)
                    if not (then := self.deviance(there)) < value:
                        break
                    best, value = there, then
                if value < before:
                    break
        if not math.isfinite(value):
            return start
        for _ in range(_NEWTON_STEPS):
            slopes, curvature = self._slopes(best)
            # Weights that their bounds hold do not move.
            moves = ~((best <= lower) & (slopes > 0) | (best >= upper) & (slopes < 0))
            if not moves.any():
                break
            values, axes = np.linalg.eigh(curvature[np.ix_(moves, moves)])
            steepest = axes.T @ slopes[moves]
            step = np.zeros(len(best))
            step[moves] = -axes @ (steepest / np.maximum(np.abs(values), _LEAST_CURVATURE))
            step *= min(1.0, _LONGEST_STEP / float(np.abs(step).max()))
            for _ in range(_HALVINGS):
                there = (best + step).clip(lower, upper)
                then = self.deviance(there)
                if then < value:
                    break
                step /= 2
            else:
                break
            gain, best, value = value - then, there, then
            # The deviance scatters by far more than a tenth of a unit.
            if gain < _LITTLE_DEVIANCE:
                break
        return best

    def _matrix(self, logarithms: Array) -> Array:
        matrix = self.gram.copy()
        for logarithm, (penalty, _) in zip(logarithms, self.penalties, strict=True):
            matrix += math.exp(logarithm) * penalty
        return matrix

    def deviance(self, logarithms: Array) -> float:
        """−2 log of the likelihood, up to a constant, at its best scale."""
        matrix = self._matrix(logarithms)
        norm = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
        try:
            factor = scipy.linalg.cholesky(matrix * np.outer(norm, norm), lower=True)
        except scipy.linalg.LinAlgError:
            return math.inf
        pivots = np.diag(factor)
        # Refuse penalties too stiff to solve: the ratio bounds the condition from below.
        if (pivots.max() / pivots.min()) ** 2 > _LARGEST_PIVOT_RATIO:
            return math.inf
        half = scipy.linalg.solve_triangular(factor, norm * self.right, lower=True)
        rest = self._rest(float(half @ half))
        determinant = 2 * float(np.log(pivots).sum() - np.log(norm).sum())
        # If the noise's scale is unknown, its most likely value is inserted.
        misfit = rest if self.known_noise else self.free * math.log(rest)
        return (
            misfit
            + determinant
            - sum(
                rank * logarithm
                for logarithm, (_, rank) in zip(logarithms.tolist(), self.penalties, strict=True)
            )
        )

    def _rest(self, explained: float) -> float:
        return max(self.square - explained, 1e-300 + 1e-12 * self.square)

    def _slopes(self, logarithms: Array) -> tuple[Array, Array]:
        """First and second derivatives of the deviance."""
        matrix = self._matrix(logarithms)
        norm = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
        factor = scipy.linalg.cho_factor(matrix * np.outer(norm, norm))
        inverse = np.outer(norm, norm) * scipy.linalg.cho_solve(factor, np.eye(len(matrix)))
        found = inverse @ self.right
        weighed = [
            math.exp(logarithm) * penalty
            for logarithm, (penalty, _) in zip(logarithms, self.penalties, strict=True)
        ]
        # Each penalty has unknowns of its own: only these columns are not zero.
        own = [np.flatnonzero(each.any(axis=0)) for each in weighed]
        spread = [inverse[:, k] @ each[np.ix_(k, k)] for each, k in zip(weighed, own, strict=True)]
        pulls = np.stack([each @ found for each in weighed])
        rest = self._rest(float(self.right @ found))
        scale = 1.0 if self.known_noise else self.free / rest
        roughness = pulls @ found
        traces = np.array([np.trace(each[k]) for each, k in zip(spread, own, strict=True)])
        slopes = scale * roughness + traces - np.array([rank for _, rank in self.penalties])
        curvature = -2 * scale * (pulls @ inverse @ pulls.T)
        for i, j in np.ndindex(curvature.shape):
            curvature[i, j] -= np.sum(spread[j][own[i]] * spread[i][own[j]].T)
        if not self.known_noise:
            curvature -= scale / rest * np.outer(roughness, roughness)
        return slopes, curvature + np.diag(scale * roughness + traces)


def _without_attenuation(matrix: Array, noise: Array) -> Array:
    """Inverse of a matrix M less its noise part N, as far as it is bounded.

    With ``M = L Lᵀ`` and ``L⁻¹ N L⁻ᵀ = U r Uᵀ`` it is ``L⁻ᵀ U (1 − r)⁻¹ Uᵀ L⁻¹``.  M holds N on
    average, so that r is below 1 in directions with more than noise.  In others this inverse is
    not bounded, and fades to the inverse of M, which follows no noise.
    """
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    half = scipy.linalg.cholesky(matrix * np.outer(scale, scale), lower=True)
    half = scipy.linalg.solve_triangular(half, np.diag(scale), lower=True)
    shares, vectors = scipy.linalg.eigh(half @ noise @ half.T)
    signal = 1 - np.clip(shares, 0, 1)
    gain = np.maximum(1, signal**3 / (signal**4 + _LEAST_SIGNAL**4))
    vectors = half.T @ vectors
    result: Array = (vectors * gain) @ vectors.T
    return result
