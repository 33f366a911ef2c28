"""Spatial derivatives: polynomials with known tensors, branches of periodic dipoles, and tblite's fields."""

import ase
import numpy as np
import pytest
from ase.build import molecule

from mimyria_wf.errors import LabelError
from mimyria_wf.finite_field import field_vectors, response_tensors
from mimyria_wf.spatial_derivatives import (
    DisplacedResponse,
    Displacement,
    displaced,
    displacements,
    on_branch,
    polarizability_of_dipoles,
    spatial_tensors,
)
from mimyria_wf.tblite_engine import TbliteEngine
from mimyria_wf.units import BOHR


def test_six_displacements_an_atom_each_of_one_coordinate() -> None:
    water = molecule("H2O")
    water.info.update(charge=1, multiplicity=2, snapshot="w/3")
    moves = displacements([2, 0], 0.02)
    assert [one.name for one in moves[:2]] == ["2+x/0.02", "2-x/0.02"]
    assert len(moves) == len({one.name for one in moves}) == 12
    for one in moves:
        moved = displaced(water, one)
        shift = moved.positions - water.positions
        assert shift[one.atom, one.axis] == pytest.approx(one.sign * 0.02)
        assert np.count_nonzero(np.abs(shift) > 1e-12) == 1
        assert (moved.info["charge"], moved.info["multiplicity"]) == (1, 2)
        assert moved.info["snapshot"].startswith("w/3, ")


@pytest.mark.parametrize("size", [0.0, -0.01, 1.0, float("nan")])
def test_displacements_are_small_and_positive(size: float) -> None:
    with pytest.raises(LabelError, match="displacement must be positive"):
        displacements([0], size)


def _responses(
    rng: np.random.Generator, size: float, quanta: np.ndarray | None = None
) -> tuple[list[DisplacedResponse], np.ndarray, np.ndarray]:
    """Return responses of a dipole and a polarizability that are linear in the displacement, and their slopes."""
    apt, pgt = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 3, 3, 3))
    pgt = pgt + np.swapaxes(pgt, -1, -2)
    dipole, alpha = rng.normal(size=3), rng.normal(size=(3, 3))
    responses = []
    for one in displacements([4, 1], size):
        k, step = [1, 4].index(one.atom), one.sign * size / BOHR
        moment = dipole + apt[k, one.axis] * step
        if quanta is not None:
            moment = moment + rng.integers(-3, 4, size=3) @ quanta
        responses.append(DisplacedResponse(one, moment, alpha + pgt[k, one.axis] * step))
    rng.shuffle(responses)  # type: ignore[arg-type]
    return responses, apt, pgt


def test_linear_responses_are_recovered_whatever_their_order() -> None:
    responses, apt, pgt = _responses(np.random.default_rng(1), 0.02)
    (size, found), *others = spatial_tensors(responses).items()
    assert not others
    assert size == 0.02
    assert found.atoms == (1, 4)
    np.testing.assert_allclose(found.apt, apt, atol=1e-12)
    assert found.pgt is not None
    np.testing.assert_allclose(found.pgt, pgt, atol=1e-12)
    assert found.asymmetry == pytest.approx(0, abs=1e-12)


def test_dipoles_on_any_branch_give_the_same_apt() -> None:
    quanta = np.array([[9.0, 0, 0], [2.0, 11.0, 0], [0, -1.0, 8.0]])
    responses, apt, _ = _responses(np.random.default_rng(2), 0.01, quanta)
    np.testing.assert_allclose(spatial_tensors(responses, quanta)[0.01].apt, apt, atol=1e-10)
    # without the quanta the jumps are taken for derivatives
    assert np.abs(spatial_tensors(responses)[0.01].apt - apt).max() > 10


def test_a_branch_that_cannot_be_told_is_refused() -> None:
    quanta = 10 * np.eye(3)
    np.testing.assert_allclose(on_branch(np.array([12.0, -9.0, 0.1]), quanta, np.zeros(3)), [2.0, 1.0, 0.1])
    with pytest.raises(LabelError, match=r"0\.45 of its quantum"):
        on_branch(np.array([4.5, 0, 0]), quanta, np.zeros(3))


def test_missing_displacements_are_named() -> None:
    responses, _, _ = _responses(np.random.default_rng(3), 0.01)
    left = [r for r in responses if r.displacement != Displacement(4, 1, -1, 0.01)]
    with pytest.raises(LabelError, match=r"missing: 4-y/0\.01"):
        spatial_tensors(left)
    with pytest.raises(LabelError, match="given twice"):
        spatial_tensors([*responses, responses[0]])


def test_polarizability_from_dipoles_in_fields() -> None:
    rng = np.random.default_rng(4)
    alpha, quanta = rng.normal(size=(3, 3)) + 20 * np.eye(3), 7 * np.eye(3)
    vectors = np.array([[0, 0, 0], *field_vectors(1e-3, ["apt"]).values()], dtype=float)
    dipoles = rng.normal(size=3) + vectors @ alpha.T + np.sum(vectors**2, axis=1)[:, None] * rng.normal(size=3)
    jumps = rng.integers(-2, 3, size=(7, 3)) @ quanta
    # row: dipole, column: field
    np.testing.assert_allclose(polarizability_of_dipoles(vectors, dipoles + jumps, quanta), alpha, atol=1e-9)
    with pytest.raises(LabelError, match="three directions"):
        polarizability_of_dipoles(vectors[:5], dipoles[:5])
    dipoles[3] = np.nan
    with pytest.raises(LabelError, match="not finite"):
        polarizability_of_dipoles(vectors, dipoles)


@pytest.fixture(scope="module")
def dimer() -> ase.Atoms:
    water = molecule("H2O")
    other = water.copy()
    other.rotate(40, "x")
    other.positions += [0.3, 2.0, 2.2]
    dimer = water + other
    dimer.rattle(0.05, seed=3)
    return dimer


def test_fields_and_displacements_give_the_same_tensors(dimer: ase.Atoms) -> None:
    """Eqs. 21 and 22: both sides, all atoms."""
    engine = TbliteEngine(start="cold", accuracy=1e-5)
    fields = np.array(list(field_vectors(5e-4, ["apt", "pgt"]).values()))
    expected = response_tensors(fields, engine.forces(dimer, fields))
    vectors = np.array([[0, 0, 0], *field_vectors(5e-4, ["apt"]).values()], dtype=float)
    found = []
    for size in (0.01, 0.02):
        responses = []
        for one in displacements(range(len(dimer)), size):
            dipoles = engine.field_results(displaced(dimer, one), vectors).dipoles
            assert dipoles is not None
            responses.append(DisplacedResponse(one, dipoles[0], polarizability_of_dipoles(vectors, dipoles)))
        found.append(spatial_tensors(responses)[size])
    near, far = found
    assert near.pgt is not None
    assert far.pgt is not None
    for a, b, other in ((near.apt, far.apt, expected.apt), (near.pgt, far.pgt, expected.pgt)):
        assert other is not None
        error = np.abs(a - other).max()
        spread = np.abs(other).max()
        assert error < 2e-4 * spread  # delta^2
        assert np.abs(b - other).max() == pytest.approx(4 * error, rel=0.1)
        # what is left once delta^2 is gone: h^2 and tblite's own thresholds
        np.testing.assert_allclose(a + (a - b) / 3, other, atol=3e-5 * spread)
    assert near.asymmetry == pytest.approx(0, abs=1e-4)
