"""Atoms and their neighbours as tensors: what a response network sees of snapshots."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ase.data import chemical_symbols

from mimyria_wf.errors import ModelError
from mimyria_wf.neighbours import CLOSEST, Stretch, neighbour_list, stretches, too_close

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Graph:
    """Atoms of one or several snapshots with the vectors to their neighbours.

    Edges go by receiver and, for each receiver, by the species of the sender.

    Attributes:
        species: (n_nodes,) index into the model's species.
        senders: (n_edges,) node of the neighbour.
        receivers: (n_edges,) node of the centre.
        vectors: (n_edges, 3) from centre to neighbour [A].
        snapshot: (n_nodes,) snapshot to which a node belongs.
        n_snapshots: number of snapshots.
        environment: what a network has computed of the graph beforehand.
    """

    species: torch.Tensor
    senders: torch.Tensor
    receivers: torch.Tensor
    vectors: torch.Tensor
    snapshot: torch.Tensor
    n_snapshots: int
    environment: Any = None

    def sum_by_snapshot(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of (n_nodes, ...) values over the nodes of each snapshot, (n_snapshots, ...)."""
        return values.new_zeros(self.n_snapshots, *values.shape[1:]).index_add_(0, self.snapshot, values)

    def to(self, device: str) -> "Graph":
        """Return the graph on another device, without its environment."""
        names = ("species", "senders", "receivers", "vectors", "snapshot")
        return replace(self, **{name: getattr(self, name).to(device) for name in names}, environment=None)


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
    kinds = species_index(numbers, species)
    pairs = neighbour_list(positions, cell, pbc, cutoff)
    order = _order(pairs.senders, pairs.receivers, kinds, len(species))
    return Graph(
        species=torch.from_numpy(kinds),
        senders=torch.from_numpy(pairs.senders[order]),
        receivers=torch.from_numpy(pairs.receivers[order]),
        vectors=torch.from_numpy(pairs.vectors(np.asarray(positions, dtype=float))[order]).to(dtype),
        snapshot=torch.zeros(len(numbers), dtype=torch.int64),
        n_snapshots=1,
    )


def graphs_of_frames(
    numbers: Array,
    positions: Array,
    cell: Array,
    pbc: Array,
    species: Sequence[int],
    cutoff: float,
    dtype: torch.dtype = torch.float32,
    frames_at_once: int = 1,
) -> Iterator[Graph]:
    """Yield graphs of consecutive frames of a trajectory, joined, that share neighbour lists where atoms moved little.

    Args:
        numbers: see :func:`graph_of`.
        positions: (n_frames, n_atoms, 3) [A].
        cell: see :func:`graph_of`.
        pbc: see :func:`graph_of`.
        species: see :func:`graph_of`.
        cutoff: see :func:`graph_of`.
        dtype: see :func:`graph_of`.
        frames_at_once: at most so many frames a graph.

    Raises:
        ModelError: see :func:`graph_of`.
    """
    kinds = species_index(numbers, species)
    for stretch in stretches(positions, cell, pbc, cutoff):
        order = _order(stretch.senders, stretch.receivers, kinds, len(species))
        stretch = replace(
            stretch,
            senders=stretch.senders[order],
            receivers=stretch.receivers[order],
            vectors=stretch.vectors[order],
        )
        for start in range(0, len(stretch.displacements), frames_at_once):
            yield _of_stretch(stretch, slice(start, start + frames_at_once), torch.from_numpy(kinds), cutoff, dtype)


def _order(senders: Array, receivers: Array, kinds: Array, n_species: int) -> Array:
    """Return the order of pairs by receiver and species of the sender, otherwise as they come."""
    return np.argsort(receivers * n_species + kinds[senders], kind="stable")


def _of_stretch(stretch: Stretch, frames: slice, kinds: torch.Tensor, cutoff: float, dtype: torch.dtype) -> Graph:
    # Displacements are small, so that single precision loses nothing that the vectors do not lose themselves.
    displacements = torch.from_numpy(stretch.displacements[frames]).to(dtype)
    n_frames, n_atoms = displacements.shape[:2]
    senders, receivers = torch.from_numpy(stretch.senders), torch.from_numpy(stretch.receivers)
    vectors = displacements.index_select(1, senders).sub_(displacements.index_select(1, receivers))
    vectors.add_(torch.from_numpy(stretch.vectors).to(dtype))
    squares = vectors.square().sum(dim=2)
    if squares.numel() and float(squares.min()) < CLOSEST**2:
        pair = int(squares.argmin()) % len(senders)
        raise too_close(int(receivers[pair]), int(senders[pair]), float(squares.min()) ** 0.5)
    offsets = n_atoms * torch.arange(n_frames)[:, None]
    kept = (squares < cutoff**2).flatten().nonzero().flatten()
    return Graph(
        species=kinds.repeat(n_frames),
        senders=(senders + offsets).flatten().index_select(0, kept),
        receivers=(receivers + offsets).flatten().index_select(0, kept),
        vectors=vectors.flatten(0, 1).index_select(0, kept),
        snapshot=torch.arange(n_frames).repeat_interleave(n_atoms),
        n_snapshots=n_frames,
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


def batches(sizes: Sequence[int], at_once: int) -> Iterator[slice]:
    """Yield slices of consecutive snapshots with some ``at_once`` atoms together: small ones cost most by their number.

    Args:
        sizes: atoms of each snapshot.
        at_once: atoms after which a batch ends.
    """
    first, n_atoms = 0, 0
    for i, size in enumerate(sizes):
        n_atoms += size
        if n_atoms >= at_once or i == len(sizes) - 1:
            yield slice(first, i + 1)
            first, n_atoms = i + 1, 0


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
        environment=None
        if any(g.environment is None for g in graphs)
        else graphs[0].environment.join([g.environment for g in graphs]),
    )
