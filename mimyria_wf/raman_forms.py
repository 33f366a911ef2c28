"""Raman spectra in any form and scattering geometry, from the stored 21 classical lineshapes, with error bands.

Factors that depend on temperature are applied run by run, before the mean: runs at different temperatures combine
correctly, and errors are those of the spectrum that is shown.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimyria_wf import plots
from mimyria_wf.errors import SpectrumError
from mimyria_wf.geometry import ScatteringGeometry
from mimyria_wf.intensity import RamanForm
from mimyria_wf.plots import Curve
from mimyria_wf.spectra_output import (
    RAMAN_COLUMNS,
    caption_of,
    described,
    warning_of,
    write_jdx,
    write_summary,
)
from mimyria_wf.spectra_store import STORE_NAME, judged_depolarization, read_store, store_path
from mimyria_wf.spectra_tables import write_table
from mimyria_wf.spectrum import RamanSpectrum, bootstrap_error, raman_invariants

Array = NDArray[Any]


def raman_files(
    directory: str | Path,
    out: str | Path | None = None,
    geometries: Sequence[ScatteringGeometry | str] = (),
    form: RamanForm | None = None,
    *,
    draws: bool = True,
) -> dict[str, Any]:
    """Write Raman spectra of a folder of spectra in another form or in scattering geometries.

    Columns of geometries stand beside their averages over all orientations of the sample, named ``_powder``.

    Args:
        directory: folder of `mimyria-wf spectra`, or its ``spectra.nc``.
        out: folder to write to; by default that of the spectra.
        geometries: scattering geometries, see :mod:`mimyria_wf.geometry`.
        form: statistics, laser factor and 1/w^2; by default the classical lineshape with 1/w^2.
        draws: whether to draw figures.

    Returns:
        ``kind`` and ``unit`` of the spectra, ``geometries`` by name with their columns, ``files``, ``directory``.
    """
    stored = read_store(directory)
    if stored.raman is None:
        raise SpectrumError(f"{directory} holds no Raman spectra; give `predict` a PGT model")
    chosen = parse_geometries(geometries)
    source = Path(directory) if out is None else Path(out)
    target = source.parent if source.is_file() else source
    is_own = store_path(directory).parent.resolve() == target.resolve()
    if not is_own and (target / STORE_NAME).is_file():
        raise SpectrumError(
            f"{target} holds other spectra, which would be mixed with those of {directory}; choose another"
        )
    target.mkdir(parents=True, exist_ok=True)
    form = form or RamanForm()
    summary = _summary_of(target, stored.summary)
    key = form.stem or "classical"
    earlier = summary["raman_forms"].get(key, {}).get("geometries", {})
    names = {geometry.name for geometry in chosen}
    # the table of geometries is one file: what it held before is made again, so that nothing is lost
    together = [*(ScatteringGeometry.parse(name) for name in earlier if name not in names), *chosen] if chosen else []
    if is_own and not form.stem and not chosen and (target / "raman.csv").is_file():
        return {
            **_record_of(form, [], target),
            "files": [],
            "notes": [f"{target / 'raman.csv'} is this form already and was left alone"],
        }
    result = write_forms(target, stored.raman, together, form, stored.summary, draws)
    geometries = result["geometries"] or earlier
    summary["raman_forms"][key] = {"kind": form.label, "unit": form.unit, "geometries": geometries}
    summary["files"] |= described([*result["files"], "summary.json"], {form.stem: form.label})
    write_summary(target, summary)
    return {**result, "files": [*result["files"], "summary.json"]}


def _summary_of(target: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary in a folder if it is of these spectra, else that of the spectra with no files yet."""
    path = target / "summary.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    keys = ("trajectories", "settings", "gates")
    is_same = all(found.get(key) == stored.get(key) for key in keys)
    summary: dict[str, Any] = {"files": {}, "raman_forms": {}, **(found if is_same else stored)}
    if isinstance(summary["files"], list):  # folders made before files were described
        summary["files"] = described(summary["files"])
    return summary


def _record_of(form: RamanForm, geometries: Sequence[ScatteringGeometry], out: Path) -> dict[str, Any]:
    return {
        "directory": str(out),
        "kind": form.label,
        "unit": form.unit,
        "geometries": {geometry.name: geometry.file_name for geometry in geometries},
    }


def parse_geometries(geometries: Sequence[ScatteringGeometry | str]) -> list[ScatteringGeometry]:
    """Read scattering geometries, each of which must be asked for once."""
    chosen = [g if isinstance(g, ScatteringGeometry) else ScatteringGeometry.parse(g) for g in geometries]
    names = [geometry.file_name for geometry in chosen]
    for geometry in chosen:
        if names.count(geometry.file_name) > 1:
            raise SpectrumError(f"the scattering geometry {geometry.name} is asked for twice")
    return chosen


def form_spectra(
    raman: RamanSpectrum, form: RamanForm, geometries: Sequence[ScatteringGeometry] = (), *, is_powder: bool = False
) -> dict[str, tuple[Array, Array]]:
    """Return spectra in a form with their standard errors, each (n,), NaN below the mask with 1/w^2.

    Args:
        raman: the 21 classical lineshapes of each run.
        form: what to make of them.
        geometries: in the frame of the simulation; none: iso, aniso, vv and vh.
        is_powder: average the geometries over all orientations of the sample.

    Returns:
        By kind, or by name of the geometry.
    """
    nu = raman.wavenumber
    temperatures = np.broadcast_to(raman.settings.temperature or raman.runs.temperatures, raman.runs.n_frames.shape)
    factors = np.array([form.factor(nu, float(t), raman.settings.mask) for t in temperatures])
    # the stored mean has more digits than what is kept of the runs
    single, mean = raman.weighted_per_trajectory, raman_invariants(raman.weighted_lineshapes)
    rows: dict[str, tuple[Array, Array]] = {str(kind): (single[kind], mean[kind]) for kind in single}
    if geometries and is_powder:
        rows = {g.name: (g.powder(single), g.powder(mean)) for g in geometries}
    elif geometries:
        rows = {g.name: (g.intensity(raman.per_trajectory), g.intensity(raman.weighted_lineshapes)) for g in geometries}
    is_one_factor = bool(np.array_equal(factors, np.broadcast_to(factors[0], factors.shape), equal_nan=True))
    found = {}
    for name, (values, whole) in rows.items():
        per_run = factors * values
        shown = factors[0] * whole if is_one_factor else raman.runs.weights @ per_run
        found[name] = (shown, bootstrap_error(per_run, raman.runs, raman.settings))
    return found


def write_forms(
    out: Path,
    raman: RamanSpectrum,
    geometries: Sequence[ScatteringGeometry],
    form: RamanForm,
    summary: Mapping[str, Any],
    draws: bool = True,
) -> dict[str, Any]:
    """Write averages in a form (unless it is the stored one) and geometries in it; see :func:`raman_files`."""
    caption, warning = caption_of(summary), warning_of(summary)
    suffix = f"_{form.stem}" if form.stem else ""
    files: list[str] = []
    if form.stem or not geometries:
        files += _write_averages(out, raman, form, f"raman{suffix}", caption, warning, draws)
    if geometries:
        files += _write_geometries(out, raman, geometries, form, suffix, caption, warning, draws)
    return {**_record_of(form, geometries, out), "files": files}


def quantity_of(form: RamanForm) -> str:
    """Return what the ordinate of a form is, in letters of a text file."""
    quantity = "chi''(w)" if form.statistics == "susceptibility" else "I(w)"
    return quantity if form.is_divided else f"nu^2 {quantity}"


def axis_label(form: RamanForm) -> str:
    """Return the label of the ordinate of spectra in a form."""
    quantity = "$I(\\omega)$" if form.is_divided else r"$\tilde\nu^2 I(\omega)$"
    if form.statistics == "susceptibility":
        quantity = r"$\chi''(\omega)$" if form.is_divided else r"$\tilde\nu^2 \chi''(\omega)$"
    return f"{quantity} / {_typeset(form.unit)}"


def _typeset(unit: str) -> str:
    """Turn a unit such as ``e^4 a0^4 E_h^-2 cm`` into mathematical text."""
    words = []
    for word in unit.split():
        base, _, power = word.partition("^")
        symbol = {"e": "e", "a0": "a_0", "E_h": r"E_\mathrm{h}"}.get(base, rf"\mathrm{{{base}}}")
        words.append(f"{symbol}^{{{power}}}" if power else symbol)
    joined = r"\,".join(words)
    return f"${joined}$" if words else unit


def _write_averages(
    out: Path, raman: RamanSpectrum, form: RamanForm, stem: str, caption: str, warning: str, draws: bool
) -> list[str]:
    nu = raman.wavenumber
    spectra = form_spectra(raman, form)
    table = {"wavenumber": nu, **{kind: spectra[kind][0] for kind in RAMAN_COLUMNS}}
    vv, vh = spectra["vv"][0], spectra["vh"][0]
    is_judged = np.isfinite(judged_depolarization(raman)) & np.isfinite(vv) & (vv != 0)
    ratio = np.where(is_judged, vh / np.where(is_judged, vv, 1.0), np.nan)
    ratio_error = np.where(np.isfinite(ratio), raman.errors["depolarization"], np.nan)
    table |= {"depolarization": ratio} | {f"{kind}_error": spectra[kind][1] for kind in RAMAN_COLUMNS}
    table["depolarization_error"] = ratio_error
    files = [write_table(out / f"{stem}.csv", table)]
    for kind in ("iso", "vv", "vh"):
        title = f"Raman, {plots.KIND_NAMES[kind]}, {form.label}"
        values = spectra[kind][0]
        files += write_jdx(
            out,
            f"{stem}_{kind}",
            nu,
            values,
            title=title,
            kind=form.label,
            unit=form.unit,
            comment=f"{caption} {warning}",
            quantity=quantity_of(form),
        )
    if draws:
        curves = {kind: Curve(nu, *spectra[kind], plots.KIND_NAMES[kind]) for kind in ("vv", "vh", "iso")}
        text = f"Raman: {form.label}. VH/VV where w^2 VV is above 1 % of its maximum. {caption}"
        drawn = Curve(nu, ratio, ratio_error)
        label = axis_label(form)
        files += plots.plot_raman(out / f"{stem}.png", curves, drawn, text, float(nu[-1]), label=label, warning=warning)
    return files


def _write_geometries(
    out: Path,
    raman: RamanSpectrum,
    geometries: Sequence[ScatteringGeometry],
    form: RamanForm,
    suffix: str,
    caption: str,
    warning: str,
    draws: bool,
) -> list[str]:
    nu = raman.wavenumber
    spectra = form_spectra(raman, form, geometries)
    powder = form_spectra(raman, form, geometries, is_powder=True)
    columns = {geometry.file_name: spectra[geometry.name] for geometry in geometries}
    columns |= {f"{geometry.file_name}_powder": powder[geometry.name] for geometry in geometries}
    table = {"wavenumber": nu, **{name: values for name, (values, _) in columns.items()}}
    table |= {f"{name}_error": error for name, (_, error) in columns.items()}
    files = [write_table(out / f"raman_geometries{suffix}.csv", table)]
    for geometry in geometries:
        name, values = f"raman{suffix}_{geometry.file_name}", spectra[geometry.name][0]
        title = f"Raman, {geometry.name}, {form.label}"
        files += write_jdx(
            out,
            name,
            nu,
            values,
            title=title,
            kind=form.label,
            unit=form.unit,
            comment=f"{caption} {warning}",
            quantity=quantity_of(form),
        )
    if draws:
        curves = [Curve(nu, *spectra[geometry.name], geometry.name) for geometry in geometries]
        text = f"Scattering geometries in the frame of the simulation. Raman: {form.label}. {caption}"
        most = len(plots.COLOURS)
        for start in range(0, len(curves), most):
            page = f"_{start // most + 1}" if start else ""
            path, shown = out / f"raman_geometries{suffix}{page}.png", curves[start : start + most]
            files += plots.plot_overlay(
                path, shown, axis_label(form), text, float(nu[-1]), is_logarithmic=True, warning=warning
            )
    return files
