"""Equivariant message-passing networks for APTs and PGTs, after Section 2.5 of Schienbein (2026).

The layers are e3nn's ``MessagePassing`` (v2106).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from e3nn import o3
from e3nn.math import soft_one_hot_linspace

from mimyria_wf.graphs import Graph
from mimyria_wf.irreps import target_irreps
from mimyria_wf.presets import MessagePassingSettings
from mimyria_wf.response_network import ResponseNetwork
from mimyria_wf.tensor_product import ChannelwiseTensorProduct


class MessagePassingNetwork(ResponseNetwork):
    """e3nn's gated message passing with the target's irreps as output."""

    settings: MessagePassingSettings

    def __init__(
        self,
        target: str,
        settings: MessagePassingSettings,
        species: Sequence[int],
        n_neighbours: float,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        from e3nn.nn.models.v2106.gate_points_message_passing import MessagePassing

        super().__init__(target, settings, species, n_neighbours, metadata)
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
