"""APTs and PGTs of snapshots from forces in homogeneous fields; only what is missing is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from typing import Any

import numpy as np
from aiida import orm
from aiida.common.exceptions import MissingEntryPointError
from aiida.engine import ExitCode, ProcessSpec, WorkChain, while_
from aiida.plugins import CalculationFactory, WorkflowFactory

from mimyria_wf.calculators.assembly import assemble_labels, take_snapshots
from mimyria_wf.calculators.cp2k import mend_template
from mimyria_wf.calculators.data import (
    known_field_forces,
    known_response_tensors,
    of_one_version,
    points_of,
    read_snapshots,
    scf_settings_of,
    version_of,
)
from mimyria_wf.cp2k_input import N_SCF_REMEDIES, parse_template
from mimyria_wf.field_set_remedies import MAX_ROUNDS, Effort, Failure, Limits, remedy
from mimyria_wf.finite_field import field_vectors
from mimyria_wf.labels import configuration_key, level_of_theory_key, missing_points
from mimyria_wf.workchains.windowed import WindowedWorkChain, job_metadata, reason


class LabelsWorkChain(WindowedWorkChain):
    """Label some snapshots of a pool.

    Field points are keyed by configuration, level of theory and field vector. Those that any finished job of this
    profile already holds are taken from there: APT and PGT share one set, and a campaign that is taken up again, or a
    later one, pays for nothing twice. Points of two versions of a program are never combined in one snapshot.

    Points that fail are computed again by themselves, with a change that fits what ended them and is written into the
    report (:mod:`mimyria_wf.field_set_remedies`), in at most ``max_rounds`` rounds; what fails then keeps its cause.
    """

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs, outline and outputs."""
        super().define(spec)
        spec.input(
            "code", valid_type=orm.AbstractCode, help="The engine's: mimyria-wf (tblite and the like), CP2K, VASP."
        )
        spec.input("snapshots", valid_type=orm.SinglefileData, help="The pool, extxyz.")
        spec.input("indices", valid_type=orm.List, help="Which snapshots of the pool are wanted.")
        spec.input(
            "settings",
            valid_type=orm.Dict,
            help="engine, level_of_theory, targets, step, snapshots_per_job, max_concurrent, allowed_failures; "
            "max_rounds (3); limits: max_wallclock_seconds and max_memory_kb up to which options may be raised; "
            "route: tensors, for engines that give them without fields (VASP's LEPSILON)",
        )
        spec.input("template", valid_type=orm.SinglefileData, required=False, help="CP2K input, for engine cp2k.")
        spec.input_namespace("files", valid_type=orm.SinglefileData, dynamic=True, required=False)
        spec.input_namespace(
            "engine",
            dynamic=True,
            required=False,
            help="What else the engine's process takes (k-points, potentials, ...), under the names of its inputs.",
        )
        spec.input("options", valid_type=orm.Dict, required=False, help="Scheduler options of the label jobs.")
        spec.outline(
            cls.setup,
            while_(cls.should_plan)(
                cls.plan,
                while_(cls.has_queue)(cls.submit_window, cls.inspect_window),
            ),
            cls.assemble,
        )
        spec.output("labels", valid_type=orm.SinglefileData, help="extxyz with columns apt:R:9 and pgt:R:27")
        spec.output("report", valid_type=orm.Dict)
        spec.exit_code(410, "ERROR_TOO_MANY_FAILURES", message="{n} of {total} snapshots have no labels: {detail}")

    def setup(self) -> None:
        """Start with nothing tried."""
        settings = self.inputs.settings.get_dict()
        self.ctx.round, self.ctx.n_tries = 0, 0
        self.ctx.queue, self.ctx.done, self.ctx.failed = [], [], []
        self.ctx.failures = []
        self.ctx.n_finished = None
        self.ctx.versions = []
        self.ctx.reused = {}
        self.ctx.remedies = []
        self.ctx.given_up = []
        self.ctx.max_concurrent = settings["max_concurrent"]
        options = self.inputs.options.get_dict() if "options" in self.inputs else {}
        self.ctx.effort = asdict(Effort(settings["snapshots_per_job"], options=options))

    def should_plan(self) -> bool:
        """Plan once, and again while something failed that a change may mend, or program versions would be mixed."""
        if self.ctx.round == 0:
            return True
        if self.ctx.round >= self.inputs.settings.get("max_rounds", MAX_ROUNDS):
            return False
        others = {version for version in self.ctx.reused.values() if version not in self.ctx.versions}
        return bool(self.ctx.failures) or bool(self.ctx.versions and others)

    def is_worth_repeating(self, node: orm.ProcessNode) -> bool:
        """Say no: the next plan computes what is missing then, not whole jobs again."""
        return False

    def plan(self) -> None:
        """Find the missing field points and bundle snapshots that miss the same ones into jobs."""
        if self.ctx.failures:
            self._mend()
        effort = _effort(self.ctx.effort)
        hopeless = {(one["snapshot"], _point(one["vector"])) for one in self.ctx.given_up}
        self.ctx.round += 1
        self.ctx.failed, self.ctx.failures, self.ctx.n_finished, self.ctx.reused = [], [], None, {}
        missing: dict[tuple[int, tuple[tuple[float, ...], ...]], list[int]] = {}
        n_known = 0
        for index, points in self._missing().items():
            n_known += not points
            vectors = [vector for vector in points if (index, _point(vector)) not in hopeless]
            size = effort.points_per_job or max(1, len(vectors))
            for first in range(0, len(vectors), size):
                key = (effort.scf.get(index, 0), tuple(vectors[first : first + size]))
                missing.setdefault(key, []).append(index)
        queue: list[dict[str, Any]] = []
        for (scf, vectors_of_job), members in missing.items():
            for first in range(0, len(members), effort.snapshots_per_job):
                chunk = members[first : first + effort.snapshots_per_job]
                entry = {"indices": chunk, "vectors": [list(vector) for vector in vectors_of_job], "scf": scf}
                queue.append({"label": self._label(chunk[0], queue), **entry})
        self.ctx.queue = queue
        self.ctx.n_tries += bool(queue)
        n_points = sum(len(entry["vectors"]) * len(entry["indices"]) for entry in queue)
        missing_text = f"{n_points} field points to compute in {len(queue)} jobs"
        self.report(f"{len(self.inputs.indices)} snapshots: {n_known} known, {missing_text}")

    def _label(self, index: int, queue: list[dict[str, Any]]) -> str:
        """Return a name for a job, unique in this workchain."""
        again = {1: "", 2: "_again"}.get(self.ctx.round, f"_round{self.ctx.round}")
        label, taken = f"fields_{index:05d}{again}", {entry["label"] for entry in queue}
        return label if label not in taken else next(name for k in count(1) if (name := f"{label}_{k}") not in taken)

    def _missing(self) -> dict[int, list[tuple[float, ...]]]:
        """Return snapshot -> field vectors that no node of one version of the program holds."""
        settings = self.inputs.settings.get_dict()
        level, step, targets = settings["level_of_theory"], settings["step"], settings["targets"]
        snapshots = read_snapshots(self.inputs.snapshots)
        indices = self.inputs.indices.get_list()
        keys = {index: configuration_key(snapshots[index]) for index in indices}
        level_key = level_of_theory_key(level)
        if self._gives_tensors():
            made = known_response_tensors(level_key, list(keys.values()))
            return {index: [] if keys[index] in made else [(0.0, 0.0, 0.0)] for index in indices}
        nodes = known_field_forces(level_key, list(keys.values()))
        wanted = np.array(list(field_vectors(step, targets).values()))
        preferred = self.ctx.versions[0] if self.ctx.versions else None
        missing = {}
        steps = _effort(self.ctx.effort).scf
        for index in indices:
            there, way = nodes.get(keys[index], []), steps.get(index, 0)
            if way:  # what is left below the threshold depends on the way: all points go it, or none
                there = [node for node in there if scf_settings_of(node) == way]
            own = of_one_version(there, keys[index], wanted, step, preferred)
            known = {(keys[index], level_key): points_of(own, keys[index])[0]}
            points = missing_points(known, snapshots[index], level, targets, step)
            missing[index] = [tuple(float(x) for x in vector) for vector in points.values()]
            if own and points and not way:
                self.ctx.reused[str(index)] = version_of(own[0])
        return missing

    def _mend(self) -> None:
        """Change what fits the failures of the last round; give up those that no change would help."""
        failures = [Failure(one["snapshot"], _point(one["vector"]), one["cause"]) for one in self.ctx.failures]
        settings = self.inputs.settings.get_dict()
        limits = Limits(**settings.get("limits", {}), n_scf_steps=N_SCF_REMEDIES if self._is_cp2k() else 0)
        walltime = _template_walltime(self.inputs.template) if self._is_cp2k() else None
        effort, n_finished = _effort(self.ctx.effort), self.ctx.n_finished or 0
        effort, reasons, again = remedy(effort, failures, n_finished, limits, self.ctx.round, walltime)
        for line in reasons:
            self.report(line)
        self.ctx.remedies = [*self.ctx.remedies, *reasons]
        lost = [one for one, failure in zip(self.ctx.failures, failures, strict=True) if failure not in again]
        self.ctx.given_up = [*self.ctx.given_up, *lost]
        self.ctx.effort = asdict(effort)

    def _gives_tensors(self) -> bool:
        return bool(self.inputs.settings.get("route") == "tensors")

    def _is_cp2k(self) -> bool:
        return bool(self.inputs.settings["engine"] == "cp2k" and "template" in self.inputs)

    def inspect_window(self) -> None:
        """Collect which field points failed, and why."""
        super().inspect_window()
        for entry in self.ctx.window:
            node = self.ctx[entry["label"]]
            summary = node.outputs.summary.get_dict() if "summary" in node.outputs else {}
            version = summary.get("version")
            if version and version not in self.ctx.versions:
                self.ctx.versions = [*self.ctx.versions, version]
            if node.is_finished_ok:
                continue
            failures = _failures(node, entry, summary)
            self.ctx.failures = [*self.ctx.failures, *failures]
            if any(one["cause"] == "walltime" for one in failures):
                n_finished = summary.get("n_points", 0) - len(failures)
                known = [] if self.ctx.n_finished is None else [self.ctx.n_finished]
                self.ctx.n_finished = min([n_finished, *known])

    def job(self, entry: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return a field-set job."""
        settings = self.inputs.settings.get_dict()
        effort = _effort(self.ctx.effort)
        inputs: dict[str, Any] = {
            "code": self.inputs.code,
            "snapshots": take_snapshots(self.inputs.snapshots, orm.List(entry["indices"])),
            "level_of_theory": orm.Dict(settings["level_of_theory"]),
            "metadata": job_metadata(dict(effort.options)),
        }
        if self._gives_tensors():
            process = WorkflowFactory(f"mimyria_wf.{settings['engine']}.tensors")
            inputs["targets"] = orm.List(list(settings["targets"]))
        else:
            process = field_set_process(settings["engine"])
            inputs["field_vectors"] = orm.List(entry["vectors"])
        if issubclass(process, WorkChain):  # which has no scheduler options of its own
            inputs["options"] = orm.Dict(inputs.pop("metadata").get("options", {}))
        for name in ("template", "files"):
            if name in self.inputs and name in process.spec().inputs:
                inputs[name] = self.inputs[name]
        if self._is_cp2k() and (entry["scf"] or effort.walltime):
            changes = {"scf": entry["scf"], "walltime": effort.walltime}
            inputs["template"] = mend_template(self.inputs.template, orm.Dict(changes))
            if entry["scf"]:
                inputs["scf_settings"] = orm.Int(entry["scf"])
        return process, {**inputs, **self.inputs.get("engine", {})}

    def assemble(self) -> ExitCode | None:
        """Reduce the forces to tensors; a few snapshots may be lost to failed jobs, more than that is an error."""
        settings = self.inputs.settings.get_dict()
        snapshots = read_snapshots(self.inputs.snapshots)
        indices = self.inputs.indices.get_list()
        level = settings["level_of_theory"]
        keys = [configuration_key(snapshots[index]) for index in indices]
        known = known_response_tensors if self._gives_tensors() else known_field_forces
        found = known(level_of_theory_key(level), keys)
        nodes = {node.uuid: node for every in found.values() for node in every}
        header = {"field_step": settings["step"], "engine": settings["engine"]}
        header["level_of_theory"] = level_of_theory_key(level)[:16]
        failures, remedies = [*self.ctx.given_up, *self.ctx.failures], self.ctx.remedies
        outputs = assemble_labels(
            self.inputs.snapshots,
            self.inputs.indices,
            orm.Dict({"targets": settings["targets"], "header": header, "failures": failures, "remedies": remedies}),
            **{f"forces_{k:05d}": node for k, node in enumerate(nodes.values())},
        )
        report = outputs["report"].get_dict()
        lost = len(report["incomplete"])
        if "labels" not in outputs or lost > settings.get("allowed_failures", 0.1) * len(indices):
            detail = report["incomplete"][0]["reason"] if lost else "no snapshots"
            if self.ctx.failed:
                detail = reason(self.ctx[self.ctx.failed[0]["label"]])
            if failures:
                counted = ", ".join(f"{n} x {cause}" for cause, n in Counter(one["cause"] for one in failures).items())
                tries = "1 round" if self.ctx.n_tries == 1 else f"{self.ctx.n_tries} rounds"
                detail = f"{counted} in {tries}; the first: {failures[0]['problem']}"
            return self.exit_codes.ERROR_TOO_MANY_FAILURES.format(n=lost, total=len(indices), detail=detail)
        others = {
            version: n
            for version, n in report.get("versions", {}).items()
            if self.ctx.versions and version.partition(", SCF settings")[0] not in self.ctx.versions
        }
        for version, n_snapshots in others.items():
            self.report(
                f"{n_snapshots} snapshots reuse labels of {settings['engine']} {version}, the others were computed "
                f"with {', '.join(self.ctx.versions)}: versions may differ in the forces, compare them on one snapshot"
            )
        self.out("labels", outputs["labels"])
        self.out("report", outputs["report"])
        return None


def _point(vector: Sequence[float]) -> tuple[float, ...]:
    """Return a field vector as a key: nodes keep 14 digits."""
    return tuple((np.round(vector, 12) + 0.0).tolist())


def _effort(values: dict[str, Any]) -> Effort:
    """Return the effort from the workchain's context, whose dictionaries come back from a checkpoint."""
    return Effort(**{**values, "scf": {int(index): step for index, step in values["scf"].items()}})


def _failures(node: orm.ProcessNode, entry: dict[str, Any], summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the failed field points of a job: as its summary lists them, else all of it."""
    if "failed" in summary:
        return [{**one, "snapshot": entry["indices"][one["snapshot"]]} for one in summary["failed"]]
    by_status = {110: "memory", 120: "walltime"}  # of CalcJob: the scheduler ended it
    cause = by_status.get(node.exit_status or 0, "lost")
    return [
        {"snapshot": index, "vector": vector, "cause": cause, "problem": reason(node)}
        for index in entry["indices"]
        for vector in entry["vectors"]
    ]


def _template_walltime(template: orm.SinglefileData) -> float | None:
    """Return CP2K's own time limit of a run [s], written as seconds or as HH:MM:SS."""
    value = parse_template(template.get_content("r")).keyword("GLOBAL/WALLTIME")
    if value is None:
        return None
    seconds = 0.0
    for part in value.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds if seconds > 0 else None


def field_set_process(engine: str) -> Any:
    """Return the process that computes the field sets of an engine.

    Its own workchain or calculation, by the entry point ``mimyria_wf.ENGINE.fields``; else the calculation that runs
    ``mimyria-wf label --engine ENGINE``, which serves every engine of the command line.
    """
    for factory in (WorkflowFactory, CalculationFactory):
        try:
            return factory(f"mimyria_wf.{engine}.fields")
        except MissingEntryPointError:
            continue
    return CalculationFactory("mimyria_wf.engine.fields")
