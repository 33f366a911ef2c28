"""A level of theory for VASP: INCAR, mesh and potentials, and what can be known of them before anything runs."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ase
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mimyria_wf.errors import CampaignError, LabelError
from mimyria_wf.labels import multiplicity, total_charge
from mimyria_wf.units import HARTREE_PER_BOHR

Array = NDArray[Any]
VaspMethod = Literal["finite-field", "lepsilon", "lcalceps"]

METHODS: tuple[VaspMethod, ...] = ("finite-field", "lepsilon", "lcalceps")
LOOSEST_EDIFF = {"apt": 1e-6, "pgt": 1e-8}
"""Above it a warning [eV]; the PGT is a second difference, h^2 = 7e-4 (eV/A)^2 at the usual step."""
REPLACED = frozenset(
    ("ISYM", "NSW", "IBRION", "ISTART", "ICHARG", "LWAVE", "LCHARG", "LCALCPOL", "EDIFFG", "POTIM", "ISIF")
)
"""Tags that label runs set themselves."""
_PERFORMANCE = ("NCORE", "NPAR", "KPAR", "NSIM", "NCSHMEM", "NBLK", "LPLANE", "LASYNC", "LSCALU", "LSCALAPACK")
_ITERATION = ("NELM", "NELMIN", "NELMDL", "ALGO", "IALGO", "TIME", "AMIX", "BMIX", "AMIX_MAG", "BMIX_MAG", "MAXMIX")
_OUTPUT = ("SYSTEM", "NWRITE", "LORBIT", "LVTOT", "LVHAR", "LELF", "NEDOS", "EMIN", "EMAX")
NOT_THEORY = REPLACED | {*_PERFORMANCE, *_ITERATION, *_OUTPUT}
"""Tags that decide how a run gets there and what it writes, not what comes out of a converged one."""

_SELF_CONSISTENT = {
    *("normal", "veryfast", "fast", "conjugate", "all", "damped"),
    *("n", "v", "f", "c", "a", "d"),
}
_SELF_CONSISTENT_NUMBERS = {38, 44, 46, 48, 53, 54, 55, 56, 57, 58}
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
        """What decides the forces, JSON-able: tags, the mesh, titles of potentials."""
        own = {name: value for name, value in self.incar.items() if name not in NOT_THEORY}
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


def check_field_against_gap(
    cell: ArrayLike, divisions: Sequence[int], vector: ArrayLike, gap: float, margin: float = 10.0
) -> str:
    """Return why a field is too strong for the gap, "" if it is not.

    A field has no ground state where it can lift an electron across the gap: e|E.a_i| > E_gap/N_i, with N_i the
    k-points along a_i, for the Berry phase sees a cell of N_i a_i, vacuum or not. VASP warns from a tenth of that on.
    Of molecules in vacuum the tenth may be exceeded: sound data on C60 have 8.5 times as much.

    Args:
        cell: (3, 3) rows a_i [A].
        divisions: N_i.
        vector: (3,) field [E_h/(e a0)].
        gap: fundamental gap [eV].
        margin: 10 to warn as VASP does, 1 to refuse what has no ground state.
    """
    drop = np.abs(np.asarray(cell, dtype=float) @ np.asarray(vector, dtype=float)) * HARTREE_PER_BOHR
    limit = gap / (margin * np.asarray(divisions))
    worst = int(np.argmax(drop / limit)) if gap > 0 else 0
    if gap > 0 and drop[worst] <= limit[worst]:
        return ""
    allowed = "" if gap <= 0 else f"; at this gap up to {limit[worst] / drop[worst]:.2g} of this field"
    return (
        f"field too strong for the gap: e|E.a_{worst + 1}| = {drop[worst]:.3g} eV, "
        f"E_gap/({margin:g} N_{worst + 1}) = {limit[worst]:.3g} eV with E_gap = {gap:.3g} eV{allowed}"
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
    _check_iteration(template)
    _check_structure(template, atoms)
    if method == "lepsilon" and total_charge(atoms):
        raise CampaignError(
            f"LEPSILON spreads the residual of the sum rule over the atoms, which in a cell of charge "
            f"{total_charge(atoms):+d} takes Q/N off every APT: use method finite-field or lcalceps"
        )
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
        for margin in (1.0, 10.0):
            found = [
                check_field_against_gap(atoms.cell[:], template.kpoints.divisions, step * d, gap, margin)
                for d in directions
            ]
            line = next((line for line in found if line), "")
            if line and margin == 1.0:
                raise CampaignError(f"{line}; take a smaller step: in this field there is no ground state")
            if line:
                warnings.append(f"{line}; take a smaller step")
    return warnings


def _check_iteration(template: VaspTemplate) -> None:
    """Refuse algorithms that do not iterate to self-consistency: the density would not respond to the field."""
    algorithm = template.incar.get("ALGO", "Normal").strip().lower().replace("_", "")
    if algorithm not in _SELF_CONSISTENT:
        raise CampaignError(
            f"INCAR: ALGO = {template.incar['ALGO']} does not iterate to self-consistency; use Normal, Fast or All"
        )
    if "IALGO" in template.incar and int(template.number("IALGO", 38)) not in _SELF_CONSISTENT_NUMBERS:
        raise CampaignError(
            f"INCAR: IALGO = {template.incar['IALGO']} does not iterate to self-consistency; use ALGO = Normal"
        )


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
