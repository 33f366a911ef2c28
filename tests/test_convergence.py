"""Two-stage decision, case by case."""

from math import nan

import pytest

from mimyria_wf.convergence import (
    ConvergenceSettings,
    Distance,
    Iteration,
    decision_from_dicts,
    has_converged,
)
from mimyria_wf.errors import SpectrumError

SETTINGS = ConvergenceSettings(r2=0.9, spectral_distance=0.02, n_stable=1, minimum_iterations=2)


def iteration(n=10, r2=0.95, upper=None, value=0.01):
    distances = {} if upper is None else {"ir": Distance(0.001, 0.0, 0.002), "raman_iso": Distance(value, 0.0, upper)}
    return Iteration(n, {"apt": 0.99, "pgt": r2}, distances)


def test_nothing_done_yet():
    decision = has_converged([], SETTINGS)
    assert (decision.outcome, decision.stage) == ("continue", 1)


def test_stage_one_names_the_worst_target():
    decision = has_converged([iteration(r2=0.7), iteration(20, r2=0.85, upper=0.001)], SETTINGS)
    assert (decision.outcome, decision.stage) == ("continue", 1)
    assert "R2 of pgt is 0.8500 with 20 configurations, needs 0.9" in decision.reason


def test_r2_that_is_not_a_number_does_not_pass():
    assert has_converged([iteration(r2=nan, upper=0.001)], SETTINGS).stage == 1


def test_stage_two_needs_a_second_iteration():
    decision = has_converged([iteration()], SETTINGS)
    assert decision.stage == 2
    assert "second iteration" in decision.reason


def test_the_upper_end_of_the_interval_counts():
    decision = has_converged([iteration(), iteration(20, upper=0.03, value=0.015)], SETTINGS)
    assert (decision.outcome, decision.stage) == ("continue", 2)
    assert "raman_iso" in decision.reason
    assert "0.0300" in decision.reason


def test_converged():
    decision = has_converged([iteration(), iteration(20, upper=0.02)], SETTINGS)
    assert decision.is_converged
    assert decision.reason.startswith("converged: R2 >= 0.9500")
    assert decision.to_dict()["is_converged"] is True


def test_without_an_interval_the_value_counts_and_says_so():
    decision = has_converged([iteration(), iteration(20, upper=nan, value=0.015)], SETTINGS)
    assert decision.is_converged
    assert "no interval" in decision.reason


def test_n_stable_counts_iterations_in_a_row():
    settings = ConvergenceSettings(n_stable=2, minimum_iterations=1)
    stable, moving = iteration(upper=0.01), iteration(upper=0.05)
    assert not has_converged([iteration(), stable, moving, stable], settings).is_converged
    decision = has_converged([iteration(), moving, stable], settings)
    assert decision.n_stable == 1
    assert "1 of 2 times" in decision.reason
    assert has_converged([iteration(), moving, stable, stable], settings).is_converged


def test_an_iteration_that_failed_stage_one_is_not_stable():
    settings = ConvergenceSettings(n_stable=2, minimum_iterations=1)
    history = [iteration(), iteration(r2=0.5, upper=0.001), iteration(upper=0.001)]
    assert has_converged(history, settings).n_stable == 1


def test_minimum_iterations():
    settings = ConvergenceSettings(minimum_iterations=3)
    decision = has_converged([iteration(), iteration(upper=0.001)], settings)
    assert decision.outcome == "continue"
    assert "only 2 of at least 3" in decision.reason


def test_exhausted_sizes():
    settings = ConvergenceSettings(n_iterations=2)
    decision = has_converged([iteration(), iteration(upper=0.5)], settings)
    assert decision.outcome == "exhausted"
    assert "no larger training set" in decision.reason
    assert has_converged([iteration(), iteration(upper=0.001)], settings).is_converged


def test_records_of_the_workflow():
    settings = {"r2": 0.9, "spectral_distance": 0.02, "n_stable": 1, "minimum_iterations": 2, "names": ["nve-000"]}
    entry = {"distance": 0.01, "lower": None, "upper": None}
    records = [
        {"n_training": 10, "metrics": {"apt": {"r2": 0.95}}},
        {"n_training": 20, "metrics": {"apt": {"test": {"r2": 0.97}}}, "comparison": {"spectra": {"ir": entry}}},
    ]
    assert decision_from_dicts(settings, records)["is_converged"]
    assert not decision_from_dicts(settings, records[:1])["is_converged"]
    assert decision_from_dicts(settings, [{"n_training": 5, "metrics": {"apt": {"r2": None}}}])["stage"] == 1


def test_bad_settings():
    for change in ({"r2": 1.5}, {"spectral_distance": 0.0}, {"n_stable": 0}, {"minimum_iterations": 0}):
        with pytest.raises(SpectrumError, match=next(iter(change))):
            ConvergenceSettings(**change)
