"""A call of every command that writes files, and the files that it reads."""

from __future__ import annotations

import shutil
from pathlib import Path

from scenes import command

COMMANDS: dict[str, str] = {
    "subtract": "subtract {s} {t} --output {o}/d.fits --score-output {o}/s.fits"
    " --matched-output {o}/m.fits --catalog {o}/c.ecsv --report {o}/r.html",
    "subtract --compress": "subtract {s} {t} --output {o}/d.fits --compress",
    "detect": "detect {d} --score {sc} --output {o}/c.fits --regions {o}/c.reg",
    "detect parquet": "detect {d} --output {o}/c.parquet",
    "report": "report {d} --science {s} --template {t} --output {o}/r.html",
    "decorrelate": "decorrelate {s} {t} {i}/difference.fits {i}/kernel.fits --output {o}/w.fits",
    "decorrelate-stack": "decorrelate-stack {i}/difference.fits --kernel {i}/kernel.fits"
    " --science {s} - --template {t} - --output {o}/w.fits",
    "align": "align {t} --to {s} --output {o}/a.fits",
    "convert": "convert {d} --output {o}/c.fits",
    "convert ccddata": "convert {d} --output {o}/c.fits --format ccddata",
    "convert masked-image": "convert {d} --output {o}/c.fits --format masked-image",
    "inject": "inject {s} --random 5 --output {o}/i.fits --truth {o}/t.ecsv",
    "kernel": "kernel {d} --at 10 10 --at 90 80 --output {o}/k.fits",
    "simulate": "simulate --size 128 --output {o}/sim",
    "evaluate": "evaluate {s} {t} --realizations 2 --output {o}/e",
    "check": "check {d} --json {o}/c.json --plot {o}/c.png",
}


def filled_in(text: str, directory: Path) -> list[str]:
    """Arguments of a call whose inputs and directory for outputs, ``out``, are in a directory."""
    science, template = images(directory)
    return text.format(
        s=science, t=template, i=directory / "in", o=directory / "out",
        d=directory / "d.fits", sc=directory / "s.fits",
    ).split()  # fmt: skip


def images(directory: Path) -> tuple[Path, Path]:
    """Science image and template."""
    return directory / "in/science.fits", directory / "in/template.fits"


def make_products(pair: Path, directory: Path) -> None:
    """Make what some commands read: copies of a pair, their difference and score."""
    shutil.copytree(pair, directory / "in")
    outputs = ("--output", directory / "d.fits", "--score-output", directory / "s.fits")
    code, _, messages = command("subtract", *images(directory), *outputs, "-q")
    assert code == 0, messages
