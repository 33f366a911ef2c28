"""Radial distribution functions and their minima, which bound solvation shells."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from mimyria_wf.errors import GroupError

Array = NDArray[Any]

BIN = 0.02
"""Width of the bins [A]."""
_WIDTHS = (0.08, 0.1, 0.125, 0.16, 0.2, 0.25, 0.32)
"""Widths of the smoothing that are tried [A]; neighbouring shells are 1.5 A and more apart."""
_AGREEMENT = 0.15
_PROMINENCE = 0.015
_STANDARD_ERRORS = 3.0
_N_BLOCKS = 10
_SMALLEST_DISTANCE = 0.5


@dataclass(frozen=True)
class Rdf:
    """Distribution of distances between atoms of different molecules, pooled over trajectories.

    Attributes:
        distance: (n,) centres of the bins [A].
        density: (n,) g(r); for clusters, which have no mean density, the density around an atom [A^-3].
        blocks: (n_blocks, n) the same of consecutive blocks of the frames.
        is_normalised: whether density is g(r).
        n_frames: that it is the mean of.
    """

    distance: Array
    density: Array
    blocks: Array
    is_normalised: bool
    n_frames: int


@dataclass(frozen=True)
class Minimum:
    """A minimum of a radial distribution function.

    Attributes:
        distance: where it is [A].
        order: 1 for the one after the first peak.
        smoothing: standard deviation of the smoothing it was found with [A].
        peaks: positions of the peaks found [A].
        rdf: where it was found.
        smoothed: (n,) the smoothed density.
        what: atoms between which, for labels.
    """

    distance: float
    order: int
    smoothing: float
    peaks: tuple[float, ...]
    rdf: Rdf
    smoothed: Array
    what: str


class RdfSum:
    """Collects distances frame by frame.

    Args:
        cutoff: largest distance [A].
    """

    def __init__(self, cutoff: float) -> None:
        self.edges = np.arange(0.0, cutoff + BIN / 2, BIN)
        self.n_centres = 0.0
        self.is_normalised = True
        self._counts: list[Array] = []
        self._norms: list[tuple[float, float]] = []

    def add(self, distances: Array, n_centres: int, n_pairs: int, volume: float | None) -> None:
        """Add a frame.

        Args:
            distances: (n,) from centres to others [A].
            n_centres: number of centres.
            n_pairs: number of pairs of a centre and another atom.
            volume: of the cell [A^3]; None for a cluster.
        """
        self._counts.append(np.histogram(distances, self.edges)[0])
        self._norms.append((n_centres, 0.0 if volume is None else n_pairs / volume))
        self.n_centres += n_centres
        self.is_normalised &= volume is not None

    def result(self) -> Rdf:
        """Return the distribution of all frames."""
        shells = 4 / 3 * np.pi * np.diff(self.edges**3)
        norms = np.array(self._norms)[:, 1 if self.is_normalised else 0]
        counts = np.array(self._counts)

        def density(frames: Array) -> Array:
            norm = norms[frames].sum()
            return np.asarray(counts[frames].sum(axis=0) / shells / norm) if norm > 0 else np.zeros(len(shells))

        every = np.arange(len(counts))
        blocks = np.array([density(frames) for frames in np.array_split(every, min(_N_BLOCKS, len(every)))])
        distance = 0.5 * (self.edges[1:] + self.edges[:-1])
        return Rdf(distance, density(every), blocks, self.is_normalised, len(every))


def find_minimum(rdf: Rdf, order: int, what: str) -> Minimum:
    """Find a minimum between two peaks.

    The distribution is smoothed with Gaussians of growing width. Peaks stand out by 1.5 % of the highest and by three
    standard errors, from ten blocks of the frames. The first width counts at which the minimum lies where the two
    widths after it have it too, within 0.15 A: minima that noise makes move and vanish.

    Args:
        rdf: the distribution.
        order: 1 for the first minimum.
        what: atoms between which, for messages.

    Raises:
        GroupError: there is no such minimum.
    """
    found: list[Minimum | None] = []
    peaks: tuple[float, ...] = ()
    for width in _WIDTHS:
        smoothed = gaussian_filter1d(rdf.density, width / BIN, mode="nearest")
        smoothed[rdf.distance < _SMALLEST_DISTANCE] = 0.0
        highest = float(smoothed.max())
        blocks = gaussian_filter1d(rdf.blocks, width / BIN, axis=1, mode="nearest")
        error = blocks.std(axis=0) / np.sqrt(max(1, len(blocks) - 1))
        indices = _peaks(smoothed, error, highest)
        peaks = tuple(float(rdf.distance[i]) for i in indices)
        if len(indices) <= order:
            found.append(None)
            continue
        between = slice(indices[order - 1], indices[order] + 1)
        values, distances = smoothed[between], rdf.distance[between]
        # where nothing is found between two shells the gap is flat: take its middle
        is_low = values <= values.min() + 0.01 * (highest - values.min()) * (values.min() < 0.01 * highest)
        found.append(Minimum(float(distances[is_low].mean()), order, width, peaks, rdf, smoothed, what))
    for three in zip(found, found[1:], found[2:], strict=False):
        same = [one for one in three if one is not None]
        if len(same) == 3 and max(abs(one.distance - same[0].distance) for one in same) <= _AGREEMENT:
            return same[0]
    name = {1: "first", 2: "second"}.get(order, f"{order}th")
    listed = ", ".join(f"{p:.2f}" for p in peaks) or "none"
    raise GroupError(
        f"no {name} minimum was found in the RDF of {what} up to {rdf.distance[-1]:.1f} A over {rdf.n_frames} frames "
        f"(peaks at {listed} A): give `distance` instead of `minimum`, or more frames"
    )


def _peaks(smoothed: Array, error: Array, highest: float) -> Array:
    """Return the indices of peaks that stand out, by height and by standard errors."""
    if not highest > 0:
        return np.zeros(0, dtype=int)
    indices, facts = find_peaks(smoothed, prominence=_PROMINENCE * highest)
    return np.asarray(indices[facts["prominences"] >= _STANDARD_ERRORS * error[indices]])


def write_rdfs(stem: Path, minima: Sequence[Minimum]) -> list[str]:
    """Write the distributions behind minima as a table and a figure beside a file; returns their names."""
    from matplotlib.figure import Figure

    columns = [minima[0].rdf.distance]
    header = ["distance_A"]
    figure = Figure(figsize=(6.0, 2.6 * len(minima)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(minima), 1))
    for k, (minimum, axis) in enumerate(zip(minima, axes, strict=True)):
        columns += [minimum.rdf.density, minimum.smoothed]
        header += [f"density_{k + 1}", f"smoothed_{k + 1}"]
        axis.plot(minimum.rdf.distance, minimum.rdf.density, color="0.7", linewidth=0.8, label="as counted")
        axis.plot(minimum.rdf.distance, minimum.smoothed, color="C0", label=f"smoothed, {minimum.smoothing:g} Å")
        axis.axvline(
            minimum.distance, color="C3", linestyle="--", label=f"minimum {minimum.order}: {minimum.distance:.2f} Å"
        )
        axis.set_ylabel("g(r)" if minimum.rdf.is_normalised else "density / Å$^{-3}$")
        axis.set_title(minimum.what, fontsize="medium")
        axis.set_ylim(0, 1.15 * float(minimum.smoothed.max()))
        axis.legend(frameon=False, fontsize="small")
    axes[-1].set_xlabel("distance / Å")
    table, picture = stem.with_name(f"{stem.stem}_rdf.csv"), stem.with_name(f"{stem.stem}_rdf.png")
    np.savetxt(table, np.stack(columns, axis=1), delimiter=",", header=",".join(header), comments="", fmt="%.8g")
    figure.savefig(picture, dpi=150)
    return [table.name, picture.name]
