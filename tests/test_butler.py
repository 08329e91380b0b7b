"""Rubin's middleware, made from nothing.

Claims: a Butler repository that whitediff makes stores exposures, solutions and catalogues, gives
back what was put in, and serves components and cut-outs; pairs are ingested in place, copied or
converted, in any format that the command line reads.  The pipeline tasks say correctly what they
read and write.  Pipelines give bit for bit what the commands give for the same options; a
difference is made again from its solution.  A quantum that fails leaves the others alone, and a
rerun does only that one; what was done, with which configuration and versions, can be asked for.
The same configuration runs through BPS, and the same repository on PostgreSQL.  What is wrong with
a repository or a manifest is said in one sentence.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable

from scenes import command
from surveys import copy_pair, make_pairs, write_manifest
from whitediff.decorrelation.exposures import decorrelate
from whitediff.errors import ArgumentError, FileFormatError, OutputExistsError, WhitediffError
from whitediff.exposures.boxes import Box
from whitediff.exposures.foreign import adapted
from whitediff.formats import read_exposure
from whitediff.formats.archive.convert import lsst_box, lsst_kernel, masked_image
from whitediff.subtraction.difference import subtract

pytest.importorskip("lsst.ctrl.mpexec")

import lsst.images
from lsst.daf.butler import Butler
from lsst.images import MaskedImage
from lsst.pipe.base import testUtils

from whitediff.formats.catalogs import read_catalog
from whitediff.rubin.repository import check_repository, ingest, init_repository
from whitediff.rubin.repository import make_pairs as pairs_of
from whitediff.rubin.running import bps_file, pipeline_file, pipelines, run_pipeline
from whitediff.surveys.manifest import read_rows
from whitediff.tasks import (
    AlardLuptonPreconvolveSubtractTask,
    AlardLuptonSubtractTask,
    DecorrelateDifferenceTask,
    DetectAndMeasureScoreTask,
    DetectAndMeasureTask,
    RecreateDifferenceTask,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BOX = Box.from_shape((30, 40), start=(60, 70))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("pairs"), 2, first_seed=20)


def rows_of(pairs, visits=(1,), **columns):
    """A manifest's rows: the pairs are the detectors of each visit."""
    return [
        {
            "science": pair / "science.fits",
            "template": pair / "template.fits",
            "visit": visit,
            "detector": detector,
            "band": "r",
        }
        | columns
        for visit in visits
        for detector, pair in enumerate(pairs)
    ]


def data_id(visit=1, detector=0):
    return {"instrument": "Generic", "visit": visit, "detector": detector}


@pytest.fixture(scope="module")
def repo(pairs, tmp_path_factory):
    """A repository with one visit of two detectors, by the command line."""
    directory = tmp_path_factory.mktemp("butler")
    path = directory / "repo"
    assert command("butler", "init", path, "-q") == (0, "", "")
    manifest = write_manifest(directory / "m.csv", rows_of(pairs))
    code, _, messages = command("butler", "ingest", path, manifest)
    assert code == 0, messages
    assert "2 pairs in the collection pairs" in messages
    return path


def subtracted(pair, output, *options, score=False):
    """What the command line makes of a pair."""
    kind = "--score-output" if score else "--output"
    code, _, messages = command(
        *("subtract", pair / "science.fits", pair / "template.fits", kind, output, "-q"), *options
    )
    assert code == 0, messages
    return read_exposure(output)


def assert_same(first, second):
    """Pixels, planes of the mask, PSF and kernel are the same to the last bit."""
    np.testing.assert_array_equal(first.data, second.data)
    np.testing.assert_array_equal(first.variance, second.variance)
    assert set(first.mask.names) == set(second.mask.names)
    for name in first.mask.names:
        np.testing.assert_array_equal(first.mask.get(name), second.mask.get(name), err_msg=name)
    place = {"x": first.bbox.x.center, "y": first.bbox.y.center}
    for stamp in (first.psf, second.psf), (first.kernel, second.kernel):
        one, other = (each.at(**place) for each in stamp)
        np.testing.assert_array_equal(one, other)
    one, other = (each.background.coefficients for each in (first, second))
    np.testing.assert_array_equal(one, other)


# What is stored


def test_pairs_stay_in_place_and_are_served(repo, pairs):
    with Butler.from_config(str(repo), collections="pairs") as butler:
        uri = butler.getURI("science", data_id())
        assert uri.ospath == str(pairs[0] / "science.fits")
        exposure = butler.get("science", data_id())
        direct = read_exposure(pairs[0] / "science.fits")
        np.testing.assert_array_equal(exposure.data, direct.data)
        # Where it lies on the sky, as its WCS says.
        (record,) = butler.registry.queryDimensionRecords(
            "visit_detector_region", instrument="Generic", visit=1, detector=1
        )
        ny, nx = direct.shape
        for x, y, inside in ((nx / 2, ny / 2, True), (2, 2, True), (nx + 3, ny / 2, False)):
            sky = direct.wcs.pixel_to_world(x, y)
            assert record.region.contains(sky.ra.rad, sky.dec.rad) == inside


def test_components_and_cutouts_are_those_of_the_whole(repo, pairs):
    whole = read_exposure(pairs[0] / "science.fits")
    with Butler.from_config(str(repo), collections="pairs") as butler:
        part = butler.get("science", data_id(), parameters={"bbox": lsst_box(BOX)})
        image = butler.get("science.image", data_id(), parameters={"bbox": lsst_box(BOX)})
        psf = butler.get("science.psf", data_id())
        mask = butler.get("science.mask", data_id())
        masked = butler.get("science.masked_image", data_id())
        assert butler.get("science.bbox", data_id()) == lsst_box(whole.bbox)
        assert butler.get("science.kernel", data_id()) is None
        outside = lsst.images.Box.from_shape((9, 9), start=(-5, 0))
        with pytest.raises(Exception, match="does not contain"):
            butler.get("science", data_id(), parameters={"bbox": outside})
    expected = whole.cutout(BOX)
    assert part.bbox == BOX
    np.testing.assert_array_equal(part.data, expected.data)
    np.testing.assert_array_equal(part.mask.bits, expected.mask.bits)
    np.testing.assert_array_equal(part.variance, expected.variance)
    np.testing.assert_array_equal(image.array, expected.data)
    for name in whole.mask.names:
        np.testing.assert_array_equal(mask.get(name), whole.mask.get(name))
    # The middle of the part is where it was on the sky.
    ny, nx = BOX.shape
    sky = part.wcs.pixel_to_world(nx / 2, ny / 2)
    there = whole.wcs.pixel_to_world(BOX.x.start + nx / 2, BOX.y.start + ny / 2)
    assert sky.separation(there).arcsec < 1e-6
    stamp = whole.psf.at(x=80, y=75)
    np.testing.assert_array_equal(psf.compute_kernel_image(x=80, y=75).array, stamp)
    assert isinstance(masked, MaskedImage)


def test_plain_files_of_anybody_are_ingested_copied_and_converted(pairs, tmp_path):
    data, header = fits.getdata(pairs[0] / "science.fits", "IMAGE", header=True)
    template = fits.getdata(pairs[0] / "template.fits", "IMAGE")
    header = fits.Header(
        [c for c in header.cards if c.keyword.startswith(("CR", "CD", "CT", "PC", "CU"))]
    )
    header["MJD-OBS"], header["EXPTIME"] = 60000.9, 30.0
    for name, pixels in (("science", data), ("template", template)):
        hdus = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(pixels, header, name="SCI")])
        hdus.writeto(tmp_path / f"{name}.fits")
    row = {"science": "science.fits", "template": "template.fits"}
    init_repository(str(tmp_path / "repo"))
    places = {}
    for number, transfer in enumerate(("direct", "copy", "convert"), 1):
        noise = {"science_variance": 850.0} if transfer == "convert" else {}
        path = write_manifest(tmp_path / f"{transfer}.csv", [row | noise])
        assert ingest(str(tmp_path / "repo"), pairs_of(read_rows(path), path), transfer=transfer)
        with Butler.from_config(str(tmp_path / "repo"), collections="pairs") as butler:
            # Visits that have no number are numbered.
            places[transfer] = butler.getURI("science", data_id(visit=number)).ospath
            exposure = butler.get("science", data_id(visit=number))
            np.testing.assert_array_equal(exposure.data, data)
            if noise:
                np.testing.assert_array_equal(exposure.variance, 850.0)
    with Butler.from_config(str(tmp_path / "repo")) as butler:
        (record,) = butler.registry.queryDimensionRecords("visit", instrument="Generic", visit=1)
    # Headers that name no time scale mean UTC, 37 s or 4e-4 days from TAI.
    assert record.timespan.begin.utc.mjd == pytest.approx(60000.9, abs=1e-6)
    assert record.exposure_time == 30
    # The night of 25 February 2023 began at noon; 0.9 is before the next noon.
    assert record.day_obs == 20230225
    assert places["direct"] == str(tmp_path / "science.fits")
    assert Path(places["copy"]).is_relative_to(tmp_path / "repo")
    assert Path(places["copy"]).read_bytes() == (tmp_path / "science.fits").read_bytes()
    assert fits.getdata(places["convert"], "IMAGE").shape == data.shape


def test_visits_share_a_template(pairs, tmp_path):
    rows = rows_of(pairs[:1], visits=(5, 6))
    path = write_manifest(tmp_path / "m.csv", rows)
    init_repository(str(tmp_path / "repo"))
    assert ingest(str(tmp_path / "repo"), pairs_of(read_rows(path), path)) == 2
    with Butler.from_config(str(tmp_path / "repo"), collections="pairs") as butler:
        uris = [butler.getURI("template", data_id(visit=visit)) for visit in (5, 6)]
    assert uris[0] == uris[1]


def test_a_catalogue_keeps_units_and_descriptions(repo):
    table = QTable({"x": [1.5, 2.5] * u.pix, "flux": [3.0, 4.0], "name": ["a", "b"]})
    table["flux"].info.description = "counts"
    table.meta["threshold"] = 5.0
    with Butler.from_config(str(repo), writeable=True, run="tables") as butler:
        from lsst.daf.butler import DatasetType

        butler.registry.registerDatasetType(
            DatasetType(
                "catalog_test",
                ("instrument", "visit", "detector"),
                "WhitediffCatalog",
                universe=butler.dimensions,
            )
        )
        butler.put(table, "catalog_test", data_id())
        read = butler.get("catalog_test", data_id())
    assert isinstance(read, QTable)
    assert read["x"].unit == u.pix
    assert list(read["name"]) == ["a", "b"]
    assert read["flux"].info.description == "counts"
    assert read.meta["threshold"] == 5.0


def assert_same_catalogs(first, second):
    assert first.colnames == second.colnames
    assert len(first) == len(second)
    for name in first.colnames:
        assert first[name].unit == second[name].unit
        assert first[name].info.description == second[name].info.description
        one, other = (np.asarray(getattr(t[name], "value", t[name])) for t in (first, second))
        np.testing.assert_array_equal(one, other, err_msg=name)


def detected(difference, output):
    """What the command line finds on a difference."""
    code, _, messages = command("detect", difference, "--output", output, "-q")
    assert code == 0, messages
    return read_catalog(output)


# Pipeline tasks


@pytest.mark.parametrize(
    "task",
    [
        AlardLuptonSubtractTask,
        AlardLuptonPreconvolveSubtractTask,
        DecorrelateDifferenceTask,
        DetectAndMeasureScoreTask,
        DetectAndMeasureTask,
        RecreateDifferenceTask,
    ],
)
def test_connections_are_sound(task):
    testUtils.lintConnections(task.ConfigClass.ConnectionsClass)
    assert task.ConfigClass().toDict() == task.ConfigClass().toDict()


def run_quantum(butler, task, **refs):
    """Run a quantum of a task on a data ID, with outputs of its own types."""
    from lsst.daf.butler import DatasetType

    connections = task.config.connections.ConnectionsClass(config=task.config)
    for name in (*connections.inputs, *connections.outputs):
        connection = getattr(connections, name)
        butler.registry.registerDatasetType(
            DatasetType(
                connection.name,
                connection.dimensions,
                connection.storageClass,
                universe=butler.dimensions,
            )
        )
    expanded = butler.registry.expandDataId(data_id())
    quantum = testUtils.makeQuantum(
        task,
        butler,
        expanded,
        dict.fromkeys((*connections.inputs, *connections.outputs), expanded),
    )
    testUtils.runTestQuantum(task, butler, quantum, mockRun=False)


def test_tasks_read_run_and_write(repo, pairs, tmp_path):
    # Test quanta take their inputs from the run that they write to.
    manifest = write_manifest(tmp_path / "m.csv", rows_of(pairs))
    ingest(str(repo), pairs_of(read_rows(manifest), manifest), run="quanta")
    with Butler.from_config(
        str(repo), writeable=True, run="quanta", collections=["quanta", "pairs"]
    ) as butler:
        config = AlardLuptonSubtractTask.ConfigClass()
        config.doWriteMatchedTemplate = config.doWriteKernelSources = True
        config.makeKernel.kernel.active.spatialKernelOrder = 0
        config.excludeMaskPlanes = []
        config.maxKernelSources = 500
        config.doAttributeTemplateMask = False
        run_quantum(butler, AlardLuptonSubtractTask(config=config))
        difference = butler.get("difference", data_id())
        solution = butler.get("difference_solution", data_id())
        matched = butler.get("matched_template", data_id())
        stars = butler.get("kernel_sources", data_id())
        path = butler.getURI("difference", data_id()).ospath
        kernel = butler.get("difference_solution.kernel", data_id())
        science = butler.get("science", data_id())
        run_quantum(butler, RecreateDifferenceTask())
        recreated = butler.get("difference_recreated", data_id())
        config = DetectAndMeasureTask.ConfigClass(
            doUseKernelSources=True, doWriteMeasuredExposure=True, doForcedMeasurement=False
        )
        run_quantum(butler, DetectAndMeasureTask(config=config))
        measured = butler.get("difference_measured", data_id())
        catalog = butler.get("difference_sources", data_id())
        solution_path = butler.getURI("difference_solution", data_id()).ospath
    options = ("--convolved", "template", "--kernel-order", 0, "--noise", "white", "--constant")
    expected = subtracted(pairs[0], tmp_path / "d.fits", *options)
    assert_same(difference, expected)
    assert_same(recreated, expected)
    assert len(catalog) >= 1
    assert measured.mask.get("DETECTED").any()
    assert_same_catalogs(catalog, detected(tmp_path / "d.fits", tmp_path / "d.parquet"))
    assert len(stars) >= 3
    np.testing.assert_array_equal(
        adapted(kernel).at(x=90, y=90),
        solution.kernel.at(x=90, y=90),
    )
    # Matched, the template has the science image's stars: what is left scatters as noise does, of
    # which 90 % lie within 1.645 sigma.
    sources = difference.mask.get("SOURCE")
    residual = science.data - matched.data
    # Few pixels belong to transients.
    scatter = [np.nanpercentile(np.abs(a[sources]), 90) for a in (residual, science.data)]
    noise = 1.645 * np.sqrt(np.nanmedian(difference.variance[sources]))
    assert scatter[0] < 1.1 * noise < 0.5 * scatter[1]
    # The solution's file is what the command line takes.
    again = subtracted(pairs[0], tmp_path / "again.fits", "--kernel", solution_path)
    assert_same(again, expected)
    header = fits.getheader(path)
    assert header["WDBUTTYP"] == "difference"
    assert header["WDBUTRUN"] == "quanta"


def test_a_foreign_kernel_is_a_solution(repo, pairs):
    """A difference of other software, with a kernel of lsst.images."""
    from lsst.daf.butler import DatasetType

    science, template, kernel = (
        read_exposure(pairs[0] / f"{name}.fits", needs_variance=False)
        for name in ("science", "template", "difference")
    )
    kernel = kernel.kernel
    plain = subtract(science, template, kernel)
    with Butler.from_config(
        str(repo), writeable=True, run="foreign", collections=["foreign", "pairs"]
    ) as butler:
        for name, storage in (
            ("difference_uncorrected", "WhitediffExposure"),
            ("difference_match", "ConvolutionKernel"),
        ):
            butler.registry.registerDatasetType(
                DatasetType(
                    name if name != "difference_match" else "foreign_kernel",
                    ("instrument", "visit", "detector"),
                    storage,
                    universe=butler.dimensions,
                )
            )
        butler.put(plain, "difference_uncorrected", data_id())
        butler.put(lsst_kernel(kernel), "foreign_kernel", data_id())
        converted = butler.get("foreign_kernel", data_id(), storageClass="WhitediffSolution")
        given = butler.get("difference_uncorrected", data_id())
    result = DecorrelateDifferenceTask().run(science, template, given, converted)
    expected = decorrelate(science, template, plain)
    np.testing.assert_allclose(
        result.correctedExposure.data, expected.exposure.data, rtol=0, atol=1e-3
    )
    assert result.correctedSolution.science_variance > 0


# Pipelines


def test_pipelines_are_found_and_say_what_they_do():
    known = pipelines()
    assert {"difference", "score", "steps", "sources", "recreate"} <= set(known)
    from lsst.pipe.base import Pipeline

    for path in known.values():
        graph = Pipeline.fromFile(str(path)).to_graph()
        assert graph.tasks
    assert pipeline_file("steps#subtract") == f"{known['steps']}#subtract"
    with pytest.raises(ArgumentError, match=r"none\.yaml: no such pipeline"):
        pipeline_file("none.yaml")
    code, text, _ = command("butler", "files")
    assert code == 0
    listed = dict(line.split("\t") for line in text.splitlines())
    assert Path(listed["bps"]).is_file()
    assert set(known) | {"bps"} == set(listed)


@pytest.mark.slow
def test_three_visits_of_two_detectors_through_pipetask(tmp_path):
    pairs = make_pairs(tmp_path / "pairs", 6, first_seed=40)
    rows = [row | {"visit": 1 + i // 2, "detector": i % 2} for i, row in enumerate(rows_of(pairs))]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    repo = tmp_path / "repo"
    assert command("butler", "init", repo)[0] == 0
    assert command("butler", "ingest", repo, manifest)[0] == 0
    # One pair cannot be read.
    broken = pairs[3] / "template.fits"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:10000])
    run = ("butler", "run", repo, "--pipeline", "steps", "--output", "night", "-j", 2)
    result = subprocess.run(
        [sys.executable, "-m", "whitediff", *map(str, run)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"whitediff: {repo}: ")
    assert "--resume tries again what failed" in last

    def differences(name="difference"):
        with Butler.from_config(str(repo)) as butler:
            refs = butler.registry.queryDatasets(name, collections="night")
            return {(ref.dataId["visit"], ref.dataId["detector"]): ref for ref in refs}

    first = differences()
    assert set(first) == {(v, d) for v in (1, 2, 3) for d in (0, 1)} - {(2, 1)}
    broken.write_bytes(whole)
    subprocess.run(
        [sys.executable, "-m", "whitediff", *map(str, run), "--resume", "-q"], check=True
    )
    second = differences()
    assert len(second) == 6
    assert {key: ref.id for key, ref in second.items() if key in first} == {
        key: ref.id for key, ref in first.items()
    }
    # The same as the command line's, pixel by pixel.
    with Butler.from_config(str(repo), collections="night") as butler:
        for i, pair in enumerate(pairs):
            ref = second[1 + i // 2, i % 2]
            assert_same(butler.get(ref), subtracted(pair, tmp_path / f"{i}.fits"))
            assert_same_catalogs(
                butler.get("difference_sources", ref.dataId),
                detected(tmp_path / f"{i}.fits", tmp_path / f"{i}.ecsv"),
            )
        # What was done.
        where = {"visit": 3, "detector": 1}
        metadata = butler.get("decorrelate_metadata", data_id(**where))
        header = fits.getheader(tmp_path / "5.fits")
        assert metadata["decorrelate:decorrelate:decorrelate"]["kernelSum"] == header["WDKSUM"]
        config = butler.get("decorrelate_config")
        assert config.decorrelate.decorrelateConfig.noise == "auto"
        assert config.decorrelate.spatiallyVarying
        packages = butler.get("packages")
        from whitediff import __version__

        assert packages["whitediff"] == __version__
        log = butler.get("subtract_log", data_id(**where))
        assert any("Kernel sum" in record.message for record in log)
        path = butler.getURI(second[3, 1]).ospath
    made_of = [text.split()[0] for text in fits.getheader(path)["WDBUTIN"].split("; ")]
    expected = ["difference_match", "difference_uncorrected", "science", "template"]
    assert sorted(made_of) == expected
    # Not stored, but made again.
    run_pipeline(
        str(repo), pipeline="recreate", inputs="night,pairs", output="again", where="visit = 3"
    )
    with Butler.from_config(str(repo), collections="again") as butler:
        for detector in (0, 1):
            recreated = butler.get("difference_recreated", data_id(visit=3, detector=detector))
            assert_same(recreated, read_exposure(tmp_path / f"{4 + detector}.fits"))


@pytest.mark.slow
def test_sources_on_scores_are_those_of_the_command(repo, pairs, tmp_path):
    run_pipeline(str(repo), pipeline="sources", inputs="pairs", output="all")
    with Butler.from_config(str(repo), collections="all") as butler:
        for detector, pair in enumerate(pairs):
            # One after the other, as tasks do it: each measures the noise itself.
            difference, score = (tmp_path / f"{name}{detector}.fits" for name in ("d", "s"))
            # For scores, the task's basis is that of LSST's configuration.
            expected = (
                subtracted(pair, difference),
                subtracted(pair, score, "--basis", "gaussian", score=True),
            )
            found = [butler.get(n, data_id(detector=detector)) for n in ("difference", "score")]
            for one, other in zip(found, expected, strict=True):
                assert_same(one, other)
            output = tmp_path / f"{detector}.ecsv"
            code, _, messages = command(
                "detect", difference, "--score", score, "--output", output, "-q"
            )
            assert code == 0, messages
            catalog = butler.get("difference_sources", data_id(detector=detector))
            assert_same_catalogs(catalog, read_catalog(output))


@pytest.mark.slow
def test_a_score_stays_a_score(repo, pairs, tmp_path):
    """As task and Butler hand it over, in their file, in copies and in parts of it."""
    from whitediff.detection.exposures import detect
    from whitediff.formats import write_exposure
    from whitediff.formats.record import is_score

    science, template = (read_exposure(pairs[0] / f"{n}.fits") for n in ("science", "template"))
    config = AlardLuptonPreconvolveSubtractTask.ConfigClass()
    config.makeKernel.kernel.active.spatialKernelOrder = 0
    result = AlardLuptonPreconvolveSubtractTask(config=config).run(template, science)
    difference = AlardLuptonSubtractTask().run(template, science).difference
    config.doDecorrelation = False
    before = AlardLuptonPreconvolveSubtractTask(config=config).run(template, science)
    assert before.scoreExposure.is_score
    assert not difference.is_score
    # LSST's defaults tell the template's mask planes apart; what they make stays on the sky.
    assert difference.wcs is not None
    with Butler.from_config(str(repo), writeable=True, run="marks") as butler:
        from lsst.daf.butler import DatasetType

        for name, exposure in (("any_name", result.scoreExposure), ("no_score", difference)):
            butler.registry.registerDatasetType(
                DatasetType(
                    name,
                    ("instrument", "visit", "detector"),
                    "WhitediffExposure",
                    universe=butler.dimensions,
                )
            )
            butler.put(exposure, name, data_id())
        path, other = (butler.getURI(n, data_id()).ospath for n in ("any_name", "no_score"))
        score = butler.get("any_name", data_id())
        part = butler.get("any_name", data_id(), parameters={"bbox": lsst_box(BOX)})
        assert not butler.get("no_score", data_id()).is_score
    assert score.is_score
    assert part.is_score
    assert (is_score(path), is_score(other)) == (True, False)
    write_exposure(score, tmp_path / "copy.fits")
    assert is_score(tmp_path / "copy.fits")
    with pytest.raises(ArgumentError, match="is a score, on which nothing can be measured"):
        detect(score)
    output = tmp_path / "s.ecsv"
    code, _, messages = command("detect", path, "--output", output)
    assert code == 1
    assert "is a score" in messages
    code, _, messages = command("detect", other, "--score", path, "--output", output)
    assert code == 0, messages
    # A report knows which is which, and that a pair is neither.
    inputs = ("--science", pairs[0] / "science.fits", "--template", pairs[0] / "template.fits")
    page = tmp_path / "r.html"
    for file, kind in ((path, "score"), (other, "difference")):
        arguments = ("report", file, *inputs, "--output", page, "--overwrite", "-q")
        code, _, messages = command(*arguments)
        assert code == 0, messages
        assert f'"kind":"{kind}"' in page.read_text()
    with Butler.from_config(str(repo), writeable=True, run="marks") as butler:
        butler.put(science, "no_score", data_id(detector=1))
        pair = butler.getURI("no_score", data_id(detector=1)).ospath
    code, _, messages = command("report", pair, "--output", page, "--overwrite")
    assert code == 1
    assert "is no difference or score of whitediff" in messages


@pytest.mark.slow
def test_templates_on_another_grid_are_resampled_as_the_command_does(pairs, tmp_path):
    from grids import sky_header

    science = pairs[0] / "science.fits"
    own = fits.getheader(science, "IMAGE")
    grid = sky_header((240, 250), rotation=5.0, scale=own["CDELT2"] * 3600)
    grid["CRVAL1"], grid["CRVAL2"] = own["CRVAL1"], own["CRVAL2"]
    grid["CRPIX1"] = own["CRPIX1"] + 25
    grid["CRPIX2"] = own["CRPIX2"] + 25
    fits.writeto(tmp_path / "grid.fits", np.zeros((240, 250), np.float32), grid)
    template = tmp_path / "template.fits"
    code, _, messages = command(
        *("align", pairs[0] / "template.fits", "--to", tmp_path / "grid.fits", "--output", template)
    )
    assert code == 0, messages
    shutil.copy(science, tmp_path / "science.fits")
    row = rows_of(pairs)[0] | {"template": template}
    path = write_manifest(tmp_path / "m.csv", [row])
    repo = str(tmp_path / "repo")
    init_repository(repo)
    ingest(repo, pairs_of(read_rows(path), path))
    code, _, messages = command("butler", "run", repo, "--output", "refused")
    assert code == 1
    align = "subtract:alignTemplate=interpolating"
    for pipeline, inputs, config in (
        ("difference", "pairs", (align,)),
        ("steps", "pairs", (align,)),
        ("recreate", "difference,pairs", ()),
    ):
        run_pipeline(repo, pipeline=pipeline, inputs=inputs, output=pipeline, config=config)
    expected = subtracted(tmp_path, tmp_path / "d.fits", "--align")
    for collection, name, product in (
        ("difference", "difference", expected),
        ("recreate", "difference_recreated", expected),
        ("steps", "difference", expected),
    ):
        with Butler.from_config(repo, collections=collection) as butler:
            assert_same(butler.get(name, data_id()), product)


@pytest.mark.slow
def test_inputs_may_have_names_and_types_of_their_own(repo, pairs, tmp_path):
    from lsst.daf.butler import DatasetType

    with Butler.from_config(str(repo), writeable=True, run="theirs") as butler:
        for name in ("visit_image", "template_image"):
            butler.registry.registerDatasetType(
                DatasetType(
                    name,
                    ("instrument", "visit", "detector"),
                    "MaskedImageV2",
                    universe=butler.dimensions,
                )
            )
            kind = "science" if name == "visit_image" else "template"
            butler.put(masked_image(read_exposure(pairs[0] / f"{kind}.fits")), name, data_id())
    run_pipeline(
        str(repo),
        pipeline="difference",
        inputs="theirs",
        output="of_theirs",
        config=(
            "subtract:connections.science=visit_image",
            "subtract:connections.template=template_image",
            "subtract:makeKernel.kernel.active.spatialKernelOrderChoice=None",
            "subtract:makeKernel.kernel.active.spatialKernelOrder=0",
        ),
    )
    for name in ("science", "template"):
        theirs = masked_image(read_exposure(pairs[0] / f"{name}.fits"))
        theirs.write(str(tmp_path / f"{name}.fits"))
    expected = subtracted(tmp_path, tmp_path / "d.fits", "--kernel-order", 0)
    with Butler.from_config(str(repo), collections="of_theirs") as butler:
        assert_same(butler.get("difference", data_id()), expected)


# Elsewhere


def test_sites_of_clusters_are_understood():
    """The configuration of each site makes the executor that Parsl starts there."""
    pytest.importorskip("lsst.ctrl.bps.parsl")
    from lsst.ctrl.bps import BpsConfig
    from lsst.ctrl.bps.parsl import SiteConfig
    from parsl.providers import CondorProvider, LocalProvider, SlurmProvider

    expected = {"local": LocalProvider, "slurm": SlurmProvider, "htcondor": CondorProvider}
    for name, provider in expected.items():
        merged = BpsConfig(str(bps_file()))
        merged.update({"computeSite": name, "submitPath": "x", "operator": "somebody"})
        site = SiteConfig.from_config(merged)
        (executor,) = site.get_executors()
        assert type(executor.provider) is provider
        assert "OMP_NUM_THREADS=1" in site.get_command_prefix()
        # Memory for every worker, as measured.
        if name == "slurm":
            assert executor.provider.mem_per_node / executor.provider.cores_per_node == 2
        elif name == "htcondor":
            assert executor.max_workers_per_node == 8
            assert executor.mem_per_worker == 2
        else:
            assert executor.max_workers_per_node == 2


def test_values_of_ones_own_go_before_those_of_the_package(tmp_path):
    """As docs/surveys.md has it."""
    pytest.importorskip("lsst.ctrl.bps.parsl")
    from lsst.ctrl.bps import BpsConfig

    text = (Path(__file__).resolve().parents[1] / "docs/surveys.md").read_text()
    (own,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "own.yaml"
    path.write_text(own.replace("/path/to/whitediff.yaml", str(bps_file())))
    config = BpsConfig(str(path))
    assert config["computeSite"] == "slurm"
    assert config[".site.slurm.cores_per_node"] == 128
    assert config[".site.slurm.class"] == "lsst.ctrl.bps.parsl.sites.Slurm"
    assert config["requestMemory"] == 2000
    assert config[".cluster.detectors.partitionMaxSize"] == 7


@pytest.mark.slow
def test_bps_on_the_local_site(repo, pairs, tmp_path):
    pytest.importorskip("lsst.ctrl.bps.parsl")
    scripts = Path(sys.executable).parent
    source = str(Path(__file__).resolve().parents[1] / "src")
    environment = os.environ | {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "PWD": str(tmp_path),
        "PYTHONPATH": source,
    }
    result = subprocess.run(
        [
            *(scripts / "bps", "submit", bps_file(), "-b", repo, "-i", "pairs", "-o", "bps"),
            *("-p", pipeline_file("steps")),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    with Butler.from_config(str(repo), collections="bps") as butler:
        for detector, pair in enumerate(pairs):
            expected = subtracted(pair, tmp_path / f"{detector}.fits")
            assert_same(butler.get("difference", data_id(detector=detector)), expected)
        # All steps of a visit's few detectors in one job.
        logs = list(tmp_path.glob("submit/bps/*/logs/detectors/**/*.stderr"))
        assert len(logs) == 1


def postgres_programs():
    """Directory of Debian's PostgreSQL, or None."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    program = found[-1] if found else shutil.which("initdb")
    return None if program is None else Path(program).parent


@pytest.fixture
def postgres():
    """Address of a database on a server of our own, run by an unprivileged user."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    directory = Path(tempfile.mkdtemp(prefix="whitediff-postgres-"))
    user = {"user": "nobody"} if os.getuid() == 0 else {}
    try:
        if user:
            directory.chmod(0o755)
            shutil.chown(directory, "nobody")
        data = directory / "data"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": directory}
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "owner", "--auth=trust", "-N", "-E", "UTF8"],
            check=True,
            **quiet,
            **user,
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", port, "-k", directory],
            **quiet,
            **user,
        )
        try:
            connect = ("-h", "127.0.0.1", "-p", port, "-U", "owner")
            end = time.monotonic() + 60
            while subprocess.run(
                [programs / "pg_isready", *connect], check=False, **quiet
            ).returncode:
                assert server.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            subprocess.run([programs / "createdb", *connect, "butler"], check=True, **quiet)
            subprocess.run(
                [programs / "psql", *connect, "butler", "-c", "CREATE EXTENSION btree_gist"],
                check=True,
                **quiet,
            )
            yield f"postgresql://owner@127.0.0.1:{port}/butler"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.slow
def test_a_registry_on_postgresql(postgres, pairs, tmp_path):
    pytest.importorskip("psycopg2")
    repo = tmp_path / "repo"
    code, _, messages = command(
        "butler", "init", repo, "--database", postgres, "--namespace", "whitediff"
    )
    assert code == 0, messages
    manifest = write_manifest(tmp_path / "m.csv", rows_of(pairs))
    code, _, messages = command("butler", "ingest", repo, manifest)
    assert code == 0, messages
    assert not list(repo.glob("*.sqlite3"))
    code, _, messages = command("butler", "run", repo, "--output", "night", "-j", 2, "-q")
    assert code == 0, messages
    with Butler.from_config(str(repo), collections="night") as butler:
        for detector, pair in enumerate(pairs):
            expected = subtracted(pair, tmp_path / f"{detector}.fits")
            assert_same(butler.get("difference", data_id(detector=detector)), expected)


# What is wrong


def test_repositories_that_do_not_fit_get_a_sentence(pairs, tmp_path):
    with pytest.raises(FileFormatError, match=r"nothing: no such repository; make one with"):
        check_repository(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFormatError, match=r"empty: is no Butler repository"):
        check_repository(str(tmp_path / "empty"))
    foreign = tmp_path / "foreign"
    Butler.makeRepo(str(foreign))
    manifest = write_manifest(tmp_path / "m.csv", rows_of(pairs))
    code, _, messages = command("butler", "ingest", foreign, manifest)
    assert code == 1
    assert messages.count("\n") == 1
    assert "does not know the storage class WhitediffExposure; teach it with" in messages
    code, _, messages = command("butler", "run", foreign, "--output", "x")
    assert code == 1
    assert "--extend" in messages
    assert command("butler", "init", foreign)[0] == 1
    assert command("butler", "init", foreign, "--extend")[0] == 0
    code, _, messages = command("butler", "ingest", foreign, manifest)
    assert code == 0, messages
    with pytest.raises(OutputExistsError, match="is a Butler repository already"):
        init_repository(str(foreign))
    with pytest.raises(FileFormatError, match=r"no butler\.yaml"):
        init_repository(str(tmp_path / "nothing"), extend=True)
    with pytest.raises(WhitediffError, match=r"postgresql://me@127.0.0.1:1/x: no repository"):
        init_repository(str(tmp_path / "other"), database="postgresql://me:secret@127.0.0.1:1/x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"science": "none.fits"}, r"row 1: .*none\.fits: no such file"),
        ({"science": ""}, "row 1: has no science"),
        ({"visit": "first"}, "visit must be a number from 0 on; got 'first'"),
        ({"visit": "9" * 20}, "visit must be at most 4611686018427387904"),
        ({"detector": "9" * 9}, "detector must be at most 1048576"),
        ({"mjd": "yesterday"}, "mjd must be a number; got 'yesterday'"),
        ({"mjd": "99999999"}, "mjd must be from -100000 to 200000; got '99999999'"),
        ({"mjd": "nan"}, "mjd must be from"),
        ({"exposure_time": "-5"}, "exposure_time must be 0 or more; got '-5'"),
        ({"science_gain": "high"}, "science_gain must be a number; got 'high'"),
        ({"science_gain": "0"}, "science_gain must be above 0"),
        ({"vissit": "1"}, "the column 'vissit' is unknown; is 'visit' meant"),
    ],
)
def test_wrong_manifests_get_a_sentence(pairs, tmp_path, changes, message):
    path = write_manifest(tmp_path / "m.csv", [rows_of(pairs)[0] | changes])
    with pytest.raises(ArgumentError, match=message):
        pairs_of(read_rows(path), path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector": 2, "band": "g"}, "rows 1 and 2 are of visit 1, but of the filters 'r' and"),
        (
            {"visit": 2, "band": "g", "physical_filter": "r"},
            "rows 1 and 2 have the physical_filter 'r' and the bands 'r' and 'g'",
        ),
    ],
)
def test_rows_must_not_contradict_each_other(pairs, tmp_path, changes, message):
    row = rows_of(pairs)[0]
    path = write_manifest(tmp_path / "m.csv", [row, row | changes])
    with pytest.raises(ArgumentError, match=message):
        pairs_of(read_rows(path), path)


def test_conversion_takes_psfs_and_all_pairs_or_none(pairs, tmp_path):
    """A pair that cannot be read does not leave others in the way of the next attempt."""
    psf = np.zeros((9, 9))
    psf[3:6, 3:6] = 1 / 9
    fits.writeto(tmp_path / "psf.fits", psf)
    rows = [row | {"template_psf": "psf.fits"} for row in rows_of(pairs)]
    rows[1]["template_psf"] = "none.fits"
    repo = str(tmp_path / "repo")
    init_repository(repo)
    path = write_manifest(tmp_path / "m.csv", rows)
    with pytest.raises(FileFormatError, match=r"none\.fits: no such file"):
        ingest(repo, pairs_of(read_rows(path), path), transfer="convert")
    assert not list((tmp_path / "repo").rglob("*.fits"))
    rows[1]["template_psf"] = "psf.fits"
    path = write_manifest(tmp_path / "m.csv", rows)
    assert ingest(repo, pairs_of(read_rows(path), path), transfer="convert") == 2
    with Butler.from_config(repo, collections="pairs") as butler:
        stamp = butler.get("template.psf", data_id(detector=1)).compute_kernel_image(x=9, y=9)
    np.testing.assert_allclose(stamp.array, psf, atol=1e-7)
    with pytest.raises(ArgumentError, match=r"template_psf of the manifest cannot be kept"):
        ingest(repo, pairs_of(read_rows(path), path), run="direct")


def test_what_cannot_be_ingested_says_why(repo, pairs, tmp_path):
    rows = rows_of(pairs)
    path = write_manifest(tmp_path / "m.csv", [*rows, rows[0]])
    with pytest.raises(ArgumentError, match="rows 1 and 3 are both visit 1, detector 0"):
        pairs_of(read_rows(path), path)
    path = write_manifest(tmp_path / "m.csv", rows)
    with pytest.raises(ArgumentError, match="has some of these visits and detectors already"):
        ingest(str(repo), pairs_of(read_rows(path), path))
    extension = [row | {"science": f"{row['science']}[IMAGE]", "visit": 9} for row in rows]
    path = write_manifest(tmp_path / "m.csv", extension)
    with pytest.raises(ArgumentError, match="Butler takes files, not extensions; use --transfer"):
        ingest(str(repo), pairs_of(read_rows(path), path))
    path = write_manifest(tmp_path / "m.csv", [rows[0] | {"science_gain": 2.0, "visit": 9}])
    with pytest.raises(ArgumentError, match="science_gain of the manifest cannot be kept"):
        ingest(str(repo), pairs_of(read_rows(path), path))
    cut = copy_pair(pairs[0], tmp_path / "cut")
    (cut / "science.fits").write_bytes(b"SIMPLE  = nothing")
    path = write_manifest(tmp_path / "m.csv", rows_of([cut], visits=(9,)))
    with pytest.raises(FileFormatError, match="cannot be read as FITS"):
        ingest(str(repo), pairs_of(read_rows(path), path))
    shutil.copy(pairs[0] / "science.fits", cut / "science.fits")
    (cut / "template.fits").write_bytes((pairs[0] / "template.fits").read_bytes()[:10000])
    with pytest.raises(FileFormatError, match=r"template\.fits: truncated"):
        ingest(str(repo), pairs_of(read_rows(path), path))


def test_runs_that_cannot_be_get_a_sentence(repo):
    for options, message in (
        (("--input", "nowhere"), "nowhere"),
        (("--where", "visit = 77"), "nothing to do: in pairs there is no visit and detector"),
        (("--pipeline", "recreate"), "No datasets of type 'difference_solution' in collection"),
        (("--where", "visit ="), "Failed to parse expression 'visit ='."),
        (("-c", "subtract:nonsense=1"), "no attribute nonsense"),
        (("--pipeline", "nonsense"), "no such pipeline"),
    ):
        code, _, messages = command("butler", "run", repo, "--output", "x", *options)
        assert code == 1
        last = messages.splitlines()[-1]
        assert last.startswith("whitediff: ")
        assert message in last
        assert "resume" not in last
        assert messages.count("\n") == 1
        assert "Traceback" not in messages


@pytest.mark.slow
def test_a_run_with_all_of_its_results_has_nothing_left_to_do(pairs, tmp_path, caplog):
    """And one of which a quantum fails says so without a traceback."""
    repo, copy = tmp_path / "repo", copy_pair(pairs[0], tmp_path / "in")
    manifest = write_manifest(tmp_path / "m.csv", rows_of([copy, pairs[1]]))
    assert command("butler", "init", repo)[0] == 0
    assert command("butler", "ingest", repo, manifest)[0] == 0
    whole = (copy / "template.fits").read_bytes()
    (copy / "template.fits").write_bytes(b"\0" * len(whole))
    run = ("butler", "run", repo, "--output", "out")
    code, _, messages = command(*run)
    assert code == 1
    assert "Traceback" not in messages + caplog.text
    assert "template.fits: cannot be read as FITS" in messages + caplog.text
    assert messages.splitlines()[-1].endswith("--resume tries again what failed.")
    (copy / "template.fits").write_bytes(whole)
    code, _, messages = command(*run, "--resume")
    assert code == 0, messages
    with Butler.from_config(str(repo)) as butler:
        first = {ref.id for ref in butler.registry.queryDatasets("difference", collections="out")}
    assert len(first) == 2
    code, _, messages = command(*run, "--resume")
    assert code == 0, messages
    assert "out has all that the pipeline makes" in messages


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("processes", [1, 2])
def test_files_are_read_within_the_limits_of_the_command(pairs, tmp_path, processes):
    """In processes of their own, too; ingesting to convert reads them as well."""
    repo = tmp_path / "repo"
    manifest = write_manifest(tmp_path / "m.csv", rows_of(pairs, visits=(1, 2)))
    assert command("butler", "init", repo)[0] == 0
    little = ("--max-memory", "10kB")
    code, _, messages = command(
        "butler", "ingest", repo, manifest, "--transfer", "convert", *little
    )
    assert code == 1
    assert "more than --max-memory allows (10 kB)" in messages
    assert command("butler", "ingest", repo, manifest)[0] == 0
    run = ("butler", "run", repo, "--output", "out", "-j", processes)
    whitediff = [sys.executable, "-m", "whitediff"]
    done = subprocess.run(
        [*whitediff, *map(str, (*run, *little))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "more than --max-memory allows (10 kB)" in done.stderr
    subprocess.run([*whitediff, *map(str, (*run, "--resume", "-q"))], check=True)


@pytest.mark.slow
@pytest.mark.cases(2)
@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("late", [False, True])
def test_a_run_that_is_stopped_is_resumed(pairs, tmp_path, which, late):
    """Before there is a collection, and when the first of two differences is there."""
    repo = tmp_path / "repo"
    manifest = write_manifest(tmp_path / "m.csv", rows_of(pairs, visits=(1, 2)))
    assert command("butler", "init", repo)[0] == 0
    assert command("butler", "ingest", repo, manifest)[0] == 0
    run = [sys.executable, "-m", "whitediff", "butler", "run", str(repo), "--output", "out"]
    process = subprocess.Popen(run, start_new_session=True, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while late and not list(repo.glob("out/**/*difference*.fits")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    if not late:
        time.sleep(2)
    os.killpg(process.pid, which)
    _, messages = process.communicate(timeout=60)
    assert process.returncode != 0
    if which is signal.SIGTERM and late:
        assert b"interrupted; what is done is in the collection out, go on with --res" in messages
        assert b"Traceback" not in messages
    subprocess.run([*run, "--resume", "-q"], check=True)
    with Butler.from_config(str(repo)) as butler:
        found = butler.registry.queryDatasets("difference", collections="out", findFirst=True)
        assert len({ref.dataId for ref in found}) == 4
