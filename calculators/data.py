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

from mimyria_wf.labels import matching_rows
from mimyria_wf.response import ResponseTensors

FIELD_FORCES_KIND = "mimyria_wf.field_forces"
RESPONSE_TENSORS_KIND = "mimyria_wf.response_tensors"


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


def version_of(node: orm.ArrayData) -> str:
    """Return the version of the program that computed a node's forces, "" where it is not recorded.

    Where the SCF was brought to converge with other settings, that is said behind it: what is left below the threshold
    depends on them.
    """
    level: dict[str, Any] = node.base.attributes.get("level_of_theory", {})
    version, step = str(level.get("version") or ""), scf_settings_of(node)
    return f"{version}, SCF settings {step}" if step else version


def scf_settings_of(node: orm.ArrayData) -> int:
    """Return the step of the ladder of SCF settings that a node's forces were computed with, 0 for the template's."""
    return int(node.base.attributes.get("level_of_theory", {}).get("scf_settings") or 0)


def of_one_version(
    nodes: Sequence[orm.ArrayData],
    configuration_key: str,
    wanted: np.ndarray,
    step: float,
    preferred: str | None = None,
) -> list[orm.ArrayData]:
    """Return the nodes of one version of the program: one that is complete, else the preferred, else the fullest.

    A tensor is a difference of forces that agree in all but the last digits: two versions of a program differ by more
    (CP2K changed the net force in a periodic field), so that their points are never combined in one snapshot.

    Args:
        nodes: nodes of one level of theory that hold the configuration.
        configuration_key: of the snapshot.
        wanted: (n_points, 3) field vectors [E_h/(e a0)].
        step: h [E_h/(e a0)].
        preferred: the version that computes now; None: not known yet.
    """
    by_version: dict[str, list[orm.ArrayData]] = {}
    for node in nodes:
        by_version.setdefault(version_of(node), []).append(node)

    def rank(version: str) -> tuple[bool, bool, int, str]:
        vectors, _ = points_of(by_version[version], configuration_key)
        n_found = sum(row is not None for row in matching_rows(vectors, wanted, step))
        return n_found == len(wanted), version == preferred, n_found, version

    return by_version[max(by_version, key=rank)] if by_version else []


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


def response_tensors_node(
    tensors: Sequence[ResponseTensors],
    configuration_keys: Sequence[str],
    level_of_theory: Mapping[str, Any],
    level_of_theory_key: str,
    *,
    field_step: float | None = None,
    dielectrics: Sequence[np.ndarray] | None = None,
) -> orm.ArrayData:
    """Return tensors that an engine gives itself as a node that later campaigns can find and reuse.

    Args:
        tensors: of each configuration.
        configuration_keys: content keys of the snapshots.
        level_of_theory: settings of the engine, with its version.
        level_of_theory_key: content key of the settings.
        field_step: of engines that difference in fields [E_h/(e a0)].
        dielectrics: (3, 3) electronic dielectric tensor of each configuration.
    """
    node = orm.ArrayData()
    for number, one in enumerate(tensors):
        for name, tensor in one.tensors().items():
            node.set_array(f"{name}_{number}", np.asarray(tensor, dtype=float))
        if dielectrics is not None:
            node.set_array(f"dielectric_{number}", np.asarray(dielectrics[number], dtype=float))
    node.base.attributes.set_many(
        {
            "kind": RESPONSE_TENSORS_KIND,
            "configuration_keys": list(configuration_keys),
            "level_of_theory": dict(level_of_theory),
            "level_of_theory_key": level_of_theory_key,
            "field_step": field_step,
            "units": {"apt": "e", "pgt": "e^2 a0/E_h", "dielectric": "1", "field_step": "E_h/(e a0)"},
        }
    )
    return node


def known_response_tensors(
    level_of_theory_key: str, configuration_keys: Sequence[str], field_step: float | None = None
) -> dict[str, list[orm.ArrayData]]:
    """Return, by configuration, the nodes of this profile that hold its tensors at this level of theory and step."""
    wanted = set(configuration_keys)
    query = orm.QueryBuilder().append(
        orm.ArrayData,
        filters={"attributes.kind": RESPONSE_TENSORS_KIND, "attributes.level_of_theory_key": level_of_theory_key},
        project=["*", "attributes.configuration_keys", "attributes.field_step"],
    )
    found: dict[str, list[orm.ArrayData]] = {}
    for node, keys, step in query.iterall():
        if step is None or field_step is None or abs(step - field_step) < 1e-6 * field_step:
            for key in wanted.intersection(keys):
                found.setdefault(key, []).append(node)
    return found


def tensors_in(node: orm.ArrayData, configuration_key: str) -> ResponseTensors:
    """Return the tensors that a node holds of one configuration."""
    number = node.base.attributes.get("configuration_keys").index(configuration_key)
    names = node.get_arraynames()
    apt, pgt = (node.get_array(f"{name}_{number}") if f"{name}_{number}" in names else None for name in ("apt", "pgt"))
    return ResponseTensors(apt, pgt)
