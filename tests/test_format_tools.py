"""What is done with files of all formats.

Claims: `info` names format, HDUs in use, planes, PSF, kernel and where the noise comes from;
`kernel` writes images that other readers find at those positions, and a basis that the documented
ten lines evaluate, in regions too, and no image of the sky; `convert` loses nothing, of foreign
differences and of what was made before too; of files with several detectors one or all are taken,
each with its own planes and coefficients, and each gets an output; addresses are fetched, and what
is missing for that is one sentence.
"""

from __future__ import annotations

import builtins
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from hotpants_files import Run, coefficients
from scenes import gaussian, moffat_kernel
from whitediff import Exposure
from whitediff.errors import ArgumentError, FileFormatError
from whitediff.exposures import kernels
from whitediff.exposures.boxes import Box
from whitediff.exposures.fields import ChebyshevField, PiecewiseField, scaled_to
from whitediff.formats import detectors, read_difference, read_exposure, read_kernel, write_exposure
from whitediff.formats.describe import describe
from whitediff.formats.record import read_record
from whitediff.numerics.convolution import convolve
from whitediff.reading import ReadingOptions
from whitediff.runs.convert import run_conversion
from whitediff.runs.options import ConvertOptions

SHAPE = (90, 100)
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "file-format.md"


def exposure_with_all(rng) -> Exposure:
    box = Box.from_shape(SHAPE)
    basis = np.stack([moffat_kernel(11), gaussian(11, 1.5)])
    coefs = np.zeros((2, 2, 2))
    coefs[:, 0, 0], coefs[1, 0, 1], coefs[1, 1, 0] = (1, 0.2), 0.1, -0.05
    return Exposure.from_arrays(
        rng.normal(10, 3, SHAPE).astype(np.float32),
        variance=9.0,
        mask={"BAD": rng.random(SHAPE) > 0.95},
        psf=gaussian(21, 2.0),
        kernel=kernels.chebyshev_kernel(basis, coefs, box),
    )


def region_file(rng, path, sides=("template",) * 2):
    images = [rng.normal(0, 3, (50, 100)).astype(np.float32) for _ in range(2)]
    limits = ((0, 49, 0, 49), (49, 99, 0, 49))
    command = "hotpants -inim science.fits -tmplim template.fits -nrx 2 -nsx 2 -nsy 2 -rss 8"
    regions = [
        (limit, side, coefficients(rng, total, 65))
        for limit, side, total in zip(limits, sides, (1.2, 0.9), strict=True)
    ]
    # Stamps of min(100/2/2, 50/2) - 11 = 14, made odd 13, are less than 17: 17 + 11, made odd 27.
    made = Run(*images, regions, buffer=13, command=command)
    made.write(path)
    return made


def reader_of_the_document():
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    namespace: dict[str, object] = {}
    exec(next(block for block in blocks if "def kernel_at" in block), namespace)
    return namespace["kernel_at"]


def test_info(run, rng, tmp_path):
    write_exposure(exposure_with_all(rng), tmp_path / "ours.fits")
    region_file(rng, tmp_path / "hotpants.fits", ("template", "science"))
    fits.writeto(tmp_path / "plain.fits", rng.normal(100, 3, (200, 210)))
    paths = [tmp_path / f"{name}.fits" for name in ("ours", "hotpants", "plain")]
    code, text, messages = run("info", *paths)
    assert code == 0, messages
    for expected in (
        "whitediff exposure", "90 x 100 pixels, float32", r"mask planes +BAD \(",
        "KernelPointSpreadFunction, 21 x 21 pixels, full width at half maximum 4.7",
        "11 x 11 pixels, sum 1.5", "2 basis images with varying weights",
        "HOTPANTS difference", "2 regions", "made by +HOTPANTS 5.1.11",
        "convolved +template, science", "no variance plane; measured on",
    ):  # fmt: skip
        assert re.search(expected, text), expected
    code, text, messages = run("info", *paths, "--json", "-")
    assert code == 0, messages
    values = json.loads(text)
    assert [one["format"] for one in values] == ["whitediff", "hotpants", "plain"]
    assert [one["kind"] for one in values] == ["image", "difference", "image"]
    assert values[1]["hdus"][0]["role"] == "difference"
    assert values[1]["hdus"][1]["role"] == "kernel"
    (tmp_path / "text.fits").write_text("no FITS")
    code, _, messages = run("info", tmp_path / "text.fits")
    assert code == 1
    assert re.search("text.fits: cannot be read as FITS", messages)


def test_info_leaves_no_trace_in_the_log(rng, tmp_path, caplog):
    fits.writeto(tmp_path / "plain.fits", rng.normal(100, 3, (200, 210)))
    description = describe(tmp_path / "plain.fits")
    assert any("measured on" in note for note in description.notes)
    assert description.hdus[0].role == "image"


@pytest.mark.parametrize("psf", [False, True])
def test_kernels_at_positions(run, rng, tmp_path, psf):
    exposure = exposure_with_all(rng)
    write_exposure(exposure, tmp_path / "in.fits")
    option = ["--psf"] if psf else []

    def wanted(x, y):
        if psf:
            return exposure.psf.at(x=x, y=y)
        return exposure.kernel.at(x=x, y=y)

    code, _, messages = run(
        "kernel", tmp_path / "in.fits", *option, "--at", 3, 4.5, "--at", 80, 70,
        "--output", tmp_path / "two.fits",
    )  # fmt: skip
    assert code == 0, messages
    with fits.open(tmp_path / "two.fits") as hdus:
        assert len(hdus) == 3
        for hdu, (x, y) in zip(hdus[1:], ((3, 4.5), (80, 70)), strict=True):
            assert (hdu.header["XPOS"], hdu.header["YPOS"]) == (x, y)
            np.testing.assert_allclose(hdu.data, wanted(x, y), atol=1e-9)
    code, _, messages = run(
        "kernel", tmp_path / "in.fits", *option, "--at", 3, 4, "--output", tmp_path / "one.fits"
    )
    assert code == 0, messages
    np.testing.assert_allclose(fits.getdata(tmp_path / "one.fits"), wanted(3, 4), atol=1e-9)
    code, _, messages = run(
        "kernel", tmp_path / "in.fits", *option, "--at", 100, 4, "--output", tmp_path / "no.fits"
    )
    assert code == 1
    assert "x = 100, y = 4 is outside the image" in messages
    assert not (tmp_path / "no.fits").exists()


def test_the_documented_reader_evaluates_all_kernels(run, rng, tmp_path):
    kernel_at = reader_of_the_document()
    exposure = exposure_with_all(rng)
    write_exposure(exposure, tmp_path / "ours.fits")
    region_file(rng, tmp_path / "hotpants.fits")
    code, _, messages = run(
        "kernel", tmp_path / "hotpants.fits", "--whole", "--output", tmp_path / "regions.fits"
    )
    assert code == 0, messages
    regions = read_difference(tmp_path / "hotpants.fits").exposure.kernel
    constant = kernels.constant_kernel(moffat_kernel(11), Box.from_shape(SHAPE))
    write_exposure(Exposure.from_arrays(np.ones(SHAPE), variance=1.0, kernel=constant),
                   tmp_path / "constant.fits")  # fmt: skip
    for name, kernel, (height, width) in (
        ("ours", exposure.kernel, SHAPE), ("regions", regions, (50, 100)),
        ("constant", constant, SHAPE),
    ):  # fmt: skip
        for x, y in rng.integers((0, 0), (width, height), (12, 2)):
            found = kernel_at(tmp_path / f"{name}.fits", x, y)
            np.testing.assert_allclose(found, kernel.at(x=x, y=y), atol=1e-12)
            again = read_kernel(tmp_path / f"{name}.fits", bounds=Box.from_shape((height, width)))
            np.testing.assert_allclose(found, again.at(x=x, y=y), atol=1e-12)


def test_fields_in_pieces(rng):
    box = Box.from_shape((40, 50), start=(3, 5))
    left, right = Box.between((3, 43), (5, 31)), Box.between((3, 43), (30, 45))
    fields = [ChebyshevField(box, rng.normal(size=(3, 3))) for _ in range(2)]
    field = PiecewiseField(box, [(left, fields[0]), (right, fields[1])])
    image = field.on(box)
    for _ in range(30):
        x, y = int(rng.integers(5, 55)), int(rng.integers(3, 43))
        # Where both hold the later one does, and behind the last the nearest pixel's value.
        own = fields[0] if x < 30 else fields[1]
        at = {"x": np.array([min(x, 44.5)]), "y": np.array([float(y)])}
        assert image[y - 3, x - 5] == pytest.approx(own(**at)[0], rel=1e-12)
        assert field(x=np.array([float(x)]), y=np.array([float(y)]))[0] == pytest.approx(
            image[y - 3, x - 5], rel=1e-12
        )
    moved = scaled_to(fields[0], Box.from_shape((80, 20), start=(-30, 11)))
    x, y = rng.uniform(11, 30, 20), rng.uniform(3, 42, 20)
    np.testing.assert_allclose(moved(x=x, y=y), fields[0](x=x, y=y), rtol=1e-10)
    with pytest.raises(ArgumentError, match="at least one"):
        PiecewiseField(box, [])


@pytest.mark.parametrize("kind", ["whitediff", "ccddata", "masked-image"])
def test_convert_loses_nothing(run, rng, tmp_path, kind):
    exposure = exposure_with_all(rng)
    write_exposure(exposure, tmp_path / "in.fits")
    code, _, messages = run(
        "convert", tmp_path / "in.fits", "--format", kind, "--output", tmp_path / "out.fits"
    )
    assert code == 0, messages
    again = read_exposure(tmp_path / "out.fits")
    np.testing.assert_array_equal(again.data, exposure.data)
    np.testing.assert_array_equal(again.variance, exposure.variance)
    np.testing.assert_array_equal(again.mask.get("BAD"), exposure.mask.get("BAD"))
    if kind != "masked-image":
        np.testing.assert_allclose(again.kernel.at(x=9, y=8), exposure.kernel.at(x=9, y=8))
    code, _, messages = run(
        "convert", tmp_path / "in.fits", "--format", kind, "--output", tmp_path / "out.fits"
    )
    assert code == 1
    assert "exists already" in messages


def test_a_converted_difference_keeps_its_directions(run, rng, tmp_path):
    region_file(rng, tmp_path / "one.fits")
    region_file(rng, tmp_path / "both.fits", ("template", "science"))
    for name in ("one", "both"):
        code, _, messages = run(
            "convert", tmp_path / f"{name}.fits", "--output", tmp_path / f"{name}.out.fits"
        )
        assert code == 0, messages
    found = read_difference(tmp_path / "one.out.fits")
    assert found.convolved == "template"
    assert len(found.directions) == 2
    with pytest.raises(FileFormatError, match="convolved in different directions"):
        read_difference(tmp_path / "both.out.fits")


def mosaic(path, images, names, *, pack=False, masks=False):
    """One image for each of several detectors, as cameras deliver them."""
    hdus = [fits.PrimaryHDU()]
    for version, (name, image) in enumerate(zip(names, images, strict=False), 1):
        kind = fits.CompImageHDU if pack else fits.ImageHDU
        options = {"quantize_level": 0, "compression_type": "GZIP_2"} if pack else {}
        hdus.append(kind(image, name=name, **options))
        hdus[-1].ver = version if masks else 1
        if masks:
            hdus.append(fits.ImageHDU(np.full(image.shape, 2.0 + version), name="ERR", ver=version))
    fits.HDUList(hdus).writeto(path)


def noise(rng, number=3):
    """Images of some detectors."""
    return rng.normal(100, 3, (number, 120, 130)).astype(np.float32)


def mosaics(directory, rng, names, *, suffix=".fits", **options):
    """Science images, templates and their differences, and the kernel that made these."""
    kernel = gaussian(9, 1.2)
    fits.writeto(directory / "kernel.fits", kernel)
    science, template = noise(rng), noise(rng)
    matched = np.stack([convolve(image.astype(float), kernel) for image in template])
    difference = (science - matched).astype(np.float32)
    images = {"science": science, "template": template, "difference": difference}
    paths = [directory / f"{role}{suffix}" for role in images]
    for path, each in zip(paths, images.values(), strict=True):
        mosaic(path, each, names, **options)
    return paths


@pytest.mark.parametrize("pack", [False, True])
def test_several_detectors(run, rng, tmp_path, pack):
    suffix = ".fits.fz" if pack else ".fits"
    paths = mosaics(tmp_path, rng, ("N1", "N2", "S3"), suffix=suffix, pack=pack)
    kernel = tmp_path / "kernel.fits"
    assert detectors.detectors(paths[0]) == ["N1", "N2", "S3"]
    command = ("decorrelate", *paths, kernel, "--noise", "white")
    code, _, messages = run(*command, "--hdu", "all", "--output", tmp_path / "out.fits")
    assert code == 0, messages
    made = sorted(path.name for path in tmp_path.glob("out*"))
    assert made == ["out.N1.fits", "out.N2.fits", "out.S3.fits"]
    code, _, messages = run(*command, "--hdu", "N2", "--output", tmp_path / "single.fits")
    assert code == 0, messages
    one, other = (read_exposure(tmp_path / name) for name in ("single.fits", "out.N2.fits"))
    np.testing.assert_array_equal(one.data, other.data)
    assert fits.getheader(tmp_path / "out.S3.fits")["WDSCI"].endswith("[S3]")


def test_detectors_by_version_with_their_own_planes(run, rng, tmp_path):
    paths = mosaics(tmp_path, rng, ("SCI", "SCI"), masks=True)
    assert detectors.detectors(paths[0]) == ["SCI,1", "SCI,2"]
    code, _, messages = run(
        "decorrelate", *paths, tmp_path / "kernel.fits", "--noise", "white", "--hdu", "all",
        "--output", tmp_path / "out.fits",
    )  # fmt: skip
    assert code == 0, messages
    for version in (1, 2):
        result = read_exposure(tmp_path / f"out.SCI{version}.fits")
        expected = 2 * (2.0 + version) ** 2
        assert np.median(result.variance) == pytest.approx(expected, rel=1e-5)


def test_a_detector_that_fails_stops_no_other(run, rng, tmp_path):
    paths = mosaics(tmp_path, rng, ("N1", "N2", "S3"))
    with fits.open(paths[1], mode="update") as hdus:
        del hdus["S3"]
    code, _, messages = run(
        "decorrelate", *paths, tmp_path / "kernel.fits", "--noise", "white", "--hdu", "all",
        "--output", tmp_path / "out.fits",
    )  # fmt: skip
    assert code == 1
    assert "template.fits: has no image of the detector S3; it has N1, N2." in messages
    assert "1 of 3 detectors failed: S3." in messages
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out.N1.fits", "out.N2.fits"]
    fits.writeto(tmp_path / "single.fits", np.zeros((5, 5)))
    with pytest.raises(FileFormatError, match="leave out --hdu"):
        detectors.detectors(tmp_path / "single.fits")


@pytest.fixture
def stored(rng, tmp_path):
    """Address of a file in fsspec's store in memory."""
    fsspec = pytest.importorskip("fsspec")
    write_exposure(exposure_with_all(rng), tmp_path / "in.fits")
    store = fsspec.filesystem("memory")
    with store.open("/bucket/in.fits", "wb") as stream:
        stream.write((tmp_path / "in.fits").read_bytes())
    with store.open("/bucket/in.fits.gz", "wb") as stream:
        stream.write(gzip.compress((tmp_path / "in.fits").read_bytes()))
    with store.open("/bucket/cut.fits", "wb") as stream:
        stream.write((tmp_path / "in.fits").read_bytes()[:9000])
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


def test_addresses(run, stored, tmp_path):
    local = read_exposure(tmp_path / "in.fits")
    for name in ("in.fits", "in.fits.gz", "in.fits[IMAGE]"):
        remote = read_exposure(f"{stored}/{name}", options=ReadingOptions(variance=9.0))
        np.testing.assert_array_equal(remote.data, local.data)
        assert str(remote.source).startswith("memory://bucket/in.fits")
    with pytest.raises(FileFormatError, match=r"^memory://bucket/cut.fits: "):
        read_exposure(f"{stored}/cut.fits")
    with pytest.raises(FileFormatError, match=r"memory://bucket/none\.fits: cannot be fetched"):
        read_exposure(f"{stored}/none.fits")
    code, text, messages = run("info", f"{stored}/in.fits")
    assert code == 0, messages
    assert "memory://bucket/in.fits" in text


def test_addresses_without_what_they_need(monkeypatch):
    pytest.importorskip("fsspec")
    with pytest.raises(FileFormatError, match=r"nosuch://a/b\.fits: cannot be fetched"):
        read_exposure("nosuch://a/b.fits")
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("fsspec"):
            raise ImportError("No module named 'fsspec'")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", lambda name: without(name))
    with pytest.raises(FileFormatError, match=r"not installed; install whitediff\[remote\]"):
        read_exposure("s3://bucket/file.fits")


def test_a_unit_that_is_made_up_is_told_of(run, rng, tmp_path):
    fits.writeto(tmp_path / "bare.fits", rng.normal(size=(60, 70)).astype(np.float32))
    fits.writeto(
        tmp_path / "nJy.fits",
        rng.normal(size=(60, 70)).astype(np.float32),
        fits.Header({"BUNIT": "nJy"}),
    )
    for name, is_told in (("bare", True), ("nJy", False)):
        code, _, messages = run(
            "convert", tmp_path / f"{name}.fits", "--format", "ccddata", "--variance", 1.0,
            "--output", tmp_path / f"{name}.ccddata.fits",
        )  # fmt: skip
        assert code == 0, messages
        assert ("which CCDData must have: adu is written" in messages) == is_told


def test_a_white_difference_of_hotpants_stays_what_it_is_as_ccddata(run, rng, tmp_path):
    exposure = exposure_with_all(rng)
    exposure.header["SOFTNAME"], exposure.header["DIFFCMD"] = "HOTPanTS", "hotpants -inim a.fits"
    history = {"WDTASK": ("decorrelate", ""), "WDCONV": ("science", ""), "WDSCI": ("ä%.fits", "")}
    write_exposure(exposure, tmp_path / "white.fits", provenance=history)
    steps = (("white", "ccddata"), ("ccddata", "whitediff"))
    for before, kind in steps:
        code, _, messages = run(
            "convert", tmp_path / f"{before}.fits", "--format", kind,
            "--output", tmp_path / f"{kind}.fits",
        )  # fmt: skip
        assert code == 0, messages
        found = read_difference(tmp_path / f"{kind}.fits")
        assert found.convolved == "science"
        assert found.software == "whitediff"
        np.testing.assert_array_equal(found.exposure.variance, exposure.variance)
        np.testing.assert_array_equal(found.exposure.mask.get("BAD"), exposure.mask.get("BAD"))
        np.testing.assert_allclose(
            found.exposure.kernel.at(x=7, y=80),
            exposure.kernel.at(x=7, y=80),
            atol=1e-12,
        )
        # Whoever decorrelates it again is refused.
        assert fits.getval(tmp_path / f"{kind}.fits", "WDTASK") == "decorrelate"
        assert read_record(tmp_path / f"{kind}.fits").name("WDSCI") == "ä%.fits"


def test_what_an_object_has_no_place_for_is_said(run, rng, tmp_path):
    write_exposure(exposure_with_all(rng), tmp_path / "in.fits")
    code, _, messages = run(
        "convert", tmp_path / "in.fits", "--format", "masked-image",
        "--output", tmp_path / "out.fits",
    )  # fmt: skip
    assert code == 0
    assert "no place for the PSF and kernel" in messages


def test_versions_have_coefficients_and_planes_of_their_own(rng, tmp_path):
    box = Box.from_shape(SHAPE)
    basis = np.stack([gaussian(11, 1.5), moffat_kernel(11)])
    hdus = [fits.PrimaryHDU()]
    tables = []
    for version in (1, 2):
        table = np.array([[[1.0, 0.0], [0.0, 0.0]], [[0.1, 0.2], [-0.1, 0.0]]]) * version
        tables.append(table)
        for name, data in (
            ("SCI", rng.normal(0, 3, SHAPE)), ("KERNEL", basis), ("KERNEL_COEFFICIENTS", table),
            ("PSF", basis), ("PSF_COEFFICIENTS", table[::-1].copy()),
        ):  # fmt: skip
            hdus.append(fits.ImageHDU(data, name=name, ver=version))
    # Only the first has a mask and a variance.
    hdus.append(fits.ImageHDU(np.ones(SHAPE, np.int16), name="DQ", ver=1))
    hdus.append(fits.ImageHDU(np.full(SHAPE, 9.0), name="VARIANCE", ver=1))
    fits.HDUList(hdus).writeto(tmp_path / "two.fits")
    for version, table in zip((1, 2), tables, strict=True):
        exposure = read_exposure(f"{tmp_path / 'two.fits'}[SCI,{version}]", needs_variance=False)
        alone = read_kernel(f"{tmp_path / 'two.fits'}[KERNEL,{version}]", bounds=box)
        wanted = kernels.chebyshev_kernel(basis, table, box).at(x=80, y=3)
        for kernel in (exposure.kernel, alone):
            np.testing.assert_allclose(kernel.at(x=80, y=3), wanted, atol=1e-12)
        shape = kernels.chebyshev_kernel(basis, table[::-1].copy(), box).at(x=80, y=3)
        np.testing.assert_allclose(exposure.psf.at(x=80, y=3), shape / shape.sum(), atol=1e-9)
        assert ("BAD" in exposure.mask.names) == (version == 1)
        assert np.isfinite(exposure.variance).any() == (version == 1)


def test_planes_of_one_version_belong_to_the_image_before_them(rng, tmp_path):
    hdus = [fits.PrimaryHDU()]
    for number in (1, 2):
        hdus.append(fits.ImageHDU(rng.normal(0, 3, SHAPE), name=f"CCD{number}"))
        hdus.append(fits.ImageHDU(np.full(SHAPE, float(number)), name="VARIANCE"))
    fits.HDUList(hdus).writeto(tmp_path / "two.fits")
    for number in (1, 2):
        exposure = read_exposure(f"{tmp_path / 'two.fits'}[CCD{number}]")
        assert (exposure.variance == number).all()


def test_a_psf_without_coefficients_does_not_take_the_kernels(rng, tmp_path):
    basis = np.stack([gaussian(11, 1.5), moffat_kernel(11)])
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(rng.normal(0, 3, SHAPE), name="SCI")]
    hdus += [fits.ImageHDU(basis, name=name) for name in ("KERNEL", "PSF")]
    hdus.append(fits.ImageHDU(np.ones((2, 1, 1)), name="KERNEL_COEFFICIENTS"))
    fits.HDUList(hdus).writeto(tmp_path / "one.fits")
    with pytest.raises(FileFormatError, match="PSF is a cube of 2 basis images, but there is no"):
        read_exposure(tmp_path / "one.fits")


def test_images_of_the_sky_are_no_kernels(run, rng, tmp_path):
    sky = rng.normal(100, 3, SHAPE).astype(np.float32)
    fits.writeto(tmp_path / "sky.fits", sky)
    fits.HDUList(
        [fits.PrimaryHDU(), fits.ImageHDU(sky, name="SCI"), fits.ImageHDU(sky, name="VARIANCE")]
    ).writeto(tmp_path / "planes.fits")
    for name, message in (("sky", "is no matching kernel"), ("planes", "but no kernel")):
        code, _, messages = run(
            "kernel", tmp_path / f"{name}.fits", "--output", tmp_path / "out.fits"
        )
        assert code == 1
        assert message in messages
        assert not (tmp_path / "out.fits").exists()
    with pytest.raises(FileFormatError, match=r"90 x 100 pixels is no matching kernel"):
        read_kernel(tmp_path / "sky.fits", bounds=Box.from_shape(SHAPE))
    wide = gaussian(41, 6.0)
    fits.writeto(tmp_path / "wide.fits", wide)
    kernel = read_kernel(tmp_path / "wide.fits", bounds=Box.from_shape(SHAPE))
    np.testing.assert_allclose(kernel.at(x=0, y=0), wide)


@pytest.mark.parametrize("value", [0.0, -5.0, np.inf, np.nan])
def test_a_variance_is_positive(rng, tmp_path, value):
    path = str(tmp_path / "plain.fits")
    fits.writeto(path, rng.normal(100, 3, SHAPE))
    with pytest.raises(ArgumentError, match=r"variance must be a positive number"):
        read_exposure(path, options=ReadingOptions(variance=value))
    output = tmp_path / "out.fits"
    with pytest.raises(ArgumentError, match=r"plain.fits: its variance must be a positive number"):
        run_conversion(path, None, ConvertOptions(output=output, variance=value))


def test_the_first_of_several_images_is_taken_and_said(rng, tmp_path):
    names = ("N1", "N2")
    images = [fits.ImageHDU(rng.normal(100, 3, (200, 210)), name=name) for name in names]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(tmp_path / "two.fits")
    notes = describe(tmp_path / "two.fits").notes
    assert any("has the images N1, N2; N1 is taken" in note for note in notes)


def test_kernels_of_several_detectors_are_told_apart(run, rng, tmp_path):
    images = {name: [fits.PrimaryHDU()] for name in ("science", "template", "difference")}
    stamps = [fits.PrimaryHDU()]
    for version, width in ((1, 1.0), (2, 2.5)):
        science, template = rng.normal(0, 3, (2, *SHAPE))
        difference = science - convolve(template, gaussian(11, width))
        for hdus, plane in zip(images.values(), (science, template, difference), strict=True):
            hdus.append(fits.ImageHDU(plane.astype(np.float32), name="SCI", ver=version))
        stamps.append(fits.ImageHDU(gaussian(11, width), name="KERNEL", ver=version))
    paths = []
    for name, hdus in (images | {"kernel": stamps}).items():
        paths.append(tmp_path / f"{name}.fits")
        fits.HDUList(hdus).writeto(paths[-1])
    with pytest.raises(FileFormatError, match=r"2 of them, KERNEL,1, KERNEL,2; name one, as in"):
        read_kernel(paths[-1], bounds=Box.from_shape(SHAPE))
    code, _, messages = run(
        "decorrelate", *paths, "--hdu", "all", "--output", tmp_path / "white.fits"
    )
    assert code == 0, messages
    for version, width in ((1, 1.0), (2, 2.5)):
        written = fits.getdata(tmp_path / f"white.SCI{version}.fits", "KERNEL")
        np.testing.assert_allclose(written, gaussian(11, width), atol=1e-12)
