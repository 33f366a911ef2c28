"""The error estimate of a field set against noise that is known."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from mimyria_wf.cp2k_output import read_forces
from mimyria_wf.finite_field import FIELD_POINTS, field_vectors, noise_errors, response_tensors

STEP = 5e-4
N_ATOMS = 400


def quadratic_forces(vectors: np.ndarray, seed: int = 1, third: float = 0.0) -> np.ndarray:
    """Return forces (n_fields, n_atoms, 3) of known tensors, of third order in the field if asked for."""
    rng = np.random.default_rng(seed)
    apt = rng.normal(size=(N_ATOMS, 3, 3))
    pgt = rng.normal(size=(N_ATOMS, 3, 3, 3))
    cubic = rng.normal(size=(N_ATOMS, 3, 3, 3, 3))
    cubic = sum(cubic.transpose(0, 1, *(2 + k for k in order)) for order in permutations(range(3))) / 6
    forces = 0.05 * rng.normal(size=(N_ATOMS, 3)) + np.einsum("idf,kf->kid", apt, vectors)
    forces = forces + 0.5 * np.einsum("idfg,kf,kg->kid", pgt + pgt.swapaxes(2, 3), vectors, vectors)
    return forces + third / 6 * np.einsum("idfgh,kf,kg,kh->kid", cubic, vectors, vectors, vectors)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize("noise", [1e-9, 1e-7])
@pytest.mark.parametrize("step", [STEP, 2e-3])
def test_known_noise_comes_back_in_forces_and_tensors(noise: float, step: float) -> None:
    vectors = np.array(list(field_vectors(step, ["pgt"]).values()))
    exact = quadratic_forces(vectors)
    noisy = exact + noise * np.random.default_rng(2).normal(size=exact.shape)
    errors = noise_errors(vectors, noisy)
    assert errors is not None
    assert errors.n_redundant == 3
    assert errors.apt is not None
    assert errors.pgt is not None
    assert errors.force_noise == pytest.approx(noise, rel=0.05)  # 3600 readings: 1.2 %
    expected, found = (response_tensors(vectors, forces, check=False) for forces in (exact, noisy))
    assert expected.apt is not None
    assert found.apt is not None
    assert expected.pgt is not None
    assert found.pgt is not None
    for f in range(3):
        assert errors.apt[f] == pytest.approx(rms((found.apt - expected.apt)[..., f]), rel=0.1)
        for g in range(3):
            assert errors.pgt[f, g] == pytest.approx(rms((found.pgt - expected.pgt)[..., f, g]), rel=0.1)
    assert errors.apt == pytest.approx(errors.force_noise / (np.sqrt(2) * step))
    assert errors.pgt[0, 0] == pytest.approx(np.sqrt(6) * errors.force_noise / step**2)
    assert errors.pgt[0, 1] == pytest.approx(np.sqrt(2.5) * errors.force_noise / step**2)


def test_without_noise_there_is_no_error() -> None:
    vectors = np.array(list(field_vectors(STEP, ["pgt"]).values()))
    errors = noise_errors(vectors, quadratic_forces(vectors))
    assert errors is not None
    assert errors.force_noise < 1e-15  # round-off of forces of 0.05


def test_a_step_that_is_too_long_shows() -> None:
    found = []
    for step in (STEP, 2 * STEP):
        vectors = np.array(list(field_vectors(step, ["pgt"]).values()))
        errors = noise_errors(vectors, quadratic_forces(vectors, third=100.0))
        assert errors is not None
        found.append(errors.force_noise)
    assert found[1] / found[0] == pytest.approx(8, rel=1e-3)  # third order


def test_order_and_further_points_do_not_matter() -> None:
    vectors = np.array(
        [*field_vectors(STEP, ["pgt"]).values(), STEP * np.array([1.0, -1, 0]), STEP * np.array([-1.0, 1, 0])]
    )
    forces = quadratic_forces(vectors) + 1e-8 * np.random.default_rng(4).normal(size=(15, N_ATOMS, 3))
    errors = noise_errors(vectors, forces)
    assert errors is not None
    assert errors.n_redundant == 5
    assert errors.force_noise == pytest.approx(1e-8, rel=0.05)
    order = np.random.default_rng(5).permutation(15)
    turned = noise_errors(vectors[order], forces[order])
    assert turned is not None
    assert turned.force_noise == pytest.approx(errors.force_noise, rel=1e-6)
    assert turned.pgt == pytest.approx(errors.pgt, rel=1e-6)


@pytest.mark.parametrize("names", [list(FIELD_POINTS)[1:7], list(FIELD_POINTS)[:7]], ids=["axis", "axis and zero"])
def test_axis_points_alone_say_nothing_twice(names: list[str]) -> None:
    vectors = STEP * np.array([FIELD_POINTS[name] for name in names], dtype=float)
    assert noise_errors(vectors, quadratic_forces(vectors)) is None


@pytest.mark.reference_data
def test_recorded_cp2k_forces_have_the_noise_of_their_scf(reference_data: Path) -> None:
    """Points (h, -h, 0) and (-h, h, 0) give Q_xy once more, from forces that the estimate has not seen."""
    folder = reference_data / "cp2k_recorded" / "field_points"
    names = {
        "0": "z",
        **{n: n.replace("+", "p").replace("-", "m") for n in [*FIELD_POINTS, "+x-y", "-x+y"] if n != "0"},
    }
    forces = {name: read_forces((folder / f"{file}-frc.dat").read_text()) for name, file in names.items()}
    vectors = np.array(list(field_vectors(STEP, ["pgt"]).values()))
    known = np.array([forces[name] for name in FIELD_POINTS])
    errors = noise_errors(vectors, known)
    assert errors is not None
    assert errors.pgt is not None
    pgt = response_tensors(vectors, known).pgt
    assert pgt is not None
    even = forces["+x-y"] + forces["-x+y"] - forces["+x+y"] - forces["-x-y"]
    # independent noise: 1.5 sigma/h^2, of which errors.pgt is 1.6; SCF errors of neighbouring fields are alike
    difference = rms(pgt[..., 0, 1] + even / (4 * STEP**2))
    assert 0.3 * errors.pgt[0, 1] < difference < 2 * errors.pgt[0, 1]
