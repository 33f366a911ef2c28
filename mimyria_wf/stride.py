"""Fewer evaluations: tensors at every s-th frame, a cubic spline in time between them, velocities of every frame.

Tensors vary more slowly than velocities. How coarse s may be is measured, not assumed: on a short segment of the
trajectory the tensors of every frame are at hand, so that spectra of the segment with tensors of every frame and with
splined ones differ in nothing else. Their distance, Eq. 16, is free of sampling error for this reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline

from mimyria_wf.derivatives import DerivativeSeries, contract
from mimyria_wf.spectrum import SpectrumSettings, ir_spectrum, raman_spectrum, spectral_distance

Array = npt.NDArray[Any]

OVERLAP = 20
"""Knots of a cubic spline beyond a chunk: a knot's influence falls by 2 - sqrt(3) = 0.27 a knot, 0.27^20 = 3e-12."""
_LEAST_WEIGHT = 1e-5
"""Weights of a spline below this are left out for members, of which only deviations matter."""
STRIDES = (2, 4, 8, 16)
WINDOW = 500.0
"""Window of the spectra of a check that is long enough [fs]; its segment is twice as long."""
_SHORTEST_SEGMENT = 200.0
"""A check on less than this resolves nothing [fs]: the window is half of it, its resolution 330 cm^-1."""
_SHARE = 0.02
"""Of all frames, that a check may look at, if that is a segment at all."""
_LARGEST_SHARE = 0.2
_FEWEST_KNOTS = 4


@dataclass(frozen=True)
class SplinedFrames:
    """Consecutive frames with their tensors.

    Attributes:
        positions: (n_frames, n_atoms, 3) [A].
        velocities: (n_frames, n_atoms, 3) [A/fs].
        tensors: (n_frames, n_atoms, n_columns), flattened.
        weights: (n_frames, n_knots) of the spline; None where every frame is a knot.
        members: (n_knots, n_columns, 3 n_atoms) what the knots carry beside their tensors, or None.
    """

    positions: Array
    velocities: Array
    tensors: Array
    weights: Array | None = None
    members: Array | None = None


class StreamedSpline:
    """Splines tensors through knots that arrive in chunks, as one spline through all of them would.

    Args:
        knots: (n_knots,) all frames at which tensors will be known, increasing, the last frame among them.
        n_frames: of the trajectory.
        first: first frame that is wanted.
    """

    def __init__(self, knots: Array, n_frames: int, first: int = 0) -> None:
        self.n_frames = n_frames
        self.next = first
        self._is_every_frame = len(knots) == n_frames
        self._first_knot = int(knots[first_knot(knots, first)])
        self._known = np.empty(0, dtype=int)
        self._values: Array | None = None
        self._members: Array | None = None
        self._positions: list[Array] = []
        self._velocities: list[Array] = []

    def add(
        self,
        start: int,
        positions: Array,
        velocities: Array,
        knots: Array,
        tensors: Array,
        members: Array | None = None,
    ) -> SplinedFrames | None:
        """Add the frames that follow those already added, and return the ones whose tensors are known now.

        Args:
            start: index of the first frame.
            positions: (n_frames, n_atoms, 3) [A].
            velocities: (n_frames, n_atoms, 3) [A/fs].
            knots: (n_knots,) frames among them with tensors.
            tensors: (n_knots, n_atoms, n_columns) of these.
            members: see :class:`SplinedFrames`.
        """
        stop = start + len(positions)
        new = max(0, self.next - start)
        if self._is_every_frame:
            self.next = max(self.next, stop)
            if new >= len(positions):
                return None
            return SplinedFrames(
                positions[new:],
                velocities[new:],
                tensors[new:],
                members=None if members is None else members[new:],
            )
        self._positions.append(positions[new:])
        self._velocities.append(velocities[new:])
        kept = knots >= self._first_knot
        if kept.any():
            self._known = np.concatenate([self._known, knots[kept]])
            self._values = _extended(self._values, tensors[kept])
            self._members = None if members is None else _extended(self._members, members[kept])
        if self._values is None or (stop < self.n_frames and len(self._known) <= OVERLAP):
            return None
        until = stop if stop == self.n_frames else int(self._known[-1 - OVERLAP])
        if until <= self.next:
            return None
        wanted = np.arange(self.next, until)
        # A spline is linear in its knots: one product serves all columns.
        weights = (
            CubicSpline(self._known, np.eye(len(self._known)))(wanted) if len(self._known) > 1 else np.ones((1, 1))
        )
        splined = (weights @ self._values.reshape(len(self._values), -1)).reshape(-1, *self._values.shape[1:])
        all_positions, all_velocities = np.concatenate(self._positions), np.concatenate(self._velocities)
        n = len(wanted)
        ready = SplinedFrames(all_positions[:n], all_velocities[:n], splined, weights, self._members)
        self._positions, self._velocities = [all_positions[n:]], [all_velocities[n:]]
        self.next = until
        behind = first_knot(self._known, until)
        self._known, self._values = self._known[behind:], self._values[behind:]
        self._members = None if self._members is None else self._members[behind:]
        return ready


def _extended(old: Array | None, new: Array) -> Array:
    return new if old is None else np.concatenate([old, new])


def contract_members(frames: SplinedFrames) -> Array:
    """Return the members' tensors between the knots contracted with velocities, (n_frames, n_columns).

    ``sum_k W_tk sum_i T_ki v_ti`` for the few knots k that have a weight: the members' tensors of a frame, many times
    those of the prediction, are never made.
    """
    assert frames.members is not None
    velocities = frames.velocities.reshape(len(frames.velocities), -1).astype(frames.members.dtype)
    if frames.weights is None:
        return np.asarray((frames.members @ velocities[..., None])[..., 0])
    result = np.zeros((len(velocities), frames.members.shape[1]))
    for weights, fields in zip(frames.weights.T, frames.members, strict=True):
        near = np.flatnonzero(np.abs(weights) > _LEAST_WEIGHT)
        if len(near):
            span = slice(near[0], near[-1] + 1)
            result[span] += weights[span, None] * (velocities[span] @ fields.T)
    return result


def knots_of(n_frames: int, stride: int) -> Array:
    """Return every stride-th frame and the last one."""
    return np.append(np.arange(0, n_frames - 1, stride), n_frames - 1)


def first_knot(knots: Array, frame: int) -> int:
    """Return the index of the first knot that has a say in the spline at a frame and beyond."""
    return max(0, int(np.searchsorted(knots, frame, side="right")) - 1 - OVERLAP)


@dataclass(frozen=True)
class StrideCheck:
    """What a check found.

    Attributes:
        chosen: the stride.
        distances: spectral distance from tensors of every frame, by stride and by ``ir``, ``iso``, ``vv``, ``vh``.
        n_frames: of the segment; none where there was no check.
        window: of its spectra [fs].
        tolerance: largest distance that is accepted.
        reason: why there was no check, or why 1 was chosen; empty otherwise.
    """

    chosen: int
    distances: Mapping[int, Mapping[str, float]]
    n_frames: int
    window: float
    tolerance: float
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "chosen": self.chosen,
            "strides": {str(s): {k: float(v) for k, v in d.items()} for s, d in self.distances.items()},
            "frames_checked": self.n_frames,
            "window_fs": self.window,
            "tolerance": self.tolerance,
            **({"reason": self.reason} if self.reason else {}),
        }


def segment_length(timestep: float, n_frames: int, n_total: int) -> int:
    """Return how many frames a check takes, 0 if they would be too few or too large a part of the work.

    Args:
        timestep: between frames [fs].
        n_frames: of the trajectory that is checked.
        n_total: of all trajectories for which the stride is chosen.
    """
    shortest = int(np.ceil(_SHORTEST_SEGMENT / timestep))
    length = min(int(2 * WINDOW / timestep), max(shortest, int(_SHARE * n_total)), n_frames)
    return length if length >= shortest and length <= _LARGEST_SHARE * n_total else 0


def unchecked(tolerance: float, timestep: float) -> StrideCheck:
    """Return the choice of every frame, where :func:`segment_length` finds no segment to check."""
    return StrideCheck(
        1,
        {},
        0,
        0.0,
        tolerance,
        f"too few frames for a check, which takes {_SHORTEST_SEGMENT:g} fs ({_SHORTEST_SEGMENT / timestep:.0f} frames) "
        f"of one trajectory and at most {_LARGEST_SHARE:.0%} of all frames",
    )


def check_strides(
    chunks: Iterable[tuple[Array, Array, Mapping[str, Array]]],
    timestep: float,
    n_frames: int,
    tolerance: float,
    strides: Sequence[int] = STRIDES,
) -> StrideCheck:
    """Return the largest stride that changes no spectrum of a segment by more than the tolerance.

    Args:
        chunks: positions (n, n_atoms, 3) [A], velocities (n, n_atoms, 3) [A/fs] and tensors (n, n_atoms, ...) by
            target ``apt`` and ``pgt`` of consecutive frames.
        timestep: between frames [fs].
        n_frames: of the segment.
        tolerance: largest spectral distance, of IR and of isotropic, VV and VH Raman, with 1/nu^2 and without, as far
            as there are tensors.
        strides: that are tried.
    """
    splines = {
        s: StreamedSpline(knots_of(n_frames, s), n_frames) for s in (1, *strides) if n_frames // s >= _FEWEST_KNOTS
    }
    rows: dict[int, list[dict[str, Array | None]]] = {s: [] for s in splines}
    start = 0
    for positions, velocities, tensors in chunks:
        frames = np.arange(start, start + len(positions))
        shapes = {target: values.shape[2:] for target, values in tensors.items()}
        flat = np.concatenate([values.reshape(*values.shape[:2], -1) for values in tensors.values()], axis=2)
        for stride, spline in splines.items():
            is_knot = (frames % stride == 0) | (frames == n_frames - 1)
            ready = spline.add(start, positions, velocities, frames[is_knot], flat[is_knot])
            if ready is not None:
                found = unflattened(ready.tensors, shapes)
                dipole, polarizability = contract(found["apt"], found["pgt"], ready.velocities)
                rows[stride].append({"dipole": dipole, "polarizability": polarizability})
        start += len(positions)
    window = min(WINDOW, n_frames * timestep / 2)
    spectra = {stride: _spectra(parts, timestep, window) for stride, parts in rows.items()}
    wavenumber, exact = spectra.pop(1)
    distances = {
        stride: {kind: spectral_distance(wavenumber, exact[kind], found[kind]) for kind in found}
        for stride, (_, found) in spectra.items()
    }
    within = [stride for stride, found in distances.items() if max(found.values()) <= tolerance]
    reason = "" if within else f"every stride tried changes a spectrum by more than {tolerance:g}"
    return StrideCheck(max(within, default=1), distances, n_frames, window, tolerance, reason)


def unflattened(flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array | None]:
    """Return tensors by target, None for one that is absent, from columns in the order of the shapes."""
    result: dict[str, Array | None] = {"apt": None, "pgt": None}
    start = 0
    for target, shape in shapes.items():
        stop = start + int(np.prod(shape))
        result[target] = flat[..., start:stop].reshape(*flat.shape[:-1], *shape)
        start = stop
    return result


def _spectra(
    rows: Sequence[Mapping[str, Array | None]], timestep: float, window: float
) -> tuple[Array, dict[str, Array]]:
    def joined(key: str) -> Array | None:
        parts = [row[key] for row in rows]
        return np.concatenate([part for part in parts if part is not None]) if parts[0] is not None else None

    # Temperature and volume are factors that a distance does not see.
    series = DerivativeSeries(
        name="stride check",
        timestep=timestep,
        temperature=1.0,
        volume=1.0,
        dipole_derivative=joined("dipole"),
        polarizability_derivative=joined("polarizability"),
    )
    settings = SpectrumSettings(window_length=window, n_bootstrap=2)
    wavenumber = np.empty(0)
    found: dict[str, Array] = {}
    if series.dipole_derivative is not None:
        ir = ir_spectrum([series], settings)
        wavenumber, found["ir"] = ir.wavenumber, ir.n_alpha
    if series.polarizability_derivative is not None:
        raman = raman_spectrum([series], settings)
        wavenumber = raman.wavenumber
        found |= {"iso": raman.iso, "vv": raman.vv, "vh": raman.vh}
        # 1/nu^2 hides what happens to stretches, which a stride spoils first
        found |= {f"{kind}_weighted": raman.weighted[kind] for kind in ("iso", "vv", "vh")}
    return wavenumber, found
