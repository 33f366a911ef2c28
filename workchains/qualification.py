"""Try a level of theory before it is trusted: field step, SCF threshold, field against spatial derivatives."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.engine import ExitCode, ProcessSpec, WorkChain, while_

from mimyria_wf.calculators.qualification import (
    assess_qualification,
    known_points,
    planned_tasks,
    program_version,
    task_configurations,
    varied_level,
)
from mimyria_wf.campaign_check import POINTS_PER_JOB
from mimyria_wf.finite_field import point_name
from mimyria_wf.labels import level_of_theory_key
from mimyria_wf.qualification import Task
from mimyria_wf.response import Array
from mimyria_wf.workchains.labels import field_set_process
from mimyria_wf.workchains.windowed import WindowedWorkChain, job_metadata, reason


class QualificationWorkChain(WindowedWorkChain):
    """Judge a level of theory by labels of one or a few snapshots (:mod:`mimyria_wf.qualification`).

    Its field points are computed by the engine's own field-set process, keyed as those of labels are, and taken from
    the database where they are there: a qualification that is repeated costs nothing, and later labels of the same
    snapshots find their points done.
    """

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs, outline and outputs."""
        super().define(spec)
        spec.input("code", valid_type=orm.AbstractCode, help="The engine's: mimyria-wf, CP2K, VASP.")
        spec.input("snapshots", valid_type=orm.SinglefileData, help="One or a few, extxyz.")
        spec.input(
            "settings",
            valid_type=orm.Dict,
            help="Of the labels: engine, level_of_theory, step, threshold (None: unknown), snapshots_per_job, "
            "max_concurrent",
        )
        spec.input("screening", valid_type=orm.Dict, help="Fields of QualificationSettings.")
        spec.input("template", valid_type=orm.SinglefileData, required=False, help="CP2K input, for engine cp2k.")
        spec.input_namespace("files", valid_type=orm.SinglefileData, dynamic=True, required=False)
        spec.input_namespace("engine", dynamic=True, required=False, help="What else the engine's process takes.")
        spec.input("options", valid_type=orm.Dict, required=False, help="Scheduler options of the jobs.")
        spec.outline(
            cls.setup,
            while_(cls.should_plan)(
                cls.plan,
                while_(cls.has_queue)(cls.submit_window, cls.inspect_window),
            ),
            cls.assess,
        )
        spec.output("verdict", valid_type=orm.Dict, help="What was found, what is recommended, objections.")
        spec.output("figures", valid_type=orm.FolderData, help="Curves over step and threshold, parity plots.")
        spec.exit_code(440, "ERROR_REFUSED", message="The level of theory is not fit for labels: {detail}")
        spec.exit_code(441, "ERROR_NO_RESULT", message="No field point could be computed: {detail}")

    def setup(self) -> None:
        """Prepare the engine's inputs at every threshold."""
        settings = self.inputs.settings.get_dict()
        self.ctx.round = 0
        self.ctx.queue, self.ctx.done, self.ctx.failed = [], [], []
        self.ctx.max_concurrent = settings["max_concurrent"]
        self.ctx.problems, self.ctx.versions = [], []
        self.ctx.n_computed, self.ctx.planned_with = 0, None
        self.ctx.levels, self.ctx.varied = {}, {}
        for task in self._tasks().values():
            name = _variation_name(task)
            if name not in self.ctx.levels:
                own = {key: self.inputs[key] for key in ("template", "files", "engine") if key in self.inputs}
                variation = {} if task.variation.get("eps_scf") == settings["threshold"] else task.variation
                level, changed = varied_level(settings["engine"], settings["level_of_theory"], own, variation)
                self.ctx.levels[name], self.ctx.varied[name] = level, changed

    def _tasks(self) -> dict[str, Task]:
        return planned_tasks(self.inputs.snapshots, self.inputs.screening.get_dict())

    def should_plan(self) -> bool:
        """Plan once, once more if jobs failed, and once more if the program is not of the version planned with.

        Nodes die, but what fails twice is not chance; points of another version in the database are not judged along
        with those that were just computed.
        """
        is_other = bool(self.ctx.versions) and self.ctx.planned_with not in (None, self.ctx.versions[-1])
        return (
            self.ctx.round == 0 or (self.ctx.round == 1 and bool(self.ctx.failed)) or (self.ctx.round < 3 and is_other)
        )

    def is_worth_repeating(self, node: orm.ProcessNode) -> bool:
        """Say no: the second plan computes what is missing then, not whole jobs again."""
        return False

    def plan(self) -> None:
        """Find the missing field points and bundle configurations that miss the same ones into jobs."""
        self.ctx.round += 1
        self.ctx.failed = []
        tasks = list(self._tasks().values())
        limit = POINTS_PER_JOB * self.inputs.settings["snapshots_per_job"]
        bundles: dict[tuple[Any, ...], list[str]] = {}
        found, version = known_points(tasks, self._level_keys(tasks), self._version())
        if self.ctx.round > 1 and version != self.ctx.planned_with and self.ctx.planned_with is not None:
            self.report(f"points of version {self.ctx.planned_with} are left out: {version} computes now")
        self.ctx.planned_with = version
        for task, known in zip(tasks, found, strict=True):
            for own in parts(known.missing(task), limit):
                rows = tuple(tuple(float(x) for x in vector) for vector in own)
                bundles.setdefault((_variation_name(task), rows), []).append(task.name)
        self.ctx.queue = []
        for (variation, rows), names in bundles.items():
            per_job = max(1, limit // len(rows))
            for first in range(0, len(names), per_job):
                label = f"trial_{len(self.ctx.queue):03d}" + ("" if self.ctx.round == 1 else "_again")
                entry = {"label": label, "variation": variation, "tasks": names[first : first + per_job]}
                self.ctx.queue.append({**entry, "vectors": [list(row) for row in rows]})
        n_points = sum(len(entry["vectors"]) * len(entry["tasks"]) for entry in self.ctx.queue)
        self.ctx.n_computed += n_points
        self.report(f"{len(tasks)} runs: {n_points} field points to compute in {len(self.ctx.queue)} jobs")

    def _version(self) -> str | None:
        """Return the version that computes now, None before anything ran."""
        return self.ctx.versions[-1] if self.ctx.versions else None

    def _level_keys(self, tasks: list[Task]) -> list[str]:
        return [level_of_theory_key(self.ctx.levels[_variation_name(task)]) for task in tasks]

    def job(self, entry: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return a field-set job."""
        options = self.inputs.options.get_dict() if "options" in self.inputs else {}
        names = orm.List(entry["tasks"])
        inputs: dict[str, Any] = {
            "code": self.inputs.code,
            "snapshots": task_configurations(self.inputs.snapshots, self.inputs.screening, names),
            "field_vectors": orm.List(entry["vectors"]),
            "level_of_theory": orm.Dict(self.ctx.levels[entry["variation"]]),
            "metadata": job_metadata(options),
        }
        process = field_set_process(self.inputs.settings["engine"])
        if issubclass(process, WorkChain):  # which has no scheduler options of its own
            inputs["options"] = orm.Dict(inputs.pop("metadata").get("options", {}))
        for name in ("template", "files"):
            if name in self.inputs and name in process.spec().inputs:
                inputs[name] = self.inputs[name]
        changed = dict(self.ctx.varied[entry["variation"]])
        namespace = changed.pop("engine", self.inputs.get("engine", {}))
        return process, {**inputs, **namespace, **changed}

    def inspect_window(self) -> Any:
        """Sort the jobs, and keep what failed ones say."""
        super().inspect_window()
        failed = {entry["label"] for entry in self.ctx.failed}
        for entry in self.ctx.window:
            node = self.ctx[entry["label"]]
            version = program_version(node.outputs.field_forces) if "field_forces" in node.outputs else ""
            if version and version not in self.ctx.versions:
                self.ctx.versions = [*self.ctx.versions, version]
            if entry["label"] in failed:
                self.ctx.problems.append(reason(self.ctx[entry["label"]]))

    def assess(self) -> ExitCode | None:
        """Judge."""
        tasks = list(self._tasks().values())
        keys = self._level_keys(tasks)
        found, version = known_points(tasks, keys, self._version())
        nodes = {node.uuid: node for known in found for node in known.nodes}
        problems = list(dict.fromkeys(self.ctx.problems))
        if not nodes:
            return self.exit_codes.ERROR_NO_RESULT.format(detail=problems[0] if problems else "no job ran")
        settings = self.inputs.settings.get_dict()
        trial = {key: settings[key] for key in ("engine", "level_of_theory", "step", "threshold")}
        trial["level_keys"] = {task.name: key for task, key in zip(tasks, keys, strict=True)}
        outputs = assess_qualification(
            self.inputs.snapshots,
            self.inputs.screening,
            orm.Dict({**trial, "problems": problems, "version": version, "n_computed": self.ctx.n_computed}),
            **{f"forces_{k:05d}": node for k, node in enumerate(nodes.values())},
        )
        self.out("verdict", outputs["verdict"])
        self.out("figures", outputs["figures"])
        verdict = outputs["verdict"].get_dict()
        if not verdict["accepted"]:
            return self.exit_codes.ERROR_REFUSED.format(detail="; ".join([*verdict["reasons"], *problems[:1]]))
        self.report(verdict["line"])
        computed = "" if self.ctx.n_computed else ", from points of earlier runs: nothing was computed now"
        self.report(f"judged by version {verdict['version']}{computed}")
        return None


def parts(vectors: Array, limit: int) -> list[list[Array]]:
    """Return field vectors (n, 3) in lists of at most `limit`, for a job each.

    Programs name their runs by the direction of the field, so that a list must not hold one direction twice.
    """
    found: list[dict[str, Array]] = []
    for vector in vectors:
        name = point_name(vector)
        part = next((part for part in found if name not in part and len(part) < limit), None)
        if part is None:
            found.append(part := {})
        part[name] = vector
    return [list(part.values()) for part in found]


def _variation_name(task: Task) -> str:
    """Return what the context calls the engine of a task."""
    return "own" if "eps_scf" not in task.variation else f"{task.variation['eps_scf']:g}"
