"""VASP input: an INCAR template, a mesh and potentials become the runs of a field set, LEPSILON and LCALCEPS.

A template holds what a level of theory is. Structure, field, symmetry, restart and writing of files come from here, so
that one template serves every snapshot. Each run has a folder of its own.

EFIELD_PEAD is a field on positive charges in eV/A, by component: OUTCARs of C60 show that the electrons move against
it. (EFIELD, the saw-tooth potential of VASP, has the opposite sign and is not used here.)
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ase
import ase.io
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mimyria_wf.errors import CampaignError, LabelError
from mimyria_wf.labels import multiplicity, total_charge
from mimyria_wf.units import HARTREE_PER_BOHR

Array = NDArray[Any]
VaspMethod = Literal["finite-field", "lepsilon", "lcalceps"]

METHODS: tuple[VaspMethod, ...] = ("finite-field", "lepsilon", "lcalceps")
ZERO_FIELD = "0"
"""Name of the point without a field; its wavefunction starts all others."""
LOOSEST_EDIFF = {"apt": 1e-6, "pgt": 1e-8}
"""Above it a warning [eV]; the PGT is a second difference, h^2 = 7e-4 (eV/A)^2 at the usual step."""
UNUSED_FIELD = 0.01
"""EFIELD_PEAD of directions that a turned LCALCEPS run does not need, VASP's own default [eV/A]; it resets smaller."""
_SMALLEST_FIELD = 1e-4
"""OUTCAR echoes four decimals, and VASP takes no notice of a field below 1e-5 [eV/A]."""

_OWNED = {
    "EFIELD_PEAD": "the field comes from the label's step",
    "EFIELD": "it is a saw-tooth potential of the opposite sign; fields come from the label's step",
    "LEPSILON": "choose method: lepsilon instead",
    "LCALCEPS": "choose method: lcalceps instead",
    "LDIPOL": "dipole corrections change the field that the atoms feel",
    "IDIPOL": "dipole corrections change the field that the atoms feel",
    "KSPACING": "the mesh is given by kpoints",
    "KGAMMA": "the mesh is given by kpoints",
}
_REPLACED = ("ISYM", "NSW", "IBRION", "ISTART", "ICHARG", "LWAVE", "LCHARG", "EDIFFG", "POTIM", "ISIF")


def parse_incar(text: str, source: str = "INCAR") -> dict[str, str]:
    """Return the tags of an INCAR, in upper case, with their values as text.

    Comments start with ``#`` or ``!``, ``;`` separates tags of one line, a backslash at the end continues a line.

    Raises:
        CampaignError: a tag is set twice (VASP would silently take the first), or a line sets nothing.
    """
    tags: dict[str, str] = {}
    pending = ""
    for number, raw in enumerate(text.splitlines(), 1):
        line = pending + re.split(r"[#!]", raw, maxsplit=1)[0].rstrip()
        pending = ""
        if line.endswith("\\"):
            pending = line[:-1] + " "
            continue
        for part in line.split(";"):
            if not part.strip():
                continue
            name, separator, value = part.partition("=")
            key = name.strip().upper()
            if not separator or not re.fullmatch(r"[A-Z][A-Z0-9_/]*", key):
                if number == 1 and not separator:
                    continue  # old files start with a title
                raise CampaignError(f"expected TAG = value, got {part.strip()!r} ({source}, line {number})")
            if key in tags:
                raise CampaignError(f"{key} is set twice; VASP takes the first: keep one ({source}, line {number})")
            tags[key] = value.strip().strip('"').strip()
    return tags


def _text(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return ".TRUE." if value else ".FALSE."
    if isinstance(value, float | np.floating):
        return f"{value:.10g}"
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        return " ".join(_text(v) for v in value)
    return str(value).strip()


def write_incar(tags: Mapping[str, object]) -> str:
    """Return an INCAR; booleans become .TRUE. and .FALSE., sequences are written with spaces."""
    return "".join(f"{name.upper()} = {_text(value)}\n" for name, value in tags.items())


def tag_values(tags: Mapping[str, str]) -> dict[str, bool | int | float | str | list[Any]]:
    """Return tags in lower case with values as Python has them, as aiida-vasp's ``parameters.incar`` takes them."""

    def one(word: str) -> bool | int | float | str:
        if re.fullmatch(r"\.?(T|TRUE|F|FALSE)\.?", word, flags=re.IGNORECASE):
            return word.strip(".").upper().startswith("T")
        if re.fullmatch(r"[-+]?\d+", word):
            return int(word)
        try:
            return float(re.sub("[dD]", "E", word))
        except ValueError:
            return word

    values: dict[str, bool | int | float | str | list[Any]] = {}
    for name, text in tags.items():
        words = [one(word) for word in text.split()]
        if len(words) == 1:
            values[name.lower()] = words[0]
        elif words and all(isinstance(w, int | float) and not isinstance(w, bool) for w in words):
            values[name.lower()] = list(words)
        else:
            values[name.lower()] = text
    return values


@dataclass(frozen=True)
class Kpoints:
    """A regular mesh.

    Attributes:
        divisions: along the three reciprocal vectors.
        gamma: whether the mesh is centred at Gamma; else it is Monkhorst and Pack's, which even divisions shift.
        shift: of the mesh, in units of its spacing.
    """

    divisions: tuple[int, int, int] = (1, 1, 1)
    gamma: bool = True
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        """Check that divisions are positive."""
        if len(self.divisions) != 3 or any(n < 1 for n in self.divisions):
            raise CampaignError(f"kpoints must be three positive divisions, got {list(self.divisions)}")

    @property
    def n_points(self) -> int:
        """Number of points in the full mesh."""
        return int(np.prod(self.divisions))

    def text(self) -> str:
        """Return a KPOINTS file."""
        kind = "Gamma" if self.gamma else "Monkhorst-Pack"
        divisions, shift = (" ".join(f"{x:g}" for x in row) for row in (self.divisions, self.shift))
        return f"regular mesh\n0\n{kind}\n{divisions}\n{shift}\n"


def parse_kpoints(text: str, source: str = "KPOINTS") -> Kpoints:
    """Read a KPOINTS file with a regular mesh.

    Raises:
        CampaignError: lists, band paths and generating vectors, in which a finite field is not defined.
    """
    lines = [re.split(r"[!#]", line)[0].strip() for line in text.splitlines()]
    try:
        is_mesh = int(lines[1].split()[0]) == 0 and lines[2][:1].upper() in ("G", "M")
        if is_mesh:
            x, y, z = (int(n) for n in lines[3].split()[:3])
            shift = [float(s) for s in lines[4].split()[:3]] if len(lines) > 4 and lines[4] else [0.0, 0.0, 0.0]
            return Kpoints((x, y, z), lines[2][:1].upper() == "G", (shift[0], shift[1], shift[2]))
    except (IndexError, ValueError) as error:
        raise CampaignError(f"{source}: not a KPOINTS file ({error}); five lines with a Gamma mesh do") from None
    raise CampaignError(
        f"{source}: needs a regular mesh (second line 0, third line Gamma or Monkhorst-Pack), got {lines[1]!r}, "
        f"{lines[2]!r}; the polarization is a Berry phase along lines of a full mesh"
    )


@dataclass(frozen=True)
class Potential:
    """What is known of a POTCAR without its text, which is licensed and stays where it is.

    Attributes:
        symbol: element.
        title: its TITEL, such as "PAW_PBE O 08Apr2002".
        valence: ZVAL, electrons of the neutral atom; None where the file does not say.
        path: of the file; None where something else (aiida-vasp) puts POTCAR together.
    """

    symbol: str
    title: str
    valence: float | None = None
    path: Path | None = None


def read_potential(path: str | Path, symbol: str) -> Potential:
    """Return title and valence of a POTCAR of one element.

    Raises:
        CampaignError: the file is missing, holds several potentials or one of another element.
    """
    path = Path(path)
    if not path.is_file():
        raise CampaignError(f"no potential of {symbol}: {path} does not exist")
    text = path.read_text(errors="replace")
    titles = re.findall(r"TITEL\s*=\s*(\S.*?)\s*$", text, flags=re.MULTILINE)
    if len(titles) != 1:
        raise CampaignError(f"{path}: expected the potential of one element (one TITEL), found {len(titles)}")
    words = titles[0].split()
    found = (words[1] if len(words) > 1 else words[0]).split("_")[0]
    if found != symbol:
        raise CampaignError(f"{path} is the potential of {found} ({titles[0]}), expected {symbol}")
    valence = re.search(r"ZVAL\s*=\s*([\d.]+)", text)
    return Potential(symbol, titles[0], float(valence[1]) if valence else None, path)


def _potentials(given: object) -> dict[str, Potential]:
    """Return potentials from a folder (with SYMBOL/POTCAR or POTCAR.SYMBOL), a mapping to files, or ready ones."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {s: p if isinstance(p, Potential) else read_potential(p, s) for s, p in given.items()}
    folder = Path(str(given))
    if not folder.is_dir():
        raise CampaignError(f"potentials: {folder} is no folder; name one with SYMBOL/POTCAR, or map symbols to files")
    found = {p.parent.name: p for p in folder.glob("*/POTCAR")} | {p.suffix[1:]: p for p in folder.glob("POTCAR.*")}
    elements = {s: p for s, p in found.items() if re.fullmatch(r"[A-Z][a-z]?", s)}
    return {symbol: read_potential(path, symbol) for symbol, path in sorted(elements.items())}


@dataclass(frozen=True)
class VaspTemplate:
    """A level of theory for VASP.

    Attributes:
        incar: tags in upper case -> text.
        kpoints: the mesh.
        potentials: symbol -> what is known of its POTCAR; empty where something else takes care of potentials.
    """

    incar: Mapping[str, str]
    kpoints: Kpoints = Kpoints()
    potentials: Mapping[str, Potential] = field(default_factory=dict)

    @classmethod
    def from_settings(cls, incar: object, kpoints: object = None, potentials: object = None) -> "VaspTemplate":
        """Return a template from what users write.

        Args:
            incar: an INCAR as text, its path, or a mapping tag -> value.
            kpoints: three divisions of a mesh centred at Gamma, a KPOINTS file as text or its path; None: Gamma.
            potentials: folder with ``SYMBOL/POTCAR``, or mapping symbol -> file; None: elsewhere.

        Raises:
            CampaignError: what cannot be read, with the reason.
        """
        if isinstance(incar, Mapping):
            tags = {str(k).upper(): _text(v) for k, v in incar.items()}
        else:
            tags = parse_incar(*_contents(incar, "INCAR"))
        if kpoints is None or isinstance(kpoints, Kpoints):
            mesh = kpoints or Kpoints()
        elif isinstance(kpoints, str | os.PathLike):
            mesh = parse_kpoints(*_contents(kpoints, "KPOINTS"))
        else:
            try:
                x, y, z = (int(n) for n in np.asarray(kpoints).ravel())
            except (TypeError, ValueError):
                raise CampaignError(f"kpoints must be three divisions or a KPOINTS file, got {kpoints!r}") from None
            mesh = Kpoints((x, y, z))
        return cls(tags, mesh, _potentials(potentials))

    @property
    def level_of_theory(self) -> dict[str, Any]:
        """What decides the forces, JSON-able: tags but those set here, the mesh, titles of potentials."""
        own = {name: value for name, value in self.incar.items() if name not in (*_REPLACED, "SYSTEM")}
        return {
            "incar": dict(sorted(own.items())),
            "kpoints": [*self.kpoints.divisions, "Gamma" if self.kpoints.gamma else "Monkhorst-Pack"],
            "shift": list(self.kpoints.shift),
            "potentials": {symbol: p.title for symbol, p in sorted(self.potentials.items())},
        }

    def varied(self, **tags: object) -> "VaspTemplate":
        """Return a copy with other tags, such as ``ediff=1e-7``; another level of theory."""
        return replace(self, incar={**self.incar, **{name.upper(): _text(value) for name, value in tags.items()}})

    def number(self, name: str, default: float) -> float:
        """Return a numeric tag.

        Raises:
            CampaignError: the tag holds no number.
        """
        text = self.incar.get(name)
        if text is None:
            return default
        try:
            return float(re.sub("[dD]", "E", text.split()[0]))
        except (ValueError, IndexError):
            raise CampaignError(f"INCAR: {name} must be a number, got {text!r}") from None

    def is_on(self, name: str) -> bool:
        """Tell whether a logical tag is set."""
        return self.incar.get(name, "F").strip(". ").upper().startswith("T")


def _contents(given: object, what: str) -> tuple[str, str]:
    """Return text and source of what may be text or a path."""
    if isinstance(given, str) and ("\n" in given or "=" in given):
        return given, what
    path = Path(str(given))
    if not path.is_file():
        raise CampaignError(f"{what}: {path} does not exist")
    return path.read_text(errors="replace"), str(path)


def sorted_atoms(atoms: ase.Atoms) -> tuple[ase.Atoms, NDArray[np.int64]]:
    """Return the atoms in the order of POSCAR, species by species as they first occur, and that order.

    Returns:
        the atoms; order (n_atoms,), so that atom i of POSCAR is atom ``order[i]`` of the snapshot.
    """
    first = {z: k for k, z in reversed(list(enumerate(atoms.numbers.tolist())))}
    order = np.array(sorted(range(len(atoms)), key=lambda k: (first[int(atoms.numbers[k])], k)), dtype=np.int64)
    return atoms[order], order


def restored(values: ArrayLike, order: NDArray[np.int64], axis: int = 0) -> Array:
    """Return values that are in the order of POSCAR along an axis, in the order of the snapshot."""
    return np.take(np.asarray(values), np.argsort(order), axis=axis)


def poscar_text(atoms: ase.Atoms) -> str:
    """Return POSCAR of atoms that are sorted already, in Cartesian coordinates with 16 digits."""
    symbols = atoms.get_chemical_symbols()
    starts = [k for k in range(len(symbols)) if k == 0 or symbols[k] != symbols[k - 1]]
    if len({symbols[k] for k in starts}) != len(starts):
        raise CampaignError("POSCAR needs the atoms of one species together; sort them first")
    counts = np.diff([*starts, len(symbols)])
    rows = [" ".join(f"{x:21.16f}" for x in row) for row in (*atoms.cell[:], *atoms.positions)]
    return "\n".join(
        [
            atoms.get_chemical_formula(),
            "1.0",
            *rows[:3],
            " ".join(symbols[k] for k in starts),
            " ".join(str(n) for n in counts),
            "Cartesian",
            *rows[3:],
            "",
        ]
    )


def potcar_text(template: VaspTemplate, atoms: ase.Atoms) -> str:
    """Return POTCAR in the order of POSCAR's species; it is for the run's folder and nothing else."""
    symbols = list(dict.fromkeys(sorted_atoms(atoms)[0].get_chemical_symbols()))
    parts = []
    for symbol in symbols:
        potential = template.potentials.get(symbol)
        if potential is None or potential.path is None:
            raise CampaignError(
                f"no potential of {symbol}; potentials given: {', '.join(template.potentials) or 'none'}"
            )
        parts.append(read_potential(potential.path, symbol).path.read_text(errors="replace"))  # type: ignore[union-attr]
    return "".join(part if part.endswith("\n") else part + "\n" for part in parts)


def point_directory(name: str) -> str:
    """Return the folder of a field point: ``0`` -> ``zero``, ``+x-y`` -> ``pxmy``."""
    if name == ZERO_FIELD:
        return "zero"
    return re.sub(r"[^A-Za-z0-9._]+", "_", name.replace("+", "p").replace("-", "m")).strip("_")


def point_directories(names: Sequence[str]) -> dict[str, str]:
    """Return folder by point, the zero-field point first and always there."""
    folders = {ZERO_FIELD: "zero"} | {name: point_directory(name) for name in names}
    if len(set(folders.values())) != len(folders):
        raise CampaignError(f"field points need folders of different names, got {list(folders.values())}")
    return folders


def check_field_against_gap(cell: ArrayLike, divisions: Sequence[int], vector: ArrayLike, gap: float) -> str:
    """Return why a field is too strong for the gap, "" if it is not.

    A field has no ground state where it can lift an electron across the gap. VASP warns from
    e|E.a_i| > E_gap/(10 N_i) on, with N_i the k-points along a_i: the Berry phase sees a cell of N_i a_i. It does so
    along vacuum too.

    Args:
        cell: (3, 3) rows a_i [A].
        divisions: N_i.
        vector: (3,) field [E_h/(e a0)].
        gap: fundamental gap [eV].
    """
    drop = np.abs(np.asarray(cell, dtype=float) @ np.asarray(vector, dtype=float)) * HARTREE_PER_BOHR
    limit = gap / (10 * np.asarray(divisions))
    worst = int(np.argmax(drop / limit)) if gap > 0 else 0
    if gap > 0 and drop[worst] <= limit[worst]:
        return ""
    allowed = "" if gap <= 0 else f"; at this gap up to {limit[worst] / drop[worst]:.2g} of this field"
    return (
        f"field too strong for the gap: e|E.a_{worst + 1}| = {drop[worst]:.3g} eV, "
        f"E_gap/(10 N_{worst + 1}) = {limit[worst]:.3g} eV with E_gap = {gap:.3g} eV{allowed}"
    )


def _check_charge_and_spin(template: VaspTemplate, atoms: ase.Atoms) -> list[str]:
    try:
        charge, spin = total_charge(atoms), multiplicity(atoms)
    except LabelError as error:
        raise CampaignError(f"INCAR: {error}") from None
    n_electrons = neutral_electrons(template, atoms)
    if "NELECT" in template.incar:
        given = template.number("NELECT", 0.0)
        if n_electrons is None:
            raise CampaignError(
                f"INCAR: NELECT = {given:g} cannot be checked against charge {charge}, for no valences (ZVAL) are "
                "known; remove NELECT or give the potentials"
            )
        if abs(n_electrons - charge - given) > 1e-6:
            raise CampaignError(
                f"INCAR: NELECT = {given:g} makes the charge {n_electrons - given:+g}, the snapshot has {charge:+d}; "
                "remove NELECT, it follows from the potentials and the snapshot"
            )
    elif charge and n_electrons is None:
        raise CampaignError(f"the snapshot has charge {charge:+d}: NELECT needs the valences (ZVAL) of the potentials")
    warnings = []
    polarized = template.number("ISPIN", 1) == 2
    unpaired = template.number("NUPDOWN", -1)
    if spin > 1 and not (polarized and unpaired == spin - 1):
        raise CampaignError(
            f"INCAR: multiplicity {spin} needs ISPIN = 2 and NUPDOWN = {spin - 1}, got ISPIN = "
            f"{2 if polarized else 1} and NUPDOWN = {template.incar.get('NUPDOWN', 'unset')}"
        )
    if spin == 1 and polarized and unpaired > 0:
        raise CampaignError(f"INCAR: NUPDOWN = {unpaired:g}, but the snapshot's multiplicity is 1")
    if n_electrons is not None and (round(n_electrons - charge) - (spin - 1)) % 2:
        raise CampaignError(
            f"{round(n_electrons - charge)} valence electrons (charge {charge:+d}) cannot have multiplicity {spin}; "
            "set charge or multiplicity of the snapshot"
        )
    if polarized and spin == 1 and "NUPDOWN" not in template.incar:
        warnings.append("INCAR: ISPIN = 2 without NUPDOWN: field points may end in different spin states; set NUPDOWN")
    if "MAGMOM" in template.incar:
        count = 0
        for word in template.incar["MAGMOM"].split():
            repeat, _, _ = word.rpartition("*")
            count += int(repeat) if repeat else 1
        if not polarized:
            raise CampaignError("INCAR: MAGMOM without ISPIN = 2 has no effect; remove it or set ISPIN = 2")
        if count != len(atoms):
            raise CampaignError(f"INCAR: MAGMOM has {count} values (in the order of POSCAR), expected {len(atoms)}")
    return warnings


def neutral_electrons(template: VaspTemplate, atoms: ase.Atoms) -> float | None:
    """Return the valence electrons of the neutral cell, None where a potential's valence is not known."""
    symbols = atoms.get_chemical_symbols()
    known = {s: p.valence for s, p in template.potentials.items() if p.valence is not None}
    if any(symbol not in known for symbol in symbols):
        return None
    return float(sum(known[symbol] for symbol in symbols))


def _check_structure(template: VaspTemplate, atoms: ase.Atoms) -> None:
    if not len(atoms) or not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise CampaignError("VASP input: needs atoms, and positions and cell that are finite")
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise CampaignError(
            f"VASP is periodic: the snapshot has pbc {atoms.pbc.tolist()} and a cell of rank {atoms.cell.rank}; put a "
            "molecule into a box with vacuum, or use engine tblite or cp2k"
        )
    if np.linalg.det(atoms.cell.array) <= 0:
        raise CampaignError("VASP needs a right-handed cell; swap two of its vectors")
    missing = sorted(set(atoms.get_chemical_symbols()) - set(template.potentials))
    if template.potentials and missing:
        raise CampaignError(
            f"no potential of {', '.join(missing)}; potentials given: {', '.join(sorted(template.potentials))}"
        )


def check_vasp_template(
    template: VaspTemplate,
    atoms: ase.Atoms,
    targets: Sequence[str] = ("apt",),
    method: VaspMethod = "finite-field",
    step: float | None = None,
    gap: float | None = None,
) -> list[str]:
    """Check a template against a snapshot before anything runs.

    Args:
        template: the level of theory.
        atoms: the snapshot.
        targets: what the labels are for.
        method: finite-field, lepsilon or lcalceps.
        step: h [E_h/(e a0)], if the field is to be checked against the gap.
        gap: expected fundamental gap [eV]; unknown before the first run.

    Returns:
        Warnings, one line each.

    Raises:
        CampaignError: what cannot give labels, with the reason.
    """
    if method not in METHODS:
        raise CampaignError(f"VASP method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "lepsilon" and "pgt" in targets:
        raise CampaignError("LEPSILON gives no second derivatives: take method lcalceps or finite-field for a PGT")
    for name, reason in _OWNED.items():
        if name in template.incar and not (name.startswith("L") and not template.is_on(name)):
            raise CampaignError(f"INCAR: remove {name}; {reason}")
    if template.number("NSW", 0) > 0:
        raise CampaignError(f"INCAR: NSW = {template.incar['NSW']}; labels are single points, remove it")
    if template.number("ICHARG", 2) >= 10:
        raise CampaignError("INCAR: ICHARG >= 10 keeps the charge density fixed, so it would not respond to a field")
    if template.is_on("LNONCOLLINEAR") or template.is_on("LSORBIT"):
        raise CampaignError("INCAR: fields with non-collinear spins are untested here; remove LNONCOLLINEAR, LSORBIT")
    _check_structure(template, atoms)
    warnings = _check_smearing(template, method)
    warnings += _check_charge_and_spin(template, atoms)
    if method == "lepsilon" and (template.is_on("LHFCALC") or "METAGGA" in template.incar):
        raise CampaignError("INCAR: LEPSILON has no hybrid functionals and meta-GGAs; use method lcalceps")
    ediff = template.number("EDIFF", 1e-4)
    target = "pgt" if "pgt" in targets else "apt"
    if ediff > LOOSEST_EDIFF[target]:
        unset = "" if "EDIFF" in template.incar else " (VASP's default)"
        warnings.append(f"INCAR: EDIFF = {ediff:g}{unset} is loose for {target.upper()}; use {LOOSEST_EDIFF[target]:g}")
    if template.incar.get("LREAL", "F").strip(". ").upper()[:1] in ("A", "O", "T"):
        warnings.append("INCAR: LREAL adds noise to forces; use LREAL = .FALSE. for labels")
    if step is not None and gap is not None and method != "lepsilon":
        directions = np.eye(3) if target == "apt" else np.vstack([np.eye(3), 1 - np.eye(3)])
        found = [check_field_against_gap(atoms.cell[:], template.kpoints.divisions, step * d, gap) for d in directions]
        if any(found):
            warnings.append(next(line for line in found if line) + "; take a smaller step")
    return warnings


def _check_smearing(template: VaspTemplate, method: VaspMethod) -> list[str]:
    ismear = int(template.number("ISMEAR", 1))
    sigma = template.number("SIGMA", 0.2)
    reason = "the polarization in a field is that of an insulator with full and empty bands"
    if ismear > 0 or ismear == -1:
        unset = "" if "ISMEAR" in template.incar else " (VASP's default)"
        raise CampaignError(f"INCAR: ISMEAR = {ismear}{unset} is for metals; set ISMEAR = 0 and SIGMA = 0.05: {reason}")
    if ismear in (-4, -5) and template.kpoints.n_points < 4:
        raise CampaignError(f"INCAR: ISMEAR = {ismear} needs four k-points, the mesh has fewer; set ISMEAR = 0")
    if ismear == 0 and sigma > 0.2:
        raise CampaignError(f"INCAR: SIGMA = {sigma:g} eV is for metals; set SIGMA = 0.05: {reason}")
    if ismear == 0 and sigma > 0.1:
        return [f"INCAR: SIGMA = {sigma:g} eV (0.2 is VASP's default) may leave fractional occupations; use 0.05"]
    return []


def _base_tags(template: VaspTemplate, atoms: ase.Atoms) -> dict[str, str]:
    """Return the template's tags and those of every label run, without restart and field."""
    tags = {name: value for name, value in template.incar.items() if name not in _REPLACED}
    # switched-off response tags would only be repeated
    tags = {name: value for name, value in tags.items() if name not in ("LEPSILON", "LCALCEPS", "LDIPOL")}
    n_electrons, charge = neutral_electrons(template, atoms), total_charge(atoms)
    if charge and n_electrons is not None:
        tags["NELECT"] = f"{n_electrons - charge:g}"
    # a field lowers the symmetry, and every point of a set must use the same k-points
    return tags | {"ISYM": "0", "NSW": "0", "IBRION": "-1", "LCHARG": ".FALSE."}


def _field_text(vector: ArrayLike) -> str:
    """Return components in eV/A from a vector in E_h/(e a0)."""
    values = np.asarray(vector, dtype=float) * HARTREE_PER_BOHR
    return " ".join(f"{x + 0.0:.10f}" for x in values)


def field_tags(
    template: VaspTemplate, atoms: ase.Atoms, vector: ArrayLike, *, restart: bool = False, keep: bool = False
) -> dict[str, str]:
    """Return the INCAR of one field point.

    Args:
        template: the level of theory.
        atoms: the snapshot.
        vector: (3,) field [E_h/(e a0)]; zero for the point without a field.
        restart: start from the WAVECAR in the folder.
        keep: write WAVECAR, for the other points.

    Returns:
        Tags in upper case -> text.
    """
    field_vector = np.asarray(vector, dtype=float)
    if field_vector.shape != (3,) or not np.isfinite(field_vector).all():
        raise CampaignError(f"a field is three finite numbers [E_h/(e a0)], got {vector!r}")
    tags = _base_tags(template, atoms)
    tags |= {"ISTART": "1" if restart else "0", "ICHARG": "0" if restart else "2"}
    tags["LWAVE"] = ".TRUE." if keep else ".FALSE."
    if field_vector.any():
        length = float(np.linalg.norm(field_vector)) * HARTREE_PER_BOHR
        if length < _SMALLEST_FIELD:
            raise CampaignError(
                f"a field of {length:.2g} eV/A is too small: VASP ignores 1e-5 and echoes 1e-4; "
                "0.0257 (5e-4 E_h/(e a0)) is usual"
            )
        tags["EFIELD_PEAD"] = _field_text(field_vector)
    return tags


def _folder(template: VaspTemplate, atoms: ase.Atoms, tags: Mapping[str, str]) -> dict[str, str]:
    files = {
        "INCAR": write_incar(tags),
        "POSCAR": poscar_text(sorted_atoms(atoms)[0]),
        "KPOINTS": template.kpoints.text(),
    }
    has_files = any(potential.path is not None for potential in template.potentials.values())
    return files | ({"POTCAR": potcar_text(template, atoms)} if has_files else {})


def render_field_set(
    template: VaspTemplate, atoms: ase.Atoms, vectors: Mapping[str, ArrayLike]
) -> dict[str, dict[str, str]]:
    """Return the runs of one snapshot in all its fields, to be run in this order, each in its folder.

    Args:
        template: the level of theory.
        atoms: the snapshot, in any order of atoms; POSCAR has that of :func:`sorted_atoms`.
        vectors: point name -> (3,) field [E_h/(e a0)].

    Returns:
        Folder -> file -> text. ``zero`` comes first and is always there; the others start from its WAVECAR, which has
        to be copied into their folders.
    """
    check_vasp_template(template, atoms)
    if np.any(vectors.get(ZERO_FIELD, 0.0)):
        raise CampaignError(f"the field point named {ZERO_FIELD!r} must have no field, got {vectors[ZERO_FIELD]!r}")
    runs = {}
    for name, folder in point_directories(list(vectors)).items():
        is_zero = name == ZERO_FIELD
        tags = field_tags(template, atoms, vectors.get(name, np.zeros(3)), restart=not is_zero, keep=is_zero)
        runs[folder] = _folder(template, atoms, tags)
    return runs


def lepsilon_tags(template: VaspTemplate, atoms: ase.Atoms) -> dict[str, str]:
    """Return the INCAR of a LEPSILON run: Born charges of all atoms and the dielectric tensor from one job."""
    tags = _base_tags(template, atoms)
    return tags | {"ISTART": "0", "ICHARG": "2", "LWAVE": ".FALSE.", "LEPSILON": ".TRUE."}


def render_lepsilon(template: VaspTemplate, atoms: ase.Atoms) -> dict[str, dict[str, str]]:
    """Return the one run of LEPSILON: folder ``lepsilon`` -> file -> text."""
    check_vasp_template(template, atoms, method="lepsilon")
    return {"lepsilon": _folder(template, atoms, lepsilon_tags(template, atoms))}


@dataclass(frozen=True)
class LcalcepsRun:
    """One LCALCEPS job: a field along each Cartesian axis in turn, on a crystal that may be turned.

    Attributes:
        folder: its name.
        rotation: (3, 3) R with r' = R r; the cell turns with the atoms.
        field: (3,) EFIELD_PEAD [E_h/(e a0)].
        points: axis -> name of the field point that it gives, in the frame of the snapshot.
    """

    folder: str
    rotation: Array
    field: Array
    points: Mapping[int, str]

    def turned(self, atoms: ase.Atoms) -> ase.Atoms:
        """Return the snapshot as this job has it."""
        turned = atoms.copy()
        turned.set_cell(atoms.cell[:] @ self.rotation.T)
        turned.positions = atoms.positions @ self.rotation.T
        return turned


def _rotation_to_axis(direction: Array) -> tuple[Array, int]:
    """Return the smallest rotation R that takes a unit vector to its nearest Cartesian axis (either sign)."""
    axis = int(np.argmax(np.round(np.abs(direction), 12)))
    goal = np.sign(direction[axis]) * np.eye(3)[axis]
    v, c = np.cross(direction, goal), float(direction @ goal)
    k = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + k + k @ k / (1 + c), axis


def lcalceps_runs(vectors: Mapping[str, ArrayLike]) -> list[LcalcepsRun]:
    """Return the LCALCEPS jobs that give the forces at these field points.

    One job has fields along x, y and z in turn, so the six axis points take two jobs. A point off the axes needs a job
    of its own, with the crystal turned until the field lies on an axis; its two other axes get VASP's default field
    and are not used. The set of 13 points takes eight jobs.

    Args:
        vectors: point name -> (3,) field [E_h/(e a0)]; the zero field comes with every job.
    """
    waiting = {name: np.asarray(v, dtype=float) for name, v in vectors.items() if np.any(v)}
    unused = UNUSED_FIELD / HARTREE_PER_BOHR
    jobs: list[LcalcepsRun] = []
    on_axis: dict[int, dict[int, str]] = {}
    for name, vector in waiting.items():
        axes = np.flatnonzero(np.abs(vector) > 1e-9 * np.abs(vector).max())
        if len(axes) != 1:
            continue
        axis = int(axes[0])
        # signs go together, so that a job is recognised by its name
        sign = int(np.sign(vector[axis]))
        slot = next(n for n in range(len(waiting)) if axis not in on_axis.get(sign * (n + 1), {}))
        on_axis.setdefault(sign * (slot + 1), {})[axis] = name
    for slot, points in on_axis.items():
        field_vector = np.full(3, unused)
        for axis, name in points.items():
            field_vector[axis] = waiting[name][axis]
        label = ("p" if slot > 0 else "m") + (str(abs(slot)) if abs(slot) > 1 else "")
        jobs.append(LcalcepsRun(f"lcalceps-{label}", np.eye(3), field_vector, points))
    taken = {name for points in on_axis.values() for name in points.values()}
    for name, vector in waiting.items():
        if name in taken:
            continue
        length = float(np.linalg.norm(vector))
        rotation, axis = _rotation_to_axis(vector / length)
        field_vector = np.full(3, unused)
        field_vector[axis] = (rotation @ vector)[axis]
        jobs.append(LcalcepsRun(f"lcalceps-{point_directory(name)}", rotation, field_vector, {axis: name}))
    return jobs


def lcalceps_tags(template: VaspTemplate, atoms: ase.Atoms, run: LcalcepsRun) -> dict[str, str]:
    """Return the INCAR of an LCALCEPS job."""
    length = float(np.abs(run.field).min()) * HARTREE_PER_BOHR
    if length < _SMALLEST_FIELD:
        raise CampaignError(f"a field of {length:.2g} eV/A is too small for LCALCEPS; 0.0257 is usual")
    tags = _base_tags(template, atoms)
    tags |= {"ISTART": "0", "ICHARG": "2", "LWAVE": ".FALSE.", "LCALCEPS": ".TRUE."}
    return tags | {"EFIELD_PEAD": _field_text(run.field)}


def render_lcalceps(
    template: VaspTemplate, atoms: ase.Atoms, vectors: Mapping[str, ArrayLike]
) -> dict[str, dict[str, str]]:
    """Return the LCALCEPS jobs of one snapshot, see :func:`lcalceps_runs`: folder -> file -> text."""
    check_vasp_template(template, atoms, method="lcalceps")
    return {
        run.folder: _folder(template, run.turned(atoms), lcalceps_tags(template, atoms, run))
        for run in lcalceps_runs(vectors)
    }
