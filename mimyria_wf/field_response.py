"""Do forces answer their fields at all, and with the sign and size that a total charge prescribes?"""

from __future__ import annotations

import numpy as np

from mimyria_wf.errors import LabelError
from mimyria_wf.response import Array

NO_RESPONSE = 1e-6
"""Change of the forces by a field, over the field [e], that is none; APTs are tenths."""
CHARGE_TOLERANCE = 0.2
"""Deviation of the net force from Q E, over |Q E|, that no coarse grid explains."""


def check_response(field_vectors: Array, forces: Array, charge: float, where: str) -> None:
    """Refuse forces that the fields cannot have made; points of one length at least, perhaps not the whole set.

    The sum rules say sum_i F_i(E) - F_i(0) = Q E. On a charged system this shows a reversed sign, a wrong unit, or a
    charge that was not passed on; on a neutral one both sides vanish whatever the sign and unit.

    Args:
        field_vectors: (n_fields, 3) [E_h/(e a0)].
        forces: (n_fields, n_atoms, 3) [E_h/a0], finite.
        charge: Q, total [e].
        where: what the message names, a snapshot.

    Raises:
        LabelError: the forces of several atoms are the same in all fields, or their sum contradicts the charge.
    """
    fields = np.asarray(field_vectors, dtype=float)
    fields = fields - fields.mean(axis=0)
    longest = float(np.linalg.norm(fields, axis=1).max(initial=0.0))
    if longest == 0.0:  # a single point, or none
        return
    changes = np.asarray(forces, dtype=float)
    changes = changes - changes.mean(axis=0)
    if changes.shape[1] > 1 and np.abs(changes).max() < NO_RESPONSE * longest:
        raise LabelError(
            f"{where}: the forces do not depend on the field, they are the same at all {len(fields)} points: see that "
            "the engine applies the field and computes again for each (an ASE calculator keeps its last result)"
        )
    if not charge:
        return
    net = changes.sum(axis=1)
    off = float(np.linalg.norm(net - charge * fields, axis=1).max())
    if off > CHARGE_TOLERANCE * abs(charge) * longest:
        felt = float(np.sum(net * fields) / np.sum(fields**2))
        if felt * charge < 0:
            reason = "the field's sign is reversed (a field on electrons?); give the field that pulls positive charges"
        else:
            reason = "see the units of fields and forces (V/A, eV/A: 51.422 of ours), and that the charge is applied"
        raise LabelError(
            f"{where}: the net force in the fields is that of a charge of {felt:.3g} e, not {charge:g}: {reason}"
        )
