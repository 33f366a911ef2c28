"""Trajectory files: what is written reads back, pieces equal the whole, and bad files say what is wrong."""

import subprocess
import sys
from pathlib import Path

import ase.io
import ase.units
import h5py
import numpy as np
import pytest

from mimyria_wf import units
from mimyria_wf.errors import TrajectoryError
from mimyria_wf.md import convert
from mimyria_wf.trajectory import (
    Trajectory,
    TrajectoryWriter,
    as_cell,
    check_velocities,
    default_masses,
    join,
    open_trajectory,
    write_trajectory,
)
from mimyria_wf.vdos import vdos_files

TRICLINIC = np.array([[5.0, 0.0, 0.0], [1.25, 6.0, 0.1], [-0.3, 0.2, 7.0]])
WATER = np.array([8, 1, 1, 8, 1, 1])


def make_trajectory(n_frames: int = 23, cell: np.ndarray | None = TRICLINIC, seed: int = 1) -> Trajectory:
    rng = np.random.default_rng(seed)
    return Trajectory(
        numbers=WATER,
        positions=rng.normal(size=(n_frames, 6, 3), scale=4),
        velocities=rng.normal(size=(n_frames, 6, 3), scale=0.01),
        cell=as_cell(cell),
        pbc=np.full(3, cell is not None),
        timestep=0.5,
        masses=default_masses(WATER),
        name="nve-003",
        observables={"potential_energy": rng.normal(size=n_frames)},
        metadata={"charge": -1, "degrees_of_freedom": 12, "seed": 5},
    )


def write_cp2k(
    directory: Path, trajectory: Trajectory, stride: int = 1, suffix: str = "-1.xyz", first_step: int = 0
) -> Path:
    """Write pos and vel files as CP2K 2023.1 does."""
    for kind, values in (("pos", trajectory.positions), ("vel", trajectory.velocities)):
        if values is None:
            continue
        values = values / (units.BOHR_PER_AU_TIME if kind == "vel" else 1.0)
        with (directory / f"water-{kind}{suffix}").open("w") as file:
            for i, frame in enumerate(values):
                step = first_step + i * stride
                time = step * trajectory.timestep / stride
                file.write(f"{trajectory.n_atoms:8d}\n i = {step:8d}, time = {time:12.3f}, E = {-17.0 - i:20.10f}\n")
                for number, row in zip(trajectory.numbers, frame):
                    file.write("  " + {8: "O", 1: "H"}[number] + "".join(f"{x:20.10f}" for x in row) + "\n")
    return directory / f"water-pos{suffix}"


@pytest.mark.parametrize("suffix", ["h5", "h5md", "extxyz", "xyz"])
@pytest.mark.parametrize("cell", [TRICLINIC, None], ids=["triclinic", "cluster"])
def test_round_trip_is_bit_exact(tmp_path, suffix, cell):
    written = make_trajectory(cell=cell)
    write_trajectory(tmp_path / f"a.{suffix}", written, start_time=12.5)
    reader = open_trajectory(tmp_path / f"a.{suffix}")
    read = reader.read()
    for key in ("numbers", "positions", "velocities", "cell", "pbc", "masses"):
        assert np.array_equal(getattr(read, key), getattr(written, key)), key
    assert np.array_equal(read.observables["potential_energy"], written.observables["potential_energy"])
    assert (read.timestep, reader.start_time, read.name) == (0.5, 12.5, "nve-003")
    assert {key: read.metadata[key] for key in written.metadata} == written.metadata


@pytest.mark.parametrize("suffix", ["h5", "extxyz"])
def test_own_masses_and_missing_velocities_round_trip(tmp_path, suffix):
    source = make_trajectory()
    heavy = Trajectory(WATER, source.positions, None, TRICLINIC, source.pbc, 0.5, np.full(6, 2.014), "heavy")
    write_trajectory(tmp_path / f"a.{suffix}", heavy)
    reader = open_trajectory(tmp_path / f"a.{suffix}")
    assert np.array_equal(reader.masses, heavy.masses)
    assert not reader.has_velocities
    assert reader.read().velocities is None
    with pytest.raises(TrajectoryError, match="no velocities, which spectra need"):
        reader.require_velocities()
    with pytest.raises(TrajectoryError, match="no velocities"):
        reader.read().kinetic_temperature()


def test_cp2k_files_read_to_their_printed_precision(tmp_path):
    written = make_trajectory()
    reader = open_trajectory(write_cp2k(tmp_path, written, stride=10), cell=TRICLINIC)
    read = reader.read()
    np.testing.assert_allclose(read.positions, written.positions, rtol=0, atol=0.6e-10)  # ten decimals [A]
    velocity_digit = 0.6e-10 * units.BOHR_PER_AU_TIME  # ten decimals [bohr/au_t]
    np.testing.assert_allclose(read.velocities, written.velocities, rtol=0, atol=velocity_digit)
    assert reader.timestep == pytest.approx(0.5)
    assert reader.name == "water"
    assert np.array_equal(reader.cell, TRICLINIC)
    np.testing.assert_allclose(read.observables["potential_energy"][:2], [-17 * units.HARTREE, -18 * units.HARTREE])


def test_one_bohr_per_atomic_unit_of_time_is_22_angstrom_per_fs(tmp_path):
    source = make_trajectory(2)
    path = write_cp2k(tmp_path, source)
    vel = tmp_path / "water-vel-1.xyz"
    lines = vel.read_text().splitlines()
    lines[2] = "  O 1.0 0.0 0.0"
    vel.write_text("\n".join(lines) + "\n")
    assert open_trajectory(path, cell=TRICLINIC).read().velocities[0, 0, 0] == pytest.approx(21.8769126, rel=1e-8)


def test_ase_formats_need_the_timestep_and_keep_velocities(tmp_path):
    written = make_trajectory(5)
    ase.io.write(tmp_path / "a.traj", [written.atoms(i) for i in range(5)])
    with pytest.raises(TrajectoryError, match="the time between frames is unknown; give the time step"):
        open_trajectory(tmp_path / "a.traj")
    reader = open_trajectory(tmp_path / "a.traj", timestep=0.5)
    np.testing.assert_allclose(reader.read().velocities, written.velocities, rtol=1e-14)
    assert reader.metadata == {"charge": -1}


def test_extxyz_of_ase_with_momenta(tmp_path):
    written = make_trajectory(4)
    ase.io.write(tmp_path / "a.extxyz", [written.atoms(i) for i in range(4)])
    read = open_trajectory(tmp_path / "a.extxyz", timestep=0.5).read()
    # ASE prints eight decimals of momenta in sqrt(u eV)
    np.testing.assert_allclose(read.velocities, written.velocities, rtol=0, atol=1e-8 * ase.units.fs)
    np.testing.assert_allclose(read.cell, TRICLINIC, atol=1e-12)


@pytest.mark.parametrize("suffix", ["h5", "extxyz", "cp2k", "traj"])
@pytest.mark.parametrize(("size", "overlap"), [(5, 0), (7, 2), (23, 4), (100, 0), (2, 1)])
def test_chunks_equal_the_whole(tmp_path, suffix, size, overlap):
    written = make_trajectory(23)
    if suffix == "cp2k":
        reader = open_trajectory(write_cp2k(tmp_path, written), cell=TRICLINIC)
    elif suffix == "traj":
        ase.io.write(tmp_path / "a.traj", [written.atoms(i) for i in range(23)])
        reader = open_trajectory(tmp_path / "a.traj", timestep=0.5)
    else:
        write_trajectory(tmp_path / f"a.{suffix}", written)
        reader = open_trajectory(tmp_path / f"a.{suffix}")
    whole = reader.read()
    covered = 0
    for start, chunk in reader.chunks(size, overlap):
        assert start == max(covered - overlap, 0)
        stop = start + chunk.n_frames
        assert np.array_equal(chunk.positions, whole.positions[start:stop])
        assert np.array_equal(chunk.velocities, whole.velocities[start:stop])
        covered = stop
    assert covered == 23
    strided = reader.read(3, 20, 4)
    assert np.array_equal(strided.positions, whole.positions[3:20:4])
    assert strided.timestep == pytest.approx(4 * reader.timestep)


def test_kinetic_temperature_counts_the_degrees_of_freedom_of_the_metadata():
    source = make_trajectory(3)
    # m v^2 / 2 = k_B T / 2 in each of the 18 coordinates, counted on 12 degrees of freedom
    width = np.sqrt(units.BOLTZMANN_EV * 300 / (units.AMU_A2_PER_FS2 * source.masses))
    velocities = np.broadcast_to(width[None, :, None], (3, 6, 3)).copy()
    fixed = Trajectory(
        WATER,
        source.positions,
        velocities,
        TRICLINIC,
        source.pbc,
        0.5,
        source.masses,
        metadata={"degrees_of_freedom": 12},
    )
    np.testing.assert_allclose(fixed.kinetic_temperature(), 300 * 18 / 12, rtol=1e-12)
    free = Trajectory(WATER, source.positions, velocities, TRICLINIC, source.pbc, 0.5, source.masses)
    np.testing.assert_allclose(free.kinetic_temperature(), 300 * 18 / 15, rtol=1e-12)


def test_atoms_carry_velocities_in_ase_units_charge_and_their_place(tmp_path):
    written = make_trajectory()
    write_trajectory(tmp_path / "a.h5", written)
    atoms = open_trajectory(tmp_path / "a.h5").atoms(-3)
    assert atoms.info == {"charge": -1, "snapshot": "nve-003/20"}
    np.testing.assert_allclose(atoms.get_velocities() * ase.units.fs, written.velocities[20], rtol=1e-14)
    kinetic = 0.5 * units.AMU_A2_PER_FS2 * (written.masses[:, None] * written.velocities[20] ** 2).sum()
    assert atoms.get_kinetic_energy() == pytest.approx(kinetic, rel=1e-7)  # ASE has its own set of constants


def test_killed_writer_leaves_a_file_that_reads_up_to_the_last_flush(tmp_path):
    path = tmp_path / "killed.h5"
    code = f"""
import os, signal
import numpy as np
from mimyria_wf.trajectory import TrajectoryWriter
writer = TrajectoryWriter({str(path)!r}, np.array([1, 1]), 0.5, observables=["potential_energy"])
for i in range(1100):
    writer.append(np.full((2, 3), float(i)), np.zeros((2, 3)), potential_energy=float(i))
    if i == 1049:
        writer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    finished = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert finished.returncode == -9, finished.stderr
    reader = open_trajectory(path)
    assert reader.n_frames == 1050
    assert reader.metadata["is_complete"] is False
    read = reader.read()
    assert np.array_equal(read.positions[:, 0, 0], np.arange(1050.0))
    assert np.array_equal(read.observables["potential_energy"], np.arange(1050.0))


def test_old_frames_reach_the_file_after_the_flush_interval(tmp_path):
    writer = TrajectoryWriter(tmp_path / "a.h5", np.array([1]), 1.0, has_velocities=False, flush_interval=0.0)
    for i in range(3):
        writer.append(np.full((1, 3), float(i)))
        assert open_trajectory(tmp_path / "a.h5").n_frames == i + 1  # while the writer still works
    writer.close()
    assert open_trajectory(tmp_path / "a.h5").metadata["is_complete"] is True


def test_exception_closes_the_file_as_incomplete(tmp_path):
    def interrupted() -> None:
        with TrajectoryWriter(tmp_path / "a.h5", np.array([1]), 1.0, has_velocities=False) as writer:
            writer.append(np.zeros((1, 3)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    reader = open_trajectory(tmp_path / "a.h5")
    assert (reader.n_frames, reader.metadata["is_complete"]) == (1, False)


def test_single_precision_halves_the_numbers(tmp_path):
    source = make_trajectory(10)
    with TrajectoryWriter(tmp_path / "a.h5", WATER, 0.5, precision="single") as writer:
        writer.extend(source)
    read = open_trajectory(tmp_path / "a.h5").read()
    assert read.velocities.dtype == np.float64
    np.testing.assert_allclose(read.velocities, source.velocities, rtol=6e-8)  # 24 bits of mantissa


def foreign_h5md(path: Path, **changes) -> Path:
    """Write an H5MD file as other codes do: nm and ps, explicit times, images of wrapped positions."""
    source = make_trajectory(4)
    with h5py.File(path, "w") as file:
        group = file.create_group("particles/water")
        group["species"] = changes.get("species", WATER)
        box = group.create_group("box")
        box.attrs["dimension"] = 3
        box.attrs["boundary"] = ["periodic"] * 3
        box["edges/value"] = (
            np.broadcast_to(TRICLINIC / 10, (4, 3, 3)) * changes.get("scale", np.ones(4))[:, None, None]
        )
        box["edges/value"].attrs["unit"] = "nm"
        images = np.random.default_rng(3).integers(-2, 3, size=(4, 6, 3))
        group["image/value"] = images
        group["position/value"] = (source.positions - images @ TRICLINIC) / 10
        group["position/value"].attrs["unit"] = changes.get("unit", "nm")
        group["velocity/value"] = source.velocities[: changes.get("n_velocities", 4)] * 100
        group["velocity/value"].attrs["unit"] = "nm ps-1"
        times = changes.get("times", np.arange(4) * 0.0005)
        group["position/time"] = times
        group["position/time"].attrs["unit"] = "ps"
        group["velocity/time"] = changes.get("velocity_times", times)
        group["velocity/time"].attrs["unit"] = "ps"
    return path


def test_h5md_of_others_is_converted_and_unwrapped(tmp_path):
    source = make_trajectory(4)
    reader = open_trajectory(foreign_h5md(tmp_path / "a.h5"))
    read = reader.read()
    np.testing.assert_allclose(read.positions, source.positions, rtol=0, atol=1e-13)
    np.testing.assert_allclose(read.velocities, source.velocities, rtol=1e-14)
    np.testing.assert_allclose(read.cell, TRICLINIC, rtol=1e-14)
    assert reader.timestep == pytest.approx(0.5)
    assert reader.name == "a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "parsec"}, "has unit 'parsec', expected one such as 'Angstrom'"),
        ({"n_velocities": 3}, "4 frames of positions but 3 of velocities"),
        ({"times": np.array([0, 1, 2, 4]) * 0.0005}, "not equally spaced in time: 1 fs before frame 3, 0.5 fs"),
        ({"velocity_times": (np.arange(4) + 0.5) * 0.0005}, "positions and velocities have different times"),
        ({"species": np.array([0, 1, 1, 0, 1, 1])}, "must hold 6 atomic numbers"),
        ({"scale": np.array([1, 1, 1, 1.01])}, "the cell changes in time"),
    ],
)
def test_bad_h5md(tmp_path, changes, message):
    with pytest.raises(TrajectoryError, match=message):
        open_trajectory(foreign_h5md(tmp_path / "a.h5", **changes))


def test_files_that_are_no_trajectories(tmp_path):
    with pytest.raises(TrajectoryError, match=r"gone\.h5: no such trajectory file"):
        open_trajectory(tmp_path / "gone.h5")
    for name in ("a.h5", "a.xyz", "a.traj"):
        (tmp_path / name).touch()
        with pytest.raises(TrajectoryError, match=f"{name}: the trajectory is empty"):
            open_trajectory(tmp_path / name)
        (tmp_path / name).write_text("no trajectory\n")
        with pytest.raises(TrajectoryError, match=r"not a readable HDF5|must start with the number|ASE cannot read"):
            open_trajectory(tmp_path / name, timestep=1.0)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(TrajectoryError, match="expected one group in /particles, found none"):
        open_trajectory(tmp_path / "b.h5")
    TrajectoryWriter(tmp_path / "c.h5", WATER, 0.5).close()
    with pytest.raises(TrajectoryError, match="the trajectory is empty"):
        open_trajectory(tmp_path / "c.h5")


def test_truncated_hdf5_file(tmp_path):
    write_trajectory(tmp_path / "a.h5", make_trajectory(400))
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(TrajectoryError, match=r"a\.h5: "):
        open_trajectory(tmp_path / "a.h5").read()


def test_truncated_text_file(tmp_path):
    source = make_trajectory(5)
    write_trajectory(tmp_path / "a.extxyz", source)
    text = (tmp_path / "a.extxyz").read_text()
    for cut in (text[:-100], text[:-400], text[: text.rindex("\n6\n") + 3]):
        (tmp_path / "a.extxyz").write_text(cut)
        with pytest.raises(TrajectoryError, match="frame 4 is truncated"):
            open_trajectory(tmp_path / "a.extxyz")
        read = open_trajectory(tmp_path / "a.extxyz", drop_truncated=True).read()
        assert np.array_equal(read.positions, source.positions[:4])
    (tmp_path / "a.extxyz").write_text(text.rstrip("\n"))
    assert open_trajectory(tmp_path / "a.extxyz").n_frames == 5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("time=1.0 ", "time=1.2 ", "frames are not equally spaced in time"),
        ("time=1.0 ", "", "only 4 of 5 frames say their time"),
        ('Lattice="5.0 ', 'Lattice="5.1 ', "the cell of frame 1 differs from frame 0"),
        ("vel:R:3", "force:R:3", "frame 1 has other columns"),
        ("\nO ", "\nN ", "atom 0 is N in frame 1, O in frame 0"),
        ("6\nLat", "5\nLat", "frame 1 has 5 atoms, frame 0 has 6"),
    ],
)
def test_frame_that_does_not_fit(tmp_path, old, new, message):
    write_trajectory(tmp_path / "a.extxyz", make_trajectory(5))
    lines = (tmp_path / "a.extxyz").read_text().splitlines()
    frames = ["\n".join(lines[i : i + 8]) for i in range(0, 40, 8)]
    which = 2 if "time" in old else 1
    frames[which] = frames[which].replace(old, new, 1)
    (tmp_path / "a.extxyz").write_text("\n".join(frames) + "\n")
    with pytest.raises(TrajectoryError, match=message):
        open_trajectory(tmp_path / "a.extxyz").read()


@pytest.mark.parametrize("bad", ["nan", "inf", "x1.0", "********"])
def test_not_a_number_is_found_at_its_frame(tmp_path, bad):
    write_trajectory(tmp_path / "a.extxyz", make_trajectory(5))
    lines = (tmp_path / "a.extxyz").read_text().splitlines()
    lines[3 * 8 + 4] = " ".join(lines[3 * 8 + 4].split()[:6] + [bad])
    (tmp_path / "a.extxyz").write_text("\n".join(lines) + "\n")
    reader = open_trajectory(tmp_path / "a.extxyz")
    assert reader.read(0, 3).n_frames == 3
    with pytest.raises(
        TrajectoryError, match=r"NaN or infinite velocity of atom 2 in frame 3|frame 3: could not convert"
    ):
        reader.read()


def test_nan_is_not_written(tmp_path):
    source = make_trajectory(3)
    source.positions[1, 2, 0] = np.nan
    with pytest.raises(TrajectoryError, match="not written, the positions hold NaN"):
        write_trajectory(tmp_path / "a.h5", source)


def test_cp2k_needs_its_cell(tmp_path):
    path = write_cp2k(tmp_path, make_trajectory(3))
    with pytest.raises(TrajectoryError, match=r"do not hold the cell: .*--cell-from.*give cell="):
        open_trajectory(path)
    with pytest.raises(TrajectoryError, match=r"do not hold the cell: .*--cell-from.*give cell="):
        open_trajectory(path, pbc=True)
    assert not open_trajectory(path, pbc=False).pbc.any()
    assert open_trajectory(path, cell=[5, 6, 7]).pbc.all()


def test_cp2k_files_that_do_not_match(tmp_path):
    write_cp2k(tmp_path, make_trajectory(5))
    path = write_cp2k(tmp_path, make_trajectory(5), suffix="-2.xyz", first_step=1)
    with pytest.raises(TrajectoryError, match="frame 0 is MD step 1, but 0 in"):
        open_trajectory(path, velocities=tmp_path / "water-vel-1.xyz", cell=TRICLINIC)
    with pytest.raises(TrajectoryError, match="this is CP2K's velocity file"):
        open_trajectory(tmp_path / "water-vel-1.xyz", cell=TRICLINIC)
    vel = tmp_path / "water-vel-2.xyz"
    vel.write_text("\n".join(vel.read_text().splitlines()[:-8]) + "\n")
    with pytest.raises(TrajectoryError, match="5 frames of positions but 4 of velocities"):
        open_trajectory(path, cell=TRICLINIC)
    assert open_trajectory(path, cell=TRICLINIC, drop_truncated=True).read().n_frames == 4
    vel.unlink()
    assert not open_trajectory(path, cell=TRICLINIC).has_velocities
    with pytest.raises(TrajectoryError, match="no such velocity file"):
        open_trajectory(path, velocities=vel, cell=TRICLINIC)


def test_cp2k_restart_that_appended_to_its_file(tmp_path):
    path = write_cp2k(tmp_path, make_trajectory(3))
    text = path.read_text()
    path.write_text(text + "".join(text.splitlines(keepends=True)[16:]))
    (tmp_path / "water-vel-1.xyz").unlink()
    with pytest.raises(TrajectoryError, match="not equally spaced: frame 3 is step 2 after 2"):
        open_trajectory(path, cell=TRICLINIC)


def test_what_is_given_must_agree_with_the_file(tmp_path):
    write_trajectory(tmp_path / "a.h5", make_trajectory())
    write_trajectory(tmp_path / "a.extxyz", make_trajectory())
    for name in ("a.h5", "a.extxyz"):
        with pytest.raises(TrajectoryError, match=r"timestep=1 fs was given, but the file's frames are 0\.5 fs apart"):
            open_trajectory(tmp_path / name, timestep=1.0)
        with pytest.raises(TrajectoryError, match="three lengths mean right angles"):
            open_trajectory(tmp_path / name, cell=[5, 6, 7])
        with pytest.raises(TrajectoryError, match="timestep must be positive"):
            open_trajectory(tmp_path / name, timestep=-0.5)
        assert open_trajectory(tmp_path / name, timestep=0.5, cell=TRICLINIC).timestep == 0.5


def test_cells():
    assert np.array_equal(as_cell([3, 4, 5]), np.diag([3.0, 4.0, 5.0]))
    assert np.array_equal(as_cell(None), np.zeros((3, 3)))
    hexagonal = as_cell([4, 4, 6, 90, 90, 120])
    np.testing.assert_allclose(hexagonal @ hexagonal.T, [[16, -8, 0], [-8, 16, 0], [0, 0, 36]], atol=1e-12)
    for bad, message in (
        ([1, 2], "got shape"),
        ([1, 2, np.nan], "NaN"),
        ([1, 2, 0], "span no volume"),
        ([3, 3, 3, 10, 10, 170], "no cell has the parameters"),
        ("abc", "a cell is numbers"),
    ):
        with pytest.raises(TrajectoryError, match=message):
            as_cell(bad)


def test_shapes_are_checked_at_construction():
    good = make_trajectory(3)
    for changes, message in (
        ({"positions": good.positions[:, :5]}, r"positions must be \(n_frames, 6, 3\)"),
        ({"positions": good.positions[:0], "velocities": None}, "empty"),
        ({"velocities": good.velocities[:2]}, "differ in shape"),
        ({"timestep": 0.0}, "timestep must be positive"),
        ({"masses": np.zeros(6)}, "6 positive numbers"),
        ({"observables": {"temperature": np.zeros(2)}}, "must have 3 values"),
    ):
        with pytest.raises(TrajectoryError, match=message):
            Trajectory(**{**vars(good), **changes})


def test_writer_refuses_frames_that_do_not_fit(tmp_path):
    with pytest.raises(TrajectoryError, match="unknown observable pressure"):
        TrajectoryWriter(tmp_path / "a.h5", WATER, 0.5, observables=["pressure"])
    with TrajectoryWriter(tmp_path / "a.h5", WATER, 0.5) as writer:
        with pytest.raises(TrajectoryError, match=r"a frame brings \['position', 'velocity'\], got \['position'\]"):
            writer.append(np.zeros((6, 3)))
        with pytest.raises(TrajectoryError, match=r"position must be \(6, 3\), got \(5, 3\)"):
            writer.append(np.zeros((5, 3)), np.zeros((6, 3)))
        writer.append(np.zeros((6, 3)), np.zeros((6, 3)))
    with pytest.raises(TrajectoryError, match="closed"):
        writer.append(np.zeros((6, 3)), np.zeros((6, 3)))
    with pytest.raises(TrajectoryError, match="metadata must be JSON-able"):
        TrajectoryWriter(tmp_path / "a.h5", WATER, 0.5, metadata={"x": object()})


def test_selection_of_no_frame(tmp_path):
    write_trajectory(tmp_path / "a.h5", make_trajectory(3))
    reader = open_trajectory(tmp_path / "a.h5")
    with pytest.raises(TrajectoryError, match="select none of 3"):
        reader.read(3)
    with pytest.raises(TrajectoryError, match="stride must be 1 or more"):
        reader.read(step=0)
    with pytest.raises(TrajectoryError, match="overlap < size"):
        next(reader.chunks(3, 3))


@pytest.mark.parametrize("n_shared", [0, 1])
def test_join_writes_a_shared_frame_once(tmp_path, n_shared):
    whole = make_trajectory(10)
    for name, frames, start in (("a", slice(0, 6), 0.0), ("b", slice(6 - n_shared, 10), (6 - n_shared) * 0.5)):
        part = {
            key: getattr(whole, key)[frames] if key in ("positions", "velocities") else getattr(whole, key)
            for key in vars(whole)
        }
        part["observables"] = {}
        write_trajectory(tmp_path / f"{name}.extxyz", Trajectory(**part), start_time=start)
    joined = join([tmp_path / "a.extxyz", tmp_path / "b.extxyz"], tmp_path / "c.h5", chunk_size=3)
    assert np.array_equal(joined.read().positions, whole.positions)
    assert joined.name == "c"
    with pytest.raises(TrajectoryError, match="give consecutive files in order"):
        join([tmp_path / "b.extxyz", tmp_path / "a.extxyz"], tmp_path / "d.h5")
    with pytest.raises(TrajectoryError, match="same file"):
        join([tmp_path / "c.h5"], tmp_path / "c.h5")


def test_join_that_fails_leaves_nothing(tmp_path):
    write_trajectory(tmp_path / "a.extxyz", make_trajectory(5))
    lines = (tmp_path / "a.extxyz").read_text().splitlines()
    lines[-1] = lines[-1].replace(lines[-1].split()[1], "nan")
    (tmp_path / "a.extxyz").write_text("\n".join(lines) + "\n")
    with pytest.raises(TrajectoryError, match="frame 4"):
        join([tmp_path / "a.extxyz"], tmp_path / "b.h5", chunk_size=2)
    assert not (tmp_path / "b.h5").exists()


def cosine(timestep: float, shift: float = 0.0, factor: float = 1.0) -> Trajectory:
    """Return OH whose bond swings at 3500 cm^-1; velocities ``shift`` steps late, in a unit ``factor`` too small."""
    omega = 2 * np.pi * 3500 / units.WAVENUMBER
    times = timestep * np.arange(50)
    positions, velocities = np.zeros((50, 2, 3)), np.zeros((50, 2, 3))
    positions[:, 1, 2] = 1.0 + 0.1 * np.cos(omega * times)
    velocities[:, 1, 2] = -0.1 * omega * np.sin(omega * (times + shift * timestep)) * factor
    masses = default_masses(np.array([8, 1]))
    return Trajectory(
        np.array([8, 1]), positions, velocities, np.zeros((3, 3)), np.zeros(3, bool), timestep, masses, "oh"
    )


@pytest.mark.parametrize("timestep", [0.25, 0.5, 1.0, 2.0, 10.0])
def test_velocities_at_the_time_of_the_positions_pass(tmp_path, timestep):
    write_trajectory(tmp_path / "a.h5", cosine(timestep))
    check_velocities(open_trajectory(tmp_path / "a.h5"))


@pytest.mark.parametrize(
    ("shift", "factor", "message"),
    [
        (0.5, 1.0, "half a step after the positions"),
        (-0.5, 1.0, "half a step before the positions"),
        (0.0, 1 / units.BOHR_PER_AU_TIME, r"these change 2\d\.\d times as fast; check the unit"),
        (0.0, 1000.0, "times as fast; check the unit"),
        (0.0, -1.0, "times as fast; check the unit"),
    ],
)
def test_velocities_of_another_time_or_unit_are_found(tmp_path, shift, factor, message):
    write_trajectory(tmp_path / "a.h5", cosine(0.5, shift, factor))
    with pytest.raises(TrajectoryError, match=message):
        check_velocities(open_trajectory(tmp_path / "a.h5"))


def test_refused_velocities_leave_no_file_and_no_density_of_states(tmp_path):
    write_trajectory(tmp_path / "a.h5", cosine(0.5, 0.0, 1000.0))
    with pytest.raises(TrajectoryError, match="times as fast"):
        convert(tmp_path / "a.h5", tmp_path / "b.h5")
    assert not (tmp_path / "b.h5").exists()
    with pytest.raises(TrajectoryError, match="times as fast"):
        vdos_files([tmp_path / "a.h5"], tmp_path / "vdos")


def test_unit_of_the_velocity_column(tmp_path):
    write_trajectory(tmp_path / "a.extxyz", make_trajectory(2))
    text = (tmp_path / "a.extxyz").read_text()
    (tmp_path / "a.extxyz").write_text(text.replace('vel_unit="A/fs"', 'vel_unit="bohr/au_t"'))
    with pytest.raises(TrajectoryError, match="column vel has unit 'bohr/au_t', expected A/fs"):
        open_trajectory(tmp_path / "a.extxyz")
