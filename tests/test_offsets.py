"""Claims: a constant that is added to either image, or to both, moves no unflagged pixel of a
difference or score but by what the input's own rounding does, in whichever direction it is made
and with whichever kernel; sources are the same ones."""

from __future__ import annotations

import numpy as np
import pytest

from marks import in_turn
from scenes import command
from whitediff.formats import read_exposure
from whitediff.matching.exposures import MatchOptions
from whitediff.noise.sources import levels_and_background
from whitediff.numerics.stats import high_level
from whitediff.subtraction.difference import subtract
from whitediff.subtraction.pipeline import make_again, make_all
from whitediff.subtraction.recipe import Recipe

LIMIT = 0.01
"""Of a pixel's noise.  At 1e6 float32 has steps of 0.06, which are 0.0026 of a noise of 7 as rms;
of many pixels the worst is four times that, and in a filtered image a little more."""
EXACT = 1e-5
"""The same in double precision: steps at 1e7 are 3e-10 of the noise, the fit's condition 1e4."""

WHICH = [("science",), ("template",), ("science", "template")]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    made = {}

    def pair(seed=1, size=200):
        if (seed, size) not in made:
            directory = tmp_path_factory.mktemp("scene")
            code, _, messages = command(
                *("simulate", "--output", directory, "--size", size, "--seed", seed, "-q"),
                *("--science-variance", 49, "--template-variance", 49, "--read-noise", 5),
                *("--science-psf", 2.2, "--template-psf", 1.8, "--stars", size**2 // 600),
                *("--galaxies", 8, "--transients", 5, "--nan-pixels", 5, "--bad-columns", 1),
            )
            assert code == 0, messages
            names = "science", "template"
            made[seed, size] = [read_exposure(directory / f"{n}.fits") for n in names]
        return made[seed, size]

    return pair


def shifted(pair, which, offset, dtype):
    """The images with something added, rounded as a file of that type would round them."""
    result = []
    for name, each in zip(("science", "template"), pair, strict=True):
        plane = each.data.astype(dtype)
        if name in which:
            plane += dtype(offset)
        result.append(each.replaced(data=plane))
    return result


def made(pair, kinds=("difference",), convolved="template"):
    options = Recipe(match=MatchOptions(convolved=convolved))
    found = make_all(*pair, options, kinds)
    return {kind: found[kind].product for kind in kinds}


def moved(product, before):
    """Largest change of an unflagged pixel over its noise, and in how many pixels flags differ."""
    now, then = product.exposure, before.exposure
    flagged = now.mask.bits.astype(bool) | then.mask.bits.astype(bool)
    assert flagged.mean() < 0.8
    change = np.abs(now.data.astype(float) - then.data)
    change /= np.sqrt(then.variance)
    differ = now.mask.bits != then.mask.bits
    return float(change[~flagged].max()), int(differ.sum())


def test_a_level_is_high_where_single_precision_loses_noise():
    noise = np.random.default_rng(1).normal(0, 7, (300, 310))
    assert high_level(noise + 5e3) == 0
    assert high_level((noise + 5e3).astype(np.float32)) == 0
    assert high_level(noise * 1e-10 + 1e3) == pytest.approx(1e3)
    for dtype in (np.float32, np.float64):
        level = high_level((noise - 1e6).astype(dtype))
        assert level == pytest.approx(-1e6, abs=1)
        assert dtype(level) == level
    assert high_level(np.full((20, 20), 1e6)) == 0
    assert high_level(np.full((20, 20), np.nan)) == 0
    assert high_level(np.full((20, 20), 10**6)) == 0


def test_sources_stand_out_from_any_level():
    image = np.random.default_rng(1).normal(0, 7, (256, 300))
    image[100:105, 100:105] += 60
    image[0, :40] = np.nan
    levels, background = levels_and_background(image)
    raised, high = levels_and_background(image + 1e7)
    np.testing.assert_array_equal(raised, levels)
    np.testing.assert_allclose(high - 1e7, background, atol=1e-4)
    assert levels.any()


def test_an_offset_moves_nothing(scene):
    pair = scene()
    before = made(shifted(pair, (), 0, np.float32))["difference"]
    now = made(shifted(pair, WHICH[2], 1e6, np.float32))["difference"]
    change, _ = moved(now, before)
    # Rounding is seen, and nothing but that.
    assert 1e-4 < change < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "convolved", "field"),
    in_turn(WHICH, ["template", "science"], seeds=[(3, 301), (2, 256)]),
)
def test_float32_loses_what_its_files_lost_and_nothing_else(scene, which, convolved, field):
    pair = scene(*field)
    kinds = ("difference", "score") if convolved == "template" else ("difference",)
    raised = shifted(pair, which, 1e6, np.float32)
    # The same rounded pixels, from which the offset is taken again without rounding.
    exact = shifted(raised, which, -1e6, np.float64)
    now, before = made(raised, kinds, convolved), made(exact, kinds, convolved)
    for kind in kinds:
        change, flags = moved(now[kind], before[kind])
        assert change < EXACT, (kind, change)
        assert flags == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("offset", "convolved", "field"),
    in_turn(
        [1e5, -1e5, 1e6, -1e6, 1e7, -1e7],
        ["template", "science"],
        seeds=[(2, 256), (3, 301)],
    ),
)
def test_no_offset_of_float64_moves_anything(scene, offset, convolved, field):
    pair = scene(*field)
    which = WHICH[(int(abs(offset)) + field[0]) % 3]
    kinds = ("difference", "score") if convolved == "template" else ("difference",)
    before = made(shifted(pair, (), 0, np.float64), kinds, convolved)
    now = made(shifted(pair, which, offset, np.float64), kinds, convolved)
    for kind in kinds:
        change, flags = moved(now[kind], before[kind])
        assert change < EXACT, (kind, change)
        assert flags == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("which", WHICH)
def test_a_stored_kernel_serves_on_any_level(scene, which, dtype):
    """Of another pair, the same stars on another level, it leaves the same difference."""
    pair = scene(2, 256)
    solution = made(shifted(pair, (), 0, dtype))["difference"].solution
    before = make_again(*shifted(pair, (), 0, dtype), {"difference": solution})["difference"]
    now = shifted(pair, which, 1e6, dtype)
    found = make_again(*now, {"difference": solution})["difference"]
    again = make_again(*now, {"difference": found.product.solution})["difference"]
    np.testing.assert_array_equal(again.difference.data, found.difference.data, strict=True)
    both = [each.difference.data.astype(float) for each in (found, before)]
    flagged = found.difference.mask.bits.astype(bool) | before.difference.mask.bits.astype(bool)
    left = (both[0] - both[1]) / np.sqrt(before.difference.variance)
    # The background is measured anew, by other means: what differs is smooth.
    smooth = np.median(left[~flagged])
    assert abs(smooth) < 0.05
    assert np.std(left[~flagged] - smooth) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("convolved", ["template", "science"])
def test_arrays_and_a_known_kernel(scene, which, convolved):
    """Only the level of the difference is another: by the offsets, and the kernel's sum."""
    pair = scene(2, 256)
    kernel = np.outer(np.hanning(11), np.hanning(11)) + np.eye(11) / 9
    kernel *= 1.3 / kernel.sum()
    planes = [
        subtract(*shifted(pair, names, 1e6, np.float32), kernel, convolved=convolved)
        for names in (which, ())
    ]
    change = planes[0].data.astype(float) - planes[1].data
    science, template = (1e6 * (name in which) for name in ("science", "template"))
    scale = 1.3 if convolved == "template" else 1 / 1.3
    level = science - scale * template
    good = ~planes[1].mask.bits.astype(bool)
    noise = np.sqrt(planes[1].variance)
    # Rounding of one or two inputs by a step of 0.06 at most, and nothing else.
    assert np.abs((change - level) / noise)[good].max() < LIMIT
