"""CP2K: molecular dynamics and field sets, from a user's input template."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
from aiida import orm
from aiida.common import CalcInfo, CodeInfo
from aiida.common.datastructures import CodeRunMode
from aiida.common.folders import Folder
from aiida.engine import CalcJobProcessSpec, ExitCode, calcfunction
from aiida.parsers import Parser

from mimyria_wf.calculators.console import ConsoleCalculation, RepeatableCalculation
from mimyria_wf.calculators.data import (
    atoms_from_structure,
    copy_file,
    field_forces_node,
    read_snapshots,
    write_atoms,
)
from mimyria_wf.calculators.md import NvtParser, flags
from mimyria_wf.calculators.tblite import define_field_set
from mimyria_wf.cp2k_input import (
    parse_template,
    remedied_template,
    render_field_set,
    render_md,
    write_input,
)
from mimyria_wf.cp2k_output import killer, read_field_results, read_run
from mimyria_wf.labels import configuration_key, level_of_theory_key
from mimyria_wf.md import NveSettings, NvtSettings
from mimyria_wf.program_engine import file_name, named_points
from mimyria_wf.starts import read_starts
from mimyria_wf.wavefunction_extrapolation import extrapolating_inputs


def _define_template(spec: CalcJobProcessSpec) -> None:
    spec.input("template", valid_type=orm.SinglefileData, help="CP2K input with the FORCE_EVAL; see templates/cp2k")
    spec.input_namespace(
        "files",
        valid_type=orm.SinglefileData,
        dynamic=True,
        required=False,
        help="Files that the template names (basis sets, potentials, networks), under their own names.",
    )


def _write_template_files(folder: Folder, inputs: Any) -> None:
    for node in (inputs.files if "files" in inputs else {}).values():
        copy_file(folder, node.filename, node)


def _cp2k_call(code: orm.AbstractCode, project: str) -> CodeInfo:
    call = CodeInfo()
    call.code_uuid = code.uuid
    call.cmdline_params = ["-i", f"{project}.inp"]
    call.stdout_name = f"{project}.out"
    call.join_files = True
    return call


def _guess_call(code: orm.AbstractCode, name: str, done: list[str]) -> CodeInfo:
    """Return the call that makes a point's guess; if it fails, CP2K starts from atomic densities and says so."""
    call = CodeInfo()
    call.code_uuid = code.uuid
    call.cmdline_params = ["extrapolate-wavefunction", name, *done]
    call.stdout_name = name.replace(".inp", ".guess")
    call.join_files = True
    call.withmpi = False
    return call


class _Cp2kMdCalculation(ConsoleCalculation):
    """CP2K runs, then the console script turns its files into H5MD in the same job."""

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        super().define(spec)
        spec.input("cp2k_code", valid_type=orm.AbstractCode)
        _define_template(spec)
        spec.exit_code(330, "ERROR_CP2K", message="CP2K stopped: {detail}")

    def projects(self, folder: Folder) -> list[str]:
        """Write the CP2K inputs and return their project names."""
        raise NotImplementedError

    def prepare_for_submission(self, folder: Folder) -> CalcInfo:
        """Put the CP2K runs before the calls of the console script."""
        projects = self.projects(folder)
        _write_template_files(folder, self.inputs)
        info = super().prepare_for_submission(folder)
        for call in info.codes_info:
            call.withmpi = False
        info.codes_info = [_cp2k_call(self.inputs.cp2k_code, project) for project in projects] + info.codes_info
        info.retrieve_list += [("*.out", ".", 0), ("*.ener", ".", 0)]
        return info


class Cp2kNvtCalculation(_Cp2kMdCalculation):
    """NVT with CP2K's CSVR thermostat; ends with decorrelated starts for NVE runs."""

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
            "time_constant_fs, n_starts, seed",
        )
        spec.output("starts", valid_type=orm.SinglefileData, help="extxyz with velocities [A/fs]")

    @classmethod
    def parser_entry_point(cls) -> str:
        """Return the entry point of the parser."""
        return "mimyria_wf.cp2k.nvt"

    def projects(self, folder: Folder) -> list[str]:
        """Write the input."""
        values = self.inputs.settings.get_dict()
        atoms = atoms_from_structure(self.inputs.structure, values["charge"], values["multiplicity"])
        write_atoms(folder, "structure.extxyz", atoms)
        settings = NvtSettings(
            temperature=values["temperature_K"],
            timestep=values["timestep_fs"],
            n_steps=round(1000 * values["length_ps"] / values["timestep_fs"]),
            n_equilibration_steps=round(1000 * values["equilibration_ps"] / values["timestep_fs"]),
            stride=values["stride"],
            friction=1 / values["time_constant_fs"],
            seed=values["seed"] % 2**31,
            thermostat="csvr",
        )
        with folder.open("nvt.inp", "w") as handle:
            handle.write(render_md(self.inputs.template.get_content("r"), atoms, settings, "nvt"))
        return ["nvt"]

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Return the conversion."""
        values = self.inputs.settings.get_dict()
        n_frames = round(1000 * values["equilibration_ps"] / (values["timestep_fs"] * values["stride"]))
        chosen = {
            "timestep_fs": values["timestep_fs"] * values["stride"],
            "ensemble": "nvt",
            "charge": values["charge"],
            "n_starts": values["n_starts"],
            "skip_frames": n_frames,
            "seed": values["seed"],
            "cell_from": "structure.extxyz",
        }
        return [["convert", "nvt-pos-1.xyz", *flags(chosen), "-o", "nvt.h5"]]


class Cp2kNveCalculation(_Cp2kMdCalculation):
    """NVE runs with CP2K, one after the other; step 0 is the start exactly."""

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs."""
        super().define(spec)
        spec.input("starts", valid_type=orm.SinglefileData, help="extxyz with velocities [A/fs]")
        spec.input("indices", valid_type=orm.List)
        spec.input("settings", valid_type=orm.Dict, help="timestep_fs, length_ps, stride, charge, remove_rotation")

    @classmethod
    def parser_entry_point(cls) -> str:
        """Return the entry point of the parser."""
        return "mimyria_wf.cp2k.nve"

    def projects(self, folder: Folder) -> list[str]:
        """Write one input a start."""
        values = self.inputs.settings.get_dict()
        settings = NveSettings(
            timestep=values["timestep_fs"],
            n_steps=round(1000 * values["length_ps"] / values["timestep_fs"]),
            stride=values["stride"],
            remove_rotation=values.get("remove_rotation", False),
        )
        copy_file(folder, "starts.extxyz", self.inputs.starts)
        starts = read_starts(folder.get_abs_path("starts.extxyz"))
        template = parse_template(self.inputs.template.get_content("r"))
        names = []
        for index in self.inputs.indices.get_list():
            names.append(f"nve-{index:03d}")
            with folder.open(f"{names[-1]}.inp", "w") as handle:
                handle.write(render_md(template, starts[index], settings, names[-1], values.get("charge")))
        return names

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Return the conversion."""
        values = self.inputs.settings.get_dict()
        files = [f"nve-{index:03d}-pos-1.xyz" for index in self.inputs.indices.get_list()]
        chosen = {
            "timestep_fs": values["timestep_fs"] * values["stride"],
            "ensemble": "nve",
            "charge": values.get("charge"),
            "cell_from": "starts.extxyz",
        }
        return [["convert", *files, "--each", *flags(chosen), "-o", "."]]


class Cp2kNvtParser(NvtParser):
    """Name CP2K's own error first: what the conversion says is only its consequence."""

    def parse(self, **kwargs: Any) -> ExitCode | None:
        """Check the CP2K runs, then read the results."""
        return cp2k_failure(self) or super().parse(**kwargs)


class Cp2kNveParser(Cp2kNvtParser):
    """The same without starts."""

    def attach(self, results: list[dict[str, Any]]) -> ExitCode | None:
        """Attach nothing more."""
        return None


def cp2k_failure(parser: Parser) -> ExitCode | None:
    """Return the exit code of the first CP2K run that aborted, None if all ended well."""
    for name in sorted(parser.retrieved.list_object_names()):
        if name.endswith(".out"):
            run = read_run(parser.retrieved.get_object_content(name))
            if run.aborted is not None:
                return parser.exit_codes.ERROR_CP2K.format(detail=f"{name}: {run.aborted}")
    return None


class Cp2kFieldSetCalculation(RepeatableCalculation):
    """All field points of one or a few snapshots in one job and one directory, the zero field first.

    Every later point starts from the zero-field wavefunction, which makes it three to four times cheaper. The scheduler
    script goes on after a failed point, so the parser looks at each.
    """

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs and outputs."""
        super().define(spec)
        spec.input("code", valid_type=orm.AbstractCode, help="CP2K")
        spec.input(
            "console_code",
            valid_type=orm.AbstractCode,
            required=False,
            help="mimyria-wf on the same computer: extrapolates the wavefunctions that field points start from.",
        )
        spec.input(
            "scf_settings",
            valid_type=orm.Int,
            required=False,
            help="Step of the ladder of SCF settings, for the record.",
        )
        define_field_set(spec)
        _define_template(spec)
        spec.inputs["metadata"]["options"]["resources"].default = {"num_machines": 1, "num_mpiprocs_per_machine": 1}
        spec.inputs["metadata"]["options"]["parser_name"].default = "mimyria_wf.cp2k.fields"
        spec.output("summary", valid_type=orm.Dict, required=False, help="Version, wall times and problems by point.")
        spec.exit_code(310, "ERROR_NO_POINT", message="No field point gave usable forces: {detail}")
        spec.exit_code(400, "ERROR_SOME_POINTS", message="{n} of {total} field points failed; the first: {detail}")

    def prepare_for_submission(self, folder: Folder) -> CalcInfo:
        """Write the inputs of all points."""
        template = parse_template(self.inputs.template.get_content("r"))
        vectors = named_vectors(self.inputs.field_vectors.get_list())
        info = CalcInfo()
        info.codes_info, info.retrieve_list = [], []
        for number, atoms in enumerate(read_snapshots(self.inputs.snapshots)):
            inputs = render_field_set(template, atoms, vectors, project_names(number))
            done: list[str] = []
            for name, text in (extrapolating_inputs(inputs) if "console_code" in self.inputs else inputs).items():
                with folder.open(name, "w") as handle:
                    handle.write(text)
                if "console_code" in self.inputs and done:
                    info.codes_info.append(_guess_call(self.inputs.console_code, name, done))
                done.append(name)
                project = name.removesuffix(".inp")
                info.codes_info.append(_cp2k_call(self.inputs.code, project))
                info.retrieve_list += [f"{project}.inp", f"{project}.out", f"{project}-frc.dat"]
        _write_template_files(folder, self.inputs)
        info.codes_run_mode = CodeRunMode.SERIAL
        return info


class Cp2kFieldSetParser(Parser):
    """Keep the points that are sound; of those that are not, say which and why."""

    def parse(self, **kwargs: Any) -> ExitCode | None:
        """Read forces and dipoles of all points."""
        texts = _LazyTexts(self.retrieved, set(self.retrieved.list_object_names()))
        vectors = named_vectors(self.node.inputs.field_vectors.get_list())
        killed_by = self._killed_by(texts)
        kept: dict[str, list[Any]] = {"vectors": [], "forces": [], "snapshot": [], "dipoles": []}
        keys, quanta, gaps, failed, versions, seconds = [], [], [], [], set(), 0.0
        snapshots = read_snapshots(self.node.inputs.snapshots)
        for number, atoms in enumerate(snapshots):
            results = read_field_results(texts, vectors, atoms, project_names(number), killed_by)
            keys.append(configuration_key(atoms))
            quanta.append(np.full((3, 3), np.nan) if results.dipole_quanta is None else results.dipole_quanta)
            gaps.append(results.gap)
            versions |= set(results.versions) - {""}
            seconds += results.seconds
            for row, (name, vector) in enumerate(vectors.items()):
                if results.problems[row]:
                    cause, problem = results.causes[row], results.problems[row]
                    point = {"snapshot": number, "point": name, "vector": vector.tolist()}
                    failed.append({**point, "cause": cause, "problem": problem})
                else:
                    for key, value in (
                        ("vectors", vector),
                        ("forces", results.forces[row]),
                        ("snapshot", number),
                        ("dipoles", results.dipoles[row]),
                    ):
                        kept[key].append(value)
        total, version = len(vectors) * len(snapshots), ", ".join(sorted(versions)) or None
        problems = [one["problem"] for one in failed]
        summary = {"version": version, "seconds": seconds, "n_points": total, "problems": problems, "failed": failed}
        self.out("summary", orm.Dict(summary))
        if not kept["vectors"]:
            return self.exit_codes.ERROR_NO_POINT.format(detail=problems[0] if problems else "no output")
        level = self.node.inputs.level_of_theory.get_dict()
        node = field_forces_node(
            np.array(kept["vectors"]),
            np.array(kept["forces"]),
            np.array(kept["snapshot"]),
            keys,
            {**level, "version": version, **self._scf_settings()},
            level_of_theory_key(level),
            dipoles=np.array(kept["dipoles"]),
            dipole_quanta=np.array(quanta),
            gaps=gaps,
        )
        self.out("field_forces", node)
        if failed:
            return self.exit_codes.ERROR_SOME_POINTS.format(n=len(failed), total=total, detail=problems[0])
        return None

    def _scf_settings(self) -> dict[str, int]:
        """Return in which way the points were converged, where it was not the template's own."""
        inputs = self.node.inputs
        return {"scf_settings": inputs.scf_settings.value} if "scf_settings" in inputs else {}

    def _killed_by(self, texts: _LazyTexts) -> str:
        """Return why the scheduler ended the job, "" where nothing says that it did.

        AiiDA's plugins know it of some schedulers and set the job's exit status before it is parsed; of the others the
        operating system or the launcher may have left a word in the error file.
        """
        calculation = self.node.process_class.exit_codes
        by_status = {
            calculation.ERROR_SCHEDULER_OUT_OF_WALLTIME.status: "walltime",
            calculation.ERROR_SCHEDULER_OUT_OF_MEMORY.status: "memory",
        }
        if self.node.exit_status in by_status:
            return by_status[self.node.exit_status]
        return killer(texts.get(self.node.get_option("scheduler_stderr") or "", ""))


class _LazyTexts(dict):  # type: ignore[type-arg]
    """File name -> text of retrieved files, read when asked for."""

    def __init__(self, folder: orm.FolderData, names: set[str]) -> None:
        super().__init__(dict.fromkeys(names))
        self._folder = folder

    def __getitem__(self, name: str) -> str:
        if name not in self:
            raise KeyError(name)
        return self._folder.get_object_content(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401  dict.get does not call __getitem__


def named_vectors(vectors: list[list[float]]) -> dict[str, np.ndarray]:
    """Return field vectors [E_h/(e a0)] by name; a direction that comes with several lengths is numbered."""
    return named_points(np.array(vectors, dtype=float).reshape(-1, 3))


def project_names(number: int) -> Any:
    """Return the function that names the CP2K projects of one snapshot's points."""
    return lambda name: f"s{number:03d}-{file_name(name)}"


@calcfunction
def mend_template(template: orm.SinglefileData, changes: orm.Dict) -> orm.SinglefileData:
    """Return a template that converges in a more robust way, see :func:`mimyria_wf.cp2k_input.remedied_template`."""
    text = write_input(remedied_template(template.get_content("r"), **changes.get_dict()))
    return orm.SinglefileData(io.BytesIO(text.encode()), filename=template.filename)


def template_level_of_theory(template: str, files: dict[str, bytes]) -> dict[str, Any]:
    """Return what keys CP2K labels: the template as CP2K reads it, comments aside, and the files it names."""
    text = write_input(parse_template(template))
    return {
        "engine": "cp2k",
        "template": hashlib.sha256(text.encode()).hexdigest(),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    }
