"""CP2K's field-set jobs: which points failed and why, and what is kept beside the forces."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import ase.io
import numpy as np
import pytest
from aiida import orm
from aiida.common.links import LinkType
from aiida.plugins import CalculationFactory, ParserFactory
from aiida.tools.pytest_fixtures import *  # noqa: F403  the profile is made only where this is imported
from ase.build import molecule

from mimyria_wf.calculators.cp2k import named_vectors, project_names
from mimyria_wf.calculators.data import of_one_version, version_of
from mimyria_wf.cp2k_input import render_field_set
from mimyria_wf.units import BOHR, DEBYE

pytestmark = pytest.mark.aiida

VECTORS = [[0.0, 0.0, 0.0], [1e-3, 0.0, 0.0], [-1e-3, 0.0, 0.0]]
Parse = Callable[..., tuple[dict, orm.CalcFunctionNode]]


def output(x: float, n_atoms: int = 3) -> str:
    """Return CP2K's output of a water molecule in a periodic field along x."""
    field = (
        f" PERIODIC_EFIELD| Polarisation vector:       x      {np.sign(x):.6E}\n"
        " PERIODIC_EFIELD|                            y      0.000000E+00\n"
        " PERIODIC_EFIELD|                            z      0.000000E+00\n"
        f" PERIODIC_EFIELD| Intensity [a.u.]:                 {abs(x):.6E}\n"
    )
    return (
        " CP2K| version string:                                       CP2K version 2023.1\n"
        + (field if x else "")
        + f"                             - Atoms:                                     {n_atoms:9d}\n"
        "  *** SCF run converged in   12 steps ***\n"
        "  Dipole moment [Debye]\n"
        f"    X= {1 + 100 * x:.8E} Y=  0.20000000E+00 Z= -0.30000000E+00   Total=     2.46430074\n"
        + ("" if x else " HOMO - LUMO gap [eV] :    7.500000\n")
        + " CP2K                                 1  1.0    0.016    0.016   47.431   47.431\n"
        "  **** **** ******  **  PROGRAM ENDED AT                 2026-11-20 10:41:12.782\n"
    )


FORCES = (
    "\n ATOMIC FORCES in [a.u.]\n\n # Atom   Kind   Element          X              Y              Z\n"
    "      1      1      O             0.1      0.0      0.0\n"
    "      2      2      H            -0.1      0.2      0.0\n"
    "      3      2      H             0.0     -0.2      0.0\n"
    " SUM OF ATOMIC FORCES             0.0      0.0      0.0      0.0\n"
)


@pytest.fixture
def parse(aiida_localhost: orm.Computer) -> Parse:
    """Return a function that parses a made-up retrieved folder of a job that a scheduler may have ended."""

    def call(
        files: Mapping[str, str], exit_status: int | None = None, vectors: list[list[float]] = VECTORS, **more: orm.Data
    ) -> tuple[dict, orm.CalcFunctionNode]:
        atoms = molecule("H2O")
        atoms.set_cell([5.0, 6.0, 7.0])
        atoms.pbc = True
        buffer = io.StringIO()
        ase.io.write(buffer, [atoms], format="extxyz")
        inputs = {
            "snapshots": orm.SinglefileData(io.BytesIO(buffer.getvalue().encode()), filename="snapshots.extxyz"),
            "field_vectors": orm.List(vectors),
            "level_of_theory": orm.Dict({"engine": "cp2k"}),
            **more,
        }
        node = orm.CalcJobNode(computer=aiida_localhost, process_type="aiida.calculations:mimyria_wf.cp2k.fields")
        node.set_option("resources", {"num_machines": 1, "num_mpiprocs_per_machine": 1})
        node.set_option("scheduler_stderr", "_scheduler-stderr.txt")
        for label, value in inputs.items():
            node.base.links.add_incoming(value.store(), link_type=LinkType.INPUT_CALC, link_label=label)
        if exit_status is not None:
            node.set_exit_status(exit_status)
        node.store()
        folder = orm.FolderData()
        for path, content in files.items():
            folder.base.repository.put_object_from_bytes(content.encode(), path)
        folder.base.links.add_incoming(node, link_type=LinkType.CREATE, link_label="retrieved")
        folder.store()
        name = CalculationFactory("mimyria_wf.cp2k.fields").spec().inputs["metadata"]["options"]["parser_name"].default
        return ParserFactory(name).parse_from_node(node, store_provenance=False)

    return call


WHOLE = {f"s000-{name}.out": output(x) for name, x in (("zero", 0.0), ("px", 1e-3), ("mx", -1e-3))}
WHOLE |= {name.replace(".out", "-frc.dat"): FORCES for name in WHOLE}


def test_dipoles_quanta_and_gap_are_kept_beside_the_forces(parse: Parse) -> None:
    results, node = parse(WHOLE)
    assert node.is_finished_ok
    stored = results["field_forces"]
    dipoles = stored.get_array("dipoles") * BOHR / DEBYE
    np.testing.assert_allclose(dipoles, [[1.0, 0.2, -0.3], [1.1, 0.2, -0.3], [0.9, 0.2, -0.3]])
    np.testing.assert_allclose(stored.get_array("dipole_quanta"), [np.diag([5.0, 6.0, 7.0]) / BOHR])
    assert stored.base.attributes.get("gaps_eV") == [7.5]
    assert stored.base.attributes.get("level_of_theory")["version"] == "2023.1"
    assert results["summary"]["failed"] == []


@pytest.mark.parametrize(
    ("scheduler", "exit_status", "cause"),
    [
        ("", None, "truncated"),
        ("", 120, "walltime"),
        ("", 110, "memory"),
        ("slurmstepd: error: *** JOB 7 CANCELLED AT 2026-11-20T10:41:12 DUE TO TIME LIMIT ***\n", None, "walltime"),
        ("/bin/bash: line 9: 4242 Killed   'cp2k.psmp' '-i' 's000-px.inp'\n", None, "memory"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0\n", None, "memory"),
    ],
)
def test_a_job_that_was_ended_keeps_its_points_and_says_why(
    parse: Parse, scheduler: str, exit_status: int | None, cause: str
) -> None:
    files = {name: text for name, text in WHOLE.items() if "mx" not in name}
    files["s000-px.out"] = files["s000-px.out"].split(" CP2K       ")[0]
    results, node = parse({**files, "_scheduler-stderr.txt": scheduler}, exit_status)
    assert node.exit_status == 400
    failed = {one["point"]: one for one in results["summary"]["failed"]}
    assert failed["+x"]["cause"] == cause
    assert failed["+x"]["vector"] == [1e-3, 0.0, 0.0]
    assert failed["-x"]["cause"] == ("missing" if cause == "truncated" else cause)
    assert len(results["field_forces"].get_array("forces")) == 1


def test_one_direction_may_come_with_several_lengths(parse: Parse) -> None:
    """A job that screens field steps has +x at h and at 2h: both are run, both are read."""
    vectors = [*VECTORS, [2e-3, 0.0, 0.0]]
    named = named_vectors(vectors)
    assert [vector.tolist() for vector in named.values()] == vectors
    atoms = molecule("H2O")
    atoms.set_cell([5.0, 6.0, 7.0])
    atoms.pbc = True
    template = (Path(__file__).parents[1] / "templates" / "cp2k" / "water_pbe_szv.inp").read_text()
    assert len(render_field_set(template, atoms, named, project_names(0))) == 4
    files = {**WHOLE, "s000-px.2.out": output(2e-3), "s000-px.2-frc.dat": FORCES}
    results, node = parse(files, vectors=vectors)
    assert node.is_finished_ok
    np.testing.assert_allclose(results["field_forces"].get_array("field_vectors"), vectors)
    np.testing.assert_allclose(results["field_forces"].get_array("dipoles")[:, 0] * BOHR / DEBYE, [1.0, 1.1, 0.9, 1.2])


def test_points_that_were_converged_in_another_way_are_a_set_of_their_own(parse: Parse) -> None:
    half = {name: text for name, text in WHOLE.items() if "mx" not in name}
    plain = parse(half)[0]["field_forces"]
    mended = parse(WHOLE, scf_settings=orm.Int(1))[0]["field_forces"]
    assert (version_of(plain), version_of(mended)) == ("2023.1", "2023.1, SCF settings 1")
    (key,) = mended.base.attributes.get("configuration_keys")
    wanted = np.array(VECTORS)
    assert of_one_version([plain, mended], key, wanted, 1e-3, "2023.1") == [mended]  # whole before preferred
    assert of_one_version([plain, plain], key, wanted, 1e-3, "2023.1") == [plain, plain]
