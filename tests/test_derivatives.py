"""Contraction with velocities, equipartition squares and the derivatives file."""

from dataclasses import replace

import numpy as np
import pytest

from mimyria_wf.derivatives import (
    DerivativeAccumulator,
    DerivativeSeries,
    DerivativeWriter,
    Members,
    contract,
    derivative_series,
    find_removed_motion,
    join_derivative_files,
    join_derivatives,
    kinetic_temperature,
    mean_square,
    projected_square,
    read_derivatives,
    write_derivatives,
)
from mimyria_wf.errors import SpectrumError
from mimyria_wf.spectra_files import read_series
from mimyria_wf.units import AMU_A2_PER_FS2, BOHR, BOLTZMANN_EV

MASSES = np.array([15.999, 1.008, 1.008, 32.06])


def run(n_frames=50, seed=0, removed="none"):
    """Thermal velocities at 300 K around fixed positions, with rigid motions projected out."""
    rng = np.random.default_rng(seed)
    positions = np.repeat(rng.normal(size=(1, 4, 3)) * 2, n_frames, axis=0)
    spread = np.sqrt(BOLTZMANN_EV * 300 / AMU_A2_PER_FS2 / MASSES)
    velocities = rng.normal(size=(n_frames, 4, 3)) * spread[:, None]
    if removed != "none":
        basis = rigid_basis(positions[0], removed)
        u = velocities.reshape(n_frames, -1) * np.repeat(np.sqrt(MASSES), 3)
        velocities = ((u - u @ basis @ basis.T) / np.repeat(np.sqrt(MASSES), 3)).reshape(n_frames, 4, 3)
    apt = rng.normal(size=(n_frames, 4, 3, 3))
    pgt = rng.normal(size=(n_frames, 4, 3, 3, 3))
    return positions, velocities, apt, pgt + pgt.swapaxes(-1, -2)


def rigid_basis(positions, removed):
    """Orthonormal mass-weighted rigid motions, (3N, 3 or 6), by an independent route (QR)."""
    relative = positions - MASSES @ positions / MASSES.sum()
    columns = [np.tile(e, 4) for e in np.eye(3)]
    if removed == "translation+rotation":
        columns += [np.cross(e, relative).ravel() for e in np.eye(3)]
    return np.linalg.qr(np.array(columns).T * np.repeat(np.sqrt(MASSES), 3)[:, None])[0]


def test_contract_is_the_chain_rule():
    _, velocities, apt, pgt = run()
    dipole, polarizability = contract(apt, pgt, velocities)
    i = 7
    expected = sum(apt[i, a].T @ velocities[i, a] for a in range(4))  # rows are displacements
    np.testing.assert_allclose(dipole[i, 0], expected, rtol=1e-13)
    full = np.einsum("iajk,ia->jk", pgt[i], velocities[i] / BOHR)
    np.testing.assert_allclose(
        polarizability[i, 0], [full[0, 0], full[1, 1], full[2, 2], full[1, 2], full[0, 2], full[0, 1]], rtol=1e-12
    )


def test_groups_add_up_to_the_total():
    _, velocities, apt, pgt = run()
    parts = contract(apt, pgt, velocities, groups=np.array([0, 1, 1, 2]), n_groups=3)
    for part, total in zip(parts, contract(apt, pgt, velocities)):
        assert part.shape[1] == 3
        np.testing.assert_allclose(part.sum(axis=1), total[:, 0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("removed", ["none", "translation", "translation+rotation"])
def test_projected_square_is_what_an_explicit_projector_gives(removed):
    positions, _, apt, _ = run(3)
    got = projected_square(apt, MASSES, positions, removed)
    for i in range(3):
        weighted = (apt[i] / np.sqrt(MASSES)[:, None, None]).reshape(12, 3)
        keep = np.eye(12)
        if removed != "none":
            basis = rigid_basis(positions[i], removed)
            keep -= basis @ basis.T
        np.testing.assert_allclose(got[i], weighted.T @ keep @ weighted, atol=1e-12)


@pytest.mark.parametrize("removed", ["none", "translation", "translation+rotation"])
def test_equipartition_holds_with_rigid_motions_removed(removed):
    n = 40000
    positions, velocities, _, _ = run(n, seed=3, removed=removed)
    rng = np.random.default_rng(5)
    apt = np.repeat(rng.normal(size=(1, 4, 3, 3)), n, axis=0)
    pgt = np.repeat(rng.normal(size=(1, 4, 3, 3, 3)), n, axis=0)
    series = derivative_series(velocities, positions, MASSES, 0.5, apt=apt, pgt=pgt)
    assert series.removed_motion == removed
    assert series.degrees_of_freedom == {"none": 12, "translation": 9, "translation+rotation": 6}[removed]
    assert series.temperature == pytest.approx(300, rel=0.01)  # sqrt(2 / (6 * 40000)) = 0.3 %
    m = series.total_dipole_derivative
    expected = mean_square(series.apt_square, series.temperature)
    # 40000 independent frames: the trace is known to about 0.7 %
    assert np.trace(m.T @ m) / n == pytest.approx(np.trace(expected), rel=0.02)
    a = series.total_polarizability_derivative
    expected = mean_square(series.pgt_square, series.temperature) / BOHR**2
    np.testing.assert_allclose(a.T @ a / n, expected, atol=0.03 * np.trace(expected) / 6)


def test_removed_rotation_is_not_claimed_for_a_periodic_system():
    positions, velocities, _, _ = run(20, removed="translation+rotation")
    assert find_removed_motion(MASSES, positions, velocities, is_periodic=True) == "translation"


def test_temperature_of_known_velocities():
    velocities = np.full((2, 1, 3), 0.01)
    expected = 10 * 3e-4 * AMU_A2_PER_FS2 / (3 * BOLTZMANN_EV)
    np.testing.assert_allclose(kinetic_temperature(np.array([10.0]), velocities, 3), expected)


def test_chunks_give_the_same_file_as_the_whole(tmp_path):
    positions, velocities, apt, pgt = run(50, removed="translation")
    groups = np.array([0, 1, 1, 0])
    kwargs = {"volume": 180.0, "groups": groups, "group_names": ("a", "b"), "metadata": {"model": "x"}}
    whole = derivative_series(velocities, positions, MASSES, 0.5, apt=apt, pgt=pgt, name="nve-000", **kwargs)
    write_derivatives(tmp_path / "whole.h5", whole)
    with DerivativeWriter(tmp_path / "chunks.h5", name="nve-000", timestep=0.5, masses=MASSES, **kwargs) as writer:
        for start in range(0, 50, 13):
            part = slice(start, start + 13)
            writer.append(velocities[part], positions[part], apt=apt[part], pgt=pgt[part])
    first, second = read_derivatives(tmp_path / "whole.h5"), read_derivatives(tmp_path / "chunks.h5")
    for series in (first, second):
        assert (series.name, series.timestep, series.group_names, series.volume) == ("nve-000", 0.5, ("a", "b"), 180.0)
        assert series.metadata == {"model": "x"}
        assert series.removed_motion == "translation"
        for key in (
            "dipole_derivative",
            "polarizability_derivative",
            "kinetic_temperature",
            "apt_square",
            "pgt_square",
        ):
            np.testing.assert_allclose(getattr(series, key), getattr(whole, key), rtol=1e-12)
        assert series.temperature == pytest.approx(whole.temperature, rel=1e-13)


def test_joined_parts_equal_the_whole(tmp_path):
    positions, velocities, apt, pgt = run(50, removed="translation")
    whole = derivative_series(velocities, positions, MASSES, 0.5, apt=apt, pgt=pgt, name="r")
    parts = []
    for i, part in enumerate((slice(0, 20), slice(20, 50))):
        tensors = {"apt": apt[part], "pgt": pgt[part]}
        frames = {"start": part.start, "stop": part.stop}
        parts.append(
            derivative_series(velocities[part], positions[part], MASSES, 0.5, **tensors, name=f"r{i}", metadata=frames)
        )
        write_derivatives(tmp_path / f"{i}.h5", parts[-1])
    assert join_derivative_files([tmp_path / "0.h5", tmp_path / "1.h5"], tmp_path / "r.h5", "r")["n_frames"] == 50
    joined = read_derivatives(tmp_path / "r.h5")
    for key in ("dipole_derivative", "polarizability_derivative", "kinetic_temperature", "apt_square", "pgt_square"):
        np.testing.assert_allclose(getattr(joined, key), getattr(whole, key), rtol=1e-12)
    assert joined.temperature == pytest.approx(whole.temperature, rel=1e-13)
    assert joined.members is None
    factors = np.array([0.9, 1.1])[:, None, None]
    committee = {"committee": {"n_members": 2, "seed": 0}}
    with_members = [
        replace(
            part,
            members=Members(factors * part.total_dipole_derivative, factors * part.total_polarizability_derivative),
            metadata={**part.metadata, **committee},
        )
        for part in parts
    ]
    members = join_derivatives(with_members).members
    np.testing.assert_allclose(members.dipole, factors * whole.total_dipole_derivative, rtol=1e-12)
    np.testing.assert_allclose(members.polarizability, factors * whole.total_polarizability_derivative, rtol=1e-12)
    with pytest.raises(SpectrumError, match="r1 has no members, other parts of the run have one"):
        join_derivatives([with_members[0], parts[1]])
    other = replace(with_members[1], metadata={**with_members[1].metadata, "committee": {"n_members": 2, "seed": 1}})
    with pytest.raises(SpectrumError, match="r0 and r1 were predicted with different committees"):
        join_derivatives([with_members[0], other])
    for change, message in (
        ({"timestep": 1.0}, "differ in timestep"),
        ({"pgt_square": None}, "r1 has no pgt_square"),
        ({"volume": 3.0}, "differ in volume"),
    ):
        with pytest.raises(SpectrumError, match=message):
            join_derivatives([parts[0], replace(parts[1], **change)])
    with pytest.raises(SpectrumError, match="no parts"):
        join_derivatives([])


def test_a_run_cut_off_leaves_no_file(tmp_path):
    positions, velocities, apt, _ = run(5)

    def write_and_fail():
        with DerivativeWriter(tmp_path / "x.h5", name="x", timestep=1.0, masses=MASSES) as writer:
            writer.append(velocities, positions, apt=apt)
            writer.append(velocities, positions, apt=np.full_like(apt, np.nan))

    with pytest.raises(SpectrumError, match="not finite"):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_bad_input_has_a_clear_line(tmp_path):
    positions, velocities, apt, pgt = run(5)
    good = derivative_series(velocities, positions, MASSES, 0.5, apt=apt, pgt=pgt, name="r")
    nan = good.dipole_derivative.copy()
    nan[3] = np.nan
    for change, message in (
        ({"dipole_derivative": nan}, "not finite at frame 3"),
        ({"dipole_derivative": None, "polarizability_derivative": None}, "neither"),
        ({"dipole_derivative": good.dipole_derivative[:3]}, "differ in length"),
        ({"dipole_derivative": np.zeros((5, 3))}, "must have shape"),
        ({"timestep": 0.0}, "timestep must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"volume": -1.0}, "volume must be positive"),
        ({"removed_motion": "all"}, "removed_motion"),
        ({"apt_square": np.zeros(3)}, "apt_square must have shape"),
    ):
        with pytest.raises(SpectrumError, match=message):
            replace(good, **change)
    with pytest.raises(SpectrumError, match="apt must have shape"):
        contract(apt[:, :2], None, velocities)
    with pytest.raises(SpectrumError, match="velocities must have shape"):
        DerivativeAccumulator(MASSES).add(velocities[:, :2], positions, apt)
    with pytest.raises(SpectrumError, match="no such file"):
        read_derivatives(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(SpectrumError, match="not a derivatives file"):
        read_derivatives(tmp_path / "text.h5")
    with (
        pytest.raises(SpectrumError, match="no frames"),
        DerivativeWriter(tmp_path / "e.h5", name="e", timestep=1.0, masses=MASSES),
    ):
        pass
    only_apt = DerivativeSeries("a", 0.5, 300.0, dipole_derivative=good.dipole_derivative)
    with pytest.raises(SpectrumError, match="PGT"):
        _ = only_apt.total_polarizability_derivative


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "run.h5"
    rng = np.random.default_rng(0)
    run = DerivativeSeries("a", 0.5, 300.0, rng.normal(size=(4000, 1, 3)), None, ("all",), volume=900.0)
    write_derivatives(path, run)
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:600], whole[:100]):
        path.write_bytes(part)
        with pytest.raises(SpectrumError, match=r"run\.h5 is truncated or damaged, .*make it again"):
            read_derivatives(path)
    for read in (read_derivatives, read_series):
        with pytest.raises(SpectrumError, match=r"is a folder; give its files, .*/\*\.h5"):
            read(tmp_path)


def test_members_must_go_with_the_prediction():
    dipole = np.ones((5, 1, 3))
    for members, message in (
        (Members(np.ones((2, 4, 3))), r"dipole of members must have shape \(2, 5, 3\), got \(2, 4, 3\)"),
        (Members(np.ones((2, 5, 3)), np.ones((2, 5, 6))), "must have the same targets, polarizability differs"),
        (Members(np.full((2, 5, 3), np.nan)), "dipole of members is not finite"),
    ):
        with pytest.raises(SpectrumError, match=message):
            DerivativeSeries("r", 0.5, 300.0, dipole_derivative=dipole, members=members)
