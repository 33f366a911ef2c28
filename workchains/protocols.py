"""Campaigns from a structure and the name of a protocol, for those who write Python rather than YAML."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import ase.io
from aiida import orm
from ruamel.yaml import YAML

from mimyria_wf.calculators.data import atoms_from_structure
from mimyria_wf.campaign import Campaign
from mimyria_wf.campaign_check import check_campaign
from mimyria_wf.errors import CampaignError


def protocols() -> dict[str, Any]:
    """Return the content of templates/protocols.yaml."""
    return YAML(typ="safe").load(files("mimyria_wf.templates").joinpath("protocols.yaml").read_text())


def protocol_inputs(
    structure: orm.StructureData,
    protocol: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    name: str = "campaign",
) -> dict[str, Any]:
    """Return the inputs of a campaign.

    Args:
        structure: start; a cluster if it is not periodic.
        protocol: fast, balanced or precise.
        overrides: nested keys of the campaign file (docs/campaign.md) that replace the protocol's; an unknown key is
            an error. A section given as None is left out.
        name: of the campaign.

    Raises:
        CampaignError: unknown protocol, unknown key, or anything that `mimyria-wf validate` refuses.
    """
    from mimyria_wf.workchains.driver import campaign_codes
    from mimyria_wf.workchains.inputs import campaign_inputs

    known = protocols()
    chosen = protocol or known["default"]
    if chosen not in known["protocols"]:
        raise CampaignError(f"protocol {chosen} is unknown: choose one of {', '.join(known['protocols'])}")
    data = merged(merged(known["common"], known["protocols"][chosen]), overrides or {})
    data = {"name": name, **{key: value for key, value in data.items() if value is not None}}
    system = dict(data.get("system") or {})
    with tempfile.TemporaryDirectory() as directory:
        atoms = atoms_from_structure(structure, system.get("charge", 0), system.get("multiplicity", 1))
        ase.io.write(Path(directory) / "structure.extxyz", atoms, format="extxyz")
        data["system"] = {**system, "structure": "structure.extxyz"}
        campaign = Campaign.from_dict(data, directory=directory)
        check_campaign(campaign).raise_errors()
        return campaign_inputs(campaign, campaign_codes(campaign))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `changes`, section by section."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result
