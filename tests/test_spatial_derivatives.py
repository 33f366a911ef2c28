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
    FieldDipoles,
    displaced,
    displacements,
    on_branch,
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


STEP = 1e-3


def _responses(
    rng: np.random.Generator, size: float, quanta: np.ndarray | None = None, *, with_polarizability: bool = True
) -> tuple[list[DisplacedResponse], FieldDipoles, np.ndarray, np.ndarray]:
    """Return responses of a system with known slopes, which higher orders of even total power hide."""
    apt, pgt = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 3, 3, 3))
    pgt = pgt + np.swapaxes(pgt, -1, -2)
    dipole, alpha, beta = rng.normal(size=3), rng.normal(size=(3, 3)), 1e2 * rng.normal(size=(3, 3))
    curvature, slope = rng.normal(size=(2, 3, 3)), 10 * rng.normal(size=(2, 3, 3, 3))

    def moment(k: int, axis: int, step: float, field: np.ndarray) -> np.ndarray:
        value = dipole + apt[k, axis] * step + (alpha + pgt[k, axis] * step) @ field + beta @ field**2
        value = value + curvature[k, axis] * step**2 + slope[k, axis] @ field**2 * step
        return value if quanta is None else value + rng.integers(-3, 4, size=3) @ quanta

    axes = STEP * np.eye(3)
    responses = []
    for one in displacements([4, 1], size):
        k, step = [1, 4].index(one.atom), one.sign * size / BOHR
        in_fields = np.array([moment(k, one.axis, step, one.sign * field) for field in axes])
        plus, minus = (in_fields, None) if one.sign > 0 else (None, in_fields)
        dipoles = FieldDipoles(STEP, moment(k, one.axis, step, np.zeros(3)), plus, minus)
        polarizability = alpha + pgt[k, one.axis] * step if with_polarizability else None
        responses.append(DisplacedResponse(one, dipoles, polarizability))
    rng.shuffle(responses)  # type: ignore[arg-type]
    still = [np.array([moment(0, 0, 0.0, sign * field) for field in axes]) for sign in (1, -1)]
    return responses, FieldDipoles(STEP, moment(0, 0, 0.0, np.zeros(3)), *still), apt, pgt


@pytest.mark.parametrize("with_polarizability", [True, False])
def test_slopes_are_recovered_whatever_the_order(with_polarizability: bool) -> None:
    responses, still, apt, pgt = _responses(np.random.default_rng(1), 0.02, with_polarizability=with_polarizability)
    (size, found), *others = spatial_tensors(responses, still).items()
    assert not others
    assert size == 0.02
    assert found.atoms == (1, 4)
    np.testing.assert_allclose(found.apt, apt, atol=1e-12)
    assert found.pgt is not None
    np.testing.assert_allclose(found.pgt, pgt, atol=1e-9)  # round-off over delta h
    assert found.asymmetry == pytest.approx(0, abs=1e-9)


def test_dipoles_on_any_branch_give_the_same_tensors() -> None:
    quanta = np.array([[9.0, 0, 0], [2.0, 11.0, 0], [0, -1.0, 8.0]])
    responses, still, apt, pgt = _responses(np.random.default_rng(2), 0.01, quanta, with_polarizability=False)
    found = spatial_tensors(responses, still, quanta)[0.01]
    np.testing.assert_allclose(found.apt, apt, atol=1e-10)
    assert found.pgt is not None
    np.testing.assert_allclose(found.pgt, pgt, atol=1e-8)
    # without the quanta the jumps are taken for derivatives
    assert np.abs(spatial_tensors(responses, still)[0.01].apt - apt).max() > 10


def test_a_branch_that_cannot_be_told_is_refused() -> None:
    quanta = 10 * np.eye(3)
    np.testing.assert_allclose(on_branch(np.array([12.0, -9.0, 0.1]), quanta, np.zeros(3)), [2.0, 1.0, 0.1])
    with pytest.raises(LabelError, match=r"0\.45 of its quantum"):
        on_branch(np.array([4.5, 0, 0]), quanta, np.zeros(3))


def test_missing_displacements_are_named() -> None:
    responses, still, _, _ = _responses(np.random.default_rng(3), 0.01, with_polarizability=False)
    left = [r for r in responses if r.displacement != Displacement(4, 1, -1, 0.01)]
    with pytest.raises(LabelError, match=r"missing: 4-y/0\.01"):
        spatial_tensors(left, still)
    with pytest.raises(LabelError, match="given twice"):
        spatial_tensors([*responses, responses[0]], still)
    with pytest.raises(LabelError, match="undisplaced configuration in both fields"):
        spatial_tensors(responses, FieldDipoles(STEP, still.zero))
    alone = [DisplacedResponse(r.displacement, FieldDipoles(STEP, r.dipoles.zero)) for r in responses]
    assert spatial_tensors(alone, still)[0.01].pgt is None


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
    axes = 5e-4 * np.eye(3)

    def dipoles(atoms: ase.Atoms, *signs: int) -> FieldDipoles:
        found = engine.field_results(
            atoms, np.concatenate([np.zeros((1, 3)), *(sign * axes for sign in signs)])
        ).dipoles
        assert found is not None
        parts = {sign: found[1 + 3 * k : 4 + 3 * k] for k, sign in enumerate(signs)}
        return FieldDipoles(5e-4, found[0], parts.get(1), parts.get(-1))

    still = dipoles(dimer, 1, -1)
    found = []
    for size in (0.01, 0.02):
        moved = displacements(range(len(dimer)), size)
        responses = [DisplacedResponse(one, dipoles(displaced(dimer, one), one.sign)) for one in moved]
        found.append(spatial_tensors(responses, still)[size])
    near, far = found
    assert near.pgt is not None
    assert far.pgt is not None
    for a, b, other in ((near.apt, far.apt, expected.apt), (near.pgt, far.pgt, expected.pgt)):
        assert other is not None
        error = np.abs(a - other).max()
        spread = np.abs(other).max()
        assert error < 2e-4 * spread  # delta^2
        assert np.abs(b - other).max() == pytest.approx(4 * error, rel=0.2)
        # what is left once delta^2 is gone: h^2, delta h and tblite's own thresholds
        np.testing.assert_allclose(a + (a - b) / 3, other, atol=6e-5 * spread)
    assert near.asymmetry == pytest.approx(0, abs=1e-4)
