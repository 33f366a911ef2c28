"""Figures are drawn, are pictures, and leave matplotlib's state alone."""

import subprocess
import sys

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from mimyria_wf import plots
from mimyria_wf.errors import SpectrumError
from mimyria_wf.plots import (
    Curve,
    learning_curve_from_dicts,
    learning_points,
    plot_comparison,
    plot_ir,
    plot_learning_curve,
    plot_overlay,
    plot_parts,
    plot_raman,
    plot_tensor,
)

NU = np.linspace(0, 4500, 1000)
VALUES = 100 * np.exp(-(((NU - 1650) / 40) ** 2)) + 400 * np.exp(-(((NU - 3500) / 150) ** 2))
MASKED = np.where(NU < 67, np.nan, VALUES * 1e-2 / np.fmax(NU, 1) ** 2)


def is_picture(path, least=10_000):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > least


def records():
    out = []
    for i, n in enumerate((10, 20, 40, 80)):
        errors = {"rmse": 0.1 / (i + 1), "r2": 1 - 0.3 / (i + 1)}
        metrics = {**errors, "by_species": {"H": errors, "O": {"rmse": 0.2, "r2": None}}}
        record = {"n_training": n, "metrics": {"apt": {"test": metrics}, "pgt": metrics}}
        if i:
            entry = {"distance": 0.05 / i, "lower": 0.04 / i, "upper": 0.07 / i}
            single = {**entry, "lower": None, "upper": None}
            score = {"agreement": 1 - 0.08 / i, "standard_deviation": 0.03 / i}
            record["comparison"] = {
                "spectra": {"ir": entry, "raman_iso": entry, "raman_vv": single},
                "cca": {"ir": score, "raman": score} if i > 1 else None,
            }
        out.append(record)
    return out


def test_ir(tmp_path):
    plot_ir(tmp_path / "ir.png", [Curve(NU, VALUES, 0.1 * VALUES, "a"), Curve(NU, VALUES, NU * np.nan)], "Caption.")
    assert is_picture(tmp_path / "ir.png")


def test_raman(tmp_path):
    curves = {"vv": Curve(NU, MASKED, 0.1 * MASKED, "VV"), "vh": Curve(NU, 0.3 * MASKED, None, "VH")}
    plot_raman(tmp_path / "raman.png", curves, Curve(NU, MASKED * 0 + 0.3, MASKED * 0 + 0.02), "Caption.")
    assert is_picture(tmp_path / "raman.png")


def is_for_print(path):
    """A vector file with its fonts inside and no time stamp in it."""
    content = path.read_bytes()
    return content.startswith(b"%PDF") and b"/FontFile2" in content and b"CreationDate" not in content


def test_tensor_and_parts(tmp_path, caplog):
    curves = [Curve(NU, (i + 1) * VALUES, 0.1 * VALUES, name) for i, name in enumerate(("xx", "yy", "zz"))]
    assert plot_tensor(tmp_path / "tensor.png", curves, curves, "Caption.") == ["tensor.png", "tensor.pdf"]
    parts = [Curve(NU, VALUES, 0.1 * VALUES, "solute"), Curve(NU, -0.5 * VALUES, None, "solute x rest")]
    total = Curve(NU, 0.5 * VALUES, 0.1 * VALUES, "total")
    plot_parts(tmp_path / "parts.png", total, parts, "n alpha", "Caption.", warning="Failed: f-sum.")
    for name in ("tensor", "parts"):
        assert is_picture(tmp_path / f"{name}.png")
        assert is_for_print(tmp_path / f"{name}.pdf")
    assert not caplog.records  # nothing about fonts


def panels(monkeypatch, path, parts):
    """Titles of the panels that a figure of parts shows, and its caption."""
    seen, captions = [], []
    monkeypatch.setattr(plots, "_caption", lambda figure, caption, warning="": captions.append((figure, caption)))
    plot_parts(path, Curve(NU, VALUES, None, "total"), parts, "n alpha", "Caption.")
    figure, caption = captions[0]
    seen = [axes.get_title(loc="left").split("   ")[0] for axes in figure.axes if axes.get_visible()]
    return seen, caption


def test_round_off_is_no_part(tmp_path, monkeypatch):
    parts = [Curve(NU, VALUES, None, "large"), Curve(NU, 1e-13 * VALUES, None, "nothing")]
    parts.append(Curve(NU, -1e-4 * VALUES, None, "rare"))
    assert panels(monkeypatch, tmp_path / "a.png", parts) == (
        ["total", "large", "rare"],
        "Caption. 1 parts below 1e-06 of the total are not drawn.",
    )


def test_many_parts_in_columns(tmp_path, monkeypatch):
    names = [f"part {i}" for i in range(21)]
    seen, _ = panels(monkeypatch, tmp_path / "a.png", [Curve(NU, VALUES, None, name) for name in names])
    assert seen.count("total") == 3
    assert sorted(seen) == sorted([*names, *["total"] * 3])


def test_figures_say_what_is_wrong_and_are_reproducible(tmp_path):
    curve = Curve(NU, VALUES, 0.1 * VALUES, "a")
    for name, warning in (("good", ""), ("again", ""), ("bad", "Failed: ir f-sum, equipartition.")):
        plot_overlay(tmp_path / f"{name}.png", [curve], "n alpha", "Caption.", warning=warning)
    content = {name: (tmp_path / f"{name}.png").read_bytes() for name in ("good", "again", "bad")}
    assert content["good"] == content["again"]
    assert (tmp_path / "good.pdf").read_bytes() == (tmp_path / "again.pdf").read_bytes()
    red = matplotlib.colors.to_rgb("#B00020")
    has_red = {
        name: bool(
            np.all(np.abs(matplotlib.image.imread(tmp_path / f"{name}.png")[..., :3] - red) < 0.02, axis=-1).any()
        )
        for name in ("good", "bad")
    }
    assert has_red == {"good": False, "bad": True}


def test_ordinate_fits_what_is_shown(tmp_path):
    """A strong band outside the range does not flatten what is inside it."""
    strong = Curve(NU, VALUES + 1e6 * np.exp(-(((NU - 4300) / 40) ** 2)), None, "a")
    plot_overlay(tmp_path / "far.png", [strong], "y", upper=4000.0)
    plot_overlay(tmp_path / "none.png", [Curve(NU, VALUES, None, "a")], "y", upper=4000.0)
    difference = [matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("far", "none")]
    assert np.mean(difference[0] != difference[1]) < 0.02


def test_comparison(tmp_path):
    pairs = {"ir": (Curve(NU, VALUES, label="explicit"), Curve(NU, 1.1 * VALUES, label="predicted"))}
    pairs["raman_iso"] = (Curve(NU, MASKED, label="explicit"), Curve(NU, 1.1 * MASKED, label="predicted"))
    plot_comparison(tmp_path / "both.png", pairs, {"ir": "0.01"}, "Caption.")
    assert is_picture(tmp_path / "both.png")


def test_learning_curve(tmp_path):
    settings = {"r2": 0.9, "spectral_distance": 0.02}
    learning_curve_from_dicts(tmp_path / "curve.png", settings, records(), "Caption.")
    assert is_picture(tmp_path / "curve.png")
    learning_curve_from_dicts(tmp_path / "one.png", {}, records()[:1])
    points = learning_points(records())
    assert points[0].r2["apt"]["mean"] == pytest.approx(0.7)
    assert np.isnan(points[0].r2["apt"]["O"])
    assert points[1].distances["ir"] == (0.05, 0.04, 0.07)
    assert points[1].parts == {}
    assert points[2].parts["raman"] == pytest.approx((0.04, 0.015))


def test_nothing_to_draw(tmp_path):
    with pytest.raises(SpectrumError, match="no spectrum"):
        plot_ir(tmp_path / "x.png", [])
    with pytest.raises(SpectrumError, match="no pair"):
        plot_comparison(tmp_path / "x.png", {})
    with pytest.raises(SpectrumError, match="learning curve"):
        plot_learning_curve(tmp_path / "x.png", [])


def test_matplotlib_is_imported_when_drawing_only():
    code = "import sys, mimyria_wf.spectra_files, mimyria_wf.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
