"""Density of states: harmonic oscillators, degrees of freedom, parts, removed motions, chunks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mimyria_wf import vdos as module
from mimyria_wf.errors import SpectrumError, TrajectoryError
from mimyria_wf.spectrum import SpectrumSettings
from mimyria_wf.trajectory import Trajectory, open_trajectory, write_trajectory
from mimyria_wf.units import AMU_A2_PER_FS2, BOLTZMANN_EV, WAVENUMBER
from mimyria_wf.vdos import vdos, vdos_files, vdos_gates

MASSES = np.array([15.999, 1.008, 2.014, 12.011, 1.008, 15.999])
NUMBERS = np.array([8, 1, 1, 6, 1, 8])
TEMPERATURE = 300.0
SETTINGS = SpectrumSettings(window_length=1000.0, spacing=1.0)


def thermal_speeds(masses: np.ndarray) -> np.ndarray:
    """Return sqrt(k_B T / m) [A/fs]."""
    return np.sqrt(BOLTZMANN_EV * TEMPERATURE / (masses * AMU_A2_PER_FS2))


def run(name: str, positions: np.ndarray, velocities: np.ndarray | None, timestep: float = 0.5) -> Trajectory:
    """Return a cluster's trajectory."""
    return Trajectory(
        numbers=NUMBERS,
        positions=positions,
        velocities=velocities,
        cell=np.zeros((3, 3)),
        pbc=np.array([False] * 3),
        timestep=timestep,
        masses=MASSES,
        name=name,
    )


def oscillators(wavenumbers: np.ndarray, seed: int = 0, n_frames: int = 12000, timestep: float = 0.5) -> Trajectory:
    """Return atoms in wells of their own, each with the energy k_B T in each direction.

    Args:
        wavenumbers: (n_atoms, 3) of the lines [cm^-1].
        seed: of the phases.
        n_frames: length.
        timestep: between frames [fs].
    """
    rng = np.random.default_rng(seed)
    omega = 2 * np.pi * wavenumbers / WAVENUMBER
    phase = omega * (timestep * np.arange(n_frames))[:, None, None] + rng.uniform(0, 2 * np.pi, omega.shape)
    speed = np.sqrt(2) * thermal_speeds(MASSES)[:, None]
    sites = 3.0 * np.arange(len(MASSES))[:, None] * [1.0, 0.3, -0.5]
    return run(f"wells-{seed}", sites + speed / omega * np.sin(phase), speed * np.cos(phase), timestep)


def gas(seed: int, motion: str, n_frames: int = 400, hot: float = 1.0, numbers: np.ndarray = NUMBERS) -> Trajectory:
    """Return thermal velocities drawn anew at each frame, with rigid motions taken out.

    Args:
        seed: of the velocities.
        motion: none, translation or translation+rotation.
        n_frames: length.
        hot: factor on the velocities of hydrogen before the motions are taken out.
        numbers: elements.
    """
    rng = np.random.default_rng(seed)
    positions = rng.normal(scale=2.0, size=(n_frames, len(MASSES), 3))
    velocities = rng.normal(size=positions.shape) * thermal_speeds(MASSES)[:, None]
    velocities[:, numbers == 1] *= hot
    for frame in range(n_frames):
        if motion == "none":
            continue
        velocities[frame] -= MASSES @ velocities[frame] / MASSES.sum()
        if motion == "translation":
            continue
        relative = positions[frame] - MASSES @ positions[frame] / MASSES.sum()
        inertia = np.einsum("i,iab->ab", MASSES, (relative**2).sum(1)[:, None, None] * np.eye(3))
        inertia -= np.einsum("i,ia,ib->ab", MASSES, relative, relative)
        angular = np.einsum("i,ia->a", MASSES, np.cross(relative, velocities[frame]))
        velocities[frame] -= np.cross(np.linalg.solve(inertia, angular), relative)
    return run(f"gas-{seed}", positions, velocities)


def readers(folder: Path, *trajectories: Trajectory) -> list:
    """Write trajectories and open them."""
    for trajectory in trajectories:
        write_trajectory(folder / f"{trajectory.name}.h5", trajectory)
    return [open_trajectory(folder / f"{trajectory.name}.h5") for trajectory in trajectories]


def line_shape(wavenumber: np.ndarray, line: float) -> np.ndarray:
    """Return the Hann window's transform around a line, of integral 1 [cm]."""
    x = 2 * np.pi * (wavenumber - line) / WAVENUMBER * SETTINGS.window_length + 1e-9
    return SETTINGS.window_length / WAVENUMBER * np.sin(x) / x / (1 - (x / np.pi) ** 2)


LINES = np.array(
    [[400, 420, 440], [3500, 3520, 3540], [2500, 2520, 2540], [1200, 1220, 1240], [3600, 3620, 3640], [700, 720, 740]],
    dtype=float,
)


def test_harmonic_oscillators_have_their_lines_and_one_degree_of_freedom_each(tmp_path: Path) -> None:
    lines = np.repeat(LINES[:, :1], 3, axis=1)
    found = vdos(readers(tmp_path, oscillators(lines)), SETTINGS)
    assert found.names == ("H", "C", "O")
    nu = found.wavenumber
    n_free = found.degrees_of_freedom[0]
    assert found.integral == pytest.approx(n_free, rel=1e-4)  # trapezoidal sum over a whole period: exact
    assert n_free == 3 * len(MASSES)  # every well holds its atom: nothing is removed
    members = {"H": (1, 2, 4), "C": (3,), "O": (0, 5)}
    for part, name in enumerate(found.names):
        values = found.parts[part]
        for atom in members[name]:
            line = lines[atom, 0]
            near = abs(nu - line) < SETTINGS.resolution
            position = (nu * values)[near].sum() / values[near].sum()
            assert position == pytest.approx(line, abs=0.05)
            weight = np.trapezoid(values[near], nu[near])
            # other lines' side lobes and what is left of cos(2 w t) in a run of 6 ps: some 1e-3
            assert weight == pytest.approx(3.0 * np.trapezoid(line_shape(nu[near], line), nu[near]), rel=5e-3)
        assert np.trapezoid(values, nu) == pytest.approx(3 * len(members[name]), rel=5e-3)
    power = found.power[found.names.index("C")]
    assert np.trapezoid(power, nu) == pytest.approx(3 * thermal_speeds(MASSES)[3] ** 2, rel=5e-3)


def test_a_line_has_the_shape_of_the_window(tmp_path: Path) -> None:
    """One line: C(t) = cos(w t), so that g is the transform of the Hann window around the line."""
    found = vdos(readers(tmp_path, oscillators(np.full((6, 3), 1600.0), n_frames=40000)), SETTINGS)
    near = abs(found.wavenumber - 1600) < 40
    expected = found.integral * line_shape(found.wavenumber[near], 1600.0)
    np.testing.assert_allclose(found.total[near], expected, atol=2e-3 * expected.max())


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_parts_sum_to_the_total_exactly(tmp_path: Path, estimator: str) -> None:
    files = readers(tmp_path, *(oscillators(LINES + 10 * k, seed=k, n_frames=3000 + 500 * k) for k in range(3)))
    settings = SpectrumSettings(window_length=400.0, estimator=estimator)  # type: ignore[arg-type]
    by_species = vdos(files, settings)
    together = vdos(files, settings, groups=lambda reader: module._OneGroup())
    scale = together.total.max()
    np.testing.assert_allclose(by_species.total, together.total, atol=1e-10 * scale)
    np.testing.assert_allclose(by_species.power.sum(axis=0), together.power[0], atol=1e-10 * together.power.max())
    np.testing.assert_allclose(by_species.total_error, together.total_error, atol=1e-10 * scale)
    assert by_species.integrals.sum() == pytest.approx(by_species.degrees_of_freedom.sum(), rel=1e-10)


class Changing:
    """Atoms that change between two groups, each at times of its own."""

    names = ("left", "right")

    relations = ()
    max_lag = 0
    n_units = 6

    def follow(self, positions: np.ndarray) -> tuple[np.ndarray, list]:
        return (np.sin(40 * positions.sum(axis=2)) > 0).astype(int), []


def test_groups_that_change_in_time_sum_to_the_total_exactly(tmp_path: Path) -> None:
    files = readers(tmp_path, oscillators(LINES, n_frames=3000))
    settings = SpectrumSettings(window_length=400.0)
    total = vdos(files, settings).total
    changing = vdos(files, settings, groups=lambda reader: Changing())
    np.testing.assert_allclose(changing.total, total, atol=1e-10 * total.max())
    assert changing.occupancies.sum() == pytest.approx(6)
    assert 1 < changing.occupancies[0] < 5
    assert changing.shares.sum() == pytest.approx(18)
    # by its definition: half the weight at the earlier, half at the later time
    chunk = files[0].read()
    inside = Changing().follow(chunk.positions)[0] == 0
    lag = 37
    pairs = (MASSES[:, None] * chunk.velocities[:-lag] * chunk.velocities[lag:]).sum(axis=2)
    expected = (0.5 * (inside[:-lag] + 1.0 * inside[lag:]) * pairs).sum(axis=1).mean()
    sums = module._RunSums(files[0], 100, 2, Changing())
    sums.add(chunk)
    found = sum(
        mass * 0.5 * one.sums().sum(axis=1)[lag] / (len(pairs))
        for (part, mass), one in sums.correlators.items()
        if part == 0
    )
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("motion", "n_removed"), [("none", 0), ("translation", 3), ("translation+rotation", 6)])
def test_removed_motions_leave_each_species_its_share(tmp_path: Path, motion: str, n_removed: int) -> None:
    """Atoms drawn from the canonical distribution without the removed motions: every part has what it must have."""
    files = readers(tmp_path, *(gas(seed, motion) for seed in range(12)))
    found = vdos(files, SpectrumSettings(window_length=50.0))
    assert set(found.removed_motion) == {motion}
    assert set(found.degrees_of_freedom) == {18 - n_removed}
    assert found.integral == pytest.approx(18 - n_removed, rel=1e-10)
    np.testing.assert_allclose(found.shares.sum(axis=1), 18 - n_removed, rtol=1e-10)
    if motion == "translation":
        members = [MASSES[number == NUMBERS] for number in (1, 6, 8)]
        expected = [3 * (len(masses) - masses.sum() / MASSES.sum()) for masses in members]
        np.testing.assert_allclose(found.shares[0], expected, rtol=1e-10)
    gates = vdos_gates(found)
    assert [gate.name for gate in gates] == [
        "vdos integral",
        "vdos degrees of freedom",
        *(f"vdos {s}, equipartition" for s in ("H", "C", "O")),
        "vdos positivity",
    ]
    assert all(gate.passed for gate in gates), [gate.text for gate in gates]


def test_a_hot_species_fails_its_gate(tmp_path: Path) -> None:
    """Hydrogen 10 % too fast, as after mixing up two units or masses."""
    found = vdos(readers(tmp_path, *(gas(seed, "translation", hot=1.1) for seed in range(12))), SETTINGS_SHORT)
    judged = {gate.name: gate.passed for gate in vdos_gates(found)}
    assert judged == {
        "vdos integral": True,
        "vdos degrees of freedom": True,
        "vdos H, equipartition": False,
        "vdos C, equipartition": False,
        "vdos O, equipartition": False,
        "vdos positivity": True,
    }


SETTINGS_SHORT = SpectrumSettings(window_length=50.0)


def test_a_given_temperature_scales_the_integral(tmp_path: Path) -> None:
    files = readers(tmp_path, gas(0, "translation"))
    own = vdos(files, SETTINGS_SHORT)
    temperature = float(own.runs.temperatures[0])
    twice = vdos(files, SpectrumSettings(window_length=50.0, temperature=2 * temperature))
    np.testing.assert_allclose(twice.parts, own.parts / 2, atol=1e-12 * own.parts.max())
    np.testing.assert_allclose(twice.power, own.power, rtol=1e-12)
    assert vdos_gates(twice)[0].passed


def test_a_wrong_given_temperature_fails_its_gate(tmp_path: Path) -> None:
    files = readers(tmp_path, *(gas(seed, "translation") for seed in range(12)))
    for temperature, passed in ((TEMPERATURE, True), (2 * TEMPERATURE, False)):
        gates = vdos_gates(vdos(files, SpectrumSettings(window_length=50.0, temperature=temperature)))
        judged = {gate.name: gate.passed for gate in gates}
        assert judged["vdos integral"] is True
        assert judged["vdos degrees of freedom"] is passed


@pytest.mark.parametrize("upper", [420.0, 1230.0, 3500.0])
@pytest.mark.parametrize("step", [None, 0.5])
def test_lines_beyond_the_axis_are_no_failure(tmp_path: Path, upper: float, step: float | None) -> None:
    """Side lobes of a line that the axis cuts off are negative and nothing else is near."""
    files = readers(tmp_path, oscillators(np.full((6, 3), upper + 60.0), n_frames=4000))
    found = vdos(files, SpectrumSettings(window_length=500.0, upper_wavenumber=upper, verlet_timestep=step))
    gate = vdos_gates(found)[-1]
    assert gate.name == "vdos positivity"
    assert found.total.min() < 0
    assert gate.passed, gate


def test_isotopes_of_one_element_keep_their_masses(tmp_path: Path) -> None:
    trajectory = gas(3, "translation")
    found = vdos(readers(tmp_path, trajectory), SETTINGS_SHORT)
    thermal = BOLTZMANN_EV * found.runs.temperatures[0] / AMU_A2_PER_FS2
    assert trajectory.velocities is not None
    squares = (trajectory.velocities**2).sum(axis=2).mean(axis=0)
    hydrogen = NUMBERS == 1  # one of the three is deuterium
    assert found.integrals[0, 0] == pytest.approx((MASSES * squares)[hydrogen].sum() / thermal, rel=1e-10)
    axis = SpectrumSettings(window_length=50.0, upper_wavenumber=1e6, spacing=5.0)
    power = vdos(readers(tmp_path, trajectory), axis)
    total = np.trapezoid(power.power[0], power.wavenumber)
    assert total == pytest.approx(squares[hydrogen].sum(), rel=1e-6)


def test_chunks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = readers(tmp_path, oscillators(LINES, n_frames=2000))
    settings = SpectrumSettings(window_length=300.0)
    whole = vdos(files, settings)
    monkeypatch.setattr(module, "_NUMBERS_IN_CHUNK", 3 * 6 * 137)
    calls: list[tuple[int, int, str]] = []
    pieces = vdos(files, settings, progress=lambda *state: calls.append(state))
    np.testing.assert_allclose(pieces.parts, whole.parts, atol=1e-10 * whole.parts.max())
    assert calls[0] == (137, 2000, "read wells-0")
    assert calls[-1][0] == 2000


def test_verlet_correction_recovers_the_true_wavenumber(tmp_path: Path) -> None:
    """Velocity Verlet with 1 fs shows 3000 cm^-1 at (2/dt) asin(w dt/2) = 3041 cm^-1."""
    timestep = 1.0
    omega = 2 * np.pi * 3000.0 / WAVENUMBER
    observed = 2 / timestep * np.arcsin(0.5 * omega * timestep) * WAVENUMBER / (2 * np.pi)
    assert observed > 3035
    trajectory = oscillators(np.full((6, 3), observed), n_frames=8000, timestep=timestep)
    files = readers(tmp_path, trajectory)
    for verlet, line in ((None, observed), (timestep, 3000.0)):
        found = vdos(files, SpectrumSettings(window_length=1000.0, spacing=1.0, verlet_timestep=verlet))
        nu = found.wavenumber
        near = abs(nu - line) < 60
        assert (nu * found.total)[near].sum() / found.total[near].sum() == pytest.approx(line, abs=0.1)
        assert np.trapezoid(found.total[near], nu[near]) == pytest.approx(18.0, rel=2e-3)


# ---------------------------------------------------------------------------------------------------------------- files


def test_files_tables_and_summary(tmp_path: Path) -> None:
    readers(tmp_path, *(oscillators(LINES + 5 * k, seed=k, n_frames=3000) for k in range(3)))
    paths = sorted(tmp_path.glob("*.h5"))
    summary = vdos_files(paths, tmp_path / "out", settings=SpectrumSettings(window_length=300.0))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "power.csv",
        "summary.json",
        "vdos.csv",
        "vdos.pdf",
        "vdos.png",
    ]
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    table = np.genfromtxt(tmp_path / "out" / "vdos.csv", delimiter=",", names=True)
    assert table.dtype.names == ("wavenumber", "total", "total_error", "H", "H_error", "C", "C_error", "O", "O_error")
    np.testing.assert_allclose(table["H"] + table["C"] + table["O"], table["total"], rtol=1e-8, atol=1e-12)
    assert np.isfinite(table["total_error"]).all()
    assert (table["total_error"] > 0).any()
    assert summary["degrees_of_freedom"] == 18
    assert summary["parts"]["O"]["mean_atoms"] == 2
    assert summary["units"]["vdos"] == "cm"


def test_one_run_has_no_errors_and_says_so(tmp_path: Path) -> None:
    readers(tmp_path, oscillators(LINES, n_frames=2000))
    summary = vdos_files(
        [tmp_path / "wells-0.h5"], tmp_path / "out", groups="all", settings=SETTINGS_SHORT, draws=False
    )
    assert any("one trajectory" in note for note in summary["notes"])
    table = np.genfromtxt(tmp_path / "out" / "vdos.csv", delimiter=",", names=True)
    assert np.isnan(table["all_error"]).all()
    judged = {gate["name"]: gate["passed"] for gate in summary["gates"]}
    assert judged == {
        "vdos integral": True,
        "vdos degrees of freedom": True,
        "vdos positivity": True,
        "nve energy drift": None,
        "nve energy fluctuation": None,
    }


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    good = oscillators(LINES, n_frames=1000)
    slow = oscillators(LINES, seed=1, n_frames=1000, timestep=1.0)
    still = run("still", good.positions, None)
    other = Trajectory(
        numbers=NUMBERS[::-1].copy(),
        positions=good.positions,
        velocities=good.velocities,
        cell=good.cell,
        pbc=good.pbc,
        timestep=good.timestep,
        masses=MASSES[::-1].copy(),
        name="other",
    )
    files = {
        one.name: path for one, path in zip((good, slow, still, other), readers(tmp_path, good, slow, still, other))
    }
    cases = [
        ([files["wells-0"], files["wells-1"]], SETTINGS_SHORT, "wells-1 has a time step of 1 fs, wells-0 has 0.5 fs"),
        ([files["wells-0"], files["other"]], SETTINGS_SHORT, "other and wells-0 hold different atoms"),
        ([files["wells-0"]], SpectrumSettings(window_length=500.0), "shorter than the window of 500 fs"),
        ([files["wells-0"]], SpectrumSettings(window_length=0.6), "fewer than two time steps"),
        ([files["wells-0"]], SpectrumSettings(subtract_mean=True), "leave subtract_mean off"),
        ([], SETTINGS_SHORT, "no trajectory"),
    ]
    for chosen, settings, message in cases:
        with pytest.raises(SpectrumError, match=message) as caught:
            vdos(chosen, settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(TrajectoryError, match="no velocities"):
        vdos([files["still"]], SETTINGS_SHORT)
    path = tmp_path / "wells-0.h5"
    with pytest.raises(SpectrumError, match=r"wells-0\.h5 is given twice"):
        vdos_files([path, path], tmp_path / "out", settings=SETTINGS_SHORT)
    assert not (tmp_path / "out").exists()
