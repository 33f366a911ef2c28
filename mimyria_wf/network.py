"""Response networks by kind: build, save and load them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols

from mimyria_wf import __version__
from mimyria_wf.committee import Posterior
from mimyria_wf.density_network import DensityNetwork
from mimyria_wf.errors import ModelError
from mimyria_wf.message_passing import MessagePassingNetwork
from mimyria_wf.presets import (
    UNITS,
    DensitySettings,
    MessagePassingSettings,
    NetworkSettings,
    SimpleSettings,
    as_plain,
    network_settings,
)
from mimyria_wf.response_network import ResponseNetwork, construction
from mimyria_wf.simple_network import SimpleNetwork

FORMAT = "mimyria_wf response network 1"
_NETWORKS: dict[str, Any] = {
    MessagePassingSettings.kind: MessagePassingNetwork,
    SimpleSettings.kind: SimpleNetwork,
    DensitySettings.kind: DensityNetwork,
}


def build_network(
    settings: NetworkSettings,
    species: Sequence[int],
    target: str,
    n_neighbours: float = 10.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, Any] | None = None,
) -> ResponseNetwork:
    """Return a network with weights drawn from the seed.

    Args:
        settings: architecture.
        species: atomic numbers.
        target: ``apt`` or ``pgt``.
        n_neighbours: mean number of neighbours of an atom in the training data.
        seed: of the weights.
        dtype: precision; the weights of both precisions agree.
        metadata: JSON-able facts to keep with the model.

    Raises:
        ModelError: no species, or unknown target.
    """
    if not len(species):
        raise ModelError("a network needs at least one species")
    with construction(seed):
        network: ResponseNetwork = _NETWORKS[settings.kind](target, settings, species, n_neighbours, metadata)
    return network.to(dtype)


def save_model(network: ResponseNetwork, path: str | os.PathLike[str]) -> None:
    """Write a network to one file, which ``torch.load(weights_only=True)`` reads; replaced in one step."""
    destination = Path(path)
    content = {
        "format": FORMAT,
        "mimyria_wf": __version__,
        "target": network.target,
        "unit": UNITS[network.target],
        "axes": "displacement, field" + (", field" if network.target == "pgt" else ""),
        "species": [chemical_symbols[z] for z in network.species],
        "n_neighbours": network.n_neighbours,
        "dtype": str(network.dtype).removeprefix("torch."),
        "settings": as_plain(network.settings),
        "metadata": network.metadata,
        "state": network.state_dict(),
    }
    if network.posterior is not None:
        content["posterior"] = network.posterior.to_plain()
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(destination.name + ".partial")
    torch.save(content, partial)
    partial.replace(destination)


def load_model(path: str | os.PathLike[str], target: str | None = None) -> ResponseNetwork:
    """Read a network written by :func:`save_model`.

    Args:
        path: the file, or a folder with ``model.pt`` as ``mimyria-wf train`` leaves it.
        target: refuse a model of another target.

    Raises:
        ModelError: the file is absent, not a model, of a newer format, or of another target.
    """
    if Path(path).is_dir():
        path = Path(path) / "model.pt"
    if not Path(path).is_file():
        raise ModelError(f"no model file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many kinds for a file that is no model
        raise ModelError(
            f"{path} is not a model file of mimyria_wf ({type(error).__name__} on reading it): "
            "give a model.pt that `mimyria-wf train` wrote"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelError(f"{path} is not a model file of this version of mimyria_wf (expected '{FORMAT}')")
    if target is not None and content["target"] != target:
        raise ModelError(f"{path} is a model for {content['target']}, but one for {target} was asked for")
    network = build_network(
        network_settings(content["settings"]),
        [chemical_symbols.index(s) for s in content["species"]],
        content["target"],
        n_neighbours=content["n_neighbours"],
        dtype=getattr(torch, content["dtype"]),
        metadata=content["metadata"],
    )
    network.load_state_dict(content["state"])
    if "posterior" in content:
        network.posterior = Posterior.from_plain(content["posterior"])
    return network.eval()
