"""Spectra from files to files, and the comparison of two sets."""

import json
from dataclasses import replace
from itertools import combinations_with_replacement

import ase
import ase.io
import numpy as np
import pytest
from ase.data import atomic_masses

from mimyria_wf.correlation import group_correlations
from mimyria_wf.derivatives import (
    PAIRS,
    Members,
    RelatedSums,
    derivative_series,
    read_derivatives,
    write_derivatives,
)
from mimyria_wf.errors import SpectrumError, TrajectoryError
from mimyria_wf.exchange import read_jcamp
from mimyria_wf.intensity import RamanForm
from mimyria_wf.spectra_comparison import noise_floor
from mimyria_wf.spectra_files import compare_spectra, read_series, read_table, spectra_files
from mimyria_wf.spectra_output import caption_of, warning_of
from mimyria_wf.spectra_store import read_store
from mimyria_wf.spectrum import LINESHAPE_NAMES, LINESHAPES, SpectrumSettings, spectral_distance
from mimyria_wf.units import AMU_A2_PER_FS2, BOLTZMANN_EV, WAVENUMBER

NUMBERS = np.array([8, 1, 1])
MASSES = atomic_masses[NUMBERS]
QUICK = SpectrumSettings(n_bootstrap=50)


def water(seed, n_frames=2500, model_error=0.0, targets=("apt", "pgt")):
    """Three modes at 300 K about a fixed geometry, tensors that a seed fixes for all runs."""
    shape = np.random.default_rng(0)
    rest = np.array([[0.0, 0.0, 0.0], [0.0, 0.76, 0.59], [0.0, -0.76, 0.59]])
    mass = np.repeat(MASSES, 3)
    relative = rest - MASSES @ rest / MASSES.sum()
    rigid = [np.tile(e, 3) for e in np.eye(3)] + [np.cross(e, relative).ravel() for e in np.eye(3)]
    q, _ = np.linalg.qr(np.hstack([np.array(rigid).T * np.sqrt(mass)[:, None], shape.normal(size=(9, 3))]))
    tensors = {"apt": shape.normal(size=(3, 3, 3)), "pgt": shape.normal(size=(3, 3, 3, 3))}
    tensors["pgt"] += tensors["pgt"].swapaxes(2, 3)
    rng = np.random.default_rng(seed)
    omega = 2 * np.pi * np.array([1600.0, 3650.0, 3750.0]) / WAVENUMBER
    energy = rng.exponential(BOLTZMANN_EV * 300 / AMU_A2_PER_FS2, 3)
    phase = omega * 0.5 * np.arange(n_frames)[:, None] + rng.uniform(0, 6.28, 3)
    velocities = (np.sqrt(2 * energy) * np.cos(phase) @ q[:, 6:].T / np.sqrt(mass)).reshape(-1, 3, 3)
    positions = np.repeat(rest[None], n_frames, axis=0)
    noise = np.random.default_rng(99)
    series = {}
    for target in targets:
        t = tensors[target] * (1 + model_error * noise.normal(size=tensors[target].shape))
        series[target] = np.repeat(t[None], n_frames, axis=0)
    return positions, velocities, series


def write_runs(folder, n_runs=3, volume=180.0, **kwargs):
    folder.mkdir()
    paths = []
    for i in range(n_runs):
        positions, velocities, tensors = water(i + 1, **kwargs)
        series = derivative_series(velocities, positions, MASSES, 0.5, **tensors, name=f"nve-{i:03d}", volume=volume)
        paths.append(folder / f"nve-{i:03d}.h5")
        write_derivatives(paths[-1], series)
    return paths


def test_a_folder_of_spectra(tmp_path):
    seen = []
    paths = write_runs(tmp_path / "runs")
    summary = spectra_files(paths, tmp_path / "out", settings=QUICK, progress=lambda *args: seen.append(args))
    out = tmp_path / "out"
    assert json.loads((out / "summary.json").read_text()) == summary
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == sorted(summary["files"])
    assert {"ir.png", "ir.pdf", "ir_tensor.pdf", "raman.png", "jcamp/raman_vv.jdx", "spectra.nc"} <= set(
        summary["files"]
    )
    judged = [gate for gate in summary["gates"] if "equipartition" not in gate["name"]]
    assert all(
        gate["passed"] for gate in judged if not gate["name"].startswith("nve energy")
    )  # the runs carry no energies
    assert {"ir positivity", "raman vh positivity", "raman depolarization"} <= {gate["name"] for gate in judged}
    assert summary["f_sum"]["numerical"] == pytest.approx(1, abs=1e-3)
    assert summary["n_trajectories"] == 3
    assert summary["trajectories"][0]["removed_motion"] == "translation+rotation"
    assert any("nan below 66.71" in note for note in summary["notes"])
    assert seen[-1][0] == seen[-1][1]
    ir = read_table(out / "ir.csv")
    assert list(ir) == ["wavenumber", "n_alpha", "error"]
    assert np.isfinite(ir["error"]).all()
    tensor = read_table(out / "ir_tensor.csv")
    np.testing.assert_allclose((tensor["xx"] + tensor["yy"] + tensor["zz"]) / 3, ir["n_alpha"], atol=1e-8)
    raman = read_table(out / "raman.csv")
    assert list(raman)[:6] == ["wavenumber", "iso", "aniso", "vv", "vh", "depolarization"]
    assert np.array_equal(np.isnan(raman["iso"]), raman["wavenumber"] < 66.71)
    weighted = read_table(out / "raman_weighted.csv")
    # a ratio of two noises is no number
    is_strong = weighted["vv"] > 0.01 * weighted["vv"][raman["wavenumber"] > 66.71].max()
    for name in ("depolarization", "depolarization_error"):
        assert np.array_equal(np.isfinite(raman[name]), is_strong & (raman["wavenumber"] > 66.71))
    kept = raman["wavenumber"] > 67
    np.testing.assert_allclose(
        (weighted["vv"] / weighted["wavenumber"].clip(1) ** 2)[kept], raman["vv"][kept], rtol=1e-8
    )
    assert list(read_table(out / "lineshapes.csv"))[1:] == list(LINESHAPE_NAMES)
    assert np.isfinite(read_table(out / "lineshapes_weighted.csv")["xxxx"]).all()


def with_members(paths, scale=0.1, n_members=40, note=None):
    """Add to runs of :func:`write_runs` members whose tensors are off by one random factor a member."""
    factors = 1 + scale * np.random.default_rng(7).normal(size=n_members)
    factors += 1 - factors.mean()
    for path in paths:
        series = read_derivatives(path)
        members = Members(
            factors[:, None, None] * series.total_dipole_derivative,
            factors[:, None, None] * series.total_polarizability_derivative,
        )
        metadata = {"committee": {"n_members": n_members, "seed": 0, "models": note or {}}}
        write_derivatives(path, replace(series, members=members, metadata=metadata))
    return factors


def test_members_give_model_errors(tmp_path):
    """A member that is off by a factor f has f^2 times the spectrum: errors and distances are known."""
    paths = write_runs(tmp_path / "runs")
    bare = spectra_files(paths, tmp_path / "bare", settings=QUICK)
    factors = with_members(paths)
    np.testing.assert_allclose(
        read_derivatives(paths[0]).members.dipole[5],
        factors[5] * read_derivatives(paths[0]).total_dipole_derivative,
        rtol=1e-6,  # single precision
        atol=1e-9,
    )
    summary = spectra_files(paths, tmp_path / "out", settings=QUICK)
    out, relative = tmp_path / "out", np.sqrt(((factors**2 - 1) ** 2).mean())
    distance = (np.abs(factors**2 - 1) / (factors**2 + 1)).mean()
    for name, kinds in (
        ("ir", ["n_alpha"]),
        ("raman", ["iso", "aniso", "vv", "vh"]),
        ("raman_weighted", ["iso", "vh"]),
    ):
        with_them, without = (read_table(folder / f"{name}.csv") for folder in (out, tmp_path / "bare"))
        assert list(with_them)[: len(without)] == list(without)  # columns are added, none is changed
        assert all(np.array_equal(with_them[key], without[key], equal_nan=True) for key in without)
        for kind in kinds:
            prefix = "" if kind == "n_alpha" else f"{kind}_"
            strong = with_them[kind] > 1e-3 * np.nanmax(with_them[kind])
            model = with_them[f"{prefix}model_error"]
            np.testing.assert_allclose(model[strong], relative * with_them[kind][strong], rtol=2e-5)
            total = np.hypot(model, with_them[f"{prefix}error"])
            np.testing.assert_allclose(with_them[f"{prefix}total_error"], total, rtol=1e-8)
    record = summary["model_error"]
    assert record["n_members"] == 40
    assert set(record["distances"]) == {"ir", "raman_vv", "raman_vh", "raman_iso"}
    for found in record["distances"].values():
        assert found["distance"] == pytest.approx(distance, rel=1e-3)
        assert found["lower"] < found["distance"] < found["upper"]
    assert "model_error" not in bare
    assert json.loads((out / "summary.json").read_text())["model_error"] == record
    stored = read_store(out)
    assert stored.ir.members.shape[0] == len(stored.raman.members) == 40
    np.testing.assert_allclose(stored.ir.model_error, read_table(out / "ir.csv")["model_error"], rtol=1e-6)
    assert read_store(tmp_path / "bare").ir.members is None
    assert (out / "ir.png").read_bytes() != (tmp_path / "bare" / "ir.png").read_bytes()


def test_a_calibration_that_flatters_is_noted(tmp_path):
    paths = write_runs(tmp_path / "runs", n_runs=2)
    with_members(paths, note={"apt": {"calibration": {"trunk_saw_held_out": True}}})
    notes = spectra_files(paths, tmp_path / "out", settings=QUICK, draws=False)["notes"]
    assert sum("lower bound: the apt model was calibrated on labels that it was trained on" in n for n in notes) == 1


def test_runs_of_different_committees_are_refused(tmp_path):
    paths = write_runs(tmp_path / "runs", n_runs=2)
    with_members(paths[:1])
    with pytest.raises(SpectrumError, match="nve-000 has members of a committee and nve-001 has none"):
        spectra_files(paths, tmp_path / "out", settings=QUICK, draws=False)
    with_members(paths[1:], n_members=30)
    with pytest.raises(SpectrumError, match="nve-000 and nve-001 were predicted with different committees"):
        spectra_files(paths, tmp_path / "out", settings=QUICK, draws=False)


def test_extxyz_with_velocities_and_tensors_gives_the_same_spectra(tmp_path):
    positions, velocities, tensors = water(1, n_frames=1200)
    frames = []
    for i in range(1200):
        atoms = ase.Atoms(numbers=NUMBERS, positions=positions[i], info={"time": 0.5 * i})
        atoms.set_array("vel", velocities[i])
        atoms.set_array("apt", tensors["apt"][i].reshape(3, 9))
        atoms.set_array("pgt", tensors["pgt"][i].reshape(3, 27))
        frames.append(atoms)
    ase.io.write(tmp_path / "run.extxyz", frames, format="extxyz")
    series = read_series(tmp_path / "run.extxyz", volume=180.0)
    expected = derivative_series(velocities, positions, MASSES, 0.5, **tensors)
    assert series.timestep == pytest.approx(0.5)
    assert series.removed_motion == "translation+rotation"
    assert series.temperature == pytest.approx(expected.temperature, rel=1e-5)
    # extxyz keeps 8 decimals: velocities of some 1e-2 A/fs, tensors of order 1
    np.testing.assert_allclose(series.dipole_derivative, expected.dipole_derivative, atol=1e-6)
    np.testing.assert_allclose(series.polarizability_derivative, expected.polarizability_derivative, atol=1e-6)
    summary = spectra_files([tmp_path / "run.extxyz"], tmp_path / "out", settings=QUICK, draws=False)
    assert any("nominal 1000 A^3" in note for note in summary["notes"])
    assert any("one trajectory" in note for note in summary["notes"])
    assert not any(gate["name"] == "velocities fit positions" for gate in summary["gates"])  # the atoms stand still
    for factor, passed in ((1.0, True), (10.18, False)):  # in A/fs, and in ASE's unit
        for i, atoms in enumerate(frames):
            atoms.positions = positions[0] + 1e-3 * np.sin(0.1 * i) * np.arange(9).reshape(3, 3)
            atoms.set_array("vel", factor * 1e-3 * 0.2 * np.cos(0.1 * i) * np.arange(9).reshape(3, 3))
        ase.io.write(tmp_path / "moving.extxyz", frames, format="extxyz")
        found = spectra_files([tmp_path / "moving.extxyz"], tmp_path / "moving", settings=QUICK, draws=False)
        (gate,) = (gate for gate in found["gates"] if gate["name"] == "velocities fit positions")
        assert gate["passed"] is passed
        assert ("check the unit" in gate["text"]) is not passed
    for atoms in frames:
        del atoms.arrays["vel"]
    ase.io.write(tmp_path / "still.extxyz", frames[:3], format="extxyz")
    with pytest.raises(TrajectoryError, match="no velocities"):
        read_series(tmp_path / "still.extxyz")


def test_compare(tmp_path):
    spectra_files(write_runs(tmp_path / "a"), tmp_path / "explicit", settings=QUICK, draws=False)
    predicted = write_runs(tmp_path / "b", model_error=0.05)
    spectra_files(predicted, tmp_path / "predicted", settings=QUICK, draws=False)
    same = compare_spectra(tmp_path / "explicit", tmp_path / "explicit")
    assert same["largest"] == 0
    result = compare_spectra(tmp_path / "explicit", tmp_path / "predicted", plot=tmp_path / "both.png")
    assert result["is_paired"]
    assert set(result["spectra"]) == {"ir", "raman_iso", "raman_vv", "raman_vh"}
    for entry in result["spectra"].values():
        assert 0 < entry["distance"] < 0.2
        assert 0 <= entry["lower"] <= entry["distance"] * 1.01
        assert entry["upper"] >= entry["distance"] * 0.99
    assert (tmp_path / "both.png").stat().st_size > 10_000
    json.dumps(result, allow_nan=False)
    ir = compare_spectra(tmp_path / "explicit" / "ir.csv", tmp_path / "predicted" / "ir.csv")
    assert ir["spectra"]["ir"] == result["spectra"]["ir"]
    others = write_runs(tmp_path / "c", n_runs=2)
    spectra_files(others, tmp_path / "two", settings=QUICK, draws=False)
    assert not compare_spectra(tmp_path / "explicit", tmp_path / "two")["is_paired"]
    table = tmp_path / "measured.csv"
    table.write_text("wavenumber,n_alpha\n0,1\n2000,2\n4000,1\n")
    measured = compare_spectra(tmp_path / "explicit", table)
    assert list(measured["spectra"]) == ["ir"]
    assert result["warnings"] == []
    assert result["cca"] is None
    assert result["notes"] == ["raman: 34 undefined points up to 65.2 cm^-1 left out"]
    assert any("interpolated" in note for note in measured["notes"])


def test_noise_of_other_runs_is_no_difference():
    """Sets of one truth stay below the limit, a difference above the noise does not, whatever the number of runs."""
    rng = np.random.default_rng(0)
    nu = np.arange(0, 4000, 40.0)

    def truth(shift):
        return np.exp(-(((nu - 1600) / 85) ** 2)) + 2 * np.exp(-(((nu - 3400 - shift) / 210) ** 2))

    found = {}
    for n_runs in (2, 4, 8):
        for shift in (0, 300):
            n_above, distances, floors = 0, [], []
            for _ in range(40):
                a, b = (truth(s) * rng.exponential(size=(n_runs, len(nu))) for s in (0, shift))
                frames = np.full(n_runs, 1000)
                floor = noise_floor(nu, a, b, frames, frames, n_bootstrap=100)
                distances.append(spectral_distance(nu, a.mean(axis=0), b.mean(axis=0)))
                floors.append(floor.mean)
                n_above += distances[-1] > floor.limit
            found[n_runs, shift] = n_above / 40, np.mean(distances), np.mean(floors)
    # 2 of 40 expected at most for 95 %; one more by chance of the draw
    assert all(found[n_runs, 0][0] <= 0.075 for n_runs in (2, 4, 8))
    assert found[8, 300][0] > 0.95
    _, distance, floor = found[8, 0]
    assert floor == pytest.approx(distance, rel=0.05)  # seen 0.19 and 0.19; the standard error of both is some 2 %
    pairs = rng.exponential(size=(200, 2, 2, 1))
    limits = [noise_floor(np.zeros(1), *pair, np.ones(2), np.ones(2), n_bootstrap=60).limit for pair in pairs]
    means = pairs.mean(axis=(2, 3))
    is_above = np.abs(means[:, 0] - means[:, 1]) / means.sum(axis=1) > limits
    assert is_above.mean() < 0.095  # 5 % with three standard errors of 200 draws; 14 % without Student's widening
    a = np.ones((4, len(nu)))
    assert noise_floor(nu, a, a, np.ones(4), np.ones(4)).limit == pytest.approx(0, abs=1e-15)  # no noise
    assert noise_floor(nu, a[:1], a, np.ones(1), np.ones(4)) is None


def test_other_runs_have_a_noise_floor_and_no_interval(tmp_path):
    spectra_files(write_runs(tmp_path / "a", n_runs=4), tmp_path / "one", settings=QUICK, draws=False)
    paths = []
    for i in range(4):
        positions, velocities, tensors = water(20 + i)
        series = derivative_series(velocities, positions, MASSES, 0.5, **tensors, name=f"other-{i}", volume=180.0)
        paths.append(tmp_path / f"other-{i}.h5")
        write_derivatives(paths[-1], series)
    spectra_files(paths, tmp_path / "two", settings=QUICK, draws=False)
    result = compare_spectra(tmp_path / "one", tmp_path / "two", plot=tmp_path / "x.png")
    entry = result["spectra"]["ir"]
    assert (entry["lower"], entry["upper"]) == (None, None)
    assert 0 < entry["noise_floor"] < entry["noise_limit"]
    assert entry["distance"] <= entry["noise_limit"]
    assert entry["is_distinguishable"] is False
    assert any("not distinguishable" in note and "ir" in note for note in result["notes"])
    json.dumps(result, allow_nan=False)


def test_runs_of_other_lengths_are_other_runs(tmp_path):
    for name, lengths in (("one", (2500, 1500)), ("two", (1500, 2500))):
        paths = []
        for i, n_frames in enumerate(lengths):
            positions, velocities, tensors = water(i + 1, n_frames=n_frames)
            series = derivative_series(velocities, positions, MASSES, 0.5, **tensors, name=f"nve-{i}", volume=180.0)
            paths.append(tmp_path / f"nve-{i}.h5")
            write_derivatives(paths[-1], series)
        spectra_files(paths, tmp_path / name, settings=QUICK, draws=False)
    result = compare_spectra(tmp_path / "one", tmp_path / "two")
    assert not result["is_paired"]
    assert any("same names but other lengths" in warning for warning in result["warnings"])


def test_different_forms_are_not_compared(tmp_path):
    form = RamanForm("harmonic", laser_nm=532)
    out = tmp_path / "out"
    spectra_files(write_runs(tmp_path / "a", n_runs=2), out, settings=QUICK, draws=False, form=form)
    for other in ("raman_harmonic_532nm.csv", "raman_weighted.csv"):
        with pytest.raises(SpectrumError, match="different forms, classical and"):
            compare_spectra(out / "raman.csv", out / other)
        with pytest.raises(SpectrumError, match="different forms"):
            compare_spectra(out, out / other)
        assert compare_spectra(out / other, out / other)["largest"] == 0
    (out / "raman_of_others.csv").write_text((out / "raman.csv").read_text())
    assert compare_spectra(out / "raman.csv", out / "raman_of_others.csv")["largest"] == 0


def test_the_temperature_used_is_named(tmp_path):
    paths = write_runs(tmp_path / "a", n_runs=2)
    own = spectra_files(paths, tmp_path / "own", settings=QUICK, draws=False)
    assert "evaluated" not in caption_of(own)
    runs = own["temperature"]
    summary = spectra_files(paths, tmp_path / "out", 3 * runs, settings=QUICK, draws=False)
    assert f"evaluated at {3 * runs:g} K, runs at {runs:.0f} K" in caption_of(summary)
    comment = read_jcamp(tmp_path / "out" / "jcamp" / "ir.jdx").labels["comments"].replace("\n", " ")
    assert "evaluated at" in comment
    assert any("more than 5 % apart" in note for note in summary["notes"])
    near = spectra_files(paths, tmp_path / "near", 1.04 * runs, settings=QUICK, draws=False)
    assert not any("apart" in note for note in near["notes"])


def test_a_run_counts_once_and_unlike_volumes_are_noted(tmp_path):
    paths = write_runs(tmp_path / "a", n_runs=2)
    copy = tmp_path / "copy.h5"
    write_derivatives(copy, replace(read_derivatives(paths[0]), name="copy"))
    with pytest.raises(SpectrumError, match="nve-000 and copy hold the same data"):
        spectra_files([*paths, copy], tmp_path / "out", settings=QUICK, draws=False)
    write_derivatives(paths[1], replace(read_derivatives(paths[1]), volume=200.0))
    summary = spectra_files(paths, tmp_path / "out", settings=QUICK, draws=False)
    assert any(
        "different volume are averaged: 180 A^3 (nve-000) to 200 A^3 (nve-001)" in note for note in summary["notes"]
    )


def groups_of(run, names=("O", "H", "rest")):
    """Split a run's total into groups that differ from it and from each other."""
    noise = np.random.default_rng(7).normal(size=(2, run.n_frames, 1))
    shares = np.concatenate([0.5 + 0.3 * noise[0], 0.2 * noise[1], 0.5 - 0.3 * noise[0] - 0.2 * noise[1]], axis=1)
    dipole, polarizability = (
        x[:, :1] * shares[..., None] for x in (run.dipole_derivative, run.polarizability_derivative)
    )
    occupancies = np.array([1.0, 1.5, 0.5])
    return replace(
        run,
        dipole_derivative=dipole,
        polarizability_derivative=polarizability,
        group_names=names,
        occupancies=occupancies,
    )


def test_parts_in_tables_summary_and_comparison(tmp_path):
    for side, error in (("a", 0.0), ("b", 0.1)):
        paths = write_runs(tmp_path / side, model_error=error)
        for path in paths:
            write_derivatives(path, groups_of(read_derivatives(path)))
        summary = spectra_files(paths, tmp_path / f"out-{side}", settings=QUICK, draws=False)
    out = tmp_path / "out-a"
    assert summary["cca"]["groups"] == ["O", "H", "rest"]
    assert summary["cca"]["occupancies"] == {"O": 1, "H": 1.5, "rest": 0.5}
    names = [part["name"] for part in summary["cca"]["parts"]]
    assert len(names) == 6
    for kind in ("ir", "raman_iso", "raman_vv", "raman_vh"):
        assert sum(part["shares"][kind] for part in summary["cca"]["parts"]) == pytest.approx(1, abs=1e-9)
    assert any(part["shares"]["ir"] < 0 for part in summary["cca"]["parts"])  # negative cross terms stay
    (gate,) = (gate for gate in summary["gates"] if "additivity" in gate["name"])
    assert gate["passed"]
    for name, total, column in (
        ("cca_ir", "ir", "n_alpha"),
        ("cca_raman_iso", "raman", "iso"),
        ("cca_raman_vv", "raman", "vv"),
        ("cca_raman_vh", "raman", "vh"),
    ):
        table = read_table(out / f"{name}.csv")
        assert list(table) == ["wavenumber", "total", *names, "total_error", *(f"{n}_error" for n in names)]
        largest = np.nanmax(table["total"])
        np.testing.assert_allclose(sum(table[n] for n in names), table["total"], atol=1e-8 * largest)
        np.testing.assert_array_equal(table["total"], read_table(out / f"{total}.csv")[column])
    result = compare_spectra(out, tmp_path / "out-b")
    cca = result["cca"]
    for kind in ("ir", "raman_iso", "raman_vv", "raman_vh"):
        assert list(cca["by_spectrum"][kind]) == names
        for entry in cca["by_spectrum"][kind].values():
            assert 0 < entry["distance"] < 0.5
            assert entry["lower"] <= entry["distance"] <= entry["upper"]
    # Fig. 4: mean and standard deviation over the parts; Fig. 6: of each part's mean over iso, VV and VH
    ir = [1 - cca["by_spectrum"]["ir"][name]["distance"] for name in names]
    assert cca["ir"]["agreement"] == pytest.approx(np.mean(ir))
    assert cca["ir"]["standard_deviation"] == pytest.approx(np.std(ir))
    assert cca["ir"]["parts"][cca["ir"]["lowest"]] == min(ir)
    raman = [
        np.mean([1 - cca["by_spectrum"][f"raman_{kind}"][name]["distance"] for kind in ("iso", "vv", "vh")])
        for name in names
    ]
    assert cca["raman"]["agreement"] == pytest.approx(np.mean(raman))
    assert 0.5 < cca["raman_lineshapes"]["agreement"] < 1
    assert cca["raman_lineshapes"]["n_lineshapes"] == 21
    assert compare_spectra(out, out)["cca"]["ir"]["agreement"] == 1
    json.dumps(result, allow_nan=False)


def test_parts_by_relation_keep_their_names_in_tables(tmp_path):
    (path,) = write_runs(tmp_path / "a", n_runs=1)
    run = groups_of(read_derivatives(path))
    pairs = list(combinations_with_replacement(run.group_names, 2))
    sums = {}
    for name, columns, components in (
        ("dipole", run.dipole_derivative, PAIRS),
        ("polarizability", run.polarizability_derivative, LINESHAPES),
    ):
        whole = run.n_frames * group_correlations(columns, components, 1000, "biased").transpose(0, 2, 1)
        sums[name] = np.concatenate([0.3 * whole, 0.7 * whole])
    parts = tuple((a, b, relation) for relation in ("hydrogen bonded", "other") for a, b in pairs)
    write_derivatives(path, replace(run, related=RelatedSums(parts, **sums)))
    summary = spectra_files([path], tmp_path / "out", settings=QUICK, draws=False)
    assert summary["cca"]["parts"][1]["relation"] == "hydrogen bonded"
    table = read_table(tmp_path / "out" / "cca_raman_vv.csv")
    one, other = (table[f"O x H; {relation}"] for relation in ("hydrogen bonded", "other"))
    np.testing.assert_allclose(one * 7, other * 3, rtol=1e-6, atol=1e-9 * np.nanmax(table["total"]))
    stored = read_store(tmp_path / "out")
    assert [part.relation for part in stored.cca.parts] == ["hydrogen bonded"] * 6 + ["other"] * 6
    (gate,) = (gate for gate in summary["gates"] if "additivity" in gate["name"])
    assert gate["passed"]
    # labels along a trajectory know groups alone
    write_derivatives(path, run)
    spectra_files([path], tmp_path / "plain", settings=QUICK, draws=False)
    result = compare_spectra(tmp_path / "out", tmp_path / "plain")
    assert "cca: only one side is divided by relations, which are summed over" in result["notes"]
    assert list(result["cca"]["ir"]["parts"]) == ["O", "O x H", "O x rest", "H", "H x rest", "rest"]
    # the runs' own spectra are kept in single precision, and the estimators of both sides are the same
    assert result["cca"]["ir"]["agreement"] == pytest.approx(1, abs=1e-5)
    assert result["cca"]["raman_lineshapes"]["agreement"] == pytest.approx(1, abs=1e-5)


def test_unlike_settings_are_no_fair_comparison(tmp_path):
    paths = write_runs(tmp_path / "a")
    spectra_files(paths, tmp_path / "one", settings=QUICK, draws=False)
    other = replace(QUICK, window_length=400.0, estimator="biased")
    spectra_files(paths, tmp_path / "two", settings=other, draws=False)
    warnings = compare_spectra(tmp_path / "one", tmp_path / "two", plot=tmp_path / "x.png")["warnings"]
    assert "The two sides have different window lengths [fs]: 500 and 400" in warnings
    assert "The two sides have different estimators: unbiased and biased" in warnings


def test_a_failed_gate_stands_on_the_figures(tmp_path):
    """A wrong unit of the tensors, found by equipartition, and named above every figure."""
    paths = write_runs(tmp_path / "a", n_runs=6, targets=("apt",))
    for path in paths:
        run = read_derivatives(path)
        write_derivatives(path, replace(run, apt_square=4 * run.apt_square))
    summary = spectra_files(paths, tmp_path / "out", settings=QUICK)
    assert not summary["passed"]
    assert "ir f-sum, equipartition" in warning_of(summary)
    assert "Failed: ir f-sum" in read_jcamp(tmp_path / "out" / "jcamp" / "ir.jdx").labels["comments"].replace("\n", " ")
    figure = (tmp_path / "out" / "ir.png").read_bytes()
    for path in paths:
        write_derivatives(path, replace(read_derivatives(path), apt_square=None))
    judged = spectra_files(paths, tmp_path / "good", settings=QUICK)
    assert judged["passed"]
    assert warning_of(judged) == ""
    assert figure != (tmp_path / "good" / "ir.png").read_bytes()


def test_measured_spectra_and_geometries_beside_the_tables(tmp_path):
    paths = write_runs(tmp_path / "a")
    table = tmp_path / "measured.csv"
    table.write_text("# units: cm^-1, 10^3 cm^-1\n3000 1\n1000 2\n")
    summary = spectra_files(
        paths,
        tmp_path / "out",
        settings=QUICK,
        draws=False,
        measured=[table],
        geometries=["Z(XX)Z"],
        form=RamanForm("harmonic"),
    )
    assert {"ir_measured.png", "raman_harmonic.csv", "raman_geometries_harmonic.csv"} <= set(summary["files"])
    assert summary["measured"] == [{"source": str(table), "unit": "cm^-1", "factor": 1.0}]
    assert summary["raman_form"]["geometries"] == {"Z(XX)Z": "Z_XX_Z"}
    table.write_text("3000 1\n1000 2\n")
    with pytest.raises(SpectrumError, match="does not say its units"):
        spectra_files(paths, tmp_path / "bad", settings=QUICK, measured=[table])
    assert not (tmp_path / "bad").exists()


def test_only_one_target(tmp_path):
    summary = spectra_files(write_runs(tmp_path / "a", targets=("apt",)), tmp_path / "out", settings=QUICK, draws=False)
    assert "raman.csv" not in summary["files"]
    summary = spectra_files(
        write_runs(tmp_path / "b", targets=("pgt",)), tmp_path / "out2", settings=QUICK, draws=False
    )
    assert "ir.csv" not in summary["files"]


def test_bad_input_has_a_clear_line(tmp_path):
    first = write_runs(tmp_path / "a", n_runs=1)
    second = write_runs(tmp_path / "b", n_runs=1)
    with pytest.raises(SpectrumError, match="two of the files hold a run named nve-000"):
        spectra_files([*first, *second], tmp_path / "out")
    only = write_runs(tmp_path / "c", n_runs=2, targets=("apt",))
    with pytest.raises(SpectrumError, match="nve-001 has none"):
        spectra_files([*first, only[1]], tmp_path / "out")
    with pytest.raises(SpectrumError, match="no files"):
        spectra_files([], tmp_path / "out")
    with pytest.raises(SpectrumError, match="no such file"):
        spectra_files([tmp_path / "none.h5"], tmp_path / "out")
    positions, velocities, tensors = water(1, n_frames=1200)
    cell = derivative_series(velocities, positions, MASSES, 0.5, **tensors, name="box", volume=900.0, is_periodic=True)
    write_derivatives(tmp_path / "box.h5", cell)
    with pytest.raises(SpectrumError, match="nominal volume is for clusters"):
        spectra_files([tmp_path / "box.h5"], tmp_path / "out", volume=3.0)
    (tmp_path / "x.pdb").write_text("x")
    with pytest.raises(SpectrumError, match="mimyria-wf predict"):
        read_series(tmp_path / "x.pdb")
    for text, message in (
        ("", "not a table of spectra"),
        ("wavenumber,n_alpha\n1,a\n", "not a table of numbers"),
        ("n_alpha,x\n1,2\n2,3\n", "not a table of spectra"),
        ("wavenumber,n_alpha\n2,1\n1,1\n", "must increase"),
        ("wavenumber,y\n1,1\n2,1\n", "neither n_alpha"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(SpectrumError, match=message):
            compare_spectra(tmp_path / "bad.csv", tmp_path / "bad.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpectrumError, match="holds no spectra"):
        compare_spectra(tmp_path / "empty", tmp_path / "empty")
    with pytest.raises(SpectrumError, match="no such file or folder"):
        compare_spectra(tmp_path / "gone", tmp_path / "empty")


@pytest.mark.reference_data
def test_quartz_from_born_charges(reference_data, tmp_path):
    """Alpha-quartz at 300 K from Born charges (rows = field, columns = displacement): bands where quartz has them."""
    data = np.load(reference_data / "sio2_md_dfpt_vasp" / "mdraman_bec_eps.npz")
    masses = atomic_masses[data["numbers"]]
    volume = float(abs(np.linalg.det(data["cell"])))
    apt = data["Z"].swapaxes(2, 3)
    paths = []
    for i in range(5):
        part = slice(200 * i, 200 * (i + 1))
        series = derivative_series(
            data["vel"][part],
            data["pos"][part],
            masses,
            10.0,
            apt=apt[part],
            name=f"part-{i}",
            volume=volume,
            is_periodic=True,
        )
        assert series.removed_motion == "translation"
        assert series.degrees_of_freedom == 24
        paths.append(tmp_path / f"{i}.h5")
        write_derivatives(paths[-1], series)
    summary = spectra_files(paths, tmp_path / "out", settings=QUICK, draws=False)
    assert summary["temperature"] == pytest.approx(300, abs=10)
    assert summary["f_sum"]["numerical"] == pytest.approx(1, abs=1e-3)
    assert summary["f_sum"]["equipartition_passed"]
    assert any("1668 cm^-1" in note for note in summary["notes"])
    table = read_table(tmp_path / "out" / "ir.csv")
    nu, n_alpha = table["wavenumber"], table["n_alpha"]
    for low, high, expected in ((400, 550, 455), (700, 850, 780), (950, 1150, 1030)):  # PBE: some 3 % below experiment
        inside = (nu > low) & (nu < high)
        assert nu[inside][np.argmax(n_alpha[inside])] == pytest.approx(expected, abs=35)
