"""Differences made region by region, each with a kernel and a direction of its own."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..direction import Direction
from ..errors import ArgumentError
from ..exposures import masks
from ..exposures.boxes import Box
from ..exposures.fields import ChebyshevField, Field, PiecewiseField, scaled_to
from ..exposures.kernels import BasisKernel, ConvolutionKernel
from ..exposures.masks import Mask
from ..exposures.model import Exposure, Provenance
from ..exposures.psf import KernelPointSpreadFunction, Light
from ..noise.exposures import InputNoise, source_pixels
from ..numerics import planes
from .exposures import (
    Decorrelation,
    DecorrelationOptions,
    decorrelate,
    refuse_decorrelated,
    typical_variance,
    variance_mean,
)

__all__ = ["Region", "decorrelate_regions", "kernel_of_region"]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.decorrelate")

_MARGIN = 112
"""Pixels around a region that are filtered with it: more than the reach of any correction."""


@dataclasses.dataclass(frozen=True)
class Region:
    """A part of the frame that was subtracted by itself.

    Attributes
    ----------
    box
        Pixels of the region.
    convolved
        Which image was convolved with the matching kernel there.
    """

    box: Box
    convolved: Direction


def kernel_of_region(kernel: ConvolutionKernel, index: int, box: Box) -> ConvolutionKernel:
    """Kernel of one region, defined on a box that may be larger.

    Parameters
    ----------
    kernel
        Kernel of all regions, with fields `whitediff.exposures.fields.PiecewiseField`; any other
        kernel is the same in all regions.
    index
        Index of the region.
    box
        Box in which the kernel is wanted; its polynomials are continued there.

    Returns
    -------
    kernel
        Kernel without pieces.
    """
    if not isinstance(kernel, BasisKernel):
        return kernel
    fields = []
    for field in kernel.fields:
        if isinstance(field, PiecewiseField):
            field = field.pieces[index][1]
        if isinstance(field, ChebyshevField):
            field = scaled_to(field, box)
        fields.append(field)
    return BasisKernel(kernel.basis, fields)


def decorrelate_regions(
    science: object,
    template: object,
    difference: object,
    regions: Sequence[Region],
    *,
    noise: InputNoise | None = None,
    sources: Array | None = None,
    options: DecorrelationOptions | None = None,
) -> Decorrelation:
    """Whiten a difference that was made region by region.

    Parameters
    ----------
    science, template
        The exposures before any convolution.
    difference
        Difference of them, at the science level, with its kernel in pieces.
    regions
        One for each piece; where they overlap the later one holds.
    noise, sources, options
        As for `whitediff.decorrelation.exposures.decorrelate`; the regions say which exposure was
        convolved.

    Returns
    -------
    result
        Decorrelation of the whole frame; its other numbers describe the region that holds the
        frame's middle.

    Raises
    ------
    ArgumentError, DataError
        As by `decorrelate`, and if there is no region, or a score is wanted.

    Notes
    -----
    Each region is filtered with a margin of its surroundings, whose noise is correlated by another
    kernel: within the filter's reach of a border the result is white up to the difference of the
    two corrections.  Pixels outside all regions become NO_DATA.
    """
    options = options or DecorrelationOptions(spatially_varying=True)
    if not regions:
        raise ArgumentError("A difference that was made in regions needs at least one.")
    if options.score:
        raise ArgumentError("A score image cannot be made of regions with kernels of their own.")
    pair = {"science": Exposure.from_object(science), "template": Exposure.from_object(template)}
    whole = Exposure.from_object(difference)
    refuse_decorrelated(whole)
    box, kernel = whole.bbox, whole.kernel
    if kernel is None:
        raise ArgumentError("No matching kernel: the difference carries none.")
    if sources is None:
        sources = source_pixels(*pair.values(), only_bright=options.noise == "white")
    noise = (noise or InputNoise()).with_measured(
        pair["science"], pair["template"], sources, how=options.noise
    )
    # Regions differ in noise: a given mean variance scales each region's own mean.
    levels = {
        name: value / variance_mean(pair[name], options.ignore_mask_planes)
        for name, value in (
            ("science", noise.science_variance),
            ("template", noise.template_variance),
        )
        if value is not None
    }
    image = planes.empty(whole.shape, np.result_type(whole.data, np.float32))
    variance = planes.empty(whole.shape, np.float32)
    image[:], variance[:] = np.nan, np.nan
    covered = planes.zeros(whole.shape, bool)
    contaminated = planes.zeros(whole.shape, bool)
    mask, results = whole.mask, []
    for index, region in enumerate(regions):
        inner = region.box.overlap(box)
        if inner is None:
            raise ArgumentError(f"The region {region.box} is outside the difference's {box}.")
        outer = inner.grown(_MARGIN).overlap(box)
        assert outer is not None
        _log.debug("Region %d: %s, %s convolved.", index, inner, region.convolved)
        rows, columns = box.slices_of(outer)
        parts = {name: exposure.cutout(outer) for name, exposure in pair.items()}
        part = whole.cutout(outer)
        part.source, part.kernel = whole.source, kernel_of_region(kernel, index, outer)
        variances: dict[str, Any] = {
            f"{name}_variance": level * variance_mean(parts[name], options.ignore_mask_planes)
            for name, level in levels.items()
        }
        result = decorrelate(
            parts["science"],
            parts["template"],
            part,
            noise=dataclasses.replace(noise, **variances),
            sources=sources[rows, columns],
            # Covariances were measured above, for the whole frame.
            options=dataclasses.replace(
                options, noise="white", convolved=region.convolved, again=True
            ),
        )
        here, there = box.slices_of(inner), outer.slices_of(inner)
        image[here] = result.exposure.data[there]
        variance[here] = result.exposure.variance[there]
        contaminated[here] = masks.flagged(result.exposure.mask, [masks.CONTAMINATED])[there]
        mask = _with_planes(mask, result.exposure.mask, here, there)
        covered[here] = True
        results.append(result)
    if not covered.all():
        mask = masks.with_plane(mask, "NO_DATA", ~covered)
    exposure = Exposure(
        image,
        variance,
        masks.with_plane(mask, masks.CONTAMINATED, contaminated),
        origin=box.start,
        unit=whole.unit,
        psf=_united_psf(whole, regions, results),
        header=whole.header.copy(),
        provenance=Provenance(
            primary_header=whole.primary_header.copy(),
            kernel=kernel,
            background=whole.background,
            decorrelated_by="decorrelate",
        ),
    )
    middle = PiecewiseField(
        box, [(region.box, ChebyshevField(box, np.ones((1, 1)))) for region in regions]
    ).piece_at(x=box.x.center, y=box.y.center)
    ignore = options.ignore_mask_planes
    return dataclasses.replace(
        results[middle],
        exposure=exposure,
        variance_mean_before=typical_variance(whole, ignore),
        variance_mean_after=typical_variance(exposure, ignore),
        contaminated_fraction=float(contaminated.mean()),
    )


def _with_planes(
    mask: Mask, other: Mask, here: tuple[slice, slice], there: tuple[slice, slice]
) -> Mask:
    """Mask with the planes that a correction added in a region, except CONTAMINATED."""
    for name in other.names:
        if name in mask or name == masks.CONTAMINATED:
            continue
        plane = np.zeros(mask.shape, bool)
        plane[here] = masks.flagged(other, [name])[there]
        mask = masks.with_plane(mask, name, plane)
    return mask


def _united_psf(
    whole: Exposure, regions: Sequence[Region], results: Sequence[Decorrelation]
) -> KernelPointSpreadFunction | None:
    """PSF of the whole, from the regions' PSFs: each counts in its own region alone."""
    box = whole.bbox
    nothing = ChebyshevField(box, np.zeros((1, 1)))
    found = [result.exposure.psf for result in results]
    if whole.psf is None or not all(isinstance(psf, KernelPointSpreadFunction) for psf in found):
        return None
    images: list[Array] = []
    fields: list[Field] = []
    for index, psf in enumerate(found):
        assert isinstance(psf, KernelPointSpreadFunction)
        for image, field in zip(psf.kernel.basis, psf.kernel.fields, strict=True):
            images.append(image)
            own: list[tuple[Box, Field]] = [
                (region.box, field if i == index else nothing) for i, region in enumerate(regions)
            ]
            fields.append(PiecewiseField(box, own))
    shape = [max(stamp.shape[axis] for stamp in images) for axis in (0, 1)]
    padded = []
    for stamp in images:
        before = [n // 2 - m // 2 for n, m in zip(shape, stamp.shape, strict=True)]
        after = [n - m - b for n, m, b in zip(shape, stamp.shape, before, strict=True)]
        padded.append(np.pad(stamp, list(zip(before, after, strict=True))))
    return KernelPointSpreadFunction(
        BasisKernel(np.stack(padded), fields),
        average_position=whole.psf.average_position,
        # The parts' light differs by far less than its own error.
        light=dataclasses.replace(
            Light.of_parts([Light.of(psf) for psf in found if psf is not None]),
            error=Light.of(whole.psf).error,
        ),
    )
