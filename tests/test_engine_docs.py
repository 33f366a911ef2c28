"""The engine of docs/engines.md, installed as the page says: registry, labels with a known answer, qualification."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from mimyria_wf.cli import main
from mimyria_wf.errors import EngineError
from mimyria_wf.field_engine import known_engines, make_engine
from mimyria_wf.finite_field import field_vectors, response_tensors
from mimyria_wf.labels import read_labels
from mimyria_wf.units import BOHR

PAGE = Path(__file__).parents[1] / "docs" / "engines.md"
CHARGES = {"O": -0.8, "H": 0.4}
POLARIZABILITY = 0.5


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the page's package, as pip would: a module and the metadata with its entry point."""
    page = PAGE.read_text()
    (module,) = re.findall(r'```python title="springs_engine.py"\n(.*?)```', page, flags=re.DOTALL)
    (project,) = re.findall(r'```toml title="pyproject.toml of its package"\n(.*?)```', page, flags=re.DOTALL)
    ((group, entries),) = tomllib.loads(project)["project"]["entry-points"].items()
    site = tmp_path / "site-packages"
    metadata = site / "springs_engine-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "springs_engine.py").write_text(module)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: springs-engine\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in entries.items()]
    (metadata / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    monkeypatch.syspath_prepend(str(site))


@pytest.fixture
def water(tmp_path: Path) -> Path:
    atoms = molecule("H2O")
    atoms.rotate(37, (1, 2, 3))
    ase.io.write(tmp_path / "water.xyz", atoms, format="extxyz")
    return tmp_path / "water.xyz"


def closed_form(atoms) -> tuple[np.ndarray, np.ndarray]:
    """Return APT (q on the diagonal) and PGT (c (b_g 1_df + b_f 1_dg), opposite at both ends) of the page's model."""
    apt = np.array([CHARGES[symbol] * np.eye(3) for symbol in atoms.get_chemical_symbols()])
    pgt = np.zeros((len(atoms), 3, 3, 3))
    for i, j in ((1, 0), (2, 0)):
        bond = POLARIZABILITY * (atoms.positions[i] - atoms.positions[j]) / BOHR
        change = np.einsum("df,g->dfg", np.eye(3), bond) + np.einsum("dg,f->dfg", np.eye(3), bond)
        pgt[i] += change
        pgt[j] -= change
    return apt, pgt


@pytest.mark.usefixtures("installed")
def test_the_pages_engine_labels_and_qualifies(water: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "springs" in known_engines()
    settings = ["--engine", "springs", "--settings", json.dumps({"charges": CHARGES})]
    assert main(["label", str(water), *settings, "-o", str(tmp_path / "l.extxyz")]) == 0
    (labelled,) = read_labels(tmp_path / "l.extxyz", ["apt", "pgt"], stated=True)
    apt, pgt = closed_form(labelled.atoms)
    np.testing.assert_allclose(labelled.apt, apt, atol=1e-7)  # eight decimals of the file
    np.testing.assert_allclose(labelled.pgt, pgt, atol=1e-7)
    options = ["--atoms", "0", "1", "-o", str(tmp_path / "q")]
    assert main(["qualify", str(water), *settings, *options]) == 0
    assert capsys.readouterr().out.count("REFUSED") == 0


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"charges": {"O": -0.8}}, "springs: no charge of H: add it to charges"),
        (
            {"charges": CHARGES, "colour": 1},
            "engine springs does not know the setting colour (known: charges",
        ),
        ({}, "engine springs needs the setting charges (charge of each element [e])"),
    ],
)
def test_the_pages_engine_refuses_in_one_line(water: Path, tmp_path: Path, settings, message, capsys) -> None:
    arguments = ["label", str(water), "--engine", "springs", "--settings", json.dumps(settings)]
    assert main([*arguments, "-o", str(tmp_path / "l.extxyz")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line or re.search(message, line)


@pytest.mark.usefixtures("installed")
def test_a_reversed_sign_or_a_normalised_direction_is_refused(water: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """What an author gets wrong first, qualify says."""
    import springs_engine

    right = springs_engine.SpringsEngine.field_results

    def reversed_sign(self, atoms, vectors):
        found = right(self, atoms, -np.asarray(vectors))
        return type(found)(vectors, found.forces, found.version, dipoles=right(self, atoms, vectors).dipoles)

    def normalised(self, atoms, vectors):
        lengths = np.abs(vectors).max(axis=1)
        given = [v / (np.linalg.norm(v) or 1) * length for v, length in zip(vectors, lengths, strict=True)]
        found = right(self, atoms, np.array(given))
        return type(found)(vectors, found.forces, found.version, dipoles=found.dipoles)

    for wrong, words in ((reversed_sign, "spatial"), (normalised, "mixed points felt 0.707")):
        monkeypatch.setattr(springs_engine.SpringsEngine, "field_results", wrong)
        arguments = ["qualify", str(water), "--engine", "springs", "--settings", json.dumps({"charges": CHARGES})]
        assert main([*arguments, "--atoms", "0", "-o", str(tmp_path / wrong.__name__)]) == 1
        assert words in capsys.readouterr().err


@pytest.mark.usefixtures("installed")
def test_the_pages_engine_is_what_response_tensors_expect() -> None:
    engine = make_engine("springs", {"charges": CHARGES, "polarizability": POLARIZABILITY})
    atoms = molecule("H2O")
    vectors = np.array(list(field_vectors(1e-3, ["pgt"]).values()))
    tensors = response_tensors(vectors, engine.forces(atoms, vectors))
    apt, pgt = closed_form(atoms)
    np.testing.assert_allclose(tensors.apt, apt, atol=1e-12)
    np.testing.assert_allclose(tensors.pgt, pgt, atol=1e-8)  # round-off 1e-16 / field**2


def test_the_pages_package_installs(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    page = PAGE.read_text()
    for title, name in (
        ("springs_engine.py", "springs_engine.py"),
        ("pyproject.toml of its package", "pyproject.toml"),
    ):
        (text,) = re.findall(rf'```\w+ title="{title}"\n(.*?)```', page, flags=re.DOTALL)
        (tmp_path / "package").mkdir(exist_ok=True)
        (tmp_path / "package" / name).write_text(text)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(tmp_path / "site")]
    command = [sys.executable, "-m", "pip", "install", *options, str(tmp_path / "package")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (found,) = distributions(path=[str(tmp_path / "site")])
    (entry,) = found.entry_points
    assert (entry.group, entry.name, entry.value) == ("mimyria_wf.engines", "springs", "springs_engine:SpringsEngine")
    assert (tmp_path / "site" / "springs_engine.py").is_file()


@pytest.mark.usefixtures("installed")
def test_the_pages_engine_heeds_charge_and_multiplicity(water: Path, tmp_path: Path, capsys) -> None:
    arguments = ["label", str(water), "--engine", "springs", "--settings", json.dumps({"charges": CHARGES})]
    for more in (["--charge", "1"], ["--multiplicity", "3"]):
        assert main([*arguments, *more, "-o", str(tmp_path / "l.extxyz")]) == 1
        assert "springs: the charges add up to 0 in a singlet" in capsys.readouterr().err


CALCULATOR = """
import numpy as np
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes

class FieldCalculator(Calculator):
    implemented_properties = ["forces", "dipole"]

    def __init__(self, field, charge, threshold):
        super().__init__()
        self.field, self.charge, self.threshold = field, charge, threshold

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if self.field[2] < -0.04:
            raise CalculationFailed("SCF did not\\nconverge")
        charges = np.array([-0.8 if z == 8 else 0.4 for z in self.atoms.numbers]) + self.charge / len(self.atoms)
        self.results = {"forces": np.outer(charges, self.field), "dipole": charges @ self.atoms.positions}
"""


def test_the_pages_ase_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (module,) = re.findall(r'```python title="ase_engine.py"\n(.*?)```', PAGE.read_text(), flags=re.DOTALL)
    (tmp_path / "ase_engine.py").write_text(module)
    (tmp_path / "my_calculator.py").write_text(CALCULATOR)
    monkeypatch.syspath_prepend(str(tmp_path))
    from ase_engine import AseEngine

    atoms = molecule("H2O")
    vectors = np.array(list(field_vectors(1e-3, ["apt"]).values()))
    found = AseEngine().field_results(atoms, vectors)
    assert found.problems == ("",) * 5 + ("SCF did not converge",)
    charges = np.array([CHARGES[symbol] for symbol in atoms.get_chemical_symbols()])
    np.testing.assert_allclose(found.forces[0], np.outer(charges, vectors[0]), rtol=1e-12)
    np.testing.assert_allclose(found.dipoles[0], charges @ atoms.positions / BOHR)
    assert AseEngine().varied(eps_scf=1e-6).level_of_theory["threshold"] == 1e-6
    with pytest.raises(EngineError, match="only closed-shell clusters"):
        AseEngine().field_results(molecule("H2O", pbc=True, cell=[9, 9, 9]), vectors)


@pytest.mark.usefixtures("installed", "water")
def test_the_pages_campaign_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r'```yaml title="water_springs.yaml"\n(.*?)```', PAGE.read_text(), flags=re.DOTALL)
    (tmp_path / "water_springs.yaml").write_text(text)
    assert main(["validate", str(tmp_path / "water_springs.yaml"), "--without-aiida"]) == 0


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("debug", [False, True])
def test_a_traceback_is_shown_only_on_request(water: Path, tmp_path: Path, monkeypatch, capsys, debug) -> None:
    import springs_engine

    monkeypatch.setattr(springs_engine.SpringsEngine, "field_results", lambda self, atoms, vectors: {}["Xx"])
    arguments = ["label", str(water), "--engine", "springs", "--settings", json.dumps({"charges": CHARGES})]
    assert main([*arguments, *["--debug"] * debug, "-o", str(tmp_path / "l.extxyz")]) == 1
    *traceback, last = capsys.readouterr().err.splitlines()
    assert last == "error: engine springs failed for H2O: KeyError: 'Xx'"
    assert any("Traceback" in line for line in traceback) == debug
