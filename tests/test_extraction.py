"""Claims: sources are found in images of which more pixels belong to sources, and more parts to one
of them, than SEP has room for; the same as with room from the start."""

from __future__ import annotations

import numpy as np
import pytest
import sep

from whitediff.numerics.extraction import sep_sources


@pytest.fixture
def small_buffers():
    before = sep.get_extract_pixstack(), sep.get_sub_object_limit()
    sep.set_extract_pixstack(2000)
    sep.set_sub_object_limit(16)
    yield
    sep.set_extract_pixstack(before[0])
    sep.set_sub_object_limit(before[1])


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("level", [0.0, 50.0])
def test_buffers_grow_as_needed(rng, level):
    y, x = np.mgrid[:300, :300]
    image = rng.normal(level, 1, (300, 300))
    for cy, cx in rng.uniform(10, 290, (400, 2)):
        image += 300 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8)
    image = image.astype(np.float32)
    found = sep_sources(image, 3.0, err=1.0)
    sep.set_extract_pixstack(500_000)
    sep.set_sub_object_limit(5000)
    assert np.array_equal(found, sep.extract(image, 3.0, err=1.0))
    assert len(found) > (100 if level == 0 else 0)


def test_other_failures_stay_what_they_are():
    with pytest.raises(ValueError, match="array"):
        sep_sources(np.zeros((3, 3, 3), np.float32), 3.0)
