"""Description of a file format: its name, and the functions that recognise, read and write it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import astropy.io.fits

from ..exposures.boxes import Box
from ..exposures.kernels import ConvolutionKernel
from ..exposures.model import Exposure
from ..exposures.psf import PointSpreadFunction
from .difference import Difference
from .files import Extension

__all__ = ["Format", "Identity", "Kind", "Writer", "whole"]

type Kind = Literal["image", "difference", "kernel", "psf", "other"]
type HDUs = astropy.io.fits.HDUList
type Range = tuple[float, float]
type Writer = Callable[..., list[str]]


@dataclasses.dataclass(frozen=True)
class Identity:
    """Format and main content of a file.

    Attributes
    ----------
    format
        Name of its `Format`, such as ``hotpants`` or ``plain``.
    kind
        Main content of the file.
    detail
        Format and content in words.
    has_noise
        False for planes without noise of their own to measure, such as a noise image.
    """

    format: str
    kind: Kind
    detail: str
    has_noise: bool = True


def _nothing(*_: Any, **__: Any) -> None:
    """Return None, which leaves the file to the default."""


def _no_names(*_: Any) -> list[str]:
    return []


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Format:
    """A format of files: how one is recognised, and what can be read from it.

    A format needs only `name` and `recognise`.  A function that returns None, or is not given,
    leaves the file to the default.

    Attributes
    ----------
    name
        Name, as in `Identity.format`.
    recognise
        Function of a file's HDUs: its identity, or None if it has another format.  It imports
        no library of the format.
    read
        Function of path and extension, with ``options``, ``needs_variance`` and ``box`` as in
        `whitediff.formats.read_exposure`: the exposure, which may be larger than the box.  None
        for PSF models, which are no images.
    read_difference
        Function of the difference's path and extension, with ``identity`` (of the difference),
        ``kernel`` (path or None), ``of_kernel`` (its identity), ``convolved`` and
        ``needs_variance``: the difference with its kernel.  The format of the difference is asked
        first, then the format of the kernel.
    read_kernel
        Function of path and identity, with ``bounds``: the kernel.  Default: an HDU's images.
    read_psf
        Function of path and extension, with ``bounds``: the PSF.  Default: an HDU's images.
    read_stored
        Function of path and ``kernel`` or ``psf``: the kernel or PSF that the file's object is or
        has, if no HDU has that name.
    kernel_and_box
        Function of path and identity: the kernel, and the box of the image that it is for, if
        the file says both.
    fitted_range
        Function of the HDUs: ranges of x and y that a PSF was fitted to.
    missing_planes
        Function of HDUs and identity: names of planes that such files have, but this one lacks.
    roles
        Function of HDUs, identity, extension and path: index of an HDU → its use.
    facts
        Function of HDUs and identity: label → text that describes the file, for files that are
        described without reading more of them.
    writers
        Name that ``whitediff convert --format`` takes → function that writes an exposure to a path,
        with ``overwrite``, ``provenance``, ``uncertainty`` and ``like`` as in that command.  It
        returns remarks on the input, as parts of sentences.
    holds_one_exposure
        Whether a file is one exposure, without images of several detectors to choose from.
    says_little
        Whether files do not say what their images are: each may be a kernel, or the image of one
        of several detectors.
    """

    name: str
    recognise: Callable[[HDUs], Identity | None]
    read: Callable[..., Exposure] | None = None
    read_difference: Callable[..., Difference | None] = _nothing
    read_kernel: Callable[..., ConvolutionKernel | None] = _nothing
    read_psf: Callable[..., PointSpreadFunction | None] = _nothing
    read_stored: Callable[..., ConvolutionKernel | PointSpreadFunction | None] = _nothing
    kernel_and_box: Callable[..., tuple[ConvolutionKernel, Box] | None] = _nothing
    fitted_range: Callable[[HDUs], tuple[Range, Range] | None] = _nothing
    missing_planes: Callable[[HDUs, Identity], list[str]] = _no_names
    roles: Callable[..., dict[int, str] | None] = _nothing
    facts: Callable[[HDUs, Identity], dict[str, str] | None] = _nothing
    writers: Mapping[str, Writer] = MappingProxyType({})
    holds_one_exposure: bool = False
    says_little: bool = False


def whole(read: Callable[..., Exposure]) -> Callable[..., Exposure]:
    """Reader for `Format.read` that reads the whole frame, whatever the box.

    Parameters
    ----------
    read
        Function of path and extension, with ``options`` and ``needs_variance``.

    Returns
    -------
    read
        Function that also takes a ``box``, and ignores it.
    """

    def read_whole(path: Path, extension: Extension, *, box: object, **options: Any) -> Exposure:
        return read(path, extension, **options)

    return read_whole
