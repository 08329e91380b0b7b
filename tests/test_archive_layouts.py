"""Files as archives have them: HST, JWST, DECam, ZTF, Pan-STARRS, LCO.

Claims: image, variance and mask are found in each layout; saturated pixels are SAT, cosmic rays
CR, defects BAD, missing ones NO_DATA, and pixels that a mask only informs of stay good, in Python
and in the command, whose difference has these planes and no false source at them; companions of a
detector are those of its name or version; of several images, which one is taken is said;
distortions in tables are left out of the WCS, and that is said.
"""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from archive_layouts import LAYOUTS, SIGMA, scene
from whitediff.exposures import masks
from whitediff.formats import read_exposure
from whitediff.reading import ReadingOptions, reading_options

SCENES = {seed: scene(seed) for seed in (1, 2)}
IN_WEIGHT = ("hst-drz", "jwst-i2d")
"""Layouts without a mask, whose weights or values say only that there is nothing."""


def read(written):
    values = {f"science_{name}": value for name, value in written.options.items()}
    if values.get("science_variance") == "16":
        values["science_variance"] = SIGMA**2
    options = reading_options(values, science=written.science)["science"]
    return read_exposure(written.science, options=options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", SCENES)
def test_planes_are_read(tmp_path, layout, seed):
    truth = SCENES[seed]
    exposure = read(LAYOUTS[layout](truth, tmp_path))
    found = {name: masks.flagged(exposure.mask, [name]) for name in truth.planes}
    everything = np.any(list(truth.planes.values()), axis=0)
    if layout in IN_WEIGHT:
        usable = np.isfinite(exposure.data)
        marked = masks.flagged(exposure.mask, masks.UNTRUSTED_MASK_PLANES) | ~usable
        np.testing.assert_array_equal(marked, everything)
    else:
        expected = dict(truth.planes)
        if layout == "lco":
            expected["BAD"] = truth.planes["BAD"] | truth.planes["NO_DATA"]
            expected["NO_DATA"] = np.zeros_like(everything)
        if layout == "decam":
            # One code for each pixel, and no weight where there is one.
            for name in ("BAD", "SAT", "CR"):
                later = [n for n in ("SAT", "CR", "NO_DATA") if n != name]
                overlap = np.any([truth.planes[n] for n in later], axis=0)
                np.testing.assert_array_equal(found[name] & ~overlap, truth.planes[name] & ~overlap)
            expected = {"NO_DATA": everything}
        for name, plane in expected.items():
            np.testing.assert_array_equal(found[name], plane, err_msg=name)
    ratio = exposure.variance[~everything] / truth.sigma[~everything] ** 2
    if layout != "ztf":
        assert np.ptp(ratio) < 1e-4 * ratio.mean()
    image = exposure.data[~everything]
    scale = np.sum(image * truth.science[~everything]) / np.sum(truth.science[~everything] ** 2)
    np.testing.assert_allclose(image, scale * truth.science[~everything], atol=1e-2 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_command_subtracts_them(tmp_path, run, layout):
    truth = SCENES[1]
    written = LAYOUTS[layout](truth, tmp_path)
    options = [
        text
        for name, value in written.options.items()
        for text in (f"--science-{name.replace('_', '-')}", value)
    ]
    output, catalog = tmp_path / "out.fits", tmp_path / "out.ecsv"
    code, _, said = run(
        "subtract", written.science, written.template, *options, "--output", output,
        "--catalog", catalog, "--threads", 1, "--kernel-order", 0,
    )  # fmt: skip
    assert code == 0, said
    difference = read_exposure(output)
    for name, plane in truth.planes.items():
        if layout in IN_WEIGHT or (layout == "lco" and name == "NO_DATA"):
            name = "BAD" if layout == "lco" else "NO_DATA"
        found = masks.flagged(difference.mask, [name])
        found |= ~np.isfinite(difference.data)
        if layout == "decam" and name != "NO_DATA":
            plane = plane & ~truth.planes["NO_DATA"]
        assert found[plane].all(), name
    table = Table.read(catalog)
    flags = [name for name in table.colnames if name.startswith("flag_")]
    if layout != "ztf":
        # Of the one the variance is given as a number: bright stars are noisier than it says.
        flags.remove("flag_source")
    unflagged = [row for row in table if not any(row[flag] for flag in flags)]
    assert len(unflagged) == 0


def test_companions_go_by_the_detector(tmp_path):
    truth = SCENES[1]
    written = LAYOUTS["decam"](truth, tmp_path)
    for detector, turn in (("S5", slice(None)), ("S29", slice(None, None, -1))):
        exposure = read_exposure(
            f"{tmp_path}/c4d_ooi.fits.fz[{detector}]",
            options=ReadingOptions(mask=written.options["mask"]),
        )
        saturated = masks.flagged(exposure.mask, ["SAT"])
        np.testing.assert_array_equal(saturated, truth.planes["SAT"][turn])


def test_which_of_several_images_is_taken_is_said(tmp_path, caplog):
    LAYOUTS["hst-flc"](SCENES[1], tmp_path)
    with caplog.at_level("INFO", "whitediff"):
        exposure = read_exposure(f"{tmp_path}/j_flc.fits")
    np.testing.assert_array_equal(exposure.data, fits.getdata(tmp_path / "j_flc.fits", 1))
    # Without its tables, the WCS is that of the other cards.
    assert "distortions in its tables, of up to 0.06 pixels, are left out" in caplog.text
    sky = exposure.wcs.pixel_to_world(104.0, 94.0)
    np.testing.assert_allclose([sky.ra.deg, sky.dec.deg], [10, 20], atol=1e-9)
    assert exposure.wcs is not None
    assert "has the images SCI,1, SCI,2; SCI,1 is taken. Name another as FILE[SCI,2]" in caplog.text


def test_contexts_and_parts_of_the_variance_are_no_detectors(tmp_path):
    from whitediff.formats.detectors import detectors

    for layout, expected in {
        "hst-flc": ["SCI,1", "SCI,2"],
        "hst-drz": ["SCI"],
        "jwst-cal": ["SCI"],
        "jwst-i2d": ["SCI"],
        "lco": ["SCI"],
        "decam": ["S29", "S5"],
    }.items():
        directory = tmp_path / layout
        directory.mkdir()
        written = LAYOUTS[layout](SCENES[1], directory)
        assert detectors(written.science.partition("[")[0]) == expected
