"""Is a level of theory fit for labels: field step and SCF threshold, judged before a campaign spends anything.

:func:`plan` says which runs are needed, anybody runs them (:func:`run_locally`, or AiiDA), :func:`assess` judges them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import ase
import numpy as np

from mimyria_wf.errors import EngineError, LabelError
from mimyria_wf.field_engine import FieldEngine, FieldResults, one_line, results_of
from mimyria_wf.field_forces import known_version
from mimyria_wf.labels import configuration_key, level_of_theory_key, matching_rows
from mimyria_wf.qualification_judgement import assess, potential_drop
from mimyria_wf.qualification_plan import (
    CROSS_POINTS,
    THRESHOLDS,
    QualificationSettings,
    Task,
    TaskResult,
    Tolerances,
    plan,
)
from mimyria_wf.qualification_verdict import (
    Check,
    Parity,
    Qualification,
    Screened,
    Spatial,
    TensorQuality,
    Trend,
)
from mimyria_wf.response import Array

__all__ = [
    "CROSS_POINTS",
    "THRESHOLDS",
    "Check",
    "Parity",
    "Qualification",
    "QualificationSettings",
    "Screened",
    "Spatial",
    "Task",
    "TaskResult",
    "TensorQuality",
    "Tolerances",
    "Trend",
    "assess",
    "plan",
    "potential_drop",
    "qualify",
    "run_locally",
    "task_result",
]

Progress = Callable[[int, int, str], None]

VERDICT = "qualification.json"
_TOGETHER = 26  # points that are computed before they are written down; a program may repeat the zero field for each


def task_result(found: FieldResults, polarizability: Array | None = None) -> TaskResult:
    """Return what an engine found as the result of a task."""
    gaps = getattr(found, "gaps", None)
    if gaps is None and found.gap is not None:
        is_zero = ~np.any(found.field_vectors, axis=1)
        gaps = np.where(is_zero, found.gap, np.nan)
    return TaskResult(
        forces=found.forces,
        dipoles=found.dipoles,
        dipole_quanta=found.dipole_quanta,
        polarizability=polarizability,
        gaps=gaps,
        problems=tuple(problem for problem in found.problems if problem),
        seconds=found.seconds,
    )


@dataclass(frozen=True, eq=False)
class _Known:
    """Field points of one configuration at one level of theory, and the file that they are in."""

    vectors: Array
    forces: Array
    dipoles: Array
    gaps: Array
    seconds: Array
    quanta: Array | None = None
    polarizability: Array | None = None
    polarizability_seconds: float = 0.0
    version: str = ""

    @classmethod
    def none(cls, n_atoms: int) -> _Known:
        return cls(np.empty((0, 3)), np.empty((0, n_atoms, 3)), np.empty((0, 3)), np.empty(0), np.empty(0))

    @classmethod
    def read(cls, path: Path | None, n_atoms: int) -> _Known:
        if path is None or not path.is_file():
            return cls.none(n_atoms)
        try:
            with np.load(path) as file:
                values = {name: file[name] for name in file.files}
            version = str(values.pop("version", ""))
            return cls(**{**values, "polarizability_seconds": float(values["polarizability_seconds"])}, version=version)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise LabelError(f"{path} is no record of field points ({reason}): remove it") from None

    def write(self, path: Path | None) -> None:
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        with open(partial, "wb") as file:
            np.savez_compressed(file, **{name: value for name, value in vars(self).items() if value is not None})
        os.replace(partial, path)

    def plus(self, found: FieldResults, wanted: Array) -> _Known:
        sound = [k for k in range(len(wanted)) if np.isfinite(found.forces[k]).all()]
        new = task_result(found)
        n = len(wanted)
        dipoles = np.full((n, 3), np.nan) if new.dipoles is None else np.asarray(new.dipoles, dtype=float)
        gaps = np.full(n, np.nan) if new.gaps is None else np.asarray(new.gaps, dtype=float)
        return replace(
            self,
            vectors=np.concatenate([self.vectors, wanted[sound]]),
            forces=np.concatenate([self.forces, found.forces[sound]]),
            dipoles=np.concatenate([self.dipoles, dipoles[sound]]),
            gaps=np.concatenate([self.gaps, gaps[sound]]),
            seconds=np.concatenate([self.seconds, np.full(len(sound), found.seconds / n)]),
            quanta=self.quanta if new.dipole_quanta is None else np.asarray(new.dipole_quanta, dtype=float),
            version=found.version,
        )

    def rows(self, vectors: Array) -> list[int | None]:
        lengths = np.abs(vectors).max(axis=1)
        return matching_rows(self.vectors, vectors, float(lengths[lengths > 0].min(initial=1.0)))


def run_locally(
    engine: FieldEngine,
    tasks: Sequence[Task],
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, TaskResult]:
    """Compute what the tasks ask for with an engine, one after another, and nothing twice.

    A task that fails costs only itself: its result names the problem.

    Args:
        engine: computes; a task's variation is given to ``engine.varied``.
        tasks: of :func:`plan`.
        store: folder with one file for each configuration and level of theory; what it holds is not computed again,
            what is computed is in it after each field set. Points of another version of the program are replaced.
        progress: called with (points done, all, what is going on).

    Returns:
        by name of the task.
    """
    n_all = sum(len(task.vectors) for task in tasks)
    n_done = 0
    results: dict[str, TaskResult] = {}
    engines: dict[str, FieldEngine] = {}
    for task in tasks:
        change = json.dumps(dict(task.variation), sort_keys=True)
        if change not in engines:  # kept, for it may start a displaced configuration from the one before
            engines[change] = engine.varied(**task.variation) if task.variation else engine
        varied = engines[change]
        key = sha256((configuration_key(task.atoms) + level_of_theory_key(varied.level_of_theory)).encode()).hexdigest()
        path = None if store is None else Path(store) / f"{key}.npz"
        known = _Known.read(path, len(task.atoms))
        if known_version(varied.version) not in (None, known.version):
            known = _Known.none(len(task.atoms))
        problems: list[str] = []
        missing = task.vectors[[row is None for row in known.rows(task.vectors)]]
        has_run = False
        while len(missing):
            wanted = missing[:_TOGETHER]
            try:
                found = results_of(varied, task.atoms, wanted)
            except EngineError as error:
                problems.append(str(error))
                break
            problems += [problem for problem in found.problems if problem]
            missing = missing[_TOGETHER:]
            if found.version != known.version and len(known.vectors):
                # the program tells its version only now: points of the other one are computed again
                if has_run:
                    problems.append(f"versions {known.version} and {found.version} compute in turns: use one")
                    break
                kept = [row is not None for row in known.rows(task.vectors)]
                missing = np.concatenate([missing, task.vectors[kept]])
                known = _Known.none(len(task.atoms))
            has_run = True
            known = known.plus(found, wanted)
            known.write(path)
            if progress is not None:
                progress(n_done + len(task.vectors) - len(missing), n_all, task.name)
        if task.kind == "polarizability" and known.polarizability is None and not problems:
            began = time.perf_counter()
            try:
                with one_line(f"engine {engine.name} failed at the polarizability"):
                    polarizability = varied.polarizability(task.atoms)
            except EngineError as error:
                polarizability = None
                problems.append(str(error))
            if polarizability is not None:
                known = replace(
                    known,
                    polarizability=np.asarray(polarizability, dtype=float),
                    polarizability_seconds=time.perf_counter() - began,
                )
                known.write(path)
            elif not problems:
                problems.append(f"engine {engine.name} has no polarizability of its own: use polarizability fields")
        results[task.name] = _result(task, known, tuple(problems))
        n_done += len(task.vectors)
        if progress is not None:
            progress(n_done, n_all, task.name)
    return results


def _result(task: Task, known: _Known, problems: tuple[str, ...]) -> TaskResult:
    n_fields = len(task.vectors)
    forces = np.full((n_fields, len(task.atoms), 3), np.nan)
    dipoles, gaps = np.full((n_fields, 3), np.nan), np.full(n_fields, np.nan)
    seconds = known.polarizability_seconds if task.kind == "polarizability" else 0.0
    for k, row in enumerate(known.rows(task.vectors)):
        if row is not None:
            forces[k], dipoles[k], gaps[k] = known.forces[row], known.dipoles[row], known.gaps[row]
            seconds += float(known.seconds[row])
    return TaskResult(
        forces=forces,
        dipoles=dipoles if np.isfinite(dipoles).any() else None,
        dipole_quanta=known.quanta,
        polarizability=known.polarizability,
        gaps=gaps if np.isfinite(gaps).any() else None,
        problems=problems,
        seconds=seconds,
    )


def qualify(
    snapshots: Sequence[ase.Atoms],
    engine: FieldEngine,
    settings: QualificationSettings,
    out: str | Path,
    progress: Progress | None = None,
) -> Qualification:
    """Qualify a level of theory and write the verdict and its figures into a folder.

    What was computed is kept in ``out/points``: a run that was cut off goes on, and more steps, thresholds or atoms
    cost only themselves.

    Args:
        snapshots: one or a few.
        engine: computes.
        settings: what to screen.
        out: folder for qualification.json and the figures.
        progress: called with (points done, all, what is going on).
    """
    from mimyria_wf.qualification_plots import plot_qualification

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    results = run_locally(engine, plan(snapshots, settings), out / "points", progress)
    description: Mapping[str, Any] = {
        "name": engine.name,
        "version": engine.version,
        "level_of_theory": dict(engine.level_of_theory),
    }
    verdict = assess(settings, snapshots, results, description)
    (out / VERDICT).write_text(json.dumps(verdict.to_dict(), indent=1) + "\n")
    plot_qualification(out, verdict)
    return verdict
