"""Write H5MD 1.1 trajectories frame by frame, so that a killed process loses little.

Files are written in HDF5's single-writer mode: whatever was flushed stays readable. Only a file that was closed in
good order says ``is_complete`` in its metadata.
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

from mimyria_wf.errors import TrajectoryError
from mimyria_wf.frames import Array, Trajectory, as_cell, default_masses
from mimyria_wf.h5md import OBSERVABLE_UNITS, UNITS

CHUNK_BYTES = 1 << 19
"""Uncompressed size of a chunk, the unit of reading and flushing [B]."""


def _plain(value: object) -> Any:
    """Return a NumPy scalar or array as Python's own, for JSON."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON-able")


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
