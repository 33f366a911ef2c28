"""Correlation functions against sums written out."""

import numpy as np
import pytest

from mimyria_wf.correlation import cross_correlation, pair_correlations
from mimyria_wf.errors import SpectrumError


def direct(a, b, max_lag, estimator):
    """The definition, O(n^2)."""
    n = len(a)
    out = []
    for k in range(max_lag + 1):
        forward = sum(a[t] * b[t + k] for t in range(n - k))
        backward = sum(a[t + k] * b[t] for t in range(n - k))
        out.append(0.5 * (forward + backward) / (n - k if estimator == "unbiased" else n))
    return np.array(out)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("max_lag", [0, 7, 36])
def test_fft_equals_direct_sums(estimator, max_lag):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 37, 3))
    expected = direct(a, b, max_lag, estimator)
    np.testing.assert_allclose(cross_correlation(a, b, max_lag, estimator), expected, atol=1e-13)
    pairs = [(0, 0), (0, 2), (2, 1)]
    expected = np.stack([direct(a[:, i], a[:, j], max_lag, estimator) for i, j in pairs], axis=1)
    np.testing.assert_allclose(pair_correlations(a, pairs, max_lag, estimator), expected, atol=1e-13)


def test_white_noise_is_delta_correlated():
    series = np.random.default_rng(2).normal(size=(100_000, 1))
    correlation = cross_correlation(series, series, 50)[:, 0]
    assert correlation[0] == pytest.approx(1, abs=0.015)  # sqrt(2/n) = 0.0045
    assert np.abs(correlation[1:]).max() < 0.015  # 1/sqrt(n) = 0.003, the largest of 50


def test_unbiased_estimator_keeps_the_amplitude_of_a_cosine():
    t = np.arange(4000)
    a = np.cos(2 * np.pi * t / 40)[:, None]
    correlation = cross_correlation(a, a, 400)[:, 0]
    # the sum over whole periods leaves an edge term of at most half a period: 20 / 3600
    np.testing.assert_allclose(correlation, 0.5 * np.cos(2 * np.pi * np.arange(401) / 40), atol=6e-3)


def test_bad_input():
    a = np.zeros((10, 1))
    with pytest.raises(SpectrumError, match="more than 10 frames"):
        cross_correlation(a, a, 10)
    with pytest.raises(SpectrumError, match="one shape"):
        cross_correlation(a, a[:5], 2)
    with pytest.raises(SpectrumError, match="estimator"):
        cross_correlation(a, a, 2, "other")
