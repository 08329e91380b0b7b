"""Source extraction by SEP, with buffers that grow as an image needs."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

__all__ = ["sep_sources"]

type Array = npt.NDArray[Any]

_PIXELS, _PARTS = "pixel buffer full", "deblending overflow"
"""SEP's messages when sources have more pixels, or one has more parts, than its buffers hold."""
_MORE, _MOST_PARTS = 8, 1 << 20


def sep_sources(image: Array, threshold: float, **options: Any) -> Array:
    """Sources of an image (``sep.extract``: Barbary 2016; Bertin & Arnouts 1996).

    Parameters
    ----------
    image
        ``(ny, nx)`` float32.
    threshold, **options
        As for ``sep.extract``.

    Returns
    -------
    sources
        SEP's table.

    Notes
    -----
    SEP has room for 300 000 pixels and 1024 parts, and fails beyond.  Larger buffers take memory,
    so they are made only if these do not suffice.
    """
    import sep

    while True:
        try:
            result: Array = sep.extract(image, threshold, **options)
            return result
        except Exception as error:
            pixels, parts = sep.get_extract_pixstack(), sep.get_sub_object_limit()
            if _PIXELS in str(error) and pixels < 2 * image.size:
                sep.set_extract_pixstack(min(_MORE * pixels, 2 * image.size))
            elif _PARTS in str(error) and parts < _MOST_PARTS:
                sep.set_sub_object_limit(_MORE * parts)
            else:
                raise
