"""What a qualification found: checks, errors by step and threshold, the verdict, as JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UNTESTED = "sign, unit and order of atoms not tested"
"""What a verdict says where nothing was compared with displacements."""


@dataclass(frozen=True)
class Check:
    """One thing that is judged.

    Attributes:
        name: such as "pgt error".
        passed: None where it cannot be judged.
        value: what was found.
        limit: what is accepted.
        line: value, limit and, where it failed, what to do.
    """

    name: str
    passed: bool | None
    value: float | None
    limit: float | None
    line: str


@dataclass(frozen=True)
class TensorQuality:
    """How good one tensor is at one step and threshold; relative figures are shares of its spread (Eq. 14).

    Attributes:
        rmse: against the reference [e] or [e^2 a0/E_h].
        measured: the same, relative.
        expected: relative error by the plateau's own noise and next order in h; None where there is no plateau.
        error: the larger of both, what is judged.
        noise: its part from noise of the forces, the rest is the next order in h; None where there is no plateau.
        by_species: measured, by chemical symbol.
        to_next: relative difference to the nearest other step at this threshold; None without one.
        sum_rule: largest component of sum_i P_i - Q_tot 1 or sum_i Q_i over snapshots.
        projection: what projecting on the sum rules changes, relative.
        spatial: relative RMSE against spatial derivatives; None without them.
    """

    rmse: float
    measured: float
    expected: float | None
    error: float
    noise: float | None
    by_species: Mapping[str, float]
    to_next: float | None
    sum_rule: float
    projection: float
    spatial: float | None


@dataclass(frozen=True)
class Screened:
    """One field step at one threshold, judged.

    Attributes:
        threshold: None: the engine's own.
        step: [E_h/(e a0)].
        apt, pgt: their quality; None where points are missing or it is no target.
        net_force: largest sum_i F_i(E) - F_i(0) - Q_tot E over |E|, a component [e].
        apt_noise: odd part of the mixed points against the axis points, rms [e].
        field_scale: field felt at the mixed point that is worst off over the field given.
        mixed: relative difference of mixed derivatives from (h, h, 0) and (h, -h, 0); None without cross points.
        gap: smallest in these fields [eV], None if unknown.
        drop: largest potential drop over the system [eV].
        checks: all of them.
        problems: points that are missing.
    """

    threshold: float | None
    step: float
    apt: TensorQuality | None
    pgt: TensorQuality | None
    net_force: float | None
    apt_noise: float | None
    field_scale: float | None
    mixed: float | None
    gap: float | None
    drop: float
    checks: tuple[Check, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def objections(self) -> tuple[str, ...]:
        """Why labels must not be made like this; () if they may."""
        return (*self.problems, *(check.line for check in self.checks if check.passed is False))

    @property
    def tensors(self) -> dict[str, TensorQuality]:
        """Quality by target."""
        return {name: q for name, q in (("apt", self.apt), ("pgt", self.pgt)) if q is not None}


@dataclass(frozen=True)
class Trend:
    """Error of one tensor against the step at the tightest threshold, relative.

    sqrt((next_order h^2)^2 + (noise h^-p)^2), p = 1 for the APT and 2 for the PGT: the two arms of the U.

    Attributes:
        next_order: [1/h^2].
        noise: [h^p].
        force_noise: standard deviation of a force component in a field [E_h/a0].
        n_steps: steps that the reference was fitted to, smallest first.
        reference_error: relative error of the reference itself.
        has_next_order: whether it is told from noise.
        zero_field_noise: standard deviation of a force component without field, which all steps share; None for the
            APT, where it cancels [E_h/a0].
    """

    next_order: float
    noise: float
    force_noise: float
    n_steps: int
    reference_error: float
    has_next_order: bool = True
    zero_field_noise: float | None = None

    def error(self, target: str, steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the relative error at steps [E_h/(e a0)]."""
        return np.hypot(self.next_order * steps**2, self.noise / steps ** (1 if target == "apt" else 2))


@dataclass(frozen=True)
class Parity:
    """Tensors of some atoms from fields and from displacements.

    Attributes:
        field, spatial: (n_atoms, ...) nested lists.
        rmse, largest: of their difference [e] or [e^2 a0/E_h].
        relative: Eq. 14, spread of all atoms of the snapshots.
        r2: Eq. 15.
        by_species: relative, by chemical symbol.
        other_displacements: relative difference to the tensors from other displacements [A], first atom alone.
    """

    field: Any
    spatial: Any
    rmse: float
    largest: float
    relative: float
    r2: float
    by_species: Mapping[str, float]
    other_displacements: Mapping[str, float]


@dataclass(frozen=True)
class Spatial:
    """Comparison with derivatives in space.

    Attributes:
        atoms: indices into the first snapshot.
        symbols: of these atoms.
        displacement: [A].
        apt, pgt: None where not computed.
        asymmetry: rms of the polarizability derivatives' antisymmetric part, which is noise [e^2 a0/E_h].
    """

    atoms: tuple[int, ...]
    symbols: tuple[str, ...]
    displacement: float
    apt: Parity | None
    pgt: Parity | None
    asymmetry: float | None


@dataclass(frozen=True)
class Qualification:
    """The verdict.

    Attributes:
        step, eps_scf: recommended; both None where nothing is (eps_scf None too where the engine's own was screened).
        accepted: whether anything is.
        apt_error, pgt_error: expected error of labels made like this [e], [e^2 a0/E_h]; of the best that was found
            where nothing is accepted.
        reasons: why, one line each.
        checks: of the recommended step and threshold, or of the best that was found.
        screened: every step and threshold.
        trends: by target.
        spatial: comparison with spatial derivatives at the recommended step and threshold, or the best.
        gap: without field, smallest of the snapshots [eV]; None if unknown.
        zero_field_force: largest component of sum_i F_i without field [E_h/a0]: what the grid leaves.
        settings: :meth:`mimyria_wf.qualification.QualificationSettings.to_dict`.
        engine: name, version, level_of_theory.
        snapshots: names.
        n_points: field points that were computed.
        seconds: time that they took, None if unknown.
    """

    accepted: bool
    step: float | None
    eps_scf: float | None
    apt_error: float | None
    pgt_error: float | None
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    screened: tuple[Screened, ...]
    trends: Mapping[str, Trend]
    spatial: Spatial | None
    gap: float | None
    zero_field_force: float | None
    settings: Mapping[str, Any]
    engine: Mapping[str, Any]
    snapshots: tuple[str, ...]
    n_points: int
    seconds: float | None

    @property
    def line(self) -> str:
        """The verdict in one line."""
        if not self.accepted:
            return f"refused: {self.reasons[0]}"
        errors = [
            f"{name} {value:.2g} {unit}"
            for name, value, unit in (("APT", self.apt_error, "e"), ("PGT", self.pgt_error, "e^2 a0/E_h"))
            if value is not None
        ]
        return (
            f"accepted: h = {self.step:g} E_h/(e a0) at {at_threshold(self.eps_scf)}; expected error of labels: "
            + ", ".join(errors)
            + ("" if self.is_compared else f"; {UNTESTED}")
        )

    @property
    def is_compared(self) -> bool:
        """Whether field and spatial derivatives were compared, which alone sees sign, unit and order of atoms."""
        return any(check.name.startswith("spatial ") and check.passed is not None for check in self.checks)

    def text(self) -> str:
        """Return the verdict with its reasons and checks, a line each and none twice."""
        marks = {True: "  ok      ", False: "  REFUSED ", None: "  unknown "}
        first, reasons = self.line, self.reasons
        if not self.accepted:
            failed = [check.line for check in self.checks if check.passed is False]
            reasons = tuple(reason for reason in self.reasons[1:] if reason not in failed)
            for line in failed:
                first = first.removesuffix(f": {line}")
        lines = [first, *(f"  {reason}" for reason in reasons)]
        return "\n".join([*lines, *(marks[check.passed] + check.line for check in self.checks)])

    def objections(self, step: float, eps_scf: float | None = None) -> tuple[str, ...]:
        """Return why a step and threshold are not accepted; () if they are. What was not screened is not accepted."""
        for one in self.screened:
            if np.isclose(one.step, step, rtol=1e-6, atol=0.0) and same_threshold(one.threshold, eps_scf):
                return one.objections
        known = ", ".join(f"{one.step:g} at {at_threshold(one.threshold)}" for one in self.screened)
        return (f"h = {step:g} at {at_threshold(eps_scf)} was not screened (screened: {known})",)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values with everything that the figures need."""
        return _jsonable(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Qualification:
        """Return the verdict that :meth:`to_dict` wrote."""
        given = dict(values)
        given["checks"] = tuple(Check(**c) for c in given["checks"])
        given["screened"] = tuple(
            Screened(
                **{
                    **one,
                    "checks": tuple(Check(**c) for c in one["checks"]),
                    "problems": tuple(one["problems"]),
                    **{t: None if one[t] is None else TensorQuality(**one[t]) for t in ("apt", "pgt")},
                }
            )
            for one in given["screened"]
        )
        given["trends"] = {name: Trend(**trend) for name, trend in given["trends"].items()}
        if (spatial := given["spatial"]) is not None:
            parities = {t: None if spatial[t] is None else Parity(**spatial[t]) for t in ("apt", "pgt")}
            lists = {name: tuple(spatial[name]) for name in ("atoms", "symbols")}
            given["spatial"] = Spatial(**{**spatial, **parities, **lists})
        given["reasons"], given["snapshots"] = tuple(given["reasons"]), tuple(given["snapshots"])
        return cls(**given)


def at_threshold(threshold: float | None) -> str:
    """Return what a line calls a threshold."""
    return "the engine's own threshold" if threshold is None else f"EPS_SCF {threshold:g}"


def same_threshold(a: float | None, b: float | None) -> bool:
    """Tell whether two thresholds are one; None is the engine's own."""
    return a is b if a is None or b is None else bool(np.isclose(a, b, rtol=1e-6, atol=0.0))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.bool_):
        return bool(value)
    return value
