"""Alpha-quartz at 300 K, published MD with a dielectric tensor and Born charges every 10 fs.

The dielectric series gives the authors' Raman spectrum in their own convention, and ours by Eq. 11 of Egger, Grumet and
Bucko (2025); Born charges times velocities give the infrared spectrum. Figures and findings are in
docs/benchmarks-and-validation.md.
"""

from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from mimyria_wf.derivatives import DerivativeSeries, derivative_series
from mimyria_wf.frames import Trajectory
from mimyria_wf.gates import ir_gates
from mimyria_wf.intensity import RamanForm
from mimyria_wf.property_series import PropertySeries, differentiate
from mimyria_wf.series_files import read_series
from mimyria_wf.spectrum import SpectrumSettings, ir_spectrum, raman_spectrum, spectral_distance
from mimyria_wf.trajectory import check_velocities, default_masses, open_trajectory, write_trajectory
from mimyria_wf.units import BOLTZMANN, HBAR, WAVENUMBER, C

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "sio2_md_dfpt_vasp"
STEP = 10.0  # between tensors [fs]
MD_STEP = 1.0  # [fs]

pytestmark = [
    pytest.mark.reference_data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent"),
]


@pytest.fixture(scope="module")
def arrays():
    with np.load(DATA / "mdraman_bec_eps.npz") as file:
        found = {key: file[key] for key in file}
    found["masses"] = default_masses(found["numbers"])
    found["volume"] = float(np.linalg.det(found["cell"]))
    found["apt"] = found["Z"].transpose(0, 1, 3, 2)  # VASP's rows are fields
    return found


@pytest.fixture(scope="module")
def published():
    """The authors' wavenumbers [cm^-1] and intensities."""
    wavenumber, intensity = np.loadtxt(DATA / "raman_spectrum.dat").T
    return wavenumber, intensity


@pytest.fixture(scope="module")
def dielectric():
    return read_series([DATA / "alpha.dat"], "dielectric", columns="xx yy zz xy yz zx")


@pytest.fixture(scope="module")
def alpha_derivative(dielectric, arrays):
    return differentiate(dielectric, timestep=STEP, temperature=298.8, volume=arrays["volume"], is_periodic=True)


def power(columns: np.ndarray) -> np.ndarray:
    """Return |FFT|^2 summed over columns."""
    return (np.abs(np.fft.rfft(columns, axis=0)) ** 2).sum(axis=1)


def invariant_power(differences: np.ndarray) -> np.ndarray:
    """Return the periodogram of (45 a^2 + 7 gamma^2)/45 of six columns xx yy zz yz xz xy."""
    xx, yy, zz = differences.T[:3]
    trace = power((xx + yy + zz)[:, None] / 3)
    anisotropy = 0.5 * power(np.stack([xx - yy, yy - zz, zz - xx], axis=1)) + 3 * power(differences[:, 3:])
    return (45 * trace + 7 * anisotropy) / 45


def smoothed(grid: np.ndarray, wavenumber: np.ndarray, values: np.ndarray, half_width: float = 10.0) -> np.ndarray:
    """Sum Lorentzians of height one on a grid."""
    return (1 / (1 + ((grid[:, None] - wavenumber) / half_width) ** 2)) @ values


class TestAuthorsConvention:
    """What raman_spectrum.dat is made of, to nine digits."""

    def authors(self, grid: np.ndarray, differences: np.ndarray) -> np.ndarray:
        """Rebuild it from forward differences of the dielectric tensor."""
        frequency = np.fft.rfftfreq(len(differences), STEP)[1:]  # 1/fs
        # their corrections take f where omega = 2 pi f is meant, and the first has the sign of its inverse
        shifted = 2 / MD_STEP * np.arcsin(frequency * MD_STEP / 2)
        damping = (np.sin(shifted * STEP) / (shifted * STEP)) ** 2
        wavenumber = shifted * WAVENUMBER
        laser = 1e2 / 514e-9  # the wavenumber of 514 nm in cm^-1, were it not 1e4 too large
        spectrum = invariant_power(differences)[1:] * damping * (laser - wavenumber) ** 4 / wavenumber
        return smoothed(grid, wavenumber, spectrum)

    def test_identical(self, published, dielectric):
        wavenumber, intensity = published
        ratio = intensity / self.authors(wavenumber, np.diff(dielectric.values, axis=0))
        # even the absolute factor is a power of ten: 1/dt^2 = 1e28 s^-2, and a hundredth
        np.testing.assert_allclose(ratio, 1e26, rtol=1e-8)

    def test_what_their_corrections_amount_to(self, published, dielectric):
        """Without the two corrections and the laser factor: S/nu alone is within 5 %, no Bose factor is in it."""
        wavenumber, intensity = published
        differences = np.diff(dielectric.values, axis=0)
        own = np.fft.rfftfreq(len(differences), STEP)[1:] * WAVENUMBER
        plain = smoothed(wavenumber, own, invariant_power(differences)[1:] / own)
        ratio = intensity / plain
        assert np.ptp(ratio) / ratio.mean() < 0.08
        x = HBAR * 2 * np.pi * C * 100 * own / (BOLTZMANN * 300)
        for quantum in (-np.expm1(-x), -np.expm1(-x / (2 * np.pi))):  # hbar omega, hbar f
            other = intensity / smoothed(wavenumber, own, invariant_power(differences)[1:] / own / quantum)
            assert np.ptp(other) / other.mean() > 1  # the file has neither


class TestEquation11:
    def test_from_the_periodogram(self, alpha_derivative, arrays):
        """Our path (correlation, window, 21 lineshapes, form) equals Eq. 11 written out on the periodogram."""
        length = alpha_derivative.n_frames
        settings = SpectrumSettings(
            window="boxcar",
            window_length=(length - 1) * STEP,
            estimator="biased",
            upper_wavenumber=1500.0,
            spacing=WAVENUMBER / STEP / (2 * length),
        )
        spectrum = raman_spectrum([alpha_derivative], settings)
        form = RamanForm(statistics="harmonic", laser_nm=532.0)
        nu = spectrum.wavenumber[1:]
        ours = (spectrum.weighted["vv"] + spectrum.weighted["vh"])[1:] * form.factor(nu, 298.8)
        differences = alpha_derivative.total_polarizability_derivative
        phases = np.exp(-2j * np.pi * np.outer(nu / WAVENUMBER * STEP, np.arange(length)))
        amplitude = phases @ differences
        xx, yy, zz, yz, xz, xy = amplitude.T
        trace = abs(xx + yy + zz) ** 2 / 9
        gamma = 0.5 * (abs(xx - yy) ** 2 + abs(yy - zz) ** 2 + abs(zz - xx) ** 2)
        gamma += 3 * (abs(yz) ** 2 + abs(xz) ** 2 + abs(xy) ** 2)
        sinc = np.sinc(nu / WAVENUMBER * STEP)
        x = HBAR * 2 * np.pi * C * 100 * nu / (BOLTZMANN * 298.8)
        equation = (1e7 / 532 - nu) ** 4 / nu / -np.expm1(-x) * (45 * trace + 7 * gamma) / 45 / sinc**2
        np.testing.assert_allclose(ours / ours.max(), equation / equation.max(), rtol=1e-8, atol=1e-12)

    def test_lines_of_quartz(self, alpha_derivative):
        """Sanity only: the strongest line is the A1 mode that is measured at 464 cm^-1."""
        settings = SpectrumSettings(window_length=1500.0, upper_wavenumber=1667.0)
        spectrum = raman_spectrum([alpha_derivative], settings)
        factor = RamanForm(statistics="harmonic", laser_nm=532.0).factor(spectrum.wavenumber, 298.8, settings.mask)
        intensity = np.nan_to_num((spectrum.weighted["vv"] + spectrum.weighted["vh"]) * factor)
        assert spectrum.wavenumber[np.argmax(intensity)] == pytest.approx(505, abs=10)
        # an A1 line is polarized
        line = np.argmin(abs(spectrum.wavenumber - 505))
        assert spectrum.depolarization[line] < 0.1


def pieces(arrays: dict, n_pieces: int) -> list[DerivativeSeries]:
    """Cut the run into consecutive stretches."""
    length = len(arrays["Z"]) // n_pieces
    cuts = [slice(i * length, (i + 1) * length) for i in range(n_pieces)]
    return [
        derivative_series(
            arrays["vel"][cut],
            arrays["pos"][cut],
            arrays["masses"],
            STEP,
            apt=arrays["apt"][cut],
            name=f"quartz-{i}",
            volume=arrays["volume"],
            is_periodic=True,
            removed_motion="translation",
        )
        for i, cut in enumerate(cuts)
    ]


@pytest.fixture(scope="module")
def fine_dipole(arrays):
    """M' every 1 fs, from all velocities and splined Born charges, and M by the trapezoidal rule."""
    every = 9 + 10 * np.arange(1000)  # tensors belong to these MD steps
    time = np.arange(9, 10000)
    velocities = arrays["vel_all"][9:].astype(float)
    rates = {}
    for name, tensors in (("apt", arrays["apt"]), ("transposed", arrays["Z"])):
        rate = np.einsum("tiaf,tia->tf", CubicSpline(every, tensors)(time), velocities)
        rates[name] = rate, np.concatenate([np.zeros((1, 3)), np.cumsum(0.5 * (rate[1:] + rate[:-1]), axis=0)])
    return rates


class TestInfrared:
    def test_velocities_are_those_of_the_positions(self, arrays, tmp_path):
        run = Trajectory(
            numbers=arrays["numbers"],
            positions=arrays["pos_all"][:500].astype(float),
            velocities=arrays["vel_all"][:500].astype(float),
            cell=arrays["cell"],
            pbc=np.ones(3, dtype=bool),
            timestep=MD_STEP,
            masses=arrays["masses"],
        )
        write_trajectory(tmp_path / "run.h5", run)
        check_velocities(open_trajectory(tmp_path / "run.h5"))
        np.testing.assert_allclose(arrays["vel_all"][9::10], arrays["vel"], atol=1e-9)

    def test_axis_order_of_the_born_charges(self, arrays, fine_dipole):
        """M is a function of the positions only if the tensors are contracted over displacements."""
        displacements = (arrays["pos_all"][9:] - arrays["pos_all"].mean(axis=0)).reshape(len(fine_dipole["apt"][1]), -1)
        design = np.column_stack([np.ones(len(displacements)), displacements.astype(float)])
        unexplained = {}
        for name, (_, dipole) in fine_dipole.items():
            fitted = design @ np.linalg.lstsq(design, dipole, rcond=None)[0]
            unexplained[name] = (dipole - fitted).std(axis=0) / dipole.std(axis=0)
        assert np.all(unexplained["apt"] < 0.05)
        assert np.all(unexplained["transposed"] > 0.2)

    @pytest.mark.parametrize("n_pieces", [5, 10])
    def test_f_sum(self, arrays, n_pieces):
        runs = pieces(arrays, n_pieces)
        spectrum = ir_spectrum(runs, SpectrumSettings(window_length=500.0, upper_wavenumber=1667.0))
        numerical, equipartition = ir_gates(spectrum, runs)[:2]
        assert numerical.passed
        assert numerical.ratio == pytest.approx(1, abs=1e-3)
        assert equipartition.passed
        # one 10 ps run: modes have not shared their energy evenly
        assert equipartition.ratio == pytest.approx(0.918, abs=0.005)

    def test_what_ten_femtoseconds_fold_back(self, arrays, fine_dipole):
        """No vibration lies above the Nyquist wavenumber; what overtones do is half a percent of the intensity."""
        rate = fine_dipole["apt"][0]
        found = power(rate * np.hanning(len(rate))[:, None])
        wavenumber = np.fft.rfftfreq(len(rate), MD_STEP) * WAVENUMBER
        above = found[wavenumber > 0.5 * WAVENUMBER / STEP].sum() / found.sum()
        assert 0.002 < above < 0.01
        # so the spectrum sampled every 10 fs is that of every 1 fs
        settings = SpectrumSettings(window_length=500.0, upper_wavenumber=1600.0)
        options = {"temperature": 298.8, "volume": arrays["volume"]}
        coarse, fine = (
            ir_spectrum([DerivativeSeries("run", step, dipole_derivative=m[:, None], **options)], settings)
            for step, m in ((STEP, rate[::10]), (MD_STEP, rate))
        )
        resampled = np.interp(coarse.wavenumber, fine.wavenumber, fine.n_alpha)
        assert spectral_distance(coarse.wavenumber, coarse.n_alpha, resampled, upper=1600.0) < 0.02

    def test_differences_of_the_dipole(self, arrays, fine_dipole):
        """M(t) printed every 10 fs, differenced and corrected, gives what true velocities give."""
        rate, dipole = fine_dipole["apt"]
        options = {"temperature": 298.8, "volume": arrays["volume"]}
        differenced = differentiate(PropertySeries("dipole", dipole[::10]), timestep=STEP, **options)
        true = DerivativeSeries("true", STEP, dipole_derivative=rate[::10, None], **options)
        distances = {}
        for corrects in (True, False):
            settings = SpectrumSettings(window_length=500.0, upper_wavenumber=1600.0, corrects_differences=corrects)
            a, b = (ir_spectrum([run], settings) for run in (differenced, true))
            distances[corrects] = spectral_distance(a.wavenumber, a.n_alpha, b.n_alpha, upper=1600.0)
        assert distances[True] < 0.02
        assert distances[False] > 0.1

    def test_bands_of_quartz(self, arrays):
        """Sanity only: transverse modes measured at 450, 797 and 1072 cm^-1 lie 1 to 6 % lower with PBE."""
        (run,) = pieces(arrays, 1)
        spectrum = ir_spectrum([run], SpectrumSettings(window_length=2000.0, upper_wavenumber=1667.0, spacing=1.0))
        for measured in (450.0, 797.0, 1072.0):
            near = np.abs(spectrum.wavenumber - 0.97 * measured) < 0.05 * measured
            peak = spectrum.wavenumber[near][np.argmax(spectrum.n_alpha[near])]
            assert 0.93 < peak / measured < 1.01
        assert spectrum.wavenumber[np.argmax(spectrum.n_alpha)] == pytest.approx(1009, abs=10)
