"""Field sets by tblite (GFN-xTB), the embedded label engine for molecules and clusters."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.common.folders import Folder
from aiida.engine import CalcJobProcessSpec, ExitCode
from ruamel.yaml import YAML

from mimyria_wf.calculators.console import ConsoleCalculation, ConsoleParser
from mimyria_wf.calculators.data import copy_file
from mimyria_wf.calculators.engine import (
    EngineFieldSetCalculation,
    EngineFieldSetParser,
    define_field_set,
    engine_arguments,
)
from mimyria_wf.calculators.md import flags
from mimyria_wf.calculators.trajectories import define_trajectories, trajectory_links, trajectory_names

__all__ = ["define_field_set"]


class TbliteFieldSetCalculation(EngineFieldSetCalculation):
    """Forces of every snapshot in every field vector, by tblite."""

    @classmethod
    def parser_entry_point(cls) -> str:
        """Return the entry point of the parser."""
        return "mimyria_wf.tblite.fields"


class TbliteFieldSetParser(EngineFieldSetParser):
    """The same of every engine."""


class ClusterLabelsCalculation(ConsoleCalculation):
    """APTs and PGTs at tblite's level, each molecule in the cluster cut out around it: also of periodic snapshots."""

    retrieve = ("labels.extxyz",)

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs and outputs."""
        super().define(spec)
        spec.input("snapshots", valid_type=orm.SinglefileData, help="extxyz")
        spec.input("settings", valid_type=orm.Dict, help="targets, radius, charges, accuracy, processes")
        spec.output("labels", valid_type=orm.SinglefileData)

    @classmethod
    def parser_entry_point(cls) -> str:
        """Return the entry point of the parser."""
        return "mimyria_wf.tblite.clusters"

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Write the snapshots and return the call."""
        copy_file(folder, "snapshots.extxyz", self.inputs.snapshots)
        settings = self.inputs.settings.get_dict()
        charges = ",".join(f"{formula}={charge}" for formula, charge in settings.pop("charges", {}).items())
        arguments = flags({**settings, "charges": charges or None})
        return [["label", "snapshots.extxyz", "--clusters", *arguments, "-o", "labels.extxyz"]]


class ClusterLabelsParser(ConsoleParser):
    """Attach the labels."""

    def attach(self, results: list[dict[str, Any]]) -> ExitCode | None:
        """Attach the file."""
        self.attach_file("labels", "labels.extxyz")
        return None


class ReferenceCalculation(ConsoleCalculation):
    """Label every frame of a stretch of one trajectory and contract with the velocities at once.

    The dipole and polarizability derivatives that come out are explicit electronic structure along the very dynamics
    that the models are applied to, as in Sec. 2.5 of Schienbein (2026): the difference to the prediction is the error
    of the network alone.
    """

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs."""
        super().define(spec)
        define_trajectories(spec)
        spec.input("level_of_theory", valid_type=orm.Dict)
        spec.input("settings", valid_type=orm.Dict, help="targets, step, start, stop, volume, charge, multiplicity")
        spec.input("groups", valid_type=orm.SinglefileData, required=False, help="resolved groups, YAML")

    def links(self) -> list[tuple[orm.RemoteData, str, str]]:
        """Link the trajectory."""
        return trajectory_links(self.inputs)

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Return the call."""
        level = self.inputs.level_of_theory.get_dict()
        engine = engine_arguments(level)
        settings = flags(self.inputs.settings.get_dict())
        name = trajectory_names(self.inputs)[0]
        if "groups" in self.inputs:
            yaml = YAML()  # which keeps the order of groups: an atom is in the first that it fits
            scheme = yaml.load(self.inputs.groups.get_content("r"))
            scheme.pop("relations", None)  # they need the whole run at once, and this may be one part of several
            with folder.open("groups.yaml", "w") as handle:
                yaml.dump(scheme, handle)
            settings += ["--groups", "groups.yaml"]
        return [["label", name, *engine, *settings, "--derivatives", "explicit.h5"]]
