"""H5MD 1.1 trajectories (https://www.nongnu.org/h5md): read ours and others', write ours.

Files are written in HDF5's single-writer mode: whatever was flushed stays readable when the process is killed. Only a
file that was closed in good order says ``is_complete`` in its metadata.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import h5py
import numpy as np

from mimyria_wf import units
from mimyria_wf.errors import TrajectoryError
from mimyria_wf.frames import (
    Array,
    Trajectory,
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
CHUNK_BYTES = 1 << 19


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


def _plain(value: object) -> Any:
    """Return a NumPy scalar or array as Python's own, for JSON."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON-able")


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
            except OSError as error:
                raise TrajectoryError(
                    f"{self.path}: frames {frames.start}:{frames.stop} are damaged ({error})"
                ) from error
        return positions, velocities, observables


class TrajectoryWriter:
    """Writes an H5MD 1.1 trajectory frame by frame; use it as a context manager.

    Frames are buffered to one chunk and flushed when the chunk is full or ``flush_interval`` seconds old. A process
    that dies leaves a file that reads up to its last flush and is not ``is_complete``; so does leaving the context
    through an exception.

    Args:
        path: file to write; an existing one is replaced.
        numbers: (n_atoms,) atomic numbers.
        timestep: between stored frames [fs].
        cell: (3, 3) [A]; zeros or None for a cluster.
        pbc: (3,); by default periodic where there is a cell.
        masses: (n_atoms,) [u]; ASE's by default.
        name: of the trajectory; by default the file's stem.
        metadata: JSON-able; :attr:`metadata` may be changed until the file is closed.
        observables: names of the scalars that come with every frame.
        has_velocities: whether every frame brings velocities.
        start_time: of the first frame [fs].
        precision: of positions and velocities in the file.
        flush_interval: longest time that a frame stays in memory only [s].
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        numbers: Array,
        timestep: float,
        *,
        cell: Array | None = None,
        pbc: Array | Iterable[bool] | None = None,
        masses: Array | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        observables: Iterable[str] = (),
        has_velocities: bool = True,
        start_time: float = 0.0,
        precision: Literal["double", "single"] = "double",
        flush_interval: float = 30.0,
    ) -> None:
        self.path = Path(path)
        self.metadata: dict[str, Any] = {**(metadata or {}), "name": name or self.path.stem}
        self.metadata.pop("is_complete", None)
        self.n_frames = 0
        self.n_atoms = len(numbers)
        self._flush_interval = flush_interval
        if self.n_atoms == 0:
            raise TrajectoryError(f"{self.path}: a trajectory needs atoms")
        if not (np.isfinite(timestep) and timestep > 0):
            raise TrajectoryError(f"{self.path}: the timestep must be positive [fs], got {timestep}")
        vectors = as_cell(cell, str(self.path))
        periodic = np.array(vectors.any(axis=1) if pbc is None else list(pbc), dtype=bool)
        dtype = np.float64 if precision == "double" else np.float32
        frames_per_chunk = int(np.clip(CHUNK_BYTES // (self.n_atoms * 3 * np.dtype(dtype).itemsize), 1, 1024))
        shape = (frames_per_chunk, self.n_atoms, 3)
        self._buffers: dict[str, Array] = {"position": np.empty(shape, dtype)}
        if has_velocities:
            self._buffers["velocity"] = np.empty(shape, dtype)
        for key in observables:
            if key not in OBSERVABLE_UNITS:
                raise TrajectoryError(
                    f"{self.path}: unknown observable {key}, expected one of {list(OBSERVABLE_UNITS)}"
                )
            self._buffers[key] = np.empty(frames_per_chunk)
        self._n_buffered = 0
        self._n_written = 0
        self._last_flush = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._file: h5py.File | None = h5py.File(self.path, "w", libver=("v110", "v110"))
        self._create(self._file, numbers, vectors, periodic, masses, timestep, start_time)
        self._file.swmr_mode = True

    def _create(
        self,
        file: h5py.File,
        numbers: Array,
        cell: Array,
        pbc: Array,
        masses: Array | None,
        timestep: float,
        start_time: float,
    ) -> None:
        import mimyria_wf

        head = file.create_group("h5md")
        head.attrs["version"] = np.array([1, 1])
        head.create_group("author").attrs["name"] = np.bytes_("unknown")
        creator = head.create_group("creator")
        creator.attrs["name"] = np.bytes_("mimyria_wf")
        creator.attrs["version"] = np.bytes_(getattr(mimyria_wf, "__version__", "0"))
        ours = file.create_group("parameters/mimyria_wf")
        ours.attrs["metadata"] = self._metadata_text()
        ours.attrs["is_complete"] = np.bool_(False)
        group = file.create_group("particles/all")
        group["species"] = np.asarray(numbers, dtype=np.int32)
        group["mass"] = default_masses(np.asarray(numbers)) if masses is None else np.asarray(masses, dtype=float)
        group["mass"].attrs["unit"] = UNITS["mass"]
        box = group.create_group("box")
        box.attrs["dimension"] = 3
        box.attrs["boundary"] = np.array(["periodic" if p else "none" for p in pbc], dtype="S8")
        box["edges"] = cell
        box["edges"].attrs["unit"] = UNITS["position"]
        for key, buffer in self._buffers.items():
            is_vector = key in ("position", "velocity")
            element = (group if is_vector else file.require_group("observables")).create_group(key)
            value = element.create_dataset(
                "value",
                shape=(0, *buffer.shape[1:]),
                maxshape=(None, *buffer.shape[1:]),
                chunks=buffer.shape,
                dtype=buffer.dtype,
                compression="gzip",
                compression_opts=1,  # mantissas are noise: level 1 gains as much as 9
                shuffle=True,
            )
            value.attrs["unit"] = UNITS[key] if is_vector else OBSERVABLE_UNITS[key]
            element["step"] = 1
            element["time"] = float(timestep)
            element["time"].attrs["unit"] = UNITS["time"]
            element["time"].attrs["offset"] = float(start_time)

    def _metadata_text(self) -> str:
        try:
            return json.dumps(self.metadata, default=_plain, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TrajectoryError(f"{self.path}: metadata must be JSON-able ({error})") from error

    def append(self, positions: Array, velocities: Array | None = None, **observables: float) -> None:
        """Add one frame.

        Args:
            positions: (n_atoms, 3) [A].
            velocities: (n_atoms, 3) of the same time [A/fs].
            observables: the scalars that were announced.
        """
        if self._file is None:
            raise TrajectoryError(f"{self.path}: the file is closed")
        frame: dict[str, Any] = {"position": positions, **observables}
        if velocities is not None:
            frame["velocity"] = velocities
        if frame.keys() != self._buffers.keys():
            raise TrajectoryError(
                f"{self.path}: a frame brings {sorted(self._buffers)}, got {sorted(frame)} in frame {self.n_frames}"
            )
        for key, value in frame.items():
            if np.shape(value) != self._buffers[key].shape[1:]:
                raise TrajectoryError(
                    f"{self.path}: {key} must be {self._buffers[key].shape[1:]}, got {np.shape(value)}"
                )
            self._buffers[key][self._n_buffered] = value
        self._n_buffered += 1
        self.n_frames += 1
        if self._n_buffered == len(self._buffers["position"]):
            self.flush()
            self._n_buffered = self._n_written = 0
        elif time.monotonic() - self._last_flush > self._flush_interval:
            self.flush()

    def extend(self, trajectory: Trajectory) -> None:
        """Add all frames of a chunk; observables that were not announced are left out."""
        names = [key for key in self._buffers if key in OBSERVABLE_UNITS]
        missing = [name for name in names if name not in trajectory.observables]
        if missing:
            raise TrajectoryError(f"{self.path}: the chunk has no {missing[0]}")
        for i in range(trajectory.n_frames):
            self.append(
                trajectory.positions[i],
                trajectory.velocities[i] if trajectory.velocities is not None and "velocity" in self._buffers else None,
                **{name: float(trajectory.observables[name][i]) for name in names},
            )

    def flush(self) -> None:
        """Bring every frame so far to the file."""
        self._last_flush = time.monotonic()
        if self._file is None or self._n_buffered == self._n_written:
            return
        new = slice(self._n_written, self._n_buffered)
        for key, buffer in self._buffers.items():
            place = "particles/all" if key in ("position", "velocity") else "observables"
            value = self._file[f"{place}/{key}/value"]
            value.resize(self.n_frames, axis=0)
            value[self.n_frames - (new.stop - new.start) :] = buffer[new]
        self._n_written = self._n_buffered
        self._file.flush()

    def close(self, is_complete: bool = True) -> None:
        """Write what is left and the final metadata; ``is_complete`` says whether the run reached its end."""
        if self._file is None:
            return
        self.flush()
        self._file.close()
        self._file = None
        with h5py.File(self.path, "r+", libver=("v110", "v110")) as file:
            ours = file["parameters/mimyria_wf"]
            ours.attrs["metadata"] = self._metadata_text()
            ours.attrs["is_complete"] = np.bool_(is_complete)

    def __enter__(self) -> "TrajectoryWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(is_complete=kind is None)
