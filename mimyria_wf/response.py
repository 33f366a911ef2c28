"""Response tensors of one snapshot: sum rules, their projection, rotations.

Axis order (docs/theory.md): the APT is (n_atoms, displacement, field) [e], the PGT is (n_atoms, displacement, field,
field) [e^2 a0/E_h] and symmetric in its last two axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mimyria_wf.errors import LabelError

Array = npt.NDArray[np.float64]
Target = Literal["apt", "pgt"]

TENSOR_SHAPES: dict[str, tuple[int, ...]] = {"apt": (3, 3), "pgt": (3, 3, 3)}
"""Shape of one atom's tensor."""
TENSOR_UNITS: dict[str, str] = {"apt": "e", "pgt": "e^2 a0/E_h"}
TENSOR_AXES: dict[str, str] = {"apt": "displacement,field", "pgt": "displacement,field,field"}


def mass_weights(masses: Array) -> Array:
    """Return m_i/M, the share of a sum-rule residual that each atom takes, from masses (n_atoms,) [u]; [1]."""
    masses = np.asarray(masses, dtype=float)
    if masses.ndim != 1 or not np.all(np.isfinite(masses)) or np.any(masses <= 0):
        raise LabelError(f"masses must be positive numbers, one an atom [u], got {masses.tolist()}")
    return masses / masses.sum()


def project_apt(apt: Array, masses: Array, charge: float) -> Array:
    """Return APTs that obey sum_i P_i = Q_tot 1.

    The residual is taken off with weights m_i/M, so sum_i P_i v_i is untouched when the centre of mass is at rest.

    Args:
        apt: (..., n_atoms, displacement, field) [e]; leading axes are frames.
        masses: (n_atoms,) [u].
        charge: total charge [e].
    """
    residual = np.sum(apt, axis=-3) - charge * np.eye(3)
    return np.asarray(apt - mass_weights(masses)[:, None, None] * residual[..., None, :, :])


def project_pgt(pgt: Array, masses: Array) -> Array:
    """Return PGTs that obey sum_i Q_i = 0; weights m_i/M as in :func:`project_apt`.

    Args:
        pgt: (..., n_atoms, displacement, field, field) [e^2 a0/E_h]; leading axes are frames.
        masses: (n_atoms,) [u].
    """
    residual = np.sum(pgt, axis=-4)
    return np.asarray(pgt - mass_weights(masses)[:, None, None, None] * residual[..., None, :, :, :])


@dataclass(frozen=True)
class SumRuleResidual:
    """What the acoustic sum rules leave: sum_i P_i - Q_tot 1 (3, 3) [e] and sum_i Q_i (3, 3, 3) [e^2 a0/E_h]."""

    apt: Array | None
    pgt: Array | None

    def largest(self) -> dict[str, float]:
        """Return the largest component's magnitude for each tensor present."""
        tensors = {"apt": self.apt, "pgt": self.pgt}
        return {name: float(np.abs(tensor).max()) for name, tensor in tensors.items() if tensor is not None}


@dataclass(frozen=True)
class ResponseTensors:
    """APT and PGT of every atom of one snapshot.

    Attributes:
        apt: (n_atoms, displacement, field) [e], or None.
        pgt: (n_atoms, displacement, field, field) [e^2 a0/E_h], or None.
    """

    apt: Array | None = None
    pgt: Array | None = None

    def __post_init__(self) -> None:
        """Check shapes, finiteness and the symmetry of the PGT."""
        n_atoms = set()
        for name, tensor in self.tensors().items():
            if tensor.shape[1:] != TENSOR_SHAPES[name]:
                expected = ("n_atoms", *TENSOR_SHAPES[name])
                raise LabelError(f"{name} must have shape ({', '.join(map(str, expected))}), got {tensor.shape}")
            if not np.all(np.isfinite(tensor)):
                atom = int(np.argwhere(~np.isfinite(tensor))[0, 0])
                raise LabelError(f"{name} of atom {atom} is not finite: compute this snapshot again")
            n_atoms.add(len(tensor))
        if len(n_atoms) > 1:
            raise LabelError(f"apt and pgt must describe the same atoms, got {sorted(n_atoms)} atoms")
        if self.pgt is not None and self.pgt.size:
            asymmetry = np.abs(self.pgt - np.swapaxes(self.pgt, -1, -2)).max()
            if asymmetry > 1e-6 * max(1.0, float(np.abs(self.pgt).max())):  # eight decimals survive a file
                raise LabelError(
                    f"pgt must be symmetric in its last two axes (field, field), largest difference {asymmetry:.2g}: "
                    "check the axis order (displacement, field, field)"
                )

    def tensors(self) -> dict[str, Array]:
        """Return the tensors that are present, by name."""
        named = {"apt": self.apt, "pgt": self.pgt}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def sum_rule_residual(self, charge: float) -> SumRuleResidual:
        """Return sum_i P_i - Q_tot 1 and sum_i Q_i for the total charge [e]."""
        return SumRuleResidual(
            apt=None if self.apt is None else self.apt.sum(axis=0) - charge * np.eye(3),
            pgt=None if self.pgt is None else self.pgt.sum(axis=0),
        )

    def projected(self, masses: Array, charge: float) -> ResponseTensors:
        """Return tensors that obey the sum rules, residuals taken off with weights m_i/M (masses [u], charge [e])."""
        return ResponseTensors(
            apt=None if self.apt is None else project_apt(self.apt, masses, charge),
            pgt=None if self.pgt is None else project_pgt(self.pgt, masses),
        )

    def rotated(self, rotation: Array) -> ResponseTensors:
        """Return the tensors of the system turned by `rotation`, positions r -> R r; improper rotations too.

        P'_ab = R_ac R_bd P_cd and Q'_abc = R_ad R_be R_cf Q_def.

        Args:
            rotation: (3, 3) orthogonal matrix.
        """
        rotation = np.asarray(rotation, dtype=float)
        if rotation.shape != (3, 3) or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-8):
            raise LabelError("a rotation must be an orthogonal (3, 3) matrix, R R^T = 1")
        r = rotation
        return ResponseTensors(
            apt=None if self.apt is None else np.einsum("ac,bd,icd->iab", r, r, self.apt),
            pgt=None if self.pgt is None else np.einsum("ad,be,cf,idef->iabc", r, r, r, self.pgt, optimize=True),
        )
