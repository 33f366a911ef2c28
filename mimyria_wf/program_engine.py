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

from mimyria_wf.errors import EngineError
from mimyria_wf.field_engine import FieldEngine, FieldResults
from mimyria_wf.finite_field import point_name
from mimyria_wf.response import Array

ZERO_FIELD = "0"
"""Name of the point without a field, from which all others start."""

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

    def trouble(self, folder: Path, run: ProgramRun, atoms: ase.Atoms, vectors: Mapping[str, Array]) -> str:
        """Return why runs that need this one should not start, "" if they may."""
        return ""

    def prepare(self, folder: Path, run: ProgramRun, atoms: ase.Atoms) -> None:
        """Change the files of a run that is about to start, in ways that do not change its results."""
        return

    def is_worth_repeating(self, folder: Path, run: ProgramRun) -> bool:
        """Say whether a run that just ended should be done once more, from its files as :meth:`runs` gave them."""
        return False

    def field_results(self, atoms: ase.Atoms, vectors: Array) -> FieldResults:
        """Run the program for one snapshot in every field, see :meth:`FieldEngine.field_results`."""
        began = time.perf_counter()
        vectors = np.asarray(vectors, dtype=float).reshape(-1, 3)
        named = named_points(vectors)
        runs = self.runs(atoms, named)
        kept = None if self.results is None else self.results / f"{self.name}-{self.key(runs)}.npz"
        if kept is not None and kept.is_file():
            return _loaded(kept)
        folder, failures = self.executed(runs, atoms, named)
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

    def executed(
        self, runs: Sequence[ProgramRun], atoms: ase.Atoms, vectors: Mapping[str, Array]
    ) -> tuple[Path, dict[str, str]]:
        """Run everything in a new folder; return it, and by name why runs failed or were not even started."""
        if self.scratch is not None:
            self.scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"mimyria-{self.name}-", dir=self.scratch))
        failures: dict[str, str] = {}
        in_the_way: dict[str, str] = {}
        for run in runs:
            if run.needs in in_the_way:
                first = "the point without field" if run.needs == ZERO_FIELD else run.needs
                failures[run.name] = in_the_way[run.name] = f"not run, because of {first}: {in_the_way[run.needs]}"
                continue
            self._write(folder, run)
            self.prepare(folder / run.folder, run, atoms)
            reason = self._execute(folder, run)
            if self.is_worth_repeating(folder / run.folder, run):
                self._write(folder, run)
                reason = self._execute(folder, run)
            if reason:
                failures[run.name] = reason
            reason = reason or self.trouble(folder / run.folder, run, atoms, vectors)
            if reason:
                in_the_way[run.name] = reason
        return folder, failures

    @staticmethod
    def _write(folder: Path, run: ProgramRun) -> None:
        """Put the files of a run where it will run."""
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

    def _execute(self, folder: Path, run: ProgramRun) -> str:
        """Run the program once; return why it did not end by itself with status 0, "" if it did."""
        where = folder / run.folder
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
                raise EngineError(self.not_there(error)) from None
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

    def not_there(self, error: OSError) -> str:
        """Return the line about a program that cannot be started."""
        return f"engine {self.name}: {self.command[0]} cannot be run ({error.strerror}): give --command"

    def identity(self) -> list[list[Any]]:
        """Return what tells one installation from another before it runs: files in the command, size and time."""
        found = [shutil.which(word) for word in self.command]
        files = [Path(word).resolve() for word in found if word is not None]
        return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]

    def key(self, runs: Sequence[ProgramRun]) -> str:
        """Return what decides the results of these runs, as one hash."""
        record: list[Any] = [
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
        record.append(self.identity())
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


def check_settings(engine: type[FieldEngine], settings: Mapping[str, Any]) -> None:
    """Refuse settings that an engine does not know, and name those that it does."""
    unknown = sorted(set(settings) - set(engine.settings))
    if unknown:
        known = ", ".join(engine.settings)
        raise EngineError(f"engine {engine.name} does not know the setting {', '.join(unknown)} (known: {known})")


def file_text(path: Path) -> str:
    """Return the text of a file; EngineError if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise EngineError(f"{path} cannot be read: {reason}") from None
