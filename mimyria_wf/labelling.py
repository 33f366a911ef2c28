"""What the verb ``label`` does with files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
from numpy.typing import NDArray

from mimyria_wf.engines import FieldForcesStore, completed, label_trajectory
from mimyria_wf.errors import EngineError, FieldSetError, LabelError
from mimyria_wf.field_engine import FieldEngine
from mimyria_wf.labels import configuration_key, read_labels, read_snapshots, write_labels
from mimyria_wf.metrics import tensor_errors
from mimyria_wf.trajectory import open_trajectory

Progress = Callable[[int, int, str], None]


def field_forces_file(
    path: str | Path,
    engine: FieldEngine,
    vectors: Sequence[Sequence[float]],
    out: str | Path,
    *,
    charge: int | None = None,
    multiplicity: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compute the forces of every snapshot in every field; what the file holds already is kept.

    A point that the engine fails at costs only itself: the others are computed and kept before the error is raised.

    Args:
        path: snapshots, anything ASE reads.
        engine: gives the forces.
        vectors: Cartesian field vectors [E_h/(e a0)].
        out: HDF5 file of :class:`mimyria_wf.engines.FieldForcesStore`.
        charge: overrides what the snapshots say.
        multiplicity: likewise.
        progress: called with (snapshots done, all, what is going on).
    """
    try:
        wanted: NDArray[Any] = np.asarray(vectors, dtype=float)
    except (ValueError, TypeError):  # words, lists of different lengths
        wanted = np.empty(0)
    if wanted.ndim != 2 or wanted.shape[1] != 3 or not np.isfinite(wanted).all():
        raise FieldSetError("field vectors must be a list of [x, y, z] in E_h/(e a0)")
    lengths = np.linalg.norm(wanted, axis=1)
    step = float(lengths[lengths > 0].min(initial=1.0))
    snapshots = stated_snapshots(path, charge, multiplicity)
    store = FieldForcesStore(out)
    failures: list[str] = []
    notes: list[str] = []
    for index, atoms in enumerate(snapshots):
        try:
            completed(engine, atoms, wanted, step, store, notes)
        except EngineError as error:
            failures.append(f"snapshot {index}: {error}")
            continue
        if progress is not None:
            progress(index + 1, len(snapshots), "field sets")
    if failures:
        raise EngineError(f"{len(failures)} of {len(snapshots)} snapshots of {path} failed; the first, {failures[0]}")
    return {
        "field_forces": str(out),
        "n_snapshots": len(snapshots),
        "n_points": len(snapshots) * len(wanted),
        "n_points_computed": store.n_added,
        "engine": engine.name,
        "engine_version": engine.version,
        "level": dict(engine.level_of_theory),
        **({"warnings": notes} if notes else {}),
    }


def stated_snapshots(path: str | Path, charge: int | None, multiplicity: int | None) -> list[ase.Atoms]:
    """Return the snapshots of a file, with charge and multiplicity in info where they are given.

    Raises:
        LabelError: the file says otherwise.
    """
    snapshots = read_snapshots(path)
    for index, atoms in enumerate(snapshots):
        for key, value in (("charge", charge), ("multiplicity", multiplicity)):
            if value is not None and int(atoms.info.setdefault(key, value)) != value:
                raise LabelError(f"{path}, snapshot {index}: {key} is {atoms.info[key]} in the file, {value} was given")
    return snapshots


def label_trajectory_file(
    path: str | Path,
    engine: FieldEngine,
    targets: Sequence[str],
    step: float,
    out: str | Path,
    **settings: Any,
) -> dict[str, Any]:
    """Label every frame of a trajectory file, see :func:`mimyria_wf.engines.label_trajectory`."""
    reader = open_trajectory(path)
    reader.name = Path(path).stem  # as `predict` names it
    return label_trajectory(reader, engine, targets, step, out, **settings)


def gather_labels(paths: Sequence[str | Path], out: str | Path, n_first: int | None = None) -> Path:
    """Return one file with the labels of several, in order, or with only the first `n_first` of them.

    Raises:
        LabelError: a file is unreadable, or there are fewer than `n_first` labels.
    """
    if len(paths) == 1 and n_first is None:
        return Path(paths[0])
    labelled = [one for path in paths for one in read_labels(path)]
    if n_first is not None and len(labelled) < n_first:
        raise LabelError(f"{len(labelled)} labelled snapshots given, {n_first} asked for: give more or ask for fewer")
    write_labels(out, labelled[:n_first])
    return Path(out)


def compare_labels(a: str | Path, b: str | Path) -> dict[str, Any]:
    """Return RMSE, relative RMSE (Eq. 14) and R^2 (Eq. 15) of the tensors in `a` against the reference `b`.

    Snapshots are matched by configuration, whatever their order.

    Raises:
        LabelError: the files share no configuration, or no tensor.
    """
    first = {configuration_key(one.atoms): one for one in read_labels(a)}
    second = {configuration_key(one.atoms): one for one in read_labels(b)}
    shared = [key for key in second if key in first]
    if not shared:
        raise LabelError(f"{a} and {b} share no configuration: compare labels of the same snapshots")
    result: dict[str, Any] = {"n_snapshots": len(shared), "n_only_in_one": len(first) + len(second) - 2 * len(shared)}
    numbers = np.concatenate([second[key].atoms.numbers for key in shared])
    for target in ("apt", "pgt"):
        pairs = [(getattr(first[key], target), getattr(second[key], target)) for key in shared]
        if all(one is not None and other is not None for one, other in pairs):
            mine, reference = (np.concatenate(tensors) for tensors in zip(*pairs, strict=True))
            result[target] = tensor_errors(mine, reference, numbers).to_dict()
    if not {"apt", "pgt"} & result.keys():
        raise LabelError(f"{a} and {b} share no tensor: one holds only APTs, the other only PGTs")
    return result
