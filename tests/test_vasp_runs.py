"""VASP's three routes against a stand-in executable with real numbers: known tensors, and every way a run can fail."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
import vasp_stand_in
from ase.build import molecule
from ase.spacegroup import crystal

from mimyria_wf.errors import EngineError, FieldSetError
from mimyria_wf.finite_field import diagnostics, field_vectors, response_tensors
from mimyria_wf.units import BOHR, HARTREE_PER_BOHR
from mimyria_wf.vasp_fields import lcalceps_forces, lepsilon_labels, read_lcalceps_set
from mimyria_wf.vasp_input import (
    Potential,
    VaspTemplate,
    render_field_set,
    render_lcalceps,
    render_lepsilon,
    sorted_atoms,
)
from mimyria_wf.vasp_output import read_vasp_response
from mimyria_wf.vasp_run import outcar_gap, read_field_points, read_vasp_run

STEP = 5e-4
INCAR = {"ENCUT": 400, "EDIFF": 1e-8, "ISMEAR": 0, "SIGMA": 0.05}


def read_field_set(*arguments: Any, **more: Any) -> tuple[np.ndarray, list[str]]:
    """Return forces and problems of the points."""
    found = read_field_points(*arguments, **more)
    return found.forces, list(found.problems)


def template(system: str = "", kpoints: object = None, **tags: object) -> VaspTemplate:
    return VaspTemplate.from_settings({"SYSTEM": f"test {system}", **INCAR, **tags}, kpoints)


def titles(folder: Path) -> None:
    """Write a POTCAR without anything licensed: titles alone."""
    symbols = (folder / "POSCAR").read_text().splitlines()[5].split()
    (folder / "POTCAR").write_text("".join(f"   TITEL  = PAW_PBE {s} stand-in\n" for s in symbols))


def run(folder: Path) -> int:
    """Run the stand-in in this process, which saves a second a run."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as output:
        status = vasp_stand_in.Run().main()
    (folder / "vasp_output").write_text(output.getvalue())
    return status


def run_all(root: Path, runs: Mapping[str, Mapping[str, str]]) -> Path:
    """Run folders in their order, with the first one's WAVECAR in those that start from it."""
    first = next(iter(runs))
    for name, files in runs.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text)
        titles(folder)
        if "ISTART = 1" in files["INCAR"] and (root / first / "WAVECAR").is_file():
            shutil.copyfile(root / first / "WAVECAR", folder / "WAVECAR")
        run(folder)
    return root


@pytest.fixture(scope="module")
def water() -> ase.Atoms:
    """H O H in a triclinic box, off the axes, so that no component vanishes and POSCAR sorts the atoms."""
    atoms = molecule("H2O")[[1, 0, 2]]
    atoms.rotate(37, (1, 2, 3))
    atoms.positions += [3.1, 3.9, 4.2]
    atoms.set_cell([[9.0, 0, 0], [1.0, 9.5, 0], [0.5, -0.7, 10.0]])
    atoms.pbc = True
    return atoms


@pytest.fixture(scope="module")
def quartz() -> ase.Atoms:
    """A small crystal with two species, far from its minimum."""
    atoms = crystal(
        ["Si", "O"],
        basis=[(0.47, 0, 0), (0.4135, 0.2669, 0.1191)],
        spacegroup=152,
        cellpar=[4.916, 4.916, 5.4054, 90, 90, 120],
    )
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture(scope="module")
def known(water):
    """APT and PGT of the same method from tblite itself, with the atoms where POSCAR has them."""
    from mimyria_wf.tblite_engine import TbliteEngine

    cluster = ase.Atoms(water.numbers, water.positions)
    vectors = np.array(list(field_vectors(STEP, ["pgt"]).values()))
    return response_tensors(vectors, TbliteEngine("GFN2-xTB", accuracy=1e-3).forces(cluster, vectors))


@pytest.fixture(scope="module")
def finite_field(water, tmp_path_factory) -> Path:
    vectors = field_vectors(STEP, ["pgt"])
    return run_all(tmp_path_factory.mktemp("field"), render_field_set(template(), water, vectors))


@pytest.fixture
def copied(finite_field, tmp_path) -> Path:
    """A field set whose files may be changed."""
    shutil.copytree(finite_field, tmp_path / "set")
    return tmp_path / "set"


class TestStandIn:
    def test_others_read_it(self, finite_field):
        """What ASE and parsevasp, which aiida-vasp parses with, make of its files."""
        outcar = pytest.importorskip("parsevasp.outcar")
        vasprun = pytest.importorskip("parsevasp.vasprun")
        folder = finite_field / "px"
        ours = read_vasp_run(folder)
        forces = ours.forces * HARTREE_PER_BOHR
        # six decimals in OUTCAR, positions with five
        for kind, name, atol in (("vasp-xml", "vasprun.xml", 1e-12), ("vasp-out", "OUTCAR", 6e-7)):
            atoms = ase.io.read(folder / name, format=kind)
            np.testing.assert_allclose(atoms.get_forces(), forces, atol=atol)
            assert atoms.get_potential_energy(force_consistent=True) == pytest.approx(ours.energy, abs=1e-7)
        xml = vasprun.Xml(str(folder / "vasprun.xml"))
        np.testing.assert_allclose(xml.get_forces("last"), forces, atol=1e-12)
        assert xml.get_version() == "6.4.3"
        status = outcar.Outcar(str(folder / "OUTCAR")).get_run_status()
        assert status["finished"] is True
        assert status["electronic_converged"] is True

    def test_runs_as_a_program(self, finite_field, tmp_path):
        for name in ("INCAR", "POSCAR", "KPOINTS", "POTCAR"):
            shutil.copyfile(finite_field / "zero" / name, tmp_path / name)
        script = Path(vasp_stand_in.__file__)
        assert os.access(script, os.X_OK)
        done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "vasp.6.4.3" in done.stdout
        assert {"OUTCAR", "vasprun.xml", "CONTCAR", "OSZICAR", "WAVECAR"} <= {p.name for p in tmp_path.iterdir()}
        np.testing.assert_array_equal(read_vasp_run(tmp_path).forces, read_vasp_run(finite_field / "zero").forces)

    def test_wrong_order_of_potentials(self, finite_field, tmp_path):
        for name in ("INCAR", "POSCAR", "KPOINTS"):
            shutil.copyfile(finite_field / "zero" / name, tmp_path / name)
        (tmp_path / "POTCAR").write_text("  TITEL = PAW_PBE O 1\n  TITEL = PAW_PBE H 1\n")
        with pytest.raises(SystemExit, match="stands where POSCAR has H"):
            run(tmp_path)

    def test_crystal_is_exactly_quadratic(self, quartz):
        model = vasp_stand_in.BondModel(quartz, 48, 8.0)
        field = np.array([0.3, -0.2, 0.5])
        forces = [model.state(x * field).forces for x in (-1, 0, 1, 2)]
        np.testing.assert_allclose(np.diff(forces, n=3, axis=0), 0, atol=1e-12)
        # forces are minus the gradient of the energy
        step, moved = 1e-4, []
        for sign in (1, -1):
            other = quartz.copy()
            other.positions[4, 1] += sign * step
            moved.append(vasp_stand_in.BondModel(other, 48, 8.0).state(field).energy)
        assert -(moved[0] - moved[1]) / (2 * step) == pytest.approx(model.state(field).forces[4, 1], abs=1e-6)


class TestFiniteField:
    def test_equals_tblite(self, water, known, finite_field):
        """Snapshot's order, signs, units and components of a real code against the same method in this process."""
        vectors = field_vectors(STEP, ["pgt"])
        found = read_field_points(finite_field, vectors, sorted_atoms(water)[1], charge=0)
        assert found.problems == ("",) * 13
        assert found.valid.all()
        tensors = response_tensors(found.vectors, found.forces)
        # vasprun.xml: 1e-8 eV/A, 2e-10 E_h/a0; over 2h and h^2. GFN2 itself is converged to 5e-6 in a PGT.
        np.testing.assert_allclose(tensors.apt, known.apt, atol=2e-6)
        np.testing.assert_allclose(tensors.pgt, known.pgt, atol=5e-3)
        assert np.abs(known.pgt).max() > 1
        # and water has polar tensors far from symmetric, so that a transposed reading shows
        assert np.abs(known.apt - known.apt.transpose(0, 2, 1)).max() > 0.02

    def test_what_else_is_known(self, water, finite_field):
        found = read_field_points(finite_field, field_vectors(STEP, ["pgt"]))
        assert found.version == "6.4.3"
        assert found.warnings == ()
        # GFN2's own levels
        assert 10 < found.gap < 16
        np.testing.assert_allclose(found.dipole_quanta, water.cell[:] / BOHR, atol=1e-6)
        # dM/dE > 0 is the polarizability (1.4 to 8 with GFN2)
        plus, minus = (found.dipoles[list(field_vectors(STEP, ["pgt"])).index(name)] for name in ("+x", "-x"))
        alpha = (plus - minus)[0] / (2 * STEP)
        assert 1 < alpha < 10
        np.testing.assert_allclose(found.dipoles[0], (plus + minus) / 2, atol=1e-4)

    def test_dipole_without_a_field(self, water, known, tmp_path):
        """Printed for the spatial derivative, APT = dM/dr: hydrogen first in POSCAR, and the oxygen last."""
        dipoles = []
        for atom, axis, sign in ((0, 1, 1), (0, 1, -1), (1, 2, 1), (1, 2, -1)):
            moved = water.copy()
            moved.positions[atom, axis] += sign * 0.02
            folder = run_all(tmp_path / f"{atom}{sign}", render_field_set(template(), moved, {}))
            dipoles.append(read_field_points(folder, {"0": np.zeros(3)}).dipoles[0])
        slopes = [(dipoles[0] - dipoles[1]) / (0.04 / BOHR), (dipoles[2] - dipoles[3]) / (0.04 / BOHR)]
        # p is printed to 1e-5 e A
        np.testing.assert_allclose(slopes, [known.apt[0, 1], known.apt[1, 2]], atol=1e-3)

    def test_restart_saves_steps(self, copied):
        steps = read_vasp_run(copied / "px").n_scf_steps
        (copied / "px" / "WAVECAR").unlink()
        run(copied / "px")
        again = read_vasp_run(copied / "px")
        assert again.n_loops == 2
        assert again.n_scf_steps > steps

    def test_six_decimals_are_too_few(self, finite_field, water, known):
        """Why forces are not read from OUTCAR."""
        vectors = field_vectors(STEP, ["pgt"])
        forces = np.round(read_field_set(finite_field, vectors, sorted_atoms(water)[1])[0] * HARTREE_PER_BOHR, 6)
        tensors = response_tensors(np.array(list(vectors.values())), forces / HARTREE_PER_BOHR)
        assert np.abs(tensors.pgt - known.pgt).max() > 0.02

    def test_loose_ediff_shows(self, water, known, tmp_path):
        """The stand-in's accuracy follows EDIFF, so qualification has something to find."""
        vectors = field_vectors(STEP, ["pgt"])
        runs = render_field_set(template(EDIFF=1e-3), water, vectors)
        forces, problems = read_field_set(run_all(tmp_path, runs), vectors, sorted_atoms(water)[1])
        assert not any(problems)
        tensors = response_tensors(np.array(list(vectors.values())), forces, check=False)
        assert np.abs(tensors.pgt - known.pgt).max() > 0.05

    def test_charged_radical(self, water, tmp_path):
        """NELECT and NUPDOWN reach the model: forces without a field are those of the doublet cation."""
        from mimyria_wf.tblite_engine import TbliteEngine

        cation = water.copy()
        cation.info.update(charge=1, multiplicity=2)
        potentials = {s: Potential(s, s, v) for s, v in (("O", 6.0), ("H", 1.0))}
        one = VaspTemplate.from_settings({**INCAR, "ISPIN": 2, "NUPDOWN": 1}, None, potentials)
        vectors = {"+x": np.array([STEP, 0, 0])}
        runs = render_field_set(one, cation, vectors)
        assert "NELECT = 7\n" in runs["px"]["INCAR"]
        forces, problems = read_field_set(run_all(tmp_path, runs), vectors, sorted_atoms(cation)[1], charge=1)
        assert problems == [""]
        cluster = ase.Atoms(cation.numbers, cation.positions, info=cation.info)
        expected = TbliteEngine("GFN2-xTB").forces(cluster, np.array([vectors["+x"]]))
        np.testing.assert_allclose(forces, expected, atol=1e-7)
        # the pull on the whole ion: with the wrong charge it is refused
        assert "net force" in read_field_set(tmp_path, vectors, charge=0)[1][0]
        # by spin: xTB's levels are those of both spins, so the radical's gap between spins would be none
        run_at_zero = read_vasp_run(tmp_path / "zero")
        assert run_at_zero.gap > 0.5
        assert not run_at_zero.is_metallic
        assert outcar_gap((tmp_path / "zero" / "OUTCAR").read_text())[0] == pytest.approx(run_at_zero.gap, abs=1e-3)


class TestResponse:
    def test_lepsilon(self, water, known, tmp_path):
        order = sorted_atoms(water)[1]
        run_all(tmp_path, render_lepsilon(template(), water))
        for name, atol in (("vasprun.xml", 2e-5), ("OUTCAR", 3e-5)):
            response = read_vasp_response(tmp_path / "lepsilon" / name)
            tensors, alpha = lepsilon_labels(response, order)
            # VASP's own correction, spread evenly over the atoms
            expected = known.apt - known.apt.mean(axis=0)
            np.testing.assert_allclose(tensors.apt, expected, atol=atol)
            assert np.abs(tensors.apt.sum(axis=0)).max() < 3e-5
        vectors = field_vectors(STEP, ["apt"])
        runs = run_all(tmp_path / "field", render_field_set(template(), water, vectors))
        dipoles = dict(zip(vectors, read_field_points(runs, vectors).dipoles))
        columns = [(dipoles[f"+{axis}"] - dipoles[f"-{axis}"]) / (2 * STEP) for axis in "xyz"]
        # p is printed to 1e-5 e A, which is 0.02 over 2h; epsilon - 1 to 1e-6
        np.testing.assert_allclose(alpha, np.transpose(columns), atol=0.03)

    @pytest.mark.parametrize("model", ["GFN2-xTB", "bonds"])
    def test_lcalceps_gives_the_points_of_the_finite_field_route(self, water, quartz, model, tmp_path):
        """Two routes, turned crystals and all, one set of forces; quartz is triclinic, k-points and two species."""
        atoms = water if model == "GFN2-xTB" else quartz[[3, 9, 0, 1, 10, 2, 4, 5, 6, 7, 8, 11]]
        order = sorted_atoms(atoms)[1]
        one = template(f"model={model}", None if model == "GFN2-xTB" else [2, 2, 1])
        vectors = field_vectors(STEP, ["pgt"])
        stacked = np.array(list(vectors.values()))
        sets = []
        run_all(tmp_path / "field", render_field_set(one, atoms, vectors))
        sets.append(read_field_set(tmp_path / "field", vectors, order, charge=0))
        run_all(tmp_path / "lcalceps", render_lcalceps(one, atoms, vectors))
        assert len(list((tmp_path / "lcalceps").iterdir())) == 8
        forces, problems, version = read_lcalceps_set(tmp_path / "lcalceps", sorted_atoms(atoms)[0], vectors, order)
        assert version == "6.4.3"
        sets.append((forces, problems))
        tensors = []
        for forces, problems in sets:
            assert problems == [""] * 13
            assert diagnostics(stacked, forces, 0.0).net_force < 2e-9
            tensors.append(response_tensors(stacked, forces))
        np.testing.assert_allclose(tensors[0].apt, tensors[1].apt, atol=3e-6)
        # Z is printed with 1e-8 e, forces with 1e-8 eV/A; both are divided by h, forces twice
        np.testing.assert_allclose(tensors[0].pgt, tensors[1].pgt, atol=5e-3)
        if model == "bonds":
            exact = vasp_stand_in.BondModel(atoms, 64, 8.0)
            states = np.array([exact.state(v * HARTREE_PER_BOHR).forces for v in stacked]) / HARTREE_PER_BOHR
            truth = response_tensors(
                stacked * 100,
                np.array([exact.state(100 * v * HARTREE_PER_BOHR).forces for v in stacked]) / HARTREE_PER_BOHR,
            )
            np.testing.assert_allclose(sets[1][0], states, atol=1e-9)
            np.testing.assert_allclose(tensors[1].apt, truth.apt, atol=3e-7)
            np.testing.assert_allclose(tensors[1].pgt, truth.pgt, atol=3e-3)
            assert np.abs(truth.apt - truth.apt.transpose(0, 2, 1)).max() > 0.05

    def test_sets_made_by_hand(self, water, known, tmp_path):
        """+E and -E in one direction pair up, whatever their names; a direction run with one sign is left out."""
        for name, field in (("a", "0.02 0.03 0.01"), ("b", "-0.02 -0.03 0.01")):
            atoms, order = sorted_atoms(water)
            folder = run_all(tmp_path / name, {"run": render_lepsilon(template(), water)["lepsilon"]}) / "run"
            text = (folder / "INCAR").read_text().replace("LEPSILON = .TRUE.", f"LCALCEPS = T\nEFIELD_PEAD = {field}")
            (folder / "INCAR").write_text(text)
            run(folder)
        responses = [read_vasp_response(tmp_path / name / "run" / "vasprun.xml") for name in "ab"]
        found = lcalceps_forces(responses, order=order)
        assert found.point_names == ("0", "+x", "+y", "-x", "-y")
        change = (found.forces[1] - found.forces[3]) / (2 * found.field_vectors[1, 0])
        np.testing.assert_allclose(change, known.apt[:, :, 0], atol=1e-4)
        # another configuration is not taken for a turned one
        responses[1].atoms.positions[0] += 0.01
        with pytest.raises(EngineError, match=r"atoms up to 0.01 A away"):
            lcalceps_forces(responses)
        responses[1].atoms.set_cell(1.01 * atoms.cell[:])
        with pytest.raises(EngineError, match="a cell that is not that of the first one, turned"):
            lcalceps_forces(responses)

    def test_a_failed_job_costs_its_points(self, water, tmp_path):
        vectors = field_vectors(STEP, ["pgt"])
        run_all(tmp_path, render_lcalceps(template(), water, vectors))
        (tmp_path / "lcalceps-pypz" / "vasprun.xml").unlink()
        text = (tmp_path / "lcalceps-m" / "OUTCAR").read_text()
        (tmp_path / "lcalceps-m" / "OUTCAR").write_text(text.replace("EDIFF is reached", "EDIFF was not reached"))
        atoms, order = sorted_atoms(water)
        forces, problems, _ = read_lcalceps_set(tmp_path, atoms, vectors, order)
        failed = dict(zip(vectors, problems))
        assert {name for name, problem in failed.items() if problem} == {"-x", "-y", "-z", "+y+z"}
        assert failed["+y+z"] == (
            "field point +y+z (lcalceps-pypz): no vasprun.xml: the run was not done, VASP crashed, or the file was not "
            "retrieved"
        )
        assert "SCF did not converge (NELM reached)" in failed["-x"]
        np.testing.assert_array_equal(np.isnan(forces).all(axis=(1, 2)), [bool(p) for p in problems])


def failing(water: ase.Atoms, tmp_path: Path, failure: str, **tags: object) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return causes and problems of a set in which something goes wrong."""
    vectors = field_vectors(STEP, ["pgt"])
    chosen = {name: vectors[name] for name in ("0", "+x", "-x", "+x+y")}
    run_all(tmp_path, render_field_set(template(f"fail={failure}" if failure else "", **tags), water, chosen))
    found = read_field_points(tmp_path, chosen, sorted_atoms(water)[1], charge=0)
    assert [bool(cause) for cause in found.causes] == [bool(problem) for problem in found.problems]
    np.testing.assert_array_equal(np.isnan(found.forces).all(axis=(1, 2)), ~found.valid)
    return found.causes, dict(zip(chosen, found.problems))


class TestFailures:
    @pytest.mark.parametrize(
        ("failure", "cause", "message"),
        [
            ("unconverged@+x", "scf", r"SCF did not converge \(NELM reached, 120 electronic steps in 2 loops\); raise"),
            ("truncated@+x", "damaged", "vasprun.xml ends early or is damaged"),
            ("no-vasprun@+x", "missing", "no vasprun.xml, which holds the forces"),
            ("no-outcar@+x", "missing", "no OUTCAR: it says whether the run converged"),
            ("killed@+x", "unfinished", r"VASP did not finish \(time limit, memory or a crash\); run the point again"),
            ("crash@+x", "missing", "neither OUTCAR nor vasprun.xml: the point was not run, or VASP crashed"),
            ("ignores-field@+x", "field", r"ran in the field EFIELD_PEAD = \[0.0, 0.0, 0.0\], expected \[0.0257"),
            ("metal@+x", "metal", "metallic: bands are filled in part"),
        ],
    )
    def test_one_point(self, water, tmp_path, failure, cause, message):
        causes, problems = failing(water, tmp_path, failure)
        assert causes == ("", cause, "", "")
        assert [name for name, problem in problems.items() if problem] == ["+x"]
        assert problems["+x"].startswith("field point +x (px): ")
        with pytest.raises(EngineError, match=message):
            raise EngineError(problems["+x"])

    def test_metal(self, water, tmp_path):
        assert set(failing(water, tmp_path, "metal")[0]) == {"metal"}

    def test_too_few_steps(self, water, tmp_path):
        """NELM that is too small for a run from scratch, before anything is in a field."""
        causes, problems = failing(water, tmp_path, "", NELM=8)
        assert causes == ("scf",) * 4
        assert "NELM reached" in problems["0"]

    def test_version_5_does_not_say_that_a_loop_failed(self, copied):
        path = copied / "px" / "OUTCAR"
        text = path.read_text()
        steps = read_vasp_run(copied / "px").n_scf_steps
        last = max(int(n) for n in re.findall(r"Iteration\s+1\(\s*(\d+)\)", text))
        assert last < steps
        text = text.replace("aborting loop because EDIFF is reached", "")
        text = text.replace("NELM   =     60", f"NELM   = {last:6d}")
        path.write_text(text)
        with pytest.raises(EngineError, match="SCF did not converge"):
            read_vasp_run(copied / "px")

    def test_normalised_field_is_found(self, water, tmp_path):
        """A code that takes (h, h, 0) for a direction of length h, although it echoes what it was given."""
        vectors = field_vectors(STEP, ["pgt"])
        run_all(tmp_path, render_field_set(template("fail=scales-field"), water, vectors))
        forces, problems = read_field_set(tmp_path, vectors, charge=0)
        assert not any(problems)
        with pytest.raises(FieldSetError, match=r"follow a field 0\.707 times the vector given"):
            response_tensors(np.array(list(vectors.values())), forces)

    def test_forces_without_the_field(self, copied):
        """A VASP that prints the forces of its first loop, without the field."""
        zero, point = copied / "zero" / "vasprun.xml", copied / "px" / "vasprun.xml"

        def block(text: str) -> str:
            start = text.index('<varray name="forces" >')
            return text[start : text.index("</varray>", start)]

        text = point.read_text()
        point.write_text(text.replace(block(text), block(zero.read_text())))
        vectors = {name: field_vectors(STEP, ["pgt"])[name] for name in ("+x", "-x")}
        found = read_field_points(copied, vectors, charge=0)
        assert found.causes == ("forces", "")
        assert "have not felt the field" in found.problems[0]

    def test_forces_without_the_pull_on_the_ions(self, copied):
        """Hellmann-Feynman forces of the electrons alone: the sum is off by the valence electrons."""
        path = copied / "px" / "vasprun.xml"
        text = path.read_text()
        start = text.index('<varray name="forces" >')
        end = text.index("</varray>", start)
        rows = np.array([row.split() for row in re.findall("<v>(.*)</v>", text[start:end])], dtype=float)
        rows[:, 0] -= np.array([1, 1, 6]) * STEP * HARTREE_PER_BOHR
        lines = ("<v>" + " ".join(f"{x:.8f}" for x in row) + "</v>" for row in rows)
        new = '<varray name="forces" >\n' + "\n".join(lines) + "\n"
        path.write_text(text[:start] + new + text[end:])
        vectors = {name: field_vectors(STEP, ["pgt"])[name] for name in ("+x", "-x")}
        found = read_field_points(copied, vectors, charge=0)
        assert found.causes == ("forces", "")
        assert "net force in the field is off by 8 e E" in found.problems[0]

    def test_field_too_strong(self, water, tmp_path):
        """VASP's own warning and ours; the loop in the field may then never end."""
        strong = {"0": np.zeros(3), "+z": np.array([0, 0, 6e-3])}
        run_all(tmp_path / "a", render_field_set(template(), water, strong))
        found = read_field_points(tmp_path / "a", strong)
        assert found.problems == ("", "")
        theirs, ours = found.warnings
        assert theirs.startswith("VASP: the field is too strong for the gap (e|E.a_3| = 3.08")
        assert ours.startswith("field point +z: field too strong for the gap: e|E.a_3| = 3.09 eV")
        # beyond the whole gap there is no ground state, and VASP finds none
        strong = {"0": np.zeros(3), "+z": np.array([0, 0, 0.03])}
        run_all(tmp_path / "b", render_field_set(template(), water, strong))
        found = read_field_points(tmp_path / "b", strong)
        assert found.causes == ("", "scf")
        assert "smaller field where the loop in the field failed" in found.problems[1]

    def test_other_atoms(self, finite_field):
        vectors = {"+x": field_vectors(STEP, ["apt"])["+x"]}
        assert read_field_points(finite_field, vectors, n_atoms=4).problems == (
            "field point +x (px): 3 atoms in the forces, expected 4",
        )

    def test_from_texts(self, finite_field):
        """As AiiDA has files: names with folders -> text."""
        vectors = {"+x": field_vectors(STEP, ["apt"])["+x"]}
        texts = {
            f"{folder}/{name}": (finite_field / folder / name).read_text()
            for folder in ("zero", "px")
            for name in ("OUTCAR", "vasprun.xml")
        }
        np.testing.assert_array_equal(
            read_field_points(texts, vectors).forces, read_field_points(finite_field, vectors).forces
        )

    def test_run_of_another_snapshot(self, water, finite_field):
        """Sum rules, net force and the length of the field say nothing of a permutation."""
        vectors = field_vectors(STEP, ["apt"])
        assert read_field_points(finite_field, vectors, atoms=water).problems == ("",) * 6
        other = {"species": water.copy(), "cell": water.copy(), "positions": water.copy()}
        other["species"].numbers[np.flatnonzero(water.numbers == 1)[0]] = 9
        other["cell"].cell[0, 0] += 0.01
        other["positions"].positions[1, 2] += 0.01
        for name, word in (
            ("species", "of POSCAR is"),
            ("cell", "cell is off"),
            ("positions", "atoms are up to 0.01 A"),
        ):
            found = read_field_points(finite_field, vectors, atoms=other[name])
            assert not found.valid.any()
            assert all("not the run of this snapshot" in line and word in line for line in found.problems)
        wrapped = water.copy()
        wrapped.positions[0] += wrapped.cell[0]
        assert read_field_points(finite_field, vectors, atoms=wrapped).valid.all()


def test_coarse_echo_of_outcar(copied):
    """Without EFIELD_PEAD in vasprun.xml the echo has four decimals, which tells 0.0257 from 0.0256."""
    path = copied / "px" / "vasprun.xml"
    lines = [line for line in path.read_text().splitlines() if "EFIELD_PEAD" not in line]
    path.write_text("\n".join(lines))
    vector = np.array([STEP, 0, 0])
    assert read_field_points(copied, {"+x": vector}).problems == ("",)
    assert "ran in the field" in read_field_points(copied, {"+x": 0.99 * vector}).problems[0]
