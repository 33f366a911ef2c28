"""Forces in fields that were computed outside AiiDA become nodes, so that campaigns find and reuse them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mimyria_wf.calculators.data import known_field_forces, points_of, version_of
from mimyria_wf.calculators.engine import field_forces_of
from mimyria_wf.cli import Verb
from mimyria_wf.errors import CampaignError, LabelError
from mimyria_wf.field_forces import StoredFieldForces, read_field_forces
from mimyria_wf.labels import configuration_key, level_of_theory_key, matching_rows


def store_field_forces(path: str | Path, level: Mapping[str, Any]) -> dict[str, Any]:
    """Store the points of a field-forces file as nodes of a level of theory; those that the profile has are left out.

    Points of another version of the program do not count as known: sets of two versions are never combined.

    Args:
        path: HDF5 file of ``mimyria-wf label --field-forces`` or ``mimyria-wf import forces``, of one level of theory.
        level: the level of theory as the label jobs of the campaign key it.

    Returns:
        JSON-able: numbers of snapshots and points, nodes made, the level that the file states.

    Raises:
        LabelError: the file holds several levels of theory.
    """
    sets = read_field_forces(path)
    levels = {level_of_theory_key(one.level_of_theory): one.level_of_theory for one in sets}
    if len(levels) != 1:
        raise LabelError(f"{path} holds {len(levels)} levels of theory; give a file of one")
    key = level_of_theory_key(level)
    known = known_field_forces(key, [configuration_key(one.atoms) for one in sets])
    by_version: dict[str, list[StoredFieldForces]] = {}
    n_new = 0
    for one in sets:
        configuration = configuration_key(one.atoms)
        alike = [node for node in known.get(configuration, []) if version_of(node) == one.engine_version]
        vectors = points_of(alike, configuration)[0]
        lengths = np.linalg.norm(one.field_forces.field_vectors, axis=1)
        step = float(lengths[lengths > 0].min(initial=1.0))
        rows = matching_rows(vectors, one.field_forces.field_vectors, step)
        new = [row for row, found in enumerate(rows) if found is None]
        if new:
            n_new += len(new)
            part = StoredFieldForces(
                one.atoms, one.field_forces.rows(new), one.level_of_theory, one.engine, one.engine_version
            )
            by_version.setdefault(one.engine_version, []).append(part)
    nodes = []
    for version, parts in sorted(by_version.items()):
        node = field_forces_of(
            [part.field_forces for part in parts],
            [configuration_key(part.atoms) for part in parts],
            {**level, "version": version},
            key,
        )
        node.label, node.description = "imported field forces", f"from {Path(path).name}"
        nodes.append(node.store())
    return {
        "n_snapshots": len(sets),
        "n_points": sum(len(one.field_forces.field_vectors) for one in sets),
        "n_points_new": n_new,
        "nodes": [node.uuid for node in nodes],
        "level_of_the_file": dict(next(iter(levels.values()))),
        "level": dict(level),
    }


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="field forces (HDF5) of `label` or `import forces`")
    parser.add_argument("campaign", type=Path, help="campaign file whose label jobs would compute the same forces")
    parser.add_argument("-p", "--profile", help="AiiDA profile; the default one if not given")


def _reuse(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.campaign_check import load_checked
    from mimyria_wf.workchains.driver import campaign_codes, require_profile
    from mimyria_wf.workchains.inputs import campaign_inputs

    campaign = load_checked(chosen.campaign)
    if campaign.labels is None or campaign.labels.given is not None:
        raise CampaignError(f"{chosen.campaign} computes no labels: forces in fields are of no use to it")
    require_profile(chosen.profile)
    settings = campaign_inputs(campaign, campaign_codes(campaign))["labels"]["settings"].get_dict()
    result = store_field_forces(chosen.file, settings["level_of_theory"])
    one_line = json.dumps(result["level_of_the_file"], sort_keys=True)
    text = (
        f"{result['n_points_new']} of {result['n_points']} field points of {result['n_snapshots']} snapshots are new "
        f"and count from now on as computed at the level of {chosen.campaign}\nthe file says of them: {one_line}"
    )
    return {**result, "text": text}


REUSE = Verb("reuse", "let campaigns use forces in fields that were computed outside of AiiDA", _configure, _reuse)
