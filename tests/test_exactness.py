"""What must hold for every network, whatever its weights: symmetries, cells of any shape, and systems side by side."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.neighborlist import neighbor_list
from scipy.spatial.transform import Rotation

from mimyria_wf.graphs import Graph, graphs_of_frames, species_index
from mimyria_wf.irreps import from_irreps
from mimyria_wf.network import build_network
from mimyria_wf.prediction import predict_tensors
from mimyria_wf.presets import DensitySettings, MessagePassingSettings, NetworkSettings, SimpleSettings
from mimyria_wf.response_network import ResponseNetwork

SPECIES = [1, 6, 8]
KINDS: dict[str, NetworkSettings] = {
    "density": DensitySettings(l_max=3, n_channels=6, n_radial=5, n_bond=2, n_message_channels=4, n_hidden=8),
    "message-passing": MessagePassingSettings(multiplicities=(4, 3, 2), n_layers=1, n_radial=6, radial_hidden=(8,)),
    "simple": SimpleSettings(n_channels=4, cutoff=4.0),
}
TRICLINIC = np.array([[5.0, 0.0, 0.0], [2.3, 4.6, 0.0], [-1.4, 1.9, 4.2]])


def network(kind: str, target: str, dtype: torch.dtype = torch.float64) -> ResponseNetwork:
    result = build_network(KINDS[kind], SPECIES, target, n_neighbours=12.0, seed=3, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in result.parameters():  # some are zero before training
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.1)
    return result.eval()


CASES = [(kind, target) for kind in KINDS for target in ("apt", "pgt") if (kind, target) != ("simple", "pgt")]


def liquid(n_molecules: int, length: float, seed: int = 0) -> Atoms:
    """Return molecules of three species on a lattice, turned at random."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(n_molecules ** (1 / 3)))
    atoms = Atoms(cell=[length] * 3, pbc=True)
    for k in range(n_molecules):
        one = molecule("CH3OH" if k % 4 == 0 else "H2O")
        one.positions = one.positions @ Rotation.random(random_state=rng).as_matrix().T
        place = (np.array([k // side**2, k // side % side, k % side]) + 0.5) * length / side
        one.translate(place + rng.uniform(-0.2, 0.2, 3) - one.positions.mean(0))
        atoms += one
    return atoms


SYSTEMS = {
    "triclinic": Atoms("OH2CHO", scaled_positions=np.random.default_rng(4).random((6, 3)), cell=TRICLINIC, pbc=True),
    "5 A box": Atoms("OH2CHO", scaled_positions=np.random.default_rng(2).random((6, 3)), cell=[5.0] * 3, pbc=True),
    "slab": Atoms("OH2C", positions=np.random.default_rng(6).uniform(0, 6, (4, 3)), cell=TRICLINIC, pbc=[1, 1, 0]),
    "cluster": Atoms("OH2CHO", positions=np.random.default_rng(5).uniform(0, 6, (6, 3))),
    "liquid": liquid(27, 9.5),
}


def direct(net: ResponseNetwork, atoms: Atoms) -> np.ndarray:
    """Return the tensors from ASE's list of neighbours, found without cells, lists or frames that are shared."""
    receivers, senders, vectors = neighbor_list("ijD", atoms, net.cutoff)
    order = np.argsort(receivers, kind="stable")
    graph = Graph(
        species=torch.from_numpy(species_index(atoms.numbers, net.species)),
        senders=torch.from_numpy(senders[order]),
        receivers=torch.from_numpy(receivers[order]),
        vectors=torch.from_numpy(vectors[order]).to(net.dtype),
        snapshot=torch.zeros(len(atoms), dtype=torch.int64),
        n_snapshots=1,
    )
    with torch.no_grad():
        return from_irreps(net.target, net.components(graph).double()).numpy()


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("kind", "target"), CASES)
def test_cells(kind: str, target: str, system: str) -> None:
    """Frames of a trajectory that share lists, wrapped or not, give what ASE's neighbours of each frame give."""
    net, atoms = network(kind, target), SYSTEMS[system]
    rng = np.random.default_rng(1)
    frames = []
    for _ in range(4):
        atoms = atoms.copy()
        atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
        frames.append(atoms)
    frames[2].positions[:] = frames[2].get_positions(wrap=True)
    positions = np.array([f.positions for f in frames])
    found = []
    for graph in graphs_of_frames(
        atoms.numbers, positions, atoms.cell.array, atoms.pbc, net.species, net.cutoff, net.dtype, frames_at_once=3
    ):
        with torch.no_grad():
            found.append(from_irreps(net.target, net.components(graph)).numpy())
    expected = np.concatenate([direct(net, f) for f in frames])
    assert np.ptp(expected) > 1e-2
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-11 * np.abs(expected).max())


@pytest.mark.slow
def test_20000_atoms() -> None:
    net, atoms = network("density", "apt", torch.float32), liquid(5600, 56.0)
    assert len(atoms) >= 20_000
    found = predict_tensors(net, [atoms])[0]
    expected = direct(net, atoms)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())  # single precision


@pytest.mark.parametrize(("kind", "target"), CASES)
def test_symmetries(kind: str, target: str) -> None:
    net, atoms = network(kind, target), SYSTEMS["triclinic"]
    (original,) = predict_tensors(net, [atoms])
    tolerance = 1e-10 * np.abs(original).max()
    order = np.random.default_rng(0).permutation(len(atoms))
    np.testing.assert_allclose(predict_tensors(net, [atoms[order]])[0], original[order], atol=tolerance)
    turn = Rotation.random(random_state=7).as_matrix()
    indices = "abc"[: original.ndim - 1]
    for matrix in (turn, -turn, np.diag([1.0, -1.0, 1.0])):  # a rotation, and two that are improper
        moved = atoms.copy()
        moved.set_cell(atoms.cell.array @ matrix.T)
        moved.positions = atoms.positions @ matrix.T
        expected = np.einsum(
            f"n{indices}," + ",".join(f"{i.upper()}{i}" for i in indices) + f"->n{indices.upper()}",
            original,
            *[matrix] * len(indices),
        )
        np.testing.assert_allclose(predict_tensors(net, [moved])[0], expected, atol=tolerance)
    shifted = atoms.copy()
    shifted.positions += [3.1, -12.0, 0.7]
    np.testing.assert_allclose(predict_tensors(net, [shifted])[0], original, atol=tolerance)


@pytest.mark.parametrize(("kind", "target"), CASES)
def test_two_far_systems_are_each_alone(kind: str, target: str) -> None:
    net = network(kind, target)
    first, second = SYSTEMS["cluster"].copy(), molecule("CH3OH")
    alone = np.concatenate(predict_tensors(net, [first, second]))
    for cell, pbc in ((None, False), ([60.0, 50.0, 50.0], True)):
        both = first + second
        both.positions[len(first) :] += [30.0, 0.0, 0.0]
        both.cell, both.pbc = cell, pbc
        np.testing.assert_allclose(predict_tensors(net, [both])[0], alone, atol=1e-12 * np.abs(alone).max())
