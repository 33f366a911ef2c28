"""Numbers that a spectrum must obey, found without time correlation, windows or Fourier transforms.

IR, integrated over the whole wavenumber axis from 0 up [cm^-2]:

- numerical: ``int n alpha = pi beta / (6 V c eps0) <M'.M'>`` of the same data, to 1e-3. It holds prefactor, window,
  estimator and transform against a plain mean of squares.
- equipartition: ``int n alpha = pi / (6 V c eps0) Tr <B^T (1 - Pi) B>``, within its error over trajectories, see
  :func:`equipartition_gate`. The square and its projector on removed rigid motions are those of
  :mod:`mimyria_wf.derivatives`; it holds masses and units of the tensors against each other. A common factor of all
  velocities or masses goes into the temperature and cancels: that is what :func:`energy_fluctuation_gate` is for.

Raman has the same two for nu^2 iso and nu^2 VH, with ``<alpha'_c alpha'_d> = k_B T (Q^T (1 - Pi) Q)_cd``. The mean
squares of the numerical one are those of the mean polarizability and of the anisotropy,

    ``a = (xx + yy + zz)/3``, ``gamma^2 = 1/2 [(xx - yy)^2 + (yy - zz)^2 + (zz - xx)^2] + 3 (xy^2 + yz^2 + xz^2)``,

with iso = a^2 and VH = gamma^2/15, written out here and not taken from the sums over lineshapes that make the spectra
(Eqs. 9-12): a wrong depolarised spectrum fails with a single run. Each of the 21 lineshapes and each of the six
components of the IR tensor is held against its own mean product ``<a'_c a'_d>`` as well.

Positivity. IR, iso and VH are autocorrelation spectra. The periodogram of a run is never negative, whatever its noise;
the spectrum is its convolution with the window's transform W, and can be negative only by the negative side lobes of W.
No statistics enter, and the bound does not widen with few runs; see :func:`lobes_of_run`, which knows the periodogram
of each run, and :func:`side_lobes`, which has to do with the spectrum. The depolarization ratio in [0, 3/4] is the same
statement about VH and iso, made band by band.

Parts of the cross-correlation analysis sum to the total to round-off, and the total energy of NVE runs stays put, in
the long run and from step to step.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special
from scipy.ndimage import maximum_filter1d
from scipy.signal import fftconvolve

from mimyria_wf.derivatives import PAIR_NAMES, PAIRS, DerivativeSeries, mean_square
from mimyria_wf.spectrum import (
    LIGHT,
    LINESHAPE_NAMES,
    LINESHAPES,
    IrSpectrum,
    RamanKind,
    RamanSpectrum,
    Runs,
    SpectrumSettings,
    cosine_series,
    ir_prefactor,
    observed_axis,
    raman_invariants,
    raman_prefactor,
    window_values,
)
from mimyria_wf.units import BOHR, BOLTZMANN, BOLTZMANN_EV, EPS0, WAVENUMBER, C, E

Array = NDArray[Any]

NUMERICAL_TOLERANCE = 1e-3
N_STANDARD_ERRORS = 3.0
ADDITIVITY_TOLERANCE = 1e-10
"""Round-off of double precision, 1e-16, times the hundreds of terms whose sum it is, and some room."""
LARGEST_CHANCE = 2 * float(special.ndtr(-N_STANDARD_ERRORS))
"""That chance alone fails an equipartition gate, 0.0027: what three standard errors mean for many runs."""
GROSS_DEVIATION = 0.25
"""Relative; what is that far off fails earlier, see :func:`equipartition_gate`."""
LARGEST_GROSS_CHANCE = 0.01
"""That chance alone fails an equipartition gate with a gross deviation, however much single runs spread."""
LARGEST_FLUCTUATION = 0.2
"""Of the total energy, in those of the kinetic energy; see :func:`energy_fluctuation_gate`."""
SIDE_LOBE_FACTOR = 3.0
"""See :func:`side_lobes`."""
LOBE_MARGIN = 1.03
"""Of the bound between the points of its grid; see :func:`lobes_of_run`."""
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
    exact, removed, thermal, tensor, removed_tensor, lobes = [], [], [], [], [], []
    for run in series:
        assert run.volume is not None
        dipole = run.total_dipole_derivative
        factor = f_sum_prefactor(spectrum.settings.temperature or run.temperature, run.volume)
        exact.append(factor * float((dipole**2).sum(axis=1).mean()))
        # a mean removed before the transform is missing from the integral; the comparison is made with it
        mean = dipole.mean(axis=0) if spectrum.settings.subtract_mean else np.zeros(3)
        removed.append(factor * float((mean**2).sum()))
        tensor.append(3 * factor * _products(dipole, PAIRS))
        removed_tensor.append(3 * factor * np.array([mean[c] * mean[d] for c, d in PAIRS]))
        scale = ir_prefactor(spectrum.settings.temperature or run.temperature, run.volume)
        lobes.append(scale * lobes_of_run(spectrum.wavenumber, (dipole - mean)[None], run, spectrum.settings)[0])
        square = None if run.apt_square is None else mean_square(run.apt_square, run.temperature)
        thermal.append(float("nan") if square is None else factor * float(np.trace(square)))
    raw = spectrum.integrals if spectrum.raw_integrals is None else spectrum.raw_integrals
    weights = spectrum.runs.weights
    found_tensor = None if spectrum.tensor_integrals is None else spectrum.tensor_integrals + np.array(removed_tensor)
    bound = weights @ np.array(lobes)
    return [
        numerical_gate("ir f-sum, numerical", raw + np.array(removed), np.array(exact), weights, "cm^-2"),
        equipartition_gate(
            "ir f-sum, equipartition", spectrum.integrals + np.array(removed), np.array(thermal), weights, "cm^-2"
        ),
        _products_gate("ir tensor, numerical", found_tensor, np.array(tensor), PAIRS, PAIR_NAMES, weights, "cm^-2"),
        positivity_gate("ir positivity", spectrum.n_alpha, bound, float(spectrum.n_alpha.max()), "cm^-1"),
    ]


def raman_gates(spectrum: RamanSpectrum, series: Iterable[DerivativeSeries]) -> list[Gate]:
    """Hold nu^2-weighted Raman spectra against <alpha' alpha'> and against equipartition, and the depolarization.

    Args:
        spectrum: from :func:`mimyria_wf.spectrum.raman_spectrum`.
        series: the runs that it was made from, in the same order.
    """
    exact, removed, thermal, products, lobes = [], [], [], [], []
    factor = raman_sum_prefactor()
    for run in series:
        columns = run.total_polarizability_derivative
        mean = columns.mean(axis=0) if spectrum.settings.subtract_mean else np.zeros(6)
        exact.append([factor * square for square in _invariant_squares(columns)])
        removed.append(factor * _by_lineshape(np.outer(mean, mean)))
        products.append(factor * _products(columns, LINESHAPES))
        own = lobes_of_run(spectrum.wavenumber, _invariant_amplitudes(columns - mean), run, spectrum.settings)
        lobes.append(raman_prefactor() * own)
        square = np.full((6, 6), np.nan)
        if run.pgt_square is not None:
            square = mean_square(run.pgt_square, run.temperature) / BOHR**2
        thermal.append(factor * _by_lineshape(square))
    weights = spectrum.runs.weights
    unit = "e^4 a0^4 E_h^-2 cm^-2"
    gates = []
    allowed = {kind: weights @ np.array(lobes)[:, row] for row, kind in enumerate(_GATED)}
    raw_integrals = spectrum.integrals if spectrum.raw_integrals is None else spectrum.raw_integrals
    raw, found, equal = (
        raman_invariants(np.array(v)[..., None])
        for v in (raw_integrals + np.array(removed), spectrum.integrals + np.array(removed), thermal)
    )
    for column, kind in enumerate(_GATED):
        expected = np.array(exact)[:, column]
        value = found[kind][:, 0]
        gates.append(numerical_gate(f"raman {kind} sum, numerical", raw[kind][:, 0], expected, weights, unit))
        gates.append(equipartition_gate(f"raman {kind} sum, equipartition", value, equal[kind][:, 0], weights, unit))
        weighted = spectrum.weighted[kind]
        bound = allowed[kind]
        scale = float(np.abs(spectrum.weighted["vv"]).max())
        gates.append(positivity_gate(f"raman {kind} positivity", weighted, bound, scale, "e^4 a0^4 E_h^-2 cm^-1"))
    found_products = raw_integrals + np.array(removed)
    return [
        *gates,
        _products_gate(
            "raman lineshapes, numerical",
            found_products,
            np.array(products),
            LINESHAPES,
            LINESHAPE_NAMES,
            weights,
            unit,
        ),
        _identities_gate(spectrum),
        depolarization_gate(spectrum, allowed),
    ]


def _products(columns: Array, pairs: Sequence[tuple[int, int]]) -> Array:
    """Return <u_c u_d> of columns (n_frames, n_components) for each pair of components."""
    square = columns.T @ columns / len(columns)
    return np.array([square[c, d] for c, d in pairs])


def _products_gate(
    name: str,
    found: Array | None,
    expected: Array,
    pairs: Sequence[tuple[int, int]],
    names: Sequence[str],
    weights: Array,
    unit: str,
) -> Gate:
    """Hold every product of components, in units of the root of its two mean squares.

    Args:
        name: of the gate.
        found: (n_trajectories, n_pairs) integrals of the spectra; None: not kept.
        expected: (n_trajectories, n_pairs) from the series.
        pairs: of components.
        names: of the pairs.
        weights: of the trajectories.
        unit: of both.
    """
    if found is None:
        text = "not judged: the integrals of the components are not kept"
        return Gate(name, float("nan"), float("nan"), float("nan"), None, unit, text)
    values, targets = weights @ found, weights @ expected
    square = {c: target for (c, d), target in zip(pairs, targets, strict=True) if c == d}
    # components that vanish but for round-off are no measure of themselves
    floor = 1e-12 * max(square.values())
    tolerances = NUMERICAL_TOLERANCE * np.array(
        [np.sqrt(max(square[c], floor) * max(square[d], floor)) for c, d in pairs]
    )
    misses = np.abs(values - targets)
    relative = misses / np.where(tolerances > 0, tolerances, 1.0)
    at = int(np.argmax(np.where(np.isnan(relative), np.inf, relative)))
    passed = bool(np.all(misses <= tolerances))
    text = (
        f"of {len(pairs)} components {names[at]} is the farthest off, {values[at]:.6g} against {targets[at]:.6g} "
        f"{unit} from the mean product, allowed {tolerances[at]:.2g}"
    )
    return Gate(name, float(values[at]), float(targets[at]), float(tolerances[at]), passed, unit, text)


def _identities_gate(spectrum: RamanSpectrum) -> Gate:
    """Hold aniso = 15 VH (Eq. 12) and VV = iso + 4/3 VH (Eqs. 9-11) at every point of the spectra."""
    parts = spectrum.weighted
    scale = float(np.abs(parts["vv"]).max()) or 1.0
    misses = {
        "aniso = 15 VH": float(np.abs(parts["aniso"] - 15 * parts["vh"]).max()) / (15 * scale),
        "VV = iso + 4/3 VH": float(np.abs(parts["vv"] - parts["iso"] - 4 / 3 * parts["vh"]).max()) / scale,
    }
    worst = max(misses, key=lambda key: np.inf if np.isnan(misses[key]) else misses[key])
    text = f"{worst} holds to {misses[worst]:.2g} of the largest value, allowed {ROUND_OFF:g}"
    return Gate("raman identities", misses[worst], 0.0, ROUND_OFF, bool(misses[worst] <= ROUND_OFF), "", text)


def _invariant_amplitudes(columns: Array) -> Array:
    """Return series whose squares sum to a^2 and gamma^2/15 at each frame, (2, n_frames, 6); zeros fill the first."""
    xx, yy, zz = columns.T[:3]
    found = np.zeros((2, len(columns), 6))
    found[0, :, 0] = (xx + yy + zz) / 3
    found[1, :, 0] = (xx - yy) / np.sqrt(30)
    found[1, :, 1] = (yy - zz) / np.sqrt(30)
    found[1, :, 2] = (zz - xx) / np.sqrt(30)
    found[1, :, 3:] = columns[:, 3:] / np.sqrt(5)
    return found


def _invariant_squares(columns: Array) -> tuple[float, float]:
    """Return <a^2> and <gamma^2>/15 of polarizability derivatives (n_frames, 6), order xx yy zz yz xz xy."""
    xx, yy, zz, yz, xz, xy = columns.T
    isotropic = np.mean((xx + yy + zz) ** 2) / 9
    axial = 0.5 * np.mean((xx - yy) ** 2 + (yy - zz) ** 2 + (zz - xx) ** 2)
    return float(isotropic), float(axial + 3 * np.mean(xy**2 + yz**2 + xz**2)) / 15


def _by_lineshape(matrix: Array) -> Array:
    """Return the 21 independent elements of a symmetric (6, 6) matrix."""
    return np.array([matrix[i, j] for i, j in LINESHAPES])


def numerical_gate(name: str, found: Array, expected: Array, weights: Array, unit: str) -> Gate:
    """Judge the weighted means of found and expected, (n_trajectories,) each, to 1e-3."""
    value, target = float(weights @ found), float(weights @ expected)
    tolerance = NUMERICAL_TOLERANCE * abs(target)
    passed = bool(abs(value - target) <= tolerance)
    text = f"{value:.6g} against {target:.6g} {unit} from the mean square, must agree to {NUMERICAL_TOLERANCE:g}"
    return Gate(name, value, target, tolerance, passed, unit, text)


def equipartition_gate(name: str, found: Array, expected: Array, weights: Array, unit: str) -> Gate:
    """Judge the mean of found - expected over N runs by its standard error.

    Runs are few, and know their own standard error badly: N correct runs go beyond three of them in 20 % (N = 2), 9.5 %
    (3), 2 % (8) and 0.27 % (many) of all cases. Student's distribution with N - 1 degrees of freedom tells that chance.
    A gate

    - fails if chance alone goes that far in less than 0.27 % of cases, or in less than 1 % and it is more than
      25 % off;
    - is not judged if it is beyond three standard errors otherwise: more runs will tell;
    - passes within three.

    Measured on 4000 correct sets of gaussian runs, a gate fails (is not judged) in 0.3 % (19 %) with 2 runs, 0.3 %
    (9.6 %) with 3, 0.3 % (1.6 %) with 8, 0.3 % (0.7 %) with 20 where single runs spread by 10 %; in 0.2 % with lengths
    of 10 to 1 and 0.4 % with 10:1:1. Where they spread by 50 %, 25 % off is no surprise: it fails in 0.9 %, 1 %, 1.3 %
    and 0.6 %.

    Args:
        name: of the gate.
        found: (n_trajectories,) of each run.
        expected: (n_trajectories,) by equipartition; NaN: unknown.
        weights: (n_trajectories,) of the mean.
        unit: of both.
    """
    value, target = float(weights @ found), float(weights @ expected)
    if not np.isfinite(target):
        text = "not judged: the files hold no mean square of the tensors"
        return Gate(name, value, target, float("nan"), None, unit, text)
    n_runs = len(found)
    if n_runs < 2:
        text = f"{value:.5g} against {target:.5g} {unit}; not judged: one trajectory gives no standard error"
        return Gate(name, value, target, float("nan"), None, unit, text)
    error = standard_error(found - expected, weights)
    round_off = ROUND_OFF * abs(target)  # for runs without any spread
    tolerance = -float(special.stdtrit(n_runs - 1, 0.5 * LARGEST_CHANCE)) * error + round_off
    miss = abs(value - target)
    # what is not a number fails
    is_near = miss <= N_STANDARD_ERRORS * error + round_off
    deviation = miss / error if error > 0 else 0.0
    chance = 2 * float(special.stdtr(n_runs - 1, -deviation))
    is_gross = miss > GROSS_DEVIATION * abs(target) and chance < LARGEST_GROSS_CHANCE
    text = f"{value:.5g} against {target:.5g} {unit}: {deviation:.2f} standard errors of {n_runs} trajectories"
    if is_near:
        passed: bool | None = True
        text += f", at most {N_STANDARD_ERRORS:g}"
    elif not miss <= tolerance or is_gross:
        passed = False
        text += f", at most {N_STANDARD_ERRORS:g} (chance alone exceeds it in {100 * chance:.2g} % of cases)"
    else:
        passed = None
        text += (
            f"; not judged: beyond three standard errors, which chance alone does in {100 * chance:.2g} % of cases "
            f"with {n_runs} runs: more runs will tell"
        )
    return Gate(name, value, target, tolerance, passed, unit, text)


def standard_error(values: Array, weights: Array) -> float:
    """Return the standard error of a weighted mean of independent values, sqrt(sum w (x - mean)^2/(N - 1)).

    Without bias where the variance of a value goes with 1/w, as those of runs do that sample for a while: the expected
    ``sum w (x - mean)^2`` is N - 1 times the variance of the mean. Runs whose energies stay as they were drawn do not
    get better with their length; where lengths differ much, their error is underestimated.
    """
    deviations = values - weights @ values
    return float(np.sqrt(weights @ deviations**2 / (len(values) - 1)))


def lobes_of_run(wavenumber: Array, series: Array, run: DerivativeSeries, settings: SpectrumSettings) -> Array:
    """Return how far the autocorrelation spectra of a run may fall below zero, by the window alone.

    The windowed sum over lags is ``S = P * W`` with the periodogram ``P >= 0`` of the run and the transform W of the
    window, to which the unbiased estimator's division by the frames that are left belongs. ``S >= -P * W-``, with W-
    the negative part of W, exactly and whatever the run holds. Both are made on a grid over the whole circle of
    frequencies, so that bands beyond the axis and images at 0 and at the Nyquist frequency count with the rest. The
    bound is then read at the frequencies where the spectrum was evaluated, and takes the same factors (Jacobian, sinc).

    Args:
        wavenumber: (n,) axis of the spectrum [cm^-1].
        series: (n_kinds, n_frames, n_columns); a spectrum is the sum over the columns' autocorrelations.
        run: for time step and origin.
        settings: window, estimator, corrections.

    Returns:
        (n_kinds, n) not negative [square of the series times fs].
    """
    n_kinds, n_frames, _ = series.shape
    n_lags = int(np.floor(settings.window_length / run.timestep + 1e-9)) + 1
    window = window_values(n_lags, run.timestep, settings)
    if settings.estimator == "unbiased":
        window = window / (1.0 - np.arange(n_lags) / n_frames)
    # sixteen points a resolution: the bound is smooth between them to 2 %, which LOBE_MARGIN covers
    n_fft = int(fft.next_fast_len(max(n_frames + n_lags, 16 * n_lags), real=True))
    even = np.zeros(n_fft)
    even[:n_lags] = window * run.timestep
    even[n_fft - n_lags + 1 :] = even[n_lags - 1 : 0 : -1]
    kernel = fft.irfft(np.clip(-fft.rfft(even).real, 0.0, None), n_fft)
    observed, factor = observed_axis(wavenumber, run.timestep, settings, is_difference=run.origin == "differences")
    place = observed * run.timestep * n_fft / WAVENUMBER
    below = np.clip(np.floor(place).astype(int), 0, n_fft // 2)
    above = np.minimum(below + 1, n_fft // 2)
    found = np.zeros((n_kinds, len(wavenumber)))
    for kind, columns in enumerate(series):
        power = np.zeros(n_fft // 2 + 1)
        for column in columns.T:
            if column.any():
                amplitude = fft.rfft(column, n_fft)
                power += amplitude.real**2 + amplitude.imag**2
        correlation = fft.irfft(power / n_frames, n_fft)
        bound = np.clip(fft.rfft(correlation * kernel).real, 0.0, None)
        found[kind] = LOBE_MARGIN * np.maximum(bound[below], bound[above]) * factor
    return found


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
    # even about 0 and, where the axis gets there, about the Nyquist frequency
    is_whole = n == n_fft // 2 + 1
    even = np.pad(spectrum, n - 1, mode="reflect") if is_whole else np.concatenate([spectrum[:0:-1], spectrum])
    highest = maximum_filter1d(np.clip(even, 0.0, None), width, mode="nearest")
    bound = fftconvolve(highest, np.concatenate([negative[:0:-1], negative]), mode="same")[n - 1 :][:n] * spacing
    return SIDE_LOBE_FACTOR * np.clip(bound, 0.0, None)


def positivity_gate(name: str, spectrum: Array, bound: Array, scale: float, unit: str) -> Gate:
    """Judge the point that falls farthest below what the side lobes allow; scale is that of the round-off."""
    bound = bound + ROUND_OFF * scale
    at = int(np.argmin(spectrum + bound))
    value, tolerance = float(spectrum[at]), float(bound[at])
    lowest = float(spectrum.min()) / float(np.abs(spectrum).max() or 1.0)
    text = f"lowest value {100 * lowest:.2g} % of the largest; negative values no deeper than the window's side lobes"
    return Gate(name, value, 0.0, tolerance, bool(value >= -tolerance), unit, text)


def depolarization_gate(spectrum: RamanSpectrum, allowed: Mapping[RamanKind, Array] | None = None) -> Gate:
    """Check that VH/VV of every band lies in [0, 3/4].

    Intensities are summed over bands of four resolutions from the mask up; bands with less than 1 % of the strongest
    are left out. VH >= 0 and iso >= 0, that is VH/VV <= 3/4, hold for each run to the window's side lobes and know no
    statistical error: with the allowances A for side lobes, summed in the same way,
    ``-A_VH/VV <= VH/VV <= 3/4 (1 + A_iso/VV)``, and VV itself no lower than ``-A_iso - 4/3 A_VH``. What fails is a
    spectrum that is not made of squares.

    Args:
        spectrum: the lineshapes.
        allowed: (n,) side lobes of nu^2 iso and nu^2 VH; None: by :func:`side_lobes`.
    """
    name, unit = "raman depolarization", ""
    nu, settings = spectrum.wavenumber, spectrum.settings
    weighted = spectrum.weighted
    is_kept = nu >= max(settings.mask, nu[1] if len(nu) > 1 else 0.0)
    if not is_kept.any():
        return Gate(name, float("nan"), 0.75, float("nan"), None, unit, "not judged: no point lies above the mask")
    if allowed is None:
        allowed = {kind: side_lobes(nu, weighted[kind], spectrum.runs, settings) for kind in _GATED}
    band = ((nu[is_kept] - nu[is_kept][0]) / (BAND_WIDTH * settings.resolution)).astype(int)
    vv, vh = (np.bincount(band, weighted[kind][is_kept]) for kind in ("vv", "vh"))
    below, above = (np.bincount(band, allowed[kind][is_kept]) for kind in reversed(_GATED))
    is_judged = np.abs(vv) > 0.01 * np.abs(vv).max()
    if not is_judged.any():
        return Gate(name, float("nan"), 0.75, float("nan"), None, unit, "not judged: there is no intensity")
    vv, vh, below, above = (values[is_judged] for values in (vv, vh, below, above))
    below, above = (values + ROUND_OFF * np.abs(vv) for values in (below, above))
    ratio = vh / vv
    passed = bool(np.all(vv >= -above - 4 / 3 * below) and np.all(vh >= -below) and np.all(vh <= 0.75 * (vv + above)))
    at = int(np.argmax(ratio - 0.75 * above / np.abs(vv)))
    leeway = float(0.75 * above[at] / abs(vv[at]))
    text = (
        f"VH/VV of {len(ratio)} bands from {ratio.min():.4f} to {ratio.max():.4f}, "
        f"bounds 0 and 0.75 up to the window's side lobes ({leeway:.2g})"
    )
    return Gate(name, float(ratio[at]), 0.75, leeway, passed, unit, text)


def additivity_gate(deviations: Mapping[str, float]) -> Gate:
    """Check that the parts of the cross-correlation analysis sum to the total, Eqs. 27-32.

    This proves the sums over groups. It says nothing on which pairs a relation holds: what is left of all pairs is made
    as the total less the other relations, so that relations add up whatever they hold.

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


def energy_fluctuation_gate(series: Iterable[DerivativeSeries]) -> Gate:
    """Check that the total energy of NVE runs does not follow the kinetic energy up and down.

    Where the potential energy gives what the kinetic energy takes, their sum stays. With velocities or masses in a
    wrong unit the kinetic energy is a factor f off and the sum fluctuates by ``|f - 1|/f`` of it: 0.75 for velocities
    taken for twice what they are (f = 4), 0.5 for doubled masses, 0.998 for A/fs taken for atomic units. The
    temperature would only follow, and no sum rule show it. The Verlet integrator leaves ``tan^2(w_obs h/2)``, 0.13 for
    an O-H stretch at 1 fs and 0.03 at 0.5 fs; at most 0.2 is allowed.

    The value is the largest ratio of standard deviations, that of the total energy taken about its drift.
    """
    name = "nve energy fluctuation"
    ratios: dict[str, float] = {}
    n_runs = 0
    for run in series:
        n_runs += 1
        ratio = run.metadata.get("energy_fluctuation_ratio")
        if ratio is not None and np.isfinite(ratio):
            ratios[run.name] = float(ratio)
    if not ratios:
        text = "not judged: no run carries the fluctuation of its total energy, or none conserves it"
        return Gate(name, float("nan"), 0.0, LARGEST_FLUCTUATION, None, "", text)
    worst = max(ratios, key=lambda key: ratios[key])
    passed = bool(ratios[worst] <= LARGEST_FLUCTUATION)
    text = (
        f"the total energy of {worst} fluctuates by {ratios[worst]:.3g} of its kinetic energy, at most "
        f"{LARGEST_FLUCTUATION:g} is allowed"
    )
    if not passed:
        text += ": check the units of velocities and masses, and the time step"
    if len(ratios) < n_runs:
        text += f"; {n_runs - len(ratios)} of {n_runs} runs carry no energies and are not judged"
    return Gate(name, ratios[worst], 0.0, LARGEST_FLUCTUATION, passed, "", text)


def velocity_gate(series: Iterable[DerivativeSeries]) -> Gate:
    """Tell whether velocities belong to the positions, see :func:`mimyria_wf.trajectory.check_velocities`.

    A wrong unit of velocities changes the temperature along and is seen by no sum rule. Verbs that make derivatives
    refuse such a run; labelled trajectories that come from elsewhere are judged here, by what reading them found
    (``velocity_error`` in the metadata, empty if all is well).
    """
    name, nan = "velocities fit positions", float("nan")
    found = [str(run.metadata["velocity_error"]) for run in series if "velocity_error" in run.metadata]
    if not found:
        return Gate(name, nan, 0.0, nan, None, "", "not judged: nothing is known of positions")
    wrong = [text for text in found if text]
    text = wrong[0] if wrong else f"{len(found)} runs: positions change as the velocities say"
    return Gate(name, float(len(wrong)), 0.0, 0.0, not wrong, "runs", text)


def all_passed(gates: Sequence[Gate]) -> bool:
    """Tell whether no gate failed; a gate that could not be judged does not fail."""
    return all(gate.passed is not False for gate in gates)
