"""Images as pictures for a browser: stretched, binned, encoded.

Pictures are written upside down: the first row of a picture is its top, of an image its bottom.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics.planes import row_blocks
from ..numerics.threads import in_threads

__all__ = [
    "Stretch",
    "binned",
    "coloured",
    "encoded_jpegs",
    "encoded_png",
    "flag_picture",
    "sampled",
    "stamps",
]

type Array = npt.NDArray[Any]

_QUALITIES = (88, 78, 65, 50, 35)
_SAMPLE = 400_000
_NO_VALUE = np.array([128, 128, 128], np.uint8)
# Blue, white, red; the ends as dark as each other.
_DIVERGING = np.array([[33, 102, 172], [146, 197, 222], [247, 247, 247], [244, 165, 130],
                       [178, 24, 43]], float)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Grey levels that all images of a report share.

    Attributes
    ----------
    sigma
        Noise of the difference, image_unit: values are divided by it.
    linear
        Value up to which grey levels are about linear, in sigma.
    low, high
        Values that are drawn black and white, in sigma.
    """

    sigma: float
    linear: float = 3.0
    low: float = -10.0
    high: float = 60.0

    def __call__(self, image: Array, level: float = 0.0) -> Array:
        """Grey levels of an image.

        Parameters
        ----------
        image
            ``(…)`` values, image_unit.
        level
            Background of the image, image_unit.

        Returns
        -------
        grey
            ``(…)`` uint8: from 1 to 255 by the inverse hyperbolic sine; 0 where not finite.
        """
        black, white = (math.asinh(end / self.linear) for end in (self.low, self.high))
        with np.errstate(invalid="ignore"):
            values = np.arcsinh((image - np.float32(level)) / np.float32(self.sigma * self.linear))
        values -= np.float32(black)
        values *= np.float32(254 / (white - black))
        finite = np.isfinite(values)
        np.clip(values, 0, 254, out=values)
        # 1 because 0 stands for non-finite pixels, and 0.5 to round.
        return np.where(finite, values + np.float32(1.5), 0).astype(np.uint8)

    def ticks(self) -> list[tuple[float, float]]:
        """Values in sigma, and their grey levels between black (0) and white (1)."""
        black, white = (math.asinh(end / self.linear) for end in (self.low, self.high))
        return [
            (value, (math.asinh(value / self.linear) - black) / (white - black))
            for value in (self.low, -3, 0, 3, 10, 30, self.high)
        ]


def sampled(image: Array) -> Array:
    """Some pixels of an image, spread over it; all pixels of a small image.

    Parameters
    ----------
    image
        ``(ny, nx)``.

    Returns
    -------
    values
        ``(n,)`` finite values, from 400 000 to 1.6 million evenly spaced pixels of an image that
        has more.
    """
    step = max(1, math.isqrt(image.size // _SAMPLE))
    values: Array = image[::step, ::step]
    return values[np.isfinite(values)]


def binned(image: Array, factor: int) -> Array:
    """Means of square groups of pixels.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    factor
        Side of a group.

    Returns
    -------
    means
        ``(⌈ny/factor⌉, ⌈nx/factor⌉)`` float32 means of the finite pixels; NaN where there is
        none.  The last groups of a row or column may be smaller.
    """
    if factor == 1:
        return image.astype(np.float32, copy=False)
    ny, nx = image.shape
    result = np.empty((-(-ny // factor), -(-nx // factor)), np.float32)

    def work(rows: slice) -> None:
        part = image[rows.start * factor : rows.stop * factor]
        finite = np.isfinite(part)
        sums = _sums(np.where(finite, part, 0).astype(np.float32, copy=False), factor)
        counts = _sums(finite.astype(np.float32), factor)
        result[rows] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    in_threads(work, row_blocks((len(result), nx * factor)))
    return result


def _sums(part: Array, factor: int) -> Array:
    rows = np.add.reduceat(part, np.arange(0, part.shape[0], factor), axis=0)
    return np.add.reduceat(rows, np.arange(0, part.shape[1], factor), axis=1)


def flag_picture(flags: Sequence[Array], factor: int, colours: Sequence[str]) -> str:
    """Picture that marks pixels in colours, and is transparent elsewhere.

    Parameters
    ----------
    flags
        ``(ny, nx)`` boolean each; earlier ones lie over later ones.
    factor
        Side of a group of pixels, as for `binned`: a group is marked if one of its pixels is.
    colours
        Colour of each flag, ``#rrggbb``.

    Returns
    -------
    uri
        PNG as a data URI.
    """
    import PIL.Image

    index: Array | None = None
    # The first flag is drawn last, so that it lies over the others.
    for number, flag in reversed(list(enumerate(flags, 1))):
        rows = np.logical_or.reduceat(flag, np.arange(0, flag.shape[0], factor), axis=0)
        group = np.logical_or.reduceat(rows, np.arange(0, flag.shape[1], factor), axis=1)
        index = np.zeros(group.shape, np.uint8) if index is None else index
        index[group] = number
    assert index is not None
    picture = PIL.Image.fromarray(np.ascontiguousarray(index[::-1]), mode=None).convert("P")
    palette = [0, 0, 0]
    for colour in colours:
        palette += [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    picture.putpalette(palette)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=False, transparency=0, bits=2 if len(flags) < 4 else 4)
    return _uri(buffer.getvalue(), "png")


def encoded_jpegs(greys: Mapping[str, Array], most: int) -> tuple[dict[str, str], int]:
    """Pictures as JPEG, together no larger than asked for.

    Parameters
    ----------
    greys
        Name → ``(ny, nx)`` uint8.
    most
        Largest total size as data URIs, bytes; exceeded if even a quality of 35 needs more.

    Returns
    -------
    uris, quality
        Name → data URI; the JPEG quality, the best of 88, 78, 65, 50 and 35 that fits.
    """
    import PIL.Image

    flipped = {name: np.ascontiguousarray(grey[::-1]) for name, grey in greys.items()}

    def encode(grey: Array, quality: int) -> str:
        buffer = io.BytesIO()
        PIL.Image.fromarray(grey).save(buffer, "JPEG", quality=quality)
        return _uri(buffer.getvalue(), "jpeg")

    for quality in _QUALITIES:
        uris = in_threads(functools.partial(encode, quality=quality), flipped.values())
        if sum(map(len, uris)) <= most:
            break
    return dict(zip(flipped, uris, strict=True)), quality


def encoded_png(pixels: Array) -> str:
    """Picture as lossless PNG.

    Parameters
    ----------
    pixels
        ``(ny, nx)`` or ``(ny, nx, 3)`` uint8.

    Returns
    -------
    uri
        Data URI.
    """
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(pixels[::-1])).save(buffer, "PNG")
    return _uri(buffer.getvalue(), "png")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def coloured(values: Array, largest: float, *, linear: float | None = None) -> Array:
    """Values in colours from blue (negative) over white (zero) to red.

    Parameters
    ----------
    values
        ``(…)``.
    largest
        Absolute value that gets the full colour.
    linear
        Value up to which colours are about linear (the scale is an inverse hyperbolic sine);
        None for a linear scale.

    Returns
    -------
    colours
        ``(…, 3)`` uint8; grey where not finite.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = values / largest if largest > 0 else np.zeros_like(values, dtype=float)
        if linear is not None and largest > 0:
            scaled = np.arcsinh(values / linear) / math.asinh(largest / linear)
    place = (np.clip(np.nan_to_num(scaled), -1, 1) + 1) / 2 * (len(_DIVERGING) - 1)
    knots = np.arange(len(_DIVERGING))
    colours = np.stack([np.interp(place, knots, _DIVERGING[:, i]) for i in range(3)], axis=-1)
    return np.where(np.isfinite(values)[..., None], colours.round(), _NO_VALUE).astype(np.uint8)


def stamps(
    grey: Callable[..., Array], image: Array, x: Array, y: Array, side: int, columns: int
) -> Array:
    """Cut-outs of an image, side by side in rows.

    Parameters
    ----------
    grey
        Function from values to grey levels.
    image
        ``(ny, nx)``.
    x, y
        ``(n,)`` centres of the cut-outs, array coordinates.
    side
        Side of a cut-out, pixels; odd.
    columns
        Number of cut-outs in a row.

    Returns
    -------
    sprite
        ``(⌈n/columns⌉·side, columns·side)`` uint8, the first cut-out at the top left of the
        picture (after `encoded_png` has flipped it); 0 beyond the image.
    """
    rows = max(1, -(-len(x) // columns))
    sprite = np.zeros((rows * side, columns * side), np.uint8)
    half = side // 2
    for i, (column, row) in enumerate(
        zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True)
    ):
        y0, x0 = max(0, row - half), max(0, column - half)
        part = image[y0 : max(0, row + half + 1), x0 : max(0, column + half + 1)]
        if not part.size:
            continue
        top, left = rows - 1 - i // columns, i % columns
        place_y, place_x = top * side + y0 - (row - half), left * side + x0 - (column - half)
        sprite[place_y : place_y + part.shape[0], place_x : place_x + part.shape[1]] = grey(part)
    return sprite
