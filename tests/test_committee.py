"""Committees of last layers: what members are, and whether their uncertainties are those of the errors."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import ase
import numpy as np
import pytest
import torch
from e3nn import o3

from mimyria_wf import committee
from mimyria_wf.committee import (
    Committee,
    component_variances,
    fit_posterior,
    relative_uncertainties,
    reliability,
    snapshot_grams,
    tensor_deviations,
)
from mimyria_wf.errors import LabelError, ModelError
from mimyria_wf.graphs import Graph, join
from mimyria_wf.irreps import blocks, from_irreps
from mimyria_wf.labels import LabelledSnapshot
from mimyria_wf.network import build_network, load_model, save_model
from mimyria_wf.presets import DensitySettings, MessagePassingSettings, TrainingSettings
from mimyria_wf.response_network import ResponseNetwork, construction
from mimyria_wf.selection import select_by_uncertainty
from mimyria_wf.training import TrainingResult, calibration_split, train

N_FEATURES = 8


class FixedFeatures(ResponseNetwork):
    """Fixed features of the neighbours' positions and a linear last layer: a network whose posterior is exact."""

    def __init__(self, target: str = "apt", species: Sequence[int] = (1, 8), seed: int = 0) -> None:
        super().__init__(target, MessagePassingSettings(multiplicities=(1,), cutoff=4.0), species, 4.0)
        random = np.random.default_rng(seed)
        self.radial = torch.from_numpy(random.uniform(0.8, 3.5, (len(self.species), N_FEATURES)))
        self.shift = torch.from_numpy(random.normal(size=N_FEATURES))
        self.readout = torch.nn.ParameterList(
            torch.from_numpy(random.normal(size=(len(self.species), N_FEATURES))) for _ in blocks(target)
        )
        self.mean[:, 0] = torch.tensor([0.3, -0.6, -0.9])[: len(self.species)]
        self.scale *= torch.tensor([[0.2], [0.5], [0.4]])[: len(self.species)]

    def readout_features(self, graph: Graph) -> list[torch.Tensor]:
        lengths = graph.vectors.norm(dim=1, keepdim=True)
        radial = torch.exp(-2 * (lengths - self.radial[graph.species[graph.senders]]) ** 2)
        features = []
        for block in blocks(self.target):
            harmonics = o3.spherical_harmonics(block.l, graph.vectors, True)
            edges = harmonics[:, :, None] * radial[:, None, :]
            summed = edges.new_zeros(len(graph.species), *edges.shape[1:]).index_add_(0, graph.receivers, edges)
            features.append(summed + self.shift if block.l == 0 else summed)
        return features

    def standardised(self, graph: Graph) -> torch.Tensor:
        features = self.readout_features(graph)
        rows = (w[graph.species] for w in self.readout)
        return torch.cat([torch.einsum("nmf,nf->nm", f, row) for f, row in zip(features, rows)], dim=1)


def fixed_network(target: str = "apt", seed: int = 0, species: Sequence[int] = (1, 8)) -> FixedFeatures:
    with construction(0):
        return FixedFeatures(target, species, seed=seed).double().eval()


def structure(random: np.random.Generator, numbers: Sequence[int] = (8, 1, 1, 8, 1, 1)) -> ase.Atoms:
    rest = np.array([[0, 0, 0], [0, 0.8, 0.6], [0, -0.8, 0.6], [2.8, 0, 0], [3.3, 0.8, 0.2], [3.2, -0.6, 0.5]])
    return ase.Atoms(numbers, positions=rest[: len(numbers)] + random.normal(scale=0.15, size=(len(numbers), 3)))


def labelled(network: ResponseNetwork, n: int, seed: int, noise: float = 0.0) -> list[LabelledSnapshot]:
    """Return snapshots with the network's own tensors, and noise in units of the standardised components."""
    random = np.random.default_rng(seed)
    result = []
    for k in range(n):
        atoms = structure(random)
        atoms.info["snapshot"] = f"nve-{k // 3}/{k}"
        with torch.no_grad():
            graph = network.graph(atoms)
            components = network.components(graph)
            components += network.scale[graph.species] * torch.from_numpy(random.normal(size=components.shape)) * noise
            tensors = from_irreps(network.target, components).numpy()
        result.append(LabelledSnapshot(atoms, **{network.target: tensors}))
    return result


def fitted(labels: Sequence[LabelledSnapshot], target: str = "apt") -> FixedFeatures:
    """Return a network with last layers of least squares."""
    network = fixed_network(target)
    for b, weights in enumerate(network.readout):
        for z in range(len(network.species)):
            rows = [o[3:] for s in labels for o in committee._observations(network, [s], None) if o[:2] == (z, b)]
            features, references = (np.concatenate(parts) for parts in zip(*rows))
            with torch.no_grad():
                weights[z] = torch.from_numpy(np.linalg.lstsq(features, references, rcond=None)[0])
    return network


@pytest.fixture(scope="module", params=["apt", "pgt"])
def trained(request: pytest.FixtureRequest) -> FixedFeatures:
    labels = labelled(fixed_network(request.param, seed=0), 24, seed=1, noise=0.3)
    network = fitted(labels, request.param)
    network.posterior = fit_posterior(network, labels, labelled(fixed_network(request.param, seed=0), 6, seed=2))
    return network


def test_members_are_centred_on_the_prediction(trained):
    graph = join([trained.graph(structure(np.random.default_rng(k))) for k in range(2)])
    found = Committee(trained, 7, seed=3).components(graph)
    assert found.shape == (8, 12, 9 if trained.target == "apt" else 18)
    with torch.no_grad():
        torch.testing.assert_close(found[0], trained.components(graph))
    torch.testing.assert_close(found[1:].mean(dim=0), found[0], rtol=0, atol=1e-12)  # round-off
    assert (found[1:] - found[0]).abs().min() > 0


def test_spread_of_many_members_is_the_posterior(trained):
    graph = trained.graph(structure(np.random.default_rng(5)))
    members = Committee(trained, 6000).components(graph)
    # 6000 samples: a variance is known to sqrt(2/6000) = 2 %, the largest of 108 to three times that
    torch.testing.assert_close(members[1:].var(dim=0), component_variances(trained, graph), rtol=0.1, atol=0)
    tensors = from_irreps(trained.target, members)
    torch.testing.assert_close(tensors[1:].std(dim=0), tensor_deviations(trained, graph), rtol=0.05, atol=0)


@pytest.mark.parametrize("n_members", [2, 3])
def test_few_members_have_the_size_of_the_posterior(trained, n_members):
    """Centred samples of few members would be too narrow by sqrt(1 - 1/n)."""
    graph = trained.graph(structure(np.random.default_rng(5)))
    squares = [
        (found[1:] - found[0]).square().mean(dim=0)
        for found in (Committee(trained, n_members, seed).components(graph) for seed in range(250))
    ]
    ratio = torch.stack(squares).mean(dim=0) / component_variances(trained, graph)
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.12)  # without the factor: 0.5 and 0.67


def test_members_are_functions_of_the_structure(trained):
    """The same weights everywhere: in a batch, alone, and on an atom's environment turned over."""
    graphs = [trained.graph(structure(np.random.default_rng(k))) for k in range(3)]
    members = Committee(trained, 4, seed=9)
    alone = torch.cat([members.components(graph) for graph in graphs], dim=1)
    torch.testing.assert_close(members.components(join(graphs)), alone)
    torch.testing.assert_close(Committee(trained, 4, seed=9).components(graphs[0]), alone[:, :6])
    assert not torch.allclose(Committee(trained, 4, seed=10).components(graphs[0]), alone[:, :6])


def test_uncertainties_are_those_of_the_errors(trained):
    """Least squares from labels with noise: held-out labels without noise give alpha, test labels confirm it."""
    assert float(trained.posterior.alphas.mean()) == pytest.approx(0.3, rel=0.15)
    found = reliability(trained, labelled(fixed_network(trained.target, seed=0), 40, seed=3))
    assert found.rms_ratio == pytest.approx(1.0, abs=0.12)
    assert found.coverage["68"] == pytest.approx(0.68, abs=0.08)
    assert found.coverage["95"] == pytest.approx(0.95, abs=0.04)
    assert found.is_calibrated
    assert set(found.by_species) == {"H", "O"}
    assert set(found.to_dict()["by_species"]["O"]["by_component"]) >= {"xx" if trained.target == "apt" else "xyz"}
    assert found.calibration["trunk_saw_held_out"] is False


def test_a_wrong_alpha_is_seen(trained):
    """The control: uncertainties half as large, and twice as large, are not called calibrated."""
    right = trained.posterior
    labels = labelled(fixed_network(trained.target, seed=0), 20, seed=3)
    try:
        for factor in (0.5, 2.0):
            trained.posterior = replace(right, alphas=factor * right.alphas)
            found = reliability(trained, labels)
            assert not found.is_calibrated
            assert found.rms_ratio == pytest.approx(1 / factor, rel=0.12)
    finally:
        trained.posterior = right


def test_folds_are_judged_by_what_does_not_know_them():
    """Pure noise: the error of a fold is that of the noise, although least squares fit the labels themselves better."""
    truth = fixed_network()
    with torch.no_grad():
        for weights in truth.readout:
            weights.zero_()
    labels = labelled(truth, 5, seed=1, noise=1.0)  # 5 x 2 oxygens for 8 weights of the isotropic block
    network = fitted(labels)
    posterior = fit_posterior(network, labels)
    assert posterior.calibration["trunk_saw_held_out"] is True
    assert posterior.calibration["method"] == "5 folds of the last layer"
    known = fit_posterior(network, labels, labels)  # what nobody should do: judge the fit by its own labels
    oxygen = truth.species.index(8)
    assert float(posterior.alphas[oxygen, 0]) > 1.2 * float(known.alphas[oxygen, 0])
    rows = [
        {(z, b): (f, y) for z, b, _, f, y in committee._observations(network, [snapshot], None)} for snapshot in labels
    ]
    alphas, counts = np.zeros((2, 3)), np.zeros((2, 3))
    for z, b in rows[0]:
        ridge = float(posterior.ridges[z, b]) * np.eye(N_FEATURES)
        for k in range(5):
            features, references = (np.concatenate(p) for p in zip(*(rows[i][z, b] for i in range(5) if i != k)))
            inverse = np.linalg.inv(features.T @ features + ridge)
            f, y = rows[k][z, b]
            errors = y - f @ inverse @ features.T @ references
            alphas[z, b] += (errors**2 / np.einsum("nf,fg,ng->n", f, inverse, f)).sum()
            counts[z, b] += len(y)
    expected = np.full((2, 3), np.sqrt(alphas.sum() / counts.sum()))
    np.testing.assert_allclose(posterior.alphas.numpy(), expected, rtol=1e-6)  # inverse against eigenvectors


def test_a_lone_snapshot_has_a_posterior():
    labels = labelled(fixed_network(), 1, seed=1, noise=0.1)
    posterior = fit_posterior(fitted(labels), labels)
    assert torch.isfinite(posterior.alphas).all()
    assert (posterior.alphas > 0).all()
    assert posterior.n_atoms.tolist() == [4, 2]


def test_unknown_surroundings_are_uncertain(trained):
    near = trained.graph(structure(np.random.default_rng(1)))
    far = structure(np.random.default_rng(1))
    far.positions[5] = far.positions[4] + [0.2, 0.1, 0.3]  # two hydrogens on top of each other
    found = relative_uncertainties(trained, join([near, trained.graph(far), near]))
    assert found.shape == (3, 2)
    assert found[1, 0] > 1.15 * found[0, 0]
    np.testing.assert_allclose(found[2], found[0])
    lone = relative_uncertainties(trained, trained.graph(structure(np.random.default_rng(1), (8, 8))))
    assert np.isnan(lone[0, 0])
    assert np.isfinite(lone[0, 1])


def test_relative_uncertainty_is_that_of_components(trained):
    graph = trained.graph(structure(np.random.default_rng(2)))
    oxygen = graph.species == 1
    variance = component_variances(trained, graph)[oxygen].sum(dim=1).mean()
    spread = trained.scale[1].square().sum()
    assert relative_uncertainties(trained, graph)[0, 1] == pytest.approx(float((variance / spread).sqrt()))


def test_more_labels_of_an_atom_make_it_certain(trained):
    """Adding a structure's own Gram matrix a hundredfold pins its tensors."""
    graph = trained.graph(structure(np.random.default_rng(4)))
    right = trained.posterior
    grams = tuple(g + 99 * s for g, s in zip(right.grams, snapshot_grams(trained, graph)))
    before = tensor_deviations(trained, graph)
    try:
        trained.posterior = replace(right, grams=grams)
        # a row of weight 99 alone leaves at most alpha/sqrt(99) of its own direction
        assert float(tensor_deviations(trained, graph).max()) < 0.35 * float(before.max())
    finally:
        trained.posterior = right


def test_what_has_no_committee_is_refused(trained):
    network = build_network(MessagePassingSettings(multiplicities=(4, 2)), [1, 8], "apt")
    with pytest.raises(ModelError, match=r"linear in its features.*kind message-passing; train with the preset"):
        Committee(network, 4)
    with pytest.raises(ModelError, match="lacks; train it anew"):
        Committee(fixed_network(), 4)
    with pytest.raises(ModelError, match="at least 2 members, got 1"):
        Committee(trained, 1)
    with pytest.raises(LabelError, match="needs the training labels, got none"):
        fit_posterior(trained, [])


def density_network(labels: Sequence[LabelledSnapshot], **changes: object) -> TrainingResult:
    """Train a small density network for a moment."""
    settings = DensitySettings(
        l_max=2, n_channels=4, n_radial=4, n_bond=3, cutoff=5.0, n_message_channels=4, n_hidden=8
    )
    recipe = TrainingSettings(n_steps=120, learning_rate=2e-2, optimizer="adamw", **changes)  # type: ignore[arg-type]
    return train("apt", labels[:12], labels[12:], settings, recipe)


@pytest.fixture(scope="module")
def density_labels() -> list[LabelledSnapshot]:
    network = fixed_network()
    labels = [*labelled(network, 12, seed=1), *labelled(network, 12, seed=2)]
    for k, snapshot in enumerate(labels):
        snapshot.atoms.info["snapshot"] = f"nve-{k // 3}/{k}"
    return labels


@pytest.mark.slow
def test_a_second_training_calibrates_the_first(density_labels, tmp_path):
    """The prediction is that of all labels; only a trunk that has not seen the labels says how good it is."""
    bare = density_network(density_labels)
    calibrated = density_network(density_labels, calibration_fraction=0.25)
    state = bare.network.state_dict()
    assert all(torch.equal(values, state[name]) for name, values in calibrated.network.state_dict().items())
    flattered, honest = bare.report["uncertainty"], calibrated.report["uncertainty"]
    assert flattered["calibration"]["trunk_saw_held_out"]
    assert not honest["calibration"]["trunk_saw_held_out"]
    assert honest["calibration"]["method"] == "second training without 3 snapshots"
    assert flattered["rms_ratio"] > 1.5 * honest["rms_ratio"]
    assert 0.5 < honest["rms_ratio"] < 2  # of three snapshots
    json.dumps(calibrated.report, allow_nan=False)
    save_model(calibrated.network, tmp_path / "model.pt")
    graph = calibrated.network.graph(density_labels[0].atoms)
    read = load_model(tmp_path / "model.pt")
    torch.testing.assert_close(Committee(read, 3).components(graph), Committee(calibrated.network, 3).components(graph))
    assert read.posterior.calibration == calibrated.network.posterior.calibration


@pytest.mark.slow
def test_validation_labels_calibrate_for_nothing(density_labels):
    report = density_network(density_labels, validation_fraction=0.25).report
    assert report["uncertainty"]["calibration"]["method"] == "held-out labels"
    assert report["uncertainty"]["calibration"]["n_held_out"] == report["n_validation"] == 3


def test_what_a_second_training_leaves_out():
    network = fixed_network()
    labels = labelled(network, 12, seed=1)
    assert calibration_split(labels, 0.0, 0) == []
    assert calibration_split(labels[:1], 0.3, 0) == []
    assert calibration_split(labels[:2], 0.9, 0) == [1]
    aside = calibration_split(labels, 0.2, 0)
    assert len({k // 3 for k in aside}) == 1  # a whole trajectory of three
    assert len(aside) == 3
    for k in aside[:2]:
        labels[k].atoms.numbers[0] = 16  # in no other snapshot: one of them must be fitted
    assert calibration_split(labels, 0.2, 0) == aside[1:]


def network_with_chloride() -> tuple[FixedFeatures, list[ase.Atoms]]:
    """Return a network that has seen six waters and one chloride, and 30 candidates, the last three with chloride."""
    network = fixed_network(species=(1, 8, 17))
    labels = labelled(network, 6, seed=1, noise=0.1)
    ion = structure(np.random.default_rng(0), (17, 1, 1, 8, 1, 1))
    labels.append(LabelledSnapshot(ion, apt=labels[0].apt))
    network.posterior = replace(
        fit_posterior(network, labels), alphas=torch.ones(3, 3, dtype=torch.float64), calibration={}
    )
    random = np.random.default_rng(4)
    return network, [structure(random, (17, 1, 1, 8, 1, 1) if k >= 27 else (8, 1, 1, 8, 1, 1)) for k in range(30)]


def test_choice_is_the_best_of_all_candidates():
    """Against a search by hand, with the variances of the network itself."""
    network, candidates = network_with_chloride()
    right, graphs = network.posterior, [network.graph(atoms) for atoms in candidates]

    def uncertainties(posterior: committee.Posterior) -> np.ndarray:
        network.posterior = posterior
        whole = join(graphs)
        variances = component_variances(network, whole).sum(dim=1)
        spreads = network.scale.double().square().sum(dim=1)
        return np.array([float((variances[whole.species == z].mean() / spreads[z]).sqrt()) for z in range(3)])

    choice = select_by_uncertainty([network], candidates, 4)
    before = uncertainties(right)
    assert choice.before == pytest.approx({"apt H": before[0], "apt O": before[1], "apt Cl": before[2]})
    worst = int(np.argmax(before))
    posterior, taken = right, []
    for _ in range(4):
        found = []
        for k, graph in enumerate(graphs):
            grams = tuple(g + s for g, s in zip(posterior.grams, snapshot_grams(network, graph)))
            found.append(np.inf if k in taken else uncertainties(replace(posterior, grams=grams))[worst])
        taken.append(int(np.argmin(found)))
        own = snapshot_grams(network, graphs[taken[-1]])
        posterior = replace(posterior, grams=tuple(g + s for g, s in zip(posterior.grams, own)))
        after = uncertainties(posterior)
        worst = int(np.argmax(after))
    assert list(choice.indices) == taken
    assert choice.after == pytest.approx({"apt H": after[0], "apt O": after[1], "apt Cl": after[2]})
    assert max(choice.after.values()) < 0.9 * max(choice.after_random.values()) < max(choice.before.values())


def test_a_rare_species_is_chosen_first():
    network, candidates = network_with_chloride()
    choice = select_by_uncertainty([network], candidates, 2)
    assert max(choice.before, key=lambda name: choice.before[name]) == "apt Cl"
    assert min(choice.indices) >= 27


def test_chosen_frames_are_apart_in_time():
    network, candidates = network_with_chloride()
    places = [(k % 2, 10 * (k // 2)) for k in range(30)]
    chosen = select_by_uncertainty([network], candidates, 6, places=places, minimum_gap=25).indices
    for run in (0, 1):
        frames = sorted(places[k][1] for k in chosen if places[k][0] == run)
        assert all(b - a >= 25 for a, b in pairwise(frames))
    with pytest.raises(LabelError, match=r"only 10 of 20 snapshots are 25 frames apart"):
        select_by_uncertainty([network], candidates, 20, places=places, minimum_gap=25)
    with pytest.raises(LabelError, match="31 snapshots are asked for, but there are only 30"):
        select_by_uncertainty([network], candidates, 31)
    with pytest.raises(LabelError, match="no model to choose"):
        select_by_uncertainty([], candidates, 1)
