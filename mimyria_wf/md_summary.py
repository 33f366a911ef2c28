"""What is worth knowing about a trajectory: temperature, energy drift, checksum."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimyria_wf import units
from mimyria_wf.frames import TrajectoryReader, kinetic_energies

Array = NDArray[Any]

LARGEST_CORRELATION = -0.9
"""Of kinetic and potential energy, for a run of an unknown ensemble to count as one that conserves its energy."""


@dataclass(frozen=True)
class MdSummary:
    """What is worth knowing about a trajectory.

    Attributes:
        name: of the trajectory.
        path: of its file.
        n_frames: stored.
        n_atoms: in a frame.
        timestep: between stored frames [fs].
        temperature: mean kinetic temperature after the equilibration [K]; None without velocities.
        temperature_std: of the frames [K].
        degrees_of_freedom: that the kinetic temperature counts.
        energy_drift: slope of a linear fit to the total energy [meV/(ps atom)]; None where it is not conserved or
            not in the file.
        energy_std: of the total energy around that line [meV/atom].
        sha256: of the file.
        seconds: that the run took; None for a trajectory made elsewhere.
        was_skipped: a finished run with the same settings was found.
        energy_fluctuation_ratio: energy_std over the standard deviation of the kinetic energy; None as energy_drift,
            and where nothing says that the run conserves its energy and it does not look so.
    """

    name: str
    path: str
    n_frames: int
    n_atoms: int
    timestep: float
    temperature: float | None
    temperature_std: float | None
    degrees_of_freedom: int
    energy_drift: float | None
    energy_std: float | None
    sha256: str
    seconds: float | None = None
    was_skipped: bool = False
    energy_fluctuation_ratio: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarise(reader: TrajectoryReader, was_skipped: bool = False) -> MdSummary:
    """Return the summary of a trajectory file."""
    thermodynamics = _thermodynamics(reader)
    return MdSummary(
        name=reader.name,
        path=str(reader.path),
        n_frames=reader.n_frames,
        n_atoms=reader.n_atoms,
        timestep=reader.timestep,
        temperature=thermodynamics.temperature,
        temperature_std=thermodynamics.temperature_std,
        degrees_of_freedom=thermodynamics.degrees_of_freedom,
        energy_drift=thermodynamics.energy_drift,
        energy_std=thermodynamics.energy_std,
        sha256=_sha256(reader.path),
        seconds=reader.metadata.get("seconds"),
        was_skipped=was_skipped,
        energy_fluctuation_ratio=thermodynamics.energy_fluctuation_ratio,
    )


@dataclass(frozen=True)
class _Thermodynamics:
    """What the frames of a trajectory say, see :class:`MdSummary`."""

    temperature: float | None
    temperature_std: float | None
    degrees_of_freedom: int
    energy_drift: float | None
    energy_std: float | None
    energy_fluctuation_ratio: float | None


def _thermodynamics(reader: TrajectoryReader) -> _Thermodynamics:
    """Read a trajectory once."""
    is_conserving = reader.metadata.get("ensemble") != "nvt"
    kinetic, potential = [], []
    degrees_of_freedom = max(3 * reader.n_atoms - 3, 1)
    for _, chunk in reader.chunks(2000):
        degrees_of_freedom = chunk.degrees_of_freedom
        if chunk.velocities is not None:
            kinetic.append(kinetic_energies(chunk.velocities, chunk.masses))
        if "potential_energy" in chunk.observables:
            potential.append(chunk.observables["potential_energy"])
    temperature = temperature_std = drift = std = ratio = None
    if kinetic:
        first = int(reader.metadata.get("n_equilibration_frames", 0))
        series = np.concatenate(kinetic)
        temperatures = 2 * series[first:] / (degrees_of_freedom * units.BOLTZMANN_EV)
        if len(temperatures):
            temperature, temperature_std = float(temperatures.mean()), float(temperatures.std())
        if potential and is_conserving and len(series) > 2:
            total = 1e3 * (np.concatenate(potential) + series) / reader.n_atoms
            times = 1e-3 * reader.timestep * np.arange(len(total))
            line = np.polynomial.Polynomial.fit(times, total, 1)
            drift = float(line.convert().coef[1]) if np.ptp(total) > 0 else 0.0
            std = float((total - line(times)).std())
            ratio = _fluctuation_ratio(
                series, np.concatenate(potential), std * reader.n_atoms / 1e3, reader.metadata.get("ensemble") == "nve"
            )
    return _Thermodynamics(temperature, temperature_std, degrees_of_freedom, drift, std, ratio)


def _fluctuation_ratio(kinetic: Array, potential: Array, total_std: float, is_nve: bool) -> float | None:
    """Return the fluctuation of the total energy in those of the kinetic one, (n_frames,) and total_std in eV.

    A run of an unknown ensemble is taken to conserve its energy where the potential energy falls as the kinetic one
    rises, whatever the unit of either: a thermostat leaves them little to do with each other.
    """
    own, other = float(kinetic.std()), float(potential.std())
    # a few frames, or an atom that flies on its own, tell nothing
    if len(kinetic) < 10 or own <= 1e-9 * abs(float(kinetic.mean())) or other == 0:
        return None
    correlation = float(np.mean((kinetic - kinetic.mean()) * (potential - potential.mean()))) / (own * other)
    return total_std / own if is_nve or correlation < LARGEST_CORRELATION else None


def energy_conservation(reader: TrajectoryReader) -> dict[str, float | None]:
    """Return what the gates ask of a run's energies, for the metadata of what is made from it; see :class:`MdSummary`.

    Returns:
        energy_drift [meV/(ps atom)] and energy_fluctuation_ratio; None where they are unknown.
    """
    if not reader.has_velocities:
        return {"energy_drift": None, "energy_fluctuation_ratio": None}
    found = _thermodynamics(reader)
    return {"energy_drift": found.energy_drift, "energy_fluctuation_ratio": found.energy_fluctuation_ratio}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
