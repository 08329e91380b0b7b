"""Claims: the examples of README and docs run as they stand, and say what is so; every header
card that the code writes is described, and known as whitediff's own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from scenes import gaussian
from whitediff import Exposure
from whitediff.exposures import kernels
from whitediff.formats import write_exposure
from whitediff.formats.headers import _PROVENANCE
from whitediff.reading import ReadingOptions, option_cards

ROOT = Path(__file__).resolve().parents[1]


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.slow
def test_readme_examples_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [
        line.removeprefix("whitediff ").split()
        for block in blocks("README.md", "console")
        for line in block.splitlines()
        if line.startswith("whitediff ")
    ]
    simulate = next(c for c in commands if c[0] == "simulate")
    # Large stamps of a Moffat profile leave a score few stars among bad pixels.
    assert run(*simulate, "--size", 900, "--bad-columns", 0, "--nan-pixels", 0)[0] == 0
    for name, theirs in (
        ("science", "science"),
        ("template", "template"),
        ("mine", "difference"),
        ("kernel", "kernel"),
    ):
        (tmp_path / f"{name}.fits").symlink_to(tmp_path / "sim" / f"{theirs}.fits")
    # The first example stands in the text twice.
    for command in dict.fromkeys(map(tuple, commands)):
        if command[0] != "simulate":
            code, _, messages = run(*command)
            assert code == 0, messages
    assert (tmp_path / "white.png").exists()
    assert (tmp_path / "difference.png").exists()
    for plane in ("IMAGE", "VARIANCE", "MASK"):
        first, again = (fits.getdata(f"{name}.fits", plane) for name in ("difference", "again"))
        np.testing.assert_array_equal(again, first)
    assert {"FLUX", "FLUX_VARIANCE"} <= {hdu[1] for hdu in fits.info("score.fits", output=False)}
    python = "\n".join(blocks("README.md", "python"))
    result = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = re.search(r"kernel_sum: ([\d.]+) ± ([\d.]+)", result.stdout)
    assert found is not None, result.stdout
    assert abs(float(found[1]) - 1.3) < 3 * float(found[2])
    for name in ("result.png", "result.html", "result.fits"):
        assert (tmp_path / name).exists()


def test_the_ten_line_reader_reads(tmp_path, rng):
    namespace: dict[str, object] = {}
    exec(blocks("docs/file-format.md", "python")[0], namespace)
    exposure = Exposure.from_arrays(rng.normal(size=(50, 60)), variance=1.0, origin=(5, -9))
    basis = np.stack([gaussian(9, 1.0), gaussian(9, 2.0)])
    coefficients = np.array([[1.0, 0.01, 0.02, 1e-4, 0, 0], [0.2, 0, 0.001, 0, 2e-4, 0]])
    for kernel in (
        kernels.polynomial_kernel(basis, coefficients, exposure.bbox),
        kernels.constant_kernel(basis[0], exposure.bbox),
    ):
        exposure.kernel = kernel
        write_exposure(exposure, tmp_path / "out.fits", overwrite=True)
        image = namespace["kernel_at"](tmp_path / "out.fits", 40.5, 20.0)  # type: ignore[operator]
        np.testing.assert_allclose(image, kernel.at(x=40.5, y=20.0), rtol=1e-9, atol=1e-15)


def test_every_card_is_known_and_described():
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    written = set(re.findall(r"\"(WD[A-Z0-9]{2,6})\"", source)) | {"WDSPSFIN", "WDTPSFIN"}
    written |= set(option_cards(science=ReadingOptions(), template=ReadingOptions()))
    assert len(written) > 40
    described = set(re.findall(r"\bWD[A-Z0-9]+", (ROOT / "docs/file-format.md").read_text()))
    known = {"WD" + name for name in re.split(r"[|()]", _PROVENANCE.pattern)[1:] if name}
    assert all(_PROVENANCE.fullmatch(keyword) for keyword in known)
    assert written == described == known


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/algorithm.md",
        "docs/alignment.md",
        "docs/conventions.md",
        "docs/detection.md",
        "docs/evaluation.md",
        "docs/file-format.md",
        "docs/report.md",
        "docs/scaling.md",
        "docs/surveys.md",
        "docs/whiteness.md",
    ],
)
def test_links_lead_somewhere(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
