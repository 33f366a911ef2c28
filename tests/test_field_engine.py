"""What engines promise: a verdict on each point, registry, defaults; and programs that fail in every way."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from mimyria_wf.cp2k_engine import Cp2kEngine
from mimyria_wf.errors import EngineError
from mimyria_wf.field_engine import FieldEngine, FieldResults, engine_class, known_engines, make_engine, together
from mimyria_wf.program_engine import ProgramEngine, ProgramRun, file_name, named_points

VECTORS = 1e-3 * np.array([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0]])


def results(**changes) -> FieldResults:
    return FieldResults(**{"field_vectors": VECTORS, "forces": np.ones((3, 2, 3)), "version": "1", **changes})


def test_problems_and_forces_say_the_same():
    sound = results()
    assert sound.valid.all()
    assert sound.problems == ("", "", "")
    forces = np.ones((3, 2, 3))
    forces[2, 1, 0] = np.inf
    spoilt = results(forces=forces, problems=("", "SCF did not converge", ""))
    assert spoilt.valid.tolist() == [True, False, False]
    assert spoilt.problems == ("", "SCF did not converge", "forces that are not finite (atom 1)")
    assert np.isnan(spoilt.forces[1:]).all()
    assert np.isfinite(spoilt.forces[0]).all()
    assert np.isfinite(forces[1]).all()  # the caller's array is left alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forces": np.ones((2, 2, 3))}, r"forces must have shape \(3, n_atoms, 3\), got \(2, 2, 3\)"),
        ({"problems": ("",)}, "1 problems for 3 field points"),
        ({"dipoles": np.ones((3, 2))}, r"dipoles must have shape \(3, 3\)"),
        ({"gaps": np.ones(2)}, r"gaps must have shape \(3,\)"),
        ({"field_vectors": np.ones(3)}, "field vectors must have shape"),
        ({"version": None}, "the version must be text, got None"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(EngineError, match=message):
        results(**changes)


def test_the_gap_is_that_of_the_weakest_field():
    assert results(gaps=np.array([7.0, 6.0, 5.0])).gap == 7.0
    assert results(gaps=np.array([np.nan, 6.0, 5.0])).gap is None
    assert results(gap=3.0, gaps=np.array([7.0, 6.0, 5.0])).gap == 3.0


def test_parts_of_a_field_set_go_together():
    whole = together(
        [
            results(dipoles=np.zeros((3, 3)), seconds=1.0),
            results(problems=("", "", "no output"), dipoles=np.ones((3, 3)), gap=5.0, seconds=2.0),
        ]
    )
    assert whole.problems[5] == "no output"
    assert whole.forces.shape == (6, 2, 3)
    assert (whole.dipoles[0, 0], whole.dipoles[3, 0], whole.gap, whole.seconds) == (0.0, 1.0, 5.0, 3.0)


def test_engines_are_found_by_name():
    assert {"cp2k", "tblite", "vasp"} <= set(known_engines())
    for name in ("cp2k", "tblite", "vasp"):
        assert engine_class(name).name == name
        assert all(text for text in engine_class(name).settings.values())
    with pytest.raises(EngineError, match=r"unknown engine 'orca', known: cp2k, tblite, vasp; a package adds one"):
        make_engine("orca")


def test_settings_of_an_engine_are_checked():
    with pytest.raises(EngineError, match="engine tblite does not know the setting speed"):
        make_engine("tblite", {"speed": 3})
    with pytest.raises(EngineError, match="engine tblite takes no template"):
        make_engine("tblite", {}, {"template": "x.inp"})
    with pytest.raises(EngineError, match="tblite's method must be one of"):
        make_engine("tblite", {"method": "PM6"})
    assert make_engine("tblite", {"eps_scf": 1e-6}).level_of_theory["accuracy"] == 0.05
    with pytest.raises(EngineError, match=r"tblite cannot vary basis \(known: eps_scf"):
        make_engine("tblite").varied(basis="big")


def test_settings_that_do_not_fit_are_one_line(monkeypatch: pytest.MonkeyPatch):
    class Named(FieldEngine):
        name, version, level_of_theory = "named", "1", {"program": "named"}
        settings = {"charge": "of an atom [e]", "cutoff": "[A]"}

        def __init__(self, charge, cutoff=3.0):
            self.charge, self.cutoff = float(charge), float(cutoff)

        def field_results(self, atoms, vectors):
            raise NotImplementedError

    monkeypatch.setattr("mimyria_wf.field_engine.engine_class", lambda name: Named)
    assert make_engine("named", {"charge": 1}).cutoff == 3.0
    with pytest.raises(EngineError, match=r"^engine named needs the setting charge \(of an atom \[e\]\)$"):
        make_engine("named", {"cutoff": 2})
    message = '^engine named cannot be set up with charge 1, cutoff "far": ValueError: could not convert .* float'
    with pytest.raises(EngineError, match=message):
        make_engine("named", {"charge": 1, "cutoff": "far"})


def test_a_point_that_fails_alone_names_itself():
    class Halting(FieldEngine):
        name, version, level_of_theory = "halting", "1", {"program": "halting"}

        def field_results(self, atoms, vectors):
            return results(forces=np.ones((3, 3, 3)), problems=("", "", "SCF did not converge"))

    with pytest.raises(EngineError, match=r"halting failed at field point -x of H2O: SCF did not converge"):
        Halting().forces(molecule("H2O"), VECTORS)
    assert Halting().check(molecule("H2O"), ["apt"], 1e-3) == []
    assert Halting().polarizability(molecule("H2O")) is None
    with pytest.raises(EngineError, match="engine halting cannot vary eps_scf"):
        Halting().varied(eps_scf=1e-7)


# ------------------------------------------------------------------------------------------------------------- programs

PROGRAM = """
import sys, time
from pathlib import Path
field = [float(x) for x in Path("input").read_text().split()]
start = Path("start").read_text() if Path("start").exists() else "none"
behaviour = sys.argv[1]
if behaviour == "slow" and any(field):
    time.sleep(60)
if behaviour == "crash" and field[0] > 0:
    print("out of luck")
    sys.exit(3)
if behaviour == "first" and not any(field):
    sys.exit("no start")
Path("wavefunction").write_text("converged")
Path("forces").write_text(" ".join(str(x) for x in field) + " " + start)
"""


class Scripted(ProgramEngine):
    """A program whose force on each atom is the field."""

    name = "scripted"
    version = "1"
    level_of_theory = {"program": "scripted"}

    def runs(self, atoms, vectors):
        return [
            ProgramRun(
                name,
                folder=file_name(name),
                files={"input": " ".join(map(str, vector))},
                needs=None if name == "0" else "0",
                takes=() if name == "0" else (("zero/wavefunction", "start"),),
            )
            for name, vector in {"0": np.zeros(3), **vectors}.items()
        ]

    def read(self, folder, atoms, vectors):
        forces, problems = np.full((len(vectors), len(atoms), 3), np.nan), []
        for k, name in enumerate(vectors):
            path = folder / file_name(name) / "forces"
            problems.append("" if path.exists() else "no forces")
            if path.exists():
                *field, start = path.read_text().split()
                assert start == ("none" if name == "0" else "converged")
                forces[k] = [float(x) for x in field]
        return FieldResults(np.array(list(vectors.values())), forces, "1", tuple(problems))


@pytest.fixture
def scripted(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)

    def make(behaviour: str = "well", **settings) -> Scripted:
        command = f"{sys.executable} -S {tmp_path / 'program.py'} {behaviour}"
        return Scripted(command, scratch=tmp_path / "scratch", **settings)

    return make


def left(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "scratch").iterdir())


def test_a_program_runs_point_by_point_from_the_first_wavefunction(scripted, tmp_path: Path):
    found = scripted().field_results(molecule("H2O"), VECTORS)
    assert found.valid.all()
    np.testing.assert_array_equal(found.forces, np.repeat(VECTORS[:, None], 3, axis=1))
    assert left(tmp_path) == []


def test_a_point_that_crashes_costs_only_itself_and_its_folder_stays(scripted, tmp_path: Path):
    found = scripted("crash").field_results(molecule("H2O"), VECTORS)
    assert found.valid.tolist() == [True, False, True]
    (folder,) = left(tmp_path)
    assert found.problems[1] == f"scripted ended with status 3: out of luck (files kept in {folder})"


def test_nothing_runs_after_a_first_run_that_failed(scripted, tmp_path: Path):
    found = scripted("first").field_results(molecule("H2O"), VECTORS[1:])
    assert not found.valid.any()
    assert "not run, because of the point without field: scripted ended with status 1: no start" in found.problems[0]
    (folder,) = left(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["zero"]


def test_a_run_that_takes_too_long_is_ended(scripted):
    began = time.monotonic()
    found = scripted("slow", timeout_s=2.0).field_results(molecule("H2O"), VECTORS[:2])
    assert time.monotonic() - began < 50  # of the 60 s that the program would sleep
    assert found.problems[0] == ""
    assert "scripted was ended after 2 s: raise timeout_s" in found.problems[1]


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(EngineError, match=r"engine scripted: nosuch cannot be run \(No such file or directory\)"):
        Scripted("nosuch", scratch=tmp_path / "scratch").field_results(molecule("H2O"), VECTORS)
    assert left(tmp_path) == []
    for command in ("", "'unclosed"):
        with pytest.raises(EngineError, match="engine scripted"):
            Scripted(command)
    with pytest.raises(EngineError, match="must be positive"):
        Scripted("x", timeout_s=0)


def test_a_point_that_did_not_converge_from_a_guess_is_repeated_without(tmp_path: Path):
    """The program here converges only from the input as it was rendered."""
    program = tmp_path / "cp2k.py"
    program.write_text(
        "import sys\n"
        "guessed = 'GUESS' in open(sys.argv[2]).read()\n"
        "print('  *** SCF run NOT converged ***' if guessed else '  *** SCF run converged in 9 steps ***')\n"
    )

    class Guessing(Cp2kEngine):
        def runs(self, atoms, vectors):
            return [ProgramRun("0", files={"zero.inp": "&GLOBAL"}, arguments=("-i", "zero.inp"), output="zero.out")]

        def prepare(self, folder, run, atoms):
            (folder / "zero.inp").write_text("GUESS")

    engine = Guessing("&FORCE_EVAL\n&END\n", f"{sys.executable} -S {program}", scratch=tmp_path / "scratch")
    folder, _ = engine.executed(engine.runs(None, {}), molecule("H2O"), {})
    assert (folder / "zero.inp").read_text() == "&GLOBAL"
    assert "converged in 9 steps" in (folder / "zero.out").read_text()


def test_kept_results_are_not_computed_again(scripted, tmp_path: Path):
    engine = scripted(results=tmp_path / "kept")
    first = engine.field_results(molecule("H2O"), VECTORS)
    (tmp_path / "program.py").write_text("raise SystemExit('must not run')")
    again = engine.field_results(molecule("H2O"), VECTORS)
    np.testing.assert_array_equal(again.forces, first.forces)
    assert not engine.field_results(molecule("H2O"), 2 * VECTORS).valid.any()  # other fields do run
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_points_have_names_of_their_own():
    named = named_points(np.array([[0, 0, 0], [1e-3, 0, 0], [2e-3, 0, 0], [1e-3, -2e-3, 0]]))
    assert list(named) == ["0", "+x", "+x.2", "(0.001, -0.002, 0)"]
    files = [file_name(name) for name in named]
    assert files[:3] == ["zero", "px", "px.2"]
    assert len(set(files)) == 4
    assert all(" " not in name and "(" not in name for name in files)


def test_a_template_that_cannot_work_is_refused_before_anything_runs(tmp_path: Path):
    template = "&FORCE_EVAL\n METHOD FIST\n&END\n"
    engine = Cp2kEngine(template, "nosuch")
    atoms = molecule("H2O", cell=[8, 8, 8], pbc=True)
    for call in (lambda: engine.check(atoms, ["apt"], 1e-3), lambda: engine.forces(atoms, VECTORS)):
        with pytest.raises(EngineError, match="METHOD FIST has no electrons that answer a field"):
            call()
    with pytest.raises(EngineError, match="never closed"):
        Cp2kEngine("&FORCE_EVAL\n")
    with pytest.raises(EngineError, match="engine cp2k needs --template FILE"):
        make_engine("cp2k")
    with pytest.raises(EngineError, match=r"none\.inp cannot be read: No such file"):
        make_engine("cp2k", {}, {"template": tmp_path / "none.inp"})


def test_a_threshold_of_cp2k_is_another_level_of_theory():
    template = "&FORCE_EVAL\n&DFT\n&SCF\nEPS_SCF 1e-6\n&END\n&END\n&END\n"
    engine = Cp2kEngine(template, threads=2)
    tighter = engine.varied(eps_scf=1e-8)
    assert tighter.template.keyword("FORCE_EVAL/DFT/SCF/EPS_SCF") == "1e-08"
    assert tighter.level_of_theory != engine.level_of_theory
    assert (tighter.threads, tighter.command) == (2, ("cp2k.psmp",))
    assert engine.varied(threads=1).level_of_theory == engine.level_of_theory
    assert Cp2kEngine(template.replace("\n&DFT", " ! a comment\n&DFT")).level_of_theory == engine.level_of_theory
