"""The engine of docs/engines.md through AiiDA: found by name, its sound points kept, its refusals one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from aiida.plugins import CalculationFactory, WorkflowFactory
from aiida.tools.pytest_fixtures import *  # noqa: F403  the profile is made only where this is imported
from ase.build import molecule

from mimyria_wf.calculators.data import points_of
from mimyria_wf.labels import configuration_key, read_labels

pytestmark = [pytest.mark.aiida, pytest.mark.slow, pytest.mark.usefixtures("aiida_profile_clean")]
PAGE = Path(__file__).parents[1] / "docs" / "engines.md"
CONSOLE = str(Path(sys.executable).with_name("mimyria-wf"))
LEVEL = {"engine": "springs", "charges": {"O": -0.8, "H": 0.4}}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder for PYTHONPATH with the page's package."""
    (module,) = re.findall(r'```python title="springs_engine.py"\n(.*?)```', PAGE.read_text(), flags=re.DOTALL)
    metadata = tmp_path / "site" / "springs_engine-1.0.dist-info"
    metadata.mkdir(parents=True)
    (tmp_path / "site" / "springs_engine.py").write_text(module)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: springs-engine\nVersion: 1.0\n")
    entry = "[mimyria_wf.engines]\nsprings = springs_engine:SpringsEngine\n"
    (metadata / "entry_points.txt").write_text(entry)
    return tmp_path / "site"


def pool(tmp_path: Path, snapshots: list[ase.Atoms]) -> orm.SinglefileData:
    ase.io.write(tmp_path / "pool.extxyz", snapshots, format="extxyz")
    return orm.SinglefileData(tmp_path / "pool.extxyz")


def test_labels_of_an_engine_from_another_package(
    aiida_code_installed: Callable[..., orm.AbstractCode], tmp_path: Path, site: Path
) -> None:
    code = aiida_code_installed(label="mimyria-wf", filepath_executable=CONSOLE)
    options = {"prepend_text": f"export PYTHONPATH={site}"}
    snapshots = [molecule("H2O"), molecule("H2O")]
    snapshots[1].rattle(0.05, seed=1)
    settings = {"engine": "springs", "level_of_theory": LEVEL, "targets": ["apt", "pgt"], "step": 1e-3}
    settings |= {"snapshots_per_job": 10, "max_concurrent": 2}
    inputs = {
        "code": code,
        "snapshots": pool(tmp_path, snapshots),
        "indices": orm.List([0, 1]),
        "settings": orm.Dict(settings),
        "options": orm.Dict(options),
    }
    outputs, node = run_get_node(WorkflowFactory("mimyria_wf.labels"), **inputs)
    assert node.is_finished_ok, node.exit_message
    (tmp_path / "labels.extxyz").write_text(outputs["labels"].get_content("r"))
    for one in read_labels(tmp_path / "labels.extxyz", ["apt", "pgt"]):
        charges = [LEVEL["charges"][symbol] for symbol in one.atoms.get_chemical_symbols()]
        np.testing.assert_allclose(one.apt, np.array(charges)[:, None, None] * np.eye(3), atol=1e-7)
    (job,) = [child for child in node.called if isinstance(child, orm.CalcJobNode)]
    assert job.process_class is CalculationFactory("mimyria_wf.engine.fields")
    assert job.outputs.field_forces.get_array("dipoles").shape == (26, 3)


def test_sound_snapshots_of_a_failed_job_are_kept(
    aiida_code_installed: Callable[..., orm.AbstractCode], tmp_path: Path, site: Path
) -> None:
    code = aiida_code_installed(label="mimyria-wf", filepath_executable=CONSOLE)
    snapshots = [molecule("H2O"), molecule("CH4")]
    inputs = {
        "code": code,
        "snapshots": pool(tmp_path, snapshots),
        "field_vectors": orm.List([[0.0, 0.0, 0.0], [0.0, 0.0, 1e-3]]),
        "level_of_theory": orm.Dict(LEVEL),
        "metadata": {"options": {"prepend_text": f"export PYTHONPATH={site}"}},
    }
    outputs, node = run_get_node(CalculationFactory("mimyria_wf.engine.fields"), **inputs)
    assert node.exit_status == 400
    assert "snapshot 1: springs: no charge of C: add it to charges" in node.exit_message
    assert len(points_of([outputs["field_forces"]], configuration_key(snapshots[0]))[0]) == 2
    inputs["level_of_theory"] = orm.Dict({"engine": "sprigns", "charges": {}})
    _, node = run_get_node(CalculationFactory("mimyria_wf.engine.fields"), **inputs)
    assert node.exit_status == 320
    assert "unknown engine 'sprigns', known: cp2k, springs, tblite, vasp" in node.exit_message
