"""Equivariant network on species densities, with one short-range exchange of messages.

Atoms of each species around atom i form densities

    A_i[z, n, lm] = sum_(j of species z) g_n(r_ij) Y_lm(r_ij),

the expansion coefficients of the neighbour density (Bartok, Kondor, Csanyi, Phys. Rev. B 87, 184115 (2013)). They hold
no parameter, so that they are computed once a snapshot in training, and reach far at little cost. A linear map for
each species of i gives C channels x_i of natural parity (-1)^l, l <= L. Three kinds of layer follow:

- product: x <- x + gate * W (Ux (x) Vx), the Clebsch-Gordan product of two linear maps of x, channel by channel,
  which raises the body order; both factors are divided by sqrt(1 + their mean square) and cannot run away;
- message: x_i <- x_i + W sum_j [phi1(r_ij) h_j, phi2(r_ij) h_j,l=0 Y(r_ij)], h = Sx, within a few A: what a
  neighbour's own surroundings do to it;
- readout: linear in x, in the densities, and, where the target has unnatural parity (1e of an APT, 2o of a PGT), in
  one more Clebsch-Gordan product. It is strictly linear for each species, so its weights have a Gaussian posterior.

Weights of products and messages are a part common to all species plus a part of each species, which weight decay
pulls to zero: a species that is rare in the labels shares what the frequent ones have learned.

Radial functions are Gaussians in log r, so that their resolution is relative, times a cosine cutoff over r. Bonded
pairs (r within some 1.4 sums of covalent radii) leave them smoothly for Gaussians that cover the range of bond lengths
seen in training.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from ase.data import covalent_radii
from e3nn import o3

from mimyria_wf.errors import ModelError
from mimyria_wf.graphs import Graph, batches, join
from mimyria_wf.irreps import blocks
from mimyria_wf.presets import DensitySettings
from mimyria_wf.response_network import ResponseNetwork

_BOND_STARTS, _BOND_ENDS = 1.25, 1.55
"""A pair counts as bonded below the first and not above the second, in sums of covalent radii; smooth in between."""
_SHORTEST = 0.85
"""Centre of the first radial function [A]."""
_NODES_AT_ONCE = 64
"""Atoms whose messages fit into the cache of a processor, with those that a second core works on."""
_DENSITIES_AT_ONCE = 1024
"""Atoms whose densities are made at a time, which bounds the memory of large systems."""
_LEAST_SCALE = 0.1
"""Least scale of densities; one neighbour gives about 1, and a pair met a few times in training must not count by its
rarity when it is met more often."""
_NARROWEST_BOND = 0.05
"""Least width of a Gaussian over bond lengths [A]."""


@dataclass(frozen=True)
class Environment:
    """What the network sees of the atoms, without any trainable parameter.

    Attributes:
        densities: (n_nodes, (l_max+1)^2, n_densities) standardised.
        neighbours: (n_nodes, n_columns) nodes within the message cutoff, padded with any node; those of one species
            side by side.
        radial: (n_nodes, n_columns, n_functions) radial functions of the messages, zero for padding.
        harmonics: (n_nodes, n_columns, (l_max+1)^2).
        widths: number of columns for each species of neighbours.
    """

    densities: torch.Tensor
    neighbours: torch.Tensor
    radial: torch.Tensor
    harmonics: torch.Tensor
    widths: tuple[int, ...]

    def __getitem__(self, nodes: slice | torch.Tensor) -> "Environment":
        """Return the rows of some nodes."""
        return Environment(
            self.densities[nodes], self.neighbours[nodes], self.radial[nodes], self.harmonics[nodes], self.widths
        )

    def split(self, sizes: Sequence[int]) -> list["Environment"]:
        """Return the environments of so many nodes each, which have no neighbours in each other."""
        starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        parts = [(self[first : first + size], first) for first, size in zip(starts, sizes)]
        # padding may name a node of another part: any node will do
        return [replace(part, neighbours=(part.neighbours - first).clamp(min=0)) for part, first in parts]

    @staticmethod
    def join(environments: Sequence["Environment"]) -> "Environment":
        """Return one environment of many, in the order of :func:`mimyria_wf.graphs.join`."""
        sizes = [len(e.neighbours) for e in environments]
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist()
        widths = tuple(max(w) for w in zip(*(e.widths for e in environments)))

        def padded(name: str, environment: "Environment") -> torch.Tensor:
            parts = getattr(environment, name).split(environment.widths, dim=1)
            fill = (0, 0) * (parts[0].ndim - 2)
            missing = [wanted - found for wanted, found in zip(widths, environment.widths)]
            return torch.cat([torch.nn.functional.pad(p, (*fill, 0, m)) for p, m in zip(parts, missing)], 1)

        return Environment(
            densities=torch.cat([e.densities for e in environments]),
            neighbours=torch.cat([padded("neighbours", e) + o for e, o in zip(environments, offsets)]),
            radial=torch.cat([padded("radial", e) for e in environments]),
            harmonics=torch.cat([padded("harmonics", e) for e in environments]),
            widths=widths,
        )


class DensityNetwork(ResponseNetwork):
    """Network on species densities; see the module for its equations."""

    settings: DensitySettings
    bond_radius: torch.Tensor
    bond_first: torch.Tensor
    bond_last: torch.Tensor
    density_mean: torch.Tensor
    density_scale: torch.Tensor

    def __init__(
        self,
        target: str,
        settings: DensitySettings,
        species: Sequence[int],
        n_neighbours: float,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(target, settings, species, n_neighbours, metadata)
        if max(b.l for b in blocks(target)) > settings.l_max:
            raise ModelError(f"l_max must be at least {max(b.l for b in blocks(target))} for a {target} network")
        n, l_max, n_channels = len(self.species), settings.l_max, settings.n_channels
        radii = torch.tensor([covalent_radii[z] for z in self.species])
        self.register_buffer("bond_radius", radii[:, None] + radii[None, :])
        # Until adapt() has seen bonds the Gaussians cover what bonds usually are.
        self.register_buffer("bond_first", 0.8 * self.bond_radius)
        self.register_buffer("bond_last", 1.25 * self.bond_radius)
        self.n_densities = n * (settings.n_radial + settings.n_bond)
        self.n_functions = n * (settings.n_message_radial + settings.n_bond)
        self.register_buffer("density_mean", torch.zeros(n, self.n_densities))
        self.register_buffer("density_scale", torch.ones(n, l_max + 1, self.n_densities))
        self.embedding = SpeciesLinear(n, l_max, self.n_densities, n_channels, is_pooled=False)
        layers: list[torch.nn.Module] = [Product(n, l_max, n_channels, settings.n_hidden)]
        for _ in range(settings.n_rounds):
            layers.append(Message(n, l_max, n_channels, settings.n_message_channels, self.n_functions))
            layers += [Product(n, l_max, n_channels, settings.n_hidden) for _ in range(settings.n_products)]
        self.layers = torch.nn.ModuleList(layers)
        self._unnatural = [b.l for b in blocks(target) if not _is_natural(target, b.l)]
        self.first = SpeciesLinear(n, l_max, n_channels, n_channels)
        self.second = SpeciesLinear(n, l_max, n_channels, n_channels)
        self.coupling = Coupling(l_max, is_natural=False, wanted=self._unnatural)
        readout = []
        for block in blocks(target):
            if _is_natural(target, block.l):
                linear = torch.randn(n, n_channels) * 0.3 / math.sqrt(n_channels)
                direct = torch.zeros(n, self.n_densities + (block.l == 0))
                readout.append(torch.cat([linear, direct], 1))
            else:
                n_features = n_channels * self.coupling.n_paths[self._unnatural.index(block.l)]
                readout.append(torch.randn(n, n_features) * 0.3 / math.sqrt(n_features))
        self.readout = torch.nn.ParameterList(readout)

    def environment(self, graph: Graph) -> Environment:
        """Return what the network sees of the atoms of a graph."""
        n_nodes, n_species = len(graph.species), len(self.species)
        receivers, senders, vectors = graph.receivers, graph.senders, graph.vectors
        row = receivers * n_species + graph.species[senders]
        if (row.diff() < 0).any():
            order = torch.argsort(row, stable=True)
            receivers, senders, vectors, row = (v.index_select(0, order) for v in (receivers, senders, vectors, row))
        distances = vectors.norm(dim=1)
        starts = torch.searchsorted(
            receivers, torch.arange(0, n_nodes + _DENSITIES_AT_ONCE, _DENSITIES_AT_ONCE).to(receivers)
        )
        densities = []
        for k, first in enumerate(range(0, n_nodes, _DENSITIES_AT_ONCE)):
            edges = slice(int(starts[k]), int(starts[k + 1]))
            species = graph.species[first : first + _DENSITIES_AT_ONCE]
            densities.append(self._densities(species, row[edges] - first * n_species, vectors[edges]))
        near = (distances < self.settings.message_cutoff).nonzero().flatten()
        senders, distances, row = (
            senders.index_select(0, near),
            distances.index_select(0, near),
            row.index_select(0, near),
        )
        pair = graph.species.index_select(0, receivers.index_select(0, near)) * n_species + row % n_species
        index, widths = _columns(row, n_nodes, n_species)
        place = _side_by_side(index, row, n_nodes, widths)
        return Environment(
            densities=torch.cat(densities),
            neighbours=_padded(senders[:, None], place, n_nodes, sum(widths))[..., 0],
            radial=_padded(self._message_functions(distances, pair), place, n_nodes, sum(widths)),
            harmonics=_padded(self._harmonics(vectors.index_select(0, near)), place, n_nodes, sum(widths)),
            widths=tuple(widths),
        )

    def _densities(self, species: torch.Tensor, row: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Return standardised densities (n_nodes, (l_max+1)^2, n_densities).

        Args:
            species: (n_nodes,) of the receivers.
            row: (n_edges,) receiver times n_species plus the sender's species, increasing.
            vectors: (n_edges, 3) [A].
        """
        settings, n_nodes, n_species = self.settings, len(species), len(self.species)
        index, widths = _columns(row, n_nodes, n_species)
        # Each sender's species fills a matrix of its own; what pads it lies where all radial functions are zero.
        padded = vectors.new_zeros(n_nodes * sum(widths), 3)
        padded[:, 0] = settings.cutoff
        padded.index_copy_(0, index, vectors)
        distances, harmonics = padded.norm(dim=1), self._harmonics(padded)
        parts = []
        for z, (width, lengths, angles) in enumerate(
            zip(
                widths,
                distances.split([n_nodes * w for w in widths]),
                harmonics.split([n_nodes * w for w in widths]),
            )
        ):
            lengths = lengths.view(n_nodes, width)
            pair = (species * n_species + z)[:, None]
            bonded = _switch(lengths / self.bond_radius.flatten()[pair])
            bonds = self._bond_functions(lengths, pair) * (bonded * _late_cutoff(lengths, settings.cutoff))[..., None]
            far = _log_gaussians(lengths, settings.cutoff, settings.n_radial) * (1 - bonded)[..., None]
            parts.append(angles.view(n_nodes, width, -1).transpose(1, 2) @ torch.cat([far, bonds], 2))
        densities = torch.cat(parts, dim=2)
        densities[:, 0] -= self.density_mean[species]
        order = torch.tensor(_l_of(settings.l_max), device=species.device)
        return densities / self.density_scale[:, order][species]

    def _message_functions(self, distances: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        """Return (n_edges, n_message_radial + n_bond) radial functions of the messages."""
        settings = self.settings
        bonded = _switch(distances / self.bond_radius.flatten()[pair])
        far = _log_gaussians(distances, settings.message_cutoff, settings.n_message_radial)
        bonds = self._bond_functions(distances, pair) * _late_cutoff(distances, settings.message_cutoff)[:, None]
        return torch.cat([far * (2 * (1 - bonded))[:, None], bonds * bonded[:, None]], 1)

    def _harmonics(self, vectors: torch.Tensor) -> torch.Tensor:
        degrees = list(range(self.settings.l_max + 1))
        return o3.spherical_harmonics(degrees, vectors, True, normalization="component")

    def _bond_functions(self, distances: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        """Return (..., n_bond) Gaussians over the bond lengths of a pair of species, of distances (...)."""
        n = self.settings.n_bond
        first, last = self.bond_first.flatten()[pair], self.bond_last.flatten()[pair]
        step = ((last - first) / max(1, n - 1)).clamp(min=_NARROWEST_BOND)
        place = torch.arange(n, dtype=distances.dtype, device=distances.device) - (n - 1) / 2
        return _gaussian(((distances - (first + last) / 2) / step)[..., None] - place)

    def prepare(self, graphs: Sequence[Graph]) -> list[Graph]:
        """Return the graphs with their environments, which are then not computed again."""
        return [
            replace(graph, environment=environment)
            for some in _batches(graphs)
            for graph, environment in zip(
                some, self.environment(join(some)).split([len(g.species) for g in some]), strict=True
            )
        ]

    def adapt(self, graphs: Sequence[Graph]) -> None:
        """Set the range of bond lengths and the standardisation of the densities from training snapshots."""
        graph = join(graphs)
        n = len(self.species)
        distances = graph.vectors.norm(dim=1)
        pair = graph.species[graph.receivers] * n + graph.species[graph.senders]
        is_bonded = distances < _BOND_STARTS * self.bond_radius.flatten()[pair]
        for k in range(n * n):
            lengths = distances[is_bonded & (pair == k)]
            if len(lengths):
                some = lengths[:: 1 + len(lengths) // 100_000]  # torch's quantile takes no more than 16 million
                ends = torch.quantile(some, torch.tensor([0.002, 0.998]).to(lengths))
                self.bond_first.view(-1)[k], self.bond_last.view(-1)[k] = ends[0], ends[1]
        self.density_mean.zero_()
        self.density_scale.fill_(1.0)
        densities = torch.cat([self.environment(join(some)).densities for some in _batches(graphs)])
        order = _l_of(self.settings.l_max)
        n_of_sender = self.settings.n_radial + self.settings.n_bond
        for z in range(n):
            own = densities[graph.species == z]
            if not len(own):
                continue
            self.density_mean[z] = own[:, 0].mean(0)
            own = torch.cat([(own[:, :1] - own[:, :1].mean(0)), own[:, 1:]], 1)
            for degree in range(self.settings.l_max + 1):
                rms = own[:, [k for k, v in enumerate(order) if v == degree]].pow(2).mean((0, 1)).sqrt()
                # One scale for all functions of a sender keeps the small ones small: less weight for what varies less.
                for start in range(0, self.n_densities, n_of_sender):
                    for part in (
                        slice(start, start + self.settings.n_radial),
                        slice(start + self.settings.n_radial, start + n_of_sender),
                    ):
                        if part.stop == part.start:
                            continue
                        largest = float(rms[part].max())
                        self.density_scale[z, degree, part] = max(largest, _LEAST_SCALE)
                        if largest < 1e-4:  # never seen: initial weights must not speak of it in prediction
                            matrix = self.embedding.matrices[degree]
                            assert isinstance(matrix, SpeciesMatrix)
                            with torch.no_grad():
                                matrix.own[z, part] = 0.0

    def standardise(self, components: torch.Tensor, species: torch.Tensor) -> None:
        """Set mean and scale from training labels, one scale a species, so that all components weigh the same."""
        super().standardise(components, species)
        self.scale.copy_(self.scale.pow(2).mean(1, keepdim=True).sqrt().expand_as(self.scale))

    def readout_features(self, graph: Graph) -> list[torch.Tensor]:
        """Return the features in which each irreducible block is linear, (n_nodes, 2l+1, n_features) each."""
        environment = graph.environment if graph.environment is not None else self.environment(graph)
        order = torch.argsort(graph.species, stable=True)
        back = torch.argsort(order)
        sizes = torch.bincount(graph.species, minlength=len(self.species)).tolist()
        environment = environment[order]
        environment = replace(environment, neighbours=back[environment.neighbours])
        densities = environment.densities.transpose(0, 1)
        x = self.embedding(densities, sizes)
        for layer in self.layers:
            x = layer(x, sizes, environment)
        products = self.coupling(_normalised(self.first(x, sizes)), _normalised(self.second(x, sizes)))
        result = []
        for block in blocks(self.target):
            if _is_natural(self.target, block.l):
                l_slice = slice(block.l**2, (block.l + 1) ** 2)
                parts = [x[l_slice], densities[l_slice]]
                if block.l == 0:
                    parts.append(torch.ones_like(x[:1, :, :1]))
                features = torch.cat(parts, 2)
            else:
                features = torch.stack(products[self._unnatural.index(block.l)], 3).flatten(2)
            result.append(features[:, back].transpose(0, 1))
        return result

    def standardised(self, graph: Graph) -> torch.Tensor:
        """Return the standardised irreducible components of each atom, (n_nodes, 9 or 18)."""
        features = self.readout_features(graph)
        return torch.cat([(f @ w[graph.species][..., None])[..., 0] for f, w in zip(features, self.readout)], dim=1)


class SpeciesMatrix(torch.nn.Module):
    """A linear map of channels for each species; nodes are sorted by species.

    Args:
        n_species: number of species.
        n_in: channels in.
        n_out: channels out.
        is_pooled: a common matrix plus one of each species that starts at zero; otherwise one of each species alone.
        scale: of the initial weights, over 1/sqrt(n_in).
    """

    def __init__(self, n_species: int, n_in: int, n_out: int, is_pooled: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        factor = scale / math.sqrt(n_in)
        self.common: torch.nn.Parameter | None = None
        if is_pooled:
            self.common = torch.nn.Parameter(torch.randn(n_in, n_out) * factor)
            self.own = torch.nn.Parameter(torch.zeros(n_species, n_in, n_out))
        else:
            self.own = torch.nn.Parameter(torch.randn(n_species, n_in, n_out) * factor)

    @property
    def weights(self) -> torch.Tensor:
        """(n_species, n_in, n_out)."""
        return self.own if self.common is None else self.common + self.own

    def forward(self, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """Return (k, n_nodes, n_out) of (k, n_nodes, n_in); sizes are the numbers of nodes of each species."""
        return _by_species(x, self.weights[:, None].expand(-1, len(x), -1, -1), sizes)


class SpeciesLinear(torch.nn.Module):
    """A :class:`SpeciesMatrix` for each l, ((l_max+1)^2, n_nodes, n_in) to ((l_max+1)^2, n_nodes, n_out)."""

    def __init__(
        self, n_species: int, l_max: int, n_in: int, n_out: int, is_pooled: bool = True, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.degrees = _l_of(l_max)
        self.matrices = torch.nn.ModuleList(
            [SpeciesMatrix(n_species, n_in, n_out, is_pooled, scale) for _ in range(l_max + 1)]
        )

    def forward(self, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """Return the mapped features."""
        weights = [cast(SpeciesMatrix, matrix).weights for matrix in self.matrices]
        return _by_species(x, torch.stack([weights[l] for l in self.degrees], 1), sizes)  # noqa: E741


def _by_species(x: torch.Tensor, weights: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Return (k, n_nodes, n_out) of (k, n_nodes, n_in) and weights (n_species, k, n_in, n_out)."""
    return torch.cat([part @ w for part, w in zip(x.split(sizes, dim=1), weights)], 1)


class Product(torch.nn.Module):
    """x + gate * W (Ux (x) Vx): the body order doubles."""

    def __init__(self, n_species: int, l_max: int, n_channels: int, n_hidden: int) -> None:
        super().__init__()
        self.l_max, self.n_channels = l_max, n_channels
        self.degrees = _l_of(l_max)
        self.coupling = Coupling(l_max, is_natural=True, wanted=range(l_max + 1))
        self.first = SpeciesLinear(n_species, l_max, n_channels, n_channels)
        self.second = SpeciesLinear(n_species, l_max, n_channels, n_channels)
        self.mix = torch.nn.ModuleList(
            [SpeciesMatrix(n_species, n_channels * n, n_channels) for n in self.coupling.n_paths]
        )
        self.hidden = SpeciesMatrix(n_species, n_channels, n_hidden)
        self.gates = SpeciesMatrix(n_species, n_hidden, n_channels * (l_max + 1))
        self.hidden_bias = torch.nn.Parameter(torch.zeros(n_hidden))
        self.gate_bias = torch.nn.Parameter(torch.zeros(n_channels * (l_max + 1)))

    def forward(self, x: torch.Tensor, sizes: list[int], environment: Environment) -> torch.Tensor:
        """Return the features ((l_max+1)^2, n_nodes, n_channels) after the product."""
        products = self.coupling(_normalised(self.first(x, sizes)), _normalised(self.second(x, sizes)))
        mixed = torch.cat(
            [self._mixed(paths, cast(SpeciesMatrix, mix), sizes) for paths, mix in zip(products, self.mix)]
        )
        hidden = torch.nn.functional.silu(self.hidden(mixed[:1] + x[:1], sizes) + self.hidden_bias)
        gates = (self.gates(hidden, sizes) + self.gate_bias).view(-1, self.l_max + 1, self.n_channels)
        scalars = torch.nn.functional.silu(mixed[:1]) + gates[None, :, 0]
        turned = mixed[1:] * (1 + gates[:, self.degrees[1:]].transpose(0, 1))
        return x + 0.7 * torch.cat([scalars, turned])

    def _mixed(self, paths: Sequence[torch.Tensor], mix: SpeciesMatrix, sizes: list[int]) -> torch.Tensor:
        # Rows of the matrix run over channels and within them over paths; paths side by side are cheaper to make.
        weights = mix.weights.unflatten(1, (self.n_channels, len(paths))).transpose(1, 2).flatten(1, 2)
        joined = torch.cat(list(paths), 2)
        return _by_species(joined, weights[:, None].expand(-1, len(joined), -1, -1), sizes)


class Message(torch.nn.Module):
    """x_i + W sum_j [phi1(r) h_j, phi2(r) h_j,0 Y(r)]."""

    def __init__(self, n_species: int, l_max: int, n_channels: int, n_sent: int, n_functions: int) -> None:
        super().__init__()
        self.l_max, self.n_sent = l_max, n_sent
        self.send = SpeciesLinear(n_species, l_max, n_channels, n_sent)
        self.receive = SpeciesLinear(n_species, l_max, 2 * n_sent, n_channels, scale=0.5)
        shape = (n_functions, 2 * (l_max + 1) * n_sent)
        self.radial = torch.nn.Parameter(torch.randn(shape) * 0.3)
        self.radial_own = torch.nn.Parameter(torch.zeros(n_species, *shape))

    def forward(self, x: torch.Tensor, sizes: list[int], environment: Environment) -> torch.Tensor:
        """Return the features ((l_max+1)^2, n_nodes, n_channels) after the messages."""
        sent = self.send(x, sizes).transpose(0, 1).flatten(1)
        parts = []
        start = 0
        for size, own in zip(sizes, self.radial_own):
            matrices = (self.radial + own).view(len(environment.widths), -1, self.radial.shape[1])
            # Without gradients in pieces, which stay in the processor's cache; with them every piece would be kept.
            step = max(1, size) if torch.is_grad_enabled() else _NODES_AT_ONCE
            for first in range(start, start + size, step):
                rows = slice(first, min(first + step, start + size))
                parts.append(self._received(sent, environment[rows], matrices))
            start += size
        return x + self.receive(torch.cat(parts).transpose(0, 1), sizes)

    def _received(self, sent: torch.Tensor, environment: Environment, matrices: torch.Tensor) -> torch.Tensor:
        """Return what nodes of one species receive, (n_nodes, (l_max+1)^2, 2 n_sent).

        Args:
            sent: (all nodes, (l_max+1)^2 n_sent).
            environment: of the nodes.
            matrices: (n_species, functions of one sender's species, 2 (l_max+1) n_sent).
        """
        n, m = environment.neighbours.shape
        by_sender = [radial.flatten(0, 1) for radial in environment.radial.split(environment.widths, dim=1)]
        passing, turning = (
            torch.cat([(r @ w).view(n, -1, w.shape[1]) for r, w in zip(by_sender, half)], 1)
            for half in matrices.chunk(2, dim=2)
        )
        widths = [2 * l + 1 for l in range(self.l_max + 1)]  # noqa: E741
        gathered = sent.index_select(0, environment.neighbours.flatten()).view(n, m, -1, self.n_sent)
        neighbours = gathered.split(widths, dim=2)
        passed = torch.cat(
            [(h * w[:, :, None]).sum(1) for h, w in zip(neighbours, passing.split(self.n_sent, dim=2))], 1
        )
        # All l at once, of which only the diagonal is kept: one large product is faster than many small ones.
        scalars = gathered[:, :, :1].expand(-1, -1, self.l_max + 1, -1)
        every = environment.harmonics.transpose(1, 2) @ (turning * scalars.flatten(2))
        turned = torch.cat(
            [
                block
                for l, rows in enumerate(every.split(widths, dim=1))  # noqa: E741
                for k, block in enumerate(rows.split(self.n_sent, dim=2))
                if k == l
            ],
            1,
        )
        return torch.cat([passed, turned], 2)


class Coupling(torch.nn.Module):
    """Clebsch-Gordan products, channel by channel, of two sets of features l <= l_max of natural parity.

    One small matrix for each pair l1, l2: a single matrix for all of them would be zero in nine of ten places.

    Attributes:
        n_paths: number of paths (l1, l2) to each l3 that is wanted.

    Args:
        l_max: highest l.
        is_natural: l1 + l2 + l3 even, else odd.
        wanted: values of l3.
    """

    def __init__(self, l_max: int, is_natural: bool, wanted: Sequence[int]) -> None:
        super().__init__()
        self.l_max = l_max
        self.wanted = list(wanted)
        self.pairs: list[tuple[int, int, list[int]]] = []
        self.n_paths = [0] * len(self.wanted)
        for l1, l2 in itertools.product(range(l_max + 1), repeat=2):
            found = [l3 for l3 in self.wanted if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 != is_natural]
            if found:
                rows = [
                    o3.wigner_3j(l1, l2, l3, dtype=torch.get_default_dtype()).flatten(0, 1).T * math.sqrt(2 * l3 + 1)
                    for l3 in found
                ]
                self.register_buffer(f"matrix_{len(self.pairs)}", torch.cat(rows).contiguous(), persistent=False)
                self.pairs.append((l1, l2, found))
            for l3 in found:
                self.n_paths[self.wanted.index(l3)] += 1

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> list[list[torch.Tensor]]:
        """Return for each l3 its paths, each (2 l3 + 1, n_nodes, n_channels).

        Args:
            first: ((l_max+1)^2, n_nodes, n_channels).
            second: likewise.
        """
        shape = first.shape[1:]
        widths = [2 * l + 1 for l in range(self.l_max + 1)]  # noqa: E741
        a, b = first.flatten(1).split(widths), second.flatten(1).split(widths)
        found: dict[int, list[torch.Tensor]] = {l3: [] for l3 in self.wanted}
        for k, (l1, l2, l3s) in enumerate(self.pairs):
            product = getattr(self, f"matrix_{k}") @ (a[l1][:, None] * b[l2][None]).flatten(0, 1)
            for l3, part in zip(l3s, product.view(-1, *shape).split([2 * l3 + 1 for l3 in l3s])):
                found[l3].append(part)
        return [found[l3] for l3 in self.wanted]


def _normalised(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(1 + x.square().mean((0, 2), keepdim=True))


def _batches(graphs: Sequence[Graph]) -> Iterator[Sequence[Graph]]:
    """Yield consecutive graphs of some thousand nodes together."""
    for batch in batches([len(g.species) for g in graphs], 2000):
        yield graphs[batch]


def _is_natural(target: str, degree: int) -> bool:
    return degree % 2 == (0 if target == "apt" else 1)


def _l_of(l_max: int) -> list[int]:
    return [l for l in range(l_max + 1) for _ in range(2 * l + 1)]  # noqa: E741


def _switch(ratio: torch.Tensor) -> torch.Tensor:
    """Return 1 for bonded pairs, 0 for others."""
    return 0.5 + 0.5 * torch.cos(math.pi * ((ratio - _BOND_STARTS) / (_BOND_ENDS - _BOND_STARTS)).clamp(0, 1))


def _log_gaussians(distances: torch.Tensor, cutoff: float, n: int) -> torch.Tensor:
    """Return (..., n) Gaussians in log r times cosine cutoff over r, of distances (...)."""
    step = math.log(cutoff / _SHORTEST) / n
    place = torch.arange(n, dtype=distances.dtype, device=distances.device)
    x = torch.log(distances / _SHORTEST) / step
    envelope = 0.5 * (1 + torch.cos(math.pi * (distances / cutoff).clamp(max=1))) / distances
    return _gaussian(x[..., None] - place) * envelope[..., None]


def _late_cutoff(distances: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Return 1 up to 0.8 of the cutoff, then smoothly 0: bonds of heavy atoms may be longer than a cutoff."""
    return 0.5 + 0.5 * torch.cos(math.pi * ((distances / cutoff - 0.8) / 0.2).clamp(0, 1))


def _gaussian(x: torch.Tensor) -> torch.Tensor:
    # Numbers too small for single precision make the arithmetic ten times slower; exp(-40) is zero beside 1.
    return torch.exp((-0.5 * x.square()).clamp(min=-40))


def _columns(row: torch.Tensor, n_nodes: int, n_species: int) -> tuple[torch.Tensor, list[int]]:
    """Return the place of each edge in matrices (n_nodes, width), one for each species of senders, and their widths.

    Args:
        row: (n_edges,) receiver times n_species plus the sender's species, increasing.
        n_nodes: number of receivers.
        n_species: number of species.
    """
    counts = torch.bincount(row, minlength=n_nodes * n_species)
    by_species = counts.view(n_nodes, n_species)
    widths = by_species.amax(0).clamp(min=1)
    ends = torch.cumsum(widths * n_nodes, 0)
    first = (ends - widths * n_nodes) + widths * torch.arange(n_nodes, device=row.device)[:, None]
    offset = first.flatten() - (torch.cumsum(counts, 0) - counts)
    return torch.arange(len(row), device=row.device) + offset.index_select(0, row), widths.tolist()


def _side_by_side(index: torch.Tensor, row: torch.Tensor, n_nodes: int, widths: list[int]) -> torch.Tensor:
    """Return places in one matrix (n_nodes, sum of widths) for places in matrices below each other."""
    width = torch.tensor(widths, device=row.device)
    before = torch.cumsum(width, 0) - width
    species, receiver = row % len(widths), row // len(widths)
    column = index - before[species] * n_nodes - receiver * width[species]
    return receiver * sum(widths) + before[species] + column


def _padded(values: torch.Tensor, index: torch.Tensor, n_nodes: int, width: int) -> torch.Tensor:
    matrix = values.new_zeros(n_nodes * width, values.shape[1])
    return matrix.index_copy_(0, index, values).view(n_nodes, width, -1)
