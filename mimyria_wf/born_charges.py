"""Infrared from VASP's Born charges along a run whose trajectory has velocities: M'(t) = sum_i P_i(t)^T v_i(t), Eq. 3.

Each response run must be of a frame of the trajectory. Which one is found from the positions and checked for every run,
for tensors and velocities of different times give a spectrum that looks right and is not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimyria_wf.derivatives import DerivativeSeries, derivative_series
from mimyria_wf.errors import LabelError, SpectrumError
from mimyria_wf.frames import TrajectoryReader
from mimyria_wf.series_files import series_paths
from mimyria_wf.trajectory import check_velocities
from mimyria_wf.vasp_output import VaspResponse, read_vasp_response

Array = NDArray[Any]

POSITION_TOLERANCE = 1e-3
"""Largest distance between an atom of a response run and of its frame, modulo the cell [A]; OUTCARs print 1e-5."""


def born_charge_series(
    paths: Sequence[str | Path],
    trajectory: TrajectoryReader,
    *,
    timestep: float | None = None,
    name: str = "",
) -> DerivativeSeries:
    """Contract the Born charges of LEPSILON or LCALCEPS runs with the velocities of their frames.

    Args:
        paths: OUTCARs or vasprun.xml in the order of time; a folder as for :func:`mimyria_wf.series_files.read_series`.
        trajectory: of the run that the configurations were taken from, with velocities.
        timestep: between configurations [fs]; by default that of the trajectory's frames.
        name: of the run.

    Raises:
        SpectrumError: time steps do not go together, or a configuration is not the frame that it should be.
        LabelError: a run has no Born charges.
        TrajectoryError: the trajectory has no velocities.
    """
    check_velocities(trajectory)
    files = series_paths(paths)
    step = trajectory.timestep if timestep is None else timestep
    stride = round(step / trajectory.timestep)
    if stride < 1 or abs(stride * trajectory.timestep - step) > 1e-4 * step:
        raise SpectrumError(
            f"{files[0]}: {step:g} fs between configurations is no multiple of the {trajectory.timestep:g} fs of "
            f"{trajectory.path}"
        )
    first = _read(files[0], trajectory)
    start = _find_frame(first, trajectory)
    last = start + (len(files) - 1) * stride
    if last >= trajectory.n_frames:
        raise SpectrumError(
            f"{files[-1]} should be frame {last} of {trajectory.path}, which has {trajectory.n_frames} frames; check "
            "the time between configurations (--timestep-fs)"
        )
    part = trajectory.read(start, last + 1, stride)
    tensors = np.empty((len(files), trajectory.n_atoms, 3, 3))
    for i, path in enumerate(files):
        response = _read(path, trajectory) if i else first
        off = _distance(response, part.positions[i : i + 1])[0]
        if off > POSITION_TOLERANCE:
            raise SpectrumError(
                f"{path}: its atoms are up to {off:.3g} A away from frame {start + i * stride} of {trajectory.path}; "
                "one configuration is missing, or the time between them is wrong (--timestep-fs)"
            )
        tensors[i] = response.apt
    assert part.velocities is not None
    return derivative_series(
        part.velocities,
        part.positions,
        trajectory.masses,
        step,
        apt=tensors,
        name=name or trajectory.name,
        volume=first.volume,
        is_periodic=True,
        metadata={
            "route": "Born charges times velocities",
            "trajectory": trajectory.path.name,
            "first_frame": start,
            "stride": stride,
            "vasp": first.version,
            "method": first.method,
        },
    )


def _read(path: Path, trajectory: TrajectoryReader) -> VaspResponse:
    response = read_vasp_response(path)
    if response.apt is None:
        raise LabelError(f"{path}: no Born charges; run VASP with LEPSILON = .TRUE.")
    if not np.array_equal(response.atoms.numbers, trajectory.numbers):
        raise SpectrumError(
            f"{path}: its atoms, {response.atoms.get_chemical_formula()}, are not those of {trajectory.path} one by "
            "one; the order of atoms must be the same"
        )
    if not np.allclose(response.atoms.cell[:], trajectory.cell, atol=1e-4):
        raise SpectrumError(f"{path}: another cell than {trajectory.path}")
    return response


def _distance(response: VaspResponse, positions: Array) -> Array:
    """Return the largest distance of an atom, modulo the cell, for each of (n_frames, n_atoms, 3) positions [A]."""
    cell = response.atoms.cell[:]
    fraction = (positions - response.atoms.positions) @ np.linalg.inv(cell)
    largest: Array = np.linalg.norm((fraction - np.round(fraction)) @ cell, axis=2).max(axis=1)
    return largest


def _find_frame(response: VaspResponse, trajectory: TrajectoryReader) -> int:
    """Return the frame that a configuration is of."""
    best, where = np.inf, 0
    for begin, part in trajectory.chunks(1000):
        distances = _distance(response, part.positions)
        nearest = int(np.argmin(distances))
        if distances[nearest] < best:
            best, where = float(distances[nearest]), begin + nearest
    if best > POSITION_TOLERANCE:
        raise SpectrumError(
            f"{response.path}: no frame of {trajectory.path} has these positions; the nearest, frame {where}, is "
            f"{best:.3g} A away"
        )
    return where
