"""Labels from clusters: whole molecules in any cell, charges, the central molecule's tensors, refusals."""

from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.formula import Formula

from mimyria_wf.cluster_labels import (
    FORMAL_CHARGES,
    cut_clusters,
    formal_charges,
    label_clusters,
    label_clusters_file,
)
from mimyria_wf.errors import LabelError
from mimyria_wf.finite_field import field_vectors, response_tensors
from mimyria_wf.labels import read_labels
from mimyria_wf.tblite_engine import TbliteEngine
from mimyria_wf.topology import find_topology

STEP = 1e-3


def waters(n: int = 2, spacing: float = 3.1, seed: int = 0) -> ase.Atoms:
    """Return n^3 water molecules on a jittered lattice in a triclinic cell, each turned at random."""
    random = np.random.default_rng(seed)
    cell = spacing * n * np.array([[1.0, 0, 0], [0.2, 1.0, 0], [-0.1, 0.15, 1.0]])
    box = ase.Atoms(cell=cell, pbc=True)
    for place in np.ndindex(n, n, n):
        one = molecule("H2O")
        one.rotate(random.uniform(0, 180), random.normal(size=3), center="COM")
        one.rattle(0.02, rng=random)
        one.translate(np.array(place) / n @ cell - one.get_center_of_mass() + random.normal(0, 0.1, 3))
        box += one
    return box


def apt(atoms: ase.Atoms) -> np.ndarray:
    vectors = np.array(list(field_vectors(STEP, ["apt"]).values()))
    return response_tensors(vectors, TbliteEngine().forces(atoms, vectors), ["apt"]).apt


def test_a_molecule_alone_gets_its_own_tensors_even_across_a_boundary():
    alone = molecule("CH3OH")
    alone.rattle(0.03, seed=2)
    box = alone.copy()
    box.set_cell([9.0, 10.0, 11.0])
    box.pbc = True
    box.translate([8.7, 9.5, 0.2])  # the molecule sticks out of the cell at two faces
    box.wrap()
    labelled = label_clusters(TbliteEngine(), [box], ["apt"], STEP)[0]
    assert labelled.apt == pytest.approx(apt(alone), abs=1e-6)  # thresholds of the SCF over the step
    assert labelled.pgt is None
    assert labelled.atoms.info["level_of_theory"] == "tblite GFN2-xTB clusters, radius 3.5 A"


def test_with_a_radius_beyond_a_drop_every_molecule_feels_all_of_it():
    drop = waters(2)
    drop.pbc = False
    labelled = label_clusters(TbliteEngine(), [drop], ["apt", "pgt"], STEP, radius=20.0)[0]
    assert labelled.apt == pytest.approx(apt(drop), abs=2e-6)  # SCF thresholds; the order of atoms differs
    assert labelled.apt.sum(axis=0) == pytest.approx(np.zeros((3, 3)), abs=1e-5)
    assert np.abs(labelled.pgt.sum(axis=0)).max() < 1e-3 * np.abs(labelled.pgt).max() * len(drop)


@pytest.mark.parametrize(("n", "radius"), [(2, 3.0), (1, 3.5)])
def test_a_cluster_is_the_molecules_within_the_radius_images_included(n, radius):
    box = waters(n)
    topology = find_topology(box.positions, box.numbers, box.cell.array, box.pbc)
    clusters = cut_clusters(box, radius)
    assert len(clusters) == topology.n_molecules == n**3
    # by hand, in a supercell large enough
    big = box.repeat((5, 5, 5))
    centre = np.arange(len(box)) + 62 * len(box)  # the copy in the middle
    whole = find_topology(big.positions, big.numbers, big.cell.array, big.pbc)
    for cluster in clusters:
        own = centre[cluster.members]
        near = {
            whole.molecule[j]
            for i in own
            for j in np.flatnonzero(np.linalg.norm(big.positions - big.positions[i], axis=1) < radius)
        }
        assert cluster.n_molecules == len(near | {whole.molecule[own[0]]})
        expected = big.positions[np.isin(whole.molecule, list(near))] - big.positions[own].mean(axis=0)
        found = cluster.atoms.positions
        distance = np.linalg.norm(found[:, None] - expected[None], axis=2)
        assert len(found) == len(expected)
        assert distance.min(axis=1).max() < 1e-6
        assert np.array_equal(cluster.atoms.numbers[: len(own)], box.numbers[cluster.members])
        assert not cluster.atoms.pbc.any()


def test_a_cap_keeps_the_nearest_molecules():
    box = waters(3)
    for full, capped in zip(cut_clusters(box, 4.0), cut_clusters(box, 4.0, n_molecules=4)):
        assert full.n_molecules > 4 == capped.n_molecules
        assert capped.atoms.positions == pytest.approx(full.atoms.positions[:12])
        gap = [
            np.linalg.norm(full.atoms.positions[:3, None] - full.atoms.positions[3 * k : 3 * k + 3], axis=2).min()
            for k in range(1, full.n_molecules)
        ]
        assert gap == sorted(gap)


def test_tensors_do_not_depend_on_wrapping_translation_or_order_of_atoms():
    box = waters(2, seed=4)
    engine = TbliteEngine()
    reference = label_clusters(engine, [box], ["apt"], STEP, radius=2.2)[0].apt
    moved = box.copy()
    moved.translate([1.7, -0.4, 2.2])
    moved.wrap()
    order = np.random.default_rng(3).permutation(len(box))
    found = label_clusters(engine, [moved[order]], ["apt"], STEP, radius=2.2)[0].apt
    assert found == pytest.approx(reference[order], abs=2e-6)  # SCF thresholds


def test_ions_carry_their_formal_charge_into_the_clusters():
    box = waters(2, spacing=4.5)
    del box[[0, 1, 2]]
    box += ase.Atoms("Na", [[0.0, 0.0, 0.0]])
    with pytest.raises(LabelError, match=r"charge \+1 together \(1 Na of \+1\), the snapshot \+0"):
        cut_clusters(box, 3.5)
    box.info["charge"] = 1
    clusters = cut_clusters(box, 4.5)
    charged = [c.atoms.info["charge"] for c in clusters]
    assert all(q == np.sum(c.atoms.numbers == 11) for q, c in zip(charged, clusters))
    assert sum(charged) > 1
    # at a radius beyond the box the central ion alone, with its charge, obeys the sum rule of its cluster
    alone = ase.Atoms("Na", [[1.0, 2.0, 3.0]], cell=3 * [12.0], pbc=True, info={"charge": 1})
    alone += molecule("H2O")
    labelled = label_clusters(TbliteEngine(), [alone], ["apt"], STEP, radius=2.0)[0]
    assert labelled.apt[0] == pytest.approx(np.eye(3), abs=1e-6)  # a lone ion moves its whole charge
    given = cut_clusters(box, 4.5, {"Na": 1, "OH2": 0})
    assert [c.atoms.info["charge"] for c in given] == charged


def test_formal_charges_know_hydroxide_and_hydronium_and_ask_for_the_rest():
    pair = ase.Atoms("OHOH3", [[0, 0, 0], [0, 0, 0.97], [6, 0, 0], [6.97, 0, 0], [5.6, 0.9, 0], [5.6, -0.9, 0.0]])
    pair.cell, pair.pbc = 3 * [14.0], True
    topology = find_topology(pair.positions, pair.numbers, pair.cell.array, pair.pbc)
    assert sorted(formal_charges(pair, topology)) == [-1, 1]
    iron = ase.Atoms("Fe", cell=3 * [9.0], pbc=True) + molecule("H2O")
    iron.positions[1:] += 4
    with pytest.raises(LabelError, match="a lone Fe has no charge by itself"):
        cut_clusters(iron)
    with pytest.raises(LabelError, match=r"\+2 together \(1 Fe of \+2\)"):
        cut_clusters(iron, charges={"Fe": 2})
    radical = ase.Atoms("CH3", [[0, 0, 0], [1.08, 0, 0], [-0.54, 0.94, 0], [-0.54, -0.94, 0]], cell=3 * [9.0], pbc=True)
    with pytest.raises(LabelError, match=r"CH3 of charge \+0 has an odd number of electrons"):
        cut_clusters(radical)
    with pytest.raises(LabelError, match="'Xy' is not a formula"):
        cut_clusters(iron, charges={"Xy": 2})


def test_every_known_ion_is_a_closed_shell():
    from ase.data import atomic_numbers

    for formula, charge in FORMAL_CHARGES.items():
        electrons = sum(atomic_numbers[s] * n for s, n in Formula(formula).count().items()) - charge
        assert electrons % 2 == 0, formula


@pytest.mark.parametrize(
    ("solid", "message"),
    [
        (bulk("Si", cubic=True), "bonded network without end"),
        (bulk("Si"), "bonded network without end"),
        (bulk("C").repeat(3), "bonded network without end"),
        (bulk("NaCl", "rocksalt", a=5.64), "no two atoms are bonded"),
    ],
)
def test_solids_without_molecules_are_refused(solid, message):
    with pytest.raises(LabelError, match=f"{message}.*label solids with engine cp2k or vasp") as error:
        cut_clusters(solid)
    assert "\n" not in str(error.value)


def test_open_shells_and_senseless_radii_are_refused():
    box = waters(2)
    with pytest.raises(LabelError, match="positive radius"):
        cut_clusters(box, 0.0)
    box.info["multiplicity"] = 3
    with pytest.raises(LabelError, match="closed shells only"):
        cut_clusters(box)


def test_two_processes_give_the_labels_of_one(tmp_path: Path):
    box = waters(2)
    one = label_clusters(TbliteEngine(), [box], ["apt"], STEP, radius=2.0)
    two = label_clusters(TbliteEngine(), [box], ["apt"], STEP, radius=2.0, processes=2)
    assert one[0].apt == pytest.approx(two[0].apt, abs=1e-6)  # SCF thresholds


def test_files_tell_where_their_labels_come_from(tmp_path: Path):
    snapshots = tmp_path / "run.extxyz"
    ase.io.write(snapshots, [waters(2, seed=1), waters(2, seed=2)])
    seen = []
    result = label_clusters_file(
        snapshots, TbliteEngine(), ["apt"], STEP, tmp_path / "labels.extxyz", 2.0, progress=lambda *p: seen.append(p)
    )
    labels = read_labels(tmp_path / "labels.extxyz", ["apt"])
    assert [one.atoms.info["snapshot"] for one in labels] == ["run/0", "run/1"]
    assert {one.atoms.info["level_of_theory"] for one in labels} == {"tblite GFN2-xTB clusters, radius 2 A"}
    assert result["n_clusters"] == 16
    assert seen[-1][:2] == (16, 16)
    residual = np.array([one.apt.sum(axis=0) for one in labels])
    assert result["sum_rule_residual"]["apt"] == pytest.approx(np.sqrt(np.mean(residual**2)), rel=1e-5)
