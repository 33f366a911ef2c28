"""What tensors at several field steps say about each other: their limit, their noise, their error.

T(h) = T + K h^2 + noise, where the noise of one force, sigma, enters an APT as sigma/h and a PGT as sigma/h^2: the two
arms of the U. The error of F(0) enters a PGT as c/h^2, the same c at all steps, and may be of another size than sigma,
since programs start the point without field from another guess than the others. Nothing of this needs to know T.
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

    def mean_square(self, squares: Array, numbers: Array) -> float:
        """Return squared errors over squared spread, averaged over atoms and components, then over species."""
        flat = np.asarray(squares, dtype=float).reshape(len(numbers), -1)
        values = []
        for number in np.unique(numbers):
            scale = self.scales[int(number)]
            ratio = flat[numbers == number].mean(axis=0) / np.where(scale > 0, scale, np.nan) ** 2
            if np.isfinite(ratio).any():
                values.append(float(np.nanmean(ratio)))
        return float(np.mean(values)) if values else float("nan")

    def r2(self, squares: Array, numbers: Array) -> float:
        """Return 1 - (error over spread)^2 by component, averaged over components, then over species (Eq. 15)."""
        return 1 - self.mean_square(squares, numbers)


def noise_of_tensor(target: str) -> tuple[Array, Array]:
    """Return how errors of single forces enter a tensor: variances by component, in units of the force's.

    F(+) - F(-) over 2 h for the APT, F(+) + F(-) - 2 F(0) over h^2 for the PGT, and of its mixed points
    (D - S_x - S_y) / 2 over h^2, D and S being such differences: to be divided by h^2 (APT) or h^4 (PGT).

    Returns:
        what points in fields contribute, and what F(0) does, each of the shape of one atom's tensor.
    """
    if target == "apt":
        return np.full((3, 3), 0.5), np.zeros((3, 3))
    diagonal = np.broadcast_to(np.eye(3, dtype=bool), (3, 3, 3))
    return np.where(diagonal, 2.0, 1.5), np.where(diagonal, 4.0, 1.0)


def _second_differences() -> Array:
    """Return (6, 9), which makes the six second differences over h^2 of Q: Q_aa, and Q_aa + Q_bb + Q_ab + Q_ba."""
    rows = []
    for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        row = np.zeros((3, 3))
        for pair in {(a, a), (b, b), (a, b), (b, a)}:
            row[pair] = 1.0
        rows.append(row.ravel())
    return np.array(rows)


DIFFERENCES = _second_differences()
"""(6, 9): their noise is 2 sigma^2 / h^4, independent of one another but for F(0), of which each has -2 F(0) / h^2."""

FROM_DIFFERENCES = np.linalg.pinv(DIFFERENCES)
"""(9, 6): back to Q, symmetric."""


def without_noise(squares: Array, variance: Array) -> float:
    """Return the share of mean squares that their variance does not explain, with a standard error of the latter added.

    Args:
        squares: squared estimates, any shape.
        variance: of the estimates, any shape that can be broadcast.
    """
    mean = float(np.mean(squares))
    if mean <= 0:
        return 0.0
    explained = float(np.mean(np.broadcast_to(variance, np.shape(squares)))) / mean
    return max(0.0, 1 - explained * max(0.0, 1 - np.sqrt(2 / np.size(squares))))


@dataclass(frozen=True, eq=False)
class Plateau:
    """Limit of tensors for vanishing fields, with what keeps them from it.

    Attributes:
        target: "apt" or "pgt".
        limit: (n_atoms, ...) T.
        slope: (n_atoms, ...) K, the next order in h.
        zero: (n_atoms, 3) error of F(0) in a PGT, zeros for an APT, where it cancels [E_h/a0].
        noise: sigma, standard deviation of a force component in a field [E_h/a0].
        n_used: steps that the fit went through, smallest first.
        limit_variance, slope_variance: (...) variances of both, by the shape of one atom's tensor.
        zero_variance: of `zero`.
    """

    target: str
    limit: Array
    slope: Array
    zero: Array
    noise: float
    n_used: int
    limit_variance: Array
    slope_variance: Array
    zero_variance: float

    @property
    def has_next_order(self) -> bool:
        """Whether K is told from noise: by three standard errors of its mean square.

        The nine components of a PGT have one c, so that their errors are not independent.
        """
        allowed = 1 + 3 * np.sqrt(2 / (self.slope.size / (1 if self.target == "apt" else 9)))
        return bool(np.mean(self.slope**2) > allowed * np.mean(self.slope_variance))

    @property
    def zero_noise(self) -> float:
        """Standard deviation of a component of F(0) [E_h/a0]."""
        return float(np.sqrt(np.mean(self.zero**2) * without_noise(self.zero**2, np.array(self.zero_variance))))

    def next_order_squares(self, step: float) -> Array:
        """Return (n_atoms, ...) squared errors that the next order in h makes at a step."""
        squares = self.slope**2
        return np.asarray(squares * without_noise(squares, self.slope_variance) * step**4)

    def noise_squares(self, step: float) -> Array:
        """Return (n_atoms, ...) squared errors that are expected at a step from noise, that of F(0) included."""
        own, of_zero = noise_of_tensor(self.target)
        squares = np.broadcast_to(self.noise**2 * own, self.limit.shape)
        if self.target == "apt":
            return np.asarray(squares / step**2)
        squares = squares + of_zero * self.zero_noise**2
        return np.asarray(squares / step**4)

    def expected_squares(self, step: float) -> Array:
        """Return (n_atoms, ...) expected squared errors of tensors at a step."""
        return self.next_order_squares(step) + self.noise_squares(step)


def fit_plateau(target: str, steps: Sequence[float], tensors: Array) -> Plateau:
    """Return the limit of tensors at three or more steps, by least squares with the variances of their noise.

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
    return _fit_apt(h, tensors) if target == "apt" else _fit_pgt(h, tensors)


def _fit_apt(h: Array, tensors: Array) -> Plateau:
    t = h / h[-1]
    design = np.stack([t, t**3], axis=1)  # times h, which makes noise the same at all steps
    normal = np.linalg.inv(design.T @ design)
    values = (tensors * t[:, None, None, None]).reshape(len(h), -1)
    best = normal @ design.T @ values
    squares = float(np.sum((values - design @ best) ** 2)) / ((len(h) - 2) * values.shape[1])
    shape = tensors.shape[1:]
    return Plateau(
        target="apt",
        limit=best[0].reshape(shape),
        slope=best[1].reshape(shape) / h[-1] ** 2,
        zero=np.zeros(shape[:2]),
        noise=float(np.sqrt(2 * squares) * h[-1]),
        n_used=len(h),
        limit_variance=np.full(shape[1:], squares * normal[0, 0]),
        slope_variance=np.full(shape[1:], squares * normal[1, 1] / h[-1] ** 4),
        zero_variance=0.0,
    )


def _fit_pgt(h: Array, tensors: Array) -> Plateau:
    """Fit the six second differences at once, T + K h^2 each, and one c / h^2 for all of an atom's force component."""
    t = (h / h[-1]) ** 2
    columns = np.zeros((len(h), 6, 13))  # times h^2, which makes noise the same at all steps
    for k in range(6):
        columns[:, k, k], columns[:, k, 6 + k] = t, t**2
    columns[:, :, 12] = 1.0
    design = columns.reshape(-1, 13)
    normal = np.linalg.inv(design.T @ design)
    shape = tensors.shape[1:]
    values = tensors.reshape(len(h), -1, 9) @ DIFFERENCES.T * t[:, None, None]
    values = np.swapaxes(values, 1, 2).reshape(len(h) * 6, -1)  # (step and difference, atom and direction)
    best = normal @ design.T @ values
    squares = float(np.sum((values - design @ best) ** 2)) / ((len(h) * 6 - 13) * values.shape[1])

    def variance(part: slice) -> Array:
        found = np.diag(FROM_DIFFERENCES @ normal[part, part] @ FROM_DIFFERENCES.T) * squares
        return np.broadcast_to(found.reshape(3, 3), (3, 3, 3))

    return Plateau(
        target="pgt",
        limit=(best[:6].T @ FROM_DIFFERENCES.T).reshape(shape),
        slope=(best[6:12].T @ FROM_DIFFERENCES.T).reshape(shape) / h[-1] ** 2,
        zero=-best[12].reshape(shape[:2]) * h[-1] ** 2 / 2,
        noise=float(np.sqrt(squares / 2) * h[-1] ** 2),
        n_used=len(h),
        limit_variance=variance(slice(0, 6)),
        slope_variance=variance(slice(6, 12)) / h[-1] ** 4,
        zero_variance=float(squares * normal[12, 12] * h[-1] ** 4 / 4),
    )
