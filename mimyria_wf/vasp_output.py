"""Read the response of one configuration from VASP: OUTCAR or vasprun.xml of a LEPSILON or LCALCEPS run.

What single runs and field sets leave behind is read in :mod:`mimyria_wf.vasp_run` and can be had from here too.

VASP prints Born charges with rows = field, columns = displacement; an APT here is (displacement, field), so each 3x3
block is transposed on reading. With LEPSILON, VASP has already spread the residual of the acoustic sum rule evenly over
the atoms, and its charges sum to zero to round-off; with LCALCEPS it has not.

The dielectric tensor is the electronic one at fixed nuclei (VASP calls it "static"), with local field effects at the
level of the functional (LRPA = .FALSE.). Its ionic contribution is never taken: the nuclei move explicitly in the MD.
"""

import gzip
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ase
import ase.io
import numpy as np
from numpy.typing import NDArray

from mimyria_wf.errors import EngineError, LabelError
from mimyria_wf.units import BOHR, HARTREE_PER_BOHR
from mimyria_wf.vasp_run import (
    FINISHED,
    VaspFieldSet,
    VaspRun,
    read_field_points,
    read_vasp_run,
    unconverged_loop,
)

__all__ = [
    "VaspFieldSet",
    "VaspResponse",
    "VaspRun",
    "polarizability_of_dielectric",
    "read_field_points",
    "read_vasp_response",
    "read_vasp_run",
]

Array = NDArray[Any]
Method = Literal["LEPSILON", "LCALCEPS"]

_DIELECTRIC = re.compile(r"MACROSCOPIC STATIC DIELECTRIC TENSOR \(including local field effects( in [^)]*)?\)")
_BORN = re.compile(r"BORN EFFECTIVE CHARGES \((?:including local field effects\) \()?in \|?e\|?, cummulative output\)")
_EXCLUDED_BORN = re.compile(r"BORN EFFECTIVE CHARGES \(excluding")
_FIELD = re.compile(r"EFIELD_PEAD\s*=\s*([-+.\dEe]+)\s+([-+.\dEe]+)\s+([-+.\dEe]+)")
_VERSION = re.compile(r"vasp\.(\d[\w.]*\d)")


@dataclass(frozen=True)
class VaspResponse:
    """What one VASP run says about the response of one configuration.

    Attributes:
        path: the file.
        version: of VASP, such as "6.4.3".
        method: LEPSILON (density functional perturbation theory) or LCALCEPS (finite fields).
        atoms: the configuration, periodic, without a calculator.
        energy: free energy [eV].
        forces: (n_atoms, 3) [E_h/a0].
        dielectric: (3, 3) electronic dielectric tensor with local field effects, or None.
        apt: (n_atoms, displacement, field) [e], or None.
        field_step: (3,) EFIELD_PEAD of an LCALCEPS run, the displaced field of each direction [E_h/(e a0)], or None.
    """

    path: Path
    version: str
    method: Method
    atoms: ase.Atoms
    energy: float
    forces: Array
    dielectric: Array | None
    apt: Array | None
    field_step: Array | None = None

    @property
    def volume(self) -> float:
        """Volume of the cell [A^3]."""
        return float(self.atoms.get_volume())

    @property
    def polarizability(self) -> Array:
        """(3, 3) polarizability of the cell, symmetrised [e^2 a0^2/E_h]."""
        if self.dielectric is None:
            raise LabelError(f"{self.path}: no dielectric tensor; run VASP with LEPSILON = .TRUE.")
        symmetric = 0.5 * (self.dielectric + self.dielectric.T)
        return polarizability_of_dielectric(symmetric, self.volume)


def polarizability_of_dielectric(dielectric: Array, volume: float | Array) -> Array:
    """Return alpha = (epsilon - 1) V / (4 pi) in e^2 a0^2/E_h.

    In atomic units 4 pi eps0 = 1, so that P = alpha E / V, with E the macroscopic field, gives
    epsilon - 1 = 4 pi alpha / V.

    Args:
        dielectric: (..., 3, 3).
        volume: of the cell [A^3].
    """
    return (dielectric - np.eye(3)) * (volume / BOHR**3 / (4 * np.pi))


def read_vasp_response(path: str | Path) -> VaspResponse:
    """Read an OUTCAR or vasprun.xml, plain or gzipped, of a run with LEPSILON or LCALCEPS.

    Raises:
        EngineError: the file is missing, cut off, not from VASP, or the run did not reach its end.
        LabelError: the run did neither LEPSILON nor LCALCEPS, or its tensors are incomplete.
    """
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"{path}: no such file")
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            text = file.read()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise EngineError(f"{path}: damaged ({error}); copy it again") from error
    response = _from_xml(path, text) if text.lstrip().startswith("<?xml") else _from_outcar(path, text)
    for name, values in (("dielectric tensor", response.dielectric), ("Born charges", response.apt)):
        if values is not None and not np.isfinite(values).all():
            raise LabelError(f"{path}: the {name} hold NaN or infinity; look at the run's convergence")
    return response


def _read_atoms(path: Path, kind: str) -> ase.Atoms:
    try:
        images = list(ase.io.iread(path, index=":", format=kind))
    except Exception as error:  # ASE's readers raise whatever they like
        raise EngineError(f"{path}: ASE cannot read it ({type(error).__name__}: {error}); is it cut off?") from error
    if len(images) != 1:
        raise EngineError(f"{path}: {len(images)} configurations, expected one; read an MD run as a trajectory")
    return images[0]


def _response(
    path: Path,
    version: str,
    method: Method,
    atoms: ase.Atoms,
    dielectric: Array | None,
    born: Array | None,
    field_step: Array | None,
) -> VaspResponse:
    if born is not None and len(born) != len(atoms):
        raise LabelError(f"{path}: Born charges of {len(born)} atoms, expected {len(atoms)}; the file is cut off")
    if dielectric is None and born is None:
        raise LabelError(f"{path}: neither a dielectric tensor nor Born charges; run VASP with LEPSILON = .TRUE.")
    energy, forces = atoms.get_potential_energy(force_consistent=True), atoms.get_forces() / HARTREE_PER_BOHR
    atoms = atoms.copy()
    atoms.calc = None
    return VaspResponse(
        path=path,
        version=version,
        method=method,
        atoms=atoms,
        energy=float(energy),
        forces=forces,
        dielectric=dielectric,
        apt=None if born is None else born.transpose(0, 2, 1).copy(),
        field_step=field_step,
    )


def _from_outcar(path: Path, text: str) -> VaspResponse:
    version = _VERSION.search(text[:400])
    if version is None:
        raise EngineError(f"{path}: not an OUTCAR or vasprun.xml of VASP: its first lines name no version")
    if FINISHED not in text:
        raise EngineError(f"{path}: the run did not reach its end (no timing at the end of the file); run it again")
    if unconverged_loop(text):
        raise EngineError(f"{path}: an electronic loop did not converge (NELM reached); raise NELM and run it again")
    method: Method = "LCALCEPS" if re.search(r"LCALCEPS\s*=\s*T", text) else "LEPSILON"
    # the response is printed after the last electronic step; ASE makes configurations of everything before
    atoms = _read_atoms(path, "vasp-out")
    lines = text.splitlines()
    dielectric, born = None, None
    for index, line in enumerate(lines):
        kind = _DIELECTRIC.search(line)
        # with LRPA = T the tensor is printed in both approximations
        if kind is not None and "RPA" not in (kind[1] or ""):
            dielectric = _block(path, lines[index + 2 : index + 5], "dielectric tensor", 0)
        elif _BORN.search(line) and not _EXCLUDED_BORN.search(line):
            born = _born_charges(path, lines[index + 2 :])
    match = _FIELD.search(text[text.find("PEAD related settings") :]) if method == "LCALCEPS" else None
    field_step = None if match is None else np.array([float(x) for x in match.groups()]) / HARTREE_PER_BOHR
    return _response(path, version[1], method, atoms, dielectric, born, field_step)


def _block(path: Path, lines: list[str], what: str, first: int) -> Array:
    """Return three lines of three numbers after ``first`` leading columns."""
    try:
        values = np.array([[float(x) for x in line.split()[first:]] for line in lines])
    except ValueError as error:
        raise LabelError(f"{path}: {what} unreadable: {error}") from error
    if values.shape != (3, 3):
        raise LabelError(f"{path}: {what} incomplete: {' | '.join(line.strip() for line in lines)!r}")
    return values


def _born_charges(path: Path, lines: list[str]) -> Array:
    """Return (n_atoms, field, displacement) [e] from what follows the heading."""
    charges: list[Array] = []
    while len(lines) >= 4 * (len(charges) + 1):
        head = lines[4 * len(charges)].split()
        if head[:1] != ["ion"]:
            break
        if head[1:] != [str(len(charges) + 1)]:
            raise LabelError(f"{path}: Born charges: expected ion {len(charges) + 1}, found {' '.join(head)!r}")
        rows = lines[4 * len(charges) + 1 : 4 * len(charges) + 4]
        charges.append(_block(path, rows, f"Born charge of ion {len(charges) + 1}", 1))
    return np.array(charges)


def _from_xml(path: Path, text: str) -> VaspResponse:
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise EngineError(f"{path}: the XML ends early or is damaged ({error}); did the run reach its end?") from error
    version = root.findtext("generator/i[@name='version']", "").strip()
    if root.tag != "modeling" or not version:
        raise EngineError(f"{path}: not a vasprun.xml of VASP")
    atoms = _read_atoms(path, "vasp-xml")
    method: Method = "LCALCEPS" if root.findtext(".//i[@name='LCALCEPS']", "").strip() == "T" else "LEPSILON"
    dielectric, born = None, None
    for name in ("epsilon", "epsilon_scf", "dielectric_dft"):
        found = root.findall(f".//varray[@name='{name}']")
        if found:
            dielectric = _block(path, [v.text or "" for v in found[-1].findall("v")], "dielectric tensor", 0)
    arrays = root.findall(".//array[@name='born_charges']")
    if arrays:
        blocks = [[v.text or "" for v in ion.findall("v")] for ion in arrays[-1].findall("set")]
        born = np.array([_block(path, rows, f"Born charge of ion {i + 1}", 0) for i, rows in enumerate(blocks)])
    vector = root.findtext(".//v[@name='EFIELD_PEAD']") if method == "LCALCEPS" else None
    field_step = None if vector is None else np.array([float(x) for x in vector.split()]) / HARTREE_PER_BOHR
    return _response(path, version, method, atoms, dielectric, born, field_step)
