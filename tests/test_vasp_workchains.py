"""VASP workchains through aiida-vasp, with a stand-in for the executable whose forces are known."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.io
import ase.spacegroup
import numpy as np
import pytest
import vasp_stand_in
from aiida import orm
from aiida.common.links import LinkType
from aiida.engine import run_get_node
from aiida.engine.utils import instantiate_process
from aiida.manage import get_manager
from aiida.plugins import WorkflowFactory
from aiida.tools.pytest_fixtures import *  # noqa: F403  the profile is made only where this is imported

from mimyria_wf.calculators.data import known_response_tensors, tensors_in
from mimyria_wf.calculators.vasp import gap_problem, named_vectors, vasp_engine_inputs, vasp_level_of_theory
from mimyria_wf.errors import CampaignError, EngineError
from mimyria_wf.finite_field import field_vectors, point_name, response_tensors
from mimyria_wf.labels import configuration_key, level_of_theory_key
from mimyria_wf.qualification import QualificationSettings
from mimyria_wf.tblite_engine import TbliteEngine
from mimyria_wf.units import HARTREE_PER_BOHR
from mimyria_wf.vasp_input import point_directory, render_field_set
from mimyria_wf.vasp_template import VaspTemplate

pytest.importorskip("aiida_vasp", reason="needs the extra vasp")
pytestmark = [pytest.mark.aiida]

FAMILY = "MADE-UP"
POTCAR_SECRET = "0.8123456789E+01 0.9876543210E-02"
"""Numbers as in the licensed part of a potential; they must not turn up anywhere but in aiida-vasp's own node."""
VALENCES = {"H": 1.0, "O": 6.0, "Si": 4.0}


def potcar(symbol: str, valence: float) -> str:
    """Return a made-up potential with the header lines that VASP and aiida-vasp read."""
    return f"""  PAW_PBE {symbol} 01Jan2001
   {valence}
 parameters from PSCTR are:
   VRHFIN ={symbol}: made up
   LEXCH  = PE
   EATOM  =    12.4884 eV,    0.9179 Ry

   TITEL  = PAW_PBE {symbol} 01Jan2001
   LULTRA =        F    use ultrasoft PP ?
   POMASS =    1.000; ZVAL   =    {valence:.3f}    mass and valenz
   ENMAX  =  250.000; ENMIN  =  200.000 eV
 END of PSCTR-controll parameters
 local part
 {POTCAR_SECRET} {symbol}
 End of Dataset
"""


WATER = ase.Atoms("HOH", [(3.2391, 4.7632, 3.9), (4.0, 4.12, 4.02), (4.77, 4.73, 4.11)], cell=[8.0, 8.5, 9.0], pbc=True)
"""Hydrogen, oxygen, hydrogen: not the order of a POSCAR."""
STEP = 1e-3
INCAR = "PREC = Accurate\nENCUT = 400\nEDIFF = 1E-8\nISMEAR = 0\nSIGMA = 0.05\n"


@pytest.fixture(scope="module")
def family(aiida_profile: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Upload made-up potentials as a user does."""
    from aiida_vasp.data.potcar import PotcarData

    folder = tmp_path_factory.mktemp("potentials") / FAMILY
    for symbol, valence in VALENCES.items():
        (folder / symbol).mkdir(parents=True)
        (folder / symbol / "POTCAR").write_text(potcar(symbol, valence))
    PotcarData.upload_potcar_family(folder, FAMILY, "made up", stop_if_existing=False)
    return FAMILY


@pytest.fixture
def code(aiida_localhost: orm.Computer, tmp_path: Path) -> orm.AbstractCode:
    """Return the stand-in as a code for aiida-vasp."""
    script = tmp_path / "vasp"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name('vasp_stand_in.py')}\n")
    script.chmod(0o755)
    return orm.InstalledCode(
        label="vasp",
        computer=aiida_localhost,
        filepath_executable=str(script),
        default_calc_job_plugin="vasp.vasp",
        with_mpi=False,
    ).store()


def extxyz(*snapshots: ase.Atoms) -> orm.SinglefileData:
    """Return snapshots as a file node."""
    buffer = io.StringIO()
    ase.io.write(buffer, list(snapshots), format="extxyz")
    return orm.SinglefileData(io.BytesIO(buffer.getvalue().encode()), filename="snapshots.extxyz")


def engine_inputs(family: str, incar: str = INCAR, **more: Any) -> dict[str, Any]:
    """Return the inputs of the level of theory that all tests share."""
    potentials = {"family": family, "mapping": {"H": "H", "O": "O"}}
    return vasp_engine_inputs({"incar": incar, "potentials": potentials, **more}, {"H", "O"})


def run_fields(code: orm.AbstractCode, engine: dict[str, Any], vectors: Any, *snapshots: ase.Atoms) -> Any:
    """Run a field set; return its node."""
    _, node = run_get_node(WorkflowFactory("mimyria_wf.vasp.fields"), **field_inputs(code, engine, vectors, *snapshots))
    return node


def field_inputs(code: orm.AbstractCode, engine: dict[str, Any], vectors: Any, *snapshots: ase.Atoms) -> dict[str, Any]:
    """Return the inputs of a field set."""
    return {
        "code": code,
        "snapshots": extxyz(*snapshots),
        "field_vectors": orm.List([list(map(float, vector)) for vector in vectors]),
        "level_of_theory": orm.Dict(vasp_level_of_theory(engine)),
        **engine,
    }


def forces_of_model(vectors: np.ndarray, accuracy: float = 1e-3) -> np.ndarray:
    """Return what tblite, called directly, has for the forces of the water molecule."""
    cluster = WATER.copy()
    cluster.pbc = False
    return TbliteEngine(accuracy=accuracy).forces(cluster, vectors)


def assert_no_potential_is_stored() -> None:
    """Look into every file of the profile but aiida-vasp's own."""
    from aiida_vasp.data.potcar import PotcarFileData

    n_files = 0
    for (node,) in orm.QueryBuilder().append(orm.Node).iterall():
        if isinstance(node, PotcarFileData):
            continue
        assert POTCAR_SECRET not in str(node.base.attributes.all)
        for folder, _, names in node.base.repository.walk():
            assert "POTCAR" not in names
            for name in names:
                n_files += 1
                assert POTCAR_SECRET.encode() not in node.base.repository.get_object_content(str(folder / name), "rb")
    assert n_files > 20


@pytest.mark.slow
def test_field_forces_are_those_of_the_model_behind_the_executable(family: str, code: orm.AbstractCode) -> None:
    """Through AiiDA, aiida-vasp and VASP's files; a point that does not converge is named, the others are kept."""
    engine = engine_inputs(family, INCAR + "SYSTEM = fail=unconverged@-z\nNELM = 20\n")
    node = run_fields(code, engine, STEP * np.array([[1, 0, 0], [-1, 0, 0], [0, 0, -1]]), WATER)
    assert node.exit_status == 400
    assert node.exit_message.startswith("1 of 3 points failed; the first: field point -z (mz): SCF did not converge")
    found = node.outputs.field_forces
    vectors, forces = found.get_array("field_vectors"), found.get_array("forces")
    assert [point_name(vector) for vector in vectors] == ["0", "+x", "-x"]
    # eight digits of a force in eV/A are 1e-10 E_h/a0
    known = forces_of_model(vectors)
    np.testing.assert_allclose(forces, known, atol=1e-9)
    np.testing.assert_allclose((forces[1] - forces[2]) / (2 * STEP), (known[1] - known[2]) / (2 * STEP), atol=5e-7)
    assert np.isfinite(found.get_array("dipoles")).all()
    summary = node.outputs.summary.get_dict()
    assert summary["version"] == "6.4.3"
    assert summary["gaps_eV"] == [pytest.approx(13.16, abs=0.01)]
    assert [(one["point"], one["cause"]) for one in summary["failed"]] == [("-z", "scf")]
    assert summary["retries"]["s000_mz_again"]["remedy"] == "ALGO = All, three times NELM"

    jobs = {job.label: job for job in node.called if isinstance(job, orm.CalcJobNode)}
    assert [jobs[label].exit_status for label in ("s000_mz", "s000_mz_again")] == [701, 701]
    assert jobs["s000_mz_again"].inputs.parameters["nelm"] == 60
    assert jobs["s000_px"].inputs.restart_folder.uuid == jobs["s000_zero"].outputs.remote_folder.uuid
    assert jobs["s000_px"].inputs.parameters["istart"] == 1
    # what went well is tidied up, but not what others may still start from
    assert jobs["s000_px"].outputs.remote_folder.is_cleaned
    assert not jobs["s000_zero"].outputs.remote_folder.is_cleaned
    assert_no_potential_is_stored()


@pytest.mark.slow
def test_qualified_labels_are_those_of_the_method_behind_the_executable(family: str, code: orm.AbstractCode) -> None:
    """A level of theory is tried; the labels take its points and are those of the same method called directly."""
    engine = engine_inputs(family, settings={"max_concurrent": 8})
    moved = WATER.copy()  # another configuration: points that a test before has left would be taken for this one
    moved.positions += [0.1, 0.2, -0.1]
    settings = {"engine": "vasp", "level_of_theory": vasp_level_of_theory(engine), "targets": ["apt", "pgt"]}
    settings |= {"step": STEP, "threshold": 1e-8, "snapshots_per_job": 1, "max_concurrent": 1}
    inputs = {"code": code, "snapshots": extxyz(moved), "settings": orm.Dict(settings), "engine": engine}
    screening = QualificationSettings(steps=(STEP, 2 * STEP), step=STEP, atoms=(1,), polarizability="none")
    _, tried = run_get_node(
        WorkflowFactory("mimyria_wf.qualification"), screening=orm.Dict(screening.to_dict()), **inputs
    )
    assert tried.is_finished_ok, tried.exit_message
    verdict = tried.outputs.verdict.get_dict()
    assert verdict["accepted"]
    assert verdict["spatial"]["apt"]["largest"] < 2e-3  # e; displacements of 0.01 A
    _, node = run_get_node(WorkflowFactory("mimyria_wf.labels"), indices=orm.List([0]), **inputs)
    assert node.is_finished_ok, node.exit_message
    assert not [child for child in node.called if isinstance(child, orm.WorkChainNode)]  # all points are there
    labels = ase.io.read(io.StringIO(node.outputs.labels.get_content("r")), format="extxyz")
    fields = np.array(list(field_vectors(STEP, ["apt", "pgt"]).values()))
    known = response_tensors(fields, forces_of_model(fields))
    # forces to 1e-10 E_h/a0 over the step, and over its square, and what is left of the self-consistency
    np.testing.assert_allclose(labels.arrays["apt"].reshape(3, 3, 3), known.apt, atol=5e-7)
    np.testing.assert_allclose(labels.arrays["pgt"].reshape(3, 3, 3, 3), known.pgt, atol=1e-3)
    field_sets = [child for child in tried.called if isinstance(child, orm.WorkChainNode)]
    jobs = [job for one in field_sets for job in one.called if isinstance(job, orm.CalcJobNode)]
    # two steps of 12 points and six points (h, -h, 0), each set with a run without field to start from; displacements
    assert len(jobs) == 2 * (1 + 12) + (1 + 6) + 6
    assert all(job.outputs.remote_folder.is_cleaned for job in jobs)


@pytest.fixture(scope="module")
def quartz() -> ase.Atoms:
    """Return a distorted alpha-quartz, its atoms in disorder."""
    crystal = ase.spacegroup.crystal(
        ["Si", "O"],
        [(0.4697, 0, 0), (0.4135, 0.2669, 0.1191)],
        spacegroup=152,
        cellpar=[4.913, 4.913, 5.405, 90, 90, 120],
    )
    atoms = crystal[[3, 0, 4, 5, 1, 6, 7, 2, 8]]
    atoms.positions += np.random.default_rng(3).normal(scale=0.04, size=(9, 3))
    # as many digits as extxyz has
    return ase.Atoms(atoms.numbers, atoms.positions.round(8), cell=atoms.cell, pbc=True)


def quartz_engine(family: str, method: str) -> dict[str, Any]:
    """Return the inputs of a crystal of bonds, whose answer to a field is known to round-off."""
    settings = {
        "incar": INCAR + "SYSTEM = model=bonds\n",
        "kpoints": {"spacing_per_A": 0.9},
        "potentials": {"family": family, "mapping": {"Si": "Si", "O": "O"}},
        "method": method,
        "settings": {"max_concurrent": 8},
    }
    return vasp_engine_inputs(settings, {"Si", "O"})


def stand_in_crystal(atoms: ase.Atoms) -> Callable[[np.ndarray], np.ndarray]:
    """Return the forces [E_h/a0] of the crystal of bonds in a field [E_h/(e a0)]."""
    model = vasp_stand_in.BondModel(atoms, 48, 8.0)
    return lambda vector: model.state(vector * HARTREE_PER_BOHR).forces / HARTREE_PER_BOHR


@pytest.mark.slow
def test_lcalceps_gives_field_points_of_a_crystal_and_of_the_crystal_turned(
    family: str, code: orm.AbstractCode, quartz: ase.Atoms
) -> None:
    vectors = STEP * np.array([[1, 0, 0], [-1, 0, 0], [1, 1, 0], [-1, -1, 0]])
    node = run_fields(code, quartz_engine(family, "lcalceps"), vectors, quartz)
    assert node.is_finished_ok, node.exit_message
    found = node.outputs.field_forces
    known = stand_in_crystal(quartz)
    np.testing.assert_allclose(found.get_array("field_vectors"), np.vstack([np.zeros(3), vectors]))
    for vector, forces in zip(found.get_array("field_vectors"), found.get_array("forces"), strict=True):
        np.testing.assert_allclose(forces, known(vector), atol=1e-9)
    jobs = {job.label: job for job in node.called if isinstance(job, orm.CalcJobNode)}
    assert sorted(jobs) == [
        "s000_lcalceps_m",
        "s000_lcalceps_mxmy",
        "s000_lcalceps_p",
        "s000_lcalceps_pxpy",
        "s000_zero",
    ]
    assert jobs["s000_zero"].inputs.kpoints.get_kpoints_mesh()[0] == [2, 2, 2]
    # wavefunctions are of no use to a turned crystal
    assert "restart_folder" in jobs["s000_lcalceps_p"].inputs
    assert "restart_folder" not in jobs["s000_lcalceps_pxpy"].inputs
    assert all(job.outputs.remote_folder.is_cleaned for job in jobs.values())


@pytest.mark.slow
def test_lepsilon_gives_all_polar_tensors_and_the_dielectric_tensor_in_one_job(
    family: str, code: orm.AbstractCode, quartz: ase.Atoms
) -> None:
    engine = quartz_engine(family, "lepsilon")
    level = vasp_level_of_theory(engine)
    settings = {"engine": "vasp", "level_of_theory": level, "targets": ["apt"], "step": STEP, "route": "tensors"}

    def label() -> Any:
        inputs = {"code": code, "snapshots": extxyz(quartz), "indices": orm.List([0]), "engine": engine}
        inputs["settings"] = orm.Dict({**settings, "snapshots_per_job": 1, "max_concurrent": 1})
        _, node = run_get_node(WorkflowFactory("mimyria_wf.labels"), **inputs)
        assert node.is_finished_ok, node.exit_message
        return node

    labels = label()
    (node,) = (child for child in labels.called if isinstance(child, orm.WorkChainNode))
    key, configuration = level_of_theory_key(level), configuration_key(quartz)
    (found,) = known_response_tensors(key, [configuration])[configuration]
    assert found.uuid == node.outputs.response_tensors.uuid
    known = stand_in_crystal(quartz)
    apt = np.stack([(known(0.01 * e) - known(-0.01 * e)) / 0.02 for e in np.eye(3)], axis=-1)
    # VASP spreads the residual of the sum rule; it prints eight decimals
    np.testing.assert_allclose(tensors_in(found, configuration).apt, apt - apt.mean(axis=0), atol=1e-7)
    labelled = ase.io.read(io.StringIO(labels.outputs.labels.get_content("r")), format="extxyz")
    np.testing.assert_allclose(labelled.arrays["apt"].reshape(9, 3, 3), apt - apt.mean(axis=0), atol=1e-7)
    dielectric = found.get_array("dielectric_0")
    assert np.linalg.eigvalsh(0.5 * (dielectric + dielectric.T)).min() > 1
    assert found.base.attributes.get("level_of_theory")["version"] == "6.4.3"
    assert [job.label for job in node.called if isinstance(job, orm.CalcJobNode)] == ["s000_lepsilon"]
    assert not [child for child in label().called if isinstance(child, orm.WorkChainNode)]  # known the second time


# ------------------------------------------------------------------------------------- failures, on runs that are ended


@pytest.fixture(scope="module")
def run_stand_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that runs the executable in a field and returns the folder."""

    def run(vector: np.ndarray, words: str = "") -> Path:
        potentials = tmp_path_factory.mktemp("potentials")
        for symbol, valence in VALENCES.items():
            (potentials / f"POTCAR.{symbol}").write_text(potcar(symbol, valence))
        template = VaspTemplate.from_settings(INCAR + f"SYSTEM = {words}\n", potentials=potentials)
        name = point_name(vector)
        (folder,) = (tmp_path_factory.mktemp("run"),)
        for file, text in render_field_set(template, WATER, {name: vector})[point_directory(name)].items():
            (folder / file).write_text(text)
        stand_in = Path(__file__).with_name("vasp_stand_in.py")
        subprocess.run([sys.executable, stand_in], cwd=folder, capture_output=True, timeout=120, check=False)
        (folder / "POTCAR").unlink()
        return folder

    return run


@pytest.fixture(scope="module")
def zero_field_run(run_stand_in: Callable[..., Path]) -> Path:
    """Return the folder of the run without a field."""
    return run_stand_in(np.zeros(3))


def ended(code: orm.AbstractCode, folder: Path | None, status: int) -> orm.CalcJobNode:
    """Return the node of a run of VASP that is ended."""
    node = orm.CalcJobNode(computer=code.computer, process_type="aiida.calculations:vasp.vasp")
    node.set_option("resources", {"num_machines": 1, "num_mpiprocs_per_machine": 1})
    node.set_process_state("finished")
    node.set_exit_status(status)
    node.set_exit_message("The time was over." if status == 120 else "What aiida-vasp says.")
    node.store()
    if folder is not None:
        files = orm.FolderData(tree=folder)
        files.base.links.add_incoming(node, LinkType.CREATE, "retrieved")
        files.store()
    remote = orm.RemoteData(computer=code.computer, remote_path="/nowhere")
    remote.base.links.add_incoming(node, LinkType.CREATE, "remote_folder")
    remote.store()
    return node


def field_set(code: orm.AbstractCode, family: str, vectors: Any, incar: str = INCAR) -> Any:
    """Return a workchain that has its structures and waits for runs; nothing is tidied up."""
    engine = engine_inputs(family, incar, settings={"clean_workdir": False})
    inputs = field_inputs(code, engine, vectors, WATER)
    process = instantiate_process(get_manager().get_runner(), WorkflowFactory("mimyria_wf.vasp.fields"), **inputs)
    process.prepare()
    process.queue_zero_field()
    return process


@pytest.mark.parametrize(
    ("words", "status", "cause", "message"),
    [
        ("fail=unconverged", 701, "scf", "SCF did not converge"),
        ("fail=truncated", 0, "truncated", "vasprun.xml ends early"),  # aiida-vasp takes it for success
        ("fail=no-vasprun", 352, "missing", "no vasprun.xml"),
        ("fail=killed", 700, "truncated", "VASP did not finish"),
        ("fail=crash", 352, "missing", "neither OUTCAR nor vasprun.xml"),
        ("fail=ignores-field", 0, "field", "ran in the field EFIELD_PEAD = [0.0, 0.0, 0.0], expected [0.05142"),
        ("model=GFN2-xTB", 703, "aborted", "What aiida-vasp says."),  # the files look sound, but aiida-vasp complains
        ("", 120, "walltime", "The time was over."),
        ("", 110, "memory", "What aiida-vasp says."),
    ],
)
def test_each_failure_of_a_point_is_named_and_the_others_are_kept(
    family: str,
    code: orm.AbstractCode,
    run_stand_in: Callable[..., Path],
    zero_field_run: Path,
    words: str,
    status: int,
    cause: str,
    message: str,
) -> None:
    vectors = STEP * np.array([[0, 0, 0], [1, 0, 0]])
    process = field_set(code, family, vectors)
    process.ctx["s000_zero"] = ended(code, zero_field_run, 0)
    process.queue_fields()
    assert process.ctx.runs == ["s000_zero", "s000_px"]
    process.ctx["s000_px"] = ended(code, run_stand_in(vectors[1], words) if words else None, status)
    result = process.collect()
    assert result.status == 400
    assert result.message.startswith("1 of 2 points failed; the first: ")
    assert message in result.message
    assert "\n" not in result.message
    summary = process.outputs["summary"].get_dict()
    assert [(one["point"], one["cause"]) for one in summary["failed"]] == [("+x", cause)]
    assert process.outputs["field_forces"].get_array("field_vectors").tolist() == [[0, 0, 0]]


def test_nothing_usable_is_a_failure_of_the_whole(family: str, code: orm.AbstractCode) -> None:
    process = field_set(code, family, STEP * np.eye(3))
    process.ctx["s000_zero"] = ended(code, None, 120)
    process.queue_fields()
    assert process.ctx.runs == ["s000_zero"]  # nothing is submitted that would start from it
    result = process.collect()
    assert (result.status, result.message) == (310, "No run gave usable results: The time was over.")
    assert "field_forces" not in process.outputs


def test_field_too_strong_for_the_gap_is_refused_before_it_is_submitted(
    family: str, code: orm.AbstractCode, zero_field_run: Path
) -> None:
    """13.2 eV over 9 A allow 2.8e-2 E_h/(e a0); VASP's warning at a tenth of that is none of ours."""
    process = field_set(code, family, 4e-2 * np.array([[1, 0, 0], [0, 0, 1]]))
    process.ctx["s000_zero"] = ended(code, zero_field_run, 0)
    process.queue_fields()
    assert process.ctx.runs == ["s000_zero"]
    result = process.collect()
    assert result.status == 320
    assert "e|E.a_1| = 16.5 eV, E_gap/(1 N_1) = 13.2 eV" in result.message
    assert "E_gap = 13.2 eV; cell 8 x 8.5 x 9 A, k-points 1 x 1 x 1: the step may be 0.028" in result.message
    # the forces without a field are sound, a weaker field can start from them
    assert process.outputs["field_forces"].get_array("field_vectors").tolist() == [[0, 0, 0]]


def test_field_beyond_the_warning_is_sound() -> None:
    """C60: 0.1 eV/A over 14.1 A at a gap of 1.64 eV is 8.5 times VASP's limit, and its activities come out right."""
    atoms = ase.Atoms("C", cell=14.1 * np.eye(3), pbc=True)
    fields = np.array([[0.1, 0, 0]]) / HARTREE_PER_BOHR
    assert gap_problem(atoms, (1, 1, 1), fields, 1.64) == (0, "")
    assert gap_problem(atoms, (1, 1, 1), 1.2 * fields, 1.64)[0] == 320


def test_two_lengths_of_a_field_in_one_job() -> None:
    with pytest.raises(EngineError, match=r"the field \+x comes in two lengths"):
        named_vectors([[STEP, 0, 0], [2 * STEP, 0, 0]])
    assert list(named_vectors([[0, 0, 0], [STEP, 0, 0], [0, 0, 0]])) == ["0", "+x"]


def test_metal_is_refused_before_a_field_is_submitted(
    family: str, code: orm.AbstractCode, run_stand_in: Callable[..., Path]
) -> None:
    process = field_set(code, family, STEP * np.eye(3))
    process.ctx["s000_zero"] = ended(code, run_stand_in(np.zeros(3), "fail=metal"), 0)
    process.queue_fields()
    assert process.ctx.runs == ["s000_zero"]
    result = process.collect()
    assert result.status == 321
    assert "has no gap" in result.message


# ---------------------------------------------------------------------------------------------------- before submission


def test_what_cannot_work_is_refused_before_anything_is_submitted(family: str, code: orm.AbstractCode) -> None:
    """By the settings, and again by the process itself for those who do without the settings."""
    potentials = {"family": family, "mapping": {"H": "H", "O": "O"}}
    for settings, message in [
        ({"potentials": {**potentials, "mapping": {"O": "O"}}}, "says nothing of H"),
        (
            {"potentials": {**potentials, "mapping": {"O": "H", "H": "H"}}},
            "gives O the potential 'H', which is one of H",
        ),
        ({"potentials": {**potentials, "mapping": {"O": "O_s", "H": "H"}}}, "no potential 'O_s' (for O it has: O)"),
        ({"potentials": {**potentials, "family": "PBE.99"}}, "no potential family 'PBE.99' (there are: MADE-UP)"),
        ({"potentials": potentials, "incars": 1}, "vasp has no setting 'incars'"),
        ({"potentials": potentials, "method": "dfpt"}, "method must be one of finite-field, lepsilon, lcalceps"),
        ({"potentials": potentials, "kpoints": {"mesh": [0, 1, 1]}}, "kpoints"),
    ]:
        with pytest.raises(CampaignError, match=re.escape(message)):
            vasp_engine_inputs({"incar": INCAR, **settings}, {"H", "O"})
    charged, cluster = WATER.copy(), WATER.copy()
    charged.info["charge"] = 1
    cluster.pbc = False
    for incar, atoms, message in [
        (INCAR + "EFIELD_PEAD = 0.01 0 0", WATER, "remove EFIELD_PEAD"),
        (INCAR + "NELECT = 9", WATER, "NELECT = 9 makes the charge -1, the snapshot has +0"),
        (INCAR, charged, "cannot have multiplicity 1"),
        (INCAR, cluster, "put a molecule into a box"),
        (INCAR.replace("ISMEAR = 0", "ISMEAR = 1"), WATER, "ISMEAR = 1 is for metals"),
    ]:
        inputs = field_inputs(code, engine_inputs(family, incar), [[STEP, 0, 0]], atoms)
        with pytest.raises(ValueError, match=re.escape(message)):
            instantiate_process(get_manager().get_runner(), WorkflowFactory("mimyria_wf.vasp.fields"), **inputs)


def test_level_of_theory_is_what_decides_the_forces(family: str) -> None:
    level = vasp_level_of_theory(engine_inputs(family))
    assert vasp_level_of_theory(engine_inputs(family, INCAR + "NCORE = 4\nALGO = All\nSYSTEM = x\n")) == level
    assert vasp_level_of_theory(engine_inputs(family, INCAR.replace("400", "500"))) != level
    assert vasp_level_of_theory(engine_inputs(family, kpoints={"mesh": [2, 1, 1]})) != level
    assert vasp_level_of_theory(engine_inputs(family, method="lepsilon")) != level
    assert level["potentials"]["H"]["title"] == "PAW_PBE H 01Jan2001"


def test_package_works_without_aiida_vasp_and_says_how_to_get_it() -> None:
    code = (
        "import sys\n"
        "sys.modules['aiida_vasp'] = None\n"  # as if it were not installed
        "import mimyria_wf.workchains.vasp as workchains, mimyria_wf.calculators.vasp as calculators\n"
        "workchains.VaspFieldSetWorkChain.spec(), workchains.VaspTensorsWorkChain.spec()\n"
        "settings = {'incar': 'ISMEAR = 0', 'potentials': {'family': 'PBE', 'mapping': {'H': 'H'}}}\n"
        "try:\n"
        "    calculators.vasp_engine_inputs(settings, ['H'])\n"
        "except calculators.EngineError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "engine vasp needs aiida-vasp: pip install 'mimyria_wf[vasp]'\n", done.stderr
