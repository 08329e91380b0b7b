"""``python -m benchmarks.survey``: what batches cost, and how long surveys would take."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from whitediff.surveys.batch import ClusterOptions, connected, work_through
from whitediff.surveys.journal import Record
from whitediff.surveys.manifest import Item
from whitediff.surveys.work import Order

from . import scenes
from .planning import Cost, simulate

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "WHITEDIFF_NUM_THREADS")}

UNPACKING = 2.0
"""Seconds to unpack a 4k exposure (GZIP_2)."""


def nothing(order: Order) -> Record:
    """The smallest item that there is."""
    return {"item": order.item.name, "outcome": "done"}


def overhead(items: int, workers: int) -> dict[str, float]:
    """Seconds that the engine takes for each of many items in which nothing is done."""
    orders = [
        Order(item=Item(f"visit{i}/detector{i % 189}", "/data/science.fits", "/data/t.fits", {}))
        for i in range(items)
    ]
    with connected(ClusterOptions(workers=workers)) as client:
        work_through(client, orders[:100], lambda order, record: None, nothing)
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        work_through(client, orders, lambda order, record: None, nothing)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    # Client and scheduler live in this process.
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds / items, "scheduler_cpu": cpu / items}


def batch(
    manifest: Path, output: Path, workers: int, *options: str
) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of a batch in all, and its records."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "whitediff", "batch", manifest, "--output", output, "-q"]
    start = time.perf_counter()
    subprocess.run(
        [*map(str, command), "--workers", str(workers), *options],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - start
    return seconds, [json.loads(line) for line in (output / "batch.jsonl").open()]


def pairs(shape: tuple[int, int], number: int, directory: Path) -> dict[str, Any]:
    """A few large pairs: by the command one by one, and as batches on one and two workers."""
    files = scenes.files(shape, directory)
    rows = "".join(f"{files[0].resolve()},{files[1].resolve()},n{i}\n" for i in range(number))
    manifest = directory / "pairs.csv"
    manifest.write_text("science,template,name\n" + rows)
    single = []
    for i in range(number):
        output = directory / f"single{i}.fits"
        output.unlink(missing_ok=True)
        command = [sys.executable, "-m", "whitediff", "subtract", *files, "--output", output]
        start = time.perf_counter()
        subprocess.run([*map(str, command), "-q"], check=True, env=os.environ | ONE_THREAD)
        single.append(time.perf_counter() - start)
    results: dict[str, Any] = {"shape": shape, "single": single, "batches": {}}
    for workers in (1, 2):
        seconds, records = batch(manifest, directory / "out", workers)
        # From the first item's start to the end of the last: without starting workers.
        span = max(ended(r) for r in records) - min(started(r) for r in records)
        results["batches"][workers] = {
            "seconds": seconds,
            "span": span,
            "items": [r["seconds"]["total"] for r in records],
            "cpu": [r["cpu_seconds"] for r in records],
            "stages": {
                stage: statistics.median(r["seconds"].get(stage, 0.0) for r in records)
                for stage in records[0]["seconds"]
            },
            "peak": max(r["memory"]["peak"] for r in records),
            "read": sum(path.stat().st_size for path in files),
            "written": records[0]["outputs"]["difference"]["size"],
        }
    return results


def started(record: dict[str, Any]) -> float:
    """Time at which an item was begun."""
    from datetime import datetime

    return datetime.fromisoformat(record["started"]).timestamp()


def ended(record: dict[str, Any]) -> float:
    """Time at which it was done."""
    return started(record) + record["seconds"]["total"]


def memory(items: int, directory: Path) -> dict[str, Any]:
    """Memory of the workers over many small items."""
    files = scenes.files((512, 512), directory)
    manifest = directory / "many.csv"
    rows = "".join(f"{files[0].resolve()},{files[1].resolve()},m{i}\n" for i in range(items))
    manifest.write_text("science,template,name\n" + rows)
    seconds, records = batch(manifest, directory / "many", 2, "--kernel-order", "0")
    by_worker: dict[int, list[float]] = {}
    for record in sorted(records, key=started):
        by_worker.setdefault(record["process"], []).append(record["memory"]["resident"] / 1e6)
    slopes = {}
    for worker, values in by_worker.items():
        late = np.array(values[len(values) // 3 :])
        slopes[worker] = {
            "first": values[0],
            "tenth": values[min(9, len(values) - 1)],
            "last": values[-1],
            "largest": max(values),
            "slope_per_100": float(np.polyfit(np.arange(len(late)), late, 1)[0] * 100),
            "items": len(values),
        }
    return {"seconds": seconds, "workers": list(slopes.values())}


def pipelines(shape: tuple[int, int], directory: Path) -> dict[str, Any]:
    """A large pair through each pipeline: one process, and what its tasks say of themselves."""
    from lsst.daf.butler import Butler

    files = [path.resolve() for path in scenes.files(shape, directory)]
    manifest, repo = directory / "butler.csv", directory / "repo"
    manifest.write_text(f"science,template,visit\n{files[0]},{files[1]},1\n")
    run = [sys.executable, "-m", "whitediff", "butler"]
    subprocess.run([*run, "init", str(repo), "-q"], check=True)
    subprocess.run([*run, "ingest", str(repo), str(manifest), "-q"], check=True)
    results: dict[str, Any] = {}
    tasks = {
        "difference": ["subtract"],
        "score": ["score"],
        "steps": ["subtract", "decorrelate", "detect"],
        "sources": ["subtract", "score", "detect"],
        "recreate": ["recreate"],
    }
    for name, labels in tasks.items():
        inputs = "difference,pairs" if name == "recreate" else "pairs"
        arguments = [*run, "run", str(repo), "--pipeline", name, "--input", inputs, "-q"]
        start = time.perf_counter()
        process = subprocess.Popen([*arguments, "--output", name], env=os.environ | ONE_THREAD)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"The pipeline {name} failed.")
        results[name] = {
            "seconds": time.perf_counter() - start,
            "cpu": usage.ru_utime + usage.ru_stime,
            "peak": usage.ru_maxrss * 1024,
            "tasks": {},
        }
        with Butler.from_config(str(repo), collections=name) as butler:
            for label in labels:
                data_id = {"instrument": "Generic", "visit": 1, "detector": 0}
                quantum = butler.get(f"{label}_metadata", data_id)["quantum"]
                cpu = quantum["endCpuTime"] - quantum["prepCpuTime"]
                results[name]["tasks"][label] = cpu
    return results


def plans(cost: Cost) -> list[dict[str, Any]]:
    """What surveys would take, with planes as they are and with packed ones."""
    surveys = {"Rubin night": 1000 * 189, "full sky, 10 visits of each field": 3_780_000}
    # Packed without loss a plane has half its size, and takes some seconds; of the three files of
    # a pair two are read, and of the third only its solution is kept.
    packed = {"seconds": cost.seconds + 2 * UNPACKING, "megabytes": cost.megabytes / 3}
    files = {
        "planes as they are, 5 GB/s": dataclasses.replace(cost, storage=5e3),
        "planes as they are, 50 GB/s": dataclasses.replace(cost, storage=5e4),
        "packed, only solutions, 5 GB/s": dataclasses.replace(cost, storage=5e3, **packed),
    }
    rows = []
    for (kind, each), (name, items) in itertools.product(files.items(), surveys.items()):
        for workers in (10, 100, 1000):
            plan = simulate(items, workers, each)
            what = {"files": kind, "survey": name, "items": items, "workers": workers}
            rows.append(what | vars(plan) | {"hours": plan.seconds / 3600})
    return rows


def main() -> None:
    """Measure what is asked for, and print and keep it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.survey", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmark-output"))
    parser.add_argument("--pairs", type=int, default=4, help="number of large pairs; 0 for none")
    parser.add_argument("--size", default="4000x4072")
    parser.add_argument(
        "--pipelines", action="store_true", help="also measure Butler's pipelines on a large pair"
    )
    parser.add_argument("--tiny", type=int, default=2000, help="number of empty items")
    parser.add_argument("--many", type=int, default=300, help="number of small items")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()}
    }
    with tempfile.TemporaryDirectory(dir=options.output, prefix=".survey-") as place:
        directory = Path(place)
        if options.tiny:
            results["overhead"] = {n: overhead(options.tiny, n) for n in (1, 2)}
            print(json.dumps(results["overhead"], indent=1))
        if options.pairs:
            shape = tuple(int(n) for n in options.size.split("x"))
            results["pairs"] = pairs((shape[0], shape[-1]), options.pairs, directory)
            print(json.dumps(results["pairs"], indent=1))
        if options.pipelines:
            shape = tuple(int(n) for n in options.size.split("x"))
            results["pipelines"] = pipelines((shape[0], shape[-1]), directory)
            print(json.dumps(results["pipelines"], indent=1))
        if options.many:
            results["memory"] = memory(options.many, directory)
            print(json.dumps(results["memory"], indent=1))
    if "overhead" in results and "pairs" in results:
        measured = results["pairs"]["batches"][2]
        cost = Cost(
            seconds=statistics.mean(measured["items"]),
            dispatch=results["overhead"][2]["scheduler_cpu"],
            megabytes=(measured["read"] + measured["written"]) / 1e6,
        )
        results["cost"], results["plans"] = vars(cost), plans(cost)
        print(json.dumps([results["cost"], results["plans"]], indent=1))
    (options.output / "survey.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
