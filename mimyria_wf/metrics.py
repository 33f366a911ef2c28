"""Errors of response tensors against a reference, Eqs. 14-15 of Schienbein (2026)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from ase.data import chemical_symbols

from mimyria_wf.errors import LabelError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ComponentErrors:
    """Errors of one Cartesian component of one species; relative values are nan where the reference does not vary."""

    rmse: float
    relative_rmse: float
    r2: float


@dataclass(frozen=True)
class SpeciesErrors:
    """Errors of one species: averages over its components, and the components by name, such as ``xy``."""

    rmse: float
    relative_rmse: float
    r2: float
    by_component: dict[str, ComponentErrors]


@dataclass(frozen=True)
class TensorErrors:
    """Errors of a set of tensors.

    Attributes:
        rmse: by component, averaged over components, then over species [unit of the tensors].
        relative_rmse: Eq. 14, the same average of rmse over the reference's standard deviation.
        r2: Eq. 15, the same average of 1 - relative_rmse^2.
        overall_rmse: root mean square over all atoms and components at once [unit of the tensors].
        by_species: the same by chemical symbol.
    """

    rmse: float
    relative_rmse: float
    r2: float
    overall_rmse: float
    by_species: dict[str, SpeciesErrors]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values; an undefined number becomes None."""

        def number(value: float) -> float | None:
            return float(value) if np.isfinite(value) else None

        def numbers(errors: ComponentErrors | SpeciesErrors) -> dict[str, Any]:
            return {name: number(getattr(errors, name)) for name in ("rmse", "relative_rmse", "r2")}

        return {
            "rmse": number(self.rmse),
            "relative_rmse": number(self.relative_rmse),
            "r2": number(self.r2),
            "overall_rmse": number(self.overall_rmse),
            "by_species": {
                symbol: numbers(s) | {"by_component": {name: numbers(c) for name, c in s.by_component.items()}}
                for symbol, s in self.by_species.items()
            },
        }


def tensor_errors(prediction: Array, reference: Array, numbers: Array) -> TensorErrors:
    """Return the errors of response tensors by component, by species, and averaged.

    Eq. 14: delta = <RMSE_component / sigma_component>, sigma from the reference; Eq. 15: R^2 = <1 - delta^2>.

    Args:
        prediction: (n, 3, 3) APTs or (n, 3, 3, 3) PGTs of any atoms of any snapshots [e] or [e^2 a0/E_h].
        reference: same shape and unit.
        numbers: (n,) atomic numbers.

    Raises:
        LabelError: shapes differ, nothing to compare, or a value is not finite.
    """
    prediction, reference, numbers = (np.asarray(a) for a in (prediction, reference, numbers))
    if prediction.shape != reference.shape or len(numbers) != len(reference):
        raise LabelError(
            f"tensors to compare must have one shape, got {prediction.shape} and {reference.shape} "
            f"for {len(numbers)} atoms"
        )
    if len(reference) == 0:
        raise LabelError("no tensors to compare")
    if not (np.isfinite(prediction).all() and np.isfinite(reference).all()):
        raise LabelError("tensors to compare hold values that are not finite")
    names = ["".join(c) for c in product("xyz", repeat=reference.ndim - 1)]
    flat_prediction = prediction.reshape(len(numbers), -1).astype(float)
    flat_reference = reference.reshape(len(numbers), -1).astype(float)
    by_species: dict[str, SpeciesErrors] = {}
    for number in np.unique(numbers):
        chosen = numbers == number
        rmse = np.sqrt(np.mean((flat_prediction[chosen] - flat_reference[chosen]) ** 2, axis=0))
        sigma = flat_reference[chosen].std(axis=0)
        varies = sigma > 1e-12 * max(1.0, float(np.abs(flat_reference[chosen]).max()))
        relative = np.where(varies, rmse / np.where(varies, sigma, 1.0), np.nan)
        components = {
            name: ComponentErrors(float(a), float(b), float(1 - b**2)) for name, a, b in zip(names, rmse, relative)
        }
        by_species[chemical_symbols[number]] = SpeciesErrors(
            rmse=float(rmse.mean()),
            relative_rmse=_mean(relative),
            r2=_mean(1 - relative**2),
            by_component=components,
        )
    species = by_species.values()
    return TensorErrors(
        rmse=_mean([s.rmse for s in species]),
        relative_rmse=_mean([s.relative_rmse for s in species]),
        r2=_mean([s.r2 for s in species]),
        overall_rmse=float(np.sqrt(np.mean((flat_prediction - flat_reference) ** 2))),
        by_species=by_species,
    )


def _mean(values: Array | Sequence[float]) -> float:
    """Return the mean of the defined values, nan without any."""
    finite = np.asarray(values)[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
