"""Settings of the response networks and of their training, without importing torch.

``default`` and ``accurate`` are networks on species densities with two and three exchanges of messages, trained by
AdamW with one cycle of the rate, a strong decay of the weights, averaged weights and a fixed number of steps, so that
a seed gives one model; they were chosen by their error on held-out training labels (docs/networks.md). ``paper`` is
Section 2.5 of Schienbein (2026) with the optimizer of Schienbein (2023): three gated message-passing layers and one
output layer, 6 A, l <= 3, both parities, Adam at 1e-2 whose rate drops tenfold when the validation loss has not
improved for ten epochs, best epoch kept. ``aptnn2023``, for APTs alone, is Schienbein, J. Chem. Theory Comput. 19,
705 (2023).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal

from mimyria_wf.errors import ModelError

Target = Literal["apt", "pgt"]
TARGETS: tuple[Target, ...] = ("apt", "pgt")
UNITS: dict[str, str] = {"apt": "e", "pgt": "e^2 a0/E_h"}
MAXIMUM_CUTOFF = 15.0


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Architecture of a response network: one subclass for each kind."""

    kind: ClassVar[str]
    cutoff: float
    """Radius of the neighbour list [A]."""


@dataclass(frozen=True, kw_only=True)
class MessagePassingSettings(NetworkSettings):
    """Gated equivariant message passing, e3nn's ``MessagePassing`` (v2106).

    Attributes:
        multiplicities: number of channels of the hidden features for l = 0, 1, 2, ...
        parity: ``both`` gives each l both parities, ``natural`` only (-1)^l.
        n_layers: number of gated message-passing layers; one output layer follows.
        edge_l_max: highest l of the spherical harmonics on the edges.
        cutoff: radius of the neighbour list [A]; it may exceed half the box.
        n_radial: number of ``smooth_finite`` radial functions.
        radial_hidden: widths of the hidden layers of the radial network.
        has_species_attributes: one-hot species enter each product of node features; otherwise only the first layer
            sees the species.
    """

    kind: ClassVar[str] = "message-passing"
    multiplicities: tuple[int, ...]
    parity: Literal["both", "natural"] = "both"
    n_layers: int = 2
    edge_l_max: int = 2
    cutoff: float = 4.0
    n_radial: int = 10
    radial_hidden: tuple[int, ...] = (32,)
    has_species_attributes: bool = True

    def __post_init__(self) -> None:
        for name in ("multiplicities", "radial_hidden"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(v, int) and v >= 0 for v in value):
                raise ModelError(f"{name} must be a list of integers >= 0, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        if not self.multiplicities or self.multiplicities[0] == 0:
            raise ModelError(f"multiplicities needs at least one scalar channel, got {list(self.multiplicities)}")
        if self.parity not in ("both", "natural"):
            raise ModelError(f"parity must be 'both' or 'natural', got {self.parity!r}")
        if not 0 < self.cutoff <= MAXIMUM_CUTOFF:
            raise ModelError(f"cutoff must lie in (0, {MAXIMUM_CUTOFF:g}] A, got {self.cutoff:g} A")
        for name, lowest in (("n_layers", 1), ("edge_l_max", 1), ("n_radial", 1)):
            if getattr(self, name) < lowest:
                raise ModelError(f"{name} must be at least {lowest}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class SimpleSettings(NetworkSettings):
    """e3nn's ``SimpleNetwork`` (v2106), as Schienbein (2023) used it (:mod:`mimyria_wf.simple_network`).

    Attributes:
        n_channels: of each l and parity.
        n_layers: number of gated layers; one output layer follows.
        l_max: highest l of features and of spherical harmonics.
        cutoff: radius of the neighbour list [A].
    """

    kind: ClassVar[str] = "simple"
    n_channels: int = 20
    n_layers: int = 2
    l_max: int = 2
    cutoff: float = 6.0

    def __post_init__(self) -> None:
        for name in ("n_channels", "n_layers", "l_max"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ModelError(f"{name} must be an integer >= 1, got {value!r}")
        if not 0 < self.cutoff <= MAXIMUM_CUTOFF:
            raise ModelError(f"cutoff must lie in (0, {MAXIMUM_CUTOFF:g}] A, got {self.cutoff:g} A")


@dataclass(frozen=True, kw_only=True)
class DensitySettings(NetworkSettings):
    """Network on species densities (:mod:`mimyria_wf.density_network`).

    Attributes:
        l_max: highest l of densities and features.
        n_channels: channels of the hidden features for each l.
        cutoff: radius of the densities [A]; it may exceed half the box.
        n_radial: radial functions of the densities.
        n_bond: radial functions over the bond lengths of each pair of species.
        message_cutoff: radius of the messages [A].
        n_message_radial: radial functions of the messages.
        n_message_channels: channels of a message.
        n_rounds: number of exchanges of messages.
        n_products: products after each exchange; one comes before the first.
        n_hidden: hidden neurons of the gates.
    """

    kind: ClassVar[str] = "density"
    l_max: int = 2
    n_channels: int = 16
    cutoff: float = 6.0
    n_radial: int = 9
    n_bond: int = 6
    message_cutoff: float = 4.0
    n_message_radial: int = 6
    n_message_channels: int = 16
    n_rounds: int = 2
    n_products: int = 1
    n_hidden: int = 64

    def __post_init__(self) -> None:
        for name, lowest in (
            ("l_max", 2),
            ("n_channels", 1),
            ("n_radial", 1),
            ("n_bond", 0),
            ("n_message_radial", 1),
            ("n_message_channels", 1),
            ("n_rounds", 0),
            ("n_products", 0),
            ("n_hidden", 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < lowest:
                raise ModelError(f"{name} must be an integer >= {lowest}, got {value!r}")
        if not 0 < self.cutoff <= MAXIMUM_CUTOFF:
            raise ModelError(f"cutoff must lie in (0, {MAXIMUM_CUTOFF:g}] A, got {self.cutoff:g} A")
        if not 0 < self.message_cutoff <= self.cutoff:
            raise ModelError(
                f"message_cutoff must lie in (0, cutoff = {self.cutoff:g}] A, got {self.message_cutoff:g} A"
            )


@dataclass(frozen=True)
class TrainingSettings:
    """How a response network is fitted.

    Attributes:
        n_steps: number of optimizer steps.
        n_epochs: number of passes over the training snapshots; of n_steps and n_epochs the shorter holds.
        least_epochs: where n_steps are fewer passes than this, so many passes are made,
        most_steps: but not more steps than this; 0 for no bound.
        batch_size: snapshots a step.
        batch_atoms: where it is not 0, so many snapshots a step as hold about this number of atoms, but not more than
            makes three steps of an epoch.
        learning_rate: highest rate of Adam.
        schedule: ``cosine`` warms up linearly and decays to zero at the last step; ``plateau`` multiplies the rate by
            plateau_factor when the validation loss (training loss without validation snapshots) has not improved for
            plateau_patience epochs.
        warmup_steps: length of the linear warm-up (``cosine``).
        warmup_fraction: the same as a share of all steps; the longer holds.
        ema_decay: decay of the exponential moving average of the weights that becomes the model; 0 keeps the weights.
        weight_decay: of Adam, an L2 penalty; of AdamW, decoupled from the gradient.
        noise_decay: added to weight_decay in proportion to the noise of the labels that their sum rules show, in full
            from 4 % of the labels' deviation on.
        optimizer: ``adam`` or ``adamw``.
        gradient_clip: largest norm of the gradient of a step; 0 for no bound.
        validation_fraction: share of the training trajectories set aside to choose the best weights; 0 sets none aside.
        stopping_patience: the training ends when the validation loss has not improved for so many records, which are
            epochs (``plateau``) or twentieths of the steps (``cosine``); 0 goes on to the last step.
        calibration_fraction: share of the snapshots left out of a second training, of the same recipe, that only
            calibrates the uncertainties of the first (:mod:`mimyria_wf.committee`). 0: none; validation snapshots
            calibrate them if there are any, and without either they are too small.
        balances_species: each species weighs the same in the loss, however few its atoms.
        block_weights: relative weights of the irreducible blocks in the loss; empty for equal weights.
        projects_sum_rules: subtract the acoustic-sum-rule residual from the prediction inside the loss.
        float64: compute in double precision.
        seed: of the initial weights and of the order of the snapshots.
        threads: threads of torch.
    """

    n_steps: int | None = None
    n_epochs: int | None = None
    least_epochs: int = 0
    most_steps: int = 0
    batch_size: int = 4
    batch_atoms: int = 0
    learning_rate: float = 1e-2
    schedule: Literal["cosine", "plateau"] = "cosine"
    warmup_steps: int = 20
    warmup_fraction: float = 0.0
    plateau_factor: float = 0.1
    plateau_patience: int = 10
    ema_decay: float = 0.99
    weight_decay: float = 0.0
    noise_decay: float = 0.0
    optimizer: Literal["adam", "adamw"] = "adam"
    gradient_clip: float = 0.0
    validation_fraction: float = 0.0
    stopping_patience: int = 0
    calibration_fraction: float = 0.0
    balances_species: bool = True
    block_weights: tuple[float, ...] = ()
    projects_sum_rules: bool = False
    float64: bool = False
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_weights", tuple(float(w) for w in self.block_weights))
        if self.n_steps is None and self.n_epochs is None:
            raise ModelError("give n_steps, n_epochs or both; got neither")
        for name in ("n_steps", "n_epochs", "batch_size", "plateau_patience", "threads"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ModelError(f"{name} must be an integer >= 1, got {value!r}")
        if self.schedule not in ("cosine", "plateau"):
            raise ModelError(f"schedule must be 'cosine' or 'plateau', got {self.schedule!r}")
        if not self.learning_rate > 0:
            raise ModelError(f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("ema_decay", "validation_fraction", "calibration_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ModelError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not isinstance(self.stopping_patience, int) or self.stopping_patience < 0:
            raise ModelError(f"stopping_patience must be an integer >= 0, got {self.stopping_patience!r}")
        if self.stopping_patience and not self.validation_fraction:
            raise ModelError("stopping_patience needs validation snapshots: set validation_fraction, 0.1 for instance")
        if not 0 < self.plateau_factor < 1:
            raise ModelError(f"plateau_factor must lie in (0, 1), got {self.plateau_factor}")
        if any(w < 0 for w in self.block_weights) or (self.block_weights and not any(self.block_weights)):
            raise ModelError(f"block_weights must not be negative nor all zero, got {list(self.block_weights)}")


_PAPER_TRAINING = TrainingSettings(
    n_epochs=100,
    batch_size=1,
    schedule="plateau",
    ema_decay=0.0,
    validation_fraction=0.1,
    balances_species=False,
)
_DENSITY_TRAINING = TrainingSettings(
    n_steps=500,
    least_epochs=50,
    most_steps=4000,
    batch_atoms=100,
    learning_rate=1e-2,
    warmup_steps=1,
    warmup_fraction=0.1,
    optimizer="adamw",
    weight_decay=0.2,
    noise_decay=0.5,
    gradient_clip=1.0,
)
# The first block is the gradient of the isotropic polarizability, a small part of the tensor that makes up the
# isotropic spectrum alone.
_PGT_TRAINING = replace(_DENSITY_TRAINING, block_weights=(4.0, 1.0, 1.0, 1.0))
PRESETS: dict[str, dict[str, tuple[NetworkSettings, TrainingSettings]]] = {
    "paper": {
        target: (
            MessagePassingSettings(
                multiplicities=multiplicities,
                n_layers=3,
                edge_l_max=3,
                cutoff=6.0,
                radial_hidden=(100,),
                has_species_attributes=False,
            ),
            _PAPER_TRAINING,
        )
        for target, multiplicities in (("apt", (20, 10, 6, 5)), ("pgt", (40, 20, 13, 10)))
    },
    # the paper's spectra are of the network after 100 epochs; the figures published with the data are of 500
    "aptnn2023": {"apt": (SimpleSettings(), _PAPER_TRAINING)},
    "default": {
        "apt": (DensitySettings(l_max=2), _DENSITY_TRAINING),
        "pgt": (DensitySettings(l_max=3), _PGT_TRAINING),
    },
    "accurate": {
        "apt": (DensitySettings(l_max=3, n_rounds=3), _DENSITY_TRAINING),
        "pgt": (DensitySettings(l_max=3, n_rounds=3), _PGT_TRAINING),
    },
}


def resolve(
    preset: str, target: str, overrides: Mapping[str, Any] | None = None
) -> tuple[NetworkSettings, TrainingSettings]:
    """Return the settings of a preset for a target, with some fields replaced.

    Args:
        preset: a key of :data:`PRESETS`.
        target: ``apt`` or ``pgt``.
        overrides: field names of the preset's network settings and of :class:`TrainingSettings` with new values. A
            given n_steps alone replaces the preset's n_epochs too, and the other way round.

    Raises:
        ModelError: unknown preset, target or field, or a value that does not fit.
    """
    if preset not in PRESETS:
        raise ModelError(f"unknown preset {preset!r}; known are {', '.join(sorted(PRESETS))}")
    if target not in TARGETS:
        raise ModelError(f"unknown target {target!r}; known are {', '.join(TARGETS)}")
    if target not in PRESETS[preset]:
        raise ModelError(f"preset {preset} is for {', '.join(PRESETS[preset])} alone, not for {target}: choose another")
    network, training = PRESETS[preset][target]
    changes = dict(overrides or {})
    if "n_steps" in changes:
        changes.setdefault("n_epochs", None)
        changes.setdefault("least_epochs", 0)
    elif "n_epochs" in changes:
        changes.setdefault("n_steps", None)
    of_network = {f.name for f in fields(network)}
    of_training = {f.name for f in fields(TrainingSettings)}
    if unknown := sorted(set(changes) - of_network - of_training):
        known = ", ".join(override_names(preset))
        raise ModelError(f"unknown training override {', '.join(unknown)}; known are {known}")
    try:
        return (
            replace(network, **{k: v for k, v in changes.items() if k in of_network}),
            replace(training, **{k: v for k, v in changes.items() if k in of_training}),
        )
    except TypeError as error:
        raise ModelError(f"a training override has the wrong type: {error}") from None


def override_names(preset: str) -> list[str]:
    """Return the names of all settings of a preset's networks and of their training."""
    settings: list[Any] = [s for pair in PRESETS[preset].values() for s in pair]
    return sorted({f.name for one in settings for f in fields(one)})


def as_plain(settings: NetworkSettings | TrainingSettings) -> dict[str, Any]:
    """Return settings as JSON-able values, lists for tuples; those of a network begin with its kind."""
    kind = {"kind": settings.kind} if isinstance(settings, NetworkSettings) else {}
    return kind | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()}


def network_settings(plain: Mapping[str, Any]) -> NetworkSettings:
    """Return the network settings that :func:`as_plain` wrote.

    Raises:
        ModelError: unknown kind or field, or a value that does not fit.
    """
    values = dict(plain)
    kind = values.pop("kind", MessagePassingSettings.kind)  # models of version 1 have no kind
    if kind not in _KINDS:
        raise ModelError(f"unknown kind of network {kind!r}; known are {', '.join(sorted(_KINDS))}")
    try:
        return _KINDS[kind](**values)
    except TypeError as error:
        raise ModelError(f"the settings of a {kind} network do not fit: {error}") from None


_KINDS: dict[str, type[NetworkSettings]] = {
    c.kind: c for c in (MessagePassingSettings, SimpleSettings, DensitySettings)
}
