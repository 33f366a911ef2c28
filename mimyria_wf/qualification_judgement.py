"""The judgement on a level of theory from the runs of a qualification.

It knows no true tensors. The reference is what the tensors tend to for vanishing fields at the tightest threshold, and,
where atoms are displaced, derivatives in space, which share no step with those in the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ase
import numpy as np

from mimyria_wf.errors import LabelError
from mimyria_wf.finite_field import diagnostics, field_vectors, point_name, response_tensors
from mimyria_wf.labels import matching_rows, total_charge
from mimyria_wf.qualification_fit import Plateau, Spread, fit_plateau
from mimyria_wf.qualification_plan import CROSS_POINTS, QualificationSettings, Task, TaskResult, plan
from mimyria_wf.qualification_verdict import (
    UNTESTED,
    Check,
    Parity,
    Qualification,
    Screened,
    Spatial,
    TensorQuality,
    Trend,
    at_threshold,
    same_threshold,
)
from mimyria_wf.response import Array
from mimyria_wf.spatial_derivatives import (
    DisplacedResponse,
    FieldDipoles,
    SpatialTensors,
    spatial_tensors,
)
from mimyria_wf.units import BOHR, HARTREE

_ALIKE = 1.5
"""Errors within this factor of the least are equal: the step nearest to the usual one is taken."""

_AMPLE = 1 / 3
"""So are errors below this share of their tolerance, a tenth in squares: nothing is gained by a stronger field."""

_WORSE = 3
"""F(0) that is worse than other points by this factor is worth a line."""

_NOTHING = 1e-5
"""A next order in the field that is less than this share of the spread at the largest step is not worth a line."""

_STRONG = 0.1
"""Potential drop over the gap from which a field is worth a warning, VASP's."""

_MIXED = 5
"""The difference of two mixed derivatives has 1.9 times the noise of one, and more of the next order."""


def potential_drop(atoms: ase.Atoms, vectors: Array, kpoints: Sequence[int] = (1, 1, 1)) -> float:
    """Return the largest potential drop of any field over the system, to be compared with the gap [eV].

    Over N_k cells along each periodic direction, |E.a_i| N_i; over the atoms of a cluster, max(E.r) - min(E.r).

    Args:
        atoms: the snapshot.
        vectors: (n_fields, 3) [E_h/(e a0)].
        kpoints: N_k along each cell vector.
    """
    vectors = np.asarray(vectors, dtype=float).reshape(-1, 3)
    along = np.abs(vectors @ np.asarray(atoms.cell).T)[:, atoms.pbc] * np.array(kpoints)[atoms.pbc]
    across = np.ptp(vectors @ atoms.positions.T, axis=1) if len(atoms) and not all(atoms.pbc) else np.zeros(1)
    return max(float(along.max(initial=0.0)), float(across.max(initial=0.0))) / BOHR * HARTREE


def assess(
    settings: QualificationSettings,
    snapshots: Sequence[ase.Atoms],
    results: Mapping[str, TaskResult],
    engine: Mapping[str, Any] | None = None,
) -> Qualification:
    """Return the verdict on a level of theory.

    The reference of each tensor is its limit for vanishing fields at the tightest threshold
    (:func:`mimyria_wf.qualification_fit.fit_plateau`); of two steps alone, their difference is the error of either.
    Of all steps and thresholds against which nothing speaks, the loosest threshold is recommended at which more than
    one step is fit, and for it the step of small error, in units of its tolerance, that is nearest to the usual one.

    Args:
        settings: as given to :func:`plan`.
        snapshots: as given to :func:`plan`.
        results: by name of the task. Missing ones and points that failed cost only the steps that they belong to.
        engine: name, version and level_of_theory, for the record.
    """
    tasks = plan(snapshots, settings)
    sets = _field_sets(settings, snapshots, tasks, results)
    numbers = np.concatenate([atoms.numbers for atoms in snapshots])
    references = {target: _reference(target, settings, sets, numbers) for target in settings.targets}
    spatial = _spatial(settings, snapshots, tasks, results)
    screened = tuple(_screened(one, settings, snapshots, sets, references, spatial, numbers) for one in sets)
    best = _best(screened, settings)
    accepted = not best.objections
    chosen = next(s for s in sets if s.step == best.step and same_threshold(s.threshold, best.threshold))
    gaps = [_gap(results.get(task.name), slice(0, 1)) for task in tasks if task.kind == "forces"]
    known_gaps = [gap for gap in gaps if gap is not None]
    seconds = [result.seconds for result in results.values()]
    trends = {
        target: _trend(target, reference, numbers)
        for target, reference in references.items()
        if reference is not None and reference.plateau is not None
    }
    return Qualification(
        accepted=accepted,
        step=best.step if accepted else None,
        eps_scf=best.threshold if accepted else None,
        apt_error=None if best.apt is None else _absolute(best.apt),
        pgt_error=None if best.pgt is None else _absolute(best.pgt),
        reasons=_reasons(best, screened, trends, settings),
        checks=best.checks,
        screened=screened,
        trends=trends,
        spatial=_comparison(settings, snapshots, chosen, references, spatial),
        gap=min(known_gaps, default=None),
        zero_field_force=max((s.zero_field_force for s in sets if np.isfinite(s.zero_field_force)), default=None),
        settings=settings.to_dict(),
        engine=dict(engine or {}),
        snapshots=tuple(str(a.info.get("snapshot", a.get_chemical_formula())) for a in snapshots),
        n_points=sum(len(task.vectors) for task in tasks if task.name in results),
        seconds=float(sum(s for s in seconds if s is not None)) if any(s is not None for s in seconds) else None,
    )


@dataclass(frozen=True, eq=False)
class _FieldSet:
    """One step at one threshold, all snapshots: what came out, before it is judged.

    Attributes:
        threshold, step: which.
        tensors: by target, atoms of all snapshots in a row; None where points are missing.
        problems: why.
        net_force: largest [e].
        apt_noise: rms over snapshots [e].
        field_scale: farthest from 1.
        mixed: squared differences of the two mixed derivatives, (n_atoms, 3, 3, 3) with zeros elsewhere, or None.
        gap: smallest in these fields [eV].
        drop: largest [eV].
        sums: by target, largest component of the sum-rule residual and squared change by the projection.
        zero_field_force: largest component of sum_i F_i(0) [E_h/a0].
    """

    threshold: float | None
    step: float
    tensors: Mapping[str, Array] | None
    problems: tuple[str, ...]
    net_force: float | None
    apt_noise: float | None
    field_scale: float | None
    mixed: Array | None
    gap: float | None
    drop: float
    sums: Mapping[str, tuple[float, Array]]
    zero_field_force: float


def _gap(result: TaskResult | None, rows: Any) -> float | None:
    if result is None or result.gaps is None:
        return None
    gaps = np.atleast_1d(np.asarray(result.gaps, dtype=float))
    gaps = gaps[rows] if len(gaps) > 1 else gaps
    return float(gaps[np.isfinite(gaps)].min()) if np.isfinite(gaps).any() else None


def _field_sets(
    settings: QualificationSettings,
    snapshots: Sequence[ase.Atoms],
    tasks: Sequence[Task],
    results: Mapping[str, TaskResult],
) -> list[_FieldSet]:
    found = []
    for threshold in settings.thresholds or (None,):
        variation = {} if threshold is None else {"eps_scf": threshold}
        own = [task for task in tasks if task.kind == "forces" and task.variation == variation]
        for step in settings.steps:
            wanted = [np.zeros(3), *(v for v in field_vectors(step, settings.targets).values() if v.any())]
            if matching_rows(own[0].vectors, np.array(wanted), step).count(None):
                continue  # not in the plan
            found.append(_field_set(settings, snapshots, own, results, threshold, step, np.array(wanted)))
    return found


def _field_set(
    settings: QualificationSettings,
    snapshots: Sequence[ase.Atoms],
    tasks: Sequence[Task],
    results: Mapping[str, TaskResult],
    threshold: float | None,
    step: float,
    wanted: Array,
) -> _FieldSet:
    tensors: dict[str, list[Array]] = {target: [] for target in settings.targets}
    squares: dict[str, list[Array]] = {target: [] for target in settings.targets}
    residuals = dict.fromkeys(settings.targets, 0.0)
    mixed, problems, net, noise, scales, gaps, at_zero = [], [], [], [], [], [], []
    for task, atoms in zip(tasks, snapshots):
        result = results.get(task.name)
        if result is None or result.forces is None:
            told = "" if result is None or not result.problems else f": {result.problems[0]}"
            problems.append(f"no forces of {task.name}{told}")
            continue
        rows = [row for row in matching_rows(task.vectors, wanted, step) if row is not None]
        forces = np.asarray(result.forces, dtype=float)
        points = forces[rows]
        failed = [point_name(wanted[k]) for k in range(len(wanted)) if not np.isfinite(points[k]).all()]
        gaps.append(_gap(result, rows))
        if failed:
            told = f" ({result.problems[0]})" if result.problems else ""
            problems.append(f"{task.name}: field points {', '.join(failed)} of h = {step:g} failed{told}")
            continue
        charge = total_charge(atoms)
        made = response_tensors(wanted, points, settings.targets, check=False)
        projected = made.projected(atoms.get_masses(), charge)
        left = made.sum_rule_residual(charge).largest()
        for target in settings.targets:
            tensor, other = made.tensors()[target], projected.tensors()[target]
            tensors[target].append(tensor)
            squares[target].append((tensor - other) ** 2)
            residuals[target] = max(residuals[target], left[target])
        free = diagnostics(wanted, points, charge)
        if free.apt_noise is not None:
            noise.append(free.apt_noise)
        scales += list(free.field_scale.values())
        lengths = np.linalg.norm(wanted[1:], axis=1)
        change = (points[1:] - points[0]).sum(axis=1) - charge * wanted[1:]
        net.append(float(np.max(np.abs(change) / lengths[:, None])))
        at_zero.append(float(np.abs(points[0].sum(axis=0)).max()))
        crossed = step * np.array(list(CROSS_POINTS.values()), dtype=float)
        places = matching_rows(task.vectors, crossed, step)
        if "pgt" in settings.targets and None not in places:
            other_points = forces[[row for row in places if row is not None]]
            if np.isfinite(other_points).all():
                mixed.append(_mixed_squares(wanted, points, crossed, other_points))
    complete = not problems
    known = [gap for gap in gaps if gap is not None]
    return _FieldSet(
        threshold=threshold,
        step=step,
        tensors={target: np.concatenate(parts) for target, parts in tensors.items()} if complete else None,
        problems=tuple(problems),
        net_force=max(net, default=None),
        apt_noise=float(np.sqrt(np.mean(np.square(noise)))) if noise else None,
        field_scale=max(scales, key=lambda scale: abs(scale - 1), default=None),
        mixed=np.concatenate(mixed) if complete and len(mixed) == len(snapshots) else None,
        gap=min(known, default=None),
        drop=max(potential_drop(atoms, wanted, settings.kpoints) for atoms in snapshots),
        sums={t: (residuals[t], np.concatenate(squares[t])) for t in settings.targets} if complete else {},
        zero_field_force=max(at_zero, default=float("nan")),
    )


def _mixed_squares(vectors: Array, forces: Array, crossed: Array, others: Array) -> Array:
    """Return squared differences of Q_ab from (h, h, 0) and from (h, -h, 0), zero for a = b: (n_atoms, 3, 3, 3)."""
    usual = response_tensors(vectors, forces, ["pgt"], check=False).pgt
    is_mixed = np.sum(np.abs(vectors) > 0, axis=1) == 2
    instead = response_tensors(
        np.concatenate([vectors[~is_mixed], crossed]), np.concatenate([forces[~is_mixed], others]), ["pgt"], check=False
    ).pgt
    assert usual is not None
    assert instead is not None
    return np.asarray((usual - instead) ** 2)


@dataclass(frozen=True, eq=False)
class _Reference:
    """What tensors are held against.

    Attributes:
        limit: (n_atoms, ...) of all snapshots.
        variance: (n_atoms, ...) squared error of the limit.
        spread: of the limit.
        plateau: the fit; None where there are only two steps or one.
        difference: squared difference of two steps, None where there are not two.
        tight: tensors at the tightest threshold by step.
    """

    limit: Array
    variance: Array
    spread: Spread
    plateau: Plateau | None
    difference: Array | None
    tight: Mapping[float, Array]


def _reference(
    target: str, settings: QualificationSettings, sets: Sequence[_FieldSet], numbers: Array
) -> _Reference | None:
    tight = {
        one.step: one.tensors[target]
        for one in sets
        if one.tensors is not None and same_threshold(one.threshold, settings.tightest)
    }
    steps = sorted(tight)
    if not steps:
        return None
    plateau, difference = None, None
    if len(steps) > 2:
        plateau = fit_plateau(target, steps, np.array([tight[step] for step in steps]))
        limit, variance = plateau.limit, np.broadcast_to(plateau.limit_variance, plateau.limit.shape)
    else:
        limit, variance = tight[steps[0]], np.zeros_like(tight[steps[0]])
        if len(steps) == 2:
            near, far = (tight[step] for step in steps)
            difference = (near - far) ** 2
            limit = near - (far - near) / ((steps[1] / steps[0]) ** 2 - 1)
    return _Reference(limit, variance, Spread.of(limit, numbers), plateau, difference, tight)


def _quality(
    target: str,
    one: _FieldSet,
    settings: QualificationSettings,
    sets: Sequence[_FieldSet],
    reference: _Reference,
    spatial: _SpatialTensors | None,
    numbers: Array,
) -> TensorQuality:
    assert one.tensors is not None
    tensor = one.tensors[target]
    is_tight = same_threshold(one.threshold, settings.tightest)
    squares = (tensor - reference.limit) ** 2
    expected = next_order = None
    if reference.plateau is not None:
        left = 1.0
        next_order = reference.plateau.next_order_squares(one.step)
        if is_tight:
            expected = reference.plateau.expected_squares(one.step)
            # the limit's own error is in the distance from it, too
            found = reference.spread.mean_square(squares, numbers)
            theirs = reference.spread.mean_square(reference.variance, numbers)
            certain = max(0.0, 1 - np.sqrt(2 / squares.size))
            left = max(0.0, 1 - certain * theirs / found) if found > 0 else 1.0
        judged = [squares * left + (0.0 if is_tight else reference.variance)]
        judged += [] if expected is None else [expected]
    elif len(settings.steps) == 1 and (others := [s for s in sets if s is not one and s.tensors is not None]):
        if is_tight:  # no better one is known
            nearest_looser = min(others, key=lambda s: s.threshold or 0.0)
            assert nearest_looser.tensors is not None
            squares = (tensor - nearest_looser.tensors[target]) ** 2
        judged = [squares]
    elif reference.difference is not None:
        # of two steps neither is known to be the better one
        shift = 0.0 if is_tight or one.step not in reference.tight else (tensor - reference.tight[one.step]) ** 2
        judged = [reference.difference + shift]
        squares = reference.difference + shift
    else:
        judged = [np.full_like(tensor, np.inf)]
    measured = reference.spread.relative(squares, numbers)
    error = max(reference.spread.relative(values, numbers)["mean"] for values in judged)
    noise = None
    if reference.plateau is not None and not reference.plateau.has_next_order:
        noise = error
    elif next_order is not None:
        noise = float(np.sqrt(max(error**2 - reference.spread.relative(next_order, numbers)["mean"] ** 2, 0.0)))
    others = [s for s in sets if s is not one and s.tensors is not None and same_threshold(s.threshold, one.threshold)]
    nearest = min(others, key=lambda s: abs(np.log(s.step / one.step)), default=None)
    to_next = None
    if nearest is not None and nearest.tensors is not None:
        to_next = reference.spread.relative((tensor - nearest.tensors[target]) ** 2, numbers)["mean"]
    residual, change = one.sums[target]
    against_space = None
    if spatial is not None and (other := spatial.tensor(target)) is not None:
        chosen = list(spatial.atoms)
        against_space = reference.spread.relative((tensor[chosen] - other) ** 2, numbers[chosen])["mean"]
    return TensorQuality(
        rmse=float(np.sqrt(np.mean(squares))),
        measured=measured.pop("mean"),
        expected=None if expected is None else reference.spread.relative(expected, numbers)["mean"],
        error=error,
        noise=noise,
        by_species=measured,
        to_next=to_next,
        sum_rule=residual,
        projection=reference.spread.relative(change, numbers)["mean"],
        spatial=against_space,
    )


def _screened(
    one: _FieldSet,
    settings: QualificationSettings,
    snapshots: Sequence[ase.Atoms],
    sets: Sequence[_FieldSet],
    references: Mapping[str, _Reference | None],
    spatial: _SpatialTensors | None,
    numbers: Array,
) -> Screened:
    problems = list(one.problems)
    qualities: dict[str, TensorQuality | None] = {"apt": None, "pgt": None}
    for target, reference in references.items():
        if one.tensors is not None and reference is not None:
            qualities[target] = _quality(target, one, settings, sets, reference, spatial, numbers)
    if one.tensors is not None and None in references.values():
        problems.append(
            f"no step is complete at {at_threshold(settings.tightest)}, the tightest: nothing to compare with"
        )
    mixed = None
    if one.mixed is not None and (pgt := references.get("pgt")) is not None:
        mixed = pgt.spread.relative(one.mixed, numbers)["mean"]
    found = Screened(
        threshold=one.threshold,
        step=one.step,
        apt=qualities["apt"],
        pgt=qualities["pgt"],
        net_force=one.net_force,
        apt_noise=one.apt_noise,
        field_scale=one.field_scale,
        mixed=mixed,
        gap=one.gap,
        drop=one.drop,
        problems=tuple(problems),
    )
    return replace(found, checks=tuple(_checks(found, settings, snapshots, references, spatial)))


def _checks(
    one: Screened,
    settings: QualificationSettings,
    snapshots: Sequence[ase.Atoms],
    references: Mapping[str, _Reference | None],
    spatial: _SpatialTensors | None,
) -> list[Check]:
    limits = settings.tolerances
    checks = []

    def judge(name: str, value: float | None, limit: float, says: str, remedy: str, *, above: bool = False) -> None:
        passed = None
        if value is not None:
            passed = bool(value > limit if above else value <= limit)
        checks.append(Check(name, passed, value, limit, says if passed is not False else f"{says}: {remedy}"))

    if one.gap is None:
        says = "gap: not told by the engine, make sure that the system is an insulator"
        checks.append(Check("gap", None, None, limits.gap, says))
    else:
        says = f"gap {one.gap:.2f} eV (an insulator has more than {limits.gap:g} eV)"
        judge("gap", one.gap, limits.gap, says, "the polarization of a metal is not defined", above=True)
        share = one.drop / max(one.gap, 1e-9)
        where = "cell" if snapshots[0].pbc.any() else "cluster"
        says = (
            f"the field drops by {one.drop:.3g} eV over the {where}, {_percent(share)} of the gap "
            f"({_percent(limits.drop)} accepted)"
        )
        if _STRONG < share <= limits.drop:
            says += f"; beyond {_percent(_STRONG)}, where VASP warns: compare with a smaller step"
        judge("field strength", share, limits.drop, says, "the ground state is not stable, use a smaller step")
    for target, quality in one.tensors.items():
        name = target.upper()
        limit = getattr(limits, target)
        if not np.isfinite(quality.error):
            checks.append(Check(f"{target} error", False, None, limit, f"{name}: one step alone has no known error"))
            continue
        says = f"{name}: error {_percent(quality.error)} of its spread ({_percent(limit)} accepted)"
        if quality.noise is None and len(settings.steps) == 1:
            remedy = "noise or an incomplete response; a larger step or a tighter threshold"
        elif quality.noise is None:
            remedy = "noise or the next order in the field, which two steps do not tell apart; screen a third step"
        elif _falls_with_step(target, quality.error, quality.noise):
            remedy = f"noise of the forces, {_percent(quality.noise)}; a larger step or a tighter threshold"
        else:
            remedy = "the next order in the field; a smaller step"
        judge(f"{target} error", quality.error, limit, says, remedy)
    for target, quality in one.tensors.items():
        name = target.upper()
        unit = "e" if target == "apt" else "e^2 a0/E_h"
        says = f"{name}: sum rule left open by {quality.sum_rule:.2g} {unit}"
        if target == "apt" and one.net_force is not None:
            says += f", net force in fields {one.net_force:.2g} e beyond the charge"
        says += f"; projecting changes tensors by {_percent(quality.projection)} ({_percent(limits.sum_rule)} accepted)"
        remedy = "a field pushes the whole system: finer grid, tighter EPS_DEFAULT, or a newer version of the program"
        judge(f"{target} sum rule", quality.projection, limits.sum_rule, says, remedy)
    if one.field_scale is not None:
        says = f"mixed points felt {one.field_scale:.4f} times the field given"
        remedy = "(h, h, 0) and total length h are mixed up, or the field is not the one asked for"
        judge("field scale", abs(one.field_scale - 1), limits.field_scale, says, remedy)
    if one.mixed is not None:
        limit = _MIXED * limits.pgt
        says = f"PGT: (h, h, 0) and (h, -h, 0) differ by {_percent(one.mixed)} ({_percent(limit)} accepted)"
        judge("mixed derivatives", one.mixed, limit, says, "noise, or fields that are not those asked for")
    if settings.atoms:
        for target, quality in one.tensors.items():
            if target == "pgt" and settings.polarizability == "none":
                continue
            limit = getattr(limits, f"spatial_{target}")
            if quality.spatial is None or not np.isfinite(quality.spatial):
                why = "no result" if spatial is None or not spatial.problem else spatial.problem
                says = f"spatial {target.upper()} asked for but not computed: {why}"
                passed: bool | None = False
                if not settings.requires_spatial and spatial is not None and not spatial.has_dipoles:
                    says, passed = f"{target.upper()}: {UNTESTED}, since the engine gives no dipoles", None
                checks.append(Check(f"spatial {target}", passed, None, limit, says))
                continue
            says = (
                f"{target.upper()}: field and spatial derivatives differ by {_percent(quality.spatial)} "
                f"({_percent(limit)} accepted)"
            )
            remedy = "one of them is wrong: field or its convention, branch of the dipole, thresholds, displacement"
            judge(f"spatial {target}", quality.spatial, limit, says, remedy)
            for size, change in _other_displacements(target, settings, snapshots, references, spatial).items():
                says = (
                    f"{target.upper()}: displacements of {settings.displacement:g} and {size} A differ by "
                    f"{_percent(change)} ({_percent(limit)} accepted)"
                )
                judge(f"displacement {target}", change, limit, says, "noise if the smaller, curvature if the larger")
    else:
        says = f"{UNTESTED}: give atoms, to compare field with displacement"
        checks.append(Check("spatial", None, None, None, says))
    return checks


def _falls_with_step(target: str, error: float, noise: float) -> bool:
    """Tell the sign of d(error)/dh of error^2 = (K h^2)^2 + (N h^-p)^2, p = 1 for the APT and 2 for the PGT."""
    power = 1 if target == "apt" else 2
    return power * noise**2 >= 2 * (error**2 - noise**2)


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %" if value < 10 else f"{100 * value:.0f} %"


def _worst(one: Screened, settings: QualificationSettings) -> float:
    """Return the largest error in units of its tolerance, infinite where a tensor is missing."""
    if len(one.tensors) < len(settings.targets):
        return float("inf")
    return max(quality.error / getattr(settings.tolerances, target) for target, quality in one.tensors.items())


def _best(screened: Sequence[Screened], settings: QualificationSettings) -> Screened:
    """Return what is recommended, or what comes nearest to it."""
    fit = [one for one in screened if not one.objections and np.isfinite(_worst(one, settings))]
    if not fit:
        return min(screened, key=lambda one: (_worst(one, settings), len(one.objections)))
    fit = [one for one in fit if not _is_alone(one, screened, settings)] or fit
    loosest = max(fit, key=lambda one: one.threshold or 0.0).threshold
    fit = [one for one in fit if same_threshold(one.threshold, loosest)]
    least = min(_worst(one, settings) for one in fit)
    alike = [one for one in fit if _worst(one, settings) <= max(_ALIKE * least, _AMPLE)]
    assert settings.step is not None
    usual = settings.step
    return min(alike, key=lambda one: abs(np.log(one.step / usual)))


def _is_alone(one: Screened, screened: Sequence[Screened], settings: QualificationSettings) -> bool:
    """Tell whether the next smaller and larger steps are unfit: no margin is left for other snapshots."""
    steps = sorted(settings.steps)
    place = steps.index(one.step)
    beside = steps[max(0, place - 1) : place] + steps[place + 1 : place + 2]
    others = [s for s in screened if same_threshold(s.threshold, one.threshold) and s.step in beside]
    return len(steps) > 2 and bool(others) and all(other.objections for other in others)


def _absolute(quality: TensorQuality) -> float | None:
    """Return the error judged in the tensor's unit."""
    if not np.isfinite(quality.error) or quality.measured <= 0:
        return None
    return quality.rmse * quality.error / quality.measured


def _reasons(
    best: Screened, screened: Sequence[Screened], trends: Mapping[str, Trend], settings: QualificationSettings
) -> tuple[str, ...]:
    if best.objections:
        where = f"h = {best.step:g} at {at_threshold(best.threshold)}"
        first, *others = best.objections
        n_all = len(screened)
        no_better = f"none of {n_all} pairs of step and threshold is fit; the best, {where}: {first}"
        return (no_better, *others, *_zero_field_reason(trends, settings))
    reasons = []
    same = [one for one in screened if same_threshold(one.threshold, best.threshold)]
    fit = [one.step for one in same if not one.objections]
    reasons.append(
        f"at {at_threshold(best.threshold)} steps from {min(fit):g} to {max(fit):g} are fit, "
        f"{best.step:g} is the one of small error nearest to the usual step"
        if len(fit) > 1
        else f"at {at_threshold(best.threshold)} only h = {best.step:g} is fit"
    )
    looser = [
        one for one in screened if best.threshold is not None and one.threshold and one.threshold > best.threshold
    ]
    alone = [one for one in looser if not one.objections]
    if alone:
        one = max(alone, key=lambda one: one.threshold or 0.0)
        where = at_threshold(one.threshold)
        reasons.append(f"at {where} h = {one.step:g} fits, but no step beside it: no margin for other snapshots")
    elif looser:
        nearest = min(looser, key=lambda one: (one.threshold or 0.0, abs(np.log(one.step / best.step))))
        reasons.append(
            f"{at_threshold(nearest.threshold)} is too loose at h = {nearest.step:g}: {nearest.objections[0]}"
        )
        pgt = nearest.pgt
        if pgt is not None and pgt.noise is not None and nearest.step < best.step:
            there = pgt.noise * (nearest.step / best.step) ** 2
            if there <= settings.tolerances.pgt:
                reasons.append(
                    f"{at_threshold(nearest.threshold)} may do at h = {best.step:g}, which was not screened: noise "
                    f"falls with the square of the step, to {_percent(there)} of the PGT's spread"
                )
    if len(settings.steps) == 1:
        reasons.append("one step alone: errors are differences of thresholds, the next order in the field is not seen")
    elif same_threshold(best.threshold, settings.tightest):
        reasons.append("no tighter threshold was run: its error is judged from the steps alone")
    reasons += _zero_field_reason(trends, settings)
    for target, trend in trends.items():
        power = 1 if target == "apt" else 2
        seen = trend.next_order * max(settings.steps) ** 2 > _NOTHING
        if trend.has_next_order and trend.noise > 0 and seen:
            optimum = (power * trend.noise**2 / (2 * trend.next_order**2)) ** (1 / (4 + 2 * power))
            where = at_threshold(settings.tightest)
            if min(settings.steps) / 2 <= optimum <= 2 * max(settings.steps):
                reasons.append(
                    f"{target.upper()} at {where}: noise and next order in the field meet near h = {optimum:.1g}"
                )
    return tuple(reasons)


def _zero_field_reason(trends: Mapping[str, Trend], settings: QualificationSettings) -> list[str]:
    """Return a line if the point without field is worse than the others, which no step mends."""
    trend = trends.get("pgt")
    if trend is None or not (trend.zero_field_noise or 0.0) > _WORSE * trend.force_noise > 0:
        return []
    return [
        f"at {at_threshold(settings.tightest)} forces without field are off by {trend.zero_field_noise:.1g} E_h/a0, "
        f"those in fields by {trend.force_noise:.1g}: PGTs gain from a better converged zero-field point"
    ]


def _trend(target: str, reference: _Reference, numbers: Array) -> Trend:
    plateau = reference.plateau
    assert plateau is not None
    return Trend(
        next_order=reference.spread.relative(plateau.next_order_squares(1.0), numbers)["mean"],
        noise=reference.spread.relative(plateau.noise_squares(1.0), numbers)["mean"],
        force_noise=plateau.noise,
        n_steps=plateau.n_used,
        has_next_order=plateau.has_next_order,
        zero_field_noise=plateau.zero_noise if target == "pgt" else None,
        reference_error=reference.spread.relative(reference.variance, numbers)["mean"],
    )


@dataclass(frozen=True, eq=False)
class _SpatialTensors:
    """Tensors from displacements, by size, or why there are none."""

    by_size: Mapping[float, SpatialTensors]
    size: float
    atoms: tuple[int, ...]
    problem: str = ""
    has_dipoles: bool = True

    def tensor(self, target: str) -> Array | None:
        found = self.by_size.get(self.size)
        return None if found is None else getattr(found, target)


def _spatial(
    settings: QualificationSettings,
    snapshots: Sequence[ase.Atoms],
    tasks: Sequence[Task],
    results: Mapping[str, TaskResult],
) -> _SpatialTensors | None:
    if not settings.atoms:
        return None
    has_dipoles = any(result.dipoles is not None and np.isfinite(result.dipoles).any() for result in results.values())
    nothing = _SpatialTensors({}, settings.displacement, settings.atoms, has_dipoles=has_dipoles)
    variation = {} if settings.tightest is None else {"eps_scf": settings.tightest}
    tight = next(t for t in tasks if t.kind == "forces" and t.snapshot == 0 and t.variation == variation)
    responses = []
    problem = ""
    try:
        undisplaced, quanta = _dipoles(tight, results.get(tight.name), settings)
        for task in tasks:
            if task.displacement is None:
                continue
            result = results.get(task.name)
            dipoles, _ = _dipoles(task, result, settings)
            assert result is not None
            if task.kind == "polarizability" and result.polarizability is None:
                problem = f"{task.name}: " + (result.problems[0] if result.problems else "no polarizability")
            responses.append(DisplacedResponse(task.displacement, dipoles, result.polarizability))
        by_size = spatial_tensors(responses, undisplaced, quanta)
    except LabelError as error:
        return replace(nothing, problem=str(error))
    order = by_size[settings.displacement].atoms
    return _SpatialTensors(by_size, settings.displacement, order, problem)


def _other_displacements(
    target: str,
    settings: QualificationSettings,
    snapshots: Sequence[ase.Atoms],
    references: Mapping[str, _Reference | None],
    spatial: _SpatialTensors | None,
) -> dict[str, float]:
    """Return relative differences to the first atom's tensor from other displacements, by their size [A]."""
    reference = references.get(target)
    usual = None if spatial is None else spatial.tensor(target)
    if spatial is None or usual is None or reference is None:
        return {}
    first = settings.atoms[0]
    own = usual[[spatial.atoms.index(first)]]
    numbers = snapshots[0].numbers[[first]]
    found = {}
    for size, tensors in spatial.by_size.items():
        value = getattr(tensors, target)
        if size != spatial.size and value is not None:
            found[f"{size:g}"] = reference.spread.relative((value - own) ** 2, numbers)["mean"]
    return found


def _dipoles(
    task: Task, result: TaskResult | None, settings: QualificationSettings
) -> tuple[FieldDipoles, Array | None]:
    """Return the dipoles of a task in the fields along the axes, and their quanta; LabelError if one is missing."""
    told = "" if result is None or not result.problems else f": {result.problems[0]}"
    if result is None or result.dipoles is None:
        raise LabelError(f"no dipoles of {task.name}{told}")
    dipoles = np.asarray(result.dipoles, dtype=float)
    step = settings.dipole_step
    assert step is not None
    found = []
    for vectors in (np.zeros((1, 3)), settings.dipole_vectors, -settings.dipole_vectors):
        rows = matching_rows(task.vectors, vectors, step)
        present = [row for row in rows if row is not None]
        found.append(dipoles[present] if len(present) == len(rows) else None)
        if found[-1] is not None and not np.isfinite(found[-1]).all():
            raise LabelError(f"no dipoles of {task.name}{told}")
    zero, plus, minus = found
    assert zero is not None
    return FieldDipoles(step, zero[0], plus, minus), result.dipole_quanta


def _comparison(
    settings: QualificationSettings,
    snapshots: Sequence[ase.Atoms],
    chosen: _FieldSet,
    references: Mapping[str, _Reference | None],
    spatial: _SpatialTensors | None,
) -> Spatial | None:
    if spatial is None or not spatial.by_size or chosen.tensors is None:
        return None
    numbers = snapshots[0].numbers[list(spatial.atoms)]
    parities: dict[str, Parity | None] = {"apt": None, "pgt": None}
    for target, reference in references.items():
        other = spatial.tensor(target)
        if other is None or reference is None:
            continue
        mine = chosen.tensors[target][list(spatial.atoms)]
        squares = (mine - other) ** 2
        by_species = reference.spread.relative(squares, numbers)
        parities[target] = Parity(
            field=mine.tolist(),
            spatial=other.tolist(),
            rmse=float(np.sqrt(np.mean(squares))),
            largest=float(np.sqrt(squares.max())),
            relative=by_species.pop("mean"),
            r2=reference.spread.r2(squares, numbers),
            by_species=by_species,
            other_displacements=_other_displacements(target, settings, snapshots, references, spatial),
        )
    return Spatial(
        atoms=spatial.atoms,
        symbols=tuple(snapshots[0].symbols[k] for k in spatial.atoms),
        displacement=spatial.size,
        apt=parities["apt"],
        pgt=parities["pgt"],
        asymmetry=spatial.by_size[spatial.size].asymmetry,
    )
