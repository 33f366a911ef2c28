"""Train one network on labels."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.common.folders import Folder
from aiida.engine import CalcJobProcessSpec, ExitCode

from mimyria_wf.calculators.console import ConsoleCalculation, ConsoleParser
from mimyria_wf.calculators.data import copy_file
from mimyria_wf.calculators.md import flags


class TrainingCalculation(ConsoleCalculation):
    """Train an APT or PGT network; ``summary`` holds the test metrics by species and component (Eqs. 14-15)."""

    retrieve = ("model/model.pt", "model/history.csv")

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs and outputs."""
        super().define(spec)
        spec.input_namespace("training", valid_type=orm.SinglefileData, dynamic=True, help="labelled extxyz files")
        spec.input("test", valid_type=orm.SinglefileData, help="labelled extxyz")
        spec.input("target", valid_type=orm.Str, help="apt or pgt")
        spec.input("settings", valid_type=orm.Dict, help="preset, seed, threads, overrides")
        spec.input("initial_model", valid_type=orm.SinglefileData, required=False, help="warm start")
        spec.input("pretraining", valid_type=orm.SinglefileData, required=False, help="cheaper labels to learn first")
        spec.output("model", valid_type=orm.SinglefileData)
        spec.output("history", valid_type=orm.SinglefileData)

    @classmethod
    def parser_entry_point(cls) -> str:
        """Return the entry point of the parser."""
        return "mimyria_wf.training"

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Write the labels and return the call."""
        names = []
        for key in sorted(self.inputs.training):
            names.append(f"{key}.extxyz")
            copy_file(folder, names[-1], self.inputs.training[key])
        copy_file(folder, "test.extxyz", self.inputs.test)
        arguments = ["train", "--target", self.inputs.target.value, "--train", *names, "--test", "test.extxyz"]
        if "initial_model" in self.inputs:
            copy_file(folder, "initial.pt", self.inputs.initial_model)
            arguments += ["--initial-model", "initial.pt"]
        if "pretraining" in self.inputs:
            copy_file(folder, "pretraining.extxyz", self.inputs.pretraining)
            arguments += ["--pretraining", "pretraining.extxyz"]
        return [[*arguments, *flags(self.inputs.settings.get_dict()), "-o", "model"]]

    def prepare_for_submission(self, folder: Folder) -> Any:
        """Retrieve the figure of the training too."""
        info = super().prepare_for_submission(folder)
        info.retrieve_list.append(("model/training.png", ".", 2))
        return info


class TrainingParser(ConsoleParser):
    """Attach the model."""

    def attach(self, results: list[dict[str, Any]]) -> ExitCode | None:
        """Attach model and history."""
        self.attach_file("model", "model/model.pt")
        self.attach_file("history", "model/history.csv")
        return None
