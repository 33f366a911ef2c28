"""Read what CP2K leaves behind: forces, what became of a run, a whole field set, energies of an MD run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mimyria_wf.cp2k_input import ZERO_FIELD, field_projects, forces_file, parse_input, point_project
from mimyria_wf.errors import CampaignError, EngineError
from mimyria_wf.units import HARTREE

Array = NDArray[np.float64]

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
    return Cp2kRun(
        version=_last(r"CP2K\| version string:\s+CP2K version (\S+)", text),
        is_finished="PROGRAM ENDED AT" in text and abort is None,
        scf_converged=converged,
        n_scf_steps=n_steps,
        energy=None if energy is None else float(energy),
        field=_echoed_field(text),
        n_atoms=None if n_atoms is None else int(n_atoms),
        aborted=None if abort is None else _boxed(lines, abort),
        walltime=None if walltime is None else float(walltime),
        warnings=tuple(warnings),
    )


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


def read_field_set(
    source: "str | Path | Mapping[str, str]",
    vectors: Mapping[str, ArrayLike],
    project_of: Callable[[str], str] = point_project,
    n_atoms: int | None = None,
) -> tuple[Array, list[str]]:
    """Read the forces of one snapshot in all its fields and check each point; the inverse of ``render_field_set``.

    Args:
        source: directory, or file name -> text, with ``PROJECT.out`` and ``PROJECT-frc.dat`` of each point. Clusters
            need ``PROJECT.inp`` too: CP2K does not echo &EFIELD.
        vectors: point name -> (3,) field [E_h/(e a0)].
        project_of: as in ``render_field_set``.
        n_atoms: expected number of atoms; default that of the first readable point.

    Returns:
        forces (n_points, n_atoms, 3) [E_h/a0] in the order of ``vectors``, NaN where a point is not usable; problems,
        one line per point, empty where the point is sound.
    """
    read = _reader(source)
    projects = field_projects(vectors, project_of)
    found: list[Array | None] = []
    problems: list[str] = []
    for name, vector in vectors.items():
        forces, problem = _read_point(read, projects[name], np.asarray(vector, dtype=float))
        if forces is not None:
            n_atoms = len(forces) if n_atoms is None else n_atoms
            if len(forces) != n_atoms:
                problem = f"{len(forces)} atoms in the forces, expected {n_atoms}"
                forces = None
        found.append(forces)
        problems.append(f"field point {name} ({projects[name]}): {problem}" if problem else "")
    empty = np.full((n_atoms or 0, 3), np.nan)
    return np.array([empty if f is None else f for f in found]).reshape(len(found), n_atoms or 0, 3), problems


def _read_point(read: Callable[[str], str | None], project: str, vector: Array) -> tuple[Array | None, str]:
    """Return forces of a sound point, or None and what is wrong with it."""
    output, table = read(f"{project}.out"), read(forces_file(project))
    if output is None:
        return None, f"no {project}.out: the point was not run"
    run = read_run(output)
    if run.aborted is not None:
        return None, f"CP2K aborted: {run.aborted}"
    if not run.is_finished:
        return None, "CP2K did not finish (time limit, memory or a crash); run the point again"
    if not run.scf_converged:
        steps = "" if run.n_scf_steps is None else f" after {run.n_scf_steps} steps"
        return None, f"SCF did not converge{steps}; raise MAX_SCF or OUTER_SCF/MAX_SCF"
    if table is None:
        return None, f"no {forces_file(project)}"
    field = run.field if run.field is not None else _field_of_input(read(f"{project}.inp"))
    echoed = np.zeros(3) if field is None else np.array(field)
    # The echo has seven digits of the length and of each direction cosine.
    if not np.allclose(echoed, vector, rtol=0, atol=1e-6 * max(np.linalg.norm(vector), np.linalg.norm(echoed))):
        return None, f"ran in the field {echoed.tolist()}, expected {vector.tolist()} [E_h/(e a0)]"
    try:
        forces = read_forces(table)
    except EngineError as error:
        return None, str(error)
    if run.n_atoms is not None and len(forces) != run.n_atoms:
        return None, f"{len(forces)} atoms in {forces_file(project)}, {run.n_atoms} in {project}.out"
    return forces, ""


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
    "ZERO_FIELD",
    "Cp2kRun",
    "MdEnergies",
    "read_energies",
    "read_field_runs",
    "read_field_set",
    "read_forces",
    "read_run",
]
