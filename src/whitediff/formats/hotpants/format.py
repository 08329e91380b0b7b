"""Format of HOTPANTS files."""

from __future__ import annotations

from pathlib import Path

import astropy.io.fits

from ...errors import FileFormatError
from ...exposures.boxes import Box
from ...exposures.kernels import ConvolutionKernel
from ..difference import Difference
from ..files import Extension, opened
from ..format import Format, Identity, Kind, whole
from .read import read, read_difference, read_solution
from .recognise import kernel_table, layer, missing_layers, recognise

__all__ = ["FORMAT"]

_NAME = "hotpants"
_KINDS: dict[str, Kind] = {"difference": "difference", "kernel": "kernel"}


def _recognise(hdus: astropy.io.fits.HDUList) -> Identity | None:
    found = recognise(hdus)
    if found is None:
        return None
    kind = _KINDS.get(found, "image")
    return Identity(_NAME, kind, f"HOTPANTS {found}", has_noise=kind == "difference")


def _read_difference(
    path: Path,
    extension: Extension,
    *,
    identity: Identity | None,
    kernel: Path | None,
    of_kernel: Identity | None,
    convolved: str | None,
    needs_variance: bool,
) -> Difference | None:
    """Difference of HOTPANTS, unless its kernel is from another program."""
    if identity is None or (identity.format, identity.kind) != (_NAME, "difference"):
        return None
    if extension is not None or (of_kernel is not None and of_kernel.format != _NAME):
        return None
    found = read_difference(path, kernel_path=kernel, needs_variance=needs_variance)
    if convolved is not None and {side for _, side in found.directions} != {convolved}:
        raise FileFormatError.of(
            path,
            f"HOTPANTS says that it convolved"
            f" {', '.join(side for _, side in found.directions)}, not the {convolved} image;"
            " leave out --convolved.",
        )
    return found


def _read_kernel(path: Path, identity: Identity, *, bounds: Box) -> ConvolutionKernel:
    if identity.kind != "difference":
        with opened(path) as hdus:
            kind = recognise(hdus)
        raise FileFormatError.of(
            path,
            f"is a {kind} of HOTPANTS; its kernel is read with the difference that it belongs to.",
        )
    solution = read_solution(path)
    if solution.box != bounds:
        raise FileFormatError.of(
            path, f"its kernel is for {solution.box}, but the image covers {bounds}."
        )
    return solution.kernel


def _missing_planes(hdus: astropy.io.fits.HDUList, identity: Identity) -> list[str]:
    return missing_layers(hdus) if identity.kind == "difference" else []


def _roles(
    hdus: astropy.io.fits.HDUList, identity: Identity, extension: Extension, path: Path
) -> dict[int, str]:
    table = kernel_table(hdus)
    roles = {i: "kernel" if hdu is table else layer(hdu) or "" for i, hdu in enumerate(hdus)}
    return roles | {0: "difference"} if identity.kind == "difference" else roles


def _facts(hdus: astropy.io.fits.HDUList, identity: Identity) -> dict[str, str] | None:
    table = kernel_table(hdus) if identity.kind == "kernel" else None
    if table is None:
        return None
    header = table.header
    return {
        "kernel": f"{header.get('FWKERN')} pixels wide, order {header.get('CKORDER')},"
        f" {len(table.columns)} regions; it is read with the difference that it belongs to"
    }


FORMAT = Format(
    name=_NAME,
    recognise=_recognise,
    read=whole(read),
    read_difference=_read_difference,
    read_kernel=_read_kernel,
    missing_planes=_missing_planes,
    roles=_roles,
    facts=_facts,
)
