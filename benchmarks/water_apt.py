"""APT networks on published DFT labels of liquid water: error against the number of training configurations.

The labels are those of Schienbein (2023), 128 H2O each: ten snapshots for training and ten for the test in one folder,
as ``train10.extxyz`` and ``test10.extxyz``. Settings were chosen with ``--validate`` alone, which trains on the first
five training snapshots and measures on the other five; only without it the test file is read.

    python benchmarks/water_apt.py FOLDER --presets default accurate --frames 1 2 5 10 --seeds 5 -o results.csv

Rows already in the output are kept, so that a run can be continued; ``--figure`` draws what is there.
"""

import argparse
import csv
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np

from mimyria_wf.labels import LabelledSnapshot, read_labels
from mimyria_wf.presets import PRESETS, resolve
from mimyria_wf.training import evaluate, train

PUBLISHED = {5: 0.0424, 10: 0.0324}
"""Root mean square errors of Schienbein (2023) [e] by number of training snapshots."""
FIELDS = ["preset", "frames", "seed", "set", "rmse_e", "r2", "seconds"]


def measure(
    preset: str, training: list[LabelledSnapshot], test: list[LabelledSnapshot], seed: int
) -> dict[str, object]:
    """Train one network and return its errors on the test snapshots."""
    network, settings = resolve(preset, "apt", {"seed": seed})
    started = time.perf_counter()
    report = train("apt", training, (), network, settings)
    seconds = time.perf_counter() - started
    errors, _ = evaluate(report.network, test)
    values = errors.to_dict()
    return {"rmse_e": round(values["overall_rmse"], 5), "r2": round(values["r2"], 5), "seconds": round(seconds, 1)}


def figure(rows: list[dict[str, str]], path: Path) -> None:
    """Draw mean and spread of the error over seeds against the number of training snapshots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = pyplot.figure(figsize=(5, 3.6), layout="constrained").subplots()
    for preset in dict.fromkeys(r["preset"] for r in rows):
        frames = sorted({int(r["frames"]) for r in rows if r["preset"] == preset})
        values = [[float(r["rmse_e"]) for r in rows if r["preset"] == preset and int(r["frames"]) == n] for n in frames]
        axes.errorbar(
            frames, [np.mean(v) for v in values], [np.std(v) for v in values], marker="o", capsize=3, label=preset
        )
    axes.plot(list(PUBLISHED), list(PUBLISHED.values()), "ks", label="published (2023)")
    axes.set(
        xlabel="training snapshots (128 H$_2$O each)", ylabel="test RMSE of the APT [e]", xscale="log", ylim=(0, None)
    )
    axes.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    axes.minorticks_off()
    axes.legend()
    axes.figure.savefig(path, dpi=150)


def main() -> None:
    """Measure what is asked for and not yet in the output; print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--presets", nargs="+", default=["default"], choices=sorted(PRESETS))
    parser.add_argument("--frames", nargs="+", type=int, default=[1, 2, 5, 10])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--validate", action="store_true", help="measure on the last five training snapshots")
    parser.add_argument("-o", "--output", type=Path, default=Path("water_apt.csv"))
    parser.add_argument("--figure", type=Path)
    chosen = parser.parse_args()
    labels = read_labels(chosen.folder / "train10.extxyz", ["apt"])
    test = labels[5:] if chosen.validate else read_labels(chosen.folder / "test10.extxyz", ["apt"])
    name = "validation" if chosen.validate else "test"
    rows: list[dict[str, str]] = []
    if chosen.output.exists():
        with open(chosen.output, newline="") as file:
            rows = list(csv.DictReader(file))
    known = {(r["preset"], r["frames"], r["seed"], r["set"]) for r in rows}
    for seed in range(chosen.seeds):
        for frames in chosen.frames:
            if chosen.validate and frames > 5:
                raise SystemExit("--validate trains on five snapshots at most")
            for preset in chosen.presets:
                if (preset, str(frames), str(seed), name) in known:
                    continue
                row = {"preset": preset, "frames": frames, "seed": seed, "set": name}
                row |= measure(preset, labels[:frames], test, seed)
                rows.append({k: str(v) for k, v in row.items()})
                print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)
                with open(chosen.output, "w", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    writer.writeheader()
                    writer.writerows(rows)
    rows = [r for r in rows if r["set"] == name]
    print("\npreset     snapshots  RMSE [e] mean  spread  seeds  seconds")
    for preset in dict.fromkeys(r["preset"] for r in rows):
        for frames in sorted({int(r["frames"]) for r in rows if r["preset"] == preset}):
            own = [r for r in rows if r["preset"] == preset and int(r["frames"]) == frames]
            errors = [float(r["rmse_e"]) for r in own]
            seconds = np.mean([float(r["seconds"]) for r in own])
            figures = f"{np.mean(errors):13.4f}  {np.std(errors):6.4f}  {len(own):5d}  {seconds:7.0f}"
            print(f"{preset:10s} {frames:9d}  {figures}")
    if chosen.figure:
        figure(rows, chosen.figure)


if __name__ == "__main__":
    main()
