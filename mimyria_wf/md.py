"""Molecular dynamics from paths and plain values, as the command line and the CalcJobs call it.

A canonical run and decorrelated starts from it (:func:`sample_nvt`), NVE runs from those (:func:`sample_nve`), and
trajectories of other codes (:func:`convert`). The runs themselves are in :mod:`mimyria_wf.dynamics`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase.calculators.calculator import BaseCalculator
from numpy.typing import ArrayLike

from mimyria_wf.dynamics import (
    NveSettings,
    NvtSettings,
    make_calculator,
    maxwell_boltzmann,
    run_nve,
    run_nvt,
    without_rotation,
    without_translation,
)
from mimyria_wf.errors import EngineError, TrajectoryError
from mimyria_wf.md_summary import MdSummary, summarise
from mimyria_wf.starts import pick_starts, read_starts, read_structure, write_starts
from mimyria_wf.trajectory import PathLike, Progress, check_velocities, join, open_trajectory

__all__ = [
    "MdSummary",
    "NveSettings",
    "NvtSettings",
    "convert",
    "make_calculator",
    "maxwell_boltzmann",
    "pick_starts",
    "read_starts",
    "read_structure",
    "run_nve",
    "run_nvt",
    "sample_nve",
    "sample_nvt",
    "summarise",
    "without_rotation",
    "without_translation",
    "write_starts",
]

MdEngine = Literal["ase", "torch-sim"]


def sample_nvt(
    structure: PathLike,
    directory: PathLike,
    *,
    calculator: Mapping[str, Any],
    settings: NvtSettings,
    n_starts: int,
    charge: int = 0,
    multiplicity: int = 1,
    cell: ArrayLike | None = None,
    pbc: bool | None = None,
    name: str = "nvt",
    engine: MdEngine = "ase",
    device: str = "cpu",
    dtype: str = "float64",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run NVT from a structure file and pick starts: writes ``nvt.h5`` and ``starts.extxyz`` into a directory.

    Args:
        structure: anything ASE reads.
        directory: made if it is missing.
        calculator: ``import`` (path) and ``arguments``.
        settings: of the run; its seed is also that of the starts.
        n_starts: how many to pick.
        charge: of the system.
        multiplicity: of the system.
        cell: overrides the file's (see :func:`mimyria_wf.frames.as_cell`).
        pbc: overrides the file's.
        name: of the trajectory.
        engine: of what kind the calculator is; ASE moves the atoms in either case.
        device: of a potential of torch-sim, "cpu" or "cuda".
        dtype: of a potential of torch-sim, "float64" or "float32".
        progress: called with (steps done, steps in all, name).

    Returns:
        ``trajectory`` (:class:`MdSummary` as dict), ``starts`` (path), ``start_frames``, JSON-able.
    """
    atoms = read_structure(structure, cell=cell, pbc=pbc, charge=charge, multiplicity=multiplicity)
    directory = Path(directory)
    path = directory / f"{name}.h5"
    built, identity = _build(calculator, engine, device, dtype)
    summary = run_nvt(atoms, built, settings, path, progress, identity)
    starts = pick_starts(open_trajectory(path), n_starts, settings.seed, settings.n_equilibration_frames)
    write_starts(directory / "starts.extxyz", starts)
    return {
        "trajectory": summary.to_dict(),
        "starts": str(directory / "starts.extxyz"),
        "start_frames": [atoms.info["start_frame"] for atoms in starts],
    }


def sample_nve(
    starts: PathLike,
    directory: PathLike,
    *,
    calculator: Mapping[str, Any],
    settings: NveSettings,
    indices: Sequence[int] | None = None,
    charge: int | None = None,
    multiplicity: int | None = None,
    engine: MdEngine = "ase",
    device: str = "cpu",
    dtype: str = "float64",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run NVE from every start into ``nve-000.h5``, ``nve-001.h5``, ...; finished runs are kept as they are.

    Args:
        starts: extended XYZ with velocities (:func:`write_starts`).
        directory: made if it is missing.
        calculator: ``import`` (path) and ``arguments``.
        settings: of every run.
        indices: which of the starts to run; they number the files.
        charge: overrides what the starts say.
        multiplicity: overrides what the starts say.
        engine: "ase" runs one start after the other; "torch-sim" all in one batch, with a potential of torch-sim as
            calculator (:mod:`mimyria_wf.torchsim_engine`).
        device: torch-sim's, "cpu" or "cuda".
        dtype: of a potential of torch-sim, "float64" or "float32".
        batch_size: torch-sim's runs at a time; all by default.
        progress: called with (steps done, steps in all, name) over all runs.

    Returns:
        ``trajectories`` (list of :class:`MdSummary` as dicts), JSON-able.
    """
    everything = read_starts(starts)
    chosen = list(range(len(everything))) if indices is None else list(indices)
    wrong = [i for i in chosen if not 0 <= i < len(everything)]
    if wrong or len(set(chosen)) != len(chosen) or not chosen:
        raise TrajectoryError(f"{starts}: holds the starts 0 to {len(everything) - 1}, asked for {chosen}")
    paths = {Path(directory) / f"nve-{index:03d}.h5": everything[index] for index in chosen}
    for start in paths.values():
        if charge is not None:
            start.info["charge"] = charge
        if multiplicity is not None:
            start.info["multiplicity"] = multiplicity
    if engine == "torch-sim":
        from mimyria_wf.torchsim_engine import run_nve_batch  # torch costs a second

        _engine_name(calculator)
        batch = run_nve_batch(
            paths, calculator, settings, device=device, dtype=dtype, batch_size=batch_size, progress=progress
        )
        return {"trajectories": [summary.to_dict() for summary in batch]}
    built, identity = _build(calculator, engine, device, dtype)
    summaries = []
    for done, (path, start) in enumerate(paths.items()):

        def report(step: int, n_steps: int, label: str, done: int = done) -> None:
            if progress is not None:
                progress(done * n_steps + step, len(chosen) * n_steps, label)

        summary = run_nve(start, built, settings, path, report, identity)
        summaries.append(summary.to_dict())
        report(settings.last_step + 1, settings.last_step + 1, path.stem)
    return {"trajectories": summaries}


def _engine_name(calculator: Mapping[str, Any]) -> str:
    if "import" not in calculator:
        raise EngineError(f"calculator needs 'import', such as tblite.ase.TBLite, got {sorted(calculator)}")
    return f"{calculator['import']} {json.dumps(calculator.get('arguments') or {}, sort_keys=True)}"


def _build(calculator: Mapping[str, Any], engine: str, device: str, dtype: str) -> tuple[BaseCalculator, str]:
    """Return an ASE calculator and what identifies it."""
    identity = _engine_name(calculator)
    if engine == "torch-sim":
        from mimyria_wf.torchsim_models import TorchSimCalculator, engine_name, make_model

        model = make_model(calculator["import"], calculator.get("arguments"), device, dtype)
        return TorchSimCalculator(model), engine_name(calculator, dtype)
    if engine != "ase":
        raise EngineError(f"the MD engine must be ase or torch-sim, got {engine!r}")
    if device != "cpu" or dtype != "float64":
        raise EngineError(
            f"the engine ase leaves device and precision to its calculator, got {device} and {dtype}; name them in "
            "arguments"
        )
    return make_calculator(calculator["import"], calculator.get("arguments")), identity


def convert(
    inputs: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    velocities: PathLike | Sequence[PathLike] | None = None,
    timestep: float | None = None,
    cell: ArrayLike | None = None,
    pbc: bool | Sequence[bool] | None = None,
    charge: int | None = None,
    degrees_of_freedom: int | None = None,
    masses: ArrayLike | None = None,
    name: str | None = None,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    drop_truncated: bool = False,
    units: str | None = None,
    elements: Sequence[str] | Mapping[int, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write any readable trajectory (or consecutive parts of one) as H5MD and return its :class:`MdSummary` as dict.

    Args:
        inputs: one file, or files in order; frames shared at a seam are written once.
        out: H5MD file.
        velocities: CP2K's velocity files, where they are not beside the positions.
        timestep: between stored frames [fs], where the file does not say it.
        cell: for files that do not hold it.
        pbc: overrides the file's.
        charge: for the metadata.
        degrees_of_freedom: of the kinetic temperature; 3N - 3 by default.
        masses: (n_atoms,) [u], for files that hold none and atoms that are not of the standard isotopes.
        name: of the trajectory; by default the stem of ``out``.
        start: first frame (one input).
        stop: end of the frames (one input).
        stride: of the frames (one input).
        drop_truncated: accept what a killed run left (see :func:`mimyria_wf.trajectory.open_trajectory`).
        units: unit style of LAMMPS dumps that do not say it.
        elements: of the atom types 1, 2, ... of LAMMPS dumps without a column ``element``.
        metadata: JSON-able additions; ``ensemble: nvt`` leaves out the drift.
        progress: called with (frames done, frames in all, "frames").

    Raises:
        TrajectoryError: the input is bad, or its velocities do not fit its positions.
    """
    paths = _as_list(inputs)
    added = dict(metadata or {})
    if charge is not None:
        added["charge"] = charge
    if degrees_of_freedom is not None:
        added["degrees_of_freedom"] = degrees_of_freedom
    reader = join(
        paths,
        out,
        velocities=None if velocities is None else _as_list(velocities),
        timestep=timestep,
        cell=cell,
        pbc=pbc,
        drop_truncated=drop_truncated,
        units=units,
        elements=elements,
        start=start,
        stop=stop,
        stride=stride,
        name=name,
        metadata=added,
        masses=None if masses is None else np.asarray(masses, dtype=float),
        progress=progress,
    )
    if reader.has_velocities:
        try:
            check_velocities(reader)
        except TrajectoryError:
            Path(out).unlink()  # or the next verb would take the refused trajectory
            raise
    return summarise(reader).to_dict()


def _as_list(paths: PathLike | Sequence[PathLike]) -> list[PathLike]:
    return list(paths) if isinstance(paths, Sequence) and not isinstance(paths, str) else [paths]
