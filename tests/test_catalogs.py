"""Catalogues as files.

Claims: ECSV, FITS and Parquet, chosen by the name, give back every value, unit, description and
the metadata, of an empty catalogue too, and other tools read them; foreign tables are read.  DS9
regions stand where the sources are, on the sky or counted from 1.  Names of unknown kind, missing,
damaged and wrong files, and a missing package get one sentence; nothing is overwritten or left
half-written.
"""

from __future__ import annotations

import re
import sys

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable, Table

from whitediff.errors import FileFormatError, OutputExistsError
from whitediff.formats.catalogs import read_catalog, write_catalog, write_regions
from whitediff.paths import check_catalog_path

KINDS = ["ecsv", "fits", "parquet"]


def catalogue(number=3, *, sky=True):
    table = QTable()
    table["id"] = np.arange(1, number + 1)
    table["x"] = np.linspace(10.25, 90.5, number) * u.pixel
    table["y"] = np.linspace(-3.0, 60.125, number) * u.pixel
    if sky:
        table["ra"] = np.linspace(359.9, 359.99, number) * u.deg
        table["dec"] = np.linspace(-40.0, -39.9, number) * u.deg
    table["significance"] = np.linspace(-12.5, 30.0, number)
    table["psf_flux"] = np.full(number, np.nan) * u.nJy
    table["classification"] = np.array(["point", "dipole", "artifact"] * number)[:number]
    table["flag_edge"] = np.arange(number) % 2 == 0
    for name in table.colnames:
        table[name].info.description = f"what {name} is, 100 % of it"
    table.meta |= {
        "image": "a very long name of a file/" * 6 + "ä.fits", "threshold": 5.0, "x0": 4,
        "y0": -7, "aperture_radius": 6.5, "nothing": None, "levels": [3.5, 4.0], "score": False,
    }  # fmt: skip
    return table


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [3, 0])
def test_round_trip(tmp_path, kind, number):
    table = catalogue(number)
    write_catalog(table, tmp_path / f"c.{kind}")
    again = read_catalog(tmp_path / f"c.{kind}")
    assert again.colnames == table.colnames
    assert len(again) == number
    assert again.meta == table.meta
    for name in table.colnames:
        assert again[name].unit == table[name].unit
        assert again[name].info.description == table[name].info.description
        assert again[name].dtype.kind == table[name].dtype.kind
        assert again[name].dtype.isnative
        np.testing.assert_array_equal(again[name], table[name])
    assert list(tmp_path.iterdir()) == [tmp_path / f"c.{kind}"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", [u.electron, u.electron / u.s])
def test_units_that_the_standard_of_fits_lacks(tmp_path, kind, unit):
    table = QTable({"psf_flux": np.linspace(5.0, 6.0, 3) * unit})
    write_catalog(table, tmp_path / f"c.{kind}")
    again = read_catalog(tmp_path / f"c.{kind}")
    assert again["psf_flux"].unit == unit
    np.testing.assert_array_equal(again["psf_flux"], table["psf_flux"])


def test_other_tools_read_them(tmp_path):
    table = catalogue()
    for kind in KINDS:
        write_catalog(table, tmp_path / f"c.{kind}")
    plain = Table.read(tmp_path / "c.fits")
    np.testing.assert_array_equal(plain["x"], table["x"].value)
    assert plain["ra"].unit == u.deg
    with fits.open(tmp_path / "c.fits") as hdus:
        hdus.verify("exception")
        assert hdus[1].name == "CATALOG"
        assert hdus[1].header["TCOMM2"] == "what x is, 100 % of it"
    assert Table.read(tmp_path / "c.ecsv", format="ascii.ecsv")["x"].unit == u.pixel
    parquet = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "c.parquet")
    assert parquet.schema.field("x").metadata == {
        b"unit": b"pix",
        b"description": b"what x is, 100 % of it",
    }


def test_foreign_tables_are_read(tmp_path):
    Table({"RA": [1.0], "name": ["a"]}).write(tmp_path / "f.fits")
    image = fits.ImageHDU(np.zeros((3, 3)))
    first = fits.BinTableHDU.from_columns([fits.Column("x", "E", unit="arcsec", array=[1.0])])
    second = fits.BinTableHDU.from_columns([fits.Column("y", "E", array=[2.0])], name="OTHER")
    fits.HDUList([fits.PrimaryHDU(), image, first, second]).writeto(tmp_path / "many.fits")
    assert read_catalog(tmp_path / "f.fits")["name"].tolist() == ["a"]
    assert read_catalog(tmp_path / "many.fits")["x"].unit == u.arcsec
    assert read_catalog(f"{tmp_path}/many.fits[OTHER]")["y"].tolist() == [2.0]


def test_regions(tmp_path):
    write_regions(catalogue(), tmp_path / "sky.reg")
    lines = (tmp_path / "sky.reg").read_text().splitlines()
    assert lines[0] == "# Region file format: DS9 version 4.1"
    assert lines[2] == "icrs"
    assert lines[3].startswith("circle(359.9000000,-40.0000000,")
    assert [re.search(r"color=(\w+)", line)[1] for line in lines[3:]] == [
        "red", "magenta", "yellow",
    ]  # fmt: skip
    assert "text={1 -12.5}" in lines[3]
    write_regions(catalogue(sky=False), tmp_path / "image.reg", radius=4)
    lines = (tmp_path / "image.reg").read_text().splitlines()
    assert lines[2] == "image"
    # The first pixel of the array, at x0 and y0, is (1, 1).
    assert lines[3].startswith("circle(7.250,5.000,4)")
    write_regions(catalogue(0), tmp_path / "none.reg")
    assert len((tmp_path / "none.reg").read_text().splitlines()) == 3
    with pytest.raises(OutputExistsError, match="exists already"):
        write_regions(catalogue(), tmp_path / "sky.reg")


def test_tables_of_other_hands_may_be_csv(tmp_path):
    path = tmp_path / "places.csv"
    path.write_text("name,ra,dec\nfirst,150.1,-2.25\nsecond,150.2,2\n")
    table = read_catalog(path)
    assert table["name"].tolist() == ["first", "second"]
    assert table["dec"].tolist() == [-2.25, 2.0]
    path.write_text("name,ra,dec\nfirst,150.1,2,3\n")
    with pytest.raises(FileFormatError, match=r"places\.csv: cannot be read as CSV"):
        read_catalog(path)
    with pytest.raises(FileFormatError, match=r"end in \.ecsv, \.csv, .*; this one ends in \.txt"):
        read_catalog(tmp_path / "places.txt")


def test_what_cannot_be_written(tmp_path, monkeypatch):
    for name in ("c.txt", "c", "c.fits.gz"):
        with pytest.raises(FileFormatError, match=r"must end in \.ecsv, \.csv, \.fits"):
            write_catalog(catalogue(), tmp_path / name)
        with pytest.raises(FileFormatError, match=r"must end in"):
            check_catalog_path(tmp_path / name)
    (tmp_path / "c.ecsv").write_text("precious")
    with pytest.raises(OutputExistsError, match="exists already"):
        write_catalog(catalogue(), tmp_path / "c.ecsv")
    assert (tmp_path / "c.ecsv").read_text() == "precious"
    write_catalog(catalogue(), tmp_path / "c.ecsv", overwrite=True)
    assert len(read_catalog(tmp_path / "c.ecsv")) == 3
    with pytest.raises(FileFormatError, match="directory does not exist"):
        write_catalog(catalogue(), tmp_path / "no" / "c.fits")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(FileFormatError, match=r"pip install 'whitediff\[parquet\]'"):
        write_catalog(catalogue(), tmp_path / "c.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.ecsv"]


def test_what_cannot_be_read(tmp_path):
    for kind in KINDS:
        path = tmp_path / f"c.{kind}"
        with pytest.raises(FileFormatError, match=f"c.{kind}: no such file"):
            read_catalog(path)
        write_catalog(catalogue(), path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(FileFormatError, match=f"c.{kind}: "):
            read_catalog(path)
        path.write_text("no table at all")
        with pytest.raises(FileFormatError, match=f"c.{kind}: cannot be read as"):
            read_catalog(path)
    fits.writeto(tmp_path / "image.fits", np.zeros((4, 4)))
    with pytest.raises(FileFormatError, match="holds no table"):
        read_catalog(tmp_path / "image.fits")
    with pytest.raises(FileFormatError, match="has no extension 'X'"):
        read_catalog(f"{tmp_path}/image.fits[X]")
    (tmp_path / "d.ecsv").mkdir()
    with pytest.raises(FileFormatError, match="is a directory"):
        read_catalog(tmp_path / "d.ecsv")
