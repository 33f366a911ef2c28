"""Speed of prediction: presets against each other, one core and two, and how time and memory grow.

    OMP_NUM_THREADS=1 python benchmarks/prediction.py speed -o prediction_speed
    OMP_NUM_THREADS=1 python benchmarks/prediction.py scaling -o scaling --figure docs/figures/prediction_scaling.png

``speed``: milliseconds a frame from trajectory file to derivatives file (reading, neighbours, networks, sum rules,
contraction, writing), every frame predicted, for boxes of 64 and 128 H2O and APT, PGT and both. All cases run in turn,
several rounds; the best of each counts, in wall time and in processor time, which a busy machine disturbs less. Models
are those given with ``--models`` (files ``<preset>_<target>.pt``), or are trained in passing on tblite labels of small
clusters: what the weights are makes no difference to time. Single precision is held against double precision with the
same weights: root mean square of the difference over that of the tensors.

``scaling``: APTs of the preset ``default``, time and peak memory of processes of their own, for 24 atoms and 1e3 to
1e5 frames and for one to eight frames of 1e2 to 1e5 atoms. Points that are in the folder already are not run again.
"""

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import torch
from numpy.typing import NDArray

from mimyria_wf.finite_field import field_vectors, response_tensors
from mimyria_wf.graphs import join
from mimyria_wf.h5md_writer import TrajectoryWriter
from mimyria_wf.irreps import from_irreps
from mimyria_wf.labels import LabelledSnapshot
from mimyria_wf.network import load_model, save_model
from mimyria_wf.prediction import predict_derivatives
from mimyria_wf.prediction_chunks import Workers, start_workers
from mimyria_wf.presets import TARGETS, resolve
from mimyria_wf.response_network import ResponseNetwork
from mimyria_wf.tblite_engine import TbliteEngine
from mimyria_wf.training import train
from mimyria_wf.trajectory import open_trajectory

Array = NDArray[Any]
TIMESTEP = 0.5
SIZES = {64: (1, 1, 1), 128: (2, 1, 1)}
CASES: dict[str, tuple[str, torch.dtype, int]] = {
    "paper float64": ("paper", torch.float64, 2),
    "paper float32": ("paper", torch.float32, 2),
    "default": ("default", torch.float32, 32),
    "accurate": ("accurate", torch.float32, 16),
}
"""Preset, precision and number of frames."""
FRAMES = (1000, 3000, 10_000, 30_000, 100_000)
BOXES = ((1, 1, 1), (2, 2, 1), (3, 3, 2), (5, 4, 4), (6, 6, 5), (8, 8, 8))
"""Replicas of 64 H2O: 192 to 98,304 atoms."""


def structure(name: str) -> ase.Atoms:
    """Return a structure of the templates."""
    with (files("mimyria_wf") / "templates" / "campaigns" / name).open() as file:
        atoms = ase.io.read(file, format="extxyz")
    assert isinstance(atoms, ase.Atoms)
    return atoms


def write_swinging(path: Path, atoms: ase.Atoms, n_frames: int) -> None:
    """Write a trajectory whose atoms swing about their places at 300 K, each with a frequency of its own."""
    rng = np.random.default_rng(1)
    shape = (len(atoms), 3)
    frequencies = rng.uniform(0.02, 0.6, shape)  # up to 3200 cm^-1
    speeds = np.sqrt(2 * 0.02585 / (atoms.get_masses() * 103.6427))[:, None]  # k_B T = 0.02585 eV; u A^2/fs^2 in eV
    amplitudes, phases = speeds / frequencies.clip(0.1), rng.uniform(0, 2 * np.pi, shape)
    cell = atoms.cell.array if atoms.pbc.any() else None
    with TrajectoryWriter(path, atoms.numbers, TIMESTEP, cell=cell, masses=atoms.get_masses()) as writer:
        for frame in range(n_frames):
            argument = frequencies * TIMESTEP * frame + phases
            velocities = amplitudes * frequencies * np.cos(argument)
            writer.append(atoms.positions + amplitudes * np.sin(argument), velocities - velocities.mean(axis=0))


def quick_labels(n: int = 12) -> list[LabelledSnapshot]:
    """Return labelled clusters of eight H2O."""
    atoms, vectors = structure("water_8.extxyz"), np.array(list(field_vectors(1e-3, TARGETS).values()))
    atoms.set_pbc(False)
    engine, rng = TbliteEngine(), np.random.default_rng(0)
    labels = []
    for _ in range(n):
        moved = atoms.copy()
        moved.positions += rng.normal(0, 0.04, atoms.positions.shape)
        tensors = response_tensors(vectors, engine.forces(moved, vectors))
        labels.append(LabelledSnapshot(moved, tensors.apt, tensors.pgt))
    return labels


def models_of(folder: Path, presets: list[str]) -> dict[tuple[str, str], ResponseNetwork]:
    """Return the models by preset and target; train those that the folder lacks."""
    labels: list[LabelledSnapshot] = []
    found: dict[tuple[str, str], ResponseNetwork] = {}
    for preset, target in product(presets, TARGETS):
        path = folder / f"{preset}_{target}.pt"
        if not path.is_file():
            labels = labels or quick_labels()
            network, training = resolve(preset, target, {"n_steps": 12 if preset == "paper" else 60})
            save_model(train(target, labels, network_settings=network, settings=training).network, path)
        found[preset, target] = load_model(path)
    return found


def best_of(runs: dict[str, Callable[[], int]], n_rounds: int) -> dict[str, dict[str, float]]:
    """Return the least milliseconds a frame, wall and processor, of calls that return a number of frames."""
    best = {name: {"wall": np.inf, "processor": np.inf} for name in runs}
    for _ in range(n_rounds):
        for name, run in runs.items():
            wall, processor = time.perf_counter(), time.process_time()
            n_frames = run()
            spent = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
            best[name] = {kind: min(best[name][kind], 1e3 * spent[kind] / n_frames) for kind in spent}
    return best


def precision_error(network: ResponseNetwork, atoms: ase.Atoms) -> float:
    """Return the error of single precision over the root mean square of the tensors."""
    tensors = []
    for dtype in (torch.float32, torch.float64):
        same = copy.deepcopy(network).to(torch.float32).to(dtype)
        with torch.inference_mode():
            tensors.append(from_irreps(network.target, same.components(join([same.graph(atoms)])).double()))
    return float((tensors[0] - tensors[1]).square().mean().sqrt() / tensors[1].square().mean().sqrt())


def speed(out: Path, given: Path | None, n_rounds: int, sizes: list[int], threads: int) -> dict[str, Any]:
    """Time all cases; see the module's text."""
    models = models_of(given or out, ["paper", "default", "accurate"])
    water = structure("water_64.extxyz")
    result: dict[str, Any] = {"milliseconds_a_frame": {}, "ratio_to_paper_float64": {}, "threads": {}}
    with tempfile.TemporaryDirectory() as folder:
        for size, wanted in product(sizes, (("apt",), ("pgt",), ("apt", "pgt"))):
            name = f"{size} H2O, {' and '.join(wanted)}"
            runs: dict[str, Callable[[], int]] = {}
            for case, (preset, dtype, n_frames) in CASES.items():
                path = Path(folder) / f"{size}_{n_frames}.h5"
                if not path.exists():
                    write_swinging(path, water * SIZES[size], n_frames)
                networks = {t: copy.deepcopy(models[preset, t]).to(dtype) for t in wanted}
                runs[case] = predicting(networks, path, Path(folder))
            best = best_of(runs, n_rounds)
            result["threads"][name] = gain_of_workers(
                {t: models["default", t] for t in wanted}, water * SIZES[size], Path(folder), n_rounds, threads
            )
            result["milliseconds_a_frame"][name] = best
            reference = best["paper float64"]
            result["ratio_to_paper_float64"][name] = {
                case: {kind: reference[kind] / spent[kind] for kind in spent} for case, spent in best.items()
            }
            print(json.dumps({name: {case: round(spent["processor"], 2) for case, spent in best.items()}}), flush=True)
    result["error_of_float32"] = {
        f"{preset} {target}": precision_error(network, water) for (preset, target), network in models.items()
    }
    return result


def gain_of_workers(
    networks: dict[str, ResponseNetwork], atoms: ase.Atoms, folder: Path, n_rounds: int, n_workers: int
) -> float:
    """Return the wall time of one core over that of several, their start left aside: a long run pays it once."""
    path = folder / f"long_{len(atoms)}.h5"
    if not path.exists():
        write_swinging(path, atoms, 960)  # the last chunks, which one worker may do alone, count little
    with start_workers(networks, n_workers, n_nodes=10**9, device="cpu") as workers:
        runs = {"one": predicting(networks, path, folder), "several": predicting(networks, path, folder, workers)}
        best = best_of(runs, n_rounds)
    return best["one"]["wall"] / best["several"]["wall"]


def predicting(
    networks: dict[str, ResponseNetwork], path: Path, folder: Path, workers: Workers | None = None
) -> Callable[[], int]:
    """Return a call that predicts a whole trajectory and says how many frames it has."""

    def run() -> int:
        reader = open_trajectory(path)
        predict_derivatives(networks, reader, folder / "out.h5", stride=1, volume=1000.0, workers=workers)
        return reader.n_frames

    return run


def measure_point(model: Path, kind: str, value: int) -> dict[str, Any]:
    """Predict one trajectory in this process; return its size, seconds and peak memory."""
    if kind == "frames":
        atoms, n_frames = structure("water_8.extxyz"), value
    else:
        atoms = structure("water_64.extxyz") * BOXES[value]
        n_frames = max(1, min(8, 20_000 // len(atoms)))
    network = load_model(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        write_swinging(path, atoms, n_frames)
        run = predicting({network.target: network}, path, Path(folder))
        before = time.process_time()
        run()
        seconds = time.process_time() - before
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"n_atoms": len(atoms), "n_frames": n_frames, "seconds": seconds, "memory": memory}


def scaling(out: Path, given: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Measure all points that the folder lacks, each in a process of its own."""
    folder = given or out
    models_of(folder, ["default"])
    points = [("frames", n) for n in FRAMES] + [("atoms", k) for k in range(len(BOXES))]
    result: dict[str, list[dict[str, Any]]] = {"frames": [], "atoms": []}
    for kind, value in points:
        path = out / f"{kind}_{value}.json"
        if not path.exists():
            command = [sys.executable, __file__, "point", kind, str(value), "--models", str(folder)]
            path.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        result[kind].append(json.loads(path.read_text()))
        print(kind, result[kind][-1], flush=True)
    return result


def draw(points: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw time and peak memory against frames and atoms."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(7.5, 5.2), layout="constrained")
    columns = (("frames", "n_frames", "frames of 24 atoms"), ("atoms", "n_atoms", "atoms in a frame"))
    for column, (kind, key, label) in enumerate(columns):
        size = np.array([point[key] for point in points[kind]], dtype=float)
        seconds = np.array([p["seconds"] / (1 if kind == "frames" else p["n_frames"]) for p in points[kind]])
        memory = np.array([point["memory"] for point in points[kind]])
        axes[0, column].loglog(size, seconds, "o-")
        axes[0, column].loglog(size, seconds[-1] * size / size[-1], ":", color="grey", label="linear")
        axes[0, column].set_ylabel("processor time [s]" if kind == "frames" else "processor time a frame [s]")
        axes[0, column].legend(frameon=False)
        axes[1, column].loglog(size, memory, "o-")
        axes[1, column].set_ylabel("peak memory [MiB]")
        axes[1, column].set_xlabel(label)
        axes[1, column].set_ylim(100, 2 * max(1000.0, memory.max()))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "scaling", "point"))
    parser.add_argument("values", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, default=Path("prediction_benchmark"), help="folder for results")
    parser.add_argument("--models", type=Path, help="folder with <preset>_<target>.pt; the output folder by default")
    parser.add_argument("--rounds", type=int, default=3, help="speed: the best of so many counts")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), choices=SIZES, help="speed: H2O in a box")
    parser.add_argument("--threads", type=int, default=2, help="speed: workers to hold against one")
    parser.add_argument("--figure", type=Path, help="scaling: picture to draw")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.part == "point":
        kind, value = chosen.values
        print(json.dumps(measure_point(chosen.models / "default_apt.pt", kind, int(value))))
        return
    chosen.output.mkdir(parents=True, exist_ok=True)
    if chosen.part == "speed":
        result: Any = speed(chosen.output, chosen.models, chosen.rounds, chosen.sizes, chosen.threads)
    else:
        result = scaling(chosen.output, chosen.models)
        draw(result, chosen.figure or chosen.output / "prediction_scaling.png")
    (chosen.output / f"{chosen.part}.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
