"""JCAMP-DX, the exchange format that spectroscopists' programs read.

Written is version 4.24 (McDonald and Wilks, Appl. Spectrosc. 42, 151, 1988): one data block, uniform axis,
``XYDATA=(X++(Y..Y))`` in the plain AFFN form, ordinates as integers times ``YFACTOR``, lines of at most 80
characters that start with their abscissa. What the standard has no label for (what the ordinate is, its unit, how the
spectrum was made) stands in private labels ``##$...`` and in ``##YUNITS``. Reading, of this and of the compressed
forms that instruments write, is left to the library ``jcamp``.
"""

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jcamp
import numpy as np
from numpy.typing import NDArray

from mimyria_wf.errors import SpectrumError

Array = NDArray[Any]

_LARGEST = 2**31 - 1
"""Ordinates are integers of 32 bits in the programs that read them."""
_LINE = 80


@dataclass(frozen=True)
class ExchangedSpectrum:
    """One spectrum as a JCAMP-DX file holds it.

    Attributes:
        title: of the block.
        x: (n,) abscissa in ``x_unit``.
        y: (n,) ordinate in ``y_unit``.
        x_unit: as the file says, such as ``1/CM``.
        y_unit: as the file says, such as ``ABSORBANCE``; the private label ``$UNITS`` of our files where it is there.
        data_type: such as ``INFRARED SPECTRUM``.
        labels: all labels of the file, in lower case, without data.
    """

    title: str
    x: Array
    y: Array
    x_unit: str
    y_unit: str
    data_type: str
    labels: Mapping[str, Any] = field(default_factory=dict)


def write_jcamp(
    path: str | Path,
    wavenumber: Array,
    values: Array,
    *,
    title: str,
    data_type: str,
    quantity: str,
    unit: str,
    kind: str,
    comment: str = "",
    labels: Mapping[str, str] | None = None,
) -> str:
    """Write a spectrum; returns the file's name.

    Args:
        path: usually ``.jdx``.
        wavenumber: (n,) uniform grid [cm^-1].
        values: (n,); undefined (NaN) ones at either end are left out, elsewhere they are refused.
        title: one line.
        data_type: ``INFRARED SPECTRUM`` or ``RAMAN SPECTRUM``.
        quantity: what the ordinate is, such as ``n(w) alpha(w)``.
        unit: of the ordinate.
        kind: which factors are inside (classical, harmonic, ...).
        comment: window, runs, temperature.
        labels: further private labels, without ``$``.

    Raises:
        SpectrumError: fewer than two points, a grid that is not uniform, or undefined values between others.
    """
    path = Path(path)
    is_defined = np.isfinite(values)
    if is_defined.sum() < 2:
        raise SpectrumError(f"{path.name}: a spectrum needs two defined points, got {int(is_defined.sum())}")
    first, last = np.flatnonzero(is_defined)[[0, -1]]
    x, y = (np.asarray(a, dtype=float)[first : last + 1] for a in (wavenumber, values))
    if not np.isfinite(y).all():
        raise SpectrumError(f"{path.name}: JCAMP-DX has no undefined values, found some at {x[~np.isfinite(y)][0]:.6g}")
    step = (x[-1] - x[0]) / (len(x) - 1)
    if not (step > 0 and np.allclose(np.diff(x), step, rtol=1e-6, atol=1e-9 * abs(x[-1]))):
        raise SpectrumError(f"{path.name}: JCAMP-DX XYDATA needs a uniform axis")
    largest = float(np.abs(y).max())
    # a round factor keeps the file readable and leaves nine digits
    y_factor = float(f"{1.001 * largest / _LARGEST:.3e}") if largest > 0 else 1.0
    ordinates = np.rint(y / y_factor).astype(int)
    records = {
        "TITLE": title,
        "JCAMP-DX": "4.24",
        "DATA TYPE": data_type,
        "ORIGIN": "mimyria_wf",
        "OWNER": "not stated",
        "$QUANTITY": quantity,
        "$UNITS": unit,
        "$KIND": kind,
        **{f"${name.upper()}": text for name, text in (labels or {}).items()},
        "COMMENTS": comment,
        "XUNITS": "1/CM",
        "YUNITS": unit,
        "XFACTOR": "1",
        "YFACTOR": f"{y_factor:.9e}",
        "FIRSTX": f"{x[0]:.10g}",
        "LASTX": f"{x[-1]:.10g}",
        "NPOINTS": str(len(x)),
        "FIRSTY": f"{ordinates[0] * y_factor:.9e}",
        "MAXX": f"{x[-1]:.10g}",
        "MINX": f"{x[0]:.10g}",
        "MAXY": f"{ordinates.max() * y_factor:.9e}",
        "MINY": f"{ordinates.min() * y_factor:.9e}",
        "DELTAX": f"{step:.10g}",
    }
    lines = [line for label, text in records.items() if text for line in _wrapped(f"##{label}={_ascii(text)}")]
    lines += ["##XYDATA=(X++(Y..Y))", *_data_lines(x, ordinates), "##END="]
    path.write_text("\r\n".join(lines) + "\r\n", encoding="ascii", newline="")
    return path.name


def _ascii(text: str) -> str:
    return " ".join(text.encode("ascii", "replace").decode().split())


def _wrapped(record: str) -> list[str]:
    """Break a record into lines; no continuation may look like a new record."""
    lines, line = [], ""
    for word in record.split(" "):
        if line and len(line) + 1 + len(word) > _LINE:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def _data_lines(x: Array, ordinates: Array) -> list[str]:
    lines, line = [], ""
    for position, value in zip(x, ordinates):
        word = str(value)
        if line and len(line) + 1 + len(word) <= _LINE:
            line += f" {word}"
            continue
        if line:
            lines.append(line)
        line = f"{position:.10g} {word}"
    return [*lines, line]


def read_jcamp(path: str | Path) -> ExchangedSpectrum:
    """Read a JCAMP-DX file with one spectrum (of several blocks: the first that holds data).

    Raises:
        SpectrumError: no such file, or not a JCAMP-DX file with x and y data that agree with its labels.
    """
    path = Path(path)
    if not path.is_file():
        raise SpectrumError(f"{path}: no such file")
    if "##" not in path.read_text(errors="replace")[:2000]:
        raise SpectrumError(f"{path} is not a JCAMP-DX file: no ##LABEL= in it")
    said = io.StringIO()
    try:
        # the library prints what fails its checks
        with contextlib.redirect_stdout(said), path.open("rb") as file:
            block = jcamp.read(file)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception and whatever malformed numbers give
        raise SpectrumError(f"{path} cannot be read as JCAMP-DX: {error or type(error).__name__}") from None
    block = next((child for child in block.get("children", []) if len(child.get("y", []))), block)
    x, y = np.asarray(block.get("x", []), dtype=float), np.asarray(block.get("y", []), dtype=float)
    n_points = block.get("npoints", len(y))
    if len(x) < 2 or len(x) != len(y) or n_points != len(y):
        raise SpectrumError(f"{path}: {len(x)} abscissas and {len(y)} ordinates for NPOINTS={n_points}")
    complaint = said.getvalue().strip().partition("\n")[0]
    if complaint:
        raise SpectrumError(f"{path} is inconsistent: {complaint}")
    labels = {name: value for name, value in block.items() if name not in ("x", "y", "children")}

    def text(name: str) -> str:
        return " ".join(str(labels.get(name, "")).split())

    first = labels.get("firsty")
    if isinstance(first, int | float) and not math.isclose(first, y[0], rel_tol=1e-3, abs_tol=1e-6 * np.abs(y).max()):
        raise SpectrumError(f"{path} is inconsistent: FIRSTY={first:g}, but the first ordinate is {y[0]:g}")
    return ExchangedSpectrum(
        text("title"), x, y, text("xunits"), text("$units") or text("yunits"), text("data type"), labels
    )
