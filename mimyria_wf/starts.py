"""Where MD runs start: structure files, and frames picked from a canonical run with their velocities."""

from collections.abc import Sequence
from pathlib import Path

import ase
import ase.io
import ase.units
import numpy as np
from numpy.typing import ArrayLike

from mimyria_wf.errors import TrajectoryError
from mimyria_wf.frames import TrajectoryReader, as_cell, default_masses
from mimyria_wf.trajectory import PathLike
from mimyria_wf.trajectory_formats import extxyz_frame


def pick_starts(reader: TrajectoryReader, n_starts: int, seed: int, n_equilibration_frames: int = 0) -> list[ase.Atoms]:
    """Return frames of a canonical run to start NVE runs from: evenly spaced, at a random offset.

    Args:
        reader: the run, with velocities.
        n_starts: how many.
        seed: of the offset.
        n_equilibration_frames: first frames to leave out.

    Returns:
        Atoms with velocities; ``info`` has ``start_frame`` and ``snapshot``.

    Raises:
        TrajectoryError: too few frames, or no velocities.
    """
    reader.require_velocities()
    n_available = reader.n_frames - n_equilibration_frames
    if not 1 <= n_starts <= n_available:
        raise TrajectoryError(
            f"{reader.path}: cannot pick {n_starts} starts from {max(n_available, 0)} frames after the equilibration"
        )
    offset = np.random.default_rng(seed).random()
    frames = n_equilibration_frames + np.floor((offset + np.arange(n_starts)) * n_available / n_starts).astype(int)
    starts = []
    for frame in frames.tolist():
        atoms = reader.atoms(frame)
        atoms.info["start_frame"] = frame
        starts.append(atoms)
    return starts


def write_starts(path: PathLike, starts: Sequence[ase.Atoms]) -> None:
    """Write starts as extended XYZ, velocities in column ``vel`` [A/fs], bit-exact."""
    with Path(path).open("w") as file:
        for atoms in starts:
            masses = atoms.get_masses()
            info = {
                key: atoms.info[key]
                for key in ("charge", "multiplicity", "start_frame", "snapshot", "seed")
                if key in atoms.info
            }
            file.write(
                extxyz_frame(
                    atoms.numbers,
                    atoms.positions,
                    atoms.get_velocities() * ase.units.fs,
                    atoms.cell[:],
                    atoms.pbc,
                    None if np.array_equal(masses, default_masses(atoms.numbers)) else masses,
                    info,
                )
            )


def read_starts(path: PathLike) -> list[ase.Atoms]:
    """Read starts from extended XYZ with velocities in column ``vel`` [A/fs] or ``momenta``.

    Raises:
        TrajectoryError: unreadable, empty, or without velocities.
    """
    try:
        starts = list(ase.io.iread(Path(path), index=":", format="extxyz"))
    except Exception as error:  # ASE's readers raise whatever they like
        raise TrajectoryError(f"{path}: not a readable extended XYZ file ({type(error).__name__}: {error})") from error
    if not starts:
        raise TrajectoryError(f"{path}: no starts in it")
    for i, atoms in enumerate(starts):
        if "vel" in atoms.arrays:
            velocities = atoms.arrays.pop("vel")
            atoms.set_velocities(velocities / ase.units.fs)
        elif not atoms.has("momenta"):
            raise TrajectoryError(f"{path}: start {i} has no velocities; give a column vel:R:3 [A/fs]")
    return starts


def read_structure(
    path: PathLike,
    *,
    cell: ArrayLike | None = None,
    pbc: bool | None = None,
    charge: int = 0,
    multiplicity: int = 1,
) -> ase.Atoms:
    """Read the structure that a run starts from; cell and pbc override the file's.

    Raises:
        TrajectoryError: unreadable, or periodic without a cell.
    """
    if not Path(path).is_file():
        raise TrajectoryError(f"{path}: no such structure file")
    try:
        atoms = ase.io.read(Path(path))
    except Exception as error:  # ASE's readers raise whatever they like
        raise TrajectoryError(f"{path}: ASE cannot read it ({type(error).__name__}: {error})") from error
    assert isinstance(atoms, ase.Atoms)
    if "vel" in atoms.arrays:
        atoms.set_velocities(atoms.arrays.pop("vel") / ase.units.fs)
    if cell is not None:
        atoms.set_cell(as_cell(cell, str(path)))
        atoms.pbc = True
    if pbc is not None:
        atoms.pbc = pbc
    if atoms.pbc.any() and atoms.cell.rank < 3:
        raise TrajectoryError(f"{path}: periodic without a cell; give one")
    atoms.info.update(charge=charge, multiplicity=multiplicity)
    return atoms
