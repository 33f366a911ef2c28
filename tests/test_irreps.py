import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mimyria_wf.errors import ModelError
from mimyria_wf.irreps import blocks, change_of_basis, from_irreps, target_irreps, tensor_shape, to_irreps


def random_tensors(target: str, n: int = 5, seed: int = 0) -> np.ndarray:
    tensors = np.random.default_rng(seed).normal(size=(n, *tensor_shape(target)))
    return tensors if target == "apt" else 0.5 * (tensors + tensors.swapaxes(-1, -2))


def rotated(target: str, tensors: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    if target == "apt":
        return np.einsum("ai,bj,nij->nab", rotation, rotation, tensors)
    return np.einsum("ai,bj,ck,nijk->nabc", rotation, rotation, rotation, tensors)


@pytest.mark.parametrize("target", ["apt", "pgt"])
def test_round_trip_keeps_values_and_norm(target: str) -> None:
    tensors = random_tensors(target)
    components = to_irreps(target, tensors)
    assert components.shape == (5, target_irreps(target).dim)
    np.testing.assert_allclose(from_irreps(target, components), tensors, atol=1e-14)  # round-off
    np.testing.assert_allclose((components**2).sum(), (tensors**2).sum())
    basis = change_of_basis(target)
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64), atol=1e-14, rtol=0)
    of_torch = to_irreps(target, torch.from_numpy(tensors).float())
    assert of_torch.dtype == torch.float32
    np.testing.assert_allclose(of_torch.numpy(), components, atol=1e-6)  # single precision


@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize("target", ["apt", "pgt"])
def test_components_rotate_with_e3nn_matrices(target: str, improper: bool) -> None:
    rotation = Rotation.random(random_state=3).as_matrix() * (-1 if improper else 1)
    tensors = random_tensors(target)
    matrix = target_irreps(target).D_from_matrix(torch.from_numpy(rotation)).numpy()
    np.testing.assert_allclose(
        to_irreps(target, rotated(target, tensors, rotation)), to_irreps(target, tensors) @ matrix.T, atol=1e-5
    )  # e3nn's rotation matrices carry single-precision constants


def test_blocks_have_their_meaning() -> None:
    apt = random_tensors("apt")
    parts = {b.name: to_irreps("apt", apt)[:, b.start : b.stop] for b in blocks("apt")}
    np.testing.assert_allclose(parts["isotropic"][:, 0], np.trace(apt, axis1=1, axis2=2) / np.sqrt(3))
    antisymmetric = 0.5 * (apt - apt.swapaxes(1, 2))
    np.testing.assert_allclose((parts["antisymmetric"] ** 2).sum(1), (antisymmetric**2).sum((1, 2)))
    pgt = random_tensors("pgt")
    trace = to_irreps("pgt", pgt)[:, :3]
    np.testing.assert_allclose(trace, np.einsum("nijj->ni", pgt) / np.sqrt(3), atol=1e-14)


def test_pgt_forgets_only_the_part_antisymmetric_in_the_fields() -> None:
    tensors = np.random.default_rng(1).normal(size=(4, 3, 3, 3))
    symmetric = 0.5 * (tensors + tensors.swapaxes(-1, -2))
    np.testing.assert_allclose(from_irreps("pgt", to_irreps("pgt", tensors)), symmetric, atol=1e-14)


def test_refusals() -> None:
    with pytest.raises(ModelError, match="unknown target"):
        blocks("dipole")
    with pytest.raises(ModelError, match="must end in shape"):
        to_irreps("pgt", np.zeros((2, 3, 3)))
