"""What is installed is what is in the tree, and dependencies point one way."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INSTALLED = {
    "mimyria_wf": "mimyria_wf",
    "calculators": "mimyria_wf/calculators",
    "workchains": "mimyria_wf/workchains",
    "templates": "mimyria_wf/templates",
}
CORE = sorted(path for path in (ROOT / "mimyria_wf").glob("*.py"))


def tracked_files() -> list[str]:
    """Return the paths that git tracks and that are there; skip where this is no git checkout."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("needs a git checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]


def imported_modules(path: Path) -> set[str]:
    """Return the absolute names of all modules that a file imports, wherever in the file it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(str(node.module))
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def is_below(name: str, package: str) -> bool:
    """Say whether a module is `package` or part of it."""
    return name == package or name.startswith(package + ".")


@pytest.mark.slow
def test_wheel_through_sdist_holds_the_tracked_tree_and_nothing_else(tmp_path: Path) -> None:
    """Build as pip does for others: tree -> sdist -> wheel; every tracked file arrives, with its content."""
    tree, unpacked = tmp_path / "tree", tmp_path / "unpacked"
    names = tracked_files()
    for name in names:
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target, follow_symlinks=False)

    def build(kind: str, where: Path) -> Path:
        out = tmp_path / kind
        out.mkdir()
        call = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
        done = subprocess.run([sys.executable, "-c", call], cwd=where, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        (built,) = out.iterdir()
        return built

    with tarfile.open(build("sdist", tree)) as archive:
        # Python 3.11.4 brought the argument, 3.12 warns without it
        archive.extractall(unpacked, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = unpacked.iterdir()
    wheel = zipfile.ZipFile(build("wheel", source))

    expected = {}
    for name in names:
        top, _, rest = name.partition("/")
        if top in INSTALLED and rest and not (ROOT / name).is_symlink():
            expected[f"{INSTALLED[top]}/{rest}"] = (ROOT / name).read_bytes()
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected.keys()
    assert all(wheel.read(name) == content for name, content in expected.items())
    (table,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "mimyria-wf = mimyria_wf.cli:main" in wheel.read(table).decode()
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


@pytest.mark.parametrize("name", ["calculators", "workchains", "templates"])
def test_symlinks_for_editors_and_type_checkers_resolve(name: str) -> None:
    link = ROOT / "mimyria_wf" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name  # relative, so that it holds in every checkout
    assert (link / "__init__.py").is_file()


def test_parts_are_found_under_the_package_from_any_folder(tmp_path: Path) -> None:
    """A folder workchains/ beside the user's script must not run in place of ours."""
    for name in ("workchains", "calculators"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong folder was imported')\n")
    code = "import mimyria_wf.workchains.windowed as w, mimyria_wf.calculators.md as m; print(w.__name__, m.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["mimyria_wf.workchains.windowed", "mimyria_wf.calculators.md"], done.stderr


@pytest.mark.slow
def test_importing_the_core_leaves_aiida_out() -> None:
    names = [f"mimyria_wf.{path.stem}" for path in CORE if path.stem != "__init__"]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('aiida', 'aiida_cp2k', 'plumpy')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_core_imports_neither_aiida_nor_what_is_built_on_it(path: Path) -> None:
    """Not even inside functions: entry points are the only way from the core to the verbs that need AiiDA."""
    forbidden = ("aiida", "mimyria_wf.calculators", "mimyria_wf.workchains")
    assert not [name for name in imported_modules(path) if any(is_below(name, bad) for bad in forbidden)]


@pytest.mark.parametrize("path", sorted((ROOT / "calculators").glob("*.py")), ids=lambda path: path.stem)
def test_calculators_import_no_workchains(path: Path) -> None:
    assert not [name for name in imported_modules(path) if is_below(name, "mimyria_wf.workchains")]


def test_no_module_imports_the_parts_by_their_bare_names() -> None:
    files = [path for top in INSTALLED for path in (ROOT / top).glob("*.py")] + sorted((ROOT / "tests").glob("*.py"))
    for path in files:
        bare = [name for name in imported_modules(path) if name.split(".")[0] in ("calculators", "workchains")]
        assert not bare, f"{path.name} imports {bare}: write mimyria_wf.{bare[0]}"


def declared_entry_points() -> list[tuple[str, str, str]]:
    """Return (group, name, value) of all entry points in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {**project["entry-points"], "console_scripts": project["scripts"]}
    return [(group, name, value) for group, entries in groups.items() for name, value in entries.items()]


@pytest.mark.parametrize(("group", "name", "value"), declared_entry_points())
def test_entry_points_are_installed_and_load(group: str, name: str, value: str) -> None:
    found = [entry for entry in entry_points(group=group, name=name) if entry.value.startswith("mimyria_wf.")]
    assert [entry.value for entry in found] == [value], "install the package again: its entry points have changed"
    assert found[0].load() is not None


def test_every_process_and_parser_has_an_entry_point() -> None:
    """AiiDA stores the entry point of a process; without one its nodes cannot be understood elsewhere."""
    values = {value for _, _, value in declared_entry_points()}
    for part in ("calculators", "workchains"):
        for path in (ROOT / part).glob("*.py"):
            for node in ast.parse(path.read_text()).body:
                is_process = isinstance(node, ast.ClassDef) and node.name.endswith(("Calculation", "WorkChain"))
                if is_process and not node.name.startswith("_"):
                    value = f"mimyria_wf.{part}.{path.stem}:{node.name}"
                    bases = ("RepeatableCalculation", "ConsoleCalculation", "WindowedWorkChain", "VaspWorkChain")
                    is_base = node.name in bases
                    assert is_base or value in values, f"{value} has no entry point"
