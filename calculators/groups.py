"""Groups of atoms and relations between them, made definite for a set of trajectories."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.common.folders import Folder
from aiida.engine import CalcJobProcessSpec, ExitCode

from mimyria_wf.calculators.console import ConsoleCalculation, ConsoleParser
from mimyria_wf.calculators.data import copy_file
from mimyria_wf.calculators.trajectories import define_trajectories, trajectory_links, trajectory_names


class GroupsCalculation(ConsoleCalculation):
    """Find what groups leave open, such as minima of radial distribution functions, in all trajectories together.

    Every prediction job takes the file that comes out, so that shells mean the same in all of them.
    """

    retrieve = ("resolved.yaml",)

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs and outputs."""
        super().define(spec)
        define_trajectories(spec)
        spec.input("groups", valid_type=orm.SinglefileData, help="YAML: groups, relations, units")
        spec.output("resolved", valid_type=orm.SinglefileData, help="the same with every distance a number")

    @classmethod
    def parser_entry_point(cls) -> str:
        """Return the entry point of the parser."""
        return "mimyria_wf.groups"

    def links(self) -> list[tuple[orm.RemoteData, str, str]]:
        """Link the trajectories."""
        return trajectory_links(self.inputs)

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Write the groups and return the call."""
        copy_file(folder, "groups.yaml", self.inputs.groups)
        return [["groups", "groups.yaml", *trajectory_names(self.inputs), "-o", "resolved.yaml"]]

    def prepare_for_submission(self, folder: Folder) -> Any:
        """Retrieve the radial distribution functions too."""
        info = super().prepare_for_submission(folder)
        info.retrieve_list += [(pattern, ".", 0) for pattern in ("resolved*.png", "resolved*.pdf", "resolved*.csv")]
        return info


class GroupsParser(ConsoleParser):
    """Attach the resolved groups."""

    def attach(self, results: list[dict[str, Any]]) -> ExitCode | None:
        """Attach the file."""
        self.attach_file("resolved", "resolved.yaml")
        return None
