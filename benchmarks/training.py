"""Wall time of training to a test R^2 of 0.9, 0.95 and 0.98: ``default`` against ``paper`` on the same labels.

    python benchmarks/training.py --systems water-6 --n-training 80 -o training_time

Both presets are trained from scratch with growing budgets, ``default`` with ever more optimizer steps (its whole
schedule squeezed into each), ``paper`` with ever more epochs, up to those of the preset. A budget's time is that of
the training alone, with neighbour lists and all else that the preset asks for, without reading labels or evaluating on
the test labels; one thread, one process. The time to an R^2 is that of the smallest budget which reached it. Since
``paper`` may have got there between two budgets, the ratio given is a lower bound: its largest budget that still failed
over the first of ``default`` that succeeded.
"""

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from label_sets import LabelSet, add_arguments, label_sets

from mimyria_wf.plots import COLOURS
from mimyria_wf.presets import TARGETS, Target, resolve
from mimyria_wf.training import evaluate, train

GOALS = (0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Run:
    """One training with one budget; wall and processor seconds."""

    system: str
    target: str
    preset: str
    budget: int
    seconds: float
    processor: float
    r2: float
    rmse: float


def budgets(preset: str, target: Target, factor: float) -> tuple[str, list[int]]:
    """Return the setting that is varied and its values, the preset's own the last."""
    settings = resolve(preset, target)[1]
    name = "n_steps" if settings.n_steps is not None else "n_epochs"
    last = getattr(settings, name)
    value, values = 1.0 if name == "n_epochs" else 6.0, []
    while value < last / factor**0.5:
        values.append(round(value))
        value *= factor
    return name, [*dict.fromkeys(values), last]


def run(labels: LabelSet, target: Target, preset: str, n_training: int, setting: str, budget: int, seed: int) -> Run:
    """Train once and evaluate."""
    changes = {"seed": seed, setting: budget} | ({"least_epochs": 0} if setting == "n_steps" else {})
    settings = resolve(preset, target, changes)
    wall, processor = time.perf_counter(), time.process_time()
    network = train(target, labels.training[:n_training], (), *settings).network
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    errors, _ = evaluate(network, labels.test)
    return Run(labels.name, target, preset, budget, wall, processor, errors.r2, errors.rmse)


def first(runs: Sequence[Run], goal: float) -> int | None:
    """Return the place of the first run that reached the goal."""
    return next((k for k, r in enumerate(runs) if r.r2 >= goal), None)


def show(fast: Sequence[Run], slow: Sequence[Run], key: str) -> None:
    """Print times to each goal and the lower bound of their ratio."""
    clock: Callable[[Run], float] = lambda run: getattr(run, key)  # noqa: E731
    print(f"\n{fast[0].system} {fast[0].target}, {'wall' if key == 'seconds' else 'processor'} time [s]")
    print(f"{'test R^2':>10s} {fast[0].preset:>12s} {slow[0].preset:>24s} {'ratio':>10s}")
    for goal in GOALS:
        a, b = first(fast, goal), first(slow, goal)
        mine = f"{clock(fast[a]):12.2f}" if a is not None else f"{'not reached':>12s}"
        if b is None:
            bound = max(map(clock, slow))
            theirs = f"> {bound:.1f} (not reached)"
        else:
            bound = max([clock(r) for r in slow[:b]], default=clock(slow[b]))
            theirs = f"{bound:.1f} to {clock(slow[b]):.1f}" if b else f"{bound:.1f}"
        ratio = f"> {bound / clock(fast[a]):.0f}" if a is not None else "-"
        print(f"{goal:10.2f} {mine} {theirs:>24s} {ratio:>10s}")


def write(runs: Sequence[Run], folder: Path) -> None:
    """Write the table."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "training.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Run)])
        writer.writeheader()
        writer.writerows(asdict(run) for run in runs)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw 1 - R^2 against the time of training."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((r.system, r.target) for r in runs))
    figure = Figure(figsize=(2.8 * len(panels) + 0.4, 2.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (system, target) in zip(axes, panels, strict=True):
        here = [r for r in runs if (r.system, r.target) == (system, target)]
        for colour, preset in zip(COLOURS[1:], dict.fromkeys(r.preset for r in here)):
            points = [(r.seconds, 1 - r.r2) for r in here if r.preset == preset]
            axis.loglog(*zip(*points), marker="o", markersize=3, color=colour, label=preset)
        for goal in GOALS:
            axis.axhline(1 - goal, color="#999999", lw=0.6)
        axis.set_title(f"{system}, {target.upper()}", fontsize=9)
        axis.set_xlabel("seconds of training")
    axes[0].set_ylabel(r"$1 - R^2$, test")
    axes[-1].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=200)


def main() -> None:
    """Train with growing budgets until the highest goal is reached; print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--presets", nargs=2, default=["default", "paper"], metavar=("FAST", "SLOW"))
    parser.add_argument("--n-training", type=int, default=80)
    parser.add_argument("--factors", nargs=2, type=float, default=[1.5, 2.0], help="between budgets of FAST and SLOW")
    parser.add_argument("--limit", type=float, default=float("inf"), help="no budget expected to take longer [s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("training_time"))
    chosen = parser.parse_args()
    done: list[Run] = []
    for labels in label_sets(chosen.systems, chosen.directory, chosen.labels):
        for target in chosen.targets:
            pair: list[list[Run]] = []
            for preset, factor in zip(chosen.presets, chosen.factors, strict=True):
                setting, values = budgets(preset, target, factor)
                runs: list[Run] = []
                for value in values:
                    if runs and runs[-1].seconds * value / runs[-1].budget > chosen.limit:
                        break
                    runs.append(run(labels, target, preset, chosen.n_training, setting, value, chosen.seed))
                    r = runs[-1]
                    print(
                        f"{r.system} {target} {preset} {setting} {value}: {r.seconds:.2f} s, R^2 {r.r2:.4f}", flush=True
                    )
                    write([*done, *runs], chosen.output)
                    if r.r2 >= max(GOALS):
                        break
                pair.append(runs)
                done += runs
            for key in ("seconds", "processor"):
                show(pair[0], pair[1], key)
    draw(done, chosen.output / "training.png")


if __name__ == "__main__":
    main()
