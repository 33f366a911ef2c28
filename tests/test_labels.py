"""Label files and the keys by which labels are known."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from mimyria_wf.errors import LabelError
from mimyria_wf.finite_field import FIELD_POINTS, field_vectors
from mimyria_wf.labels import (
    LabelledSnapshot,
    configuration_key,
    level_of_theory_key,
    missing_points,
    read_labels,
    read_snapshots,
    write_labels,
)

LEVEL = {"program": "tblite", "method": "GFN2-xTB", "accuracy": 0.01}


def labelled(seed: int = 0, apt: bool = True, pgt: bool = True) -> LabelledSnapshot:
    rng = np.random.default_rng(seed)
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=seed)
    atoms.info.update(charge=0, snapshot=f"nve-003/{seed}")
    q = rng.normal(size=(3, 3, 3, 3))
    return LabelledSnapshot(atoms, rng.normal(size=(3, 3, 3)) if apt else None, q + q.swapaxes(-1, -2) if pgt else None)


def test_labels_survive_their_file(tmp_path: Path):
    written = [labelled(seed) for seed in range(3)]
    metadata = {"field_step": 1e-3, "engine": "tblite", "engine_version": "0.8.0", "level_of_theory": "GFN2-xTB"}
    write_labels(tmp_path / "labels.extxyz", written, metadata)
    read = read_labels(tmp_path / "labels.extxyz", ["apt", "pgt"])
    for a, b in zip(written, read, strict=True):
        np.testing.assert_allclose(b.apt, a.apt, atol=5.1e-9)  # eight decimals
        np.testing.assert_allclose(b.pgt, a.pgt, atol=5.1e-9)
        assert b.atoms.info["snapshot"] == a.atoms.info["snapshot"]
        assert b.atoms.info["apt_unit"] == "e"
        assert b.atoms.info["pgt_unit"] == "e^2 a0/E_h"
        assert b.atoms.info["engine_version"] == "0.8.0"
        assert b.atoms.info["field_step"] == 1e-3
        assert configuration_key(b.atoms) == configuration_key(a.atoms)
        assert set(b.atoms.arrays) == {"numbers", "positions"}
    assert list(tmp_path.iterdir()) == [tmp_path / "labels.extxyz"]


def test_columns_are_in_c_order_of_displacement_and_field(tmp_path: Path):
    one = labelled()
    write_labels(tmp_path / "a.extxyz", [one])
    lines = (tmp_path / "a.extxyz").read_text().splitlines()
    assert "apt:R:9:pgt:R:27" in lines[1]
    row = [float(x) for x in lines[3].split()[4:]]
    assert row[5] == pytest.approx(one.apt[1, 1, 2], abs=1e-8)
    assert row[9 + 9 * 2 + 3 * 0 + 1] == pytest.approx(one.pgt[1, 2, 0, 1], abs=1e-8)


def test_other_columns_and_cells_are_kept(tmp_path: Path):
    one = labelled(pgt=False)
    one.atoms.set_cell([[5, 0, 0], [1, 5, 0], [0, 0, 6]])
    one.atoms.pbc = True
    one.atoms.set_array("vel", np.ones((3, 3)))
    write_labels(tmp_path / "a.extxyz", [one])
    (read,) = read_labels(tmp_path / "a.extxyz")
    assert read.pgt is None
    np.testing.assert_allclose(read.atoms.arrays["vel"], 1)
    np.testing.assert_allclose(read.atoms.cell, one.atoms.cell)
    assert read.atoms.pbc.all()


@pytest.mark.reference_data
def test_published_labels_are_read(reference_data: Path):
    snapshots = read_labels(reference_data / "water_apt_dft" / "test10.extxyz", ["apt"])
    assert [len(s.atoms) for s in snapshots] == [384] * 10
    first = snapshots[0]
    np.testing.assert_allclose(first.apt[0, 0], [-1.1635, -0.09293, 0.091787])
    residual = max(s.tensors.sum_rule_residual(0).largest()["apt"] for s in snapshots)
    assert 0.1 < residual < 0.4  # not sum-rule corrected, up to 0.36 e a box


def test_keys_hold_what_decides_a_label_and_nothing_else():
    atoms = labelled().atoms
    key = configuration_key(atoms)
    same = atoms.copy()
    same.info["snapshot"] = "nve-000/1"
    same.positions += 1e-10 * np.sign(same.positions)  # no position lies this close to a half digit
    same.set_velocities(np.ones((3, 3)))
    assert configuration_key(same) == key
    for change in ("positions", "cell", "pbc", "charge", "multiplicity", "numbers"):
        other = atoms.copy()
        if change == "positions":
            other.positions[1, 2] += 1e-7
        elif change == "cell":
            other.cell = [9, 9, 9]
        elif change == "pbc":
            other.pbc = [True, False, False]
        elif change == "numbers":
            other.numbers[0] = 16
        else:
            other.info[change] = 3
        assert configuration_key(other) != key, change
    negative_zero = atoms.copy()
    negative_zero.positions[0, 0] = -0.0
    zero = atoms.copy()
    zero.positions[0, 0] = 1e-12
    assert configuration_key(negative_zero) == configuration_key(zero)
    assert level_of_theory_key(LEVEL) == level_of_theory_key(dict(reversed(LEVEL.items())))
    assert level_of_theory_key(LEVEL) != level_of_theory_key({**LEVEL, "accuracy": 0.1})


def test_only_missing_points_are_asked_for():
    atoms = labelled().atoms
    keys = (configuration_key(atoms), level_of_theory_key(LEVEL))
    assert list(missing_points({}, atoms, LEVEL, ["apt"], 1e-3)) == ["+x", "-x", "+y", "-y", "+z", "-z"]
    apt_set = np.array(list(field_vectors(1e-3, ["apt"]).values()))
    known = {keys: apt_set[::-1]}
    assert missing_points(known, atoms, LEVEL, ["apt"], 1e-3) == {}
    more = missing_points(known, atoms, LEVEL, ["apt", "pgt"], 1e-3)
    assert list(more) == ["0", *list(FIELD_POINTS)[7:]]
    np.testing.assert_array_equal(more["-x-y"], [-1e-3, -1e-3, 0])
    assert len(missing_points(known, atoms, LEVEL, ["apt"], 5e-4)) == 6
    assert len(missing_points(known, atoms, {**LEVEL, "accuracy": 1}, ["apt"], 1e-3)) == 6
    assert len(missing_points(known, labelled(1).atoms, LEVEL, ["apt"], 1e-3)) == 6
    assert list(missing_points({keys: np.zeros((1, 3))}, atoms, LEVEL, ["pgt"], 1e-3)) == list(FIELD_POINTS)[1:]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.replace("apt:R:9", "apt:R:8"), "a.extxyz, snapshot 0: column apt must be apt:R:9, found 8"),
        (lambda t: t.replace("apt:R:9", "apt:R:99"), "a.extxyz cannot be read"),
        (lambda t: t.replace("apt:R:9", "born:R:9"), "a.extxyz, snapshot 0: no column apt:R:9; run `mimyria-wf label`"),
        (lambda t: t.replace("apt_unit=e", "apt_unit=|e|"), "apt_unit must be 'e', found"),
        (
            lambda t: t.replace("displacement,field", "field,displacement"),
            "apt_axes must be 'displacement,field', found",
        ),
        (lambda t: t.replace(f"{labelled().apt[0, 0, 0]:16.8f}", " nan"), "apt of atom 0 is not finite"),
        (lambda t: t.replace("O ", "Qq", 1), "cannot be read"),
        (lambda t: "\n".join(t.splitlines()[:-1]), "cannot be read"),
        (lambda t: t.replace("charge=0", "charge=0.5"), "charge must be a whole number, got 0.5"),
        (lambda t: "", "is empty"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, edit, message):
    path = tmp_path / "a.extxyz"
    write_labels(path, [labelled(pgt=False)])
    text = path.read_text()
    assert edit(text) != text
    path.write_text(edit(text))
    with pytest.raises(LabelError, match=message) as caught:
        read_labels(path, ["apt"])
    assert "\n" not in str(caught.value)


def test_bad_labels_are_refused(tmp_path: Path):
    atoms = labelled().atoms
    with pytest.raises(LabelError, match=r"apt is given for 2 of 3 atoms \(snapshot nve-003/0\)"):
        LabelledSnapshot(atoms, apt=np.zeros((2, 3, 3)))
    with pytest.raises(LabelError, match="does not exist"):
        read_snapshots(tmp_path / "none.extxyz")
    with pytest.raises(LabelError, match="no labelled snapshots"):
        write_labels(tmp_path / "a.extxyz", [])
    bad = atoms.copy()
    bad.positions[1] = np.nan
    with pytest.raises(LabelError, match="not finite"):
        configuration_key(bad)
    ase.io.write(tmp_path / "plain.extxyz", atoms)
    with pytest.raises(LabelError, match="no column apt:R:9 or pgt:R:27"):
        read_labels(tmp_path / "plain.extxyz")
    write_labels(tmp_path / "apt.extxyz", [labelled(pgt=False)])
    with pytest.raises(LabelError, match="no column pgt:R:27"):
        read_labels(tmp_path / "apt.extxyz", ["apt", "pgt"])
