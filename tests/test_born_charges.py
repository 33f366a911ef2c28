"""Born charges of published VASP runs times the velocities of the frames that they belong to."""

from pathlib import Path

import numpy as np
import pytest

from mimyria_wf.born_charges import born_charge_series
from mimyria_wf.derivatives import read_derivatives
from mimyria_wf.errors import SpectrumError, TrajectoryError
from mimyria_wf.property_series import derive_files
from mimyria_wf.trajectory import Trajectory, default_masses, open_trajectory, write_trajectory

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "sio2_md_dfpt_vasp"
OUTCARS = [DATA / "outcar" / f"{10 * (i + 1):06d}.OUTCAR.gz" for i in range(8)]

pytestmark = [
    pytest.mark.reference_data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent"),
]


@pytest.fixture(scope="module")
def arrays():
    with np.load(DATA / "mdraman_bec_eps.npz") as file:
        return {key: file[key] for key in file}


def write_run(path: Path, arrays: dict, stop: int = 100, **changes) -> Path:
    """Write the first MD steps, 1 fs apart, wrapped into another image than VASP's to be independent of it."""
    run = {
        "numbers": arrays["numbers"],
        "positions": arrays["pos_all"][:stop].astype(float) + arrays["cell"][0] - 2 * arrays["cell"][2],
        "velocities": arrays["vel_all"][:stop].astype(float),
        "cell": arrays["cell"],
        "pbc": np.ones(3, dtype=bool),
        "timestep": 1.0,
        "masses": default_masses(arrays["numbers"]),
    }
    write_trajectory(path, Trajectory(**{**run, **changes}))
    return path


def test_finds_its_frames(arrays, tmp_path):
    trajectory = write_run(tmp_path / "run.h5", arrays)
    result = derive_files(OUTCARS, tmp_path / "d.h5", kind="born-charges", trajectory=trajectory, timestep=10.0)
    series = read_derivatives(tmp_path / "d.h5")
    expected = np.einsum("tifa,tia->tf", arrays["Z"][:8], arrays["vel"][:8])  # rows of VASP's blocks are fields
    np.testing.assert_allclose(series.total_dipole_derivative, expected, atol=1e-8)  # single-precision velocities
    assert series.origin == "velocities"
    assert series.apt_square is not None  # so the equipartition gate applies
    assert result["notes"] == ["first configuration is frame 9 of run.h5"]
    assert result["n_frames"] == 8


def test_a_configuration_is_missing(arrays, tmp_path):
    reader = open_trajectory(write_run(tmp_path / "run.h5", arrays))
    with pytest.raises(SpectrumError, match=r"000040\.OUTCAR\.gz: its atoms are up to .* A away from frame 29"):
        born_charge_series([*OUTCARS[:2], *OUTCARS[3:]], reader, timestep=10.0)


def test_wrong_time_between_configurations(arrays, tmp_path):
    reader = open_trajectory(write_run(tmp_path / "run.h5", arrays))
    with pytest.raises(SpectrumError, match=r"000020\.OUTCAR\.gz: its atoms are up to .* frame 14"):
        born_charge_series(OUTCARS, reader, timestep=5.0)
    with pytest.raises(SpectrumError, match=r"should be frame 149 of .* which has 100 frames"):
        born_charge_series(OUTCARS, reader, timestep=20.0)
    with pytest.raises(SpectrumError, match=r"2\.5 fs between configurations is no multiple of the 1 fs"):
        born_charge_series(OUTCARS, reader, timestep=2.5)


def test_another_run(arrays, tmp_path):
    late = {key: arrays[f"{key}_all"][500:600].astype(float) for key in ("pos", "vel")}
    path = write_run(tmp_path / "run.h5", arrays, positions=late["pos"], velocities=late["vel"])
    with pytest.raises(SpectrumError, match=r"000010\.OUTCAR\.gz: no frame of .* has these positions; the nearest"):
        born_charge_series(OUTCARS, open_trajectory(path), timestep=10.0)


def test_another_order_of_atoms(arrays, tmp_path):
    order = np.arange(9)[::-1]
    path = write_run(tmp_path / "run.h5", arrays, numbers=arrays["numbers"][order])
    with pytest.raises(SpectrumError, match="the order of atoms must be the same"):
        born_charge_series(OUTCARS, open_trajectory(path), timestep=10.0)


def test_no_velocities(arrays, tmp_path):
    path = write_run(tmp_path / "run.h5", arrays, velocities=None)
    with pytest.raises(TrajectoryError, match="no velocities, which spectra need"):
        born_charge_series(OUTCARS, open_trajectory(path), timestep=10.0)
    with pytest.raises(SpectrumError, match="Born charges need the velocities of their run"):
        derive_files(OUTCARS, tmp_path / "d.h5", kind="born-charges", timestep=10.0)
