"""Labels made elsewhere: forces in fields and response tensors from extxyz, with units, signs and order as stated.

Nothing is guessed: a file or its reader says the units, the order of the axes and the level of theory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np

from mimyria_wf.errors import FieldSetError, LabelError
from mimyria_wf.field_forces import FieldForces, FieldForcesStore, StoredFieldForces
from mimyria_wf.field_response import check_response
from mimyria_wf.finite_field import diagnostics, point_name
from mimyria_wf.label_plausibility import check_size, mean_charges, sign_warnings, step_warnings
from mimyria_wf.labels import (
    LabelledSnapshot,
    configuration_key,
    level_of_theory_key,
    read_snapshots,
    total_charge,
    write_labels,
)
from mimyria_wf.response import TENSOR_SHAPES, Array, ResponseTensors
from mimyria_wf.units import BOHR, HARTREE_PER_BOHR

FIELD_UNITS: Mapping[str, float] = {"E_h/(e a0)": 1.0, "a.u.": 1.0, "V/A": 1 / HARTREE_PER_BOHR}
"""Unit of a field -> E_h/(e a0)."""
FORCE_UNITS: Mapping[str, float] = {"E_h/a0": 1.0, "a.u.": 1.0, "eV/A": 1 / HARTREE_PER_BOHR}
"""Unit of a force -> E_h/a0."""
TENSOR_UNIT_FACTORS: Mapping[str, Mapping[str, float]] = {
    "apt": {"e": 1.0},
    "pgt": {"e^2 a0/E_h": 1.0, "A^2": BOHR**-2},
}
"""Unit of a tensor -> ours; A^2 is the derivative of a polarizability volume [A^3] by a position [A]."""
AXES: Mapping[str, tuple[str, ...]] = {
    "apt": ("displacement,field", "field,displacement"),
    "pgt": ("displacement,field,field", "field,field,displacement"),
}
"""Orders of axes in which tensors may come, ours first."""
_FORCE_COLUMNS = ("forces", "REF_forces")


@dataclass(frozen=True)
class Origin:
    """Where imported labels come from.

    Attributes:
        engine: the program.
        version: its version.
        level_of_theory: everything that decides the labels; labels of one level are taken to be the same.
    """

    engine: str
    version: str
    level_of_theory: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Check that something is said."""
        if not self.engine.strip() or not self.level_of_theory:
            raise LabelError(
                "imported labels need their level of theory: name the engine and, as a JSON object, what decides them "
                '(functional, basis set, thresholds, ...), e.g. {"functional": "PBE", "basis": "SZV", "eps_scf": 1e-8}'
            )


def import_field_forces(
    path: str | Path,
    out: str | Path,
    origin: Origin,
    *,
    field_unit: str | None = None,
    force_unit: str | None = None,
    field_key: str = "efield",
    forces_key: str | None = None,
    labels: str | Path | None = None,
) -> dict[str, Any]:
    """Read snapshots with one frame for each field point into a field-forces file.

    Args:
        path: extxyz; each frame has the field it felt in its info (three numbers; zero for the point without field)
            and the forces in a column. Frames of one configuration may stand anywhere.
        out: HDF5 file of :class:`mimyria_wf.field_forces.FieldForcesStore`, made or extended.
        origin: program and level of theory.
        field_unit: key of FIELD_UNITS; None: each frame says it as info ``<field_key>_unit``. A positive field pulls
            a positive charge along it, F = qE.
        force_unit: key of FORCE_UNITS; None: each frame says it as info ``forces_unit``.
        field_key: info entry with the field.
        forces_key: column with the forces; None: ``forces`` or ``REF_forces``.
        labels: labelled extxyz to write, of the snapshots that have all points of an APT; with the PGT if all have it.

    Returns:
        JSON-able: counts, the field points found, the largest net force [E_h/a0], mean APT trace/3 by species [e],
        warnings.

    Raises:
        LabelError: a unit, field or column is missing, a point comes twice with other forces, the sign of the field
            contradicts the total charge, or steps or tensors have a size that only a mistaken unit explains.
    """
    points: dict[str, list[tuple[Array, Array]]] = {}
    snapshots: dict[str, ase.Atoms] = {}
    for index, atoms in enumerate(read_snapshots(path)):
        where = f"{path}, frame {index}"
        field = _field(atoms, field_key, field_unit, where)
        forces = _forces(atoms, forces_key, force_unit, where)
        plain = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        plain.info = {k: atoms.info[k] for k in ("charge", "multiplicity", "snapshot") if k in atoms.info}
        key = configuration_key(plain)
        snapshots.setdefault(key, plain)
        points.setdefault(key, []).append((field, forces))
    sound: list[StoredFieldForces] = []
    names: set[str] = set()
    labelled: list[LabelledSnapshot] = []
    net = 0.0
    warnings: dict[str, None] = {}
    apts: list[Array] = []
    with_apt: list[ase.Atoms] = []
    for key, found in points.items():
        atoms = snapshots[key]
        what = str(atoms.info.get("snapshot", atoms.get_chemical_formula()))
        new = FieldForces(np.array([field for field, _ in found]), np.array([forces for _, forces in found]))
        _check_twice(new, f"{path}, {what}")
        warnings |= dict.fromkeys(step_warnings(new.field_vectors, f"{path}, {what}"))
        try:
            checks = diagnostics(new.field_vectors, new.forces, total_charge(atoms))
            checks.check()
            tensors = new.tensors()
            apt = tensors.apt
            labelled.append(LabelledSnapshot(atoms, tensors.apt, tensors.pgt))
        except FieldSetError as error:
            if "follow a field" in str(error):  # a mixed point with another length than its vector says
                raise LabelError(f"{path}, {what}: {error}") from None
        else:
            net = max(net, checks.net_force or 0.0)
            if apt is not None:
                check_size(apt, atoms.get_chemical_symbols(), f"{path}, {what}")
                apts.append(apt)
                with_apt.append(atoms)
        check_response(new.field_vectors, new.forces, total_charge(atoms), f"{path}, {what}")
        sound.append(StoredFieldForces(atoms, new, origin.level_of_theory, origin.engine, origin.version))
        names.update(new.point_names)
    store = FieldForcesStore(out)
    for one in sound:
        store.add_stored(one)
    if labels is not None:
        if not labelled:
            raise LabelError(f"{path}: no snapshot has all the field points of a tensor; there are no labels to write")
        metadata: dict[str, str | int | float] = {
            "engine": origin.engine,
            "engine_version": origin.version,
            "level_of_theory": level_of_theory_key(origin.level_of_theory),
        }
        if any(one.pgt is None for one in labelled):
            labelled = [LabelledSnapshot(one.atoms, one.apt) for one in labelled]
        write_labels(labels, labelled, metadata)
    return {
        "field_forces": str(out),
        "n_snapshots": len(points),
        "n_points": sum(len(found) for found in points.values()),
        "n_snapshots_with_tensors": len(labelled),
        **({} if labels is None else {"labels": str(labels)}),
        "points": sorted(names),
        "largest_net_force": net,
        **_mean_charges(apts, with_apt, list(warnings)),
        **_described(origin),
    }


def import_labels(
    path: str | Path,
    out: str | Path,
    origin: Origin,
    *,
    units: Mapping[str, str] | None = None,
    axes: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read response tensors from columns of an extxyz file into a labelled file in our units and order.

    Args:
        path: extxyz with a column of 9 (APT) or 27 (PGT) numbers an atom.
        out: labelled extxyz to write.
        origin: program and level of theory.
        units: by tensor, key of TENSOR_UNIT_FACTORS; where absent, each frame says it as info ``apt_unit``.
        axes: by tensor, one of AXES; where absent, each frame says it as info ``apt_axes``.
        columns: by tensor, the column; ``apt`` and ``pgt`` by default.

    Returns:
        JSON-able: counts, largest sum-rule residuals [e], [e^2 a0/E_h], mean APT trace/3 by species [e], warnings.
    """
    units, axes, columns = units or {}, axes or {}, columns or {}
    labelled: list[LabelledSnapshot] = []
    for index, atoms in enumerate(read_snapshots(path)):
        where = f"{path}, frame {index}"
        found: dict[str, Array] = {}
        for name in TENSOR_SHAPES:
            values = atoms.arrays.pop(columns.get(name, name), None)
            if values is not None:
                unit = _stated(atoms, units.get(name), f"{name}_unit", tuple(TENSOR_UNIT_FACTORS[name]), where)
                order = _stated(atoms, axes.get(name), f"{name}_axes", AXES[name], where)
                found[name] = _tensor(name, values, unit, order, where)
        if not found:
            wanted = " or ".join(columns.get(name, name) for name in TENSOR_SHAPES)
            raise LabelError(f"{where}: no column {wanted}; columns there: {', '.join(sorted(atoms.arrays))}")
        labelled.append(LabelledSnapshot(atoms, found.get("apt"), found.get("pgt")))
    metadata: dict[str, str | int | float] = {
        "engine": origin.engine,
        "engine_version": origin.version,
        "level_of_theory": level_of_theory_key(origin.level_of_theory),
    }
    with_apt = [one.atoms for one in labelled if one.apt is not None]
    apts = [one.apt for one in labelled if one.apt is not None]
    for atoms, apt in zip(with_apt, apts, strict=True):
        what = str(atoms.info.get("snapshot", atoms.get_chemical_formula()))
        check_size(apt, atoms.get_chemical_symbols(), f"{path}, {what}")
    write_labels(out, labelled, metadata)
    residuals = [one.tensors.sum_rule_residual(one.charge).largest() for one in labelled]
    return {
        "labels": str(out),
        "n_snapshots": len(labelled),
        "targets": sorted(labelled[0].tensors.tensors()),
        "largest_sum_rule_residual": {name: max(r.get(name, 0.0) for r in residuals) for name in residuals[0]},
        **_mean_charges(apts, with_apt, []),
        **_described(origin),
    }


def _mean_charges(apts: Sequence[Array], snapshots: Sequence[ase.Atoms], warnings: list[str]) -> dict[str, Any]:
    """Return the entries of a result that let a person judge sign and size of the APTs."""
    if not apts:
        return {"warnings": warnings} if warnings else {}
    means = mean_charges(apts, snapshots)
    warnings = [*warnings, *sign_warnings(means, any(total_charge(atoms) for atoms in snapshots))]
    return {"mean_apt_trace": means, **({"warnings": warnings} if warnings else {})}


def _described(origin: Origin) -> dict[str, Any]:
    return {
        "engine": origin.engine,
        "engine_version": origin.version,
        "level": dict(origin.level_of_theory),
        "level_of_theory": level_of_theory_key(origin.level_of_theory),
    }


def _stated(atoms: ase.Atoms, given: str | None, key: str, known: Sequence[str], where: str) -> str:
    """Return what the caller or the frame says under a key; LabelError if neither does, or both differ."""
    own = atoms.info.pop(key, None)
    own = None if own is None else str(own).strip()
    if given is None and own is None:
        raise LabelError(f"{where}: {key} is not stated; say it in the file or by option: {', '.join(known)}")
    if given is not None and own is not None and given != own:
        raise LabelError(f"{where}: {key} is '{own}' in the file, '{given}' was given: correct one of them")
    value = str(own if given is None else given)
    if value not in known:
        raise LabelError(f"{where}: {key} must be one of {', '.join(known)}, got '{value}'")
    return value


def _field(atoms: ase.Atoms, key: str, unit: str | None, where: str) -> Array:
    value = atoms.info.get(key)
    if value is None:
        raise LabelError(f"{where}: no {key} in its header; every frame needs the field it felt, zero where none")
    try:
        field = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        field = np.full(1, np.nan)
    if field.shape != (3,) or not np.isfinite(field).all():
        raise LabelError(f"{where}: {key} must be three numbers, got {value!r}")
    return field * FIELD_UNITS[_stated(atoms, unit, f"{key}_unit", tuple(FIELD_UNITS), where)]


def _forces(atoms: ase.Atoms, key: str | None, unit: str | None, where: str) -> Array:
    results = {} if atoms.calc is None else getattr(atoms.calc, "results", {})
    everything = {**atoms.arrays, **results}
    names = _FORCE_COLUMNS if key is None else (key,)
    found = [name for name in names if name in everything]
    if len(found) != 1:
        problem = "two columns of forces" if found else f"no column {' or '.join(names)}"
        raise LabelError(f"{where}: {problem}; name one of {', '.join(sorted(everything))}")
    forces = np.asarray(everything[found[0]], dtype=float)
    if forces.shape != (len(atoms), 3) or not np.isfinite(forces).all():
        raise LabelError(f"{where}: {found[0]} must be three finite numbers an atom, got shape {forces.shape}")
    return forces * FORCE_UNITS[_stated(atoms, unit, "forces_unit", tuple(FORCE_UNITS), where)]


def _tensor(name: str, values: Array, unit: str, order: str, where: str) -> Array:
    shape = TENSOR_SHAPES[name]
    if values.ndim != 2 or values.shape[1] != int(np.prod(shape)) or not np.issubdtype(values.dtype, np.number):
        found = 1 if values.ndim == 1 else values.shape[1]
        raise LabelError(f"{where}: column {name} must be {name}:R:{int(np.prod(shape))}, found {found} an atom")
    tensor = np.asarray(values, dtype=float).reshape(-1, *shape) * TENSOR_UNIT_FACTORS[name][unit]
    if order != AXES[name][0]:  # (atom, field, ..., displacement) -> (atom, displacement, field, ...)
        tensor = np.moveaxis(tensor, -1, 1)
    try:
        ResponseTensors(**{name: tensor})
    except LabelError as error:
        raise LabelError(f"{where}: {error}") from None
    return tensor


def _check_twice(forces: FieldForces, where: str) -> None:
    for i, vector in enumerate(forces.field_vectors):
        same = np.flatnonzero(np.linalg.norm(forces.field_vectors[:i] - vector, axis=1) < 1e-12)
        if len(same):
            raise LabelError(f"{where}: field point {point_name(vector)} comes twice, keep one frame of it")
