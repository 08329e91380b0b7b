"""Butler repositories: make one, and put pairs into it."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import astropy.time
import lsst.sphgeom
import numpy as np
from lsst.daf.butler import (
    Butler,
    ButlerConfig,
    Config,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    FileDataset,
    Timespan,
)
from lsst.daf.butler.registry import ConflictingDefinitionError

from ..errors import ArgumentError, FileFormatError, OutputExistsError, WhitediffError, one_line
from ..exposures.sky import celestial_wcs
from ..formats import read_psf
from ..formats.files import opened, split_extension
from ..options import declarations
from ..reading import ReadingOptions, reading_options
from ..runs.inputs import read_input
from ..surveys.manifest import located
from .formatters import ExposureFormatter
from .instrument import GenericInstrument, register_instrument
from .storage import STORAGE_CLASSES, configuration

__all__ = [
    "DIMENSIONS",
    "TRANSFERS",
    "Pair",
    "check_repository",
    "ingest",
    "init_repository",
    "make_pairs",
]

DIMENSIONS = ("instrument", "visit", "detector")
TRANSFERS = ("direct", "copy", "symlink", "hardlink", "convert")

_HALF_ARCMIN = 0.5 / 60
_NO_DATE = 19700101
_READING = declarations(ReadingOptions)
_FURTHER = (*_READING, "psf")
_NUMBERS = {name for name, each in _READING.items() if each.is_number} | {"variance"}
_FILES = (*(name for name, each in _READING.items() if each.is_file), "psf")
_COLUMNS = (
    *("science", "template", "visit", "detector", "band", "physical_filter"),
    *("mjd", "exposure_time"),
    *(f"{name}_{kind}" for name in ("science", "template") for kind in _FURTHER),
)
_MOST_LIKE = 0.85
_MOST_VISIT, _MOST_DETECTOR = 1 << 62, 1 << 20
_DATES = (-100_000.0, 200_000.0)
"""Accepted modified Julian dates, years 1585 to 2406."""


def init_repository(
    path: str, *, database: str | None = None, namespace: str | None = None, extend: bool = False
) -> None:
    """Make a Butler repository that stores whitediff's objects.

    Parameters
    ----------
    path
        Directory; made if missing.
    database
        Address of the registry's database, such as ``postgresql://user@host/name``; None for
        SQLite in the directory.
    namespace
        Schema in that database.
    extend
        Whether to add only the storage classes to an existing repository.

    Raises
    ------
    OutputExistsError
        If there is a repository already, and ``extend`` is False.
    FileFormatError
        If there is no repository to extend.
    WhitediffError
        If the repository cannot be made, for instance since its database does not answer.
    """
    place = Path(path) / "butler.yaml"
    if extend:
        if not place.is_file():
            raise FileFormatError.of(path, "is no Butler repository (no butler.yaml).")
        config = Config(str(place))
        config.update(configuration())
        config.dumpToUri(str(place), overwrite=True)
        return
    if place.exists():
        raise OutputExistsError.of(
            path,
            "is a Butler repository already; name another directory, or teach it"
            " whitediff's storage classes with --extend.",
        )
    config = configuration()
    if database is not None:
        # Without +psycopg2 SQLAlchemy might choose a driver that Butler does not support.
        config["registry", "db"] = re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", database)
    if namespace is not None:
        config["registry", "namespace"] = namespace
    try:
        # Butler stores the full configuration, with the present defaults.
        Butler.makeRepo(path, config=config)
        with Butler.from_config(path, writeable=True) as butler:
            register_instrument(butler.registry, GenericInstrument.getName())
    except Exception as error:
        where = path if database is None else _without_password(database)
        raise WhitediffError(
            f"{where}: no repository can be made there ({one_line(error)[:300]})."
        ) from error


def _without_password(address: str) -> str:
    head, at, tail = address.rpartition("@")
    scheme, _, user = head.partition("://")
    return f"{scheme}://{user.partition(':')[0]}@{tail}" if at else address


def check_repository(path: str) -> None:
    """Refuse a repository that does not know whitediff's storage classes.

    Parameters
    ----------
    path
        Repository.

    Raises
    ------
    FileFormatError
        If there is no repository, or it does not know the storage classes.
    """
    if "://" not in path and os.sep in path and not Path(path).exists():
        raise FileFormatError.of(
            path, f"no such repository; make one with 'whitediff butler init {path}'."
        )
    try:
        config = ButlerConfig(path)
    except Exception as error:
        raise FileFormatError.of(
            path,
            f"is no Butler repository ({one_line(error)[:200]}); make one with 'whitediff"
            f" butler init {path}'.",
        ) from error
    for name in STORAGE_CLASSES:
        for keys in (("storageClasses", name), ("datastore", "formatters", name)):
            if keys not in config:
                raise FileFormatError.of(
                    path,
                    f"its Butler does not know the storage class {name}; teach it with"
                    f" 'whitediff butler init {path} --extend'.",
                )


@dataclasses.dataclass(frozen=True)
class Pair:
    """A science exposure and its template, with their Butler dimensions.

    Attributes
    ----------
    science, template
        Absolute names of files, possibly with an extension in brackets.
    visit
        Number of the visit; None to have one assigned.
    detector
        Number of the detector.
    physical_filter, band
        Names of filter and band.
    begin, exposure_time
        Modified Julian date (TAI) and seconds; None if unknown.
    further
        Values that the files lack: ``science_gain``, ``template_psf`` and so on.
    """

    science: str
    template: str
    visit: int | None = None
    detector: int = 0
    physical_filter: str = "unknown"
    band: str | None = None
    begin: float | None = None
    exposure_time: float | None = None
    further: Mapping[str, str] = dataclasses.field(default_factory=dict)


def make_pairs(rows: Sequence[Mapping[str, str]], path: Path) -> list[Pair]:
    """Make pairs from the rows of a manifest.

    Parameters
    ----------
    rows
        Result of `whitediff.surveys.manifest.read_rows`.
    path
        The manifest: relative paths in it start from its directory.

    Returns
    -------
    pairs
        One per row.

    Raises
    ------
    ArgumentError
        If a column or file is missing or misspelt, a number cannot be parsed or is out of range,
        two rows have the same visit and detector, or rows contradict each other on a filter.
    """
    base = path.absolute().parent
    for name in {name for row in rows for name in row}:
        plain = name.replace("-", "_")
        like = difflib.get_close_matches(plain, _COLUMNS, n=1, cutoff=_MOST_LIKE)
        if like and plain not in _COLUMNS:
            raise ArgumentError.of(
                path, f"the column {name!r} is unknown; is {like[0]!r} meant? Rename it."
            )
    pairs = []
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        cells = {name.replace("-", "_"): text for name, text in row.items() if text}
        for name in ("science", "template"):
            if name not in row:
                raise ArgumentError.of(
                    path,
                    f"has no column {name} (it has {', '.join(row)}); a manifest needs"
                    " science and template.",
                )
            if name not in cells:
                raise ArgumentError(f"{where}: has no {name}; fill in the file.")
        files = {name: located(cells[name], base) for name in ("science", "template")}
        for file in files.values():
            if "://" not in file and not split_extension(file)[0].is_file():
                raise ArgumentError(f"{where}: {file}: no such file.")
        pairs.append(
            Pair(
                **files,
                visit=_whole(where, "visit", cells.get("visit"), _MOST_VISIT),
                detector=_whole(where, "detector", cells.get("detector"), _MOST_DETECTOR) or 0,
                physical_filter=cells.get("physical_filter", cells.get("band", "unknown")),
                band=cells.get("band"),
                begin=_real(where, "mjd", cells.get("mjd"), *_DATES),
                exposure_time=_real(where, "exposure_time", cells.get("exposure_time"), 0),
                further=_further(where, cells, base),
            )
        )
    first: dict[tuple[int, int], int] = {}
    for number, pair in enumerate(pairs, 1):
        if pair.visit is not None:
            other = first.setdefault((pair.visit, pair.detector), number)
            if other != number:
                raise ArgumentError.of(
                    path,
                    f"rows {other} and {number} are both visit {pair.visit}, detector"
                    f" {pair.detector}; give each a number of its own.",
                )
    _check_filters(path, pairs)
    return pairs


def _further(where: str, cells: Mapping[str, str], base: Path) -> dict[str, str]:
    """Columns of a row that say how its images are read, and their PSFs."""
    further = {}
    for name, kind in itertools.product(("science", "template"), _FURTHER):
        column = f"{name}_{kind}"
        text = cells.get(column)
        if text is None:
            continue
        if kind in _FILES and not _is_number(text):
            further[column] = located(text, base)
            continue
        further[column] = text
        if kind not in _NUMBERS:
            continue
        number = _real(where, column, text, 0)
        if number == 0 and kind != "read_noise":
            raise ArgumentError(f"{where}: {column} must be above 0; got {text!r}.")
    return further


def _check_filters(path: Path, pairs: Sequence[Pair]) -> None:
    """Refuse visits with several filters, and filters with several bands."""
    filters: dict[int, tuple[str, int]] = {}
    bands: dict[str, tuple[str | None, int]] = {}
    for number, pair in enumerate(pairs, 1):
        band, other = bands.setdefault(pair.physical_filter, (pair.band, number))
        if band != pair.band:
            raise ArgumentError.of(
                path,
                f"rows {other} and {number} have the physical_filter"
                f" {pair.physical_filter!r} and the bands {band!r} and {pair.band!r}; a filter has"
                " one band.",
            )
        if pair.visit is None:
            continue
        name, other = filters.setdefault(pair.visit, (pair.physical_filter, number))
        if name != pair.physical_filter:
            raise ArgumentError.of(
                path,
                f"rows {other} and {number} are of visit {pair.visit}, but of the filters"
                f" {name!r} and {pair.physical_filter!r}; a visit has one filter.",
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _whole(where: str, name: str, text: str | None, most: int) -> int | None:
    if text is None:
        return None
    if not text.isdecimal():
        raise ArgumentError(f"{where}: {name} must be a number from 0 on; got {text!r}.")
    if int(text) > most:
        raise ArgumentError(f"{where}: {name} must be at most {most}; got {text!r}.")
    return int(text)


def _real(
    where: str, name: str, text: str | None, least: float, most: float = math.inf
) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise ArgumentError(f"{where}: {name} must be a number; got {text!r}.") from error
    if not (least <= value <= most and math.isfinite(value)):
        limits = f"{least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
        raise ArgumentError(f"{where}: {name} must be {limits}; got {text!r}.")
    return value


def ingest(
    path: str,
    pairs: Sequence[Pair],
    *,
    run: str = "pairs",
    instrument: str = GenericInstrument.getName(),
    transfer: str = "direct",
) -> int:
    """Put pairs into a repository.

    Parameters
    ----------
    path
        Repository.
    pairs
        Pairs to put in.
    run
        Collection for the datasets ``science`` and ``template``.
    instrument
        Name of the instrument; registered if it is not yet.
    transfer
        ``direct``: files stay where they are; ``copy``, ``symlink``, ``hardlink``: copied or
        linked into the repository; ``convert``: read as the manifest says, with its variances,
        and written in whitediff's format.

    Returns
    -------
    number
        Number of pairs that were put in.

    Raises
    ------
    ArgumentError
        If a transfer cannot keep values of the manifest, or a dataset exists already.
    FileFormatError
        If the repository does not know whitediff's storage classes, or a file cannot be read.
    """
    check_repository(path)
    if transfer not in TRANSFERS:
        raise ArgumentError(f"A transfer is one of {', '.join(TRANSFERS)}; got {transfer!r}.")
    for pair in pairs:
        _check_transfer(pair, transfer)
    with Butler.from_config(path, writeable=True, run=run) as butler:
        pairs = _numbered(butler, pairs, instrument)
        found = [_sky_and_time(pair) for pair in pairs]
        for template in {pair.template for pair in pairs if "://" not in pair.template}:
            # Open it now: Butler would record the size of a damaged file as the right one.
            with opened(split_extension(template)[0]):
                pass
        register_instrument(butler.registry, instrument)
        _register(butler, pairs, found, instrument)
        types = {
            name: DatasetType(name, DIMENSIONS, "WhitediffExposure", universe=butler.dimensions)
            for name in ("science", "template")
        }
        for dataset_type in types.values():
            butler.registry.registerDatasetType(dataset_type)
        try:
            if transfer == "convert":
                # All or none: datasets put in before a failure would block the next attempt.
                with butler.transaction():
                    _put(butler, pairs, instrument)
            else:
                datasets = _datasets(butler, pairs, types, run, instrument)
                butler.ingest(*datasets, transfer=transfer)
        except (ConflictingDefinitionError, FileExistsError) as error:
            raise ArgumentError.of(
                path,
                f"the collection {run!r} has some of these visits and detectors already;"
                " number them differently or name another collection (--collection).",
            ) from error
    return len(pairs)


def _check_transfer(pair: Pair, transfer: str) -> None:
    if transfer == "convert":
        return
    for file in (pair.science, pair.template):
        if split_extension(file)[1] is not None:
            raise ArgumentError.of(
                file, "Butler takes files, not extensions; use --transfer convert."
            )
    if pair.further:
        raise ArgumentError(
            f"{pair.science}: {', '.join(pair.further)} of the manifest cannot be kept with a file"
            " that stays as it is; use --transfer convert."
        )


def _numbered(butler: Butler, pairs: Sequence[Pair], instrument: str) -> list[Pair]:
    """Pairs with visit numbers: new numbers follow the largest known one."""
    records = butler.registry.queryDimensionRecords("visit", instrument=instrument, check=False)
    try:
        known = [record.id for record in records]
    except Exception:
        known = []  # no such instrument yet
    largest = max([*known, *(p.visit for p in pairs if p.visit is not None), 0])
    fresh = itertools.count(largest + 1)
    return [dataclasses.replace(p, visit=next(fresh)) if p.visit is None else p for p in pairs]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Sky corners (degrees), begin (MJD, TAI; None if unknown) and exposure time of an exposure."""

    corners: Sequence[tuple[float, float]]
    begin: float | None
    seconds: float


def _sky_and_time(pair: Pair) -> _Place:
    file, extension = split_extension(pair.science)
    with opened(file) as hdus:
        primary = hdus[0].header
        try:
            hdu = hdus[extension] if extension is not None else _first_image(hdus)
        except (KeyError, IndexError) as error:
            raise FileFormatError.of(file, f"has no extension {extension!r}.") from error
        header = hdu.header
        nx, ny = header.get("ZNAXIS1", header["NAXIS1"]), header.get("ZNAXIS2", header["NAXIS2"])
    wcs = celestial_wcs(header) or celestial_wcs(primary)
    if wcs is None:
        # Meaningless corners, since Butler requires a region for every visit.
        half = _HALF_ARCMIN
        corners: Sequence[tuple[float, float]] = (
            (0, -half),
            (half, -half),
            (half, half),
            (0, half),
        )
    else:
        x, y = np.array([[0, nx - 1, nx - 1, 0], [0, 0, ny - 1, ny - 1]]) + 0.0
        sky = wcs.pixel_to_world(x, y).icrs
        corners = tuple(zip(sky.ra.deg.tolist(), sky.dec.deg.tolist(), strict=True))
    begin = pair.begin
    for cards in (header, primary):
        begin = _begin(cards) if begin is None else begin
    seconds = pair.exposure_time
    if seconds is None:
        seconds = next((float(c["EXPTIME"]) for c in (header, primary) if _is_time(c)), 0.0)
    return _Place(corners=corners, begin=begin, seconds=seconds)


def _first_image(hdus: Any) -> Any:
    for hdu in hdus:
        if hdu.is_image and hdu.header.get("ZNAXIS", hdu.header.get("NAXIS", 0)) >= 2:
            return hdu
    raise IndexError("no image")


def _is_time(header: Any) -> bool:
    value = header.get("EXPTIME")
    return isinstance(value, float | int) and value >= 0


def _begin(cards: astropy.io.fits.Header) -> float | None:
    """Begin by a header, MJD (TAI): MJD-OBS, else DATE-OBS, in the time scale of TIMESYS."""
    scale = str(cards.get("TIMESYS", "UTC")).strip().lower()
    if scale not in astropy.time.Time.SCALES:
        scale = "utc"
    for keyword, kind in (("MJD-OBS", "mjd"), ("DATE-OBS", None)):
        value = cards.get(keyword)
        if isinstance(value, bool) or not isinstance(value, float | int | str):
            continue
        try:
            if kind is not None:
                value = float(value)
            return float(astropy.time.Time(value, format=kind, scale=scale).tai.mjd)
        except ValueError:
            continue
    return None


def _polygon(corners: Iterable[tuple[float, float]]) -> lsst.sphgeom.ConvexPolygon:
    return lsst.sphgeom.ConvexPolygon(
        [lsst.sphgeom.UnitVector3d(lsst.sphgeom.LonLat.fromDegrees(ra, dec)) for ra, dec in corners]
    )


def _day(place: _Place) -> int:
    """Date YYYYMMDD of the night, which begins at noon (TAI)."""
    if place.begin is None:
        return _NO_DATE
    noon = astropy.time.Time(place.begin - 0.5, format="mjd", scale="tai")
    return int(noon.strftime("%Y%m%d"))


def _register(
    butler: Butler, pairs: Sequence[Pair], places: Sequence[_Place], instrument: str
) -> None:
    """Register dimension records, in the order of their dependence."""
    registry = butler.registry
    visits: dict[int, list[tuple[Pair, _Place]]] = defaultdict(list)
    for pair, place in zip(pairs, places, strict=True):
        assert pair.visit is not None
        visits[pair.visit].append((pair, place))
    filters = {pair.physical_filter: pair.band or pair.physical_filter for pair in pairs}
    for name, band in filters.items():
        registry.syncDimensionData(
            "physical_filter", {"instrument": instrument, "name": name, "band": band}
        )
    for detector in sorted({pair.detector for pair in pairs}):
        registry.syncDimensionData(
            "detector",
            {"instrument": instrument, "id": detector, "full_name": f"D{detector:03d}"},
        )
    for day in sorted({_day(members[0][1]) for members in visits.values()}):
        registry.syncDimensionData("day_obs", {"instrument": instrument, "id": day})
    for visit, members in sorted(visits.items()):
        pair, place = members[0]
        corners = [
            lsst.sphgeom.UnitVector3d(lsst.sphgeom.LonLat.fromDegrees(*corner))
            for _, each in members
            for corner in each.corners
        ]
        # A further detector widens the region of a visit that is registered already.
        for known in registry.queryDimensionRecords("visit", instrument=instrument, visit=visit):
            corners += known.region.getVertices() if known.region is not None else []
        record: dict[str, Any] = {
            "instrument": instrument,
            "id": visit,
            "name": f"V{visit:09d}",
            "physical_filter": pair.physical_filter,
            "day_obs": _day(place),
            "exposure_time": place.seconds,
            "region": lsst.sphgeom.ConvexPolygon(corners),
        }
        if place.begin is not None:
            begin = astropy.time.Time(place.begin, format="mjd", scale="tai")
            seconds = astropy.time.TimeDelta(max(place.seconds, 1.0), format="sec")
            record["timespan"] = Timespan(begin, begin + seconds)
        registry.syncDimensionData("visit", record, update=True)
        for pair, place in members:
            registry.syncDimensionData(
                "visit_detector_region",
                {
                    "instrument": instrument,
                    "visit": visit,
                    "detector": pair.detector,
                    "region": _polygon(place.corners),
                },
                update=True,
            )


def _data_id(pair: Pair, instrument: str) -> dict[str, Any]:
    return {"instrument": instrument, "visit": pair.visit, "detector": pair.detector}


def _datasets(
    butler: Butler,
    pairs: Sequence[Pair],
    types: Mapping[str, DatasetType],
    run: str,
    instrument: str,
) -> list[FileDataset]:
    """Files, each with all of its datasets: visits may share a template."""
    refs: dict[tuple[str, str], list[DatasetRef]] = defaultdict(list)
    for pair in pairs:
        data_id = DataCoordinate.standardize(_data_id(pair, instrument), universe=butler.dimensions)
        data_id = butler.registry.expandDataId(data_id)
        for name, file in (("science", pair.science), ("template", pair.template)):
            refs[name, file].append(DatasetRef(types[name], data_id, run))
    return [
        FileDataset(path=file, refs=several, formatter=ExposureFormatter)
        for (_, file), several in refs.items()
    ]


def _put(butler: Butler, pairs: Sequence[Pair], instrument: str) -> None:
    for pair in pairs:
        for name, file in (("science", pair.science), ("template", pair.template)):
            psf = pair.further.get(f"{name}_psf")
            values = {
                f"{name}_{option}": each.read(pair.further[f"{name}_{option}"])
                for option, each in _READING.items()
                if f"{name}_{option}" in pair.further
            }
            exposure = read_input(file, reading_options(values, **{name: file})[name])
            if psf is not None:
                exposure.psf = read_psf(psf, bounds=exposure.bbox)
            butler.put(exposure, name, _data_id(pair, instrument))
