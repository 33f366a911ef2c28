"""Qualification: verdicts on engines whose truth is known, and on engines that are wrong in one way each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
from ase.build import molecule

from mimyria_wf.errors import EngineError, FieldSetError, LabelError
from mimyria_wf.field_engine import FieldEngine, FieldResults
from mimyria_wf.metrics import tensor_errors
from mimyria_wf.qualification import (
    Qualification,
    QualificationSettings,
    TaskResult,
    Tolerances,
    assess,
    plan,
    potential_drop,
    qualify,
    run_locally,
    task_result,
)
from mimyria_wf.qualification_fit import Spread, fit_plateau
from mimyria_wf.qualification_plots import plot_qualification
from mimyria_wf.response import Array
from mimyria_wf.tblite_engine import TbliteEngine

STEPS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)


def _box(n_atoms: int = 24) -> ase.Atoms:
    rng = np.random.default_rng(7)
    numbers = np.array([8, 1, 1] * (n_atoms // 3))
    return ase.Atoms(numbers, rng.uniform(0, 6, (n_atoms, 3)), cell=[6.2, 6.2, 6.2], pbc=True)


class AnalyticEngine(FieldEngine):
    """Forces as a polynomial of the field, with white noise that falls with the threshold.

    Tensors do not depend on the positions but dipoles follow them, so that spatial derivatives exist, too.
    """

    name = "analytic"
    version = "1"

    def __init__(self, eps_scf: float = 1e-8, noise: float = 1.0, gap: float = 8.0, **faults: Any) -> None:
        self.eps_scf, self.noise, self.gap, self.faults = eps_scf, noise, gap, faults
        self.calls: list[int] = []
        rng = np.random.default_rng(11)
        n = 24
        self.apt = 0.3 * rng.normal(size=(n, 3, 3))
        self.apt -= self.apt.mean(axis=0)
        self.pgt = 2.0 * rng.normal(size=(n, 3, 3, 3))
        self.pgt = 0.5 * (self.pgt + np.swapaxes(self.pgt, -1, -2))
        self.pgt -= self.pgt.mean(axis=0)
        self.cubic = 1e3 * rng.normal(size=(n, 3, 3, 3, 3))
        self.quartic = 3e4 * rng.normal(size=(n, 3, 3, 3, 3, 3))
        for tensor in (self.cubic, self.quartic):
            tensor -= tensor.mean(axis=0)
        self.apt += faults.get("charge", 0.0) / n * np.eye(3)
        self.reference = _box().positions

    @property
    def level_of_theory(self) -> Mapping[str, Any]:
        return {"program": "analytic", "eps_scf": self.eps_scf, "noise": self.noise, **self.faults}

    def varied(self, **changes: Any) -> AnalyticEngine:
        other = AnalyticEngine(changes.get("eps_scf", self.eps_scf), self.noise, self.gap, **self.faults)
        other.calls = self.calls
        return other

    def field_results(self, atoms: ase.Atoms, vectors: Array) -> FieldResults:
        self.calls.append(len(vectors))
        vectors = np.asarray(vectors, dtype=float)
        shift = (atoms.positions - self.reference) / 0.529177210903
        quanta = np.asarray(atoms.cell) / 0.529177210903
        forces, dipoles = [], []
        for vector in vectors:
            e = vector
            if self.faults.get("normalised") and np.count_nonzero(vector) > 1:
                e = vector / np.sqrt(2)
            seed = hashlib.sha256(np.round(vector * 1e9).tobytes() + atoms.positions.tobytes()).digest()
            rng = np.random.default_rng([self.faults.get("seed", 0), *seed[:8]])
            force = np.einsum("idf,f->id", self.apt, e) + 0.5 * np.einsum("idfg,f,g->id", self.pgt, e, e)
            force += np.einsum("idabc,a,b,c->id", self.cubic, e, e, e) / 6
            force += np.einsum("idabcg,a,b,c,g->id", self.quartic, e, e, e, e) / 24
            force += self.faults.get("net_force", 0.0) * e
            force += self.eps_scf * self.noise * rng.normal(size=force.shape)
            if self.faults.get("fails_at") is not None and np.allclose(vector, self.faults["fails_at"]):
                force[:] = np.nan
            forces.append(force)
            moment = np.einsum("idf,id->f", self.apt, shift) + 150 * e
            moment += np.einsum("idfg,id,g->f", self.pgt, shift, e)
            dipoles.append(self.faults.get("dipole_sign", 1.0) * moment + rng.integers(-2, 3, 3) @ quanta)
        return FieldResults(
            vectors, np.array(forces), "1", dipoles=np.array(dipoles), dipole_quanta=quanta, gap=self.gap, seconds=1.0
        )


def _verdict(engine: FieldEngine, settings: QualificationSettings, atoms: ase.Atoms | None = None) -> Qualification:
    snapshots = [_box() if atoms is None else atoms]
    return assess(settings, snapshots, run_locally(engine, plan(snapshots, settings)), {"name": engine.name})


def test_a_plan_computes_nothing_twice() -> None:
    settings = QualificationSettings(
        steps=STEPS, thresholds=(1e-7, 1e-9, 1e-8), atoms=(0, 1), screened_displacements=(0.02, 0.01)
    )
    tasks = plan([_box(), _box()], settings)
    assert len({task.name for task in tasks}) == len(tasks)
    found = {task.name: len(task.vectors) for task in tasks if task.kind == "forces"}
    # all steps share the zero field; six more mixed points at the step of 5e-4
    assert found == {f"{k}/forces/{t}": n for k in (0, 1) for t, n in (("1e-07", 13), ("1e-08", 13), ("1e-09", 79))}
    for task in tasks:
        assert not task.vectors[0].any()
        assert len(np.unique(np.round(task.vectors, 9), axis=0)) == len(task.vectors) == len(task.points)
    moved = [task for task in tasks if task.displacement is not None]
    assert len(moved) == 12 + 6
    assert all(task.variation == {"eps_scf": 1e-9} and len(task.vectors) == 4 for task in moved)
    # in fields of the sign of the displacement
    assert all((task.vectors.sum(axis=1)[1:] > 0).all() == (task.displacement.sign > 0) for task in moved)
    full = QualificationSettings(steps=STEPS, thresholds=(1e-8, 1e-9), grid="full", cross_points=False, targets=["apt"])
    assert [len(task.vectors) for task in plan([_box()], full)] == [37, 37]


def test_settings_survive_json_and_are_checked() -> None:
    settings = QualificationSettings(thresholds=(1e-9, 1e-8), atoms=(3,), tolerances=Tolerances(pgt=0.02))
    again = QualificationSettings(**json.loads(json.dumps(settings.to_dict())))
    assert again == settings
    assert again.tolerances.pgt == 0.02
    assert settings.tightest == 1e-9
    short = QualificationSettings.short(1e-3, 1e-8)
    assert (short.steps, short.thresholds) == ((1e-3,), (1e-8, 1e-9))
    assert [len(task.vectors) for task in plan([_box()], short)] == [13, 13]
    assert QualificationSettings.short(1e-3).steps == (1e-3, 2e-3)
    for wrong, message in (
        ({"steps": (1e-3,)}, "two field steps or more"),
        ({"steps": (1e-3,), "thresholds": (1e-8, 1e-8)}, "or two thresholds"),
        ({"step": 3e-3}, "must be one of the steps"),
        ({"thresholds": (-1e-8,)}, "small positive numbers"),
        ({"displacement": 2.0}, "displacement must be positive"),
        ({"grid": "some"}, "grid of a qualification"),
        ({"targets": ["dipole"]}, "targets must be"),
    ):
        with pytest.raises((FieldSetError, LabelError), match=message):
            QualificationSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(LabelError, match="atoms 0 to 23"):
        plan([_box()], QualificationSettings(atoms=(24,)))


def test_errors_judged_without_the_truth_are_the_true_ones() -> None:
    """Errors over the step, at every threshold, against tensors that only the engine knows."""
    engine = AnalyticEngine()
    atoms = _box()
    settings = QualificationSettings(steps=STEPS, thresholds=(1e-6, 1e-7, 1e-8), grid="full")
    verdict = _verdict(engine, settings)
    tasks = {task.name: task for task in plan([atoms], settings)}
    results = run_locally(engine, list(tasks.values()))
    from mimyria_wf.finite_field import field_vectors, response_tensors
    from mimyria_wf.labels import matching_rows

    for one in verdict.screened:
        name = f"0/forces/{one.threshold:g}"
        wanted = np.array(list(field_vectors(one.step, ["apt", "pgt"]).values()))
        rows = [row for row in matching_rows(tasks[name].vectors, wanted, one.step) if row is not None]
        forces = results[name].forces
        assert forces is not None
        made = response_tensors(wanted, forces[rows])
        for target, quality in one.tensors.items():
            truth = getattr(engine, target)
            true = tensor_errors(getattr(made, target), truth, atoms.numbers)
            # random noise of some hundred components: a tenth; the largest steps have a higher order still
            assert quality.error == pytest.approx(true.relative_rmse, rel=0.25), (one.threshold, one.step, target)
    noise = verdict.trends["pgt"].force_noise
    assert noise == pytest.approx(1e-8, rel=0.15)  # the tightest threshold
    assert verdict.trends["apt"].force_noise == pytest.approx(1e-8, rel=0.3)  # few degrees of freedom


def test_the_u_shape_decides() -> None:
    """Where noise and next order are known, the step with the least error is the analytic one."""
    settings = QualificationSettings(
        steps=STEPS,
        thresholds=(1e-5, 1e-6, 1e-7, 1e-8, 1e-9),
        grid="full",
        cross_points=False,
        tolerances=Tolerances(pgt=0.02),
    )
    verdict = _verdict(AnalyticEngine(), settings)
    assert verdict.accepted
    errors = {
        (one.threshold, one.step): one.pgt.error for one in verdict.screened if one.pgt is not None and one.threshold
    }
    best = {t: min(STEPS, key=lambda h: errors[t, h]) for t in settings.thresholds}
    assert best[1e-6] >= best[1e-7] >= best[1e-8] >= best[1e-9]
    assert best[1e-6] > best[1e-9]
    fit = {pair for pair in errors if errors[pair] <= 0.02}
    assert {threshold for threshold, _ in fit} == {1e-8, 1e-9}
    assert verdict.eps_scf == max(threshold for threshold, _ in fit)
    assert (verdict.eps_scf, verdict.step) in fit
    assert verdict.objections(verdict.step or 0, verdict.eps_scf) == ()
    assert any("PGT: error" in line for line in verdict.objections(1e-4, 1e-6))
    assert "was not screened" in verdict.objections(3e-4, 1e-6)[0]
    assert verdict.line.startswith(f"accepted: h = {verdict.step:g} E_h/(e a0) at EPS_SCF {verdict.eps_scf:g}")


def test_a_step_that_fits_between_two_that_do_not_is_not_recommended() -> None:
    """At 1e-7 noise forbids 1e-3 and the next order 4e-3: other snapshots may leave nothing between them."""
    settings = QualificationSettings(
        steps=STEPS, thresholds=(1e-7, 1e-8), grid="full", cross_points=False, tolerances=Tolerances(pgt=0.04)
    )
    verdict = _verdict(AnalyticEngine(), settings)
    assert verdict.objections(2e-3, 1e-7) == ()
    assert verdict.objections(1e-3, 1e-7)
    assert verdict.objections(4e-3, 1e-7)
    assert (verdict.step, verdict.eps_scf) == (1e-3, 1e-8)
    assert any("EPS_SCF 1e-07 h = 0.002 fits, but no step beside it" in reason for reason in verdict.reasons)
    nothing_else = _verdict(AnalyticEngine(), replace(settings, thresholds=(1e-7,)))
    assert nothing_else.accepted
    assert (nothing_else.step, nothing_else.eps_scf) == (2e-3, 1e-7)
    assert "only h = 0.002 is fit" in nothing_else.reasons[0]


def test_no_stronger_field_is_recommended_for_an_error_that_is_small_already() -> None:
    settings = QualificationSettings(
        steps=STEPS, thresholds=(1e-9,), cross_points=False, tolerances=Tolerances(pgt=0.05)
    )
    verdict = _verdict(AnalyticEngine(), settings)
    errors = {one.step: one.pgt.error for one in verdict.screened if one.pgt is not None}
    assert min(errors, key=errors.__getitem__) == 1e-3
    assert verdict.step == 5e-4  # the usual one
    assert errors[5e-4] < 0.05 / 3


def test_a_looser_threshold_at_a_larger_step_is_pointed_at() -> None:
    settings = QualificationSettings(steps=(5e-4, 1e-3, 2e-3), step=5e-4, thresholds=(3e-9, 1e-9), cross_points=False)
    verdict = _verdict(AnalyticEngine(), settings)
    assert (verdict.step, verdict.eps_scf) == (1e-3, 1e-9)
    assert any("EPS_SCF 3e-09 may do at h = 0.001, which was not screened" in reason for reason in verdict.reasons)
    assert "was not screened" in verdict.objections(1e-3, 3e-9)[0]


def test_a_loose_engine_is_refused_and_says_why() -> None:
    settings = QualificationSettings(thresholds=(1e-7,))
    verdict = _verdict(AnalyticEngine(noise=3.0), settings)
    assert not verdict.accepted
    assert verdict.step is verdict.eps_scf is None
    assert "none of 4 pairs of step and threshold is fit" in verdict.line
    assert "PGT: error" in verdict.line
    assert "refused" in verdict.line
    assert "a larger step or a tighter threshold" in verdict.line
    # once, not as the reason and as the check
    assert verdict.text().count("PGT: error") == 1
    # the APT alone is fine
    alone = _verdict(AnalyticEngine(noise=3.0), QualificationSettings(thresholds=(1e-7,), targets=["apt"]))
    assert alone.accepted
    assert alone.pgt_error is None
    strong = _verdict(AnalyticEngine(), QualificationSettings(steps=(1e-2, 2e-2, 4e-2), thresholds=(1e-9,)))
    assert not strong.accepted
    assert any("a smaller step" in line for line in strong.reasons)


@pytest.mark.parametrize(
    ("faults", "name", "says"),
    [
        ({"normalised": True}, "field scale", r"felt 0\.70\d+ times the field given"),
        ({"net_force": 0.2}, "apt sum rule", r"sum rule left open by 4\.8 e"),
        ({"gap": 0.05}, "gap", "polarization of a metal is not defined"),
        ({"dipole_sign": -1.0}, "spatial apt", "field and spatial derivatives differ"),
        ({"noise": 50.0}, "pgt error", "noise of the forces"),
    ],
)
def test_each_fault_is_found(faults: dict[str, Any], name: str, says: str) -> None:
    settings = QualificationSettings(steps=(5e-4, 1e-3, 2e-3, 4e-3), thresholds=(1e-9,), atoms=(0, 4))
    sound = _verdict(AnalyticEngine(), settings)
    assert sound.accepted
    checks = {check.name: check for check in sound.checks}
    assert checks[name].passed
    wrong = _verdict(AnalyticEngine(**faults), settings)
    assert not wrong.accepted
    failed = [check for check in wrong.checks if check.passed is False]
    assert name in [check.name for check in failed]
    assert any(re.search(says, check.line) for check in failed)
    assert wrong.text().count("REFUSED") == len(failed)


def test_fields_are_too_strong_from_the_gap_on_and_worth_a_word_from_a_tenth() -> None:
    """C60 with a drop of 0.85 of its gap gives sound labels; VASP warns from a tenth."""
    steps = (5e-4, 1e-3, 2e-3)  # 0.159, 0.319 and 0.638 eV over the cell of 6.2 A
    by_step = {one.step: one for one in _verdict(AnalyticEngine(gap=0.36), QualificationSettings(steps)).screened}
    lines = {step: next(c for c in one.checks if c.name == "field strength") for step, one in by_step.items()}
    assert [lines[step].passed for step in steps] == [True, True, False]
    assert lines[1e-3].value == pytest.approx(0.319 / 0.36, rel=1e-2)
    assert "where VASP warns: compare with a smaller step" in lines[1e-3].line
    assert "use a smaller step" in lines[2e-3].line
    wide = _verdict(AnalyticEngine(gap=8.0), QualificationSettings(steps))
    assert not any("VASP" in check.line for check in wide.checks)


class DisplacedFails(AnalyticEngine):
    """Whose fields have the wrong sign, and whose displaced configurations do not converge."""

    with_dipoles = True

    def varied(self, **changes: Any) -> AnalyticEngine:
        return self

    def field_results(self, atoms: ase.Atoms, vectors: Array) -> FieldResults:
        if self.with_dipoles and not np.allclose(atoms.positions, self.reference):
            raise EngineError("the SCF did not converge")
        found = super().field_results(atoms, -np.asarray(vectors))
        return replace(found, field_vectors=vectors, dipoles=found.dipoles if self.with_dipoles else None)


class NoDipoles(DisplacedFails):
    """Which knows forces alone."""

    with_dipoles = False


def test_a_spatial_check_that_was_asked_for_and_failed_is_an_objection() -> None:
    """Nothing else sees a reversed field in a neutral system."""
    settings = {"steps": (5e-4, 1e-3, 2e-3), "thresholds": (1e-9,), "polarizability": "none"}
    for engine in (DisplacedFails(1e-9), NoDipoles(1e-9)):
        verdict = _verdict(engine, QualificationSettings(**settings, atoms=(0,)))  # type: ignore[arg-type]
        assert not verdict.accepted
        assert "spatial APT asked for but not computed: no dipoles of 0/" in verdict.line
    # the default of a campaign excuses engines that have no dipoles, and those alone
    default = QualificationSettings(**settings, atoms=(0,), requires_spatial=False)  # type: ignore[arg-type]
    assert not _verdict(DisplacedFails(1e-9), default).accepted
    for excused in (default, QualificationSettings(**settings)):  # type: ignore[arg-type]
        verdict = _verdict(NoDipoles(1e-9), excused)
        assert verdict.accepted
        assert verdict.line.endswith("; sign, unit and order of atoms not tested")
        assert re.search("unknown .*sign, unit and order of atoms not tested", verdict.text())
    compared = _verdict(AnalyticEngine(), QualificationSettings(**settings, atoms=(0,)))  # type: ignore[arg-type]
    assert "not tested" not in compared.text()


class ZeroOff(AnalyticEngine):
    """Whose point without field is converged worse than the others."""

    off = 2e-8

    def varied(self, **changes: Any) -> AnalyticEngine:
        other = ZeroOff(changes["eps_scf"], self.noise)
        other.off = self.off
        return other

    def field_results(self, atoms: ase.Atoms, vectors: Array) -> FieldResults:
        found = super().field_results(atoms, vectors)
        error = self.off * np.random.default_rng(5).normal(size=found.forces[0].shape)
        is_zero = ~np.any(np.asarray(vectors), axis=1)
        return replace(found, forces=found.forces + is_zero[:, None, None] * error)


def test_an_error_of_the_zero_field_point_is_no_next_order() -> None:
    """It falls with the square of the step, as noise does, however small the noise of the others is."""
    engine = ZeroOff(1e-9, 0.3)
    settings = QualificationSettings(steps=(2.5e-4, 5e-4, 1e-3, 2e-3), thresholds=(1e-9,), cross_points=False)
    verdict = _verdict(engine, settings)
    trend = verdict.trends["pgt"]
    assert trend.zero_field_noise == pytest.approx(2e-8, rel=0.15)
    assert trend.force_noise == pytest.approx(3e-10, rel=0.15)
    assert any("better converged zero-field point" in line for line in verdict.text().splitlines())
    numbers = _box().numbers
    for one in verdict.screened:
        assert one.pgt is not None
        own = Spread.of(engine.pgt, numbers)
        squares = np.where(np.eye(3, dtype=bool), 4.0, 1.0) * np.ones(engine.pgt.shape) * (2e-8 / one.step**2) ** 2
        if one.step == 2e-3:  # where the next order is the larger part
            assert "a smaller step" in one.objections[0]
            continue
        assert one.pgt.error == pytest.approx(own.relative(squares, numbers)["mean"], rel=0.25)
        assert "a larger step or a tighter threshold" in one.objections[0]


def test_noise_of_the_reference_is_not_the_error_of_a_large_step() -> None:
    """Of steps drowned in noise the largest is the best, and is not blamed for the limit's own error."""
    engine = AnalyticEngine(noise=3.0)
    settings = QualificationSettings(steps=STEPS, thresholds=(1e-7,), cross_points=False)
    largest = _verdict(engine, settings).screened[-1]
    assert largest.step == 4e-3
    assert largest.pgt is not None
    assert largest.pgt.measured > 0.09
    assert largest.pgt.error == pytest.approx(0.054, rel=0.2)  # true: 0.0545


def test_noise_and_next_order_meet_only_where_there_is_a_next_order() -> None:
    meet = "noise and next order in the field meet"
    settings = QualificationSettings(thresholds=(1e-9,), cross_points=False)
    assert meet in _verdict(AnalyticEngine(), settings).text()
    quadratic = AnalyticEngine()
    quadratic.varied = lambda **changes: quadratic  # type: ignore[method-assign]
    quadratic.cubic, quadratic.quartic = 0 * quadratic.cubic, 0 * quadratic.quartic
    for noise in (0.0, 1e-3, 1e-1):
        quadratic.noise = noise
        assert meet not in _verdict(quadratic, settings).text()


class Incomplete(AnalyticEngine):
    """Whose response is cut short by its threshold: all changes of the forces are too small alike."""

    def varied(self, **changes: Any) -> AnalyticEngine:
        return Incomplete(changes["eps_scf"], self.noise)

    def field_results(self, atoms: ase.Atoms, vectors: Array) -> FieldResults:
        found = super().field_results(atoms, vectors)
        zero = super().field_results(atoms, np.zeros((1, 3))).forces[0]
        return replace(found, forces=zero + (1 - min(0.5, 1e7 * self.eps_scf)) * (found.forces - zero))


def test_an_incomplete_response_is_seen_by_a_tenth_of_the_threshold_alone() -> None:
    engine = Incomplete(1e-8, 1e-2)
    two_steps = QualificationSettings(steps=(5e-4, 1e-3), thresholds=(1e-8,), cross_points=False)
    assert _verdict(engine, two_steps).accepted
    verdict = _verdict(engine, QualificationSettings.short(5e-4, 1e-8))
    assert not verdict.accepted
    usual = next(one for one in verdict.screened if one.threshold == 1e-8)
    assert usual.apt is not None
    assert usual.apt.error == pytest.approx(0.09, rel=0.1)  # 10 % against 1 %
    assert "noise or an incomplete response" in usual.objections[0]
    sound = _verdict(AnalyticEngine(1e-8, 1e-2), QualificationSettings.short(5e-4, 1e-8))
    assert sound.accepted, sound.text()
    assert sound.eps_scf == 1e-8
    assert any("one step alone" in line for line in sound.reasons)


def test_the_mixed_points_are_checked_twice() -> None:
    """Points of total length h pass for (h, h, 0) neither in their odd nor in their even part."""
    settings = QualificationSettings(steps=(5e-4, 1e-3, 2e-3), thresholds=(1e-9,))
    wrong = _verdict(AnalyticEngine(normalised=True), settings)
    usual = next(one for one in wrong.screened if one.step == 5e-4)
    failed = {check.name for check in usual.checks if check.passed is False}
    assert {"field scale", "mixed derivatives"} <= failed
    sound = next(one for one in _verdict(AnalyticEngine(), settings).screened if one.step == 5e-4)
    assert sound.mixed is not None
    assert sound.mixed < 0.05
    assert sound.field_scale == pytest.approx(1, abs=1e-3)


def test_net_force_is_quantified() -> None:
    settings = QualificationSettings(thresholds=(1e-9,))
    # 24 atoms that feel 1e-4 e each beyond their tensors
    verdict = _verdict(AnalyticEngine(net_force=1e-4, noise=0.0), settings)
    usual = next(one for one in verdict.screened if one.step == 5e-4)
    assert usual.net_force == pytest.approx(2.4e-3, rel=1e-6)
    assert usual.apt is not None
    assert usual.apt.sum_rule == pytest.approx(2.4e-3, rel=1e-6)
    # projection takes m_i/M of it from each atom: known for these masses and spreads
    assert 1e-4 < usual.apt.projection < 2e-3
    assert verdict.accepted


def test_a_charged_system_is_pushed_by_its_charge_alone() -> None:
    settings = QualificationSettings(thresholds=(1e-9,))
    box = _box()
    box.info["charge"] = 2
    verdict = _verdict(AnalyticEngine(charge=2.0, noise=0.0), settings, box)
    usual = next(one for one in verdict.screened if one.step == 5e-4)
    assert usual.net_force == pytest.approx(0, abs=1e-9)
    assert verdict.accepted
    box.info["charge"] = 0
    wrong = _verdict(AnalyticEngine(charge=2.0, noise=0.0), settings, box)
    assert next(one for one in wrong.screened if one.step == 5e-4).net_force == pytest.approx(2.0)
    assert not wrong.accepted


def test_failed_points_cost_only_their_step() -> None:
    settings = QualificationSettings(steps=(5e-4, 1e-3, 2e-3, 4e-3), thresholds=(1e-9,))
    verdict = _verdict(AnalyticEngine(fails_at=[1e-3, 0.0, 0.0]), settings)
    assert verdict.accepted
    by_step = {one.step: one for one in verdict.screened}
    assert by_step[1e-3].apt is None
    assert "field points +x of h = 0.001 failed" in by_step[1e-3].objections[0]
    assert by_step[5e-4].objections == ()
    nothing = _verdict(AnalyticEngine(fails_at=[0.0, 0.0, 0.0]), settings)
    assert not nothing.accepted
    assert "field points 0 of h = " in nothing.line
    none_at_all = assess(settings, [_box()], {})
    assert not none_at_all.accepted
    assert "no forces of 0/forces/1e-09" in none_at_all.line


def test_an_engine_that_raises_is_a_problem_of_its_task() -> None:
    class Broken(AnalyticEngine):
        def varied(self, **changes: Any) -> AnalyticEngine:
            return Broken(changes["eps_scf"])

        def field_results(self, atoms: ase.Atoms, vectors: Array) -> FieldResults:
            if self.eps_scf < 1e-8:
                raise EngineError("out of cheese")
            return super().field_results(atoms, vectors)

    settings = QualificationSettings(thresholds=(1e-8, 1e-9))
    verdict = _verdict(Broken(), settings)
    assert not verdict.accepted
    assert any("out of cheese" in line for one in verdict.screened for line in one.problems)
    assert any("nothing to compare with" in line for one in verdict.screened for line in one.problems)


def test_known_points_are_not_computed_again(tmp_path: Path) -> None:
    engine = AnalyticEngine()
    few = QualificationSettings(steps=(5e-4, 1e-3), thresholds=(1e-8,), cross_points=False)
    many = QualificationSettings(steps=(5e-4, 1e-3, 2e-3), thresholds=(1e-8,), cross_points=False, atoms=(2,))
    first = run_locally(engine, plan([_box()], few), tmp_path)
    assert sum(engine.calls) == 25
    engine.calls.clear()
    again = run_locally(engine, plan([_box()], few), tmp_path)
    assert engine.calls == []
    for key in first:
        for name in ("forces", "dipoles", "dipole_quanta", "gaps"):
            np.testing.assert_array_equal(getattr(first[key], name), getattr(again[key], name))
        assert again[key].seconds == pytest.approx(first[key].seconds)
    more = run_locally(engine, plan([_box()], many), tmp_path)
    assert sum(engine.calls) == 12 + 6 * 4
    from_store, at_once = assess(many, [_box()], more), _verdict(engine, many)
    assert from_store.screened == at_once.screened
    assert from_store.spatial == at_once.spatial
    assert from_store.seconds == pytest.approx(at_once.seconds)
    next(tmp_path.glob("*.npz")).write_text("torn")
    with pytest.raises(LabelError, match="remove it"):
        run_locally(engine, plan([_box()], many), tmp_path)


def test_results_and_verdicts_survive_json() -> None:
    settings = QualificationSettings(thresholds=(1e-8, 1e-9), atoms=(0,), screened_displacements=(0.02,))
    tasks = plan([_box()], settings)
    results = run_locally(AnalyticEngine(fails_at=[1e-3, 0, 0]), tasks)
    through = {name: TaskResult.from_dict(json.loads(json.dumps(result.to_dict()))) for name, result in results.items()}
    verdict = assess(settings, [_box()], results)
    assert assess(settings, [_box()], through).to_dict() == verdict.to_dict()
    again = Qualification.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False)))
    assert again.to_dict() == verdict.to_dict()
    assert again.text() == verdict.text()


def test_potential_drop_over_cells_and_clusters() -> None:
    box = _box()
    # 6.2 A in a field of 1e-3 E_h/(e a0) = 0.0514 V/A
    assert potential_drop(box, np.array([[1e-3, 0, 0]])) == pytest.approx(6.2 * 0.05142207, rel=1e-5)
    assert potential_drop(box, np.array([[1e-3, 0, 0]]), (1, 3, 1)) == pytest.approx(6.2 * 0.05142207, rel=1e-5)
    assert potential_drop(box, np.array([[0, 1e-3, 0]]), (1, 3, 1)) == pytest.approx(3 * 6.2 * 0.05142207, rel=1e-5)
    box.pbc = False
    expected = np.ptp(box.positions[:, 2]) * 0.05142207
    assert potential_drop(box, np.array([[0, 0, -1e-3], [0, 0, 0]])) == pytest.approx(expected, rel=1e-5)


def test_spread_is_that_of_the_metrics() -> None:
    rng = np.random.default_rng(5)
    numbers = np.array([8, 1, 1, 8, 1, 1])
    reference = rng.normal(size=(6, 3, 3))
    other = reference + 0.1 * rng.normal(size=(6, 3, 3))
    expected = tensor_errors(other, reference, numbers)
    spread = Spread.of(reference, numbers)
    found = spread.relative((other - reference) ** 2, numbers)
    assert found.pop("mean") == pytest.approx(expected.relative_rmse)
    assert found == pytest.approx({s: e.relative_rmse for s, e in expected.by_species.items()})
    assert spread.r2((other - reference) ** 2, numbers) == pytest.approx(expected.r2)
    # an atom alone in its species: its tensor's own size
    one = Spread.of(reference[:1], numbers[:1])
    size = np.sqrt(np.mean(reference[0] ** 2))
    assert one.relative(np.full((1, 3, 3), 0.01), numbers[:1])["mean"] == pytest.approx(0.1 / size)
    with pytest.raises(LabelError, match="vanish"):
        Spread.of(np.zeros((2, 3, 3)), numbers[:2])


def test_plateaus_leave_out_steps_that_are_too_large() -> None:
    rng = np.random.default_rng(6)
    steps = np.array([2.5e-4, 5e-4, 1e-3, 2e-3, 1e-2])
    truth, slope, beyond = (rng.normal(size=(50, 3, 3)) for _ in range(3))
    h = steps[:, None, None, None]
    noise = 1e-9 * rng.normal(size=(5, 50, 3, 3)) * np.sqrt(0.5) / h
    fit = fit_plateau("apt", steps, truth + slope * h**2 + 1e4 * beyond * h**4 + noise)
    assert fit.n_used == 4
    assert fit.noise == pytest.approx(1e-9, rel=0.1)
    np.testing.assert_allclose(np.mean((fit.limit - truth) ** 2), fit.limit_variance.mean(), rtol=0.3)
    with pytest.raises(LabelError, match="three increasing steps"):
        fit_plateau("apt", steps[:2], np.zeros((2, 1, 3, 3)))


@pytest.fixture(scope="module")
def dimer() -> ase.Atoms:
    water = molecule("H2O")
    other = water.copy()
    other.rotate(40, "x")
    other.positions += [0.3, 2.0, 2.2]
    dimer = water + other
    dimer.rattle(0.05, seed=3)
    return dimer


def test_tblite_is_qualified_end_to_end(tmp_path: Path, dimer: ase.Atoms) -> None:
    settings = QualificationSettings(
        steps=(2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3),
        thresholds=(2e-3, 2e-5, 2e-8),
        atoms=(0, 1, 2),
        screened_displacements=(0.02,),
    )
    lines: list[str] = []
    verdict = qualify(
        [dimer],
        TbliteEngine(start="cold"),
        settings,
        tmp_path,
        lambda done, n_all, what: lines.append(f"{done}/{n_all}"),
    )
    assert verdict.accepted, verdict.text()
    assert lines[-1] == f"{verdict.n_points}/{verdict.n_points}"
    assert verdict.spatial is not None
    assert verdict.spatial.apt is not None
    assert verdict.spatial.pgt is not None
    assert verdict.spatial.pgt.relative < 0.01
    assert verdict.spatial.apt.largest < 1e-3
    # error of displacements goes with their square: three times that of 0.01 A lies between 0.01 and 0.02 A
    assert verdict.spatial.apt.other_displacements["0.02"] == pytest.approx(1.5e-3, rel=0.5)
    assert [check.passed for check in verdict.checks if check.name.startswith("displacement")] == [True, True]
    assert verdict.gap == pytest.approx(9.46, abs=0.1)
    stored = json.loads((tmp_path / "qualification.json").read_text())
    assert Qualification.from_dict(stored).line == verdict.line
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "qualification_steps.png",
        "qualification_thresholds.png",
        "qualification_parity.png",
    }
    assert stored["engine"]["name"] == "tblite"


def test_figures_of_poor_verdicts(tmp_path: Path) -> None:
    settings = QualificationSettings(steps=(5e-4, 1e-3), atoms=(0,), polarizability="none")
    verdict = _verdict(AnalyticEngine(), settings)
    assert verdict.spatial is not None
    assert verdict.spatial.pgt is None
    assert [path.name for path in plot_qualification(tmp_path, verdict, "short")] == [
        "short_steps.png",
        "short_parity.png",
    ]
    nothing = assess(settings, [_box()], {})
    assert plot_qualification(tmp_path, nothing, "nothing") == []


def test_figures_where_errors_vanish_are_drawn_on_plain_axes(tmp_path: Path) -> None:
    settings = QualificationSettings(steps=(5e-4, 1e-3), thresholds=(1e-8, 1e-9), targets=("apt",), grid="full")
    values = _verdict(AnalyticEngine(), settings).to_dict()
    for one in values["screened"]:
        one["apt"]["measured"] = 0.0
    assert len(plot_qualification(tmp_path, Qualification.from_dict(values))) == 2  # warnings are errors


def test_gaps_in_fields_are_used_where_an_engine_knows_them() -> None:
    found = AnalyticEngine().field_results(_box(), np.array([[0, 0, 0], [1e-3, 0, 0]]))
    gaps = task_result(found).gaps
    assert gaps is not None
    assert gaps[0] == 8.0
    assert np.isnan(gaps[1])
