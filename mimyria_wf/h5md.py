"""H5MD 1.1 trajectories (https://www.nongnu.org/h5md), ours and others'.

Ours are written by :mod:`mimyria_wf.h5md_writer`; one whose writer was killed reads up to its last flush.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from mimyria_wf import units
from mimyria_wf.errors import TrajectoryError
from mimyria_wf.frames import (
    Array,
    TrajectoryReader,
    as_cell,
    check_same_cell,
    default_masses,
    timestep_from_times,
)

UNITS = {"position": "Angstrom", "velocity": "Angstrom fs-1", "time": "fs", "mass": "u", "temperature": "K"}
OBSERVABLE_UNITS = {"potential_energy": "eV", "kinetic_energy": "eV", "temperature": "K"}
# H5MD's units are strings of factors with powers; each is given here in the core's units
LENGTHS = {"Angstrom": 1.0, "angstrom": 1.0, "A": 1.0, "nm": 10.0, "pm": 0.01, "bohr": units.BOHR, "a0": units.BOHR}
TIMES = {"fs": 1.0, "ps": 1e3, "ns": 1e6, "s": 1e15}
MASSES = {"u": 1.0, "amu": 1.0, "Da": 1.0, "g mol-1": 1.0}


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as first:
        try:  # the writer was killed, or is still at work: HDF5 then wants the single-writer mode
            return h5py.File(path, "r", swmr=True)
        except (OSError, ValueError):
            raise TrajectoryError(f"{path}: not a readable HDF5 file ({str(first).splitlines()[0]})") from first


def _unit_factor(dataset: h5py.Dataset | h5py.Group, what: str, path: Path) -> float:
    unit = dataset.attrs.get("unit")
    if isinstance(unit, bytes):
        unit = unit.decode()
    tables: dict[str, Mapping[str, float]] = {"position": LENGTHS, "time": TIMES, "mass": MASSES}
    if what == "velocity":
        table: Mapping[str, float] = {
            form.format(length=length, time=t): a / b
            for length, a in LENGTHS.items()
            for t, b in TIMES.items()
            for form in ("{length} {time}-1", "{length}/{time}")
        }
    else:
        table = tables[what]
    if unit not in table:
        raise TrajectoryError(
            f"{path}: {dataset.name} has unit {unit!r}, expected one such as {UNITS[what]!r}; set its attribute 'unit'"
        )
    return table[unit]


class H5mdReader(TrajectoryReader):
    """An H5MD file with one group of particles; opened for each read, so that readers travel between processes."""

    def __init__(
        self,
        path: Path,
        timestep: float | None = None,
        cell: Array | None = None,
        pbc: Array | None = None,
    ) -> None:
        self.path = path
        try:
            self._read_header(path, timestep, cell, pbc)
        except (OSError, RuntimeError, KeyError, ValueError) as error:  # what HDF5 makes of damaged blocks
            raise TrajectoryError(f"{path}: damaged or not an H5MD trajectory ({error})") from error

    def _read_header(self, path: Path, timestep: float | None, cell: Array | None, pbc: Array | None) -> None:
        with _open(path) as file:
            groups = list(file["particles"]) if "particles" in file else []
            if len(groups) != 1:
                raise TrajectoryError(f"{path}: expected one group in /particles, found {groups or 'none'}")
            self._group = f"particles/{groups[0]}"
            group = file[self._group]
            if "position/value" not in group:
                raise TrajectoryError(f"{path}: no /{self._group}/position/value; is it an H5MD trajectory?")
            value = group["position/value"]
            n_frames = len(value)
            if n_frames == 0:
                raise TrajectoryError(f"{path}: the trajectory is empty (0 frames were flushed)")
            self.has_velocities = "velocity/value" in group
            if self.has_velocities and len(group["velocity/value"]) != n_frames:
                n_velocities = len(group["velocity/value"])
                if self._written_by_us(file) and not self._is_complete(file):
                    n_frames = min(n_frames, n_velocities)  # killed between two datasets of one flush
                else:
                    raise TrajectoryError(f"{path}: {n_frames} frames of positions but {n_velocities} of velocities")
            self._position_factor = _unit_factor(
                value if "unit" in value.attrs else group["position"], "position", path
            )
            self._velocity_factor = 1.0
            if self.has_velocities:
                self._check_same_times(group)
                velocity = group["velocity/value"]
                self._velocity_factor = _unit_factor(
                    velocity if "unit" in velocity.attrs else group["velocity"], "velocity", path
                )
            self.numbers = self._numbers(group, value.shape[1])
            self.masses = default_masses(self.numbers)
            if "mass" in group:
                mass = group["mass"]
                self.masses = np.asarray(mass, dtype=float) * _unit_factor(mass, "mass", path)
            own_cell, own_pbc = self._box(group)
            self.cell = check_same_cell(own_cell, cell, str(path))
            self.pbc = own_pbc if pbc is None else pbc
            self._observables = [
                name
                for name in OBSERVABLE_UNITS
                if f"observables/{name}/value" in file
                and file[f"observables/{name}/value"].ndim == 1
                and (self._written_by_us(file) or len(file[f"observables/{name}/value"]) == n_frames)
            ]
            for name in self._observables:
                n_frames = min(n_frames, len(file[f"observables/{name}/value"]))
            if n_frames == 0:
                raise TrajectoryError(f"{path}: the trajectory is empty (0 frames were flushed)")
            self.n_frames = n_frames
            self.timestep, self.start_time = self._times(group["position"], timestep)
            metadata = json.loads(file["parameters/mimyria_wf"].attrs["metadata"]) if self._written_by_us(file) else {}
            self.name = str(metadata.pop("name", path.stem))
            if self._written_by_us(file):
                metadata["is_complete"] = self._is_complete(file)
            self.metadata = metadata

    @staticmethod
    def _written_by_us(file: h5py.File) -> bool:
        return "parameters/mimyria_wf" in file

    @staticmethod
    def _is_complete(file: h5py.File) -> bool:
        return bool(file["parameters/mimyria_wf"].attrs["is_complete"])

    def _numbers(self, group: h5py.Group, n_atoms: int) -> Array:
        if "species" not in group or not isinstance(group["species"], h5py.Dataset):
            raise TrajectoryError(f"{self.path}: no /{self._group}/species; store atomic numbers there")
        numbers = np.asarray(group["species"])
        if numbers.shape != (n_atoms,) or numbers.dtype.kind not in "iu" or not ((numbers > 0) & (numbers < 119)).all():
            raise TrajectoryError(
                f"{self.path}: /{self._group}/species must hold {n_atoms} atomic numbers, got {numbers[:4].tolist()}..."
            )
        return numbers.astype(int)

    def _box(self, group: h5py.Group) -> tuple[Array, Array]:
        if "box" not in group:
            return np.zeros((3, 3)), np.zeros(3, dtype=bool)
        box = group["box"]
        boundary = [b.decode() if isinstance(b, bytes) else str(b) for b in np.atleast_1d(box.attrs["boundary"])]
        pbc = np.array([b == "periodic" for b in boundary])
        if "edges" not in box:
            if pbc.any():
                raise TrajectoryError(f"{self.path}: /{self._group}/box is periodic but has no edges")
            return np.zeros((3, 3)), pbc
        edges = box["edges"]
        if isinstance(edges, h5py.Group):
            values = np.asarray(edges["value"], dtype=float)
            if np.ptp(values, axis=0).max() > 1e-8 * np.abs(values).max():
                raise TrajectoryError(f"{self.path}: the cell changes in time; NVE and NVT runs keep it")
            source, vectors = edges["value"], values[0]
        else:
            source, vectors = edges, np.asarray(edges, dtype=float)
        factor = _unit_factor(source, "position", self.path) if "unit" in source.attrs else self._position_factor
        return as_cell(vectors * factor, str(self.path)), pbc

    def _times(self, element: h5py.Group, given: float | None) -> tuple[float, float | None]:
        if "time" not in element:
            return timestep_from_times(np.empty(0), given, str(self.path), 0.0), None
        stored = element["time"]
        factor = _unit_factor(stored, "time", self.path)
        if stored.shape == ():
            timestep, start = float(stored[()]) * factor, float(stored.attrs.get("offset", 0.0)) * factor
            times = start + timestep * np.arange(max(self.n_frames, 2))
            return timestep if given is None else timestep_from_times(times, given, str(self.path), 1e-6), start
        times = np.asarray(stored, dtype=float)[: self.n_frames] * factor
        if len(times) != self.n_frames:
            raise TrajectoryError(f"{self.path}: {self.n_frames} frames but {len(times)} times")
        # single-precision times of other codes: 1e-6 of the whole length
        tolerance = max(1e-6 * abs(float(times[-1] - times[0])), 1e-6)
        return timestep_from_times(times, given, str(self.path), tolerance), float(times[0])

    def _check_same_times(self, group: h5py.Group) -> None:
        for key in ("step", "time"):
            if key in group["position"] and key in group["velocity"]:
                a, b = group[f"position/{key}"], group[f"velocity/{key}"]
                if (
                    a.shape != b.shape
                    or (a.shape == () and not self._same_series(a, b))
                    or not np.array_equal(a[()], b[()])
                ):
                    raise TrajectoryError(
                        f"{self.path}: positions and velocities have different {key}s; both are needed together"
                    )

    @staticmethod
    def _same_series(a: h5py.Dataset, b: h5py.Dataset) -> bool:
        return bool(a[()] == b[()] and a.attrs.get("offset", 0) == b.attrs.get("offset", 0))

    def _load(self, frames: range) -> tuple[Array, Array | None, dict[str, Array]]:
        selection = slice(frames.start, frames.stop, frames.step)
        with _open(self.path) as file:
            group = file[self._group]
            try:
                positions = group["position/value"][selection].astype(float) * self._position_factor
                if "image/value" in group and self.cell.any():
                    positions += group["image/value"][selection] @ self.cell
                velocities = None
                if self.has_velocities:
                    velocities = group["velocity/value"][selection].astype(float) * self._velocity_factor
                observables = {
                    name: file[f"observables/{name}/value"][selection].astype(float) for name in self._observables
                }
            except (OSError, RuntimeError, KeyError, ValueError) as error:
                raise TrajectoryError(
                    f"{self.path}: frames {frames.start}:{frames.stop} are damaged ({error})"
                ) from error
        return positions, velocities, observables
