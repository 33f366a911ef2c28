"""Apply networks along trajectories and contract with the velocities."""

from __future__ import annotations

from collections.abc import Mapping

from aiida import orm
from aiida.common.folders import Folder
from aiida.engine import CalcJobProcessSpec

from mimyria_wf.calculators.console import ConsoleCalculation
from mimyria_wf.calculators.data import copy_file
from mimyria_wf.calculators.md import flags
from mimyria_wf.calculators.trajectories import define_trajectories, trajectory_links, trajectory_names


def model_flags(folder: Folder, models: Mapping[str, orm.SinglefileData]) -> list[str]:
    """Write model files into a job's folder and return the flags that name them."""
    arguments: list[str] = []
    for target in sorted(models):
        copy_file(folder, f"{target}.pt", models[target])
        arguments += ["--model", f"{target}.pt"]
    return arguments


class StrideCalculation(ConsoleCalculation):
    """Find how many frames may lie between predicted tensors; ``summary`` has the distance of each number tried."""

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs."""
        super().define(spec)
        define_trajectories(spec)
        spec.input_namespace("models", valid_type=orm.SinglefileData, dynamic=True, help="apt and/or pgt")
        spec.input("settings", valid_type=orm.Dict, help="stride_tolerance, batch_size, charge, keep_sum_rules, ...")

    def links(self) -> list[tuple[orm.RemoteData, str, str]]:
        """Link the trajectories."""
        return trajectory_links(self.inputs)

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Write the models and return the call."""
        models = model_flags(folder, self.inputs.models)
        return [["stride", *models, *trajectory_names(self.inputs), *flags(self.inputs.settings.get_dict())]]


class PredictionCalculation(ConsoleCalculation):
    """Write dipole and polarizability derivatives (Eqs. 3 and 13) of each trajectory to ``derivatives/<name>.h5``.

    Per-atom tensors are never stored; the files stay on the computer.
    """

    resumes = ("derivatives",)

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs."""
        super().define(spec)
        define_trajectories(spec)
        spec.input_namespace("models", valid_type=orm.SinglefileData, dynamic=True, help="apt and/or pgt")
        spec.input("settings", valid_type=orm.Dict, help="stride, batch_size, charge, volume, max_lag_fs, ...")
        spec.input("groups", valid_type=orm.SinglefileData, required=False, help="resolved groups and relations, YAML")

    def links(self) -> list[tuple[orm.RemoteData, str, str]]:
        """Link the trajectories."""
        return trajectory_links(self.inputs)

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Write the models and return the call."""
        models = model_flags(folder, self.inputs.models)
        names = trajectory_names(self.inputs)
        if "groups" in self.inputs:
            copy_file(folder, "groups.yaml", self.inputs.groups)
            models += ["--groups", "groups.yaml"]
        return [["predict", *models, *names, *flags(self.inputs.settings.get_dict()), "-o", "derivatives"]]
