"""Choose the snapshots that are labelled.

Training and test snapshots come from different trajectories, or from one trajectory with a gap in time, so that a
test metric is never flattered by neighbours in time (Sec. 2.5 of Schienbein 2026 draws both sets at random from the
same trajectories). The training list is one random permutation: its first n entries are the training set of size n, so
growing sets are nested and no label is thrown away.

With trained networks whose last layer has a posterior (:mod:`mimyria_wf.committee`) the next snapshots can be chosen
instead of drawn. What is not known of a species z by the network of one target is its mean variance over the
candidates, relative to the spread of the labels,

    ``u_z^2 = sum_b alpha_zb^2 s_zb^2 tr[P_zb (G_zb + zeta_zb^2 1)^-1] / (n_z spread_z^2)``,

with ``P`` the sum of ``f f^T`` over the candidates' n_z atoms. One snapshot after another is taken, each the one that
lowers the largest u_z of all species and targets most once its own ``f f^T`` is added to G: so a rare species counts as
much as a frequent one, a snapshot is worth what it says about the others and not how odd it is, and what an earlier
choice has told is not asked again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from mimyria_wf.errors import LabelError, ModelError
from mimyria_wf.labels import read_snapshots
from mimyria_wf.trajectory import open_trajectory

if TYPE_CHECKING:
    from mimyria_wf.committee import LinearReadout

Array = np.ndarray[Any, Any]
CANDIDATES_A_SNAPSHOT = 10
LEAST_CANDIDATES = 200
"""Candidates that are looked at: so many for each snapshot to choose, but not fewer than these."""


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
    random, training_spans, test_spans = _split(n_frames, seed, excluded)
    test = _spread(test_spans, n_test, random, minimum_gap, "test")
    training = _spread(training_spans, n_training, random, minimum_gap, "training")
    order = random.permutation(len(training))
    return Selection(tuple(training[k] for k in order), tuple(test))


def _split(
    n_frames: Sequence[int], seed: int, excluded: Collection[int]
) -> tuple[np.random.Generator, list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """Return the generator, and the spans (trajectory, first, end) of training and of test snapshots."""
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
    return random, training_spans, test_spans


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


@dataclass(frozen=True)
class UncertaintyChoice:
    """Snapshots chosen by what networks do not know.

    Attributes:
        indices: of the candidates, in the order of the choice.
        before: relative uncertainty over the candidates by target and species, such as ``apt Cl``.
        after: the same once the chosen ones are labelled, as far as the last layer can tell.
        after_random: the same with as many candidates drawn at random.
    """

    indices: tuple[int, ...]
    before: dict[str, float]
    after: dict[str, float]
    after_random: dict[str, float]


def select_by_uncertainty(
    networks: Sequence[LinearReadout],
    candidates: Sequence[Atoms],
    n: int,
    seed: int = 0,
    places: Sequence[tuple[int, int]] | None = None,
    minimum_gap: int = 1,
) -> UncertaintyChoice:
    """Choose snapshots by the uncertainty that their labels would take away; see the module's text.

    Args:
        networks: for one or both targets, trained on the labels at hand, with posteriors.
        candidates: snapshots without labels.
        n: number to choose.
        seed: of the random choice to compare with.
        places: (trajectory, frame) of each candidate; without them candidates count as far apart.
        minimum_gap: smallest distance in frames between two chosen from one trajectory.

    Raises:
        LabelError: there are too few candidates, or too few that are far enough apart.
        ModelError: a network has no posterior, or does not know a species of the candidates.
    """
    if not networks:
        raise LabelError("no model to choose snapshots by: give the models trained on the labels at hand")
    if len(candidates) < n:
        raise LabelError(f"{n} snapshots are asked for, but there are only {len(candidates)} candidates")
    unknowns = [unknown for network in networks for unknown in _unknowns(network, candidates)]
    drawn = np.random.default_rng(seed).permutation(len(candidates))[:n]
    before = {unknown.name: unknown.uncertainty() for unknown in unknowns}
    after_random = {unknown.name: unknown.uncertainty(drawn.tolist()) for unknown in unknowns}
    is_free = np.ones(len(candidates), dtype=bool)
    chosen: list[int] = []
    for _ in range(n):
        if not is_free.any():
            raise LabelError(
                f"only {len(chosen)} of {n} snapshots are {minimum_gap} frames apart: lengthen the trajectories or "
                "ask for fewer"
            )
        worst = max(unknowns, key=lambda unknown: unknown.uncertainty())
        best = int(np.argmin(np.where(is_free, worst.variances_with_each(), np.inf)))
        chosen.append(best)
        for unknown in unknowns:
            unknown.add(best)
        is_free[best] = False
        if places is not None:
            trajectory, frame = places[best]
            is_free &= np.array([k != trajectory or abs(f - frame) >= minimum_gap for k, f in places])
    after = {unknown.name: unknown.uncertainty() for unknown in unknowns}
    return UncertaintyChoice(tuple(chosen), before, after, after_random)


@dataclass
class _Unknown:
    """What the network of one target does not know of one species.

    Attributes:
        name: target and species.
        precisions: for each block (n_features, n_features) G + zeta^2 1.
        factors: for each block alpha^2 s^2 / (n_z spread^2).
        grams: for each block (n_candidates, n_features, n_features) sum of f f^T over the species' atoms.
    """

    name: str
    precisions: list[Array]
    factors: list[float]
    grams: list[Array]

    def __post_init__(self) -> None:
        self._pools = [grams.sum(axis=0) for grams in self.grams]

    def uncertainty(self, extra: Sequence[int] = ()) -> float:
        """Return u_z, with candidates added whose labels would be there."""
        blocks = zip(self.factors, self._pools, self.precisions, self.grams)
        return float(
            np.sqrt(sum(c * np.trace(np.linalg.solve(a + g[list(extra)].sum(axis=0), p)) for c, p, a, g in blocks))
        )

    def variances_with_each(self) -> Array:
        """Return u_z^2 with one more candidate, (n_candidates,)."""
        total = np.zeros(len(self.grams[0]))
        for factor, pool, precision, grams in zip(self.factors, self._pools, self.precisions, self.grams):
            for start in range(0, len(grams), 64):  # a few inverses at a time
                inverse = np.linalg.inv(precision + grams[start : start + 64])
                total[start : start + 64] += factor * np.einsum("cfg,fg->c", inverse, pool)
        return total

    def add(self, candidate: int) -> None:
        """Take a candidate as labelled."""
        for precision, grams in zip(self.precisions, self.grams):
            precision += grams[candidate]


def _unknowns(network: LinearReadout, candidates: Sequence[Atoms]) -> list[_Unknown]:
    """Return what a network does not know, for each species that the candidates hold."""
    from mimyria_wf.committee import label_spreads, require_posterior, snapshot_grams
    from mimyria_wf.irreps import blocks

    posterior = require_posterior(network, "choosing snapshots by uncertainty")
    found = [[gram.numpy() for gram in snapshot_grams(network, network.graph(atoms))] for atoms in candidates]
    spreads = label_spreads(network).numpy()
    result = []
    for z, number in enumerate(network.species):
        n_atoms = sum(int((atoms.numbers == number).sum()) for atoms in candidates)
        if not n_atoms:
            continue
        scales = [float(network.scale[z, block.start]) for block in blocks(network.target)]
        amplitudes = posterior.alphas[z].numpy() * scales / spreads[z]
        result.append(
            _Unknown(
                f"{network.target} {chemical_symbols[number]}",
                [posterior.precision(z, b).numpy().copy() for b in range(len(scales))],
                [float(a**2) / n_atoms for a in amplitudes],
                [np.array([grams[b][z] for grams in found]) for b in range(len(scales))],
            )
        )
    return result


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
    models: Sequence[str | Path] = (),
    labelled: str | Path | None = None,
    n_candidates: int | None = None,
) -> dict[str, Any]:
    """Draw or choose snapshots from trajectory files and write ``training.extxyz`` and ``test.extxyz``.

    Without models snapshots are drawn at random. With models the snapshots already labelled come first, as they are,
    and those that follow are chosen by :func:`select_by_uncertainty` among frames of the training trajectories. The
    test set depends on seed and trajectories alone, so it is that of the first, random selection.

    Args:
        files: trajectories, any readable format.
        directory: where the two files go.
        n_training: snapshots of the largest training set, those already labelled included.
        n_test: snapshots of the test set.
        seed: of the random numbers.
        excluded: names of trajectories that are not touched.
        charge: written into the snapshots; by default what the trajectory says.
        multiplicity: likewise.
        models: files of the models trained on ``labelled``, one for each target.
        labelled: extended XYZ with the snapshots that the models were trained on.
        n_candidates: frames to choose among; by default 10 for each snapshot to choose, at least 200.

    Returns:
        the frames drawn, by set, as ``trajectory/frame``; with models also ``n_labelled``, ``n_candidates`` and
        ``uncertainty``: by target and species the relative uncertainty over the candidates ``before``, ``after``, and
        ``after_random`` with as many drawn at random.

    Raises:
        LabelError: too few frames, unknown names, or labelled snapshots that belong to the test trajectories.
        ModelError: a model has no posterior, or there are two for one target.
    """
    if bool(models) != (labelled is not None):
        raise LabelError("choosing by uncertainty needs both models and the labels they were trained on")
    readers = [open_trajectory(path) for path in files]
    # by file, not by the name inside: runs of two campaigns are all called nve-000
    names = [Path(path).stem for path in files]
    if len(set(names)) < len(names):
        raise LabelError(f"trajectories must have different file names, got {', '.join(sorted(names))}")
    unknown = sorted(set(excluded) - set(names))
    if unknown:
        raise LabelError(f"no trajectory is called {', '.join(unknown)}; there are {', '.join(names)}")
    skipped = [k for k, name in enumerate(names) if name in set(excluded)]
    n_frames = [reader.n_frames for reader in readers]

    def snapshot(place: tuple[int, int]) -> Atoms:
        trajectory, frame = place
        atoms = readers[trajectory].atoms(frame)
        bare = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        bare.info["charge"] = int(charge if charge is not None else atoms.info.get("charge", 0))
        bare.info["multiplicity"] = int(multiplicity or atoms.info.get("multiplicity", 1))
        bare.info["snapshot"] = f"{names[trajectory]}/{frame}"
        return bare

    known: list[Atoms] = []
    record: dict[str, Any] = {}
    if labelled is None:
        chosen = select_snapshots(n_frames, n_training, n_test, seed, skipped)
    else:
        known = _bare_snapshots(labelled)
        chosen, record = _choose(
            models, known, n_frames, names, snapshot, n_training, n_test, seed, skipped, n_candidates
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {}
    for name, first, frames in (("training", known, chosen.training), ("test", [], chosen.test)):
        snapshots = [*first, *map(snapshot, frames)]
        ase.io.write(directory / f"{name}.extxyz", snapshots, format="extxyz")
        result[name] = [atoms.info.get("snapshot", f"#{k}") for k, atoms in enumerate(snapshots)]
    return result | record


def _choose(
    models: Sequence[str | Path],
    known: Sequence[Atoms],
    n_frames: Sequence[int],
    names: Sequence[str],
    snapshot: Callable[[tuple[int, int]], Atoms],
    n_training: int,
    n_test: int,
    seed: int,
    excluded: Collection[int],
    n_candidates: int | None,
) -> tuple[Selection, dict[str, Any]]:
    """Return the snapshots chosen by uncertainty and the random test set, and what to report."""
    from mimyria_wf.network import load_model

    networks: list[Any] = [load_model(path) for path in models]
    targets = [network.target for network in networks]
    if len(set(targets)) < len(targets):
        raise ModelError(f"give one model for each target, got models for {', '.join(targets)}")
    n_new = n_training - len(known)
    if n_new < 1:
        raise LabelError(f"{len(known)} snapshots are labelled already, {n_training} are asked for: ask for more")
    random, training_spans, test_spans = _split(n_frames, seed, excluded)
    test = _spread(test_spans, n_test, random, 1, "test")
    spans = {trajectory: (first, end) for trajectory, first, end in training_spans}
    taken = []
    for atoms in known:
        name, _, frame = str(atoms.info.get("snapshot", "")).rpartition("/")
        if name not in names:
            continue  # labels made elsewhere
        place = names.index(name), int(frame)
        first, end = spans.get(place[0], (0, 0))
        if not first <= place[1] < end:
            raise LabelError(
                f"the labelled snapshot {name}/{frame} belongs to what is set aside for the test: "
                "use the trajectories and the seed of the first selection"
            )
        taken.append(place)
    room = sum(end - first for first, end in spans.values())
    wanted = n_candidates or max(LEAST_CANDIDATES, CANDIDATES_A_SNAPSHOT * n_new)
    gap = max(1, room // (2 * wanted))
    wanted = min(wanted, sum((end - first) // gap for first, end in spans.values()))
    places = [
        (k, frame)
        for k, frame in _spread(training_spans, wanted, random, gap, "candidate")
        if all(k != other or abs(frame - f) >= gap for other, f in taken)
    ]
    choice = select_by_uncertainty(networks, [snapshot(place) for place in places], n_new, seed, places, gap)
    uncertainty = {
        name: {"before": u, "after": choice.after[name], "after_random": choice.after_random[name]}
        for name, u in choice.before.items()
    }
    return Selection(tuple(places[i] for i in choice.indices), tuple(test)), {
        "n_labelled": len(known),
        "n_candidates": len(places),
        "uncertainty": uncertainty,
    }


def _bare_snapshots(path: str | Path) -> list[Atoms]:
    """Return the structures of a file of labels, without the labels."""
    result = []
    for atoms in read_snapshots(Path(path)):
        bare = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        bare.info |= {key: atoms.info[key] for key in ("charge", "multiplicity", "snapshot") if key in atoms.info}
        result.append(bare)
    return result
