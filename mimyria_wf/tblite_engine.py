"""Forces in homogeneous fields from tblite (GFN-xTB): molecules and clusters, milliseconds a point."""

from __future__ import annotations

import ctypes
import importlib.metadata
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import ase
import numpy as np
from ase.data import chemical_symbols

from mimyria_wf.errors import EngineError
from mimyria_wf.field_engine import FieldEngine, FieldResults
from mimyria_wf.labels import multiplicity, total_charge
from mimyria_wf.response import Array
from mimyria_wf.units import BOHR, HARTREE

METHODS = ("GFN2-xTB", "GFN1-xTB", "IPEA1-xTB")
_LAST_ELEMENT = 86
EPS_SCF = 2e-5
"""What tblite's accuracy of 1 means: the change of the density at which the SCF ends [e] (tblite, xtb/singlepoint)."""
_NEAR = 0.1  # A; an MD step moves atoms by some 0.01 A, decorrelated snapshots differ by far more

Start = Literal["auto", "cold"]


@dataclass
class _Point:
    """One field's calculator and its last result, which carries the converged density."""

    calculator: Any
    field: Array  # tblite may keep the pointer
    result: Any = None
    snapshot: int = -1  # the snapshot of that result


class TbliteEngine(FieldEngine):
    """GFN-xTB by tblite's Python interface.

    Calculators are kept while successive snapshots have the same atoms, charge and multiplicity.

    Args:
        method: "GFN2-xTB", "GFN1-xTB" or "IPEA1-xTB".
        accuracy: tblite's factor on all thresholds. PGTs of 40 (H2O)6 at a step of 1e-3, each from the atoms: at 0.01
            the largest error is 5e-5 for most snapshots and 2e-2 for the worst [e^2 a0/E_h]; at 0.001 it is 5e-6 and
            4e-5, for a tenth more time.
        max_iterations: of the self-consistent field.
        start: where the self-consistent field of a point starts. "cold": from the atoms. "auto": from the same point
            of the previous snapshot if no atom has moved by more than 0.1 A since, else from the atoms. All points
            of a set start alike, so that what the thresholds leave cancels in the differences; field points that start
            from the zero-field density instead put the PGT of (H2O)6 off by 4e-2 at accuracy 0.01. Along a trajectory
            "auto" is the more accurate of the two: 2e-4 at worst over 400 frames.
        threads: OpenMP threads; more than one slows small systems down, and badly so on a busy machine.
    """

    name = "tblite"
    settings = {
        "method": "GFN2-xTB (default), GFN1-xTB or IPEA1-xTB",
        "accuracy": "factor on all of tblite's thresholds (0.001)",
        "max_iterations": "of the self-consistent field (250)",
        "start": "auto or cold: where a point's self-consistent field starts",
        "threads": "OpenMP threads (1)",
    }

    def __init__(
        self,
        method: str = "GFN2-xTB",
        accuracy: float = 0.001,
        max_iterations: int = 250,
        start: Start = "auto",
        threads: int = 1,
    ) -> None:
        if method not in METHODS:
            raise EngineError(f"tblite's method must be one of {', '.join(METHODS)}, got {method!r}")
        if not np.isfinite(accuracy) or accuracy <= 0:
            raise EngineError(f"tblite's accuracy must be positive (0.001 for labels), got {accuracy}")
        if max_iterations < 1 or threads < 1:
            raise EngineError(f"max_iterations and threads must be 1 or more, got {max_iterations} and {threads}")
        if start not in ("auto", "cold"):
            raise EngineError(f"start must be auto or cold, got {start!r}")
        self.method = method
        self.accuracy = float(accuracy)
        self.max_iterations = int(max_iterations)
        self.start = start
        self.threads = int(threads)
        try:
            self._version = importlib.metadata.version("tblite")
        except importlib.metadata.PackageNotFoundError:
            raise EngineError("tblite is not installed: pip install tblite") from None
        self._forget()

    def _forget(self) -> None:
        self._system: tuple[bytes, int, int] | None = None
        self._points: dict[bytes, _Point] = {}
        self._positions: Array | None = None
        self._snapshot = 0

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs to build the same engine: all but the calculators."""
        settings = dict(self.__dict__)
        for key in ("_system", "_points", "_positions", "_snapshot"):
            del settings[key]
        return settings

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore settings, with no calculators yet."""
        self.__dict__.update(state)
        self._forget()

    @property
    def version(self) -> str:
        """The installed version."""
        return self._version

    @property
    def level_of_theory(self) -> Mapping[str, Any]:
        """What decides the forces; the start of the density does not, within the thresholds."""
        return {"program": "tblite", "version": self.version, "method": self.method, "accuracy": self.accuracy}

    def varied(self, **changes: Any) -> TbliteEngine:
        """Return this engine with other settings.

        Args:
            changes: arguments of the constructor, or ``eps_scf``: the density's change at which the self-consistent
                field ends [e], accuracy times 2e-5; 2e-8 is the default's.
        """
        state = {key: getattr(self, key) for key in self.settings}
        if "eps_scf" in changes:
            # rounded: 1e-6 must be the level of theory of accuracy 0.05
            state["accuracy"] = float(f"{float(changes.pop('eps_scf')) / EPS_SCF:.12g}")
        unknown = sorted(set(changes) - set(self.settings))
        if unknown:
            raise EngineError(f"tblite cannot vary {', '.join(unknown)} (known: eps_scf, {', '.join(self.settings)})")
        return TbliteEngine(**{**state, **changes})

    def check(self, atoms: ase.Atoms, targets: Sequence[str], step: float) -> list[str]:
        """Return warnings before anything runs; EngineError for what tblite cannot do."""
        _checked_system(atoms)
        if "pgt" in targets and self.accuracy > 0.01:
            return [f"tblite: accuracy {self.accuracy:g} is too loose for a PGT; use 0.001"]
        return []

    def field_results(self, atoms: ase.Atoms, vectors: Array) -> FieldResults:
        """Return forces, dipoles and gap in homogeneous fields.

        Args:
            atoms: not periodic; info["charge"] and info["multiplicity"] count.
            vectors: (n_fields, 3) Cartesian field vectors [E_h/(e a0)].

        Raises:
            EngineError: what tblite cannot do. A self-consistent field that does not converge is the problem of its
                point.
        """
        began = time.perf_counter()
        vectors = np.asarray(vectors, dtype=float).reshape(-1, 3)
        system = _checked_system(atoms)
        if system != self._system or len(self._points) > 64:
            self._forget()
            self._system = system
        positions = np.ascontiguousarray(atoms.positions / BOHR)
        with _openmp_threads(self.threads):
            points = [self._point(atoms, vector, positions) for vector in vectors]
            results, problems = self._continued(points, positions), [""] * len(points)
            if results is None:
                cold = [self._cold(point, positions) for point in points]
                results, problems = [result for result, _ in cold], [problem for _, problem in cold]
        self._positions = positions
        self._snapshot += 1
        forces, dipoles = np.full((len(vectors), len(atoms), 3), np.nan), np.full((len(vectors), 3), np.nan)
        gaps = np.full(len(vectors), np.nan)
        for k, (point, result) in enumerate(zip(points, results)):
            point.result, point.snapshot = result, self._snapshot
            if result is not None:
                forces[k], dipoles[k], gaps[k] = -result.get("gradient"), result.get("dipole"), _gap(result, system[2])
                if not np.isfinite(forces[k]).all():
                    problems[k] = "forces that are not finite: check the geometry"
        if any(problems):
            self._forget()
        return FieldResults(
            field_vectors=vectors,
            forces=forces,
            version=self.version,
            problems=tuple(problems),
            dipoles=dipoles,
            gaps=gaps,
            seconds=time.perf_counter() - began,
        )

    def _point(self, atoms: ase.Atoms, vector: Array, positions: Array) -> _Point:
        key = vector.tobytes()
        if key not in self._points:
            from tblite.exceptions import TBLiteRuntimeError, TBLiteValueError
            from tblite.interface import Calculator
            from tblite.library import ffi

            assert self._system is not None
            _, charge, unpaired = self._system
            field = np.array(vector, dtype=float)
            try:
                calculator = Calculator(self.method, atoms.numbers, positions, charge=float(charge), uhf=unpaired)
                calculator.set("verbosity", 0)
                calculator.set("accuracy", self.accuracy)
                calculator.set("max-iter", self.max_iterations)
                if field.any():
                    # an array itself is refused by some versions
                    calculator.add("electric-field", ffi.cast("double*", field.ctypes.data))
            except (TBLiteRuntimeError, TBLiteValueError) as error:
                self._forget()
                raise EngineError(f"tblite refuses {atoms.get_chemical_formula()}: {_one_line(error)}") from None
            self._points[key] = _Point(calculator, field)
        return self._points[key]

    def _continued(self, points: list[_Point], positions: Array) -> list[Any] | None:
        """Return results that start from the previous snapshot's, or None where that cannot be done for all points."""
        from tblite.exceptions import TBLiteRuntimeError
        from tblite.interface import Result

        if (
            self.start == "cold"
            or self._positions is None
            or any(point.snapshot != self._snapshot for point in points)
            or np.abs(positions - self._positions).max() * BOHR > _NEAR
        ):
            return None
        results = []
        for point in points:
            try:
                point.calculator.update(positions=positions)
                results.append(point.calculator.singlepoint(Result(point.result)))
            except TBLiteRuntimeError:  # an old density can lead the mixer astray; the atoms' own need not
                return None
        return results

    def _cold(self, point: _Point, positions: Array) -> tuple[Any, str]:
        """Return a result that starts from the atoms, or None and the problem."""
        from tblite.exceptions import TBLiteRuntimeError

        try:
            point.calculator.update(positions=positions)  # refuses atoms upon each other
            return point.calculator.singlepoint(), ""
        except TBLiteRuntimeError as error:
            return None, _one_line(error)


def _gap(result: Any, unpaired: int) -> float:
    """Return the distance of the highest occupied to the lowest empty level [eV], NaN if there is no empty one.

    Both spins of GFN-xTB have the same levels but fill them up to different ones: the smaller gap counts.
    """
    levels = np.asarray(result.get("orbital-energies"), dtype=float).ravel()
    n_electrons = round(float(np.sum(result.get("orbital-occupations"))))
    gaps = [
        float(levels[n] - levels[n - 1]) * HARTREE
        for n in ((n_electrons + unpaired) // 2, (n_electrons - unpaired) // 2)
        if 0 < n < len(levels)
    ]
    return min(gaps, default=np.nan)


def _checked_system(atoms: ase.Atoms) -> tuple[bytes, int, int]:
    """Return (numbers, charge, unpaired electrons), or say what tblite cannot do with these atoms."""
    formula = atoms.get_chemical_formula()
    if any(atoms.pbc):
        raise EngineError(
            f"tblite has no electric field under periodic boundaries ({formula}, pbc {atoms.pbc.tolist()}): "
            "set pbc to false for a cluster, or use engine cp2k"
        )
    if not len(atoms) or not np.all(np.isfinite(atoms.positions)):
        found = "no atoms" if not len(atoms) else f"positions of {formula} that are not finite"
        raise EngineError(f"tblite got {found}: check the snapshot")
    outside = sorted({int(z) for z in atoms.numbers if not 1 <= z <= _LAST_ELEMENT})
    if outside:
        symbols = ", ".join(chemical_symbols[z] if 0 <= z < len(chemical_symbols) else str(z) for z in outside)
        raise EngineError(f"tblite has no parameters for {symbols} in {formula}: it knows H to Rn")
    charge, unpaired = total_charge(atoms), multiplicity(atoms) - 1
    n_electrons = int(atoms.numbers.sum()) - charge
    if n_electrons < unpaired or (n_electrons - unpaired) % 2:
        parity = "odd" if n_electrons % 2 else "even"
        raise EngineError(
            f"{formula} with charge {charge} has {n_electrons} electrons, which multiplicity {unpaired + 1} cannot "
            f"hold: an {parity} number needs an {'even' if n_electrons % 2 else 'odd'} multiplicity; set charge or "
            "multiplicity"
        )
    return atoms.numbers.tobytes(), charge, unpaired


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def _openmp_threads(n_threads: int) -> Iterator[None]:
    """Run tblite with this many threads and give the process its own number back (torch shares the library)."""
    import tblite.interface  # noqa: F401  the library must be loaded before it is asked

    try:
        openmp = ctypes.CDLL("libgomp.so.1")
    except OSError:  # another OpenMP runtime, as on macOS: OMP_NUM_THREADS counts there
        yield
        return
    before = openmp.omp_get_max_threads()
    openmp.omp_set_num_threads(n_threads)
    try:
        yield
    finally:
        openmp.omp_set_num_threads(before)
