"""Forms of the Raman spectrum against the formulas that define them, written out in SI."""

import numpy as np
import pytest
import scipy.constants as sc

from mimyria_wf.errors import SpectrumError
from mimyria_wf.intensity import RamanForm, apply

NU = np.arange(0.0, 4501.0, 2.0)
TEMPERATURE = 310.0
OMEGA = 2 * np.pi * sc.c * 100 * NU
X = sc.hbar * OMEGA / (sc.k * TEMPERATURE)


def test_classical_is_eq_7():
    assert np.array_equal(RamanForm(is_divided=False).factor(NU, TEMPERATURE), np.ones_like(NU))
    factor = RamanForm().factor(NU, TEMPERATURE, mask=60.0)
    assert np.array_equal(np.isnan(factor), NU < 60.0)
    np.testing.assert_allclose(factor[30:], 1 / NU[30:] ** 2, rtol=1e-15)
    assert np.isnan(RamanForm().factor(NU, TEMPERATURE)[0])


def test_quantum_factors_are_the_published_ones():
    harmonic, reduced, susceptibility = (
        RamanForm(s, is_divided=False).factor(NU, TEMPERATURE) for s in ("harmonic", "bose-reduced", "susceptibility")
    )
    bose = 1 / (np.exp(X[1:]) - 1)
    np.testing.assert_allclose(harmonic[1:], X[1:] * (bose + 1), rtol=1e-12)
    np.testing.assert_allclose(reduced[1:], harmonic[1:] / (bose + 1), rtol=1e-12)
    assert harmonic[0] == 1.0  # x/(1 - exp(-x)) -> 1: at zero frequency the classical limit
    assert reduced[0] == 0.0
    # classical limit and detailed balance: I(w)/I(-w) = exp(x) for the harmonic one, 1 for the classical one
    assert np.all(np.diff(harmonic) > 0)
    anti = -X[1:] / (1 - np.exp(X[1:]))
    np.testing.assert_allclose(harmonic[1:] / anti, np.exp(X[1:]), rtol=1e-10)
    hartree = sc.physical_constants["Hartree energy"][0]
    np.testing.assert_allclose(susceptibility, np.pi * hartree / (sc.k * TEMPERATURE) * NU, rtol=1e-9)


def test_susceptibility_obeys_kramers_kronig_for_a_classical_oscillator():
    """The static polarizability's response is beta <alpha^2> = (2/pi) int chi''/nu dnu for any classical spectrum."""
    lineshape = np.exp(-(((NU - 1600.0) / 80.0) ** 2))  # I(nu), both signs of nu alike
    mean_square = 2 * lineshape.sum() * 2.0
    chi = apply(RamanForm("susceptibility"), (NU**2 * lineshape)[None], NU, [TEMPERATURE])[0]
    beta = sc.physical_constants["Hartree energy"][0] / (sc.k * TEMPERATURE)
    static = 2 / np.pi * np.sum(chi[1:] / NU[1:]) * 2.0
    assert static == pytest.approx(beta * mean_square, rel=1e-9)


@pytest.mark.parametrize("exponent", [3, 4])
def test_laser_factor(exponent):
    form = RamanForm(laser_nm=532.0, laser_exponent=exponent, is_divided=False)
    incident = 1e7 / 532.0
    np.testing.assert_allclose(form.factor(NU, 300.0), ((incident - NU) / incident) ** exponent, rtol=1e-13)
    far = RamanForm(laser_nm=5000.0, is_divided=False).factor(NU, 300.0)
    assert np.all(far[NU > 2000] == 0)


def test_eq_11_of_the_perspective_is_the_harmonic_form_with_laser_factor():
    """(w_in - w)^4/w 1/(1 - exp(-hbar w/k_B T)) S(alpha'), whose S is nu^2 I up to a constant."""
    weighted = np.random.default_rng(0).uniform(size=(1, len(NU)))
    ours = apply(RamanForm("harmonic", laser_nm=532.0), weighted, NU, [TEMPERATURE])[0][1:]
    omega_in = 2 * np.pi * sc.c / 532e-9
    published = (omega_in - OMEGA) ** 4 / np.where(OMEGA > 0, OMEGA, np.nan) / -np.expm1(-X) * weighted[0]
    ratio = ours / published[1:]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-11)


def test_each_run_has_its_own_temperature():
    weighted = np.random.default_rng(1).uniform(size=(2, 3, len(NU)))
    form = RamanForm("harmonic")
    result = apply(form, weighted, NU, [200.0, 400.0], mask=50.0)
    assert result.shape == weighted.shape
    for run, temperature in enumerate((200.0, 400.0)):
        np.testing.assert_array_equal(result[run], weighted[run] * form.factor(NU, temperature, 50.0))


def test_every_form_says_what_it_is():
    forms = [
        RamanForm(s, laser, exponent, divided)
        for s in ("classical", "harmonic", "bose-reduced", "susceptibility")
        for laser in (None, 532.0, 1064.0)
        for exponent in (4, 3)
        for divided in (True, False)
        if not (laser is None and exponent == 3) and not (laser and s == "susceptibility")
    ]
    assert len({form.stem for form in forms}) == len({form.label for form in forms}) == len(forms)
    assert RamanForm().stem == ""
    assert RamanForm("harmonic", 532.0).stem == "harmonic_532nm"
    assert RamanForm("bose-reduced", is_divided=False).stem == "bose_reduced_times_w2"
    assert RamanForm().unit == "e^4 a0^4 E_h^-2 cm"
    assert RamanForm("susceptibility").unit == "e^4 a0^4 E_h^-3"
    assert "harmonic (Kubo)" in RamanForm("harmonic", 532.0).label
    assert "laser factor ((nu_in - nu)/nu_in)^4 at 532 nm" in RamanForm("harmonic", 532.0).label
    assert "no laser factor" in RamanForm().label
    assert RamanForm("harmonic").depends_on_temperature
    assert not RamanForm(laser_nm=532).depends_on_temperature


def test_bad_forms():
    for arguments, message in (
        ({"statistics": "quantum"}, "one of"),
        ({"laser_nm": -3.0}, "between 100 and 10000 nm"),
        ({"laser_nm": float("nan")}, "between 100 and 10000 nm"),
        ({"laser_nm": 532.0, "laser_exponent": 2}, "exponent is 4"),
        ({"statistics": "susceptibility", "laser_nm": 532.0}, "no laser factor"),
    ):
        with pytest.raises(SpectrumError, match=message):
            RamanForm(**arguments)
    with pytest.raises(SpectrumError, match="temperature"):
        RamanForm("harmonic").factor(NU, 0.0)
    with pytest.raises(SpectrumError, match="2 spectra, 1 temperatures"):
        apply(RamanForm(), np.ones((2, len(NU))), NU, [300.0])
