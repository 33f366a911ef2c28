"""Nodes of two versions of a program: one of them is judged, one of them becomes labels."""

import io
from collections.abc import Sequence

import ase
import ase.io
import numpy as np
import pytest
from aiida import orm
from aiida.tools.pytest_fixtures import *  # noqa: F403  the profile is made only where this is imported
from ase.build import molecule

from mimyria_wf.calculators.assembly import assemble_labels
from mimyria_wf.calculators.data import field_forces_node, response_tensors_node
from mimyria_wf.calculators.qualification import KnownPoints, assess_qualification, known_points
from mimyria_wf.errors import CampaignError
from mimyria_wf.labels import configuration_key, level_of_theory_key
from mimyria_wf.qualification import QualificationSettings, plan
from mimyria_wf.response import ResponseTensors
from mimyria_wf.tblite_engine import TbliteEngine

pytestmark = [pytest.mark.aiida]
STEP = 5e-4
LEVEL = {"engine": "cp2k", "template": "of this test"}
KEY = level_of_theory_key(LEVEL)


def file_node(snapshots: Sequence[ase.Atoms]) -> orm.SinglefileData:
    buffer = io.StringIO()
    ase.io.write(buffer, list(snapshots), format="extxyz")
    return orm.SinglefileData(io.BytesIO(buffer.getvalue().encode()), filename="snapshots.extxyz")


@pytest.mark.usefixtures("aiida_profile_clean")
def test_a_qualification_judges_one_version() -> None:
    atoms = molecule("H2O")
    settings = QualificationSettings.short(STEP)
    task = plan([atoms], settings)[0]
    forces = TbliteEngine(accuracy=1e-4).forces(atoms, task.vectors)
    shift = 1e-6 * np.random.default_rng(0).normal(size=forces.shape[1:])
    rows = np.arange(len(forces))

    def node(version: str, chosen: np.ndarray) -> orm.ArrayData:
        shifted = forces[chosen] + (shift if version == "2025.1" else 0)
        number = np.zeros(len(chosen), dtype=int)
        level = {**LEVEL, "version": version}
        return field_forces_node(task.vectors[chosen], shifted, number, [configuration_key(atoms)], level, KEY).store()

    old, new = node("2023.1", rows[:13]), node("2025.1", rows[13:])
    with pytest.raises(CampaignError, match=r"versions 2023\.1 and 2025\.1 are never combined"):
        KnownPoints([old, new], atoms)
    (known,), version = known_points([task], [KEY])
    assert (version, len(known.missing(task))) == ("2023.1", len(rows) - 13)
    (known,), version = known_points([task], [KEY], "2025.1")
    assert (version, len(known.missing(task))) == ("2025.1", 13)
    (known,), version = known_points([task], [KEY], "2026.1")
    assert (version, len(known.missing(task))) == ("2026.1", len(rows))
    node("2023.1", rows[13:])
    (known,), version = known_points([task], [KEY], "2025.1")
    assert version == "2025.1"  # a complete set of the old program says nothing about the new one
    (known,), version = known_points([task], [KEY])
    trial = {"engine": "cp2k", "level_of_theory": LEVEL, "step": STEP, "threshold": None, "problems": []}
    trial |= {"level_keys": {task.name: KEY}, "version": version, "n_computed": 0}
    nodes = {f"forces_{k}": one for k, one in enumerate(known.nodes)}
    verdict = assess_qualification(file_node([atoms]), orm.Dict(settings.to_dict()), orm.Dict(trial), **nodes)[
        "verdict"
    ]
    assert (verdict["version"], verdict["n_computed"], verdict["engine"]["version"]) == ("2023.1", 0, "2023.1")


@pytest.mark.usefixtures("aiida_profile_clean")
def test_tensors_of_an_engine_are_of_the_version_that_has_most() -> None:
    snapshots = [molecule("H2O"), molecule("NH3"), molecule("CH4")]
    keys = [configuration_key(atoms) for atoms in snapshots]

    def node(version: str, chosen: list[int], value: float) -> orm.ArrayData:
        tensors = [ResponseTensors(np.full((len(snapshots[k]), 3, 3), value), None) for k in chosen]
        return response_tensors_node(tensors, [keys[k] for k in chosen], {**LEVEL, "version": version}, KEY)

    every, part = node("6.4", [0, 1, 2], 4.0), node("6.5", [1], 5.0)
    settings = orm.Dict({"targets": ["apt"], "header": {"engine": "vasp"}})
    for nodes in ({"a": every, "b": part}, {"a": part, "b": every}):
        outputs = assemble_labels(file_node(snapshots), orm.List([0, 1, 2]), settings, **nodes)
        assert outputs["report"]["versions"] == {"6.4": 3}
