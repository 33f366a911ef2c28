"""Labelling snapshots and trajectories: nothing twice, nothing lost, one line for each failure."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import ase
import ase.io
import h5py
import numpy as np
import pytest
from ase.build import molecule

from mimyria_wf.derivatives import contract, join_derivative_files, read_derivatives
from mimyria_wf.engines import (
    FieldForces,
    FieldForcesStore,
    StoredFieldForces,
    label_file,
    label_snapshots,
    label_trajectory,
    read_field_forces,
    write_field_forces,
)
from mimyria_wf.errors import EngineError, FieldSetError, LabelError, SpectrumError, TrajectoryError
from mimyria_wf.field_engine import FieldEngine, FieldResults
from mimyria_wf.finite_field import field_vectors
from mimyria_wf.frames import Trajectory
from mimyria_wf.labelling import field_forces_file
from mimyria_wf.labels import read_labels, total_charge
from mimyria_wf.response import project_apt, project_pgt
from mimyria_wf.tblite_engine import TbliteEngine
from mimyria_wf.trajectory import open_trajectory, write_trajectory

STEP = 1e-3


class ModelEngine(FieldEngine):
    """Forces F0 + P(r).E + E.Q(r).E/2 with tensors that are known functions of the positions; counts its points."""

    name = "model"
    version = "1"
    level_of_theory = {"program": "model", "spring": 1.0}

    def __init__(self, fail_after: int | None = None, spoil: str = "", factor: float = 1.0):
        self.n_points = 0
        self.factor = factor
        self.fail_after = fail_after
        self.spoil = spoil

    def apt(self, positions):
        return np.einsum("id,f->idf", positions, [1.0, -0.5, 0.2]) + np.eye(3)

    def pgt(self, positions):
        return np.einsum("id,fg->idfg", positions**2, np.diag([1.0, 2.0, 3.0]) + 0.3)

    def field_results(self, atoms, vectors):
        asked = vectors
        if self.fail_after is not None and self.n_points + len(vectors) > self.fail_after:
            raise EngineError("stopped")
        self.n_points += len(vectors)
        apt = self.apt(atoms.positions)
        if charge := total_charge(atoms):  # which the forces of an ion add up to
            apt += (charge * np.eye(3) - apt.sum(axis=0)) / len(atoms)
        if self.spoil == "dead":
            apt = np.zeros_like(apt)
            vectors = 0 * vectors
        linear = np.einsum("idf,kf->kid", apt, self.factor * vectors)
        quadratic = np.einsum("idfg,kf,kg->kid", self.pgt(atoms.positions), vectors, vectors) / 2
        forces = 0.01 * atoms.positions + linear + quadratic
        if self.spoil == "nan":
            forces[-1, 1] = np.nan
        if self.spoil in ("KeyError", "KeyboardInterrupt"):
            raise {"KeyError": KeyError, "KeyboardInterrupt": KeyboardInterrupt}[self.spoil]("Xx\nYy")
        if self.spoil == "array":
            return forces
        if self.spoil == "fewer":
            return FieldResults(asked[1:], forces[1:], self.version)
        return FieldResults(asked, forces[:, :-1] if self.spoil == "shape" else forces, self.version)


def snapshots(n: int = 4) -> list[ase.Atoms]:
    frames = []
    for seed in range(n):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=seed)
        atoms.info.update(charge=0, snapshot=f"nve-000/{seed}")
        frames.append(atoms)
    return frames


@pytest.fixture
def snapshot_file(tmp_path: Path) -> Path:
    ase.io.write(tmp_path / "snapshots.extxyz", snapshots(), format="extxyz")
    return tmp_path / "snapshots.extxyz"


def test_labels_of_a_file_are_the_engines_tensors(snapshot_file: Path, tmp_path: Path):
    engine, seen = ModelEngine(), []
    result = label_file(
        snapshot_file, engine, ["apt", "pgt"], STEP, tmp_path / "l.extxyz", progress=lambda *a: seen.append(a)
    )
    labelled = read_labels(tmp_path / "l.extxyz", ["apt", "pgt"])
    for one in labelled:
        np.testing.assert_allclose(one.apt, engine.apt(one.atoms.positions), atol=2e-8)
        np.testing.assert_allclose(one.pgt, engine.pgt(one.atoms.positions), atol=2e-8)
        assert one.atoms.info["engine"] == "model"
        assert one.atoms.info["field_step"] == STEP
    assert [one.atoms.info["snapshot"] for one in labelled] == [f"nve-000/{k}" for k in range(4)]
    assert result["n_points_computed"] == engine.n_points == 52
    assert result["largest_sum_rule_residual"]["apt"] > 1
    assert [done for done, _, _ in seen] == [1, 2, 3, 4]


def test_an_interrupted_run_computes_nothing_twice(snapshot_file: Path, tmp_path: Path):
    forces, labels = tmp_path / "f.h5", tmp_path / "l.extxyz"
    first = ModelEngine(fail_after=30)
    with pytest.raises(EngineError, match="stopped"):
        label_file(snapshot_file, first, ["pgt"], STEP, labels, forces)
    assert not labels.exists()
    assert first.n_points == 26
    second = ModelEngine()
    result = label_file(snapshot_file, second, ["pgt"], STEP, labels, forces)
    assert second.n_points == result["n_points_computed"] == 26
    third = ModelEngine()
    label_file(snapshot_file, third, ["apt"], STEP, tmp_path / "apt.extxyz", forces)
    assert third.n_points == 0
    label_file(snapshot_file, third, ["pgt"], STEP, tmp_path / "again.extxyz", points_known=forces)
    assert third.n_points == 0
    assert (tmp_path / "again.extxyz").read_text() == labels.read_text()
    label_file(snapshot_file, third, ["apt"], STEP / 2, tmp_path / "half.extxyz", points_known=[forces])
    assert third.n_points == 24
    other = ModelEngine()
    other.level_of_theory = {"program": "model", "spring": 2.0}
    told = label_file(snapshot_file, other, ["apt"], STEP, tmp_path / "other.extxyz", points_known=[forces])
    assert "nothing of model is at the level of theory of engine model" in told["warnings"][0]


def test_an_apt_set_grows_into_a_pgt_set(snapshot_file: Path, tmp_path: Path):
    engine, forces = ModelEngine(), tmp_path / "f.h5"
    label_file(snapshot_file, engine, ["apt"], STEP, tmp_path / "apt.extxyz", forces)
    assert engine.n_points == 24
    label_file(snapshot_file, engine, ["pgt"], STEP, tmp_path / "pgt.extxyz", forces)
    assert engine.n_points == 52
    assert all(len(one.field_forces.field_vectors) == 13 for one in read_field_forces(forces))


def test_a_snapshot_that_comes_twice_is_computed_once(tmp_path: Path):
    engine = ModelEngine()
    ase.io.write(tmp_path / "s.extxyz", [*snapshots(2), *snapshots(2)], format="extxyz")
    result = label_file(tmp_path / "s.extxyz", engine, ["apt"], STEP, tmp_path / "l.extxyz")
    assert engine.n_points == result["n_points_computed"] == 12
    assert result["n_snapshots"] == 4


def test_field_forces_survive_their_file(tmp_path: Path):
    rng = np.random.default_rng(0)
    atoms = snapshots(1)[0]
    atoms.info.update(charge=1, multiplicity=2)
    atoms.set_cell([[5, 0, 0], [1, 5, 0], [0, 0, 6]])
    vectors = np.array(list(field_vectors(STEP, ["pgt"]).values()))
    stored = StoredFieldForces(
        atoms, FieldForces(vectors, rng.normal(size=(13, 3, 3))), {"method": "x"}, "cp2k", "2023.1"
    )
    write_field_forces(tmp_path / "f.h5", [stored])
    other = StoredFieldForces(atoms, stored.field_forces, {"method": "y"}, "cp2k", "2024.1")
    write_field_forces(tmp_path / "f.h5", [other])
    first, second = sorted(read_field_forces(tmp_path / "f.h5"), key=lambda s: s.level_of_theory["method"])
    np.testing.assert_array_equal(first.field_forces.forces, stored.field_forces.forces)
    np.testing.assert_array_equal(first.field_forces.field_vectors, vectors)
    assert first.field_forces.point_names[:3] == ("0", "+x", "-x")
    assert first.atoms.info == atoms.info
    np.testing.assert_array_equal(first.atoms.cell, atoms.cell)
    assert (second.level_of_theory, second.engine_version) == ({"method": "y"}, "2024.1")


def test_progress_is_on_disk_after_each_snapshot(tmp_path: Path):
    engine = ModelEngine()
    work = label_snapshots(engine, snapshots(), STEP, ["apt"], store=FieldForcesStore(tmp_path / "f.h5"))
    for n_done in (1, 2):
        next(work)
        assert len(read_field_forces(tmp_path / "f.h5")) == n_done


@pytest.mark.slow
def test_a_killed_process_leaves_a_file_to_go_on_with(tmp_path: Path):
    frames = snapshots(400)
    ase.io.write(tmp_path / "s.extxyz", frames, format="extxyz")
    script = textwrap.dedent(f"""
        from mimyria_wf.engines import label_file
        from mimyria_wf.tblite_engine import TbliteEngine
        label_file("s.extxyz", TbliteEngine(), ["apt"], {STEP}, "l.extxyz", "f.h5")
    """)
    for wait in (0.1, 0.2, 0.3):
        before = len(read_field_forces(tmp_path / "f.h5")) if (tmp_path / "f.h5").exists() else 0
        process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        began = time.monotonic()
        size = (tmp_path / "f.h5").stat().st_size if before else 0
        while time.monotonic() - began < 30 and process.poll() is None:
            if (tmp_path / "f.h5").exists() and (tmp_path / "f.h5").stat().st_size > size + 20000:
                break
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGTERM)
        process.wait()
        assert len(read_field_forces(tmp_path / "f.h5")) > before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("nan", r"model failed at field point -z of nve-000/0: forces that are not finite \(atom 1\)"),
        ("shape", r"model gave forces of shape \(6, 2, 3\), expected \(6, 3, 3\), for nve-000/0"),
    ],
)
def test_unusable_forces_are_refused(snapshot_file: Path, tmp_path: Path, spoil, message):
    with pytest.raises(EngineError, match=message):
        label_file(snapshot_file, ModelEngine(spoil=spoil), ["apt"], STEP, tmp_path / "l.extxyz", tmp_path / "f.h5")
    kept = read_field_forces(tmp_path / "f.h5")
    assert [one.field_forces.point_names for one in kept] == (
        [("+x", "-x", "+y", "-y", "+z")] if spoil == "nan" else []
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("KeyError", "engine model failed for nve-000/0: KeyError: 'Xx\\\\nYy'"),
        ("array", "engine model gave ndarray for nve-000/0: field_results must return .*FieldResults"),
        ("fewer", "engine model gave 5 field points for nve-000/0, 6 were asked for"),
    ],
)
def test_whatever_an_engine_raises_or_returns_is_one_line(snapshot_file: Path, tmp_path: Path, spoil, message):
    engine, out = ModelEngine(spoil=spoil), tmp_path / "l.extxyz"
    with pytest.raises(EngineError, match=message) as caught:
        label_file(snapshot_file, engine, ["apt"], STEP, out)
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match=message):
        field_forces_file(snapshot_file, engine, list(field_vectors(STEP, ["apt"]).values()), tmp_path / "f.h5")
    with pytest.raises(EngineError, match=message.replace("nve-000/0", "H2O")):
        engine.forces(molecule("H2O"), np.array(list(field_vectors(STEP, ["apt"]).values())))


def test_an_interruption_of_an_engine_is_none_of_its_errors(snapshot_file: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        label_file(snapshot_file, ModelEngine(spoil="KeyboardInterrupt"), ["apt"], STEP, tmp_path / "l.extxyz")


def test_a_check_that_fails_is_one_line(snapshot_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ModelEngine, "check", lambda self, atoms, targets, step: {}["Xx"])
    with pytest.raises(EngineError, match="snapshot 0: engine model failed in check: KeyError: 'Xx'"):
        label_file(snapshot_file, ModelEngine(), ["apt"], STEP, tmp_path / "l.extxyz")


def test_forces_that_do_not_depend_on_the_field_are_refused(snapshot_file: Path, tmp_path: Path):
    engine, forces = ModelEngine(spoil="dead"), tmp_path / "f.h5"
    with pytest.raises(LabelError, match="engine model, nve-000/0: the forces do not depend on the field"):
        label_file(snapshot_file, engine, ["apt", "pgt"], STEP, tmp_path / "l.extxyz", forces)
    assert not (tmp_path / "l.extxyz").exists()
    assert not read_field_forces(forces)
    vectors = list(field_vectors(STEP, ["pgt"]).values())
    with pytest.raises(LabelError, match="do not depend on the field, they are the same at all 13 points"):
        field_forces_file(snapshot_file, engine, vectors, forces)
    known = StoredFieldForces(
        snapshots(1)[0], FieldForces(np.array(vectors), np.ones((13, 3, 3))), engine.level_of_theory, "model", "1"
    )
    write_field_forces(tmp_path / "known.h5", [known])
    with pytest.raises(LabelError, match="do not depend on the field"):
        label_file(snapshot_file, engine, ["apt"], STEP, tmp_path / "l.extxyz", points_known=tmp_path / "known.h5")


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (-1.0, "that of a charge of 1 e, not -1: the field's sign is reversed"),
        (51.42, "that of a charge of -51.4 e, not -1: see the units"),
        (1.25, "that of a charge of -1.25 e, not -1"),
        (1.15, None),
    ],
)
def test_a_charge_shows_sign_and_unit_of_the_field(tmp_path: Path, factor, message):
    ase.io.write(tmp_path / "ion.extxyz", molecule("H2O"), format="extxyz")
    engine = ModelEngine(factor=factor)

    def label(targets):
        label_file(tmp_path / "ion.extxyz", engine, targets, STEP, tmp_path / "l.extxyz", charge=-1)

    if message is None:
        label(["apt", "pgt"])
        return
    for targets in (["apt", "pgt"], ["apt"]):  # with the field-free point and without
        with pytest.raises(LabelError, match=f"engine model, H2O: the net force in the fields is {message}"):
            label(targets)
    write_trajectory(tmp_path / "ion.h5", run(charge=-1))
    with pytest.raises(LabelError, match="engine model, nve-000/0: the net force in the fields is"):
        label_trajectory(open_trajectory(tmp_path / "ion.h5"), engine, ["apt"], STEP, tmp_path / "d.h5")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("version", None, "engine model: version must be text, got None"),
        ("level_of_theory", {"cutoff": np.ones(2)}, "level_of_theory must be JSON, its 'cutoff' is not"),
        ("level_of_theory", ["PBE"], r"level_of_theory must be a mapping that is not empty, got \['PBE'\]"),
        ("level_of_theory", {}, "level_of_theory must be a mapping that is not empty"),
    ],
)
def test_an_engine_must_be_able_to_key_labels(
    snapshot_file: Path, reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name, value, message
):
    monkeypatch.setattr(ModelEngine, name, value)
    with pytest.raises(EngineError, match=message):
        label_file(snapshot_file, ModelEngine(), ["apt"], STEP, tmp_path / "l.extxyz")
    with pytest.raises(EngineError, match=message):
        label_trajectory(reader, ModelEngine(), ["apt"], STEP, tmp_path / "d.h5")


def test_bad_field_forces_files_are_refused(snapshot_file: Path, tmp_path: Path):
    def label(path):
        return label_file(snapshot_file, ModelEngine(), ["apt"], STEP, tmp_path / "l.extxyz", path)

    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(
        LabelError, match=r"text.h5 cannot be opened as a field-forces file: .*; remove it to start over"
    ):
        label(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w"):
        pass
    with pytest.raises(LabelError, match=r"other.h5 is not a field-forces file"):
        label(tmp_path / "other.h5")
    with pytest.raises(LabelError, match=r"none.h5 .*it does not exist"):
        label_file(snapshot_file, ModelEngine(), ["apt"], STEP, tmp_path / "l.extxyz", None, tmp_path / "none.h5")
    label(tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        group = file[next(iter(file))]
        group[next(iter(group))]["forces"][2, 0, 0] = np.nan
    with pytest.raises(LabelError, match=r"f.h5: forces of field point \+y not finite"):
        label(tmp_path / "f.h5")
    with pytest.raises(FieldSetError, match="field step"):
        label_file(snapshot_file, ModelEngine(), ["apt"], 0.0, tmp_path / "l.extxyz")


def run(n_frames: int = 12, velocities: bool = True, charge: int = 0) -> Trajectory:
    """Return a made-up run of a water molecule with its centre of mass at rest."""
    atoms = molecule("H2O")
    rng = np.random.default_rng(1)
    masses = atoms.get_masses()
    direction = rng.normal(size=(3, 3))
    direction -= masses @ direction / masses.sum()
    time = 0.5 * np.arange(n_frames)[:, None, None]
    return Trajectory(
        numbers=atoms.numbers,
        positions=atoms.positions + 0.03 * direction * np.sin(0.3 * time),
        velocities=0.009 * direction * np.cos(0.3 * time) if velocities else None,
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        timestep=0.5,
        masses=masses,
        name="nve-000",
        metadata={"charge": charge},
    )


@pytest.fixture
def reader(tmp_path: Path):
    write_trajectory(tmp_path / "nve-000.h5", run())
    return open_trajectory(tmp_path / "nve-000.h5")


@pytest.mark.parametrize("project", [True, False])
def test_a_labelled_trajectory_is_tensors_times_velocities(reader, tmp_path: Path, project):
    engine, trajectory = ModelEngine(), run()
    result = label_trajectory(
        reader, engine, ["apt", "pgt"], STEP, tmp_path / "d.h5", project_sum_rules=project, volume=30.0, chunk_size=5
    )
    apt = np.array([engine.apt(p) for p in trajectory.positions])
    pgt = np.array([engine.pgt(p) for p in trajectory.positions])
    residual = np.abs(apt.sum(axis=1)).max()
    if project:
        apt, pgt = project_apt(apt, trajectory.masses, 0), project_pgt(pgt, trajectory.masses)
    dipole, polarizability = contract(apt, pgt, trajectory.velocities)
    series = read_derivatives(tmp_path / "d.h5")
    np.testing.assert_allclose(series.dipole_derivative, dipole, atol=1e-11)
    np.testing.assert_allclose(series.polarizability_derivative, polarizability, atol=1e-9)
    assert series.volume == 30.0
    assert series.name == "nve-000"
    assert series.metadata["engine"] == "model"
    assert series.metadata["sum_rule_residual"]["apt"]["largest"] == pytest.approx(residual)
    assert result["n_frames"] == 12
    assert engine.n_points == 12 * 13


def test_stretches_join_to_the_whole(reader, tmp_path: Path):
    label_trajectory(reader, ModelEngine(), ["apt", "pgt"], STEP, tmp_path / "whole.h5")
    parts = [tmp_path / "a.h5", tmp_path / "b.h5"]
    label_trajectory(reader, ModelEngine(), ["apt", "pgt"], STEP, parts[0], 0, 7)
    label_trajectory(reader, ModelEngine(), ["apt", "pgt"], STEP, parts[1], 7)
    assert join_derivative_files(parts, tmp_path / "joined.h5")["n_frames"] == 12
    whole, joined = read_derivatives(tmp_path / "whole.h5"), read_derivatives(tmp_path / "joined.h5")
    for name in ("dipole_derivative", "polarizability_derivative", "apt_square", "pgt_square", "temperature"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name), rtol=1e-12, atol=1e-14)
    assert (joined.metadata["start"], joined.metadata["stop"]) == (0, 12)
    with pytest.raises(SpectrumError, match="its first frame is 0, expected 12: give all parts of a run in order"):
        join_derivative_files(parts[::-1], tmp_path / "joined.h5")


@pytest.mark.slow
def test_two_processes_give_what_one_gives(reader, tmp_path: Path):
    for processes in (1, 2):
        label_trajectory(
            reader, TbliteEngine(), ["apt"], STEP, tmp_path / f"{processes}.h5", processes=processes, chunk_size=4
        )
    one, two = read_derivatives(tmp_path / "1.h5"), read_derivatives(tmp_path / "2.h5")
    np.testing.assert_allclose(two.dipole_derivative, one.dipole_derivative, atol=1e-7)  # SCF threshold


def test_charge_is_taken_from_the_file_or_given_but_never_contradicted(snapshot_file: Path, tmp_path: Path):
    with pytest.raises(LabelError, match=r"snapshots.extxyz, snapshot 0: charge -1 is asked for, the file says 0"):
        label_file(snapshot_file, ModelEngine(), ["apt"], STEP, tmp_path / "l.extxyz", charge=-1)
    plain = molecule("H2O")
    ase.io.write(tmp_path / "plain.extxyz", plain, format="extxyz")
    label_file(
        tmp_path / "plain.extxyz", ModelEngine(), ["apt"], STEP, tmp_path / "l.extxyz", charge=-1, multiplicity=1
    )
    assert read_labels(tmp_path / "l.extxyz")[0].charge == -1
    write_trajectory(tmp_path / "ion.h5", run(charge=2))
    ion = open_trajectory(tmp_path / "ion.h5")
    label_trajectory(ion, ModelEngine(), ["apt"], STEP, tmp_path / "d.h5", 0, 2)
    assert read_derivatives(tmp_path / "d.h5").metadata["charge"] == 2
    with pytest.raises(LabelError, match=r"ion.h5: charge 1 is asked for, the file says 2"):
        label_trajectory(ion, ModelEngine(), ["apt"], STEP, tmp_path / "d.h5", charge=1)


def test_trajectories_that_cannot_be_labelled(reader, tmp_path: Path):
    with pytest.raises(TrajectoryError, match="frames 5 to 13 are not within its 12 frames"):
        label_trajectory(reader, ModelEngine(), ["apt"], STEP, tmp_path / "d.h5", 5, 13)
    write_trajectory(tmp_path / "still.h5", run(velocities=False))
    with pytest.raises(TrajectoryError, match="no velocities"):
        label_trajectory(open_trajectory(tmp_path / "still.h5"), ModelEngine(), ["apt"], STEP, tmp_path / "d.h5")
    with pytest.raises(EngineError, match=r"of nve-000/7: forces that are not finite"):
        label_trajectory(reader, ModelEngine(spoil="nan"), ["apt"], STEP, tmp_path / "d.h5", 7)
    assert not (tmp_path / "d.h5").exists()
    with pytest.raises(EngineError, match="processes"):
        label_trajectory(reader, ModelEngine(), ["apt"], STEP, tmp_path / "d.h5", processes=0)
