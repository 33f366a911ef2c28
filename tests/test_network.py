import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from scipy.spatial.transform import Rotation

from mimyria_wf.errors import ModelError
from mimyria_wf.graphs import Graph, join
from mimyria_wf.irreps import tensor_shape
from mimyria_wf.network import build_network, load_model, save_model
from mimyria_wf.presets import DensitySettings, MessagePassingSettings, resolve
from mimyria_wf.response_network import ResponseNetwork, construction

SETTINGS = {
    "both": MessagePassingSettings(multiplicities=(6, 4, 3)),
    "natural": MessagePassingSettings(multiplicities=(6, 4, 3, 2), parity="natural", edge_l_max=3),
}


def lively_network(target: str, parity: str = "both", dtype: torch.dtype = torch.float64) -> ResponseNetwork:
    """Return a network whose neighbour terms are switched on; e3nn starts their factor alpha at zero."""
    network = build_network(SETTINGS[parity], [1, 8], target, n_neighbours=6.0, seed=1, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("alpha.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
        network.mean[:, 0] = torch.tensor([0.3, -0.7]) if target == "apt" else 0.0
    return network.eval()


def cluster() -> Atoms:
    atoms = molecule("H2O")
    for k, shift in enumerate(([2.9, 0.2, 0.1], [-1.0, 2.6, 0.4])):
        other = molecule("H2O")
        other.rotate(50 * (k + 1), (1, 2, 3))
        other.translate(shift)
        atoms += other
    return atoms


def box() -> Atoms:
    atoms = cluster()
    atoms.cell = [[5.0, 0.0, 0.0], [1.3, 5.6, 0.0], [-1.4, 0.9, 5.2]]
    atoms.pbc = True
    return atoms


@torch.no_grad()
def tensors(network: ResponseNetwork, atoms: Atoms) -> np.ndarray:
    return network(network.graph(atoms)).numpy()


def transform(target: str, values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    if target == "apt":
        return np.einsum("ai,bj,nij->nab", matrix, matrix, values)
    return np.einsum("ai,bj,ck,nijk->nabc", matrix, matrix, matrix, values)


@pytest.mark.parametrize("make", [cluster, box])
@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize(("target", "parity"), [("apt", "both"), ("pgt", "natural"), ("pgt", "both")])
def test_equivariance(target: str, parity: str, improper: bool, make: object) -> None:
    network = lively_network(target, parity)
    atoms: Atoms = make()  # type: ignore[operator]
    expected = tensors(network, atoms)
    matrix = Rotation.random(random_state=5).as_matrix() * (-1 if improper else 1)
    turned = atoms.copy()
    turned.positions = atoms.positions @ matrix.T + [7.1, -3.3, 0.4]  # and a translation
    turned.cell = atoms.cell.array @ matrix.T
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(tensors(network, turned), transform(target, expected, matrix), atol=1e-10)
    order = np.random.default_rng(0).permutation(len(atoms))
    np.testing.assert_allclose(tensors(network, atoms[order]), expected[order], atol=1e-12)
    if target == "pgt":
        np.testing.assert_allclose(expected, expected.swapaxes(2, 3), atol=1e-14)


def test_apt_has_an_antisymmetric_part() -> None:
    values = tensors(lively_network("apt"), cluster())
    assert np.abs(values - values.swapaxes(1, 2)).max() > 1e-3


@pytest.mark.parametrize("target", ["apt", "pgt"])
def test_a_supercell_repeats_the_cell(target: str) -> None:
    network = lively_network(target)
    atoms = box()  # 4 A in a cell whose half width is 2.5 A
    expected = tensors(network, atoms)
    repeated = tensors(network, atoms.repeat((2, 1, 2)))
    np.testing.assert_allclose(repeated, np.tile(expected, (4,) + (1,) * (expected.ndim - 1)), atol=1e-11)
    shifted = atoms.copy()
    shifted.positions[2] += atoms.cell[0] - 3 * atoms.cell[2]  # another image of one atom
    np.testing.assert_allclose(tensors(network, shifted), expected, atol=1e-11)


def test_size_consistency_and_batches() -> None:
    network = lively_network("pgt", "natural")
    first, second = cluster(), molecule("H2O")
    apart = second.copy()
    apart.translate([60.0, 0.0, 0.0])
    together = tensors(network, first + apart)
    np.testing.assert_allclose(together[:9], tensors(network, first), atol=1e-12)
    np.testing.assert_allclose(together[9:], tensors(network, second), atol=1e-12)
    graph = join([network.graph(first), network.graph(second), network.graph(box())])
    with torch.no_grad():
        batched = network(graph).numpy()
    np.testing.assert_allclose(batched[:12], together, atol=1e-12)
    np.testing.assert_allclose(batched[12:], tensors(network, box()), atol=1e-12)
    sums = graph.sum_by_snapshot(torch.ones(21, 2))
    assert sums.tolist() == [[9, 9], [3, 3], [9, 9]]


def test_output_is_smooth_at_the_cutoff() -> None:
    network = lively_network("apt")
    pair = [Atoms("OH", positions=[[0, 0, 0], [4.0 + d, 0, 0]]) for d in (-1e-4, 1e-4)]
    np.testing.assert_allclose(tensors(network, pair[0]), tensors(network, pair[1]), atol=1e-9)


def test_lone_atom_and_symmetric_site() -> None:
    network = lively_network("apt")
    isotropic = tensors(network, Atoms("O"))[0]
    np.testing.assert_allclose(isotropic, isotropic[0, 0] * np.eye(3), atol=1e-12)
    cubic = bulk("O", "sc", a=2.5)
    value = tensors(network, cubic)[0]
    np.testing.assert_allclose(value, value[0, 0] * np.eye(3), atol=1e-10)
    centred = tensors(lively_network("pgt"), cubic)[0]
    np.testing.assert_allclose(centred, 0.0, atol=1e-10)  # inversion centre


def test_single_precision_follows_double() -> None:
    double, single = lively_network("pgt"), lively_network("pgt", dtype=torch.float32)
    expected = tensors(double, box())
    assert np.abs(tensors(single, box()) - expected).max() < 1e-5 * np.abs(expected).max() * 10


def test_standardisation_keeps_equivariance_and_inverts() -> None:
    network = lively_network("apt")
    rng = np.random.default_rng(0)
    species = torch.from_numpy(rng.integers(0, 2, size=400))
    components = torch.from_numpy(rng.normal(size=(400, 9)) + 2.0)
    network.standardise(components, species)
    assert torch.count_nonzero(network.mean[:, 1:]) == 0  # no shift of l > 0
    scaled = (components - network.mean[species]) / network.scale[species]
    hydrogen = scaled[species == 0]
    assert float(hydrogen[:, 0].mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(hydrogen[:, 0].pow(2).mean()) == pytest.approx(1.0)
    assert float(hydrogen[:, 1:4].pow(2).mean()) == pytest.approx(1.0)
    assert len(network.scale[0, 4:9].unique()) == 1  # one scale a block


@pytest.mark.parametrize(("target", "hidden"), [("apt", 20), ("pgt", 40)])
def test_paper_preset(target: str, hidden: int) -> None:
    settings, training = resolve("paper", target)
    network = build_network(settings, [1, 8], target, n_neighbours=90.0)
    layers = network.message_passing.layers
    assert len(layers) == 4  # three gated and the output
    last = str(layers[2].second.irreps_out)
    assert all(f"{letter}" in last for letter in ("0o", "0e", "1o", "1e", "2o", "2e", "3o", "3e"))
    assert f"{hidden}x0e" in last
    assert settings.cutoff == 6.0
    assert settings.n_radial == 10
    assert training.schedule == "plateau"
    with torch.no_grad():
        assert network(network.graph(cluster())).shape == (9, *tensor_shape(target))


def test_file_round_trip(tmp_path: Path) -> None:
    network = lively_network("pgt", "natural")
    network.metadata = {"n_train": 3, "seed": 5}
    path = tmp_path / "model.pt"
    save_model(network, path)
    loaded = load_model(path, target="pgt")
    assert loaded.metadata == network.metadata
    assert loaded.species == (1, 8)
    assert loaded.n_neighbours == network.n_neighbours
    np.testing.assert_array_equal(tensors(loaded, box()), tensors(network, box()))
    assert torch.load(path, weights_only=True)["unit"] == "e^2 a0/E_h"
    with pytest.raises(ModelError, match="is a model for pgt, but one for apt"):
        load_model(path, target="apt")


def test_seed_decides_the_weights_and_leaves_global_state() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    states = [build_network(SETTINGS["both"], [1, 8], "apt", seed=s).state_dict() for s in (3, 3, 4)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    name = "message_passing.layers.0.first.fc.layer0.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="knows the species H, O, but the structure has S"):
        lively_network("apt").graph(Atoms("S"))
    with pytest.raises(ModelError, match="no model file"):
        load_model(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ModelError, match="not a model file"):
        load_model(tmp_path / "text.pt")
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match="not a model file of this version"):
        load_model(tmp_path / "other.pt")
    with pytest.raises(ModelError, match=r"cutoff must lie in \(0, 15\] A, got 80 A"):
        resolve("default", "apt", {"cutoff": 80.0})
    with pytest.raises(ModelError, match="unknown preset 'papr'; known are accurate, aptnn2023, default, paper"):
        resolve("papr", "apt")
    with pytest.raises(ModelError, match="unknown training override n_step"):
        resolve("default", "apt", {"n_step": 5})
    with pytest.raises(ModelError, match="n_steps must be an integer"):
        resolve("default", "apt", {"n_steps": "many"})
    assert resolve("paper", "apt", {"n_steps": 5})[1].n_epochs is None


def test_presets_do_not_import_torch() -> None:
    code = "import sys, mimyria_wf.presets, mimyria_wf.metrics; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_network_adapts_to_many_bonds_without_chance() -> None:
    n = 110_000  # O-H pairs far from each other
    generator = torch.Generator().manual_seed(0)
    vectors = torch.zeros(n, 3)
    vectors[:, 0] = 0.97 + 0.03 * torch.randn(n, generator=generator)
    oxygen, hydrogen = torch.arange(n), torch.arange(n, 2 * n)
    graph = Graph(
        species=torch.cat([torch.ones(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)]),
        senders=torch.cat([hydrogen, oxygen]),
        receivers=torch.cat([oxygen, hydrogen]),
        vectors=torch.cat([vectors, -vectors]),
        snapshot=torch.zeros(2 * n, dtype=torch.int64),
        n_snapshots=1,
    )
    settings = DensitySettings(l_max=2, n_channels=1, n_radial=1, n_bond=1, n_message_radial=1, n_rounds=0)
    ends = []
    for seed in (0, 1):
        network = build_network(settings, [1, 8], "apt", n_neighbours=1.0)
        torch.manual_seed(seed)
        network.adapt([graph])
        ends.append(torch.stack([network.bond_first, network.bond_last]))
    assert torch.equal(*ends)
    # 2.88 standard deviations on either side of the mean
    assert ends[0][:, 0, 1].tolist() == pytest.approx([0.97 - 0.086, 0.97 + 0.086], abs=0.003)


def test_simple_network_is_that_of_e3nn() -> None:
    from e3nn.nn.models.v2106.gate_points_networks import SimpleNetwork

    settings, _ = resolve("aptnn2023", "apt")
    network = build_network(settings, [1, 8], "apt", n_neighbours=7.0, dtype=torch.float64)
    with construction(0):
        # Section 3 of Schienbein (2023): two layers, 20 of each of 0o, 0e, 1o, 1e, 2o, 2e, 6 A
        expected = SimpleNetwork("2x0e", "0e+1e+2e", 6.0, 7.0, 1.0, mul=20, layers=2, lmax=2, pool_nodes=False)
    ours = dict(network.message_passing.named_parameters())
    with torch.no_grad():
        for name, parameter in expected.mp.named_parameters():
            ours[name].copy_(torch.randn_like(parameter))
            parameter.copy_(ours[name])
    atoms = cluster()
    species = torch.nn.functional.one_hot(network.graph(atoms).species, 2).double()
    with construction(0), torch.no_grad():  # e3nn's own code takes the default dtype
        found = expected({"pos": torch.from_numpy(atoms.positions), "x": species})
        np.testing.assert_allclose(network.standardised(network.graph(atoms)).numpy(), found.numpy(), atol=1e-9)
    assert float(found.abs().max()) > 0.1


def test_the_preset_of_2023_is_for_apts_alone() -> None:
    with pytest.raises(ModelError, match="preset aptnn2023 is for apt alone, not for pgt"):
        resolve("aptnn2023", "pgt")
