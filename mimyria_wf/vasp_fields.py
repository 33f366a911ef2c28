"""From VASP's runs to labels: three routes, one result.

Finite fields and LCALCEPS end in forces at field vectors, so that store, diagnostics and tensors are those of every
other engine. LEPSILON gives APT and polarizability at once.

LCALCEPS prints Z*(E) = [F(E) - F(0)]/E, rows = field, one field along each Cartesian axis of its run, and the forces
without a field. So F(0) + E Z*(E) are the forces at E; runs on a turned crystal give fields off the axes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mimyria_wf.errors import EngineError, LabelError
from mimyria_wf.field_forces import FieldForces
from mimyria_wf.response import ResponseTensors
from mimyria_wf.units import HARTREE_PER_BOHR
from mimyria_wf.vasp_input import lcalceps_runs, restored
from mimyria_wf.vasp_output import VaspResponse, read_vasp_response
from mimyria_wf.vasp_run import FINISHED, unconverged_loop

Array = NDArray[Any]

_SAME_CELL = 1e-4
"""Largest difference of a turned cell, and of positions in it, from the reference [A]; OUTCAR prints 1e-5."""


def lepsilon_labels(
    response: VaspResponse, order: NDArray[np.int64] | None = None
) -> tuple[ResponseTensors, Array | None]:
    """Return the APT, in the order of the snapshot, and the polarizability [e^2 a0^2/E_h] of a LEPSILON run.

    VASP has spread the residual of the acoustic sum rule over the atoms already, so the sum says nothing about quality.

    Raises:
        LabelError: the run has no Born charges.
    """
    if response.apt is None:
        raise LabelError(f"{response.path}: no Born charges; run VASP with LEPSILON = .TRUE.")
    apt = response.apt if order is None else restored(response.apt, order)
    alpha = None if response.dielectric is None else response.polarizability
    return ResponseTensors(apt=apt), alpha


def turn_of(atoms: ase.Atoms, reference: ase.Atoms) -> Array:
    """Return the rotation R (3, 3) with r' = R r that takes a crystal to a turned one.

    Raises:
        EngineError: the second is not the first, turned.
    """
    if not np.array_equal(atoms.numbers, reference.numbers):
        raise EngineError("an LCALCEPS run has other atoms than the first one")
    rotation: Array = np.linalg.solve(reference.cell[:], atoms.cell[:]).T
    off = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if off > 1e-5 or np.linalg.det(rotation) < 0:
        raise EngineError(f"an LCALCEPS run has a cell that is not that of the first one, turned (off by {off:.2g})")
    fraction = atoms.get_scaled_positions(wrap=False) - reference.get_scaled_positions(wrap=False)
    moved = float(np.abs((fraction - np.round(fraction)) @ reference.cell[:]).max())
    if moved > _SAME_CELL:
        raise EngineError(f"an LCALCEPS run has atoms up to {moved:.2g} A away from where the first one has them")
    return rotation


def lcalceps_points(
    responses: Sequence[VaspResponse], reference: ase.Atoms, zero_forces: Array | None = None
) -> tuple[Array, Array]:
    """Return every field vector (n, 3) [E_h/(e a0)] of LCALCEPS runs, the zero field first, and the forces there.

    Args:
        responses: runs on the crystal as it is and turned; the turn is found from the cells.
        reference: the configuration in the order of POSCAR, whose axes count.
        zero_forces: (n_atoms, 3) known without a field [E_h/a0]; None: the mean of those of the runs. Each run's
            changes are against its own, so what the real-space grid does to a turned crystal cancels.

    Returns:
        vectors (n, 3); forces (n, n_atoms, 3) [E_h/a0] in the frame of the reference.

    Raises:
        EngineError: runs of different configurations, or of another kind.
        LabelError: no Born charges.
    """
    vectors: list[Array] = [np.zeros(3)]
    forces: list[Array] = []
    changes: list[Array] = [np.zeros((len(reference), 3))]
    for response in responses:
        if response.method != "LCALCEPS" or response.field_step is None:
            raise EngineError(f"{response.path}: not an LCALCEPS run with EFIELD_PEAD")
        if response.apt is None:
            raise LabelError(f"{response.path}: no Born charges; did LCALCEPS reach its end?")
        rotation = turn_of(response.atoms, reference)
        forces.append(response.forces @ rotation)
        for axis, size in enumerate(response.field_step):
            vectors.append(size * rotation[axis])  # R^T e_axis
            changes.append(size * response.apt[:, :, axis] @ rotation)
    zero = np.mean(forces, axis=0) if zero_forces is None else zero_forces
    return np.array(vectors), zero + np.array(changes)


def lcalceps_forces(
    responses: Sequence[VaspResponse], reference: ase.Atoms | None = None, order: NDArray[np.int64] | None = None
) -> FieldForces:
    """Return the forces at +E and -E in all directions that LCALCEPS runs of one configuration hold.

    Args:
        responses: runs at +E and -E, on the crystal as it is and turned.
        reference: the configuration in the order of POSCAR, whose axes count; None: that of the first run.
        order: of POSCAR's atoms in the snapshot.

    Returns:
        The zero field and every vector whose opposite is there too; a direction that was run with one sign only (VASP
        always does all three) says nothing about second derivatives and is left out.
    """
    if not responses:
        raise EngineError("no LCALCEPS runs")
    vectors, forces = lcalceps_points(responses, responses[0].atoms if reference is None else reference)
    keep = _paired(vectors)
    return FieldForces(vectors[keep], forces[keep] if order is None else restored(forces[keep], order, axis=1))


def _paired(vectors: Array) -> list[int]:
    """Return the rows of the zero field and of vectors whose opposite is there, each once."""
    keep: list[int] = []
    for row, vector in enumerate(vectors):
        same = 1e-6 * float(np.linalg.norm(vector))
        if any(np.linalg.norm(vectors[k] - vector) <= same for k in keep):
            continue
        if not row or np.any(np.linalg.norm(vectors + vector, axis=1) <= same):
            keep.append(row)
    return keep


def read_lcalceps_run(folder: str | Path) -> VaspResponse:
    """Read vasprun.xml of an LCALCEPS or LEPSILON run, which has eight decimals, once OUTCAR says that it went well.

    Raises:
        EngineError: a file is missing or cut off, or an electronic loop did not converge.
    """
    outcar, xml = Path(folder) / "OUTCAR", Path(folder) / "vasprun.xml"
    for path in (outcar, xml):
        if not path.is_file():
            raise EngineError(f"no {path.name}: the run was not done, VASP crashed, or the file was not retrieved")
    text = outcar.read_text(errors="replace")
    if FINISHED not in text:
        raise EngineError("VASP did not finish (time limit, memory or a crash); run it again")
    if unconverged_loop(text):
        raise EngineError("SCF did not converge (NELM reached); raise NELM, or take a smaller field")
    return read_vasp_response(xml)


def read_lcalceps_set(
    source: str | Path | Mapping[str, Path],
    atoms: ase.Atoms,
    vectors: Mapping[str, ArrayLike],
    order: NDArray[np.int64] | None = None,
    *,
    zero_forces: Array | None = None,
) -> tuple[Array, list[str], str]:
    """Read the LCALCEPS jobs of one snapshot, the inverse of ``vasp_input.render_lcalceps``.

    Args:
        source: directory with a folder for each job, or job -> its folder.
        atoms: the snapshot in the order of POSCAR.
        vectors: point name -> (3,) field [E_h/(e a0)].
        order: of POSCAR's atoms in the snapshot.
        zero_forces: as in :func:`lcalceps_points`, in the order of POSCAR; give it where points are added to forces
            that are known already.

    Returns:
        forces (n_points, n_atoms, 3) [E_h/a0] in the order of ``vectors``, NaN where unusable; problems, one line a
        point, "" where it is sound; version of VASP.
    """
    wanted = {name: np.asarray(v, dtype=float) for name, v in vectors.items()}
    problems = dict.fromkeys(wanted, "")
    responses: list[VaspResponse] = []
    for run in lcalceps_runs(wanted):
        folder = source[run.folder] if isinstance(source, Mapping) else Path(source) / run.folder
        try:
            response = read_lcalceps_run(folder)
            if np.abs(turn_of(response.atoms, atoms) - run.rotation).max() > 1e-5:
                raise EngineError("the crystal is turned otherwise than this job asks for")
            if response.field_step is None or not np.allclose(response.field_step, run.field, rtol=1e-5, atol=1e-9):
                step = None if response.field_step is None else response.field_step * HARTREE_PER_BOHR
                raise EngineError(f"ran in the field {step}, expected {run.field * HARTREE_PER_BOHR} eV/A")
        except (EngineError, LabelError) as error:
            problems |= {name: f"field point {name} ({run.folder}): {error}" for name in run.points.values()}
        else:
            responses.append(response)
    forces = np.full((len(wanted), len(atoms), 3), np.nan)
    if not responses:
        return forces, [problems[name] or f"field point {name}: no run was usable" for name in wanted], "unknown"
    known, values = lcalceps_points(responses, atoms, zero_forces)
    for row, (name, vector) in enumerate(wanted.items()):
        if not problems[name]:
            forces[row] = values[int(np.argmin(np.linalg.norm(known - vector, axis=1)))]
    return forces if order is None else restored(forces, order, axis=1), list(problems.values()), responses[0].version
