"""Scattering geometries from the 21 lineshapes against spectra that are correlated directly."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mimyria_wf.correlation import cross_correlation
from mimyria_wf.derivatives import PAIRS, DerivativeSeries
from mimyria_wf.errors import SpectrumError
from mimyria_wf.geometry import ScatteringGeometry, powder_total
from mimyria_wf.spectrum import SpectrumSettings, raman_prefactor, raman_spectrum, transform

SETTINGS = SpectrumSettings(n_bootstrap=2)
HALF = np.sqrt(0.5)
GEOMETRIES = {
    "Z(XX)Z": ([1, 0, 0], [[1, 0, 0]]),
    "-Z(XY)X": ([1, 0, 0], [[0, 1, 0]]),
    "X(ZY)-X": ([0, 0, 1], [[0, 1, 0]]),
    "Z(X'X')-Z": ([HALF, HALF, 0], [[HALF, HALF, 0]]),
    "Z(X'Y')-Z": ([HALF, HALF, 0], [[-HALF, HALF, 0]]),
    "Z(Xu)Y": ([1, 0, 0], [[1, 0, 0], [0, 0, 1]]),
    "Z(uX)Z": ([[1, 0, 0], [0, 1, 0]], [[1, 0, 0]]),
    "X(uu)Y": ([[0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1]]),
    "1,2,-1:0,3,0.5": (
        np.array([1, 2, -1]) / np.sqrt(6),
        [np.array([0, 3, 0.5]) / np.sqrt(9.25)],
    ),
}


def random_tensors(n_frames=3000, seed=0):
    """Symmetric tensors with memory, and with correlations between all components."""
    rng = np.random.default_rng(seed)
    white = rng.normal(size=(n_frames + 40, 6)) @ rng.normal(size=(6, 6))
    smooth = sum(np.cos(0.3 * k) * white[k : k + n_frames] for k in range(40))
    tensors = np.empty((n_frames, 3, 3))
    for column, (i, j) in enumerate(PAIRS):
        tensors[:, i, j] = tensors[:, j, i] = smooth[:, column]
    return tensors


def run_of(tensors):
    columns = np.stack([tensors[:, i, j] for i, j in PAIRS], axis=1)
    return DerivativeSeries("r", 0.5, 300.0, polarizability_derivative=columns[:, None])


def direct(tensors, incident, analysed):
    """Project first, correlate afterwards: nu^2 I with nothing of the 21 lineshapes in it."""
    incident = np.atleast_2d(np.asarray(incident, float))
    total = 0.0
    for sent in incident:
        for seen in np.asarray(analysed, float):
            projected = np.einsum("i,tij,j->t", sent, tensors, seen)[:, None]
            _, spectrum, _ = transform(cross_correlation(projected, projected, 1000), 0.5, SETTINGS)
            total = total + raman_prefactor() * spectrum[0] / len(incident)
    return total


@pytest.mark.parametrize("text", GEOMETRIES)
def test_geometry_equals_direct_correlation(text):
    tensors = random_tensors()
    lineshapes = raman_spectrum([run_of(tensors)], SETTINGS).weighted_lineshapes
    geometry = ScatteringGeometry.parse(text)
    expected = direct(tensors, *GEOMETRIES[text])
    np.testing.assert_allclose(geometry.intensity(lineshapes), expected, atol=1e-10 * np.abs(expected).max())
    np.testing.assert_allclose(geometry.weights @ lineshapes, geometry.intensity(lineshapes), rtol=1e-14)


def test_parsed_polarizations():
    for text, (incident, analysed) in GEOMETRIES.items():
        geometry = ScatteringGeometry.parse(text)
        assert geometry.is_analysed == (len(analysed) == 1)
        for found, vectors in ((geometry.incident, incident), (geometry.analysed, analysed)):
            expected = np.atleast_2d(np.asarray(vectors, float))
            assert found.shape == expected.shape
            np.testing.assert_allclose(found.T @ found, expected.T @ expected, atol=1e-14)


def test_notations_of_one_geometry():
    texts = ("-Z(XX')Y'", " -Z (X X') Y' ", "Z\u0304(XX')Y'", "\u2212Z(XX\u2032)Y\u2032", "-z(xx')y'")
    assert {ScatteringGeometry.parse(text).name for text in texts} == {"-Z(XX')Y'"}


def test_file_names_are_safe_and_different():
    texts = [
        "Z(XX)Z",
        "Z(XX)-Z",
        "-Z(XX)Z",
        "Z(X'X')Z",
        "Z(XY)Z",
        "Z(Xu)Y",
        "Z(uX)Y",
        "1,1,0:0,0,1",
        "1,-1,0:0,0,1",
        "-1,1,0:0,0,1",
    ]
    names = [ScatteringGeometry.parse(text).file_name for text in texts]
    assert len({name.lower() for name in names}) == len(texts)
    assert all(set(name) <= set("XYZmpu_0123456789.") for name in names)


def test_powder_average_is_the_mean_over_orientations():
    """Over a finite group of rotations that integrates rank-4 tensors exactly there is no sampling error."""
    tensors = random_tensors(seed=3)
    spectrum = raman_spectrum([run_of(tensors)], SETTINGS)
    at = slice(200, 240)
    invariants = {kind: values[at] for kind, values in spectrum.weighted.items()}
    group = Rotation.create_group("I").as_matrix()  # an icosahedral 5-design: exact up to rank 5
    for text in ("Z(XX)Z", "Z(XY)X", "1,1,0:0,1,0", "Z(Xu)Y", "X(Zu)-X", "Z(uX)Z", "X(uu)Y"):
        geometry = ScatteringGeometry.parse(text)
        turned = [
            ScatteringGeometry("turned", geometry.incident @ r.T, geometry.analysed @ r.T).intensity(
                spectrum.weighted_lineshapes[:, at]
            )
            for r in group
        ]
        scale = np.abs(invariants["vv"]).max()
        np.testing.assert_allclose(np.mean(turned, axis=0), geometry.powder(invariants), atol=1e-12 * scale)


def test_powder_total_is_45_a2_and_7_gamma2():
    """45 a^2 + 7 gamma^2 = 45 (VV + VH), with a and gamma correlated on their own from the tensors."""
    tensors = random_tensors(seed=4)

    def spectrum_of(series):
        correlation = cross_correlation(series, series, 1000)
        return raman_prefactor() * transform(correlation, 0.5, SETTINGS)[1]

    mean = np.trace(tensors, axis1=1, axis2=2)[:, None] / 3
    xx, yy, zz = (tensors[:, i, i][:, None] for i in range(3))
    a_square = spectrum_of(mean)[0]
    # gamma^2 = 1/2 [(xx - yy)^2 + (yy - zz)^2 + (zz - xx)^2] + 3 (xy^2 + yz^2 + xz^2), Long, The Raman Effect (2002)
    gamma_square = 0.5 * sum(spectrum_of(d)[0] for d in (xx - yy, yy - zz, zz - xx)) + 3 * sum(
        spectrum_of(tensors[:, i, j][:, None])[0] for i, j in ((0, 1), (1, 2), (0, 2))
    )
    invariants = raman_spectrum([run_of(tensors)], SETTINGS).weighted
    scale = np.abs(45 * a_square + 7 * gamma_square).max()
    np.testing.assert_allclose(
        45 * powder_total(invariants), 45 * a_square + 7 * gamma_square, rtol=0, atol=1e-10 * scale
    )
    np.testing.assert_allclose(invariants["iso"], a_square, rtol=0, atol=1e-10 * a_square.max())
    np.testing.assert_allclose(invariants["aniso"], gamma_square, rtol=0, atol=1e-10 * gamma_square.max())


def test_bad_geometries():
    for text, message in (
        ("Z(ZX)Z", "cannot be polarized along Z"),
        ("X(ZX)X", "cannot be polarized along X"),
        ("X(X'Y)Z", "cannot be polarized along X'"),
        ("Z(XX)", "cannot be read"),
        ("Z(uZ)Z", "cannot be polarized along Z"),
        ("Z(AX)Z", "cannot be read"),
        ("1,0:0,1,0", "three numbers"),
        ("0,0,0:0,1,0", "not all zero"),
        ("1,0,0:a,1,0", "cannot be read"),
        ("1,0,0:0,1,0:0,0,1", "got 3"),
    ):
        with pytest.raises(SpectrumError, match=message):
            ScatteringGeometry.parse(text)
    with pytest.raises(SpectrumError, match="unit vectors"):
        ScatteringGeometry("x", np.array([1.0, 1.0, 0.0]), np.eye(3)[:1])
