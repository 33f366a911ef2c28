"""The network of Schienbein (2023), APTs of liquid water (J. Chem. Theory Comput. 19, 705): e3nn's ``SimpleNetwork``.

Kept as a measure for later networks. Each species feeds in as one-hot scalars; all hidden l have both parities and the
same number of channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from e3nn import o3
from e3nn.math import soft_one_hot_linspace

from mimyria_wf.graphs import Graph
from mimyria_wf.irreps import target_irreps
from mimyria_wf.presets import SimpleSettings
from mimyria_wf.response_network import ResponseNetwork
from mimyria_wf.tensor_product import ChannelwiseTensorProduct


class SimpleNetwork(ResponseNetwork):
    """e3nn's ``SimpleNetwork`` (v2106) without pooling, on a periodic neighbour list."""

    settings: SimpleSettings

    def __init__(
        self,
        target: str,
        settings: SimpleSettings,
        species: Sequence[int],
        n_neighbours: float,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        from e3nn.nn.models.v2106 import gate_points_networks as e3nn_networks

        super().__init__(target, settings, species, n_neighbours, metadata)
        simple = e3nn_networks.SimpleNetwork(
            irreps_in=f"{len(self.species)}x0e",
            irreps_out=target_irreps(target),
            max_radius=settings.cutoff,
            num_neighbors=self.n_neighbours,
            num_nodes=1.0,
            mul=settings.n_channels,
            layers=settings.n_layers,
            lmax=settings.l_max,
            pool_nodes=False,
        )
        self.n_radial = simple.number_of_basis
        self.message_passing = simple.mp
        for layer in self.message_passing.layers:
            convolution = getattr(layer, "first", layer)
            convolution.tp = ChannelwiseTensorProduct(convolution.tp)

    def standardised(self, graph: Graph) -> torch.Tensor:
        """Return the standardised irreducible components of each atom, (n_nodes, 9 or 18)."""
        degrees = list(range(self.settings.l_max + 1))
        harmonics = o3.spherical_harmonics(degrees, graph.vectors, True, normalization="component")
        radial = soft_one_hot_linspace(
            graph.vectors.norm(dim=1), 0.0, self.cutoff, self.n_radial, basis="smooth_finite", cutoff=True
        ).mul(self.n_radial**0.5)
        features = torch.nn.functional.one_hot(graph.species, len(self.species)).to(graph.vectors.dtype)
        return self.message_passing(
            features, torch.ones_like(features[:, :1]), graph.senders, graph.receivers, harmonics, radial
        )
