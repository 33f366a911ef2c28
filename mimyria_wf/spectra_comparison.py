"""How far two sets of spectra are from each other: Eq. 16 for totals and for the parts of a cross-correlation analysis.

The paper scores a model by the agreement 1 - Delta of the total spectrum, and by the mean and the standard deviation of
the agreements of all parts (Figs. 4 and 6): a rare species is lost in the total but not among the parts. For Raman the
score of a part is the mean over iso, VV and VH; the mean over the 21 lineshapes stands beside it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm as normal
from scipy.stats import t as student_t

from mimyria_wf import plots
from mimyria_wf.cca import CcaSpectra, Part
from mimyria_wf.errors import SpectrumError
from mimyria_wf.spectra_output import caption_of, number
from mimyria_wf.spectra_store import STORE_NAME, StoredSpectra, read_store
from mimyria_wf.spectra_tables import read_table
from mimyria_wf.spectrum import (
    LINESHAPE_NAMES,
    DistanceInterval,
    RamanSpectrum,
    bootstrap_weights,
    spectral_distance,
    spectral_distance_interval,
)

Array = NDArray[Any]

COMPARED = ("ir", "raman_iso", "raman_vv", "raman_vh")
"""Spectra that a comparison looks at; the anisotropic one is 15 VH and has VH's distance."""
_SCORED = ("iso", "vv", "vh")
_SAME = {
    "window": "windows",
    "window_length": "window lengths [fs]",
    "estimator": "estimators",
    "mean_subtracted": "subtraction of means",
    "verlet_timestep": "Verlet corrections [fs]",
    "corrects_differences": "corrections of differences",
    "masked_below": "masks [cm^-1]",
}
_FORM = re.compile(r"((harmonic|bose_reduced|susceptibility)(_|$))?([\d.e+]+nm(_photons)?(_|$))?(times_w2)?")


@dataclass(frozen=True)
class NoiseFloor:
    """Distances that two sets of runs would have if the spectra behind them were the same.

    Attributes:
        mean: of these distances.
        limit: that only a fraction 1 - confidence of them exceeds.
    """

    mean: float
    limit: float


@dataclass(frozen=True)
class _Comparison:
    """A distance with what is known of its uncertainty: an interval for the same runs, a floor for others."""

    interval: DistanceInterval
    floor: NoiseFloor | None


def _form_of(path: Path) -> str | None:
    """Return the form of Raman spectra that the name of one of our tables says, None for a name that says none."""
    if path.stem == "raman":
        return "classical"
    if not path.stem.startswith("raman_"):
        return None
    stem = path.stem.removeprefix("raman_")
    stem = "times_w2" if stem == "weighted" else stem
    return stem if stem and _FORM.fullmatch(stem) else None


def noise_floor(
    wavenumber: Array,
    a: Array,
    b: Array,
    n_frames_a: Array,
    n_frames_b: Array,
    *,
    lower: float = 0.0,
    upper: float = 4000.0,
    confidence: float = 0.95,
    n_bootstrap: int = 500,
    seed: int = 0,
) -> NoiseFloor | None:
    """Return the distances, Eq. 16, that the noise alone of two mean spectra gives.

    Eq. 16 adds up absolute differences, so noise never cancels in it: two sets of 8 runs each, of one system, with
    spectra of single runs that scatter by their own size, are found 0.2 apart. Resampled means of either side scatter
    about its mean as that mean does about the truth (times sqrt(n/(n-1))). Laid upon the common mean of both sides they
    are what two sets of one truth look like, and their distances are the floor. The limit widens the scatter by
    Student's over the normal quantile: in simulations of equal spectra of 1, 3 and 10 independent lines 0 to 6 % of the
    distances found exceed the limit for 95 %, with 2 to 20 runs on a side (without it, up to 14 % for 2 runs).

    Args:
        wavenumber: (n,) [cm^-1].
        a: (n_trajectories, n) spectra of each run.
        b: the same of other runs.
        n_frames_a: (n_trajectories,) weights of the runs of a.
        n_frames_b: weights of the runs of b.
        lower: start of the integrals [cm^-1].
        upper: their end [cm^-1].
        confidence: of the limit, one-sided.
        n_bootstrap: number of resamples.
        seed: of the bootstrap.

    Returns:
        The floor; None with fewer than two runs on a side.
    """
    if min(len(a), len(b)) < 2:
        return None
    weights = [np.asarray(frames, dtype=float) for frames in (n_frames_a, n_frames_b)]
    means = [frames / frames.sum() @ rows for frames, rows in zip(weights, (a, b))]
    totals = [frames.sum() for frames in weights]
    common = (totals[0] * means[0] + totals[1] * means[1]) / sum(totals)

    def scatter(rows: Array, frames: Array, mean: Array, seed: int) -> Array:
        n_runs = len(rows)
        return (bootstrap_weights(frames, n_bootstrap, seed) @ rows - mean) * np.sqrt(n_runs / (n_runs - 1))

    first, second = (scatter(r, f, m, seed + i) for i, (r, f, m) in enumerate(zip((a, b), weights, means)))

    def distances(width: float) -> list[float]:
        pairs = zip(common + width * first, common + width * second)
        return [spectral_distance(wavenumber, one, other, lower, upper) for one, other in pairs]

    quantile = 0.5 * (1 + confidence)
    # the scatter of a few runs is itself uncertain, as for Student's interval
    wider = float(student_t.ppf(quantile, len(a) + len(b) - 2) / normal.ppf(quantile))
    return NoiseFloor(float(np.mean(distances(1.0))), float(np.quantile(distances(wider), confidence)))


class _Set:
    """Spectra of one side of a comparison, with those of each run where they are known."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.spectra: dict[str, tuple[Array, Array]] = {}
        self.per_run: dict[str, Array] = {}
        self.names: list[str] = []
        self.n_frames: Array = np.zeros(0)
        self.stored: StoredSpectra | None = None
        self.form: str | None = None
        if not self.path.exists():
            raise SpectrumError(f"{self.path}: no such file or folder")
        tables = [self.path] if self.path.is_file() else [self.path / name for name in ("ir.csv", "raman.csv")]
        for table in tables:
            if table.is_file():
                self._add(table, read_table(table))
        if not self.spectra:
            raise SpectrumError(f"{self.path} holds no spectra: expected ir.csv or raman.csv of `mimyria-wf spectra`")
        store = (self.path if self.path.is_dir() else self.path.parent) / STORE_NAME
        is_ours = self.path.is_dir() or self.path.name in ("ir.csv", "raman.csv")
        if is_ours and store.is_file():
            self._add_runs(read_store(store))

    def _add(self, path: Path, table: dict[str, Array]) -> None:
        nu = table["wavenumber"]
        if "n_alpha" in table:
            self.spectra["ir"] = (nu, table["n_alpha"])
        for kind in _SCORED:
            if kind in table:
                self.spectra[f"raman_{kind}"] = (nu, table[kind])
                self.form = _form_of(path)
        if not self.spectra:
            raise SpectrumError(f"{path} has neither n_alpha nor iso, vv, vh among its columns: {', '.join(table)}")

    def _add_runs(self, stored: StoredSpectra) -> None:
        spectrum = stored.ir or stored.raman
        if spectrum is None:
            return
        self.stored = stored
        self.names = list(spectrum.runs.names)
        self.n_frames = spectrum.runs.n_frames
        self.wavenumber = spectrum.wavenumber
        if stored.ir is not None:
            self.per_run["ir"] = stored.ir.per_trajectory
        if stored.raman is not None:
            parts = stored.raman.weighted_per_trajectory
            self.per_run |= {f"raman_{kind}": parts[kind] * stored.raman.inverse_square for kind in _SCORED}  # type: ignore[index]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings as in the summary; empty where they are not known."""
        return {} if self.stored is None else self.stored.summary.get("settings", {})


def compare_spectra(
    a: str | Path,
    b: str | Path,
    *,
    lower: float = 0.0,
    upper: float = 4000.0,
    plot: str | Path | None = None,
    labels: tuple[str, str] | None = None,
    n_bootstrap: int = 500,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Return the spectral distance, Eq. 16, of all spectra that two sets share, and of all parts that they share.

    Runs of the same names and lengths on both sides are resampled together (the same trajectories with tensors from
    elsewhere, which is what Eq. 16 is meant for) and give an interval; it holds a real difference, but not a true
    distance of zero, since noise always adds to a distance. Other runs give no interval, their statistical noise alone
    has a distance: the noise floor says which one without any difference, see :func:`noise_floor`.

    Args:
        a: folder of spectra, or one of its tables.
        b: the same.
        lower: start of the integrals [cm^-1].
        upper: their end [cm^-1].
        plot: picture to draw of both.
        labels: names of the two sides in it; the names of the folders by default.
        n_bootstrap: number of resamples of the trajectories.
        seed: of the bootstrap.
        confidence: of the intervals.

    Returns:
        ``spectra``: by name (ir, raman_iso, raman_vv, raman_vh) ``distance``, ``lower``, ``upper`` (None without an
        interval), ``agreement`` = 1 - distance, ``noise_floor`` and ``noise_limit`` (mean of what noise alone gives,
        and what it exceeds in 1 - confidence of all cases; None for the same runs and where runs are not known),
        ``is_distinguishable`` (above the limit); ``largest`` of the distances; ``cca``, see :func:`_cca_scores`, None
        where a side has no parts; ``range``; ``n_trajectories``; ``is_paired``; ``warnings`` where the two
        sides were not made alike; ``notes``.

    Raises:
        SpectrumError: nothing to compare, or Raman spectra in different forms.
    """
    first, second = _Set(a), _Set(b)
    shared = [name for name in COMPARED if name in first.spectra and name in second.spectra]
    if not shared:
        raise SpectrumError(f"{a} and {b} share no spectrum: {sorted(first.spectra)} against {sorted(second.spectra)}")
    if first.form is not None and second.form is not None and first.form != second.form:
        raise SpectrumError(
            f"{a} and {b} are Raman spectra in different forms, {first.form} and {second.form}; "
            "compare tables of one form"
        )
    has_same_names = bool(first.names) and first.names == second.names
    is_paired = has_same_names and np.array_equal(first.n_frames, second.n_frames)

    def compared(nu: Array, values: Array, other: Array) -> _Comparison:
        rows = nu, values, other
        chosen: dict[str, Any] = {"lower": lower, "upper": upper, "confidence": confidence}
        chosen |= {"n_bootstrap": n_bootstrap, "seed": seed}
        if is_paired:
            return _Comparison(spectral_distance_interval(*rows, first.n_frames, **chosen), None)
        one, two = (f / f.sum() @ x for f, x in ((first.n_frames, values), (second.n_frames, other)))
        value, n_runs = spectral_distance(nu, one, two, lower, upper), min(len(values), len(other))
        bare = DistanceInterval(value, np.nan, np.nan, confidence, n_runs)
        return _Comparison(bare, noise_floor(*rows, first.n_frames, second.n_frames, **chosen))

    warnings = _differences(first.settings, second.settings)
    if has_same_names and not is_paired:
        warnings.append("The runs have the same names but other lengths on the two sides: taken as other runs")
    notes: list[str] = []
    results: dict[str, dict[str, Any]] = {}
    for name in shared:
        (nu, values), (other_nu, other) = first.spectra[name], second.spectra[name]
        is_one_grid = _is_one_grid(nu, other_nu)
        has_runs = name in first.per_run and name in second.per_run and len(nu) == len(first.wavenumber)
        found: _Comparison | None = None
        if is_one_grid and has_runs:
            found = compared(nu, first.per_run[name], second.per_run[name])
        if not is_one_grid:
            notes.append(f"{name}: {b} is interpolated linearly onto the grid of {a}")
            other = np.interp(nu, other_nu, other, left=np.nan, right=np.nan)
        results[name] = _entry(spectral_distance(nu, values, other, lower, upper), found)
        is_undefined = ~(np.isfinite(values) & np.isfinite(other)) & (nu >= lower) & (nu <= upper)
        if is_undefined.any():
            last = nu[is_undefined].max()
            note = (
                f"{name.partition('_')[0]}: {int(is_undefined.sum())} undefined points up to {last:.1f} cm^-1 left out"
            )
            notes += [] if note in notes else [note]
    n_runs = min(len(first.names), len(second.names))
    if n_runs < 2:
        notes.append("fewer than two trajectories on a side: no interval can be given")
    elif not is_paired:
        notes.append(
            "other runs on the two sides: distances hold their statistical noise, so no interval is given; "
            "judge them by noise_floor and noise_limit"
        )
    unclear = [
        name for name, entry in results.items() if entry["is_distinguishable"] is False and entry["distance"] > 0
    ]
    if unclear:
        notes.append(
            f"not distinguishable from the noise of the runs (distance within noise_limit): {', '.join(unclear)}"
        )
    cca = _cca_scores(first.stored, second.stored, compared, lower, upper, notes)
    if plot is not None:
        chosen = labels or (Path(a).name, Path(b).name)
        _plot_sets(plot, first, second, shared, results, chosen, upper, "; ".join(warnings))
    return {
        "a": str(a),
        "b": str(b),
        "range": [lower, upper],
        "spectra": results,
        "largest": max(entry["distance"] for entry in results.values()),
        "cca": cca,
        "n_trajectories": n_runs,
        "is_paired": is_paired,
        "confidence": confidence,
        "warnings": warnings,
        "notes": notes,
    }


def _is_one_grid(nu: Array, other: Array) -> bool:
    return nu.shape == other.shape and np.allclose(nu, other, rtol=1e-6, atol=1e-6)


def _entry(value: float, found: _Comparison | None) -> dict[str, Any]:
    ends = (None, None) if found is None else (number(found.interval.lower), number(found.interval.upper))
    floor = None if found is None else found.floor
    return {
        "distance": value,
        "lower": ends[0],
        "upper": ends[1],
        "agreement": 1 - value,
        "noise_floor": None if floor is None else floor.mean,
        "noise_limit": None if floor is None else floor.limit,
        "is_distinguishable": None if floor is None else value > floor.limit,
    }


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return one line for every setting that two sets must share for Eq. 16 to mean something."""
    warnings = []
    for key, text in _SAME.items():
        if key not in first or key not in second:
            continue
        one, other = first[key], second[key]
        both_numbers = isinstance(one, int | float) and isinstance(other, int | float)
        if not (np.isclose(one, other, rtol=1e-6) if both_numbers else one == other):
            found = " and ".join(f"{value:g}" if both_numbers else str(value) for value in (one, other))
            warnings.append(f"The two sides have different {text}: {found}")
    return warnings


def _cca_scores(
    first: StoredSpectra | None,
    second: StoredSpectra | None,
    compared: Callable[[Array, Array, Array], _Comparison],
    lower: float,
    upper: float,
    notes: list[str],
) -> dict[str, Any] | None:
    """Return the scores of the parts that two sets share.

    Returns:
        ``ir``, ``raman`` (mean over iso, VV and VH) and ``raman_lineshapes`` (mean over the 21), where both sides have
        them: each with ``parts`` by name, ``agreement`` (mean over the parts) and ``standard_deviation`` (over the
        parts); ``by_spectrum``: distance and interval of every part's ir, raman_iso, raman_vv, raman_vh.
    """
    if first is None or second is None or first.cca is None or second.cca is None:
        return None
    one, other = first.cca, second.cca
    if _has_relations(one) != _has_relations(other):
        notes.append("cca: only one side is divided by relations, which are summed over")
        one, other = _summed_over_relations(one), _summed_over_relations(other)
    names, other_names = ([part.name for part in side.parts] for side in (one, other))
    shared = [name for name in names if name in other_names]
    missing = sorted(set(names) ^ set(other_names))
    if missing:
        notes.append(f"cca: parts on one side only are left out: {'; '.join(missing)}")
    if not shared or not _is_one_grid(one.wavenumber, other.wavenumber):
        notes.append("cca: no parts in common" if not shared else "cca: the grids differ, parts are not compared")
        return None
    rows = [names.index(name) for name in shared], [other_names.index(name) for name in shared]
    by_spectrum: dict[str, dict[str, Any]] = {}
    spectra = _spectra_of_parts(first, one), _spectra_of_parts(second, other)
    for kind in (k for k in COMPARED if k in spectra[0] and k in spectra[1]):
        by_spectrum[kind] = {}
        for name, i, j in zip(shared, *rows):
            found = compared(one.wavenumber, spectra[0][kind][:, i], spectra[1][kind][:, j])
            by_spectrum[kind][name] = _entry(found.interval.value, found)
    scores: dict[str, Any] = {"by_spectrum": by_spectrum}
    if "ir" in by_spectrum:
        scores["ir"] = _score({name: entry["agreement"] for name, entry in by_spectrum["ir"].items()})
    kinds = [f"raman_{kind}" for kind in _SCORED]
    if all(kind in by_spectrum for kind in kinds):
        mean = {name: float(np.mean([by_spectrum[kind][name]["agreement"] for kind in kinds])) for name in shared}
        scores["raman"] = _score(mean)
    if first.raman is not None and one.weighted_lineshapes is not None and other.weighted_lineshapes is not None:
        square = first.raman.inverse_square
        agreements = {}
        for name, i, j in zip(shared, *rows):
            pairs = zip(one.weighted_lineshapes[i] * square, other.weighted_lineshapes[j] * square)
            distances = [spectral_distance(one.wavenumber, p, q, lower, upper) for p, q in pairs]
            agreements[name] = float(1 - np.mean(distances))
        scores["raman_lineshapes"] = {**_score(agreements), "n_lineshapes": len(LINESHAPE_NAMES)}
    return scores


def _has_relations(cca: CcaSpectra) -> bool:
    return any(part.relation is not None for part in cca.parts)


def _summed_over_relations(cca: CcaSpectra) -> CcaSpectra:
    """Return the parts by groups alone."""
    pairs = list(dict.fromkeys((part.first, part.second) for part in cca.parts))
    belongs = np.array([[float((part.first, part.second) == pair) for part in cca.parts] for pair in pairs])
    weighted, lineshapes = cca.weighted_per_trajectory, cca.weighted_lineshapes
    return replace(
        cca,
        parts=tuple(Part(*pair) for pair in pairs),
        ir_per_trajectory=None if cca.ir_per_trajectory is None else belongs @ cca.ir_per_trajectory,
        weighted_per_trajectory=None if weighted is None else {kind: belongs @ rows for kind, rows in weighted.items()},
        weighted_lineshapes=None if lineshapes is None else np.einsum("qp,pcn->qcn", belongs, lineshapes),
        ir_tensor=None if cca.ir_tensor is None else np.einsum("qp,pcn->qcn", belongs, cca.ir_tensor),
    )


def _spectra_of_parts(stored: StoredSpectra, cca: CcaSpectra) -> dict[str, Array]:
    """Return spectra of the parts of each run by kind, (n_trajectories, n_parts, n), Raman with 1/nu^2."""
    found: dict[str, Array] = {}
    if cca.ir_per_trajectory is not None:
        found["ir"] = cca.ir_per_trajectory
    if cca.weighted_per_trajectory is not None and stored.raman is not None:
        raman: RamanSpectrum = stored.raman
        iso, vh = (cca.weighted_per_trajectory[kind] * raman.inverse_square for kind in ("iso", "vh"))
        found |= {"raman_iso": iso, "raman_vv": iso + 4 / 3 * vh, "raman_vh": vh}
    return found


def _score(agreements: Mapping[str, float]) -> dict[str, Any]:
    values = np.array(list(agreements.values()))
    return {
        "parts": dict(agreements),
        "agreement": float(values.mean()),
        "standard_deviation": float(values.std()),
        "lowest": min(agreements, key=lambda name: agreements[name]),
    }


def _plot_sets(
    path: str | Path,
    first: _Set,
    second: _Set,
    shared: Sequence[str],
    results: Mapping[str, Mapping[str, Any]],
    labels: tuple[str, str],
    upper: float,
    warning: str,
) -> None:
    pairs = {
        name: (plots.Curve(*first.spectra[name], label=labels[0]), plots.Curve(*second.spectra[name], label=labels[1]))
        for name in shared
    }
    texts = {}
    for name, entry in results.items():
        interval = "" if entry["upper"] is None else f" [{entry['lower']:.4f}, {entry['upper']:.4f}]"
        if not interval and entry["noise_limit"] is not None:
            interval = f", noise up to {entry['noise_limit']:.4f}"
        texts[name] = rf"$\Delta$ = {entry['distance']:.4f}{interval}"
    caption = "Spectral distance of Eq. 16"
    summary = first.path / "summary.json"
    if summary.is_file():
        caption += f". {caption_of(json.loads(summary.read_text()))}"
        caption = caption.replace(", bands: one standard error over trajectories", "").replace(
            ", no error estimate", ""
        )
    plots.plot_comparison(path, pairs, texts, caption, upper, warning)
