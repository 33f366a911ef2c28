"""Covalent bonds and molecules, from distances, across the boundaries of any cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.formula import Formula
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mimyria_wf.neighbours import neighbour_list

Array = NDArray[Any]

_NONMETALS = (
    *("H", "He", "B", "C", "N", "O", "F", "Ne", "Si", "P", "S", "Cl", "Ar", "Ge", "As", "Se", "Br", "Kr"),
    *("Sb", "Te", "I", "Xe", "At", "Rn", "Ts", "Og"),
)
IONS: tuple[str, ...] = tuple(symbol for symbol in chemical_symbols[1:] if symbol not in _NONMETALS)
"""Elements that form no covalent bond here, all metals: their radii are so large that water would count as bonded to
them, and a solvated ion with its first shell as one molecule. Organometallics need a shorter list."""
BOND_SCALE = 1.25
"""Bonds are shorter than this times the sum of covalent radii: 1.21 A for O-H, 1.65 A for O-O, 2.14 A for S-O."""
_PROTON_STRETCH = 1.2


@dataclass(frozen=True)
class Topology:
    """Molecules of a configuration.

    Attributes:
        numbers: (n_atoms,) atomic numbers.
        bonds: (n_bonds, 2) bonded atoms, the lower index first.
        molecule: (n_atoms,) index of each atom's molecule.
        label: (n_atoms,) an atom that stands for the molecule, the first of its heaviest; it stays the same when a
            proton leaves.
    """

    numbers: Array
    bonds: Array
    molecule: Array
    label: Array

    @cached_property
    def n_molecules(self) -> int:
        """Number of molecules."""
        return int(self.molecule.max()) + 1

    @cached_property
    def formulas(self) -> tuple[str, ...]:
        """(n_molecules,) formulas in Hill's order."""
        counts = np.zeros((self.n_molecules, len(chemical_symbols)), dtype=int)
        np.add.at(counts, (self.molecule, self.numbers), 1)
        distinct, index = np.unique(counts, axis=0, return_inverse=True)
        names = [
            str(Formula.from_dict({chemical_symbols[z]: int(row[z]) for z in np.flatnonzero(row)}).format("hill"))
            for row in distinct
        ]
        return tuple(names[k] for k in index.ravel())

    @cached_property
    def order(self) -> tuple[Array, Array]:
        """Atoms ordered by molecule (n_atoms,), and where each molecule begins (n_molecules,)."""
        order = np.argsort(self.molecule, kind="stable")
        return order, np.searchsorted(self.molecule[order], np.arange(self.n_molecules))

    @cached_property
    def parents(self) -> Array:
        """(n_atoms,) the atom that a hydrogen atom is bonded to; -1 for others and for a bare proton."""
        parents = np.full(len(self.numbers), -1)
        for first, second in self.bonds:
            for hydrogen, other in ((first, second), (second, first)):
                if self.numbers[hydrogen] == 1:
                    parents[hydrogen] = other
        return parents

    def counts(self) -> dict[str, int]:
        """Return the number of molecules by formula."""
        return {formula: self.formulas.count(formula) for formula in sorted(set(self.formulas))}

    def is_same_as(self, other: "Topology") -> bool:
        """Tell whether another configuration of the same atoms has the same bonds."""
        return np.array_equal(self.bonds, other.bonds)


def find_topology(
    positions: Array,
    numbers: Array,
    cell: Array,
    pbc: Array,
    scale: float = BOND_SCALE,
    ions: Sequence[str] = IONS,
) -> Topology:
    """Find the molecules of a configuration.

    Atoms are bonded when they are closer than ``scale`` times the sum of their covalent radii. A hydrogen atom has one
    bond, to the atom that it is nearest to by that measure, so that a hydrogen bond never joins two molecules; this
    bond may be 1.2 times as long, for a proton midway between two atoms still belongs to one.

    Args:
        positions: (n_atoms, 3), wrapped or not [A].
        numbers: (n_atoms,) atomic numbers.
        cell: (3, 3) rows are lattice vectors [A].
        pbc: (3,) periodic directions.
        scale: of the sum of covalent radii.
        ions: symbols of elements without bonds.
    """
    numbers = np.asarray(numbers)
    radii = covalent_radii[numbers]
    neighbours = neighbour_list(positions, cell, pbc, 2 * _PROTON_STRETCH * scale * float(radii.max()))
    first, second = neighbours.receivers, neighbours.senders
    ratio = np.linalg.norm(neighbours.vectors(np.asarray(positions, dtype=float)), axis=1)
    ratio = ratio / (radii[first] + radii[second])
    is_ion = np.isin(numbers, [chemical_symbols.index(symbol) for symbol in ions])
    limit = np.where((numbers[first] == 1) != (numbers[second] == 1), _PROTON_STRETCH * scale, scale)
    is_bond = (ratio < limit) & (first != second) & ~is_ion[first] & ~is_ion[second]
    first, second, ratio = first[is_bond], second[is_bond], ratio[is_bond]
    # a hydrogen atom keeps its nearest partner only
    nearest = np.full(len(numbers), np.inf)
    np.minimum.at(nearest, first, ratio)
    is_kept = ((numbers[first] != 1) | (ratio <= nearest[first])) & (
        (numbers[second] != 1) | (ratio <= nearest[second])
    )
    pairs = np.sort(np.stack([first[is_kept], second[is_kept]], axis=1), axis=1)
    bonds = np.unique(pairs, axis=0) if len(pairs) else np.zeros((0, 2), dtype=int)
    shape = (len(numbers), len(numbers))
    graph = coo_array((np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=shape)
    _, molecule = connected_components(graph, directed=False)
    molecule = molecule.astype(np.int64)
    label = np.empty(int(molecule.max()) + 1, dtype=np.int64)
    lightest_first = np.lexsort((-np.arange(len(numbers)), numbers))
    label[molecule[lightest_first]] = lightest_first
    return Topology(numbers, bonds, molecule, label[molecule])
