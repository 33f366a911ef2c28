"""Neighbour lists for any cell: clusters, slabs, triclinic boxes, cutoffs beyond half the box.

Finding the pairs of a frame costs as much as a small network. Atoms move little from frame to frame, so
:func:`stretches` finds the pairs of many frames at once: those within the cutoff plus twice the largest displacement
from a frame in the middle, of which each frame keeps the ones within its own cutoff (Verlet 1967).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import vesin
from ase.geometry import complete_cell

from mimyria_wf.errors import ModelError

Array = npt.NDArray[Any]

CLOSEST = 1e-3
"""Atoms nearer than this are a mistake [A]."""
LARGEST_SKIN = 0.6
"""How far a list that many frames share may reach beyond the cutoff [A]: a tenth of 6 A is a third more pairs."""


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
    box, periodic = _box(cell, pbc)
    if not cutoff > 0:
        raise ModelError(f"cutoff must be positive, got {cutoff} A")
    finder = vesin.NeighborList(cutoff=float(cutoff), full_list=True)
    receivers, senders, images, distances = finder.compute(
        points=positions, box=box, periodic=periodic, quantities="ijSd"
    )
    if len(distances) and distances.min() < CLOSEST:
        first = int(np.argmin(distances))
        raise too_close(receivers[first], senders[first], distances[first])
    # A fixed order makes sums, and so models and predictions, independent of threads and cell lists.
    order = _order(receivers, senders, images)
    return NeighbourList(
        senders=senders[order].astype(np.int64),
        receivers=receivers[order].astype(np.int64),
        shifts=images[order].astype(float) @ box,
    )


def too_close(first: int, second: int, distance: float) -> ModelError:
    """Return the error that names two atoms at the same place; distance in A."""
    return ModelError(f"atoms {first} and {second} are {distance:.1e} A apart; check the positions and the cell")


def _box(cell: Array, pbc: Array | bool) -> tuple[Array, Array]:
    """Return three lattice vectors (3, 3), zeros without periodic directions, and those directions (3,)."""
    periodic = np.array(np.broadcast_to(np.asarray(pbc, dtype=bool), (3,)))
    box = np.asarray(cell, dtype=float)
    if not periodic.any():
        return np.zeros((3, 3)), periodic
    if (np.linalg.norm(box[periodic], axis=1) < 1e-8).any():
        raise ModelError("a periodic direction has a lattice vector of zero length; give the cell")
    box = np.array(complete_cell(np.where(periodic[:, None], box, 0.0)))
    if abs(np.linalg.det(box)) < 1e-8:
        raise ModelError("the lattice vectors are linearly dependent; give a cell with a volume")
    return box, periodic


def _order(receivers: Array, senders: Array, images: Array) -> Array:
    """Return the order by centre, neighbour and image, through one integer a pair: three times as fast as a lexsort."""
    columns = [receivers, senders, *images.T]
    lowest = [int(column.min(initial=0)) for column in columns]
    extents = [int(column.max(initial=0)) - low + 1 for column, low in zip(columns, lowest)]
    if math.prod(extents) > np.iinfo(np.int64).max:  # atoms that drifted a thousand cells apart
        return np.lexsort(columns[::-1])
    key = np.zeros(len(receivers), dtype=np.int64)
    for column, low, extent in zip(columns, lowest, extents):
        key = key * extent + (column.astype(np.int64) - low)
    return np.argsort(key)


@dataclass(frozen=True)
class Stretch:
    """Frames that share one list, which holds all their pairs within the cutoff, and some beyond it.

    Attributes:
        frames: of those that were given.
        senders: (n_pairs,) index of the neighbour j.
        receivers: (n_pairs,) index of the centre i, in increasing order.
        vectors: (n_pairs, 3) from centre to neighbour in the frame at which the list was made [A].
        displacements: (n_frames, n_atoms, 3) from that frame, of atoms that wrapping has not moved [A]; the vectors
            of a frame are ``vectors + displacements[:, senders] - displacements[:, receivers]``.
    """

    frames: slice
    senders: Array
    receivers: Array
    vectors: Array
    displacements: Array


def stretches(
    positions: Array, cell: Array, pbc: Array | bool, cutoff: float, largest_skin: float = LARGEST_SKIN
) -> Iterator[Stretch]:
    """Yield stretches of consecutive frames with their common neighbour lists; one cell for all of them.

    Args:
        positions: (n_frames, n_atoms, 3) [A]; atoms may be wrapped in some frames and not in others.
        cell: see :func:`neighbour_list`.
        pbc: see :func:`neighbour_list`.
        cutoff: see :func:`neighbour_list`.
        largest_skin: frames whose atoms moved more than half of it from the middle one get lists of their own [A].

    Raises:
        ModelError: see :func:`neighbour_list`.
    """
    positions = np.asarray(positions, dtype=float)
    box, periodic = _box(cell, pbc)
    inverse = np.linalg.inv(box) if periodic.any() else box
    waiting = [slice(0, len(positions))]
    while waiting:
        frames = waiting.pop()
        middle = (frames.start + frames.stop) // 2
        displacements = positions[frames] - positions[middle]
        displacements -= np.where(periodic, np.round(displacements @ inverse), 0.0) @ box
        skin = 2 * float(np.sqrt((displacements**2).sum(axis=2).max()))
        if skin > largest_skin and frames.stop - frames.start > 1:
            waiting += [slice(middle, frames.stop), slice(frames.start, middle)]
            continue
        # a little wider, for the round-off of displacements
        pairs = neighbour_list(positions[middle], box, periodic, cutoff + skin + (1e-9 if skin else 0.0))
        yield Stretch(frames, pairs.senders, pairs.receivers, pairs.vectors(positions[middle]), displacements)
