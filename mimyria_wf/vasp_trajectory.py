"""VASP's MD runs as trajectories: XDATCAR, OUTCAR, vasprun.xml, vaspout.h5.

Only ``vaspout.h5`` of VASP 6.4 or later with ``VELOCITY = .TRUE.`` (and vasprun.xml of builds that write them) holds
the velocities that spectra need. The others give configurations to label and to train on. XDATCAR positions are wrapped
into the cell.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.data
import h5py
import numpy as np

from mimyria_wf.errors import TrajectoryError
from mimyria_wf.frames import (
    Array,
    TrajectoryReader,
    as_cell,
    check_same_cell,
    default_masses,
    timestep_from_times,
)


class VaspReader(TrajectoryReader):
    """What the four have in common: a periodic cell that stays, and where velocities are to be had.

    Args:
        path: the file.
        timestep: between stored frames [fs]; by default the file's POTIM, of which it must be a multiple.
        cell: must agree with the file's [A].
        pbc: overrides periodic in three directions.
        drop_truncated: leave out what a killed run left unfinished.
    """

    def __init__(
        self,
        path: Path,
        timestep: float | None = None,
        cell: Array | None = None,
        pbc: Array | None = None,
        drop_truncated: bool = False,
    ) -> None:
        self.path = path
        self.name = path.stem
        self.metadata: Mapping[str, Any] = {"engine": "vasp"}
        self.pbc = np.ones(3, dtype=bool) if pbc is None else pbc
        self.masses = np.empty(0)
        self.has_velocities = False
        self._potim: float | None = None
        self._read_header(drop_truncated)
        if not len(self.masses):
            self.masses = default_masses(self.numbers)
        self.cell = check_same_cell(as_cell(self.cell, str(path)), cell, str(path))
        self.timestep = self._time_between_frames(timestep)

    def _read_header(self, drop_truncated: bool) -> None:
        """Set numbers, cell, n_frames, and where the file has them masses, _potim and has_velocities."""
        raise NotImplementedError

    def _time_between_frames(self, given: float | None) -> float:
        checked = timestep_from_times(np.empty(0), given if given is not None else self._potim, str(self.path), 0.0)
        if given is not None and self._potim is not None:
            stride = round(given / self._potim)
            if stride < 1 or abs(stride * self._potim - given) > 1e-6 * given:
                raise TrajectoryError(
                    f"{self.path}: timestep={given:g} fs was given, no multiple of its POTIM, {self._potim:g} fs"
                )
        return checked

    def _require_same_cell(self, cell: Array, frame: int) -> None:
        if not np.allclose(cell, self.cell, rtol=0, atol=1e-6):
            raise TrajectoryError(
                f"{self.path}: the cell of frame {frame} differs from frame 0; spectra need a constant cell: run NVE "
                "or NVT (ISIF = 2)"
            )

    def _set_species(self, symbols: Sequence[str], counts: Sequence[int]) -> None:
        names = [re.split(r"[_/.]", s)[0] for s in symbols]
        unknown = [s for s, name in zip(symbols, names) if ase.data.atomic_numbers.get(name, 0) == 0]
        if unknown or len(names) != len(counts) or not sum(counts):
            raise TrajectoryError(
                f"{self.path}: species {' '.join(symbols) or 'absent'} with counts {list(counts)} do not name the "
                "atoms; VASP 5 or later writes both"
            )
        self.numbers = np.repeat([ase.data.atomic_numbers[name] for name in names], counts)

    def require_velocities(self) -> None:
        """Raise :class:`TrajectoryError` where the file has no velocities."""
        if not self.has_velocities:
            raise TrajectoryError(
                f"{self.path}: no velocities, which spectra need; run VASP 6.4 or later with VELOCITY = .TRUE. and "
                "give vaspout.h5; differences of positions do not replace them"
            )


class XdatcarReader(VaspReader):
    """XDATCAR; the time between its frames is NBLOCK times POTIM, which it does not say."""

    def _read_header(self, drop_truncated: bool) -> None:
        self._offsets: list[int] = []
        configurations: list[int] = []
        position = 0
        header: list[str] = []
        with self.path.open("rb") as file:
            while line := file.readline():
                text = line.decode(errors="replace").strip()
                position += len(line)
                if "configuration" not in text:
                    header.append(text)
                    continue
                if len(header) >= 7:
                    self._use_header(header[-7:], len(self._offsets))
                elif not self._offsets:
                    raise TrajectoryError(f"{self.path}: no header of seven lines before the first configuration")
                header = []
                if not text.startswith("Direct"):
                    raise TrajectoryError(f"{self.path}: coordinates must be Direct, found {text!r}")
                rows = [file.readline() for _ in range(len(self.numbers))]
                if len(rows[-1].split()) < 3 or not rows[-1].endswith(b"\n"):
                    if drop_truncated and self._offsets:
                        break
                    raise TrajectoryError(
                        f"{self.path}: frame {len(self._offsets)} is truncated; remove it or read with drop_truncated"
                    )
                self._offsets.append(position)
                configurations.append(int(text.split("=")[1]) if "=" in text else len(self._offsets))
                position += sum(map(len, rows))
        if not self._offsets:
            raise TrajectoryError(f"{self.path}: the trajectory is empty")
        gaps = np.diff(configurations)
        if len(gaps) and (gaps != gaps[0]).any():
            bad = int(np.flatnonzero(gaps != gaps[0])[0]) + 1
            raise TrajectoryError(
                f"{self.path}: configuration {configurations[bad]} follows {configurations[bad - 1]}: frames are "
                "missing or a restart was appended; cut it there"
            )
        self.n_frames = len(self._offsets)

    def _use_header(self, lines: list[str], frame: int) -> None:
        try:
            scale = float(lines[1])
            cell = np.array([line.split() for line in lines[2:5]], dtype=float)
            counts = [int(n) for n in lines[6].split()]
        except ValueError as error:
            raise TrajectoryError(f"{self.path}: header of frame {frame} unreadable: {error}") from error
        # a negative scale is the volume
        cell = cell * (scale if scale > 0 else (-scale / abs(np.linalg.det(cell))) ** (1 / 3))
        if frame == 0:
            self.cell = cell
            self._set_species(lines[5].split(), counts)
        self._require_same_cell(cell, frame)

    def _load(self, frames: range) -> tuple[Array, Array | None, dict[str, Array]]:
        positions = np.empty((len(frames), self.n_atoms, 3))
        with self.path.open("rb") as file:
            for i, frame in enumerate(frames):
                file.seek(self._offsets[frame])
                try:
                    rows = [file.readline().split()[:3] for _ in range(self.n_atoms)]
                    positions[i] = np.array(rows, dtype=float) @ self.cell
                except ValueError as error:
                    raise TrajectoryError(f"{self.path}: frame {frame}: {error}") from error
        return positions, None, {}


class OutcarReader(VaspReader):
    """OUTCAR of an MD run: positions and potential energies of every ionic step."""

    def _read_header(self, drop_truncated: bool) -> None:
        self._offsets: list[int] = []
        energies: list[float] = []
        symbols: list[str] = []
        counts: list[int] = []
        cell: Array | None = None
        position = 0
        with self.path.open("rb") as file:
            while line := file.readline():
                position += len(line)
                if b"VRHFIN =" in line:
                    symbols.append(line.split(b"=")[1].split(b":")[0].decode().strip())
                elif b"ions per type =" in line:
                    counts = [int(n) for n in line.split(b"=")[1].split()]
                    self._set_species(symbols, counts)
                elif b"POTIM  =" in line:
                    self._potim = float(line.split(b"=")[1].split()[0])
                elif b"IBRION =" in line and int(line.split(b"=")[1].split()[0]) != 0:
                    raise TrajectoryError(f"{self.path}: no MD run (IBRION is not 0), so its steps are no trajectory")
                elif line.lstrip().startswith(b"direct lattice vectors"):
                    rows = [file.readline() for _ in range(3)]
                    position += sum(map(len, rows))
                    # numbers may touch: "-2.436715000-10.220514000"
                    found = np.array([re.findall(rb"-?\d+\.\d+", row)[:3] for row in rows], dtype=float)
                    if cell is None:
                        cell = self.cell = found
                    self._require_same_cell(found, len(self._offsets))
                elif b"POSITION  " in line and b"TOTAL-FORCE" in line:
                    rows = [file.readline() for _ in range(sum(counts) + 2)]
                    is_whole = rows[-1].strip().startswith(b"---")
                    if not is_whole:
                        if drop_truncated and self._offsets:
                            break
                        raise TrajectoryError(
                            f"{self.path}: frame {len(self._offsets)} is truncated; remove it or read with "
                            "drop_truncated"
                        )
                    self._offsets.append(position + len(rows[0]))
                    position += sum(map(len, rows))
                elif b"energy  without entropy" in line and len(energies) < len(self._offsets):
                    energies.append(float(line.split(b"energy(sigma->0) =")[1]))
        if not self._offsets or cell is None:
            raise TrajectoryError(f"{self.path}: no ionic step in this OUTCAR")
        self.n_frames = len(self._offsets)
        self._energies = np.array(energies)

    def _load(self, frames: range) -> tuple[Array, Array | None, dict[str, Array]]:
        positions = np.empty((len(frames), self.n_atoms, 3))
        with self.path.open("rb") as file:
            for i, frame in enumerate(frames):
                file.seek(self._offsets[frame])
                try:
                    positions[i] = [[float(x) for x in file.readline().split()[:3]] for _ in range(self.n_atoms)]
                except ValueError as error:
                    raise TrajectoryError(f"{self.path}: frame {frame}: {error}") from error
        chosen = self._energies[frames.start : frames.stop : frames.step]
        return positions, None, {"potential_energy": chosen} if len(self._energies) == self.n_frames else {}


class VasprunReader(VaspReader):
    """vasprun.xml of an MD run, parsed once and held in memory."""

    def _read_header(self, drop_truncated: bool) -> None:
        positions: list[Array] = []
        velocities: list[Array] = []
        energies: list[float] = []
        try:
            for _, element in ElementTree.iterparse(self.path):
                if element.tag == "i" and element.get("name") == "POTIM":
                    self._potim = float(element.text or "nan")
                elif element.tag == "i" and element.get("name") == "IBRION":
                    if int(element.text or "-1") != 0:
                        raise TrajectoryError(
                            f"{self.path}: no MD run (IBRION is not 0), so its steps are no trajectory"
                        )
                elif element.tag == "atominfo":
                    self._use_atoms(element)
                elif element.tag == "calculation":
                    self._use_step(element, positions, velocities, energies)
                    element.clear()
        except ElementTree.ParseError as error:
            if not drop_truncated or not positions:
                raise TrajectoryError(
                    f"{self.path}: the XML ends early or is damaged ({error}); read with drop_truncated if the run was "
                    "cut off"
                ) from error
        if not positions:
            raise TrajectoryError(f"{self.path}: no ionic step in this vasprun.xml")
        self.n_frames = len(positions)
        self._positions = np.array(positions)
        self.has_velocities = len(velocities) == len(positions)
        self._velocities = np.array(velocities) if self.has_velocities else None
        self._energies = np.array(energies)

    def _use_atoms(self, info: ElementTree.Element) -> None:
        symbols = [(row.findtext("c") or "").strip() for row in info.findall("array[@name='atoms']/set/rc")]
        self._set_species(symbols, [1] * len(symbols))
        types = [row.findall("c") for row in info.findall("array[@name='atomtypes']/set/rc")]
        if types:
            self.masses = np.repeat([float(t[2].text or 0) for t in types], [int(t[0].text or 0) for t in types])

    def _use_step(
        self,
        step: ElementTree.Element,
        positions: list[Array],
        velocities: list[Array],
        energies: list[float],
    ) -> None:
        cell = _varray(step, "structure/crystal/varray[@name='basis']")
        scaled = _varray(step, "structure/varray[@name='positions']")
        speeds = _varray(step, "structure/varray[@name='velocities']")
        if cell is None or scaled is None or scaled.shape != (len(self.numbers), 3):
            raise TrajectoryError(f"{self.path}: no structure in ionic step {len(positions)}")
        if not positions:
            self.cell = cell
        self._require_same_cell(cell, len(positions))
        positions.append(scaled @ cell)
        if speeds is not None:
            velocities.append(speeds)
        energies.append(float(step.findtext("energy/i[@name='e_0_energy']") or "nan"))

    def _load(self, frames: range) -> tuple[Array, Array | None, dict[str, Array]]:
        chosen = slice(frames.start, frames.stop, frames.step)
        velocities = None if self._velocities is None else self._velocities[chosen].copy()
        observables = {"potential_energy": self._energies[chosen]} if np.isfinite(self._energies).all() else {}
        return self._positions[chosen].copy(), velocities, observables


def _varray(element: ElementTree.Element, place: str) -> Array | None:
    found = element.find(place)
    return None if found is None else np.array([(v.text or "").split() for v in found.findall("v")], dtype=float)


class VaspH5Reader(VaspReader):
    """vaspout.h5 of an MD run; velocities [A/fs] with VELOCITY = .TRUE."""

    _DYNAMICS = "intermediate/ion_dynamics"

    def _read_header(self, drop_truncated: bool) -> None:
        try:
            with h5py.File(self.path, "r") as file:
                dynamics = file[self._DYNAMICS]
                symbols = [s.decode().strip() for s in file["results/positions/ion_types"][()]]
                self._set_species(symbols, file["results/positions/number_ion_types"][()].tolist())
                cells = np.asarray(dynamics["lattice_vectors"], dtype=float)
                self.n_frames = len(dynamics["position_ions"])
                self.has_velocities = "ion_velocities" in dynamics
                n_velocities = len(dynamics["ion_velocities"]) if self.has_velocities else self.n_frames
                if "input/incar/POTIM" in file:
                    self._potim = float(file["input/incar/POTIM"][()])
        except (OSError, KeyError, ValueError) as error:
            raise TrajectoryError(f"{self.path}: not a vaspout.h5 of an MD run, or damaged ({error})") from error
        if n_velocities != self.n_frames:
            if not drop_truncated:
                raise TrajectoryError(
                    f"{self.path}: {self.n_frames} frames of positions but {n_velocities} of velocities; read with "
                    "drop_truncated if the run was cut off"
                )
            self.n_frames = min(self.n_frames, n_velocities)
        if not self.n_frames:
            raise TrajectoryError(f"{self.path}: the trajectory is empty")
        self.cell = cells.reshape(-1, 3, 3)[0]
        for frame, cell in enumerate(cells.reshape(-1, 3, 3)):
            self._require_same_cell(cell, frame)

    def _load(self, frames: range) -> tuple[Array, Array | None, dict[str, Array]]:
        chosen = slice(frames.start, frames.stop, frames.step)
        with h5py.File(self.path, "r") as file:
            dynamics = file[self._DYNAMICS]
            positions = np.asarray(dynamics["position_ions"][chosen], dtype=float) @ self.cell
            velocities = np.asarray(dynamics["ion_velocities"][chosen], dtype=float) if self.has_velocities else None
        return positions, velocities, {}
