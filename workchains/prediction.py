"""Networks along many trajectories, in a few jobs side by side."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.engine import ExitCode, ProcessSpec, ToContext, while_
from aiida.plugins import CalculationFactory

from mimyria_wf.calculators.assembly import list_series, with_stride
from mimyria_wf.workchains.windowed import WindowedWorkChain, job_metadata, reason

STRIDE_FLAGS = ("stride_tolerance", "batch_size", "keep_sum_rules", "charge", "threads", "device")
"""What the check of the stride shares with the prediction."""


class PredictionWorkChain(WindowedWorkChain):
    """Share trajectories out among jobs; the series stay on the computer, ``series`` says which is where.

    With the stride ``auto`` a small job first chooses it on a stretch of one trajectory, once for all of them.
    """

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs, outline and outputs."""
        super().define(spec)
        spec.input("code", valid_type=orm.AbstractCode, help="The console script mimyria-wf.")
        spec.input_namespace("trajectories", valid_type=orm.RemoteData, dynamic=True)
        spec.input("manifest", valid_type=orm.Dict)
        spec.input_namespace("models", valid_type=orm.SinglefileData, dynamic=True, help="apt and/or pgt")
        spec.input("settings", valid_type=orm.Dict, help="Flags of `mimyria-wf predict`.")
        spec.input("groups", valid_type=orm.SinglefileData, required=False, help="Resolved groups and relations, YAML.")
        spec.input("max_concurrent", valid_type=orm.Int, default=lambda: orm.Int(2), help="Jobs at a time.")
        spec.input("options", valid_type=orm.Dict, required=False, help="Scheduler options of the jobs.")
        spec.outline(
            cls.setup,
            while_(cls.needs_stride)(cls.run_stride, cls.inspect_stride),
            while_(cls.has_queue)(cls.submit_window, cls.inspect_window),
            cls.finish,
        )
        spec.output_namespace("derivatives", valid_type=orm.RemoteData, dynamic=True)
        spec.output("series", valid_type=orm.Dict, help="Which series lies in which of the folders.")
        spec.output("stride_check", valid_type=orm.Dict, required=False, help="With stride: auto.")
        spec.exit_code(441, "ERROR_STRIDE", message="The stride could not be chosen: {detail}")
        spec.exit_code(440, "ERROR_PREDICTION", message="{detail}")

    def setup(self) -> None:
        """Share the trajectories out, long and short ones evenly."""
        files = self.inputs.manifest.get_dict()["files"]
        n_jobs = min(self.inputs.max_concurrent.value, len(files))
        parts: list[list[dict[str, Any]]] = [[] for _ in range(n_jobs)]
        for entry in sorted(files, key=lambda entry: -entry["n_frames"]):
            min(parts, key=lambda part: sum(one["n_frames"] for one in part)).append(entry)
        self.ctx.queue = [{"label": f"part_{k:02d}", "files": part} for k, part in enumerate(parts)]
        self.ctx.done, self.ctx.failed = [], []
        self.ctx.max_concurrent = self.inputs.max_concurrent.value
        self.ctx.settings = self.inputs.settings
        self.ctx.stride_attempts = 0

    def needs_stride(self) -> bool:
        """Is the stride still to be chosen?"""
        return self.ctx.settings.get_dict().get("stride") == "auto"

    def run_stride(self) -> ToContext:
        """Submit the check; how long it may take depends on all trajectories."""
        settings = self.inputs.settings.get_dict()
        inputs = {
            **self._common(self.inputs.manifest.get_dict()["files"]),
            "settings": orm.Dict({key: settings[key] for key in STRIDE_FLAGS if key in settings}),
        }
        label = "stride" if self.ctx.stride_attempts == 0 else "stride_again"
        return ToContext(stride=self.submit_once(label, CalculationFactory("mimyria_wf.stride"), inputs))

    def inspect_stride(self) -> ExitCode | None:
        """Take the stride for all trajectories."""
        child = self.ctx.stride
        self.ctx.stride_attempts += 1
        if not child.is_finished_ok:
            if self.ctx.stride_attempts == 1 and self.is_worth_repeating(child):
                self.report(f"the choice of the stride failed ({reason(child)}): trying it once more")
                return None
            return self.exit_codes.ERROR_STRIDE.format(detail=reason(child))
        self.out("stride_check", child.outputs.summary)
        self.ctx.settings = with_stride(self.inputs.settings, child.outputs.summary)
        self.report(f"stride {self.ctx.settings['stride']}: tensors are predicted at every so many frames")
        return None

    def job(self, entry: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return one job."""
        inputs = {**self._common(entry["files"]), "settings": self.ctx.settings}
        if "groups" in self.inputs:
            inputs["groups"] = self.inputs.groups
        return CalculationFactory("mimyria_wf.prediction"), inputs

    def _common(self, files: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what every job has: code, models, options, and some of the trajectories."""
        folders = {file["folder"] for file in files}
        return {
            "code": self.inputs.code,
            "models": dict(self.inputs.models),
            "trajectories": {key: node for key, node in self.inputs.trajectories.items() if key in folders},
            "manifest": orm.Dict({"files": files}),
            "metadata": job_metadata(self.inputs.options.get_dict() if "options" in self.inputs else None),
        }

    def finish(self) -> ExitCode | None:
        """Attach the folders."""
        if self.ctx.failed:
            node = self.ctx[self.ctx.failed[0]["label"]]
            return self.exit_codes.ERROR_PREDICTION.format(detail=reason(node))
        self.out(
            "derivatives", {entry["label"]: self.ctx[entry["label"]].outputs.remote_folder for entry in self.ctx.done}
        )
        names = {entry["label"]: orm.List([file["name"] for file in entry["files"]]) for entry in self.ctx.done}
        self.out("series", list_series(**names))
        return None
