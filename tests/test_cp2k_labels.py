"""Labels by real CP2K through AiiDA: what fails is tried again with a change that fits, and what is sound is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
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

from mimyria_wf.calculators.cp2k import template_level_of_theory
from mimyria_wf.calculators.data import field_forces_node
from mimyria_wf.finite_field import field_vectors
from mimyria_wf.labels import configuration_key, level_of_theory_key, read_labels

CP2K = os.environ.get("CP2K_EXECUTABLE") or shutil.which("cp2k.psmp") or shutil.which("cp2k")
pytestmark = [
    pytest.mark.aiida,
    pytest.mark.slow,
    pytest.mark.cp2k,
    pytest.mark.skipif(CP2K is None, reason="no cp2k.psmp in PATH or CP2K_EXECUTABLE"),
]

XTB = """
GLOBAL: {WALLTIME: SECONDS}
FORCE_EVAL:
  METHOD: Quickstep
  DFT:
    POISSON: {PERIODIC: NONE, PSOLVER: MT}
    QS:
      METHOD: XTB
      EPS_DEFAULT: 1e-14
      XTB: {DO_EWALD: F, CHECK_ATOMIC_CHARGES: F}
    SCF:
      EPS_SCF: 1e-9
      SCF_GUESS: MOPAC
      MAX_SCF: CYCLES
      OT: {PRECONDITIONER: FULL_SINGLE_INVERSE, MINIMIZER: DIIS}
"""


def water(shift: float = 0.0) -> ase.Atoms:
    atoms = molecule("H2O")
    atoms.set_cell([10.0, 10.0, 10.0])
    atoms.positions[1, 0] += shift
    atoms.info["charge"] = 0
    return atoms


@pytest.fixture
def label(aiida_code_installed: Callable[..., orm.AbstractCode], tmp_path: Path) -> Callable[..., orm.WorkChainNode]:
    """Return a function that labels snapshots with CP2K."""
    code = aiida_code_installed(
        label="cp2k", filepath_executable=str(CP2K), with_mpi=False, prepend_text="export OMP_NUM_THREADS=1"
    )

    def run(template: str, snapshots: list[ase.Atoms], level: dict[str, Any], **settings: Any) -> orm.WorkChainNode:
        ase.io.write(tmp_path / "pool.extxyz", snapshots)
        (tmp_path / "template.yaml").write_text(template)
        settings = {"snapshots_per_job": 5, "max_concurrent": 1, **settings}
        settings |= {"engine": "cp2k", "level_of_theory": level, "targets": ["apt"], "step": 1e-3}
        inputs = {
            "code": code,
            "snapshots": orm.SinglefileData(tmp_path / "pool.extxyz"),
            "indices": orm.List(list(range(len(snapshots)))),
            "settings": orm.Dict(settings),
            "template": orm.SinglefileData(tmp_path / "template.yaml"),
        }
        _, node = run_get_node(WorkflowFactory("mimyria_wf.labels"), **inputs)
        return node

    return run


def jobs(node: orm.WorkChainNode) -> list[orm.CalcJobNode]:
    return sorted((child for child in node.called if isinstance(child, orm.CalcJobNode)), key=lambda job: job.pk)


def said(node: orm.WorkChainNode) -> str:
    return " ".join(log.message for log in orm.Log.collection.get_logs_for(node) if log.levelname == "REPORT")


def test_time_and_scf_trouble_are_mended_one_after_the_other(
    label: Callable[..., orm.WorkChainNode], tmp_path: Path
) -> None:
    """First the time is over before one SCF step, then two SCF steps do not suffice; the labels are the converged."""
    hard, soft = (
        XTB.replace("SECONDS", time).replace("CYCLES", steps) for time, steps in (("0.001", "2"), ("3600", "100"))
    )
    level = template_level_of_theory(hard, {})
    node = label(hard, [water()], level, limits={"max_wallclock_seconds": 600})
    assert node.is_finished_ok, node.exit_message
    causes = [{one["cause"] for one in job.outputs.summary["failed"]} for job in jobs(node)]
    assert causes == [{"walltime"}, {"scf"}, set()]
    assert [job.label for job in jobs(node)] == ["fields_00000", "fields_00000_again", "fields_00000_round3"]
    assert "GLOBAL/WALLTIME 600 s" in said(node)
    assert "unconverged SCF: more robust settings (step 1 of 2)" in said(node)
    assert len(node.outputs.report["remedies"]) == 2
    assert node.outputs.report["failures"] == []
    version = jobs(node)[2].outputs.summary["version"]
    assert node.outputs.report["versions"] == {f"{version}, SCF settings 1": 1}
    assert "reuse" not in said(node)
    ordinary = label(soft, [water()], template_level_of_theory(soft, {}))
    assert len(jobs(ordinary)) == 1
    found = []
    for one in (node, ordinary):
        (tmp_path / "labels.extxyz").write_text(one.outputs.labels.get_content("r"))
        (labelled,) = read_labels(tmp_path / "labels.extxyz", ["apt"])
        found.append(labelled.apt)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)  # one minimum, EPS_SCF 1e-9


def test_what_cannot_be_mended_keeps_its_cause(label: Callable[..., orm.WorkChainNode]) -> None:
    """No time may be added: the points are not tried again, and the line says why."""
    template = XTB.replace("SECONDS", "0.001").replace("CYCLES", "100")
    node = label(template, [water()], template_level_of_theory(template, {}))
    assert node.exit_status == 410
    assert "6 x walltime in 1 round;" in node.exit_message
    assert "CP2K stopped because its time was over" in node.exit_message
    assert len(jobs(node)) == 1


def test_points_of_another_version_are_not_combined_with_new_ones(label: Callable[..., orm.WorkChainNode]) -> None:
    """A complete set of an older version is reused, and that is said; a part of one is computed again."""
    template = XTB.replace("SECONDS", "3600").replace("CYCLES", "100")
    level = template_level_of_theory(template, {}) | {"note": "versions"}
    key = level_of_theory_key(level)
    vectors = np.array(list(field_vectors(1e-3, ["apt"]).values()))
    for shift, n_points in ((0.0, 6), (0.01, 4)):
        forces = np.random.default_rng(0).normal(size=(n_points, 3, 3))
        old = {**level, "version": "8.2"}
        atoms = water(shift)
        node = field_forces_node(vectors[:n_points], forces, np.zeros(n_points), [configuration_key(atoms)], old, key)
        node.store()
    node = label(template, [water(), water(0.01)], level)
    assert node.is_finished_ok, node.exit_message
    first, second = jobs(node)
    assert len(first.inputs.field_vectors.get_list()) == 2
    assert len(second.inputs.field_vectors.get_list()) == 4
    version = first.outputs.summary["version"]
    assert node.outputs.report["versions"] == {"8.2": 1, version: 1}
    assert "1 snapshots reuse labels of cp2k 8.2" in said(node)
