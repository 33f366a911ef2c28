"""All NVE runs of a campaign in one batch on one device, with torch-sim.

Velocity Verlet in torch-sim's units (A, u, eV; its time is sqrt(u A^2/eV), ASE's too):

    p(t + dt/2) = p(t) + F(t) dt/2;  r(t + dt) = r(t) + p(t + dt/2) dt/m;  p(t + dt) = p(t + dt/2) + F(t + dt) dt/2,

so that the velocities that are written belong to the positions beside them. Positions and momenta are in float64
whatever the precision of the potential: the increment of a position is 1e-3 to 1e-5 of it, of which float32 would keep
2 to 4 digits, and the energy would drift. What comes out is what :func:`mimyria_wf.dynamics.run_nve` writes, from the
same starts: one H5MD file for each, unwrapped positions, the same summary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ase
import ase.units
import numpy as np
import torch

from mimyria_wf import units
from mimyria_wf.dynamics import (
    MAX_STEP,
    OBSERVABLES,
    PROGRESS_INTERVAL,
    NveSettings,
    check_sanity,
    finished_run,
    prepare_nve,
    run_fingerprint,
)
from mimyria_wf.errors import EngineError, TrajectoryError
from mimyria_wf.frames import Array, TrajectoryReader
from mimyria_wf.md_summary import MdSummary, summarise
from mimyria_wf.torchsim_models import Potential, engine_name, import_torch_sim, make_model, make_state
from mimyria_wf.trajectory import Progress, TrajectoryWriter, open_trajectory

TIME = ase.units.fs
"""1 fs in sqrt(u A^2/eV); ASE's and torch-sim's, which are both of CODATA 2014."""


@dataclass
class _Run:
    """One trajectory of a batch."""

    label: str
    path: Path
    atoms: ase.Atoms
    velocities: Array
    metadata: dict[str, Any]
    n_frames: int = 0
    writer: TrajectoryWriter | None = None
    summary: MdSummary | None = None


def run_nve_batch(
    starts: Mapping[Path, ase.Atoms],
    calculator: Mapping[str, Any],
    settings: NveSettings,
    *,
    device: str = "cpu",
    dtype: str = "float64",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> list[MdSummary]:
    """Run velocity Verlet from many starts at once and write steps 0, stride, ... below ``n_steps`` of each.

    Finished files of the same runs are kept, and what a killed run left is gone on from. A run that explodes leaves the
    batch; the others go on to their end before the error is raised.

    Args:
        starts: with velocities, and the H5MD file of each; they may differ in atoms and cell.
        calculator: ``import`` (path) and ``arguments`` of a potential of torch-sim, see
            :func:`mimyria_wf.torchsim_models.make_model`.
        settings: of every run.
        device: "cpu" or "cuda".
        dtype: of the potential; positions and momenta are in float64.
        batch_size: runs at a time, as far as the device's memory goes; all by default.
        progress: called with (steps done, steps in all, name) over all runs.

    Returns:
        the summaries, in the order of the starts. ``seconds`` is a run's share of the time of its batch.

    Raises:
        EngineError: a start or the potential cannot be used, the potential fails, or runs have exploded.
    """
    if batch_size is not None and batch_size < 1:
        raise EngineError(f"the batch size must be at least 1, got {batch_size}")
    potential = Potential(make_model(calculator["import"], calculator.get("arguments"), device, dtype))
    engine = engine_name(calculator, dtype)
    runs = [_plan(path, start, settings, engine, device) for path, start in starts.items()]
    pending = [run for run in runs if run.summary is None]
    if pending:
        make_state([run.atoms for run in pending], potential.device, torch.float64)  # refuses before the first step
    report = _Report(progress, len(runs), settings)
    report.done(len(runs) - len(pending))
    size = batch_size or max(len(pending), 1)
    failures: list[str] = []
    for first in range(0, len(pending), size):
        batch = _Batch(pending[first : first + size], potential, settings, report)
        batch.run()
        failures += batch.failures
    if failures:
        rest = f"; {len(failures) - 1} more of {len(runs)} runs failed" if len(failures) > 1 else ""
        raise EngineError(failures[0] + rest)
    return [run.summary for run in runs if run.summary is not None]


def _plan(path: Path, start: ase.Atoms, settings: NveSettings, engine: str, device: str) -> _Run:
    """Return what is to be done for a start: nothing, the rest of a killed run, or all of it."""
    try:
        atoms, velocities, metadata = prepare_nve(start, settings)
    except EngineError as error:
        raise EngineError(f"{path.stem}: {error}") from error
    fingerprint = run_fingerprint(atoms, velocities, settings, engine)
    run = _Run(path.stem, path, atoms, velocities, {})
    finished = finished_run(path, fingerprint)
    if finished is not None:
        run.summary = summarise(finished, was_skipped=True)
        return run
    run.metadata = {
        **metadata,
        **atoms.info,
        "engine": engine,
        "device": device,
        "ase": ase.__version__,
        "torch": torch.__version__,
        "torch_sim": _torch_sim_version(),
        "settings": asdict(settings),
        "settings_sha256": fingerprint,
    }
    return run


def _torch_sim_version() -> str:
    try:
        return version("torch-sim-atomistic")
    except PackageNotFoundError:  # a checkout on the path
        return "unknown"


@dataclass
class _Report:
    """Progress over all runs."""

    progress: Progress | None
    n_runs: int
    settings: NveSettings
    last: float = field(default_factory=time.perf_counter)
    n_done: int = 0

    def done(self, n_runs: int) -> None:
        self.n_done += n_runs * (self.settings.last_step + 1)

    def __call__(self, n_steps: int, is_last: bool) -> None:
        """Say how many steps the batch at work has done beyond those of finished ones."""
        if self.progress is not None and (is_last or time.perf_counter() > self.last + PROGRESS_INTERVAL):
            self.last = time.perf_counter()
            total = self.n_runs * (self.settings.last_step + 1)
            self.progress(self.n_done + n_steps, total, f"{self.n_runs} NVE runs")


class _Batch:
    """Runs that move together; those that end or explode leave."""

    def __init__(self, runs: Sequence[_Run], potential: Potential, settings: NveSettings, report: _Report) -> None:
        self.runs = list(runs)
        self.everything = list(runs)
        self.potential = potential
        self.settings = settings
        self.report = report
        self.n_frames = settings.last_step // settings.stride + 1
        self.failures: list[str] = []
        self.n_computed = self.n_since_frame = 0
        self.began = time.perf_counter()
        self.velocity_verlet = import_torch_sim("torch_sim.integrators.md").velocity_verlet
        self.timestep = torch.tensor(settings.timestep * TIME, dtype=torch.float64, device=potential.device)

    def run(self) -> None:
        """Move all to their end and write them.

        Raises:
            EngineError: the potential fails.
        """
        try:
            for run in self.runs:
                _open_writer(run, self.settings)
            self._set_up()
            self._drop_exploded()
            self._store()
            while self.runs:
                for _ in range(self.settings.stride):
                    self._step()
                    self._drop_exploded()
                    if not self.runs:
                        break
                else:
                    self._store()
        except EngineError as error:
            first, last = self.everything[0].label, self.everything[-1].label
            names = first if first == last else f"{first} to {last}"
            raise EngineError(f"{names}, step {self.n_computed} of the batch: {error}") from error
        finally:
            for run in self.runs:  # those at their end have left
                if run.writer is not None:
                    run.writer.close(is_complete=False)
        self.report.done(len(self.everything))

    def _set_up(self) -> None:
        state = make_state([run.atoms for run in self.runs], self.potential.device, torch.float64)
        velocities = torch.as_tensor(np.concatenate([run.velocities for run in self.runs]), device=state.device) / TIME
        found = self.potential.check(state)
        self.state = import_torch_sim("torch_sim.integrators.md").MDState(
            positions=state.positions,
            momenta=velocities * state.masses[:, None],
            energy=found["energy"],
            forces=found["forces"],
            masses=state.masses,
            cell=state.cell,
            pbc=state.pbc,
            system_idx=state.system_idx,
            atomic_numbers=state.atomic_numbers,
        )
        self.images = torch.zeros_like(state.positions)

    def _step(self) -> None:
        """Move by one step; torch-sim wraps positions into the cell, so the crossings of its faces are counted."""
        before = self.state.positions
        self.state = self.velocity_verlet(self.state, self.timestep, self.potential)
        if self.state.pbc:
            jump = before - self.state.positions
            inverse = torch.linalg.inv(self.state.cell)
            crossed = torch.einsum("iab,ib->ia", inverse[self.state.system_idx], jump)
            self.images = self.images + torch.round(crossed)
        self.n_computed += 1
        self.n_since_frame += 1

    def _drop_exploded(self) -> None:
        """Take out the runs whose next positions would be wrong, before they reach a neighbour list."""
        next_velocities = (self.state.momenta + self.state.forces * (self.timestep / 2)) / self.state.masses[:, None]
        way = (next_velocities * next_velocities).sum(1).max() * self.timestep**2  # NaN if one force is NaN
        # a single number leaves the device in a step that is in order
        if bool(torch.isfinite(self.state.energy.sum()) & (way <= MAX_STEP**2)):
            return
        velocities = (next_velocities * TIME).cpu().numpy()
        energies = self.state.energy.cpu().numpy()
        kept = []
        for i, (run, rows) in enumerate(zip(self.runs, self._rows(), strict=True)):
            step = max(run.n_frames - 1, 0) * self.settings.stride + self.n_since_frame
            try:
                check_sanity(velocities[rows], energies[i], self.settings.timestep, step, run.atoms)
                kept.append(i)
            except EngineError as error:
                self.failures.append(f"{run.path.name}: {error}")
                assert run.writer is not None
                run.writer.close(is_complete=False)
        self._keep(kept)

    def _keep(self, kept: list[int]) -> None:
        """Go on with some of the runs."""
        if len(kept) == len(self.runs):
            return
        rows = self._rows()
        self.runs = [self.runs[i] for i in kept]
        if kept:
            atoms = torch.as_tensor(np.concatenate([np.arange(rows[i].start, rows[i].stop) for i in kept]))
            self.images = self.images[atoms.to(self.images.device)]
            self.state = self.state[kept]

    def _rows(self) -> list[slice]:
        ends = np.cumsum([len(run.atoms) for run in self.runs])
        return [slice(end - len(run.atoms), end) for end, run in zip(ends.tolist(), self.runs, strict=True)]

    def _velocities(self) -> Array:
        return (self.state.momenta / self.state.masses[:, None] * TIME).cpu().numpy()

    def _store(self) -> None:
        """Write the frame of every run; those at their end leave."""
        if not self.runs:
            return
        self.n_since_frame = 0
        positions = self.state.positions
        if self.state.pbc:
            positions = positions + torch.einsum("iab,ib->ia", self.state.cell[self.state.system_idx], self.images)
        all_positions, all_velocities = positions.cpu().numpy(), self._velocities()
        energies = self.state.energy.cpu().numpy()
        kept = []
        for i, (run, rows) in enumerate(zip(self.runs, self._rows(), strict=True)):
            assert run.writer is not None
            velocities = all_velocities[rows]
            if run.n_frames == 0:
                velocities = run.velocities  # bit by bit
            if run.n_frames == run.writer.n_frames:  # the first frame after a restart is there already
                masses = run.atoms.get_masses()
                kinetic = 0.5 * units.AMU_A2_PER_FS2 * float(masses @ (velocities * velocities).sum(axis=1))
                run.writer.append(
                    all_positions[rows],
                    velocities,
                    potential_energy=float(energies[i]),
                    kinetic_energy=kinetic,
                    temperature=kinetic / (run.metadata["degrees_of_freedom"] * units.BOLTZMANN_EV / 2),
                )
            run.n_frames += 1
            if run.n_frames < self.n_frames:
                kept.append(i)
            else:
                self._finish(run)
        steps = sum((run.n_frames - 1) * self.settings.stride + 1 for run in self.everything)
        self.report(steps, is_last=not kept)
        self._keep(kept)

    def _finish(self, run: _Run) -> None:
        assert run.writer is not None
        run.writer.metadata["seconds"] = round((time.perf_counter() - self.began) / len(self.everything), 3)
        run.writer.metadata["batch_size"] = len(self.everything)
        run.writer.close()
        run.summary = summarise(open_trajectory(run.path))


def _open_writer(run: _Run, settings: NveSettings) -> None:
    """Open the file of a run, with the frames that a killed run of the same kind left, and start from the last."""
    aside = run.path.with_suffix(".killed.h5")
    left = [part for part in (_part(run.path, run), _part(aside, run)) if part is not None]
    longest = max(left, key=lambda part: part.n_frames, default=None)
    if longest is not None and longest.path == run.path:
        run.path.replace(aside)
        longest = _part(aside, run)
    run.writer = TrajectoryWriter(
        run.path,
        run.atoms.numbers,
        settings.timestep * settings.stride,
        cell=run.atoms.cell[:],
        pbc=run.atoms.pbc,
        masses=run.atoms.get_masses(),
        metadata=run.metadata,
        observables=OBSERVABLES,
    )
    if longest is None:
        aside.unlink(missing_ok=True)
        return
    for _, chunk in longest.chunks(1000):
        run.writer.extend(chunk)
        last = chunk
    run.writer.metadata["restarted_at_frame"] = longest.n_frames - 1
    run.writer.flush()
    aside.unlink()
    assert last.velocities is not None
    run.atoms.positions, run.velocities = last.positions[-1], last.velocities[-1]
    run.n_frames = longest.n_frames - 1


def _part(path: Path, run: _Run) -> TrajectoryReader | None:
    if path.is_file():
        with suppress(TrajectoryError):  # unreadable: run again
            reader = open_trajectory(path)
            if reader.metadata.get("settings_sha256") == run.metadata["settings_sha256"]:
                return reader
    return None
