"""Qualifications through AiiDA: points that labels share, verdicts, and campaigns that stop before they spend."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from aiida.plugins import WorkflowFactory
from aiida.tools.pytest_fixtures import *  # noqa: F403  the profile is made only where this is imported
from ase.build import molecule
from test_workchains import CONSOLE, DIMER, SHORT, Home, sampling

import mimyria_wf
from mimyria_wf.calculators.cp2k import template_level_of_theory
from mimyria_wf.calculators.data import field_forces_node
from mimyria_wf.calculators.qualification import KnownPoints
from mimyria_wf.finite_field import point_name
from mimyria_wf.labels import configuration_key
from mimyria_wf.qualification import QualificationSettings, Task, plan
from mimyria_wf.workchains.qualification import parts

pytestmark = [pytest.mark.aiida, pytest.mark.slow]
STEP = 1e-3
CP2K = os.environ.get("CP2K_EXECUTABLE") or shutil.which("cp2k.psmp") or shutil.which("cp2k")


@pytest.fixture
def trial(aiida_code_installed: Callable[..., orm.AbstractCode]) -> Callable[..., orm.WorkChainNode]:
    """Return a function that runs a qualification of tblite on a water dimer."""
    code = aiida_code_installed(label="mimyria-wf", filepath_executable=CONSOLE)

    def run(accuracy: float, step: float = STEP, seed: int = 1, **screening: Any) -> orm.WorkChainNode:
        level = {"engine": "tblite", "method": "GFN2-xTB", "accuracy": accuracy}
        settings = {"engine": "tblite", "level_of_theory": level, "step": step, "threshold": accuracy * 2e-5}
        settings |= {"targets": ["apt", "pgt"], "snapshots_per_job": 20, "max_concurrent": 2}
        values = {"steps": (step, 2 * step), "step": step, "polarizability": "none", **screening}
        inputs = {
            "code": code,
            "snapshots": snapshots_node(seed),
            "settings": orm.Dict(settings),
            "screening": orm.Dict(QualificationSettings(**values).to_dict()),
        }
        _, node = run_get_node(WorkflowFactory("mimyria_wf.qualification"), **inputs)
        return node

    return run


def snapshots_node(seed: int = 1) -> orm.SinglefileData:
    """Return the dimer, bent a little, as a file node."""
    atoms = DIMER.copy()
    atoms.positions += np.random.default_rng(seed).normal(scale=0.03, size=(6, 3))
    atoms.info |= {"charge": 0, "multiplicity": 1, "snapshot": "nve-000/0"}
    buffer = io.StringIO()
    ase.io.write(buffer, atoms, format="extxyz")
    return orm.SinglefileData(io.BytesIO(buffer.getvalue().encode()), filename="snapshots.extxyz")


def jobs_of(node: orm.WorkChainNode) -> list[orm.CalcJobNode]:
    """Return the jobs that a workchain ran."""
    return [child for child in node.called if isinstance(child, orm.CalcJobNode)]


def n_points(node: orm.WorkChainNode) -> int:
    """Return how many field points a workchain computed."""
    total = 0
    for job in jobs_of(node):
        text = job.inputs.snapshots.get_content("r")
        n_snapshots = sum(1 for _ in ase.io.iread(io.StringIO(text), index=":", format="extxyz"))
        total += len(job.inputs.field_vectors.get_list()) * n_snapshots
    return total


def test_sound_settings_are_accepted_and_their_points_serve_the_labels(
    trial: Callable[..., orm.WorkChainNode], tmp_path: Path
) -> None:
    node = trial(1e-3, atoms=(0,))
    assert node.is_finished_ok, node.exit_message
    verdict = node.outputs.verdict.get_dict()
    assert verdict["accepted"]
    assert verdict["objections"] == []
    assert verdict["job_problems"] == []
    apt = verdict["spatial"]["apt"]
    assert apt["largest"] < 1e-3  # e; displacements of 0.01 A against steps of 1e-3 a.u.
    names = node.outputs.figures.base.repository.list_object_names()
    assert names
    assert all(name.endswith((".png", ".pdf")) for name in names)
    # two steps of 12 points share one without field, six points (h, -h, 0), and six displacements without field
    assert n_points(node) == 1 + 2 * 12 + 6 + 6

    again = trial(1e-3, atoms=(0,))
    assert again.is_finished_ok
    assert jobs_of(again) == []  # all points are in the database
    assert again.outputs.verdict.get_dict()["apt_error"] == verdict["apt_error"]

    settings = {**node.inputs.settings.get_dict()}
    inputs = {"code": node.inputs.code, "snapshots": snapshots_node(), "indices": orm.List([0])}
    _, labels = run_get_node(WorkflowFactory("mimyria_wf.labels"), settings=orm.Dict(settings), **inputs)
    assert labels.is_finished_ok
    assert jobs_of(labels) == []
    assert labels.outputs.report["n_labelled"] == 1


def test_thresholds_are_screened_each_at_its_own_level_of_theory(trial: Callable[..., orm.WorkChainNode]) -> None:
    node = trial(5e-2, seed=2, thresholds=(2e-5, 1e-6, 2e-8))
    assert node.is_finished_ok, node.exit_message
    verdict = node.outputs.verdict.get_dict()
    assert verdict["line"] in [log.message.split("]: ")[-1] for log in orm.Log.collection.get_logs_for(node)]
    accuracies = {job.inputs.level_of_theory["accuracy"] for job in jobs_of(node)}
    assert sorted(accuracies) == pytest.approx([1e-3, 5e-2, 1.0])
    assert 5e-2 in accuracies  # that of the labels is the very level of theory that they have
    errors = {one["threshold"]: one["pgt"]["error"] for one in verdict["screened"] if one["step"] == STEP}
    assert errors[2e-8] < errors[2e-5]


def test_a_step_that_is_too_large_is_refused_with_its_reason(trial: Callable[..., orm.WorkChainNode]) -> None:
    node = trial(1e-3, step=0.02)
    assert node.exit_status == 440
    assert node.exit_message.startswith("The level of theory is not fit for labels: ")
    verdict = node.outputs.verdict.get_dict()
    assert not verdict["accepted"]
    assert verdict["reasons"][0] in node.exit_message
    assert any("PGT" in line for line in verdict["objections"])
    assert node.outputs.figures.base.repository.list_object_names()


def test_no_job_has_one_direction_twice() -> None:
    """CP2K and VASP name their runs by direction: two steps in one job would be one."""
    atoms = DIMER.copy()
    (task,) = plan([atoms], QualificationSettings(steps=(STEP, 2 * STEP, 4 * STEP), step=STEP))
    for limit in (7, 13, 260):
        lists = parts(task.vectors, limit)
        assert sorted(map(tuple, np.concatenate(lists))) == sorted(map(tuple, task.vectors))
        for one in lists:
            assert len(one) <= limit
            assert len({point_name(vector) for vector in one}) == len(one)


def test_points_without_dipoles_do_not_serve_displacements(aiida_profile: object) -> None:
    """Forces at a point are known from any node; a dipole only from one that holds it."""
    atoms = DIMER.copy()
    atoms.info |= {"charge": 0, "multiplicity": 1}
    screening = QualificationSettings(steps=(STEP, 2 * STEP), step=STEP, targets=("apt",), atoms=(0,))
    forces_task, displaced_task = plan([atoms], screening)[:2]
    assert (forces_task.kind, displaced_task.kind) == ("forces", "dipoles")
    rng = np.random.default_rng(0)

    def node_of(task: Task, **more: Any) -> orm.ArrayData:
        forces = rng.normal(size=(len(task.vectors), len(atoms), 3))
        key = configuration_key(task.atoms)
        return field_forces_node(task.vectors, forces, np.zeros(len(forces), dtype=int), [key], {}, "key", **more)

    plain = node_of(forces_task)
    known = KnownPoints([plain], forces_task.atoms)
    assert len(known.missing(forces_task)) == 0
    result = known.result(forces_task)
    assert np.array_equal(result.forces, plain.get_array("forces"))
    assert (result.dipoles, result.dipole_quanta, result.gaps, result.problems) == (None, None, None, ())

    bare = node_of(displaced_task)
    known = KnownPoints([bare], displaced_task.atoms)
    assert np.array_equal(known.missing(displaced_task), displaced_task.vectors)
    assert len(known.result(displaced_task).problems) == len(displaced_task.vectors)
    dipoles = rng.normal(size=(len(displaced_task.vectors), 3))
    full = node_of(displaced_task, dipoles=dipoles, dipole_quanta=np.eye(3)[None], gaps=[7.5])
    for nodes in ([bare, full], [full, bare]):
        known = KnownPoints(nodes, displaced_task.atoms)
        assert len(known.missing(displaced_task)) == 0
        result = known.result(displaced_task)
        assert np.array_equal(result.dipoles, dipoles)
        assert np.array_equal(result.dipole_quanta, np.eye(3))
        assert result.gaps is not None
        assert result.gaps[0] == 7.5
    assert len(KnownPoints([full], atoms).missing(displaced_task)) == len(
        displaced_task.vectors
    )  # not this configuration


@pytest.mark.cp2k
@pytest.mark.skipif(CP2K is None, reason="no cp2k.psmp in PATH or CP2K_EXECUTABLE")
def test_cp2k_field_and_spatial_apt_agree(aiida_code_installed: Callable[..., orm.AbstractCode]) -> None:
    """One periodic H2O, PBE/SZV: the APT of its oxygen from forces in fields and from Berry-phase dipoles."""
    environment = "export OMP_NUM_THREADS=1"
    code = aiida_code_installed(label="cp2k", filepath_executable=str(CP2K), with_mpi=False, prepend_text=environment)
    text = (Path(mimyria_wf.__file__).parent / "templates" / "cp2k" / "water_pbe_szv.inp").read_text()
    template = text.replace("CUTOFF 300", "CUTOFF 200", 1)
    atoms = molecule("H2O", cell=[6.0, 6.0, 6.0], pbc=True)
    atoms.positions += [2.9, 3.1, 3.0]
    atoms.info |= {"charge": 0, "multiplicity": 1}
    buffer = io.StringIO()
    ase.io.write(buffer, atoms, format="extxyz")
    settings = {"engine": "cp2k", "level_of_theory": template_level_of_theory(template, {}), "targets": ["apt"]}
    settings |= {"step": 5e-4, "threshold": 1e-8, "snapshots_per_job": 1, "max_concurrent": 1}
    screening = QualificationSettings(steps=(5e-4, 1e-3), step=5e-4, targets=("apt",), atoms=(0,))
    inputs = {
        "code": code,
        "snapshots": orm.SinglefileData(io.BytesIO(buffer.getvalue().encode()), filename="snapshots.extxyz"),
        "settings": orm.Dict(settings),
        "screening": orm.Dict(screening.to_dict()),
        "template": orm.SinglefileData(io.BytesIO(template.encode()), filename="water.inp"),
    }
    _, node = run_get_node(WorkflowFactory("mimyria_wf.qualification"), **inputs)
    assert node.is_finished_ok, node.exit_message
    verdict = node.outputs.verdict.get_dict()
    assert verdict["accepted"]
    assert verdict["spatial"]["apt"]["largest"] < 1e-3  # e; grid and displacement leave some 1e-4
    assert 3 < verdict["gap"] < 20  # eV; 13.3 of a molecule with few functions
    assert n_points(node) == 1 + 2 * 6 + 6


# ------------------------------------------------------------------------------------------------------------ campaigns


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Give a folder with a fresh profile."""
    made = Home(tmp_path_factory.mktemp("qualified"))
    made.json("setup")
    yield made
    made.end()


def test_a_campaign_whose_labels_do_not_qualify_spends_nothing_on_them(home: Home) -> None:
    path = home.write(
        "refused",
        sampling=sampling(1),
        labels={"engine": "tblite", "field_step_au": 8e-3},
        qualification={"atoms": [], "field_steps_au": [1e-3, 2e-3], "tolerances": {"apt": 1e-3, "pgt": 5e-4}},
        training={"sizes": [2], "test_size": 2, "overrides": SHORT},
        convergence={"minimum_iterations": 1},
    )
    code, _, err = home.call("run", path)
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "The labels do not qualify: APT: error" in errors[0]  # 8e-3 is too large a step; 2e-3 would do
    (campaign,) = home.campaigns("refused")
    assert campaign["exit_status"] == 437
    assert {job["process_label"] for job in home.jobs()} == {"TbliteFieldSetCalculation"}  # no MD, no training

    status = home.json("status", "refused")
    assert status["qualification"]["accepted"]
    assert status["qualification"]["step"] == 2e-3
    assert status["qualification"]["objections"]
    report = home.json("report", "refused", "-o", home.folder / "refused_report")
    assert any(name.startswith("qualification/") and name.endswith(".png") for name in report["files"])
    summary = json.loads((home.folder / "refused_report" / "summary.json").read_text())
    assert summary["qualification"]["objections"] == status["qualification"]["objections"]

    n_jobs = len(home.jobs())
    code, _, err = home.call("run", path)  # once more: the verdict is there
    assert code == 1
    assert "its finished parts are reused" in err
    assert "The labels do not qualify: APT: error" in err
    assert len(home.jobs()) == n_jobs
    chains = [one for one in home.processes() if one.get("process_label") == "QualificationWorkChain"]
    assert len(chains) == 1
