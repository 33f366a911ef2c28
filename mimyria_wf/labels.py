"""Labelled snapshots: their file, their keys, and which field points are still to be computed.

A label is known by its configuration, its level of theory and its field vector; what is known is never computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np

from mimyria_wf.errors import LabelError
from mimyria_wf.finite_field import field_vectors
from mimyria_wf.response import TENSOR_AXES, TENSOR_SHAPES, TENSOR_UNITS, Array, ResponseTensors

SAME_FIELD = 1e-6
"""Two field vectors are one if they differ by less than this share of the step."""

_UNREADABLE = (OSError, ValueError, KeyError, IndexError, StopIteration, RuntimeError, AssertionError, AttributeError)


def total_charge(atoms: ase.Atoms) -> int:
    """Return the total charge [e] from info["charge"], 0 by default; LabelError unless it is whole."""
    return _whole(atoms, "charge", 0)


def multiplicity(atoms: ase.Atoms) -> int:
    """Return the spin multiplicity from info["multiplicity"], 1 by default; LabelError unless it is whole and > 0."""
    value = _whole(atoms, "multiplicity", 1)
    if value < 1:
        raise LabelError(f"multiplicity must be 1 or more, got {value} ({_where(atoms)})")
    return value


def _whole(atoms: ase.Atoms, key: str, default: int) -> int:
    value = atoms.info.get(key, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number) or number != round(number):
        raise LabelError(f"{key} must be a whole number, got {value} ({_where(atoms)})")
    return round(number)


def _where(atoms: ase.Atoms) -> str:
    """Return what a message calls this snapshot."""
    return f"snapshot {atoms.info.get('snapshot', atoms.get_chemical_formula())}"


def _decimals(values: Array) -> list[str]:
    # by text, as an extxyz file rounds: a configuration keeps its key through a file
    return [f"{value:.8f}".replace("-0.00000000", "0.00000000") for value in np.ravel(values)]


def configuration_key(atoms: ase.Atoms) -> str:
    """Return the sha256 of numbers, positions and cell (to 1e-8 A), periodicity, charge and multiplicity."""
    if not np.all(np.isfinite(atoms.positions)):
        raise LabelError(f"positions are not finite ({_where(atoms)})")
    record = {
        "numbers": atoms.numbers.tolist(),
        "positions": _decimals(atoms.positions),
        "cell": _decimals(np.asarray(atoms.cell)),
        "pbc": [bool(p) for p in atoms.pbc],
        "charge": total_charge(atoms),
        "multiplicity": multiplicity(atoms),
    }
    return _sha256(record)


def level_of_theory_key(level: Mapping[str, Any]) -> str:
    """Return the sha256 of everything that decides an engine's forces (program, method, thresholds, ...)."""
    return _sha256(level)


def _sha256(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def matching_rows(known: Array, vectors: Array, step: float) -> list[int | None]:
    """Return for each field vector (n, 3) the row of `known` (m, 3) that is the same field, or None."""
    rows: list[int | None] = []
    for vector in np.asarray(vectors, dtype=float).reshape(-1, 3):
        distances = np.linalg.norm(np.asarray(known, dtype=float).reshape(-1, 3) - vector, axis=1)
        near = np.flatnonzero(distances < SAME_FIELD * step)
        rows.append(int(near[0]) if len(near) else None)
    return rows


def missing_points(
    known: Mapping[tuple[str, str], Array],
    atoms: ase.Atoms,
    level: Mapping[str, Any],
    targets: Sequence[str],
    step: float,
) -> dict[str, Array]:
    """Return the field points still to be computed for the targets.

    Args:
        known: field vectors (n, 3) [E_h/(e a0)] whose forces exist, by (configuration_key, level_of_theory_key).
        atoms: the snapshot.
        level: its level of theory.
        targets: "apt", "pgt" or both.
        step: field step [E_h/(e a0)].

    Returns:
        name -> (3,) vector in the order of FIELD_POINTS, zero field first; empty if all are known.
    """
    wanted = field_vectors(step, targets)
    there = known.get((configuration_key(atoms), level_of_theory_key(level)), np.empty((0, 3)))
    rows = matching_rows(there, np.array(list(wanted.values())), step)
    return {name: vector for (name, vector), row in zip(wanted.items(), rows) if row is None}


@dataclass(frozen=True)
class LabelledSnapshot:
    """A snapshot with its tensors.

    Attributes:
        atoms: numbers, positions [A], cell, pbc; info holds charge, snapshot and where the labels come from.
        apt: (n_atoms, displacement, field) [e], or None.
        pgt: (n_atoms, displacement, field, field) [e^2 a0/E_h], or None.
    """

    atoms: ase.Atoms
    apt: Array | None = None
    pgt: Array | None = None

    def __post_init__(self) -> None:
        """Check that the tensors are finite and belong to these atoms."""
        try:
            tensors = ResponseTensors(self.apt, self.pgt).tensors()
        except LabelError as error:
            raise LabelError(f"{error} ({_where(self.atoms)})") from None
        for name, tensor in tensors.items():
            if len(tensor) != len(self.atoms):
                raise LabelError(f"{name} is given for {len(tensor)} of {len(self.atoms)} atoms ({_where(self.atoms)})")

    @property
    def tensors(self) -> ResponseTensors:
        """The tensors without the atoms."""
        return ResponseTensors(self.apt, self.pgt)

    @property
    def charge(self) -> int:
        """Total charge [e]."""
        return total_charge(self.atoms)


def trajectory_of(snapshot: LabelledSnapshot) -> str | None:
    """Return the trajectory's name from ``info['snapshot']`` ("name/frame"), None for a snapshot without one."""
    name = snapshot.atoms.info.get("snapshot")
    return str(name).rpartition("/")[0] or None if name is not None else None


def tensors_of(snapshot: LabelledSnapshot, target: str) -> Array:
    """Return the tensors of a labelled snapshot, (n_atoms, 3, 3) [e] or (n_atoms, 3, 3, 3) [e^2 a0/E_h]."""
    tensors = snapshot.apt if target == "apt" else snapshot.pgt
    if tensors is None:
        raise LabelError(f"a snapshot has no {target} labels; label it with target {target}")
    return np.asarray(tensors, dtype=float)


def read_snapshots(path: str | Path) -> list[ase.Atoms]:
    """Return every configuration of a file that ASE reads; LabelError if it is missing, empty or unreadable."""
    path = Path(path)
    if not path.is_file():
        raise LabelError(f"{path} does not exist: give a file with snapshots (extxyz)")
    if path.stat().st_size == 0:
        raise LabelError(f"{path} is empty: give a file with snapshots (extxyz)")
    extxyz = "extxyz" if path.suffix in (".xyz", ".extxyz") else None
    try:
        frames = ase.io.read(path, index=":", format=extxyz)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LabelError(
            f"{path} cannot be read: {reason}; expected snapshots as extxyz or another ASE format"
        ) from None
    if not frames:
        raise LabelError(f"{path} holds no snapshots")
    for index, atoms in enumerate(frames):
        if not len(atoms) or not np.all(np.isfinite(atoms.positions)):
            found = "no atoms" if not len(atoms) else "positions that are not finite"
            raise LabelError(f"{path}, snapshot {index}: {found}")
    return list(frames)


def read_labels(
    path: str | Path, targets: Sequence[str] | None = None, *, stated: bool = False
) -> list[LabelledSnapshot]:
    """Return the labelled snapshots of an extxyz file with columns apt:R:9 and/or pgt:R:27.

    Args:
        path: the file; its positions are in A, its tensors in the axis order and units of docs/theory.md. A header
            that states another unit or order is refused.
        targets: tensors that every snapshot must carry; None: at least one of them.
        stated: refuse a header that does not state unit, order of axes and level of theory, and levels that differ.
    """
    snapshots = []
    levels: dict[str, int] = {}
    for index, atoms in enumerate(read_snapshots(path)):
        where = f"{path}, snapshot {index}"
        found: dict[str, Array] = {}
        for name, shape in TENSOR_SHAPES.items():
            column = atoms.arrays.pop(name, None)
            if column is None:
                continue
            for key, expected in ((f"{name}_unit", TENSOR_UNITS[name]), (f"{name}_axes", TENSOR_AXES[name])):
                if stated and key not in atoms.info:
                    raise LabelError(f"{where}: {key} is not stated; `mimyria-wf import labels` takes it in")
                if str(atoms.info.get(key, expected)).strip() != expected:
                    raise LabelError(
                        f"{where}: {key} must be '{expected}', found '{atoms.info[key]}': convert the file"
                    )
            width = int(np.prod(shape))
            if column.ndim != 2 or column.shape[1] != width or not np.issubdtype(column.dtype, np.number):
                n_found = 1 if column.ndim == 1 else column.shape[1]
                raise LabelError(f"{where}: column {name} must be {name}:R:{width}, found {n_found} of {column.dtype}")
            found[name] = column.reshape(-1, *shape).astype(float)
        lacking = [t for t in (targets or []) if t not in found]
        if lacking or not found:
            columns = {"apt": "apt:R:9", "pgt": "pgt:R:27"}
            needed = " and ".join(columns[t] for t in lacking) or " or ".join(columns.values())
            raise LabelError(f"{where}: no column {needed}; run `mimyria-wf label` on it first")
        if stated:
            levels.setdefault(str(atoms.info.get("level_of_theory", "")).strip(), index)
            if "" in levels:
                raise LabelError(f"{where}: level_of_theory is not stated; `mimyria-wf import labels` takes it in")
            if len(levels) > 1:
                first, second = levels.values()
                raise LabelError(
                    f"{path}: snapshots {first} and {second} are of different levels of theory: make a file of each"
                )
        try:
            total_charge(atoms)
            snapshots.append(LabelledSnapshot(atoms, found.get("apt"), found.get("pgt")))
        except LabelError as error:
            raise LabelError(f"{where}: {error}") from None
    return snapshots


def labelled_atoms(labelled: LabelledSnapshot, metadata: Mapping[str, str | int | float] | None = None) -> ase.Atoms:
    """Return the atoms with what :func:`write_labels` writes: tensors as arrays, units and axes as info."""
    atoms = labelled.atoms.copy()
    atoms.info = {**atoms.info, **(metadata or {})}
    atoms.info["charge"] = labelled.charge
    for name, tensor in labelled.tensors.tensors().items():
        atoms.set_array(name, tensor.reshape(len(atoms), -1).astype(float))
        atoms.info[f"{name}_unit"] = TENSOR_UNITS[name]
        atoms.info[f"{name}_axes"] = TENSOR_AXES[name]
    return atoms


def write_labels(
    path: str | Path, snapshots: Iterable[LabelledSnapshot], metadata: Mapping[str, str | int | float] | None = None
) -> None:
    """Write labelled snapshots as extxyz with columns apt:R:9 and pgt:R:27 (C order of our axes), 1e-8 precise.

    The file appears whole or not at all.

    Args:
        path: the file.
        snapshots: what to write.
        metadata: further header entries for each snapshot: field_step, engine, engine_version, level_of_theory.
    """
    frames = [labelled_atoms(labelled, metadata) for labelled in snapshots]
    if not frames:
        raise LabelError(f"no labelled snapshots to write to {path}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    ase.io.write(partial, frames, format="extxyz")
    os.replace(partial, path)
