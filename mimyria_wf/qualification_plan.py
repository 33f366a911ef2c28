"""What a qualification screens and the runs that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import ase
import numpy as np

from mimyria_wf.errors import FieldSetError, LabelError
from mimyria_wf.finite_field import check_step, check_targets, field_vectors, point_name
from mimyria_wf.response import Array
from mimyria_wf.spatial_derivatives import DISPLACEMENT, Displacement, check_displacement, displaced, displacements

TaskKind = Literal["forces", "dipoles", "polarizability"]
TensorName = Literal["apt", "pgt"]

THRESHOLDS: dict[str, tuple[float, ...]] = {
    "cp2k": (1e-6, 1e-7, 1e-8, 1e-9),
    "vasp": (1e-5, 1e-6, 1e-7, 1e-8),
    "tblite": (2e-5, 2e-6, 2e-7, 2e-8),
}
"""SCF thresholds worth screening by engine, loosest first, in the program's own unit."""

CROSS_POINTS: dict[str, tuple[int, int, int]] = {
    "+x-y": (1, -1, 0),
    "-x+y": (-1, 1, 0),
    "+x-z": (1, 0, -1),
    "-x+z": (-1, 0, 1),
    "+y-z": (0, 1, -1),
    "-y+z": (0, -1, 1),
}
"""Six points beyond the thirteen: with them every mixed derivative is there twice."""


@dataclass(frozen=True)
class Tolerances:
    """What is still accepted; errors are shares of the tensors' own spread, as Eq. 14 of Schienbein (2026) has them.

    Attributes:
        apt, pgt: error of a label. The paper's field and spatial PGTs agree to 1 %; a network that reaches R^2 = 99 %
            has an error of 10 %, to which 1 % adds nothing.
        spatial_apt, spatial_pgt: relative RMSE of field against spatial derivatives; the paper has 3.7 % and 1.0 %.
        sum_rule: what projecting tensors on the sum rules may change.
        field_scale: field felt at mixed points over the field given, distance from 1; a normalised direction has 0.29.
        gap: smallest gap [eV] of what counts as an insulator.
        drop: e|E.a_i| N_i over the gap, above which the field is too strong: from 1 on electrons gain by crossing the
            cell. A tenth of it, where VASP warns, is a word in the verdict.
    """

    apt: float = 0.01
    pgt: float = 0.01
    spatial_apt: float = 0.04
    spatial_pgt: float = 0.02
    sum_rule: float = 0.05
    field_scale: float = 0.02
    gap: float = 0.2
    drop: float = 1.0

    def __post_init__(self) -> None:
        """Check that all are positive."""
        wrong = {name: value for name, value in vars(self).items() if not value > 0}
        if wrong:
            raise LabelError(f"tolerances of a qualification must be positive, got {wrong}")


@dataclass(frozen=True)
class QualificationSettings:
    """What a qualification screens.

    Attributes:
        steps: field steps h [E_h/(e a0)], two or more; one is enough where two thresholds are screened, whose
            difference is the error then.
        step: the one used while another thing is screened; None: 5e-4 or the nearest of `steps`.
        thresholds: EPS_SCF (or what the program calls it) to screen; empty: the engine's own, which leaves the step
            as the only thing that is screened.
        grid: "cross": all steps at the tightest threshold, all thresholds at `step`. "full": every pair.
        targets: "apt", "pgt" or both. A PGT set holds an APT set.
        cross_points: add the six points (h, -h, 0), ... at `step` and the tightest threshold.
        atoms: whose tensors are computed from displacements, too; indices into the first snapshot; empty: no spatial
            route.
        requires_spatial: whether an engine without dipoles is refused where `atoms` asks for them; where it has them, a
            comparison that fails is always an objection.
        displacement: of those atoms [A].
        screened_displacements: other ones, for the first of those atoms alone [A].
        polarizability: what spatial PGTs are made of: "fields" (dipoles in fields of `dipole_step`), "dfpt"
            (polarizabilities that the program has itself), or "none" (no spatial PGT).
        dipole_step: field step of those dipoles [E_h/(e a0)]; None: `step`.
        kpoints: N_k along each cell vector; the field is felt over N_k cells.
        tolerances: what is accepted.
    """

    steps: tuple[float, ...] = (2.5e-4, 5e-4, 1e-3, 2e-3)
    step: float | None = None
    thresholds: tuple[float, ...] = ()
    grid: Literal["cross", "full"] = "cross"
    targets: tuple[str, ...] = ("apt", "pgt")
    cross_points: bool = True
    atoms: tuple[int, ...] = ()
    requires_spatial: bool = True
    displacement: float = DISPLACEMENT
    screened_displacements: tuple[float, ...] = ()
    polarizability: Literal["fields", "dfpt", "none"] = "fields"
    dipole_step: float | None = None
    kpoints: tuple[int, int, int] = (1, 1, 1)
    tolerances: Tolerances = field(default_factory=Tolerances)

    def __post_init__(self) -> None:
        """Bring everything into one form, and check it."""
        for name in ("steps", "thresholds", "targets", "atoms", "screened_displacements", "kpoints"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.tolerances, Mapping):
            object.__setattr__(self, "tolerances", Tolerances(**self.tolerances))
        object.__setattr__(self, "targets", check_targets(self.targets))
        steps = tuple(sorted({check_step(step) for step in self.steps}))
        if len(steps) < 2 and (not steps or len(set(self.thresholds)) < 2):
            raise FieldSetError(
                f"a qualification needs two field steps or more, or two thresholds, got {list(self.steps)}: add 2e-3"
            )
        object.__setattr__(self, "steps", steps)
        step = min(steps, key=lambda h: abs(np.log(h / 5e-4))) if self.step is None else check_step(self.step)
        if step not in steps:
            raise FieldSetError(f"step {step:g} must be one of the steps that are screened, {list(steps)}")
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "dipole_step", step if self.dipole_step is None else check_step(self.dipole_step))
        if not all(0 < threshold < 1e-2 for threshold in self.thresholds):
            raise LabelError(f"SCF thresholds are small positive numbers such as 1e-8, got {list(self.thresholds)}")
        object.__setattr__(self, "thresholds", tuple(sorted(set(self.thresholds), reverse=True)))
        for one in (self.displacement, *self.screened_displacements):
            check_displacement(one)
        others = tuple(sorted(set(self.screened_displacements) - {self.displacement}))
        object.__setattr__(self, "screened_displacements", others)
        for name, known in (("grid", ("cross", "full")), ("polarizability", ("fields", "dfpt", "none"))):
            if getattr(self, name) not in known:
                raise LabelError(f"{name} of a qualification is one of {', '.join(known)}, got {getattr(self, name)!r}")

    @classmethod
    def short(cls, step: float = 5e-4, eps_scf: float | None = None, **others: Any) -> QualificationSettings:
        """Return a cheap screening, 26 points: one step at this threshold and at a tenth of it.

        Two steps at one threshold cost as much and see no incomplete response, which scales all changes of the forces
        alike. Without `eps_scf` they are what is left.
        """
        steps = (step, 2 * step) if eps_scf is None else (step,)
        thresholds = () if eps_scf is None else (eps_scf, eps_scf / 10)
        return cls(**{"steps": steps, "step": step, "thresholds": thresholds, "cross_points": False, **others})

    @property
    def tightest(self) -> float | None:
        """The tightest threshold, None where the engine's own is the only one."""
        return min(self.thresholds, default=None)

    @property
    def dipole_vectors(self) -> Array:
        """Fields (3, 3) along x, y and z, of length `dipole_step` [E_h/(e a0)]."""
        assert self.dipole_step is not None
        return self.dipole_step * np.eye(3)

    @property
    def needs_dipoles(self) -> bool:
        """Whether a spatial PGT needs dipoles in fields."""
        return bool(self.atoms) and "pgt" in self.targets and self.polarizability == "fields"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values that make the same settings again, ``QualificationSettings(**values)``."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class Task:
    """One run that a qualification needs: one configuration in a list of fields at one threshold.

    Attributes:
        name: unique in a plan, such as "0/forces/1e-08" and "0/displaced/3+x/0.01".
        kind: what is needed of it. "forces": forces at every vector (dipoles and gaps are taken if offered).
            "dipoles": dipoles at every vector. "polarizability": DFPT polarizability and the dipole without field.
        snapshot: index of the snapshot that it belongs to.
        atoms: the configuration, displaced or not.
        vectors: (n_fields, 3) Cartesian field vectors, the zero field first [E_h/(e a0)].
        variation: settings in which the engine differs from the one given, {"eps_scf": 1e-8} or {}.
        displacement: which coordinate was moved, None for the snapshot itself.
    """

    name: str
    kind: TaskKind
    snapshot: int
    atoms: ase.Atoms
    vectors: Array
    variation: Mapping[str, Any]
    displacement: Displacement | None = None

    @property
    def points(self) -> dict[str, Array]:
        """Field vectors by a unique name; points of several steps carry the step, such as "0.0005:+x"."""
        named = {}
        for vector in self.vectors:
            length = float(np.abs(vector).max())
            named[f"{length:g}:{point_name(vector)}" if length else "0"] = vector
        return named


@dataclass(frozen=True, eq=False)
class TaskResult:
    """What came of a task; rows are those of ``Task.vectors``.

    Attributes:
        forces: (n_fields, n_atoms, 3) [E_h/a0], NaN where a point failed; None where not asked for.
        dipoles: (n_fields, 3) [e a0], or None.
        dipole_quanta: (3, 3) rows by whose multiples dipoles are undetermined [e a0], None for clusters.
        polarizability: (3, 3) [e^2 a0^2/E_h] from DFPT, or None.
        gaps: (n_fields,) HOMO-LUMO gap [eV], NaN where unknown, or None.
        problems: one line for each point that failed.
        seconds: time it took.
    """

    forces: Array | None = None
    dipoles: Array | None = None
    dipole_quanta: Array | None = None
    polarizability: Array | None = None
    gaps: Array | None = None
    problems: tuple[str, ...] = ()
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values; NaN becomes None."""
        return {
            name: _plain(value) if isinstance(value, np.ndarray) else list(value) if name == "problems" else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskResult:
        """Return the result that :meth:`to_dict` wrote."""
        arrays = {
            name: None if values.get(name) is None else np.array(values[name], dtype=float)  # None becomes NaN
            for name in ("forces", "dipoles", "dipole_quanta", "polarizability", "gaps")
        }
        return cls(**arrays, problems=tuple(values.get("problems", ())), seconds=values.get("seconds"))


def _plain(array: Array) -> Any:
    plain = array.astype(object)
    plain[~np.isfinite(array)] = None
    return plain.tolist()


def plan(snapshots: Sequence[ase.Atoms], settings: QualificationSettings) -> list[Task]:
    """Return the runs that a qualification needs, none of them twice.

    One task holds every field of a snapshot at one threshold, so that all steps share its zero-field point; points of a
    task may be computed in parts. The displaced configurations all belong to the first snapshot and run at the
    tightest threshold.

    Args:
        snapshots: one or a few.
        settings: what to screen.
    """
    if not snapshots:
        raise LabelError("a qualification needs a snapshot, got none")
    wrong = [k for k in settings.atoms if not 0 <= k < len(snapshots[0])]
    if wrong:
        raise LabelError(f"the first snapshot has atoms 0 to {len(snapshots[0]) - 1}, got {wrong} for displacements")
    tasks = []
    for index, atoms in enumerate(snapshots):
        for threshold in settings.thresholds or (None,):
            is_tightest = threshold == settings.tightest
            steps = settings.steps if is_tightest or settings.grid == "full" else (settings.step,)
            vectors = [np.zeros(3)]
            for step in steps:
                assert step is not None
                vectors += [v for v in field_vectors(step, settings.targets).values() if v.any()]
            if is_tightest and settings.cross_points and "pgt" in settings.targets:
                vectors += [settings.step * np.array(point, dtype=float) for point in CROSS_POINTS.values()]
            if is_tightest and index == 0 and settings.needs_dipoles and settings.dipole_step not in settings.steps:
                vectors += [*settings.dipole_vectors, *-settings.dipole_vectors]
            name = f"{index}/forces" + ("" if threshold is None else f"/{threshold:g}")
            variation = {} if threshold is None else {"eps_scf": threshold}
            tasks.append(Task(name, "forces", index, atoms, np.array(vectors), variation))
    with_pgt = "pgt" in settings.targets and settings.polarizability != "none"
    kind: TaskKind = "polarizability" if with_pgt and settings.polarizability == "dfpt" else "dipoles"
    variation = {} if settings.tightest is None else {"eps_scf": settings.tightest}
    for size in (settings.displacement, *settings.screened_displacements):
        atoms_moved = settings.atoms if size == settings.displacement else settings.atoms[:1]
        for one in displacements(atoms_moved, size):
            moved = displaced(snapshots[0], one)
            vectors = [np.zeros(3)]
            if with_pgt and kind == "dipoles":
                vectors += list(one.sign * settings.dipole_vectors)
            tasks.append(Task(f"0/displaced/{one.name}", kind, 0, moved, np.array(vectors), variation, one))
    return tasks
