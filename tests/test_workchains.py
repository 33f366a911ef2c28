"""Workchains with real engines: labels, whole campaigns, and campaigns that are interrupted or fail."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import psutil
import pytest
import yaml
from aiida import orm
from aiida.engine import run_get_node
from aiida.plugins import WorkflowFactory
from aiida.tools.pytest_fixtures import *  # noqa: F403  the profile is made only where this is imported
from ase.build import molecule

from mimyria_wf.cli import main
from mimyria_wf.labels import read_labels
from mimyria_wf.spectra_files import read_table
from mimyria_wf.trajectory import Trajectory, write_trajectory

pytestmark = [pytest.mark.aiida, pytest.mark.slow]
CONSOLE = str(Path(sys.executable).with_name("mimyria-wf"))
DIMER = ase.Atoms(
    "OH2OH2",
    [
        (-1.551007, -0.114520, 0.0),
        (-1.934259, 0.762503, 0.0),
        (-0.599677, 0.040712, 0.0),
        (1.350625, 0.111469, 0.0),
        (1.680398, -0.373741, -0.758561),
        (1.680398, -0.373741, 0.758561),
    ],
)
CLUSTER = {"charge": 0, "volume_A3": 60.0}
SHORT = {"n_steps": 5}


def dimers(n: int, seed: int = 1) -> list[ase.Atoms]:
    """Return distorted water dimers."""
    rng = np.random.default_rng(seed)
    snapshots = []
    for k in range(n):
        atoms = DIMER.copy()
        atoms.positions += rng.normal(scale=0.03, size=(6, 3))
        atoms.info |= {"charge": 0, "multiplicity": 1, "snapshot": f"nve-{k:03d}/0"}
        snapshots.append(atoms)
    return snapshots


# --------------------------------------------------------------------------------------------------------------- labels


def test_labels_are_computed_once_whatever_is_asked_for(
    aiida_code_installed: Callable[..., orm.AbstractCode], tmp_path: Path
) -> None:
    """The same again costs nothing; APT then PGT costs the 7 mixed and zero points; PGT then APT nothing."""
    code = aiida_code_installed(label="mimyria-wf", filepath_executable=CONSOLE)
    ase.io.write(tmp_path / "pool.extxyz", dimers(4))
    pool = orm.SinglefileData(tmp_path / "pool.extxyz")
    level = {"engine": "tblite", "method": "GFN2-xTB", "accuracy": 1.0}

    def label(indices: list[int], *targets: str) -> tuple[orm.WorkChainNode, int]:
        settings = {"engine": "tblite", "level_of_theory": level, "targets": list(targets), "step": 1e-3}
        settings |= {"snapshots_per_job": 10, "max_concurrent": 2}
        inputs = {"code": code, "snapshots": pool, "indices": orm.List(indices), "settings": orm.Dict(settings)}
        _, node = run_get_node(WorkflowFactory("mimyria_wf.labels"), **inputs)
        assert node.is_finished_ok, node.exit_message
        jobs = [child for child in node.called if isinstance(child, orm.CalcJobNode)]
        assert all(job.is_finished_ok for job in jobs)
        return node, sum(len(job.inputs.field_vectors.get_list()) * len(_snapshots(job)) for job in jobs)

    def _snapshots(job: orm.CalcJobNode) -> list[ase.Atoms]:
        text = job.inputs.snapshots.get_content("r")
        return list(ase.io.iread(io.StringIO(text), index=":", format="extxyz"))

    _, n_apt = label([0, 1], "apt")
    assert n_apt == 2 * 6
    again, n_again = label([0, 1], "apt")
    assert n_again == 0
    both, n_both = label([0, 1, 2], "apt", "pgt")
    assert n_both == 2 * 7 + 13
    _, n_less = label([2, 1, 0], "apt")
    assert n_less == 0
    _, n_pgt = label([3], "pgt")
    assert n_pgt == 13
    _, n_shared = label([3], "apt")
    assert n_shared == 0

    (tmp_path / "labels.extxyz").write_text(both.outputs.labels.get_content("r"))
    labelled = read_labels(tmp_path / "labels.extxyz", ["apt", "pgt"])
    assert len(labelled) == 3
    (tmp_path / "again.extxyz").write_text(again.outputs.labels.get_content("r"))
    for one, other in zip(read_labels(tmp_path / "again.extxyz", ["apt"]), labelled, strict=False):
        assert np.array_equal(one.apt, other.apt)  # made of the same forces
        np.testing.assert_allclose(one.apt.sum(axis=0), 0, atol=0.02)  # loose SCF
    assert both.outputs.report["incomplete"] == []


# ------------------------------------------------------------------------------------------------------------ campaigns


class Home:
    """A folder with an AiiDA profile of its own and campaign files; every command runs in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self.environment = {**os.environ, "AIIDA_PATH": str(folder), "OMP_NUM_THREADS": "1"}
        self.environment.pop("AIIDA_PROFILE", None)
        ase.io.write(folder / "dimer.xyz", DIMER)

    def write(self, name: str, **sections: Any) -> Path:
        """Write a campaign file with the settings that all share, some sections replaced."""
        path = self.folder / f"{name}.yaml"
        system = {"structure": "dimer.xyz", **CLUSTER}
        content = {"name": name, "seed": 1, "system": system, "spectra": {"window_fs": 50}, **sections}
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    def add_code(self, label: str) -> None:
        """Make another code for the console script on this machine."""
        verdi = str(Path(sys.executable).with_name("verdi"))
        options = ["--label", label, "--computer", "localhost", "--filepath-executable", CONSOLE, "--no-with-mpi"]
        command = [verdi, "code", "create", "core.code.installed", "--non-interactive", *options]
        subprocess.run(command, env=self.environment, capture_output=True, check=True, timeout=120)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start `mimyria-wf` as the leader of a process group."""
        process = subprocess.Popen(
            [CONSOLE, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """End what a failed test has left running."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def call(self, *arguments: object, timeout: float = 1500) -> tuple[int, str, str]:
        """Run `mimyria-wf` to its end; return status, standard output, standard error."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"no end after {timeout} s: {process.communicate()[1][-2000:]}")
        return process.returncode, out, err

    def json(self, *arguments: object) -> dict[str, Any]:
        """Run `mimyria-wf ... --json`, which must succeed, and return the result."""
        status, out, err = self.call(*arguments, "--json")
        assert status == 0, err[-3000:]
        return dict(json.loads(out))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the database, beside whatever is running."""
        (path,) = self.folder.rglob("database.sqlite")
        # not read-only: what a process left in the write-ahead log may have to be taken in first
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=30)) as connection:
            return connection.execute(query).fetchall()

    def processes(self) -> list[dict[str, Any]]:
        """Return pk, label, and attributes of all process nodes."""
        rows = self.rows("select id, label, attributes, extras from db_dbnode where node_type like 'process.%'")
        return [
            {"pk": pk, "label": label, "extras": json.loads(extras or "{}"), **json.loads(attributes or "{}")}
            for pk, label, attributes, extras in rows
        ]

    def jobs(self, label: str = "Calculation") -> list[dict[str, Any]]:
        """Return the CalcJobs whose class name ends with `label`, without those taken from the cache."""
        return [
            one
            for one in self.processes()
            if str(one.get("process_label", "")).endswith(label) and "_aiida_cached_from" not in one["extras"]
        ]

    def active(self, label: str) -> list[dict[str, Any]]:
        """Return the jobs of a class that the scheduler has."""
        return [
            one for one in self.jobs(label) if one.get("job_id") and one.get("process_state") in ("waiting", "running")
        ]

    def wait(self, process: subprocess.Popen[str], condition: Callable[[], Any], timeout: float = 600) -> Any:
        """Wait until something is so while a process runs; return it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                found = condition()
            except sqlite3.OperationalError:  # locked for a moment
                found = None
            if found:
                return found
            if process.poll() is not None:
                pytest.fail(f"ended too early: {process.communicate()[1][-3000:]}")
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        return pytest.fail(f"it did not come to that in {timeout} s: {process.communicate()[1][-3000:]}")

    def campaigns(self, name: str) -> list[dict[str, Any]]:
        """Return the campaign nodes of this name."""
        return [
            one for one in self.processes() if one.get("process_label") == "CampaignWorkChain" and one["label"] == name
        ]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Give a folder with a fresh profile."""
    made = Home(tmp_path_factory.mktemp("home"))
    result = made.json("setup")
    assert result["created"]
    assert "mimyria-wf" in result["codes"]
    yield made
    made.end()


def end_job(job: dict[str, Any]) -> bool:
    """Kill what a job's script runs, as a node without memory would; say whether there was anything."""
    try:
        children = psutil.Process(int(job["job_id"])).children(recursive=True)
    except psutil.NoSuchProcess:
        return False
    for child in children:
        child.kill()
    return bool(children)


CALCULATOR = {"import": "tblite.ase.TBLite", "arguments": {"method": "GFN2-xTB", "accuracy": 1.0, "verbosity": 0}}


def sampling(n_trajectories: int) -> dict[str, Any]:
    """Return a section with short NVE runs."""
    return {
        "engine": "ase",
        "calculator": CALCULATOR,
        "timestep_fs": 0.5,
        "temperature_K": 150,
        "nvt": {"length_ps": 0.05, "equilibration_ps": 0.01, "stride": 5},
        "nve": {"n_trajectories": n_trajectories, "length_ps": 0.2, "remove_rotation": True, "trajectories_per_job": 2},
    }


def interrupt(home: Home, path: Path, label: str, number: signal.Signals, rng: random.Random) -> str:
    """Run a campaign and end its process group at a random moment while a job of a class runs; return its messages."""
    process = home.start("run", path, "-o", home.folder / "report")
    known = {one["pk"] for one in home.jobs(label) if one.get("process_state") == "finished"}
    home.wait(process, lambda: [one for one in home.active(label) if one["pk"] not in known])
    time.sleep(rng.uniform(0, 1.5))
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    return str(err)


@pytest.fixture(scope="module")
def finished(home: Home) -> tuple[Home, Path, list[str]]:
    """Return a whole campaign that was ended three times on its way, and what it said each time."""
    home.add_code("own")
    path = home.write(
        "whole",
        computers={step: {"code": "own@localhost"} for step in ("md", "training", "prediction", "spectra")},
        sampling=sampling(3),
        labels={"engine": "tblite", "accuracy": 0.9, "snapshots_per_job": 1},
        training={"sizes": [2, 3], "test_size": 2, "overrides": SHORT},
        convergence={"minimum_iterations": 2, "trajectories": 2},
        reference={"trajectory": 0, "n_frames": 210},
        spectra={
            "window_fs": 50,
            "groups": {
                "first": {"index": "0-2"},
                "near": {"within": {"of": {"index": 0}, "by": {"species": "O"}, "distance": 2.9}},
            },
            "relations": ["same molecule"],
            "units": "molecules",
            "geometries": ["X(ZZ)Y", "-Z(XY)Z"],
            "statistics": "harmonic",
            "laser_nm": 532,
            "verlet_correction": True,
            "measured": "measured.csv",
        },
    )
    rows = "".join(f"{nu},{np.exp(-(((nu - 1600) / 50) ** 2)):.6f}\n" for nu in range(1000, 2200, 10))
    (home.folder / "measured.csv").write_text(f"# units: cm^-1, arbitrary\n{rows}")
    rng = random.Random(2026)
    messages = [interrupt(home, path, "NveCalculation", signal.SIGINT, rng)]
    status = home.json("status", "whole")
    assert status["state"] == "interrupted"
    assert status["step"] == f"interrupted: `mimyria-wf resume {status['pk']}` goes on"
    messages += [
        interrupt(home, path, "TbliteFieldSetCalculation", signal.SIGKILL, rng),
        interrupt(home, path, "TrainingCalculation", signal.SIGKILL, rng),
    ]
    status, _, err = home.call("run", path, "-o", home.folder / "report")
    assert status == 0, err[-3000:]
    return home, path, [*messages, err]


def test_interrupted_campaign_goes_on_and_finishes(finished: tuple[Home, Path, list[str]]) -> None:
    home, _, (after_nve, after_labels, after_training, last) = finished
    (campaign,) = home.campaigns("whole")  # one node through all interruptions
    assert (campaign["process_state"], campaign["exit_status"]) == ("finished", 0)
    assert "error: interrupted: run the same command again" in after_nve.splitlines()[-1]
    assert "Traceback" not in after_nve + last
    for text in (after_labels, after_training, last):
        assert f"campaign {campaign['pk']} of this file was interrupted: going on" in text


def test_nothing_finished_was_computed_twice(finished: tuple[Home, Path, list[str]]) -> None:
    """Over the whole database: no field point of a configuration, no job of the chain, came out of two jobs."""
    home, _, _ = finished
    query = (
        "select j.attributes, s.id, v.attributes from db_dbnode j "
        "join db_dblink a on a.output_id = j.id and a.label = 'snapshots' join db_dbnode s on s.id = a.input_id "
        "join db_dblink b on b.output_id = j.id and b.label = 'field_vectors' join db_dbnode v on v.id = b.input_id "
        "where j.process_type like '%tblite.fields'"
    )
    assert len(home.rows(query)) >= 5
    code = (
        "from aiida import load_profile, orm; load_profile(); import json\n"
        "nodes = orm.QueryBuilder().append(orm.ArrayData, filters={'attributes.kind': 'mimyria_wf.field_forces'})\n"
        "points = []\n"
        "for node in nodes.all(flat=True):\n"
        "    at = node.base.attributes.all\n"
        "    for vector, k in zip(node.get_array('field_vectors').tolist(), node.get_array('snapshot').tolist()):\n"
        "        points.append([at['level_of_theory_key'], at['configuration_keys'][k], *vector])\n"
        "print(json.dumps(points))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=home.environment, capture_output=True, text=True, check=True
    )
    points = [tuple(point) for point in json.loads(done.stdout)]
    assert len(points) == 13 * 5
    assert max(Counter(points).values()) == 1
    labels = Counter(one["label"] for one in home.jobs() if one["process_state"] == "finished")
    wanted = {"nvt": 1, "nve_000": 1, "nve_002": 1, "selection": 1, "training_apt_00": 1, "training_pgt_01": 1}
    assert {label: labels[label] for label in wanted} == wanted
    assert all(one["exit_status"] == 0 for one in home.jobs())


def test_each_step_ran_with_its_own_code(finished: tuple[Home, Path, list[str]]) -> None:
    home, _, _ = finished
    codes = {
        str(json.loads(attributes)["process_label"]): label
        for attributes, label in home.rows(
            "select j.attributes, c.label from db_dbnode j join db_dblink a on a.output_id = j.id and a.label = 'code' "
            "join db_dbnode c on c.id = a.input_id where j.node_type like 'process.calculation.calcjob%'"
        )
    }
    own = {f"{step}Calculation" for step in ("Nvt", "Nve", "Training", "Stride", "Prediction", "Spectra", "Comparison")}
    shared = {f"{step}Calculation" for step in ("Selection", "Groups", "TbliteFieldSet", "Reference")}
    assert codes == {**dict.fromkeys(own, "own"), **dict.fromkeys(shared, "mimyria-wf")}


def test_process_tree_and_outputs(finished: tuple[Home, Path, list[str]]) -> None:
    home, _, _ = finished
    (campaign,) = home.campaigns("whole")
    links = home.rows(f"select label, type from db_dblink where input_id = {campaign['pk']}")
    called = {label for label, kind in links if kind in ("call_work", "call_calc")}
    wanted = {"sampling", "selection", "groups", "refinement", "prediction", "spectra", "comparison", "reference_00"}
    assert wanted <= called
    returned = {label for label, kind in links if kind == "return"}
    wanted = {"manifest", "groups", "summary", "spectra", "comparison", "decision", "models__apt", "models__pgt"}
    wanted |= {"iterations__iteration_00", "iterations__iteration_01", "labels__labels_00", "labels__test"}
    assert wanted <= returned
    unfinished = [one for one in home.processes() if one.get("process_state") not in ("finished", "killed", "excepted")]
    assert not [one["process_label"] for one in unfinished if one["process_label"].endswith(("Chain", "Calculation"))]


def test_status_report_and_export(finished: tuple[Home, Path, list[str]]) -> None:
    home, _, _ = finished
    status = home.json("status", "whole")
    assert (status["state"], status["step"], status["exit_status"]) == ("finished", "finished", 0)
    assert status["labels"] == {"wanted": 5, "finished": 5}
    assert [record["n_training"] for record in status["iterations"]] == [2, 3]
    assert status["iterations"][0]["spectral_distance"] is None
    assert status["iterations"][1]["spectral_distance"] > 0
    assert status["failed_jobs"] == []
    report = home.folder / "report"
    names = {str(path.relative_to(report)) for path in report.rglob("*") if path.is_file()}
    wanted = {"ir.csv", "raman.csv", "ir.png", "raman.png", "lineshapes.csv", "learning_curve.png", "summary.json"}
    assert wanted <= names
    summary = json.loads((report / "summary.json").read_text())
    assert summary["spectra"]["f_sum"]["numerical"] == pytest.approx(1, abs=1e-3)
    distances = summary["explicit_against_predicted"]["spectra"]
    assert distances["ir"]["distance"] > 0
    exported = home.json("export", status["pk"], "-o", home.folder / "whole.aiida")
    assert exported["size_bytes"] > 10_000
    code, _, err = home.call("export", status["pk"], "-o", home.folder / "whole.aiida")
    assert code == 1
    assert "is there already" in err


def test_parts_and_forms_of_the_spectra(finished: tuple[Home, Path, list[str]]) -> None:
    """Groups, relations, geometries, forms and a measured spectrum, from the campaign file to the report."""
    home, _, _ = finished
    report = home.folder / "report"
    names = {str(path.relative_to(report)) for path in report.rglob("*") if path.is_file()}
    assert {"groups.yaml", "spectra.nc", "cca_ir.csv", "raman_geometries_harmonic_532nm.csv", "ir.pdf"} <= names
    assert any(name.startswith("jcamp/") and name.endswith(".jdx") for name in names)
    assert {f"explicit_against_predicted/{side}/cca_ir.csv" for side in ("explicit", "predicted")} <= names
    summary = json.loads((report / "summary.json").read_text())
    gates = {gate["name"]: gate for gate in summary["spectra"]["gates"]}
    assert gates["cca additivity"]["passed"]
    assert gates["cca additivity"]["value"] < 1e-10
    assert summary["spectra"]["settings"]["verlet_timestep"] == 0.5
    occupancies = summary["spectra"]["cca"]["occupancies"]
    assert occupancies["first"] == 3
    assert 0.1 < occupancies["near"] < 2.9  # the other molecule comes and goes
    assert occupancies["near"] + occupancies["rest"] == pytest.approx(3)
    names = list(read_table(report / "cca_ir.csv"))
    assert "first; same molecule" in names
    assert any(name.endswith("other") for name in names)
    # explicit labels know no relations: the parts of the prediction are summed over them
    scores = summary["explicit_against_predicted"]["cca"]
    assert {"first", "first x near"} <= set(scores["ir"]["parts"])
    assert not any("molecule" in name for name in scores["ir"]["parts"])
    assert 0 <= scores["raman_lineshapes"]["agreement"] <= 1


def test_finished_campaign_is_not_run_again(finished: tuple[Home, Path, list[str]]) -> None:
    home, path, _ = finished
    before = len(home.processes())
    code, out, err = home.call("run", path)
    assert code == 0
    assert "is finished already" in err
    assert "finished" in out
    assert len(home.processes()) == before
    code, _, err = home.call("submit", path)
    assert code == 1
    assert "is finished already" in err.splitlines()[-1]
    assert home.json("resume", "whole")["state"] == "finished"
    assert len(home.processes()) == before


def test_committee_chooses_and_a_killed_prediction_goes_on(home: Home) -> None:
    """Snapshots by the networks' uncertainty, the stride by a check, error bars by members, cheap labels first."""
    path = home.write(
        "committee",
        sampling={**sampling(4), "nve": {"n_trajectories": 4, "length_ps": 0.6, "trajectories_per_job": 4}},
        labels={"engine": "tblite", "accuracy": 0.7},
        training={
            "targets": ["apt"],
            "sizes": [3, 5],
            "test_size": 2,
            "selection": "committee",
            "overrides": SHORT,
            "pretraining": {"n_snapshots": 2},
        },
        convergence={"minimum_iterations": 2, "trajectories": 2},
        prediction={"members": 4, "stride_tolerance": 0.5},
        reference={"trajectory": 1, "n_frames": 210},
    )
    process = home.start("run", path, "-o", home.folder / "committee_report")
    (job, *_) = home.wait(process, lambda: home.active("PredictionCalculation"))
    is_killed = home.wait(process, lambda: end_job(job))
    _, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err[-3000:]
    assert is_killed
    assert f"{job['label']} failed" in err
    query = (
        "select j.label, s.label from db_dbnode j join db_dblink a on a.output_id = j.id and a.label = 'partial' "
        "join db_dblink b on b.output_id = a.input_id and b.label = 'remote_folder' "
        "join db_dbnode s on s.id = b.input_id"
    )
    assert (f"{job['label']}_again", job["label"]) in home.rows(query)

    summary = json.loads((home.folder / "committee_report" / "summary.json").read_text())
    assert summary["stride_check"]["chosen"] == 16
    assert [(one["name"], one["stride"]) for one in summary["prediction"]] == [(f"nve-{k:03d}", 16) for k in range(4)]
    assert all(one["sum_rule_rms"]["apt"] > 0 for one in summary["prediction"])
    assert set(summary["stride_check"]["strides"]) == {"2", "4", "8", "16"}
    assert summary["spectra"]["model_error"]["n_members"] == 4
    assert "stride 16" in home.call("status", "committee")[1]
    (chosen,) = summary["selections"].values()
    assert chosen["n_labelled"] == 3
    assert len(set(chosen["training"])) == 5
    assert set(chosen["training"]).isdisjoint(chosen["test"])
    assert not [name for name in chosen["training"] if name.startswith("nve-001/")]  # the reference
    labels = {
        name: [one.atoms.info["snapshot"] for one in read_labels(home.folder / "committee_report" / "labels" / name)]
        for name in ("00.extxyz", "01.extxyz", "test.extxyz")
    }
    assert labels["00.extxyz"] + labels["01.extxyz"] == chosen["training"]  # nested, none labelled twice
    assert labels["test.extxyz"] == chosen["test"]
    query = (
        "select j.label, a.label from db_dbnode j join db_dblink a on a.output_id = j.id "
        "join db_dblink b on b.output_id = j.id join db_dbnode r on r.id = b.input_id "
        "join db_dblink c on c.output_id = r.id "
        f"where c.input_id = {home.campaigns('committee')[0]['pk']} and j.label like 'training_apt_%'"
    )
    starts = {row for row in home.rows(query) if row[1] in ("pretraining", "initial_model")}
    assert starts == {("training_apt_00", "pretraining"), ("training_apt_01", "initial_model")}
    assert [one["label"] for one in home.jobs("ClusterLabelsCalculation")] == ["pretraining"]


# ---------------------------------------------------------------------------- what is given, what fails, what is reused


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with trajectories, labels and a model made by the verbs that need no AiiDA."""
    folder = tmp_path_factory.mktemp("given")
    ase.io.write(folder / "dimer.xyz", DIMER)
    calculator = ["--calculator", CALCULATOR["import"], "--arguments", json.dumps(CALCULATOR["arguments"])]
    nvt = f"md nvt {folder}/dimer.xyz --timestep-fs 0.5 --length-ps 0.05 --temperature-K 150 --n-starts 3 --seed 1"
    assert main([*nvt.split(), *calculator, "-o", str(folder)]) == 0
    nve = f"md nve {folder}/starts.extxyz --timestep-fs 0.5 --length-ps 0.2 --remove-rotation -o {folder}"
    assert main([*nve.split(), *calculator]) == 0
    ase.io.write(folder / "pool.extxyz", dimers(5, seed=3))
    label = f"label {folder}/pool.extxyz --accuracy 1.0 --targets apt -o {folder}/labels.extxyz"
    assert main(label.split()) == 0
    labelled = list(ase.io.iread(folder / "labels.extxyz", index=":"))
    ase.io.write(folder / "train.extxyz", labelled[:3])
    ase.io.write(folder / "test.extxyz", labelled[3:])
    train = f"train --target apt --train {folder}/train.extxyz --test {folder}/test.extxyz -o {folder}/model"
    assert main([*train.split(), "--set", json.dumps(SHORT)]) == 0
    return folder


def given_runs(given: Path) -> list[str]:
    """Return the trajectories."""
    return [str(given / f"nve-{k:03d}.h5") for k in range(3)]


def test_models_and_trajectories_given(home: Home, given: Path) -> None:
    path = home.write(
        "models", system=CLUSTER, trajectories=given_runs(given), models={"apt": str(given / "model" / "model.pt")}
    )
    status = home.json("run", path, "-o", home.folder / "models_report", "--quiet")
    assert status["state"] == "finished"
    assert status["jobs"]["all"] <= 4  # stride, prediction in at most two jobs, spectra
    assert (home.folder / "models_report" / "ir.csv").exists()


def test_labels_and_trajectories_given(home: Home, given: Path) -> None:
    path = home.write(
        "labels",
        system=CLUSTER,
        trajectories=given_runs(given),
        labels={"given": str(given / "labels.extxyz")},
        training={"targets": ["apt"], "sizes": [3], "test_size": 2, "overrides": SHORT},
        convergence={"minimum_iterations": 1},
    )
    status = home.json("run", path, "--quiet")
    assert status["state"] == "finished"
    assert [record["n_training"] for record in status["iterations"]] == [3]
    assert status["labels"]["wanted"] == 0


def test_failed_campaign_is_repeated_with_what_it_finished(home: Home) -> None:
    """The training job is ended as a full disk or an operator would; the same command then reuses runs and labels."""
    path = home.write(
        "failing",
        sampling=sampling(1),
        labels={"engine": "tblite", "accuracy": 0.8},
        training={"targets": ["apt"], "sizes": [2], "test_size": 2, "overrides": {"n_steps": 20000}},
        convergence={"minimum_iterations": 1},
    )
    process = home.start("run", path)
    known = {one["pk"] for one in home.jobs("TrainingCalculation")}
    (job,) = home.wait(process, lambda: [one for one in home.active("TrainingCalculation") if one["pk"] not in known])
    home.wait(process, lambda: end_job(job))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Refinement failed: Training failed: The job ended without a result" in errors[0]
    (campaign,) = home.campaigns("failing")
    assert campaign["exit_status"] == 432
    status = home.json("status", "failing")
    assert [job["what"] for job in status["failed_jobs"]] == ["training_apt_00"]

    # the same command again: training starts anew, what finished before does not
    before = {kind: len(home.jobs(kind)) for kind in ("NvtCalculation", "NveCalculation", "FieldSetCalculation")}
    process = home.start("run", path)
    known = {one["pk"] for one in home.jobs("TrainingCalculation")}
    home.wait(process, lambda: [one for one in home.active("TrainingCalculation") if one["pk"] not in known])
    os.killpg(process.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert "ended without success: its finished parts are reused" in err
    after = {kind: len(home.jobs(kind)) for kind in before}
    assert after == before
    for one in home.active("TrainingCalculation"):
        end_job(one)


def test_failing_labels_end_the_campaign_with_one_clear_line(home: Home, tmp_path: Path) -> None:
    """Nearly all frames are wrecks that the engine refuses."""
    n_frames = 20
    positions = np.repeat(molecule("H2O").positions[None], n_frames, axis=0)
    # atoms upon each other, but not in the frames at the ends, which are checked before anything is submitted
    positions[1:-1, 1:] = positions[1:-1, :1]
    for k in range(3):
        write_trajectory(
            tmp_path / f"wreck-{k}.h5",
            Trajectory(
                numbers=np.array([8, 1, 1]),
                positions=positions + 1e-3 * np.arange(n_frames)[:, None, None],
                velocities=np.full(positions.shape, 2e-3),
                cell=np.zeros((3, 3)),
                pbc=np.array([False] * 3),
                timestep=0.5,
                masses=np.array([15.999, 1.008, 1.008]),
                name=f"wreck-{k}",
            ),
        )
    path = home.write(
        "wreck",
        system=CLUSTER,
        trajectories=[str(tmp_path / f"wreck-{k}.h5") for k in range(3)],
        labels={"engine": "tblite"},
        training={"targets": ["apt"], "sizes": [2], "test_size": 2, "overrides": SHORT},
        convergence={"minimum_iterations": 1},
        spectra={"window_fs": 5},
    )
    code, out, err = home.call("run", path)
    assert code == 1, out
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert "Refinement failed: Labelling failed: " in errors[0]
    assert "Too close interatomic distances" in errors[0]
    assert "Traceback" not in err
    (campaign,) = home.campaigns("wreck")
    assert campaign["exit_status"] == 432


# --------------------------------------------------------------------------------------------------------------- daemon


@pytest.fixture
def daemon(home: Home) -> Iterator[Home]:
    """Stop the daemon afterwards, whatever happens."""
    try:
        yield home
    finally:
        verdi = str(Path(sys.executable).with_name("verdi"))
        subprocess.run([verdi, "daemon", "stop"], env=home.environment, capture_output=True, check=False, timeout=120)


def test_submit_runs_a_campaign_through_the_daemon(daemon: Home, given: Path) -> None:
    path = daemon.write(
        "daemon",
        system=CLUSTER,
        trajectories=given_runs(given)[:2],
        models={"apt": str(given / "model" / "model.pt")},
        spectra={"window_fs": 40},
    )
    submitted = daemon.json("submit", path, "--quiet")
    end = time.monotonic() + 240
    while time.monotonic() < end:
        (campaign,) = daemon.campaigns("daemon")
        if campaign.get("process_state") in ("finished", "excepted", "killed"):
            break
        time.sleep(0.5)
    assert campaign["pk"] == submitted["pk"]
    assert campaign.get("exit_status") == 0, daemon.json("status", submitted["pk"])
    code, _, err = daemon.call("run", path, "-o", daemon.folder / "daemon_report")
    assert code == 0
    assert "is finished already" in err
    assert (daemon.folder / "daemon_report" / "ir.csv").exists()
