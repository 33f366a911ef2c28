"""Numbers that a spectrum must obey, found without time correlation, windows or Fourier transforms.

IR, integrated over the whole wavenumber axis from 0 up [cm^-2]:

- numerical: ``int n alpha = pi beta / (6 V c eps0) <M'.M'>`` of the same data, to 1e-3. It holds prefactor, window,
  estimator and transform against a plain mean of squares.
- equipartition: ``int n alpha = pi / (6 V c eps0) Tr <B^T (1 - Pi) B>``, within three standard errors over
  trajectories. The square and its projector on removed rigid motions are those of :mod:`mimyria_wf.derivatives`; it
  holds velocities, masses, units of the tensors and the temperature against each other.

Raman has the same two for nu^2 iso and nu^2 VH, with ``<alpha'_c alpha'_d> = k_B T (Q^T (1 - Pi) Q)_cd``. The mean
squares of the numerical one are those of the mean polarizability and of the anisotropy,

    ``a = (xx + yy + zz)/3``, ``gamma^2 = 1/2 [(xx - yy)^2 + (yy - zz)^2 + (zz - xx)^2] + 3 (xy^2 + yz^2 + xz^2)``,

with iso = a^2 and VH = gamma^2/15, written out here and not taken from the sums over lineshapes that make the spectra
(Eqs. 9-12): a wrong depolarised spectrum fails with a single run.

Positivity. IR, iso and VH are autocorrelation spectra. The periodogram of a run is never negative, whatever its noise;
the spectrum is its convolution with the window's transform W, and can be negative only by the negative side lobes of W.
No statistics enter, and the bound does not widen with few runs; see :func:`side_lobes`. The depolarization ratio in
[0, 3/4] is the same statement about VH and iso, made band by band.

Parts of the cross-correlation analysis sum to the total to round-off, and the total energy of NVE runs stays put.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.ndimage import maximum_filter1d
from scipy.signal import fftconvolve

from mimyria_wf.derivatives import DerivativeSeries, mean_square
from mimyria_wf.spectrum import (
    LIGHT,
    LINESHAPES,
    IrSpectrum,
    RamanKind,
    RamanSpectrum,
    Runs,
    SpectrumSettings,
    cosine_series,
    raman_invariants,
    window_values,
)
from mimyria_wf.units import BOHR, BOLTZMANN, BOLTZMANN_EV, EPS0, WAVENUMBER, C, E

Array = NDArray[Any]

NUMERICAL_TOLERANCE = 1e-3
N_STANDARD_ERRORS = 3.0
ADDITIVITY_TOLERANCE = 1e-10
"""Round-off of double precision, 1e-16, times the hundreds of terms whose sum it is, and some room."""
SIDE_LOBE_FACTOR = 3.0
"""See :func:`side_lobes`."""
ROUND_OFF = 1e-9
"""Relative to the largest value, of what is zero but for the round-off of transforms and cancelling lineshapes."""
BAND_WIDTH = 4.0
"""Of the bands of the depolarization gate, in resolutions of the window."""
LARGEST_HEATING = 0.05
"""Change of the temperature over an NVE run, relative; see :func:`energy_gate`."""
_GATED: tuple[RamanKind, ...] = ("iso", "vh")


@dataclass(frozen=True)
class Gate:
    """One comparison.

    Attributes:
        name: what is compared, such as "ir f-sum, equipartition".
        value: found in the spectrum.
        expected: what it must be.
        tolerance: largest absolute deviation that passes; NaN when it cannot be known.
        passed: None when there is nothing to judge by.
        unit: of value, expected and tolerance.
        text: one line for people.
    """

    name: str
    value: float
    expected: float
    tolerance: float
    passed: bool | None
    unit: str
    text: str

    @property
    def ratio(self) -> float:
        """Value over expected."""
        return self.value / self.expected if self.expected else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record; what is not a number becomes None."""
        numbers = {key: getattr(self, key) for key in ("value", "expected", "ratio", "tolerance")}
        return {
            "name": self.name,
            **{key: float(v) if np.isfinite(v) else None for key, v in numbers.items()},
            "passed": self.passed,
            "unit": self.unit,
            "text": self.text,
        }


def f_sum_prefactor(temperature: float, volume: float) -> float:
    """Return pi beta / (6 V c eps0) per wavenumber, which turns <M'.M'> [(e A/fs)^2] into int n alpha [cm^-2].

    Written out in SI rather than taken from :mod:`mimyria_wf.spectrum`, for the gate is there to check that prefactor.
    """
    square = (E * 1e-10 / 1e-15) ** 2  # (e A/fs)^2 in (C m/s)^2
    per_angular_frequency = np.pi * square / (BOLTZMANN * temperature) / (6 * volume * 1e-30 * C * EPS0)  # rad/(m s)
    return float(per_angular_frequency / (2 * np.pi * C) / 100 / 100)  # n alpha [cm^-1] times wavenumber [cm^-1]


def raman_sum_prefactor() -> float:
    """Return what turns <alpha' alpha'> [e^4 a0^4 E_h^-2 fs^-2] into int_0 nu^2 I dnu [e^4 a0^4 E_h^-2 cm^-2]."""
    return 0.5 / (2 * np.pi * LIGHT) ** 2


def ir_gates(spectrum: IrSpectrum, series: Iterable[DerivativeSeries]) -> list[Gate]:
    """Hold an IR spectrum against <M'.M'> and against equipartition.

    Args:
        spectrum: from :func:`mimyria_wf.spectrum.ir_spectrum`.
        series: the runs that it was made from, in the same order.
    """
    exact, removed, thermal = [], [], []
    for run in series:
        assert run.volume is not None
        dipole = run.total_dipole_derivative
        factor = f_sum_prefactor(spectrum.settings.temperature or run.temperature, run.volume)
        exact.append(factor * float((dipole**2).sum(axis=1).mean()))
        # a mean removed before the transform is missing from the integral; the comparison is made with it
        removed.append(factor * float((dipole.mean(axis=0) ** 2).sum()) if spectrum.settings.subtract_mean else 0.0)
        square = None if run.apt_square is None else mean_square(run.apt_square, run.temperature)
        thermal.append(float("nan") if square is None else factor * float(np.trace(square)))
    raw = spectrum.integrals if spectrum.raw_integrals is None else spectrum.raw_integrals
    weights = spectrum.runs.weights
    bound = side_lobes(spectrum.wavenumber, spectrum.n_alpha, spectrum.runs, spectrum.settings)
    return [
        _numerical("ir f-sum, numerical", raw + np.array(removed), np.array(exact), weights, "cm^-2"),
        _equipartition(
            "ir f-sum, equipartition", spectrum.integrals + np.array(removed), np.array(thermal), weights, "cm^-2"
        ),
        _positivity("ir positivity", spectrum.n_alpha, bound, float(spectrum.n_alpha.max()), "cm^-1"),
    ]


def raman_gates(spectrum: RamanSpectrum, series: Iterable[DerivativeSeries]) -> list[Gate]:
    """Hold nu^2-weighted Raman spectra against <alpha' alpha'> and against equipartition, and the depolarization.

    Args:
        spectrum: from :func:`mimyria_wf.spectrum.raman_spectrum`.
        series: the runs that it was made from, in the same order.
    """
    exact, removed, thermal = [], [], []
    factor = raman_sum_prefactor()
    for run in series:
        columns = run.total_polarizability_derivative
        mean = columns.mean(axis=0) if spectrum.settings.subtract_mean else np.zeros(6)
        exact.append([factor * square for square in _invariant_squares(columns)])
        removed.append(factor * _by_lineshape(np.outer(mean, mean)))
        square = np.full((6, 6), np.nan)
        if run.pgt_square is not None:
            square = mean_square(run.pgt_square, run.temperature) / BOHR**2
        thermal.append(factor * _by_lineshape(square))
    weights = spectrum.runs.weights
    unit = "e^4 a0^4 E_h^-2 cm^-2"
    gates = []
    raw_integrals = spectrum.integrals if spectrum.raw_integrals is None else spectrum.raw_integrals
    raw, found, equal = (
        raman_invariants(np.array(v)[..., None])
        for v in (raw_integrals + np.array(removed), spectrum.integrals + np.array(removed), thermal)
    )
    for column, kind in enumerate(_GATED):
        expected = np.array(exact)[:, column]
        value = found[kind][:, 0]
        gates.append(_numerical(f"raman {kind} sum, numerical", raw[kind][:, 0], expected, weights, unit))
        gates.append(_equipartition(f"raman {kind} sum, equipartition", value, equal[kind][:, 0], weights, unit))
        weighted = spectrum.weighted[kind]
        bound = side_lobes(spectrum.wavenumber, weighted, spectrum.runs, spectrum.settings)
        scale = float(np.abs(spectrum.weighted["vv"]).max())
        gates.append(_positivity(f"raman {kind} positivity", weighted, bound, scale, "e^4 a0^4 E_h^-2 cm^-1"))
    return [*gates, depolarization_gate(spectrum)]


def _invariant_squares(columns: Array) -> tuple[float, float]:
    """Return <a^2> and <gamma^2>/15 of polarizability derivatives (n_frames, 6), order xx yy zz yz xz xy."""
    xx, yy, zz, yz, xz, xy = columns.T
    isotropic = np.mean((xx + yy + zz) ** 2) / 9
    axial = 0.5 * np.mean((xx - yy) ** 2 + (yy - zz) ** 2 + (zz - xx) ** 2)
    return float(isotropic), float(axial + 3 * np.mean(xy**2 + yz**2 + xz**2)) / 15


def _by_lineshape(matrix: Array) -> Array:
    """Return the 21 independent elements of a symmetric (6, 6) matrix."""
    return np.array([matrix[i, j] for i, j in LINESHAPES])


def _numerical(name: str, found: Array, expected: Array, weights: Array, unit: str) -> Gate:
    value, target = float(weights @ found), float(weights @ expected)
    tolerance = NUMERICAL_TOLERANCE * abs(target)
    passed = bool(abs(value - target) <= tolerance)
    text = f"{value:.6g} against {target:.6g} {unit} from the mean square, must agree to {NUMERICAL_TOLERANCE:g}"
    return Gate(name, value, target, tolerance, passed, unit, text)


def _equipartition(name: str, found: Array, expected: Array, weights: Array, unit: str) -> Gate:
    """Judge the mean of found - expected over runs by its standard error."""
    value, target = float(weights @ found), float(weights @ expected)
    if not np.isfinite(target):
        text = "not judged: the files hold no mean square of the tensors"
        return Gate(name, value, target, float("nan"), None, unit, text)
    n_runs = len(found)
    if n_runs < 2:
        text = f"{value:.5g} against {target:.5g} {unit}; not judged: one trajectory gives no standard error"
        return Gate(name, value, target, float("nan"), None, unit, text)
    error = standard_error(found - expected, weights)
    tolerance = N_STANDARD_ERRORS * error + ROUND_OFF * abs(target)  # for runs without any spread
    deviation = abs(value - target) / error if error > 0 else 0.0
    # few runs know their own standard error badly: Student's distribution tells how often chance alone goes that far
    chance = 2 * float(special.stdtr(n_runs - 1, -deviation))
    text = (
        f"{value:.5g} against {target:.5g} {unit}: {deviation:.2f} standard errors of {n_runs} trajectories, "
        f"at most {N_STANDARD_ERRORS:g} (chance alone exceeds it in {100 * chance:.2g} % of cases)"
    )
    return Gate(name, value, target, tolerance, bool(abs(value - target) <= tolerance), unit, text)


def standard_error(values: Array, weights: Array) -> float:
    """Return the standard error of a weighted mean of independent values, sqrt(N/(N-1) sum w^2 (x - mean)^2)."""
    n = len(values)
    deviations = values - weights @ values
    return float(np.sqrt(n / (n - 1) * np.sum((weights * deviations) ** 2)))


def side_lobes(wavenumber: Array, spectrum: Array, runs: Runs, settings: SpectrumSettings) -> Array:
    """Return how far an autocorrelation spectrum may fall below zero, by the window alone.

    With P >= 0 the periodogram, ``S = P * W`` falls no lower than ``-P * |W-|``, W- being the negative part of W. For a
    Hann window that is 2.7 % of a line beyond its first zero, and little after that; for a boxcar 21.7 %. The unbiased
    estimator divides by the frames that are left, which belongs to the window and deepens the lobes of short runs. P
    is not kept, so its place is taken by the largest S within half a resolution. For a single line, the hardest case,
    that gives the depth of the first lobe when multiplied with 2.6 (Hann) or 1.2 (boxcar); the factor used is 3.

    Args:
        wavenumber: (n,) uniform, from 0 [cm^-1].
        spectrum: (n,) nu^2-weighted if Raman.
        runs: for their lengths and time step.
        settings: for the window.

    Returns:
        (n,) not negative, in the unit of the spectrum.
    """
    if len(wavenumber) < 2:
        return np.zeros_like(spectrum)
    spacing = wavenumber[1]
    n_lags = int(np.floor(settings.window_length / runs.timestep + 1e-9)) + 1
    lags = np.arange(n_lags)
    window = window_values(n_lags, runs.timestep, settings)
    if settings.estimator == "unbiased":
        window = window * (runs.weights @ (1.0 / (1.0 - lags / runs.n_frames[:, None])))
    n = len(spectrum)
    n_fft = round(WAVENUMBER / (runs.timestep * spacing))
    kernel = cosine_series(window[None] * runs.timestep / WAVENUMBER, n_fft, n)[0]
    negative = np.clip(-kernel, 0.0, None)
    width = 2 * int(np.ceil(0.5 * settings.resolution / spacing)) + 1
    even = np.concatenate([spectrum[:0:-1], spectrum])
    highest = maximum_filter1d(np.clip(even, 0.0, None), width, mode="nearest")
    bound = fftconvolve(highest, np.concatenate([negative[:0:-1], negative]), mode="same")[n - 1 :] * spacing
    return SIDE_LOBE_FACTOR * np.clip(bound, 0.0, None)


def _positivity(name: str, spectrum: Array, bound: Array, scale: float, unit: str) -> Gate:
    """Judge the point that falls farthest below what the side lobes allow; scale is that of the round-off."""
    bound = bound + ROUND_OFF * scale
    at = int(np.argmin(spectrum + bound))
    value, tolerance = float(spectrum[at]), float(bound[at])
    lowest = float(spectrum.min()) / float(np.abs(spectrum).max() or 1.0)
    text = f"lowest value {100 * lowest:.2g} % of the largest; negative values no deeper than the window's side lobes"
    return Gate(name, value, 0.0, tolerance, bool(value >= -tolerance), unit, text)


def depolarization_gate(spectrum: RamanSpectrum) -> Gate:
    """Check that VH/VV of every band lies in [0, 3/4].

    Intensities are summed over bands of four resolutions from the mask up; bands with less than 1 % of the strongest
    are left out. VH >= 0 and iso >= 0, that is VH/VV <= 3/4, hold for each run to the window's side lobes and know no
    statistical error: with the allowance A of :func:`side_lobes`, summed in the same way,
    ``-A_VH/VV <= VH/VV <= 3/4 (1 + A_iso/VV)``. What fails is a spectrum that is not made of squares.
    """
    name, unit = "raman depolarization", ""
    nu, settings = spectrum.wavenumber, spectrum.settings
    weighted = spectrum.weighted
    is_kept = nu >= max(settings.mask, nu[1] if len(nu) > 1 else 0.0)
    if not is_kept.any():
        return Gate(name, float("nan"), 0.75, float("nan"), None, unit, "not judged: no point lies above the mask")
    allowed = {kind: side_lobes(nu, weighted[kind], spectrum.runs, settings) for kind in _GATED}
    band = ((nu[is_kept] - nu[is_kept][0]) / (BAND_WIDTH * settings.resolution)).astype(int)
    vv, vh = (np.bincount(band, weighted[kind][is_kept]) for kind in ("vv", "vh"))
    below, above = (np.bincount(band, allowed[kind][is_kept]) for kind in ("vh", "iso"))
    is_judged = np.abs(vv) > 0.01 * np.abs(vv).max()
    if not is_judged.any():
        return Gate(name, float("nan"), 0.75, float("nan"), None, unit, "not judged: there is no intensity")
    vv, vh, below, above = (values[is_judged] for values in (vv, vh, below, above))
    below, above = (values + ROUND_OFF * np.abs(vv) for values in (below, above))
    ratio = vh / vv
    passed = bool(np.all(vv > 0) and np.all(vh >= -below) and np.all(vh <= 0.75 * (vv + above)))
    at = int(np.argmax(ratio - 0.75 * above / np.abs(vv)))
    leeway = float(0.75 * above[at] / abs(vv[at]))
    text = (
        f"VH/VV of {len(ratio)} bands from {ratio.min():.4f} to {ratio.max():.4f}, "
        f"bounds 0 and 0.75 up to the window's side lobes ({leeway:.2g})"
    )
    return Gate(name, float(ratio[at]), 0.75, leeway, passed, unit, text)


def additivity_gate(deviations: Mapping[str, float]) -> Gate:
    """Check that the parts of the cross-correlation analysis sum to the total, Eqs. 27-32.

    Args:
        deviations: largest |sum of parts - total| over largest |total|, by spectrum (ir and the 21 lineshapes); from
            :func:`mimyria_wf.cca.additivity`.
    """
    name = "cca additivity"
    if not deviations:
        return Gate(name, float("nan"), 0.0, ADDITIVITY_TOLERANCE, None, "", "not judged: there are no parts")
    # NaN compares false with everything: it must not hide
    worst = max(deviations, key=lambda key: np.inf if np.isnan(deviations[key]) else deviations[key])
    value = float(deviations[worst])
    text = (
        f"parts differ from the total by at most {value:.2g} of its largest value ({worst}, of {len(deviations)} "
        f"spectra), allowed {ADDITIVITY_TOLERANCE:g}"
    )
    return Gate(name, value, 0.0, ADDITIVITY_TOLERANCE, bool(value <= ADDITIVITY_TOLERANCE), "", text)


def energy_gate(series: Iterable[DerivativeSeries]) -> Gate:
    """Check that no NVE run heats or cools by more than 5 % of its temperature from its first to its last frame.

    A drift d of the total energy [meV/(ps atom)] changes the energy of an atom by d tau over a run of length tau. In
    nearly harmonic motion that is 3 k_B T to an atom, half of it kinetic, so that the temperature changes by
    ``|d| tau / (3 k_B)``. Spectra are divided by (IR) or quoted for the mean temperature of their run: a linear change
    cancels in the intensities to second order, 0.05^2/12 = 2e-4, below what the numerical gates resolve, and at 300 K
    +/- 7.5 K about the mean shift even a hydrogen-bonded O-H stretch, 1 cm^-1/K at most, by far less than the window's
    resolution.

    The value is the largest relative change, ``|d| tau / (3 k_B T)``.
    """
    name = "nve energy drift"
    heating: dict[str, float] = {}
    n_runs = 0
    for run in series:
        n_runs += 1
        drift = run.metadata.get("energy_drift")
        if drift is not None and np.isfinite(drift):
            length = 1e-3 * run.timestep * (run.n_frames - 1)
            heating[run.name] = abs(1e-3 * float(drift)) * length / (3 * BOLTZMANN_EV * run.temperature)
    if not heating:
        text = "not judged: no run carries the drift of its total energy"
        return Gate(name, float("nan"), 0.0, LARGEST_HEATING, None, "", text)
    worst = max(heating, key=lambda key: heating[key])
    n_failed = sum(value > LARGEST_HEATING for value in heating.values())
    text = f"the temperature of {worst} changes most over its run, by {100 * heating[worst]:.2g} %"
    if n_failed > 1:
        text += f", {n_failed} runs fail"
    text += f"; at most {100 * LARGEST_HEATING:g} % is allowed"
    if len(heating) < n_runs:
        text += f"; {n_runs - len(heating)} of {n_runs} runs carry no energies and are not judged"
    return Gate(name, heating[worst], 0.0, LARGEST_HEATING, n_failed == 0, "", text)


def all_passed(gates: Sequence[Gate]) -> bool:
    """Tell whether no gate failed; a gate that could not be judged does not fail."""
    return all(gate.passed is not False for gate in gates)
