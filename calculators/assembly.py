"""Calcfunctions: select, merge, assemble, decide. None takes longer than a few seconds."""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from aiida import orm
from aiida.engine import calcfunction

from mimyria_wf.calculators.data import (
    FIELD_FORCES_KIND,
    RESPONSE_TENSORS_KIND,
    of_one_version,
    points_of,
    read_snapshots,
    tensors_in,
    version_of,
)
from mimyria_wf.field_forces import FieldForces
from mimyria_wf.response import ResponseTensors


@calcfunction
def build_manifest(**summaries: orm.Dict) -> orm.Dict:
    """Return the manifest of trajectories (:mod:`mimyria_wf.calculators.trajectories`) from the NVE jobs' summaries."""
    files = [
        {
            **{key: run.get(key) for key in ("name", "n_frames", "sha256", "temperature")},
            "folder": folder,
            "file": run.get("file", f"{run['name']}.h5"),
        }
        for folder, summary in summaries.items()
        for run in summary.get_dict()["trajectories"]
    ]
    return orm.Dict({"files": sorted(files, key=lambda entry: entry["name"])})


@calcfunction
def list_series(**names: orm.List) -> orm.Dict:
    """Return which derivative series lies in the folder of which prediction job."""
    series = [{"folder": folder, "name": name} for folder, node in names.items() for name in node.get_list()]
    return orm.Dict({"files": sorted(series, key=lambda one: one["name"])})


@calcfunction
def with_stride(settings: orm.Dict, check: orm.Dict) -> orm.Dict:
    """Return the flags of a prediction with the stride that a check has chosen."""
    kept = {key: value for key, value in settings.get_dict().items() if key != "stride_tolerance"}
    return orm.Dict({**kept, "stride": check["chosen"]})


@calcfunction
def take_snapshots(snapshots: orm.SinglefileData, indices: orm.List) -> orm.SinglefileData:
    """Return some snapshots of a file as a file of their own, the input of one label job."""
    every = read_snapshots(snapshots)
    return _extxyz([every[index] for index in indices.get_list()], "snapshots.extxyz")


@calcfunction
def assemble_labels(
    snapshots: orm.SinglefileData, indices: orm.List, settings: orm.Dict, **field_forces: orm.ArrayData
) -> dict[str, Any]:
    """Reduce forces in fields to APTs and PGTs (Eqs. 21-26).

    Args:
        snapshots: extxyz of the pool.
        indices: which snapshots are wanted.
        settings: targets; header: entries for the file's header (field_step, engine, ...); failures: field points that
            could not be computed, with their causes, and remedies: what was tried, both for the report.
        field_forces: nodes with the forces of finished points, or with tensors that an engine gave itself.

    Returns:
        ``labels`` (labelled extxyz of the snapshots that are complete) and ``report`` (snapshots left out, sum-rule
        residuals).
    """
    from mimyria_wf.errors import FieldSetError
    from mimyria_wf.finite_field import field_vectors, response_tensors
    from mimyria_wf.labels import LabelledSnapshot, configuration_key, matching_rows, total_charge, write_labels

    values = settings.get_dict()
    targets, step = values["targets"], values["header"].get("field_step")
    wanted = np.empty((0, 3)) if step is None else np.array(list(field_vectors(step, targets).values()))
    by_key: dict[str, list[orm.ArrayData]] = {}
    made_directly: dict[str, dict[str, ResponseTensors]] = {}
    for node in field_forces.values():
        kind = node.base.attributes.get("kind", None)
        for key in node.base.attributes.get("configuration_keys", []):
            if kind == FIELD_FORCES_KIND:
                by_key.setdefault(key, []).append(node)
            elif kind == RESPONSE_TENSORS_KIND:
                found = tensors_in(node, key)
                if set(targets) <= set(found.tensors()):
                    made_directly.setdefault(key, {})[version_of(node)] = found
    # snapshots that several versions have computed: the version that has most of all
    n_made = Counter(version for by_version in made_directly.values() for version in by_version)
    every = read_snapshots(snapshots)
    labelled, incomplete, residuals = [], [], []
    versions: dict[str, int] = {}
    for index in indices.get_list():
        atoms = every[index]
        key = configuration_key(atoms)
        if key in made_directly:
            version = max(made_directly[key], key=lambda one: (n_made[one], one))
            tensors = made_directly[key][version]
        else:
            nodes = of_one_version(by_key.get(key, []), key, wanted, step)
            vectors, forces = points_of(nodes, key)
            # another campaign may have left points of another step: labels must not depend on what is in the database
            rows = [row for row in matching_rows(vectors, wanted, step) if row is not None]
            try:
                tensors = response_tensors(vectors[rows], forces[rows], targets)
            except FieldSetError as error:
                incomplete.append({"index": index, "reason": str(error)})
                continue
            version = version_of(nodes[0]) or "not recorded"
            for name, error in FieldForces(vectors[rows], forces[rows]).errors().items():
                atoms.info[f"{name}_error"] = error
        labelled.append(
            LabelledSnapshot(
                atoms,
                tensors.apt if "apt" in targets else None,
                tensors.pgt if "pgt" in targets else None,
            )
        )
        residuals.append(tensors.sum_rule_residual(total_charge(atoms)).largest())
        versions[version] = versions.get(version, 0) + 1
    report: dict[str, Any] = {
        "n_labelled": len(labelled),
        "incomplete": incomplete,
        "versions": versions,
        "failures": values.get("failures", []),
        "remedies": values.get("remedies", []),
        "sum_rule_residual_apt_e": _largest(residuals, "apt"),
        "sum_rule_residual_pgt_e2a0_per_Eh": _largest(residuals, "pgt"),
    }
    outputs: dict[str, Any] = {"report": orm.Dict(report)}
    if labelled:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "labels.extxyz"
            write_labels(path, labelled, values["header"])
            outputs["labels"] = orm.SinglefileData(path)
    return outputs


@calcfunction
def split_labels(labels: orm.SinglefileData, settings: orm.Dict) -> dict[str, orm.SinglefileData]:
    """Split labels made elsewhere into training and test set by trajectory (:mod:`mimyria_wf.selection`)."""
    from mimyria_wf.selection import split_by_trajectory

    every = read_snapshots(labels)
    values = settings.get_dict()
    training, test = split_by_trajectory(
        [str(atoms.info.get("snapshot", "")) for atoms in every],
        values["n_training"],
        values["n_test"],
        values["seed"],
    )
    return {
        "training": _extxyz([every[index] for index in training], "training.extxyz"),
        "test": _extxyz([every[index] for index in test], "test.extxyz"),
    }


@calcfunction
def record_iteration(n_training: orm.Int, **parts: orm.Dict) -> orm.Dict:
    """Return one iteration's record: number of snapshots, test metrics by target, distance to the one before."""
    record: dict[str, Any] = {"n_training": n_training.value, "metrics": {}}
    for key, node in parts.items():
        if key.startswith("metrics_"):
            record["metrics"][key.removeprefix("metrics_")] = node.get_dict()
        else:
            record[key] = node.get_dict()
    return orm.Dict(record)


@calcfunction
def decide(settings: orm.Dict, **iterations: orm.Dict) -> orm.Dict:
    """Decide whether the refinement has converged (:mod:`mimyria_wf.convergence`, Sec. 3.2 of the paper)."""
    from mimyria_wf.convergence import decision_from_dicts

    records = [node.get_dict() for _, node in sorted(iterations.items())]
    return orm.Dict(decision_from_dicts(settings.get_dict(), records))


def _largest(residuals: list[dict[str, float]], target: str) -> float | None:
    return max((float(one[target]) for one in residuals if target in one), default=None)


def _extxyz(snapshots: list[Any], name: str) -> orm.SinglefileData:
    buffer = io.StringIO()
    ase.io.write(buffer, snapshots, format="extxyz")
    return orm.SinglefileData(io.BytesIO(buffer.getvalue().encode()), filename=name)
