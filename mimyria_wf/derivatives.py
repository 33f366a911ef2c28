"""Time derivatives of dipole and polarizability: the series that lies between prediction and spectra.

Tensors become series by contraction with velocities (Eqs. 3 and 13). Beside each series stands what equipartition
says its mean square must be, so that every spectrum can be held against a number that owes nothing to time
correlation, windows or Fourier transforms.

The equipartition value. Let ``u`` be the mass-weighted velocities, ``u_i = sqrt(m_i) v_i``, and ``B`` the mass-weighted
tensor, ``B_i = P_i / sqrt(m_i)``, so that ``M' = B^T u``. At fixed positions a thermal velocity distribution has
``<u u^T> = k_B T 1`` and hence ``<M' M'^T> = k_B T sum_i P_i^T P_i / m_i``. Molecular dynamics without centre-of-mass
motion (and, for clusters, without angular momentum) confines ``u`` to the complement of those rigid motions. With
``Pi`` the orthogonal projector on them at the instantaneous positions,

    ``<u u^T> = k_B T (1 - Pi)``,   ``k_B T = 2 K / n_dof``,   ``n_dof = 3N - rank(Pi)``,

which for NVE holds frame by frame as well: at given positions K is fixed by the conserved energy and ``u`` is uniform
on a sphere in that subspace. So ``<M' M'^T> = <k_B T(t) B^T (1 - Pi) B>``, with

    ``B^T (1 - Pi) B = sum_i P_i^T P_i / m_i - A^T A / M - G^T I^-1 G``,
    ``A = sum_i P_i``,   ``G = sum_i (r_i - R) x P_i``,   ``I`` the inertia tensor, ``M`` the total mass.

The squares stored here are these matrices averaged over frames with the weight T(t)/<T>, so that ``k_B <T>`` times a
square is the expected mean square exactly, with no factor (n_dof / 3N) left to argue about. The PGT takes the same
form with its six field pairs as columns.
"""

import itertools
import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, get_args

import h5py
import numpy as np
from numpy.typing import NDArray

from mimyria_wf.errors import SpectrumError
from mimyria_wf.related import RelatedCorrelator
from mimyria_wf.units import AMU_A2_PER_FS2, BOHR, BOLTZMANN_EV

Array = NDArray[Any]
RemovedMotion = Literal["none", "translation", "translation+rotation"]
Origin = Literal["velocities", "differences"]

PAIRS: tuple[tuple[int, int], ...] = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Cartesian indices of the six columns of a polarizability derivative: xx yy zz yz xz xy."""
PAIR_NAMES: tuple[str, ...] = ("xx", "yy", "zz", "yz", "xz", "xy")
_ROWS = [i for i, _ in PAIRS]
_COLUMNS = [j for _, j in PAIRS]

PAIRS_OF: dict[int, tuple[tuple[int, int], ...]] = {
    3: PAIRS,
    6: tuple(itertools.combinations_with_replacement(range(6), 2)),
}
"""Pairs of components that are correlated: six of a dipole, 21 of a polarizability derivative."""

FORMAT = "mimyria_wf derivatives 1"
_MEMBER_KEYS = {"apt": "dipole_members", "pgt": "polarizability_members"}
UNITS: dict[str, str] = {
    "dipole_derivative": "e A/fs",
    "polarizability_derivative": "e^2 a0^2/(E_h fs)",
    "kinetic_temperature": "K",
    "apt_square": "e^2/u",
    "pgt_square": "(e^2 a0/E_h)^2/u",
    "temperature": "K",
    "timestep": "fs",
    "volume": "A^3",
    "related_dipole": "(e A/fs)^2",
    "related_polarizability": "(e^2 a0^2/(E_h fs))^2",
    "dipole_members": "e A/fs",
    "polarizability_members": "e^2 a0^2/(E_h fs)",
}


class GroupFollower(Protocol):
    """Tells the groups and relations of the atoms frame by frame (:mod:`mimyria_wf.groups`).

    Attributes:
        names: names of the groups, a partition of the atoms.
        relations: names of the relations, a partition of the pairs, the last one what the others leave; empty: none.
        max_lag: of the correlations by relation, in frames.
        n_units: number of units, atoms or molecules, that relations are between.
    """

    names: tuple[str, ...]
    relations: tuple[str, ...]
    max_lag: int
    n_units: int

    def follow(self, positions: Array) -> tuple[Array, list[tuple[Array, Array, Array]]]:
        """Return groups and related pairs of the frames that follow those already seen.

        Args:
            positions: (n_frames, n_atoms, 3) [A].

        Returns:
            group of each atom (n_frames, n_atoms); lists of frame, atom and unit, each (n_pairs,) and ordered by frame:
            first every atom with its own unit, then the pairs of every relation but the last, which is what is left.
            No lists where there are no relations.
        """
        ...


@dataclass(frozen=True)
class RelatedSums:
    """Correlations by groups and relation, Eqs. 27 and 31, as raw sums over frames.

    ``sum_t sum_ij R_ij(t) G_a,i(t) u_i,c(t) G_b,j(t + k) u_j,d(t + k)``, symmetrised in c and d, and with both
    orders of the groups, as :func:`mimyria_wf.correlation.group_correlations` does.

    Attributes:
        parts: (first group, second group, relation) of each part.
        dipole: (n_parts, max_lag + 1, 6) pairs of components xx yy zz yz xz xy [(e A/fs)^2], or None.
        polarizability: (n_parts, max_lag + 1, 21) [(e^2 a0^2/(E_h fs))^2], or None.
    """

    parts: tuple[tuple[str, str, str], ...]
    dipole: Array | None = None
    polarizability: Array | None = None

    def __post_init__(self) -> None:
        """Refuse sums that do not go with the parts."""
        for name, sums, width in (("dipole", self.dipole, 6), ("polarizability", self.polarizability, 21)):
            if sums is not None and (sums.ndim != 3 or (len(sums), sums.shape[2]) != (len(self.parts), width)):
                raise SpectrumError(
                    f"related {name} sums must be ({len(self.parts)}, max_lag + 1, {width}), got {sums.shape}"
                )

    @property
    def max_lag(self) -> int:
        """Largest lag, in frames."""
        sums = self.dipole if self.dipole is not None else self.polarizability
        return -1 if sums is None else sums.shape[1] - 1


@dataclass(frozen=True)
class Members:
    """Derivatives of the whole system that each member of a committee gives (:mod:`mimyria_wf.committee`).

    A member is the same function of the structure in all runs, so members of several runs go together one by one.

    Attributes:
        dipole: (n_members, n_frames, 3) [e A/fs], or None.
        polarizability: (n_members, n_frames, 6) [e^2 a0^2/(E_h fs)], or None.
    """

    dipole: Array | None = None
    polarizability: Array | None = None

    @property
    def n_members(self) -> int:
        """Number of members."""
        return max((len(values) for values in (self.dipole, self.polarizability) if values is not None), default=0)


@dataclass(frozen=True)
class DerivativeSeries:
    """Dipole and polarizability derivative of one run, by group of atoms.

    Attributes:
        name: the run's name, for messages and tables.
        timestep: time between frames [fs].
        temperature: the run's own mean kinetic temperature [K].
        dipole_derivative: (n_frames, n_groups, 3) [e A/fs], or None.
        polarizability_derivative: (n_frames, n_groups, 6), order xx yy zz yz xz xy [e^2 a0^2/(E_h fs)], or None.
        group_names: names of the groups; the total is the sum over them.
        volume: cell volume, or a cluster's nominal volume [A^3]; None if nobody has given one.
        apt_square: (3, 3) mean of B^T (1 - Pi) B, see the module's text [e^2/u]; its trace enters the f-sum rule.
        pgt_square: (6, 6) the same of the PGT [(e^2 a0/E_h)^2/u].
        removed_motion: the rigid motions that the velocities lack.
        degrees_of_freedom: those that the temperature counts.
        is_periodic: whether volume is that of a cell.
        kinetic_temperature: (n_frames,) [K], or None.
        metadata: JSON-able record of where the tensors come from.
        origin: whether the derivatives are tensors times velocities, or differences of a series sampled at timestep.
        related: correlations by groups and relation, or None.
        occupancies: (n_groups,) mean number of atoms in each group, or None.
        members: of a committee, or None.
    """

    name: str
    timestep: float
    temperature: float
    dipole_derivative: Array | None = None
    polarizability_derivative: Array | None = None
    group_names: tuple[str, ...] = ("all",)
    volume: float | None = None
    apt_square: Array | None = None
    pgt_square: Array | None = None
    removed_motion: RemovedMotion = "translation"
    degrees_of_freedom: int | None = None
    is_periodic: bool = False
    kinetic_temperature: Array | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = "velocities"
    related: RelatedSums | None = None
    occupancies: Array | None = None
    members: Members | None = None

    def __post_init__(self) -> None:
        """Refuse series that no spectrum can be made of."""
        if self.dipole_derivative is None and self.polarizability_derivative is None:
            raise SpectrumError(f"{self.name}: neither a dipole nor a polarizability derivative is given")
        lengths = set()
        for label, series, width in (
            ("dipole_derivative", self.dipole_derivative, 3),
            ("polarizability_derivative", self.polarizability_derivative, 6),
        ):
            if series is None:
                continue
            expected = (len(series), len(self.group_names), width)
            if series.shape != expected:
                raise SpectrumError(f"{self.name}: {label} must have shape {expected}, got {series.shape}")
            if not np.isfinite(series).all():
                frame = int(np.argwhere(~np.isfinite(series).all(axis=(1, 2)))[0, 0])
                raise SpectrumError(
                    f"{self.name}: {label} is not finite at frame {frame}; check tensors and velocities"
                )
            lengths.add(len(series))
        if len(lengths) > 1:
            raise SpectrumError(
                f"{self.name}: dipole and polarizability derivative differ in length: {sorted(lengths)}"
            )
        if not (np.isfinite(self.timestep) and self.timestep > 0):
            raise SpectrumError(f"{self.name}: timestep must be positive, got {self.timestep} fs")
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise SpectrumError(
                f"{self.name}: temperature must be positive, got {self.temperature} K; are velocities zero?"
            )
        if self.volume is not None and not (np.isfinite(self.volume) and self.volume > 0):
            raise SpectrumError(f"{self.name}: volume must be positive, got {self.volume} A^3")
        if self.removed_motion not in get_args(RemovedMotion):
            raise SpectrumError(
                f"{self.name}: removed_motion is one of {get_args(RemovedMotion)}, got {self.removed_motion!r}"
            )
        if self.origin not in get_args(Origin):
            raise SpectrumError(f"{self.name}: origin is one of {get_args(Origin)}, got {self.origin!r}")
        if self.occupancies is not None and self.occupancies.shape != (len(self.group_names),):
            raise SpectrumError(
                f"{self.name}: {len(self.group_names)} groups, but occupancies of shape {self.occupancies.shape}"
            )
        for label, square, width in (("apt_square", self.apt_square, 3), ("pgt_square", self.pgt_square, 6)):
            if square is not None and square.shape != (width, width):
                raise SpectrumError(f"{self.name}: {label} must have shape {(width, width)}, got {square.shape}")
        if self.members is not None:
            self._check_members(self.members)

    def _check_members(self, members: Members) -> None:
        for label, values, series, width in (
            ("dipole", members.dipole, self.dipole_derivative, 3),
            ("polarizability", members.polarizability, self.polarizability_derivative, 6),
        ):
            if (values is None) != (series is None):
                raise SpectrumError(f"{self.name}: members and prediction must have the same targets, {label} differs")
            if values is None:
                continue
            expected = (members.n_members, self.n_frames, width)
            if values.shape != expected:
                raise SpectrumError(f"{self.name}: {label} of members must have shape {expected}, got {values.shape}")
            if not np.isfinite(values).all():
                raise SpectrumError(f"{self.name}: {label} of members is not finite; check tensors and velocities")

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        series = self.dipole_derivative if self.dipole_derivative is not None else self.polarizability_derivative
        assert series is not None
        return len(series)

    @property
    def total_dipole_derivative(self) -> Array:
        """(n_frames, 3) sum over groups [e A/fs]."""
        if self.dipole_derivative is None:
            raise SpectrumError(f"{self.name}: no dipole derivative; predict with an APT model to get an IR spectrum")
        return self.dipole_derivative.sum(axis=1)

    @property
    def total_polarizability_derivative(self) -> Array:
        """(n_frames, 6) sum over groups [e^2 a0^2/(E_h fs)]."""
        if self.polarizability_derivative is None:
            raise SpectrumError(
                f"{self.name}: no polarizability derivative; predict with a PGT model to get Raman spectra"
            )
        return self.polarizability_derivative.sum(axis=1)


def contract(
    apt: Array | None, pgt: Array | None, velocities: Array, groups: Array | None = None, n_groups: int = 1
) -> tuple[Array | None, Array | None]:
    """Contract tensors with velocities, Eqs. 3 and 13.

    The conversion of the velocities from A/fs to a0/fs that the PGT needs happens here and nowhere else.

    Args:
        apt: (n_frames, n_atoms, displacement, field) [e], or None.
        pgt: (n_frames, n_atoms, displacement, field, field) [e^2 a0/E_h], or None.
        velocities: (n_frames, n_atoms, 3) [A/fs].
        groups: (n_atoms,) group index of each atom, or (n_frames, n_atoms) where it changes; all in one group by
            default.
        n_groups: number of groups.

    Returns:
        dipole derivative (n_frames, n_groups, 3) [e A/fs] and polarizability derivative (n_frames, n_groups, 6)
        [e^2 a0^2/(E_h fs)], None where the tensor is None.
    """
    dipole = polarizability = None
    if groups is not None and groups.ndim == 2:
        return tuple(  # type: ignore[return-value]
            None if parts is None else sum_groups(parts, groups, n_groups)
            for parts in contract_atoms(apt, pgt, velocities)
        )
    members = [slice(None)] if groups is None else [np.flatnonzero(groups == g) for g in range(n_groups)]
    if apt is not None:
        _require_shape("apt", apt, (*velocities.shape, 3))
        dipole = np.stack([np.einsum("tiaf,tia->tf", apt[:, m], velocities[:, m]) for m in members], axis=1)
    if pgt is not None:
        _require_shape("pgt", pgt, (*velocities.shape, 3, 3))
        six = _six_columns(pgt)
        polarizability = (
            np.stack([np.einsum("tiac,tia->tc", six[:, m], velocities[:, m]) for m in members], axis=1) / BOHR
        )
    return dipole, polarizability


def contract_atoms(apt: Array | None, pgt: Array | None, velocities: Array) -> tuple[Array | None, Array | None]:
    """Contract tensors with velocities atom by atom, Eq. 30; arguments as in :func:`contract`.

    Returns:
        (n_frames, n_atoms, 3) [e A/fs] and (n_frames, n_atoms, 6) [e^2 a0^2/(E_h fs)], None where the tensor is None.
    """
    dipole = polarizability = None
    if apt is not None:
        _require_shape("apt", apt, (*velocities.shape, 3))
        dipole = np.einsum("tiaf,tia->tif", apt, velocities)
    if pgt is not None:
        _require_shape("pgt", pgt, (*velocities.shape, 3, 3))
        polarizability = np.einsum("tiac,tia->tic", _six_columns(pgt), velocities) / BOHR
    return dipole, polarizability


def sum_groups(parts: Array, groups: Array, n_groups: int) -> Array:
    """Sum what the atoms give, (n_frames, n_atoms, p), over the groups (n_frames, n_atoms) that they are in.

    Returns:
        (n_frames, n_groups, p).
    """
    is_member = (groups[:, None] == np.arange(n_groups)[:, None]).astype(float)
    return np.asarray(is_member @ parts)


def _six_columns(pgt: Array) -> Array:
    """Return the PGT's six field pairs, symmetrised, (..., displacement, 6)."""
    return 0.5 * (pgt[..., _ROWS, _COLUMNS] + pgt[..., _COLUMNS, _ROWS])


def _require_shape(name: str, array: Array, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise SpectrumError(f"{name} must have shape {expected} to go with the velocities, got {array.shape}")


def kinetic_temperature(masses: Array, velocities: Array, degrees_of_freedom: int) -> Array:
    """Return the kinetic temperature of each frame, 2 K / (n_dof k_B).

    Args:
        masses: (n_atoms,) [u].
        velocities: (n_frames, n_atoms, 3) [A/fs].
        degrees_of_freedom: 3N less the conserved momenta.

    Returns:
        (n_frames,) [K].
    """
    twice_kinetic = np.einsum("i,tia,tia->t", masses, velocities, velocities) * AMU_A2_PER_FS2
    return twice_kinetic / (degrees_of_freedom * BOLTZMANN_EV)


def mean_square(square: Array, temperature: float) -> Array:
    """Return the equipartition value k_B T * square in (A/fs)^2 times the square's own unit without 1/u.

    Args:
        square: apt_square [e^2/u] or pgt_square [(e^2 a0/E_h)^2/u].
        temperature: [K].

    Returns:
        <M' M'^T> [(e A/fs)^2], or for the PGT [(e^2 a0/E_h)^2 (A/fs)^2]: divide by a0^2 to get that of alpha'.
    """
    return square * (BOLTZMANN_EV * temperature / AMU_A2_PER_FS2)


def rigid_motion_energies(masses: Array, positions: Array, velocities: Array) -> tuple[Array, Array]:
    """Return twice the kinetic energy of translation and of rigid rotation, (n_frames,) each [u A^2/fs^2]."""
    momentum = np.einsum("i,tia->ta", masses, velocities)
    moment = np.einsum("i,tia->ta", masses, positions)
    total = masses.sum()
    relative = positions - moment[:, None] / total
    moving = velocities - momentum[:, None] / total
    angular = np.einsum("i,tia->ta", masses, np.cross(relative, moving))
    inverse = np.linalg.pinv(_inertia(masses, relative), rcond=1e-8, hermitian=True)
    return (momentum**2).sum(axis=1) / total, np.einsum("ta,tab,tb->t", angular, inverse, angular)


def _inertia(masses: Array, relative: Array) -> Array:
    second = np.einsum("i,tia,tib->tab", masses, relative, relative)
    return np.trace(second, axis1=1, axis2=2)[:, None, None] * np.eye(3) - second


def find_removed_motion(masses: Array, positions: Array, velocities: Array, is_periodic: bool) -> RemovedMotion:
    """Tell from the velocities themselves which rigid motions have been taken out of a run.

    A motion counts as removed when it holds less than 1 % of its equipartition share on average over the frames given.

    Args:
        masses: (n_atoms,) [u].
        positions: (n_frames, n_atoms, 3) [A]; unwrapped.
        velocities: (n_frames, n_atoms, 3) [A/fs].
        is_periodic: under periodic boundaries angular momentum is not conserved, and rotation is never removed.
    """
    translation, rotation = rigid_motion_energies(masses, positions, velocities)
    share = np.einsum("i,tia,tia->t", masses, velocities, velocities).mean() / (3 * len(masses))
    if translation.mean() > 0.01 * 3 * share:
        return "none"
    if is_periodic or len(masses) < 2 or rotation.mean() > 0.01 * 3 * share:
        return "translation"
    return "translation+rotation"


def count_degrees_of_freedom(n_atoms: int, removed_motion: RemovedMotion, is_linear: bool = False) -> int:
    """Return 3N less the rigid motions removed (two rotations for a linear molecule)."""
    removed = {"none": 0, "translation": 3, "translation+rotation": 5 if is_linear else 6}[removed_motion]
    return 3 * n_atoms - removed


def projected_square(tensors: Array, masses: Array, positions: Array | None, removed_motion: RemovedMotion) -> Array:
    """Return B^T (1 - Pi) B of each frame, see the module's text.

    Args:
        tensors: (n_frames, n_atoms, displacement, n_columns), an APT (3 columns) or a PGT's six columns.
        masses: (n_atoms,) [u].
        positions: (n_frames, n_atoms, 3) [A]; needed only where rotation is removed.
        removed_motion: the motions that Pi projects on.

    Returns:
        (n_frames, n_columns, n_columns) [tensor unit squared / u].
    """
    square = np.einsum("i,tiaf,tiag->tfg", 1.0 / masses, tensors, tensors, optimize=True)
    if removed_motion == "none":
        return square
    drift = tensors.sum(axis=1)
    square = square - np.einsum("taf,tag->tfg", drift, drift) / masses.sum()
    if removed_motion == "translation":
        return square
    if positions is None:
        raise SpectrumError("positions are needed to take the removed rotation out of the equipartition value")
    relative = positions - (np.einsum("i,tia->ta", masses, positions) / masses.sum())[:, None]
    turning = np.cross(relative[..., None], tensors, axisa=2, axisb=2, axisc=2).sum(axis=1)
    inverse = np.linalg.pinv(_inertia(masses, relative), rcond=1e-8, hermitian=True)
    return square - np.einsum("taf,tab,tbg->tfg", turning, inverse, turning)


class DerivativeAccumulator:
    """Contracts chunks of tensors with velocities and keeps the running sums that the gates need.

    Args:
        masses: (n_atoms,) [u].
        removed_motion: rigid motions that the velocities lack; None finds out from the first chunk.
        is_periodic: see :func:`find_removed_motion`.
        groups: (n_atoms,) group index of each atom, what tells them frame by frame, or None for one group.
        n_groups: number of groups.
    """

    def __init__(
        self,
        masses: Array,
        removed_motion: RemovedMotion | None = None,
        is_periodic: bool = False,
        groups: Array | GroupFollower | None = None,
        n_groups: int = 1,
    ) -> None:
        self.masses = np.asarray(masses, dtype=float)
        self.removed_motion = removed_motion
        self.is_periodic = is_periodic
        self.groups: Array | None = None
        self.follower: GroupFollower | None = None
        if groups is None or isinstance(groups, np.ndarray | list | tuple):
            self.groups = None if groups is None else np.asarray(groups)
        else:
            self.follower = groups
        self.n_groups = n_groups
        self._correlator: RelatedCorrelator | None = None
        self._counts = np.zeros(n_groups)
        self._widths: tuple[int, int] = (0, 0)
        self.degrees_of_freedom: int | None = None
        self._temperature_sum = 0.0
        self._n_frames = 0
        self._sums: dict[str, Array] = {}

    def add(
        self, velocities: Array, positions: Array, apt: Array | None = None, pgt: Array | None = None
    ) -> tuple[Array | None, Array | None, Array]:
        """Contract one chunk; shapes as in :func:`contract`, positions (n_frames, n_atoms, 3) [A].

        Returns:
            dipole derivative, polarizability derivative (as :func:`contract`) and temperature (n_frames,) [K].
        """
        expected = (len(velocities), len(self.masses), 3)
        _require_shape("velocities", velocities, expected)
        _require_shape("positions", positions, expected)
        if self.removed_motion is None:
            self.removed_motion = find_removed_motion(self.masses, positions, velocities, self.is_periodic)
        if self.degrees_of_freedom is None:
            self.degrees_of_freedom = count_degrees_of_freedom(
                len(self.masses), self.removed_motion, is_linear(self.masses, positions[0])
            )
            if self.degrees_of_freedom < 1:
                raise SpectrumError("no degree of freedom is left once rigid motions are removed")
        if self.follower is None:
            dipole, polarizability = contract(apt, pgt, velocities, self.groups, self.n_groups)
        else:
            dipole, polarizability = self._follow(self.follower, velocities, positions, apt, pgt)
        temperature = kinetic_temperature(self.masses, velocities, self.degrees_of_freedom)
        self._temperature_sum += float(temperature.sum())
        self._n_frames += len(temperature)
        for name, tensors in (("apt", apt), ("pgt", None if pgt is None else _six_columns(pgt))):
            if tensors is None:
                continue
            square = projected_square(tensors, self.masses, positions, self.removed_motion)
            self._sums[name] = self._sums.get(name, 0.0) + np.einsum("t,tfg->fg", temperature, square)
        return dipole, polarizability, temperature

    def _follow(
        self, follower: GroupFollower, velocities: Array, positions: Array, apt: Array | None, pgt: Array | None
    ) -> tuple[Array | None, Array | None]:
        """Contract a chunk into groups that change, and correlate by relation."""
        atoms = contract_atoms(apt, pgt, velocities)
        member, pairs = follower.follow(positions)
        self._counts += np.bincount(member.ravel(), minlength=self.n_groups)
        if follower.relations:
            present = [parts for parts in atoms if parts is not None]
            if self._correlator is None:
                self._widths = tuple(0 if p is None else p.shape[2] for p in atoms)  # type: ignore[assignment]
                self._correlator = RelatedCorrelator(
                    follower.max_lag,
                    n_groups=self.n_groups,
                    n_relations=len(follower.relations),
                    n_units=follower.n_units,
                    blocks=tuple(w for w in self._widths if w),
                )
            self._correlator.add(np.concatenate(present, axis=2), member, pairs)
        dipole, polarizability = (None if p is None else sum_groups(p, member, self.n_groups) for p in atoms)
        return dipole, polarizability

    def related(self) -> RelatedSums | None:
        """Return the correlations by relation so far, or None."""
        if self._correlator is None or self.follower is None:
            return None
        names = self.follower.names
        parts = tuple(
            (names[a], names[b], relation)
            for relation in self.follower.relations
            for a, b in itertools.combinations_with_replacement(range(len(names)), 2)
        )
        sums = iter(self._correlator.sums(tuple(PAIRS_OF[w] for w in self._widths if w)))
        return RelatedSums(parts, *(next(sums) if width else None for width in self._widths))

    @property
    def occupancies(self) -> Array | None:
        """(n_groups,) mean number of atoms in each group so far; None without groups."""
        if self.follower is not None:
            return self._counts / max(1, self._n_frames)
        return None if self.groups is None else np.bincount(self.groups, minlength=self.n_groups).astype(float)

    @property
    def temperature(self) -> float:
        """Mean kinetic temperature so far [K]."""
        return self._temperature_sum / self._n_frames if self._n_frames else float("nan")

    @property
    def apt_square(self) -> Array | None:
        """(3, 3) temperature-weighted mean [e^2/u]."""
        return self._sums["apt"] / self._temperature_sum if "apt" in self._sums else None

    @property
    def pgt_square(self) -> Array | None:
        """(6, 6) temperature-weighted mean [(e^2 a0/E_h)^2/u]."""
        return self._sums["pgt"] / self._temperature_sum if "pgt" in self._sums else None


def is_linear(masses: Array, positions: Array) -> bool:
    """Tell whether one frame's atoms (n_atoms, 3) lie on a line."""
    if len(masses) < 3:
        return True
    relative = positions - masses @ positions / masses.sum()
    moments = np.linalg.eigvalsh(_inertia(masses, relative[None])[0])
    return bool(moments[0] < 1e-6 * moments[2])


def derivative_series(
    velocities: Array,
    positions: Array,
    masses: Array,
    timestep: float,
    *,
    apt: Array | None = None,
    pgt: Array | None = None,
    name: str = "",
    volume: float | None = None,
    is_periodic: bool = False,
    removed_motion: RemovedMotion | None = None,
    groups: Array | GroupFollower | None = None,
    group_names: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> DerivativeSeries:
    """Contract a whole run held in memory; arguments as in :func:`contract` and :class:`DerivativeAccumulator`."""
    group_names = _names_of(groups, group_names)
    sums = DerivativeAccumulator(masses, removed_motion, is_periodic, groups, len(group_names))
    dipole, polarizability, temperature = sums.add(velocities, positions, apt, pgt)
    assert sums.removed_motion is not None
    return DerivativeSeries(
        name=name,
        timestep=timestep,
        temperature=sums.temperature,
        dipole_derivative=dipole,
        polarizability_derivative=polarizability,
        group_names=tuple(group_names),
        volume=volume,
        apt_square=sums.apt_square,
        pgt_square=sums.pgt_square,
        removed_motion=sums.removed_motion,
        degrees_of_freedom=sums.degrees_of_freedom,
        is_periodic=is_periodic,
        kinetic_temperature=temperature,
        metadata=dict(metadata or {}),
        related=sums.related(),
        occupancies=sums.occupancies,
    )


def _names_of(groups: Any, names: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(names if names is not None else getattr(groups, "names", ("all",)))


class DerivativeWriter:
    """Writes a derivatives file (HDF5) chunk by chunk; use it as a context manager.

    The file appears under its name only when the block ends without an error, so a run cut off leaves no half file.
    With a fingerprint it leaves ``<path>.part`` and ``<path>.part.state`` as they were at the last
    :meth:`checkpoint`, from which a writer with the same fingerprint goes on.

    Attributes:
        n_frames: frames that are written, those of an earlier run included.
        resumed: what the last checkpoint of that run was given; None at a fresh start.
        restart_note: what was found of an earlier run, empty if there was nothing.

    Args:
        path: file to write.
        name: the run's name.
        timestep: [fs].
        masses: (n_atoms,) [u].
        volume: [A^3], or None.
        is_periodic: whether volume is that of a cell.
        removed_motion: rigid motions that the velocities lack; None finds out from the first chunk.
        groups: (n_atoms,) group index of each atom, what tells them frame by frame, or None.
        group_names: names of the groups; those of the groups without them.
        metadata: JSON-able.
        fingerprint: of all inputs; None to start afresh and leave nothing behind.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str,
        timestep: float,
        masses: Array,
        volume: float | None = None,
        is_periodic: bool = False,
        removed_motion: RemovedMotion | None = None,
        groups: Array | GroupFollower | None = None,
        group_names: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.name = name
        self.timestep = timestep
        self.volume = volume
        self.is_periodic = is_periodic
        self.group_names = _names_of(groups, group_names)
        self.metadata = dict(metadata or {})
        self.sums = DerivativeAccumulator(masses, removed_motion, is_periodic, groups, len(self.group_names))
        self.n_frames = 0
        self.resumed: Any = None
        self.restart_note = ""
        self._fingerprint = fingerprint
        self._part = self.path.with_name(self.path.name + ".part")
        self._state = self.path.with_name(self.path.name + ".part.state")
        self._file: h5py.File | None = None

    def __enter__(self) -> Self:
        if self._fingerprint is None or not self._resume(self._fingerprint):
            self._state.unlink(missing_ok=True)
            self._file = h5py.File(self._part, "w")
        return self

    def _resume(self, fingerprint: str) -> bool:
        """Take up what an earlier run with the same inputs left; tell whether there was something."""
        if not self._state.exists():
            return False
        try:
            # Written by checkpoint() into the folder of the results, by the same user.
            found = pickle.loads(self._state.read_bytes())
            if found["fingerprint"] != fingerprint:
                self.restart_note = f"{self._part} belongs to other inputs; started afresh"
                return False
            file = h5py.File(self._part, "r+")
        except (OSError, EOFError, KeyError, pickle.UnpicklingError, AttributeError, ImportError, TypeError) as error:
            self.restart_note = f"{self._part} cannot be gone on with ({type(error).__name__}); started afresh"
            return False
        n_frames = found["n_frames"]
        if any(len(dataset) < n_frames for dataset in file.values()):
            file.close()
            self.restart_note = f"{self._part} holds fewer frames than it should; started afresh"
            return False
        for dataset in file.values():  # what was written after the checkpoint is written again
            dataset.resize(n_frames, axis=0)
        self._file, self.n_frames, self.sums, self.resumed = file, n_frames, found["sums"], found["content"]
        self.restart_note = f"went on from frame {n_frames} of an earlier run"
        return True

    def checkpoint(self, content: Any) -> None:
        """Let a later run with the same fingerprint go on from here.

        Args:
            content: what it will find as ``resumed``; anything that can be pickled.
        """
        assert self._file is not None, "DerivativeWriter is used outside its with block"
        assert self._fingerprint is not None, "a writer without a fingerprint cannot be gone on with"
        self._file.flush()
        state = {
            "fingerprint": self._fingerprint,
            "n_frames": self.n_frames,
            "sums": self.sums,
            "content": content,
        }
        new = self._state.with_name(self._state.name + ".new")
        new.write_bytes(pickle.dumps(state))
        os.replace(new, self._state)

    def append(
        self,
        velocities: Array,
        positions: Array,
        *,
        apt: Array | None = None,
        pgt: Array | None = None,
        members: Mapping[str, Array] | None = None,
    ) -> None:
        """Contract one chunk and append it; arguments as in :meth:`DerivativeAccumulator.add`.

        ``members`` are contracted already, by target: (n_frames, n_members, 3) [e A/fs] under ``apt`` and
        (n_frames, n_members, 6) [e^2 a0^2/(E_h fs)] under ``pgt``.
        """
        dipole, polarizability, temperature = self.sums.add(velocities, positions, apt, pgt)
        self._extend("dipole_derivative", dipole)
        self._extend("polarizability_derivative", polarizability)
        for target, key in _MEMBER_KEYS.items():
            if members is not None and target in members:
                # single precision: they make error bars only
                self._extend(key, members[target].astype(np.float32))
        self._extend("kinetic_temperature", temperature)
        self.n_frames += len(temperature)

    def _extend(self, key: str, rows: Array | None) -> None:
        assert self._file is not None, "DerivativeWriter is used outside its with block"
        if rows is None:
            return
        if not np.isfinite(rows).all():
            raise SpectrumError(f"{self.name}: {key} is not finite; check tensors and velocities")
        if key not in self._file:
            dataset = self._file.create_dataset(
                key, data=rows, maxshape=(None, *rows.shape[1:]), chunks=(4096, *rows.shape[1:])
            )
            dataset.attrs["unit"] = UNITS[key]
            return
        dataset = self._file[key]
        dataset.resize(len(dataset) + len(rows), axis=0)
        dataset[-len(rows) :] = rows

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            if kind is None:
                if "kinetic_temperature" not in self._file:
                    raise SpectrumError(f"{self.name}: no frames were written to {self.path}")
                assert self.sums.removed_motion is not None
                _write_header(
                    self._file,
                    name=self.name,
                    timestep=self.timestep,
                    temperature=self.sums.temperature,
                    group_names=self.group_names,
                    volume=self.volume,
                    apt_square=self.sums.apt_square,
                    pgt_square=self.sums.pgt_square,
                    removed_motion=self.sums.removed_motion,
                    degrees_of_freedom=self.sums.degrees_of_freedom,
                    is_periodic=self.is_periodic,
                    metadata=self.metadata,
                    related=self.sums.related(),
                    occupancies=self.sums.occupancies,
                )
        finally:
            is_complete = "format" in self._file.attrs
            self._file.close()
            if is_complete:
                os.replace(self._part, self.path)
                self._state.unlink(missing_ok=True)
            elif not self._state.exists():
                self._part.unlink()


def _write_header(
    file: h5py.File,
    *,
    name: str,
    timestep: float,
    temperature: float,
    group_names: Sequence[str],
    volume: float | None,
    apt_square: Array | None,
    pgt_square: Array | None,
    removed_motion: RemovedMotion,
    degrees_of_freedom: int | None,
    is_periodic: bool,
    metadata: Mapping[str, Any],
    origin: Origin = "velocities",
    related: RelatedSums | None = None,
    occupancies: Array | None = None,
) -> None:
    for key, square in (("apt_square", apt_square), ("pgt_square", pgt_square)):
        if square is not None:
            file.create_dataset(key, data=square).attrs["unit"] = UNITS[key]
    file.attrs["name"] = name
    for key, value in (("timestep", timestep), ("temperature", temperature), ("volume", volume)):
        if value is not None:
            file.attrs[key] = value
            file.attrs[f"{key}_unit"] = UNITS[key]
    file.attrs["group_names"] = json.dumps(list(group_names))
    file.attrs["removed_motion"] = removed_motion
    if degrees_of_freedom is not None:
        file.attrs["degrees_of_freedom"] = degrees_of_freedom
    file.attrs["is_periodic"] = is_periodic
    file.attrs["polarizability_order"] = " ".join(PAIR_NAMES)
    file.attrs["metadata"] = json.dumps(dict(metadata))
    file.attrs["origin"] = origin
    if occupancies is not None:
        file.attrs["occupancies"] = occupancies
    if related is not None:
        file.attrs["related_parts"] = json.dumps([list(part) for part in related.parts])
        for key, sums in (("related_dipole", related.dipole), ("related_polarizability", related.polarizability)):
            if sums is not None:
                file.create_dataset(key, data=sums).attrs["unit"] = UNITS[key]
    file.attrs["format"] = FORMAT


def write_derivatives(path: str | Path, series: DerivativeSeries) -> None:
    """Write one run's series to an HDF5 file with units; see :class:`DerivativeWriter` for writing in chunks."""
    part = Path(path).with_name(Path(path).name + ".part")
    with h5py.File(part, "w") as file:
        for key in ("dipole_derivative", "polarizability_derivative", "kinetic_temperature"):
            values = getattr(series, key)
            if values is not None:
                file.create_dataset(key, data=values).attrs["unit"] = UNITS[key]
        if series.members is not None:
            for key, values in zip(_MEMBER_KEYS.values(), (series.members.dipole, series.members.polarizability)):
                if values is not None:
                    frames_first = values.swapaxes(0, 1).astype(np.float32)
                    file.create_dataset(key, data=frames_first).attrs["unit"] = UNITS[key]
        _write_header(
            file,
            name=series.name,
            timestep=series.timestep,
            temperature=series.temperature,
            group_names=series.group_names,
            volume=series.volume,
            apt_square=series.apt_square,
            pgt_square=series.pgt_square,
            removed_motion=series.removed_motion,
            degrees_of_freedom=series.degrees_of_freedom,
            is_periodic=series.is_periodic,
            metadata=series.metadata,
            origin=series.origin,
            related=series.related,
            occupancies=series.occupancies,
        )
    os.replace(part, path)


@contextmanager
def _opened(path: str | Path) -> Iterator[h5py.File]:
    """Open a file to read; what HDF5 says of a damaged one becomes a line with the name of the file."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        if error.errno is not None:  # the file system's reason, such as missing rights or a lock
            raise SpectrumError(f"{path} cannot be read: {os.strerror(error.errno)}") from None
        raise SpectrumError(
            f"{path} is truncated or damaged, perhaps by a full disk or a copy that was cut off; make it again "
            f"(HDF5: {error})"
        ) from None


def is_derivatives_file(path: str | Path) -> bool:
    """Tell whether a file is one of ours, without reading its series.

    Raises:
        SpectrumError: it is HDF5, but truncated or damaged.
    """
    if not Path(path).is_file() or not h5py.is_hdf5(path):
        return False
    with _opened(path) as file:
        return str(file.attrs.get("format", "")).startswith("mimyria_wf derivatives")


def read_derivatives(path: str | Path) -> DerivativeSeries:
    """Read a derivatives file.

    Raises:
        SpectrumError: the file is missing, not a derivatives file, or of another unit or format.
    """
    if Path(path).is_dir():
        raise SpectrumError(f"{path} is a folder; give its files, {path}/*.h5")
    if not Path(path).is_file():
        raise SpectrumError(f"{path}: no such file")
    if not is_derivatives_file(path):
        raise SpectrumError(f"{path} is not a derivatives file; make one with `mimyria-wf predict`")
    with _opened(path) as file:
        if file.attrs["format"] != FORMAT:
            raise SpectrumError(f"{path}: format {file.attrs['format']!r}, this version reads {FORMAT!r}")
        arrays: dict[str, Array | None] = {}
        for key in (
            "dipole_derivative",
            "polarizability_derivative",
            "kinetic_temperature",
            "apt_square",
            "pgt_square",
            "related_dipole",
            "related_polarizability",
            *_MEMBER_KEYS.values(),
        ):
            arrays[key] = np.asarray(file[key], dtype=float) if key in file else None
            if key in file and file[key].attrs.get("unit") != UNITS[key]:
                raise SpectrumError(f"{path}: {key} is in {file[key].attrs.get('unit')!r}, expected {UNITS[key]!r}")
        attributes = dict(file.attrs)
    degrees = attributes.get("degrees_of_freedom")
    dipole, polarizability = arrays.pop("related_dipole"), arrays.pop("related_polarizability")
    related = None
    if "related_parts" in attributes:
        parts = tuple((str(a), str(b), str(relation)) for a, b, relation in json.loads(attributes["related_parts"]))
        related = RelatedSums(parts, dipole, polarizability)
    in_file = [arrays.pop(key) for key in _MEMBER_KEYS.values()]
    members = None
    if any(values is not None for values in in_file):
        members = Members(*(None if values is None else values.swapaxes(0, 1) for values in in_file))
    return DerivativeSeries(
        name=str(attributes["name"]),
        timestep=float(attributes["timestep"]),
        temperature=float(attributes["temperature"]),
        group_names=tuple(json.loads(attributes["group_names"])),
        volume=float(attributes["volume"]) if "volume" in attributes else None,
        removed_motion=attributes["removed_motion"],
        degrees_of_freedom=None if degrees is None else int(degrees),
        is_periodic=bool(attributes["is_periodic"]),
        metadata=json.loads(attributes["metadata"]),
        origin=attributes.get("origin", "velocities"),
        related=related,
        occupancies=np.asarray(attributes["occupancies"], dtype=float) if "occupancies" in attributes else None,
        members=members,
        **arrays,
    )


def require_same_committee(first: tuple[str, Mapping[str, Any]], *others: tuple[str, Mapping[str, Any]]) -> None:
    """Refuse runs, each given by name and metadata, whose members are not the same networks.

    Raises:
        SpectrumError: names the first two that differ.
    """
    for name, metadata in others:
        if metadata.get("committee") != first[1].get("committee"):
            raise SpectrumError(
                f"{first[0]} and {name} were predicted with different committees; predict all runs with the same "
                "models, number of members and seed"
            )


_GROUP_KEYS = ("groups", "relations", "units", "every", "connectivity")


def require_same_groups(first: tuple[str, Mapping[str, Any]], second: tuple[str, Mapping[str, Any]]) -> None:
    """Refuse two runs, each given by name and metadata, of which groups of the same name mean different atoms.

    Raises:
        SpectrumError: names the first difference. Runs without a record of their groups are not judged.
    """
    name, other = first[0], second[0]
    mine, theirs = first[1].get("groups"), second[1].get("groups")
    if not isinstance(mine, Mapping) or not isinstance(theirs, Mapping):
        return
    for key in _GROUP_KEYS:
        difference = _first_difference(key, mine.get(key), theirs.get(key))
        if difference is not None:
            where, one, two = difference
            raise SpectrumError(
                f"{other} and {name} have different groups: {where} is {_short(two)} in {other} and {_short(one)} in "
                f"{name}; resolve the groups once for all runs (mimyria-wf groups ... -o resolved.yaml) and predict "
                "all with that file"
            )


def _first_difference(where: str, one: Any, two: Any) -> tuple[str, Any, Any] | None:
    """Return where two records first differ, and both values there; None if they do not."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in (*one, *(key for key in two if key not in one)):
            found = _first_difference(f"{where}.{key}", one.get(key), two.get(key))
            if found is not None:
                return found
        # an atom belongs to the first group that holds
        return None if list(one) == list(two) or where != "groups" else (f"the order of {where}", list(one), list(two))
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        for k, (a, b) in enumerate(zip(one, two, strict=True)):
            found = _first_difference(f"{where}[{k}]", a, b)
            if found is not None:
                return found
        return None
    return None if one == two else (where, one, two)


def _short(value: Any) -> str:
    text = "not given" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def join_derivatives(parts: Sequence[DerivativeSeries], name: str | None = None) -> DerivativeSeries:
    """Join consecutive stretches of one run into one series.

    Temperatures are averaged over frames and squares with the weight frames times temperature, as if the run had been
    contracted in one go. Metadata are those of the first part, up to the end of the last.

    Args:
        parts: in the order of time; the frames of each follow those of the one before.
        name: of the result; that of the first part by default.

    Raises:
        SpectrumError: no parts, or parts that differ in time step, volume, groups, tensors or removed motion.
    """
    if not parts:
        raise SpectrumError("no parts to join")
    first = parts[0]
    for part in parts:
        if part.related is not None:
            raise SpectrumError(
                f"{part.name} holds correlations by relation, which cannot be joined: what is related across the seam "
                "is not in them; join the trajectories, or leave the relations out"
            )
    shared = ("timestep", "volume", "group_names", "removed_motion", "degrees_of_freedom", "is_periodic", "origin")
    for part in parts[1:]:
        for key in shared:
            mine, theirs = getattr(first, key), getattr(part, key)
            if mine != theirs:
                raise SpectrumError(
                    f"parts of a run differ in {key}: {first.name} has {mine}, {part.name} has {theirs}"
                )
        require_same_groups((first.name, first.metadata), (part.name, part.metadata))
    for before, part in itertools.pairwise(parts):
        expected, found = before.metadata.get("stop"), part.metadata.get("start")
        if expected is None or found is None:
            raise SpectrumError(
                f"{(before if expected is None else part).name} does not say which frames of a run it holds: only "
                "parts that were labelled by --start and --stop can be joined"
            )
        if expected != found:
            raise SpectrumError(
                f"{part.name}: its first frame is {found}, expected {expected}: give all parts of a run in order"
            )
    counts = np.array([part.n_frames for part in parts], dtype=float)
    heat = counts * [part.temperature for part in parts]

    def mean(key: str) -> Array | None:
        squares = _of_all(parts, key)
        return None if squares is None else np.einsum("p,pfg->fg", heat / heat.sum(), np.array(squares))

    def series(key: str) -> Array | None:
        pieces = _of_all(parts, key)
        return None if pieces is None else np.concatenate(pieces)

    occupancies = _of_all(parts, "occupancies")
    committees = _of_all(parts, "members")
    if committees is not None:
        require_same_committee((first.name, first.metadata), *((part.name, part.metadata) for part in parts[1:]))
    return DerivativeSeries(
        name=first.name if name is None else name,
        timestep=first.timestep,
        temperature=float(heat.sum() / counts.sum()),
        dipole_derivative=series("dipole_derivative"),
        polarizability_derivative=series("polarizability_derivative"),
        group_names=first.group_names,
        volume=first.volume,
        apt_square=mean("apt_square"),
        pgt_square=mean("pgt_square"),
        removed_motion=first.removed_motion,
        degrees_of_freedom=first.degrees_of_freedom,
        is_periodic=first.is_periodic,
        kinetic_temperature=series("kinetic_temperature"),
        metadata={**first.metadata, **{k: parts[-1].metadata[k] for k in ("stop",) if k in parts[-1].metadata}},
        origin=first.origin,
        occupancies=None if occupancies is None else counts @ np.array(occupancies) / counts.sum(),
        members=None if committees is None else _joined_members(committees),
    )


def _joined_members(parts: Sequence[Members]) -> Members:
    def joined(pieces: list[Array | None]) -> Array | None:
        present = [piece for piece in pieces if piece is not None]
        return np.concatenate(present, axis=1) if present else None

    return Members(joined([part.dipole for part in parts]), joined([part.polarizability for part in parts]))


def _of_all(parts: Sequence[DerivativeSeries], key: str) -> list[Any] | None:
    """Return one array of each part, None if no part has it."""
    found = [getattr(part, key) for part in parts]
    if all(array is None for array in found):
        return None
    for part, array in zip(parts, found):
        if array is None:
            raise SpectrumError(f"{part.name} has no {key}, other parts of the run have one")
    return found


def join_derivative_files(paths: Sequence[str | Path], out: str | Path, name: str | None = None) -> dict[str, Any]:
    """Join files of consecutive stretches into one; see :func:`join_derivatives`.

    Returns:
        name, number of frames, temperature and path of the result.
    """
    joined = join_derivatives([read_derivatives(path) for path in paths], name)
    write_derivatives(out, joined)
    return {"name": joined.name, "n_frames": joined.n_frames, "temperature": joined.temperature, "path": str(out)}
