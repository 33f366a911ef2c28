"""Correlation functions against sums written out."""

from itertools import combinations_with_replacement

import numpy as np
import pytest

from mimyria_wf import correlation
from mimyria_wf.correlation import (
    BlockCorrelator,
    cross_correlation,
    group_correlations,
    normalise,
    pair_correlations,
)
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
    found = cross_correlation(series, series, 50)[:, 0]
    assert found[0] == pytest.approx(1, abs=0.015)  # sqrt(2/n) = 0.0045
    assert np.abs(found[1:]).max() < 0.015  # 1/sqrt(n) = 0.003, the largest of 50


def test_unbiased_estimator_keeps_the_amplitude_of_a_cosine():
    t = np.arange(4000)
    a = np.cos(2 * np.pi * t / 40)[:, None]
    found = cross_correlation(a, a, 400)[:, 0]
    # the sum over whole periods leaves an edge term of at most half a period: 20 / 3600
    np.testing.assert_allclose(found, 0.5 * np.cos(2 * np.pi * np.arange(401) / 40), atol=6e-3)


def test_bad_input():
    a = np.zeros((10, 1))
    with pytest.raises(SpectrumError, match="more than 10 frames"):
        cross_correlation(a, a, 10)
    with pytest.raises(SpectrumError, match="one shape"):
        cross_correlation(a, a[:5], 2)
    with pytest.raises(SpectrumError, match="estimator"):
        cross_correlation(a, a, 2, "other")


def direct_parts(columns, pairs, max_lag, estimator):
    """The definition of every part, written out."""
    n, n_groups, _ = columns.shape

    def corr(x, y, k):
        return sum(x[t] * y[t + k] for t in range(n - k)) / (n - k if estimator == "unbiased" else n)

    parts = []
    for a, b in combinations_with_replacement(range(n_groups), 2):
        orders = [(a, a)] if a == b else [(a, b), (b, a)]
        parts.append(
            [
                [
                    sum(
                        0.5
                        * (corr(columns[:, i, c], columns[:, j, d], k) + corr(columns[:, i, d], columns[:, j, c], k))
                        for i, j in orders
                    )
                    for k in range(max_lag + 1)
                ]
                for c, d in pairs
            ]
        )
    return np.array(parts)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("max_lag", [0, 5, 36])
def test_group_correlations_equal_direct_sums(estimator, max_lag):
    columns = np.random.default_rng(3).normal(size=(37, 3, 2))
    pairs = [(0, 0), (0, 1), (1, 1)]
    expected = direct_parts(columns, pairs, max_lag, estimator)
    np.testing.assert_allclose(group_correlations(columns, pairs, max_lag, estimator), expected, atol=1e-13)


@pytest.mark.parametrize("n_frames", [20, 32, 33, 64, 101])
def test_blocks_and_slabs_join_without_a_seam(n_frames, monkeypatch):
    """Blocks of 16 frames, two or three at a time, give what one transform of the whole series gives."""
    monkeypatch.setattr(correlation, "SMALLEST_BLOCK", 1)
    monkeypatch.setattr(correlation, "SLAB_BYTES", 16 * 17 * 4 * 2.5)
    columns = np.random.default_rng(4).normal(size=(n_frames, 2, 2))
    pairs = [(0, 0), (0, 1), (1, 1)]
    expected = direct_parts(columns, pairs, 16, "biased")
    np.testing.assert_allclose(group_correlations(columns, pairs, 16, "biased"), expected, atol=1e-13)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_parts_sum_to_the_correlation_of_the_sum(estimator):
    columns = np.random.default_rng(5).normal(size=(3000, 4, 6))
    pairs = list(combinations_with_replacement(range(6), 2))
    parts = group_correlations(columns, pairs, 200, estimator)
    total = pair_correlations(columns.sum(axis=1), pairs, 200, estimator)
    np.testing.assert_allclose(parts.sum(axis=0).T, total, atol=1e-13)


@pytest.mark.parametrize("max_lag", [0, 3, 40])
@pytest.mark.parametrize("n_chunk", [1, 17, 1000])
def test_chunks_give_the_sums_written_out(n_chunk, max_lag, monkeypatch):
    monkeypatch.setattr(correlation, "SMALLEST_BLOCK", 8)
    monkeypatch.setattr(correlation, "SLAB_BYTES", 16 * 81 * 5 * 2.0)
    n_frames, n_units = 250, 5
    rng = np.random.default_rng(6)
    first, second = rng.normal(size=(n_frames, n_units, 2)), rng.normal(size=(n_frames, n_units, 3))
    both, own, paired = BlockCorrelator(max_lag), BlockCorrelator(max_lag), BlockCorrelator(max_lag, is_paired=True)
    for start in range(0, n_frames, n_chunk):
        frames = slice(start, start + n_chunk)
        both.add(first[frames], second[frames])
        own.add(first[frames])
        paired.add(first[frames], 2 * first[frames])
        if start == 0:
            both.sums()  # a look at the sums changes nothing
    expected, auto = (
        np.array([np.einsum("tup,tuq->pq", first[: n_frames - k], s[k:]) for k in range(max_lag + 1)])
        for s in (second, first)
    )
    assert both.n_frames == n_frames
    np.testing.assert_allclose(both.sums(), expected, atol=1e-11)  # 1250 products of order 1
    np.testing.assert_allclose(own.sums(), auto, atol=1e-11)
    np.testing.assert_allclose(paired.sums(), 2 * np.einsum("kpp->kp", auto), atol=1e-11)


def test_sums_become_the_correlation():
    series = np.random.default_rng(7).normal(size=(500, 3))
    correlator = BlockCorrelator(30)
    correlator.add(series[:, None])
    for estimator in ("unbiased", "biased"):
        correlation_of_all = normalise(correlator.sums(), 500, estimator)
        expected = pair_correlations(series, [(0, 2)], 30, estimator)[:, 0]
        symmetrised = 0.5 * (correlation_of_all[:, 0, 2] + correlation_of_all[:, 2, 0])
        np.testing.assert_allclose(symmetrised, expected, atol=1e-12)


def test_bad_chunks():
    correlator = BlockCorrelator(3)
    with pytest.raises(SpectrumError, match="no frames"):
        correlator.sums()
    correlator.add(np.zeros((2, 4, 3)))
    with pytest.raises(SpectrumError, match="same units"):
        correlator.add(np.zeros((2, 5, 3)))
    with pytest.raises(SpectrumError, match="n_frames, n_units, components"):
        correlator.add(np.zeros((2, 4)))
    with pytest.raises(SpectrumError, match="one shape"):
        BlockCorrelator(3, is_paired=True).add(np.zeros((2, 4, 3)), np.zeros((2, 4, 2)))
    with pytest.raises(SpectrumError, match="negative"):
        BlockCorrelator(-1)
    with pytest.raises(SpectrumError, match="more than 3 frames"):
        normalise(correlator.sums(), 2)
