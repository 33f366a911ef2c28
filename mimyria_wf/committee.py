"""Committees: networks with many last layers, and the uncertainty of their predictions.

The last layer of a density network is linear, species by species and block by block: a standardised component of
block ``b`` of an atom of species ``z`` is ``y_m = f_m . w_zb`` with features ``f`` (2 l_b + 1, n_features). How firmly
the training labels hold it gives a Gaussian posterior of the weights (Bigi, Chong, Ceriotti and Grasselli, A prediction
rigidity formalism for low-cost uncertainties in trained neural networks, 2024),

    ``w_zb ~ N(w_fit, alpha_zb^2 (G_zb + zeta_zb^2 1)^-1)``,   ``G_zb = sum_i,m f_im f_im^T`` over training labels,

and thus ``Cov(y_m, y_m') = alpha^2 f_m^T (G + zeta^2 1)^-1 f_m'``. The fitted weights stay the prediction. Members are
samples of the weights whose mean is the fit, drawn once: a member is one function of the structure, so its error along
a trajectory is as coherent in time as that of a network is. All members share the features and cost a matrix product.

What alpha stands for. The posterior is that of last layers only; alpha is chosen so that it has the size of the errors
on labels that were not fitted. So it carries the error of the trunk on average, but not where the trunk fails while its
features look familiar. Held-out labels must be unknown to the trunk. Where there are none, folds of the training labels
are left out of the last layer alone (ridge regression) while the trunk has seen them: such errors, and hence the
uncertainties, are too small, which the record of the calibration says (``trunk_saw_held_out``).
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from ase.data import chemical_symbols

from mimyria_wf.errors import LabelError, ModelError
from mimyria_wf.graphs import Graph, batches, join
from mimyria_wf.irreps import blocks, change_of_basis, from_irreps, tensor_shape, to_irreps
from mimyria_wf.labels import LabelledSnapshot, tensors_of, trajectory_of

Array = npt.NDArray[Any]
RIDGES = tuple(10.0**k for k in range(-7, 1))
"""Values of zeta^2 that are tried, in units of the mean eigenvalue of G."""
N_FOLDS = 5
_PRIOR_OBSERVATIONS = 20.0
"""Weight of the alpha of all species in that of one: a rare species has few held-out components of its own."""
_LEVELS = {"68": 1.0, "95": 1.959964}
"""Half widths of the central intervals whose coverage is counted, in standard deviations."""
_FLOOR = 1e-12
_BATCH_ATOMS = 400
"""So many atoms go through the network at once."""
_KEPT_ATOMS = 5000
"""Of no more atoms the features are kept in memory: some 50 MB."""


class LinearReadout(Protocol):
    """A network whose last layer is linear in its features.

    Attributes:
        readout: for each irreducible block, (n_species, n_features) weights.
        posterior: of these weights, None before :func:`fit_posterior`.
    """

    target: str
    species: tuple[int, ...]
    mean: torch.Tensor
    scale: torch.Tensor
    readout: Any
    posterior: "Posterior | None"

    def graph(self, atoms: Atoms) -> Graph:
        """Return the graph of a snapshot."""
        ...

    def readout_features(self, graph: Graph) -> Sequence[torch.Tensor]:
        """Return (n_nodes, 2 l + 1, n_features) for each block."""
        ...

    def components(self, graph: Graph) -> torch.Tensor:
        """Return the irreducible components of each atom, (n_nodes, 9 or 18) [unit of the target]."""
        ...


@dataclass(frozen=True)
class Posterior:
    """What the training labels say about the last layer.

    Attributes:
        grams: for each block, (n_species, n_features, n_features) G, float64.
        ridges: (n_species, n_blocks) zeta^2, float64.
        alphas: (n_species, n_blocks) calibration, float64.
        n_atoms: (n_species,) atoms in the training labels.
        calibration: JSON-able record of how alpha was found.
    """

    grams: tuple[torch.Tensor, ...]
    ridges: torch.Tensor
    alphas: torch.Tensor
    n_atoms: torch.Tensor
    calibration: Mapping[str, Any] = field(default_factory=dict)

    def precision(self, species: int, block: int) -> torch.Tensor:
        """Return G + zeta^2 1 of a species and a block, (n_features, n_features)."""
        gram = self.grams[block][species]
        return gram + self.ridges[species, block] * torch.eye(len(gram), dtype=gram.dtype)

    def factor(self, species: int, block: int) -> torch.Tensor:
        """Return alpha L^-T with L L^T = G + zeta^2 1: its square is the covariance of the weights."""
        lower = torch.linalg.cholesky(self.precision(species, block))
        inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype), upper=False)
        return self.alphas[species, block] * inverse.T

    def offsets(self, n_members: int, seed: int = 0) -> list[torch.Tensor]:
        """Return the members' weights less the fitted ones, for each block (n_members, n_species, n_features).

        They sum to zero over members, and each has the covariance of the posterior.

        Args:
            n_members: at least 2.
            seed: of the samples; one seed gives the same members for every structure.
        """
        if n_members < 2:
            raise ModelError(f"a committee needs at least 2 members, got {n_members}")
        result = []
        for block, grams in enumerate(self.grams):
            rows = []
            for species in range(len(grams)):
                random = np.random.default_rng([seed, block, species]).normal(size=(n_members, grams.shape[1]))
                random = (random - random.mean(axis=0)) * math.sqrt(n_members / (n_members - 1))
                rows.append(torch.from_numpy(random) @ self.factor(species, block).T)
            result.append(torch.stack(rows, dim=1))
        return result

    def to_plain(self) -> dict[str, Any]:
        """Return tensors and plain values for a model file."""
        return {
            "grams": list(self.grams),
            "ridges": self.ridges,
            "alphas": self.alphas,
            "n_atoms": self.n_atoms,
            "calibration": dict(self.calibration),
        }

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> "Posterior":
        """Return the posterior that :meth:`to_plain` wrote."""
        return cls(**{**content, "grams": tuple(content["grams"])})


def has_linear_readout(network: Any) -> bool:
    """Tell whether a network has a last layer that a committee can be drawn from."""
    return hasattr(network, "readout") and hasattr(network, "readout_features")


def require_posterior(network: Any, purpose: str = "a committee") -> Posterior:
    """Return the posterior of a network's last layer.

    Raises:
        ModelError: the network has no linear last layer, or was saved without its posterior.
    """
    if not has_linear_readout(network):
        kind = getattr(getattr(network, "settings", None), "kind", type(network).__name__)
        raise ModelError(
            f"{purpose} needs a network whose last layer is linear in its features, but this {network.target} model is "
            f"of kind {kind}; train with the preset default or accurate"
        )
    posterior: Posterior | None = getattr(network, "posterior", None)
    if posterior is None:
        raise ModelError(
            f"{purpose} needs the posterior of the last layer, which this {network.target} model lacks; "
            "train it anew with this version"
        )
    return posterior


class Committee:
    """Members of a network: samples of its last layer.

    Args:
        network: with its posterior.
        n_members: number of samples, at least 2.
        seed: of the samples.

    Raises:
        ModelError: see :func:`require_posterior`.
    """

    def __init__(self, network: LinearReadout, n_members: int, seed: int = 0) -> None:
        posterior = require_posterior(network)
        self.network = network
        self.n_members = n_members
        self._blocks = blocks(network.target)
        self._weights = [
            torch.cat([torch.zeros_like(offset[:1]), offset]).add(fitted.detach().double().cpu()).to(fitted)
            for offset, fitted in zip(posterior.offsets(n_members, seed), network.readout, strict=True)
        ]

    def components(self, graph: Graph) -> torch.Tensor:
        """Return the components of prediction and members, (1 + n_members, n_nodes, 9 or 18) [unit of the target]."""
        with torch.no_grad():
            return self.from_features(self.network.readout_features(graph), graph.species)

    def from_features(self, features: Sequence[torch.Tensor], species: torch.Tensor) -> torch.Tensor:
        """Return what :meth:`components` does from features at hand; the first row is the prediction.

        Args:
            features: for each block (n_nodes, 2 l + 1, n_features).
            species: (n_nodes,) index into the model's species.
        """
        mean, scale = self.network.mean[species], self.network.scale[species]
        result = mean.new_empty(1 + self.n_members, *mean.shape)
        for index in range(len(self.network.species)):
            of_species = torch.nonzero(species == index)[:, 0]
            if not len(of_species):
                continue
            for block, values, weights in zip(self._blocks, features, self._weights, strict=True):
                found = values[of_species] @ weights[:, index].T
                result[:, of_species, block.start : block.stop] = found.permute(2, 0, 1)
        return result * scale + mean


def component_variances(network: LinearReadout, graph: Graph) -> torch.Tensor:
    """Return the variances of the irreducible components, (n_nodes, 9 or 18) [unit of the target squared], float64."""
    return torch.cat([factor.square().sum(dim=2) for factor in _spread(network, graph)], dim=1)


def tensor_deviations(network: LinearReadout, graph: Graph) -> torch.Tensor:
    """Return the standard deviation of each tensor element, without sampling.

    ``Var(T_e) = sum_b |sum_m B_me alpha L^-1 f_bm|^2`` with the rows ``B`` of the change of basis: components of a
    block are correlated, blocks are not.

    Returns:
        (n_nodes, 3, 3) [e] or (n_nodes, 3, 3, 3) [e^2 a0/E_h], float64.
    """
    basis = change_of_basis(network.target)
    variance = torch.zeros(len(graph.species), basis.shape[1], dtype=torch.float64)
    for block, factor in zip(blocks(network.target), _spread(network, graph)):
        rows = torch.einsum("nmf,me->nef", factor, basis[block.start : block.stop])
        variance += rows.square().sum(dim=2)
    return variance.sqrt().reshape(len(variance), *tensor_shape(network.target))


def relative_uncertainties(network: LinearReadout, graph: Graph) -> Array:
    """Return the uncertainty of each snapshot by species, relative to the spread of the training labels.

    Root of the mean variance over the species' atoms and components, over that of the labels about their mean; 1 says
    that the network knows as little as the species' mean tensor.

    Returns:
        (n_snapshots, n_species), NaN where a snapshot lacks the species.
    """
    variances = component_variances(network, graph).sum(dim=1) / label_spreads(network)[graph.species].square()
    n_species = len(network.species)
    place = graph.snapshot * n_species + graph.species
    length = graph.n_snapshots * n_species
    sums = torch.zeros(length, dtype=torch.float64).index_add_(0, place, variances)
    counts = torch.bincount(place, minlength=length)
    return (sums / counts).sqrt().reshape(graph.n_snapshots, n_species).numpy()


def label_spreads(network: LinearReadout) -> torch.Tensor:
    """Return the norm of the deviation of the training labels from their mean by species, (n_species,) float64."""
    return network.scale.detach().double().cpu().square().sum(dim=1).sqrt()


def _spread(network: LinearReadout, graph: Graph) -> Iterator[torch.Tensor]:
    """Yield for each block scale * alpha L^-1 f (n_nodes, 2 l + 1, n_features), whose squares sum to variances."""
    posterior = require_posterior(network, "an uncertainty")
    with torch.no_grad():
        features = network.readout_features(graph)
    scale = network.scale.detach().double().cpu()
    species = graph.species.cpu()
    for index, (block, values) in enumerate(zip(blocks(network.target), features, strict=True)):
        found = values.detach().double().cpu()
        result = torch.empty_like(found)
        for z in range(len(network.species)):
            of_species = species == z
            result[of_species] = found[of_species] @ posterior.factor(z, index) * scale[z, block.start]
        yield result


def snapshot_grams(network: LinearReadout, graph: Graph) -> list[torch.Tensor]:
    """Return ``sum_i,m f_im f_im^T`` of all nodes of a graph, for each block (n_species, n_features, n_features)."""
    with torch.no_grad():
        features = network.readout_features(graph)
    return [
        torch.stack(
            [
                (rows := values[graph.species == z].double().cpu().reshape(-1, values.shape[2])).T @ rows
                for z in range(len(network.species))
            ]
        )
        for values in features
    ]


def fit_posterior(
    network: LinearReadout,
    labels: Sequence[LabelledSnapshot],
    held_out: Sequence[LabelledSnapshot] = (),
    graphs: Sequence[Graph] | None = None,
    held_out_graphs: Sequence[Graph] | None = None,
) -> Posterior:
    """Return the posterior of the last layer of a trained network.

    zeta^2 has the same ratio to the mean eigenvalue of G for all species and blocks, the one with the highest
    likelihood of the held-out components; alpha^2 is their mean square of error over uncertainty, species by species
    and block by block, drawn towards that of all species where a species has few. Two passes over the labels keep
    nothing of a snapshot but sums.

    Args:
        network: trained; its weights are the posterior's mean.
        labels: that it was trained on.
        held_out: that neither trunk nor last layer has seen. Without any, folds of the training labels (whole
            trajectories if there are enough) are left out of the last layer, which gives uncertainties that are too
            small, see the module's text, with one alpha for all species and blocks.
        graphs: of the labels, if they are known.
        held_out_graphs: of the held-out labels, if they are known.

    Raises:
        ModelError: the network has no linear last layer.
        LabelError: there are no labels.
    """
    if not has_linear_readout(network):
        require_posterior(network)
    if not labels:
        raise LabelError("a posterior needs the training labels, got none")
    n_species, n_blocks = len(network.species), len(blocks(network.target))
    folds = [np.zeros(len(s.atoms), dtype=int) for s in labels] if held_out else _folds(labels)
    observed = _Observations(network, labels, folds, graphs)
    grams, moments = _normal_equations(network, observed)
    judging = _Observations(network, held_out, None, held_out_graphs) if held_out else observed
    totals = [gram.sum(axis=1) for gram in grams]
    judges: dict[tuple[int, int, int], _Judge] = {}
    sums = np.zeros((n_species, n_blocks, 3, len(RIDGES)))
    for z, b, k, features, reference in judging:
        if (z, b, k) not in judges:
            fitted = network.readout[b][z].detach().double().cpu().numpy() if held_out else None
            # what a fold is judged by must not know it
            own = 0.0 if held_out else grams[b][z, k]
            moment = moments[b][z].sum(axis=0) - moments[b][z, k]
            judges[z, b, k] = _Judge(totals[b][z] - own, moment, _mean_eigenvalue(totals[b][z]), fitted)
        sums[z, b] += judges[z, b, k].judge(features, reference)
    squares, logarithms, counts = np.moveaxis(sums, 2, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihoods = -0.5 * (logarithms + counts * np.log(squares / counts))
    best = int(np.argmax(np.where(counts > 0, likelihoods, 0.0).sum(axis=(0, 1))))
    squares, counts = squares[..., best], counts[..., best]
    if held_out:
        pooled = squares.sum(axis=0) / counts.sum(axis=0)
        alphas = np.sqrt((squares + _PRIOR_OBSERVATIONS * pooled) / (counts + _PRIOR_OBSERVATIONS))
    else:  # how well a trunk knows its labels by heart differs between species and says nothing of other labels
        alphas = np.full(squares.shape, np.sqrt(squares.sum() / counts.sum()))
    return Posterior(
        grams=tuple(torch.from_numpy(total) for total in totals),
        ridges=RIDGES[best] * _mean_eigenvalues(totals),
        alphas=torch.from_numpy(alphas),
        n_atoms=_count_atoms(network, labels),
        calibration={
            "method": "held-out labels" if held_out else f"{grams[0].shape[1]} folds of the last layer",
            "trunk_saw_held_out": not held_out,
            "n_training": len(labels),
            "n_held_out": len(held_out) if held_out else len(labels),
            "ridge": RIDGES[best],
        },
    )


def transferred_posterior(
    network: LinearReadout,
    labels: Sequence[LabelledSnapshot],
    other: LinearReadout,
    calibration: Mapping[str, Any],
    graphs: Sequence[Graph] | None = None,
) -> Posterior:
    """Return the posterior of a network with the alphas and the ratio of zeta^2 of another one.

    The other one has the same architecture and recipe but was trained on part of the labels only, so that the rest
    could calibrate it. alpha hardly depends on the number of labels, which G accounts for.

    Args:
        network: trained on all labels.
        labels: all of them.
        other: with its posterior.
        calibration: record to keep.
        graphs: of the labels, if they are known.
    """
    source = require_posterior(other)
    grams, _ = _normal_equations(network, _Observations(network, labels, None, graphs))
    totals = [gram[:, 0] for gram in grams]
    # alphas are in units of the network's own scale, which a warm start keeps from its initial model
    starts = [block.start for block in blocks(network.target)]
    of_other = source.alphas * other.scale[:, starts].double()
    rows = [
        (of_other[other.species.index(z)] if z in other.species else of_other.max(dim=0).values)
        / network.scale[k, starts].double()
        for k, z in enumerate(network.species)
    ]
    return Posterior(
        grams=tuple(torch.from_numpy(total) for total in totals),
        ridges=source.calibration["ridge"] * _mean_eigenvalues(totals),
        alphas=torch.stack(rows),
        n_atoms=_count_atoms(network, labels),
        calibration={**source.calibration, **calibration, "n_training": len(labels)},
    )


def _normal_equations(network: LinearReadout, observed: "_Observations") -> tuple[list[Array], list[Array]]:
    """Return G (n_species, n_folds, n_features, n_features) and sum f y, by block."""
    n_species, n_folds = len(network.species), observed.n_folds
    widths = [weights.shape[1] for weights in network.readout]
    grams = [np.zeros((n_species, n_folds, width, width)) for width in widths]
    moments = [np.zeros((n_species, n_folds, width)) for width in widths]
    for z, b, k, features, reference in observed:
        grams[b][z, k] += features.T @ features
        moments[b][z, k] += features.T @ reference
    return grams, moments


def _count_atoms(network: LinearReadout, labels: Sequence[LabelledSnapshot]) -> torch.Tensor:
    """Return the number of atoms of each species, (n_species,)."""
    numbers = np.concatenate([snapshot.atoms.numbers for snapshot in labels])
    return torch.from_numpy(np.array([(numbers == z).sum() for z in network.species]))


class _Judge:
    """Errors and uncertainties of labels that G does not hold, for all values of zeta^2 at once.

    Args:
        gram: (n_features, n_features) G.
        moment: (n_features,) sum_i,m f_im y_im.
        eigenvalue: unit of zeta^2.
        fitted: (n_features,) weights; None: those of a ridge regression.
    """

    def __init__(self, gram: Array, moment: Array, eigenvalue: float, fitted: Array | None) -> None:
        values, self.vectors = np.linalg.eigh(gram)
        self.denominators = np.maximum(values, 0.0)[:, None] + eigenvalue * np.array(RIDGES)
        if fitted is None:
            self.weights = (self.vectors.T @ moment)[:, None] / self.denominators
        else:
            self.weights = np.repeat((self.vectors.T @ fitted)[:, None], len(RIDGES), axis=1)

    def judge(self, features: Array, reference: Array) -> Array:
        """Return sum of error^2 over variance, sum of log variance and count, (3, n_ridges), at alpha = 1."""
        rotated = features @ self.vectors
        errors = reference[:, None] - rotated @ self.weights
        variances = rotated**2 @ (1 / self.denominators) + _FLOOR
        return np.array(
            [(errors**2 / variances).sum(axis=0), np.log(variances).sum(axis=0), [len(errors)] * len(RIDGES)]
        )


def _mean_eigenvalue(gram: Array) -> float:
    return float(np.trace(gram)) / len(gram) or 1.0


def _mean_eigenvalues(grams: Sequence[Array]) -> torch.Tensor:
    """Return (n_species, n_blocks)."""
    return torch.tensor([[_mean_eigenvalue(gram) for gram in rows] for rows in zip(*grams)], dtype=torch.float64)


class _Observations:
    """Species, block, fold, features (n, n_features) and standardised references (n,) of snapshots, batch by batch.

    Features of few snapshots are kept for the second time that they are asked for.

    Args:
        network: with a linear last layer.
        labels: the snapshots.
        folds: (n_atoms,) of each snapshot's atoms; None for fold 0.
        graphs: of the snapshots, if they are known.
    """

    def __init__(
        self,
        network: LinearReadout,
        labels: Sequence[LabelledSnapshot],
        folds: Sequence[Array] | None,
        graphs: Sequence[Graph] | None,
    ) -> None:
        self.network, self.labels, self.folds, self.graphs = network, labels, folds, graphs
        self.n_folds = 1 if folds is None else max(int(fold.max()) for fold in folds) + 1
        self._kept: list[tuple[int, int, int, Array, Array]] | None = None
        self._keeps = sum(len(s.atoms) for s in labels) <= _KEPT_ATOMS

    def __iter__(self) -> Iterator[tuple[int, int, int, Array, Array]]:
        if not self._keeps:
            return self._computed()
        if self._kept is None:
            self._kept = list(self._computed())
        return iter(self._kept)

    def _computed(self) -> Iterator[tuple[int, int, int, Array, Array]]:
        for batch in batches([len(s.atoms) for s in self.labels], _BATCH_ATOMS):
            folds = None if self.folds is None else np.concatenate(self.folds[batch])
            known = None if self.graphs is None else self.graphs[batch]
            yield from _observations(self.network, self.labels[batch], folds, known)


def _observations(
    network: LinearReadout,
    snapshots: Sequence[LabelledSnapshot],
    folds: Array | None,
    graphs: Sequence[Graph] | None = None,
) -> Iterator[tuple[int, int, int, Array, Array]]:
    """Yield species, block, fold, features (n, n_features) and standardised references (n,) of some snapshots.

    Args:
        network: with a linear last layer.
        snapshots: taken at once.
        folds: (n_atoms,) of all their atoms; None for fold 0.
        graphs: of the snapshots, if they are known.
    """
    graph = join(graphs or [network.graph(snapshot.atoms) for snapshot in snapshots])
    with torch.no_grad():
        features = [values.double().cpu().numpy() for values in network.readout_features(graph)]
    species = graph.species.cpu().numpy()
    mean, scale = (t.detach().double().cpu().numpy()[species] for t in (network.mean, network.scale))
    tensors = np.concatenate([tensors_of(snapshot, network.target) for snapshot in snapshots])
    references = (to_irreps(network.target, tensors) - mean) / scale
    group = np.zeros(len(species), dtype=int) if folds is None else folds
    for z, k in sorted(set(zip(species.tolist(), group.tolist()))):
        chosen = (species == z) & (group == k)
        for b, block in enumerate(blocks(network.target)):
            rows = features[b][chosen]
            yield z, b, k, rows.reshape(-1, rows.shape[2]), references[chosen, block.start : block.stop].ravel()


def _folds(labels: Sequence[LabelledSnapshot]) -> list[Array]:
    """Return the fold of each atom of each snapshot: by trajectory, by snapshot, or for a lone snapshot by atom."""
    if len(labels) == 1:
        return [np.arange(len(labels[0].atoms)) % N_FOLDS]
    names = [trajectory_of(s) for s in labels]
    known = sorted({name for name in names if name is not None})
    if None not in names and len(known) >= N_FOLDS:
        return [np.full(len(s.atoms), known.index(str(name)) % N_FOLDS) for s, name in zip(labels, names)]
    # neighbours in time are alike: stretches, not every fifth snapshot
    n = min(N_FOLDS, len(labels))
    return [np.full(len(s.atoms), k * n // len(labels)) for k, s in enumerate(labels)]


@dataclass(frozen=True)
class Reliability:
    """How uncertainties compare with the errors on labels that were not used in any way.

    Attributes:
        coverage: share of tensor elements whose error is within the interval of 68 and of 95 %.
        rms_ratio: root mean square of error over uncertainty; 1 is right, more is too confident.
        by_species: the same by chemical symbol, and by element of the tensor such as ``xy``.
        calibration: how alpha was found.
    """

    coverage: Mapping[str, float]
    rms_ratio: float
    by_species: Mapping[str, Any]
    calibration: Mapping[str, Any]

    @property
    def is_calibrated(self) -> bool:
        """Whether 68 % intervals hold 58 to 78 % and 95 % intervals 90 to 99 %, and rms_ratio is within 1.25 of 1."""
        return (
            0.58 <= self.coverage["68"] <= 0.78
            and 0.90 <= self.coverage["95"] <= 0.99
            and 1 / 1.25 <= self.rms_ratio <= 1.25
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "is_calibrated": self.is_calibrated,
            "coverage": dict(self.coverage),
            "rms_ratio": self.rms_ratio,
            "by_species": dict(self.by_species),
            "calibration": dict(self.calibration),
        }


def reliability(network: LinearReadout, labels: Sequence[LabelledSnapshot]) -> Reliability:
    """Hold the uncertainties of a network against its errors on labels.

    Args:
        network: with its posterior.
        labels: test labels: not fitted, and not used to find alpha.

    Raises:
        ModelError: the network has no posterior.
        LabelError: no labels.
    """
    posterior = require_posterior(network, "an uncertainty")
    if not labels:
        raise LabelError("no labels to hold uncertainties against")
    ratios, numbers = [], []
    for snapshot in labels:
        graph = network.graph(snapshot.atoms)
        with torch.no_grad():
            found = from_irreps(network.target, network.components(graph).double().cpu()).numpy()
        deviations = tensor_deviations(network, graph).numpy()
        error = found - tensors_of(snapshot, network.target)
        ratios.append((error / np.maximum(deviations, _FLOOR)).reshape(len(error), -1))
        numbers.append(snapshot.atoms.numbers)
    ratio, number = np.concatenate(ratios), np.concatenate(numbers)
    names = ["".join(c) for c in itertools.product("xyz", repeat=len(tensor_shape(network.target)))]
    by_species = {
        chemical_symbols[z]: _record(ratio[number == z])
        | {"by_component": {name: _record(ratio[number == z, c]) for c, name in enumerate(names)}}
        for z in np.unique(number)
    }
    whole = _record(ratio)
    return Reliability(whole["coverage"], whole["rms_ratio"], by_species, posterior.calibration)


def _record(ratio: Array) -> dict[str, Any]:
    coverage = {level: float((np.abs(ratio) <= width).mean()) for level, width in _LEVELS.items()}
    return {"coverage": coverage, "rms_ratio": float(np.sqrt((ratio**2).mean()))}
