"""Time and memory of the way from stored derivative series to spectra.

    OMP_NUM_THREADS=1 python benchmarks/spectra.py

Three figures: one run of 5000 frames (192 atoms or any other number: the series are sums over atoms), 80 runs of
40,000 frames read from files one by one, and the cross-correlation analysis with four groups against the plain spectra
of the same runs. Times are the best of several repetitions in one process; the large case runs in a process of its own
for the sake of its peak memory. The series are noise with memory: no step depends on what they hold.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mimyria_wf.cca import additivity, cca_spectra
from mimyria_wf.derivatives import DerivativeSeries, read_derivatives, write_derivatives
from mimyria_wf.gates import ir_gates, raman_gates
from mimyria_wf.spectrum import SpectrumSettings, bootstrap_error, ir_spectrum, raman_spectrum

TIMESTEP = 0.5
SETTINGS = SpectrumSettings(window_length=500.0)
TARGETS = {"one run": "0.05 s", "all runs": "10 s", "memory": "1024 MiB", "cca": "5"}


def series_of(n_frames: int, n_groups: int = 1, seed: int = 0) -> DerivativeSeries:
    """Return a run of noise."""
    rng = np.random.default_rng(seed)
    return DerivativeSeries(
        name=f"run-{seed}",
        timestep=TIMESTEP,
        temperature=300.0,
        dipole_derivative=rng.normal(size=(n_frames, n_groups, 3)) * 1e-2,
        polarizability_derivative=rng.normal(size=(n_frames, n_groups, 6)),
        group_names=tuple(f"group {k}" for k in range(n_groups)) if n_groups > 1 else ("all",),
        volume=1900.0,
        apt_square=np.eye(3),
        pgt_square=np.eye(6),
    )


class StoredRuns:
    """Runs that are read from their files each time they are gone through, and held one at a time."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __iter__(self) -> Iterator[DerivativeSeries]:
        """Read one run after the other."""
        return (read_derivatives(path) for path in self.paths)


def best(function: Callable[[], Any], n_repeats: int = 20, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the shortest of several times [s]."""
    times = []
    for _ in range(n_repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return min(times)


def plain(runs: list[DerivativeSeries]) -> None:
    """IR and the 21 lineshapes."""
    ir_spectrum(runs, SETTINGS)
    raman_spectrum(runs, SETTINGS)


def _cost_of_parts(runs: list[DerivativeSeries]) -> float:
    total = best(lambda: plain(runs), 5, time.process_time)
    return best(lambda: cca_spectra(runs, SETTINGS), 5, time.process_time) / total


def everything(folder: Path) -> dict[str, float]:
    """Make all spectra of the files in a folder with bootstrap errors and gates; return time and peak memory."""
    start, own = time.perf_counter(), time.process_time()
    runs = StoredRuns(sorted(folder.glob("*.h5")))
    ir = ir_spectrum(runs, SETTINGS)
    raman = raman_spectrum(runs, SETTINGS)
    seconds = {"spectra": time.perf_counter() - start}
    found = [ir.n_alpha, ir.error, ir.tensor, ir.tensor_error, raman.depolarization]
    found += [*raman.weighted.values(), *raman.weighted_errors.values(), *raman.errors.values()]
    found.append(bootstrap_error(raman.per_trajectory, raman.runs, SETTINGS))
    seconds["errors"] = time.perf_counter() - start - sum(seconds.values())
    ir_gates(ir, runs)
    raman_gates(raman, runs)
    seconds["gates"] = time.perf_counter() - start - sum(seconds.values())
    seconds["all"] = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**seconds, "processor": time.process_time() - own, "memory": memory, "n_spectra": float(len(found))}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=80)
    parser.add_argument("--frames", type=int, default=40_000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(everything(arguments.measure)))
        return
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short = series_of(5000)
        write_derivatives(folder / "short.h5", short)
        rows.append(("5000 frames: IR + 21 lineshapes", f"{best(lambda: plain([short])):.4f} s", TARGETS["one run"]))
        read = best(lambda: plain([read_derivatives(folder / "short.h5")]))
        rows.append(("  the same with reading the file", f"{read:.4f} s", TARGETS["one run"]))
        (folder / "short.h5").unlink()
        grouped = [series_of(5000, n_groups=4, seed=k) for k in range(4)]
        # alternately in one process and by its own time, so that a busy machine does not spoil the ratio
        ratio = float(np.median([_cost_of_parts(grouped) for _ in range(5)]))
        rows.append(("CCA of 4 groups / plain, 4 x 5000 frames", f"{ratio:.2f}", TARGETS["cca"]))
        cca = cca_spectra(grouped, SETTINGS)
        assert cca is not None
        off = additivity(cca, ir_spectrum(grouped, SETTINGS), raman_spectrum(grouped, SETTINGS))
        rows.append(("  parts against total, largest of 22", f"{max(off.values()):.1e}", "1e-10"))
        for k in range(arguments.runs):
            write_derivatives(folder / f"{k:03d}.h5", series_of(arguments.frames, seed=k))
        command = [sys.executable, __file__, "--measure", str(folder)]
        large = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    title = f"{arguments.runs} x {arguments.frames} frames from files"
    rows.append((f"{title}: all", f"{large['all']:.2f} s", TARGETS["all runs"]))
    rows.append(("  time of the process alone", f"{large['processor']:.2f} s", ""))
    for part in ("spectra", "errors", "gates"):
        rows.append((f"  {part}", f"{large[part]:.2f} s", ""))
    rows.append(("  peak memory of the process", f"{large['memory']:.0f} MiB", TARGETS["memory"]))
    width = max(len(row[0]) for row in rows)
    print(f"{'':{width}}  {'found':>10}  {'at most':>10}")
    for label, found, target in rows:
        print(f"{label:{width}}  {found:>10}  {target:>10}")


if __name__ == "__main__":
    main()
