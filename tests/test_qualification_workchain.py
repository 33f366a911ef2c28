"""Qualifications through AiiDA: points that labels share, verdicts, and campaigns that stop before they spend."""

from __future__ import annotations

import io
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
from test_workchains import CONSOLE, DIMER

from mimyria_wf.qualification import QualificationSettings

pytestmark = [pytest.mark.aiida, pytest.mark.slow]
STEP = 1e-3


@pytest.fixture
def trial(aiida_code_installed: Callable[..., orm.AbstractCode]) -> Callable[..., orm.WorkChainNode]:
    """Return a function that runs a qualification of tblite on a water dimer."""
    code = aiida_code_installed(label="mimyria-wf", filepath_executable=CONSOLE)

    def run(accuracy: float, step: float = STEP, **screening: Any) -> orm.WorkChainNode:
        level = {"engine": "tblite", "method": "GFN2-xTB", "accuracy": accuracy}
        settings = {"engine": "tblite", "level_of_theory": level, "step": step, "threshold": accuracy * 2e-5}
        settings |= {"targets": ["apt", "pgt"], "snapshots_per_job": 20, "max_concurrent": 2}
        values = {"steps": (step, 2 * step), "step": step, "polarizability": "none", **screening}
        inputs = {
            "code": code,
            "snapshots": snapshots_node(),
            "settings": orm.Dict(settings),
            "screening": orm.Dict(QualificationSettings(**values).to_dict()),
        }
        _, node = run_get_node(WorkflowFactory("mimyria_wf.qualification"), **inputs)
        return node

    return run


def snapshots_node() -> orm.SinglefileData:
    """Return the dimer, bent a little, as a file node."""
    atoms = DIMER.copy()
    atoms.positions += np.random.default_rng(1).normal(scale=0.03, size=(6, 3))
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
    node = trial(5e-2, thresholds=(2e-5, 1e-6, 2e-8))
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
