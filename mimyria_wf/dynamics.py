"""Molecular dynamics through ASE: canonical runs to pick starts from, NVE runs that keep velocities.

Langevin dynamics leaves the centre of mass to the thermostat (``fixcm=False``: the other choice heats small clusters
unevenly) and has 3N degrees of freedom; NVE runs start without centre-of-mass motion (3N - 3) and, for clusters, on
request without rotation (3N - 6; 3N - 5 for a linear one). Every written velocity belongs to the written positions.
"""

import hashlib
import importlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ase
import ase.units
import numpy as np
from ase.calculators.calculator import BaseCalculator
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from mimyria_wf import units
from mimyria_wf.errors import EngineError, TrajectoryError
from mimyria_wf.frames import Array, TrajectoryReader
from mimyria_wf.md_summary import MdSummary, summarise
from mimyria_wf.trajectory import PathLike, Progress, TrajectoryWriter, open_trajectory

MAX_STEP = 0.5
"""Longest way of one atom in one MD step before a run counts as exploded [A]."""
PROGRESS_INTERVAL = 0.2
"""Shortest time between two calls of ``progress`` [s]."""
OBSERVABLES = ("potential_energy", "kinetic_energy", "temperature")


def load_factory(import_path: str) -> Callable[..., Any]:
    """Return what an import path names.

    Args:
        import_path: ``package.module.Class`` or ``package.module:function``; after a colon also ``Class.method``.

    Raises:
        EngineError: there is no such thing.
    """
    module_name, colon, name = import_path.partition(":")
    if not colon:
        module_name, _, name = import_path.rpartition(".")
    if not module_name or not name:
        raise EngineError(f"calculator {import_path!r}: expected package.module.Class, such as tblite.ase.TBLite")
    try:
        factory: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise EngineError(f"calculator {import_path}: cannot import {module_name} ({error}); install it") from error
    for part in name.split("."):
        factory = getattr(factory, part, None)
    if not callable(factory):
        raise EngineError(f"calculator {import_path}: {module_name} has no {name}")
    return factory


def build(import_path: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call what an import path names.

    Raises:
        EngineError: it cannot be built with these arguments.
    """
    try:
        return factory(**arguments)
    except EngineError:
        raise
    except Exception as error:  # any code may sit behind the path; the user needs to know which arguments failed
        raise EngineError(
            f"calculator {import_path}: cannot be built with {dict(arguments)} ({type(error).__name__}: {error})"
        ) from error


def make_calculator(import_path: str, arguments: Mapping[str, Any] | None = None) -> BaseCalculator:
    """Build an ASE calculator from its import path.

    Args:
        import_path: ``package.module.Class`` or ``package.module:function``.
        arguments: keyword arguments of the call.

    Raises:
        EngineError: it cannot be imported, cannot be built, or is not an ASE calculator.
    """
    calculator = build(import_path, load_factory(import_path), arguments or {})
    if not hasattr(calculator, "get_forces") or not hasattr(calculator, "get_potential_energy"):
        raise EngineError(f"calculator {import_path}: {type(calculator).__name__} is not an ASE calculator")
    return calculator


def _set_charge(calculator: BaseCalculator, atoms: ase.Atoms) -> None:
    """Hand charge and multiplicity of the atoms to a calculator that takes them as parameters."""
    known = getattr(calculator, "default_parameters", None) or {}
    for key, neutral in (("charge", 0), ("multiplicity", 1)):
        wanted = int(atoms.info.get(key, neutral))
        if key not in known:
            continue
        current = calculator.parameters.get(key)
        if current is None and wanted != neutral:
            calculator.set(**{key: wanted})  # type: ignore[attr-defined]
        elif current is not None and int(current) != wanted:
            raise EngineError(f"the calculator has {key} {current}, the atoms {wanted}; set it once, for the system")


@dataclass(frozen=True)
class NvtSettings:
    """A canonical run.

    Attributes:
        temperature: [K].
        timestep: of the MD [fs].
        n_steps: in all, the equilibration included.
        n_equilibration_steps: first steps that starts are not picked from.
        stride: steps between stored frames.
        friction: of the Langevin thermostat [1/fs]; 1/time constant for CSVR.
        seed: of initial velocities and noise.
        thermostat: CSVR is CP2K's; :func:`run_nvt` does Langevin.
    """

    temperature: float
    timestep: float
    n_steps: int
    n_equilibration_steps: int = 0
    stride: int = 20
    friction: float = 0.01
    seed: int = 0
    thermostat: Literal["langevin", "csvr"] = "langevin"

    def __post_init__(self) -> None:
        _check_steps(self.timestep, self.n_steps, self.stride)
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise EngineError(f"the NVT temperature must be positive [K], got {self.temperature}")
        if not (np.isfinite(self.friction) and self.friction > 0):
            raise EngineError(f"the NVT friction must be positive [1/fs], got {self.friction}")
        if not 0 <= self.n_equilibration_steps < self.n_steps:
            raise EngineError(
                f"the NVT equilibration must be shorter than the run, got {self.n_equilibration_steps} of "
                f"{self.n_steps} steps"
            )
        if self.thermostat not in ("langevin", "csvr"):
            raise EngineError(f"the NVT thermostat must be langevin or csvr, got {self.thermostat!r}")

    @property
    def last_step(self) -> int:
        return (self.n_steps - 1) // self.stride * self.stride

    @property
    def n_equilibration_frames(self) -> int:
        return -(-self.n_equilibration_steps // self.stride)


@dataclass(frozen=True)
class NveSettings:
    """A microcanonical run.

    Attributes:
        timestep: of the MD [fs].
        n_steps: the run stores the steps 0, stride, 2 stride, ... below it.
        stride: steps between stored frames.
        remove_rotation: stop the rotation of a cluster at the start.
    """

    timestep: float
    n_steps: int
    stride: int = 1
    remove_rotation: bool = False

    def __post_init__(self) -> None:
        _check_steps(self.timestep, self.n_steps, self.stride)

    @property
    def last_step(self) -> int:
        return (self.n_steps - 1) // self.stride * self.stride


def _check_steps(timestep: float, n_steps: int, stride: int) -> None:
    if not (np.isfinite(timestep) and timestep > 0):
        raise EngineError(f"the MD timestep must be positive [fs], got {timestep}")
    if n_steps < 1 or stride < 1:
        raise EngineError(f"MD needs at least one step and a stride of at least 1, got {n_steps} and {stride}")


def maxwell_boltzmann(masses: Array, temperature: float, rng: np.random.Generator) -> Array:
    """Return random velocities of a canonical ensemble.

    Args:
        masses: (n_atoms,) [u].
        temperature: [K].
        rng: source of randomness.

    Returns:
        (n_atoms, 3) [A/fs]; the centre of mass moves.
    """
    width = np.sqrt(units.BOLTZMANN_EV * temperature / (units.AMU_A2_PER_FS2 * masses))
    return rng.standard_normal((len(masses), 3)) * width[:, None]


def without_translation(velocities: Array, masses: Array) -> Array:
    """Return velocities (n_atoms, 3) whose centre of mass rests [A/fs]."""
    return velocities - masses @ velocities / masses.sum()


def without_rotation(positions: Array, velocities: Array, masses: Array) -> tuple[Array, int]:
    """Return velocities without the rigid rotation about the centre of mass.

    omega = I^-1 L, v_i - omega x (r_i - R); a linear molecule has two rotations.

    Args:
        positions: (n_atoms, 3) [A].
        velocities: (n_atoms, 3), the centre of mass at rest [A/fs].
        masses: (n_atoms,) [u].

    Returns:
        velocities (n_atoms, 3) [A/fs]; number of rotations removed.
    """
    arms = positions - masses @ positions / masses.sum()
    momentum = np.einsum("i,ic->c", masses, np.cross(arms, velocities))
    inertia = np.einsum("i,iab->ab", masses, np.einsum("ic,ic,ab->iab", arms, arms, np.eye(3)) - _outer(arms))
    moments, axes = np.linalg.eigh(inertia)
    is_rotation = moments > 1e-8 * max(moments.max(), 1e-300)
    omega = axes[:, is_rotation] @ ((axes[:, is_rotation].T @ momentum) / moments[is_rotation])
    return velocities - np.cross(omega, arms), int(is_rotation.sum())


def _outer(vectors: Array) -> Array:
    return np.einsum("ia,ib->iab", vectors, vectors)


def run_nvt(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    settings: NvtSettings,
    path: PathLike,
    progress: Progress | None = None,
    engine: str | None = None,
) -> MdSummary:
    """Run Langevin dynamics and write every ``stride``-th step, equilibration included, from step 0.

    Starts from the velocities of the atoms, or from a Maxwell-Boltzmann distribution where there are none. A finished
    file of the same run is kept as it is.

    Args:
        atoms: the start, left unchanged; ``info`` may carry ``charge`` and ``multiplicity``.
        calculator: forces.
        settings: of the run.
        path: H5MD file to write.
        progress: called with (steps done, steps in all, name).
        engine: identifies the calculator and its arguments in metadata and in the decision whether a run is the same.

    Raises:
        EngineError: the calculator fails, or the run explodes.
    """
    if settings.thermostat != "langevin":
        raise EngineError(f"the embedded MD has the thermostat langevin, not {settings.thermostat}; that one is CP2K's")
    atoms, velocities = _prepare(atoms)
    rng = np.random.default_rng(settings.seed)
    if not velocities.any():
        velocities = maxwell_boltzmann(atoms.get_masses(), settings.temperature, rng)
    metadata = {
        "ensemble": "nvt",
        "seed": settings.seed,
        "removed_degrees_of_freedom": 0,
        "degrees_of_freedom": 3 * len(atoms),
        "n_equilibration_frames": settings.n_equilibration_frames,
    }

    def dynamics(moving: ase.Atoms) -> Langevin:
        return Langevin(
            moving,
            settings.timestep * ase.units.fs,
            temperature_K=settings.temperature,
            friction=settings.friction / ase.units.fs,
            fixcm=False,
            rng=rng,
        )

    return _run(atoms, velocities, calculator, settings, Path(path), metadata, dynamics, progress, engine)


def prepare_nve(start: ase.Atoms, settings: NveSettings) -> tuple[ase.Atoms, Array, dict[str, Any]]:
    """Return bare atoms, velocities without the motion to be removed, and what to note about them.

    Args:
        start: with velocities.
        settings: of the run.

    Returns:
        the atoms without velocities; velocities (n_atoms, 3) [A/fs]; metadata of the trajectory.

    Raises:
        EngineError: no NVE run can start there.
    """
    if len(start) < 2:
        raise EngineError("an NVE run needs at least two atoms: the centre of mass rests")
    atoms, velocities = _prepare(start)
    if not velocities.any():
        raise EngineError("an NVE run needs a start with velocities; take one from an NVT run")
    masses = atoms.get_masses()
    velocities = without_translation(velocities, masses)
    n_removed = 3
    if settings.remove_rotation:
        if atoms.pbc.any():
            raise EngineError("remove_rotation is for clusters: the atoms are periodic")
        velocities, n_rotations = without_rotation(atoms.positions, velocities, masses)
        n_removed += n_rotations
    return (
        atoms,
        velocities,
        {
            "ensemble": "nve",
            "removed_degrees_of_freedom": n_removed,
            "degrees_of_freedom": max(3 * len(atoms) - n_removed, 1),
            **{key: start.info[key] for key in ("snapshot", "start_frame", "seed") if key in start.info},
        },
    )


def run_nve(
    start: ase.Atoms,
    calculator: BaseCalculator,
    settings: NveSettings,
    path: PathLike,
    progress: Progress | None = None,
    engine: str | None = None,
) -> MdSummary:
    """Run velocity Verlet from a start with velocities and write steps 0, stride, ... below ``n_steps``.

    The motion of the centre of mass is removed first, and the rotation if asked; step 0 is otherwise the start. A
    finished file of the same run is kept as it is. Arguments and errors as in :func:`run_nvt`.
    """
    atoms, velocities, metadata = prepare_nve(start, settings)

    def dynamics(moving: ase.Atoms) -> VelocityVerlet:
        return VelocityVerlet(moving, settings.timestep * ase.units.fs)

    return _run(atoms, velocities, calculator, settings, Path(path), metadata, dynamics, progress, engine)


def _prepare(atoms: ase.Atoms) -> tuple[ase.Atoms, Array]:
    """Return a bare copy of the atoms and their velocities [A/fs], zeros where they have none."""
    if len(atoms) == 0:
        raise EngineError("the structure has no atoms")
    if atoms.constraints:
        raise EngineError("the structure carries constraints, which the count of degrees of freedom does not know")
    if atoms.pbc.any() and atoms.cell.rank < 3:
        raise EngineError(f"the structure is periodic along {atoms.pbc.tolist()} but its cell has no volume")
    bare = ase.Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell,
        pbc=atoms.pbc,
        masses=atoms.get_masses(),
        info={"charge": int(atoms.info.get("charge", 0)), "multiplicity": int(atoms.info.get("multiplicity", 1))},
    )
    velocities = atoms.get_velocities() * ase.units.fs
    if not np.isfinite(bare.positions).all() or not np.isfinite(velocities).all():
        raise EngineError("the start holds NaN or infinite positions or velocities")
    return bare, velocities


def _run(
    atoms: ase.Atoms,
    velocities: Array,
    calculator: BaseCalculator,
    settings: NvtSettings | NveSettings,
    path: Path,
    metadata: dict[str, Any],
    make_dynamics: Callable[[ase.Atoms], Langevin | VelocityVerlet],
    progress: Progress | None,
    engine: str | None,
) -> MdSummary:
    engine = engine or f"{type(calculator).__module__}.{type(calculator).__qualname__}"
    fingerprint = run_fingerprint(atoms, velocities, settings, engine)
    finished = finished_run(path, fingerprint)
    if finished is not None:
        return summarise(finished, was_skipped=True)
    _set_charge(calculator, atoms)
    metadata = {
        **metadata,
        **atoms.info,
        "engine": engine,
        "ase": ase.__version__,
        "settings": asdict(settings),
        "settings_sha256": fingerprint,
    }
    masses = atoms.get_masses()
    atoms.set_velocities(velocities / ase.units.fs)
    atoms.calc = calculator
    began = reported = time.perf_counter()
    last_step = settings.last_step
    per_kelvin = metadata["degrees_of_freedom"] * units.BOLTZMANN_EV / 2
    with TrajectoryWriter(
        path,
        atoms.numbers,
        settings.timestep * settings.stride,
        cell=atoms.cell[:],
        pbc=atoms.pbc,
        masses=masses,
        metadata=metadata,
        observables=OBSERVABLES,
    ) as writer:
        step = 0
        try:
            forces = atoms.get_forces(md=True)
            dynamics = make_dynamics(atoms)
            for step in range(last_step + 1):
                if step:  # forces go from step to step; ASE's own loop compares all atoms twice more per step
                    forces = dynamics.step(forces)
                if step % settings.stride:
                    continue
                now = velocities if step == 0 else atoms.get_velocities() * ase.units.fs
                potential = _potential_energy(atoms, calculator)
                check_sanity(now, potential, settings.timestep, step, atoms)
                kinetic = 0.5 * units.AMU_A2_PER_FS2 * float(masses @ (now * now).sum(axis=1))
                writer.append(
                    atoms.positions,
                    now,
                    potential_energy=potential,
                    kinetic_energy=kinetic,
                    temperature=kinetic / per_kelvin,
                )
                if progress is not None and (step == last_step or time.perf_counter() > reported + PROGRESS_INTERVAL):
                    reported = time.perf_counter()
                    progress(step + 1, last_step + 1, path.stem)
        except (RuntimeError, ValueError, ArithmeticError, NotImplementedError) as error:
            raise EngineError(
                f"{path.name}: {engine} failed after step {step} ({type(error).__name__}: {error})"
            ) from error
        writer.metadata["seconds"] = round(time.perf_counter() - began, 3)
    return summarise(open_trajectory(path))


def _potential_energy(atoms: ase.Atoms, calculator: BaseCalculator) -> float:
    """Return the energy that came with the forces of this step; asking ASE for it compares all atoms again."""
    results = getattr(calculator, "results", {})
    return float(results["energy"] if "energy" in results else atoms.get_potential_energy())


def check_sanity(velocities: Array, potential: float, timestep: float, step: int, atoms: ase.Atoms) -> None:
    """Raise EngineError if a run has gone wrong; velocities (n_atoms, 3) [A/fs], potential [eV], timestep [fs]."""
    fastest_square = float((velocities * velocities).sum(axis=1).max())  # NaN if one is NaN
    if not math.isfinite(potential) or not math.isfinite(fastest_square):
        raise EngineError(f"MD step {step}: energy or velocities are not finite; check calculator, start and timestep")
    if fastest_square * timestep**2 > MAX_STEP**2:
        speeds = np.linalg.norm(velocities, axis=1)
        fastest = int(np.argmax(speeds))
        raise EngineError(
            f"MD step {step}: atom {fastest} ({atoms.symbols[fastest]}) moves {speeds[fastest] * timestep:.2f} A in "
            f"one step of {timestep:g} fs; the run has exploded: check calculator, start and timestep"
        )


def run_fingerprint(atoms: ase.Atoms, velocities: Array, settings: NvtSettings | NveSettings, engine: str) -> str:
    """Return a checksum of all that decides what a run gives."""
    digest = hashlib.sha256()
    head = [type(settings).__name__, asdict(settings), engine, atoms.info, atoms.pbc.tolist(), atoms.numbers.tolist()]
    digest.update(json.dumps(head, sort_keys=True).encode())
    for values in (atoms.positions, velocities, atoms.cell[:], atoms.get_masses()):
        digest.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
    return digest.hexdigest()


def finished_run(path: Path, fingerprint: str) -> TrajectoryReader | None:
    """Return the trajectory of a run that ended in good order, if the file is there and of that very run."""
    if path.is_file():
        with suppress(TrajectoryError):  # unreadable: run again
            reader = open_trajectory(path)
            if reader.metadata.get("is_complete") and reader.metadata.get("settings_sha256") == fingerprint:
                return reader
    return None
