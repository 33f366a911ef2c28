"""Figure of one training: the loss, the validation loss, and the learning rate, against the steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mimyria_wf.errors import ModelError
from mimyria_wf.plots import COLOURS, _figure

if TYPE_CHECKING:
    from mimyria_wf.training import HistoryRow


def plot_training(path: str | Path, history: "Sequence[HistoryRow]", caption: str = "") -> None:
    """Draw the course of a training.

    The losses are mean squares of standardised components, so that their roots are shown: an error in units of the
    labels' own spread. Where there are validation snapshots, the weights of the lowest point became the model.

    Args:
        path: of the picture.
        history: records of the training.
        caption: line below.
    """
    if not history:
        raise ModelError("no records of a training to draw")
    steps = np.array([row.step for row in history])
    loss = np.sqrt([row.loss for row in history])
    validation = np.sqrt([np.nan if row.validation_loss is None else row.validation_loss for row in history])
    with _figure(path, 2, 1, 4.8, 4.2, sharex=True, height_ratios=(3, 1)) as (_, axes):
        upper, lower = axes[:, 0]
        upper.plot(steps, loss, "o-", ms=2.5, color=COLOURS[1], label="training")
        if np.isfinite(validation).any():
            best = int(np.nanargmin(validation))
            upper.plot(steps, validation, "s-", ms=2.5, color=COLOURS[2], label="validation")
            upper.plot(steps[best], validation[best], "o", ms=8, mfc="none", color=COLOURS[2], label="kept")
        upper.set_yscale("log")
        upper.set_ylabel("Error / spread of labels")
        upper.legend(loc="best")
        lower.plot(steps, [row.learning_rate for row in history], color=COLOURS[0])
        lower.set_yscale("log")
        lower.set_ylabel("Learning rate")
        lower.set_xlabel("Step")
        if caption:
            upper.set_title(caption, fontsize=9)
