"""Chunks of frames: what predicts one, and the threads or processes that work on them side by side."""

import ctypes
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from ase.data import chemical_symbols

from mimyria_wf.committee import Committee, label_spreads
from mimyria_wf.derivatives import PAIRS
from mimyria_wf.errors import ModelError
from mimyria_wf.frames import TrajectoryReader
from mimyria_wf.graphs import Graph, graphs_of_frames
from mimyria_wf.irreps import from_irreps, tensor_shape
from mimyria_wf.presets import TARGETS
from mimyria_wf.response import project_apt, project_pgt
from mimyria_wf.response_network import ResponseNetwork
from mimyria_wf.stride import first_knot
from mimyria_wf.units import BOHR

Array = npt.NDArray[Any]
Device = Literal["cpu", "cuda"]
Models = dict[str, ResponseNetwork]
NODES_AT_ONCE = {"cpu": 1200, "cuda": 50_000}
"""Atoms in one evaluation: on a CPU what stays in its cache, on a GPU what fills it."""
_NODES_A_CHUNK = 12_000
_LONG_WORK = 1_000_000
"""Atoms times predicted frames from which on processes pay: a minute on one core, against some seconds of start."""
_USUAL_STRIDE = 4
MEMBER_SEED = 0


@dataclass(frozen=True)
class Task:
    """A chunk of frames to predict.

    Attributes:
        index: of the chunk.
        start: first frame.
        positions: (n_frames, n_atoms, 3) [A].
        velocities: (n_frames, n_atoms, 3) [A/fs].
        knots: (n_knots,) the frames to predict.
    """

    index: int
    start: int
    positions: Array
    velocities: Array
    knots: Array


@dataclass(frozen=True)
class Predicted(Task):
    """A chunk with the tensors at its knots.

    Attributes:
        tensors: (n_knots, n_atoms, 9, 27 or 36) flattened.
        residuals: by target, sum over knots of the mean square of the sum-rule residual before the projection.
        members: (n_knots, n_members (3 and/or 6), 3 n_atoms) of a committee, or None; a product with the velocities
            gives [e A/fs] and [e^2 a0^2/(E_h fs)].
        uncertainties: (n_knots,) of a committee by target and species, such as ``apt O``: root mean square deviation of
            the members over the species' atoms, relative to the spread of the training labels.
    """

    tensors: Array
    residuals: Mapping[str, float]
    members: Array | None = None
    uncertainties: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """What the frames of a trajectory share."""

    numbers: Array
    cell: Array
    pbc: Array
    masses: Array


class Predictor:
    """Networks of one or two targets on frames of one trajectory; called from several threads or processes.

    It is pickled without its networks, which a worker process gets once for all trajectories.
    """

    models: Models

    def __init__(
        self,
        models: Mapping[str, ResponseNetwork],
        reader: TrajectoryReader,
        projects_sum_rules: bool,
        charge: float | None,
        batch_size: int | None,
        device: Device,
        n_members: int = 0,
    ) -> None:
        self.system = System(reader.numbers, np.asarray(reader.cell), np.asarray(reader.pbc), reader.masses)
        self.projects_sum_rules = projects_sum_rules
        self.charge = float(reader.metadata.get("charge", 0)) if charge is None else charge
        self.device = device
        self.batch_size = batch_size or batch_size_of(reader.n_atoms, device)
        self.chunk_length = self.batch_size * max(
            1, min(64, _NODES_A_CHUNK // max(1, reader.n_atoms)) // self.batch_size
        )
        self.n_members = n_members
        self.take({t: models[t].eval().to(device) for t in TARGETS if t in models})

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without anything that the networks decide."""
        return {k: v for k, v in vars(self).items() if k not in ("models", "shapes", "_committees", "_alike")}

    def take(self, models: Models) -> None:
        """Work with these networks."""
        self.models = models
        self.shapes: dict[str, tuple[int, ...]] = {t: tensor_shape(t) for t in models}
        self._committees = {t: _committee(m, self.n_members) for t, m in models.items()} if self.n_members else {}
        self._alike: dict[tuple[Any, ...], list[str]] = {}
        for target, network in self.models.items():
            self._alike.setdefault((network.species, network.cutoff, network.dtype), []).append(target)

    def __call__(self, task: Task) -> Predicted:
        """Return the tensors of a chunk."""
        system = self.system
        found: dict[str, list[Array]] = {target: [] for target in self.models}
        for (species, cutoff, dtype), targets in self._alike.items():
            positions = task.positions[task.knots - task.start]
            for graph in graphs_of_frames(
                system.numbers, positions, system.cell, system.pbc, species, cutoff, dtype, self.batch_size
            ):
                on_device = graph if self.device == "cpu" else graph.to(self.device)
                for target in targets:
                    with torch.no_grad():
                        components = self._components(target, on_device).cpu().double()
                        tensors = from_irreps(target, components.flatten(0, 1)).numpy()
                    shape = (len(components), graph.n_snapshots, len(system.numbers), *self.shapes[target])
                    found[target].append(tensors.reshape(shape))
        columns: list[Array] = []
        members: list[Array] = []
        uncertainties: dict[str, Array] = {}
        residuals: dict[str, float] = {}
        for target in self.models:
            tensors = np.concatenate(found[target], axis=1)
            residual = tensors[0].sum(axis=1) - (self.charge * np.eye(3) if target == "apt" else 0.0)
            residuals[target] = float((residual**2).mean(axis=tuple(range(1, residual.ndim))).sum())
            if self.projects_sum_rules:
                flat = tensors.reshape(-1, *tensors.shape[2:])
                tensors = projected(target, flat, system.masses, self.charge).reshape(tensors.shape)
            columns.append(tensors[0].reshape(*tensors.shape[1:3], -1))
            if self.n_members:
                members.append(_fields(tensors[1:]))
                uncertainties |= self._uncertainties(target, tensors)
        return Predicted(
            **vars(task),
            tensors=np.concatenate(columns, axis=-1),
            residuals=residuals,
            members=np.concatenate(members, axis=1) if members else None,
            uncertainties=uncertainties,
        )

    def _uncertainties(self, target: str, tensors: Array) -> dict[str, Array]:
        """Return the relative uncertainty of each frame by species; tensors (1 + n_members, n_frames, n_atoms, ...)."""
        network: Any = self.models[target]
        spreads = dict(zip(network.species, label_spreads(network).tolist()))
        squares = ((tensors[1:] - tensors[0]) ** 2).reshape(*tensors[1:].shape[:3], -1).sum(axis=3).mean(axis=0)
        return {
            f"{target} {chemical_symbols[z]}": np.sqrt(squares[:, self.system.numbers == z].mean(axis=1)) / spreads[z]
            for z in np.unique(self.system.numbers).tolist()
        }

    def _components(self, target: str, graph: Graph) -> torch.Tensor:
        """Return components of the prediction and of all members, (1 + n_members, n_nodes, 9 or 18)."""
        if target in self._committees:
            return self._committees[target].components(graph)
        return self.models[target].components(graph)[None]

    def by_member(self, rows: Array) -> dict[str, Array]:
        """Return by target (n_frames, n_members, 3 or 6) of rows (n_frames, n_members (3 and/or 6))."""
        result: dict[str, Array] = {}
        start = 0
        for target in self.models:
            width = {"apt": 3, "pgt": 6}[target]
            stop = start + width * self.n_members
            result[target] = rows[:, start:stop].reshape(len(rows), self.n_members, width)
            start = stop
        return result


def _committee(network: Any, n_members: int) -> Committee:
    return Committee(network, n_members, MEMBER_SEED)


def _fields(tensors: Array) -> Array:
    """Return (n_frames, n_members (3 or 6), 3 n_atoms): its product with velocities [A/fs] gives members' derivatives.

    Args:
        tensors: (n_members, n_frames, n_atoms, 3, 3) [e] or (n_members, n_frames, n_atoms, 3, 3, 3) [e^2 a0/E_h].
    """
    if tensors.ndim == 6:
        first, second = (list(index) for index in zip(*PAIRS))
        tensors = 0.5 * (tensors[..., first, second] + tensors[..., second, first]) / BOHR
    n_members, n_frames, n_atoms, _, width = tensors.shape
    ordered = tensors.transpose(1, 0, 4, 2, 3).reshape(n_frames, n_members * width, 3 * n_atoms)
    return ordered.astype(np.float32)  # they make error bars only


def projected(target: str, tensors: Array, masses: Array, charge: float) -> Array:
    """Return tensors (..., n_atoms, 3, 3[, 3]) that obey the acoustic sum rules, residuals taken off with m_i/M."""
    return project_apt(tensors, masses, charge) if target == "apt" else project_pgt(tensors, masses)


def batch_size_of(n_atoms: int, device: Device = "cpu") -> int:
    """Return how many frames of so many atoms are evaluated at once."""
    return max(1, min(64, NODES_AT_ONCE[device] // max(1, n_atoms)))


_models_of_worker: Models = {}
_predictors_of_worker: dict[bytes, Predictor] = {}


def _take_models(models: Models) -> None:
    """Give a worker process its networks, once."""
    torch.set_num_threads(1)
    _keep_memory()
    _models_of_worker.update(models)


def _predict_in_process(pickled: bytes, task: Task) -> Predicted:
    if pickled not in _predictors_of_worker:
        predictor: Predictor = pickle.loads(pickled)
        predictor.take(_models_of_worker)
        _predictors_of_worker.clear()  # trajectories come one after the other
        _predictors_of_worker[pickled] = predictor
    return _predictors_of_worker[pickled](task)


@dataclass(frozen=True)
class Workers:
    """What works on chunks: threads or processes, or this thread alone.

    Attributes:
        n: chunks side by side.
        executor: of threads or processes; None: this thread.
        are_processes: whether they need what they work with pickled.
    """

    n: int = 1
    executor: Executor | None = None
    are_processes: bool = False

    def predict(self, predictor: Predictor) -> Callable[[Task], Future[Predicted]]:
        """Return what starts a task."""
        executor = self.executor
        assert executor is not None
        if not self.are_processes:
            return lambda task: executor.submit(predictor, task)
        pickled = pickle.dumps(predictor)
        return lambda task: executor.submit(_predict_in_process, pickled, task)


@contextmanager
def start_workers(models: Models, n_workers: int, n_nodes: int, device: Device) -> Iterator[Workers]:
    """Provide workers: threads, or processes where the work is long.

    Args:
        models: by target.
        n_workers: chunks side by side.
        n_nodes: atoms times frames that are to be predicted.
        device: on a GPU threads share its memory.
    """
    _keep_memory()
    if n_workers == 1:
        yield Workers()
    elif device == "cpu" and n_nodes >= _LONG_WORK:
        with ProcessPoolExecutor(n_workers, get_context("spawn"), _take_models, (models,)) as processes:
            try:
                yield Workers(n_workers, processes, are_processes=True)
            except BrokenProcessPool:
                raise ModelError(
                    "a process that predicts ended unexpectedly: out of memory, or a script without "
                    "if __name__ == '__main__': around its calls; use fewer threads"
                ) from None
            finally:
                processes.shutdown(cancel_futures=True)
    else:
        with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            yield Workers(n_workers, threads)


@contextmanager
def at_work(
    given: Workers | None,
    models: Mapping[str, ResponseNetwork],
    threads: int,
    readers: Sequence[TrajectoryReader],
    stride: int | str,
    device: Device,
) -> Iterator[Workers]:
    """Provide the workers given, or else such as fit the trajectories."""
    if given is not None:
        yield given
        return
    spacing = stride if isinstance(stride, int) else _USUAL_STRIDE
    n_nodes = sum(r.n_atoms * r.n_frames for r in readers) // spacing
    with start_workers(dict(models), threads, n_nodes, device) as workers:
        yield workers


def predicted_chunks(
    predictor: Predictor, reader: TrajectoryReader, knots: Array, length: int, first: int, workers: Workers
) -> Iterator[Predicted]:
    """Yield chunks in order, from the one that holds the first knot with a say in the spline at frame ``first``."""

    def tasks() -> Iterator[Task]:
        for index in range(int(knots[first_knot(knots, first)]) // length, int(knots[-1]) // length + 1):
            start, stop = index * length, min((index + 1) * length, int(knots[-1]) + 1)
            frames = reader.read(start, stop)
            assert frames.velocities is not None
            inside = knots[(knots >= start) & (knots < stop)]
            yield Task(index, start, frames.positions, frames.velocities, inside)

    return _in_order(predictor, tasks(), workers)


def _in_order(predictor: Predictor, tasks: Iterable[Task], workers: Workers) -> Iterator[Predicted]:
    """Yield the results of tasks in order; a few more tasks than workers are under way at a time."""
    if workers.executor is None:
        yield from map(predictor, tasks)
        return
    submit = workers.predict(predictor)
    waiting: deque[Future[Predicted]] = deque()
    try:
        for task in tasks:
            waiting.append(submit(task))
            if len(waiting) > workers.n + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@lru_cache(maxsize=1)
def _keep_memory() -> None:
    """Let the C library keep freed memory: arrays of a few MB that come and go cost more page faults than arithmetic.

    Halves the time of a network. Does nothing where the C library is not glibc; results are the same.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in ((-3, 1 << 30), (-1, 1 << 30), (-2, 1 << 26)):  # MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD
            library.mallopt(option, value)
