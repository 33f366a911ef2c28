"""Measured spectra for overlays: two columns of text (CSV or blanks between) or JCAMP-DX.

The unit of both axes must be known; nothing is guessed from the size of numbers. It stands in the file, or is given as
one text for both axes, ``"cm^-1, 10^3 cm^-1"``. In a text file it stands in a line of names before the numbers,
``wavenumber [cm^-1], n alpha [10^3 cm^-1]`` (brackets, or after a slash), or in a comment, ``# units: cm^-1, cm^-1``.

An absorption coefficient in cm^-1 or m^-1 is absolute and can be held against n alpha as it is; ``decadic cm^-1`` is
turned into the Napierian one that theory gives. Absorbance, counts and arbitrary units can only be scaled.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mimyria_wf.errors import SpectrumError
from mimyria_wf.exchange import read_jcamp
from mimyria_wf.units import HBAR, WAVENUMBER, C, E

Array = NDArray[Any]
MeasuredKind = Literal["ir", "raman"]

_PER_CM = r"(?:1/cm|cm\^?\{?-1\}?|cm\*\*-1|cm⁻¹|/cm|wavenumbers?|kayser)"
_AXES: tuple[tuple[str, float, int], ...] = (
    # pattern, factor to cm^-1, power of the axis (1, or -1 for wavelengths)
    (_PER_CM, 1.0, 1),
    (r"(?:nm|nanomet(?:er|re)s?)", 1e7, -1),
    (r"(?:um|µm|μm|micromet(?:er|re)s?|microns?)", 1e4, -1),
    (r"mev", 1e-3 * E / (2 * math.pi * HBAR * C * 100), 1),
    (r"thz", WAVENUMBER / 1000, 1),
)
_PER_LENGTH = {r"(?:1/m|m\^?-1|m⁻¹|/m)": 0.01, _PER_CM.replace("|wavenumbers?|kayser", ""): 1.0}
_SCALED = (
    "arbitrary units",
    "arbitrary unit",
    "arbitrary",
    "arb. units",
    "arb. u.",
    "arb.u.",
    "a.u.",
    "relative",
    "counts",
    "absorbance",
    "kubelka-munk",
    "raman intensity",
    "intensity",
)
_KNOWN_X = "cm^-1, nm, um, meV, THz"
_KNOWN_Y = "cm^-1, m^-1 (with a factor such as 10^3 and the word decadic before), absorbance, transmittance, arbitrary"
_EXAMPLE = '"cm^-1, 10^3 cm^-1"'


@dataclass(frozen=True)
class MeasuredSpectrum:
    """A measured spectrum on an increasing axis.

    Attributes:
        name: for the legend.
        wavenumber: (n,) increasing [cm^-1].
        values: (n,) Napierian absorption coefficient [cm^-1] if absolute, otherwise in the file's own unit.
        unit: ``cm^-1`` if absolute, otherwise as stated.
        is_absolute: whether values are in cm^-1.
        kind: "ir" or "raman" where the file says so, else None.
        source: path as given.
    """

    name: str
    wavenumber: Array
    values: Array
    unit: str
    is_absolute: bool
    kind: MeasuredKind | None
    source: str


def read_measured(path: str | Path, units: str | None = None, name: str | None = None) -> MeasuredSpectrum:
    """Read a measured spectrum; rows may come in any order.

    Args:
        path: text with two columns of numbers, or JCAMP-DX (recognised by its content).
        units: of both axes, such as ``"cm^-1, 10^3 cm^-1"``; None: as stated in the file. What is given counts.
        name: for the legend; by default the file's title or name.

    Raises:
        SpectrumError: the file is missing or no table of two columns, a unit is missing or unknown.
    """
    path = Path(path)
    if not path.is_file():
        raise SpectrumError(f"{path}: no such file")
    text = path.read_text(encoding="utf-8", errors="replace")
    kind: MeasuredKind | None = None
    if re.search(r"^\s*##\s*TITLE\s*=", text, re.IGNORECASE | re.MULTILINE):
        spectrum = read_jcamp(path)
        x, y = spectrum.x, spectrum.y
        stated: tuple[str, str] | None = (spectrum.x_unit, spectrum.y_unit)
        data_type = spectrum.data_type.lower()
        kind = "raman" if "raman" in data_type else "ir" if "infrared" in data_type else None
        label = name or spectrum.title or path.stem
    else:
        x, y, stated = _read_columns(path, text)
        label = name or path.stem
    x_unit, y_unit = _chosen_units(path, units, stated)
    x = _wavenumbers(path, x, x_unit)
    y, is_absolute = _ordinates(path, y, y_unit)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise SpectrumError(f"{path}: values that are not finite; wavelengths and transmittances must be positive")
    # rows come in any order, and digitised curves repeat abscissas: one value each, their mean
    unique, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    values = np.bincount(inverse, weights=y) / counts
    if len(unique) < 2:
        raise SpectrumError(f"{path}: a spectrum needs two points at different wavenumbers, got {len(unique)}")
    return MeasuredSpectrum(
        label, unique, values, "cm^-1" if is_absolute else y_unit.strip(), is_absolute, kind, str(path)
    )


def _read_columns(path: Path, text: str) -> tuple[Array, Array, tuple[str, str] | None]:
    """Return both columns and the units that header or comments state."""
    stated: tuple[str, str] | None = None
    rows: list[tuple[float, float]] = []
    for number, raw in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        line = raw.strip()
        if not line:
            continue
        if line[0] in "#%!":
            found = re.match(r"[#%!\s]*units?\s*[:=]\s*(.+)", line, re.IGNORECASE)
            stated = _split_units(found.group(1)) if found else stated
            continue
        words = [word for word in re.split(r"[,;\t]\s*|\s+", line) if word]
        try:
            values = [float(word) for word in words]
        except ValueError:
            if rows:
                raise SpectrumError(f"{path}, line {number}: expected two numbers, found {line[:60]!r}") from None
            stated = _header_units(line) or stated
            continue
        if len(values) < 2:
            raise SpectrumError(f"{path}, line {number}: expected two numbers, found {line[:60]!r}")
        rows.append((values[0], values[1]))
    if len(rows) < 2:
        raise SpectrumError(f"{path} is no measured spectrum: expected two columns of numbers, found {len(rows)} rows")
    x, y = np.array(rows).T
    return x, y, stated


def _header_units(line: str) -> tuple[str, str] | None:
    """Return the units of the first two columns of a line such as ``wavenumber [cm^-1], n alpha / 10^3 cm^-1``."""
    names = [name.strip().strip('"') for name in re.split(r"[,;\t]", line)]
    found = []
    for name in names[:2]:
        unit = re.search(r"[\[(]\s*(.+?)\s*[\])]\s*$", name) or re.search(r"\s/\s*(.+)$", name)
        if unit is None:
            return None
        found.append(unit.group(1))
    return (found[0], found[1]) if len(found) == 2 else None


def _split_units(text: str) -> tuple[str, str] | None:
    first, comma, second = text.partition(",")
    return (first.strip(), second.strip()) if comma and first.strip() and second.strip() else None


def _chosen_units(path: Path, given: str | None, stated: tuple[str, str] | None) -> tuple[str, str]:
    if given is not None:
        pair = _split_units(given)
        if pair is None:
            raise SpectrumError(f"units of a measured spectrum are two, as in {_EXAMPLE}, got {given!r}")
        return pair
    if stated is None or not all(stated):
        raise SpectrumError(
            f"{path} does not say its units; give those of both axes, such as {_EXAMPLE} "
            "(--measured-units), or write `# units: cm^-1, cm^-1` into it"
        )
    return stated


def _wavenumbers(path: Path, x: Array, unit: str) -> Array:
    # instruments write RAMAN SHIFT (CM-1)
    text = re.sub(r"^(?:raman shift|wavenumbers?|wavelength)\s*[(\[/]\s*|[)\]]$", "", unit.strip().lower())
    for pattern, factor, power in _AXES:
        if re.fullmatch(pattern, text):
            if power < 0 and not np.all(x > 0):
                raise SpectrumError(f"{path}: wavelengths must be positive")
            return factor * x if power > 0 else factor / x
    raise SpectrumError(f"{path}: the unit {unit!r} of the first axis is unknown; known are {_KNOWN_X}")


def _ordinates(path: Path, y: Array, unit: str) -> tuple[Array, bool]:
    """Return values and whether they are an absolute Napierian absorption coefficient [cm^-1]."""
    text = unit.strip().lower()
    if text in _SCALED:
        return y, False
    if text in ("transmittance", "% transmittance", "percent transmittance", "transmittance (%)", "%t"):
        fraction = y / 100 if text != "transmittance" else y
        if not np.all(fraction > 0):
            raise SpectrumError(f"{path}: transmittance must be positive")
        return -np.log10(fraction), False
    factor = 1.0
    if text.startswith("decadic"):
        factor, text = math.log(10), text.removeprefix("decadic").strip()
    text = text.removeprefix("napierian").strip()
    number = re.match(
        r"(?:10\s*\^\s*\{?(?P<power>[+-]?\d+)\}?|(?P<plain>[\d.]+(?:e[+-]?\d+)?))(?:\s*[*x·]\s*|\s+|(?=[a-df-z]))", text
    )
    if number and not text.startswith("1/"):
        factor *= 10.0 ** int(number["power"]) if number["power"] else float(number["plain"])
        text = text[number.end() :]
    for pattern, length in _PER_LENGTH.items():
        if re.fullmatch(pattern, text):
            return y * factor * length, True
    raise SpectrumError(f"{path}: the unit {unit!r} of the second axis is unknown; known are {_KNOWN_Y}")
