"""What computes forces in fields, and what is done with it: label snapshots, label whole trajectories."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.data import chemical_symbols

from mimyria_wf.derivatives import (
    DerivativeWriter,
    RemovedMotion,
)
from mimyria_wf.errors import EngineError, LabelError, TrajectoryError
from mimyria_wf.field_engine import (
    FieldEngine,
    FieldResults,
    checked_identity,
    one_line,
    results_of,
    sound_forces,
)
from mimyria_wf.field_forces import (
    FieldForces,
    FieldForcesStore,
    StoredFieldForces,
    iterate_field_forces,
    known_version,
    read_field_forces,
    write_field_forces,
)
from mimyria_wf.field_response import check_response
from mimyria_wf.finite_field import (
    FieldDiagnostics,
    check_step,
    check_targets,
    field_vectors,
    response_tensors,
)
from mimyria_wf.frames import Trajectory, TrajectoryReader
from mimyria_wf.groups import Follower, groups_of, n_lags
from mimyria_wf.labels import (
    LabelledSnapshot,
    level_of_theory_key,
    matching_rows,
    read_snapshots,
    total_charge,
    write_labels,
)
from mimyria_wf.md_summary import energy_conservation
from mimyria_wf.response import Array, ResponseTensors, project_apt, project_pgt
from mimyria_wf.trajectory import check_velocities

__all__ = [
    "FieldEngine",
    "FieldForces",
    "FieldForcesStore",
    "StoredFieldForces",
    "completed",
    "computed",
    "label_file",
    "label_snapshots",
    "label_trajectory",
    "read_field_forces",
    "write_field_forces",
]

Progress = Callable[[int, int, str], None]


def label_snapshots(
    engine: FieldEngine,
    snapshots: Sequence[ase.Atoms],
    step: float,
    targets: Sequence[str],
    progress: Progress | None = None,
    store: FieldForcesStore | None = None,
    notes: list[str] | None = None,
) -> Iterator[tuple[FieldForces, ResponseTensors]]:
    """Yield forces and tensors of each snapshot, computing only field points that the store does not know.

    Args:
        engine: gives the forces.
        snapshots: what to label.
        step: h [E_h/(e a0)].
        targets: "apt", "pgt" or both; the APT of a PGT set is there too.
        progress: called with (snapshots done, all, what is going on).
        store: known forces, extended as the work goes on.
        notes: takes a line for each version of the program whose points were not used.
    """
    step, wanted = check_step(step), check_targets(targets)
    store = store if store is not None else FieldForcesStore()
    for index, atoms in enumerate(snapshots):
        vectors = np.array(list(field_vectors(step, wanted).values()))
        before = store.n_added
        known = completed(engine, atoms, vectors, step, store, notes)
        field_forces = known.chosen(vectors, step)
        tensors = field_forces.tensors(wanted)
        if progress is not None:
            n_new = store.n_added - before
            progress(index + 1, len(snapshots), f"{n_new} field points computed" if n_new else "known")
        yield field_forces, tensors


def completed(
    engine: FieldEngine,
    atoms: ase.Atoms,
    vectors: Array,
    step: float,
    store: FieldForcesStore,
    notes: list[str] | None = None,
) -> FieldForces:
    """Return the known forces of a snapshot, all of one version of the program, after computing the points it lacks.

    A set of another version is used if it is whole, since nothing is computed then; part of one is never completed by
    the version that computes now. An engine that knows its version only when it has run is asked for what the store's
    version lacks first, then for the rest if it turns out to be another.

    Args:
        engine: gives the forces.
        atoms: the snapshot.
        vectors: (n, 3) field points [E_h/(e a0)].
        step: shortest field among them [E_h/(e a0)].
        store: known forces, extended.
        notes: takes a line about versions that were not used, once each.

    Raises:
        EngineError: a point is not sound; the others are kept.
    """
    level = engine.level_of_theory
    known = store.get(atoms, level, known_version(engine.version), vectors, step)
    fullest = store.get(atoms, level, None, vectors, step)
    if fullest is not None and len(_missing(known, vectors, step)) and not len(_missing(fullest, vectors, step)):
        whole = f"points of {engine.name} {fullest.version} are used as they are, the version here is {engine.version}"
        if notes is not None and whole not in notes:
            notes.append(whole)
        return fullest
    for _ in range(3):
        missing = _missing(known, vectors, step)
        if known is not None and not len(missing):
            break
        known = computed(engine, atoms, missing, store)
    else:
        raise EngineError(f"{engine.name} gives another version with every run: use one installation")
    others = [version for version in store.versions(atoms, level) if version != known.version]
    line = f"points of {engine.name} {', '.join(others)} are kept but not combined with those of {known.version}"
    if others and notes is not None and line not in notes:
        notes.append(line)
    return known


def _missing(known: FieldForces | None, vectors: Array, step: float) -> Array:
    """Return the field points (n, 3) that are not known."""
    rows = matching_rows(np.empty((0, 3)) if known is None else known.field_vectors, vectors, step)
    return vectors[[row is None for row in rows]]


def computed(engine: FieldEngine, atoms: ase.Atoms, vectors: Array, store: FieldForcesStore) -> FieldForces:
    """Compute field points (n, 3) [E_h/(e a0)], keep the sound ones, and return all that their version knows.

    Raises:
        EngineError: a point is not sound; the others are kept.
    """
    results = results_of(engine, atoms, vectors)
    if results.forces.shape[1] == len(atoms) and results.valid.any():
        sound = _sound_part(results)
        _check_response(engine, atoms, sound)
        store.add(atoms, sound, engine)
    sound_forces(engine, atoms, results)
    known = store.get(atoms, engine.level_of_theory, known_version(results.version) or engine.version)
    assert known is not None
    return known


def _check_response(engine: FieldEngine, atoms: ase.Atoms, forces: FieldForces) -> None:
    what = atoms.info.get("snapshot", atoms.get_chemical_formula())
    check_response(forces.field_vectors, forces.forces, total_charge(atoms), f"engine {engine.name}, {what}")


def _sound_part(results: FieldResults) -> FieldForces:
    rows = np.flatnonzero(results.valid)
    return FieldForces(
        results.field_vectors[rows],
        results.forces[rows],
        None if results.dipoles is None else results.dipoles[rows],
        None if results.gaps is None else results.gaps[rows],
        results.dipole_quanta,
        results.version,
    )


def label_file(
    path: str | Path,
    engine: FieldEngine,
    targets: Sequence[str],
    step: float,
    out: str | Path,
    field_forces_out: str | Path | None = None,
    points_known: str | Path | Sequence[str | Path] | None = None,
    progress: Progress | None = None,
    *,
    charge: int | None = None,
    multiplicity: int | None = None,
) -> dict[str, Any]:
    """Label every snapshot of a file and write it with columns apt:R:9 and, for a PGT, pgt:R:27.

    Labels are written as computed, with the sum rules' residual in the result, not projected.

    Args:
        path: snapshots, extxyz or anything ASE reads; info charge and multiplicity count.
        engine: gives the forces.
        targets: "apt", "pgt" or both; with "pgt" the APT comes for free and is written too.
        step: h [E_h/(e a0)].
        out: extxyz file to write, once all labels are there.
        field_forces_out: field-forces file that grows snapshot by snapshot; if it exists, nothing in it is computed
            again.
        points_known: further field-forces files whose points need not be computed.
        progress: called with (snapshots done, all, what is going on).
        charge: total charge [e] of snapshots that do not state theirs.
        multiplicity: spin multiplicity of snapshots that do not state theirs.

    Returns:
        JSON-able: counts of snapshots and field points, engine, level of theory, largest sum-rule residuals [e],
        [e^2 a0/E_h], the field sets' diagnostics, seconds.
    """
    began = time.perf_counter()
    step, wanted = check_step(step), check_targets(targets)
    snapshots = read_snapshots(path)
    for index, atoms in enumerate(snapshots):
        _state(atoms.info, charge, multiplicity, f"{path}, snapshot {index}")
    store = FieldForcesStore(field_forces_out)
    known_files = [points_known] if isinstance(points_known, str | Path) else list(points_known or [])
    for known in known_files:
        store.include(known)
    level = checked_identity(engine).level_of_theory
    warnings = [line for known in known_files if (line := _of_another_level(known, engine))]
    warnings += checked(engine, snapshots, wanted, step)
    labelled: list[LabelledSnapshot] = []
    checks: list[FieldDiagnostics] = []
    n_needed = len(field_vectors(step, wanted))
    versions: dict[str, None] = {}
    notes: list[str] = []
    for atoms, (field_forces, tensors) in zip(
        snapshots, label_snapshots(engine, snapshots, step, wanted, progress, store, notes), strict=True
    ):
        errors = field_forces.errors()
        versions[field_forces.version] = None
        labelled.append(LabelledSnapshot(_with_errors(atoms, errors), tensors.apt, tensors.pgt))
        checks.append(field_forces.diagnostics(total_charge(atoms)))
    metadata: dict[str, str | int | float] = {
        "field_step": step,
        "engine": engine.name,
        "engine_version": ", ".join(sorted(versions)),
        "level_of_theory": level_of_theory_key(level),
    }
    warnings += [*notes, *([f"snapshots differ in the version of {engine.name}"] if len(versions) > 1 else [])]
    write_labels(out, labelled, metadata)
    residuals = [one.tensors.sum_rule_residual(one.charge).largest() for one in labelled]
    return {
        "labels": str(out),
        "field_forces": None if field_forces_out is None else str(field_forces_out),
        "targets": sorted(labelled[0].tensors.tensors()),
        "n_snapshots": len(labelled),
        "n_atoms": sum(len(one.atoms) for one in labelled),
        "n_points": n_needed * len(labelled),
        "n_points_computed": store.n_added,
        **metadata,
        "level": dict(level),
        "largest_sum_rule_residual": {name: max(r[name] for r in residuals) for name in residuals[0]},
        "largest_error": {
            name: _largest(float(one.atoms.info[f"{name}_error"]) for one in labelled)
            for name in ("apt", "pgt")
            if all(f"{name}_error" in one.atoms.info for one in labelled)
        },
        "largest_net_force": _largest(c.net_force for c in checks),
        "largest_apt_noise": _largest(c.apt_noise for c in checks),
        **({"warnings": warnings} if warnings else {}),
        "seconds": time.perf_counter() - began,
    }


def _with_errors(atoms: ase.Atoms, errors: dict[str, float]) -> ase.Atoms:
    noted = atoms.copy()
    noted.info = {**atoms.info, **{f"{name}_error": value for name, value in errors.items()}}
    return noted


def _of_another_level(path: str | Path, engine: FieldEngine) -> str:
    """Return one line if a field-forces file holds nothing at the engine's level of theory, "" otherwise."""
    key = level_of_theory_key(engine.level_of_theory)
    engines: dict[str, None] = {}
    for stored in iterate_field_forces(path):
        if level_of_theory_key(stored.level_of_theory) == key:
            return ""
        engines[stored.engine] = None
    of = f"of {' and '.join(engines)} " if engines else ""
    return f"{path}: nothing {of}is at the level of theory of engine {engine.name} as it is set up; none of it is used"


def checked(engine: FieldEngine, snapshots: Iterable[ase.Atoms], targets: Sequence[str], step: float) -> list[str]:
    """Return the engine's warnings about these snapshots, each once, before anything runs.

    Raises:
        EngineError: the first reason why one of them cannot be computed, with its number.
    """
    warnings: dict[str, None] = {}
    for index, atoms in enumerate(snapshots):
        try:
            with one_line(f"engine {engine.name} failed in check"):
                warnings |= dict.fromkeys(engine.check(atoms, targets, step))
        except EngineError as error:
            raise EngineError(f"snapshot {index}: {error}") from None
    return list(warnings)


def _state(info: dict[str, Any], charge: int | None, multiplicity: int | None, where: str) -> None:
    """Write charge and multiplicity into a snapshot's info; LabelError if it says otherwise itself."""
    for key, given in (("charge", charge), ("multiplicity", multiplicity)):
        if given is not None and info.setdefault(key, given) != given:
            raise LabelError(f"{where}: {key} {given} is asked for, the file says {info[key]}: correct one of them")


def _largest(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return max(present) if present else None


@dataclass(frozen=True)
class _TensorTask:
    """Computes tensors of a chunk of frames, in this process or another."""

    engine: FieldEngine
    step: float
    targets: tuple[str, ...]
    info: Mapping[str, int]

    def __call__(self, first: int, chunk: Trajectory) -> tuple[Array, Array | None]:
        vectors = np.array(list(field_vectors(self.step, self.targets).values()))
        apt, pgt = [], []
        for frame in range(len(chunk.positions)):
            atoms = chunk.atoms(frame)
            atoms.info.update(self.info, snapshot=f"{chunk.name}/{first + frame}")
            forces = self.engine.forces(atoms, vectors)
            _check_response(self.engine, atoms, FieldForces(vectors, forces))
            tensors = response_tensors(vectors, forces, self.targets)
            apt.append(tensors.apt)
            pgt.append(tensors.pgt)
        return np.array(apt), np.array(pgt) if "pgt" in self.targets else None


_task: _TensorTask | None = None


def _take_task(task: _TensorTask) -> None:
    """Give a worker process its engine once, so that its calculators stay warm from chunk to chunk."""
    global _task
    _task = task


def _work(first: int, chunk: Trajectory) -> tuple[Array, Array | None]:
    assert _task is not None
    return _task(first, chunk)


def _in_order(
    task: _TensorTask, chunks: Iterator[tuple[int, Trajectory]], processes: int
) -> Iterator[tuple[Trajectory, tuple[Array, Array | None]]]:
    """Yield each chunk with its tensors; a few chunks in memory at a time."""
    if processes == 1:
        for first, chunk in chunks:
            yield chunk, task(first, chunk)
        return
    waiting: deque[tuple[Trajectory, Future[tuple[Array, Array | None]]]] = deque()
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_take_task, initargs=(task,))
    try:
        for first, chunk in chunks:
            waiting.append((chunk, pool.submit(_work, first, chunk)))
            if len(waiting) >= 2 * processes:
                oldest, future = waiting.popleft()
                yield oldest, future.result()
        while waiting:
            oldest, future = waiting.popleft()
            yield oldest, future.result()
    except BrokenProcessPool:
        raise EngineError("a labelling process ended unexpectedly (out of memory?): use fewer processes") from None
    finally:
        pool.shutdown(cancel_futures=True)


def label_trajectory(
    reader: TrajectoryReader,
    engine: FieldEngine,
    targets: Sequence[str],
    step: float,
    out_derivatives: str | Path,
    start: int = 0,
    stop: int | None = None,
    progress: Progress | None = None,
    *,
    project_sum_rules: bool = True,
    charge: int | None = None,
    multiplicity: int | None = None,
    volume: float | None = None,
    removed_motion: RemovedMotion | None = None,
    processes: int = 1,
    chunk_size: int = 50,
    groups: str | Path = "all",
) -> dict[str, Any]:
    """Label every frame of a trajectory and contract the tensors with the velocities at once.

    The explicit reference of a prediction: same velocities, same sum-rule projection (weights m_i/M), same file.

    Args:
        reader: the trajectory, with velocities; its metadata may hold charge and multiplicity.
        engine: gives the forces; with `processes` it must be picklable.
        targets: "apt", "pgt" or both.
        step: h [E_h/(e a0)].
        out_derivatives: derivatives file to write, see :mod:`mimyria_wf.derivatives`.
        start: first frame.
        stop: frame after the last; None for all. Files of neighbouring stretches join by
            :func:`mimyria_wf.derivatives.join_derivative_files`.
        progress: called with (frames done, all, what is going on).
        project_sum_rules: whether the tensors obey the sum rules before they are contracted, as in prediction.
        charge: total charge [e]; the trajectory's own by default, or zero.
        multiplicity: spin multiplicity; the trajectory's own by default, or one.
        volume: nominal volume of a cluster [A^3]; a periodic cell's own volume is always used.
        removed_motion: rigid motions that the velocities lack; None finds out from the first chunk.
        processes: workers that share the frames, each with an engine of its own.
        chunk_size: frames a worker takes at a time.
        groups: ``all`` for one group, ``species`` for one an element, or a YAML file of groups, resolved for this
            trajectory (:mod:`mimyria_wf.groups`). Relations need the whole run.

    Returns:
        JSON-able: frames, engine, level of theory, temperature [K], rms and largest sum-rule residual before
        projection, seconds.
    """
    began = time.perf_counter()
    step, wanted = check_step(step), check_targets(targets)
    check_velocities(reader)
    checked_identity(engine)
    stop = reader.n_frames if stop is None else stop
    if not 0 <= start < stop <= reader.n_frames:
        raise TrajectoryError(f"{reader.name}: frames {start} to {stop} are not within its {reader.n_frames} frames")
    if processes < 1 or chunk_size < 1:
        raise EngineError(f"processes and chunk_size must be 1 or more, got {processes} and {chunk_size}")
    info = {key: int(reader.metadata[key]) for key in ("charge", "multiplicity") if key in reader.metadata}
    _state(info, charge, multiplicity, str(reader.path))
    charge = info.setdefault("charge", 0)
    masses = np.asarray(reader.masses, dtype=float)
    is_periodic = bool(np.all(reader.pbc))
    if is_periodic:
        volume = float(abs(np.linalg.det(reader.cell)))
    elif volume is None and "volume" in reader.metadata:
        volume = float(reader.metadata["volume"])
    chunks = ((first, reader.read(first, min(first + chunk_size, stop))) for first in range(start, stop, chunk_size))
    residuals = _ResidualSums(charge)
    n_done = 0
    metadata: dict[str, Any] = {
        "source": "labels",
        "engine": engine.name,
        "engine_version": engine.version,
        "level_of_theory": dict(engine.level_of_theory),
        "field_step": step,
        "start": start,
        "stop": stop,
        "sum_rules_projected": project_sum_rules,
        "charge": charge,
        **energy_conservation(reader),
    }
    grouping, names = _grouping(groups, reader, start, stop)
    if isinstance(grouping, Follower):
        metadata["groups"] = grouping.metadata
    path = Path(out_derivatives)
    path.parent.mkdir(parents=True, exist_ok=True)
    with DerivativeWriter(
        path,
        name=reader.name,
        timestep=reader.timestep,
        masses=masses,
        volume=volume,
        is_periodic=is_periodic,
        removed_motion=removed_motion,
        groups=grouping,
        group_names=names,
        metadata=metadata,
    ) as writer:
        for chunk, (apt, pgt) in _in_order(_TensorTask(engine, step, wanted, info), chunks, processes):
            residuals.add(apt, pgt)
            if project_sum_rules:
                apt = project_apt(apt, masses, charge)
                pgt = None if pgt is None else project_pgt(pgt, masses)
            assert chunk.velocities is not None
            writer.append(chunk.velocities, chunk.positions, apt=apt, pgt=pgt)
            n_done += len(chunk.positions)
            if progress is not None:
                progress(n_done, stop - start, f"labels along {reader.name}")
        writer.metadata["sum_rule_residual"] = residuals.summary()
        temperature = writer.sums.temperature
    return {
        "derivatives": str(path),
        "n_frames": n_done,
        "temperature": temperature,
        **metadata,
        "sum_rule_residual": residuals.summary(),
        "seconds": time.perf_counter() - began,
    }


def _grouping(
    groups: str | Path, reader: TrajectoryReader, start: int, stop: int
) -> tuple[Array | Follower | None, Sequence[str] | None]:
    """Return the groups of a trajectory and their names."""
    if str(groups) == "species":
        present, found = np.unique(reader.numbers, return_inverse=True)
        index: Array = np.asarray(found, dtype=np.int64)
        return index, [chemical_symbols[z] for z in present]
    resolved = groups_of(groups, [reader])
    if resolved is None:
        return None, None
    if resolved.relations and (start, stop) != (0, reader.n_frames):
        raise EngineError(
            f"{groups}: relations are correlated over a whole run, frames {start} to {stop} of {reader.n_frames} are "
            "asked for: label all frames at once or leave the relations out"
        )
    follower = resolved.follower(reader, n_lags(reader, None))
    follower.skip(start)
    return follower, resolved.names


class _ResidualSums:
    """Root mean square and largest component of the sum-rule residuals over frames."""

    def __init__(self, charge: float) -> None:
        self.charge = charge
        self._sums: dict[str, list[float]] = {}

    def add(self, apt: Array | None, pgt: Array | None) -> None:
        """Take in a chunk of unprojected tensors, (n_frames, n_atoms, ...)."""
        left = {"apt": None if apt is None else apt.sum(axis=1) - self.charge * np.eye(3)}
        left["pgt"] = None if pgt is None else pgt.sum(axis=1)
        for name, values in left.items():
            if values is not None:
                square, n_values, largest = self._sums.get(name, [0.0, 0.0, 0.0])
                largest = max(largest, float(np.abs(values).max()))
                self._sums[name] = [square + float(np.sum(values**2)), n_values + values.size, largest]

    def summary(self) -> dict[str, dict[str, float]]:
        """Return rms and largest component by tensor [e], [e^2 a0/E_h]."""
        return {name: {"rms": float(np.sqrt(s / n)), "largest": m} for name, (s, n, m) in self._sums.items()}
