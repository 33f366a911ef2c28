"""APTs and PGTs from displaced atoms: the other side of Eqs. 21 and 22, as validation.

P = dM/dr from dipoles and Q = d(alpha)/dr from polarizabilities of configurations in which one coordinate of one atom
is moved by +-delta: 6 runs an atom, so for a few atoms. Nothing is shared with derivatives of forces in fields but the
electronic structure itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ase
import numpy as np

from mimyria_wf.errors import LabelError
from mimyria_wf.response import Array
from mimyria_wf.units import BOHR

DISPLACEMENT = 0.01
"""[A], where Schienbein (2026, Figs. 1b and 2b) finds the least error."""


@dataclass(frozen=True)
class Displacement:
    """One coordinate of one atom, moved.

    Attributes:
        atom: index.
        axis: 0, 1 or 2.
        sign: +1 or -1.
        size: [A].
    """

    atom: int
    axis: int
    sign: int
    size: float

    @property
    def name(self) -> str:
        """Such as "3+x/0.01"."""
        return f"{self.atom}{'+' if self.sign > 0 else '-'}{'xyz'[self.axis]}/{self.size:g}"


def check_displacement(size: float) -> float:
    """Return the displacement [A]; LabelError unless it is positive and small."""
    if not np.isfinite(size) or not 0 < size <= 0.2:
        raise LabelError(f"a displacement must be positive and at most 0.2 A, got {size}; 0.01 A is usual")
    return float(size)


def displacements(atom_indices: Sequence[int], size: float = DISPLACEMENT) -> list[Displacement]:
    """Return the 6 displacements of each atom: x, y, z, plus before minus; size [A]."""
    size = check_displacement(size)
    return [Displacement(int(k), axis, sign, size) for k in atom_indices for axis in range(3) for sign in (1, -1)]


def displaced(atoms: ase.Atoms, displacement: Displacement) -> ase.Atoms:
    """Return a copy with one coordinate moved; charge and multiplicity go along."""
    moved = atoms.copy()
    moved.calc = None
    moved.positions[displacement.atom, displacement.axis] += displacement.sign * displacement.size
    name = atoms.info.get("snapshot", atoms.get_chemical_formula())
    moved.info["snapshot"] = f"{name}, {displacement.name} A"
    return moved
