"""LAMMPS text dumps as trajectories.

LAMMPS writes numbers without their units: the style (``ITEM: UNITS``, from ``dump_modify units yes``, or one that the
user gives) decides between A/fs and A/ps. Atoms come in any order and are sorted by id; positions may be wrapped (x),
unwrapped (xu), scaled (xs) or both (xsu), with or without image flags. Velocities are those of the printed step
(velocity Verlet).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.data
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
from mimyria_wf.units import AMU, BOHR

# style "electron" has its time in fs, but velocities in bohr per 1.03275e-15 s
_ELECTRON_TIME = 1.03275
STYLES: dict[str, tuple[float, float, float, float]] = {
    "real": (1.0, 1.0, 1.0, 1.0),
    "metal": (1.0, 1e3, 1e-3, 1.0),
    "si": (1e10, 1e15, 1e-5, 1.0 / AMU),
    "cgs": (1e8, 1e15, 1e-7, 1e-3 / AMU),
    "electron": (BOHR, 1.0, BOHR / _ELECTRON_TIME, 1.0),
    "nano": (10.0, 1e6, 1e-5, 1e-21 / AMU),
}
"""Unit styles of LAMMPS: length [A], time [fs], velocity [A/fs], mass [u]; reduced units (lj) have none."""

_PLACES: tuple[tuple[str, str, str], ...] = (
    ("xu", "yu", "zu"),
    ("xsu", "ysu", "zsu"),
    ("x", "y", "z"),
    ("xs", "ys", "zs"),
)


class LammpsDumpReader(TrajectoryReader):
    """A LAMMPS text dump; the file is indexed in one pass and read frame by frame.

    Args:
        path: the file.
        timestep: between stored frames [fs]; needed unless the file has ``ITEM: TIME``.
        cell: must agree with the file's box [A].
        pbc: overrides the box's boundary flags.
        drop_truncated: leave out a last frame that a killed run left unfinished.
        units: unit style, for files without ``ITEM: UNITS``.
        elements: symbols of the atom types, as a sequence for types 1, 2, ... or a mapping, for files without a column
            ``element``.
    """

    def __init__(
        self,
        path: Path,
        timestep: float | None = None,
        cell: Array | None = None,
        pbc: Array | None = None,
        drop_truncated: bool = False,
        units: str | None = None,
        elements: Sequence[str] | Mapping[int, str] | None = None,
    ) -> None:
        self.path = path
        self.name = path.stem
        self.metadata: Mapping[str, Any] = {"engine": "lammps"}
        self._offsets: list[tuple[int, int]] = []
        self._columns: list[str] = []
        self._steps: list[int] = []
        self._times: list[float] = []
        self._style: str | None = None
        self._box: tuple[str, tuple[str, ...]] | None = None
        self._n_atoms = 0
        self._index(drop_truncated)
        self.n_frames = len(self._offsets)
        self._length, time, self._speed, mass = self._unit_factors(units)
        own_cell, self._origin, own_pbc = self._read_box()
        self.pbc = own_pbc if pbc is None else pbc
        # a box around atoms that never cross its faces is no cell
        self._cell = own_cell
        self.cell = check_same_cell(own_cell if self.pbc.any() else np.zeros((3, 3)), cell, str(path))
        self._require_columns()
        first = self._rows(0)
        self.numbers = self._atomic_numbers(first, elements)
        self.masses = default_masses(self.numbers)
        if "mass" in self._columns:
            self.masses = first[:, self._columns.index("mass")].astype(float) * mass
        self.has_velocities = {"vx", "vy", "vz"} <= set(self._columns)
        gaps = np.diff(self._steps)
        if len(gaps) and (gaps != gaps[0]).any():
            bad = int(np.flatnonzero(gaps != gaps[0])[0]) + 1
            raise TrajectoryError(
                f"{path}: MD steps are not equally spaced: frame {bad} is step {self._steps[bad]} after "
                f"{self._steps[bad - 1]} (restarted runs append to the file: cut it there)"
            )
        times = np.array(self._times) * time
        if 0 < len(times) < self.n_frames:
            raise TrajectoryError(f"{path}: only {len(times)} of {self.n_frames} frames say their time (ITEM: TIME)")
        tolerance = max(1e-5 * float(np.ptp(times)), 1e-6) if len(times) else 0.0
        if len(times) < 2 and timestep is None:
            raise TrajectoryError(
                f"{path}: the time between frames is unknown; give the time step of stored frames (--timestep-fs), or "
                "let LAMMPS write it (dump_modify time yes)"
            )
        self.timestep = timestep_from_times(times, timestep, str(path), tolerance)
        self.start_time = float(times[0]) if len(times) else None

    def _index(self, drop_truncated: bool) -> None:
        with self.path.open("rb") as file:
            try:
                while self._index_frame(file):
                    pass
            except (ValueError, IndexError) as error:
                if not drop_truncated or not self._offsets:
                    raise TrajectoryError(
                        f"{self.path}: frame {len(self._offsets)} is truncated or malformed ({error}); remove it or "
                        "read with drop_truncated (convert --drop-truncated)"
                    ) from error
        if not self._offsets:
            raise TrajectoryError(f"{self.path}: the trajectory is empty")
        del self._steps[self.n_indexed :], self._times[self.n_indexed :]

    @property
    def n_indexed(self) -> int:
        """Number of whole frames."""
        return len(self._offsets)

    def _index_frame(self, file: Any) -> bool:
        """Read one frame's header and skip its atoms; False at the end of the file."""
        frame = len(self._offsets)
        while True:
            line = file.readline()
            if not line:
                return False
            item = line.decode().strip()
            if not item:
                continue
            if not item.startswith("ITEM:"):
                raise ValueError(f"expected 'ITEM:', found {item[:40]!r}")
            item = item[5:].strip()
            if item == "UNITS":
                self._style = file.readline().decode().strip()
            elif item == "TIME":
                self._times.append(float(file.readline()))
            elif item == "TIMESTEP":
                self._steps.append(int(file.readline()))
            elif item == "NUMBER OF ATOMS":
                n_atoms = int(file.readline())
                if frame and n_atoms != self._n_atoms:
                    raise TrajectoryError(
                        f"{self.path}: frame {frame} has {n_atoms} atoms, frame 0 has {self._n_atoms}"
                    )
                self._n_atoms = n_atoms
            elif item.startswith("BOX BOUNDS"):
                box = (item, tuple(file.readline().decode().strip() for _ in range(3)))
                if self._box is None:
                    self._box = box
                elif box != self._box and not self._is_same_box(box):
                    raise TrajectoryError(
                        f"{self.path}: the box of frame {frame} differs from frame 0; spectra need a constant cell: "
                        "run NVE or NVT"
                    )
            elif item.startswith("ATOMS"):
                columns = item.split()[1:]
                if self._columns and columns != self._columns:
                    raise TrajectoryError(f"{self.path}: frame {frame} has other columns than frame 0")
                self._columns = columns
                start = file.tell()
                last = b""
                for _ in range(self._n_atoms):
                    last = file.readline()
                if len(last.split()) != len(columns) or not self._n_atoms:
                    raise ValueError(f"fewer than {self._n_atoms} whole lines of atoms")
                self._offsets.append((start, file.tell()))
                if len(self._steps) != frame + 1 or self._box is None:
                    raise ValueError("no ITEM: TIMESTEP or BOX BOUNDS before its atoms")
                return True
            else:
                raise ValueError(f"unknown ITEM: {item}")

    def _is_same_box(self, box: tuple[str, tuple[str, ...]]) -> bool:
        assert self._box is not None
        if box[0] != self._box[0]:
            return False
        new, old = (np.array([line.split() for line in b[1]], dtype=float) for b in (box, self._box))
        return new.shape == old.shape and bool(np.allclose(new, old, rtol=1e-9, atol=1e-9 * np.abs(old).max()))

    def _unit_factors(self, given: str | None) -> tuple[float, float, float, float]:
        if given is not None and self._style is not None and given != self._style:
            raise TrajectoryError(f"{self.path}: units {given!r} were given, but the file says {self._style!r}")
        style = self._style or given
        known = ", ".join(STYLES)
        if style is None:
            raise TrajectoryError(
                f"{self.path}: units absent: convert it with the run's unit style (--units, one of {known}), or let "
                "LAMMPS write it (dump_modify units yes)"
            )
        if style not in STYLES:
            raise TrajectoryError(f"{self.path}: unit style {style!r} has no physical units here; expected {known}")
        return STYLES[style]

    def _read_box(self) -> tuple[Array, Array, Array]:
        """Return cell vectors as rows [A], the box's origin [A] and its periodicity."""
        assert self._box is not None
        head, lines = self._box
        words = head.split()[2:]
        try:
            rows = np.array([line.split() for line in lines], dtype=float)
        except ValueError as error:
            raise TrajectoryError(f"{self.path}: BOX BOUNDS unreadable: {error}") from error
        flags = [w for w in words if len(w) == 2 and set(w) <= set("pfsm")]
        if "abc" in words:  # general triclinic: vectors and origin as they are
            flags = [w for w in flags if w not in ("xy", "xz", "yz")]
            cell, origin = rows[:, :3], rows[:, 3]
        else:
            low, high = rows[:, 0].copy(), rows[:, 1].copy()
            xy, xz, yz = rows[:, 2] if rows.shape[1] == 3 else (0.0, 0.0, 0.0)
            low[0] -= min(0.0, xy, xz, xy + xz)
            high[0] -= max(0.0, xy, xz, xy + xz)
            low[1] -= min(0.0, yz)
            high[1] -= max(0.0, yz)
            edges = high - low
            cell = np.array([[edges[0], 0, 0], [xy, edges[1], 0], [xz, yz, edges[2]]])
            origin = low
        pbc = np.array([f == "pp" for f in flags]) if len(flags) == 3 else np.ones(3, dtype=bool)
        return as_cell(cell * self._length, str(self.path)), origin * self._length, pbc

    def _require_columns(self) -> None:
        if "id" not in self._columns:
            raise TrajectoryError(
                f"{self.path}: no column id, and LAMMPS writes atoms in any order; dump id with the other columns"
            )
        places = [names for names in _PLACES if set(names) <= set(self._columns)]
        if not places:
            raise TrajectoryError(f"{self.path}: no positions among {' '.join(self._columns)}; dump x y z or xu yu zu")
        self._place = places[0]
        is_wrapped = not self._place[0].endswith("u")
        self._has_images = is_wrapped and {"ix", "iy", "iz"} <= set(self._columns)

    def _rows(self, frame: int) -> Array:
        """Return (n_atoms, n_columns) strings sorted by id."""
        start, end = self._offsets[frame]
        with self.path.open("rb") as file:
            file.seek(start)
            fields = file.read(end - start).split()
        if len(fields) != self._n_atoms * len(self._columns):
            raise TrajectoryError(
                f"{self.path}: frame {frame} has {len(fields)} values, expected {self._n_atoms} x {len(self._columns)}"
            )
        rows = np.array(fields).reshape(self._n_atoms, -1)
        try:
            ids = rows[:, self._columns.index("id")].astype(int)
        except ValueError as error:
            raise TrajectoryError(f"{self.path}: frame {frame}: ids must be whole numbers ({error})") from error
        order = np.argsort(ids)
        if not hasattr(self, "_ids"):
            self._ids = ids[order]
            if (np.diff(self._ids) == 0).any():
                raise TrajectoryError(f"{self.path}: an atom id comes twice in frame {frame}")
        elif not np.array_equal(ids[order], self._ids):
            raise TrajectoryError(f"{self.path}: frame {frame} has other atom ids than frame 0; dump a fixed group")
        sorted_rows: Array = rows[order]
        return sorted_rows

    def _atomic_numbers(self, rows: Array, elements: Sequence[str] | Mapping[int, str] | None) -> Array:
        if "element" in self._columns:
            symbols = [s.decode() for s in rows[:, self._columns.index("element")]]
        elif elements is None:
            raise TrajectoryError(
                f"{self.path}: no column element; convert it with the symbols of types 1, 2, ... (--elements O H)"
            )
        elif "type" not in self._columns:
            raise TrajectoryError(f"{self.path}: neither a column element nor type; dump one of them")
        else:
            table = elements if isinstance(elements, Mapping) else {i + 1: s for i, s in enumerate(elements)}
            types = rows[:, self._columns.index("type")].astype(int)
            missing = sorted(set(types.tolist()) - set(table))
            if missing:
                raise TrajectoryError(
                    f"{self.path}: atom type {missing[0]} has no element among the {len(table)} given; name all types"
                )
            symbols = [table[t] for t in types.tolist()]
        unknown = [s for s in symbols if ase.data.atomic_numbers.get(s, 0) == 0]
        if unknown:
            raise TrajectoryError(f"{self.path}: {unknown[0]!r} is not a chemical element; name the types' elements")
        return np.array([ase.data.atomic_numbers[s] for s in symbols])

    def _numbers_of(self, rows: Array, names: Sequence[str], frame: int) -> Array:
        try:
            values: Array = rows[:, [self._columns.index(n) for n in names]].astype(float)
        except ValueError as error:
            raise TrajectoryError(f"{self.path}: frame {frame}: {error}") from error
        return values

    def _load(self, frames: range) -> tuple[Array, Array | None, dict[str, Array]]:
        positions = np.empty((len(frames), self._n_atoms, 3))
        velocities = np.empty_like(positions) if self.has_velocities else None
        for i, frame in enumerate(frames):
            rows = self._rows(frame)
            values = self._numbers_of(rows, self._place, frame)
            if self._place[0].startswith("xs"):
                positions[i] = values @ self._cell + self._origin
            else:
                positions[i] = values * self._length
            if self._has_images:
                positions[i] += self._numbers_of(rows, ("ix", "iy", "iz"), frame) @ self._cell
            if velocities is not None:
                velocities[i] = self._numbers_of(rows, ("vx", "vy", "vz"), frame) * self._speed
        return positions, velocities, {}

    def require_velocities(self) -> None:
        """Raise :class:`TrajectoryError` where the dump has no velocities."""
        if not self.has_velocities:
            raise TrajectoryError(
                f"{self.path}: no velocities, which spectra need; let LAMMPS dump vx vy vz as well; differences of "
                "positions do not replace them"
            )
