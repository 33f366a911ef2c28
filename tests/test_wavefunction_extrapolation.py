"""Guesses of wavefunctions in a field: the order of their error, what they are made of, and that CP2K takes them."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from scipy.linalg import eigh, subspace_angles
from scipy.stats import ortho_group

from mimyria_wf import wavefunction_extrapolation
from mimyria_wf.cp2k_input import render_field_set
from mimyria_wf.cp2k_output import read_field_set, read_run
from mimyria_wf.errors import EngineError
from mimyria_wf.finite_field import field_vectors
from mimyria_wf.wavefunction_extrapolation import (
    Orbitals,
    Wavefunction,
    aligned,
    are_neighbours,
    extrapolate,
    extrapolating_inputs,
    extrapolation_weights,
    guess_file,
    read_wavefunction,
    start_from_guess,
    start_from_neighbour,
    write_guess,
    write_wavefunction,
)

CP2K = os.environ.get("CP2K_EXECUTABLE") or shutil.which("cp2k.psmp") or shutil.which("cp2k")
TEMPLATES = Path(__file__).parents[1] / "templates" / "cp2k"
N_BASIS, N_OCCUPIED, N_ATOMS = 14, 5, 2
X, Y, Z = np.eye(3)
ZERO = np.zeros(3)


def as_wavefunction(coefficients: Sequence[np.ndarray]) -> Wavefunction:
    """Return closed or open shells of the (n_orbitals, n_basis) coefficients of each spin."""
    layout = np.array([N_ATOMS, len(coefficients), N_BASIS, 1, 1], dtype=np.int32).tobytes()
    each = np.array([1] * N_ATOMS, dtype=np.int32).tobytes()
    spins = []
    for rows in coefficients:
        n = len(rows)
        occupations = np.full(n, 3.0 - len(coefficients))
        counts = np.array([n, n, n + 1, int(occupations.sum())], dtype=np.int32).tobytes()
        spins.append(Orbitals(counts, np.zeros(n), occupations, np.array(rows)))
    return Wavefunction((layout, each, each, each), tuple(spins))


class Model:
    """A generalised eigenvalue problem (H + E.D) C = S C e with a self-consistent part, rotated at random."""

    def __init__(self, seed: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.rng = rng
        levels = np.concatenate([np.linspace(-1, -0.6, N_OCCUPIED), np.linspace(0.2, 1.5, N_BASIS - N_OCCUPIED)])
        mix = np.eye(N_BASIS) + 0.1 * rng.normal(size=(N_BASIS, N_BASIS))
        self.overlap = mix @ mix.T
        basis = ortho_group.rvs(N_BASIS, random_state=rng)
        self.hamiltonian = mix @ basis @ np.diag(levels) @ basis.T @ mix.T
        self.dipoles = rng.normal(size=(3, N_BASIS, N_BASIS))
        self.dipoles += self.dipoles.transpose(0, 2, 1)

    def orbitals(self, field: np.ndarray) -> np.ndarray:
        """Return (n_occupied, n_basis) orbitals in a field, in a random rotation."""
        h = self.hamiltonian + np.einsum("k,kab->ab", field, self.dipoles)
        density = np.zeros_like(h)
        for _ in range(60):
            _, c = eigh(h + 0.1 * np.diag(np.diag(density)), self.overlap)
            density = c[:, :N_OCCUPIED] @ c[:, :N_OCCUPIED].T
        return ortho_group.rvs(N_OCCUPIED, random_state=self.rng) @ c[:, :N_OCCUPIED].T

    def error(self, guess: Wavefunction, field: np.ndarray) -> float:
        """Return the largest angle between the guess's occupied space and the true one [rad]."""
        root = np.linalg.cholesky(self.overlap).T
        return float(subspace_angles(root @ guess.spins[0].coefficients.T, root @ self.orbitals(field).T).max())


def guess_error(model: Model, known: Sequence[np.ndarray], target: np.ndarray, step: float) -> float:
    vectors = step * np.array(known)
    wavefunctions = [as_wavefunction([model.orbitals(vector)]) for vector in vectors]
    return model.error(extrapolate(wavefunctions, vectors, step * target), step * target)


@pytest.mark.parametrize(
    ("known", "target", "order"),
    [
        ([ZERO], X, 1),
        ([ZERO, X], -X, 2),
        ([ZERO, X, -X, Y, -Y], X + Y, 2),
        ([ZERO, X, -X, Y, -Y, Z, -Z, X + Y], -X - Y, 3),
    ],
    ids=["zero field", "opposite", "mixed", "opposite of mixed"],
)
def test_error_of_a_guess_falls_with_the_order_promised(
    known: list[np.ndarray], target: np.ndarray, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wavefunction_extrapolation, "_HELD_BACK", 0.0)
    errors = [guess_error(Model(), known, target, step) for step in (8e-3, 4e-3)]
    # 15 %: the next order, a step of the field smaller
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, rel=0.15)


def test_orbitals_must_be_turned_onto_each_other_first() -> None:
    model, step = Model(), 4e-3
    wavefunctions = [as_wavefunction([model.orbitals(v)]) for v in (ZERO, step * X)]
    raw = 2 * wavefunctions[0].spins[0].coefficients - wavefunctions[1].spins[0].coefficients
    plain = model.error(wavefunctions[0], -step * X)
    assert model.error(as_wavefunction([raw]), -step * X) > 0.8 * plain
    guess = extrapolate(wavefunctions, np.array([ZERO, step * X]), -step * X)
    assert model.error(guess, -step * X) < 0.2 * plain


def test_alignment_does_not_depend_on_the_rotation_it_takes_out() -> None:
    model = Model()
    reference = as_wavefunction([model.orbitals(ZERO), model.orbitals(ZERO)[:3]])
    other = [model.orbitals(5e-3 * X), reference.spins[1].coefficients]
    turned = [ortho_group.rvs(len(rows), random_state=7) @ rows for rows in other]
    one, two = (aligned(as_wavefunction(rows), reference) for rows in (other, turned))
    for first, second in zip(one.spins, two.spins):
        np.testing.assert_allclose(first.coefficients, second.coefficients, atol=1e-12)
    np.testing.assert_allclose(two.spins[1].coefficients, reference.spins[1].coefficients, atol=1e-12)


@pytest.mark.parametrize(
    ("known", "target", "weights"),
    [
        ([ZERO], X, [1]),
        ([ZERO, X], -X, [2, -1]),
        ([ZERO, X, -X], Y, [1, 0, 0]),
        ([ZERO, X, Y], X + Y, [-1, 1, 1]),
        ([ZERO, X, -X], 2 * X, [-3, 3, 1]),
    ],
)
def test_weights_are_those_of_the_taylor_series(
    known: list[np.ndarray], target: np.ndarray, weights: list[float]
) -> None:
    found = extrapolation_weights(5e-4 * np.array(known), 5e-4 * target)
    np.testing.assert_allclose(found, weights, rtol=0, atol=3e-3)  # what is held back


def test_more_points_never_amplify_the_errors_of_the_scf() -> None:
    vectors = np.array([ZERO, X, -X, 2 * X, -2 * X, 0.5 * X, -0.5 * X, 1.001 * X]) * 5e-4
    weights = extrapolation_weights(vectors, 5e-4 * np.array([0.98, 0, 0]))
    assert np.abs(weights).sum() < 4


@pytest.mark.parametrize("n_spins", [1, 2])
def test_files_come_back_as_written(tmp_path: Path, n_spins: int) -> None:
    written = as_wavefunction([Model().orbitals(ZERO), Model().orbitals(ZERO)[:4]][:n_spins])
    write_wavefunction(tmp_path / "a.wfn", written)
    read = read_wavefunction(tmp_path / "a.wfn")
    write_wavefunction(tmp_path / "b.wfn", read)
    assert (tmp_path / "a.wfn").read_bytes() == (tmp_path / "b.wfn").read_bytes()
    for one, other in zip(written.spins, read.spins, strict=True):
        np.testing.assert_array_equal(one.coefficients, other.coefficients)
        np.testing.assert_array_equal(one.occupations, other.occupations)


def test_empty_orbitals_stay_those_of_the_first() -> None:
    model = Model()
    one, other = model.orbitals(ZERO), model.orbitals(5e-3 * X)
    occupations = np.array([2.0, 2, 2, 2, 0])
    first, second = (as_wavefunction([rows]) for rows in (one, other))
    first, second = (
        Wavefunction(w.layout, (Orbitals(w.spins[0].counts, w.spins[0].levels, occupations, w.spins[0].coefficients),))
        for w in (first, second)
    )
    # the same empty orbital and the same occupied space, so that the occupied ones can be aligned
    guess = extrapolate([first, first], np.array([ZERO, 5e-3 * X]), -5e-3 * X)
    np.testing.assert_array_equal(guess.spins[0].coefficients[4], one[4])
    with pytest.raises(EngineError, match="different occupations"):
        aligned(as_wavefunction([other]), second)


def test_files_that_are_no_wavefunctions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "z-RESTART.wfn"
    with pytest.raises(EngineError, match=r"no wavefunction z-RESTART\.wfn"):
        read_wavefunction(path)
    write_wavefunction(path, as_wavefunction([Model().orbitals(ZERO)]))
    whole = path.read_bytes()
    for content in (b"", b"not a wavefunction", whole[:50], whole[:-30], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(EngineError, match=r"z-RESTART\.wfn is no wavefunction of CP2K, or it is cut off"):
            read_wavefunction(path)


def test_other_states_are_refused() -> None:
    coefficients = np.eye(N_BASIS)
    reference = as_wavefunction([coefficients[:N_OCCUPIED]])
    excited = as_wavefunction([coefficients[1 : N_OCCUPIED + 1]])
    with pytest.raises(EngineError, match="different states"):
        aligned(excited, reference)
    bigger = Wavefunction((b"", *reference.layout[1:]), reference.spins)
    with pytest.raises(EngineError, match="different atoms or basis"):
        aligned(bigger, reference)


def small_water() -> Atoms:
    """Return one molecule, in general position, in a triclinic box: a point takes a second or two."""
    atoms = molecule("H2O")
    atoms.rotate(40, (1, 2, 3))
    atoms.set_cell([[5.0, 0.0, 0.0], [0.6, 4.8, 0.0], [-0.4, 0.5, 5.2]])
    atoms.pbc = True
    return atoms


def template() -> str:
    """Return the template with a coarser grid: only consistency is asked of it here."""
    text = (TEMPLATES / "water_pbe_szv.inp").read_text()
    return text.replace("CUTOFF 300", "CUTOFF 200").replace("REL_CUTOFF 60", "REL_CUTOFF 40")


CONVERGED = """
 PROGRAM STARTED AT
  *** SCF run converged in    12 steps ***
 PROGRAM ENDED AT
"""


def finished(folder: Path, names: Sequence[str], model: Model, vectors: dict[str, np.ndarray]) -> None:
    """Leave what CP2K leaves behind."""
    projects = {"0": "zero", "+x": "px", "-x": "mx"}
    for name in names:
        project = projects[name]
        (folder / f"{project}.out").write_text(CONVERGED)
        vector = np.zeros(3) if name == "0" else vectors[name]
        write_wavefunction(folder / f"{project}-RESTART.wfn", as_wavefunction([model.orbitals(vector)]))


@pytest.fixture
def point(tmp_path: Path) -> tuple[Path, list[Path], Model, dict[str, np.ndarray]]:
    """Return the input of -x, those before it, and what made their wavefunctions."""
    vectors = {"+x": 4e-3 * X, "-x": -4e-3 * X}
    inputs = extrapolating_inputs(render_field_set(template(), small_water(), vectors))
    assert list(inputs) == ["zero.inp", "px.inp", "mx.inp"]
    for name, text in inputs.items():
        (tmp_path / name).write_text(text)
    model = Model()
    finished(tmp_path, ["0", "+x"], model, vectors)
    return tmp_path / "mx.inp", [tmp_path / "zero.inp", tmp_path / "px.inp"], model, vectors


def test_a_guess_is_written_where_the_input_looks_for_it(point: tuple) -> None:
    target, earlier, model, vectors = point
    guess = write_guess(target, earlier)
    assert guess.file == guess_file("mx")
    assert guess.text == "mx-GUESS.wfn = +2.00 zero -1.00 px"
    found = read_wavefunction(target.with_name(guess_file("mx")))
    zero = read_wavefunction(target.with_name("zero-RESTART.wfn"))
    assert model.error(found, vectors["-x"]) < 0.2 * model.error(zero, vectors["-x"])


def test_runs_that_failed_are_left_out(point: tuple) -> None:
    target, earlier, *_ = point
    folder = target.parent
    (folder / "px.out").write_text(CONVERGED.replace("run converged", "run NOT converged"))
    guess = write_guess(target, earlier)
    assert guess.weights == pytest.approx({"zero": 1.0})
    assert guess.left_out == {"px": "its SCF did not converge"}
    assert (folder / guess.file).read_bytes() == (folder / "zero-RESTART.wfn").read_bytes()
    (folder / "px.out").write_text(CONVERGED)
    (folder / "px-RESTART.wfn").write_bytes(b"cut")
    assert "cut off" in write_guess(target, earlier).left_out["px"]
    (folder / guess.file).unlink()
    (folder / "zero.out").unlink()
    assert not write_guess(target, earlier).weights
    assert not (folder / guess.file).exists()  # CP2K then starts from atomic densities


def test_a_guess_never_overwrites_a_result(point: tuple) -> None:
    target, earlier, *_ = point
    target.write_text(target.read_text().replace(guess_file("mx"), "zero-RESTART.wfn"))
    with pytest.raises(EngineError, match=r"must name a guess of its own .* it names zero-RESTART\.wfn"):
        write_guess(target, earlier)


def test_mixed_fields_are_read_from_inputs(tmp_path: Path) -> None:
    vectors = field_vectors(5e-4, ["pgt"])
    inputs = extrapolating_inputs(render_field_set(template(), small_water(), vectors))
    model = Model()
    for name, text in inputs.items():
        (tmp_path / name).write_text(text)
    names = [Path(name).stem for name in inputs]
    for project, vector in zip(names[:7], vectors.values()):
        (tmp_path / f"{project}.out").write_text(CONVERGED)
        write_wavefunction(tmp_path / f"{project}-RESTART.wfn", as_wavefunction([model.orbitals(vector)]))
    guess = write_guess(tmp_path / "pxpy.inp", [tmp_path / f"{name}.inp" for name in names[:7]])
    assert sum(guess.weights.values()) == pytest.approx(1, abs=1e-3)
    found = read_wavefunction(tmp_path / guess.file)
    zero = read_wavefunction(tmp_path / "zero-RESTART.wfn")
    assert model.error(found, vectors["+x+y"]) < 0.02 * model.error(zero, vectors["+x+y"])


def test_only_field_points_are_made_to_start_from_guesses(point: tuple) -> None:
    target, earlier, *_, vectors = point
    rendered = render_field_set(template(), small_water(), vectors)
    assert start_from_guess(earlier[0], []) is None
    assert earlier[0].read_text() == rendered["zero.inp"]
    extrapolating = target.read_text()
    target.write_text(rendered["mx.inp"])
    guess = start_from_guess(target, earlier)
    assert guess is not None
    assert guess.weights == pytest.approx({"zero": 2.0, "px": -1.0}, abs=5e-3)
    assert target.read_text() == extrapolating


def test_a_guess_is_never_as_good_as_the_noise() -> None:
    vectors = np.array(list(field_vectors(5e-4, ["pgt"]).values()))[:12]
    target = -5e-4 * (Y + Z)
    left = target - extrapolation_weights(vectors, target) @ vectors
    np.testing.assert_allclose(left, 5e-4 * target, atol=1e-4 * 5e-4)


def test_neighbours_are_the_same_atoms_a_little_moved() -> None:
    atoms = small_water()
    moved = atoms.copy()
    moved.positions[1] += 0.02
    assert are_neighbours(atoms, moved)
    charged, far, shuffled, stretched = (atoms.copy() for _ in range(4))
    charged.info["charge"] = 1
    far.positions[2] += 0.2
    shuffled.numbers[:] = shuffled.numbers[::-1]
    stretched.set_cell(1.1 * stretched.cell.array)
    for other in (charged, far, shuffled, stretched, atoms[:2]):
        assert not are_neighbours(atoms, other)


def test_a_neighbours_wavefunction_starts_the_first_point(point: tuple) -> None:
    zero = point[1][0]
    content = zero.with_name("zero-RESTART.wfn").read_bytes()
    start_from_neighbour(zero, content)
    text = zero.read_text()
    assert "SCF_GUESS RESTART" in text
    assert f"WFN_RESTART_FILE_NAME {guess_file('zero')}" in text
    assert "&RESTART ON" in text
    assert zero.with_name(guess_file("zero")).read_bytes() == content


@pytest.mark.cp2k
@pytest.mark.skipif(CP2K is None, reason="no cp2k.psmp in PATH or CP2K_EXECUTABLE")
def test_cp2k_starts_from_the_guess_and_ends_where_it_would_have(tmp_path: Path) -> None:
    vectors = {"0": ZERO, "+x": 1e-3 * X, "-x": -1e-3 * X}
    plain = render_field_set(template(), small_water(), vectors)
    inputs = extrapolating_inputs(plain)
    inputs["again.inp"] = plain["mx.inp"].replace("mx", "again")
    steps = {}
    for name, text in inputs.items():
        (tmp_path / name).write_text(text)
        if name in ("px.inp", "mx.inp"):
            write_guess(tmp_path / name, [tmp_path / earlier for earlier in list(inputs)[: len(steps)]])
        output = name.replace(".inp", ".out")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([str(CP2K), "-i", name, "-o", output], cwd=tmp_path, env=environment, check=True, timeout=300)
        found = read_run((tmp_path / output).read_text())
        assert found.n_scf_steps is not None
        steps[name.removesuffix(".inp")] = found.n_scf_steps
    assert steps["mx"] <= 0.7 * min(steps["px"], steps["again"]), steps
    projects = {"0": "zero", "-x": "mx", "again": "again"}
    same = {"-x": vectors["-x"], "again": vectors["-x"]}
    forces, problems = read_field_set(tmp_path, same, projects.__getitem__)
    assert problems == ["", ""]
    np.testing.assert_allclose(forces[0], forces[1], rtol=0, atol=1e-7)  # ten times EPS_SCF
