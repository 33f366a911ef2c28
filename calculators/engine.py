"""Field sets by any engine of the command line: ``mimyria-wf label --engine NAME`` in one job."""

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

from mimyria_wf.calculators.console import ConsoleCalculation, ConsoleParser
from mimyria_wf.calculators.data import copy_file, field_forces_node
from mimyria_wf.errors import MimyriaError


def define_field_set(spec: CalcJobProcessSpec) -> None:
    """Declare what every engine's field-set job takes and gives."""
    spec.input("snapshots", valid_type=orm.SinglefileData, help="extxyz")
    spec.input("field_vectors", valid_type=orm.List, help="Cartesian field vectors [E_h/(e a0)]")
    spec.input("level_of_theory", valid_type=orm.Dict, help="settings of the engine; their content keys the labels")
    spec.output(
        "field_forces", valid_type=orm.ArrayData, required=False, help="forces of all points that finished cleanly"
    )


class EngineFieldSetCalculation(ConsoleCalculation):
    """Forces of every snapshot in every field vector, by an engine of the entry-point group ``mimyria_wf.engines``.

    ``level_of_theory`` names the engine under ``engine``; what else it holds are the engine's settings, but for
    ``files`` (checksums) and ``version``, which only key the labels. Settings that do not decide the forces (a
    program's command, threads) go into ``settings``.
    """

    retrieve = ("field_forces.h5",)

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs and outputs."""
        super().define(spec)
        define_field_set(spec)
        spec.input("settings", valid_type=orm.Dict, required=False, help="settings that do not decide the forces")
        spec.input("template", valid_type=orm.SinglefileData, required=False, help="of the level of theory")
        spec.input_namespace(
            "files", valid_type=orm.SinglefileData, dynamic=True, required=False, help="that the template names"
        )
        spec.exit_code(400, "ERROR_SOME_POINTS", message="{detail}")

    @classmethod
    def parser_entry_point(cls) -> str:
        """Return the entry point of the parser."""
        return "mimyria_wf.engine.fields"

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Write the snapshots and return the call."""
        copy_file(folder, "snapshots.extxyz", self.inputs.snapshots)
        files = []
        if "template" in self.inputs:
            copy_file(folder, "template.txt", self.inputs.template)
            files = ["--template", "template.txt"]
        for node in (self.inputs.files if "files" in self.inputs else {}).values():
            copy_file(folder, node.filename, node)
            files += ["--file", node.filename]
        vectors = json.dumps(self.inputs.field_vectors.get_list())
        fixed = ["--vectors", vectors, "--field-forces", "field_forces.h5"]
        settings = self.inputs.settings.get_dict() if "settings" in self.inputs else {}
        engine = engine_arguments(self.inputs.level_of_theory.get_dict(), settings)
        return [["label", "snapshots.extxyz", *engine, *files, *fixed]]


def engine_arguments(level: dict[str, Any], settings: dict[str, Any] | None = None) -> list[str]:
    """Return the arguments of the console script that choose an engine by its level of theory."""
    only_keys = ("engine", "program", "version", "files", "template")
    own = {key: value for key, value in level.items() if key not in only_keys}
    chosen = {**own, **(settings or {})}
    arguments = ["--engine", level.get("engine", "tblite")]
    return [*arguments, "--settings", json.dumps(chosen, sort_keys=True)] if chosen else arguments


class EngineFieldSetParser(ConsoleParser):
    """Attach the forces; those of sound points also when others failed, so that none is computed again."""

    def parse(self, **kwargs: Any) -> ExitCode | None:
        """Read the result, and after a failure what was finished before or beside it."""
        failure = super().parse(**kwargs)
        if failure is not None and self._is_there("field_forces.h5"):
            with contextlib.suppress(MimyriaError):  # a file that was cut off: the failure says enough
                self.attach([])
            if "field_forces" in self.outputs:
                return self.exit_codes.ERROR_SOME_POINTS.format(detail=failure.message)
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
        if sets:
            keys = [configuration_key(stored.atoms) for stored in sets]
            parts = [stored.field_forces for stored in sets]
            self.out("field_forces", field_forces_of(parts, keys, level, level_of_theory_key(level)))
        return None


def field_forces_of(
    sets: list[Any], configuration_keys: list[str], level: dict[str, Any], level_key: str
) -> orm.ArrayData:
    """Return the node of several snapshots' :class:`mimyria_wf.field_forces.FieldForces`."""
    weakest = [int(np.argmin(np.linalg.norm(one.field_vectors, axis=1))) for one in sets]
    gaps = [None if one.gaps is None else float(one.gaps[row]) for one, row in zip(sets, weakest)]
    unknown = np.full((3, 3), np.nan)
    return field_forces_node(
        np.concatenate([one.field_vectors for one in sets]),
        np.concatenate([one.forces for one in sets]),
        np.concatenate([np.full(len(one.forces), number) for number, one in enumerate(sets)]),
        configuration_keys,
        level,
        level_key,
        dipoles=np.concatenate(
            [np.full((len(one.forces), 3), np.nan) if one.dipoles is None else one.dipoles for one in sets]
        ),
        dipole_quanta=np.array([unknown if one.dipole_quanta is None else one.dipole_quanta for one in sets]),
        gaps=[None if gap is None or not np.isfinite(gap) else gap for gap in gaps],
    )
