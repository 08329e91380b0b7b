"""Table and plot of what was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from .cases import BASELINES, FLOOR, STAGES

__all__ = ["plot", "table"]


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: seconds, FFT pairs, how many times faster than the baseline, peak memory."""
    lines = []
    for run in runs:
        measured = run["measured"]
        pair = measured[FLOOR]["seconds"]
        plane = math.prod(run["shape"]) * 4 / (1 << 20)
        lines += [
            f"### {run['shape'][0]} × {run['shape'][1]}, {run['threads']} thread(s)",
            "",
            "| what | s | FFT pairs | × faster than literal | peak above inputs, float32 planes |",
            "|---|---|---|---|---|",
        ]
        for name, values in measured.items():
            seconds, peak = values.get("seconds"), values.get("peak_mib")
            if seconds is None:
                continue
            literal = measured.get(BASELINES.get(name, ""), {}).get("seconds")
            cells = [
                f"subtract: {name}" if name in STAGES else name,
                f"{seconds:.3g}",
                f"{seconds / pair:.1f}",
                "" if literal is None else f"{literal / seconds:.1f}",
                "" if peak is None else f"{peak / plane:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Time against size, for the largest number of threads."""
    threads = max(run["threads"] for run in runs)
    chosen = [run for run in runs if run["threads"] == threads]
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    axes.set_prop_cycle(color=plt.colormaps["tab20"].colors)
    names = [name for name in chosen[0]["measured"] if name not in STAGES and name != "process"]
    for name in names:
        points = [
            (math.sqrt(math.prod(run["shape"])), run["measured"][name]["seconds"])
            for run in chosen
            if name in run["measured"]
        ]
        style = {"ls": "--" if name.startswith("literal") else "-"}
        if name == FLOOR:
            style |= {"color": "black", "lw": 2.5}
        if name.startswith(("read", "write")):
            style |= {"ls": ":"}
        axes.plot(*zip(*points, strict=True), marker="o", ms=4, label=name, **style)
    sides = sorted({round(math.sqrt(math.prod(run["shape"]))) for run in chosen})
    axes.set(
        xscale="log", yscale="log", xlabel="side, pixels", ylabel="seconds",
        title=f"{threads} thread(s)",
    )  # fmt: skip
    axes.set_xticks(sides, [str(side) for side in sides])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
