"""Files as the archives of observatories lay them out, with a recipe for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

type Array = npt.NDArray[Any]

SHAPE = (190, 210)
SIGMA, GAIN = 4.0, 1.5
BAD_COLUMN, STAR, RAY, EMPTY, INFORMED = 33, (60, 120), (100, 150), (150, 30), (40, 170)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A science image, its noise, and what is wrong with its pixels."""

    science: Array
    template: Array
    sigma: Array
    planes: dict[str, Array]
    informed: Array


def scene(seed: int) -> Scene:
    """A pair of counts with a saturated star, a cosmic ray, a bad column and a hole."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    places = [(rng.uniform(12, SHAPE[1] - 12), rng.uniform(12, SHAPE[0] - 12)) for _ in range(40)]
    fluxes = 10 ** rng.uniform(3.5, 4.8, 40)

    def light(width: float) -> Array:
        total = np.zeros(SHAPE)
        sources = [*zip(places, fluxes, strict=True), ((STAR[1], STAR[0]), 1e6)]
        for (at_x, at_y), flux in sources:
            profile = np.exp(-0.5 * ((x - at_x) ** 2 + (y - at_y) ** 2) / width**2)
            total += flux * profile / (2 * np.pi * width**2)
        return total

    def noisy(image: Array) -> Array:
        return image + rng.normal(size=SHAPE) * np.sqrt(SIGMA**2 + image / GAIN)

    clean = light(1.9)
    science, template = noisy(clean), noisy(light(1.5))
    planes = {name: np.zeros(SHAPE, bool) for name in ("SAT", "CR", "BAD", "NO_DATA")}
    planes["SAT"] = clean > 8000
    planes["CR"][RAY[0], RAY[1] : RAY[1] + 6] = True
    planes["BAD"][:, BAD_COLUMN] = True
    planes["NO_DATA"][EMPTY[0] : EMPTY[0] + 5, EMPTY[1] : EMPTY[1] + 7] = True
    science[planes["SAT"]] = 8000 + rng.normal(size=planes["SAT"].sum())
    science[planes["CR"]] = 5000
    science[planes["BAD"]] = -3000
    science[planes["NO_DATA"]] = 0
    informed = np.zeros(SHAPE, bool)
    informed[INFORMED[0] : INFORMED[0] + 12, INFORMED[1] : INFORMED[1] + 12] = True
    return Scene(science, template, np.sqrt(SIGMA**2 + clean / GAIN), planes, informed)


@dataclasses.dataclass(frozen=True)
class Written:
    """Files of a layout."""

    science: str
    template: str
    options: dict[str, str]


def _plain(scene: Scene, directory: Path, scale: float = 1.0, unit: str = "adu") -> str:
    """Template beside any layout, in its unit, with its variance."""
    path = directory / "template.fits"
    sigma = np.sqrt(SIGMA**2 + np.maximum(scene.template, 0) / GAIN)
    image = fits.ImageHDU((scene.template * scale).astype(np.float32), name="SCI")
    image.header["BUNIT"] = unit
    variance = fits.ImageHDU(((sigma * scale) ** 2).astype(np.float32), name="VARIANCE")
    fits.HDUList([fits.PrimaryHDU(), image, variance]).writeto(path)
    return str(path)


def _bits(scene: Scene, bits: dict[str, int], informed: tuple[int, ...], dtype: Any) -> Array:
    mask = np.zeros(SHAPE, np.int64)
    for name, plane in scene.planes.items():
        mask[plane] |= bits[name]
    for value in informed:
        mask[scene.informed] |= value
    return mask.astype(dtype)


def _cards(**cards: Any) -> fits.Header:
    return fits.Header(list(cards.items()))


def _distorted() -> dict[str, Any]:
    """Celestial coordinates as ACS has them: SIP, and tables in further extensions."""
    cards: dict[str, Any] = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"}
    cards |= {"CRVAL1": 10.0, "CRVAL2": 20.0, "CRPIX1": 105.0, "CRPIX2": 95.0}
    cards |= {"CD1_1": -1.4e-5, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 1.4e-5}
    cards |= {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-6, "B_0_2": 1e-6}
    for axis in (1, 2):
        cards |= {f"CPDIS{axis}": "LOOKUP", f"CPERR{axis}": 0.06, f"DP{axis}.EXTVER": float(axis)}
        cards |= {f"DP{axis}.NAXES": 2.0, f"DP{axis}.AXIS.1": 1.0, f"DP{axis}.AXIS.2": 2.0}
    cards |= {"D2IMDIS1": "LOOKUP", "D2IMERR1": 0.04, "D2IM1.EXTVER": 1.0, "D2IM1.NAXES": 2.0}
    return cards | {"D2IM1.AXIS.1": 1.0, "D2IM1.AXIS.2": 2.0}


def _image(data: Array, name: str, version: int = 1, **cards: Any) -> fits.ImageHDU:
    hdu = fits.ImageHDU(data, name=name, ver=version)
    for keyword, value in cards.items():
        hdu.header.set(keyword, value)
    return hdu


def hst_flc(scene: Scene, directory: Path) -> Written:
    """ACS, calibrated: SCI, ERR and DQ of two chips, cards of the telescope in the primary."""
    bits = {"SAT": 256, "CR": 4096, "BAD": 128, "NO_DATA": 2}
    dq = _bits(scene, bits, (16, 64), np.int16)
    hdus = [
        fits.PrimaryHDU(
            header=_cards(TELESCOP="HST", INSTRUME="ACS", DETECTOR="WFC", EXPTIME=500.0)
        )
    ]
    for chip in (1, 2):
        science = scene.science if chip == 2 else scene.science[::-1]
        cards = {"BUNIT": "ELECTRONS", "CCDCHIP": 3 - chip, **_distorted()}
        hdus += [
            _image((GAIN * science).astype(np.float32), "SCI", chip, **cards),
            _image((GAIN * scene.sigma).astype(np.float32), "ERR", chip, BUNIT="ELECTRONS"),
            _image(dq if chip == 2 else dq[::-1], "DQ", chip),
            _image(np.zeros((64, 64), np.float32), "D2IMARR", chip),
            _image(np.zeros((64, 32), np.float32), "WCSDVARR", chip),
        ]
    fits.HDUList(hdus).writeto(directory / "j_flc.fits")
    template = _plain(scene, directory, GAIN, "electron")
    return Written(f"{directory}/j_flc.fits[SCI,2]", template, {})


def hst_drz(scene: Scene, directory: Path) -> Written:
    """WFC3, drizzled: SCI, WHT and CTX; no mask, weight 0 where there is nothing."""
    seconds = 500.0
    bad = np.any([plane for plane in scene.planes.values()], axis=0)
    weight = np.where(bad, 0, 1 / (GAIN * scene.sigma / seconds) ** 2)
    context = np.where(bad, 0, 1).astype(np.int32)
    fits.HDUList(
        [
            fits.PrimaryHDU(header=_cards(TELESCOP="HST", INSTRUME="WFC3", EXPTIME=seconds)),
            _image((GAIN * scene.science / seconds).astype(np.float32), "SCI", BUNIT="ELECTRONS/S"),
            _image(weight.astype(np.float32), "WHT"),
            _image(context, "CTX"),
        ]
    ).writeto(directory / "i_drz.fits")
    template = _plain(scene, directory, GAIN / seconds, "electron/s")
    return Written(f"{directory}/i_drz.fits", template, {})


def jwst_cal(scene: Scene, directory: Path) -> Written:
    """NIRCam, calibrated: SCI, ERR, DQ (unsigned), AREA and the parts of the variance."""
    bits = {"SAT": 3, "CR": 17, "BAD": 1025, "NO_DATA": 513}
    dq = _bits(scene, bits, (2, 4, 4096), np.uint32)
    scale = 0.01
    sigma = (scale * scene.sigma).astype(np.float32)
    fits.HDUList(
        [
            fits.PrimaryHDU(header=_cards(TELESCOP="JWST", INSTRUME="NIRCAM", EFFEXPTM=500.0)),
            _image((scale * scene.science).astype(np.float32), "SCI", BUNIT="MJy/sr"),
            _image(sigma, "ERR", BUNIT="MJy/sr"),
            _image(dq, "DQ"),
            _image(np.ones(SHAPE, np.float32), "AREA"),
            _image(sigma**2 / 2, "VAR_POISSON"),
            _image(sigma**2 / 2, "VAR_RNOISE"),
            _image(np.zeros(SHAPE, np.float32), "VAR_FLAT"),
            fits.BinTableHDU.from_columns([], name="ASDF"),
        ]
    ).writeto(directory / "jw_cal.fits")
    return Written(f"{directory}/jw_cal.fits", _plain(scene, directory, scale, "MJy/sr"), {})


def jwst_i2d(scene: Scene, directory: Path) -> Written:
    """NIRCam, combined: SCI, ERR, CON (of three axes), WHT; NaN where there is nothing."""
    bad = np.any([plane for plane in scene.planes.values()], axis=0)
    scale = 0.01
    science, sigma = (np.where(bad, np.nan, scale * a) for a in (scene.science, scene.sigma))
    sigma = sigma.astype(np.float32)
    fits.HDUList(
        [
            fits.PrimaryHDU(header=_cards(TELESCOP="JWST", INSTRUME="NIRCAM", EFFEXPTM=500.0)),
            _image(science.astype(np.float32), "SCI", BUNIT="MJy/sr"),
            _image(sigma, "ERR", BUNIT="MJy/sr"),
            _image(np.where(bad, 0, 1).astype(np.int32)[None], "CON"),
            _image(np.where(bad, 0, 500).astype(np.float32), "WHT"),
            _image(sigma**2 / 2, "VAR_POISSON"),
            _image(sigma**2 / 2, "VAR_RNOISE"),
        ]
    ).writeto(directory / "jw_i2d.fits")
    return Written(f"{directory}/jw_i2d.fits", _plain(scene, directory, scale, "MJy/sr"), {})


def decam(scene: Scene, directory: Path) -> Written:
    """Community Pipeline: ooi, oow and ood, compressed, an extension for each detector."""
    codes = np.zeros(SHAPE, np.int32)
    for name, code in {"BAD": 1, "SAT": 3, "CR": 5, "NO_DATA": 2}.items():
        codes[scene.planes[name]] = code
    weight = np.where(codes > 0, 0, 1 / scene.sigma**2)
    science = scene.science.astype(np.float32)
    for name, kind, data in (
        ("ooi", "image", science),
        ("oow", "wtmap", weight.astype(np.float32)),
        ("ood", "dqmask", codes),
    ):
        primary = fits.PrimaryHDU(
            header=_cards(INSTRUME="DECam", PLVER="V5.2LS5", PRODTYPE=kind, PROCTYPE="InstCal")
        )
        lossless = {"compression_type": "GZIP_2", "quantize_level": 0.0}
        detectors = [
            fits.CompImageHDU(each, name=detector, **lossless)
            for detector, each in (("S29", data[::-1].copy()), ("S5", data))
        ]
        fits.HDUList([primary, *detectors]).writeto(directory / f"c4d_{name}.fits.fz")
    return Written(
        f"{directory}/c4d_ooi.fits.fz[S5]",
        _plain(scene, directory),
        {
            "variance": f"weight:{directory}/c4d_oow.fits.fz",
            "mask": f"{directory}/c4d_ood.fits.fz",
        },
    )


def ztf(scene: Scene, directory: Path) -> Written:
    """sciimg and mskimg, each a primary HDU; sources are marked in the mask, and are good."""
    bits = {"SAT": 256, "CR": 128, "BAD": 512, "NO_DATA": 1024}
    mask = _bits(scene, bits, (2, 2048), np.int16)
    cards = {"ORIGIN": "Zwicky Transient Facility", "INSTRUME": "ZTF/MOSAIC"}
    header = _cards(**cards, SATURATE=9000.0, GAIN=GAIN, READNOI=SIGMA * GAIN, EXPTIME=30.0)
    science = scene.science.astype(np.float32)
    fits.writeto(directory / "ztf_sciimg.fits", science, header)
    fits.writeto(directory / "ztf_mskimg.fits", mask, _cards(**cards))
    return Written(
        f"{directory}/ztf_sciimg.fits",
        _plain(scene, directory),
        {"mask": f"{directory}/ztf_mskimg.fits", "variance": "16"},
    )


def ps1(scene: Scene, directory: Path) -> Written:
    """Stack, its mask with the names of its bits, and its weight, which is a variance."""
    bits = {"SAT": 32, "CR": 256, "BAD": 1, "NO_DATA": 8}
    mask = _bits(scene, bits, (128, 16384), np.int16)
    names = {
        f"MSK{kind}{index:02}": value
        for index, pair in enumerate((("DETECTOR", 1), ("FLAT", 2), ("DARK", 4), ("BLANK", 8)))
        for kind, value in zip(("NAM", "VAL"), pair, strict=True)
    }
    science, variance = scene.science.astype(np.float32), (scene.sigma**2).astype(np.float32)
    lossless = {"compression_type": "GZIP_2", "quantize_level": 0.0}
    for name, data, cards in (
        ("unconv", science, {}),
        ("mask", mask, {**names, "MSKNUM": 4}),
        ("wt", variance, {}),
    ):
        hdu = fits.CompImageHDU(data, header=_cards(**cards), **lossless)
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(directory / f"rings.stk.{name}.fits")
    return Written(
        f"{directory}/rings.stk.unconv.fits",
        _plain(scene, directory),
        {
            "variance": f"variance:{directory}/rings.stk.wt.fits",
            "mask": f"{directory}/rings.stk.mask.fits",
        },
    )


def lco(scene: Scene, directory: Path) -> Written:
    """BANZAI e91: SCI, CAT, BPM and ERR, compressed; no bit for missing data but BAD."""
    bits = {"SAT": 2, "CR": 8, "BAD": 1, "NO_DATA": 1}
    lossless = {"compression_type": "GZIP_2", "quantize_level": 0.0}
    cards = _cards(ORIGIN="LCOGT", INSTRUME="fa15", GAIN=1.0, RDNOISE=6.0, SATURATE=14000.0)
    cards["BUNIT"] = "electron"
    columns = [fits.Column("x", "E", array=[10.0]), fits.Column("y", "E", array=[20.0])]
    electrons, sigma = ((GAIN * a).astype(np.float32) for a in (scene.science, scene.sigma))
    fits.HDUList(
        [
            fits.PrimaryHDU(),
            fits.CompImageHDU(electrons, header=cards, name="SCI", **lossless),
            fits.BinTableHDU.from_columns(columns, name="CAT"),
            fits.CompImageHDU(_bits(scene, bits, (), np.uint8), name="BPM", **lossless),
            fits.CompImageHDU(sigma, name="ERR", **lossless),
        ]
    ).writeto(directory / "fa15-e91.fits.fz")
    return Written(f"{directory}/fa15-e91.fits.fz", _plain(scene, directory, GAIN, "electron"), {})


LAYOUTS: dict[str, Callable[[Scene, Path], Written]] = {
    "hst-flc": hst_flc,
    "hst-drz": hst_drz,
    "jwst-cal": jwst_cal,
    "jwst-i2d": jwst_i2d,
    "decam": decam,
    "ztf": ztf,
    "ps1": ps1,
    "lco": lco,
}
