"""CP2K templates: parsing, fields by vector, refusals, MD."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule

from mimyria_wf.cp2k_input import (
    Keyword,
    Section,
    check_label_template,
    eps_scf,
    parse_input,
    parse_template,
    point_project,
    remedied_template,
    render_field_point,
    render_field_set,
    render_md,
    render_polarizability,
    varied_template,
    write_input,
)
from mimyria_wf.errors import CampaignError
from mimyria_wf.finite_field import field_vectors
from mimyria_wf.md import NveSettings, NvtSettings
from mimyria_wf.units import BOHR_PER_AU_TIME

DFT = """
&GLOBAL
  PRINT_LEVEL LOW   ! replaced for labels
&END
&FORCE_EVAL
  METHOD Quickstep
  &DFT
    CHARGE 0
    BASIS_SET_FILE_NAME BASIS_MOLOPT  # relative: CP2K's data directory
    &QS
      METHOD GPW
    &END QS
    &SCF
      EPS_SCF 1.0D-8
      SCF_GUESS ATOMIC
      &OT
        MINIMIZER DIIS
      &END OT
    &END SCF
    &XC
      &XC_FUNCTIONAL PBE
      &END XC_FUNCTIONAL
    &END XC
  &END DFT
  &SUBSYS
    &KIND O
      BASIS_SET SZV-MOLOPT-SR-GTH
      POTENTIAL GTH-PBE-q6
    &END KIND
    &KIND H
      BASIS_SET SZV-MOLOPT-SR-GTH
      POTENTIAL GTH-PBE-q1
    &END KIND
  &END SUBSYS
&END FORCE_EVAL
"""
NNP = """
&FORCE_EVAL
  METHOD NNP
  &NNP
    NNP_INPUT_FILE_NAME NNP/input.nn
  &END NNP
  &SUBSYS
    &KIND O
    &END KIND
  &END SUBSYS
&END FORCE_EVAL
"""
NVT = NvtSettings(
    temperature=300.0,
    timestep=0.5,
    n_steps=100,
    n_equilibration_steps=20,
    stride=10,
    friction=0.02,
    seed=7,
    thermostat="csvr",
)
NVE = NveSettings(timestep=0.5, n_steps=100, stride=2, remove_rotation=False)


@pytest.fixture
def water() -> Atoms:
    atoms = molecule("H2O")
    atoms.set_cell([[6.0, 0.0, 0.0], [1.0, 5.5, 0.0], [0.5, -0.5, 6.5]])
    atoms.pbc = True
    return atoms


@pytest.fixture
def cluster() -> Atoms:
    atoms = molecule("H2O")
    atoms.set_cell([8.0, 8.0, 8.0])
    return atoms


def cluster_template() -> str:
    return DFT.replace(
        "    &QS\n", "    &POISSON\n      PERIODIC NONE\n      PSOLVER MT\n    &END POISSON\n    &QS\n"
    ).replace("      &OT\n        MINIMIZER DIIS\n      &END OT\n", "")


def test_parsed_input_survives_a_round_trip() -> None:
    parsed = parse_input(DFT)
    assert parse_input(write_input(parsed)) == parsed
    assert parsed.keyword("force_eval/dft/qs/method") == "GPW"
    assert parsed.section("FORCE_EVAL/DFT/XC/XC_FUNCTIONAL") == Section("XC_FUNCTIONAL", "PBE")
    assert [kind.parameter for kind in parsed.sections("FORCE_EVAL/SUBSYS/KIND")] == ["O", "H"]


def test_continued_lines_quotes_and_unnamed_ends_are_understood() -> None:
    parsed = parse_input('&a\n  X 1 \\\n  2 ! gone\n  TITLE "what # is ! kept"\n  &b on\n  &end\n&END\n')
    assert parsed == Section(
        "", "", (Section("A", "", (Keyword("X", "1  2"), Keyword("TITLE", '"what # is ! kept"'), Section("B", "on"))),)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("&A\n@SET X 1\n&END A", r"@SET.*line 2"),
        ("&A\n  X ${Y}\n&END A", r"write the value out \(CP2K template, line 2\)"),
        ("&A\n&B\n&END A\n&END B", r"expected &END B for line 2, got '&END A' \(CP2K template, line 3\)"),
        ("&A\n", r"section &A is never closed \(CP2K template, line 1\)"),
        ("&END A\n", r"expected no open section, got '&END A'"),
        ("X 1\n", r"expected a section \(&NAME\), got 'X 1'"),
    ],
)
def test_broken_input_names_its_line(text: str, message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        parse_input(text)


def test_edits_replace_aliases_and_leave_the_original() -> None:
    parsed = parse_input("&GLOBAL\n  PROJECT_NAME old\n&END GLOBAL\n")
    edited = parsed.with_keyword("GLOBAL/PROJECT", "new")
    assert write_input(edited) == "&GLOBAL\n  PROJECT new\n&END GLOBAL\n"
    assert parsed.keyword("GLOBAL/PROJECT") == "old"


def test_field_vector_becomes_length_and_direction(water: Atoms) -> None:
    vector = np.array([3e-4, -4e-4, 0.0])
    text = render_field_point(DFT, water, vector, "p")
    field = parse_input(text).section("FORCE_EVAL/DFT/PERIODIC_EFIELD")
    assert field is not None
    assert float(field.keyword("INTENSITY") or 0) == pytest.approx(5e-4, rel=1e-14)
    direction = [float(v) for v in (field.keyword("POLARISATION") or "").split()]
    np.testing.assert_allclose(direction, [0.6, -0.8, 0.0], rtol=1e-14)


def test_mixed_point_is_longer_than_an_axis_point(water: Atoms) -> None:
    vectors = field_vectors(5e-4, ["pgt"])
    text = render_field_point(DFT, water, vectors["+x+y"], "p")
    # CP2K normalises POLARISATION: a set written with INTENSITY h would give wrong off-diagonals and nothing else.
    assert float(parse_input(text).keyword("FORCE_EVAL/DFT/PERIODIC_EFIELD/INTENSITY") or 0) == pytest.approx(
        np.sqrt(2) * 5e-4
    )


@pytest.mark.parametrize("vector", [None, np.zeros(3)])
def test_zero_field_has_no_field_section(water: Atoms, vector: np.ndarray | None) -> None:
    assert "EFIELD" not in render_field_point(DFT, water, vector, "p")


def test_boundary_conditions_choose_the_field_section(water: Atoms, cluster: Atoms) -> None:
    vector = np.array([0.0, 0.0, 1e-3])
    assert parse_input(render_field_point(DFT, water, vector, "p")).section("FORCE_EVAL/DFT/PERIODIC_EFIELD")
    parsed = parse_input(render_field_point(cluster_template(), cluster, vector, "p"))
    assert parsed.section("FORCE_EVAL/DFT/PERIODIC_EFIELD") is None
    assert parsed.keyword("FORCE_EVAL/DFT/EFIELD/INTENSITY") == "0.001"
    assert parsed.keyword("FORCE_EVAL/SUBSYS/CELL/PERIODIC") == "NONE"


def test_structure_goes_in_exactly(water: Atoms) -> None:
    parsed = parse_input(render_field_point(DFT, water, None, "p"))
    cell = [[float(x) for x in (parsed.keyword(f"FORCE_EVAL/SUBSYS/CELL/{a}") or "").split()] for a in "ABC"]
    np.testing.assert_array_equal(cell, water.cell.array)
    coord = parsed.section("FORCE_EVAL/SUBSYS/COORD")
    assert coord is not None
    assert [e.name for e in coord.entries] == ["O", "H", "H"]
    read = [[float(x) for x in e.value.split()] for e in coord.entries if isinstance(e, Keyword)]
    np.testing.assert_allclose(read, water.positions, rtol=0, atol=1e-14)


def test_field_set_starts_with_the_zero_field_even_for_an_apt(water: Atoms) -> None:
    inputs = render_field_set(DFT, water, field_vectors(5e-4, ["apt"]))
    assert list(inputs) == ["zero.inp", "px.inp", "mx.inp", "py.inp", "my.inp", "pz.inp", "mz.inp"]
    zero, first = (parse_input(inputs[name]) for name in ("zero.inp", "px.inp"))
    assert zero.keyword("FORCE_EVAL/DFT/SCF/SCF_GUESS") == "ATOMIC"
    assert first.keyword("FORCE_EVAL/DFT/SCF/SCF_GUESS") == "RESTART"
    assert first.keyword("FORCE_EVAL/DFT/WFN_RESTART_FILE_NAME") == "zero-RESTART.wfn"
    assert not first.is_on("FORCE_EVAL/DFT/SCF/PRINT/RESTART")
    assert zero.keyword("FORCE_EVAL/PRINT/FORCES/FILENAME") == "=zero-frc.dat"


def test_thirteen_points_have_thirteen_files(water: Atoms) -> None:
    vectors = field_vectors(5e-4, ["pgt"])
    assert len(render_field_set(DFT, water, vectors)) == 13
    assert [point_project(n) for n in ("0", "+x", "-x-y")] == ["zero", "px", "mxmy"]
    with pytest.raises(CampaignError, match="different CP2K projects"):
        render_field_set(DFT, water, vectors, lambda name: "same")
    with pytest.raises(CampaignError, match="must have no field"):
        render_field_set(DFT, water, {"0": np.ones(3)})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("METHOD GPW", "METHOD XTB", "reversed sign and is not translation invariant"),
        ("METHOD GPW", "METHOD PM6", "untested in a field"),
        ("METHOD Quickstep", "METHOD NNP", "no electrons that answer a field"),
        ("CHARGE 0", "CHARGE -2", "DFT/CHARGE is -2 but the structure's charge is 0"),
        ("&OT\n", "&OT OFF\n", "needs &SCF/&OT"),
        ("&SCF\n", "&SMEAR\n&END\n&SCF\n&SMEAR\n&END\n", "remove &SMEAR"),
        ("&SCF\n", "&PERIODIC_EFIELD\n&END\n&SCF\n", "remove &PERIODIC_EFIELD"),
        ("&SCF\n", "&EFIELD\n&END\n&SCF\n", "remove &EFIELD"),
        ("&SCF\n", "&KPOINTS\n&END\n&SCF\n", "Gamma point only"),
        ("&SCF\n", "&POISSON\nPERIODIC NONE\n&END\n&SCF\n", "POISSON/PERIODIC must be XYZ"),
        ("&SUBSYS\n", "&SUBSYS\n&COORD\n&END\n", "remove &COORD"),
        ("&SUBSYS\n", "&SUBSYS\n&CELL\nABC 5 5 5\n&END\n", "remove &CELL, the cell comes from the structure"),
        ("&SUBSYS\n", "&SUBSYS\n&TOPOLOGY\nCOORD_FILE_NAME a.xyz\n&END\n", "remove TOPOLOGY/COORD_FILE_NAME"),
        ("&KIND H", "&KIND D", "no &KIND H; add one with BASIS_SET and POTENTIAL"),
        ("POTENTIAL GTH-PBE-q1", "MASS 1", "&KIND H has no POTENTIAL"),
        ("EPS_SCF 1.0D-8", "EPS_SCF tight", "must be a plain number, got 'tight'"),
        ("&GLOBAL\n", "&EXT_RESTART\n&END\n&GLOBAL\n", "remove &EXT_RESTART"),
        ("&GLOBAL\n", "&FORCE_EVAL\n&END\n&GLOBAL\n", "exactly one &FORCE_EVAL, got 2"),
    ],
)
def test_unfit_label_templates_are_refused(water: Atoms, old: str, new: str, message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        check_label_template(DFT.replace(old, new, 1), water)


def test_unfit_structures_are_refused(water: Atoms, cluster: Atoms) -> None:
    with pytest.raises(CampaignError, match="POISSON/PERIODIC NONE"):
        check_label_template(DFT, cluster)
    slab = water.copy()
    slab.pbc = (True, True, False)
    with pytest.raises(CampaignError, match="all true or all false"):
        check_label_template(DFT, slab)
    left = water.copy()
    left.set_cell(water.cell.array[[1, 0, 2]])
    with pytest.raises(CampaignError, match="right-handed"):
        check_label_template(DFT, left)
    broken = water.copy()
    broken.positions[0, 0] = np.nan
    with pytest.raises(CampaignError, match="must be finite"):
        check_label_template(DFT, broken)
    with pytest.raises(CampaignError, match="size of its box"):
        check_label_template(cluster_template(), molecule("H2O"))
    ion = water.copy()
    ion.info["charge"] = -1
    with pytest.raises(CampaignError, match="structure's charge is -1"):
        check_label_template(DFT, ion)
    ion.info = {"multiplicity": 3}
    with pytest.raises(CampaignError, match="multiplicity is 3"):
        check_label_template(DFT, ion)
    with pytest.raises(CampaignError, match="Ewald"):
        check_label_template(
            cluster_template().replace("METHOD GPW", "METHOD XTB\n&XTB\nDO_EWALD T\n&END XTB"), cluster
        )


def test_loose_scf_is_a_warning_for_a_pgt(water: Atoms) -> None:
    assert check_label_template(DFT, water) == []
    (warning,) = check_label_template(DFT.replace("1.0D-8", "1e-6"), water)
    assert "too loose for a PGT" in warning
    assert check_label_template(DFT.replace("1.0D-8", "1e-6"), water, ["apt"]) == []
    assert len(check_label_template(DFT.replace("EPS_SCF 1.0D-8", ""), water, ["apt"])) == 1  # CP2K's default: 1e-5
    outer = DFT.replace("&OT\n", "&OUTER_SCF\n&END\n&OT\n", 1)
    assert "1e-05" in check_label_template(outer, water)[0]


def test_the_xtb_of_cp2k_is_a_warning_for_clusters(cluster: Atoms) -> None:
    template = cluster_template().replace("METHOD GPW", "METHOD XTB")
    (warning,) = check_label_template(template, cluster)
    assert "Mulliken charges alone" in warning


def test_bad_fields_and_names_are_refused(water: Atoms) -> None:
    with pytest.raises(CampaignError, match="three finite numbers"):
        render_field_point(DFT, water, [1e-3, np.nan, 0.0], "p")
    with pytest.raises(CampaignError, match="project names"):
        render_field_point(DFT, water, None, "a b")


def test_nvt_draws_velocities_from_temperature_and_seed(water: Atoms) -> None:
    parsed = parse_input(render_md(NNP, water, NVT, "nvt"))
    assert parsed.keyword("GLOBAL/SEED") == "7"
    assert parsed.keyword("MOTION/MD/ENSEMBLE") == "NVT"
    assert parsed.keyword("MOTION/MD/TEMPERATURE") == "300"
    assert parsed.keyword("MOTION/MD/STEPS") == "90"  # frames 0, 10 ... 90 lie below 100
    assert float(parsed.keyword("MOTION/MD/THERMOSTAT/CSVR/TIMECON") or 0) == 50.0
    assert parsed.section("FORCE_EVAL/SUBSYS/VELOCITY") is None
    for name in ("TRAJECTORY", "VELOCITIES"):
        assert parsed.keyword(f"MOTION/PRINT/{name}/EACH/MD") == "10"
    assert parsed.keyword("MOTION/MD/PRINT/ENERGY/EACH/MD") == "10"


def test_nve_carries_velocities_in_atomic_units(water: Atoms) -> None:
    velocities = np.array([[1e-3, 0.0, 2e-3], [-3e-3, 1e-3, 0.0], [0.0, -2e-3, 1e-3]])  # A/fs
    masses = water.get_masses()[:, None]
    velocities -= (masses * velocities).sum(axis=0) / masses.sum()
    water.set_velocities(velocities / units.fs)
    parsed = parse_input(render_md(NNP, water, NVE, "nve"))
    section = parsed.section("FORCE_EVAL/SUBSYS/VELOCITY")
    assert section is not None
    rows = [[float(x) for x in (e.name + " " + e.value).split()] for e in section.entries if isinstance(e, Keyword)]
    np.testing.assert_allclose(np.array(rows) * BOHR_PER_AU_TIME, velocities, rtol=1e-13, atol=1e-18)
    assert parsed.keyword("MOTION/MD/ENSEMBLE") == "NVE"
    assert parsed.section("MOTION/MD/THERMOSTAT") is None


def test_nve_brings_the_centre_of_mass_to_rest(water: Atoms) -> None:
    water.set_velocities(np.full((3, 3), 0.01))
    section = parse_input(render_md(NNP, water, NVE, "nve")).section("FORCE_EVAL/SUBSYS/VELOCITY")
    assert section is not None
    rows = [[float(x) for x in (e.name + " " + e.value).split()] for e in section.entries if isinstance(e, Keyword)]
    np.testing.assert_allclose(rows, 0.0, atol=1e-15)


def test_md_uses_the_masses_of_the_structure(water: Atoms) -> None:
    water.set_masses([15.999, 2.014, 2.014])
    kinds = parse_input(render_md(NNP, water, NVT, "nvt")).sections("FORCE_EVAL/SUBSYS/KIND")
    assert {kind.parameter: kind.keyword("MASS") for kind in kinds} == {"O": "15.999", "H": "2.014"}
    water.set_masses([15.999, 2.014, 1.008])
    with pytest.raises(CampaignError, match="one mass, H has"):
        render_md(NNP, water, NVT, "nvt")


def test_a_default_kind_keeps_its_basis_in_md(water: Atoms) -> None:
    template = DFT.replace("&KIND H", "&KIND DEFAULT")
    kinds = parse_input(render_md(template, water, NVT, "nvt")).sections("FORCE_EVAL/SUBSYS/KIND")
    hydrogen = next(kind for kind in kinds if kind.parameter == "H")
    assert (hydrogen.keyword("POTENTIAL"), hydrogen.keyword("MASS")) == ("GTH-PBE-q1", "1.008")


def test_md_refuses_what_it_cannot_do(water: Atoms) -> None:
    with pytest.raises(CampaignError, match="needs the velocities of the start"):
        render_md(NNP, water, NVE, "nve")
    with pytest.raises(CampaignError, match="remove &MOTION"):
        render_md(NNP + "&MOTION\n&END MOTION\n", water, NVT, "nvt")
    with pytest.raises(CampaignError, match="DFT/CHARGE is 0 but the structure's charge is 1"):
        render_md(DFT, water, NVT, "nvt", charge=1)
    with pytest.raises(CampaignError, match="thermostat csvr"):
        render_md(NNP, water, replace(NVT, thermostat="langevin"), "nvt")
    water.set_velocities(np.eye(3))
    with pytest.raises(CampaignError, match="remove_rotation is for clusters"):
        render_md(NNP, water, replace(NVE, remove_rotation=True), "nve")
    water.set_velocities(np.full((3, 3), np.nan))
    with pytest.raises(CampaignError, match="velocities must be finite"):
        render_md(NNP, water, NVE, "nve")


YAML = """
# as a dictionary of aiida-cp2k
GLOBAL: {PRINT_LEVEL: LOW}
FORCE_EVAL:
  METHOD: Quickstep
  DFT:
    CHARGE: 0
    BASIS_SET_FILE_NAME: [BASIS_MOLOPT]
    QS: {METHOD: GPW}
    SCF:
      EPS_SCF: 1.0D-8
      SCF_GUESS: ATOMIC
      OT: {MINIMIZER: DIIS}
    XC:
      XC_FUNCTIONAL: {_: PBE}
  SUBSYS:
    KIND:
      - {_: O, BASIS_SET: SZV-MOLOPT-SR-GTH, POTENTIAL: GTH-PBE-q6}
      - {_: H, BASIS_SET: SZV-MOLOPT-SR-GTH, POTENTIAL: GTH-PBE-q1}
"""


def test_a_template_may_be_yaml(water: Atoms) -> None:
    assert parse_template(YAML) == parse_template(DFT) == parse_input(DFT)
    assert render_field_point(YAML, water, None, "zero") == render_field_point(DFT, water, None, "zero")
    folder = Path(__file__).parents[1] / "templates" / "cp2k"
    ours = [parse_template((folder / f"water_pbe_szv.{suffix}").read_text()) for suffix in ("inp", "yaml")]
    assert ours[0] == ours[1]
    # what YAML 1.1 takes for a truth value or rounds is CP2K's to read
    verbatim = parse_template("MOTION: {A: OFF, B: 1.0E-08, C: 0x1F, D: no, E: {}, F: [1, 2]}")
    assert write_input(verbatim) == write_input(
        parse_input("&MOTION\nA OFF\nB 1.0E-08\nC 0x1F\nD no\n&E\n&END\nF 1\nF 2\n&END\n")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FORCE_EVAL:\n  DFT: {SCF: {OT: }}\n", "FORCE_EVAL/DFT/SCF/OT has no value; write {}"),
        ("FORCE_EVAL:\n  CELL: {ABC: [[5, 5, 5]]}\n", "FORCE_EVAL/CELL/ABC: a list repeats a keyword"),
        ("FORCE_EVAL:\n  DFT: {_: [a]}\n", "FORCE_EVAL/DFT/_ must be the section's parameter"),
        ("FORCE_EVAL: PBE\n", "expected a section, got FORCE_EVAL: PBE"),
        ("FORCE_EVAL:\n  DFT: x: y\n", r"expected CP2K input .* or YAML, got neither: .*line 2"),
        ("FORCE_EVAL:\n  METHOD: QS\n  METHOD: NNP\n", "duplicate key"),
        ("FORCE_EVAL:\n  '2nd': x\n", "'FORCE_EVAL/2nd' is no section or keyword"),
        ("CP2K please\n", "expected a section"),
    ],
)
def test_broken_yaml_is_named(text: str, message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        parse_template(text, "dft.yaml")


def test_every_point_prints_its_dipole_and_the_zero_field_the_gap(water: Atoms, cluster: Atoms) -> None:
    own = "&DFT\n&PRINT\n&MOMENTS\nPERIODIC F\nFILENAME elsewhere\n&END\n&MULLIKEN ON\n&END\n&END\n"
    points = {name: parse_input(text) for name, text in
              render_field_set(DFT.replace("&DFT\n", own), water, {"+x": [1e-3, 0, 0]}).items()}  # fmt: skip
    for point in points.values():
        (moments,) = point.sections("FORCE_EVAL/DFT/PRINT/MOMENTS")
        assert moments.keyword("PERIODIC") == "T"
        assert moments.keyword("FILENAME") is None
        assert point.is_on("FORCE_EVAL/DFT/PRINT/MULLIKEN")
    assert points["zero.inp"].keyword("FORCE_EVAL/DFT/PRINT/MO_CUBES/WRITE_CUBE") == "F"
    assert points["px.inp"].section("FORCE_EVAL/DFT/PRINT/MO_CUBES") is None


def test_another_threshold_is_another_template() -> None:
    outer = DFT.replace("      &OT\n", "      &OUTER_SCF\n        EPS_SCF 1e-8\n      &END\n      &OT\n")
    loose = varied_template(outer, 1e-6)
    assert float(loose.keyword("FORCE_EVAL/DFT/SCF/EPS_SCF") or 0) == 1e-6
    assert float(loose.keyword("FORCE_EVAL/DFT/SCF/OUTER_SCF/EPS_SCF") or 0) == 1e-6
    assert varied_template(DFT, 1e-6).section("FORCE_EVAL/DFT/SCF/OUTER_SCF") is None
    with pytest.raises(CampaignError, match="between 0 and 1e-2"):
        varied_template(DFT, 1.0)


def test_a_polarizability_run_uses_the_dipole_operator_of_its_boundary(water: Atoms) -> None:
    content = parse_input(render_polarizability(DFT, water, "polar", "zero"))
    assert content.keyword("GLOBAL/RUN_TYPE") == "LINEAR_RESPONSE"
    assert content.keyword("FORCE_EVAL/PROPERTIES/LINRES/POLAR/PERIODIC_DIPOLE_OPERATOR") == "T"
    assert content.keyword("FORCE_EVAL/DFT/WFN_RESTART_FILE_NAME") == "zero-RESTART.wfn"
    assert content.section("FORCE_EVAL/DFT/PERIODIC_EFIELD") is None


def test_remedies_change_the_way_and_not_the_threshold() -> None:
    one, two = remedied_template(DFT, 1), remedied_template(DFT, 2)
    assert remedied_template(DFT) == parse_template(DFT)
    for mended in (one, two):
        assert eps_scf(mended) == eps_scf(DFT) == 1e-8
        assert float(mended.keyword("FORCE_EVAL/DFT/SCF/OUTER_SCF/EPS_SCF") or 0) == 1e-8
        assert mended.keyword("FORCE_EVAL/DFT/SCF/OT/PRECONDITIONER") == "FULL_ALL"
        assert mended.section("FORCE_EVAL/SUBSYS") == parse_template(DFT).section("FORCE_EVAL/SUBSYS")
    assert one.keyword("FORCE_EVAL/DFT/SCF/OT/MINIMIZER") == "DIIS"
    assert two.keyword("FORCE_EVAL/DFT/SCF/OT/MINIMIZER") == "CG"
    more = remedied_template(DFT.replace("EPS_SCF 1.0D-8", "EPS_SCF 1.0D-8\n      MAX_SCF 80"), 1)
    assert more.keyword("FORCE_EVAL/DFT/SCF/MAX_SCF") == "80"  # never fewer than the template's
    without_ot = DFT.replace("      &OT\n        MINIMIZER DIIS\n      &END OT\n", "")
    mixing = remedied_template(without_ot, 2)
    assert mixing.keyword("FORCE_EVAL/DFT/SCF/MIXING/ALPHA") == "0.05"
    assert mixing.section("FORCE_EVAL/DFT/SCF/OT") is None
    assert remedied_template(DFT, walltime=600).keyword("GLOBAL/WALLTIME") == "600"


def both_thresholds(content: Section) -> list[float]:
    """Return EPS_SCF of the inner and the outer loop."""
    values = [content.keyword(f"FORCE_EVAL/DFT/SCF/{path}") or "0" for path in ("EPS_SCF", "OUTER_SCF/EPS_SCF")]
    return [float(value.replace("D", "E")) for value in values]


def test_the_zero_field_converges_deeper_than_the_others(water: Atoms) -> None:
    outer = DFT.replace("      &OT\n", "      &OUTER_SCF\n        EPS_SCF 3e-8\n      &END\n      &OT\n")
    points = render_field_set(outer, water, {"+x": [1e-3, 0, 0], "-x": [-1e-3, 0, 0]})
    thresholds = {name: both_thresholds(parse_input(text)) for name, text in points.items()}
    assert thresholds["zero.inp"] == pytest.approx([1e-9, 3e-9])
    assert thresholds["px.inp"] == thresholds["mx.inp"] == pytest.approx([1e-8, 3e-8])
    for given, expected in (("1e-9", 1e-10), ("3e-10", 1e-10), ("1e-11", 1e-11)):  # not into the round-off
        zero = parse_input(render_field_point(DFT.replace("1.0D-8", given), water, None, "zero"))
        assert float(zero.keyword("FORCE_EVAL/DFT/SCF/EPS_SCF") or 0) == pytest.approx(expected)
    without = parse_input(render_field_point(DFT.replace("      EPS_SCF 1.0D-8\n", ""), water, None, "zero"))
    assert float(without.keyword("FORCE_EVAL/DFT/SCF/EPS_SCF") or 0) == pytest.approx(1e-6)  # CP2K's default is 1e-5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    CHARGE 0\n", "    CHARGE 0\n    &EXTERNAL_POTENTIAL\n    &END\n", "remove &EXTERNAL_POTENTIAL"),
        ("    CHARGE 0\n", "    CHARGE 0\n    SURF_DIP T\n", "remove SURFACE_DIPOLE_CORRECTION"),
    ],
)
def test_other_fields_are_refused(water: Atoms, old: str, new: str, message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        check_label_template(DFT.replace(old, new), water)
    assert check_label_template(DFT.replace("    CHARGE 0\n", "    CHARGE 0\n    SURF_DIP F\n"), water) == []


def test_an_unstated_multiplicity_is_a_warning(water: Atoms) -> None:
    triplet = DFT.replace("CHARGE 0", "CHARGE 0\n    MULTIPLICITY 3")
    assert "labelled as a singlet" in check_label_template(triplet, water)[0]
    water.info["multiplicity"] = 3
    assert check_label_template(triplet, water) == []


def test_coarse_settings_are_a_warning(water: Atoms) -> None:
    coarse = DFT.replace("METHOD GPW", "METHOD GPW\n      EPS_DEFAULT 1e-6")
    coarse = coarse.replace("    &QS\n", "    &MGRID\n      CUTOFF 30\n    &END\n    &QS\n")
    assert [line.split()[2] for line in check_label_template(coarse, water)] == ["MGRID/CUTOFF", "QS/EPS_DEFAULT"]


def test_a_keyword_has_one_value_under_all_its_names() -> None:
    template = DFT.replace("MINIMIZER DIIS", "MINIMIZER DIIS\n        LINE_SEARCH 2PNT")
    ot = remedied_template(template, 2).section("FORCE_EVAL/DFT/SCF/OT")
    assert ot is not None
    assert [entry.value for entry in ot.entries if isinstance(entry, Keyword) and entry.name.startswith("LINE")] == [
        "3PNT"
    ]
    assert varied_template(DFT, 1e-8) == parse_template(DFT)  # 1.0D-8 is that threshold: one level of theory
