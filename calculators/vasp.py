"""VASP through aiida-vasp: from plain settings to the inputs of single runs, and from what they left to results.

Nothing here imports aiida-vasp before it is needed, so that the package works without it. Potentials stay where
aiida-vasp keeps them; what goes into our own nodes is their titles and checksums.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ase
import numpy as np
from aiida import orm
from aiida.engine import calcfunction

from mimyria_wf.calculators.data import (
    field_forces_node,
    read_snapshots,
    response_tensors_node,
    structure_from_atoms,
)
from mimyria_wf.campaign import Kpoints as KpointsRule
from mimyria_wf.errors import CampaignError, EngineError, MimyriaError
from mimyria_wf.finite_field import point_name
from mimyria_wf.labels import configuration_key, level_of_theory_key
from mimyria_wf.units import HARTREE_PER_BOHR
from mimyria_wf.vasp_fields import lepsilon_labels, read_lcalceps_run, read_lcalceps_set
from mimyria_wf.vasp_input import ZERO_FIELD, LcalcepsRun, lcalceps_runs, point_directory, sorted_atoms
from mimyria_wf.vasp_run import VaspFieldSet, read_field_points
from mimyria_wf.vasp_template import (
    METHODS,
    NOT_THEORY,
    Kpoints,
    Potential,
    VaspTemplate,
    check_field_against_gap,
    check_vasp_template,
    tag_values,
)

PARSER = {"required_quantity": ["run_status", "run_stats", "forces"]}
"""Without it aiida-vasp takes an unreadable ``vasprun.xml`` for success."""
SMALLEST_GAP = 0.01  # eV, the digits of printed levels add up to less

# causes of vasp_output as cp2k_output.CAUSES has them, which the labels' workchain acts by
_CAUSES = {"unfinished": "truncated", "damaged": "truncated", "metal": "forces"}
# what read_lcalceps_set says, as such a cause
_SAID = {"did not converge": "scf", "no OUTCAR": "missing", "no vasprun.xml": "missing", "ran in the field": "field"}

# ---------------------------------------------------------------------------------------------------- plain settings in


def require_aiida_vasp() -> None:
    """Say in one line how to install aiida-vasp where it is missing."""
    try:
        import aiida_vasp  # noqa: F401
    except ImportError:
        raise EngineError("engine vasp needs aiida-vasp: pip install 'mimyria_wf[vasp]'") from None


def vasp_engine_inputs(settings: Mapping[str, Any], species: Iterable[str]) -> dict[str, Any]:
    """Return the inputs that VASP's processes take beside snapshots and fields.

    Args:
        settings: incar (the text of an INCAR, or its tags), potentials ({family: .., mapping: {element: potential}}),
            and optionally kpoints ({mesh: [..]} or {spacing_per_A: x}; Gamma alone by default), method (finite-field,
            lepsilon or lcalceps) and settings (max_concurrent, clean_workdir).
        species: every element of the system.

    Returns:
        {"vasp": nodes}, and "method" unless it is finite-field: the inputs of `mimyria_wf.vasp.fields` and
        `mimyria_wf.vasp.tensors`.

    Raises:
        CampaignError: one line on what is wrong with a setting.
        EngineError: aiida-vasp is not installed.
    """
    unknown = sorted(set(settings) - {"incar", "kpoints", "potentials", "method", "settings"})
    if unknown:
        raise CampaignError(f"vasp has no setting {unknown[0]!r}; it has incar, kpoints, potentials, method, settings")
    method = settings.get("method") or METHODS[0]
    if method not in METHODS:
        raise CampaignError(f"vasp: method must be one of {', '.join(METHODS)}, got {method!r}")
    potentials = settings.get("potentials") or {}
    if not potentials.get("family") or not potentials.get("mapping"):
        raise CampaignError("vasp: potentials need a family and a mapping, {family: PBE.54, mapping: {O: O, H: H}}")
    elements = sorted(set(species))
    find_potentials(elements, potentials["family"], potentials["mapping"])
    template = VaspTemplate.from_settings(incar=settings.get("incar") or {})
    kpoints = dict(settings.get("kpoints") or {"mesh": [1, 1, 1]})
    divisions_of(kpoints, np.eye(3))
    nodes: dict[str, Any] = {
        "incar": orm.Dict(dict(template.incar)),
        "kpoints": orm.Dict(kpoints),
        "potential_family": orm.Str(potentials["family"]),
        "potential_mapping": orm.Dict({element: potentials["mapping"][element] for element in elements}),
    }
    if settings.get("settings"):
        nodes["settings"] = orm.Dict(dict(settings["settings"]))
    return {"vasp": nodes} | ({} if method == METHODS[0] else {"method": orm.Str(method)})


def vasp_level_of_theory(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what keys VASP labels, from :func:`vasp_engine_inputs`.

    The tags that decide the result of a converged run, k-points, potentials by title and checksum, and the method.
    """
    nodes = inputs["vasp"]
    mapping = nodes["potential_mapping"].get_dict()
    potentials = find_potentials(mapping, nodes["potential_family"].value, mapping)
    return {
        "engine": "vasp",
        "method": inputs["method"].value if "method" in inputs else METHODS[0],
        "incar": {tag: value for tag, value in sorted(nodes["incar"].get_dict().items()) if tag not in NOT_THEORY},
        "kpoints": nodes["kpoints"].get_dict(),
        "potentials": {element: {"title": one.title, "sha512": one.sha512} for element, one in potentials.items()},
    }


def find_potentials(species: Iterable[str], family: str, mapping: Mapping[str, str]) -> dict[str, Any]:
    """Return aiida-vasp's potential node of each element; these hold title and checksum, not the potential."""
    require_aiida_vasp()
    from aiida.common.exceptions import NotExistent
    from aiida_vasp.data.potcar import PotcarData, PotcarGroup

    if PotcarData.get_potcar_group(family) is None:
        others = ", ".join(sorted(group.label for group in PotcarGroup.collection.all())) or "none"
        raise CampaignError(
            f"this profile has no potential family {family!r} (there are: {others}): upload it with "
            f"`aiida-vasp potcar uploadfamily --path FOLDER --name {family}`"
        )
    found = {}
    for element in sorted(set(species)):
        if element not in mapping:
            raise CampaignError(
                f"the potential mapping {dict(mapping)} says nothing of {element}: add '{element}: {element}'"
            )
        try:
            found[element] = PotcarData.get_potcars_dict([element], family, {element: mapping[element]})[element]
        except NotExistent:
            there = ", ".join(sorted(PotcarData.get_full_names(family, element))) or "none"
            raise CampaignError(
                f"the family {family!r} has no potential {mapping[element]!r} (for {element} it has: {there})"
            ) from None
        if found[element].element != element:
            raise CampaignError(
                f"the potential mapping gives {element} the potential {mapping[element]!r}, which is one of "
                f"{found[element].element}"
            )
    return found


def known_potential(element: str, node: Any) -> Potential:
    """Return title and valence of a potential; the latter is read from aiida-vasp's own copy, which stays there."""
    match = re.search(r"ZVAL\s*=\s*([\d.]+)", node.get_content().decode(errors="replace"))
    return Potential(element, node.title, float(match[1]) if match else None)


def divisions_of(kpoints: Mapping[str, Any], cell: np.ndarray) -> tuple[int, int, int]:
    """Return the divisions of the mesh for a cell (3, 3) [A] from {mesh: [..]} or {spacing_per_A: x}."""
    from pydantic import ValidationError

    try:
        return KpointsRule.model_validate(dict(kpoints)).divisions(np.asarray(cell))
    except ValidationError as error:
        raise CampaignError(f"vasp: kpoints {dict(kpoints)}: {error.errors()[0]['msg']}") from None


def template_of(nodes: Mapping[str, Any], atoms: ase.Atoms) -> VaspTemplate:
    """Return the level of theory of one snapshot from the nodes of the namespace ``vasp``."""
    mapping = nodes["potential_mapping"].get_dict()
    potentials = find_potentials(atoms.get_chemical_symbols(), nodes["potential_family"].value, mapping)
    return VaspTemplate(
        incar=nodes["incar"].get_dict(),
        kpoints=Kpoints(divisions_of(nodes["kpoints"].get_dict(), atoms.cell[:])),
        potentials={element: known_potential(element, node) for element, node in potentials.items()},
    )


def input_warnings(inputs: Mapping[str, Any], targets: Sequence[str], method: str) -> list[str]:
    """Return what is doubtful about these inputs of a workchain, one line each.

    Raises:
        MimyriaError: what cannot work.
    """
    found: dict[str, None] = {}
    for atoms in read_snapshots(inputs["snapshots"]):
        found |= dict.fromkeys(check_vasp_template(template_of(inputs["vasp"], atoms), atoms, targets, method))
    return list(found)


def input_problem(inputs: Mapping[str, Any], targets: Sequence[str], method: str) -> str | None:
    """Return in one line what cannot work with these inputs, None if nothing is known against them."""
    try:
        input_warnings(inputs, targets, method)
    except MimyriaError as error:
        return str(error)
    return None


# --------------------------------------------------------------------------------------------------------- single runs


def run_label(number: int, folder: str) -> str:
    """Return the name of a run of a snapshot, fit for a link between nodes."""
    return f"s{number:03d}_" + re.sub(r"[^A-Za-z0-9]+", "_", folder).strip("_")


@calcfunction
def vasp_structures(snapshots: orm.SinglefileData, turns: orm.List) -> dict[str, orm.StructureData]:
    """Return each snapshot with its atoms in the order of the POSCAR: ``s000``, ``s001``, ...

    Args:
        snapshots: extxyz.
        turns: field vectors [E_h/(e a0)] for which LCALCEPS turns the crystal; these come under the names of the runs.
    """
    structures = {}
    for number, atoms in enumerate(read_snapshots(snapshots)):
        ordered, _ = sorted_atoms(atoms)
        bare = ase.Atoms(ordered.numbers, ordered.positions, cell=ordered.cell, pbc=True)
        structures[f"s{number:03d}"] = structure_from_atoms(bare)
        for run in lcalceps_runs(named_vectors(turns.get_list())):
            if not is_as_it_stands(run):
                structures[run_label(number, run.folder)] = structure_from_atoms(run.turned(bare))
    return structures


def named_vectors(vectors: Iterable[Sequence[float]]) -> dict[str, np.ndarray]:
    """Return field vectors [E_h/(e a0)] by the names of their points.

    Raises:
        EngineError: a direction comes with two lengths; runs are named by direction, so one of them would be lost.
    """
    named: dict[str, np.ndarray] = {}
    for vector in np.array([list(vector) for vector in vectors], dtype=float).reshape(-1, 3):
        name = point_name(vector)
        if not np.allclose(named.setdefault(name, vector), vector, rtol=1e-6, atol=0):
            raise EngineError(f"the field {name} comes in two lengths: a VASP job takes one step, ask for another job")
    return named


def is_as_it_stands(run: LcalcepsRun) -> bool:
    """Say whether an LCALCEPS run leaves the crystal unturned."""
    return bool(np.array_equal(run.rotation, np.eye(3)))


def run_inputs(
    nodes: Mapping[str, Any], structure: orm.StructureData, divisions: Sequence[int], tags: Mapping[str, str]
) -> dict[str, Any]:
    """Return what aiida-vasp's calculation takes for one run, beside code and options."""
    mapping = nodes["potential_mapping"].get_dict()
    kpoints = orm.KpointsData()
    kpoints.set_kpoints_mesh(list(divisions))
    return {
        "structure": structure,
        "parameters": orm.Dict(tag_values(tags)),
        "potential": find_potentials(structure.get_kind_names(), nodes["potential_family"].value, mapping),
        "kpoints": kpoints,
        "settings": orm.Dict({"parser_settings": PARSER, "poscar_precision": 14}),
    }


def gap_problem(atoms: ase.Atoms, divisions: Sequence[int], vectors: np.ndarray, gap: float | None) -> tuple[int, str]:
    """Return an exit status and one line if a gap does not bear the fields, (0, "") if it does or is not known.

    Args:
        atoms: the snapshot.
        divisions: of the k-point mesh.
        vectors: (n, 3) [E_h/(e a0)].
        gap: without a field [eV].

    Fields are refused where they have no ground state. VASP warns from a tenth of that on, of data that are sound; so
    do the warnings of the points.
    """
    if gap is None:
        return 0, ""
    what = atoms.get_chemical_formula()
    if gap < SMALLEST_GAP:
        return (
            321,
            f"{what} has no gap ({gap:.3f} eV): a metal has no static answer to a field; check smearing and spin",
        )
    lines = [check_field_against_gap(atoms.cell[:], divisions, vector, gap, margin=1.0) for vector in vectors]
    if not any(lines):
        return 0, ""
    drops = np.abs(vectors @ atoms.cell[:].T) * HARTREE_PER_BOHR
    share = float(np.min(gap / np.array(divisions) / np.maximum(drops, 1e-12)))
    cell = " x ".join(f"{length:.4g}" for length in atoms.cell.lengths())
    mesh = " x ".join(map(str, divisions))
    return 320, (
        f"{next(line for line in lines if line).partition('; ')[0]}; cell {cell} A, k-points {mesh}: the step may be "
        f"{share * np.abs(vectors).max():.2g} E_h/(e a0) at most, it is {np.abs(vectors).max():.2g}"
    )


def harder(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags for a second attempt at electronic steps that ran out.

    All orbitals are optimised together in the direction of the energy, where mixing charge densities went to and fro;
    a system with a gap has a minimum to go down to. The threshold stays, and with it the level of theory.
    """
    return {**tags, "ALGO": "All", "NELM": str(3 * int(tags.get("NELM", 60)))}


class _Texts(Mapping[str, str]):
    """File name -> text of what single runs left, read when asked for: ``px/vasprun.xml``."""

    def __init__(self, folders: Mapping[str, orm.FolderData]) -> None:
        self._folders = folders
        self._names = [
            f"{label}/{name}" if label else name
            for label, folder in folders.items()
            for name in folder.base.repository.list_object_names()
        ]

    def __getitem__(self, name: str) -> str:
        if name not in self._names:
            raise KeyError(name)
        label, _, file = name.rpartition("/")
        return self._folders[label].base.repository.get_object_content(file, mode="rb").decode(errors="replace")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_zero_field(folder: orm.FolderData, atoms: ase.Atoms) -> VaspFieldSet:
    """Return what the run without a field says."""
    return read_field_points(_Texts({"zero": folder}), {ZERO_FIELD: np.zeros(3)}, atoms=atoms)


@contextmanager
def _on_disk(folder: orm.FolderData | None) -> Iterator[Path]:
    """Lay out what a run left in a folder; an empty one if it left nothing."""
    with tempfile.TemporaryDirectory() as directory:
        if folder is not None:
            for name in ("OUTCAR", "vasprun.xml"):
                if name in folder.base.repository.list_object_names():
                    (Path(directory) / name).write_bytes(folder.base.repository.get_object_content(name, mode="rb"))
        yield Path(directory)


def _read_fields(
    number: int, atoms: ase.Atoms, fields: Mapping[str, np.ndarray], runs: Mapping[str, orm.FolderData], method: str
) -> tuple[VaspFieldSet, np.ndarray, list[str], list[str]]:
    """Return what the runs with PEAD say, and forces, problems and causes of all points."""
    ordered, order = sorted_atoms(atoms)
    labels = {point_directory(name): run_label(number, point_directory(name)) for name in fields}
    folders = {folder: runs[label] for folder, label in labels.items() if label in runs}
    found = read_field_points(_Texts(folders), fields, atoms=atoms)
    forces, problems, causes = found.forces.copy(), list(found.problems), list(found.causes)
    if method == "lcalceps":
        rows = [row for row, vector in enumerate(fields.values()) if vector.any()]
        jobs = {run.folder: runs.get(run_label(number, run.folder)) for run in lcalceps_runs(fields)}
        zero = next((row for row, vector in enumerate(fields.values()) if not vector.any()), None)
        start = found.forces[zero][order] if zero is not None and not problems[zero] else None
        with ExitStack() as stack:
            source = {folder: stack.enter_context(_on_disk(job)) for folder, job in jobs.items()}
            wanted = {name: vector for name, vector in fields.items() if vector.any()}
            values, lines, _ = read_lcalceps_set(source, ordered, wanted, order, zero_forces=start)
        for row, value, line in zip(rows, values, lines, strict=True):
            cause = next((cause for words, cause in _SAID.items() if words in line), "truncated") if line else ""
            forces[row], problems[row], causes[row] = value, line, cause
    return found, forces, problems, causes


@calcfunction
def collect_field_forces(
    snapshots: orm.SinglefileData, level_of_theory: orm.Dict, plan: orm.Dict, **runs: orm.FolderData
) -> dict[str, Any]:
    """Read the forces of all field points, keep those that are sound and say what is wrong with the others.

    Args:
        snapshots: extxyz.
        level_of_theory: keys the forces.
        plan: ``method``; ``points``, a list of {snapshot, vector, cause, problem, complaint}: cause and problem, where
            AiiDA knows more than the files, and what aiida-vasp complains of, which counts where the files look sound;
            ``retries``, what was tried twice.
        runs: what the runs left, under the names of :func:`run_label`.

    Returns:
        ``field_forces`` if any point is sound, and ``summary``.
    """
    level = level_of_theory.get_dict()
    vectors, forces, snapshot, dipoles = [], [], [], []
    keys, quanta, gaps, failed, versions, warnings, seconds = [], [], [], [], set(), [], 0.0
    points = plan.get_dict()["points"]
    for number, atoms in enumerate(read_snapshots(snapshots)):
        mine = {point_name(np.array(point["vector"])): point for point in points if point["snapshot"] == number}
        fields = named_vectors(point["vector"] for point in mine.values())
        found, values, problems, causes = _read_fields(number, atoms, fields, runs, plan["method"])
        keys.append(configuration_key(atoms))
        quanta.append(np.full((3, 3), np.nan) if found.dipole_quanta is None else found.dipole_quanta)
        gaps.append(found.gap)
        warnings += [line for line in found.warnings if line not in warnings]
        for row, (name, vector) in enumerate(fields.items()):
            run = found.runs[row]
            if run is not None:
                versions.add(run.version)
                seconds += run.seconds
            problem = mine[name]["problem"] or problems[row] or mine[name]["complaint"]
            if problem:
                cause = mine[name]["cause"] or _CAUSES.get(causes[row], causes[row]) or "aborted"
                point = {"snapshot": number, "point": name, "vector": vector.tolist()}
                failed.append({**point, "cause": cause, "problem": problem})
                continue
            vectors.append(vector)
            forces.append(values[row])
            dipoles.append(found.dipoles[row])
            snapshot.append(number)
    version = ", ".join(sorted(versions)) or None
    summary = {"version": version, "seconds": seconds, "n_points": len(points), "gaps_eV": gaps, "failed": failed}
    summary |= {"problems": [one["problem"] for one in failed], "retries": plan.get_dict()["retries"]}
    outputs: dict[str, Any] = {"summary": orm.Dict({**summary, "warnings": warnings})}
    if vectors:
        outputs["field_forces"] = field_forces_node(
            np.array(vectors),
            np.array(forces),
            np.array(snapshot),
            keys,
            {**level, "version": version},
            level_of_theory_key(level),
            dipoles=np.array(dipoles),
            dipole_quanta=np.array(quanta),
            gaps=gaps,
        )
    return outputs


@calcfunction
def collect_tensors(
    snapshots: orm.SinglefileData, level_of_theory: orm.Dict, plan: orm.Dict, **runs: orm.FolderData
) -> dict[str, Any]:
    """Read APT and dielectric tensor of each snapshot from its LEPSILON run.

    Args:
        snapshots: extxyz.
        level_of_theory: keys the tensors.
        plan: ``runs``, a list of {snapshot, cause, problem, complaint} as for the points of
            :func:`collect_field_forces`; ``retries``.
        runs: what the runs left.

    Returns:
        ``response_tensors`` if any run is sound, and ``summary``.
    """
    level = level_of_theory.get_dict()
    tensors, keys, dielectrics, gaps, failed, versions, seconds = [], [], [], [], [], set(), 0.0
    every = read_snapshots(snapshots)
    for one in plan.get_dict()["runs"]:
        number = one["snapshot"]
        folder, order = runs.get(run_label(number, "lepsilon")), sorted_atoms(every[number])[1]
        cause, problem, gap = one["cause"], one["problem"], None
        if not problem:
            found = read_zero_field(folder, every[number]) if folder is not None else None
            gap = found.gap if found else None
            problem, cause = (found.problems[0], found.causes[0]) if found else ("it left nothing", "missing")
            problem = problem.partition(": ")[2] or one["complaint"]
            cause = cause or ("aborted" if problem else "")
        if not problem:
            try:
                with _on_disk(folder) as path:
                    response = read_lcalceps_run(path)
                    labels, _ = lepsilon_labels(response, order)
            except MimyriaError as error:
                problem, cause = str(error), "truncated"
            else:
                tensors.append(labels)
                dielectrics.append(response.dielectric)
                keys.append(configuration_key(every[number]))
                versions.add(response.version)
                seconds += found.runs[0].seconds
        gaps.append(gap)
        if problem:
            point = {"snapshot": number, "point": "lepsilon", "vector": [0.0, 0.0, 0.0]}
            failed.append({**point, "cause": _CAUSES.get(cause, cause), "problem": problem})
    version = ", ".join(sorted(versions)) or None
    summary = {"version": version, "seconds": seconds, "n_points": len(every), "gaps_eV": gaps, "failed": failed}
    summary |= {"problems": [one["problem"] for one in failed], "retries": plan.get_dict()["retries"]}
    outputs: dict[str, Any] = {"summary": orm.Dict(summary)}
    if tensors:
        known = {"level_of_theory": {**level, "version": version}, "level_of_theory_key": level_of_theory_key(level)}
        whole = dielectrics if all(one is not None for one in dielectrics) else None
        outputs["response_tensors"] = response_tensors_node(tensors, keys, **known, dielectrics=whole)
    return outputs
