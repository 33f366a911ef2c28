"""How far a campaign is: which step, how many labels of how many, current R^2 and spectral distance."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.common.links import LinkType

from mimyria_wf.errors import CampaignError
from mimyria_wf.workchains.driver import was_left


def load_campaign_node(identifier: str) -> orm.WorkChainNode:
    """Return the campaign node with this PK, UUID or label."""
    from aiida.common.exceptions import MultipleObjectsError, NotExistent

    try:
        node = orm.load_node(identifier)
    except (NotExistent, MultipleObjectsError, ValueError):
        named = orm.QueryBuilder().append(
            orm.WorkChainNode,
            filters={"label": identifier, "attributes.process_label": "CampaignWorkChain"},
            tag="w",
        )
        named.order_by({"w": {"ctime": "desc"}})
        found = named.all(flat=True)
        if not found:
            raise CampaignError(
                f"no campaign {identifier} in this profile: `verdi process list -a` shows what there is"
            ) from None
        return found[0]
    if not isinstance(node, orm.WorkChainNode) or node.process_label != "CampaignWorkChain":
        kind = node.process_label if isinstance(node, orm.ProcessNode) else type(node).__name__
        raise CampaignError(f"node {identifier} is no campaign but a {kind}")
    return node


def process_tree(node: orm.WorkChainNode) -> list[orm.ProcessNode]:
    """Return a process and all that it called, with one query a level of the tree."""
    tree: list[orm.ProcessNode] = [node]
    level = [node.pk]
    while level:
        query = orm.QueryBuilder()
        query.append(orm.ProcessNode, filters={"id": {"in": level}}, tag="caller")
        edges = {"type": {"in": [LinkType.CALL_CALC.value, LinkType.CALL_WORK.value]}}
        query.append(orm.ProcessNode, with_incoming="caller", edge_filters=edges)
        called = query.all(flat=True)
        tree += called
        level = [member.pk for member in called]
    return tree


def campaign_status(node: orm.WorkChainNode) -> dict[str, Any]:
    """Return where a campaign stands, JSON-able."""
    tree = process_tree(node)
    jobs = [member for member in tree if isinstance(member, orm.CalcJobNode)]
    active = [job for job in jobs if not job.is_terminated]
    refinement = next((member for member in tree if member.process_label == "RefinementWorkChain"), None)
    return {
        "pk": node.pk,
        "uuid": node.uuid,
        "name": node.label,
        "state": _state(node),
        "exit_status": node.exit_status,
        "exit_message": node.exit_message,
        "step": _step(node, active),
        "jobs": {"finished": sum(job.is_finished_ok for job in jobs), "active": len(active), "all": len(jobs)},
        "failed_jobs": [
            {"pk": job.pk, "what": job.label or job.process_label, "why": job.exit_message}
            for job in jobs
            if job.is_terminated and not job.is_finished_ok
        ],
        "qualification": _qualification(node),
        "labels": _label_counts(tree, refinement),
        "decision": _decision(tree),
        "iterations": _iterations(refinement),
        "stride_check": _stride_check(tree),
    }


def status_line(status: dict[str, Any]) -> str:
    """Return the status in one line."""
    parts = [status["step"]]
    if status["qualification"] is not None:
        parts.append(f"qualification {status['qualification']['line'].partition(';')[0]}")
    labels = status["labels"]
    if labels["wanted"]:
        parts.append(f"labels {labels['finished']}/{labels['wanted']} snapshots")
    if status["iterations"]:
        last = status["iterations"][-1]
        parts += [f"R2({target}) {value:.3f}" for target, value in last["r2"].items() if value is not None]
        if last["spectral_distance"] is not None:
            parts.append(f"spectral distance {last['spectral_distance']:.4f}")
    if status["step"] == "finished" and status["decision"] is not None:
        parts.append("converged" if status["decision"]["is_converged"] else "NOT CONVERGED")
    parts.append(f"{status['jobs']['finished']} jobs done, {status['jobs']['active']} active")
    return " | ".join(parts)


def _state(node: orm.WorkChainNode) -> str:
    if node.process_state is None:
        return "created"
    if not node.is_terminated and was_left(node):
        return "interrupted"
    return "failed" if node.is_failed else str(node.process_state.value)


def _step(node: orm.WorkChainNode, active: list[orm.CalcJobNode]) -> str:
    if node.is_finished_ok:
        return "finished"
    if node.is_terminated:
        return f"ended: {node.exit_message or node.process_state.value}"
    names = {
        "NvtCalculation": "NVT",
        "Cp2kNvtCalculation": "NVT",
        "NveCalculation": "NVE",
        "Cp2kNveCalculation": "NVE",
        "SelectionCalculation": "choosing snapshots",
        "GroupsCalculation": "groups",
        "TbliteFieldSetCalculation": "labels",
        "Cp2kFieldSetCalculation": "labels",
        "EngineFieldSetCalculation": "labels",
        "VaspCalculation": "labels",
        "ReferenceCalculation": "explicit reference",
        "ClusterLabelsCalculation": "labels for the pre-training",
        "TrainingCalculation": "training",
        "StrideCalculation": "choosing the stride",
        "PredictionCalculation": "prediction",
        "SpectraCalculation": "spectra",
        "ComparisonCalculation": "comparison",
    }
    if not node.is_terminated and was_left(node):
        return f"interrupted: `mimyria-wf resume {node.pk}` goes on"
    steps = dict.fromkeys(
        "qualification" if _is_trial(job) else names.get(str(job.process_label), str(job.process_label))
        for job in active
    )
    return " + ".join(steps) or "between steps"


def _is_trial(job: orm.ProcessNode) -> bool:
    """Say whether a job belongs to a qualification."""
    caller = job.caller
    while caller is not None and caller.process_label != "QualificationWorkChain":
        caller = caller.caller
    return caller is not None


def verdict_of(node: orm.WorkChainNode) -> orm.Dict | None:
    """Return the verdict of a campaign's qualification, None without one or before it."""
    if "verdict" in node.outputs:
        return node.outputs.verdict
    return node.inputs.verdict if "verdict" in node.inputs else None


def _qualification(node: orm.WorkChainNode) -> dict[str, Any] | None:
    """Return what the qualification says, None without one or before its verdict."""
    verdict = verdict_of(node)
    if verdict is None:
        return None
    values = verdict.get_dict()
    keys = ("accepted", "line", "step", "eps_scf", "reasons", "objections")
    return {"pk": verdict.pk, **{key: values[key] for key in keys}}


def _decision(tree: list[orm.ProcessNode]) -> dict[str, Any] | None:
    """Return the latest decision of the refinement, None before the first."""
    made = [member for member in tree if member.process_label == "decide" and member.is_finished_ok]
    return max(made, key=lambda member: member.pk or 0).outputs.result.get_dict() if made else None


def _stride_check(tree: list[orm.ProcessNode]) -> dict[str, Any] | None:
    """Return what the check of the stride found, None without or before it."""
    made = [member for member in tree if member.process_label == "StrideCalculation" and member.is_finished_ok]
    return max(made, key=lambda member: member.pk or 0).outputs.summary.get_dict() if made else None


def _label_counts(tree: list[orm.ProcessNode], refinement: orm.ProcessNode | None) -> dict[str, int]:
    """Count snapshots wanted by the label workchains so far and those labelled or in finished jobs."""
    wanted = finished = 0
    for chain in tree:
        if chain.process_label != "LabelsWorkChain":
            continue
        n_wanted = len(chain.inputs.indices.get_list())
        wanted += n_wanted
        if "report" in chain.outputs:
            finished += chain.outputs.report["n_labelled"]
            continue
        jobs = [child for child in chain.called if isinstance(child, orm.CalcJobNode | orm.WorkChainNode)]
        done = sum(
            len(job.outputs.field_forces.base.attributes.get("configuration_keys"))
            for job in jobs
            if "field_forces" in job.outputs
        )
        finished += min(done, n_wanted)
    return {"wanted": wanted, "finished": finished}


def _iterations(refinement: orm.ProcessNode | None) -> list[dict[str, Any]]:
    if refinement is None:
        return []
    records: dict[str, dict[str, Any]] = {}
    for child in refinement.called:
        if child.process_label == "record_iteration" and child.is_finished_ok:
            record = child.outputs.result.get_dict()
            distances = [entry.get("distance") for entry in record.get("comparison", {}).get("spectra", {}).values()]
            known = [value for value in distances if value is not None]
            r2 = {t: metrics.get("test", metrics).get("r2") for t, metrics in record["metrics"].items()}
            records[f"{record['n_training']:08d}"] = {
                "n_training": record["n_training"],
                "r2": r2,
                "spectral_distance": max(known) if known else None,
            }
    return [records[key] for key in sorted(records)]
