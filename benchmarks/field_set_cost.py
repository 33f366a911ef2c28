"""What the 13 points of a field set cost in CP2K, in units of one cold zero-field run.

    OMP_NUM_THREADS=1 python benchmarks/field_set_cost.py --waters 8 16 -o field_set_cost.json

One zero-field run from atomic densities, then each of the 12 field points twice in turn: from the zero-field
wavefunction, and from the extrapolated guess. Both kinds are timed interleaved in one run, in processor time, which a
busy machine disturbs less than wall time, and counted in SCF steps, which it does not disturb at all. Making a guess
counts. Then the tensors of both sets are compared with each other and with their own error estimate.

Boxes: 8 H2O of the templates; 16 H2O are two of them side by side, every atom moved at random by 0.02 A (seed).
``--sample`` runs only +x and +x+y from the zero-field wavefunction and takes each six times: the SCF of a point and of
its opposite, mirror images from one start, took equally many steps wherever both were run.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np

from mimyria_wf.cp2k_input import parse_template, point_project, render_field_set, varied_template, write_input
from mimyria_wf.cp2k_output import read_field_set, read_run
from mimyria_wf.finite_field import FIELD_POINTS, field_vectors, noise_errors, response_tensors
from mimyria_wf.wavefunction_extrapolation import extrapolating_inputs, write_guess

KINDS = {"+x": range(1, 7, 2), "-x": range(2, 7, 2), "+x+y": range(7, 13, 2), "-x-y": range(8, 13, 2)}
"""Kinds of points by their number in FIELD_POINTS."""


def water(n_waters: int, seed: int) -> ase.Atoms:
    """Return a periodic box of 8 H2O, or of several of them side by side."""
    with (files("mimyria_wf") / "templates" / "campaigns" / "water_8.extxyz").open() as file:
        atoms = ase.io.read(file, format="extxyz")
    assert isinstance(atoms, ase.Atoms)
    if n_waters % 8:
        raise SystemExit(f"--waters must be multiples of 8, got {n_waters}")
    if n_waters > 8:
        atoms = atoms.repeat((n_waters // 8, 1, 1))
        atoms.positions += np.random.default_rng(seed).uniform(-0.02, 0.02, (len(atoms), 3))
    return atoms


def run(command: str, folder: Path, project: str) -> dict[str, Any]:
    """Run CP2K once; processor and wall time [s], SCF steps and the gradient of the guess."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [*command.split(), "-i", f"{project}.inp", "-o", f"{project}.out"], cwd=folder, capture_output=True, check=False
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    text = (folder / f"{project}.out").read_text()
    found = read_run(text)
    if not (found.is_finished and found.scf_converged):
        raise SystemExit(f"{folder / project}.out: {found.aborted or 'the SCF did not converge'}")
    steps = [line.split() for line in text.splitlines() if " OT " in line and len(line.split()) == 8]
    return {
        "cpu": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
        "wall": wall,
        "steps": len(steps),
        "first_gradient": float(steps[0][5]),
    }


def measure(
    atoms: ase.Atoms, template: Any, step: float, command: str, sample: bool, scratch: Path | None
) -> dict[str, Any]:
    """Run one set of 13 points in both ways; all timings, ratios and tensors' differences."""
    vectors = field_vectors(step, ["apt", "pgt"])
    rendered = {
        "restart": render_field_set(template, atoms, vectors),
        "extrapolation": extrapolating_inputs(render_field_set(template, atoms, vectors)),
    }
    folder = Path(tempfile.mkdtemp(prefix="field-set-cost-", dir=scratch))
    folders = {way: folder / way for way in rendered}
    for way, inputs in rendered.items():
        folders[way].mkdir()
        for name, text in inputs.items():
            (folders[way] / name).write_text(text)
    zero = run(command, folders["restart"], "zero")
    for name in ("zero-RESTART.wfn", "zero.out", "zero-frc.dat"):
        (folders["extrapolation"] / name).write_bytes((folders["restart"] / name).read_bytes())
    print(f"  {'0':5s} cold: {zero['cpu']:6.1f} s, {zero['steps']:3d} steps", flush=True)
    points: dict[str, dict[str, Any]] = {way: {} for way in rendered}
    done = [folders["extrapolation"] / "zero.inp"]
    for name in list(vectors)[1:]:
        project = point_project(name)
        if not sample or name in ("+x", "+x+y"):
            points["restart"][name] = run(command, folders["restart"], project)
        target = folders["extrapolation"] / f"{project}.inp"
        start = time.process_time()
        write_guess(target, done)
        guessing = time.process_time() - start
        found = run(command, folders["extrapolation"], project)
        points["extrapolation"][name] = {**found, "guess_cpu": guessing, "cpu": found["cpu"] + guessing}
        done.append(target)
        line = "".join(
            f"; {way}: {points[way][name]['cpu']:6.1f} s, {points[way][name]['steps']:3d} steps"
            for way in rendered
            if name in points[way]
        )
        print(f"  {name:5s}{line[1:]}", flush=True)
    if sample:
        for number, name in enumerate(list(FIELD_POINTS)[1:], 1):
            points["restart"].setdefault(name, points["restart"]["+x" if number < 7 else "+x+y"])
    result: dict[str, Any] = {"n_atoms": len(atoms), "step": step, "sample": sample, "zero": zero, "points": points}
    for way in rendered:
        for quantity in ("cpu", "wall", "steps"):
            total = zero[quantity] + sum(point[quantity] for point in points[way].values())
            result[f"{way}_{quantity}_ratio"] = total / zero[quantity]
    result["tensors"] = compare(folders, vectors, len(atoms), sample)
    return result


def compare(folders: dict[str, Path], vectors: dict[str, Any], n_atoms: int, sample: bool) -> dict[str, Any]:
    """Return rms tensors, their estimated errors and, where both sets are whole, their difference."""
    array = np.array(list(vectors.values()))
    result: dict[str, Any] = {}
    tensors = {}
    for way, folder in folders.items():
        if sample and way == "restart":
            continue
        forces, problems = read_field_set(folder, vectors, n_atoms=n_atoms)
        if any(problems):
            raise SystemExit("; ".join(problem for problem in problems if problem))
        tensors[way], errors = response_tensors(array, forces), noise_errors(array, forces)
        assert errors is not None
        assert errors.apt is not None
        assert errors.pgt is not None
        result[way] = {"force_noise": errors.force_noise, "apt_error": rms(errors.apt), "pgt_error": rms(errors.pgt)}
        result[way] |= {"apt": rms(tensors[way].apt), "pgt": rms(tensors[way].pgt)}
    if len(tensors) == 2:
        one, other = tensors.values()
        result["apt_difference"], result["pgt_difference"] = rms(one.apt - other.apt), rms(one.pgt - other.pgt)
    return result


def rms(values: Any) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def report(n_waters: int, result: dict[str, Any]) -> str:
    """Return a table of one box."""
    zero, points = result["zero"], result["points"]
    lines = [f"{n_waters} H2O: cold zero-field run {zero['cpu']:.1f} s processor time, {zero['steps']} SCF steps"]
    for way in ("restart", "extrapolation"):
        kinds = []
        for kind, numbers in KINDS.items():
            names = [list(FIELD_POINTS)[number] for number in numbers]
            steps, cpu = (np.mean([points[way][name][key] for name in names]) for key in ("steps", "cpu"))
            kinds.append(f"{kind} {steps:.1f} ({cpu / zero['cpu']:.2f})")
        ratios = (result[f"{way}_{quantity}_ratio"] for quantity in ("cpu", "wall", "steps"))
        cpu, wall, steps = ratios
        lines.append(f"  {way:13s}: 13 points = {cpu:.2f} cold runs (wall {wall:.2f}, SCF steps {steps:.2f})")
        lines.append(f"    SCF steps (cost) by kind: {', '.join(kinds)}")
    for way, tensors in result["tensors"].items():
        if isinstance(tensors, dict):
            lines.append(
                f"  {way:13s}: estimated error APT {tensors['apt_error']:.1e} of {tensors['apt']:.2f} e, "
                f"PGT {tensors['pgt_error']:.1e} of {tensors['pgt']:.2f} e^2 a0/E_h"
            )
    if "pgt_difference" in result["tensors"]:
        tensors = result["tensors"]
        lines.append(f"  difference   : APT {tensors['apt_difference']:.1e}, PGT {tensors['pgt_difference']:.1e}")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waters", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--template", type=Path, help="default: templates/cp2k/water_pbe_szv.inp")
    parser.add_argument("--preconditioner", help="of OT, in place of the template's")
    parser.add_argument("--eps-scf", type=float, help="in place of the template's")
    parser.add_argument("--step", type=float, default=5e-4, help="[E_h/(e a0)]")
    parser.add_argument("--command", default="cp2k.psmp")
    parser.add_argument("--sample", action="store_true", help="only two points from the zero-field wavefunction")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    chosen = parser.parse_args()
    path = chosen.template or files("mimyria_wf") / "templates" / "cp2k" / "water_pbe_szv.inp"
    template = parse_template(path.read_text())
    if chosen.preconditioner:
        template = template.with_keyword("FORCE_EVAL/DFT/SCF/OT/PRECONDITIONER", chosen.preconditioner)
    if chosen.eps_scf:
        template = varied_template(template, chosen.eps_scf)
    results: dict[str, Any] = {"template": write_input(template)}
    for n_waters in chosen.waters:
        print(f"{n_waters} H2O", flush=True)
        atoms = water(n_waters, chosen.seed)
        results[str(n_waters)] = measure(atoms, template, chosen.step, chosen.command, chosen.sample, chosen.scratch)
        if chosen.output:
            chosen.output.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(report(n_waters, results[str(n_waters)]) for n_waters in chosen.waters))


if __name__ == "__main__":
    main()
