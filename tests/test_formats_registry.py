"""Formats and their registry.

Claims: each format recognises its own files and no other's, but for plain FITS, which is asked
last and takes whatever has an image.  Recognising a file, and reading one of ours or a plain one,
needs no library of another format.  A format that is added to the registry is read and described
without a change elsewhere, and written by `convert` if it can be: no module outside of a format's
own folder asks for a format by its name.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import test_damaged_files as cases
import test_sfft
import whitediff
from scenes import gaussian
from whitediff import Exposure
from whitediff.errors import FileFormatError
from whitediff.exposures import kernels
from whitediff.exposures.boxes import Box
from whitediff.formats import (
    ccddata,
    identify,
    read_any,
    read_exposure,
    read_kernel,
    registry,
    write_exposure,
)
from whitediff.formats.describe import describe
from whitediff.formats.detectors import detectors
from whitediff.formats.files import opened
from whitediff.formats.format import Format, Identity
from whitediff.formats.registry import format_of
from whitediff.options import declarations
from whitediff.runs.convert import run_conversion
from whitediff.runs.options import ConvertOptions

SOURCES = Path(whitediff.__file__).parent


def archive(rng, directory: Path) -> Path:
    convert = pytest.importorskip("whitediff.formats.archive.convert")
    exposure = Exposure.from_arrays(rng.normal(size=(30, 32)).astype(np.float32), variance=1.0)
    convert.masked_image(exposure).write(str(directory / "archive.fits"))
    return directory / "archive.fits"


def own(rng, directory: Path) -> Path:
    write_exposure(cases.rich_exposure(rng), directory / "own.fits")
    return directory / "own.fits"


def sfft(rng, directory: Path) -> Path:
    _, _, _, difference = test_sfft.scene(rng)
    test_sfft.write_difference(directory / "sfft.fits", difference, "REF")
    return directory / "sfft.fits"


def piff(rng, directory: Path) -> Path:
    columns = [
        fits.Column(name, f"{len(value)}A", array=[value])
        for name, value in (("type", "Simple"), ("piff_version", "1.4.0"))
    ]
    table = fits.BinTableHDU.from_columns(columns, name="psf")
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(directory / "model.piff")
    return directory / "model.piff"


SAMPLES = {
    "lsst.images": archive,
    "whitediff": own,
    "ccddata": lambda rng, directory: cases.ccddata_case(rng, directory).path,
    "hotpants": lambda rng, directory: cases.hotpants_case(rng, directory).path,
    "sfft": sfft,
    "psfex": lambda rng, directory: cases.psfex_case(rng, directory).path,
    "piff": piff,
    "lsst.afw": lambda rng, directory: cases.afw_case(rng, directory).path,
    "plain": lambda rng, directory: cases.plain_case(rng, directory).path,
}


def test_each_format_has_a_name_of_its_own_and_a_sample():
    names = [each.name for each in registry.FORMATS]
    assert len(set(names)) == len(names)
    assert set(names) == set(SAMPLES)
    assert names[-1] == "plain"


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_is_that_of_one_format(rng, tmp_path, name):
    path = SAMPLES[name](rng, tmp_path)
    with opened(path) as hdus:
        found = {each.name: each.recognise(hdus) for each in registry.FORMATS}
        identity = identify(hdus)
    assert {other for other, one in found.items() if one is not None} == {name, "plain"}
    assert identity == found[name]
    assert identity.format == name
    assert format_of(identity).name == name
    assert identity == registry.identity_of(path)


def names_of(path: Path) -> list[str]:
    """Formats that take a file for theirs, in the order in which they are asked."""
    with opened(path) as hdus:
        return [each.name for each in registry.FORMATS if each.recognise(hdus)]


def test_a_converted_difference_is_ccddata(rng, tmp_path):
    """Though it keeps the header of the program that made it."""
    difference = read_any(SAMPLES["hotpants"](rng, tmp_path)).exposure
    ccddata.write(difference, tmp_path / "ccd.fits")
    fits.setval(tmp_path / "ccd.fits", "SOFTNAME", value="HOTPanTS")
    assert names_of(tmp_path / "ccd.fits") == ["ccddata", "hotpants", "plain"]
    assert registry.identity_of(tmp_path / "ccd.fits").format == "ccddata"


def test_an_archive_that_we_wrote_is_an_archive(rng, tmp_path):
    """Though it has the cards and planes of our own files."""
    objects = pytest.importorskip("whitediff.formats.archive.objects")
    exposure = Exposure.from_arrays(rng.normal(size=(30, 32)), variance=1.0)
    objects.write_object(exposure, tmp_path / "archive.fits", "masked-image")
    assert names_of(tmp_path / "archive.fits") == ["lsst.images", "whitediff", "plain"]
    assert registry.identity_of(tmp_path / "archive.fits").format == "lsst.images"


def test_libraries_are_left_alone(rng, tmp_path):
    paths = {name: make(rng, tmp_path) for name, make in SAMPLES.items()}
    code = """if True:
        import sys
        from whitediff.formats import read_exposure, registry
        *files, own, plain = sys.argv[1:]
        for file in (*files, own, plain):
            assert registry.identity_of(file) is not None
        read_exposure(own)
        read_exposure(plain)
        print({name.split(".")[0] for name in sys.modules} & {"lsst", "piff", "galsim"})
    """
    last = [paths.pop(name) for name in ("whitediff", "plain")]
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths.values()), *map(str, last)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "set()"


def recognise_toy(hdus) -> Identity | None:
    if "TOY" not in hdus[0].header:
        return None
    return Identity("toy", hdus[0].header["TOY"], "negative of an image")


def read_toy(path, extension, *, options, needs_variance, box) -> Exposure:
    with opened(path) as hdus:
        data = -hdus[0].data
    return Exposure.from_arrays(data, variance=4.0)


def kernel_of_toy(path, identity, *, bounds):
    return kernels.constant_kernel(gaussian(7, 1.2), bounds)


def write_toy(exposure, path, **options) -> list[str]:
    hdu = fits.PrimaryHDU(-exposure.data)
    hdu.header["TOY"] = "image"
    hdu.writeto(path)
    return ["loses its variance."]


TOY = Format(
    name="toy",
    recognise=recognise_toy,
    read=read_toy,
    read_kernel=kernel_of_toy,
    missing_planes=lambda hdus, identity: ["TOYMASK"],
    roles=lambda hdus, identity, extension, path: {0: "negative"},
    writers={"toy": write_toy},
    holds_one_exposure=True,
)


def test_a_further_format(rng, tmp_path, run, monkeypatch, caplog):
    path, data = tmp_path / "toy.fits", rng.normal(size=(60, 70)).astype(np.float32)
    hdu = fits.PrimaryHDU(data)
    hdu.header["TOY"] = "image"
    fits.HDUList([hdu, fits.ImageHDU(data, name="SCI")]).writeto(path)
    assert describe(path).format == "plain"
    assert detectors(path) == ["SCI"]
    monkeypatch.setattr(registry, "FORMATS", (TOY, *registry.FORMATS))
    exposure = read_exposure(path)
    np.testing.assert_array_equal(exposure.data, -data)
    assert (exposure.variance == 4).all()
    assert "has no TOYMASK" in caplog.text
    part = read_exposure(path, box=Box.between((10, 20), (5, 35)))
    np.testing.assert_array_equal(part.data, -data[10:20, 5:35])
    kernel = read_kernel(path, bounds=exposure.bbox)
    np.testing.assert_allclose(kernel.at(x=3, y=3), gaussian(7, 1.2))
    np.testing.assert_array_equal(read_any(path).exposure.data, -data)
    found = describe(path)
    assert (found.format, found.kind) == ("toy", "image")
    assert found.facts["format"] == "negative of an image"
    assert [one.role for one in found.hdus] == ["negative", ""]
    with pytest.raises(FileFormatError, match="leave out --hdu"):
        detectors(path)
    code, out, messages = run("info", path)
    assert code == 0, messages
    assert "negative of an image" in out
    code, _, messages = run("convert", path, "--output", tmp_path / "own.fits")
    assert code == 0, messages
    np.testing.assert_array_equal(read_exposure(tmp_path / "own.fits").data, -data)


def test_a_format_without_images(tmp_path, monkeypatch):
    hdu = fits.PrimaryHDU(np.ones((5, 5)))
    hdu.header["TOY"] = "psf"
    hdu.writeto(tmp_path / "toy.fits")
    monkeypatch.setattr(
        registry, "FORMATS", (Format(name="toy", recognise=recognise_toy), *registry.FORMATS)
    )
    with pytest.raises(FileFormatError, match="is no image, but a psf: negative of an image"):
        read_exposure(tmp_path / "toy.fits")
    with pytest.raises(FileFormatError, match="holds a PSF, not a matching kernel"):
        read_kernel(tmp_path / "toy.fits", bounds=Box.from_shape((60, 60)))


def test_convert_writes_what_formats_write(rng, tmp_path, monkeypatch):
    assert set(declarations(ConvertOptions)["format"].choices) == set(registry.writers())
    monkeypatch.setattr(registry, "FORMATS", (TOY, *registry.FORMATS))
    write_exposure(cases.rich_exposure(rng), tmp_path / "own.fits")
    options = ConvertOptions(output=tmp_path / "toy.fits", format="toy")
    run_conversion(str(tmp_path / "own.fits"), None, options)
    assert registry.identity_of(tmp_path / "toy.fits").format == "toy"


NAMES = frozenset(SAMPLES)


def asked_by_name(
    code: str, names: frozenset[str] = NAMES, *, is_format: bool = False
) -> list[int]:
    """Lines that tell formats apart by their names: comparisons, cases and tables of them.

    A format's own folder may look at `Identity.format`.
    """

    def named(node: ast.AST | None) -> bool:
        return isinstance(node, ast.Constant) and node.value in names

    tree, lines = ast.parse(code), set()
    # A method of strings, an argument that is handed on, and what a user chose decide nothing.
    harmless = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    harmless |= {
        id(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "options"
    }
    harmless |= {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "format"
    }
    for node in ast.walk(tree):
        asks = (
            (isinstance(node, ast.Compare) and any(map(named, ast.walk(node))))
            or (isinstance(node, ast.MatchValue) and named(node.value))
            or (isinstance(node, ast.Dict) and sum(map(named, node.keys)) > 1)
            or (
                isinstance(node, ast.Attribute)
                and node.attr == "format"
                and id(node) not in harmless
                and not is_format
            )
        )
        if asks:
            lines.add(node.lineno)
    return sorted(lines)


@pytest.mark.parametrize(
    "code",
    [
        "kind == 'hotpants'",
        "(identity.format, kind) == pair",
        "name in ('psfex', 'piff')",
        "READERS[identity.format]",
        "READERS = {'hotpants': 1, 'sfft': 2}",
        "match name:\n  case 'plain': pass",
        "form = identity.format",
    ],
)
def test_names_are_found(code):
    assert asked_by_name(code)


def test_other_uses_of_names_are_not_found():
    assert not asked_by_name("'{}'.format(1); log('hotpants'); Description(format=identity.format)")


def test_no_module_asks_for_a_format_by_its_name():
    folders = {
        Path(sys.modules[each.recognise.__module__].__file__).parent: each.name
        for each in registry.FORMATS
    }
    assert len(folders) == len(SAMPLES)
    modules = [path for path in SOURCES.rglob("*.py") if path != Path(registry.__file__)]
    assert set(folders) < {path.parent for path in modules}
    found = []
    for path in modules:
        own_name = {folders[path.parent]} if path.parent in folders else set()
        lines = asked_by_name(path.read_text(), NAMES - own_name, is_format=bool(own_name))
        found += [f"{path.relative_to(SOURCES)}:{line}" for line in lines]
    assert not found
