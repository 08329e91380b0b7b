"""What is loaded, and what an install brings.

Claims: a subtraction of plain FITS files loads none of the packages that only other formats and
commands need; asking for `whitediff.subtract` loads no part of astropy; every command that is told
a file that is not there, or an output that is, says so before NumPy, SciPy and astropy are loaded,
and likewise what needs an extra that is missing; NumPy, SciPy and astropy aside an install brings
few packages.  Rooms of the package import those above them in the list of CONTRIBUTING, never those
below; none but the tasks and what is Rubin's knows Rubin's packages, and the rooms up to evaluation
need NumPy, SciPy, astropy and SEP.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from packaging.requirements import Requirement

from grids import sky_header
from scenes import gaussian

ELSEWHERE = (
    *("lsst", "dask", "distributed", "pyarrow", "matplotlib", "PIL", "reproject", "h5py", "bs4"),
    *("piff", "galsim", "fsspec", "rich"),
)
"""Packages of extras, and what prints tables.

astropy loads PyYAML with its tables, and numcodecs with its compressed images where that is
installed: these are not ours to leave out.
"""
ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("numpy", "scipy", "astropy")
MOST_PACKAGES = 20


def loaded(code: str, *packages: str) -> tuple[str, str]:
    """Run code in a Python of its own.

    Returns what it printed (its exit code, if it ended so; and which of the packages it has
    loaded), and its messages.
    """
    code = f"""if True:
        import sys
        try:
            {code}
        except SystemExit as stop:
            print("code", stop.code)
        print(*sorted({{m.split(".")[0] for m in sys.modules}} & {set(packages)!r}))
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def run_command(*arguments: object) -> str:
    given = ["whitediff", *map(str, arguments)]
    return f"sys.argv = {given!r}; import whitediff.cli.main as m; m.main()"


def plain_pair(directory, rng, shape=(220, 240)):
    """Files with an image each, a WCS and a gain: stars, one of them new."""
    y, x = rng.uniform(20, 200, (2, 40))
    flux = rng.uniform(5e3, 5e4, 40)
    for name, sigma in (("science", 2.0), ("template", 1.6)):
        image = rng.normal(200, 5, shape)
        for at_y, at_x, each in zip(y, x, flux, strict=True):
            j, i = round(at_y), round(at_x)
            image[j - 12 : j + 13, i - 12 : i + 13] += each * gaussian(25, sigma)
        header = sky_header(shape)
        header["GAIN"], header["RDNOISE"] = 8.0, 5.0
        fits.writeto(directory / f"{name}.fits", image.astype(np.float32), header)
    return directory / "science.fits", directory / "template.fits"


def test_a_subtraction_of_plain_files_loads_what_it_needs(rng, tmp_path):
    pair, output = plain_pair(tmp_path, rng), tmp_path / "out.fits"
    told, messages = loaded(run_command("subtract", *pair, "--output", output), *ELSEWHERE)
    assert told.splitlines() == ["code 0", ""], messages
    assert output.exists()


def test_asking_for_a_subtraction_loads_no_astropy():
    told, _ = loaded("import whitediff; whitediff.subtract", "astropy", *ELSEWHERE)
    assert told.strip() == ""


MISSING = {
    "subtract": ("no.fits", "there.fits", "--output", "out.fits"),
    "subtract, template": ("there.fits", "no.fits[SCI]", "--output", "out.fits"),
    "subtract, PSF": ("there.fits", "there.fits", "--output", "o.fits", "--science-psf", "no.fits"),
    "subtract, variance": (
        *("there.fits", "there.fits", "--output", "out.fits"),
        *("--template-variance", "sigma:no.fits"),
    ),
    "subtract, kernel": ("there.fits", "there.fits", "--output", "o.fits", "--kernel", "no.fits"),
    "align": ("there.fits", "--to", "no.fits", "--output", "out.fits"),
    "decorrelate": ("there.fits", "there.fits", "no.fits", "--output", "out.fits"),
    "decorrelate, kernel": (*("there.fits",) * 3, "no.fits", "--output", "out.fits"),
    "decorrelate-stack": (
        *("there.fits", "--output", "out.fits", "--science", "there.fits", "no.fits"),
        *("--template", "there.fits", "-"),
    ),
    "check": ("no.fits",),
    "check, before": ("there.fits", "--before", "no.fits"),
    "info": ("there.fits", "no.fits"),
    "kernel": ("no.fits", "--output", "out.fits"),
    "convert": ("no.fits", "--output", "out.fits"),
    "detect": ("no.fits", "--output", "out.ecsv"),
    "detect, at": ("there.fits", "--at", "no.fits", "--output", "out.ecsv"),
    "report": ("there.fits", "--catalog", "no.fits", "--output", "out.html"),
    "inject": ("there.fits", "--sources", "no.fits", "--output", "out.fits"),
    "evaluate": ("there.fits", "no.fits", "--output", "directory"),
}


@pytest.mark.parametrize("what", MISSING)
def test_a_missing_file_is_refused_before_the_imports(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.fits").write_bytes(b"SIMPLE")
    command = what.partition(",")[0]
    told, messages = loaded(run_command(command, *MISSING[what]), *HEAVY)
    assert messages == "whitediff: no.fits: no such file.\n"
    assert told.splitlines() == ["code 1", ""]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("there.fits", "there.fits: exists already; choose another name or allow it to be"),
        ("no/out.fits", "no/out.fits: its directory does not exist; create it first."),
        ("out.fits.gz", "out.fits.gz: outputs are not packed by their name"),
    ],
)
def test_an_output_is_refused_before_the_imports(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.fits").write_bytes(b"SIMPLE")
    told, messages = loaded(
        run_command("subtract", "there.fits", "there.fits", "--output", name), *HEAVY
    )
    assert messages.startswith(f"whitediff: {message}")
    assert told.splitlines() == ["code 1", ""]


@pytest.mark.parametrize(
    ("missing", "arguments", "message"),
    [
        (
            "reproject",
            ("align", "a", "--to", "a", "--method", "adaptive", "--output", "out.fits"),
            "The adaptive method averages with reproject; install it with: pip install"
            " 'whitediff[align]'.",
        ),
        (
            "reproject",
            (
                *("subtract", "a", "a", "--align", "--align-method", "adaptive"),
                "--output",
                "o.fits",
            ),
            "The adaptive method averages with reproject; install it with: pip install"
            " 'whitediff[align]'.",
        ),
        (
            "matplotlib",
            ("check", "a", "--plot", "out.png"),
            "Pictures need matplotlib; install it with: pip install 'whitediff[plot]'.",
        ),
        (
            "PIL",
            ("report", "a", "--output", "out.html"),
            "A report needs Pillow for its pictures; install it with: pip install"
            " 'whitediff[plot]'.",
        ),
        (
            "PIL",
            ("subtract", "a", "a", "--output", "out.fits", "--report", "out.html"),
            "A report needs Pillow for its pictures; install it with: pip install"
            " 'whitediff[plot]'.",
        ),
        (
            "pyarrow",
            ("detect", "a", "--output", "out.parquet"),
            "out.parquet: Parquet needs the package pyarrow, which is not installed; run pip"
            " install 'whitediff[parquet]' or name the catalogue .ecsv or .fits.",
        ),
        (
            "fsspec",
            ("info", "https://example.org/a.fits"),
            "https://example.org/a.fits: remote files are read with fsspec, which is not"
            " installed; install whitediff[remote].",
        ),
        (
            "distributed",
            ("batch", "a.csv", "--output", "directory"),
            "Batches need Dask (distributed is missing); install it with: pip install"
            " 'whitediff[survey]'.",
        ),
        (
            "lsst",
            ("butler", "init", "directory"),
            "This needs Rubin's middleware (lsst.daf.butler is missing); install it with: pip"
            " install 'whitediff[rubin]'.",
        ),
    ],
)
def test_a_missing_extra_is_told_before_the_imports(
    missing, arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(b"SIMPLE")
    told, messages = loaded(f"sys.modules[{missing!r}] = None; {run_command(*arguments)}", *HEAVY)
    assert messages == f"whitediff: {message}\n"
    assert told.splitlines() == ["code 1", ""]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def packages_brought() -> set[str]:
    """Packages that an install without extras brings, itself included.

    Of ours by pyproject.toml, since an editable install may know an older one.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {project["name"]}
    wanted = [Requirement(text) for text in project["dependencies"]]
    while wanted:
        each = wanted.pop()
        name = re.sub(r"[-_.]+", "-", each.name).lower()
        if name in found or not (each.marker is None or each.marker.evaluate({"extra": ""})):
            continue
        assert not each.extras, each
        found.add(name)
        wanted += [Requirement(text) for text in importlib.metadata.requires(name) or ()]
    return found


def test_an_install_brings_few_packages():
    found = packages_brought()
    assert {"whitediff", "numpy", "scipy", "astropy", "sep", "click"} <= found
    assert "reproject" not in found
    assert len(found) <= MOST_PACKAGES, sorted(found)


SOURCE = ROOT / "src" / "whitediff"
BEFORE_ROOMS = ""
"""Modules of the package itself: errors, options, outputs and the like."""


def rooms_in_order():
    """Rooms as CONTRIBUTING lists them, from those that import nothing."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = re.findall(r"^  (\w+)/ ", text, flags=re.MULTILINE)
    assert set(listed) == {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    return [BEFORE_ROOMS, *listed]


def imports(path):
    """What a module imports, anywhere in it: (is it ours, its dotted name).

    Other packages that only hints name, under TYPE_CHECKING, are never loaded.
    """
    package = path.relative_to(SOURCE).parts[:-1]
    tree = ast.parse(path.read_text())
    hints = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hints and not getattr(node, "level", 0):
            continue
        if isinstance(node, ast.Import):
            yield from ((False, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield False, node.module
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1]
            base = [*above, *(node.module or "").split(".")] if node.module else list(above)
            yield from ((True, ".".join([*base, alias.name])) for alias in node.names)


def room(name):
    """Room of a module by its dotted name."""
    first = name.split(".")[0]
    return first if (SOURCE / first).is_dir() else BEFORE_ROOMS


WHOLE = {"api", "__main__", "__init__"}
"""What shows the whole package to those outside of it."""


def test_rooms_import_downwards():
    order = rooms_in_order()
    wrong = []
    for path in SOURCE.rglob("*.py"):
        own = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        if own in WHOLE:
            continue
        for is_ours, name in imports(path):
            if is_ours and order.index(room(name)) > order.index(room(own)):
                wrong.append(f"{own} imports {name}")
    assert not wrong


def test_rooms_before_formats_need_four_packages():
    order = rooms_in_order()
    few = {"numpy", "scipy", "astropy", "sep", "threadpoolctl", *sys.stdlib_module_names}
    further = {"exposures/pictures.py": {"matplotlib"}, "alignment/adaptive.py": {"reproject"}}
    wrong = []
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        if "/" not in name or order.index(name.split("/")[0]) >= order.index("formats"):
            continue
        known = few | further.get(name, set())
        found = {each.split(".")[0] for is_ours, each in imports(path) if not is_ours}
        wrong += [f"{name} imports {each}" for each in found - known]
    assert not wrong
