"""f-sum gates on a harmonic cluster whose motion is known mode by mode."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from mimyria_wf import gates as gates_module
from mimyria_wf.derivatives import DerivativeSeries, derivative_series
from mimyria_wf.gates import (
    additivity_gate,
    all_passed,
    depolarization_gate,
    energy_fluctuation_gate,
    energy_gate,
    equipartition_gate,
    ir_gates,
    raman_gates,
    side_lobes,
    standard_error,
    velocity_gate,
)
from mimyria_wf.md_summary import energy_conservation
from mimyria_wf.spectrum import LINESHAPES, SpectrumSettings, ir_spectrum, lineshape, raman_spectrum
from mimyria_wf.trajectory import Trajectory, open_trajectory, write_trajectory
from mimyria_wf.units import AMU_A2_PER_FS2, BOLTZMANN_EV, WAVENUMBER

MASSES = np.array([15.999, 1.008, 1.008, 12.011])
QUICK = SpectrumSettings(n_bootstrap=50)


@cache
def harmonic_runs(removed="translation+rotation", n_runs=10, n_frames=4000, temperature=300.0):
    """Normal modes of a free cluster with canonical energies, constant tensors; rigid motions take no part."""
    rng = np.random.default_rng(11)
    rest = rng.normal(size=(4, 3)) * 2
    relative = rest - MASSES @ rest / MASSES.sum()
    rigid = [np.tile(e, 4) for e in np.eye(3)]
    if removed == "translation+rotation":
        rigid += [np.cross(e, relative).ravel() for e in np.eye(3)]
    mass = np.repeat(MASSES, 3)
    q, _ = np.linalg.qr(np.hstack([np.array(rigid).T * np.sqrt(mass)[:, None], rng.normal(size=(12, 12 - len(rigid)))]))
    modes = q[:, len(rigid) :]  # (12, n_modes) orthonormal, mass-weighted
    apt = rng.normal(size=(4, 3, 3))
    apt -= MASSES[:, None, None] / MASSES.sum() * apt.sum(axis=0)
    pgt = rng.normal(size=(4, 3, 3, 3))
    pgt += pgt.swapaxes(-1, -2)
    wavenumbers = rng.uniform(300, 3500, size=modes.shape[1])
    time = np.arange(n_frames) * 0.5
    runs = []
    for i in range(n_runs):
        energy = rng.exponential(BOLTZMANN_EV * temperature / AMU_A2_PER_FS2, size=len(wavenumbers))
        omega = 2 * np.pi * wavenumbers / WAVENUMBER
        phase = omega * time[:, None] + rng.uniform(0, 2 * np.pi, len(omega))
        rate = np.sqrt(2 * energy) * np.cos(phase)
        velocities = (rate @ modes.T / np.sqrt(mass)).reshape(n_frames, 4, 3)
        positions = np.repeat(rest[None], n_frames, axis=0)
        tensors = {
            "apt": np.broadcast_to(apt, (n_frames, 4, 3, 3)),
            "pgt": np.broadcast_to(pgt, (n_frames, 4, 3, 3, 3)),
        }
        runs.append(derivative_series(velocities, positions, MASSES, 0.5, **tensors, name=f"r{i}", volume=180.0))
    return tuple(runs)


def by_name(gates):
    return {gate.name: gate for gate in gates}


@pytest.mark.parametrize("removed", ["translation", "translation+rotation"])
def test_all_gates_pass_on_a_harmonic_cluster(removed):
    runs = harmonic_runs(removed)
    assert {run.removed_motion for run in runs} == {removed}
    gates = ir_gates(ir_spectrum(runs, QUICK), runs) + raman_gates(raman_spectrum(runs, QUICK), runs)
    assert all(gate.passed for gate in gates), [gate.text for gate in gates if not gate.passed]
    assert len(gates) == 13
    for gate in gates:
        if "numerical" in gate.name:
            assert gate.ratio == pytest.approx(1, abs=1e-9)  # the trapezoidal rule is exact on a whole period


def test_own_temperature_and_projection_give_the_right_mean():
    """Over 60 short canonical runs the ratio is 1 to some per cent: no factor 12/6 of lost degrees of freedom."""
    runs = harmonic_runs(n_runs=60, n_frames=1100)
    gate = by_name(ir_gates(ir_spectrum(runs, QUICK), runs))["ir f-sum, equipartition"]
    assert gate.passed
    assert gate.ratio == pytest.approx(1, abs=0.1)  # six modes of exponential energy, 60 runs: standard error 3-4 %
    wrong = [replace(run, apt_square=run.apt_square * 1.5) for run in runs]
    assert not by_name(ir_gates(ir_spectrum(runs, QUICK), wrong))["ir f-sum, equipartition"].passed


@pytest.mark.parametrize("factor", [1.05, 2.0])
def test_a_wrong_prefactor_is_caught(factor):
    runs = harmonic_runs()
    spectrum = ir_spectrum(runs, QUICK)
    wrong = replace(spectrum, integrals=spectrum.integrals * factor)
    gate = by_name(ir_gates(wrong, runs))["ir f-sum, numerical"]
    assert gate.passed is False
    assert gate.ratio == pytest.approx(factor)
    assert not all_passed([gate])


def test_a_fixed_temperature_moves_both_sides():
    runs = harmonic_runs()
    gates = by_name(ir_gates(ir_spectrum(runs, replace(QUICK, temperature=150.0)), runs))
    own = by_name(ir_gates(ir_spectrum(runs, QUICK), runs))
    assert all_passed(list(gates.values()))
    assert gates["ir f-sum, numerical"].value > 1.5 * own["ir f-sum, numerical"].value


def test_a_removed_mean_is_counted():
    shifted = [replace(r, dipole_derivative=r.dipole_derivative + 0.003) for r in harmonic_runs()]
    gate = ir_gates(ir_spectrum(shifted, replace(QUICK, subtract_mean=True)), shifted)[0]
    assert gate.passed


def test_one_trajectory_is_not_judged_by_equipartition():
    runs = harmonic_runs()[:1]
    gate = by_name(ir_gates(ir_spectrum(runs, QUICK), runs))["ir f-sum, equipartition"]
    assert gate.passed is None
    assert "one trajectory" in gate.text
    record = gate.to_dict()
    assert record["tolerance"] is None
    assert record["passed"] is None
    bare = [replace(run, apt_square=None) for run in harmonic_runs()]
    assert "no mean square" in ir_gates(ir_spectrum(bare, QUICK), bare)[1].text


def test_depolarization_bounds():
    rng = np.random.default_rng(0)
    runs = harmonic_runs()

    def with_series(make):
        return raman_spectrum([replace(run, polarizability_derivative=make()[:, None]) for run in runs], QUICK)

    traceless = np.array([1.0, -1.0, 0, 0, 0, 0])
    gate = depolarization_gate(with_series(lambda: rng.normal(size=(4000, 1)) * traceless))
    assert gate.passed
    assert gate.value == pytest.approx(0.75, abs=1e-9)
    isotropic = np.array([1.0, 1, 1, 0, 0, 0])
    gate = depolarization_gate(with_series(lambda: rng.normal(size=(4000, 1)) * isotropic))
    assert gate.passed
    assert gate.value == pytest.approx(0, abs=1e-9)
    spectrum = raman_spectrum(runs, QUICK)
    broken = spectrum.per_trajectory.copy()
    broken[:, [1, 2, 7]] *= -3  # cross terms xxyy, xxzz, yyzz
    broken[:, [1, 2, 7]] -= broken[:, [0]]
    assert depolarization_gate(replace(spectrum, per_trajectory=broken)).passed is False


def test_standard_error_of_a_weighted_mean():
    values = np.array([1.0, 2.0, 4.0, 7.0])
    assert standard_error(values, np.full(4, 0.25)) == pytest.approx(values.std(ddof=1) / 2)


def lines(rng, wavenumbers, n_frames):
    """A dipole derivative of undamped lines: the hardest case for the side lobes of a window."""
    phase = 2 * np.pi * np.asarray(wavenumbers) / WAVENUMBER * 0.5 * np.arange(n_frames)[:, None, None]
    return (rng.normal(size=(3, len(wavenumbers))) * np.cos(phase + rng.uniform(0, 6.28, (3, len(wavenumbers))))).sum(2)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("window", ["hann", "boxcar"])
@pytest.mark.parametrize("lengths", [(1050,), (1500, 4000), (6000, 6000, 3000), (20000,)])
def test_squares_are_positive_up_to_side_lobes(window, estimator, lengths):
    """No run of squares fails, be it one line, lines side by side or noise, and however short."""
    settings = replace(QUICK, window=window, estimator=estimator)
    rng = np.random.default_rng(1)
    for wavenumbers in ([1700.0], [200.0, 1500.0, 1540.0, 1700.0, 3600.0], rng.uniform(50, 4300, 40)):
        runs = [
            DerivativeSeries(f"r{i}", 0.5, 300.0, dipole_derivative=lines(rng, wavenumbers, n)[:, None], volume=1.0)
            for i, n in enumerate(lengths)
        ]
        spectrum = ir_spectrum(runs, settings)
        gate = by_name(ir_gates(spectrum, runs))["ir positivity"]
        assert gate.passed, (wavenumbers, gate)
        if window == "hann" and lengths[-1] == 20000:
            bound = side_lobes(spectrum.wavenumber, spectrum.n_alpha, spectrum.runs, settings)
            assert spectrum.n_alpha.min() < 0  # the lobes are there
            assert np.median(bound) < 0.02 * spectrum.n_alpha.max()  # and the bound is not wide


def isotropic_runs(n_runs=3):
    """A breathing line with a weaker depolarised one, as in a liquid."""
    rng = np.random.default_rng(2)
    runs = []
    for i in range(n_runs):
        phase = 2 * np.pi * 1000.0 / WAVENUMBER * 0.5 * np.arange(6000)[:, None] + rng.uniform(0, 6.28)
        breathing = 2 * np.cos(phase) * np.array([1.0, 1, 1, 0, 0, 0])
        turning = np.hstack([lines(rng, [1600.0], 6000), lines(rng, [1600.0], 6000)])
        turning[:, :3] = 0.3 * (turning[:, :3] - turning[:, :3].mean(axis=1, keepdims=True))
        runs.append(DerivativeSeries(f"r{i}", 0.5, 300.0, polarizability_derivative=(breathing + turning)[:, None]))
    return runs


def test_bounds_and_sums_hold_for_a_right_spectrum_with_few_runs():
    for n_runs in (1, 3):
        runs = isotropic_runs(n_runs)
        gates = by_name(raman_gates(raman_spectrum(runs, QUICK), runs))
        for name in ("raman depolarization", "raman iso positivity", "raman vh positivity"):
            assert gates[name].passed, gates[name]
        assert gates["raman depolarization"].tolerance < 0.1
        assert gates["raman depolarization"].value == pytest.approx(0.75, abs=0.02)  # the band at 1600 cm^-1


@pytest.mark.parametrize("n_runs", [1, 3])
def test_a_wrong_spectrum_fails_with_few_runs(n_runs):
    """Signs of cross terms, components taken for each other, and a VH that can be negative."""
    runs = isotropic_runs(n_runs)
    spectrum = raman_spectrum(runs, QUICK)
    rows = {pair: row for row, pair in enumerate(LINESHAPES)}
    flipped, negative = spectrum.per_trajectory.copy(), spectrum.per_trajectory.copy()
    for pair in ((0, 1), (0, 2), (1, 2)):
        flipped[:, rows[pair]] *= -1
    negative[:, [rows[3, 3], rows[4, 4], rows[5, 5]]] *= -1
    for wrong, name in ((flipped, "iso"), (negative, "vh")):
        gates = by_name(raman_gates(replace(spectrum, per_trajectory=wrong), runs))
        assert gates["raman depolarization"].passed is False
        assert gates[f"raman {name} positivity"].passed is False
    # within the bounds, but not the mean square of the anisotropy
    swap, back = [rows[0, 1], rows[5, 5]], [rows[5, 5], rows[0, 1]]
    swapped = replace(spectrum, integrals=spectrum.integrals.copy())
    swapped.integrals[:, swap] = swapped.integrals[:, back]
    assert by_name(raman_gates(swapped, runs))["raman vh sum, numerical"].passed is False


def test_a_wrong_depolarised_formula_fails_with_one_run(monkeypatch):
    """The mean square of the anisotropy owes nothing to the sums over lineshapes."""
    runs = isotropic_runs(1)

    def wrong(lineshapes):
        axes = [(i, j) for i in range(3) for j in range(3)]
        iijj = np.sum([lineshape(lineshapes, i, i, j, j) for i, j in axes], axis=0)
        ijij = np.sum([lineshape(lineshapes, i, j, i, j) for i, j in axes], axis=0)
        iso, vh = iijj / 9, ijij / 10  # without - I_iijj / 3, as seen in a public code
        return {"iso": iso, "vh": vh, "vv": iso + 4 / 3 * vh, "aniso": 15 * vh}

    assert by_name(raman_gates(raman_spectrum(runs, QUICK), runs))["raman vh sum, numerical"].passed
    monkeypatch.setattr(gates_module, "raman_invariants", wrong)
    assert by_name(raman_gates(raman_spectrum(runs, QUICK), runs))["raman vh sum, numerical"].passed is False


def test_additivity():
    assert additivity_gate({"ir": 3e-15, "xxxx": 8e-14}).passed
    gate = additivity_gate({"ir": 3e-15, "xxyy": 2e-9})
    assert gate.passed is False
    assert "xxyy" in gate.text
    assert additivity_gate({"ir": 1e-15, "xxxx": float("nan")}).passed is False
    assert additivity_gate({}).passed is None


def test_energy_drift():
    def run(drift, name="r", temperature=300.0):
        series = np.zeros((40001, 1, 3))
        return DerivativeSeries(
            name, 0.5, temperature, series, metadata={} if drift is None else {"energy_drift": drift}
        )

    # 3 k_B T = 77.6 meV at 300 K, 5 % of it in 20 ps: 0.194 meV/(ps atom)
    assert energy_gate([run(0.19), run(-0.19)]).passed
    gate = energy_gate([run(0.01), run(-0.2, "bad")])
    assert gate.passed is False
    assert gate.value == pytest.approx(0.2 * 20 / (3e3 * BOLTZMANN_EV * 300))
    assert "bad" in gate.text
    assert energy_gate([run(0.19, temperature=200.0)]).passed is False
    assert energy_gate([run(None), run(float("nan"))]).passed is None
    part = energy_gate([run(None), run(0.01)])
    assert part.passed
    assert "1 of 2 runs carry no energies" in part.text


def test_gates_compare_like_with_like_when_differences_are_corrected():
    """The mean square of a differenced series is that of the spectrum before it is divided by sinc^2."""
    runs = [replace(run, origin="differences") for run in harmonic_runs()]
    spectrum = ir_spectrum(runs, QUICK)
    gate = by_name(ir_gates(spectrum, runs))["ir f-sum, numerical"]
    assert gate.ratio == pytest.approx(1, abs=1e-9)
    assert np.all(spectrum.integrals > spectrum.raw_integrals)
    verlet = replace(QUICK, verlet_timestep=0.5)
    gates = ir_gates(ir_spectrum(runs, verlet), runs) + raman_gates(raman_spectrum(runs, verlet), runs)
    exact = [gate for gate in gates if "numerical" in gate.name or "positivity" in gate.name]
    assert all(gate.passed for gate in exact), [gate for gate in exact if not gate.passed]


def equal(values, expected=1.0):
    n = len(values)
    return equipartition_gate("test", np.array(values), np.full(n, expected), np.full(n, 1 / n), "")


def test_few_correct_runs_do_not_fail_by_chance():
    """Three standard errors of two runs are nothing: they fail in 20 % of cases if taken for those of many."""
    rng = np.random.default_rng(0)
    for n_runs in (2, 3, 8):
        sets = [equal(values).passed for values in 1 + 0.05 * rng.normal(size=(2000, n_runs))]
        assert sets.count(False) <= 15  # 0.27 % are 5.4; more than 15 in one of 5000 such tests
        if n_runs == 2:
            assert sets.count(None) > 300
        # runs that spread by half are off by a quarter soon, and agree with each other by chance
        sets = [equal(values).passed for values in 1 + 0.5 * rng.normal(size=(2000, n_runs))]
        assert sets.count(False) <= 36  # 1 % are 20; more than 36 in one of 2000 such tests


def test_few_runs_are_judged_by_what_they_can_tell():
    # mean 1.05, standard error 0.01, five of them: 13 % by chance with two runs
    near = equal([1.04, 1.06])
    assert near.passed is None
    assert "more runs will tell" in near.text
    assert "with 2 runs" in near.text
    # a hundred of them are 0.6 % by chance: enough for what is half as much again
    assert equal([1.0495, 1.0505]).passed is None
    assert equal([1.495, 1.505]).passed is False
    assert equal([0.99, 1.02]).passed is True
    assert equal([1.04, 1.06] * 20).passed is False
    assert equal([1.0, 1.0]).passed is True
    assert equal([1.1, 1.1]).passed is False
    assert equal([float("nan"), 1.0]).passed is False


def test_standard_error_of_unequal_lengths():
    """Variances that go with 1 over the length: the mean's is 1 over all frames, whatever the lengths."""
    rng = np.random.default_rng(0)
    for lengths in ([10, 1], [10, 5, 1, 1]):
        weights = np.array(lengths) / np.sum(lengths)
        values = rng.normal(size=(20_000, len(lengths))) / np.sqrt(lengths)
        square = np.mean([standard_error(row, weights) ** 2 for row in values])
        assert square == pytest.approx(1 / np.sum(lengths), rel=0.05)  # 20,000 samples of one degree of freedom: 1 %


def polarizability_lines(rng, wavenumbers, n_frames):
    return np.hstack([lines(rng, wavenumbers, n_frames), lines(rng, wavenumbers, n_frames)])


@pytest.mark.parametrize(
    ("settings", "wavenumbers", "lengths", "origin"),
    [
        (replace(QUICK, upper_wavenumber=1000.0), [1045.0], (4000,), "velocities"),
        (replace(QUICK, upper_wavenumber=3000.0), [3040.0, 3300.0, 400.0], (4000,), "velocities"),
        (QUICK, [2500.0], (1010, 20_000), "velocities"),
        (replace(QUICK, window="boxcar"), [1500.0], (1010, 20_000), "velocities"),
        (replace(QUICK, window="boxcar"), [800.0, 3000.0], (4000, 4000), "velocities"),
        (replace(QUICK, verlet_timestep=0.5, upper_wavenumber=20_000.0), [17_000.0, 900.0], (4000,), "velocities"),
        (replace(QUICK, upper_wavenumber=33_000.0), [33_250.0, 30_000.0], (2000,), "differences"),
    ],
)
def test_squares_are_positive_wherever_their_bands_are(settings, wavenumbers, lengths, origin):
    """Bands beyond the axis, near the Nyquist frequency, runs of unequal lengths, strong corrections."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        runs = [
            DerivativeSeries(
                f"r{i}",
                0.5,
                300.0,
                dipole_derivative=lines(rng, wavenumbers, n)[:, None],
                polarizability_derivative=polarizability_lines(rng, wavenumbers, n)[:, None],
                volume=1.0,
                origin=origin,
            )
            for i, n in enumerate(lengths)
        ]
        gates = ir_gates(ir_spectrum(runs, settings), runs) + raman_gates(raman_spectrum(runs, settings), runs)
        failed = [gate for gate in gates if gate.passed is False]
        assert not failed, failed


def test_a_defect_of_a_few_per_cent_is_no_side_lobe():
    runs = harmonic_runs()
    spectrum = ir_spectrum(runs, QUICK)
    wrong = spectrum.per_trajectory.copy()
    wrong[:, np.argmin(np.abs(spectrum.wavenumber - 4300))] -= 0.03 * spectrum.n_alpha.max()
    assert by_name(ir_gates(replace(spectrum, per_trajectory=wrong), runs))["ir positivity"].passed is False


def test_every_lineshape_is_held_against_its_mean_product():
    """Two wrong lineshapes whose errors cancel in the invariants, and one that enters none of them."""
    runs = isotropic_runs()
    spectrum = raman_spectrum(runs, QUICK)
    rows = {pair: row for row, pair in enumerate(LINESHAPES)}
    for changed in ({(0, 0): 1.0, (1, 1): -1.0}, {(0, 3): 1.0}, {(4, 5): 1.0}):
        wrong = spectrum.integrals.copy()
        scale = 0.01 * wrong[:, rows[0, 0]].mean()
        for pair, sign in changed.items():
            wrong[:, rows[pair]] += sign * scale
        gates = by_name(raman_gates(replace(spectrum, integrals=wrong), runs))
        assert gates["raman iso sum, numerical"].passed
        assert gates["raman vh sum, numerical"].passed
        assert gates["raman lineshapes, numerical"].passed is False
    assert by_name(raman_gates(spectrum, runs))["raman lineshapes, numerical"].passed


def test_every_component_of_the_ir_tensor_is_held_against_its_mean_product():
    runs = harmonic_runs()
    spectrum = ir_spectrum(runs, QUICK)
    assert by_name(ir_gates(spectrum, runs))["ir tensor, numerical"].passed
    swapped = replace(spectrum, tensor_integrals=spectrum.tensor_integrals[:, [0, 2, 1, 3, 4, 5]])
    gates = by_name(ir_gates(swapped, runs))
    assert gates["ir f-sum, numerical"].passed
    assert gates["ir tensor, numerical"].passed is False
    unknown = replace(spectrum, tensor_integrals=None)
    assert by_name(ir_gates(unknown, runs))["ir tensor, numerical"].passed is None


@pytest.mark.parametrize("kind", ["aniso", "vv"])
def test_identities_of_the_invariants(kind):
    runs = isotropic_runs(1)
    spectrum = raman_spectrum(runs, QUICK)
    assert by_name(raman_gates(spectrum, runs))["raman identities"].passed
    spectrum.weighted[kind] = 1.001 * spectrum.weighted[kind]
    gate = by_name(raman_gates(spectrum, runs))["raman identities"]
    assert gate.passed is False
    assert "VH" in gate.text


def test_energy_fluctuation():
    """A wrong unit of velocities or masses moves the temperature along and shows in no sum rule."""

    def run(ratio, name="r"):
        metadata = {"energy_fluctuation_ratio": ratio}
        return DerivativeSeries(name, 0.5, 300.0, np.zeros((100, 1, 3)), metadata=metadata)

    assert energy_fluctuation_gate([run(0.03), run(0.13)]).passed
    gate = energy_fluctuation_gate([run(0.03), run(0.5, "heavy")])
    assert gate.passed is False
    assert "heavy" in gate.text
    assert energy_fluctuation_gate([run(None)]).passed is None
    assert "1 of 2 runs" in energy_fluctuation_gate([run(None), run(0.0)]).text


@pytest.mark.parametrize(("velocity", "mass", "expected"), [(1, 1, 0.0), (2, 1, 0.75), (1, 2, 0.5), (21.877, 1, 0.998)])
def test_energy_fluctuation_of_a_trajectory(tmp_path, velocity, mass, expected):
    rng = np.random.default_rng(1)
    omega = 2 * np.pi * rng.uniform(300, 3600, size=(4, 3)) / WAVENUMBER
    time = 0.5 * np.arange(2000)[:, None, None]
    speed = np.sqrt(BOLTZMANN_EV * 300 / AMU_A2_PER_FS2 / MASSES)[:, None] * rng.normal(size=(4, 3))
    shifts = speed / omega * np.sin(omega * time)
    potential = 0.5 * AMU_A2_PER_FS2 * np.einsum("i,ic,tic->t", MASSES, omega**2, shifts**2)
    path = tmp_path / "run.h5"
    trajectory = Trajectory(
        numbers=np.array([8, 1, 1, 6]),
        positions=3.0 * np.arange(4)[:, None] * [1, 0.3, -0.5] + shifts,
        velocities=velocity * speed * np.cos(omega * time),
        cell=np.zeros((3, 3)),
        pbc=np.array([False] * 3),
        timestep=0.5,
        masses=mass * MASSES,
        name="run",
        observables={"potential_energy": potential},
    )
    write_trajectory(path, trajectory)
    found = energy_conservation(open_trajectory(path))["energy_fluctuation_ratio"]
    assert found == pytest.approx(expected, abs=2e-3)
    noise = replace(trajectory, observables={"potential_energy": rng.normal(size=2000)})
    write_trajectory(tmp_path / "thermostat.h5", noise)
    assert energy_conservation(open_trajectory(tmp_path / "thermostat.h5"))["energy_fluctuation_ratio"] is None


def test_velocities_that_do_not_fit_fail():
    run = harmonic_runs(n_runs=2)[0]
    told = [replace(run, metadata={"velocity_error": text}) for text in ("", "a.xyz: 10 times as fast")]
    assert velocity_gate([run]).passed is None
    assert velocity_gate(told[:1]).passed is True
    gate = velocity_gate(told)
    assert gate.passed is False
    assert gate.text == "a.xyz: 10 times as fast"
