"""What pre-training on tblite's cluster labels saves in DFT labels: APTs of liquid water, 128 H2O a snapshot.

The first snapshots of ``train10.extxyz`` train, the last five measure; ``test10.extxyz`` is not read. The cheap labels
are GFN2-xTB clusters of the first five snapshots and of copies of them in which every molecule is shaken, so that
nothing of the measuring snapshots is seen. For comparison, the network alone, and networks of the difference to cheap
labels that are scaled by one factor for each species and block; these need cheap labels of every frame that is
predicted, some seconds each.

    python benchmarks/pretraining.py FOLDER --frames 1 2 5 --copies 2 -o pretraining.csv

The cheap labels are kept beside the output and not computed again.
"""

import argparse
import csv
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import ase
import numpy as np
from scipy.spatial.transform import Rotation

from mimyria_wf.cluster_labels import label_clusters
from mimyria_wf.irreps import blocks, from_irreps, to_irreps
from mimyria_wf.labels import LabelledSnapshot, read_labels, write_labels
from mimyria_wf.presets import resolve
from mimyria_wf.response_network import ResponseNetwork
from mimyria_wf.tblite_engine import TbliteEngine
from mimyria_wf.training import evaluate, train

FIELDS = ["method", "frames", "rmse_e", "seconds"]


def shaken(atoms: ase.Atoms, random: np.random.Generator) -> ase.Atoms:
    """Return a copy in which each water molecule is moved, turned and stretched at random (0.1 A, 7 degrees, 3 %)."""
    copy = atoms.copy()
    hydrogens = np.flatnonzero(atoms.numbers == 1)
    for oxygen in np.flatnonzero(atoms.numbers == 8):
        vectors = atoms.get_distances(oxygen, hydrogens, mic=True, vector=True)
        own = np.argsort(np.linalg.norm(vectors, axis=1))[:2]
        turn = Rotation.from_rotvec(random.normal(0, np.radians(7), 3)).as_matrix()
        arms = vectors[own] @ turn.T * random.normal(1, 0.02, (2, 1)) + random.normal(0, 0.02, (2, 3))
        copy.positions[oxygen] += random.normal(0, 0.1, 3)
        copy.positions[hydrogens[own]] = copy.positions[oxygen] + arms
    return copy


def cheap_labels(
    snapshots: list[ase.Atoms], path: Path, radius: float, processes: int
) -> tuple[list[LabelledSnapshot], float]:
    """Return labels of clusters, from the file if it is there, and the seconds a snapshot took."""
    started = time.perf_counter()
    if not path.exists():
        engine = TbliteEngine(accuracy=0.1)  # 5e-6 e, far below what the cluster leaves out
        labels = label_clusters(engine, snapshots, ["apt"], 1e-3, radius, processes=processes)
        write_labels(path, labels, {"level_of_theory": "GFN2-xTB clusters"})
    return read_labels(path, ["apt"]), (time.perf_counter() - started) / len(snapshots)


def scaled(cheap: list[LabelledSnapshot], good: list[LabelledSnapshot], n_fit: int) -> list[np.ndarray]:
    """Return cheap APTs times a factor for each species and block, with an offset for l = 0, fitted to n_fit labels."""
    numbers = [s.atoms.numbers for s in good]
    x, y = ([to_irreps("apt", s.apt) for s in part] for part in (cheap, good))
    result = [np.zeros_like(one) for one in x]
    for species in np.unique(np.concatenate(numbers)):
        for block in blocks("apt"):
            columns = slice(block.start, block.stop)
            a, b = (
                np.concatenate([one[n == species, columns] for one, n in zip(part[:n_fit], numbers)]) for part in (x, y)
            )
            mean_a, mean_b = (a.mean(), b.mean()) if block.l == 0 else (0.0, 0.0)
            factor = ((a - mean_a) * (b - mean_b)).sum() / ((a - mean_a) ** 2).sum()
            for one, out, n in zip(x, result, numbers):
                out[n == species, columns] = mean_b + factor * (one[n == species, columns] - mean_a)
    return [from_irreps("apt", one) for one in result]


def main() -> None:
    """Measure every method at every number of snapshots; print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--frames", nargs="+", type=int, default=[1, 2, 5])
    parser.add_argument("--copies", type=int, default=2, help="shaken copies of each of the first five snapshots")
    parser.add_argument("--radius", type=float, default=3.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[1e-2, 3e-3], help="learning rates after pre-training"
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--difference", action="store_true", help="learn the difference to cheap labels as well")
    parser.add_argument("-o", "--output", type=Path, default=Path("pretraining.csv"))
    chosen = parser.parse_args()
    labels = read_labels(chosen.folder / "train10.extxyz", ["apt"])
    network, settings = resolve(chosen.preset, "apt", {"seed": chosen.seed})
    random = np.random.default_rng(chosen.seed)
    copies = [shaken(one.atoms, random) for _ in range(chosen.copies) for one in labels[:5]]
    path = chosen.output.with_suffix("")
    first, seconds = cheap_labels(
        [s.atoms for s in labels[:5]], Path(f"{path}-first.extxyz"), chosen.radius, chosen.processes
    )
    more = cheap_labels(copies, Path(f"{path}-copies.extxyz"), chosen.radius, chosen.processes)[0] if copies else []
    print(f"cheap labels: {len(first) + len(more)} snapshots, {seconds:.1f} s each")
    rows: list[dict[str, object]] = []

    def fit(
        method: str,
        training: list[LabelledSnapshot],
        test: list[LabelledSnapshot],
        start: ResponseNetwork | None = None,
        rate: float = settings.learning_rate,
    ) -> ResponseNetwork:
        began = time.perf_counter()
        trained = train("apt", training, (), network, replace(settings, learning_rate=rate), start).network
        error = evaluate(trained, test)[0].overall_rmse
        rows.append(
            {
                "method": method,
                "frames": len(training),
                "rmse_e": round(error, 5),
                "seconds": round(time.perf_counter() - began, 1),
            }
        )
        print("{method:28s} {frames:3d} snapshots  {rmse_e:.4f} e  {seconds:7.1f} s".format(**rows[-1]), flush=True)
        return trained

    pretrained = fit("pre-training alone", [*first, *more], labels[5:])
    rest = (
        cheap_labels([s.atoms for s in labels[5:]], Path(f"{path}-rest.extxyz"), chosen.radius, chosen.processes)[0]
        if chosen.difference
        else []
    )
    for n in chosen.frames:
        fit("plain", labels[:n], labels[5:])
        for rate in chosen.rates:
            fit(f"pre-trained, then {rate:g}", labels[:n], labels[5:], pretrained, rate)
        if rest:
            base = scaled([*first, *rest], labels, n)
            left = [LabelledSnapshot(s.atoms, apt=s.apt - b) for s, b in zip(labels, base)]
            print(f"scaled cheap labels alone: {np.sqrt(np.mean([s.apt**2 for s in left[5:]])):.4f} e")
            fit("difference to cheap labels", left[:n], left[5:])
    with open(chosen.output, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
