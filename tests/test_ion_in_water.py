"""Cross-correlation analysis of a real trajectory of an ion in water, with waters that change shells."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mimyria_wf.cca import additivity, cca_spectra
from mimyria_wf.derivatives import read_derivatives
from mimyria_wf.engines import label_trajectory
from mimyria_wf.frames import Trajectory
from mimyria_wf.spectrum import SpectrumSettings, ir_spectrum, raman_spectrum
from mimyria_wf.tblite_engine import TbliteEngine
from mimyria_wf.trajectory import open_trajectory, write_trajectory

N_WATERS = 5
N_FRAMES = 100


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chloride and five waters, GFN2-xTB, 1 fs steps; hot, so that distances change within 0.1 ps."""
    from tblite.ase import TBLite

    rng = np.random.default_rng(2)
    atoms = Atoms("Cl", positions=np.zeros((1, 3)))
    water = molecule("H2O")
    water.translate(-water.positions[0])
    tail = water.positions[1] / np.linalg.norm(water.positions[1])
    for place in ([3.1, 0, 0], [0, 3.2, 0], [0, 0, 3.15], [-3.3, 0, 0], [0, -2.3, -4.2]):
        one = water.copy()
        turn, _ = Rotation.align_vectors([-np.array(place) / np.linalg.norm(place)], [tail])
        one.positions = turn.apply(one.positions) + place
        atoms += one
    atoms.calc = TBLite(method="GFN2-xTB", charge=-1, verbosity=0)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * np.sqrt(atoms.get_masses() * units.kB * 500)[:, None])
    Stationary(atoms)
    positions, velocities = [], []
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)

    def keep() -> None:
        positions.append(atoms.get_positions())
        velocities.append(atoms.get_velocities() * units.fs)

    dynamics.attach(keep)
    dynamics.run(N_FRAMES - 1)
    path = tmp_path_factory.mktemp("ion") / "run.h5"
    write_trajectory(
        path,
        Trajectory(
            atoms.numbers,
            np.array(positions),
            np.array(velocities),
            np.zeros((3, 3)),
            np.zeros(3, dtype=bool),
            1.0,
            atoms.get_masses(),
            "run",
            metadata={"charge": -1},
        ),
    )
    return path


@pytest.fixture(scope="module")
def radius(run: Path) -> float:
    """A distance from the ion that some water crosses."""
    positions: NDArray[Any] = open_trajectory(run).read().positions
    distances = np.linalg.norm(positions[:, 1::3] - positions[:, :1], axis=2)
    widest = int(np.argmax(np.ptp(distances, axis=0)))
    return float(np.median(distances[:, widest]))


@pytest.mark.slow
@pytest.mark.parametrize("relations", [False, True])
def test_parts_of_an_ion_in_water_sum_to_the_total(run: Path, radius: float, tmp_path: Path, relations: bool) -> None:
    text = f"""
units: molecules
groups:
  ion: {{species: Cl}}
  shell: {{within: {{of: ion, by: {{species: O}}, distance: {radius:.4f}}}}}
  water: {{molecule: H2O}}
"""
    (tmp_path / "groups.yaml").write_text(text + ("relations: [self, hydrogen bonded]\n" if relations else ""))
    label_trajectory(
        open_trajectory(run),
        TbliteEngine(accuracy=0.01),
        ["apt", "pgt"],
        1e-3,
        tmp_path / "run.h5",
        stop=None if relations else 60,
        volume=300.0,
        groups=tmp_path / "groups.yaml",
    )
    series = read_derivatives(tmp_path / "run.h5")
    assert series.group_names == ("ion", "shell", "water")
    assert series.occupancies is not None
    assert series.occupancies.sum() == pytest.approx(1 + 3 * N_WATERS)
    if relations:
        assert series.occupancies[1] % 3 > 0  # a water has crossed
    settings = SpectrumSettings(window_length=30.0, n_bootstrap=2)
    cca = cca_spectra([series], settings)
    assert cca is not None
    assert len(cca.parts) == (18 if relations else 6)
    found = additivity(cca, ir_spectrum([series], settings), raman_spectrum([series], settings))
    assert len(found) == 30
    assert max(found.values()) < 1e-10
    assert cca.ir.min() < 0  # cross terms are kept as they are
