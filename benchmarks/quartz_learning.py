"""Networks for alpha-quartz, learned from published density functional perturbation theory.

    python benchmarks/quartz_learning.py ../shared/data/sio2_md_dfpt_vasp

The data (TheoFEM-TUM/MD-Raman; Egger, Grumet and Bucko 2025) are 10 ps of nine atoms at 300 K, every 10 fs with Born
charges and a dielectric tensor. Training frames come from the first 6 ps, test frames from the last 3 ps.

APT: Born charges of n frames, :func:`mimyria_wf.training.train` as it is.

PGT: nobody has computed atomic PGTs, but the polarizability of the cell is known, alpha = (epsilon - 1) V / (4 pi).
The PGTs are its gradient, so its difference between two frames is their integral along any path; along the straight
one, by the midpoint rule,

    alpha(b) - alpha(a) = sum_i Q_i((r_a + r_b)/2) . (r_b - r_a) + O(|r_b - r_a|^3):

six numbers a pair to fit a network to, without velocities. The tensors are then judged as they will be used: times
velocities, as Raman spectra of the last 3 ps against those of the dielectric series itself.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from mimyria_wf.derivatives import DerivativeSeries
from mimyria_wf.graphs import Graph, join
from mimyria_wf.irreps import from_irreps
from mimyria_wf.labels import LabelledSnapshot
from mimyria_wf.network import build_network
from mimyria_wf.presets import TrainingSettings, resolve
from mimyria_wf.property_series import PropertySeries, differentiate
from mimyria_wf.response_network import ResponseNetwork
from mimyria_wf.spectrum import SpectrumSettings, raman_spectrum, spectral_distance
from mimyria_wf.training import train
from mimyria_wf.units import BOHR
from mimyria_wf.vasp_output import polarizability_of_dielectric

Array = NDArray[Any]

STEP = 10.0  # between tensors [fs]
TEMPERATURE = 298.8  # mean kinetic temperature of the run [K]
TRAINING, TEST = range(600), range(700, 1000)  # frames
N_TEST_FRAMES = 60
VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))


@dataclass(frozen=True)
class Quartz:
    """The published data, (n_frames, n_atoms, ...)."""

    numbers: Array
    cell: Array
    positions: Array
    velocities: Array
    apt: Array
    dielectric: Array

    @property
    def volume(self) -> float:
        """Volume of the cell [A^3]."""
        return float(np.linalg.det(self.cell))

    @property
    def polarizability(self) -> Array:
        """(n_frames, 3, 3) [e^2 a0^2/E_h]."""
        return polarizability_of_dielectric(self.dielectric, self.volume)

    def atoms(self, positions: Array) -> Atoms:
        """Return a configuration."""
        return Atoms(self.numbers, positions, cell=self.cell, pbc=True)


def read(folder: Path) -> Quartz:
    """Read the arrays; VASP's Born charges have fields as rows, its dielectric tensor is symmetric up to round-off."""
    with np.load(folder / "mdraman_bec_eps.npz") as file:
        apt, dielectric = file["Z"].transpose(0, 1, 3, 2), file["eps"]
        symmetric = 0.5 * (dielectric + dielectric.transpose(0, 2, 1))
        return Quartz(file["numbers"], file["cell"], file["pos"], file["vel"], apt, symmetric)


@dataclass(frozen=True)
class Pairs:
    """Pairs of frames: the graphs of their midpoints, what the atoms move, and how the polarizability changes.

    Attributes:
        graphs: of the midpoints.
        displacements: (n, n_atoms, 3) [a0].
        differences: (n, 3, 3) [e^2 a0^2/E_h].
    """

    graphs: list[Graph]
    displacements: torch.Tensor
    differences: torch.Tensor


def pairs(data: Quartz, network: ResponseNetwork, starts: Array) -> Pairs:
    """Return the pairs of each frame with the next."""
    a = np.asarray(starts)
    before, after, alpha = data.positions[a], data.positions[a + 1], data.polarizability
    return Pairs(
        [network.graph(data.atoms(middle)) for middle in (before + after) / 2],
        torch.tensor((after - before) / BOHR, dtype=network.dtype),
        torch.tensor(alpha[a + 1] - alpha[a], dtype=network.dtype),
    )


def changes(network: ResponseNetwork, chosen: Pairs, indices: Sequence[int]) -> torch.Tensor:
    """Return sum_i Q_i . displacement_i of some pairs, (n, 3, 3) [e^2 a0^2/E_h]."""
    tensors = network(join([chosen.graphs[i] for i in indices])).view(len(indices), -1, 3, 3, 3)
    return torch.einsum("saijk,sai->sjk", tensors, chosen.displacements[list(indices)])


def fit(data: Quartz, starts: Array, seed: int) -> ResponseNetwork:
    """Fit the default PGT network to differences of the polarizability, with the default recipe of training."""
    architecture, recipe = resolve("default", "pgt")
    species = sorted(set(data.numbers.tolist()))
    network = build_network(architecture, species, "pgt", seed=seed)
    labels = pairs(data, network, starts)
    network.adapt(labels.graphs)
    labels = replace(labels, graphs=network.prepare(labels.graphs))
    # Independent tensors of this size would give differences as large as those seen.
    power = labels.displacements.pow(2).sum((1, 2)).mean()
    network.scale.fill_(float((labels.differences.pow(2).mean() / power).sqrt()))
    descend(network, labels, recipe, seed)
    return network.eval()


def descend(network: ResponseNetwork, labels: Pairs, recipe: TrainingSettings, seed: int) -> None:
    """Minimise the mean square error of the changes; leaves the averaged weights in the network."""
    parameters: list[torch.Tensor] = list(network.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    n = len(labels.graphs)
    size = max(1, min(recipe.batch_atoms // len(labels.displacements[0]), n // 3))
    n_steps = recipe.n_steps or 0
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, n_steps + 1, pct_start=0.1)
    random, order = np.random.default_rng(seed), np.empty(0, dtype=int)
    for step in range(n_steps):
        if len(order) < size:
            order = np.concatenate([order, random.permutation(n)])
        batch, order = order[:size].tolist(), order[size:]
        loss = (changes(network, labels, batch) - labels.differences[batch]).pow(2).mean()
        optimizer.zero_grad()
        (loss / labels.differences.pow(2).mean()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - min(recipe.ema_decay, (1 + step) / (10 + step)))
    with torch.no_grad():
        for parameter, value in zip(parameters, average, strict=True):
            parameter.copy_(value)


def tensors(network: ResponseNetwork, data: Quartz, frames: Array) -> Array:
    """Return the tensors of whole frames, (n_frames, n_atoms, ...)."""
    with torch.no_grad():
        parts = [network.components(network.graph(data.atoms(data.positions[k]))) for k in frames]
    return from_irreps(network.target, torch.stack(parts)).numpy().astype(float)


def r2(prediction: Array, reference: Array, mean: Array | float = 0.0) -> float:
    """Return 1 - sum of square errors / sum of squares of the reference about a mean."""
    return float(1 - ((prediction - reference) ** 2).sum() / ((reference - mean) ** 2).sum())


def raman_distance(network: ResponseNetwork, data: Quartz) -> dict[str, float]:
    """Return the distances (Eq. 16) of Raman spectra of the test frames, tensors times velocities, from the series'."""
    frames = np.array(TEST)
    rate = np.einsum("taijk,tai->tjk", tensors(network, data, frames), data.velocities[frames] / BOHR)
    options: dict[str, Any] = {"timestep": STEP, "temperature": TEMPERATURE, "volume": data.volume, "is_periodic": True}
    predicted = DerivativeSeries("predicted", polarizability_derivative=rate[:, None, *VOIGT], **options)
    series = PropertySeries("polarizability", data.polarizability[frames][:, *VOIGT])
    settings = SpectrumSettings(window_length=500.0, upper_wavenumber=1600.0)
    a, b = (raman_spectrum([run], settings) for run in (predicted, differentiate(series, **options)))
    return {k: spectral_distance(a.wavenumber, a.weighted[k], b.weighted[k], 50, 1600) for k in ("iso", "vv", "vh")}


def apt_row(data: Quartz, n: int, preset: str, seed: int) -> str:
    """Train on Born charges of n frames of the first 6 ps and test on the last 3 ps."""
    test = np.linspace(TEST.start, TEST.stop - 1, N_TEST_FRAMES).astype(int)
    chosen = np.random.default_rng(seed).choice(TRAINING, n, replace=False)
    labels = [LabelledSnapshot(data.atoms(data.positions[k]), apt=data.apt[k]) for k in (*chosen, *test)]
    result = train("apt", labels[:n], labels[n:], *resolve(preset, "apt", {"seed": seed}))
    assert result.metrics is not None
    of_sites = r2(tensors(result.network, data, test), data.apt[test], data.apt[test].mean(axis=0))
    return f"{result.metrics.r2:9.5f} {of_sites:13.4f} {result.metrics.overall_rmse:9.4f}"


def pgt_row(data: Quartz, n: int, seed: int) -> str:
    """Train on n differences from the first 6 ps and test on the last 3 ps."""
    chosen = np.random.default_rng(seed).choice(TRAINING.stop - 1, n, replace=False)
    network = fit(data, chosen, seed)
    labels = pairs(data, network, np.array(TEST[:-1]))
    with torch.no_grad():
        predicted = changes(network, labels, range(len(labels.graphs))).numpy()
    reference = labels.differences.numpy()
    trace, of_trace = (np.einsum("sii->s", x) for x in (predicted, reference))
    distances = raman_distance(network, data)
    return f"{r2(predicted, reference):9.4f} {r2(trace, of_trace):9.4f}" + "".join(
        f" {value:9.4f}" for value in distances.values()
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", nargs="+", type=int, default=[2, 5, 10, 20, 50, 100])
    parser.add_argument("--presets", nargs="+", default=["default"], help="for APTs")
    parser.add_argument("--targets", nargs="+", choices=("apt", "pgt"), default=["apt", "pgt"])
    parser.add_argument("--seeds", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = read(chosen.folder)
    runs = [(n, seed) for n in chosen.sizes for seed in range(chosen.seeds)]
    if "apt" in chosen.targets:
        print(
            "APT from Born charges of n frames: R^2 (Eq. 15), R^2 against the variance about each site's mean, RMSE [e]"
        )
        for preset in chosen.presets:
            for n, seed in runs:
                print(f"{preset:8s} {n:5d} seed {seed} {apt_row(data, n, preset, seed)}", flush=True)
    if "pgt" in chosen.targets:
        print("PGT from n differences of the polarizability over 10 fs: R^2 of such differences, of their traces;")
        print("distance of iso, VV, VH Raman spectra (times w^2) from those of the dielectric series")
        for n, seed in runs:
            print(f"default  {n:5d} seed {seed} {pgt_row(data, n, seed)}", flush=True)


if __name__ == "__main__":
    main()
