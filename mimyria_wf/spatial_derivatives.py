"""APTs and PGTs from displaced atoms: the other side of Eqs. 21 and 22, as validation.

P = dM/dr from dipoles and Q = d(alpha)/dr from polarizabilities of configurations in which one coordinate of one atom
is moved by +-delta: six configurations an atom, so for a few atoms. Nothing is shared with derivatives of forces in
fields but the electronic structure itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ase
import numpy as np

from mimyria_wf.errors import LabelError
from mimyria_wf.response import Array
from mimyria_wf.units import BOHR

DISPLACEMENT = 0.01
"""[A], where Schienbein (2026, Figs. 1b and 2b) finds the least error."""

_BRANCH = 0.4  # of a quantum: neighbouring branches meet at 0.5


@dataclass(frozen=True)
class Displacement:
    """One coordinate of one atom, moved.

    Attributes:
        atom: index.
        axis: 0, 1 or 2.
        sign: +1 or -1.
        size: [A].
    """

    atom: int
    axis: int
    sign: int
    size: float

    @property
    def name(self) -> str:
        """Such as "3+x/0.01"."""
        return f"{self.atom}{'+' if self.sign > 0 else '-'}{'xyz'[self.axis]}/{self.size:g}"


def check_displacement(size: float) -> float:
    """Return the displacement [A]; LabelError unless it is positive and small."""
    if not np.isfinite(size) or not 0 < size <= 0.2:
        raise LabelError(f"a displacement must be positive and at most 0.2 A, got {size}; 0.01 A is usual")
    return float(size)


def displacements(atom_indices: Sequence[int], size: float = DISPLACEMENT) -> list[Displacement]:
    """Return the 6 displacements of each atom: x, y, z, plus before minus; size [A]."""
    size = check_displacement(size)
    return [Displacement(int(k), axis, sign, size) for k in atom_indices for axis in range(3) for sign in (1, -1)]


def displaced(atoms: ase.Atoms, displacement: Displacement) -> ase.Atoms:
    """Return a copy with one coordinate moved; charge and multiplicity go along."""
    moved = atoms.copy()
    moved.calc = None
    moved.positions[displacement.atom, displacement.axis] += displacement.sign * displacement.size
    name = atoms.info.get("snapshot", atoms.get_chemical_formula())
    moved.info["snapshot"] = f"{name}, {displacement.name} A"
    return moved


def on_branch(dipoles: Array, quanta: Array | None, reference: Array) -> Array:
    """Return dipoles on the branch of the reference, the nearest multiple of the quanta taken off.

    Args:
        dipoles: (..., 3) [e a0]; of a periodic system known modulo the quanta.
        quanta: (3, 3) rows [e a0], None for a cluster, whose dipoles are left alone.
        reference: (..., 3) dipoles nearby [e a0].

    Raises:
        LabelError: a dipole is so far from the reference that its branch cannot be told.
    """
    dipoles, reference = np.asarray(dipoles, dtype=float), np.asarray(reference, dtype=float)
    if quanta is None:
        return dipoles
    turns = (dipoles - reference) @ np.linalg.inv(np.asarray(quanta, dtype=float))
    left = turns - np.round(turns)
    if np.abs(left[np.isfinite(left)]).max(initial=0.0) > _BRANCH:
        raise LabelError(
            f"a dipole lies {np.abs(left).max():.2f} of its quantum from the one it is compared with, too far to know "
            "its branch: use smaller displacements or fields"
        )
    return np.asarray(reference + left @ np.asarray(quanta, dtype=float))


@dataclass(frozen=True, eq=False)
class FieldDipoles:
    """Dipoles of a configuration without field and in fields along the axes.

    Attributes:
        step: length of the fields [E_h/(e a0)].
        zero: (3,) without field [e a0].
        plus, minus: (field, dipole) in fields along +x, +y, +z and -x, -y, -z [e a0]; None where not computed.
    """

    step: float
    zero: Array
    plus: Array | None = None
    minus: Array | None = None

    def on_branch(self, quanta: Array | None, reference: Array) -> FieldDipoles:
        """Return these dipoles on the branch of the reference (3,), see :func:`on_branch`."""
        zero = on_branch(self.zero, quanta, reference)
        plus, minus = (None if d is None else on_branch(d, quanta, zero) for d in (self.plus, self.minus))
        return FieldDipoles(self.step, zero, plus, minus)


@dataclass(frozen=True, eq=False)
class DisplacedResponse:
    """Dipoles, perhaps the polarizability, of a configuration with one coordinate moved.

    Attributes:
        displacement: which.
        dipoles: without field; for a PGT in fields of the sign of the displacement, too.
        polarizability: (3, 3) [e^2 a0^2/E_h], or None.
    """

    displacement: Displacement
    dipoles: FieldDipoles
    polarizability: Array | None = None


@dataclass(frozen=True, eq=False)
class SpatialTensors:
    """Tensors of some atoms from displacements of one size.

    Attributes:
        atoms: (n,) indices.
        size: displacement [A].
        apt: (n, displacement, field) [e].
        pgt: (n, displacement, field, field) [e^2 a0/E_h], symmetric, or None.
        asymmetry: rms of what symmetrising took from the PGT [e^2 a0/E_h]: noise of dipoles and polarizabilities.
    """

    atoms: tuple[int, ...]
    size: float
    apt: Array
    pgt: Array | None = None
    asymmetry: float | None = None


def spatial_tensors(
    responses: Sequence[DisplacedResponse], undisplaced: FieldDipoles, quanta: Array | None = None
) -> dict[float, SpatialTensors]:
    """Return APTs and PGTs by central differences, Eqs. 21 and 22 (central terms).

    P_ab = (M_b(+) - M_b(-)) / 2 delta and Q_abc = (alpha_bc(+) - alpha_bc(-)) / 2 delta. Without polarizabilities Q is
    the mixed derivative of the dipole by displacement and field, in the manner of Eq. 26: with opposite displacements
    in opposite fields,
    [M(+,+h) + M(-,-h) - M(+,0) - M(-,0) - M(0,+h) - M(0,-h) + 2 M(0,0)] / 2 delta h,
    which needs half the fields that differences of polarizabilities do, and the same orders cancel.

    Args:
        responses: of all six displacements of each atom, in any order; sizes may differ.
        undisplaced: dipoles of the configuration itself; for a PGT without polarizabilities in both fields, too.
        quanta: (3, 3) rows by which dipoles are undetermined [e a0], None for a cluster.

    Returns:
        by size of the displacement [A]; PGTs where all that they need is there.

    Raises:
        LabelError: names the displacements that are missing.
    """
    known = {(r.displacement.size, r.displacement.atom, r.displacement.axis, r.displacement.sign): r for r in responses}
    if len(known) < len(responses):
        raise LabelError("a displacement is given twice: keep one of each")
    origin = undisplaced.on_branch(quanta, undisplaced.zero)
    found = {}
    for size in sorted({key[0] for key in known}):
        atoms = tuple(sorted({key[1] for key in known if key[0] == size}))
        missing = [one.name for one in displacements(atoms, size) if (size, one.atom, one.axis, one.sign) not in known]
        if missing:
            raise LabelError(f"spatial derivatives need displacements that are missing: {', '.join(missing)}")
        apt, pgt = np.zeros((len(atoms), 3, 3)), np.full((len(atoms), 3, 3, 3), np.nan)
        for k, atom in enumerate(atoms):
            for axis in range(3):
                plus, minus = (known[size, atom, axis, sign] for sign in (1, -1))
                there, back = (one.dipoles.on_branch(quanta, origin.zero) for one in (plus, minus))
                apt[k, axis] = (there.zero - back.zero) / (2 * size / BOHR)
                if plus.polarizability is not None and minus.polarizability is not None:
                    pgt[k, axis] = (plus.polarizability - minus.polarizability) / (2 * size / BOHR)
                elif there.plus is not None and back.minus is not None:
                    if origin.plus is None or origin.minus is None:
                        raise LabelError("a spatial PGT needs dipoles of the undisplaced configuration in both fields")
                    mixed = there.plus + back.minus - there.zero - back.zero
                    mixed = mixed - origin.plus - origin.minus + 2 * origin.zero
                    pgt[k, axis] = mixed.T / (2 * size / BOHR * origin.step)
        has_pgt = bool(np.isfinite(pgt).all())
        symmetric = 0.5 * (pgt + np.swapaxes(pgt, -1, -2))
        found[size] = SpatialTensors(
            atoms,
            size,
            apt,
            symmetric if has_pgt else None,
            float(np.sqrt(np.mean((pgt - symmetric) ** 2))) if has_pgt else None,
        )
    return found
