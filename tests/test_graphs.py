import numpy as np
import pytest
import torch
from ase import Atoms

from mimyria_wf.errors import ModelError
from mimyria_wf.graphs import Graph, graph_of, graphs_of_frames, join

CELL = np.array([[5.0, 0.0, 0.0], [2.3, 4.6, 0.0], [-1.4, 1.9, 4.2]])
NUMBERS = np.array([1, 8, 6] * 5)


def frames(n_frames: int) -> np.ndarray:
    """Return frames of atoms that drift some 1.5 A; every third one is wrapped."""
    rng = np.random.default_rng(5)
    positions = rng.uniform(0, 9, (15, 3)) + np.cumsum(rng.normal(0, 0.1, (n_frames, 15, 3)), axis=0)
    for frame in range(0, n_frames, 3):
        positions[frame] = Atoms(NUMBERS, positions=positions[frame], cell=CELL, pbc=True).get_positions(wrap=True)
    return positions


def table(graph: Graph) -> np.ndarray:
    columns = [graph.receivers[:, None], graph.senders[:, None], graph.vectors]
    rows = torch.cat([c.double() for c in columns], dim=1).numpy().round(5)
    return rows[np.lexsort(rows.T[::-1])]


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frames_together_are_the_frames_one_by_one(periodic: bool, dtype: torch.dtype) -> None:
    positions, pbc = frames(20), np.array([periodic] * 3)
    single = [graph_of(NUMBERS, p, CELL, pbc, [1, 6, 8], 4.0, dtype) for p in positions]
    together = list(graphs_of_frames(NUMBERS, positions, CELL, pbc, [1, 6, 8], 4.0, dtype, frames_at_once=4))
    assert len(together) < 20
    assert all(len(g.species) == 15 * g.n_snapshots for g in together)
    for graph in together:
        assert ((3 * graph.receivers + graph.species[graph.senders]).diff() >= 0).all()
        assert graph.vectors.dtype == dtype
        torch.testing.assert_close(graph.snapshot.bincount(), torch.full((graph.n_snapshots,), 15))
    found, expected = join(together), join(single)
    torch.testing.assert_close(found.species, expected.species)
    assert table(found).shape == table(expected).shape
    np.testing.assert_allclose(table(found), table(expected), atol=2e-5)  # rounded to 1e-5 before sorting


def test_atoms_that_meet_in_a_frame_are_named() -> None:
    positions = frames(1).repeat(5, axis=0)
    positions[3, 7] = positions[3, 2] + [0, 0, 5e-4]
    with pytest.raises(ModelError, match=r"atoms 2 and 7 are 5\.0e-04 A apart"):
        list(graphs_of_frames(NUMBERS, positions, CELL, np.array([True] * 3), [1, 6, 8], 4.0))
