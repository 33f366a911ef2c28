"""CP2K input: read a template, write it back, and make of it field points and MD runs.

A template holds what a level of theory is (one &FORCE_EVAL, perhaps &GLOBAL), as CP2K input or as nested YAML.
Structure, cell, field, restart, printing and &MOTION come from here, so that one template serves every snapshot. CP2K
resolves relative names of basis sets, potentials, dispersion parameters and network weights against its own data
directory (or CP2K_DATA_DIR).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms, units
from numpy.typing import ArrayLike, NDArray
from ruamel.yaml import YAML, YAMLError

from mimyria_wf.errors import CampaignError
from mimyria_wf.md import NveSettings, NvtSettings, without_rotation, without_translation
from mimyria_wf.units import BOHR_PER_AU_TIME

Array = NDArray[np.float64]

ZERO_FIELD = "0"
"""Name of the point without a field; its wavefunction starts all others."""

LOOSEST_EPS_SCF = 1e-7
"""Above it a PGT is not usable: PGT_xx was off by 218 % at 1e-6, by 1.8 % at 1e-7 (PBE/SZV water, against 1e-8)."""

LOWEST_CUTOFF = 100
"""Below it no plane-wave grid carries the density of a GTH potential's valence electrons [Ry]."""

LOOSEST_EPS_DEFAULT = 1e-10
"""CP2K's own default; an APT divides forces by a field of 1e-3, a PGT by its square."""

ZERO_FIELD_SCF = 0.1
"""The zero-field point converges to this share of EPS_SCF: it starts cold and ends as soon as it may, all others start
from good wavefunctions and end an order deeper, and it enters a PGT as -2 F(0)/h^2. Seen (water, EPS_SCF 1e-8, step
5e-4): PGT off by 0.035 e^2 a0/E_h, with a tenth of the threshold at this one point by 0.003."""

_TIGHTEST_EPS_SCF = 1e-10
"""Nearer to zero the gradient of OT is round-off."""

_ROUNDED_VELOCITY = 1e-10 * BOHR_PER_AU_TIME
"""Rounding of CP2K's velocity files (ten decimals in a0/au_t) [A/fs]."""

_ALIASES = {
    "ELEMENT": ("ELEMENT", "ELEMENT_SYMBOL"),
    "LINESEARCH": ("LINESEARCH", "LINE_SEARCH"),
    "MASS": ("MASS", "ATOMIC_MASS", "ATOMIC_WEIGHT", "WEIGHT"),
    "MULTIPLICITY": ("MULTIPLICITY", "MULTIP"),
    "NBROYDEN": ("NBROYDEN", "NBUFFER", "NPULAY", "NMULTISECANT"),
    "POTENTIAL": ("POTENTIAL", "POT"),
    "PRINT_LEVEL": ("PRINT_LEVEL", "IOLEVEL"),
    "PROJECT": ("PROJECT", "PROJECT_NAME"),
    "SURFACE_DIPOLE_CORRECTION": ("SURFACE_DIPOLE_CORRECTION", "SURFACE_DIPOLE", "SURF_DIP"),
    "WALLTIME": ("WALLTIME", "WALLTI"),
    "WFN_RESTART_FILE_NAME": ("WFN_RESTART_FILE_NAME", "RESTART_FILE_NAME"),
}
"""Other names of the keywords that are read or set here, by CP2K's own description of its input (`cp2k --xml`)."""
_FALSE = {"F", "FALSE", ".FALSE.", ".F.", "OFF", "NO", "0"}
_FIELD_SECTIONS = ("PERIODIC_EFIELD", "EFIELD")


@dataclass(frozen=True)
class Keyword:
    """One line of a section: a keyword and the rest of its line."""

    name: str
    value: str = ""


@dataclass(frozen=True)
class Section:
    """A section of a CP2K input; the whole input is the section with an empty name.

    Paths such as ``FORCE_EVAL/DFT/SCF`` name subsections (and, at their end, keywords); case does not matter.
    Editing methods return a new section.

    Attributes:
        name: section name, upper case.
        parameter: what follows the name, ``ON`` in ``&FORCES ON``.
        entries: keywords and subsections in their order.
    """

    name: str
    parameter: str = ""
    entries: tuple["Keyword | Section", ...] = ()

    def sections(self, path: str) -> "tuple[Section, ...]":
        """Return every subsection at ``path`` (sections may repeat)."""
        head, _, rest = path.partition("/")
        found = tuple(e for e in self.entries if isinstance(e, Section) and e.name == head.upper())
        return found if not rest else tuple(s for f in found for s in f.sections(rest))

    def section(self, path: str) -> "Section | None":
        """Return the first subsection at ``path``, None where there is none."""
        found = self.sections(path)
        return found[0] if found else None

    def keyword(self, path: str) -> str | None:
        """Return the value of the last keyword at ``path``, as CP2K does; None where there is none."""
        parent, _, name = path.rpartition("/")
        names = _ALIASES.get(name.upper(), (name.upper(),))
        values = [
            e.value
            for section in (self.sections(parent) if parent else (self,))
            for e in section.entries
            if isinstance(e, Keyword) and e.name.upper() in names
        ]
        return values[-1] if values else None

    def is_on(self, path: str) -> bool:
        """Tell whether the section at ``path`` is there and not switched off by its parameter."""
        found = self.section(path)
        return found is not None and found.parameter.upper() not in _FALSE

    def with_keyword(self, path: str, value: object) -> "Section":
        """Return a copy in which the keyword at ``path`` has one value; missing sections are made."""
        parent, _, name = path.rpartition("/")

        def put(section: Section) -> Section:
            names = _ALIASES.get(name.upper(), (name.upper(),))
            kept = tuple(e for e in section.entries if not (isinstance(e, Keyword) and e.name.upper() in names))
            return replace(section, entries=(Keyword(name, str(value)), *kept))

        return self._edited(parent, put)

    def with_section(self, parent: str, section: "Section") -> "Section":
        """Return a copy in which ``section`` is the only one of its name in ``parent``."""

        def put(owner: Section) -> Section:
            kept = tuple(e for e in owner.entries if not (isinstance(e, Section) and e.name == section.name))
            return replace(owner, entries=(*kept, section))

        return self._edited(parent, put)

    def _edited(self, path: str, edit: "Callable[[Section], Section]") -> "Section":
        if not path:
            return edit(self)
        head, _, rest = path.partition("/")
        entries = list(self.entries)
        for index, entry in enumerate(entries):
            if isinstance(entry, Section) and entry.name == head.upper():
                entries[index] = entry._edited(rest, edit)
                return replace(self, entries=tuple(entries))
        return replace(self, entries=(*self.entries, Section(head.upper())._edited(rest, edit)))


def _without_comment(line: str) -> str:
    quote = ""
    for index, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "!#":
            return line[:index].strip()
    return line.strip()


def _lines(text: str, source: str) -> Iterator[tuple[int, str]]:
    pending, start = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = _without_comment(raw)
        if re.match(r"@\w", line) or re.search(r"\$\{?\w", line):
            raise CampaignError(
                f"preprocessor directives (@SET, @INCLUDE, ${{...}}) are not supported, got {line!r}; "
                f"write the value out ({source}, line {number})"
            )
        start = start if pending else number
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        line, pending = (pending + line).strip(), ""
        if line:
            yield start, line


def parse_input(text: str, source: str = "CP2K template") -> Section:
    """Parse CP2K input text.

    Args:
        text: the input; comments (``!``, ``#``) are dropped, lines ending in a backslash are joined.
        source: name used in errors.

    Returns:
        The input as a section with an empty name.

    Raises:
        CampaignError: preprocessor directives, unmatched or unclosed sections, text outside of sections.
    """
    open_sections: list[tuple[int, str, str, list[Keyword | Section]]] = [(0, "", "", [])]
    for number, line in _lines(text, source):
        if line.upper().startswith("&END"):
            started, name, parameter, entries = open_sections.pop()
            closing = line[4:].strip().upper()
            if not open_sections or (closing and closing.split()[0] != name):
                expected = f"&END {name} for line {started}" if open_sections else "no open section"
                raise CampaignError(f"expected {expected}, got {line!r} ({source}, line {number})")
            open_sections[-1][3].append(Section(name, parameter, tuple(entries)))
        elif line.startswith("&"):
            name, _, parameter = line[1:].strip().partition(" ")
            open_sections.append((number, name.upper(), parameter.strip(), []))
        elif len(open_sections) == 1:
            raise CampaignError(f"expected a section (&NAME), got {line!r} ({source}, line {number})")
        else:
            name, *value = line.split(None, 1)
            open_sections[-1][3].append(Keyword(name, value[0] if value else ""))
    if len(open_sections) > 1:
        started, name, *_ = open_sections[-1]
        raise CampaignError(f"section &{name} is never closed ({source}, line {started})")
    return Section("", "", tuple(open_sections[0][3]))


def parse_template(text: str, source: str = "CP2K template") -> Section:
    """Parse a template in either form: CP2K input text, or nested YAML as aiida-cp2k writes its dictionaries.

    In YAML keys are sections and keywords, ``_`` is a section's parameter, a list repeats its section or keyword,
    ``{}`` is a section without entries::

        FORCE_EVAL:
          DFT:
            SCF: {EPS_SCF: 1e-8, OT: {MINIMIZER: DIIS}}
          SUBSYS:
            KIND:
              - {_: H, BASIS_SET: SZV-MOLOPT-SR-GTH, POTENTIAL: GTH-PBE-q1}

    Values stay as they are written: ``OFF`` and ``1e-8`` mean to CP2K what they say.

    Args:
        text: the template.
        source: name used in errors.

    Returns:
        The input as a section with an empty name.

    Raises:
        CampaignError: the text is neither, with the line or the path of what is wrong.
    """
    first = next((line for line in (raw.strip() for raw in text.splitlines()) if line and line[0] not in "#!"), "")
    if not first or first[0] in "&@":
        return parse_input(text, source)
    try:
        content = YAML(typ="base").load(text)  # every value as the text that it is
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise CampaignError(
            f"expected CP2K input (it starts with &) or YAML, got neither: {problem} ({source}{where})"
        ) from None
    if not isinstance(content, Mapping):
        raise CampaignError(f"expected a section (&NAME, or NAME: in YAML), got {first!r} ({source})")
    return Section("", "", _entries_from_yaml(content, "", source))


def _entries_from_yaml(content: Mapping[str, object], path: str, source: str) -> tuple[Keyword | Section, ...]:
    """Return the entries of a section from its mapping; ``path`` names it in errors."""
    entries: list[Keyword | Section] = []
    for key, value in content.items():
        if key == "_" and path:
            continue
        where = f"{path}/{key}".lstrip("/")
        if not re.fullmatch(r"[A-Za-z][\w-]*", str(key)):
            raise CampaignError(f"{where!r} is no section or keyword of CP2K ({source})")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                parameter = one.get("_", "")
                if not isinstance(parameter, str):
                    raise CampaignError(f"{where}/_ must be the section's parameter, got {parameter!r} ({source})")
                name = str(key).upper()
                entries.append(Section(name, parameter.strip(), _entries_from_yaml(one, where, source)))
            elif isinstance(one, list):
                raise CampaignError(f"{where}: a list repeats a keyword, write one value of several as text: '1 2 3' "
                                    f"({source})")  # fmt: skip
            elif not path:
                raise CampaignError(f"expected a section, got {key}: {one} ({source})")
            elif not str(one).strip():
                raise CampaignError(
                    f"{where} has no value; write {{}} for a section without entries, T for a keyword that is switched "
                    f"on ({source})"
                )
            else:
                entries.append(Keyword(str(key), " ".join(str(one).split())))
    return tuple(entries)


def write_input(section: Section, indent: int = 0) -> str:
    """Write a section (or a whole input) as CP2K input text."""
    pad = "  " * indent
    if not section.name:
        return "".join(_write_entry(e, indent) for e in section.entries)
    body = "".join(_write_entry(e, indent + 1) for e in section.entries)
    return f"{pad}&{section.name} {section.parameter}".rstrip() + f"\n{body}{pad}&END {section.name}\n"


def _write_entry(entry: Keyword | Section, indent: int) -> str:
    if isinstance(entry, Section):
        return write_input(entry, indent)
    return "  " * indent + f"{entry.name} {entry.value}".rstrip() + "\n"


def _as_section(template: str | Section) -> Section:
    return parse_template(template) if isinstance(template, str) else template


def eps_scf(template: str | Section) -> float:
    """Return the SCF threshold that a template converges to: the looser one of SCF and, if it is on, OUTER_SCF."""
    template = _as_section(template)
    threshold = _number(template, "FORCE_EVAL/DFT/SCF/EPS_SCF", 1e-5)
    if template.is_on("FORCE_EVAL/DFT/SCF/OUTER_SCF"):
        threshold = max(threshold, _number(template, "FORCE_EVAL/DFT/SCF/OUTER_SCF/EPS_SCF", 1e-5))
    return threshold


def varied_template(template: str | Section, eps_scf: float) -> Section:
    """Return the template with another SCF threshold, of the inner and the outer loop: another level of theory.

    A template that has this threshold already comes back as it is.
    """
    template = _as_section(template)
    if not 0 < eps_scf < 1e-2:
        raise CampaignError(f"EPS_SCF must be between 0 and 1e-2, got {eps_scf:g}")
    for path in ("FORCE_EVAL/DFT/SCF", "FORCE_EVAL/DFT/SCF/OUTER_SCF"):
        is_there = path.endswith("/SCF") or template.is_on(path)
        if is_there and not np.isclose(_number(template, f"{path}/EPS_SCF", 1e-5), eps_scf, rtol=1e-9, atol=0):
            template = template.with_keyword(f"{path}/EPS_SCF", f"{eps_scf:g}")
    return template


def _number(section: Section, path: str, default: float) -> float:
    value = section.keyword(path)
    if value is None:
        return default
    try:
        return float(value.upper().replace("D", "E"))
    except ValueError:
        raise CampaignError(f"CP2K template: {path} must be a plain number, got {value!r}") from None


def _symbols(atoms: Atoms) -> list[str]:
    return sorted(set(atoms.get_chemical_symbols()))


def _check_common(template: Section, atoms: Atoms) -> Section:
    """Check what every run needs of a template and return its &FORCE_EVAL."""
    evals = template.sections("FORCE_EVAL")
    if len(evals) != 1:
        raise CampaignError(f"CP2K template: needs exactly one &FORCE_EVAL, got {len(evals)}")
    if template.section("EXT_RESTART"):
        raise CampaignError("CP2K template: remove &EXT_RESTART, it would replace the structure of the snapshot")
    force_eval = evals[0]
    for path, what in (("SUBSYS/COORD", "coordinates"), ("SUBSYS/VELOCITY", "velocities")):
        if force_eval.section(path):
            raise CampaignError(f"CP2K template: remove &{path.split('/')[1]}, the {what} come from the snapshot")
    for name in ("COORD_FILE_NAME", "COORD_FILE_FORMAT", "COORDINATE"):
        if force_eval.keyword(f"SUBSYS/TOPOLOGY/{name}"):
            raise CampaignError(f"CP2K template: remove TOPOLOGY/{name}, the coordinates come from the snapshot")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise CampaignError("CP2K input: positions and cell must be finite, got NaN or infinity")
    if atoms.pbc.any() and not atoms.pbc.all():
        raise CampaignError(f"CP2K input: pbc must be all true or all false, got {atoms.pbc.tolist()}")
    has_cell = atoms.cell.rank == 3
    if atoms.pbc.all() and not (has_cell and np.linalg.det(atoms.cell.array) > 0):
        raise CampaignError("CP2K input: a periodic structure needs three right-handed cell vectors")
    template_cell = force_eval.section("SUBSYS/CELL")
    if has_cell and template_cell:
        raise CampaignError("CP2K template: remove &CELL, the cell comes from the structure")
    if not has_cell and not template_cell:
        raise CampaignError(
            "CP2K template: a cluster without a cell needs &CELL with the size of its box and PERIODIC NONE"
        )
    if template_cell and (template_cell.keyword("PERIODIC") or "XYZ").upper() != "NONE":
        raise CampaignError("CP2K template: &CELL of a cluster needs PERIODIC NONE")
    poisson = force_eval.keyword("DFT/POISSON/PERIODIC")
    if force_eval.section("DFT") and atoms.pbc.all() and poisson and poisson.upper() != "XYZ":
        raise CampaignError(f"CP2K template: POISSON/PERIODIC must be XYZ for a periodic structure, got {poisson}")
    return force_eval


def _method(force_eval: Section) -> str:
    return (force_eval.keyword("METHOD") or "QS").upper()


def _qs_method(force_eval: Section) -> str:
    return (force_eval.keyword("DFT/QS/METHOD") or "GPW").upper()


def _check_dft(force_eval: Section, atoms: Atoms) -> None:
    """Check charge, multiplicity, boundary and kinds of a &DFT template against the structure."""
    if force_eval.section("DFT") is None:
        raise CampaignError("CP2K template: METHOD Quickstep needs a &DFT section")
    charge, wanted = _number(force_eval, "DFT/CHARGE", 0), int(atoms.info.get("charge", 0))
    if charge != wanted:
        raise CampaignError(f"CP2K template: DFT/CHARGE is {charge:g} but the structure's charge is {wanted}")
    multiplicity = atoms.info.get("multiplicity")
    found = _number(force_eval, "DFT/MULTIPLICITY", 0)  # 0: lowest possible, CP2K's default
    if multiplicity is not None and found != multiplicity and not (found == 0 and multiplicity in (1, 2)):
        raise CampaignError(
            f"CP2K template: DFT/MULTIPLICITY is {found:g} but the structure's multiplicity is {multiplicity}"
        )
    if not atoms.pbc.any() and (force_eval.keyword("DFT/POISSON/PERIODIC") or "XYZ").upper() != "NONE":
        raise CampaignError(
            "CP2K template: a cluster needs DFT/POISSON/PERIODIC NONE and a solver for it (PSOLVER MT or WAVELET)"
        )
    if _qs_method(force_eval) in ("GPW", "GAPW", "GAPW_XC"):
        kinds = {kind.parameter.upper(): kind for kind in force_eval.sections("SUBSYS/KIND")}
        for symbol in _symbols(atoms):
            kind = kinds.get(symbol.upper(), kinds.get("DEFAULT"))
            if kind is None:
                raise CampaignError(
                    f"CP2K template: no &KIND {symbol}; add one with BASIS_SET and POTENTIAL (has: {', '.join(kinds)})"
                )
            for name in ("BASIS_SET", "POTENTIAL"):
                if kind.keyword(name) is None and kind.section(name) is None:
                    raise CampaignError(f"CP2K template: &KIND {symbol} has no {name}")


def check_label_template(template: str | Section, atoms: Atoms, targets: Sequence[str] = ("apt", "pgt")) -> list[str]:
    """Check that forces in homogeneous fields can be computed from a template.

    Args:
        template: CP2K input text or parsed input with one &FORCE_EVAL.
        atoms: a snapshot; its ``info["charge"]`` (default 0) must be the template's.
        targets: "apt", "pgt" or both.

    Returns:
        Warnings, one line each: settings that run but spoil the tensors.

    Raises:
        CampaignError: the template cannot give the tensors of this structure, with the reason.
    """
    template = _as_section(template)
    force_eval = _check_common(template, atoms)
    if _method(force_eval) not in ("QS", "QUICKSTEP"):
        raise CampaignError(
            f"CP2K template: METHOD {_method(force_eval)} has no electrons that answer a field; "
            "labels need METHOD Quickstep"
        )
    for name in _FIELD_SECTIONS:
        if force_eval.section(f"DFT/{name}"):
            raise CampaignError(f"CP2K template: remove &{name}, the fields come from the field set")
    is_periodic = bool(atoms.pbc.all())
    if force_eval.section("DFT/EXTERNAL_POTENTIAL"):
        raise CampaignError("CP2K template: remove &EXTERNAL_POTENTIAL, it acts on the electrons beside the field")
    surface = force_eval.keyword("DFT/SURFACE_DIPOLE_CORRECTION")
    if surface is not None and surface.upper() not in _FALSE:
        raise CampaignError("CP2K template: remove SURFACE_DIPOLE_CORRECTION, it adds a field of its own")
    qs_method = _qs_method(force_eval)
    if is_periodic and qs_method == "XTB":
        raise CampaignError(
            "CP2K template: GFN1-xTB in a periodic field is wrong in CP2K: the response has the reversed sign and is "
            "not translation invariant, while its sum rule looks exact; use METHOD GPW, or a cluster (&EFIELD)"
        )
    if qs_method not in ("GPW", "GAPW", "GAPW_XC", "XTB"):
        raise CampaignError(f"CP2K template: QS/METHOD {qs_method} is untested in a field; use GPW or GAPW")
    if qs_method == "XTB" and (force_eval.keyword("DFT/QS/XTB/DO_EWALD") or "F").upper() not in _FALSE:
        raise CampaignError("CP2K template: a cluster with xTB needs QS/XTB/DO_EWALD F, Ewald sums bring in its images")
    if force_eval.is_on("DFT/SCF/SMEAR"):
        raise CampaignError(
            "CP2K template: remove &SMEAR; "
            "the polarization in a field is defined for insulators with integer occupations"
        )
    if is_periodic and not force_eval.is_on("DFT/SCF/OT"):
        raise CampaignError(
            "CP2K template: PERIODIC_EFIELD needs &SCF/&OT; its Berry phase is written for OT's orbitals"
        )
    if is_periodic and force_eval.section("DFT/KPOINTS"):
        raise CampaignError("CP2K template: remove &KPOINTS; PERIODIC_EFIELD works at the Gamma point only")
    _check_dft(force_eval, atoms)
    warnings = []
    if qs_method == "XTB":
        warnings.append(
            "CP2K template: CP2K's xTB couples the field to Mulliken charges alone, without atomic dipoles "
            "(GFN1-xTB water: 0.75 e a0, tblite 1.13); never mix its labels with tblite's"
        )
    multiplicity = _number(force_eval, "DFT/MULTIPLICITY", 0)
    if "multiplicity" not in atoms.info and multiplicity > 1:
        warnings.append(
            f"CP2K template: DFT/MULTIPLICITY is {multiplicity:g} but the snapshot states none and is labelled as a "
            'singlet; give it info["multiplicity"]'
        )
    if qs_method != "XTB" and (cutoff := _number(force_eval, "DFT/MGRID/CUTOFF", 280)) < LOWEST_CUTOFF:
        warnings.append(
            f"CP2K template: MGRID/CUTOFF {cutoff:g} Ry is too coarse for forces; GTH potentials need 300 and more"
        )
    if (eps := _number(force_eval, "DFT/QS/EPS_DEFAULT", 1e-10)) > LOOSEST_EPS_DEFAULT:
        warnings.append(
            f"CP2K template: QS/EPS_DEFAULT {eps:g} neglects more than differences of forces in fields bear; use 1e-12"
        )
    loosest = eps_scf(template)
    if "pgt" in targets and loosest > LOOSEST_EPS_SCF:
        warnings.append(
            f"CP2K template: EPS_SCF {loosest:g} (the looser of SCF and OUTER_SCF) is too loose for a PGT; "
            "use 1e-8 (seen: PGT_xx off by 218 % at 1e-6)"
        )
    elif "apt" in targets and loosest > 1e-6:
        warnings.append(f"CP2K template: EPS_SCF {loosest:g} costs an APT about 0.01 e at 1e-5; use 1e-7 or tighter")
    return warnings


N_SCF_REMEDIES = 2
"""Length of the ladder of SCF settings in :func:`remedied_template`."""


def remedied_template(template: str | Section, scf: int = 0, walltime: float | None = None) -> Section:
    """Return a template that reaches the same converged wavefunction in a more robust way.

    Threshold and outer threshold stay as they are, so that the level of theory is the same. What is left below the
    threshold is not: the gradient that OT compares with it depends on the preconditioner (seen at 1e-7: forces off by
    1e-8 with FULL_KINETIC, by 1e-9 with FULL_ALL). Points of a set are therefore all computed in one way.

    OT, step 1: more steps with FULL_ALL, which preconditions each orbital by itself. Its ENERGY_GAP must be an
    underestimate of the gap; 0.08 E_h = 2.2 eV is one for what can be put into a field (with 0.001 E_h GFN1-xTB of
    water ran into a state 0.25 E_h below the true one). Step 2: conjugate gradients with a line search go downhill in
    every step, where DIIS extrapolates and may oscillate; only then, since the search compares energies, whose
    round-off hides gradients below 1e-8 (seen: three of six points of water stalled at EPS_SCF 1e-9). Diagonalisation
    (clusters): Broyden mixing with little of the new density damps charge sloshing.

    Args:
        template: a label template.
        scf: step of the ladder, 0 leaves the SCF alone, at most N_SCF_REMEDIES.
        walltime: CP2K's own time limit of a run [s]; None leaves it.
    """
    template = _as_section(template)
    if walltime is not None:
        template = template.with_keyword("GLOBAL/WALLTIME", f"{walltime:g}")
    if scf == 0:
        return template
    base = "FORCE_EVAL/DFT/SCF"
    changes: dict[str, object] = {f"{base}/MAX_SCF": max(50, round(_number(template, f"{base}/MAX_SCF", 50)))}
    if template.is_on(f"{base}/OT"):
        outer = f"{base}/OUTER_SCF"
        if not template.is_on(outer):
            template = template.with_section(base, Section("OUTER_SCF", "ON"))
            changes[f"{outer}/EPS_SCF"] = f"{_number(template, f'{base}/EPS_SCF', 1e-5):g}"
        changes |= {
            f"{outer}/MAX_SCF": max(10 * scf, round(_number(template, f"{outer}/MAX_SCF", 50))),
            f"{base}/OT/PRECONDITIONER": "FULL_ALL",
            f"{base}/OT/ENERGY_GAP": "0.08",
        }
        if scf > 1:
            changes |= {f"{base}/OT/MINIMIZER": "CG", f"{base}/OT/LINESEARCH": "3PNT"}
    else:
        changes |= {
            f"{base}/MAX_SCF": max(200 * scf, round(_number(template, f"{base}/MAX_SCF", 50))),
            f"{base}/MIXING/METHOD": "BROYDEN_MIXING",
            f"{base}/MIXING/ALPHA": f"{0.1 / scf:g}",
            f"{base}/MIXING/NBROYDEN": 8,
        }
    for path, value in changes.items():
        template = template.with_keyword(path, value)
    return template


def _vector(values: ArrayLike) -> str:
    return " ".join(f"{x:.15g}" for x in np.asarray(values, dtype=float))


def _subsys(template: Section, atoms: Atoms) -> Section:
    """Put cell and coordinates into the template."""
    if atoms.cell.rank == 3:
        rows = tuple(Keyword(name, _vector(row)) for name, row in zip("ABC", atoms.cell.array))
        periodic = Keyword("PERIODIC", "XYZ" if atoms.pbc.all() else "NONE")
        template = template.with_section("FORCE_EVAL/SUBSYS", Section("CELL", "", (*rows, periodic)))
    coordinates = tuple(Keyword(s, _vector(r)) for s, r in zip(atoms.get_chemical_symbols(), atoms.positions))
    return template.with_section("FORCE_EVAL/SUBSYS", Section("COORD", "", coordinates))


def _field_section(vector: Array, is_periodic: bool) -> Section:
    """Return the section of one field vector (3,) [E_h/(e a0)].

    PERIODIC_EFIELD normalises POLARISATION, EFIELD multiplies by it: a unit vector there and the length in INTENSITY
    mean the same in both.
    """
    length = float(np.linalg.norm(vector))
    entries = (Keyword("INTENSITY", f"{length:.15g}"), Keyword("POLARISATION", _vector(vector / length)))
    return Section("PERIODIC_EFIELD" if is_periodic else "EFIELD", "", entries)


def _check_project(project: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", project):
        raise CampaignError(f"CP2K project names hold letters, digits, '.', '_' and '-', got {project!r}")


def forces_file(project: str) -> str:
    """Return the name of the file in which a field point leaves its forces."""
    return f"{project}-frc.dat"


def wavefunction_file(project: str) -> str:
    """Return the name of the file in which a run leaves its wavefunction."""
    return f"{project}-RESTART.wfn"


def render_field_point(
    template: str | Section, atoms: Atoms, vector: ArrayLike | None, project: str, restart_from: str | None = None
) -> str:
    """Return CP2K input for the forces of one snapshot in one homogeneous field.

    Args:
        template: level of theory, see :func:`check_label_template`.
        atoms: the snapshot [A]; periodic in all directions (&PERIODIC_EFIELD) or in none (&EFIELD).
        vector: (3,) field [E_h/(e a0)]; None or zero for the point without a field.
        project: CP2K's project name, which starts the names of all files.
        restart_from: project whose wavefunction starts the SCF; None starts from the template's guess.

    Returns:
        Input text. Forces [E_h/a0] go to ``forces_file(project)``; the dipole moment and, without a field, the
        HOMO-LUMO gap to standard output.

    Raises:
        CampaignError: the template or the structure does not allow it, with the reason.
    """
    template = _as_section(template)
    _check_project(project)
    check_label_template(template, atoms)
    field = np.zeros(3) if vector is None else np.asarray(vector, dtype=float)
    if field.shape != (3,) or not np.isfinite(field).all():
        raise CampaignError(f"a field is three finite numbers [E_h/(e a0)], got {vector!r}")
    # MEDIUM, because CP2K echoes the field only from there on and the reader checks the echo.
    for path, value in (("PROJECT", project), ("RUN_TYPE", "ENERGY_FORCE"), ("PRINT_LEVEL", "MEDIUM")):
        template = template.with_keyword(f"GLOBAL/{path}", value)
    template = _subsys(template, atoms)
    if not atoms.pbc.any():
        template = template.with_section("FORCE_EVAL/SUBSYS/TOPOLOGY", Section("CENTER_COORDINATES"))
    if field.any():
        template = template.with_section("FORCE_EVAL/DFT", _field_section(field, bool(atoms.pbc.all())))
    template = _with_properties(template, atoms, has_gap=not field.any())
    if not field.any():
        template = _tightened(template)
    restart = Section("RESTART", "ON", (Keyword("BACKUP_COPIES", "0"),))
    if restart_from is not None:
        template = template.with_keyword("FORCE_EVAL/DFT/WFN_RESTART_FILE_NAME", wavefunction_file(restart_from))
        template = template.with_keyword("FORCE_EVAL/DFT/SCF/SCF_GUESS", "RESTART")
        restart = Section("RESTART", "OFF")
    template = template.with_section("FORCE_EVAL/DFT/SCF/PRINT", restart)
    forces = (Keyword("FILENAME", f"={forces_file(project)}"), Keyword("NDIGITS", "14"))
    return write_input(template.with_section("FORCE_EVAL/PRINT", Section("FORCES", "ON", forces)))


def _tightened(template: Section) -> Section:
    """Return the template of the zero-field point, see ZERO_FIELD_SCF."""
    scf = "FORCE_EVAL/DFT/SCF"
    for path in (scf, f"{scf}/OUTER_SCF"):
        own = _number(template, f"{path}/EPS_SCF", 1e-5)
        if path == scf or template.is_on(path):
            template = template.with_keyword(
                f"{path}/EPS_SCF", f"{min(own, max(ZERO_FIELD_SCF * own, _TIGHTEST_EPS_SCF)):g}"
            )
    return template


def _with_properties(template: Section, atoms: Atoms, has_gap: bool) -> Section:
    """Print the dipole moment and, where OT runs, the HOMO-LUMO gap.

    The moment of a periodic system is a Berry phase about the origin of the cell. That of a cluster is about its centre
    of mass, because the cluster is moved to the middle of its box.
    """
    is_periodic = bool(atoms.pbc.all())
    moments = (Keyword("PERIODIC", "T" if is_periodic else "F"), Keyword("REFERENCE", "ZERO" if is_periodic else "COM"))
    template = template.with_section("FORCE_EVAL/DFT/PRINT", Section("MOMENTS", "ON", moments))
    force_eval = template.sections("FORCE_EVAL")[0]
    if has_gap and force_eval.is_on("DFT/SCF/OT") and _qs_method(force_eval) != "XTB":  # for which CP2K prints none
        # The printing of cubes is what makes CP2K look for an empty orbital; no cube is written.
        cubes = (Keyword("NHOMO", "1"), Keyword("NLUMO", "1"), Keyword("WRITE_CUBE", "F"))
        template = template.with_section("FORCE_EVAL/DFT/PRINT", Section("MO_CUBES", "ON", cubes))
    return template


def render_polarizability(template: str | Section, atoms: Atoms, project: str, restart_from: str | None = None) -> str:
    """Return CP2K input for the polarizability of one snapshot by density-functional perturbation theory.

    The Berry-phase dipole operator serves periodic systems, the plain one clusters. The preconditioner is
    FULL_SINGLE_INVERSE: with FULL_ALL the response of a water molecule diverged.

    Args:
        template: level of theory, see :func:`check_label_template`.
        atoms: the snapshot.
        project: CP2K's project name.
        restart_from: project whose wavefunction starts the SCF.

    Returns:
        Input text, for :func:`mimyria_wf.cp2k_output.read_polarizability`.
    """
    content = parse_input(render_field_point(template, atoms, None, project, restart_from))
    content = content.with_keyword("GLOBAL/RUN_TYPE", "LINEAR_RESPONSE")
    operator = Keyword("PERIODIC_DIPOLE_OPERATOR", "T" if atoms.pbc.all() else "F")
    printing = Section("PRINT", "", (Section("POLAR_MATRIX", "ON"),))
    response = (
        Keyword("EPS", "1e-10"),
        Keyword("MAX_ITER", "200"),
        Keyword("PRECONDITIONER", "FULL_SINGLE_INVERSE"),
        Section("POLAR", "", (Keyword("DO_RAMAN", "T"), operator, printing)),
    )
    return write_input(content.with_section("FORCE_EVAL/PROPERTIES", Section("LINRES", "", response)))


def point_project(name: str) -> str:
    """Return the CP2K project of a field point: ``0`` -> ``zero``, ``+x-y`` -> ``pxmy``."""
    return "zero" if name == ZERO_FIELD else name.replace("+", "p").replace("-", "m")


def field_projects(
    vectors: Mapping[str, ArrayLike], project_of: Callable[[str], str] = point_project
) -> dict[str, str]:
    """Return the runs of a field set in the order to run them: point name -> project.

    The zero-field point comes first even where only axis points are asked for: restarting from its wavefunction costs a
    field point a quarter to a third of a run from scratch.
    """
    projects = {ZERO_FIELD: project_of(ZERO_FIELD)} | {name: project_of(name) for name in vectors}
    if len(set(projects.values())) != len(projects):
        raise CampaignError(f"field points need different CP2K projects, got {list(projects.values())}")
    return projects


def render_field_set(
    template: str | Section,
    atoms: Atoms,
    vectors: Mapping[str, ArrayLike],
    project_of: Callable[[str], str] = point_project,
) -> dict[str, str]:
    """Return the CP2K inputs of one snapshot in all its fields, to be run in this order in one directory.

    Args:
        template: level of theory, see :func:`check_label_template`.
        atoms: the snapshot [A].
        vectors: point name -> (3,) field [E_h/(e a0)].
        project_of: makes a CP2K project name of a point's name; projects must differ.

    Returns:
        File name -> text, the zero-field point first; ``PROJECT.inp`` is to be run with ``-o PROJECT.out``.
    """
    template = _as_section(template)
    if np.any(vectors.get(ZERO_FIELD, 0.0)):
        raise CampaignError(f"the field point named {ZERO_FIELD!r} must have no field, got {vectors[ZERO_FIELD]!r}")
    projects = field_projects(vectors, project_of)
    return {
        f"{project}.inp": render_field_point(
            template, atoms, vectors.get(name), project, None if name == ZERO_FIELD else projects[ZERO_FIELD]
        )
        for name, project in projects.items()
    }


def _each(section: str, stride: int, *keywords: Keyword) -> Section:
    return Section(section, "ON", (*keywords, Section("EACH", "", (Keyword("MD", str(stride)),))))


def _kind_masses(template: Section, atoms: Atoms) -> Section:
    """Give each kind the structure's mass [u]: CP2K's own differ in the fifth digit and know no isotopes."""
    masses = atoms.get_masses()
    subsys = template.section("FORCE_EVAL/SUBSYS") or Section("SUBSYS")
    entries = list(subsys.entries)
    default = next((k for k in subsys.sections("KIND") if k.parameter.upper() == "DEFAULT"), Section("KIND"))
    for symbol in _symbols(atoms):
        own = np.unique(masses[np.array(atoms.get_chemical_symbols()) == symbol])
        if len(own) > 1:
            raise CampaignError(f"CP2K input: atoms of one species must have one mass, {symbol} has {own.tolist()}")
        index = next(
            (
                i
                for i, e in enumerate(entries)
                if isinstance(e, Section) and e.name == "KIND" and e.parameter.upper() == symbol.upper()
            ),
            None,
        )
        kind = replace(default, parameter=symbol) if index is None else entries[index]
        assert isinstance(kind, Section)
        kind = kind.with_keyword("MASS", f"{own[0]:.15g}")
        if index is None:
            entries.append(kind)
        else:
            entries[index] = kind
    return template.with_section("FORCE_EVAL", replace(subsys, entries=tuple(entries)))


def render_md(
    template: str | Section,
    atoms: Atoms,
    settings: NvtSettings | NveSettings,
    project: str,
    charge: int | None = None,
) -> str:
    """Return CP2K input for an MD run.

    NVT uses the CSVR thermostat on all atoms with the time constant 1/friction. Velocities come from the structure
    where it has any, else CP2K draws them at the temperature from the seed. NVE always starts from the structure's
    velocities: step 0 is then the frame they came from.

    Args:
        template: any single &FORCE_EVAL (NNP, DFT, force field), without &MOTION, cell and coordinates.
        atoms: the start [A], with momenta for NVE.
        settings: the run; as everywhere, steps 0, stride, ... below ``n_steps`` are stored.
        project: CP2K's project name.
        charge: total charge; default ``atoms.info["charge"]`` or 0.

    Returns:
        Input text. The run writes every ``stride`` steps ``PROJECT-pos-1.xyz`` (unwrapped [A]), ``PROJECT-vel-1.xyz``
        [a0/au_t] and ``PROJECT-1.ener``, step 0 included.
    """
    template = _as_section(template)
    _check_project(project)
    force_eval = _check_common(template, atoms)
    if template.section("MOTION"):
        raise CampaignError("CP2K template: remove &MOTION, steps, ensemble and printing come from the campaign")
    if force_eval.section("DFT"):
        checked = atoms.copy()
        checked.info = dict(atoms.info) | ({} if charge is None else {"charge": charge})
        _check_dft(force_eval, checked)
    is_nvt = isinstance(settings, NvtSettings)
    velocities = _start_velocities(atoms, settings)
    if velocities is None and not is_nvt:
        raise CampaignError("NVE in CP2K needs the velocities of the start; take it from a frame of an NVT run")
    md: list[Keyword | Section] = [
        Keyword("ENSEMBLE", "NVT" if is_nvt else "NVE"),
        Keyword("STEPS", str(settings.last_step)),
        Keyword("TIMESTEP", f"{settings.timestep:.15g}"),
        Section("PRINT", "", (_each("ENERGY", settings.stride),)),
    ]
    if isinstance(settings, NvtSettings):
        if settings.thermostat != "csvr":
            raise CampaignError(f"CP2K runs NVT with the thermostat csvr (time_constant_fs), got {settings.thermostat}")
        if not 0 <= settings.seed < 2**31:
            raise CampaignError(f"seed must be between 0 and 2147483647 for CP2K, got {settings.seed}")
        template = template.with_keyword("GLOBAL/SEED", settings.seed)
        csvr = Section("CSVR", "", (Keyword("TIMECON", f"{1 / settings.friction:.15g}"),))
        md += [
            Keyword("TEMPERATURE", f"{settings.temperature:.15g}"),
            Section("THERMOSTAT", "", (Keyword("TYPE", "CSVR"), Keyword("REGION", "GLOBAL"), csvr)),
        ]
        if not atoms.pbc.any():
            md.append(Keyword("ANGVEL_ZERO", "T"))
    for path, value in (("PROJECT", project), ("RUN_TYPE", "MD")):
        template = template.with_keyword(f"GLOBAL/{path}", value)
    if template.keyword("GLOBAL/PRINT_LEVEL") is None:
        template = template.with_keyword("GLOBAL/PRINT_LEVEL", "LOW")
    template = _subsys(_kind_masses(template, atoms), atoms)
    if velocities is not None:
        rows = tuple(Keyword(*_vector(v).split(" ", 1)) for v in velocities)
        template = template.with_section("FORCE_EVAL/SUBSYS", Section("VELOCITY", "", rows))
    printing = (
        _each("TRAJECTORY", settings.stride, Keyword("FORMAT", "XYZ"), Keyword("UNIT", "angstrom")),
        _each("VELOCITIES", settings.stride, Keyword("FORMAT", "XYZ"), Keyword("UNIT", "bohr*au_t^-1")),
        _each("RESTART", max(1000, settings.stride), Keyword("BACKUP_COPIES", "0")),
        Section("RESTART_HISTORY", "OFF"),
    )
    motion = Section("MOTION", "", (Section("MD", "", tuple(md)), Section("PRINT", "", printing)))
    return write_input(replace(template, entries=(*template.entries, motion)))


def _start_velocities(atoms: Atoms, settings: NvtSettings | NveSettings) -> Array | None:
    """Return (n_atoms, 3) velocities of the start [a0/au_t], None where the structure has none.

    The centre of mass is brought to rest where it moves by more than the rounding of a velocity file, so that a frame
    written by CP2K comes back digit for digit.
    """
    velocities = atoms.get_velocities() * units.fs
    if not np.isfinite(velocities).all():
        raise CampaignError("CP2K input: velocities must be finite, got NaN or infinity")
    if not velocities.any():
        return None
    masses = atoms.get_masses()
    if np.abs(masses @ velocities / masses.sum()).max() > _ROUNDED_VELOCITY:
        velocities = without_translation(velocities, masses)
    if isinstance(settings, NveSettings) and settings.remove_rotation:
        if atoms.pbc.any():
            raise CampaignError("remove_rotation is for clusters: the structure is periodic")
        velocities, _ = without_rotation(atoms.positions, velocities, masses)
    return velocities / BOHR_PER_AU_TIME
