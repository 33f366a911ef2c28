"""Spectra of alpha-quartz from published molecular dynamics, against the spectrum published with it.

    python benchmarks/quartz.py -o quartz.png

The data (TheoFEM-TUM/MD-Raman; Egger, Grumet and Bucko 2025) are ten picoseconds of nine atoms at 300 K with a
dielectric tensor and Born charges every 10 fs. Four parts: the published Raman spectrum rebuilt from the dielectric
series in its own convention; the same by their Eq. 11, factor by factor; our Raman spectrum; infrared absorption from
Born charges times velocities, and what sampling every 10 fs does to it. tests/test_sio2.py asserts the main figures.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.signal import find_peaks

from mimyria_wf.derivatives import DerivativeSeries, derivative_series
from mimyria_wf.frames import default_masses
from mimyria_wf.gates import ir_gates
from mimyria_wf.intensity import RamanForm
from mimyria_wf.plots import COLOURS, IR_LABEL, WAVENUMBER_LABEL, Curve, _draw, _figure
from mimyria_wf.property_series import PropertySeries, differentiate
from mimyria_wf.series_files import read_series
from mimyria_wf.spectrum import (
    IrSpectrum,
    RamanSpectrum,
    SpectrumSettings,
    ir_spectrum,
    raman_spectrum,
    spectral_distance,
)
from mimyria_wf.units import BOLTZMANN, HBAR, WAVENUMBER, C

Array = NDArray[np.float64]

STEP = 10.0  # between tensors [fs]
MD_STEP = 1.0  # [fs]
FIRST = 9  # MD step of the first tensor
TEMPERATURE = 298.8  # mean kinetic temperature of the run [K]
LASER = 532.0  # [nm]
LINES = (117, 243, 272, 506, 674, 791, 1007, 1088)  # of the published spectrum [cm^-1]
STRONGEST = 506
MEASURED = (450, 797, 1072)  # some transverse infrared modes of quartz [cm^-1]
UPPER = 1600.0  # [cm^-1]; the Nyquist wavenumber is 1668


@dataclass(frozen=True)
class Quartz:
    """The published data.

    Attributes:
        positions: (1000, n_atoms, 3) where there are tensors [A].
        velocities: (1000, n_atoms, 3) at the same steps [A/fs].
        all_velocities: (10000, n_atoms, 3) at every MD step [A/fs].
        apt: (1000, n_atoms, displacement, field) [e].
        dielectric: (1000, 6) series of the dielectric tensor.
        masses: (n_atoms,) [u].
        volume: of the cell [A^3].
        wavenumber: of the published spectrum [cm^-1].
        intensity: of the published spectrum [arb. u.].
    """

    positions: Array
    velocities: Array
    all_velocities: Array
    apt: Array
    dielectric: PropertySeries
    masses: Array
    volume: float
    wavenumber: Array
    intensity: Array


def read(folder: Path) -> Quartz:
    """Read the published data."""
    with np.load(folder / "mdraman_bec_eps.npz") as file:
        arrays = {key: file[key] for key in file}
    wavenumber, intensity = np.loadtxt(folder / "raman_spectrum.dat").T
    return Quartz(
        positions=arrays["pos"],
        velocities=arrays["vel"],
        all_velocities=arrays["vel_all"].astype(float),
        apt=arrays["Z"].transpose(0, 1, 3, 2),  # rows are fields in VASP
        dielectric=read_series([folder / "alpha.dat"], "dielectric", columns="xx yy zz xy yz zx"),
        masses=default_masses(arrays["numbers"]),
        volume=float(np.linalg.det(arrays["cell"])),
        wavenumber=wavenumber,
        intensity=intensity,
    )


def power(columns: Array) -> Array:
    """Return |FFT|^2 summed over columns."""
    return (np.abs(np.fft.rfft(columns, axis=0)) ** 2).sum(axis=1)


def raman_periodogram(dielectric: Array) -> tuple[Array, Array]:
    """Return frequencies [1/fs] and the periodogram of (45 a^2 + 7 gamma^2)/45 of forward differences, without zero."""
    differences = np.diff(dielectric, axis=0)
    xx, yy, zz = differences.T[:3]
    trace = power((xx + yy + zz)[:, None] / 3)
    anisotropy = 0.5 * power(np.stack([xx - yy, yy - zz, zz - xx], axis=1)) + 3 * power(differences[:, 3:])
    return np.fft.rfftfreq(len(differences), STEP)[1:], ((45 * trace + 7 * anisotropy) / 45)[1:]


def smoothed(grid: Array, wavenumber: Array, values: Array, half_width: float = 10.0) -> Array:
    """Sum Lorentzians of height one on a grid."""
    return (1 / (1 + ((grid[:, None] - wavenumber) / half_width) ** 2)) @ values


def published_damping(shifted: Array) -> Array:
    """Return the factor of the published spectrum for differences in time; f stands where pi f would in sinc^2."""
    return (np.sin(shifted * STEP) / (shifted * STEP)) ** 2


def published_shift(frequency: Array) -> Array:
    """Return the frequencies of the published spectrum, shifted for the time step of the dynamics [1/fs]."""
    return 2 / MD_STEP * np.arcsin(frequency * MD_STEP / 2)


def in_published_convention(grid: Array, frequency: Array, periodogram: Array) -> Array:
    """Rebuild the published spectrum up to a constant."""
    shifted = published_shift(frequency)
    wavenumber = shifted * WAVENUMBER
    laser = 1e2 / 514e-9  # fits in place of the 1.9e4 cm^-1 of 514 nm: the fourth power is then nearly constant
    values = periodogram * published_damping(shifted) * (laser - wavenumber) ** 4 / wavenumber
    return smoothed(grid, wavenumber, values)


def bose(wavenumber: Array) -> Array:
    """Return 1/(1 - exp(-hbar omega/kT))."""
    return -1 / np.expm1(-HBAR * 2 * np.pi * C * 100 * wavenumber / (BOLTZMANN * TEMPERATURE))


def equation_11(grid: Array, frequency: Array, periodogram: Array, bose_factor: Array) -> Array:
    """Write Eq. 11 out on the periodogram, up to a constant, and smooth it like the published spectrum."""
    wavenumber = frequency * WAVENUMBER
    laser = (1 - wavenumber / (1e7 / LASER)) ** 4
    return smoothed(grid, wavenumber, periodogram / wavenumber * bose_factor * laser / np.sinc(frequency * STEP) ** 2)


def show(label: str, *values: object) -> None:
    """Print a line of the table."""
    print(f"{label:52}" + " ".join(f"{value!s:>8}" for value in values))


def rounded(values: Array, digits: int = 3) -> list[str]:
    """Return numbers as text."""
    return [f"{value:.{digits}f}" for value in values]


def published_raman(data: Quartz) -> tuple[Array, Array]:
    """Print what the published spectrum is made of; return it rebuilt, and Eq. 11, both on its grid."""
    grid = data.wavenumber
    frequency, periodogram = raman_periodogram(data.dielectric.values)
    own = frequency * WAVENUMBER
    rebuilt = in_published_convention(grid, frequency, periodogram)
    ratio = data.intensity / rebuilt
    print("Published Raman spectrum, rebuilt in its own convention")
    show("  published / rebuilt", f"{ratio.mean():.12g}")
    show("  largest relative deviation", f"{np.abs(ratio / ratio.mean() - 1).max():.1e}")
    plain = data.intensity / smoothed(grid, own, periodogram / own)
    show("  published / (S/nu): spread over the axis", f"{np.ptp(plain) / plain.mean():.3f}")

    eq11 = equation_11(grid, frequency, periodogram, bose(own))
    damping = published_damping(published_shift(frequency))
    factors = {
        "1/(1 - exp(-hbar omega/kT))": bose(own),
        f"(nu_in - nu)^4, {LASER:g} nm": (1 - own / (1e7 / LASER)) ** 4,
        "1/sinc^2(pi f dt)": 1 / np.sinc(frequency * STEP) ** 2,
        "1/sinc^2(f dt), inverse of the published": 1 / damping,
    }
    print(f"Factors of Eq. 11 relative to the line at {STRONGEST} cm^-1")
    show("  line / cm^-1", *LINES)
    for name, factor in factors.items():
        show(f"  {name}", *rounded(np.interp(LINES, own, factor) / np.interp(STRONGEST, own, factor)))
    relative = eq11 / data.intensity
    show("  Eq. 11 / published", *rounded((relative / np.interp(STRONGEST, grid, relative))[list(LINES)]))
    show("  distance, 50 to 1600 cm^-1, equal area", f"{distance_of_shapes(grid, data.intensity, eq11):.4f}")
    # with f in place of omega the argument of the exponential is smaller by 2 pi
    other = equation_11(grid, frequency, periodogram, bose(own / (2 * np.pi)))
    excess = other[LINES[0]] / other[STRONGEST] / (eq11[LINES[0]] / eq11[STRONGEST])
    show(
        "  with hbar f for hbar omega: distance, line at 117",
        f"{distance_of_shapes(grid, other, eq11):.4f}",
        f"{excess:.3f}",
    )
    return rebuilt, eq11


def distance_of_shapes(grid: Array, first: Array, second: Array) -> float:
    """Return the spectral distance between 50 and 1600 cm^-1 of spectra scaled to equal area there."""
    kept = (grid > 50) & (grid < UPPER)
    a, b = (values[kept] / values[kept].sum() for values in (first, second))
    return spectral_distance(grid[kept], a, b, 50, UPPER)


def print_peaks(title: str, wavenumber: Array, values: Array, prominence: float, **others: Array) -> None:
    """Print where peaks are, their heights relative to the largest, and other values there."""
    values = np.nan_to_num(values)
    peaks, _ = find_peaks(values, prominence=prominence * values.max())
    show(f"  {title} / cm^-1", *rounded(wavenumber[peaks], 0))
    show("    relative height", *rounded(values[peaks] / values.max()))
    for name, other in others.items():
        show(f"    {name}", *rounded(other[peaks], 2))


def our_raman(data: Quartz) -> Curve:
    """Print the lines of our Raman spectrum in the form of Eq. 11; return it."""
    run = differentiate(data.dielectric, timestep=STEP, temperature=TEMPERATURE, volume=data.volume, is_periodic=True)
    settings = SpectrumSettings(window_length=1000.0, upper_wavenumber=UPPER, spacing=1.0)
    spectrum: RamanSpectrum = raman_spectrum([run], settings)
    form = RamanForm(statistics="harmonic", laser_nm=LASER)
    weighted = spectrum.weighted["vv"] + spectrum.weighted["vh"]
    values = weighted * form.factor(spectrum.wavenumber, TEMPERATURE, settings.mask)
    print("Our Raman spectrum, VV + VH, harmonic, 532 nm, Hann window of 1 ps")
    print_peaks("lines", spectrum.wavenumber, values, 0.003, **{"VH/VV": spectrum.depolarization})
    return Curve(spectrum.wavenumber, values, label="Eq. 11, 532 nm, Hann window of 1 ps")


def stretches(data: Quartz, n_stretches: int) -> list[DerivativeSeries]:
    """Cut the run into consecutive stretches of Born charges times velocities."""
    length = len(data.apt) // n_stretches
    cuts = [slice(i * length, (i + 1) * length) for i in range(n_stretches)]
    return [
        derivative_series(
            data.velocities[cut],
            data.positions[cut],
            data.masses,
            STEP,
            apt=data.apt[cut],
            name=f"quartz-{i}",
            volume=data.volume,
            is_periodic=True,
            removed_motion="translation",
        )
        for i, cut in enumerate(cuts)
    ]


def infrared(data: Quartz) -> IrSpectrum:
    """Print gates and bands of the infrared spectrum; return the one of five stretches."""
    print("Infrared, Born charges times velocities")
    for n in (1, 5, 10):
        runs = stretches(data, n)
        spectrum = ir_spectrum(runs, SpectrumSettings(window_length=500.0, upper_wavenumber=1667.0))
        for gate in ir_gates(spectrum, runs)[:2]:
            print(f"  {n} x {10 / n:g} ps, {gate.name}: ratio {gate.ratio:.6f}, passed: {gate.passed}")
            print(f"    {gate.text}")
    for n, window in ((1, 3000.0), (5, 1000.0)):
        settings = SpectrumSettings(window_length=window, upper_wavenumber=UPPER, spacing=1.0)
        spectrum = ir_spectrum(stretches(data, n), settings)
        title = f"bands, {n} x {10 / n:g} ps, window {window / 1000:g} ps"
        print_peaks(title, spectrum.wavenumber, spectrum.n_alpha, 0.01)
        show("    largest n alpha / cm^-1", f"{spectrum.n_alpha.max():.0f}")
    return spectrum


def sampling(data: Quartz) -> None:
    """Print what sampling every 10 fs does: M' every 1 fs from all velocities and splined Born charges."""
    every = FIRST + int(STEP / MD_STEP) * np.arange(len(data.apt))
    times = np.arange(FIRST, len(data.all_velocities))
    velocities = data.all_velocities[FIRST:]
    rate = np.einsum("tiaf,tia->tf", CubicSpline(every, data.apt)(times), velocities)
    dipole = np.concatenate([np.zeros((1, 3)), np.cumsum(0.5 * (rate[1:] + rate[:-1]), axis=0)])
    taper = np.hanning(len(rate))[:, None]
    wavenumber = np.fft.rfftfreq(len(rate), MD_STEP) * WAVENUMBER
    nyquist = 0.5 * WAVENUMBER / STEP
    of_dipole = power(rate * taper)
    of_motion = power((velocities * np.sqrt(data.masses)[:, None]).reshape(len(rate), -1) * taper)
    print("Sampling every 10 fs")
    for label, found in (("<M'^2>", of_dipole), ("the kinetic energy", of_motion)):
        share = found[wavenumber > nyquist].sum() / found.sum()
        show(f"  share of {label} above {nyquist:.0f} cm^-1", f"{share:.4f}")

    settings = SpectrumSettings(window_length=500.0, upper_wavenumber=UPPER)
    options = {"temperature": TEMPERATURE, "volume": data.volume}
    stride = int(STEP / MD_STEP)
    coarse = ir_spectrum([DerivativeSeries("10 fs", STEP, dipole_derivative=rate[::stride, None], **options)], settings)
    fine = ir_spectrum([DerivativeSeries("1 fs", MD_STEP, dipole_derivative=rate[:, None], **options)], settings)
    resampled = np.interp(coarse.wavenumber, fine.wavenumber, fine.n_alpha)
    found = spectral_distance(coarse.wavenumber, coarse.n_alpha, resampled, upper=UPPER)
    show("  distance, M' every 10 fs to every 1 fs", f"{found:.4f}")
    for corrects, name in ((True, "over sinc^2"), (False, "as they are")):
        corrected = SpectrumSettings(window_length=500.0, upper_wavenumber=UPPER, corrects_differences=corrects)
        run = differentiate(PropertySeries("dipole", dipole[::stride]), timestep=STEP, **options)
        spectrum = ir_spectrum([run], corrected)
        found = spectral_distance(spectrum.wavenumber, spectrum.n_alpha, coarse.n_alpha, upper=UPPER)
        height = spectrum.n_alpha.max() / coarse.n_alpha.max()
        show(f"  differences of M {name}: distance, main band", f"{found:.4f}", f"{height:.3f}")


def draw(path: Path, data: Quartz, rebuilt: Array, eq11: Array, ours: Curve, ir: IrSpectrum) -> None:
    """Draw the figure: the published spectrum rebuilt, the same by Eq. 11, infrared absorption."""
    grid = data.wavenumber
    published = Curve(grid, data.intensity / data.intensity[STRONGEST], label="published spectrum")
    own = Curve(grid, rebuilt / rebuilt[STRONGEST], label="rebuilt in its own convention")
    harmonic = Curve(grid, eq11 / eq11[STRONGEST], label="Eq. 11, 532 nm, Lorentzians as published")
    scaled = Curve(ours.wavenumber, ours.values / np.nanmax(ours.values) * harmonic.values.max(), label=ours.label)
    absorption = Curve(ir.wavenumber, ir.n_alpha, ir.error, "Born charges times velocities, 5 x 2 ps")
    panels = ((published, own), (published, harmonic, scaled), (absorption,))
    # private, so that this figure has the style of all the others
    with _figure(path, 3, 1, 5.5, 4.7, sharex=True) as (_, axes):
        for panel, curves in zip(axes[:, 0], panels):
            for k, curve in enumerate(curves):
                _draw(panel, curve, COLOURS[k])
        for panel in axes[:2, 0]:
            panel.lines[0].set(color=COLOURS[-1], linewidth=3)
            panel.set_yscale("log")
            panel.set_ylim(5e-4, 3)
            panel.set_ylabel("Raman / arb. u.")
        for k, line in enumerate(MEASURED):
            label = "measured transverse modes" if k == 0 else None
            axes[2, 0].axvline(line, color=COLOURS[2], ls=":", lw=1.0, label=label)
        axes[2, 0].set_ylabel(IR_LABEL)
        axes[2, 0].set_xlabel(WAVENUMBER_LABEL)
        axes[2, 0].set_xlim(0, UPPER)
        for panel in axes[:, 0]:
            panel.legend(loc="best")


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "sio2_md_dfpt_vasp"
    parser.add_argument("--data", type=Path, default=default, help="folder of the published data")
    parser.add_argument("-o", "--output", type=Path, metavar="FIGURE", help="draw the spectra, too")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        parser.error(f"--data: {arguments.data} is absent")
    data = read(arguments.data)
    rebuilt, eq11 = published_raman(data)
    ours = our_raman(data)
    ir = infrared(data)
    sampling(data)
    if arguments.output:
        draw(arguments.output, data, rebuilt, eq11, ours, ir)


if __name__ == "__main__":
    main()
