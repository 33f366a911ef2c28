"""VASP: field sets and response tensors, a job and a directory a point, through aiida-vasp."""

from __future__ import annotations

from typing import Any

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, ProcessSpec, while_
from aiida.plugins import CalculationFactory

from mimyria_wf.calculators.data import read_snapshots
from mimyria_wf.calculators.tblite import define_field_set
from mimyria_wf.calculators.vasp import (
    collect_field_forces,
    collect_tensors,
    divisions_of,
    gap_problem,
    harder,
    input_problem,
    input_warnings,
    is_as_it_stands,
    named_vectors,
    read_zero_field,
    require_aiida_vasp,
    run_inputs,
    run_label,
    template_of,
    vasp_structures,
)
from mimyria_wf.finite_field import point_name
from mimyria_wf.vasp_input import field_tags, lcalceps_runs, lcalceps_tags, lepsilon_tags, point_directory
from mimyria_wf.vasp_template import METHODS
from mimyria_wf.workchains.windowed import WindowedWorkChain, reason

UNCONVERGED = 701
"""aiida-vasp's exit status of a run whose electronic steps ran out."""
OUT_OF_MEMORY, OUT_OF_TIME = 110, 120
"""AiiDA's exit statuses of jobs that the scheduler ended; the same job would end the same way."""
FROM_PARSER = 300
"""Exit statuses below are AiiDA's own: there is nothing to read."""
MAX_CONCURRENT = 4
ONE_PROCESS = {"num_machines": 1, "num_mpiprocs_per_machine": 1}


def _method(inputs: Any) -> str:
    return inputs["method"].value if "method" in inputs else METHODS[0]


class VaspWorkChain(WindowedWorkChain):
    """What the workchains on VASP share: inputs, single runs by aiida-vasp, one more attempt, tidying up."""

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs and exit codes."""
        super().define(spec)
        spec.input("code", valid_type=orm.AbstractCode, help="VASP, for the plugin vasp.vasp.")
        spec.input("options", valid_type=orm.Dict, required=False, help="Scheduler options of the jobs.")
        spec.input("vasp.incar", valid_type=orm.Dict, help="Tags of the level of theory, without a field.")
        spec.input("vasp.kpoints", valid_type=orm.Dict, help="{mesh: [..]} or {spacing_per_A: x}, centred on Gamma.")
        spec.input("vasp.potential_family", valid_type=orm.Str, help="The name that aiida-vasp knows it by.")
        spec.input("vasp.potential_mapping", valid_type=orm.Dict, help="element -> potential")
        spec.input(
            "vasp.settings", valid_type=orm.Dict, required=False, help="max_concurrent (4), clean_workdir (true)"
        )
        spec.output("summary", valid_type=orm.Dict, required=False, help="Version, times, gaps, problems, retries.")
        spec.exit_code(310, "ERROR_NO_POINT", message="No run gave usable results: {detail}")
        spec.exit_code(320, "ERROR_FIELD_TOO_STRONG", message="{detail}")
        spec.exit_code(321, "ERROR_METALLIC", message="{detail}")
        spec.exit_code(400, "ERROR_SOME_POINTS", message="{n} of {total} points failed; the first: {detail}")

    def setting(self, name: str, default: Any) -> Any:
        """Return one of the optional settings."""
        return self.inputs.vasp.settings.get_dict().get(name, default) if "settings" in self.inputs.vasp else default

    def prepare(self) -> None:
        """Put the atoms in the order of the POSCAR."""
        require_aiida_vasp()
        self.ctx.structures = vasp_structures(self.inputs.snapshots, orm.List(self.turns()))
        self.ctx.queue, self.ctx.done, self.ctx.failed, self.ctx.runs = [], [], [], []
        self.ctx.retries, self.ctx.refused = {}, {}
        self.ctx.max_concurrent = self.setting("max_concurrent", MAX_CONCURRENT)

        for line in input_warnings(self.inputs, self.targets(), _method(self.inputs)):
            self.report(line)

    def targets(self) -> list[str]:
        """Return what the runs are for."""
        raise NotImplementedError

    def turns(self) -> list[list[float]]:
        """Return the fields for which the crystal may have to be turned."""
        return []

    def tags(self, entry: dict[str, Any]) -> tuple[dict[str, str], tuple[int, int, int]]:
        """Return the INCAR and the k-point divisions of a run."""
        raise NotImplementedError

    def job(self, entry: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return one run of VASP; where the electronic steps ran out before, another way to the same threshold."""
        tags, divisions = self.tags(entry)
        if entry.get("attempt", 1) > 1:
            before = self.ctx[entry["label"].removesuffix("_again")]
            remedy = "none"
            if before.exit_status == UNCONVERGED:
                tags, remedy = harder(tags), "ALGO = All, three times NELM"
            self.ctx.retries[entry["label"]] = {"reason": reason(before), "remedy": remedy}
        inputs = run_inputs(self.inputs.vasp, self.ctx.structures[entry["structure"]], divisions, tags)
        if entry.get("start"):
            inputs["restart_folder"] = self.run_of(entry["start"]).outputs.remote_folder
        options = self.inputs.options.get_dict() if "options" in self.inputs else {}
        options = {"resources": ONE_PROCESS} | {key: value for key, value in options.items() if value is not None}
        # a run from the cache has no folder with wavefunctions for others to start from
        metadata = {"options": options, "disable_cache": entry["keep"]}
        return CalculationFactory("vasp.vasp"), {"code": self.inputs.code, **inputs, "metadata": metadata}

    def is_worth_repeating(self, node: orm.ProcessNode) -> bool:
        """Say whether another attempt may succeed."""
        return not node.is_killed and node.exit_status not in (OUT_OF_MEMORY, OUT_OF_TIME)

    def run_of(self, label: str) -> orm.CalcJobNode:
        """Return the last attempt at a run."""
        return self.ctx.get(f"{label}_again") or self.ctx[label]

    def inspect_window(self) -> None:
        """Sort the runs; what nothing else starts from is not needed on the computer any more."""
        super().inspect_window()
        for entry in self.ctx.window:
            if not entry["keep"]:
                self.clean(self.ctx[entry["label"]])

    def clean(self, node: orm.CalcJobNode) -> None:
        """Empty the folder of a run that went well: wavefunctions are large, and a copy lies in each."""
        if node.is_finished_ok and self.setting("clean_workdir", True):
            node.outputs.remote_folder._clean()

    def ended(self, label: str) -> tuple[orm.FolderData | None, dict[str, Any]]:
        """Return what a run left behind, and what AiiDA knows of its end that its files do not."""
        node = self.run_of(label)
        known = {"cause": "", "problem": "", "complaint": "" if node.is_finished_ok else reason(node)}
        if not node.is_finished_ok and (node.exit_status is None or node.exit_status < FROM_PARSER):
            known["problem"] = reason(node)
            known["cause"] = {OUT_OF_MEMORY: "memory", OUT_OF_TIME: "walltime"}.get(node.exit_status, "aborted")
        return node.outputs.retrieved if "retrieved" in node.outputs else None, known

    def left_behind(self) -> dict[str, orm.FolderData]:
        """Return what all runs left, under their labels."""
        folders = {label: self.ended(label)[0] for label in self.ctx.runs}
        return {label: folder for label, folder in folders.items() if folder is not None}

    def verdict(self, failed: list[dict[str, Any]], total: int, n_snapshots: int) -> ExitCode | None:
        """Return the exit code for what of the wanted points failed."""
        statuses = {status for status, _ in self.ctx.refused.values()}
        if len(self.ctx.refused) == n_snapshots and 310 not in statuses:
            status, line = next(iter(self.ctx.refused.values()))
            codes = {320: self.exit_codes.ERROR_FIELD_TOO_STRONG, 321: self.exit_codes.ERROR_METALLIC}
            return codes[status].format(detail=line)
        if not failed:
            return None
        detail = (f"snapshot {failed[0]['snapshot']}: " if n_snapshots > 1 else "") + failed[0]["problem"]
        if len(failed) == total:
            return self.exit_codes.ERROR_NO_POINT.format(detail=detail)
        return self.exit_codes.ERROR_SOME_POINTS.format(n=len(failed), total=total, detail=detail)


def _validate(inputs: Any, _: Any = None) -> str | None:
    """Return what can be known to fail before anything is submitted."""
    return input_problem(inputs, ["apt"], _method(inputs)) if {"snapshots", "vasp"} <= set(inputs) else None


class VaspFieldSetWorkChain(VaspWorkChain):
    """Forces of every snapshot in every field vector.

    The run without a field comes first: its gap says whether the fields are weak enough, and the others start from its
    wavefunctions. It is done even where its forces are not asked for, and its forces are kept. With method lcalceps a
    run has three fields in turn, and fields off the axes need a turned crystal.
    """

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs, outline and outputs."""
        super().define(spec)
        define_field_set(spec)
        spec.input("method", valid_type=orm.Str, required=False, help="finite-field (EFIELD_PEAD) or lcalceps")
        spec.inputs.validator = _validate
        spec.outline(
            cls.prepare,
            cls.queue_zero_field,
            while_(cls.has_queue)(cls.submit_window, cls.inspect_window),
            cls.queue_fields,
            while_(cls.has_queue)(cls.submit_window, cls.inspect_window),
            cls.collect,
        )

    def targets(self) -> list[str]:
        """Return what the runs are for, as far as the fields tell."""
        return ["apt", "pgt"] if len([v for v in self.inputs.field_vectors.get_list() if any(v)]) > 6 else ["apt"]

    def turns(self) -> list[list[float]]:
        """Return the fields for which the crystal may have to be turned."""
        return self.inputs.field_vectors.get_list() if _method(self.inputs) == "lcalceps" else []

    def tags(self, entry: dict[str, Any]) -> tuple[dict[str, str], tuple[int, int, int]]:
        """Return the INCAR and the k-point divisions of a run."""
        atoms = read_snapshots(self.inputs.snapshots)[entry["snapshot"]]
        template = template_of(self.inputs.vasp, atoms)
        zero = entry["folder"] == "zero"
        if zero or _method(self.inputs) != "lcalceps":
            vector = np.array(entry["vector"])
            tags = field_tags(template, atoms, vector, restart=bool(entry["start"]), keep=zero)
        else:
            runs = lcalceps_runs(named_vectors(self.inputs.field_vectors.get_list()))
            tags = lcalceps_tags(template, atoms, next(run for run in runs if run.folder == entry["folder"]))
            if entry["start"]:
                tags |= {"ISTART": "1", "ICHARG": "0"}
        return tags, template.kpoints.divisions

    def queue_zero_field(self) -> None:
        """Start without a field."""
        for number in range(len(read_snapshots(self.inputs.snapshots))):
            self._queue(number, "zero", [0.0, 0.0, 0.0])

    def queue_fields(self) -> None:
        """Go on with the snapshots whose gap bears the fields."""
        vectors = {name: v for name, v in named_vectors(self.inputs.field_vectors.get_list()).items() if v.any()}
        for number, atoms in enumerate(read_snapshots(self.inputs.snapshots)):
            folder, known = self.ended(run_label(number, "zero"))
            found = None if folder is None else read_zero_field(folder, atoms)
            if known["problem"] or found is None:
                status, line = 310, known["problem"] or "the run without a field left nothing"
            elif found.causes[0] == "metal" or found.valid[0]:
                divisions = divisions_of(self.inputs.vasp.kpoints.get_dict(), atoms.cell[:])
                fields = np.array(list(vectors.values())).reshape(-1, 3)
                gap = 0.0 if found.causes[0] == "metal" else found.gap
                status, line = gap_problem(atoms, divisions, fields, gap)
                if known["complaint"] and not status:
                    status, line = 310, known["complaint"]
            else:
                status, line = 310, found.problems[0]
            if status:
                self.ctx.refused[str(number)] = (status, line)
                self.report(f"snapshot {number}: {line}")
            elif _method(self.inputs) == "lcalceps":
                for run in lcalceps_runs(vectors):
                    self._queue(number, run.folder, is_turned=not is_as_it_stands(run))
            else:
                for name, vector in vectors.items():
                    self._queue(number, point_directory(name), vector.tolist())

    def _queue(self, number: int, folder: str, vector: list[float] | None = None, is_turned: bool = False) -> None:
        label, zero = run_label(number, folder), run_label(number, "zero")
        entry = {"label": label, "snapshot": number, "folder": folder, "vector": vector}
        entry["structure"] = label if is_turned else f"s{number:03d}"
        # wavefunctions belong to the cell as it stands
        entry["start"], entry["keep"] = None if is_turned or label == zero else zero, label == zero
        self.ctx.queue.append(entry)
        self.ctx.runs.append(label)

    def _run_with(self, number: int, vector: np.ndarray) -> str:
        """Return the run that has a field vector."""
        if vector.any() and _method(self.inputs) == "lcalceps":
            jobs = lcalceps_runs(named_vectors(self.inputs.field_vectors.get_list()))
            folder = next(job.folder for job in jobs if point_name(vector) in job.points.values())
            return run_label(number, folder)
        return run_label(number, point_directory(point_name(vector)))

    def collect(self) -> ExitCode | None:
        """Read all points; say what failed, and keep what did not."""
        n_snapshots = len(read_snapshots(self.inputs.snapshots))
        wanted = named_vectors([[0.0, 0.0, 0.0], *self.inputs.field_vectors.get_list()])
        points = []
        for number in range(n_snapshots):
            status, line = self.ctx.refused.get(str(number), (0, ""))
            for vector in wanted.values():
                label = self._run_with(number, vector)
                if status and label not in self.ctx.runs:
                    known = {"cause": "field" if status == 320 else "forces", "problem": line, "complaint": ""}
                else:
                    known = self.ended(label)[1]
                points.append({"snapshot": number, "vector": vector.tolist(), **known})
        plan = {"method": _method(self.inputs), "points": points, "retries": dict(self.ctx.retries)}
        collected = collect_field_forces(
            self.inputs.snapshots, self.inputs.level_of_theory, orm.Dict(plan), **self.left_behind()
        )
        for name, node in collected.items():
            self.out(name, node)
        asked = {point_name(np.array(vector)) for vector in self.inputs.field_vectors.get_list()}
        failed = [one for one in collected["summary"]["failed"] if one["point"] in asked]
        for number in range(n_snapshots):
            if not any(one["snapshot"] == number for one in failed):
                self.clean(self.run_of(run_label(number, "zero")))
        return self.verdict(failed, n_snapshots * len(asked), n_snapshots)


def _validate_tensors(inputs: Any, _: Any = None) -> str | None:
    """Return what can be known to fail before anything is submitted."""
    if not {"snapshots", "vasp", "targets"} <= set(inputs):
        return None
    return input_problem(inputs, inputs["targets"].get_list(), "lepsilon")


class VaspTensorsWorkChain(VaspWorkChain):
    """APT and dielectric tensor of every snapshot by LEPSILON, one job each."""

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs, outline and outputs."""
        super().define(spec)
        spec.input("snapshots", valid_type=orm.SinglefileData, help="extxyz")
        spec.input("level_of_theory", valid_type=orm.Dict, help="settings of the engine; their content keys the labels")
        spec.input("targets", valid_type=orm.List, help="[apt]; LEPSILON has no second derivatives")
        spec.input("method", valid_type=orm.Str, required=False, help="lepsilon")
        spec.inputs.validator = _validate_tensors
        spec.output(
            "response_tensors", valid_type=orm.ArrayData, required=False, help="tensors of all runs that are sound"
        )
        spec.outline(
            cls.prepare,
            cls.queue_all,
            while_(cls.has_queue)(cls.submit_window, cls.inspect_window),
            cls.collect,
        )

    def tags(self, entry: dict[str, Any]) -> tuple[dict[str, str], tuple[int, int, int]]:
        """Return the INCAR and the k-point divisions of a run."""
        atoms = read_snapshots(self.inputs.snapshots)[entry["snapshot"]]
        template = template_of(self.inputs.vasp, atoms)
        return lepsilon_tags(template, atoms), template.kpoints.divisions

    def targets(self) -> list[str]:
        """Return what the runs are for."""
        return self.inputs.targets.get_list()

    def queue_all(self) -> None:
        """Queue a run a snapshot."""
        for number in range(len(read_snapshots(self.inputs.snapshots))):
            label = run_label(number, "lepsilon")
            entry = {"label": label, "snapshot": number, "structure": f"s{number:03d}", "start": None, "keep": True}
            self.ctx.queue.append(entry)
            self.ctx.runs.append(label)

    def collect(self) -> ExitCode | None:
        """Read all runs; say what failed, and keep what did not."""
        n_snapshots = len(read_snapshots(self.inputs.snapshots))
        runs = [{"snapshot": n, **self.ended(run_label(n, "lepsilon"))[1]} for n in range(n_snapshots)]
        plan = orm.Dict({"runs": runs, "retries": dict(self.ctx.retries)})
        collected = collect_tensors(self.inputs.snapshots, self.inputs.level_of_theory, plan, **self.left_behind())
        for name, node in collected.items():
            self.out(name, node)
        failed = collected["summary"]["failed"]
        for number in range(n_snapshots):
            problem = next((one["problem"] for one in failed if one["snapshot"] == number), "")
            if problem.startswith("metallic"):
                self.ctx.refused[str(number)] = (321, problem)
            elif not problem:
                self.clean(self.run_of(run_label(number, "lepsilon")))
        return self.verdict(failed, n_snapshots, n_snapshots)
