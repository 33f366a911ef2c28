import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list

from mimyria_wf.errors import ModelError
from mimyria_wf.neighbours import neighbour_list, stretches

TRICLINIC = [[5.0, 0.0, 0.0], [2.3, 4.6, 0.0], [-1.4, 1.9, 4.2]]


def edges(receivers: np.ndarray, senders: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    table = np.column_stack([receivers, senders, np.round(vectors, 8) + 0.0])
    return table[np.lexsort(table.T[::-1])]


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        (np.zeros((3, 3)), [False] * 3),
        (np.diag([5.0, 5.0, 5.0]), [True] * 3),  # 6 A reaches several images
        (TRICLINIC, [True] * 3),
        (TRICLINIC, [True, True, False]),
        ([[5.0, 0, 0], [0, 0, 0], [0, 0, 0]], [True, False, False]),
    ],
)
def test_agrees_with_ase(cell: np.ndarray, pbc: list[bool]) -> None:
    rng = np.random.default_rng(0)
    positions = rng.uniform(-7, 7, size=(12, 3))  # unwrapped, as an MD gives them
    pairs = neighbour_list(positions, np.array(cell, dtype=float), np.array(pbc), 6.0)
    atoms = Atoms("H12", positions=positions, cell=cell, pbc=pbc)
    i, j, vectors = neighbor_list("ijD", atoms, 6.0)
    np.testing.assert_allclose(
        edges(pairs.receivers, pairs.senders, pairs.vectors(positions)), edges(i, j, vectors), atol=1e-7
    )  # vectors are rounded to 1e-8 before sorting


def test_count_in_a_simple_cubic_lattice() -> None:
    # Shells of 6, 12 and 8 neighbours at 1, sqrt 2 and sqrt 3 lattice constants, from one atom's own images.
    for cutoff, count in ((2.1, 6), (2.9, 18), (3.5, 26)):
        pairs = neighbour_list(np.zeros((1, 3)), 2.0 * np.eye(3), np.array([True] * 3), cutoff)
        assert len(pairs.senders) == count


def test_isolated_atom_has_no_neighbours() -> None:
    assert len(neighbour_list(np.zeros((1, 3)), np.zeros((3, 3)), np.array([False] * 3), 4.0).senders) == 0


def test_order_is_fixed() -> None:
    positions = np.random.default_rng(1).uniform(0, 5, size=(20, 3))
    pairs = neighbour_list(positions, 5 * np.eye(3), np.array([True] * 3), 4.0)
    assert (np.diff(pairs.receivers) >= 0).all()


@pytest.mark.parametrize(
    ("positions", "cell", "pbc", "cutoff", "message"),
    [
        (np.zeros((1, 3)), np.eye(3), True, 0.0, "cutoff must be positive"),
        (np.zeros((1, 3)), np.zeros((3, 3)), True, 4.0, "zero length"),
        (np.zeros((1, 3)), np.ones((3, 3)), True, 4.0, "linearly dependent"),
        (np.zeros((2, 3)), np.zeros((3, 3)), False, 4.0, "atoms 0 and 1"),
    ],
)
def test_refusals(positions: np.ndarray, cell: np.ndarray, pbc: bool, cutoff: float, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        neighbour_list(positions, cell, pbc, cutoff)


def random_walk(pbc: bool | list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Return frames whose atoms drift some 2 A and are wrapped in every third, and the cell."""
    rng = np.random.default_rng(5)
    cell = np.array(TRICLINIC)
    positions = rng.uniform(0, 9, (14, 3)) + np.cumsum(rng.normal(0, 0.1, (40, 14, 3)), axis=0)
    for frame in range(0, 40, 3):
        positions[frame] = Atoms("H14", positions=positions[frame], cell=cell, pbc=pbc).get_positions(wrap=True)
    return positions, cell


@pytest.mark.parametrize("pbc", [[True] * 3, [True, False, True], [False] * 3])
def test_shared_lists_hold_the_pairs_of_every_frame(pbc: list[bool]) -> None:
    positions, cell = random_walk(pbc)
    seen = []
    n_lists = 0
    for stretch in stretches(positions, cell, pbc, 4.0, largest_skin=1.5):
        n_lists += 1
        for k, frame in enumerate(range(stretch.frames.start, stretch.frames.stop)):
            seen.append(frame)
            moved = stretch.displacements[k]
            vectors = stretch.vectors + moved[stretch.senders] - moved[stretch.receivers]
            kept = np.linalg.norm(vectors, axis=1) < 4.0
            expected = neighbour_list(positions[frame], cell, pbc, 4.0)
            np.testing.assert_array_equal(stretch.receivers[kept], np.sort(stretch.receivers[kept]))
            np.testing.assert_allclose(
                edges(stretch.receivers[kept], stretch.senders[kept], vectors[kept]),
                edges(expected.receivers, expected.senders, expected.vectors(positions[frame])),
                atol=1e-7,  # as above
            )
    assert seen == list(range(40))
    assert 1 < n_lists < 30


def test_order_of_atoms_that_drifted_far() -> None:
    """Shifts of a billion cells do not fit one integer a pair."""
    positions = np.random.default_rng(1).uniform(0, 5, size=(20, 3))
    cell = 5 * np.eye(3)
    near = neighbour_list(positions, cell, True, 4.0)
    positions[::2] += 5 * 2.0**21 * np.array([1.0, -1.0, 1.0])
    far = neighbour_list(positions, cell, True, 4.0)
    np.testing.assert_array_equal(far.receivers, near.receivers)
    np.testing.assert_array_equal(far.senders, near.senders)
