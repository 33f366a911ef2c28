"""The cross-correlation analysis against sums written out, over i, j, time origins and images."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mimyria_wf.cca import cca_spectra
from mimyria_wf.derivatives import PAIRS, DerivativeSeries, DerivativeWriter, read_derivatives
from mimyria_wf.groups import parse_group_scheme
from mimyria_wf.spectrum import LINESHAPES, SpectrumSettings
from mimyria_wf.trajectory import Trajectory, open_trajectory, write_trajectory

Array = NDArray[Any]
IMAGES = np.array(list(itertools.product(range(-2, 3), repeat=3)), dtype=float)
NUMBERS = np.array([17, *[8, 1, 1] * 4])
MOLECULE = np.array([0, *np.repeat([1, 2, 3, 4], 3)])
OXYGENS = np.array([1, 4, 7, 10])
MAX_LAG = 12
NAMES = ("ion", "tagged", "shell", "rest")
SCHEME: dict[str, Any] = {
    "groups": {
        "ion": {"species": "Cl"},
        "tagged": {"molecule_of": {"index": 1}},
        "shell": {"within": {"of": {"index": 1}, "by": {"species": "O"}, "from": 2.7, "distance": 3.4}},
    }
}
RELATIONS = ["self", "same molecule", "hydrogen bonded", {"neighbours": {"distance": 2.9, "by": {"species": "O"}}}]


def wandering(n_frames: int, seed: int, size: float = 1.0) -> tuple[Array, Array]:
    """Return positions of an ion and four waters that wander and turn, not wrapped, and their triclinic cell."""
    rng = np.random.default_rng(seed)
    box = size * np.array([[5.2, 0, 0], [1.6, 5.0, 0], [-1.3, 0.9, 4.9]])
    places = np.array([[0.05, 0.05, 0.05], [0.5, 0, 0.1], [0, 0.5, 0.1], [0, 0.1, 0.5], [0.5, 0.5, 0.5]]) @ box
    places = places + np.cumsum(rng.normal(scale=0.06, size=(n_frames, 5, 3)), axis=0)
    water = molecule("H2O")
    arms = water.positions - water.positions[0]
    positions = np.empty((n_frames, 13, 3))
    positions[:, 0] = places[:, 0]
    for k in range(4):
        turn = Rotation.random(random_state=seed + k)
        for frame in range(n_frames):
            turn = Rotation.from_rotvec(rng.normal(scale=0.12, size=3)) * turn
            positions[frame, 1 + 3 * k : 4 + 3 * k] = places[frame, 1 + k] + turn.apply(arms)
    return positions, box


def images_of(vector: Array, box: Array) -> Array:
    return np.asarray(vector + IMAGES @ box)


def groups_by_hand(positions: Array, box: Array) -> Array:
    """Return the index in NAMES of each atom, (n_atoms,)."""
    member = np.full(13, 3)
    for k in (2, 3, 4):
        oxygen = OXYGENS[k - 1]
        if 2.7 < np.linalg.norm(images_of(positions[oxygen] - positions[1], box), axis=1).min() <= 3.4:
            member[k == MOLECULE] = 2
    member[MOLECULE == 1], member[0] = 1, 0
    return member


def relations_by_hand(positions: Array, box: Array, units: str) -> Array:
    """Return the index of each pair's relation, (n_atoms, n_atoms); 4 for what is left."""
    near, bonded = np.zeros((5, 5), dtype=bool), np.zeros((5, 5), dtype=bool)
    near_atoms = np.zeros((13, 13), dtype=bool)
    for p, q in itertools.permutations(range(4), 2):
        donor, acceptor = OXYGENS[p], OXYGENS[q]
        for arm in images_of(positions[acceptor] - positions[donor], box):
            distance = np.linalg.norm(arm)
            if distance <= 2.9:
                near[p + 1, q + 1] = near_atoms[donor, acceptor] = True
            for hydrogen in (donor + 1, donor + 2):
                bond = positions[hydrogen] - positions[donor]
                angle = np.degrees(np.arccos(bond @ arm / np.linalg.norm(bond) / distance))
                if distance <= 3.5 and angle <= 30:
                    bonded[p + 1, q + 1] = bonded[q + 1, p + 1] = True
    found = np.full((13, 13), 4)
    for i, j in itertools.product(range(13), repeat=2):
        a, b = MOLECULE[i], MOLECULE[j]
        if i == j or (units == "molecules" and a == b):
            found[i, j] = 0
        elif a == b:
            found[i, j] = 1
        elif bonded[a, b]:
            found[i, j] = 2
        elif near_atoms[i, j] if units == "atoms" else near[a, b]:
            found[i, j] = 3
    return found


def run_of(
    path: Path, scheme: dict[str, Any], n_frames: int, seed: int, chunks: int, **more: Any
) -> tuple[DerivativeSeries, dict[str, Array]]:
    """Return a run as the package makes it and what to make it from by hand."""
    rng = np.random.default_rng(100 + seed)
    positions, box = wandering(n_frames, seed, **more)
    masses = np.where(NUMBERS == 8, 16.0, np.where(NUMBERS == 1, 1.0, 35.5))
    raw = {
        "velocities": 0.01 * (1 + seed) * rng.normal(size=positions.shape),
        "apt": rng.normal(size=(n_frames, 13, 3, 3)),
        "pgt": rng.normal(size=(n_frames, 13, 3, 3, 3)),
        "positions": positions,
        "box": box,
    }
    run = Trajectory(NUMBERS, positions, raw["velocities"], box, np.ones(3, dtype=bool), 1.5, masses, f"run-{seed}")
    write_trajectory(path / f"{seed}.h5", run)
    reader = open_trajectory(path / f"{seed}.h5")
    groups = parse_group_scheme(scheme).resolve([reader])
    assert groups.names == NAMES
    out = path / f"{seed}-out.h5"
    with DerivativeWriter(
        out,
        name=f"run-{seed}",
        timestep=1.5,
        masses=masses,
        volume=float(np.linalg.det(box)),
        is_periodic=True,
        groups=groups.follower(reader, max_lag=MAX_LAG),
        group_names=groups.names,
    ) as writer:
        for start in range(0, n_frames, chunks):
            some = slice(start, start + chunks)
            writer.append(raw["velocities"][some], positions[some], apt=raw["apt"][some], pgt=raw["pgt"][some])
    return read_derivatives(out), raw


def sums_by_hand(raw: dict[str, Array], units: str | None) -> tuple[dict[tuple[str, str, int], Array], ...]:
    """Return sums over origins t and pairs i, j of R_ij(t) G_a,i(t) u_i,c(t) G_b,j(t + k) u_j,d(t + k), made even."""
    n_frames = len(raw["positions"])
    bohr = 0.529177210903
    dipole = np.einsum("tiaf,tia->tif", raw["apt"], raw["velocities"])
    tensor = np.einsum("tiabc,tia->tibc", raw["pgt"], raw["velocities"]) / bohr
    tensor = 0.5 * (tensor + tensor.transpose(0, 1, 3, 2))
    alpha = np.stack([tensor[..., a, b] for a, b in PAIRS], axis=-1)
    member = np.array([groups_by_hand(one, raw["box"]) for one in raw["positions"]])
    if units is None:
        relation = np.zeros((n_frames, 13, 13), dtype=int)
    else:
        relation = np.array([relations_by_hand(one, raw["box"], units) for one in raw["positions"]])
        assert len(np.unique(relation)) == (5 if units == "atoms" else 4)
    assert len(np.unique(member, axis=0)) > 2  # waters enter and leave the shell
    found = []
    for values, pairs in ((dipole, PAIRS), (alpha, LINESHAPES)):
        sums: dict[tuple[str, str, int], Array] = {}
        for r, (a, b) in itertools.product(
            range(relation.max() + 1), itertools.combinations_with_replacement(range(4), 2)
        ):
            one = np.zeros((MAX_LAG + 1, len(pairs)))
            for lag in range(MAX_LAG + 1):
                early, late = slice(0, n_frames - lag), slice(lag, n_frames)
                for x, y in {(a, b), (b, a)}:
                    is_pair = (relation[early] == r) & (member[early] == x)[:, :, None] & (member[late] == y)[:, None]
                    products = np.einsum("tic,tid->cd", values[early], is_pair @ values[late], optimize=True)
                    one[lag] += [0.5 * (products[c, d] + products[d, c]) for c, d in pairs]
            sums[NAMES[a], NAMES[b], r] = one
        found.append(sums)
    return tuple(found)


@pytest.mark.parametrize("units", ["atoms", "molecules"])
@pytest.mark.parametrize("dense", [0, 6144])
def test_each_relation_against_all_pairs_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: str, dense: int
) -> None:
    monkeypatch.setattr("mimyria_wf.membership._DENSE", dense)
    series, raw = run_of(tmp_path, SCHEME | {"relations": RELATIONS, "units": units}, 61, 0, 7)
    dipole, alpha = sums_by_hand(raw, units)
    assert series.related is not None
    assert series.related.dipole is not None
    assert series.related.polarizability is not None
    names = ("self", "same molecule", "hydrogen bonded", "neighbours", "other")
    assert len(series.related.parts) == 5 * 10
    for k, (a, b, name) in enumerate(series.related.parts):
        for found, expected in ((series.related.dipole[k], dipole), (series.related.polarizability[k], alpha)):
            by_hand = expected.get((a, b, names.index(name)), np.zeros_like(found))
            scale = max(float(np.abs(one).max()) for one in expected.values())
            np.testing.assert_allclose(found, by_hand, atol=1e-10 * scale)  # round-off of the transforms


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("units", [None, "molecules"])
def test_spectra_of_parts_of_two_runs(tmp_path: Path, estimator: Any, units: str | None) -> None:
    """Length, temperature and volume of each run's own; Eqs. 2 and 7 as sums of cosines."""
    scheme = SCHEME if units is None else SCHEME | {"relations": RELATIONS, "units": units}
    made = [run_of(tmp_path, scheme, 61, 0, 9), run_of(tmp_path, scheme, 47, 3, 11, size=1.04)]
    settings = SpectrumSettings(window_length=1.5 * MAX_LAG, n_bootstrap=2, estimator=estimator, upper_wavenumber=3000)
    runs = [replace(one, temperature=t) for (one, _), t in zip(made, (280.0, 450.0), strict=True)]
    cca = cca_spectra(runs, settings)
    assert cca is not None
    assert cca.ir_tensor is not None
    assert cca.weighted_lineshapes is not None
    lags = np.arange(MAX_LAG + 1)
    light = 2.99792458e-5  # cm/fs
    cosines = np.cos(2 * np.pi * light * np.multiply.outer(cca.wavenumber, 1.5 * lags))
    weights = 1.5 * np.cos(0.5 * np.pi * lags / MAX_LAG) ** 2 * np.where(lags == 0, 1, 2)
    by_run: list[tuple[dict[Any, Array], dict[Any, Array]]] = []
    for run, (_, raw) in zip(runs, made, strict=True):
        counts = run.n_frames - lags if estimator == "unbiased" else np.full(MAX_LAG + 1, run.n_frames)
        assert run.volume is not None
        # beta/(6 V c eps0) in SI, e^2 A^2/fs to C^2 m^2/s, m^-1 to cm^-1
        factor = 1 / (6 * 1.380649e-23 * run.temperature * run.volume * 1e-30 * 2.99792458e8 * 8.8541878128e-12)
        factor *= (1.602176634e-19 * 1e-10) ** 2 * 1e15 / 100
        dipole, alpha = sums_by_hand(raw, units)
        transformed = []
        for sums, prefactor in ((dipole, 3 * factor), (alpha, 1 / ((2 * np.pi) ** 2 * light))):
            transformed.append(
                {key: prefactor * (cosines @ (weights[:, None] * one / counts[:, None])).T for key, one in sums.items()}
            )
        by_run.append((transformed[0], transformed[1]))
    names = ("self", "same molecule", "hydrogen bonded", "neighbours", "other")
    share = np.array([61, 47]) / 108
    for kind, found in enumerate((cca.ir_tensor, cca.weighted_lineshapes)):
        scale = np.abs(found).max()
        for k, part in enumerate(cca.parts):
            key = (part.first, part.second, 0 if part.relation is None else names.index(part.relation))
            expected = sum(
                w * one[kind].get(key, np.zeros_like(found[k])) for w, one in zip(share, by_run, strict=True)
            )
            np.testing.assert_allclose(found[k], expected, atol=1e-6 * scale)  # constants to 1e-8, sums to round-off
