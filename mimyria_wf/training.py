"""Training of APT and PGT networks from labels."""

import csv
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ase.data import chemical_symbols

from mimyria_wf.committee import Posterior, fit_posterior, has_linear_readout, reliability, transferred_posterior
from mimyria_wf.errors import LabelError, ModelError
from mimyria_wf.graphs import Graph, batches, graph_of, join
from mimyria_wf.irreps import blocks, from_irreps, to_irreps
from mimyria_wf.labels import LabelledSnapshot, read_labels, tensors_of, trajectory_of
from mimyria_wf.metrics import TensorErrors, tensor_errors
from mimyria_wf.network import build_network, load_model, save_model
from mimyria_wf.presets import NetworkSettings, TrainingSettings, as_plain, resolve
from mimyria_wf.response_network import ResponseNetwork
from mimyria_wf.training_plot import plot_training

Array = npt.NDArray[Any]
Progress = Callable[[int, int, str], None]
CHECKPOINT_INTERVAL = 30.0
_MINIMUM_SNAPSHOTS_TO_SPLIT = 10
_EVALUATED_ATOMS = 400
_FULL_NOISE = 0.04
"""Noise of labels over their deviation from which on noise_decay counts in full."""


@dataclass(frozen=True)
class HistoryRow:
    """One epoch (``plateau``) or one twentieth of the steps (``cosine``)."""

    step: int
    epoch: int
    learning_rate: float
    loss: float
    validation_loss: float | None


@dataclass(frozen=True)
class TrainingResult:
    """A trained network with what is known about it.

    Attributes:
        network: the network, in evaluation mode.
        metrics: errors on the test labels, None without any.
        history: the course of the training.
        report: JSON-able summary: sizes, metrics, sum-rule residuals, best epoch.
    """

    network: ResponseNetwork
    metrics: TensorErrors | None
    history: list[HistoryRow]
    report: dict[str, Any]


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """Run torch on a number of threads, then restore the number it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def levels_of_theory(labels: Sequence[LabelledSnapshot]) -> list[str]:
    """Return what the snapshots say of their level of theory, each once."""
    return sorted({str(s.atoms.info["level_of_theory"]) for s in labels if "level_of_theory" in s.atoms.info})


def validation_split(
    trajectories: Sequence[str | None], fraction: float, seed: int, known: Collection[str] = ()
) -> tuple[list[int], list[int]]:
    """Split snapshots into training and validation so that the two are not neighbours in time.

    Whole trajectories are set aside, in an order given by the seed. When all snapshots belong to one trajectory, or
    none is named, the last ones are set aside. Nothing is set aside from fewer than ten snapshots.

    Args:
        trajectories: trajectory of each snapshot.
        fraction: share of the snapshots to set aside, at least.
        seed: of the choice.
        known: trajectories that an initial model was fitted to; they can judge nothing any more, so that fewer
            snapshots, or none, are set aside.

    Returns:
        indices for training and for validation, each increasing.
    """
    n = len(trajectories)
    wanted = math.ceil(fraction * n)
    if wanted == 0 or n < _MINIMUM_SNAPSHOTS_TO_SPLIT:
        return list(range(n)), []
    names = sorted({t for t in trajectories if t is not None})
    aside: set[int] = set()
    if len(names) >= 2 and None not in trajectories:
        order = [k for k in np.random.default_rng(seed).permutation(len(names)) if names[k] not in known]
        for k in order if len(order) < len(names) else order[:-1]:
            if len(aside) >= wanted:
                break
            members = {i for i, t in enumerate(trajectories) if t == names[k]}
            if len(aside) + len(members) <= n // 2:
                aside |= members
    if not aside and not known:
        aside = set(range(n - wanted, n))
    return [i for i in range(n) if i not in aside], sorted(aside)


def train(
    target: str,
    train_labels: Sequence[LabelledSnapshot],
    test_labels: Sequence[LabelledSnapshot] = (),
    network_settings: NetworkSettings | None = None,
    settings: TrainingSettings | None = None,
    initial_model: ResponseNetwork | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Fit a network to labels.

    The loss is the mean square error of standardised irreducible components. A warm start keeps the initial model's
    neighbour count and what it has adapted to, since its weights have meaning only together with them. Its
    standardisation is kept if its labels were of the same level of theory. If not, mean and scale of every species and
    block are taken from the new labels: tensors of two levels differ most in these.

    Args:
        target: ``apt`` or ``pgt``.
        train_labels: snapshots with the target's tensors.
        test_labels: snapshots never used for fitting or choosing; they give the metrics.
        network_settings: architecture; the default preset's without any.
        settings: course of the training; the default preset's without any.
        initial_model: start from this network; its architecture must be the one asked for.
        checkpoint: file from which an interrupted training goes on, to the same result; removed at the end.
        progress: called with (step, n_steps, message).
        metadata: JSON-able facts to keep with the model.

    Raises:
        LabelError: no labels, a tensor is missing, or a snapshot is both in training and test.
        ModelError: the initial model does not fit, a species is only in the test labels, or the training diverges.
    """
    preset_network, preset_training = resolve("default", target)
    network_settings, settings = network_settings or preset_network, settings or preset_training
    _check_labels(target, train_labels, test_labels)
    with torch_threads(settings.threads):
        trainer = _Trainer(target, train_labels, network_settings, settings, initial_model, metadata)
        result = trainer.run(test_labels, Path(checkpoint) if checkpoint is not None else None, progress)
        if has_linear_readout(result.network):
            network: Any = result.network
            network.posterior = _posterior(network, trainer, initial_model, progress)
            result.report["uncertainty"] = {"calibration": dict(network.posterior.calibration)}
            if test_labels:
                result.report["uncertainty"] = reliability(network, test_labels).to_dict()
        return result


def _posterior(
    network: Any, trainer: "_Trainer", initial_model: ResponseNetwork | None, progress: Progress | None
) -> Posterior:
    """Return the posterior of the last layer, calibrated by labels that the trunk has not seen, if there are any."""
    labels, graphs, settings = trainer.labels, trainer.graphs, trainer.settings
    fitted, fitted_graphs = [labels[i] for i in trainer.training], [graphs[i] for i in trainer.training]
    if trainer.validation:
        held_out = [labels[i] for i in trainer.validation]
        return fit_posterior(network, fitted, held_out, fitted_graphs, [graphs[i] for i in trainer.validation])
    aside = calibration_split(labels, settings.calibration_fraction, settings.seed)
    if not aside:
        return fit_posterior(network, fitted, graphs=fitted_graphs)
    # a model of the same level of theory may have seen what is set aside, in an earlier iteration
    is_innocent = network.metadata["level_of_initial_model"] not in (None, network.metadata["level_of_theory"])
    rest = [s for i, s in enumerate(labels) if i not in aside]
    second = replace(settings, calibration_fraction=0.0, threads=torch.get_num_threads())
    start = initial_model if is_innocent else None
    second_trainer = _Trainer(network.target, rest, network.settings, second, start, None)
    other: Any = second_trainer.run((), None, progress).network
    other.posterior = fit_posterior(other, rest, [labels[i] for i in aside], second_trainer.graphs)
    record = {"method": f"second training without {len(aside)} snapshots"}
    return transferred_posterior(network, labels, other, record, graphs)


def calibration_split(labels: Sequence[LabelledSnapshot], fraction: float, seed: int) -> list[int]:
    """Return the snapshots that are left out of a second training, as :func:`validation_split` would choose them.

    Of fewer than ten snapshots the last ones. A snapshot with a species that the others lack is not left out.
    """
    n = len(labels)
    if fraction == 0 or n < 2:
        return []
    _, aside = validation_split([trajectory_of(s) for s in labels], fraction, seed)
    aside = aside or list(range(n - min(math.ceil(fraction * n), n - 1), n))
    for i in list(aside):
        others = {int(z) for k, s in enumerate(labels) if k not in aside for z in s.atoms.numbers}
        if not {int(z) for z in labels[i].atoms.numbers} <= others:
            aside.remove(i)
    return aside


def evaluate(
    network: ResponseNetwork,
    labels: Sequence[LabelledSnapshot],
    graphs: Sequence[Graph] | None = None,
) -> tuple[TensorErrors, dict[str, float]]:
    """Return the errors of a network on labels, and sum-rule residuals of prediction and labels.

    Args:
        network: trained network.
        labels: snapshots with the network's target.
        graphs: of the snapshots, if they are known.

    Returns:
        the errors; ``prediction`` and ``labels``: root mean square over snapshots and components of
        sum_i P_i - Q_tot 1 [e] or sum_i Q_i [e^2 a0/E_h].
    """
    predictions, residuals = [], []
    for batch in batches([len(s.atoms) for s in labels], _EVALUATED_ATOMS):
        known = graphs[batch] if graphs is not None else None
        graph = join(known or [network.graph(s.atoms) for s in labels[batch]])
        with torch.no_grad():
            components = network.components(graph)
        predictions.append(from_irreps(network.target, components.double()).numpy())
        residuals.append(from_irreps(network.target, graph.sum_by_snapshot(components.double())).numpy())
    references = [tensors_of(s, network.target) for s in labels]
    charges = np.array([float(s.atoms.info.get("charge", 0)) for s in labels])
    exact = charges[:, None, None] * np.eye(3) if network.target == "apt" else 0.0
    residual_of_labels = np.array([t.sum(axis=0) for t in references]) - exact
    residual = np.concatenate(residuals) - exact
    errors = tensor_errors(
        np.concatenate(predictions), np.concatenate(references), np.concatenate([s.atoms.numbers for s in labels])
    )
    return errors, {
        "prediction": float(np.sqrt(np.mean(residual**2))),
        "labels": float(np.sqrt(np.mean(residual_of_labels**2))),
    }


def train_files(
    target: str,
    train_path: str | os.PathLike[str],
    test_path: str | os.PathLike[str] | None,
    out_dir: str | os.PathLike[str],
    preset: str = "default",
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    initial_model: str | os.PathLike[str] | None = None,
    threads: int = 1,
    progress: Progress | None = None,
    pretraining: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Train from label files; write ``model.pt``, ``metrics.json``, ``history.csv`` and ``training.png`` into a folder.

    Args:
        target: ``apt`` or ``pgt``.
        train_path: extended XYZ with the labels.
        test_path: labels for the metrics, or None.
        out_dir: folder, created if absent; a ``checkpoint.pt`` in it is gone on with.
        preset: a key of :data:`mimyria_wf.presets.PRESETS`.
        overrides: fields of NetworkSettings and TrainingSettings that replace the preset's.
        seed: of weights, order and split, unless overridden.
        initial_model: model file to start from.
        threads: threads of torch, unless overridden.
        progress: called with (step, n_steps, message).
        pretraining: labels of a cheaper level of theory (``mimyria-wf label --clusters``) that the weights learn first.

    Returns:
        what metrics.json holds.
    """
    started = time.perf_counter()
    network_settings, settings = resolve(preset, target, {"seed": seed, "threads": threads} | dict(overrides or {}))
    training = read_labels(Path(train_path), [target])
    test = read_labels(Path(test_path), [target]) if test_path is not None else ()
    start = load_model(initial_model, target) if initial_model is not None else None
    cheap = read_labels(Path(pretraining), [target]) if pretraining is not None else []
    if cheap:
        if start is not None:
            raise ModelError("pre-training and an initial model exclude each other: the weights start from one of them")
        held = [{int(z) for s in part for z in s.atoms.numbers} for part in (training, cheap)]
        if missing := held[0] - held[1]:
            lacking = ", ".join(chemical_symbols[z] for z in sorted(missing))
            raise LabelError(
                f"{pretraining} lacks {lacking}, which {train_path} holds: label clusters with all species"
            )
        _check_labels(target, cheap, test)
        if (level := levels_of_theory(cheap)) == levels_of_theory(training):
            raise LabelError(
                f"{pretraining} and {train_path} both are of the level of theory {', '.join(level) or '(not stated)'}: "
                "give labels of one level together, or state level_of_theory in the snapshots"
            )
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)  # not before the input is known to be good
    extra: dict[str, Any] = {}
    if cheap:
        whole = replace(settings, validation_fraction=0.0, stopping_patience=0, calibration_fraction=0.0)
        first = train(
            target,
            cheap,
            (),
            network_settings,
            whole,
            checkpoint=folder / "pretraining-checkpoint.pt",
            progress=progress,
            metadata={"preset": preset},
        )
        start = first.network
        extra["pretraining"] = {
            "n_train": len(cheap),
            "level_of_theory": level,
            "train": first.report["train"],
            "seconds": round(time.perf_counter() - started, 2),
        }
    result = train(
        target,
        training,
        test,
        network_settings,
        settings,
        initial_model=start,
        checkpoint=folder / "checkpoint.pt",
        progress=progress,
        metadata={"preset": preset},
    )
    save_model(result.network, folder / "model.pt")
    with open(folder / "history.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "epoch", "learning_rate", "loss", "validation_loss"])
        for row in result.history:
            validation = "" if row.validation_loss is None else row.validation_loss
            writer.writerow([row.step, row.epoch, row.learning_rate, row.loss, validation])
    plot_training(folder / "training.png", result.history, f"{target.upper()}, {len(training)} snapshots")
    report = result.report | extra | {"preset": preset, "seconds": round(time.perf_counter() - started, 2)}
    (folder / "metrics.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


class _Trainer:
    """State of one training: data, network, optimizer, averages, best state."""

    def __init__(
        self,
        target: str,
        labels: Sequence[LabelledSnapshot],
        network_settings: NetworkSettings,
        settings: TrainingSettings,
        initial_model: ResponseNetwork | None,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        self.target, self.settings = target, settings
        self.labels = labels
        species = sorted({int(z) for s in labels for z in s.atoms.numbers})
        dtype = torch.float64 if settings.float64 else torch.float32
        self.training, self.validation = validation_split(
            [trajectory_of(s) for s in labels],
            settings.validation_fraction,
            settings.seed,
            _known_trajectories(initial_model, labels),
        )
        if initial_model is None:
            graphs = [_graph(s, species, network_settings.cutoff, dtype) for s in labels]
            n_nodes = sum(len(graphs[i].species) for i in self.training)
            n_edges = sum(len(graphs[i].senders) for i in self.training)
            network = build_network(
                network_settings, species, target, n_neighbours=n_edges / n_nodes, seed=settings.seed, dtype=dtype
            )
            network.adapt([graphs[i] for i in self.training])
        else:
            network = _continued(initial_model, target, network_settings, species, dtype)
            graphs = [_graph(s, network.species, network.cutoff, dtype) for s in labels]
        graphs = network.prepare(graphs)
        self.network, self.graphs = network, graphs
        components = [to_irreps(target, torch.from_numpy(tensors_of(s, target))).to(dtype) for s in labels]
        levels = levels_of_theory(labels)
        is_same_level = initial_model is not None and initial_model.metadata.get("level_of_theory", []) == levels
        if not is_same_level:
            network.standardise(
                torch.cat([components[i] for i in self.training]),
                torch.cat([graphs[i].species for i in self.training]),
            )
        self.mass_weights = [
            torch.from_numpy(s.atoms.get_masses() / s.atoms.get_masses().sum()).to(dtype) for s in labels
        ]
        self.charges = torch.tensor([float(s.atoms.info.get("charge", 0)) for s in labels], dtype=dtype)
        self.label_noise = self._label_noise([components[i] for i in self.training], [graphs[i] for i in self.training])
        self.weight_decay = settings.weight_decay + settings.noise_decay * min(1.0, self.label_noise / _FULL_NOISE)
        self.references = [(c - network.mean[g.species]) / network.scale[g.species] for c, g in zip(components, graphs)]
        self.species_weights, self.component_weights = self._weights(dtype)
        network.metadata = dict(metadata or {}) | {
            "training": as_plain(settings),
            "n_train": len(self.training),
            "n_validation": len(self.validation),
            "charges": sorted({float(q) for q in self.charges}),
            "level_of_theory": levels,
            "training_trajectories": sorted(
                {t for i in self.training if (t := trajectory_of(labels[i])) is not None}
                | set(_known_trajectories(initial_model, labels))
            ),
            "is_warm_start": initial_model is not None,
            "level_of_initial_model": None if initial_model is None else initial_model.metadata.get("level_of_theory"),
        }
        self.parameters: list[torch.Tensor] = list(network.parameters())
        optimizer = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = optimizer(
            self.parameters, lr=settings.learning_rate, weight_decay=self.weight_decay, foreach=True
        )
        self.average = [p.detach().clone() for p in self.parameters] if settings.ema_decay else []
        self.batch_size = settings.batch_size
        if settings.batch_atoms:
            atoms = np.mean([len(graphs[i].species) for i in self.training])
            self.batch_size = max(1, min(round(settings.batch_atoms / atoms), len(self.training) // 3))
        self.steps_per_epoch = math.ceil(len(self.training) / self.batch_size)
        n_steps = settings.n_steps
        if n_steps is not None:
            wanted = settings.least_epochs * self.steps_per_epoch
            n_steps = max(n_steps, min(wanted, settings.most_steps) if settings.most_steps else wanted)
        self.n_steps = min(
            n for n in (n_steps, (settings.n_epochs or 0) * self.steps_per_epoch or None) if n is not None
        )
        self.step = 0
        self.plateau_rate = settings.learning_rate
        self.stale_epochs = 0
        self.stale_records = 0
        self.best_loss = math.inf
        self.best_epoch = 0
        self.best_state: dict[str, torch.Tensor] | None = None
        self.history: list[HistoryRow] = []
        self.losses: list[float] = []
        self.fingerprint = self._fingerprint()

    def _label_noise(self, components: Sequence[torch.Tensor], graphs: Sequence[Graph]) -> float:
        """Return the noise of the labels over their deviation from the species' means.

        Independent errors of rms s in N atoms break a sum rule by s sqrt(N): the residuals of the acoustic sum rules
        show s.
        """
        noise, signal = [], []
        for index, values, graph in zip(self.training, components, graphs):
            residual = values.sum(0)
            if self.target == "apt":  # the isotropic component of Q_tot 1 is sqrt(3) Q_tot
                residual[0] -= math.sqrt(3) * self.charges[index]
            noise.append(float(residual.pow(2).mean()) / len(values))
            signal.append(float((values - self.network.mean[graph.species]).pow(2).mean()))
        return math.sqrt(float(np.mean(noise)) / max(float(np.mean(signal)), 1e-300))

    def _weights(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights of species (n_species,) and of components (9 or 18,) in the loss, both of mean one."""
        counts = torch.bincount(
            torch.cat([self.graphs[i].species for i in self.training]), minlength=len(self.network.species)
        )
        species = torch.ones(len(counts), dtype=dtype)
        if self.settings.balances_species:
            species = torch.where(counts > 0, counts.sum() / (counts.clamp(min=1) * (counts > 0).sum()), 0.0).to(dtype)
        parts = blocks(self.target)
        given = self.settings.block_weights or (1.0,) * len(parts)
        if len(given) != len(parts):
            names = ", ".join(b.name for b in parts)
            raise ModelError(f"block_weights needs {len(parts)} values ({names}), got {len(given)}")
        components = torch.cat([torch.full((2 * b.l + 1,), w, dtype=dtype) for b, w in zip(parts, given)])
        return species, components / components.mean()

    def run(
        self, test_labels: Sequence[LabelledSnapshot], checkpoint: Path | None, progress: Progress | None
    ) -> TrainingResult:
        """Train to the end and evaluate."""
        settings = self.settings
        if checkpoint is not None and checkpoint.exists():
            self._restore(checkpoint)
        saved = time.monotonic()
        log_interval = max(1, self.n_steps // 20)
        self.network.train()
        while self.step < self.n_steps and not self._is_settled():
            epoch, place = divmod(self.step, self.steps_per_epoch)
            order = np.random.default_rng([settings.seed, epoch]).permutation(self.training)
            batch = order[place * self.batch_size : (place + 1) * self.batch_size].tolist()
            rate = self._learning_rate()
            self.losses.append(self._optimise(batch, rate))
            self.step += 1
            ends_epoch = self.step % self.steps_per_epoch == 0
            if (ends_epoch if settings.schedule == "plateau" else self.step % log_interval == 0) or (
                self.step == self.n_steps
            ):
                self._record(rate)
                if progress is not None:
                    last = self.history[-1]
                    shown = last.loss if last.validation_loss is None else last.validation_loss
                    progress(self.step, self.n_steps, f"{self.target} loss {shown:.4f}")
                # Records mark the only places where no partial sum of losses would be lost.
                if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_INTERVAL:
                    self._save(checkpoint)
                    saved = time.monotonic()
        self._finish()
        network = self.network.eval()
        report: dict[str, Any] = {
            "target": self.target,
            "n_train": len(self.training),
            "n_validation": len(self.validation),
            "n_test": len(test_labels),
            "n_steps": self.n_steps,
            "n_steps_done": self.step,
            "n_parameters": sum(p.numel() for p in self.parameters),
            "seed": settings.seed,
            "label_noise": self.label_noise,
            "weight_decay": self.weight_decay,
            "best_epoch": self.best_epoch or None,
            "species": [chemical_symbols[z] for z in network.species],
            "network": as_plain(network.settings),
            "training": as_plain(settings),
            "final_loss": self.history[-1].loss,
        }
        metrics = None
        train_errors, residual = evaluate(
            network, [self.labels[i] for i in self.training], graphs=[self.graphs[i] for i in self.training]
        )
        report["train"] = {k: v for k, v in train_errors.to_dict().items() if k != "by_species"}
        report["sum_rule_rms"] = {"train_labels": residual["labels"], "train_prediction": residual["prediction"]}
        if test_labels:
            metrics, residual = evaluate(network, test_labels)
            report["test"] = metrics.to_dict()
            report["sum_rule_rms"] |= {"test_labels": residual["labels"], "test_prediction": residual["prediction"]}
            shared = {trajectory_of(s) for s in self.labels} & {trajectory_of(s) for s in test_labels} - {None}
            report["trajectories_in_both_sets"] = sorted(str(t) for t in shared)
            network.metadata["test"] = {k: report["test"][k] for k in ("rmse", "relative_rmse", "r2", "overall_rmse")}
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        return TrainingResult(network, metrics, self.history, report)

    def _learning_rate(self) -> float:
        settings = self.settings
        if settings.schedule == "plateau":
            return self.plateau_rate
        warmup = max(1.0, settings.warmup_steps, settings.warmup_fraction * self.n_steps)
        warm = min(1.0, (self.step + 1) / warmup)
        return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / self.n_steps))

    def _loss(self, indices: Sequence[int]) -> torch.Tensor:
        graph = join([self.graphs[i] for i in indices])
        output = self.network.standardised(graph)
        if self.settings.projects_sum_rules:
            output = self._projected(output, graph, indices)
        reference = torch.cat([self.references[i] for i in indices])
        weights = self.species_weights[graph.species][:, None] * self.component_weights
        return (weights * (output - reference) ** 2).mean()

    def _projected(self, output: torch.Tensor, graph: Graph, indices: Sequence[int]) -> torch.Tensor:
        """Return standardised components whose tensors obey the sum rules, residuals taken off with m_i/M."""
        scale, mean = self.network.scale[graph.species], self.network.mean[graph.species]
        components = output * scale + mean
        residual = graph.sum_by_snapshot(components)
        if self.target == "apt":  # the isotropic component of Q_tot 1 is sqrt(3) Q_tot
            residual = residual - torch.nn.functional.pad(
                math.sqrt(3) * self.charges[list(indices)][:, None], (0, residual.shape[1] - 1)
            )
        weights = torch.cat([self.mass_weights[i] for i in indices])
        return (components - weights[:, None] * residual[graph.snapshot] - mean) / scale

    def _optimise(self, batch: Sequence[int], rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(batch)
        value = loss.item()
        if not math.isfinite(value):
            raise ModelError(
                f"training of the {self.target} network diverged at step {self.step + 1} of {self.n_steps}; "
                f"lower learning_rate (now {self.settings.learning_rate:g}) or check the labels for outliers"
            )
        self.optimizer.zero_grad()
        loss.backward()
        if self.settings.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.gradient_clip)
        self.optimizer.step()
        if self.average:
            # The average forgets its start quickly: with a fixed decay it would hold the random weights for 1/(1-d).
            decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return value

    def _record(self, rate: float) -> None:
        """Close an epoch or a logging interval: validation loss, plateau, best state."""
        settings = self.settings
        loss = float(np.mean(self.losses))
        self.losses = []
        validation = None
        epoch = math.ceil(self.step / self.steps_per_epoch)
        with self._model_weights():
            if self.validation:
                self.network.eval()
                with torch.no_grad():
                    parts = [(self._loss([i]).item(), len(self.graphs[i].species)) for i in self.validation]
                self.network.train()
                validation = sum(v * n for v, n in parts) / sum(n for _, n in parts)
            self.history.append(HistoryRow(self.step, epoch, rate, loss, validation))
            if validation is None and settings.schedule != "plateau":
                return  # a training loss says nothing about the best place to stop
            judged = loss if validation is None else validation
            if judged < self.best_loss:
                self.best_loss, self.best_epoch = judged, epoch
                self.stale_epochs = self.stale_records = 0
                self.best_state = {k: v.clone() for k, v in self.network.state_dict().items()}
                return
        self.stale_epochs += 1
        self.stale_records += 1
        if settings.schedule == "plateau" and self.stale_epochs > settings.plateau_patience:
            self.plateau_rate *= settings.plateau_factor
            self.stale_epochs = 0

    def _is_settled(self) -> bool:
        """Tell whether the validation loss has not improved for long enough to stop."""
        patience = self.settings.stopping_patience
        return bool(self.validation) and 0 < patience <= self.stale_records

    @contextmanager
    def _model_weights(self) -> Iterator[None]:
        """Put the weights that would become the model into the network for a while: the averages, if there are any."""
        if not self.average:
            yield
            return
        current = [p.detach().clone() for p in self.parameters]
        self._put(self.average)
        try:
            yield
        finally:
            self._put(current)

    def _put(self, weights: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights):
                parameter.copy_(weight)

    def _finish(self) -> None:
        """Put the state that becomes the model into the network: the best on validation, or the last average."""
        if self.best_state is not None:
            self.network.load_state_dict(self.best_state)
        elif self.average:
            self._put(self.average)

    def _fingerprint(self) -> str:
        """Return a hash of everything that decides the result of the training, threads aside."""
        digest = hashlib.sha256()
        decisive = as_plain(self.settings) | {"threads": None, "target": self.target}
        digest.update(json.dumps([decisive, as_plain(self.network.settings)]).encode())
        for reference, graph in zip(self.references, self.graphs):
            digest.update(reference.numpy().tobytes())
            digest.update(graph.vectors.numpy().tobytes())
        for tensor in self.network.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def _save(self, path: Path) -> None:
        partial = path.with_name(path.name + ".partial")
        torch.save(
            {
                "fingerprint": self.fingerprint,
                "step": self.step,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
                "plateau_rate": self.plateau_rate,
                "stale_epochs": self.stale_epochs,
                "stale_records": self.stale_records,
                "best_loss": self.best_loss,
                "best_epoch": self.best_epoch,
                "best_state": self.best_state,
                "history": [tuple(vars(row).values()) for row in self.history],
            },
            partial,
        )
        partial.replace(path)

    def _restore(self, path: Path) -> None:
        """Go on from a checkpoint; one of another training is ignored, and later overwritten."""
        try:
            content = torch.load(path, weights_only=True)
        except Exception as error:  # noqa: BLE001 - torch raises many kinds for a file that is no checkpoint
            raise ModelError(f"{path} is not a readable checkpoint; remove it to start afresh ({error})") from None
        if content["fingerprint"] != self.fingerprint:
            return
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.average = content["average"]
        self.step = content["step"]
        self.plateau_rate = content["plateau_rate"]
        self.stale_epochs, self.stale_records = content["stale_epochs"], content["stale_records"]
        self.best_loss, self.best_epoch = content["best_loss"], content["best_epoch"]
        self.best_state = content["best_state"]
        self.history = [HistoryRow(*row) for row in content["history"]]


def _continued(
    initial: ResponseNetwork, target: str, settings: NetworkSettings, species: Sequence[int], dtype: torch.dtype
) -> ResponseNetwork:
    """Return a copy of the initial model to train on, after checking that it fits."""
    if initial.target != target:
        raise ModelError(f"the initial model is for {initial.target}, but {target} is to be trained")
    if initial.settings != settings:
        differing = [k for k, v in as_plain(settings).items() if as_plain(initial.settings).get(k) != v]
        raise ModelError(
            f"the initial model's architecture differs in {', '.join(differing)}; train without it or use its settings"
        )
    if missing := set(species) - set(initial.species):
        raise ModelError(f"the initial model lacks the species with atomic numbers {sorted(missing)}; train without it")
    network = build_network(settings, initial.species, target, initial.n_neighbours, dtype=dtype)
    network.load_state_dict(initial.state_dict())
    return network


def _known_trajectories(initial: ResponseNetwork | None, labels: Sequence[LabelledSnapshot]) -> list[str]:
    """Return the trajectories whose labels of this level of theory the initial model was fitted to."""
    if initial is None or initial.metadata.get("level_of_theory", []) != levels_of_theory(labels):
        return []
    return [str(t) for t in initial.metadata.get("training_trajectories", [])]


def _graph(snapshot: LabelledSnapshot, species: Sequence[int], cutoff: float, dtype: torch.dtype) -> Graph:
    atoms = snapshot.atoms
    return graph_of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, species, cutoff, dtype)


def _check_labels(target: str, train: Sequence[LabelledSnapshot], test: Sequence[LabelledSnapshot]) -> None:
    if not train:
        raise LabelError("no training labels; give at least one labelled snapshot")
    for name, labels in (("training", train), ("test", test)):
        for k, snapshot in enumerate(labels):
            if getattr(snapshot, target) is None:
                raise LabelError(f"{name} snapshot {k} has no {target} labels; label it with target {target}")
    known = {int(z) for s in train for z in s.atoms.numbers}
    if missing := {int(z) for s in test for z in s.atoms.numbers} - known:
        lacking = ", ".join(chemical_symbols[z] for z in sorted(missing))
        raise LabelError(f"test labels hold {lacking}, which the training labels lack")
    names = [{str(s.atoms.info["snapshot"]) for s in part if "snapshot" in s.atoms.info} for part in (train, test)]
    if both := sorted(names[0] & names[1]):
        raise LabelError(f"snapshot {both[0]} is in the training and in the test labels; keep them apart")
