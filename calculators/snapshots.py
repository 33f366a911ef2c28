"""Draw the snapshots that are labelled from trajectories that stay on the computer."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.common.folders import Folder
from aiida.engine import CalcJobProcessSpec, ExitCode

from mimyria_wf.calculators.console import ConsoleCalculation, ConsoleParser
from mimyria_wf.calculators.data import copy_file
from mimyria_wf.calculators.md import flags
from mimyria_wf.calculators.prediction import model_flags
from mimyria_wf.calculators.trajectories import define_trajectories, trajectory_links, trajectory_names


class SelectionCalculation(ConsoleCalculation):
    """Write nested training snapshots and a test set (:func:`mimyria_wf.selection.select_snapshots`) as extxyz.

    With models, the training snapshots are those labelled already and, behind them, the frames whose labels take away
    most of the models' uncertainty; the test set is the one that the same seed gives without models.
    """

    retrieve = ("training.extxyz", "test.extxyz")

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs and outputs."""
        super().define(spec)
        define_trajectories(spec)
        spec.input("settings", valid_type=orm.Dict, help="n_training, n_test, seed, exclude, charge, multiplicity")
        spec.input_namespace(
            "models", valid_type=orm.SinglefileData, dynamic=True, required=False, help="apt and/or pgt"
        )
        spec.input("labelled", valid_type=orm.SinglefileData, required=False, help="what the models were trained on")
        spec.output("training", valid_type=orm.SinglefileData)
        spec.output("test", valid_type=orm.SinglefileData)

    @classmethod
    def parser_entry_point(cls) -> str:
        """Return the entry point of the parser."""
        return "mimyria_wf.selection"

    def links(self) -> list[tuple[orm.RemoteData, str, str]]:
        """Link the trajectories."""
        return trajectory_links(self.inputs)

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Write models and snapshots and return the call."""
        names = trajectory_names(self.inputs)
        settings = flags(self.inputs.settings.get_dict())
        if "models" in self.inputs:
            settings += model_flags(folder, self.inputs.models)
        if "labelled" in self.inputs:
            copy_file(folder, "labelled.extxyz", self.inputs.labelled)
            settings += ["--labelled", "labelled.extxyz"]
        return [["select", *names, *settings, "-o", "."]]


class SelectionParser(ConsoleParser):
    """Attach the snapshots."""

    def attach(self, results: list[dict[str, Any]]) -> ExitCode | None:
        """Attach both files."""
        self.attach_file("training", "training.extxyz")
        self.attach_file("test", "test.extxyz")
        return None
