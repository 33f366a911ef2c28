"""From a structure to independent NVE trajectories."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.engine import ExitCode, ProcessSpec, ToContext, while_
from aiida.plugins import CalculationFactory

from mimyria_wf.calculators.assembly import build_manifest
from mimyria_wf.workchains.windowed import WindowedWorkChain, job_metadata, reason


class SamplingWorkChain(WindowedWorkChain):
    """One NVT run, decorrelated starts from it, then NVE runs from the starts, a few in each job.

    The split into NVT and NVE follows Sec. 2.5 of Schienbein (2026): a thermostat would disturb the velocities whose
    correlations are the spectrum.
    """

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs, outline and outputs."""
        super().define(spec)
        spec.input("code", valid_type=orm.AbstractCode, help="The console script mimyria-wf.")
        spec.input("md_code", valid_type=orm.AbstractCode, required=False, help="CP2K, for engine cp2k.")
        spec.input("structure", valid_type=orm.StructureData)
        spec.input("calculator", valid_type=orm.Dict, required=False, help="For engines ase and torch-sim.")
        spec.input("template", valid_type=orm.SinglefileData, required=False, help="CP2K input, for engine cp2k.")
        spec.input_namespace("files", valid_type=orm.SinglefileData, dynamic=True, required=False)
        spec.input(
            "settings",
            valid_type=orm.Dict,
            help="engine, charge, multiplicity, seed, nvt, nve (flags of `mimyria-wf md`), n_trajectories, "
            "trajectories_per_job, max_concurrent",
        )
        spec.input("options", valid_type=orm.Dict, required=False, help="Scheduler options of the MD jobs.")
        spec.outline(
            cls.setup,
            cls.run_nvt,
            cls.inspect_nvt,
            while_(cls.has_queue)(cls.submit_window, cls.inspect_window),
            cls.finish,
        )
        spec.output_namespace("trajectories", valid_type=orm.RemoteData, dynamic=True)
        spec.output("manifest", valid_type=orm.Dict)
        spec.output("nvt_summary", valid_type=orm.Dict)
        spec.exit_code(401, "ERROR_NVT", message="The NVT run failed: {detail}")
        spec.exit_code(402, "ERROR_NVE", message="NVE runs failed twice: {detail}")

    def setup(self) -> None:
        """Plan the NVE jobs."""
        settings = self.inputs.settings.get_dict()
        n, per_job = settings["n_trajectories"], settings["trajectories_per_job"]
        chunks = [list(range(first, min(first + per_job, n))) for first in range(0, n, per_job)]
        self.ctx.queue = [{"label": f"nve_{chunk[0]:03d}", "indices": chunk} for chunk in chunks]
        self.ctx.max_concurrent = settings["max_concurrent"]
        self.ctx.done, self.ctx.failed = [], []
        self.ctx.n_trajectories = n

    def run_nvt(self) -> ToContext:
        """Submit the NVT run."""
        settings = self.inputs.settings.get_dict()
        process, inputs = self._job("nvt", settings["nvt"])
        inputs["structure"] = self.inputs.structure
        return ToContext(nvt=self.submit_once("nvt", process, inputs))

    def inspect_nvt(self) -> ExitCode | None:
        """Go on if there are starts."""
        if not self.ctx.nvt.is_finished_ok:
            return self.exit_codes.ERROR_NVT.format(detail=reason(self.ctx.nvt))
        self.out("nvt_summary", self.ctx.nvt.outputs.summary)
        summary = self.ctx.nvt.outputs.summary.get_dict()
        self.report(f"NVT finished: {_temperature(summary)}; {len(self.ctx.queue)} NVE jobs follow")
        return None

    def job(self, entry: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return an NVE job."""
        process, inputs = self._job("nve", self.inputs.settings.get_dict()["nve"])
        inputs["starts"] = self.ctx.nvt.outputs.starts
        inputs["indices"] = orm.List(entry["indices"])
        return process, inputs

    def finish(self) -> ExitCode | None:
        """Attach trajectories and manifest."""
        if self.ctx.failed:
            node = self.ctx[self.ctx.failed[0]["label"]]
            names = ", ".join(entry["label"] for entry in self.ctx.failed)
            return self.exit_codes.ERROR_NVE.format(detail=f"{names}: {reason(node)}")
        jobs = {entry["label"].removesuffix("_again"): self.ctx[entry["label"]] for entry in self.ctx.done}
        self.out("trajectories", {label: job.outputs.remote_folder for label, job in jobs.items()})
        manifest = build_manifest(**{label: job.outputs.summary for label, job in jobs.items()})
        self.out("manifest", manifest)
        self.report(f"{self.ctx.n_trajectories} NVE trajectories finished")
        return None

    def _job(self, ensemble: str, flags: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        options = self.inputs.options.get_dict() if "options" in self.inputs else {}
        inputs: dict[str, Any] = {"code": self.inputs.code, "metadata": job_metadata(options)}
        if self.inputs.settings["engine"] == "cp2k":
            inputs["cp2k_code"] = self.inputs.md_code
            inputs["template"] = self.inputs.template
        else:
            inputs["calculator"] = self.inputs.calculator
        if "files" in self.inputs:
            inputs["files"] = dict(self.inputs.files)
        inputs["settings"] = orm.Dict(flags)
        prefix = "cp2k" if self.inputs.settings["engine"] == "cp2k" else "md"
        return CalculationFactory(f"mimyria_wf.{prefix}.{ensemble}"), inputs


def _temperature(summary: dict[str, Any]) -> str:
    temperature = summary["trajectory"]["temperature"]
    return "no temperature reported" if temperature is None else f"mean temperature {temperature:.1f} K"
