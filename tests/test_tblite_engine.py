"""tblite's forces in fields: tensors against spatial derivatives, sum rules, rotations, starts, refusals."""

import pickle

import ase
import numpy as np
import pytest
from ase.build import molecule

from mimyria_wf.errors import EngineError
from mimyria_wf.finite_field import diagnostics, field_vectors, response_tensors
from mimyria_wf.response import ResponseTensors
from mimyria_wf.tblite_engine import TbliteEngine
from mimyria_wf.units import BOHR

STEP = 1e-3
VECTORS = np.array(list(field_vectors(STEP, ["pgt"]).values()))


def tensors_of(atoms: ase.Atoms, engine: TbliteEngine | None = None, step: float = STEP) -> ResponseTensors:
    vectors = VECTORS * step / STEP
    return response_tensors(vectors, (engine or TbliteEngine()).forces(atoms, vectors))


@pytest.fixture(scope="module")
def water() -> ase.Atoms:
    atoms = molecule("H2O")
    atoms.rotate(35, (1, 2, 3))
    atoms.rattle(0.05, seed=1)
    return atoms


def dipole(atoms: ase.Atoms, field=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Return tblite's dipole [e a0], by its own interface and from a cold start."""
    from tblite.interface import Calculator
    from tblite.library import ffi

    calculator = Calculator("GFN2-xTB", atoms.numbers, atoms.positions / BOHR)
    calculator.set("verbosity", 0)
    calculator.set("accuracy", 1e-3)
    field = np.array(field, dtype=float)
    if field.any():
        calculator.add("electric-field", ffi.cast("double*", field.ctypes.data))
    return calculator.singlepoint().get("dipole")


def polarizability(atoms: ase.Atoms) -> np.ndarray:
    """Return dM_a/dE_b by central differences of the dipole [e^2 a0^2/E_h]."""
    axes = STEP * np.eye(3)
    return np.array([(dipole(atoms, e) - dipole(atoms, -e)) / (2 * STEP) for e in axes]).T


def displaced(atoms: ase.Atoms, atom: int, axis: int, distance: float) -> ase.Atoms:
    copy = atoms.copy()
    copy.positions[atom, axis] += distance
    return copy


def test_apt_equals_the_spatial_derivative_of_the_dipole(water):
    apt, shift = tensors_of(water).apt, 0.005
    for atom in (0, 1):
        for axis in range(3):
            change = dipole(displaced(water, atom, axis, shift)) - dipole(displaced(water, atom, axis, -shift))
            np.testing.assert_allclose(apt[atom, axis], change / (2 * shift / BOHR), atol=2e-5)  # step**2 of both


def test_pgt_equals_the_spatial_derivative_of_the_polarizability(water):
    pgt, shift = tensors_of(water).pgt, 0.005
    for axis in range(3):
        plus, minus = (polarizability(displaced(water, 1, axis, s)) for s in (shift, -shift))
        np.testing.assert_allclose(pgt[1, axis], (plus - minus) / (2 * shift / BOHR), atol=1e-3)  # shift**2


def test_tensors_turn_with_the_molecule(water):
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    turned = water.copy()
    turned.positions = water.positions @ turn.T
    expected, found = tensors_of(water).rotated(turn), tensors_of(turned)
    np.testing.assert_allclose(found.apt, expected.apt, atol=2e-5)  # field step, whose error is not isotropic
    np.testing.assert_allclose(found.pgt, expected.pgt, atol=2e-3)


@pytest.mark.parametrize(("formula", "charge"), [("H2O", 0), ("OH", -1), ("H2O2", 0), ("CH3", 1)])
def test_sum_rules_hold_also_for_ions(formula, charge):
    atoms = molecule(formula)
    atoms.rattle(0.05, seed=2)
    atoms.info["charge"] = charge
    residual = tensors_of(atoms).sum_rule_residual(charge).largest()
    assert residual["apt"] < 1e-6
    assert residual["pgt"] < 1e-3
    assert diagnostics(VECTORS, TbliteEngine().forces(atoms, VECTORS), charge).net_force < 1e-9


def test_step_is_on_the_plateau(water):
    reference, other = tensors_of(water), tensors_of(water, step=5e-4)
    assert np.abs(reference.apt - other.apt).max() < 2e-5
    assert np.abs(reference.pgt - other.pgt).max() < 2e-3
    noise = diagnostics(VECTORS, TbliteEngine().forces(water, VECTORS))
    assert noise.apt_noise < 1e-4
    assert max(abs(scale - 1) for scale in noise.field_scale.values()) < 1e-3


def test_starts_from_the_previous_snapshot_do_not_bias_the_tensors(water):
    reference = tensors_of(water, TbliteEngine(accuracy=1e-4, start="cold"))
    direction = np.random.default_rng(4).normal(scale=0.01, size=(3, 3))
    for start in ("cold", "auto"):
        engine = TbliteEngine(start=start)
        for k in range(-3, 1):  # a short path that ends at the reference
            frame = water.copy()
            frame.positions += k * direction
            found = tensors_of(frame, engine)
        assert np.abs(found.apt - reference.apt).max() < 2e-6
        assert np.abs(found.pgt - reference.pgt).max() < 2e-4


def test_far_snapshots_do_not_depend_on_what_came_before(water):
    far = water.copy()
    far.rattle(0.2, seed=5)
    engine = TbliteEngine()
    engine.forces(far, VECTORS)
    np.testing.assert_array_equal(engine.forces(water, VECTORS), TbliteEngine().forces(water, VECTORS))


def test_another_molecule_or_charge_gets_calculators_of_its_own(water):
    engine = TbliteEngine()
    first = engine.forces(water, VECTORS[:1])
    engine.forces(molecule("CH4"), VECTORS[:1])
    cation = water.copy()
    cation.info.update(charge=1, multiplicity=2)
    assert np.abs(engine.forces(cation, VECTORS[:1]) - first).max() > 1e-3
    np.testing.assert_allclose(engine.forces(water, VECTORS[:1]), first, atol=1e-12)


def test_engine_travels_to_another_process_without_its_calculators(water):
    engine = TbliteEngine(accuracy=0.02)
    forces = engine.forces(water, VECTORS)
    other = pickle.loads(pickle.dumps(engine))
    assert other.level_of_theory == engine.level_of_theory
    np.testing.assert_array_equal(other.forces(water, VECTORS), forces)


def periodic(atoms):
    atoms.cell, atoms.pbc = [9, 9, 9], True


def radical(atoms):
    atoms.info["charge"] = 1


def heavy(atoms):
    atoms.numbers[0] = 92


def not_finite(atoms):
    atoms.positions[0] = np.nan


def triplet_parity(atoms):
    atoms.info["multiplicity"] = 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (periodic, r"no electric field under periodic boundaries .* use engine cp2k"),
        (radical, r"H2O with charge 1 has 9 electrons, which multiplicity 1 cannot hold"),
        (triplet_parity, r"H2O with charge 0 has 10 electrons, which multiplicity 2 cannot hold"),
        (heavy, r"no parameters for U in H2U: it knows H to Rn"),
        (not_finite, r"positions of H2O that are not finite"),
    ],
)
def test_refusals(water, spoil, message):
    atoms = water.copy()
    spoil(atoms)
    with pytest.raises(EngineError, match=message) as caught:
        TbliteEngine().forces(atoms, VECTORS)
    assert "\n" not in str(caught.value)


def test_unconverged_scf_is_an_error_that_names_point_and_snapshot(water):
    atoms = water.copy()
    atoms.info["snapshot"] = "nve-003/1250"
    with pytest.raises(EngineError, match=r"tblite failed at field point 0 of nve-003/1250") as caught:
        TbliteEngine(max_iterations=2).forces(atoms, VECTORS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "GFN3"}, "method must be one of GFN2-xTB"),
        ({"accuracy": 0.0}, "accuracy must be positive"),
        ({"threads": 0}, "1 or more"),
        ({"start": "warm"}, "start must be"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(EngineError, match=message):
        TbliteEngine(**arguments)


@pytest.mark.parametrize(("name", "multiplicity", "low", "high"), [("O2", 3, 3.0, 8.0), ("CH3", 2, 2.0, 6.0)])
def test_the_gap_of_an_open_shell_is_the_smaller_of_its_spins(name: str, multiplicity: int, low: float, high: float):
    atoms = molecule(name)
    atoms.info["multiplicity"] = multiplicity
    gap = TbliteEngine().field_results(atoms, np.zeros((1, 3))).gap
    assert gap is not None
    assert low < gap < high  # eV; between the half-filled levels of O2 there is none
