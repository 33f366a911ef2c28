"""CalcJobs, without running them: what they submit, and what their parsers make of good and bad folders."""

from __future__ import annotations

import io
import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
import yaml
from aiida import orm
from aiida.common import CalcInfo, LinkType
from aiida.common.folders import SandboxFolder
from aiida.engine import ExitCode
from aiida.engine.utils import instantiate_process
from aiida.manage import get_manager
from aiida.plugins import CalculationFactory, ParserFactory, WorkflowFactory
from aiida.tools.pytest_fixtures import *  # noqa: F403  the profile is made only where this is imported
from ase.build import molecule

from mimyria_wf.calculators.assembly import (
    assemble_labels,
    build_manifest,
    split_labels,
    take_snapshots,
    with_stride,
)
from mimyria_wf.calculators.cp2k import template_level_of_theory
from mimyria_wf.calculators.data import (
    atoms_from_structure,
    field_forces_node,
    known_field_forces,
    known_response_tensors,
    points_of,
    read_snapshots,
    response_tensors_node,
    structure_from_atoms,
)
from mimyria_wf.calculators.md import flags
from mimyria_wf.cli import build_parser
from mimyria_wf.cp2k_input import parse_input
from mimyria_wf.field_forces import FieldForces, FieldForcesStore
from mimyria_wf.finite_field import field_vectors
from mimyria_wf.labels import configuration_key, level_of_theory_key, read_labels
from mimyria_wf.response import ResponseTensors
from mimyria_wf.starts import write_starts

pytestmark = pytest.mark.aiida
ROOT = Path(__file__).parents[1]
ENTRY_POINT = re.compile(
    r'^"(mimyria_wf[.\w]+)" = "mimyria_wf\.(calculators|workchains)\.\w+:\w+(Calculation|WorkChain)"$'
)
LEVEL = {"engine": "tblite", "method": "GFN2-xTB", "accuracy": 0.01, "version": "0.5"}


def process_names() -> list[tuple[str, str]]:
    """Return (kind, entry point) of every process of the package."""
    found = [ENTRY_POINT.match(line) for line in (ROOT / "pyproject.toml").read_text().splitlines()]
    names = [(match[3], match[1]) for match in found if match]
    assert len(names) >= 16
    return names


def process_class(kind: str, name: str) -> Any:
    """Return a process class by its entry point."""
    return CalculationFactory(name) if kind == "Calculation" else WorkflowFactory(name)


@pytest.mark.parametrize(("kind", "name"), process_names())
def test_exit_codes_are_unique_and_say_something(kind: str, name: str) -> None:
    """AiiDA accepts two exit codes of one status in silence: `exit_codes` then answers with the last."""
    by_status: dict[int, list[str]] = defaultdict(list)
    for label, code in process_class(kind, name).spec().exit_codes.items():
        by_status[code.status].append(label)
        assert code.message, label
    assert not {status: labels for status, labels in by_status.items() if len(labels) > 1}
    own = [status for status in by_status if status >= 300]
    assert own
    assert all(300 <= status < 500 for status in own)  # 300s end it, 400s can be taken up again


@pytest.mark.parametrize("name", [name for kind, name in process_names() if kind == "Calculation"])
def test_failed_jobs_are_not_taken_from_the_cache(name: str, code: orm.AbstractCode) -> None:
    """AiiDA takes them: a campaign repeated after a full disk would then fail again without computing anything."""
    process = CalculationFactory(name)
    for status in (0, *{exit_code.status for exit_code in process.spec().exit_codes.values()}):
        node = orm.CalcJobNode(computer=code.computer, process_type=f"aiida.calculations:{name}")
        node.set_process_state("finished")
        node.set_exit_status(status)
        assert process.is_valid_cache(node) is (status == 0)


@pytest.mark.parametrize(("kind", "name"), process_names())
def test_processes_document_themselves(kind: str, name: str) -> None:
    described = process_class(kind, name).spec().get_description()
    assert process_class(kind, name).__doc__
    assert described["outputs"]


# ---------------------------------------------------------------------------------------------------- what is submitted


@pytest.fixture
def code(aiida_code_installed: Callable[..., orm.AbstractCode]) -> orm.AbstractCode:
    """Return a code; nothing here runs it."""
    return aiida_code_installed(label="mimyria-wf", filepath_executable="/bin/true")


@pytest.fixture
def remote(code: orm.AbstractCode) -> Callable[[str], orm.RemoteData]:
    """Return a function that makes the folder of an earlier job."""

    def make(path: str) -> orm.RemoteData:
        return orm.RemoteData(remote_path=path, computer=code.computer).store()

    return make


def single_file(content: str | bytes, name: str = "file") -> orm.SinglefileData:
    """Return a file node."""
    return orm.SinglefileData(io.BytesIO(content if isinstance(content, bytes) else content.encode()), filename=name)


def extxyz(snapshots: list[ase.Atoms], name: str = "snapshots.extxyz") -> orm.SinglefileData:
    """Return snapshots as a file node."""
    buffer = io.StringIO()
    ase.io.write(buffer, snapshots, format="extxyz")
    return single_file(buffer.getvalue(), name)


@pytest.fixture
def starts(tmp_path: Path) -> orm.SinglefileData:
    """Return three starts with velocities."""
    snapshots = []
    for k in range(3):
        atoms = molecule("H2O", cell=[6, 6, 6], pbc=True)
        atoms.info |= {"charge": 0, "multiplicity": 1, "start_frame": k}
        atoms.set_velocities(np.full((3, 3), 1e-3 * (k + 1)))
        snapshots.append(atoms)
    write_starts(tmp_path / "starts.extxyz", snapshots)
    return orm.SinglefileData(tmp_path / "starts.extxyz")


def prepare(name: str, inputs: dict[str, Any]) -> tuple[CalcInfo, dict[str, str], Any]:
    """Return what a CalcJob hands to AiiDA, the files it wrote, and the process."""
    process = instantiate_process(get_manager().get_runner(), CalculationFactory(name), **inputs)
    with SandboxFolder() as folder:
        info = process.prepare_for_submission(folder)
        files = {entry: (Path(folder.abspath) / entry).read_bytes() for entry in folder.get_content_list()}
    return info, {key: value.decode(errors="replace") for key, value in files.items()}, process


def parse_command_lines(info: CalcInfo) -> list[Any]:
    """Feed the command lines to the real parser of the console script: a wrong flag ends here, not on a cluster."""
    return [build_parser().parse_args(call.cmdline_params) for call in info.codes_info]


def given_trajectories(remote: Callable[[str], orm.RemoteData]) -> dict[str, Any]:
    """Return two runs in one folder and one in another."""
    files = [
        {"folder": "nve_000", "file": "nve-000.h5", "name": "nve-000", "n_frames": 100},
        {"folder": "nve_000", "file": "nve-001.h5", "name": "nve-001", "n_frames": 100},
        {"folder": "elsewhere", "file": "run.extxyz", "name": "other", "n_frames": 50},
    ]
    return {
        "trajectories": {"nve_000": remote("/scratch/1"), "elsewhere": remote("/data/")},
        "manifest": orm.Dict({"files": files}),
    }


TRAJECTORY_LINKS = [
    ("/scratch/1/nve-000.h5", "nve-000.h5"),
    ("/scratch/1/nve-001.h5", "nve-001.h5"),
    ("/data/run.extxyz", "other.extxyz"),
]


def links_of(info: CalcInfo) -> list[tuple[str, str]]:
    """Return (path on the computer, name in the job)."""
    return [(path, name) for _, path, name in info.remote_symlink_list]


def test_nvt(code: orm.AbstractCode) -> None:
    settings = {"charge": -1, "multiplicity": 2, "temperature_K": 300, "timestep_fs": 0.5, "length_ps": 1.0}
    settings |= {"equilibration_ps": 0.1, "stride": 20, "friction_per_ps": 10.0, "n_starts": 4, "seed": 7}
    inputs = {
        "code": code,
        "structure": structure_from_atoms(molecule("H2O")),
        "calculator": orm.Dict({"import": "tblite.ase.TBLite", "arguments": {"method": "GFN2-xTB"}}),
        "settings": orm.Dict(settings),
    }
    info, files, _ = prepare("mimyria_wf.md.nvt", inputs)
    (chosen,) = parse_command_lines(info)
    assert (chosen.ensemble, chosen.temperature_K, chosen.seed, chosen.n_starts) == ("nvt", 300, 7, 4)
    assert chosen.arguments == {"method": "GFN2-xTB"}
    atoms = ase.io.read(io.StringIO(files["structure.extxyz"]), format="extxyz")
    assert (atoms.info["charge"], atoms.info["multiplicity"]) == (-1, 2)
    assert not atoms.pbc.any()
    assert "result-0.json" in info.retrieve_list
    assert ("starts.extxyz", ".", 1) in info.retrieve_list
    assert not any("nvt.h5" in str(entry) for entry in info.retrieve_list)  # long trajectories stay there


def test_nve(code: orm.AbstractCode, starts: orm.SinglefileData) -> None:
    inputs = {
        "code": code,
        "starts": starts,
        "indices": orm.List([1, 2]),
        "calculator": orm.Dict({"import": "tblite.ase.TBLite", "arguments": {}}),
        "settings": orm.Dict({"timestep_fs": 0.5, "length_ps": 1.0, "stride": 1, "remove_rotation": True}),
    }
    info, files, _ = prepare("mimyria_wf.md.nve", inputs)
    (chosen,) = parse_command_lines(info)
    assert chosen.indices == [1, 2]
    assert chosen.remove_rotation
    assert len(list(ase.io.iread(io.StringIO(files["starts.extxyz"]), index=":", format="extxyz"))) == 3


def test_md_with_torch_sim_and_a_file(code: orm.AbstractCode, starts: orm.SinglefileData) -> None:
    inputs = {
        "code": code,
        "starts": starts,
        "indices": orm.List([0, 1, 2]),
        "calculator": orm.Dict({"import": "mimyria_wf.torchsim_models:mace", "arguments": {"model": "mace.model"}}),
        "files": {"file_00": single_file("weights", "mace.model")},
        "settings": orm.Dict(
            {"timestep_fs": 0.5, "length_ps": 1.0, "engine": "torch-sim", "device": "cuda", "dtype": "float32"}
        ),
    }
    info, files, _ = prepare("mimyria_wf.md.nve", inputs)
    (chosen,) = parse_command_lines(info)
    assert (chosen.engine, chosen.device, chosen.dtype, chosen.batch_size) == ("torch-sim", "cuda", "float32", None)
    assert files[chosen.arguments["model"]] == "weights"


@pytest.mark.parametrize("left", [True, False])
def test_a_job_goes_on_with_what_one_before_it_left(
    left: bool, code: orm.AbstractCode, starts: orm.SinglefileData, tmp_path: Path
) -> None:
    """Run the lines of the batch script: finished and partial files are copied, and nothing fails without them."""
    before = tmp_path / "before"
    before.mkdir()
    if left:
        for name in ("nve-000.h5", "nve-001.h5.part", "result-0.json"):
            (before / name).write_text(name)
    inputs = {
        "code": code,
        "starts": starts,
        "indices": orm.List([0, 1]),
        "calculator": orm.Dict({"import": "tblite.ase.TBLite", "arguments": {}}),
        "settings": orm.Dict({"timestep_fs": 0.5, "length_ps": 1.0}),
        "partial": orm.RemoteData(remote_path=str(before), computer=code.computer),
    }
    info, _, _ = prepare("mimyria_wf.md.nve", inputs)
    job = tmp_path / "job"
    job.mkdir()
    for path, name in links_of(info):
        (job / name).symlink_to(path)
    subprocess.run(["bash", "-e", "-c", info.prepend_text], cwd=job, check=True)
    assert {path.name for path in job.iterdir()} - {"partial"} == ({"nve-000.h5", "nve-001.h5.part"} if left else set())


def test_selection(code: orm.AbstractCode, remote: Callable[[str], orm.RemoteData]) -> None:
    settings = orm.Dict({"n_training": 10, "n_test": 4, "seed": 1, "exclude": ["nve-000"], "charge": -2})
    info, _, _ = prepare("mimyria_wf.selection", {"code": code, **given_trajectories(remote), "settings": settings})
    (chosen,) = parse_command_lines(info)
    assert [path.name for path in chosen.files] == ["nve-000.h5", "nve-001.h5", "other.extxyz"]
    assert chosen.exclude == ["nve-000"]
    assert chosen.charge == -2
    assert links_of(info) == TRAJECTORY_LINKS


def test_cluster_labels(code: orm.AbstractCode) -> None:
    inputs = {
        "code": code,
        "snapshots": extxyz([molecule("H2O")]),
        "settings": orm.Dict(
            {"targets": ["apt"], "radius": 3.0, "accuracy": 0.1, "charges": {"SO4": -2, "Na": 1}, "processes": 2}
        ),
    }
    info, files, _ = prepare("mimyria_wf.tblite.clusters", inputs)
    (chosen,) = parse_command_lines(info)
    assert chosen.clusters
    assert (chosen.targets, chosen.radius, chosen.processes) == (["apt"], 3.0, 2)
    assert chosen.charges == {"SO4": -2, "Na": 1}
    assert str(chosen.file) in files
    assert ("labels.extxyz", ".", 1) in info.retrieve_list


def test_selection_by_models(code: orm.AbstractCode, remote: Callable[[str], orm.RemoteData]) -> None:
    inputs = {
        "code": code,
        **given_trajectories(remote),
        "settings": orm.Dict({"n_training": 20, "n_test": 4, "seed": 1, "exclude": ["nve-000"]}),
        "models": {"apt": single_file("a", "model.pt"), "pgt": single_file("p", "model.pt")},
        "labelled": single_file("snapshots", "training.extxyz"),
    }
    info, files, _ = prepare("mimyria_wf.selection", inputs)
    (chosen,) = parse_command_lines(info)
    assert [files[str(path)] for path in chosen.model] == ["a", "p"]
    assert files[str(chosen.labelled)] == "snapshots"
    assert "training.extxyz" not in files  # the name of what the job writes
    assert chosen.exclude == ["nve-000"]


def test_stride(code: orm.AbstractCode, remote: Callable[[str], orm.RemoteData]) -> None:
    inputs = {
        "code": code,
        **given_trajectories(remote),
        "models": {"apt": single_file("a", "model.pt"), "pgt": single_file("p", "model.pt")},
        "settings": orm.Dict({"stride_tolerance": 1e-2, "batch_size": 8, "threads": 2, "device": "cuda", "charge": 0}),
    }
    info, files, _ = prepare("mimyria_wf.stride", inputs)
    (chosen,) = parse_command_lines(info)
    assert [files[str(path)] for path in chosen.model] == ["a", "p"]
    assert (chosen.stride_tolerance, chosen.threads, chosen.device) == (1e-2, 2, "cuda")
    assert links_of(info) == TRAJECTORY_LINKS


def test_the_chosen_stride_enters_the_flags() -> None:
    flags_before = orm.Dict({"stride": "auto", "stride_tolerance": 1e-3, "volume": 30.0})
    assert with_stride(flags_before, orm.Dict({"chosen": 4})).get_dict() == {"stride": 4, "volume": 30.0}


def test_groups(code: orm.AbstractCode, remote: Callable[[str], orm.RemoteData]) -> None:
    inputs = {"code": code, **given_trajectories(remote), "groups": single_file("groups: {}", "any.yaml")}
    info, files, _ = prepare("mimyria_wf.groups", inputs)
    (chosen,) = parse_command_lines(info)
    assert files[str(chosen.file)] == "groups: {}"
    assert [path.name for path in chosen.trajectories] == ["nve-000.h5", "nve-001.h5", "other.extxyz"]
    assert str(chosen.output) == "resolved.yaml"
    assert links_of(info) == TRAJECTORY_LINKS


def test_training(code: orm.AbstractCode) -> None:
    inputs = {
        "code": code,
        "training": {"labels_01": single_file("second"), "labels_00": single_file("first")},
        "test": single_file("test"),
        "target": orm.Str("pgt"),
        "settings": orm.Dict({"preset": "paper", "seed": 3, "set": {"n_steps": 5}, "threads": 2}),
        "initial_model": single_file(b"\x80\x02", "model.pt"),
    }
    info, files, _ = prepare("mimyria_wf.training", inputs)
    (chosen,) = parse_command_lines(info)
    assert [files[str(path)] for path in chosen.train] == ["first", "second"]  # the nesting is the order of the keys
    assert (chosen.target, chosen.preset, chosen.set, chosen.threads) == ("pgt", "paper", {"n_steps": 5}, 2)
    assert str(chosen.initial_model) in files
    assert chosen.pretraining is None
    del inputs["initial_model"]
    info, files, _ = prepare("mimyria_wf.training", {**inputs, "pretraining": single_file("cheap")})
    (chosen,) = parse_command_lines(info)
    assert files[str(chosen.pretraining)] == "cheap"
    assert ("model/model.pt", ".", 2) in info.retrieve_list


def test_prediction(code: orm.AbstractCode, remote: Callable[[str], orm.RemoteData]) -> None:
    inputs = {
        "code": code,
        **given_trajectories(remote),
        "models": {"pgt": single_file("p"), "apt": single_file("a")},
        "settings": orm.Dict({"stride": 4, "batch_size": 8, "volume": 180.0, "keep_sum_rules": False, "charge": 0}),
    }
    info, files, _ = prepare("mimyria_wf.prediction", inputs)
    (chosen,) = parse_command_lines(info)
    assert [files[str(path)] for path in chosen.model] == ["a", "p"]
    assert (chosen.stride, chosen.volume, chosen.keep_sum_rules, chosen.charge) == (4, 180.0, False, 0)
    assert (chosen.groups, chosen.max_lag_fs) == ("all", None)
    assert links_of(info) == TRAJECTORY_LINKS
    inputs["settings"] = orm.Dict({"max_lag_fs": 500.0})
    info, files, _ = prepare("mimyria_wf.prediction", {**inputs, "groups": single_file("groups: {}", "resolved.yaml")})
    (chosen,) = parse_command_lines(info)
    assert files[chosen.groups] == "groups: {}"
    assert chosen.max_lag_fs == 500


def test_spectra(code: orm.AbstractCode, remote: Callable[[str], orm.RemoteData]) -> None:
    inputs = {
        "code": code,
        "derivatives": {"part_00": remote("/p/0"), "part_01": remote("/p/1")},
        "series": orm.Dict({"files": [{"folder": f"part_0{k}", "name": f"nve-00{k}"} for k in range(2)]}),
        "settings": orm.Dict({"window_fs": 500, "window": "hann", "seed": 1, "temperature": 300}),
        "previous": remote("/s/0"),
    }
    info, _, _ = prepare("mimyria_wf.spectra", inputs)
    spectra, compare = parse_command_lines(info)
    assert [str(path) for path in spectra.files] == ["nve-000.h5", "nve-001.h5"]
    assert str(compare.b) == str(spectra.output)
    assert links_of(info)[0] == ("/p/0/derivatives/nve-000.h5", "nve-000.h5")
    assert links_of(info)[-1] == ("/s/0/spectra", "previous")
    assert {"result-0.json", "result-1.json"} <= {entry for entry in info.retrieve_list if isinstance(entry, str)}
    del inputs["previous"]
    assert len(prepare("mimyria_wf.spectra", inputs)[0].codes_info) == 1


def test_final_spectra(code: orm.AbstractCode, remote: Callable[[str], orm.RemoteData]) -> None:
    """Geometries may begin with a minus, as options do; the measured spectrum keeps its name."""
    settings = {
        "geometry": ["X(ZZ)Y", "-Z(XY)X"],
        "statistics": "harmonic",
        "laser_nm": 532.0,
        "verlet_timestep_fs": 0.5,
        "measured_units": "cm^-1, 10^3 cm^-1",
    }
    inputs = {
        "code": code,
        "derivatives": {"part_00": remote("/p/0")},
        "series": orm.Dict({"files": [{"folder": "part_00", "name": "nve-000"}]}),
        "settings": orm.Dict(settings),
        "measured": single_file("##TITLE=water", "water.jdx"),
    }
    info, files, _ = prepare("mimyria_wf.spectra", inputs)
    (chosen,) = parse_command_lines(info)
    assert chosen.geometry == ["X(ZZ)Y", "-Z(XY)X"]
    assert (chosen.statistics, chosen.laser_nm, chosen.verlet_timestep_fs) == ("harmonic", 532.0, 0.5)
    assert [files[str(path)] for path in chosen.measured] == ["##TITLE=water"]
    assert chosen.measured_units == "cm^-1, 10^3 cm^-1"
    wanted = {("spectra/*.nc", ".", 2), ("spectra/jcamp/*.jdx", ".", 3), ("spectra/*.pdf", ".", 2)}
    assert wanted <= {entry for entry in info.retrieve_list if not isinstance(entry, str)}


def test_tblite_field_set(code: orm.AbstractCode) -> None:
    vectors = [list(map(float, vector)) for vector in field_vectors(1e-3, ["pgt"]).values()]
    inputs = {
        "code": code,
        "snapshots": extxyz([molecule("H2O")]),
        "field_vectors": orm.List(vectors),
        "level_of_theory": orm.Dict(LEVEL),
    }
    info, files, _ = prepare("mimyria_wf.tblite.fields", inputs)
    (chosen,) = parse_command_lines(info)
    assert chosen.vectors == vectors
    assert (chosen.engine, chosen.settings) == ("tblite", {"method": "GFN2-xTB", "accuracy": 0.01})
    assert str(chosen.file) in files


def test_field_set_of_any_engine(code: orm.AbstractCode) -> None:
    inputs = {
        "code": code,
        "snapshots": extxyz([molecule("H2O")]),
        "field_vectors": orm.List([[0.0, 0.0, 1e-3]]),
        "level_of_theory": orm.Dict({"engine": "cp2k", "template": "a" * 64, "files": {}, "eps_scf": 1e-7}),
        "settings": orm.Dict({"command": "cp2k.psmp", "threads": 2}),
        "template": orm.SinglefileData(io.BytesIO(b"&FORCE_EVAL\n&END"), filename="water.inp"),
        "files": {"basis": orm.SinglefileData(io.BytesIO(b"H"), filename="BASIS_MOLOPT")},
    }
    info, files, _ = prepare("mimyria_wf.engine.fields", inputs)
    (chosen,) = parse_command_lines(info)
    assert (chosen.engine, chosen.settings) == ("cp2k", {"command": "cp2k.psmp", "threads": 2, "eps_scf": 1e-7})
    assert chosen.file_of_engine == [("BASIS_MOLOPT", Path("BASIS_MOLOPT"))]
    assert {str(chosen.file), str(chosen.template), "BASIS_MOLOPT"} <= set(files)


def test_reference(code: orm.AbstractCode, remote: Callable[[str], orm.RemoteData]) -> None:
    trajectories = given_trajectories(remote)
    inputs = {
        "code": code,
        "trajectories": {"nve_000": trajectories["trajectories"]["nve_000"]},
        "manifest": orm.Dict({"files": trajectories["manifest"].get_dict()["files"][:1]}),
        "level_of_theory": orm.Dict(LEVEL),
        "settings": orm.Dict({"targets": ["apt", "pgt"], "step": 1e-3, "start": 0, "stop": 50, "volume": 180.0}),
    }
    info, _, _ = prepare("mimyria_wf.reference", inputs)
    (chosen,) = parse_command_lines(info)
    assert (chosen.start, chosen.stop, chosen.targets) == (0, 50, ["apt", "pgt"])
    assert chosen.groups == "all"
    assert links_of(info) == TRAJECTORY_LINKS[:1]
    text = "groups: {z: {species: [O]}, a: {species: [H]}}\nrelations: [same molecule]\n"
    info, files, _ = prepare("mimyria_wf.reference", {**inputs, "groups": single_file(text, "resolved.yaml")})
    (chosen,) = parse_command_lines(info)
    kept = yaml.safe_load(files[chosen.groups])
    assert kept == {"groups": {"z": {"species": ["O"]}, "a": {"species": ["H"]}}}
    assert list(kept["groups"]) == ["z", "a"]


def test_comparison(code: orm.AbstractCode, remote: Callable[[str], orm.RemoteData]) -> None:
    spec = CalculationFactory("mimyria_wf.comparison").spec()
    inputs: dict[str, Any] = {
        "code": code,
        "explicit": {"part_01": remote("/e/1"), "part_00": remote("/e/0")},
        "predicted": remote("/p"),
        "name": orm.Str("nve-000"),
        "settings": orm.Dict({"window_fs": 500}),
    }
    info, _, _ = prepare("mimyria_wf.comparison", {key: inputs[key] for key in inputs if key in spec.inputs})
    join, explicit, predicted, compare = parse_command_lines(info)
    assert explicit.no_figures
    assert predicted.no_figures
    assert [str(path) for path in join.files] == ["part_00.h5", "part_01.h5"]  # in time, whatever the order of inputs
    assert (str(compare.a), str(compare.b)) == ("explicit", "predicted")
    assert links_of(info)[:2] == [("/e/0/explicit.h5", "part_00.h5"), ("/e/1/explicit.h5", "part_01.h5")]
    assert sum(isinstance(entry, str) for entry in info.retrieve_list) == 4


TEMPLATE = (ROOT / "templates" / "cp2k" / "water_pbe_szv.inp").read_text()


def water_box() -> ase.Atoms:
    """Return a water molecule in a box."""
    atoms = molecule("H2O", cell=[6, 6, 6], pbc=True)
    atoms.info |= {"charge": 0, "snapshot": "nve-000/10"}
    return atoms


def test_cp2k_field_set(code: orm.AbstractCode) -> None:
    vectors = [list(map(float, vector)) for vector in field_vectors(5e-4, ["apt", "pgt"]).values()]
    inputs = {
        "code": code,
        "snapshots": extxyz([water_box(), water_box()]),
        "field_vectors": orm.List(vectors),
        "level_of_theory": orm.Dict(template_level_of_theory(TEMPLATE, {})),
        "template": single_file(TEMPLATE, "dft.inp"),
        "files": {"basis": single_file("BASIS", "BASIS_SET")},
    }
    info, files, _ = prepare("mimyria_wf.cp2k.fields", inputs)
    projects = [call.stdout_name.removesuffix(".out") for call in info.codes_info]
    assert len(projects) == 2 * 13
    assert projects[0] == "s000-zero"  # later points start from its wavefunction
    assert projects[13] == "s001-zero"
    assert {f"{project}.inp" for project in projects} | {"BASIS_SET"} == files.keys()
    assert files["BASIS_SET"] == "BASIS"
    assert "PERIODIC_EFIELD" not in files["s000-zero.inp"]
    assert "PERIODIC_EFIELD" in files["s000-pxpy.inp"]
    assert "s000-zero-RESTART.wfn" in files["s000-pxpy.inp"]
    assert {f"{p}{s}" for p in projects for s in (".inp", ".out", "-frc.dat")} == set(info.retrieve_list)


def cp2k_md_inputs(code: orm.AbstractCode) -> dict[str, Any]:
    """Return what both CP2K MD jobs take."""
    return {"code": code, "cp2k_code": code, "template": single_file(TEMPLATE, "dft.inp")}


def test_cp2k_nvt(code: orm.AbstractCode) -> None:
    settings = {"charge": 0, "multiplicity": 1, "temperature_K": 300, "timestep_fs": 0.5, "length_ps": 0.1}
    settings |= {"equilibration_ps": 0.02, "stride": 4, "time_constant_fs": 50.0, "n_starts": 2, "seed": 2**40}
    structure = structure_from_atoms(water_box())
    inputs = {**cp2k_md_inputs(code), "structure": structure, "settings": orm.Dict(settings)}
    info, files, _ = prepare("mimyria_wf.cp2k.nvt", inputs)
    run, convert = info.codes_info
    assert run.cmdline_params == ["-i", "nvt.inp"]
    assert run.stdout_name == "nvt.out"
    chosen = build_parser().parse_args(convert.cmdline_params)
    assert (chosen.timestep_fs, chosen.skip_frames, chosen.n_starts) == (2.0, 10, 2)
    assert convert.withmpi is False
    assert "CSVR" in files["nvt.inp"]
    assert str(chosen.cell_from) in files


def test_cp2k_nve(code: orm.AbstractCode, starts: orm.SinglefileData) -> None:
    settings = orm.Dict({"timestep_fs": 0.5, "length_ps": 0.1, "stride": 1, "charge": 0, "multiplicity": 1})
    inputs = {**cp2k_md_inputs(code), "starts": starts, "indices": orm.List([0, 2]), "settings": settings}
    info, files, _ = prepare("mimyria_wf.cp2k.nve", inputs)
    *runs, convert = info.codes_info
    assert [run.cmdline_params[1] for run in runs] == ["nve-000.inp", "nve-002.inp"]
    assert files["nve-000.inp"] != files["nve-002.inp"]  # each has its own velocities
    assert [path.name for path in build_parser().parse_args(convert.cmdline_params).files] == [
        "nve-000-pos-1.xyz",
        "nve-002-pos-1.xyz",
    ]


@pytest.mark.parametrize("removes", [False, True])
def test_cp2k_nve_of_a_cluster_stops_its_rotation(code: orm.AbstractCode, removes: bool) -> None:
    atoms = molecule("H2O")
    atoms.set_velocities(np.random.default_rng(0).normal(size=(3, 3)))
    buffer = io.StringIO()
    ase.io.write(buffer, atoms, format="extxyz")
    cell = "&SUBSYS\n&CELL\nABC 20 20 20\nPERIODIC NONE\n&END\n&END\n"
    settings = {"timestep_fs": 0.5, "length_ps": 0.1, "stride": 1, "charge": 0, "remove_rotation": removes}
    inputs = {
        **cp2k_md_inputs(code),
        "template": single_file(f"&FORCE_EVAL\nMETHOD NNP\n{cell}&END\n", "nnp.inp"),
        "starts": single_file(buffer.getvalue(), "starts.extxyz"),
        "indices": orm.List([0]),
        "settings": orm.Dict(settings),
    }
    _, files, _ = prepare("mimyria_wf.cp2k.nve", inputs)
    section = parse_input(files["nve-000.inp"]).section("FORCE_EVAL/SUBSYS/VELOCITY")
    assert section is not None
    velocities = np.array([[float(x) for x in f"{e.name} {e.value}".split()] for e in section.entries])
    arms = atoms.positions - atoms.get_center_of_mass()
    momentum = atoms.get_masses() @ np.cross(arms, velocities)
    assert (np.abs(momentum).max() < 1e-6 * np.abs(velocities).max()) == removes


def test_flags_are_what_the_console_script_takes() -> None:
    assert flags({"a_b": 1, "c": True, "d": False, "e": None, "f": [1, 2], "g": {"h": 1}, "i": 0}) == [
        *("--a-b", "1", "--c", "--f", "1", "2", "--g", '{"h": 1}', "--i", "0")
    ]


# -------------------------------------------------------------------------------------------------------------- parsers

Parse = Callable[..., tuple[dict[str, Any], ExitCode | None]]


@pytest.fixture
def parse(code: orm.AbstractCode, tmp_path: Path) -> Parse:
    """Return a function that parses a made-up retrieved folder."""

    def call(
        name: str,
        files: Mapping[str, str | bytes],
        inputs: Mapping[str, orm.Data] | None = None,
        n_calls: int = 1,
    ) -> tuple[dict[str, Any], ExitCode | None]:
        node = orm.CalcJobNode(computer=code.computer, process_type=f"aiida.calculations:{name}")
        node.set_option("resources", {"num_machines": 1, "num_mpiprocs_per_machine": 1})
        node.base.attributes.set("retrieve_list", [f"result-{k}.json" for k in range(n_calls)])
        for label, value in (inputs or {}).items():
            node.base.links.add_incoming(value.store(), link_type=LinkType.INPUT_CALC, link_label=label)
        node.store()
        folder = orm.FolderData()
        for path, content in files.items():
            folder.base.repository.put_object_from_bytes(
                content if isinstance(content, bytes) else content.encode(), path
            )
        folder.base.links.add_incoming(node, link_type=LinkType.CREATE, link_label="retrieved")
        folder.store()
        entry = CalculationFactory(name).spec().inputs["metadata"]["options"]["parser_name"].default
        results, calcfunction = ParserFactory(entry).parse_from_node(node, store_provenance=False)
        code_ = calcfunction.exit_status or 0
        return results, None if code_ == 0 else ExitCode(code_, calcfunction.exit_message)

    return call


def good(*results: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of calls that went well."""
    files = {}
    for number, result in enumerate(results):
        files |= {f"result-{number}.json": json.dumps(result), f"stdout-{number}.txt": "", f"stderr-{number}.txt": ""}
    return files


def test_a_result_becomes_the_summary(parse: Parse) -> None:
    results, failure = parse("mimyria_wf.prediction", good({"targets": ["apt"]}))
    assert failure is None
    assert results["summary"].get_dict() == {"targets": ["apt"]}


def test_an_error_line_becomes_the_message(parse: Parse) -> None:
    stderr = "some library: chatter\nerror: a.h5 is empty: run it again\nerror: b.h5 too\n"
    _, failure = parse("mimyria_wf.prediction", {"stderr-0.txt": stderr, "stdout-0.txt": ""})
    assert failure == ExitCode(320, "a.h5 is empty: run it again")


def test_wrong_usage_is_found_as_well(parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["predict", "--models", "a.pt"])
    _, failure = parse("mimyria_wf.prediction", {"stderr-0.txt": capsys.readouterr().err, "stdout-0.txt": ""})
    assert failure is not None
    assert failure.status == 320


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "it left no message"),
        ({"stdout-0.txt": "", "stderr-0.txt": ""}, "it left no message"),
        ({"stdout-0.txt": "", "stderr-0.txt": "Traceback ...\nMemoryError\n"}, "MemoryError"),
        ({"stdout-0.txt": "", "stderr-0.txt": "slurmstepd: CANCELLED DUE TO TIME LIMIT\n"}, "TIME LIMIT"),
        ({**good({"a": 1}), "result-0.json": '{"a": 1, "b'}, "cut off"),
        ({**good({"a": 1}), "result-0.json": ""}, "cut off"),
    ],
)
def test_a_job_without_result(files: dict[str, str], words: str, parse: Parse) -> None:
    results, failure = parse("mimyria_wf.prediction", files)
    assert failure is not None
    assert failure.status == 310
    assert words in failure.message
    assert not results


def test_a_job_cut_off_between_two_calls_is_no_success(parse: Parse) -> None:
    """The result of the first call must not pass for that of the last."""
    _, failure = parse("mimyria_wf.comparison", good({"joined": 1}), n_calls=4)
    assert failure is not None
    assert failure.status == 310


def test_the_first_error_counts(parse: Parse) -> None:
    """Calls run one after the other whatever became of those before."""
    files = {**good({"a": 1}), "stderr-0.txt": "error: first\n", "stderr-1.txt": "error: its consequence\n"}
    _, failure = parse("mimyria_wf.spectra", files, n_calls=2)
    assert failure == ExitCode(320, "first")


def test_spectra_attach_the_comparison(parse: Parse) -> None:
    results, failure = parse("mimyria_wf.spectra", good({"passed": True}, {"spectra": {}}), n_calls=2)
    assert failure is None
    assert results["summary"]["passed"] is True
    assert results["comparison"].get_dict() == {"spectra": {}}


@pytest.mark.parametrize(
    ("name", "files", "outputs"),
    [
        ("mimyria_wf.md.nvt", ["starts.extxyz"], {"starts"}),
        ("mimyria_wf.selection", ["training.extxyz", "test.extxyz"], {"training", "test"}),
        ("mimyria_wf.groups", ["resolved.yaml"], {"resolved"}),
        ("mimyria_wf.training", ["model/model.pt", "model/history.csv"], {"model", "history"}),
    ],
)
def test_files_are_attached_or_missed(name: str, files: list[str], outputs: set[str], parse: Parse) -> None:
    contents = dict.fromkeys(files, b"\x00content")
    results, failure = parse(name, {**good({}), **contents})
    assert failure is None
    assert set(results) - {"summary"} == outputs
    assert all(results[label].get_content("rb") == b"\x00content" for label in outputs)
    for missing in files:
        left = {key: value for key, value in contents.items() if key != missing}
        _, failure = parse(name, {**good({}), **left})
        assert failure is not None
        assert failure.status == 311
        assert missing in failure.message


def test_tblite_forces_become_a_node(parse: Parse, tmp_path: Path) -> None:
    class Engine:
        name, version, level_of_theory = "tblite", "0.5", LEVEL

    snapshots = [molecule("H2O"), molecule("NH3")]
    vectors = np.array([[0, 0, 0], [1e-3, 0, 0], [-1e-3, 0, 0]])
    store = FieldForcesStore(tmp_path / "field_forces.h5")
    forces = [np.random.default_rng(k).normal(size=(3, len(atoms), 3)) for k, atoms in enumerate(snapshots)]
    store.add(snapshots[0], FieldForces(vectors, forces[0]), Engine())
    store = FieldForcesStore(tmp_path / "field_forces.h5")
    content = (tmp_path / "field_forces.h5").read_bytes()
    inputs = {"level_of_theory": orm.Dict(LEVEL), "field_vectors": orm.List(vectors.tolist())}
    inputs["snapshots"] = extxyz(snapshots[:1])
    results, failure = parse("mimyria_wf.tblite.fields", {**good({}), "field_forces.h5": content}, inputs)
    assert failure is None
    key = configuration_key(snapshots[0])
    found_vectors, found = points_of([results["field_forces"]], key)
    order = [int(np.flatnonzero((found_vectors == vector).all(axis=1))[0]) for vector in vectors]
    np.testing.assert_array_equal(found[order], forces[0])
    assert results["field_forces"].base.attributes.get("level_of_theory_key") == level_of_theory_key(LEVEL)
    # another snapshot of the job failed: what is there is kept all the same
    stderr = "error: 1 of 2 snapshots of snapshots.extxyz failed; the first, snapshot 1: SCF did not converge\n"
    files = {"stdout-0.txt": "", "stderr-0.txt": stderr, "field_forces.h5": content}
    results, failure = parse("mimyria_wf.tblite.fields", files, inputs)
    assert failure is not None
    assert failure.status == 400
    assert "SCF did not converge" in failure.message
    assert len(points_of([results["field_forces"]], key)[0]) == 3
    results, failure = parse("mimyria_wf.tblite.fields", {**files, "field_forces.h5": content[:100]}, inputs)
    assert failure is not None
    assert not results


# ---------------------------------------------------------------------------------------------------- CP2K's field sets

POINTS = field_vectors(5e-4, ["apt", "pgt"])
PROJECTS = {name: "zero" if name == "0" else name.replace("+", "p").replace("-", "m") for name in POINTS}


def recorded_set(reference_data: Path) -> tuple[dict[str, str], dict[str, orm.Data]]:
    """Return outputs and forces of a whole set as CP2K left them, and the inputs of its job.

    Only two standard outputs were kept; the others differ from them by the echo of the field.
    """
    folder = reference_data / "cp2k_recorded"
    zero = (folder / "outputs" / "zero_field.out").read_text()
    mixed = (folder / "outputs" / "pxpy.out").read_text()
    files = {}
    for name, vector in POINTS.items():
        project = PROJECTS[name]
        recorded = "z" if name == "0" else project
        length = np.linalg.norm(vector)
        lines = []
        for line in mixed.splitlines():
            if line.startswith(" PERIODIC_EFIELD|"):
                head, _, _ = line.rpartition(" ")
                axis = next((k for k in range(3) if re.search(rf"\b{'xyz'[k]} *$", head)), None)
                line = f"{head} {length if axis is None else vector[axis] / (length or 1.0):.6E}"
            lines.append(line)
        files[f"s000-{project}.out"] = zero if name == "0" else "\n".join(lines)
        files[f"s000-{project}-frc.dat"] = (folder / "field_points" / f"{recorded}-frc.dat").read_text()
    atoms = ase.io.read(folder / "configuration.xyz")
    atoms.set_cell([6.2] * 3)
    atoms.set_pbc(True)
    inputs = {
        "snapshots": extxyz([atoms]),
        "field_vectors": orm.List([list(map(float, vector)) for vector in POINTS.values()]),
        "level_of_theory": orm.Dict({"engine": "cp2k", "template": "abc", "files": {}}),
    }
    return files, inputs


ABORT = """
 *******************************************************************************
 *   ___                                                                       *
 *  /   \\                                                                      *
 * [ABORT]                                                                     *
 *  \\___/          The requested basis set <NOSUCH> was not found              *
 *    |                                                                        *
 *  O/|                                                                        *
 * /| |                                                                        *
 * / \\                                          aobasis/basis_set_types.F:1509 *
 *******************************************************************************
"""


def test_a_recorded_cp2k_set_is_complete(parse: Parse, reference_data: Path) -> None:
    files, inputs = recorded_set(reference_data)
    results, failure = parse("mimyria_wf.cp2k.fields", files, inputs)
    assert failure is None
    assert results["summary"]["problems"] == []
    assert results["summary"]["n_points"] == 13
    assert results["field_forces"].get_array("forces").shape == (13, 24, 3)


def spoil(files: dict[str, str], project: str, how: str) -> None:
    """Break one point as it breaks in practice."""
    out, table = f"s000-{project}.out", f"s000-{project}-frc.dat"
    if how == "never run":
        del files[out], files[table]
    elif how == "cut off":
        files[out] = files[out][: len(files[out]) // 2]
    elif how == "no forces":
        del files[table]
    elif how == "forces cut off":
        files[table] = files[table][: len(files[table]) // 2]
    elif how == "forces not finite":
        files[table] = re.sub(r"-?\d\.\d{8,}", "NaN", files[table], count=1)
    elif how == "overflowing column":
        files[table] = re.sub(r"-?\d\.\d{8,}", "*" * 20, files[table], count=1)
    elif how == "SCF did not converge":
        files[out] = re.sub(r"SCF run converged", "SCF run NOT converged", files[out])
        files[out] = re.sub(r"outer SCF loop converged", "outer SCF loop FAILED to converge", files[out])
    elif how == "aborted":
        files[out] += ABORT
    elif how == "ran in another field":
        files[out] = re.sub(r"(Intensity \[a\.u\.\]: +)\S+", r"\g<1>1.000000E-03", files[out])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("never run", "not run"),
        ("cut off", "did not finish"),
        ("no forces", "no s000-pxpy-frc.dat"),
        ("forces cut off", ""),
        ("forces not finite", ""),
        ("overflowing column", ""),
        ("SCF did not converge", "SCF did not converge"),
        ("aborted", "NOSUCH"),
        ("ran in another field", "ran in the field"),
    ],
)
def test_one_bad_point_of_thirteen_costs_only_itself(how: str, words: str, parse: Parse, reference_data: Path) -> None:
    files, inputs = recorded_set(reference_data)
    spoil(files, "pxpy", how)
    results, failure = parse("mimyria_wf.cp2k.fields", files, inputs)
    assert failure is not None
    assert failure.status == 400
    assert "1 of 13 field points failed" in failure.message
    assert "+x+y" in failure.message
    assert words in failure.message
    node = results["field_forces"]
    kept = node.get_array("field_vectors")
    assert len(kept) == len(node.get_array("forces")) == 12
    assert not (np.abs(kept - POINTS["+x+y"]).max(axis=1) < 1e-9).any()
    assert len(results["summary"]["problems"]) == 1


def test_a_cp2k_set_without_any_point(parse: Parse, reference_data: Path) -> None:
    files, inputs = recorded_set(reference_data)
    for project in PROJECTS.values():
        spoil(files, project, "SCF did not converge" if project == "zero" else "aborted")
    results, failure = parse("mimyria_wf.cp2k.fields", files, inputs)
    assert failure is not None
    assert failure.status == 310
    assert "field_forces" not in results
    assert len(results["summary"]["problems"]) == 13
    _, failure = parse("mimyria_wf.cp2k.fields", {}, inputs)
    assert failure is not None
    assert failure.status == 310


@pytest.mark.parametrize("name", ["mimyria_wf.cp2k.nvt", "mimyria_wf.cp2k.nve"])
def test_an_aborted_cp2k_run_is_named_before_its_consequence(name: str, parse: Parse) -> None:
    files = {"nvt.out": ABORT, "stdout-0.txt": "", "stderr-0.txt": "error: nvt-pos-1.xyz does not exist\n"}
    _, failure = parse(name, files)
    assert failure is not None
    assert failure.status == 330
    assert "nvt.out" in failure.message
    assert "NOSUCH" in failure.message


# ----------------------------------------------------------------------------------------------------- nodes and labels


def test_structures_keep_charge_cell_and_boundary() -> None:
    cluster = structure_from_atoms(molecule("H2O"))
    back = atoms_from_structure(cluster, -2, 3)
    assert back.info == {"charge": -2, "multiplicity": 3}
    assert not back.pbc.any()
    assert back.cell.volume == 0
    np.testing.assert_allclose(back.positions, molecule("H2O").positions)
    triclinic = molecule("H2O", cell=[[5, 0, 0], [1, 5, 0], [1, 2, 6]], pbc=True)
    back = atoms_from_structure(structure_from_atoms(triclinic))
    np.testing.assert_allclose(back.cell.array, triclinic.cell.array)
    assert back.pbc.all()


def forces_of(apt: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return forces linear in the field: F_i = P_i E."""
    return np.einsum("iab,fb->fia", apt, vectors)


def test_labels_come_from_all_nodes_that_hold_points_of_a_snapshot(tmp_path: Path) -> None:
    """Exact tensors of linear forces, from two jobs; a snapshot that lacks points is left out and named."""
    snapshots = [molecule("H2O"), molecule("H2O", vacuum=None)]
    snapshots[1].positions += 0.1 * np.random.default_rng(0).normal(size=(3, 3))
    keys = [configuration_key(atoms) for atoms in snapshots]
    apt = np.random.default_rng(1).normal(size=(3, 3, 3))
    apt -= apt.mean(axis=0)
    vectors = np.array(list(field_vectors(1e-3, ["apt"]).values()))
    forces = forces_of(apt, vectors)
    key = level_of_theory_key(LEVEL)
    first = field_forces_node(vectors[:4], forces[:4], np.zeros(4), keys[:1], LEVEL, key).store()
    rest = np.concatenate([vectors[4:], vectors[:2]])
    second = field_forces_node(
        rest, np.concatenate([forces[4:], forces[:2]]), np.array([0, 0, 1, 1]), keys, LEVEL, key
    ).store()
    settings = orm.Dict({"targets": ["apt"], "header": {"field_step": 1e-3, "engine": "tblite"}})
    outputs = assemble_labels(extxyz(snapshots), orm.List([0, 1]), settings, a=first, b=second)
    report = outputs["report"].get_dict()
    assert report["n_labelled"] == 1
    assert [entry["index"] for entry in report["incomplete"]] == [1]
    assert "+y" in report["incomplete"][0]["reason"]
    assert report["sum_rule_residual_apt_e"] < 1e-10
    (tmp_path / "labels.extxyz").write_text(outputs["labels"].get_content())
    (labelled,) = read_labels(tmp_path / "labels.extxyz", ["apt"])
    np.testing.assert_allclose(labelled.apt, apt, atol=1e-7)  # extxyz writes 8 decimals
    assert known_field_forces(key, keys).keys() == set(keys)
    assert known_field_forces(key + "x", keys) == {}


@pytest.mark.parametrize("targets", [["apt"], ["apt", "pgt"]], ids=["apt", "both"])
def test_labels_do_not_mix_field_steps(targets: list[str], tmp_path: Path) -> None:
    """Points of another step, left by another campaign, change nothing: here they belong to another tensor."""
    atoms = molecule("H2O")
    key, level = configuration_key(atoms), level_of_theory_key(LEVEL)
    apt, other = np.random.default_rng(1).normal(size=(2, 3, 3, 3))
    nodes = {}
    for name, step, tensor in (("a_other", 5e-4, other), ("b_own", 1e-3, apt)):
        vectors = np.array(list(field_vectors(step, targets).values()))
        forces = forces_of(tensor, vectors)
        nodes[name] = field_forces_node(vectors, forces, np.zeros(len(vectors)), [key], LEVEL, level).store()
    settings = orm.Dict({"targets": targets, "header": {"field_step": 1e-3, "engine": "tblite"}})
    outputs = assemble_labels(extxyz([atoms]), orm.List([0]), settings, **nodes)
    assert outputs["report"].get_dict()["incomplete"] == []
    (tmp_path / "labels.extxyz").write_text(outputs["labels"].get_content())
    (labelled,) = read_labels(tmp_path / "labels.extxyz", targets)
    np.testing.assert_allclose(labelled.apt, apt, atol=1e-7)  # extxyz writes 8 decimals
    if targets == ["apt", "pgt"]:  # forces of a tensor without noise
        assert labelled.atoms.info["apt_error"] < 1e-10
        assert labelled.atoms.info["pgt_error"] < 1e-6


def test_tensors_that_an_engine_gave_itself_are_labels_as_they_are(tmp_path: Path) -> None:
    """Born charges of one job need no field points; a node without the tensor asked for does not count."""
    snapshots = [molecule("H2O"), molecule("H2O")]
    snapshots[1].positions += 0.1
    keys = [configuration_key(atoms) for atoms in snapshots]
    apts = np.random.default_rng(3).normal(size=(2, 3, 3, 3))
    level = {**LEVEL, "method": "lepsilon"}
    tensors = [ResponseTensors(apt, None) for apt in apts]
    node = response_tensors_node(tensors, keys, level, level_of_theory_key(level)).store()
    settings = orm.Dict({"targets": ["apt"], "header": {"engine": "vasp"}})
    outputs = assemble_labels(extxyz(snapshots), orm.List([1, 0]), settings, direct=node)
    (tmp_path / "labels.extxyz").write_text(outputs["labels"].get_content())
    for found, expected in zip(read_labels(tmp_path / "labels.extxyz", ["apt"]), apts[::-1], strict=True):
        np.testing.assert_allclose(found.apt, expected, atol=1e-7)  # extxyz writes 8 decimals
    assert known_response_tensors(level_of_theory_key(level), keys).keys() == set(keys)
    both = orm.Dict({"targets": ["apt", "pgt"], "header": {"engine": "vasp", "field_step": 1e-3}})
    report = assemble_labels(extxyz(snapshots), orm.List([0]), both, direct=node)["report"].get_dict()
    assert (report["n_labelled"], len(report["incomplete"])) == (0, 1)


def test_isotopes_survive_a_structure_node() -> None:
    atoms = molecule("H2O")
    atoms.set_masses([15.999, 2.014, 1.008])
    np.testing.assert_allclose(atoms_from_structure(structure_from_atoms(atoms)).get_masses(), [15.999, 2.014, 1.008])


def test_calcfunctions_select_and_merge() -> None:
    pool = extxyz([molecule(name) for name in ("H2O", "NH3", "CH4")])
    chosen = read_snapshots(take_snapshots(pool, orm.List([2, 0])))
    assert [atoms.get_chemical_formula() for atoms in chosen] == ["CH4", "H2O"]
    run = {"n_frames": 10, "sha256": "abc", "temperature": 300.0}
    manifest = build_manifest(
        nve_002=orm.Dict({"trajectories": [{**run, "name": "nve-002"}]}),
        nve_000=orm.Dict({"trajectories": [{**run, "name": "nve-001"}, {**run, "name": "nve-000"}]}),
    )
    files = manifest.get_dict()["files"]
    assert [(entry["name"], entry["folder"], entry["file"]) for entry in files] == [
        ("nve-000", "nve_000", "nve-000.h5"),
        ("nve-001", "nve_000", "nve-001.h5"),
        ("nve-002", "nve_002", "nve-002.h5"),
    ]
    snapshots = []
    for k in range(6):
        atoms = molecule("H2O")
        atoms.info["snapshot"] = f"nve-{k % 3:03d}/{k}"
        snapshots.append(atoms)
    parts = split_labels(extxyz(snapshots), orm.Dict({"n_training": 4, "n_test": 2, "seed": 1}))
    runs = [{atoms.info["snapshot"][:7] for atoms in read_snapshots(parts[name])} for name in ("training", "test")]
    assert not runs[0] & runs[1]
