import math
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from mimyria_wf.errors import ModelError
from mimyria_wf.training import HistoryRow
from mimyria_wf.training_plot import plot_training


def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[list[float], list[float]]]:
    """Return what is drawn by label, filled as it is drawn."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    plot = Axes.plot

    def spy(self: Axes, x: object, y: object, *args: object, **options: object) -> object:
        result = plot(self, x, y, *args, **options)
        lines[str(options.get("label"))] = (result[0].get_xdata().tolist(), result[0].get_ydata().tolist())
        return result

    monkeypatch.setattr(Axes, "plot", spy)
    return lines


def test_the_figure_shows_roots_of_losses_and_marks_the_weights_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = drawn(monkeypatch)
    rows = [HistoryRow(10 * k, k, 1e-2 / k, 1.0 / k**2, v) for k, v in ((1, 0.64), (2, 0.16), (3, 0.25))]
    plot_training(tmp_path / "figures/training.png", rows, "APT, 10 snapshots")
    assert (tmp_path / "figures/training.png").read_bytes().startswith(b"\x89PNG")
    assert lines["training"] == ([10, 20, 30], pytest.approx([1, 1 / 2, 1 / 3]))
    assert lines["validation"][1] == pytest.approx([0.8, 0.4, 0.5])
    assert lines["kept"] == ([20], pytest.approx([0.4]))


def test_without_validation_snapshots_no_point_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(monkeypatch)
    plot_training(tmp_path / "training.png", [HistoryRow(1, 1, 1e-2, 0.5, None), HistoryRow(2, 1, 1e-3, 0.4, None)])
    assert lines["training"][1] == pytest.approx([math.sqrt(0.5), math.sqrt(0.4)])
    assert "validation" not in lines
    assert "kept" not in lines
    with pytest.raises(ModelError, match="no records"):
        plot_training(tmp_path / "training.png", [])
