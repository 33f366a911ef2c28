"""Forces of snapshots at their field points, and the file that keeps every one that was ever computed.

A field-forces file (HDF5) has one group for each configuration, level of theory and version of the program and is on
disk after each snapshot. A run that was cut off and is started again computes only what is missing, and an APT set
grows into a PGT set. Points of two versions stay apart: a tensor is a difference of forces that agree in all but the
last digits, and a shift of 1e-6 E_h/a0 between six points of one version and seven of another is a PGT off by ten.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import ase
import h5py
import numpy as np

from mimyria_wf.errors import LabelError
from mimyria_wf.finite_field import (
    FieldDiagnostics,
    diagnostics,
    field_vectors,
    noise_errors,
    point_name,
    response_tensors,
)
from mimyria_wf.labels import (
    configuration_key,
    level_of_theory_key,
    matching_rows,
    missing_points,
    multiplicity,
    total_charge,
)
from mimyria_wf.response import Array, ResponseTensors

FORMAT = "mimyria_wf field forces 1"
FIELD_UNIT = "E_h/(e a0)"
FORCE_UNIT = "E_h/a0"
_OF_POINTS: dict[str, tuple[int, ...]] = {"dipoles": (3,), "gaps": ()}
_OPTIONAL_UNITS = {"dipoles": "e a0", "gaps": "eV", "dipole_quanta": "e a0"}


class Engine(Protocol):
    """What computed forces: its name, version and level of theory."""

    @property
    def name(self) -> str:
        """The program, as the label file names it."""

    @property
    def version(self) -> str:
        """The program's version."""

    @property
    def level_of_theory(self) -> Mapping[str, Any]:
        """Everything that decides the forces, JSON-able; labels of two engines with the same one are the same."""


@dataclass(frozen=True)
class FieldForces:
    """Forces of one snapshot at its field points.

    Attributes:
        field_vectors: (n_fields, 3) Cartesian vectors [E_h/(e a0)].
        forces: (n_fields, n_atoms, 3) [E_h/a0].
        dipoles: (n_fields, 3) [e a0], NaN where unknown, or None; see :class:`mimyria_wf.field_engine.FieldResults`.
        gaps: (n_fields,) in each field [eV], NaN where unknown, or None.
        dipole_quanta: (3, 3) rows by which a periodic dipole is undetermined [e a0], or None.
        version: of the program that computed all of them, "" where it is not recorded.
    """

    field_vectors: Array
    forces: Array
    dipoles: Array | None = None
    gaps: Array | None = None
    dipole_quanta: Array | None = None
    version: str = ""

    def __post_init__(self) -> None:
        """Check that shapes fit and that vectors and forces are finite."""
        if self.field_vectors.ndim != 2 or self.field_vectors.shape[1] != 3:
            raise LabelError(f"field vectors must have shape (n_fields, 3), got {self.field_vectors.shape}")
        expected = (len(self.field_vectors), "n_atoms", 3)
        if self.forces.ndim != 3 or (self.forces.shape[0], self.forces.shape[2]) != (expected[0], 3):
            raise LabelError(f"forces must have shape {expected}, got {self.forces.shape}".replace("'", ""))
        for name, shape in _OF_POINTS.items():
            array = getattr(self, name)
            if array is not None and array.shape != (len(self.field_vectors), *shape):
                raise LabelError(f"{name} must have one entry a field point, got {array.shape}: remove the file")
        for array, what in ((self.field_vectors, "field vector"), (self.forces, "forces")):
            if not np.all(np.isfinite(array)):
                row = int(np.argwhere(~np.isfinite(array))[0, 0])
                raise LabelError(f"{what} of field point {self.point_names[row]} not finite: compute this point again")

    @property
    def point_names(self) -> tuple[str, ...]:
        """Names of the points, such as "0" and "+x-y"."""
        return tuple(point_name(vector) for vector in self.field_vectors)

    def tensors(self, targets: Sequence[str] | None = None) -> ResponseTensors:
        """Return what these forces give, see :func:`mimyria_wf.finite_field.response_tensors`."""
        return response_tensors(self.field_vectors, self.forces, targets)

    def diagnostics(self, charge: float) -> FieldDiagnostics:
        """Return the free checks, see :func:`mimyria_wf.finite_field.diagnostics`."""
        return diagnostics(self.field_vectors, self.forces, charge)

    def errors(self) -> dict[str, float]:
        """Return by tensor the standard error of an element [e], [e^2 a0/E_h], rms over elements; empty if unknown.

        From the forces' own scatter, see :func:`mimyria_wf.finite_field.noise_errors`, also for what it cannot see.
        """
        found = noise_errors(self.field_vectors, self.forces)
        by_name = {} if found is None else {"apt": found.apt, "pgt": found.pgt}
        return {name: float(np.sqrt(np.mean(e**2))) for name, e in by_name.items() if e is not None}

    def chosen(self, vectors: Iterable[Array], step: float) -> FieldForces:
        """Return the points at these vectors, in this order; all must be there."""
        wanted = np.array(list(vectors))
        rows = matching_rows(self.field_vectors, wanted, step)
        assert None not in rows, "ask missing_points first"
        return self.rows([row for row in rows if row is not None], wanted)

    def rows(self, rows: Sequence[int], vectors: Array | None = None) -> FieldForces:
        """Return some of the points, under other vectors where they are given (of the same fields, rounded)."""
        return FieldForces(
            self.field_vectors[rows] if vectors is None else vectors,
            self.forces[rows],
            dipoles=None if self.dipoles is None else self.dipoles[rows],
            gaps=None if self.gaps is None else self.gaps[rows],
            dipole_quanta=self.dipole_quanta,
            version=self.version,
        )

    def joined(self, other: FieldForces) -> FieldForces:
        """Return these points and then the other's; LabelError if two versions of a program computed them."""
        if self.version != other.version:
            raise LabelError(f"points of versions {self.version or 'unknown'} and {other.version or 'unknown'} joined")
        return FieldForces(
            np.concatenate([self.field_vectors, other.field_vectors]),
            np.concatenate([self.forces, other.forces]),
            dipoles=_joined(self.dipoles, other.dipoles, (len(self.forces), 3), (len(other.forces), 3)),
            gaps=_joined(self.gaps, other.gaps, (len(self.forces),), (len(other.forces),)),
            dipole_quanta=other.dipole_quanta if self.dipole_quanta is None else self.dipole_quanta,
            version=self.version,
        )


def _joined(one: Array | None, other: Array | None, *shapes: tuple[int, ...]) -> Array | None:
    """Return both after each other, NaN for the one that is not there; None if neither is."""
    if one is None and other is None:
        return None
    return np.concatenate([np.full(s, np.nan) if a is None else a for a, s in zip((one, other), shapes)])


@dataclass(frozen=True)
class StoredFieldForces:
    """A snapshot of a field-forces file: its atoms, the forces, and what computed them."""

    atoms: ase.Atoms
    field_forces: FieldForces
    level_of_theory: Mapping[str, Any]
    engine: str
    engine_version: str


def known_version(version: str) -> str | None:
    """Return what an engine says of its version, None where it does not know it (yet)."""
    return None if version in ("", "unknown") else version


class FieldForcesStore:
    """Forces known so far, by configuration, level of theory and version of the program.

    Args:
        path: HDF5 file; what it holds already is known, what is added is on disk when :meth:`add` returns.
            None keeps everything in memory.

    Attributes:
        n_added: points that :meth:`add` has taken in.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.n_added = 0
        self._known: dict[tuple[str, str], dict[str, FieldForces]] = {}
        if self.path is None:
            return
        if self.path.is_file():
            self.include(self.path)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(self.path, "w") as file:
                file.attrs.update(format=FORMAT, field_unit=FIELD_UNIT, force_unit=FORCE_UNIT)

    def include(self, path: str | Path) -> None:
        """Know what another field-forces file holds, too, without copying it into this one."""
        for stored in iterate_field_forces(path):
            key = (configuration_key(stored.atoms), level_of_theory_key(stored.level_of_theory))
            merged = self._merged(key, stored.engine_version, stored.field_forces)
            self._known.setdefault(key, {})[stored.engine_version] = merged

    def versions(self, atoms: ase.Atoms, level: Mapping[str, Any]) -> list[str]:
        """Return the versions that this snapshot was computed with."""
        return sorted(self._known.get((configuration_key(atoms), level_of_theory_key(level)), {}))

    def missing(
        self,
        atoms: ase.Atoms,
        level: Mapping[str, Any],
        targets: Sequence[str],
        step: float,
        version: str | None = None,
    ) -> dict[str, Array]:
        """Return the field points of a snapshot still to be computed, by name; `version` as in :meth:`get`."""
        known = self.get(atoms, level, version, np.array(list(field_vectors(step, targets).values())), step)
        key = (configuration_key(atoms), level_of_theory_key(level))
        return missing_points({} if known is None else {key: known.field_vectors}, atoms, level, targets, step)

    def get(
        self,
        atoms: ase.Atoms,
        level: Mapping[str, Any],
        version: str | None = None,
        wanted: Array | None = None,
        step: float = 1.0,
    ) -> FieldForces | None:
        """Return what is known of this snapshot from one version of the program.

        Args:
            atoms: the snapshot.
            level: the level of theory.
            version: the one that computes now. None: not known yet, the version is taken that has most of the points.
            wanted: (n, 3) points that count [E_h/(e a0)]; None: all.
            step: shortest field among them [E_h/(e a0)].
        """
        known = self._known.get((configuration_key(atoms), level_of_theory_key(level)), {})
        if version is not None:
            return known.get(version)

        def rank(name: str) -> tuple[int, str]:
            vectors = known[name].field_vectors
            rows: Sequence[int | None] = range(len(vectors)) if wanted is None else matching_rows(vectors, wanted, step)
            return sum(row is not None for row in rows), name

        return known[max(known, key=rank)] if known else None

    def add(self, atoms: ase.Atoms, new: FieldForces, engine: Engine) -> FieldForces:
        """Keep these points and return all that is known of the snapshot from the version that computed them.

        That version is the points' own, where they say it, else the engine's.
        """
        self.n_added += len(new.field_vectors)
        version = known_version(new.version) or engine.version
        return self.add_stored(StoredFieldForces(atoms, new, engine.level_of_theory, engine.name, version))

    def add_stored(self, new: StoredFieldForces) -> FieldForces:
        """Keep the points of another store, and return all that is known of that snapshot from their version."""
        key = (configuration_key(new.atoms), level_of_theory_key(new.level_of_theory))
        merged = self._merged(key, new.engine_version, new.field_forces)
        if self.path is not None:
            with _uninterrupted(), _opened(self.path, "r+") as file:
                _write_group(file, key, new, merged)
        self._known.setdefault(key, {})[new.engine_version] = merged
        return merged

    def _merged(self, key: tuple[str, str], version: str, new: FieldForces) -> FieldForces:
        new = replace(new, version=version)
        known = self._known.get(key, {}).get(version)
        if known is None:
            return new
        if known.forces.shape[1] != new.forces.shape[1]:
            raise LabelError(f"one configuration with {known.forces.shape[1]} and {new.forces.shape[1]} atoms")
        lengths = np.linalg.norm(np.concatenate([known.field_vectors, new.field_vectors]), axis=1)
        step = float(lengths[lengths > 0].min(initial=1.0))
        rows = matching_rows(known.field_vectors, new.field_vectors, step)
        return known.joined(new.rows([k for k, row in enumerate(rows) if row is None]))


def _write_group(file: h5py.File, key: tuple[str, str], new: StoredFieldForces, merged: FieldForces) -> None:
    configuration, level = key
    plain = "/".join(key)  # how files named it when they held one version only
    if plain in file and str(file[plain].attrs["engine_version"]) == new.engine_version:
        del file[plain]
    version = hashlib.sha256(new.engine_version.encode()).hexdigest()
    name = f"{configuration}/{level}-{version[:16]}"
    if name in file:
        del file[name]
    group = file.create_group(name)
    group.create_dataset("field_vectors", data=merged.field_vectors).attrs["unit"] = FIELD_UNIT
    group.create_dataset("forces", data=merged.forces).attrs["unit"] = FORCE_UNIT
    for name, unit in _OPTIONAL_UNITS.items():
        if getattr(merged, name) is not None:
            group.create_dataset(name, data=getattr(merged, name)).attrs["unit"] = unit
    group.create_dataset("numbers", data=new.atoms.numbers)
    group.create_dataset("positions", data=new.atoms.positions).attrs["unit"] = "A"
    group.create_dataset("cell", data=np.asarray(new.atoms.cell)).attrs["unit"] = "A"
    group.create_dataset("pbc", data=np.asarray(new.atoms.pbc))
    group.attrs["point_names"] = json.dumps(merged.point_names)
    group.attrs["level_of_theory"] = json.dumps(dict(new.level_of_theory), sort_keys=True)
    group.attrs["engine"] = new.engine
    group.attrs["engine_version"] = new.engine_version
    info: dict[str, Any] = {"charge": total_charge(new.atoms), "multiplicity": multiplicity(new.atoms)}
    if "snapshot" in new.atoms.info:
        info["snapshot"] = str(new.atoms.info["snapshot"])
    group.attrs["info"] = json.dumps(info)


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[h5py.File]:
    """Open a field-forces file or say in one line why not."""
    try:
        file = h5py.File(path, mode)
    except BlockingIOError:
        raise LabelError(f"{path} is in use by another process: wait for it or choose another file") from None
    except OSError as error:
        reason = "it does not exist" if not path.exists() else " ".join(str(error).split())
        raise LabelError(f"{path} cannot be opened as a field-forces file: {reason}; remove it to start over") from None
    with file:
        if file.attrs.get("format") != FORMAT:
            found = file.attrs.get("format", "none")
            raise LabelError(f"{path} is not a field-forces file (format '{found}', expected '{FORMAT}')")
        yield file


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold termination back while a file is between two good states (milliseconds)."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def iterate_field_forces(path: str | Path) -> Iterator[StoredFieldForces]:
    """Yield the snapshots of a field-forces file; LabelError if it is none or holds forces that are not finite."""
    path = Path(path)
    with _opened(path, "r") as file:
        for configuration in file:
            for level in file[configuration]:
                group = file[configuration][level]
                try:
                    atoms = ase.Atoms(
                        group["numbers"][()], group["positions"][()], cell=group["cell"][()], pbc=group["pbc"][()]
                    )
                    atoms.info.update(json.loads(group.attrs["info"]))
                    optional = {name: group[name][()] for name in _OPTIONAL_UNITS if name in group}
                    theory = json.loads(group.attrs["level_of_theory"])
                    made_by = str(group.attrs["engine"]), str(group.attrs["engine_version"])
                    forces = FieldForces(
                        group["field_vectors"][()], group["forces"][()], **optional, version=made_by[1]
                    )
                except KeyError as error:
                    raise LabelError(
                        f"{path}: group {configuration[:12]} is incomplete ({error}): remove the file"
                    ) from None
                except LabelError as error:
                    raise LabelError(f"{path}: {error}") from None
                yield StoredFieldForces(atoms, forces, theory, *made_by)


def read_field_forces(path: str | Path) -> list[StoredFieldForces]:
    """Return every snapshot of a field-forces file."""
    return list(iterate_field_forces(path))


def write_field_forces(path: str | Path, stored: Iterable[StoredFieldForces]) -> None:
    """Add snapshots to a field-forces file, which is made if need be; points already there are kept, by version."""
    store = FieldForcesStore(path)
    for one in stored:
        store.add_stored(one)
