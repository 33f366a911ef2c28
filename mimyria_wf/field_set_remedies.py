"""What to change before failed field points are computed again, and why that helps.

A remedy never touches what decides the converged forces, so that the level of theory of a label stays what it was. It
follows from what ended the points; where nothing sensible can be changed there is none, and the point keeps its cause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

CHANCE = ("truncated", "missing", "aborted", "field", "forces", "lost")
"""Causes that may be a dead node, a full disk or a broken link: worth one repetition, not two."""

MAX_ROUNDS = 3
"""How often a field point is tried at most, unless the settings say otherwise."""


@dataclass(frozen=True)
class Failure:
    """A field point without usable forces.

    Attributes:
        snapshot: its index in the pool.
        vector: (3,) field [E_h/(e a0)].
        cause: key of :data:`mimyria_wf.cp2k_output.CAUSES`, or "lost" for a job that left no summary.
        problem: one line.
    """

    snapshot: int
    vector: tuple[float, ...]
    cause: str
    problem: str = ""


@dataclass(frozen=True)
class Effort:
    """How field points are computed, beside their physics.

    Attributes:
        snapshots_per_job: at most so many snapshots a job.
        points_per_job: at most so many field points of a snapshot a job; None for all.
        scf: snapshot -> step of the ladder of SCF settings, 0 for the template's own.
        walltime: the template's own time limit raised to this [s]; None leaves it.
        options: scheduler options.
    """

    snapshots_per_job: int
    points_per_job: int | None = None
    scf: Mapping[int, int] = field(default_factory=dict)
    walltime: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """How far scheduler options may be raised; None: not at all.

    Attributes:
        max_wallclock_seconds: of a job [s].
        max_memory_kb: of a job [kB].
        n_scf_steps: length of the engine's ladder of SCF settings.
    """

    max_wallclock_seconds: int | None = None
    max_memory_kb: int | None = None
    n_scf_steps: int = 0


def remedy(
    effort: Effort,
    failures: Sequence[Failure],
    n_finished: int,
    limits: Limits,
    attempt: int,
    template_walltime: float | None = None,
) -> tuple[Effort, tuple[str, ...], tuple[Failure, ...]]:
    """Return what is changed for the next try of the failed points.

    Args:
        effort: of the try that failed.
        failures: its field points without forces.
        n_finished: the smallest number of points that a job finished before its time was over.
        limits: how far options may be raised.
        attempt: number of tries so far.
        template_walltime: CP2K's own time limit for a run, from the template [s].

    Returns:
        The new effort; what is changed and why, a line each; the failures that are worth another try. The others keep
        their causes.
    """
    causes = {failure.cause for failure in failures}
    reasons: list[str] = []
    worth: set[str] = set()
    steps = {one.snapshot: effort.scf.get(one.snapshot, 0) + 1 for one in failures if one.cause == "scf"}
    mended = {index: step for index, step in steps.items() if step <= limits.n_scf_steps}
    if mended:
        effort = replace(effort, scf={**effort.scf, **mended})
        reasons.append(
            f"unconverged SCF: more robust settings (step {max(mended.values())} of {limits.n_scf_steps}); another way "
            "to the same minimum at the same threshold, for all points of the snapshot, so that what is left below the "
            "threshold still cancels in their differences"
        )
    if "walltime" in causes:
        effort, reason = _more_time(effort, n_finished, limits, template_walltime)
        if reason:
            worth.add("walltime")
            reasons.append(reason)
    if "memory" in causes:
        effort, reason = _more_memory(effort, limits)
        if reason:
            worth.add("memory")
            reasons.append(reason)
    chance = causes.intersection(CHANCE)
    if chance and attempt == 1:
        worth |= chance
        reasons.append(
            f"{', '.join(sorted(chance))}: unchanged, once: nodes die and disks fill up, but what fails twice is not "
            "chance"
        )
    again = tuple(one for one in failures if one.cause in worth or (one.cause == "scf" and one.snapshot in mended))
    return effort, tuple(reasons), again


def _more_time(effort: Effort, n_finished: int, limits: Limits, template_walltime: float | None) -> tuple[Effort, str]:
    """Give a job less to do if it got through something, else more time as far as that is allowed."""
    allowed = limits.max_wallclock_seconds
    if n_finished > 0:
        fewer = n_finished if effort.points_per_job is None else max(1, min(n_finished, effort.points_per_job - 1))
        return (
            replace(effort, snapshots_per_job=1, points_per_job=fewer),
            f"time over: {fewer} field points of one snapshot a job, as many as were finished in that time",
        )
    own = effort.walltime or template_walltime
    if own is not None and allowed is not None and own < allowed:
        return (
            replace(effort, walltime=float(allowed)),
            f"time over: GLOBAL/WALLTIME {allowed:g} s in place of {own:g} s, since not one point was finished and an "
            "SCF cannot be divided",
        )
    current = effort.options.get("max_wallclock_seconds")
    if current is not None and allowed is not None and current < allowed:
        seconds = min(2 * int(current), allowed)
        return (
            replace(effort, options={**effort.options, "max_wallclock_seconds": seconds}),
            f"time over: {seconds} s in place of {current} s a job, since not one point was finished and an SCF cannot "
            "be divided",
        )
    return effort, ""


def _more_memory(effort: Effort, limits: Limits) -> tuple[Effort, str]:
    """Ask for more memory as far as allowed, else leave more of a node's to each process."""
    current, allowed = effort.options.get("max_memory_kb"), limits.max_memory_kb
    if current is not None and allowed is not None and current < allowed:
        memory = min(2 * int(current), allowed)
        return (
            replace(effort, options={**effort.options, "max_memory_kb": memory}),
            f"out of memory: {memory} kB in place of {current} kB",
        )
    resources = dict(effort.options.get("resources") or {})
    n_ranks = int(resources.get("num_mpiprocs_per_machine") or 1)
    if n_ranks > 1:
        resources["num_mpiprocs_per_machine"] = n_ranks // 2
        resources.pop("tot_num_mpiprocs", None)  # which would contradict it
        return (
            replace(effort, options={**effort.options, "resources": resources}),
            f"out of memory: {n_ranks // 2} processes a node in place of {n_ranks}, since what each of them holds in "
            "full (grids, basis, neighbour lists) then has twice the room",
        )
    return effort, ""
