"""What is special to networks on species densities."""

import numpy as np
import pytest
import torch
from ase import Atoms

from mimyria_wf.density_network import DensityNetwork
from mimyria_wf.network import build_network
from mimyria_wf.presets import DensitySettings

SETTINGS = DensitySettings(l_max=2, n_channels=4, n_radial=5, n_bond=4, n_message_channels=4, n_hidden=8)


def chloride(distance: float) -> Atoms:
    """Return HCl...OH-like contacts: Cl at a distance from the H of a water molecule."""
    return Atoms("ClHOH", positions=[[0, 0, 0], [distance, 0, 0], [distance + 0.96, 0, 0], [distance + 1.2, 0.93, 0]])


def adapted(distances: np.ndarray) -> DensityNetwork:
    network = build_network(SETTINGS, [1, 8, 17], "apt", dtype=torch.float64)
    assert isinstance(network, DensityNetwork)
    network.adapt([network.graph(chloride(d)) for d in distances])
    return network


def test_contacts_rare_in_training_do_not_count_by_their_rarity() -> None:
    # A pair counts as bonded, in part, below 1.55 sums of covalent radii: 2.06 A for H and Cl.
    network = adapted(np.concatenate([np.linspace(2.1, 2.6, 40), [2.05]]))
    largest = max(float(network.environment(network.graph(chloride(d))).densities.abs().max()) for d in (1.9, 1.7, 1.5))
    assert largest < 30


def test_what_training_never_shows_has_no_weight() -> None:
    network = adapted(np.linspace(2.4, 2.6, 10))
    graph = network.graph(chloride(1.6))
    densities = network.environment(graph).densities
    of_sender = SETTINGS.n_radial + SETTINGS.n_bond
    chlorine = network.species.index(17)
    bonded = slice(chlorine * of_sender + SETTINGS.n_radial, (chlorine + 1) * of_sender)
    hydrogen = network.species.index(1)
    assert float(densities[graph.species == hydrogen].abs().sum()) > 0
    for matrix in network.embedding.matrices:
        own = matrix.get_parameter("own")[hydrogen].detach()
        assert float(own[bonded].abs().max()) == 0
        assert float(own.abs().max()) > 0


@pytest.mark.parametrize(("first", "second", "contact"), [("Cl", "H", 2.06), ("Si", "O", 2.6), ("Cs", "I", 4.0)])
def test_tensors_are_smooth_where_bonds_and_cutoffs_end(first: str, second: str, contact: float) -> None:
    atoms = Atoms([first, second, "H"])
    network = build_network(SETTINGS, sorted(set(atoms.numbers)), "apt", dtype=torch.float64)
    with torch.no_grad():
        for k, parameter in enumerate(network.parameters()):
            generator = torch.Generator().manual_seed(k)
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1)

    def tensors(distance: float) -> np.ndarray:
        atoms.positions = [[0, 0, 0], [distance, 0, 0], [0, 1.1, 0.4]]
        return network(network.graph(atoms)).detach().numpy()

    for place in (contact, SETTINGS.message_cutoff, SETTINGS.cutoff):
        step = 1e-4
        values = [tensors(place + k * step) for k in (-2, -1, 0, 1, 2)]
        changes = np.abs(np.diff(values, axis=0)).max(axis=(1, 2, 3))
        assert changes.max() < 100 * step
        # no jump: each step's change is like its neighbours'
        assert changes.max() < 3 * changes.min() + 1e-7
