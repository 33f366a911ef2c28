"""Prediction along trajectories: tensors frame by frame, contracted with velocities on the spot.

Work goes in chunks of frames: a chunk's frames share neighbour lists, chunks go to workers side by side, and what they
give is splined, contracted and written in order. So memory is constant in the number of frames, no result depends on
the number of workers, and an interrupted prediction goes on after the last chunk that was written. Workers are threads,
or processes where the work is long enough to pay for their start: threads hinder each other between two operations.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ase
import ase.io
import numpy as np
import numpy.typing as npt
import torch
from ase.data import chemical_symbols

from mimyria_wf import __version__
from mimyria_wf.committee import require_posterior
from mimyria_wf.derivatives import DerivativeWriter, read_derivatives
from mimyria_wf.errors import MimyriaError, ModelError
from mimyria_wf.frames import Trajectory, TrajectoryReader
from mimyria_wf.graphs import join, species_index
from mimyria_wf.groups import Follower, ResolvedGroups, groups_of, n_lags
from mimyria_wf.irreps import from_irreps
from mimyria_wf.labels import LabelledSnapshot, labelled_atoms, total_charge
from mimyria_wf.md_summary import energy_conservation
from mimyria_wf.network import load_model
from mimyria_wf.prediction_chunks import (
    MEMBER_SEED,
    NODES_AT_ONCE,
    Device,
    Predicted,
    Predictor,
    Workers,
    at_work,
    batch_size_of,
    predicted_chunks,
    projected,
    start_workers,
)
from mimyria_wf.response_network import ResponseNetwork
from mimyria_wf.stride import (
    StreamedSpline,
    StrideCheck,
    check_strides,
    contract_members,
    knots_of,
    segment_length,
    unchecked,
    unflattened,
)
from mimyria_wf.training import Progress, torch_threads
from mimyria_wf.trajectory import check_velocities, open_trajectory

Array = npt.NDArray[Any]
PathLike = str | os.PathLike[str]
CHECKPOINT_INTERVAL = 30.0
"""Seconds between the states from which an interrupted prediction goes on."""


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
        size = batch_size or batch_size_of(len(snapshots[start]))
        batch = snapshots[start : start + size]
        graph = join([network.graph(a) for a in batch])
        with torch.no_grad():
            tensors = from_irreps(network.target, network.components(graph).double()).numpy()
        results += np.split(tensors, np.cumsum([len(a) for a in batch])[:-1])
        start += size
    if projects_sum_rules:
        results = [projected(network.target, t, a.get_masses(), total_charge(a)) for t, a in zip(results, snapshots)]
    return results


def predict_derivatives(
    models: Mapping[str, ResponseNetwork],
    reader: TrajectoryReader,
    out: PathLike,
    *,
    stride: int | Literal["auto"] = "auto",
    stride_tolerance: float = 1e-3,
    groups: Array | ResolvedGroups | None = None,
    group_names: Sequence[str] | None = None,
    max_lag: float | None = None,
    projects_sum_rules: bool = True,
    charge: float | None = None,
    batch_size: int | None = None,
    volume: float | None = None,
    tensors: PathLike | None = None,
    metadata: Mapping[str, Any] | None = None,
    threads: int = 1,
    device: Device = "cpu",
    members: int = 0,
    restart: bool = False,
    checkpoint_interval: float = CHECKPOINT_INTERVAL,
    progress: Progress | None = None,
    workers: Workers | None = None,
) -> dict[str, Any]:
    """Write the dipole and polarizability derivatives of a trajectory, Eqs. 3 and 13, to a derivatives file.

    With a stride s the network sees every s-th frame and the last one; a cubic spline in time gives the tensors
    between them, and every frame's own velocities are used. The spline runs through chunks that overlap, so that
    memory does not grow with the trajectory and the result is that of one spline through all of it.

    Args:
        models: ``apt``, ``pgt`` or both, with their networks.
        reader: trajectory with velocities.
        out: derivatives file.
        stride: predict at every stride-th frame; ``auto`` takes the largest of 1, 2, 4, 8 and 16 that changes no
            spectrum of a short segment by more than stride_tolerance (:mod:`mimyria_wf.stride`).
        stride_tolerance: largest spectral distance that ``auto`` accepts.
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
        threads: chunks of frames that are worked on side by side, each on one core; long work is done by processes, so
            that a script must make its calls under ``if __name__ == "__main__":``.
        device: where the networks are evaluated.
        members: of a committee (:mod:`mimyria_wf.committee`), whose derivatives are written beside the prediction.
        restart: go on with what an interrupted call with the same inputs left, or with its result if it is complete.
        checkpoint_interval: with restart, seconds between the states from which a later call can go on.
        progress: called with (frames done, n_frames, message).
        workers: those of :func:`predict_files`, for several trajectories; otherwise made from ``threads``.

    Returns:
        name, number of frames, stride, temperature, and the sum-rule residual before the projection: root mean square
        over predicted frames and components of sum_i P_i - Q_tot 1 [e] and of sum_i Q_i [e^2 a0/E_h]; with members the
        ``uncertainty`` by target and species, relative to the spread of the training labels: root mean square over the
        predicted frames, the largest of a frame, and that frame.

    Raises:
        ModelError: no model, a model under the wrong target, an unknown species, groups that do not fit, or no CUDA.
        TrajectoryError: the trajectory has no velocities or holds values that are not finite.
    """
    _check_models(models, reader)
    reader.require_velocities()
    _check_settings(stride, stride_tolerance, threads, device, members)
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
    check = None
    if stride == "auto":
        alone = Predictor(models, reader, projects_sum_rules, charge, batch_size, device)
        with at_work(workers, models, threads, [], stride, device) as some:  # a short segment: threads are enough
            check = _check_stride(alone, reader, stride_tolerance, reader.n_frames, some)
        stride = check.chosen
    predictor = Predictor(models, reader, projects_sum_rules, charge, batch_size, device, members)
    facts = {
        "source": "prediction",
        "stride": stride,
        **({"stride_check": check.to_dict()} if check is not None else {}),
        "sum_rules_projected": projects_sum_rules,
        "charge": charge,
        "models": {t: _model_facts(m) for t, m in models.items()},
        **({"committee": _committee_facts(models, members)} if members else {}),
        **({"groups": groups.metadata()} if isinstance(groups, ResolvedGroups) else {}),
        **dict(metadata or {}),
    }
    replaces = False
    if restart:
        static = grouping.tolist() if isinstance(grouping, np.ndarray) else None
        # The segment of the check follows the other trajectories of a call: its figures decide nothing but the stride.
        decisive = {k: v for k, v in facts.items() if k != "stride_check"}
        facts["fingerprint"] = _fingerprint(
            models, reader, [decisive, static, names, max_lag, predictor.batch_size, volume, device, str(tensors or "")]
        )
        finished = _finished(Path(out), facts["fingerprint"], tensors)
        if finished is not None:
            return finished
        replaces = Path(out).is_file()
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    knots = knots_of(reader.n_frames, stride)
    with ExitStack() as stack:
        stack.enter_context(torch_threads(1))
        some = stack.enter_context(at_work(workers, models, threads, [reader], stride, device))
        writer = stack.enter_context(
            DerivativeWriter(
                Path(out),
                name=reader.name,
                timestep=reader.timestep,
                masses=reader.masses,
                volume=volume,
                is_periodic=is_periodic,
                groups=grouping,
                group_names=names,
                metadata=facts,
                fingerprint=facts.get("fingerprint"),
            )
        )
        totals = writer.resumed if writer.resumed is not None else _Totals()
        written = stack.enter_context(_TensorFile(tensors, totals.tensors_size, keeps_part=restart))
        spline = StreamedSpline(knots, reader.n_frames, first=writer.n_frames)
        saved = time.monotonic()
        for chunk in predicted_chunks(predictor, reader, knots, predictor.chunk_length * stride, writer.n_frames, some):
            if chunk.index >= totals.n_chunks:  # chunks before a restart are predicted again, for the spline alone
                totals.add(chunk)
                written.append(_snapshots(chunk, reader, stride, predictor))
            ready = spline.add(
                chunk.start, chunk.positions, chunk.velocities, chunk.knots, chunk.tensors, chunk.members
            )
            if ready is None:
                continue
            found = unflattened(ready.tensors, predictor.shapes)
            writer.append(
                ready.velocities,
                ready.positions,
                apt=found["apt"],
                pgt=found["pgt"],
                members=predictor.by_member(contract_members(ready)) if members else None,
            )
            if restart and time.monotonic() - saved > checkpoint_interval and writer.n_frames < reader.n_frames:
                totals.tensors_size = written.size()
                writer.checkpoint(totals)
                saved = time.monotonic()
            if progress is not None:
                progress(writer.n_frames, reader.n_frames, f"predict {reader.name}")
        writer.metadata["sum_rule_rms"] = totals.sum_rule_rms()
        if members:
            writer.metadata["uncertainty"] = totals.uncertainty()
    told = [writer.restart_note, "replaced an earlier result" if replaces else ""]
    note = "; ".join(part for part in told if part)
    return _summary(Path(out)) | ({"restart": note} if note else {})


def predict_files(
    models: Sequence[PathLike],
    trajectories: Sequence[PathLike],
    out: PathLike,
    *,
    stride: int | Literal["auto"] = "auto",
    stride_tolerance: float = 1e-3,
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
    device: Device = "cpu",
    members: int = 0,
    restart: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Predict along trajectory files with model files.

    Args:
        models: one model file for each target, at most two.
        trajectories: files that :func:`open_trajectory` reads.
        out: a file for one trajectory if it ends in .h5 or .hdf5, else a folder that gets one file a trajectory.
        stride: see :func:`predict_derivatives`; ``auto`` is decided once for all trajectories of one time step and
            composition, on the first of them.
        stride_tolerance: see :func:`predict_derivatives`.
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
        threads: see :func:`predict_derivatives`.
        device: see :func:`predict_derivatives`.
        members: see :func:`predict_derivatives`.
        restart: see :func:`predict_derivatives`.
        progress: called with (frames done, frames of all trajectories, message).

    Returns:
        ``{"targets": [...], "files": [summary of predict_derivatives, ...], "stride_check": ..., "notes": [...]}``;
        the check (:meth:`mimyria_wf.stride.StrideCheck.to_dict`) is that of the first trajectory.
    """
    _check_settings(stride, stride_tolerance, threads, device, members)
    networks, readers = _opened(models, trajectories, timestep, cell)
    if members:
        _committee_facts(networks, members)
    resolved = groups_of(groups, readers)
    names = [reader.name for reader in readers]
    is_file = Path(out).suffix in (".h5", ".hdf5")
    if is_file and len(readers) > 1:
        raise ModelError(f"{out} names one file, but there are {len(readers)} trajectories; give a folder")
    total = sum(reader.n_frames for reader in readers)
    before = 0
    summaries = []
    notes: list[str] = []
    checks: dict[tuple[float, bytes], StrideCheck] = {}
    with at_work(None, networks, threads, readers, stride, device) as workers:
        for reader, name in zip(readers, names):
            chosen: Array | ResolvedGroups | None = resolved
            group_names = None
            if str(groups) == "species":
                chosen, group_names = _species_groups(reader.numbers)
            destination = None
            if tensors is not None:
                stem = Path(tensors)
                destination = stem if len(readers) == 1 else stem.with_name(f"{stem.stem}-{name}{stem.suffix}")
            facts: dict[str, Any] = {"trajectory": str(reader.path.name), **energy_conservation(reader)}
            step = stride
            if step == "auto":
                key = _kind(reader)
                if key not in checks:
                    predictor = Predictor(networks, reader, projects_sum_rules, charge, batch_size, device)
                    checks[key] = _check_stride(
                        predictor, reader, stride_tolerance, _n_alike(reader, readers), workers, progress
                    )
                    if checks[key].reason:
                        notes.append(f"stride 1 for {name} and its like: {checks[key].reason}")
                step = checks[key].chosen
                facts["stride_check"] = checks[key].to_dict()
            summaries.append(
                predict_derivatives(
                    networks,
                    reader,
                    Path(out) if is_file else Path(out) / f"{name}.h5",
                    stride=step,
                    groups=chosen,
                    group_names=group_names,
                    max_lag=max_lag,
                    projects_sum_rules=projects_sum_rules,
                    charge=charge,
                    batch_size=batch_size,
                    volume=volume,
                    tensors=destination,
                    metadata=facts,
                    threads=threads,
                    device=device,
                    members=members,
                    restart=restart,
                    progress=_shifted(progress, before, total),
                    workers=workers,
                )
            )
            if "restart" in summaries[-1]:
                notes.append(f"{name}: {summaries[-1]['restart']}")
            before += reader.n_frames
    if resolved is not None:
        notes += resolved.notes_on([summary["occupancies"] for summary in summaries])
    return {
        "targets": sorted(networks),
        "files": summaries,
        **({"stride_check": next(iter(checks.values())).to_dict()} if checks else {}),
        **({"notes": notes} if notes else {}),
    }


def check_stride_files(
    models: Sequence[PathLike],
    trajectories: Sequence[PathLike],
    *,
    stride_tolerance: float = 1e-3,
    projects_sum_rules: bool = True,
    batch_size: int | None = None,
    charge: float | None = None,
    timestep: float | None = None,
    cell: Any = None,
    threads: int = 1,
    device: Device = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Choose the stride for trajectories as :func:`predict_files` does, without predicting them.

    Returns:
        :meth:`mimyria_wf.stride.StrideCheck.to_dict`, and ``trajectory``, the name of the one that was looked at.
    """
    _check_settings("auto", stride_tolerance, threads, device)
    networks, readers = _opened(models, trajectories, timestep, cell)
    first = readers[0]
    predictor = Predictor(networks, first, projects_sum_rules, charge, batch_size, device)
    with start_workers(networks, threads, 0, device) as workers:
        check = _check_stride(predictor, first, stride_tolerance, _n_alike(first, readers), workers, progress)
    return check.to_dict() | {"trajectory": first.name}


def _opened(
    models: Sequence[PathLike], trajectories: Sequence[PathLike], timestep: float | None, cell: Any
) -> tuple[dict[str, ResponseNetwork], list[TrajectoryReader]]:
    """Return networks by target and trajectories under different names, checked against each other."""
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
    # by file, not by the name inside: runs of two campaigns are all called nve-000
    for reader, name in zip(readers, _unique([Path(path).stem for path in trajectories])):
        reader.name = name
    return networks, readers


@dataclass
class _Totals:
    """What is summed over chunks, and how far the file of tensors has come."""

    n_chunks: int = 0
    n_predicted: int = 0
    residuals: dict[str, float] = field(default_factory=dict)
    tensors_size: int = 0
    uncertainties: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, chunk: Predicted) -> None:
        for name, values in chunk.uncertainties.items():
            if not len(values):
                continue
            known = self.uncertainties.setdefault(name, {"square": 0.0, "largest": -1.0, "frame": -1})
            known["square"] += float((values**2).sum())
            worst = int(values.argmax())
            if values[worst] > known["largest"]:
                known |= {"largest": float(values[worst]), "frame": int(chunk.knots[worst])}
        self.n_chunks = chunk.index + 1
        self.n_predicted += len(chunk.knots)
        for target, square in chunk.residuals.items():
            self.residuals[target] = self.residuals.get(target, 0.0) + square

    def sum_rule_rms(self) -> dict[str, float]:
        """Return the root mean square of the sum-rule residual before the projection, by target."""
        return {t: float(np.sqrt(s / max(1, self.n_predicted))) for t, s in self.residuals.items()}

    def uncertainty(self) -> dict[str, dict[str, float]]:
        """Return root mean square and largest relative uncertainty over frames, and the frame of the largest."""
        return {
            name: {
                "rms": float(np.sqrt(known["square"] / max(1, self.n_predicted))),
                "largest": known["largest"],
                "frame": known["frame"],
            }
            for name, known in self.uncertainties.items()
        }


def _check_stride(
    predictor: Predictor,
    reader: TrajectoryReader,
    tolerance: float,
    n_total: int,
    workers: Workers,
    progress: Progress | None = None,
) -> StrideCheck:
    """Choose the stride on the first frames of a trajectory; n_total frames will be predicted with it."""
    n_frames = segment_length(reader.timestep, reader.n_frames, n_total)
    if n_frames == 0:
        return unchecked(tolerance, reader.timestep)

    def chunks() -> Iterator[tuple[Array, Array, Mapping[str, Array]]]:
        for chunk in predicted_chunks(predictor, reader, np.arange(n_frames), predictor.chunk_length, 0, workers):
            tensors = unflattened(chunk.tensors, predictor.shapes)
            yield chunk.positions, chunk.velocities, {t: v for t, v in tensors.items() if v is not None}
            if progress is not None:
                progress(chunk.start + len(chunk.positions), n_frames, "choose the stride")

    with torch_threads(1):
        return check_strides(chunks(), reader.timestep, n_frames, tolerance)


def _n_alike(reader: TrajectoryReader, readers: Sequence[TrajectoryReader]) -> int:
    """Return the frames of all trajectories that share the stride of one."""
    return sum(r.n_frames for r in readers if _kind(r) == _kind(reader))


def _kind(reader: TrajectoryReader) -> tuple[float, bytes]:
    """Return what trajectories must share to share a stride: time step and composition."""
    return round(reader.timestep, 6), np.sort(reader.numbers).tobytes()


class _TensorFile:
    """Writes labelled snapshots as they come; the file appears under its name when the block ends without an error.

    Args:
        path: extended XYZ; None to write nothing.
        size: bytes of an earlier part to go on with.
        keeps_part: leave the part behind after an error.
    """

    def __init__(self, path: PathLike | None, size: int, keeps_part: bool) -> None:
        self.path = None if path is None else Path(path)
        self.keeps_part = keeps_part
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._part = self.path.with_name(self.path.name + ".part")
            with open(self._part, "ab") as file:
                file.truncate(size)

    def __enter__(self) -> "_TensorFile":
        return self

    def append(self, snapshots: Iterator[LabelledSnapshot]) -> None:
        """Append snapshots."""
        if self.path is not None:
            frames = [labelled_atoms(s, {"engine": "mimyria_wf network"}) for s in snapshots]
            if frames:
                ase.io.write(self._part, frames, format="extxyz", append=True)

    def size(self) -> int:
        """Return the bytes written."""
        return 0 if self.path is None else self._part.stat().st_size

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.path is None:
            return
        if kind is None:
            os.replace(self._part, self.path)
        elif not self.keeps_part:
            self._part.unlink()


def _fingerprint(models: Mapping[str, ResponseNetwork], reader: TrajectoryReader, settings: Any) -> str:
    """Return a hash of the networks, of the trajectory (header and a few frames) and of the settings."""
    head = [
        __version__,
        settings,
        [(t, _model_digest(m)) for t, m in sorted(models.items())],
        [reader.name, reader.n_frames, reader.timestep, reader.pbc.tolist()],
    ]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True, default=str).encode())
    arrays = [reader.numbers, reader.cell, reader.masses]
    for frame in np.unique(np.linspace(0, reader.n_frames - 1, 5).astype(int)).tolist():
        sample = reader.read(frame, frame + 1)
        assert sample.velocities is not None
        arrays += [sample.positions, sample.velocities]
    for values in arrays:
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _model_digest(network: ResponseNetwork) -> str:
    head = [network.target, str(network.settings), network.species, network.n_neighbours]
    digest = hashlib.sha256(json.dumps(head, default=str).encode())
    posterior = getattr(network, "posterior", None)
    tensors = [values for _, values in sorted(network.state_dict().items())]
    for values in tensors + ([] if posterior is None else [*posterior.grams, posterior.ridges, posterior.alphas]):
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _committee_facts(models: Mapping[str, ResponseNetwork], n_members: int) -> dict[str, Any]:
    """Return what makes a committee the same one in other runs; refuse models that none can be drawn from."""
    return {
        "n_members": n_members,
        "seed": MEMBER_SEED,
        "models": {
            target: {
                "digest": _model_digest(network),
                "calibration": dict(require_posterior(network).calibration),
            }
            for target, network in sorted(models.items())
        },
    }


def _finished(path: Path, fingerprint: str, tensors: PathLike | None) -> dict[str, Any] | None:
    """Return the summary of a file that the same inputs gave before; None without one."""
    if not path.is_file() or (tensors is not None and not Path(tensors).is_file()):
        return None
    try:
        found = read_derivatives(path).metadata.get("fingerprint")
    except MimyriaError:  # not ours, or damaged: it is written anew
        return None
    return _summary(path) | {"restart": "already predicted; kept"} if found == fingerprint else None


def _summary(path: Path) -> dict[str, Any]:
    series = read_derivatives(path)
    summary = {
        "name": series.name,
        "path": str(path),
        "n_frames": series.n_frames,
        "n_groups": len(series.group_names),
        "stride": series.metadata["stride"],
        "temperature": series.temperature,
        "volume": series.volume,
        "sum_rule_rms": series.metadata["sum_rule_rms"],
    }
    if "uncertainty" in series.metadata:
        summary["uncertainty"] = series.metadata["uncertainty"]
    if "groups" in series.metadata and series.occupancies is not None:
        summary["occupancies"] = dict(zip(series.group_names, series.occupancies.tolist(), strict=True))
    return summary


def _snapshots(
    chunk: Predicted, reader: TrajectoryReader, stride: int, predictor: Predictor
) -> Iterator[LabelledSnapshot]:
    """Yield labelled snapshots of the regular knots: the last frame is a knot too, but out of step with the others."""
    is_regular = chunk.knots % stride == 0
    tensors = unflattened(chunk.tensors[is_regular], predictor.shapes)
    for k, frame in enumerate(chunk.knots[is_regular].tolist()):
        place = frame - chunk.start
        atoms = Trajectory(
            reader.numbers,
            chunk.positions[place : place + 1],
            chunk.velocities[place : place + 1],
            reader.cell,
            reader.pbc,
            reader.timestep,
            reader.masses,
            metadata=reader.metadata,
        ).atoms(0)
        atoms.info |= {
            "snapshot": f"{reader.name}/{frame}",
            "charge": round(predictor.charge),
            "time": frame * reader.timestep,
        }
        yield LabelledSnapshot(atoms, **{t: v[k] for t, v in tensors.items() if v is not None})


def _check_settings(stride: int | str, tolerance: float, threads: int, device: str, members: int = 0) -> None:
    if stride != "auto" and not (isinstance(stride, int) and stride >= 1):
        raise ModelError(f"stride must be at least 1, or auto, got {stride}")
    if not 0 < tolerance < 1:
        raise ModelError(f"stride_tolerance must lie between 0 and 1, got {tolerance}")
    if threads < 1:
        raise ModelError(f"threads must be at least 1, got {threads}")
    if members < 0 or members == 1:
        raise ModelError(f"members must be 0, for no committee, or at least 2, got {members}")
    if device not in NODES_AT_ONCE:
        raise ModelError(f"device must be one of {', '.join(NODES_AT_ONCE)}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda was asked for, but torch finds no CUDA device here; use device cpu")


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
