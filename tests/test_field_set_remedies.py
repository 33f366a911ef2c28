"""What is changed before failed field points are tried again."""

from dataclasses import replace

import pytest

from mimyria_wf.cp2k_output import CAUSES
from mimyria_wf.field_set_remedies import CHANCE, Effort, Failure, Limits, remedy

EFFORT = Effort(4, options={"max_wallclock_seconds": 3600, "resources": {"num_machines": 1, "tot_num_mpiprocs": 16}})
X = (1e-3, 0.0, 0.0)
WIDE = Limits(max_wallclock_seconds=10000, max_memory_kb=10**7, n_scf_steps=2)


def test_an_scf_is_mended_where_it_failed_and_as_often_as_there_are_settings() -> None:
    failures = [Failure(3, X, "scf"), Failure(5, X, "walltime")]
    effort, reasons, again = remedy(replace(EFFORT, scf={5: 1}), failures[:1], 0, WIDE, 1)
    assert effort.scf == {3: 1, 5: 1}
    assert "for all points of the snapshot" in reasons[0]
    assert again == (failures[0],)
    # one snapshot is at the end of its ladder, another is not
    both = [Failure(3, X, "scf"), Failure(7, X, "scf")]
    effort, _, again = remedy(replace(EFFORT, scf={3: 2}), both, 0, WIDE, 2)
    assert again == (both[1],)
    assert effort.scf[7] == 1
    assert remedy(EFFORT, both, 0, Limits(), 1) == (EFFORT, (), ())  # an engine without a ladder


def test_a_job_that_got_somewhere_gets_less_to_do() -> None:
    failures = [Failure(0, X, "walltime")]
    effort, reasons, again = remedy(EFFORT, failures, 5, WIDE, 1)
    assert (effort.snapshots_per_job, effort.points_per_job) == (1, 5)
    assert effort.options == EFFORT.options
    assert again == tuple(failures)
    assert "5 field points" in reasons[0]
    assert remedy(effort, failures, 5, WIDE, 2)[0].points_per_job == 4  # ever fewer


def test_time_is_raised_only_as_far_as_allowed() -> None:
    failures = [Failure(0, X, "walltime")]
    effort, _, _ = remedy(EFFORT, failures, 0, WIDE, 1)
    assert effort.options["max_wallclock_seconds"] == 7200
    effort, _, _ = remedy(effort, failures, 0, WIDE, 2)
    assert effort.options["max_wallclock_seconds"] == 10000
    assert remedy(effort, failures, 0, WIDE, 3) == (effort, (), ())
    assert remedy(EFFORT, failures, 0, Limits(), 1) == (EFFORT, (), ())
    effort, reasons, _ = remedy(EFFORT, failures, 0, WIDE, 1, template_walltime=60.0)
    assert effort.walltime == 10000
    assert "GLOBAL/WALLTIME 10000 s in place of 60 s" in reasons[0]


def test_memory_is_raised_or_shared_by_fewer() -> None:
    failures = [Failure(0, X, "memory")]
    asked = replace(EFFORT, options={"max_memory_kb": 8 * 10**6})
    effort, _, _ = remedy(asked, failures, 0, WIDE, 1)
    assert effort.options["max_memory_kb"] == 10**7
    assert remedy(effort, failures, 0, WIDE, 2)[2] == ()  # one process: nothing more to share
    options = {"resources": {"num_machines": 2, "num_mpiprocs_per_machine": 16, "tot_num_mpiprocs": 32}}
    effort, reasons, _ = remedy(replace(EFFORT, options=options), failures, 0, Limits(), 1)
    assert effort.options["resources"] == {"num_machines": 2, "num_mpiprocs_per_machine": 8}
    assert "8 processes a node in place of 16" in reasons[0]


@pytest.mark.parametrize("cause", CHANCE)
def test_chance_is_given_one_more_chance(cause: str) -> None:
    failures = [Failure(0, X, cause)]
    effort, reasons, again = remedy(EFFORT, failures, 0, WIDE, 1)
    assert effort == EFFORT
    assert again == tuple(failures)
    assert cause in reasons[0]
    assert remedy(EFFORT, failures, 0, WIDE, 2) == (EFFORT, (), ())


def test_every_cause_is_known() -> None:
    assert {*CHANCE, "scf", "walltime", "memory"} == {*CAUSES, "lost"}
