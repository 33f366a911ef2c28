"""Overlays: several folders of spectra, measured spectra, and forms or geometries of one, in one figure.

The legend says of every curve whether it is absolute or how it was scaled. Nothing is scaled that shares a unit with
the others, unless that is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mimyria_wf import plots
from mimyria_wf.errors import SpectrumError
from mimyria_wf.geometry import ScatteringGeometry
from mimyria_wf.intensity import RamanForm
from mimyria_wf.measured import MeasuredSpectrum, read_measured
from mimyria_wf.plots import Curve
from mimyria_wf.raman_forms import axis_label, form_spectra
from mimyria_wf.spectra_output import RAMAN_COLUMNS, caption_of, warning_of
from mimyria_wf.spectra_store import StoredSpectra, read_store
from mimyria_wf.spectrum import IR_KIND, IR_UNIT, IrSpectrum

Array = NDArray[Any]
Normalisation = Literal["auto", "absolute", "maximum", "integral"]
_PICTURES = (".png", ".pdf", ".svg")
_UNLIKE = 30.0
"""Factor between measured and computed maxima from which the units are doubted; theory is off by less than that."""
_NARROW = 0.05
"""Fraction of the range shown, and of a measured spectrum, below which they hardly overlap."""


@dataclass(frozen=True)
class _Entry:
    """A curve with what is known of its ordinate; unit None: arbitrary."""

    curve: Curve
    unit: str | None
    source: str
    kind: str


def plot_files(
    directories: Sequence[str | Path],
    out: str | Path,
    *,
    spectra: Sequence[str] = ("ir",),
    forms: Sequence[RamanForm] = (),
    measured: Sequence[str | Path] = (),
    measured_units: str | None = None,
    labels: Sequence[str] = (),
    lower: float = 0.0,
    upper: float = 4000.0,
    normalise: Normalisation = "auto",
    is_logarithmic: bool = False,
) -> dict[str, Any]:
    """Draw spectra of several folders, and measured ones, on top of each other.

    Args:
        directories: folders of `mimyria-wf spectra`, or their ``spectra.nc``.
        out: picture; a PDF is written beside it.
        spectra: ``ir``, ``iso``, ``aniso``, ``vv``, ``vh``, or scattering geometries such as ``Z(XX)Z``.
        forms: of the Raman spectra; by default the classical lineshape with 1/w^2.
        measured: files of measured spectra, see :mod:`mimyria_wf.measured`.
        measured_units: of both axes of these, such as ``"cm^-1, 10^3 cm^-1"``, where they do not say them.
        labels: of the folders, then of the measured spectra; by default their names.
        lower: start of the axis [cm^-1].
        upper: its end [cm^-1].
        normalise: "absolute": as they are, one unit for all; "maximum" or "integral": every curve is scaled to 1 in
            the range shown; "auto": absolute where all share a unit; measured spectra in other units are then scaled to
            the maximum of the first computed one where both are known, and computed ones in different units all to
            their own.
        is_logarithmic: show decades.

    Returns:
        ``files``; ``curves``, each with ``label``, ``source``, ``kind``, ``unit`` and the ``factor`` it was multiplied
        with; ``normalisation``; ``notes``, such as of measured spectra whose units look wrong.

    Raises:
        SpectrumError: nothing to draw, an unknown spectrum, units that differ, a range without points.
    """
    if normalise not in get_args(Normalisation):
        raise SpectrumError(f"normalise is one of {get_args(Normalisation)}, got {normalise!r}")
    if not lower < upper:
        raise SpectrumError(f"the range must increase, got {lower:g} to {upper:g} cm^-1")
    if not directories:
        raise SpectrumError("no folder of spectra to draw")
    if Path(out).suffix.lower() not in _PICTURES:
        raise SpectrumError(f"{out}: a picture ends in {', '.join(_PICTURES)}, not in {Path(out).suffix!r}")
    if labels and len(labels) not in (len(directories), len(directories) + len(measured)):
        raise SpectrumError(
            f"{len(labels)} labels for {len(directories)} folders and {len(measured)} measured spectra; give one each"
        )
    stored = [read_store(path) for path in directories]
    names = list(labels[: len(directories)]) or _names(directories)
    entries = []
    for path, name, spectra_of_one in zip(directories, names, stored):
        entries += _entries(spectra_of_one, path, name, spectra, forms, is_alone=len(directories) == 1)
    n_computed = len(entries)
    for i, path in enumerate(measured):
        given = labels[len(directories) + i] if len(labels) > len(directories) else None
        entries.append(_measured_entry(read_measured(path, measured_units, given)))
    curves, factors, label, text = _normalised(entries, n_computed, normalise, lower, upper)
    caption = _caption(entries[:n_computed], stored, text)
    warning = joined_warnings(names, [warning_of(s.summary) for s in stored])
    files = plots.plot_overlay(
        out, curves, label, caption, upper, lower=lower, is_logarithmic=is_logarithmic, warning=warning
    )
    described = [
        {"label": curve.label, "source": e.source, "kind": e.kind, "unit": e.unit, "factor": factor}
        for curve, e, factor in zip(curves, entries, factors)
    ]
    return {
        "directory": str(Path(out).parent),
        "files": files,
        "curves": described,
        "normalisation": text or "absolute",
        "notes": [note for note in _doubts(entries, n_computed, lower, upper) if note],
    }


def joined_warnings(names: Sequence[str], warnings: Sequence[str]) -> str:
    """Return the warnings of all folders, each with its folder's name where there are several folders."""
    if len(names) == 1:
        return warnings[0]
    return " ".join(f"{name}: {warning}" for name, warning in zip(names, warnings) if warning)


def plot_measured(
    path: Path, ir: IrSpectrum, measured: Sequence[MeasuredSpectrum], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Draw measured IR spectra over a computed one; returns the names of the files and what was done."""
    computed = _Entry(Curve(ir.wavenumber, ir.n_alpha, ir.error, "computed"), IR_UNIT, "", IR_KIND)
    entries = [computed, *(_measured_entry(spectrum) for spectrum in measured)]
    upper = float(ir.wavenumber[-1])
    curves, factors, label, text = _normalised(entries, 1, "auto", 0.0, upper)
    caption = " ".join(part for part in (f"IR: {IR_KIND}.", text, caption_of(summary)) if part)
    files = plots.plot_overlay(path, curves, label, caption, upper, warning=warning_of(summary))
    notes = _doubts(entries, 1, 0.0, upper)
    records = [
        {"source": spectrum.source, "unit": spectrum.unit, "factor": factor} | ({"note": note} if note else {})
        for spectrum, factor, note in zip(measured, factors[1:], notes)
    ]
    return {"files": files, "measured": records}


def _names(paths: Sequence[str | Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    folders = [Path(path) if Path(path).is_dir() else Path(path).parent for path in paths]
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(len(p) for p in parts) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise SpectrumError("a folder of spectra is given twice")


def _entries(
    stored: StoredSpectra,
    path: str | Path,
    name: str,
    spectra: Sequence[str],
    forms: Sequence[RamanForm],
    is_alone: bool,
) -> list[_Entry]:
    chosen = list(forms) or [RamanForm()]
    entries = []
    for spectrum in spectra:
        if spectrum == "ir":
            if stored.ir is None:
                raise SpectrumError(f"{path} holds no IR spectrum")
            text = name if len(spectra) == 1 else _joined(name, "IR", is_alone)
            curve = Curve(stored.ir.wavenumber, stored.ir.n_alpha, stored.ir.error, text)
            entries.append(_Entry(curve, IR_UNIT, str(path), f"IR: {IR_KIND}"))
            continue
        if stored.raman is None:
            raise SpectrumError(f"{path} holds no Raman spectra")
        geometry = None if spectrum in RAMAN_COLUMNS else ScatteringGeometry.parse(spectrum)
        for form in chosen:
            found = form_spectra(stored.raman, form, [] if geometry is None else [geometry])
            key = spectrum if geometry is None else geometry.name
            short = plots.KIND_NAMES.get(key, key)
            text = f"{short}, {_short(form, chosen)}" if len(chosen) > 1 else short
            curve = Curve(stored.raman.wavenumber, *found[key], _joined(name, text, is_alone))
            entries.append(_Entry(curve, axis_label(form), str(path), f"Raman: {form.label}"))
    return entries


def _short(form: RamanForm, among: Sequence[RamanForm]) -> str:
    """Return what tells a form from the others; the caption has the whole of it."""
    words: list[str] = [form.statistics]
    if any(other.laser_nm != form.laser_nm or other.laser_exponent != form.laser_exponent for other in among):
        words.append("no laser factor" if form.laser_nm is None else f"{form.laser_nm:g} nm")
    if any(other.is_divided != form.is_divided for other in among):
        words.append("with 1/w^2" if form.is_divided else "times nu^2")
    return ", ".join(words)


def _joined(name: str, text: str, is_alone: bool) -> str:
    return text if is_alone else f"{name}, {text}"


def _measured_entry(spectrum: MeasuredSpectrum) -> _Entry:
    curve = Curve(spectrum.wavenumber, spectrum.values, None, spectrum.name, "--")
    return _Entry(curve, IR_UNIT if spectrum.is_absolute else None, spectrum.source, "measured")


def _normalised(
    entries: Sequence[_Entry], n_computed: int, normalise: Normalisation, lower: float, upper: float
) -> tuple[list[Curve], list[float], str, str]:
    """Return curves as drawn, their factors, the label of the ordinate and what was done in words."""
    computed_units = {entry.unit for entry in entries[:n_computed]}
    is_one_unit = len(computed_units) == 1
    if normalise == "absolute":
        units = {entry.unit for entry in entries}
        if len(units) > 1:
            found = ", ".join(sorted(unit or "arbitrary" for unit in units))
            raise SpectrumError(f"curves in different units cannot be drawn as they are: {found}; normalise them")
    for entry in entries:
        _seen(entry, lower, upper)
    if normalise in ("maximum", "integral") or not is_one_unit:
        what = "integral" if normalise == "integral" else "maximum"
        factors = [1 / _size(entry, what, lower, upper) for entry in entries]
        labels = [f"{entry.curve.label} (scaled)" for entry in entries]
        unit_label = f"scaled to the same {what}"
        text = f"Every curve is scaled to {what} 1 between {lower:g} and {upper:g} cm$^{{-1}}$."
    else:
        (unit,) = computed_units
        assert unit is not None
        factors, labels = [], []
        doubts = [""] * n_computed + _doubts(entries, n_computed, lower, upper)
        for i, entry in enumerate(entries):
            is_same = entry.unit == unit
            factors.append(1.0 if is_same else _ratio(entries[0], entry, lower, upper))
            is_said = len(entries) > n_computed
            absolute = "absolute, units?" if doubts[i] else "absolute"
            how = absolute if is_same else f"scaled by {factors[-1]:.4g} to the maximum of {entries[0].curve.label}"
            labels.append(f"{entry.curve.label} ({how})" if is_said else entry.curve.label)
        unit_label = plots.IR_LABEL if unit == IR_UNIT else unit
        is_all = all(entry.unit == unit for entry in entries)
        text = (
            "" if is_all else "Measured spectra without a common unit are scaled to equal maxima where both are known."
        )
    curves = [
        replace(
            entry.curve,
            values=factor * entry.curve.values,
            error=None if entry.curve.error is None else factor * entry.curve.error,
            label=label,
        )
        for entry, factor, label in zip(entries, factors, labels)
    ]
    return curves, factors, unit_label, text


def _doubts(entries: Sequence[_Entry], n_computed: int, lower: float, upper: float) -> list[str]:
    """Return for each measured spectrum why its units look wrong, or nothing."""
    return [_doubt(entries[0], entry, lower, upper) for entry in entries[n_computed:]]


def _doubt(first: _Entry, other: _Entry, lower: float, upper: float) -> str:
    axis = other.curve.wavenumber
    shown = max(lower, first.curve.wavenumber[0]), min(upper, first.curve.wavenumber[-1])
    low, high = max(shown[0], axis[0]), min(shown[1], axis[-1])
    shared = high - low
    if shared < _NARROW * (shown[1] - shown[0]) or shared < _NARROW * (axis[-1] - axis[0]):
        return (
            f"{other.curve.label} reaches from {axis[0]:.4g} to {axis[-1]:.4g} cm^-1 and hardly overlaps with the "
            f"{shown[0]:.4g} to {shown[1]:.4g} cm^-1 shown: is the unit of its first axis right?"
        )
    if other.unit is None or other.unit != first.unit:
        return ""
    largest = [np.abs(_seen(entry, low, high)[1]).max() for entry in (first, other)]
    if largest[0] > 0 and not 1 / _UNLIKE <= largest[1] / largest[0] <= _UNLIKE:
        return (
            f"the maximum of {other.curve.label} is {largest[1]:.3g} {other.unit}, that of {first.curve.label} "
            f"{largest[0]:.3g}, between {low:.0f} and {high:.0f} cm^-1: is the unit of its second axis right?"
        )
    return ""


def _ratio(first: _Entry, other: _Entry, lower: float, upper: float) -> float:
    """Return the factor that gives both the same maximum in the range where both are known."""
    axes = first.curve.wavenumber, other.curve.wavenumber
    lower, upper = max(lower, *(nu[0] for nu in axes)), min(upper, *(nu[-1] for nu in axes))
    return _size(first, "maximum", lower, upper) / _size(other, "maximum", lower, upper)


def _seen(entry: _Entry, lower: float, upper: float) -> tuple[Array, Array]:
    """Return wavenumbers and values between lower and upper."""
    nu, values = entry.curve.wavenumber, entry.curve.values
    is_seen = (nu >= lower) & (nu <= upper) & np.isfinite(values)
    if is_seen.sum() < 2:
        raise SpectrumError(f"{entry.curve.label} has no points between {lower:g} and {upper:g} cm^-1")
    return nu[is_seen], values[is_seen]


def _size(entry: _Entry, what: str, lower: float, upper: float) -> float:
    nu, values = _seen(entry, lower, upper)
    size = float(np.trapezoid(values, nu) if what == "integral" else values.max())
    if not size > 0:
        raise SpectrumError(f"{entry.curve.label} has no positive {what} between {lower:g} and {upper:g} cm^-1")
    return size


def _caption(entries: Sequence[_Entry], stored: Sequence[StoredSpectra], text: str) -> str:
    kinds = "; ".join(dict.fromkeys(entry.kind for entry in entries))
    settings = list(dict.fromkeys(caption_of(s.summary) for s in stored))
    about = settings[0] if len(settings) == 1 else "Windows, runs and temperatures differ: see their summaries."
    return " ".join(part for part in (f"{kinds}.", text, about) if part)
