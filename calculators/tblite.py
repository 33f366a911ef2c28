"""Field sets by tblite (GFN-xTB), the embedded label engine for molecules and clusters."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from aiida import orm
from aiida.common.folders import Folder
from aiida.engine import CalcJobProcessSpec, ExitCode
from ruamel.yaml import YAML

from mimyria_wf.calculators.console import ConsoleCalculation, ConsoleParser
from mimyria_wf.calculators.data import copy_file, field_forces_node
from mimyria_wf.calculators.md import flags
from mimyria_wf.calculators.trajectories import define_trajectories, trajectory_links, trajectory_names
from mimyria_wf.errors import MimyriaError


def define_field_set(spec: CalcJobProcessSpec) -> None:
    """Declare what every engine's field-set job takes and gives."""
    spec.input("snapshots", valid_type=orm.SinglefileData, help="extxyz")
    spec.input("field_vectors", valid_type=orm.List, help="Cartesian field vectors [E_h/(e a0)]")
    spec.input("level_of_theory", valid_type=orm.Dict, help="settings of the engine; their content keys the labels")
    spec.output(
        "field_forces", valid_type=orm.ArrayData, required=False, help="forces of all points that finished cleanly"
    )


class TbliteFieldSetCalculation(ConsoleCalculation):
    """Forces of every snapshot in every field vector."""

    retrieve = ("field_forces.h5",)

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs and outputs."""
        super().define(spec)
        define_field_set(spec)

    @classmethod
    def parser_entry_point(cls) -> str:
        """Return the entry point of the parser."""
        return "mimyria_wf.tblite.fields"

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Write the snapshots and return the call."""
        copy_file(folder, "snapshots.extxyz", self.inputs.snapshots)
        level = self.inputs.level_of_theory.get_dict()
        engine = flags({key: level[key] for key in ("engine", "method", "accuracy") if key in level})
        vectors = json.dumps(self.inputs.field_vectors.get_list())
        return [["label", "snapshots.extxyz", *engine, "--vectors", vectors, "--field-forces", "field_forces.h5"]]


class TbliteFieldSetParser(ConsoleParser):
    """Attach the forces; those of sound snapshots also when others failed, so that no point is computed again."""

    def parse(self, **kwargs: Any) -> ExitCode | None:
        """Read the result, and after a failure what was finished before or beside it."""
        failure = super().parse(**kwargs)
        if failure is not None and self._is_there("field_forces.h5"):
            with contextlib.suppress(MimyriaError):  # a file that was cut off: the failure says enough
                self.attach([])
        return failure

    def attach(self, results: list[dict[str, Any]]) -> ExitCode | None:
        """Read the HDF5 file of the job into an array node."""
        from mimyria_wf.engines import read_field_forces
        from mimyria_wf.labels import configuration_key, level_of_theory_key

        level = self.node.inputs.level_of_theory.get_dict()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "field_forces.h5"
            path.write_bytes(self.retrieved.get_object_content("field_forces.h5", mode="rb"))
            sets = read_field_forces(path)
        if not sets:
            return None
        vectors, forces, index, keys = [], [], [], []
        for number, stored in enumerate(sets):
            keys.append(configuration_key(stored.atoms))
            vectors += list(stored.field_forces.field_vectors)
            forces += list(stored.field_forces.forces)
            index += [number] * len(stored.field_forces.forces)
        self.out(
            "field_forces",
            field_forces_node(
                np.array(vectors), np.array(forces), np.array(index), keys, level, level_of_theory_key(level)
            ),
        )
        return None


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
        engine = flags({key: level[key] for key in ("engine", "method", "accuracy") if key in level})
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
