"""The one interface to electronic structure: a snapshot and field vectors in, forces with a verdict on each point out.

An engine is a class that derives from :class:`FieldEngine` and one line in the entry-point group
``mimyria_wf.engines``; docs/engines.md shows a complete one.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar

import ase
import numpy as np

from mimyria_wf.errors import EngineError, MimyriaError
from mimyria_wf.finite_field import point_name
from mimyria_wf.response import Array

ENTRY_POINTS = "mimyria_wf.engines"
"""Entry-point group: name of an engine -> its class."""


@dataclass(frozen=True)
class FieldResults:
    """What an engine found out about one snapshot in its fields.

    Attributes:
        field_vectors: (n_fields, 3) Cartesian vectors [E_h/(e a0)], as asked for.
        forces: (n_fields, n_atoms, 3) [E_h/a0]; NaN in every component of a point that is not usable.
        version: the program's version, as it says itself.
        problems: one line for each field point, "" where it is sound; () if all are. Forces that are not finite are a
            problem even if none is named.
        dipoles: (n_fields, 3) [e a0], NaN where unknown; of a cluster about the origin of its coordinates, of a
            periodic system by the Berry phase, modulo `dipole_quanta`. None: not known.
        dipole_quanta: (3, 3) rows by which a periodic dipole is undetermined [e a0]; None for clusters.
        gap: between the highest occupied and the lowest empty level without field [eV], None if unknown; by default
            that of `gaps` at the weakest field.
        gaps: (n_fields,) in each field [eV], NaN where unknown; None: not known.
        seconds: wall time.
    """

    field_vectors: Array
    forces: Array
    version: str
    problems: tuple[str, ...] = ()
    dipoles: Array | None = None
    dipole_quanta: Array | None = None
    gap: float | None = None
    gaps: Array | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check shapes, and make forces and problems say the same."""
        if not isinstance(self.version, str):
            raise EngineError(f"the version must be text, got {self.version!r}")
        vectors = np.asarray(self.field_vectors, dtype=float)
        forces = np.array(self.forces, dtype=float)
        n_fields = len(vectors)
        if vectors.shape != (n_fields, 3):
            raise EngineError(f"field vectors must have shape (n_fields, 3), got {vectors.shape}")
        if forces.ndim != 3 or (forces.shape[0], forces.shape[2]) != (n_fields, 3):
            raise EngineError(f"forces must have shape ({n_fields}, n_atoms, 3), got {forces.shape}")
        problems = list(self.problems) or [""] * n_fields
        if len(problems) != n_fields:
            raise EngineError(f"{len(problems)} problems for {n_fields} field points: give one line a point")
        for point in range(n_fields):
            if problems[point]:
                forces[point] = np.nan
            elif not np.isfinite(forces[point]).all():
                atom = int(np.argwhere(~np.isfinite(forces[point]))[0, 0])
                problems[point] = f"forces that are not finite (atom {atom})"
                forces[point] = np.nan
        for name, array, shape in (
            ("dipoles", self.dipoles, (n_fields, 3)),
            ("dipole quanta", self.dipole_quanta, (3, 3)),
            ("gaps", self.gaps, (n_fields,)),
        ):
            if array is not None and np.shape(array) != shape:
                raise EngineError(f"{name} must have shape {shape}, got {np.shape(array)}")
        if self.gap is None and self.gaps is not None and n_fields:
            weakest = float(self.gaps[int(np.argmin(np.linalg.norm(vectors, axis=1)))])
            object.__setattr__(self, "gap", weakest if np.isfinite(weakest) else None)
        object.__setattr__(self, "field_vectors", vectors)
        object.__setattr__(self, "forces", forces)
        object.__setattr__(self, "problems", tuple(problems))

    @property
    def valid(self) -> np.ndarray:
        """(n_fields,) whether a point is sound."""
        return np.array([not problem for problem in self.problems], dtype=bool)


class FieldEngine(ABC):
    """Anything that gives forces of a configuration in homogeneous fields.

    A subclass names itself, says what decides its forces, and computes. The rest has defaults.
    """

    name: ClassVar[str]
    """The program, as label files and the command line name it."""

    settings: ClassVar[Mapping[str, str]] = {}
    """What ``--settings`` may hold, with one line of explanation each."""

    @property
    @abstractmethod
    def version(self) -> str:
        """The program's version."""

    @property
    @abstractmethod
    def level_of_theory(self) -> Mapping[str, Any]:
        """Everything that decides the forces, JSON-able; labels of two engines with the same one are the same."""

    @abstractmethod
    def field_results(self, atoms: ase.Atoms, vectors: Array) -> FieldResults:
        """Return forces of one snapshot in every field, and what is wrong with those that are not usable.

        Args:
            atoms: positions [A], cell and pbc; info["charge"] (0) and info["multiplicity"] (1) count.
            vectors: (n_fields, 3) Cartesian vectors [E_h/(e a0)], in any order, perhaps with a zero.

        Raises:
            EngineError: nothing can be computed for this snapshot; one line with the reason and the remedy. Trouble
                at single points is no exception but a line in ``problems``.
        """

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], files: Mapping[str, Path]) -> FieldEngine:
        """Return the engine for ``--settings`` (a JSON object) and files by name (``template``, ...).

        The default passes the settings to the constructor and takes no files.
        """
        unknown = sorted(set(settings) - set(cls.settings))
        if unknown:
            known = ", ".join(cls.settings) or "none"
            raise EngineError(f"engine {cls.name} does not know the setting {', '.join(unknown)} (known: {known})")
        if files:
            raise EngineError(f"engine {cls.name} takes no {', '.join(sorted(files))}: leave it out")
        for name, parameter in inspect.signature(cls).parameters.items():
            if parameter.default is parameter.empty and parameter.kind in _NAMED and name not in settings:
                what = f" ({cls.settings[name]})" if name in cls.settings else ""
                raise EngineError(f"engine {cls.name} needs the setting {name}{what}")
        return cls(**settings)

    def forces(self, atoms: ase.Atoms, vectors: Array) -> Array:
        """Return forces (n_fields, n_atoms, 3) [E_h/a0] in fields (n_fields, 3) [E_h/(e a0)].

        Raises:
            EngineError: instead of returning anything that is not finite or not converged.
        """
        return sound_forces(self, atoms, results_of(self, atoms, vectors))

    def check(self, atoms: ase.Atoms, targets: Sequence[str], step: float) -> list[str]:
        """Return warnings, one line each, before anything runs; EngineError for what cannot work."""
        return []

    def varied(self, **changes: Any) -> FieldEngine:
        """Return this engine with other settings; ``eps_scf`` is the SCF threshold of whatever program it is."""
        raise EngineError(f"engine {self.name} cannot vary {', '.join(changes)}")

    def polarizability(self, atoms: ase.Atoms) -> Array | None:
        """Return (3, 3) [e^2 a0^2/E_h] if the program has it without field differences, else None."""
        return None


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _described(atoms: ase.Atoms) -> str:
    return str(atoms.info.get("snapshot", atoms.get_chemical_formula()))


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn whatever an engine raises into an EngineError; the traceback stays as its cause (``--debug`` shows it)."""
    try:
        yield
    except MimyriaError:
        raise
    except Exception as error:
        raise EngineError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def results_of(engine: FieldEngine, atoms: ase.Atoms, vectors: Array) -> FieldResults:
    """Return what an engine finds for a snapshot; EngineError in one line for whatever goes wrong in it."""
    what = _described(atoms)
    with one_line(f"engine {engine.name} failed for {what}"):
        results = engine.field_results(atoms, vectors)
    if not isinstance(results, FieldResults):
        raise EngineError(
            f"engine {engine.name} gave {type(results).__name__} for {what}: "
            "field_results must return mimyria_wf.field_engine.FieldResults"
        )
    if results.field_vectors.shape != np.shape(vectors):
        raise EngineError(
            f"engine {engine.name} gave {len(results.field_vectors)} field points for {what}, "
            f"{len(vectors)} were asked for: return all in their order, those that failed with a line in problems"
        )
    return results


def checked_identity(engine: FieldEngine) -> FieldEngine:
    """Return the engine if it can key labels: a version that is text, a level of theory that is JSON."""
    with one_line(f"engine {engine.name} does not tell its version and level of theory"):
        version, level = engine.version, engine.level_of_theory
    if not isinstance(version, str) or not version.strip():
        raise EngineError(f"engine {engine.name}: version must be text, got {version!r}")
    if not isinstance(level, Mapping) or not level:
        raise EngineError(f"engine {engine.name}: level_of_theory must be a mapping that is not empty, got {level!r}")
    for key, value in level.items():
        try:
            json.dumps({key: value})
        except (TypeError, ValueError) as error:
            raise EngineError(
                f"engine {engine.name}: level_of_theory must be JSON, its {key!r} is not ({error}): give plain "
                "numbers, text, lists"
            ) from None
    return engine


def sound_forces(engine: FieldEngine, atoms: ase.Atoms, results: FieldResults) -> Array:
    """Return the forces (n_fields, n_atoms, 3) [E_h/a0]; EngineError if a point is not sound."""
    what = _described(atoms)
    if results.forces.shape[1] != len(atoms):
        found, expected = results.forces.shape, (len(results.field_vectors), len(atoms), 3)
        raise EngineError(f"{engine.name} gave forces of shape {found}, expected {expected}, for {what}")
    for vector, problem in zip(results.field_vectors, results.problems):
        if problem:
            raise EngineError(f"{engine.name} failed at field point {point_name(vector)} of {what}: {problem}")
    return results.forces


def together(results: Sequence[FieldResults]) -> FieldResults:
    """Return the results of one snapshot's points that were computed in several parts, in this order."""
    first = results[0]
    has_dipoles, has_gaps = (all(getattr(one, n) is not None for one in results) for n in ("dipoles", "gaps"))
    return replace(
        first,
        field_vectors=np.concatenate([one.field_vectors for one in results]),
        forces=np.concatenate([one.forces for one in results]),
        problems=tuple(problem for one in results for problem in one.problems),
        dipoles=np.concatenate([np.asarray(one.dipoles) for one in results]) if has_dipoles else None,
        gaps=np.concatenate([np.asarray(one.gaps) for one in results]) if has_gaps else None,
        gap=next((one.gap for one in results if one.gap is not None), None),
        seconds=sum(one.seconds for one in results),
    )


def known_engines() -> dict[str, EntryPoint]:
    """Return the registered engines by name, not yet imported."""
    return {entry.name: entry for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)}


def engine_class(name: str) -> type[FieldEngine]:
    """Return the class registered under a name; EngineError with the known names if there is none."""
    known = known_engines()
    if name not in known:
        raise EngineError(
            f"unknown engine {name!r}, known: {', '.join(known)}; "
            f"a package adds one through the entry-point group {ENTRY_POINTS}"
        )
    try:
        loaded = known[name].load()
    except (ImportError, AttributeError) as error:
        raise EngineError(f"engine {name} ({known[name].value}) cannot be imported: {error}") from None
    if not hasattr(loaded, "from_settings") or not hasattr(loaded, "field_results"):
        raise EngineError(
            f"engine {name} ({known[name].value}) is no FieldEngine: it lacks from_settings or field_results"
        )
    return loaded


def make_engine(
    name: str, settings: Mapping[str, Any] | None = None, files: Mapping[str, str | Path] | None = None
) -> FieldEngine:
    """Return the engine registered under a name, set up; EngineError in one line for whatever does not fit.

    Args:
        name: of the entry point.
        settings: of the engine; ``eps_scf``, its SCF threshold, may stand among those of any engine that can vary it.
        files: paths by name, ``template`` among them for engines that run a program.
    """
    engine, chosen = engine_class(name), dict(settings or {})
    varied = {} if "eps_scf" in engine.settings else {k: chosen.pop(k) for k in ("eps_scf",) if k in chosen}
    given = ", ".join(f"{key} {_short(value)}" for key, value in (settings or {}).items()) or "no settings"
    with one_line(f"engine {name} cannot be set up with {given}"):
        made = engine.from_settings(chosen, {key: Path(path) for key, path in (files or {}).items()})
        return made.varied(**varied) if varied else made


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 60 else f"{text[:56]} ..."
