"""Measured spectra: units are stated or asked for, rows may come in any order."""

import numpy as np
import pytest

from mimyria_wf.errors import SpectrumError
from mimyria_wf.exchange import write_jcamp
from mimyria_wf.measured import read_measured

ROWS = "3000 2.5\n1000 1.5\n2000 2.0\n"


def given(tmp_path, text, name="measured.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("cm^-1", 1),
        ("1/cm", 1),
        ("10^3 cm^-1", 1000),
        ("10^{3} cm-1", 1000),
        ("1e3 1/cm", 1000),
        ("1000 cm^-1", 1000),
        ("m^-1", 0.01),
        ("10^5 m-1", 1000),
        ("decadic cm^-1", 2.302585092994046),
        ("Napierian cm⁻¹", 1),
    ],
)
def test_absorption_coefficients_become_napierian_per_cm(tmp_path, unit, factor):
    spectrum = read_measured(given(tmp_path, ROWS), f"cm^-1, {unit}")
    assert spectrum.is_absolute
    assert spectrum.unit == "cm^-1"
    np.testing.assert_allclose(spectrum.values, factor * np.array([1.5, 2.0, 2.5]))
    np.testing.assert_array_equal(spectrum.wavenumber, [1000, 2000, 3000])


@pytest.mark.parametrize(
    ("unit", "values", "expected"),
    [
        ("nm", "1000 10000", [1000, 10000]),
        ("RAMAN SHIFT (CM-1)", "1000 10000", [1000, 10000]),
        ("1/CM", "1000 10000", [1000, 10000]),
        ("MICROMETERS", "1 10", [1000, 10000]),
        ("um", "1 10", [1000, 10000]),
        ("meV", "123.98419843320026 1239.8419843320026", [1000, 10000]),
        ("THz", "29.9792458 299.792458", [1000, 10000]),
    ],
)
def test_axes(tmp_path, unit, values, expected):
    rows = "\n".join(f"{x} 1" for x in values.split())
    np.testing.assert_allclose(read_measured(given(tmp_path, rows), f"{unit}, counts").wavenumber, expected, rtol=1e-9)


@pytest.mark.parametrize(
    "header",
    [
        "# units: cm^-1, 10^3 cm^-1\n",
        "wavenumber [cm^-1], n alpha [10^3 cm^-1]\n",
        "wavenumber / cm^-1, n alpha / 10^3 cm^-1\n",
        '"x (cm^-1)";"y (10^3 cm^-1)"\n',
        "# source\nwavenumber [cm^-1]\tn alpha [10^3 cm^-1]\n",
    ],
)
def test_units_in_the_file(tmp_path, header):
    spectrum = read_measured(given(tmp_path, header + ROWS))
    np.testing.assert_allclose(spectrum.values, [1500, 2000, 2500])
    assert spectrum.name == "measured"


def test_what_can_only_be_scaled(tmp_path):
    spectrum = read_measured(given(tmp_path, ROWS), "cm^-1, arbitrary units", name="lab")
    assert (spectrum.is_absolute, spectrum.unit, spectrum.name) == (False, "arbitrary units", "lab")
    spectrum = read_measured(given(tmp_path, "1 0.1\n2 1\n"), "cm^-1, transmittance")
    np.testing.assert_allclose(spectrum.values, [1, 0])
    spectrum = read_measured(given(tmp_path, "1,10\n2,100\n"), "cm^-1, % transmittance")
    np.testing.assert_allclose(spectrum.values, [1, 0])


def test_repeated_abscissas_are_averaged(tmp_path):
    spectrum = read_measured(given(tmp_path, "2 4\n1 1\n2 6\n"), "cm^-1, counts")
    np.testing.assert_array_equal(spectrum.values, [1, 5])


def test_jcamp(tmp_path):
    nu = np.arange(100.0)
    about = {"title": "liquid", "data_type": "INFRARED SPECTRUM", "quantity": "n alpha", "kind": "measured"}
    write_jcamp(tmp_path / "a.jdx", nu, nu**2, unit="cm^-1", **about)
    spectrum = read_measured(tmp_path / "a.jdx")
    assert (spectrum.name, spectrum.kind, spectrum.is_absolute) == ("liquid", "ir", True)
    np.testing.assert_allclose(spectrum.values, nu**2, atol=1e-5)
    text = (tmp_path / "a.jdx").read_text().replace("##$UNITS=cm^-1\n", "").replace("YUNITS=cm^-1", "YUNITS=ABSORBANCE")
    assert not read_measured(given(tmp_path, text, "b.jdx")).is_absolute


def test_bad_input_has_a_clear_line(tmp_path):
    for text, units, message in (
        (ROWS, None, "does not say its units; give those of both axes"),
        ("wavenumber,intensity\n" + ROWS, None, "does not say its units"),
        (ROWS, "cm^-1", "units of a measured spectrum are two"),
        (ROWS, "furlong, cm^-1", "'furlong' of the first axis is unknown"),
        (ROWS, "cm^-1, 10^3", "'10\\^3' of the second axis is unknown"),
        (ROWS, "cm^-1, parsec", "'parsec' of the second axis is unknown"),
        ("a b\n", "cm^-1, cm^-1", "found 0 rows"),
        ("1 2\n3\n", "cm^-1, cm^-1", "line 2: expected two numbers"),
        ("1 2\nx y\n", "cm^-1, cm^-1", "line 2: expected two numbers"),
        ("1 2\n1 3\n", "cm^-1, cm^-1", "two points at different wavenumbers"),
        ("0 2\n1 3\n", "nm, cm^-1", "wavelengths must be positive"),
        ("1 0\n2 1\n", "cm^-1, transmittance", "transmittance must be positive"),
        ("1 nan\n2 1\n", "cm^-1, cm^-1", "not finite"),
    ):
        with pytest.raises(SpectrumError, match=message):
            read_measured(given(tmp_path, text), units)
    with pytest.raises(SpectrumError, match="no such file"):
        read_measured(tmp_path / "none.csv", "cm^-1, cm^-1")


@pytest.mark.reference_data
def test_measured_absorption_of_water(reference_data):
    """Bertie and Lan (1996): unordered rows, n alpha in 10^3 cm^-1, bands at 614, 1640 and 3391 cm^-1."""
    path = reference_data / "water_ir_experiment" / "IR_light_expt.txt"
    spectrum = read_measured(path, "cm^-1, 10^3 cm^-1")
    assert np.all(np.diff(spectrum.wavenumber) > 0)
    for low, high, expected in ((400, 900, 614), (1500, 1800, 1640), (3000, 3700, 3391)):
        inside = (spectrum.wavenumber > low) & (spectrum.wavenumber < high)
        top = np.argmax(spectrum.values[inside])
        assert spectrum.wavenumber[inside][top] == pytest.approx(expected, abs=20)
    # 4 pi k nu n with k = 0.28 and n = 1.4 of liquid water at the stretching band
    assert spectrum.values.max() == pytest.approx(4 * np.pi * 0.28 * 3391 * 1.4, rel=0.1)
