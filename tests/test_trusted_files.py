"""Nothing that a file holds is executed, and nothing that it names is fetched.

Claims: pickles in models of Piff make GalSim's WCS and NumPy's numbers and nothing else, whatever
protocol or trick they use; settings that Piff would evaluate are admitted only where they are
profiles and numbers; the same holds for models of Piff within archives; `info` makes no model;
all else is one sentence that names the file and the class.
"""

from __future__ import annotations

import base64
import collections
import os
import pickle

import numpy as np
import pytest
from astropy.io import fits
from lsst.images.psfs import PiffWrapper
from lsst.images.serialization import write_archive

from marks import needs_piff
from scenes import gaussian
from whitediff.errors import FileFormatError
from whitediff.exposures.boxes import Box
from whitediff.exposures.kernels import constant_kernel
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.formats import read_psf
from whitediff.formats.archive.read import read_object
from whitediff.formats.describe import describe
from whitediff.formats.piff.pickles import unpickled
from whitediff.formats.piff.trusted import check_struct
from whitediff.formats.piff.write import as_piff

BOX = Box.from_shape((300, 400))


class Calls:
    """Pickles as a call of something."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from test_foreign_psfs import piff_file

    return piff_file.__wrapped__(tmp_path_factory)[1]


def with_pickle(model, path, raw: bytes):
    """Copy of a model of Piff whose WCS is another pickle."""
    text = base64.b64encode(raw)
    with fits.open(model) as hdus:
        names = [hdu.name.upper() for hdu in hdus]
        old = hdus[names.index("PSF_WCS")].data
        columns = [
            fits.Column("chipnums", "K", array=old["chipnums"]),
            fits.Column("nchunks", "K", array=[1]),
            fits.Column("wcs_str_0000", f"{len(text)}A", array=[text]),
        ]
        table = fits.BinTableHDU.from_columns(columns, name="psf_wcs")
        hdus[names.index("PSF_WCS")] = table
        hdus.writeto(path)
    return path


def with_setting(model, path, extension: str, column: str, value: str):
    """Copy of a model of Piff with another text in its settings."""
    with fits.open(model) as hdus:
        names = [hdu.name.upper() for hdu in hdus]
        index = names.index(extension)
        old = hdus[index]
        columns = [
            fits.Column(c.name, c.format, array=old.data[c.name])
            for c in old.columns
            if c.name != column
        ]
        columns.append(fits.Column(column, f"{len(value)}A", array=[value]))
        table = fits.BinTableHDU.from_columns(columns, header=old.header, name=old.name)
        hdus[index] = table
        hdus.writeto(path)
    return path


def hostile_pickles(witness) -> dict[str, bytes]:
    command = f"touch {witness}"
    return {
        "system": pickle.dumps(Calls(os.system, command)),
        "protocol 0": pickle.dumps(Calls(os.system, command), protocol=0),
        "eval": pickle.dumps(Calls(eval, f"open({str(witness)!r}, 'w')")),
        "old class": f"(S'{command}'\nios\nsystem\n.".encode(),
        "obj": b"(cos\nsystem\n(S'" + command.encode() + b"'\no.",
        "getattr": pickle.dumps(Calls(getattr, "", "join")),
        "import": pickle.dumps(Calls(__import__, "os")),
        "numpy load": pickle.dumps(Calls(np.load, "other.npy")),
        "function of a class": b"cgalsim.wcs\nUVFunction\n.",
        "dotted name": b"\x80\x04\x8c\ngalsim.wcs\x8c\rutilities.sys\x93.",
        "constructor of a list": pickle.dumps(Calls(list, Calls(os.system, command))),
        "program": b"cgalsim.fitswcs\nWcsToolsWCS\n(S'" + command.encode() + b"'\ntR.",
        "file of a WCS": b"cgalsim.fitswcs\nGSFitsWCS\n(S'http://localhost/a.fits'\ntR.",
    } | {name: steps.replace(b"FILE", str(witness).encode()) for name, steps in IN_STEPS.items()}


MADE = b"cgalsim.wcs\nPixelScale\n)\x81"
READER = b"cgalsim.fits\nFitsHeader\n"
IN_STEPS = {
    "constructor as a method": MADE + b"}(S'__setstate__'\n" + READER + b"ubS'FILE'\nb.",
    "constructor that appends": MADE + b"}(S'append'\n" + READER + b"ubS'FILE'\na.",
    "constructor that extends": MADE + b"}(S'extend'\n" + READER + b"ub(S'FILE'\ne.",
    "constructor that adds": MADE + b"}(S'add'\n" + READER + b"ub(S'FILE'\n\x90.",
    "class in a slot": MADE + b"N}S'append'\n" + READER + b"s\x86b.",
    "class in a list": b"](" + READER + b"e.",
    "class in a tuple": MADE + b"}S'wcs'\n" + READER + b"\x85sb.",
    "instance that is called": MADE + b"(S'FILE'\ntR.",
    "state that is text": MADE + b"S'FILE'\nb.",
    "attribute of its class": MADE + b"}S'__class__'\nK\x01sb.",
}
"""Constructors of admitted classes, whose names stand where something else calls them."""


@pytest.mark.parametrize("name", hostile_pickles("x"))
def test_hostile_pickles_are_a_sentence(model, tmp_path, name, monkeypatch):
    galsim = pytest.importorskip("galsim")
    # Its file would be opened.
    monkeypatch.setattr(galsim.fits.FitsHeader, "__init__", lambda *args: pytest.fail(str(args)))
    raw = hostile_pickles(tmp_path / "witness")[name]
    path = with_pickle(model, tmp_path / "hostile.piff", raw)
    with pytest.raises(FileFormatError, match=r"hostile\.piff: psf_wcs") as error:
        read_psf(path, bounds=BOX)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "witness").exists()
    # What is not used is not even looked at.
    assert describe(path).format == "piff"
    assert not (tmp_path / "witness").exists()


def test_the_class_is_named(model, tmp_path):
    path = with_pickle(model, tmp_path / "a.piff", pickle.dumps(Calls(os.system, "true")))
    with pytest.raises(FileFormatError, match=r"a\.piff: psf_wcs: names (posix|nt)\.system"):
        read_psf(path, bounds=BOX)
    path = with_pickle(model, tmp_path / "b.piff", pickle.dumps([1.0, 2.0]))
    with pytest.raises(FileFormatError, match="are a list, and no WCS of GalSim"):
        read_psf(path, bounds=BOX)


@pytest.mark.parametrize("protocol", range(5))
def test_coordinates_of_every_kind_are_read(protocol):
    galsim = pytest.importorskip("galsim")
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = (20, -5), (100, 90), (-1e-4, 1e-4)
    header = wcs.to_header()
    shear = galsim.Shear(g1=0.1, g2=-0.2)
    for one in (
        galsim.PixelScale(0.2),
        galsim.ShearWCS(0.2, shear),
        galsim.JacobianWCS(0.2, 0.01, -0.02, 0.3),
        galsim.OffsetWCS(0.3, galsim.PositionD(3, 4)),
        galsim.OffsetShearWCS(0.3, shear, galsim.PositionD(3, 4)),
        galsim.AffineTransform(0.2, 0, 0.1, 0.2, galsim.PositionD(1, 2)),
        galsim.GSFitsWCS(header=galsim.FitsHeader(dict(header))),
        galsim.AstropyWCS(header=header),
    ):
        found = unpickled(pickle.dumps(one, protocol=max(protocol, 2)), "a.piff")
        place = galsim.PositionD(30.0, 40.0)
        assert type(found) is type(one)
        assert str(found.toWorld(place)) == str(one.toWorld(place))


def test_arrays_are_as_long_as_they_say():
    array = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(unpickled(pickle.dumps(array), "a"), array)
    assert unpickled(pickle.dumps(np.float32(2.5)), "a") == 2.5
    huge = pickle.dumps(array).replace(b"K\x02K\x03", b"K\xf2K\xf3")
    with pytest.raises(FileFormatError, match="not as long as its shape says"):
        unpickled(huge, "a")
    for value in (np.array([1, "a"], dtype=object), np.zeros(2, "i4,f8"), collections.Counter()):
        with pytest.raises(FileFormatError):
            unpickled(pickle.dumps(value), "a")


@pytest.mark.parametrize(
    ("extension", "column", "value"),
    [
        ("PSF_MODEL", "gsobj", "__import__('os').system('touch WITNESS')"),
        ("PSF_MODEL", "gsobj", "galsim.Gaussian(sigma=[c for c in ().__class__.__mro__][0])"),
        ("PSF_MODEL", "gsobj", "galsim.InterpolatedImage('other.fits')"),
        ("PSF_MODEL", "gsobj", "galsim.Gaussian(sigma=9**9**9)"),
        ("PSF_MODEL", "gsobj", "galsim.Gaussian(sigma=open('WITNESS', 'w'))"),
        ("PSF_MODEL", "init", "{'a': __import__('os').system('touch WITNESS')}"),
        ("PSF_MODEL", "init", "(1, __import__('os').system('touch WITNESS'))"),
        ("PSF_INTERP", "type", "DECamWavefront"),
        ("PSF_MODEL", "type", "Optical"),
        ("PSF", "model", "(lambda: open('WITNESS', 'w'))()"),
    ],
)
def test_settings_are_not_evaluated(model, tmp_path, extension, column, value):
    witness = tmp_path / "witness"
    path = with_setting(
        model, tmp_path / "a.piff", extension, column, value.replace("WITNESS", str(witness))
    )
    with pytest.raises(FileFormatError, match=r"a\.piff: psf"):
        read_psf(path, bounds=BOX)
    assert not witness.exists()


@pytest.mark.parametrize(
    "value",
    [
        "galsim.Gaussian(sigma=1.0, flux=1.0, gsparams=galsim.GSParams(128,8192,0.005,5.0))",
        "galsim.Lanczos(3, True)",
        "Lanczos(7)",
        "(0.1, 0.5)",
        "1.5**2 * RBF(length_scale=1) + WhiteKernel(noise_level=1e-05)",
        "AnisotropicRBF(scale_length=[300.0, -300.0])",
        "hsm",
        "",
        "1.6.0",
    ],
)
def test_admitted_settings(value):
    check_struct({"type": "Simple", "gsobj": value, "keys": np.array(["u", "v"])}, "a.piff")


def test_info_makes_no_model(model, monkeypatch):
    import piff

    def refuse(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(piff.PSF, "_read", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    facts = describe(model).facts
    assert facts["PSF"] == "GSObject"
    assert facts["interpolation"] == "Polynomial, order 2"
    assert facts["detectors"] == "7"


def test_archives_hold_no_code_either(tmp_path):
    needs_piff()
    box = Box.from_shape((60, 70))
    psf = as_piff(KernelPointSpreadFunction(constant_kernel(gaussian(15, 1.5), box)), box)
    write_archive(psf, tmp_path / "psf.fits")
    assert isinstance(read_object(tmp_path / "psf.fits"), PiffWrapper)
    raw = (tmp_path / "psf.fits").read_bytes()
    name, bad = b'"galsim.Lanczos(7, True', b'"__import__(`o`).abc(12'
    assert name in raw
    assert len(bad) == len(name)
    (tmp_path / "bad.fits").write_bytes(raw.replace(name, bad.replace(b"`", b"'")))
    with pytest.raises(FileFormatError, match=r"bad\.fits: the PSF's .*interp.*executes nothing"):
        read_object(tmp_path / "bad.fits")
    # An address that leads elsewhere is not followed.
    address = fits.getheader(tmp_path / "psf.fits")["JSONADDR"]
    text = f"JSONADDR= {address:>20}".encode()
    assert text in raw
    (tmp_path / "bad.fits").write_bytes(raw.replace(text, f"JSONADDR= {2880:>20}".encode()))
    with pytest.raises(FileFormatError, match="JSONADDR and JSONSIZE are 2880"):
        read_object(tmp_path / "bad.fits")
    fits.setval(tmp_path / "psf.fits", "DATAMODL", value="s3://bucket/schemas/piff_psf-1.0.0")
    with pytest.raises(FileFormatError, match=r"psf\.fits: DATAMODL is 's3://"):
        read_object(tmp_path / "psf.fits")
