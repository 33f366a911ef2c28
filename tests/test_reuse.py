"""Forces that were computed outside of AiiDA are found by label jobs afterwards."""

from pathlib import Path

import numpy as np
import pytest
from aiida.tools.pytest_fixtures import *  # noqa: F403  the profile is made only where this is imported
from ase.build import molecule

from mimyria_wf.calculators.data import known_field_forces, of_one_version, points_of, version_of
from mimyria_wf.errors import LabelError
from mimyria_wf.field_forces import FieldForces, StoredFieldForces, write_field_forces
from mimyria_wf.labels import configuration_key, level_of_theory_key
from mimyria_wf.workchains.reuse import store_field_forces

pytestmark = [pytest.mark.aiida, pytest.mark.usefixtures("aiida_profile_clean")]
LEVEL = {"engine": "cp2k", "template": "a" * 64, "files": {}}
VECTORS = 1e-3 * np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0]])


def stored(seed: int, rows: list[int], version: str = "2023.1", **level) -> StoredFieldForces:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=seed)
    forces = np.random.default_rng(seed).normal(size=(3, 3, 3))
    dipoles = forces[:, 0]
    points = FieldForces(VECTORS[rows], forces[rows], dipoles=dipoles[rows])
    return StoredFieldForces(atoms, points, {"program": "cp2k", **level}, "cp2k", version)


def test_a_file_becomes_known_points_once(tmp_path: Path) -> None:
    first, second = stored(0, [0, 1]), stored(1, [0, 1, 2])
    write_field_forces(tmp_path / "f.h5", [first, second])
    result = store_field_forces(tmp_path / "f.h5", LEVEL)
    assert (result["n_snapshots"], result["n_points"], result["n_points_new"]) == (2, 5, 5)
    keys = [configuration_key(one.atoms) for one in (first, second)]
    found = known_field_forces(level_of_theory_key(LEVEL), keys)
    for key, one in zip(keys, (first, second), strict=True):
        vectors, forces = points_of(found[key], key)
        np.testing.assert_array_equal(vectors, one.field_forces.field_vectors)
        np.testing.assert_array_equal(forces, one.field_forces.forces)
        assert version_of(found[key][0]) == "2023.1"
    write_field_forces(tmp_path / "f.h5", [stored(0, [2])])
    result = store_field_forces(tmp_path / "f.h5", LEVEL)
    assert (result["n_points"], result["n_points_new"], len(result["nodes"])) == (6, 1, 1)
    assert store_field_forces(tmp_path / "f.h5", LEVEL)["nodes"] == []
    assert points_of(known_field_forces(level_of_theory_key(LEVEL), keys)[keys[0]], keys[0])[0].shape == (3, 3)


def test_levels_of_theory_are_not_mixed(tmp_path: Path) -> None:
    write_field_forces(tmp_path / "f.h5", [stored(0, [0]), stored(0, [0], cutoff=300)])
    with pytest.raises(LabelError, match="holds 2 levels of theory"):
        store_field_forces(tmp_path / "f.h5", LEVEL)


def test_a_known_point_of_another_version_does_not_leave_a_gap(tmp_path: Path) -> None:
    for version, rows in (("2023.1", [0]), ("2025.1", [0, 1, 2])):
        write_field_forces(tmp_path / f"{version}.h5", [stored(0, rows, version)])
        assert store_field_forces(tmp_path / f"{version}.h5", LEVEL)["n_points_new"] == len(rows)
    key = configuration_key(stored(0, [0]).atoms)
    nodes = known_field_forces(level_of_theory_key(LEVEL), [key])[key]
    assert points_of(of_one_version(nodes, key, VECTORS, 1e-3), key)[0].shape == (3, 3)
