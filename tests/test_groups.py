import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mimyria_wf.errors import GroupError
from mimyria_wf.frames import Trajectory
from mimyria_wf.groups import (
    Follower,
    ResolvedGroups,
    _Resolver,
    groups_report,
    parse_group_scheme,
    read_group_scheme,
)
from mimyria_wf.membership import Frames
from mimyria_wf.minimum_image import MinimumImage
from mimyria_wf.rdf import Rdf, find_minimum
from mimyria_wf.topology import find_topology
from mimyria_wf.trajectory import open_trajectory, write_trajectory

Array = NDArray[Any]
BOX = np.array([[9.0, 0.0, 0.0], [3.5, 8.0, 0.0], [-2.0, 2.5, 8.5]])
NO_BOX = np.zeros((3, 3))
IMAGES = np.array(list(itertools.product(range(-3, 4), repeat=3)), dtype=float)


def water_box(n_waters: int = 12, box: Array = BOX, seed: int = 0, solute: str = "Cl") -> Atoms:
    """Return an ion and rigid water molecules at random places of a triclinic box, wrapped atom by atom."""
    rng = np.random.default_rng(seed)
    places: list[Array] = [np.full(3, 0.03) @ box]
    while len(places) < n_waters + 1:
        place = rng.uniform(size=3) @ box
        if min(np.linalg.norm(place - p + IMAGES @ box, axis=1).min() for p in places) > 2.55:
            places.append(place)
    atoms = Atoms(solute, positions=[places[0]], cell=box, pbc=True)
    one = molecule("H2O")
    one.translate(-one.positions[0])
    for place in places[1:]:
        turned = one.copy()
        turned.positions = turned.positions @ Rotation.random(random_state=rng.integers(1 << 30)).as_matrix() + place
        atoms += turned
    atoms.wrap()
    return atoms


def moving(atoms: Atoms, n_frames: int, seed: int = 1, step: float = 0.3) -> Array:
    """Let whole molecules wander, (n_frames, n_atoms, 3)."""
    topology = find_topology(atoms.positions, atoms.numbers, np.array(atoms.cell), atoms.pbc)
    jumps = np.random.default_rng(seed).normal(scale=step, size=(n_frames, topology.n_molecules, 3))
    jumps[0] = 0
    return atoms.positions + jumps.cumsum(axis=0)[:, topology.molecule]


def resolved(scheme: dict[str, Any], atoms: Atoms, path: Path, positions: Array | None = None) -> ResolvedGroups:
    frames = atoms.positions[None] if positions is None else positions
    run = Trajectory(
        atoms.numbers, frames, np.zeros_like(frames), np.array(atoms.cell), atoms.pbc, 1.0, atoms.get_masses(), "run"
    )
    write_trajectory(path / "run.h5", run)
    reader = open_trajectory(path / "run.h5", timestep=1.0)
    return parse_group_scheme(scheme).resolve([reader])


def names_of(groups: ResolvedGroups, atoms: Atoms, positions: Array | None = None) -> Array:
    frames = atoms.positions[None] if positions is None else positions
    found = groups.memberships(frames, atoms.numbers, np.array(atoms.cell), atoms.pbc)
    return np.array(groups.names)[found]


def brute_distances(a: Array, b: Array, box: Array) -> Array:
    """Return the shortest distances among 343 images, (n_a, n_b)."""
    vectors = (a[:, None] - b[None])[:, :, None] + IMAGES @ box
    return np.asarray(np.linalg.norm(vectors, axis=3).min(axis=2))


# ------------------------------------------------------------------------------------------------ distances, molecules


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, True), (False, False, False)])
def test_shortest_image_of_skewed_cells(pbc: tuple[bool, bool, bool]) -> None:
    rng = np.random.default_rng(3)
    for box in (BOX, np.array([[4.0, 0, 0], [3.9, 1.5, 0], [1.0, 1.2, 7.0]]), np.diag([3.0, 9.0, 5.0])):
        vectors = rng.uniform(-12, 12, (200, 3))
        wide = np.array(list(itertools.product(*[range(-12, 13) if p else [0] for p in pbc])), dtype=float)
        shortest = np.linalg.norm(vectors[:, None] + wide @ box, axis=2).min(axis=1)
        found = np.linalg.norm(MinimumImage(box, np.array(pbc)).vectors(vectors), axis=1)
        np.testing.assert_allclose(found, shortest, atol=1e-12)


def test_molecules_across_the_box() -> None:
    atoms = water_box()
    topology = find_topology(atoms.positions, atoms.numbers, np.array(atoms.cell), atoms.pbc)
    assert topology.counts() == {"Cl": 1, "H2O": 12}
    assert [set(atoms.numbers[topology.molecule == m]) for m in range(1, 13)] == [{1, 8}] * 12
    spread = max(np.ptp(atoms.positions[topology.molecule == m], axis=0).max() for m in range(13))
    assert spread > 3  # some are cut by the boundary
    assert [topology.parents[h] for h in (2, 3, 5)] == [1, 1, 4]
    alone = find_topology(atoms.positions, atoms.numbers, NO_BOX, np.zeros(3, dtype=bool))
    assert alone.counts() != topology.counts()


def test_ions_and_shared_protons_do_not_join_molecules() -> None:
    water = molecule("H2O")
    water.translate(-water.positions[0])
    sodium = water + Atoms("Na", positions=[[0, 0, 2.35]])  # below 1.25 times the sum of the radii
    assert find_topology(sodium.positions, sodium.numbers, NO_BOX, sodium.pbc).counts() == {"H2O": 1, "Na": 1}
    bonded = find_topology(sodium.positions, sodium.numbers, NO_BOX, sodium.pbc, ions=())
    assert bonded.counts() == {"H2NaO": 1}
    zundel = Atoms("OHHOHHH", positions=np.zeros((7, 3)))
    zundel.positions[0:3] = [[0, 0, 0], [-0.6, 0.75, 0], [-0.6, -0.75, 0]]
    zundel.positions[3:6] = [[2.36, 0, 0], [2.96, 0, 0.75], [2.96, 0, -0.75]]
    for place, formulas in ((1.1, {"H2O": 1, "H3O": 1}), (1.26, {"H2O": 1, "H3O": 1})):
        zundel.positions[6] = [place, 0, 0]
        found = find_topology(zundel.positions, zundel.numbers, NO_BOX, zundel.pbc)
        assert found.counts() == formulas
        assert found.parents[6] == (0 if place < 1.18 else 3)


# ----------------------------------------------------------------------------------------------------------- membership

SHELLS: dict[str, Any] = {
    "groups": {
        "ion": {"species": "Cl"},
        "first": {"within": {"of": "ion", "by": {"species": "O"}, "distance": 3.6}},
        "second": {"within": {"of": "ion", "by": {"species": "O"}, "distance": 5.8}},
    }
}


@pytest.mark.parametrize("dense", [0, 10**6])
@pytest.mark.parametrize("periodic", [True, False])
def test_shells_against_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense: int, periodic: bool) -> None:
    """5.8 A is well beyond half the box, whose faces are 6.6 to 8.5 A apart."""
    monkeypatch.setattr("mimyria_wf.membership._DENSE", dense)
    atoms = water_box()
    frames = moving(atoms, 25)
    if not periodic:
        atoms = water_box()
        topology = find_topology(atoms.positions, atoms.numbers, BOX, np.ones(3, dtype=bool))
        for m in range(topology.n_molecules):  # make molecules whole, then drop the box
            members = np.flatnonzero(topology.molecule == m)
            arms = atoms.positions[members] - atoms.positions[members[0]]
            arms = MinimumImage(BOX, np.ones(3, dtype=bool)).vectors(arms)
            place = MinimumImage(BOX, np.ones(3, dtype=bool)).vectors(atoms.positions[members[0]] - atoms.positions[0])
            atoms.positions[members] = atoms.positions[0] + place + arms
        atoms = Atoms(atoms.numbers, positions=atoms.positions)
        frames = moving(atoms, 25)
    groups = resolved(SHELLS, atoms, tmp_path, frames)
    found = names_of(groups, atoms, frames)
    oxygens = np.flatnonzero(atoms.numbers == 8)
    for positions, names in zip(frames, found, strict=True):
        box = BOX if periodic else NO_BOX
        distance = brute_distances(positions[oxygens], positions[:1], box)[:, 0]
        expected = np.where(distance <= 3.6, "first", np.where(distance <= 5.8, "second", "rest"))
        for offset in range(3):  # hydrogens follow their oxygen
            np.testing.assert_array_equal(names[oxygens + offset], expected)
        assert names[0] == "ion"
    assert {"first", "second", "rest"} <= set(found.ravel())
    assert len(np.unique(found, axis=0)) > 5  # they change with time


def test_permuted_wrapped_translated(tmp_path: Path) -> None:
    atoms = water_box(seed=4)
    frames = moving(atoms, 8)
    scheme = SHELLS | {"relations": ["self", "hydrogen bonded", {"neighbours": 3.2}], "units": "molecules"}
    groups = resolved(scheme, atoms, tmp_path, frames)
    reference = names_of(groups, atoms, frames)

    def bonds(group: ResolvedGroups, numbers: Array, positions: Array) -> list[int]:
        topology = find_topology(positions[0], numbers, BOX, atoms.pbc)
        lists = Follower(group, numbers, BOX, atoms.pbc, topology).follow(positions)[1]
        return [len(one[0]) for one in lists]

    counts = bonds(groups, atoms.numbers, frames)
    assert min(counts) > 0
    rng = np.random.default_rng(0)
    moved = frames + np.array([3.3, -7.1, 0.4])
    images = rng.integers(-2, 3, frames.shape[1:]) @ BOX
    for variant in (moved, frames + images):
        np.testing.assert_array_equal(names_of(groups, atoms, variant), reference)
        assert bonds(groups, atoms.numbers, variant) == counts
    order = rng.permutation(len(atoms))
    again = resolved(scheme, atoms[order], tmp_path, frames[:, order])
    np.testing.assert_array_equal(names_of(again, atoms[order], frames[:, order]), reference[:, order])
    assert bonds(again, atoms.numbers[order], frames[:, order]) == counts


def test_boolean_combinations_and_order(tmp_path: Path) -> None:
    atoms = water_box()
    scheme = {
        "groups": {
            "tagged": {"index": ["1-3", 7]},
            "hydrogen": {"all": [{"species": "H"}, {"not": "tagged"}, {"not": {"index": 5}}]},
            "oxygen": {"any": [{"species": ["O"]}, {"index": 5}], "not": "tagged"},
        }
    }
    found = names_of(resolved(scheme, atoms, tmp_path), atoms)[0]
    for k, (number, name) in enumerate(zip(atoms.numbers, found, strict=True)):
        if k in (1, 2, 3, 7):
            assert name == "tagged"
        elif k == 5 or number == 8:
            assert name == "oxygen"
        else:
            assert name == ("hydrogen" if number == 1 else "rest")
    whole = {"groups": {"a": {"molecule_of": {"index": 2}}, "b": {"molecule": ["OH2", "Cl"]}}}
    groups = resolved(whole, atoms, tmp_path)
    assert groups.names == ("a", "b")  # nothing is left, so there is no rest
    assert list(names_of(groups, atoms)[0]) == ["b", "a", "a", "a", *["b"] * 33]


def test_single_atoms_and_inner_radius(tmp_path: Path) -> None:
    atoms = water_box(seed=2)
    within = {"of": {"species": "Cl"}, "from": 3.0, "distance": 4.5, "whole_molecules": False}
    found = names_of(resolved({"groups": {"ring": {"within": within}}}, atoms, tmp_path), atoms)[0]
    distance = brute_distances(atoms.positions, atoms.positions[:1], BOX)[:, 0]
    np.testing.assert_array_equal(found == "ring", (distance > 3.0) & (distance <= 4.5))


def test_held_memberships_do_not_depend_on_chunks(tmp_path: Path) -> None:
    atoms = water_box()
    frames = moving(atoms, 31)
    scheme = SHELLS | {"every": 4, "relations": ["self", {"neighbours": 4.0}]}
    groups = resolved(scheme, atoms, tmp_path, frames)
    topology = groups.topologies[0]

    def followed(sizes: list[int]) -> tuple[Array, list[Array]]:
        follower = Follower(groups, atoms.numbers, BOX, atoms.pbc, topology)
        members, pairs, start = [], [[], []], 0
        for size in sizes:
            member, lists = follower.follow(frames[start : start + size])
            members.append(member)
            for kept, one in zip(pairs, lists[1:], strict=True):
                kept.append(np.array(one) + np.array([[start], [0], [0]]))
            start += size
        return np.concatenate(members), [np.concatenate(one, axis=1) for one in pairs]

    whole, pairs = followed([31])
    every = groups.memberships(frames, atoms.numbers, BOX, atoms.pbc)
    np.testing.assert_array_equal(whole, every[np.arange(31) // 4 * 4])
    assert (whole != every).any()
    for sizes in ([1] * 31, [3, 9, 19]):
        again, again_pairs = followed(sizes)
        np.testing.assert_array_equal(again, whole)
        for one, other in zip(again_pairs, pairs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_connectivity_of_the_first_or_of_every_frame(tmp_path: Path) -> None:
    """A proton moves along O-O: with `every` the hydronium ion goes with it."""
    atoms = Atoms("OHHOHHH", positions=np.zeros((7, 3)))
    atoms.positions[0:3] = [[0, 0, 0], [-0.6, 0.75, 0], [-0.6, -0.75, 0]]
    atoms.positions[3:6] = [[2.5, 0, 0], [3.1, 0, 0.75], [3.1, 0, -0.75]]
    frames = np.repeat(atoms.positions[None], 20, axis=0)
    frames[:, 6, 0] = np.linspace(1.0, 1.5, 20)
    scheme = {"groups": {"hydronium": {"molecule": "H3O"}}, "relations": ["self"], "units": "molecules"}
    fixed = resolved(scheme, atoms, tmp_path, frames)
    assert "first frame" in fixed.notes[-1]
    assert (names_of(fixed, atoms, frames)[:, 0] == "hydronium").all()
    scheme["connectivity"] = {"frames": "every"}
    groups = resolved(scheme, atoms, tmp_path, frames)
    follower = Follower(groups, atoms.numbers, NO_BOX, atoms.pbc, groups.topologies[0])
    member, lists = follower.follow(frames)
    has_left = frames[:, 6, 0] > 1.25
    np.testing.assert_array_equal(np.array(groups.names)[member[:, 0]] == "hydronium", ~has_left)
    np.testing.assert_array_equal(np.array(groups.names)[member[:, 3]] == "hydronium", has_left)
    frame, atom, unit = lists[0]
    np.testing.assert_array_equal(unit[atom == 6], np.where(has_left, 3, 0))
    assert len(frame) == 20 * 7


# ------------------------------------------------------------------------------------------------------------ relations


def dimer(distance: float = 2.9, tilt: float = 0.0) -> Atoms:
    """Return two water molecules; the first donates, its O-H tilted away from the other O by an angle [degrees]."""
    donor = molecule("H2O")
    donor.translate(-donor.positions[0])
    arm = donor.positions[1] / np.linalg.norm(donor.positions[1])
    turn, _ = Rotation.align_vectors([[1, 0, 0], [0, 0, 1]], [arm, np.cross(arm, donor.positions[2])])
    turn = Rotation.from_euler("z", tilt, degrees=True) * turn
    donor.positions = turn.apply(donor.positions)
    acceptor = molecule("H2O")
    acceptor.translate(-acceptor.positions[0])
    tail = acceptor.positions[1:].mean(axis=0)
    turn, _ = Rotation.align_vectors([[1, 0, 0]], [tail / np.linalg.norm(tail)])
    acceptor.positions = turn.apply(acceptor.positions) + [distance, 0, 0]
    return donor + acceptor


@pytest.mark.parametrize("dense", [0, 6144])
@pytest.mark.parametrize(
    ("distance", "tilt", "criterion", "is_bonded"),
    [
        (2.9, 0.0, None, True),
        (2.9, 29.0, None, True),
        (2.9, 31.0, None, False),
        (3.49, 0.0, None, True),
        (3.51, 0.0, None, False),
        (3.6, 35.0, {"distance": 3.7, "angle": 40}, True),
        (2.9, 0.0, {"acceptors": ["N"]}, False),
    ],
)
def test_hydrogen_bond_of_the_dimer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dense: int,
    distance: float,
    tilt: float,
    criterion: dict[str, Any] | None,
    is_bonded: bool,
) -> None:
    scheme = {
        "groups": {"water": {"molecule": "H2O"}},
        "relations": ["self", "hydrogen bonded" if criterion is None else {"hydrogen bonded": criterion}],
    }
    monkeypatch.setattr("mimyria_wf.membership._DENSE", dense)
    for box, shift in ((NO_BOX, 0.0), (BOX, 0.0), (BOX, 1.5)):  # the last time across a boundary
        atoms = dimer(distance, tilt)
        atoms.cell, atoms.pbc = box, box.any()
        atoms.positions += shift
        if atoms.pbc.any():
            atoms.wrap()
        groups = resolved(scheme, atoms, tmp_path)
        _, lists = Follower(groups, atoms.numbers, box, atoms.pbc, groups.topologies[0]).follow(atoms.positions[None])
        _, first, second = lists[2]
        assert len(first) == (18 if is_bonded else 0)  # all pairs of atoms of the two, in both orders
        assert all((i < 3) != (j < 3) for i, j in zip(first, second, strict=True))


def test_relations_are_a_partition_in_order(tmp_path: Path) -> None:
    atoms = water_box()
    frames = moving(atoms, 4)
    near = {"neighbours": {"distance": 3.3, "by": {"species": "O"}}, "name": "near"}
    topology = find_topology(atoms.positions, atoms.numbers, BOX, atoms.pbc)
    oxygens = np.flatnonzero(atoms.numbers == 8)
    for units in ("atoms", "molecules"):
        scheme = {**SHELLS, "units": units, "relations": ["self", near, "same_molecule", "other"]}
        groups = resolved(scheme, atoms, tmp_path, frames)
        assert groups.relations == ("self", "near", "same molecule", "other")
        follower = Follower(groups, atoms.numbers, BOX, atoms.pbc, topology)
        _, lists = follower.follow(frames)
        owner = np.arange(37) if units == "atoms" else topology.molecule
        assert follower.n_units == owner.max() + 1
        for k, positions in enumerate(frames):
            is_near = brute_distances(positions[oxygens], positions[oxygens], BOX) <= 3.3
            np.fill_diagonal(is_near, False)
            near_units = {(owner[oxygens[i]], owner[oxygens[j]]) for i, j in zip(*np.nonzero(is_near), strict=True)}
            expected: list[set[tuple[int, int]]] = [set(), set(), set()]
            for i in range(37):
                for unit in range(follower.n_units):
                    members = np.flatnonzero(owner == unit)
                    if owner[i] == unit:
                        expected[0].add((i, unit))
                    elif (owner[i], unit) in near_units:
                        expected[1].add((i, unit))
                    elif topology.molecule[members[0]] == topology.molecule[i]:
                        expected[2].add((i, unit))
            for (frame, atom, unit), pairs in zip(lists[1:], expected, strict=True):
                is_now = frame == k
                assert set(zip(atom[is_now], unit[is_now], strict=True)) == pairs
    beyond = resolved({**SHELLS, "relations": ["self", "other molecule", near]}, atoms, tmp_path, frames)
    assert beyond.relations == ("self", "near", "other", "other molecule")
    _, lists = Follower(beyond, atoms.numbers, BOX, atoms.pbc, topology).follow(frames)
    assert len(lists[2][0]) == 0  # pairs of other molecules are taken already
    assert len(lists[3][0]) == 4 * 12 * 6  # what is left lies within molecules


# ----------------------------------------------------------------------------------------------------------------- RDFs


def model_rdf(peaks: list[tuple[float, float]], noise: float = 0.0, seed: int = 0) -> Rdf:
    distance = np.arange(0.01, 8.0, 0.02)
    clean = 1 / (1 + np.exp(-(distance - 6.0) / 0.3)) if noise >= 0 else 0 * distance
    for centre, height in peaks:
        clean = clean + height * np.exp(-0.5 * ((distance - centre) / 0.25) ** 2)
    random = np.random.default_rng(seed).normal(size=(10, len(distance)))
    blocks = clean + abs(noise) * np.sqrt(clean) * random  # as counts scatter
    return Rdf(distance, blocks.mean(axis=0), blocks, True, 100)


def test_minima_of_an_rdf() -> None:
    first = find_minimum(model_rdf([(2.8, 2.5), (4.5, 1.2)]), 1, "O around O")
    assert first.distance == pytest.approx(3.7, abs=0.1)
    noisy = [
        find_minimum(model_rdf([(2.8, 2.5), (4.5, 1.2)], 0.3, seed), 1, "O around O").distance for seed in range(20)
    ]
    assert np.ptp(noisy) < 0.35  # in the flat gap
    flat = find_minimum(model_rdf([(2.0, 3.0), (5.0, 3.0)]), 1, "O around O")
    assert flat.distance == pytest.approx(3.4, abs=0.15)  # middle of an empty gap
    with pytest.raises(GroupError, match=r"no first minimum .* O around O .*peaks at 2\.8\d A.*give `distance`"):
        find_minimum(model_rdf([(2.8, 2.5)], -1e-9), 1, "O around O")


def shell_box(tmp_path: Path, n_frames: int = 60) -> tuple[Path, Atoms]:
    """An ion with six atoms at 3 A and twenty at 5 A, each jittered."""
    rng = np.random.default_rng(1)
    shells = []
    for n, radius in ((6, 3.0), (20, 5.0)):
        directions = rng.normal(size=(n, 3))
        shells.append(radius * directions / np.linalg.norm(directions, axis=1)[:, None])
    places = np.concatenate([np.zeros((1, 3)), *shells])
    atoms = Atoms("Na" + "He" * 26, positions=places)
    frames = places + rng.normal(scale=0.15, size=(n_frames, 27, 3))
    run = Trajectory(atoms.numbers, frames, np.zeros_like(frames), NO_BOX, atoms.pbc, 1.0, atoms.get_masses(), "run")
    write_trajectory(tmp_path / "run.h5", run)
    return tmp_path / "run.h5", atoms


def test_minimum_found_in_trajectories_and_reported(tmp_path: Path) -> None:
    path, atoms = shell_box(tmp_path)
    scheme = tmp_path / "groups.yaml"
    scheme.write_text(
        """# shells
groups:
  ion: {species: Na}
  first: {within: {of: ion, minimum: 1}}
relations: [self, {neighbours: {distance: 2.0}, name: near}]
"""
    )
    report = groups_report(scheme, [path, path], tmp_path / "out" / "resolved.yaml")
    assert report["minima"][0]["distance"] == pytest.approx(4.0, abs=0.2)
    assert report["minima"][0]["n_frames"] == 120
    assert report["groups"]["first"]["atoms"] == pytest.approx(6)
    assert report["groups"]["rest"]["atoms"] == pytest.approx(20)
    assert report["relations"]["self"] == 1
    assert sum(report["relations"].values()) == pytest.approx(27)
    assert report["files"] == ["resolved.yaml", "resolved_rdf.csv", "resolved_rdf.png"]
    assert all((tmp_path / "out" / name).is_file() for name in report["files"])
    reader = open_trajectory(path)
    again = read_group_scheme(tmp_path / "out" / "resolved.yaml")
    assert again.groups["first"].within is not None
    assert again.groups["first"].within.distance == report["minima"][0]["distance"]
    before = read_group_scheme(scheme).resolve([reader])
    np.testing.assert_array_equal(
        *(names_of(g, atoms, reader.read().positions) for g in (before, again.resolve([reader])))
    )
    third = parse_group_scheme({"groups": {"a": {"within": {"of": {"species": "Na"}, "minimum": 2}}}})
    with pytest.raises(GroupError, match="no second minimum was found in the RDF of all atoms around Na"):
        third.resolve([reader])


def test_report_names_empty_groups(tmp_path: Path) -> None:
    path, _ = shell_box(tmp_path)
    (tmp_path / "g.yaml").write_text("groups: {far: {within: {of: {species: Na}, from: 20, distance: 30}}}")
    report = groups_report(tmp_path / "g.yaml", [path])
    assert any("group far is empty" in note for note in report["notes"])


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file is empty"),
        ("groups: {}", "groups is wrong"),
        ("group: {a: {species: O}}", r"line 1.*group is an unknown key; known are groups, relations"),
        ("groups:\n  a: {element: O}", r"line 2.*groups.a.element is an unknown key; known are species, index"),
        ("groups:\n  a: {species: Xx}", "'Xx' is no chemical symbol"),
        ("groups:\n  a: {molecule: water}", "'water' is no formula"),
        ("groups:\n  a: {index: -1}", "atom indices are numbers from 0"),
        ("groups:\n  a: {index: 5-2}", "runs backwards"),
        ("groups:\n  a: {}", "the condition is empty"),
        ("groups:\n  a: [b]", "put it under all: or any:"),
        ("groups:\n  a: b", "refers to the group 'b', which is not defined; there are a"),
        ("groups:\n  a: {not: b}\n  b: {not: a}", "circle: a -> b -> a"),
        ("groups:\n  a: {not: rest}", "refers to rest"),
        ("groups:\n  rest: {species: O}", "rest is made automatically"),
        ("groups:\n  a: {within: {of: {species: O}}}", "give either distance"),
        ("groups:\n  a: {within: {of: {species: O}, distance: 3, minimum: 1}}", "give either distance"),
        ("groups:\n  a: {within: {of: {species: O}, distance: 2, from: 3}}", "larger than from"),
        ("groups:\n  a: {within: {of: {species: O}, radius: 2}}", "known are of, by, from, distance"),
        ("groups:\n  a: {species: O}\nrelations: [bonded]", "'bonded' is no relation; relations are self"),
        ("groups:\n  a: {species: O}\nrelations: [neighbours]", "needs a distance"),
        ("groups:\n  a: {species: O}\nrelations: [self, self]", "two relations are named 'self'"),
        ("groups:\n  a: {species: O}\nrelations: [{hydrogen bonded: {length: 3}}]", "known are distance, angle"),
        ("groups:\n  a: {species: O}\nunits: residues", "'atoms' or 'molecules'"),
        ("groups:\n  a: {species: O}\nevery: 0", "every is wrong"),
        ("groups:\n  a: {species: O}\n  a: {species: H}", "twice"),
        ("groups:\n  a: {index: 0-10000000000}", "beyond the 10000000 atoms"),
        ("groups:\n  a: {within: {of: {species: O}}}", "1, 2 or 3"),
        ("groups:\n  a: {within: {of: {species: O}, minimum: true}}", "minimum is wrong: expected a number, got true"),
        ("groups:\n  a: {within: {of: {species: O}, distance: 3, from: true}}", "from is wrong: expected a number"),
        ("groups:\n  a: {within: {of: {species: O}, distance: true}}", "distance is wrong: expected a number"),
        ("groups:\n  a: {within: {of: {species: O}, distance: yes}}", "distance is wrong: .*'yes'"),
        ("groups:\n  a: {within: {of: {species: O}, distance: 3, whole_molecules: 1}}", "boolean, got 1"),
        ("groups:\n  a: {species: O}\nevery: true", "every is wrong: expected a number, got true"),
        ("groups:\n  a: {species: O}\nconnectivity: {scale: true}", "scale is wrong: expected a number"),
        ("groups:\n  a: {species: O}\nrelations: [{hydrogen bonded: false}]", "no switch, got false"),
        ("groups:\n  a: {species: O}\nrelations: [{neighbours: true}]", "no switch, got true"),
        ("groups:\n  a: {species: O}\nrelations: [{self: false}]", "no switch, got false"),
        ("groups:\n  a: {species: O}\nrelations: [{neighbours: {distance: true}}]", "expected a number, got true"),
        ("groups:\n  a: {species: O}\nrelations: [{kind: neighbours, name: n}]", "neighbours needs a distance"),
        (
            "groups:\n  a: {species: O}\nrelations: [{kind: self, name: s, neighbours: {distance: 3}}]",
            "a relation has one of the keys",
        ),
        ("groups:\n  a: {species: O}\nrelations: [{kind: bonded}]", "'bonded' is no relation"),
        ("groups:\n  a: {species: O}\nrelations: [{neighbours: 3, name: 'a, b'}]", "commas and ' x '"),
        ("groups:\n  a: {species: O}\nrelations: [{neighbours: 3, name: a x b}]", "commas and ' x '"),
        ("groups:\n  a: {species: O}\nrelations: [{neighbours: 3, name: ''}]", "cannot be named ''"),
        (
            "groups:\n  a: {species: O}\nrelations: [other molecule, {other molecule: , name: far}]",
            "'other molecule' and 'far' are both other molecule",
        ),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "groups.yaml"
    path.write_text(text)
    with pytest.raises(GroupError, match=message) as raised:
        read_group_scheme(path)
    assert "\n" not in str(raised.value)
    assert "groups.yaml" in str(raised.value)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"species": "S"}, "species S, the atoms are Cl, H, O"),
        ({"molecule": "H3O"}, "no molecule H3O in the first frame; molecules found: Cl, H2O"),
        ({"index": [0, 37]}, "atom index 37, but run has 37 atoms, 0 to 36"),
    ],
)
def test_what_does_not_occur(tmp_path: Path, condition: dict[str, Any], message: str) -> None:
    with pytest.raises(GroupError, match=message):
        resolved({"groups": {"a": {"not": condition}}}, water_box(), tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GroupError, match="no such file of groups"):
        read_group_scheme(tmp_path / "none.yaml")


def test_frames_share_conditions() -> None:
    """A group named several times is looked up once."""
    atoms = water_box()
    scheme = parse_group_scheme(SHELLS)
    topology = find_topology(atoms.positions, atoms.numbers, BOX, atoms.pbc)
    frames = Frames(atoms.positions[None], BOX, atoms.pbc, MinimumImage(BOX, atoms.pbc), topology, scheme.groups)
    assert frames.named("ion") is frames.named("ion")


def test_relations_by_kind_are_those_by_key() -> None:
    by_key = parse_group_scheme(
        {"groups": {"a": {"species": "O"}}, "relations": [{"hydrogen bonded": {}, "name": "h"}]}
    )
    by_kind = {"groups": {"a": {"species": "O"}}, "relations": [{"kind": "hydrogen bonded", "name": "h"}]}
    assert parse_group_scheme(by_kind) == by_key
    assert parse_group_scheme(by_key.model_dump()) == by_key  # what a record holds


def test_a_file_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_bytes("# Lösung\ngroups: {a: {species: O}}".encode("latin-1"))
    with pytest.raises(GroupError, match=r"g.yaml: byte 3 is not UTF-8"):
        read_group_scheme(tmp_path / "g.yaml")


@pytest.mark.parametrize("dense", [0, 10**6])
def test_what_is_at_the_very_distance_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense: int) -> None:
    """Intervals are (from, distance], for shells and relations, and for either way to find pairs."""
    monkeypatch.setattr("mimyria_wf.membership._DENSE", dense)
    atoms = Atoms("ArHeHeHe", positions=[[0, 0, 0], [3, 0, 0], [0, 4, 0], [0, 0, 4.001]])
    within = {"of": {"species": "Ar"}, "by": {"species": "He"}, "from": 3.0, "distance": 4.0}
    scheme = {"groups": {"shell": {"within": within}}, "relations": ["self", {"neighbours": 4.0}]}
    for box in (NO_BOX, 20 * np.eye(3)):
        atoms.cell, atoms.pbc = box, box.any()
        groups = resolved(scheme, atoms, tmp_path)
        assert list(names_of(groups, atoms)[0]) == ["rest", "rest", "shell", "rest"]
        _, lists = Follower(groups, atoms.numbers, box, atoms.pbc, groups.topologies[0]).follow(atoms.positions[None])
        assert set(lists[2][2][lists[2][1] == 0]) == {1, 2}


@pytest.mark.parametrize("metal", ["Zn", "Al", "Fe", "Cu", "Ni", "Co", "Mn", "La", "Na", "Mg"])
def test_a_metal_keeps_its_shell_apart(tmp_path: Path, metal: str) -> None:
    """Six waters at 2.0 A, which is below 1.25 times the sum of the covalent radii of many metals and oxygen."""
    water = molecule("H2O")
    water.translate(-water.positions[0])
    tail = water.positions[1:].mean(axis=0) / np.linalg.norm(water.positions[1:].mean(axis=0))
    atoms = Atoms(metal, positions=np.zeros((1, 3)))
    for direction in (*np.eye(3), *-np.eye(3)):
        one = water.copy()
        turn, _ = Rotation.align_vectors([direction], [tail])
        one.positions = turn.apply(one.positions) + 2.0 * direction
        atoms += one
    scheme = {"groups": {"shell": {"within": {"of": {"species": metal}, "distance": 2.6}}}}
    groups = resolved(scheme, atoms, tmp_path)
    assert groups.topologies[0].counts() == {"H2O": 6, metal: 1}
    assert list(names_of(groups, atoms)[0]) == ["rest", *["shell"] * 18]
    assert not any(metal in note for note in groups.notes)
    organometallic = resolved(scheme | {"connectivity": {"ions": []}}, atoms, tmp_path)
    assert organometallic.topologies[0].n_molecules == 1
    assert any(f"{metal} is no ion by connectivity.ions and bonded" in note for note in organometallic.notes)


def test_groups_held_over_frames_are_noted(tmp_path: Path) -> None:
    groups = resolved({"groups": {"a": {"species": "O"}}, "every": 2}, water_box(), tmp_path)
    assert "taken once in 2 frames" in groups.notes_on([{"a": 1.0, "rest": 1.0}])[-1]


def pair_distribution(atoms: Atoms, frames: Array, path: Path) -> Rdf:
    """Return the RDF of all atoms around all, as a shell of single atoms would be bound by it."""
    run = Trajectory(
        atoms.numbers, frames, np.zeros_like(frames), np.array(atoms.cell), atoms.pbc, 1.0, atoms.get_masses(), "run"
    )
    write_trajectory(path / "run.h5", run)
    reader = open_trajectory(path / "run.h5")
    species = atoms.get_chemical_symbols()[0]
    scheme = parse_group_scheme({"groups": {"a": {"species": species}}})
    topology = find_topology(frames[0], atoms.numbers, np.array(atoms.cell), atoms.pbc)
    return _Resolver(scheme, [reader], [topology]).rdf(scheme.groups["a"], None, "all", whole_molecules=False)


def test_rdf_of_an_ideal_gas_is_one(tmp_path: Path) -> None:
    """In a skewed box up to 8 A, beyond half of it, where images of images count."""
    n_frames, n_atoms = 200, 30
    frames = np.random.default_rng(0).uniform(size=(n_frames, n_atoms, 3)) @ BOX
    rdf = pair_distribution(Atoms(f"He{n_atoms}", cell=BOX, pbc=True), frames, tmp_path)
    assert rdf.is_normalised
    edges = np.array([1.0, 3.0, 4.5, 6.0, 7.0, 8.0])
    for low, high in itertools.pairwise(edges):
        chosen = (rdf.distance > low) & (rdf.distance < high)
        mean = np.average(rdf.density[chosen], weights=rdf.distance[chosen] ** 2)
        n_pairs = n_frames * n_atoms**2 / 2 * 4 / 3 * np.pi * (high**3 - low**3) / abs(np.linalg.det(BOX))
        assert mean == pytest.approx(1, abs=4 / np.sqrt(n_pairs))  # four standard errors of counting


def test_coordination_numbers_of_a_crystal(tmp_path: Path) -> None:
    """Argon, face-centred cubic: 12 at a/sqrt 2, 6 at a, 24 at a sqrt(3/2)."""
    crystal = bulk("Ar", "fcc", a=5.26) * (3, 3, 3)
    rdf = pair_distribution(crystal, crystal.positions[None], tmp_path)
    per_atom = rdf.density * 4 / 3 * np.pi * ((rdf.distance + 0.01) ** 3 - (rdf.distance - 0.01) ** 3)
    per_atom *= (len(crystal) - 1) / crystal.get_volume()
    assert [per_atom[rdf.distance < r].sum() for r in (4.5, 5.8, 7.0)] == pytest.approx([12, 18, 42], rel=1e-6)
