"""Which atoms fulfil a condition, and which pairs a relation, at each of many frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from mimyria_wf.group_schema import Condition, HydrogenBonds, Neighbours, Relation, Within
from mimyria_wf.minimum_image import MinimumImage
from mimyria_wf.neighbours import neighbour_list
from mimyria_wf.topology import Topology

Array = NDArray[Any]

_DENSE = 6144
"""Pairs of atoms up to which all distances cost less than a neighbour list, with its fixed cost a frame."""
_ROUND_OFF = 1 + 1e-9
"""Shells and relations reach from beyond one distance up to and with another; images cost the last digits."""
_NUMBERS_AT_ONCE = 3_000_000


@dataclass
class Frames:
    """Consecutive frames with one connectivity.

    Attributes:
        positions: (n_frames, n_atoms, 3) [A].
        cell: (3, 3) [A].
        pbc: (3,) periodic directions.
        image: of the cell.
        topology: molecules.
        groups: conditions by name.
    """

    positions: Array
    cell: Array
    pbc: Array
    image: MinimumImage
    topology: Topology
    groups: Mapping[str, Condition]
    _known: dict[str, Array] = field(default_factory=dict)
    _relation_masks: dict[str, Array] = field(default_factory=dict)

    @property
    def n_frames(self) -> int:
        return len(self.positions)

    @property
    def n_atoms(self) -> int:
        return self.positions.shape[1]

    def members(self, names: tuple[str, ...]) -> Array:
        """Return the first of the groups that each atom is in, (n_frames, n_atoms); len(names) where none."""
        found = np.full((self.n_frames, self.n_atoms), len(names), dtype=np.int16)
        for index in reversed(range(len(names))):
            np.copyto(found, np.int16(index), where=self.named(names[index]))
        return found

    def named(self, name: str) -> Array:
        """Return where a group's own condition holds."""
        if name not in self._known:
            self._known[name] = self.holds(self.groups[name])
        return self._known[name]

    def holds(self, condition: Condition) -> Array:
        """Return where a condition holds, (n_frames, n_atoms), or (1, n_atoms) if it does not depend on positions."""
        topology = self.topology
        found = np.ones((1, self.n_atoms), dtype=bool)
        if condition.species is not None:
            found = found & np.isin(topology.numbers, [atomic_numbers[s] for s in condition.species])
        if condition.index is not None:
            found = found & np.isin(np.arange(self.n_atoms), condition.index)
        if condition.molecule is not None:
            is_named = np.isin(topology.formulas, condition.molecule)
            found = found & is_named[topology.molecule]
        if condition.group is not None:
            found = found & _any([self.named(name) for name in condition.group])
        if condition.any_ is not None:
            found = found & _any([self.holds(one) for one in condition.any_])
        for one in condition.all_ or ():
            found = found & self.holds(one)
        if condition.not_ is not None:
            found = found & ~self.holds(condition.not_)
        if condition.molecule_of is not None:
            found = found & self._whole(self.holds(condition.molecule_of))
        if condition.within is not None:
            found = found & self._within(condition.within)
        return found

    def _whole(self, mask: Array) -> Array:
        order, starts = self.topology.order
        return np.asarray(np.logical_or.reduceat(mask[:, order], starts, axis=1)[:, self.topology.molecule])

    def _within(self, within: Within) -> Array:
        assert within.distance is not None
        nearest = self.nearest(within)
        if within.whole_molecules:
            order, starts = self.topology.order
            nearest = np.minimum.reduceat(nearest[:, order], starts, axis=1)[:, self.topology.molecule]
        found = nearest <= within.distance * _ROUND_OFF
        return found & (nearest > within.from_ * _ROUND_OFF) if within.from_ > 0 else found

    def nearest(self, within: Within) -> Array:
        """Return the distance of each atom of ``by`` to the nearest atom of ``of`` (n_frames, n_atoms) [A].

        Atoms of the same molecule do not count; for single atoms (not whole molecules), only the atom itself does not.
        What is beyond the distance may be infinite, as are atoms not of ``by``.
        """
        assert within.distance is not None
        of = np.broadcast_to(self.holds(within.of), (self.n_frames, self.n_atoms))
        by = np.ones((1, self.n_atoms), dtype=bool) if within.by is None else self.holds(within.by)
        by = np.broadcast_to(by, of.shape)
        rows, columns = np.flatnonzero(by.any(axis=0)), np.flatnonzero(of.any(axis=0))
        found = np.full(of.shape, np.inf)
        if not len(rows) or not len(columns):
            return found
        owner = self.topology.molecule if within.whole_molecules else np.arange(self.n_atoms)
        if len(rows) * len(columns) <= _DENSE:
            is_own = owner[rows, None] == owner[columns]
            step = max(1, _NUMBERS_AT_ONCE // (3 * len(rows) * len(columns)))
            for start in range(0, self.n_frames, step):
                frames = slice(start, start + step)
                some = self.positions[frames]
                vectors = some[:, rows, None] - some[:, None, columns]
                vectors = self.image.vectors(vectors, within.distance)
                square = np.einsum("tijx,tijx->tij", vectors, vectors)
                is_out = is_own | ~of[frames, None, columns]
                found[frames, rows] = np.sqrt(np.where(is_out, np.inf, square).min(axis=2))
        else:
            atoms = np.union1d(rows, columns)
            for frame in range(self.n_frames):
                edges = neighbour_list(
                    self.positions[frame, atoms], self.cell, self.pbc, within.distance * _ROUND_OFF**2
                )
                centre, other = atoms[edges.receivers], atoms[edges.senders]
                is_used = of[frame, other] & (owner[centre] != owner[other])
                vectors = edges.vectors(self.positions[frame, atoms])[is_used]
                np.minimum.at(found[frame], centre[is_used], np.linalg.norm(vectors, axis=1))
        return np.where(by, found, np.inf)

    def related(self, relation: Relation, frame: int, units: Array, n_units: int) -> Array:
        """Return which atoms are related to which units in one frame, (n_atoms, n_units).

        Args:
            relation: not ``self`` or ``other molecule``.
            frame: index.
            units: (n_atoms,) unit of each atom.
            n_units: number of units.
        """
        molecule = self.topology.molecule
        if relation.hydrogen_bonds is not None:
            bonded = self._hydrogen_bonds(relation.hydrogen_bonds, frame)
            unit_molecule = np.full(n_units, -1)
            unit_molecule[units] = molecule
            found = bonded[molecule][:, unit_molecule]
            found[:, unit_molecule < 0] = False
            return np.asarray(found)
        assert relation.neighbours is not None
        return self._neighbours(relation.name, relation.neighbours, frame, units, n_units)

    def _neighbours(self, name: str, neighbours: Neighbours, frame: int, units: Array, n_units: int) -> Array:
        if neighbours.by is None:
            atoms = np.arange(self.n_atoms)
        else:
            if name not in self._relation_masks:
                self._relation_masks[name] = self.holds(neighbours.by)
            mask = self._relation_masks[name]
            atoms = np.flatnonzero(mask[frame if len(mask) > 1 else 0])
        near = np.zeros((n_units, n_units), dtype=bool)
        if len(atoms) > 1:
            first, second, _ = self._pairs(atoms, frame, neighbours.distance)
            near[units[first], units[second]] = True
        np.fill_diagonal(near, False)
        return near[units]

    def _species(self, symbols: list[str]) -> Array:
        key = "species " + " ".join(symbols)
        if key not in self._relation_masks:
            self._relation_masks[key] = np.isin(self.topology.numbers, [atomic_numbers[s] for s in symbols])
        return self._relation_masks[key]

    def _pairs(self, atoms: Array, frame: int, distance: float) -> tuple[Array, Array, Array]:
        """Return pairs of some atoms at most a distance apart, in both orders, and the vectors from first to second."""
        positions = self.positions[frame, atoms]
        if len(atoms) ** 2 <= _DENSE and distance <= self.image.exact_radius:  # one image at most is that close
            vectors = self.image.vectors(positions[None] - positions[:, None], distance)
            is_near = np.sqrt(np.einsum("ijx,ijx->ij", vectors, vectors)) <= distance * _ROUND_OFF
            np.fill_diagonal(is_near, False)
            first, second = np.nonzero(is_near)
            return atoms[first], atoms[second], vectors[first, second]
        edges = neighbour_list(positions, self.cell, self.pbc, distance * _ROUND_OFF**2)
        vectors = edges.vectors(positions)
        is_near = np.sqrt(np.einsum("px,px->p", vectors, vectors)) <= distance * _ROUND_OFF
        return atoms[edges.receivers[is_near]], atoms[edges.senders[is_near]], vectors[is_near]

    def _hydrogen_bonds(self, criterion: HydrogenBonds, frame: int) -> Array:
        """Return which molecules are hydrogen bonded, (n_molecules, n_molecules)."""
        topology, positions = self.topology, self.positions[frame]
        is_donor, is_acceptor = self._species(criterion.donors), self._species(criterion.acceptors)
        bonded = np.zeros((topology.n_molecules, topology.n_molecules), dtype=bool)
        hydrogens = np.flatnonzero(topology.parents >= 0)
        donors = topology.parents[hydrogens]
        hydrogens, donors = hydrogens[is_donor[donors]], donors[is_donor[donors]]
        atoms = np.flatnonzero(is_donor | is_acceptor)
        if not len(hydrogens) or len(atoms) < 2:
            return bonded
        donor, acceptor, vectors = self._pairs(atoms, frame, criterion.distance)
        is_used = is_acceptor[acceptor] & (topology.molecule[donor] != topology.molecule[acceptor])
        donor, acceptor, vectors = donor[is_used], acceptor[is_used], vectors[is_used]
        # every pair of donor and acceptor with every hydrogen of the donor
        order = np.argsort(donors, kind="stable")
        hydrogens, donors = hydrogens[order], donors[order]
        first, last = np.searchsorted(donors, donor), np.searchsorted(donors, donor, side="right")
        pair = np.repeat(np.arange(len(donor)), last - first)
        offset = np.arange(len(pair)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
        hydrogen = hydrogens[first[pair] + offset]
        arms = self.image.vectors(positions[hydrogen] - positions[donor[pair]])
        lengths = np.linalg.norm(arms, axis=1) * np.linalg.norm(vectors[pair], axis=1)
        cosine = np.einsum("px,px->p", arms, vectors[pair]) / lengths
        chosen = pair[cosine >= np.cos(np.radians(criterion.angle)) - 1e-12]
        ends = topology.molecule[donor[chosen]], topology.molecule[acceptor[chosen]]
        bonded[ends] = True
        bonded[ends[::-1]] = True
        return bonded


def _any(masks: list[Array]) -> Array:
    found = masks[0]
    for mask in masks[1:]:
        found = found | mask
    return found
