"""The torch-sim engine: equal to ASE's dynamics, exact where that is known; restarts, explosions, failures."""

import shutil
import subprocess
import sys
from pathlib import Path

import ase
import ase.build
import ase.io
import ase.units
import numpy as np
import pytest
import torch

from mimyria_wf.errors import EngineError
from mimyria_wf.md import (
    NveSettings,
    NvtSettings,
    maxwell_boltzmann,
    read_starts,
    run_nve,
    sample_nve,
    sample_nvt,
    without_translation,
    write_starts,
)
from mimyria_wf.torchsim_engine import run_nve_batch
from mimyria_wf.torchsim_models import Potential, TorchSimCalculator, import_torch_sim, make_model, make_state
from mimyria_wf.trajectory import Trajectory, check_velocities, open_trajectory

pytest.importorskip("torch_sim", reason="needs the extra torch-sim")

WATER = {"import": "mimyria_wf.flexible_water:flexible_water", "arguments": {"cutoff": 4.5}}
SPRINGS = {"import": "test_torchsim_engine:springs", "arguments": {}}
CONSTANT, LENGTH = 40.0, 1.0


def springs(*, device: torch.device, dtype: torch.dtype, fault: str = "", fault_at: int = 0):
    """Return a potential of diatomics on a spring [eV/A^2], all at once; a fault befalls the last one at some call."""
    interface = import_torch_sim("torch_sim.models.interface").ModelInterface

    class Springs(interface):
        def __init__(self):
            super().__init__()
            self._device, self._dtype, self.n_calls = device, dtype, 0
            self._compute_forces, self._compute_stress = True, False

        def forward(self, state, **_):
            assert state.positions.dtype == dtype
            state.positions.requires_grad_(True)  # as MACE does
            if not torch.isfinite(state.positions).all():
                raise ValueError("a neighbour list would fail here")
            assert state.positions.is_leaf
            bonds = state.positions[1::2] - state.positions[::2]
            lengths = bonds.norm(dim=1)
            pull = CONSTANT * (1 - LENGTH / lengths)[:, None] * bonds
            found = {
                "energy": 0.5 * CONSTANT * (lengths - LENGTH) ** 2,
                "forces": torch.stack([pull, -pull], 1).reshape(-1, 3),
            }
            if self.n_calls == fault_at and len(lengths) > 1:
                if fault == "nan":
                    found["forces"][-1, 0] = np.nan
                elif fault == "energy":
                    found["energy"][-1] = np.inf
                elif fault == "huge":
                    found["forces"][-2:] *= 1e7
            if fault == "shape":
                found["energy"] = found["energy"].sum()[None]
            elif fault == "key":
                del found["forces"]
            elif fault == "raise":
                raise RuntimeError("traceback\nno such element")
            elif fault == "tuple":
                return found["energy"], found["forces"]
            self.n_calls += 1
            return found

    return Springs()


def argon(*, device: torch.device, dtype: torch.dtype):
    """Return Lennard-Jones argon, clusters of seven atoms, with the energies of ase.calculators.lj at rc = 30 A."""
    interface = import_torch_sim("torch_sim.models.interface").ModelInterface

    class Argon(interface):
        def __init__(self):
            super().__init__()
            self._device, self._dtype = device, dtype

        def forward(self, state, **_):
            with torch.enable_grad():
                positions = state.positions.detach().requires_grad_(True)
                distances = torch.stack([torch.pdist(cluster) for cluster in positions.reshape(-1, 7, 3)])
                sixth, end = (3.4 / distances) ** 6, (3.4 / 30) ** 6
                energy = (4 * 0.0104 * (sixth**2 - sixth - end**2 + end)).sum(1)
                (gradient,) = torch.autograd.grad(energy.sum(), positions)
            return {"energy": energy, "forces": -gradient}

    return Argon()


def ase_calculator():
    """Return what the engine torch-sim must refuse."""
    from ase.calculators.lj import LennardJones

    return LennardJones()


def diatomic(velocity: float = 0.0, bond: float = 1.05, pbc: bool = False) -> ase.Atoms:
    """Return OH, stretched, with a velocity along its bond [A/fs]."""
    atoms = ase.Atoms("OH", positions=[[0, 0, 0], [bond, 0, 0]])
    atoms.set_velocities(np.array([[0, 0, 0], [velocity + 1e-12, 0, 0]]) / ase.units.fs)
    if pbc:
        atoms.cell, atoms.pbc = np.eye(3) * 8, True
    return atoms


def water(n: int, seed: int, temperature: float, cell: np.ndarray | None = None) -> ase.Atoms:
    """Return water molecules on a lattice, turned at random, some of them outside of the cell."""
    rng = np.random.default_rng(seed)
    molecule = ase.build.molecule("H2O")
    box = np.eye(3) * 3.2 * np.ceil(n ** (1 / 3)) if cell is None else cell
    atoms = ase.Atoms(cell=box, pbc=cell is not None)
    n_edge = int(np.ceil(n ** (1 / 3)))
    for place in list(np.ndindex(n_edge, n_edge, n_edge))[:n]:
        one = molecule.copy()
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.translate(np.array(place) @ box / n_edge + (box[0] if place[0] == 1 and cell is not None else 0))
        atoms += one
    masses = atoms.get_masses()
    masses[1:6] = 2.014
    atoms.set_masses(masses)
    atoms.set_velocities(maxwell_boltzmann(masses, temperature, rng) / ase.units.fs)
    if cell is None:
        atoms.cell = None
    return atoms


def frames(path: Path) -> Trajectory:
    """Return all frames of a trajectory."""
    return next(iter(open_trajectory(path).chunks(100_000)))[1]


def paths_of(directory: Path, n: int) -> list[Path]:
    return [directory / f"nve-{i:03d}.h5" for i in range(n)]


def test_batch_equals_ase_in_cells_that_differ(tmp_path):
    triclinic = np.array([[10.1, 0, 0], [1.7, 9.9, 0], [-1.2, 0.9, 10.4]])
    starts = [
        water(18, 1, 150, triclinic),
        water(12, 2, 300, np.eye(3) * 10.0),
        water(18, 3, 700, triclinic * 1.05),
    ]
    write_starts(tmp_path / "starts.extxyz", starts)
    settings = NveSettings(timestep=0.5, n_steps=161, stride=2)
    result = sample_nve(
        tmp_path / "starts.extxyz", tmp_path / "batch", calculator=WATER, settings=settings, engine="torch-sim"
    )
    calculator = TorchSimCalculator(make_model(WATER["import"], WATER["arguments"]))
    for i, start in enumerate(read_starts(tmp_path / "starts.extxyz")):
        expected = run_nve(start, calculator, settings, tmp_path / f"ase-{i}.h5")
        one, other = frames(tmp_path / f"ase-{i}.h5"), frames(tmp_path / "batch" / f"nve-{i:03d}.h5")
        assert one.n_frames == other.n_frames == 81
        np.testing.assert_array_equal(other.cell, one.cell)
        np.testing.assert_array_equal(other.masses, one.masses)
        assert other.timestep == one.timestep == 1.0
        # the first steps are equal to round-off, which then grows by the dynamics' own chaos
        np.testing.assert_allclose(other.positions[:3], one.positions[:3], rtol=0, atol=1e-13)
        np.testing.assert_allclose(other.positions, one.positions, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(other.velocities, one.velocities, rtol=1e-9, atol=1e-10)
        for key in ("potential_energy", "kinetic_energy", "temperature"):
            np.testing.assert_allclose(other.observables[key], one.observables[key], rtol=1e-9)
        # unwrapped: atoms that start outside of the cell stay there, and none jumps
        assert np.abs(np.diff(other.positions, axis=0)).max() < 0.5
        summary = result["trajectories"][i]
        for key, value in expected.to_dict().items():
            if key in ("energy_drift", "energy_std", "energy_fluctuation_ratio", "temperature", "temperature_std"):
                assert summary[key] == pytest.approx(value, rel=1e-6)  # slope of an energy conserved to 1e-3
            elif key not in ("name", "path", "sha256", "seconds"):
                assert summary[key] == value
        assert check_velocities(open_trajectory(tmp_path / "batch" / f"nve-{i:03d}.h5")) is None
    assert result["trajectories"][2]["temperature"] > 1.5 * result["trajectories"][0]["temperature"]


def test_lennard_jones_moves_as_ases_own(tmp_path):
    from ase.calculators.lj import LennardJones

    ring = [[np.cos(a), np.sin(a), 0] for a in np.arange(5) * 2 * np.pi / 5]
    starts = []
    for seed in range(3):
        atoms = ase.Atoms("Ar7", positions=np.array([*ring, [0, 0, 0.85], [0, 0, -0.85]]) * 3.25)
        atoms.set_masses([36, 38, 40, 40, 40, 40, 40])
        velocities = maxwell_boltzmann(atoms.get_masses(), 20 + 10 * seed, np.random.default_rng(seed))
        atoms.set_velocities(velocities / ase.units.fs)
        starts.append(atoms)
    settings = NveSettings(timestep=5.0, n_steps=401, stride=2, remove_rotation=True)
    model = {"import": "test_torchsim_engine:argon"}
    run_nve_batch(dict(zip(paths_of(tmp_path, 3), starts, strict=True)), model, settings)
    for path, start in zip(paths_of(tmp_path, 3), starts, strict=True):
        expected = run_nve(start, LennardJones(sigma=3.4, epsilon=0.0104, rc=30.0), settings, tmp_path / "ase.h5")
        one, other = frames(tmp_path / "ase.h5"), frames(path)
        np.testing.assert_allclose(other.positions, one.positions, atol=1e-9)
        np.testing.assert_allclose(other.velocities, one.velocities, atol=1e-11)
        for key in ("potential_energy", "kinetic_energy"):
            np.testing.assert_allclose(other.observables[key], one.observables[key], rtol=1e-9)
        assert open_trajectory(path).metadata["degrees_of_freedom"] == expected.degrees_of_freedom == 15


def test_follows_the_exact_solution_of_velocity_verlet(tmp_path):
    timestep, n_steps = 0.5, 2001
    bonds = [1.05, 1.02, 0.97]
    starts = dict(zip(paths_of(tmp_path, 3), [diatomic(bond=bond) for bond in bonds], strict=True))
    run_nve_batch(starts, SPRINGS, NveSettings(timestep=timestep, n_steps=n_steps))
    masses = diatomic().get_masses()
    reduced = masses.prod() / masses.sum()
    omega = np.sqrt(CONSTANT / reduced) * ase.units.fs  # 1/fs: u, eV and A to fs, independently of torch-sim's units
    phase = 2 * np.arcsin(omega * timestep / 2)  # of a step, exact for velocity Verlet
    for (path, _), bond in zip(starts.items(), bonds, strict=True):
        found = frames(path)
        lengths = found.positions[:, 1, 0] - found.positions[:, 0, 0]
        expected = LENGTH + (bond - LENGTH) * np.cos(phase * np.arange(n_steps))
        np.testing.assert_allclose(lengths, expected, atol=2e-10)  # round-off of 2000 steps, and the start's 1e-12 A/fs
        assert np.abs(lengths - (LENGTH + (bond - LENGTH) * np.cos(omega * timestep * np.arange(n_steps)))).max() > 1e-3


def test_velocities_belong_to_the_positions_beside_them(tmp_path):
    start = water(8, 5, 400)
    run_nve_batch({tmp_path / "a.h5": start}, WATER, NveSettings(timestep=0.5, n_steps=100))
    found = frames(tmp_path / "a.h5")
    # (r(t + dt) - r(t - dt))/2 dt = v(t) is exact for velocity Verlet; half a step off it would be out by a dt/2
    central = (found.positions[2:] - found.positions[:-2]) / (2 * found.timestep)
    np.testing.assert_allclose(found.velocities[1:-1], central, atol=1e-13)
    assert np.abs(found.velocities[1:] - np.diff(found.positions, axis=0) / found.timestep).max() > 1e-4
    masses = start.get_masses()
    given = start.get_velocities() * ase.units.fs
    np.testing.assert_array_equal(found.velocities[0], without_translation(given, masses))


def test_energy_error_is_second_order(tmp_path):
    start = water(8, 6, 300)
    errors = []
    for timestep in (0.4, 0.2, 0.1):
        path = tmp_path / f"{timestep}.h5"
        run_nve_batch({path: start}, WATER, NveSettings(timestep=timestep, n_steps=round(60 / timestep) + 1))
        found = frames(path)
        total = found.observables["potential_energy"] + found.observables["kinetic_energy"]
        errors.append((total - total[0]).std())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_time_unit_is_that_of_torch_sim():
    metal = import_torch_sim("torch_sim.units").MetalUnits
    assert 1e-3 * metal.time == pytest.approx(ase.units.fs, rel=1e-12)  # its "time" is of a picosecond
    assert metal.temperature == pytest.approx(ase.units.kB, rel=1e-12)


def test_size_of_the_batch_changes_nothing(tmp_path):
    starts = [water(n, n, 300) for n in (3, 5, 4, 6)]
    settings = NveSettings(timestep=0.5, n_steps=60, stride=5)
    calls = []
    for size in (None, 1, 3):
        paths = dict(zip(paths_of(tmp_path / str(size), 4), starts, strict=True))
        run_nve_batch(paths, WATER, settings, batch_size=size, progress=lambda *seen: calls.append(seen))
        assert calls[-1] == (4 * 56, 4 * 56, "4 NVE runs")
        for path in paths:
            reference = frames(tmp_path / "None" / path.name)
            np.testing.assert_allclose(frames(path).positions, reference.positions, atol=1e-12)
    assert open_trajectory(tmp_path / "3" / "nve-003.h5").metadata["batch_size"] == 1
    with pytest.raises(EngineError, match="batch size must be at least 1, got 0"):
        run_nve_batch(paths, WATER, settings, batch_size=0)


def test_potential_in_single_precision_moves_atoms_in_double(tmp_path):
    start = water(8, 9, 300, np.eye(3) * 10)
    settings = NveSettings(timestep=0.5, n_steps=200)
    single = run_nve_batch({tmp_path / "single.h5": start}, WATER, settings, dtype="float32")[0]
    double = run_nve_batch({tmp_path / "double.h5": start}, WATER, settings)[0]
    one, other = frames(tmp_path / "single.h5"), frames(tmp_path / "double.h5")
    np.testing.assert_allclose(one.positions, other.positions, atol=2e-4)
    assert np.abs(one.positions - other.positions).max() > 1e-9
    assert abs(single.energy_drift - double.energy_drift) < 0.05  # meV/(ps atom), of noise 1e-7 E in 0.1 ps
    central = (one.positions[2:] - one.positions[:-2]) / (2 * one.timestep)
    np.testing.assert_allclose(one.velocities[1:-1], central, atol=1e-12)  # in float32: 1e-6


def test_canonical_run_and_starts_with_the_same_potential(tmp_path):
    ase.io.write(tmp_path / "water.xyz", water(4, 3, 300), format="extxyz")
    settings = NvtSettings(temperature=300, timestep=0.5, n_steps=101, stride=10, seed=2)
    result = sample_nvt(
        tmp_path / "water.xyz", tmp_path, calculator=WATER, settings=settings, n_starts=3, engine="torch-sim"
    )
    assert result["trajectory"]["n_frames"] == 11
    again = sample_nve(
        tmp_path / "starts.extxyz",
        tmp_path,
        calculator=WATER,
        settings=NveSettings(timestep=0.5, n_steps=21),
        indices=[0, 2],
        charge=1,
        engine="torch-sim",
    )
    assert [summary["name"] for summary in again["trajectories"]] == ["nve-000", "nve-002"]
    starts = read_starts(tmp_path / "starts.extxyz")
    for i in (0, 2):
        reader = open_trajectory(tmp_path / f"nve-{i:03d}.h5")
        np.testing.assert_allclose(reader.atoms(0).positions, starts[i].positions, rtol=0, atol=1e-15)
        assert reader.metadata["charge"] == 1
        assert reader.metadata["start_frame"] == starts[i].info["start_frame"]
        assert reader.metadata["engine"].startswith("torch-sim mimyria_wf.flexible_water:flexible_water")


def test_finished_runs_are_kept(tmp_path):
    starts = dict(zip(paths_of(tmp_path, 2), [water(3, 1, 300), water(3, 2, 300)], strict=True))
    settings = NveSettings(timestep=0.5, n_steps=20)
    first = run_nve_batch(starts, WATER, settings)
    assert [summary.was_skipped for summary in run_nve_batch(starts, WATER, settings)] == [True, True]
    paths = list(starts)
    paths[1].unlink()
    again = run_nve_batch(starts, WATER, settings)
    assert [summary.was_skipped for summary in again] == [True, False]
    assert again[0].sha256 == first[0].sha256
    assert not run_nve_batch(starts, WATER, settings, dtype="float32")[0].was_skipped


def test_interrupted_runs_go_on_where_they_were(tmp_path):
    starts = [water(5, seed, 300, np.eye(3) * 10) for seed in range(3)]  # the last molecule is outside of the cell
    settings = NveSettings(timestep=0.5, n_steps=120, stride=2)
    whole = dict(zip(paths_of(tmp_path / "whole", 3), starts, strict=True))
    parts = dict(zip(paths_of(tmp_path / "parts", 3), starts, strict=True))
    run_nve_batch(whole, WATER, settings)

    def stop(done: int, total: int, label: str) -> None:
        raise KeyboardInterrupt

    import mimyria_wf.torchsim_engine as engine

    interval = engine.PROGRESS_INTERVAL
    engine.PROGRESS_INTERVAL = 0.0
    try:
        with pytest.raises(KeyboardInterrupt):  # at the first frame
            run_nve_batch(parts, WATER, settings, progress=stop)
        seen = []

        def stop_later(done: int, total: int, label: str) -> None:
            seen.append(done)
            if done > 0.5 * total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_nve_batch(parts, WATER, settings, progress=stop_later)
    finally:
        engine.PROGRESS_INTERVAL = interval
    shutil.copy(next(iter(parts)), list(parts)[1].with_suffix(".killed.h5"))  # of another start, and so of no use
    left = [open_trajectory(path) for path in parts]
    assert [reader.n_frames for reader in left] == [31, 31, 31]
    assert not left[0].metadata["is_complete"]
    list(parts)[1].unlink()  # this one begins anew, and ends later than the others
    for summary, reference in zip(run_nve_batch(parts, WATER, settings), whole, strict=True):
        reader = open_trajectory(summary.path)
        assert reader.n_frames == 60
        assert reader.metadata["is_complete"]
        assert reader.metadata.get("restarted_at_frame") == (None if summary.name == "nve-001" else 30)
        np.testing.assert_allclose(frames(reader.path).positions, frames(reference).positions, atol=1e-10)
        np.testing.assert_allclose(frames(reader.path).velocities, frames(reference).velocities, atol=1e-11)
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [path.name for path in parts]


@pytest.mark.slow
def test_killed_process_loses_little(tmp_path):
    write_starts(tmp_path / "starts.extxyz", [diatomic(), diatomic(bond=1.01)])
    code = """
import os, sys
sys.path.insert(0, sys.argv[2])
import mimyria_wf.torchsim_engine as engine
from mimyria_wf.md import NveSettings, sample_nve
engine.PROGRESS_INTERVAL = 0.0
sample_nve(sys.argv[1] + "/starts.extxyz", sys.argv[1], calculator={"import": "test_torchsim_engine:springs"},
           settings=NveSettings(timestep=0.5, n_steps=1100), engine="torch-sim",
           progress=lambda done, total, label: os._exit(9) if done > 2100 else None)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], check=False)
    assert killed.returncode == 9
    assert open_trajectory(tmp_path / "nve-000.h5").n_frames == 1024  # a chunk of the file
    run = sample_nve(
        tmp_path / "starts.extxyz",
        tmp_path,
        calculator={"import": "test_torchsim_engine:springs"},
        settings=NveSettings(timestep=0.5, n_steps=1100),
        engine="torch-sim",
    )
    assert [summary["n_frames"] for summary in run["trajectories"]] == [1100, 1100]
    assert open_trajectory(tmp_path / "nve-001.h5").metadata["restarted_at_frame"] == 1023
    run_nve_batch({tmp_path / "whole.h5": read_starts(tmp_path / "starts.extxyz")[0]}, SPRINGS, NveSettings(0.5, 1100))
    found, whole = frames(tmp_path / "nve-000.h5"), frames(tmp_path / "whole.h5")
    np.testing.assert_allclose(found.positions, whole.positions, atol=1e-10)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", r"nve-002.h5: MD step 7: energy or velocities are not finite"),
        ("energy", r"nve-002.h5: MD step 7: energy or velocities are not finite"),
        ("huge", r"nve-002.h5: MD step 7: atom 1 \(H\) moves .* in one step of 0.5 fs; the run has exploded"),
    ],
)
def test_runs_that_explode_leave_the_others_alone(tmp_path, fault, message):
    starts = dict(zip(paths_of(tmp_path, 3), [diatomic(bond=b) for b in (1.01, 1.02, 1.03)], strict=True))
    settings = NveSettings(timestep=0.5, n_steps=30, stride=3)
    bad = {**SPRINGS, "arguments": {"fault": fault, "fault_at": 9}}  # two of the calls test the forces
    with pytest.raises(EngineError, match=message):
        run_nve_batch(starts, bad, settings)
    readers = [open_trajectory(path) for path in starts]
    assert [reader.metadata["is_complete"] for reader in readers] == [True, True, False]
    assert [reader.n_frames for reader in readers] == [10, 10, 3]
    assert np.isfinite(frames(readers[2].path).positions).all()
    alone = tmp_path / "alone.h5"
    run_nve_batch({alone: starts[list(starts)[1]]}, SPRINGS, settings)
    np.testing.assert_array_equal(frames(readers[1].path).positions, frames(alone).positions)


def test_all_exploding_runs_are_counted(tmp_path):
    starts = dict(zip(paths_of(tmp_path, 3), [diatomic(bond=b) for b in (1.0, 5.0, 5.1)], strict=True))
    with pytest.raises(EngineError, match=r"nve-001.h5: MD step 0: .*exploded.*; 1 more of 3 runs failed$"):
        run_nve_batch(starts, SPRINGS, NveSettings(timestep=1, n_steps=4))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", r"nve-000 to nve-001, step 0 of the batch: Springs gives energy \(1,\), not \(2,\)"),
        ("key", "Springs gives no forces, only energy"),
        ("raise", r"Springs failed \(RuntimeError: no such element\)"),
        ("tuple", "Springs gives tuple, not energy and forces"),
    ],
)
def test_potentials_that_fail(tmp_path, fault, message):
    starts = dict(zip(paths_of(tmp_path, 2), [diatomic(), diatomic(bond=1.1)], strict=True))
    with pytest.raises(EngineError, match=message) as raised:
        run_nve_batch(starts, {**SPRINGS, "arguments": {"fault": fault}}, NveSettings(timestep=0.5, n_steps=10))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["lennard_jones:LennardJonesModel", "morse:MorseModel"])
def test_forces_that_are_not_the_slope_of_the_energy(tmp_path, kind):
    model = {"import": f"torch_sim.models.{kind}", "arguments": {"sigma": 1.1, "epsilon": 0.5, "cutoff": 30.0}}
    with pytest.raises(EngineError, match=r"forces are 2\.00 times the slope of its energy"):
        run_nve_batch({tmp_path / "a.h5": diatomic()}, model, NveSettings(timestep=0.5, n_steps=10))
    calculator = TorchSimCalculator(make_model(model["import"], model["arguments"]))
    with pytest.raises(EngineError, match=r"forces are 2\.00 times the slope of its energy"):
        run_nve(diatomic(), calculator, NveSettings(timestep=0.5, n_steps=10), tmp_path / "b.h5")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("bond", [1.0, 1.0 + 1e-7, 1.001, 1.2])
def test_right_forces_pass_whatever_their_size(dtype, bond):
    potential = Potential(make_model(SPRINGS["import"], dtype=dtype))
    found = potential.check(make_state([diatomic(bond=bond)] * 3, torch.device("cpu"), torch.float64))
    assert float(found["forces"][0, 0]) == pytest.approx(CONSTANT * (bond - LENGTH), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "arguments", "options", "message"),
    [
        ("no_such_package:model", {}, {}, "cannot import no_such_package"),
        ("test_torchsim_engine:nothing", {}, {}, "test_torchsim_engine has no nothing"),
        ("test_torchsim_engine:springs", {"stiffness": 3}, {}, r"cannot be built with .*stiffness"),
        ("test_torchsim_engine:ase_calculator", {}, {}, "LennardJones is not a potential of torch-sim"),
        ("test_torchsim_engine:springs", {}, {"dtype": "float16"}, "must be one of float64, float32, got 'float16'"),
        ("test_torchsim_engine:springs", {}, {"device": "abacus"}, "device 'abacus' is none that torch knows"),
        ("test_torchsim_engine:springs", {"dtype": torch.float32}, {}, "computes in float32, not in float64"),
        ("mimyria_wf.torchsim_models:mace", {"model": "none.model"}, {}, "mace-torch|not a readable MACE file"),
    ],
)
def test_potentials_that_cannot_be_had(path, arguments, options, message):
    with pytest.raises(EngineError, match=message) as raised:
        make_model(path, arguments, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_said():
    with pytest.raises(EngineError, match=r"device cuda: torch .* sees no GPU here; take cpu"):
        make_model(SPRINGS["import"], device="cuda")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_sim.models.interface", None)
    with pytest.raises(EngineError, match=r"needs the package torch-sim-atomistic.*mimyria_wf\[torch-sim\]"):
        make_model(SPRINGS["import"])


def test_boundaries_that_torch_sim_does_not_know(tmp_path):
    slab = diatomic(pbc=True)
    slab.pbc = [True, True, False]
    settings = NveSettings(timestep=0.5, n_steps=10)
    with pytest.raises(EngineError, match="periodic in all directions or in none, structure 1 is periodic along"):
        run_nve_batch({tmp_path / "a.h5": diatomic(pbc=True), tmp_path / "b.h5": slab}, SPRINGS, settings)
    with pytest.raises(EngineError, match="all periodic or all not, got both"):
        run_nve_batch({tmp_path / "a.h5": diatomic(pbc=True), tmp_path / "b.h5": diatomic()}, SPRINGS, settings)
    still = diatomic()
    still.set_velocities(np.zeros((2, 3)))
    with pytest.raises(EngineError, match="b: an NVE run needs a start with velocities"):
        run_nve_batch({tmp_path / "a.h5": diatomic(), tmp_path / "b.h5": still}, SPRINGS, settings)
    assert list(tmp_path.iterdir()) == []


def test_engines_are_named(tmp_path):
    write_starts(tmp_path / "starts.extxyz", [diatomic()])
    settings = NveSettings(timestep=0.5, n_steps=10)
    with pytest.raises(EngineError, match="engine must be ase or torch-sim, got 'jax'"):
        sample_nve(tmp_path / "starts.extxyz", tmp_path, calculator=SPRINGS, settings=settings, engine="jax")
    with pytest.raises(EngineError, match="leaves device and precision to its calculator, got cpu and float32"):
        sample_nve(tmp_path / "starts.extxyz", tmp_path, calculator=SPRINGS, settings=settings, dtype="float32")


def test_states_are_the_structures_they_are_made_of():
    triclinic = np.array([[10.1, 0, 0], [1.7, 9.9, 0], [-1.2, 0.9, 10.4]])
    structures = [water(3, 1, 300, triclinic), water(2, 2, 300, np.eye(3) * 9)]
    state = make_state(structures, torch.device("cpu"), torch.float64)
    for atoms, back in zip(structures, import_torch_sim("torch_sim.io").state_to_atoms(state), strict=True):
        np.testing.assert_array_equal(back.cell[:], atoms.cell[:])  # columns there, rows here
        np.testing.assert_array_equal(back.positions, atoms.positions)
        np.testing.assert_array_equal(back.numbers, atoms.numbers)
        np.testing.assert_array_equal(back.pbc, atoms.pbc)
    np.testing.assert_array_equal(state.masses, np.concatenate([atoms.get_masses() for atoms in structures]))


def test_water_has_the_forces_of_its_energy():
    potential = Potential(make_model(WATER["import"], {"cutoff": 4.9}))
    cell = np.array([[10.2, 0, 0], [1.1, 10.1, 0], [0.4, -0.8, 10.3]])
    structures = [water(20, 11, 300, cell), water(8, 12, 300, np.eye(3) * 11)]
    state = make_state(structures, torch.device("cpu"), torch.float64)
    found = potential(state)
    step = 1e-4
    for atom, axis, structure in ((0, 0, 0), (7, 1, 0), (58, 2, 0), (61, 0, 1), (83, 1, 1)):
        energies = []
        for sign in (1, -1):
            moved = state.clone()
            moved.positions[atom, axis] += sign * step
            energies.append(potential(moved)["energy"])
        slope = (energies[0] - energies[1]) / (2 * step)
        assert float(found["forces"][atom, axis]) == pytest.approx(-float(slope[structure]), abs=1e-5)  # step**2 E'''
        assert float(slope[1 - structure]) == 0.0
    for structure in range(2):  # no net force
        assert found["forces"][state.system_idx == structure].sum(0).abs().max() < 1e-11


def test_water_is_the_published_model():
    """One pair of molecules, summed by hand with the constants of Wu, Tepper, Voth (2006) in kcal/mol."""
    kcal = ase.units.kcal / ase.units.mol
    atoms = ase.Atoms("OHHOHH", positions=np.zeros((6, 3)))
    atoms.positions[:3] = [[0, 0, 0], [1.0, 0, 0], [-0.3, 0.95, 0]]
    atoms.positions[3:] = atoms.positions[:3] + [0.4, 0.3, 2.9]
    model = make_model(WATER["import"], {"cutoff": 2000.0, "damping": 1e-7})  # far off and undamped: plain Coulomb
    energy = float(Potential(model)(make_state([atoms], torch.device("cpu"), torch.float64))["energy"][0])
    expected = 0.0
    for first in (0, 3):
        one, two = (atoms.positions[first + k] - atoms.positions[first] for k in (1, 2))
        lengths = np.linalg.norm([one, two], axis=1)
        angle = np.arccos(one @ two / lengths.prod())
        expected += 1059.162 / 2 * ((lengths - 1.012) ** 2).sum() + 75.90 / 2 * (angle - np.radians(113.24)) ** 2
    charges = [-0.82, 0.41, 0.41]
    for i in range(3):
        for j in range(3):
            r = np.linalg.norm(atoms.positions[i] - atoms.positions[3 + j])
            expected += 332.0637 * charges[i] * charges[j] / r
            if i == j == 0:
                expected += 4 * 0.1554253 * ((3.165492 / r) ** 12 - (3.165492 / r) ** 6)
    assert energy == pytest.approx(expected * kcal, rel=2e-6)  # digits of the units


def test_water_that_it_cannot_be():
    model = Potential(make_model(WATER["import"], {"cutoff": 6.0}))
    with pytest.raises(EngineError, match="at least twice as wide as its cutoff of 6 A"):
        model(make_state([water(8, 1, 300, np.eye(3) * 10)], torch.device("cpu"), torch.float64))
    with pytest.raises(EngineError, match="molecules as O, H, H"):
        model(make_state([ase.Atoms("HOH", positions=np.eye(3))], torch.device("cpu"), torch.float64))


@pytest.mark.filterwarnings("ignore")
def test_mace_moves_as_its_own_ase_calculator(tmp_path):
    modules = pytest.importorskip("mace.modules", reason="needs mace-torch, which has an environment of its own")
    from e3nn import o3
    from mace.calculators import MACECalculator

    torch.manual_seed(1)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        network = modules.ScaleShiftMACE(
            r_max=4.0,
            num_bessel=4,
            num_polynomial_cutoff=5,
            max_ell=2,
            interaction_cls=block,
            interaction_cls_first=block,
            num_interactions=2,
            num_elements=2,
            hidden_irreps=o3.Irreps("8x0e+8x1o"),
            MLP_irreps=o3.Irreps("8x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.zeros(2),
            avg_num_neighbors=8.0,
            atomic_numbers=[1, 8],
            correlation=2,
            radial_type="bessel",
            atomic_inter_scale=0.2,
            atomic_inter_shift=0.0,
        )
        torch.save(network, tmp_path / "small.model")
        settings = NveSettings(timestep=0.5, n_steps=101)
        model = {"import": "mimyria_wf.torchsim_models:mace", "arguments": {"model": str(tmp_path / "small.model")}}
        for cell in (None, np.array([[7.0, 0, 0], [1.1, 7.2, 0], [-0.8, 0.6, 6.9]])):
            starts = [water(4, seed, 300, cell) for seed in (1, 2)]
            folder = tmp_path / str(cell is None)
            run_nve_batch(dict(zip(paths_of(folder, 2), starts, strict=True)), model, settings)
            calculator = MACECalculator(str(tmp_path / "small.model"), device="cpu", default_dtype="float64")
            for path, start in zip(paths_of(folder, 2), starts, strict=True):
                run_nve(start, calculator, settings, tmp_path / "ase.h5")
                np.testing.assert_allclose(
                    frames(path).positions, frames(tmp_path / "ase.h5").positions, rtol=1e-9, atol=1e-9
                )
    finally:
        torch.set_default_dtype(default)
