"""Qualifications in AiiDA: an engine's inputs at another threshold, and field points of the database as results."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
from aiida import orm
from aiida.engine import calcfunction

from mimyria_wf.calculators.assembly import _extxyz
from mimyria_wf.calculators.data import known_field_forces, of_one_version, read_snapshots, version_of
from mimyria_wf.errors import CampaignError
from mimyria_wf.labels import configuration_key, matching_rows
from mimyria_wf.qualification import QualificationSettings, Task, TaskResult, plan
from mimyria_wf.response import Array


def planned_tasks(snapshots: orm.SinglefileData, settings: Mapping[str, Any]) -> dict[str, Task]:
    """Return the runs that a qualification needs, by name."""
    tasks = plan(read_snapshots(snapshots), QualificationSettings(**settings))
    return {task.name: task for task in tasks}


# --------------------------------------------------------------------------------------- an engine at another threshold


@calcfunction
def vary_template(template: orm.SinglefileData, variation: orm.Dict) -> orm.SinglefileData:
    """Return a CP2K template with another EPS_SCF."""
    from mimyria_wf.cp2k_input import parse_template, varied_template, write_input

    text = write_input(varied_template(parse_template(template.get_content("r")), **variation.get_dict()))
    return orm.SinglefileData(io.BytesIO(text.encode()), filename=template.filename)


@calcfunction
def vary_incar(incar: orm.Dict, variation: orm.Dict) -> orm.Dict:
    """Return INCAR tags with another EDIFF."""
    return orm.Dict({**incar.get_dict(), "EDIFF": f"{variation['eps_scf']:g}"})


def varied_level(
    engine: str, level: Mapping[str, Any], inputs: Mapping[str, Any], variation: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return level of theory and inputs of an engine that differs from another one by its SCF threshold.

    Args:
        engine: its name.
        level: level of theory of the other one.
        inputs: the other one's ``template``, ``files`` and ``engine`` namespace, as far as it has them.
        variation: ``{"eps_scf": value}``; nothing leaves all as it is.

    Returns:
        level of theory; those of the inputs that differ.
    """
    from mimyria_wf.calculators.cp2k import template_level_of_theory

    if not variation:
        return dict(level), {}
    if engine == "tblite":
        from mimyria_wf.tblite_engine import TbliteEngine

        return {**level, "accuracy": TbliteEngine(level["method"]).varied(**variation).level_of_theory["accuracy"]}, {}
    if engine == "cp2k":
        template = vary_template(inputs["template"], orm.Dict(dict(variation)))
        files = {node.filename: node.get_content("rb") for node in inputs.get("files", {}).values()}
        return template_level_of_theory(template.get_content("r"), files), {"template": template}
    if engine == "vasp":
        from mimyria_wf.calculators.vasp import vasp_level_of_theory

        own = inputs["engine"]["vasp"]
        changed = {"vasp": {**own, "incar": vary_incar(own["incar"], orm.Dict(dict(variation)))}}
        return vasp_level_of_theory(changed), {"engine": {**inputs["engine"], **changed}}
    raise CampaignError(f"thresholds of engine {engine} cannot be screened: leave qualification.thresholds out")


# ------------------------------------------------------------------------------------------------ field points as nodes


@calcfunction
def task_configurations(snapshots: orm.SinglefileData, settings: orm.Dict, names: orm.List) -> orm.SinglefileData:
    """Return the configurations of some tasks, displaced or not, as a file: the input of one field-set job."""
    tasks = planned_tasks(snapshots, settings.get_dict())
    return _extxyz([tasks[name].atoms for name in names.get_list()], "snapshots.extxyz")


class KnownPoints:
    """Field points of one configuration at one level of theory, from any number of nodes of one version."""

    def __init__(self, nodes: Sequence[orm.ArrayData], atoms: ase.Atoms) -> None:
        """Read the nodes that hold the configuration."""
        key = configuration_key(atoms)
        self.n_atoms = len(atoms)
        self.nodes: list[orm.ArrayData] = []
        self.quanta: Array | None = None
        self.gap: float | None = None
        vectors: list[Array] = []
        forces: list[Array] = []
        dipoles: list[Array] = []
        for node in nodes:
            keys = node.base.attributes.get("configuration_keys")
            if key not in keys:
                continue
            index, names = keys.index(key), node.get_arraynames()
            mask = node.get_array("snapshot") == index
            self.nodes.append(node)
            if version_of(node) != version_of(self.nodes[0]):
                found = " and ".join(sorted({version_of(one) or "not recorded" for one in self.nodes}))
                raise CampaignError(f"field points of the versions {found} are never combined: give those of one")
            vectors += list(node.get_array("field_vectors")[mask])
            forces += list(node.get_array("forces")[mask])
            known = node.get_array("dipoles")[mask] if "dipoles" in names else np.full((mask.sum(), 3), np.nan)
            dipoles += list(known)
            if "dipole_quanta" in names and np.isfinite(node.get_array("dipole_quanta")[index]).all():
                self.quanta = node.get_array("dipole_quanta")[index]
            gaps = node.base.attributes.get("gaps_eV", None)
            if gaps is not None and gaps[index] is not None:
                self.gap = gaps[index]
        self.vectors = np.array(vectors).reshape(-1, 3)
        self.forces = np.array(forces).reshape(-1, self.n_atoms, 3)
        self.dipoles = np.array(dipoles).reshape(-1, 3)

    def rows(self, vectors: Array, with_dipoles: bool) -> list[int | None]:
        """Return for each field vector (n, 3) the row that holds it, None where it is still to be computed."""
        usable = np.flatnonzero(np.isfinite(self.dipoles).all(axis=1) | (not with_dipoles))
        step = float(np.abs(vectors[vectors != 0]).min()) if vectors.any() else 1.0
        rows = matching_rows(self.vectors[usable], vectors, step)
        return [None if row is None else int(usable[row]) for row in rows]

    def missing(self, task: Task) -> Array:
        """Return the field vectors (n, 3) of a task that are still to be computed."""
        rows = self.rows(task.vectors, task.kind == "dipoles")
        return task.vectors[[row is None for row in rows]]

    def result(self, task: Task) -> TaskResult:
        """Return what the nodes hold of a task."""
        rows = self.rows(task.vectors, task.kind == "dipoles")
        forces = np.full((len(rows), self.n_atoms, 3), np.nan)
        dipoles = np.full((len(rows), 3), np.nan)
        problems = []
        for point, (row, name) in enumerate(zip(rows, task.points, strict=True)):
            if row is None:
                problems.append(f"{task.name}: field point {name} is missing")
                continue
            forces[point], dipoles[point] = self.forces[row], self.dipoles[row]
        gaps = None if self.gap is None else np.where(task.vectors.any(axis=1), np.nan, self.gap)
        return TaskResult(
            forces=forces,
            dipoles=dipoles if np.isfinite(dipoles).any() else None,
            dipole_quanta=self.quanta,
            gaps=gaps,
            problems=tuple(problems),
        )


@calcfunction
def adopt_recommendation(settings: orm.Dict, verdict: orm.Dict, changes: orm.Dict) -> orm.Dict:
    """Return the settings of labels with what the qualification recommends.

    Args:
        settings: of the labels, see :class:`~mimyria_wf.workchains.labels.LabelsWorkChain`.
        verdict: of the qualification.
        changes: adopt: "step", "threshold" or both; level_of_theory: with that threshold.
    """
    values = settings.get_dict()
    adopted = changes["adopt"]
    if "step" in adopted:
        values["step"] = verdict["step"]
    if "threshold" in adopted:
        values |= {"threshold": verdict["eps_scf"], "level_of_theory": changes["level_of_theory"]}
    return orm.Dict(values)


@calcfunction
def assess_qualification(
    snapshots: orm.SinglefileData, settings: orm.Dict, trial: orm.Dict, **field_forces: orm.ArrayData
) -> dict[str, Any]:
    """Judge a level of theory by its forces in fields, and draw the curves.

    Args:
        snapshots: what it was tried on, extxyz.
        settings: fields of :class:`~mimyria_wf.qualification.QualificationSettings`.
        trial: engine, level_of_theory, step and threshold of the labels; level_keys: of every task; version of the
            program and n_computed, points that were not in the database before; problems: lines of failed jobs.
        field_forces: nodes with the points that finished, of that version.

    Returns:
        ``verdict`` (with ``objections`` against step and threshold of the labels) and ``figures``.
    """
    from mimyria_wf.qualification import assess
    from mimyria_wf.qualification_plots import plot_qualification

    values = trial.get_dict()
    tasks = planned_tasks(snapshots, settings.get_dict())
    by_level: dict[str, list[orm.ArrayData]] = {}
    for node in field_forces.values():
        by_level.setdefault(node.base.attributes.get("level_of_theory_key"), []).append(node)
    results = {
        name: KnownPoints(by_level.get(values["level_keys"][name], []), task.atoms).result(task)
        for name, task in tasks.items()
    }
    version = values.get("version") or "not recorded"
    engine = {"name": values["engine"], "version": version, "level_of_theory": values["level_of_theory"]}
    screening = QualificationSettings(**settings.get_dict())
    threshold = values["threshold"] if screening.thresholds else None
    qualification = assess(screening, read_snapshots(snapshots), results, engine)
    verdict = {
        **qualification.to_dict(),
        "line": qualification.line,
        "labels": {"step": values["step"], "threshold": values["threshold"]},
        "objections": list(qualification.objections(values["step"], threshold)),
        "job_problems": values["problems"],
        "version": version,
        "n_computed": values.get("n_computed"),
    }
    figures = orm.FolderData()
    with tempfile.TemporaryDirectory() as directory:
        for path in plot_qualification(Path(directory), qualification):
            figures.base.repository.put_object_from_file(str(path), path.name)
    return {"verdict": orm.Dict(verdict), "figures": figures}


def known_points(
    tasks: Sequence[Task], level_keys: Sequence[str], preferred: str | None = None
) -> tuple[list[KnownPoints], str | None]:
    """Return what the database holds of each task's configuration at its level of theory, and the version behind it.

    All points of a qualification are of one version of the program: its curves compare forces of different tasks.

    Args:
        tasks: of the qualification.
        level_keys: of the level of theory of each task.
        preferred: the version that computes now; None: not known yet, the version is taken that holds most points.
    """
    nodes = {
        key: known_field_forces(key, [configuration_key(t.atoms) for t, k in zip(tasks, level_keys) if k == key])
        for key in set(level_keys)
    }
    there = [nodes[key].get(configuration_key(t.atoms), []) for t, key in zip(tasks, level_keys, strict=True)]
    versions = {program_version(node) for own in there for node in own} | ({preferred} if preferred else set())
    found = {
        version: [_of_version(own, task, version) for own, task in zip(there, tasks, strict=True)]
        for version in versions
    }
    if not found:
        return [KnownPoints([], task.atoms) for task in tasks], None

    def rank(version: str) -> tuple[bool, int, str]:
        missing = sum(len(known.missing(task)) for known, task in zip(found[version], tasks, strict=True))
        return version == preferred, -missing, version

    chosen = max(found, key=rank)
    return found[chosen], chosen


def program_version(node: orm.ArrayData) -> str:
    """Return the version of the program that computed a node's forces, whatever its SCF settings."""
    return version_of(node).partition(", SCF settings")[0]


def _of_version(nodes: Sequence[orm.ArrayData], task: Task, version: str) -> KnownPoints:
    """Return the points of a configuration from a version of the program, and from one way to bring SCFs to an end."""
    own = [node for node in nodes if program_version(node) == version]
    step = float(np.abs(task.vectors[task.vectors != 0]).min()) if task.vectors.any() else 1.0
    return KnownPoints(of_one_version(own, configuration_key(task.atoms), task.vectors, step), task.atoms)
