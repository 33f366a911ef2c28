"""Points of two versions of a program are never combined in one set of fields."""

from dataclasses import replace
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase.build import molecule

from mimyria_wf.engines import FieldForces, FieldForcesStore, StoredFieldForces, label_file, read_field_forces
from mimyria_wf.errors import EngineError, LabelError
from mimyria_wf.field_engine import FieldEngine, FieldResults
from mimyria_wf.finite_field import field_vectors
from mimyria_wf.labelling import field_forces_file
from mimyria_wf.labels import configuration_key, level_of_theory_key, read_labels
from mimyria_wf.program_engine import ProgramEngine, ProgramRun
from mimyria_wf.qualification import QualificationSettings, plan, run_locally

STEP = 5e-4
WATER = molecule("H2O")


class Versioned(FieldEngine):
    """Forces of a quadratic model, shifted by what a version of the program adds to all of them."""

    name = "model"
    level_of_theory = {"program": "model"}

    def __init__(self, version: str, shift: float = 0.0, knows: bool = True):
        self.installed = version
        self.ran = knows
        self.shift = shift
        self.n_points = 0

    @property
    def version(self) -> str:
        return self.installed if self.ran else "unknown"

    def field_results(self, atoms, vectors):
        self.n_points += len(vectors)
        self.ran = True
        rng = np.random.default_rng(1)
        charges = rng.normal(size=(len(atoms), 3, 3))
        charges -= charges.mean(axis=0)
        curvature = rng.normal(size=(len(atoms), 3, 3, 3))
        curvature = curvature + curvature.swapaxes(2, 3)
        curvature -= curvature.mean(axis=0)
        forces = np.einsum("idf,kf->kid", charges, vectors)
        forces += np.einsum("idfg,kf,kg->kid", curvature, vectors, vectors) / 2
        shift = self.shift * np.random.default_rng(2).normal(size=forces.shape[1:])
        return FieldResults(vectors, forces + shift, self.installed)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    ase.io.write(tmp_path / "water.extxyz", WATER, format="extxyz")
    return tmp_path / "water.extxyz"


@pytest.mark.parametrize("knows", [True, False])
def test_a_pgt_set_is_not_completed_from_another_version(snapshot: Path, tmp_path: Path, knows: bool):
    store = tmp_path / "f.h5"
    label_file(snapshot, Versioned("2023.1"), ["apt"], STEP, tmp_path / "apt.extxyz", store)
    new = Versioned("2025.1", shift=1e-6, knows=knows)
    result = label_file(snapshot, new, ["apt", "pgt"], STEP, tmp_path / "pgt.extxyz", store)
    label_file(snapshot, Versioned("2025.1"), ["apt", "pgt"], STEP, tmp_path / "reference.extxyz")
    (found,), (reference,) = (read_labels(tmp_path / f"{name}.extxyz") for name in ("pgt", "reference"))
    np.testing.assert_allclose(found.pgt, reference.pgt, atol=1e-6)
    assert (result["engine_version"], result["n_points_computed"]) == ("2025.1", 13)
    assert new.n_points == 13
    assert result["warnings"] == ["points of model 2023.1 are kept but not combined with those of 2025.1"]
    stored = {one.engine_version: len(one.field_forces.forces) for one in read_field_forces(store)}
    assert stored == {"2023.1": 6, "2025.1": 13}
    again = Versioned("2025.1", shift=1e-6)
    assert label_file(snapshot, again, ["pgt"], STEP, tmp_path / "b.extxyz", store)["n_points_computed"] == 0
    back = Versioned("2023.1")
    assert label_file(snapshot, back, ["apt"], STEP, tmp_path / "c.extxyz", points_known=store)["n_points"] == 6
    assert (again.n_points, back.n_points) == (0, 0)


def test_a_whole_set_of_another_version_is_used_and_said(snapshot: Path, tmp_path: Path):
    store = tmp_path / "f.h5"
    first = label_file(snapshot, Versioned("2023.1"), ["pgt"], STEP, tmp_path / "a.extxyz", store)
    new = Versioned("2025.1", shift=1e-6)
    second = label_file(snapshot, new, ["pgt"], STEP, tmp_path / "b.extxyz", store)
    assert new.n_points == 0
    assert second["engine_version"] == first["engine_version"] == "2023.1"
    assert second["warnings"] == ["points of model 2023.1 are used as they are, the version here is 2025.1"]


def test_an_engine_that_does_not_know_its_version_yet_takes_the_fullest(snapshot: Path, tmp_path: Path):
    store = tmp_path / "f.h5"
    label_file(snapshot, Versioned("1"), ["pgt"], STEP, tmp_path / "a.extxyz", store)
    label_file(snapshot, Versioned("2"), ["apt"], STEP, tmp_path / "a.extxyz", store)
    engine = Versioned("3", knows=False)
    assert label_file(snapshot, engine, ["pgt"], STEP, tmp_path / "b.extxyz", store)["engine_version"] == "1"
    assert engine.n_points == 0
    # another that lacks points finds out with them that all of them are another version's
    engine = Versioned("3", knows=False, shift=1e-6)
    vectors = [[0, 0, 0], [STEP, 0, 0], [0, 2 * STEP, 0]]
    result = field_forces_file(snapshot, engine, vectors, store)
    assert result["n_points_computed"] == engine.n_points == 3
    (own,) = [one for one in read_field_forces(store) if one.engine_version == "3"]
    assert len(own.field_forces.forces) == 3


def test_an_engine_of_changing_version_is_refused(snapshot: Path, tmp_path: Path):
    class Changing(Versioned):
        def field_results(self, atoms, vectors):
            results = super().field_results(atoms, vectors)
            self.installed += "'"
            return results

    store = FieldForcesStore(tmp_path / "f.h5")
    vectors = np.array(list(field_vectors(STEP, ["apt"]).values()))
    old = Versioned("1")
    results = old.field_results(WATER, vectors[:1])
    store.add(WATER, FieldForces(vectors[:1], results.forces, version="1"), old)
    with pytest.raises(EngineError, match="gives another version with every run"):
        field_forces_file(snapshot, Changing("1'", knows=False), np.array(vectors).tolist(), tmp_path / "f.h5")


def test_points_of_two_versions_are_never_joined_and_old_files_stay_readable(tmp_path: Path):
    vectors = np.array(list(field_vectors(STEP, ["apt"]).values()))
    level = {"program": "model"}
    one = FieldForces(vectors, np.zeros((6, 3, 3)), version="1")
    with pytest.raises(LabelError, match="points of versions 1 and unknown joined"):
        one.joined(FieldForces(vectors, np.zeros((6, 3, 3))))
    path = tmp_path / "f.h5"
    store = FieldForcesStore(path)
    store.add_stored(StoredFieldForces(WATER, one.rows([0, 1]), level, "model", "1"))
    key = configuration_key(WATER)
    with h5py.File(path, "r+") as file:  # a file as it was written before groups named their version
        (name,) = file[key]
        file.move(f"{key}/{name}", f"{key}/{level_of_theory_key(level)}")
    store = FieldForcesStore(path)
    assert store.versions(WATER, level) == ["1"]
    store.add_stored(StoredFieldForces(WATER, FieldForces(vectors, np.ones((6, 3, 3))), level, "model", "2"))
    store.add_stored(StoredFieldForces(WATER, one, level, "model", "1"))
    found = {one.engine_version: one.field_forces.forces for one in read_field_forces(path)}
    assert len(read_field_forces(path)) == 2
    assert {version: (len(forces), forces.mean()) for version, forces in found.items()} == {"1": (6, 0), "2": (6, 1)}
    assert FieldForcesStore(path).get(WATER, level, "2").version == "2"
    assert (
        FieldForcesStore(path).missing(WATER, level, ["apt"], STEP, "3").keys() == field_vectors(STEP, ["apt"]).keys()
    )


def test_a_qualification_keeps_to_one_version(tmp_path: Path):
    task = plan([WATER], QualificationSettings.short(STEP))[0]
    few = replace(task, vectors=task.vectors[:13])
    assert len(few.vectors) < len(task.vectors)
    reference = run_locally(Versioned("2025.1", shift=1e-6), [task])[task.name].forces
    for knows in (True, False):
        store = tmp_path / f"points-{knows}"
        run_locally(Versioned("2023.1"), [few], store)
        new = Versioned("2025.1", shift=1e-6, knows=knows)
        np.testing.assert_array_equal(run_locally(new, [task], store)[task.name].forces, reference)
        again = Versioned("2025.1", shift=1e-6, knows=knows)
        np.testing.assert_array_equal(run_locally(again, [task], store)[task.name].forces, reference)
        assert again.n_points == 0


class Scripted(ProgramEngine):
    """Counts how often it runs; its results are one force."""

    name = "scripted"
    version = "unknown"
    level_of_theory = {"program": "scripted"}

    def runs(self, atoms, vectors):
        return [ProgramRun(name) for name in vectors]

    def read(self, folder, atoms, vectors):
        forces = np.full((len(vectors), len(atoms), 3), float((folder / "output").read_text()))
        return FieldResults(np.array(list(vectors.values())), forces, "unknown")


def test_kept_results_belong_to_one_executable(tmp_path: Path):
    program = tmp_path / "program"
    vectors = np.array([[STEP, 0, 0]])
    for forces, text in ((1.0, "#!/bin/sh\necho 1\n"), (2.0, "#!/bin/sh\necho 2.0\n")):
        program.write_text(text)
        program.chmod(0o755)
        engine = Scripted(str(program), results=tmp_path / "kept")
        for _ in range(2):
            assert engine.field_results(WATER, vectors).forces[0, 0, 0] == forces
    assert len(list((tmp_path / "kept").iterdir())) == 2
