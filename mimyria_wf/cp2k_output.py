"""Read what CP2K leaves behind: forces, what became of a run, a whole field set, energies of an MD run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_masses
from numpy.typing import ArrayLike, NDArray

from mimyria_wf.cp2k_input import ZERO_FIELD, field_projects, forces_file, parse_input, point_project
from mimyria_wf.errors import CampaignError, EngineError
from mimyria_wf.units import BOHR, DEBYE, HARTREE

Array = NDArray[np.float64]

CAUSES: Mapping[str, str] = {
    "scf": "the SCF did not converge",
    "walltime": "the time was over",
    "memory": "the memory did not suffice",
    "aborted": "CP2K ended with an error of its own",
    "truncated": "the output ends in the middle",
    "missing": "there is no output",
    "field": "the field is not the one asked for",
    "forces": "the forces are not there or not finite",
}
"""Why a field point is not usable."""

_OUT_OF_MEMORY = re.compile(
    r"std::bad_alloc|[Oo]ut of memory|[Cc]annot allocate memory|oom[-_ ]?kill|OUT_OF_MEMORY|[Ss]ignal 9\b|SIGKILL"
    r"|\bKilled\b|[Mm]emory allocation failed|[Nn]ot enough memory"
)
_OUT_OF_TIME = re.compile(r"exceeded requested execution time|DUE TO TIME LIMIT|CPU time limit exceeded|SIGXCPU")

_OLD_ROW = re.compile(r"^\s*(\d+)\s+\d+\s+([A-Z][a-z]?)\s+(\S+)\s+(\S+)\s+(\S+)\s*$")
_NEW_ROW = re.compile(r"^\s*FORCES\|\s+(\d+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s*$")


def read_forces(text: str) -> Array:
    """Read the last table of atomic forces.

    Reads the table of CP2K up to 2024 (``ATOMIC FORCES in [a.u.]``, still written to a FILENAME) and the one that later
    versions print (``FORCES| Atomic forces [hartree/bohr]``).

    Args:
        text: a forces file, or CP2K's standard output.

    Returns:
        (n_atoms, 3) forces [E_h/a0].

    Raises:
        EngineError: no table, atoms missing from it, or values that are not finite numbers.
    """
    start, row = -1, _OLD_ROW
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if "ATOMIC FORCES in [a.u.]" in line:
            start, row = index, _OLD_ROW
        elif "FORCES| Atomic forces" in line:
            if "[hartree/bohr]" not in line:
                raise EngineError(f"CP2K forces must be in hartree/bohr, got {line.strip()!r}; leave FORCE_UNIT alone")
            start, row = index, _NEW_ROW
    if start < 0:
        raise EngineError(
            "no atomic forces in CP2K's output; expected 'ATOMIC FORCES in [a.u.]' or 'FORCES| Atomic forces'"
        )
    forces: list[list[float]] = []
    has_sum = False
    for line in lines[start + 1 :]:
        found = row.match(line)
        if found:
            values = found.groups()[-3:] if row is _OLD_ROW else found.groups()[1:4]
            if int(found[1]) != len(forces) + 1:
                raise EngineError(f"CP2K forces: expected atom {len(forces) + 1}, got {line.strip()!r}")
            try:
                forces.append([float(v) for v in values])
            except ValueError:
                raise EngineError(f"CP2K forces: not a number in {line.strip()!r}") from None
        elif "SUM OF ATOMIC FORCES" in line or re.match(r"^\s*FORCES\| Sum", line):
            has_sum = True
            break
    if not forces or not has_sum:
        raise EngineError(f"CP2K forces end after {len(forces)} atoms without their sum: the file is cut off")
    result = np.array(forces)
    if not np.isfinite(result).all():
        raise EngineError("CP2K forces hold NaN or infinity")
    return result


@dataclass(frozen=True)
class Cp2kRun:
    """What CP2K's standard output says of one run.

    Attributes:
        version: "2023.1"; None where the output does not get that far.
        is_finished: the program ended by itself.
        scf_converged: every SCF converged; None where there was none (NNP, force fields).
        n_scf_steps: SCF steps of the last SCF.
        energy: last total energy [E_h].
        field: field vector echoed by PERIODIC_EFIELD [E_h/(e a0)]; EFIELD is not echoed by CP2K.
        n_atoms: number of atoms.
        aborted: CP2K's message, None where it did not abort.
        walltime: [s].
        warnings: CP2K's own warnings, one line each.
        dipole: (3,) dipole moment [e a0]: of a periodic system about the origin of its cell, modulo the cell's vectors
            times e; of a cluster about its centre of mass.
        gap: between the highest occupied and the lowest empty orbital, the smaller one of two spins [eV].
        polarizability: (3, 3) from perturbation theory [e^2 a0^2/E_h], None where there was none or it did not
            converge.
        cause: key of CAUSES for a run that did not end well, "" for one that did.
    """

    version: str | None
    is_finished: bool
    scf_converged: bool | None
    n_scf_steps: int | None
    energy: float | None
    field: tuple[float, float, float] | None
    n_atoms: int | None
    aborted: str | None
    walltime: float | None
    warnings: tuple[str, ...]
    dipole: tuple[float, float, float] | None = None
    gap: float | None = None
    polarizability: tuple[tuple[float, float, float], ...] | None = None
    cause: str = ""


def _last(pattern: str, text: str) -> str | None:
    found = re.findall(pattern, text, flags=re.MULTILINE)
    return found[-1] if found else None


def _boxed(lines: list[str], start: int) -> str:
    """Return the text of one of CP2K's boxes of asterisks, without the drawing in its first ten columns."""
    parts = []
    for line in lines[start:]:
        if re.fullmatch(r"\s*\*{20,}\s*", line):
            break
        parts.append(re.sub(r"^\s*\*.{10}|\*\s*$", "", line).strip())
    return " ".join(p for p in parts if p)


def _scf_outcome(text: str) -> tuple[bool | None, int | None]:
    """Tell whether all SCF cycles converged; inner loops may stop early as long as their outer loop converges."""
    outer = re.findall(r"outer SCF loop (converged|FAILED)[^\n]*?(\d+) steps", text)
    inner = re.findall(r"SCF run (converged|NOT converged)[^\n\d]*(\d*)", text)
    outcomes = outer or inner
    if not outcomes:
        return None, None
    return all(word == "converged" for word, _ in outcomes), int(outcomes[-1][1]) if outcomes[-1][1] else None


def _echoed_field(text: str) -> tuple[float, float, float] | None:
    block = re.search(
        r"PERIODIC_EFIELD\| Polarisation vector:\s+x\s+(\S+)"
        r"\s+PERIODIC_EFIELD\|\s+y\s+(\S+)\s+PERIODIC_EFIELD\|\s+z\s+(\S+)"
        r"\s+PERIODIC_EFIELD\| Intensity \[a\.u\.\]:\s+(\S+)",
        text,
    )
    if block is None:
        return None
    direction = np.array([float(v) for v in block.groups()[:3]])
    x, y, z = float(block[4]) * direction / np.linalg.norm(direction)
    return float(x), float(y), float(z)


def _dipole(text: str) -> tuple[float, float, float] | None:
    """Return the last dipole moment printed [e a0]; DFT prints Debye, tight binding also atomic units."""
    found = re.findall(r"Dipole moment \[Debye\]\s+X=\s*(\S+)\s+Y=\s*(\S+)\s+Z=\s*(\S+)", text)
    unit = DEBYE / BOHR
    if not found:
        found = re.findall(r"TB_DIPOLE\| Moment \[a\.u\.\]\s+(\S+)\s+(\S+)\s+(\S+)", text)
        unit = 1.0
    if not found:
        return None
    try:
        x, y, z = (float(v) * unit for v in found[-1])
    except ValueError:  # asterisks: the number did not fit its columns
        return None
    return x, y, z


def _gap(text: str) -> float | None:
    gaps = [float(v) for v in re.findall(r"HOMO - LUMO gap \[eV\]\s*:\s*(-?[\d.]+)", text)]
    return min(gaps, default=None)


def _polarizability(text: str) -> tuple[tuple[float, float, float], ...] | None:
    """Return the symmetric part of the tensor printed in atomic units; None if a response did not converge."""
    found = re.search(
        r"POLAR\| Polarizability tensor \[a\.u\.\]\s+POLAR\| xx,yy,zz\s+(\S+)\s+(\S+)\s+(\S+)"
        r"\s+POLAR\| xy,xz,yz\s+(\S+)\s+(\S+)\s+(\S+)\s+POLAR\| yx,zx,zy\s+(\S+)\s+(\S+)\s+(\S+)",
        text,
    )
    if found is None or "linear solver didn't converge" in text:
        return None
    try:
        xx, yy, zz, xy, xz, yz, yx, zx, zy = (float(v) for v in found.groups())
    except ValueError:
        return None
    xy, xz, yz = (xy + yx) / 2, (xz + zx) / 2, (yz + zy) / 2
    return (xx, xy, xz), (xy, yy, yz), (xz, yz, zz)


def killer(text: str) -> str:
    """Return "walltime" or "memory" if the text says that a process was ended for it, else ""."""
    if _OUT_OF_TIME.search(text):
        return "walltime"
    return "memory" if _OUT_OF_MEMORY.search(text) else ""


def _cause(text: str, aborted: str | None, is_finished: bool, converged: bool | None) -> str:
    """Return why a run did not end well: a key of CAUSES, "" if it did."""
    if is_finished and converged is not False:
        return ""
    if killed_by := killer(text):  # out of time CP2K ends in good order, with an SCF that it left unfinished
        return killed_by
    if aborted is not None:
        # from 2024 on an SCF that does not converge is an error unless IGNORE_CONVERGENCE_FAILURE is set
        return "scf" if re.search(r"SCF run NOT converged", aborted) else "aborted"
    return "scf" if is_finished else "truncated"


def read_run(text: str) -> Cp2kRun:
    """Read CP2K's standard output; also of runs that were cut off or aborted.

    CP2K appends to the file given with ``-o``: where a run was repeated in its directory, the last one counts.
    """
    text = text[max(text.rfind("PROGRAM STARTED AT"), 0) :]
    lines = text.splitlines()
    abort = next((i for i, line in enumerate(lines) if "[ABORT]" in line), None)
    warnings = []
    for index, line in enumerate(lines):
        if "*** WARNING in" in line:
            body = [line]
            for following in lines[index + 1 :]:
                if not following.strip().startswith("***"):
                    break
                body.append(following)
            warnings.append(" ".join(b.strip().strip("*").strip() for b in body))
    converged, n_steps = _scf_outcome(text)
    energy = _last(r"^\s*ENERGY\|\s+Total FORCE_EVAL[^\n]*?energy \[?\(?[a-z.]+\)?\]?:?\s+(\S+)\s*$", text)
    walltime = _last(r"^\s*CP2K\s+1\s+1\.0(?:\s+\S+){3}\s+(\S+)\s*$", text)
    n_atoms = _last(r"- Atoms:\s+(\d+)\s*$", text)
    aborted = None if abort is None else _boxed(lines, abort)
    is_finished = "PROGRAM ENDED AT" in text and abort is None
    return Cp2kRun(
        version=_last(r"CP2K\| version string:\s+CP2K version (\S+)", text),
        is_finished=is_finished,
        scf_converged=converged,
        n_scf_steps=n_steps,
        energy=None if energy is None else float(energy),
        field=_echoed_field(text),
        n_atoms=None if n_atoms is None else int(n_atoms),
        aborted=aborted,
        walltime=None if walltime is None else float(walltime),
        warnings=tuple(warnings),
        dipole=_dipole(text),
        gap=_gap(text),
        polarizability=_polarizability(text),
        cause=_cause(text, aborted, is_finished, converged),
    )


def read_polarizability(text: str) -> Array:
    """Read the polarizability of a run that :func:`mimyria_wf.cp2k_input.render_polarizability` asked for.

    Args:
        text: CP2K's standard output.

    Returns:
        (3, 3) symmetric tensor [e^2 a0^2/E_h].

    Raises:
        EngineError: the run failed, or a response did not converge.
    """
    run = read_run(text)
    if run.cause:
        detail = f": {run.aborted}" if run.aborted else ""
        raise EngineError(f"no polarizability, {CAUSES[run.cause]}{detail}")
    if run.polarizability is None:
        raise EngineError(
            "no polarizability: CP2K's linear solver did not converge, or PROPERTIES/LINRES/POLAR was not asked for"
        )
    return np.array(run.polarizability)


def _reader(source: "str | Path | Mapping[str, str]") -> Callable[[str], str | None]:
    if isinstance(source, Mapping):
        return source.get

    def read(name: str) -> str | None:
        path = Path(source) / name
        return path.read_text(errors="replace") if path.is_file() else None

    return read


def read_field_runs(
    source: "str | Path | Mapping[str, str]",
    vectors: Mapping[str, ArrayLike],
    project_of: Callable[[str], str] = point_project,
) -> dict[str, Cp2kRun | None]:
    """Return what became of each run of a field set: point name -> run, None where there is no output."""
    read = _reader(source)
    outputs = {name: read(f"{project}.out") for name, project in field_projects(vectors, project_of).items()}
    return {name: None if text is None else read_run(text) for name, text in outputs.items()}


@dataclass(frozen=True)
class Cp2kFieldResults:
    """What CP2K left of one snapshot in its fields.

    Attributes:
        forces: (n_points, n_atoms, 3) [E_h/a0], NaN where a point is not usable.
        problems: one line a point, "" where it is sound.
        causes: key of CAUSES a point, "" where it is sound.
        dipoles: (n_points, 3) [e a0], NaN where unknown; about the origin of the snapshot's coordinates.
        dipole_quanta: (3, 3) rows that a periodic dipole is undetermined by [e a0]; None for clusters.
        gap: HOMO-LUMO gap without field [eV].
        versions: CP2K's version a point, "" where unknown.
        seconds: wall time of all runs, the zero-field run included.
    """

    forces: Array
    problems: tuple[str, ...]
    causes: tuple[str, ...]
    dipoles: Array
    dipole_quanta: Array | None
    gap: float | None
    versions: tuple[str, ...]
    seconds: float

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(n_points,) whether a point is sound."""
        return np.array([not problem for problem in self.problems], dtype=bool)

    @property
    def version(self) -> str:
        """The version of the runs; of several, all."""
        return ", ".join(sorted({version for version in self.versions if version}))


def read_field_results(
    source: "str | Path | Mapping[str, str]",
    vectors: Mapping[str, ArrayLike],
    atoms: Atoms,
    project_of: Callable[[str], str] = point_project,
    killed_by: str = "",
) -> Cp2kFieldResults:
    """Read forces and dipoles of one snapshot in all its fields and check each point.

    The inverse of :func:`mimyria_wf.cp2k_input.render_field_set`.

    Args:
        source: directory, or file name -> text, with ``PROJECT.out`` and ``PROJECT-frc.dat`` of each point. Clusters
            need ``PROJECT.inp`` too: CP2K does not echo &EFIELD.
        vectors: point name -> (3,) field [E_h/(e a0)].
        atoms: the snapshot.
        project_of: as in ``render_field_set``.
        killed_by: "walltime" or "memory" where a scheduler says so: why runs are cut off or not there.
    """
    read = _reader(source)
    projects = field_projects(vectors, project_of)
    outputs = {name: read(f"{project}.out") for name, project in projects.items()}
    runs = {name: None if text is None else read_run(text) for name, text in outputs.items()}
    points = [_read_point(read, projects[n], runs[n], np.asarray(v, dtype=float)) for n, v in vectors.items()]
    forces, dipoles = np.full((len(points), len(atoms), 3), np.nan), np.full((len(points), 3), np.nan)
    problems, causes, versions = [], [], []
    is_periodic = bool(atoms.pbc.all())
    charge = float(atoms.info.get("charge", 0))
    # CP2K's centre of mass is that of its own, natural masses, whatever isotopes the snapshot has
    masses = atomic_masses[atoms.numbers]
    about = np.zeros(3) if is_periodic or not charge else charge * masses @ atoms.positions / (masses.sum() * BOHR)
    for row, (name, point) in enumerate(zip(vectors, points, strict=True)):
        run = runs[name]
        table, cause, problem = point
        if table is not None and len(table) != len(atoms):
            cause, problem = "forces", f"{len(table)} atoms in the forces, expected {len(atoms)}"
        elif table is not None:
            forces[row] = table
            if run is not None and run.dipole is not None:
                dipoles[row] = np.array(run.dipole) + about
        if killed_by and cause in ("truncated", "missing"):
            problem, cause = f"{problem}; the scheduler says: {CAUSES[killed_by]}", killed_by
        problems.append(f"field point {name} ({projects[name]}): {problem}" if problem else "")
        causes.append(cause)
        versions.append("" if run is None else run.version or "")
    zero = runs[ZERO_FIELD]
    return Cp2kFieldResults(
        forces=forces,
        problems=tuple(problems),
        causes=tuple(causes),
        dipoles=dipoles,
        dipole_quanta=atoms.cell.array / BOHR if is_periodic else None,
        gap=None if zero is None or zero.cause else zero.gap,
        versions=tuple(versions),
        seconds=sum(run.walltime or 0.0 for run in runs.values() if run is not None),
    )


def read_field_set(
    source: "str | Path | Mapping[str, str]",
    vectors: Mapping[str, ArrayLike],
    project_of: Callable[[str], str] = point_project,
    n_atoms: int | None = None,
) -> tuple[Array, list[str]]:
    """Read only the forces of one snapshot in all its fields.

    Args:
        source: as in :func:`read_field_results`.
        vectors: likewise.
        project_of: likewise.
        n_atoms: expected number of atoms; default that of the first readable point.

    Returns:
        forces (n_points, n_atoms, 3) [E_h/a0] in the order of ``vectors``, NaN where a point is not usable; problems,
        one line per point, empty where the point is sound.
    """
    read = _reader(source)
    projects = field_projects(vectors, project_of)
    if n_atoms is None:
        tables = [read(forces_file(project)) for project in projects.values()]
        n_atoms = next((len(forces) for forces in map(_forces_or_none, tables) if forces is not None), 0)
    results = read_field_results(source, vectors, Atoms("X" * n_atoms), project_of)
    return results.forces, list(results.problems)


def _forces_or_none(table: str | None) -> Array | None:
    try:
        return None if table is None else read_forces(table)
    except EngineError:
        return None


def _read_point(
    read: Callable[[str], str | None], project: str, run: Cp2kRun | None, vector: Array
) -> tuple[Array | None, str, str]:
    """Return forces of a sound point, or None, the cause and what is wrong with it."""
    if run is None:
        return None, "missing", f"no {project}.out: the point was not run"
    steps = "" if run.n_scf_steps is None else f" after {run.n_scf_steps} steps"
    messages = {
        "walltime": "CP2K stopped because its time was over; give it more time, or fewer points to a job",
        "memory": "CP2K ran out of memory; give it more, or fewer processes to a node",
        "aborted": f"CP2K aborted: {run.aborted}",
        "scf": f"SCF did not converge{steps}; raise MAX_SCF or OUTER_SCF/MAX_SCF",
        "truncated": "CP2K did not finish (time limit, memory or a crash); run the point again",
    }
    if run.cause:
        return None, run.cause, messages[run.cause]
    if run.scf_converged is None:
        return None, "scf", "CP2K's output says nothing of an SCF"
    table = read(forces_file(project))
    if table is None:
        return None, "forces", f"no {forces_file(project)}"
    field = run.field if run.field is not None else _field_of_input(read(f"{project}.inp"))
    echoed = np.zeros(3) if field is None else np.array(field)
    # The echo has seven digits of the length and of each direction cosine.
    if not np.allclose(echoed, vector, rtol=0, atol=1e-6 * max(np.linalg.norm(vector), np.linalg.norm(echoed))):
        return None, "field", f"ran in the field {echoed.tolist()}, expected {vector.tolist()} [E_h/(e a0)]"
    try:
        forces = read_forces(table)
    except EngineError as error:
        return None, "forces", str(error)
    if run.n_atoms is not None and len(forces) != run.n_atoms:
        return None, "forces", f"{len(forces)} atoms in {forces_file(project)}, {run.n_atoms} in {project}.out"
    return forces, "", ""


def _field_of_input(text: str | None) -> tuple[float, float, float] | None:
    """Return the field of a cluster's input: INTENSITY times POLARISATION, as &EFIELD takes it."""
    if text is None:
        return None
    try:
        section = parse_input(text).section("FORCE_EVAL/DFT/EFIELD")
    except CampaignError:
        return None
    if section is None:
        return None
    length = float(section.keyword("INTENSITY") or 0)
    x, y, z = (length * float(v) for v in (section.keyword("POLARISATION") or "0 0 1").split())
    return x, y, z


@dataclass(frozen=True)
class MdEnergies:
    """Columns of CP2K's ``PROJECT-1.ener``, one value a printed step.

    Attributes:
        step: step number.
        time: [fs].
        kinetic_energy: [eV].
        temperature: [K], with CP2K's own count of degrees of freedom.
        potential_energy: [eV].
        conserved: conserved quantity [eV].
    """

    step: NDArray[np.int64]
    time: Array
    kinetic_energy: Array
    temperature: Array
    potential_energy: Array
    conserved: Array


def read_energies(text: str) -> MdEnergies:
    """Read CP2K's ``PROJECT-1.ener``; a last line that is cut off is dropped.

    Raises:
        EngineError: no steps, values that are not finite, or steps that go back (two runs in one file).
    """
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if rows and len(rows[-1]) < 7:
        rows.pop()
    try:
        table = np.array([[float(v) for v in row[:6]] for row in rows])
    except ValueError as error:
        raise EngineError(f"CP2K energies: {error}") from None
    if table.size == 0:
        raise EngineError("CP2K energies: no steps; the run stopped before its first step")
    if table.ndim != 2 or not np.isfinite(table).all():
        raise EngineError(
            "CP2K energies hold NaN or infinity: the run exploded; shorten the time step or check the start"
        )
    if (np.diff(table[:, 0]) <= 0).any():
        raise EngineError("CP2K energies: step numbers go back; the file holds more than one run")
    return MdEnergies(
        step=table[:, 0].astype(np.int64),
        time=table[:, 1],
        kinetic_energy=table[:, 2] * HARTREE,
        temperature=table[:, 3],
        potential_energy=table[:, 4] * HARTREE,
        conserved=table[:, 5] * HARTREE,
    )


__all__ = [
    "CAUSES",
    "ZERO_FIELD",
    "Cp2kFieldResults",
    "Cp2kRun",
    "MdEnergies",
    "killer",
    "read_energies",
    "read_field_results",
    "read_field_runs",
    "read_field_set",
    "read_forces",
    "read_polarizability",
    "read_run",
]
