"""VASP's response runs: shapes, axis order, units, and what is refused."""

import gzip
from pathlib import Path

import ase.test
import numpy as np
import pytest

from mimyria_wf.errors import EngineError, LabelError
from mimyria_wf.units import BOHR, HARTREE_PER_BOHR
from mimyria_wf.vasp_output import polarizability_of_dielectric, read_vasp_response

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIO2 = DATA / "sio2_md_dfpt_vasp"
C60 = DATA / "c60_finite_field_vasp"
ASE_DATA = Path(ase.test.__file__).parent / "testdata" / "vasp"


def test_polarizability_of_a_conducting_sphere_limit():
    # a cubic cell of V = 4 pi a0^3 with epsilon = 2 holds exactly one atomic unit of polarizability
    alpha = polarizability_of_dielectric(2.0 * np.eye(3), 4 * np.pi * BOHR**3)
    np.testing.assert_allclose(alpha, np.eye(3), rtol=1e-14)


class TestVasprun:
    """The only real vasprun.xml with a response that ships with ASE: NaCl-like, symmetric, so no test of axis order."""

    path = ASE_DATA / "vasprun_dfpt.xml"

    @pytest.fixture(autouse=True)
    def _present(self):
        if not self.path.is_file():
            pytest.skip("this ASE ships without vasprun_dfpt.xml")

    def test_reads_tensors(self):
        response = read_vasp_response(self.path)
        np.testing.assert_allclose(response.dielectric, 2.69584350 * np.eye(3), atol=1e-12)
        np.testing.assert_allclose(response.apt[:, 0, 0], [1.14672091, -1.14672091])
        assert response.method == "LEPSILON"
        assert response.forces.shape == (2, 3)

    def test_rows_are_fields(self, tmp_path):
        changed = tmp_path / "vasprun.xml"
        text = self.path.read_text()
        changed.write_text(text.replace("1.14672091       0.00000000", "1.14672091       0.25000000", 1))
        apt = read_vasp_response(changed).apt
        # printed in row 1 (field x), column 2 (displacement y)
        assert apt[0, 1, 0] == 0.25
        assert apt[0, 0, 1] == 0.0

    def test_cut_off(self, tmp_path):
        cut = tmp_path / "vasprun.xml"
        text = self.path.read_text()
        cut.write_text(text[: len(text) // 2])
        with pytest.raises(EngineError, match=r"vasprun\.xml: the XML ends early"):
            read_vasp_response(cut)


@pytest.fixture(scope="module")
def arrays():
    with np.load(SIO2 / "mdraman_bec_eps.npz") as file:
        return {key: file[key] for key in ("Z", "eps", "pos", "cell", "numbers")}


@pytest.mark.reference_data
@pytest.mark.skipif(not SIO2.is_dir(), reason=f"{SIO2} is absent")
class TestSio2:
    @pytest.mark.parametrize("i", range(8))
    def test_equals_the_collected_arrays(self, arrays, i):
        response = read_vasp_response(SIO2 / "outcar" / f"{10 * (i + 1):06d}.OUTCAR.gz")
        assert response.version.startswith("5.4.4")
        assert response.method == "LEPSILON"
        np.testing.assert_array_equal(response.dielectric, arrays["eps"][i])
        # the arrays hold what VASP prints, rows = field
        np.testing.assert_array_equal(response.apt, arrays["Z"][i].transpose(0, 2, 1))
        np.testing.assert_array_equal(response.atoms.numbers, arrays["numbers"])
        np.testing.assert_allclose(response.atoms.cell[:], arrays["cell"], atol=1e-9)
        off = response.atoms.get_scaled_positions(wrap=False) - arrays["pos"][i] @ np.linalg.inv(arrays["cell"])
        np.testing.assert_allclose(off, np.round(off), atol=2e-6)  # printed with five decimals [A]
        assert abs(response.apt.sum(axis=0)).max() < 1e-4  # nine charges rounded to 1e-5
        assert response.volume == pytest.approx(110.54, abs=0.005)  # as VASP prints it

    def test_forces_and_polarizability(self):
        response = read_vasp_response(SIO2 / "outcar" / "000010.OUTCAR.gz")
        assert response.forces[0, 0] * HARTREE_PER_BOHR == pytest.approx(1.814117)
        assert response.energy == pytest.approx(-71.02127918)
        expected = (2.534301 - 1) * response.volume / 0.529177210544**3 / (4 * np.pi)
        assert response.polarizability[0, 0] == pytest.approx(expected, rel=1e-9)

    @pytest.fixture
    def text(self):
        with gzip.open(SIO2 / "outcar" / "000010.OUTCAR.gz", "rt") as file:
            return file.read()

    def test_cut_off(self, text, tmp_path):
        path = tmp_path / "OUTCAR"
        path.write_text(text[: int(0.98 * len(text))])
        with pytest.raises(EngineError, match="OUTCAR: the run did not reach its end"):
            read_vasp_response(path)

    def test_born_charges_cut_out(self, text, tmp_path):
        path = tmp_path / "OUTCAR"
        start = text.index(" ion    9\n")
        path.write_text(text[:start] + text[text.index(" LOOP+") - 1 :])
        with pytest.raises(LabelError, match="Born charges of 8 atoms, expected 9"):
            read_vasp_response(path)

    def test_no_response(self, text, tmp_path):
        path = tmp_path / "OUTCAR"
        path.write_text(text.replace("MACROSCOPIC", "NO").replace("BORN", "NO"))
        with pytest.raises(LabelError, match=r"LEPSILON = \.TRUE\."):
            read_vasp_response(path)

    def test_ionic_part_and_independent_particles_are_not_taken(self, text, tmp_path):
        other = "\n ---\n  9.0 0.0 0.0\n 0.0 9.0 0.0\n 0.0 0.0 9.0\n ---\n"
        path = tmp_path / "OUTCAR"
        path.write_text(
            text.replace(
                " LOOP+",
                " MACROSCOPIC STATIC DIELECTRIC TENSOR IONIC CONTRIBUTION"
                + other
                + " HEAD OF MICROSCOPIC STATIC DIELECTRIC TENSOR (INDEPENDENT PARTICLE, excluding local field effects)"
                + other
                + " MACROSCOPIC STATIC DIELECTRIC TENSOR (including local field effects in RPA (Hartree))"
                + other
                + " LOOP+",
            )
        )
        assert read_vasp_response(path).dielectric[0, 0] == 2.534301

    def test_damaged_archive(self, tmp_path):
        path = tmp_path / "OUTCAR.gz"
        path.write_bytes((SIO2 / "outcar" / "000010.OUTCAR.gz").read_bytes()[:5000])
        with pytest.raises(EngineError, match="damaged"):
            read_vasp_response(path)


@pytest.mark.reference_data
@pytest.mark.skipif(not C60.is_dir(), reason=f"{C60} is absent")
def test_lcalceps():
    plus, minus = (read_vasp_response(C60 / name) for name in ("OUTCAR.1", "OUTCAR.m1"))
    for response, sign in ((plus, 1), (minus, -1)):
        assert response.method == "LCALCEPS"
        assert response.version == "6.4.3"
        np.testing.assert_allclose(response.field_step * HARTREE_PER_BOHR, sign * 0.1)
        # not corrected by VASP: the residual is that of finite fields and grids, and says that all 60 ions were read
        assert 1e-3 < abs(response.apt.sum(axis=0)).max() < 1e-2
    # ion 1 of OUTCAR.1: row 1 (field x) holds 0.07061 -0.00089 0.00806
    np.testing.assert_array_equal(plus.apt[0, :, 0], [0.07061, -0.00089, 0.00806])
    # a cage of 60 carbon atoms: about 80 A^3 per molecule, in every direction, by either sign of the field
    alpha = np.diag(plus.polarizability) * BOHR**3
    np.testing.assert_allclose(alpha, np.diag(minus.polarizability) * BOHR**3, rtol=1e-2)
    assert np.all((alpha > 75) & (alpha < 105))


def test_not_vasp(tmp_path):
    path = tmp_path / "OUTCAR"
    path.write_text("hello\n")
    with pytest.raises(EngineError, match=r"not an OUTCAR or vasprun\.xml"):
        read_vasp_response(path)
    with pytest.raises(EngineError, match="no such file"):
        read_vasp_response(tmp_path / "absent")
