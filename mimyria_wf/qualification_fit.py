"""What tensors at several field steps say about each other: their limit, their noise, their error.

T(h) = T + K h^2 + noise, where the noise of one force, sigma, enters an APT as sigma/h and a PGT as sigma/h^2: the two
arms of the U. Nothing of this needs to know T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from mimyria_wf.errors import LabelError
from mimyria_wf.response import Array

_CONSTANT = 0.01  # a component that varies by less than this share of the others' is constant by symmetry
_SAME_NOISE = 1.5  # noise of a longer fit over that of the best one: beyond it the next order in h shows


@dataclass(frozen=True, eq=False)
class Spread:
    """Standard deviation of tensor components by species, what Eq. 14 of Schienbein (2026) divides errors by.

    Attributes:
        scales: atomic number -> (components,) [unit of the tensors]; NaN for a component that is constant by symmetry.
            A species of one atom has no deviation, so the root mean square of its tensor stands in.
    """

    scales: Mapping[int, Array]

    @classmethod
    def of(cls, tensors: Array, numbers: Array) -> Spread:
        """Return the spread of tensors (n, 3, 3) or (n, 3, 3, 3) of atoms with these numbers (n,)."""
        flat = np.asarray(tensors, dtype=float).reshape(len(numbers), -1)
        scales = {}
        for number in np.unique(numbers):
            chosen = flat[numbers == number]
            size = float(np.sqrt(np.mean(chosen**2)))
            scale = chosen.std(axis=0)
            if scale.max() < _CONSTANT * size:  # one atom, or all alike
                scale = np.full(flat.shape[1], size)
            scales[int(number)] = np.where(scale < _CONSTANT * np.sqrt(np.mean(scale**2)), np.nan, scale)
        if not any(np.isfinite(scale).any() and np.nanmax(scale) > 0 for scale in scales.values()):
            raise LabelError("all tensors vanish: nothing to compare errors with")
        return cls(scales)

    def relative(self, squares: Array, numbers: Array) -> dict[str, float]:
        """Return errors over spread by species and, as "mean", averaged over species (Eq. 14).

        Args:
            squares: (n, 3, 3) or (n, 3, 3, 3) squared errors, or their expectation.
            numbers: (n,) atomic numbers, all of them known species.
        """
        flat = np.asarray(squares, dtype=float).reshape(len(numbers), -1)
        found = {}
        for number in np.unique(numbers):
            scale = self.scales[int(number)]
            ratio = np.sqrt(flat[numbers == number].mean(axis=0)) / np.where(scale > 0, scale, np.nan)
            if np.isfinite(ratio).any():
                found[chemical_symbols[number]] = float(np.nanmean(ratio))
        found["mean"] = float(np.mean(list(found.values()))) if found else float("nan")
        return found

    def r2(self, squares: Array, numbers: Array) -> float:
        """Return 1 - (error over spread)^2 by component, averaged over components, then over species (Eq. 15)."""
        flat = np.asarray(squares, dtype=float).reshape(len(numbers), -1)
        values = []
        for number in np.unique(numbers):
            scale = self.scales[int(number)]
            ratio = flat[numbers == number].mean(axis=0) / np.where(scale > 0, scale, np.nan) ** 2
            if np.isfinite(ratio).any():
                values.append(float(np.nanmean(1 - ratio)))
        return float(np.mean(values)) if values else float("nan")


def noise_of_tensor(target: str) -> tuple[Array, Array]:
    """Return how noise sigma of single forces enters a tensor: own and shared variances by component.

    The covariance of a component at steps h_j and h_k is sigma^2 (own delta_jk + shared) / (h_j h_k)^p, p = 1 for the
    APT and 2 for the PGT: F(+) - F(-) over 2 h, F(+) + F(-) - 2 F(0) over h^2, and of mixed points
    (D - S_x - S_y) / 2 over h^2, where F(0) is one force for all steps.

    Returns:
        two arrays of the shape of one atom's tensor.
    """
    if target == "apt":
        return np.full((3, 3), 0.5), np.zeros((3, 3))
    diagonal = np.broadcast_to(np.eye(3, dtype=bool), (3, 3, 3))
    return np.where(diagonal, 2.0, 1.5), np.where(diagonal, 4.0, 1.0)


@dataclass(frozen=True, eq=False)
class Plateau:
    """Limit of tensors for vanishing fields, with what keeps them from it.

    Attributes:
        target: "apt" or "pgt".
        limit: (n_atoms, ...) T.
        slope: (n_atoms, ...) K, the next order in h.
        noise: sigma, standard deviation of a force component [E_h/a0].
        n_used: steps that the fit went through, smallest first.
        limit_variance: (...) variance of the limit's components, by the shape of one atom's tensor.
    """

    target: str
    limit: Array
    slope: Array
    noise: float
    n_used: int
    limit_variance: Array

    def expected_squares(self, step: float, noise: float | None = None) -> Array:
        """Return (n_atoms, ...) expected squared errors of tensors at a step, for this or another force noise."""
        own, shared = noise_of_tensor(self.target)
        sigma = self.noise if noise is None else noise
        power = 1 if self.target == "apt" else 2
        return np.asarray((self.slope * step**2) ** 2 + sigma**2 * (own + shared) / step ** (2 * power))


def fit_plateau(target: str, steps: Sequence[float], tensors: Array) -> Plateau:
    """Return the limit of tensors at three or more steps, by least squares with the covariance of their noise.

    Large steps are left out as long as that lowers the noise which the fit finds, since the order after the next shows
    in them.

    Args:
        target: "apt" or "pgt".
        steps: h in increasing order [E_h/(e a0)].
        tensors: (n_steps, n_atoms, ...) tensors at these steps.
    """
    h = np.asarray(steps, dtype=float)
    tensors = np.asarray(tensors, dtype=float)
    if len(h) < 3 or np.any(np.diff(h) <= 0) or len(tensors) != len(h):
        raise LabelError(f"a plateau needs tensors at three increasing steps or more, got {len(tensors)} at {list(h)}")
    fits = {n: _fit(target, h[:n], tensors[:n]) for n in range(3, len(h) + 1)}
    least = min(fit.noise for fit in fits.values())
    return fits[max(n for n, fit in fits.items() if fit.noise <= _SAME_NOISE * least)]


def _fit(target: str, h: Array, tensors: Array) -> Plateau:
    own, shared = noise_of_tensor(target)
    power = 1 if target == "apt" else 2
    design = np.stack([np.ones(len(h)), (h / h[-1]) ** 2], axis=1)
    limit, slope = np.zeros(tensors.shape[1:]), np.zeros(tensors.shape[1:])
    variance = np.zeros(own.shape)
    chi2 = 0.0
    for a, b in {(float(a), float(b)) for a, b in zip(own.ravel(), shared.ravel())}:
        chosen = (own == a) & (shared == b)
        covariance = (a * np.eye(len(h)) + b) / np.outer(h, h) ** power
        weights = np.linalg.inv(covariance / covariance[-1, -1]) / covariance[-1, -1]
        normal = np.linalg.inv(design.T @ weights @ design)
        values = tensors[:, :, chosen]
        best = np.einsum("cj,jid->cid", normal @ design.T @ weights, values)
        left = values - np.einsum("jc,cid->jid", design, best)
        chi2 += float(np.einsum("jid,jk,kid->", left, weights, left))
        limit[:, chosen], slope[:, chosen] = best[0], best[1] / h[-1] ** 2
        variance[chosen] = normal[0, 0]
    n_free = (len(h) - 2) * limit.size
    sigma = float(np.sqrt(chi2 / n_free))
    return Plateau(target, limit, slope, sigma, len(h), sigma**2 * variance)
