"""LAMMPS dumps and VASP's MD files: values, units and order recovered, and one clear line for what is wrong."""

from pathlib import Path

import ase
import ase.io
import ase.units
import h5py
import numpy as np
import pytest

from mimyria_wf.errors import TrajectoryError
from mimyria_wf.md import convert
from mimyria_wf.trajectory import check_velocities, default_masses, open_trajectory

# lower triangular, as LAMMPS has it
CELL = np.array([[6.0, 0.0, 0.0], [1.5, 5.0, 0.0], [-0.7, 0.9, 7.0]])
ORIGIN = np.array([-1.0, 0.5, 2.0])
NUMBERS = np.array([8, 1, 1, 14])
SYMBOLS = ("O", "H", "H", "Si")
TYPES = (1, 2, 2, 3)
N_FRAMES = 5


def motion(step: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Return positions [A] and velocities [A/fs] of independent oscillators that leave the cell, step [fs] apart."""
    rng = np.random.default_rng(3)
    time = np.arange(N_FRAMES)[:, None, None] * step
    centre = rng.uniform(-1, 1, size=(4, 3)) @ CELL + ORIGIN
    amplitude, omega = rng.normal(size=(4, 3)), rng.uniform(0.02, 0.05, size=(4, 3))
    phase = rng.uniform(0, 6, size=(4, 3))
    return (
        centre + amplitude * np.sin(omega * time + phase),
        amplitude * omega * np.cos(omega * time + phase),
    )


def scaled(positions: np.ndarray) -> np.ndarray:
    return (positions - ORIGIN) @ np.linalg.inv(CELL)


def dump(
    path: Path,
    columns: str = "id type x y z vx vy vz",
    *,
    style: str | None = "real",
    has_times: bool = True,
    speed: float = 1.0,
    cell: np.ndarray = CELL,
    boundary: str = "pp pp pp",
    is_general: bool = False,
) -> Path:
    """Write a dump as LAMMPS does: unordered atoms, bounding box of a triclinic cell, units once at the top."""
    positions, velocities = motion()
    rng = np.random.default_rng(0)
    xy, xz, yz = cell[1, 0], cell[2, 0], cell[2, 1]
    lo = ORIGIN + [min(0, xy, xz, xy + xz), min(0, yz), 0]
    hi = ORIGIN + np.diag(cell) + [max(0, xy, xz, xy + xz), max(0, yz), 0]
    text = [] if style is None else ["ITEM: UNITS", style]
    for frame in range(N_FRAMES):
        if has_times:
            text += ["ITEM: TIME", f"{0.5 * frame:.10g}"]
        text += ["ITEM: TIMESTEP", str(100 + 10 * frame), "ITEM: NUMBER OF ATOMS", "4"]
        if is_general:
            text += [f"ITEM: BOX BOUNDS abc origin {boundary}"]
            text += [" ".join(f"{x:.16g}" for x in (*vector, start)) for vector, start in zip(cell, ORIGIN)]
        else:
            text += [f"ITEM: BOX BOUNDS xy xz yz {boundary}"]
            text += [f"{a:.16g} {b:.16g} {c:.16g}" for a, b, c in zip(lo, hi, (xy, xz, yz))]
        text += [f"ITEM: ATOMS {columns}"]
        fraction = scaled(positions[frame])
        image = np.floor(fraction)
        wrapped = (fraction - image) @ CELL + ORIGIN
        values = {
            "id": np.arange(1, 5) * 7,
            "type": TYPES,
            "element": SYMBOLS,
            "mass": default_masses(NUMBERS) * 1.001,
            **dict(zip(("x", "y", "z"), wrapped.T)),
            **dict(zip(("xu", "yu", "zu"), positions[frame].T)),
            **dict(zip(("xs", "ys", "zs"), (fraction - image).T)),
            **dict(zip(("xsu", "ysu", "zsu"), fraction.T)),
            **dict(zip(("ix", "iy", "iz"), image.T.astype(int))),
            **dict(zip(("vx", "vy", "vz"), velocities[frame].T / speed)),
        }
        for atom in rng.permutation(4):
            text.append(
                " ".join(
                    f"{values[c][atom]:.14g}" if not isinstance(values[c][atom], str) else values[c][atom]
                    for c in columns.split()
                )
            )
    path.write_text("\n".join(text) + "\n")
    return path


class TestLammps:
    @pytest.mark.parametrize("place", ["xu yu zu", "xsu ysu zsu", "x y z ix iy iz", "xs ys zs ix iy iz"])
    @pytest.mark.parametrize("is_general", [False, True])
    def test_positions_are_unwrapped(self, tmp_path, place, is_general):
        path = dump(tmp_path / "a.lammpstrj", f"id element {place} vx vy vz", is_general=is_general)
        run = open_trajectory(path).read()
        positions, velocities = motion()
        np.testing.assert_allclose(run.cell, CELL, atol=1e-12)
        np.testing.assert_allclose(run.positions, positions, atol=1e-11)
        np.testing.assert_allclose(run.velocities, velocities, atol=1e-13)
        np.testing.assert_array_equal(run.numbers, NUMBERS)
        assert run.timestep == pytest.approx(0.5)

    @pytest.mark.parametrize("place", ["x y z", "xu yu zu", "xs ys zs", "xsu ysu zsu"])
    def test_agrees_with_ase(self, tmp_path, place):
        path = dump(tmp_path / "a.dump", f"id element {place} vx vy vz", style="metal", speed=1e-3)
        images = ase.io.read(path, index=":", format="lammps-dump-text", units="metal")
        run = open_trajectory(path).read()
        np.testing.assert_allclose(run.cell, images[0].cell[:], atol=1e-12)
        for positions, velocities, image in zip(run.positions, run.velocities, images, strict=True):
            # ASE leaves the origin of scaled coordinates at zero
            shift = ORIGIN if "s" in place else 0.0
            np.testing.assert_allclose(positions - image.positions - shift, 0, atol=1e-9)
            np.testing.assert_allclose(velocities, image.get_velocities() * ase.units.fs, atol=1e-12)

    @pytest.mark.parametrize("place", ["x y z", "xs ys zs"])
    def test_wrapped_positions_stay_in_the_cell(self, tmp_path, place):
        run = open_trajectory(dump(tmp_path / "a.dump", f"id element {place}")).read()
        difference = scaled(run.positions) - scaled(motion()[0])
        np.testing.assert_allclose(difference, np.round(difference), atol=1e-12)
        assert np.all((scaled(run.positions) > -1e-12) & (scaled(run.positions) < 1))

    def test_metal_units(self, tmp_path):
        # 0.5 fs frames written as 0.0005 ps would need another writer: give the time instead
        path = dump(tmp_path / "a.dump", "id element xu yu zu vx vy vz", style="metal", has_times=False, speed=1e-3)
        reader = open_trajectory(path, timestep=0.5)
        np.testing.assert_allclose(reader.read().velocities, motion()[1], atol=1e-13)
        check_velocities(reader)

    def test_times_in_picoseconds(self, tmp_path):
        path = dump(tmp_path / "a.dump", "id element xu yu zu", style="metal")
        assert open_trajectory(path).timestep == pytest.approx(500.0)  # "0.5" in ps

    def test_wrong_units_are_noticed_by_the_motion(self, tmp_path):
        path = dump(tmp_path / "a.dump", "id element xu yu zu vx vy vz", style="metal", has_times=False)
        with pytest.raises(TrajectoryError, match="check the unit of the velocities"):
            check_velocities(open_trajectory(path, timestep=0.5))

    @pytest.mark.parametrize("elements", [("O", "H", "Si"), {1: "O", 2: "H", 3: "Si"}])
    def test_types(self, tmp_path, elements):
        path = dump(tmp_path / "a.dump")
        np.testing.assert_array_equal(open_trajectory(path, elements=elements).numbers, NUMBERS)
        with pytest.raises(TrajectoryError, match="no column element; convert it with the symbols of types"):
            open_trajectory(path)
        with pytest.raises(TrajectoryError, match="atom type 3 has no element among the 2 given"):
            open_trajectory(path, elements=["O", "H"])
        with pytest.raises(TrajectoryError, match="'Xy' is not a chemical element"):
            open_trajectory(path, elements=["O", "H", "Xy"])

    def test_masses(self, tmp_path):
        path = dump(tmp_path / "a.dump", "id element mass x y z")
        np.testing.assert_allclose(open_trajectory(path).masses, default_masses(NUMBERS) * 1.001)

    def test_units_absent(self, tmp_path):
        path = dump(tmp_path / "a.dump", "id element x y z", style=None)
        with pytest.raises(TrajectoryError, match="units absent: convert it with the run's unit style"):
            open_trajectory(path)
        assert open_trajectory(path, units="real").timestep == pytest.approx(0.5)
        with pytest.raises(TrajectoryError, match="'lj' has no physical units"):
            open_trajectory(path, units="lj")

    def test_contradicting_units(self, tmp_path):
        with pytest.raises(TrajectoryError, match="units 'metal' were given, but the file says 'real'"):
            open_trajectory(dump(tmp_path / "a.dump", "id element x y z"), units="metal")

    def test_time_unknown(self, tmp_path):
        path = dump(tmp_path / "a.dump", "id element x y z", has_times=False)
        with pytest.raises(TrajectoryError, match="the time between frames is unknown"):
            open_trajectory(path)

    def test_uneven_steps(self, tmp_path):
        path = dump(tmp_path / "a.dump", "id element x y z", has_times=False)
        path.write_text(path.read_text().replace("\n120\n", "\n125\n"))
        with pytest.raises(TrajectoryError, match="frame 2 is step 125 after 110"):
            open_trajectory(path, timestep=0.5)

    def test_velocities_absent(self, tmp_path):
        reader = open_trajectory(dump(tmp_path / "a.dump", "id element x y z"))
        with pytest.raises(TrajectoryError, match="let LAMMPS dump vx vy vz"):
            reader.require_velocities()

    def test_variable_cell(self, tmp_path):
        path = dump(tmp_path / "a.dump", "id element x y z")
        head, tail = path.read_text().rsplit("BOX BOUNDS xy xz yz pp pp pp\n", 1)
        first, rest = tail.split("\n", 1)
        low, high, tilt = first.split()
        changed = f"{low} {float(high) + 0.01:.16g} {tilt}\n{rest}"
        path.write_text(f"{head}BOX BOUNDS xy xz yz pp pp pp\n{changed}")
        with pytest.raises(TrajectoryError, match="the box of frame 4 differs from frame 0"):
            open_trajectory(path)

    def test_truncated(self, tmp_path):
        path = dump(tmp_path / "a.dump", "id element xu yu zu vx vy vz")
        path.write_text(path.read_text()[:-30])
        with pytest.raises(TrajectoryError, match="frame 4 is truncated or malformed"):
            open_trajectory(path)
        run = open_trajectory(path, drop_truncated=True).read()
        np.testing.assert_allclose(run.positions, motion()[0][:4], atol=1e-11)

    def test_no_ids(self, tmp_path):
        with pytest.raises(TrajectoryError, match="no column id"):
            open_trajectory(dump(tmp_path / "a.dump", "element x y z"))

    def test_cluster_has_no_cell(self, tmp_path):
        reader = open_trajectory(dump(tmp_path / "a.dump", "id element x y z", boundary="ff ff ss"))
        assert not reader.cell.any()
        assert not reader.pbc.any()

    def test_other_files_take_no_unit_style(self, tmp_path):
        path = tmp_path / "a.xyz"
        path.write_text('1\nLattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3\nH 0 0 0\n')
        with pytest.raises(TrajectoryError, match="go with LAMMPS dumps only"):
            open_trajectory(path, timestep=1.0, units="real")

    def test_converts(self, tmp_path):
        path = dump(tmp_path / "a.dump", "id type xu yu zu vx vy vz", style=None)
        summary = convert(path, tmp_path / "out.h5", elements=["O", "H", "Si"], units="real")
        assert summary["n_frames"] == N_FRAMES
        np.testing.assert_allclose(open_trajectory(tmp_path / "out.h5").read().velocities, motion()[1], atol=1e-13)


def write_xdatcar(path: Path) -> Path:
    images = [ase.Atoms(NUMBERS, positions=p, cell=CELL, pbc=True) for p in motion()[0]]
    ase.io.write(path, images, format="vasp-xdatcar")
    return path


class TestXdatcar:
    def test_positions(self, tmp_path):
        reader = open_trajectory(write_xdatcar(tmp_path / "XDATCAR"), timestep=1.0)
        run = reader.read(1, 4, 2)
        order = [0, 1, 2, 3]
        np.testing.assert_array_equal(run.numbers, NUMBERS[order])
        difference = (run.positions - motion()[0][1:4:2]) @ np.linalg.inv(CELL)
        np.testing.assert_allclose(difference, np.round(difference), atol=1e-7)  # eight decimals of fractions
        with pytest.raises(TrajectoryError, match=r"VELOCITY = \.TRUE\. and give vaspout.h5"):
            reader.require_velocities()

    def test_time_unknown(self, tmp_path):
        with pytest.raises(TrajectoryError, match="the time between frames is unknown"):
            open_trajectory(write_xdatcar(tmp_path / "XDATCAR"))

    def test_truncated(self, tmp_path):
        path = write_xdatcar(tmp_path / "XDATCAR")
        path.write_text(path.read_text()[:-40])
        with pytest.raises(TrajectoryError, match="frame 4 is truncated"):
            open_trajectory(path, timestep=1.0)
        assert open_trajectory(path, timestep=1.0, drop_truncated=True).n_frames == 4

    def test_variable_cell(self, tmp_path):
        path = write_xdatcar(tmp_path / "XDATCAR")
        head, tail = path.read_text().rsplit("6.000000", 1)
        path.write_text(f"{head}6.010000{tail}")
        with pytest.raises(TrajectoryError, match="the cell of frame 4 differs from frame 0"):
            open_trajectory(path, timestep=1.0)

    def test_missing_frame(self, tmp_path):
        path = write_xdatcar(tmp_path / "XDATCAR")
        path.write_text(path.read_text().replace("configuration=     3", "configuration=     4"))
        with pytest.raises(TrajectoryError, match="configuration 4 follows 2"):
            open_trajectory(path, timestep=1.0)


def write_vasprun(path: Path, has_velocities: bool = True, ibrion: int = 0) -> Path:
    positions, velocities = motion()

    def rows(values: np.ndarray) -> str:
        return "".join(f"<v>{x:.16g} {y:.16g} {z:.16g}</v>" for x, y, z in values)

    steps = "".join(
        f'<calculation><structure><crystal><varray name="basis">{rows(CELL)}</varray></crystal>'
        f'<varray name="positions">{rows(p @ np.linalg.inv(CELL))}</varray>'
        + (f'<varray name="velocities">{rows(v)}</varray>' if has_velocities else "")
        + '</structure><energy><i name="e_0_energy">-3.5</i></energy></calculation>'
        for p, v in zip(positions, velocities)
    )
    atoms = "".join(f"<rc><c>{s} </c><c>{t}</c></rc>" for s, t in zip(SYMBOLS, TYPES))
    types = "".join(
        f"<rc><c>{n}</c><c>{s} </c><c>{m}</c><c>4</c><c>PAW</c></rc>"
        for n, s, m in ((1, "O", 16.0), (2, "H", 1.0), (1, "Si", 28.085))
    )
    path.write_text(
        f'<?xml version="1.0"?><modeling><incar><i name="IBRION">{ibrion}</i><i name="POTIM">0.5</i></incar><atominfo>'
        f'<array name="atoms"><set>{atoms}</set></array><array name="atomtypes"><set>{types}</set></array></atominfo>'
        f"{steps}</modeling>"
    )
    return path


class TestVasprun:
    def test_reads(self, tmp_path):
        reader = open_trajectory(write_vasprun(tmp_path / "vasprun.xml"))
        run = reader.read()
        positions, velocities = motion()
        np.testing.assert_allclose(run.positions, positions, atol=1e-13)
        np.testing.assert_allclose(run.velocities, velocities, atol=1e-15)
        np.testing.assert_array_equal(run.masses, [16.0, 1.0, 1.0, 28.085])
        assert run.timestep == 0.5
        np.testing.assert_array_equal(run.observables["potential_energy"], -3.5)
        check_velocities(reader)

    def test_frames_at_every_other_step(self, tmp_path):
        path = write_vasprun(tmp_path / "vasprun.xml")
        assert open_trajectory(path, timestep=1.0).timestep == 1.0
        with pytest.raises(TrajectoryError, match="no multiple of its POTIM"):
            open_trajectory(path, timestep=0.7)

    def test_velocities_absent(self, tmp_path):
        reader = open_trajectory(write_vasprun(tmp_path / "vasprun.xml", has_velocities=False))
        with pytest.raises(TrajectoryError, match=r"vasprun\.xml: no velocities, which spectra need"):
            reader.require_velocities()

    def test_no_md(self, tmp_path):
        with pytest.raises(TrajectoryError, match="IBRION is not 0"):
            open_trajectory(write_vasprun(tmp_path / "vasprun.xml", ibrion=2))

    def test_cut_off(self, tmp_path):
        path = write_vasprun(tmp_path / "vasprun.xml")
        path.write_text(path.read_text()[:-120])
        with pytest.raises(TrajectoryError, match="the XML ends early"):
            open_trajectory(path)
        assert open_trajectory(path, drop_truncated=True).n_frames == N_FRAMES - 1


def write_outcar(path: Path, ibrion: int = 0) -> Path:
    """Write the lines of an OUTCAR that matter, as VASP 5.4.4 prints them."""
    lattice = "".join(f"{''.join(f'{x:13.9f}' for x in v)}{''.join(f'{x:13.9f}' for x in v)}\n" for v in CELL)
    lattice = f"      direct lattice vectors                 reciprocal lattice vectors\n{lattice}"
    text = " vasp.5.4.4.18Apr17-6-g9f103f2a35 (build Oct 23 2018 15:02:45) complex\n"
    text += "".join(f"   VRHFIN ={s}: s2p4\n" for s in ("O", "H", "Si"))
    text += (
        f"   ions per type =               1   2   1\n   IBRION = {ibrion:6d}    ionic relax: 0-MD 1-quasi-New 2-CG\n"
    )
    text += "   POTIM  = 0.5000    time-step for ionic-motion\n" + lattice
    for i, p in enumerate(motion()[0]):
        text += lattice + " POSITION                                       TOTAL-FORCE (eV/Angst)\n " + 83 * "-" + "\n"
        text += "".join("".join(f"{x:13.5f}" for x in row) + "      0.1 0.2 0.3\n" for row in p)
        text += " " + 83 * "-" + "\n    total drift:  0.0 0.0 0.0\n"
        text += f"  energy  without entropy=      -71.0  energy(sigma->0) =      {-71.5 - i:.8f}\n"
    path.write_text(text)
    return path


class TestOutcar:
    def test_reads(self, tmp_path):
        run = open_trajectory(write_outcar(tmp_path / "OUTCAR")).read()
        np.testing.assert_allclose(run.positions, motion()[0], atol=5.1e-6)  # five decimals
        np.testing.assert_array_equal(run.observables["potential_energy"], -71.5 - np.arange(N_FRAMES))
        np.testing.assert_array_equal(run.numbers, NUMBERS)
        assert run.timestep == 0.5
        assert run.velocities is None

    def test_no_md(self, tmp_path):
        with pytest.raises(TrajectoryError, match="IBRION is not 0"):
            open_trajectory(write_outcar(tmp_path / "OUTCAR", ibrion=-1))

    def test_cut_off(self, tmp_path):
        path = write_outcar(tmp_path / "OUTCAR")
        text = path.read_text()
        path.write_text(text[: text.rindex(" ---")])
        with pytest.raises(TrajectoryError, match="frame 4 is truncated"):
            open_trajectory(path)
        assert open_trajectory(path, drop_truncated=True).n_frames == 4

    def test_variable_cell(self, tmp_path):
        path = write_outcar(tmp_path / "OUTCAR")
        head, tail = path.read_text().rsplit("  6.000000000", 2)[0], path.read_text().rsplit("  6.000000000", 2)[1:]
        path.write_text(head + "  6.100000000" + "  6.000000000".join(tail))
        with pytest.raises(TrajectoryError, match="the cell of frame 4 differs"):
            open_trajectory(path)


class TestVaspH5:
    @pytest.fixture
    def path(self, tmp_path):
        positions, velocities = motion()
        path = tmp_path / "vaspout.h5"
        with h5py.File(path, "w") as file:
            file["results/positions/ion_types"] = np.array(["O ", "H ", "Si"], dtype="S2")
            file["results/positions/number_ion_types"] = [1, 2, 1]
            file["input/incar/POTIM"] = 0.5
            group = file.create_group("intermediate/ion_dynamics")
            group["lattice_vectors"] = np.broadcast_to(CELL, (N_FRAMES, 3, 3))
            group["position_ions"] = positions @ np.linalg.inv(CELL)
            group["ion_velocities"] = velocities
        return path

    def test_reads(self, path):
        run = open_trajectory(path).read(1, None, 2)
        positions, velocities = motion()
        np.testing.assert_allclose(run.positions, positions[1::2], atol=1e-13)
        np.testing.assert_array_equal(run.velocities, velocities[1::2])
        assert run.timestep == 1.0

    def test_lengths_differ(self, path):
        with h5py.File(path, "a") as file:
            del file["intermediate/ion_dynamics/ion_velocities"]
            file["intermediate/ion_dynamics/ion_velocities"] = motion()[1][:3]
        with pytest.raises(TrajectoryError, match="5 frames of positions but 3 of velocities"):
            open_trajectory(path)
        assert open_trajectory(path, drop_truncated=True).n_frames == 3

    def test_variable_cell(self, path):
        with h5py.File(path, "a") as file:
            file["intermediate/ion_dynamics/lattice_vectors"][3, 0, 0] = 6.1
        with pytest.raises(TrajectoryError, match="the cell of frame 3 differs"):
            open_trajectory(path)

    def test_not_one(self, tmp_path):
        path = tmp_path / "vaspout.h5"
        path.write_bytes(b"nothing")
        with pytest.raises(TrajectoryError, match=r"not a vaspout\.h5"):
            open_trajectory(path)
