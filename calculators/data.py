"""Nodes to dataclasses and back: the one place where AiiDA's data types meet the core's."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import ase
import ase.io
import numpy as np
from aiida import orm
from aiida.common.folders import Folder

FIELD_FORCES_KIND = "mimyria_wf.field_forces"


def atoms_from_structure(structure: orm.StructureData, charge: int = 0, multiplicity: int = 1) -> ase.Atoms:
    """Return the structure as ASE atoms that carry charge and multiplicity in ``info``; no cell for clusters."""
    atoms = structure.get_ase()
    atoms.set_pbc(structure.pbc)
    if not any(structure.pbc):
        atoms.set_cell(None)
    for kind in {site.kind_name for site in structure.sites}:
        if len(structure.get_kind(kind).symbols) != 1:
            raise ValueError(f"the kind {kind} is an alloy: give a structure with one element a site")
    atoms.info["charge"], atoms.info["multiplicity"] = int(charge), int(multiplicity)
    return atoms


def structure_from_atoms(atoms: ase.Atoms) -> orm.StructureData:
    """Return a structure node; a cluster gets a bounding cell, which AiiDA wants, and pbc = False."""
    atoms = atoms.copy()
    if not any(atoms.pbc) and abs(atoms.cell.volume) < 1e-6:
        atoms.set_cell(np.diag(np.ptp(atoms.positions, axis=0) + 10.0))
    return orm.StructureData(ase=atoms)


def write_atoms(folder: Folder, name: str, atoms: ase.Atoms | Sequence[ase.Atoms]) -> None:
    """Write snapshots as extxyz into a job's folder."""
    with folder.open(name, "w") as handle:
        ase.io.write(handle, atoms, format="extxyz")


def copy_file(folder: Folder, name: str, node: orm.SinglefileData) -> None:
    """Copy a file node into a job's folder under `name`."""
    with folder.open(name, "wb") as target, node.open(mode="rb") as source:
        while block := source.read(1 << 20):
            target.write(block)


def read_snapshots(node: orm.SinglefileData) -> list[ase.Atoms]:
    """Return the snapshots of an extxyz node."""
    with node.open(mode="r") as handle:
        return list(ase.io.iread(io.StringIO(handle.read()), index=":", format="extxyz"))


def field_forces_node(
    field_vectors: np.ndarray,
    forces: np.ndarray,
    snapshot: np.ndarray,
    configuration_keys: Sequence[str],
    level_of_theory: Mapping[str, Any],
    level_of_theory_key: str,
    *,
    dipoles: np.ndarray | None = None,
    dipole_quanta: np.ndarray | None = None,
    gaps: Sequence[float | None] | None = None,
) -> orm.ArrayData:
    """Return the forces of all field points of one job as a node that later campaigns can find and reuse.

    Args:
        field_vectors: (n_points, 3) [E_h/(e a0)].
        forces: (n_points, n_atoms, 3) [E_h/a0]; only points that the engine finished cleanly.
        snapshot: (n_points,) index into configuration_keys.
        configuration_keys: content keys of the snapshots.
        level_of_theory: settings of the engine, with its version.
        level_of_theory_key: content key of the settings.
        dipoles: (n_points, 3) [e a0], NaN where unknown; Berry phase: modulo the quanta.
        dipole_quanta: (n_configurations, 3, 3), a row for each quantum [e a0]; NaN for clusters.
        gaps: of each configuration [eV], None where unknown.
    """
    node = orm.ArrayData()
    node.set_array("field_vectors", np.asarray(field_vectors, dtype=float))
    node.set_array("forces", np.asarray(forces, dtype=float))
    node.set_array("snapshot", np.asarray(snapshot, dtype=int))
    node.base.attributes.set_many(
        {
            "kind": FIELD_FORCES_KIND,
            "configuration_keys": list(configuration_keys),
            "level_of_theory": dict(level_of_theory),
            "level_of_theory_key": level_of_theory_key,
            "units": {
                "field_vectors": "E_h/(e a0)",
                "forces": "E_h/a0",
                "dipoles": "e a0",
                "dipole_quanta": "e a0",
            },
        }
    )
    if gaps is not None:
        node.base.attributes.set("gaps_eV", [None if gap is None else float(gap) for gap in gaps])
    for name, array in (("dipoles", dipoles), ("dipole_quanta", dipole_quanta)):
        if array is not None:
            node.set_array(name, np.asarray(array, dtype=float))
    return node


def known_field_forces(level_of_theory_key: str, configuration_keys: Sequence[str]) -> dict[str, list[orm.ArrayData]]:
    """Return, by configuration, the nodes of this profile that hold finished field points at this level of theory.

    Labels are keyed by configuration, level of theory and field vector, so that APT and PGT, later iterations, an
    interrupted campaign taken up again and later campaigns reuse them.
    """
    wanted = set(configuration_keys)
    query = orm.QueryBuilder().append(
        orm.ArrayData,
        filters={
            "attributes.kind": FIELD_FORCES_KIND,
            "attributes.level_of_theory_key": level_of_theory_key,
        },
        project=["*", "attributes.configuration_keys"],
    )
    found: dict[str, list[orm.ArrayData]] = {}
    for node, keys in query.iterall():
        for key in wanted.intersection(keys):
            found.setdefault(key, []).append(node)
    return found


def points_of(nodes: Sequence[orm.ArrayData], configuration_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (n_points, 3) field vectors and (n_points, n_atoms, 3) forces of one configuration, each vector once."""
    vectors: list[np.ndarray] = []
    forces: list[np.ndarray] = []
    seen: set[tuple[float, ...]] = set()
    for node in nodes:
        index = node.base.attributes.get("configuration_keys").index(configuration_key)
        mask = node.get_array("snapshot") == index
        for vector, force in zip(node.get_array("field_vectors")[mask], node.get_array("forces")[mask], strict=True):
            key = tuple(np.round(vector, 12) + 0.0)
            if key not in seen:
                seen.add(key)
                vectors.append(vector)
                forces.append(force)
    if not vectors:
        return np.empty((0, 3)), np.empty((0, 0, 3))
    return np.array(vectors), np.array(forces)
