"""Learning curves: R^2 and RMSE of APTs and PGTs against the number of labelled configurations.

    python benchmarks/learning_curves.py --systems methanol water-6 water-8 --presets default paper --seeds 3 -o curves
    python benchmarks/learning_curves.py --labels quartz train.extxyz test.extxyz --targets apt --sizes 5 10 20 50

Each point is a training from scratch on n configurations of the pool: the first n of it in a random order (``random``),
or those that a committee asked for (``committee``: the smallest set is random, every further one adds what the network
of the set before is least certain of). Test snapshots come from other trajectories. R^2 is Eq. 15 of Schienbein (2026),
averaged over components and species; ``spread`` is over seeds, which change weights, order of the snapshots and pool.
Where atoms keep to sites of their own, as in a crystal, differences between sites flatter R^2: the ``site r2`` compares
with the variance of each atom about its own mean. Writes ``curves.csv`` and ``curves.png``, after every point.
"""

import argparse
import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from label_sets import LabelSet, add_arguments, label_sets

from mimyria_wf.irreps import from_irreps
from mimyria_wf.labels import LabelledSnapshot
from mimyria_wf.plots import COLOURS
from mimyria_wf.presets import TARGETS, Target, resolve
from mimyria_wf.selection import select_by_uncertainty
from mimyria_wf.training import train


@dataclass(frozen=True)
class Point:
    """One training."""

    system: str
    target: str
    preset: str
    selection: str
    size: int
    seed: int
    r2: float
    rmse: float
    overall_rmse: float
    site_r2: float
    lowest_species_r2: float
    seconds: float


def site_r2(network: Any, labels: Sequence[LabelledSnapshot]) -> float:
    """Return 1 - sum (error)^2 / sum (deviation of each atom's tensor from its own mean)^2 over all components.

    NaN unless all snapshots hold the same atoms.
    """
    if any(not np.array_equal(s.atoms.numbers, labels[0].atoms.numbers) for s in labels):
        return float("nan")
    predicted = np.stack(
        [from_irreps(network.target, network.components(network.graph(s.atoms))).detach().numpy() for s in labels]
    )
    reference = np.stack([np.asarray(getattr(s, network.target)) for s in labels])
    return float(1 - ((predicted - reference) ** 2).sum() / ((reference - reference.mean(axis=0)) ** 2).sum())


class Pool:
    """The training pool of one curve in the order of one seed, asked for ever larger subsets."""

    def __init__(self, labels: Sequence[LabelledSnapshot], selection: str, seed: int) -> None:
        """Seed 0 keeps the order of the file, others draw one."""
        order = np.arange(len(labels)) if seed == 0 else np.random.default_rng(seed).permutation(len(labels))
        self.rest = [labels[k] for k in order]
        self.chosen: list[LabelledSnapshot] = []
        self.selection = selection

    def first(self, size: int, network: Any) -> list[LabelledSnapshot]:
        """Return size snapshots, those of the last call among them.

        Args:
            size: how many.
            network: trained on the last call's, None in the first call.
        """
        n_new = size - len(self.chosen)
        if self.selection == "random" or network is None:
            new = list(range(n_new))
        else:
            new = list(select_by_uncertainty([network], [s.atoms for s in self.rest], n_new).indices)
        self.chosen += [self.rest[k] for k in new]
        self.rest = [s for k, s in enumerate(self.rest) if k not in set(new)]
        return list(self.chosen)


def curve(
    labels: LabelSet, target: Target, preset: str, selection: str, sizes: Sequence[int], seed: int
) -> Iterator[Point]:
    """Train one network after the other on growing sets."""
    pool, network = Pool(labels.training, selection, seed), None
    for size in sizes:
        if size > len(labels.training):
            return
        training = pool.first(size, network)
        started = time.perf_counter()
        result = train(target, training, labels.test, *resolve(preset, target, {"seed": seed}))
        seconds = time.perf_counter() - started
        network, errors = result.network, result.metrics
        assert errors is not None
        yield Point(
            system=labels.name,
            target=target,
            preset=preset,
            selection=selection,
            size=size,
            seed=seed,
            r2=errors.r2,
            rmse=errors.rmse,
            overall_rmse=errors.overall_rmse,
            site_r2=site_r2(network, labels.test),
            lowest_species_r2=min(s.r2 for s in errors.by_species.values()),
            seconds=seconds,
        )


def write(points: Sequence[Point], folder: Path) -> None:
    """Write the table."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "curves.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Point)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)


def grouped(points: Sequence[Point]) -> dict[tuple[str, str, str, str], dict[int, list[Point]]]:
    """Return the points of each curve by size; curves by system, target, preset and selection."""
    curves: dict[tuple[str, str, str, str], dict[int, list[Point]]] = {}
    for p in points:
        curves.setdefault((p.system, p.target, p.preset, p.selection), {}).setdefault(p.size, []).append(p)
    return curves


def show(points: Sequence[Point]) -> None:
    """Print mean and spread over seeds."""
    print(f"{'system':10s} {'':4s} {'preset':10s} {'chosen':10s} {'n':>5s} {'R^2':>8s} {'spread':>7s}", end="")
    print(f" {'RMSE':>9s} {'site r2':>8s} {'worst':>7s} {'seconds':>8s}")
    for (system, target, preset, selection), sizes in grouped(points).items():
        for size, same in sorted(sizes.items()):
            mean = {key: np.mean([getattr(p, key) for p in same]) for key in ("rmse", "site_r2", "seconds")}
            r2, worst = [p.r2 for p in same], np.mean([p.lowest_species_r2 for p in same])
            spread = np.std(r2, ddof=1) if len(r2) > 1 else np.nan
            print(f"{system:10s} {target:4s} {preset:10s} {selection:10s} {size:5d} {np.mean(r2):8.4f}", end="")
            print(f" {spread:7.4f} {mean['rmse']:9.5f} {mean['site_r2']:8.4f} {worst:7.3f} {mean['seconds']:8.1f}")


def draw(points: Sequence[Point], path: Path) -> None:
    """Draw 1 - R^2 against the number of configurations, a panel for each system and target."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    systems = list(dict.fromkeys(p.system for p in points))
    targets = list(dict.fromkeys(p.target for p in points))
    kinds = list(dict.fromkeys((p.preset, p.selection) for p in points))
    figure = Figure(figsize=(2.6 * len(systems) + 0.6, 2.3 * len(targets) + 0.4), layout="constrained")
    panels = figure.subplots(len(targets), len(systems), squeeze=False, sharex=True)
    for (system, target, preset, selection), sizes in grouped(points).items():
        panel = panels[targets.index(target), systems.index(system)]
        n = np.array(sorted(sizes))
        lacking = [np.array([1 - p.r2 for p in sizes[k]]) for k in n]
        middle = np.array([values.mean() for values in lacking])
        style = "-" if selection == "random" else "--"
        colour = COLOURS[1 + kinds.index((preset, selection)) % (len(COLOURS) - 1)]
        label = preset if selection == "random" else f"{preset}, {selection}"
        panel.loglog(n, middle, style, marker="o", markersize=3, color=colour, label=label)
        panel.fill_between(n, [v.min() for v in lacking], [v.max() for v in lacking], color=colour, alpha=0.2, lw=0)
        panel.set_title(f"{system}, {target.upper()}", fontsize=9)
    counts = sorted({p.size for p in points})
    for panel in panels.flat:
        panel.set_xticks(counts, [str(n) for n in counts])
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_minor_formatter(NullFormatter())
    for panel in panels[-1]:
        panel.set_xlabel("configurations")
    for row in panels:
        row[0].set_ylabel(r"$1 - R^2$")
    panels[0, -1].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=200)


def main() -> None:
    """Train along all curves; print, write and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--presets", nargs="+", default=["default", "paper"])
    parser.add_argument("--selection", nargs="+", choices=("random", "committee"), default=["random"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[5, 10, 20, 40, 80])
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, 0, 1, ...")
    parser.add_argument("--paper-seeds", type=int, default=None, help="fewer for the slow preset")
    parser.add_argument("--paper-sizes", nargs="+", type=int, default=None, help="fewer for the slow preset")
    parser.add_argument("-o", "--output", type=Path, default=Path("learning_curves"))
    chosen = parser.parse_args()
    points: list[Point] = []
    for labels in label_sets(chosen.systems, chosen.directory, chosen.labels):
        for target in chosen.targets:
            for preset in chosen.presets:
                is_paper = preset == "paper"
                n_seeds = chosen.paper_seeds if is_paper and chosen.paper_seeds else chosen.seeds
                sizes = chosen.paper_sizes if is_paper and chosen.paper_sizes else chosen.sizes
                for selection in ["random"] if is_paper else chosen.selection:
                    for seed in range(n_seeds):
                        for point in curve(labels, target, preset, selection, sorted(sizes), seed):
                            points.append(point)
                            write(points, chosen.output)
                            print(*asdict(point).values(), sep="  ", flush=True)
    print()
    show(points)
    draw(points, chosen.output / "curves.png")


if __name__ == "__main__":
    main()
