"""Real CP2K runs: what is rendered runs, and what is read back is right."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read
from scipy.spatial.transform import Rotation
from tblite.interface import Calculator

from mimyria_wf.cp2k_input import render_field_set, render_md, render_polarizability, varied_template
from mimyria_wf.cp2k_output import (
    read_energies,
    read_field_results,
    read_field_runs,
    read_field_set,
    read_forces,
    read_polarizability,
    read_run,
)
from mimyria_wf.finite_field import diagnostics, field_vectors, response_tensors
from mimyria_wf.md import NveSettings, NvtSettings
from mimyria_wf.tblite_engine import TbliteEngine
from mimyria_wf.trajectory import open_trajectory
from mimyria_wf.units import BOHR

CP2K = os.environ.get("CP2K_EXECUTABLE") or shutil.which("cp2k.psmp") or shutil.which("cp2k")
TEMPLATES = Path(__file__).parents[1] / "templates" / "cp2k"

pytestmark = [pytest.mark.cp2k, pytest.mark.skipif(CP2K is None, reason="no cp2k.psmp in PATH or CP2K_EXECUTABLE")]


def run(directory: Path, inputs: dict[str, str]) -> None:
    """Run inputs one after the other, on one core."""
    for name, text in inputs.items():
        (directory / name).write_text(text)
        command = [str(CP2K), "-i", name, "-o", name.replace(".inp", ".out")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=directory, env=environment, capture_output=True, check=False, timeout=600)


def small_water() -> Atoms:
    """Return one molecule, in general position, in a triclinic box: a point takes seconds."""
    atoms = molecule("H2O")
    atoms.rotate(40, (1, 2, 3))
    atoms.set_cell([[5.0, 0.0, 0.0], [0.6, 4.8, 0.0], [-0.4, 0.5, 5.2]])
    atoms.pbc = True
    return atoms


def cheap(template: str) -> str:
    """Return the template with a coarser grid: only consistency is asked of it here."""
    return template.replace("CUTOFF 300", "CUTOFF 200").replace("REL_CUTOFF 60", "REL_CUTOFF 40")


def eight_waters(reference_data: Path) -> Atoms:
    atoms = read(reference_data / "cp2k_recorded" / "configuration.xyz")
    assert isinstance(atoms, Atoms)
    atoms.info = {}
    atoms.set_cell([6.214817] * 3)
    atoms.pbc = True
    return atoms


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.inp")), ids=lambda path: path.stem)
def test_templates_are_valid_input(path: Path, tmp_path: Path) -> None:
    atoms = Atoms("SO4H2O", positions=np.arange(24.0).reshape(8, 3), cell=[30, 30, 30], pbc=True)
    text = path.read_text()
    if "METHOD NNP" in text:
        nvt = NvtSettings(temperature=300, timestep=0.5, n_steps=10, friction=0.02, seed=1, thermostat="csvr")
        inputs = {"md.inp": render_md(text, atoms, nvt, "md")}
    else:
        atoms = atoms if "sulfate" in path.stem else atoms[5:]
        atoms.info["charge"] = -2 if "sulfate" in path.stem else 0
        atoms.pbc = "cluster" not in path.stem
        inputs = render_field_set(text, atoms, {"+x": np.array([1e-3, 0, 0])})
    for name, rendered in inputs.items():
        (tmp_path / name).write_text(rendered)
        result = subprocess.run([str(CP2K), "-c", name], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert "SUCCESS, the input could be parsed correctly." in result.stdout, result.stdout[-2000:]


@pytest.mark.slow
def test_a_full_field_set_obeys_the_sum_rules(tmp_path: Path) -> None:
    vectors, atoms = field_vectors(1e-3, ["apt", "pgt"]), small_water()
    template = cheap((TEMPLATES / "water_pbe_szv.inp").read_text())
    run(tmp_path, render_field_set(template, atoms, vectors))
    results = read_field_results(tmp_path, vectors, atoms)
    forces, problems = results.forces, results.problems
    assert problems == ("",) * 13
    fields = np.array(list(vectors.values()))
    tensors = response_tensors(fields, forces)
    assert tensors.apt is not None
    assert tensors.pgt is not None
    # The egg-box effect of a coarse grid breaks the sum rules by this much; a wrong sign or length does by far more.
    np.testing.assert_allclose(tensors.apt.sum(axis=0), 0.0, atol=0.02)
    np.testing.assert_allclose(tensors.pgt.sum(axis=0), 0.0, atol=0.2)
    assert np.trace(tensors.apt[0]) / 3 < -0.4
    # Mixed points determine the APT again; they would differ by 30 % if their length were taken for h.
    mixed = {n: v for n, v in zip(vectors, range(13)) if n in ("0", "+x+y", "-x-y", "+x+z", "-x-z", "+y+z", "-y-z")}
    again = response_tensors(fields[list(mixed.values())], forces[list(mixed.values())]).apt
    np.testing.assert_allclose(again, tensors.apt, atol=1e-3)
    assert diagnostics(fields, forces, 0) is not None
    runs = read_field_runs(tmp_path, vectors)
    steps = [r.n_scf_steps for r in runs.values() if r is not None and r.n_scf_steps is not None]
    assert len(steps) == 13
    assert max(steps[1:]) < steps[0]  # field points start from the zero-field wavefunction
    # Three ways to the polarizability: dipoles in fields, perturbation theory, and its symmetry.
    names = list(vectors)
    rows = [(names.index("+" + axis), names.index("-" + axis)) for axis in "xyz"]
    polarizability = np.array([(results.dipoles[p] - results.dipoles[m]) / 2e-3 for p, m in rows])
    run(tmp_path, {"polar.inp": render_polarizability(template, atoms, "polar", "zero")})
    perturbed = read_polarizability((tmp_path / "polar.out").read_text())
    np.testing.assert_allclose(polarizability, perturbed, atol=2e-4)  # EPS_SCF 1e-8, third order in the field
    assert results.gap == pytest.approx(13.0, abs=0.5)  # an SZV basis has no diffuse functions: far too large


@pytest.mark.slow
def test_the_zero_field_is_better_than_its_threshold(tmp_path: Path) -> None:
    """It enters a PGT as -2 F(0)/h^2 and starts cold: at one threshold for all its error would be the largest."""
    template = cheap((TEMPLATES / "water_pbe_szv.inp").read_text())
    forces = {}
    for threshold in (1e-5, 1e-6, 1e-9):
        directory = tmp_path / f"{threshold:g}"
        directory.mkdir()
        run(directory, render_field_set(varied_template(template, threshold), small_water(), {"0": np.zeros(3)}))
        forces[threshold] = read_field_results(directory, {"0": np.zeros(3)}, small_water()).forces[0]
    # the point of a set at 1e-5 stops at 1e-6, where it would stop in a set at 1e-6 if it were like the others
    like_the_others, ours = (np.abs(forces[threshold] - forces[1e-9]).max() for threshold in (1e-5, 1e-6))
    assert ours < 0.3 * like_the_others
    assert 2 * ours / 5e-4**2 < 2  # PGT error at 1e-6 [e^2 a0/E_h]; 2.7 were seen with 1.9e-7 E_h/a0


@pytest.mark.slow
@pytest.mark.reference_data
def test_recorded_forces_are_reproduced(tmp_path: Path, reference_data: Path) -> None:
    """One column of the APT of 8 H2O, from our own input, against the recorded one."""
    vectors = {name: v for name, v in field_vectors(5e-4, ["pgt"]).items() if name in ("0", "+x", "-x")}
    template = (TEMPLATES / "water_pbe_szv.inp").read_text()
    run(tmp_path, render_field_set(template, eight_waters(reference_data), vectors))
    forces, problems = read_field_set(tmp_path, vectors)
    assert problems == [""] * 3
    folder = reference_data / "cp2k_recorded" / "field_points"
    recorded = np.array([read_forces((folder / f"{name}-frc.dat").read_text()) for name in ("z", "px", "mx")])
    # EPS_SCF 1e-8 leaves 1e-8 E_h/a0 between builds of CP2K; the same build gives the same digits.
    np.testing.assert_allclose(forces, recorded, rtol=0, atol=2e-8)
    column = (forces[1] - forces[2]) / 1e-3
    np.testing.assert_allclose(column[1], [0.44229, -0.10645, -0.05557], atol=5e-5)


XTB = (TEMPLATES / "cluster_gfn1_xtb.inp").read_text()


def water_dimer() -> Atoms:
    """Return two molecules in general position, in the box of a cluster."""
    atoms = Atoms(
        "OH2OH2",
        [
            (-1.551007, -0.114520, 0.0),
            (-1.934259, 0.762503, 0.0),
            (-0.599677, 0.040712, 0.0),
            (1.350625, 0.111469, 0.0),
            (1.680398, -0.373741, -0.758561),
            (1.680398, -0.373741, 0.758561),
        ],
        cell=[14.0, 14.0, 14.0],
    )
    atoms.positions += np.random.default_rng(3).normal(scale=0.03, size=(6, 3)) + 7.0
    return atoms


def mulliken_dipole(atoms: Atoms) -> np.ndarray:
    """Return sum_i q_i r_i [e a0] of tblite's GFN1-xTB without a field."""
    calculator = Calculator("GFN1-xTB", atoms.numbers, atoms.positions / BOHR)
    calculator.set("verbosity", 0)
    calculator.set("accuracy", 1e-4)
    return calculator.singlepoint().get("charges") @ (atoms.positions / BOHR)


@pytest.mark.slow
def test_a_cluster_of_gfn1_xtb_in_a_field(tmp_path: Path) -> None:
    """CP2K's GFN1-xTB in &EFIELD: invariance, field against spatial derivatives, and tblite's GFN1-xTB.

    CP2K's field acts on the Mulliken charges q alone, so that its APT is d(sum_i q_i r_i)/dr, which tblite gives
    without a field. tblite's own field acts on the dipoles of the orbitals at each atom, too: that is the difference.
    """
    vectors, atoms = field_vectors(1e-3, ["apt", "pgt"]), water_dimer()

    def field_set(which: Atoms, name: str) -> tuple[np.ndarray, np.ndarray]:
        directory = tmp_path / name
        directory.mkdir()
        run(directory, render_field_set(XTB, which, vectors))
        results = read_field_results(directory, vectors, which)
        assert results.problems == ("",) * 13
        tensors = response_tensors(np.array(list(vectors.values())), results.forces)
        assert tensors.apt is not None
        assert tensors.pgt is not None
        return tensors.apt, tensors.pgt

    apt, pgt = field_set(atoms, "here")
    np.testing.assert_allclose(apt.sum(axis=0), 0.0, atol=1e-8)
    np.testing.assert_allclose(pgt.sum(axis=0), 0.0, atol=1e-5)

    turned, rotation = atoms.copy(), Rotation.from_rotvec([0.3, -0.7, 1.1]).as_matrix()
    turned.positions = (atoms.positions - 7.0) @ rotation.T + [7.31, 6.83, 7.23]
    apt_there, pgt_there = field_set(turned, "there")
    # EPS_SCF 1e-9 over h and h^2, and the field's third order, which depends on its axes
    np.testing.assert_allclose(apt_there, np.einsum("ia,jb,nab->nij", rotation, rotation, apt), atol=1e-5)
    expected = np.einsum("ia,jb,kc,nabc->nijk", rotation, rotation, rotation, pgt)
    np.testing.assert_allclose(pgt_there, expected, atol=2e-3)

    shift, dipoles, polarizabilities = 0.01, [], []
    for name, sign in (("plus", 1), ("minus", -1)):
        moved = atoms.copy()
        moved.positions[2, 0] += sign * shift
        directory = tmp_path / name
        directory.mkdir()
        inputs = render_field_set(XTB, moved, {"0": np.zeros(3)})
        run(directory, inputs | {"polar.inp": render_polarizability(XTB, moved, "polar", "zero")})
        dipoles.append(read_field_results(directory, {"0": np.zeros(3)}, moved).dipoles[0])
        polarizabilities.append(read_polarizability((directory / "polar.out").read_text()))
    distance = 2 * shift / BOHR
    np.testing.assert_allclose((dipoles[0] - dipoles[1]) / distance, apt[2, 0], atol=3e-4)  # third order in the shift
    np.testing.assert_allclose((polarizabilities[0] - polarizabilities[1]) / distance, pgt[2, 0], atol=3e-3)

    by_charges = np.empty((6, 3, 3))
    for atom in range(6):
        for axis in range(3):
            ends = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += 0.5 * sign * shift
                ends.append(mulliken_dipole(moved))
            by_charges[atom, axis] = (ends[0] - ends[1]) / (distance / 2)
    # without a field the forces of the two programs differ by 0.1 %
    np.testing.assert_allclose(apt, by_charges, atol=1.5e-3)
    plain = TbliteEngine(method="GFN1-xTB").forces(atoms, np.array(list(vectors.values())))
    full = response_tensors(np.array(list(vectors.values())), plain).apt
    assert full is not None
    assert np.abs(full - apt).max() > 0.2


@pytest.mark.slow
def test_failures_are_named(tmp_path: Path) -> None:
    template = cheap((TEMPLATES / "water_pbe_szv.inp").read_text())
    vectors = {"0": np.zeros(3)}
    run(tmp_path, render_field_set(template.replace("BASIS_SET SZV", "BASIS_SET NOSUCH"), small_water(), vectors))
    _, problems = read_field_set(tmp_path, vectors)
    assert "CP2K aborted: The requested basis set <NOSUCH-MOLOPT-SR-GTH> for element <O>" in problems[0]
    # CP2K appends to its output: the second run, in the same directory, must be the one that is read.
    stopped = template.replace("MAX_SCF 40", "MAX_SCF 2").replace("MAX_SCF 20", "MAX_SCF 2")
    run(tmp_path, render_field_set(stopped, small_water(), vectors))
    forces, problems = read_field_set(tmp_path, vectors, n_atoms=3)
    assert "SCF did not converge" in problems[0] or "CP2K aborted: SCF" in problems[0]
    assert np.isnan(forces).all()


@pytest.mark.slow
@pytest.mark.reference_data
def test_nve_starts_exactly_from_an_nvt_frame(tmp_path: Path, reference_data: Path) -> None:
    template = (TEMPLATES / "water_nnp.inp").read_text()
    atoms = eight_waters(reference_data)
    nvt = NvtSettings(temperature=300, timestep=0.5, n_steps=51, stride=10, friction=0.02, seed=11, thermostat="csvr")
    run(tmp_path, {"nvt.inp": render_md(template, atoms, nvt, "nvt")})
    run(tmp_path, {"again.inp": render_md(template, atoms, nvt, "again")})
    run(tmp_path, {"other.inp": render_md(template, atoms, replace(nvt, seed=12), "other")})
    positions = {p: (tmp_path / f"{p}-pos-1.xyz").read_text() for p in ("nvt", "again", "other")}
    assert positions["again"] == positions["nvt"] != positions["other"]

    source = open_trajectory(tmp_path / "nvt-pos-1.xyz", cell=atoms.cell.array, pbc=True).read()
    assert source.positions.shape == (6, 24, 3)
    nve = NveSettings(timestep=0.5, n_steps=100, stride=2)
    run(tmp_path, {"nve.inp": render_md(template, source.atoms(5), nve, "nve")})
    result = open_trajectory(tmp_path / "nve-pos-1.xyz", cell=atoms.cell.array, pbc=True).read()
    assert result.timestep == pytest.approx(1.0)
    np.testing.assert_array_equal(result.positions[0], source.positions[5])
    assert result.velocities is not None
    assert source.velocities is not None
    np.testing.assert_array_equal(result.velocities[0], source.velocities[5])
    energies = {p: read_energies((tmp_path / f"{p}-1.ener").read_text()) for p in ("nvt", "nve")}
    assert energies["nve"].step.tolist() == list(range(0, 99, 2))
    assert energies["nve"].potential_energy[0] == pytest.approx(energies["nvt"].potential_energy[-1], abs=1e-8)
    assert np.ptp(energies["nve"].conserved) < 2e-3 * 24  # 0.5 fs Verlet: a small fraction of kT per atom
    assert read_run((tmp_path / "nve.out").read_text()).is_finished
