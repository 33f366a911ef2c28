"""A trajectory in memory, and what every trajectory file can do: :class:`Trajectory` and :class:`TrajectoryReader`.

Units are those of the core: A, fs, A/fs, u, eV, K. Velocities belong to the same time and frame as the positions
(on-step velocities of velocity Verlet); leap-frog files are half a step off and must be converted before.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase
import ase.data
import ase.units
import numpy as np
from ase.cell import Cell
from numpy.typing import ArrayLike, NDArray

from mimyria_wf import units
from mimyria_wf.errors import TrajectoryError

Array = NDArray[Any]


def default_masses(numbers: Array) -> Array:
    """Return ASE's standard masses.

    Args:
        numbers: (n_atoms,) atomic numbers.

    Returns:
        (n_atoms,) masses [u].
    """
    return np.array(ase.data.atomic_masses[numbers], dtype=float)


def as_cell(cell: ArrayLike | None, source: str = "cell") -> Array:
    """Return cell vectors from vectors, from six cell parameters, or from the edges of an orthorhombic box.

    Args:
        cell: (3, 3) vectors as rows [A]; or (6,) a, b, c [A], alpha, beta, gamma [degrees]; or (3,) edges [A],
            which mean right angles; None for no cell.
        source: what to name in an error.

    Returns:
        (3, 3) cell vectors as rows [A], zeros without a cell.

    Raises:
        TrajectoryError: wrong shape, not finite, or vectors without volume.
    """
    if cell is None:
        return np.zeros((3, 3))
    try:
        values = np.asarray(cell, dtype=float)
    except (TypeError, ValueError) as error:
        raise TrajectoryError(f"{source}: a cell is numbers, got {cell!r}") from error
    if values.shape == (9,):
        values = values.reshape(3, 3)
    if values.shape not in ((3, 3), (6,), (3,)):
        raise TrajectoryError(
            f"{source}: a cell is three vectors, six parameters a b c alpha beta gamma, or three edges of a box with "
            f"right angles, got shape {values.shape}"
        )
    if not np.isfinite(values).all():
        raise TrajectoryError(f"{source}: the cell holds NaN or infinity: {values.tolist()}")
    if values.shape == (3,):
        values = np.diag(values)
    elif values.shape == (6,):
        try:
            values = np.array(Cell.fromcellpar(values))
        except (AssertionError, ValueError) as error:
            raise TrajectoryError(f"{source}: no cell has the parameters {values.tolist()}") from error
        if not np.isfinite(values).all():
            raise TrajectoryError(f"{source}: no cell has the parameters {np.asarray(cell).tolist()}")
    if values.any() and np.linalg.matrix_rank(values) < 3:
        raise TrajectoryError(f"{source}: the cell vectors {values.tolist()} span no volume; give three or none")
    return values


def kinetic_energies(velocities: Array, masses: Array) -> Array:
    """Return the kinetic energy of each frame.

    Args:
        velocities: (n_frames, n_atoms, 3) [A/fs].
        masses: (n_atoms,) [u].

    Returns:
        (n_frames,) [eV].
    """
    return 0.5 * units.AMU_A2_PER_FS2 * np.einsum("tic,tic,i->t", velocities, velocities, masses)


@dataclass(frozen=True)
class Trajectory:
    """A whole run or a chunk of it, at constant cell and equally spaced in time.

    Attributes:
        numbers: (n_atoms,) atomic numbers.
        positions: (n_frames, n_atoms, 3) as the MD gave them, unwrapped [A].
        velocities: (n_frames, n_atoms, 3) at the same frames [A/fs], or None.
        cell: (3, 3) vectors as rows [A]; zeros for a cluster.
        pbc: (3,) whether each vector repeats.
        timestep: between stored frames [fs].
        masses: (n_atoms,) [u].
        name: names the trajectory in snapshots, tables and splits.
        observables: ``potential_energy`` [eV], ``kinetic_energy`` [eV], ``temperature`` [K], each (n_frames,).
        metadata: JSON-able: charge, seed, degrees_of_freedom, engine, ...
    """

    numbers: Array
    positions: Array
    velocities: Array | None
    cell: Array
    pbc: Array
    timestep: float
    masses: Array
    name: str = ""
    observables: Mapping[str, Array] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        label = self.name or "trajectory"
        if self.positions.ndim != 3 or self.positions.shape[1:] != (len(self.numbers), 3):
            raise TrajectoryError(
                f"{label}: positions must be (n_frames, {len(self.numbers)}, 3), got {self.positions.shape}"
            )
        if len(self.positions) == 0 or len(self.numbers) == 0:
            raise TrajectoryError(f"{label}: the trajectory is empty, got positions {self.positions.shape}")
        if self.velocities is not None and self.velocities.shape != self.positions.shape:
            raise TrajectoryError(
                f"{label}: velocities {self.velocities.shape} and positions {self.positions.shape} differ in shape"
            )
        if self.cell.shape != (3, 3) or np.shape(self.pbc) != (3,):
            raise TrajectoryError(f"{label}: cell must be (3, 3) and pbc (3,), got {self.cell.shape}")
        if np.shape(self.masses) != (len(self.numbers),) or not np.all(np.asarray(self.masses) > 0):
            raise TrajectoryError(f"{label}: masses must be {len(self.numbers)} positive numbers [u]")
        if not (np.isfinite(self.timestep) and self.timestep > 0):
            raise TrajectoryError(f"{label}: the timestep must be positive [fs], got {self.timestep}")
        for key, values in self.observables.items():
            if np.shape(values) != (self.n_frames,):
                raise TrajectoryError(
                    f"{label}: observable {key} must have {self.n_frames} values, got {np.shape(values)}"
                )

    @property
    def n_frames(self) -> int:
        return len(self.positions)

    @property
    def n_atoms(self) -> int:
        return len(self.numbers)

    @property
    def degrees_of_freedom(self) -> int:
        """What the MD code said is free (metadata), else 3N - 3: the centre of mass is at rest."""
        return int(self.metadata.get("degrees_of_freedom", max(3 * self.n_atoms - 3, 1)))

    def kinetic_temperature(self) -> Array:
        """Return the temperature of each frame from its velocities.

        T = sum_i m_i v_i^2 / (n_degrees_of_freedom k_B), counted by what the dynamics conserves (docs/theory.md).

        Returns:
            (n_frames,) [K].

        Raises:
            TrajectoryError: the trajectory has no velocities.
        """
        if self.velocities is None:
            raise TrajectoryError(f"{self.name or 'trajectory'}: no velocities, so no kinetic temperature")
        energies = kinetic_energies(self.velocities, self.masses)
        return 2 * energies / (self.degrees_of_freedom * units.BOLTZMANN_EV)

    def atoms(self, frame: int) -> ase.Atoms:
        """Return one frame as ASE atoms, with velocities in ASE's unit where the trajectory has them.

        ``info`` carries ``charge`` and, for a named trajectory, ``snapshot`` = name/frame with the frame's index in
        this object; :meth:`TrajectoryReader.atoms` numbers by the file.
        """
        atoms = ase.Atoms(
            numbers=self.numbers, positions=self.positions[frame], cell=self.cell, pbc=self.pbc, masses=self.masses
        )
        if np.array_equal(self.masses, default_masses(self.numbers)):
            atoms.set_masses("defaults")
        if self.velocities is not None:
            atoms.set_velocities(self.velocities[frame] / ase.units.fs)
        atoms.info["charge"] = int(self.metadata.get("charge", 0))
        if "multiplicity" in self.metadata:
            atoms.info["multiplicity"] = int(self.metadata["multiplicity"])
        if self.name:
            atoms.info["snapshot"] = f"{self.name}/{range(self.n_frames)[frame]}"
        return atoms


class TrajectoryReader(ABC):
    """A trajectory file, read in pieces so that its length does not matter.

    Attributes:
        path: the file.
        numbers: (n_atoms,) atomic numbers.
        cell: (3, 3) [A]; zeros for a cluster.
        pbc: (3,) booleans.
        timestep: between stored frames [fs].
        start_time: of the first frame, where the file says so [fs].
        masses: (n_atoms,) [u].
        name: from the file, else from the file's name.
        n_frames: in the file.
        has_velocities: whether frames carry velocities.
        metadata: JSON-able.
    """

    path: Path
    numbers: Array
    cell: Array
    pbc: Array
    timestep: float
    masses: Array
    name: str
    n_frames: int
    has_velocities: bool
    metadata: Mapping[str, Any]
    start_time: float | None = None

    @abstractmethod
    def _load(self, frames: range) -> tuple[Array, Array | None, dict[str, Array]]:
        """Return positions [A], velocities [A/fs] or None, and observables of a non-empty range of frames."""

    @property
    def n_atoms(self) -> int:
        return len(self.numbers)

    def read(self, start: int = 0, stop: int | None = None, step: int = 1) -> Trajectory:
        """Return frames ``start:stop:step`` (Python's slice rules); the timestep of the result is step times ours.

        Raises:
            TrajectoryError: no frame is selected, or a value is NaN or infinite.
        """
        if step < 1:
            raise TrajectoryError(f"{self.path}: the stride must be 1 or more, got {step}")
        frames = range(*slice(start, stop, step).indices(self.n_frames))
        if len(frames) == 0:
            raise TrajectoryError(f"{self.path}: frames {start}:{stop}:{step} select none of {self.n_frames}")
        positions, velocities, observables = self._load(frames)
        for what, values in (("position", positions), ("velocity", velocities)):
            if values is not None and not np.isfinite(values).all():
                frame, atom = np.argwhere(~np.isfinite(values).all(axis=2))[0]
                raise TrajectoryError(
                    f"{self.path}: NaN or infinite {what} of atom {atom} in frame {frames[frame]}; "
                    "cut the trajectory before that frame"
                )
        return Trajectory(
            numbers=self.numbers,
            positions=positions,
            velocities=velocities,
            cell=self.cell,
            pbc=self.pbc,
            timestep=self.timestep * step,
            masses=self.masses,
            name=self.name,
            observables=observables,
            metadata=self.metadata,
        )

    def chunks(self, size: int, overlap: int = 0) -> Iterator[tuple[int, Trajectory]]:
        """Yield the whole trajectory in chunks of at most ``size`` frames.

        Each chunk starts ``overlap`` frames before the end of the one before it.

        Yields:
            (index of the chunk's first frame, chunk).
        """
        if size < 1 or not 0 <= overlap < size:
            raise TrajectoryError(f"{self.path}: chunks need size >= 1 and 0 <= overlap < size, got {size}, {overlap}")
        start = 0
        while True:
            stop = min(start + size, self.n_frames)
            yield start, self.read(start, stop)
            if stop == self.n_frames:
                return
            start = stop - overlap

    def atoms(self, frame: int) -> ase.Atoms:
        """Return one frame as ASE atoms; ``info["snapshot"]`` is name/frame with the frame's index in the file."""
        index = range(self.n_frames)[frame]
        atoms = self.read(index, index + 1).atoms(0)
        atoms.info["snapshot"] = f"{self.name}/{index}"
        return atoms

    def require_velocities(self) -> None:
        """Raise :class:`TrajectoryError` where the file has no velocities, which spectra need."""
        if not self.has_velocities:
            raise TrajectoryError(
                f"{self.path}: no velocities, which spectra need; let the MD print them (CP2K: PRINT/VELOCITIES; "
                "extxyz: a column vel:R:3 [A/fs]); differences of positions do not replace them"
            )


def timestep_from_times(times: Array, given: float | None, source: str, tolerance: float) -> float:
    """Return the spacing of equally spaced times, or the one that is given.

    Args:
        times: (n_frames,) of the stored frames [fs]; empty where the file has none.
        given: what the user said [fs].
        source: the file, for errors.
        tolerance: how far a printed time may be off [fs].

    Raises:
        TrajectoryError: unknown, not positive, uneven, or file and user disagree.
    """
    if given is not None and not (np.isfinite(given) and given > 0):
        raise TrajectoryError(f"{source}: the timestep must be positive [fs], got {given}")
    if len(times) < 2:
        if given is None:
            raise TrajectoryError(
                f"{source}: the time between frames is unknown; give the time step of stored frames (--timestep-fs)"
            )
        return float(given)
    timestep = float(times[-1] - times[0]) / (len(times) - 1)
    off = np.abs(times - times[0] - timestep * np.arange(len(times)))
    if not np.isfinite(times).all() or timestep <= 0 or off.max() > tolerance:
        gaps = np.diff(times)
        bad = int(np.argmax(np.abs(gaps - np.median(gaps)))) + 1
        raise TrajectoryError(
            f"{source}: frames are not equally spaced in time: {gaps[bad - 1]:.6g} fs before frame {bad}, "
            f"{np.median(gaps):.6g} fs elsewhere; cut or convert the file"
        )
    if given is not None:
        if abs(given - timestep) * (len(times) - 1) > 2 * tolerance + 1e-6 * abs(times[-1] - times[0]):
            raise TrajectoryError(
                f"{source}: timestep={given:g} fs was given, but the file's frames are {timestep:.6g} fs apart "
                "(the time between stored frames counts, not the MD step)"
            )
        return float(given)
    return timestep


def check_same_cell(found: Array, given: Array | None, source: str) -> Array:
    """Return the file's cell; raise :class:`TrajectoryError` where the user gave another one [A]."""
    if given is None:
        return found
    if found.any() and not np.allclose(found, given, atol=1e-6):
        raise TrajectoryError(
            f"{source}: cell {given.tolist()} was given, but the file has {found.tolist()} "
            "(three lengths mean right angles)"
        )
    return given
