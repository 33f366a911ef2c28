"""The verbs without AiiDA, called as a user calls them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.io
import ase.units
import numpy as np
import pytest
from ase.build import molecule

from mimyria_wf.cli import all_verbs, main, plain, readable, stride_text
from mimyria_wf.field_forces import read_field_forces
from mimyria_wf.labels import configuration_key, read_labels
from mimyria_wf.spectra_files import read_table
from mimyria_wf.trajectory import open_trajectory

VERBS = [verb.name for verb in all_verbs()]
TINY = {"multiplicities": [4, 2], "n_layers": 1, "radial_hidden": [8], "n_radial": 4, "n_steps": 3, "cutoff": 4.0}
Cli = Callable[..., dict[str, Any]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return a function that runs a verb with --json, which must succeed, and gives its result."""

    def call(*arguments: object) -> dict[str, Any]:
        status = main([*map(str, arguments), "--json"])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return dict(json.loads(captured.out))  # nothing but JSON may be there

    return call


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a verb which must refuse its input with one line, and gives that line."""

    def call(*arguments: object) -> str:
        status = main([*map(str, arguments)])
        captured = capsys.readouterr()
        assert status == 1
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return call


def waters(n: int, seed: int = 1, spread: float = 0.05) -> list[ase.Atoms]:
    """Return distorted water molecules of two trajectories."""
    random = np.random.default_rng(seed)
    snapshots = []
    for k in range(n):
        atoms = molecule("H2O")
        atoms.positions += random.normal(scale=spread, size=(3, 3))
        atoms.info |= {"charge": 0, "snapshot": f"nve-{seed:03d}/{100 * k}"}
        snapshots.append(atoms)
    return snapshots


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with labelled water molecules, two models and two NVE runs, each made by its verb."""
    path = tmp_path_factory.mktemp("verbs")
    ase.io.write(path / "A0.extxyz", waters(4))
    ase.io.write(path / "B0.extxyz", waters(3, seed=2))
    ase.io.write(path / "C0.extxyz", waters(3, seed=3))
    ase.io.write(path / "water.xyz", molecule("H2O"))
    for name in ("A", "B", "C"):
        arguments = f"label {path}/{name}0.extxyz --engine tblite --targets apt pgt -o {path}/{name}.extxyz"
        assert main(arguments.split()) == 0
    for target, preset, settings in (("apt", "paper", TINY), ("pgt", "default", {"n_steps": 3})):
        arguments = f"train --target {target} --train {path}/A.extxyz --test {path}/B.extxyz --preset {preset}"
        arguments += f" -o {path}/{target}_model"
        assert main([*arguments.split(), "--set", json.dumps(settings)]) == 0
    calculator = ["--calculator", "tblite.ase.TBLite", "--arguments", '{"method": "GFN2-xTB", "verbosity": 0}']
    nvt = f"md nvt {path}/water.xyz --timestep-fs 0.5 --length-ps 0.02 --temperature-K 300 --stride 2 --n-starts 2"
    assert main([*nvt.split(), *calculator, "--seed", "3", "-o", str(path)]) == 0
    nve = f"md nve {path}/starts.extxyz --timestep-fs 0.5 --length-ps 0.06 --remove-rotation -o {path}"
    assert main([*nve.split(), *calculator]) == 0
    return path


def predict(folder: Path, out: Path, *more: object) -> list[str]:
    """Return the arguments that predict along both runs."""
    models = ["--model", f"{folder}/apt_model", "--model", f"{folder}/pgt_model"]
    return ["predict", *models, f"{folder}/nve-000.h5", f"{folder}/nve-001.h5", "-o", str(out), *map(str, more)]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: mimyria-wf {verb}" in text
    assert "--json" in text


def test_the_verbs_of_the_design_are_there() -> None:
    wanted = "validate run submit status resume report export md label train predict spectra compare"
    assert set(wanted.split()) <= set(VERBS)
    assert len(VERBS) == len(set(VERBS))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("label A.extxyz --targets dipole -o out.extxyz", "dipole"),
        ("train --target apt --train A.extxyz -o model", "--test"),
        ("train --target apt --train A.extxyz --test B.extxyz -o model --set 3", "JSON object"),
        ("train --target apt --train A.extxyz --test B.extxyz -o model --set {n_steps:3}", "JSON object"),
        ("label A.extxyz --vectors [1, --field-forces out.h5", "--vectors"),
        ("label A.extxyz --clusters --charges SO4 -o out.extxyz", "SO4=-2"),
        ("spectra a.h5 --temperature cold -o out", "cold"),
        ("compare a b --plot overlay.txt", ".png, .pdf or .svg"),
        ("predict a.h5 --model m.pt --stride often -o out", "auto or a number of frames"),
        ("predict a.h5 --model m.pt --device tpu -o out", "tpu"),
        ("frobnicate", "frobnicate"),
        ("", "VERB"),
    ],
)
def test_wrong_usage_is_one_line_too(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2  # the status of wrong usage since Unix V7; wrong content ends with 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert "--help" in line


# ------------------------------------------------------------------------------------------------------ the fixed forms


def test_label_writes_columns_and_units(folder: Path) -> None:
    header = (folder / "A.extxyz").read_text().splitlines()[1]
    assert "apt:R:9" in header
    assert "pgt:R:27" in header
    (first, *_) = ase.io.read(folder / "A.extxyz", index=":")
    assert first.arrays["apt"].shape == (3, 9)
    assert first.arrays["pgt"].shape == (3, 27)
    assert first.info["apt_unit"] == "e"
    assert first.info["engine"] == "tblite"
    assert first.info["snapshot"] == "nve-001/0"
    apt = read_labels(folder / "A.extxyz")[0].apt
    assert apt is not None
    # acoustic sum rule of a neutral molecule; the tolerance is the engine's at its default accuracy
    np.testing.assert_allclose(apt.sum(axis=0), 0, atol=1e-4)
    assert apt[0].trace() / 3 == pytest.approx(-0.6, abs=0.25)  # oxygen's charge in water


def test_label_needs_no_second_computation_of_known_points(folder: Path, tmp_path: Path, cli: Cli) -> None:
    common = ("label", folder / "B0.extxyz", "--field-forces", tmp_path / "points.h5")
    first = cli(*common, "--targets", "apt", "-o", tmp_path / "apt.extxyz")
    second = cli(*common, "--targets", "apt", "pgt", "-o", tmp_path / "both.extxyz")
    third = cli(*common, "--targets", "apt", "pgt", "-o", tmp_path / "again.extxyz")
    assert [run["n_points_computed"] for run in (first, second, third)] == [3 * 6, 3 * 7, 0]
    assert (tmp_path / "both.extxyz").read_text() == (tmp_path / "again.extxyz").read_text()


def test_label_says_with_units_what_it_did(folder: Path, tmp_path: Path, cli: Cli, capsys) -> None:
    common = (
        "label",
        str(folder / "B0.extxyz"),
        "--field-forces",
        str(tmp_path / "p.h5"),
        "-o",
        str(tmp_path / "l.extxyz"),
    )
    cli(*common, "--targets", "apt")
    result = cli(*common)
    assert main([*common]) == 0
    out = capsys.readouterr().out
    assert "APT and PGT of 3 snapshots" in out
    assert "39 points in fields of 0.001 E_h/(e a0), 39 of them known before" in out
    apt, pgt = (f"{result['largest_error'][target]:.2g}" for target in ("apt", "pgt"))
    assert f"largest estimated error: APT {apt} e, PGT {pgt} e^2 a0/E_h" in out
    assert f"{result['largest_net_force']:.2g} E_h/a0" in out


def test_label_in_given_vectors_adds_only_the_missing_points(folder: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "points.h5"
    few, more = [[0, 0, 0], [1e-3, 0, 0]], [[1e-3, 0, 0], [-1e-3, 0, 0], [0, 0, 0]]
    common = ("label", folder / "B0.extxyz", "--field-forces", out)
    assert cli(*common, "--vectors", json.dumps(few))["n_points_computed"] == 6
    assert cli(*common, "--vectors", json.dumps(more))["n_points_computed"] == 3


def test_a_snapshot_that_fails_costs_only_itself(folder: Path, tmp_path: Path, cli: Cli, failing: Any) -> None:
    snapshots = waters(3)
    snapshots[1].positions[2] = snapshots[1].positions[1]
    ase.io.write(tmp_path / "mixed.extxyz", snapshots)
    ase.io.write(tmp_path / "sound.extxyz", [snapshots[0], snapshots[2]])
    vectors = ("--vectors", "[[0, 0, 0], [0.001, 0, 0]]", "--field-forces", tmp_path / "points.h5")
    message = failing("label", tmp_path / "mixed.extxyz", *vectors)
    assert "1 of 3 snapshots" in message
    assert "snapshot 1: " in message
    assert cli("label", tmp_path / "sound.extxyz", *vectors)["n_points_computed"] == 0


def test_engines_are_listed_with_their_settings(cli: Cli) -> None:
    found = {one["name"]: one for one in cli("engines")["engines"]}
    assert {"cp2k", "tblite", "vasp"} <= set(found)
    assert "accuracy" in found["tblite"]["settings"]
    assert {"command", "timeout_s", "eps_scf"} <= set(found["cp2k"]["settings"])


def test_settings_and_flags_of_an_engine_are_one(folder: Path, tmp_path: Path, cli: Cli) -> None:
    by_flag = cli("label", folder / "A0.extxyz", "--accuracy", "0.05", "-o", tmp_path / "a.extxyz")
    by_settings = cli("label", folder / "A0.extxyz", "--settings", '{"eps_scf": 1e-6}', "-o", tmp_path / "b.extxyz")
    assert by_flag["level_of_theory"] == by_settings["level_of_theory"]
    assert by_flag["warnings"] == ["tblite: accuracy 0.05 is too loose for a PGT; use 0.001"]


def test_imported_forces_are_known_points(folder: Path, tmp_path: Path, cli: Cli) -> None:
    """Forces of our own engine go out as extxyz and come back; a label of that level computes nothing then."""
    frames = []
    store = tmp_path / "own.h5"
    level = cli("label", folder / "A0.extxyz", "--targets", "apt", "--field-forces", store, "-o", tmp_path / "a.extxyz")
    for one in read_field_forces(store):
        for vector, forces in zip(one.field_forces.field_vectors, one.field_forces.forces, strict=True):
            frame = one.atoms.copy()
            frame.arrays["forces"] = forces
            frame.info |= {"efield": vector, "efield_unit": "E_h/(e a0)", "forces_unit": "E_h/a0"}
            frames.append(frame)
    ase.io.write(tmp_path / "given.extxyz", frames)
    out = tmp_path / "given.h5"
    arguments = ["--engine", "tblite", "--level", json.dumps(level["level"]), "-o", out]
    result = cli("import", "forces", tmp_path / "given.extxyz", *arguments, "--labels", tmp_path / "given-apt.extxyz")
    assert (result["n_snapshots"], result["n_points"], result["n_snapshots_with_tensors"]) == (4, 24, 4)
    own, given = (
        {configuration_key(one.atoms): one.apt for one in read_labels(tmp_path / name)}
        for name in ("a.extxyz", "given-apt.extxyz")
    )
    assert own.keys() == given.keys()
    for key, apt in own.items():
        np.testing.assert_allclose(given[key], apt, atol=2e-5)
    again = cli("label", folder / "A0.extxyz", "--targets", "apt", "--known", out, "-o", tmp_path / "b.extxyz")
    assert (again["n_points"], again["n_points_computed"]) == (24, 0)
    for one, other in zip(read_labels(tmp_path / "a.extxyz"), read_labels(tmp_path / "b.extxyz"), strict=True):
        np.testing.assert_allclose(other.apt, one.apt, atol=2e-5)  # eight decimals over 2 h


def test_qualify_recommends_or_refuses(folder: Path, tmp_path: Path, cli: Cli, capsys: Any) -> None:
    result = cli("qualify", folder / "A0.extxyz", "--first", "1", "--steps", "5e-4", "1e-3", "-o", tmp_path / "good")
    assert result["accepted"]
    assert result["step"] in (5e-4, 1e-3)
    arguments = ["qualify", folder / "A0.extxyz", "--first", "1", "--steps", "0.02", "0.04", "--accuracy", "5"]
    assert main([*map(str, arguments), "-o", str(tmp_path / "bad"), "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["accepted"] is False
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert "is refused: " in line
    assert (tmp_path / "bad" / "qualification.json").exists()


def test_label_follows_a_trajectory_in_parts_that_join(folder: Path, tmp_path: Path, cli: Cli) -> None:
    common = ("label", folder / "nve-000.h5", "--volume", "30")
    cli(*common, "--derivatives", tmp_path / "whole.h5", "--stop", "12")
    cli(*common, "--derivatives", tmp_path / "a.h5", "--stop", "6")
    cli(*common, "--derivatives", tmp_path / "b.h5", "--start", "6", "--stop", "12")
    cli("join", tmp_path / "a.h5", tmp_path / "b.h5", "-o", tmp_path / "joined.h5")
    from mimyria_wf.derivatives import read_derivatives

    whole, joined = read_derivatives(tmp_path / "whole.h5"), read_derivatives(tmp_path / "joined.h5")
    # two processes start the engine from different wavefunctions: equal to its accuracy, not to the last bit
    scale = np.abs(whole.dipole_derivative).max()
    np.testing.assert_allclose(joined.dipole_derivative, whole.dipole_derivative, atol=1e-3 * scale)
    assert joined.n_frames == whole.n_frames == 12


def test_label_through_clusters_takes_a_box(folder: Path, tmp_path: Path, cli: Cli) -> None:
    """Two molecules far apart in a box: each is a cluster of its own, with the tensors that it has alone."""
    alone = waters(2)
    box = alone[0] + alone[1]
    box.positions[3:] += (9.0, 0.0, 0.0)
    box.set_cell([18.0, 12.0, 12.0])
    box.pbc = True
    box.info |= {"charge": 0, "snapshot": "box/0"}
    ase.io.write(tmp_path / "box.extxyz", box)
    result = cli("label", tmp_path / "box.extxyz", "--clusters", "--targets", "apt", "-o", tmp_path / "labels.extxyz")
    assert (result["n_clusters"], result["mean_molecules_in_cluster"], result["radius"]) == (2, 1, 3.5)
    (label,) = read_labels(tmp_path / "labels.extxyz")
    wanted = np.concatenate([one.apt for one in read_labels(folder / "A.extxyz")[:2]])
    np.testing.assert_allclose(label.apt, wanted, atol=1e-4)  # the engine's at its default accuracy
    more = ("--radius", 9.5, "--max-molecules", 2, "--processes", 2, "--charges", "H2O=0")
    arguments = ("label", tmp_path / "box.extxyz", "--clusters", "--targets", "apt", *more, "-o", tmp_path / "b.extxyz")
    assert cli(*arguments)["mean_molecules_in_cluster"] == 2


def test_train_leaves_model_metrics_and_history(folder: Path) -> None:
    names = {path.name for path in (folder / "apt_model").iterdir()}
    assert {"model.pt", "metrics.json", "history.csv"} <= names
    metrics = json.loads((folder / "apt_model" / "metrics.json").read_text())
    assert metrics["preset"] == "paper"
    assert set(metrics["test"]["by_species"]) == {"O", "H"}
    assert len(metrics["test"]["by_species"]["O"]["by_component"]) == 9


def test_train_takes_several_files_the_first_few_and_a_warm_start(folder: Path, tmp_path: Path, cli: Cli) -> None:
    files = ("--train", folder / "A.extxyz", folder / "C.extxyz", "--test", folder / "B.extxyz")
    common = ("train", "--target", "apt", *files, "--preset", "paper", "--set", json.dumps(TINY), "--seed", 5)
    result = cli(*common, "--first", 6, "--initial-model", folder / "apt_model", "-o", tmp_path / "model")
    assert result["n_train"] == 6


def test_train_with_one_seed_gives_one_model(folder: Path, tmp_path: Path, cli: Cli) -> None:
    common = ["train", "--target", "apt", "--train", folder / "A.extxyz", "--test", folder / "B.extxyz"]
    common += ["--set", json.dumps({"n_steps": 3})]
    one, same, other = (
        cli(*common, "--seed", seed, "-o", tmp_path / name)["test"]["rmse"]
        for seed, name in ((1, "one"), (1, "same"), (2, "other"))
    )
    assert one == same
    assert one != other


@pytest.mark.slow
def test_predict_spectra_compare(folder: Path, tmp_path: Path, cli: Cli) -> None:
    """The whole chain by the fixed commands; `predict` takes what `train -o` made."""
    result = cli(*predict(folder, tmp_path / "OUT"), "--tensors", tmp_path / "tensors.extxyz", "--volume", 30)
    assert result["targets"] == ["apt", "pgt"]
    files = sorted((tmp_path / "OUT").glob("*.h5"))
    assert [path.stem for path in files] == ["nve-000", "nve-001"]

    summary = cli("spectra", *files, "--temperature", 300, "--window-fs", 15, "-o", tmp_path / "DIR")
    assert summary["n_trajectories"] == 2
    assert summary["f_sum"]["numerical"] == pytest.approx(1, abs=1e-3)
    names = {path.name for path in (tmp_path / "DIR").iterdir()}
    assert {"ir.csv", "raman.csv", "lineshapes.csv", "summary.json", "ir.png", "raman.png"} <= names
    assert list(read_table(tmp_path / "DIR" / "ir.csv")) == ["wavenumber", "n_alpha", "error"]
    raman = list(read_table(tmp_path / "DIR" / "raman.csv"))
    assert raman[:6] == ["wavenumber", "iso", "aniso", "vv", "vh", "depolarization"]
    assert len(read_table(tmp_path / "DIR" / "lineshapes.csv")) == 1 + 21

    forms = cli(
        *("raman", tmp_path / "DIR", "--geometry", "X(ZZ)Y", "--geometry=-Z(XY)Z", "--statistics", "harmonic"),
        *("--laser-nm", 532, "-o", tmp_path / "FORMS"),
    )
    assert "harmonic" in forms["kind"]
    assert "532" in forms["kind"]
    assert set(forms["geometries"]) == {"X(ZZ)Y", "-Z(XY)Z"}
    at_once = cli(
        *("spectra", *files, "--temperature", 300, "--window-fs", 15, "--geometry=-Z(XY)Z", "-o", tmp_path / "ONCE"),
        *("--statistics", "susceptibility", "--without-inverse-square", "--no-figures"),
    )
    assert not list((tmp_path / "ONCE").rglob("*.png"))
    assert at_once["n_trajectories"] == 2
    drawn = cli("plot", tmp_path / "DIR", "--spectrum", "vv", "--spectrum", "vh", "-o", tmp_path / "plot.png")
    assert len(drawn["curves"]) == 2
    assert (tmp_path / "plot.png").exists()

    same = cli("compare", tmp_path / "DIR", tmp_path / "DIR", "--plot", tmp_path / "same.png")
    assert same["spectra"]["ir"]["distance"] == 0
    assert (tmp_path / "same.png").exists()

    # the same spectra from the tensors as columns of an extxyz file, beside the velocities
    tensors = sorted(tmp_path.glob("tensors*.extxyz"))
    assert len(tensors) == 2
    columns = tmp_path / "columns"
    columns.mkdir()
    for path in tensors:
        frames = list(ase.io.iread(path, index=":"))
        assert {"momenta", "apt", "pgt"} <= set(frames[0].arrays)
        for frame in frames:
            frame.arrays["vel"] = frame.get_velocities() * ase.units.fs  # A/fs
            del frame.arrays["momenta"]
        ase.io.write(columns / path.name, frames)
    files = sorted(columns.iterdir())
    cli("spectra", *files, "--temperature", 300, "--window-fs", 15, "--volume", 30, "-o", tmp_path / "COLUMNS")
    distances = cli("compare", tmp_path / "DIR", tmp_path / "COLUMNS")["spectra"]
    assert set(distances) >= {"ir"}
    assert max(entry["distance"] for entry in distances.values() if entry["distance"] is not None) < 1e-3


def test_predict_goes_on_and_chooses_the_stride(folder: Path, tmp_path: Path, cli: Cli) -> None:
    arguments = predict(folder, tmp_path, "--volume", 30, "--stride", "auto", "--stride-tolerance", 0.5, "--threads", 2)
    first = cli(*arguments)
    assert first["stride_check"]["tolerance"] == 0.5
    assert "too few frames" in first["stride_check"]["reason"]  # 60 fs a run
    assert [one["stride"] for one in first["files"]] == [1, 1]
    assert all("kept" in one["restart"] for one in cli(*arguments)["files"])
    assert all("restart" not in one for one in cli(*arguments, "--no-restart")["files"])
    coarse = cli(*predict(folder, tmp_path / "coarse", "--volume", 30, "--stride", 4, "--device", "cpu"))
    assert "stride_check" not in coarse
    assert [one["stride"] for one in coarse["files"]] == [4, 4]


def test_groups_and_relations_become_parts(folder: Path, tmp_path: Path, cli: Cli) -> None:
    """One file of groups for prediction, explicit labels and density of states; parts sum to the spectrum."""
    groups = tmp_path / "groups.yaml"
    groups.write_text("groups:\n  oxygen: {species: O}\n")
    runs = sorted(folder.glob("nve-*.h5"))
    report = cli("groups", groups, *runs, "-o", tmp_path / "resolved.yaml")
    assert {name: entry["atoms"] for name, entry in report["groups"].items()} == {"oxygen": 1, "rest": 2}
    (tmp_path / "related.yaml").write_text((tmp_path / "resolved.yaml").read_text() + "relations: [self]\n")
    model = ["--model", folder / "apt_model", "--volume", 30]
    asked = ["--groups", tmp_path / "related.yaml", "--max-lag-fs", 20]
    cli("predict", *runs, *model, *asked, "-o", tmp_path / "predicted")
    summary = cli("spectra", *sorted((tmp_path / "predicted").glob("*.h5")), "--window-fs", 15, "-o", tmp_path / "ir")
    gates = {gate["name"]: gate["passed"] for gate in summary["gates"]}
    assert gates["cca additivity"]
    table = read_table(tmp_path / "ir" / "cca_ir.csv")
    assert {"oxygen; self", "oxygen x rest; other", "rest; self", "rest; other"} <= set(table)
    total = read_table(tmp_path / "ir" / "ir.csv")["n_alpha"]
    names = [name for name in table if name not in ("wavenumber", "total") and not name.endswith("error")]
    parts = sum(table[name] for name in names)
    np.testing.assert_allclose(parts, total, atol=1e-8 * total.max())  # ten digits in the tables

    label = [
        "label",
        runs[0],
        "--targets",
        "apt",
        "--accuracy",
        1.0,
        "--volume",
        30,
        "--groups",
        tmp_path / "resolved.yaml",
    ]
    cli(*label, "--derivatives", tmp_path / "explicit.h5")
    cli("spectra", tmp_path / "explicit.h5", "--window-fs", 15, "-o", tmp_path / "explicit")
    cli("spectra", tmp_path / "predicted" / "nve-000.h5", "--window-fs", 15, "-o", tmp_path / "one")
    scores = cli("compare", tmp_path / "one", tmp_path / "explicit")["cca"]
    assert set(scores["ir"]["parts"]) == {"oxygen", "oxygen x rest", "rest"}
    same = cli("compare", tmp_path / "one", tmp_path / "one")["cca"]
    assert same["ir"]["agreement"] == pytest.approx(1)
    assert len(same["ir"]["parts"]) == len(names)

    by_group = cli("vdos", *runs, "--window-fs", 15, "--groups", tmp_path / "related.yaml", "-o", tmp_path / "vdos")
    by_species = cli("vdos", *runs, "--window-fs", 15, "-o", tmp_path / "species")
    assert by_group["parts"]["oxygen"]["integral"] == pytest.approx(by_species["parts"]["O"]["integral"], rel=1e-9)
    assert by_group["parts"]["rest"]["integral"] == pytest.approx(by_species["parts"]["H"]["integral"], rel=1e-9)


def test_vdos(folder: Path, tmp_path: Path, cli: Cli) -> None:
    runs = sorted(folder.glob("nve-*.h5"))
    summary = cli("vdos", *runs, "--window-fs", 15, "--verlet-timestep-fs", 0.5, "-o", tmp_path / "vdos")
    assert summary["passed"]
    assert summary["degrees_of_freedom"] == 3  # one molecule that neither moves nor turns
    assert summary["integral"] == pytest.approx(3, rel=1e-3)
    assert summary["settings"]["verlet_timestep"] == 0.5
    assert list(read_table(tmp_path / "vdos" / "vdos.csv"))[:5] == [
        "wavenumber",
        "total",
        "total_error",
        "H",
        "H_error",
    ]
    cli("vdos", *runs, "--window-fs", 15, "--groups", "all", "-o", tmp_path / "one")
    assert len(read_table(tmp_path / "one" / "power.csv")) == 5


def test_a_printed_dipole_becomes_a_spectrum(tmp_path: Path, cli: Cli) -> None:
    """A dipole of 1 e A at 1600 cm^-1, printed every 2 fs; the gates know it, and so does the axis."""
    omega = 2 * np.pi * 1600.0 / 33356.40952
    for k in range(2):
        time = 2.0 * np.arange(4000)
        rows = [f"{np.cos(omega * t + k):.9f},0,{0.5 * np.sin(omega * t):.9f}" for t in time]
        (tmp_path / f"m{k}.csv").write_text("x,y,z\n" + "\n".join(rows) + "\n")
        result = cli(
            *("derive", tmp_path / f"m{k}.csv", "--kind", "dipole", "--unit", "e A", "--timestep-fs", 2),
            *("--temperature-K", 300, "--cell", "[10, 10, 10]", "-o", tmp_path / f"m{k}.h5"),
        )
        assert result["n_frames"] == 3999
        assert result["nyquist_wavenumber"] == pytest.approx(8339.1, abs=0.1)
    runs = [tmp_path / "m0.h5", tmp_path / "m1.h5"]
    summary = cli("spectra", *runs, "-o", tmp_path / "spectra")
    assert summary["f_sum"]["numerical"] == pytest.approx(1, abs=1e-3)
    ir = read_table(tmp_path / "spectra" / "ir.csv")
    assert ir["wavenumber"][ir["n_alpha"].argmax()] == pytest.approx(1600, abs=2)
    cli("spectra", *runs, "--no-difference-correction", "-o", tmp_path / "damped")
    damped = read_table(tmp_path / "damped" / "ir.csv")
    ratio = damped["n_alpha"].max() / ir["n_alpha"].max()
    assert ratio == pytest.approx(np.sinc(1600 * 2 / 33356.40952) ** 2, rel=1e-3)


def test_compare_labels(folder: Path, tmp_path: Path, cli: Cli) -> None:
    other = tmp_path / "other.extxyz"
    cli("label", folder / "A0.extxyz", "--method", "GFN1-xTB", "--targets", "apt", "-o", other)
    result = cli("compare", other, folder / "A.extxyz")
    assert result["n_snapshots"] == 4
    assert 0 < result["apt"]["rmse"] < 0.2
    assert result["apt"]["r2"] < 1
    assert "pgt" not in result
    assert cli("compare", folder / "A.extxyz", folder / "A.extxyz")["pgt"]["rmse"] == 0


def test_select_draws_from_trajectories(folder: Path, tmp_path: Path, cli: Cli) -> None:
    files = (folder / "nve-000.h5", folder / "nve-001.h5")
    result = cli("select", *files, "--n-training", 5, "--n-test", 2, "--seed", 1, "-o", tmp_path)
    snapshots = ase.io.read(tmp_path / "training.extxyz", index=":")
    assert [atoms.info["snapshot"] for atoms in snapshots] == result["training"]
    name, frame = result["training"][0].split("/")
    expected = open_trajectory(folder / f"{name}.h5").atoms(int(frame)).positions
    np.testing.assert_allclose(snapshots[0].positions, expected, atol=1e-7)  # extxyz writes 8 decimals


def test_a_model_chooses_the_next_snapshots(folder: Path, tmp_path: Path, cli: Cli) -> None:
    runs = ("select", folder / "nve-000.h5", folder / "nve-001.h5", "--n-test", 2, "--seed", 1)
    first = cli(*runs, "--n-training", 4, "-o", tmp_path / "first")
    for name in ("training", "test"):
        source, out = tmp_path / "first" / f"{name}.extxyz", tmp_path / f"{name}.extxyz"
        cli("label", source, "--targets", "apt", "--accuracy", 0.1, "-o", out)
    files = ("--train", tmp_path / "training.extxyz", "--test", tmp_path / "test.extxyz")
    cli("train", "--target", "apt", *files, "--set", '{"n_steps": 3}', "-o", tmp_path / "model")
    by_model = ("--model", tmp_path / "model", "--labelled", tmp_path / "training.extxyz", "--candidates", 30)
    second = cli(*runs, "--n-training", 6, *by_model, "-o", tmp_path / "second")
    assert second["n_labelled"] == 4
    assert 2 < second["n_candidates"] <= 30
    assert second["training"][:4] == first["training"]
    assert len(set(second["training"])) == 6
    assert set(second["training"]).isdisjoint(second["test"])
    assert (tmp_path / "second" / "test.extxyz").read_text() == (tmp_path / "first" / "test.extxyz").read_text()

    predicted = ("predict", folder / "nve-000.h5", "--model", tmp_path / "model", "--volume", 30, "--members", 4)
    cli(*predicted, "-o", tmp_path / "predicted")
    cli("spectra", tmp_path / "predicted" / "nve-000.h5", "--window-fs", 15, "--no-figures", "-o", tmp_path / "spectra")
    table = read_table(tmp_path / "spectra" / "ir.csv")
    assert {"model_error", "total_error"} <= set(table)
    assert np.nanmax(table["model_error"]) > 0


def test_the_stride_alone(folder: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    runs = (folder / "nve-000.h5", folder / "nve-001.h5")
    check = cli("stride", *runs, "--model", folder / "pgt_model", "--stride-tolerance", 0.01)
    assert (check["chosen"], check["frames_checked"], check["tolerance"], check["trajectory"]) == (
        1,
        0,
        0.01,
        "nve-000",
    )
    assert main(["stride", *map(str, runs), "--model", str(folder / "pgt_model")]) == 0
    assert capsys.readouterr().out.startswith("stride 1: too few frames")


def test_stride_text_lists_the_distances() -> None:
    check = {"chosen": 4, "strides": {"2": {"ir": 1e-5, "vv": 2e-5}, "4": {"ir": 1.26e-4, "vv": 3e-4}}}
    assert stride_text(check).splitlines() == [
        "stride 4",
        "  every 2 frames moves spectra by ir 1.0e-05, vv 2.0e-05",
        "  every 4 frames moves spectra by ir 1.3e-04, vv 3.0e-04",
    ]


def test_md_moves_all_starts_in_one_batch(tmp_path: Path, cli: Cli) -> None:
    ase.io.write(tmp_path / "water.xyz", molecule("H2O"))
    potential = ("--engine", "torch-sim", "--calculator", "mimyria_wf.flexible_water:flexible_water")
    common = (*potential, "--timestep-fs", 0.5, "-o", tmp_path)
    nvt = ("--length-ps", 0.02, "--stride", 2, "--temperature-K", 300, "--n-starts", 3, "--seed", 1)
    cli("md", "nvt", tmp_path / "water.xyz", *common, *nvt)
    result = cli("md", "nve", tmp_path / "starts.extxyz", *common, "--length-ps", 0.01, "--batch-size", 2)
    assert [run["name"] for run in result["trajectories"]] == ["nve-000", "nve-001", "nve-002"]
    assert all(run["n_frames"] == 20 for run in result["trajectories"])
    again = cli("md", "nve", tmp_path / "starts.extxyz", *common, "--length-ps", 0.01)
    assert all(run["was_skipped"] for run in again["trajectories"])


def test_convert_and_md_agree_on_the_frames(folder: Path, tmp_path: Path, cli: Cli) -> None:
    frames = [open_trajectory(folder / "nve-000.h5").atoms(k) for k in range(5)]
    ase.io.write(tmp_path / "a.extxyz", frames)
    cli("convert", tmp_path / "a.extxyz", "--timestep-fs", 0.5, "-o", tmp_path / "a.h5")
    assert open_trajectory(tmp_path / "a.h5").n_frames == 5


def test_convert_leaves_out_what_a_killed_run_left(
    folder: Path, tmp_path: Path, cli: Cli, failing: Callable[..., str]
) -> None:
    path = tmp_path / "a.extxyz"
    ase.io.write(path, [open_trajectory(folder / "nve-000.h5").atoms(k) for k in range(5)])
    path.write_text(path.read_text()[:-100])
    command = ("convert", path, "--timestep-fs", 0.5, "-o", tmp_path / "a.h5")
    assert "--drop-truncated" in failing(*command)
    cli(*command, "--drop-truncated")
    assert open_trajectory(tmp_path / "a.h5").n_frames == 4


def test_spectra_say_the_gates_in_few_lines(tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a gate and a note for people; JSON holds everything, and nothing else."""
    rng = np.random.default_rng(0)
    runs = []
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(400, 3)))
        runs.append(tmp_path / f"{name}.h5")
        known = ("--timestep-fs", 1, "--temperature-K", 300, "--volume", 1000)
        cli("derive", tmp_path / f"{name}.npy", "--kind", "dipole", "--unit", "e A", *known, "-o", runs[-1])
    command = ["spectra", *map(str, runs), "--window-fs", "50", "--no-figures", "-o", str(tmp_path / "out")]
    summary = cli(*command)
    assert "text" not in summary
    assert main([*command, "--json-file", str(tmp_path / "result.json")]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert json.loads((tmp_path / "result.json").read_text()) == summary
    assert str(tmp_path / "out") in first
    assert len(lines) == 1 + len(summary["gates"]) + len(summary["notes"])
    words = {True: "passed", False: "FAILED", None: "not judged"}
    for gate, line in zip(summary["gates"], lines[1:], strict=False):
        assert line.startswith(f"  {words[gate['passed']]}: {gate['name']}: ")
    assert {gate["passed"] for gate in summary["gates"]} >= {True, None}
    assert all(f"note: {note}" in lines for note in summary["notes"])


def test_convert_takes_what_a_lammps_dump_does_not_say(tmp_path: Path, cli: Cli) -> None:
    frame = "ITEM: TIMESTEP\n{t}\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 9\n0 9\n0 9\n"
    frame += "ITEM: ATOMS id type xu yu zu vx vy vz\n1 1 0 0 {z} 0 0 0.001\n2 2 1 0 {z} 0 0 0.001\n"
    (tmp_path / "run.dump").write_text("".join(frame.format(t=2 * k, z=0.001 * k) for k in range(5)))
    asked = ["--units", "real", "--elements", "O", "H", "--timestep-fs", 1]
    cli("convert", tmp_path / "run.dump", *asked, "-o", tmp_path / "run.h5")
    reader = open_trajectory(tmp_path / "run.h5")
    assert reader.numbers.tolist() == [8, 1]
    assert reader.read().velocities[0, 0, 2] == pytest.approx(0.001)  # real: A/fs


def test_convert_takes_isotopes_from_the_structure(tmp_path: Path, cli: Cli) -> None:
    """CP2K's files hold no masses: heavy water must stay heavy in its trajectory and in the starts of NVE runs."""
    atoms = molecule("H2O", cell=[9.0, 9.0, 9.0], pbc=True)
    atoms.set_masses([15.999, 2.014, 2.014])
    ase.io.write(tmp_path / "structure.extxyz", atoms)
    velocities = np.random.default_rng(0).normal(size=(4, 3, 3)) * 1e-4
    for kind in ("pos", "vel"):
        lines = []
        for k in range(4):
            lines += ["3", f" i = {k}, time = {10 * k}.000, E = -17.0"]
            rows = atoms.positions if kind == "pos" else velocities[k]
            lines += [f"{s} {x} {y} {z}" for s, (x, y, z) in zip(atoms.symbols, rows)]
        (tmp_path / f"nvt-{kind}-1.xyz").write_text("\n".join(lines) + "\n")
    like = tmp_path / "structure.extxyz"
    cli("convert", tmp_path / "nvt-pos-1.xyz", "--cell-from", like, "--n-starts", 2, "-o", tmp_path / "nvt.h5")
    np.testing.assert_allclose(open_trajectory(tmp_path / "nvt.h5").masses, [15.999, 2.014, 2.014])
    starts = ase.io.read(tmp_path / "starts.extxyz", index=":")
    assert isinstance(starts, list)
    np.testing.assert_allclose(starts[1].get_masses(), [15.999, 2.014, 2.014])
    atoms.pbc = [True, True, False]  # a slab stays one
    ase.io.write(like, atoms)
    cli("convert", tmp_path / "nvt-pos-1.xyz", "--cell-from", like, "-o", tmp_path / "nvt.h5")
    assert open_trajectory(tmp_path / "nvt.h5").pbc.tolist() == [True, True, False]


# ------------------------------------------------------------------------------------------------------------ bad input


def test_json_is_pure_and_also_goes_to_a_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", f"{folder}/A.extxyz", f"{folder}/A.extxyz", "--json", "--json-file", f"{tmp_path}/r.json"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert json.loads(printed.out) == json.loads((tmp_path / "r.json").read_text())
    assert "NaN" not in printed.out


def bad_files(path: Path) -> None:
    """Write files with what goes wrong in practice."""
    (path / "empty.extxyz").write_text("")
    (path / "text.extxyz").write_text("this is no structure\n")
    (path / "notes.pt").write_text("no model")
    (path / "garbage.h5").write_bytes(b"\0" * 100)
    (path / "no_folder").write_text("a file where a folder is wanted")
    atoms = molecule("H2O")
    ase.io.write(path / "unlabelled.extxyz", atoms, format="extxyz")
    atoms.positions[0, 0] = np.nan
    ase.io.write(path / "nan.extxyz", atoms, format="extxyz")
    radical = molecule("OH")
    radical.info["charge"] = 0
    ase.io.write(path / "radical.extxyz", radical, format="extxyz")
    crystal = molecule("H2O", cell=[5, 5, 5], pbc=True)
    ase.io.write(path / "periodic.extxyz", crystal, format="extxyz")
    ase.io.write(path / "argon.extxyz", ase.Atoms("Ar", velocities=[[0, 0, 0]]), format="extxyz")


BAD_INPUT = {
    "no such snapshots": ("label {t}/none.extxyz -o {t}/out.extxyz", "none.extxyz does not exist"),
    "empty snapshots": ("label {t}/empty.extxyz -o {t}/out.extxyz", "empty.extxyz is empty"),
    "no structure": ("label {t}/text.extxyz -o {t}/out.extxyz", "text.extxyz"),
    "positions not finite": ("label {t}/nan.extxyz -o {t}/out.extxyz", "finite"),
    "odd electrons": ("label {t}/radical.extxyz -o {t}/out.extxyz", "multiplicity"),
    "periodic": ("label {t}/periodic.extxyz -o {t}/out.extxyz", "periodic"),
    "unknown method": ("label {f}/A0.extxyz --method GFN9-xTB -o {t}/out.extxyz", "GFN9-xTB"),
    "unknown engine": ("label {f}/A0.extxyz --engine magic -o {t}/out.extxyz", "known: cp2k, tblite, vasp"),
    "an engine without its template": ("label {f}/A0.extxyz --engine cp2k -o {t}/out.extxyz", "--template FILE"),
    "a template for an engine without one": (
        "label {f}/A0.extxyz --template {t}/text.extxyz -o {t}/out.extxyz",
        "engine tblite takes no template",
    ),
    "unknown setting of an engine": (
        'label {f}/A0.extxyz --settings {{"speed":9}} -o {t}/out.extxyz',
        "does not know the setting speed (known: method",
    ),
    "engines of another name": ("engines magic", "known: cp2k, tblite, vasp"),
    "forces in an unstated unit": (
        'import forces {f}/A0.extxyz --engine x --level {{"method":"x"}} -o {t}/out.h5',
        "no efield in its header",
    ),
    "tensors of no level of theory": (
        "import labels {f}/A.extxyz --engine x --level {{}} -o {t}/out",
        "need their level",
    ),
    "qualify with one step": ("qualify {f}/A0.extxyz --steps 0.001 -o {t}/out", "steps"),
    "qualify an atom that is not there": ("qualify {f}/A0.extxyz --atoms 9 -o {t}/out", "atom"),
    "negative step": ("label {f}/A0.extxyz --step -1 -o {t}/out.extxyz", "step"),
    "charge against the file": ("label {f}/A0.extxyz --charge 2 -o {t}/out.extxyz", "charge"),
    "nowhere to write": ("label {f}/A0.extxyz", "-o OUT.extxyz"),
    "vectors without store": ("label {f}/A0.extxyz --vectors [[0,0,0]]", "--field-forces"),
    "vectors of two numbers": ("label {f}/A0.extxyz --vectors [[0,0]] --field-forces {t}/out.h5", "[x, y, z]"),
    "vectors that are words": ('label {f}/A0.extxyz --vectors ["a"] --field-forces {t}/out.h5', "[x, y, z]"),
    "ragged vectors": ("label {f}/A0.extxyz --vectors [[0,0,0],[1]] --field-forces {t}/out.h5", "[x, y, z]"),
    "clusters that nobody asked for": ("label {f}/A0.extxyz --radius 4 -o {t}/out.extxyz", "--radius needs --clusters"),
    "clusters along a trajectory": (
        "label {f}/nve-000.h5 --clusters --derivatives {t}/out.h5",
        "--clusters does not go with --derivatives",
    ),
    "clusters to nowhere": ("label {f}/A0.extxyz --clusters", "-o OUT.extxyz"),
    "frames beyond the end": ("label {f}/nve-000.h5 --derivatives {t}/out.h5 --stop 5000", "5000"),
    "train without labels": ("train --target apt --train {t}/unlabelled.extxyz --test {f}/B.extxyz -o {t}/m", "label"),
    "no training file": ("train --target apt --train {t}/none.extxyz --test {f}/B.extxyz -o {t}/m", "none.extxyz"),
    "unknown preset": ("train --target apt --train {f}/A.extxyz --test {f}/B.extxyz --preset x -o {t}/m", "paper"),
    "unknown override": (
        'train --target apt --train {f}/A.extxyz --test {f}/B.extxyz --set {{"steps":3}} -o {t}/m',
        "steps",
    ),
    "more labels than there are": (
        "train --target apt --train {f}/A.extxyz --test {f}/B.extxyz --first 50 -o {t}/m",
        "4 labelled snapshots",
    ),
    "no such model": ("predict --model {t}/none.pt {f}/nve-000.h5 -o {t}/out", "none.pt"),
    "not a model": ("predict --model {t}/notes.pt {f}/nve-000.h5 -o {t}/out", "notes.pt"),
    "a folder without a model": ("predict --model {f} {f}/nve-000.h5 -o {t}/out", "model"),
    "two models of one target": (
        "predict --model {f}/apt_model --model {f}/apt_model {f}/nve-000.h5 -o {t}/out",
        "two models",
    ),
    "a stride of nothing": ("predict --model {f}/apt_model {f}/nve-000.h5 --stride 0 -o {t}/out", "stride"),
    "a tolerance of nothing": (
        "predict --model {f}/apt_model {f}/nve-000.h5 --stride-tolerance 0 -o {t}/out",
        "tolerance",
    ),
    "species the model never saw": ("predict --model {f}/apt_model {t}/argon.extxyz --timestep-fs 1 -o {t}/out", "Ar"),
    "no velocities": ("predict --model {f}/apt_model {f}/A.extxyz --timestep-fs 1 -o {t}/out", "velocities"),
    "broken trajectory": ("predict --model {f}/apt_model {t}/garbage.h5 -o {t}/out", "garbage.h5"),
    "spectra of nothing": ("spectra {t}/none.h5 -o {t}/out", "none.h5"),
    "spectra of garbage": ("spectra {t}/garbage.h5 -o {t}/out", "garbage.h5"),
    "spectra of labels without velocities": ("spectra {f}/A.extxyz -o {t}/out", "A.extxyz"),
    "spectra of an unknown geometry": ("spectra {f}/nve-000.h5 --geometry ZXXZ -o {t}/out", "ZXXZ"),
    "vdos without velocities": ("vdos {f}/A.extxyz --timestep-fs 1 -o {t}/out", "velocities"),
    "vdos of runs that are too short": ("vdos {f}/nve-000.h5 --window-fs 500 -o {t}/out", "shorter than the window"),
    "vdos of one run twice": ("vdos {f}/nve-000.h5 {f}/nve-000.h5 --window-fs 9 -o {t}/out", "twice"),
    "vdos with a Verlet step beyond the frames": (
        "vdos {f}/nve-000.h5 --window-fs 9 --verlet-timestep-fs 2 -o {t}/out",
        "cannot exceed the 0.5 fs",
    ),
    "derive from nothing": ("derive {t}/none.csv --kind dipole --temperature-K 300 -o {t}/out.h5", "none.csv"),
    "raman of nothing": ("raman {t}/none", "none"),
    "plot nothing": ("plot {t}/none -o {t}/out.png", "none"),
    "groups of nothing": ("groups {t}/none.yaml {f}/nve-000.h5 -o {t}/out.yaml", "none.yaml"),
    "predict by groups of nothing": (
        "predict --model {f}/apt_model {f}/nve-000.h5 --groups {t}/none.yaml -o {t}/out",
        "none.yaml",
    ),
    "vdos by groups of nothing": ("vdos {f}/nve-000.h5 --groups {t}/none.yaml -o {t}/out", "none.yaml"),
    "compare nothing": ("compare {t}/none {t}/none", "none"),
    "compare labels of other snapshots": ("compare {f}/A.extxyz {f}/B.extxyz", "no configuration"),
    "compare unlabelled": ("compare {t}/unlabelled.extxyz {f}/A.extxyz", "unlabelled.extxyz"),
    "a choice by models of nothing": (
        "select {f}/nve-000.h5 --n-training 3 --n-test 2 --seed 1 --model {f}/apt_model -o {t}/out",
        "both models and the labels",
    ),
    "a choice by models that are no committee": (
        "select {f}/nve-000.h5 --n-training 6 --n-test 2 --seed 1 --model {f}/apt_model --labelled {f}/A.extxyz "
        "-o {t}/out",
        "last layer is linear",
    ),
    "members of models that are no committee": (
        "predict --model {f}/apt_model {f}/nve-000.h5 --members 4 -o {t}/out",
        "committee",
    ),
    "too many snapshots": ("select {f}/nve-000.h5 --n-training 5000 --n-test 2 --seed 1 -o {t}/out", "5000"),
    "exclude an unknown run": (
        "select {f}/nve-000.h5 --n-training 1 --n-test 1 --seed 1 --exclude nve-007 -o {t}/out",
        "nve-007",
    ),
    "unknown calculator": (
        "md nvt {f}/water.xyz --calculator ase.magic.Wand --timestep-fs 1 --length-ps 0.1 --temperature-K 9 -o {t}/out",
        "ase.magic",
    ),
    "a potential that is none of torch-sim": (
        "md nve {f}/starts.extxyz --engine torch-sim --calculator tblite.ase.TBLite --timestep-fs 1 --length-ps 0.1 "
        "-o {t}/out",
        "not a potential of torch-sim",
    ),
    "nvt without temperature": (
        "md nvt {f}/water.xyz --calculator tblite.ase.TBLite --timestep-fs 1 --length-ps 0.1 -o {t}/out",
        "--temperature-K",
    ),
    "starts without velocities": (
        "md nve {f}/A0.extxyz --calculator tblite.ase.TBLite --timestep-fs 1 --length-ps 0.1 -o {t}/out",
        "velocities",
    ),
    "a file where a folder is wanted": (
        "select {f}/nve-000.h5 --n-training 1 --n-test 1 --seed 1 -o {t}/no_folder",
        "no_folder",
    ),
    "join nothing": ("join {t}/none.h5 -o {t}/out.h5", "none.h5"),
    "convert nothing": ("convert {t}/none.xyz -o {t}/out.h5", "none.xyz"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, folder: Path, tmp_path: Path, failing: Callable[..., str]
) -> None:
    command, words = BAD_INPUT[case]
    bad_files(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    there = {path.name for path in folder.iterdir()}
    message = failing(*(part.format(t=tmp_path, f=folder) for part in command.split()))
    assert words in message
    assert {path.name for path in tmp_path.iterdir()} == before
    assert {path.name for path in folder.iterdir()} == there


def test_results_print_as_json_and_as_text() -> None:
    value = plain({"a": float("nan"), "b": np.array([1.0, np.inf]), "c": Path("x") / "y", "d": {"e": (1, 2)}})
    assert value == {"a": None, "b": [1.0, None], "c": "x/y", "d": {"e": [1, 2]}}
    text = readable({"r2": 0.98765432, "test": {"rmse": 0.5}, "runs": [{"name": "a", "n": 1}, {"name": "b", "n": 2}]})
    assert text.splitlines()[0] == "r2: 0.987654"
    assert "  rmse: 0.5" in text
    assert "  - name: a" in text
