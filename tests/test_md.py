"""MD: analytic dynamics, conserved quantities, temperatures, restarts; then settings and failures."""

import json

import ase
import ase.io
import ase.units
import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones

from mimyria_wf import units
from mimyria_wf.errors import EngineError, TrajectoryError
from mimyria_wf.md import (
    NveSettings,
    NvtSettings,
    convert,
    make_calculator,
    maxwell_boltzmann,
    pick_starts,
    read_starts,
    run_nve,
    run_nvt,
    sample_nve,
    sample_nvt,
    without_rotation,
    without_translation,
    write_starts,
)
from mimyria_wf.trajectory import Trajectory, default_masses, open_trajectory, write_trajectory

LJ = {"import": "ase.calculators.lj.LennardJones", "arguments": {"sigma": 3.4, "epsilon": 0.0104, "rc": 30.0}}


class Springs(Calculator):
    """Every atom on a spring to its site, or two atoms on one spring."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, constant: float, sites: np.ndarray | None = None, length: float = 1.0, fail_at: int = -1):
        super().__init__()
        self.constant, self.sites, self.length, self.fail_at, self.n_calls = constant, sites, length, fail_at, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.n_calls += 1
        if self.sites is not None:
            away = self.atoms.positions - self.sites
            forces, energy = -self.constant * away, 0.5 * self.constant * (away**2).sum()
        else:
            bond = self.atoms.positions[1] - self.atoms.positions[0]
            distance = np.linalg.norm(bond)
            pull = self.constant * (distance - self.length) * bond / distance
            forces, energy = np.array([pull, -pull]), 0.5 * self.constant * (distance - self.length) ** 2
        if self.n_calls == self.fail_at:
            forces = forces * np.nan
        self.results = {"energy": energy, "forces": forces}


class Failing(Springs):
    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if self.n_calls == 3:
            raise RuntimeError("SCF not converged")
        super().calculate(atoms, properties, system_changes)


def argon(n: int = 7, temperature: float = 20.0, seed: int = 4) -> ase.Atoms:
    """Return a compact cluster of argon with random velocities."""
    ring = [[np.cos(a), np.sin(a), 0] for a in np.arange(5) * 2 * np.pi / 5]
    atoms = ase.Atoms(f"Ar{n}", positions=np.array([*ring, [0, 0, 0.85], [0, 0, -0.85]][:n]) * 3.25)
    velocities = maxwell_boltzmann(atoms.get_masses(), temperature, np.random.default_rng(seed))
    atoms.set_velocities(velocities / ase.units.fs)
    return atoms


def stretched_diatomic() -> tuple[ase.Atoms, float]:
    """Return OH, 0.05 A longer than its spring of 40 eV/A^2, and its angular frequency [1/fs]."""
    atoms = ase.Atoms("OH", positions=[[0, 0, 0], [1.05, 0, 0]])
    atoms.set_velocities([[0, 0, 0], [1e-12, 0, 0]])
    m_o, m_h = atoms.get_masses()
    return atoms, np.sqrt(40.0 * (1 / m_o + 1 / m_h) / units.AMU_A2_PER_FS2)


def test_harmonic_bond_follows_the_exact_solution_of_velocity_verlet(tmp_path):
    atoms, omega = stretched_diatomic()
    timestep = 0.5
    run_nve(atoms, Springs(40.0), NveSettings(timestep, 400), tmp_path / "a.h5")
    run = open_trajectory(tmp_path / "a.h5").read()
    times = timestep * np.arange(400)
    # w_true = (2/dt) sin(w_observed dt/2), docs/theory.md
    observed = 2 / timestep * np.arcsin(omega * timestep / 2)
    bond = run.positions[:, 1, 0] - run.positions[:, 0, 0]
    np.testing.assert_allclose(bond - 1.0, 0.05 * np.cos(observed * times), atol=1e-7)  # constants of ASE: 1e-8
    # on-step velocities, at the time of the positions: v = -A w sqrt(1 - (w dt/2)^2) sin
    rate = run.velocities[:, 1, 0] - run.velocities[:, 0, 0]
    amplitude = 0.05 * omega * np.sqrt(1 - (omega * timestep / 2) ** 2)
    np.testing.assert_allclose(rate, -amplitude * np.sin(observed * times), atol=1e-7)


def test_energy_is_conserved_and_its_error_is_second_order(tmp_path):
    stds = []
    for timestep, n_steps in ((8.0, 500), (4.0, 1000)):
        summary = run_nve(argon(), make_calculator(LJ["import"], LJ["arguments"]), NveSettings(timestep, n_steps),
                          tmp_path / f"{timestep}.h5")  # fmt: skip
        assert abs(summary.energy_drift) < 1e-3  # meV/(ps atom), at 20 K = 2.6 meV/atom of kinetic energy
        stds.append(summary.energy_std)
    assert stds[0] < 0.02
    assert stds[0] / stds[1] == pytest.approx(4, rel=0.2)


def test_langevin_equipartitions_light_and_heavy_atoms(tmp_path):
    rng = np.random.default_rng(0)
    sites = rng.normal(size=(30, 3)) * 5
    atoms = ase.Atoms("OH2" * 10, positions=sites)
    settings = NvtSettings(220.0, 1.0, 5000, 500, 5, friction=0.05, seed=3)
    summary = run_nvt(atoms, Springs(5.0, sites), settings, tmp_path / "nvt.h5")
    assert summary.degrees_of_freedom == 90
    run = open_trajectory(tmp_path / "nvt.h5").read(100)
    squares = units.AMU_A2_PER_FS2 * run.masses[:, None] * run.velocities**2 / units.BOLTZMANN_EV
    for species in (1, 8):
        blocks = squares[:, run.numbers == species].reshape(30, -1).mean(axis=1)
        error = blocks.std(ddof=1) / np.sqrt(30)
        assert error < 6
        assert abs(blocks.mean() - 220) < 4 * error
    assert summary.temperature == pytest.approx(squares.mean(), rel=1e-10)
    # potential energy has its share as well
    potential = run.observables["potential_energy"].mean() * 2 / (90 * units.BOLTZMANN_EV)
    assert potential == pytest.approx(220, rel=0.06)


def test_nvt_depends_on_its_seed_only(tmp_path):
    sites = np.arange(9.0).reshape(3, 3)
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_nvt(ase.Atoms("OH2", sites), Springs(5.0, sites), NvtSettings(300, 1.0, 50, seed=seed, stride=10),
                tmp_path / f"{name}.h5")  # fmt: skip
        runs.append(open_trajectory(tmp_path / f"{name}.h5").read())
    assert runs[0].n_frames == 5
    assert np.array_equal(runs[0].positions, runs[1].positions)
    assert not np.array_equal(runs[0].velocities[0], runs[2].velocities[0])
    assert runs[0].timestep == 10.0


def test_nvt_keeps_the_velocities_it_is_given(tmp_path):
    sites = np.arange(9.0).reshape(3, 3)
    atoms = ase.Atoms("OH2", sites)
    velocities = np.full((3, 3), 0.001)
    atoms.set_velocities(velocities / ase.units.fs)
    run_nvt(atoms, Springs(5.0, sites), NvtSettings(300, 1.0, 5, stride=1), tmp_path / "a.h5")
    np.testing.assert_allclose(open_trajectory(tmp_path / "a.h5").read(0, 1).velocities[0], velocities, rtol=1e-14)


def test_centre_of_mass_and_rotation_are_removed_and_counted(tmp_path):
    atoms = argon()
    masses = atoms.get_masses()
    for remove_rotation, n_dof in ((False, 18), (True, 15)):
        path = tmp_path / f"{n_dof}.h5"
        settings = NveSettings(5.0, 200, remove_rotation=remove_rotation)
        summary = run_nve(atoms, make_calculator(**_call(LJ)), settings, path)
        run = open_trajectory(path).read()
        assert summary.degrees_of_freedom == run.metadata["degrees_of_freedom"] == n_dof
        assert run.metadata["removed_degrees_of_freedom"] == 21 - n_dof
        np.testing.assert_allclose(np.einsum("i,tic->tc", masses, run.velocities), 0, atol=1e-12)
        arms = run.positions - np.einsum("i,tic->tc", masses, run.positions)[:, None] / masses.sum()
        momentum = np.einsum("i,tic->tc", masses, np.cross(arms, run.velocities))
        assert bool(np.abs(momentum).max() < 1e-10) == remove_rotation
        kinetic = 0.5 * units.AMU_A2_PER_FS2 * np.einsum("i,tic->t", masses, run.velocities**2)
        np.testing.assert_allclose(run.kinetic_temperature(), 2 * kinetic / (n_dof * units.BOLTZMANN_EV), rtol=1e-12)
        np.testing.assert_allclose(run.observables["temperature"], run.kinetic_temperature(), rtol=1e-12)


def _call(calculator: dict) -> dict:
    return {"import_path": calculator["import"], "arguments": calculator["arguments"]}


def test_rotation_of_a_linear_molecule_has_two_axes():
    rng = np.random.default_rng(1)
    axis = rng.normal(size=3)
    positions = np.outer([-1.2, 0.0, 1.2], axis / np.linalg.norm(axis))
    masses = np.array([16.0, 12.0, 16.0])
    velocities, n_rotations = without_rotation(positions, without_translation(rng.normal(size=(3, 3)), masses), masses)
    assert n_rotations == 2
    assert np.isfinite(velocities).all()
    np.testing.assert_allclose(np.einsum("i,ic->c", masses, np.cross(positions, velocities)), 0, atol=1e-12)


def test_rigid_rotation_is_removed_entirely():
    rng = np.random.default_rng(2)
    positions, masses = rng.normal(size=(5, 3)), rng.uniform(1, 16, size=5)
    arms = positions - masses @ positions / masses.sum()
    velocities, n_rotations = without_rotation(positions, np.cross([0.1, -0.2, 0.3], arms), masses)
    assert n_rotations == 3
    np.testing.assert_allclose(velocities, 0, atol=1e-14)


def test_step_zero_is_the_start_and_a_restart_goes_on_as_the_run_did(tmp_path):
    calculator = make_calculator(**_call(LJ))
    run_nve(argon(), calculator, NveSettings(5.0, 60), tmp_path / "whole.h5")
    whole = open_trajectory(tmp_path / "whole.h5")
    start = whole.atoms(25)
    write_starts(tmp_path / "starts.extxyz", [start])
    [again] = read_starts(tmp_path / "starts.extxyz")
    run_nve(again, make_calculator(**_call(LJ)), NveSettings(5.0, 35), tmp_path / "rest.h5")
    rest, expected = open_trajectory(tmp_path / "rest.h5").read(), whole.read(25)
    assert np.array_equal(rest.positions[0], expected.positions[0])
    # through ASE's unit of velocity and the removal of a centre of mass that rests: round-off
    np.testing.assert_allclose(rest.velocities[0], expected.velocities[0], rtol=1e-13, atol=1e-17)
    np.testing.assert_allclose(rest.positions, expected.positions, atol=1e-11)
    assert rest.metadata["snapshot"] == "whole/25"


def test_periodic_triclinic_run_keeps_cell_and_unwrapped_positions(tmp_path):
    atoms = argon(2)
    atoms.set_cell([[12, 0, 0], [3, 12, 0], [1, 2, 12]])
    atoms.pbc = True
    atoms.set_velocities(atoms.get_velocities() * 0 + [[0.2, 0, 0], [-0.2, 0, 0]])
    run_nve(atoms, make_calculator(LJ["import"], {**LJ["arguments"], "rc": 5.0}), NveSettings(5.0, 1000, 10),
            tmp_path / "a.h5")  # fmt: skip
    run = open_trajectory(tmp_path / "a.h5").read()
    assert np.array_equal(run.cell, atoms.cell[:])
    assert run.n_frames == 100
    assert np.abs(np.diff(run.positions, axis=0)).max() < 3  # no jump by a cell vector
    assert np.ptp(run.positions[:, 0, 0]) > 12
    with pytest.raises(EngineError, match="remove_rotation is for clusters"):
        run_nve(atoms, make_calculator(**_call(LJ)), NveSettings(5.0, 10, remove_rotation=True), tmp_path / "b.h5")


def test_finished_runs_are_kept_and_others_are_run_again(tmp_path):
    path = tmp_path / "nve.h5"
    calculator = make_calculator(**_call(LJ))
    first = run_nve(argon(), calculator, NveSettings(5.0, 20), path)
    stamp = path.stat().st_mtime_ns
    second = run_nve(argon(), calculator, NveSettings(5.0, 20), path)
    assert second.was_skipped
    assert path.stat().st_mtime_ns == stamp
    assert {**second.to_dict(), "was_skipped": False} == first.to_dict()
    assert not run_nve(argon(), calculator, NveSettings(5.0, 21), path).was_skipped
    assert not run_nve(argon(seed=5), calculator, NveSettings(5.0, 21), path).was_skipped
    with pytest.raises(EngineError):
        run_nve(argon(2), Failing(1.0), NveSettings(5.0, 21), path)
    assert not run_nve(argon(2), Springs(1.0), NveSettings(5.0, 21), path).was_skipped


def test_failed_run_leaves_what_it_had(tmp_path):
    atoms, _ = stretched_diatomic()
    with pytest.raises(EngineError, match=r"a\.h5: .*Failing failed after step 3 \(RuntimeError: SCF not converged\)"):
        run_nve(atoms, Failing(40.0), NveSettings(0.5, 10), tmp_path / "a.h5")
    reader = open_trajectory(tmp_path / "a.h5")
    assert (reader.n_frames, reader.metadata["is_complete"]) == (3, False)


def test_exploding_and_nan_runs_stop(tmp_path):
    atoms, _ = stretched_diatomic()
    with pytest.raises(EngineError, match=r"MD step 1: energy or velocities are not finite"):
        run_nve(atoms, Springs(40.0, fail_at=2), NveSettings(0.5, 10), tmp_path / "a.h5")
    with pytest.raises(EngineError, match=r"atom 1 \(H\) moves .* A in one step of 20 fs; the run has exploded"):
        run_nve(atoms, Springs(40.0), NveSettings(20.0, 10), tmp_path / "b.h5")


def test_starts_that_cannot_be_run(tmp_path):
    calculator = Springs(1.0)
    cold = ase.Atoms("OH", positions=[[0, 0, 0], [1, 0, 0]])
    with pytest.raises(EngineError, match="needs a start with velocities"):
        run_nve(cold, calculator, NveSettings(0.5, 10), tmp_path / "a.h5")
    with pytest.raises(EngineError, match="at least two atoms"):
        run_nve(ase.Atoms("O"), calculator, NveSettings(0.5, 10), tmp_path / "a.h5")
    with pytest.raises(EngineError, match="no atoms"):
        run_nvt(ase.Atoms(), calculator, NvtSettings(300, 0.5, 10), tmp_path / "a.h5")
    bound = argon(2)
    bound.set_constraint(ase.constraints.FixAtoms([0]))
    with pytest.raises(EngineError, match="constraints"):
        run_nve(bound, calculator, NveSettings(0.5, 10), tmp_path / "a.h5")
    flat = argon(2)
    flat.pbc = True
    with pytest.raises(EngineError, match="its cell has no volume"):
        run_nve(flat, calculator, NveSettings(0.5, 10), tmp_path / "a.h5")
    broken = argon(2)
    broken.positions[0, 0] = np.nan
    with pytest.raises(EngineError, match="the start holds NaN"):
        run_nve(broken, calculator, NveSettings(0.5, 10), tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature must be positive"),
        ({"timestep": 0}, "timestep must be positive"),
        ({"n_steps": 0}, "at least one step"),
        ({"stride": 0}, "stride of at least 1"),
        ({"friction": 0}, "friction must be positive"),
        ({"n_equilibration_steps": 100}, "equilibration must be shorter than the run, got 100 of 100"),
        ({"thermostat": "nose"}, "must be langevin or csvr, got 'nose'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(EngineError, match=message):
        NvtSettings(**{"temperature": 300.0, "timestep": 0.5, "n_steps": 100, **settings})


def test_csvr_is_not_ours(tmp_path):
    with pytest.raises(EngineError, match="has the thermostat langevin, not csvr"):
        run_nvt(argon(), Springs(1.0), NvtSettings(300, 0.5, 10, thermostat="csvr"), tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("LennardJones", {}, r"expected package\.module\.Class"),
        ("no_such_package.Calculator", {}, "cannot import no_such_package"),
        ("ase.calculators.lj.NoSuch", {}, r"ase\.calculators\.lj has no NoSuch"),
        ("ase.calculators.tip3p:TIP3P", {"nonsense": 1}, "cannot be built with {'nonsense': 1}"),
        ("ase.Atoms", {"symbols": 3.5}, "cannot be built"),
        ("collections.OrderedDict", {}, "OrderedDict is not an ASE calculator"),
    ],
)
def test_calculators_that_cannot_be_had(path, arguments, message):
    with pytest.raises(EngineError, match=message):
        make_calculator(path, arguments)


def test_calculator_by_colon_or_dot():
    for path in ("ase.calculators.lj:LennardJones", "ase.calculators.lj.LennardJones"):
        assert isinstance(make_calculator(path, {"sigma": 3.0}), LennardJones)


def test_starts_are_evenly_spaced_after_the_equilibration(tmp_path):
    rng = np.random.default_rng(0)
    numbers = np.array([8, 1, 1])
    n_frames = 103
    nvt = Trajectory(
        numbers, rng.normal(size=(n_frames, 3, 3)), rng.normal(size=(n_frames, 3, 3)), np.zeros((3, 3)),
        np.zeros(3, bool), 10.0, default_masses(numbers), "nvt", metadata={"charge": 1},
    )  # fmt: skip
    write_trajectory(tmp_path / "nvt.h5", nvt)
    reader = open_trajectory(tmp_path / "nvt.h5")
    offsets = set()
    for seed in range(20):
        starts = pick_starts(reader, 8, seed, 23)
        frames = [atoms.info["start_frame"] for atoms in starts]
        assert set(np.diff(frames)) == {10}
        assert 23 <= frames[0] < 33
        offsets.add(frames[0])
        assert [atoms.info["snapshot"] for atoms in starts] == [f"nvt/{frame}" for frame in frames]
        assert all(np.array_equal(atoms.positions, nvt.positions[f]) for atoms, f in zip(starts, frames))
    assert len(offsets) > 5
    assert [a.info["start_frame"] for a in pick_starts(reader, 8, 3, 23)] == [
        a.info["start_frame"] for a in pick_starts(reader, 8, 3, 23)
    ]
    write_starts(tmp_path / "starts.extxyz", starts)
    for written, read in zip(starts, read_starts(tmp_path / "starts.extxyz"), strict=True):
        assert np.array_equal(written.positions, read.positions)
        np.testing.assert_allclose(read.get_velocities(), written.get_velocities(), rtol=1e-15)
        assert read.info["charge"] == 1
    with pytest.raises(TrajectoryError, match="cannot pick 81 starts from 80 frames"):
        pick_starts(reader, 81, 0, 23)
    with pytest.raises(TrajectoryError, match="cannot pick 1 starts from 0 frames"):
        pick_starts(reader, 1, 0, 200)


def test_sampling_from_files(tmp_path):
    ase.io.write(tmp_path / "ar7.xyz", argon())
    nvt = sample_nvt(
        tmp_path / "ar7.xyz", tmp_path / "run", calculator=LJ,
        settings=NvtSettings(15.0, 5.0, 400, 100, 10, 0.01, seed=7), n_starts=3,
    )  # fmt: skip
    assert nvt["trajectory"]["n_frames"] == 40
    assert len(nvt["start_frames"]) == 3
    assert min(nvt["start_frames"]) >= 10
    calls: list[tuple[int, int, str]] = []
    settings = NveSettings(5.0, 50, remove_rotation=True)
    nve = sample_nve(
        nvt["starts"], tmp_path / "run", calculator=LJ, settings=settings, indices=[0, 2],
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    json.dumps([nvt, nve])
    assert [run["name"] for run in nve["trajectories"]] == ["nve-000", "nve-002"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "nve-000.h5", "nve-002.h5", "nvt.h5", "starts.extxyz"
    ]  # fmt: skip
    assert calls[-1] == (100, 100, "nve-002")
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    again = sample_nve(nvt["starts"], tmp_path / "run", calculator=LJ, settings=settings)
    assert [run["was_skipped"] for run in again["trajectories"]] == [True, False, True]
    reader = open_trajectory(tmp_path / "run" / "nve-001.h5")
    assert reader.metadata["snapshot"] == f"nvt/{nvt['start_frames'][1]}"
    assert reader.atoms(7).info["snapshot"] == "nve-001/7"
    with pytest.raises(TrajectoryError, match=r"holds the starts 0 to 2, asked for \[3\]"):
        sample_nve(nvt["starts"], tmp_path / "run", calculator=LJ, settings=settings, indices=[3])
    with pytest.raises(EngineError, match="calculator needs 'import'"):
        sample_nve(nvt["starts"], tmp_path / "run", calculator={"name": "lj"}, settings=settings)


def test_starts_without_velocities(tmp_path):
    ase.io.write(tmp_path / "a.extxyz", ase.Atoms("OH", positions=[[0, 0, 0], [1, 0, 0]]))
    with pytest.raises(TrajectoryError, match="start 0 has no velocities; give a column vel:R:3"):
        read_starts(tmp_path / "a.extxyz")
    with pytest.raises(TrajectoryError, match="not a readable extended XYZ file"):
        read_starts(tmp_path / "missing.extxyz")


def test_structures_that_cannot_be_read(tmp_path):
    settings = NvtSettings(300, 0.5, 10)
    with pytest.raises(TrajectoryError, match="no such structure file"):
        sample_nvt(tmp_path / "a.xyz", tmp_path, calculator=LJ, settings=settings, n_starts=1)
    (tmp_path / "a.xyz").write_text("nonsense\n")
    with pytest.raises(TrajectoryError, match="ASE cannot read it"):
        sample_nvt(tmp_path / "a.xyz", tmp_path, calculator=LJ, settings=settings, n_starts=1)
    ase.io.write(tmp_path / "b.xyz", ase.Atoms("Ar"))
    with pytest.raises(TrajectoryError, match="periodic without a cell"):
        sample_nvt(tmp_path / "b.xyz", tmp_path, calculator=LJ, settings=settings, n_starts=1, pbc=True)


def test_convert_summarises_what_other_codes_ran(tmp_path):
    run_nve(argon(), make_calculator(**_call(LJ)), NveSettings(5.0, 40), tmp_path / "a.h5")
    source = open_trajectory(tmp_path / "a.h5").read()
    write_trajectory(tmp_path / "a.extxyz", source)
    summary = convert(tmp_path / "a.extxyz", tmp_path / "b.h5", stride=2, degrees_of_freedom=15, charge=1, name="x")
    assert (summary["name"], summary["n_frames"], summary["timestep"]) == ("x", 20, 10.0)
    assert summary["temperature"] == pytest.approx(source.kinetic_temperature()[::2].mean() * 18 / 15)
    assert abs(summary["energy_drift"]) < 0.01
    assert open_trajectory(tmp_path / "b.h5").metadata["charge"] == 1
    assert json.loads(json.dumps(summary)) == summary


def test_charge_reaches_the_calculator(tmp_path):
    tblite = pytest.importorskip("tblite.ase")
    hydroxide = ase.Atoms("OH", positions=[[0, 0, 0], [0.97, 0, 0]], info={"charge": -1})
    hydroxide.set_velocities([[0, 0, 0], [0, 0.01, 0.02]])
    calculator = tblite.TBLite(method="GFN2-xTB", verbosity=0, accuracy=0.2)
    summary = run_nve(hydroxide, calculator, NveSettings(0.25, 40), tmp_path / "a.h5")
    assert calculator.parameters.charge == -1
    assert calculator.results["charges"].sum() == pytest.approx(-1, abs=1e-6)
    assert summary.energy_std < 1.0  # meV/atom
    neutral = ase.Atoms("OH", positions=[[0, 0, 0], [0.97, 0, 0]])
    neutral.set_velocities([[0, 0, 0], [0, 0.01, 0.02]])
    with pytest.raises(EngineError, match="the calculator has charge -1, the atoms 0"):
        run_nve(neutral, calculator, NveSettings(0.25, 40), tmp_path / "b.h5")


def test_copy_of_a_run_does_not_pass_for_it(tmp_path):
    calculator = make_calculator(**_call(LJ))
    run_nve(argon(), calculator, NveSettings(1.0, 40), tmp_path / "a.h5")
    convert(tmp_path / "a.h5", tmp_path / "b.h5", stride=2)
    assert not run_nve(argon(), calculator, NveSettings(1.0, 40), tmp_path / "b.h5").was_skipped


def test_cut_of_a_canonical_run_knows_what_is_left_of_the_equilibration(tmp_path):
    sites = np.arange(9.0).reshape(3, 3)
    settings = NvtSettings(300, 1.0, 100, 40, stride=2)
    run_nvt(ase.Atoms("OH2", sites), Springs(5.0, sites), settings, tmp_path / "a.h5")
    assert open_trajectory(tmp_path / "a.h5").metadata["n_equilibration_frames"] == 20
    for start, stride, left in ((0, 1, 20), (5, 3, 5), (30, 1, 0)):
        convert(tmp_path / "a.h5", tmp_path / "b.h5", start=start, stride=stride)
        assert open_trajectory(tmp_path / "b.h5").metadata["n_equilibration_frames"] == left
