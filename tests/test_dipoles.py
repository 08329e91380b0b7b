"""Telling dipoles, point sources, extended sources and artifacts apart.

Claims: stars that the template has 0.3 pixels off are dipoles, with their moment, direction and
errors, where the dipole's own signal-to-noise ratio (that of its pattern, known) is above 15;
transients up to a ratio of 200, alone or in close pairs of one sign, are none; neither depends on
where in the field they are, for a PSF that varies, nor on the frame.  Two lobes far enough apart
have fluxes and a separation, nearer ones only a moment.  Each dipole is one row.  Galaxies are
extended, cosmic rays and hot columns artifacts.  Noise, masks and edges make no dipoles.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import scipy.ndimage
import scipy.spatial

from whitediff import Exposure
from whitediff.detection.dipoles import classified
from whitediff.detection.exposures import DetectionOptions, detect
from whitediff.detection.peaks import Blends, Peaks
from whitediff.detection.photometry import Frame, fit_blends
from whitediff.evaluation.placing import add_stamp
from whitediff.evaluation.simulation import PsfModel
from whitediff.exposures.kernels import interpolated_kernel
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.noise.significance import Significance

SIGMA = 2.0
FWHM = 2.3548 * SIGMA
SPACING = 48
MISREGISTRATION = 0.3
SKY = 100.0
YX0 = (35, -20)


@dataclasses.dataclass
class Scene:
    exposure: Exposure
    x: np.ndarray
    y: np.ndarray
    truth: list


class Field:
    """Patterns on a grid, in white noise, with a PSF that varies."""

    def __init__(self, side, *, variation=0.1):
        self.shape = (SPACING * side + 20, SPACING * side + 20)
        self.side = side
        self.model = PsfModel(
            sigma=SIGMA, frame=self.shape, profile="moffat", beta=3.5, ellipticity=(0.08, 0.05),
            offset=(0.2, -0.1), variation=variation,
        )  # fmt: skip

    def filled(self, rng, pattern) -> Scene:
        """``pattern(draw)`` draws around a place with ``draw(flux, dx, dy)`` and returns truth."""
        image = np.zeros(self.shape)
        y, x = (SPACING * (g.ravel() + 0.5) + 10 for g in np.mgrid[: self.side, : self.side])
        x, y = x + rng.uniform(-0.5, 0.5, x.size), y + rng.uniform(-0.5, 0.5, x.size)
        truth = []
        for px, py in zip(x, y, strict=True):
            alone = np.zeros((121, 121))
            ax, ay = 60 + px - round(px), 60 + py - round(py)

            def draw(flux, dx=0.0, dy=0.0, *, x=px, image=alone, ax=ax, ay=ay):
                local = dataclasses.replace(self.model, sigma=self.model.sigma_at(x), variation=0.0)
                stamp = local.stamp(ax + dx, ay + dy, size=43)
                add_stamp(image, flux * stamp, ax + dx, ay + dy)

            truth.append(pattern(draw, alone))
            add_stamp(image, alone, round(px), round(py))
        image += rng.normal(0, math.sqrt(SKY), self.shape)
        exposure = Exposure.from_arrays(image.astype(np.float32), variance=SKY, origin=YX0)
        exposure.psf = KernelPointSpreadFunction(
            interpolated_kernel(
                lambda x, y: self.model.image(x - YX0[1], y - YX0[0]), exposure.bbox, 3
            )
        )
        return Scene(exposure, x, y, truth)


def scaled(image, ratio):
    """Scale a pattern to its own signal-to-noise ratio, and return by what."""
    scale = ratio * math.sqrt(SKY / (image**2).sum())
    image *= scale
    return scale


def log_uniform(rng, low, high):
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def dipole(rng, low=15.0, high=200.0, separation=MISREGISTRATION):
    def pattern(draw, image):
        angle = rng.uniform(0, 2 * np.pi)
        dx, dy = separation / 2 * np.cos(angle), separation / 2 * np.sin(angle)
        draw(1.0, dx, dy)
        draw(-1.0, -dx, -dy)
        ratio = log_uniform(rng, low, high)
        return ratio, scaled(image, ratio) * separation, np.degrees(angle) % 360

    return pattern


def transient(rng, low=6.0, high=200.0):
    def pattern(draw, image):
        draw(1.0)
        ratio = log_uniform(rng, low, high)
        image *= rng.choice([-1, 1])
        return ratio, scaled(image, ratio)

    return pattern


def close_pair(rng):
    def pattern(draw, image):
        distance, angle = FWHM * rng.uniform(0.6, 2.0), rng.uniform(0, 2 * np.pi)
        dx, dy = distance / 2 * np.cos(angle), distance / 2 * np.sin(angle)
        draw(1.0, dx, dy)
        draw(rng.uniform(0.3, 1.0), -dx, -dy)
        image *= rng.choice([-1, 1])
        return (scaled(image, log_uniform(rng, 10, 200)),)

    return pattern


def found(scene, threshold=5.0):
    """Catalogue, the pattern that each row belongs to, and its distance."""
    table = detect(scene.exposure, options=DetectionOptions(threshold=threshold))
    places = np.stack([table["x"].value - YX0[1], table["y"].value - YX0[0]], axis=1)
    distance, index = scipy.spatial.cKDTree(np.stack([scene.x, scene.y], axis=1)).query(places)
    return table[distance < SPACING / 3], index[distance < SPACING / 3]


def check_misregistered(rng, side):
    scene = Field(side).filled(rng, dipole(rng))
    table, index = found(scene)
    labels = np.asarray(table["classification"])
    n = len(scene.x)
    right = np.zeros(n, bool)
    right[index[labels == "dipole"]] = True
    assert right.mean() >= 0.9
    # One row for each.
    assert np.bincount(index, minlength=n).max() == 1
    rows = labels == "dipole"
    moment, angle = (np.array([each[i] for each in scene.truth])[index[rows]] for i in (1, 2))
    pull = table["dipole_moment"].value[rows] - moment
    pull /= table["dipole_moment_err"].value[rows]
    assert pull.mean() == pytest.approx(0, abs=4 / np.sqrt(len(pull)) + 0.2)
    assert pull.std() == pytest.approx(1, abs=4 / np.sqrt(2 * len(pull)) + 0.1)
    turned = (table["dipole_angle"].value[rows] - angle + 180) % 360 - 180
    ratio = np.array([each[0] for each in scene.truth])[index[rows]]
    # The direction of a gradient: one over the signal-to-noise ratio, and less than twice that.
    assert np.sqrt(np.mean((np.radians(turned) * ratio) ** 2)) < 2
    chi = table["dipole_chi2"][rows]
    assert np.median(chi) == pytest.approx(1, abs=0.05)
    # 0.3 of 4.7 pixels: flux and separation are not known apart.
    unresolved = np.isnan(table["dipole_separation"].value[rows])
    assert unresolved.mean() > 0.9
    assert np.isnan(table["dipole_positive_flux"][rows][unresolved]).all()


def check_transients(rng, side, pattern):
    scene = Field(side).filled(rng, pattern)
    table, index = found(scene)
    assert len(np.unique(index)) > 0.9 * len(scene.x)
    return scene, Counter(np.asarray(table["classification"]).tolist())


def test_misregistered_stars_are_dipoles(rng):
    check_misregistered(rng, 12)


def test_transients_are_points(rng):
    _, labels = check_transients(rng, 12, transient(rng))
    assert labels["point"] >= 0.99 * sum(labels.values())
    assert labels["dipole"] == 0


def test_close_pairs_of_one_sign_are_no_dipoles(rng):
    _, labels = check_transients(rng, 10, close_pair(rng))
    assert labels["dipole"] == 0
    # Pairs nearer than peaks can be told apart are extended, none is an artifact but by chance.
    assert labels["artifact"] <= 0.03 * sum(labels.values())


@pytest.mark.slow
def test_a_thousand_of_each(rng):
    check_misregistered(rng, 32)
    _, labels = check_transients(rng, 32, transient(rng))
    assert sum(labels.values()) > 1000
    assert labels["point"] > 0.99 * sum(labels.values())
    _, labels = check_transients(rng, 32, close_pair(rng))
    assert labels["dipole"] < 0.01 * sum(labels.values())


def test_a_psf_in_error_by_three_percent_makes_no_dipoles(rng):
    field = Field(8)
    scene = field.filled(rng, transient(rng, 50, 200))
    for factor in (0.97, 1.03):
        wrong = dataclasses.replace(field.model, sigma=SIGMA * factor)
        scene.exposure.psf = KernelPointSpreadFunction(
            interpolated_kernel(
                lambda x, y, wrong=wrong: wrong.image(x - YX0[1], y - YX0[0]),
                scene.exposure.bbox, 3,
            )
        )  # fmt: skip
        table, _ = found(scene)
        assert set(table["classification"]) == {"point"}


def test_lobes_far_apart_have_fluxes_and_a_separation(rng):
    separation = 1.2 * FWHM
    scene = Field(7).filled(rng, dipole(rng, 60, 200, separation))
    table, index = found(scene)
    assert set(table["classification"]) == {"dipole"}
    assert len(table) == len(scene.x)
    moment = np.array([each[1] for each in scene.truth])[index]
    for name, truth in (
        ("separation", separation),
        ("positive_flux", moment / separation),
        ("negative_flux", -moment / separation),
        ("moment", moment),
    ):
        pull = (table[f"dipole_{name}"].value - truth) / table[f"dipole_{name}_err"].value
        assert pull.mean() == pytest.approx(0, abs=4 / np.sqrt(len(pull)) + 0.2), name
        assert pull.std() == pytest.approx(1, abs=0.5), name
    assert (table["dipole_positive_flux"] > 0).all()
    assert (table["dipole_negative_flux"] < 0).all()


def test_a_faint_second_lobe_is_no_source_of_its_own(rng):
    # The negative lobe is beyond the threshold for no source, but seen.
    scene = Field(6).filled(rng, dipole(rng, 15, 16))
    table, index = found(scene, threshold=8.0)
    assert len(table) > 20
    labels = np.asarray(table["classification"])
    assert np.bincount(index).max() == 1
    assert (labels == "dipole").mean() >= 0.9


def test_galaxies_are_extended_and_spikes_are_artifacts(rng):
    field = Field(6)

    def galaxy(draw, image):
        draw(1.0)
        image[...] = scipy.ndimage.gaussian_filter(image, 2.5)
        scaled(image, 80)

    table, _ = found(field.filled(rng, galaxy))
    assert (np.asarray(table["classification"]) == "extended").mean() > 0.9

    def spike(draw, image):
        image[60, 60 : 60 + rng.integers(1, 4)] = 1.0
        scaled(image, 60)

    table, _ = found(field.filled(rng, spike))
    assert (np.asarray(table["classification"]) == "artifact").mean() > 0.9


def test_masks_and_edges_make_no_dipoles(rng):
    scene = Field(6).filled(rng, transient(rng, 20, 200))
    exposure = scene.exposure
    image = exposure.data
    for i in range(0, 36, 2):
        row, column = round(scene.y[i]), round(scene.x[i])
        image[row - 1 : row + 1, :] = np.nan
        image[:, column + 3] = np.nan
    table, _ = found(scene)
    labels = Counter(np.asarray(table["classification"]).tolist())
    assert labels["dipole"] <= 1
    assert labels["point"] >= 0.9 * sum(labels.values())
    # A source that the frame cuts in two.
    model = PsfModel(sigma=SIGMA, frame=(60, 60))
    cut = rng.normal(size=(60, 60))
    add_stamp(cut, 800 * model.stamp(0.3, 30.2), 0.3, 30.2)
    add_stamp(cut, -800 * model.stamp(59.0, 59.0), 59.0, 59.0)
    table = detect(Exposure.from_arrays(cut, variance=1.0, psf=model.image(0, 0)))
    assert set(table["classification"]) == {"point"}


def test_noise_makes_no_dipoles(rng):
    image = rng.normal(size=(900, 900)).astype(np.float32)
    psf = PsfModel(sigma=SIGMA, frame=(9, 9)).image(0, 0)
    table = detect(
        Exposure.from_arrays(image, variance=1.0, psf=psf), options=DetectionOptions(threshold=3.5)
    )
    assert len(table) > 50
    # 900 × 900 pixels have pairs of opposite peaks by chance.
    assert (np.asarray(table["classification"]) == "point").mean() > 0.97


def test_no_sources_have_no_classes():
    none = np.zeros(0)
    psf = PsfModel(sigma=SIGMA, frame=(9, 9)).image(0, 0)[None]
    planes = Frame(np.zeros((40, 40)), np.ones((40, 40)), np.ones((40, 40), bool))
    blends = Blends(Peaks(none, none, none, none, none), none, np.zeros(0, int))
    fits = fit_blends(planes, none, none, blends.group, lambda x, y: psf, radius=6.0, furthest=3.0)
    found = Significance(np.zeros((40, 40), np.float32), np.ones((40, 40), bool))
    classes, same = classified(planes, blends, fits, found, lambda x, y: psf, radius=6.0, fwhm=FWHM)
    assert len(classes.label) == len(classes.moment) == len(same.x) == 0
