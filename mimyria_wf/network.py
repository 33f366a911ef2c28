"""Equivariant message-passing networks for APTs and PGTs, after Section 2.5 of Schienbein (2026).

The layers are e3nn's ``MessagePassing`` (v2106). Its output is standardised for each species: the l = 0 block by mean
and deviation, each l > 0 block by one scale, since a shift of l > 0 components would break equivariance.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import e3nn
import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from ase.data import chemical_symbols
from e3nn import o3
from e3nn.math import soft_one_hot_linspace

from mimyria_wf import __version__
from mimyria_wf.errors import ModelError
from mimyria_wf.irreps import blocks, from_irreps, target_irreps
from mimyria_wf.neighbours import neighbour_list
from mimyria_wf.presets import PRESETS, UNITS, NetworkSettings, as_plain, resolve
from mimyria_wf.tensor_product import ChannelwiseTensorProduct

__all__ = [
    "PRESETS",
    "Graph",
    "NetworkSettings",
    "ResponseNetwork",
    "build_network",
    "graph_of",
    "join",
    "load_model",
    "resolve",
    "save_model",
]

Array = npt.NDArray[Any]
FORMAT = "mimyria_wf response network 1"


@dataclass(frozen=True)
class Graph:
    """Atoms of one or several snapshots with the vectors to their neighbours.

    Attributes:
        species: (n_nodes,) index into the model's species.
        senders: (n_edges,) node of the neighbour.
        receivers: (n_edges,) node of the centre.
        vectors: (n_edges, 3) from centre to neighbour [A].
        snapshot: (n_nodes,) snapshot to which a node belongs.
        n_snapshots: number of snapshots.
    """

    species: torch.Tensor
    senders: torch.Tensor
    receivers: torch.Tensor
    vectors: torch.Tensor
    snapshot: torch.Tensor
    n_snapshots: int

    def sum_by_snapshot(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of (n_nodes, ...) values over the nodes of each snapshot, (n_snapshots, ...)."""
        return values.new_zeros(self.n_snapshots, *values.shape[1:]).index_add_(0, self.snapshot, values)


def graph_of(
    numbers: Array,
    positions: Array,
    cell: Array,
    pbc: Array,
    species: Sequence[int],
    cutoff: float,
    dtype: torch.dtype = torch.float32,
) -> Graph:
    """Return the graph of one snapshot.

    Args:
        numbers: (n_atoms,) atomic numbers.
        positions: (n_atoms, 3) [A].
        cell: (3, 3) [A].
        pbc: (3,) periodic directions.
        species: atomic numbers that the model knows.
        cutoff: radius of the neighbour list [A].
        dtype: of the vectors; differences are taken in double precision.

    Raises:
        ModelError: an atom's species is not in the model, or the neighbour list cannot be built.
    """
    pairs = neighbour_list(positions, cell, pbc, cutoff)
    return Graph(
        species=torch.from_numpy(species_index(numbers, species)),
        senders=torch.from_numpy(pairs.senders),
        receivers=torch.from_numpy(pairs.receivers),
        vectors=torch.from_numpy(pairs.vectors(np.asarray(positions, dtype=float))).to(dtype),
        snapshot=torch.zeros(len(numbers), dtype=torch.int64),
        n_snapshots=1,
    )


def species_index(numbers: Array, species: Sequence[int]) -> Array:
    """Return the index of each atom's species, (n_atoms,).

    Raises:
        ModelError: names the species that the model lacks.
    """
    numbers = np.asarray(numbers)
    if missing := sorted({int(n) for n in np.unique(numbers)} - set(species)):
        lacking, known = (", ".join(chemical_symbols[n] for n in s) for s in (missing, species))
        raise ModelError(
            f"the model knows the species {known}, but the structure has {lacking}; train with labels of it"
        )
    lookup = np.full(max(species) + 1, -1, dtype=np.int64)
    lookup[list(species)] = np.arange(len(species))
    return lookup[numbers]


def join(graphs: Sequence[Graph]) -> Graph:
    """Return one graph of many, without edges between them."""
    sizes = [len(g.species) for g in graphs]
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist()
    starts = np.concatenate([[0], np.cumsum([g.n_snapshots for g in graphs])[:-1]]).tolist()
    return Graph(
        species=torch.cat([g.species for g in graphs]),
        senders=torch.cat([g.senders + o for g, o in zip(graphs, offsets)]),
        receivers=torch.cat([g.receivers + o for g, o in zip(graphs, offsets)]),
        vectors=torch.cat([g.vectors for g in graphs]),
        snapshot=torch.cat([g.snapshot + s for g, s in zip(graphs, starts)]),
        n_snapshots=sum(g.n_snapshots for g in graphs),
    )


@contextmanager
def _construction(seed: int) -> Iterator[None]:
    """Build e3nn modules in double precision, without TorchScript, from a seed, leaving no trace in global state.

    e3nn's coupling constants take the default dtype of the moment; torch.jit.script is deprecated and not faster here.
    """
    dtype, options = torch.get_default_dtype(), e3nn.get_optimization_defaults()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float64)
        e3nn.set_optimization_defaults(**({"jit_mode": "eager"} if "jit_mode" in options else {"jit_script_fx": False}))
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            e3nn.set_optimization_defaults(**options)


class ResponseNetwork(torch.nn.Module):
    """A network that predicts the APT or PGT of each atom.

    Attributes:
        target: ``apt`` or ``pgt``.
        settings: architecture.
        species: atomic numbers in increasing order.
        n_neighbours: mean number of neighbours in the training data, which normalises the sums over neighbours.
        metadata: JSON-able facts about the training.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        target: str,
        settings: NetworkSettings,
        species: Sequence[int],
        n_neighbours: float,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the network inside :func:`build_network`, which sets precision and seed."""
        from e3nn.nn.models.v2106.gate_points_message_passing import MessagePassing

        super().__init__()
        self.target = target
        self.settings = settings
        self.species = tuple(sorted({int(z) for z in species}))
        self.n_neighbours = float(max(n_neighbours, 1.0))
        self.metadata: dict[str, Any] = dict(metadata or {})
        n_species = len(self.species)
        hidden = o3.Irreps(
            [
                (multiplicity, (l, parity))
                for l, multiplicity in enumerate(settings.multiplicities)  # noqa: E741
                for parity in ((1, -1) if settings.parity == "both" else ((-1) ** l,))
                if multiplicity > 0
            ]
        )
        self._edge_irreps = o3.Irreps.spherical_harmonics(settings.edge_l_max)
        self.message_passing = MessagePassing(
            irreps_node_sequence=[f"{n_species}x0e", *[hidden] * settings.n_layers, target_irreps(target)],
            irreps_node_attr=f"{n_species}x0e" if settings.has_species_attributes else "0e",
            irreps_edge_attr=self._edge_irreps,
            fc_neurons=[settings.n_radial, *settings.radial_hidden],
            num_neighbors=self.n_neighbours,
        )
        for layer in self.message_passing.layers:
            convolution = getattr(layer, "first", layer)
            convolution.tp = ChannelwiseTensorProduct(convolution.tp)
        dimension = target_irreps(target).dim
        self.register_buffer("mean", torch.zeros(n_species, dimension))
        self.register_buffer("scale", torch.ones(n_species, dimension))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return self.mean.dtype

    @property
    def cutoff(self) -> float:
        """Radius of the neighbour list [A]."""
        return self.settings.cutoff

    def graph(self, atoms: Atoms) -> Graph:
        """Return the graph of a snapshot for this network."""
        return graph_of(
            atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, self.species, self.cutoff, self.dtype
        )

    def standardised(self, graph: Graph) -> torch.Tensor:
        """Return the standardised irreducible components of each atom, (n_nodes, 9 or 18)."""
        vectors = graph.vectors
        n_radial = self.settings.n_radial
        harmonics = o3.spherical_harmonics(self._edge_irreps, vectors, True, normalization="component")
        radial = soft_one_hot_linspace(
            vectors.norm(dim=1), 0.0, self.cutoff, n_radial, basis="smooth_finite", cutoff=True
        ).mul(n_radial**0.5)
        features = torch.nn.functional.one_hot(graph.species, len(self.species)).to(vectors.dtype)
        attributes = features if self.settings.has_species_attributes else torch.ones_like(features[:, :1])
        return self.message_passing(features, attributes, graph.senders, graph.receivers, harmonics, radial)

    def components(self, graph: Graph) -> torch.Tensor:
        """Return the irreducible components of each atom, (n_nodes, 9 or 18) [unit of the target]."""
        return self.standardised(graph) * self.scale[graph.species] + self.mean[graph.species]

    def forward(self, graph: Graph) -> torch.Tensor:
        """Return the tensors of each atom, (n_nodes, 3, 3) [e] or (n_nodes, 3, 3, 3) [e^2 a0/E_h]."""
        return from_irreps(self.target, self.components(graph))

    def standardise(self, components: torch.Tensor, species: torch.Tensor) -> None:
        """Set mean and scale from training labels, by species and block.

        Args:
            components: (n, 9 or 18) irreducible components of the labels.
            species: (n,) index into the model's species.
        """
        overall = float(components.pow(2).mean().sqrt())
        floor = 1e-3 * overall if overall > 0 else 1.0
        for index in range(len(self.species)):
            of_species = components[species == index]
            for block in blocks(self.target):
                values = of_species[:, block.start : block.stop]
                if len(values) == 0:
                    continue
                if block.l == 0:
                    self.mean[index, block.start : block.stop] = values.mean()
                    values = values - values.mean()
                # A block without variation, such as one of a lone atom, must not turn its noise into a target.
                self.scale[index, block.start : block.stop] = max(float(values.pow(2).mean().sqrt()), floor)


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
    with _construction(seed):
        network = ResponseNetwork(target, settings, species, n_neighbours, metadata)
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
        NetworkSettings(**content["settings"]),
        [chemical_symbols.index(s) for s in content["species"]],
        content["target"],
        n_neighbours=content["n_neighbours"],
        dtype=getattr(torch, content["dtype"]),
        metadata=content["metadata"],
    )
    network.load_state_dict(content["state"])
    return network.eval()
