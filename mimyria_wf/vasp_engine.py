"""Forces in homogeneous fields from a VASP executable, by EFIELD_PEAD."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np

from mimyria_wf.errors import CampaignError, EngineError
from mimyria_wf.field_engine import FieldResults
from mimyria_wf.program_engine import PROGRAM_SETTINGS, ZERO_FIELD, ProgramEngine, ProgramRun, check_settings
from mimyria_wf.response import Array
from mimyria_wf.vasp_input import (
    VaspTemplate,
    check_field_against_gap,
    check_vasp_template,
    point_directories,
    render_field_set,
)
from mimyria_wf.vasp_run import read_field_points, read_vasp_run


class VaspEngine(ProgramEngine):
    """VASP, a folder for each field point, each from the zero-field WAVECAR.

    Args:
        incar: tags as a mapping, an INCAR as text, or its path.
        kpoints: three divisions of a mesh centred at Gamma, or a KPOINTS file.
        potentials: folder with ``SYMBOL/POTCAR``, or mapping symbol -> file.
        command: VASP and what starts it.
        eps_scf: EDIFF [eV] in place of the INCAR's.
        program: see :class:`mimyria_wf.program_engine.ProgramEngine`.
    """

    name = "vasp"
    settings = {
        "kpoints": "three divisions of a mesh centred at Gamma, or path of a KPOINTS file (Gamma alone)",
        "potentials": "folder with SYMBOL/POTCAR, or symbol -> path",
        "incar": "tags, if not given as --template INCAR",
        **PROGRAM_SETTINGS,
        "eps_scf": "EDIFF [eV] in place of the INCAR's",
    }

    def __init__(
        self,
        incar: Mapping[str, object] | str | Path,
        kpoints: object = None,
        potentials: Mapping[str, str] | str | Path | None = None,
        command: str = "vasp_std",
        *,
        eps_scf: float | None = None,
        **program: Any,
    ) -> None:
        super().__init__(command, **program)
        try:
            self.template = VaspTemplate.from_settings(incar, kpoints, potentials)
        except CampaignError as error:
            raise EngineError(str(error)) from None
        if eps_scf is not None:
            self.template = self.template.varied(ediff=float(eps_scf))
        self._version = ""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], files: Mapping[str, Path]) -> VaspEngine:
        """Return the engine; the INCAR is the template."""
        check_settings(cls, settings)
        others = dict(files)
        template = others.pop("template", None)
        if others:
            raise EngineError(f"engine vasp takes no file {', '.join(sorted(others))}: give kpoints and potentials")
        if (template is None) == ("incar" not in settings):
            raise EngineError("engine vasp needs its INCAR once: --template FILE, or incar among the settings")
        chosen = dict(settings)
        return cls(chosen.pop("incar", template), **chosen)

    @property
    def version(self) -> str:
        """VASP's version, which it tells with its first run."""
        return self._version or "unknown"

    @property
    def level_of_theory(self) -> Mapping[str, Any]:
        """INCAR, mesh and titles of the potentials."""
        return {"engine": "vasp", "method": "finite-field", **self.template.level_of_theory}

    def check(self, atoms: ase.Atoms, targets: Sequence[str], step: float) -> list[str]:
        """Return warnings about INCAR, mesh and potentials; EngineError if they cannot give these tensors."""
        try:
            return check_vasp_template(self.template, atoms, targets, step=step)
        except CampaignError as error:
            raise EngineError(str(error)) from None

    def varied(self, **changes: Any) -> VaspEngine:
        """Return this engine with another ``eps_scf`` (EDIFF [eV]), or other settings of the program."""
        check_settings(type(self), changes)
        same = {"command": shlex.join(self.command), "timeout_s": self.timeout_s, "threads": self.threads}
        new = VaspEngine({}, **{**same, "scratch": self.scratch, "results": self.results, **_of_program(changes)})
        new.template = self.template
        if "eps_scf" in changes:
            new.template = self.template.varied(ediff=float(changes["eps_scf"]))
        return new

    def runs(self, atoms: ase.Atoms, vectors: Mapping[str, Array]) -> list[ProgramRun]:
        """Return VASP's runs."""
        try:
            inputs = render_field_set(self.template, atoms, vectors)
        except CampaignError as error:
            raise EngineError(str(error)) from None
        return [
            ProgramRun(
                name=name,
                folder=folder,
                files=inputs[folder],
                output="vasp_output",
                needs=None if name == ZERO_FIELD else ZERO_FIELD,
                takes=() if name == ZERO_FIELD else (("zero/WAVECAR", "WAVECAR"),),
            )
            for name, folder in point_directories(list(vectors)).items()
        ]

    def trouble(self, folder: Path, run: ProgramRun, atoms: ase.Atoms, vectors: Mapping[str, Array]) -> str:
        """Return why no field point should follow the run without field: it failed, or its gap is too small."""
        if run.name != ZERO_FIELD:
            return ""
        try:
            found = read_vasp_run(folder)
        except EngineError as error:
            return str(error)
        if found.is_metallic:
            return "metallic: bands are filled in part, so no ground state in a field exists"
        if found.gap is None:
            return ""
        divisions = self.template.kpoints.divisions
        # VASP warns ten times earlier, of data that are sound; beyond the gap itself there is no ground state
        reasons = (check_field_against_gap(atoms.cell.array, divisions, v, found.gap, 1.0) for v in vectors.values())
        return next((reason for reason in reasons if reason), "")

    def read(self, folder: Path, atoms: ase.Atoms, vectors: Mapping[str, Array]) -> FieldResults:
        """Read OUTCAR and vasprun.xml of each point."""
        found = read_field_points(folder, vectors, atoms=atoms)
        self._version = found.version if found.version != "unknown" else self._version
        return FieldResults(
            field_vectors=np.array(list(vectors.values())),
            forces=found.forces,
            version=found.version,
            problems=tuple(line.partition("): ")[2] if line else "" for line in found.problems),
            dipoles=found.dipoles,
            dipole_quanta=found.dipole_quanta,
            gap=found.gap,
        )


def _of_program(changes: Mapping[str, Any]) -> dict[str, Any]:
    own = sorted(set(changes) - set(PROGRAM_SETTINGS) - {"eps_scf"})
    if own:
        raise EngineError(f"engine vasp cannot vary {', '.join(own)}: make another engine")
    return {name: value for name, value in changes.items() if name in PROGRAM_SETTINGS}
