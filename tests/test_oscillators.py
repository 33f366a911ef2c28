"""Spectra of harmonic oscillators, whose positions, intensities and tensors are known on paper."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import scipy.constants as sc
from scipy.integrate import trapezoid
from scipy.spatial.transform import Rotation

from mimyria_wf.derivatives import PAIRS, DerivativeSeries, derivative_series
from mimyria_wf.errors import SpectrumError
from mimyria_wf.gates import ir_gates, raman_gates
from mimyria_wf.spectrum import LINESHAPES, Runs, SpectrumSettings, correction_notes, ir_spectrum, raman_spectrum
from mimyria_wf.units import WAVENUMBER

# a line 17 cm^-1 wide, so that 1/w^2 is one number across it
SHARP = SpectrumSettings(window_length=2000.0, n_bootstrap=2)
CELL = np.array([[9.0, 0.0, 0.0], [2.5, 8.0, 0.0], [-1.5, 3.0, 7.5]])
VOLUME = float(np.linalg.det(CELL))
TEMPERATURE = 320.0
TIMESTEP = 0.5
N_FRAMES = 40_000
PERIODS = WAVENUMBER / (N_FRAMES * TIMESTEP)
"""Wavenumber of one period a run [cm^-1]: multiples of it are orthogonal in time, to the last digit."""


class Oscillators:
    """Atoms in anisotropic wells of any orientation, each of the 3 n modes with a frequency and k_B T of its own."""

    def __init__(self, n_atoms: int, seed: int = 0, wavenumbers: np.ndarray | None = None) -> None:
        rng = np.random.default_rng(seed)
        self.masses = rng.uniform(1.0, 40.0, n_atoms)
        self.axes = Rotation.random(n_atoms, random_state=rng).as_matrix()  # (atom, mode, Cartesian)
        if wavenumbers is None:
            # modes 180 cm^-1 apart or more, or their lines would overlap
            wavenumbers = 600.0 + 180.0 * rng.permutation(3 * n_atoms).reshape(n_atoms, 3)
        self.wavenumbers = np.round(wavenumbers / PERIODS) * PERIODS
        self.phases = rng.uniform(0, 2 * np.pi, (n_atoms, 3))
        self.apt = rng.normal(size=(n_atoms, 3, 3))
        pgt = rng.normal(size=(n_atoms, 3, 3, 3))
        self.pgt = pgt + pgt.swapaxes(2, 3)

    def run(self, rotation: np.ndarray | None = None, mode: tuple[int, int] | None = None) -> DerivativeSeries:
        """Velocities times tensors, all of it turned if a rotation is given; of one mode alone if that is given."""
        n_frames = N_FRAMES
        turn = np.eye(3) if rotation is None else rotation
        speed = np.sqrt(2 * sc.k * TEMPERATURE / (self.masses * sc.atomic_mass)) * 1e-5  # amplitude [A/fs]
        time = np.arange(n_frames)[:, None, None] * TIMESTEP
        rates = speed[:, None] * np.cos(2 * np.pi * self.wavenumbers / WAVENUMBER * time + self.phases)
        if mode is not None:
            alone = np.zeros_like(rates)
            alone[:, *mode] = rates[:, *mode]
            rates = alone
        velocities = np.einsum("tim,ima,ba->tib", rates, self.axes, turn)
        apt = np.einsum("iaf,ba,gf->ibg", self.apt, turn, turn)
        pgt = np.einsum("iafg,ba,hf,kg->ibhk", self.pgt, turn, turn, turn)
        shape = (n_frames, len(self.masses), 3)
        return derivative_series(
            velocities,
            np.broadcast_to(np.zeros((1, 1, 3)), shape),
            self.masses,
            TIMESTEP,
            apt=np.broadcast_to(apt, (*shape, 3)),
            pgt=np.broadcast_to(pgt, (*shape, 3, 3)),
            name=f"oscillators {mode}",
            volume=VOLUME,
            is_periodic=True,
            removed_motion="none",
        )

    def polarizability_rates(self) -> np.ndarray:
        """(atom, mode, 6) what the polarizability gains along each mode, d alpha/d q [e^2 a0/E_h]."""
        six = np.stack([self.pgt[..., i, j] for i, j in PAIRS], axis=-1)
        return np.einsum("iac,ima->imc", six, self.axes)


@cache
def three_atoms():
    oscillators = Oscillators(3)
    return oscillators, oscillators.run()


def line(spectrum, row, centre, half_width=85.0):
    near = np.abs(spectrum.wavenumber - centre) < half_width
    return trapezoid(row[..., near], spectrum.wavenumber[near], axis=-1)


def test_one_charge_has_its_position_and_absolute_intensity_in_a_triclinic_box():
    """The integral of n alpha domega is pi q^2/(2 V c eps0 m), whatever temperature and force constant."""
    one = Oscillators(1, wavenumbers=np.full((1, 3), 2900.0))
    one.axes = np.eye(3)[None]
    one.apt = 0.7 * np.eye(3)[None]
    spectrum = ir_spectrum([one.run()], SHARP)
    assert spectrum.wavenumber[np.argmax(spectrum.n_alpha)] == pytest.approx(2900.0, abs=1.0)  # half a grid spacing
    expected = np.pi * (0.7 * sc.e) ** 2 / (2 * VOLUME * 1e-30 * sc.c * sc.epsilon_0 * one.masses[0] * sc.atomic_mass)
    got = trapezoid(spectrum.n_alpha * 100, spectrum.wavenumber * 100 * sc.c * 2 * np.pi)
    assert got == pytest.approx(expected, rel=1e-3)


def test_absolute_ir_integral_of_a_set_with_full_tensors():
    oscillators, run = three_atoms()
    spectrum = ir_spectrum([run], SHARP)
    # Eq. 2 with equipartition, in SI: pi/(6 V c eps0) sum_i Tr(P_i P_i^T)/m_i
    square = np.einsum("iaf,iaf,i->", oscillators.apt, oscillators.apt, 1 / (oscillators.masses * sc.atomic_mass))
    expected = np.pi * sc.e**2 * square / (6 * VOLUME * 1e-30 * sc.c * sc.epsilon_0)
    got = trapezoid(spectrum.n_alpha * 100, spectrum.wavenumber * 100 * sc.c * 2 * np.pi)
    assert got == pytest.approx(expected, rel=1e-3)


MODES = [(atom, mode) for atom in range(3) for mode in range(3)]


@cache
def modes_alone():
    """One run for each mode: side by side in one run they interfere, by 1 % of the stronger line in 20 ps."""
    oscillators = three_atoms()[0]
    return [oscillators.run(mode=mode) for mode in MODES]


def test_every_ir_line_and_tensor_component():
    """Mode by mode, pi (P^T e)_a (P^T e)_b / (2 V c eps0 m): the tensor of an anisotropic sample."""
    oscillators = three_atoms()[0]
    spectrum = ir_spectrum(modes_alone(), replace(SHARP, temperature=TEMPERATURE))
    np.testing.assert_allclose(spectrum.tensor[:3].mean(axis=0), spectrum.n_alpha, rtol=1e-12, atol=1e-9)
    for row, (atom, mode) in enumerate(MODES):
        charge = sc.e * oscillators.axes[atom, mode] @ oscillators.apt[atom]
        constant = np.pi / (2 * VOLUME * 1e-30 * sc.c * sc.epsilon_0 * oscillators.masses[atom] * sc.atomic_mass)
        expected = np.array([constant * charge[i] * charge[j] for i, j in PAIRS])
        tensor = spectrum.tensor_per_trajectory[row]
        got = line(spectrum, tensor, oscillators.wavenumbers[atom, mode]) * 1e4 * sc.c * 2 * np.pi
        # Hann's side lobes hold 2e-4 of a line beyond 85 cm^-1
        np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_raman_lines_are_absolute_and_divided_by_the_square_of_the_frequency():
    """Each line of I_cd, over both signs of the wavenumber, is <alpha_c alpha_d> = k_B T Q_c Q_d / (m w^2)."""
    oscillators = three_atoms()[0]
    spectrum = raman_spectrum(modes_alone(), SHARP)
    rates = oscillators.polarizability_rates()
    bohr = sc.physical_constants["Bohr radius"][0]
    measured, predicted = [], []
    for row, (atom, mode) in enumerate(MODES):
        nu = oscillators.wavenumbers[atom, mode]
        spring = oscillators.masses[atom] * sc.atomic_mass * (2 * np.pi * sc.c * 100 * nu) ** 2  # N/m
        mean_square = sc.k * TEMPERATURE / spring / bohr**2  # <q^2> [a0^2]
        predicted.append([mean_square * rates[atom, mode, c] * rates[atom, mode, d] for c, d in LINESHAPES])
        lineshapes = spectrum.per_trajectory[row] * spectrum.inverse_square
        measured.append(2 * line(spectrum, lineshapes, nu))
        weighted = 2 * line(spectrum, spectrum.per_trajectory[row], nu)
        np.testing.assert_allclose(measured[-1] / weighted, 1 / nu**2, rtol=1e-3)
    np.testing.assert_allclose(measured, predicted, rtol=1e-3)
    ratios, expected = (np.array(lines) / np.array(lines)[:1, :1] for lines in (measured, predicted))
    np.testing.assert_allclose(ratios, expected, rtol=1e-3)


def test_identities_of_the_invariants():
    spectrum = raman_spectrum([three_atoms()[1]], SHARP)
    kept = spectrum.wavenumber > spectrum.settings.mask
    np.testing.assert_allclose(spectrum.vv[kept], (spectrum.iso + 4 / 3 * spectrum.vh)[kept], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(spectrum.aniso[kept], 15 * spectrum.vh[kept], rtol=1e-12)


@pytest.mark.parametrize("seed", [1, 2])
def test_invariants_know_nothing_of_orientation(seed):
    oscillators, run = three_atoms()
    rotation = Rotation.random(random_state=seed).as_matrix()
    turned = oscillators.run(rotation)
    ir, ir_turned = (ir_spectrum([r], SHARP) for r in (run, turned))
    np.testing.assert_allclose(ir_turned.n_alpha, ir.n_alpha, rtol=0, atol=1e-10 * ir.n_alpha.max())
    raman, raman_turned = (raman_spectrum([r], SHARP) for r in (run, turned))
    for kind, values in raman.weighted.items():
        difference = raman_turned.weighted[kind] - values
        assert np.abs(difference).max() < 1e-10 * raman.weighted["vv"].max(), kind
    assert np.abs(raman_turned.weighted_lineshapes - raman.weighted_lineshapes).max() > 0.1  # but components do
    matrices = []
    for spectrum in (ir, ir_turned):
        matrix = np.empty((len(ir.wavenumber), 3, 3))
        for row, (i, j) in zip(spectrum.tensor, PAIRS):
            matrix[:, i, j] = matrix[:, j, i] = row
        matrices.append(matrix)
    np.testing.assert_allclose(matrices[1], rotation @ matrices[0] @ rotation.T, atol=1e-10 * ir.n_alpha.max())


def test_gates_pass_and_say_so():
    run = three_atoms()[1]
    gates = ir_gates(ir_spectrum([run], SHARP), [run]) + raman_gates(raman_spectrum([run], SHARP), [run])
    assert not [gate.text for gate in gates if gate.passed is False]
    for gate in gates:
        if "sum" in gate.name:  # equipartition too: each mode has exactly k_B T
            assert gate.ratio == pytest.approx(1, abs=1e-9)


def velocity_verlet(wavenumber, step, n_steps):
    """Positions and velocities of a unit mass on a spring, (n_steps,) each, from the integrator itself."""
    square = (2 * np.pi * wavenumber / WAVENUMBER) ** 2
    positions, velocities = np.empty(n_steps), np.empty(n_steps)
    x, v = 1.0, 0.0
    for i in range(n_steps):
        positions[i], velocities[i] = x, v
        half = v - 0.5 * step * square * x
        x += step * half
        v = half - 0.5 * step * square * x
    return positions, velocities


def centre(spectrum):
    """Centre of the line: of the parabola through the highest points of a symmetric line."""
    at = int(np.argmax(spectrum.n_alpha))
    near = slice(at - 1, at + 2)
    a, b, _ = np.polyfit(spectrum.wavenumber[near] - spectrum.wavenumber[at], spectrum.n_alpha[near], 2)
    return spectrum.wavenumber[at] - b / (2 * a)


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("wavenumber", [3000.0, 1500.0])
def test_verlet_correction_recovers_the_true_frequency(wavenumber, stride):
    """Also of runs whose frames are several steps apart: the shift is that of the step."""
    _, velocities = velocity_verlet(wavenumber, 1.0, 40_000)
    dipole = velocities[::stride, None, None] * np.ones(3)
    run = DerivativeSeries("r", float(stride), 300.0, dipole_derivative=dipole, volume=1000.0)
    raw = ir_spectrum([run], SHARP)
    corrected = ir_spectrum([run], replace(SHARP, verlet_timestep=1.0))
    step = 2 * np.pi * wavenumber / WAVENUMBER
    shifted = WAVENUMBER / np.pi * np.arcsin(0.5 * step)  # what the integrator makes of it
    assert centre(raw) == pytest.approx(shifted, abs=0.05)
    assert centre(raw) - wavenumber > 4.0  # 40 cm^-1 at 3000, 5 at 1500
    assert centre(corrected) == pytest.approx(wavenumber, abs=0.05)
    integrals = [trapezoid(s.n_alpha, s.wavenumber) for s in (raw, corrected)]
    assert integrals[1] == pytest.approx(integrals[0], rel=2e-4)  # side lobes beyond the end of the axis
    assert corrected.integral == pytest.approx(raw.integral, rel=1e-5)
    assert ir_gates(corrected, [run])[0].passed


def test_verlet_correction_comes_before_the_division_by_the_square():
    """1/w^2 takes the true frequency: the integral of I is the mean square of the polarizability that moves so."""
    positions, velocities = velocity_verlet(3000.0, 1.0, 40_000)
    rates = np.zeros((40_000, 1, 6))
    rates[:, 0, 0] = velocities
    run = DerivativeSeries("r", 1.0, 300.0, polarizability_derivative=rates)
    spectrum = raman_spectrum([run], replace(SHARP, verlet_timestep=1.0))
    got = 2 * line(spectrum, spectrum.lineshapes[0], 3000.0, 300.0)
    # v of velocity Verlet is w cos(w_obs h / 2) times the amplitude of x
    damping = np.cos(np.arcsin(np.pi * 3000.0 / WAVENUMBER)) ** 2
    assert got == pytest.approx((positions**2).mean() * damping, rel=1e-3)


def test_verlet_axis_ends_where_the_integrator_does():
    run = three_atoms()[1]
    spectrum = ir_spectrum([run], SpectrumSettings(verlet_timestep=0.5, upper_wavenumber=30_000.0))
    assert spectrum.wavenumber[-1] < WAVENUMBER / (np.pi * 0.5)  # 2/h, the highest frequency there is
    assert np.isfinite(spectrum.n_alpha).all()
    with pytest.raises(SpectrumError, match=r"cannot exceed the 0\.5 fs"):
        ir_spectrum([run], replace(SHARP, verlet_timestep=1.0))
    with pytest.raises(SpectrumError, match="verlet_timestep must be positive"):
        replace(SHARP, verlet_timestep=0.0)


def sampled(wavenumber, sampling=10.0, n_frames=20_000):
    """A polarizability a cos(wt) sampled sparsely: forward differences, and its derivative at the same times."""
    omega = 2 * np.pi * wavenumber / WAVENUMBER
    time = np.arange(n_frames + 1) * sampling
    rates = np.zeros((n_frames, 1, 6))
    exact = rates.copy()
    rates[:, 0, 0] = np.diff(2.0 * np.cos(omega * time)) / sampling
    exact[:, 0, 0] = -2.0 * omega * np.sin(omega * time[:-1])
    return (
        DerivativeSeries("sparse", sampling, 300.0, polarizability_derivative=rates, origin="differences"),
        DerivativeSeries("exact", sampling, 300.0, polarizability_derivative=exact),
    )


@pytest.mark.parametrize("wavenumber", [1600.0, 800.0])
def test_sinc_correction_recovers_the_amplitude(wavenumber):
    """1600 cm^-1 every 10 fs, close to the Nyquist wavenumber of 1668: without it 45 % of the intensity are left."""
    settings = replace(SHARP, window_length=10_000.0)
    sparse, exact = sampled(wavenumber)
    corrected, true = (raman_spectrum([run], settings) for run in (sparse, exact))
    raw = raman_spectrum([sparse], replace(settings, corrects_differences=False))
    got, uncorrected = (2 * line(s, s.lineshapes[0], wavenumber, 50.0) for s in (corrected, raw))
    assert got == pytest.approx(2.0, rel=1e-3)  # <alpha^2> = a^2/2
    damping = np.sinc(wavenumber / WAVENUMBER * 10.0) ** 2
    assert uncorrected == pytest.approx(2.0 * damping, rel=1e-3)
    at = int(np.argmax(true.weighted_lineshapes[0]))
    assert corrected.weighted_lineshapes[0, at] == pytest.approx(true.weighted_lineshapes[0, at], rel=2e-3)
    assert corrected.integrals[0, 0] > raw.integrals[0, 0]
    assert corrected.raw_integrals[0, 0] == pytest.approx(raw.integrals[0, 0], rel=1e-9)
    # at most pi^2/4, at the Nyquist wavenumber, where nothing diverges
    ratio = corrected.weighted_lineshapes[0, 1:] / raw.weighted_lineshapes[0, 1:]
    assert ratio.max() <= np.pi**2 / 4 * (1 + 1e-9)


def test_velocities_are_left_alone_and_notes_say_what_was_done():
    sparse, exact = sampled(1600.0, n_frames=3000)
    settings = replace(SHARP, window_length=5000.0)
    off = replace(settings, corrects_differences=False)
    assert np.array_equal(raman_spectrum([exact], settings).lineshapes, raman_spectrum([exact], off).lineshapes, True)
    both = raman_spectrum([sparse, replace(exact, name="e")], settings)
    assert both.runs.origins == ("differences", "velocities")
    assert correction_notes(both.runs, settings) == (
        "differences over dt = 10 fs of 1 of 2 runs: divided by sinc^2(pi f dt)",
    )
    only = raman_spectrum([sparse], replace(off, verlet_timestep=1.0))
    assert correction_notes(only.runs, only.settings) == (
        "differences over dt = 10 fs: not corrected for sinc^2(pi f dt)",
        "frequencies corrected for a Verlet time step of 1 fs",
    )
    assert correction_notes(Runs(("a",), np.array([1]), 1.0, np.array([1.0])), settings) == ()
