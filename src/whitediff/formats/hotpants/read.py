"""Reading of HOTPANTS differences: kernel, noise image and mask bits."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import numpy.typing as npt

from ...errors import FileFormatError
from ...exposures import masks
from ...exposures.boxes import Box
from ...exposures.model import Exposure, Provenance
from ...formats import plain
from ...numerics.planes import filled
from ..difference import Difference, KernelElsewhereError
from ..files import Extension, opened
from ..limits import leads_to
from .command import Command
from .recognise import kernel_table, layer, recognise
from .solution import Direction, HotpantsRegion, HotpantsSolution, sums_agree, widened

__all__ = ["read", "read_difference", "read_solution"]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.formats")

_BITS = {
    0x0001: ("BAD_PIXVAL", "The input pixel has the value that stands for none."),
    0x0002: ("SAT", "The input pixel is saturated."),
    0x0004: ("LOW_PIXEL", "The input pixel is below the lowest valid value."),
    0x0008: ("UNMASKEDNAN", "The input pixel is not a number."),
    0x0010: ("BAD_CONV", "Too much of the kernel's weight is on masked pixels."),
    0x0020: ("INPUT_MASK", "An input mask marks the pixel."),
    0x0040: ("OK_CONV", "Little of the kernel's weight is on masked pixels."),
    0x0080: ("INPUT_BAD", "The input pixel is bad."),
    0x0100: ("T_BAD", "Not for stamps of the template."),
    0x0200: ("T_SKIP", "Not for stamps of the template."),
    0x0400: ("I_BAD", "Not for stamps of the image."),
    0x0800: ("I_SKIP", "Not for stamps of the image."),
    0x8000: ("BAD", "HOTPANTS takes the pixel of the difference for bad."),
}
_REGION = re.compile(r"\[(\d+):(\d+),(\d+):(\d+)\]")
_DIRECTIONS: dict[str, Direction] = {"TEMPLATE": "template", "IMAGE": "science"}
_MOST_GAUSSIANS, _HIGHEST_DEGREE, _HIGHEST_ORDER = 20, 20, 10


def read_solution(path: Path, *, kernel_path: Path | None = None) -> HotpantsSolution:
    """Read the kernel of a difference.

    Parameters
    ----------
    path
        Difference.
    kernel_path
        File of ``-oki``; None: the difference itself, or the file that it names.

    Returns
    -------
    solution
        Solution, complete and free of contradictions.

    Raises
    ------
    FileFormatError
        If there is no kernel, or table, header and command contradict each other.
    """
    with opened(path) as hdus:
        if recognise(hdus) != "difference":
            raise FileFormatError.of(path, "is no difference of HOTPANTS.")
        header, table = hdus[0].header, kernel_table(hdus)
        if kernel_path is None and table is None:
            kernel_path = _kernel_beside(header, path)
        if kernel_path is None:
            return _solution(header, header, table, path, path)
        with opened(kernel_path) as others:
            table = kernel_table(others)
            if table is None:
                raise FileFormatError.of(
                    kernel_path, "holds no kernel of HOTPANTS; its last HDU would be the table."
                )
            return _solution(header, others[0].header, table, path, kernel_path)


def _kernel_beside(header: astropy.io.fits.Header, path: Path) -> Path:
    name = header.get("KERFILE")
    found = leads_to(name, path)[0] if isinstance(name, str) else None
    if found is not None:
        return found
    raise KernelElsewhereError.of(
        path,
        "is a difference of HOTPANTS without its kernel"
        + (f"; {name!r}, which it names, is not beside it" if isinstance(name, str) else "")
        + ". Name the kernel's file as fourth argument, or run HOTPANTS with -hki.",
    )


def _solution(
    header: astropy.io.fits.Header,
    regions_header: astropy.io.fits.Header,
    table: astropy.io.fits.BinTableHDU,
    path: Path,
    kernel_path: Path,
) -> HotpantsSolution:
    """Solution from the difference's header, the header with the regions, and the table."""

    def wrong(text: str) -> FileFormatError:
        return FileFormatError.of(kernel_path, f"{text}; is the file whole?")

    text = header.get("DIFFCMD")
    if not isinstance(text, str):
        raise FileFormatError.of(
            path,
            "lacks DIFFCMD, the command that it was made with, which part of the kernel's"
            " meaning depends on.",
        )
    command = Command.parse(text)
    if "pca" in command.options:
        raise wrong("its kernel has a basis of images (-pca), which the file does not hold")
    names = ("NGAUSS", "FWKERN", "CKORDER", "BGORDER")
    n_gaussians, width, order, background_order = (
        _integer(table.header, name, kernel_path) for name in names
    )
    shape = (_integer(header, "NAXIS2", path), _integer(header, "NAXIS1", path))
    if not (
        1 <= n_gaussians <= _MOST_GAUSSIANS
        and width % 2 == 1
        and 3 <= width <= min(shape)
        and 0 <= order <= _HIGHEST_ORDER
        and 0 <= background_order <= _HIGHEST_ORDER
    ):
        given = ", ".join(f"{name} = {table.header.get(name)}" for name in names)
        raise wrong(f"a kernel for {shape[0]} x {shape[1]} pixels cannot have {given}")
    gaussians = tuple(
        (
            _integer(table.header, f"DGAUSS{k}", kernel_path),
            _real(table.header, f"SGAUSS{k}", kernel_path),
        )
        for k in range(1, n_gaussians + 1)
    )
    if not all(0 <= d <= _HIGHEST_DEGREE and 0 < s < 10 * width for d, s in gaussians):
        raise wrong(f"degrees and widths of the Gaussians cannot be {gaussians}")
    normalization = header.get("PHOTNORM", table.header.get("PHOTNORM"))
    if not (isinstance(normalization, str) and normalization[:1] in ("i", "t", "u")):
        raise wrong(f"PHOTNORM must be i, t or u; got {normalization!r}")
    contradiction = command.disagreement(
        gaussians, width, (order, background_order), normalization[:1]
    )
    if contradiction is not None:
        raise wrong(contradiction)
    step = command.number("kcs", width)
    solution = HotpantsSolution(
        shape=shape,
        gaussians=gaussians,
        kernel_width=width,
        kernel_order=order,
        background_order=background_order,
        step=step if step > 0 else width,
        normalization=normalization[:1],  # type: ignore[arg-type]
        regions=(),
    )
    regions = _regions(solution, regions_header, table, command, kernel_path)
    return dataclasses.replace(solution, regions=regions)


def _regions(
    solution: HotpantsSolution,
    header: astropy.io.fits.Header,
    table: astropy.io.fits.BinTableHDU,
    command: Command,
    path: Path,
) -> tuple[HotpantsRegion, ...]:
    names = [str(name) for name in table.columns.names]
    rows = solution.n_coefficients
    if len(table.data) != rows:
        raise FileFormatError.of(
            path,
            f"its kernel needs {rows} coefficients by the table's header, but the table has"
            f" {len(table.data)}; is the file whole?",
        )
    if names != [f"Region{i}" for i in range(len(names))]:
        raise FileFormatError.of(
            path,
            f"the columns of its kernel's table are {', '.join(names)}; they must be"
            " Region0, Region1, …; is the file whole?",
        )
    x0, x1, y0, y1 = command.limits
    ny, nx = solution.shape
    limits = Box.between((y0, min(ny, y1 or ny)), (x0, min(nx, x1 or nx)))
    buffer = solution.kernel_width // 2
    if len(names) > 1:
        buffer = command.buffer(solution.shape, solution.kernel_width)
    found = []
    for i, name in enumerate(names):
        if f"REGION{i:02d}" not in header and len(names) > 1:
            _log.info("%s: HOTPANTS found no kernel for region %d of %d.", path, i, len(names))
            continue
        coefficients = np.array(table.data[name], dtype=np.float64)
        found.append(_region(i, header, coefficients, limits, buffer, path))
    if not found:
        raise FileFormatError.of(path, "HOTPANTS found no kernel for any region of it.")
    _check_layout(solution, found, command, limits, len(names), path)
    return tuple(found)


def _region(
    i: int,
    header: astropy.io.fits.Header,
    coefficients: Array,
    limits: Box,
    buffer: int,
    path: Path,
) -> HotpantsRegion:
    cards = {name: header.get(f"{name}{i:02d}") for name in ("REGION", "CONVOL", "KSUM")}
    corners = _REGION.fullmatch(str(cards["REGION"]).strip())
    direction = _DIRECTIONS.get(str(cards["CONVOL"]).strip())
    box = None
    if corners is not None:
        x0, x1, y0, y1 = (int(text) for text in corners.groups())
        if 1 <= x0 <= x1 and 1 <= y0 <= y1:
            box = Box.between((y0 - 1, y1), (x0 - 1, x1))
    if box is None or direction is None or not limits.contains(box):
        raise FileFormatError.of(
            path,
            f"REGION{i:02d} = {cards['REGION']!r} and CONVOL{i:02d} = {cards['CONVOL']!r}"
            f" name no region of {limits.x.stop} x {limits.y.stop} pixels and no image (TEMPLATE or"
            " IMAGE); is the file whole?",
        )
    if not np.isfinite(coefficients).all() or coefficients[1] == 0:
        raise FileFormatError.of(
            path, f"the kernel of region {i} is not finite or sums to zero; is the file whole?"
        )
    try:
        stated = float(str(cards["KSUM"]))
    except ValueError:
        stated = math.nan
    if not sums_agree(float(coefficients[1]), stated):
        raise FileFormatError.of(
            path,
            f"the kernel of region {i} sums to {coefficients[1]:.6g}, but KSUM{i:02d} is"
            f" {cards['KSUM']!r}; is the file whole?",
        )
    return HotpantsRegion(box, widened(box, limits, buffer), direction, coefficients)


def _check_layout(
    solution: HotpantsSolution,
    regions: list[HotpantsRegion],
    command: Command,
    limits: Box,
    n_columns: int,
    path: Path,
) -> None:
    """Refuse regions that the command cannot have made."""
    # These options take the regions, or the kernel, from another file or from cards.
    if {"rf", "rkw", "ki"} & set(command.options):
        return
    n_x, n_y = command.number("nrx", 1), command.number("nry", 1)
    if n_x * n_y != n_columns:
        raise FileFormatError.of(
            path,
            f"its kernel's table has {n_columns} regions, but the command asked for"
            f" {n_x} x {n_y}; is the file whole?",
        )
    last_x, last_y = limits.x.stop - 1, limits.y.stop - 1
    wanted = [
        Box.between(
            (
                limits.y.start + j * last_y // n_y,
                min((j + 1) * last_y // n_y, last_y) + 1,
            ),
            (
                limits.x.start + i * last_x // n_x,
                min((i + 1) * last_x // n_x, last_x) + 1,
            ),
        )
        for j in range(n_y)
        for i in range(n_x)
    ]
    for region in regions:
        if region.box not in wanted:
            raise FileFormatError.of(
                path,
                f"the region {region.box} is none that the command's {n_x} x {n_y} regions"
                f" of {limits} have; is the file whole?",
            )


def _integer(header: astropy.io.fits.Header, name: str, path: Path) -> int:
    value = header.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise FileFormatError.of(
            path, f"{name} must be a whole number; got {value!r}. Is the file whole?"
        )
    return value


def _real(header: astropy.io.fits.Header, name: str, path: Path) -> float:
    value = header.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FileFormatError.of(
            path, f"{name} must be a number; got {value!r}. Is the file whole?"
        )
    return float(value)


def read(path: Path, extension: Extension = None, **options: Any) -> Exposure:
    """Read a difference as an exposure, without a kernel in another file.

    Parameters
    ----------
    path
        File.
    extension
        None, or the HDU of another layer, which is read as a plain image.
    **options
        Options of `whitediff.formats.plain.read`.

    Returns
    -------
    exposure
        Exposure.  Variance and mask come from noise and mask image, if these are in the file or
        named by ``-oni`` and ``-omi``.  If the file has a kernel, the exposure has it too, and is
        at the level of the science image.  Pixels that HOTPANTS filled are NaN and NO_DATA.

    Raises
    ------
    FileFormatError
        If a plane or the kernel cannot be read.
    """
    with opened(path) as hdus:
        kind, has_kernel = recognise(hdus), kernel_table(hdus) is not None
    if kind != "difference" or extension not in (None, 0):
        return plain.read(path, extension, **options)
    if has_kernel:
        return read_difference(path, **options).exposure
    return _planes(path, None, **options)


def read_difference(path: Path, *, kernel_path: Path | None = None, **options: Any) -> Difference:
    """Read a difference with its kernel, and how it was made.

    Parameters
    ----------
    path
        Difference.
    kernel_path
        File of ``-oki``; None: the difference itself, or the file that it names.
    **options
        Options of `whitediff.formats.plain.read`.

    Returns
    -------
    difference
        Difference at the level of the science image.

    Raises
    ------
    FileFormatError
        As in `read` and `read_solution`.
    """
    solution = read_solution(path, kernel_path=kernel_path)
    exposure = _planes(path, solution, **options)
    exposure.kernel = solution.kernel
    with opened(path) as hdus:
        header = hdus[0].header
        command = Command.parse(header["DIFFCMD"])
        software = f"HOTPANTS {header.get('SOFTVERS', '')}".strip()
    sigmas = {"science": command.beside("ini", path), "template": command.beside("tni", path)}
    pedestals = {name: command.numbers(key, (0.0,))[0] for name, key in
                 (("science", "ip"), ("template", "tp"))}  # fmt: skip
    half = solution.kernel_width // 2

    def remade(science: Array, template: Array, x: int, y: int) -> float:
        region = solution.region_at(x=x, y=y)
        inner = region.buffered
        if not (
            half <= x - inner.x.start < inner.x.size - half
            and half <= y - inner.y.start < inner.y.size - half
        ):
            return math.nan
        images = {"science": science, "template": template}
        convolved, other = images.pop(region.convolved), next(iter(images))
        part = convolved[y - half : y + half + 1, x - half : x + half + 1].astype(float)
        part = part - pedestals[region.convolved]
        total = float((part[::-1, ::-1] * solution.kernel_image(x=x, y=y)).sum())
        total += solution.background(x=x, y=y)
        value = total - (float(images[other][y, x]) - pedestals[other])
        sign = -1.0 if region.convolved == "template" else 1.0
        return sign * value * solution.normalized(region) * solution.to_science_level(region)

    return Difference(
        exposure,
        directions=tuple((region.box, region.convolved) for region in solution.regions),
        software=software,
        remade=remade,
        margin=half,
        variance_files={name: f"sigma:{file}" for name, file in sigmas.items() if file is not None},
    )


def _planes(path: Path, solution: HotpantsSolution | None, **options: Any) -> Exposure:
    """Difference with noise and mask, at the science image's level if a solution is given."""
    wanted = options.pop("needs_variance", True)
    with opened(path) as hdus:
        header = hdus[0].header
        fill = header.get("MASKVAL")
        command = Command.parse(str(header.get("DIFFCMD", "")))
        noise, bits = (
            _layer(hdus, path, command, name, option)
            for name, option in (("noise image", "oni"), ("mask image", "omi"))
        )
    reading = options.get("options")
    given = reading is not None and reading.variance is not None
    if isinstance(fill, bool) or not isinstance(fill, int | float):
        raise FileFormatError.of(
            path,
            f"MASKVAL, the value of pixels without data, must be a number; got {fill!r}. Is"
            " the file whole?",
        )
    exposure = plain.read(
        path, 0, needs_variance=wanted and noise is None, fill=float(fill), **options
    )
    image = exposure.data
    mask = exposure.mask
    if bits is not None:
        for bit, (name, _) in _BITS.items():
            if (bits & bit).any():
                mask = masks.with_plane(mask, name, (bits & bit) != 0)
    variance = exposure.variance
    if noise is not None and not given:
        variance = filled(noise.shape, np.float32, lambda rows: noise[rows].astype(np.float32) ** 2)
        mask = masks.with_plane(mask, "NO_DATA", ~(variance > 0))
    if solution is not None:
        image, variance = _at_science_level(image, variance, solution, path)
    return Exposure(
        image,
        variance,
        mask,
        origin=exposure.bbox.start,
        unit=exposure.unit,
        psf=exposure.psf,
        header=exposure.header,
        provenance=Provenance(source=exposure.source, primary_header=exposure.primary_header),
    )


def _layer(
    hdus: astropy.io.fits.HDUList, path: Path, command: Command, name: str, option: str
) -> Array | None:
    """Noise or mask image, in the file itself or in the one that an option of the command names."""
    shape = tuple(hdus[0].shape)
    for hdu in hdus[1:]:
        if hdu.is_image and layer(hdu) == name and hdu.shape == shape:
            return np.array(hdu.data)
    file = command.beside(option, path)
    if file is None or file == path:
        return None
    with opened(file) as others:
        if layer(others[0]) != name or tuple(others[0].shape) != shape:
            _log.info("%s: is no %s of %s; it is not used.", file, name, path)
            return None
        _log.info("%s: the %s of %s is used.", file, name, path)
        return np.array(others[0].data)


def _at_science_level(
    image: Array, variance: Array, solution: HotpantsSolution, path: Path
) -> tuple[Array, Array]:
    factors = [solution.to_science_level(region) for region in solution.regions]
    if all(factor == 1 for factor in factors):
        return image, variance
    _log.info(
        "%s: is brought to the science image's level, by %s.",
        path,
        ", ".join(f"{factor:.6g}" for factor in factors),
    )
    level: Any = factors[0]
    if len(set(factors)) > 1:
        level = np.ones(image.shape)
        for region, factor in zip(solution.regions, factors, strict=True):
            part = region.box.overlap(solution.box)
            if part is not None:
                level[part.y.start : part.y.stop, part.x.start : part.x.stop] = factor
    image = (image * level).astype(image.dtype)
    # The variance is at the level of the file's pixels, whether stored or measured on them.
    return image, (variance * level**2).astype(variance.dtype)
