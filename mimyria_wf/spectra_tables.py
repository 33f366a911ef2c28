"""Tables of spectra: CSV with a header line of column names, the first of them ``wavenumber`` [cm^-1]."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimyria_wf.errors import SpectrumError

Array = NDArray[Any]


def write_table(path: Path, columns: Mapping[str, Array]) -> str:
    """Write columns of equal length; returns the file's name."""
    np.savetxt(path, np.column_stack(list(columns.values())), "%.10g", ",", header=",".join(columns), comments="")
    return path.name


def column_name(text: str) -> str:
    """Return a name that a CSV header can hold, with the commas of e.g. ``solute x rest, hydrogen bonded`` replaced."""
    return text.replace(", ", "; ").replace(",", ";").replace('"', "'")


def read_table(path: str | Path) -> dict[str, Array]:
    """Read one of our tables (CSV with a header line) by column name.

    Raises:
        SpectrumError: the file is missing, empty, or not such a table.
    """
    path = Path(path)
    if not path.is_file():
        raise SpectrumError(f"{path}: no such file")
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    names = [name.strip() for name in lines[0].split(",")] if lines else []
    try:
        rows = np.array([[float(word) for word in line.split(",")] for line in lines[1:]])
    except ValueError as error:
        raise SpectrumError(f"{path} is not a table of numbers: {error}") from None
    if len(rows) < 2 or rows.ndim != 2 or rows.shape[1] != len(names) or names[0] != "wavenumber":
        raise SpectrumError(
            f"{path} is not a table of spectra: expected a header `wavenumber,...` and rows of its width"
        )
    if not (np.isfinite(rows[:, 0]).all() and np.all(np.diff(rows[:, 0]) > 0)):
        raise SpectrumError(f"{path}: the wavenumbers must increase")
    return {name: rows[:, i] for i, name in enumerate(names)}
