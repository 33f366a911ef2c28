"""Spectra from files to files: tables, figures and a summary; and the comparison of two such sets.

A folder of spectra holds ``ir.csv``, ``raman.csv``, ``raman_weighted.csv``, ``lineshapes.csv``,
``lineshapes_weighted.csv`` (each with a header line of column names), ``trajectories.npz`` (spectra of each run, for
bootstraps), ``summary.json`` and figures. Tables of 1/w^2 lineshapes say ``nan`` below the window's resolution; the
``_weighted`` ones hold nu^2 times the lineshape and are finite everywhere.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimyria_wf import plots
from mimyria_wf.derivatives import DerivativeSeries, derivative_series, is_derivatives_file, read_derivatives
from mimyria_wf.errors import SpectrumError
from mimyria_wf.gates import Gate, all_passed, ir_gates, raman_gates
from mimyria_wf.labels import read_labels
from mimyria_wf.spectrum import (
    IR_KIND,
    IR_UNIT,
    LINESHAPE_NAMES,
    RAMAN_KIND,
    RAMAN_UNIT,
    RAMAN_WEIGHTED_UNIT,
    DistanceInterval,
    IrSpectrum,
    RamanSpectrum,
    SpectrumSettings,
    ir_spectrum,
    raman_spectrum,
    spectral_distance,
    spectral_distance_interval,
)
from mimyria_wf.trajectory import open_trajectory
from mimyria_wf.units import WAVENUMBER

Array = NDArray[Any]
Progress = Callable[[int, int, str], None]

NOMINAL_VOLUME = 1000.0
"""Volume of a cluster nobody has given one for, 1 nm^3 [A^3]."""
_RAMAN_COLUMNS = ("iso", "aniso", "vv", "vh")
COMPARED = ("ir", "raman_iso", "raman_vv", "raman_vh")
"""Spectra that a comparison looks at; the anisotropic one is 15 VH and has VH's distance."""


def read_series(
    path: str | Path,
    *,
    volume: float | None = None,
    timestep: float | None = None,
    cell: Array | None = None,
) -> DerivativeSeries:
    """Read a derivatives file, or a trajectory that carries velocities and tensors.

    Args:
        path: ``.h5`` of `predict`, or extxyz with columns ``vel`` [A/fs] and ``apt`` [e] and/or ``pgt`` [e^2 a0/E_h].
        volume: nominal volume of a cluster [A^3]; refused for a cell.
        timestep: between frames, where the file does not say [fs].
        cell: where the file does not say, see :func:`mimyria_wf.trajectory.open_trajectory`.

    Raises:
        SpectrumError: the file holds no tensors, or a volume is given for a cell that has its own.
        TrajectoryError: no velocities, unknown or inconsistent time step, values that are not finite.
        LabelError: the tensors are malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise SpectrumError(f"{path}: no such file")
    series = read_derivatives(path) if is_derivatives_file(path) else _labelled_series(path, timestep, cell)
    if volume is None:
        return series
    if series.is_periodic:
        raise SpectrumError(
            f"{path} is periodic with a volume of {series.volume:.6g} A^3; a nominal volume is for clusters"
        )
    return replace(series, volume=volume)


def _labelled_series(path: Path, timestep: float | None, cell: Array | None) -> DerivativeSeries:
    if path.suffix not in (".xyz", ".extxyz"):
        raise SpectrumError(
            f"{path} holds no dipole or polarizability derivatives; run `mimyria-wf predict` on the trajectory first, "
            "or give extxyz with columns vel and apt or pgt"
        )
    labelled = read_labels(path)
    reader = open_trajectory(path, timestep=timestep, cell=cell)
    reader.require_velocities()
    run = reader.read()
    assert run.velocities is not None
    tensors: dict[str, Array | None] = {}
    for name in ("apt", "pgt"):
        found = [getattr(snapshot, name) for snapshot in labelled]
        n_found = sum(tensor is not None for tensor in found)
        if 0 < n_found < run.n_frames or len(found) != run.n_frames:
            raise SpectrumError(f"{path}: {n_found} of {run.n_frames} frames have {name}; every frame needs it")
        tensors[name] = np.array(found) if n_found else None
    is_periodic = bool(np.all(run.pbc))
    volume = float(abs(np.linalg.det(run.cell))) if is_periodic else run.metadata.get("volume")
    return derivative_series(
        run.velocities,
        run.positions,
        run.masses,
        run.timestep,
        apt=tensors["apt"],
        pgt=tensors["pgt"],
        name=run.name,
        volume=volume,
        is_periodic=is_periodic,
        metadata={"source": "labels"},
    )


def spectra_files(
    paths: Sequence[str | Path],
    out_dir: str | Path,
    temperature: float | None = None,
    volume: float | None = None,
    settings: SpectrumSettings | None = None,
    progress: Progress | None = None,
    *,
    timestep: float | None = None,
    cell: Array | None = None,
    draws: bool = True,
) -> dict[str, Any]:
    """Compute IR and Raman spectra of one or more runs and write them to a folder.

    Args:
        paths: see :func:`read_series`.
        out_dir: folder to write to; made if needed.
        temperature: in Eq. 2 [K]; None: settings' own, by default each run's kinetic temperature.
        volume: nominal volume of clusters [A^3]; 1 nm^3 if nobody has given one, which the summary then says.
        settings: window, grid, mask, bootstrap.
        progress: called with (steps done, steps, message).
        timestep: see :func:`read_series`.
        cell: see :func:`read_series`.
        draws: whether to draw figures.

    Returns:
        The summary, as in ``summary.json``.
    """
    if not paths:
        raise SpectrumError("no files to compute spectra from")
    settings = settings or SpectrumSettings()
    if temperature is not None:
        settings = replace(settings, temperature=temperature)
    notes: list[str] = []
    n_steps = len(paths) + 3
    runs = []
    for i, path in enumerate(paths):
        _tell(progress, i, n_steps, f"read {Path(path).name}")
        series = read_series(path, volume=volume, timestep=timestep, cell=cell)
        if series.volume is None:
            series = replace(series, volume=NOMINAL_VOLUME)
            note = f"no volume is known: n alpha is given for a nominal {NOMINAL_VOLUME:g} A^3 (--volume sets another)"
            notes += [note] if note not in notes else []
        runs.append(series if series.name else replace(series, name=Path(path).stem))
    _require_same_targets(runs)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    gates: list[Gate] = []
    ir = raman = None
    if runs[0].dipole_derivative is not None:
        _tell(progress, len(paths), n_steps, "IR spectrum")
        ir = ir_spectrum(runs, settings)
        gates += ir_gates(ir, runs)
    if runs[0].polarizability_derivative is not None:
        _tell(progress, len(paths) + 1, n_steps, "Raman spectra")
        raman = raman_spectrum(runs, settings)
        gates += raman_gates(raman, runs)
    _tell(progress, len(paths) + 2, n_steps, "write spectra")
    summary = _summary(runs, ir, raman, gates, settings, notes)
    summary["files"] = write_spectra(out, ir, raman, summary, draws)
    _tell(progress, n_steps, n_steps, f"spectra in {out}")
    return summary


def _tell(progress: Progress | None, done: int, total: int, message: str) -> None:
    if progress is not None:
        progress(done, total, message)


def _require_same_targets(runs: Sequence[DerivativeSeries]) -> None:
    for key in ("dipole_derivative", "polarizability_derivative"):
        have = [run.name for run in runs if getattr(run, key) is not None]
        if have and len(have) < len(runs):
            lacks = next(run.name for run in runs if getattr(run, key) is None)
            raise SpectrumError(f"{have[0]} has a {key.replace('_', ' ')} and {lacks} has none; all runs need the same")
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpectrumError(f"two of the files hold a run named {twice[0]}; runs must differ to count as independent")


def _summary(
    runs: Sequence[DerivativeSeries],
    ir: IrSpectrum | None,
    raman: RamanSpectrum | None,
    gates: Sequence[Gate],
    settings: SpectrumSettings,
    notes: list[str],
) -> dict[str, Any]:
    spectrum = ir or raman
    assert spectrum is not None
    nyquist = 0.5 * WAVENUMBER / runs[0].timestep
    if len(runs) == 1:
        notes.append("one trajectory: errors and intervals cannot be estimated and are nan")
    if nyquist < settings.upper_wavenumber:
        notes.append(
            f"frames every {runs[0].timestep:g} fs end the axis at {nyquist:.0f} cm^-1, beyond it bands fold back"
        )
    if raman is not None:
        notes.append(
            f"Raman lineshapes with 1/w^2 are nan below {settings.mask:.2f} cm^-1, the window's resolution "
            "unless set; the tables named weighted hold nu^2 I, without this limit"
        )
    if any(run.n_frames * run.timestep < 4 * settings.window_length for run in runs):
        notes.append("a run is shorter than four windows: long lags are poorly averaged")
    found = {gate.name: gate for gate in gates}
    ratios = {gate.name: _number(gate.ratio) for gate in gates if "sum" in gate.name}
    summary: dict[str, Any] = {
        "n_trajectories": len(runs),
        "temperature": _number(float(spectrum.runs.weights @ spectrum.runs.temperatures)),
        "timestep": runs[0].timestep,
        "total_time": float(sum(run.n_frames * run.timestep for run in runs)),
        "kind": ({"ir": IR_KIND} if ir else {}) | ({"raman": RAMAN_KIND} if raman else {}),
        "units": {"wavenumber": "cm^-1", "temperature": "K", "time": "fs", "volume": "A^3"}
        | ({"n_alpha": IR_UNIT} if ir else {})
        | ({"lineshapes": RAMAN_UNIT, "weighted lineshapes": RAMAN_WEIGHTED_UNIT} if raman else {}),
        "settings": {
            "window": settings.window,
            "window_length": settings.window_length,
            "window_at_zero": 1.0,
            "resolution": settings.resolution,
            "estimator": settings.estimator,
            "mean_subtracted": settings.subtract_mean,
            "masked_below": settings.mask,
            "spacing": float(spectrum.wavenumber[1]),
            "upper_wavenumber": float(spectrum.wavenumber[-1]),
            "temperature": settings.temperature or "each run's own kinetic temperature",
            "n_bootstrap": settings.n_bootstrap,
            "seed": settings.seed,
        },
        "passed": all_passed(gates),
        "gates": [gate.to_dict() for gate in gates],
        "f_sum_ratio": ratios,
        "trajectories": [_run_record(run) for run in runs],
        "notes": notes,
    }
    if ir is not None:
        summary["f_sum"] = {
            "numerical": ratios["ir f-sum, numerical"],
            "equipartition": ratios["ir f-sum, equipartition"],
            "equipartition_passed": found["ir f-sum, equipartition"].passed,
        }
    return summary


def _run_record(run: DerivativeSeries) -> dict[str, Any]:
    drift = None
    if run.kinetic_temperature is not None and run.n_frames > 2:
        time = np.arange(run.n_frames) * run.timestep / 1000
        drift = float(np.polyfit(time, run.kinetic_temperature, 1)[0])
    return {
        "name": run.name,
        "n_frames": run.n_frames,
        "length": run.n_frames * run.timestep,
        "temperature": run.temperature,
        "temperature_drift_K_per_ps": drift,
        "energy_drift_meV_per_ps_per_atom": run.metadata.get("energy_drift"),
        "volume": run.volume,
        "degrees_of_freedom": run.degrees_of_freedom,
        "removed_motion": run.removed_motion,
        "source": run.metadata.get("source"),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def write_spectra(
    out: Path, ir: IrSpectrum | None, raman: RamanSpectrum | None, summary: dict[str, Any], draws: bool = True
) -> list[str]:
    """Write the tables, figures and summary.json of a folder of spectra; returns the names of the files."""
    files = []
    per_run: dict[str, Array] = {}
    spectrum = ir or raman
    assert spectrum is not None
    caption = caption_of(summary)
    if ir is not None:
        table = {"wavenumber": ir.wavenumber, "n_alpha": ir.n_alpha, "error": ir.error}
        files.append(_write_table(out / "ir.csv", table))
        per_run["ir"] = ir.per_trajectory
        if draws:
            curve = plots.Curve(ir.wavenumber, ir.n_alpha, ir.error)
            plots.plot_ir(out / "ir.png", [curve], f"IR: {IR_KIND}. {caption}", float(ir.wavenumber[-1]))
            files.append("ir.png")
    if raman is not None:
        nu = raman.wavenumber
        table = {"wavenumber": nu, **{kind: getattr(raman, kind) for kind in _RAMAN_COLUMNS}}
        table["depolarization"] = raman.depolarization
        table |= {f"{kind}_error": raman.errors[kind] for kind in (*_RAMAN_COLUMNS, "depolarization")}
        files.append(_write_table(out / "raman.csv", table))
        weighted = {"wavenumber": nu, **{str(kind): values for kind, values in raman.weighted.items()}}
        weighted |= {f"{kind}_error": error for kind, error in raman.weighted_errors.items()}
        files.append(_write_table(out / "raman_weighted.csv", weighted))
        for name, values in (("lineshapes", raman.lineshapes), ("lineshapes_weighted", raman.weighted_lineshapes)):
            files.append(_write_table(out / f"{name}.csv", {"wavenumber": nu, **dict(zip(LINESHAPE_NAMES, values))}))
        parts = raman.weighted_per_trajectory
        per_run |= {f"raman_{kind}": parts[kind] * raman.inverse_square for kind in ("iso", "vv", "vh")}
        if draws:
            curves = {
                kind: plots.Curve(nu, getattr(raman, kind), raman.errors[kind], plots.KIND_NAMES[kind])
                for kind in ("vv", "vh", "iso")
            }
            # a ratio of two noises says nothing: it is drawn where there is intensity
            vv = raman.weighted["vv"]
            depolarization = np.where(vv > 0.01 * vv.max(), raman.depolarization, np.nan)
            ratio = plots.Curve(nu, depolarization, raman.errors["depolarization"])
            text = f"Raman: {RAMAN_KIND}. VH/VV where w^2 VV is above 1 % of its maximum. {caption}"
            plots.plot_raman(out / "raman.png", curves, ratio, text, float(nu[-1]))
            files.append("raman.png")
    archive: dict[str, Any] = {key: values.astype(np.float32) for key, values in per_run.items()}
    archive["wavenumber"] = spectrum.wavenumber
    archive["names"] = np.array(spectrum.runs.names)
    archive["n_frames"] = spectrum.runs.n_frames
    np.savez_compressed(out / "trajectories.npz", **archive)
    files += ["trajectories.npz", "summary.json"]
    (out / "summary.json").write_text(json.dumps({**summary, "files": files}, indent=2, allow_nan=False) + "\n")
    return files


def caption_of(summary: Mapping[str, Any]) -> str:
    """Return the line about window and runs that stands below figures."""
    s = summary["settings"]
    n = summary["n_trajectories"]
    runs = f"{n} trajectories" if n > 1 else "1 trajectory"
    band = ", bands: one standard error over trajectories" if n > 1 else ", no error estimate"
    return (
        f"{s['window'].capitalize()} window of {s['window_length'] / 1000:g} ps ({s['resolution']:.1f} cm$^{{-1}}$), "
        f"{s['estimator']} estimator, {runs}, {summary['total_time'] / 1000:g} ps in all, "
        f"{summary['temperature']:.0f} K{band}."
    )


def _write_table(path: Path, columns: Mapping[str, Array]) -> str:
    np.savetxt(path, np.column_stack(list(columns.values())), "%.10g", ",", header=",".join(columns), comments="")
    return path.name


def read_table(path: str | Path) -> dict[str, Array]:
    """Read one of our tables (CSV with a header line) by column name.

    Raises:
        SpectrumError: the file is missing, empty, or not such a table.
    """
    path = Path(path)
    if not path.is_file():
        raise SpectrumError(f"{path}: no such file")
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    names = [name.strip() for name in lines[0].split(",")] if lines else []
    try:
        rows = np.array([[float(word) for word in line.split(",")] for line in lines[1:]])
    except ValueError as error:
        raise SpectrumError(f"{path} is not a table of numbers: {error}") from None
    if len(rows) < 2 or rows.ndim != 2 or rows.shape[1] != len(names) or names[0] != "wavenumber":
        raise SpectrumError(
            f"{path} is not a table of spectra: expected a header `wavenumber,...` and rows of its width"
        )
    if not (np.isfinite(rows[:, 0]).all() and np.all(np.diff(rows[:, 0]) > 0)):
        raise SpectrumError(f"{path}: the wavenumbers must increase")
    return {name: rows[:, i] for i, name in enumerate(names)}


class _Set:
    """Spectra of one side of a comparison, with those of each run where they are known."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.spectra: dict[str, tuple[Array, Array]] = {}
        self.per_run: dict[str, Array] = {}
        self.names: list[str] = []
        self.n_frames: Array = np.zeros(0)
        tables = [self.path] if self.path.is_file() else [self.path / name for name in ("ir.csv", "raman.csv")]
        if not self.path.exists():
            raise SpectrumError(f"{self.path}: no such file or folder")
        for table in tables:
            if table.is_file():
                self._add(table, read_table(table))
        if not self.spectra:
            raise SpectrumError(f"{self.path} holds no spectra: expected ir.csv or raman.csv of `mimyria-wf spectra`")
        archive = (self.path if self.path.is_dir() else self.path.parent) / "trajectories.npz"
        is_ours = self.path.is_dir() or self.path.name in ("ir.csv", "raman.csv")
        if is_ours and archive.is_file():
            with np.load(archive) as data:
                self.names = [str(name) for name in data["names"]]
                self.n_frames = data["n_frames"]
                self.wavenumber = data["wavenumber"]
                self.per_run = {key: data[key].astype(float) for key in COMPARED if key in data}

    def _add(self, path: Path, table: dict[str, Array]) -> None:
        nu = table["wavenumber"]
        if "n_alpha" in table:
            self.spectra["ir"] = (nu, table["n_alpha"])
        for kind in ("iso", "vv", "vh"):
            if kind in table:
                self.spectra[f"raman_{kind}"] = (nu, table[kind])
        if not self.spectra:
            raise SpectrumError(f"{path} has neither n_alpha nor iso, vv, vh among its columns: {', '.join(table)}")


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
    """Return the spectral distance, Eq. 16, of all spectra that two sets share.

    Runs of the same names on both sides are resampled together (the same trajectories with tensors from elsewhere,
    which is what Eq. 16 is meant for), other runs independently.

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
        interval), ``agreement`` = 1 - distance; ``largest``; ``range``; ``n_trajectories``; ``is_paired``; ``notes``.
    """
    first, second = _Set(a), _Set(b)
    shared = [name for name in COMPARED if name in first.spectra and name in second.spectra]
    if not shared:
        raise SpectrumError(f"{a} and {b} share no spectrum: {sorted(first.spectra)} against {sorted(second.spectra)}")
    is_paired = bool(first.names) and first.names == second.names
    notes = []
    results: dict[str, dict[str, Any]] = {}
    for name in shared:
        (nu, values), (other_nu, other) = first.spectra[name], second.spectra[name]
        is_one_grid = nu.shape == other_nu.shape and np.allclose(nu, other_nu, rtol=1e-6, atol=1e-6)
        has_runs = name in first.per_run and name in second.per_run and len(nu) == len(first.wavenumber)
        interval: DistanceInterval | None = None
        if is_one_grid and has_runs:
            interval = spectral_distance_interval(
                nu,
                first.per_run[name],
                second.per_run[name],
                first.n_frames,
                None if is_paired else second.n_frames,
                lower=lower,
                upper=upper,
                confidence=confidence,
                n_bootstrap=n_bootstrap,
                seed=seed,
            )
        if not is_one_grid:
            notes.append(f"{name}: {b} is interpolated linearly onto the grid of {a}")
            other = np.interp(nu, other_nu, other, left=np.nan, right=np.nan)
        value = spectral_distance(nu, values, other, lower, upper)
        ends = (None, None) if interval is None else (_number(interval.lower), _number(interval.upper))
        results[name] = {"distance": value, "lower": ends[0], "upper": ends[1], "agreement": 1 - value}
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
    if plot is not None:
        _plot_sets(plot, first, second, shared, results, labels or (Path(a).name, Path(b).name), upper)
    return {
        "a": str(a),
        "b": str(b),
        "range": [lower, upper],
        "spectra": results,
        "largest": max(entry["distance"] for entry in results.values()),
        "n_trajectories": n_runs,
        "is_paired": is_paired,
        "confidence": confidence,
        "notes": notes,
    }


def _plot_sets(
    path: str | Path,
    first: _Set,
    second: _Set,
    shared: Sequence[str],
    results: Mapping[str, Mapping[str, Any]],
    labels: tuple[str, str],
    upper: float,
) -> None:
    pairs = {
        name: (plots.Curve(*first.spectra[name], label=labels[0]), plots.Curve(*second.spectra[name], label=labels[1]))
        for name in shared
    }
    texts = {}
    for name, entry in results.items():
        interval = "" if entry["upper"] is None else f" [{entry['lower']:.4f}, {entry['upper']:.4f}]"
        texts[name] = rf"$\Delta$ = {entry['distance']:.4f}{interval}"
    caption = "Spectral distance of Eq. 16"
    summary = first.path / "summary.json"
    if summary.is_file():
        caption += f". {caption_of(json.loads(summary.read_text()))}"
        caption = caption.replace(", bands: one standard error over trajectories", "").replace(
            ", no error estimate", ""
        )
    plots.plot_comparison(path, pairs, texts, caption, upper)
