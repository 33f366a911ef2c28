"""Choose the snapshots that are labelled.

Training and test snapshots come from different trajectories, or from one trajectory with a gap in time, so that a
test metric is never flattered by neighbours in time (Sec. 2.5 of Schienbein 2026 draws both sets at random from the
same trajectories). The training list is one random permutation: its first n entries are the training set of size n, so
growing sets are nested and no label is thrown away.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from mimyria_wf.errors import LabelError
from mimyria_wf.trajectory import open_trajectory


@dataclass(frozen=True)
class Selection:
    """Frames of the training and test sets as (trajectory, frame) pairs, in the order in which they are used."""

    training: tuple[tuple[int, int], ...]
    test: tuple[tuple[int, int], ...]


def select_snapshots(
    n_frames: Sequence[int],
    n_training: int,
    n_test: int,
    seed: int,
    excluded: Collection[int] = (),
    minimum_gap: int = 1,
) -> Selection:
    """Draw nested training snapshots and a fixed test set at random, without replacement.

    With three or more usable trajectories a fifth of them (at least one) is set aside for the test set. With fewer,
    each trajectory is cut in time: test frames come from its last fifth, and a tenth of it lies unused in between.
    Within a trajectory the frames drawn are spread evenly (one from each of equal stretches, at a random place), since
    neighbouring frames carry almost the same information.

    Args:
        n_frames: number of frames of each trajectory.
        n_training: snapshots of the largest training set.
        n_test: snapshots of the test set.
        seed: of the random numbers.
        excluded: trajectories that must not be touched (the explicit reference).
        minimum_gap: smallest distance in frames between two snapshots drawn from one trajectory.

    Returns:
        the frames; training frames in random order over all trajectories.

    Raises:
        LabelError: there are fewer frames than snapshots asked for.
    """
    usable = [k for k in range(len(n_frames)) if k not in set(excluded) and n_frames[k] > 0]
    if not usable:
        raise LabelError(
            "no trajectory is left to draw snapshots from: give more trajectories than the reference takes"
        )
    random = np.random.default_rng(seed)
    if len(usable) >= 3:
        n_held = max(1, round(len(usable) / 5))
        held = set(random.permutation(usable)[:n_held].tolist())
        training_spans = [(k, 0, n_frames[k]) for k in usable if k not in held]
        test_spans = [(k, 0, n_frames[k]) for k in usable if k in held]
    else:
        training_spans = [(k, 0, int(0.7 * n_frames[k])) for k in usable]
        test_spans = [(k, int(0.8 * n_frames[k]), n_frames[k]) for k in usable]
    test = _spread(test_spans, n_test, random, minimum_gap, "test")
    training = _spread(training_spans, n_training, random, minimum_gap, "training")
    order = random.permutation(len(training))
    return Selection(tuple(training[k] for k in order), tuple(test))


def _spread(
    spans: Sequence[tuple[int, int, int]], n_wanted: int, random: np.random.Generator, gap: int, purpose: str
) -> list[tuple[int, int]]:
    """Draw n_wanted frames from spans (trajectory, first, end), shared out as evenly as the lengths allow."""
    room = [max(1, (end - first) // gap) if end > first else 0 for _, first, end in spans]
    if sum(room) < n_wanted:
        raise LabelError(
            f"the {purpose} set asks for {n_wanted} snapshots but its trajectories hold {sum(room)}: "
            "lengthen the trajectories or ask for fewer"
        )
    shares = [0] * len(spans)
    for _ in range(n_wanted):
        shares[max((k for k in range(len(spans)) if shares[k] < room[k]), key=lambda k: (-shares[k], -k))] += 1
    drawn = []
    for (trajectory, first, end), share in zip(spans, shares, strict=True):
        edges = np.linspace(first, end, share + 1)
        for low, high in itertools.pairwise(edges):
            last = max(int(low), int(np.ceil(high)) - gap)
            drawn.append((trajectory, int(random.integers(int(np.ceil(low)), last + 1))))
    return drawn


def split_by_trajectory(names: Sequence[str], n_training: int, n_test: int, seed: int) -> tuple[list[int], list[int]]:
    """Split labels made elsewhere so that no trajectory gives both training and test snapshots.

    Args:
        names: of each snapshot, ``trajectory/frame``; snapshots without a name count as trajectories of their own.
        n_training: snapshots of the largest training set.
        n_test: at least so many snapshots are set aside.
        seed: of the order.

    Returns:
        indices of the training snapshots, nested; indices of the test snapshots.

    Raises:
        LabelError: too few snapshots, or a single trajectory.
    """
    random = np.random.default_rng(seed)
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name.rsplit("/", 1)[0] if "/" in name else f"#{index}", []).append(index)
    if len(groups) < 2:
        raise LabelError("the labels come from a single trajectory: give a test set of its own (labels.test_given)")
    test: list[int] = []
    training: list[int] = []
    for key in random.permutation(sorted(groups)):
        (test if len(test) < n_test else training).extend(groups[str(key)])
    if len(test) < n_test or len(training) < n_training:
        raise LabelError(
            f"{len(names)} given labels of {len(groups)} trajectories do not split into {n_training} for training and "
            f"{n_test} for the test: ask for fewer or give a test set (labels.test_given)"
        )
    order = [training[k] for k in random.permutation(len(training))]
    return order[:n_training], test[:n_test]


def select_files(
    files: Sequence[str | Path],
    directory: str | Path,
    *,
    n_training: int,
    n_test: int,
    seed: int,
    excluded: Collection[str] = (),
    charge: int | None = None,
    multiplicity: int | None = None,
) -> dict[str, Any]:
    """Draw snapshots from trajectory files and write ``training.extxyz`` and ``test.extxyz``.

    Args:
        files: trajectories, any readable format.
        directory: where the two files go.
        n_training: snapshots of the largest training set.
        n_test: snapshots of the test set.
        seed: of the random numbers.
        excluded: names of trajectories that are not touched.
        charge: written into the snapshots; by default what the trajectory says.
        multiplicity: likewise.

    Returns:
        the frames drawn, by set, as ``trajectory/frame``.
    """
    readers = [open_trajectory(path) for path in files]
    # by file, not by the name inside: runs of two campaigns are all called nve-000
    names = [Path(path).stem for path in files]
    if len(set(names)) < len(names):
        raise LabelError(f"trajectories must have different file names, got {', '.join(sorted(names))}")
    unknown = sorted(set(excluded) - set(names))
    if unknown:
        raise LabelError(f"no trajectory is called {', '.join(unknown)}; there are {', '.join(names)}")
    skipped = [k for k, name in enumerate(names) if name in set(excluded)]
    chosen = select_snapshots([reader.n_frames for reader in readers], n_training, n_test, seed, skipped)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {}
    for name, frames in (("training", chosen.training), ("test", chosen.test)):
        snapshots = []
        for trajectory, frame in frames:
            atoms = readers[trajectory].atoms(frame)
            snapshot = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
            snapshot.info["charge"] = int(charge if charge is not None else atoms.info.get("charge", 0))
            snapshot.info["multiplicity"] = int(multiplicity or atoms.info.get("multiplicity", 1))
            snapshot.info["snapshot"] = f"{names[trajectory]}/{frame}"
            snapshots.append(snapshot)
        ase.io.write(directory / f"{name}.extxyz", snapshots, format="extxyz")
        result[name] = [atoms.info["snapshot"] for atoms in snapshots]
    return result
