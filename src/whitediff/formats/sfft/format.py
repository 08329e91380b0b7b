"""Format of SFFT files."""

from __future__ import annotations

from pathlib import Path

import astropy.io.fits

from ...direction import Direction
from ...exposures.boxes import Box
from ...exposures.kernels import ConvolutionKernel
from ..difference import Difference, KernelElsewhereError
from ..files import Extension
from ..format import Format, Identity, whole
from .read import read, read_difference, read_solution
from .recognise import recognise

__all__ = ["FORMAT"]

_NAME = "sfft"


def _recognise(hdus: astropy.io.fits.HDUList) -> Identity | None:
    found = recognise(hdus)
    if found is None:
        return None
    if found == "kernel":
        return Identity(_NAME, "kernel", "SFFT solution")
    return Identity(_NAME, "difference", f"SFFT {found}")


def _read_difference(
    path: Path,
    extension: Extension,
    *,
    identity: Identity | None,
    kernel: Path | None,
    of_kernel: Identity | None,
    convolved: Direction | None,
    needs_variance: bool,
) -> Difference | None:
    """Difference of any program, if its kernel is a solution of SFFT."""
    if kernel is not None and of_kernel is not None and of_kernel.format == _NAME:
        return read_difference(
            path, solution_path=kernel, convolved=convolved, needs_variance=needs_variance
        )
    if identity is not None and identity.format == _NAME and kernel is None:
        raise KernelElsewhereError.of(
            path,
            "is a difference of SFFT, whose kernel is in another file; name the solution"
            " as fourth argument.",
        )
    return None


def _read_kernel(path: Path, identity: Identity, *, bounds: Box) -> ConvolutionKernel | None:
    if identity.kind != "kernel":
        return None
    return read_solution(path, shape=(bounds.y.size, bounds.x.size)).kernel


def _kernel_and_box(path: Path, identity: Identity) -> tuple[ConvolutionKernel, Box] | None:
    if identity.kind != "kernel":
        return None
    solution = read_solution(path)
    return solution.kernel, solution.box


def _roles(
    hdus: astropy.io.fits.HDUList, identity: Identity, extension: Extension, path: Path
) -> dict[int, str] | None:
    return {0: "kernel"} if identity.kind == "kernel" else None


FORMAT = Format(
    name=_NAME,
    recognise=_recognise,
    read=whole(read),
    read_difference=_read_difference,
    read_kernel=_read_kernel,
    kernel_and_box=_kernel_and_box,
    roles=_roles,
)
