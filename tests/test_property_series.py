"""Dipole, polarizability and dielectric series: files, units and orders, unwrapping, differences, and bad input."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from mimyria_wf.derivatives import read_derivatives
from mimyria_wf.errors import SpectrumError, TrajectoryError
from mimyria_wf.property_series import derive_files, differentiate, unwrap_dipole
from mimyria_wf.series_files import PropertySeries, read_series
from mimyria_wf.spectrum import SpectrumSettings, ir_prefactor, ir_spectrum
from mimyria_wf.trajectory import Trajectory, default_masses, write_trajectory
from mimyria_wf.units import BOHR, BOHR_PER_AU_TIME, WAVENUMBER

SIO2 = Path(__file__).resolve().parents[2] / "shared" / "data" / "sio2_md_dfpt_vasp"
DEBYE = 0.20819433  # e A, as in textbooks

# printed by CP2K 2023.1 for two water molecules, PBE/SZV
BLOCK = """\
  Reference Point [Bohr]              0.00000000      0.00000000      0.00000000
  Charges
    Electronic=     16.00000000    Core=   -16.00000000    Total=     0.00000000
  Dipole vectors are based on the periodic (Berry phase) operator.
  They are defined modulo integer multiples of the cell matrix [Debye].
  [X] [   38.42563418     4.80320427     2.40160214 ] [i]
  [Y]=[    0.00000000    36.02403204    -3.36224299 ]*[j]
  [Z] [    0.00000000     0.00000000    39.38627503 ] [k]
  Dipole moment [Debye]
    X=  0.12914938E+01 Y= -0.19388740E+01 Z= -0.38002077E+01   Total=     4.45743953
"""
CELL = np.array([[8.0, 0, 0], [1.0, 7.5, 0], [0.5, -0.7, 8.2]])  # of that run
MOLECULAR = """\
  Reference Point [Bohr]              7.59590955     10.07302980      7.83693622
  Charges
    Electronic=    -16.00000000    Core=    16.00000000    Total=     0.00000000
  Dipoles are based on the traditional operator.
  Dipole moment [Debye]
    X=  0.12348696E+01 Y= -0.20083081E+01 Z= -0.37107045E+01   Total=     4.39630889
  Reference Point [Bohr]              7.59591619     10.07303345      7.83694034
  Charges
    Electronic=    -16.00000000    Core=    16.00000000    Total=     0.00000000
  Dipoles are based on the traditional operator.
  Dipole moment [Debye]
    X=  0.12583495E+01 Y= -0.20587347E+01 Z= -0.36959533E+01   Total=     4.41383082
  Reference Point [Bohr]              7.59593901     10.07303804      7.83695978
  Charges
    Electronic=    -16.00000000    Core=    16.00000000    Total=     0.00000000
  Dipoles are based on the traditional operator.
  Dipole moment [Debye]
    X=  0.12734872E+01 Y= -0.21469878E+01 Z= -0.36798813E+01   Total=     4.44666765
"""
_NAMES = ("xx", "xy", "xz", "yx", "yy", "yz", "zx", "zy", "zz")
POLAR = (
    "#   Step   Time [fs]" + "".join(f"{name:>15} [a.u.]" for name in _NAMES) + "\n"
    """\
       0       0.000          6.52636998          1.03975074         -1.50362363          1.04075966          \
4.98260949         -0.10933889         -1.50334085         -0.10902997          3.60854370
       1       0.500          6.73561228          1.03726023         -1.45166239          1.03744317          \
5.15784186         -0.04804862         -1.45106366         -0.04681967          3.66705399
       2       1.000          7.13152385          1.08502112         -1.44355507          1.08527731          \
5.54051126          0.01804921         -1.44368368          0.01804826          3.81661099
"""
)
POLAR_MATRIX = """\

         POLARIZABILITY TENSOR (atomic units):
         xx,yy,zz        6.52637        4.98261        3.60854
         xy,xz,yz        1.03975       -1.50362       -0.10934
         yx,zx,zy        1.04076       -1.50334       -0.10903
         POLARIZABILITY TENSOR (Angstrom^3):
         xx,yy,zz        0.96711        0.73835        0.53473
         xy,xz,yz        0.15408       -0.22281       -0.01620
         yx,zx,zy        0.15422       -0.22277       -0.01616

         POLARIZABILITY TENSOR (atomic units):
         xx,yy,zz        6.73561        5.15784        3.66705
         xy,xz,yz        1.03726       -1.45166       -0.04805
         yx,zx,zy        1.03744       -1.45106       -0.04682
         POLARIZABILITY TENSOR (Angstrom^3):
         xx,yy,zz        0.99811        0.76431        0.54340
         xy,xz,yz        0.15371       -0.21511       -0.00712
         yx,zx,zy        0.15373       -0.21503       -0.00694
"""


def put(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


class TestCp2k:
    def test_periodic_moments(self, tmp_path):
        second = BLOCK.replace("0.12914938E+01", "0.13117680E+01")
        series = read_series([put(tmp_path / "a-moments.dat", BLOCK + second)], "dipole")
        np.testing.assert_allclose(series.values[0], np.array([1.2914938, -1.938874, -3.8002077]) * DEBYE, rtol=1e-7)
        assert series.values[1, 0] == pytest.approx(1.3117680 * DEBYE)
        # columns of the printed matrix are the cell vectors, in e A the vectors themselves
        np.testing.assert_allclose(series.quanta, CELL, atol=1e-6)

    def test_molecular_moments_have_no_quanta(self, tmp_path):
        series = read_series([put(tmp_path / "a-moments.dat", MOLECULAR)], "dipole")
        assert series.n_frames == 3
        assert series.quanta is None

    def test_cut_off_block(self, tmp_path):
        path = put(tmp_path / "a-moments.dat", BLOCK + BLOCK[:300])
        with pytest.raises(TrajectoryError, match="1 dipoles in 2 blocks; the last block is cut off"):
            read_series([path], "dipole")

    def test_variable_cell(self, tmp_path):
        path = put(tmp_path / "a-moments.dat", BLOCK + BLOCK.replace("38.42563418", "38.43563418"))
        with pytest.raises(TrajectoryError, match="the cell changes in time"):
            read_series([path], "dipole")

    def test_polar_table(self, tmp_path):
        series = read_series([put(tmp_path / "a-1.polar", POLAR)], "polarizability")
        expected = [6.52636998, 4.98260949, 3.60854370, -0.10918443, -1.50348224, 1.0402552]
        np.testing.assert_allclose(series.values[0], expected, atol=1e-8)  # xy and yx averaged
        assert series.timestep == pytest.approx(0.5)

    def test_polar_matrix(self, tmp_path):
        blocks = read_series([put(tmp_path / "polar.dat", POLAR_MATRIX)], "polarizability")
        table = read_series([put(tmp_path / "a-1.polar", POLAR)], "polarizability")
        np.testing.assert_allclose(blocks.values, table.values[:2], atol=1e-5)  # the same run, five decimals
        assert "five decimals" in blocks.notes[0]
        put(tmp_path / "polar.dat", POLAR_MATRIX[:-260])
        with pytest.raises(TrajectoryError, match="is cut off"):
            read_series([tmp_path / "polar.dat"], "polarizability")

    def test_files_in_the_wrong_order(self, tmp_path):
        files = [put(tmp_path / f"a-1_{i}.dat", BLOCK) for i in (8, 9, 10)]
        assert read_series(files, "dipole").n_frames == 3
        with pytest.raises(SpectrumError, match=r"a-1_8\.dat: comes after .*a-1_10\.dat; give the files in the order"):
            read_series(sorted(files), "dipole")

    def test_temperature_from_a_trajectory_without_cell(self, tmp_path):
        """CP2K's xyz files hold no cell; a periodic dipole's quanta are e times its vectors."""
        start = np.array([[0.1, 1.1, -0.1], [1.1, 2.1, -1.1], [-2.0, -1.0, 2.0]])
        velocity = 1e-3 * start  # in bohr and atomic units of time; the atoms fly on
        frames = {"pos": lambda i: start + 0.5 * i * velocity * BOHR_PER_AU_TIME, "vel": lambda i: velocity}
        for kind, rows in frames.items():
            text = ""
            for i in range(4):
                text += f"3\n i = {i:8d}, time = {0.5 * i:12.3f}, E = -17.0\n"
                text += "".join(f"  {s} {x:.9f} {y:.9f} {z:.9f}\n" for s, (x, y, z) in zip("OHH", rows(i)))
            put(tmp_path / f"w-{kind}-1.xyz", text)
        table, out = put(tmp_path / "m.dat", 4 * BLOCK), tmp_path / "d.h5"
        result = derive_files([table], out, kind="dipole", trajectory=tmp_path / "w-pos-1.xyz")
        assert result["timestep_fs"] == 0.5
        assert result["temperature_K"] > 0
        assert result["volume_A3"] == pytest.approx(np.linalg.det(CELL), rel=1e-6)
        put(table, MOLECULAR + MOLECULAR[: MOLECULAR.index("  Reference", 10)])
        result = derive_files([table], out, kind="dipole", trajectory=tmp_path / "w-pos-1.xyz", pbc=False)
        assert result["volume_A3"] is None

    def test_other_kind(self, tmp_path):
        with pytest.raises(SpectrumError, match="these are CP2K moments, not a polarizability series"):
            read_series([put(tmp_path / "a.dat", BLOCK)], "polarizability")


class TestTables:
    def test_stated_order(self, tmp_path):
        path = put(tmp_path / "eps.dat", "2.1 2.2 2.3 0.1 0.2 0.3\n2.1 2.2 2.3 0.1 0.2 0.3\n")
        series = read_series([path], "dielectric", columns="xx yy zz xy yz zx")
        np.testing.assert_allclose(series.values[0], [2.1, 2.2, 2.3, 0.2, 0.3, 0.1])  # xx yy zz yz xz xy
        with pytest.raises(SpectrumError, match="the order of its 6 columns is not stated"):
            read_series([path], "dielectric")
        with pytest.raises(SpectrumError, match="6 columns, but 5 names"):
            read_series([path], "dielectric", columns="xx yy zz xy yz")
        with pytest.raises(SpectrumError, match="no column xz among"):
            read_series([path], "dielectric", columns="xx yy zz xy yz -")
        with pytest.raises(SpectrumError, match="column 'qq' of a dielectric series"):
            read_series([path], "dielectric", columns="xx yy zz xy yz qq")
        with pytest.raises(SpectrumError, match="a column is named twice"):
            read_series([path], "dielectric", columns="xx yy zz xy yz yz")

    @pytest.mark.parametrize(
        ("unit", "factor"), [("debye", DEBYE), ("D", DEBYE), ("e A", 1.0), ("a.u.", BOHR), ("e*a0", BOHR)]
    )
    def test_units_of_a_dipole(self, tmp_path, unit, factor):
        path = put(tmp_path / "m.csv", "x,y,z\n1,2,3\n4,5,6\n")
        series = read_series([path], "dipole", unit=unit)
        np.testing.assert_allclose(series.values, np.array([[1, 2, 3], [4, 5, 6]]) * factor, rtol=1e-7)

    def test_unit_in_the_heading(self, tmp_path):
        path = put(tmp_path / "m.dat", "# time [fs] x [D] y [D] z [D]\n0 1 2 3\n2 4 5 6\n")
        series = read_series([path], "dipole")
        assert series.values[1, 2] == pytest.approx(6 * DEBYE)
        assert series.timestep == 2.0
        with pytest.raises(SpectrumError, match=r"unit 'a\.u\.' was given, but the file says 'debye'"):
            read_series([path], "dipole", unit="a.u.")

    def test_units_absent(self, tmp_path):
        path = put(tmp_path / "m.dat", "1 2 3\n4 5 6\n")
        with pytest.raises(SpectrumError, match="units absent: say which with --unit, one of debye, e A"):
            read_series([path], "dipole")
        with pytest.raises(SpectrumError, match="unit 'furlong' of a dipole, expected one of"):
            read_series([path], "dipole", unit="furlong")
        with pytest.raises(SpectrumError, match="unit 'debye' of a polarizability"):
            read_series([put(path, "1 2 3 4 5 6\n")], "polarizability", unit="debye", columns="xx yy zz xy yz zx")

    def test_polarizability_volume(self, tmp_path):
        np.save(tmp_path / "a.npy", np.broadcast_to(np.diag([1.0, 2.0, 3.0]), (4, 3, 3)))
        series = read_series([tmp_path / "a.npy"], "polarizability", unit="A^3")
        np.testing.assert_allclose(series.values[0, :3], np.array([1, 2, 3]) / 0.529177210544**3)
        with pytest.raises(SpectrumError, match="units absent"):
            read_series([tmp_path / "a.npy"], "polarizability")

    def test_bad_rows(self, tmp_path):
        with pytest.raises(SpectrumError, match="line 2: 2 numbers, expected 3"):
            read_series([put(tmp_path / "m.dat", "1 2 3\n4 5\n")], "dipole", unit="debye")
        with pytest.raises(SpectrumError, match="line 2: not numbers: 'oh no'"):
            read_series([put(tmp_path / "m.dat", "1 2 3\noh no\n")], "dipole", unit="debye")
        with pytest.raises(SpectrumError, match="the dipole of frame 1 is not a finite number"):
            read_series([put(tmp_path / "m.dat", "1 2 3\n1 nan 3\n")], "dipole", unit="debye")
        with pytest.raises(SpectrumError, match="the file is empty"):
            read_series([put(tmp_path / "m.dat", "")], "dipole", unit="debye")
        with pytest.raises(SpectrumError, match="no such file"):
            read_series([tmp_path / "absent"], "dipole", unit="debye")

    def test_uneven_times(self, tmp_path):
        path = put(tmp_path / "m.dat", "# time [fs] x [D] y [D] z [D]\n0 1 2 3\n2 4 5 6\n5 4 5 6\n")
        with pytest.raises(TrajectoryError, match="frames are not equally spaced in time"):
            read_series([path], "dipole")

    @pytest.mark.parametrize(
        ("start", "match"),
        [
            (2.5, "starts at 2.5 fs, but a.dat ends at 1 fs with 0.5 fs between values"),
            (1.0, "repeats 1 fs, the last time of a.dat; remove its first row"),
            (0.5, "starts at 0.5 fs, before the end of a.dat, 1 fs; give the files in the order of time"),
            (1.7, "starts at 1.7 fs, but a.dat ends at 1 fs"),
        ],
    )
    def test_times_of_pieces_go_on(self, tmp_path, monkeypatch, start, match):
        """A difference across a gap, divided by the time step, would be a spike in the derivative."""
        monkeypatch.chdir(tmp_path)

        def piece(name, first):
            rows = "".join(f"{first + 0.5 * k:.6f} {k} 2 3\n" for k in range(3))
            return put(Path(name), "time [fs] x [debye] y [debye] z [debye]\n" + rows)

        pieces = [piece("a.dat", 0.0), piece("b.dat", 1.5), piece("c.dat", 3.0)]
        series = read_series(pieces, "dipole")
        assert series.n_frames == 9
        assert series.span == (0.0, 4.0)
        with pytest.raises(SpectrumError) as caught:
            read_series([pieces[0], piece("bad.dat", start)], "dipole")
        assert match in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_decreasing_times_are_refused(self, tmp_path):
        rows = "".join(f"{-0.5 * k} {k} 2 3\n" for k in range(4))
        path = put(tmp_path / "m.dat", "time [fs] x [debye] y [debye] z [debye]\n" + rows)
        with pytest.raises(SpectrumError, match=r"m.dat: its times decrease, -?0 to -1.5 fs; reverse the rows"):
            read_series([path], "dipole")

    def test_a_unit_that_does_nothing_is_refused(self, tmp_path):
        path = put(tmp_path / "e.dat", "2 0 0 0 2 0 0 0 2\n" * 3)
        assert read_series([path], "dielectric").n_frames == 3
        assert read_series([path], "dielectric", unit="1").n_frames == 3
        with pytest.raises(SpectrumError, match=r"a dielectric series has no unit, got 'A\^3'; leave out --unit"):
            read_series([path], "dielectric", unit="A^3")
        moments = put(tmp_path / "moments.dat", MOLECULAR)
        assert read_series([moments], "dipole", unit="debye").n_frames == 3
        with pytest.raises(SpectrumError, match="the file says 'debye'"):
            read_series([moments], "dipole", unit="a.u.")

    def test_pieces_follow_one_another(self, tmp_path):
        one = put(tmp_path / "1.dat", "# time [fs] x [D] y [D] z [D]\n0 1 2 3\n2 4 5 6\n")
        two = put(tmp_path / "2.dat", "# time [fs] x [D] y [D] z [D]\n4 7 8 9\n6 4 5 6\n")
        assert read_series([one, two], "dipole").n_frames == 4
        put(two, "# time [fs] x [D] y [D] z [D]\n4 7 8 9\n7 4 5 6\n")
        with pytest.raises(SpectrumError, match=r"3\.0 fs between values, but 2\.0 fs in"):
            read_series([one, two], "dipole")


class TestUnwrap:
    @pytest.mark.parametrize(
        "cell", [np.diag([8.0, 9.0, 10.0]), CELL, np.array([[5.0, 0, 0], [47.3, 5.0, 0], [-33.1, 39.4, 6.0]])]
    )
    def test_recovers_a_continuous_dipole(self, cell):
        # the last cell is so skew that rounding its own fractional coordinates picks the wrong image
        time = np.linspace(0, 60, 400)[:, None]
        smooth = np.array([20, 15, -30]) * np.sin(time / np.array([9, 7, 11])) + 1.0
        wrapped = smooth - np.round(smooth @ np.linalg.inv(cell)) @ cell
        assert np.abs(np.diff(wrapped, axis=0)).max() > 3  # it does jump
        found, n_jumps = unwrap_dipole(wrapped, cell)
        np.testing.assert_allclose(found - found[0], smooth - smooth[0], atol=1e-10)
        assert n_jumps > 5

    def test_ambiguous_jump(self):
        dipoles = np.array([[0.0, 0, 0], [1.0, 0, 0], [4.9, 0, 0]])  # 3.9 forward or 4.1 back
        with pytest.raises(
            SpectrumError, match=r"by 3\.9 or by 4\.1 e A between frames 1 and 2; it is printed too rarely"
        ):
            unwrap_dipole(dipoles, 8.0 * np.eye(3))

    def test_through_files(self, tmp_path):
        shifted = BLOCK.replace("X=  0.12914938E+01", "X=  0.39517128E+02").replace("0.12914938E+01", "x")
        path = put(tmp_path / "m.dat", BLOCK + shifted + BLOCK + BLOCK)
        result = derive_files([path], tmp_path / "d.h5", kind="dipole", timestep=0.5, temperature=300.0)
        assert result["n_jumps"] == 2
        assert result["volume_A3"] == pytest.approx(abs(np.linalg.det(CELL)), rel=1e-6)
        series = read_derivatives(tmp_path / "d.h5")
        # 39.517128 - 38.42563418 = 1.09149382 D
        change = (1.09149382 - 1.2914938) * DEBYE / 0.5
        np.testing.assert_allclose(series.total_dipole_derivative[:2, 0], [change, -change], rtol=1e-6)
        assert series.is_periodic

    def test_cell_that_does_not_fit(self, tmp_path):
        path = put(tmp_path / "m.dat", 4 * BLOCK)
        with pytest.raises(SpectrumError, match="its dipole quanta do not fit the cell given"):
            derive_files(
                [path], tmp_path / "d.h5", kind="dipole", timestep=0.5, temperature=300.0, cell=[8.0, 7.5, 8.2]
            )

    def test_no_cell_is_noted(self, tmp_path):
        path = put(tmp_path / "m.dat", MOLECULAR)
        result = derive_files([path], tmp_path / "d.h5", kind="dipole", timestep=0.5, temperature=300.0)
        assert result["n_jumps"] is None
        assert "taken as continuous" in result["notes"][0]


class TestDerivatives:
    def test_differences_of_a_cosine(self):
        # 1600 cm^-1 every 10 fs, 4 % below the Nyquist wavenumber: the amplitude of differences is down to 0.66
        step, omega = 10.0, 2 * np.pi * 1600.0 / WAVENUMBER
        time = np.arange(4000) * step
        dipole = 0.3 * np.cos(omega * time)[:, None] * np.array([1.0, 0, 0])
        run = differentiate(PropertySeries("dipole", dipole), timestep=step, temperature=300.0, volume=1000.0)
        assert run.origin == "differences"
        mean_square = 0.5 * (0.3 * omega) ** 2
        damping = np.sinc(1600.0 / WAVENUMBER * step) ** 2
        assert (run.total_dipole_derivative**2).sum(axis=1).mean() == pytest.approx(mean_square * damping, rel=2e-3)
        spectrum = ir_spectrum([run], SpectrumSettings(window_length=8000.0, upper_wavenumber=1667.0, spacing=0.5))
        peak = spectrum.wavenumber[np.argmax(spectrum.n_alpha)]
        assert peak == pytest.approx(1600.0, abs=0.5)
        near = np.abs(spectrum.wavenumber - 1600) < 30
        found = np.trapezoid(spectrum.n_alpha[near], spectrum.wavenumber[near])
        # int S dnu = C(0) per (1/fs -> cm^-1), half of it at positive wavenumbers; see the f-sum gate
        expected = ir_prefactor(300.0, 1000.0) * mean_square * 0.5 * WAVENUMBER
        assert found == pytest.approx(expected, rel=3e-3)  # the Hann window's tails beyond 30 cm^-1

    def test_dielectric_to_polarizability(self):
        values = np.zeros((5, 6))
        values[:, 0] = 1.0 + np.arange(5)
        run = differentiate(PropertySeries("dielectric", values), timestep=2.0, temperature=300.0, volume=50.0)
        expected = 50.0 / BOHR**3 / (4 * np.pi) / 2.0
        np.testing.assert_allclose(run.total_polarizability_derivative[:, 0], expected)
        np.testing.assert_array_equal(run.total_polarizability_derivative[:, 1:], 0)
        with pytest.raises(SpectrumError, match="a dielectric tensor needs the cell's volume"):
            differentiate(PropertySeries("dielectric", values), timestep=2.0, temperature=300.0)

    def test_bad_input(self, tmp_path):
        series = PropertySeries("dipole", np.zeros((5, 3)), timestep=0.5)
        with pytest.raises(SpectrumError, match="2 frames; differences need three"):
            differentiate(PropertySeries("dipole", np.zeros((2, 3))), timestep=1.0, temperature=300.0)
        with pytest.raises(SpectrumError, match="the time between values is unknown"):
            differentiate(PropertySeries("dipole", np.zeros((5, 3))), temperature=300.0)
        with pytest.raises(SpectrumError, match=r"1 fs between values was given, but its times are 0\.5 fs apart"):
            differentiate(series, timestep=1.0, temperature=300.0)
        with pytest.raises(SpectrumError, match="the time step must be positive"):
            differentiate(series, timestep=-1.0, temperature=300.0)
        with pytest.raises(SpectrumError, match=r"expected \(n_frames, 3\) values, got \(5, 6\)"):
            PropertySeries("dipole", np.zeros((5, 6)))
        with pytest.raises(SpectrumError, match="temperature unknown; give it"):
            derive_files([put(tmp_path / "m.dat", MOLECULAR)], tmp_path / "d.h5", kind="dipole", timestep=0.5)
        with pytest.raises(SpectrumError, match=r"volume 5 A\^3, but the cell has 8 A\^3"):
            derive_files(
                [put(tmp_path / "m.dat", MOLECULAR)],
                tmp_path / "d.h5",
                kind="dipole",
                timestep=0.5,
                temperature=300.0,
                volume=5.0,
                cell=[2.0, 2.0, 2.0],
            )
        assert not (tmp_path / "d.h5").exists()

    def test_dipole_and_polarizability_of_one_run(self, tmp_path):
        rng = np.random.default_rng(5)
        np.save(tmp_path / "m.npy", rng.normal(size=(9, 3)))
        np.save(tmp_path / "a.npy", rng.normal(size=(9, 3, 3)))
        np.save(tmp_path / "short.npy", rng.normal(size=(7, 3, 3)))
        options = {"timestep": 1.0, "temperature": 300.0}
        dipole, both = tmp_path / "m.h5", tmp_path / "both.h5"
        derive_files([tmp_path / "m.npy"], dipole, kind="dipole", unit="e A", cell=[50.0, 50.0, 50.0], **options)
        tensor = {"kind": "polarizability", "unit": "a.u.", "beside": dipole}
        derive_files([tmp_path / "a.npy"], both, **tensor, **options)
        series = read_derivatives(both)
        np.testing.assert_allclose(series.total_dipole_derivative[0], np.diff(np.load(tmp_path / "m.npy"), axis=0)[0])
        assert series.total_polarizability_derivative.shape == (8, 6)
        assert series.volume == pytest.approx(125000.0)
        assert series.origin == "differences"
        with pytest.raises(SpectrumError, match="differ in number of frames: 8 and 6; not one run"):
            derive_files([tmp_path / "short.npy"], both, **tensor, **options)
        with pytest.raises(SpectrumError, match="differ in temperature"):
            derive_files([tmp_path / "a.npy"], both, **tensor, timestep=1.0, temperature=310.0)
        with pytest.raises(SpectrumError, match="one must hold a dipole series, the other a polarizability"):
            derive_files([tmp_path / "m.npy"], both, kind="dipole", unit="e A", beside=dipole, **options)

    def test_too_short_for_the_window(self):
        run = differentiate(
            PropertySeries("dipole", np.random.default_rng(0).normal(size=(20, 3))),
            timestep=1.0,
            temperature=300.0,
            volume=100.0,
            name="short",
        )
        with pytest.raises(SpectrumError, match=r"short is 19 fs long \(19 frames\), shorter than the window"):
            ir_spectrum([run])


class TestBesideATrajectory:
    @pytest.fixture
    def run(self, tmp_path):
        rng = np.random.default_rng(1)
        numbers = np.array([8, 1, 1])
        velocities = rng.normal(size=(12, 3, 3), scale=0.01)
        masses = default_masses(numbers)
        velocities -= np.einsum("i,tia->ta", masses, velocities)[:, None] / masses.sum()
        trajectory = Trajectory(
            numbers=numbers,
            positions=np.cumsum(velocities, axis=0) + rng.normal(size=(3, 3)),
            velocities=velocities,
            cell=CELL,
            pbc=np.ones(3, dtype=bool),
            timestep=0.5,
            masses=masses,
        )
        write_trajectory(tmp_path / "run.h5", trajectory)
        return tmp_path / "run.h5", trajectory

    def table(self, tmp_path, n):
        np.save(tmp_path / "m.npy", np.random.default_rng(2).normal(size=(n, 3), scale=0.1))
        return tmp_path / "m.npy"

    def test_temperature_cell_and_step(self, run, tmp_path):
        path, trajectory = run
        result = derive_files([self.table(tmp_path, 12)], tmp_path / "d.h5", kind="dipole", unit="e A", trajectory=path)
        assert result["timestep_fs"] == 0.5
        assert result["temperature_K"] == pytest.approx(trajectory.kinetic_temperature().mean())  # 3N - 3
        assert result["volume_A3"] == pytest.approx(np.linalg.det(CELL))
        assert result["n_frames"] == 11

    def test_every_third_frame(self, run, tmp_path):
        path, _ = run
        options = {"kind": "dipole", "unit": "e A", "trajectory": path}
        table = self.table(tmp_path, 4)
        assert derive_files([table], tmp_path / "d.h5", timestep=1.5, **options)["timestep_fs"] == 1.5
        with pytest.raises(SpectrumError, match=r"4 values, but .*run\.h5 has 12 frames; give the time between values"):
            derive_files([table], tmp_path / "d.h5", **options)
        with pytest.raises(SpectrumError, match=r"4 values every 0\.5 fs, but .* which makes 12"):
            derive_files([table], tmp_path / "d.h5", timestep=0.5, **options)
        with pytest.raises(SpectrumError, match=r"0\.7 fs between values is no multiple of the 0\.5 fs"):
            derive_files([table], tmp_path / "d.h5", timestep=0.7, **options)

    def test_velocities_absent(self, run, tmp_path):
        path = put(tmp_path / "a.xyz", "")
        frame = '1\nLattice="8 0 0 0 8 0 0 0 8" Properties=species:S:1:pos:R:3 time={}\nH 0 0 0\n'
        put(path, "".join(frame.format(0.5 * i) for i in range(12)))
        with pytest.raises(TrajectoryError, match="no velocities, which spectra need"):
            derive_files([self.table(tmp_path, 12)], tmp_path / "d.h5", kind="dipole", unit="e A", trajectory=path)


@pytest.mark.reference_data
@pytest.mark.skipif(not SIO2.is_dir(), reason=f"{SIO2} is absent")
def test_a_folder_of_outcars_in_order(tmp_path):
    series = read_series([SIO2 / "outcar"], "dielectric")
    table = read_series([SIO2 / "alpha.dat"], "dielectric", columns="xx yy zz xy yz zx")
    assert table.n_frames == 1000
    # VASP's tensors are symmetric to 4e-6 only, and the table holds one of each pair
    np.testing.assert_allclose(series.values, table.values[:8], rtol=0, atol=3e-6)
    alpha = read_series([SIO2 / "outcar"], "polarizability")
    np.testing.assert_allclose(
        alpha.values[:, 1], (series.values[:, 1] - 1) * alpha.volume / BOHR**3 / (4 * np.pi), rtol=1e-12
    )
    # one folder a frame, with both files in it, counted as people count
    for i in (0, 1, 9, 10):
        folder = tmp_path / f"step-{i}"
        folder.mkdir()
        source = SIO2 / "outcar" / f"{10 * (1 + i % 7):06d}.OUTCAR.gz"
        (folder / "OUTCAR").write_bytes(gzip.decompress(source.read_bytes()))
        (folder / "vasprun.xml").write_text("<?xml version='1.0'?><modeling/>")
    counted = read_series([tmp_path], "dielectric")
    np.testing.assert_array_equal(counted.values, series.values[[0, 1, 2, 3]])
    with pytest.raises(SpectrumError, match="LEPSILON runs hold no dipole"):
        read_series([SIO2 / "outcar"], "dipole")
