"""CP2K outputs: both force tables, what became of a run, whole field sets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mimyria_wf.cp2k_input import render_field_set
from mimyria_wf.cp2k_output import (
    CAUSES,
    read_energies,
    read_field_results,
    read_field_runs,
    read_field_set,
    read_forces,
    read_polarizability,
    read_run,
)
from mimyria_wf.errors import EngineError
from mimyria_wf.finite_field import field_vectors, response_tensors
from mimyria_wf.units import BOHR, DEBYE, HARTREE

FORCES = np.array([[0.1, -0.2, 0.3], [-0.05, 0.1, -0.15], [-0.05, 0.1, -0.15]])

ABORT = """
 *******************************************************************************
 *   ___                                                                       *
 *  /   \\                                                                      *
 * [ABORT]                                                                     *
 *  \\___/    The requested basis set <NOSUCH> for element <O> was not found in *
 *    |                     the basis set files <BASIS_MOLOPT>                 *
 *  O/|                                                                        *
 * /| |                                                                        *
 * / \\                                          aobasis/basis_set_types.F:1509 *
 *******************************************************************************

 ===== Routine Calling Stack =====
"""


def old_table(forces: np.ndarray) -> str:
    rows = [
        f"{i:7d}{1:7d}      {'O' if i == 1 else 'H':7s}" + "".join(f"{v:21.14f}" for v in row)
        for i, row in enumerate(forces, 1)
    ]
    total = "".join(f"{v:21.14f}" for v in [*forces.sum(0), 0.0])
    head = (
        "\n ATOMIC FORCES in [a.u.]\n\n # Atom   Kind   Element          X                    Y                    Z\n"
    )
    return head + "\n".join(rows) + "\n SUM OF ATOMIC FORCES      " + total + "\n"


def new_table(forces: np.ndarray) -> str:
    rows = [
        f" FORCES|{i:7d} " + " ".join(f"{v:19.12E}" for v in [*row, np.linalg.norm(row)])
        for i, row in enumerate(forces, 1)
    ]
    head = (
        " FORCES| Atomic forces [hartree/bohr]\n"
        " FORCES|   Atom     x                   y                   z                   |f|\n"
    )
    total = " ".join(f"{v:19.12E}" for v in forces.sum(0))
    return head + "\n".join(rows) + f"\n FORCES| Sum     {total}\n FORCES| Total atomic force   0.0E+00\n"


def output(field: np.ndarray | None = None, scf: str = "converged in   12 steps", n_atoms: int = 3) -> str:
    text = " CP2K| version string:                                       CP2K version 2023.1\n"
    if field is not None and field.any():
        direction, length = field / np.abs(field).max(), np.linalg.norm(field)
        x, y, z = (f"{v:.6E}" for v in direction)
        text += (
            f" PERIODIC_EFIELD| Polarisation vector:       x      {x}\n"
            f" PERIODIC_EFIELD|                            y      {y}\n"
            f" PERIODIC_EFIELD|                            z      {z}\n"
            f" PERIODIC_EFIELD| Intensity [a.u.]:                 {length:.6E}\n"
        )
    return text + (
        f"                             - Atoms:                                     {n_atoms:9d}\n"
        f"  *** SCF run {scf} ***\n"
        " ENERGY| Total FORCE_EVAL ( QS ) energy [a.u.]:             -137.188025061121323\n"
        " CP2K                                 1  1.0    0.016    0.016   47.431   47.431\n"
        "  **** **** ******  **  PROGRAM ENDED AT                 2026-11-20 10:41:12.782\n"
    )


@pytest.mark.parametrize(("table", "atol"), [(old_table, 1e-14), (new_table, 1e-12)])
def test_both_force_tables_are_read(table: Callable[[np.ndarray], str], atol: float) -> None:
    np.testing.assert_allclose(read_forces(table(FORCES)), FORCES, rtol=0, atol=atol)  # printed digits


def test_the_last_table_counts() -> None:
    np.testing.assert_allclose(read_forces(new_table(2 * FORCES) + old_table(FORCES)), FORCES, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no atomic forces"),
        (old_table(FORCES).split(" SUM")[0], "end after 3 atoms without their sum"),
        (old_table(FORCES).replace("      2      1      H", "      3      1      H"), "expected atom 2"),
        (old_table(FORCES).replace("0.30000000000000", "*" * 16), "not a number"),
        (old_table(FORCES).replace("0.30000000000000", "NaN"), "NaN or infinity"),
        (new_table(FORCES).replace("[hartree/bohr]", "[eV/angstrom]"), "must be in hartree/bohr"),
    ],
)
def test_bad_force_tables_are_refused(text: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        read_forces(text)


def test_a_run_is_read() -> None:
    run = read_run(output(np.array([5e-4, 5e-4, 0.0])))
    assert run.version == "2023.1"
    assert run.is_finished
    assert run.scf_converged
    assert run.n_scf_steps == 12
    assert run.energy == pytest.approx(-137.188025061121323)
    assert run.walltime == 47.431
    assert run.n_atoms == 3
    assert run.field is not None
    np.testing.assert_allclose(run.field, [5e-4, 5e-4, 0.0], rtol=1e-6)  # seven digits are echoed


def test_energies_of_newer_versions_are_read() -> None:
    text = output().replace("energy [a.u.]:  ", "energy [hartree]")
    assert read_run(text).energy == pytest.approx(-137.188025061121323)


def test_the_outer_loop_decides_on_convergence() -> None:
    inner = "  *** SCF run NOT converged ***\n"
    good = "  outer SCF loop converged in   2 iterations or   44 steps\n"
    bad = "  outer SCF loop FAILED to converge after    3 iterations or    6 steps\n"
    assert read_run(inner + good).scf_converged is True
    assert read_run(inner + bad).scf_converged is False
    assert read_run(inner + bad).n_scf_steps == 6
    assert read_run(inner).scf_converged is False
    assert read_run("").scf_converged is None


def test_an_abort_gives_its_message() -> None:
    run = read_run(output() + ABORT)
    assert run.aborted is not None
    assert run.aborted.startswith(
        "The requested basis set <NOSUCH> for element <O> was not found in the basis set files <BASIS_MOLOPT>"
    )
    assert not run.is_finished


def test_the_last_run_of_an_appended_output_counts() -> None:
    banner = "  **** **** ******  **  PROGRAM STARTED AT               2026-11-20 10:40:24.696\n"
    assert read_run(banner + ABORT + banner + output()).is_finished
    assert read_run(banner + output() + ABORT).aborted is not None
    assert not read_run(banner + output() + banner).is_finished


def test_warnings_are_kept() -> None:
    run = read_run("\n *** WARNING in qs_scf.F:601 :: SCF run NOT converged ***\n\n")
    assert run.warnings == ("WARNING in qs_scf.F:601 :: SCF run NOT converged",)


@pytest.fixture
def field_set() -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return an APT field set of fake outputs with F = F0 + q E."""
    vectors = field_vectors(1e-3, ["apt"])
    files = {"zero.out": output(), "zero-frc.dat": old_table(FORCES)}
    for name, project in zip(vectors, ("px", "mx", "py", "my", "pz", "mz")):
        files[f"{project}.out"] = output(vectors[name])
        files[f"{project}-frc.dat"] = old_table(FORCES + np.array([[-0.8], [0.4], [0.4]]) * vectors[name])
    return vectors, files


def test_a_field_set_gives_its_tensors(field_set: tuple[dict[str, np.ndarray], dict[str, str]], tmp_path: Path) -> None:
    vectors, files = field_set
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    forces, problems = read_field_set(tmp_path, vectors)
    assert problems == [""] * 6
    apt = response_tensors(np.array(list(vectors.values())), forces).apt
    # round-off of the printed forces 1e-14 / field
    np.testing.assert_allclose(apt, np.array([-0.8, 0.4, 0.4])[:, None, None] * np.eye(3), atol=1e-10)
    runs = read_field_runs(files, vectors)
    assert list(runs) == ["0", *vectors]
    assert runs["+x"] is not None
    assert runs["+x"].version == "2023.1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"px.out": ""}, r"field point \+x \(px\): CP2K did not finish"),
        ({"px.out": output() + ABORT}, "CP2K aborted: The requested basis set"),
        ({"px.out": output(np.array([1e-3, 0, 0]), scf="NOT converged")}, "SCF did not converge"),
        ({"px.out": output()}, r"ran in the field \[0.0, 0.0, 0.0\], expected \[0.001, 0.0, 0.0\]"),
        ({"px.out": output(np.array([0, 1e-3, 0]))}, r"ran in the field \[0.0, 0.001, 0.0\]"),
        ({"px.out": output(np.array([1e-3, 1e-3, 0]) / np.sqrt(2))}, "ran in the field"),
        ({"px.out": output(np.array([1e-3, 0, 0]), n_atoms=4)}, "3 atoms in px-frc.dat, 4 in px.out"),
        ({"px-frc.dat": old_table(FORCES).replace("0.30000000000000", "NaN")}, "NaN or infinity"),
        ({"px-frc.dat": old_table(FORCES[:2]).split(" SUM")[0]}, "cut off"),
    ],
)
def test_a_bad_point_is_named_and_left_out(
    field_set: tuple[dict[str, np.ndarray], dict[str, str]], change: dict[str, str], message: str
) -> None:
    vectors, files = field_set
    forces, problems = read_field_set(files | change, vectors, n_atoms=3)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problems[0])
    assert problems[1:] == [""] * 5
    assert np.isnan(forces[0]).all()
    assert np.isfinite(forces[1:]).all()


def test_missing_points_are_named(field_set: tuple[dict[str, np.ndarray], dict[str, str]]) -> None:
    vectors, files = field_set
    del files["px.out"], files["mx-frc.dat"]
    _, problems = read_field_set(files, vectors)
    assert "no px.out: the point was not run" in problems[0]
    assert "no mx-frc.dat" in problems[1]
    forces, problems = read_field_set({}, vectors, n_atoms=3)
    assert forces.shape == (6, 3, 3)
    assert all(problems)
    _, problems = read_field_set(field_set[1], vectors, n_atoms=4)
    assert "3 atoms in the forces, expected 4" in problems[2]


def test_the_field_of_a_cluster_comes_from_its_input() -> None:
    template = (
        "&FORCE_EVAL\n&DFT\n&POISSON\nPERIODIC NONE\n&END\n&QS\nMETHOD XTB\n&END\n&SCF\nEPS_SCF 1e-9\n&END\n&END\n"
        "&SUBSYS\n&CELL\nABC 9 9 9\nPERIODIC NONE\n&END\n&END\n&END\n"
    )
    vectors = field_vectors(1e-3, ["apt"])
    files = render_field_set(template, molecule("H2O"), vectors)
    for name in list(files):
        files[name.replace(".inp", ".out")] = output()
        files[name.replace(".inp", "-frc.dat")] = old_table(FORCES)
    assert read_field_set(files, vectors)[1] == [""] * 6
    files["px.inp"] = files["mx.inp"]
    assert "ran in the field [-0.001" in read_field_set(files, vectors)[1][0]


def test_energies_of_a_run_are_read() -> None:
    head = (
        "#     Step Nr.          Time[fs]        Kin.[a.u.]          Temp[K]            Pot.[a.u.]   Cons Qty[a.u.]\n"
    )
    rows = "  0   0.0   0.03   300.0   -1.0   -0.97   0.0\n  10   5.0   0.04   310.0   -1.01   -0.97   0.4\n"
    energies = read_energies(head + rows + "  20   10.0   0.")
    assert energies.step.tolist() == [0, 10]
    np.testing.assert_allclose(energies.time, [0.0, 5.0])
    np.testing.assert_allclose(energies.potential_energy, np.array([-1.0, -1.01]) * HARTREE)
    for text, message in [
        (head, "no steps"),
        (head + rows + rows, "step numbers go back"),
        (head + rows.replace("310.0", "NaN"), "the run exploded"),
        (head + rows.replace("310.0", "*****"), "could not convert"),
    ]:
        with pytest.raises(EngineError, match=message):
            read_energies(text)


@pytest.mark.reference_data
def test_recorded_outputs_are_read(reference_data: Path) -> None:
    folder = reference_data / "cp2k_recorded"
    run = read_run((folder / "outputs" / "pxpy.out").read_text())
    assert (run.version, run.is_finished, run.scf_converged, run.n_scf_steps) == ("2023.1", True, True, 12)
    assert (run.n_atoms, run.energy, run.aborted, run.warnings) == (24, -137.188025061121323, None, ())
    assert run.field is not None
    np.testing.assert_allclose(run.field, [5e-4, 5e-4, 0.0], rtol=1e-6)
    assert read_run((folder / "outputs" / "zero_field.out").read_text()).field is None
    forces = read_forces((folder / "field_points" / "px-frc.dat").read_text())
    assert forces.shape == (24, 3)
    np.testing.assert_allclose(forces.sum(axis=0), [0.00436235576717, -0.00257191255983, -0.00325686176578], atol=1e-12)


UNFINISHED = output().split("  **** ****")[0]
OUT_OF_TIME = (
    " *** SCF run terminated - exceeded requested execution time:       1.000 seconds.\n\n"
    " *** Execution time now:        1.267 seconds.\n"
    "  outer SCF loop FAILED to converge after    1 iterations or    2 steps\n"
)
NOT_CONVERGED_SINCE_2024 = ABORT.replace("The requested basis set <NOSUCH> for element <O> was not found in", " " * 60)
NOT_CONVERGED_SINCE_2024 = NOT_CONVERGED_SINCE_2024.replace(
    "the basis set files <BASIS_MOLOPT>                 ", "SCF run NOT converged. To continue the calculation "
)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (output(), ""),
        (output(scf="NOT converged"), "scf"),
        (OUT_OF_TIME + output(), "walltime"),
        (UNFINISHED + "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-20T10:41:12 DUE TO TIME LIMIT ***\n",
         "walltime"),
        (UNFINISHED + "terminate called after throwing an instance of 'std::bad_alloc'\n", "memory"),
        (UNFINISHED + "Program received signal SIGKILL: Kill signal.\n", "memory"),
        (UNFINISHED + "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\n", "memory"),
        (UNFINISHED, "truncated"),
        (output() + ABORT, "aborted"),
        (UNFINISHED + NOT_CONVERGED_SINCE_2024, "scf"),
    ],
)  # fmt: skip
def test_each_failure_has_its_cause(text: str, cause: str) -> None:
    run = read_run(text)
    assert run.cause == cause
    files = {"zero.out": text, "zero-frc.dat": old_table(FORCES)}
    results = read_field_results(files, {"0": np.zeros(3)}, molecule("H2O"))
    assert results.causes == (cause,)
    assert bool(results.problems[0]) == bool(cause)
    assert results.valid.tolist() == [not cause]
    assert set(results.causes) <= {"", *CAUSES}


def test_the_scheduler_explains_what_it_has_ended(field_set: tuple[dict[str, np.ndarray], dict[str, str]]) -> None:
    vectors, files = field_set
    files = {name: text for name, text in files.items() if not name.startswith(("my", "pz", "mz"))}
    files["my.out"] = UNFINISHED
    files["px.out"] = output(scf="NOT converged")
    results = read_field_results(files, vectors, molecule("H2O"), killed_by="memory")
    assert results.causes == ("scf", "", "", "memory", "memory", "memory")  # what ended by itself keeps its own cause
    assert CAUSES["memory"] in results.problems[3]
    alone = read_field_results(files, vectors, molecule("H2O"))
    assert alone.causes == ("scf", "", "", "truncated", "missing", "missing")
    assert alone.versions == ("2023.1", "2023.1", "2023.1", "2023.1", "", "")
    assert alone.version == "2023.1"


MOMENTS = """
  Reference Point [Bohr]              0.00000000      0.00000000      0.00000000
  Charges
    Electronic=      8.00000000    Core=    -8.00000000    Total=    -0.00000000
  Dipole vectors are based on the periodic (Berry phase) operator.
  Dipole moment [Debye]
    X= -0.98700181E+00 Y=  0.19603707E+00 Z= -0.22494833E+01   Total=     2.46430074
"""
POLAR = """
 POLAR| Polarizability tensor [a.u.]
 POLAR| xx,yy,zz            1.470847179826     3.361523113852     2.246717094235
 POLAR| xy,xz,yz           -2.002764123681     0.166740694578     0.959941128537
 POLAR| yx,zx,zy           -2.002812170401     0.166839074632     0.959996742924
"""


def test_properties_are_read_in_atomic_units() -> None:
    text = MOMENTS + " HOMO - LUMO gap [eV] :   13.044742\n HOMO - LUMO gap [eV] :    7.5\n" + POLAR + output()
    run = read_run(text)
    np.testing.assert_allclose(run.dipole or (), np.array([-0.98700181, 0.19603707, -2.2494833]) * DEBYE / BOHR)
    assert run.gap == 7.5  # of two spins the smaller one
    tensor = read_polarizability(text)
    assert tensor[1, 2] == tensor[2, 1] == pytest.approx((0.959941128537 + 0.959996742924) / 2)
    assert np.diag(tensor).tolist() == [1.470847179826, 3.361523113852, 2.246717094235]
    tight_binding = " TB_DIPOLE| Moment [a.u.]          -0.29370189       0.05142329      -0.68725505\n" + output()
    assert read_run(tight_binding).dipole == (-0.29370189, 0.05142329, -0.68725505)
    assert read_run(output()).dipole is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  The linear solver didn't converge! Maximum number of iterations reached.\n" + POLAR + output(), "converge"),
        (POLAR.replace("    1.470847179826", "******************") + output(), "converge"),
        (output(), "was not asked for"),
        (POLAR + output() + ABORT, "the requested basis set|The requested basis set"),
        (POLAR + UNFINISHED, "the output ends in the middle"),
    ],
)
def test_a_polarizability_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        read_polarizability(text)


def test_dipoles_of_a_field_set_are_about_the_origin(
    field_set: tuple[dict[str, np.ndarray], dict[str, str]],
) -> None:
    """CP2K gives a cluster's dipole about its centre of mass: that of an ion then moves with it."""
    vectors, files = field_set
    files = {name: MOMENTS + text if name.endswith(".out") else text for name, text in files.items()}
    atoms = Atoms("OH2", positions=np.eye(3))
    printed = np.array([-0.98700181, 0.19603707, -2.2494833]) * DEBYE / BOHR
    results = read_field_results(files, vectors, atoms)
    np.testing.assert_allclose(results.dipoles, np.tile(printed, (6, 1)))
    assert results.dipole_quanta is None
    atoms.info["charge"] = -1
    results = read_field_results(files, vectors, atoms)
    np.testing.assert_allclose(results.dipoles[0], printed - atoms.get_center_of_mass() / BOHR)
    heavy = atoms.copy()
    heavy.set_masses([15.999, 2.014, 1.008])  # CP2K's centre of mass knows no isotopes
    np.testing.assert_allclose(read_field_results(files, vectors, heavy).dipoles, results.dipoles)
    atoms.set_cell([[5, 0, 0], [1, 6, 0], [0, 0, 7]])
    atoms.pbc = True
    results = read_field_results(files, vectors, atoms)
    np.testing.assert_allclose(results.dipoles[0], printed)
    assert results.dipole_quanta is not None
    np.testing.assert_allclose(results.dipole_quanta[1], np.array([1, 6, 0]) / BOHR)
