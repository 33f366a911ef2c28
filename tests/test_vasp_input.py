"""What is written for VASP, and what is refused before anything runs."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from mimyria_wf.errors import CampaignError
from mimyria_wf.finite_field import field_vectors
from mimyria_wf.units import HARTREE_PER_BOHR
from mimyria_wf.vasp_input import (
    Kpoints,
    Potential,
    VaspTemplate,
    check_field_against_gap,
    check_vasp_template,
    field_tags,
    lcalceps_runs,
    parse_incar,
    parse_kpoints,
    point_directory,
    potcar_text,
    render_field_set,
    render_lcalceps,
    render_lepsilon,
    restored,
    sorted_atoms,
    tag_values,
    write_incar,
)

INCAR = {"ENCUT": 400, "EDIFF": 1e-8, "ISMEAR": 0, "SIGMA": 0.05, "PREC": "Accurate"}
STEP = 5e-4


def template(**tags: object) -> VaspTemplate:
    return VaspTemplate.from_settings({**INCAR, **tags})


def with_valences(**tags: object) -> VaspTemplate:
    potentials = {s: Potential(s, f"PAW_PBE {s} 01Jan2000", v) for s, v in (("O", 6.0), ("H", 1.0))}
    return VaspTemplate.from_settings({**INCAR, **tags}, None, potentials)


@pytest.fixture
def mixed():
    """Two waters, atoms in the order H O H H H O."""
    pair = molecule("H2O") + molecule("H2O")
    pair.positions[3:] += [0.4, 2.9, 0.2]
    pair = pair[[1, 0, 2, 4, 5, 3]]
    pair.set_cell(np.diag([9.0, 10.0, 11.0]))
    pair.pbc = True
    return pair


class TestIncar:
    def test_round_trip(self):
        text = (
            'title of an old file\nENCUT = 400 ; ISMEAR=0 # comment\nMAGMOM = 2*1.0 \\\n 1*0\nsystem = "a b" ! more\n'
        )
        tags = parse_incar(text)
        assert tags == {"ENCUT": "400", "ISMEAR": "0", "MAGMOM": "2*1.0   1*0", "SYSTEM": "a b"}
        assert parse_incar(write_incar(tags)) == tags

    def test_twice(self):
        with pytest.raises(CampaignError, match=r"EDIFF is set twice; VASP takes the first: .*\(x, line 2\)"):
            parse_incar("EDIFF = 1E-5\nediff = 1E-8\n", "x")

    def test_nonsense(self):
        with pytest.raises(CampaignError, match=r"expected TAG = value, got 'hello there'.*line 2"):
            parse_incar("EDIFF = 1E-5\nhello there\n")

    def test_values(self):
        values = tag_values(
            {"ENCUT": "400", "LREAL": ".FALSE.", "EDIFF": "1D-8", "EFIELD_PEAD": "0.1 0 -0.1", "ALGO": "N"}
        )
        assert values == {"encut": 400, "lreal": False, "ediff": 1e-8, "efield_pead": [0.1, 0, -0.1], "algo": "N"}
        assert tag_values({"SYSTEM": "two words"}) == {"system": "two words"}

    def test_kpoints(self):
        mesh = parse_kpoints("k\n0\nMonkhorst\n2 3 4\n0 0 0.5\n")
        assert (mesh.divisions, mesh.gamma, mesh.shift) == ((2, 3, 4), False, (0.0, 0.0, 0.5))
        assert parse_kpoints(mesh.text()) == mesh
        with pytest.raises(CampaignError, match=r"regular mesh .*Berry phase"):
            parse_kpoints("k\n40\nLine\nrec\n0 0 0\n0.5 0 0\n")
        with pytest.raises(CampaignError, match="three positive divisions"):
            Kpoints((1, 1, 0))


class TestOrder:
    def test_there_and_back(self, mixed):
        atoms, order = sorted_atoms(mixed)
        assert atoms.get_chemical_symbols() == ["H", "H", "H", "H", "O", "O"]
        np.testing.assert_array_equal(order, [0, 2, 3, 4, 1, 5])
        np.testing.assert_array_equal(atoms.positions, mixed.positions[order])
        np.testing.assert_array_equal(restored(atoms.positions, order), mixed.positions)
        two = np.stack([atoms.positions, -atoms.positions])
        np.testing.assert_array_equal(restored(two, order, axis=1)[1], -mixed.positions)

    def test_poscar(self, mixed, tmp_path):
        (tmp_path / "POSCAR").write_text(render_field_set(template(), mixed, {})["zero"]["POSCAR"])
        read = ase.io.read(tmp_path / "POSCAR", format="vasp")
        atoms, _ = sorted_atoms(mixed)
        np.testing.assert_array_equal(read.numbers, atoms.numbers)
        np.testing.assert_allclose(read.positions, atoms.positions, atol=1e-14)
        np.testing.assert_allclose(read.cell[:], mixed.cell[:], atol=1e-14)

    def test_potcar_follows_poscar(self, mixed, tmp_path):
        for symbol, valence in (("O", 6), ("H", 1)):
            (tmp_path / symbol).mkdir()
            text = f"  PAW_PBE {symbol} 1\n   TITEL  = PAW_PBE {symbol} 1\n   ZVAL   =  {valence:.3f}\n"
            (tmp_path / symbol / "POTCAR").write_text(text)
        one = VaspTemplate.from_settings(INCAR, None, tmp_path)
        assert one.potentials["O"].valence == 6
        assert [line.split()[1] for line in potcar_text(one, mixed).splitlines()[::3]] == ["H", "O"]
        assert one.level_of_theory["potentials"] == {"H": "PAW_PBE H 1", "O": "PAW_PBE O 1"}
        (tmp_path / "O" / "POTCAR").write_text((tmp_path / "H" / "POTCAR").read_text())
        with pytest.raises(CampaignError, match=r"is the potential of H .*, expected O"):
            VaspTemplate.from_settings(INCAR, None, tmp_path)
        (tmp_path / "O" / "POTCAR").write_text("nothing")
        with pytest.raises(CampaignError, match="one TITEL"):
            VaspTemplate.from_settings(INCAR, None, tmp_path)


class TestFieldSet:
    def test_thirteen_points(self, mixed):
        vectors = field_vectors(STEP, ["pgt"])
        runs = render_field_set(template(SYSTEM="water"), mixed, vectors)
        assert next(iter(runs)) == "zero"
        assert set(runs) == {point_directory(name) for name in vectors}
        zero, mixed_point = (parse_incar(runs[name]["INCAR"]) for name in ("zero", "pxpy"))
        assert "EFIELD_PEAD" not in zero
        assert zero["LWAVE"] == ".TRUE."
        assert zero["ISTART"] == "0"
        assert mixed_point["LWAVE"] == ".FALSE."
        assert mixed_point["ISTART"] == "1"
        for tags in (zero, mixed_point):
            assert (tags["ISYM"], tags["NSW"], tags["IBRION"], tags["SYSTEM"]) == ("0", "0", "-1", "water")
        # by component in eV/A: (h, h, 0), not a direction of length h
        expected = STEP * HARTREE_PER_BOHR
        assert expected == pytest.approx(0.025711, abs=1e-6)
        np.testing.assert_allclose([float(x) for x in mixed_point["EFIELD_PEAD"].split()], [expected, expected, 0])

    def test_axis_points_alone_have_a_zero_point_too(self, mixed):
        assert next(iter(render_field_set(template(), mixed, field_vectors(STEP, ["apt"])))) == "zero"

    def test_template_does_not_decide_restart_and_symmetry(self, mixed):
        tags = field_tags(template(ISYM=2, ISTART=1, ICHARG=1, LWAVE=True, IBRION=2, NSW=0), mixed, [0, 0, STEP])
        assert (tags["ISYM"], tags["ISTART"], tags["ICHARG"], tags["LWAVE"], tags["IBRION"]) == (
            ("0", "0", "2", ".FALSE.", "-1")
        )

    def test_too_small_for_vasp(self, mixed):
        with pytest.raises(CampaignError, match="too small: VASP ignores"):
            field_tags(template(), mixed, [0, 0, 1e-7])

    def test_lepsilon(self, mixed):
        tags = parse_incar(render_lepsilon(template(), mixed)["lepsilon"]["INCAR"])
        assert tags["LEPSILON"] == ".TRUE."
        assert "EFIELD_PEAD" not in tags


class TestLcalceps:
    def test_two_jobs_for_an_apt_eight_for_a_pgt(self):
        assert [run.folder for run in lcalceps_runs(field_vectors(STEP, ["apt"]))] == ["lcalceps-p", "lcalceps-m"]
        runs = lcalceps_runs(field_vectors(STEP, ["pgt"]))
        assert len(runs) == 8
        assert sorted(name for run in runs for name in run.points.values()) == sorted(
            name for name in field_vectors(STEP, ["pgt"]) if name != "0"
        )

    def test_turned_fields_are_the_points(self, mixed):
        vectors = field_vectors(STEP, ["pgt"])
        for run in lcalceps_runs(vectors):
            np.testing.assert_allclose(run.rotation @ run.rotation.T, np.eye(3), atol=1e-15)
            assert np.linalg.det(run.rotation) == pytest.approx(1)
            for axis, name in run.points.items():
                np.testing.assert_allclose(run.field[axis] * run.rotation[axis], vectors[name], atol=1e-18)
            turned = run.turned(mixed)
            np.testing.assert_allclose(
                turned.get_all_distances(mic=True), mixed.get_all_distances(mic=True), atol=1e-12
            )

    def test_incar(self, mixed):
        files = render_lcalceps(template(), mixed, field_vectors(STEP, ["pgt"]))
        assert np.allclose(
            [float(x) for x in parse_incar(files["lcalceps-m"]["INCAR"])["EFIELD_PEAD"].split()], -0.025711
        )
        turned = [float(x) for x in parse_incar(files["lcalceps-pxpy"]["INCAR"])["EFIELD_PEAD"].split()]
        np.testing.assert_allclose(turned, [np.sqrt(2) * 0.0257110, 0.01, 0.01], rtol=1e-5)


class TestGap:
    def test_criterion(self):
        """PHYSICS: a 15.6 A cell at h = 5e-4 needs a gap of 4 eV."""
        cell = 15.6 * np.eye(3)
        assert check_field_against_gap(cell, (1, 1, 1), [0, STEP, 0], 4.02) == ""
        found = check_field_against_gap(cell, (1, 1, 1), [0, STEP, 0], 3.9)
        assert found.startswith("field too strong for the gap: e|E.a_2| = 0.401 eV, E_gap/(10 N_2) = 0.39 eV")

    def test_kpoints_and_triclinic_cell(self):
        cell = np.array([[5.0, 0, 0], [2.5, 4.3, 0], [0, 0, 6.0]])
        field = np.array([0, STEP, 0])
        # only a_2 has a component along y
        limit = 10 * 3 * 4.3 * STEP * HARTREE_PER_BOHR
        assert check_field_against_gap(cell, (9, 3, 9), field, 1.001 * limit) == ""
        assert "N_2" in check_field_against_gap(cell, (9, 3, 9), field, 0.999 * limit)
        # each division belongs to its own vector
        assert check_field_against_gap(8 * np.eye(3), (1, 2, 20), [STEP, 0, 0], 2.1) == ""
        assert "N_3" in check_field_against_gap(8 * np.eye(3), (1, 2, 20), [0, 0, STEP], 2.1)

    def test_c60_as_vasp_warns(self):
        """OUTCAR of C60: 1.4 eV > 0.16419 eV at 0.1 eV/A, 14 A and a gap of 1.6419 eV."""
        found = check_field_against_gap(14 * np.eye(3), (1, 1, 1), [0.1 / HARTREE_PER_BOHR, 0, 0], 1.6419)
        assert "e|E.a_1| = 1.4 eV, E_gap/(10 N_1) = 0.164 eV" in found

    def test_where_there_is_no_ground_state(self, mixed):
        line = check_field_against_gap(11 * np.eye(3), (1, 1, 1), [STEP, 0, 0], 0.28, margin=1)
        assert "e|E.a_1| = 0.283 eV, E_gap/(1 N_1) = 0.28 eV" in line
        assert check_field_against_gap(11 * np.eye(3), (1, 1, 1), [STEP, 0, 0], 0.29, margin=1) == ""
        with pytest.raises(CampaignError, match="take a smaller step: in this field there is no ground state"):
            check_vasp_template(template(), mixed, ["apt"], step=STEP, gap=0.2)

    def test_no_gap(self):
        assert "field too strong" in check_field_against_gap(np.eye(3), (1, 1, 1), [1e-6, 0, 0], 0.0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("tags", "message"),
        [
            ({"EFIELD_PEAD": "0 0 0.01"}, "remove EFIELD_PEAD; the field comes"),
            ({"EFIELD": 0.1}, "remove EFIELD; it is a saw-tooth"),
            ({"LEPSILON": True}, "remove LEPSILON; choose method: lepsilon"),
            ({"LCALCEPS": True}, "remove LCALCEPS; choose method: lcalceps"),
            ({"LDIPOL": True}, "remove LDIPOL"),
            ({"KSPACING": 0.3}, "remove KSPACING"),
            ({"NSW": 10}, "NSW = 10; labels are single points"),
            ({"ICHARG": 11}, "ICHARG >= 10"),
            ({"ALGO": "None"}, "does not iterate to self-consistency"),
            ({"ALGO": "Eigenval"}, "does not iterate to self-consistency"),
            ({"IALGO": 2}, "does not iterate to self-consistency"),
            ({"ISMEAR": 1}, "ISMEAR = 1 is for metals"),
            ({"ISMEAR": -5}, "ISMEAR = -5 needs four k-points"),
            ({"SIGMA": 0.5}, "SIGMA = 0.5 eV is for metals"),
            ({"EDIFF": "tight"}, "EDIFF must be a number"),
            ({"NELECT": 16}, "cannot be checked against charge"),
            ({"ISPIN": 2, "NUPDOWN": 2}, "NUPDOWN = 2, but the snapshot's multiplicity is 1"),
            ({"MAGMOM": "6*0"}, "MAGMOM without ISPIN = 2"),
            ({"ISPIN": 2, "NUPDOWN": 0, "MAGMOM": "4*0"}, "MAGMOM has 4 values .* expected 6"),
            ({"LSORBIT": True}, "non-collinear"),
        ],
    )
    def test_incar(self, mixed, tags, message):
        with pytest.raises(CampaignError, match=message):
            check_vasp_template(template(**tags), mixed)

    def test_default_smearing_is_metallic(self, mixed):
        bare = VaspTemplate.from_settings({"ENCUT": 400})
        with pytest.raises(CampaignError, match=r"ISMEAR = 1 \(VASP's default\) is for metals; set ISMEAR = 0"):
            check_vasp_template(bare, mixed)

    def test_charge(self, mixed):
        mixed.info["charge"] = 1
        with pytest.raises(CampaignError, match="NELECT needs the valences"):
            check_vasp_template(template(), mixed)
        with pytest.raises(CampaignError, match=r"15 valence electrons \(charge \+1\) cannot have multiplicity 1"):
            check_vasp_template(with_valences(), mixed)
        mixed.info["charge"] = 2
        assert field_tags(with_valences(), mixed, np.zeros(3))["NELECT"] == "14"
        with pytest.raises(CampaignError, match=r"NELECT = 16 makes the charge \+0, the snapshot has \+2"):
            check_vasp_template(with_valences(NELECT=16), mixed)
        mixed.info["charge"] = 0
        assert "NELECT" not in field_tags(with_valences(), mixed, np.zeros(3))

    def test_spin(self, mixed):
        mixed.info["multiplicity"] = 3
        with pytest.raises(CampaignError, match="multiplicity 3 needs ISPIN = 2 and NUPDOWN = 2, got ISPIN = 1"):
            check_vasp_template(template(), mixed)
        assert check_vasp_template(template(ISPIN=2, NUPDOWN=2), mixed) == []

    def test_potentials(self, mixed):
        mixed.numbers[0] = 9
        with pytest.raises(CampaignError, match="no potential of F; potentials given: H, O"):
            check_vasp_template(with_valences(), mixed)

    def test_structure(self, mixed):
        for change in ({"pbc": False}, {"cell": -mixed.cell[:]}):
            other = mixed.copy()
            if "pbc" in change:
                other.pbc = False
            else:
                other.set_cell(change["cell"])
            with pytest.raises(CampaignError, match=r"VASP is periodic|right-handed"):
                check_vasp_template(template(), other)

    def test_methods(self, mixed):
        with pytest.raises(CampaignError, match="LEPSILON gives no second derivatives"):
            check_vasp_template(template(), mixed, ["apt", "pgt"], "lepsilon")
        with pytest.raises(CampaignError, match="LEPSILON has no hybrid functionals"):
            check_vasp_template(template(LHFCALC=True), mixed, ["apt"], "lepsilon")
        charged = mixed.copy()
        charged.info["charge"] = 1
        with pytest.raises(CampaignError, match=r"charge \+1 takes Q/N off every APT"):
            check_vasp_template(template(), charged, ["apt"], "lepsilon")
        with pytest.raises(CampaignError, match="VASP method must be one of"):
            check_vasp_template(template(), mixed, ["apt"], "dfpt")

    def test_warnings(self, mixed):
        assert check_vasp_template(template(), mixed, ["apt", "pgt"]) == []
        (line,) = check_vasp_template(template(EDIFF=1e-6), mixed, ["pgt"])
        assert line == "INCAR: EDIFF = 1e-06 is loose for PGT; use 1e-08"
        loose = VaspTemplate.from_settings({"ISMEAR": 0, "SIGMA": 0.05})
        assert "EDIFF = 0.0001 (VASP's default) is loose" in check_vasp_template(loose, mixed)[0]
        assert "SIGMA" in check_vasp_template(template(SIGMA=0.2), mixed)[0]
        assert "LREAL" in check_vasp_template(template(LREAL="Auto"), mixed)[0]
        assert "NUPDOWN" in check_vasp_template(template(ISPIN=2), mixed)[0]
        (line,) = check_vasp_template(template(), mixed, ["pgt"], step=STEP, gap=1.0)
        assert line.startswith("field too strong for the gap")
        assert line.endswith("take a smaller step")

    def test_folder_names(self, mixed):
        with pytest.raises(CampaignError, match="folders of different names"):
            render_field_set(template(), mixed, {"+x": [STEP, 0, 0], "px": [0, STEP, 0]})
        with pytest.raises(CampaignError, match="must have no field"):
            render_field_set(template(), mixed, {"0": [STEP, 0, 0]})


def test_level_of_theory_leaves_out_what_does_not_decide_forces():
    one = template(SYSTEM="a", ISTART=1, LWAVE=True).level_of_theory
    assert one == template(SYSTEM="b", ISYM=2).level_of_theory
    assert one != template(ENCUT=500).level_of_theory
    assert one != template().varied(ediff=1e-7).level_of_theory
    assert template().varied(ediff=1e-7).incar["EDIFF"] == "1e-07"
