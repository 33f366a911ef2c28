"""The reducer against forces whose tensors are known, and against recorded CP2K forces."""

from pathlib import Path

import numpy as np
import pytest

from mimyria_wf.errors import FieldSetError, IncompleteFieldSet, LabelError
from mimyria_wf.finite_field import FIELD_POINTS, diagnostics, field_vectors, point_name, response_tensors

STEP = 5e-4
N_ATOMS = 4


class Model:
    """Forces F = F0 + P.E + E.Q.E/2 + cubic term with known tensors."""

    def __init__(self, seed: int = 0, charge: float | None = None, cubic: float = 0.0):
        rng = np.random.default_rng(seed)
        self.zero = rng.normal(scale=0.05, size=(N_ATOMS, 3))
        self.apt = rng.normal(size=(N_ATOMS, 3, 3))
        pgt = rng.normal(scale=3, size=(N_ATOMS, 3, 3, 3))
        self.pgt = pgt + pgt.swapaxes(-1, -2)
        if charge is not None:
            self.apt += (charge * np.eye(3) - self.apt.sum(axis=0)) / N_ATOMS
            self.pgt -= self.pgt.mean(axis=0)
        self.cubic = cubic * rng.normal(size=(N_ATOMS, 3, 3, 3, 3))

    def forces(self, vectors):
        e = np.atleast_2d(vectors)
        linear = np.einsum("idf,kf->kid", self.apt, e)
        quadratic = np.einsum("idfg,kf,kg->kid", self.pgt, e, e) / 2
        cubic = np.einsum("idfgh,kf,kg,kh->kid", self.cubic, e, e, e) / 6
        return self.zero + linear + quadratic + cubic


def points(*targets: str, step: float = STEP) -> np.ndarray:
    return np.array(list(field_vectors(step, targets).values()))


def assert_recovers(tensors, model, pgt=True):
    np.testing.assert_allclose(tensors.apt, model.apt, atol=1e-11)  # round-off 1e-16 / field
    if pgt:
        np.testing.assert_allclose(tensors.pgt, model.pgt, atol=1e-8)  # round-off 1e-16 / field**2
    else:
        assert tensors.pgt is None


def test_field_points_are_six_and_thirteen_with_the_apt_set_inside():
    apt, both = field_vectors(STEP, ["apt"]), field_vectors(STEP, ["apt", "pgt"])
    assert len(apt) == 6
    assert list(both) == list(FIELD_POINTS)
    assert next(iter(both)) == "0"
    assert set(apt) < set(both)
    assert list(field_vectors(STEP, ["pgt"])) == list(both)
    np.testing.assert_array_equal(both["-x-z"], [-STEP, 0, -STEP])
    assert [point_name(v) for v in both.values()] == list(both)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("step", [1e-4, 5e-4, 2e-3])
def test_quadratic_forces_give_exact_tensors_in_any_order(seed, step):
    model = Model(seed)
    vectors = np.random.default_rng(seed).permutation(points("pgt", step=step))
    tensors = response_tensors(vectors, model.forces(vectors))
    np.testing.assert_allclose(tensors.apt, model.apt, atol=1e-15 / step)
    np.testing.assert_allclose(tensors.pgt, model.pgt, atol=1e-15 / step**2)


def test_six_points_give_the_apt_alone_and_the_same_as_thirteen():
    model = Model(cubic=1e3)  # so strong that another choice of points would show
    six, thirteen = points("apt"), points("pgt")
    alone = response_tensors(six, model.forces(six))
    with_pgt = response_tensors(thirteen, model.forces(thirteen), ["pgt"])
    assert alone.pgt is None
    np.testing.assert_allclose(alone.apt, with_pgt.apt, atol=1e-13)


def test_diagonal_fields_of_length_h_and_of_components_h_give_the_same():
    model = Model(2)
    by_component = points("pgt")
    by_length = by_component.copy()
    by_length[7:] /= np.sqrt(2)
    for vectors in (by_component, by_length):
        assert_recovers(response_tensors(vectors, model.forces(vectors)), model)


@pytest.mark.parametrize("factor", [np.sqrt(2), 1 / np.sqrt(2)])
def test_swapped_diagonal_conventions_spoil_only_the_off_diagonals_and_are_refused(factor):
    model = Model(3)
    given, applied = points("pgt"), points("pgt")
    applied[7:] *= factor
    forces = model.forces(applied)
    wrong = response_tensors(given, forces, check=False)
    diagonal = np.arange(3)
    np.testing.assert_allclose(wrong.apt, model.apt, atol=1e-11)
    np.testing.assert_allclose(wrong.pgt[..., diagonal, diagonal], model.pgt[..., diagonal, diagonal], atol=1e-8)
    assert np.abs(wrong.pgt[..., 0, 1] - model.pgt[..., 0, 1]).max() > 0.5
    assert diagnostics(given, forces).field_scale["+x+y"] == pytest.approx(factor, rel=1e-9)
    with pytest.raises(FieldSetError, match=r"at \+x\+y .* mixed up"):
        response_tensors(given, forces)


def test_arbitrary_directions_and_lengths_give_exact_tensors():
    model = Model(4)
    rng = np.random.default_rng(4)
    half = rng.normal(scale=STEP, size=(8, 3))
    vectors = rng.permutation(np.concatenate([half, -half, np.zeros((1, 3))]))
    tensors = response_tensors(vectors, model.forces(vectors), ["apt", "pgt"])
    np.testing.assert_allclose(tensors.apt, model.apt, atol=1e-9)
    np.testing.assert_allclose(tensors.pgt, model.pgt, atol=1e-6)


def test_antidiagonal_points_do_as_well_as_diagonal_ones():
    model = Model(5)
    vectors = points("pgt")
    vectors[7] = [STEP, -STEP, 0]
    vectors[8] = [-STEP, STEP, 0]
    assert_recovers(response_tensors(vectors, model.forces(vectors)), model)


def test_error_of_the_step_is_of_second_order():
    model = Model(6, cubic=10)
    errors = [
        np.abs(response_tensors(points("apt", step=h), model.forces(points("apt", step=h))).apt - model.apt).max()
        for h in (1e-2, 5e-3)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("missing", list(FIELD_POINTS))
def test_a_missing_point_is_named(missing):
    names = [n for n in FIELD_POINTS if n != missing]
    vectors = STEP * np.array([FIELD_POINTS[n] for n in names], dtype=float)
    with pytest.raises(IncompleteFieldSet, match=rf"missing: {missing.replace('+', '[+]')} \("):
        response_tensors(vectors, Model().forces(vectors), ["pgt"])


def test_missing_points_are_named_by_what_is_asked_for():
    six = points("apt")
    with pytest.raises(IncompleteFieldSet, match=r"PGT .*missing: 0, \+x\+y, -x-y, \+x\+z, -x-z, \+y\+z, -y-z \(6 "):
        response_tensors(six, Model().forces(six), ["apt", "pgt"])
    with pytest.raises(IncompleteFieldSet, match=r"APT .*missing: \+y, -y, \+z, -z \(2 "):
        response_tensors(six[:2], Model().forces(six[:2]))
    twelve = points("pgt")[1:]
    with pytest.raises(IncompleteFieldSet, match=r"PGT .*missing: 0 \(12"):
        response_tensors(twelve, Model().forces(twelve))
    with pytest.raises(IncompleteFieldSet, match="points other than zero"):
        response_tensors(np.zeros((1, 3)), Model().forces(np.zeros((1, 3))))


def test_bad_sets_are_refused():
    six = points("apt")
    double = np.concatenate([six, six[2:3]])
    with pytest.raises(FieldSetError, match=r"\+y is in the set twice, rows 2 and 6"):
        response_tensors(double, Model().forces(double))
    with pytest.raises(FieldSetError, match=r"0 is in the set twice"):
        response_tensors(np.concatenate([six, np.zeros((2, 3))]), np.zeros((8, 1, 3)))
    with pytest.raises(FieldSetError, match=r"forces must have shape \(6, n_atoms, 3\)"):
        response_tensors(six, np.zeros((5, 4, 3)))
    forces = Model().forces(six)
    forces[3, 2, 1] = np.nan
    with pytest.raises(LabelError, match=r"field point -y are not finite \(atom 2\)"):
        response_tensors(six, forces)
    with pytest.raises(FieldSetError, match="targets must be"):
        field_vectors(STEP, ["dipole"])
    for step in (0.0, -1e-3, np.nan, 0.5):
        with pytest.raises(FieldSetError, match="field step"):
            field_vectors(step, ["apt"])


def test_diagnostics_measure_noise_curvature_and_net_force():
    model = Model(7, charge=-2.0)
    vectors = points("pgt")
    forces = model.forces(vectors)
    clean = diagnostics(vectors, forces, charge=-2.0)
    assert clean.apt_noise < 1e-11
    assert clean.net_force < 1e-14
    assert diagnostics(vectors, forces, charge=0.0).net_force == pytest.approx(2 * STEP)
    assert diagnostics(points("apt"), model.forces(points("apt")), charge=-2.0).net_force < 1e-14
    expected = STEP**2 * np.sqrt(np.mean(model.pgt[..., [0, 1, 2], [0, 1, 2]] ** 2))
    assert clean.curvature == pytest.approx(expected, rel=1e-6)
    rng = np.random.default_rng(7)
    squares = [
        diagnostics(vectors, forces + rng.normal(scale=1e-6, size=forces.shape)).apt_noise ** 2 for _ in range(50)
    ]
    # odd part of a mixed point less those of two axis points, each of variance noise^2/2, over a length sqrt(2) h
    assert np.mean(squares) == pytest.approx(1.5 / 2 * (1e-6 / STEP) ** 2, rel=0.15)


@pytest.fixture
def cp2k_forces(reference_data: Path) -> dict[str, np.ndarray]:
    folder = reference_data / "cp2k_recorded" / "field_points"
    recorded = {}
    for path in folder.glob("*-frc.dat"):
        rows = [line.split() for line in path.read_text().splitlines()]
        recorded[path.name.removesuffix("-frc.dat")] = np.array(
            [[float(x) for x in row[3:]] for row in rows if len(row) == 6 and row[0].isdigit()]
        )
    assert len(recorded) == 15
    assert all(f.shape == (24, 3) for f in recorded.values())
    return recorded


def vector_of(name: str) -> np.ndarray:
    """Return the vector of a recorded point: pxmy is (h, -h, 0), z alone is zero field."""
    vector = np.zeros(3)
    for sign, axis in zip(name[::2], name[1::2]):
        vector["xyz".index(axis)] = STEP if sign == "p" else -STEP
    return vector


@pytest.mark.reference_data
def test_recorded_cp2k_forces_give_the_apt_of_the_berry_phase_dipole(cp2k_forces):
    names = [n for n in cp2k_forces if n not in ("pxmy", "mxpy")]
    vectors = np.array([vector_of(n) for n in names])
    forces = np.array([cp2k_forces[n] for n in names])
    tensors = response_tensors(vectors, forces)
    recorded = [[0.44229, -0.08942, -0.05023], [-0.10645, 0.59647, 0.05058], [-0.05557, 0.03757, 0.56899]]
    berry = [[0.44238, -0.08942, -0.05020], [-0.10642, 0.59648, 0.05059], [-0.05557, 0.03755, 0.56903]]
    np.testing.assert_allclose(tensors.apt[1], recorded, atol=6e-5)  # SCF noise between two runs at 1e-8
    np.testing.assert_allclose(tensors.apt[1], berry, atol=1e-4)  # the two methods agree to 9e-5 e
    residual = tensors.sum_rule_residual(charge=0.0).largest()
    assert residual["apt"] <= 0.00811
    assert residual["pgt"] <= 0.067
    assert np.sqrt(np.mean(tensors.pgt[..., [0, 1, 2], [0, 1, 2]] ** 2)) == pytest.approx(2.7, abs=0.05)
    checks = diagnostics(vectors, forces)
    assert all(abs(scale - 1) < 1e-3 for scale in checks.field_scale.values())


@pytest.mark.reference_data
def test_recorded_mixed_derivative_equals_the_four_point_formula(cp2k_forces):
    f = cp2k_forces
    four_point = (f["pxpy"] - f["pxmy"] - f["mxpy"] + f["mxmy"]) / (4 * STEP**2)
    names = [n for n in f if n not in ("pxmy", "mxpy")]
    tensors = response_tensors(np.array([vector_of(n) for n in names]), np.array([f[n] for n in names]))
    difference = tensors.pgt[..., 0, 1] - four_point
    assert np.abs(difference).max() < 0.03  # SCF noise, against an rms of 1.5
    swapped = np.array([vector_of(n) / (np.sqrt(2) if len(n) == 4 else 1) for n in names])
    wrong = response_tensors(swapped, np.array([f[n] for n in names]), check=False).pgt[..., 0, 1] - four_point
    assert np.abs(wrong).max() > 1
    with pytest.raises(FieldSetError, match="mixed up"):
        response_tensors(swapped, np.array([f[n] for n in names]))
