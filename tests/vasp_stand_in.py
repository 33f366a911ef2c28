#!/usr/bin/env python
"""A stand-in for the `vasp` executable: real numbers in the files and with the conventions of VASP 6.4.

Run it in a folder with INCAR, POSCAR, KPOINTS and POTCAR. It writes OUTCAR, vasprun.xml, CONTCAR, OSZICAR, WAVECAR and
the standard output. What it computes comes from one of two models in the field it is given:

* ``GFN2-xTB`` (default), ``GFN1-xTB``: tblite on the atoms as they stand, without the cell. Accuracy follows EDIFF.
* ``bonds``: a crystal of springs, charges, bond dipoles and bond polarizabilities, exactly quadratic in the field.

Conventions of VASP, as its output shows (OUTCARs of C60, version 6.4.3): EFIELD_PEAD is a field on positive charges
in eV/A by component; ions count positive in p[ion]; LCALCEPS prints [F(E) - F(0)]/E with rows = field and the forces
without a field; LEPSILON spreads the residual of the sum rule evenly. OUTCAR has six decimals of a force,
vasprun.xml eight.

Settings are words ``key=value`` in the SYSTEM tag of INCAR or in the variable VASP_STAND_IN: ``model=``, ``gap=`` [eV]
for bonds, ``fail=KIND`` or ``fail=KIND@POINT`` (a point such as ``+x``, ``-x-y``, ``0``). Kinds of failure:
unconverged, truncated, no-vasprun, no-outcar, killed, crash, ignores-field, scales-field, metal, too-strong.
"""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import ase
import ase.io
import numpy as np
from ase.units import Bohr, Hartree

FAILURES = (
    "unconverged",
    "truncated",
    "no-vasprun",
    "no-outcar",
    "killed",
    "crash",
    "ignores-field",
    "scales-field",
    "metal",
    "too-strong",
)
VERSION = "6.4.3"
COULOMB = Hartree * Bohr
"""e^2/(4 pi eps0) [eV A]."""
VALENCE = {"H": 1, "Li": 1, "C": 4, "N": 5, "O": 6, "F": 7, "Na": 1, "Mg": 2, "Al": 3, "Si": 4, "P": 5, "S": 6, "Cl": 7}
VALENCE |= {"K": 1, "Ca": 2, "Zn": 12, "Ga": 3, "Ge": 4, "As": 5, "Se": 6, "Br": 7, "I": 7}
LINE = "-" * 104


@dataclass(frozen=True)
class State:
    """A ground state in a field: energies [eV], forces [eV/A], dipole [e A], levels [eV] by spin, electrons by spin."""

    energy: float
    forces: np.ndarray
    dipole: np.ndarray
    levels: list[np.ndarray]
    electrons: list[int]

    @property
    def gap(self) -> float:
        """The smallest gap of a spin; a field flips none."""
        return float(min(e[n] - e[n - 1] for e, n in zip(self.levels, self.electrons) if n))


class XtbModel:
    """A molecule in a cell that is not looked at."""

    def __init__(self, atoms: ase.Atoms, method: str, accuracy: float, charge: float, unpaired: int) -> None:
        self.atoms, self.method, self.accuracy = atoms, method, accuracy
        self.charge, self.unpaired = charge, unpaired

    def state(self, field: np.ndarray) -> State:
        """Return the ground state in a field (3,) [V/A]."""
        from tblite.interface import Calculator
        from tblite.library import ffi

        calculator = Calculator(
            self.method, self.atoms.numbers, self.atoms.positions / Bohr, charge=self.charge, uhf=self.unpaired
        )
        calculator.set("verbosity", 0)
        calculator.set("accuracy", self.accuracy)
        vector = np.array(field, dtype=float) * Bohr / Hartree
        if vector.any():
            calculator.add("electric-field", ffi.cast("double*", vector.ctypes.data))
        result = calculator.singlepoint()
        levels = np.atleast_2d(result.get("orbital-energies")) * Hartree
        n_electrons = round(float(np.sum(result.get("orbital-occupations"))))
        n_down = (n_electrons - self.unpaired) // 2
        electrons = [n_down + self.unpaired, n_down][: 1 + (self.unpaired > 0)]
        return State(
            float(result.get("energy")) * Hartree,
            -result.get("gradient") * Hartree / Bohr,
            result.get("dipole") * Bohr,
            [levels[min(s, len(levels) - 1)] for s in range(len(electrons))],
            electrons,
        )


class BondModel:
    """A crystal whose energy in a field E is exactly quadratic in it.

    U = sum_bonds k/2 (d - d0)^2 - E.M - E.A.E/2, where

    M = sum_i q_i r_i + sum_bonds mu (d/d0) u + gamma sum_i |s_i|^2 s_i,
    A = sum_bonds a_par (d/d0) u u^T + a_perp (1 - u u^T);

    u runs along a bond from q < 0 to q > 0, and s_i is the sum of the unit vectors of atom i to its neighbours. All of
    it turns with the crystal, charges sum to zero so both sum rules hold, and the term in gamma makes the polar tensors
    unsymmetric.
    """

    stiffness, mu, gamma, parallel, perpendicular = 12.0, 0.35, 0.4, 0.09, 0.04

    def __init__(self, atoms: ase.Atoms, n_electrons: float, gap: float) -> None:
        from ase.data import covalent_radii
        from ase.neighborlist import neighbor_list

        self.atoms, self.gap, self.n_electrons = atoms, gap, round(n_electrons)
        cutoffs = 1.25 * covalent_radii[atoms.numbers]
        i, j, vectors = neighbor_list("ijD", atoms, cutoffs)
        if not len(i):
            raise SystemExit("vasp stand-in: the bonds model finds no bonds")
        self.i, self.j, self.vectors = i, j, vectors
        self.length = 0.5 * (covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]]) * 2 * 1.02
        electronegative = {6: 0.0, 7: -1.5, 8: -2.0, 9: -1.0, 17: -1.0, 35: -1.0}
        charges = np.array([electronegative.get(int(z), 1.0) for z in atoms.numbers])
        positive = charges > 0
        if positive.any() and not positive.all():
            charges[positive] *= -charges[~positive].sum() / charges[positive].sum()
        else:
            charges[:] = 0.0
        self.charges = charges
        self.polarity = np.sign(charges[j] - charges[i])

    def state(self, field: np.ndarray) -> State:
        """Return energy, forces and dipole in a field (3,) [V/A]; every bond is listed from both ends."""
        field = np.asarray(field, dtype=float)
        i, vectors = self.i, self.vectors
        d = np.linalg.norm(vectors, axis=1)
        u = vectors / d[:, None]
        along = u @ field
        stretch = d - self.length
        # derivative of the energy by the bond vector of each listed bond, half of it for the two ends
        slope = (0.5 * self.stiffness * stretch)[:, None] * u
        dipoles = (0.5 * self.mu * self.polarity * d / self.length)[:, None] * u
        slope -= (0.5 * self.mu * self.polarity / self.length)[:, None] * field
        s = np.zeros((len(self.atoms), 3))
        np.add.at(s, i, u)
        cubic = self.gamma * np.sum(s**2, axis=1)[:, None] * s
        by_s = self.gamma * (np.sum(s**2, axis=1)[:, None] * field + 2 * (s @ field)[:, None] * s)
        g = by_s[i]
        slope -= (g - np.sum(g * u, axis=1)[:, None] * u) / d[:, None]
        a_par, a_perp = self.parallel * d / self.length, self.perpendicular
        ff = field @ field
        # A.E.E of a bond: a_par (u.E)^2 + a_perp (E^2 - (u.E)^2)
        transverse = field - along[:, None] * u
        slope -= 0.25 * (self.parallel / self.length * along**2)[:, None] * u
        slope -= (0.5 * (a_par - a_perp) * along / d)[:, None] * transverse
        forces = self.charges[:, None] * field + np.zeros((len(self.atoms), 3))
        np.add.at(forces, i, slope)
        np.subtract.at(forces, self.j, slope)
        moment = self.charges @ (self.atoms.positions - self.atoms.cell[:].sum(axis=0) / 2)
        moment = moment + dipoles.sum(axis=0) + cubic.sum(axis=0)
        alpha_field = 0.5 * ((a_par * along)[:, None] * u + a_perp * transverse).sum(axis=0)
        energy = 0.25 * self.stiffness * np.sum(stretch**2) - moment @ field
        energy -= 0.25 * np.sum(a_par * along**2 + a_perp * (ff - along**2))
        n = self.n_electrons // 2
        levels = np.concatenate([-0.5 * self.gap - 0.15 * np.arange(n)[::-1], 0.5 * self.gap + 0.2 * np.arange(n + 4)])
        return State(float(energy), forces, moment + alpha_field, [levels], [n])


def read_incar(text: str) -> dict[str, str]:
    """Return tags in upper case with their values as text."""
    tags: dict[str, str] = {}
    text = text.replace("\\\n", " ")
    for line in re.split(r"[\n;]", text):
        line = re.split(r"[#!]", line)[0]
        if "=" in line:
            name, _, value = line.partition("=")
            tags[name.strip().upper()] = value.strip()
    return tags


def is_true(tags: dict[str, str], name: str) -> bool:
    """Tell whether a logical tag is set."""
    return tags.get(name, "F").strip(". ").upper().startswith("T")


def number(value: str) -> float:
    """Return a Fortran number."""
    return float(value.upper().replace("D", "E"))


def settings_of(tags: dict[str, str]) -> dict[str, str]:
    """Return the key=value words of SYSTEM and of the environment."""
    words = f"{tags.get('SYSTEM', '')} {os.environ.get('VASP_STAND_IN', '')}".replace('"', " ").split()
    return dict(word.split("=", 1) for word in words if re.fullmatch(r"(model|gap|fail)=\S+", word))


def fails(settings: dict[str, str], kind: str, field: np.ndarray) -> bool:
    """Tell whether a failure is asked for in this field."""
    wanted, _, point = settings.get("fail", "").partition("@")
    name = "".join(("+" if x > 0 else "-") + axis for x, axis in zip(field, "xyz") if abs(x) > 1e-12) or "0"
    return wanted == kind and point in ("", name)


def read_kpoints(text: str, cell: np.ndarray) -> tuple[list[int], np.ndarray, np.ndarray, str]:
    """Return divisions, fractional k-points and weights, reduced by time reversal, and the kind of mesh."""
    lines = [line.split("!")[0].strip() for line in text.splitlines()]
    if int(lines[1].split()[0]) != 0:
        n = int(lines[1].split()[0])
        rows = np.array([[float(x) for x in line.split()[:4]] for line in lines[3 : 3 + n]])
        points = rows[:, :3] if not lines[2].lower().startswith(("c", "k")) else rows[:, :3] @ cell.T
        return [0, 0, 0], points, rows[:, 3] / rows[:, 3].sum(), "Listed"
    kind = "Gamma" if lines[2].upper().startswith("G") else "Monkhorst-Pack"
    divisions = [int(x) for x in lines[3].split()[:3]]
    shift = np.array([float(x) for x in lines[4].split()[:3]]) if len(lines) > 4 and lines[4] else np.zeros(3)
    offset = np.array([0.5 if kind != "Gamma" and n % 2 == 0 else 0.0 for n in divisions])
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in divisions], indexing="ij"), axis=-1).reshape(-1, 3)
    points = (grid + offset + shift) / divisions
    points -= np.round(points - 1e-9)
    kept: list[np.ndarray] = []
    weights: list[float] = []
    for point in points:
        for index, other in enumerate(kept):
            both = point + other
            if np.allclose(both, np.round(both), atol=1e-8):
                weights[index] += 1.0
                break
        else:
            kept.append(point)
            weights.append(1.0)
    return divisions, np.array(kept), np.array(weights) / len(points), kind


def read_potcar(path: Path, symbols: list[str]) -> tuple[list[str], list[float]]:
    """Return titles and valences of the species; a POTCAR in another order than POSCAR stops the run."""
    if not path.is_file():
        raise SystemExit("ERROR: there must be 1 or 4 items on line 2 of POTCAR: no file POTCAR")
    text = path.read_text(errors="replace")
    titles = re.findall(r"TITEL\s*=\s*(\S.*?)\s*$", text, flags=re.MULTILINE)
    valences = [float(x) for x in re.findall(r"ZVAL\s*=\s*([\d.]+)", text)]
    if titles and len(titles) != len(symbols):
        raise SystemExit(f"ERROR: number of potentials on File POTCAR incompatible with number of species: {titles}")
    for title, symbol in zip(titles, symbols):
        words = title.split()
        found = (words[1] if len(words) > 1 else words[0]).split("_")[0]
        if found != symbol:
            raise SystemExit(f"ERROR: the potential {title!r} of POTCAR stands where POSCAR has {symbol}")
    if len(valences) != len(symbols):
        valences = [float(VALENCE[s]) for s in symbols]
    return titles or [f"PAW_PBE {s} stand-in" for s in symbols], valences


class Outcar:
    """Text of OUTCAR as it grows, flushed at the end or where a run dies."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def add(self, *lines: str) -> None:
        """Add lines."""
        self.parts.extend(line + "\n" for line in lines)

    def write(self, fraction: float = 1.0) -> None:
        """Write it, or the first part of it."""
        text = "".join(self.parts)
        Path("OUTCAR").write_text(text[: int(fraction * len(text))])


def box(text: str) -> list[str]:
    """Return a warning as VASP frames it."""
    edge = " " + "-" * 77
    rows = [f"|{line:^77}|" for line in text.splitlines()]
    return [edge, *rows, edge]


class Run:
    """One run of the program."""

    def __init__(self) -> None:
        self.started = time.time()
        self.incar_text = Path("INCAR").read_text()
        self.tags = read_incar(self.incar_text)
        self.settings = settings_of(self.tags)
        if self.settings.get("fail", "").partition("@")[0] not in ("", *FAILURES):
            raise SystemExit(f"vasp stand-in: unknown failure {self.settings['fail']!r}; known are {FAILURES}")
        self.atoms = ase.io.read("POSCAR", format="vasp")
        symbols = self.atoms.get_chemical_symbols()
        starts = [k for k in range(len(symbols)) if k == 0 or symbols[k] != symbols[k - 1]]
        self.species = [symbols[k] for k in starts]
        self.counts = [b - a for a, b in zip(starts, [*starts[1:], len(symbols)])]
        self.titles, self.valences = read_potcar(Path("POTCAR"), self.species)
        self.mesh, self.kpoints, self.weights, self.mesh_kind = read_kpoints(
            Path("KPOINTS").read_text(), self.atoms.cell[:]
        )
        self.nelm = int(self.tags.get("NELM", "60"))
        self.ediff = number(self.tags.get("EDIFF", "1E-4"))
        self.ispin = int(self.tags.get("ISPIN", "1"))
        self.has_epsilon, self.has_calceps = is_true(self.tags, "LEPSILON"), is_true(self.tags, "LCALCEPS")
        neutral = float(np.repeat(self.valences, self.counts).sum())
        self.nelect = number(self.tags["NELECT"]) if "NELECT" in self.tags else neutral
        self.charge = neutral - self.nelect
        given = [number(x) for x in self.tags.get("EFIELD_PEAD", "0 0 0").split()[:3]]
        self.field = np.array(given if len(given) == 3 else [0.0, 0.0, 0.0])
        if self.has_calceps:
            # the wiki: with LCALCEPS, components below 1E-5 are reset to the default
            self.field = np.where(abs(self.field) < 1e-5, 0.01, self.field)
        elif np.linalg.norm(self.field) < 1e-5:
            self.field = np.zeros(3)
        if self.fails("ignores-field"):
            self.field = np.zeros(3)
        self.is_static = int(self.tags.get("NSW", "0")) == 0
        if not self.is_static:
            raise SystemExit("vasp stand-in: static runs only, NSW = 0")
        self.model = self._model()
        self.out, self.steps, self.stdout, self.oszicar = Outcar(), [], [], []
        self.converged = True

    def fails(self, kind: str) -> bool:
        """Tell whether a failure is asked for in this run's field."""
        given = [number(x) for x in self.tags.get("EFIELD_PEAD", "0 0 0").split()[:3]]
        return fails(self.settings, kind, np.array(given))

    def _model(self) -> XtbModel | BondModel:
        name = self.settings.get("model", "GFN2-xTB")
        if name == "bonds":
            return BondModel(self.atoms, self.nelect, float(self.settings.get("gap", "8.0")))
        unpaired = int(number(self.tags.get("NUPDOWN", "0"))) if self.ispin == 2 else 0
        if (round(self.nelect) - unpaired) % 2:
            unpaired = 1 if self.ispin == 2 else unpaired
        accuracy = float(np.clip(self.ediff * 1e5, 1e-3, 10.0))
        return XtbModel(self.atoms, name, accuracy, self.charge, unpaired)

    def felt(self, field: np.ndarray) -> np.ndarray:
        """Return the field that the model gets; a wrong one where that is asked for."""
        if self.fails("scales-field") and field.any():
            return field / np.linalg.norm(field) * np.abs(field).max()
        return field

    def scf(self, energy: float, error: float, rate: float, never: bool = False) -> None:
        """Write electronic steps until the energy changes by less than EDIFF, or NELM of them."""
        never = never or self.fails("unconverged")
        before = 0.0
        for step in range(1, self.nelm + 1):
            error *= rate if not never else 0.9
            now = energy + error
            self.out.add(
                "",
                "",
                f"--------------------------------------- Iteration {6 * ' '}1({step:4d})"
                "  ---------------------------------------",
                "",
                "",
                "    POTLOK:  cpu time      0.0010: real time      0.0010",
                "    --------------------------------------------",
                "      LOOP:  cpu time      0.0100: real time      0.0100",
                "",
                " eigenvalue-minimisations  :    16",
                f" total energy-change (2. order) : {now - before: .7E}  ({now - before: .7E})",
                f" number of electron {self.nelect:12.7f} magnetization ",
                f" augmentation part  {0.1 * self.nelect:12.7f} magnetization ",
                "",
                " Free energy of the ion-electron system (eV)",
                "  ---------------------------------------------------",
                f"  eigenvalues    EBANDS = {now:18.8f}",
                "  ---------------------------------------------------",
                f"  free energy    TOTEN  = {now:18.8f} eV",
                "",
                f"  energy without entropy = {now:18.8f}  energy(sigma->0) = {now:18.8f}",
                "",
                "",
                LINE,
                "",
            )
            self.steps.append(now)
            self.stdout.append(f"DAV: {step:3d} {now: .12E} {now - before: .5E} {error: .5E}   160 {abs(error): .3E}")
            self.oszicar.append(self.stdout[-1])
            # VASP wants the change of the energy and of the band energy below EDIFF
            if step > 1 and abs(now - before) < self.ediff and not never:
                self.out.add(
                    "",
                    "------------------------ aborting loop because EDIFF is reached"
                    " ----------------------------------------",
                    "",
                    "",
                )
                return
            before = now
        self.converged = False
        self.out.add(
            "",
            "------------------------ aborting loop EDIFF was not reached (unconverged)"
            "  ----------------------------------------",
            "",
            "",
        )

    def head(self) -> None:
        """Write what VASP prints before the first electronic step."""
        out, cell = self.out, self.atoms.cell[:]
        out.add(
            f" vasp.{VERSION} 19Mar24 (build Jun 01 2024 10:57:29) complex",
            "",
            f" executed on             StandIn date {time.strftime('%Y.%m.%d  %H:%M:%S')}",
            " running    1 mpi-ranks, on    1 nodes",
            "",
            "",
            LINE,
            "",
            "",
            " INCAR:",
            *(f"   {line.strip()}" for line in self.incar_text.splitlines() if line.strip()),
            "",
            *(f" POTCAR:    {title:<38}" for title in self.titles),
        )
        for title, valence, symbol in zip(self.titles, self.valences, self.species):
            mass = ase.Atoms(symbol).get_masses()[0]
            out.add(
                f" POTCAR:    {title:<38}",
                f"   VRHFIN ={symbol}: stand-in",
                "   LEXCH  = PE",
                f"   TITEL  = {title}",
                f"   POMASS = {mass:8.3f}; ZVAL   = {valence:8.3f}    mass and valenz",
                "",
            )
        out.add(f" POSCAR: {self.atoms.get_chemical_formula()}", "  positions in direct lattice", "")
        inverse = np.linalg.inv(cell).T
        lattice = [
            "      direct lattice vectors                 reciprocal lattice vectors",
            *("  " + "".join(f"{x:13.9f}" for x in (*a, *b)) for a, b in zip(cell, inverse)),
            "",
        ]
        out.add(LINE, "", f"  volume of cell :{self.atoms.get_volume():12.4f}", "", *lattice)
        out.add(
            "",
            " KPOINTS: Automatic mesh",
            f" generate k-points for: {self.mesh[0]:4d} {self.mesh[1]:4d} {self.mesh[2]:4d}",
            "",
            f" Found {len(self.kpoints):6d} irreducible k-points:",
            "",
            LINE,
            "",
            " Dimension of arrays:",
            f"   k-points           NKPTS = {len(self.kpoints):6d}   k-points in BZ     NKDIM = {len(self.kpoints):6d}"
            f"   number of bands    NBANDS= {self.n_bands:6d}",
            f"   number of dos      NEDOS =    301   number of ions     NIONS = {len(self.atoms):6d}",
            "   ions per type =            " + "".join(f"{n:4d}" for n in self.counts),
            "",
            f" SYSTEM =  {self.tags.get('SYSTEM', 'unknown system')}",
            f" POSCAR =  {self.atoms.get_chemical_formula()}",
            "",
            " Startparameter for this run:",
            "   NWRITE =      2    write-flag & timer",
            f"   ISTART = {int(self.restarts):6d}    job   : 0-new  1-cont  2-samecut",
            f"   ICHARG = {0 if self.restarts else 2:6d}    charge: 1-file 2-atom 10-const",
            f"   ISPIN  = {self.ispin:6d}    spin polarized calculation?",
            " Electronic Relaxation 1",
            f"   NELM   = {self.nelm:6d};   NELMIN=  2; NELMDL= -5     # of ELM steps ",
            f"   EDIFF  = {self.ediff:.1E}   stopping-criterion for ELM",
            " Ionic relaxation",
            "   NSW    =      0    number of steps for IOM",
            "   IBRION =     -1    ionic relax: 0-MD 1-quasi-New 2-CG",
            f"   ISYM   = {int(self.tags.get('ISYM', '2')):6d}    0-nonsym 1-usesym 2-fastsym",
            "   POTIM  = 0.5000    time-step for ionic-motion",
            "",
            "  Ionic Valenz",
            "   ZVAL   = " + " ".join(f"{v:6.2f}" for v in self.valences),
            f"   NELECT = {self.nelect:12.4f}    total number of electrons",
            "",
            f"   ISMEAR = {int(self.tags.get('ISMEAR', '1')):5d};   SIGMA  = "
            f"{number(self.tags.get('SIGMA', '0.2')):6.2f}  broadening in eV -4-tet -1-fermi 0-gaus",
            "",
            " Write flags",
            f"   LWAVE        =      {'T' if self.writes_wavefunction else 'F'}    write WAVECAR",
            "",
            " Linear response parameters",
            f"   LEPSILON=     {'T' if self.has_epsilon else 'F'}    determine dielectric tensor",
            "   LRPA    =     F    only Hartree local field effects (RPA)",
            "",
        )
        if self.has_calceps or self.field.any():
            out.add(
                " PEAD related settings:",
                "   LPEAD      =     T    switch on PEAD",
                "   IPEAD      =     4    finite difference order for dpsi/dk",
                f"   LCALCPOL   =     {'T' if is_true(self.tags, 'LCALCPOL') else 'F'}    macroscopic polarization",
                f"   LCALCEPS   =     {'T' if self.has_calceps else 'F'}    calculate dielectric tensor",
                "   EFIELD_PEAD=" + "".join(f"{x:10.4f}" for x in self.field),
                "   SKIP_EDOTP =     F",
                "",
            )
        out.add(
            LINE,
            "",
            f"  energy-cutoff  : {400.0:11.2f}",
            f"  volume of cell : {self.atoms.get_volume():11.2f}",
            *lattice,
        )
        for unit, points in (("units of 2pi/SCALE", self.kpoints @ inverse), ("reciprocal lattice", self.kpoints)):
            out.add(
                "",
                f" k-points in {unit} and weight{'s' if 'lattice' in unit else ''}: Automatic mesh",
                *("  " + "".join(f"{x:12.8f}" for x in k) + f"{w:12.3f}" for k, w in zip(points, self.weights)),
            )
        for title, rows in (
            ("fractional coordinates (direct lattice) ", self.atoms.get_scaled_positions(wrap=False)),
            ("cartesian coordinates  (Angst):", self.atoms.positions),
        ):
            out.add("", f" position of ions in {title}", *("".join(f"{x:13.8f}" for x in row) for row in rows))
        out.add(
            "",
            LINE,
            "",
            f"----------------------------------------- Ionic step{8 * ' '} 1  "
            "-------------------------------------------",
            "",
        )
        self.stdout += [
            " running    1 mpi-ranks, on    1 nodes",
            f" vasp.{VERSION} 19Mar24 (build Jun 01 2024 10:57:29) complex",
            f" POSCAR found type information on POSCAR {' '.join(self.species)}",
            " entering main loop",
            "       N       E                     dE             d eps       ncg     rms          rms(c)",
        ]

    @property
    def restarts(self) -> bool:
        """Tell whether this run continues from a WAVECAR."""
        asked = self.tags.get("ISTART", "1") != "0"
        return asked and self._continues

    _continues = False

    @property
    def writes_wavefunction(self) -> bool:
        """Tell whether WAVECAR is written."""
        return is_true({"LWAVE": self.tags.get("LWAVE", "T")}, "LWAVE")

    @property
    def n_bands(self) -> int:
        """Number of bands: as asked for, or with some empty ones."""
        occupied = int(np.ceil(self.nelect / 2))
        return int(self.tags.get("NBANDS", occupied + max(4, occupied // 2)))

    def bands(self, state: State, in_field: bool = False) -> tuple[np.ndarray, np.ndarray, float]:
        """Return energies and occupations (n_spins, n_kpoints, n_bands) [eV] and the Fermi energy [eV].

        With a field on, VASP has no empty bands and gives them 10000 eV.
        """
        spins = max(self.ispin, len(state.levels))
        energies = np.zeros((spins, len(self.kpoints), self.n_bands))
        occupations = np.zeros_like(energies)
        for s in range(spins):
            levels = state.levels[min(s, len(state.levels) - 1)]
            n = state.electrons[min(s, len(state.electrons) - 1)]
            more = levels[-1] + 0.5 * np.arange(1, max(self.n_bands - len(levels), 0) + 1)
            levels = np.concatenate([levels, more])[: self.n_bands]
            filled = np.arange(self.n_bands) < n
            for k, point in enumerate(self.kpoints):
                spread = 0.1 * (1 - np.cos(2 * np.pi * point).mean()) if self.model_is_crystal else 0.0
                energies[s, k] = levels + np.where(filled, -spread, spread)
            occupations[s] = filled
            if self.fails("metal"):
                energies[s] = np.where(filled, levels - levels[n - 1], levels - levels[min(n, len(levels) - 1)])
                occupations[s, :, n - 1] = occupations[s, :, min(n, self.n_bands - 1)] = 0.5
        full = occupations > 0.5
        top = energies[full].max()
        bottom = energies[~full].min() if (~full).any() else top + 2.0
        if in_field:
            energies[~full] = 10000.0
        return energies, occupations, float(0.5 * (top + bottom))

    @property
    def model_is_crystal(self) -> bool:
        """Tell whether the model has k-points."""
        return isinstance(self.model, BondModel)

    def band_table(self, state: State, in_field: bool = False) -> None:
        """Write band energies."""
        energies, occupations, fermi = self.bands(state, in_field)
        spins = len(energies)
        self.out.add("", f" E-fermi : {fermi:9.4f}     XC(G=0):  -2.0000     alpha+bet : -1.0000", "")
        for s in range(spins):
            if spins > 1:
                self.out.add("", f" spin component {s + 1}", "")
            for k, point in enumerate(self.kpoints):
                self.out.add(
                    f" k-point {k + 1:5d} : " + " ".join(f"{x:12.4f}" for x in point),
                    "  band No.  band energies     occupation ",
                )
                for band in range(self.n_bands):
                    occupation = occupations[s, k, band] * (2 if spins == 1 else 1)
                    self.out.add(f"{band + 1:7d} {energies[s, k, band]:13.4f} {occupation:12.5f}")
                self.out.add("")
        self.out.add("", LINE, "")

    def field_warning(self, field: np.ndarray, gap: float) -> None:
        """Warn as VASP does where e|E.a_i| exceeds a tenth of the gap over the number of k-points."""
        drop = abs(self.atoms.cell[:] @ field)
        limit = gap / 10 / np.maximum(self.mesh, 1)
        if np.any(drop > limit):
            rows = "\n".join(
                f"e |E dot A_{i + 1}| = {drop[i]:8.5f} > 1/10, E_g/N_{i + 1} = {limit[i]:8.5f}" for i in range(3)
            )
            text = (
                "One or more components of EFIELD_PEAD are too large for comfort. In\n"
                "all probability, you are too near to the onset of Zener tunneling.\n\n"
                f"{rows}\n\nPossible SOLUTIONS:\n ) Choose a smaller electric field.\n"
                " ) Use a less dense grid of k-points."
            )
            self.out.add(*box(text))
            self.stdout += box(text)

    def in_field(self, field: np.ndarray, zero: State) -> State:
        """Switch a field on: warning, electronic steps, polarization."""
        self.field_warning(field, 0.0 if self.fails("metal") else zero.gap)
        state = self.model.state(self.felt(field))
        # where the field can lift an electron across the gap there is no minimum to converge to
        drop = abs(self.atoms.cell[:] @ field) * np.maximum(self.mesh, 1)
        never = self.fails("too-strong") or bool(np.any(drop > zero.gap))
        self.scf(state.energy, zero.energy - state.energy + 1e-3, 0.2, never)
        self.band_table(state, in_field=True)
        self.polarization(state, zero)
        return state

    def polarization(self, state: State, zero: State) -> None:
        """Print dipoles [e A]: ions positive, about the middle of the cell."""
        ions = np.repeat(self.valences, self.counts) @ (self.atoms.positions - self.atoms.cell[:].sum(axis=0) / 2)
        electrons = state.dipole - ions
        for label, vector in (
            ("           Ionic dipole moment: p[ion]", ions),
            ("Total electronic dipole moment: p[elc]", electrons),
            ("Total change in dipole moment: dp[tot]", state.dipole - zero.dipole),
        ):
            self.out.add("", f" {label}=({vector[0]:12.5f} {vector[1]:12.5f} {vector[2]:12.5f} ) |e| Angst", "")

    def tail(self, state: State) -> None:
        """Write forces, energies and timings."""
        out, atoms = self.out, self.atoms
        cell = atoms.cell[:]
        inverse = np.linalg.inv(cell).T
        out.add(
            "",
            "  FORCE on cell =-STRESS in cart. coord.  units (eV):",
            "  Direction    XX          YY          ZZ          XY          YZ          ZX",
            "  " + LINE[:86],
            "  Total    " + "".join(f"{0.0:12.5f}" for _ in range(6)),
            "  in kB    " + "".join(f"{0.0:12.5f}" for _ in range(6)),
            "  external pressure =        0.00 kB  Pullay stress =        0.00 kB",
            "",
            "",
            " VOLUME and BASIS-vectors are now :",
            " " + LINE[:77],
            f"  energy-cutoff  : {400.0:11.2f}",
            f"  volume of cell : {atoms.get_volume():11.2f}",
            "      direct lattice vectors                 reciprocal lattice vectors",
            *("  " + "".join(f"{x:13.9f}" for x in (*a, *b)) for a, b in zip(cell, inverse)),
            "",
            "  length of vectors",
            "  " + "".join(f"{x:13.9f}" for x in (*np.linalg.norm(cell, axis=1), *np.linalg.norm(inverse, axis=1))),
            "",
            "",
            " POSITION                                       TOTAL-FORCE (eV/Angst)",
            " " + LINE[:83],
            *(
                "".join(f"{x:13.5f}" for x in r) + "  " + "".join(f"{x:14.6f}" for x in f)
                for r, f in zip(atoms.positions, state.forces)
            ),
            " " + LINE[:83],
            "    total drift:                            " + "".join(f"{x:14.6f}" for x in state.forces.sum(axis=0)),
            "",
            "",
            LINE,
            "",
            "",
            "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)",
            "  ---------------------------------------------------",
            f"  free  energy   TOTEN  = {state.energy:18.8f} eV",
            "",
            f"  energy  without entropy={state.energy:18.8f}  energy(sigma->0) ={state.energy:18.8f}",
            " ",
            "",
            LINE,
            "",
        )

    def timing(self) -> None:
        """Write what a run ends with."""
        spent = time.time() - self.started
        self.out.add(
            "",
            " total amount of memory used by VASP MPI-rank0    30000. kBytes",
            "=======================================================================",
            "",
            "   base      :      30000. kBytes",
            " ",
            "  ",
            "  ",
            " General timing and accounting informations for this job:",
            " ========================================================",
            "  ",
            f"                  Total CPU time used (sec):{spent:13.3f}",
            f"                            User time (sec):{spent:13.3f}",
            f"                          System time (sec):{0.0:13.3f}",
            f"                         Elapsed time (sec):{spent:13.3f}",
            "  ",
            "                   Maximum memory used (kb):       30000.",
            "                   Average memory used (kb):          N/A",
            "  ",
            "                          Minor page faults:            0",
            "                          Major page faults:            0",
            "                 Voluntary context switches:            0",
        )

    def main(self) -> int:
        """Run."""
        self._continues = Path("WAVECAR").is_file() and Path("WAVECAR").stat().st_size > 0
        if self.fails("crash"):
            self.stdout.append(f" vasp.{VERSION} 19Mar24 (build Jun 01 2024 10:57:29) complex")
            print("\n".join(self.stdout), "\n forrtl: severe (174): SIGSEGV, segmentation fault occurred", flush=True)
            return 174
        self.head()
        self.zero = zero = self.model.state(np.zeros(3))
        # from the atoms' densities, or from the orbitals of a WAVECAR
        self.scf(zero.energy, *((1e-4, 0.1) if self.restarts else (40.0, 0.2)))
        self.band_table(zero)
        final, epsilon, born = zero, None, None
        if self.has_calceps:
            epsilon, born = self.finite_differences(zero)
        elif self.field.any():
            final = self.in_field(self.field, zero)
        elif is_true(self.tags, "LCALCPOL"):
            self.polarization(zero, zero)
        self.tail(final)
        if self.has_epsilon:
            epsilon, born = self.perturbation(zero)
        if self.fails("killed"):
            self.out.write(0.8)
            print("\n".join(self.stdout), flush=True)
            return 137
        self.timing()
        if not self.fails("no-outcar"):
            self.out.write()
        text = self.xml(final, epsilon, born)
        if not self.fails("no-vasprun"):
            Path("vasprun.xml").write_text(text[: int(0.6 * len(text))] if self.fails("truncated") else text)
        ase.io.write("CONTCAR", self.atoms, format="vasp", direct=True)
        self.stdout.append(f"   1 F= {final.energy:.8E} E0= {final.energy:.8E}  d E =-.000000E+00")
        self.oszicar.append(self.stdout[-1])
        self.stdout += [" writing wavefunctions"] if self.writes_wavefunction else []
        Path("OSZICAR").write_text("\n".join(self.oszicar) + "\n")
        if self.writes_wavefunction:
            Path("WAVECAR").write_bytes(b"wavefunctions of the stand-in")
        print("\n".join(self.stdout), flush=True)
        return 0

    def finite_differences(self, zero: State) -> tuple[np.ndarray, np.ndarray]:
        """Return epsilon and Z[atom, field, displacement] = [F(E) - F(0)]/E, as LCALCEPS, and print them."""
        volume = self.atoms.get_volume()
        epsilon, born = np.eye(3), np.zeros((len(self.atoms), 3, 3))
        for axis in range(3):
            field = np.zeros(3)
            field[axis] = self.field[axis]
            state = self.in_field(field, zero)
            born[:, axis] = (state.forces - zero.forces) / field[axis]
            epsilon[:, axis] += 4 * np.pi * COULOMB / volume * (state.dipole - zero.dipole) / field[axis]
        self._print_epsilon(epsilon, "")
        self._print_born(born, "BORN EFFECTIVE CHARGES (including local field effects) (in |e|, cummulative output)")
        return epsilon, born

    def perturbation(self, zero: State) -> tuple[np.ndarray, np.ndarray]:
        """Return epsilon and Z[atom, field, displacement] as LEPSILON, and print them."""
        step, volume = 0.03, self.atoms.get_volume()
        epsilon, born = np.eye(3), np.zeros((len(self.atoms), 3, 3))
        for axis in range(3):
            field = np.zeros(3)
            field[axis] = step
            plus, minus = self.model.state(self.felt(field)), self.model.state(self.felt(-field))
            born[:, axis] = (plus.forces - minus.forces) / (2 * step)
            epsilon[:, axis] += 4 * np.pi * COULOMB / volume * (plus.dipole - minus.dipole) / (2 * step)
            self.scf(zero.energy, 1.0, 0.2)
        born -= born.mean(axis=0)
        self._print_epsilon(epsilon, " in DFT")
        self._print_born(born, "BORN EFFECTIVE CHARGES (in e, cummulative output)")
        return epsilon, born

    def _print_epsilon(self, epsilon: np.ndarray, level: str) -> None:
        self.out.add(
            "",
            f" MACROSCOPIC STATIC DIELECTRIC TENSOR (including local field effects{level})",
            " " + LINE[:54],
            *("      " + "".join(f"{x:13.6f}" for x in row) for row in epsilon),
            " " + LINE[:54],
            "",
        )

    def _print_born(self, born: np.ndarray, title: str) -> None:
        self.out.add("", f" {title}", " " + LINE[:81])
        for ion, block in enumerate(born):
            self.out.add(f" ion {ion + 1:4d}")
            self.out.add(*(f"{row + 1:5d}" + "".join(f"{x:12.5f}" for x in block[row]) for row in range(3)))
        self.out.add(" ", LINE, "")

    def xml(self, state: State, epsilon: np.ndarray | None, born: np.ndarray | None) -> str:
        """Return vasprun.xml."""
        lines: list[str] = []

        def vector(values: np.ndarray, tag: str = "v", pad: str = "") -> str:
            return f"{pad}<{tag}>" + "".join(f" {x:16.8f}" for x in values) + f" </{tag}>"

        def varray(name: str, rows: np.ndarray, pad: str) -> list[str]:
            return [f'{pad}<varray name="{name}" >', *(vector(r, "v", pad + " ") for r in rows), f"{pad}</varray>"]

        def structure(pad: str, name: str = "") -> list[str]:
            cell = self.atoms.cell[:]
            inner = pad + "  "
            return [
                f"{pad}<structure{name}>",
                f"{pad} <crystal>",
                *varray("basis", cell, inner),
                f'{inner}<i name="volume"> {self.atoms.get_volume():15.8f} </i>',
                *varray("rec_basis", np.linalg.inv(cell).T, inner),
                f"{pad} </crystal>",
                *varray("positions", self.atoms.get_scaled_positions(wrap=False), pad + " "),
                f"{pad}</structure>",
            ]

        def tag(name: str, value: str, pad: str) -> str:
            if re.fullmatch(r"\.?[TF](RUE|ALSE)?\.?", value, flags=re.IGNORECASE):
                return f'{pad}<i type="logical" name="{name}"> {value.strip(".")[0].upper()}  </i>'
            if name in ("SYSTEM", "PREC", "ALGO", "GGA"):
                return f'{pad}<i type="string" name="{name}">{escape(value)}</i>'
            words = value.split()
            try:
                numbers = [number(w) for w in words]
            except ValueError:
                return f'{pad}<i type="string" name="{name}">{escape(value)}</i>'
            if len(words) > 1:
                return f'{pad}<v name="{name}">' + "".join(f"{x:16.8f}" for x in numbers) + "</v>"
            if re.fullmatch(r"[-+]?\d+", value):
                return f'{pad}<i type="int" name="{name}"> {int(value):5d}</i>'
            return f'{pad}<i name="{name}">{numbers[0]:16.8f}</i>'

        lines += [
            '<?xml version="1.0" encoding="ISO-8859-1"?>',
            "<modeling>",
            " <generator>",
            '  <i name="program" type="string">vasp </i>',
            f'  <i name="version" type="string">{VERSION}  </i>',
            '  <i name="subversion" type="string">19Mar24 (stand-in) complex parallel </i>',
            '  <i name="platform" type="string">StandIn </i>',
            f'  <i name="date" type="string">{time.strftime("%Y %m %d")} </i>',
            f'  <i name="time" type="string">{time.strftime("%H:%M:%S")} </i>',
            " </generator>",
            " <incar>",
            *(tag(name, value, "  ") for name, value in self.tags.items()),
            " </incar>",
            " <kpoints>",
            f'  <generation param="{self.mesh_kind}">',
            '   <v type="int" name="divisions"> ' + "".join(f"{n:8d} " for n in self.mesh) + "</v>",
            '   <v name="usershift">      0.00000000       0.00000000       0.00000000 </v>',
            "  </generation>",
            *varray("kpointlist", self.kpoints, "  "),
            *varray("weights", self.weights[:, None], "  "),
            " </kpoints>",
            " <parameters>",
            '  <separator name="general" >',
            tag("SYSTEM", self.tags.get("SYSTEM", "unknown system"), "   "),
            "  </separator>",
            '  <separator name="electronic" >',
            f'   <i name="EDIFF">{self.ediff:16.8f}</i>',
            f'   <i type="int" name="NBANDS"> {self.n_bands:5d}</i>',
            f'   <i name="NELECT">{self.nelect:16.8f}</i>',
            '   <separator name="electronic smearing" >',
            f'    <i type="int" name="ISMEAR"> {int(self.tags.get("ISMEAR", "1")):5d}</i>',
            f'    <i name="SIGMA">{number(self.tags.get("SIGMA", "0.2")):16.8f}</i>',
            "   </separator>",
            '   <separator name="electronic startup" >',
            f'    <i type="int" name="ISTART"> {int(self._continues):5d}</i>',
            "   </separator>",
            '   <separator name="electronic spin" >',
            f'    <i type="int" name="ISPIN"> {self.ispin:5d}</i>',
            "   </separator>",
            '   <separator name="electronic convergence" >',
            f'    <i type="int" name="NELM"> {self.nelm:5d}</i>',
            "   </separator>",
            "  </separator>",
            '  <separator name="ionic" >',
            '   <i type="int" name="NSW">     0</i>',
            '   <i type="int" name="IBRION">    -1</i>',
            "  </separator>",
            '  <separator name="symmetry" >',
            f'   <i type="int" name="ISYM"> {int(self.tags.get("ISYM", "2")):5d}</i>',
            "  </separator>",
            '  <separator name="response functions" >',
            tag("LEPSILON", "T" if self.has_epsilon else "F", "   "),
            tag("LCALCEPS", "T" if self.has_calceps else "F", "   "),
            '   <v name="EFIELD_PEAD">' + "".join(f"{x:16.8f}" for x in self.field) + "</v>",
            "  </separator>",
            " </parameters>",
            " <atominfo>",
            f"  <atoms> {len(self.atoms):7d} </atoms>",
            f"  <types> {len(self.species):7d} </types>",
            '  <array name="atoms" >',
            '   <dimension dim="1">ion</dimension>',
            '   <field type="string">element</field>',
            '   <field type="int">atomtype</field>',
            "   <set>",
        ]
        for kind, (symbol, count) in enumerate(zip(self.species, self.counts), 1):
            lines += [f"    <rc><c>{symbol:2s}</c><c>{kind:4d}</c></rc>"] * count
        lines += [
            "   </set>",
            "  </array>",
            '  <array name="atomtypes" >',
            '   <dimension dim="1">type</dimension>',
            '   <field type="int">atomspertype</field>',
            '   <field type="string">element</field>',
            "   <field>mass</field>",
            "   <field>valence</field>",
            '   <field type="string">pseudopotential</field>',
            "   <set>",
            *(
                f"    <rc><c>{n:4d}</c><c>{s:2s}</c><c>{ase.Atoms(s).get_masses()[0]:16.8f}</c><c>{v:16.8f}</c>"
                f"<c>  {escape(t):38s}</c></rc>"
                for n, s, v, t in zip(self.counts, self.species, self.valences, self.titles)
            ),
            "   </set>",
            "  </array>",
            " </atominfo>",
            *structure(" ", ' name="initialpos" '),
            " <calculation>",
        ]

        def energies(value: float, pad: str) -> list[str]:
            names = ("e_fr_energy", "e_wo_entrp", "e_0_energy")
            return [
                f"{pad}<energy>",
                *(f'{pad} <i name="{n}"> {value:16.8f} </i>' for n in names),
                f"{pad}</energy>",
            ]

        for energy in self.steps:
            lines += ["  <scstep>", '   <time name="total">    0.01    0.01</time>', *energies(energy, "   ")]
            lines += ["  </scstep>"]
        lines += [
            *structure("  "),
            *varray("forces", state.forces, "  "),
            *varray("stress", np.zeros((3, 3)), "  "),
            *energies(state.energy, "  "),
        ]
        if epsilon is not None:
            lines += varray("epsilon" if self.has_epsilon else "epsilon_scf", epsilon, "  ")
        if born is not None:
            lines += ['  <array name="born_charges" >', '   <dimension dim="1">ion</dimension>']
            for block in born:
                lines += ["   <set>", *(vector(row, "v", "    ") for row in block), "   </set>"]
            lines += ["  </array>"]
        values, occupations, fermi = self.bands(state, in_field=state is not self.zero)
        lines += [
            '  <time name="totalsc">    0.10    0.10</time>',
            "  <eigenvalues>",
            "   <array>",
            '    <dimension dim="1">band</dimension>',
            '    <dimension dim="2">kpoint</dimension>',
            '    <dimension dim="3">spin</dimension>',
            "    <field>eigene</field>",
            "    <field>occ</field>",
            "    <set>",
        ]
        for s in range(len(values)):
            lines += [f'     <set comment="spin {s + 1}">']
            for k in range(len(self.kpoints)):
                lines += [f'      <set comment="kpoint {k + 1}">']
                lines += [f"       <r>{e:11.4f}{o:10.4f} </r>" for e, o in zip(values[s, k], occupations[s, k])]
                lines += ["      </set>"]
            lines += ["     </set>"]
        lines += [
            "    </set>",
            "   </array>",
            "  </eigenvalues>",
            "  <dos>",
            f'   <i name="efermi"> {fermi:15.8f} </i>',
        ]
        lines += self.density_of_states(values, occupations)
        lines += ["  </dos>", " </calculation>", *structure(" ", ' name="finalpos" '), "</modeling>"]
        return "\n".join(lines) + "\n"

    def density_of_states(self, energies: np.ndarray, occupations: np.ndarray) -> list[str]:
        """Return the total density of states, without broadening, on VASP's 301 points."""
        grid = np.linspace(energies.min() - 1, energies[energies < 9000].max() + 1, 301)
        lines = [
            "   <total>",
            "    <array>",
            '     <dimension dim="1">gridpoints</dimension>',
            '     <dimension dim="2">spin</dimension>',
            "     <field>energy</field>",
            "     <field>total</field>",
            "     <field>integrated</field>",
            "     <set>",
        ]
        for s, by_kpoint in enumerate(energies):
            counts = (by_kpoint[:, :, None] <= grid).sum(axis=1).T @ self.weights * (2 if len(energies) == 1 else 1)
            density = np.diff(counts, prepend=counts[0]) / (grid[1] - grid[0])
            lines += [f'      <set comment="spin {s + 1}">']
            lines += [f"       <r> {e:11.4f} {d:9.4f} {c:9.4f} </r>" for e, d, c in zip(grid, density, counts)]
            lines += ["      </set>"]
        return [*lines, "     </set>", "    </array>", "   </total>"]


if __name__ == "__main__":
    sys.exit(Run().main())
