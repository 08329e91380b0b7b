"""Groups of pixels that touch each other.

Claims tested here:

- they are those that a search from neighbour to neighbour finds, corners included, in the order of
  their first pixels, for few pixels and many and for frames of one row or column;
- rows do not go on where the one before ended;
- windows, sizes and extents are those of each group's own pixels, also of the transposed image.
"""

from __future__ import annotations

import numpy as np
import pytest

from whitediff.numerics.groups import groups


def _searched(pixels):
    """Sets of (row, column) of the groups, by walking from pixel to pixel."""
    left = [tuple(place) for place in np.argwhere(pixels).tolist()]
    found, unseen = [], set(left)
    for first in left:
        if first not in unseen:
            continue
        unseen.remove(first)
        group, open_ends = {first}, [first]
        while open_ends:
            row, column = open_ends.pop()
            around = {(row + j, column + i) for j in (-1, 0, 1) for i in (-1, 0, 1)} & unseen
            unseen -= around
            group |= around
            open_ends += around
        found.append(group)
    return found


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (23, 17), (40, 64)])
def test_groups_are_those_of_a_walk(shape, share):
    pixels = np.random.default_rng(shape[0]).random(shape) < share
    expected = _searched(pixels)
    found = groups(pixels)
    assert len(found) == len(expected)
    assert found.sizes.tolist() == [len(group) for group in expected]
    for number, group in enumerate(expected):
        part = slice(found.starts[number], found.starts[number + 1])
        places = zip(found.rows[part].tolist(), found.columns[part].tolist(), strict=True)
        assert set(places) == group


def test_the_end_of_a_row_does_not_touch_the_next_ones_begin():
    pixels = np.zeros((4, 6), bool)
    pixels[1, 5] = pixels[2, 0] = True
    assert len(groups(pixels)) == 2
    pixels[2, 5] = True
    assert groups(pixels).sizes.tolist() == [2, 1]


def test_windows_hold_their_own_group_alone():
    pixels = np.zeros((20, 30), bool)
    pixels[2:9, 3] = pixels[8, 3:12] = True  # an L
    pixels[3, 8] = True  # within its window
    pixels[15:18, 20:22] = True
    for transposed in (False, True):
        together = groups(pixels).transposed if transposed else groups(pixels)
        plane = pixels.T if transposed else pixels
        again = np.zeros(plane.shape, int)
        for window, group in together.each(np.array([True, False, True])):
            assert group.any(axis=0)[[0, -1]].all()
            assert group.any(axis=1)[[0, -1]].all()
            again[window] += group
        expected = plane.copy()
        expected[(8, 3) if transposed else (3, 8)] = False
        np.testing.assert_array_equal(again, expected)
        first, last = together.extents
        sides = (last - first)[0].tolist()
        assert sides == ([9, 7] if transposed else [7, 9])
