"""Engines that run a program: point by point in a scratch folder, zero field first, one line for what fails."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase
import numpy as np

from mimyria_wf.cp2k_input import (
    ZERO_FIELD,
    check_label_template,
    field_projects,
    parse_template,
    render_field_point,
    render_field_set,
    render_polarizability,
    varied_template,
    write_input,
)
from mimyria_wf.cp2k_output import read_field_results, read_polarizability, read_run
from mimyria_wf.errors import CampaignError, EngineError
from mimyria_wf.field_engine import FieldEngine, FieldResults
from mimyria_wf.finite_field import point_name
from mimyria_wf.response import Array

PROGRAM_SETTINGS = {
    "command": "how to call the program, e.g. 'mpirun -np 4 cp2k.psmp'",
    "timeout_s": "longest a single run may take (3600)",
    "threads": "OMP_NUM_THREADS of the program (1)",
    "scratch": "folder in which it runs (the system's temporary folder)",
    "results": "folder that keeps every sound field set, so that none is computed twice (none)",
}


@dataclass(frozen=True)
class ProgramRun:
    """One call of a program.

    Attributes:
        name: what ``needs`` of other runs and messages call it.
        folder: where it runs, relative to the snapshot's scratch folder.
        files: name -> text to write, or path of a file to copy.
        arguments: of the command.
        output: file that takes standard output and error.
        needs: name of the run that must have gone well before; None for the first.
        takes: (path of an earlier run's file in the scratch folder, name here), copied if it is there.
    """

    name: str
    folder: str = "."
    files: Mapping[str, str | Path] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    output: str = "output"
    needs: str | None = None
    takes: tuple[tuple[str, str], ...] = ()


class ProgramEngine(FieldEngine):
    """Base of engines that run an executable; a subclass renders the runs of a field set and reads what they leave.

    A folder in which something failed is kept, and the problem names it.

    Args:
        command: program and its arguments, as a shell line without pipes.
        timeout_s: of a single run [s].
        threads: OMP_NUM_THREADS.
        scratch: folder for the runs; None: the system's temporary folder.
        results: folder that keeps sound results by the text of their inputs; None: nothing is kept.
    """

    settings = PROGRAM_SETTINGS

    def __init__(
        self,
        command: str,
        *,
        timeout_s: float = 3600.0,
        threads: int = 1,
        scratch: str | Path | None = None,
        results: str | Path | None = None,
    ) -> None:
        try:
            self.command = tuple(shlex.split(command))
        except ValueError as error:
            raise EngineError(f"engine {self.name}: command {command!r} is no shell line: {error}") from None
        if not self.command:
            raise EngineError(f"engine {self.name} needs a command, e.g. --command '{self.name}'")
        if not timeout_s > 0 or threads < 1:
            raise EngineError(
                f"engine {self.name}: timeout_s and threads must be positive, got {timeout_s} and {threads}"
            )
        self.timeout_s = float(timeout_s)
        self.threads = int(threads)
        self.scratch = None if scratch is None else Path(scratch)
        self.results = None if results is None else Path(results)

    @abstractmethod
    def runs(self, atoms: ase.Atoms, vectors: Mapping[str, Array]) -> list[ProgramRun]:
        """Return the runs of one snapshot in the order to run them, the one without field first.

        Args:
            atoms: the snapshot.
            vectors: name of a point -> (3,) field [E_h/(e a0)]; the zero field, if asked for, is named "0".
        """

    @abstractmethod
    def read(self, folder: Path, atoms: ase.Atoms, vectors: Mapping[str, Array]) -> FieldResults:
        """Read what the runs of one snapshot have left; problems without the names of their points."""

    def trouble(self, folder: Path, run: ProgramRun) -> str:
        """Return why runs that need this one should not start, "" if it went well."""
        return ""

    def field_results(self, atoms: ase.Atoms, vectors: Array) -> FieldResults:
        """Run the program for one snapshot in every field, see :meth:`FieldEngine.field_results`."""
        began = time.perf_counter()
        vectors = np.asarray(vectors, dtype=float).reshape(-1, 3)
        named = named_points(vectors)
        runs = self.runs(atoms, named)
        kept = None if self.results is None else self.results / f"{self.name}-{self._key(runs)}.npz"
        if kept is not None and kept.is_file():
            return _loaded(kept)
        folder, failures = self._executed(runs)
        results = self.read(folder, atoms, named)
        problems = [failures.get(name) or problem for name, problem in zip(named, results.problems, strict=True)]
        problems = [f"{problem} (files kept in {folder})" if problem else "" for problem in problems]
        results = FieldResults(
            field_vectors=vectors,
            forces=results.forces,
            version=results.version,
            problems=tuple(problems),
            dipoles=results.dipoles,
            dipole_quanta=results.dipole_quanta,
            gap=results.gap,
            gaps=results.gaps,
            seconds=time.perf_counter() - began,
        )
        if results.valid.all():
            shutil.rmtree(folder)
            if kept is not None:
                _save(kept, results)
        return results

    def _executed(self, runs: Sequence[ProgramRun]) -> tuple[Path, dict[str, str]]:
        """Run everything in a new folder; return it, and by name why runs failed."""
        if self.scratch is not None:
            self.scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"mimyria-{self.name}-", dir=self.scratch))
        failures: dict[str, str] = {}
        for run in runs:
            if run.needs in failures:
                first = "the point without field" if run.needs == ZERO_FIELD else run.needs
                failures[run.name] = f"not run, because {first} failed: {failures[run.needs]}"
                continue
            reason = self._execute(folder, run) or self.trouble(folder / run.folder, run)
            if reason:
                failures[run.name] = reason
        return folder, failures

    def _execute(self, folder: Path, run: ProgramRun) -> str:
        """Run the program once; return why it did not end by itself with status 0, "" if it did."""
        where = folder / run.folder
        where.mkdir(parents=True, exist_ok=True)
        for name, content in run.files.items():
            if isinstance(content, Path):
                shutil.copyfile(content, where / name)
            else:
                (where / name).write_text(content)
        for source, name in run.takes:
            if (folder / source).is_file():
                shutil.copyfile(folder / source, where / name)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with (where / run.output).open("wb") as output:
            try:
                # a session of its own, so that a launcher's children end with it
                process = subprocess.Popen(
                    [*self.command, *run.arguments],
                    cwd=where,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                shutil.rmtree(folder, ignore_errors=True)
                raise EngineError(self._not_there(error)) from None
            try:
                status = process.wait(self.timeout_s)
            except subprocess.TimeoutExpired:
                return f"{self.name} was ended after {self.timeout_s:g} s: raise timeout_s or use more cores"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if status < 0:
            return f"{self.name} was ended by signal {-status} (memory?)"
        return self.exit_reason(where, run, status) if status else ""

    def exit_reason(self, folder: Path, run: ProgramRun, status: int) -> str:
        """Return what a non-zero exit status means: the last line of the output."""
        lines = (folder / run.output).read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it left no output")
        return f"{self.name} ended with status {status}: {last}"

    def _not_there(self, error: OSError) -> str:
        return f"engine {self.name}: {self.command[0]} cannot be run ({error.strerror}): give --command"

    def _key(self, runs: Sequence[ProgramRun]) -> str:
        record = [
            [
                list(self.command),
                run.folder,
                run.arguments,
                {
                    n: hashlib.sha256(c.read_bytes()).hexdigest() if isinstance(c, Path) else c
                    for n, c in run.files.items()
                },
            ]
            for run in runs
        ]
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def named_points(vectors: Array) -> dict[str, Array]:
    """Return name -> (3,) vector: "0" for the zero field; a direction that comes with two lengths is numbered."""
    named: dict[str, Array] = {}
    for vector in vectors:
        name = base = point_name(vector)
        count = 1
        while name in named:
            count += 1
            name = f"{base}.{count}"
        named[name] = vector
    return named


def file_name(name: str) -> str:
    """Return what files of a field point are called: "0" -> "zero", "+x-y" -> "pxmy"."""
    if name == ZERO_FIELD:
        return "zero"
    return re.sub(r"[^A-Za-z0-9.]+", "_", name.replace("+", "p").replace("-", "m")).strip("_")


_OPTIONAL = ("dipoles", "dipole_quanta", "gaps")


def _save(path: Path, results: FieldResults) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "field_vectors": results.field_vectors,
        "forces": results.forces,
        "gap": np.array(np.nan if results.gap is None else results.gap),
        "seconds": np.array(results.seconds),
        "version": np.array(results.version),
    }
    for name in _OPTIONAL:
        if getattr(results, name) is not None:
            arrays[name] = getattr(results, name)
    partial = path.with_suffix(".part.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def _loaded(path: Path) -> FieldResults:
    with np.load(path) as found:
        gap = float(found["gap"])
        return FieldResults(
            field_vectors=found["field_vectors"],
            forces=found["forces"],
            version=str(found["version"]),
            **{name: found[name] for name in _OPTIONAL if name in found},
            gap=gap if np.isfinite(gap) else None,
            seconds=float(found["seconds"]),
        )


class Cp2kEngine(ProgramEngine):
    """CP2K, all field points of a snapshot in one folder, each from the zero-field wavefunction.

    Args:
        template: text of a CP2K input with the &FORCE_EVAL, see :func:`mimyria_wf.cp2k_input.check_label_template`.
        command: CP2K and what starts it.
        files: further files that the template names, by name.
        program: see :class:`ProgramEngine`.
    """

    name = "cp2k"
    settings = {**PROGRAM_SETTINGS, "eps_scf": "SCF threshold in place of the template's"}

    def __init__(
        self,
        template: str,
        command: str = "cp2k.psmp",
        *,
        files: Mapping[str, Path] | None = None,
        eps_scf: float | None = None,
        **program: Any,
    ) -> None:
        super().__init__(command, **program)
        try:
            self.template = parse_template(template)
            if eps_scf is not None:
                self.template = varied_template(self.template, float(eps_scf))
        except CampaignError as error:
            raise EngineError(str(error)) from None
        self.files = dict(files or {})
        self._version: str | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], files: Mapping[str, Path]) -> Cp2kEngine:
        """Return the engine; ``files`` must hold the template, and what else it names (basis sets, ...)."""
        others = dict(files)
        template = others.pop("template", None)
        if template is None:
            raise EngineError("engine cp2k needs --template FILE: a CP2K input with the &FORCE_EVAL")
        _check_settings(cls, settings)
        return cls(_text(template), files=others, **settings)

    @property
    def version(self) -> str:
        """CP2K's version, by asking it."""
        if self._version is None:
            try:
                done = subprocess.run([*self.command, "--version"], capture_output=True, text=True, timeout=60)
            except (OSError, subprocess.TimeoutExpired) as error:
                reason = error if isinstance(error, OSError) else OSError(0, "no answer")
                raise EngineError(self._not_there(reason)) from None
            found = re.search(r"CP2K version (\S+)", done.stdout)
            self._version = found[1] if found else "unknown"
        return self._version

    @property
    def level_of_theory(self) -> Mapping[str, Any]:
        """The template as CP2K reads it and the files that it names; the key that AiiDA's label jobs use, too."""
        return {
            "engine": "cp2k",
            "template": hashlib.sha256(write_input(self.template).encode()).hexdigest(),
            "files": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(self.files.items())},
        }

    def check(self, atoms: ase.Atoms, targets: Sequence[str], step: float) -> list[str]:
        """Return warnings about the template; EngineError if it cannot give these tensors of this structure."""
        try:
            return check_label_template(self.template, atoms, targets)
        except CampaignError as error:
            raise EngineError(str(error)) from None

    def varied(self, **changes: Any) -> Cp2kEngine:
        """Return this engine with another ``eps_scf``, or another command, timeout_s, threads, scratch, results."""
        _check_settings(type(self), changes)
        same = {"command": shlex.join(self.command), "timeout_s": self.timeout_s, "threads": self.threads}
        return Cp2kEngine(
            write_input(self.template),
            files=self.files,
            **{**same, "scratch": self.scratch, "results": self.results, **changes},
        )

    def runs(self, atoms: ase.Atoms, vectors: Mapping[str, Array]) -> list[ProgramRun]:
        """Return CP2K's runs."""
        projects = field_projects(vectors, file_name)
        try:
            inputs = render_field_set(self.template, atoms, vectors, file_name)
        except CampaignError as error:
            raise EngineError(str(error)) from None
        return [
            ProgramRun(
                name=name,
                files={f"{project}.inp": inputs[f"{project}.inp"], **(self.files if name == ZERO_FIELD else {})},
                arguments=("-i", f"{project}.inp"),
                output=f"{project}.out",
                needs=None if name == ZERO_FIELD else ZERO_FIELD,
            )
            for name, project in projects.items()
        ]

    def trouble(self, folder: Path, run: ProgramRun) -> str:
        """Return why no field point should start from this run's wavefunction."""
        found = read_run((folder / run.output).read_text(errors="replace"))
        if found.scf_converged is False:
            return "SCF did not converge; raise MAX_SCF or OUTER_SCF/MAX_SCF"
        return "" if found.is_finished else "CP2K did not finish"

    def exit_reason(self, folder: Path, run: ProgramRun, status: int) -> str:
        """Return CP2K's own message."""
        found = read_run((folder / run.output).read_text(errors="replace"))
        if found.aborted is not None:
            return f"CP2K aborted: {found.aborted}"
        return super().exit_reason(folder, run, status)

    def read(self, folder: Path, atoms: ase.Atoms, vectors: Mapping[str, Array]) -> FieldResults:
        """Read CP2K's files."""
        found = read_field_results(folder, vectors, atoms, file_name)
        self._version = found.version or self._version
        return FieldResults(
            field_vectors=np.array(list(vectors.values())),
            forces=found.forces,
            version=found.version or "unknown",
            problems=tuple(re.sub(r"^field point .*? \(\S+\): ", "", problem) for problem in found.problems),
            dipoles=found.dipoles,
            dipole_quanta=found.dipole_quanta,
            gap=found.gap,
        )

    def polarizability(self, atoms: ase.Atoms) -> Array:
        """Return (3, 3) [e^2 a0^2/E_h] by density-functional perturbation theory, which CP2K has."""
        zero, polar = file_name(ZERO_FIELD), "polarizability"
        try:
            inputs = [
                render_field_point(self.template, atoms, None, zero),
                render_polarizability(self.template, atoms, polar, zero),
            ]
        except CampaignError as error:
            raise EngineError(str(error)) from None
        runs = [
            ProgramRun(
                name=project,
                files={f"{project}.inp": text, **(self.files if project == zero else {})},
                arguments=("-i", f"{project}.inp"),
                output=f"{project}.out",
                needs=needs,
            )
            for project, text, needs in zip((zero, polar), inputs, (None, zero))
        ]
        kept = None if self.results is None else self.results / f"{self.name}-{self._key(runs)}.npy"
        if kept is not None and kept.is_file():
            return np.asarray(np.load(kept))
        folder, failures = self._executed(runs)
        try:
            if failures:
                raise EngineError(next(iter(failures.values())))
            found = read_polarizability((folder / f"{polar}.out").read_text(errors="replace"))
        except EngineError as error:
            what = atoms.info.get("snapshot", atoms.get_chemical_formula())
            raise EngineError(f"{self.name}, polarizability of {what}: {error} (files kept in {folder})") from None
        shutil.rmtree(folder)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.save(kept, found)
        return found


def _check_settings(engine: type[FieldEngine], settings: Mapping[str, Any]) -> None:
    unknown = sorted(set(settings) - set(engine.settings))
    if unknown:
        known = ", ".join(engine.settings)
        raise EngineError(f"engine {engine.name} does not know the setting {', '.join(unknown)} (known: {known})")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise EngineError(f"{path} cannot be read: {reason}") from None
