"""Forces in homogeneous fields from a CP2K executable."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np

from mimyria_wf.cp2k_input import (
    check_label_template,
    field_projects,
    parse_template,
    render_field_point,
    render_field_set,
    render_polarizability,
    varied_template,
    wavefunction_file,
    write_input,
)
from mimyria_wf.cp2k_output import read_field_results, read_polarizability, read_run
from mimyria_wf.errors import CampaignError, EngineError
from mimyria_wf.field_engine import FieldResults
from mimyria_wf.program_engine import (
    PROGRAM_SETTINGS,
    ZERO_FIELD,
    ProgramEngine,
    ProgramRun,
    check_settings,
    file_name,
    file_text,
)
from mimyria_wf.response import Array
from mimyria_wf.wavefunction_extrapolation import are_neighbours, start_from_guess, start_from_neighbour


class Cp2kEngine(ProgramEngine):
    """CP2K, all field points of a snapshot in one folder, each from a guess made of those before it.

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
        self._last: tuple[ase.Atoms, bytes] | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], files: Mapping[str, Path]) -> Cp2kEngine:
        """Return the engine; ``files`` must hold the template, and what else it names (basis sets, ...)."""
        others = dict(files)
        template = others.pop("template", None)
        if template is None:
            raise EngineError("engine cp2k needs --template FILE: a CP2K input with the &FORCE_EVAL")
        check_settings(cls, settings)
        return cls(file_text(template), files=others, **settings)

    @property
    def version(self) -> str:
        """CP2K's version, by asking it."""
        if self._version is None:
            try:
                done = subprocess.run([*self.command, "--version"], capture_output=True, text=True, timeout=60)
            except (OSError, subprocess.TimeoutExpired) as error:
                reason = error if isinstance(error, OSError) else OSError(0, "no answer")
                raise EngineError(self.not_there(reason)) from None
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
        check_settings(type(self), changes)
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

    def prepare(self, folder: Path, run: ProgramRun, atoms: ase.Atoms) -> None:
        """Let a field point start from a guess made of those before it, the first point from a similar snapshot's."""
        target = folder / run.arguments[-1]
        earlier = sorted(set(folder.glob("*.inp")) - {target}, key=lambda path: path.stat().st_mtime_ns)
        if earlier:
            start_from_guess(target, earlier)
        elif self._last is not None and are_neighbours(self._last[0], atoms):
            start_from_neighbour(target, self._last[1])

    def is_worth_repeating(self, folder: Path, run: ProgramRun) -> bool:
        """Repeat a point that did not converge from a guess, without the guess.

        A guess whose gradient is near EPS_SCF leaves OT steps that lower the energy by less than its last digit: the
        line search cannot judge them and stays where it is.
        """
        is_guessed = (folder / run.arguments[-1]).read_text() != run.files[run.arguments[-1]]
        return is_guessed and read_run((folder / run.output).read_text(errors="replace")).scf_converged is False

    def executed(
        self, runs: Sequence[ProgramRun], atoms: ase.Atoms, vectors: Mapping[str, Array]
    ) -> tuple[Path, dict[str, str]]:
        """Run everything; the zero-field wavefunction is kept for the next snapshot."""
        folder, failures = super().executed(runs, atoms, vectors)
        wavefunction = folder / wavefunction_file(file_name(ZERO_FIELD))
        if not failures and wavefunction.is_file():
            self._last = atoms.copy(), wavefunction.read_bytes()
        return folder, failures

    def trouble(self, folder: Path, run: ProgramRun, atoms: ase.Atoms, vectors: Mapping[str, Array]) -> str:
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

    def identity(self) -> list[list[Any]]:
        """Return what tells one installation from another: the version, too, for it may sit in a shared library."""
        return [*super().identity(), [self.version]]

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
        kept = None if self.results is None else self.results / f"{self.name}-{self.key(runs)}.npy"
        if kept is not None and kept.is_file():
            return np.asarray(np.load(kept))
        folder, failures = self.executed(runs, atoms, {ZERO_FIELD: np.zeros(3)})
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
