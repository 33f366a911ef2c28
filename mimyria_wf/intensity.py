"""Forms of the Raman spectrum: what is made from the classical lineshape when it is shown or written, and only then.

The stored result is always the classical lineshape of Eq. 7, as ``nu^2 I``. With ``x = hbar omega / (k_B T)``:

- classical: ``I``
- harmonic: ``I x / (1 - exp(-x))``, the harmonic (Kubo) quantum correction. With the laser factor it is what an
  experiment sees on the Stokes side: Eq. 11 of Egger, Grumet and Bucko (2025).
- Bose-reduced: the harmonic one divided by n + 1 = 1/(1 - exp(-x)), ``I x``
- susceptibility: ``chi''(nu) = pi beta nu I``, from ``chi''(omega) = (beta omega / 2) int dt exp(-i omega t)
  <alpha(0) alpha(t)>``. It is a response of the sample and takes no laser factor.

The laser factor is ``((nu_in - nu) / nu_in)^4`` for power, and with exponent 3 for photon counts. Each form can be had
times nu^2 ("without 1/w^2"). Factors that depend on temperature are applied to each run with its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mimyria_wf.errors import SpectrumError
from mimyria_wf.spectrum import RAMAN_UNIT, RAMAN_WEIGHTED_UNIT
from mimyria_wf.units import BOLTZMANN, BOLTZMANN_EV, HARTREE, HBAR, C

Array = NDArray[Any]
Statistics = Literal["classical", "harmonic", "bose-reduced", "susceptibility"]

_TEXTS: dict[str, str] = {
    "classical": "classical lineshape",
    "harmonic": "harmonic (Kubo) quantum lineshape, Stokes",
    "bose-reduced": "Bose-reduced harmonic lineshape",
    "susceptibility": "susceptibility chi''",
}


@dataclass(frozen=True)
class RamanForm:
    """A form of the Raman spectrum.

    Attributes:
        statistics: "classical", "harmonic" (Kubo), "bose-reduced" or "susceptibility".
        laser_nm: wavelength of the laser, for the laser factor [nm]; None: no laser factor.
        laser_exponent: 4 for power, 3 for photon counts.
        is_divided: with 1/w^2, as in Eq. 7; False: times nu^2.
    """

    statistics: Statistics = "classical"
    laser_nm: float | None = None
    laser_exponent: Literal[3, 4] = 4
    is_divided: bool = True

    def __post_init__(self) -> None:
        """Refuse forms without meaning."""
        if self.statistics not in get_args(Statistics):
            raise SpectrumError(
                f"statistics of a Raman spectrum are one of {get_args(Statistics)}, got {self.statistics!r}"
            )
        if self.laser_exponent not in (3, 4):
            raise SpectrumError(f"the laser factor's exponent is 4 (power) or 3 (photons), got {self.laser_exponent}")
        if self.laser_nm is None:
            return
        if not (np.isfinite(self.laser_nm) and 100 <= self.laser_nm <= 10000):
            raise SpectrumError(f"the laser's wavelength must lie between 100 and 10000 nm, got {self.laser_nm}")
        if self.statistics == "susceptibility":
            raise SpectrumError("a susceptibility is a property of the sample alone and takes no laser factor")

    @property
    def label(self) -> str:
        """What the form is, for files and plots."""
        parts = [_TEXTS[self.statistics], "with 1/w^2" if self.is_divided else "times nu^2 (without 1/w^2)"]
        if self.laser_nm is None:
            parts.append("no laser factor")
        else:
            kind = "power" if self.laser_exponent == 4 else "photons"
            parts.append(f"laser factor ((nu_in - nu)/nu_in)^{self.laser_exponent} at {self.laser_nm:g} nm ({kind})")
        if self.statistics in ("classical", "bose-reduced"):
            parts.append("no Bose factor")
        return ", ".join(parts)

    @property
    def unit(self) -> str:
        """Unit of the spectrum."""
        if self.statistics == "susceptibility":
            return "e^4 a0^4 E_h^-3" if self.is_divided else "e^4 a0^4 E_h^-3 cm^-2"
        return RAMAN_UNIT if self.is_divided else RAMAN_WEIGHTED_UNIT

    @property
    def stem(self) -> str:
        """Part of a file name; empty for the classical lineshape with 1/w^2 and no factors."""
        parts = [] if self.statistics == "classical" else [self.statistics.replace("-", "_")]
        if self.laser_nm is not None:
            parts.append(f"{self.laser_nm:g}nm" + ("_photons" if self.laser_exponent == 3 else ""))
        if not self.is_divided:
            parts.append("times_w2")
        return "_".join(parts)

    @property
    def depends_on_temperature(self) -> bool:
        """Whether a temperature enters."""
        return self.statistics != "classical"

    def factor(self, wavenumber: Array, temperature: float, mask: float = 0.0) -> Array:
        """Return what ``nu^2 I`` is multiplied with to get this form.

        Args:
            wavenumber: (n,) [cm^-1].
            temperature: [K].
            mask: below it, and at 0, a form with 1/w^2 is NaN [cm^-1]; see
                :attr:`mimyria_wf.spectrum.SpectrumSettings.mask`.

        Returns:
            (n,).
        """
        if not (np.isfinite(temperature) and temperature > 0):
            raise SpectrumError(f"the temperature of a quantum factor must be positive, got {temperature} K")
        nu = np.asarray(wavenumber, dtype=float)
        factor = _statistical_factor(self.statistics, nu, temperature)
        if self.laser_nm is not None:
            incident = 1e7 / self.laser_nm
            # beyond the laser's own wavenumber there is no scattered light
            factor = factor * np.clip((incident - nu) / incident, 0.0, None) ** self.laser_exponent
        if not self.is_divided:
            return factor
        is_kept = (nu >= mask) & (nu > 0)
        return np.where(is_kept, factor / np.where(is_kept, nu, 1.0) ** 2, np.nan)


def _statistical_factor(statistics: Statistics, wavenumber: Array, temperature: float) -> Array:
    x = HBAR * 2 * np.pi * C * 100 * wavenumber / (BOLTZMANN * temperature)
    if statistics == "harmonic":
        is_finite = x > 0
        return np.where(is_finite, x / np.where(is_finite, -np.expm1(-x), 1.0), 1.0)
    if statistics == "bose-reduced":
        return x
    if statistics == "susceptibility":
        return np.pi * HARTREE / (BOLTZMANN_EV * temperature) * wavenumber
    return np.ones_like(x)


def apply(
    form: RamanForm,
    weighted_per_trajectory: Array,
    wavenumber: Array,
    temperatures: Sequence[float] | Array,
    mask: float = 0.0,
) -> Array:
    """Return a form of the spectra of several runs, each with its own temperature.

    Args:
        form: what to make.
        weighted_per_trajectory: (n_trajectories, ..., n) classical nu^2 I, such as
            :attr:`mimyria_wf.spectrum.RamanSpectrum.per_trajectory` or one of its invariants.
        wavenumber: (n,) [cm^-1].
        temperatures: (n_trajectories,) [K].
        mask: see :meth:`RamanForm.factor`.

    Returns:
        (n_trajectories, ..., n) in ``form.unit``.
    """
    if len(temperatures) != len(weighted_per_trajectory):
        raise SpectrumError(
            f"each run needs its temperature: {len(weighted_per_trajectory)} spectra, {len(temperatures)} temperatures"
        )
    factors = np.array([form.factor(wavenumber, float(t), mask) for t in temperatures])
    shape = (len(factors), *(1,) * (weighted_per_trajectory.ndim - 2), len(wavenumber))
    return np.asarray(weighted_per_trajectory * factors.reshape(shape))
