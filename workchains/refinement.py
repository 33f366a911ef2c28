"""Grow the training set until the spectra no longer change."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.engine import ExitCode, ProcessSpec, ToContext, if_, while_
from aiida.plugins import CalculationFactory, WorkflowFactory

from mimyria_wf.calculators.assembly import decide, record_iteration
from mimyria_wf.workchains.windowed import WindowedWorkChain, job_metadata, reason


class RefinementWorkChain(WindowedWorkChain):
    """Label, train, predict, compute spectra, decide: once for each training-set size until converged (Sec. 2.5, 3.2).

    Labels made elsewhere come as ``training_labels`` and ``test_labels``; without them the snapshots are labelled by
    :class:`~mimyria_wf.workchains.labels.LabelsWorkChain`. ``training_snapshots`` hold the largest training set or,
    with ``selection``, that of the first iteration: each later one adds frames by the networks' uncertainty.
    Either way the sets are nested and the test set stays the same.
    """

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs, outline and outputs."""
        super().define(spec)
        spec.input("code", valid_type=orm.AbstractCode, help="The console script mimyria-wf.")
        spec.input("training_code", valid_type=orm.AbstractCode, required=False, help="Where to train; any computer.")
        for step in ("prediction", "spectra"):
            about = f"For {step}; on the computer where the trajectories lie."
            spec.input(f"{step}_code", valid_type=orm.AbstractCode, required=False, help=about)
        spec.input_namespace("trajectories", valid_type=orm.RemoteData, dynamic=True)
        spec.input("manifest", valid_type=orm.Dict)
        spec.input("training_snapshots", valid_type=orm.SinglefileData, required=False, help="Nested training pool.")
        spec.input(
            "selection",
            valid_type=orm.Dict,
            required=False,
            help="n_test, seed, exclude: choose snapshots by committee.",
        )
        spec.input("test_snapshots", valid_type=orm.SinglefileData, required=False)
        spec.input("training_labels", valid_type=orm.SinglefileData, required=False, help="Given labels, nested.")
        spec.input("test_labels", valid_type=orm.SinglefileData, required=False)
        spec.input_namespace("models", valid_type=orm.SinglefileData, dynamic=True, required=False, help="Warm start.")
        labels = WorkflowFactory("mimyria_wf.labels")
        spec.expose_inputs(
            labels,
            namespace="labels",
            exclude=("snapshots", "indices"),
            namespace_options={"required": False, "populate_defaults": False},
        )
        spec.input("pretraining_snapshots", valid_type=orm.SinglefileData, required=False, help="With `pretraining`.")
        spec.input("pretraining", valid_type=orm.Dict, required=False, help="Flags of `mimyria-wf label --clusters`.")
        spec.input("training", valid_type=orm.Dict, help="targets, sizes, preset, overrides, seed, threads, warm_start")
        spec.input("convergence", valid_type=orm.Dict, help="Fields of ConvergenceSettings, and names of the runs.")
        spec.input("prediction", valid_type=orm.Dict, help="Flags of `mimyria-wf predict` during refinement.")
        spec.input("spectra", valid_type=orm.Dict, help="Flags of `mimyria-wf spectra`.")
        spec.input("max_concurrent", valid_type=orm.Int, default=lambda: orm.Int(2), help="Prediction jobs at a time.")
        spec.input("options", valid_type=orm.Dict, required=False, help="training, prediction, spectra, selection")
        spec.outline(
            cls.setup,
            if_(cls.needs_pretraining)(cls.run_pretraining, cls.inspect_pretraining),
            if_(cls.needs_labels)(cls.run_test_labels, cls.inspect_test_labels),
            while_(cls.should_continue)(
                if_(cls.needs_selection)(cls.run_selection, cls.inspect_selection),
                if_(cls.needs_labels)(cls.run_labels, cls.inspect_labels),
                cls.run_training,
                cls.inspect_training,
                cls.run_prediction,
                cls.inspect_prediction,
                cls.run_spectra,
                cls.inspect_spectra,
                cls.judge,
            ),
            cls.finish,
        )
        spec.output_namespace("models", valid_type=orm.SinglefileData, dynamic=True)
        spec.output_namespace("iterations", valid_type=orm.Dict, dynamic=True, help="One record an iteration.")
        spec.output_namespace("labels", valid_type=orm.SinglefileData, dynamic=True)
        spec.output_namespace("selections", valid_type=orm.Dict, dynamic=True, help="What the committee chose.")
        spec.output("decision", valid_type=orm.Dict)
        spec.exit_code(420, "ERROR_LABELS", message="Labelling failed: {detail}")
        spec.exit_code(421, "ERROR_TRAINING", message="Training failed: {detail}")
        spec.exit_code(422, "ERROR_PREDICTION", message="Prediction failed: {detail}")
        spec.exit_code(423, "ERROR_SPECTRA", message="The spectra failed: {detail}")
        spec.exit_code(425, "ERROR_PRETRAINING", message="Labels for the pre-training failed: {detail}")
        spec.exit_code(424, "ERROR_SELECTION", message="The choice of snapshots failed: {detail}")

    def setup(self) -> None:
        """Start with no labels."""
        self.ctx.iteration = 0
        self.ctx.is_converged = False
        self.ctx.training_labels = {}
        self.ctx.pool = self.inputs.get("training_snapshots")
        self.ctx.selections = {}
        self.ctx.records = {}
        self.ctx.models = dict(self.inputs.models) if "models" in self.inputs else {}
        self.ctx.decision = None
        if "training_labels" in self.inputs:
            self.ctx.test_labels = self.inputs.test_labels

    @property
    def _sizes(self) -> list[int]:
        return self.inputs.training["sizes"]

    def should_continue(self) -> bool:
        """Is the last decision to go on, and are there snapshots left?"""
        return not self.ctx.is_converged and self.ctx.iteration < len(self._sizes)

    def needs_labels(self) -> bool:
        """Are labels computed here?"""
        return "training_labels" not in self.inputs

    def needs_pretraining(self) -> bool:
        """Do the first networks learn a cheaper level of theory before?"""
        return "pretraining" in self.inputs

    def run_pretraining(self) -> ToContext:
        """Label snapshots at the cheap level, which takes a minute."""
        inputs = {
            "code": self.inputs.code,
            "snapshots": self.inputs.pretraining_snapshots,
            "settings": self.inputs.pretraining,
            "metadata": job_metadata(self._options("selection")),
        }
        process = CalculationFactory("mimyria_wf.tblite.clusters")
        return ToContext(pretraining=self.submit_once("pretraining", process, inputs))

    def inspect_pretraining(self) -> ExitCode | None:
        """Go on if it worked."""
        if not self.ctx.pretraining.is_finished_ok:
            return self.exit_codes.ERROR_PRETRAINING.format(detail=reason(self.ctx.pretraining))
        return None

    def run_test_labels(self) -> ToContext:
        """Label the test set, before the training set: their jobs share one window."""
        n_test = self.inputs.training["test_size"]
        return self._submit_labels("labels_test", self.inputs.test_snapshots, list(range(n_test)))

    def inspect_test_labels(self) -> ExitCode | None:
        """Keep the test labels."""
        child = self.ctx.labels_test
        if not child.is_finished_ok:
            return self.exit_codes.ERROR_LABELS.format(detail=reason(child))
        self.ctx.test_labels = child.outputs.labels
        return None

    def needs_selection(self) -> bool:
        """Is what this size adds still to be chosen?"""
        return "selection" in self.inputs and self.ctx.iteration > 0

    def run_selection(self) -> ToContext:
        """Choose what this size adds by the networks of the iteration before."""
        k = self.ctx.iteration
        inputs: dict[str, Any] = {
            "code": self.inputs.code,
            "trajectories": dict(self.inputs.trajectories),
            "manifest": self.inputs.manifest,
            "models": {target: self.ctx.models[target] for target in self.inputs.training["targets"]},
            "labelled": self.ctx.pool,
            "settings": orm.Dict({**self.inputs.selection.get_dict(), "n_training": self._sizes[k]}),
            "metadata": job_metadata(self._options("selection")),
        }
        label = f"selection_{k:02d}"
        return ToContext(**{label: self.submit_once(label, CalculationFactory("mimyria_wf.selection"), inputs)})

    def inspect_selection(self) -> ExitCode | None:
        """Take the pool that holds the old snapshots and, behind them, the new ones."""
        label = f"selection_{self.ctx.iteration:02d}"
        child = self.ctx[label]
        if not child.is_finished_ok:
            return self.exit_codes.ERROR_SELECTION.format(detail=reason(child))
        self.ctx.pool = child.outputs.training
        self.ctx.selections[label] = child.outputs.summary
        return None

    def run_labels(self) -> ToContext:
        """Label what this size adds to the training set."""
        k = self.ctx.iteration
        first = self._sizes[k - 1] if k else 0
        indices = list(range(first, self._sizes[k]))
        return self._submit_labels(f"labels_{k:02d}", self.ctx.pool, indices)

    def inspect_labels(self) -> ExitCode | None:
        """Keep the labels."""
        label = f"labels_{self.ctx.iteration:02d}"
        child = self.ctx[label]
        if not child.is_finished_ok:
            return self.exit_codes.ERROR_LABELS.format(detail=reason(child))
        self.ctx.training_labels[label] = child.outputs.labels
        return None

    def _submit_labels(self, label: str, snapshots: orm.SinglefileData, indices: list[int]) -> ToContext:
        process = WorkflowFactory("mimyria_wf.labels")
        inputs = {
            **self.exposed_inputs(process, namespace="labels"),
            "snapshots": snapshots,
            "indices": orm.List(indices),
        }
        return ToContext(**{label: self.submit_once(label, process, inputs)})

    def run_training(self) -> ToContext:
        """Train all targets side by side."""
        k = self.ctx.iteration
        training = self.inputs.training.get_dict()
        children = {}
        for target in training["targets"]:
            settings = {key: training.get(key) for key in ("preset", "seed", "threads")}
            settings["set"] = training["overrides"].get(target) or None
            inputs: dict[str, Any] = {
                "code": self.code_for("training"),
                "target": orm.Str(target),
                "test": self.ctx.test_labels,
                "metadata": job_metadata(self._options("training")),
            }
            if "training_labels" in self.inputs:
                inputs["training"] = {"given": self.inputs.training_labels}
                settings["first"] = self._sizes[k]
            else:
                inputs["training"] = dict(self.ctx.training_labels)
            inputs["settings"] = orm.Dict({key: value for key, value in settings.items() if value is not None})
            if target in self.ctx.models and training.get("warm_start", True):
                inputs["initial_model"] = self.ctx.models[target]
            elif "pretraining" in self.ctx:
                inputs["pretraining"] = self.ctx.pretraining.outputs.labels
            label = f"training_{target}_{k:02d}"
            children[label] = self.submit_once(label, CalculationFactory("mimyria_wf.training"), inputs)
        return ToContext(**children)

    def inspect_training(self) -> ExitCode | None:
        """Keep the models."""
        scores = []
        for target in self.inputs.training["targets"]:
            child = self.ctx[f"training_{target}_{self.ctx.iteration:02d}"]
            if not child.is_finished_ok:
                return self.exit_codes.ERROR_TRAINING.format(detail=reason(child))
            self.ctx.models[target] = child.outputs.model
            scores.append(f"R2({target}) = {child.outputs.summary.get_dict()['test']['r2']:.4f}")
        k = self.ctx.iteration
        self.report(f"iteration {k + 1}, {self._sizes[k]} snapshots: {', '.join(scores)}")
        return None

    def run_prediction(self) -> ToContext:
        """Predict along the trajectories that the decision looks at."""
        names = set(self.inputs.convergence["names"])
        files = [entry for entry in self.inputs.manifest.get_dict()["files"] if entry["name"] in names]
        folders = {entry["folder"] for entry in files}
        inputs: dict[str, Any] = {
            "code": self.code_for("prediction"),
            "models": {target: self.ctx.models[target] for target in self.inputs.training["targets"]},
            "trajectories": {key: node for key, node in self.inputs.trajectories.items() if key in folders},
            "manifest": orm.Dict({"files": files}),
            "settings": self.inputs.prediction,
            "max_concurrent": self.inputs.max_concurrent,
            "options": orm.Dict(self._options("prediction")),
        }
        label = f"prediction_{self.ctx.iteration:02d}"
        child = self.submit_once(label, WorkflowFactory("mimyria_wf.prediction"), inputs)
        return ToContext(**{label: child})

    def inspect_prediction(self) -> ExitCode | None:
        """Go on if it worked."""
        child = self.ctx[f"prediction_{self.ctx.iteration:02d}"]
        if not child.is_finished_ok:
            return self.exit_codes.ERROR_PREDICTION.format(detail=reason(child))
        return None

    def run_spectra(self) -> ToContext:
        """Compute spectra and compare them with those of the iteration before."""
        k = self.ctx.iteration
        predicted = self.ctx[f"prediction_{k:02d}"].outputs
        inputs: dict[str, Any] = {
            "code": self.code_for("spectra"),
            "derivatives": dict(predicted.derivatives),
            "series": predicted.series,
            "settings": orm.Dict({**self.inputs.spectra.get_dict(), "no_figures": True}),
            "metadata": job_metadata(self._options("spectra")),
        }
        if k:
            inputs["previous"] = self.ctx[f"spectra_{k - 1:02d}"].outputs.remote_folder
        label = f"spectra_{k:02d}"
        return ToContext(**{label: self.submit_once(label, CalculationFactory("mimyria_wf.spectra"), inputs)})

    def inspect_spectra(self) -> ExitCode | None:
        """Go on if it worked."""
        child = self.ctx[f"spectra_{self.ctx.iteration:02d}"]
        if not child.is_finished_ok:
            return self.exit_codes.ERROR_SPECTRA.format(detail=reason(child))
        return None

    def judge(self) -> None:
        """Record the iteration and ask whether to stop."""
        k = self.ctx.iteration
        spectra = self.ctx[f"spectra_{k:02d}"]
        metrics = {
            f"metrics_{target}": self.ctx[f"training_{target}_{k:02d}"].outputs.summary
            for target in self.inputs.training["targets"]
        }
        if "comparison" in spectra.outputs:
            metrics["comparison"] = spectra.outputs.comparison
        record = record_iteration(orm.Int(self._sizes[k]), **metrics)
        self.ctx.records[f"iteration_{k:02d}"] = record
        self.ctx.decision = decide(self.inputs.convergence, **self.ctx.records)
        self.ctx.is_converged = self.ctx.decision["is_converged"]
        self.report(f"iteration {k + 1}: {self.ctx.decision['reason']}")
        self.ctx.iteration += 1

    def finish(self) -> None:
        """Attach models, labels and the history."""
        self.out("models", {target: self.ctx.models[target] for target in self.inputs.training["targets"]})
        self.out("iterations", dict(self.ctx.records))
        self.out("decision", self.ctx.decision)
        if self.ctx.training_labels:
            self.out("labels", {**self.ctx.training_labels, "test": self.ctx.test_labels})
        if self.ctx.selections:
            self.out("selections", dict(self.ctx.selections))

    def _options(self, step: str) -> dict[str, Any]:
        return self.inputs.options.get_dict().get(step, {}) if "options" in self.inputs else {}
