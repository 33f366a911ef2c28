"""VASP by a local executable: what is refused before and after the run without field, and settings."""

import sys
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import molecule

from mimyria_wf.errors import EngineError
from mimyria_wf.field_engine import make_engine
from mimyria_wf.vasp_engine import VaspEngine

STAND_IN = Path(__file__).with_name("vasp_stand_in.py")
VECTORS = 1e-3 * np.array([[1.0, 0, 0], [-1, 0, 0]])
INCAR = {"EDIFF": 1e-6, "ENCUT": 400, "ISMEAR": 0, "SIGMA": 0.01}


@pytest.fixture
def water() -> ase.Atoms:
    atoms = molecule("H2O", cell=[8, 8, 8], pbc=True)
    atoms.center()
    return atoms


@pytest.fixture
def make(tmp_path: Path):
    """Return a function that makes an engine on the stand-in, with words for its SYSTEM tag."""
    for symbol, valence in (("H", 1), ("O", 6)):
        (tmp_path / "potentials" / symbol).mkdir(parents=True)
        text = f"  PAW_PBE {symbol} 01Jan2000\n   TITEL  = PAW_PBE {symbol} 01Jan2000\n   ZVAL   =   {valence}.000\n"
        (tmp_path / "potentials" / symbol / "POTCAR").write_text(text + " End of Dataset\n")

    def call(words: str = "", **settings) -> VaspEngine:
        incar = {**INCAR, "SYSTEM": f"model=GFN2-xTB {words}"}
        command = f"{sys.executable} {STAND_IN}"
        return VaspEngine(incar, None, tmp_path / "potentials", command, scratch=tmp_path / "scratch", **settings)

    return call


@pytest.mark.parametrize(
    ("words", "reason"),
    [("fail=metal", "metallic: bands are filled in part"), ("fail=crash@0", "vasp ended with status 174")],
)
def test_field_points_do_not_follow_a_run_without_field_that_says_no(make, water, tmp_path, words, reason) -> None:
    found = make(words).field_results(water, VECTORS)
    assert not found.valid.any()
    assert all("not run, because of the point without field" in problem for problem in found.problems)
    assert reason in found.problems[0]
    (folder,) = (tmp_path / "scratch").iterdir()
    assert [path.name for path in folder.iterdir()] == ["zero"]  # nothing else was started


def test_a_field_beyond_the_gap_is_refused_after_the_first_run(make, water) -> None:
    found = make().field_results(water, 30 * VECTORS)  # e|E.a| = 12 eV, a gap of 14 eV
    assert found.valid.all()
    found = make().field_results(water, 50 * VECTORS)
    assert "field too strong for the gap" in found.problems[0]


def test_a_point_that_fails_costs_only_itself(make, water) -> None:
    engine = make("fail=unconverged@-x")
    found = engine.field_results(water, VECTORS)
    assert found.valid.tolist() == [True, False]
    assert "SCF did not converge" in found.problems[1]
    assert (engine.version, found.version) == ("6.4.3", "6.4.3")
    assert found.dipole_quanta is not None


def test_settings(make, water, tmp_path: Path) -> None:
    (tmp_path / "INCAR").write_text("EDIFF = 1E-8\nENCUT = 400\n")
    settings = {"potentials": str(tmp_path / "potentials"), "kpoints": [1, 1, 2], "eps_scf": 1e-7, "threads": 2}
    engine = make_engine("vasp", settings, {"template": tmp_path / "INCAR"})
    assert engine.level_of_theory["incar"] == {"EDIFF": "1e-07", "ENCUT": "400"}
    assert engine.level_of_theory["kpoints"] == [1, 1, 2, "Gamma"]
    tighter = engine.varied(eps_scf=1e-9, timeout_s=5)
    assert (tighter.level_of_theory["incar"]["EDIFF"], tighter.timeout_s, tighter.threads) == ("1e-09", 5.0, 2)
    for wrong, files, message in (
        ({}, {}, "engine vasp needs its INCAR once"),
        ({"incar": {}}, {"template": tmp_path / "INCAR"}, "engine vasp needs its INCAR once"),
        ({"functional": "PBE"}, {"template": tmp_path / "INCAR"}, "does not know the setting functional"),
        ({}, {"template": tmp_path / "none"}, "none"),
    ):
        with pytest.raises(EngineError, match=message):
            make_engine("vasp", wrong, files)
    with pytest.raises(EngineError, match="engine vasp cannot vary kpoints"):
        engine.varied(kpoints=[2, 2, 2])
    cluster = water.copy()
    cluster.pbc = False
    with pytest.raises(EngineError, match=r"pbc|periodic"):
        make().check(cluster, ["apt"], 1e-3)
