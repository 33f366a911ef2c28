"""Draw the snapshots that are labelled from trajectories that stay on the computer."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.common.folders import Folder
from aiida.engine import CalcJobProcessSpec, ExitCode

from mimyria_wf.calculators.console import ConsoleCalculation, ConsoleParser
from mimyria_wf.calculators.md import flags
from mimyria_wf.calculators.trajectories import define_trajectories, trajectory_links, trajectory_names


class SelectionCalculation(ConsoleCalculation):
    """Write nested training snapshots and a test set (:func:`mimyria_wf.selection.select_snapshots`) as extxyz."""

    retrieve = ("training.extxyz", "test.extxyz")

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs and outputs."""
        super().define(spec)
        define_trajectories(spec)
        spec.input("settings", valid_type=orm.Dict, help="n_training, n_test, seed, exclude, charge, multiplicity")
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
        """Return the call."""
        names = trajectory_names(self.inputs)
        return [["select", *names, *flags(self.inputs.settings.get_dict()), "-o", "."]]


class SelectionParser(ConsoleParser):
    """Attach the snapshots."""

    def attach(self, results: list[dict[str, Any]]) -> ExitCode | None:
        """Attach both files."""
        self.attach_file("training", "training.extxyz")
        self.attach_file("test", "test.extxyz")
        return None
