"""VASP's own conventions, from its own output: signs, rows and columns, units. The data are not part of the package.

C60: LCALCEPS at +-0.1 eV/A with VASP 6.4.3, on the crystal as it is (1, m1) and turned by 45 degrees (x, mx, ...), and
the authors' Raman activities. Alpha-quartz: LEPSILON with VASP 5.4.4; which of its axes is which is settled in
test_sio2.py.
"""

from __future__ import annotations

import dataclasses
import gzip
import re
from pathlib import Path

import ase.test
import numpy as np
import pytest

from mimyria_wf.errors import FieldSetError
from mimyria_wf.finite_field import response_tensors
from mimyria_wf.response import Array
from mimyria_wf.units import BOHR, HARTREE_PER_BOHR
from mimyria_wf.vasp_fields import lcalceps_forces, lcalceps_points, lepsilon_labels, turn_of
from mimyria_wf.vasp_output import VaspResponse, read_vasp_response
from mimyria_wf.vasp_run import outcar_gap, read_vasp_run, unconverged_loop

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
C60 = DATA / "c60_finite_field_vasp"
SIO2 = DATA / "sio2_md_dfpt_vasp"
NAMES = ("1", "m1", "x", "mx", "y", "my", "z", "mz")
NACL = Path(ase.test.__file__).parent / "testdata" / "vasp" / "vasprun_dfpt.xml"


@pytest.fixture(scope="module")
def c60() -> dict[str, VaspResponse]:
    if not C60.is_dir():
        pytest.skip(f"{C60} is absent")
    return {name: read_vasp_response(C60 / f"OUTCAR.{name}") for name in NAMES}


def nominal(response: VaspResponse) -> VaspResponse:
    """Return a run with sqrt(2) 0.1 eV/A in place of the 0.1414 that its INCAR has, as its authors reckon."""
    assert response.field_step is not None
    values = response.field_step * HARTREE_PER_BOHR
    values = np.where(abs(abs(values) - 0.1414) < 1e-6, np.sign(values) * np.sqrt(2) * 0.1, values)
    return dataclasses.replace(response, field_step=values / HARTREE_PER_BOHR)


def activities(pgt: Array) -> Array:
    """Return the Raman activity 45 a'^2 + 7 gamma'^2 of each phonon mode [A^4/u]."""
    modes = np.loadtxt(C60 / "eigvecs_phonopy.dat").T.reshape(180, 60, 3) / np.sqrt(12.011)
    derivative = np.einsum("mid,idab->mab", modes, pgt) * BOHR**2  # alpha in e^2 a0^2/E_h is a volume in a0^3
    xx, yy, zz = (derivative[:, k, k] for k in range(3))
    xy, xz, yz = derivative[:, 0, 1], derivative[:, 0, 2], derivative[:, 1, 2]
    trace = (xx + yy + zz) / 3
    gamma = 0.5 * ((xx - yy) ** 2 + (yy - zz) ** 2 + (zz - xx) ** 2) + 3 * (xy**2 + xz**2 + yz**2)
    return 45 * trace**2 + 7 * gamma


def core_potentials(text: str) -> list[Array]:
    """Return the electrostatic potential at the cores after each electronic loop [eV per electron]."""
    blocks = [block.split("E-fermi")[0] for block in text.split("(the norm of the test charge is")[1:]]
    return [np.array([float(v) for v in re.findall(r"\d+\s+(-\d+\.\d{4})", block)]) for block in blocks]


@pytest.mark.reference_data
class TestC60:
    @pytest.mark.parametrize(("name", "sign"), [("1", 1), ("m1", -1)])
    def test_efield_pead_pulls_positive_charges(self, c60, name, sign):
        """Electrons go against EFIELD_PEAD: their potential at the cores then falls along it."""
        positions = c60[name].atoms.positions
        loops = core_potentials((C60 / f"OUTCAR.{name}").read_text())
        slopes = np.array([[np.polyfit(positions[:, k], loop, 1)[0] for k in range(3)] for loop in loops])
        # ground state, then for each axis again without a field, and in it; the first of those is the ground state
        assert slopes.shape == (7, 3)
        assert np.abs(slopes[[0, 1, 3, 5]]).max() < 3e-5
        # nearly a conducting sphere: of 0.1 eV/A outside, 0.02 are left
        np.testing.assert_allclose(slopes[[2, 4, 6]], -sign * 0.08 * np.eye(3), atol=1e-3)

    def test_ions_count_positive(self, c60):
        text = (C60 / "OUTCAR.1").read_text()
        printed = np.array(re.search(r"p\[ion\]=\(\s*(\S+)\s+(\S+)\s+(\S+)", text).groups(), dtype=float)
        atoms = c60["1"].atoms
        np.testing.assert_allclose(printed, 4 * (atoms.positions - 7.0).sum(axis=0), atol=1e-3)
        # so this change, along the field, is a dipole as everybody defines it
        change = re.search(r"dp\[tot\]=\(\s*(\S+)", text)
        assert float(change[1]) == pytest.approx(0.66208)

    def test_rows_of_born_charges_are_fields(self, c60):
        """Runs x and mx differ in the field along x alone; along y and z both have 0.01 eV/A."""
        difference = np.abs(c60["x"].apt - c60["mx"].apt).max(axis=(0, 1))
        assert difference[0] > 0.03
        assert difference[1:].max() < 1.5e-5  # five decimals

    def test_charges_are_differences_over_the_field(self, c60):
        """Z(+E) and Z(-E) differ by the second derivative: halving that would show against the turned runs."""
        found = lcalceps_forces(list(c60.values()))
        assert found.point_names == (
            *("0", "+x", "+y", "+z", "-x", "-y", "-z"),
            *("+x+y", "-x-y", "+y+z", "-y-z", "+x+z", "-x-z"),
        )
        diagnostics = found.diagnostics(0.0)
        # the APT along a diagonal, from a turned crystal, is the one from the axes
        np.testing.assert_allclose(list(diagnostics.field_scale.values()), 1.0, atol=1e-3)
        assert diagnostics.apt_noise < 2e-4
        np.testing.assert_allclose(found.forces[0], c60["1"].forces, atol=2e-4)
        sums = found.tensors(["apt", "pgt"]).sum_rule_residual(0.0).largest()
        assert sums["apt"] < 0.01

    def test_turns_are_found(self, c60):
        half = np.sqrt(0.5)
        expected = np.array([[half, half, 0], [-half, half, 0], [0, 0, 1]])
        np.testing.assert_allclose(turn_of(c60["x"].atoms, c60["1"].atoms), expected, atol=1e-9)

    def test_raman_activities(self, c60):
        """829.57 at 1472 cm^-1 and 364.78 at 488 cm^-1, and all others of the published table."""
        published = np.loadtxt(C60 / "raman_phonopy_E0.05_E0.1.dat", skiprows=1)
        pgt = lcalceps_forces([nominal(response) for response in c60.values()]).tensors(["apt", "pgt"]).pgt
        found = activities(pgt)
        assert [f"{found[mode - 1]:.2f}" for mode in (163, 33)] == ["829.57", "364.78"]
        assert [round(published[mode - 1, 2]) for mode in (163, 33)] == [1472, 488]
        # the authors' value of 4 pi eps0 has six digits
        np.testing.assert_allclose(found, published[:, 4], rtol=1e-6, atol=1e-8)

    def test_raman_activities_in_the_field_that_was_applied(self, c60):
        """INCARs of the turned runs have 0.1414, 1.5e-4 less than sqrt(2) 0.1; activities change by as little."""
        found = activities(lcalceps_forces(list(c60.values())).tensors(["apt", "pgt"]).pgt)
        assert found[162] == pytest.approx(829.5649, abs=1e-3)
        assert found[32] == pytest.approx(364.7752, abs=1e-3)

    @pytest.mark.parametrize(
        ("mistake", "refused", "activity"),
        [
            ("none", "", 829.57),
            ("component for length", "1.415", 1864.7),
            ("length for component", "0.707", 1133.6),
            ("not turned back", "0.792", 896.7),
            ("transposed", "", 165.9),
            ("sign of Z(-E)", "", 0.1),
        ],
    )
    def test_wrong_conventions(self, c60, mistake, refused, activity):
        """What each would make of the strongest line, and which are refused without anything to compare with."""
        runs = {name: nominal(response) for name, response in c60.items()}
        if mistake == "transposed":
            runs = {k: dataclasses.replace(r, apt=r.apt.transpose(0, 2, 1)) for k, r in runs.items()}
        elif mistake == "sign of Z(-E)":
            runs |= {k: dataclasses.replace(r, apt=-r.apt) for k, r in runs.items() if k.startswith("m")}
        vectors, forces = lcalceps_points(list(runs.values()), c60["1"].atoms)
        if mistake == "not turned back":
            turns = [np.eye(3)] + [turn_of(r.atoms, c60["1"].atoms) for r in runs.values() for _ in range(3)]
            forces = forces[0] + np.einsum("kia,kba->kib", forces - forces[0], turns)
        lengths = np.linalg.norm(vectors, axis=1) * HARTREE_PER_BOHR
        factor = {"component for length": np.sqrt(0.5), "length for component": np.sqrt(2)}.get(mistake, 1.0)
        vectors[lengths > 0.11] *= factor
        used = (lengths == 0) | (lengths > 0.05)
        if refused:
            with pytest.raises(FieldSetError, match=f"follow a field {refused} times the vector given"):
                response_tensors(vectors[used], forces[used])
        tensors = response_tensors(vectors[used], forces[used], check=not refused)
        assert activities(tensors.pgt)[162] == pytest.approx(activity, abs=0.06)

    @pytest.mark.parametrize("name", NAMES)
    def test_electronic_loops_and_gap(self, c60, name):
        text = (C60 / f"OUTCAR.{name}").read_text()
        assert not unconverged_loop(text)
        gap, is_metallic = outcar_gap(text)
        # VASP's own warning has a tenth of it; bands in the field, empty ones at 10000 eV, are not taken
        limit = float(re.search(r"E_g/N_1 =\s*(\S+)", text)[1])
        assert gap == pytest.approx(10 * limit, abs=2e-4)
        assert not is_metallic


@pytest.mark.reference_data
@pytest.mark.skipif(not SIO2.is_dir(), reason=f"{SIO2} is absent")
@pytest.mark.parametrize("i", range(8))
def test_sio2(i):
    """All eight LEPSILON runs: converged in every loop, insulating, and the labels that the collected arrays hold."""
    path = SIO2 / "outcar" / f"{10 * (i + 1):06d}.OUTCAR.gz"
    with gzip.open(path, "rt") as file:
        text = file.read()
    assert not unconverged_loop(text)
    gap, is_metallic = outcar_gap(text)
    assert 5.5 < gap < 8  # quartz is at 8.9 eV, and PBE some two thirds of it
    assert not is_metallic
    with np.load(SIO2 / "mdraman_bec_eps.npz") as arrays:
        tensors, alpha = lepsilon_labels(read_vasp_response(path))
        np.testing.assert_array_equal(tensors.apt, arrays["Z"][i].transpose(0, 2, 1))
        epsilon = arrays["eps"][i]
        volume = float(np.linalg.det(arrays["cell"])) / BOHR**3
    np.testing.assert_allclose(np.eye(3) + 4 * np.pi * alpha / volume, 0.5 * (epsilon + epsilon.T), atol=1e-9)


@pytest.mark.skipif(not NACL.is_file(), reason="this ASE ships without vasprun_dfpt.xml")
def test_a_real_vasprun():
    """Forces, field, gap and mesh from a file that VASP 6.3.2 wrote."""
    outcar = " vasp.6.3.2 27Jun22\n General timing and accounting informations for this job:\n"
    run = read_vasp_run({"OUTCAR": outcar, "vasprun.xml": NACL.read_text()})
    assert run.symbols == ("Na", "Cl")
    assert run.divisions == (3, 3, 3)
    assert run.gap == pytest.approx(5.6402 - 0.1414)
    np.testing.assert_array_equal(run.field, np.zeros(3))
    np.testing.assert_allclose(run.forces, 0, atol=1e-12)
