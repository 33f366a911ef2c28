"""First guesses of CP2K's wavefunction in a field, from those of the field points that are done.

The occupied orbitals of an insulator are smooth functions of a homogeneous field once the arbitrary rotation among
them is taken out. A guess is the linear combination of earlier wavefunctions that keeps the low orders of their Taylor
series: 2 C(0) - C(+x) for the point -x, C(+x) + C(+y) - C(0) for +x+y. Its error is of second or third order in the
field, that of the zero-field wavefunction of first. CP2K orthonormalises what it reads and converges it as always, so
a guess decides what a point costs and, below the SCF threshold, nothing else.

The files are CP2K's ``PROJECT-RESTART.wfn``: Fortran records of the layout of the basis, then for each spin counts,
levels and occupations, and one record of coefficients an orbital (``read_mo_set`` in CP2K's source).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
from ase import Atoms
from scipy.io import FortranEOFError, FortranFile, FortranFormattingError

from mimyria_wf.cp2k_input import Keyword, Section, parse_input, wavefunction_file, write_input
from mimyria_wf.cp2k_output import read_run
from mimyria_wf.errors import CampaignError, EngineError, MimyriaError
from mimyria_wf.response import Array

_ORDER_DECAY = 2e-3
"""Size of one order of the field in that of the order before it; seen at 5e-4 E_h/(e a0), PBE water."""

_NOISE = 1e-8
"""Error of a converged wavefunction in its size: SCF gradients of 1e-8."""

_HIGHEST_ORDER = 4

_HELD_BACK = 5e-4
"""Share of the reference that every extrapolation keeps, see :func:`extrapolation_weights`."""

_NEIGHBOUR_DISTANCE = 0.1
"""Largest displacement over which a wavefunction is taken along [A]."""

_LEAST_OVERLAP = 0.5
"""Least singular value of two sets of orbitals over that of the first with itself; fields of 1e-3 leave 0.99."""


@dataclass(frozen=True)
class Orbitals:
    """The orbitals of one spin.

    Attributes:
        counts: CP2K's record of counts (orbitals, homo, fully occupied orbitals, electrons).
        levels: (n_orbitals,) energies [E_h], zero under OT.
        occupations: (n_orbitals,).
        coefficients: (n_orbitals, n_basis).
    """

    counts: bytes
    levels: Array
    occupations: Array
    coefficients: Array


@dataclass(frozen=True)
class Wavefunction:
    """A restart file of CP2K.

    Attributes:
        layout: the four records that describe atoms and basis.
        spins: orbitals of each spin.
    """

    layout: tuple[bytes, ...]
    spins: tuple[Orbitals, ...]


def read_wavefunction(path: str | Path) -> Wavefunction:
    """Read ``PROJECT-RESTART.wfn``; EngineError with one line if it is missing, cut off or of another kind."""
    path = Path(path)
    try:
        with FortranFile(path) as file:
            layout = tuple(file.read_record(np.uint8).tobytes() for _ in range(4))
            n_atoms, n_spins, n_basis, n_sets, n_shells = np.frombuffer(layout[0], dtype=np.int32).tolist()
            sizes = [4 * n_atoms, 4 * n_atoms * n_sets, 4 * n_atoms * n_sets * n_shells]
            if n_spins not in (1, 2) or [len(record) for record in layout[1:]] != sizes:
                raise ValueError("its records do not describe atoms and basis")
            spins = []
            for _ in range(n_spins):
                counts = file.read_record(np.uint8).tobytes()
                n_orbitals = int(np.frombuffer(counts, dtype=np.int32)[0])
                levels = file.read_record(np.float64)
                rows = [file.read_record(np.float64) for _ in range(n_orbitals)]
                coefficients = np.array(rows).reshape(n_orbitals, -1)
                if levels.shape != (2 * n_orbitals,) or coefficients.shape[1] != n_basis:
                    raise ValueError(f"expected {n_orbitals} orbitals of {n_basis} coefficients")
                spins.append(Orbitals(counts, levels[:n_orbitals], levels[n_orbitals:], coefficients))
    except FileNotFoundError:
        raise EngineError(
            f"no wavefunction {path.name}: the run that should have left it failed or was not run"
        ) from None
    except (FortranEOFError, FortranFormattingError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise EngineError(f"{path.name} is no wavefunction of CP2K, or it is cut off: {reason}") from None
    return Wavefunction(layout, tuple(spins))


def write_wavefunction(path: str | Path, wavefunction: Wavefunction) -> None:
    """Write a restart file that CP2K reads."""
    with FortranFile(Path(path), "w") as file:
        for record in wavefunction.layout:
            file.write_record(np.frombuffer(record, dtype=np.uint8))
        for orbitals in wavefunction.spins:
            file.write_record(np.frombuffer(orbitals.counts, dtype=np.uint8))
            file.write_record(np.concatenate([orbitals.levels, orbitals.occupations]))
            for row in orbitals.coefficients:
                file.write_record(np.ascontiguousarray(row))


def extrapolation_weights(field_vectors: Array, target: Array) -> Array:
    """Return how much of each known wavefunction makes the guess at another field.

    The weights minimise the expected square of the guess's error if each order of the Taylor series is 2e-3 of the
    order before and each known wavefunction carries an SCF error of 1e-8 (ridge regression of the target's monomials
    on those of the known fields): low orders are reproduced where the known points allow it, and nothing is amplified.

    A guess can be too good: from one whose error is the SCF noise of the known points, steps change the energy by less
    than its last digit, and OT was seen to wander between 1e-9 and 1e-8 for 100 steps. So 0.05 % of the change from the
    first known point is held back, a smooth error of second-order size that OT takes out in two or three steps.

    Args:
        field_vectors: (n_known, 3) fields of the known wavefunctions, the first the reference [E_h/(e a0)].
        target: (3,) field of the guess [E_h/(e a0)].

    Returns:
        (n_known,) weights; they sum to one but for 1e-4 or so, which CP2K's orthonormalisation takes out.
    """
    vectors = np.asarray(field_vectors, dtype=float).reshape(-1, 3)
    target = np.asarray(target, dtype=float)
    scale = max(float(np.abs(vectors).max(initial=0.0)), float(np.abs(target).max())) or 1.0
    orders = [n for n in range(_HIGHEST_ORDER + 1) for _ in combinations_with_replacement(range(3), n)]
    sizes = _ORDER_DECAY ** np.array(orders, dtype=float)
    known = sizes[:, None] * _monomials(vectors / scale).T
    wanted = sizes * _monomials(target[None] / scale)[0]
    n_known = len(vectors)
    design = np.concatenate([known, _NOISE * np.eye(n_known)])
    weights = np.linalg.lstsq(design, np.concatenate([wanted, np.zeros(n_known)]), rcond=1e-14)[0]
    return (1 - _HELD_BACK) * weights + _HELD_BACK * np.eye(n_known)[0]


def _monomials(vectors: Array) -> Array:
    """Return (n, n_monomials) products of components up to the highest order."""
    return np.array(
        [
            np.prod(vectors[:, list(chosen)], axis=1)
            for order in range(_HIGHEST_ORDER + 1)
            for chosen in combinations_with_replacement(range(3), order)
        ]
    ).T


def aligned(wavefunction: Wavefunction, reference: Wavefunction) -> Wavefunction:
    """Return the wavefunction with its orbitals rotated among themselves to be closest to those of a reference.

    Orbitals of one occupation describe the same state in any rotation, and CP2K's OT leaves them in an arbitrary one.
    The rotation is the orthogonal Procrustes solution for the coefficients, polar(C_ref C^T): the same for every
    rotation of C, and a smooth function of the field. Empty orbitals are left alone.

    Raises:
        EngineError: another basis, other occupations, or orbitals that have little to do with the reference's.
    """
    if wavefunction.layout != reference.layout or len(wavefunction.spins) != len(reference.spins):
        raise EngineError("the wavefunctions are of different atoms or basis sets")
    spins = []
    for orbitals, others in zip(wavefunction.spins, reference.spins):
        if orbitals.counts != others.counts or not np.array_equal(orbitals.occupations, others.occupations):
            raise EngineError("the wavefunctions have different occupations")
        coefficients = orbitals.coefficients.copy()
        for occupation in np.unique(orbitals.occupations[orbitals.occupations > 0]):
            chosen = orbitals.occupations == occupation
            target = others.coefficients[chosen]
            left, singular, right = np.linalg.svd(target @ coefficients[chosen].T)
            own = np.linalg.svd(target @ target.T, compute_uv=False)
            if not singular[-1] > _LEAST_OVERLAP * own[-1]:
                raise EngineError("the wavefunctions are of different states or geometries")
            coefficients[chosen] = left @ right @ coefficients[chosen]
        spins.append(replace(orbitals, coefficients=coefficients))
    return Wavefunction(wavefunction.layout, tuple(spins))


def extrapolate(wavefunctions: Sequence[Wavefunction], field_vectors: Array, target: Array) -> Wavefunction:
    """Return a guess of the wavefunction in another field.

    Args:
        wavefunctions: known ones; the first is the reference of the alignment, best the one without field.
        field_vectors: (n_known, 3) their fields [E_h/(e a0)].
        target: (3,) the field of the guess [E_h/(e a0)].
    """
    first = wavefunctions[0]
    weights = extrapolation_weights(field_vectors, target)
    alike = [first, *(aligned(one, first) for one in wavefunctions[1:])]
    spins = tuple(
        replace(
            orbitals,
            coefficients=np.where(
                orbitals.occupations[:, None] > 0,
                sum(weight * one.spins[spin].coefficients for weight, one in zip(weights, alike)),
                orbitals.coefficients,
            ),
        )
        for spin, orbitals in enumerate(first.spins)
    )
    return Wavefunction(first.layout, spins)


def guess_file(project: str) -> str:
    """Return the name of the file from which a field point takes its guess."""
    return f"{project}-GUESS.wfn"


def extrapolating_inputs(inputs: Mapping[str, str]) -> dict[str, str]:
    """Return the inputs of a field set, each field point starting from its own guess and leaving its wavefunction.

    Args:
        inputs: file name -> text of :func:`mimyria_wf.cp2k_input.render_field_set`, in the order to run them.

    Returns:
        The same names. Before each run but the first, :func:`write_guess` is to be called with its input and those
        before it. Without that CP2K starts from atomic densities, dearer and with the same result.
    """
    return {
        name: _extrapolating(parse_input(text, name), name.removesuffix(".inp")) if number else text
        for number, (name, text) in enumerate(inputs.items())
    }


def _extrapolating(content: Section, project: str) -> str:
    restart = Section("RESTART", "ON", (Keyword("BACKUP_COPIES", "0"),))
    content = content.with_section("FORCE_EVAL/DFT/SCF/PRINT", restart)
    return write_input(content.with_keyword("FORCE_EVAL/DFT/WFN_RESTART_FILE_NAME", guess_file(project)))


@dataclass(frozen=True)
class Guess:
    """What a guess was made of.

    Attributes:
        file: its name.
        weights: project of each wavefunction in it -> its weight.
        left_out: project of each earlier run that was not used -> why.
    """

    file: str
    weights: dict[str, float]
    left_out: dict[str, str]

    @property
    def text(self) -> str:
        """One line for a log."""
        parts = [f"{weight:+.2f} {project}" for project, weight in self.weights.items() if abs(weight) > 5e-3]
        missing = "".join(f"; without {project}: {reason}" for project, reason in self.left_out.items())
        return f"{self.file} = {' '.join(parts) or 'nothing'}{missing}"


def write_guess(target: str | Path, earlier: Sequence[str | Path]) -> Guess:
    """Write the guess of a field point from the runs that are done, in the folder of its input.

    Fields are read from the inputs. A run that is not there, did not converge, or whose wavefunction does not fit is
    left out. If none is left, no file is written.

    Args:
        target: the point's CP2K input, which names its guess (WFN_RESTART_FILE_NAME).
        earlier: inputs of runs that came before in the same folder, the one without field first.

    Raises:
        EngineError: the target's input cannot be read or names no guess, or names the wavefunction of another run.
    """
    target = Path(target)
    content = _input(target)
    name = content.keyword("FORCE_EVAL/DFT/WFN_RESTART_FILE_NAME")
    runs = [Path(path) for path in earlier]
    if not name or name in {wavefunction_file(run.stem) for run in runs}:
        found = f"it names {name}" if name else "it names none"
        raise EngineError(f"{target.name} must name a guess of its own in WFN_RESTART_FILE_NAME, {found}")
    wavefunctions: list[Wavefunction] = []
    vectors: list[Array] = []
    used: list[str] = []
    left_out: dict[str, str] = {}
    for run in runs:
        try:
            vector = _field(_input(run))
            _check_converged(run)
            wavefunction = read_wavefunction(run.with_name(wavefunction_file(run.stem)))
            wavefunctions.append(aligned(wavefunction, wavefunctions[0]) if wavefunctions else wavefunction)
        except MimyriaError as error:
            left_out[run.stem] = str(error)
            continue
        vectors.append(vector)
        used.append(run.stem)
    guess = target.with_name(name)
    if not used:
        return Guess(name, {}, left_out)
    wanted = _field(content)
    weights = extrapolation_weights(np.array(vectors), wanted)
    if len(used) == 1:
        shutil.copyfile(target.with_name(wavefunction_file(used[0])), guess)
    else:
        write_wavefunction(guess, extrapolate(wavefunctions, np.array(vectors), wanted))
    return Guess(name, dict(zip(used, weights.tolist())), left_out)


def start_from_guess(target: str | Path, earlier: Sequence[str | Path]) -> Guess | None:
    """Make a rendered input that is about to run start from a guess; nothing happens to one without a field.

    Args:
        target: the point's CP2K input, rewritten as :func:`extrapolating_inputs` does.
        earlier: as for :func:`write_guess`.
    """
    target = Path(target)
    content = _input(target)
    if not _field(content).any():
        return None
    target.write_text(_extrapolating(content, target.stem))
    return write_guess(target, earlier)


def are_neighbours(one: Atoms, other: Atoms) -> bool:
    """Tell whether the wavefunction of one structure is a good guess for the other: no atom more than 0.1 A away."""
    return (
        len(one) == len(other)
        and bool((one.numbers == other.numbers).all() and (one.pbc == other.pbc).all())
        and one.info.get("charge", 0) == other.info.get("charge", 0)
        and one.info.get("multiplicity") == other.info.get("multiplicity")
        and bool(np.allclose(one.cell.array, other.cell.array, atol=_NEIGHBOUR_DISTANCE))
        and float(np.linalg.norm(one.positions - other.positions, axis=1).max()) < _NEIGHBOUR_DISTANCE
    )


def start_from_neighbour(target: str | Path, wavefunction: bytes) -> None:
    """Make an input without a field that is about to run start from the wavefunction of a similar structure.

    Args:
        target: CP2K input of a run without a field, rewritten.
        wavefunction: content of the other structure's ``PROJECT-RESTART.wfn``; coefficients move with their atoms.
    """
    target = Path(target)
    target.with_name(guess_file(target.stem)).write_bytes(wavefunction)
    content = _input(target).with_keyword("FORCE_EVAL/DFT/SCF/SCF_GUESS", "RESTART")
    target.write_text(_extrapolating(content, target.stem))


def _input(path: Path) -> Section:
    try:
        return parse_input(path.read_text(), path.name)
    except OSError as error:
        raise EngineError(f"{path.name} cannot be read: {error.strerror}") from None
    except CampaignError as error:
        raise EngineError(str(error)) from None


def _field(content: Section) -> Array:
    """Return the field vector of an input [E_h/(e a0)].

    Inputs of this package hold a unit vector and a length, for which PERIODIC_EFIELD and EFIELD mean the same.
    """
    dft = content.section("FORCE_EVAL/DFT") or Section("DFT")
    section = dft.section("PERIODIC_EFIELD") or dft.section("EFIELD")
    if section is None:
        return np.zeros(3)
    direction = np.array([float(value) for value in (section.keyword("POLARISATION") or "0 0 1").split()])
    return float(section.keyword("INTENSITY") or 0.0) * direction / np.linalg.norm(direction)


def _check_converged(run: Path) -> None:
    output = run.with_suffix(".out")
    if not output.is_file():
        raise EngineError("it was not run")
    found = read_run(output.read_text(errors="replace"))
    if not (found.is_finished and found.scf_converged):
        raise EngineError("its SCF did not converge" if found.is_finished else "it did not finish")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb ``extrapolate-wavefunction``."""
    parser.add_argument("target", type=Path, help="CP2K input of the field point to be run next")
    parser.add_argument(
        "earlier", type=Path, nargs="+", help="inputs of the runs before it, the one without field first"
    )


def run(chosen: argparse.Namespace) -> dict[str, object]:
    """Write the guess; the verb ``extrapolate-wavefunction``."""
    guess = write_guess(chosen.target, chosen.earlier)
    return {"file": guess.file, "weights": guess.weights, "left_out": guess.left_out, "text": guess.text}


__all__ = [
    "Guess",
    "Orbitals",
    "Wavefunction",
    "aligned",
    "are_neighbours",
    "extrapolate",
    "extrapolating_inputs",
    "extrapolation_weights",
    "guess_file",
    "read_wavefunction",
    "start_from_guess",
    "start_from_neighbour",
    "write_guess",
    "write_wavefunction",
]
