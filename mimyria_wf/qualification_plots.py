"""Figures of a qualification: the U over the field step, errors over the SCF threshold, field against space."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mimyria_wf.plots import COLOURS, _caption, _figure
from mimyria_wf.qualification_verdict import Qualification, Screened, TensorQuality, at_threshold, same_threshold

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_UNITS = {"apt": "e", "pgt": r"$e^2 a_0/E_\mathrm{h}$"}
_ERROR = "Error / spread of tensors"
_STEP = r"Field step $h$ / $10^{-3}\,E_\mathrm{h}/(e\,a_0)$"


def plot_qualification(directory: str | Path, verdict: Qualification, stem: str = "qualification") -> list[Path]:
    """Draw what there is to draw of a verdict.

    Args:
        directory: where the pictures go.
        verdict: what to draw.
        stem: their names begin with it: STEM_steps.png, STEM_thresholds.png and STEM_parity.png.

    Returns:
        the pictures that were drawn.
    """
    directory = Path(directory)
    drawn = []
    if any(one.tensors for one in verdict.screened):
        drawn.append(directory / f"{stem}_steps.png")
        plot_steps(drawn[-1], verdict)
        if len({one.threshold for one in verdict.screened if one.tensors}) > 1:
            drawn.append(directory / f"{stem}_thresholds.png")
            plot_thresholds(drawn[-1], verdict)
    if verdict.spatial is not None and (verdict.spatial.apt or verdict.spatial.pgt):
        drawn.append(directory / f"{stem}_parity.png")
        plot_parity(drawn[-1], verdict)
    return drawn


def _targets(verdict: Qualification) -> list[str]:
    return [t for t in ("apt", "pgt") if any(t in one.tensors for one in verdict.screened)]


def _thresholds(verdict: Qualification) -> list[float | None]:
    found = {one.threshold for one in verdict.screened if one.tensors}
    return sorted(found, key=lambda threshold: threshold or 0.0)


def _of(verdict: Qualification, target: str, threshold: float | None) -> Iterator[tuple[Screened, TensorQuality]]:
    for one in verdict.screened:
        if target in one.tensors and same_threshold(one.threshold, threshold):
            yield one, one.tensors[target]


def _name(verdict: Qualification) -> str:
    level = verdict.engine.get("level_of_theory") or {}
    words = [verdict.engine.get("name"), verdict.engine.get("version"), level.get("method")]
    return ", ".join([*verdict.snapshots, " ".join(str(word) for word in words if word)])


def _log_errors(panel: Axes) -> None:
    """Make the axis of errors logarithmic where there is a positive one; zero and unknown ones cannot be shown then."""
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in panel.get_lines()]
    if any((values[np.isfinite(values)] > 0).any() for values in drawn):
        panel.set_yscale("log")


def _mark(panel: Axes, value: float | None, limit: float) -> None:
    panel.axhline(limit, color=COLOURS[7], lw=0.9, ls="--")
    low, high = panel.get_ylim()
    panel.set_ylim(low, max(high, 2.5 * limit))  # room for the word
    panel.annotate(
        "accepted", (1.0, limit), xycoords=("axes fraction", "data"), xytext=(-2, 2), textcoords="offset points",
        ha="right", va="bottom", fontsize=7, color="#666666",
    )  # fmt: skip
    if value is not None:
        panel.axvline(value, color=COLOURS[6], lw=5, alpha=0.35, zorder=0)


def _legend(figure: Figure, panel: Axes) -> None:
    """Name the curves of a panel above all panels."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6), fontsize=7)


def plot_steps(path: str | Path, verdict: Qualification) -> None:
    """Draw errors of APT and PGT against the field step, a curve for each threshold.

    Points are differences to the reference (the limit of vanishing fields at the tightest threshold), the thin line is
    what noise and next order of the fit make of it. Crosses compare with spatial derivatives. The shaded step is the
    one recommended.
    """
    targets = _targets(verdict)
    tightest = _thresholds(verdict)[0]
    with _figure(path, 1, len(targets), 1.0 + 3.2 * len(targets), 3.4) as (figure, axes):
        for panel, target in zip(axes[0], targets):
            for threshold, colour, marker in zip(_thresholds(verdict), COLOURS, "osD^vPX*"):
                found = sorted(_of(verdict, target, threshold), key=lambda pair: pair[0].step)
                steps = [one.step for one, _ in found]
                errors = [quality.measured for _, quality in found]
                panel.plot(steps, errors, marker=marker, ms=4, color=colour, label=at_threshold(threshold))
                spatial = [quality.spatial for _, quality in found if quality.spatial is not None]
                if threshold == tightest and spatial:
                    panel.plot(steps, spatial, "x--", ms=5, lw=0.8, color=colour, label="against displacements")
            if target in verdict.trends:
                ends = [one.step for one in verdict.screened]
                h = np.geomspace(0.8 * min(ends), 1.25 * max(ends), 100)
                panel.plot(h, verdict.trends[target].error(target, h), color=COLOURS[0], lw=0.7, ls=":")
            panel.set_xscale("log")
            _log_errors(panel)
            shown = sorted({one.step for one in verdict.screened})
            panel.set_xticks(shown, [f"{1e3 * step:g}" for step in shown])
            panel.set_xticks([], minor=True)
            _mark(panel, verdict.step, verdict.settings["tolerances"][target])
            panel.set_xlabel(_STEP)
            panel.set_ylabel(f"{target.upper()}: {_ERROR.lower()}")
        _legend(figure, axes[0, 0])
        _caption(figure, _name(verdict))


def plot_thresholds(path: str | Path, verdict: Qualification) -> None:
    """Draw errors of APT and PGT against the SCF threshold, a curve for each step that has several."""
    targets = _targets(verdict)
    with _figure(path, 1, len(targets), 1.0 + 3.2 * len(targets), 3.2) as (figure, axes):
        for panel, target in zip(axes[0], targets):
            steps = sorted({one.step for one in verdict.screened})
            drawn = 0
            for step in steps:
                found = sorted(
                    (one.threshold, one.tensors[target].measured)
                    for one in verdict.screened
                    if one.step == step and target in one.tensors and one.threshold is not None
                )
                if len(found) > 1:
                    panel.plot(*zip(*found), "o-", ms=4, color=COLOURS[drawn % len(COLOURS)], label=f"h = {step:g}")
                    drawn += 1
            panel.set_xscale("log")
            _log_errors(panel)
            _mark(panel, verdict.eps_scf, verdict.settings["tolerances"][target])
            panel.set_xlabel("EPS_SCF")
            panel.set_ylabel(f"{target.upper()}: {_ERROR.lower()}")
        _legend(figure, axes[0, 0])
        _caption(figure, _name(verdict))


def plot_parity(path: str | Path, verdict: Qualification) -> None:
    """Draw every component from displacements against the same from fields, with RMSE, relative RMSE and R^2."""
    spatial = verdict.spatial
    assert spatial is not None
    pairs = [(t, p) for t, p in (("apt", spatial.apt), ("pgt", spatial.pgt)) if p is not None]
    with _figure(path, 1, len(pairs), 0.6 + 3.1 * len(pairs), 3.4) as (figure, axes):
        for panel, (target, parity) in zip(axes[0], pairs):
            mine, other = np.array(parity.field), np.array(parity.spatial)
            low, high = min(mine.min(), other.min()), max(mine.max(), other.max())
            margin = 0.06 * (high - low)
            panel.plot([low - margin, high + margin], [low - margin, high + margin], color="#bbbbbb", lw=0.8, zorder=0)
            for symbol, colour, marker in zip(sorted(set(spatial.symbols)), COLOURS[1:], "osD^vPX"):
                chosen = [k for k, s in enumerate(spatial.symbols) if s == symbol]
                panel.plot(
                    mine[chosen].ravel(), other[chosen].ravel(), marker, ms=3.5, mfc="none", color=colour, label=symbol
                )
            text = f"RMSE {parity.rmse:.2g}\nlargest {parity.largest:.2g}\n"
            text += f"relative {100 * parity.relative:.2g} %\n$R^2$ {100 * parity.r2:.5g} %"
            panel.text(0.97, 0.04, text, transform=panel.transAxes, ha="right", va="bottom", fontsize=7.5)
            panel.set_xlabel(f"{target.upper()} from fields / {_UNITS[target]}")
            panel.set_ylabel(f"from displacements / {_UNITS[target]}")
            panel.set_aspect("equal")
            panel.legend(loc="upper left")
        _caption(figure, f"{_name(verdict)}; {len(spatial.atoms)} atoms, displaced by {spatial.displacement:g} \u00c5")
