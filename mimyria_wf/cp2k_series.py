"""Read what CP2K prints of dipoles and polarizabilities along an MD run.

Three forms, all seen with CP2K 2023.1:

- ``DFT/PRINT/MOMENTS``: a block a step, without step number or time. With PERIODIC T the dipole is the Berry-phase one,
  defined up to multiples of the cell vectors times e, which the block prints: the sign that a series must be unwrapped.
- ``PROPERTIES/LINRES/POLAR`` with DO_RAMAN in MD: a table ``*-1.polar`` of step, time and nine components in atomic
  units, named in its first line.
- ``LINRES/POLAR/PRINT/POLAR_MATRIX``: a block a step with the tensor in atomic units and in A^3, to five decimals only.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimyria_wf.errors import TrajectoryError
from mimyria_wf.units import DEBYE

Array = NDArray[Any]

_NUMBER = r"[-+]?\d*\.?\d+(?:[EeDd][-+]?\d+)?"
_HEAD = re.compile(r"Dipole moment \[(.*?)\]")
_DIPOLE = re.compile(rf"X=\s*({_NUMBER})\s+Y=\s*({_NUMBER})\s+Z=\s*({_NUMBER})\s+Total=")
_QUANTUM = re.compile(rf"\[[XYZ]\]\s*=?\s*\[\s*({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})\s*\]")
_TENSOR = re.compile(r"POLARIZABILITY TENSOR \(atomic units\)")
_ROWS = (("xx", "yy", "zz"), ("xy", "xz", "yz"), ("yx", "zx", "zy"))


@dataclass(frozen=True)
class Moments:
    """Dipoles of a MOMENTS file.

    Attributes:
        dipoles: (n_frames, 3) as printed [e A].
        quanta: (3, 3) rows that a Berry-phase dipole is defined modulo [e A]; None for the traditional operator.
    """

    dipoles: Array
    quanta: Array | None


def is_moments(head: str) -> bool:
    """Tell from its first lines whether a text is of DFT/PRINT/MOMENTS."""
    return "Reference Point [Bohr]" in head and "Dipole" in head


def is_polar_blocks(head: str) -> bool:
    """Tell from its first lines whether a text is of POLAR/PRINT/POLAR_MATRIX."""
    return _TENSOR.search(head) is not None


def read_moments(path: Path) -> Moments:
    """Read a MOMENTS file of one or more steps.

    Raises:
        TrajectoryError: a block is cut off or in another unit, or the cell changes.
    """
    text = path.read_text(errors="replace")
    dipoles: list[list[float]] = []
    quanta: list[list[list[float]]] = []
    n_heads = 0
    rows: list[list[float]] = []
    for line in text.splitlines():
        head = _HEAD.search(line)
        if head is not None:
            n_heads += 1
            if head[1] != "Debye":
                raise TrajectoryError(f"{path}: dipoles in {head[1]!r}, expected Debye as CP2K prints them")
        elif (dipole := _DIPOLE.search(line)) is not None:
            dipoles.append([float(x.replace("D", "E")) for x in dipole.groups()])
        elif (row := _QUANTUM.search(line)) is not None:
            rows.append([float(x) for x in row.groups()])
            if len(rows) == 3:
                quanta.append(rows)
                rows = []
    n_blocks = text.count("Reference Point [Bohr]")
    if not dipoles or len(dipoles) != n_blocks or n_heads != n_blocks:
        raise TrajectoryError(
            f"{path}: {len(dipoles)} dipoles in {n_blocks} blocks; the last block is cut off: remove it"
            if dipoles
            else f"{path}: no 'Dipole moment [Debye]' in it; let CP2K print DFT/PRINT/MOMENTS"
        )
    if quanta and len(quanta) != len(dipoles):
        raise TrajectoryError(f"{path}: periodic and molecular dipoles in one file; give one run only")
    found = None
    if quanta:
        stacked = np.array(quanta) * DEBYE
        if np.abs(stacked - stacked[0]).max() > 1e-6 * np.abs(stacked).max():
            raise TrajectoryError(f"{path}: the cell changes in time; dipoles of a variable cell give no spectrum")
        found = stacked[0].T  # columns of the printed matrix are the cell vectors
    return Moments(np.array(dipoles) * DEBYE, found)


def read_polar_blocks(path: Path) -> Array:
    """Read polarizabilities of a POLAR_MATRIX file.

    Returns:
        (n_frames, 3, 3) [e^2 a0^2/E_h].

    Raises:
        TrajectoryError: a block is cut off.
    """
    lines = path.read_text(errors="replace").splitlines()
    tensors = []
    for index, line in enumerate(lines):
        if _TENSOR.search(line) is None:
            continue
        values: dict[str, float] = {}
        for names, row in zip(_ROWS, lines[index + 1 : index + 4]):
            fields = row.split()
            if fields[:1] == [",".join(names)] and len(fields) == 4:
                values.update(zip(names, map(float, fields[1:])))
        if len(values) != 9:
            raise TrajectoryError(f"{path}: the polarizability after line {index + 1} is cut off; remove that block")
        tensors.append([[values[a + b] for b in "xyz"] for a in "xyz"])
    if not tensors:
        raise TrajectoryError(f"{path}: no 'POLARIZABILITY TENSOR (atomic units)' in it")
    return np.array(tensors)
