"""f-sum gates on a harmonic cluster whose motion is known mode by mode."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from mimyria_wf.derivatives import derivative_series
from mimyria_wf.gates import all_passed, depolarization_gate, ir_gates, raman_gates, standard_error
from mimyria_wf.spectrum import SpectrumSettings, ir_spectrum, raman_spectrum
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
    assert len(gates) == 7
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
