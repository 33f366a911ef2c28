"""The whole chain: from a structure, or trajectories, to IR and Raman spectra with their provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiida import orm
from aiida.engine import ExitCode, ProcessBuilder, ProcessSpec, ToContext, if_
from aiida.plugins import CalculationFactory, WorkflowFactory

from mimyria_wf.calculators.qualification import adopt_recommendation, varied_level
from mimyria_wf.workchains.windowed import WindowedWorkChain, job_metadata, reason


class CampaignWorkChain(WindowedWorkChain):
    """Sample, select, refine, predict along all trajectories, compute spectra, judge them.

    Every stage can be replaced by what was made elsewhere: trajectories, labels, models.
    """

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs, outline and outputs."""
        super().define(spec)
        spec.input("code", valid_type=orm.AbstractCode, help="The console script mimyria-wf.")
        spec.expose_inputs(
            WorkflowFactory("mimyria_wf.qualification"),
            namespace="qualification",
            include=("snapshots", "screening"),
            namespace_options={
                "required": False,
                "populate_defaults": False,
                "help": "Trial of the labels' level of theory before anything is spent.",
            },
        )
        spec.input("verdict", valid_type=orm.Dict, required=False, help="Of a qualification that was made before.")
        about = "step, threshold: what the qualification chooses for the labels."
        spec.input("adopt", valid_type=orm.List, required=False, help=about)
        spec.expose_inputs(
            WorkflowFactory("mimyria_wf.sampling"),
            namespace="sampling",
            namespace_options={"required": False, "populate_defaults": False},
        )
        spec.inputs["sampling"]["code"].required = False
        for step in ("prediction", "spectra"):
            about = f"For {step}; on the computer where the trajectories lie."
            spec.input(f"{step}_code", valid_type=orm.AbstractCode, required=False, help=about)
        spec.input_namespace("trajectories", valid_type=orm.RemoteData, dynamic=True, required=False)
        spec.input("manifest", valid_type=orm.Dict, required=False, help="With `trajectories`.")
        spec.expose_inputs(
            WorkflowFactory("mimyria_wf.refinement"),
            namespace="refinement",
            exclude=(
                "code",
                "prediction_code",
                "spectra_code",
                "trajectories",
                "manifest",
                "training_snapshots",
                "test_snapshots",
                "selection",
                "pretraining_snapshots",
                "models",
                "prediction",
                "spectra",
                "options",
                "convergence",
                "max_concurrent",
            ),
            namespace_options={"required": False, "populate_defaults": False},
        )
        spec.input_namespace("models", valid_type=orm.SinglefileData, dynamic=True, required=False)
        spec.input("convergence", valid_type=orm.Dict, required=False, help="r2, spectral_distance, trajectories, ...")
        spec.input("selection", valid_type=orm.Dict, required=False, help="n_training, n_test, seed, ...; by_committee")
        spec.input("pretraining_selection", valid_type=orm.Dict, required=False, help="n_training, n_test, seed, ...")
        spec.input("prediction", valid_type=orm.Dict, help="Flags of the final prediction.")
        spec.input("final_prediction", valid_type=orm.Dict, required=False, help="More flags, of that one only.")
        spec.input("spectra", valid_type=orm.Dict, help="Flags of `mimyria-wf spectra`.")
        spec.input("final_spectra", valid_type=orm.Dict, required=False, help="More flags, of the final spectra only.")
        spec.input("groups", valid_type=orm.SinglefileData, required=False, help="Groups and relations, YAML.")
        spec.input("measured", valid_type=orm.SinglefileData, required=False, help="Measured spectrum to overlay.")
        spec.input("reference", valid_type=orm.Dict, required=False, help="trajectory, n_parts, n_frames, label flags")
        spec.input("max_concurrent", valid_type=orm.Int, default=lambda: orm.Int(2), help="Prediction jobs at a time.")
        spec.input("options", valid_type=orm.Dict, required=False, help="training, prediction, spectra, selection")
        spec.input("clean_workdir", valid_type=orm.Bool, required=False, help="Remove work directories on success.")
        spec.outline(
            if_(cls.needs_qualification)(cls.run_qualification),
            cls.inspect_qualification,
            if_(cls.needs_sampling)(cls.run_sampling, cls.inspect_sampling),
            if_(cls.needs_preparation)(cls.run_preparation, cls.inspect_preparation),
            if_(cls.needs_refinement)(cls.run_refinement, cls.inspect_refinement),
            cls.run_prediction,
            cls.inspect_prediction,
            cls.run_spectra,
            cls.finish,
        )
        spec.output("verdict", valid_type=orm.Dict, required=False, help="Of the qualification.")
        spec.output_namespace("models", valid_type=orm.SinglefileData, dynamic=True)
        spec.output_namespace("iterations", valid_type=orm.Dict, dynamic=True)
        spec.output_namespace("labels", valid_type=orm.SinglefileData, dynamic=True)
        spec.output("decision", valid_type=orm.Dict, required=False)
        spec.output("manifest", valid_type=orm.Dict, help="The trajectories.")
        spec.output_namespace("selections", valid_type=orm.Dict, dynamic=True, help="What the committee chose.")
        spec.output("stride_check", valid_type=orm.Dict, required=False, help="Distances of strides, the one chosen.")
        spec.output("summary", valid_type=orm.Dict, help="What the final spectra say of themselves, with their gates.")
        spec.output("spectra", valid_type=orm.FolderData, help="Tables and figures of the final spectra.")
        spec.output(
            "groups", valid_type=orm.SinglefileData, required=False, help="Groups with every distance a number."
        )
        spec.output("groups_files", valid_type=orm.FolderData, required=False)
        spec.output("comparison", valid_type=orm.Dict, required=False, help="Explicit against predicted spectra.")
        spec.output("comparison_files", valid_type=orm.FolderData, required=False)
        spec.exit_code(437, "ERROR_QUALIFICATION", message="The labels do not qualify: {detail}")
        spec.exit_code(430, "ERROR_SAMPLING", message="Sampling failed: {detail}")
        spec.exit_code(431, "ERROR_SELECTION", message="The choice of snapshots failed: {detail}")
        spec.exit_code(432, "ERROR_REFINEMENT", message="Refinement failed: {detail}")
        spec.exit_code(433, "ERROR_REFERENCE", message="The explicit reference failed: {detail}")
        spec.exit_code(434, "ERROR_PREDICTION", message="The final prediction failed: {detail}")
        spec.exit_code(436, "ERROR_GROUPS", message="The groups could not be resolved: {detail}")
        spec.exit_code(435, "ERROR_SPECTRA", message="The final spectra failed: {detail}")

    @classmethod
    def get_builder_from_protocol(
        cls,
        structure: orm.StructureData,
        protocol: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        name: str = "campaign",
    ) -> ProcessBuilder:
        """Return a builder, see :func:`mimyria_wf.workchains.protocols.protocol_inputs`."""
        from mimyria_wf.workchains.protocols import protocol_inputs

        builder = cls.get_builder()
        builder._update(protocol_inputs(structure, protocol, overrides, name))
        return builder

    def needs_qualification(self) -> bool:
        """Is the labels' level of theory to be tried?"""
        return "qualification" in self.inputs and "verdict" not in self.inputs

    def run_qualification(self) -> ToContext:
        """Submit the qualification."""
        labels = self.inputs.refinement.labels
        names = ("code", "settings", "template", "files", "engine", "options")
        inputs = {**self.inputs.qualification, **{name: labels[name] for name in names if name in labels}}
        process = WorkflowFactory("mimyria_wf.qualification")
        return ToContext(qualification=self.submit_once("qualification", process, inputs))

    def inspect_qualification(self) -> ExitCode | None:
        """Go on if field step and threshold of the labels are sound, or are to be those recommended."""
        child = self.ctx.get("qualification")
        source = child.outputs if child is not None else self.inputs
        self.ctx.verdict = source.verdict if "verdict" in source else None
        if self.ctx.verdict is not None:
            self.out("verdict", self.ctx.verdict)
        if child is not None and not child.is_finished_ok:
            return self.exit_codes.ERROR_QUALIFICATION.format(detail=reason(child))
        if self.ctx.verdict is not None and "adopt" not in self.inputs and self.ctx.verdict["objections"]:
            return self.exit_codes.ERROR_QUALIFICATION.format(detail="; ".join(self.ctx.verdict["objections"]))
        return None

    def _qualified(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs of labels with what the qualification recommends, where it was asked to choose."""
        if "adopt" not in self.inputs:
            return labels
        changes: dict[str, Any] = {"adopt": self.inputs.adopt.get_list()}
        changed: dict[str, Any] = {}
        if "threshold" in changes["adopt"]:
            settings, variation = labels["settings"].get_dict(), {"eps_scf": self.ctx.verdict["eps_scf"]}
            level, changed = varied_level(settings["engine"], settings["level_of_theory"], labels, variation)
            changes["level_of_theory"] = level
        return {
            **labels,
            **changed,
            "settings": adopt_recommendation(labels["settings"], self.ctx.verdict, orm.Dict(changes)),
        }

    def needs_sampling(self) -> bool:
        """Are trajectories to be made?"""
        if "manifest" in self.inputs:
            self.ctx.manifest = self.inputs.manifest
            self.ctx.trajectories = dict(self.inputs.trajectories)
            return False
        return True

    def run_sampling(self) -> ToContext:
        """Submit the sampling."""
        inputs = self.exposed_inputs(WorkflowFactory("mimyria_wf.sampling"), namespace="sampling")
        inputs = {"code": self.inputs.code, **inputs}
        return ToContext(sampling=self.submit_once("sampling", WorkflowFactory("mimyria_wf.sampling"), inputs))

    def inspect_sampling(self) -> ExitCode | None:
        """Keep the trajectories."""
        child = self.ctx.sampling
        if not child.is_finished_ok:
            return self.exit_codes.ERROR_SAMPLING.format(detail=reason(child))
        self.ctx.manifest = child.outputs.manifest
        self.ctx.trajectories = dict(child.outputs.trajectories)
        return None

    def needs_preparation(self) -> bool:
        """Are snapshots to be labelled, or groups to be resolved?"""
        self.out("manifest", self.ctx.manifest)
        return any(name in self.inputs for name in ("selection", "pretraining_selection", "groups"))

    def run_preparation(self) -> ToContext:
        """Submit the choice of snapshots and, beside it, the groups: both read all trajectories."""
        common = {
            "code": self.inputs.code,
            "trajectories": self.ctx.trajectories,
            "manifest": self.ctx.manifest,
            "metadata": job_metadata(self._options("selection")),
        }
        children = {}
        if "selection" in self.inputs:
            inputs = {**common, "settings": orm.Dict(self._selection_settings("selection"))}
            children["selection"] = self.submit_once("selection", CalculationFactory("mimyria_wf.selection"), inputs)
        if "pretraining_selection" in self.inputs:
            inputs = {**common, "settings": orm.Dict(self._selection_settings("pretraining_selection"))}
            process = CalculationFactory("mimyria_wf.selection")
            children["pretraining_selection"] = self.submit_once("pretraining_selection", process, inputs)
        if "groups" in self.inputs:
            inputs = {**common, "groups": self.inputs.groups}
            children["groups"] = self.submit_once("groups", CalculationFactory("mimyria_wf.groups"), inputs)
        return ToContext(**children)

    def _selection_settings(self, name: str) -> dict[str, Any]:
        """Return the flags of `mimyria-wf select`: the same for the first choice and for those by committee."""
        settings = self.inputs[name].get_dict()
        settings.pop("by_committee", None)
        if "reference" in self.inputs:
            settings["exclude"] = [self._reference_entry()["name"]]
        return settings

    def inspect_preparation(self) -> ExitCode | None:
        """Go on if it worked."""
        codes = dict.fromkeys(("selection", "pretraining_selection"), self.exit_codes.ERROR_SELECTION)
        codes["groups"] = self.exit_codes.ERROR_GROUPS
        for label, code in codes.items():
            child = self.ctx.get(label)
            if child is not None and not child.is_finished_ok:
                return code.format(detail=reason(child))
        if "groups" in self.ctx:
            self.out("groups", self.ctx.groups.outputs.resolved)
            self.out("groups_files", self.ctx.groups.outputs.retrieved)
        return None

    def needs_refinement(self) -> bool:
        """Are networks to be trained?"""
        self.ctx.models = dict(self.inputs.models) if "models" in self.inputs else {}
        return "convergence" in self.inputs

    def run_refinement(self) -> ToContext:
        """Submit the refinement and, beside it, the explicit reference."""
        inputs = self.exposed_inputs(WorkflowFactory("mimyria_wf.refinement"), namespace="refinement")
        convergence = self.inputs.convergence.get_dict()
        files = self.ctx.manifest.get_dict()["files"]
        n_used = min(convergence.pop("trajectories"), len(files))
        convergence["names"] = [entry["name"] for entry in files[:n_used]]
        prediction = {**self.inputs.prediction.get_dict(), "stride": convergence.pop("stride")}
        prediction.pop("stride_tolerance", None)
        inputs = {
            **inputs,
            "code": self.inputs.code,
            "trajectories": self.ctx.trajectories,
            "manifest": self.ctx.manifest,
            "convergence": orm.Dict(convergence),
            "prediction": orm.Dict(prediction),
            "spectra": self.inputs.spectra,
            "max_concurrent": self.inputs.max_concurrent,
        }
        for name in ("prediction_code", "spectra_code"):
            if name in self.inputs:
                inputs[name] = self.inputs[name]
        if self.ctx.models:
            inputs["models"] = self.ctx.models
        if "labels" in inputs:
            inputs["labels"] = self._qualified(dict(inputs["labels"]))
        if "options" in self.inputs:
            inputs["options"] = self.inputs.options
        if "selection" in self.ctx:
            inputs["training_snapshots"] = self.ctx.selection.outputs.training
            inputs["test_snapshots"] = self.ctx.selection.outputs.test
            if self.inputs.selection.get_dict().get("by_committee"):
                inputs["selection"] = orm.Dict(self._selection_settings("selection"))
        if "pretraining_selection" in self.ctx:
            inputs["pretraining_snapshots"] = self.ctx.pretraining_selection.outputs.training
        children = {"refinement": self.submit_once("refinement", WorkflowFactory("mimyria_wf.refinement"), inputs)}
        if "reference" in self.inputs:
            children.update(self._submit_reference())
        return ToContext(**children)

    def _reference_entry(self) -> dict[str, Any]:
        return self.ctx.manifest.get_dict()["files"][self.inputs.reference["trajectory"]]

    def _submit_reference(self) -> dict[str, orm.ProcessNode]:
        """Submit the labels along the reference trajectory in equal parts."""
        reference = self.inputs.reference.get_dict()
        entry = self._reference_entry()
        n_frames = min(entry["n_frames"], reference.get("n_frames") or entry["n_frames"])
        n_parts = reference["n_parts"]
        children = {}
        for part in range(n_parts):
            flags = {
                **reference["flags"],
                **({"step": self.ctx.verdict["step"]} if "adopt" in self.inputs else {}),
                "start": part * n_frames // n_parts,
                "stop": (part + 1) * n_frames // n_parts,
            }
            label = f"reference_{part:02d}"
            inputs: dict[str, Any] = {
                "code": self.inputs.code,
                "trajectories": {entry["folder"]: self.ctx.trajectories[entry["folder"]]},
                "manifest": orm.Dict({"files": [entry]}),
                "level_of_theory": orm.Dict(reference["level_of_theory"]),
                "settings": orm.Dict(flags),
                "metadata": job_metadata(self._options("labels")),
            }
            if "groups" in self.ctx:
                inputs["groups"] = self.ctx.groups.outputs.resolved
            children[label] = self.submit_once(label, CalculationFactory("mimyria_wf.reference"), inputs)
        return children

    def inspect_refinement(self) -> ExitCode | None:
        """Keep models and history."""
        child = self.ctx.refinement
        if not child.is_finished_ok:
            return self.exit_codes.ERROR_REFINEMENT.format(detail=reason(child))
        if "reference" in self.inputs:
            for part in range(self.inputs.reference["n_parts"]):
                job = self.ctx[f"reference_{part:02d}"]
                if not job.is_finished_ok:
                    return self.exit_codes.ERROR_REFERENCE.format(detail=reason(job))
        self.ctx.models = dict(child.outputs.models)
        self.out("models", self.ctx.models)
        self.out("iterations", dict(child.outputs.iterations))
        self.out("decision", child.outputs.decision)
        for name in ("labels", "selections"):
            if name in child.outputs:
                self.out(name, dict(child.outputs[name]))
        return None

    def run_prediction(self) -> ToContext:
        """Predict along all trajectories."""
        settings = self.inputs.prediction
        if "final_prediction" in self.inputs:
            settings = orm.Dict({**settings.get_dict(), **self.inputs.final_prediction.get_dict()})
        inputs = {
            "code": self.code_for("prediction"),
            "models": self.ctx.models,
            "trajectories": self.ctx.trajectories,
            "manifest": self.ctx.manifest,
            "settings": settings,
            "max_concurrent": self.inputs.max_concurrent,
            "options": orm.Dict(self._options("prediction")),
        }
        if "groups" in self.ctx:
            inputs["groups"] = self.ctx.groups.outputs.resolved
        return ToContext(prediction=self.submit_once("prediction", WorkflowFactory("mimyria_wf.prediction"), inputs))

    def inspect_prediction(self) -> ExitCode | None:
        """Go on if it worked."""
        child = self.ctx.prediction
        if not child.is_finished_ok:
            return self.exit_codes.ERROR_PREDICTION.format(detail=reason(child))
        if "stride_check" in child.outputs:
            self.out("stride_check", child.outputs.stride_check)
        return None

    def run_spectra(self) -> ToContext:
        """Submit the final spectra and the comparison with the reference."""
        settings = self.inputs.spectra
        if "final_spectra" in self.inputs:
            settings = orm.Dict({**settings.get_dict(), **self.inputs.final_spectra.get_dict()})
        common = {
            "code": self.code_for("spectra"),
            "settings": settings,
            "metadata": job_metadata(self._options("spectra")),
        }
        predicted = self.ctx.prediction.outputs
        inputs = {**common, "derivatives": dict(predicted.derivatives), "series": predicted.series}
        if "measured" in self.inputs:
            inputs["measured"] = self.inputs.measured
        children = {"spectra": self.submit_once("spectra", CalculationFactory("mimyria_wf.spectra"), inputs)}
        if "reference" in self.inputs:
            n_parts = self.inputs.reference["n_parts"]
            parts = {f"part_{k:02d}": self.ctx[f"reference_{k:02d}"].outputs.remote_folder for k in range(n_parts)}
            name = self._reference_entry()["name"]
            where = {entry["name"]: entry["folder"] for entry in predicted.series.get_dict()["files"]}
            remote = predicted.derivatives[where[name]]
            inputs = {**common, "explicit": parts, "predicted": remote, "name": orm.Str(name)}
            process = CalculationFactory("mimyria_wf.comparison")
            children["comparison"] = self.submit_once("comparison", process, inputs)
        return ToContext(**children)

    def finish(self) -> ExitCode | None:
        """Attach spectra."""
        for label in ("spectra", "comparison"):
            child = self.ctx.get(label)
            if child is not None and not child.is_finished_ok:
                return self.exit_codes.ERROR_SPECTRA.format(detail=reason(child))
        self.out("summary", self.ctx.spectra.outputs.summary)
        self.out("spectra", self.ctx.spectra.outputs.retrieved)
        if "comparison" in self.ctx:
            self.out("comparison", self.ctx.comparison.outputs.summary)
            self.out("comparison_files", self.ctx.comparison.outputs.retrieved)
        self.report("finished: see `mimyria-wf report`")
        return None

    def on_terminated(self) -> None:
        """Remove work directories if asked to and all went well."""
        super().on_terminated()
        if "clean_workdir" not in self.inputs or not self.inputs.clean_workdir or not self.node.is_finished_ok:
            return
        for node in self.node.called_descendants:
            if isinstance(node, orm.CalcJobNode) and "remote_folder" in node.outputs:
                node.outputs.remote_folder._clean()

    def _options(self, step: str) -> dict[str, Any]:
        return self.inputs.options.get_dict().get(step, {}) if "options" in self.inputs else {}
