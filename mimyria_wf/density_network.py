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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from ase.data import covalent_radii
from e3nn import o3

from mimyria_wf.errors import ModelError
from mimyria_wf.graphs import Graph, join
from mimyria_wf.irreps import blocks
from mimyria_wf.presets import DensitySettings
from mimyria_wf.response_network import ResponseNetwork

_BOND_STARTS, _BOND_ENDS = 1.25, 1.55
"""A pair counts as bonded below the first and not above the second, in sums of covalent radii; smooth in between."""
_SHORTEST = 0.85
"""Centre of the first radial function [A]."""
_NARROWEST_BOND = 0.05
"""Least width of a Gaussian over bond lengths [A]."""


@dataclass(frozen=True)
class Environment:
    """What the network sees of the atoms, without any trainable parameter.

    Attributes:
        densities: (n_nodes, (l_max+1)^2, n_densities) standardised.
        neighbours: (n_nodes, n_columns) nodes within the message cutoff, padded with any node.
        radial: (n_nodes, n_columns, n_functions) radial functions of the messages, zero for padding.
        harmonics: (n_nodes, n_columns, (l_max+1)^2).
    """

    densities: torch.Tensor
    neighbours: torch.Tensor
    radial: torch.Tensor
    harmonics: torch.Tensor

    @staticmethod
    def join(environments: Sequence["Environment"]) -> "Environment":
        """Return one environment of many, in the order of :func:`mimyria_wf.graphs.join`."""
        sizes = [len(e.neighbours) for e in environments]
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist()
        width = max(e.neighbours.shape[1] for e in environments)

        def padded(values: torch.Tensor) -> torch.Tensor:
            missing = width - values.shape[1]
            return torch.nn.functional.pad(values, (0, 0) * (values.ndim - 2) + (0, missing)) if missing else values

        return Environment(
            densities=torch.cat([e.densities for e in environments]),
            neighbours=torch.cat([padded(e.neighbours) + o for e, o in zip(environments, offsets)]),
            radial=torch.cat([padded(e.radial) for e in environments]),
            harmonics=torch.cat([padded(e.harmonics) for e in environments]),
        )


class DensityNetwork(ResponseNetwork):
    """Network on species densities; see the module for its equations."""

    settings: DensitySettings
    bond_radius: torch.Tensor
    bond_first: torch.Tensor
    bond_last: torch.Tensor
    density_mean: torch.Tensor
    density_scale: torch.Tensor
    coupling: torch.Tensor

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
        matrix, self._unnatural_paths = coupling(l_max, is_natural=False, wanted=self._unnatural)
        self.register_buffer("coupling", matrix, persistent=False)
        readout = []
        for block in blocks(target):
            if _is_natural(target, block.l):
                linear = torch.randn(n, n_channels) * 0.3 / math.sqrt(n_channels)
                direct = torch.zeros(n, self.n_densities + (block.l == 0))
                readout.append(torch.cat([linear, direct], 1))
            else:
                n_features = n_channels * self._unnatural_paths[self._unnatural.index(block.l)]
                readout.append(torch.randn(n, n_features) * 0.3 / math.sqrt(n_features))
        self.readout = torch.nn.ParameterList(readout)

    def environment(self, graph: Graph) -> Environment:
        """Return what the network sees of the atoms of a graph whose edges are grouped by receiver."""
        settings, species = self.settings, graph.species
        n_nodes, n_species, l_max = len(species), len(self.species), settings.l_max
        distances = graph.vectors.norm(dim=1)
        harmonics = o3.spherical_harmonics(list(range(l_max + 1)), graph.vectors, True, normalization="component")
        pair = species[graph.receivers] * n_species + species[graph.senders]
        bonded = _switch(distances / self.bond_radius.flatten()[pair])
        bonds = self._bond_functions(distances, pair) * bonded[:, None]
        far = _log_gaussians(distances, settings.cutoff, settings.n_radial) * (1 - bonded)[:, None]
        functions = torch.cat([far, bonds * _late_cutoff(distances, settings.cutoff)[:, None]], 1)
        parts = []
        for z in range(n_species):
            chosen = species[graph.senders] == z
            index, width = _columns(graph.receivers[chosen], n_nodes)
            parts.append(
                _padded(harmonics[chosen], index, n_nodes, width).transpose(1, 2)
                @ _padded(functions[chosen], index, n_nodes, width)
            )
        densities = torch.cat(parts, dim=2)
        densities[:, 0] -= self.density_mean[species]
        order = torch.tensor(_l_of(l_max), device=species.device)
        densities = densities / self.density_scale[species][:, order]
        near = distances < settings.message_cutoff
        index, width = _columns(graph.receivers[near], n_nodes)
        radial = torch.cat(
            [
                _log_gaussians(distances[near], settings.message_cutoff, settings.n_message_radial)
                * (2 * (1 - bonded[near])[:, None]),
                bonds[near] * _late_cutoff(distances[near], settings.message_cutoff)[:, None],
            ],
            1,
        )
        sender = graph.senders[near]
        by_species = radial.new_zeros(len(sender), n_species, radial.shape[1])
        by_species[torch.arange(len(sender), device=sender.device), species[sender]] = radial
        return Environment(
            densities=densities,
            neighbours=_padded(sender[:, None], index, n_nodes, width)[..., 0],
            radial=_padded(by_species.flatten(1), index, n_nodes, width),
            harmonics=_padded(harmonics[near], index, n_nodes, width),
        )

    def _bond_functions(self, distances: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        n = self.settings.n_bond
        first, last = self.bond_first.flatten()[pair], self.bond_last.flatten()[pair]
        step = ((last - first) / max(1, n - 1)).clamp(min=_NARROWEST_BOND)
        middle = (first + last) / 2
        place = torch.arange(n, dtype=distances.dtype, device=distances.device) - (n - 1) / 2
        return torch.exp(-0.5 * (((distances - middle) / step)[:, None] - place) ** 2)

    def prepare(self, graph: Graph) -> Graph:
        """Return the graph with its environment, which is then not computed again."""
        return replace(graph, environment=self.environment(graph))

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
        densities = torch.cat([self.environment(g).densities for g in graphs])
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
                        if part.stop > part.start:
                            largest = float(rms[part].max())
                            self.density_scale[z, degree, part] = largest if largest > 1e-4 else 1.0

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
        densities = environment.densities[order]
        surroundings = Environment(
            densities, back[environment.neighbours[order]], environment.radial[order], environment.harmonics[order]
        )
        x = self.embedding(densities, sizes)
        for layer in self.layers:
            x = layer(x, sizes, surroundings)
        product = _product(_normalised(self.first(x, sizes)), _normalised(self.second(x, sizes)), self.coupling)
        result = []
        start = 0
        for block in blocks(self.target):
            if _is_natural(self.target, block.l):
                l_slice = slice(block.l**2, (block.l + 1) ** 2)
                parts = [x[:, l_slice], densities[:, l_slice]]
                if block.l == 0:
                    parts.append(torch.ones_like(x[:, :1, :1]))
                features = torch.cat(parts, 2)
            else:
                n_paths = self._unnatural_paths[self._unnatural.index(block.l)]
                stop = start + n_paths * (2 * block.l + 1)
                features = _by_component(product[..., start:stop], 2 * block.l + 1)
                start = stop
            result.append(features[back])
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

    def forward(self, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """Return (n_nodes, k, n_out) of (n_nodes, k, n_in); sizes are the numbers of nodes of each species."""
        weights = self.own if self.common is None else self.common + self.own
        return torch.cat([part @ w for part, w in zip(x.split(sizes), weights)])


class SpeciesLinear(torch.nn.Module):
    """A :class:`SpeciesMatrix` for each l, (n_nodes, (l_max+1)^2, n_in) to (n_nodes, (l_max+1)^2, n_out)."""

    def __init__(
        self, n_species: int, l_max: int, n_in: int, n_out: int, is_pooled: bool = True, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.widths = [2 * l + 1 for l in range(l_max + 1)]  # noqa: E741
        self.matrices = torch.nn.ModuleList(
            [SpeciesMatrix(n_species, n_in, n_out, is_pooled, scale) for _ in range(l_max + 1)]
        )

    def forward(self, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """Return the mapped features."""
        return torch.cat([m(part, sizes) for m, part in zip(self.matrices, x.split(self.widths, dim=1))], 1)


class Product(torch.nn.Module):
    """x + gate * W (Ux (x) Vx): the body order doubles."""

    coupling: torch.Tensor

    def __init__(self, n_species: int, l_max: int, n_channels: int, n_hidden: int) -> None:
        super().__init__()
        self.l_max, self.n_channels = l_max, n_channels
        matrix, self.n_paths = coupling(l_max, is_natural=True)
        self.register_buffer("coupling", matrix, persistent=False)
        self.first = SpeciesLinear(n_species, l_max, n_channels, n_channels)
        self.second = SpeciesLinear(n_species, l_max, n_channels, n_channels)
        self.mix = torch.nn.ModuleList([SpeciesMatrix(n_species, n_channels * n, n_channels) for n in self.n_paths])
        self.hidden = SpeciesMatrix(n_species, n_channels, n_hidden)
        self.gates = SpeciesMatrix(n_species, n_hidden, n_channels * (l_max + 1))
        self.hidden_bias = torch.nn.Parameter(torch.zeros(n_hidden))
        self.gate_bias = torch.nn.Parameter(torch.zeros(n_channels * (l_max + 1)))

    def forward(self, x: torch.Tensor, sizes: list[int], environment: Environment) -> torch.Tensor:
        """Return the features (n_nodes, (l_max+1)^2, n_channels) after the product."""
        t = _product(_normalised(self.first(x, sizes)), _normalised(self.second(x, sizes)), self.coupling)
        widths = [n_paths * (2 * l + 1) for l, n_paths in enumerate(self.n_paths)]  # noqa: E741
        parts = [
            mix(_by_component(part, 2 * l + 1), sizes)
            for l, (part, mix) in enumerate(zip(t.split(widths, dim=2), self.mix))  # noqa: E741
        ]
        hidden = torch.nn.functional.silu(self.hidden(parts[0] + x[:, :1], sizes) + self.hidden_bias)
        gates = (self.gates(hidden, sizes) + self.gate_bias).view(len(x), self.l_max + 1, self.n_channels)
        gated = [torch.nn.functional.silu(parts[0]) + gates[:, :1]]
        gated += [parts[l] * (1 + gates[:, l : l + 1]) for l in range(1, self.l_max + 1)]  # noqa: E741
        return x + 0.7 * torch.cat(gated, 1)


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
        """Return the features (n_nodes, (l_max+1)^2, n_channels) after the messages."""
        sent = self.send(x, sizes)
        n, m = environment.neighbours.shape
        weights = torch.cat([r @ (self.radial + w) for r, w in zip(environment.radial.split(sizes), self.radial_own)])
        # split, not slices: the gradient of a slice fills an array of full size.
        weights_of_l = weights.view(n, m, -1).split(self.n_sent, dim=2)
        widths = [2 * l + 1 for l in range(self.l_max + 1)]  # noqa: E741
        index = environment.neighbours.flatten()
        neighbours = [s[index].view(n, m, w, self.n_sent) for s, w in zip(sent.split(widths, dim=1), widths)]
        scalars = neighbours[0][:, :, 0]
        parts = []
        for l, harmonics in enumerate(environment.harmonics.split(widths, dim=2)):  # noqa: E741
            passed = (neighbours[l] * weights_of_l[l][:, :, None]).sum(1)
            turned = harmonics.transpose(1, 2) @ (weights_of_l[self.l_max + 1 + l] * scalars)
            parts.append(torch.cat([passed, turned], 2))
        return x + self.receive(torch.cat(parts, 1), sizes)


def coupling(l_max: int, is_natural: bool, wanted: Sequence[int] | None = None) -> tuple[torch.Tensor, list[int]]:
    """Return Clebsch-Gordan coefficients of the product of two sets of features l <= l_max of natural parity.

    Args:
        l_max: highest l.
        is_natural: l1 + l2 + l3 even, else odd.
        wanted: values of l3; all up to l_max without it.

    Returns:
        ((l_max+1)^4, n) matrix whose columns are ordered by l3, component and path; number of paths for each l3.
    """
    dimension = (l_max + 1) ** 2
    columns, n_paths = [], []
    for l3 in range(l_max + 1) if wanted is None else wanted:
        paths = []
        for l1 in range(l_max + 1):
            for l2 in range(l_max + 1):
                if not abs(l1 - l2) <= l3 <= l1 + l2 or (l1 + l2 + l3) % 2 == is_natural:
                    continue
                full = torch.zeros(dimension, dimension, 2 * l3 + 1)
                full[l1 * l1 : (l1 + 1) ** 2, l2 * l2 : (l2 + 1) ** 2] = o3.wigner_3j(
                    l1, l2, l3, dtype=full.dtype
                ) * math.sqrt(2 * l3 + 1)
                paths.append(full.reshape(dimension**2, -1))
        if paths:
            columns.append(torch.stack(paths, 2).flatten(1))
        n_paths.append(len(paths))
    return torch.cat(columns, 1) if columns else torch.zeros(dimension**2, 0), n_paths


def _product(first: torch.Tensor, second: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return (n_nodes, n_channels, n_columns) products of (n_nodes, (l_max+1)^2, n_channels) features."""
    a, b = first.transpose(1, 2), second.transpose(1, 2)
    return ((a[..., :, None] * b[..., None, :]).flatten(2)) @ matrix


def _by_component(product: torch.Tensor, n_components: int) -> torch.Tensor:
    """Return (n_nodes, 2l+1, n_channels * n_paths) of (n_nodes, n_channels, (2l+1) * n_paths)."""
    n, n_channels = product.shape[:2]
    return product.reshape(n, n_channels, n_components, -1).transpose(1, 2).flatten(2)


def _normalised(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(1 + x.pow(2).mean((1, 2), keepdim=True))


def _is_natural(target: str, degree: int) -> bool:
    return degree % 2 == (0 if target == "apt" else 1)


def _l_of(l_max: int) -> list[int]:
    return [l for l in range(l_max + 1) for _ in range(2 * l + 1)]  # noqa: E741


def _switch(ratio: torch.Tensor) -> torch.Tensor:
    """Return 1 for bonded pairs, 0 for others."""
    return 0.5 + 0.5 * torch.cos(math.pi * ((ratio - _BOND_STARTS) / (_BOND_ENDS - _BOND_STARTS)).clamp(0, 1))


def _log_gaussians(distances: torch.Tensor, cutoff: float, n: int) -> torch.Tensor:
    """Return (n_edges, n) Gaussians in log r times cosine cutoff over r."""
    step = math.log(cutoff / _SHORTEST) / n
    place = torch.arange(n, dtype=distances.dtype, device=distances.device)
    x = torch.log(distances / _SHORTEST) / step
    envelope = 0.5 * (1 + torch.cos(math.pi * (distances / cutoff).clamp(max=1))) / distances
    return torch.exp(-0.5 * (x[:, None] - place) ** 2) * envelope[:, None]


def _late_cutoff(distances: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Return 1 up to 0.8 of the cutoff, then smoothly 0: bonds of heavy atoms may be longer than a cutoff."""
    return 0.5 + 0.5 * torch.cos(math.pi * ((distances / cutoff - 0.8) / 0.2).clamp(0, 1))


def _columns(receivers: torch.Tensor, n_nodes: int) -> tuple[torch.Tensor, int]:
    """Return the place of each edge in a matrix (n_nodes, width) whose rows are receivers, and the width."""
    counts = torch.bincount(receivers, minlength=n_nodes)
    starts = torch.cumsum(counts, 0) - counts
    width = max(1, int(counts.max())) if len(counts) else 1
    return receivers * width + torch.arange(len(receivers), device=receivers.device) - starts[receivers], width


def _padded(values: torch.Tensor, index: torch.Tensor, n_nodes: int, width: int) -> torch.Tensor:
    matrix = values.new_zeros(n_nodes * width, values.shape[1])
    matrix[index] = values
    return matrix.view(n_nodes, width, -1)
