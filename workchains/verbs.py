"""The verbs of ``mimyria-wf`` that need AiiDA: set up, validate, run, submit, look, go on, show, share."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mimyria_wf.campaign import Campaign
from mimyria_wf.campaign_check import check_campaign, load_checked
from mimyria_wf.cli import Verb, stride_text
from mimyria_wf.errors import CampaignError


def _campaign_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="campaign file (YAML)")
    _profile_argument(parser)


def _profile_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-p", "--profile", help="AiiDA profile; the default one if not given")


def _node_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("campaign", help="PK, UUID or name of a campaign")
    _profile_argument(parser)


# ------------------------------------------------------------------------------------------------------------- setup


def _setup(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.workchains.driver import set_up

    return set_up()


# ---------------------------------------------------------------------------------------------------------- validate


def _validate(chosen: argparse.Namespace) -> dict[str, Any]:
    campaign = load_checked(chosen.file)
    report = check_campaign(campaign)
    report.raise_errors()
    lines = [f"warning: {problem}" for problem in report.warnings]
    if not chosen.without_aiida:
        from mimyria_wf.workchains.driver import campaign_codes, require_profile
        from mimyria_wf.workchains.inputs import check_potentials

        require_profile(chosen.profile)
        codes = campaign_codes(campaign)
        check_potentials(campaign)
        lines += [f"code: {name}" for name in sorted(codes)]
    lines += report.estimate.lines()
    lines.append(f"{chosen.file} is valid")
    return {**report.to_dict(), "text": "\n".join(lines)}


def _configure_validate(parser: argparse.ArgumentParser) -> None:
    _campaign_argument(parser)
    parser.add_argument("--without-aiida", action="store_true", help="do not look for a profile and codes")


# ------------------------------------------------------------------------------------------------------------ run


def _configure_run(parser: argparse.ArgumentParser) -> None:
    _campaign_argument(parser)
    parser.add_argument("-o", "--output", type=Path, help="folder for the report at the end")
    parser.add_argument("--again", action="store_true", help="start anew even if this campaign is there already")


def _checked(chosen: argparse.Namespace) -> tuple[Campaign, dict[str, Any]]:
    """Return the campaign of a file that may be submitted, and its codes; say what it warns of."""
    from mimyria_wf.workchains import driver

    campaign = load_checked(chosen.file)
    report = check_campaign(campaign)
    report.raise_errors()
    driver.require_profile(chosen.profile)
    for problem in report.warnings:
        _sayer(chosen)(f"warning: {problem}")
    return campaign, driver.campaign_codes(campaign)


def _run(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.workchains import driver
    from mimyria_wf.workchains.inputs import campaign_inputs

    campaign, codes = _checked(chosen)
    say = _sayer(chosen)
    earlier = [] if chosen.again else driver.earlier_campaigns(campaign.content_key())
    tick = _ticker(chosen)
    with _quiet_aiida(), _caught_interrupt():
        node = next((node for node in earlier if node.is_finished_ok), None)
        alive = next((node for node in earlier if not node.is_terminated), None)
        if node is not None:
            say(f"campaign {node.pk} of this file is finished already; --again computes it anew")
        elif alive is not None and driver.is_driven(alive):
            where = alive.base.extras.get(driver.RUNNER_KEY, "daemon")
            raise CampaignError(
                f"campaign {alive.pk} of this file is running already ({where}): `mimyria-wf status {alive.pk}`"
            )
        elif alive is not None:
            say(f"campaign {alive.pk} of this file was interrupted: going on")
            node = driver.go_on(alive, tick)
        else:
            inputs = campaign_inputs(campaign, codes)
            failed = next((node for node in earlier if node.is_terminated), None)
            if failed is not None:
                say(f"campaign {failed.pk} of this file ended without success: its finished parts are reused")
                inputs = driver.reuse(inputs, failed)
            with driver.reusing_finished_jobs(failed is not None):
                node = driver.start(inputs, campaign, tick)
    return _outcome(node, chosen.output)


def _outcome(node: Any, output: Path | None) -> dict[str, Any]:
    from mimyria_wf.workchains.report import write_report
    from mimyria_wf.workchains.status import campaign_status, status_line

    status = campaign_status(node)
    if not node.is_finished_ok:
        raise CampaignError(
            f"campaign {node.pk} ended without spectra: {node.exit_message or node.process_state.value} "
            f"(`verdi process report {node.pk}`)"
        )
    result: dict[str, Any] = {**status, "text": f"campaign {node.pk}: {status_line(status)}"}
    if status["decision"] is not None:
        result["text"] += f"\n{status['decision']['reason']}"
    if output is not None:
        written = write_report(node, output)
        result["files"] = written["files"]
        result["text"] += f"\nreport: {output}/ with {', '.join(written['files'])}"
    return result


def _configure_submit(parser: argparse.ArgumentParser) -> None:
    _campaign_argument(parser)
    parser.add_argument("--again", action="store_true", help="submit even if this campaign is there already")


def _submit(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.workchains import driver
    from mimyria_wf.workchains.inputs import campaign_inputs

    campaign, codes = _checked(chosen)
    earlier = [] if chosen.again else driver.earlier_campaigns(campaign.content_key())
    there = next((node for node in earlier if node.is_finished_ok or not node.is_terminated), None)
    if there is not None:
        raise CampaignError(
            f"campaign {there.pk} of this file is {there.process_state.value} already: "
            f"`mimyria-wf status {there.pk}`; --again submits it anew"
        )
    inputs = campaign_inputs(campaign, codes)
    if earlier:
        inputs = driver.reuse(inputs, earlier[0])
    node = driver.submit(inputs, campaign)
    text = f"submitted campaign {node.pk}: `mimyria-wf status {node.pk}`"
    return {"pk": node.pk, "uuid": node.uuid, "text": text}


# ----------------------------------------------------------------------------------------------- status, resume, ...


def _status(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.workchains.driver import require_profile
    from mimyria_wf.workchains.status import campaign_status, load_campaign_node, status_line

    require_profile(chosen.profile)
    status = campaign_status(load_campaign_node(chosen.campaign))
    lines = [f"campaign {status['pk']} {status['name']}: {status['state']}", status_line(status)]
    for record in status["iterations"]:
        scores = ", ".join(f"R2({t}) {v:.4f}" for t, v in record["r2"].items() if v is not None)
        distance = record["spectral_distance"]
        change = "first spectra" if distance is None else f"largest spectral distance to the one before {distance:.4f}"
        lines.append(f"  {record['n_training']} snapshots: {scores}; {change}")
    if status["decision"] is not None:
        lines.append(f"  {status['decision']['reason']}")
    if status["stride_check"] is not None:
        lines += [f"  {line}" for line in stride_text(status["stride_check"]).splitlines()]
    lines += [f"  failed: {job['what']}<{job['pk']}>: {job['why']}" for job in status["failed_jobs"]]
    return {**status, "text": "\n".join(lines)}


def _resume(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.workchains import driver
    from mimyria_wf.workchains.status import load_campaign_node

    driver.require_profile(chosen.profile)
    node = load_campaign_node(chosen.campaign)
    if node.is_finished_ok:
        return _outcome(node, chosen.output)
    tick = _ticker(chosen)
    with _quiet_aiida(), _caught_interrupt():
        if not node.is_terminated:
            if driver.is_driven(node):
                where = node.base.extras.get(driver.RUNNER_KEY, "daemon")
                raise CampaignError(f"campaign {node.pk} is running already ({where})")
            return _outcome(driver.go_on(node, tick), chosen.output)
        with driver.reusing_finished_jobs(True):
            return _outcome(driver.restart(node, tick), chosen.output)


def _configure_resume(parser: argparse.ArgumentParser) -> None:
    _node_argument(parser)
    parser.add_argument("-o", "--output", type=Path, help="folder for the report at the end")


def _report(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.workchains.driver import require_profile
    from mimyria_wf.workchains.report import write_report
    from mimyria_wf.workchains.status import load_campaign_node

    require_profile(chosen.profile)
    node = load_campaign_node(chosen.campaign)
    return write_report(node, chosen.output)


def _configure_report(parser: argparse.ArgumentParser) -> None:
    _node_argument(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")


def _export(chosen: argparse.Namespace) -> dict[str, Any]:
    from aiida.tools.archive import create_archive

    from mimyria_wf.workchains.driver import require_profile
    from mimyria_wf.workchains.status import load_campaign_node

    require_profile(chosen.profile)
    node = load_campaign_node(chosen.campaign)
    if chosen.output.exists():
        raise CampaignError(f"{chosen.output} is there already: give another name")
    with _quiet_aiida():
        create_archive([node], filename=chosen.output)
    return {"pk": node.pk, "archive": str(chosen.output), "size_bytes": chosen.output.stat().st_size}


def _configure_export(parser: argparse.ArgumentParser) -> None:
    _node_argument(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="archive FILE.aiida")


# ------------------------------------------------------------------------------------------------------------ progress


def _sayer(chosen: argparse.Namespace) -> Callable[[str], None]:
    def say(text: str) -> None:
        if not chosen.quiet:
            print(text, file=sys.stderr, flush=True)

    return say


def _ticker(chosen: argparse.Namespace) -> Callable[[Any], None]:
    """Return what is called every few seconds: prints what has changed since the last call."""
    from mimyria_wf.workchains.status import campaign_status, process_tree, status_line

    say = _sayer(chosen)
    last: dict[str, Any] = {"line": "", "log": 0, "states": None}

    def tick(node: Any) -> None:
        from aiida import orm

        now = datetime.datetime.now().strftime("%H:%M:%S")
        tree = process_tree(node)
        pks = [member.pk for member in tree]
        query = orm.QueryBuilder().append(
            orm.Log, filters={"dbnode_id": {"in": pks}, "id": {">": last["log"]}}, project=["id", "message"], tag="l"
        )
        query.order_by({"l": {"id": "asc"}})
        for number, message in query.iterall():
            last["log"] = max(last["log"], number)
            # an exception is logged with its traceback: the last line says what, the database keeps the rest
            lines = message.split("]: ", 1)[-1].strip().splitlines() or [""]
            text = lines[0] if len(lines) == 1 else f"{lines[-1]} (`verdi process report {node.pk}` shows where)"
            say(f"{now}  {text}")
        states = sorted((member.pk, str(member.process_state)) for member in tree)
        if states == last["states"]:
            return
        last["states"] = states
        line = status_line(campaign_status(node))
        if line != last["line"]:
            last["line"] = line
            say(f"{now}  {line}")

    return tick


@contextlib.contextmanager
def _quiet_aiida() -> Iterator[None]:
    """Keep AiiDA's own log lines off the screen; they are in the database and shown by :func:`_ticker`."""
    logger = logging.getLogger("aiida")
    handlers = [handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


@contextlib.contextmanager
def _caught_interrupt() -> Iterator[None]:
    """Say how to go on after Ctrl-C; jobs that were submitted keep running."""
    try:
        yield
    except KeyboardInterrupt:
        raise CampaignError("interrupted: run the same command again to go on, submitted jobs keep running") from None


VALIDATE = Verb("validate", "check a campaign file before anything is submitted", _configure_validate, _validate)
RUN = Verb("run", "run a campaign in this process, or go on with it", _configure_run, _run)
SUBMIT = Verb("submit", "run a campaign through the daemon", _configure_submit, _submit)
STATUS = Verb("status", "say how far a campaign is", _node_argument, _status)
RESUME = Verb("resume", "go on with a campaign that was interrupted or failed", _configure_resume, _resume)
REPORT = Verb("report", "write tables, figures and summary of a campaign", _configure_report, _report)
EXPORT = Verb("export", "write a campaign with its whole provenance to an archive", _configure_export, _export)
SETUP = Verb("setup", "make an AiiDA profile if there is none, and codes for this machine", lambda parser: None, _setup)
