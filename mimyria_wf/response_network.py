"""What all networks for APTs and PGTs have in common: species, standardisation, and how a snapshot becomes tensors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import e3nn
import torch
from ase import Atoms

from mimyria_wf.committee import Posterior
from mimyria_wf.graphs import Graph, graph_of
from mimyria_wf.irreps import blocks, from_irreps, target_irreps
from mimyria_wf.presets import NetworkSettings


@contextmanager
def construction(seed: int) -> Iterator[None]:
    """Build modules in double precision, without TorchScript, from a seed, leaving no trace in global state.

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

    The output is standardised for each species: the l = 0 block by mean and deviation, each l > 0 block by one scale,
    since a shift of l > 0 components would break equivariance.

    Attributes:
        target: ``apt`` or ``pgt``.
        settings: architecture.
        species: atomic numbers in increasing order.
        n_neighbours: mean number of neighbours in the training data, which normalises the sums over neighbours.
        metadata: JSON-able facts about the training.
        posterior: of the last layer, where the network has one that is linear and was trained with this version.
    """

    posterior: Posterior | None = None
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
        """Build the network inside :func:`construction`, which sets precision and seed."""
        super().__init__()
        self.target = target
        self.settings = settings
        self.species = tuple(sorted({int(z) for z in species}))
        self.n_neighbours = float(max(n_neighbours, 1.0))
        self.metadata: dict[str, Any] = dict(metadata or {})
        dimension = target_irreps(target).dim
        self.register_buffer("mean", torch.zeros(len(self.species), dimension))
        self.register_buffer("scale", torch.ones(len(self.species), dimension))

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

    def adapt(self, graphs: Sequence[Graph]) -> None:
        """Set what the network needs to know of the training snapshots' geometry before its first step."""

    def prepare(self, graphs: Sequence[Graph]) -> list[Graph]:
        """Return the graphs with all that does not depend on trainable parameters computed once."""
        return list(graphs)

    def standardised(self, graph: Graph) -> torch.Tensor:
        """Return the standardised irreducible components of each atom, (n_nodes, 9 or 18)."""
        raise NotImplementedError

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
