"""From a checked campaign to the inputs of :class:`~mimyria_wf.workchains.campaign.CampaignWorkChain`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase
import ase.io
from aiida import orm
from ruamel.yaml import YAML

from mimyria_wf.calculators.cp2k import template_level_of_theory
from mimyria_wf.calculators.data import structure_from_atoms
from mimyria_wf.campaign import Campaign, Labels, Sampling, Step, Training
from mimyria_wf.cp2k_input import write_input
from mimyria_wf.errors import CampaignError
from mimyria_wf.labels import read_labels

CALIBRATION_FRACTION = 0.2
"""Share of the snapshots that a second training leaves out to calibrate the uncertainties of the first."""


def campaign_inputs(campaign: Campaign, codes: Mapping[str, orm.AbstractCode]) -> dict[str, Any]:
    """Return the inputs of a campaign.

    Args:
        campaign: passed by :func:`mimyria_wf.campaign_check.check_campaign`.
        codes: AiiDA codes by label ``name@computer``.
    """
    mimyria = codes[campaign.computers.mimyria.code]
    inputs: dict[str, Any] = {"code": mimyria, "metadata": {"label": campaign.name}}
    if campaign.sampling is not None:
        inputs["sampling"] = _sampling_inputs(campaign, campaign.sampling, codes)
    else:
        inputs.update(_given_trajectories(campaign, mimyria.computer))
    if campaign.models is not None:
        files = {target: getattr(campaign.models, target) for target in ("apt", "pgt")}
        inputs["models"] = {t: orm.SinglefileData(campaign.path(f), filename="model.pt") for t, f in files.items() if f}
    volume = campaign.system.volume_A3
    charge = campaign.system.charge
    scheme = campaign.spectra.group_scheme
    inputs["prediction"] = orm.Dict(
        _present(
            stride=campaign.prediction.stride,
            stride_tolerance=campaign.prediction.stride_tolerance if campaign.prediction.stride == "auto" else None,
            batch_size=campaign.prediction.batch_size,
            keep_sum_rules=not campaign.prediction.project_sum_rules,
            volume=volume,
            charge=charge,
            threads=_threads(campaign),
            device=campaign.prediction.device if campaign.prediction.device != "cpu" else None,
        )
    )
    spectra = campaign.spectra
    inputs["spectra"] = orm.Dict(
        _present(
            window=spectra.window,
            window_fs=spectra.window_fs,
            estimator=spectra.estimator,
            upper_wavenumber_per_cm=spectra.upper_wavenumber_per_cm,
            temperature=spectra.temperature_K,
            verlet_timestep_fs=campaign.verlet_timestep,
            seed=campaign.seed,
        )
    )
    final = {"geometry": list(spectra.geometries) or None, "laser_nm": spectra.laser_nm}
    final["statistics"] = None if spectra.statistics == "classical" else spectra.statistics
    final["measured_units"] = spectra.measured_units
    if present := _present(**final):
        inputs["final_spectra"] = orm.Dict(present)
    if scheme is not None:
        text = io.StringIO()
        YAML().dump(scheme.to_dict(), text)
        inputs["groups"] = orm.SinglefileData(io.BytesIO(text.getvalue().encode()), filename="groups.yaml")
    last: dict[str, Any] = {}
    if scheme is not None and scheme.relations:
        last["max_lag_fs"] = spectra.max_lag_fs or spectra.window_fs
    if campaign.prediction.members:
        last["members"] = campaign.prediction.members
    if last:
        inputs["final_prediction"] = orm.Dict(last)
    if spectra.measured is not None:
        inputs["measured"] = orm.SinglefileData(campaign.path(spectra.measured))
    own_codes: tuple[Step, ...] = ("prediction", "spectra")
    for step in own_codes:
        inputs[f"{step}_code"] = codes[campaign.computer_for(step).code]
    steps: tuple[Step, ...] = ("training", "prediction", "spectra")
    options: dict[str, Any] = {step: campaign.computer_for(step).options() for step in steps}
    options["selection"] = options["labels"] = campaign.computers.mimyria.options()
    inputs["options"] = orm.Dict(options)
    inputs["max_concurrent"] = orm.Int(campaign.computer_for("prediction").max_concurrent)
    if campaign.training is not None and campaign.labels is not None:
        inputs.update(_refinement_inputs(campaign, campaign.labels, codes))
    return inputs


def _sampling_inputs(campaign: Campaign, sampling: Sampling, codes: Mapping[str, orm.AbstractCode]) -> dict[str, Any]:
    atoms = campaign.atoms()
    is_cluster = not atoms.pbc.any()
    system = {"charge": campaign.system.charge, "multiplicity": campaign.system.multiplicity}
    computer = campaign.computer_for("md")
    nvt: dict[str, Any] = {
        **system,
        "temperature_K": sampling.temperature_K,
        "timestep_fs": sampling.timestep_fs,
        "length_ps": sampling.nvt.length_ps,
        "equilibration_ps": sampling.nvt.equilibration_ps,
        "stride": sampling.nvt.stride,
        "n_starts": sampling.nve.n_trajectories,
        "seed": campaign.seed,
    }
    nve: dict[str, Any] = {
        **system,
        "timestep_fs": sampling.timestep_fs,
        "length_ps": sampling.nve.length_ps,
        "stride": sampling.nve.stride,
    }
    nve["remove_rotation"] = sampling.nve_settings(is_periodic=not is_cluster).remove_rotation
    if sampling.engine == "cp2k":
        nvt["time_constant_fs"] = 1 / sampling.friction
    else:
        nvt["friction_per_ps"] = sampling.friction * 1000
    if sampling.engine == "torch-sim":
        potential = {"engine": sampling.engine, "device": sampling.device, "dtype": sampling.precision}
        nvt |= potential
        nve |= potential | _present(batch_size=sampling.batch_size)
    settings = {
        "engine": sampling.engine,
        "nvt": nvt,
        "nve": nve,
        "n_trajectories": sampling.nve.n_trajectories,
        "trajectories_per_job": sampling.n_trajectories_per_job,
        "max_concurrent": computer.max_concurrent,
    }
    inputs: dict[str, Any] = {
        "structure": structure_from_atoms(atoms),
        "settings": orm.Dict(settings),
        "options": orm.Dict(computer.options()),
    }
    if sampling.engine == "cp2k":
        inputs["md_code"] = codes[computer.code]
        assert sampling.template is not None
        inputs["template"] = orm.SinglefileData(campaign.path(sampling.template))
    else:
        inputs["code"] = codes[computer.code]
        assert sampling.calculator is not None
        arguments = sampling.arguments(lambda name: Path(name).name)
        inputs["calculator"] = orm.Dict({"import": sampling.calculator.import_path, "arguments": arguments})
    if sampling.files:
        inputs["files"] = _file_nodes(campaign, sampling.files)
    return inputs


def _given_trajectories(campaign: Campaign, computer: orm.Computer) -> dict[str, Any]:
    """Return folders and manifest of trajectories made elsewhere; other formats than H5MD are converted beside them."""
    folders: dict[Path, str] = {}
    files: list[dict[str, Any]] = []
    names: set[str] = set()
    for path, entry in campaign.trajectory_files():
        if path.suffix not in (".h5", ".h5md", ".extxyz"):
            raise CampaignError(
                f"{path.name}: a campaign reads H5MD (.h5) or extxyz trajectories: convert it with "
                f"`mimyria-wf convert {path.name} --timestep-fs ... -o {path.stem}.h5`"
            )
        reader = campaign.reader(path, entry)
        folder = folders.setdefault(path.resolve().parent, f"given_{len(folders):03d}")
        name = path.stem
        if name in names:
            name = f"{name}-{len(files):03d}"
        names.add(name)
        files.append({"folder": folder, "file": path.name, "name": name, "n_frames": reader.n_frames})
    remotes = {key: orm.RemoteData(remote_path=str(path), computer=computer) for path, key in folders.items()}
    return {"trajectories": remotes, "manifest": orm.Dict({"files": files})}


def _refinement_inputs(campaign: Campaign, labels: Labels, codes: Mapping[str, orm.AbstractCode]) -> dict[str, Any]:
    training, convergence = campaign.training, campaign.convergence
    assert training is not None
    system = {"charge": campaign.system.charge, "multiplicity": campaign.system.multiplicity}
    refinement: dict[str, Any] = {
        "training_code": codes[campaign.computer_for("training").code],
        "training": orm.Dict(
            {
                "targets": list(training.targets),
                "sizes": list(training.sizes),
                "test_size": training.test_size,
                "preset": training.preset,
                "overrides": {target: _overrides(campaign, training, target) for target in training.targets},
                "seed": campaign.seed,
                "threads": training.threads,
                "warm_start": training.warm_start,
            }
        ),
    }
    inputs: dict[str, Any] = {
        "refinement": refinement,
        "convergence": orm.Dict(
            {
                "r2": convergence.r2,
                "spectral_distance": convergence.spectral_distance,
                "n_stable": convergence.n_stable,
                "minimum_iterations": convergence.minimum_iterations,
                "n_iterations": len(training.sizes),
                "trajectories": convergence.trajectories,
                "stride": convergence.stride,
            }
        ),
    }
    if training.pretraining is not None:
        pretraining = training.pretraining
        inputs["pretraining_selection"] = orm.Dict(
            {
                **system,
                "n_training": pretraining.n_snapshots,
                "n_test": training.test_size or 1,  # the same seed sets the same trajectories aside
                "seed": campaign.seed,
            }
        )
        flags = {"targets": list(training.targets), "radius": pretraining.radius_A, "accuracy": pretraining.accuracy}
        flags |= {"charges": dict(pretraining.charges), "processes": _cores(campaign)}
        refinement["pretraining"] = orm.Dict(flags)
    if labels.given is not None:
        refinement.update(_given_labels(campaign, labels))
        return inputs
    refinement["labels"] = _label_inputs(campaign, labels, codes)
    level = refinement["labels"]["settings"]["level_of_theory"]
    if campaign.is_qualified:
        inputs["qualification"] = _qualification_inputs(campaign)
        if labels.waits_for_qualification:
            wanted = {"step": labels.field_step_au, "threshold": labels.scf_threshold}
            inputs["adopt"] = orm.List([name for name, value in wanted.items() if value == "auto"])
    selection: dict[str, Any] = {**system, "n_training": max(training.sizes), "n_test": training.test_size}
    selection["seed"] = campaign.seed
    if training.selection == "committee":
        selection |= {"n_training": training.sizes[0], "by_committee": True}
    inputs["selection"] = orm.Dict(selection)
    if campaign.reference is not None:
        flags = _present(targets=list(training.targets), step=labels.field_step, volume=campaign.system.volume_A3)
        flags["keep_sum_rules"] = not campaign.prediction.project_sum_rules
        inputs["reference"] = orm.Dict(
            _present(
                trajectory=campaign.reference.trajectory,
                n_frames=campaign.reference.n_frames,
                n_parts=campaign.computers.mimyria.max_concurrent,
                level_of_theory=level,
                flags=flags,
            )
        )
    return inputs


def _label_inputs(campaign: Campaign, labels: Labels, codes: Mapping[str, orm.AbstractCode]) -> dict[str, Any]:
    """Return the inputs of :class:`~mimyria_wf.workchains.labels.LabelsWorkChain` but the snapshots."""
    computer = campaign.computer_for("labels")
    inputs: dict[str, Any] = {"code": codes[computer.code], "options": orm.Dict(computer.options())}
    settings: dict[str, Any] = {
        "engine": labels.engine,
        "targets": list(campaign.targets),
        "step": labels.field_step,
        "threshold": campaign.scf_threshold(),
        "snapshots_per_job": labels.n_snapshots_per_job,
        "max_concurrent": computer.max_concurrent,
        "max_rounds": labels.max_rounds,
        **_present(limits=labels.limits.model_dump(exclude_none=True) or None),
    }
    if labels.template is not None:
        inputs["template"] = _template_node(campaign, labels)
    console = codes[campaign.computers.mimyria.code]
    if (
        labels.engine == "cp2k"
        and console.computer is not None
        and inputs["code"].computer.uuid == console.computer.uuid
    ):
        inputs["engine"] = {"console_code": console}  # extrapolates wavefunctions between the field points
    elif labels.engine == "vasp":
        from mimyria_wf.calculators.vasp import vasp_engine_inputs

        assert labels.vasp is not None
        inputs["engine"] = vasp_engine_inputs(campaign.vasp_settings(), campaign_species(campaign))
        if labels.gives_tensors:
            settings["route"] = "tensors"
    if labels.files:
        inputs["files"] = _file_nodes(campaign, labels.files)
    settings["level_of_theory"] = level_of_theory(labels, inputs)
    return {**inputs, "settings": orm.Dict(settings)}


def check_potentials(campaign: Campaign) -> None:
    """Look up VASP's potentials in the profile.

    Raises:
        CampaignError: the family or one of them is not there.
    """
    labels = campaign.labels
    if labels is not None and labels.vasp is not None:
        from mimyria_wf.calculators.vasp import vasp_engine_inputs

        vasp_engine_inputs(campaign.vasp_settings(), campaign_species(campaign))


def _template_node(campaign: Campaign, labels: Labels) -> orm.SinglefileData:
    """Return the template as CP2K input: the user's file as it is, unless it is YAML or gets another threshold."""
    given = labels.template
    assert given is not None
    if labels.engine != "cp2k":
        assert isinstance(given, str)
        return orm.SinglefileData(campaign.path(given))
    is_file = isinstance(given, str) and Path(given).suffix not in (".yaml", ".yml")
    if is_file and not isinstance(labels.scf_threshold, float):
        return orm.SinglefileData(campaign.path(given))
    text = write_input(campaign.label_template())
    name = f"{Path(given).stem}.inp" if isinstance(given, str) else "template.inp"
    return orm.SinglefileData(io.BytesIO(text.encode()), filename=name)


def _first_configuration(campaign: Campaign) -> ase.Atoms:
    """Return the start structure, or the first frame of the first trajectory."""
    if campaign.sampling is not None:
        return campaign.atoms()
    path, entry = campaign.trajectory_files()[0]
    return campaign.reader(path, entry).atoms(0)


def campaign_species(campaign: Campaign) -> set[str]:
    """Return the elements of a campaign's system."""
    return set(_first_configuration(campaign).get_chemical_symbols())


def _qualification_inputs(campaign: Campaign) -> dict[str, Any]:
    """Return the snapshots on which a level of theory is tried, and what is screened."""
    section = campaign.qualification
    if section is not None and section.snapshots is not None:
        snapshots = list(ase.io.iread(campaign.path(section.snapshots), index=":"))
    else:
        snapshots = [_first_configuration(campaign)]
    kept = []
    for atoms in snapshots:
        plain = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        plain.info = {"charge": campaign.system.charge, "multiplicity": campaign.system.multiplicity}
        if "snapshot" in atoms.info:
            plain.info["snapshot"] = atoms.info["snapshot"]
        kept.append(plain)
    buffer = io.StringIO()
    ase.io.write(buffer, kept, format="extxyz")
    node = orm.SinglefileData(io.BytesIO(buffer.getvalue().encode()), filename="snapshots.extxyz")
    return {"snapshots": node, "screening": orm.Dict(campaign.qualification_settings().to_dict())}


def level_of_theory(labels: Labels, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides an engine's forces; its content keys the labels in the database.

    Args:
        labels: the section of the campaign.
        inputs: of its field-set process: ``template``, ``files``, ``engine``.
    """
    files = {node.filename: node.get_content("rb") for node in inputs.get("files", {}).values()}
    if labels.engine == "tblite":
        return {
            "engine": "tblite",
            "method": labels.tblite_method,
            "accuracy": labels.tblite_accuracy,
            "version": version("tblite"),
        }
    if labels.engine == "cp2k":
        return template_level_of_theory(inputs["template"].get_content("r"), files)
    if labels.engine == "vasp":
        from mimyria_wf.calculators.vasp import vasp_level_of_theory

        return vasp_level_of_theory(inputs["engine"])
    if "template" in inputs:
        files["template"] = inputs["template"].get_content("rb")
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    return {"engine": labels.engine, **labels.settings, **({"files": sums} if sums else {})}


def _given_labels(campaign: Campaign, labels: Labels) -> dict[str, Any]:
    from mimyria_wf.calculators.assembly import split_labels

    assert labels.given is not None
    assert campaign.training is not None
    node = orm.SinglefileData(campaign.path(labels.given))
    if labels.test_given is not None:
        return {"training_labels": node, "test_labels": orm.SinglefileData(campaign.path(labels.test_given))}
    read_labels(campaign.path(labels.given), campaign.training.targets)
    settings = {
        "n_training": max(campaign.training.sizes),
        "n_test": campaign.training.test_size,
        "seed": campaign.seed,
    }
    parts = split_labels(node, orm.Dict(settings))
    return {"training_labels": parts["training"], "test_labels": parts["test"]}


def _file_nodes(campaign: Campaign, names: tuple[str, ...]) -> dict[str, orm.SinglefileData]:
    return {f"file_{k:02d}": orm.SinglefileData(campaign.path(name)) for k, name in enumerate(names)}


def _present(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _overrides(campaign: Campaign, training: Training, target: str) -> dict[str, Any]:
    """Return what differs from the preset; a committee that is used is calibrated unless the user says otherwise."""
    is_used = campaign.prediction.members or training.selection == "committee"
    return {**({"calibration_fraction": CALIBRATION_FRACTION} if is_used else {}), **training.overrides_for(target)}


def _cores(campaign: Campaign) -> int:
    return campaign.computers.mimyria.n_cores


def _threads(campaign: Campaign) -> int:
    resources = campaign.computer_for("prediction").resources
    return int(resources.get("num_cores_per_mpiproc", 1))
