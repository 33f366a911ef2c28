import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from numpy.typing import NDArray

from mimyria_wf.cca import CcaSpectra, Part, additivity, cca_spectra
from mimyria_wf.derivatives import (
    PAIRS,
    PAIRS_OF,
    DerivativeSeries,
    DerivativeWriter,
    derivative_series,
    join_derivatives,
    read_derivatives,
    write_derivatives,
)
from mimyria_wf.errors import SpectrumError
from mimyria_wf.groups import parse_group_scheme
from mimyria_wf.related import RelatedCorrelator
from mimyria_wf.spectrum import LINESHAPES, SpectrumSettings, ir_spectrum, raman_spectrum
from mimyria_wf.trajectory import Trajectory, open_trajectory, write_trajectory

Array = NDArray[Any]
QUICK = SpectrumSettings(window_length=40.0, n_bootstrap=20, upper_wavenumber=4000)


class Known:
    """Groups and relations that are given frame by frame."""

    def __init__(self, member: Array, relation: Array | None, names: tuple[str, ...], max_lag: int = 40) -> None:
        self.names = names
        n_relations = 0 if relation is None else int(relation.max()) + 1
        self.relations = tuple(f"r{k}" for k in range(n_relations))
        self.max_lag, self.n_units = max_lag, member.shape[1]
        self.member, self.relation, self.n_seen = member, relation, 0

    def follow(self, positions: Array) -> tuple[Array, list[tuple[Array, Array, Array]]]:
        chosen = slice(self.n_seen, self.n_seen + len(positions))
        self.n_seen += len(positions)
        member = self.member[chosen]
        if self.relation is None:
            return member, []
        frame, atom = (x.ravel() for x in np.indices(member.shape))
        found: list[tuple[Array, Array, Array]] = [(frame, atom, atom)]
        for k in range(len(self.relations) - 1):
            found.append(np.nonzero(self.relation[chosen] == k))  # type: ignore[arg-type]
        return member, found


def random_run(n_frames: int = 300, n_atoms: int = 6, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "velocities": 0.01 * rng.normal(size=(n_frames, n_atoms, 3)),
        "positions": rng.normal(size=(n_frames, n_atoms, 3)),
        "apt": rng.normal(size=(n_frames, n_atoms, 3, 3)),
        "pgt": rng.normal(size=(n_frames, n_atoms, 3, 3, 3)),
        "member": rng.integers(3, size=(n_frames, n_atoms)),
        "relation": rng.integers(3, size=(n_frames, n_atoms, n_atoms)),
    }


def series_of(run: dict[str, Array], relations: bool = True, name: str = "run", **more: Any) -> DerivativeSeries:
    groups = Known(run["member"], run["relation"] if relations else None, ("a", "b", "c"))
    n_atoms = run["velocities"].shape[1]
    return derivative_series(
        run["velocities"],
        run["positions"],
        np.ones(n_atoms),
        1.0,
        apt=run["apt"],
        pgt=run["pgt"],
        name=name,
        volume=200.0,
        removed_motion="none",
        groups=groups,
        **more,
    )


@pytest.mark.parametrize("sizes", [[700], [100, 256, 344], [1] * 40 + [660]])
def test_related_sums_against_all_pairs(sizes: list[int]) -> None:
    """Relations at the earlier time, groups each at its own (Eqs. 27 and 31), over blocks and their seams."""
    rng = np.random.default_rng(0)
    n_frames, n_atoms, n_groups, n_relations, max_lag = 700, 4, 2, 3, 9
    values = rng.normal(size=(n_frames, n_atoms, 3))
    groups = rng.integers(n_groups, size=(n_frames, n_atoms))
    relation = rng.integers(n_relations, size=(n_frames, n_atoms, n_atoms))
    known = Known(groups, relation, ("a", "b"))
    correlator = RelatedCorrelator(max_lag, n_groups=n_groups, n_relations=n_relations, n_units=n_atoms, blocks=(2, 1))
    start = 0
    for size in sizes:
        member, pairs = known.follow(np.empty((size, n_atoms, 3)))
        correlator.add(values[start : start + size], member, pairs)
        start += size
    components = (((0, 0), (0, 1), (1, 1)), ((0, 0),))
    found = correlator.sums(components)
    pairs_of_groups = list(itertools.combinations_with_replacement(range(n_groups), 2))
    for row, (r, (a, b)) in enumerate(itertools.product(range(n_relations), pairs_of_groups)):
        for block, chosen in enumerate(components):
            for column, (c, d) in enumerate(chosen):
                for lag in (0, 1, max_lag):
                    stop, total = n_frames - lag, 0.0
                    for x, y in {(a, b), (b, a)}:
                        for p, q in ((c, d), (d, c)):
                            early = values[:stop, :, 2 * block + p] * (groups[:stop] == x)
                            late = values[lag:, :, 2 * block + q] * (groups[lag:] == y)
                            total += 0.5 * np.einsum("tij,ti,tj->", relation[:stop] == r, early, late)
                    assert found[block][row, lag, column] == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("relations", [False, True])
def test_parts_sum_to_the_total(tmp_path: Path, relations: bool) -> None:
    runs = [series_of(random_run(n, seed=n), relations, f"run-{n}") for n in (300, 431)]
    cca = cca_spectra(runs, QUICK)
    assert cca is not None
    ir, raman = ir_spectrum(runs, QUICK), raman_spectrum(runs, QUICK)
    found = additivity(cca, ir, raman)
    assert len(found) == 1 + 6 + 2 + 21
    assert max(found.values()) < 1e-10
    assert len(cca.parts) == 6 * (3 if relations else 1)
    lost = replace(cca, ir_per_trajectory=cca.ir_per_trajectory[:, 1:], parts=cca.parts[1:])  # type: ignore[index]
    assert additivity(lost, ir, None)["ir"] > 1e-3
    # iso and vh of the parts are those of their lineshapes
    assert cca.weighted_lineshapes is not None
    assert cca.ir_tensor is not None
    np.testing.assert_allclose(cca.ir_tensor[:, :3].mean(axis=1), cca.ir, rtol=1e-10, atol=1e-12)
    assert np.isfinite(cca.ir_error).all()
    assert cca.weighted_errors["vv"].shape == (len(cca.parts), len(cca.wavenumber))


def test_relations_summed_are_the_groups() -> None:
    run = random_run()
    with_relations, without = (cca_spectra([series_of(run, r)], QUICK) for r in (True, False))
    assert with_relations is not None
    assert without is not None
    summed = with_relations.ir.reshape(3, 6, -1).sum(axis=0)
    np.testing.assert_allclose(summed, without.ir, atol=1e-10 * np.abs(without.ir).max())
    assert [p.name for p in without.parts] == ["a", "a x b", "a x c", "b", "b x c", "c"]
    assert with_relations.parts[1].name == "a x b, r0"


def test_static_groups_are_spectra_of_their_own() -> None:
    """A group's part with itself is the spectrum of its atoms alone; two groups' part what their sum has more."""
    run = random_run()
    member = np.array([0, 0, 1, 1, 1, 0])
    kept = {k: run[k] for k in ("velocities", "positions", "apt", "pgt")}

    def spectrum(atoms: Array) -> tuple[Array, Array]:
        some = [
            derivative_series(
                kept["velocities"][:, atoms],
                kept["positions"][:, atoms],
                np.ones(len(atoms)),
                1.0,
                apt=kept["apt"][:, atoms],
                pgt=kept["pgt"][:, atoms],
                volume=200.0,
                removed_motion="none",
            )
        ]
        settings = replace(QUICK, temperature=300.0)
        return ir_spectrum(some, settings).n_alpha, raman_spectrum(some, settings).weighted_lineshapes

    moving = run | {"member": np.repeat(member[None], 300, axis=0)}
    static = derivative_series(
        **kept,
        masses=np.ones(6),
        timestep=1.0,
        volume=200.0,
        groups=member,
        group_names=("a", "b"),  # type: ignore[arg-type]
    )
    for one in (series_of(moving, relations=False), static):
        cca = cca_spectra([one], replace(QUICK, temperature=300.0))
        assert cca is not None
        assert cca.weighted_lineshapes is not None
        assert [part.name for part in cca.parts] == ["a", "a x b", "b"]  # c is never occupied
        first, second, both = (spectrum(np.flatnonzero(m)) for m in (member == 0, member == 1, member >= 0))
        for found, k in ((cca.ir, 0), (cca.weighted_lineshapes, 1)):
            scale = np.abs(both[k]).max()
            np.testing.assert_allclose(found[0], first[k], atol=1e-10 * scale)
            np.testing.assert_allclose(found[2], second[k], atol=1e-10 * scale)
            np.testing.assert_allclose(found[1], both[k] - first[k] - second[k], atol=1e-10 * scale)
        assert cca.ir[1].min() < 0  # a cross term


def test_oscillators_that_cross_shells() -> None:
    """Independent charges oscillate with their own phases and hop between two shells.

    Each atom's own correlation is known: ``1/2 A^2 w^2 cos(w t)`` times the probability to be in one shell now and in
    the other (or the same) at t, which for a telegraph process with rate k is ``1/4 (1 +- exp(-2 k t))``. What
    different atoms have in common vanishes.
    """
    rng = np.random.default_rng(5)
    n_frames, n_atoms, rate = 4000, 60, 0.02
    w, amplitude = 0.15, 0.05
    time = np.arange(n_frames)[:, None, None]
    velocities = -amplitude * w * np.sin(w * time + rng.uniform(0, 2 * np.pi, (n_atoms, 3)))
    hops = rng.uniform(size=(n_frames, n_atoms)) < 0.5 * (1 - np.exp(-2 * rate))
    member = (rng.integers(2, size=n_atoms) + hops.cumsum(axis=0)) % 2
    relation = np.broadcast_to(1 - np.eye(n_atoms, dtype=int), (n_frames, n_atoms, n_atoms))
    groups = Known(member, relation, ("inner", "outer"), max_lag=100)
    apt = np.broadcast_to(np.eye(3), (n_frames, n_atoms, 3, 3))
    series = derivative_series(
        velocities, 0 * velocities, np.ones(n_atoms), 1.0, apt=apt, volume=1.0, removed_motion="none", groups=groups
    )
    assert series.related is not None
    assert series.related.dipole is not None
    lags = np.arange(101)
    traces = series.related.dipole[:, :, :3].sum(axis=2) / (n_frames - lags)
    own = dict(zip(series.related.parts, traces, strict=True))
    cosine = n_atoms * 3 * 0.5 * (amplitude * w) ** 2 * np.cos(w * lags)
    decay = np.exp(-2 * rate * lags)
    scale = cosine[0]
    # 60 atoms for 4000 fs at 25 fs a hop: 1e4 hops, so that an occupation is known to 1 %
    for group in ("inner", "outer"):
        np.testing.assert_allclose(own[group, group, "r0"], cosine * (1 + decay) / 4, atol=0.02 * scale)
        assert np.abs(own[group, group, "r1"]).max() < 0.3 * scale  # 3600 pairs of random phases
    np.testing.assert_allclose(own["inner", "outer", "r0"], cosine * (1 - decay) / 2, atol=0.02 * scale)
    assert own["inner", "outer", "r0"][0] == pytest.approx(0, abs=1e-12 * scale)  # nobody is in both at once
    summed = own["inner", "inner", "r0"] + own["outer", "outer", "r0"] + own["inner", "outer", "r0"]
    np.testing.assert_allclose(summed, cosine, atol=2e-3 * scale)


def test_runs_of_their_own_length_temperature_and_volume() -> None:
    runs = [replace(series_of(random_run(n, seed=n), False, f"{n}"), volume=v) for n, v in ((300, 100.0), (500, 250.0))]
    cca = cca_spectra(iter(runs), QUICK)
    alone = [cca_spectra([run], QUICK) for run in runs]
    assert cca is not None
    for k, one in enumerate(alone):
        assert one is not None
        np.testing.assert_allclose(cca.ir_per_trajectory[k], one.ir, rtol=1e-12)  # type: ignore[index]
    weighted = (300 * alone[0].ir + 500 * alone[1].ir) / 800  # type: ignore[union-attr]
    np.testing.assert_allclose(cca.ir, weighted, rtol=1e-9, atol=1e-12)
    fixed = cca_spectra(runs[:1], replace(QUICK, temperature=2 * runs[0].temperature))
    assert fixed is not None
    np.testing.assert_allclose(2 * fixed.ir, alone[0].ir, rtol=1e-12)  # type: ignore[union-attr]


def test_groups_in_another_order_and_missing_ones() -> None:
    run = random_run()
    first = series_of(run, False, "first")
    order = [2, 0, 1]
    assert first.dipole_derivative is not None
    assert first.polarizability_derivative is not None
    assert first.occupancies is not None
    turned = replace(
        first,
        name="turned",
        dipole_derivative=first.dipole_derivative[:, order],
        polarizability_derivative=first.polarizability_derivative[:, order],
        group_names=("c", "a", "b"),
        occupancies=first.occupancies[order],
    )
    cca = cca_spectra([first, turned], QUICK)
    assert cca is not None
    assert cca.ir_per_trajectory is not None
    np.testing.assert_allclose(cca.ir_per_trajectory[0], cca.ir_per_trajectory[1], rtol=1e-9, atol=1e-12)
    two = replace(
        first,
        name="two",
        dipole_derivative=first.dipole_derivative[:, :2],
        polarizability_derivative=first.polarizability_derivative[:, :2],
        group_names=("a", "b"),
        occupancies=first.occupancies[:2],
    )
    runs = [two, first]
    mixed = cca_spectra(runs, QUICK)
    assert mixed is not None
    assert mixed.ir_per_trajectory is not None
    assert not mixed.ir_per_trajectory[0, [p.second for p in mixed.parts].index("c")].any()
    assert max(additivity(mixed, ir_spectrum(runs, QUICK), raman_spectrum(runs, QUICK)).values()) < 1e-10


def test_corrections_apply_to_parts() -> None:
    settings = replace(QUICK, verlet_timestep=0.5)
    runs = [replace(series_of(random_run(), False), origin="differences")]
    cca = cca_spectra(runs, settings)
    assert cca is not None
    assert max(additivity(cca, ir_spectrum(runs, settings), raman_spectrum(runs, settings)).values()) < 1e-10
    plain = cca_spectra(runs, QUICK)
    assert plain is not None
    assert np.abs(plain.ir.sum(axis=0) - ir_spectrum(runs, settings).n_alpha[: len(plain.wavenumber)]).max() > 0


def test_nothing_to_decompose() -> None:
    run = replace(series_of(random_run(), False), occupancies=None)
    assert run.dipole_derivative is not None
    one = replace(
        run, dipole_derivative=run.dipole_derivative[:, :1], polarizability_derivative=None, group_names=("all",)
    )
    assert cca_spectra([one, one], QUICK) is None
    assert cca_spectra([], QUICK) is None
    for runs in ([run, one], [one, run]):  # whichever comes first
        with pytest.raises(SpectrumError, match="run has no groups, run has a, b, c"):
            cca_spectra(runs, QUICK)


def test_mistakes() -> None:
    run, other = series_of(random_run()), series_of(random_run(), False, "other")
    with pytest.raises(SpectrumError, match=r"correlated over 40 fs, less than the window of 60 fs.*--max-lag-fs"):
        cca_spectra([run], replace(QUICK, window_length=60.0))
    with pytest.raises(SpectrumError, match="other has the relations none, run has r0, r1, r2"):
        cca_spectra([run, other], QUICK)
    with pytest.raises(SpectrumError, match="mean cannot be subtracted"):
        cca_spectra([run], replace(QUICK, subtract_mean=True))
    with pytest.raises(SpectrumError, match="time step"):
        cca_spectra([other, replace(other, timestep=2.0)], QUICK)
    with pytest.raises(SpectrumError, match="shorter than the window"):
        cca_spectra([other], replace(QUICK, window_length=400.0))
    with pytest.raises(SpectrumError, match="n alpha needs a volume"):
        cca_spectra([replace(other, volume=None)], QUICK)
    with pytest.raises(SpectrumError, match="cannot be joined"):
        join_derivatives([run, run])


def test_mean_is_subtracted_by_group() -> None:
    runs = [series_of(random_run(), False)]
    settings = replace(QUICK, subtract_mean=True)
    cca = cca_spectra(runs, settings)
    assert cca is not None
    assert additivity(cca, ir_spectrum(runs, settings), None)["ir"] < 1e-10


def test_files_keep_groups_and_relations(tmp_path: Path) -> None:
    run = random_run()
    series = series_of(run)
    write_derivatives(tmp_path / "a.h5", replace(series, origin="differences"))
    with DerivativeWriter(
        tmp_path / "b.h5",
        name="run",
        timestep=1.0,
        masses=np.ones(6),
        volume=200.0,
        removed_motion="none",
        groups=Known(run["member"], run["relation"], ("a", "b", "c")),
    ) as writer:
        for part in (slice(0, 7), slice(7, 300)):
            writer.append(run["velocities"][part], run["positions"][part], apt=run["apt"][part], pgt=run["pgt"][part])
    assert series.related is not None
    assert series.occupancies is not None
    for name in ("a.h5", "b.h5"):
        found = read_derivatives(tmp_path / name)
        assert found.related is not None
        assert found.occupancies is not None
        assert found.related.parts == series.related.parts
        np.testing.assert_allclose(found.related.dipole, series.related.dipole, atol=1e-12)
        np.testing.assert_allclose(found.related.polarizability, series.related.polarizability, atol=1e-10)
        np.testing.assert_allclose(found.dipole_derivative, series.dipole_derivative, atol=1e-15)
        np.testing.assert_allclose(found.occupancies, series.occupancies)
        assert found.occupancies.sum() == pytest.approx(6)
        assert found.origin == ("differences" if name == "a.h5" else "velocities")
    assert PAIRS_OF == {3: PAIRS, 6: LINESHAPES}


WATERS: dict[str, Any] = {
    "units": "molecules",
    "groups": {
        "tagged": {"molecule_of": {"index": 0}},
        "shell": {"within": {"of": {"all": ["tagged", {"species": "O"}]}, "by": {"species": "O"}, "distance": 3.4}},
    },
    "relations": ["self", "hydrogen bonded", {"neighbours": 3.0}],
}


def test_shells_of_a_tagged_water_in_a_periodic_box(tmp_path: Path) -> None:
    """Waters drift past one another in a small skewed box; a distance beyond half the box counts images."""
    rng = np.random.default_rng(2)
    box = np.array([[6.5, 0, 0], [1.5, 6.2, 0], [-1.0, 0.7, 6.0]])
    grid = np.array(list(itertools.product((0.1, 0.6), repeat=3))) @ box
    one = molecule("H2O").positions
    places = grid[:, None] + one
    drift = np.cumsum(rng.normal(scale=0.15, size=(240, 8, 1, 3)), axis=0)
    positions = (places + drift).reshape(240, 24, 3)
    velocities = 0.01 * rng.normal(size=positions.shape)
    numbers = np.tile(molecule("H2O").numbers, 8)
    masses = np.tile(molecule("H2O").get_masses(), 8)
    run = Trajectory(numbers, positions, velocities, box, np.ones(3, dtype=bool), 1.0, masses, "run")
    write_trajectory(tmp_path / "run.h5", run)
    reader = open_trajectory(tmp_path / "run.h5")
    for scheme in (WATERS, {k: v for k, v in WATERS.items() if k != "relations"}, WATERS | {"units": "atoms"}):
        groups = parse_group_scheme(scheme).resolve([reader])
        member = groups.memberships(positions, numbers, box, np.ones(3, dtype=bool))
        assert len(np.unique(member, axis=0)) > 5
        series = derivative_series(
            velocities,
            positions,
            masses,
            1.0,
            apt=rng.normal(size=(240, 24, 3, 3)),
            pgt=rng.normal(size=(240, 24, 3, 3, 3)),
            volume=float(np.linalg.det(box)),
            is_periodic=True,
            groups=groups.follower(reader, max_lag=40),
        )
        cca: CcaSpectra | None = cca_spectra([series], QUICK)
        assert cca is not None
        assert Part("tagged", "shell", groups.relations[-1] if groups.relations else None) in cca.parts
        found = additivity(cca, ir_spectrum([series], QUICK), raman_spectrum([series], QUICK))
        assert max(found.values()) < 1e-10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": {"shell": {"within": {"distance": 3.6}}}}, "groups.shell.within.distance is 3.6 in second and 3.4"),
        ({"units": "molecules"}, 'units is "molecules" in second and "atoms" in first'),
        ({"every": 5}, "every is 5 in second and 1 in first"),
        ({"connectivity": {"scale": 1.3}}, "connectivity.scale is 1.3 in second"),
        ({"relations": ["self", {"neighbours": {"distance": 4.0}}]}, "relations.1..neighbours.distance is 4.0"),
    ],
)
def test_runs_of_different_shells_are_not_averaged(change: dict[str, Any], message: str) -> None:
    record = {
        "groups": {"shell": {"within": {"distance": 3.4}}},
        "relations": ["self", {"neighbours": {"distance": 3.5}}],
        "units": "atoms",
        "every": 1,
        "connectivity": {"scale": 1.25},
        "minima": [{"distance": 3.4, "n_frames": 100}],
    }
    first = replace(series_of(random_run(), False, "first"), metadata={"groups": record, "start": 0, "stop": 300})
    same = replace(first, name="same", metadata={"groups": record | {"minima": []}, "start": 300, "stop": 600})
    assert cca_spectra([first, same], QUICK) is not None
    assert join_derivatives([first, same]).n_frames == 600
    second = replace(same, name="second", metadata=same.metadata | {"groups": record | change})
    with pytest.raises(SpectrumError, match=f"{message}.*mimyria-wf groups") as raised:
        cca_spectra([first, second], QUICK)
    assert "\n" not in str(raised.value)
    with pytest.raises(SpectrumError, match=message):
        join_derivatives([first, second])


def test_the_order_of_groups_is_part_of_their_meaning() -> None:
    """An atom belongs to the first group that holds."""
    sections = {"a": {"species": ["O"]}, "b": {"molecule": ["H2O"]}}
    first = replace(series_of(random_run(), False, "first"), metadata={"groups": {"groups": sections}})
    turned = {"groups": {"groups": dict(reversed(sections.items()))}}
    with pytest.raises(SpectrumError, match=r'order of groups is \["b", "a"\] in second'):
        cca_spectra([first, replace(first, name="second", metadata=turned)], QUICK)


def test_runs_that_do_not_say_where_they_belong_are_not_joined() -> None:
    one = series_of(random_run(), False, "one")
    with pytest.raises(SpectrumError, match="one does not say which frames of a run it holds"):
        join_derivatives([one, replace(one, name="two")])
    with pytest.raises(SpectrumError, match="two does not say"):
        join_derivatives([replace(one, metadata={"start": 0, "stop": 300}), replace(one, name="two")])
