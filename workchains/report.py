"""Collect what a campaign found into a folder: tables, figures, summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aiida import orm

from mimyria_wf.errors import CampaignError
from mimyria_wf.workchains.status import campaign_status, verdict_of

SUFFIXES = (".csv", ".png", ".pdf", ".json", ".nc", ".jdx")
"""What a report copies of the folders of jobs."""


def write_report(node: orm.WorkChainNode, directory: Path) -> dict[str, Any]:
    """Write ``ir.csv``, ``raman.csv``, lineshapes, figures and ``summary.json`` of a finished campaign.

    A campaign whose labels did not qualify has the qualification alone.

    Returns:
        the summary, with the folder.

    Raises:
        CampaignError: the campaign has neither spectra nor a qualification (yet).
    """
    status = campaign_status(node)
    verdict = verdict_of(node)
    if "spectra" not in node.outputs and verdict is None:
        raise CampaignError(f"campaign {node.pk} has no spectra to report: {status['step']}")
    directory.mkdir(parents=True, exist_ok=True)
    files: list[str] = []
    summary: dict[str, Any] = {"campaign": {key: status[key] for key in ("name", "pk", "uuid", "state", "exit_status")}}
    if verdict is not None:
        summary["qualification"] = verdict.get_dict()
        figures = directory / "qualification"
        files += [f"{figures.name}/{name}" for name in _copy(verdict.creator.outputs.figures, "", figures)]
    if "spectra" not in node.outputs:
        (directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        return {"directory": str(directory), "files": sorted([*files, "summary.json"]), "pk": node.pk}
    files += _copy(node.outputs.spectra, "spectra", directory, skip=("summary.json",))
    summary["spectra"] = node.outputs.summary.get_dict()
    summary["trajectories"] = _trajectories(node)
    if "decision" in node.outputs:
        summary["decision"] = node.outputs.decision.get_dict()
        records = [node.outputs.iterations[key].get_dict() for key in sorted(node.outputs.iterations)]
        summary["iterations"] = records
        from mimyria_wf.plots import learning_curve_from_dicts

        settings = node.inputs.convergence.get_dict()
        learning_curve_from_dicts(directory / "learning_curve.png", settings, records)
        files.append("learning_curve.png")
    summary["prediction"] = _prediction(node)
    if "stride_check" in node.outputs:
        summary["stride_check"] = node.outputs.stride_check.get_dict()
    if "selections" in node.outputs:
        summary["selections"] = {key: chosen.get_dict() for key, chosen in sorted(node.outputs.selections.items())}
    if "comparison" in node.outputs:
        summary["explicit_against_predicted"] = node.outputs.comparison.get_dict()
        folder = directory / "explicit_against_predicted"
        files += [f"{folder.name}/{name}" for name in _copy(node.outputs.comparison_files, "", folder)]
    if "groups" in node.outputs:
        (directory / "groups.yaml").write_bytes(node.outputs.groups.get_content("rb"))
        files += ["groups.yaml", *_copy(node.outputs.groups_files, "", directory)]
    if "labels" in node.outputs:
        for key, labels in node.outputs.labels.items():
            name = f"labels/{key.removeprefix('labels_')}.extxyz"
            (directory / "labels").mkdir(exist_ok=True)
            (directory / name).write_bytes(labels.get_content("rb"))
            files.append(name)
    if "models" in node.outputs:
        for target, model in node.outputs.models.items():
            name = f"{target}_model.pt"
            (directory / name).write_bytes(model.get_content("rb"))
            files.append(name)
    (directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return {"directory": str(directory), "files": sorted([*files, "summary.json"]), "pk": node.pk}


def _prediction(node: orm.WorkChainNode) -> list[dict[str, Any]]:
    """Return of each run of the final prediction its stride, sum-rule residual and, with members, uncertainty."""
    chains = [child for child in node.called if child.process_label == "PredictionWorkChain" and child.is_finished_ok]
    jobs = [job for chain in chains for job in chain.called if job.process_label == "PredictionCalculation"]
    files = [one for job in jobs if job.is_finished_ok for one in job.outputs.summary.get_dict()["files"]]
    keys = ("name", "stride", "sum_rule_rms", "uncertainty")
    return [{key: one[key] for key in keys if key in one} for one in sorted(files, key=lambda one: one["name"])]


def _trajectories(node: orm.WorkChainNode) -> list[dict[str, Any]]:
    """Return the runs with the place of their files, which stay on the computer that made them."""
    sampling = next((child for child in node.called if child.process_label == "SamplingWorkChain"), None)
    folders = sampling.outputs.trajectories if sampling is not None else node.inputs.trajectories
    return [
        {
            **entry,
            "computer": folders[entry["folder"]].computer.label,
            "path": f"{folders[entry['folder']].get_remote_path()}/{entry['file']}",
        }
        for entry in node.outputs.manifest.get_dict()["files"]
    ]


def _copy(folder: orm.FolderData, path: str, directory: Path, skip: tuple[str, ...] = ()) -> list[str]:
    """Copy tables and figures below `path` of a retrieved folder, with their subfolders."""
    copied = []
    for root, _, names in folder.walk(path or None):
        for name in names:
            relative = Path(root).relative_to(path) if path else Path(root)
            if name in skip or Path(name).suffix not in SUFFIXES or name.startswith("result-"):
                continue
            target = directory / relative / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(folder.get_object_content(str(Path(root) / name), mode="rb"))
            copied.append(str(relative / name))
    return copied
