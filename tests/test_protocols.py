"""Builders from protocols: every protocol is a valid campaign, and a wrong key is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from aiida import orm
from aiida.tools.pytest_fixtures import *  # noqa: F403  the profile is made only where this is imported
from ase.build import molecule

from mimyria_wf.calculators.data import structure_from_atoms
from mimyria_wf.calculators.spectra import spectra_flags
from mimyria_wf.cli import build_parser
from mimyria_wf.errors import CampaignError
from mimyria_wf.group_schema import read_group_scheme
from mimyria_wf.workchains.campaign import CampaignWorkChain
from mimyria_wf.workchains.protocols import merged, protocols

pytestmark = pytest.mark.aiida
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
