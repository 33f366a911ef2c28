"""Do tensors look like response tensors at all? What units, signs and steps of labels made elsewhere give away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ase
import numpy as np

from mimyria_wf.errors import FieldSetError, LabelError
from mimyria_wf.finite_field import check_step
from mimyria_wf.response import Array

ELECTRONEGATIVITY: Mapping[str, float] = {
    **{"H": 2.20, "Li": 0.98, "Be": 1.57, "B": 2.04, "C": 2.55, "N": 3.04, "O": 3.44, "F": 3.98},
    **{"Na": 0.93, "Mg": 1.31, "Al": 1.61, "Si": 1.90, "P": 2.19, "S": 2.58, "Cl": 3.16},
    **{"K": 0.82, "Ca": 1.00, "Ga": 1.81, "Ge": 2.01, "As": 2.18, "Se": 2.55, "Br": 2.96},
    **{"Rb": 0.82, "Sr": 0.95, "In": 1.78, "Sn": 1.96, "Sb": 2.05, "Te": 2.10, "I": 2.66, "Cs": 0.79, "Ba": 0.89},
}
"""Pauling's scale, main-group elements; A. L. Allred, J. Inorg. Nucl. Chem. 17, 215 (1961)."""

WEAK_STEP = 5e-3
"""Longest field whose higher orders are commonly negligible [E_h/(e a0)]."""
SMALLEST_APT, LARGEST_APT = 0.05, 10.0
"""What the largest element of a polar system's APTs lies between [e]; ferroelectric perovskites have up to 7."""
_POLAR = 0.5  # difference of electronegativities from which on an APT below SMALLEST_APT is no APT (CH4 has 0.35)
_CLEARLY = 0.05  # e


def step_warnings(field_vectors: Array, where: str) -> list[str]:
    """Return a warning if the weakest of the fields (n, 3) [E_h/(e a0)] is strong.

    Raises:
        LabelError: it is no perturbation.
    """
    lengths = np.linalg.norm(field_vectors, axis=1)
    step = float(lengths[lengths > 0].min(initial=np.inf))
    if np.isinf(step):
        return []
    try:
        check_step(step)
    except FieldSetError as error:
        raise LabelError(f"{where}: {error}; see the unit of the field (1 E_h/(e a0) is 51.422 V/A)") from None
    if step > WEAK_STEP:
        return [f"{where}: the weakest field is {step:.3g} E_h/(e a0); above {WEAK_STEP:g} higher orders count"]
    return []


def check_size(apt: Array, symbols: Sequence[str], where: str) -> None:
    """Refuse an APT (n_atoms, 3, 3) [e] whose size only a mistaken unit explains."""
    largest = float(np.abs(apt).max())
    if largest > LARGEST_APT:
        raise LabelError(
            f"{where}: the largest element of the APTs is {largest:.3g} e, above {LARGEST_APT:g}: forces in eV/A "
            "stated as E_h/a0, or a field in E_h/(e a0) stated as V/A, give 51.422 times too much"
        )
    known = [ELECTRONEGATIVITY[symbol] for symbol in set(symbols) & ELECTRONEGATIVITY.keys()]
    if known and max(known) - min(known) > _POLAR and largest < SMALLEST_APT:
        raise LabelError(
            f"{where}: the largest element of the APTs is {largest:.3g} e, below {SMALLEST_APT:g}, although "
            f"{', '.join(sorted(set(symbols)))} is polar: a field in V/A stated as E_h/(e a0), or forces in E_h/a0 "
            "stated as eV/A, give 51.422 times too little"
        )


def mean_charges(apts: Sequence[Array], snapshots: Sequence[ase.Atoms]) -> dict[str, float]:
    """Return by species the mean of trace/3 of the APTs (n_atoms, 3, 3) of several snapshots [e]."""
    found: dict[str, list[float]] = {}
    for apt, atoms in zip(apts, snapshots, strict=True):
        for symbol, one in zip(atoms.get_chemical_symbols(), apt, strict=True):
            found.setdefault(symbol, []).append(float(np.trace(one)) / 3)
    return {symbol: float(np.mean(values)) for symbol, values in sorted(found.items())}


def sign_warnings(charges: Mapping[str, float], is_charged: bool) -> list[str]:
    """Return what can be said of the sign of APTs from the mean charges of species [e]."""
    shown = ", ".join(f"{symbol} {value:+.3f}" for symbol, value in charges.items())
    warnings = []
    if not is_charged:
        warnings.append(
            f"mean APT trace/3 [e]: {shown}; no sum rule tells the sign of a neutral system, see for yourself"
        )
    known = sorted(set(charges) & ELECTRONEGATIVITY.keys(), key=ELECTRONEGATIVITY.__getitem__)
    if len(known) > 1:
        least, most = known[0], known[-1]
        if charges[most] > _CLEARLY and charges[least] < -_CLEARLY:
            warnings.append(
                f"the sign looks reversed: {most}, the most electronegative, has {charges[most]:+.3f} e and {least} "
                f"{charges[least]:+.3f} e; were gradients taken for forces, or is it the field on electrons?"
            )
    return warnings
