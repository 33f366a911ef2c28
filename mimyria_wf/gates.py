"""Numbers that a spectrum must obey, found without time correlation, windows or Fourier transforms.

IR, integrated over the whole wavenumber axis from 0 up [cm^-2]:

- numerical: ``int n alpha = pi beta / (6 V c eps0) <M'.M'>`` of the same data, to 1e-3. It holds prefactor, window,
  estimator and transform against a plain mean of squares.
- equipartition: ``int n alpha = pi / (6 V c eps0) Tr <B^T (1 - Pi) B>``, within three standard errors over
  trajectories. The square and its projector on removed rigid motions are those of :mod:`mimyria_wf.derivatives`; it
  holds velocities, masses, units of the tensors and the temperature against each other.

Raman has the same two for nu^2 iso and nu^2 VH, with ``<alpha'_c alpha'_d> = k_B T (Q^T (1 - Pi) Q)_cd``; and the
depolarization ratio lies in [0, 3/4], the upper bound being the same as iso >= 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from mimyria_wf.derivatives import DerivativeSeries, mean_square
from mimyria_wf.spectrum import LIGHT, LINESHAPES, IrSpectrum, RamanKind, RamanSpectrum, raman_invariants
from mimyria_wf.units import BOHR, BOLTZMANN, EPS0, C, E

Array = NDArray[Any]

NUMERICAL_TOLERANCE = 1e-3
N_STANDARD_ERRORS = 3.0
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
    found = spectrum.integrals + np.array(removed)
    weights = spectrum.runs.weights
    return [
        _numerical("ir f-sum, numerical", found, np.array(exact), weights, "cm^-2"),
        _equipartition("ir f-sum, equipartition", found, np.array(thermal), weights, "cm^-2"),
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
        exact.append(factor * _by_lineshape(columns.T @ columns / len(columns)))
        removed.append(factor * _by_lineshape(np.outer(mean, mean)))
        square = np.full((6, 6), np.nan)
        if run.pgt_square is not None:
            square = mean_square(run.pgt_square, run.temperature) / BOHR**2
        thermal.append(factor * _by_lineshape(square))
    weights = spectrum.runs.weights
    unit = "e^4 a0^4 E_h^-2 cm^-2"
    gates = []
    found, expected, equal = (
        raman_invariants(np.array(v)[..., None]) for v in (spectrum.integrals + np.array(removed), exact, thermal)
    )
    for kind in _GATED:
        value = found[kind][:, 0]
        gates.append(_numerical(f"raman {kind} sum, numerical", value, expected[kind][:, 0], weights, unit))
        gates.append(_equipartition(f"raman {kind} sum, equipartition", value, equal[kind][:, 0], weights, unit))
    return [*gates, depolarization_gate(spectrum)]


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
    tolerance = N_STANDARD_ERRORS * error + 1e-9 * abs(target)  # round-off, for runs without any spread
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


def depolarization_gate(spectrum: RamanSpectrum) -> Gate:
    """Check that VH/VV lies in [0, 3/4] within three standard errors where there is intensity.

    Points with less than 1 % of the largest nu^2 VV above the mask are left out. A leeway of 0.01 is always given, and
    is all that a single trajectory has.
    """
    ratio, error = spectrum.depolarization, spectrum.errors["depolarization"]
    vv = spectrum.weighted["vv"]
    is_judged = np.isfinite(ratio)
    if not is_judged.any():
        text = "not judged: no point lies above the mask"
        return Gate("raman depolarization", float("nan"), 0.75, float("nan"), None, "", text)
    is_judged &= vv > 0.01 * vv[is_judged].max()
    leeway = np.fmax(N_STANDARD_ERRORS * error, 0.01)[is_judged]
    judged = ratio[is_judged]
    passed = bool(np.all(judged <= 0.75 + leeway) and np.all(judged >= -leeway))
    text = f"VH/VV from {judged.min():.4f} to {judged.max():.4f}, bounds 0 and 0.75 within three standard errors"
    return Gate("raman depolarization", float(judged.max()), 0.75, float(leeway.max()), passed, "", text)


def all_passed(gates: Sequence[Gate]) -> bool:
    """Tell whether no gate failed; a gate that could not be judged does not fail."""
    return all(gate.passed is not False for gate in gates)
