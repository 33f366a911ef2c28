"""Networks along many trajectories, in a few jobs side by side."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.engine import ExitCode, ProcessSpec, while_
from aiida.plugins import CalculationFactory

from mimyria_wf.calculators.assembly import list_series
from mimyria_wf.workchains.windowed import WindowedWorkChain, job_metadata, reason


class PredictionWorkChain(WindowedWorkChain):
    """Share trajectories out among jobs; the series stay on the computer, ``series`` says which is where."""

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
            while_(cls.has_queue)(cls.submit_window, cls.inspect_window),
            cls.finish,
        )
        spec.output_namespace("derivatives", valid_type=orm.RemoteData, dynamic=True)
        spec.output("series", valid_type=orm.Dict, help="Which series lies in which of the folders.")
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

    def job(self, entry: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return one job."""
        folders = {file["folder"] for file in entry["files"]}
        inputs = {
            "code": self.inputs.code,
            "models": dict(self.inputs.models),
            "trajectories": {key: node for key, node in self.inputs.trajectories.items() if key in folders},
            "manifest": orm.Dict({"files": entry["files"]}),
            "settings": self.inputs.settings,
            "metadata": job_metadata(self.inputs.options.get_dict() if "options" in self.inputs else None),
        }
        if "groups" in self.inputs:
            inputs["groups"] = self.inputs.groups
        return CalculationFactory("mimyria_wf.prediction"), inputs

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
