"""Cheap labels of periodic snapshots: the tensors of every molecule from the cluster of molecules around it.

tblite has no electric field under periodic boundaries. Around each molecule of a snapshot, the cluster of whole
molecules within a radius is cut out, brought into homogeneous fields, and the tensors of the central molecule alone are
kept: a set of APTs, or PGTs, of the periodic snapshot at a level that costs seconds. What lies beyond the radius, and
the charges that would screen it, is missing: these labels are for pre-training and for choosing, not for spectra.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.formula import Formula

from mimyria_wf.engines import FieldEngine
from mimyria_wf.errors import EngineError, LabelError
from mimyria_wf.finite_field import check_step, check_targets, field_vectors, response_tensors
from mimyria_wf.labels import LabelledSnapshot, multiplicity, read_snapshots, total_charge, write_labels
from mimyria_wf.neighbours import neighbour_list
from mimyria_wf.response import Array
from mimyria_wf.topology import BOND_SCALE, Topology, find_topology

Progress = Callable[[int, int, str], None]

DEFAULT_RADIUS = 3.5
"""Between the nearest atoms of two molecules [A]; about 11 molecules in liquid water."""

_MONATOMIC = {
    **dict.fromkeys(("He", "Ne", "Ar", "Kr", "Xe", "Rn"), 0),
    **dict.fromkeys(("Li", "Na", "K", "Rb", "Cs"), 1),
    **dict.fromkeys(("Be", "Mg", "Ca", "Sr", "Ba", "Zn"), 2),
    "Al": 3,
    **dict.fromkeys(("F", "Cl", "Br", "I"), -1),
}
_POLYATOMIC = {
    **dict.fromkeys(("H3O", "NH4"), 1),
    **dict.fromkeys(("OH", "CN", "NO2", "NO3", "HCO3", "HSO4", "H2PO4", "ClO4", "BF4", "PF6", "HCO2", "CH3CO2"), -1),
    **dict.fromkeys(("SO4", "CO3", "HPO4"), -2),
    "PO4": -3,
}


def _hill(formula: str) -> str:
    """Return a formula in Hill's order; LabelError if it is none."""
    try:
        parsed = Formula(formula)
    except ValueError:
        parsed = Formula("")
    if not parsed or any(symbol not in chemical_symbols[1:] for symbol in parsed):
        raise LabelError(f"charges: {formula!r} is not a formula; write one like SO4 or Na")
    return str(parsed.format("hill"))


FORMAL_CHARGES: Mapping[str, int] = {_hill(f): q for f, q in {**_MONATOMIC, **_POLYATOMIC}.items()}
"""Charge [e] by formula in Hill's order; other molecules of an even number of electrons are neutral."""


@dataclass(frozen=True)
class Cluster:
    """A molecule of a snapshot with the molecules around it.

    Attributes:
        atoms: not periodic, the central molecule first; info holds charge and snapshot.
        members: (n_central,) atoms of the snapshot that are the first n_central of the cluster.
        n_molecules: the central one included.
    """

    atoms: ase.Atoms
    members: Array
    n_molecules: int


def formal_charges(atoms: ase.Atoms, topology: Topology, given: Mapping[str, int] | None = None) -> Array:
    """Return the charge of each molecule, (n_molecules,) [e].

    In this order: what is given, :data:`FORMAL_CHARGES`, zero for a molecule of several atoms. The charges must add
    up to the snapshot's, and every molecule must have an even number of electrons.

    Args:
        atoms: the snapshot; info["charge"] is its total charge, 0 by default.
        topology: its molecules.
        given: charge by formula, such as {"SO4": -2, "Fe": 3}; the order of elements does not matter.

    Raises:
        LabelError: a charge is unknown, or they do not add up.
    """
    known = {**FORMAL_CHARGES, **{_hill(formula): int(q) for formula, q in (given or {}).items()}}
    where = atoms.info.get("snapshot", atoms.get_chemical_formula())
    electrons = np.bincount(topology.molecule, weights=topology.numbers).astype(int)
    n_atoms = np.bincount(topology.molecule)
    charges = np.zeros(topology.n_molecules, dtype=int)
    for k, formula in enumerate(topology.formulas):
        if formula not in known and n_atoms[k] == 1:
            raise LabelError(f"{where}: a lone {formula} has no charge by itself; give it, as in charges {formula}=2")
        charges[k] = known.get(formula, 0)
        if (electrons[k] - charges[k]) % 2:
            raise LabelError(
                f"{where}: {formula} of charge {charges[k]:+d} has an odd number of electrons, which clusters cannot "
                f"hold; give its charge, as in charges {formula}=-1, or label with an engine for periodic cells"
            )
    if charges.sum() != total_charge(atoms):
        counted = Counter((f, int(q)) for f, q in zip(topology.formulas, charges) if q)
        found = ", ".join(f"{n} {f} of {q:+d}" for (f, q), n in sorted(counted.items())) or "no ions"
        raise LabelError(
            f"{where}: its molecules have charge {charges.sum():+d} together ({found}), the snapshot "
            f"{total_charge(atoms):+d}: correct charge, or give charges by formula"
        )
    return charges


def cut_clusters(
    atoms: ase.Atoms,
    radius: float = DEFAULT_RADIUS,
    charges: Mapping[str, int] | None = None,
    n_molecules: int | None = None,
) -> list[Cluster]:
    """Return one cluster for each molecule of a snapshot, in the order of the molecules.

    A molecule belongs to the cluster if one of its atoms is within the radius of one of the central molecule's; in a
    small cell, images count like any other molecule, those of the central one too.

    Args:
        atoms: any cell, wrapped or not.
        radius: between the nearest atoms of two molecules [A].
        charges: of molecules by formula, see :func:`formal_charges`.
        n_molecules: keep at most so many molecules, the nearest, the central one included.

    Raises:
        LabelError: a solid without molecules, an open shell, a charge that is unknown.
    """
    if not radius > 0 or (n_molecules is not None and n_molecules < 1):
        raise LabelError(f"clusters need a positive radius and a molecule, got {radius} A and {n_molecules}")
    where = atoms.info.get("snapshot", atoms.get_chemical_formula())
    if multiplicity(atoms) != 1:
        raise LabelError(
            f"{where}: clusters hold closed shells only, the snapshot has multiplicity {multiplicity(atoms)}"
        )
    topology = find_topology(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)
    if any(atoms.pbc) and len(topology.bonds) == 0 and not set(topology.formulas) <= {"He", "Ne", "Ar", "Kr", "Xe"}:
        raise LabelError(
            f"{where}: no two atoms are bonded, so there are no molecules to cut clusters of; "
            "label solids with engine cp2k or vasp"
        )
    positions = _whole(atoms, topology, where)
    molecule_charges = formal_charges(atoms, topology, charges)
    order, begins = topology.order
    members = np.split(order, begins[1:])
    # whole molecules: the lattice vector of a pair is that of the two molecules
    pairs = neighbour_list(positions, atoms.cell.array, atoms.pbc, radius)
    centres, others = topology.molecule[pairs.receivers], topology.molecule[pairs.senders]
    distances = np.linalg.norm(pairs.vectors(positions), axis=1)
    is_outside = (centres != others) | (np.abs(pairs.shifts) > 1e-6).any(axis=1)
    clusters = []
    for centre in range(topology.n_molecules):
        nearest: dict[tuple[int, tuple[float, ...]], float] = {}
        for edge in np.flatnonzero(is_outside & (centres == centre)):
            key = (int(others[edge]), tuple(np.round(pairs.shifts[edge], 6)))
            nearest[key] = min(nearest.get(key, np.inf), float(distances[edge]))
        around = sorted(nearest, key=lambda key: (nearest[key], key))
        chosen = [(centre, (0.0, 0.0, 0.0)), *around][:n_molecules]
        origin = positions[members[centre]].mean(axis=0)
        cluster = ase.Atoms(
            numbers=np.concatenate([atoms.numbers[members[m]] for m, _ in chosen]),
            positions=np.concatenate([positions[members[m]] + np.array(shift) for m, shift in chosen]) - origin,
            pbc=False,
        )
        cluster.info["charge"] = int(sum(molecule_charges[m] for m, _ in chosen))
        cluster.info["snapshot"] = f"{where}, cluster around atom {members[centre][0]}"
        clusters.append(Cluster(cluster, members[centre], len(chosen)))
    return clusters


def _whole(atoms: ase.Atoms, topology: Topology, where: object) -> Array:
    """Return positions (n_atoms, 3) with every molecule in one piece [A]; LabelError if one has no end."""
    positions = np.array(atoms.positions, dtype=float)
    if not len(topology.bonds) or not any(atoms.pbc):
        return positions
    radii = covalent_radii[atoms.numbers]
    pairs = neighbour_list(positions, atoms.cell.array, atoms.pbc, 3 * float(radii.max()))
    vectors = pairs.vectors(positions)
    ratio = np.linalg.norm(vectors, axis=1) / (radii[pairs.receivers] + radii[pairs.senders])
    pair = pairs.receivers * len(atoms) + pairs.senders
    bonds = np.concatenate([topology.bonds, topology.bonds[:, ::-1], np.unique(topology.bonds)[:, None] * [1, 1]])
    nearest = np.full(len(atoms) ** 2, np.inf)
    np.minimum.at(nearest, pair, ratio)
    # every image that is as near as a bond, and of two bonded atoms the nearest in any case, for a stretched proton
    is_near = (ratio < BOND_SCALE) | ((pairs.receivers != pairs.senders) & (ratio == nearest[pair]))
    chosen = np.flatnonzero(np.isin(pair, bonds @ [len(atoms), 1]) & is_near)
    steps: dict[int, list[tuple[int, Array]]] = {}
    for edge in chosen:
        steps.setdefault(int(pairs.receivers[edge]), []).append((int(pairs.senders[edge]), vectors[edge]))
    seen: set[int] = set()
    for start in steps:
        stack = [] if start in seen else [start]
        seen.add(start)
        while stack:
            i = stack.pop()
            for j, vector in steps[i]:
                place = positions[i] + vector
                if j not in seen:
                    seen.add(j)
                    positions[j] = place
                    stack.append(j)
                elif np.abs(place - positions[j]).max() > 0.1:
                    raise LabelError(
                        f"{where}: atoms {min(i, j)} and {max(i, j)} belong to a bonded network without end, not to a "
                        "molecule; label solids with engine cp2k or vasp"
                    )
    return positions


@dataclass(frozen=True)
class _ClusterTask:
    """Computes the tensors of a cluster's central molecule, in this process or another."""

    engine: FieldEngine
    step: float
    targets: tuple[str, ...]

    def __call__(self, cluster: Cluster) -> tuple[Array, Array | None]:
        vectors = np.array(list(field_vectors(self.step, self.targets).values()))
        forces = np.asarray(self.engine.forces(cluster.atoms, vectors), dtype=float)
        # the rest of the cluster feels the field too, but its own surroundings are cut off
        tensors = response_tensors(vectors, forces[:, : len(cluster.members)], self.targets)
        assert tensors.apt is not None
        return tensors.apt, tensors.pgt


_task: _ClusterTask | None = None


def _take_task(task: _ClusterTask) -> None:
    """Give a worker process its engine once."""
    global _task
    _task = task


def _work(cluster: Cluster) -> tuple[Array, Array | None]:
    assert _task is not None
    return _task(cluster)


def _in_order(task: _ClusterTask, clusters: Sequence[Cluster], processes: int) -> Iterator[tuple[Array, Array | None]]:
    if processes == 1:
        yield from map(task, clusters)
        return
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_take_task, initargs=(task,))
    try:
        yield from pool.map(_work, clusters, chunksize=8)
    except BrokenProcessPool:
        raise EngineError("a labelling process ended unexpectedly (out of memory?): use fewer processes") from None
    finally:
        pool.shutdown(cancel_futures=True)


def level_of_clusters(engine: FieldEngine, radius: float, n_molecules: int | None = None) -> str:
    """Return what labels of clusters call their level of theory."""
    level = engine.level_of_theory
    most = "" if n_molecules is None else f", at most {n_molecules} molecules"
    return f"{level.get('program', engine.name)} {level.get('method', '')} clusters, radius {radius:g} A{most}"


def label_clusters(
    engine: FieldEngine,
    snapshots: Sequence[ase.Atoms],
    targets: Sequence[str],
    step: float = 1e-3,
    radius: float = DEFAULT_RADIUS,
    *,
    charges: Mapping[str, int] | None = None,
    n_molecules: int | None = None,
    processes: int = 1,
    progress: Progress | None = None,
    sizes: list[int] | None = None,
) -> list[LabelledSnapshot]:
    """Return snapshots with the tensors of every atom, from the cluster around its molecule.

    Args:
        engine: gives forces of clusters in fields; with `processes` it must be picklable.
        snapshots: of any cell; info charge counts.
        targets: "apt", "pgt" or both; the APT of a PGT set is there too.
        step: h [E_h/(e a0)].
        radius: between the nearest atoms of two molecules [A].
        charges: of molecules by formula, see :func:`formal_charges`.
        n_molecules: most molecules in a cluster.
        processes: workers that share the clusters.
        progress: called with (clusters done, all, what is going on).
        sizes: a list to which the number of molecules of each cluster is appended.

    Returns:
        labelled snapshots; info["level_of_theory"] names method and radius.
    """
    step, wanted = check_step(step), check_targets(targets)
    if processes < 1:
        raise EngineError(f"processes must be 1 or more, got {processes}")
    cut = [cut_clusters(atoms, radius, charges, n_molecules) for atoms in snapshots]
    apts = [np.zeros((len(atoms), 3, 3)) for atoms in snapshots]
    pgts = [np.zeros((len(atoms), 3, 3, 3)) for atoms in snapshots]
    places = [(k, cluster) for k, clusters in enumerate(cut) for cluster in clusters]
    if sizes is not None:
        sizes.extend(cluster.n_molecules for _, cluster in places)
    results = _in_order(_ClusterTask(engine, step, wanted), [cluster for _, cluster in places], processes)
    for done, ((k, cluster), (apt, pgt)) in enumerate(zip(places, results), start=1):
        apts[k][cluster.members] = apt
        if pgt is not None:
            pgts[k][cluster.members] = pgt
        if progress is not None:
            progress(done, len(places), "clusters")
    labelled = []
    for atoms, apt, pgt in zip(snapshots, apts, pgts):
        named = atoms.copy()
        named.info["level_of_theory"] = level_of_clusters(engine, radius, n_molecules)
        labelled.append(LabelledSnapshot(named, apt, pgt if "pgt" in wanted else None))
    return labelled


def label_clusters_file(
    path: str | Path,
    engine: FieldEngine,
    targets: Sequence[str],
    step: float,
    out: str | Path,
    radius: float = DEFAULT_RADIUS,
    *,
    charges: Mapping[str, int] | None = None,
    charge: int | None = None,
    n_molecules: int | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Label every snapshot of a file through clusters and write it as :func:`mimyria_wf.engines.label_file` does.

    Args:
        path: snapshots, anything ASE reads.
        engine: gives forces of clusters in fields.
        targets: "apt", "pgt" or both.
        step: h [E_h/(e a0)].
        out: extxyz file to write.
        radius: between the nearest atoms of two molecules [A].
        charges: of molecules by formula, see :func:`formal_charges`.
        charge: total charge [e] of snapshots that do not state theirs.
        n_molecules: most molecules in a cluster.
        processes: workers that share the clusters.
        progress: called with (clusters done, all, what is going on).

    Returns:
        JSON-able: counts of snapshots, atoms and clusters, molecules a cluster, level of theory, rms sum-rule
        residuals a snapshot [e], [e^2 a0/E_h] (they do not vanish: each molecule comes from a cluster of its own),
        seconds.
    """
    began = time.perf_counter()
    snapshots = read_snapshots(path)
    for index, atoms in enumerate(snapshots):
        if charge is not None and atoms.info.setdefault("charge", charge) != charge:
            raise LabelError(f"{path}, snapshot {index}: charge {charge} is asked for, the file says otherwise")
        atoms.info.setdefault("snapshot", f"{Path(path).stem}/{index}")
        for name in ("apt", "pgt"):
            atoms.arrays.pop(name, None)
    sizes: list[int] = []
    labelled = label_clusters(
        engine,
        snapshots,
        targets,
        step,
        radius,
        charges=charges,
        n_molecules=n_molecules,
        processes=processes,
        progress=progress,
        sizes=sizes,
    )
    metadata: dict[str, str | int | float] = {
        "field_step": check_step(step),
        "engine": engine.name,
        "engine_version": engine.version,
        "level_of_theory": level_of_clusters(engine, radius, n_molecules),
    }
    write_labels(out, labelled, metadata)
    residuals = {
        name: [getattr(one, name).sum(axis=0) - (one.charge * np.eye(3) if name == "apt" else 0) for one in labelled]
        for name in labelled[0].tensors.tensors()
    }
    return {
        "labels": str(out),
        "targets": sorted(residuals),
        "n_snapshots": len(labelled),
        "n_atoms": sum(len(one.atoms) for one in labelled),
        "n_clusters": len(sizes),
        "mean_molecules_in_cluster": float(np.mean(sizes)),
        "radius": radius,
        **metadata,
        "level": dict(engine.level_of_theory),
        "sum_rule_residual": {name: float(np.sqrt(np.mean(np.square(r)))) for name, r in residuals.items()},
        "seconds": time.perf_counter() - began,
    }
