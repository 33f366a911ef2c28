"""Text trajectories (extended XYZ, CP2K's pos and vel files) and whatever ASE reads, as streams of frames."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase.data
import ase.io
import ase.units
import numpy as np
from ase.io.extxyz import key_val_str_to_dict

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


class XyzFrames:
    """Random access to the frames of an XYZ file, whose index is one pass over its lines.

    Args:
        path: the file.
        drop_truncated: leave out a last frame that a killed run left unfinished instead of refusing it.
    """

    def __init__(self, path: Path, drop_truncated: bool = False) -> None:
        self.path = path
        self.offsets: list[int] = []
        self.comments: list[str] = []
        self.n_atoms = 0
        position = 0
        with path.open("rb") as file:
            while line := file.readline():
                if not line.strip():
                    position += len(line)
                    if file.read().strip():
                        raise TrajectoryError(f"{path}: blank line after frame {len(self.offsets) - 1}")
                    break
                try:
                    n_atoms = int(line)
                except ValueError as error:
                    raise TrajectoryError(
                        f"{path}: frame {len(self.offsets)} must start with the number of atoms, "
                        f"found {line.decode(errors='replace').strip()[:60]!r}"
                    ) from error
                if self.offsets and n_atoms != self.n_atoms:
                    raise TrajectoryError(
                        f"{path}: frame {len(self.offsets)} has {n_atoms} atoms, frame 0 has {self.n_atoms}"
                    )
                if n_atoms < 1:
                    raise TrajectoryError(f"{path}: frame {len(self.offsets)} has {n_atoms} atoms")
                self.n_atoms = n_atoms
                lines = [file.readline() for _ in range(n_atoms + 1)]
                is_whole = all(text.endswith(b"\n") for text in lines[:-1]) and bool(lines[-1].strip())
                at_end = not lines[-1].endswith(b"\n")
                if at_end and is_whole:  # the last line lacks its newline: whole only if it has all its columns
                    is_whole = len(lines) < 3 or len(lines[-1].split()) == len(lines[-2].split())
                if not is_whole:
                    if drop_truncated:
                        break
                    raise TrajectoryError(
                        f"{path}: frame {len(self.offsets)} is truncated; remove it or read with drop_truncated "
                        "(convert --drop-truncated)"
                    )
                self.offsets.append(position)
                self.comments.append(lines[0].decode().strip())
                position += len(line) + sum(map(len, lines))
        if not self.offsets:
            raise TrajectoryError(f"{path}: the trajectory is empty")
        self.offsets.append(position)

    def __len__(self) -> int:
        return len(self.comments)

    def rows(self, frame: int) -> list[list[str]]:
        """Return the columns of every atom's line of one frame."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[frame])
            text = file.read(self.offsets[frame + 1] - self.offsets[frame]).decode()
        return [line.split() for line in text.splitlines()[2 : 2 + self.n_atoms]]

    def read(self, frames: range, symbols: list[str], first: int, columns: list[int]) -> Array:
        """Return numeric columns of many frames.

        Args:
            frames: which.
            symbols: what column ``first`` must hold in every frame.
            first: column of the symbols.
            columns: the numeric columns.

        Returns:
            (n_frames, n_atoms, n_columns).
        """
        values = np.empty((len(frames), self.n_atoms, len(columns)))
        width = max([first, *columns]) + 1
        with self.path.open("rb") as file:
            for i, frame in enumerate(frames):
                file.seek(self.offsets[frame])
                text = file.read(self.offsets[frame + 1] - self.offsets[frame]).decode()
                rows = [line.split() for line in text.splitlines()[2 : 2 + self.n_atoms]]
                for atom, row in enumerate(rows):
                    if len(row) < width:
                        raise TrajectoryError(
                            f"{self.path}: atom {atom} of frame {frame} has {len(row)} columns, expected {width}"
                        )
                    if row[first] != symbols[atom]:
                        raise TrajectoryError(
                            f"{self.path}: atom {atom} is {row[first]} in frame {frame}, {symbols[atom]} in frame 0; "
                            "the order of atoms must not change"
                        )
                try:
                    values[i] = [[float(row[c]) for c in columns] for row in rows]
                except ValueError as error:
                    raise TrajectoryError(f"{self.path}: frame {frame}: {error}") from error
        return values


def _atomic_numbers(symbols: list[str], path: Path, strip_digits: bool) -> Array:
    names = [re.sub(r"\d+$", "", s) if strip_digits else s for s in symbols]
    unknown = [s for s, name in zip(symbols, names) if ase.data.atomic_numbers.get(name.capitalize(), 0) == 0]
    if unknown:
        raise TrajectoryError(f"{path}: {unknown[0]!r} is not a chemical element")
    return np.array([ase.data.atomic_numbers[name.capitalize()] for name in names])


def extxyz_frame(
    numbers: Array,
    positions: Array,
    velocities: Array | None,
    cell: Array,
    pbc: Array,
    masses: Array | None,
    info: Mapping[str, Any],
) -> str:
    """Return one frame as extended XYZ text that reads back bit by bit.

    Args:
        numbers: (n_atoms,) atomic numbers.
        positions: (n_atoms, 3) [A].
        velocities: (n_atoms, 3), column ``vel`` [A/fs].
        cell: (3, 3) [A]; zeros leave it out.
        pbc: (3,) booleans.
        masses: (n_atoms,) [u]; None leaves them out.
        info: further keys of the comment line.
    """
    header = 'Lattice="' + " ".join(repr(float(x)) for x in np.ravel(cell)) + '" ' if np.any(cell) else ""
    header += "Properties=species:S:1:pos:R:3"
    columns = [positions]
    if velocities is not None:
        header += ":vel:R:3"
        columns.append(velocities)
    if masses is not None:
        header += ":masses:R:1"
        columns.append(masses[:, None])
    header += ' pbc="' + " ".join("T" if p else "F" for p in pbc) + '"'
    if velocities is not None:
        header += ' vel_unit="A/fs"'
    for key, value in info.items():
        header += f' {key}="{value}"' if isinstance(value, str) else f" {key}={value!r}"
    lines = [str(len(numbers)), header]
    for number, row in zip(numbers, np.hstack(columns).tolist()):
        lines.append(ase.data.chemical_symbols[number] + " " + " ".join(map(repr, row)))
    return "\n".join(lines) + "\n"


_CHANGING = re.compile(r"(?<!\S)(time|potential_energy)=(\S+)")


def _comment_infos(comments: list[str]) -> list[dict[str, Any]]:
    """Parse comment lines, in full only where something other than time and energy changes from frame to frame."""
    first = key_val_str_to_dict(comments[0])
    constant = _CHANGING.sub("", comments[0])
    infos = []
    for comment in comments:
        if _CHANGING.sub("", comment) == constant:
            infos.append({**first, **dict(_CHANGING.findall(comment))})
        else:
            infos.append(key_val_str_to_dict(comment))
    return infos


class ExtxyzReader(TrajectoryReader):
    """Extended XYZ with velocities in ``vel`` [A/fs] or ``momenta`` (ASE's unit), ``time`` [fs] in the comment line."""

    def __init__(
        self,
        path: Path,
        timestep: float | None = None,
        cell: Array | None = None,
        pbc: Array | None = None,
        drop_truncated: bool = False,
    ) -> None:
        self.path = path
        self._frames = XyzFrames(path, drop_truncated)
        self.n_frames = len(self._frames)
        infos = _comment_infos(self._frames.comments)
        first = infos[0]
        self._columns = self._column_layout(str(first.get("Properties", "species:S:1:pos:R:3")))
        for frame, info in enumerate(infos):
            if info.get("Properties") != first.get("Properties"):
                raise TrajectoryError(f"{path}: frame {frame} has other columns (Properties) than frame 0")
            if not np.array_equal(info.get("Lattice", ()), first.get("Lattice", ())):
                raise TrajectoryError(f"{path}: the cell of frame {frame} differs from frame 0; it must stay constant")
        if "pos" not in self._columns or "species" not in self._columns:
            raise TrajectoryError(f"{path}: Properties must name species and pos, found {list(self._columns)}")
        self.has_velocities = "vel" in self._columns or "momenta" in self._columns
        if "vel" in self._columns and first.get("vel_unit", "A/fs") != "A/fs":
            raise TrajectoryError(f"{path}: column vel has unit {first['vel_unit']!r}, expected A/fs; convert it")
        rows = self._frames.rows(0)
        self._symbol_column = self._columns["species"][0]
        if min(map(len, rows)) <= max(c for columns in self._columns.values() for c in columns):
            raise TrajectoryError(f"{path}: frame 0 has fewer columns than its Properties say")
        self._symbols = [row[self._symbol_column] for row in rows]
        self.numbers = _atomic_numbers(self._symbols, path, strip_digits=False)
        self.masses = default_masses(self.numbers)
        if "masses" in self._columns:
            everything = self._frames.read(range(1), self._symbols, self._symbol_column, self._columns["masses"])
            self.masses = everything[0, :, 0]
        own = first.get("Lattice")
        # key_val_str_to_dict gives the lattice with vectors as columns
        own_cell = as_cell(None if own is None else np.asarray(own, dtype=float).T, str(path))
        self.cell = check_same_cell(own_cell, cell, str(path))
        own_pbc = first.get("pbc", [bool(self.cell.any())] * 3)
        self.pbc = np.broadcast_to(np.asarray(own_pbc, dtype=bool), (3,)).copy() if pbc is None else pbc
        try:
            times = np.array([float(info["time"]) for info in infos if "time" in info])
        except (TypeError, ValueError) as error:
            raise TrajectoryError(f"{path}: time= in the comment line must be a number [fs] ({error})") from error
        if 0 < len(times) < self.n_frames:
            raise TrajectoryError(f"{path}: only {len(times)} of {self.n_frames} frames say their time")
        self.timestep = timestep_from_times(
            times, timestep, str(path), max(2e-3, 1e-6 * np.ptp(times)) if len(times) else 0.0
        )
        self.start_time = float(times[0]) if len(times) else None
        self.name = str(first.get("trajectory", path.stem))
        self.metadata = {
            key: int(first[key]) for key in ("charge", "multiplicity", "degrees_of_freedom", "seed") if key in first
        }
        self._energies = np.array([info.get("potential_energy", np.nan) for info in infos], dtype=float)

    def _column_layout(self, properties: str) -> dict[str, list[int]]:
        fields = properties.split(":")
        if len(fields) % 3:
            raise TrajectoryError(f"{self.path}: malformed Properties={properties}")
        layout: dict[str, list[int]] = {}
        start = 0
        for name, _, count in zip(fields[::3], fields[1::3], fields[2::3]):
            if not count.isdigit():
                raise TrajectoryError(f"{self.path}: malformed Properties={properties}")
            layout[name] = list(range(start, start + int(count)))
            start += int(count)
        for name in ("pos", "vel", "momenta"):
            if len(layout.get(name, [0, 0, 0])) != 3:
                raise TrajectoryError(f"{self.path}: column {name} must have 3 numbers, got {len(layout[name])}")
        return layout

    def _load(self, frames: range) -> tuple[Array, Array | None, dict[str, Array]]:
        motion = "vel" if "vel" in self._columns else "momenta"
        columns = self._columns["pos"] + (self._columns[motion] if self.has_velocities else [])
        values = self._frames.read(frames, self._symbols, self._symbol_column, columns)
        velocities = values[..., 3:].copy() if self.has_velocities else None
        if velocities is not None and motion == "momenta":
            velocities *= ase.units.fs / self.masses[:, None]
        energies = self._energies[frames.start : frames.stop : frames.step]
        observables = {"potential_energy": energies} if np.isfinite(self._energies).all() else {}
        return values[..., :3].copy(), velocities, observables


_CP2K_COMMENT = re.compile(r"i\s*=\s*(\d+)\s*,\s*time\s*=\s*([-+.\dEeDd*]+)(?:\s*,\s*E\s*=\s*([-+.\dEeDd*]+))?")


class Cp2kReader(TrajectoryReader):
    """CP2K's ``*-pos-*.xyz`` [A] and, beside it, ``*-vel-*.xyz`` [bohr/au_t].

    The files hold neither cell nor masses: the cell must be given (``cell=None`` with ``pbc=False`` for a cluster).
    """

    def __init__(
        self,
        path: Path,
        velocities: Path | None = None,
        timestep: float | None = None,
        cell: Array | None = None,
        pbc: Array | None = None,
        drop_truncated: bool = False,
    ) -> None:
        self.path = path
        if cell is None and (pbc is None or pbc.any()):
            raise TrajectoryError(
                f"{path}: CP2K's xyz files do not hold the cell: make H5MD of them by `mimyria-wf convert --cell-from "
                "STRUCTURE`, or, in Python, give cell= [A], or pbc=False for a cluster"
            )
        self.cell = as_cell(cell, str(path))
        self.pbc = np.full(3, bool(self.cell.any())) if pbc is None else pbc
        if velocities is None:
            beside = path.with_name(path.name.replace("-pos-", "-vel-"))
            velocities = beside if beside != path and beside.exists() else None
        self._positions = XyzFrames(path, drop_truncated)
        self._velocities = None if velocities is None else XyzFrames(velocities, drop_truncated)
        self.has_velocities = self._velocities is not None
        self.n_frames = len(self._positions)
        self._symbols = [row[0] for row in self._positions.rows(0)]
        self.numbers = _atomic_numbers(self._symbols, path, strip_digits=True)
        self.masses = default_masses(self.numbers)
        steps, times, energies = self._headers(self._positions)
        if self._velocities is not None:
            if self._velocities.n_atoms != self._positions.n_atoms:
                raise TrajectoryError(
                    f"{velocities}: {self._velocities.n_atoms} atoms, but {self._positions.n_atoms} in {path}"
                )
            n_velocities = len(self._velocities)
            if n_velocities != self.n_frames:
                if not drop_truncated:
                    raise TrajectoryError(
                        f"{path}: {self.n_frames} frames of positions but {n_velocities} of velocities in "
                        f"{velocities}; read with drop_truncated (convert --drop-truncated) if the run was cut off"
                    )
                self.n_frames = min(self.n_frames, n_velocities)
            velocity_steps, _, _ = self._headers(self._velocities)
            differ = np.flatnonzero(steps[: self.n_frames] != velocity_steps[: self.n_frames])
            if len(differ):
                raise TrajectoryError(
                    f"{path}: frame {differ[0]} is MD step {steps[differ[0]]}, but {velocity_steps[differ[0]]} in "
                    f"{velocities}; both must be printed at the same steps"
                )
        gaps = np.diff(steps)
        if len(gaps) and (gaps != gaps[0]).any():
            bad = int(np.flatnonzero(gaps != gaps[0])[0]) + 1
            raise TrajectoryError(
                f"{path}: MD steps are not equally spaced: frame {bad} is step {steps[bad]} after {steps[bad - 1]} "
                "(restarted runs append to the file: cut it there)"
            )
        # times are printed with three decimals
        self.timestep = timestep_from_times(times[: self.n_frames], timestep, str(path), 2e-3)
        self.start_time = float(times[0])
        self.name = re.sub(r"-pos-\d+$", "", path.stem)
        self.metadata: Mapping[str, Any] = {"engine": "cp2k"}
        self._energies = energies * units.HARTREE

    @staticmethod
    def _headers(frames: XyzFrames) -> tuple[Array, Array, Array]:
        """Return MD steps, times [fs] and potential energies [E_h] of the comment lines."""
        steps, times, energies = [], [], []
        for frame, comment in enumerate(frames.comments):
            match = _CP2K_COMMENT.search(comment)
            if match is None:
                raise TrajectoryError(
                    f"{frames.path}: the comment of frame {frame} must hold 'i = .., time = ..', found {comment[:60]!r}"
                )
            try:
                steps.append(int(match[1]))
                times.append(float(match[2]))
                energies.append(float(match[3]) if match[3] else np.nan)
            except ValueError as error:
                raise TrajectoryError(f"{frames.path}: the comment of frame {frame}: {error}") from error
        return np.array(steps), np.array(times), np.array(energies)

    def _load(self, frames: range) -> tuple[Array, Array | None, dict[str, Array]]:
        columns = [1, 2, 3]
        positions = self._positions.read(frames, self._symbols, 0, columns)
        velocities = None
        if self._velocities is not None:
            velocities = self._velocities.read(frames, self._symbols, 0, columns) * units.BOHR_PER_AU_TIME
        energies = self._energies[frames.start : frames.stop : frames.step]
        return positions, velocities, {"potential_energy": energies} if np.isfinite(energies).all() else {}


class AseReader(TrajectoryReader):
    """Any format of ASE, held in memory; the time between frames must be given."""

    def __init__(
        self,
        path: Path,
        timestep: float | None = None,
        cell: Array | None = None,
        pbc: Array | None = None,
    ) -> None:
        self.path = path
        try:
            images = list(ase.io.iread(path, index=":"))
        except Exception as error:  # ASE's readers raise whatever they like
            raise TrajectoryError(f"{path}: ASE cannot read it ({type(error).__name__}: {error})") from error
        if not images:
            raise TrajectoryError(f"{path}: the trajectory is empty")
        first = images[0]
        for frame, image in enumerate(images):
            if not np.array_equal(image.numbers, first.numbers):
                raise TrajectoryError(f"{path}: frame {frame} has other atoms than frame 0")
            if not np.allclose(image.cell[:], first.cell[:], atol=1e-8):
                raise TrajectoryError(f"{path}: the cell of frame {frame} differs from frame 0; it must stay constant")
        self.n_frames = len(images)
        self.numbers = np.array(first.numbers)
        self.masses = np.array(first.get_masses())
        self.cell = check_same_cell(as_cell(first.cell[:] if first.cell.any() else None, str(path)), cell, str(path))
        self.pbc = np.array(first.pbc) if pbc is None else pbc
        self.has_velocities = all(image.has("momenta") for image in images)
        self._positions = np.array([image.positions for image in images])
        self._velocities = (
            np.array([i.get_velocities() * ase.units.fs for i in images]) if self.has_velocities else None
        )
        self.timestep = timestep_from_times(np.empty(0), timestep, str(path), 0.0)
        self.name = path.stem
        self.metadata = {"charge": int(first.info["charge"])} if "charge" in first.info else {}

    def _load(self, frames: range) -> tuple[Array, Array | None, dict[str, Array]]:
        chosen = slice(frames.start, frames.stop, frames.step)
        velocities = None if self._velocities is None else self._velocities[chosen].copy()
        return self._positions[chosen].copy(), velocities, {}
