"""NVE runs one after the other with ASE, one after the other with torch-sim, and all in one batch.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py
    OMP_NUM_THREADS=1 python benchmarks/sampling.py --model mimyria_wf.torchsim_models:mace \\
        --arguments '{"model": "water.model"}' --device cuda

Water of several sizes, the same starts and the same potential each way; by default flexible SPC water, which needs no
trained network. The three ways take turns, and the best of each counts, so that a machine that is busy at times does
not favour one. Beside the times stands the largest distance between an atom of the batch and the same atom in ASE's
run at the end of the last turn.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ase
import ase.build
import ase.units
import numpy as np

from mimyria_wf.md import NveSettings, maxwell_boltzmann, run_nve
from mimyria_wf.torchsim_engine import run_nve_batch
from mimyria_wf.torchsim_models import TorchSimCalculator, make_model
from mimyria_wf.trajectory import open_trajectory


def water(n_molecules: int, seed: int, is_periodic: bool) -> ase.Atoms:
    """Return molecules on a lattice of the density of water, turned at random, with velocities of 300 K."""
    rng = np.random.default_rng(seed)
    n_edge = int(np.ceil(n_molecules ** (1 / 3)))
    atoms = ase.Atoms(cell=np.eye(3) * 3.107 * n_edge, pbc=True)
    for place in list(np.ndindex(n_edge, n_edge, n_edge))[:n_molecules]:
        molecule = ase.build.molecule("H2O")
        molecule.rotate(rng.uniform(0, 360), rng.normal(size=3))
        molecule.translate(np.array(place) * 3.107)
        atoms += molecule
    if not is_periodic:
        atoms.pbc, atoms.cell = False, None
    atoms.set_velocities(maxwell_boltzmann(atoms.get_masses(), 300, rng) / ase.units.fs)
    return atoms


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mimyria_wf.flexible_water:flexible_water")
    parser.add_argument("--arguments", type=json.loads, default={})
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--molecules", type=int, nargs="+", default=[6, 27, 64])
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    chosen = parser.parse_args()

    print(f"{chosen.model}, {chosen.starts} starts, {chosen.steps} steps; milliseconds for one step of one run")
    print(f"{'water':>12s} {'ASE':>8s} {'one by one':>11s} {'batch':>8s} {'ASE/batch':>10s} {'distance [A]':>13s}")
    for n_molecules in chosen.molecules:
        is_periodic = n_molecules >= 27
        starts = [water(n_molecules, seed, is_periodic) for seed in range(chosen.starts)]
        arguments = dict(chosen.arguments)
        if "flexible_water" in chosen.model and is_periodic:
            arguments = {"cutoff": min(9.0, 0.499 * starts[0].cell[0, 0]), **arguments}
        calculator = {"import": chosen.model, "arguments": arguments}
        settings = NveSettings(timestep=0.5, n_steps=chosen.steps + 1, stride=10)
        with tempfile.TemporaryDirectory() as folder:
            times = _race(Path(folder), starts, calculator, settings, chosen)
            distance = max(
                float(np.abs(a.positions - b.positions).max())
                for a, b in (
                    (_last(Path(folder) / f"ase-{i}.h5"), _last(Path(folder) / f"batch-{i}.h5"))
                    for i in range(len(starts))
                )
            )
        ase_time, single, batch = (1e3 * t / (chosen.starts * chosen.steps) for t in times)
        name = f"{n_molecules} H2O" + (" pbc" if is_periodic else "")
        print(f"{name:>12s} {ase_time:8.2f} {single:11.2f} {batch:8.2f} {ase_time / batch:10.2f} {distance:13.1e}")


def _race(
    folder: Path, starts: list[ase.Atoms], calculator: dict, settings: NveSettings, chosen: argparse.Namespace
) -> list[float]:
    options = {"device": chosen.device, "dtype": chosen.dtype}

    def with_ase() -> None:
        built = TorchSimCalculator(make_model(calculator["import"], calculator["arguments"], **options))
        for i, start in enumerate(starts):
            run_nve(start, built, settings, folder / f"ase-{i}.h5")

    def batched(name: str, size: int | None) -> None:
        paths = {folder / f"{name}-{i}.h5": start for i, start in enumerate(starts)}
        run_nve_batch(paths, calculator, settings, batch_size=size, **options)

    ways: list[Callable[[], None]] = [with_ase, lambda: batched("single", 1), lambda: batched("batch", None)]
    best = [np.inf] * len(ways)
    for _ in range(chosen.turns):
        for k, way in enumerate(ways):
            for path in folder.iterdir():
                if k == 0:
                    path.unlink()
            began = time.perf_counter()
            way()
            best[k] = min(best[k], time.perf_counter() - began)
    return best


def _last(path: Path) -> ase.Atoms:
    reader = open_trajectory(path)
    return reader.atoms(reader.n_frames - 1)


if __name__ == "__main__":
    main()
