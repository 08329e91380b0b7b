"""Claims: sky coordinates are those that astropy reads, whatever distortions a header mixes, and a
projection of lsst.images says the same; further axes do no harm."""

from __future__ import annotations

import warnings

import astropy.wcs
import numpy as np
import pytest
from astropy.io import fits

from whitediff.exposures.boxes import Box
from whitediff.exposures.sky import celestial_wcs, disagreement
from whitediff.formats.archive.convert import lsst_box, sky_projection

SHAPE = (300, 280)
CD = {"CD1_1": -7e-5, "CD1_2": 1e-6, "CD2_1": 1e-6, "CD2_2": 7e-5}
PC = {"PC1_1": -1.0, "PC2_2": 1.0, "CDELT1": 7e-5, "CDELT2": 7e-5}
SIP = {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-5, "B_0_2": -2e-5}
SCAMP = {f"PV{axis}_{term}": value for axis in (1, 2)
         for term, value in ((0, 0.0), (1, 1.0), (2, 0.0), (4, 1e-3), (7, 0.1))}  # fmt: skip
THIRD = {"CTYPE3": "WAVE", "CRPIX3": 1.0, "CRVAL3": 5e-7, "CDELT3": 1e-9, "CUNIT3": "m"}

KINDS = {
    "SIP and SCAMP": ("TAN-SIP", CD | SIP | SCAMP),
    "SIP and SCAMP with PC": ("TAN-SIP", PC | SIP | SCAMP),
    "SIP without suffix": ("TAN", CD | SIP),
    "SIP without suffix and SCAMP": ("TAN", CD | SIP | SCAMP),
    "SCAMP before it had a name": ("TAN", CD | SCAMP),
    "TPV": ("TPV", CD | SCAMP),
    "TPV and SIP": ("TPV", CD | SIP | SCAMP),
    "PC and SCAMP": ("TAN", PC | SCAMP),
    "CD and CDELT": ("TAN", CD | {"CDELT1": 1.0, "CDELT2": 1.0}),
    "PC and CD": ("TAN", CD | PC),
    "ZPN": ("ZPN", CD | {"PV2_1": 1.0, "PV2_3": 42.0}),
    "SIP and native longitude": ("TAN-SIP", CD | SIP | {"PV1_1": 0.0, "PV1_2": 90.0}),
}


def header_of(projection: str, cards: dict[str, object]) -> fits.Header:
    header = fits.Header()
    for axis, (kind, value, pixel) in enumerate((("RA", 150.0, 140.0), ("DEC", -30.0, 150.0)), 1):
        header[f"CTYPE{axis}"] = f"{kind:-<4}-{projection}"
        header[f"CRVAL{axis}"], header[f"CRPIX{axis}"] = value, pixel
    header.update(cards)
    return header


def grid() -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid([0.0, 70.0, 279.0], [0.0, 150.0, 299.0])


@pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_are_those_that_astropy_reads(kind):
    header = header_of(*KINDS[kind])
    ours = celestial_wcs(header.copy())
    assert ours is not None
    expected = astropy.wcs.WCS(header).pixel_to_world(*grid())
    assert ours.pixel_to_world(*grid()).separation(expected).arcsec.max() < 1e-6
    box = Box.from_shape(SHAPE)
    projection = sky_projection(header, box)
    assert projection is not None
    # Pixels of 0.25 arcsec; the class promises 1e-3 of one.
    assert disagreement(astropy.wcs.WCS(header), projection, lsst_box(box)) < 1e-3


@pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_third_axis_does_no_harm(kind):
    projection, cards = KINDS[kind]
    flat, deep = (celestial_wcs(header_of(projection, c)) for c in (cards, cards | THIRD))
    assert flat is not None
    assert deep is not None
    separation = flat.pixel_to_world(*grid()).separation(deep.pixel_to_world(*grid()))
    assert separation.arcsec.max() < 1e-6


def test_the_distortion_is_in_the_coordinates():
    plain, sip = (celestial_wcs(header_of("TAN-SIP", CD | extra)) for extra in ({}, SIP | SCAMP))
    assert plain is not None
    assert sip is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shift = plain.pixel_to_world(0, 0).separation(sip.pixel_to_world(0, 0)).arcsec
    # 1e-5 · 139² and 2e-5 · 149² pixels of 0.252 arcsec.
    assert shift == pytest.approx(0.252 * np.hypot(1e-5 * 139**2, 2e-5 * 149**2), rel=0.02)


@pytest.mark.parametrize("card", ["CRVAL1", "CRPIX2", "CD1_1"])
def test_numbers_in_quotes_are_numbers_or_no_wcs(card):
    header = header_of("TAN", CD)
    expected = celestial_wcs(header)
    assert expected is not None
    header[card] = f" {header[card]}"
    found = celestial_wcs(header)
    assert found is not None
    separation = found.pixel_to_world(*grid()).separation(expected.pixel_to_world(*grid()))
    assert separation.arcsec.max() < 1e-6
    for text in ("nan", "north"):
        header[card] = text
        assert celestial_wcs(header) is None
