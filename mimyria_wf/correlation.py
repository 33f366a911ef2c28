"""Time-correlation functions by FFT, of whole series and of series that arrive in chunks.

Correlations are made block by block: a block of B frames, padded with zeros, against the frames that follow it within
the largest lag. Cross powers are summed over blocks in frequency space, so that memory and inverse transforms depend on
the largest lag and not on the length of the run.
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from mimyria_wf.errors import SpectrumError

Array = NDArray[Any]
Estimator = Literal["unbiased", "biased"]

SMALLEST_BLOCK = 256
"""Frames; below it the calls cost more than the transforms."""
SLAB_BYTES = 32e6
"""Size of the transforms that are held at a time."""
FREQUENCIES = 64
"""Whose cross powers are made at a time."""


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
    _check_lags(len(a), max_lag, estimator)
    n_fft = int(fft.next_fast_len(len(a) + max_lag, real=True))
    power = np.conj(fft.rfft(a, n_fft, axis=0)) * fft.rfft(b, n_fft, axis=0)
    return normalise(fft.irfft(power.real, n_fft, axis=0)[: max_lag + 1], len(a), estimator)


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
    return group_correlations(series[:, None], pairs, max_lag, estimator)[0].T


def group_correlations(
    columns: Array, pairs: Sequence[tuple[int, int]], max_lag: int, estimator: Estimator = "unbiased"
) -> Array:
    """Return the correlations of pairs of components, for every unordered pair of groups, Eqs. 28 and 29.

    For components c, d and groups a, b, with ``<x, y>(k) = sum_t x(t) y(t + k) / n(k)``:

    - a = b: ``1/2 (<a_c, a_d> + <a_d, a_c>)``
    - a != b: ``1/2 (<a_c, b_d> + <a_d, b_c> + <b_c, a_d> + <b_d, a_c>)``, both orders of the groups

    so that the sum over the unordered pairs is the correlation of the sum over groups.

    Args:
        columns: (n_frames, n_groups, n_components) series.
        pairs: pairs (c, d) of components.
        max_lag: largest lag, in frames.
        estimator: see :func:`cross_correlation`.

    Returns:
        (n_parts, n_pairs, max_lag + 1), parts in the order of
        ``itertools.combinations_with_replacement(range(n_groups), 2)``.
    """
    n_frames, n_groups, n_components = columns.shape
    _check_lags(n_frames, max_lag, estimator)
    n_columns = n_groups * n_components
    n_fft = _fast_even(2 * max(max_lag, SMALLEST_BLOCK))
    block = n_fft // 2
    n_blocks = -(-n_frames // block)
    slab = int(np.clip(SLAB_BYTES / (16 * (block + 1) * n_columns), 1, n_blocks))
    flat = columns.reshape(n_frames, n_columns)
    parts = list(combinations_with_replacement(range(n_groups), 2))
    first, second = np.array(
        [
            [(a * n_components + c) * n_columns + b * n_components + d for a, b in parts for c, d in pairs],
            [(a * n_components + d) * n_columns + b * n_components + c for a, b in parts for c, d in pairs],
        ]
    )
    factor = np.repeat([0.25 if a == b else 0.5 for a, b in parts], len(pairs))
    # a block that follows at once lies half a period later, which is a factor (-1)^frequency on its transform
    sign = np.where(np.arange(block + 1) % 2, -1.0, 1.0)[:, None, None]
    power: Array | None = None
    chosen = np.empty((len(first), block + 1), dtype=complex)
    for start in range(0, n_blocks, slab):
        n_early = min(slab, n_blocks - start)
        stop = min(start + slab + 1, n_blocks)
        is_last = start + slab >= n_blocks
        piece = flat[start * block : stop * block]
        padded = np.zeros((n_columns, (stop - start) * block))
        padded[:, : len(piece)] = piece.T
        transforms = fft.rfft(padded.reshape(n_columns, stop - start, block), n_fft, axis=2)
        n_followed = stop - start - 1
        if not is_last and power is None:
            power = np.zeros((block + 1, n_columns, n_columns), dtype=complex)
        # a few frequencies at a time, which stay in the processor's cache
        for k in range(0, block + 1, FREQUENCIES):
            early = np.ascontiguousarray(transforms[:, :, k : k + FREQUENCIES].transpose(2, 0, 1))
            late = early[:, :, :n_early].copy()
            late[:, :, :n_followed] += sign[k : k + FREQUENCIES] * early[:, :, 1 : 1 + n_followed]
            some = np.conj(early[:, :, :n_early]) @ late.transpose(0, 2, 1)
            if power is not None:
                some += power[k : k + FREQUENCIES]
                power[k : k + FREQUENCIES] = some
            if is_last:
                both = (some + some.transpose(0, 2, 1)).reshape(len(some), -1)
                taken = np.take(both, first, axis=1)
                taken += np.take(both, second, axis=1)
                chosen[:, k : k + FREQUENCIES] = (factor * taken).T
    counts = _counts(n_frames, max_lag + 1, estimator)
    found = np.empty((len(first), max_lag + 1))
    for k in range(0, len(first), 16):
        found[k : k + 16] = fft.irfft(chosen[k : k + 16], n_fft, axis=1)[:, : max_lag + 1]
    found /= counts
    return found.reshape(len(parts), len(pairs), max_lag + 1)


def normalise(sums: Array, n_frames: int, estimator: Estimator = "unbiased") -> Array:
    """Divide raw sums over frames by the number of frames that count.

    Args:
        sums: (n_lags, ...) ``sum_t a(t) b(t + k)`` at lags k = 0, 1, ...
        n_frames: length of the series.
        estimator: see :func:`cross_correlation`.
    """
    _check_lags(n_frames, len(sums) - 1, estimator)
    counts = _counts(n_frames, len(sums), estimator)
    return np.asarray(sums / counts.reshape(-1, *(1,) * (sums.ndim - 1)))


class BlockCorrelator:
    """Correlates series of many units that arrive in chunks of consecutive frames.

    Memory is that of a few max_lag frames, however long the run is.

    Args:
        max_lag: largest lag, in frames.
        is_paired: correlate equal components only.
    """

    def __init__(self, max_lag: int, *, is_paired: bool = False) -> None:
        if max_lag < 0:
            raise SpectrumError(f"the largest lag must not be negative, got {max_lag}")
        self.max_lag = max_lag
        self.is_paired = is_paired
        self.n_frames = 0
        self._n_fft = 0
        self._n_held = 0
        self._held: list[Array] = []
        self._sums: Array | None = None

    def add(self, first: Array, second: Array | None = None) -> None:
        """Add the frames that follow those already added.

        Args:
            first: (n_frames, n_units, p) factors at the earlier time.
            second: (n_frames, n_units, q) factors at the later time; None: the first ones.
        """
        series = [np.asarray(first)] if second is None else [np.asarray(first), np.asarray(second)]
        shapes = [s.shape for s in series]
        if any(len(shape) != 3 for shape in shapes) or len({shape[:2] for shape in shapes}) > 1:
            raise SpectrumError(f"factors to correlate must be (n_frames, n_units, components), got {shapes}")
        if self.is_paired and len(set(shapes)) > 1:
            raise SpectrumError(f"paired components need factors of one shape, got {shapes}")
        if not self._held:
            self._n_fft = _fast_even(max(4 * self.max_lag, SMALLEST_BLOCK))
            self._held = [np.empty((self._n_fft, *shape[1:])) for shape in shapes]
            p, q = shapes[0][2], shapes[-1][2]
            self._sums = np.zeros((self.max_lag + 1, p) if self.is_paired else (self.max_lag + 1, p, q))
        elif [h.shape[1:] for h in self._held] != [shape[1:] for shape in shapes]:
            raise SpectrumError(
                f"chunks of one series must have the same units and components, got {[s[1:] for s in shapes]} "
                f"after {[h.shape[1:] for h in self._held]}"
            )
        n_added = shapes[0][0]
        self.n_frames += n_added
        position = 0
        while position < n_added:
            n_copied = min(self._n_fft - self._n_held, n_added - position)
            for held, new in zip(self._held, series):
                held[self._n_held : self._n_held + n_copied] = new[position : position + n_copied]
            self._n_held += n_copied
            position += n_copied
            if self._n_held == self._n_fft:
                assert self._sums is not None
                n_early = self._n_fft - self.max_lag
                self._sums += self._correlate(n_early, self._n_fft, self._n_fft)
                for held in self._held:
                    held[: self.max_lag] = held[n_early:].copy()
                self._n_held = self.max_lag

    def _correlate(self, n_early: int, n_late: int, n_fft: int) -> Array:
        """Sums over the n_early first frames held, each against the n_late first."""
        first, second = self._held[0], self._held[-1]
        n_units, p, q = first.shape[1], first.shape[2], second.shape[2]
        n_frequencies = n_fft // 2 + 1
        shape = (n_frequencies, p) if self.is_paired else (n_frequencies, p, q)
        power = np.zeros(shape, dtype=complex)
        slab = int(np.clip(SLAB_BYTES / (16 * n_frequencies * (p + q)), 1, max(n_units, 1)))
        for start in range(0, n_units, slab):
            units = slice(start, start + slab)
            early = fft.rfft(np.ascontiguousarray(first[:n_early, units].transpose(2, 1, 0)), n_fft, axis=2)
            late = fft.rfft(np.ascontiguousarray(second[:n_late, units].transpose(2, 1, 0)), n_fft, axis=2)
            if self.is_paired:
                power += np.einsum("puf,puf->fp", early.conj(), late)
            else:
                power += np.conj(early.transpose(2, 0, 1)) @ late.transpose(2, 1, 0)
        return np.asarray(fft.irfft(power, n_fft, axis=0)[: self.max_lag + 1])

    def sums(self) -> Array:
        """Return the raw sums over all frames added so far; more may be added afterwards.

        Returns:
            (max_lag + 1, p, q) ``sum_t sum_u first[t, u, p] second[t + k, u, q]``; (max_lag + 1, p) if paired.
        """
        if self._sums is None:
            raise SpectrumError("no frames were given to correlate")
        n_fft = _fast_even(self._n_held + self.max_lag)
        tail = self._correlate(self._n_held, self._n_held, n_fft)
        return self._sums + tail


def _counts(n_frames: int, n_lags: int, estimator: Estimator) -> Array:
    return n_frames - np.arange(n_lags) if estimator == "unbiased" else np.full(n_lags, n_frames)


def _fast_even(n: int) -> int:
    """Return the smallest even length of a fast transform that is not below n."""
    return 2 * int(fft.next_fast_len(-(-n // 2), real=True))


def _check_lags(n_frames: int, max_lag: int, estimator: Estimator) -> None:
    if estimator not in get_args(Estimator):
        raise SpectrumError(f"estimator is one of {get_args(Estimator)}, got {estimator!r}")
    if max_lag >= n_frames:
        raise SpectrumError(f"a correlation over {max_lag} lags needs more than {max_lag} frames, got {n_frames}")
