"""Time-correlation functions by FFT."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from mimyria_wf.errors import SpectrumError

Array = NDArray[Any]
Estimator = Literal["unbiased", "biased"]


def cross_correlation(a: Array, b: Array, max_lag: int, estimator: Estimator = "unbiased") -> Array:
    """Return the correlation function of two series, made even in time.

    ``C(k) = [c(k) + c(-k)] / 2`` with ``c(k) = sum_t a(t) b(t + k) / n(k)``. Classical correlation functions obey
    ``C_ab(t) = C_ba(-t)``; the even part is the real part of the spectrum, and the part that I_zxst = I_stzx keeps.

    Args:
        a: (n_frames, ...) series.
        b: (n_frames, ...) series of the same shape.
        max_lag: largest lag, in frames.
        estimator: n(k) is ``n_frames - k`` (unbiased) or ``n_frames`` (biased).

    Returns:
        (max_lag + 1, ...) correlation at lags 0 ... max_lag, in the unit of a times that of b.
    """
    if a.shape != b.shape:
        raise SpectrumError(f"series to correlate must have one shape, got {a.shape} and {b.shape}")
    n_fft = _padded_length(len(a), max_lag, estimator)
    power = np.conj(fft.rfft(a, n_fft, axis=0)) * fft.rfft(b, n_fft, axis=0)
    return _normalised(fft.irfft(power.real, n_fft, axis=0), len(a), max_lag, estimator)


def pair_correlations(
    series: Array, pairs: Sequence[tuple[int, int]], max_lag: int, estimator: Estimator = "unbiased"
) -> Array:
    """Return :func:`cross_correlation` of pairs of columns, with one forward transform a column.

    Args:
        series: (n_frames, n_columns).
        pairs: pairs of column indices.
        max_lag: largest lag, in frames.
        estimator: see :func:`cross_correlation`.

    Returns:
        (max_lag + 1, n_pairs).
    """
    n_fft = _padded_length(len(series), max_lag, estimator)
    transforms = fft.rfft(np.ascontiguousarray(series.T), n_fft, axis=1)
    result = np.empty((len(pairs), max_lag + 1))
    for row, (i, j) in zip(result, pairs):
        power = transforms[i].real * transforms[j].real + transforms[i].imag * transforms[j].imag
        row[:] = fft.irfft(power, n_fft)[: max_lag + 1]
    return _normalised(result.T, len(series), max_lag, estimator)


def _padded_length(n_frames: int, max_lag: int, estimator: Estimator) -> int:
    """Length of transforms in which lags up to max_lag do not wrap around."""
    if estimator not in get_args(Estimator):
        raise SpectrumError(f"estimator is one of {get_args(Estimator)}, got {estimator!r}")
    if max_lag >= n_frames:
        raise SpectrumError(f"a correlation over {max_lag} lags needs more than {max_lag} frames, got {n_frames}")
    return int(fft.next_fast_len(n_frames + max_lag, real=True))


def _normalised(correlation: Array, n_frames: int, max_lag: int, estimator: Estimator) -> Array:
    counts = n_frames - np.arange(max_lag + 1) if estimator == "unbiased" else np.full(max_lag + 1, n_frames)
    kept = correlation[: max_lag + 1]
    return kept / counts.reshape(-1, *(1,) * (kept.ndim - 1))
