"""Correlations between atoms that stand in a relation to one another, Eqs. 27 and 31, without N^2 of them.

For a relation R that is taken at the earlier of two times and groups a, b of the atoms,

    ``sum_t sum_ij R_ij(t) G_a,i(t) u_i(t) G_b,j(t + k) u_j(t + k) = sum_j sum_t N_j^a(t) G_b,j(t + k) u_j(t + k)``

with what is related to j, ``N_j^a(t) = sum_i R_ij(t) G_a,i(t) u_i(t)``: one correlation for each j. The last relation
is what the others leave of all pairs. Its sums are those of all pairs, which need only the sums over groups, less those
of the other relations.

j runs over units, atoms or molecules, i over atoms. Frames are held a few max_lag long, as what the atoms give, their
groups and the related pairs; related sums and transforms are made from them for a few units at a time.
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, sparse

from mimyria_wf.errors import SpectrumError

Array = NDArray[Any]

SMALLEST_BLOCK = 256
"""Frames; below it the calls cost more than the transforms."""
SLAB_BYTES = 64e6
"""Size of the related sums that are held at a time."""


class RelatedCorrelator:
    """Correlates what atoms give, by the groups of both and by how they are related; frames arrive in chunks.

    Args:
        max_lag: largest lag, in frames.
        n_groups: number of groups.
        n_relations: number of relations, the last one included, which is what the others leave.
        n_units: number of units.
        blocks: numbers of components that are correlated among themselves, e.g. (3, 6) for a dipole and a
            polarizability.
    """

    def __init__(self, max_lag: int, *, n_groups: int, n_relations: int, n_units: int, blocks: tuple[int, ...]) -> None:
        if max_lag < 0:
            raise SpectrumError(f"the largest lag must not be negative, got {max_lag}")
        self.max_lag = max_lag
        self.n_groups = n_groups
        self.n_relations = n_relations
        self.n_units = n_units
        self.blocks = blocks
        self.n_frames = 0
        self._capacity = 2 * int(fft.next_fast_len(max(max_lag + 1, SMALLEST_BLOCK), real=True))
        self._values: Array | None = None
        self._groups = np.zeros((0, 0), dtype=np.int16)
        self._pairs: list[list[tuple[Array, Array, Array]]] = []
        self._n_held = 0
        self._sums: list[Array] | None = None

    def add(self, values: Array, groups: Array, pairs: Sequence[tuple[Array, Array, Array]]) -> None:
        """Add the frames that follow those already added.

        Args:
            values: (n_frames, n_atoms, sum of blocks) what each atom gives.
            groups: (n_frames, n_atoms) group of each atom.
            pairs: lists of frame, atom i and unit j, each (n_pairs,) and ordered by frame: first every atom with the
                unit that it belongs to, then the related pairs of every relation but the last.
        """
        n_added, n_atoms, width = values.shape
        if width != sum(self.blocks) or groups.shape != (n_added, n_atoms) or len(pairs) != self.n_relations:
            raise SpectrumError(
                f"expected {sum(self.blocks)} components, groups of shape {(n_added, n_atoms)} and "
                f"{self.n_relations} lists of pairs, got {width}, {groups.shape} and {len(pairs)}"
            )
        if self._values is None:
            self._values = np.empty((self._capacity, n_atoms, width))
            self._groups = np.empty((self._capacity, n_atoms), dtype=np.int16)
            self._pairs = [[] for _ in pairs]
        bounds = [np.searchsorted(one[0], np.arange(n_added + 1)) for one in pairs]
        position = 0
        while position < n_added:
            n_copied = min(self._capacity - self._n_held, n_added - position)
            held, new = slice(self._n_held, self._n_held + n_copied), slice(position, position + n_copied)
            self._values[held] = values[new]
            self._groups[held] = groups[new]
            for kept, one, bound in zip(self._pairs, pairs, bounds, strict=True):
                chosen = slice(bound[position], bound[position + n_copied])
                frame, atom, unit = (np.asarray(x[chosen], dtype=np.int32) for x in one)
                kept.append((frame + np.int32(self._n_held - position), atom, unit))
            self._n_held += n_copied
            self.n_frames += n_copied
            position += n_copied
            if self._n_held == self._capacity:
                self._flush()

    def _flush(self) -> None:
        """Correlate what is complete and keep the last max_lag frames."""
        assert self._values is not None
        n_early = self._capacity - self.max_lag
        found = self._correlate(n_early, self._capacity)
        self._sums = found if self._sums is None else [a + b for a, b in zip(self._sums, found, strict=True)]
        kept = slice(n_early, self._capacity)
        self._values[: self.max_lag] = self._values[kept].copy()
        self._groups[: self.max_lag] = self._groups[kept].copy()
        for relation, pieces in enumerate(self._pairs):
            frame, atom, unit = (np.concatenate(x) for x in zip(*pieces, strict=True))
            first = int(np.searchsorted(frame, n_early))
            self._pairs[relation] = [(frame[first:] - np.int32(n_early), atom[first:], unit[first:])]
        self._n_held = self.max_lag

    def _correlate(self, n_early: int, n_late: int) -> list[Array]:
        """Sum over the n_early first frames held, each against the n_late first, by block.

        Returns:
            for each block of p components (n_relations, max_lag + 1, n_groups p, n_groups p); the last relation is
            that of all pairs.
        """
        assert self._values is not None
        n_atoms, width = self._values.shape[1:]
        values = self._values[:n_late].reshape(-1, width)
        n_fft = 2 * int(fft.next_fast_len(-(-max(n_late, n_early + self.max_lag) // 2), real=True))
        n_frequencies = n_fft // 2 + 1
        groups = self._groups[:n_late].ravel()
        lists = [tuple(np.concatenate(x) for x in zip(*pieces, strict=True)) for pieces in self._pairs]
        power = [
            np.zeros((self.n_relations, n_frequencies, self.n_groups * p, self.n_groups * p), dtype=complex)
            for p in self.blocks
        ]
        columns = np.cumsum([0, *self.blocks])
        slab = max(1, int(SLAB_BYTES / (8 * n_late * self.n_groups * width)))
        sorted_lists = [_by_unit(one, self.n_units) for one in lists]
        total = np.zeros((self.n_groups, width, n_frequencies), dtype=complex)
        total_early = np.zeros_like(total)

        def transforms(relation: int, start: int, stop: int, n_frames: int) -> Array:
            """(n_units, n_groups, width, n_frequencies) transforms of the sums over what is related to each unit."""
            (frame, atom, unit), bounds = sorted_lists[relation]
            piece = slice(bounds[start], bounds[stop])
            frame, atom, unit = frame[piece], atom[piece], unit[piece]
            if n_frames < n_late:
                is_early = frame < n_frames
                frame, atom, unit = frame[is_early], atom[is_early], unit[is_early]
            sender = frame.astype(np.int64) * n_atoms + atom
            receiver = ((unit.astype(np.int64) - start) * self.n_groups + groups[sender]) * n_frames + frame
            shape = ((stop - start) * self.n_groups * n_frames, len(values))
            matrix = sparse.csr_array((np.ones(len(sender)), (receiver, sender)), shape=shape)
            sums = (matrix @ values).reshape(stop - start, self.n_groups, n_frames, width)
            return np.asarray(fft.rfft(np.ascontiguousarray(sums.transpose(0, 1, 3, 2)), n_fft, axis=3))

        for start in range(0, self.n_units, slab):
            stop = min(start + slab, self.n_units)
            late = transforms(0, start, stop, n_late)
            total += late.sum(axis=0)
            total_early += (late if n_early == n_late else transforms(0, start, stop, n_early)).sum(axis=0)
            for relation in range(1, self.n_relations):
                early = transforms(relation, start, stop, n_early)
                for k in range(len(self.blocks)):
                    chosen = slice(columns[k], columns[k + 1])
                    power[k][relation - 1] += _cross(early[:, :, chosen], late[:, :, chosen])
        results = []
        for k in range(len(self.blocks)):
            chosen = slice(columns[k], columns[k + 1])
            power[k][-1] = _cross(total_early[None, :, chosen], total[None, :, chosen])
            results.append(fft.irfft(power[k], n_fft, axis=1)[:, : self.max_lag + 1])
        return results

    def sums(self, pairs: Sequence[Sequence[tuple[int, int]]]) -> list[Array]:
        """Return the raw sums over all frames added so far; more may be added afterwards.

        Args:
            pairs: for each block, the pairs (c, d) of its components.

        Returns:
            for each block (n_parts, max_lag + 1, n_pairs), symmetrised in c and d and with both orders of two groups;
            parts run over relations, and for each over ``combinations_with_replacement(range(n_groups), 2)``.
        """
        if self._values is None:
            raise SpectrumError("no frames were given to correlate")
        if self.n_frames <= self.max_lag:
            raise SpectrumError(
                f"a correlation over {self.max_lag} lags needs more than {self.max_lag} frames, got {self.n_frames}"
            )
        found = self._correlate(self._n_held, self._n_held)
        if self._sums is not None:
            found = [a + b for a, b in zip(self._sums, found, strict=True)]
        results = []
        for p, raw, chosen in zip(self.blocks, found, pairs, strict=True):
            raw[-1] -= raw[:-1].sum(axis=0)
            parts = raw.reshape(self.n_relations, self.max_lag + 1, self.n_groups, p, self.n_groups, p)
            parts = parts + parts.transpose(0, 1, 4, 3, 2, 5)  # c of a with d of b, and c of b with d of a
            first, second = np.array([c for c, _ in chosen]), np.array([d for _, d in chosen])
            rows = []
            for relation in range(self.n_relations):
                for a, b in combinations_with_replacement(range(self.n_groups), 2):
                    block = parts[relation, :, a, :, b]
                    symmetric = block[:, first, second] + block[:, second, first]
                    rows.append(symmetric * (0.25 if a == b else 0.5))
            results.append(np.array(rows))
        return results


def _by_unit(pairs: tuple[Array, ...], n_units: int) -> tuple[tuple[Array, ...], Array]:
    """Return pairs ordered by unit, and where each unit's begin."""
    order = np.argsort(pairs[2], kind="stable")
    ordered = tuple(x[order] for x in pairs)
    return ordered, np.searchsorted(ordered[2], np.arange(n_units + 1))


def _cross(early: Array, late: Array) -> Array:
    """Sum ``conj(early) late`` over units: (n_units, n_groups, p, f) -> (f, n_groups p, n_groups p)."""
    n_units, n_groups, p, n_frequencies = early.shape
    first = early.reshape(n_units, n_groups * p, n_frequencies).transpose(2, 1, 0)
    second = late.reshape(n_units, n_groups * p, n_frequencies).transpose(2, 0, 1)
    return np.asarray(np.conj(first) @ second)
