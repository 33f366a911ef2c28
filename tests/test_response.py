"""Sum rules, their projection and rotations of response tensors."""

import numpy as np
import pytest

from mimyria_wf.errors import LabelError
from mimyria_wf.response import ResponseTensors, project_apt, project_pgt

MASSES = np.array([15.999, 1.008, 1.008, 22.99])


@pytest.fixture
def tensors() -> ResponseTensors:
    rng = np.random.default_rng(1)
    pgt = rng.normal(size=(4, 3, 3, 3))
    return ResponseTensors(apt=rng.normal(size=(4, 3, 3)), pgt=pgt + pgt.swapaxes(-1, -2))


def rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def test_projected_tensors_obey_the_sum_rules_of_an_ion(tensors):
    residual = tensors.projected(MASSES, charge=1.0).sum_rule_residual(charge=1.0)
    assert max(residual.largest().values()) < 1e-13
    assert tensors.sum_rule_residual(1.0).largest()["apt"] > 0.1


def test_projection_leaves_the_derivatives_when_the_centre_of_mass_rests(tensors):
    velocities = np.random.default_rng(2).normal(size=(4, 3))
    velocities -= MASSES @ velocities / MASSES.sum()
    projected = tensors.projected(MASSES, charge=0.0)
    for before, after in ((tensors.apt, projected.apt), (tensors.pgt, projected.pgt)):
        change = np.einsum("id...,id->...", after - before, velocities)
        np.testing.assert_allclose(change, 0, atol=1e-13)
    uniform = tensors.apt - tensors.apt.mean(axis=0)  # weights 1/N would not do
    assert np.abs(np.einsum("idf,id->f", uniform - tensors.apt, velocities)).max() > 0.1


def test_projection_of_many_frames_is_that_of_each(tensors):
    frames = np.stack([tensors.apt, 2 * tensors.apt])
    np.testing.assert_allclose(project_apt(frames, MASSES, 1.0)[1], project_apt(2 * tensors.apt, MASSES, 1.0))
    frames = np.stack([tensors.pgt, 2 * tensors.pgt])
    np.testing.assert_allclose(project_pgt(frames, MASSES)[1], project_pgt(2 * tensors.pgt, MASSES))


def test_rotations_compose_and_leave_the_contraction_covariant(tensors):
    a, b = rotation(3), rotation(4)
    once, twice = tensors.rotated(b @ a), tensors.rotated(a).rotated(b)
    np.testing.assert_allclose(once.apt, twice.apt, atol=1e-13)
    np.testing.assert_allclose(once.pgt, twice.pgt, atol=1e-13)
    v = np.random.default_rng(5).normal(size=(4, 3))
    np.testing.assert_allclose(
        np.einsum("idf,id->f", tensors.rotated(a).apt, v @ a.T), a @ np.einsum("idf,id->f", tensors.apt, v), atol=1e-13
    )


def test_inversion_keeps_the_apt_and_reverses_the_pgt(tensors):
    inverted = tensors.rotated(-np.eye(3))
    np.testing.assert_allclose(inverted.apt, tensors.apt)
    np.testing.assert_allclose(inverted.pgt, -tensors.pgt)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResponseTensors(apt=np.zeros((4, 9))), r"apt must have shape \(n_atoms, 3, 3\), got \(4, 9\)"),
        (lambda: ResponseTensors(apt=np.full((2, 3, 3), np.nan)), "apt of atom 0 is not finite"),
        (lambda: ResponseTensors(apt=np.zeros((2, 3, 3)), pgt=np.zeros((3, 3, 3, 3))), "same atoms"),
        (lambda: ResponseTensors(pgt=np.arange(27.0).reshape(1, 3, 3, 3)), "symmetric in its last two axes"),
        (lambda: ResponseTensors(apt=np.zeros((1, 3, 3))).rotated(2 * np.eye(3)), "orthogonal"),
        (lambda: project_apt(np.zeros((2, 3, 3)), np.array([1.0, 0.0]), 0.0), "masses must be positive"),
    ],
)
def test_messages(make, message):
    with pytest.raises(LabelError, match=message):
        make()
