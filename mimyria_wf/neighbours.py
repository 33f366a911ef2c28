"""Neighbour lists for any cell: clusters, slabs, triclinic boxes, cutoffs beyond half the box."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import vesin
from ase.geometry import complete_cell

from mimyria_wf.errors import ModelError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class NeighbourList:
    """Directed pairs within a cutoff, each pair in both directions, an atom's own images included.

    Attributes:
        senders: (n_edges,) index of the neighbour j.
        receivers: (n_edges,) index of the centre i.
        shifts: (n_edges, 3) lattice vector S added to the neighbour's position [A].
    """

    senders: Array
    receivers: Array
    shifts: Array

    def vectors(self, positions: Array) -> Array:
        """Return r_j + S - r_i (n_edges, 3) from the centre to the neighbour [A]."""
        return positions[self.senders] + self.shifts - positions[self.receivers]


def neighbour_list(positions: Array, cell: Array, pbc: Array | bool, cutoff: float) -> NeighbourList:
    """Return all pairs closer than the cutoff, ordered by centre, neighbour and image.

    Args:
        positions: (n_atoms, 3), wrapped or not [A].
        cell: (3, 3) rows are lattice vectors [A]; ignored along directions that are not periodic.
        pbc: (3,) periodic directions.
        cutoff: radius [A].

    Raises:
        ModelError: the cutoff is not positive, a periodic direction has no lattice vector, or two atoms coincide.
    """
    positions = np.ascontiguousarray(positions, dtype=float)
    periodic = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,))
    box = np.asarray(cell, dtype=float)
    if not cutoff > 0:
        raise ModelError(f"cutoff must be positive, got {cutoff} A")
    if (np.linalg.norm(box[periodic], axis=1) < 1e-8).any():
        raise ModelError("a periodic direction has a lattice vector of zero length; give the cell")
    if periodic.any():
        box = np.array(complete_cell(np.where(periodic[:, None], box, 0.0)))
        if abs(np.linalg.det(box)) < 1e-8:
            raise ModelError("the lattice vectors are linearly dependent; give a cell with a volume")
    else:
        box = np.zeros((3, 3))
    finder = vesin.NeighborList(cutoff=float(cutoff), full_list=True)
    receivers, senders, images, distances = finder.compute(
        points=positions, box=box, periodic=periodic.copy(), quantities="ijSd"
    )
    if len(distances) and distances.min() < 1e-3:
        first = int(np.argmin(distances))
        raise ModelError(
            f"atoms {receivers[first]} and {senders[first]} are {distances[first]:.1e} A apart; "
            "check the positions and the cell"
        )
    # A fixed order makes sums, and so models and predictions, independent of threads and cell lists.
    order = np.lexsort((images[:, 2], images[:, 1], images[:, 0], senders, receivers))
    return NeighbourList(
        senders=senders[order].astype(np.int64),
        receivers=receivers[order].astype(np.int64),
        shifts=images[order].astype(float) @ box,
    )
