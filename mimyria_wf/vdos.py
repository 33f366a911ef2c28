"""Vibrational density of states and power spectra, straight from velocities.

The velocity autocorrelation functions of the atoms are summed over a part p of the system, a species or a group, with
the masses (density of states) and without them (power spectrum):

    ``g_p(nu) = 2 c / (k_B T) S[sum_i m_i v_i(0) . v_i(t)]``        ``Int_0^inf g_p dnu = n_p``
    ``P_p(nu) = 2 c           S[sum_i     v_i(0) . v_i(t)]``        ``Int_0^inf P_p dnu = sum_i <v_i^2>``

with the transform S of :mod:`mimyria_wf.spectrum` and i running over the atoms of p. With each run's own kinetic
temperature, ``k_B T = 2 K / n_dof``, the density of states of all atoms integrates to the number of degrees of freedom
exactly; that of a part to the number that equipartition gives it, ``n_p = sum_i Tr (1 - Pi)_ii``, within its noise. Pi
is the projector on the rigid motions that the velocities lack (:mod:`mimyria_wf.derivatives`): 3 m_i/M of an atom's
three degrees of freedom go with the centre of mass.

Where an atom changes its group, the pair of times belongs half to the group at the earlier and half to that at the
later time, ``1/2 [G_i(0) + G_i(t)] v_i(0) . v_i(t)``; parts sum to the total exactly.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mimyria_wf import plots
from mimyria_wf.correlation import BlockCorrelator, normalise
from mimyria_wf.derivatives import (
    GroupFollower,
    RemovedMotion,
    count_degrees_of_freedom,
    find_removed_motion,
    is_linear,
    kinetic_temperature,
)
from mimyria_wf.errors import SpectrumError
from mimyria_wf.frames import Trajectory, TrajectoryReader
from mimyria_wf.gates import (
    N_STANDARD_ERRORS,
    NUMERICAL_TOLERANCE,
    Gate,
    all_passed,
    energy_fluctuation_gate,
    energy_gate,
    equipartition_gate,
    numerical_gate,
    positivity_gate,
    side_lobes,
)
from mimyria_wf.md_summary import energy_conservation
from mimyria_wf.spectrum import (
    LIGHT,
    Runs,
    SpectrumSettings,
    bootstrap_error,
    observed_axis,
    settings_record,
    transform,
    window_lags,
)
from mimyria_wf.trajectory import check_velocities, open_trajectory
from mimyria_wf.units import AMU_A2_PER_FS2, BOLTZMANN_EV, WAVENUMBER

Array = NDArray[Any]
Progress = Callable[[int, int, str], None]

VDOS_UNIT = "cm"
POWER_UNIT = "A^2 fs^-2 cm"
VDOS_KIND = "classical, degrees of freedom per wavenumber"
POWER_KIND = "classical, mean square velocity per wavenumber, not mass weighted"
_NUMBERS_IN_CHUNK = 3_000_000


FollowerOf = Callable[[TrajectoryReader], GroupFollower]
"""Makes what tells the groups of a trajectory's atoms, frame by frame."""


@dataclass(frozen=True)
class Vdos:
    """Density of states and power spectrum of each part.

    Attributes:
        wavenumber: (n,) [cm^-1].
        names: (n_parts,) names of the parts, species or groups.
        per_trajectory: (n_trajectories, n_parts, n) density of states [cm].
        power_per_trajectory: (n_trajectories, n_parts, n) power spectra [A^2 fs^-2 cm].
        integrals: (n_trajectories, n_parts) of the density of states over the whole axis from 0 up.
        mean_squares: (n_trajectories, n_parts) sum_i m_i <v_i^2> / (k_B T), without any transform.
        shares: (n_trajectories, n_parts) degrees of freedom that equipartition gives a part.
        degrees_of_freedom: (n_trajectories,) of all atoms.
        removed_motion: (n_trajectories,) rigid motions that the velocities lack.
        occupancies: (n_parts,) mean number of atoms.
        runs: the runs; the spectra are their mean, weighted with their numbers of frames.
        settings: as computed.
        correlations: (n_trajectories, n_lags) ``sum_i m_i <v_i(0) . v_i(t)> / (k_B T)`` of all atoms.
    """

    wavenumber: Array
    names: tuple[str, ...]
    per_trajectory: Array
    power_per_trajectory: Array
    integrals: Array
    mean_squares: Array
    shares: Array
    degrees_of_freedom: Array
    removed_motion: tuple[RemovedMotion, ...]
    occupancies: Array
    runs: Runs
    settings: SpectrumSettings
    correlations: Array

    @cached_property
    def parts(self) -> Array:
        """(n_parts, n) density of states of each part [cm]."""
        return np.einsum("t,tpn->pn", self.runs.weights, self.per_trajectory)

    @cached_property
    def total(self) -> Array:
        """(n,) density of states of all atoms [cm]."""
        return np.asarray(self.parts.sum(axis=0))

    @cached_property
    def power(self) -> Array:
        """(n_parts, n) power spectrum of each part [A^2 fs^-2 cm]."""
        return np.einsum("t,tpn->pn", self.runs.weights, self.power_per_trajectory)

    @cached_property
    def errors(self) -> Array:
        """(n_parts, n) standard errors of the parts from the bootstrap over trajectories [cm]; NaN with one."""
        return self._errors(self.per_trajectory)

    @cached_property
    def total_error(self) -> Array:
        """(n,) standard error of the total [cm]."""
        return bootstrap_error(self.per_trajectory.sum(axis=1), self.runs, self.settings)

    @cached_property
    def power_errors(self) -> Array:
        """(n_parts, n) standard errors of the power spectra [A^2 fs^-2 cm]."""
        return self._errors(self.power_per_trajectory)

    @cached_property
    def power_total_error(self) -> Array:
        """(n,) standard error of the power spectrum of all atoms [A^2 fs^-2 cm]."""
        return bootstrap_error(self.power_per_trajectory.sum(axis=1), self.runs, self.settings)

    def _errors(self, per_trajectory: Array) -> Array:
        return np.array([bootstrap_error(one, self.runs, self.settings) for one in per_trajectory.swapaxes(0, 1)])

    @property
    def integral(self) -> float:
        """Integral of the total over the whole axis, the number of degrees of freedom."""
        return float(self.runs.weights @ self.integrals.sum(axis=1))


def vdos(
    readers: Sequence[TrajectoryReader],
    settings: SpectrumSettings | None = None,
    *,
    groups: FollowerOf | None = None,
    progress: Progress | None = None,
) -> Vdos:
    """Return density of states and power spectra of several runs.

    Trajectories are read in chunks: memory grows with the window and the number of atoms, not with their length.

    Args:
        readers: trajectories with velocities, of the same atoms.
        settings: window, grid, temperature, bootstrap. The Verlet correction applies as to every other spectrum.
        groups: makes for each trajectory what tells its groups; relations are left aside. The species without it.
        progress: called with (frames done, frames, message).

    Raises:
        SpectrumError: a run is shorter than the window, or has another time step or other atoms than the first.
        TrajectoryError: no velocities, or values that are not finite.
    """
    settings = settings or SpectrumSettings()
    if not readers:
        raise SpectrumError("no trajectory to compute a density of states from")
    if settings.subtract_mean:
        raise SpectrumError("the mean velocity of an atom is part of its density of states: leave subtract_mean off")
    first = readers[0]
    names = tuple(groups(first).names) if groups is not None else _species_names(first.numbers)
    total = sum(reader.n_frames for reader in readers)
    done = 0
    found = []
    for reader in readers:
        reader.require_velocities()
        max_lag = _max_lag(reader, first, settings)
        sums = _RunSums(reader, max_lag, len(names), None if groups is None else groups(reader))
        for _, chunk in reader.chunks(max(1, _NUMBERS_IN_CHUNK // (3 * reader.n_atoms))):
            sums.add(chunk)
            done += chunk.n_frames
            if progress is not None:
                progress(done, total, f"read {reader.name}")
        found.append(sums.spectra(settings))
    runs = Runs(
        tuple(reader.name for reader in readers),
        np.array([reader.n_frames for reader in readers]),
        first.timestep,
        np.array([one.temperature for one in found]),
    )
    return Vdos(
        wavenumber=found[0].wavenumber,
        names=names,
        per_trajectory=np.array([one.density for one in found]),
        power_per_trajectory=np.array([one.power for one in found]),
        integrals=np.array([one.integrals for one in found]),
        mean_squares=np.array([one.mean_squares for one in found]),
        shares=np.array([one.shares for one in found]),
        degrees_of_freedom=np.array([one.degrees_of_freedom for one in found]),
        removed_motion=tuple(one.removed_motion for one in found),
        occupancies=runs.weights @ np.array([one.occupancies for one in found]),
        runs=runs,
        settings=settings,
        correlations=np.array([one.correlation for one in found]),
    )


def _species_names(numbers: Array) -> tuple[str, ...]:
    return tuple(chemical_symbols[number] for number in np.unique(numbers))


def _max_lag(reader: TrajectoryReader, first: TrajectoryReader, settings: SpectrumSettings) -> int:
    if not np.array_equal(reader.numbers, first.numbers):
        raise SpectrumError(f"{reader.name} and {first.name} hold different atoms and cannot share a density of states")
    agreed = (first.name, first.timestep)
    return window_lags(reader.name, reader.timestep, reader.n_frames, settings, agreed)


@dataclass(frozen=True)
class _RunSpectra:
    """One run's share of :class:`Vdos`; arrays are (n_parts,) or (n_parts, n)."""

    wavenumber: Array
    density: Array
    power: Array
    integrals: Array
    mean_squares: Array
    shares: Array
    occupancies: Array
    temperature: float
    degrees_of_freedom: int
    removed_motion: RemovedMotion
    correlation: Array


@dataclass
class _RunSums:
    """Running sums over the frames of one trajectory: one correlation function for each part and mass."""

    reader: TrajectoryReader
    max_lag: int
    n_parts: int
    follower: GroupFollower | None
    correlators: dict[tuple[int, float], BlockCorrelator] = field(default_factory=dict)
    removed_motion: RemovedMotion | None = None
    degrees_of_freedom: int = 0
    temperature_sum: float = 0.0

    def __post_init__(self) -> None:
        _, self.species = np.unique(self.reader.numbers, return_inverse=True)
        self.masses = np.asarray(self.reader.masses, dtype=float)
        self.squares = np.zeros(self.n_parts)
        self.shares = np.zeros(self.n_parts)
        self.counts = np.zeros(self.n_parts)

    def add(self, chunk: Trajectory) -> None:
        """Take in consecutive frames."""
        velocities, positions = chunk.velocities, chunk.positions
        assert velocities is not None
        if self.removed_motion is None:
            is_periodic = bool(np.all(self.reader.pbc))
            self.removed_motion = find_removed_motion(self.masses, positions, velocities, is_periodic)
            linear = is_linear(self.masses, positions[0])
            self.degrees_of_freedom = count_degrees_of_freedom(len(self.masses), self.removed_motion, linear)
            if self.degrees_of_freedom < 1:
                raise SpectrumError(f"{self.reader.name}: no degree of freedom is left once rigid motions are removed")
        temperatures = kinetic_temperature(self.masses, velocities, self.degrees_of_freedom)
        self.temperature_sum += float(temperatures.sum())
        square = np.einsum("i,tia,tia->ti", self.masses, velocities, velocities)
        share = temperatures[:, None] * _atom_shares(self.masses, positions, self.removed_motion)
        if self.follower is None:
            for part in range(self.n_parts):
                is_member = self.species == part
                self._note(part, square[:, is_member], share[:, is_member], int(is_member.sum()) * len(velocities))
                for mass in np.unique(self.masses[is_member]):
                    self._correlator(part, mass).add(velocities[:, is_member & (self.masses == mass)])
            return
        member, _ = self.follower.follow(positions)
        for part in range(self.n_parts):
            weight = (member == part).astype(float)
            self._note(part, weight * square, weight * share, int(weight.sum()))
            for mass in np.unique(self.masses):
                of_mass = self.masses == mass
                inside = weight[:, of_mass, None] * velocities[:, of_mass]
                outside = velocities[:, of_mass]
                # both orders in time at once: group at the earlier time, group at the later time
                self._correlator(part, mass).add(
                    np.concatenate([inside, outside], axis=1), np.concatenate([outside, inside], axis=1)
                )

    def _note(self, part: int, square: Array, share: Array, count: int) -> None:
        self.squares[part] += square.sum()
        self.shares[part] += share.sum()
        self.counts[part] += count

    def _correlator(self, part: int, mass: float) -> BlockCorrelator:
        key = (part, float(mass))
        if key not in self.correlators:
            self.correlators[key] = BlockCorrelator(self.max_lag, is_paired=True)
        return self.correlators[key]

    def spectra(self, settings: SpectrumSettings) -> _RunSpectra:
        """Transform the correlation functions."""
        assert self.removed_motion is not None
        n_frames, timestep = self.reader.n_frames, self.reader.timestep
        own = self.temperature_sum / n_frames
        thermal = BOLTZMANN_EV * (settings.temperature or own) / AMU_A2_PER_FS2  # k_B T [u A^2/fs^2]
        correlations = np.zeros((2, self.n_parts, self.max_lag + 1))
        halves = 1.0 if self.follower is None else 0.5
        for (part, mass), correlator in self.correlators.items():
            values = halves * normalise(correlator.sums().sum(axis=1), n_frames, settings.estimator)
            correlations[0, part] += mass / thermal * values
            correlations[1, part] += values
        # one by one: their sizes differ by many decades, and a transform's round-off is that of its largest column
        wavenumber, density, integrals = transform(correlations[0].T, timestep, settings)
        _, power, _ = transform(correlations[1].T, timestep, settings)
        return _RunSpectra(
            wavenumber=wavenumber,
            density=2 * LIGHT * density,
            power=2 * LIGHT * power,
            integrals=2 * LIGHT * integrals,
            mean_squares=self.squares / (n_frames * thermal),
            shares=self.shares / self.temperature_sum * (own / (settings.temperature or own)),
            occupancies=self.counts / n_frames,
            temperature=own,
            degrees_of_freedom=self.degrees_of_freedom,
            removed_motion=self.removed_motion,
            correlation=correlations[0].sum(axis=0),
        )


def _atom_shares(masses: Array, positions: Array, removed_motion: RemovedMotion) -> Array:
    """Return Tr (1 - Pi)_ii, the degrees of freedom of each atom once rigid motions are removed.

    Translation takes ``3 m_i/M``, rotation ``m_i Tr [I^-1 (r_i^2 - r_i r_i^T)]`` with r_i from the centre of mass.

    Args:
        masses: (n_atoms,) [u].
        positions: (n_frames, n_atoms, 3) [A].
        removed_motion: what the velocities lack.

    Returns:
        (n_frames, n_atoms).
    """
    shares = np.full(positions.shape[:2], 3.0)
    if removed_motion == "none":
        return shares
    total = masses.sum()
    shares -= 3 * masses / total
    if removed_motion == "translation":
        return shares
    relative = positions - (np.einsum("i,tia->ta", masses, positions) / total)[:, None]
    second = np.einsum("tia,tib->tiab", relative, relative)
    turning = np.einsum("tiaa->ti", second)[..., None, None] * np.eye(3) - second
    inertia = np.einsum("i,tiab->tab", masses, turning)
    inverse = np.linalg.pinv(inertia, rcond=1e-8, hermitian=True)
    return np.asarray(shares - masses * np.einsum("tab,tiba->ti", inverse, turning))


def vdos_gates(found: Vdos) -> list[Gate]:
    """Hold the integrals against the degrees of freedom, of all atoms to 1e-3, of each part within its noise.

    The integral of the total must equal ``sum_i m_i <v_i^2> / (k_B T)``, which at the run's own temperature is the
    number of degrees of freedom; it holds prefactor, window and transform. A given temperature must bring it near that
    number, too. That of a part must equal what equipartition gives it within its error over trajectories
    (:func:`mimyria_wf.gates.equipartition_gate`); a part that is hotter than the rest shows here (a thermostat's flying
    ice cube, masses of another isotope). The total is positive but for the window's side lobes.
    """
    weights = found.runs.weights
    total, squares = found.integrals.sum(axis=1), found.mean_squares.sum(axis=1)
    gates = [numerical_gate("vdos integral", total, squares, weights, "degrees of freedom"), _count_gate(found)]
    if len(found.names) > 1:
        for part, name in enumerate(found.names):
            values, expected = found.mean_squares[:, part], found.shares[:, part]
            gates.append(
                equipartition_gate(f"vdos {name}, equipartition", values, expected, weights, "degrees of freedom")
            )
    allowed = _side_lobes(found)
    gates.append(positivity_gate("vdos positivity", found.total, allowed, float(np.abs(found.total).max()), VDOS_UNIT))
    return gates


def _side_lobes(found: Vdos) -> Array:
    """Return how far the total may fall below zero, (n,) [cm], run by run and over the whole axis of frequencies.

    What lies beyond the axis that is kept, or in another place for the Verlet correction, has its side lobes as well.
    """
    runs, timestep = found.runs, found.runs.timestep
    whole = replace(found.settings, upper_wavenumber=0.5 * WAVENUMBER / timestep, verlet_timestep=None)
    observed, factor = observed_axis(found.wavenumber, timestep, found.settings)
    allowed = np.zeros(len(found.wavenumber))
    for k, correlation in enumerate(found.correlations):
        own = Runs(runs.names[k : k + 1], runs.n_frames[k : k + 1], timestep, runs.temperatures[k : k + 1])
        wavenumber, spectrum, _ = transform(correlation[:, None], timestep, whole)
        bound = side_lobes(wavenumber, 2 * LIGHT * spectrum[0], own, whole)
        allowed += runs.weights[k] * np.interp(observed, wavenumber, bound)
    return allowed * factor


def _count_gate(found: Vdos) -> Gate:
    """Hold the integral of the total against the number of degrees of freedom n itself.

    At the runs' own temperatures it is that number. At a given one it fluctuates with their kinetic energies, by no
    more than canonical momenta do: each run by sqrt(2 n), which is known without any statistics, and the mean over runs
    by ``sqrt(2 n sum_i w_i^2)``. Three times that are allowed, a single run included.
    """
    weights = found.runs.weights
    value = float(weights @ found.integrals.sum(axis=1))
    target = float(weights @ found.degrees_of_freedom)
    tolerance = NUMERICAL_TOLERANCE * target
    if found.settings.temperature is not None:
        tolerance += N_STANDARD_ERRORS * float(np.sqrt(2 * target * np.sum(weights**2)))
    text = f"{value:.6g} against {target:.6g} degrees of freedom, must agree to {tolerance:.3g}"
    passed = bool(abs(value - target) <= tolerance)
    return Gate("vdos degrees of freedom", value, target, tolerance, passed, "degrees of freedom", text)


@dataclass(frozen=True)
class _RunEnergy:
    """What :func:`mimyria_wf.gates.energy_gate` and its like ask of a run."""

    name: str
    timestep: float
    n_frames: int
    temperature: float
    metadata: Mapping[str, Any]


def _energy_gates(found: Vdos, readers: Sequence[TrajectoryReader]) -> list[Gate]:
    runs = [
        _RunEnergy(reader.name, reader.timestep, reader.n_frames, float(temperature), energy_conservation(reader))
        for reader, temperature in zip(readers, found.runs.temperatures, strict=True)
    ]
    return [energy_gate(cast(Any, runs)), energy_fluctuation_gate(cast(Any, runs))]


def vdos_files(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    settings: SpectrumSettings | None = None,
    groups: str | Path = "species",
    timestep: float | None = None,
    cell: Array | None = None,
    draws: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compute density of states and power spectra of trajectory files and write them to a folder.

    Args:
        paths: trajectories with velocities.
        out: folder for ``vdos.csv``, ``power.csv``, ``vdos.png``, ``summary.json``; made if needed.
        settings: window, grid, temperature, Verlet correction, bootstrap.
        groups: ``species``, ``all`` for one part, or a YAML file of groups (:mod:`mimyria_wf.groups`).
        timestep: between frames, where the files do not say [fs].
        cell: where the files do not say [A].
        draws: whether to draw the figure.
        progress: called with (frames done, frames, message).

    Returns:
        The summary, as in ``summary.json``.
    """
    if not paths:
        raise SpectrumError("no trajectories to compute a density of states from")
    settings = settings or SpectrumSettings()
    readers = [open_trajectory(path, timestep=timestep, cell=cell) for path in paths]
    _require_different_names(readers, paths)
    for reader in readers:
        check_velocities(reader)
    found = vdos(readers, settings, groups=_follower_of(groups, readers), progress=progress)
    gates = [*vdos_gates(found), *_energy_gates(found, readers)]
    summary = _summary(found, readers, gates, str(groups))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "vdos.csv": (found.total, found.total_error, found.parts, found.errors),
        "power.csv": (found.power.sum(axis=0), found.power_total_error, found.power, found.power_errors),
    }
    for name, (total, total_error, parts, errors) in tables.items():
        columns = {"wavenumber": found.wavenumber, "total": total, "total_error": total_error}
        for part, values, error in zip(found.names, parts, errors, strict=True):
            columns |= {part: values, f"{part}_error": error}
        np.savetxt(
            folder / name, np.column_stack([*columns.values()]), "%.10g", ",", header=",".join(columns), comments=""
        )
    files = [*tables]
    if draws:
        curves = [plots.Curve(found.wavenumber, found.total, found.total_error, "all atoms")]
        if len(found.names) > 1:
            named = zip(found.names, found.parts, found.errors, strict=True)
            curves += [plots.Curve(found.wavenumber, values, error, name) for name, values, error in named]
        upper = float(found.wavenumber[-1])
        label = r"$g(\tilde\nu)$ / cm"
        files += plots.plot_overlay(
            folder / "vdos.png", curves, label, _caption(summary), upper, warning=_warning(summary)
        )
    files.append("summary.json")
    summary["files"] = files
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


class _OneGroup:
    """All atoms in one part."""

    names: tuple[str, ...] = ("all",)
    relations: tuple[str, ...] = ()
    max_lag = 0
    n_units = 0

    def follow(self, positions: Array) -> tuple[Array, list[tuple[Array, Array, Array]]]:
        return np.zeros(positions.shape[:2], dtype=int), []


def _follower_of(groups: str | Path, readers: Sequence[TrajectoryReader]) -> FollowerOf | None:
    if str(groups) == "species":
        return None
    if str(groups) == "all":
        return lambda reader: _OneGroup()
    from mimyria_wf.groups import read_group_scheme, resolve

    # an atom is correlated with itself alone: relations between two have no part in it
    resolved = resolve(read_group_scheme(Path(groups)).model_copy(update={"relations": []}), readers)
    return lambda reader: resolved.follower(reader)


def _require_different_names(readers: Sequence[TrajectoryReader], paths: Sequence[str | Path]) -> None:
    """Name runs by their files where the names inside are not unique, and refuse the same file twice."""
    resolved = [Path(path).resolve() for path in paths]
    twice = next((path for path in resolved if resolved.count(path) > 1), None)
    if twice is not None:
        raise SpectrumError(f"{twice.name} is given twice; runs must differ to count as independent")
    names = [reader.name for reader in readers]
    for reader, path in zip(readers, paths, strict=True):
        if not reader.name or names.count(reader.name) > 1:
            reader.name = Path(path).stem


def _summary(found: Vdos, readers: Sequence[TrajectoryReader], gates: Sequence[Gate], groups: str) -> dict[str, Any]:
    settings, runs = found.settings, found.runs
    notes = []
    if len(readers) == 1:
        notes.append("one trajectory: errors cannot be estimated and are nan")
    nyquist = 0.5 * WAVENUMBER / runs.timestep
    if nyquist < settings.upper_wavenumber:
        notes.append(
            f"frames every {runs.timestep:g} fs end the axis at {nyquist:.0f} cm^-1, beyond it bands fold back"
        )
    if settings.verlet_timestep is not None:
        notes.append(f"wavenumbers corrected for velocity Verlet with a step of {settings.verlet_timestep:g} fs")
    if any(reader.n_frames * reader.timestep < 4 * settings.window_length for reader in readers):
        notes.append("a run is shorter than four windows: long lags are poorly averaged")
    parts: Mapping[str, Any] = {
        name: {
            "integral": float(runs.weights @ found.integrals[:, part]),
            "degrees_of_freedom": float(runs.weights @ found.shares[:, part]),
            "mean_atoms": float(found.occupancies[part]),
        }
        for part, name in enumerate(found.names)
    }
    return {
        "n_trajectories": len(readers),
        "temperature": float(runs.weights @ runs.temperatures),
        "timestep": runs.timestep,
        "total_time": float(sum(reader.n_frames * reader.timestep for reader in readers)),
        "kind": {"vdos": VDOS_KIND, "power": POWER_KIND},
        "units": {"wavenumber": "cm^-1", "vdos": VDOS_UNIT, "power": POWER_UNIT, "temperature": "K", "time": "fs"},
        "groups": groups,
        "settings": settings_record(settings, found.wavenumber),
        "passed": all_passed(gates),
        "gates": [gate.to_dict() for gate in gates],
        "integral": found.integral,
        "degrees_of_freedom": float(runs.weights @ found.degrees_of_freedom),
        "parts": parts,
        "trajectories": [
            {
                "name": reader.name,
                "n_frames": reader.n_frames,
                "length": reader.n_frames * reader.timestep,
                "temperature": float(temperature),
                "degrees_of_freedom": int(n_free),
                "removed_motion": removed,
            }
            for reader, temperature, n_free, removed in zip(
                readers, runs.temperatures, found.degrees_of_freedom, found.removed_motion, strict=True
            )
        ],
        "notes": notes,
    }


def _caption(summary: Mapping[str, Any]) -> str:
    settings, n = summary["settings"], summary["n_trajectories"]
    band = "bands: one standard error over trajectories" if n > 1 else "no error estimate"
    verlet = settings["verlet_timestep"]
    corrected = "" if verlet is None else f" Corrected for velocity Verlet with {verlet:g} fs."
    return (
        f"Density of states, {VDOS_KIND}. {settings['window'].capitalize()} window of "
        f"{settings['window_length'] / 1000:g} ps ({settings['resolution']:.1f} cm$^{{-1}}$), {settings['estimator']} "
        f"estimator, {n} trajector{'ies' if n > 1 else 'y'}, {summary['total_time'] / 1000:g} ps in all, "
        f"{summary['temperature']:.0f} K, {band}.{corrected}"
    )


def _warning(summary: Mapping[str, Any]) -> str:
    failed = [gate["name"] for gate in summary["gates"] if gate["passed"] is False]
    return f"Gates failed: {', '.join(failed)}" if failed else ""
