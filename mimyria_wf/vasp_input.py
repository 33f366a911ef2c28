"""VASP input: a template becomes the runs of a field set, of LEPSILON and of LCALCEPS.

A template holds what a level of theory is. Structure, field, symmetry, restart and writing of files come from here, so
that one template serves every snapshot. Each run has a folder of its own.

EFIELD_PEAD is a field on positive charges in eV/A, by component: OUTCARs of C60 show that the electrons move against
it. (EFIELD, the saw-tooth potential of VASP, has the opposite sign and is not used here.)
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mimyria_wf.errors import CampaignError
from mimyria_wf.labels import total_charge
from mimyria_wf.units import HARTREE_PER_BOHR
from mimyria_wf.vasp_template import (
    METHODS,
    REPLACED,
    Kpoints,
    Potential,
    VaspMethod,
    VaspTemplate,
    check_field_against_gap,
    check_vasp_template,
    neutral_electrons,
    parse_incar,
    parse_kpoints,
    read_potential,
    tag_values,
    write_incar,
)

__all__ = [
    "METHODS",
    "ZERO_FIELD",
    "Kpoints",
    "LcalcepsRun",
    "Potential",
    "VaspMethod",
    "VaspTemplate",
    "check_field_against_gap",
    "check_vasp_template",
    "field_tags",
    "lcalceps_runs",
    "lcalceps_tags",
    "lepsilon_tags",
    "parse_incar",
    "parse_kpoints",
    "point_directories",
    "point_directory",
    "poscar_text",
    "potcar_text",
    "render_field_set",
    "render_lcalceps",
    "render_lepsilon",
    "restored",
    "sorted_atoms",
    "tag_values",
    "write_incar",
]

Array = NDArray[Any]

ZERO_FIELD = "0"
"""Name of the point without a field; its wavefunction starts all others."""
UNUSED_FIELD = 0.01
"""EFIELD_PEAD of directions that a turned LCALCEPS run does not need, VASP's own default [eV/A]; it resets smaller."""
_SMALLEST_FIELD = 1e-4
"""OUTCAR echoes four decimals, and VASP takes no notice of a field below 1e-5 [eV/A]."""


def sorted_atoms(atoms: ase.Atoms) -> tuple[ase.Atoms, NDArray[np.int64]]:
    """Return the atoms in the order of POSCAR, species by species as they first occur, and that order.

    Returns:
        the atoms; order (n_atoms,), so that atom i of POSCAR is atom ``order[i]`` of the snapshot.
    """
    first = {z: k for k, z in reversed(list(enumerate(atoms.numbers.tolist())))}
    order = np.array(sorted(range(len(atoms)), key=lambda k: (first[int(atoms.numbers[k])], k)), dtype=np.int64)
    return atoms[order], order


def restored(values: ArrayLike, order: NDArray[np.int64], axis: int = 0) -> Array:
    """Return values that are in the order of POSCAR along an axis, in the order of the snapshot."""
    return np.take(np.asarray(values), np.argsort(order), axis=axis)


def poscar_text(atoms: ase.Atoms) -> str:
    """Return POSCAR of atoms that are sorted already, in Cartesian coordinates with 16 digits."""
    symbols = atoms.get_chemical_symbols()
    starts = [k for k in range(len(symbols)) if k == 0 or symbols[k] != symbols[k - 1]]
    if len({symbols[k] for k in starts}) != len(starts):
        raise CampaignError("POSCAR needs the atoms of one species together; sort them first")
    counts = np.diff([*starts, len(symbols)])
    rows = [" ".join(f"{x:21.16f}" for x in row) for row in (*atoms.cell[:], *atoms.positions)]
    return "\n".join(
        [
            atoms.get_chemical_formula(),
            "1.0",
            *rows[:3],
            " ".join(symbols[k] for k in starts),
            " ".join(str(n) for n in counts),
            "Cartesian",
            *rows[3:],
            "",
        ]
    )


def potcar_text(template: VaspTemplate, atoms: ase.Atoms) -> str:
    """Return POTCAR in the order of POSCAR's species; it is for the run's folder and nothing else."""
    symbols = list(dict.fromkeys(sorted_atoms(atoms)[0].get_chemical_symbols()))
    parts = []
    for symbol in symbols:
        potential = template.potentials.get(symbol)
        if potential is None or potential.path is None:
            raise CampaignError(
                f"no potential of {symbol}; potentials given: {', '.join(template.potentials) or 'none'}"
            )
        parts.append(read_potential(potential.path, symbol).path.read_text(errors="replace"))  # type: ignore[union-attr]
    return "".join(part if part.endswith("\n") else part + "\n" for part in parts)


def point_directory(name: str) -> str:
    """Return the folder of a field point: ``0`` -> ``zero``, ``+x-y`` -> ``pxmy``."""
    if name == ZERO_FIELD:
        return "zero"
    return re.sub(r"[^A-Za-z0-9._]+", "_", name.replace("+", "p").replace("-", "m")).strip("_")


def point_directories(names: Sequence[str]) -> dict[str, str]:
    """Return folder by point, the zero-field point first and always there."""
    folders = {ZERO_FIELD: "zero"} | {name: point_directory(name) for name in names}
    if len(set(folders.values())) != len(folders):
        raise CampaignError(f"field points need folders of different names, got {list(folders.values())}")
    return folders


def _base_tags(template: VaspTemplate, atoms: ase.Atoms) -> dict[str, str]:
    """Return the template's tags and those of every label run, without restart and field."""
    tags = {name: value for name, value in template.incar.items() if name not in REPLACED}
    # switched-off response tags would only be repeated
    tags = {name: value for name, value in tags.items() if name not in ("LEPSILON", "LCALCEPS", "LDIPOL")}
    n_electrons, charge = neutral_electrons(template, atoms), total_charge(atoms)
    if charge and n_electrons is not None:
        tags["NELECT"] = f"{n_electrons - charge:g}"
    # a field lowers the symmetry, and every point of a set must use the same k-points
    return tags | {"ISYM": "0", "NSW": "0", "IBRION": "-1", "LCHARG": ".FALSE."}


def _field_text(vector: ArrayLike) -> str:
    """Return components in eV/A from a vector in E_h/(e a0)."""
    values = np.asarray(vector, dtype=float) * HARTREE_PER_BOHR
    return " ".join(f"{x + 0.0:.10f}" for x in values)


def field_tags(
    template: VaspTemplate, atoms: ase.Atoms, vector: ArrayLike, *, restart: bool = False, keep: bool = False
) -> dict[str, str]:
    """Return the INCAR of one field point.

    Args:
        template: the level of theory.
        atoms: the snapshot.
        vector: (3,) field [E_h/(e a0)]; zero for the point without a field.
        restart: start from the WAVECAR in the folder.
        keep: write WAVECAR, for the other points.

    Returns:
        Tags in upper case -> text.
    """
    field_vector = np.asarray(vector, dtype=float)
    if field_vector.shape != (3,) or not np.isfinite(field_vector).all():
        raise CampaignError(f"a field is three finite numbers [E_h/(e a0)], got {vector!r}")
    tags = _base_tags(template, atoms)
    tags |= {"ISTART": "1" if restart else "0", "ICHARG": "0" if restart else "2"}
    tags["LWAVE"] = ".TRUE." if keep else ".FALSE."
    if field_vector.any():
        length = float(np.linalg.norm(field_vector)) * HARTREE_PER_BOHR
        if length < _SMALLEST_FIELD:
            raise CampaignError(
                f"a field of {length:.2g} eV/A is too small: VASP ignores 1e-5 and echoes 1e-4; "
                "0.0257 (5e-4 E_h/(e a0)) is usual"
            )
        tags["EFIELD_PEAD"] = _field_text(field_vector)
    else:
        # in a field VASP prints the polarization unasked
        tags["LCALCPOL"] = ".TRUE."
        # it enters every PGT as -2 F(0)/h^2, and alone starts cold, so that it would stop just below the threshold
        tags["EDIFF"] = f"{template.number('EDIFF', 1e-4) / 10:g}"
    return tags


def _folder(template: VaspTemplate, atoms: ase.Atoms, tags: Mapping[str, str]) -> dict[str, str]:
    files = {
        "INCAR": write_incar(tags),
        "POSCAR": poscar_text(sorted_atoms(atoms)[0]),
        "KPOINTS": template.kpoints.text(),
    }
    has_files = any(potential.path is not None for potential in template.potentials.values())
    return files | ({"POTCAR": potcar_text(template, atoms)} if has_files else {})


def render_field_set(
    template: VaspTemplate, atoms: ase.Atoms, vectors: Mapping[str, ArrayLike]
) -> dict[str, dict[str, str]]:
    """Return the runs of one snapshot in all its fields, to be run in this order, each in its folder.

    Args:
        template: the level of theory.
        atoms: the snapshot, in any order of atoms; POSCAR has that of :func:`sorted_atoms`.
        vectors: point name -> (3,) field [E_h/(e a0)].

    Returns:
        Folder -> file -> text. ``zero`` comes first and is always there; the others start from its WAVECAR, which has
        to be copied into their folders.
    """
    check_vasp_template(template, atoms)
    if np.any(vectors.get(ZERO_FIELD, 0.0)):
        raise CampaignError(f"the field point named {ZERO_FIELD!r} must have no field, got {vectors[ZERO_FIELD]!r}")
    runs = {}
    for name, folder in point_directories(list(vectors)).items():
        is_zero = name == ZERO_FIELD
        tags = field_tags(template, atoms, vectors.get(name, np.zeros(3)), restart=not is_zero, keep=is_zero)
        runs[folder] = _folder(template, atoms, tags)
    return runs


def lepsilon_tags(template: VaspTemplate, atoms: ase.Atoms) -> dict[str, str]:
    """Return the INCAR of a LEPSILON run: Born charges of all atoms and the dielectric tensor from one job."""
    tags = _base_tags(template, atoms)
    return tags | {"ISTART": "0", "ICHARG": "2", "LWAVE": ".FALSE.", "LEPSILON": ".TRUE."}


def render_lepsilon(template: VaspTemplate, atoms: ase.Atoms) -> dict[str, dict[str, str]]:
    """Return the one run of LEPSILON: folder ``lepsilon`` -> file -> text."""
    check_vasp_template(template, atoms, method="lepsilon")
    return {"lepsilon": _folder(template, atoms, lepsilon_tags(template, atoms))}


@dataclass(frozen=True)
class LcalcepsRun:
    """One LCALCEPS job: a field along each Cartesian axis in turn, on a crystal that may be turned.

    Attributes:
        folder: its name.
        rotation: (3, 3) R with r' = R r; the cell turns with the atoms.
        field: (3,) EFIELD_PEAD [E_h/(e a0)].
        points: axis -> name of the field point that it gives, in the frame of the snapshot.
    """

    folder: str
    rotation: Array
    field: Array
    points: Mapping[int, str]

    def turned(self, atoms: ase.Atoms) -> ase.Atoms:
        """Return the snapshot as this job has it."""
        turned = atoms.copy()
        turned.set_cell(atoms.cell[:] @ self.rotation.T)
        turned.positions = atoms.positions @ self.rotation.T
        return turned


def _rotation_to_axis(direction: Array) -> tuple[Array, int]:
    """Return the smallest rotation R that takes a unit vector to its nearest Cartesian axis (either sign)."""
    axis = int(np.argmax(np.round(np.abs(direction), 12)))
    goal = np.sign(direction[axis]) * np.eye(3)[axis]
    v, c = np.cross(direction, goal), float(direction @ goal)
    k = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + k + k @ k / (1 + c), axis


def lcalceps_runs(vectors: Mapping[str, ArrayLike]) -> list[LcalcepsRun]:
    """Return the LCALCEPS jobs that give the forces at these field points.

    One job has fields along x, y and z in turn, so the six axis points take two jobs. A point off the axes needs a job
    of its own, with the crystal turned until the field lies on an axis; its two other axes get VASP's default field
    and are not used. The set of 13 points takes eight jobs.

    Args:
        vectors: point name -> (3,) field [E_h/(e a0)]; the zero field comes with every job.
    """
    waiting = {name: np.asarray(v, dtype=float) for name, v in vectors.items() if np.any(v)}
    unused = UNUSED_FIELD / HARTREE_PER_BOHR
    jobs: list[LcalcepsRun] = []
    on_axis: dict[int, dict[int, str]] = {}
    for name, vector in waiting.items():
        axes = np.flatnonzero(np.abs(vector) > 1e-9 * np.abs(vector).max())
        if len(axes) != 1:
            continue
        axis = int(axes[0])
        # signs go together, so that a job is recognised by its name
        sign = int(np.sign(vector[axis]))
        slot = next(n for n in range(len(waiting)) if axis not in on_axis.get(sign * (n + 1), {}))
        on_axis.setdefault(sign * (slot + 1), {})[axis] = name
    for slot, points in on_axis.items():
        field_vector = np.full(3, unused)
        for axis, name in points.items():
            field_vector[axis] = waiting[name][axis]
        label = ("p" if slot > 0 else "m") + (str(abs(slot)) if abs(slot) > 1 else "")
        jobs.append(LcalcepsRun(f"lcalceps-{label}", np.eye(3), field_vector, points))
    taken = {name for points in on_axis.values() for name in points.values()}
    for name, vector in waiting.items():
        if name in taken:
            continue
        length = float(np.linalg.norm(vector))
        rotation, axis = _rotation_to_axis(vector / length)
        field_vector = np.full(3, unused)
        field_vector[axis] = (rotation @ vector)[axis]
        jobs.append(LcalcepsRun(f"lcalceps-{point_directory(name)}", rotation, field_vector, {axis: name}))
    return jobs


def lcalceps_tags(template: VaspTemplate, atoms: ase.Atoms, run: LcalcepsRun) -> dict[str, str]:
    """Return the INCAR of an LCALCEPS job."""
    length = float(np.abs(run.field).min()) * HARTREE_PER_BOHR
    if length < _SMALLEST_FIELD:
        raise CampaignError(f"a field of {length:.2g} eV/A is too small for LCALCEPS; 0.0257 is usual")
    tags = _base_tags(template, atoms)
    tags |= {"ISTART": "0", "ICHARG": "2", "LWAVE": ".FALSE.", "LCALCEPS": ".TRUE."}
    return tags | {"EFIELD_PEAD": _field_text(run.field)}


def render_lcalceps(
    template: VaspTemplate, atoms: ase.Atoms, vectors: Mapping[str, ArrayLike]
) -> dict[str, dict[str, str]]:
    """Return the LCALCEPS jobs of one snapshot, see :func:`lcalceps_runs`: folder -> file -> text."""
    check_vasp_template(template, atoms, method="lcalceps")
    return {
        run.folder: _folder(template, run.turned(atoms), lcalceps_tags(template, atoms, run))
        for run in lcalceps_runs(vectors)
    }
