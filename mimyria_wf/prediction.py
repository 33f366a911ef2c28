"""Prediction along trajectories: tensors frame by frame, contracted with velocities on the spot."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
import numpy.typing as npt
import torch
from ase.data import chemical_symbols
from scipy.interpolate import CubicSpline

from mimyria_wf.derivatives import DerivativeWriter
from mimyria_wf.errors import ModelError
from mimyria_wf.frames import Trajectory, TrajectoryReader
from mimyria_wf.graphs import graph_of, join, species_index
from mimyria_wf.groups import Follower, ResolvedGroups, groups_of, n_lags
from mimyria_wf.irreps import from_irreps, tensor_shape
from mimyria_wf.labels import LabelledSnapshot, total_charge, write_labels
from mimyria_wf.md_summary import energy_conservation
from mimyria_wf.network import load_model
from mimyria_wf.presets import TARGETS
from mimyria_wf.response import project_apt, project_pgt
from mimyria_wf.response_network import ResponseNetwork
from mimyria_wf.training import Progress, torch_threads
from mimyria_wf.trajectory import check_velocities, open_trajectory

Array = npt.NDArray[Any]
PathLike = str | os.PathLike[str]
_NODES_AT_ONCE = 1200
_OVERLAP = 20
"""Knots of a cubic spline beyond a chunk: a knot's influence falls by 2 - sqrt(3) = 0.27 a knot, 0.27^20 = 3e-12."""


def predict_tensors(
    network: ResponseNetwork,
    snapshots: Sequence[ase.Atoms],
    projects_sum_rules: bool = False,
    batch_size: int | None = None,
) -> list[Array]:
    """Return the tensors of each snapshot.

    Args:
        network: trained network.
        snapshots: structures of any size and cell; info["charge"] matters only to the projection.
        projects_sum_rules: make the APTs sum to the charge and the PGTs to zero, with weights m_i/M.
        batch_size: snapshots at once; chosen by their size without one.

    Returns:
        (n_atoms, 3, 3) [e] or (n_atoms, 3, 3, 3) [e^2 a0/E_h] for each snapshot.

    Raises:
        ModelError: a snapshot holds a species that the network does not know.
    """
    results: list[Array] = []
    start = 0
    while start < len(snapshots):
        size = batch_size or _batch_size(len(snapshots[start]))
        batch = snapshots[start : start + size]
        graph = join([network.graph(a) for a in batch])
        with torch.no_grad():
            tensors = from_irreps(network.target, network.components(graph).double()).numpy()
        results += np.split(tensors, np.cumsum([len(a) for a in batch])[:-1])
        start += size
    if projects_sum_rules:
        results = [_projected(network.target, t, a.get_masses(), total_charge(a)) for t, a in zip(results, snapshots)]
    return results


def predict_derivatives(
    models: Mapping[str, ResponseNetwork],
    reader: TrajectoryReader,
    out: PathLike,
    *,
    stride: int = 1,
    groups: Array | ResolvedGroups | None = None,
    group_names: Sequence[str] | None = None,
    max_lag: float | None = None,
    projects_sum_rules: bool = True,
    charge: float | None = None,
    batch_size: int | None = None,
    volume: float | None = None,
    tensors: PathLike | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the dipole and polarizability derivatives of a trajectory, Eqs. 3 and 13, to a derivatives file.

    With a stride s the network sees every s-th frame and the last one; a cubic spline in time gives the tensors
    between them, and every frame's own velocities are used. The spline runs through chunks that overlap, so that
    memory does not grow with the trajectory and the result is that of one spline through all of it.

    Args:
        models: ``apt``, ``pgt`` or both, with their networks.
        reader: trajectory with velocities.
        out: derivatives file.
        stride: predict at every stride-th frame.
        groups: (n_atoms,) group of each atom from 0, or groups and relations that change with time; one group without
            it.
        group_names: names of the groups; their numbers without them.
        max_lag: longest time of correlations by relation [fs], 2000 by default; windows of spectra cannot be longer.
        projects_sum_rules: take the sum-rule residual off with weights m_i/M before contracting.
        charge: total charge [e]; the trajectory's, or zero.
        batch_size: frames at once; chosen by the number of atoms without one.
        volume: nominal volume of a cluster [A^3]; a periodic cell's own volume is always used.
        tensors: extended XYZ to write the tensors of every stride-th frame to, as they are contracted.
        metadata: JSON-able facts for the file.
        progress: called with (frames done, n_frames, message).

    Returns:
        name, number of frames, stride, temperature, and the sum-rule residual before the projection: root mean square
        over predicted frames and components of sum_i P_i - Q_tot 1 [e] and of sum_i Q_i [e^2 a0/E_h].

    Raises:
        ModelError: no model, a model under the wrong target, an unknown species, or groups that do not fit.
        TrajectoryError: the trajectory has no velocities or holds values that are not finite.
    """
    _check_models(models, reader)
    reader.require_velocities()
    if stride < 1:
        raise ModelError(f"stride must be at least 1, got {stride}")
    grouping: Array | Follower | None
    if isinstance(groups, ResolvedGroups):
        grouping, names = groups.follower(reader, n_lags(reader, max_lag)), groups.names
    else:
        grouping, names = groups, _group_names(groups, group_names, reader.n_atoms)
    charge = float(reader.metadata.get("charge", 0)) if charge is None else charge
    is_periodic = bool(np.all(reader.pbc))
    if is_periodic:
        volume = float(abs(np.linalg.det(reader.cell)))
    elif volume is None and "volume" in reader.metadata:
        volume = float(reader.metadata["volume"])
    predictor = _Predictor(models, reader, projects_sum_rules, charge, batch_size)
    kept: list[LabelledSnapshot] | None = [] if tensors is not None else None
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with DerivativeWriter(
        Path(out),
        name=reader.name,
        timestep=reader.timestep,
        masses=reader.masses,
        volume=volume,
        is_periodic=is_periodic,
        groups=grouping,
        group_names=names,
        metadata={
            "source": "prediction",
            "stride": stride,
            "sum_rules_projected": projects_sum_rules,
            "charge": charge,
            "models": {t: _model_facts(m) for t, m in models.items()},
        }
        | ({"groups": groups.metadata()} if isinstance(groups, ResolvedGroups) else {})
        | dict(metadata or {}),
    ) as writer:
        done = 0
        for frames in _with_tensors(reader, predictor, stride, kept):
            writer.append(frames.velocities, frames.positions, **predictor.unpacked(frames.flat))
            done += len(frames.flat)
            if progress is not None:
                progress(done, reader.n_frames, f"predict {reader.name}")
        summary = {
            "name": reader.name,
            "path": str(out),
            "n_frames": done,
            "n_groups": len(names),
            "stride": stride,
            "temperature": writer.sums.temperature,
            "volume": volume,
            "sum_rule_rms": predictor.sum_rule_rms(),
        }
        if isinstance(groups, ResolvedGroups) and writer.sums.occupancies is not None:
            summary["occupancies"] = dict(zip(names, writer.sums.occupancies.tolist(), strict=True))
    if tensors is not None and kept is not None:
        write_labels(Path(tensors), kept, {"engine": "mimyria_wf network"})
    return summary


def predict_files(
    models: Sequence[PathLike],
    trajectories: Sequence[PathLike],
    out: PathLike,
    *,
    stride: int = 1,
    groups: str | Path = "all",
    max_lag: float | None = None,
    projects_sum_rules: bool = True,
    batch_size: int | None = None,
    volume: float | None = None,
    charge: float | None = None,
    timestep: float | None = None,
    cell: Any = None,
    tensors: PathLike | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Predict along trajectory files with model files.

    Args:
        models: one model file for each target, at most two.
        trajectories: files that :func:`open_trajectory` reads.
        out: a file for one trajectory if it ends in .h5 or .hdf5, else a folder that gets one file a trajectory.
        stride: see :func:`predict_derivatives`.
        groups: ``all`` for one group, ``species`` for one an element, or a YAML file of groups and relations
            (:mod:`mimyria_wf.groups`).
        max_lag: see :func:`predict_derivatives`.
        projects_sum_rules: see :func:`predict_derivatives`.
        batch_size: see :func:`predict_derivatives`.
        volume: nominal volume of a cluster [A^3].
        charge: total charge [e]; the trajectory's without one.
        timestep: between stored frames, where the files do not say [fs].
        cell: cell where the files do not say, see :func:`open_trajectory`.
        tensors: see :func:`predict_derivatives`; for several trajectories each name gets ``-<trajectory>``.
        threads: threads of torch.
        progress: called with (frames done, frames of all trajectories, message).

    Returns:
        ``{"targets": [...], "files": [summary of predict_derivatives, ...]}``.
    """
    networks: dict[str, ResponseNetwork] = {}
    for path in models:
        network = load_model(path)
        if network.target in networks:
            raise ModelError(f"two models for {network.target}; give one for each target")
        networks[network.target] = network
    if not trajectories:
        raise ModelError("no trajectories to predict; give at least one")
    readers = [open_trajectory(path, timestep=timestep, cell=cell) for path in trajectories]
    for reader in readers:  # every mistake that shows in a header shows before the first long prediction
        _check_models(networks, reader)
        check_velocities(reader)
    resolved = groups_of(groups, readers)
    # by file, not by the name inside: runs of two campaigns are all called nve-000
    names = _unique([Path(path).stem for path in trajectories])
    for reader, name in zip(readers, names):
        reader.name = name
    is_file = Path(out).suffix in (".h5", ".hdf5")
    if is_file and len(readers) > 1:
        raise ModelError(f"{out} names one file, but there are {len(readers)} trajectories; give a folder")
    total = sum(reader.n_frames for reader in readers)
    before = 0
    summaries = []
    with torch_threads(threads):
        for reader, name in zip(readers, names):
            chosen: Array | ResolvedGroups | None = resolved
            group_names = None
            if str(groups) == "species":
                chosen, group_names = _species_groups(reader.numbers)
            destination = None
            if tensors is not None:
                stem = Path(tensors)
                destination = stem if len(readers) == 1 else stem.with_name(f"{stem.stem}-{name}{stem.suffix}")
            summaries.append(
                predict_derivatives(
                    networks,
                    reader,
                    Path(out) if is_file else Path(out) / f"{name}.h5",
                    stride=stride,
                    groups=chosen,
                    group_names=group_names,
                    max_lag=max_lag,
                    projects_sum_rules=projects_sum_rules,
                    charge=charge,
                    batch_size=batch_size,
                    volume=volume,
                    tensors=destination,
                    metadata={"trajectory": str(reader.path.name), **energy_conservation(reader)},
                    progress=_shifted(progress, before, total),
                )
            )
            before += reader.n_frames
    notes = [] if resolved is None else resolved.notes_on([summary["occupancies"] for summary in summaries])
    return {"targets": sorted(networks), "files": summaries, **({"notes": notes} if notes else {})}


@dataclass(frozen=True)
class _Frames:
    """Consecutive frames with their tensors, flattened by target: positions, velocities (n_frames, n_atoms, 3)."""

    positions: Array
    velocities: Array
    flat: Array


class _Predictor:
    """Networks of one or two targets on the frames of one trajectory."""

    def __init__(
        self,
        models: Mapping[str, ResponseNetwork],
        reader: TrajectoryReader,
        projects_sum_rules: bool,
        charge: float,
        batch_size: int | None,
    ) -> None:
        self.models = {t: models[t].eval() for t in TARGETS if t in models}
        self.masses = reader.masses
        self.projects_sum_rules = projects_sum_rules
        self.charge = charge
        self.batch_size = batch_size or _batch_size(reader.n_atoms)
        self._residual_squares = dict.fromkeys(self.models, 0.0)
        self._n_predicted = 0

    def __call__(self, chunk: Trajectory, frames: Array) -> Array:
        """Return the tensors at some frames of a chunk, (n_frames, n_atoms, 9, 27 or 36)."""
        parts = []
        for target, network in self.models.items():
            shape = tensor_shape(target)
            batches = []
            for start in range(0, len(frames), self.batch_size):
                graphs = [
                    graph_of(
                        chunk.numbers,
                        chunk.positions[frame],
                        chunk.cell,
                        chunk.pbc,
                        network.species,
                        network.cutoff,
                        network.dtype,
                    )
                    for frame in frames[start : start + self.batch_size]
                ]
                with torch.no_grad():
                    batches.append(from_irreps(target, network.components(join(graphs)).double()).numpy())
            tensors = np.concatenate(batches).reshape(len(frames), len(chunk.numbers), *shape)
            residual = tensors.sum(axis=1) - (self.charge * np.eye(3) if target == "apt" else 0.0)
            self._residual_squares[target] += float((residual**2).mean(axis=tuple(range(1, residual.ndim))).sum())
            if self.projects_sum_rules:
                tensors = _projected(target, tensors, self.masses, self.charge)
            parts.append(tensors.reshape(*tensors.shape[:2], -1))
        self._n_predicted += len(frames)
        return np.concatenate(parts, axis=-1)

    def unpacked(self, flat: Array) -> dict[str, Array]:
        """Return the tensors by target from what a call gave."""
        result: dict[str, Array] = {}
        start = 0
        for target in self.models:
            shape = tensor_shape(target)
            stop = start + 3 ** len(shape)
            result[target] = flat[..., start:stop].reshape(*flat.shape[:-1], *shape)
            start = stop
        return result

    def sum_rule_rms(self) -> dict[str, float]:
        """Return the root mean square of the sum-rule residual before the projection, by target."""
        return {t: float(np.sqrt(s / max(1, self._n_predicted))) for t, s in self._residual_squares.items()}


def _with_tensors(
    reader: TrajectoryReader, predictor: _Predictor, stride: int, kept: list[LabelledSnapshot] | None
) -> Iterator[_Frames]:
    """Yield all frames in order with their tensors, predicted or interpolated."""
    knots = np.append(np.arange(0, reader.n_frames - 1, stride), reader.n_frames - 1)
    chunk_length = max(predictor.batch_size, 16) * stride if stride > 1 else predictor.batch_size
    known = np.empty(0, dtype=int)
    values: Array | None = None
    positions: list[Array] = []
    velocities: list[Array] = []
    first_pending = 0
    for start, chunk in reader.chunks(chunk_length):
        stop = start + chunk.n_frames
        inside = knots[(knots >= start) & (knots < stop)]
        assert chunk.velocities is not None
        positions.append(chunk.positions)
        velocities.append(chunk.velocities)
        if len(inside):
            new = predictor(chunk, inside - start)
            if kept is not None:
                # the last frame is a knot of the spline, but out of step with the others
                is_regular = inside % stride == 0
                tensors = {t: v[is_regular] for t, v in predictor.unpacked(new).items()}
                kept += _snapshots(chunk, inside[is_regular], start, tensors, predictor.charge)
            known = np.concatenate([known, inside])
            values = new if values is None else np.concatenate([values, new])
        if values is None:
            continue
        if stop == reader.n_frames or stride == 1:
            until = stop
        elif len(known) > _OVERLAP:
            until = int(known[-1 - _OVERLAP])
        else:
            continue
        if until <= first_pending:
            continue
        wanted = np.arange(first_pending, until)
        if stride == 1 or len(known) < 2:
            flat = values
        else:
            flat = CubicSpline(known, values, axis=0)(wanted)
        all_positions, all_velocities = np.concatenate(positions), np.concatenate(velocities)
        n = len(wanted)
        yield _Frames(all_positions[:n], all_velocities[:n], flat)
        positions, velocities = [all_positions[n:]], [all_velocities[n:]]
        first_pending = until
        first_kept = (
            max(0, int(np.searchsorted(known, until, side="right")) - 1 - _OVERLAP) if stride > 1 else len(known)
        )
        known, values = known[first_kept:], values[first_kept:] if stride > 1 else None


def _snapshots(
    chunk: Trajectory, frames: Array, start: int, tensors: dict[str, Array], charge: float
) -> list[LabelledSnapshot]:
    result = []
    for k, frame in enumerate(frames):
        atoms = chunk.atoms(int(frame) - start)
        atoms.info |= {"snapshot": f"{chunk.name}/{frame}", "charge": round(charge), "time": frame * chunk.timestep}
        result.append(LabelledSnapshot(atoms, **{t: values[k] for t, values in tensors.items()}))
    return result


def _projected(target: str, tensors: Array, masses: Array, charge: float) -> Array:
    return project_apt(tensors, masses, charge) if target == "apt" else project_pgt(tensors, masses)


def _batch_size(n_atoms: int) -> int:
    return max(1, min(64, _NODES_AT_ONCE // max(1, n_atoms)))


def _check_models(models: Mapping[str, ResponseNetwork], reader: TrajectoryReader) -> None:
    if not models:
        raise ModelError("no model to predict with; give one for apt, pgt or both")
    for target, network in models.items():
        if network.target != target:
            raise ModelError(f"a model for {network.target} was given as the one for {target}")
        try:
            species_index(reader.numbers, network.species)
        except ModelError as error:
            raise ModelError(f"{reader.path}: {error}") from None


def _group_names(groups: Array | None, names: Sequence[str] | None, n_atoms: int) -> tuple[str, ...]:
    if groups is None:
        return ("all",)
    index = np.asarray(groups)
    if index.shape != (n_atoms,) or not np.issubdtype(index.dtype, np.integer) or index.min() < 0:
        raise ModelError(f"groups must be {n_atoms} integers from 0, one an atom, got shape {index.shape}")
    n_groups = int(index.max()) + 1
    if names is None:
        return tuple(str(k) for k in range(n_groups))
    if len(names) < n_groups:
        raise ModelError(f"groups number {n_groups}, but only {len(names)} names are given")
    return tuple(names)


def _species_groups(numbers: Array) -> tuple[Array, list[str]]:
    present, index = np.unique(numbers, return_inverse=True)
    return index.astype(int), [chemical_symbols[z] for z in present]


def _unique(names: Sequence[str]) -> list[str]:
    """Return the names, with a number where two trajectories share one."""
    return [name if names.count(name) == 1 else f"{name}-{k}" for k, name in enumerate(names)]


def _shifted(progress: Progress | None, before: int, total: int) -> Callable[[int, int, str], None] | None:
    if progress is None:
        return None
    return lambda done, _, message: progress(before + done, total, message)


def _model_facts(network: ResponseNetwork) -> dict[str, Any]:
    keys = ("preset", "n_train", "level_of_theory", "test")
    return {k: network.metadata[k] for k in keys if k in network.metadata}
