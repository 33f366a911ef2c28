"""Cross-correlation analysis: IR and Raman spectra of groups of atoms and of pairs of groups, Eqs. 27-32.

A part is an unordered pair of groups, and of these one relation where relations are asked for. A part of two different
groups holds both orders of them, so that the parts sum to the total exactly, for IR and for every lineshape. Cross
terms may be negative and are kept as they are.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimyria_wf.correlation import group_correlations, normalise
from mimyria_wf.derivatives import PAIR_NAMES, PAIRS, DerivativeSeries, require_same_groups
from mimyria_wf.errors import SpectrumError
from mimyria_wf.spectrum import (
    LINESHAPE_NAMES,
    LINESHAPES,
    IrSpectrum,
    RamanKind,
    RamanSpectrum,
    Runs,
    SpectrumSettings,
    bootstrap_error,
    ir_prefactor,
    raman_invariants,
    raman_prefactor,
    transform,
    window_lags,
)

Array = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """One part of a spectrum.

    Attributes:
        first: group.
        second: group; the same as the first for an autocorrelation.
        relation: between the atoms or molecules of the groups; None: any.
    """

    first: str
    second: str
    relation: str | None = None

    @property
    def name(self) -> str:
        """E.g. ``solute x first_shell, hydrogen bonded``; ``solute`` for the part of a group with itself."""
        pair = self.first if self.first == self.second else f"{self.first} x {self.second}"
        return pair if self.relation is None else f"{pair}, {self.relation}"


@dataclass(frozen=True)
class CcaSpectra:
    """Parts of IR and Raman spectra.

    Attributes:
        wavenumber: (n,) [cm^-1].
        parts: (n_parts,) pairs of groups, by relation.
        ir_per_trajectory: (n_trajectories, n_parts, n) parts of n alpha of each run [cm^-1], or None.
        weighted_per_trajectory: "iso" and "vh" of nu^2 I of each run, each (n_trajectories, n_parts, n)
            [e^4 a0^4 E_h^-2 cm^-1], or None.
        weighted_lineshapes: (n_parts, 21, n) mean nu^2 I, order LINESHAPES [e^4 a0^4 E_h^-2 cm^-1], or None.
        ir_tensor: (n_parts, 6, n) mean components of n alpha, order xx yy zz yz xz xy [cm^-1], or None.
        runs: the runs; means are weighted with their numbers of frames.
        settings: as computed.
    """

    wavenumber: Array
    parts: tuple[Part, ...]
    ir_per_trajectory: Array | None
    weighted_per_trajectory: dict[RamanKind, Array] | None
    weighted_lineshapes: Array | None
    ir_tensor: Array | None
    runs: Runs
    settings: SpectrumSettings

    @cached_property
    def ir(self) -> Array:
        """(n_parts, n) mean parts of n alpha [cm^-1]."""
        return self._mean(self._ir)

    @cached_property
    def ir_error(self) -> Array:
        """(n_parts, n) standard errors from the bootstrap over trajectories [cm^-1]; NaN with a single trajectory."""
        return bootstrap_error(self._ir, self.runs, self.settings)

    @cached_property
    def invariants_per_trajectory(self) -> dict[RamanKind, Array]:
        """Parts of the invariants iso, aniso, vv, vh of nu^2 I of each run, each (n_trajectories, n_parts, n)."""
        if self.weighted_per_trajectory is None:
            raise SpectrumError("no polarizability derivatives, so no Raman spectra of parts")
        iso, vh = self.weighted_per_trajectory["iso"], self.weighted_per_trajectory["vh"]
        return {"iso": iso, "aniso": 15 * vh, "vv": iso + 4 / 3 * vh, "vh": vh}

    @cached_property
    def weighted(self) -> dict[RamanKind, Array]:
        """Parts of iso, aniso, vv, vh of nu^2 I, each (n_parts, n) [e^4 a0^4 E_h^-2 cm^-1]."""
        return {kind: self._mean(values) for kind, values in self.invariants_per_trajectory.items()}

    @cached_property
    def weighted_errors(self) -> dict[RamanKind, Array]:
        """Standard errors of :attr:`weighted`."""
        return {
            kind: bootstrap_error(values, self.runs, self.settings)
            for kind, values in self.invariants_per_trajectory.items()
        }

    @property
    def _ir(self) -> Array:
        if self.ir_per_trajectory is None:
            raise SpectrumError("no dipole derivatives, so no IR spectra of parts")
        return self.ir_per_trajectory

    def _mean(self, per_trajectory: Array) -> Array:
        return np.einsum("t,tpn->pn", self.runs.weights, per_trajectory)


def cca_spectra(series: Iterable[DerivativeSeries], settings: SpectrumSettings | None = None) -> CcaSpectra | None:
    """Return the parts of the spectra of several runs.

    Temperatures, volumes and lengths enter as in :func:`mimyria_wf.spectrum.ir_spectrum`. Groups are matched by name;
    one that a run does not have is empty there, and one that is empty in all runs is left out. Where the series hold
    correlations by relation, parts are by relation too.

    Args:
        series: the runs; an iterator is read one run at a time.
        settings: window, grid, corrections, bootstrap.

    Returns:
        None if all runs have one group and no relations.

    Raises:
        SpectrumError: runs of which some have groups or relations and others have not, a run that is shorter than the
            window or has another time step, relations that were correlated over less than the window.
    """
    settings = settings or SpectrumSettings()
    collected = _Collected(settings)
    alone: str | None = None
    for run in series:
        if len(run.group_names) == 1 and run.related is None:
            if collected.runs:
                raise _no_groups(run.name, collected.runs[0].name, collected.runs[0].group_names)
            alone = alone or run.name
        elif alone is not None:
            raise _no_groups(alone, run.name, run.group_names)
        else:
            collected.add(run)
    return collected.result() if collected.runs else None


def _no_groups(name: str, other: str, groups: Sequence[str]) -> SpectrumError:
    return SpectrumError(
        f"{name} has no groups, {other} has {', '.join(groups)}; predict all runs with the same groups"
    )


@dataclass(frozen=True)
class _Run:
    """What is kept of a run: its facts and the spectra of its parts."""

    name: str
    group_names: tuple[str, ...]
    n_frames: int
    timestep: float
    temperature: float
    origin: str
    relations: tuple[str, ...]
    is_ir: bool
    is_raman: bool
    metadata: Mapping[str, Any]


@dataclass
class _Collected:
    """Correlates the parts of run after run.

    Of each run only what errors are made of is transformed, IR, iso and VH of each part. The components are wanted for
    the mean alone, and are added up as correlations, by whether they carry the correction of differences.
    """

    settings: SpectrumSettings
    runs: list[_Run] = field(default_factory=list)
    wavenumber: Array | None = None
    ir: list[dict[Part, Array]] = field(default_factory=list)
    iso: list[dict[Part, Array]] = field(default_factory=list)
    vh: list[dict[Part, Array]] = field(default_factory=list)
    tensor_sums: dict[tuple[Part, bool], Array] = field(default_factory=dict)
    lineshape_sums: dict[tuple[Part, bool], Array] = field(default_factory=dict)
    occupied: set[str] = field(default_factory=set)
    group_order: list[str] = field(default_factory=list)

    def add(self, run: DerivativeSeries) -> None:
        max_lag = self._max_lag(run)
        kept = _Run(
            name=run.name,
            group_names=run.group_names,
            n_frames=run.n_frames,
            timestep=run.timestep,
            temperature=run.temperature,
            origin=run.origin,
            relations=() if run.related is None else tuple(dict.fromkeys(r for _, _, r in run.related.parts)),
            is_ir=run.dipole_derivative is not None,
            is_raman=run.polarizability_derivative is not None,
            metadata=run.metadata,
        )
        self._check(kept)
        self.runs.append(kept)
        for k, name in enumerate(run.group_names):
            if name not in self.group_order:
                self.group_order.append(name)
            if run.occupancies is None or run.occupancies[k] > 0:
                self.occupied.add(name)
        parts = self._parts(run)
        is_difference = run.origin == "differences"
        if run.dipole_derivative is not None:
            if run.volume is None:
                raise SpectrumError(
                    f"{run.name}: n alpha needs a volume; give the cell or, for a cluster, --volume [A^3]"
                )
            factor = 3 * ir_prefactor(self.settings.temperature or run.temperature, run.volume)
            related = None if run.related is None else run.related.dipole
            found = self._correlations(run, run.dipole_derivative, related, PAIRS, max_lag)
            found *= factor
            self.ir.append(dict(zip(parts, self._transform(found[:, :3].mean(axis=1), is_difference), strict=True)))
            found *= run.n_frames
            for part, tensor in zip(parts, found, strict=True):
                _accumulate(self.tensor_sums, (part, is_difference), tensor)
        if run.polarizability_derivative is not None:
            related = None if run.related is None else run.related.polarizability
            found = self._correlations(run, run.polarizability_derivative, related, LINESHAPES, max_lag)
            found *= raman_prefactor()
            invariants = raman_invariants(found)
            both = self._transform(np.array([invariants["iso"], invariants["vh"]]), is_difference)
            for kept_of_run, spectra in zip((self.iso, self.vh), both, strict=True):
                kept_of_run.append(dict(zip(parts, spectra, strict=True)))
            found *= run.n_frames
            for part, lineshapes in zip(parts, found, strict=True):
                _accumulate(self.lineshape_sums, (part, is_difference), lineshapes)

    def _parts(self, run: DerivativeSeries) -> list[Part]:
        """Return the parts of a run in the order of its correlations; the order of two groups is that of all runs."""
        if run.related is not None:
            found: list[tuple[str, str, str | None]] = list(run.related.parts)
        else:
            found = [(a, b, None) for a, b in itertools.combinations_with_replacement(run.group_names, 2)]
        rank = self.group_order.index
        return [Part(*((a, b) if rank(a) <= rank(b) else (b, a)), relation) for a, b, relation in found]

    def _max_lag(self, run: DerivativeSeries) -> int:
        first = (self.runs[0].name, self.runs[0].timestep) if self.runs else None
        max_lag = window_lags(run.name, run.timestep, run.n_frames, self.settings, first)
        if run.related is None:
            return max_lag
        if run.related.max_lag < max_lag:
            raise SpectrumError(
                f"{run.name}: relations were correlated over {run.related.max_lag * run.timestep:g} fs, less than the "
                f"window of {self.settings.window_length:g} fs; predict with a larger --max-lag-fs or use a shorter "
                "window (--window-fs)"
            )
        if self.settings.subtract_mean:
            raise SpectrumError(
                f"{run.name}: the mean cannot be subtracted from parts by relation, which are kept as correlations"
            )
        return max_lag

    def _check(self, run: _Run) -> None:
        if not self.runs:
            return
        first = self.runs[0]
        if run.relations != first.relations:
            raise SpectrumError(
                f"{run.name} has the relations {', '.join(run.relations) or 'none'}, {first.name} has "
                f"{', '.join(first.relations) or 'none'}; predict all runs with the same relations"
            )
        require_same_groups((first.name, first.metadata), (run.name, run.metadata))
        if (run.is_ir, run.is_raman) != (first.is_ir, first.is_raman):
            raise SpectrumError(
                f"{run.name} and {first.name} do not have the same derivatives; predict all runs with the same models"
            )

    def _correlations(
        self,
        run: DerivativeSeries,
        columns: Array,
        related: Array | None,
        pairs: Sequence[tuple[int, int]],
        max_lag: int,
    ) -> Array:
        """Return the correlations of each part, (n_parts, n_pairs, n_lags)."""
        if run.related is not None:
            if related is None:
                raise SpectrumError(f"{run.name}: the correlations by relation lack a tensor that the series has")
            sums = related[:, : max_lag + 1].transpose(1, 0, 2)
            return normalise(sums, run.n_frames, self.settings.estimator).transpose(1, 2, 0)
        if self.settings.subtract_mean:
            columns = columns - columns.mean(axis=0)
        return group_correlations(columns, pairs, max_lag, self.settings.estimator)

    def _transform(self, correlations: Array, is_difference: bool) -> Array:
        """Return the spectra (..., n) of correlations (..., n_lags)."""
        self.wavenumber, spectra, _ = transform(
            correlations.reshape(-1, correlations.shape[-1]).T,
            self.runs[0].timestep,
            self.settings,
            is_difference=is_difference,
        )
        return spectra.reshape(*correlations.shape[:-1], -1)

    def result(self) -> CcaSpectra:
        assert self.wavenumber is not None
        names = [name for name in self.group_order if name in self.occupied]
        pairs = list(itertools.combinations_with_replacement(names, 2))
        relations: tuple[str | None, ...] = self.runs[0].relations or (None,)
        parts = tuple(Part(a, b, relation) for relation in relations for a, b in pairs)
        zeros = np.zeros(len(self.wavenumber))
        n_frames = np.array([run.n_frames for run in self.runs])

        def per_trajectory(found: list[dict[Part, Array]]) -> Array | None:
            return np.array([[one.get(part, zeros) for part in parts] for one in found]) if found else None

        def mean(sums: dict[tuple[Part, bool], Array], width: int) -> Array | None:
            if not sums:
                return None
            total = np.zeros((len(parts), width, len(zeros)))
            for is_difference in sorted({kind for _, kind in sums}):
                for k, part in enumerate(parts):
                    if (part, is_difference) in sums:
                        total[k] += self._transform(sums[part, is_difference] / n_frames.sum(), is_difference)
            return total

        iso, vh = per_trajectory(self.iso), per_trajectory(self.vh)
        return CcaSpectra(
            wavenumber=self.wavenumber,
            parts=parts,
            ir_per_trajectory=per_trajectory(self.ir),
            weighted_per_trajectory=None if iso is None or vh is None else {"iso": iso, "vh": vh},
            weighted_lineshapes=mean(self.lineshape_sums, len(LINESHAPES)),
            ir_tensor=mean(self.tensor_sums, len(PAIRS)),
            runs=Runs(
                tuple(run.name for run in self.runs),
                n_frames,
                self.runs[0].timestep,
                np.array([run.temperature for run in self.runs]),
                tuple(run.origin for run in self.runs),
            ),
            settings=self.settings,
        )


def _accumulate(sums: dict[tuple[Part, bool], Array], key: tuple[Part, bool], values: Array) -> None:
    """Add to what is there, in place; the values are kept and must not be written to afterwards."""
    if key in sums:
        sums[key] += values
    else:
        sums[key] = values


def additivity(cca: CcaSpectra, ir: IrSpectrum | None, raman: RamanSpectrum | None) -> dict[str, float]:
    """Return by how much the sums of all parts miss the spectra of the total.

    Args:
        cca: the parts.
        ir: IR spectrum of the same runs and settings, or None.
        raman: Raman lineshapes of the same runs and settings, or None.

    Returns:
        largest |sum of parts - total| over largest |total|: ``ir``, its six components ``ir_xx`` ..., the invariants
        ``raman_iso`` and ``raman_vh``, and each of the 21 lineshapes, ``raman_xxxx`` ... A component is measured by the
        largest of all components of its kind where it vanishes by symmetry.
    """
    found: dict[str, float] = {}
    if ir is not None and cca.ir_per_trajectory is not None and cca.ir_tensor is not None:
        _require_one_axis(cca, ir)
        found["ir"] = _missing(cca.ir.sum(axis=0), ir.n_alpha)
        found |= _missing_rows("ir", PAIR_NAMES, cca.ir_tensor.sum(axis=0), ir.tensor)
    if raman is not None and cca.weighted_per_trajectory is not None and cca.weighted_lineshapes is not None:
        _require_one_axis(cca, raman)
        kinds: tuple[RamanKind, ...] = ("iso", "vh")
        for kind in kinds:
            found[f"raman_{kind}"] = _missing(cca.weighted[kind].sum(axis=0), raman.weighted[kind])
        found |= _missing_rows("raman", LINESHAPE_NAMES, cca.weighted_lineshapes.sum(axis=0), raman.weighted_lineshapes)
    return found


def _require_one_axis(cca: CcaSpectra, total: IrSpectrum | RamanSpectrum) -> None:
    if cca.wavenumber.shape != total.wavenumber.shape or not np.allclose(cca.wavenumber, total.wavenumber, rtol=1e-9):
        raise SpectrumError("parts and total are on different axes; compute them with the same settings and runs")


def _missing(parts: Array, total: Array, scale: float | None = None) -> float:
    largest = float(np.abs(total).max()) if scale is None else scale
    return float(np.abs(parts - total).max()) / largest if largest > 0 else float(np.abs(parts).max())


def _missing_rows(kind: str, names: Sequence[str], parts: Array, total: Array) -> dict[str, float]:
    scales = np.abs(total).max(axis=1)
    # what vanishes by symmetry is round-off, and no measure of itself
    scales = np.where(scales > 1e-6 * scales.max(), scales, scales.max())
    return {f"{kind}_{n}": _missing(p, t, float(s)) for n, p, t, s in zip(names, parts, total, scales, strict=True)}
