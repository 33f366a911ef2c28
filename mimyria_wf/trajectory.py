"""Trajectory files: open any of them, write H5MD and extended XYZ, convert into H5MD.

``open_trajectory`` streams; ``TrajectoryWriter`` appends. The formats are in :mod:`mimyria_wf.h5md` and
:mod:`mimyria_wf.trajectory_formats`, the data in :mod:`mimyria_wf.frames`.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mimyria_wf.errors import TrajectoryError
from mimyria_wf.frames import Array, Trajectory, TrajectoryReader, as_cell, default_masses, kinetic_energies
from mimyria_wf.h5md import H5mdReader
from mimyria_wf.h5md_writer import TrajectoryWriter
from mimyria_wf.lammps_dump import LammpsDumpReader
from mimyria_wf.trajectory_formats import AseReader, Cp2kReader, ExtxyzReader, extxyz_frame
from mimyria_wf.vasp_trajectory import OutcarReader, VaspH5Reader, VaspReader, VasprunReader, XdatcarReader

__all__ = [
    "Array",
    "Trajectory",
    "TrajectoryReader",
    "TrajectoryWriter",
    "as_cell",
    "check_velocities",
    "default_masses",
    "join",
    "kinetic_energies",
    "open_trajectory",
    "write_trajectory",
]

PathLike = str | os.PathLike[str]
Progress = Callable[[int, int, str], None]


def open_trajectory(
    path: PathLike,
    *,
    velocities: PathLike | None = None,
    timestep: float | None = None,
    cell: ArrayLike | None = None,
    pbc: bool | Iterable[bool] | None = None,
    drop_truncated: bool = False,
    units: str | None = None,
    elements: Sequence[str] | Mapping[int, str] | None = None,
) -> TrajectoryReader:
    """Open a trajectory for streaming.

    Formats: H5MD (``.h5``, ``.hdf5``, ``.h5md``); extended XYZ with velocities in ``vel`` [A/fs] or ``momenta``;
    CP2K's ``*-pos-*.xyz`` with ``*-vel-*.xyz`` beside it; LAMMPS text dumps; VASP's ``vaspout.h5``, ``vasprun.xml``,
    ``OUTCAR`` and ``XDATCAR``; anything that ASE reads.

    Args:
        path: the file.
        velocities: CP2K's velocity file, where it is not beside the positions.
        timestep: between stored frames [fs], for files that do not say it; must agree with those that do.
        cell: for files that do not hold it (CP2K): vectors, six parameters, or three edges of a box with right angles.
        pbc: overrides what the file says.
        drop_truncated: accept a text file that a killed run left with an unfinished last frame, and pos and vel
            files of different lengths: read what both hold.
        units: unit style of a LAMMPS dump that does not say it.
        elements: of the atom types 1, 2, ... of a LAMMPS dump that has no column ``element``.

    Raises:
        TrajectoryError: one line that names the file and the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise TrajectoryError(f"{path}: no such trajectory file")
    if path.stat().st_size == 0:
        raise TrajectoryError(f"{path}: the trajectory is empty")
    vectors = None if cell is None else as_cell(cell, str(path))
    periodic = None if pbc is None else np.broadcast_to(np.asarray(pbc, dtype=bool), (3,)).copy()
    if periodic is not None and periodic.any() and vectors is not None and not vectors.any():
        raise TrajectoryError(f"{path}: periodic without a cell; give cell= [A]")
    kind = _format(path)
    if velocities is not None and kind is not Cp2kReader:
        raise TrajectoryError(f"{path}: a velocity file goes with CP2K's *-pos-*.xyz only")
    if (units is not None or elements is not None) and kind is not LammpsDumpReader:
        raise TrajectoryError(f"{path}: a unit style and elements of atom types go with LAMMPS dumps only")
    if kind is LammpsDumpReader:
        return LammpsDumpReader(path, timestep, vectors, periodic, drop_truncated, units, elements)
    if issubclass(kind, VaspReader):
        return kind(path, timestep, vectors, periodic, drop_truncated)
    if kind is Cp2kReader:
        velocity_path = None if velocities is None else Path(velocities)
        if velocity_path is not None and not velocity_path.is_file():
            raise TrajectoryError(f"{velocity_path}: no such velocity file")
        return Cp2kReader(path, velocity_path, timestep, vectors, periodic, drop_truncated)
    if kind is ExtxyzReader:
        return ExtxyzReader(path, timestep, vectors, periodic, drop_truncated)
    if kind is H5mdReader:
        return H5mdReader(path, timestep, vectors, periodic)
    return AseReader(path, timestep, vectors, periodic)


def _format(path: Path) -> type[TrajectoryReader]:
    for word, kind in (("vaspout", VaspH5Reader), ("vasprun", VasprunReader), ("XDATCAR", XdatcarReader)):
        if word in path.name:
            return kind
    if "OUTCAR" in path.name and path.suffix != ".gz":
        return OutcarReader
    if path.suffix in (".h5", ".hdf5", ".h5md"):
        return H5mdReader
    if path.suffix in (".xyz", ".extxyz"):
        with path.open(errors="replace") as file:
            comment = [file.readline(), file.readline()][1]
        if "-vel-" in path.name and "Properties" not in comment:
            raise TrajectoryError(f"{path}: this is CP2K's velocity file; give the -pos- file, it finds this one")
        if "Properties" not in comment and "i =" in comment and "time =" in comment:
            return Cp2kReader
        return ExtxyzReader
    with path.open("rb") as binary:
        if binary.read(5) == b"ITEM:":
            return LammpsDumpReader
    return AseReader


def check_velocities(reader: TrajectoryReader, n_frames: int = 200) -> None:
    """Raise :class:`TrajectoryError` where velocities do not belong to the positions.

    For velocity Verlet, (x(t + dt) - x(t - dt)) / (2 dt) equals v(t) exactly at every step. A slope far from one means
    another unit; velocities that equal a one-sided difference are half a step off (leap-frog) or are differences
    themselves. Frames more than 2 fs apart say nothing and pass.

    Args:
        reader: the trajectory.
        n_frames: how many first frames to look at.
    """
    reader.require_velocities()
    if reader.timestep > 2.0 or reader.n_frames < 3:
        return
    part = reader.read(0, n_frames)
    assert part.velocities is not None
    steps = np.diff(part.positions, axis=0)
    forward, backward, now = steps[1:] / part.timestep, steps[:-1] / part.timestep, part.velocities[1:-1]
    is_smooth = np.maximum(np.abs(steps[1:]), np.abs(steps[:-1])) < 1.0  # not where positions are wrapped
    forward, backward, now = forward[is_smooth], backward[is_smooth], now[is_smooth]
    central = (forward + backward) / 2
    square = float(now @ now)
    slope = float(now @ central) / square if square > 0 else 1.0
    if not 0.5 < slope < 2:
        raise TrajectoryError(
            f"{reader.path}: velocities do not fit the positions: these change {slope:.3g} times as fast; check the "
            f"unit of the velocities, the time between frames ({reader.timestep:g} fs) and which frames they are of"
        )
    off = float(np.linalg.norm(central - now))
    for side, other in (("after", forward), ("before", backward)):
        if float(np.linalg.norm(other - now)) < 0.3 * off:
            raise TrajectoryError(
                f"{reader.path}: velocities are half a step {side} the positions (leap-frog, or differences of "
                "positions); write them at the same time, as velocity Verlet does"
            )


def write_trajectory(path: PathLike, trajectory: Trajectory, start_time: float = 0.0) -> None:
    """Write a trajectory as H5MD (``.h5``, ``.hdf5``, ``.h5md``) or extended XYZ (``.xyz``, ``.extxyz``), bit-exact.

    Args:
        path: file to write.
        trajectory: what to write.
        start_time: of the first frame [fs].
    """
    path = Path(path)
    for what, values in (("positions", trajectory.positions), ("velocities", trajectory.velocities)):
        if values is not None and not np.isfinite(values).all():
            raise TrajectoryError(f"{path}: not written, the {what} hold NaN or infinity")
    if path.suffix in (".h5", ".hdf5", ".h5md"):
        with writer_like(path, trajectory, start_time=start_time, observables=trajectory.observables) as writer:
            writer.extend(trajectory)
    elif path.suffix in (".xyz", ".extxyz"):
        _write_extxyz(path, trajectory, start_time)
    else:
        raise TrajectoryError(f"{path}: trajectories are written as .h5, .h5md or .extxyz")


def writer_like(
    path: PathLike,
    source: Trajectory | TrajectoryReader,
    *,
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    timestep: float | None = None,
    start_time: float = 0.0,
    observables: Iterable[str] = (),
    masses: Array | None = None,
) -> TrajectoryWriter:
    """Return a writer for the atoms, cell and masses (unless given) of another; metadata adds to the source's."""
    has_velocities = source.has_velocities if isinstance(source, TrajectoryReader) else source.velocities is not None
    # a copy must not pass for the finished file of the run
    inherited = {key: value for key, value in source.metadata.items() if key != "settings_sha256"}
    return TrajectoryWriter(
        path,
        source.numbers,
        source.timestep if timestep is None else timestep,
        cell=source.cell,
        pbc=source.pbc,
        masses=source.masses if masses is None else masses,
        name=name or source.name or None,
        metadata={**inherited, **(metadata or {})},
        observables=observables,
        has_velocities=has_velocities,
        start_time=start_time,
    )


def _write_extxyz(path: Path, trajectory: Trajectory, start_time: float) -> None:
    energies = trajectory.observables.get("potential_energy")
    info: dict[str, Any] = {"trajectory": trajectory.name} if trajectory.name else {}
    for key in ("charge", "multiplicity", "degrees_of_freedom", "seed"):
        if trajectory.metadata.get(key) is not None:
            info[key] = trajectory.metadata[key]
    own_masses = not np.array_equal(trajectory.masses, default_masses(trajectory.numbers))
    with path.open("w") as file:
        for i in range(trajectory.n_frames):
            info["time"] = start_time + i * trajectory.timestep
            if energies is not None:
                info["potential_energy"] = float(energies[i])
            file.write(
                extxyz_frame(
                    trajectory.numbers,
                    trajectory.positions[i],
                    None if trajectory.velocities is None else trajectory.velocities[i],
                    trajectory.cell,
                    trajectory.pbc,
                    trajectory.masses if own_masses else None,
                    info,
                )
            )


def join(
    paths: Sequence[PathLike],
    out: PathLike,
    *,
    velocities: Sequence[PathLike] | None = None,
    timestep: float | None = None,
    cell: ArrayLike | None = None,
    pbc: bool | Iterable[bool] | None = None,
    drop_truncated: bool = False,
    units: str | None = None,
    elements: Sequence[str] | Mapping[int, str] | None = None,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    masses: Array | None = None,
    chunk_size: int = 1000,
    progress: Progress | None = None,
) -> TrajectoryReader:
    """Write one or more consecutive files of any format into one H5MD trajectory and return it opened.

    A frame that two files share at their seam (restarts) is written once. ``start``, ``stop`` and ``stride`` count
    frames of each single file only when there is one; several files are joined whole. ``masses`` (n_atoms,) [u]
    replace those of the files, for formats that hold none.

    Raises:
        TrajectoryError: a file is bad, or the files do not follow one another; nothing is left at ``out``.
    """
    if not paths:
        raise TrajectoryError(f"{out}: no trajectory to convert")
    if velocities is not None and len(velocities) != len(paths):
        raise TrajectoryError(f"{out}: {len(paths)} position files but {len(velocities)} velocity files")
    if len(paths) > 1 and (start, stop, stride) != (0, None, 1):
        raise TrajectoryError(f"{out}: start, stop and stride go with one file; join first, then cut")
    if any(Path(path).resolve() == Path(out).resolve() for path in paths):
        raise TrajectoryError(f"{out}: input and output are the same file")
    readers = [
        open_trajectory(
            path,
            velocities=None if velocities is None else velocities[i],
            timestep=timestep,
            cell=cell,
            pbc=pbc,
            drop_truncated=drop_truncated,
            units=units,
            elements=elements,
        )
        for i, path in enumerate(paths)
    ]
    selections = [range(*slice(start, stop, stride).indices(readers[0].n_frames))]
    for before, after in itertools.pairwise(readers):
        selections.append(range(_n_shared_frames(before, after), after.n_frames))
    first = readers[0]
    if masses is not None and np.shape(masses) != (first.n_atoms,):
        raise TrajectoryError(f"{first.path}: {first.n_atoms} atoms, but masses of shape {np.shape(masses)} were given")
    total = sum(map(len, selections))
    names = list(first.read(0, 1).observables)
    added = dict(metadata or {})
    if "n_equilibration_frames" in first.metadata:
        left = int(first.metadata["n_equilibration_frames"]) - selections[0].start
        added.setdefault("n_equilibration_frames", max(-(-left // stride), 0))
    first_time = (first.start_time or 0.0) + selections[0].start * first.timestep
    try:
        done = 0
        with writer_like(
            out,
            first,
            name=name or Path(out).stem,
            metadata=added,
            timestep=first.timestep * stride,
            start_time=first_time,
            observables=names,
            masses=masses,
        ) as writer:
            for reader, selection in zip(readers, selections):
                for i in range(0, len(selection), chunk_size):
                    part = selection[i : i + chunk_size]
                    writer.extend(reader.read(part.start, part.stop, part.step))
                    done += len(part)
                    if progress is not None:
                        progress(done, total, "frames")
            if done == 0:
                raise TrajectoryError(f"{out}: frames {start}:{stop}:{stride} select none of {first.n_frames}")
    except BaseException:
        Path(out).unlink(missing_ok=True)  # half a conversion is of no use: the input is still there
        raise
    return open_trajectory(out)


def _n_shared_frames(before: TrajectoryReader, after: TrajectoryReader) -> int:
    """Return how many first frames of ``after`` are in ``before`` already: 0 or 1."""
    if not np.array_equal(before.numbers, after.numbers) or not np.allclose(before.cell, after.cell):
        raise TrajectoryError(f"{after.path}: other atoms or another cell than {before.path}")
    if not np.isclose(before.timestep, after.timestep, rtol=1e-5) or before.has_velocities != after.has_velocities:
        raise TrajectoryError(f"{after.path}: another timestep than {before.path}, or velocities in only one of them")
    if before.start_time is None or after.start_time is None:
        return 0
    gap = (after.start_time - before.start_time) / before.timestep - (before.n_frames - 1)
    for expected, shared in ((1, 0), (0, 1)):
        if abs(gap - expected) < 0.1:
            return shared
    raise TrajectoryError(
        f"{after.path}: starts at {after.start_time:g} fs, but {before.path} ends at "
        f"{before.start_time + (before.n_frames - 1) * before.timestep:g} fs; give consecutive files in order"
    )
