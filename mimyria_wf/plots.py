"""Figures: spectra with error bands, parts of them, measured ones, explicit against predicted, learning curves.

Figures of spectra are written twice, as the picture asked for and beside it as PDF for print. matplotlib is imported
when a figure is drawn, with the Agg canvas, and its global state is left alone.
"""

import logging
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mimyria_wf.errors import SpectrumError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]

# Okabe and Ito's palette, told apart by everyone
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
IR_LABEL = r"$n(\omega)\,\alpha(\omega)$ / cm$^{-1}$"
RAMAN_LABEL = r"$I(\omega)$ / $e^4 a_0^4 E_\mathrm{h}^{-2}$ cm"
RAMAN_WEIGHTED_LABEL = r"$\tilde\nu^2 I(\omega)$ / $e^4 a_0^4 E_\mathrm{h}^{-2}$ cm$^{-1}$"
WAVENUMBER_LABEL = r"Wavenumber / cm$^{-1}$"
VISIBLE_PART = 1e-6
"""Parts of a spectrum that stay below this fraction of the total's largest value are round-off."""
PANELS_IN_COLUMN = 10
KIND_NAMES = {"ir": "IR", "iso": "isotropic", "aniso": "anisotropic", "vv": "VV", "vh": "VH"}

_LONG_LABEL = 40

_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.2,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "xtick.minor.visible": True,
    "ytick.minor.visible": True,
    "mathtext.fontset": "dejavusans",
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # fonts that journals accept and programs can edit
}


@dataclass(frozen=True)
class Curve:
    """One line of a figure.

    Attributes:
        wavenumber: (n,) [cm^-1].
        values: (n,); NaN is left blank.
        error: (n,) half width of the band, or None; NaN draws none.
        label: in the legend.
        style: of the line, as matplotlib names it.
        model_error: (n,) half width of the hatched band, the error of the network, or None.
    """

    wavenumber: Array
    values: Array
    error: Array | None = None
    label: str = ""
    style: str = "-"
    model_error: Array | None = None


@dataclass(frozen=True)
class LearningPoint:
    """Figures of one iteration.

    Attributes:
        n_training: configurations trained on.
        r2: by target, then by species or "mean".
        rmse: by target, then by species or "mean" [e] and [e^2 a0/E_h].
        distances: by spectrum: value, lower and upper end of the interval, to the iteration before.
        parts: "ir" and "raman": mean and standard deviation of the distances of all parts of the cross-correlation
            analysis, to the iteration before.
    """

    n_training: int
    r2: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rmse: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    distances: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    parts: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@contextmanager
def _figure(
    path: str | Path,
    rows: int,
    columns: int,
    width: float,
    height: float,
    *,
    is_for_print: bool = False,
    **options: Any,
) -> "Iterator[tuple[Figure, Array]]":
    """Yield a figure and its axes (rows, columns) in our style, and save it, if for print as PDF too."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # no dates and versions: the same spectra give the same files
        bare: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".pdf": {"CreationDate": None}}
        fonts = logging.getLogger("fontTools")
        level = fonts.level
        fonts.setLevel(logging.ERROR)  # it warns of the time stamps in matplotlib's own fonts
        try:
            for target in (Path(path), *([_printable(path)] if is_for_print else [])):
                figure.savefig(target, metadata=bare.get(target.suffix))
                figure.set_layout_engine("none")  # found once, it fits the next format as well
        finally:
            fonts.setLevel(level)


def _printable(path: str | Path) -> Path:
    return Path(path).with_suffix(".pdf")


def figure_names(path: str | Path) -> list[str]:
    """Return the names of the files that a figure of spectra is written to."""
    return list(dict.fromkeys([Path(path).name, _printable(path).name]))


def _caption(figure: "Figure", caption: str, warning: str = "") -> None:
    """Write a caption below, and what is wrong with the spectra above."""
    width = figure.get_figwidth()
    if caption:
        # no line may end between a number and its unit
        text = caption.replace(" cm$", "\N{NO-BREAK SPACE}cm$")
        text = "\n".join(textwrap.wrap(text, int(width * 19)))
        figure.supxlabel(text, fontsize=7, color="#444444", x=0.02, ha="left")
    if warning:
        text = "\n".join(textwrap.wrap(warning, int(width * 15)))
        figure.suptitle(text, fontsize=8, color="#B00020", fontweight="bold", x=0.02, ha="left")


def _draw(axes: "Axes", curve: Curve, colour: str, style: str | None = None) -> None:
    axes.plot(curve.wavenumber, curve.values, style or curve.style, color=colour, label=curve.label or None)
    if curve.error is not None and np.isfinite(curve.error).any():
        axes.fill_between(
            curve.wavenumber, curve.values - curve.error, curve.values + curve.error, color=colour, alpha=0.25, lw=0
        )
    if curve.model_error is not None:
        axes.fill_between(
            curve.wavenumber,
            curve.values - curve.model_error,
            curve.values + curve.model_error,
            facecolor="none",
            edgecolor=colour,
            hatch="//////",
            alpha=0.6,
            lw=0,
        )


def _finish_axis(axes: "Axes", curves: Sequence[Curve], label: str, upper: float, lower: float = 0.0) -> None:
    axes.set_ylabel(label)
    axes.set_xlim(lower, upper)
    axes.axhline(0, color="#bbbbbb", lw=0.6, zorder=0)
    longest = max((len(curve.label) for curve in curves), default=0)
    if longest > _LONG_LABEL:  # it would lie across the curves
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    elif longest:
        axes.legend(loc="best")


def plot_overlay(
    path: str | Path,
    curves: Sequence[Curve],
    label: str,
    caption: str = "",
    upper: float = 4500.0,
    *,
    lower: float = 0.0,
    is_logarithmic: bool = False,
    warning: str = "",
) -> list[str]:
    """Draw spectra on top of each other with bands of one standard error; returns the names of the files.

    Args:
        path: of the picture.
        curves: what to draw; the first in black.
        label: of the ordinate.
        caption: line below: kind of spectrum, window, temperature.
        upper: end of the axis [cm^-1].
        lower: its start [cm^-1].
        is_logarithmic: show decades.
        warning: line above, such as gates that failed.
    """
    _require(curves)
    with _figure(path, 1, 1, 6.0, 3.6, is_for_print=True) as (figure, axes):
        panel = axes[0, 0]
        for curve, colour in zip(curves, COLOURS):
            _draw(panel, curve, colour)
        _finish_axis(panel, curves, label, upper, lower)
        if is_logarithmic:
            _logarithmic(panel, curves, upper)
        else:
            _fit(panel, curves, lower, upper)
        panel.set_xlabel(WAVENUMBER_LABEL)
        _caption(figure, caption, warning)
    return figure_names(path)


def _fit(axes: "Axes", curves: Sequence[Curve], lower: float, upper: float) -> None:
    """Fit the ordinate to what lies between lower and upper, bands included."""
    lows, highs = [0.0], [0.0]
    for curve in curves:
        bands = [np.nan_to_num(error) for error in (curve.error, curve.model_error) if error is not None]
        band = np.max([np.zeros_like(curve.values), *bands], axis=0)
        is_seen = (curve.wavenumber >= lower) & (curve.wavenumber <= upper) & np.isfinite(curve.values)
        if is_seen.any():
            lows.append(float((curve.values - band)[is_seen].min()))
            highs.append(float((curve.values + band)[is_seen].max()))
    span = max(highs) - min(lows)
    if span > 0:
        axes.set_ylim(min(lows) - 0.03 * span, max(highs) + 0.05 * span)


def plot_ir(
    path: str | Path, curves: Sequence[Curve], caption: str = "", upper: float = 4500.0, warning: str = ""
) -> list[str]:
    """Draw IR spectra, n alpha [cm^-1]; see :func:`plot_overlay`."""
    return plot_overlay(path, curves, IR_LABEL, caption, upper, warning=warning)


def plot_tensor(
    path: str | Path,
    diagonal: Sequence[Curve],
    mixed: Sequence[Curve],
    caption: str = "",
    upper: float = 4500.0,
    warning: str = "",
) -> list[str]:
    """Draw the tensor of IR absorption, its diagonal above its mixed components [cm^-1]; returns the files' names."""
    _require([*diagonal, *mixed])
    with _figure(path, 2, 1, 6.0, 4.6, is_for_print=True, sharex=True) as (figure, axes):
        for panel, curves in zip(axes[:, 0], (diagonal, mixed)):
            for curve, colour in zip(curves, COLOURS[1:]):
                _draw(panel, curve, colour)
            _finish_axis(panel, curves, IR_LABEL, upper)
            _fit(panel, curves, 0.0, upper)
        axes[-1, 0].set_xlabel(WAVENUMBER_LABEL)
        _caption(figure, caption, warning)
    return figure_names(path)


def plot_parts(
    path: str | Path,
    total: Curve,
    parts: Sequence[Curve],
    label: str,
    caption: str = "",
    upper: float = 4500.0,
    warning: str = "",
) -> list[str]:
    """Draw the parts of a cross-correlation analysis below their total, a panel each; returns the names of the files.

    Every panel has its own scale, or small parts would not be seen; the name of a part is followed by its share in the
    integral of the total over the axis. What is negative is shaded. Parts that are nothing but round-off, such as pairs
    of two groups within one molecule, are counted in the caption instead. Many parts share several columns, with the
    total on top of each.

    Args:
        path: of the picture.
        total: the spectrum that the parts sum to.
        parts: with their names as labels.
        label: of the ordinate.
        caption: line below.
        upper: end of the axis [cm^-1].
        warning: line above.
    """
    _require([total])
    is_kept = (total.wavenumber <= upper) & np.isfinite(total.values)
    whole = float(np.trapezoid(total.values[is_kept], total.wavenumber[is_kept]))
    smallest = VISIBLE_PART * np.abs(total.values[is_kept]).max()
    drawn = [part for part in parts if np.abs(part.values[is_kept]).max() > smallest]
    if len(drawn) < len(parts):
        caption += f" {len(parts) - len(drawn)} parts below {VISIBLE_PART:g} of the total are not drawn."
    columns = -(-len(drawn) // PANELS_IN_COLUMN) or 1
    length = -(-len(drawn) // columns)
    heights = [1.7] + [1.0] * length
    with _figure(
        path,
        length + 1,
        columns,
        6.0 if columns == 1 else 4.0 * columns,
        1.0 + 0.8 * sum(heights),
        is_for_print=True,
        sharex=True,
        height_ratios=heights,
    ) as (figure, axes):
        for column in range(columns):
            some = [drawn[i] for i in np.array_split(np.arange(len(drawn)), columns)[column]]
            for row, curve in enumerate([total, *some]):
                panel = axes[row, column]
                _draw(panel, curve, COLOURS[0] if row == 0 else COLOURS[1])
                panel.set_xlim(0, upper)
                panel.axhline(0, color="#bbbbbb", lw=0.6, zorder=0)
                _fit(panel, [curve], 0.0, upper)
                text = curve.label
                if row:
                    negative = np.where(curve.values < 0, curve.values, 0.0)
                    panel.fill_between(curve.wavenumber, negative, 0, color=COLOURS[2], alpha=0.5, lw=0)
                    part = float(np.trapezoid(curve.values[is_kept], curve.wavenumber[is_kept]))
                    text += f"   {100 * part / whole:+.1f} %".replace("-", "\N{MINUS SIGN}") if whole else ""
                    panel.locator_params(axis="y", nbins=3)
                panel.set_title(text, fontsize=8, loc="left", pad=2.5)
            for row in range(len(some) + 1, length + 1):
                axes[row, column].set_visible(False)
            axes[len(some), column].tick_params(labelbottom=True)
            axes[len(some), column].set_xlabel(WAVENUMBER_LABEL)
            axes[len(some), column].xaxis.set_in_layout(len(some) == length)  # no gap in the other columns
        figure.supylabel(label, fontsize=9)
        _caption(figure, caption, warning)
    return figure_names(path)


def plot_raman(
    path: str | Path,
    curves: Mapping[str, Curve],
    depolarization: Curve | None = None,
    caption: str = "",
    upper: float = 4500.0,
    *,
    label: str = RAMAN_LABEL,
    warning: str = "",
) -> list[str]:
    """Draw Raman lineshapes on a logarithmic axis and, below, the depolarization ratio; returns the names of the files.

    Args:
        path: of the picture.
        curves: by kind (iso, vv, vh).
        depolarization: VH/VV, or None.
        caption: line below.
        upper: end of the axis [cm^-1].
        label: of the ordinate.
        warning: line above.
    """
    _require(list(curves.values()))
    rows = 1 if depolarization is None else 2
    with _figure(
        path, rows, 1, 6.0, 2.0 + 1.8 * rows, is_for_print=True, sharex=True, height_ratios=[2.0, 1.0][:rows]
    ) as (figure, axes):
        top = axes[0, 0]
        for curve, colour in zip(curves.values(), COLOURS):
            _draw(top, curve, colour)
        _finish_axis(top, list(curves.values()), label, upper)
        # the low frequencies hold most of the intensity: decades show both them and the stretch
        _logarithmic(top, list(curves.values()), upper)
        if depolarization is not None:
            bottom = axes[1, 0]
            _draw(bottom, depolarization, COLOURS[0])
            bottom.axhline(0.75, color=COLOURS[2], lw=0.8, ls="--")
            _finish_axis(bottom, [], "VH / VV", upper)
            bottom.set_ylim(0, 0.9)
        axes[-1, 0].set_xlabel(WAVENUMBER_LABEL)
        _caption(figure, caption, warning)
    return figure_names(path)


def plot_comparison(
    path: str | Path,
    pairs: Mapping[str, tuple[Curve, Curve]],
    distances: Mapping[str, str] | None = None,
    caption: str = "",
    upper: float = 4000.0,
    warning: str = "",
) -> list[str]:
    """Draw pairs of spectra on top of each other, a panel for each, with their difference; Raman on a logarithmic axis.

    Returns the names of the files.

    Args:
        path: of the picture.
        pairs: by kind (ir, raman_iso, ...): first and second spectrum.
        distances: by kind, the text of the distance.
        caption: line below.
        upper: end of the axis [cm^-1].
        warning: line above.
    """
    if not pairs:
        raise SpectrumError("no pair of spectra to draw")
    with _figure(path, len(pairs), 1, 6.0, 1.1 + 1.8 * len(pairs), is_for_print=True) as (figure, axes):
        for row, (kind, (first, second)) in enumerate(pairs.items()):
            panel = axes[row, 0]
            _draw(panel, first, COLOURS[0])
            _draw(panel, second, COLOURS[2], "--")
            is_ir = kind == "ir"
            short = kind.removeprefix("raman_")
            if len(first.wavenumber) == len(second.wavenumber):
                difference = second.values - first.values
                shown = difference if is_ir else np.abs(difference)
                label = "difference" if is_ir else "|difference|"
                panel.plot(first.wavenumber, shown, color=COLOURS[7], lw=0.8, label=label)
            index = short.upper() if short in ("vv", "vh") else short
            y_label = IR_LABEL if is_ir else RAMAN_LABEL.replace("I(", rf"I_\mathrm{{{index}}}(")
            _finish_axis(panel, [first, second], y_label, upper)
            title = "IR" if is_ir else f"Raman, {KIND_NAMES.get(short, short)}"
            panel.set_title(f"{title}   {(distances or {}).get(kind, '')}", fontsize=8, loc="left")
            if not is_ir:
                _logarithmic(panel, [first, second], upper)
            if row + 1 < len(pairs):
                panel.tick_params(labelbottom=False)
        axes[-1, 0].set_xlabel(WAVENUMBER_LABEL)
        _caption(figure, caption, warning)
    return figure_names(path)


def _logarithmic(axes: "Axes", curves: Sequence[Curve], upper: float, decades: float = 4.5) -> None:
    """Use a logarithmic axis that ends some decades below the largest value; nothing changes without a positive one."""
    values = np.concatenate([c.values[(c.wavenumber <= upper) & np.isfinite(c.values)] for c in curves])
    if len(values) and values.max() > 0:
        axes.set_yscale("log")
        axes.set_ylim(values.max() * 10**-decades, values.max() * 2)


def plot_learning_curve(
    path: str | Path,
    points: Sequence[LearningPoint],
    r2_threshold: float | None = None,
    distance_threshold: float | None = None,
    caption: str = "",
) -> None:
    """Draw R^2 and RMSE of each target by species, and spectral distances, against the number of configurations.

    Args:
        path: of the picture.
        points: iterations, oldest first.
        r2_threshold: of stage 1, as a dashed line.
        distance_threshold: of stage 2.
        caption: line below.
    """
    if not points:
        raise SpectrumError("no iteration to draw a learning curve of")
    targets = list(points[-1].r2)
    columns = max(len(targets), 1)
    n = [point.n_training for point in points]
    with _figure(path, 3, columns, 3.6 * columns, 6.4) as (figure, axes):
        for column, target in enumerate(targets):
            unit = {"apt": "$e$", "pgt": r"$e^2 a_0 E_\mathrm{h}^{-1}$"}.get(target, "a.u.")
            for row, (name, label) in enumerate((("r2", "$R^2$"), ("rmse", f"RMSE / {unit}"))):
                panel = axes[row, column]
                for species, colour in zip(getattr(points[-1], name).get(target, {}), COLOURS):
                    values = [getattr(p, name).get(target, {}).get(species, np.nan) for p in points]
                    panel.plot(n, values, "o-", ms=3.5, color=colour, label=species)
                panel.set_ylabel(label)
                if name == "r2" and r2_threshold is not None:
                    panel.axhline(r2_threshold, color="#888888", lw=0.8, ls="--")
                elif name == "rmse":
                    panel.set_ylim(bottom=0)
                if row == 0:
                    panel.set_title(target.upper(), fontsize=9)
                if panel.get_legend_handles_labels()[0]:
                    panel.legend(loc="best")
            kinds = [k for k in points[-1].distances if (k == "ir") == (target == "apt")]
            _draw_distances(axes[2, column], points, kinds, distance_threshold, "ir" if target == "apt" else "raman")
        for panel in axes.flat:
            panel.set_xlim(0.9 * min(n), 1.1 * max(n))
            _count_axis(panel, n)
        for panel in axes[-1]:
            panel.set_xlabel("Training configurations")
        _caption(figure, caption)


def _draw_distances(
    panel: "Axes", points: Sequence[LearningPoint], kinds: Sequence[str], threshold: float | None, parts: str
) -> None:
    for kind, colour in zip(kinds, COLOURS):
        known = [(p.n_training, *p.distances[kind]) for p in points if kind in p.distances]
        x, value, lower, upper = np.array(known, dtype=float).T
        short = kind.removeprefix("raman_")
        panel.plot(x, value, "s-", ms=3.5, color=colour, label=KIND_NAMES.get(short, short))
        panel.vlines(x, np.where(np.isfinite(lower), lower, value), np.where(np.isfinite(upper), upper, value), colour)
    scored = [(p.n_training, *p.parts[parts]) for p in points if parts in p.parts]
    if scored:
        x, mean, deviation = np.array(scored, dtype=float).T
        style: dict[str, Any] = {"color": "#666666", "ms": 4, "mfc": "white", "lw": 0.8, "capsize": 2, "zorder": 1}
        panel.errorbar(x, mean, deviation, fmt="o--", label="parts, mean and spread", **style)
    panel.set_ylabel(r"$\Delta$ to the iteration before")
    panel.set_ylim(bottom=0)
    if threshold is not None:
        panel.axhline(threshold, color="#888888", lw=0.8, ls="--")
    if kinds or scored:
        panel.legend(loc="best")


def _count_axis(panel: "Axes", counts: Sequence[int]) -> None:
    """Use a logarithmic axis that is marked at the numbers there are."""
    from matplotlib.ticker import FixedLocator, NullLocator

    panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(sorted(set(counts))))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _require(curves: Sequence[Curve]) -> None:
    if not curves:
        raise SpectrumError("no spectrum to draw")
    if len(curves) > len(COLOURS):
        raise SpectrumError(f"a figure holds at most {len(COLOURS)} spectra, got {len(curves)}")


def learning_points(records: Sequence[Mapping[str, Any]]) -> list[LearningPoint]:
    """Read iterations from JSON-able records; see :func:`mimyria_wf.convergence.iteration_from_dict`."""
    points = []
    for record in records:
        r2: dict[str, dict[str, float]] = {}
        rmse: dict[str, dict[str, float]] = {}
        for target, metrics in record.get("metrics", {}).items():
            errors = metrics.get("test", metrics)
            for name, values in (("r2", r2), ("rmse", rmse)):
                by_species = {s: e.get(name) for s, e in errors.get("by_species", {}).items()}
                every = {"mean": errors.get(name), **by_species}
                values[target] = {s: float("nan") if v is None else float(v) for s, v in every.items()}
        distances = {}
        for kind, entry in record.get("comparison", {}).get("spectra", {}).items():
            ends = [float("nan") if entry.get(k) is None else float(entry[k]) for k in ("distance", "lower", "upper")]
            distances[kind] = (ends[0], ends[1], ends[2])
        scores = record.get("comparison", {}).get("cca") or {}
        parts = {
            name: (1 - float(scores[name]["agreement"]), float(scores[name]["standard_deviation"]))
            for name in ("ir", "raman")
            if name in scores
        }
        points.append(LearningPoint(int(record["n_training"]), r2, rmse, distances, parts))
    return points


def learning_curve_from_dicts(
    path: str | Path, settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]], caption: str = ""
) -> None:
    """Draw a learning curve from the JSON-able settings and records of :mod:`mimyria_wf.convergence`."""
    plot_learning_curve(path, learning_points(records), settings.get("r2"), settings.get("spectral_distance"), caption)
