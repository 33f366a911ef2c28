"""Profiles, codes, and running a campaign in this process in a way that survives the end of the process.

AiiDA saves the state of every process in the database at each step. :func:`drive` takes up whatever of a campaign's
tree is not finished, so that a campaign interrupted by Ctrl-C, a closed laptop or a reboot goes on where it was. No
broker and no daemon is needed; with :func:`submit` the daemon does the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aiida import load_profile, orm
from aiida.common import exceptions
from aiida.manage import get_manager
from aiida.manage.configuration import get_config

from mimyria_wf.campaign import Campaign
from mimyria_wf.errors import CampaignError

CAMPAIGN_KEY = "mimyria_wf_campaign_key"
RUNNER_KEY = "mimyria_wf_runner"
EXECUTABLES: Mapping[str, tuple[str, ...]] = {
    "mimyria-wf": ("mimyria-wf",),
    "cp2k": ("cp2k.psmp", "cp2k.ssmp", "cp2k"),
    "vasp": ("vasp_std",),
}
PLUGINS = {"mimyria-wf": "mimyria_wf.training", "cp2k": "mimyria_wf.cp2k.fields", "vasp": "vasp.vasp"}
PROFILE_NAME = "mimyria_wf"


def require_profile(name: str | None = None) -> None:
    """Load the profile; CampaignError with the remedy if there is none."""
    try:
        load_profile(name)
    except (exceptions.ProfileConfigurationError, exceptions.ConfigurationError) as error:
        raise CampaignError(f"no AiiDA profile to work in ({error}): run `mimyria-wf setup` once") from None


def set_up(profile_name: str = PROFILE_NAME) -> dict[str, Any]:
    """Create a profile that needs no services, unless there is a default profile, and the codes found on this machine.

    Existing profiles, computers and codes are left as they are.
    """
    config = get_config(create=True)
    created = False
    if not config.profile_names:
        _verdi("presto", "--non-interactive", "--profile-name", profile_name, "--use-zeromq")
        created = True
        from aiida.manage.configuration import reset_config

        reset_config()
    require_profile()
    codes = {label: code.full_label for label in EXECUTABLES if (code := local_code(label)) is not None}
    profile = get_manager().get_profile()
    assert profile is not None
    return {"profile": profile.name, "created": created, "codes": codes, "config": str(Path(get_config().dirpath))}


def _verdi(*arguments: str) -> None:
    """Run the `verdi` of this environment, which need not be activated: AiiDA looks for it on the PATH."""
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": os.pathsep.join([str(binaries), os.environ.get("PATH", "")])}
    command = [str(binaries / "verdi"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        detail = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise CampaignError(f"`verdi {' '.join(arguments)}` failed: {detail[-1] if detail else 'without a message'}")


def local_code(label: str) -> orm.AbstractCode | None:
    """Return the code ``label@localhost``, made if its executable is on this machine; None if it is not."""
    try:
        return orm.load_code(f"{label}@localhost")
    except (exceptions.NotExistent, exceptions.MultipleObjectsError):
        pass
    beside = Path(sys.executable).with_name(label)
    found = str(beside) if beside.exists() else next(filter(None, map(shutil.which, EXECUTABLES[label])), None)
    if found is None:
        return None
    computer = _localhost()
    code = orm.InstalledCode(
        label=label,
        computer=computer,
        filepath_executable=found,
        default_calc_job_plugin=PLUGINS[label],
        # several jobs share this machine: one thread each, more by the verbs' own --threads
        prepend_text="export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1",
        with_mpi=False,
    )
    return code.store()


def _localhost() -> orm.Computer:
    try:
        computer = orm.load_computer("localhost")
    except exceptions.NotExistent:
        computer = orm.Computer(
            label="localhost",
            hostname="localhost",
            transport_type="core.local",
            scheduler_type="core.direct",
            workdir=str(Path(get_config().dirpath) / "work"),
        ).store()
        computer.set_default_mpiprocs_per_machine(1)
        computer.configure()
    if computer.get_minimum_job_poll_interval() > 1.0 and computer.scheduler_type == "core.direct":
        computer.set_minimum_job_poll_interval(1.0)  # asking this machine's own process table costs nothing
    return computer


def campaign_codes(campaign: Campaign) -> dict[str, orm.AbstractCode]:
    """Return the codes that a campaign names; those on localhost are made if they are missing.

    Raises:
        CampaignError: names the code, the line of the campaign file and the remedy.
    """
    wanted = {("mimyria",): campaign.computers.mimyria.code}
    for step in campaign.steps_run:
        where = (step,) if getattr(campaign.computers, step) is not None else None
        code = campaign.computer_for(step).code
        by_program = {campaign.computers.mimyria.code: "mimyria", campaign.computers.cp2k.code: "cp2k"}
        wanted[where or (by_program.get(code, "vasp"),)] = code
    codes: dict[str, orm.AbstractCode] = {}
    problems: list[str] = []
    for key_path, name in wanted.items():
        label, _, computer = name.partition("@")
        found: orm.AbstractCode | None = None
        with contextlib.suppress(exceptions.NotExistent, exceptions.MultipleObjectsError):
            found = local_code(label) if computer == "localhost" and label in EXECUTABLES else orm.load_code(name)
        if found is not None:
            codes[name] = found
            continue
        remedy = "see `verdi code list`, create it with `verdi code create core.code.installed`"
        if computer == "localhost":
            remedy = f"install {label} on this machine, or name a code of another computer"
        problems.append(
            str(campaign.problem(("computers", *key_path, "code"), f"{name} is not in this profile", remedy))
        )
    if problems:
        raise CampaignError("\n".join(problems))
    return codes


def earlier_campaigns(key: str) -> list[orm.WorkChainNode]:
    """Return the campaigns of this profile with the same content, newest first."""
    query = orm.QueryBuilder().append(orm.WorkChainNode, filters={f"extras.{CAMPAIGN_KEY}": key}, tag="w")
    query.order_by({"w": {"ctime": "desc"}})
    return query.all(flat=True)


def mark(node: orm.WorkChainNode, name: str, key: str | None, runner: str) -> None:
    """Label a campaign's node, note its content key and who drives it, and put it into the group of its name."""
    node.label = name
    node.base.extras.set_many({CAMPAIGN_KEY: key, RUNNER_KEY: runner})
    group, _ = orm.Group.collection.get_or_create(label=f"mimyria_wf/{name}")
    group.add_nodes(node)


def this_process() -> str:
    """Return what :data:`RUNNER_KEY` holds for a campaign driven by this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_driven(node: orm.WorkChainNode) -> bool:
    """Say whether a daemon, or a process that is alive on this machine, is responsible for a campaign."""
    runner = node.base.extras.get(RUNNER_KEY, "daemon")
    if runner == "daemon":
        return True
    host, _, pid = runner.partition(":")
    if host != socket.gethostname() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def was_left(node: orm.WorkChainNode) -> bool:
    """Say whether the process of this machine that drove a campaign is gone, so that nothing goes on by itself."""
    runner = node.base.extras.get(RUNNER_KEY, "daemon")
    on_this_machine = runner.partition(":")[0] == socket.gethostname()
    return on_this_machine and runner != this_process() and not is_driven(node)


def start(inputs: dict[str, Any], campaign: Campaign, tick: Callable[[orm.WorkChainNode], None]) -> orm.WorkChainNode:
    """Run a new campaign in this process until it ends."""
    return _launch(inputs, campaign.name, campaign.content_key(), tick)


def _launch(
    inputs: dict[str, Any], name: str, key: str | None, tick: Callable[[orm.WorkChainNode], None]
) -> orm.WorkChainNode:
    from aiida.plugins import WorkflowFactory

    runner = _own_runner()
    process = runner.instantiate_process(WorkflowFactory("mimyria_wf.campaign"), **inputs)
    mark(process.node, name, key, this_process())
    _run(runner, {process.node.pk: process}, process.node, tick)
    return process.node


def go_on(node: orm.WorkChainNode, tick: Callable[[orm.WorkChainNode], None]) -> orm.WorkChainNode:
    """Take up an interrupted campaign: every process of its tree goes on from its last saved state."""
    from aiida.engine.persistence import get_object_loader
    from plumpy.exceptions import PersistenceError
    from plumpy.persistence import LoadSaveContext

    runner = _own_runner()
    context = LoadSaveContext(runner=runner, loop=runner.loop, loader=get_object_loader())
    processes = {}
    for member in (node, *node.called_descendants):
        if member.is_terminated or not isinstance(member, orm.WorkChainNode | orm.CalcJobNode):
            continue
        try:
            processes[member.pk] = runner.persister.load_checkpoint(member.pk).unbundle(context)
        except PersistenceError:
            continue  # ended before its state was first saved: its parent submits it again
    if node.pk not in processes:
        raise CampaignError(f"campaign {node.pk} left no state to go on from: `mimyria-wf resume {node.pk}`")
    node.base.extras.set(RUNNER_KEY, this_process())
    _run(runner, processes, node, tick)
    return node


def _own_runner() -> Any:
    """Return a runner that is this process's alone: it needs no broker, and saves states in the database."""
    manager = get_manager()
    manager.set_runner(manager.create_runner(communicator=None, poll_interval=0.5))
    return manager.get_runner()


def _run(runner: Any, processes: dict[int, Any], node: orm.WorkChainNode, tick: Callable[..., None]) -> None:
    """Run processes until that of `node` ends.

    Raises:
        KeyboardInterrupt: on Ctrl-C, but between two steps: all that a step does to the database is then complete.
    """
    loop = runner.loop
    tasks = {pk: loop.create_task(process.step_until_terminated()) for pk, process in processes.items()}
    interrupted = loop.create_future()

    async def watch() -> None:
        while not tasks[node.pk].done():
            tick(node)
            await asyncio.sleep(3.0)

    def stop() -> None:
        if not interrupted.done():
            interrupted.set_result(None)

    watcher = loop.create_task(watch())
    with contextlib.suppress(RuntimeError, ValueError, NotImplementedError):  # not the main thread, or no signals
        loop.add_signal_handler(signal.SIGINT, stop)
    try:
        first = asyncio.wait({tasks[node.pk], interrupted}, return_when=asyncio.FIRST_COMPLETED)
        loop.run_until_complete(first)
        if not tasks[node.pk].done():
            raise KeyboardInterrupt
        tasks[node.pk].result()
        loop.run_until_complete(watcher)
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    tick(node)


def submit(inputs: dict[str, Any], campaign: Campaign) -> orm.WorkChainNode:
    """Hand a new campaign to the daemon, which is started if it is not running.

    Raises:
        CampaignError: the profile has no broker, or the daemon does not start.
    """
    from aiida import engine
    from aiida.plugins import WorkflowFactory

    profile = get_manager().get_profile()
    assert profile is not None
    if profile.process_control_backend is None:
        raise CampaignError(
            f"profile {profile.name} has no message broker, which the daemon needs: "
            "`verdi profile configure-broker core.zeromq`, or use `mimyria-wf run`"
        )
    if not get_manager().get_daemon_client().is_daemon_running:
        _verdi("--profile", profile.name, "daemon", "start", "1")
    node = engine.submit(WorkflowFactory("mimyria_wf.campaign"), **inputs)
    assert isinstance(node, orm.WorkChainNode)
    mark(node, campaign.name, campaign.content_key(), "daemon")
    return node


def reuse(inputs: dict[str, Any], failed: orm.WorkChainNode) -> dict[str, Any]:
    """Return inputs in which what a failed campaign finished stands in for what would be computed again.

    Verdict and trajectories are handed over as data; labels are found by their keys anyway
    (:mod:`mimyria_wf.workchains.labels`).
    """
    # a campaign that was itself a repetition has them among its inputs
    qualification = _finished(failed, "QualificationWorkChain")
    source = qualification.outputs if qualification is not None else failed.inputs
    if "qualification" in inputs and "verdict" in source:
        inputs = {**inputs, "verdict": source.verdict}
    sampling = _finished(failed, "SamplingWorkChain")
    source = sampling.outputs if sampling is not None else failed.inputs
    if "sampling" in inputs and "manifest" in source:
        kept = {key: value for key, value in inputs.items() if key != "sampling"}
        inputs = {**kept, "trajectories": dict(source.trajectories), "manifest": source.manifest}
    return inputs


def _finished(campaign: orm.WorkChainNode, label: str) -> orm.ProcessNode | None:
    """Return the part of a campaign that was done by a workchain, None unless it ended well."""
    return next((child for child in campaign.called if child.process_label == label and child.is_finished_ok), None)


@contextlib.contextmanager
def reusing_finished_jobs(is_wanted: bool) -> Iterator[None]:
    """Take finished jobs of equal inputs from the database (AiiDA's caching) while a campaign is repeated."""
    from aiida.manage.caching import enable_caching

    if not is_wanted:
        yield
        return
    with enable_caching(identifier="aiida.calculations:mimyria_wf.*"):
        yield


def restart(failed: orm.WorkChainNode, tick: Callable[[orm.WorkChainNode], None]) -> orm.WorkChainNode:
    """Run a campaign that failed once more, with its own inputs and with what it finished."""
    inputs = reuse(dict(failed.get_builder_restart()._inputs(prune=True)), failed)
    return _launch(inputs, failed.label, failed.base.extras.get(CAMPAIGN_KEY, None), tick)
