"""Atoms and their neighbours as tensors: what a response network sees of snapshots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ase.data import chemical_symbols

from mimyria_wf.errors import ModelError
from mimyria_wf.neighbours import neighbour_list

Array = npt.NDArray[Any]


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
