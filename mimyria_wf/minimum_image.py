"""Shortest vectors between atoms in any cell, for many frames at once."""

import itertools
from typing import Any

import numpy as np
from ase.geometry import complete_cell, minkowski_reduce
from numpy.typing import NDArray

Array = NDArray[Any]


class MinimumImage:
    """Takes vectors to their shortest periodic image.

    In the reduced cell, an image shorter than half the smallest distance of opposite faces is the one whose fractional
    coordinates lie within a half; longer ones are searched among the 27 images around.

    Args:
        cell: (3, 3) rows are lattice vectors [A].
        pbc: (3,) periodic directions.
    """

    def __init__(self, cell: Array, pbc: Array) -> None:
        self.periodic = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,)).copy()
        self.exact_radius = np.inf
        if not self.periodic.any():
            return
        box = np.array(complete_cell(np.where(self.periodic[:, None], np.asarray(cell, dtype=float), 0.0)))
        self.cell = np.array(minkowski_reduce(box, self.periodic)[0])
        self.inverse = np.linalg.inv(self.cell)
        self.exact_radius = float(0.5 / np.linalg.norm(self.inverse, axis=0)[self.periodic].max())
        ranges = [(-1, 0, 1) if p else (0,) for p in self.periodic]
        self.images = np.array([s for s in itertools.product(*ranges) if any(s)], dtype=float) @ self.cell

    def vectors(self, vectors: Array, radius: float = np.inf) -> Array:
        """Return the shortest images (..., 3) [A]; those longer than radius need not be the shortest."""
        if not self.periodic.any():
            return vectors
        # one product of two matrices, not one for each row of the array
        fractional = vectors.reshape(-1, 3) @ self.inverse
        fractional -= np.where(self.periodic, np.rint(fractional), 0.0)
        wrapped = (fractional @ self.cell).reshape(vectors.shape)
        if radius <= self.exact_radius:
            return wrapped
        square = (wrapped**2).sum(axis=-1)
        is_open = square > self.exact_radius**2
        start = wrapped[is_open]
        best, best_square = start.copy(), square[is_open]
        for image in self.images:
            moved = start + image
            moved_square = (moved**2).sum(axis=-1)
            is_shorter = moved_square < best_square
            best[is_shorter], best_square[is_shorter] = moved[is_shorter], moved_square[is_shorter]
        wrapped[is_open] = best
        return wrapped
