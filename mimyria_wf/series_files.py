"""Dipole, polarizability and dielectric series along a run, as other programs print them.

- CP2K: ``DFT/PRINT/MOMENTS`` files, ``*.polar`` tables and ``POLAR_MATRIX`` files of ``LINRES/POLAR``
  (:mod:`mimyria_wf.cp2k_series`);
- VASP: OUTCARs or vasprun.xml of LEPSILON runs, one a frame, in the order given (:mod:`mimyria_wf.vasp_output`);
- tables: text or CSV with named columns, ``.npy`` arrays; unit and order of columns must be stated.

:mod:`mimyria_wf.property_series` turns them into derivatives.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mimyria_wf.cp2k_series import is_moments, is_polar_blocks, read_moments, read_polar_blocks
from mimyria_wf.derivatives import PAIR_NAMES, PAIRS
from mimyria_wf.errors import SpectrumError
from mimyria_wf.frames import timestep_from_times
from mimyria_wf.units import BOHR, DEBYE
from mimyria_wf.vasp_output import polarizability_of_dielectric, read_vasp_response

Array = NDArray[Any]
Kind = Literal["dipole", "polarizability", "dielectric"]

UNITS: dict[Kind, dict[str, float]] = {
    "dipole": {"debye": DEBYE, "e A": 1.0, "a.u.": BOHR},
    "polarizability": {"a.u.": 1.0, "A^3": 1.0 / BOHR**3},
    "dielectric": {"1": 1.0},
}
"""Units that a series may come in, as factors to e A, to e^2 a0^2/E_h (which is a0^3) and to 1."""
_SAME_UNIT = {
    "d": "debye",
    "ea": "e A",
    "eangstrom": "e A",
    "au": "a.u.",
    "ea0": "a.u.",
    "ebohr": "a.u.",
    "a0^3": "a.u.",
    "bohr^3": "a.u.",
    "e^2a0^2/eh": "a.u.",
    "angstrom^3": "A^3",
    "a^3": "A^3",
    "": "1",
}
_VECTOR = ("x", "y", "z")
_MATRIX = tuple(a + b for a in _VECTOR for b in _VECTOR)
_VOIGT = {(i, j): c for c, (i, j) in enumerate(PAIRS)} | {(j, i): c for c, (i, j) in enumerate(PAIRS)}


@dataclass(frozen=True)
class PropertySeries:
    """One property along one run, at equal distances in time.

    Attributes:
        kind: what it is.
        values: (n_frames, 3) dipole [e A]; (n_frames, 6) polarizability [e^2 a0^2/E_h] or dielectric tensor, order
            xx yy zz yz xz xy.
        timestep: between values, where the files say it [fs].
        quanta: (3, 3) rows that a periodic dipole is defined modulo [e A], or None.
        volume: of the cell, where the files say it [A^3].
        span: times of the first and of the last value, where the files say them [fs].
        sources: the files, for messages and provenance.
        notes: what was found on the way.
    """

    kind: Kind
    values: Array
    timestep: float | None = None
    quanta: Array | None = None
    volume: float | None = None
    span: tuple[float, float] | None = None
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values of another shape and values that are not numbers."""
        width = 3 if self.kind == "dipole" else 6
        if self.values.ndim != 2 or self.values.shape[1] != width:
            raise SpectrumError(f"{self.label}: expected (n_frames, {width}) values, got {self.values.shape}")
        if not np.isfinite(self.values).all():
            frame = int(np.argwhere(~np.isfinite(self.values).all(axis=1))[0, 0])
            raise SpectrumError(f"{self.label}: the {self.kind} of frame {frame} is not a finite number; cut it there")

    @property
    def label(self) -> str:
        """The first file's name, for messages."""
        return self.sources[0] if self.sources else self.kind

    @property
    def n_frames(self) -> int:
        return len(self.values)


def read_series(
    paths: Sequence[str | Path],
    kind: Kind,
    *,
    unit: str | None = None,
    columns: str | None = None,
) -> PropertySeries:
    """Read one property of one run.

    Args:
        paths: consecutive pieces of the run in order, or VASP runs, one a frame, in order; a folder stands for the
            OUTCARs in it, in the order of the numbers in their names.
        kind: "dipole", "polarizability" or "dielectric".
        unit: of tables that do not say it: dipole "debye", "e A" or "a.u."; polarizability "a.u." or "A^3".
        columns: of tables that do not name them, such as "xx yy zz xy yz zx"; "-" for a column to leave out.

    Raises:
        SpectrumError: a file is missing or unreadable, of another kind, or says neither unit nor columns; or the times
            of consecutive pieces leave a gap or overlap.
    """
    if kind not in get_args(Kind):
        raise SpectrumError(f"kind is one of {get_args(Kind)}, got {kind!r}")
    files = series_paths(paths)
    if _is_vasp(files[0]):
        if unit is not None:
            raise SpectrumError(f"{files[0]}: VASP's dielectric tensors have no unit, got {unit!r}; leave out --unit")
        return _read_vasp(files, kind)
    pieces = [_read_file(path, kind, unit, columns) for path in files]
    first = pieces[0]
    for piece in pieces[1:]:
        if (first.quanta is None) != (piece.quanta is None) or (
            first.quanta is not None and piece.quanta is not None and not np.allclose(first.quanta, piece.quanta)
        ):
            raise SpectrumError(f"{piece.label}: another cell than {first.label}; they are not pieces of one run")
        if (first.timestep is None) != (piece.timestep is None) or (
            first.timestep and piece.timestep and abs(first.timestep - piece.timestep) > 1e-6 * first.timestep
        ):
            raise SpectrumError(
                f"{piece.label}: {piece.timestep} fs between values, but {first.timestep} fs in {first.label}"
            )
    for before, after in itertools.pairwise(pieces):
        _require_consecutive(before, after)
    span = None
    if first.span is not None and pieces[-1].span is not None:
        span = (first.span[0], pieces[-1].span[1])
    values = np.concatenate([p.values for p in pieces])
    return replace(first, values=values, span=span, sources=tuple(map(str, files)))


def _time_tolerance(length: float) -> float:
    """Return how far printed times may be off [fs]: three decimals, and six digits of what is long."""
    return max(2e-3, 1e-6 * length)


def _require_consecutive(before: PropertySeries, after: PropertySeries) -> None:
    """Refuse pieces whose times do not go on one step after each other; a difference across a gap is no derivative."""
    if before.span is None or after.span is None or not before.timestep:
        return
    (_, last), (start, _) = before.span, after.span
    step = before.timestep
    tolerance = _time_tolerance(max(before.span[1] - before.span[0], after.span[1] - after.span[0]))
    if abs(start - last - step) <= min(tolerance, 0.25 * step):
        return
    if abs(start - last) <= min(tolerance, 0.25 * step):
        found, remedy = f"repeats {last:g} fs, the last time of {before.label}", "remove its first row"
    elif start < last:
        found = f"starts at {start:g} fs, before the end of {before.label}, {last:g} fs"
        remedy = "give the files in the order of time without overlap; times that begin anew are left out by --columns"
    else:
        found = f"starts at {start:g} fs, but {before.label} ends at {last:g} fs with {step:g} fs between values"
        remedy = "add what is missing, or derive the pieces one by one as runs of their own"
    raise SpectrumError(f"{after.label}: {found}; {remedy}")


def series_paths(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files of a series in the order of time, folders replaced by the VASP runs in them."""
    files: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            # OUTCARs in the folder itself, or one in each of its folders
            inside = [*path.iterdir(), *path.glob("*/*")]
            # every run leaves both
            found = [p for p in inside if "OUTCAR" in p.name] or [p for p in inside if "vasprun" in p.name]
            if not found:
                raise SpectrumError(f"{path}: no OUTCAR or vasprun.xml in this folder")
            files += sorted(found, key=_numbers_in)
        else:
            files.append(path)
    if not files:
        raise SpectrumError("no file to read a series from")
    for path in files:
        if not path.is_file():
            raise SpectrumError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise SpectrumError(f"{path}: the file is empty")
    for before, after in itertools.pairwise(files):
        # a shell sorts step-10 before step-9
        is_numbered = re.sub(r"\d+", "#", str(before)) == re.sub(r"\d+", "#", str(after))
        if is_numbered and _numbers_in(before) >= _numbers_in(after):
            raise SpectrumError(
                f"{after}: comes after {before}; give the files in the order of time (sort -V), or a folder"
            )
    return files


def _numbers_in(path: Path) -> list[tuple[bool, int, str]]:
    """Order names as people do: step-9 before step-10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", str(path))]


def _is_vasp(path: Path) -> bool:
    if "OUTCAR" in path.name or "vasprun" in path.name:
        return True
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    return start.startswith((b"<?xml", b"vasp."))


def _read_vasp(files: list[Path], kind: Kind) -> PropertySeries:
    if kind == "dipole":
        raise SpectrumError(
            f"{files[0]}: VASP's LEPSILON runs hold no dipole; for IR use Born charges times velocities instead"
        )
    first = read_vasp_response(files[0])
    values = np.empty((len(files), 6))
    for i, path in enumerate(files):
        response = read_vasp_response(path) if i else first
        if response.dielectric is None:
            raise SpectrumError(f"{path}: no dielectric tensor; run VASP with LEPSILON = .TRUE.")
        if not np.array_equal(response.atoms.numbers, first.atoms.numbers):
            raise SpectrumError(f"{path}: other atoms than {files[0]}")
        if not np.allclose(response.atoms.cell[:], first.atoms.cell[:], atol=1e-6):
            raise SpectrumError(f"{path}: another cell than {files[0]}; a series needs a constant cell")
        values[i] = _six(response.dielectric)
    series = PropertySeries("dielectric", values, volume=first.volume, sources=tuple(map(str, files)))
    return as_polarizability(series, first.volume) if kind == "polarizability" else series


def _six(tensors: Array) -> Array:
    """Return the six components of (..., 3, 3) tensors, symmetrised."""
    i, j = np.array(PAIRS).T
    six: Array = 0.5 * (tensors[..., i, j] + tensors[..., j, i])
    return six


def _read_file(path: Path, kind: Kind, unit: str | None, columns: str | None) -> PropertySeries:
    if path.suffix == ".npy":
        return _from_array(path, kind, unit, columns)
    with path.open(errors="replace") as file:
        head = "".join(line for _, line in zip(range(12), file))
    if is_moments(head):
        _require_kind(path, kind, "dipole", "CP2K moments")
        _unit_factor(path, kind, unit, {"debye"})
        moments = read_moments(path)
        return PropertySeries("dipole", moments.dipoles, quanta=moments.quanta, sources=(str(path),))
    if is_polar_blocks(head):
        _require_kind(path, kind, "polarizability", "CP2K polarizabilities")
        _unit_factor(path, kind, unit, {"a.u."})
        note = "POLAR_MATRIX prints five decimals only; the *.polar table of DO_RAMAN has eight"
        return PropertySeries("polarizability", _six(read_polar_blocks(path)), sources=(str(path),), notes=(note,))
    return _from_table(path, kind, unit, columns)


def _require_kind(path: Path, kind: Kind, found: Kind, what: str) -> None:
    if kind != found:
        raise SpectrumError(f"{path}: these are {what}, not a {kind} series; read them with kind {found}")


def _unit_factor(path: Path, kind: Kind, given: str | None, stated: set[str]) -> float:
    """Return the factor from the unit that the file states or the user gives."""
    if kind == "dielectric":
        if given is not None and _plain(given) not in ("", "1"):
            raise SpectrumError(f"{path}: a dielectric series has no unit, got {given!r}; leave out --unit")
        return 1.0
    known = {_plain(name): name for name in UNITS[kind]} | {k: v for k, v in _SAME_UNIT.items() if v in UNITS[kind]}
    units = {known.get(_plain(u), u) for u in stated}
    if len(units) > 1:
        raise SpectrumError(f"{path}: columns in different units, {sorted(units)}")
    if given is not None:
        name = known.get(_plain(given), given)
        if units and name not in units:
            raise SpectrumError(f"{path}: unit {given!r} was given, but the file says {units.pop()!r}")
        units = {name}
    if not units:
        raise SpectrumError(f"{path}: units absent: say which with --unit, one of {', '.join(UNITS[kind])}")
    unit = units.pop()
    if unit not in UNITS[kind]:
        raise SpectrumError(f"{path}: unit {unit!r} of a {kind}, expected one of {', '.join(UNITS[kind])}")
    return UNITS[kind][unit]


def _plain(unit: str) -> str:
    return re.sub(r"[\s.*_]", "", unit).lower()


def _from_array(path: Path, kind: Kind, unit: str | None, columns: str | None) -> PropertySeries:
    try:
        array = np.asarray(np.load(path, allow_pickle=False), dtype=float)
    except (ValueError, OSError, EOFError) as error:
        raise SpectrumError(f"{path}: not an array of numbers ({error})") from error
    factor = _unit_factor(path, kind, unit, set())
    if kind != "dipole" and array.ndim == 3 and array.shape[1:] == (3, 3):
        return PropertySeries(kind, _six(array) * factor, sources=(str(path),))
    if array.ndim != 2:
        raise SpectrumError(f"{path}: expected one row a frame, got an array of shape {array.shape}")
    names = _column_names(path, kind, columns, array.shape[1], None)
    return _assemble(path, kind, array, names, factor)


_NAME = re.compile(r"([A-Za-z_]+)\s*(?:\[([^\]]*)\])?")


def _from_table(path: Path, kind: Kind, unit: str | None, columns: str | None) -> PropertySeries:
    """Read numbers by rows; the last line before them may name columns, ``time [fs] xx [a.u.] ...``."""
    rows: list[list[float]] = []
    heading = ""
    separator = "," if path.suffix.lower() == ".csv" else None
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text:
            continue
        fields = [f for f in (text.replace(separator, " ") if separator else text).split() if f]
        try:
            values = [float(f) for f in fields]
        except ValueError:
            if rows:
                raise SpectrumError(f"{path}, line {number}: not numbers: {text[:60]!r}") from None
            heading = text
            continue
        if rows and len(values) != len(rows[0]):
            raise SpectrumError(f"{path}, line {number}: {len(values)} numbers, expected {len(rows[0])}")
        rows.append(values)
    if not rows:
        raise SpectrumError(f"{path}: no numbers in it")
    named = [(name.lower(), unit_) for name, unit_ in _NAME.findall(heading.lstrip("#"))]
    known = {*_VECTOR, *_MATRIX, "step", "time", "total", "norm"}
    is_heading = len(named) == len(rows[0]) and all(name in known for name, _ in named)
    found = [name for name, _ in named] if is_heading else None
    stated = {u for name, u in named if u and name in {*_VECTOR, *_MATRIX}} if is_heading else set()
    if is_heading:
        times = {u for name, u in named if name == "time"}
        if times and times != {"fs"}:
            raise SpectrumError(f"{path}: the unit of its times must be 'time [fs]', found {times.pop()!r}")
    names = _column_names(path, kind, columns, len(rows[0]), found)
    return _assemble(path, kind, np.array(rows), names, _unit_factor(path, kind, unit, stated))


def _column_names(path: Path, kind: Kind, given: str | None, width: int, found: list[str] | None) -> list[str]:
    if given is not None:
        names = given.replace(",", " ").lower().split()
    elif found is not None:
        names = found
    elif kind == "dipole" and width == 3:
        names = list(_VECTOR)
    elif kind != "dipole" and width == 9:
        names = list(_MATRIX)
    else:
        example = "x y z" if kind == "dipole" else "xx yy zz xy yz zx"
        raise SpectrumError(
            f"{path}: the order of its {width} columns is not stated; name them (--columns '{example}')"
        )
    if len(names) != width:
        raise SpectrumError(f"{path}: {width} columns, but {len(names)} names: {' '.join(names)}")
    wanted = _VECTOR if kind == "dipole" else _MATRIX
    chosen = [n for n in names if n in wanted]
    unknown = sorted({n for n in names if n not in wanted} - {"-", "step", "time", "total", "norm"})
    if unknown:
        raise SpectrumError(f"{path}: column {unknown[0]!r} of a {kind} series; expected {' '.join(wanted)}, time or -")
    if len(set(chosen)) != len(chosen):
        raise SpectrumError(f"{path}: a column is named twice: {' '.join(names)}")
    missing = [n for n in _VECTOR if n not in chosen] if kind == "dipole" else _missing_pairs(chosen)
    if missing:
        raise SpectrumError(f"{path}: no column {missing[0]} among {' '.join(names)}")
    return names


def _missing_pairs(names: list[str]) -> list[str]:
    present = {_VOIGT[_VECTOR.index(n[0]), _VECTOR.index(n[1])] for n in names}
    return [name for c, name in enumerate(PAIR_NAMES) if c not in present]


def _assemble(path: Path, kind: Kind, rows: Array, names: list[str], factor: float) -> PropertySeries:
    if kind == "dipole":
        values = rows[:, [names.index(n) for n in _VECTOR]]
    else:
        sums, counts = np.zeros((len(rows), 6)), np.zeros(6)
        for column, name in enumerate(names):
            if name in _MATRIX:  # xy and yx are averaged where both are given
                c = _VOIGT[_VECTOR.index(name[0]), _VECTOR.index(name[1])]
                sums[:, c] += rows[:, column]
                counts[c] += 1
        values = sums / counts
    timestep = span = None
    if "time" in names and len(rows) > 1:
        times = rows[:, names.index("time")]
        if np.median(np.diff(times)) < 0:
            raise SpectrumError(f"{path}: its times decrease, {times[0]:g} to {times[-1]:g} fs; reverse the rows")
        timestep = timestep_from_times(times, None, str(path), _time_tolerance(float(np.ptp(times))))
        span = (float(times[0]), float(times[-1]))
    return PropertySeries(kind, values * factor, timestep=timestep, span=span, sources=(str(path),))


def as_polarizability(series: PropertySeries, volume: float) -> PropertySeries:
    """Turn a dielectric series into alpha = (epsilon - 1) V / (4 pi)."""
    tensors = np.empty((series.n_frames, 3, 3))
    for c, (i, j) in enumerate(PAIRS):
        tensors[:, i, j] = tensors[:, j, i] = series.values[:, c]
    values = _six(polarizability_of_dielectric(tensors, volume))
    return replace(series, kind="polarizability", values=values, volume=volume)
