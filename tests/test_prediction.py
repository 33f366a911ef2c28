import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from scipy.interpolate import CubicSpline

from mimyria_wf import prediction_chunks
from mimyria_wf.cca import additivity, cca_spectra
from mimyria_wf.committee import fit_posterior, relative_uncertainties
from mimyria_wf.derivatives import contract, read_derivatives
from mimyria_wf.errors import GroupError, ModelError, TrajectoryError
from mimyria_wf.frames import Trajectory
from mimyria_wf.graphs import join
from mimyria_wf.groups import groups_of
from mimyria_wf.irreps import change_of_basis
from mimyria_wf.labels import LabelledSnapshot, read_labels
from mimyria_wf.network import build_network, save_model
from mimyria_wf.prediction import check_stride_files, predict_derivatives, predict_files, predict_tensors
from mimyria_wf.presets import DensitySettings, MessagePassingSettings
from mimyria_wf.response import project_apt, project_pgt
from mimyria_wf.response_network import ResponseNetwork
from mimyria_wf.spectrum import SpectrumSettings, ir_spectrum, raman_spectrum, spectral_distance
from mimyria_wf.trajectory import open_trajectory, write_trajectory

SETTINGS = MessagePassingSettings(multiplicities=(4, 3, 2), n_layers=1, n_radial=6, radial_hidden=(8,), cutoff=3.0)


@pytest.fixture(scope="module")
def models() -> dict[str, ResponseNetwork]:
    networks = {}
    for target in ("apt", "pgt"):
        network = build_network(SETTINGS, [1, 8], target, n_neighbours=5.0, seed=3, dtype=torch.float64)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.endswith("alpha.weight"):  # zero at the start
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        networks[target] = network.eval()
    return networks


def trajectory(n_frames: int, name: str = "run", charge: int = 0, periodic: bool = False) -> Trajectory:
    """Return two water molecules whose atoms swing harmonically; the centre of mass may move."""
    atoms = molecule("H2O")
    second = molecule("H2O")
    second.translate([2.8, 0.3, 0.2])
    atoms += second
    rng = np.random.default_rng(7)
    phases, frequencies = rng.uniform(0, 2 * np.pi, (6, 3)), rng.uniform(0.02, 0.3, (6, 3))  # to 1600 cm-1
    times = 0.5 * np.arange(n_frames)[:, None, None]
    argument = frequencies * times + phases
    return Trajectory(
        numbers=atoms.numbers,
        positions=atoms.positions + 0.08 * np.sin(argument),
        velocities=0.08 * frequencies * np.cos(argument),
        cell=np.array([[6.0, 0, 0], [1.0, 6.0, 0], [0, -0.5, 5.5]]) if periodic else np.zeros((3, 3)),
        pbc=np.array([periodic] * 3),
        timestep=0.5,
        masses=atoms.get_masses(),
        name=name,
        metadata={"charge": charge},
    )


def frames_of(run: Trajectory) -> list[Atoms]:
    return [Atoms(run.numbers, positions=p, cell=run.cell, pbc=run.pbc) for p in run.positions]


@pytest.mark.parametrize("periodic", [False, True])
def test_equals_tensors_contracted_in_memory(
    models: dict[str, ResponseNetwork], tmp_path: Path, periodic: bool
) -> None:
    run = trajectory(37, charge=-2, periodic=periodic)
    write_trajectory(tmp_path / "run.h5", run)
    reader = open_trajectory(tmp_path / "run.h5")
    summary = predict_derivatives(models, reader, tmp_path / "out.h5", batch_size=8, volume=60.0)
    series = read_derivatives(tmp_path / "out.h5")
    apt, pgt = (np.array(predict_tensors(models[t], frames_of(run))) for t in ("apt", "pgt"))
    projected = project_apt(apt, run.masses, -2), project_pgt(pgt, run.masses)
    dipole, polarizability = contract(*projected, run.velocities)
    np.testing.assert_allclose(series.dipole_derivative, dipole, atol=1e-9)  # positions pass through the file
    np.testing.assert_allclose(series.polarizability_derivative, polarizability, atol=1e-9)
    np.testing.assert_allclose(projected[0].sum(axis=1), np.tile(-2 * np.eye(3), (37, 1, 1)), atol=1e-12)
    residual = apt.sum(axis=1) + 2 * np.eye(3)
    assert summary["sum_rule_rms"]["apt"] == pytest.approx(np.sqrt(np.mean(residual**2)), rel=1e-6)
    assert summary["sum_rule_rms"]["pgt"] == pytest.approx(np.sqrt(np.mean(pgt.sum(axis=1) ** 2)), rel=1e-6)
    assert summary["n_frames"] == series.n_frames == 37
    volume = abs(np.linalg.det(run.cell)) if periodic else 60.0
    assert series.volume == pytest.approx(volume)
    assert series.is_periodic is periodic
    raw = predict_derivatives(models, reader, tmp_path / "raw.h5", projects_sum_rules=False)
    assert raw["volume"] == (pytest.approx(volume) if periodic else None)
    np.testing.assert_allclose(
        read_derivatives(tmp_path / "raw.h5").dipole_derivative, contract(apt, None, run.velocities)[0], atol=1e-9
    )


@pytest.mark.parametrize(("n_frames", "stride"), [(1, 4), (3, 4), (5, 4), (200, 2), (441, 3), (402, 5)])
def test_streamed_spline_is_the_spline_of_the_whole(
    models: dict[str, ResponseNetwork], tmp_path: Path, n_frames: int, stride: int
) -> None:
    run = trajectory(n_frames)
    write_trajectory(tmp_path / "run.h5", run)
    reader = open_trajectory(tmp_path / "run.h5", timestep=0.5)
    predict_derivatives(
        {"apt": models["apt"]}, reader, tmp_path / "out.h5", stride=stride, batch_size=8, projects_sum_rules=False
    )
    knots = np.unique(np.append(np.arange(0, n_frames, stride), n_frames - 1))
    apt = np.array(predict_tensors(models["apt"], [frames_of(run)[k] for k in knots]))
    whole = CubicSpline(knots, apt, axis=0)(np.arange(n_frames)) if len(knots) > 1 else apt
    expected = contract(whole, None, run.velocities)[0]
    found = read_derivatives(tmp_path / "out.h5").dipole_derivative
    np.testing.assert_allclose(found, expected, atol=1e-9)  # 20 knots of overlap leave 0.27**20 of a chunk's edge


def test_stride_approaches_every_frame(models: dict[str, ResponseNetwork], tmp_path: Path) -> None:
    write_trajectory(tmp_path / "run.h5", trajectory(161))
    reader = open_trajectory(tmp_path / "run.h5")
    for stride in (1, 2, 4):
        predict_derivatives(models, reader, tmp_path / f"{stride}.h5", stride=stride)
    every, second, fourth = (read_derivatives(tmp_path / f"{s}.h5").total_polarizability_derivative for s in (1, 2, 4))
    scale = np.abs(every).max()
    assert np.abs(second - every).max() < 1e-3 * scale
    assert np.abs(second - every).max() < np.abs(fourth - every).max() < 2e-2 * scale  # fourth order in the stride


def test_groups_sum_to_the_total(models: dict[str, ResponseNetwork], tmp_path: Path) -> None:
    write_trajectory(tmp_path / "run.h5", trajectory(10))
    for model in models.values():
        save_model(model, tmp_path / f"{model.target}.pt")
    paths = [tmp_path / "apt.pt", tmp_path / "pgt.pt"]
    whole = predict_files(paths, [tmp_path / "run.h5"], tmp_path / "all.h5")
    assert whole["targets"] == ["apt", "pgt"]
    parts = predict_files(paths, [tmp_path / "run.h5"], tmp_path / "folder", groups="species")
    series = read_derivatives(parts["files"][0]["path"])
    assert series.group_names == ("H", "O")
    np.testing.assert_allclose(
        series.total_dipole_derivative, read_derivatives(tmp_path / "all.h5").total_dipole_derivative, atol=1e-12
    )


def test_many_files_tensors_and_progress(models: dict[str, ResponseNetwork], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_trajectory(tmp_path / folder / "run.h5", trajectory(9))
    save_model(models["apt"], tmp_path / "apt.pt")
    seen: list[tuple[int, int]] = []
    result = predict_files(
        [tmp_path / "apt.pt"],
        [tmp_path / "a/run.h5", tmp_path / "b/run.h5"],
        tmp_path / "out",
        stride=4,
        tensors=tmp_path / "tensors.extxyz",
        progress=lambda done, total, _: seen.append((done, total)),
    )
    assert [Path(f["path"]).name for f in result["files"]] == ["run-0.h5", "run-1.h5"]
    assert seen[-1] == (18, 18)
    snapshots = read_labels(tmp_path / "tensors-run-1.extxyz")
    assert [s.atoms.info["snapshot"] for s in snapshots] == ["run-1/0", "run-1/4", "run-1/8"]  # unique, as its file
    assert snapshots[0].apt is not None
    np.testing.assert_allclose(snapshots[0].apt.sum(axis=0), 0.0, atol=1e-6)  # projected; eight decimals a value


def test_refusals(models: dict[str, ResponseNetwork], tmp_path: Path) -> None:
    run = trajectory(4)
    write_trajectory(tmp_path / "run.h5", run)
    reader = open_trajectory(tmp_path / "run.h5")
    out = tmp_path / "out.h5"
    with pytest.raises(ModelError, match="no model"):
        predict_derivatives({}, reader, out)
    with pytest.raises(ModelError, match="a model for pgt was given as the one for apt"):
        predict_derivatives({"apt": models["pgt"]}, reader, out)
    with pytest.raises(ModelError, match="stride must be at least 1"):
        predict_derivatives(models, reader, out, stride=0)
    with pytest.raises(ModelError, match="groups must be 6 integers"):
        predict_derivatives(models, reader, out, groups=np.zeros(3, dtype=int))
    still = Trajectory(
        run.numbers, run.positions, None, run.cell, run.pbc, run.timestep, run.masses, name="still", metadata={}
    )
    write_trajectory(tmp_path / "still.h5", still)
    with pytest.raises(TrajectoryError, match="no velocities"):
        predict_derivatives(models, open_trajectory(tmp_path / "still.h5"), out)
    sulfur = Trajectory(
        np.array([16] * 6), run.positions, run.velocities, run.cell, run.pbc, 0.5, run.masses, name="s", metadata={}
    )
    write_trajectory(tmp_path / "s.h5", sulfur)
    with pytest.raises(ModelError, match=r"s\.h5: the model knows the species H, O, but the structure has S"):
        predict_derivatives(models, open_trajectory(tmp_path / "s.h5"), out)
    save_model(models["apt"], tmp_path / "apt.pt")
    with pytest.raises(ModelError, match="two models for apt"):
        predict_files([tmp_path / "apt.pt"] * 2, [tmp_path / "run.h5"], out)
    with pytest.raises(ModelError, match="give a folder"):
        predict_files([tmp_path / "apt.pt"], [tmp_path / "run.h5"] * 2, out)
    with pytest.raises(ModelError, match="no trajectories"):
        predict_files([tmp_path / "apt.pt"], [], out)
    assert not out.exists()


GROUPS = """
units: molecules
groups:
  tagged: {molecule_of: {index: 0}}
  near: {within: {of: {all: [tagged, {species: O}]}, by: {species: O}, distance: 2.85}}
relations: [self, {neighbours: 2.0}]
"""


@pytest.mark.parametrize("stride", [1, 3])
def test_groups_and_relations_of_a_file(models: dict[str, ResponseNetwork], tmp_path: Path, stride: int) -> None:
    """The second molecule swings in and out of the shell of the first; chunks and spline leave the groups alone."""
    for target, network in models.items():
        save_model(network, tmp_path / f"{target}.pt")
    run = trajectory(150)
    write_trajectory(tmp_path / "run.h5", run)
    (tmp_path / "groups.yaml").write_text(GROUPS)
    paths = [tmp_path / f"{target}.pt" for target in models]
    common = {"batch_size": 4, "volume": 60.0, "stride": stride}
    found = predict_files(
        paths, [tmp_path / "run.h5"], tmp_path / "out.h5", groups=tmp_path / "groups.yaml", max_lag=10.0, **common
    )
    predict_files(paths, [tmp_path / "run.h5"], tmp_path / "all.h5", **common)
    series, plain = read_derivatives(tmp_path / "out.h5"), read_derivatives(tmp_path / "all.h5")
    assert series.group_names == ("tagged", "near", "rest")
    assert series.occupancies is not None
    assert series.occupancies[0] == 3
    assert 0 < series.occupancies[1] < 3
    assert found["files"][0]["occupancies"]["near"] == pytest.approx(series.occupancies[1])
    assert any("first frame" in note for note in found["notes"])
    np.testing.assert_allclose(series.total_dipole_derivative, plain.total_dipole_derivative, atol=1e-12)
    distance = np.linalg.norm(run.positions[:, 3] - run.positions[:, 0], axis=1)
    assert series.dipole_derivative is not None
    np.testing.assert_array_equal(series.dipole_derivative[:, 1].any(axis=1), distance <= 2.85)
    assert series.related is not None
    assert series.related.max_lag == 20
    settings = SpectrumSettings(window_length=10.0, n_bootstrap=2)
    cca = cca_spectra([series], settings)
    assert cca is not None
    found_sums = additivity(cca, ir_spectrum([plain], settings), raman_spectrum([plain], settings))
    assert max(found_sums.values()) < 1e-10
    assert series.metadata["groups"]["groups"]["near"]["within"]["distance"] == 2.85


def test_mistakes_in_groups_show_before_the_work(models: dict[str, ResponseNetwork], tmp_path: Path) -> None:
    save_model(models["apt"], tmp_path / "apt.pt")
    write_trajectory(tmp_path / "run.h5", trajectory(12))
    arguments = ([tmp_path / "apt.pt"], [tmp_path / "run.h5"], tmp_path / "out")
    (tmp_path / "g.yaml").write_text("groups: {a: {molecule: H3O}}")
    with pytest.raises(GroupError, match="no molecule H3O"):
        predict_files(*arguments, groups=tmp_path / "g.yaml")
    with pytest.raises(GroupError, match="'all', 'species' or a YAML file"):
        predict_files(*arguments, groups="molecules")
    (tmp_path / "g.yaml").write_text("groups: {a: {molecule: H2O}}\nrelations: [self]")
    with pytest.raises(GroupError, match="max_lag must be positive"):
        predict_files(*arguments, groups=tmp_path / "g.yaml", max_lag=-1.0)
    assert not list(tmp_path.glob("out/*.h5"))


@pytest.mark.parametrize(("n_frames", "stride"), [(12, 5), (11, 5), (9, 1)])
def test_tensors_that_are_written_are_equally_spaced(
    models: dict[str, ResponseNetwork], tmp_path: Path, n_frames: int, stride: int
) -> None:
    """The last frame is a knot of the spline, but written only where it is one of the regular frames."""
    write_trajectory(tmp_path / "run.h5", trajectory(n_frames))
    reader = open_trajectory(tmp_path / "run.h5")
    tensors = tmp_path / "tensors.extxyz"
    predict_derivatives({"apt": models["apt"]}, reader, tmp_path / "out.h5", stride=stride, tensors=tensors)
    written = open_trajectory(tensors)
    assert written.n_frames == len(range(0, n_frames, stride))
    assert written.timestep == pytest.approx(0.5 * stride)


def test_velocities_are_checked_before_the_work(models: dict[str, ResponseNetwork], tmp_path: Path) -> None:
    save_model(models["apt"], tmp_path / "apt.pt")
    run = trajectory(12)
    assert run.velocities is not None
    write_trajectory(tmp_path / "run.h5", replace(run, velocities=run.velocities * 10.18))
    with pytest.raises(TrajectoryError, match="velocities do not fit the positions"):
        predict_files([tmp_path / "apt.pt"], [tmp_path / "run.h5"], tmp_path / "out")


@pytest.mark.parametrize("stride", [1, 3])
def test_threads_change_nothing(models: dict[str, ResponseNetwork], tmp_path: Path, stride: int) -> None:
    write_trajectory(tmp_path / "run.h5", trajectory(300))
    reader = open_trajectory(tmp_path / "run.h5")
    for threads in (1, 3):
        predict_derivatives(
            models, reader, tmp_path / f"{threads}.h5", stride=stride, batch_size=1, threads=threads, volume=60.0
        )
    one, three = (read_derivatives(tmp_path / f"{threads}.h5") for threads in (1, 3))
    assert one.polarizability_derivative is not None
    np.testing.assert_array_equal(one.dipole_derivative, three.dipole_derivative)
    np.testing.assert_array_equal(one.polarizability_derivative, three.polarizability_derivative)


def test_processes_change_nothing(
    committees: dict[str, ResponseNetwork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "one.h5", tmp_path / "two.h5"]
    for path in paths:
        write_trajectory(path, trajectory(60))
    for target, network in committees.items():
        save_model(network, tmp_path / f"{target}.pt")
    models = [tmp_path / f"{target}.pt" for target in committees]
    settings: dict[str, Any] = {"stride": 2, "batch_size": 4, "volume": 60.0, "members": 3}
    predict_files(models, paths, tmp_path / "alone", **settings)
    monkeypatch.setattr(prediction_chunks, "_LONG_WORK", 1)
    called = []
    submit = prediction_chunks.ProcessPoolExecutor.submit
    monkeypatch.setattr(
        prediction_chunks.ProcessPoolExecutor, "submit", lambda *a, **k: called.append(1) or submit(*a, **k)
    )
    predict_files(models, paths, tmp_path / "shared", threads=2, **settings)
    assert called
    for path in paths:
        alone, shared = (read_derivatives(tmp_path / folder / path.name) for folder in ("alone", "shared"))
        np.testing.assert_array_equal(alone.dipole_derivative, shared.dipole_derivative)
        np.testing.assert_array_equal(alone.polarizability_derivative, shared.polarizability_derivative)
        assert alone.members is not None
        for target, values in vars(alone.members).items():
            np.testing.assert_array_equal(values, getattr(shared.members, target))


def test_a_lost_process_is_one_line(models: dict[str, ResponseNetwork]) -> None:
    def lose() -> None:
        with prediction_chunks.start_workers(models, 2, 10**9, "cpu") as workers:
            workers.executor.submit(os._exit, 1).result()

    with pytest.raises(ModelError, match="process that predicts ended unexpectedly"):
        lose()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("groups", ["all", "relations"])
@pytest.mark.parametrize(("stride", "threads"), [(1, 1), (3, 2)])
def test_an_interrupted_prediction_goes_on_to_the_identical_result(
    models: dict[str, ResponseNetwork], tmp_path: Path, stride: int, threads: int, groups: str
) -> None:
    write_trajectory(tmp_path / "run.h5", trajectory(600))
    reader = open_trajectory(tmp_path / "run.h5")
    (tmp_path / "groups.yaml").write_text(GROUPS)
    seen: list[int] = []

    def predict(name: str, stop_after: int | None = None, **changes: object) -> dict[str, object]:
        def progress(done: int, total: int, _: str) -> None:
            seen.append(done)
            if stop_after is not None and done >= stop_after:
                raise Interrupted

        resolved = groups_of(tmp_path / "groups.yaml", [reader]) if groups == "relations" else None
        settings = {
            "stride": stride,
            "threads": threads,
            "groups": resolved,
            "max_lag": 50.0,
            "volume": 60.0,
            "batch_size": 8,
            "tensors": tmp_path / f"{name}.extxyz",
            "restart": True,
            "checkpoint_interval": 0.0,
            "progress": progress,
            **changes,
        }
        return predict_derivatives(models, reader, tmp_path / f"{name}.h5", **settings)

    whole = predict("whole")
    assert "restart" not in whole
    with pytest.raises(Interrupted):
        predict("cut", stop_after=250)
    assert not (tmp_path / "cut.h5").exists()
    with pytest.raises(Interrupted):
        predict("cut", stop_after=450)
    seen.clear()
    found = predict("cut")
    assert str(found["restart"]).startswith("went on from frame ")
    assert min(seen) > 250
    assert {k: v for k, v in found.items() if k not in ("path", "restart")} == {
        k: v for k, v in whole.items() if k != "path"
    }
    one, other = read_derivatives(tmp_path / "whole.h5"), read_derivatives(tmp_path / "cut.h5")
    for key in ("dipole_derivative", "polarizability_derivative", "kinetic_temperature", "apt_square", "pgt_square"):
        np.testing.assert_array_equal(getattr(one, key), getattr(other, key))
    if groups == "relations":
        assert one.related is not None
        assert other.related is not None
        np.testing.assert_array_equal(one.related.polarizability, other.related.polarizability)
    assert (tmp_path / "whole.extxyz").read_bytes() == (tmp_path / "cut.extxyz").read_bytes()
    assert sorted(p.name for p in tmp_path.glob("cut.*")) == ["cut.extxyz", "cut.h5"]
    seen.clear()
    assert predict("cut")["restart"] == "already predicted; kept"
    assert not seen
    with pytest.raises(Interrupted):
        predict("other", stop_after=450)
    afresh = predict("other", projects_sum_rules=False)
    assert "belongs to other inputs; started afresh" in str(afresh["restart"])
    again = predict("plain", projects_sum_rules=False)
    assert afresh["sum_rule_rms"] == again["sum_rule_rms"]
    np.testing.assert_array_equal(
        read_derivatives(tmp_path / "other.h5").dipole_derivative,
        read_derivatives(tmp_path / "plain.h5").dipole_derivative,
    )


def test_a_damaged_part_is_started_afresh(models: dict[str, ResponseNetwork], tmp_path: Path) -> None:
    write_trajectory(tmp_path / "run.h5", trajectory(300))
    reader = open_trajectory(tmp_path / "run.h5")

    def stop(done: int, *_: object) -> None:
        if done > 150:
            raise Interrupted

    settings = {"stride": 1, "volume": 60.0, "batch_size": 8, "restart": True, "checkpoint_interval": 0.0}
    for damage in (".part", ".part.state"):
        with pytest.raises(Interrupted):
            predict_derivatives(models, reader, tmp_path / "out.h5", progress=stop, **settings)
        part = tmp_path / f"out.h5{damage}"
        part.write_bytes(part.read_bytes()[:100])
        found = predict_derivatives(models, reader, tmp_path / "out.h5", **settings)
        assert "started afresh" in found["restart"]
        (tmp_path / "out.h5").unlink()


def test_other_weights_are_other_inputs(models: dict[str, ResponseNetwork], tmp_path: Path) -> None:
    write_trajectory(tmp_path / "run.h5", trajectory(30))
    arguments = ([tmp_path / "apt.pt"], [tmp_path / "run.h5"], tmp_path / "out.h5")
    save_model(models["apt"], tmp_path / "apt.pt")
    predict_files(*arguments)
    first = read_derivatives(tmp_path / "out.h5").dipole_derivative
    assert predict_files(*arguments)["files"][0]["restart"] == "already predicted; kept"
    assert "restart" not in predict_files(*arguments, restart=False)["files"][0]
    changed = copy.deepcopy(models["apt"])
    changed.scale *= 1.5
    save_model(changed, tmp_path / "apt.pt")
    assert predict_files(*arguments)["files"][0]["restart"] == "replaced an earlier result"
    second = read_derivatives(tmp_path / "out.h5").dipole_derivative
    assert first is not None
    assert second is not None
    assert np.abs(second - first).max() > 0.1 * np.abs(first).max()


def test_stride_is_chosen_by_spectral_distance(models: dict[str, ResponseNetwork], tmp_path: Path) -> None:
    write_trajectory(tmp_path / "run.h5", trajectory(2500))
    paths = []
    for target, model in models.items():
        paths.append(tmp_path / f"{target}.pt")
        save_model(model, paths[-1])
    chosen = {}
    for tolerance in (1e-5, 1e-3, 0.3):
        found = predict_files(paths, [tmp_path / "run.h5"], tmp_path / "o.h5", stride_tolerance=tolerance, volume=60.0)
        check = found["stride_check"]
        assert check["frames_checked"] == 400  # 200 fs
        assert list(check["strides"]) == ["2", "4", "8", "16"]
        assert sorted(check["strides"]["2"]) == ["ir", "iso", "iso_weighted", "vh", "vh_weighted", "vv", "vv_weighted"]
        worst = {int(s): max(d.values()) for s, d in check["strides"].items()}
        assert check["chosen"] == max([s for s in worst if worst[s] <= tolerance], default=1)
        assert found["files"][0]["stride"] == check["chosen"]
        assert read_derivatives(tmp_path / "o.h5").metadata["stride_check"] == check
        chosen[tolerance] = check["chosen"]
    assert chosen[1e-5] < chosen[1e-3] < chosen[0.3]
    assert worst[2] < worst[4] < worst[8] < worst[16]
    off = predict_files(paths, [tmp_path / "run.h5"], tmp_path / "o.h5", stride=1, volume=60.0)
    assert "stride_check" not in off


def test_distances_of_the_check_are_those_of_spectra(models: dict[str, ResponseNetwork], tmp_path: Path) -> None:
    run = trajectory(2500)
    write_trajectory(tmp_path / "run.h5", run)
    write_trajectory(tmp_path / "segment.h5", trajectory(400))
    found = predict_derivatives(models, open_trajectory(tmp_path / "run.h5"), tmp_path / "all.h5", volume=60.0)
    assert found["stride"] > 1
    check = read_derivatives(tmp_path / "all.h5").metadata["stride_check"]
    settings = SpectrumSettings(window_length=100.0, n_bootstrap=2)
    spectra = {}
    for stride in (1, 4):
        reader = open_trajectory(tmp_path / "segment.h5")
        predict_derivatives(models, reader, tmp_path / f"{stride}.h5", stride=stride, volume=60.0)
        series = read_derivatives(tmp_path / f"{stride}.h5")
        raman = raman_spectrum([series], settings)
        ir = ir_spectrum([series], settings)
        spectra[stride] = {"ir": ir.n_alpha, "iso": raman.iso, "vv": raman.vv, "vh": raman.vh}
        spectra[stride] |= {f"{kind}_weighted": raman.weighted[kind] for kind in ("iso", "vv", "vh")}
    for kind, distance in check["strides"]["4"].items():
        expected = spectral_distance(ir.wavenumber, spectra[1][kind], spectra[4][kind])
        assert distance == pytest.approx(expected, rel=1e-4), kind


def test_check_of_files_alone(models: dict[str, ResponseNetwork], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_trajectory(tmp_path / f"{name}.h5", trajectory(1500))
    save_model(models["apt"], tmp_path / "apt.pt")
    arguments = ([tmp_path / "apt.pt"], [tmp_path / "a.h5", tmp_path / "b.h5"])
    found = check_stride_files(*arguments)
    assert found.pop("trajectory") == "a"
    assert found == predict_files(*arguments, tmp_path / "out")["stride_check"]
    assert found["frames_checked"] == 400


@pytest.fixture(scope="module")
def committees() -> dict[str, ResponseNetwork]:
    networks = {}
    settings = DensitySettings(n_channels=4, n_radial=4, n_bond=2, n_message_channels=3, n_hidden=8, l_max=3)
    frames = frames_of(trajectory(40))[::8]
    rng = np.random.default_rng(0)
    labels = []
    for atoms in frames:
        pgt = rng.normal(size=(6, 3, 3, 3))
        labels.append(LabelledSnapshot(atoms, rng.normal(size=(6, 3, 3)), pgt + pgt.swapaxes(2, 3)))
    for target in ("apt", "pgt"):
        network = build_network(settings, [1, 8], target, seed=3, dtype=torch.float64).eval()
        network.posterior = fit_posterior(network, labels)
        networks[target] = network
    return networks


@pytest.mark.parametrize(("stride", "threads"), [(1, 1), (3, 2)])
def test_members_are_networks_of_their_own(
    committees: dict[str, ResponseNetwork], tmp_path: Path, stride: int, threads: int
) -> None:
    run = trajectory(151, charge=1)
    write_trajectory(tmp_path / "run.h5", run)
    reader = open_trajectory(tmp_path / "run.h5")
    settings = {"stride": stride, "batch_size": 4, "threads": threads, "volume": 60.0}
    predict_derivatives(committees, reader, tmp_path / "out.h5", members=3, **settings)
    predict_derivatives(committees, reader, tmp_path / "plain.h5", **settings)
    series, plain = read_derivatives(tmp_path / "out.h5"), read_derivatives(tmp_path / "plain.h5")
    for key in ("dipole_derivative", "polarizability_derivative"):
        np.testing.assert_allclose(getattr(series, key), getattr(plain, key), rtol=1e-9, atol=1e-12)
    assert plain.members is None
    assert series.members is not None
    assert series.metadata["committee"]["n_members"] == 3
    assert sorted(series.metadata["committee"]["models"]) == ["apt", "pgt"]
    weights = {t: n.posterior.offsets(3, 0) for t, n in committees.items()}
    for member in range(3):
        own = copy.deepcopy(committees)
        for target, network in own.items():
            with torch.no_grad():
                for parameter, offset in zip(network.readout, weights[target], strict=True):
                    parameter += offset[member]
        predict_derivatives(own, reader, tmp_path / "own.h5", **settings)
        expected = read_derivatives(tmp_path / "own.h5")
        for found, total in (
            (series.members.dipole, expected.total_dipole_derivative),
            (series.members.polarizability, expected.total_polarizability_derivative),
        ):
            assert found is not None
            scale = np.abs(total).max()
            np.testing.assert_allclose(found[member], total, atol=1e-4 * scale)  # 1e-5 of weights is left out
    assert series.members.dipole is not None
    assert series.members.dipole.std(axis=0).max() > 1e-2 * np.abs(series.members.dipole).max()


def test_no_members_without_a_posterior(
    models: dict[str, ResponseNetwork], committees: dict[str, ResponseNetwork], tmp_path: Path
) -> None:
    write_trajectory(tmp_path / "run.h5", trajectory(12))
    save_model(models["apt"], tmp_path / "apt.pt")
    save_model(committees["pgt"], tmp_path / "pgt.pt")
    with pytest.raises(ModelError, match="a committee needs a network whose last layer is linear"):
        predict_files([tmp_path / "apt.pt"], [tmp_path / "run.h5"], tmp_path / "out", members=4)
    with pytest.raises(ModelError, match="members must be 0, for no committee, or at least 2, got 1"):
        predict_files([tmp_path / "pgt.pt"], [tmp_path / "run.h5"], tmp_path / "out", members=1)
    found = predict_files([tmp_path / "pgt.pt"], [tmp_path / "run.h5"], tmp_path / "out", members=4)
    members = read_derivatives(found["files"][0]["path"]).members
    assert members is not None
    assert members.dipole is None
    assert members.polarizability is not None
    assert members.polarizability.shape == (4, 12, 6)
    assert set(found["files"][0]["uncertainty"]) == {"pgt H", "pgt O"}


def test_uncertainty_of_frames_is_that_of_the_posterior(committees: dict[str, ResponseNetwork], tmp_path: Path) -> None:
    write_trajectory(tmp_path / "run.h5", trajectory(12))
    reader = open_trajectory(tmp_path / "run.h5")
    found = predict_derivatives(
        {"apt": committees["apt"]}, reader, tmp_path / "out.h5", members=300, projects_sum_rules=False, stride=1
    )
    network = committees["apt"]
    graphs = [network.graph(atoms) for atoms in frames_of(trajectory(12))]
    expected = relative_uncertainties(network, join(graphs))
    for column, symbol in enumerate(("H", "O")):
        record = found["uncertainty"][f"apt {symbol}"]
        # 300 members know a variance to 8 % or better
        assert record["rms"] == pytest.approx(np.sqrt((expected[:, column] ** 2).mean()), rel=0.1)
        assert record["largest"] == pytest.approx(expected[record["frame"], column], rel=0.1)
        assert record["largest"] == pytest.approx(expected[:, column].max(), rel=0.1)


def test_too_short_for_a_check(models: dict[str, ResponseNetwork], tmp_path: Path) -> None:
    save_model(models["apt"], tmp_path / "apt.pt")
    for n_frames in (399, 1200):
        write_trajectory(tmp_path / "run.h5", trajectory(n_frames))
        found = predict_files([tmp_path / "apt.pt"], [tmp_path / "run.h5"], tmp_path / f"{n_frames}.h5")
        assert found["stride_check"]["chosen"] == found["files"][0]["stride"] == 1
        assert "too few frames for a check" in found["notes"][0]


def test_no_gpu(models: dict[str, ResponseNetwork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_trajectory(tmp_path / "run.h5", trajectory(3))
    reader = open_trajectory(tmp_path / "run.h5")
    with pytest.raises(ModelError, match="torch finds no CUDA device here; use device cpu"):
        predict_derivatives(models, reader, tmp_path / "out.h5", device="cuda")
    with pytest.raises(ModelError, match="threads must be at least 1, got 0"):
        predict_derivatives(models, reader, tmp_path / "out.h5", threads=0)


def test_a_network_can_be_trained_after_a_prediction_in_one_process(models: dict[str, ResponseNetwork]) -> None:
    change_of_basis.cache_clear()  # what a prediction makes and keeps must serve gradients too
    snapshot = molecule("H2O")
    for network in models.values():
        predict_tensors(network, [snapshot])
        network(network.graph(snapshot)).pow(2).sum().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert gradients
        network.zero_grad()
