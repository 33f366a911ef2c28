"""Groups of atoms and relations between them, as functions of time (Eqs. 27 and 31).

``read_group_scheme`` reads what a user wants, ``resolve`` holds it against trajectories: it finds molecules, replaces
minima of RDFs by numbers and refuses what does not occur. The resolved groups tell the group of every atom at any
frame.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mimyria_wf.errors import GroupError
from mimyria_wf.frames import TrajectoryReader
from mimyria_wf.group_schema import (
    OTHER,
    REST,
    Condition,
    Connectivity,
    GroupScheme,
    Relation,
    Within,
    parse_group_scheme,
    read_group_scheme,
)
from mimyria_wf.membership import Frames
from mimyria_wf.minimum_image import MinimumImage
from mimyria_wf.neighbours import neighbour_list
from mimyria_wf.rdf import Minimum, Rdf, RdfSum, find_minimum, write_rdfs
from mimyria_wf.topology import IONS, Topology, find_topology
from mimyria_wf.trajectory import open_trajectory

__all__ = [
    "Follower",
    "GroupScheme",
    "ResolvedGroups",
    "check_groups",
    "groups_of",
    "groups_report",
    "n_lags",
    "parse_group_scheme",
    "read_group_scheme",
    "resolve",
]

Array = NDArray[Any]
Progress = Callable[[int, int, str], None]

DEFAULT_MAX_LAG = 2000.0
"""Longest time of correlations by relation [fs]."""
_MOST_SAMPLES = 4000
"""Frames of all trajectories together that RDFs and reports are made of."""
_FRAMES_AT_ONCE = 256


@dataclass(frozen=True)
class ResolvedGroups:
    """Groups and relations that fit certain trajectories.

    Attributes:
        scheme: with distances in place of minima.
        names: of the groups, in order; ``rest`` last, unless nothing can be left.
        minima: of RDFs that were found.
        topologies: connectivity in the first frame of each trajectory.
        notes: what a user should know, one line each.
    """

    scheme: GroupScheme
    names: tuple[str, ...]
    minima: tuple[Minimum, ...] = ()
    topologies: tuple[Topology, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def relations(self) -> tuple[str, ...]:
        """Names of the relations, the one that is what the others leave last; empty where none are asked for."""
        relations = self.scheme.relations
        if not relations:
            return ()
        names = [relation.name for relation in relations if relation.kind != "other molecule"]
        beyond = [relation.name for relation in relations if relation.kind == "other molecule"]
        return (*names, OTHER, *beyond[:1])

    def memberships(self, positions: Array, numbers: Array, cell: Array, pbc: Array) -> Array:
        """Return the group of each atom at each frame, (n_frames, n_atoms).

        Every frame given is looked at, whatever the scheme says about every n-th. Molecules are those of the first
        frame of the trajectories that the groups were resolved for; where those differ, of the first frame given.

        Args:
            positions: (n_frames, n_atoms, 3) [A].
            numbers: (n_atoms,) atomic numbers.
            cell: (3, 3) [A].
            pbc: (3,) periodic directions.
        """
        known = [one for one in self.topologies if np.array_equal(one.numbers, numbers)]
        if known and all(one.is_same_as(known[0]) for one in known[1:]):
            topology = known[0]
        else:
            topology = _topology(positions[0], numbers, cell, pbc, self.scheme.connectivity)
        alone = replace(self, scheme=self.scheme.model_copy(update={"relations": []}))
        return Follower(alone, numbers, cell, pbc, topology, every=1).follow(positions)[0]

    def follower(self, reader: TrajectoryReader, max_lag: int = 0, every: int | None = None) -> "Follower":
        """Return what tells groups and relations along one trajectory, from its first frame on.

        Args:
            reader: the trajectory.
            max_lag: of the correlations by relation, in frames.
            every: take groups at every n-th frame; None: what the scheme says.
        """
        first = reader.read(0, 1).positions[0]
        topology = _topology(first, reader.numbers, reader.cell, reader.pbc, self.scheme.connectivity)
        return Follower(self, reader.numbers, reader.cell, reader.pbc, topology, max_lag=max_lag, every=every)

    def notes_on(self, occupancies: Sequence[Mapping[str, float]]) -> list[str]:
        """Return notes, among them which groups are empty in all of several runs, given atoms by group of each."""
        notes = list(self.notes)
        for name in self.names:
            if name != REST and not any(one[name] for one in occupancies):
                notes.append(f"the group {name} is empty in every frame")
        if self.scheme.every > 1:
            notes.append(f"groups and relations are taken once in {self.scheme.every} frames and held in between")
        return notes

    def metadata(self) -> dict[str, Any]:
        """Return a JSON-able record: the scheme with the distances used, and how molecules were found."""
        return {
            **self.scheme.to_dict(),
            "units": self.scheme.units,
            "every": self.scheme.every,
            "connectivity": self.scheme.connectivity.model_dump(),
            "minima": [_minimum_entry(one) for one in self.minima],
        }


class Follower:
    """Follows the groups and relations of one trajectory, chunk after chunk.

    Args:
        groups: resolved groups.
        numbers: (n_atoms,) atomic numbers.
        cell: (3, 3) [A].
        pbc: (3,) periodic directions.
        topology: connectivity of the first frame.
        max_lag: of the correlations by relation, in frames.
        every: take groups at every n-th frame; None: what the scheme says.
    """

    def __init__(
        self,
        groups: ResolvedGroups,
        numbers: Array,
        cell: Array,
        pbc: Array,
        topology: Topology,
        *,
        max_lag: int = 0,
        every: int | None = None,
    ) -> None:
        self.names = groups.names
        self.relations = groups.relations
        self.max_lag = max_lag
        self.metadata = groups.metadata()
        self._scheme = groups.scheme
        self._numbers = np.asarray(numbers)
        self._cell, self._pbc = np.asarray(cell), np.asarray(pbc)
        self._image = MinimumImage(cell, pbc)
        self.topology = topology
        self._every = groups.scheme.every if every is None else every
        self._changes = groups.scheme.connectivity.frames == "every"
        self._named = tuple(name for name in self.names if name != REST)
        self._n_seen = 0
        self._held: tuple[Array, list[tuple[Array, Array]]] | None = None
        if self._scheme.units == "molecules" and not self._changes:
            self.n_units = topology.n_molecules
        else:
            self.n_units = len(self._numbers)

    def skip(self, n_frames: int) -> None:
        """Leave out frames at the start, so that every n-th frame is counted from the first of the trajectory."""
        self._n_seen += n_frames

    def follow(self, positions: Array) -> tuple[Array, list[tuple[Array, Array, Array]]]:
        """Return groups and related pairs of the frames that follow those already seen.

        Args:
            positions: (n_frames, n_atoms, 3) [A].

        Returns:
            see :class:`mimyria_wf.derivatives.GroupFollower`.
        """
        n_frames = len(positions)
        if self._every == 1:
            member, pairs = self._look(positions)
            return member, [_flat(one, np.arange(n_frames)) for one in pairs]
        frames = self._n_seen + np.arange(n_frames)
        self._n_seen += n_frames
        is_key = frames % self._every == 0
        is_key[0] |= self._held is None
        keys: list[Array] = []
        key_pairs: list[list[tuple[Array, Array]]] = [[] for _ in range(self._n_lists)]
        if self._held is not None:
            keys.append(self._held[0][None])
            for kept, one in zip(key_pairs, self._held[1], strict=True):
                kept.append(one)
        if is_key.any():
            member, pairs = self._look(positions[is_key])
            keys.append(member)
            for kept, found in zip(key_pairs, pairs, strict=True):
                kept.extend(found)
        members = np.concatenate(keys)
        index = np.cumsum(is_key) - (1 if self._held is None else 0)
        self._held = (members[-1], [one[-1] for one in key_pairs])
        return members[index], [_flat(one, index) for one in key_pairs]

    @property
    def _n_lists(self) -> int:
        return len(self.relations)

    def _look(self, positions: Array) -> tuple[Array, list[list[tuple[Array, Array]]]]:
        """Return groups (n_frames, n_atoms), and for each list and frame the pairs (atoms, units)."""
        members = []
        pairs: list[list[tuple[Array, Array]]] = [[] for _ in range(self._n_lists)]
        for topology, some in self.segments(positions):
            frames = Frames(some, self._cell, self._pbc, self._image, topology, self._scheme.groups)
            members.append(frames.members(self._named))
            if self.relations:
                units, unit_molecule = self._units(topology)
                related = _Related(self._scheme.relations, frames, units, unit_molecule)
                for frame in range(frames.n_frames):
                    for kept, found in zip(pairs, related.pairs(frame), strict=True):
                        kept.append(found)
        return np.concatenate(members), pairs

    def segments(self, positions: Array) -> Iterator[tuple[Topology, Array]]:
        """Yield stretches of frames with one connectivity, not too long."""
        if not self._changes:
            for start in range(0, len(positions), _FRAMES_AT_ONCE):
                yield self.topology, positions[start : start + _FRAMES_AT_ONCE]
            return
        start = 0
        for frame in range(len(positions)):
            found = _topology(positions[frame], self._numbers, self._cell, self._pbc, self._scheme.connectivity)
            if frame > start and (not found.is_same_as(self.topology) or frame - start == _FRAMES_AT_ONCE):
                yield self.topology, positions[start:frame]
                start = frame
            if not found.is_same_as(self.topology):
                self.topology = found
        yield self.topology, positions[start:]

    def _units(self, topology: Topology) -> tuple[Array, Array]:
        """Return the unit of each atom (n_atoms,), and the molecule of each unit (n_units,), -1 for one unused."""
        if self._scheme.units == "atoms":
            units = np.arange(len(self._numbers))
        else:
            units = topology.label if self._changes else topology.molecule
        unit_molecule = np.full(self.n_units, -1)
        unit_molecule[units] = topology.molecule
        return units, unit_molecule


class _Related:
    """Sorts the pairs of a stretch of frames into relations, first match first."""

    def __init__(self, relations: Sequence[Relation], frames: Frames, units: Array, unit_molecule: Array) -> None:
        self.frames = frames
        self.units = units
        self.n_units = len(unit_molecule)
        self.relations = relations
        self.own = units[:, None] == np.arange(self.n_units)
        self.same = frames.topology.molecule[:, None] == unit_molecule
        self.own_pairs = (np.arange(len(units)), units)
        self.has_beyond = any(relation.kind == "other molecule" for relation in relations)

    def pairs(self, frame: int) -> list[tuple[Array, Array]]:
        """Return (atoms, units) of every atom with its own unit, and of each relation but what is left of all."""
        is_free = np.ones(self.own.shape, dtype=bool)
        found = [self.own_pairs]
        for relation in self.relations:
            if relation.kind == "other molecule":
                is_free &= self.same
                continue
            if relation.kind == "self":
                matched = is_free & self.own
            elif relation.kind == "same molecule":
                matched = is_free & self.same
            else:
                matched = is_free & self.frames.related(relation, frame, self.units, self.n_units)
            is_free &= ~matched
            found.append(np.nonzero(matched))  # type: ignore[arg-type]
        if self.has_beyond:
            found.append(np.nonzero(is_free))  # type: ignore[arg-type]
        return found


def _flat(pairs: Sequence[tuple[Array, Array]], index: Array) -> tuple[Array, Array, Array]:
    """Return frame, atom and unit of all pairs, for frames that are each one of those given."""
    lengths = [len(pairs[k][0]) for k in index]
    return (
        np.repeat(np.arange(len(index)), lengths),
        np.concatenate([pairs[k][0] for k in index]),
        np.concatenate([pairs[k][1] for k in index]),
    )


def _topology(positions: Array, numbers: Array, cell: Array, pbc: Array, settings: Connectivity) -> Topology:
    return find_topology(positions, numbers, cell, pbc, settings.scale, settings.ions)


def resolve(scheme: GroupScheme, readers: Sequence[TrajectoryReader]) -> ResolvedGroups:
    """Hold a scheme against trajectories.

    Raises:
        GroupError: an index, species or formula does not occur, or an RDF has no minimum.
    """
    if not readers:
        raise GroupError("no trajectory to resolve the groups with; give at least one")
    topologies = []
    for reader in readers:
        first = reader.read(0, 1).positions[0]
        topologies.append(_topology(first, reader.numbers, reader.cell, reader.pbc, scheme.connectivity))
    notes = _check(scheme, [(reader.name, topology) for reader, topology in zip(readers, topologies, strict=True)])
    resolver = _Resolver(scheme, readers, topologies)
    groups = {name: resolver.group(name) for name in scheme.groups}
    relations = [resolver.relation(relation) for relation in scheme.relations]
    resolved = scheme.model_copy(update={"groups": groups, "relations": relations})
    names = tuple(scheme.groups)
    if _leaves_some(resolved, readers, topologies):
        names = (*names, REST)
    return ResolvedGroups(resolved, names, tuple(resolver.minima), tuple(topologies), tuple(notes))


def check_groups(scheme: GroupScheme, atoms: Atoms) -> None:
    """Hold a scheme against one structure, without its distances.

    Raises:
        GroupError: an index, species or formula does not occur.
    """
    topology = _topology(atoms.positions, atoms.numbers, np.array(atoms.cell), atoms.pbc, scheme.connectivity)
    _check(scheme, [("the structure", topology)])


def groups_of(groups: str | Path, readers: Sequence[TrajectoryReader]) -> ResolvedGroups | None:
    """Return the groups of a YAML file for some trajectories; None for the words ``all`` and ``species``."""
    if str(groups) in ("all", "species"):
        return None
    if isinstance(groups, str) and not Path(groups).is_file() and Path(groups).suffix not in (".yaml", ".yml"):
        raise GroupError(f"groups must be 'all', 'species' or a YAML file of groups, got {groups!r}")
    return resolve(read_group_scheme(groups), readers)


def n_lags(reader: TrajectoryReader, max_lag: float | None) -> int:
    """Return the longest correlation by relation in frames, at most what the run allows.

    Args:
        reader: the trajectory.
        max_lag: [fs]; None: 2000 fs.
    """
    length = DEFAULT_MAX_LAG if max_lag is None else max_lag
    if not (np.isfinite(length) and length > 0):
        raise GroupError(f"max_lag must be positive, got {length} fs")
    return min(int(np.floor(length / reader.timestep + 1e-9)), reader.n_frames - 1)


def _check(scheme: GroupScheme, known: Sequence[tuple[str, Topology]]) -> list[str]:
    """Refuse what no trajectory has, each given by name and molecules."""
    notes = []
    species = sorted({chemical_symbols[z] for _, topology in known for z in set(topology.numbers.tolist())})
    formulas = sorted({formula for _, topology in known for formula in topology.formulas})
    for condition in scheme.conditions():
        for symbol in condition.species or ():
            if symbol not in species:
                raise GroupError(f"groups name the species {symbol}, the atoms are {', '.join(species)}")
        for formula in condition.molecule or ():
            if formula in formulas:
                continue
            text = f"no molecule {formula} in the first frame; molecules found: {_shortened(formulas)}"
            if scheme.connectivity.frames == "first":
                raise GroupError(f"{text}; check the formula, or connectivity (scale, ions, frames: every)")
            notes.append(text)
        for index in condition.index or ():
            for name, topology in known:
                n_atoms = len(topology.numbers)
                if index >= n_atoms:
                    raise GroupError(
                        f"groups name the atom index {index}, but {name} has {n_atoms} atoms, 0 to {n_atoms - 1}"
                    )
    notes += _bonded_metals(scheme, [topology for _, topology in known])
    if scheme.connectivity.frames == "first":
        notes.append("molecules are those of the first frame of each trajectory")
    return notes


def _bonded_metals(scheme: GroupScheme, topologies: Sequence[Topology]) -> list[str]:
    """Return a note on each metal that is part of a molecule because the scheme does not count it as an ion."""
    notes = []
    for symbol in sorted(set(IONS) - set(scheme.connectivity.ions)):
        formulas: set[str] = set()
        for topology in topologies:
            is_metal = topology.numbers == chemical_symbols.index(symbol)
            bonded = topology.bonds[is_metal[topology.bonds].any(axis=1)]
            formulas.update(topology.formulas[m] for m in topology.molecule[bonded[:, 0]])
        if formulas:
            notes.append(
                f"{symbol} is no ion by connectivity.ions and bonded to others: {_shortened(sorted(formulas))} count "
                "as molecules, with what solvates it"
            )
    return notes


def _shortened(formulas: Sequence[str]) -> str:
    return ", ".join(formulas[:8]) + (" ..." if len(formulas) > 8 else "")


def _leaves_some(scheme: GroupScheme, readers: Sequence[TrajectoryReader], topologies: Sequence[Topology]) -> bool:
    """Tell whether atoms may be in none of the groups, from those conditions that do not depend on positions."""
    is_fixed = scheme.connectivity.frames == "first"
    for reader, topology in zip(readers, topologies, strict=True):
        frames = Frames(
            np.zeros((1, reader.n_atoms, 3)),
            reader.cell,
            reader.pbc,
            MinimumImage(np.zeros((3, 3)), np.zeros(3, dtype=bool)),
            topology,
            scheme.groups,
        )
        covered = np.zeros(reader.n_atoms, dtype=bool)
        for condition in scheme.groups.values():
            if _is_static(condition, scheme.groups, is_fixed):
                covered |= frames.holds(condition)[0]
        if not covered.all():
            return True
    return False


def _is_static(condition: Condition, groups: Mapping[str, Condition], is_fixed: bool) -> bool:
    for one in condition.walk():
        if one.within is not None or (not is_fixed and (one.molecule is not None or one.molecule_of is not None)):
            return False
        if any(not _is_static(groups[name], groups, is_fixed) for name in one.group or ()):
            return False
    return True


class _Resolver:
    """Replaces minima by distances, those that others depend on first."""

    def __init__(
        self, scheme: GroupScheme, readers: Sequence[TrajectoryReader], topologies: Sequence[Topology]
    ) -> None:
        self.scheme = scheme
        self.readers = readers
        self.topologies = topologies
        self.minima: list[Minimum] = []
        self._groups: dict[str, Condition] = {}
        self._samples: list[Array] | None = None
        self._rdfs: dict[str, Rdf] = {}

    def group(self, name: str) -> Condition:
        if name not in self._groups:
            self._groups[name] = self.condition(self.scheme.groups[name])
        return self._groups[name]

    def relation(self, relation: Relation) -> Relation:
        if relation.neighbours is None or relation.neighbours.by is None:
            return relation
        by = self.condition(relation.neighbours.by)
        return relation.model_copy(update={"neighbours": relation.neighbours.model_copy(update={"by": by})})

    def condition(self, condition: Condition) -> Condition:
        for name in condition.group or ():
            self.group(name)
        update: dict[str, Any] = {}
        for key in ("molecule_of", "not_"):
            child = getattr(condition, key)
            if child is not None:
                update[key] = self.condition(child)
        for key in ("all_", "any_"):
            children = getattr(condition, key)
            if children is not None:
                update[key] = [self.condition(child) for child in children]
        if condition.within is not None:
            update["within"] = self.within(condition.within)
        return condition.model_copy(update=update)

    def within(self, within: Within) -> Within:
        of = self.condition(within.of)
        by = None if within.by is None else self.condition(within.by)
        if within.minimum is None:
            return within.model_copy(update={"of": of, "by": by})
        what = f"{'all atoms' if by is None else describe(by)} around {describe(of)}"
        key = json.dumps([of.model_dump(), None if by is None else by.model_dump(), within.whole_molecules])
        if key not in self._rdfs:
            self._rdfs[key] = self.rdf(of, by, what, within.whole_molecules)
        minimum = find_minimum(self._rdfs[key], within.minimum, what)
        self.minima.append(minimum)
        distance = round(minimum.distance, 3)
        if distance <= within.from_:
            raise GroupError(f"the minimum in the RDF of {what} is at {distance:g} A, below from: {within.from_:g}")
        return within.model_copy(update={"of": of, "by": by, "minimum": None, "distance": distance})

    def rdf(self, of: Condition, by: Condition | None, what: str, whole_molecules: bool) -> Rdf:
        if self._samples is None:
            self._samples = [_sample(reader, self.scheme.rdf.frames, len(self.readers)) for reader in self.readers]
        cutoff = self.scheme.rdf.cutoff
        sums = RdfSum(cutoff)
        for reader, first, samples in zip(self.readers, self.topologies, self._samples, strict=True):
            volume = float(abs(np.linalg.det(reader.cell))) if np.all(reader.pbc) else None
            probe = Follower(ResolvedGroups(self.scheme, ()), reader.numbers, reader.cell, reader.pbc, first, every=1)
            image = MinimumImage(reader.cell, reader.pbc)
            for topology, some in probe.segments(samples):
                frames = Frames(some, reader.cell, reader.pbc, image, topology, self._groups)
                shape = some.shape[:2]
                centres = np.broadcast_to(frames.holds(of), shape)
                others = np.broadcast_to(np.ones((1, shape[1]), dtype=bool) if by is None else frames.holds(by), shape)
                owner = topology.molecule if whole_molecules else np.arange(shape[1])
                for frame in range(len(some)):
                    atoms = np.flatnonzero(centres[frame] | others[frame])
                    if not centres[frame].any() or len(atoms) < 2:
                        continue
                    edges = neighbour_list(some[frame, atoms], reader.cell, reader.pbc, cutoff)
                    i, j = atoms[edges.receivers], atoms[edges.senders]
                    is_used = centres[frame, i] & others[frame, j] & (owner[i] != owner[j])
                    vectors = edges.vectors(some[frame, atoms])[is_used]
                    n_owned = np.bincount(owner[others[frame]], minlength=shape[1])
                    n_pairs = int(centres[frame].sum() * others[frame].sum() - n_owned[owner[centres[frame]]].sum())
                    n_centres = int(centres[frame].sum())
                    sums.add(np.linalg.norm(vectors, axis=1), n_centres, n_pairs, volume)
        if not sums.n_centres:
            raise GroupError(f"no RDF of {what}: {describe(of)} is empty in every frame looked at")
        return sums.result()


def _sample(reader: TrajectoryReader, n_frames: int, n_readers: int) -> Array:
    """Return positions of evenly spaced frames, (n, n_atoms, 3)."""
    wanted = min(n_frames, max(20, _MOST_SAMPLES // n_readers), reader.n_frames)
    step = max(1, reader.n_frames // wanted)
    return reader.read(0, None, step).positions[:wanted]


def describe(condition: Condition) -> str:
    """Return a condition in a few words."""
    found = []
    if condition.group is not None:
        found.append(" or ".join(condition.group))
    for word, values in (("", condition.species), ("molecules ", condition.molecule)):
        if values is not None:
            found.append(word + " or ".join(values))
    if condition.index is not None:
        shown = ", ".join(map(str, condition.index[:5])) + (" ..." if len(condition.index) > 5 else "")
        found.append(f"atoms {shown}")
    if condition.molecule_of is not None:
        found.append(f"molecules of {describe(condition.molecule_of)}")
    if condition.within is not None:
        found.append(f"shell of {describe(condition.within.of)}")
    if condition.any_ is not None:
        found.append("(" + " or ".join(describe(one) for one in condition.any_) + ")")
    found += [describe(one) for one in condition.all_ or ()]
    if condition.not_ is not None:
        found.append(f"not {describe(condition.not_)}")
    return " and ".join(found)


def _minimum_entry(minimum: Minimum) -> dict[str, Any]:
    return {
        "rdf": minimum.what,
        "minimum": minimum.order,
        "distance": round(minimum.distance, 3),
        "smoothing": minimum.smoothing,
        "peaks": [round(peak, 3) for peak in minimum.peaks],
        "n_frames": minimum.rdf.n_frames,
    }


def groups_report(
    path: str | Path,
    trajectories: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    timestep: float | None = None,
    cell: Any = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Check a file of groups against trajectories and tell what it amounts to.

    Args:
        path: YAML file.
        trajectories: files that :func:`mimyria_wf.trajectory.open_trajectory` reads; all that it is meant for, as RDFs
            are pooled over them.
        out: YAML file to write with the numbers that were found; table and figure of the RDFs go beside it.
        timestep: where the files do not say [fs].
        cell: where the files do not say, see :func:`mimyria_wf.trajectory.open_trajectory`.
        progress: called with (trajectories done, trajectories, message).

    Returns:
        JSON-able: ``groups`` with mean, smallest and largest number of atoms and mean number of molecules, over the
        frames looked at; ``relations`` with the mean number of units that an atom is related to; ``minima`` of RDFs;
        ``molecules`` by formula; ``notes``; ``files`` written.
    """
    scheme = read_group_scheme(path)
    readers = [open_trajectory(one, timestep=timestep, cell=cell) for one in trajectories]
    groups = resolve(scheme, readers)
    counts: list[Array] = []
    molecules: list[Array] = []
    pairs = np.zeros(len(groups.relations))
    n_atom_frames = n_all = 0
    for done, reader in enumerate(readers):
        if progress is not None:
            progress(done, len(readers), f"groups of {reader.name}")
        follower = groups.follower(reader, every=1)
        samples = _sample(reader, scheme.rdf.frames, len(readers))
        member, lists = follower.follow(samples)
        index = np.arange(len(groups.names))
        counts.append((member[:, None] == index[:, None]).sum(axis=2))
        order, starts = follower.topology.order
        is_in = member[:, None, order] == index[:, None]
        molecules.append(np.logical_or.reduceat(is_in, starts, axis=2).sum(axis=2))
        n_atom_frames += member.size
        n_all += member.size * follower.n_units
        if lists:
            pairs += [*(len(one[0]) for one in lists[1:]), 0]
    if groups.relations:
        pairs[-1] = n_all - pairs.sum()
    all_counts, all_molecules = np.concatenate(counts), np.concatenate(molecules)
    means = dict(zip(groups.names, all_counts.mean(axis=0).tolist(), strict=True))
    notes = groups.notes_on([means])
    occupancies = {}
    for k, name in enumerate(groups.names):
        values = all_counts[:, k]
        if not values.any() and name == REST:
            continue
        occupancies[name] = {
            "atoms": float(values.mean()),
            "fewest": int(values.min()),
            "most": int(values.max()),
            "molecules": float(all_molecules[:, k].mean()),
        }
    report: dict[str, Any] = {
        "groups": occupancies,
        "relations": {name: float(n / n_atom_frames) for name, n in zip(groups.relations, pairs, strict=True)},
        "units": scheme.units,
        "minima": [_minimum_entry(one) for one in groups.minima],
        "molecules": groups.topologies[0].counts(),
        "n_frames": len(all_counts),
        "n_trajectories": len(readers),
        "notes": notes,
        "files": [],
    }
    if out is not None:
        report["files"] = _write_resolved(Path(out), groups)
    if progress is not None:
        progress(len(readers), len(readers), "groups checked")
    return report


def _write_resolved(path: Path, groups: ResolvedGroups) -> list[str]:
    from ruamel.yaml import YAML

    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.name]
    with path.open("w") as file:
        for one in groups.minima:
            peaks = ", ".join(f"{p:.2f}" for p in one.peaks)
            file.write(f"# minimum {one.order} of the RDF of {one.what}: {one.distance:.3f} A (peaks at {peaks} A)\n")
        yaml = YAML()
        yaml.default_flow_style = None
        yaml.dump(groups.scheme.to_dict(), file)
    if groups.minima:
        files += write_rdfs(path, groups.minima)
    return files
