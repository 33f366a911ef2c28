"""Label sets for the learning benchmarks: methanol and water clusters with GFN2-xTB, made with the package's own verbs.

    python benchmarks/label_sets.py methanol water-6 water-8 -o label_sets

writes ``NAME/training.extxyz`` and ``NAME/test.extxyz`` with APTs and PGTs; what is there already is kept. One core
needs half a minute (methanol) to three (water-8). The snapshots come from twelve NVE trajectories whose starts one NVT
run gave; two of the twelve are set aside for the test.
"""

import argparse
import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import ase.build
import ase.io
import numpy as np
from ase import Atoms
from ase.optimize import BFGS
from tblite.ase import TBLite

from mimyria_wf.cli import main as mimyria_wf
from mimyria_wf.labels import LabelledSnapshot, read_labels

CALCULATOR = '{"method": "GFN2-xTB", "accuracy": 0.2, "verbosity": 0}'
TEMPERATURES = {"methanol": 300, "water": 220}  # small water clusters fall apart at room temperature [K]
N_TRAJECTORIES = 12
BOX = Path(__file__).resolve().parents[1] / "templates" / "campaigns" / "water_64.extxyz"


@dataclass(frozen=True)
class LabelSet:
    """Labels of one system: a nested training pool, and test snapshots of other trajectories."""

    name: str
    training: list[LabelledSnapshot]
    test: list[LabelledSnapshot]


def structure(name: str) -> Atoms:
    """Return a relaxed methanol, or for ``water-N`` the N molecules about the middle of a box of water, relaxed."""
    if name == "methanol":
        atoms = ase.build.molecule("CH3OH")
    else:
        box = ase.io.read(BOX)
        assert isinstance(box, Atoms)
        middle = np.argmin(np.linalg.norm(box.positions - box.cell.lengths() / 2, axis=1) + 99 * (box.numbers != 8))
        vectors = box.get_distances(middle, range(len(box)), mic=True, vector=True)
        nearest = np.argsort(np.linalg.norm(vectors[::3], axis=1))[: int(name.removeprefix("water-"))]
        atoms = Atoms()
        for oxygen in 3 * nearest:  # the box lists O, H, H of each molecule
            arms = box.get_distances(oxygen, [oxygen, oxygen + 1, oxygen + 2], mic=True, vector=True)
            atoms += Atoms("OHH", vectors[oxygen] + arms)
    atoms.calc = TBLite(method="GFN2-xTB", accuracy=0.2, verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=500)
    return Atoms(atoms.numbers, atoms.positions)


def run(*arguments: str | int | Path) -> None:
    """Run a verb of the command line; stop if it fails."""
    with contextlib.redirect_stdout(io.StringIO()):
        status = mimyria_wf([str(argument) for argument in (*arguments, "--quiet")])
    if status != 0:
        raise SystemExit(f"failed: mimyria-wf {' '.join(map(str, arguments))}")


def make(name: str, folder: Path, n_training: int = 400, n_test: int = 100) -> None:
    """Write the training and test labels of a system unless they are there."""
    if (folder / "training.extxyz").exists() and (folder / "test.extxyz").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    ase.io.write(folder / "start.xyz", structure(name))
    potential = ("--calculator", "tblite.ase.TBLite", "--arguments", CALCULATOR, "--timestep-fs", "0.5")
    thermostat = ("--temperature-K", TEMPERATURES[name.partition("-")[0]], "--friction-per-ps", 10, "--seed", 1)
    lengths = ("--length-ps", 14, "--equilibration-ps", 2, "--stride", 20, "--n-starts", N_TRAJECTORIES)
    run("md", "nvt", folder / "start.xyz", *potential, *thermostat, *lengths, "-o", folder / "nvt")
    free = ("--length-ps", 1, "--stride", 2, "--remove-rotation")
    run("md", "nve", folder / "nvt" / "starts.extxyz", *potential, *free, "-o", folder / "nve")
    sizes = ("--n-training", n_training, "--n-test", n_test, "--seed", 1)
    run("select", *sorted((folder / "nve").glob("*.h5")), *sizes, "-o", folder / "snapshots")
    for part in ("training", "test"):
        snapshots = folder / "snapshots" / f"{part}.extxyz"
        run("label", snapshots, "--targets", "apt", "pgt", "-o", folder / f"{part}.extxyz")


def read(name: str, folder: Path) -> LabelSet:
    """Return the labels of a folder."""
    return LabelSet(name, read_labels(folder / "training.extxyz"), read_labels(folder / "test.extxyz"))


def label_sets(systems: list[str], directory: Path, given: list[list[str]]) -> list[LabelSet]:
    """Return generated and given label sets.

    Args:
        systems: names for :func:`make`.
        directory: where their folders are or will be.
        given: name, training file and test file of each further set.
    """
    for name in systems:
        make(name, directory / name)
    sets = [read(name, directory / name) for name in systems]
    return sets + [LabelSet(n, read_labels(training), read_labels(test)) for n, training, test in given]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name label sets."""
    parser.add_argument("--systems", nargs="*", default=[], help="methanol, water-6, water-8, ...: made with tblite")
    parser.add_argument("--directory", type=Path, default=Path("label_sets"), help="where these are kept")
    parser.add_argument(
        "--labels",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "TRAINING", "TEST"),
        help="further label files; --systems may be left out then",
    )


if __name__ == "__main__":
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("systems", nargs="+")
    command.add_argument("-o", "--output", type=Path, default=Path("label_sets"))
    chosen = command.parse_args()
    for system in chosen.systems:
        make(system, chosen.output / system)
        found = read(system, chosen.output / system)
        print(f"{system}: {len(found.training)} training and {len(found.test)} test snapshots")
