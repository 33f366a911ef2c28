"""Which snapshots are labelled."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from mimyria_wf.committee import fit_posterior
from mimyria_wf.errors import LabelError, ModelError
from mimyria_wf.irreps import tensor_shape
from mimyria_wf.labels import LabelledSnapshot
from mimyria_wf.network import build_network, load_model, save_model
from mimyria_wf.presets import DensitySettings
from mimyria_wf.selection import select_files, select_snapshots, split_by_trajectory
from mimyria_wf.trajectory import Trajectory, write_trajectory


def frames_of(pairs: tuple[tuple[int, int], ...], trajectory: int) -> list[int]:
    """Return the sorted frames drawn from one trajectory."""
    return sorted(frame for k, frame in pairs if k == trajectory)


@pytest.mark.parametrize("n_frames", [[1000] * 8, [1000, 10, 500, 500], [400, 400], [400]])
@pytest.mark.parametrize("seed", [0, 1, 2026])
def test_sets_have_their_size_and_share_no_frame(n_frames: list[int], seed: int) -> None:
    chosen = select_snapshots(n_frames, 40, 10, seed)
    assert len(set(chosen.training)) == len(chosen.training) == 40
    assert len(set(chosen.test)) == len(chosen.test) == 10
    assert not set(chosen.training) & set(chosen.test)
    assert all(0 <= frame < n_frames[k] for k, frame in chosen.training + chosen.test)


def test_with_three_trajectories_the_sets_share_none() -> None:
    for n in (3, 4, 8, 20):
        chosen = select_snapshots([200] * n, 30, 10, seed=n)
        training, test = ({k for k, _ in part} for part in (chosen.training, chosen.test))
        assert not training & test
        assert len(test) == max(1, round(n / 5))
        assert training | test == set(range(n))


@pytest.mark.parametrize("n", [1, 2])
def test_with_fewer_the_sets_lie_apart_in_time(n: int) -> None:
    chosen = select_snapshots([1000] * n, 30, 10, seed=3)
    for k in range(n):
        gap = min(frames_of(chosen.test, k)) - max(frames_of(chosen.training, k))
        assert gap > 100  # a tenth of the trajectory at least


def test_growing_sets_are_nested_and_unbiased() -> None:
    """The first n of the list are the training set of size n: any first half sees all trajectories."""
    chosen = select_snapshots([1000] * 10, 80, 10, seed=5)
    counts = Counter(k for k, _ in chosen.training)
    assert set(counts.values()) == {10}  # eight training trajectories share evenly
    half = Counter(k for k, _ in chosen.training[:40])
    assert len(half) == 8
    assert np.mean([frame for _, frame in chosen.training[:40]]) == pytest.approx(500, abs=150)


def test_frames_of_one_trajectory_are_spread_over_it() -> None:
    """One from each of equal stretches: never two stretches empty side by side."""
    chosen = select_snapshots([1000], 14, 4, seed=7)
    frames = frames_of(chosen.training, 0)
    assert frames[0] < 50
    assert frames[-1] >= 650
    assert max(b - a for a, b in pairwise(frames)) <= 100
    assert [frame // 50 for frame in frames] == list(range(14))


@pytest.mark.parametrize("seed", range(20))
def test_minimum_gap_holds(seed: int) -> None:
    chosen = select_snapshots([100, 100], 14, 4, seed=seed, minimum_gap=7)
    for part in (chosen.training, chosen.test):
        for k in range(2):
            assert all(b - a >= 7 for a, b in pairwise(frames_of(part, k)))


@pytest.mark.parametrize("seed", range(5))
def test_all_frames_can_be_drawn(seed: int) -> None:
    chosen = select_snapshots([10], 7, 2, seed=seed)
    assert frames_of(chosen.training, 0) == list(range(7))
    assert frames_of(chosen.test, 0) == [8, 9]


def test_seeds_decide() -> None:
    one, same, other = (select_snapshots([500] * 5, 20, 5, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_excluded_trajectories_are_never_touched() -> None:
    for seed in range(10):
        chosen = select_snapshots([300] * 5, 30, 10, seed=seed, excluded=(0, 3))
        assert {k for k, _ in chosen.training + chosen.test} <= {1, 2, 4}


@pytest.mark.parametrize(
    ("n_frames", "n_training", "n_test", "excluded", "words"),
    [
        ([10] * 3, 21, 1, (), "training set asks for 21 snapshots but its trajectories hold 20"),
        ([10] * 3, 1, 11, (), "test set asks for 11 snapshots but its trajectories hold 10"),
        ([10], 1, 1, (0,), "no trajectory is left"),
        ([], 1, 1, (), "no trajectory is left"),
        ([0, 0], 1, 1, (), "no trajectory is left"),
        ([1], 1, 1, (), "snapshots but its trajectories hold 0"),
    ],
)
def test_too_few_frames(n_frames: list[int], n_training: int, n_test: int, excluded: tuple[int], words: str) -> None:
    with pytest.raises(LabelError, match=words):
        select_snapshots(n_frames, n_training, n_test, seed=1, excluded=excluded)


def test_too_few_frames_for_the_gap() -> None:
    with pytest.raises(LabelError, match="lengthen the trajectories or ask for fewer"):
        select_snapshots([100], 14, 2, seed=1, minimum_gap=10)


# ----------------------------------------------------------------------------------------------------- labels elsewhere


def test_given_labels_split_by_trajectory() -> None:
    names = [f"nve-{k:03d}/{10 * frame}" for k in range(6) for frame in range(5)]
    training, test = split_by_trajectory(names, 15, 5, seed=4)
    assert len(set(training)) == 15
    assert len(set(test)) == 5
    assert not {names[i].split("/")[0] for i in training} & {names[i].split("/")[0] for i in test}
    assert split_by_trajectory(names, 15, 5, seed=4) == (training, test)
    shorter, same_test = split_by_trajectory(names, 7, 5, seed=4)
    assert shorter == training[:7]  # nested, and measured against the same test set
    assert same_test == test


def test_snapshots_without_a_name_count_as_independent() -> None:
    training, test = split_by_trajectory([""] * 10, 6, 4, seed=1)
    assert sorted(training + test) == list(range(10))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/1", "a/2", "a/3"], "single trajectory"),
        (["a/1", "a/2", "b/1"], "ask for fewer or give a test set"),
    ],
)
def test_labels_that_do_not_split(names: list[str], words: str) -> None:
    with pytest.raises(LabelError, match=words):
        split_by_trajectory(names, 2, 2, seed=1)


# ---------------------------------------------------------------------------------------------------------------- files


def write_runs(folder: Path, n_runs: int, n_frames: int = 30) -> list[Path]:
    """Write NVE runs of one helium dimer that drifts by a frame's number."""
    paths = []
    for k in range(n_runs):
        positions = np.zeros((n_frames, 2, 3))
        positions[:, 1, 0] = 3.0
        positions += 100.0 * k + np.arange(n_frames)[:, None, None]
        paths.append(folder / f"nve-{k:03d}.h5")
        write_trajectory(
            paths[-1],
            Trajectory(
                numbers=np.array([2, 2]),
                positions=positions,
                velocities=np.zeros_like(positions),
                cell=np.zeros((3, 3)),
                pbc=np.array([False] * 3),
                timestep=0.5,
                masses=np.array([4.0, 4.0]),
                name=f"nve-{k:03d}",
            ),
        )
    return paths


def test_files_hold_the_frames_they_name(tmp_path: Path) -> None:
    paths = write_runs(tmp_path, 4)
    options = {"n_training": 9, "n_test": 3, "seed": 1, "excluded": ["nve-002"], "charge": 1, "multiplicity": 2}
    result = select_files(paths, tmp_path / "out", **options)
    for part in ("training", "test"):
        snapshots = ase.io.read(tmp_path / "out" / f"{part}.extxyz", index=":")
        assert [atoms.info["snapshot"] for atoms in snapshots] == result[part]
        for atoms in snapshots:
            run, frame = atoms.info["snapshot"].split("/")
            assert run != "nve-002"
            assert atoms.positions[0, 1] == pytest.approx(100 * int(run[-3:]) + int(frame), abs=1e-7)
            assert (atoms.info["charge"], atoms.info["multiplicity"]) == (1, 2)


def test_a_run_that_is_not_there_cannot_be_excluded(tmp_path: Path) -> None:
    paths = write_runs(tmp_path, 2)
    with pytest.raises(LabelError, match=r"no trajectory is called nve-007; there are nve-000, nve-001"):
        select_files(paths, tmp_path / "out", n_training=1, n_test=1, seed=1, excluded=["nve-007"])
    assert not (tmp_path / "out").exists()


def model_of(labelled: list[Atoms], path: Path, target: str = "apt") -> Path:
    """Write a network with random weights whose posterior is that of random labels."""
    random = np.random.default_rng(0)
    labels = []
    for atoms in labelled:
        tensors = random.normal(size=(len(atoms), *tensor_shape(target)))
        labels.append(LabelledSnapshot(atoms, **{target: tensors + tensors.swapaxes(-1, -2)}))
    network = build_network(
        DensitySettings(l_max=2 if target == "apt" else 3, n_channels=2, n_radial=3), [1, 8], target
    )
    network.adapt([network.graph(atoms) for atoms in labelled])
    network.posterior = fit_posterior(network, labels)
    save_model(network, path)
    return path


def water_runs(folder: Path, n: int = 4, n_frames: int = 120) -> list[Path]:
    """Write runs of two waters that move more and more with the number of the run."""
    paths = []
    for k in range(n):
        random = np.random.default_rng(k)
        rest = np.array([[0, 0, 0], [0, 0.8, 0.6], [0, -0.8, 0.6], [2.8, 0, 0], [3.3, 0.8, 0.2], [3.2, -0.6, 0.5]])
        positions = rest + random.normal(scale=0.02 * (k + 1), size=(n_frames, 6, 3))
        numbers, still = np.array([8, 1, 1, 8, 1, 1]), np.zeros_like(positions)
        masses = np.array([15.999, 1.008, 1.008] * 2)
        run = Trajectory(numbers, positions, still, np.zeros((3, 3)), np.zeros(3, bool), 0.5, masses)
        paths.append(folder / f"nve-{k}.h5")
        write_trajectory(paths[-1], run)
    return paths


def held_by(result: dict[str, list[str]]) -> int:
    """Return the number of the run that is set aside for the test."""
    return int(result["test"][0].split("/")[0].rpartition("-")[2])


def test_committee_selection_goes_on_from_a_random_one(tmp_path: Path) -> None:
    paths = water_runs(tmp_path)
    first = select_files(paths, tmp_path / "1", n_training=4, n_test=6, seed=3)
    known = ase.io.read(tmp_path / "1" / "training.extxyz", ":")
    models = [model_of(known, tmp_path / f"{target}.pt", target) for target in ("apt", "pgt")]
    labelled = tmp_path / "1" / "training.extxyz"
    second = select_files(
        paths, tmp_path / "2", n_training=10, n_test=6, seed=3, models=models, labelled=labelled, n_candidates=40
    )
    assert second["training"][:4] == first["training"]  # nested
    assert second["test"] == first["test"]
    assert len(set(second["training"])) == 10
    assert not {name.split("/")[0] for name in second["training"]} & {name.split("/")[0] for name in second["test"]}
    assert second["n_labelled"] == 4
    assert 30 < second["n_candidates"] <= 40
    assert set(second["uncertainty"]) == {"apt H", "apt O", "pgt H", "pgt O"}
    assert all(u["after"] < u["before"] for u in second["uncertainty"].values())
    worst = max(second["uncertainty"], key=lambda name: second["uncertainty"][name]["before"])
    assert second["uncertainty"][worst]["after"] <= second["uncertainty"][worst]["after_random"]
    frames = [(name.split("/")[0], int(name.split("/")[1])) for name in second["training"]]
    gap = 3 * 120 // 80
    assert all(abs(f - g) >= gap for i, (a, f) in enumerate(frames[4:], 4) for b, g in frames[:i] if a == b)
    written = ase.io.read(tmp_path / "2" / "training.extxyz", ":")
    assert [atoms.info["snapshot"] for atoms in written] == second["training"]
    np.testing.assert_allclose(written[0].positions, known[0].positions)
    again = select_files(
        paths, tmp_path / "3", n_training=10, n_test=6, seed=3, models=models, labelled=labelled, n_candidates=40
    )
    assert again == second


def test_committee_selection_says_what_is_wrong(tmp_path: Path) -> None:
    paths = water_runs(tmp_path)
    first = select_files(paths, tmp_path / "3", n_training=30, n_test=6, seed=3)
    labelled = tmp_path / "3" / "training.extxyz"
    model = model_of(ase.io.read(labelled, ":"), tmp_path / "apt.pt")
    kwargs = {"n_training": 40, "n_test": 6, "seed": 3}
    with pytest.raises(LabelError, match="needs both models and the labels"):
        select_files(paths, tmp_path / "x", **kwargs, models=[model])
    with pytest.raises(LabelError, match="needs both models and the labels"):
        select_files(paths, tmp_path / "x", **kwargs, labelled=labelled)
    with pytest.raises(ModelError, match="one model for each target, got models for apt, apt"):
        select_files(paths, tmp_path / "x", **kwargs, models=[model, model], labelled=labelled)
    with pytest.raises(LabelError, match="30 snapshots are labelled already, 30 are asked for"):
        select_files(paths, tmp_path / "x", **kwargs | {"n_training": 30}, models=[model], labelled=labelled)
    other = next(seed for seed in range(20) if select_snapshots([120] * 4, 30, 6, seed).test[0][0] != held_by(first))
    with pytest.raises(LabelError, match="belongs to what is set aside for the test"):
        select_files(paths, tmp_path / "x", **kwargs | {"seed": other}, models=[model], labelled=labelled)
    bare = load_model(model)
    bare.posterior = None
    save_model(bare, tmp_path / "bare.pt")
    with pytest.raises(ModelError, match="choosing snapshots by uncertainty needs the posterior"):
        select_files(paths, tmp_path / "x", **kwargs, models=[tmp_path / "bare.pt"], labelled=labelled)
    assert not (tmp_path / "x").exists()
