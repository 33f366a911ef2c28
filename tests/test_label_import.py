"""Labels made elsewhere: units, signs and order of axes are stated, never guessed."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from mimyria_wf.engines import label_file
from mimyria_wf.errors import LabelError
from mimyria_wf.field_forces import read_field_forces
from mimyria_wf.finite_field import field_vectors
from mimyria_wf.label_import import Origin, import_field_forces, import_labels
from mimyria_wf.labels import read_labels
from mimyria_wf.tblite_engine import TbliteEngine
from mimyria_wf.units import BOHR, HARTREE_PER_BOHR

STEP = 1e-3
ORIGIN = Origin("tblite", "0.5", {"functional": "GFN2-xTB"})


def frames(column: str = "forces", charge: int = 0, targets: tuple[str, ...] = ("apt", "pgt"), **info) -> list:
    """Return a frame for each field point, in eV/A and V/A, from tblite."""
    atoms = molecule("H2O") if charge == 0 else molecule("OH")
    atoms.rattle(0.05, seed=1)
    atoms.info.update(charge=charge, snapshot="nve-000/5")
    vectors = np.array(list(field_vectors(STEP, list(targets)).values()))
    if charge and "pgt" not in targets:
        vectors = np.concatenate([vectors, np.zeros((1, 3))])
    forces = TbliteEngine().forces(atoms, vectors)
    found = []
    for vector, force in zip(vectors, forces, strict=True):
        frame = atoms.copy()
        frame.arrays[column] = force * HARTREE_PER_BOHR
        frame.info |= {"efield": vector * HARTREE_PER_BOHR, **info}
        found.append(frame)
    return found


def written(path: Path, images: list) -> Path:
    ase.io.write(path, images, format="extxyz")
    return path


UNITS = {"field_unit": "V/A", "force_unit": "eV/A"}


def test_imported_forces_give_the_engines_own_tensors(tmp_path: Path):
    path = written(tmp_path / "fields.extxyz", frames("REF_forces"))
    result = import_field_forces(path, tmp_path / "f.h5", ORIGIN, **UNITS)
    assert (result["n_snapshots"], result["n_points"], result["n_snapshots_with_tensors"]) == (1, 13, 1)
    (stored,) = read_field_forces(tmp_path / "f.h5")
    assert (stored.engine, stored.engine_version, stored.level_of_theory) == ("tblite", "0.5", ORIGIN.level_of_theory)
    atoms = stored.atoms
    assert atoms.info["snapshot"] == "nve-000/5"
    written(tmp_path / "s.extxyz", [atoms])
    label_file(tmp_path / "s.extxyz", TbliteEngine(), ["pgt"], STEP, tmp_path / "l.extxyz")
    (own,) = read_labels(tmp_path / "l.extxyz")
    found = stored.field_forces.tensors()
    np.testing.assert_allclose(found.apt, own.apt, atol=1e-5)  # eight decimals of positions and forces over the field
    np.testing.assert_allclose(found.pgt, own.pgt, atol=0.05)  # over its square


def test_units_may_stand_in_the_file_but_must_stand_somewhere(tmp_path: Path):
    stated = {"efield_unit": "V/A", "forces_unit": "eV/A"}
    path = written(tmp_path / "fields.extxyz", frames(targets=("apt",), **stated))
    assert import_field_forces(path, tmp_path / "f.h5", ORIGIN)["n_points"] == 6
    with pytest.raises(LabelError, match=r"frame 0: efield_unit is 'V/A' in the file, 'E_h/\(e a0\)' was given"):
        import_field_forces(path, tmp_path / "g.h5", ORIGIN, field_unit="E_h/(e a0)")
    path = written(tmp_path / "silent.extxyz", frames(targets=("apt",)))
    with pytest.raises(LabelError, match=r"efield_unit is not stated; say it in the file or by option: E_h/\(e a0\)"):
        import_field_forces(path, tmp_path / "g.h5", ORIGIN, force_unit="eV/A")
    with pytest.raises(LabelError, match=r"forces_unit must be one of .*, got 'kcal/mol'"):
        import_field_forces(path, tmp_path / "g.h5", ORIGIN, field_unit="V/A", force_unit="kcal/mol")


def no_field(images):
    del images[2].info["efield"]


def twice(images):
    images.append(images[3].copy())


def other_column(images):
    for frame in images:
        frame.arrays["F"] = frame.arrays.pop("REF_forces")


def normalised(images):
    for frame in images:  # a length of h where the vector says sqrt(2) h
        if np.count_nonzero(frame.info["efield"]) == 2:
            frame.info["efield"] = frame.info["efield"] * np.sqrt(2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_field, "frame 2: no efield in its header; every frame needs the field it felt, zero where none"),
        (twice, r"nve-000/5: field point \+y comes twice"),
        (other_column, "frame 0: no column forces or REF_forces; name one of F, numbers, positions"),
        (normalised, r"follow a field 0.707 times the vector given: \(h, h, 0\) and total length h are mixed up"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, spoil, message):
    images = frames("REF_forces")
    spoil(images)
    with pytest.raises(LabelError, match=message) as caught:
        import_field_forces(written(tmp_path / "f.extxyz", images), tmp_path / "f.h5", ORIGIN, **UNITS)
    assert "\n" not in str(caught.value)


def test_a_reversed_field_is_found_where_the_charge_gives_it_away(tmp_path: Path):
    images = frames("REF_forces", charge=-1, targets=("apt",))
    assert import_field_forces(written(tmp_path / "a.extxyz", images), tmp_path / "f.h5", ORIGIN, **UNITS)
    for frame in images:
        frame.info["efield"] = -frame.info["efield"]
    with pytest.raises(LabelError, match="the field's sign is reversed"):
        import_field_forces(written(tmp_path / "b.extxyz", images), tmp_path / "g.h5", ORIGIN, **UNITS)


def test_the_level_of_theory_is_asked_for():
    with pytest.raises(LabelError, match="imported labels need their level of theory"):
        Origin("vasp", "6.4.3", {})


def tensors(transposed: bool, **info) -> tuple:
    rng = np.random.default_rng(0)
    atoms = molecule("H2O")
    apt, pgt = rng.normal(size=(3, 3, 3)), rng.normal(size=(3, 3, 3, 3))
    pgt = pgt + pgt.transpose(0, 1, 3, 2)
    columns = (apt.transpose(0, 2, 1), np.moveaxis(pgt, 1, -1)) if transposed else (apt, pgt)
    atoms.set_array("born", columns[0].reshape(3, 9))
    atoms.set_array("dalpha", columns[1].reshape(3, 27) * BOHR**2)
    atoms.info.update(charge=0, **info)
    return atoms, apt, pgt


STATED = {
    "units": {"apt": "e", "pgt": "A^2"},
    "columns": {"apt": "born", "pgt": "dalpha"},
}


@pytest.mark.parametrize("transposed", [False, True])
def test_imported_tensors_come_in_our_order_and_units(tmp_path: Path, transposed: bool):
    atoms, apt, pgt = tensors(transposed)
    ours, theirs = (
        {"apt": "displacement,field", "pgt": "displacement,field,field"},
        {"apt": "field,displacement", "pgt": "field,field,displacement"},
    )
    path = written(tmp_path / "t.extxyz", [atoms])
    result = import_labels(path, tmp_path / "l.extxyz", ORIGIN, axes=theirs if transposed else ours, **STATED)
    (found,) = read_labels(tmp_path / "l.extxyz", ["apt", "pgt"], stated=True)
    np.testing.assert_allclose(found.apt, apt, atol=2e-8)
    np.testing.assert_allclose(found.pgt, pgt, atol=1e-7)
    assert result["targets"] == ["apt", "pgt"]
    assert found.atoms.info["engine"] == "tblite"


def test_order_and_units_of_tensors_are_never_guessed(tmp_path: Path):
    path = written(tmp_path / "t.extxyz", [tensors(False)[0]])
    with pytest.raises(LabelError, match=r"apt_axes is not stated; say it .*: displacement,field, field,displacement"):
        import_labels(path, tmp_path / "l.extxyz", ORIGIN, **STATED)
    with pytest.raises(LabelError, match="frame 0: no column apt or pgt; columns there: born, dalpha"):
        import_labels(path, tmp_path / "l.extxyz", ORIGIN)
    bare, apt, _ = tensors(False)
    bare.set_array("apt", apt.reshape(3, 9))
    with pytest.raises(LabelError, match="apt_unit is not stated"):
        read_labels(written(tmp_path / "bare.extxyz", [bare]), ["apt"], stated=True)
    assert len(read_labels(tmp_path / "bare.extxyz", ["apt"])) == 1
    bare.info |= {"apt_unit": "e", "apt_axes": "displacement,field"}
    with pytest.raises(LabelError, match="level_of_theory is not stated"):
        read_labels(written(tmp_path / "bare.extxyz", [bare]), ["apt"], stated=True)
    other = bare.copy()
    bare.info["level_of_theory"], other.info["level_of_theory"] = "one", "two"
    with pytest.raises(LabelError, match="snapshots 0 and 1 are of different levels of theory"):
        read_labels(written(tmp_path / "both.extxyz", [bare, other]), ["apt"], stated=True)


def scaled(images, forces: float = 1.0, fields: float = 1.0):
    for frame in images:
        frame.arrays["REF_forces"] = frame.arrays["REF_forces"] * forces
        frame.info["efield"] = frame.info["efield"] * fields
    return images


OURS, PER_ANGSTROM = "E_h/(e a0)", 1 / HARTREE_PER_BOHR


@pytest.mark.parametrize(
    ("fields", "units", "message"),
    [
        (
            1.0,
            {"field_unit": "V/A", "force_unit": "E_h/a0"},
            r"APTs is .* e, above 10: forces in eV/A stated as E_h/a0",
        ),
        (0.1, {"field_unit": OURS, "force_unit": "eV/A"}, r"APTs is .* e, below 0.05, although H, O is polar"),
        (1.0, {"field_unit": OURS, "force_unit": "eV/A"}, r"a field step of 0.05\d* E_h/\(e a0\) is no perturbation"),
    ],
)
def test_sizes_that_only_a_mistaken_unit_explains_are_refused(tmp_path: Path, fields, units, message):
    images = frames("REF_forces", targets=("apt",))
    if fields != 1:  # fields and forces of a smaller step, so that the step itself passes
        images = scaled(images, 1.0, 1.0)
        mean = np.mean([frame.arrays["REF_forces"] for frame in images], axis=0)
        for frame in images:
            frame.arrays["REF_forces"] = mean + fields * (frame.arrays["REF_forces"] - mean)
            frame.info["efield"] = fields * frame.info["efield"]
    with pytest.raises(LabelError, match=message):
        import_field_forces(written(tmp_path / "f.extxyz", images), tmp_path / "f.h5", ORIGIN, **units)
    assert not (tmp_path / "f.h5").exists()


def test_a_person_sees_the_sign_of_a_neutral_system(tmp_path: Path):
    path = written(tmp_path / "f.extxyz", frames("REF_forces", targets=("apt",)))
    result = import_field_forces(path, tmp_path / "f.h5", ORIGIN, **UNITS)
    assert -0.8 < result["mean_apt_trace"]["O"] < -0.2
    assert result["mean_apt_trace"]["H"] == pytest.approx(-result["mean_apt_trace"]["O"] / 2, abs=1e-3)
    (line,) = result["warnings"]
    assert "no sum rule tells the sign of a neutral system" in line
    for name, (force, field) in {"gradients": (-1.0, 1.0), "electrons": (1.0, -1.0)}.items():
        images = scaled(frames("REF_forces", targets=("apt",)), force, field)
        result = import_field_forces(
            written(tmp_path / f"{name}.extxyz", images), tmp_path / f"{name}.h5", ORIGIN, **UNITS
        )
        assert result["mean_apt_trace"]["O"] > 0.2
        assert any("the sign looks reversed: O, the most electronegative, has +" in line for line in result["warnings"])


def test_a_strong_field_is_warned_of(tmp_path: Path):
    images = scaled(frames("REF_forces", targets=("apt",)), 1.0, 8.0)
    mean = np.mean([frame.arrays["REF_forces"] for frame in images], axis=0)
    for frame in images:
        frame.arrays["REF_forces"] = mean + 8 * (frame.arrays["REF_forces"] - mean)
    result = import_field_forces(written(tmp_path / "f.extxyz", images), tmp_path / "f.h5", ORIGIN, **UNITS)
    assert "the weakest field is 0.008 E_h/(e a0); above 0.005 higher orders count" in result["warnings"][0]
