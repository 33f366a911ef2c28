"""What a folder of spectra holds: tables, JCAMP-DX, figures, ``spectra.nc`` and ``summary.json``.

Tables of 1/w^2 lineshapes say ``nan`` below the window's resolution; the ``_weighted`` ones hold nu^2 times the
lineshape and are finite everywhere. The depolarization ratio is ``nan`` where nu^2 VV is below 1 % of its largest value
above the mask: a ratio of two noises says nothing.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimyria_wf import plots
from mimyria_wf.cca import CcaSpectra
from mimyria_wf.derivatives import PAIR_NAMES
from mimyria_wf.exchange import write_jcamp
from mimyria_wf.plots import Curve
from mimyria_wf.spectra_store import STORE_NAME, judged_depolarization, write_store
from mimyria_wf.spectra_tables import column_name, write_table
from mimyria_wf.spectrum import (
    IR_KIND,
    IR_UNIT,
    LINESHAPE_NAMES,
    RAMAN_KIND,
    RAMAN_UNIT,
    IrSpectrum,
    RamanKind,
    RamanSpectrum,
    members_distance,
)

Array = NDArray[Any]

RAMAN_DRAWN: tuple[RamanKind, ...] = ("vv", "vh", "iso")
RAMAN_COLUMNS = ("iso", "aniso", "vv", "vh")


def write_spectra(
    out: Path,
    ir: IrSpectrum | None,
    raman: RamanSpectrum | None,
    cca: CcaSpectra | None,
    summary: dict[str, Any],
    draws: bool = True,
) -> list[str]:
    """Write a folder of spectra; returns the names of its files.

    What an earlier call wrote into the folder is removed first: tables of other runs would pass for those of these.
    """
    out.mkdir(parents=True, exist_ok=True)
    remove_earlier(out)
    caption, warning = caption_of(summary), warning_of(summary)
    files: list[str] = []
    if ir is not None:
        files += _write_ir(out, ir, caption, warning, draws)
    if raman is not None:
        files += _write_raman(out, raman, caption, warning, draws)
    if cca is not None:
        files += _write_cca(out, cca, ir, raman, caption, warning, draws)
    files.append(write_store(out / STORE_NAME, ir, raman, cca, summary))
    return files


def remove_earlier(out: Path) -> list[str]:
    """Remove the files of spectra that the ``summary.json`` of a folder lists, and nothing else; returns their names.

    ``summary.json`` itself stays until it is written anew.
    """
    try:
        summary = json.loads((out / "summary.json").read_text())
    except (OSError, ValueError):
        return []
    if not isinstance(summary, dict) or "gates" not in summary or not isinstance(summary.get("files"), dict | list):
        return []  # not a summary of spectra
    removed = []
    for name in summary["files"]:
        path, parts = out / str(name), Path(str(name)).parts
        # the summary is a file that anyone can edit: never reach out of the folder
        is_inside = ".." not in parts and (len(parts) == 1 or (len(parts) == 2 and parts[0] == "jcamp"))
        if is_inside and path.suffix in _SUFFIXES and path.is_file():
            path.unlink()
            removed.append(str(name))
    return removed


_SUFFIXES = (".csv", ".jdx", ".nc", ".png", ".pdf")
_FILES = {
    "ir": "IR absorption n alpha",
    "ir_tensor": "IR absorption tensor",
    "ir_measured": "IR absorption with measured spectra",
    "raman_weighted": "Raman, classical lineshape, times nu^2 (without 1/w^2), no laser factor, no Bose factor",
    "lineshapes": "the 21 classical Raman lineshapes with 1/w^2",
    "lineshapes_weighted": "the 21 classical Raman lineshapes times nu^2 (without 1/w^2)",
    "cca_ir": "parts of the IR absorption",
    "spectra": "all spectra of all runs, NetCDF-4",
    "summary": "this summary",
}


def described(files: Sequence[str], forms: Mapping[str, str] = {}) -> dict[str, str]:
    """Return what each file of a folder of spectra holds, in words.

    Args:
        files: names as :func:`write_spectra` and :func:`mimyria_wf.raman_forms.write_forms` return them.
        forms: what the forms of the Raman spectra are, by :attr:`mimyria_wf.intensity.RamanForm.stem`.
    """
    found = {}
    by_length = sorted(forms, key=len, reverse=True)
    for file in files:
        stem = Path(file).stem
        if stem in _FILES:
            found[file] = _FILES[stem]
        elif stem.startswith("cca_raman_"):
            is_table = file.endswith(".csv")
            found[file] = f"parts of the classical Raman lineshape, {'with 1/w^2' if is_table else 'times nu^2'}"
        else:
            known = (forms[form] for form in by_length if form and f"_{form}_" in f"{stem}_")
            found[file] = f"Raman, {next(known, forms.get('', RAMAN_KIND))}"
    return found


def write_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json``."""
    (out / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")


def caption_of(summary: Mapping[str, Any]) -> str:
    """Return the line about window and runs that stands below figures."""
    s = summary["settings"]
    n = summary["n_trajectories"]
    runs = f"{n} trajectories" if n > 1 else "1 trajectory"
    band = ", bands: one standard error over trajectories" if n > 1 else ", no error estimate"
    corrected = "".join(f" {text[0].upper()}{text[1:]}." for text in summary.get("corrections", ()))
    return (
        f"{s['window'].capitalize()} window of {s['window_length'] / 1000:g} ps ({s['resolution']:.1f} cm$^{{-1}}$), "
        f"{s['estimator']} estimator, {runs}, {summary['total_time'] / 1000:g} ps in all, "
        f"{_temperature_of(summary)}{band}.{corrected}"
    )


def _temperature_of(summary: Mapping[str, Any]) -> str:
    """Return the temperature that factors were evaluated at, and that of the runs where it is another one."""
    runs, given = summary["temperature"], summary["settings"].get("temperature")
    if not isinstance(given, int | float):
        return f"{runs:.0f} K"
    return f"evaluated at {given:g} K" + ("" if runs is None else f", runs at {runs:.0f} K")


def plain(caption: str) -> str:
    """Return a caption without marks of typesetting, for text files."""
    return caption.replace("$^{-1}$", "^-1").replace(", bands: one standard error over trajectories", "")


def _hatched(members: Array | None) -> str:
    return "" if members is None else f" Hatched: error of the network, from {len(members)} members of a committee."


def warning_of(summary: Mapping[str, Any]) -> str:
    """Return the line above figures when gates failed, else nothing."""
    failed = [gate["name"] for gate in summary["gates"] if gate["passed"] is False]
    if not failed:
        return ""
    return f"Failed: {'; '.join(failed)}. Do not trust these spectra before the reason is known (summary.json)."


def write_jdx(
    out: Path,
    name: str,
    wavenumber: Array,
    values: Array,
    *,
    title: str,
    kind: str,
    unit: str,
    comment: str,
    quantity: str = "I(w)",
) -> list[str]:
    """Write one spectrum into the folder ``jcamp``; returns its name, or none where nothing is defined."""
    if np.isfinite(values).sum() < 2:
        return []
    folder = out / "jcamp"
    folder.mkdir(exist_ok=True)
    is_ir = name.startswith("ir")
    file = write_jcamp(
        folder / f"{name}.jdx",
        wavenumber,
        values,
        title=title,
        data_type="INFRARED SPECTRUM" if is_ir else "RAMAN SPECTRUM",
        quantity="n(w) alpha(w)" if is_ir else quantity,
        unit=unit,
        kind=kind,
        comment=plain(comment),
    )
    return [f"jcamp/{file}"]


def _write_ir(out: Path, ir: IrSpectrum, caption: str, warning: str, draws: bool) -> list[str]:
    nu, upper = ir.wavenumber, float(ir.wavenumber[-1])
    table = {"wavenumber": nu, "n_alpha": ir.n_alpha, "error": ir.error}
    if ir.model_error is not None and ir.total_error is not None:
        table |= {"model_error": ir.model_error, "total_error": ir.total_error}
    files = [write_table(out / "ir.csv", table)]
    tensor = dict(zip(PAIR_NAMES, ir.tensor)) | {f"{p}_error": e for p, e in zip(PAIR_NAMES, ir.tensor_error)}
    files.append(write_table(out / "ir_tensor.csv", {"wavenumber": nu, **tensor}))
    files += write_jdx(
        out, "ir", nu, ir.n_alpha, title="IR, n(w) alpha(w)", kind=IR_KIND, unit=IR_UNIT, comment=f"{caption} {warning}"
    )
    if draws:
        text = f"IR: {IR_KIND}. {caption}{_hatched(ir.members)}"
        files += plots.plot_ir(
            out / "ir.png", [Curve(nu, ir.n_alpha, ir.error, model_error=ir.model_error)], text, upper, warning
        )
        curves = [Curve(nu, ir.tensor[i], ir.tensor_error[i], name) for i, name in enumerate(PAIR_NAMES)]
        text = f"IR tensor: n alpha is the mean of xx, yy and zz. IR: {IR_KIND}. {caption}"
        files += plots.plot_tensor(out / "ir_tensor.png", curves[:3], curves[3:], text, upper, warning)
    return files


def _write_raman(out: Path, raman: RamanSpectrum, caption: str, warning: str, draws: bool) -> list[str]:
    nu = raman.wavenumber
    ratio = judged_depolarization(raman)
    ratio_error = np.where(np.isfinite(ratio), raman.errors["depolarization"], np.nan)
    table = {"wavenumber": nu, **{kind: getattr(raman, kind) for kind in RAMAN_COLUMNS}, "depolarization": ratio}
    table |= {f"{kind}_error": raman.errors[kind] for kind in RAMAN_COLUMNS} | {"depolarization_error": ratio_error}
    table |= _model_columns(raman.model_errors, raman.errors)
    files = [write_table(out / "raman.csv", table)]
    weighted = {"wavenumber": nu, **{str(kind): values for kind, values in raman.weighted.items()}}
    weighted |= {f"{kind}_error": error for kind, error in raman.weighted_errors.items()}
    weighted |= _model_columns(raman.weighted_model_errors, raman.weighted_errors)
    files.append(write_table(out / "raman_weighted.csv", weighted))
    for name, values in (("lineshapes", raman.lineshapes), ("lineshapes_weighted", raman.weighted_lineshapes)):
        files.append(write_table(out / f"{name}.csv", {"wavenumber": nu, **dict(zip(LINESHAPE_NAMES, values))}))
    for kind in ("iso", "vv", "vh"):
        title = f"Raman, {plots.KIND_NAMES[kind]}"
        values = getattr(raman, kind)
        files += write_jdx(
            out,
            f"raman_{kind}",
            nu,
            values,
            title=title,
            kind=RAMAN_KIND,
            unit=RAMAN_UNIT,
            comment=f"{caption} {warning}",
        )
    if draws:
        model_error = raman.model_errors
        curves = {
            str(kind): Curve(
                nu, getattr(raman, kind), raman.errors[kind], plots.KIND_NAMES[kind], model_error=model_error.get(kind)
            )
            for kind in RAMAN_DRAWN
        }
        text = (
            f"Raman: {RAMAN_KIND}. VH/VV where w^2 VV is above 1 % of its maximum. {caption}{_hatched(raman.members)}"
        )
        drawn = Curve(nu, ratio, ratio_error)
        files += plots.plot_raman(out / "raman.png", curves, drawn, text, float(nu[-1]), warning=warning)
    return files


def _model_columns(model: Mapping[RamanKind, Array], sampling: Mapping[Any, Array]) -> dict[str, Array]:
    """Return the columns of the network's errors and of both errors together; none without members."""
    columns = {f"{kind}_model_error": error for kind, error in model.items()}
    return columns | {f"{kind}_total_error": np.hypot(sampling[kind], error) for kind, error in model.items()}


def model_error_record(
    ir: IrSpectrum | None, raman: RamanSpectrum | None, committee: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return what the summary says of the network's error; None without members.

    Distances, Eq. 16, are those of the members' spectra from the prediction's up to 4000 cm^-1, of lineshapes with
    1/w^2 for Raman, as in comparisons. ``lower`` and ``upper`` hold the middle 90 % of the members.

    Args:
        ir: IR spectrum, or None.
        raman: Raman lineshapes, or None.
        committee: record of the committee in the derivative files.
    """
    found: dict[str, Any] = {}
    n_members = 0
    if ir is not None and ir.members is not None:
        found["ir"] = members_distance(ir.wavenumber, ir.members, ir.n_alpha)
        n_members = len(ir.members)
    if raman is not None and raman.members is not None:
        n_members = len(raman.members)
        for kind in RAMAN_DRAWN:
            members, mean = raman.weighted_members[kind] * raman.inverse_square, getattr(raman, kind)
            found[f"raman_{kind}"] = members_distance(raman.wavenumber, members, mean)
    if not found:
        return None
    distances = {name: dict(zip(("distance", "lower", "upper"), values)) for name, values in found.items()}
    return {"n_members": n_members, "distances": distances, "committee": dict(committee)}


def cca_invariants(cca: CcaSpectra) -> dict[str, tuple[Array, Array]]:
    """Return nu^2 I of the parts by iso, vv, vh: means and standard errors, each (n_parts, n)."""
    if cca.weighted_per_trajectory is None:
        return {}
    return {kind: (cca.weighted[kind], cca.weighted_errors[kind]) for kind in ("iso", "vv", "vh")}


def _write_cca(
    out: Path,
    cca: CcaSpectra,
    ir: IrSpectrum | None,
    raman: RamanSpectrum | None,
    caption: str,
    warning: str,
    draws: bool,
) -> list[str]:
    nu, upper = cca.wavenumber, float(cca.wavenumber[-1])
    names = [part.name for part in cca.parts]
    about = "Parts with their share in the integral; each panel has its own scale."
    files = []
    if ir is not None and cca.ir_per_trajectory is not None:
        files.append(_write_parts(out / "cca_ir.csv", nu, (ir.n_alpha, ir.error), names, cca.ir, cca.ir_error))
        if draws:
            total = Curve(nu, ir.n_alpha, ir.error, "total IR")
            parts = [Curve(nu, v, e, name) for name, v, e in zip(names, cca.ir, cca.ir_error)]
            text = f"{about} IR: {IR_KIND}. {caption}"
            files += plots.plot_parts(out / "cca_ir.png", total, parts, plots.IR_LABEL, text, upper, warning)
    if raman is None:
        return files
    for kind, (values, errors) in cca_invariants(cca).items():
        total_values, total_error = raman.weighted[kind], raman.weighted_errors[kind]  # type: ignore[index]
        square = raman.inverse_square
        whole = (total_values * square, total_error * square)
        files.append(_write_parts(out / f"cca_raman_{kind}.csv", nu, whole, names, values * square, errors * square))
        if draws:
            total = Curve(nu, total_values, total_error, f"total Raman, {plots.KIND_NAMES[kind]}")
            parts = [Curve(nu, v, e, name) for name, v, e in zip(names, values, errors)]
            text = f"{about} Raman: classical, times nu^2, no laser factor, no Bose factor. {caption}"
            path = out / f"cca_raman_{kind}.png"
            files += plots.plot_parts(path, total, parts, plots.RAMAN_WEIGHTED_LABEL, text, upper, warning)
    return files


def _write_parts(
    path: Path, nu: Array, total: tuple[Array, Array], names: list[str], values: Array, errors: Array
) -> str:
    columns = [column_name(name) for name in names]
    table = {"wavenumber": nu, "total": total[0], **dict(zip(columns, values)), "total_error": total[1]}
    return write_table(path, table | {f"{name}_error": error for name, error in zip(columns, errors)})


def cca_record(
    cca: CcaSpectra, ir: IrSpectrum | None, raman: RamanSpectrum | None, occupancies: Mapping[str, float]
) -> dict[str, Any]:
    """Return what the summary says of the parts: groups with their mean numbers of atoms, integrals and shares.

    Integrals run over the axis that is kept: of n alpha [cm^-2], and of nu^2 I [e^4 a0^4 E_h^-2 cm^-2]. A share is the
    part's integral over that of the total; it can be negative.
    """
    nu = cca.wavenumber
    totals: dict[str, Array] = {}
    values: dict[str, Array] = {}
    if ir is not None and cca.ir_per_trajectory is not None:
        totals["ir"], values["ir"] = ir.n_alpha, cca.ir
    if raman is not None:
        for kind, (mean, _) in cca_invariants(cca).items():
            totals[f"raman_{kind}"], values[f"raman_{kind}"] = raman.weighted[kind], mean  # type: ignore[index]
    wholes = {name: float(np.trapezoid(total, nu)) for name, total in totals.items()}
    parts = []
    for i, part in enumerate(cca.parts):
        integrals = {name: float(np.trapezoid(v[i], nu)) for name, v in values.items()}
        shares = {name: number(x / wholes[name]) if wholes[name] else None for name, x in integrals.items()}
        about = {"name": part.name, "first": part.first, "second": part.second, "relation": part.relation}
        parts.append({**about, "integrals": integrals, "shares": shares})
    return {
        "groups": list(dict.fromkeys(group for part in cca.parts for group in (part.first, part.second))),
        "occupancies": dict(occupancies),
        "integrals_of_total": wholes,
        "parts": parts,
    }


def number(value: float) -> float | None:
    """Return a number for JSON, None where it is not finite."""
    return float(value) if math.isfinite(value) else None
