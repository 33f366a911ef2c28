"""From derivative series to a folder of spectra: tables, figures, exchange files and a summary with gates.

A folder of spectra holds ``ir.csv``, ``ir_tensor.csv``, ``raman.csv``, ``raman_weighted.csv``, ``lineshapes.csv``,
``lineshapes_weighted.csv``, with groups ``cca_*.csv`` (each with a header line of column names), ``spectra.nc``
(everything, with the spectra of each run), ``jcamp/*.jdx``, ``summary.json`` and figures as PNG and PDF. See
:mod:`mimyria_wf.spectra_output` for what they hold, :mod:`mimyria_wf.spectra_store` for ``spectra.nc``.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimyria_wf.cca import additivity, cca_spectra
from mimyria_wf.derivatives import DerivativeSeries, derivative_series, is_derivatives_file, read_derivatives
from mimyria_wf.errors import SpectrumError, TrajectoryError
from mimyria_wf.gates import (
    Gate,
    additivity_gate,
    all_passed,
    energy_fluctuation_gate,
    energy_gate,
    ir_gates,
    raman_gates,
    velocity_gate,
)
from mimyria_wf.geometry import ScatteringGeometry
from mimyria_wf.intensity import RamanForm
from mimyria_wf.labels import read_labels
from mimyria_wf.measured import MeasuredSpectrum, read_measured
from mimyria_wf.overlay import plot_files, plot_measured
from mimyria_wf.raman_forms import parse_geometries, raman_files, write_forms
from mimyria_wf.spectra_comparison import COMPARED, compare_spectra
from mimyria_wf.spectra_output import (
    cca_record,
    described,
    model_error_record,
    number,
    write_spectra,
    write_summary,
)
from mimyria_wf.spectra_tables import read_table
from mimyria_wf.spectrum import (
    IR_KIND,
    IR_UNIT,
    RAMAN_KIND,
    RAMAN_UNIT,
    RAMAN_WEIGHTED_UNIT,
    IrSpectrum,
    RamanSpectrum,
    SpectrumSettings,
    correction_notes,
    ir_spectrum,
    raman_spectrum,
    settings_record,
)
from mimyria_wf.trajectory import check_velocities, open_trajectory
from mimyria_wf.units import WAVENUMBER

__all__ = [
    "COMPARED",
    "compare_spectra",
    "plot_files",
    "raman_files",
    "read_series",
    "read_table",
    "spectra_files",
]

Array = NDArray[Any]
Progress = Callable[[int, int, str], None]

UNLIKE = 0.05
"""Fraction from which different volumes or temperatures get a note."""
NOMINAL_VOLUME = 1000.0
"""Volume of a cluster nobody has given one for, 1 nm^3 [A^3]."""


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
    if path.is_dir():
        raise SpectrumError(f"{path} is a folder; give its files, {path}/*.h5")
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
    try:
        check_velocities(reader)
        velocity_error = ""
    except TrajectoryError as error:  # a gate says it: tensors and velocities may be made up, for a test of one's own
        velocity_error = str(error)
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
        # atoms that do not move at all are a model of somebody's making: nothing to judge
        metadata={"source": "labels"}
        | ({"velocity_error": velocity_error} if np.ptp(run.positions, axis=0).any() else {}),
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
    geometries: Sequence[ScatteringGeometry | str] = (),
    form: RamanForm | None = None,
    measured: Sequence[str | Path] = (),
    measured_units: str | None = None,
) -> dict[str, Any]:
    """Compute IR and Raman spectra of one or more runs and write them to a folder.

    Files are read one by one and only the series of the total is kept, 2.9 MB for 40,000 frames; the groups of a file
    are gone when the next is read.

    Args:
        paths: see :func:`read_series`.
        out_dir: folder to write to; made if needed.
        temperature: in Eq. 2 and in quantum factors [K]; None: settings' own, by default each run's kinetic one.
        volume: nominal volume of clusters [A^3]; 1 nm^3 if nobody has given one, which the summary then says.
        settings: window, grid, mask, corrections, bootstrap.
        progress: called with (steps done, steps, message).
        timestep: see :func:`read_series`.
        cell: see :func:`read_series`.
        draws: whether to draw figures.
        geometries: scattering geometries to write beside the averages, see :mod:`mimyria_wf.geometry`.
        form: of Raman spectra to write beside the classical lineshapes, see :mod:`mimyria_wf.intensity`.
        measured: files of measured IR spectra to draw with the computed one, see :mod:`mimyria_wf.measured`.
        measured_units: of both axes of these, where they do not say them.

    Returns:
        The summary, as in ``summary.json``.
    """
    if not paths:
        raise SpectrumError("no files to compute spectra from")
    settings = settings or SpectrumSettings()
    if temperature is not None:
        settings = replace(settings, temperature=temperature)
    chosen = parse_geometries(geometries)
    overlaid = [read_measured(path, measured_units) for path in measured]
    n_steps = len(paths) + 4
    notes: list[str] = []
    runs: list[DerivativeSeries] = []
    occupancies: dict[str, list[float]] = {}
    hashes: dict[str, str] = {}

    def stream() -> Iterator[DerivativeSeries]:
        for i, path in enumerate(paths):
            _tell(progress, i, n_steps, f"read {Path(path).name}")
            series = read_series(path, volume=volume, timestep=timestep, cell=cell)
            if series.volume is None:
                series = replace(series, volume=NOMINAL_VOLUME)
                note = (
                    f"no volume is known: n alpha is given for a nominal {NOMINAL_VOLUME:g} A^3 (--volume sets another)"
                )
                notes.extend([note] if note not in notes else [])
            series = series if series.name else replace(series, name=Path(path).stem)
            runs.append(_total(series))
            _require_same_targets(runs)
            _require_new_data(runs[-1], hashes)
            if series.occupancies is not None:
                for name, mean in zip(series.group_names, series.occupancies):
                    occupancies.setdefault(name, []).append(float(mean) * series.n_frames)
            yield series

    cca = cca_spectra(stream(), settings)
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
    _require_drawable(ir, raman, chosen, form, overlaid)
    if cca is not None:
        gates.append(additivity_gate(additivity(cca, ir, raman)))
    gates += [energy_gate(runs), energy_fluctuation_gate(runs)]
    if any("velocity_error" in run.metadata for run in runs):
        gates.append(velocity_gate(runs))
    summary = _summary(runs, ir, raman, gates, settings, notes)
    committee = runs[0].metadata.get("committee") or {}
    error = model_error_record(ir, raman, committee)
    if error is not None:
        summary["model_error"] = error
        summary["notes"] += _committee_notes(committee)
    if cca is not None:
        n_frames = sum(run.n_frames for run in runs)
        means = {name: sum(values) / n_frames for name, values in occupancies.items()}
        summary["cca"] = cca_record(cca, ir, raman, means)
    _tell(progress, len(paths) + 2, n_steps, "write spectra")
    out = Path(out_dir)
    files = write_spectra(out, ir, raman, cca, summary, draws)
    if raman is not None and (chosen or form is not None):
        written = write_forms(out, raman, chosen, form or RamanForm(), summary, draws)
        files += written["files"]
        summary["raman_form"] = {key: written[key] for key in ("kind", "unit", "geometries")}
        summary["raman_forms"] = {(form or RamanForm()).stem or "classical": summary["raman_form"]}
    if overlaid and ir is not None:
        _tell(progress, len(paths) + 3, n_steps, "overlay of measured spectra")
        drawn = plot_measured(out / "ir_measured.png", ir, overlaid, summary)
        files += drawn["files"]
        summary["measured"] = drawn["measured"]
        summary["notes"] += [record["note"] for record in drawn["measured"] if "note" in record]
    summary["files"] = described([*files, "summary.json"], {form.stem: form.label} if form is not None else {})
    write_summary(out, summary)
    _tell(progress, n_steps, n_steps, f"spectra in {out}")
    return summary


def _total(series: DerivativeSeries) -> DerivativeSeries:
    """Return the series of the total alone."""
    dipole = None if series.dipole_derivative is None else series.total_dipole_derivative[:, None]
    polarizability = (
        None if series.polarizability_derivative is None else series.total_polarizability_derivative[:, None]
    )
    return replace(
        series,
        dipole_derivative=dipole,
        polarizability_derivative=polarizability,
        group_names=("all",),
        related=None,
        occupancies=None,
    )


def _require_drawable(
    ir: IrSpectrum | None,
    raman: RamanSpectrum | None,
    geometries: Sequence[ScatteringGeometry],
    form: RamanForm | None,
    measured: Sequence[MeasuredSpectrum],
) -> None:
    if raman is None and (geometries or form is not None):
        raise SpectrumError(
            "scattering geometries and forms of the Raman spectrum need polarizability derivatives, and the files "
            "have none; give `predict` a PGT model"
        )
    for spectrum in measured:
        if spectrum.kind == "raman":
            raise SpectrumError(
                f"{spectrum.source} is a Raman spectrum; draw it over a Raman spectrum with `mimyria-wf plot`"
            )
        if ir is None:
            raise SpectrumError(f"there is no IR spectrum to draw {spectrum.source} over; give `predict` an APT model")


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
        raise SpectrumError(
            f"two of the files hold a run named {twice[0]}; runs must differ to count as independent "
            "(`derive --name`, or rename the trajectories before `predict`)"
        )


def _require_new_data(run: DerivativeSeries, hashes: dict[str, str]) -> None:
    """Refuse a run whose series is that of an earlier one under another name; it would count as independent."""
    digest = hashlib.sha256()
    for values in (run.dipole_derivative, run.polarizability_derivative):
        if values is not None:
            digest.update(np.ascontiguousarray(values).tobytes())
    earlier = hashes.setdefault(digest.hexdigest(), run.name)
    if earlier != run.name:
        raise SpectrumError(
            f"{earlier} and {run.name} hold the same data; a run counts once, or errors come out too small: "
            "leave one out"
        )


def _likeness_notes(runs: Sequence[DerivativeSeries], settings: SpectrumSettings, temperature: float) -> list[str]:
    """Return one line for runs of unlike volume, and for a temperature far from that of the runs."""
    notes = []
    volumes = {run.name: run.volume for run in runs if run.volume is not None}
    if volumes and max(volumes.values()) > (1 + UNLIKE) * min(volumes.values()):
        small, large = min(volumes, key=lambda n: volumes[n]), max(volumes, key=lambda n: volumes[n])
        ends = f"{volumes[small]:.6g} A^3 ({small}) to {volumes[large]:.6g} A^3 ({large})"
        notes.append(f"runs of different volume are averaged: {ends}")
    given = settings.temperature
    if given is not None and np.isfinite(temperature) and abs(given - temperature) > UNLIKE * temperature:
        notes.append(f"evaluated at {given:g} K, runs at {temperature:.4g} K: more than {100 * UNLIKE:g} % apart")
    return notes


def _committee_notes(committee: Mapping[str, Any]) -> list[str]:
    """Return one line for each model whose uncertainties are known to be too small or to be off."""
    notes = []
    for target, record in committee.get("models", {}).items():
        if record.get("calibration", {}).get("trunk_saw_held_out"):
            notes.append(
                f"the network's error is a lower bound: the {target} model was calibrated on labels that it was "
                "trained on (train it with calibration_fraction or validation_fraction)"
            )
    return notes


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
    notes.extend(_likeness_notes(runs, settings, float(spectrum.runs.weights @ spectrum.runs.temperatures)))
    corrections = list(correction_notes(spectrum.runs, settings))
    notes.extend(corrections)
    found = {gate.name: gate for gate in gates}
    ratios = {gate.name: number(gate.ratio) for gate in gates if "sum" in gate.name}
    summary: dict[str, Any] = {
        "n_trajectories": len(runs),
        "temperature": number(float(spectrum.runs.weights @ spectrum.runs.temperatures)),
        "timestep": runs[0].timestep,
        "total_time": float(sum(run.n_frames * run.timestep for run in runs)),
        "kind": ({"ir": IR_KIND} if ir else {}) | ({"raman": RAMAN_KIND} if raman else {}),
        "units": {"wavenumber": "cm^-1", "temperature": "K", "time": "fs", "volume": "A^3"}
        | ({"n_alpha": IR_UNIT} if ir else {})
        | ({"lineshapes": RAMAN_UNIT, "weighted lineshapes": RAMAN_WEIGHTED_UNIT} if raman else {}),
        "settings": settings_record(settings, spectrum.wavenumber)
        | {
            "mean_subtracted": settings.subtract_mean,
            "masked_below": settings.mask,
            "corrects_differences": settings.corrects_differences,
        },
        "corrections": corrections,
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
        "energy_fluctuation_ratio": run.metadata.get("energy_fluctuation_ratio"),
        "volume": run.volume,
        "degrees_of_freedom": run.degrees_of_freedom,
        "removed_motion": run.removed_motion if run.origin == "velocities" else None,
        "source": run.metadata.get("source"),
        "origin": run.origin,
    }
