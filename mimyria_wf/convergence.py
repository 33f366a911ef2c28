"""When to stop growing the training set: two stages, decided by pure functions.

Stage 1: every target's R^2 on the test set (Eq. 15) has reached a threshold. It is cheap and says that the tensors are
learned at all, but not what their error means for a spectrum. Stage 2: the spectra of successive iterations, along the
same trajectories, have stopped changing: the upper end of the bootstrap interval of every spectral distance (Eq. 16)
stays below a threshold for n_stable iterations in a row. Spectra converge before tensors do, and a distance between
successive iterations is the only one that needs no reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite, nan
from typing import Any, Literal

from mimyria_wf.errors import SpectrumError

Outcome = Literal["continue", "converged", "exhausted"]


@dataclass(frozen=True)
class ConvergenceSettings:
    """Thresholds.

    Attributes:
        r2: that every target must reach on the test set (stage 1).
        spectral_distance: that the upper end of every distance's interval must not exceed (stage 2).
        n_stable: number of iterations in a row that must fulfil stage 2.
        minimum_iterations: never converged before that many.
        n_iterations: iterations that the training-set sizes allow; None: no limit.
    """

    r2: float = 0.9
    spectral_distance: float = 0.02
    n_stable: int = 1
    minimum_iterations: int = 2
    n_iterations: int | None = None

    def __post_init__(self) -> None:
        """Refuse thresholds that nothing or everything fulfils."""
        if not 0 < self.r2 < 1:
            raise SpectrumError(f"convergence: r2 must lie between 0 and 1, got {self.r2}")
        if not 0 < self.spectral_distance < 1:
            raise SpectrumError(
                f"convergence: spectral_distance must lie between 0 and 1, got {self.spectral_distance}"
            )
        for name in ("n_stable", "minimum_iterations"):
            if getattr(self, name) < 1:
                raise SpectrumError(f"convergence: {name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Distance:
    """Spectral distance to the iteration before, with the ends of its interval (NaN when one trajectory gives none)."""

    value: float
    lower: float = nan
    upper: float = nan

    @property
    def bound(self) -> float:
        """What counts against the threshold: the interval's upper end, or the value where there is no interval."""
        return self.upper if isfinite(self.upper) else self.value


@dataclass(frozen=True)
class Iteration:
    """What one iteration left.

    Attributes:
        n_training: configurations trained on.
        r2: by target, on the test set.
        distances: by spectrum (ir, raman_iso, ...), to the iteration before; empty in the first.
    """

    n_training: int
    r2: Mapping[str, float]
    distances: Mapping[str, Distance] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """Whether to go on.

    Attributes:
        outcome: "converged", "continue", or "exhausted" when no larger training set is left.
        stage: that is not fulfilled yet, 1 or 2; 3 when both are.
        n_stable: iterations in a row, up to the last, that fulfil stage 2.
        reason: one line for people.
    """

    outcome: Outcome
    stage: int
    n_stable: int
    reason: str

    @property
    def is_converged(self) -> bool:
        """True for "converged" only."""
        return self.outcome == "converged"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record."""
        return {**asdict(self), "is_converged": self.is_converged}


def has_converged(history: Sequence[Iteration], settings: ConvergenceSettings) -> Decision:
    """Decide whether the refinement is done.

    Args:
        history: iterations so far, oldest first.
        settings: thresholds.
    """
    stage, n_stable, reason = _judge(history, settings)
    n_done = len(history)
    if stage == 3 and n_done < settings.minimum_iterations:
        reason = f"{reason}, but only {n_done} of at least {settings.minimum_iterations} iterations are done"
    elif stage == 3:
        return Decision("converged", 3, n_stable, f"converged: {reason}")
    if settings.n_iterations is not None and n_done >= settings.n_iterations:
        return Decision("exhausted", stage, n_stable, f"not converged, and no larger training set is left: {reason}")
    return Decision("continue", stage, n_stable, f"not converged: {reason}")


def _judge(history: Sequence[Iteration], settings: ConvergenceSettings) -> tuple[int, int, str]:
    """Return stage reached (3: all), the number of stable iterations, and why."""
    if not history:
        return 1, 0, "no iteration is done yet"
    last = history[-1]
    if not last.r2:
        return 1, 0, "stage 1: no R2 is known"
    target, lowest = min(last.r2.items(), key=lambda item: item[1] if isfinite(item[1]) else -1e300)
    if not lowest >= settings.r2:
        return (
            1,
            0,
            f"stage 1: R2 of {target} is {lowest:.4f} with {last.n_training} configurations, needs {settings.r2:g}",
        )
    n_stable = 0
    for iteration in reversed(history):
        if not _is_stable(iteration, settings):
            break
        n_stable += 1
    if not last.distances:
        return 2, 0, f"stage 1 is passed (R2 >= {lowest:.4f}); stage 2 needs the spectra of a second iteration"
    name, distance = max(last.distances.items(), key=lambda item: _sortable(item[1].bound))
    interval = "upper end of the interval" if isfinite(distance.upper) else "no interval from one trajectory"
    figures = f"distance of {name} to the iteration before is {distance.value:.4f} ({interval}"
    figures += f" {distance.upper:.4f})" if isfinite(distance.upper) else ")"
    if n_stable == 0:
        return 2, 0, f"stage 2: {figures}, needs {settings.spectral_distance:g}"
    if n_stable < settings.n_stable:
        return (
            2,
            n_stable,
            f"stage 2: {figures}, below {settings.spectral_distance:g} {n_stable} of {settings.n_stable} times",
        )
    return 3, n_stable, f"R2 >= {lowest:.4f} and {figures}, at most {settings.spectral_distance:g} is asked"


def _sortable(value: float) -> float:
    return value if isfinite(value) else 1e300


def _is_stable(iteration: Iteration, settings: ConvergenceSettings) -> bool:
    return (
        bool(iteration.distances)
        and all(d.bound <= settings.spectral_distance for d in iteration.distances.values())
        and all(value >= settings.r2 for value in iteration.r2.values())
    )


def iteration_from_dict(record: Mapping[str, Any]) -> Iteration:
    """Read an iteration from JSON-able records.

    Args:
        record: ``n_training``; ``metrics`` by target, each with ``r2`` at its top or under ``test``
            (:meth:`mimyria_wf.metrics.TensorErrors.to_dict`); ``comparison`` with the iteration before, as
            :func:`mimyria_wf.spectra_files.compare_spectra` returns it, absent in the first iteration.
    """
    r2 = {}
    for target, metrics in record.get("metrics", {}).items():
        value = metrics.get("test", metrics).get("r2")
        r2[target] = nan if value is None else float(value)
    distances = {
        name: Distance(
            *(nan if entry.get(key) is None else float(entry[key]) for key in ("distance", "lower", "upper"))
        )
        for name, entry in record.get("comparison", {}).get("spectra", {}).items()
    }
    return Iteration(int(record["n_training"]), r2, distances)


def decision_from_dicts(settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return :func:`has_converged` for JSON-able settings and records.

    Args:
        settings: fields of :class:`ConvergenceSettings`; others (such as the names of the runs) are left alone.
        records: see :func:`iteration_from_dict`, oldest first.
    """
    known = {key: settings[key] for key in ConvergenceSettings.__dataclass_fields__ if key in settings}
    return has_converged([iteration_from_dict(r) for r in records], ConvergenceSettings(**known)).to_dict()
