"""Figures are drawn, are pictures, and leave matplotlib's state alone."""

import subprocess
import sys

import numpy as np
import pytest

from mimyria_wf.errors import SpectrumError
from mimyria_wf.plots import (
    Curve,
    learning_curve_from_dicts,
    learning_points,
    plot_comparison,
    plot_ir,
    plot_learning_curve,
    plot_raman,
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
            record["comparison"] = {"spectra": {"ir": entry, "raman_iso": entry, "raman_vv": single}}
        out.append(record)
    return out


def test_ir(tmp_path):
    plot_ir(tmp_path / "ir.png", [Curve(NU, VALUES, 0.1 * VALUES, "a"), Curve(NU, VALUES, NU * np.nan)], "Caption.")
    assert is_picture(tmp_path / "ir.png")


def test_raman(tmp_path):
    curves = {"vv": Curve(NU, MASKED, 0.1 * MASKED, "VV"), "vh": Curve(NU, 0.3 * MASKED, None, "VH")}
    plot_raman(tmp_path / "raman.png", curves, Curve(NU, MASKED * 0 + 0.3, MASKED * 0 + 0.02), "Caption.")
    assert is_picture(tmp_path / "raman.png")


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
