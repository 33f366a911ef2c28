"""Builders from protocols: every protocol is a valid campaign, and a wrong key is an error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import pytest
from aiida import orm
from aiida.engine.utils import instantiate_process
from aiida.manage import get_manager
from aiida.tools.pytest_fixtures import *  # noqa: F403  the profile is made only where this is imported
from ase.build import molecule
from ruamel import yaml
from test_vasp_workchains import FAMILY, VALENCES, potcar

import mimyria_wf
from mimyria_wf.calculators.cp2k import template_level_of_theory
from mimyria_wf.calculators.data import read_snapshots, structure_from_atoms
from mimyria_wf.calculators.qualification import varied_level
from mimyria_wf.calculators.spectra import spectra_flags
from mimyria_wf.calculators.vasp import vasp_level_of_theory
from mimyria_wf.campaign import Campaign
from mimyria_wf.cli import build_parser
from mimyria_wf.cp2k_input import eps_scf
from mimyria_wf.errors import CampaignError
from mimyria_wf.field_set_remedies import Limits
from mimyria_wf.group_schema import read_group_scheme
from mimyria_wf.labels import configuration_key, level_of_theory_key
from mimyria_wf.workchains.campaign import CampaignWorkChain
from mimyria_wf.workchains.driver import campaign_codes
from mimyria_wf.workchains.inputs import campaign_inputs
from mimyria_wf.workchains.protocols import merged, protocols
from mimyria_wf.workchains.qualification import QualificationWorkChain

pytestmark = pytest.mark.aiida
TEMPLATES = Path(mimyria_wf.__file__).parent / "templates"
SYSTEM = {"system": {"volume_A3": 30.0}}


@pytest.fixture
def water(aiida_profile_clean: object, aiida_localhost: object) -> orm.StructureData:
    """Return one water molecule in an empty profile."""
    return structure_from_atoms(molecule("H2O"))


@pytest.mark.parametrize("name", sorted(protocols()["protocols"]))
def test_protocols_are_valid_campaigns(water: orm.StructureData, name: str) -> None:
    builder = CampaignWorkChain.get_builder_from_protocol(water, name, SYSTEM)
    wanted = protocols()["protocols"][name]
    assert builder.refinement.training["sizes"] == wanted["training"]["sizes"]
    assert builder.sampling.settings["n_trajectories"] == wanted["sampling"]["nve"]["n_trajectories"]
    assert builder.sampling.settings["nve"]["remove_rotation"]  # a cluster


def test_overrides_replace_single_keys(water: orm.StructureData) -> None:
    overrides = merged(SYSTEM, {"training": {"sizes": [5, 10]}, "labels": {"field_step_au": 5e-4}})
    builder = CampaignWorkChain.get_builder_from_protocol(water, "fast", overrides)
    assert builder.refinement.training["sizes"] == [5, 10]
    assert builder.refinement.training["test_size"] == 40
    assert builder.refinement.labels.settings["step"] == 5e-4


def test_each_step_runs_with_its_own_code(
    water: orm.StructureData, aiida_code_installed: Callable[..., orm.AbstractCode]
) -> None:
    steps = ("md", "labels", "training", "prediction", "spectra")
    for step in steps:
        aiida_code_installed(label=f"own-{step}", filepath_executable="/bin/true")
    computers = {step: {"code": f"own-{step}@localhost"} for step in steps}
    builder = CampaignWorkChain.get_builder_from_protocol(water, "fast", merged(SYSTEM, {"computers": computers}))
    assert builder.code.label == "mimyria-wf"
    assert builder.sampling.code.label == "own-md"
    assert builder.refinement.labels.code.label == "own-labels"
    assert builder.refinement.training_code.label == "own-training"
    assert builder.prediction_code.label == "own-prediction"
    assert builder.spectra_code.label == "own-spectra"


def test_the_form_of_the_final_spectra_is_not_that_of_the_refinement(water: orm.StructureData) -> None:
    spectra = {"geometries": ["-Z(XY)X"], "statistics": "harmonic", "laser_nm": 532.0, "verlet_correction": True}
    builder = CampaignWorkChain.get_builder_from_protocol(water, "fast", merged(SYSTEM, {"spectra": spectra}))
    assert builder.spectra["verlet_timestep_fs"] == 0.5
    assert not {"geometry", "statistics", "laser_nm"} & set(builder.spectra.get_dict())
    final = builder.final_spectra.get_dict()
    assert final == {"geometry": ["-Z(XY)X"], "statistics": "harmonic", "laser_nm": 532.0}
    line = ["spectra", "a.h5", *spectra_flags(builder.final_spectra), "-o", "x"]
    assert build_parser().parse_args(line).geometry == ["-Z(XY)X"]
    plain = CampaignWorkChain.get_builder_from_protocol(water, "fast", SYSTEM)
    assert "final_spectra" not in plain


def test_groups_become_a_file(water: orm.StructureData, tmp_path: Path) -> None:
    spectra = {
        "groups": {"solute": {"molecule": "H2O"}, "shell": {"within": {"of": "solute", "minimum": 1}}},
        "relations": ["self", {"neighbours": {"distance": 4.0}, "name": "near"}],
        "units": "molecules",
        "groups_every": 2,
        "rdf": {"cutoff": 6.0},
    }
    builder = CampaignWorkChain.get_builder_from_protocol(water, "fast", merged(SYSTEM, {"spectra": spectra}))
    (tmp_path / "groups.yaml").write_text(builder.groups.get_content("r"))
    scheme = read_group_scheme(tmp_path / "groups.yaml")
    assert list(scheme.groups) == ["solute", "shell"]
    assert [relation.name for relation in scheme.relations] == ["self", "near"]
    assert (scheme.units, scheme.every, scheme.rdf.cutoff) == ("molecules", 2, 6.0)
    assert "max_lag_fs" not in builder.prediction.get_dict()  # refinement knows no groups
    assert builder.final_prediction.get_dict() == {"max_lag_fs": 500.0}


@pytest.mark.parametrize(
    ("protocol", "overrides", "message"),
    [
        ("quick", {}, "protocol quick is unknown: choose one of fast, balanced, precise"),
        ("fast", {"training": {"size": [5]}}, "training.size is not a key of training: did you mean sizes?"),
        ("fast", {"labels": {"engine": "tblit"}}, "did you mean tblite?"),
    ],
)
def test_mistakes_are_named(water: orm.StructureData, protocol: str, overrides: dict, message: str) -> None:
    with pytest.raises(CampaignError, match=message.replace("?", r"\?").replace("[", r"\[")):
        CampaignWorkChain.get_builder_from_protocol(water, protocol, merged(SYSTEM, overrides))


# ------------------------------------------------------------------------------------- engines, and their qualification


def built(tmp_path: Path, labels: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Return the inputs of a campaign with other labels, codes made up."""
    shutil.copy(TEMPLATES / "campaigns" / "water_8.extxyz", tmp_path)
    data = yaml.YAML(typ="safe").load((TEMPLATES / "campaigns" / "water_bulk_cp2k_small.yaml").read_text())
    campaign = Campaign.from_dict({**data, "labels": labels, **sections}, directory=tmp_path)
    return campaign_inputs(campaign, campaign_codes(campaign))


def first_jobs(inputs: dict[str, Any]) -> list[Any]:
    """Return a campaign's qualification, set up, and what it would submit; AiiDA checks the inputs of all of it."""
    runner = get_manager().get_runner()
    labels = inputs["refinement"]["labels"]
    names = ("code", "settings", "template", "files", "engine", "options")
    own = {name: labels[name] for name in names if name in labels}
    chain = instantiate_process(runner, QualificationWorkChain, **own, **inputs["qualification"])
    chain.setup()
    chain.plan()
    jobs = []
    for entry in chain.ctx.queue:
        process, given = chain.job(entry)
        jobs.append(instantiate_process(runner, process, **given))
    return jobs


@pytest.fixture
def programs(water: orm.StructureData, aiida_code_installed: Callable[..., orm.AbstractCode]) -> None:
    """Make codes for programs that need not be there."""
    for label in ("cp2k", "vasp"):
        aiida_code_installed(label=label, filepath_executable="/bin/true")


def test_rounds_and_limits_reach_the_labels(programs: None, tmp_path: Path) -> None:
    labels = {"engine": "cp2k", "template": "water_pbe_szv.inp"}
    computer = {"cp2k": {"code": "cp2k@localhost", "max_memory_kb": 10**6}}
    chosen = {**labels, "max_rounds": 5, "limits": {"max_memory_kb": 4 * 10**6, "max_wallclock_seconds": 7200}}
    settings = built(tmp_path, chosen, computers=computer)["refinement"]["labels"]["settings"].get_dict()
    assert settings["max_rounds"] == 5
    assert Limits(**settings["limits"]) == Limits(max_wallclock_seconds=7200, max_memory_kb=4 * 10**6)
    plain = built(tmp_path, labels)["refinement"]["labels"]["settings"].get_dict()
    assert "limits" not in plain  # options stay as they are
    assert plain["level_of_theory"] == settings["level_of_theory"]


def test_cp2k_labels_are_qualified_at_their_own_level_of_theory(programs: None, tmp_path: Path) -> None:
    inputs = built(tmp_path, {"engine": "cp2k", "template": "water_pbe_szv.inp"})
    settings = inputs["refinement"]["labels"]["settings"].get_dict()
    assert settings["threshold"] == 1e-8
    assert inputs["qualification"]["screening"]["steps"] == [5e-4]
    assert inputs["qualification"]["screening"]["thresholds"] == [1e-8, 1e-9]
    (atoms,) = read_snapshots(inputs["qualification"]["snapshots"])
    assert configuration_key(atoms) == configuration_key(ase.io.read(tmp_path / "water_8.extxyz"))
    assert "adopt" not in inputs
    assert "qualification" not in built(
        tmp_path, {"engine": "cp2k", "template": "water_pbe_szv.inp"}, qualification=False
    )
    # a threshold that the campaign sets and one that the qualification has screened are one level of theory
    tight = built(tmp_path, {"engine": "cp2k", "template": "water_pbe_szv.inp", "scf_threshold": 1e-9})
    varied, _ = varied_level("cp2k", settings["level_of_theory"], inputs["refinement"]["labels"], {"eps_scf": 1e-9})
    assert varied == tight["refinement"]["labels"]["settings"]["level_of_theory"] != settings["level_of_theory"]


def test_what_the_qualification_chooses_is_left_open(programs: None, tmp_path: Path) -> None:
    labels = {"engine": "cp2k", "template": "water_pbe_szv.inp", "field_step_au": "auto", "scf_threshold": "auto"}
    inputs = built(tmp_path, labels)
    assert inputs["adopt"].get_list() == ["step", "threshold"]
    assert len(inputs["qualification"]["screening"]["thresholds"]) == 4
    jobs = first_jobs(inputs)
    levels = {level_of_theory_key(job.inputs.level_of_theory.get_dict()) for job in jobs}
    assert len(levels) == 4
    assert {job.inputs.console_code.label for job in jobs} == {"mimyria-wf"}  # on the same computer
    assert level_of_theory_key(inputs["refinement"]["labels"]["settings"]["level_of_theory"]) in levels
    for job in jobs:
        level = template_level_of_theory(job.inputs.template.get_content("r"), {})
        assert level == job.inputs.level_of_theory.get_dict()
    # what it chooses is what the labels get
    chain = instantiate_process(get_manager().get_runner(), CampaignWorkChain, **inputs)
    chain.ctx.verdict = orm.Dict({"step": 1e-3, "eps_scf": 1e-9}).store()
    chosen = chain._qualified(inputs["refinement"]["labels"])
    settings = chosen["settings"].get_dict()
    assert (settings["step"], settings["threshold"], settings["engine"]) == (1e-3, 1e-9, "cp2k")
    assert eps_scf(chosen["template"].get_content("r")) == 1e-9
    assert settings["level_of_theory"] == template_level_of_theory(chosen["template"].get_content("r"), {})
    assert level_of_theory_key(settings["level_of_theory"]) in levels  # the points that led to it serve the labels


def test_vasp_labels_take_incar_kpoints_and_potentials(programs: None, tmp_path: Path) -> None:
    from aiida_vasp.data.potcar import PotcarData

    for symbol, valence in VALENCES.items():
        (tmp_path / "potentials" / symbol).mkdir(parents=True)
        (tmp_path / "potentials" / symbol / "POTCAR").write_text(potcar(symbol, valence))
    PotcarData.upload_potcar_family(tmp_path / "potentials", FAMILY, "made up", stop_if_existing=False)
    vasp = {
        "incar": {"EDIFF": 1e-7, "ISMEAR": 0, "SIGMA": 0.05},
        "kpoints": {"mesh": [1, 1, 2]},
        "potentials": {"family": FAMILY, "mapping": {"O": "O", "H": "H"}},
    }
    inputs = built(tmp_path, {"engine": "vasp", "vasp": vasp, "scf_threshold": 1e-8})
    labels = inputs["refinement"]["labels"]
    settings = labels["settings"].get_dict()
    assert labels["code"].label == "vasp"
    assert (settings["engine"], settings["step"], settings["threshold"]) == ("vasp", 5e-4, 1e-8)
    assert settings["level_of_theory"] == vasp_level_of_theory(labels["engine"])
    assert float(labels["engine"]["vasp"]["incar"]["EDIFF"]) == 1e-8
    assert inputs["qualification"]["screening"]["atoms"] == [0]
    level, changed = varied_level("vasp", settings["level_of_theory"], labels, {"eps_scf": 1e-6})
    assert float(level["incar"]["EDIFF"]) == float(changed["engine"]["vasp"]["incar"]["EDIFF"]) == 1e-6
    assert {**level, "incar": None} == {**settings["level_of_theory"], "incar": None}
    screened = built(tmp_path, {"engine": "vasp", "vasp": vasp}, qualification={"thresholds": [1e-6], "atoms": []})
    jobs = first_jobs(screened)
    assert {float(job.inputs.vasp.incar["EDIFF"]) for job in jobs} == {1e-6, 1e-7}
    assert {type(job).__name__ for job in jobs} == {"VaspFieldSetWorkChain"}
    born = built(tmp_path, {"engine": "vasp", "vasp": {**vasp, "method": "lcalceps"}})
    assert born["refinement"]["labels"]["engine"]["method"].value == "lcalceps"
    assert born["qualification"]["screening"]["atoms"] == []
    targets = {"targets": ["apt"], "sizes": [3, 6, 9], "test_size": 4}
    tensors = built(tmp_path, {"engine": "vasp", "vasp": {**vasp, "method": "lepsilon"}}, training=targets)
    assert "qualification" not in tensors
    assert tensors["refinement"]["labels"]["settings"]["route"] == "tensors"
    with pytest.raises(CampaignError, match="says nothing of H"):
        built(tmp_path, {"engine": "vasp", "vasp": {**vasp, "potentials": {"family": FAMILY, "mapping": {"O": "O"}}}})
