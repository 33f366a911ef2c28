"""Spectra from a dipole, polarizability or dielectric series: unwrapping, differences in time, derivatives files.

The second route into spectra: M(t), alpha(t) or epsilon(t) as another program printed them
(:mod:`mimyria_wf.series_files`), instead of tensors times velocities.

Derivatives are forward differences, ``(x(t + dt) - x(t)) / dt``. They are damped by ``sinc(pi f dt)`` in amplitude,
which :mod:`mimyria_wf.spectrum` divides out again; the result says so by ``origin = "differences"``. What lies above
the Nyquist wavenumber ``1/(2 c dt)`` is folded back below it and cannot be told apart afterwards.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase.geometry import minkowski_reduce
from numpy.typing import ArrayLike, NDArray

from mimyria_wf.born_charges import born_charge_series
from mimyria_wf.derivatives import (
    DerivativeSeries,
    count_degrees_of_freedom,
    find_removed_motion,
    is_linear,
    kinetic_temperature,
    read_derivatives,
    write_derivatives,
)
from mimyria_wf.errors import SpectrumError
from mimyria_wf.frames import TrajectoryReader, as_cell
from mimyria_wf.series_files import Kind, PropertySeries, as_polarizability, read_series
from mimyria_wf.trajectory import check_velocities, open_trajectory
from mimyria_wf.units import WAVENUMBER

Array = NDArray[Any]


def unwrap_dipole(dipoles: Array, quanta: Array, source: str = "dipole") -> tuple[Array, int]:
    """Remove the jumps that a periodic dipole makes by multiples of its quanta e a_i.

    Each difference of neighbouring frames is replaced by its shortest equivalent. That is the true one as long as the
    dipole moves less than half a quantum between frames; a difference more than half as long as the next shortest
    equivalent is refused, for then the choice is a guess.

    Args:
        dipoles: (n_frames, 3) [e A].
        quanta: (3, 3) rows e a_i of any cell [e A].
        source: what to name in an error.

    Returns:
        continuous dipoles (n_frames, 3) that begin with the first one as given, and the number of frames with a jump.

    Raises:
        SpectrumError: a difference is ambiguous.
    """
    reduced, _ = minkowski_reduce(quanta)
    steps = np.diff(dipoles, axis=0)
    nearest = steps - np.round(steps @ np.linalg.inv(reduced)) @ reduced
    # around the rounded one, the shortest equivalent of a reduced cell is at most one vector away in each direction
    shifts = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T @ reduced
    lengths = np.linalg.norm(nearest[:, None] + shifts, axis=2)
    order = np.argsort(lengths, axis=1)
    rows = np.arange(len(steps))
    shortest, second = lengths[rows, order[:, 0]], lengths[rows, order[:, 1]]
    ambiguous = np.flatnonzero(shortest > 0.5 * second)
    if len(ambiguous):
        t = int(ambiguous[0])
        raise SpectrumError(
            f"{source}: modulo its quanta, the dipole moves by {shortest[t]:.3g} or by {second[t]:.3g} e A between "
            f"frames {t} and {t + 1}; it is printed too rarely to be unwrapped: print it more often"
        )
    smallest = nearest + shifts[order[:, 0]]
    n_jumps = int((np.abs(smallest - steps).max(axis=1) > 1e-9 * np.abs(quanta).max()).sum())
    return np.concatenate([dipoles[:1], dipoles[:1] + np.cumsum(smallest, axis=0)]), n_jumps


def differentiate(
    series: PropertySeries,
    *,
    timestep: float | None = None,
    temperature: float,
    volume: float | None = None,
    is_periodic: bool = False,
    name: str = "",
) -> DerivativeSeries:
    """Return forward differences of one property as a series that spectra are made of.

    Args:
        series: dipole (unwrapped already, or not periodic), polarizability, or dielectric tensor.
        timestep: between values [fs]; must agree with what the files say.
        temperature: of the run [K].
        volume: of the cell, or a cluster's nominal volume [A^3]; needed for a dielectric tensor and for absolute IR.
        is_periodic: whether volume is that of a cell.
        name: of the run; by default that of the first file.

    Raises:
        SpectrumError: fewer than three frames, time step or volume unknown or contradictory.
    """
    if series.n_frames < 3:
        raise SpectrumError(f"{series.label}: {series.n_frames} frames; differences need three or more")
    if timestep is not None and not (np.isfinite(timestep) and timestep > 0):
        raise SpectrumError(f"{series.label}: the time step must be positive [fs], got {timestep}")
    step = timestep if timestep is not None else series.timestep
    if step is None:
        raise SpectrumError(f"{series.label}: the time between values is unknown; give it (--timestep-fs)")
    if series.timestep is not None and abs(step - series.timestep) > 1e-4 * series.timestep:
        raise SpectrumError(
            f"{series.label}: {step:g} fs between values was given, but its times are {series.timestep:g} fs apart"
        )
    if series.volume is not None:
        if volume is not None and abs(volume - series.volume) > 1e-3 * series.volume:
            raise SpectrumError(
                f"{series.label}: a volume of {volume:g} A^3 was given, but its cell has {series.volume:g} A^3"
            )
        volume, is_periodic = series.volume, True
    if series.kind == "dielectric":
        if volume is None:
            raise SpectrumError(
                f"{series.label}: a dielectric tensor needs the cell's volume; give cell or volume [A^3]"
            )
        series = as_polarizability(series, volume)
    derivative = (np.diff(series.values, axis=0) / step)[:, None, :]
    is_dipole = series.kind == "dipole"
    return DerivativeSeries(
        name=name or Path(series.label).stem,
        timestep=float(step),
        temperature=float(temperature),
        dipole_derivative=derivative if is_dipole else None,
        polarizability_derivative=None if is_dipole else derivative,
        volume=None if volume is None else float(volume),
        is_periodic=is_periodic,
        origin="differences",
        metadata={
            "route": f"forward differences of a {series.kind} series",
            "sources": [Path(p).name for p in series.sources[:3]] + (["..."] if len(series.sources) > 3 else []),
            "n_values": series.n_frames,
            "notes": list(series.notes),
        },
    )


def combine(first: DerivativeSeries, second: DerivativeSeries) -> DerivativeSeries:
    """Return dipole and polarizability derivative of one run, from differences both, as one series.

    Raises:
        SpectrumError: both hold the same property, or time step, length, temperature or volume differ.
    """
    for run in (first, second):
        if run.origin != "differences":
            raise SpectrumError(
                f"{run.name}: tensors times velocities are not joined to differences of a printed series"
            )
    dipoles = [run.dipole_derivative for run in (first, second) if run.dipole_derivative is not None]
    polarizabilities = [
        run.polarizability_derivative for run in (first, second) if run.polarizability_derivative is not None
    ]
    if len(dipoles) != 1 or len(polarizabilities) != 1:
        raise SpectrumError(
            f"{first.name} and {second.name}: one must hold a dipole series, the other a polarizability"
        )
    for what, a, b in (
        ("time step [fs]", first.timestep, second.timestep),
        ("number of frames", first.n_frames, second.n_frames),
        ("temperature [K]", first.temperature, second.temperature),
        ("volume [A^3]", first.volume or second.volume, second.volume or first.volume),
    ):
        if a is not None and b is not None and abs(a - b) > 1e-4 * abs(a):
            raise SpectrumError(f"{first.name} and {second.name} differ in {what}: {a:g} and {b:g}; not one run")
    return replace(
        first,
        dipole_derivative=dipoles[0],
        polarizability_derivative=polarizabilities[0],
        volume=first.volume or second.volume,
        is_periodic=first.is_periodic or second.is_periodic,
        metadata={"route": "forward differences of two series", "parts": [dict(first.metadata), dict(second.metadata)]},
    )


def derive_files(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    kind: Kind | Literal["born-charges"],
    unit: str | None = None,
    columns: str | None = None,
    timestep: float | None = None,
    temperature: float | None = None,
    trajectory: str | Path | None = None,
    volume: float | None = None,
    cell: ArrayLike | None = None,
    pbc: bool | None = None,
    start: int = 0,
    stop: int | None = None,
    name: str | None = None,
    beside: str | Path | None = None,
) -> dict[str, Any]:
    """Turn a printed series of one run into a derivatives file; what the verb ``derive`` does.

    Args:
        paths: see :func:`read_series`.
        out: derivatives file to write (HDF5).
        kind: what the files hold; "born-charges" takes them from VASP runs and multiplies them with the velocities of
            the trajectory (:mod:`mimyria_wf.born_charges`).
        unit: see :func:`read_series`.
        columns: see :func:`read_series`.
        timestep: between values [fs].
        temperature: of the run [K]; or give its trajectory.
        trajectory: of the same run, with velocities: temperature, cell and time step are taken from it and checked.
        volume: [A^3]; or give the cell.
        cell: see :func:`mimyria_wf.frames.as_cell` [A]; a dipole is then unwrapped by e a_i.
        pbc: False for a cluster whose trajectory does not say so (CP2K).
        start: first value to use.
        stop: end of the values to use.
        name: of the run.
        beside: derivatives file of the same run that holds the other property; ``out`` then holds both, for IR and
            Raman spectra in one go.

    Returns:
        name, kind, n_frames, timestep_fs, temperature_K, volume_A3, n_jumps (None where nothing was unwrapped),
        nyquist_wavenumber, notes, path.

    Raises:
        SpectrumError: files, units, lengths, time steps, cell or temperature are missing or do not agree.
    """
    if kind == "born-charges":
        return _derive_from_born_charges(paths, out, trajectory, timestep, name)
    series = read_series(paths, kind, unit=unit, columns=columns)
    vectors = None if cell is None else as_cell(cell, series.label)
    if trajectory is not None:
        # CP2K's trajectories hold no cell, its periodic dipoles do: quanta e a_i in e A
        own_cell = series.quanta if vectors is None and "-pos-" in Path(trajectory).name else vectors
        run = open_trajectory(trajectory, cell=own_cell, pbc=pbc)
        timestep = _timestep_beside(run, series, timestep)
        vectors = run.cell if run.cell.any() and run.pbc.all() else vectors
        own = _temperature_of(run)
        temperature = own if temperature is None else temperature
    if temperature is None:
        raise SpectrumError(
            f"{series.label}: temperature unknown; give it (--temperature-K) or the run's trajectory with velocities"
        )
    cell_volume = None if vectors is None or not vectors.any() else float(abs(np.linalg.det(vectors)))
    if cell_volume is not None:
        if volume is not None and abs(volume - cell_volume) > 1e-3 * cell_volume:
            raise SpectrumError(f"{series.label}: volume {volume:g} A^3, but the cell has {cell_volume:g} A^3")
        volume = cell_volume
    series = replace(series, values=series.values[start:stop])
    series, n_jumps = _unwrapped(series, vectors)
    is_periodic = cell_volume is not None or series.quanta is not None
    if volume is None and series.quanta is not None:
        volume = float(abs(np.linalg.det(series.quanta)))  # quanta are e a_i, in e A
    result = differentiate(
        series,
        timestep=timestep,
        temperature=temperature,
        volume=volume,
        is_periodic=is_periodic,
        name=name or "",
    )
    if beside is not None:
        result = combine(read_derivatives(beside), result)
    return _written(result, out, kind, n_jumps, series.notes)


def _derive_from_born_charges(
    paths: Sequence[str | Path],
    out: str | Path,
    trajectory: str | Path | None,
    timestep: float | None,
    name: str | None,
) -> dict[str, Any]:
    if trajectory is None:
        raise SpectrumError(f"{paths[0]}: Born charges need the velocities of their run; give its --trajectory")
    result = born_charge_series(paths, open_trajectory(trajectory), timestep=timestep, name=name or "")
    note = f"first configuration is frame {result.metadata['first_frame']} of {Path(trajectory).name}"
    return _written(result, out, "born-charges", None, (note,))


def _written(
    result: DerivativeSeries, out: str | Path, kind: str, n_jumps: int | None, notes: Sequence[str]
) -> dict[str, Any]:
    """Write a derivatives file and return the summary of ``derive``."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_derivatives(out, result)
    return {
        "name": result.name,
        "kind": kind,
        "n_frames": result.n_frames,
        "timestep_fs": result.timestep,
        "temperature_K": result.temperature,
        "volume_A3": result.volume,
        "n_jumps": n_jumps,
        "nyquist_wavenumber": 0.5 * WAVENUMBER / result.timestep,
        "notes": list(notes),
        "path": str(out),
    }


def _unwrapped(series: PropertySeries, cell: Array | None) -> tuple[PropertySeries, int | None]:
    """Return the series with a dipole's jumps removed, and how many there were."""
    if series.kind != "dipole" or series.n_frames < 2:
        return series, None
    quanta = series.quanta
    if quanta is not None and cell is not None and cell.any() and not _same_lattice(quanta, cell):
        raise SpectrumError(f"{series.label}: its dipole quanta do not fit the cell given, {cell.tolist()} A")
    if quanta is None and cell is not None and cell.any():
        quanta = cell  # e a_i in e A
    if quanta is None:
        note = "dipoles taken as continuous: no cell was given to unwrap them by, nor does the file call them periodic"
        return replace(series, notes=(*series.notes, note)), None
    values, n_jumps = unwrap_dipole(series.values, quanta, series.label)
    note = f"{n_jumps} jumps by polarization quanta e a_i removed"
    return replace(series, values=values, quanta=quanta, notes=(*series.notes, note)), n_jumps


def _same_lattice(a: Array, b: Array) -> bool:
    """Tell whether rows a and b span the same lattice; printed quanta have eight decimals in debye."""
    ratio = a @ np.linalg.inv(b)
    return bool(np.allclose(ratio, np.round(ratio), atol=1e-4) and abs(abs(np.linalg.det(ratio)) - 1) < 1e-3)


def _timestep_beside(run: TrajectoryReader, series: PropertySeries, given: float | None) -> float:
    """Return the time between values from the trajectory that they were computed along."""
    step = given if given is not None else series.timestep
    if step is None:
        if series.n_frames != run.n_frames:
            raise SpectrumError(
                f"{series.label}: {series.n_frames} values, but {run.path} has {run.n_frames} frames; give the time "
                "between values (--timestep-fs) if they were computed at every n-th frame"
            )
        return run.timestep
    stride = round(step / run.timestep)
    if stride < 1 or abs(stride * run.timestep - step) > 1e-4 * step:
        raise SpectrumError(
            f"{series.label}: {step:g} fs between values is no multiple of the {run.timestep:g} fs of {run.path}"
        )
    expected = -(-run.n_frames // stride)
    if abs(series.n_frames - expected) > 1:
        raise SpectrumError(
            f"{series.label}: {series.n_frames} values every {step:g} fs, but {run.path} has {run.n_frames} frames "
            f"every {run.timestep:g} fs, which makes {expected}; they are not of one run, or the time step is wrong"
        )
    return float(step)


def _temperature_of(run: TrajectoryReader) -> float:
    """Return the mean kinetic temperature of a run, counted by the motions that its velocities lack [K]."""
    check_velocities(run)
    total, n_frames, degrees = 0.0, 0, 0
    for _, part in run.chunks(1000):
        assert part.velocities is not None
        if not degrees:
            is_periodic = bool(run.pbc.all())
            removed = find_removed_motion(run.masses, part.positions, part.velocities, is_periodic)
            degrees = count_degrees_of_freedom(run.n_atoms, removed, is_linear(run.masses, part.positions[0]))
        total += float(kinetic_temperature(run.masses, part.velocities, degrees).sum())
        n_frames += part.n_frames
    return total / n_frames
