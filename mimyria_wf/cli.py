"""The console script ``mimyria-wf``.

The verbs here work without AiiDA: on a laptop, in a batch script, in a container; the CalcJobs of
:mod:`mimyria_wf.calculators` run them too. Verbs that need AiiDA (``run``, ``submit``, ``status``, ...) are found
through the entry point group ``mimyria_wf.verbs``, so that this module never imports it.

Every verb prints a result a human reads, or with ``--json`` one JSON object; what is wrong is one line
``error: ...`` on standard error and exit status 1, or 2 if the command line itself is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import shorten
from typing import Any, NoReturn

from mimyria_wf import __version__
from mimyria_wf.errors import MimyriaError

Progress = Callable[[int, int, str], None]


class Refusal(MimyriaError):
    """A verdict that is no success: its result is shown like any other, the exit status is 1."""

    def __init__(self, reason: str, result: dict[str, Any]) -> None:
        super().__init__(reason)
        self.result = result


@dataclass(frozen=True)
class Verb:
    """A verb: its name, one line of help, its arguments, what it does, and what a human reads of a long result."""

    name: str
    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict[str, Any]]
    text: Callable[[argparse.Namespace, dict[str, Any]], str] | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status."""
    parser = build_parser()
    chosen = parser.parse_args(arguments)
    refusal: Refusal | None = None
    try:
        result = chosen.run(chosen)
    except Refusal as error:
        result, refusal = error.result, error
    except MimyriaError as error:
        if chosen.debug:
            traceback.print_exc()
        for line in str(error).splitlines() or [type(error).__name__]:
            print(f"error: {line}", file=sys.stderr)
        return 1
    except OSError as error:
        what = error.filename or "this machine"
        print(f"error: {what}: {error.strerror or error}: check the path, permissions and free space", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; what was finished is on disk, run the same command to go on", file=sys.stderr)
        return 130
    text = json.dumps(plain(result), indent=2)
    if chosen.json_file is not None:
        partial = chosen.json_file.with_name(chosen.json_file.name + ".part")
        partial.write_text(text + "\n")
        partial.replace(chosen.json_file)
    with _closed_pipe_is_no_error():
        show(chosen, result, text)
    if refusal is not None:
        print(f"error: {refusal}", file=sys.stderr)
    return 0 if refusal is None else 1


def show(chosen: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    """Print a result for a human, or with ``--json`` for a machine."""
    if chosen.json:
        print(text)
    elif chosen.text_of is not None:
        print(chosen.text_of(chosen, result))
    elif "text" in result:
        print(result["text"])
    else:
        print(readable(plain(result)))


@contextlib.contextmanager
def _closed_pipe_is_no_error() -> Iterator[None]:
    """End quietly where the reader of our output has gone (``mimyria-wf ... | head``)."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, which a CalcJob's parser finds as well."""

    def error(self, message: str) -> NoReturn:
        """Print the complaint and exit."""
        print(f"error: {message}; see `{self.prog} --help`", file=sys.stderr)
        sys.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all verbs."""
    parser = _Parser(
        prog="mimyria-wf",
        description="From a machine-learned potential to trustworthy IR and Raman spectra.",
        epilog="Start with `mimyria-wf validate FILE.yaml`; `mimyria-wf VERB --help` explains a verb.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    shared = _Parser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print the result as one JSON object")
    shared.add_argument("--json-file", type=Path, help="write the result as JSON to this file, too")
    shared.add_argument("--debug", action="store_true", help="show where an error comes from, as a traceback")
    shared.add_argument("--quiet", action="store_true", help="no progress")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in all_verbs():
        sub = verbs.add_parser(verb.name, help=verb.help, description=verb.help, parents=[shared])
        verb.configure(sub)
        sub.set_defaults(run=verb.run, text_of=verb.text, verb=verb.name)
    return parser


def all_verbs() -> list[Verb]:
    """Return the verbs of the core and those that other parts of the package bring."""
    found = [entry.load() for entry in entry_points(group="mimyria_wf.verbs")]
    return [*sorted(found, key=lambda verb: verb.name), *CORE_VERBS]


def plain(value: Any) -> Any:
    """Return JSON-able values: NaN becomes null, paths text, arrays lists."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def readable(result: dict[str, Any], indent: str = "") -> str:
    """Return a result as indented text."""
    lines = []
    for key, value in result.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", readable(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{key}:")
            lines += [readable(entry, indent + "  - ").replace(f"\n{indent}  - ", f"\n{indent}    ") for entry in value]
        elif isinstance(value, float):
            lines.append(f"{indent}{key}: {value:.6g}")
        else:
            lines.append(f"{indent}{key}: {value}")
    return "\n".join(lines)


def labels_text(chosen: argparse.Namespace, result: dict[str, Any]) -> str:
    """Return what was labelled, at which level, and how far the labels can be trusted, with units."""
    if "largest_sum_rule_residual" not in result:
        return readable(plain(result))
    units = {"apt": ("APT", "e"), "pgt": ("PGT", "e^2 a0/E_h")}

    def by_target(values: dict[str, float | None]) -> str:
        known = [(*units[target], value) for target, value in values.items() if value is not None]
        return ", ".join(f"{name} {value:.2g} {unit}" for name, unit, value in known) or "not known from these points"

    theory = {key: value for key, value in result["level"].items() if key not in ("program", "version")}
    known = result["n_points"] - result["n_points_computed"]
    residuals, errors = result["largest_sum_rule_residual"], result["largest_error"]
    lines = [
        f"{result['labels']}: {' and '.join(units[target][0] for target in result['targets'])} of "
        f"{result['n_snapshots']} snapshot{'s' * (result['n_snapshots'] != 1)}, {result['n_atoms']} atoms, "
        f"{result['seconds']:.3g} s",
        f"{result['n_points']} points in fields of {result['field_step']:g} E_h/(e a0)"
        + (f", {known} of them known before" if known else ""),
        f"{result['engine']} {result['engine_version']}: {shorten(json.dumps(plain(theory)), 160, placeholder=' ...')}",
        f"largest estimated error: {by_target(errors)}",
        f"largest sum-rule residual: {by_target(residuals)}",
    ]
    if result["largest_net_force"] is not None:
        lines.append(f"largest net force beside that of the charge: {result['largest_net_force']:.2g} E_h/a0")
    lines += [f"warning: {warning}" for warning in result.get("warnings", [])]
    return "\n".join(lines)


def judged(chosen: argparse.Namespace, result: dict[str, Any]) -> str:
    """Return the gates and notes of a folder as a short text; the full result is in its ``summary.json``."""
    known = {True: "passed", False: "FAILED", None: "not judged"}
    verdicts = [gate["passed"] for gate in result["gates"]]
    counts = ", ".join(f"{verdicts.count(passed)} {word}" for passed, word in known.items() if passed in verdicts)
    lines = [
        f"{chosen.verb} of {result['n_trajectories']} run{'s' * (result['n_trajectories'] != 1)} in {chosen.output}/; "
        "summary.json has every number and says what each file holds",
        f"gates: {counts}" + ("; do not use these spectra before you know why" if False in verdicts else ""),
    ]
    lines += [f"  {known[gate['passed']]}: {gate['name']}: {gate['text']}" for gate in result["gates"]]
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(lines)


def progress_for(chosen: argparse.Namespace) -> Progress | None:
    """Return a progress bar with time left on standard error; None if it is no terminal or was declined."""
    if chosen.quiet or not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.start()
    task = bar.add_task("", total=None)

    def report(done: int, total: int, text: str) -> None:
        bar.update(task, completed=done, total=total, description=text)
        if done >= total:
            bar.refresh()

    return report


# ------------------------------------------------------------------------------------------- what several verbs take


def _state_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--charge", type=int, help="total charge, if the file does not say it")
    parser.add_argument("--multiplicity", type=int, help="2S + 1, if the file does not say it")


def _timestep_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timestep-fs", type=float, help="between frames, where the files do not say it")


def _device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default cpu)")


def _range_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lower", type=float, default=0.0, help="[cm^-1]")
    parser.add_argument("--upper", type=float, default=4000.0, help="[cm^-1]")


# --------------------------------------------------------------------------------------------------- md and convert


def _configure_md(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ensemble", choices=("nvt", "nve"), help="with a thermostat, or free")
    parser.add_argument("structure", type=Path, help="nvt: a structure; nve: starts (extxyz with velocities)")
    parser.add_argument(
        "--calculator",
        required=True,
        help="import path of an ASE calculator, e.g. tblite.ase.TBLite, or of a potential of torch-sim",
    )
    parser.add_argument("--arguments", type=_json_object, default={}, help="its arguments as JSON")
    parser.add_argument(
        "--engine",
        choices=("ase", "torch-sim"),
        default="ase",
        help="what kind the calculator is; torch-sim moves all NVE runs in one batch",
    )
    parser.add_argument("--device", default="cpu", help="torch-sim: cpu or cuda")
    parser.add_argument(
        "--dtype", choices=("float64", "float32"), default="float64", help="torch-sim: of the potential"
    )
    parser.add_argument("--batch-size", type=int, help="torch-sim: NVE runs at a time (default all)")
    parser.add_argument("--timestep-fs", type=float, required=True, help="MD step")
    parser.add_argument("--length-ps", type=float, required=True, help="of each run, equilibration included")
    parser.add_argument("--stride", type=int, default=1, help="steps between stored frames")
    parser.add_argument("--temperature-K", type=float, help="nvt")
    parser.add_argument("--equilibration-ps", type=float, default=0.0, help="nvt: first part, no starts from it")
    parser.add_argument("--friction-per-ps", type=float, default=10.0, help="nvt: of the Langevin thermostat")
    parser.add_argument("--n-starts", type=int, default=1, help="nvt: decorrelated starts to pick")
    parser.add_argument("--seed", type=int, default=0, help="nvt")
    _state_arguments(parser)
    parser.add_argument("--indices", type=int, nargs="+", help="nve: which of the starts")
    parser.add_argument("--remove-rotation", action="store_true", help="nve: clusters")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")


def _md(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.errors import CampaignError
    from mimyria_wf.md import NveSettings, NvtSettings, sample_nve, sample_nvt

    if chosen.ensemble == "nvt" and chosen.temperature_K is None:
        raise CampaignError("md nvt needs --temperature-K")
    calculator = {"import": chosen.calculator, "arguments": chosen.arguments}
    potential: dict[str, Any] = {
        "engine": chosen.engine,
        "device": chosen.device,
        "dtype": chosen.dtype,
        "progress": progress_for(chosen),
    }
    n_steps = round(1000 * chosen.length_ps / chosen.timestep_fs)
    if chosen.ensemble == "nvt":
        return sample_nvt(
            chosen.structure,
            chosen.output,
            calculator=calculator,
            settings=NvtSettings(
                temperature=chosen.temperature_K,
                timestep=chosen.timestep_fs,
                n_steps=n_steps,
                n_equilibration_steps=round(1000 * chosen.equilibration_ps / chosen.timestep_fs),
                stride=chosen.stride,
                friction=chosen.friction_per_ps / 1000,
                seed=chosen.seed,
            ),
            n_starts=chosen.n_starts,
            charge=chosen.charge or 0,
            multiplicity=chosen.multiplicity or 1,
            **potential,
        )
    return sample_nve(
        chosen.structure,
        chosen.output,
        calculator=calculator,
        settings=NveSettings(
            timestep=chosen.timestep_fs,
            n_steps=n_steps,
            stride=chosen.stride,
            remove_rotation=chosen.remove_rotation,
        ),
        indices=chosen.indices,
        charge=chosen.charge,
        multiplicity=chosen.multiplicity,
        batch_size=chosen.batch_size,
        **potential,
    )


def _configure_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", help="trajectories; several are joined, or --each for itself")
    parser.add_argument("-o", "--output", type=Path, required=True, help="H5MD file, or with --each a folder")
    parser.add_argument("--each", action="store_true", help="convert every file to one of its own")
    parser.add_argument("--velocities", type=Path, nargs="+", help="CP2K: velocity files, if not beside the positions")
    parser.add_argument("--timestep-fs", type=float, help="between stored frames")
    parser.add_argument("--cell-from", type=Path, help="a structure with the cell and, for other isotopes, the masses")
    parser.add_argument("--units", help="LAMMPS: unit style of the run (real, metal, ...), if the dump does not say it")
    parser.add_argument("--elements", nargs="+", help="LAMMPS: symbols of types 1, 2, ..., if the dump has none")
    parser.add_argument("--ensemble", choices=("nvt", "nve"), help="noted in the file")
    parser.add_argument("--charge", type=int, help="total charge, noted in the file")
    parser.add_argument(
        "--drop-truncated", action="store_true", help="leave out a last frame that a killed run left unfinished"
    )
    parser.add_argument("--n-starts", type=int, help="also pick decorrelated starts for NVE runs")
    parser.add_argument("--skip-frames", type=int, default=0, help="first frames that no start is picked from")
    parser.add_argument("--seed", type=int, default=0, help="of the starts")


def _convert(chosen: argparse.Namespace) -> dict[str, Any]:
    import ase.io

    from mimyria_wf.errors import TrajectoryError
    from mimyria_wf.md import convert
    from mimyria_wf.starts import pick_starts, write_starts
    from mimyria_wf.trajectory import open_trajectory

    settings: dict[str, Any] = {
        "timestep": chosen.timestep_fs,
        "charge": chosen.charge,
        "velocities": chosen.velocities,
        "units": chosen.units,
        "elements": chosen.elements,
        "drop_truncated": chosen.drop_truncated,
    }
    if chosen.cell_from is not None:
        like = ase.io.read(chosen.cell_from, index=0)
        assert isinstance(like, ase.Atoms)
        if like.pbc.any():
            settings["cell"], settings["pbc"] = like.cell.array, like.pbc.tolist()
        else:
            settings["pbc"] = False
        if like.has("masses"):  # CP2K's files hold none, and its runs use the structure's
            settings["masses"] = like.get_masses()
    if chosen.ensemble:
        settings["metadata"] = {"ensemble": chosen.ensemble, "n_equilibration_frames": chosen.skip_frames}
    if chosen.each:
        outputs = [chosen.output / f"{path.name.split('-pos-')[0].rsplit('.', 1)[0]}.h5" for path in chosen.files]
        velocities = settings.pop("velocities") or [None] * len(outputs)
        if len(velocities) != len(outputs):
            raise TrajectoryError(f"{len(outputs)} position files need as many --velocities, got {len(velocities)}")
        triples = zip(chosen.files, outputs, velocities, strict=True)
        return {"trajectories": [convert(p, out, velocities=v, **settings) for p, out, v in triples]}
    summary = convert(chosen.files, chosen.output, **settings, progress=progress_for(chosen))
    result: dict[str, Any] = {"trajectory": summary}
    if chosen.n_starts:
        starts = pick_starts(open_trajectory(chosen.output), chosen.n_starts, chosen.seed, chosen.skip_frames)
        write_starts(chosen.output.with_name("starts.extxyz"), starts)
        result["start_frames"] = [atoms.info["start_frame"] for atoms in starts]
    return result


# ------------------------------------------------------------------------------------------------ select and label


def _configure_select(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", help="trajectories")
    parser.add_argument("--n-training", type=int, required=True, help="size of the nested pool, labelled ones included")
    parser.add_argument("--n-test", type=int, required=True, help="from other trajectories")
    parser.add_argument("--seed", type=int, required=True, help="of the choice")
    parser.add_argument("--exclude", nargs="+", default=[], help="names of trajectories that are not touched")
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        default=[],
        help="add to --labelled the frames on which this model is least certain; give APT and PGT by repeating it",
    )
    parser.add_argument("--labelled", type=Path, help="with --model: what it was trained on, of the same trajectories")
    parser.add_argument("--candidates", type=int, help="with --model: frames to choose among (default 10 for each)")
    _state_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for training.extxyz, test.extxyz")


def _select(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.selection import select_files

    return select_files(
        chosen.files,
        chosen.output,
        n_training=chosen.n_training,
        n_test=chosen.n_test,
        seed=chosen.seed,
        excluded=chosen.exclude,
        models=chosen.model,
        labelled=chosen.labelled,
        n_candidates=chosen.candidates,
        charge=chosen.charge,
        multiplicity=chosen.multiplicity,
    )


def _engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", default="tblite", help="gives the forces (default tblite); `engines` lists all")
    parser.add_argument("--settings", type=_json_object, default={}, help="of the engine, as JSON")
    parser.add_argument(
        "--template",
        type=Path,
        help="of the level of theory, for engines that run a program: a file, or one of the package's CP2K templates",
    )
    parser.add_argument("--command", help="how to call the engine's program, e.g. 'mpirun -np 4 cp2k.psmp'")
    parser.add_argument(
        "--file",
        dest="file_of_engine",
        type=_named_file,
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="that the template names, may be repeated",
    )
    parser.add_argument("--method", help="tblite: GFN2-xTB (default), GFN1-xTB or IPEA1-xTB")
    parser.add_argument("--accuracy", type=float, help="tblite: smaller is tighter (0.001)")


def _chosen_engine(chosen: argparse.Namespace) -> Any:
    from mimyria_wf.campaign import path_from
    from mimyria_wf.field_engine import checked_identity, make_engine

    flags = {name: getattr(chosen, name) for name in ("command", "method", "accuracy")}
    files = dict(chosen.file_of_engine)
    if chosen.template is not None:
        files["template"] = path_from(Path.cwd(), str(chosen.template))
    settings = {**chosen.settings, **{name: value for name, value in flags.items() if value is not None}}
    return checked_identity(make_engine(chosen.engine, settings, files))


def _named_file(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not separator:
        return Path(text).name, Path(text)
    return name, Path(path)


def _configure_engines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", nargs="?", help="only this one")


def _engines(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.field_engine import engine_class, known_engines

    found = known_engines()
    names = list(found) if chosen.engine is None else [chosen.engine]
    return {"engines": [_described(engine_class(name), found[name]) for name in names]}


def _described(engine: Any, entry: Any) -> dict[str, Any]:
    return {
        "name": entry.name,
        "what": (engine.__doc__ or "").strip().partition("\n")[0],
        "class": entry.value,
        "settings": dict(engine.settings),
    }


def _configure_label(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="snapshots (extxyz), or with --derivatives a trajectory")
    _engine_arguments(parser)
    parser.add_argument("--targets", nargs="+", choices=("apt", "pgt"), default=["apt", "pgt"], help="tensors")
    parser.add_argument("--step", type=float, default=1e-3, help="field step [E_h/(e a0)]")
    parser.add_argument("-o", "--output", type=Path, help="labelled extxyz")
    parser.add_argument("--vectors", type=_json_list, help="field vectors as JSON instead of --targets and --step")
    parser.add_argument("--field-forces", type=Path, help="keep the forces in all fields in this HDF5 file")
    parser.add_argument(
        "--known", type=Path, action="append", default=[], help="further files of field forces, not computed again"
    )
    _state_arguments(parser)
    whole = parser.add_argument_group("every frame of a trajectory, contracted with its velocities")
    whole.add_argument("--derivatives", type=Path, help="file to write")
    whole.add_argument("--start", type=int, default=0, help="first frame")
    whole.add_argument("--stop", type=int, help="end of the frames")
    whole.add_argument("--volume", type=float, help="nominal volume of a cluster [A^3]")
    whole.add_argument("--keep-sum-rules", action="store_true", help="do not project")
    whole.add_argument("--groups", default="all", help="all, species, or a YAML file of groups")
    clusters = parser.add_argument_group("clusters around every molecule, at tblite's level; also of periodic systems")
    clusters.add_argument(
        "--clusters",
        action="store_true",
        help="label every molecule in the cluster cut out around it",
    )
    clusters.add_argument("--radius", type=float, help="between the nearest atoms of molecules [A] (3.5)")
    clusters.add_argument("--max-molecules", type=int, help="most molecules in one")
    clusters.add_argument("--charges", type=_formula_charges, help="of molecules, e.g. SO4=-2,Na=1")
    clusters.add_argument("--processes", type=int, help="workers that share them")


def _label(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.engines import label_file
    from mimyria_wf.errors import LabelError
    from mimyria_wf.labelling import field_forces_file, label_trajectory_file

    engine = _chosen_engine(chosen)
    common = {"charge": chosen.charge, "multiplicity": chosen.multiplicity, "progress": progress_for(chosen)}
    of_clusters = {
        "radius": chosen.radius,
        "n_molecules": chosen.max_molecules,
        "charges": chosen.charges,
        "processes": chosen.processes,
    }
    given = {key: value for key, value in of_clusters.items() if value is not None}
    if chosen.clusters:
        return _label_clusters(chosen, engine, given)
    if given:
        raise LabelError(f"label --{'max-molecules' if 'n_molecules' in given else next(iter(given))} needs --clusters")
    if chosen.derivatives is not None:
        return label_trajectory_file(
            chosen.file,
            engine,
            chosen.targets,
            chosen.step,
            chosen.derivatives,
            start=chosen.start,
            stop=chosen.stop,
            volume=chosen.volume,
            project_sum_rules=not chosen.keep_sum_rules,
            **({} if chosen.groups == "all" else {"groups": _groups(chosen.groups)}),
            **common,
        )
    if chosen.vectors is not None:
        if chosen.field_forces is None:
            raise LabelError("label --vectors needs --field-forces OUT.h5")
        return field_forces_file(chosen.file, engine, chosen.vectors, chosen.field_forces, **common)
    if chosen.output is None:
        raise LabelError("label needs -o OUT.extxyz")
    return label_file(
        chosen.file,
        engine,
        chosen.targets,
        chosen.step,
        chosen.output,
        chosen.field_forces,
        points_known=chosen.known,
        **common,
    )


def _configure_guess(parser: argparse.ArgumentParser) -> None:
    from mimyria_wf.wavefunction_extrapolation import configure

    configure(parser)


def _guess(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.wavefunction_extrapolation import run

    return run(chosen)


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("forces", "labels"), help="forces: a frame a field point; labels: tensors")
    parser.add_argument("file", type=Path, help="extxyz made elsewhere")
    parser.add_argument("--engine", required=True, help="the program that made it")
    parser.add_argument("--engine-version", default="unknown", help="its version")
    parser.add_argument("--level", type=_json_object, required=True, help="what decides the labels, as JSON")
    parser.add_argument("--field-unit", help="forces: V/A or E_h/(e a0), if the file does not say it")
    parser.add_argument("--force-unit", help="forces: eV/A or E_h/a0, if the file does not say it")
    parser.add_argument("--field-key", default="efield", help="forces: header entry with the field (efield)")
    parser.add_argument("--forces-key", help="forces: their column (forces or REF_forces)")
    parser.add_argument("--labels", type=Path, help="forces: labelled extxyz to write of the tensors that they give")
    for name, unit, axes in (
        ("apt", "e", "displacement,field or field,displacement"),
        ("pgt", "e^2 a0/E_h or A^2", "displacement,field,field or field,field,displacement"),
    ):
        parser.add_argument(f"--{name}-unit", help=f"labels: {unit}, if the file does not say it")
        parser.add_argument(f"--{name}-axes", help=f"labels: {axes}, if the file does not say it")
        parser.add_argument(f"--{name}-key", default=name, help=f"labels: their column ({name})")
    parser.add_argument("-o", "--output", type=Path, required=True, help="field forces (HDF5) or labelled extxyz")


def _import(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.label_import import Origin, import_field_forces, import_labels

    origin = Origin(chosen.engine, chosen.engine_version, chosen.level)
    if chosen.what == "forces":
        return import_field_forces(
            chosen.file,
            chosen.output,
            origin,
            field_unit=chosen.field_unit,
            force_unit=chosen.force_unit,
            field_key=chosen.field_key,
            forces_key=chosen.forces_key,
            labels=chosen.labels,
        )
    stated = {
        kind: {name: getattr(chosen, f"{name}_{kind}") for name in ("apt", "pgt")} for kind in ("unit", "axes", "key")
    }
    stated = {kind: {n: value for n, value in values.items() if value is not None} for kind, values in stated.items()}
    return import_labels(
        chosen.file, chosen.output, origin, units=stated["unit"], axes=stated["axes"], columns=stated["key"]
    )


def _configure_qualify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="one or a few snapshots (extxyz)")
    _engine_arguments(parser)
    parser.add_argument("--first", type=int, help="take only this many snapshots of the file")
    parser.add_argument("--targets", nargs="+", choices=("apt", "pgt"), default=["apt", "pgt"], help="tensors")
    parser.add_argument("--steps", type=float, nargs="+", help="field steps to screen [E_h/(e a0)]")
    parser.add_argument("--step", type=float, help="the one used while other things are screened")
    parser.add_argument("--thresholds", type=float, nargs="+", help="SCF thresholds to screen, loosest first")
    parser.add_argument("--grid", choices=("cross", "full"), help="screen every pair of step and threshold: full")
    parser.add_argument("--atoms", type=int, nargs="+", help="compare with spatial derivatives of these atoms")
    parser.add_argument("--displacement", type=float, help="of those atoms [A]")
    parser.add_argument("--displacements", type=float, nargs="+", help="further ones for the first of those atoms [A]")
    parser.add_argument("--polarizability", choices=("fields", "dfpt", "none"), help="of displaced atoms")
    parser.add_argument("--dipole-step", type=float, help="field step of the displaced atoms' dipoles [E_h/(e a0)]")
    parser.add_argument("--kpoints", type=int, nargs=3, help="along each cell vector, over which the field drops")
    parser.add_argument("--without-cross-points", action="store_true", help="leave out the points (h, -h, 0)")
    parser.add_argument("--tolerances", type=_json_object, help="that differ from the defaults, as JSON")
    _state_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder; what it holds is not computed again")


def _qualify(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.engines import checked
    from mimyria_wf.errors import LabelError
    from mimyria_wf.labelling import stated_snapshots
    from mimyria_wf.qualification import QualificationSettings, plan, qualify

    engine = _chosen_engine(chosen)
    names = ["targets", "steps", "step", "thresholds", "grid", "atoms", "displacement", "polarizability"]
    names += ["dipole_step", "kpoints", "tolerances"]
    settings = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    if chosen.displacements is not None:
        settings["screened_displacements"] = chosen.displacements
    if chosen.without_cross_points:
        settings["cross_points"] = False
    try:
        wanted = QualificationSettings(**settings)
    except (TypeError, ValueError) as error:
        raise LabelError(f"qualify: {error}") from None
    snapshots = stated_snapshots(chosen.file, chosen.charge, chosen.multiplicity)[: chosen.first]
    plan(snapshots, wanted)  # which refuses what cannot be screened, before there is a folder
    warnings = checked(engine, snapshots, wanted.targets, max(wanted.steps))
    verdict = qualify(snapshots, engine, wanted, chosen.output, progress_for(chosen))
    lines = [f"warning: {warning}" for warning in warnings]
    result = {
        **verdict.to_dict(),
        "warnings": warnings,
        "output": str(chosen.output),
        "text": "\n".join([*lines, verdict.text(), f"figures and every number are in {chosen.output}/"]),
    }
    if not verdict.accepted:
        raise Refusal(f"{chosen.file} with engine {engine.name} is {verdict.line}", result)
    return result


def _label_clusters(chosen: argparse.Namespace, engine: Any, settings: dict[str, Any]) -> dict[str, Any]:
    from mimyria_wf.cluster_labels import label_clusters_file
    from mimyria_wf.errors import LabelError

    for flag in ("vectors", "field_forces", "derivatives", "multiplicity"):
        if getattr(chosen, flag) is not None:
            raise LabelError(f"label --clusters does not go with --{flag.replace('_', '-')}")
    if chosen.output is None:
        raise LabelError("label needs -o OUT.extxyz")
    return label_clusters_file(
        chosen.file,
        engine,
        chosen.targets,
        chosen.step,
        chosen.output,
        charge=chosen.charge,
        progress=progress_for(chosen),
        **settings,
    )


def _formula_charges(text: str) -> dict[str, int]:
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        return {formula.strip(): int(charge) for formula, _, charge in pairs if formula.strip()}
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected formulas with charges such as SO4=-2,Na=1, got {text!r}") from None


# ------------------------------------------------------------------------------------------- train, predict, spectra


def _configure_train(parser: argparse.ArgumentParser) -> None:
    from mimyria_wf.presets import PRESETS

    parser.add_argument("--target", choices=("apt", "pgt"), required=True, help="apt: IR, pgt: Raman")
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="labelled extxyz")
    parser.add_argument("--test", type=Path, required=True, help="labelled extxyz, other trajectories")
    parser.add_argument("--preset", default="default", help="settings of network and training: " + ", ".join(PRESETS))
    parser.add_argument("--set", type=_json_object, default={}, help="settings that differ from the preset, as JSON")
    parser.add_argument("--first", type=int, help="use only the first so many training snapshots")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--initial-model", type=Path, help="start from this model")
    parser.add_argument("--pretraining", type=Path, help="cheaper labels to learn first, e.g. of label --clusters")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder: model.pt, metrics.json, history.csv")


def _train(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.labelling import gather_labels
    from mimyria_wf.training import train_files

    result = train_files(
        chosen.target,
        gather_labels(chosen.train, chosen.output / "training.extxyz", chosen.first),
        chosen.test,
        chosen.output,
        preset=chosen.preset,
        overrides=chosen.set,
        seed=chosen.seed,
        initial_model=chosen.initial_model,
        pretraining=chosen.pretraining,
        threads=chosen.threads,
        progress=progress_for(chosen),
    )
    species = {symbol: {k: v for k, v in e.items() if k != "by_component"} for symbol, e in _by_species(result).items()}
    shown = {key: result[key] for key in ("target", "n_train", "n_test", "n_steps", "n_parameters") if key in result}
    total = {key: value for key, value in result["test"].items() if key != "by_species"}
    return {**result, "text": readable(plain({**shown, "test": {**total, **species}, "model": str(chosen.output)}))}


def _by_species(result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = result["test"]["by_species"]
    return found


def _configure_predict(parser: argparse.ArgumentParser) -> None:
    _network_arguments(parser)
    parser.add_argument(
        "--stride",
        type=_stride,
        default="auto",
        help="frames between predicted tensors, splined in between; auto (default): the largest of 1, 2, 4, 8, 16 that "
        "changes no spectrum of a short stretch by more than --stride-tolerance",
    )
    parser.add_argument(
        "--groups",
        default="all",
        help="parts of the spectra: all (one), species (one an element), or a YAML file of groups and relations",
    )
    parser.add_argument(
        "--max-lag-fs", type=float, help="longest correlation time of relations (default 2000): the longest window"
    )
    parser.add_argument(
        "--members",
        type=int,
        default=0,
        help="of a committee, whose spread becomes the network's error in the spectra (default none; 16 are enough)",
    )
    parser.add_argument("--volume", type=float, help="nominal volume of a cluster [A^3]")
    parser.add_argument("--tensors", type=Path, help="also write every tensor to this extxyz file")
    parser.add_argument("--no-restart", action="store_true", help="do not go on with what an earlier call has left")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder (one file a trajectory)")


def _network_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", help="trajectories")
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        required=True,
        help="of `train`, an APT or a PGT model; give both by repeating it",
    )
    parser.add_argument(
        "--stride-tolerance", type=float, default=1e-3, help="largest spectral distance to stride 1 (default 1e-3)"
    )
    parser.add_argument("--batch-size", type=int, help="frames in one evaluation (default: by the number of atoms)")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores, each with frames of its own (default 1)")
    _device_argument(parser)
    parser.add_argument("--keep-sum-rules", action="store_true", help="do not project onto the acoustic sum rules")
    parser.add_argument("--charge", type=int, help="total charge, if the file does not say it")
    _timestep_argument(parser)


def _predict(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.prediction import predict_files

    return predict_files(
        chosen.model,
        chosen.files,
        chosen.output,
        stride=chosen.stride,
        groups=_groups(chosen.groups),
        **({} if chosen.max_lag_fs is None else {"max_lag": chosen.max_lag_fs}),
        volume=chosen.volume,
        members=chosen.members,
        tensors=chosen.tensors,
        restart=not chosen.no_restart,
        **_network_settings(chosen),
    )


def _network_settings(chosen: argparse.Namespace) -> dict[str, Any]:
    return {
        "stride_tolerance": chosen.stride_tolerance,
        "batch_size": chosen.batch_size,
        "threads": chosen.threads,
        "device": chosen.device,
        "projects_sum_rules": not chosen.keep_sum_rules,
        "charge": chosen.charge,
        "timestep": chosen.timestep_fs,
        "progress": progress_for(chosen),
    }


def _groups(text: str) -> str | Path:
    return text if text in ("all", "species") else Path(text)


def _check_stride(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.prediction import check_stride_files

    return check_stride_files(chosen.model, chosen.files, **_network_settings(chosen))


def _stride_text(chosen: argparse.Namespace, result: dict[str, Any]) -> str:
    return stride_text(result)


def stride_text(check: dict[str, Any]) -> str:
    """Return what a check of the stride found as a short text."""
    lines = [f"stride {check['chosen']}" + (f": {check['reason']}" if "reason" in check else "")]
    for stride, distances in check["strides"].items():
        listed = ", ".join(f"{kind} {distance:.1e}" for kind, distance in distances.items())
        lines.append(f"  every {stride} frames moves spectra by {listed}")
    return "\n".join(lines)


def _configure_groups(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="YAML file of groups and relations")
    parser.add_argument("trajectories", type=Path, nargs="+", help="the trajectories that it is meant for, all of them")
    _timestep_argument(parser)
    parser.add_argument("-o", "--output", type=Path, help="resolved YAML file; RDFs that were needed beside it")


def _groups_report(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.groups import groups_report

    return groups_report(
        chosen.file,
        chosen.trajectories,
        out=chosen.output,
        timestep=chosen.timestep_fs,
        progress=progress_for(chosen),
    )


def _configure_derive(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", type=Path, nargs="+", help="of one run in order: CP2K moments or polarizabilities, VASP runs, tables"
    )
    parser.add_argument(
        "--kind",
        choices=("dipole", "polarizability", "dielectric", "born-charges"),
        required=True,
        help="what the files hold; Born charges (VASP) are multiplied with the velocities of --trajectory",
    )
    parser.add_argument("--unit", help="tables: debye, 'e A', a.u. (dipole); a.u., A^3 (polarizability)")
    parser.add_argument("--columns", help="tables: order of columns, e.g. 'xx yy zz xy yz zx'; - leaves one out")
    parser.add_argument("--timestep-fs", type=float, help="between values, if the files do not say it")
    parser.add_argument("--temperature-K", type=float, help="of the run, or give its trajectory")
    parser.add_argument("--trajectory", type=Path, help="of the same run: gives temperature, cell and time step")
    parser.add_argument("--volume", type=float, help="[A^3], or give the cell")
    parser.add_argument("--cell", type=_json_list, help="as JSON: edges, six parameters, or three vectors [A]")
    parser.add_argument("--cluster", action="store_true", help="not periodic, if the trajectory does not say it")
    parser.add_argument("--start", type=int, default=0, help="first value")
    parser.add_argument("--stop", type=int, help="end of the values")
    parser.add_argument("--name", help="of the run")
    parser.add_argument("--beside", type=Path, help="derivatives file of the same run with the other property, to join")
    parser.add_argument("-o", "--output", type=Path, required=True, help="derivatives file OUT.h5 for `spectra`")


def _derive(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.property_series import derive_files

    return derive_files(
        chosen.files,
        chosen.output,
        kind=chosen.kind,
        unit=chosen.unit,
        columns=chosen.columns,
        timestep=chosen.timestep_fs,
        temperature=chosen.temperature_K,
        trajectory=chosen.trajectory,
        volume=chosen.volume,
        cell=chosen.cell,
        pbc=False if chosen.cluster else None,
        start=chosen.start,
        stop=chosen.stop,
        name=chosen.name,
        beside=chosen.beside,
    )


def _window_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, help="[K]; by default each run's own kinetic temperature")
    parser.add_argument("--window", choices=("hann", "boxcar"), default="hann", help="on the correlation functions")
    parser.add_argument("--window-fs", type=float, default=500.0, help="longest correlation time (default 500)")
    parser.add_argument("--estimator", choices=("unbiased", "biased"), default="unbiased", help="of the correlations")
    parser.add_argument("--upper-wavenumber-per-cm", type=float, default=4500.0, help="end of the axis (default 4500)")
    parser.add_argument(
        "--verlet-timestep-fs",
        type=float,
        help="step of the MD, not of the frames: move lines to where exact integration would have put them",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap over runs")


def _spectrum_settings(chosen: argparse.Namespace, **more: Any) -> Any:
    from mimyria_wf.spectrum import SpectrumSettings

    return SpectrumSettings(
        window=chosen.window,
        window_length=chosen.window_fs,
        estimator=chosen.estimator,
        upper_wavenumber=chosen.upper_wavenumber_per_cm,
        temperature=chosen.temperature,
        verlet_timestep=chosen.verlet_timestep_fs,
        seed=chosen.seed,
        **more,
    )


def _configure_vdos(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", help="trajectories with velocities; each counts as one sample")
    parser.add_argument("--groups", default="species", help="parts: species, all (one), or a YAML file of groups")
    _timestep_argument(parser)
    _window_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder: vdos.csv, power.csv, summary.json")


def _vdos(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.vdos import vdos_files

    return vdos_files(
        chosen.files,
        chosen.output,
        settings=_spectrum_settings(chosen),
        groups=_groups(chosen.groups),
        timestep=chosen.timestep_fs,
        progress=progress_for(chosen),
    )


def _configure_spectra(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        help="files of `predict`, `label --derivatives` or `derive`, or extxyz with vel, apt, pgt columns",
    )
    parser.add_argument("--volume", type=float, help="nominal volume of a cluster [A^3]")
    _timestep_argument(parser)
    _window_arguments(parser)
    parser.add_argument(
        "--no-difference-correction",
        action="store_true",
        help="series of `derive`: leave the damping of differences in time (sinc^2) as it is",
    )
    _geometry_argument(parser)
    _form_arguments(parser)
    _measured_argument(parser)
    parser.add_argument("--no-figures", action="store_true", help="tables only")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")


def _geometry_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--geometry",
        action="append",
        default=[],
        help="scattering geometry, e.g. 'Z(XX)-Z', 'X(ZY)Z', --geometry='-Z(XY)X', or polarisations of incident and "
        "scattered light '1,0,0:0,1,0'; may be repeated",
    )


def _form_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--statistics",
        choices=("classical", "harmonic", "bose-reduced", "susceptibility"),
        default="classical",
        help="form of the Raman intensity (default classical)",
    )
    parser.add_argument("--laser-nm", type=float, help="with the laser factor (nu_in - nu)^4 / nu_in^4")
    parser.add_argument("--photon-counting", action="store_true", help="third power in the laser factor")
    parser.add_argument("--without-inverse-square", action="store_true", help="nu^2 times the intensity")


def _has_form(chosen: argparse.Namespace) -> bool:
    return chosen.statistics != "classical" or chosen.laser_nm is not None or chosen.without_inverse_square


def _raman_form(chosen: argparse.Namespace) -> Any:
    from mimyria_wf.intensity import RamanForm

    return RamanForm(
        statistics=chosen.statistics,
        laser_nm=chosen.laser_nm,
        laser_exponent=3 if chosen.photon_counting else 4,
        is_divided=not chosen.without_inverse_square,
    )


def _measured_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--measured",
        type=Path,
        action="append",
        default=[],
        help="measured spectrum to overlay, JCAMP-DX or two columns with units in the header; may be repeated",
    )
    parser.add_argument("--measured-units", help="of both axes if the file does not say them, 'cm^-1, 10^3 cm^-1'")


def _spectra(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.spectra_files import spectra_files

    return spectra_files(
        chosen.files,
        chosen.output,
        volume=chosen.volume,
        timestep=chosen.timestep_fs,
        settings=_spectrum_settings(chosen, corrects_differences=not chosen.no_difference_correction),
        geometries=chosen.geometry,
        form=_raman_form(chosen) if _has_form(chosen) else None,
        measured=chosen.measured,
        measured_units=chosen.measured_units,
        draws=not chosen.no_figures,
        progress=progress_for(chosen),
    )


def _configure_raman(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of `spectra` (or its spectra.nc)")
    _geometry_argument(parser)
    _form_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, help="folder (default: the same)")


def _raman(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.raman_forms import raman_files

    return raman_files(chosen.folder, chosen.output, chosen.geometry, _raman_form(chosen))


def _configure_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", help="folders of `spectra` to draw on top of each other")
    parser.add_argument(
        "--spectrum",
        action="append",
        help="ir (default), iso, aniso, vv, vh, or a scattering geometry; may be repeated",
    )
    _form_arguments(parser)
    _measured_argument(parser)
    parser.add_argument("--label", action="append", default=[], help="of the folders in order, then of the measured")
    _range_arguments(parser)
    parser.add_argument(
        "--normalise",
        choices=("auto", "absolute", "maximum", "integral"),
        default="auto",
        help="auto: as they are where units agree, else to the same maximum",
    )
    parser.add_argument("--logarithmic", action="store_true", help="show decades")
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture; a PDF is written beside it")


def _plot(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.overlay import plot_files

    return plot_files(
        chosen.folders,
        chosen.output,
        spectra=chosen.spectrum or ("ir",),
        forms=[_raman_form(chosen)] if _has_form(chosen) else (),
        measured=chosen.measured,
        measured_units=chosen.measured_units,
        labels=chosen.label,
        lower=chosen.lower,
        upper=chosen.upper,
        normalise=chosen.normalise,
        is_logarithmic=chosen.logarithmic,
    )


def _configure_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, help="labelled extxyz, or folder of `spectra` (or its ir.csv, raman.csv)")
    parser.add_argument("b", type=Path, help="the reference, of the same kind")
    _range_arguments(parser)
    parser.add_argument("--plot", type=_picture, help="spectra: overlay, .png, .pdf or .svg")


def _compare(chosen: argparse.Namespace) -> dict[str, Any]:
    if chosen.a.suffix in (".extxyz", ".xyz"):
        from mimyria_wf.labelling import compare_labels

        return compare_labels(chosen.a, chosen.b)
    from mimyria_wf.spectra_files import compare_spectra

    return compare_spectra(chosen.a, chosen.b, lower=chosen.lower, upper=chosen.upper, plot=chosen.plot)


def _configure_join(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", help="derivative files of consecutive parts of one trajectory")
    parser.add_argument("-o", "--output", type=Path, required=True, help="derivatives file")


def _join(chosen: argparse.Namespace) -> dict[str, Any]:
    from mimyria_wf.derivatives import join_derivative_files

    return join_derivative_files(chosen.files, chosen.output)


def _stride(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected auto or a number of frames, got {text!r}") from None


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"a picture ends in .png, .pdf or .svg, got {text!r}")
    return path


def _json_list(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON list such as [[0, 0, 0]], got {text!r} ({error})") from None
    if not isinstance(value, list):
        raise argparse.ArgumentTypeError(f"expected a JSON list, got {text!r}")
    return value


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(
            f'expected a JSON object such as {{"key": 1}}, got {text!r} ({error})'
        ) from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value


CORE_VERBS = [
    Verb("md", "molecular dynamics with any ASE calculator: NVT, or NVE from starts", _configure_md, _md),
    Verb(
        "convert",
        "turn any trajectory (CP2K, LAMMPS, VASP, extxyz, what ASE reads) into H5MD",
        _configure_convert,
        _convert,
    ),
    Verb("select", "draw nested training snapshots and a test set from trajectories", _configure_select, _select),
    Verb("engines", "list the engines that give forces in fields, with their settings", _configure_engines, _engines),
    Verb(
        "extrapolate-wavefunction",
        "guess CP2K's wavefunction in a field from finished points",
        _configure_guess,
        _guess,
    ),
    Verb("import", "take in forces in fields, or tensors, that were made elsewhere", _configure_import, _import),
    Verb("qualify", "screen field step and SCF threshold, recommend or refuse them", _configure_qualify, _qualify),
    Verb(
        "label",
        "compute APTs and PGTs of snapshots by forces in electric fields",
        _configure_label,
        _label,
        labels_text,
    ),
    Verb("train", "train an APT or PGT network", _configure_train, _train),
    Verb(
        "predict",
        "apply networks along trajectories: dipole and polarizability derivatives",
        _configure_predict,
        _predict,
    ),
    Verb(
        "stride",
        "find how many frames may lie between predicted tensors",
        _network_arguments,
        _check_stride,
        _stride_text,
    ),
    Verb(
        "groups", "check groups and relations, and find RDF minima in trajectories", _configure_groups, _groups_report
    ),
    Verb("join", "join derivative files of consecutive parts of one trajectory", _configure_join, _join),
    Verb("derive", "turn a dipole, polarizability or dielectric series into derivatives", _configure_derive, _derive),
    Verb("vdos", "vibrational density of states and power spectra from velocities", _configure_vdos, _vdos, judged),
    Verb("spectra", "IR and Raman spectra with gates and error bars", _configure_spectra, _spectra, judged),
    Verb("raman", "other forms and geometries of Raman spectra from stored lineshapes", _configure_raman, _raman),
    Verb("plot", "draw spectra on top of each other and of measured ones", _configure_plot, _plot),
    Verb("compare", "RMSE, relative RMSE, R^2 of tensors; distance between spectra", _configure_compare, _compare),
]

if __name__ == "__main__":
    sys.exit(main())
