"""The campaign file: what it means, and one line for each way to get it wrong."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

import mimyria_wf
from mimyria_wf.campaign import COMMITTEE_REMEDY, Campaign, Kpoints, load_campaign, parse_campaign
from mimyria_wf.campaign_docs import schema_markdown
from mimyria_wf.campaign_file import CampaignFileError
from mimyria_wf.campaign_messages import suggestion
from mimyria_wf.errors import CampaignError
from mimyria_wf.presets import PRESETS

ROOT = Path(mimyria_wf.__file__).parents[1]
TEMPLATES = ROOT / "templates" / "campaigns"

CLUSTER = """\
name: hexamer
seed: 1
system:
  structure: water.xyz
  charge: 0
  multiplicity: 1
  volume_A3: 180.0
sampling:
  engine: ase
  calculator: {import: tblite.ase.TBLite, arguments: {method: GFN2-xTB, accuracy: 0.2, verbosity: 0}}
  timestep_fs: 0.5
  temperature_K: 220
  nvt:
    length_ps: 5.0
    equilibration_ps: 1.0
    stride: 20
    friction_per_ps: 10.0
  nve:
    n_trajectories: 8
    length_ps: 2.0
    stride: 1
    trajectories_per_job: 4
labels:
  engine: tblite
  method: GFN2-xTB
  accuracy: 0.01
  field_step_au: 1.0e-3
training:
  targets: [apt, pgt]
  preset: default
  sizes: [10, 20, 40]
  test_size: 20
convergence:
  r2: 0.9
  minimum_iterations: 3
prediction:
  stride: 1
spectra:
  window_fs: 500
reference:
  trajectory: 0
computers:
  mimyria: {code: mimyria-wf@localhost, max_concurrent: 2}
"""

LABELS = "  engine: tblite\n  method: GFN2-xTB\n  accuracy: 0.01\n  field_step_au: 1.0e-3\n"


def with_labels(labels: str) -> str:
    """Return the campaign with another engine's labels."""
    assert LABELS in CLUSTER
    return CLUSTER.replace(LABELS, labels).replace("reference:\n  trajectory: 0\n", "")


BAD = [
    pytest.param(
        "  timestep_fs: 0.5",
        "  timestep_fs: 0.5\n  thermostat: csvr",
        (
            "sampling.thermostat is not a key of sampling: known keys are engine, calculator, device, "
            "precision, batch_size, template, files, timestep_fs, temperature_K, nvt, nve (campaign.yaml, line 12)"
        ),
        id="unknown_key",
    ),
    pytest.param(
        "  temperature_K",
        "  temprature_K",
        ("sampling.temprature_K is not a key of sampling: did you mean temperature_K? (campaign.yaml, line 12)"),
        id="misspelt_key",
    ),
    pytest.param(
        "  timestep_fs: 0.5",
        "  timestep_ps: 0.0005",
        (
            "sampling.timestep_ps is not a key of sampling: did you mean timestep_fs? It is in fs "
            "(campaign.yaml, line 11)"
        ),
        id="wrong_unit",
    ),
    pytest.param(
        "  window_fs: 500",
        "  window: 500",
        "spectra.window must be hann or boxcar, got 500: did you mean window_fs? (campaign.yaml, line 39)",
        id="no_unit",
    ),
    pytest.param(
        "  engine: tblite",
        "  engine: tblite\n  sizes: [10]",
        "labels.sizes is not a key of labels: it belongs to training.sizes (campaign.yaml, line 25)",
        id="misplaced_key",
    ),
    pytest.param(
        "prediction:",
        "predictions:",
        "predictions is not a key of a campaign: did you mean prediction? (campaign.yaml, line 36)",
        id="unknown_section",
    ),
    pytest.param(
        "  timestep_fs: 0.5\n",
        "",
        "sampling.timestep_fs is missing: add timestep_fs: (MD time step) (campaign.yaml, line 8)",
        id="missing_key",
    ),
    pytest.param(
        "  nve:\n    n_trajectories: 8\n    length_ps: 2.0\n    stride: 1\n    trajectories_per_job: 4\n",
        "",
        "sampling.nve is missing: add nve: (the NVE runs) (campaign.yaml, line 8)",
        id="missing_section",
    ),
    pytest.param(
        "timestep_fs: 0.5",
        "timestep_fs: 0.5 fs",
        (
            "sampling.timestep_fs must be a number, got '0.5 fs': write 0.5 without quotes; the unit is in "
            "the key (campaign.yaml, line 11)"
        ),
        id="quoted_with_unit",
    ),
    pytest.param(
        "temperature_K: 220",
        "temperature_K: warm",
        "sampling.temperature_K must be a number, got 'warm': write a plain number (campaign.yaml, line 12)",
        id="text_for_number",
    ),
    pytest.param(
        "charge: 0",
        "charge: 0.5",
        "system.charge must be a whole number, got 0.5: write a whole number, e.g. 1 (campaign.yaml, line 5)",
        id="float_for_integer",
    ),
    pytest.param(
        "seed: 1",
        "seed: true",
        "seed must be a whole number, got true: write a whole number (campaign.yaml, line 2)",
        id="bool_for_number",
    ),
    pytest.param(
        "name: hexamer",
        "name: 2026",
        'name must be text, got 2026: put it in quotes: "2026" (campaign.yaml, line 1)',
        id="number_for_text",
    ),
    pytest.param(
        "name: hexamer",
        "name: my campaign",
        (
            "name must be one word of letters, digits, _ . and -, got 'my campaign': e.g. liquid_water-300K "
            "(campaign.yaml, line 1)"
        ),
        id="bad_name",
    ),
    pytest.param(
        "    trajectories_per_job: 4",
        "    remove_rotation: 1",
        ("sampling.nve.remove_rotation must be true or false, got 1: write true or false (campaign.yaml, line 22)"),
        id="text_for_boolean",
    ),
    pytest.param(
        "sizes: [10, 20, 40]",
        "sizes: 40",
        "training.sizes must be a list, got 40: write [40] (campaign.yaml, line 31)",
        id="number_for_list",
    ),
    pytest.param(
        "spectra:\n  window_fs: 500",
        "spectra: 500",
        (
            "spectra must be a section of keys and values, got 500: write {key: value} or indented keys "
            "below it (campaign.yaml, line 38)"
        ),
        id="number_for_section",
    ),
    pytest.param(
        "spectra:\n  window_fs: 500",
        "spectra:",
        (
            "spectra must be a section of keys and values, got nothing: write its keys below it, indented "
            "(campaign.yaml, line 38)"
        ),
        id="empty_section",
    ),
    pytest.param(
        "prediction:\n  stride: 1",
        "prediction: [1]",
        (
            "prediction must be a section of keys and values, got [1]: write {key: value} or indented keys "
            "below it (campaign.yaml, line 36)"
        ),
        id="list_for_section",
    ),
    pytest.param(
        "    length_ps: 5.0",
        "    length_ps: -5.0",
        ("sampling.nvt.length_ps must be greater than 0, got -5.0: write a positive number (campaign.yaml, line 14)"),
        id="negative_length",
    ),
    pytest.param(
        "temperature_K: 220",
        "temperature_K: 0",
        ("sampling.temperature_K must be greater than 0, got 0: write a positive number (campaign.yaml, line 12)"),
        id="zero_temperature",
    ),
    pytest.param(
        "seed: 1",
        "seed: -1",
        "seed must be at least 0, got -1: write 0 or more (campaign.yaml, line 2)",
        id="negative_seed",
    ),
    pytest.param(
        "window_fs: 500",
        "window_fs: .inf",
        "spectra.window_fs must be a finite number, got inf: write a plain number (campaign.yaml, line 39)",
        id="infinite",
    ),
    pytest.param(
        "r2: 0.9",
        "r2: .nan",
        "convergence.r2 must be a finite number, got nan: write a plain number (campaign.yaml, line 34)",
        id="nan",
    ),
    pytest.param(
        "r2: 0.9",
        "r2: 1.5",
        "convergence.r2 must be less than 1, got 1.5: lower it (campaign.yaml, line 34)",
        id="r2_above_one",
    ),
    pytest.param(
        "multiplicity: 1",
        "multiplicity: 0",
        "system.multiplicity must be at least 1, got 0: write 1 or more (campaign.yaml, line 6)",
        id="zero_multiplicity",
    ),
    pytest.param(
        "test_size: 20",
        "test_size: 0",
        "training.test_size must be at least 1, got 0: write 1 or more (campaign.yaml, line 32)",
        id="test_size_zero",
    ),
    pytest.param(
        "  test_size: 20\n",
        "",
        "training.test_size is missing: add test_size: or labels.test_given: (campaign.yaml, line 28)",
        id="no_test_size",
    ),
    pytest.param(
        "[10, 20, 40]",
        "[10, 40, 20]",
        "training.sizes must increase, got [10, 40, 20]: write [10, 20, 40] (campaign.yaml, line 31)",
        id="sizes_decrease",
    ),
    pytest.param(
        "[10, 20, 40]",
        "[]",
        "training.sizes must not be empty, got []: add a value or remove the key (campaign.yaml, line 31)",
        id="sizes_empty",
    ),
    pytest.param(
        "[10, 20, 40]",
        "[0, 20, 40]",
        "training.sizes[0] must be at least 1, got 0: write 1 or more (campaign.yaml, line 31)",
        id="size_zero",
    ),
    pytest.param(
        "max_concurrent: 2",
        "max_concurrent: 0",
        ("computers.mimyria.max_concurrent must be at least 1, got 0: write 1 or more (campaign.yaml, line 43)"),
        id="max_concurrent_zero",
    ),
    pytest.param(
        "mimyria-wf@localhost",
        "mimyria-wf",
        (
            "computers.mimyria.code must be LABEL@COMPUTER, got 'mimyria-wf': see `verdi code list`; e.g. "
            "cp2k@localhost (campaign.yaml, line 43)"
        ),
        id="code_without_computer",
    ),
    pytest.param(
        "max_concurrent: 2",
        "resources: {num_machine: 1}",
        (
            "computers.mimyria.resources.num_machine is not a scheduler resource: did you mean num_machines? "
            "(campaign.yaml, line 43)"
        ),
        id="unknown_resource",
    ),
    pytest.param(
        "max_concurrent: 2",
        "resources: {num_machines: 0}",
        (
            "computers.mimyria.resources.num_machines must be a whole number of at least 1, got 0: write 1 "
            "or more (campaign.yaml, line 43)"
        ),
        id="resource_zero",
    ),
    pytest.param(
        "  engine: tblite",
        "  engine: tblight",
        "labels.engine must be tblite, cp2k or vasp, got 'tblight': did you mean tblite? (campaign.yaml, line 24)",
        id="unknown_engine",
    ),
    pytest.param(
        "  engine: tblite",
        "  engine: vasp",
        (
            "labels has engine: vasp but no vasp section: add vasp: {incar: INCAR, potentials: {family: PBE.54, "
            "mapping: {O: O, H: H}}} (campaign.yaml, line 23)"
        ),
        id="vasp_without_section",
    ),
    pytest.param(
        LABELS,
        "  engine: vasp\n  vasp: {incar: INCAR}\n",
        "labels.vasp.potentials is missing: add potentials: (PAW potentials) (campaign.yaml, line 25)",
        id="vasp_without_potentials",
    ),
    pytest.param(
        LABELS,
        "  engine: vasp\n  vasp:\n    incar: 5\n    potentials: {family: PBE.54, mapping: {O: O}}\n",
        (
            "labels.vasp.incar must be a file or a section of keys and values, got 5: name a file "
            "(campaign.yaml, line 26)"
        ),
        id="vasp_incar_is_a_number",
    ),
    pytest.param(
        LABELS,
        "  engine: vasp\n  vasp:\n    incar: {EDIFF: 1.0e-8}\n    potentials: {family: PBE.54, mapping: {O: O}}\n"
        "    kpoints: {mesh: [2, 2, 2], spacing_per_A: 0.2}\n",
        ("labels.vasp.kpoints.spacing_per_A is given together with mesh: keep one of the two (campaign.yaml, line 28)"),
        id="vasp_two_meshes",
    ),
    pytest.param(
        LABELS,
        "  engine: vasp\n  vasp:\n    incar: {EDIFF: 1.0e-8}\n    potentials: {family: PBE.54, mapping: {O: O}}\n"
        "    method: lepsilon\n",
        (
            "labels.vasp.method lepsilon gives no PGT, but training.targets has pgt: write lcalceps or finite-field, "
            "or targets: [apt] (campaign.yaml, line 28)"
        ),
        id="vasp_lepsilon_with_pgt",
    ),
    pytest.param(
        "  engine: tblite",
        "  engine: tblite\n  settings: {charge: 1}",
        (
            "labels.settings is for engines of other packages: write the keys of tblite under labels instead "
            "(campaign.yaml, line 25)"
        ),
        id="settings_of_a_known_engine",
    ),
    pytest.param(
        "  engine: tblite",
        "  engine: tblite\n  scf_threshold: 1.0e-8",
        "labels.scf_threshold is for engine: cp2k and engine: vasp: write accuracy: instead (campaign.yaml, line 25)",
        id="scf_threshold_of_tblite",
    ),
    pytest.param(
        "  field_step_au: 1.0e-3",
        "  field_step_au: auto",
        "labels.field_step_au auto needs the qualification: add qualification: true, or write a number "
        "(campaign.yaml, line 27)",
        id="auto_without_qualification",
    ),
    pytest.param(
        "  field_step_au: 1.0e-3",
        "  field_step_au: automatic",
        (
            "labels.field_step_au must be auto or a positive number, got 'automatic': write auto, or a number such as "
            "5.0e-4 (campaign.yaml, line 27)"
        ),
        id="field_step_is_a_word",
    ),
    pytest.param(
        "labels:\n",
        "qualification: {field_steps_au: [5.0e-4]}\nlabels:\n",
        (
            "qualification.field_steps_au must be two or more, got [0.0005]: write [0.0005, 0.001] "
            "(campaign.yaml, line 23)"
        ),
        id="one_step_to_screen",
    ),
    pytest.param(
        "labels:\n",
        "qualification: {atoms: [1, 1]}\nlabels:\n",
        "qualification.atoms must name each value once, got [1, 1]: remove the repeated one (campaign.yaml, line 23)",
        id="atom_twice",
    ),
    pytest.param(
        "labels:\n",
        "qualification: {eps_scf: [1.0e-7]}\nlabels:\n",
        (
            "qualification.eps_scf is not a key of qualification: known keys are run, snapshots, field_steps_au, "
            "thresholds, grid, atoms, spatial_targets, displacement_A, tolerances (campaign.yaml, line 23)"
        ),
        id="unknown_key_of_qualification",
    ),
    pytest.param(
        "labels:\n",
        "qualification: maybe\nlabels:\n",
        (
            "qualification must be a section of keys and values, got 'maybe': write {key: value} or indented keys "
            "below it (campaign.yaml, line 23)"
        ),
        id="qualification_is_a_word",
    ),
    pytest.param(
        "  engine: ase",
        "  engine: lammps",
        "sampling.engine must be ase, cp2k or torch-sim, got 'lammps': choose one of them (campaign.yaml, line 9)",
        id="unknown_md_engine",
    ),
    pytest.param(
        "  engine: ase",
        "  engine: ase\n  device: cuda",
        "sampling.device is for engine: torch-sim: remove it or change the engine (campaign.yaml, line 10)",
        id="device_of_another_engine",
    ),
    pytest.param(
        "  engine: ase",
        "  engine: torch-sim\n  precision: single",
        "sampling.precision must be float64 or float32, got 'single': choose one of them (campaign.yaml, line 10)",
        id="unknown_precision",
    ),
    pytest.param(
        "preset: default",
        "preset: papers",
        (
            f"training.preset must be {', '.join(sorted(PRESETS)[:-1])} or {max(PRESETS)}, got 'papers': "
            "did you mean paper? (campaign.yaml, line 30)"
        ),
        id="unknown_preset",
    ),
    pytest.param(
        "preset: default",
        "preset: aptnn2023",
        (
            "training.preset aptnn2023 has no network for pgt: write targets: [apt], or take another preset "
            "(campaign.yaml, line 30)"
        ),
        id="preset_without_pgt",
    ),
    pytest.param(
        "preset: default",
        "selection: farthest",
        "training.selection must be random or committee, got 'farthest': choose one of them (campaign.yaml, line 30)",
        id="unknown_selection",
    ),
    pytest.param(
        "preset: default\n  sizes: [10, 20, 40]",
        "selection: committee\n  sizes: [10]",
        "training.selection committee does nothing with one size: remove it, or add sizes (campaign.yaml, line 30)",
        id="committee_without_iterations",
    ),
    pytest.param(
        "preset: default",
        "preset: paper\n  selection: committee",
        f"training.selection committee does not go with preset: paper: {COMMITTEE_REMEDY} (campaign.yaml, line 31)",
        id="committee_of_networks_that_have_none",
    ),
    pytest.param(
        "  stride: 1\nspectra",
        "  stride: often\nspectra",
        (
            "prediction.stride must be auto or a whole number of at least 1, got 'often': write auto, or 1 to predict "
            "every frame (campaign.yaml, line 37)"
        ),
        id="unknown_stride",
    ),
    pytest.param(
        "  stride: 1\nspectra",
        "  stride: 2\n  stride_tolerance: 1.0e-2\nspectra",
        (
            "prediction.stride_tolerance does nothing with stride: 2: remove it, or write stride: auto "
            "(campaign.yaml, line 38)"
        ),
        id="tolerance_of_a_given_stride",
    ),
    pytest.param(
        "  stride: 1\nspectra",
        "  members: 1\nspectra",
        "prediction.members must be at least 2, got 1: write 16, or 0 for none (campaign.yaml, line 37)",
        id="committee_of_one",
    ),
    pytest.param(
        "[apt, pgt]",
        "[apt, dipole]",
        "training.targets[1] must be apt or pgt, got 'dipole': choose one of them (campaign.yaml, line 29)",
        id="unknown_target",
    ),
    pytest.param(
        "[apt, pgt]",
        "[apt, apt]",
        (
            "training.targets must name each target once, got ['apt', 'apt']: remove the repeated one "
            "(campaign.yaml, line 29)"
        ),
        id="repeated_target",
    ),
    pytest.param(
        "method: GFN2-xTB\n  accuracy: 0.01",
        "method: GFN3-xTB\n  accuracy: 0.01",
        (
            "labels.method must be GFN1-xTB, GFN2-xTB or IPEA1-xTB, got 'GFN3-xTB': did you mean GFN2-xTB? "
            "(campaign.yaml, line 25)"
        ),
        id="unknown_method",
    ),
    pytest.param(
        "import: tblite.ase.TBLite",
        "import: TBLite",
        (
            "sampling.calculator.import must be an import path, got 'TBLite': write e.g. tblite.ase.TBLite "
            "(campaign.yaml, line 10)"
        ),
        id="import_path",
    ),
    pytest.param(
        "  calculator: {import: tblite.ase.TBLite, arguments: {method: GFN2-xTB, accuracy: 0.2, verbosity: 0}}\n",
        "",
        (
            "sampling has engine: ase but no calculator: add e.g. calculator: {import: tblite.ase.TBLite} "
            "(campaign.yaml, line 8)"
        ),
        id="engine_without_calculator",
    ),
    pytest.param(
        "  timestep_fs: 0.5",
        "  template: nnp.inp\n  timestep_fs: 0.5",
        (
            "sampling.template does not go with engine: ase: remove it or change the engine to cp2k "
            "(campaign.yaml, line 11)"
        ),
        id="template_with_ase",
    ),
    pytest.param(
        "  engine: tblite\n  method: GFN2-xTB\n  accuracy: 0.01",
        "  engine: cp2k",
        "labels has engine: cp2k but no template: add e.g. template: dft.inp (campaign.yaml, line 23)",
        id="cp2k_without_template",
    ),
    pytest.param(
        "  engine: tblite\n  method: GFN2-xTB\n",
        "  engine: cp2k\n  template: a.inp\n",
        "labels.accuracy is for engine: tblite: remove it or change the engine (campaign.yaml, line 26)",
        id="tblite_key_with_cp2k",
    ),
    pytest.param(
        "    friction_per_ps: 10.0",
        "    time_constant_fs: 50",
        (
            "sampling.nvt.time_constant_fs is for engine: cp2k: use friction_per_ps (Langevin) with engine: "
            "ase (campaign.yaml, line 17)"
        ),
        id="csvr_with_ase",
    ),
    pytest.param(
        "equilibration_ps: 1.0",
        "equilibration_ps: 6.0",
        (
            "sampling.nvt.equilibration_ps must be shorter than the NVT run of 5 ps, got 6: lengthen "
            "nvt.length_ps: it includes the equilibration (campaign.yaml, line 15)"
        ),
        id="equilibration_too_long",
    ),
    pytest.param(
        "    length_ps: 2.0",
        "    length_ps: 2.0002",
        (
            "sampling.nve.length_ps must be whole steps of 0.5 fs, got 2.0002 ps = 4000.400 steps: write 2 "
            "(campaign.yaml, line 20)"
        ),
        id="not_whole_steps",
    ),
    pytest.param(
        "    stride: 1\n",
        "    stride: 3\n",
        (
            "sampling.nve.length_ps must be a multiple of the stride, got 4000 steps with stride 3: write "
            "1.9995 or change nve.stride (campaign.yaml, line 20)"
        ),
        id="length_not_multiple_of_stride",
    ),
    pytest.param(
        "n_trajectories: 8",
        "n_trajectories: 800",
        (
            "sampling.nve.n_trajectories must not exceed the 400 NVT frames stored after equilibration, got "
            "800: lengthen nvt.length_ps or shorten nvt.stride (campaign.yaml, line 19)"
        ),
        id="more_starts_than_frames",
    ),
    pytest.param(
        "  trajectory: 0",
        "  trajectory: 8",
        (
            "reference.trajectory must be below sampling.nve.n_trajectories = 8, got 8: trajectories count "
            "from 0 (campaign.yaml, line 41)"
        ),
        id="reference_out_of_range",
    ),
    pytest.param(
        "  trajectory: 0",
        "  trajectory: -1",
        "reference.trajectory must be at least 0, got -1: write 0 or more (campaign.yaml, line 41)",
        id="reference_negative",
    ),
    pytest.param(
        "labels:\n  engine: tblite\n  method: GFN2-xTB\n  accuracy: 0.01\n  field_step_au: 1.0e-3\n",
        "",
        (
            "the campaign has neither labels nor models: add labels: to train networks, or models: to use "
            "yours (campaign.yaml, line 1)"
        ),
        id="no_labels_no_models",
    ),
    pytest.param(
        "  engine: tblite\n  method: GFN2-xTB\n  accuracy: 0.01\n  field_step_au: 1.0e-3\n",
        "  snapshots_per_job: 3\n",
        (
            "labels has neither engine nor given: add engine: tblite, engine: cp2k, or given: FILE.extxyz "
            "(campaign.yaml, line 23)"
        ),
        id="labels_without_engine",
    ),
    pytest.param(
        "  engine: tblite\n",
        "  engine: tblite\n  given: a.extxyz\n",
        "labels.given is given together with engine: keep one of the two (campaign.yaml, line 25)",
        id="engine_and_given",
    ),
    pytest.param(
        "labels:\n",
        "trajectories: [a.h5]\nlabels:\n",
        "trajectories are given together with sampling: keep one of the two (campaign.yaml, line 23)",
        id="sampling_and_trajectories",
    ),
    pytest.param(
        "  structure: water.xyz\n",
        "",
        ("system.structure is missing: sampling starts from a structure: add structure: FILE (campaign.yaml, line 3)"),
        id="no_structure",
    ),
    pytest.param(
        "training:\n  targets: [apt, pgt]",
        "models: {pgt: a.model}\ntraining:\n  targets: [apt]",
        ("models.pgt is not among training.targets: add the target or remove the model (campaign.yaml, line 28)"),
        id="model_of_other_target",
    ),
    pytest.param(
        "  multiplicity: 1",
        "  cell_A: [9, 9, 9]\n  cell_A_deg: [9, 9, 9, 90, 90, 90]",
        "system.cell_A_deg is given together with cell_A: keep one of the two (campaign.yaml, line 7)",
        id="both_cells",
    ),
    pytest.param(
        "  multiplicity: 1",
        "  cell_A: [9, 9, 9, 90, 90, 90]",
        (
            "system.cell_A must be [a, b, c] or three rows of three numbers, got [9, 9, 9, 90, 90, 90]: "
            "three lengths and three angles go under cell_A_deg (campaign.yaml, line 6)"
        ),
        id="six_numbers_in_cell",
    ),
    pytest.param(
        "  multiplicity: 1",
        "  cell_A: [[9, 0, 0], [0, 9, 0], [0, 9, 0]]",
        (
            "system.cell_A must be a right-handed cell of positive volume, got [[9, 0, 0], [0, 9, 0], [0, 9, "
            "0]]: check the lengths and the order of the cell vectors; leave the cell out for a cluster "
            "(campaign.yaml, line 6)"
        ),
        id="flat_cell",
    ),
    pytest.param(
        "  multiplicity: 1",
        "  cell_A_deg: [9, 9, 9, 20, 30, 90]",
        (
            "system.cell_A_deg must have angles that span a volume, got 20, 30, 90 degrees: give [a, b, c, "
            "alpha, beta, gamma] with lengths first (campaign.yaml, line 6)"
        ),
        id="impossible_angles",
    ),
    pytest.param(
        "  multiplicity: 1",
        "  cell_A_deg: [9, -9, 9, 90, 90, 90]",
        ("system.cell_A_deg[1] must be greater than 0, got -9: write a positive number (campaign.yaml, line 6)"),
        id="negative_cell_length",
    ),
    pytest.param(
        "  multiplicity: 1",
        "  cell_A: [9, 9, 9]",
        (
            "system.volume_A3 is for clusters, but the system is periodic: remove it: the cell's volume is "
            "used (campaign.yaml, line 7)"
        ),
        id="volume_of_periodic",
    ),
    pytest.param(
        "  multiplicity: 1",
        "  pbc: yes",
        ("system.pbc must be true, false or three of them, got 'yes': write e.g. pbc: true (campaign.yaml, line 6)"),
        id="bad_pbc",
    ),
    pytest.param(
        "seed: 1",
        "seed: 1\nseed: 2",
        "the key seed is there twice in one section: remove one of the two (campaign.yaml, line 3)",
        id="duplicate_key",
    ),
    pytest.param(
        "  timestep_fs: 0.5",
        "  timestep_fs: 0.5\n  timestep_fs: 1.0",
        "the key timestep_fs is there twice in one section: remove one of the two (campaign.yaml, line 12)",
        id="duplicate_nested_key",
    ),
    pytest.param(
        "[10, 20, 40]",
        "[10, 20, 40",
        (
            "the file is not valid YAML: while parsing a flow sequence expected ',' or ']', but got ':': "
            "check indentation, colons and brackets there and in the line above (campaign.yaml, line 32)"
        ),
        id="unclosed_bracket",
    ),
    pytest.param(
        "  timestep_fs: 0.5",
        "\ttimestep_fs: 0.5",
        "the file has a tab where YAML wants spaces: replace tabs by spaces (campaign.yaml, line 11)",
        id="tab",
    ),
    pytest.param(
        "  timestep_fs: 0.5",
        "  timestep_fs 0.5",
        (
            "the file is not valid YAML: while scanning a simple key could not find expected ':': check "
            "indentation, colons and brackets there and in the line above (campaign.yaml, line 12)"
        ),
        id="missing_colon",
    ),
    pytest.param(
        "seed: 1",
        "seed: 1\n5: 6",
        "the key 5 must be a word, got a number: put it in quotes (campaign.yaml, line 3)",
        id="key_not_text",
    ),
    pytest.param(
        "labels:\n",
        "---\nlabels:\n",
        "the file holds several YAML documents: keep one and remove the lines --- (campaign.yaml, line 23)",
        id="two_documents",
    ),
    pytest.param(
        CLUSTER,
        "",
        "the file is empty: start from one of templates/campaigns (campaign.yaml, line 1)",
        id="empty",
    ),
    pytest.param(
        CLUSTER,
        "# nothing\n",
        "the file is empty: start from one of templates/campaigns (campaign.yaml, line 1)",
        id="only_comments",
    ),
    pytest.param(
        CLUSTER,
        "- a\n- b\n",
        ("the file must hold keys and values, got a list: start with e.g. name: my_campaign (campaign.yaml, line 1)"),
        id="list",
    ),
    pytest.param(
        CLUSTER,
        "hello\n",
        ("the file must hold keys and values, got text: start with e.g. name: my_campaign (campaign.yaml, line 1)"),
        id="text",
    ),
    pytest.param(
        "  preset: default",
        "  overrides: {apt: 3}",
        (
            "training.overrides.apt must be a mapping for a target that is trained, got 3: targets are "
            "['apt', 'pgt'] (campaign.yaml, line 30)"
        ),
        id="override_not_mapping",
    ),
    pytest.param(
        "  window_fs: 500",
        "  verlet_timestep_fs: 0.5",
        "spectra.verlet_timestep_fs does nothing without verlet_correction: true: add it, or remove this "
        "(campaign.yaml, line 39)",
        id="verlet_timestep_alone",
    ),
    pytest.param(
        "  window_fs: 500",
        "  verlet_correction: true\n  verlet_timestep_fs: 0.5",
        "spectra.verlet_timestep_fs is for trajectories made elsewhere: remove it: sampling.timestep_fs is used "
        "(campaign.yaml, line 40)",
        id="verlet_timestep_with_sampling",
    ),
    pytest.param(
        "  window_fs: 500",
        "  geometries: [Z(XX)Z, Z(ZX)Z]",
        "spectra.geometries are not understood, scattering geometry Z(ZX)Z: light that travels along Z cannot be "
        "polarized along Z: a polarization is perpendicular to the direction (campaign.yaml, line 39)",
        id="geometry_along_the_light",
    ),
    pytest.param(
        "  window_fs: 500",
        "  statistics: quantum",
        "spectra.statistics must be classical, harmonic, bose-reduced or susceptibility, got 'quantum': choose one of "
        "them (campaign.yaml, line 39)",
        id="unknown_statistics",
    ),
    pytest.param(
        "  window_fs: 500",
        "  groups:\n    shell: {within: {of: {species: O}}}",
        "spectra.groups.shell.within is wrong, give either distance (A) or minimum (1, 2 or 3, of the RDF) "
        "(campaign.yaml, line 40)",
        id="shell_without_end",
    ),
    pytest.param(
        "  window_fs: 500",
        "  groups:\n    oxygen: {specie: O}",
        "spectra.groups.oxygen.specie is unknown there: known are species, index, molecule, molecule_of, within, "
        "group, all, any, not (campaign.yaml, line 40)",
        id="unknown_condition",
    ),
    pytest.param(
        "  window_fs: 500",
        "  groups:\n    oxygen: {species: Ox}",
        "spectra.groups.oxygen.species is wrong, 'Ox' is no chemical symbol (campaign.yaml, line 40)",
        id="unknown_element_in_group",
    ),
    pytest.param(
        "  window_fs: 500",
        "  groups: {oxygen: {species: O}}\n  relations:\n    - self\n    - bonded",
        "spectra.relations[1] is wrong, 'bonded' is no relation: relations are self, same molecule, other molecule, "
        "neighbours, hydrogen bonded; other is automatic (campaign.yaml, line 42)",
        id="unknown_relation",
    ),
    pytest.param(
        "  window_fs: 500",
        "  relations: [self]",
        "spectra.relations does nothing without groups: add groups:, or remove it (campaign.yaml, line 39)",
        id="relations_without_groups",
    ),
    pytest.param(
        "  window_fs: 500",
        "  groups: {oxygen: {species: O}}\n  relations: [self]\n  max_lag_fs: 400",
        "spectra.max_lag_fs must reach window_fs, 500, got 400: remove it or raise it (campaign.yaml, line 41)",
        id="max_lag_below_window",
    ),
    pytest.param(
        "  window_fs: 500",
        "  groups: {oxygen: {species: O}}\n  max_lag_fs: 400",
        "spectra.max_lag_fs does nothing without relations: remove it (campaign.yaml, line 40)",
        id="max_lag_without_relations",
    ),
    pytest.param(
        "  window_fs: 500",
        "  groups: {a: {group: b}, b: {group: a}}",
        "spectra.groups is wrong, groups refer to each other in a circle: a -> b -> a (campaign.yaml, line 39)",
        id="groups_in_a_circle",
    ),
    pytest.param(
        "  window_fs: 500",
        "  units: molecules",
        "spectra.units does nothing without groups: add groups:, or remove it (campaign.yaml, line 39)",
        id="units_without_groups",
    ),
    pytest.param(
        "  window_fs: 500",
        "  measured_units: cm^-1, cm^-1",
        "spectra.measured_units does nothing without measured: add measured: FILE, or remove it "
        "(campaign.yaml, line 39)",
        id="measured_units_without_measured",
    ),
    pytest.param(
        "  window_fs: 500",
        "  laser_nm: 0",
        "spectra.laser_nm must be greater than 0, got 0: write a positive number (campaign.yaml, line 39)",
        id="no_laser",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_bad_file_gives_one_line_with_file_line_and_remedy(old: str, new: str, message: str) -> None:
    assert CLUSTER.count(old) >= 1
    with pytest.raises(CampaignError) as caught:
        parse_campaign(CLUSTER.replace(old, new, 1))
    assert str(caught.value) == message


def test_every_group_that_is_wrong_is_named() -> None:
    groups = "  groups:\n    a: {specie: O}\n    b: {species: Ox}\n    c: {species: O}\n    d: {index: []}"
    with pytest.raises(CampaignError) as caught:
        parse_campaign(CLUSTER.replace("  window_fs: 500", groups, 1))
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines] == [
        "spectra.groups.a.specie",
        "spectra.groups.b.species",
        "spectra.groups.d.index",
    ]
    for number, line in zip((40, 41, 43), lines, strict=True):
        assert line.endswith(f"(campaign.yaml, line {number})")


def test_wrong_groups_are_named_beside_other_mistakes_of_their_section() -> None:
    groups = "  window_fs: -5\n  groups:\n    a: {specie: O}\n    b: {species: Ox}"
    with pytest.raises(CampaignError) as caught:
        parse_campaign(CLUSTER.replace("  window_fs: 500", groups, 1))
    lines = [line.split()[0] for line in str(caught.value).splitlines()]
    assert lines == ["spectra.window_fs", "spectra.groups.a.specie", "spectra.groups.b.species"]
    with pytest.raises(CampaignError) as caught:  # once each
        parse_campaign(CLUSTER.replace("  window_fs: 500", groups.replace("window_fs: -5", "units: cells"), 1))
    lines = [line.split()[0] for line in str(caught.value).splitlines()]
    assert lines == ["spectra.units"]


@pytest.mark.parametrize(
    ("targets", "lines", "message"),
    [
        (
            "[apt]",
            "window_fs: 15\n  geometries: [Z(XX)Z]",
            "spectra.geometries is for Raman spectra, but %s has no pgt",
        ),
        ("[apt]", "window_fs: 15\n  laser_nm: 532", "spectra.laser_nm is for Raman spectra, but %s has no pgt"),
        (
            "[apt]",
            "window_fs: 15\n  statistics: harmonic",
            "spectra.statistics is for Raman spectra, but %s has no pgt",
        ),
        ("[pgt]", "window_fs: 15\n  measured: ir.csv", "spectra.measured is for IR spectra, but %s has no apt"),
    ],
)
def test_what_needs_a_tensor_that_nobody_learns_is_refused(targets: str, lines: str, message: str) -> None:
    """Not after days of computing, by the last job."""
    good = CLUSTER.replace("  window_fs: 500", f"  {lines}", 1)
    parse_campaign(good)
    with pytest.raises(CampaignError) as caught:
        parse_campaign(good.replace("targets: [apt, pgt]", f"targets: {targets}", 1))
    (line,) = str(caught.value).splitlines()
    assert message % "training.targets" in line
    assert line.endswith(f"(campaign.yaml, line {good.count(chr(10), 0, good.index(lines)) + 2})")


def test_there_are_many_kinds_of_bad_files() -> None:
    assert len(BAD) >= 40
    assert len({case.id for case in BAD}) == len(BAD)


def test_valid_file_has_core_units() -> None:
    campaign = parse_campaign(CLUSTER)
    sampling = campaign.sampling
    assert sampling is not None
    assert sampling.n_nvt_steps == 10000
    assert sampling.n_nvt_equilibration_steps == 2000
    assert sampling.n_nve_steps == sampling.n_nve_frames == 4000
    assert sampling.frame_timestep == 0.5
    assert sampling.friction == pytest.approx(0.01, rel=1e-12)  # 10/ps
    nvt = sampling.nvt_settings(seed=3)
    assert (nvt.temperature, nvt.n_steps, nvt.n_equilibration_steps, nvt.seed) == (220, 10000, 2000, 3)
    assert nvt.thermostat == "langevin"
    assert sampling.nve_settings(is_periodic=False).remove_rotation
    assert not sampling.nve_settings(is_periodic=True).remove_rotation
    assert campaign.targets == ("apt", "pgt")
    assert campaign.labels is not None
    assert campaign.labels.field_step == 1e-3
    assert campaign.labels.n_snapshots_per_job == 20
    assert campaign.spectrum_settings().window_length == 500
    assert campaign.steps_run == ("md", "labels", "training", "prediction", "spectra")


def test_the_verlet_correction_takes_the_time_step_of_the_md() -> None:
    text = CLUSTER.replace("  window_fs: 500", "  verlet_correction: true")
    campaign = parse_campaign(text.replace("    stride: 1\n", "    stride: 2\n"))
    assert campaign.sampling is not None
    assert campaign.sampling.frame_timestep == 1.0
    assert campaign.spectrum_settings().verlet_timestep == 0.5
    assert parse_campaign(CLUSTER).spectrum_settings().verlet_timestep is None
    given = "name: a\nseed: 1\ntrajectories: [a.h5]\nmodels: {apt: a.pt}\nspectra: {verlet_correction: true}\n"
    with pytest.raises(CampaignError, match=r"which trajectories do not tell: add verlet_timestep_fs: .*line 5"):
        parse_campaign(given)
    told = parse_campaign(given.replace("true", "true, verlet_timestep_fs: 0.25"))
    assert told.spectrum_settings().verlet_timestep == 0.25


def test_defaults_depend_on_the_engine() -> None:
    text = CLUSTER.replace(
        "  engine: tblite\n  method: GFN2-xTB\n  accuracy: 0.01\n  field_step_au: 1.0e-3\n",
        "  engine: cp2k\n  template: dft.inp\n",
    )
    text = text.replace("reference:\n  trajectory: 0\n", "")
    campaign = parse_campaign(text)
    assert campaign.labels is not None
    assert campaign.labels.field_step == 5e-4
    assert campaign.labels.n_snapshots_per_job == 1
    assert campaign.computer_for("labels").code == "cp2k@localhost"
    assert campaign.computer_for("training").code == "mimyria-wf@localhost"


def test_several_mistakes_give_a_line_each_in_the_order_of_the_file() -> None:
    text = CLUSTER.replace("seed: 1", "seed: -1").replace("sizes: [10, 20, 40]", "sizes: 3").replace("r2: 0.9", "r2: 2")
    with pytest.raises(CampaignFileError) as caught:
        parse_campaign(text)
    assert [problem.line for problem in caught.value.problems] == [2, 31, 34]
    assert str(caught.value).count("\n") == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist: check the path"),
        (b"\xff\xfename: a\n", "the file is not text in UTF-8: save it as UTF-8 (bad.yaml)"),
        (b"name: \x00a\n", "the file is not valid YAML: unacceptable character"),
    ],
)
def test_unreadable_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CampaignError) as caught:
        load_campaign(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match="is a folder: name the YAML file in it"):
        load_campaign(tmp_path)


def test_values_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        parse_campaign(CLUSTER).seed = 2  # type: ignore[misc]


def test_plain_values_come_back() -> None:
    campaign = parse_campaign(CLUSTER)
    again = Campaign.from_dict(campaign.to_dict())
    assert again.to_dict() == campaign.to_dict()


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.yaml")), ids=lambda path: path.stem)
def test_templates_load_and_their_files_exist(path: Path) -> None:
    campaign = load_campaign(path)
    assert campaign.name == path.stem
    for _, value in campaign.named_files():
        assert campaign.path(value).is_file()
    assert campaign.atoms().info["charge"] == campaign.system.charge


def _written(folder: Path, text: str, xyz: str = "3\n\nO 0 0 0\nH 0 0 0.97\nH 0.94 0 -0.24\n") -> Campaign:
    folder.mkdir(exist_ok=True)
    (folder / "water.xyz").write_text(xyz)
    (folder / "campaign.yaml").write_text(text)
    return load_campaign(folder / "campaign.yaml")


def test_content_key_is_that_of_the_meaning(tmp_path: Path) -> None:
    key = _written(tmp_path / "a", CLUSTER).content_key()
    assert len(key) == 64
    same = {
        "comment": "# a comment\n" + CLUSTER.replace("seed: 1", "seed: 1   # another"),
        "order": CLUSTER.replace("name: hexamer\nseed: 1\n", "seed: 1\nname: hexamer\n"),
        "default": CLUSTER.replace("spectra:\n  window_fs: 500\n", ""),
        "number": CLUSTER.replace("temperature_K: 220", "temperature_K: 220.0"),
        "computer": CLUSTER.replace("max_concurrent: 2", "max_concurrent: 7"),
        "jobs": CLUSTER.replace("    trajectories_per_job: 4\n", ""),
    }
    for what, text in same.items():
        assert _written(tmp_path / what, text).content_key() == key, what
    other = {
        "seed": CLUSTER.replace("seed: 1", "seed: 2"),
        "step": CLUSTER.replace("field_step_au: 1.0e-3", "field_step_au: 2.0e-3"),
    }
    for what, text in other.items():
        assert _written(tmp_path / what, text).content_key() != key, what
    moved = _written(tmp_path / "b", CLUSTER, xyz="3\n\nO 0 0 0\nH 0 0 0.98\nH 0.94 0 -0.24\n")
    assert moved.content_key() != key


def test_content_key_knows_the_order_of_groups(tmp_path: Path) -> None:
    """An atom is in the first group that it fits."""
    text = CLUSTER.replace("  window_fs: 500", "  groups: {a: {species: O}, b: {molecule: H2O}}")
    swapped = text.replace("{a: {species: O}, b: {molecule: H2O}}", "{b: {molecule: H2O}, a: {species: O}}")
    assert _written(tmp_path, text).content_key() != _written(tmp_path, swapped).content_key()
    assert _written(tmp_path, text).content_key() == _written(tmp_path, text).content_key()


def test_content_key_names_a_missing_file() -> None:
    with pytest.raises(CampaignError, match=r"system.structure must name a file, water.xyz does not exist"):
        parse_campaign(CLUSTER, directory="/nowhere").content_key()


def test_pretraining_does_not_go_with_models() -> None:
    text = CLUSTER.replace("  preset: default", "  pretraining: {}")
    training = parse_campaign(text).training
    assert training is not None
    assert training.pretraining is not None
    assert (training.pretraining.n_snapshots, training.pretraining.radius_A) == (10, 3.5)
    with pytest.raises(CampaignError, match=r"training.pretraining is given together with models"):
        parse_campaign(text + "models: {apt: apt.pt}\n")


def test_members_need_a_preset_with_a_committee() -> None:
    text = CLUSTER.replace("  stride: 1\nspectra", "  members: 16\nspectra")
    assert parse_campaign(text).prediction.members == 16
    with pytest.raises(CampaignError) as caught:
        parse_campaign(text.replace("preset: default", "preset: paper"))
    assert str(caught.value) == (
        "prediction.members does not go with training.preset: paper, which has no committee: "
        f"{COMMITTEE_REMEDY} (campaign.yaml, line 37)"
    )


def test_a_committee_does_not_choose_among_given_labels() -> None:
    text = CLUSTER.replace("preset: default", "selection: committee")
    start, stop = text.index("labels:"), text.index("training:")
    with pytest.raises(CampaignError, match=r"training.selection committee chooses what is labelled, but labels.given"):
        parse_campaign(text[:start] + "labels: {given: labels.extxyz}\n" + text[stop:])


def test_three_lengths_of_a_cell_are_orthorhombic_and_six_numbers_any() -> None:
    text = CLUSTER.replace("  volume_A3: 180.0\n", "  cell_A: [9, 10, 11]\n")
    system = parse_campaign(text).system
    assert system.is_periodic
    assert system.cell is not None
    assert system.cell.tolist() == [[9, 0, 0], [0, 10, 0], [0, 0, 11]]
    text = CLUSTER.replace("  volume_A3: 180.0\n", "  cell_A_deg: [9, 9, 9, 60, 60, 60]\n")
    system = parse_campaign(text).system
    assert system.cell is not None
    # fcc primitive cell: a b c / sqrt(2)
    assert abs(np.linalg.det(system.cell)) == pytest.approx(9**3 / 2**0.5, rel=1e-12)


def test_trajectories_are_paths_or_sections_and_may_be_patterns(tmp_path: Path) -> None:
    for name in ("nve-2.h5", "nve-1.h5", "other.h5"):
        (tmp_path / name).touch()
    text = """\
name: given
seed: 1
trajectories:
  - nve-*.h5
  - {path: other.h5, timestep_fs: 0.5}
models: {apt: apt.model}
"""
    campaign = parse_campaign(text, directory=tmp_path)
    assert [path.name for path, _ in campaign.trajectory_files()] == ["nve-1.h5", "nve-2.h5", "other.h5"]
    assert [entry.timestep_fs for _, entry in campaign.trajectory_files()] == [None, None, 0.5]
    assert campaign.targets == ("apt",)
    assert campaign.steps_run == ("prediction", "spectra")


def test_overrides_are_shared_or_of_one_target() -> None:
    text = CLUSTER.replace("  preset: default\n", "  overrides: {n_steps: 50, pgt: {n_steps: 70}}\n")
    training = parse_campaign(text).training
    assert training is not None
    assert training.settings_for("apt", seed=4)[1].n_steps == 50
    assert training.settings_for("pgt", seed=4)[1].n_steps == 70
    assert training.settings_for("pgt", seed=4)[1].seed == 4


def test_steps_have_their_own_computers() -> None:
    resources = "{num_machines: 2, num_mpiprocs_per_machine: 4}"
    text = CLUSTER + f"  training: {{code: gpu@cluster, resources: {resources}, queue_name: gpu}}\n"
    campaign = parse_campaign(text)
    computer = campaign.computer_for("training")
    assert (computer.code, computer.n_cores, computer.is_local) == ("gpu@cluster", 8, False)
    assert computer.options() == {
        "resources": {"num_machines": 2, "num_mpiprocs_per_machine": 4},
        "withmpi": False,
        "queue_name": "gpu",
    }
    assert campaign.computer_for("spectra").code == "mimyria-wf@localhost"


@pytest.mark.parametrize(
    ("key", "known", "meant"),
    [
        ("timestep_ps", ["temperature_K", "timestep_fs"], "timestep_fs"),
        ("Charge", ["charge"], "charge"),
        ("n_trajectory", ["n_trajectories", "stride"], "n_trajectories"),
        ("zzz", ["charge"], None),
    ],
)
def test_suggestion(key: str, known: list[str], meant: str | None) -> None:
    assert suggestion(key, known) == meant


VASP_LABELS = """\
  engine: vasp
  vasp:
    incar: {EDIFF: 1.0e-7, ISMEAR: 0}
    potentials: {family: PBE.54, mapping: {O: O, H: H}}
"""


@pytest.mark.parametrize(
    ("labels", "section", "expected"),
    [
        ("  engine: tblite\n", "", False),
        ("  engine: tblite\n", "qualification: true\n", True),
        ("  engine: tblite\n", "qualification: {}\n", True),
        ("  engine: cp2k\n  template: water_pbe_szv.inp\n", "", True),
        ("  engine: cp2k\n  template: water_pbe_szv.inp\n", "qualification: false\n", False),
        ("  engine: cp2k\n  template: water_pbe_szv.inp\n", "qualification: {run: false, atoms: [1]}\n", False),
        (VASP_LABELS, "", True),
        (VASP_LABELS + "    method: lcalceps\n", "", True),
        (VASP_LABELS.replace("    incar", "    method: lepsilon\n    incar"), "", False),
    ],
)
def test_dear_labels_are_qualified_unless_told_not_to(labels: str, section: str, expected: bool) -> None:
    text = with_labels(labels) + section
    campaign = parse_campaign(text.replace("[apt, pgt]", "[apt]") if "lepsilon" in text else text)
    assert campaign.is_qualified is expected
    assert Campaign.from_dict(campaign.to_dict()).is_qualified is expected


@pytest.mark.parametrize(
    ("asked", "limits", "message"),
    [
        (
            "",
            "{max_memory_kb: 100}",
            "labels.limits.max_memory_kb has nothing to raise: add max_memory_kb to the computer",
        ),
        (", max_memory_kb: 100", "{max_memory_kb: 100}", "must exceed the 100 that a job gets at first"),
        (", max_wallclock_seconds: 60", "{max_wallclock_seconds: 30}", "must exceed the 60"),
        ("", "{max_wallclock_seconds: 0}", "labels.limits.max_wallclock_seconds must be at least 1"),
        ("", "{max_nodes: 2}", "labels.limits.max_nodes is not a key of labels.limits"),
    ],
)
def test_limits_that_raise_nothing_are_refused(asked: str, limits: str, message: str) -> None:
    computer = f"computers:\n  labels: {{code: cp2k@localhost{asked}}}\n"
    labels = f"  engine: cp2k\n  template: water_pbe_szv.inp\n  limits: {limits}\n"
    with pytest.raises(CampaignError, match=re.escape(message)):
        parse_campaign(with_labels(labels).replace("computers:\n", computer))


def test_a_time_limit_also_raises_the_one_of_cp2k() -> None:
    limits = "  engine: cp2k\n  template: water_pbe_szv.inp\n  limits: {max_wallclock_seconds: 7200}\n"
    campaign = parse_campaign(with_labels(limits))
    assert campaign.labels is not None
    assert campaign.labels.limits.max_wallclock_seconds == 7200


def test_what_is_screened_holds_step_and_threshold_of_the_labels() -> None:
    cp2k = "  engine: cp2k\n  template: water_pbe_szv.inp\n"
    campaign = parse_campaign(with_labels(cp2k))
    settings = campaign.qualification_settings()
    assert (settings.steps, settings.step, settings.thresholds) == ((5e-4,), 5e-4, (1e-8, 1e-9))
    assert (settings.atoms, settings.polarizability, settings.targets) == ((0,), "none", ("apt", "pgt"))
    assert not settings.requires_spatial  # chosen by nobody
    tight = parse_campaign(with_labels(f"{cp2k}  scf_threshold: 1.0e-10\n")).qualification_settings()
    assert (tight.steps, tight.thresholds) == ((5e-4, 1e-3), ())  # 1e-11 is out of reach
    asked = parse_campaign(with_labels(cp2k) + "qualification: {atoms: [0]}\n").qualification_settings()
    assert asked.requires_spatial
    text = with_labels(f"{cp2k}  field_step_au: 7.0e-4\n")
    section = "qualification: {field_steps_au: [2.5e-4, 1.0e-3], thresholds: [1.0e-6], spatial_targets: [pgt]}\n"
    settings = parse_campaign(text + section).qualification_settings()
    assert settings.steps == (2.5e-4, 7e-4, 1e-3)
    assert settings.step == 7e-4
    assert settings.thresholds == (1e-6, 1e-8)
    assert settings.polarizability == "fields"
    auto = f"{cp2k}  field_step_au: auto\n  scf_threshold: auto\n"
    settings = parse_campaign(with_labels(auto)).qualification_settings()
    assert len(settings.steps) == 4
    assert len(settings.thresholds) == 4


def test_a_template_may_stand_in_the_campaign_with_another_threshold(tmp_path: Path) -> None:
    """Nested keys mean what the file means, and the threshold replaces the template's."""
    from mimyria_wf.cp2k_input import eps_scf, parse_template

    (tmp_path / "dft.inp").write_text(
        "&FORCE_EVAL\n&DFT\n&SCF\nEPS_SCF 1e-6\n&OT ON\n&END\n&END\n&END\n&END FORCE_EVAL\n"
    )
    (tmp_path / "water.xyz").write_text("1\n\nHe 0 0 0\n")
    nested = "{FORCE_EVAL: {DFT: {SCF: {EPS_SCF: 1.0e-6, OT: {_: 'ON'}}}}}"
    for template in ("dft.inp", nested):
        text = with_labels(f"  engine: cp2k\n  template: {template}\n")
        campaign = parse_campaign(text, directory=tmp_path)
        assert campaign.scf_threshold() == 1e-6
        assert campaign.label_template().is_on("FORCE_EVAL/DFT/SCF/OT")
        tight = parse_campaign(text.replace("  template:", "  scf_threshold: 1.0e-9\n  template:"), directory=tmp_path)
        assert tight.scf_threshold() == eps_scf(tight.label_template()) == 1e-9
        assert tight.content_key() != campaign.content_key()
    assert parse_template((tmp_path / "dft.inp").read_text()) is not None


def test_incar_is_a_file_or_its_tags(tmp_path: Path) -> None:
    (tmp_path / "water.xyz").write_text("1\n\nHe 0 0 0\n")
    (tmp_path / "INCAR").write_text("EDIFF = 1E-7  ! tight\nISMEAR = 0\n")
    inside = parse_campaign(with_labels(VASP_LABELS), directory=tmp_path)
    beside = VASP_LABELS.replace("{EDIFF: 1.0e-7, ISMEAR: 0}", "INCAR")
    outside = parse_campaign(with_labels(beside), directory=tmp_path)
    assert [value for _, value in outside.named_files() if value == "INCAR"]
    assert not [value for _, value in inside.named_files() if isinstance(value, dict)]
    for campaign in (inside, outside):
        assert set(campaign.vasp_settings()["incar"]) == {"EDIFF", "ISMEAR"}
        assert campaign.scf_threshold() == 1e-7
        assert campaign.vasp_settings()["kpoints"] == {"mesh": (1, 1, 1)}
    assert len({inside.content_key(), outside.content_key()}) == 2
    assert inside.computer_for("labels").code == "vasp@localhost"


def test_an_engine_of_another_package_is_known_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the entry points name is an engine with settings of its own, which is tried before it is trusted."""
    monkeypatch.setattr("mimyria_wf.campaign.label_engines", lambda: ("tblite", "cp2k", "vasp", "springs"))
    text = with_labels("  engine: springs\n  settings: {stiffness: 3.0}\n")
    campaign = parse_campaign(text, directory=tmp_path)
    assert campaign.labels is not None
    assert campaign.labels.settings == {"stiffness": 3.0}
    assert campaign.labels.field_step == 5e-4
    assert campaign.is_qualified
    assert campaign.scf_threshold() is None
    settings = campaign.qualification_settings()
    assert (settings.atoms, settings.thresholds, settings.polarizability) == ((0,), (), "none")
    with pytest.raises(CampaignError, match="is for engine: tblite"):
        parse_campaign(text.replace("settings: {stiffness: 3.0}", "accuracy: 0.1"))


def test_kpoints_by_spacing() -> None:
    """b_i/spacing, rounded up: 2 pi/10 A = 0.63 1/A takes four points of 0.2 1/A."""
    points = Kpoints.model_validate({"spacing_per_A": 0.2})
    assert points.divisions(np.diag([10.0, 20.0, 40.0])) == (4, 2, 1)
    assert Kpoints.model_validate({"mesh": [3, 2, 1]}).divisions(np.eye(3)) == (3, 2, 1)


def test_the_documentation_is_current() -> None:
    page = ROOT / "docs" / "campaign.md"
    if not page.is_file():
        pytest.skip("the documentation is not installed with the package")
    assert page.read_text() == schema_markdown(), "run: python -m mimyria_wf.campaign_docs > docs/campaign.md"


def test_every_key_is_documented() -> None:
    assert "None |" not in schema_markdown()


def test_reading_a_campaign_loads_nothing_heavy() -> None:
    script = (
        "import sys; from mimyria_wf.campaign import parse_campaign; import mimyria_wf.campaign_check; "
        "print([m for m in ('torch', 'aiida', 'matplotlib', 'tblite', 'e3nn') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
