"""All that can be known of a campaign before anything is submitted, without AiiDA.

:func:`check_campaign` reads the files that the campaign names and holds them against each other and against physics:
sampling theorem, parity of the electrons, cutoff against cell, fields against engines. Errors stop a campaign; warnings
name what will run and may disappoint. Both are one line each, with file, line and remedy. The estimate counts steps,
field points, jobs and core hours.
"""

import contextlib
import difflib
import functools
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.geometry import complete_cell

from mimyria_wf.campaign import (
    ENGINES,
    Campaign,
    Labels,
    Step,
    Vasp,
    load_campaign,
    matching_files,
    named_files_of,
    path_from,
)
from mimyria_wf.campaign_file import CampaignFileError, KeyPath, Problem, Source, read_yaml
from mimyria_wf.campaign_messages import suggestion
from mimyria_wf.cp2k_input import Section as Cp2kSection
from mimyria_wf.errors import CampaignError, EngineError, LabelError, MimyriaError, ModelError
from mimyria_wf.frames import TrajectoryReader, kinetic_energies
from mimyria_wf.units import BOLTZMANN_EV, WAVENUMBER

TBLITE_SECONDS_PER_POINT = 2.5e-3
"""One field point of 18 atoms with GFN2-xTB on one core [s]; grows about with the square of the atoms."""
TBLITE_SECONDS_PER_STEP = 2.2e-3
"""One MD step of 18 atoms with GFN2-xTB on one core [s]; grows about with the square of the atoms."""
TBLITE_ATOMS = 18
NNP_SECONDS_PER_ATOM_AND_STEP = 5.7e-4
"""One MD step of CP2K's committee of eight networks on one core [s]; 0.11 s for 64 H2O."""

TBLITE_LARGEST_NUMBER = 86
HYDROGEN_TIMESTEP = 1.0
"""Longest MD step that integrates X-H stretches well [fs]."""
HYDROGEN_STABLE_TIMESTEP = 2.5
"""Verlet integration of a 3700 cm^-1 vibration (period 9 fs) is unstable beyond 9/pi fs = 2.9 fs."""
SPLINE_TIME = 4.0
"""Longest time between predicted tensors that a spline bridges [fs]: 4 fs moved spectra by 1e-3 (IR), 6e-3 (iso)."""
FIELD_STEPS = (1e-5, 1e-2)
"""Field steps outside give noise or higher orders instead of tensors [E_h/(e a0)]."""
USUAL_FIELD_STEPS = (2e-4, 3e-3)
METALS = frozenset({3, 4, 11, 12, 13, *range(19, 32), *range(37, 51), *range(55, 85), *range(87, 119)})
"""Atomic numbers of elements that are metals by themselves and, with few exceptions, together."""
POTENTIAL_DROP = 1.0
"""Largest field step times cell length that passes without a word [eV]; an insulator needs a gap well above it."""
IN_CAMPAIGN = {
    "CP2K template: ": "",
    "CP2K input: ": "",
    "give the time step of stored frames (--timestep-fs)": (
        "write {path: ..., timestep_fs: ...}, the time between stored frames"
    ),
    "timestep=": "timestep_fs: ",
    "read with drop_truncated (convert --drop-truncated)": "write {path: ..., drop_truncated: true}",
    "give cell= [A]": "give system.cell_A",
    " (--measured-units), or write": " by spectra.measured_units, or write",
}
"""What the core's messages call differently than a campaign file does."""
POINTS_PER_JOB = 13
"""Field points that a job of the qualification computes for each snapshot it may hold."""
SET_COST = "labels: with CP2K the field points of one snapshot cost about {} runs without field"
"""13 points: 2.75 cold runs for 8 H2O where wavefunctions are extrapolated from point to point, 4.2 without."""
WHOLE_SCAN = 5e8
"""Trajectories up to this size in all are read whole [bytes]; of larger ones some frames."""


@dataclass(frozen=True)
class Estimate:
    """What a campaign costs at most, if no iteration stops it early.

    Attributes:
        n_atoms: in the system.
        n_md_steps: NVT and all NVE runs.
        n_frames: stored NVE frames of all trajectories.
        n_label_snapshots: snapshots to label: largest training set, test set and reference trajectory.
        points_per_snapshot: 13 with the PGT; 7 for the APT alone, the point without a field included.
        n_label_points: single-point calculations.
        n_qualification_points: those of the qualification before them.
        jobs: number of jobs of each step.
        core_hours: of each step; None where nothing is known before the first job.
        notes: where the numbers come from.
    """

    n_atoms: int = 0
    n_md_steps: int = 0
    n_frames: int = 0
    n_label_snapshots: int = 0
    points_per_snapshot: int = 0
    n_label_points: int = 0
    n_qualification_points: int = 0
    jobs: dict[str, int] = field(default_factory=dict)
    core_hours: dict[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def n_jobs(self) -> int:
        """Jobs in all."""
        return sum(self.jobs.values())

    def lines(self) -> list[str]:
        """Return the estimate as lines of text."""
        text = [
            f"MD: {self.n_md_steps} steps, {self.n_frames} stored frames of {self.n_atoms} atoms",
            f"labels: at most {self.n_label_snapshots} snapshots x {self.points_per_snapshot} field points "
            f"= {self.n_label_points} calculations",
            *([f"qualification: {self.n_qualification_points} calculations"] if self.n_qualification_points else []),
            f"jobs: at most {self.n_jobs} ({', '.join(f'{step} {n}' for step, n in self.jobs.items())})",
        ]
        for step, hours in self.core_hours.items():
            known = "unknown until the first job" if hours is None else f"about {_two_digits(hours)} core hours"
            text.append(f"{step}: {known}")
        return text + list(self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "notes": list(self.notes), "n_jobs": self.n_jobs}


@dataclass(frozen=True)
class CampaignReport:
    """Outcome of :func:`check_campaign`: ``is_valid`` if there is no error."""

    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    estimate: Estimate

    @property
    def is_valid(self) -> bool:
        """Whether the campaign may be submitted."""
        return not self.errors

    def raise_errors(self) -> None:
        """Raise :class:`~mimyria_wf.campaign.CampaignFileError` with all errors, if there are any."""
        if self.errors:
            raise CampaignFileError(self.errors)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "is_valid": self.is_valid,
            "errors": [str(problem) for problem in self.errors],
            "warnings": [str(problem) for problem in self.warnings],
            "estimate": self.estimate.to_dict(),
        }


def load_checked(path: Path | str) -> Campaign:
    """Read a campaign file; where its schema is wrong, name the missing files in it in the same round.

    Raises:
        CampaignFileError: one line for each mistake.
    """
    try:
        return load_campaign(path)
    except CampaignFileError as error:
        raise CampaignFileError([*error.problems, *_missing_files(Path(path))]) from None


def _missing_files(path: Path) -> list[Problem]:
    """Return the files that do not exist, as far as a file that is no valid campaign says which are meant."""
    try:
        data, lines = read_yaml(path.read_bytes().decode("utf-8"), path.name)
    except (OSError, UnicodeDecodeError, CampaignFileError):
        return []
    source = Source(path.name, path.absolute().parent, lines)
    return [
        _missing_file(source, key_path, value)
        for key_path, value in named_files_of(data)
        if not matching_files(source.directory, value)
    ]


def _missing_file(source: Source, key_path: KeyPath, value: str) -> Problem:
    key_path = key_path[:-1] if key_path[-1] == "path" else key_path
    remedy = _nearest_file(path_from(source.directory, value))
    return source.problem(key_path, f"must name an existing file, {value} does not exist", remedy)


def check_campaign(campaign: Campaign, progress: Callable[[int, int, str], None] | None = None) -> CampaignReport:
    """Check a campaign against its files and against physics, and estimate its cost.

    Args:
        campaign: from :func:`~mimyria_wf.campaign.load_campaign`.
        progress: called with what is being read.
    """
    return _Check(campaign, progress or (lambda done, total, what: None)).report()


@dataclass(frozen=True)
class _Run:
    """What is known of one trajectory, given or to be computed."""

    name: str
    n_frames: int
    timestep: float  # between stored frames [fs]
    key_path: KeyPath


class _Still(TrajectoryReader):
    """A structure as a trajectory of one frame."""

    def __init__(self, atoms: Atoms, name: str):
        self.path = Path(name)
        self.numbers = atoms.numbers
        self.cell, self.pbc = atoms.cell.array, atoms.pbc
        self.masses, self.timestep = atoms.get_masses(), 1.0
        self.name, self.n_frames, self.has_velocities = name, 1, False
        self.metadata = {}
        self.positions = atoms.positions

    def _load(self, frames: range) -> tuple[np.ndarray, None, dict[str, np.ndarray]]:
        return self.positions[None], None, {}


def _without_minima(value: Any) -> Any:
    """Return groups with distances in place of RDF minima, which only trajectories can tell."""
    if isinstance(value, list):
        return [_without_minima(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    plain = {key: _without_minima(entry) for key, entry in value.items()}
    if isinstance(plain.get("minimum"), int):
        del plain["minimum"]
        plain["distance"] = plain.get("from", 0.0) + 1.0
    return plain


def _named_in(groups: Any, statement: str) -> KeyPath:
    """Return where in the groups the species, molecule or index stands that a message names; () if nowhere."""
    named = re.search(r"(species|molecule|index) (\w+)", statement)

    def search(value: Any, around: KeyPath) -> KeyPath:
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            here = (*around, key)
            if named is not None and key == named[1]:
                given = entry if isinstance(entry, list | tuple) else [entry]
                if named[2] in map(str, given):
                    return here
            if isinstance(entry, dict | list | tuple) and (found := search(entry, here)):
                return found
        return ()

    return search(groups, ())


class _Check:
    def __init__(self, campaign: Campaign, progress: Callable[[int, int, str], None]):
        self.campaign = campaign
        self.progress = progress
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def report(self) -> CampaignReport:
        """Run every check whose premises hold."""
        self._files()
        atoms = self._atoms()
        runs = self._runs(atoms)
        if atoms is not None and self._is_usable(atoms):
            self._system(atoms)
            self._sampling(atoms)
            self._labels(atoms)
            self._pretraining(atoms)
            self._given_labels(atoms)
            self._models(atoms)
        self._training(atoms)
        self._snapshots(runs)
        self._spectra(atoms, runs)
        self._groups(atoms)
        self._measured()
        self._convergence(runs)
        self._devices()
        self._computers()
        unique = dict.fromkeys
        return CampaignReport(
            tuple(sorted(unique(self.errors), key=lambda p: p.line or 0)),
            tuple(sorted(unique(self.warnings), key=lambda p: p.line or 0)),
            estimate_cost(self.campaign, len(atoms) if atoms is not None else 0, [run.n_frames for run in runs]),
        )

    def error(self, key_path: KeyPath, statement: str, remedy: str) -> None:
        self.errors.append(self.campaign.problem(key_path, statement, remedy))

    def warn(self, key_path: KeyPath, statement: str, remedy: str) -> None:
        self.warnings.append(self.campaign.problem(key_path, statement, remedy))

    @contextlib.contextmanager
    def _reporting(self, key_path: KeyPath, path: Path, remedy: str) -> Iterator[None]:
        """Turn an error of the core about a file into a line of the campaign file."""
        try:
            yield
        except CampaignFileError as error:
            self.errors += error.problems
        except MimyriaError as error:
            text = str(error).replace(f"{path.parent}{os.sep}", "")
            for core, ours in IN_CAMPAIGN.items():
                text = text.replace(core, ours)
            statement, _, own_remedy = text.partition("; ")
            where = "" if path.name in statement else f"{path.name}: "
            self.error(key_path, f"is refused, {where}{statement}", own_remedy or remedy)

    def _files(self) -> None:
        """Every path names a readable file; files that are copied have different names."""
        for key_path, value in self.campaign.named_files():
            path = self.campaign.path(value)
            key_path = key_path[:-1] if key_path[-1] == "path" else key_path
            if not self.campaign.matches(value):
                self.error(key_path, f"must name an existing file, {value} does not exist", _nearest_file(path))
            elif path.is_dir() and "files" not in key_path:
                self.error(key_path, f"must name a file, {value} is a folder", "name the file in it")
        for section, owner in (("sampling", self.campaign.sampling), ("labels", self.campaign.labels)):
            names = [Path(value).name for value in (owner.files if owner is not None else ())]
            for name in sorted({name for name in names if names.count(name) > 1}):
                self.error(
                    (section, "files"), f"must have different file names, {name} is there twice", "rename one of them"
                )

    def _exists(self, value: str | dict[str, Any] | None) -> bool:
        """Say whether a file is there; what stands in the campaign itself is."""
        return isinstance(value, dict) or (
            value is not None and any(path.is_file() for path in self.campaign.matches(value))
        )

    def _atoms(self) -> Atoms | None:
        """Return the start structure, or the first frame of the first trajectory."""
        if self.campaign.sampling is not None:
            if not self._exists(self.campaign.system.structure):
                return None
            try:
                return self.campaign.atoms()
            except CampaignFileError as error:
                self.errors += error.problems
                return None
        for path, entry in self.campaign.trajectory_files():
            try:
                atoms = self.campaign.reader(path, entry).atoms(0)
            except MimyriaError:
                continue  # reported with the trajectory
            atoms.info.update(charge=self.campaign.system.charge, multiplicity=self.campaign.system.multiplicity)
            return atoms
        return None

    def _runs(self, atoms: Atoms | None) -> list[_Run]:
        sampling = self.campaign.sampling
        if sampling is not None:
            key_path: KeyPath = ("sampling", "nve", "length_ps")
            return [
                _Run(f"nve-{i:03d}", sampling.n_nve_frames, sampling.frame_timestep, key_path)
                for i in range(sampling.nve.n_trajectories)
            ]
        return self._given_trajectories(atoms)

    def _given_trajectories(self, atoms: Atoms | None) -> list[_Run]:
        """Open all trajectories, scan them for values that are not finite, compare them with each other."""
        entries = list(self.campaign.trajectories or ())
        files = self.campaign.trajectory_files()
        total_size = sum(path.stat().st_size for path, _ in files)
        runs: list[_Run] = []
        first: TrajectoryReader | None = None
        for i, (path, entry) in enumerate(files):
            self.progress(i, len(files), f"reading {path.name}")
            key_path: KeyPath = ("trajectories", entries.index(entry))
            with self._reporting(key_path, path, "convert the file or leave it out"):
                reader = self.campaign.reader(path, entry)
                reader.require_velocities()
                self._scan(reader, key_path, is_whole=total_size <= WHOLE_SCAN)
                first = first or reader
                self._same_system(first, reader, key_path)
                runs.append(_Run(reader.name, reader.n_frames, reader.timestep, key_path))
        names = [run.name for run in runs]
        for run in runs:
            if names.count(run.name) > 1 and names.index(run.name) == runs.index(run):
                self.warn(
                    run.key_path, f"holds {names.count(run.name)} trajectories called {run.name}", "rename the files"
                )
        if total_size > WHOLE_SCAN and files:
            self.warn(
                ("trajectories",),
                f"hold {total_size / 1e9:.3g} GB, of which 20 frames a file were looked at for NaN",
                "nothing to do: the rest is checked when it is used",
            )
        return runs

    def _scan(self, reader: TrajectoryReader, key_path: KeyPath, is_whole: bool) -> None:
        energies: list[np.ndarray] = []
        if is_whole:
            pieces = (chunk for _, chunk in reader.chunks(max(1, 2_000_000 // max(reader.n_atoms, 1))))
        else:
            frames = sorted({int(k) for k in np.linspace(0, reader.n_frames - 1, 20)})
            pieces = (reader.read(k, k + 1) for k in frames)
        for piece in pieces:
            if piece.velocities is not None:
                energies.append(kinetic_energies(piece.velocities, piece.masses))
        n_free = max(3 * reader.n_atoms - 3, 1)
        temperature = 2 * float(np.concatenate(energies).mean()) / (n_free * BOLTZMANN_EV)
        if temperature == 0:
            self.error(
                key_path, f"must have velocities, those in {reader.path.name} are all zero", "write them in the MD"
            )
        elif not 5 < temperature < 5000:
            self.warn(
                key_path,
                f"has velocities of {temperature:.3g} K in {reader.path.name}",
                "check their unit: vel is in A/fs, CP2K's files in bohr/au_t",
            )
        charge = reader.metadata.get("charge")
        if charge is not None and int(charge) != self.campaign.system.charge:
            self.error(
                ("system", "charge"),
                f"is {self.campaign.system.charge} but {reader.path.name} says {int(charge)}",
                f"write charge: {int(charge)}",
            )

    def _same_system(self, first: TrajectoryReader, reader: TrajectoryReader, key_path: KeyPath) -> None:
        name, other = reader.path.name, first.path.name
        if not np.array_equal(first.numbers, reader.numbers):
            found = Atoms(reader.numbers).get_chemical_formula()
            wanted = Atoms(first.numbers).get_chemical_formula()
            statement = f"must hold one system, {name} has {found}, {other} has {wanted}"
            if found == wanted:
                statement = f"must have one order of atoms, that of {name} differs from that of {other}"
            self.error(key_path, statement, "leave it out, or give it a campaign of its own")
        elif abs(reader.timestep - first.timestep) > 1e-6 * first.timestep:
            self.error(
                key_path,
                f"must have one time between frames, {name} has {reader.timestep:g} fs, {other} {first.timestep:g} fs",
                "thin out the finer one, or check timestep_fs",
            )
        elif (reader.pbc != first.pbc).any() or not np.allclose(reader.cell, first.cell, atol=1e-3):
            self.error(
                key_path,
                f"must have one cell, that of {name} differs from that of {other}",
                "leave it out, or give it a campaign of its own",
            )

    @property
    def _structure_key(self) -> KeyPath:
        return ("system", "structure") if self.campaign.sampling is not None else ("trajectories", 0)

    def _is_usable(self, atoms: Atoms) -> bool:
        """Check what all later checks build on."""
        if not np.isfinite(atoms.positions).all():
            atom = int(np.argwhere(~np.isfinite(atoms.positions))[0][0])
            self.error(
                self._structure_key, f"must have finite positions, those of atom {atom} are not", "correct the file"
            )
            return False
        if atoms.pbc.any() and not atoms.pbc.all():
            self.error(
                ("system", "pbc"),
                f"must be true or false in all directions, got {[bool(x) for x in atoms.pbc]}",
                "take a periodic cell with vacuum for a slab or wire",
            )
            return False
        return True

    def _system(self, atoms: Atoms) -> None:
        """Check distances, density, volume and electrons."""
        system, here = self.campaign.system, self._structure_key
        close = self._closest(atoms)
        if close is not None and close[0] < 0.5:
            distance, i, j = close
            self.error(
                here,
                f"has atoms {i} and {j} at a distance of {distance:.2f} A",
                "remove one of them, or check the length unit (A) and the cell",
            )
        if atoms.pbc.all():
            density = atoms.get_masses().sum() / atoms.get_volume() * 1.66053907
            if not 0.05 < density < 25:
                self.warn(
                    ("system", "cell_A") if system.cell is not None else here,
                    f"gives a density of {density:.3g} g/cm3",
                    "check the cell, in A",
                )
            if system.volume_A3 is not None:
                self.error(("system", "volume_A3"), "is for clusters, but the system is periodic", "remove it")
        elif system.volume_A3 is None and "apt" in self.campaign.targets:
            self.error(
                ("system", "volume_A3"),
                "is missing: a cluster has no volume of its own and n(w) alpha(w) needs one",
                f"add e.g. volume_A3: {10 * len(atoms)}",
            )
        n_electrons = int(atoms.numbers.sum()) - system.charge
        if n_electrons < 1:
            self.error(("system", "charge"), f"leaves {n_electrons} electrons", "check the charge")
        elif n_electrons % 2 == system.multiplicity % 2:
            parity = "odd" if n_electrons % 2 else "even"
            key = "charge" if "charge" in system.model_fields_set else "multiplicity"
            self.error(
                ("system", key),
                f"does not fit: {n_electrons} electrons, an {parity} number, cannot have multiplicity "
                f"{system.multiplicity} at charge {system.charge}",
                "correct charge or multiplicity",
            )

    @staticmethod
    def _closest(atoms: Atoms) -> tuple[float, int, int] | None:
        """Return the shortest distance below 0.5 A and its atoms, images included."""
        from ase.neighborlist import neighbor_list

        i, j, d = neighbor_list("ijd", atoms, 0.5)
        if len(d) == 0:
            return None
        k = int(np.argmin(d))
        return float(d[k]), int(i[k]), int(j[k])

    def _sampling(self, atoms: Atoms) -> None:
        sampling = self.campaign.sampling
        if sampling is None:
            return
        self._timestep(atoms, sampling.timestep, ("sampling", "timestep_fs"))
        if sampling.nve.remove_rotation and atoms.pbc.any():
            self.error(
                ("sampling", "nve", "remove_rotation"),
                "must be false with periodic boundaries, where angular momentum is not conserved",
                "remove it",
            )
        n_free = sampling.n_nvt_steps - sampling.n_nvt_equilibration_steps
        spacing = n_free * sampling.timestep / sampling.nve.n_trajectories
        if spacing < 100:
            self.warn(
                ("sampling", "nvt", "length_ps"),
                f"leaves {spacing:.0f} fs between the starts of the NVE runs, which stay correlated",
                "lengthen the NVT run: 500 fs and more for a liquid",
            )
        if sampling.engine != "cp2k":
            self._calculator(atoms)
        elif self._exists(sampling.template):
            self._md_template(atoms)

    def _timestep(self, atoms: Atoms, timestep: float, key_path: KeyPath) -> None:
        if (atoms.get_masses() < 1.5).any():
            if timestep > HYDROGEN_STABLE_TIMESTEP:
                self.error(
                    key_path,
                    f"must not exceed {HYDROGEN_STABLE_TIMESTEP:g} fs with hydrogen, got {timestep:g}: "
                    "the integration of X-H stretches is unstable",
                    "write 0.5",
                )
            elif timestep > HYDROGEN_TIMESTEP:
                self.warn(
                    key_path,
                    f"is long for hydrogen: {timestep:g} fs shifts X-H stretches by "
                    f"{_verlet_shift(3500, timestep):.0f} cm^-1",
                    "write 0.5",
                )

    def _calculator(self, atoms: Atoms) -> None:
        from mimyria_wf.md import make_calculator

        sampling, system = self.campaign.sampling, self.campaign.system
        assert sampling is not None
        assert sampling.calculator is not None
        here: KeyPath = ("sampling", "calculator")
        arguments = sampling.calculator.arguments
        if "charge" in arguments and arguments["charge"] != system.charge:
            self.error(
                (*here, "arguments", "charge"),
                f"must be that of the system, {system.charge}, got {arguments['charge']}",
                "remove it: the charge comes from system.charge",
            )
            return
        accuracy = arguments.get("accuracy")
        if "tblite" in sampling.calculator.import_path and isinstance(accuracy, int | float) and accuracy > 0.5:
            self.warn(
                (*here, "arguments", "accuracy"), f"of {accuracy:g} lets the energy drift by 1-2 meV/ps", "write 0.2"
            )
        computer, own = self.campaign.computer_for("md"), self.campaign.computers.mimyria
        if not computer.is_local or computer.code != own.code:
            return  # what is installed here says nothing about the environment that runs the MD
        arguments = sampling.arguments(lambda name: str(self.campaign.path(name)))
        try:
            if sampling.engine == "torch-sim":
                from mimyria_wf.torchsim_models import make_model

                if sampling.device != "cpu" and not _has_gpu():
                    return  # reported with the device
                make_model(sampling.calculator.import_path, arguments, sampling.device, sampling.precision)
                return
            calculator = make_calculator(sampling.calculator.import_path, arguments)
        except EngineError as error:
            text = str(error)
            if not text.startswith("calculator "):
                self.error(("sampling", "engine"), f"torch-sim does not work, {text}", "")
                return
            key = "arguments" if "cannot be built" in text else "import"
            statement, _, remedy = text.partition(": ")[2].partition("; ")
            self.error((*here, key), f"does not work, {statement}", remedy or "correct it")
            return
        if sampling.calculator.import_path.startswith("tblite.") and system.charge == 0:
            trial = atoms.copy()
            calculator.parameters["verbosity"] = 0
            trial.calc = calculator
            try:  # one point takes milliseconds and finds an unknown method or a structure that does not converge
                trial.get_forces()
            except Exception as error:  # noqa: BLE001 - whatever the calculator raises is what the user must know
                reason = (str(error).splitlines() or [""])[0] or type(error).__name__
                self.error(here, f"fails on the start structure, {reason}", "correct its arguments or the structure")

    def _md_template(self, atoms: Atoms) -> None:
        from mimyria_wf.cp2k_input import parse_input, render_md

        sampling = self.campaign.sampling
        assert sampling is not None
        assert sampling.template is not None
        key_path: KeyPath = ("sampling", "template")
        path = self.campaign.path(sampling.template)
        with self._reporting(key_path, path, f"correct {path.name}"):
            text = path.read_text(errors="replace")
            parse_input(text, path.name)
            render_md(text, atoms, sampling.nvt_settings(seed=1), "nvt")
            self._placeholders(text, path, key_path)
            self._basis_sets(parse_input(text, path.name), path.name, atoms, key_path)

    def _placeholders(self, text: str, path: Path, key_path: KeyPath) -> None:
        lines = [line.split("#")[0].split("!")[0] for line in text.splitlines()]
        found = next((n for n, line in enumerate(lines, 1) if "/PATH/TO/" in line.upper()), None)
        if found is not None:
            self.warn(
                key_path, f"still has a placeholder in {path.name}, line {found}", "write the path on your computer"
            )

    def _labels(self, atoms: Atoms) -> None:
        labels = self.campaign.labels
        if labels is None or labels.engine is None:
            return
        step_key: KeyPath = ("labels", "field_step_au") if labels.field_step_au else ("labels",)
        step, (low, high) = labels.field_step, FIELD_STEPS
        if not low <= step <= high:
            reason = "rounding drowns the differences" if step < low else "higher orders of the field spoil the tensors"
            self.error(
                step_key,
                f"must be between {low:g} and {high:g} E_h/(e a0), got {step:g}: {reason}",
                "write 5.0e-4 (CP2K) or 1.0e-3 (tblite)",
            )
        elif not USUAL_FIELD_STEPS[0] <= step <= USUAL_FIELD_STEPS[1]:
            self.warn(
                step_key,
                f"of {step:g} E_h/(e a0) is outside {USUAL_FIELD_STEPS[0]:g} to {USUAL_FIELD_STEPS[1]:g}",
                "try a few steps on one snapshot first",
            )
        self._gap(atoms)
        if labels.engine == "tblite":
            self._tblite(atoms)
        elif labels.engine == "cp2k" and self._exists(labels.template):
            self._label_template(atoms)
        elif labels.vasp is not None and self._exists(labels.vasp.incar):
            self._vasp(atoms, labels.vasp)
        elif labels.engine not in ENGINES:
            self._other_engine(atoms, labels)
        self._qualification(atoms, labels)

    def _gap(self, atoms: Atoms) -> None:
        """Hold the field against the gap, as far as that is known: there must be one, and it must be wide enough.

        VASP refuses e|E.a_i| above a tenth of the gap over N_k. Zener tunnelling sets in well below a drop of the gap
        itself, above which there is no bound state at all (Souza, Iniguez, Vanderbilt, PRL 89, 117602 (2002)).
        """
        from mimyria_wf.finite_field import field_vectors
        from mimyria_wf.qualification import potential_drop

        labels = self.campaign.labels
        assert labels is not None
        metals = sorted(set(atoms.symbols))
        if atoms.pbc.all() and not set(atoms.numbers) - METALS:
            self.warn(
                self._structure_key,
                f"holds nothing but {', '.join(metals)}, which looks like a metal: it has no polarization in a field",
                "labels need an insulator; the qualification looks at the gap",
            )
        if not FIELD_STEPS[0] <= labels.field_step <= FIELD_STEPS[1] or labels.engine == "vasp":
            return
        step_key: KeyPath = ("labels", "field_step_au")
        drop = potential_drop(atoms, np.array(list(field_vectors(labels.field_step, self.campaign.targets).values())))
        over = "the cell" if atoms.pbc.all() else "the cluster"
        what = f"of {labels.field_step:g} E_h/(e a0) drops {drop:.2f} eV across {over}"
        if labels.gap_eV is None:
            if atoms.pbc.all() and drop > POTENTIAL_DROP:
                self.warn(step_key, what, "the band gap must be well above it; lower the step otherwise")
        elif drop >= labels.gap_eV:
            self.error(
                step_key,
                f"{what}, more than the gap of {labels.gap_eV:g} eV: electrons would leave their atoms",
                f"write {_round_down(labels.field_step * labels.gap_eV / (10 * drop))} or less",
            )
        elif atoms.pbc.all() and 10 * drop > labels.gap_eV:
            self.warn(
                step_key,
                f"{what}, more than a tenth of the gap of {labels.gap_eV:g} eV",
                f"{_round_down(labels.field_step * labels.gap_eV / (10 * drop))} is safe",
            )

    def _vasp(self, atoms: Atoms, vasp: Vasp) -> None:
        """Hold INCAR, k-points and potentials against the system and the field."""
        from mimyria_wf.vasp_input import VaspTemplate, check_vasp_template

        labels, here = self.campaign.labels, ("labels", "vasp")
        assert labels is not None
        if not atoms.pbc.all():
            self.error(
                ("labels", "engine"), "vasp needs a cell, the system has none", "give system.cell_A with vacuum around"
            )
            return
        for symbol in sorted(set(atoms.symbols) - set(vasp.potentials.mapping)):
            self.error(
                (*here, "potentials", "mapping"),
                f"must name a potential for every element, {symbol} is missing",
                f"add {symbol}: {symbol}",
            )
        path = self.campaign.path(vasp.incar) if isinstance(vasp.incar, str) else Path("INCAR")
        with self._reporting((*here, "incar"), path, "correct it"):
            template = VaspTemplate.from_settings(
                incar=self.campaign.vasp_settings()["incar"],
                kpoints=list(vasp.kpoints.divisions(atoms.cell.array)),
            )
            warnings = check_vasp_template(
                template, atoms, self.campaign.targets, vasp.method, labels.field_step, labels.gap_eV
            )
            for warning in warnings:
                statement, _, remedy = warning.partition("; ")
                self.warn((*here, "incar"), f"in {path.name}: {statement}", remedy)

    def _other_engine(self, atoms: Atoms, labels: Labels) -> None:
        """Ask an engine of another package itself, if it runs in this environment."""
        from mimyria_wf.field_engine import make_engine

        assert labels.engine is not None
        computer, own = self.campaign.computer_for("labels"), self.campaign.computers.mimyria
        if not computer.is_local or computer.code != own.code:
            return
        files = {Path(name).name: self.campaign.path(name) for name in labels.files if self._exists(name)}
        if isinstance(labels.template, str) and self._exists(labels.template):
            files["template"] = self.campaign.path(labels.template)
        with self._reporting(("labels", "settings"), Path(labels.engine), "correct it"):
            engine = make_engine(labels.engine, labels.settings, files)
            for warning in engine.check(atoms, self.campaign.targets, labels.field_step):
                statement, _, remedy = warning.partition("; ")
                self.warn(("labels", "engine"), f"{labels.engine}: {statement}", remedy)

    def _qualification(self, atoms: Atoms, labels: Labels) -> None:
        """Check what is to be screened, and on what."""
        section = self.campaign.qualification
        if not self.campaign.is_qualified or section is None:
            return
        here: KeyPath = ("qualification",)
        for name, limits in (("field_steps_au", FIELD_STEPS), ("thresholds", (1e-14, 1e-3))):
            for value in getattr(section, name):
                if not limits[0] <= value <= limits[1]:
                    self.error(
                        (*here, name),
                        f"must lie between {limits[0]:g} and {limits[1]:g}, got {value:g}",
                        "remove it",
                    )
        if section.thresholds and labels.engine not in ENGINES:
            self.error(
                (*here, "thresholds"), f"cannot be screened with engine: {labels.engine}", "remove them: steps can be"
            )
        tried, key = atoms, self._structure_key
        if section.snapshots is not None and self._exists(section.snapshots):
            path, key = self.campaign.path(section.snapshots), (*here, "snapshots")
            try:
                frames = list(ase.io.iread(path, index=":"))
            except Exception as error:  # noqa: BLE001 - ASE's readers raise whatever their parsing runs into
                reason = (str(error).splitlines() or [""])[0] or type(error).__name__
                self.error(key, f"must name a file that ASE reads, {path.name}: {reason}", "check the file")
                return
            tried = frames[0]
            for frame in frames:
                if sorted(frame.numbers) != sorted(atoms.numbers):
                    found, wanted = frame.get_chemical_formula(), atoms.get_chemical_formula()
                    self.error(key, f"must hold the system, {wanted}, {path.name} has {found}", "take frames of it")
                    return
                if (frame.pbc != atoms.pbc).any():
                    self.error(key, f"must have the boundaries of the system, those in {path.name} differ", "set pbc")
                    return
        wrong = [index for index in section.atoms or () if index >= len(tried)]
        if wrong:
            self.error(
                (*here, "atoms"), f"must be below {len(tried)}, the number of atoms, got {wrong}", "they count from 0"
            )

    def _tblite(self, atoms: Atoms) -> None:
        labels = self.campaign.labels
        assert labels is not None
        if atoms.pbc.any():
            self.error(
                ("labels", "engine"),
                "tblite knows no field under periodic boundaries, the system is periodic",
                "use engine: cp2k, or system.pbc: false for a cluster",
            )
        heavy = sorted({s for s, z in zip(atoms.symbols, atoms.numbers) if z > TBLITE_LARGEST_NUMBER})
        if heavy:
            self.error(("labels", "engine"), f"tblite has no parameters for {', '.join(heavy)}", "use engine: cp2k")
        if labels.tblite_accuracy > 0.1:
            self.warn(
                ("labels", "accuracy"), f"of {labels.tblite_accuracy:g} is loose for second differences", "write 0.01"
            )

    def _label_template(self, atoms: Atoms) -> None:
        from mimyria_wf.cp2k_input import check_label_template

        labels = self.campaign.labels
        assert labels is not None
        given = labels.template
        key_path: KeyPath = ("labels", "template")
        path = self.campaign.path(given) if isinstance(given, str) else Path("the campaign")
        with self._reporting(key_path, path, f"correct {path.name}"):
            template = self.campaign.label_template()
            for warning in check_label_template(template, atoms, self.campaign.targets):
                statement, _, remedy = warning.partition("; ")
                # beyond the threshold a PGT is noise (218 % off at 1e-6): nothing worth submitting
                note = self.error if "too loose" in warning and labels.scf_threshold != "auto" else self.warn
                note(key_path, f"in {path.name}: {statement.removeprefix('CP2K template: ')}", remedy)
            self._basis_sets(template, path.name, atoms, key_path)
        if atoms.pbc.all() and cell_heights(atoms).min() < 8:
            self.warn(
                ("labels", "engine"),
                f"cp2k with a cell height of {cell_heights(atoms).min():.2f} A: PERIODIC_EFIELD leaves a net force in "
                "small cells (CP2K before PR 5308)",
                "look at the sum rules of the first labels",
            )

    def _basis_sets(self, template: Cp2kSection, where: str, atoms: Atoms, key_path: KeyPath) -> None:
        """Name basis sets and potentials that CP2K's data folder on this machine does not have."""
        folder = cp2k_data()
        force_eval = template.section("FORCE_EVAL")
        if folder is None or force_eval is None or force_eval.section("DFT") is None:
            return
        own_files = {
            Path(value).name: self.campaign.path(value)
            for owner in (self.campaign.sampling, self.campaign.labels)
            for value in (owner.files if owner is not None else ())
        }
        kinds = {kind.parameter.upper(): kind for kind in force_eval.sections("SUBSYS/KIND")}
        for what, file_key in (("BASIS_SET", "BASIS_SET_FILE_NAME"), ("POTENTIAL", "POTENTIAL_FILE_NAME")):
            name = force_eval.keyword(f"DFT/{file_key}")
            if name is None:
                continue
            file = own_files.get(Path(name).name, folder / name)
            if Path(name).is_absolute():
                continue  # on another computer perhaps
            if not file.is_file():
                self.warn(key_path, f"names {name} in {where}, which CP2K does not bring along", "list it under files:")
                continue
            known = _names_in_data_file(file)
            for symbol in sorted(set(atoms.get_chemical_symbols())):
                kind = kinds.get(symbol.upper(), kinds.get("DEFAULT"))
                entry = kind.keyword(what) if kind is not None else None
                wanted = entry.split()[-1].upper() if entry else None
                if wanted is not None and wanted not in known.get(symbol.upper(), ()):
                    close = suggestion(wanted, sorted(known.get(symbol.upper(), ())))
                    self.error(
                        key_path,
                        f"asks in {where} for {what} {wanted} of {symbol}, which is not in {name}",
                        f"did you mean {close}?" if close else "correct the name or the file",
                    )

    def _given_labels(self, atoms: Atoms) -> None:
        labels = self.campaign.labels
        if labels is None or labels.given is None:
            return
        from mimyria_wf.labels import read_labels

        training = self.campaign.training
        assert training is not None
        counts: dict[str, int] = {}
        trajectories: set[str] = set()
        species = set(atoms.get_chemical_symbols())
        for key in ("given", "test_given"):
            value = getattr(labels, key)
            if not self._exists(value):
                continue
            path, key_path = self.campaign.path(value), ("labels", key)
            self.progress(0, 1, f"reading {path.name}")
            with self._reporting(key_path, path, "correct the file"):
                snapshots = read_labels(path, training.targets)
                counts[key] = len(snapshots)
                try:
                    read_labels(path, training.targets, stated=True)
                except LabelError as error:
                    if "different levels of theory" in str(error):
                        raise
                    statement, _, remedy = str(error).replace(str(path), path.name).partition("; ")
                    self.warn(key_path, f"is taken as it is, {statement}", remedy)
                labelled = {symbol for snapshot in snapshots for symbol in snapshot.atoms.get_chemical_symbols()}
                for symbol in sorted(species - labelled):
                    self.error(
                        key_path,
                        f"must hold every species of the system, {symbol} is not in {path.name}",
                        "label snapshots that hold it",
                    )
                if key == "given":
                    names = [str(snapshot.atoms.info.get("snapshot", "")) for snapshot in snapshots]
                    trajectories = {name.rpartition("/")[0] for name in names if "/" in name}
        if "given" in counts:
            n_test = 0 if labels.test_given is not None else training.test_size or 0
            if training.sizes[-1] + n_test > counts["given"]:
                self.error(
                    ("training", "sizes"),
                    f"must not ask for more than the {counts['given']} labels given, "
                    f"got {training.sizes[-1]} and {n_test} for the test",
                    "lower training.sizes or training.test_size",
                )
            if labels.test_given is None and len(trajectories) < 2:
                self.warn(
                    ("labels", "given"),
                    "does not say which trajectories its snapshots are from, so the test set is not independent",
                    "add info snapshot=TRAJECTORY/FRAME, or give labels.test_given",
                )

    def _models(self, atoms: Atoms) -> None:
        models = self.campaign.models
        if models is None:
            return
        for target in ("apt", "pgt"):
            value = getattr(models, target)
            if not self._exists(value):
                continue
            path, key_path = self.campaign.path(value), ("models", target)
            from mimyria_wf.network import load_model  # torch takes seconds: only where there is a model

            with self._reporting(key_path, path, "give a model file of `mimyria-wf train`"):
                network = load_model(path, target)
                if self.campaign.prediction.members and self.campaign.training is None and network.posterior is None:
                    self.error(
                        ("prediction", "members"),
                        f"needs networks with a committee, {path.name} has none",
                        "train it with a preset that has one, or remove this",
                    )
                known = set(Atoms(list(network.species)).get_chemical_symbols())
                missing = sorted(set(atoms.get_chemical_symbols()) - known)
                if missing:
                    self.error(
                        key_path,
                        f"must know every species of the system, {', '.join(missing)} is not in {path.name} "
                        f"(has: {', '.join(sorted(known))})",
                        "train a model with labels of it",
                    )
                self._cutoff(atoms, network.cutoff, key_path)

    def _training(self, atoms: Atoms | None) -> None:
        training = self.campaign.training
        if training is None:
            return
        from mimyria_wf.presets import override_names, resolve

        known = override_names(training.preset)
        here: KeyPath = ("training", "overrides")
        is_known = True
        for key, value in training.overrides.items():
            own: Sequence[tuple[KeyPath, str]] = [((*here, key), key)]
            if key in ("apt", "pgt"):
                own = [((*here, key, inner), inner) for inner in value]
            for key_path, name in own:
                if name in ("seed", "threads"):
                    where = "seed" if name == "seed" else "training.threads"
                    self.error(key_path, "is not an override", f"it belongs to {where}")
                    is_known = False
                elif name not in known:
                    close = suggestion(name, known)
                    remedy = f"did you mean {close}?" if close else f"known are {', '.join(known)}"
                    self.error(key_path, "is not a setting of network or training", remedy)
                    is_known = False
        if not is_known:
            return
        for target in training.targets:
            try:
                network, _ = training.settings_for(target, seed=0)
            except ModelError as error:
                self.error(self._culprit(target, resolve), f"does not fit, {error}", "correct the value")
                continue
            if atoms is not None:
                cutoff_key: KeyPath = (*here, "cutoff") if "cutoff" in training.overrides else ("training", "preset")
                if "cutoff" in (training.overrides.get(target) or {}):
                    cutoff_key = (*here, target, "cutoff")
                self._cutoff(atoms, network.cutoff, cutoff_key)
        computer = self.campaign.computer_for("training")
        if computer.is_local and training.threads > (os.cpu_count() or 1):
            self.warn(
                ("training", "threads"),
                f"of {training.threads} exceeds the {os.cpu_count()} cores of this machine",
                "lower it: more threads than cores are slower",
            )

    def _pretraining(self, atoms: Atoms) -> None:
        """Cut the start structure into the clusters that are to be labelled."""
        training = self.campaign.training
        if training is None or training.pretraining is None:
            return
        from mimyria_wf.cluster_labels import cut_clusters

        here: KeyPath = ("training", "pretraining")
        heavy = sorted({s for s, z in zip(atoms.symbols, atoms.numbers) if z > TBLITE_LARGEST_NUMBER})
        if heavy:
            self.error(here, f"needs tblite, which has no parameters for {', '.join(heavy)}", "remove it")
            return
        try:
            cut_clusters(atoms, training.pretraining.radius_A, training.pretraining.charges)
        except LabelError as error:
            statement, _, remedy = str(error).partition("; ")
            self.error(here, f"does not fit, {statement}", remedy or "correct its charges, or remove it")

    def _culprit(self, target: str, resolve: Callable[..., Any]) -> KeyPath:
        """Return the key path of the override that does not fit."""
        training = self.campaign.training
        assert training is not None
        for key, value in training.overrides_for(target).items():
            own = key in (training.overrides.get(target) or {})
            try:
                resolve(training.preset, target, {key: value})
            except ModelError:
                return ("training", "overrides", target, key) if own else ("training", "overrides", key)
        return ("training", "overrides")

    def _cutoff(self, atoms: Atoms, cutoff: float, key_path: KeyPath) -> None:
        if not atoms.pbc.any() or self.campaign.system.allow_small_cell or atoms.cell.rank < 3:
            return
        shortest = float(cell_heights(atoms)[atoms.pbc].min())
        if cutoff > shortest:
            self.error(
                key_path,
                f"has a cutoff of {cutoff:g} A beyond the cell, whose shortest height is {shortest:.2f} A: "
                "atoms would be their own neighbours",
                "take a larger cell or a smaller cutoff, or set system.allow_small_cell: true",
            )

    def _snapshots(self, runs: Sequence[_Run]) -> None:
        """Check that there are enough frames to choose from."""
        campaign, training = self.campaign, self.campaign.training
        reference = campaign.reference
        if campaign.trajectories is not None and reference is not None and runs and reference.trajectory >= len(runs):
            self.error(
                ("reference", "trajectory"),
                f"must be below the number of trajectories, {len(runs)}, got {reference.trajectory}",
                "trajectories count from 0",
            )
            return
        if reference is not None and reference.n_frames is not None and runs:
            n_frames = runs[reference.trajectory].n_frames
            if reference.n_frames > n_frames:
                self.error(
                    ("reference", "n_frames"),
                    f"must not exceed the {n_frames} frames of the trajectory, got {reference.n_frames}",
                    "remove it to take all",
                )
        if training is None or campaign.labels is None or campaign.labels.engine is None or not runs:
            return
        from mimyria_wf.selection import select_snapshots

        excluded = () if reference is None else (reference.trajectory,)
        frames = [run.n_frames for run in runs]
        try:
            select_snapshots(frames, training.sizes[-1], training.test_size or 0, campaign.seed, excluded)
        except LabelError as error:
            statement, _, remedy = str(error).partition(": ")
            key = "test_size" if "test set" in statement else "sizes"
            self.error(("training", key), f"cannot be met, {statement}", remedy)
            return
        n_wanted = training.sizes[-1] + (training.test_size or 0)
        total = sum(run.n_frames * run.timestep for i, run in enumerate(runs) if i not in excluded)
        if total / n_wanted < 20:
            self.warn(
                ("training", "sizes"),
                f"puts a snapshot every {total / n_wanted:.1f} fs of trajectory, so that they hardly differ",
                "lengthen the trajectories or ask for fewer",
            )

    def _spectra(self, atoms: Atoms | None, runs: Sequence[_Run]) -> None:
        spectra, campaign = self.campaign.spectra, self.campaign
        if not runs:
            return
        timestep = max(run.timestep for run in runs)
        nyquist = WAVENUMBER / (2 * timestep)
        stride_key: KeyPath = ("sampling", "nve", "stride") if campaign.sampling is not None else runs[0].key_path
        upper: KeyPath = ("spectra", "upper_wavenumber_per_cm")
        if spectra.upper_wavenumber_per_cm > nyquist:
            self.error(
                upper if "upper_wavenumber_per_cm" in spectra.model_fields_set else stride_key,
                f"asks for {spectra.upper_wavenumber_per_cm:g} cm^-1, but frames every {timestep:g} fs end at "
                f"{nyquist:.0f} cm^-1 (Nyquist)",
                f"store frames every {WAVENUMBER / (2 * spectra.upper_wavenumber_per_cm):.2g} fs or less, "
                "or lower spectra.upper_wavenumber_per_cm",
            )
        elif atoms is not None and (atoms.numbers == 1).any() and nyquist < 4000:
            self.warn(
                stride_key,
                f"gives frames every {timestep:g} fs: X-H stretches beyond {nyquist:.0f} cm^-1 fold back",
                "store frames more often",
            )
        shortest = min(runs, key=lambda run: run.n_frames * run.timestep)
        length = shortest.n_frames * shortest.timestep
        if spectra.window_fs >= length:
            self.error(
                ("spectra", "window_fs"),
                f"must be shorter than the trajectories, {length:g} fs ({shortest.name}), got "
                f"{'' if 'window_fs' in spectra.model_fields_set else 'the default '}{spectra.window_fs:g}",
                "lengthen the NVE runs or shorten the window",
            )
        elif spectra.window_fs > length / 2:
            self.warn(
                ("spectra", "window_fs"),
                f"of {spectra.window_fs:g} fs is more than half of a trajectory ({length:g} fs): noisy correlations",
                "lengthen the NVE runs or shorten the window",
            )
        for section, stride in (
            ("convergence", campaign.convergence.stride),
            ("prediction", campaign.prediction.stride),
        ):
            if stride == "auto":
                continue
            between = stride * timestep
            is_used = section == "prediction" or campaign.training is not None
            if is_used and stride > 1 and between > SPLINE_TIME:
                self.warn(
                    (section, "stride"),
                    f"of {stride} puts {between:g} fs between predicted tensors, more than a spline bridges",
                    f"write {max(1, int(SPLINE_TIME / timestep))}",
                )
        sampling = campaign.sampling
        given = spectra.temperature_K
        if sampling is not None and given is not None and abs(given / sampling.temperature - 1) > 0.1:
            self.warn(
                ("spectra", "temperature_K"),
                f"of {given:g} K is not that of the sampling, {sampling.temperature:g} K",
                "remove it: each run has its own temperature",
            )
        if len(runs) == 1:
            self.warn(
                ("sampling", "nve", "n_trajectories") if sampling is not None else ("trajectories",),
                "gives one trajectory, and spectra without error bars",
                "take several: they are the independent samples",
            )

    def _groups(self, atoms: Atoms | None) -> None:
        """Hold groups against the elements, indices and molecules of the start structure."""
        scheme = self.campaign.spectra.group_scheme
        if scheme is None or atoms is None or not np.isfinite(atoms.positions).all():
            return
        from mimyria_wf.errors import GroupError
        from mimyria_wf.groups import parse_group_scheme, resolve

        name = "the start structure" if self.campaign.sampling is not None else "the first trajectory"
        try:
            resolve(parse_group_scheme(_without_minima(scheme.to_dict())), [_Still(atoms, name)])
        except GroupError as error:
            statement, _, remedy = str(error).partition("; ")
            inside = _named_in(scheme.to_dict().get("groups", {}), statement)
            verb = "does not fit" if inside else "do not fit"
            self.error(("spectra", "groups", *inside), f"{verb}, {statement}", remedy or "correct them")

    def _measured(self) -> None:
        value, units = self.campaign.spectra.measured, self.campaign.spectra.measured_units
        if value is None or not self._exists(value):
            return
        from mimyria_wf.measured import read_measured

        path = self.campaign.path(value)
        key_path: KeyPath = ("spectra", "measured")
        with self._reporting(key_path, path, "write the units of both axes into the file"):
            if read_measured(path, units).kind == "raman":
                self.error(
                    key_path, "must be an IR spectrum, this is Raman", "draw it with `mimyria-wf plot` afterwards"
                )

    def _convergence(self, runs: Sequence[_Run]) -> None:
        convergence, training = self.campaign.convergence, self.campaign.training
        if training is None:
            return
        n_needed = max(convergence.minimum_iterations, convergence.n_stable + 1)
        if len(training.sizes) < n_needed:
            self.warn(
                ("training", "sizes"),
                f"has {len(training.sizes)} iterations, of which convergence needs at least {n_needed}",
                "add sizes, or lower convergence.minimum_iterations",
            )
        if runs and convergence.trajectories > len(runs) and "trajectories" in convergence.model_fields_set:
            self.warn(
                ("convergence", "trajectories"),
                f"exceeds the number of trajectories, {len(runs)}, got {convergence.trajectories}",
                f"write {len(runs)}: that many are used",
            )

    def _devices(self) -> None:
        """Check that GPUs which this machine is to have are there."""
        sections: dict[str, Step] = {"sampling": "md", "prediction": "prediction"}
        for name, step in sections.items():
            section = getattr(self.campaign, name)
            if getattr(section, "device", "cpu") == "cpu" or not self.campaign.computer_for(step).is_local:
                continue
            if not _has_gpu():
                self.error(
                    (name, "device"),
                    f"asks for {section.device}, but torch sees no GPU on this machine",
                    f"write cpu, or name a code on a computer with a GPU under computers.{step}",
                )

    def _computers(self) -> None:
        campaign = self.campaign
        used = {id(campaign.computer_for(step)) for step in campaign.steps_run}
        for name in sorted(campaign.computers.model_fields_set):
            if id(getattr(campaign.computers, name)) not in used:
                self.warn(("computers", name), "is not used by this campaign", "remove it, or check the engines")
        here = campaign.computers.mimyria.computer
        readers: tuple[Step, ...] = ("md", "prediction", "spectra")
        for step in readers:
            chosen = campaign.computer_for(step)
            if step in campaign.steps_run and chosen.computer != here:
                key = step if getattr(campaign.computers, step) is not None else "cp2k"
                self.error(
                    ("computers", key, "code"),
                    f"must be on the computer of computers.mimyria, {here}, where trajectories stay, got {chosen.code}",
                    f"name a code on {here}; only training and labels may run elsewhere",
                )


def cell_heights(atoms: Atoms) -> np.ndarray:
    """Return the three distances between opposite faces of the cell (3,) [A]."""
    cell = complete_cell(atoms.cell.array)
    return np.asarray(1 / np.linalg.norm(np.linalg.inv(cell), axis=0))


def estimate_cost(campaign: Campaign, n_atoms: int, n_frames: Sequence[int]) -> Estimate:
    """Return what a campaign costs at most.

    Args:
        campaign: the campaign.
        n_atoms: in the system, 0 if unknown.
        n_frames: stored frames of every trajectory.
    """
    sampling, labels, training = campaign.sampling, campaign.labels, campaign.training
    jobs: dict[str, int] = {}
    core_hours: dict[str, float | None] = {}
    notes: list[str] = []
    growth = (n_atoms / TBLITE_ATOMS) ** 2
    n_md_steps = 0
    if sampling is not None:
        n_md_steps = sampling.n_nvt_steps + sampling.nve.n_trajectories * sampling.n_nve_steps
        jobs["md"] = 1 + math.ceil(sampling.nve.n_trajectories / sampling.n_trajectories_per_job)
        seconds: float | None = None
        if sampling.calculator is not None and sampling.calculator.import_path.startswith("tblite."):
            seconds = TBLITE_SECONDS_PER_STEP * growth
        elif sampling.template is not None and _is_nnp(campaign.path(sampling.template)):
            seconds = NNP_SECONDS_PER_ATOM_AND_STEP * n_atoms
            notes.append(
                "MD: for a committee of eight networks on one core; CP2K on n cores takes less time, not less cost"
            )
        core_hours["md"] = None if seconds is None or not n_atoms else n_md_steps * seconds / 3600
    n_snapshots = points = n_qualification = 0
    if labels is not None and labels.engine is not None and training is not None:
        points = 13 if "pgt" in training.targets else 7
        sizes = [training.sizes[0] + (training.test_size or 0)]
        sizes += [b - a for a, b in zip(training.sizes[:-1], training.sizes[1:], strict=True)]
        jobs["labels"] = sum(math.ceil(size / labels.n_snapshots_per_job) for size in sizes)
        n_snapshots = sum(sizes)
        if campaign.reference is not None and campaign.reference.trajectory < len(n_frames):
            n_reference = campaign.reference.n_frames or n_frames[campaign.reference.trajectory]
            n_snapshots += n_reference
            jobs["reference"] = campaign.computers.mimyria.max_concurrent
        seconds = labels.seconds_per_point
        n_cores = campaign.computer_for("labels").n_cores
        if seconds is None and labels.engine == "tblite" and n_atoms:
            seconds, n_cores = TBLITE_SECONDS_PER_POINT * growth, 1
        core_hours["labels"] = None if seconds is None else n_snapshots * points * seconds * n_cores / 3600
        if seconds is None:
            notes.append("labels: give labels.seconds_per_point once you know it")
        elif n_atoms:
            notes.append(
                f"labels: the {points} field points of one snapshot take about {_two_digits(points * seconds)} s"
            )
        if labels.engine == "cp2k":
            here = campaign.computers.mimyria.computer
            notes.append(SET_COST.format(3 if campaign.computer_for("labels").computer == here else 4))
        trial = _qualification_points(campaign, n_atoms)
        if trial:
            n_qualification = sum(size * n for size, n in trial.items())
            limit = POINTS_PER_JOB * labels.n_snapshots_per_job
            jobs["qualification"] = sum(
                math.ceil(n / max(1, limit // size)) * math.ceil(size / limit) for size, n in trial.items()
            )
            core_hours["qualification"] = None if seconds is None else n_qualification * seconds * n_cores / 3600
        jobs["selection"] = len(training.sizes) if training.selection == "committee" else 1
    if campaign.spectra.groups is not None:
        jobs["groups"] = 1
    n_runs = max(len(n_frames), 1)
    at_once = campaign.computer_for("prediction").max_concurrent
    jobs["prediction"], jobs["spectra"] = min(at_once, n_runs), 1
    if campaign.prediction.stride == "auto":
        jobs["stride"] = 1
    if training is not None:
        if training.pretraining is not None:
            jobs["pretraining"] = 2
        n_iterations = len(training.sizes)
        jobs["training"] = n_iterations * len(training.targets)
        core_hours["training"] = None
        jobs["prediction"] += n_iterations * min(at_once, campaign.convergence.trajectories, n_runs)
        jobs["spectra"] += n_iterations
    if "reference" in jobs:
        jobs["comparison"] = 1
    core_hours["prediction"] = None
    return Estimate(
        n_atoms=n_atoms,
        n_md_steps=n_md_steps,
        n_frames=sum(n_frames),
        n_label_snapshots=n_snapshots,
        points_per_snapshot=points,
        n_label_points=n_snapshots * points,
        n_qualification_points=n_qualification,
        jobs=jobs,
        core_hours=core_hours,
        notes=tuple(notes),
    )


def _qualification_points(campaign: Campaign, n_atoms: int) -> Counter[int]:
    """Return how many runs of how many field points a qualification has; none where it is off or not yet known."""
    from mimyria_wf.qualification import plan

    section = campaign.qualification
    n_snapshots = 1
    if section is not None and section.snapshots is not None:
        with contextlib.suppress(Exception):  # reported with the file
            n_snapshots = len(list(ase.io.iread(campaign.path(section.snapshots), index=":")))
    if not campaign.is_qualified or not n_atoms:
        return Counter()
    try:
        atoms = Atoms(f"H{n_atoms}", positions=np.zeros((n_atoms, 3)))
        return Counter(len(task.vectors) for task in plan([atoms] * n_snapshots, campaign.qualification_settings()))
    except (OSError, MimyriaError):
        return Counter()  # reported with the template


def cp2k_data() -> Path | None:
    """Return CP2K's data folder on this machine, None where there is none."""
    for candidate in (os.environ.get("CP2K_DATA_DIR"), "/usr/share/cp2k", "/usr/local/share/cp2k"):
        if candidate and (Path(candidate) / "BASIS_MOLOPT").is_file():
            return Path(candidate)
    return None


@functools.lru_cache(maxsize=32)
def _names_in_data_file(path: Path) -> dict[str, frozenset[str]]:
    """Return the names of basis sets or potentials of each element in a file of CP2K's format."""
    names: dict[str, set[str]] = {}
    with path.open(errors="replace") as stream:
        for line in stream:
            words = line.split("#")[0].split()
            if len(words) > 1 and words[0].isalpha() and words[0][0].isupper():
                names.setdefault(words[0].upper(), set()).update(word.upper() for word in words[1:])
    return {symbol: frozenset(found) for symbol, found in names.items()}


def _round_down(value: float) -> str:
    """Return a positive number with one digit, not above the value."""
    power = math.floor(math.log10(value))
    return f"{math.floor(value / 10.0**power + 1e-9)}.0e{power}"


def _has_gpu() -> bool:
    import torch  # which takes seconds: only where somebody asks for a GPU

    return torch.cuda.is_available()


def _is_nnp(path: Path) -> bool:
    from mimyria_wf.cp2k_input import parse_input

    try:
        return (parse_input(path.read_text(errors="replace")).keyword("FORCE_EVAL/METHOD") or "").upper() == "NNP"
    except (OSError, CampaignError):
        return False


def _two_digits(value: float) -> str:
    """Return a number with two digits that count, without an exponent."""
    digits = 1 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{round(value, digits):.{max(digits, 0)}f}"


def _nearest_file(path: Path) -> str:
    """Return a remedy that names the file that was most likely meant."""
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder.name} does not exist either; paths are relative to the campaign file"
    names = {p.stem: p.name for p in sorted(folder.iterdir(), key=lambda p: (p.suffix == path.suffix, p.name))}
    close = difflib.get_close_matches(path.stem, list(names), n=1, cutoff=0.6)
    return f"did you mean {names[close[0]]}?" if close else "check the path: it is relative to the campaign file"


def _verlet_shift(wavenumber: float, timestep: float) -> float:
    """Return by how much velocity Verlet raises a vibration [cm^-1]."""
    half = math.pi * wavenumber / WAVENUMBER * timestep
    return wavenumber * (math.asin(min(half, 1.0)) / half - 1)
