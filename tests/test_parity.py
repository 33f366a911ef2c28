"""One answer from every engine: the same snapshot at the same level gives the same tensors, whoever computes them."""

import os
import shutil
import sys
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import molecule
from tblite.interface import Calculator

from mimyria_wf import vasp_run
from mimyria_wf.cp2k_engine import Cp2kEngine
from mimyria_wf.cp2k_input import render_field_set
from mimyria_wf.errors import FieldSetError
from mimyria_wf.finite_field import field_vectors, response_tensors
from mimyria_wf.response import ResponseTensors
from mimyria_wf.tblite_engine import TbliteEngine
from mimyria_wf.units import BOHR
from mimyria_wf.vasp_engine import VaspEngine

STEP = 1e-3
STAND_IN = Path(__file__).with_name("vasp_stand_in.py")
CP2K = os.environ.get("CP2K_EXECUTABLE") or shutil.which("cp2k.psmp") or shutil.which("cp2k")
XTB = """
&FORCE_EVAL
  METHOD Quickstep
  &DFT
    &POISSON
      PERIODIC NONE
      PSOLVER MT
    &END POISSON
    &QS
      METHOD XTB
      EPS_DEFAULT 1e-14
      &XTB
        DO_EWALD F
        CHECK_ATOMIC_CHARGES F
      &END XTB
    &END QS
    &SCF
      EPS_SCF 1e-9
      SCF_GUESS MOPAC
      MAX_SCF 100
      &OT
        PRECONDITIONER FULL_SINGLE_INVERSE
        MINIMIZER DIIS
      &END OT
    &END SCF
  &END DFT
&END FORCE_EVAL
"""


@pytest.fixture(scope="module")
def water() -> ase.Atoms:
    """Return a molecule in general position, its atoms not in the order of POSCAR's species."""
    atoms = molecule("H2O")[[1, 0, 2]]
    atoms.rotate(37, (1, 2, 3))
    atoms.rattle(0.03, seed=2)
    atoms.set_cell([8.0, 8.5, 9.0])
    atoms.center()
    return atoms


class KeptVasp(VaspEngine):
    """VASP's stand-in, whose files stay."""

    kept: Path

    def read(self, folder, atoms, vectors):
        if not self.kept.exists():
            shutil.copytree(folder, self.kept)
        return super().read(folder, atoms, vectors)


def stand_in(directory: Path, words: str = "") -> KeptVasp:
    """Return an engine on the stand-in, with words for its SYSTEM tag."""
    for symbol, valence in (("H", 1), ("O", 6)):
        (directory / "potentials" / symbol).mkdir(parents=True)
        text = f"  PAW_PBE {symbol} 01Jan2000\n   TITEL  = PAW_PBE {symbol} 01Jan2000\n   ZVAL   =   {valence}.000\n"
        (directory / "potentials" / symbol / "POTCAR").write_text(text + " End of Dataset\n")
    incar = {"EDIFF": 1e-8, "ENCUT": 400, "ISMEAR": 0, "SIGMA": 0.01, "SYSTEM": f"model=GFN2-xTB {words}"}
    command = f"{sys.executable} {STAND_IN}"
    engine = KeptVasp(incar, potentials=directory / "potentials", command=command, scratch=directory)
    engine.kept = directory / "kept"
    return engine


VECTORS = field_vectors(STEP, ["apt", "pgt"])
FIELDS = np.array(list(VECTORS.values()))


@pytest.fixture(scope="module")
def periodic_water(water: ase.Atoms) -> ase.Atoms:
    atoms = water.copy()
    atoms.pbc = True
    return atoms


@pytest.fixture(scope="module")
def ran(periodic_water: ase.Atoms, tmp_path_factory: pytest.TempPathFactory) -> tuple[KeptVasp, ResponseTensors]:
    """Run VASP's stand-in at all thirteen points once."""
    engine = stand_in(tmp_path_factory.mktemp("vasp"))
    return engine, response_tensors(FIELDS, engine.forces(periodic_water, FIELDS))


@pytest.fixture(scope="module")
def by_tblite(water: ase.Atoms) -> ResponseTensors:
    return response_tensors(FIELDS, TbliteEngine().forces(water, FIELDS))


def assert_same(one: ResponseTensors, other: ResponseTensors) -> None:
    np.testing.assert_allclose(one.apt, other.apt, rtol=0, atol=5e-7)  # 8 decimals in eV/A: 1e-10 E_h/a0 over 2 h
    np.testing.assert_allclose(one.pgt, other.pgt, rtol=0, atol=1e-3)  # the same over h^2


def test_vasp_path_and_tblite_give_the_same_tensors(ran, by_tblite: ResponseTensors) -> None:
    assert_same(ran[1], by_tblite)
    assert np.abs(by_tblite.pgt).max() > 3  # so that the tolerance above is 0.03 % of it


def atoms_in_the_order_of_poscar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vasp_run, "restored", lambda values, order, axis=0: np.asarray(values))


def forces_in_other_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vasp_run, "HARTREE_PER_BOHR", 1.01 * vasp_run.HARTREE_PER_BOHR)


def components_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    right = vasp_run.restored
    monkeypatch.setattr(vasp_run, "restored", lambda values, order, axis=0: right(values, order, axis)[..., [1, 0, 2]])


def reversed_forces(monkeypatch: pytest.MonkeyPatch) -> None:
    right = vasp_run.restored
    monkeypatch.setattr(vasp_run, "restored", lambda values, order, axis=0: -right(values, order, axis))


@pytest.mark.parametrize(
    "spoil", [atoms_in_the_order_of_poscar, forces_in_other_units, components_in_another_order, reversed_forces]
)
def test_a_wrong_convention_is_no_parity(
    ran, by_tblite: ResponseTensors, periodic_water: ase.Atoms, monkeypatch: pytest.MonkeyPatch, spoil
) -> None:
    spoil(monkeypatch)
    engine = ran[0]
    results = engine.read(engine.kept, periodic_water, VECTORS)
    if results.valid.all():  # else found even before there are tensors
        with pytest.raises(AssertionError):
            assert_same(response_tensors(FIELDS, results.forces, check=False), by_tblite)


def test_a_normalised_direction_does_not_even_become_a_tensor(periodic_water: ase.Atoms, tmp_path: Path) -> None:
    """(h, h, 0) applied with length h, under an echo of (h, h, 0): only the forces can tell."""
    points = np.array([VECTORS[name] for name in ("+x", "-x", "+y", "-y", "+z", "-z", "+x+y", "-x-y")])
    forces = stand_in(tmp_path, "fail=scales-field").forces(periodic_water, points)
    with pytest.raises(FieldSetError, match=r"follow a field 0\.707 times the vector given"):
        response_tensors(points, forces, ["apt"])


@pytest.mark.cp2k
@pytest.mark.skipif(CP2K is None, reason="no cp2k.psmp in PATH or CP2K_EXECUTABLE")
def test_cp2k_and_tblite_give_the_same_apt_where_the_field_couples_alike(water: ase.Atoms, tmp_path: Path) -> None:
    """CP2K's GFN1-xTB feels a field at its Mulliken charges q alone, so that its APT is d(sum_i q_i r_i)/dr.

    At zero field the two programs are the same method, and tblite gives that derivative by displacements. tblite's own
    field acts on the atomic dipoles of the orbitals, too, which CP2K lacks: those APTs differ by 0.3 e.
    """
    engine = Cp2kEngine(XTB, str(CP2K), scratch=tmp_path)
    vectors = np.array([VECTORS[name] for name in ("+x", "-x", "+y", "-y", "+z", "-z", "+x+y", "-x-y")])
    cp2k = response_tensors(
        vectors, engine.forces(water, vectors), ["apt"]
    ).apt  # refuses mixed points of another length
    assert cp2k is not None
    shift = 0.005
    expected = np.empty((3, 3, 3))
    for atom in range(3):
        for axis in range(3):
            ends = []
            for sign in (1, -1):
                moved = water.positions.copy()
                moved[atom, axis] += sign * shift
                ends.append(mulliken_dipole(water.numbers, moved))
            expected[atom, axis] = (ends[0] - ends[1]) / (2 * shift / BOHR)
    # zero-field forces of the two programs differ by 0.2 % (constants of GFN1-xTB), and so may these
    np.testing.assert_allclose(cp2k, expected, rtol=0, atol=1.5e-3)
    plain = response_tensors(vectors, TbliteEngine(method="GFN1-xTB").forces(water, vectors), ["apt"]).apt
    assert np.abs(plain - cp2k).max() > 0.1


def mulliken_dipole(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return sum_i q_i r_i [e a0] of GFN1-xTB without a field."""
    calculator = Calculator("GFN1-xTB", numbers, positions / BOHR)
    calculator.set("verbosity", 0)
    calculator.set("accuracy", 1e-4)
    return calculator.singlepoint().get("charges") @ (positions / BOHR)


def test_cp2k_runs_by_itself_what_it_runs_through_aiida(water: ase.Atoms) -> None:
    """The local engine and the label jobs of AiiDA start CP2K with the same text: their labels share a key."""
    vectors = field_vectors(STEP, ["apt", "pgt"])
    rendered = render_field_set(XTB, water, vectors)
    inputs = {}
    for run in Cp2kEngine(XTB).runs(water, vectors):
        inputs |= {name: text for name, text in run.files.items() if name.endswith(".inp")}
    assert inputs == rendered
    assert next(iter(inputs)) == "zero.inp"
