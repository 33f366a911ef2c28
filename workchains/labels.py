"""APTs and PGTs of snapshots from forces in homogeneous fields; only what is missing is computed."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.common.exceptions import MissingEntryPointError
from aiida.engine import ExitCode, ProcessSpec, WorkChain, while_
from aiida.plugins import CalculationFactory, WorkflowFactory

from mimyria_wf.calculators.assembly import assemble_labels, take_snapshots
from mimyria_wf.calculators.data import known_field_forces, points_of, read_snapshots
from mimyria_wf.labels import configuration_key, level_of_theory_key, missing_points
from mimyria_wf.workchains.windowed import WindowedWorkChain, job_metadata, reason


class LabelsWorkChain(WindowedWorkChain):
    """Label some snapshots of a pool.

    Field points are keyed by configuration, level of theory and field vector. Those that any finished job of this
    profile already holds are taken from there: APT and PGT share one set, and a campaign that is taken up again, or a
    later one, pays for nothing twice.
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
            help="engine, level_of_theory, targets, step, snapshots_per_job, max_concurrent, allowed_failures",
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
        self.ctx.round = 0
        self.ctx.queue, self.ctx.done, self.ctx.failed = [], [], []
        self.ctx.max_concurrent = self.inputs.settings["max_concurrent"]

    def should_plan(self) -> bool:
        """Plan once, and once more if jobs failed: nodes die, but what fails twice is not chance."""
        return self.ctx.round == 0 or (self.ctx.round == 1 and bool(self.ctx.failed))

    def is_worth_repeating(self, node: orm.ProcessNode) -> bool:
        """Say no: the second plan computes what is missing then, not whole jobs again."""
        return False

    def plan(self) -> None:
        """Find the missing field points and bundle snapshots that miss the same ones into jobs."""
        self.ctx.round += 1
        self.ctx.failed = []
        settings = self.inputs.settings.get_dict()
        level = settings["level_of_theory"]
        snapshots = read_snapshots(self.inputs.snapshots)
        indices = self.inputs.indices.get_list()
        keys = {index: configuration_key(snapshots[index]) for index in indices}
        level_key = level_of_theory_key(level)
        nodes = known_field_forces(level_key, list(keys.values()))
        missing: dict[tuple[tuple[float, ...], ...], list[int]] = {}
        n_known = 0
        for index in indices:
            known = {(keys[index], level_key): points_of(nodes.get(keys[index], []), keys[index])[0]}
            points = missing_points(known, snapshots[index], level, settings["targets"], settings["step"])
            n_known += not points
            if points:
                missing.setdefault(tuple(tuple(float(x) for x in v) for v in points.values()), []).append(index)
        queue = []
        for vectors, members in missing.items():
            for first in range(0, len(members), settings["snapshots_per_job"]):
                chunk = members[first : first + settings["snapshots_per_job"]]
                label = f"fields_{chunk[0]:05d}" + ("" if self.ctx.round == 1 else "_again")
                entry = {"label": label, "indices": chunk, "vectors": [list(v) for v in vectors]}
                queue.append(entry)
        self.ctx.queue = queue
        n_points = sum(len(entry["vectors"]) * len(entry["indices"]) for entry in queue)
        missing_text = f"{n_points} field points to compute in {len(queue)} jobs"
        self.report(f"{len(indices)} snapshots: {n_known} known, {missing_text}")

    def job(self, entry: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return a field-set job."""
        settings = self.inputs.settings.get_dict()
        options = self.inputs.options.get_dict() if "options" in self.inputs else {}
        inputs: dict[str, Any] = {
            "code": self.inputs.code,
            "snapshots": take_snapshots(self.inputs.snapshots, orm.List(entry["indices"])),
            "field_vectors": orm.List(entry["vectors"]),
            "level_of_theory": orm.Dict(settings["level_of_theory"]),
            "metadata": job_metadata(options),
        }
        process = field_set_process(settings["engine"])
        if issubclass(process, WorkChain):  # which has no scheduler options of its own
            inputs["options"] = orm.Dict(inputs.pop("metadata").get("options", {}))
        for name in ("template", "files"):
            if name in self.inputs and name in process.spec().inputs:
                inputs[name] = self.inputs[name]
        return process, {**inputs, **self.inputs.get("engine", {})}

    def assemble(self) -> ExitCode | None:
        """Reduce the forces to tensors; a few snapshots may be lost to failed jobs, more than that is an error."""
        settings = self.inputs.settings.get_dict()
        snapshots = read_snapshots(self.inputs.snapshots)
        indices = self.inputs.indices.get_list()
        level = settings["level_of_theory"]
        keys = [configuration_key(snapshots[index]) for index in indices]
        found = known_field_forces(level_of_theory_key(level), keys)
        nodes = {node.uuid: node for every in found.values() for node in every}
        header = {"field_step": settings["step"], "engine": settings["engine"]}
        header["level_of_theory"] = level_of_theory_key(level)[:16]
        outputs = assemble_labels(
            self.inputs.snapshots,
            self.inputs.indices,
            orm.Dict({"targets": settings["targets"], "header": header}),
            **{f"forces_{k:05d}": node for k, node in enumerate(nodes.values())},
        )
        report = outputs["report"].get_dict()
        lost = len(report["incomplete"])
        if "labels" not in outputs or lost > settings.get("allowed_failures", 0.1) * len(indices):
            detail = report["incomplete"][0]["reason"] if lost else "no snapshots"
            if self.ctx.failed:
                node = self.ctx[self.ctx.failed[0]["label"]]
                detail = reason(node)
            return self.exit_codes.ERROR_TOO_MANY_FAILURES.format(n=lost, total=len(indices), detail=detail)
        self.out("labels", outputs["labels"])
        self.out("report", outputs["report"])
        return None


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
