"""Molecular dynamics with any ASE calculator: one NVT run, and many NVE runs in one job."""

from __future__ import annotations

import json
from typing import Any

from aiida import orm
from aiida.common.folders import Folder
from aiida.engine import CalcJobProcessSpec, ExitCode

from mimyria_wf.calculators.console import ConsoleCalculation, ConsoleParser
from mimyria_wf.calculators.data import atoms_from_structure, copy_file, write_atoms


class _MdCalculation(ConsoleCalculation):
    """What both ensembles share: the calculator and the files that it reads."""

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs."""
        super().define(spec)
        spec.input(
            "calculator",
            valid_type=orm.Dict,
            help="import: path of an ASE calculator or a potential of torch-sim; arguments: of its class",
        )
        spec.input_namespace(
            "files", valid_type=orm.SinglefileData, dynamic=True, required=False, help="that the arguments name"
        )

    def calculator_flags(self, folder: Folder) -> list[str]:
        """Write the files and return the flags that name the calculator."""
        for node in self.inputs.get("files", {}).values():
            copy_file(folder, node.filename, node)
        values = self.inputs.calculator.get_dict()
        return ["--calculator", values["import"], "--arguments", json.dumps(values.get("arguments", {}))]


class NvtCalculation(_MdCalculation):
    """Langevin dynamics that ends with decorrelated starts for NVE runs.

    The trajectory stays on the computer as ``nvt.h5`` (its sha256 is in ``summary``); the starts are retrieved.
    """

    retrieve = ("starts.extxyz",)

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs and outputs."""
        super().define(spec)
        spec.input("structure", valid_type=orm.StructureData)
        spec.input(
            "settings",
            valid_type=orm.Dict,
            help="charge, multiplicity, temperature_K, timestep_fs, length_ps, equilibration_ps, stride, "
            "friction_per_ps, n_starts, seed",
        )
        spec.output("starts", valid_type=orm.SinglefileData, help="extxyz with velocities [A/fs]")

    @classmethod
    def parser_entry_point(cls) -> str:
        """Return the entry point of the parser."""
        return "mimyria_wf.md.nvt"

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Write the structure and return the call."""
        settings = self.inputs.settings.get_dict()
        atoms = atoms_from_structure(self.inputs.structure, settings.pop("charge", 0), settings.pop("multiplicity", 1))
        write_atoms(folder, "structure.extxyz", atoms)
        return [["md", "nvt", "structure.extxyz", *self.calculator_flags(folder), *flags(settings), "-o", "."]]


class NvtParser(ConsoleParser):
    """Attach the starts."""

    def attach(self, results: list[dict[str, Any]]) -> ExitCode | None:
        """Attach the starts."""
        self.attach_file("starts", "starts.extxyz")
        return None


class NveCalculation(_MdCalculation):
    """Several NVE runs, each from one start; files ``<name>.h5`` stay on the computer."""

    resumes = ("nve-*.h5*",)

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs."""
        super().define(spec)
        spec.input("starts", valid_type=orm.SinglefileData, help="extxyz with velocities [A/fs]")
        spec.input("indices", valid_type=orm.List, help="which of the starts this job runs")
        spec.input("settings", valid_type=orm.Dict, help="timestep_fs, length_ps, stride, remove_rotation")

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Write the starts and return the call."""
        copy_file(folder, "starts.extxyz", self.inputs.starts)
        indices = [str(index) for index in self.inputs.indices.get_list()]
        settings = flags(self.inputs.settings.get_dict())
        return [
            ["md", "nve", "starts.extxyz", "--indices", *indices, *self.calculator_flags(folder), *settings]
            + ["-o", "."]
        ]


def flags(settings: dict[str, Any]) -> list[str]:
    """Return command-line flags: key_a becomes --key-a, true a bare flag, false and None nothing."""
    arguments: list[str] = []
    for key, value in settings.items():
        if value is None or value is False:
            continue
        arguments.append("--" + key.replace("_", "-"))
        if isinstance(value, list | tuple):
            arguments += [str(item) for item in value]
        elif isinstance(value, dict):
            arguments.append(json.dumps(value))
        elif value is not True:
            arguments.append(str(value))
    return arguments
