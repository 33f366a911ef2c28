"""Read what became of VASP's runs: one static run, a whole field set.

Forces in a field come from vasprun.xml, which has eight decimals; the six of OUTCAR, 1e-6 eV/A, are an error of up to
0.08 e^2 a0/E_h of a PGT at h = 5e-4. OUTCAR says what became of each electronic loop.
"""

import gzip
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mimyria_wf.errors import EngineError
from mimyria_wf.labels import total_charge
from mimyria_wf.units import BOHR, HARTREE_PER_BOHR
from mimyria_wf.vasp_input import ZERO_FIELD, check_field_against_gap, point_directories, restored, sorted_atoms

Array = NDArray[Any]

FINISHED = "General timing and accounting informations for this job"
"""What OUTCAR ends with."""

_VERSION = re.compile(r"vasp\.(\d[\w.]*\d)")
_FIELD = re.compile(r"EFIELD_PEAD\s*=\s*([-+.\dEe]+)\s+([-+.\dEe]+)\s+([-+.\dEe]+)")
_NOT_CONVERGED = re.compile(r"EDIFF was not reached|aborting loop because hard stop|SOFT STOP encountered")
_DIPOLE = re.compile(r"p\[(ion|elc)\]=\(\s*(\S+)\s+(\S+)\s+(\S+?)\s*\)\s*\|e\| Angst")
_FATAL = re.compile(
    r"(?:^|\n)\s*(?:\|\s*)?(EEEEE|internal error in subroutine [^\n|]*|VERY BAD NEWS[^\n|]*|ERROR[: ][^\n|]*)"
)
_NOT_COMPUTED = 9000.0
"""With a field on, VASP gives its empty bands the energy 10000 eV."""
_SAME_FORCES = 1e-7
"""Forces in a field that differ from those without by less have not felt it [E_h/a0]."""


@dataclass(frozen=True)
class VaspRun:
    """What OUTCAR and vasprun.xml say of one static run.

    Attributes:
        version: such as "6.4.3".
        is_finished: OUTCAR ends with its timings.
        scf_converged: every electronic loop reached EDIFF, the one without and the one with the field.
        n_scf_steps: electronic steps of all loops.
        n_loops: electronic loops.
        energy: free energy [eV].
        forces: (n_atoms, 3) in the order of POSCAR [E_h/a0].
        field: (3,) EFIELD_PEAD as VASP understood it [E_h/(e a0)], zero without one.
        field_resolution: of that echo [E_h/(e a0)]: vasprun.xml has eight decimals in eV/A, OUTCAR four.
        gap: without the field, of the spin with the smaller one [eV]; zero of a metal, None without empty bands.
        is_metallic: some level is occupied in part.
        dipole: (3,) p[ion] + p[elc], where VASP prints it [e a0]; modulo the cell's vectors.
        divisions: of the mesh, None of a list.
        cell: (3, 3) rows [A].
        symbols: of the atoms in the order of POSCAR.
        positions: (n_atoms, 3) in the order of POSCAR [A], None where vasprun.xml has none.
        warnings: VASP's, one line each.
        seconds: wall time.
    """

    version: str
    is_finished: bool
    scf_converged: bool
    n_scf_steps: int
    n_loops: int
    energy: float
    forces: Array
    field: Array
    field_resolution: float
    gap: float | None
    is_metallic: bool
    dipole: Array | None
    divisions: tuple[int, int, int] | None
    cell: Array
    symbols: tuple[str, ...]
    positions: Array | None
    warnings: tuple[str, ...]
    seconds: float


Source = str | Path | Mapping[str, str]


def _reader(source: Source) -> Callable[[str], str | None]:
    """Return what reads a file of a folder, or of a mapping name -> text; gzipped files are found too."""
    if isinstance(source, Mapping):
        return source.get

    def read(name: str) -> str | None:
        path = Path(source) / name
        if path.is_file():
            return path.read_text(errors="replace")
        packed = path.with_name(path.name + ".gz")
        if packed.is_file():
            with gzip.open(packed, "rt", errors="replace") as file:
                return file.read()
        return None

    return read


def read_vasp_run(source: Source, folder: str = "") -> VaspRun:
    """Read OUTCAR and vasprun.xml of a static run.

    Args:
        source: directory, or file name -> text.
        folder: of the run within it.

    Raises:
        EngineError: why the run cannot be used, in one line: a file is missing or cut off, VASP stopped, a loop did not
            converge. A run in the wrong field is for :func:`read_field_points` to find.
    """
    read = _reader(source)
    prefix = f"{folder}/" if folder else ""
    try:
        outcar, xml = read(prefix + "OUTCAR"), read(prefix + "vasprun.xml")
    except (OSError, EOFError) as error:
        raise EngineError(f"output of VASP is damaged ({error}); copy it again") from error
    if outcar is None and xml is None:
        raise EngineError("neither OUTCAR nor vasprun.xml: the point was not run, or VASP crashed at its start")
    if outcar is None:
        raise EngineError("no OUTCAR: it says whether the run converged; run the point again")
    version = _VERSION.search(outcar[:400])
    if version is None:
        raise EngineError("OUTCAR is not of VASP: its first lines name no version")
    if FINISHED not in outcar:
        stopped = _FATAL.search(outcar)
        why = f": {' '.join(stopped[1].split())}" if stopped else " (time limit, memory or a crash)"
        raise EngineError(f"VASP did not finish{why}; run the point again")
    loops = len(re.findall(r"Iteration\s+\d+\(\s*1\)", outcar))
    n_steps = len(re.findall(r"Iteration\s+\d+\(\s*\d+\)", outcar))
    if unconverged_loop(outcar):
        raise EngineError(
            f"SCF did not converge (NELM reached, {n_steps} electronic steps in {loops} loops); raise NELM, or take a "
            "smaller field where the loop in the field failed"
        )
    if xml is None:
        raise EngineError("no vasprun.xml, which holds the forces with enough digits; retrieve it")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise EngineError(f"vasprun.xml ends early or is damaged ({error}); run the point again") from error
    forces = _last_array(root, "forces")
    if forces is None:
        raise EngineError("vasprun.xml holds no forces; run the point again")
    cell = _last_array(root, "basis")
    assert cell is not None or root.tag != "modeling"
    symbols = tuple((rc.findtext("c") or "").strip() for rc in root.findall(".//array[@name='atoms']/set/rc"))
    if len(symbols) != len(forces):
        raise EngineError(f"vasprun.xml: {len(forces)} forces for {len(symbols)} atoms; the file is damaged")
    if not np.isfinite(forces).all():
        raise EngineError("vasprun.xml: forces hold NaN or infinity")
    fractions = _last_array(root, "positions")
    gap, is_metallic = _gap(root, outcar)
    field, resolution = _echoed_field(root, outcar)
    seconds = re.search(r"Elapsed time \(sec\):\s*(\S+)", outcar)
    energies = re.findall(r"free\s+energy\s+TOTEN\s+=\s*(\S+)", outcar)
    divisions = root.findtext("kpoints/generation/v[@name='divisions']")
    return VaspRun(
        version=version[1],
        is_finished=True,
        scf_converged=True,
        n_scf_steps=n_steps,
        n_loops=loops,
        energy=float(energies[-1]) if energies else float("nan"),
        forces=forces / HARTREE_PER_BOHR,
        field=field,
        field_resolution=resolution,
        gap=gap,
        is_metallic=is_metallic,
        dipole=_dipole(outcar),
        divisions=None if divisions is None else _three(divisions),
        cell=np.zeros((3, 3)) if cell is None else cell,
        symbols=symbols,
        positions=None if fractions is None or cell is None else fractions @ cell,
        warnings=_warnings(outcar),
        seconds=float(seconds[1]) if seconds else float("nan"),
    )


def _three(text: str) -> tuple[int, int, int]:
    x, y, z = (int(word) for word in text.split()[:3])
    return x, y, z


def unconverged_loop(outcar: str) -> bool:
    """Tell whether an electronic loop of an OUTCAR ended without having reached EDIFF.

    Versions before 6 do not say that a loop failed; it then has as many steps as NELM allows.
    """
    if _NOT_CONVERGED.search(outcar):
        return True
    nelm = re.search(r"NELM\s*=\s*(\d+)\s*;", outcar)
    if nelm is None:
        return False
    for loop in re.split(r"Iteration\s+\d+\(\s*1\)", outcar)[1:]:
        steps = [int(n) for n in re.findall(r"Iteration\s+\d+\(\s*(\d+)\)", loop)] or [1]
        if steps[-1] >= int(nelm[1]) and "aborting loop because EDIFF is reached" not in loop:
            return True
    return False


def _last_array(root: ElementTree.Element, name: str) -> Array | None:
    found = root.findall(f".//varray[@name='{name}']")
    if not found:
        return None
    try:
        values = np.array([[float(x) for x in (v.text or "").split()] for v in found[-1].findall("v")])
    except ValueError as error:
        raise EngineError(f"vasprun.xml: {name} unreadable ({error}); the file is damaged") from None
    if values.ndim != 2 or values.shape[1] != 3:
        raise EngineError(f"vasprun.xml: {name} are not rows of three numbers; the file is damaged")
    return values


def _echoed_field(root: ElementTree.Element, outcar: str) -> tuple[Array, float]:
    """Return EFIELD_PEAD as VASP read it and the resolution of that echo [E_h/(e a0)]."""
    # the last is in <parameters>, after VASP's own changes
    texts, resolution = [v.text or "" for v in root.findall(".//v[@name='EFIELD_PEAD']")], 1e-8
    if not texts:
        texts, resolution = [" ".join(match.groups()) for match in _FIELD.finditer(outcar)], 1e-4
    try:
        values = [float(x) for x in texts[-1].split()[:3]] if texts else [0.0, 0.0, 0.0]
    except ValueError as error:
        raise EngineError(f"EFIELD_PEAD unreadable in VASP's output ({error})") from None
    return np.array(values) / HARTREE_PER_BOHR, resolution / HARTREE_PER_BOHR


def _dipole(outcar: str) -> Array | None:
    """Return p[ion] + p[elc] [e a0]; VASP 6 counts ions positive. Older ones, in "electrons Angst", are not read."""
    found = {name: [float(x) for x in values] for name, *values in _DIPOLE.findall(outcar)}
    if set(found) != {"ion", "elc"}:
        return None
    return (np.array(found["ion"]) + np.array(found["elc"])) / BOHR


def _warnings(outcar: str) -> tuple[str, ...]:
    if "too large for comfort" not in outcar:
        return ()
    rows = re.findall(r"e \|E dot A_(\d)\| =\s*(\S+) > 1/10, E_g/N_\d =\s*(\S+)", outcar)
    beyond = [f"e|E.a_{i}| = {drop} eV > {limit} eV" for i, drop, limit in rows if float(drop) > float(limit)]
    return (f"VASP: the field is too strong for the gap ({'; '.join(dict.fromkeys(beyond))})",)


def _gap(root: ElementTree.Element, outcar: str) -> tuple[float | None, bool]:
    """Return the gap [eV] and whether bands are filled in part.

    In the field VASP has full bands alone; OUTCAR then has those without it.
    """
    spins = []
    for spin in root.findall(".//calculation/eigenvalues/array/set/set"):
        rows = [[float(x) for x in (r.text or "").split()[:2]] for r in spin.findall("set/r")]
        spins.append(np.array(rows).reshape(-1, 2))
    return _gap_of(spins) if any(_has_empty(levels) for levels in spins) else outcar_gap(outcar)


def outcar_gap(outcar: str) -> tuple[float | None, bool]:
    """Return the gap [eV] and whether bands are filled in part, from the last table of an OUTCAR with empty bands."""
    spins: list[Array] = []
    for block in outcar.split(" E-fermi :")[1:]:
        body = block.split("-----------------", 1)[0]
        tables = []
        for part in body.split("spin component 2"):
            rows = re.findall(r"^\s+\d+\s+(-?\d+\.\d+)\s+(-?\d+\.\d+)\s*$", part, flags=re.MULTILINE)
            tables.append(np.array(rows, dtype=float).reshape(-1, 2))
        if any(_has_empty(levels) for levels in tables):
            spins = tables
    if any(len(levels) and levels[:, 1].max() > 1.5 for levels in spins):
        # without spin polarization a band is printed with two electrons
        spins = [levels * [1.0, 0.5] for levels in spins]
    return _gap_of(spins)


def _has_empty(levels: Array) -> bool:
    return bool(np.any((levels[:, 1] < 0.5) & (levels[:, 0] < _NOT_COMPUTED)))


def _gap_of(spins: list[Array]) -> tuple[float | None, bool]:
    """Return the smallest gap among spins, from their levels (n, 2): energies [eV], occupations up to one.

    A field flips no spin, so what counts is the gap of each spin by itself.
    """
    gaps, is_metallic = [], False
    for levels in spins:
        levels = levels[levels[:, 0] < _NOT_COMPUTED]
        is_metallic |= bool(np.any((levels[:, 1] > 0.01) & (levels[:, 1] < 0.99)))
        full = levels[:, 1] > 0.5
        if full.any() and not full.all():
            gaps.append(max(float(levels[~full, 0].min() - levels[full, 0].max()), 0.0))
    if not gaps:
        return None, is_metallic
    return (0.0 if is_metallic else min(gaps)), is_metallic


@dataclass(frozen=True)
class VaspFieldSet:
    """What the runs of one field set say.

    Attributes:
        vectors: (n_points, 3) as asked for [E_h/(e a0)].
        forces: (n_points, n_atoms, 3) in the order of the snapshot, NaN where a point is not usable [E_h/a0].
        problems: one line a point, "" where it is sound.
        causes: "", "missing", "unfinished", "scf", "damaged", "field", "metal", "forces", one a point.
        runs: what was read, None where nothing could be.
        dipoles: (n_points, 3), NaN where VASP printed none [e a0].
        dipole_quanta: (3, 3) rows [e a0].
        gap: without the field, of the zero-field point or else of any [eV].
        warnings: VASP's and those of the gap, one line each.
        version: of VASP.
    """

    vectors: Array
    forces: Array
    problems: tuple[str, ...]
    causes: tuple[str, ...]
    runs: tuple[VaspRun | None, ...]
    dipoles: Array
    dipole_quanta: Array | None
    gap: float | None
    warnings: tuple[str, ...]
    version: str

    @property
    def valid(self) -> Array:
        """(n_points,) whether a point is sound."""
        return np.array([not problem for problem in self.problems], dtype=bool)


_SAME_STRUCTURE = 1e-4
"""Largest difference between a run's structure and its snapshot [A]; vasprun.xml prints 1e-8."""
_CAUSES = (
    ("not the run of this snapshot", "damaged"),
    ("neither OUTCAR", "missing"),
    ("no OUTCAR", "missing"),
    ("no vasprun.xml", "missing"),
    ("did not finish", "unfinished"),
    ("SCF did not converge", "scf"),
    ("ran in the field", "field"),
    ("metallic", "metal"),
    ("have not felt", "forces"),
    ("net force", "forces"),
)


def read_field_points(
    source: Source,
    vectors: Mapping[str, ArrayLike],
    order: NDArray[np.int64] | None = None,
    *,
    atoms: ase.Atoms | None = None,
    n_atoms: int | None = None,
    charge: float | None = None,
) -> VaspFieldSet:
    """Read all runs of one snapshot in its fields and check each; the inverse of ``vasp_input.render_field_set``.

    Args:
        source: directory with a folder for each point, or ``folder/file`` -> text.
        vectors: point name -> (3,) field [E_h/(e a0)].
        order: of POSCAR's atoms in the snapshot, from ``vasp_input.sorted_atoms``; None: they are the same.
        atoms: the snapshot, which gives order, number of atoms and charge; runs of other species, another cell or other
            positions are refused. Sum rules cannot tell them apart.
        n_atoms: expected number of atoms; default that of ``order`` or of the first readable point.
        charge: total charge [e]; with it, forces whose sum is not that of the field's pull are refused.
    """
    folders = point_directories(list(vectors))
    poscar = None
    if atoms is not None:
        poscar, order = sorted_atoms(atoms)
        charge = total_charge(atoms) if charge is None else charge
    if n_atoms is None and order is not None:
        n_atoms = len(order)
    runs: dict[str, VaspRun | None] = {}
    problems: dict[str, str] = {}
    for name in {ZERO_FIELD: None} | dict.fromkeys(vectors):
        wanted = np.asarray(vectors.get(name, np.zeros(3)), dtype=float)
        try:
            run = read_vasp_run(source, folders[name])
        except EngineError as error:
            runs[name], problems[name] = None, str(error)
            continue
        runs[name], problem = run, ""
        n_atoms = len(run.forces) if n_atoms is None else n_atoms
        if len(run.forces) != n_atoms:
            problem = f"{len(run.forces)} atoms in the forces, expected {n_atoms}"
        elif poscar is not None and (other := _difference(run, poscar)):
            problem = f"not the run of this snapshot: {other}"
        elif not np.allclose(run.field, wanted, rtol=0, atol=0.6 * run.field_resolution + 1e-6 * np.abs(wanted).max()):
            given, asked = ((v * HARTREE_PER_BOHR).round(8).tolist() for v in (run.field, wanted))
            problem = f"ran in the field EFIELD_PEAD = {given}, expected {asked} eV/A"
        elif run.is_metallic:
            problem = (
                "metallic: bands are filled in part, so no ground state in a field exists; check ISMEAR and the gap"
            )
        problems[name] = problem
    zero = runs.get(ZERO_FIELD)
    if zero is not None and not problems[ZERO_FIELD]:
        _check_against_zero(zero, runs, problems, vectors, charge)
    return _collected(vectors, runs, problems, folders, order, n_atoms or 0)


def _difference(run: VaspRun, poscar: ase.Atoms) -> str:
    """Return what a run has other than the snapshot in the order of POSCAR, "" if nothing."""
    expected = tuple(poscar.get_chemical_symbols())
    if run.symbols != expected:
        first = next(k for k, pair in enumerate(zip(run.symbols, expected)) if pair[0] != pair[1])
        return f"its atom {first} of POSCAR is {run.symbols[first]}, expected {expected[first]}"
    off = float(np.abs(run.cell - poscar.cell[:]).max())
    if off > _SAME_STRUCTURE:
        return f"its cell is off by {off:.2g} A"
    if run.positions is not None:
        fractions = (run.positions - poscar.positions) @ np.linalg.inv(run.cell)
        moved = float(np.abs((fractions - np.round(fractions)) @ run.cell).max())
        if moved > _SAME_STRUCTURE:
            return f"its atoms are up to {moved:.2g} A away"
    return ""


def _check_against_zero(
    zero: VaspRun,
    runs: Mapping[str, VaspRun | None],
    problems: dict[str, str],
    vectors: Mapping[str, ArrayLike],
    charge: float | None,
) -> None:
    """Find forces that miss the field, or a part of its pull on the ions."""
    for name, vector in vectors.items():
        run, field = runs[name], np.asarray(vector, dtype=float)
        if run is None or problems[name] or not field.any():
            continue
        change = run.forces - zero.forces
        if np.abs(change).max() < _SAME_FORCES:
            problems[name] = "forces have not felt the field (they are those without it); is this a VASP with PEAD?"
        elif charge is not None:
            # without the field's pull on the ions the sum would be off by the number of valence electrons, 4 and more
            off = np.abs(change.sum(axis=0) - charge * field).max() / np.linalg.norm(field)
            if off > 0.5:
                problems[name] = (
                    f"net force in the field is off by {off:.2g} e E; it must be the charge times the field"
                )


def _collected(
    vectors: Mapping[str, ArrayLike],
    runs: Mapping[str, VaspRun | None],
    problems: Mapping[str, str],
    folders: Mapping[str, str],
    order: NDArray[np.int64] | None,
    n_atoms: int,
) -> VaspFieldSet:
    forces, dipoles, lines, causes = [], [], [], []
    for name in vectors:
        run, problem = runs[name], problems[name]
        if run is None or problem:
            forces.append(np.full((n_atoms, 3), np.nan))
        else:
            forces.append(run.forces if order is None else restored(run.forces, order))
        known = run is not None and not problem and run.dipole is not None
        dipoles.append(run.dipole if known and run is not None and run.dipole is not None else np.full(3, np.nan))
        lines.append(f"field point {name} ({folders[name]}): {problem}" if problem else "")
        causes.append(next((cause for words, cause in _CAUSES if words in problem), "damaged") if problem else "")
    sound = [run for run in runs.values() if run is not None]
    zero = runs.get(ZERO_FIELD)
    gap = next((run.gap for run in ([zero] if zero else []) + sound if run.gap is not None), None)
    warnings = dict.fromkeys(line for run in sound for line in run.warnings)
    if gap is not None:
        for name, vector in vectors.items():
            run = runs[name]
            if run is not None and run.divisions is not None and np.any(vector):
                found = check_field_against_gap(run.cell, run.divisions, vector, gap)
                if found:
                    warnings[f"field point {name}: {found}"] = None
                    break
    return VaspFieldSet(
        vectors=np.array([np.asarray(v, dtype=float) for v in vectors.values()]).reshape(-1, 3),
        forces=np.array(forces).reshape(len(vectors), n_atoms, 3),
        problems=tuple(lines),
        causes=tuple(causes),
        runs=tuple(runs[name] for name in vectors),
        dipoles=np.array(dipoles).reshape(-1, 3),
        dipole_quanta=sound[0].cell / BOHR if sound else None,
        gap=gap,
        warnings=tuple(warnings),
        version=sound[0].version if sound else "unknown",
    )
