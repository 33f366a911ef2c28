"""The campaign file: what a user writes in YAML, checked key by key before anything else happens.

:func:`load_campaign` reads the file; every mistake in it becomes one line that names the key, what was expected, what
was found, what to do, the file and the line. What needs other files (structures, templates, trajectories, models) is
looked at by :mod:`mimyria_wf.campaign_check`.

Keys carry their unit (``timestep_fs``, ``temperature_K``); the properties of the sections give the same values in the
units of the core (fs, 1/fs, A, K, atomic units of field).
"""

import hashlib
import importlib.metadata
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mimyria_wf.campaign_file import CampaignFileError, KeyPath, Problem, Source, is_number, read_yaml, shown
from mimyria_wf.campaign_messages import group_mistakes, key_below, problems_of, section_of, suggestion, wrong
from mimyria_wf.presets import PRESETS

if TYPE_CHECKING:
    from ase import Atoms

    from mimyria_wf.cp2k_input import Section as Cp2kSection
    from mimyria_wf.frames import TrajectoryReader
    from mimyria_wf.group_schema import GroupScheme
    from mimyria_wf.md import NveSettings, NvtSettings
    from mimyria_wf.presets import NetworkSettings, TrainingSettings
    from mimyria_wf.qualification import QualificationSettings
    from mimyria_wf.spectrum import SpectrumSettings

    Preset = str
else:
    Preset = Literal[tuple(sorted(PRESETS))]

Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
NotNegative = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]
Fraction = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=1)]
Int = Annotated[int, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1)]
Index = Annotated[int, Field(strict=True, ge=0)]
Bool = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True, min_length=1)]
Target = Literal["apt", "pgt"]
Device = Literal["cpu", "cuda"]
Step = Literal["md", "labels", "training", "prediction", "spectra"]

RUNS_ONLY: dict[str, Any] = {"runs_only": True}
"""Marks a field that changes how the campaign runs but not its results; left out of :meth:`Campaign.content_key`."""
FILE: dict[str, Any] = {"file": True}
"""Marks a field that holds a path (or a list of them), relative to the campaign file."""
ORDERED: dict[str, Any] = {"ordered": True}
"""Marks a mapping whose order means something."""

RESOURCES = (
    "num_machines",
    "num_mpiprocs_per_machine",
    "num_cores_per_machine",
    "num_cores_per_mpiproc",
    "tot_num_mpiprocs",
    "parallel_env",
)
"""Keys of AiiDA's scheduler resources."""
DEFAULT_FIELD_STEPS: Mapping[str, float] = {"tblite": 1e-3}
"""Field steps [E_h/(e a0)]: on the plateau for tblite; :data:`PAPER_FIELD_STEP` for all others."""
PAPER_FIELD_STEP = 5e-4
"""Minimum of the curves in Figs. 1 and 2 of the paper [E_h/(e a0)]."""
TIGHTEST_SCF: Mapping[str, float] = {"cp2k": 1e-10, "vasp": 1e-9}
"""Thresholds that an SCF can still be expected to get to; a tenth of the labels' own is not tried below it."""
DEFAULT_SNAPSHOTS_PER_JOB: Mapping[str, int] = {"tblite": 20}
ENGINES = ("tblite", "cp2k", "vasp")
"""Label engines with keys of their own in a campaign file; others are known by name and take `labels.settings`."""
THRESHOLD_ENGINES = ("cp2k", "vasp")
"""Engines whose SCF threshold a campaign may set beside their template."""


class Section(BaseModel):
    """A part of the campaign file: unknown keys are errors, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _cell(value: Any) -> Any:
    """Return three vectors from three lengths or three vectors, all numbers [A]."""
    if value is None:
        return None
    rows = list(value) if isinstance(value, list | tuple) else [value]
    if len(rows) == 3 and all(is_number(x) for x in rows):
        rows = [[float(x) if i == j else 0.0 for j in range(3)] for i, x in enumerate(rows)]
    is_matrix = len(rows) == 3 and all(
        isinstance(r, list | tuple) and len(r) == 3 and all(is_number(x) for x in r) for r in rows
    )
    if not is_matrix:
        remedy = "give three lengths for an orthorhombic cell, or one row for each of the three cell vectors"
        if len(rows) == 6:
            remedy = "three lengths and three angles go under cell_A_deg"
        raise wrong("", f"must be [a, b, c] or three rows of three numbers, got {shown(value)}", remedy)
    if np.linalg.det(np.array(rows, dtype=float)) <= 0:
        raise wrong(
            "",
            f"must be a right-handed cell of positive volume, got {shown(value)}",
            "check the lengths and the order of the cell vectors; leave the cell out for a cluster",
        )
    return tuple(tuple(float(x) for x in r) for r in rows)


def _angles(cell: np.ndarray) -> np.ndarray:
    """Return alpha, beta, gamma of cell vectors [degrees]."""
    a, b, c = cell / np.linalg.norm(cell, axis=1)[:, None]
    return np.degrees(np.arccos([b @ c, a @ c, a @ b]))


def _pbc(value: Any) -> Any:
    """Return three booleans from one or three."""
    if isinstance(value, bool):
        return (value,) * 3
    if value is None or (
        isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(x, bool) for x in value)
    ):
        return None if value is None else tuple(value)
    raise wrong("", f"must be true, false or three of them, got {shown(value)}", "write e.g. pbc: true")


def _file_or_mapping(value: Any) -> Any:
    """Return a path or a mapping."""
    if value is None or (isinstance(value, str | dict) and value):
        return value
    raise wrong("", f"must be a file or a section of keys and values, got {shown(value)}", "name a file")


def _number_or_auto(value: Any) -> Any:
    """Return ``auto`` or a positive number."""
    if value is None or value == "auto" or (is_number(value) and value > 0):
        return value
    raise wrong("", f"must be auto or a positive number, got {shown(value)}", "write auto, or a number such as 5.0e-4")


def _stride(value: Any) -> Any:
    """Return ``auto`` or a number of frames."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise wrong(
        "",
        f"must be auto or a whole number of at least 1, got {shown(value)}",
        "write auto, or 1 to predict every frame",
    )


Row = tuple[float, float, float]


class System(Section):
    """The atoms, their charge and their box."""

    structure: Text | None = Field(
        None,
        description="Start structure, any format that ASE reads. Needed with `sampling:`, not with `trajectories:`.",
        json_schema_extra=FILE,
    )
    cell_A: Annotated[tuple[Row, Row, Row] | None, BeforeValidator(_cell)] = Field(
        None,
        description="Cell: one row for each cell vector, or `[a, b, c]` if the cell is orthorhombic. "
        "By default the one in the structure file.",
    )
    cell_A_deg: tuple[Positive, Positive, Positive, Positive, Positive, Positive] | None = Field(
        None, description="Cell as `[a, b, c, alpha, beta, gamma]`, for a cell of any shape."
    )
    pbc: Annotated[tuple[bool, bool, bool] | None, BeforeValidator(_pbc)] = Field(
        None,
        description="Whether the system is periodic, `true`, `false` or three of them. By default what the structure "
        "file says, and true where a cell is given here.",
    )
    charge: Int = Field(0, description="Total charge [e].")
    multiplicity: Count = Field(1, description="Spin multiplicity, 2S + 1.")
    volume_A3: Positive | None = Field(
        None,
        description="Clusters only: nominal volume that n(w) alpha(w) refers to. For a periodic system the cell's.",
    )
    allow_small_cell: Bool = Field(
        False,
        description="Accept a network cutoff beyond the shortest height of the cell, where an atom sees its own image.",
    )

    @model_validator(mode="after")
    def _one_cell(self) -> Self:
        if self.cell_A is not None and self.cell_A_deg is not None:
            raise wrong("cell_A_deg", "is given together with cell_A", "keep one of the two")
        if self.cell_A_deg is not None:
            alpha, beta, gamma = self.cell_A_deg[3:]
            if not (all(a < 180 for a in (alpha, beta, gamma)) and self._cell_volume_factor() > 0):
                raise wrong(
                    "cell_A_deg",
                    f"must have angles that span a volume, got {alpha:g}, {beta:g}, {gamma:g} degrees",
                    "give [a, b, c, alpha, beta, gamma] with lengths first",
                )
        if self.is_periodic is True and self.volume_A3 is not None:
            raise wrong(
                "volume_A3", "is for clusters, but the system is periodic", "remove it: the cell's volume is used"
            )
        return self

    def _cell_volume_factor(self) -> float:
        """Return (V/abc)^2 of ``cell_A_deg``; positive if the three angles are possible together."""
        assert self.cell_A_deg is not None
        a, b, c = np.cos(np.radians(self.cell_A_deg[3:]))
        return float(1 - a * a - b * b - c * c + 2 * a * b * c)

    @property
    def cell(self) -> np.ndarray | None:
        """Cell given in the campaign, (3, 3) with cell vectors as rows [A]; None if the structure file decides."""
        if self.cell_A is not None:
            return np.array(self.cell_A, dtype=float)
        if self.cell_A_deg is not None:
            from ase.geometry import cellpar_to_cell

            return np.asarray(cellpar_to_cell(self.cell_A_deg), dtype=float)
        return None

    @property
    def is_periodic(self) -> bool | None:
        """Whether the campaign says that the system is periodic; None if the structure file decides."""
        if self.pbc is not None:
            return any(self.pbc)
        return True if self.cell_A is not None or self.cell_A_deg is not None else None


class CalculatorSection(Section):
    """An ASE calculator by its import path."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    import_path: Text = Field(
        alias="import", description="Import path of the class or function, `tblite.ase.TBLite` or `module:name`."
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="Its keyword arguments. One that names a file: list the same name under `sampling.files`.",
    )

    @field_validator("import_path")
    @classmethod
    def _looks_like_a_path(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*(\.[A-Za-z_]\w*)*", value):
            raise wrong("", f"must be an import path, got {shown(value)}", "write e.g. tblite.ase.TBLite")
        return value


class Nvt(Section):
    """The thermostatted run from which the starts of the NVE runs are drawn."""

    length_ps: Positive = Field(description="Length of the run, equilibration included.")
    equilibration_ps: NotNegative = Field(
        0.0, description="First part of the run, from which no starts are drawn. Must be shorter than the run."
    )
    stride: Count = Field(20, description="Steps between stored frames; starts are chosen among these.")
    friction_per_ps: Positive | None = Field(
        None, description="Friction of the Langevin thermostat (default 10); not with `engine: cp2k`."
    )
    time_constant_fs: Positive | None = Field(
        None, description="`engine: cp2k`: time constant of the CSVR thermostat (default 50)."
    )

    @model_validator(mode="after")
    def _leaves_frames(self) -> Self:
        if self.equilibration_ps >= self.length_ps:
            raise wrong(
                "equilibration_ps",
                f"must be shorter than the NVT run of {self.length_ps:g} ps, got {self.equilibration_ps:g}",
                "lengthen nvt.length_ps: it includes the equilibration",
            )
        return self


class Nve(Section):
    """The free runs whose velocities make the spectra."""

    n_trajectories: Count = Field(description="Number of NVE runs, each from its own NVT frame.")
    length_ps: Positive = Field(description="Length of each run.")
    stride: Count = Field(
        1, description="Steps between stored frames. Spectra reach half the inverse of the stored time step."
    )
    remove_rotation: Bool | None = Field(
        None,
        description="Remove the angular momentum before each run. By default true for clusters, false with periodic "
        "boundaries, where it is not conserved.",
    )
    trajectories_per_job: Count | None = Field(
        None,
        description="Runs in one job (default 1): one after the other, with `engine: torch-sim` all at once (default "
        "all).",
        json_schema_extra=RUNS_ONLY,
    )


class Sampling(Section):
    """Molecular dynamics: one NVT run, then independent NVE runs."""

    engine: Literal["ase", "cp2k", "torch-sim"] = Field(
        description="Who computes the forces: `ase` (any ASE calculator), `cp2k`, or `torch-sim` (all NVE runs of a "
        "job in one batch, on a GPU if there is one)."
    )
    calculator: CalculatorSection | None = Field(
        None, description="`engine: ase`: the ASE calculator. `engine: torch-sim`: its potential."
    )
    device: Device = Field(
        "cpu", description="`engine: torch-sim`: where it computes, `cpu` or `cuda`.", json_schema_extra=RUNS_ONLY
    )
    precision: Literal["float64", "float32"] = Field("float64", description="`engine: torch-sim`: of the potential.")
    batch_size: Count | None = Field(
        None,
        description="`engine: torch-sim`: NVE runs at a time, as far as the device's memory goes (default all).",
        json_schema_extra=RUNS_ONLY,
    )
    template: Text | None = Field(
        None,
        description="`engine: cp2k`: CP2K input with a FORCE_EVAL, without coordinates, cell and MOTION; a file or the "
        "name of one of the package's templates (`water_nnp.inp`).",
        json_schema_extra=FILE,
    )
    files: tuple[Text, ...] = Field(
        (),
        description="Files that the template or the calculator names, copied beside the input.",
        json_schema_extra=FILE,
    )
    timestep_fs: Positive = Field(description="MD time step.")
    temperature_K: Positive = Field(description="Temperature of the NVT run.")
    nvt: Nvt = Field(description="The NVT run.")
    nve: Nve = Field(description="The NVE runs.")

    @model_validator(mode="after")
    def _fits_engine(self) -> Self:
        mine, other = ("template", "calculator") if self.engine == "cp2k" else ("calculator", "template")
        if getattr(self, mine) is None:
            example = "{import: tblite.ase.TBLite}" if mine == "calculator" else "nnp.inp"
            raise wrong("", f"has engine: {self.engine} but no {mine}", f"add e.g. {mine}: {example}")
        if getattr(self, other) is not None:
            raise wrong(
                other,
                f"does not go with engine: {self.engine}",
                f"remove it or change the engine to {'cp2k' if other == 'template' else 'ase'}",
            )
        for key in ("device", "precision", "batch_size"):
            if self.engine != "torch-sim" and getattr(self, key) != type(self).model_fields[key].default:
                raise wrong(key, "is for engine: torch-sim", "remove it or change the engine")
        if self.engine != "cp2k" and self.nvt.time_constant_fs is not None:
            raise wrong(
                "nvt.time_constant_fs",
                "is for engine: cp2k",
                f"use friction_per_ps (Langevin) with engine: {self.engine}",
            )
        if self.engine == "cp2k" and self.nvt.friction_per_ps is not None:
            raise wrong("nvt.friction_per_ps", "is for engine: ase", "use time_constant_fs (CSVR) with engine: cp2k")
        for name in ("nvt", "nve"):
            run: Nvt | Nve = getattr(self, name)
            for key in ("length_ps", "equilibration_ps"):
                length = getattr(run, key, 0.0)
                n_steps = 1000 * length / self.timestep_fs
                if abs(n_steps - round(n_steps)) > 1e-6 * max(1.0, n_steps):
                    raise wrong(
                        f"{name}.{key}",
                        f"must be whole steps of {self.timestep_fs:g} fs, got {length:g} ps = {n_steps:.3f} steps",
                        f"write {max(round(n_steps), 1) * self.timestep_fs / 1000:g}",
                    )
            n_steps = steps(run.length_ps, self.timestep_fs)
            if n_steps % run.stride:
                lower = max(n_steps - n_steps % run.stride, run.stride) * self.timestep_fs / 1000
                raise wrong(
                    f"{name}.length_ps",
                    f"must be a multiple of the stride, got {n_steps} steps with stride {run.stride}",
                    f"write {lower:g} or change {name}.stride",
                )
        n_starts = (self.n_nvt_steps - self.n_nvt_equilibration_steps) // self.nvt.stride
        if n_starts < self.nve.n_trajectories:
            raise wrong(
                "nve.n_trajectories",
                f"must not exceed the {n_starts} NVT frames stored after equilibration, got {self.nve.n_trajectories}",
                "lengthen nvt.length_ps or shorten nvt.stride",
            )
        return self

    @property
    def timestep(self) -> float:
        """MD time step [fs]."""
        return self.timestep_fs

    @property
    def temperature(self) -> float:
        """Temperature of the NVT run [K]."""
        return self.temperature_K

    @property
    def n_nvt_steps(self) -> int:
        """Steps of the NVT run, equilibration included."""
        return steps(self.nvt.length_ps, self.timestep_fs)

    @property
    def n_nvt_equilibration_steps(self) -> int:
        """Steps at the beginning of the NVT run that no start is drawn from."""
        return steps(self.nvt.equilibration_ps, self.timestep_fs)

    @property
    def n_nve_steps(self) -> int:
        """Steps of one NVE run."""
        return steps(self.nve.length_ps, self.timestep_fs)

    @property
    def n_nve_frames(self) -> int:
        """Stored frames of one NVE run; the first is the start."""
        return self.n_nve_steps // self.nve.stride

    @property
    def frame_timestep(self) -> float:
        """Time between stored NVE frames [fs]."""
        return self.timestep_fs * self.nve.stride

    @property
    def friction(self) -> float:
        """Friction of the thermostat [1/fs]: Langevin's, or the inverse time constant of CSVR."""
        if self.engine == "cp2k":
            return 1 / (self.nvt.time_constant_fs or 50.0)
        return (self.nvt.friction_per_ps or 10.0) / 1000

    def arguments(self, file_of: Callable[[str], str]) -> dict[str, Any]:
        """Return the arguments of the calculator, those that are among ``files`` replaced by what is given for them."""

        def replaced(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: replaced(entry) for key, entry in value.items()}
            if isinstance(value, list):
                return [replaced(entry) for entry in value]
            return file_of(value) if isinstance(value, str) and value in self.files else value

        return replaced(self.calculator.arguments) if self.calculator is not None else {}

    @property
    def n_trajectories_per_job(self) -> int:
        """NVE runs in one job."""
        return self.nve.trajectories_per_job or (self.nve.n_trajectories if self.engine == "torch-sim" else 1)

    def nvt_settings(self, seed: int) -> "NvtSettings":
        """Return the settings of the NVT run."""
        from mimyria_wf.md import NvtSettings

        return NvtSettings(
            temperature=self.temperature,
            timestep=self.timestep,
            n_steps=self.n_nvt_steps,
            n_equilibration_steps=self.n_nvt_equilibration_steps,
            stride=self.nvt.stride,
            friction=self.friction,
            seed=seed,
            thermostat="csvr" if self.engine == "cp2k" else "langevin",
        )

    def nve_settings(self, is_periodic: bool) -> "NveSettings":
        """Return the settings of an NVE run; a cluster does not rotate unless the campaign says so."""
        from mimyria_wf.md import NveSettings

        remove_rotation = not is_periodic if self.nve.remove_rotation is None else self.nve.remove_rotation
        return NveSettings(self.timestep, self.n_nve_steps, self.nve.stride, remove_rotation)


def steps(length_ps: float, timestep_fs: float) -> int:
    """Return the number of steps in a run of ``length_ps`` [ps]."""
    return round(1000 * length_ps / timestep_fs)


class TrajectoryFile(Section):
    """A trajectory made elsewhere; a plain path stands for `{path: ...}`."""

    path: Text = Field(
        description="H5MD, extxyz, CP2K `*-pos-*.xyz`, or anything ASE reads; `*` and `?` match several files.",
        json_schema_extra=FILE,
    )
    velocities: Text | None = Field(
        None, description="CP2K: the `*-vel-*.xyz` file, if it is not beside the positions.", json_schema_extra=FILE
    )
    timestep_fs: Positive | None = Field(None, description="Time between frames, if the file does not say it.")
    drop_truncated: Bool = Field(False, description="Accept a text file whose last frame was cut off by a killed run.")

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class Kpoints(Section):
    """Points in the Brillouin zone, Gamma-centred: a mesh or a spacing."""

    mesh: tuple[Count, Count, Count] | None = Field(None, description="Divisions along each cell vector, `[2, 2, 2]`.")
    spacing_per_A: Positive | None = Field(None, description="Largest distance between points [1/A, with 2 pi].")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.mesh is not None and self.spacing_per_A is not None:
            raise wrong("spacing_per_A", "is given together with mesh", "keep one of the two")
        if self.mesh is None and self.spacing_per_A is None:
            raise wrong("", "has neither mesh nor spacing_per_A", "add mesh: [1, 1, 1]")
        return self

    def divisions(self, cell: np.ndarray) -> tuple[int, int, int]:
        """Return the divisions along each vector of a cell (3, 3) [A]."""
        if self.mesh is not None:
            return self.mesh
        assert self.spacing_per_A is not None
        lengths = 2 * math.pi * np.linalg.norm(np.linalg.inv(cell).T, axis=1)
        a, b, c = (max(1, math.ceil(length / self.spacing_per_A - 1e-9)) for length in lengths)
        return a, b, c


class Potentials(Section):
    """PAW potentials, known to AiiDA as a family that was uploaded once; they never enter a campaign's provenance."""

    family: Text = Field(description="Name of the family in AiiDA, `PBE.54`; see `aiida-vasp potcar listfamilies`.")
    mapping: dict[str, Text] = Field(
        min_length=1, description="Potential of each element, `{O: O, H: H}`; every element of the system."
    )


class Vasp(Section):
    """A level of theory of VASP."""

    incar: Annotated[str | dict[str, Any], BeforeValidator(_file_or_mapping)] = Field(
        description="INCAR with your level of theory, no field: a file, or its tags, `{EDIFF: 1.0e-8}`.",
        json_schema_extra=FILE,
    )
    kpoints: Kpoints = Field(
        default_factory=lambda: Kpoints.model_validate({"mesh": [1, 1, 1]}),
        description="Points in the Brillouin zone (default: Gamma alone).",
    )
    potentials: Potentials = Field(description="PAW potentials.")
    method: Literal["finite-field", "lepsilon", "lcalceps"] = Field(
        "finite-field",
        description="`finite-field`: forces in explicit fields (EFIELD_PEAD), APT and PGT; `lepsilon`: the APT of all "
        "atoms from one linear-response job, no PGT; `lcalceps`: Born charges in fields of both signs, APT and PGT.",
    )


Auto = Annotated[float | Literal["auto"] | None, BeforeValidator(_number_or_auto)]


class LabelLimits(Section):
    """Up to where a label job may be given more after it ran out of it; otherwise options stay as they are."""

    max_wallclock_seconds: Count | None = Field(
        None, description="Longest job [s]: one that did not finish a single point in its time gets twice the time."
    )
    max_memory_kb: Count | None = Field(
        None, description="Largest memory of a job [kB]: one that ran out of it gets twice as much."
    )


class Labels(Section):
    """Response tensors of single snapshots: computed in finite fields, or given."""

    engine: Text | None = Field(
        None,
        description="Who computes the forces in the fields: `tblite` (clusters, embedded), `cp2k`, `vasp`, or the name "
        "of an engine that is installed beside this package (docs/engines.md).",
    )
    given: Text | None = Field(
        None,
        description="Labels made elsewhere (extxyz with `apt:R:9` and `pgt:R:27`) instead of an engine.",
        json_schema_extra=FILE,
    )
    test_given: Text | None = Field(
        None,
        description="With `given`: the test set. Without it the test set is split off by the snapshots' trajectories.",
        json_schema_extra=FILE,
    )
    method: Literal["GFN1-xTB", "GFN2-xTB", "IPEA1-xTB"] | None = Field(
        None, description="`engine: tblite`: the method (default GFN2-xTB)."
    )
    accuracy: Positive | None = Field(
        None, description="`engine: tblite`: accuracy setting of the SCC, smaller is tighter (default 0.001)."
    )
    template: Annotated[str | dict[str, Any] | None, BeforeValidator(_file_or_mapping)] = Field(
        None,
        description="`engine: cp2k`: CP2K input with the FORCE_EVAL of your level of theory, no coordinates, no field; "
        "a file, the name of one of the package's templates (`water_pbe_szv.inp`), or the sections as nested keys, "
        "`{FORCE_EVAL: {METHOD: Quickstep, DFT: {...}}}`. Engines of other packages: what they call their template.",
        json_schema_extra=FILE,
    )
    files: tuple[Text, ...] = Field(
        (), description="Files that the template or the settings name, copied beside the input.", json_schema_extra=FILE
    )
    vasp: Vasp | None = Field(None, description="`engine: vasp`: the level of theory.")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="An engine that is installed beside this package: its settings."
    )
    field_step_au: Auto = Field(
        None,
        description="Field step h of the central differences [E_h/(e a0)] (default: tblite 1e-3, others 5e-4); `auto` "
        "takes the one that the qualification recommends.",
    )
    scf_threshold: Auto = Field(
        None,
        description="`engine: cp2k`: EPS_SCF in place of the template's; `engine: vasp`: EDIFF in place of that of the "
        "INCAR; `auto` takes the one that the qualification recommends.",
    )
    gap_eV: Positive | None = Field(
        None, description="Band gap of your system, as far as you know it: fields too strong for it are refused."
    )
    snapshots_per_job: Count | None = Field(
        None,
        description="Snapshots in one job (default: tblite 20, others 1).",
        json_schema_extra=RUNS_ONLY,
    )
    max_rounds: Count = Field(
        3,
        description="Rounds in which missing and failed field points are computed, with what the failures ask for.",
        json_schema_extra=RUNS_ONLY,
    )
    limits: LabelLimits = Field(
        default_factory=lambda: LabelLimits.model_validate({}),
        description="How far time and memory of a job may be raised from round to round.",
        json_schema_extra=RUNS_ONLY,
    )
    seconds_per_point: Positive | None = Field(
        None,
        description="Seconds that one field point takes on your machine, for the cost estimate of `validate` only.",
        json_schema_extra=RUNS_ONLY,
    )

    @field_validator("engine")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        known = label_engines()
        if value is None or value in known:
            return value
        close = suggestion(value, known)
        remedy = f"did you mean {close}?" if close else "install the package that brings it along, see docs/engines.md"
        raise wrong("", f"must be {', '.join(known[:-1])} or {known[-1]}, got {shown(value)}", remedy)

    @model_validator(mode="after")
    def _fits_engine(self) -> Self:
        if self.engine is None and self.given is None:
            raise wrong("", "has neither engine nor given", "add engine: tblite, engine: cp2k, or given: FILE.extxyz")
        if self.engine is not None and self.given is not None:
            raise wrong("given", "is given together with engine", "keep one of the two")
        if self.test_given is not None and self.given is None:
            raise wrong("test_given", "needs labels.given", "add given: or remove test_given:")
        if self.engine == "cp2k" and self.template is None:
            raise wrong("", "has engine: cp2k but no template", "add e.g. template: dft.inp")
        if self.engine == "vasp" and self.vasp is None:
            raise wrong(
                "",
                "has engine: vasp but no vasp section",
                "add vasp: {incar: INCAR, potentials: {family: PBE.54, mapping: {O: O, H: H}}}",
            )
        allowed = {
            "tblite": {"method", "accuracy"},
            "vasp": {"vasp"},
        }
        for engine, keys in allowed.items():
            for key in sorted(keys):
                if self.engine != engine and getattr(self, key):
                    raise wrong(key, f"is for engine: {engine}", "remove it or change the engine")
        if self.scf_threshold is not None and self.engine not in THRESHOLD_ENGINES:
            raise wrong(
                "scf_threshold",
                "is for engine: cp2k and engine: vasp",
                "write accuracy: instead" if self.engine == "tblite" else "remove it",
            )
        for key in ("template", "files"):
            if getattr(self, key) and self.engine in (None, "tblite", "vasp"):
                raise wrong(key, "is for engine: cp2k", "remove it or change the engine")
        if isinstance(self.template, dict) and self.engine != "cp2k":
            raise wrong("template", f"must name a file with engine: {self.engine}", "write it into one")
        if self.settings and (self.engine is None or self.engine in ENGINES):
            raise wrong(
                "settings", "is for engines of other packages", f"write the keys of {self.engine} under labels instead"
            )
        if self.given is not None:
            for key in ("field_step_au", "gap_eV"):
                if getattr(self, key) is not None:
                    raise wrong(key, "does nothing with labels.given", "remove it")
        return self

    @property
    def default_field_step(self) -> float:
        """Field step of an engine where the campaign says nothing, or ``auto`` [E_h/(e a0)]."""
        return DEFAULT_FIELD_STEPS.get(self.engine or "tblite", PAPER_FIELD_STEP)

    @property
    def field_step(self) -> float:
        """Field step h [E_h/(e a0)]; where the qualification is to choose it, the engine's default."""
        return self.field_step_au if isinstance(self.field_step_au, float) else self.default_field_step

    @property
    def gives_tensors(self) -> bool:
        """Whether the engine gives tensors themselves, not forces in fields."""
        return self.vasp is not None and self.vasp.method == "lepsilon"

    @property
    def waits_for_qualification(self) -> bool:
        """Whether the qualification chooses the field step or the threshold of the SCF."""
        return "auto" in (self.field_step_au, self.scf_threshold)

    @property
    def tblite_method(self) -> str:
        """Method of tblite."""
        return self.method or "GFN2-xTB"

    @property
    def tblite_accuracy(self) -> float:
        """Accuracy setting of tblite."""
        return self.accuracy or 0.001

    @property
    def n_snapshots_per_job(self) -> int:
        """Snapshots in one label job."""
        return self.snapshots_per_job or DEFAULT_SNAPSHOTS_PER_JOB.get(self.engine or "tblite", 1)


def label_engines() -> tuple[str, ...]:
    """Return the names of the label engines: those of this package, then those installed beside it."""
    others = {point.name for point in importlib.metadata.entry_points(group="mimyria_wf.engines")}
    return (*ENGINES, *sorted(others - set(ENGINES)))


class QualificationTolerances(Section):
    """What a qualification still accepts; errors are shares of the tensors' own spread (Eq. 14)."""

    apt: Positive = Field(0.01, description="Error of an APT by noise and higher orders.")
    pgt: Positive = Field(0.01, description="Error of a PGT by noise and higher orders.")
    spatial_apt: Positive = Field(0.04, description="Relative RMSE of APTs, field against spatial derivatives.")
    spatial_pgt: Positive = Field(0.02, description="Relative RMSE of PGTs, field against spatial derivatives.")
    sum_rule: Positive = Field(0.05, description="What projecting tensors on the sum rules may change.")
    field_scale: Positive = Field(0.02, description="Field felt at mixed points over the field given, distance from 1.")
    gap: Positive = Field(0.2, description="Smallest gap of what counts as an insulator [eV].")
    drop: Positive = Field(1.0, description="Potential drop of the field over a cell, as a share of the gap.")


class QualificationSection(Section):
    """Whether field step and SCF threshold give sound labels, tried on a snapshot before anything else is spent.

    `true` and `{}` stand for the defaults, `false` switches it off. Without this section, a short one runs for
    every engine but `tblite`: CP2K and VASP at the level of theory as it is and at a tenth of its threshold, others at
    two field steps, and the APT of one atom from displacements.
    """

    run: Bool = Field(True, description="Whether to qualify at all.")
    snapshots: Text | None = Field(
        None,
        description="Snapshots to try it on, any format that ASE reads. By default the start structure, or the first "
        "frame of the first trajectory.",
        json_schema_extra=FILE,
    )
    field_steps_au: tuple[Positive, ...] = Field(
        (),
        description="Field steps to screen, two or more; that of the labels is always among them (default: "
        "`labels.field_step_au` alone where two thresholds are screened, else with twice that; with `auto` 2.5e-4, "
        "5e-4, 1e-3 and 2e-3).",
    )
    thresholds: tuple[Positive, ...] = Field(
        (),
        description="Thresholds of the SCF to screen: EPS_SCF (CP2K), EDIFF (VASP), accuracy (tblite); that of the "
        "labels is always among them (default: that one, of CP2K and VASP with a tenth of it, unless several steps are "
        "screened; with `auto` four powers of ten).",
    )
    grid: Literal["cross", "full"] = Field(
        "cross",
        description="`cross`: all steps at the tightest threshold, all thresholds at one step; `full`: every pair.",
    )
    atoms: tuple[Index, ...] | None = Field(
        None,
        description="Atoms of the first snapshot, counted from 0, whose tensors are computed from displacements too "
        "(default: the first one), as far as the engine gives dipoles. This alone sees a wrong sign or unit.",
    )
    spatial_targets: tuple[Target, ...] = Field(
        ("apt",),
        description="Which tensors those are: 6 points an atom for `apt`, 24 for `pgt`, which holds the APT.",
    )
    displacement_A: Positive = Field(0.01, description="Displacement of those atoms.")
    tolerances: QualificationTolerances = Field(
        default_factory=lambda: QualificationTolerances.model_validate({}), description="What is accepted."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_bool(cls, value: Any) -> Any:
        return {"run": value} if isinstance(value, bool) else value

    @field_validator("field_steps_au", "thresholds", "atoms")
    @classmethod
    def _different(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise wrong("", f"must name each value once, got {shown(list(value))}", "remove the repeated one")
        return value

    @field_validator("field_steps_au")
    @classmethod
    def _several(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) == 1:
            raise wrong("", f"must be two or more, got {shown(list(value))}", f"write [{value[0]:g}, {2 * value[0]:g}]")
        return value


COMMITTEE_REMEDY = "take " + " or ".join(
    f"preset: {name}" for name, targets in PRESETS.items() if all(s.kind == "density" for s, _ in targets.values())
)


class Pretraining(Section):
    """Cheap labels that the networks of the first iteration learn before the real ones; helps where those are few.

    Each molecule gets tblite's tensors in the cluster cut out around it, so that periodic systems have them too.
    """

    n_snapshots: Count = Field(10, description="Snapshots, from the trajectories that training snapshots come from.")
    radius_A: Positive = Field(3.5, description="Between the nearest atoms of two molecules of a cluster.")
    charges: dict[str, Int] = Field(
        default_factory=dict,
        description="Charges of molecules by formula, `{SO4: -2}`; those of common ions are known.",
    )
    accuracy: Positive = Field(0.1, description="Accuracy setting of tblite's SCC, smaller is tighter.")


class Training(Section):
    """The networks and how the training set grows."""

    targets: tuple[Target, ...] = Field(
        ("apt", "pgt"), min_length=1, description="What to learn: `apt` (IR), `pgt` (Raman) or both."
    )
    preset: Preset = Field(
        "default",
        description="Settings of network and training: `default`, or those of a paper, `paper` (2026) and, APT only, "
        "`aptnn2023`.",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="Single settings that differ from the preset, for both targets, or under `apt:` and `pgt:`.",
    )
    sizes: tuple[Count, ...] = Field(
        min_length=1, description="Sizes of the training set, one for each refinement iteration; must increase."
    )
    test_size: Count | None = Field(
        None,
        description="Snapshots in the test set, from other trajectories. Needed without `labels.test_given`.",
    )
    selection: Literal["random", "committee"] = Field(
        "random",
        description="How training snapshots are chosen among the frames: at `random`, or from the second iteration on "
        "where the networks of the one before are least certain (`committee`). The test set is the same in both.",
    )
    warm_start: Bool = Field(True, description="Start each iteration from the networks of the one before.")
    pretraining: Pretraining | None = Field(
        None,
        description="Learn cheap labels first, `{}` for the defaults. Not with `models:`, which start the training.",
    )
    threads: Count = Field(1, description="CPU threads of one training.", json_schema_extra=RUNS_ONLY)

    @field_validator("targets")
    @classmethod
    def _different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise wrong("", f"must name each target once, got {shown(list(value))}", "remove the repeated one")
        return value

    @model_validator(mode="after")
    def _preset_knows_targets(self) -> Self:
        for target in set(self.targets) - set(PRESETS[self.preset]):
            known = ", ".join(PRESETS[self.preset])
            raise wrong(
                "preset",
                f"{self.preset} has no network for {target}",
                f"write targets: [{known}], or take another preset",
            )
        return self

    @model_validator(mode="after")
    def _selection_fits(self) -> Self:
        if self.selection == "committee" and len(self.sizes) < 2:
            raise wrong("selection", "committee does nothing with one size", "remove it, or add sizes")
        if self.selection == "committee" and not self.has_committee:
            raise wrong("selection", f"committee does not go with preset: {self.preset}", COMMITTEE_REMEDY)
        return self

    @property
    def has_committee(self) -> bool:
        """Whether the networks of the preset can be made committees: their last layer must be linear."""
        return all(PRESETS[self.preset][target][0].kind == "density" for target in self.targets)

    @field_validator("sizes")
    @classmethod
    def _increase(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(b <= a for a, b in itertools.pairwise(value)):
            raise wrong("", f"must increase, got {shown(list(value))}", f"write {sorted(set(value))}")
        return value

    def overrides_for(self, target: str) -> dict[str, Any]:
        """Return the overrides that hold for a target: those for both, then its own."""
        shared = {key: value for key, value in self.overrides.items() if key not in get_args(Target)}
        return {**shared, **(self.overrides.get(target) or {})}

    def settings_for(self, target: str, seed: int) -> "tuple[NetworkSettings, TrainingSettings]":
        """Return network and training settings of a target: the preset with its overrides, this seed, these threads.

        Raises:
            ModelError: an override is unknown or does not fit.
        """
        from mimyria_wf.presets import resolve

        return resolve(self.preset, target, {**self.overrides_for(target), "seed": seed, "threads": self.threads})


class Models(Section):
    """Networks made elsewhere."""

    apt: Text | None = Field(None, description="APT network.", json_schema_extra=FILE)
    pgt: Text | None = Field(None, description="PGT network.", json_schema_extra=FILE)

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.apt is None and self.pgt is None:
            raise wrong("", "names no model", "add apt: or pgt:, or remove the section")
        return self


class Convergence(Section):
    """When to stop: first R^2 on the test set, then the change of the spectra from one iteration to the next."""

    r2: Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, lt=1)] = Field(
        0.9, description="Stage 1: R^2 (Eq. 15) that every target must reach."
    )
    spectral_distance: Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, lt=1)] = Field(
        0.02, description="Stage 2: spectral distance (Eq. 16) between two iterations that must not be exceeded."
    )
    n_stable: Count = Field(1, description="Stage 2 must hold this many times in a row.")
    trajectories: Count = Field(
        4, description="Trajectories that an iteration's spectra are computed from (all if fewer)."
    )
    stride: Count = Field(4, description="Frames between predicted tensors in these spectra; splined in between.")
    minimum_iterations: Count = Field(3, description="Iterations before stopping is considered.")


class Prediction(Section):
    """The final prediction over all trajectories."""

    stride: Annotated[Literal["auto"] | int, BeforeValidator(_stride)] = Field(
        "auto",
        description="Frames between predicted tensors; splined in between, velocities at full rate. `auto` takes the "
        "largest that moves the spectra of a stretch of one trajectory by no more than `stride_tolerance`.",
    )
    stride_tolerance: Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, lt=1)] = Field(
        1e-3, description="With `stride: auto`: largest spectral distance (Eq. 16) to the spectra of every frame."
    )
    batch_size: Count | None = Field(
        None,
        description="Frames in one evaluation of the network (default: by the number of atoms).",
        json_schema_extra=RUNS_ONLY,
    )
    project_sum_rules: Bool = Field(True, description="Make the tensors obey the acoustic sum rules exactly.")
    members: Index = Field(
        0,
        description="Members of a committee of the final networks, whose spread becomes the networks' error in the "
        "spectra: at least 2, 16 are enough. Not with presets of papers.",
    )
    device: Device = Field("cpu", description="Where to predict: `cpu` or `cuda`.", json_schema_extra=RUNS_ONLY)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.members == 1:
            raise wrong("members", "must be at least 2, got 1", "write 16, or 0 for none")
        if self.stride != "auto" and self.stride_tolerance != type(self).model_fields["stride_tolerance"].default:
            raise wrong(
                "stride_tolerance", f"does nothing with stride: {self.stride}", "remove it, or write stride: auto"
            )
        return self


GROUP_KEYS = ("groups", "relations", "units", "connectivity", "rdf")
"""Keys of `spectra` that make up a scheme of groups."""


class Spectra(Section):
    """Correlation functions and spectra."""

    window: Literal["hann", "boxcar"] = Field("hann", description="Window on the correlation functions.")
    window_fs: Positive = Field(500.0, description="Length of the window: the longest correlation time that counts.")
    estimator: Literal["unbiased", "biased"] = Field("unbiased", description="Estimator of the correlation functions.")
    upper_wavenumber_per_cm: Positive = Field(4500.0, description="End of the wavenumber axis.")
    temperature_K: Positive | None = Field(
        None, description="Temperature in the prefactors. By default each run's own kinetic temperature."
    )
    verlet_correction: Bool = Field(
        False,
        description="Move lines to where exact integration would have put them: velocity Verlet raises a vibration by "
        "(2 pi c nu dt)^2/24. Figures and summary say so.",
    )
    verlet_timestep_fs: Positive | None = Field(
        None,
        description="With `trajectories` and `verlet_correction`: time step of the MD that made them, not of their "
        "frames.",
    )
    geometries: tuple[Text, ...] = Field(
        (),
        description="Raman scattering geometries of the final spectra, e.g. `[Z(XX)Z, X(YZ)Y]`, or polarisations of "
        "incident and scattered light, `1,0,0:0,1,0`.",
    )
    statistics: Literal["classical", "harmonic", "bose-reduced", "susceptibility"] = Field(
        "classical",
        description="Form of the final Raman spectra, written beside the classical lineshapes with 1/w^2.",
    )
    laser_nm: Positive | None = Field(
        None, description="Wavelength of the laser: the same form with the factor (nu_in - nu)^4 / nu_in^4."
    )
    groups: dict[str, Any] | None = Field(
        None,
        description="Parts of a cross-correlation analysis by name, e.g. "
        "`{solute: {molecule: O4S}, shell: {within: {of: solute, minimum: 1}}}`; what is left is `rest`. The content "
        "of a file for `mimyria-wf groups`.",
        json_schema_extra=ORDERED,
    )
    relations: tuple[Any, ...] = Field(
        (),
        description="With `groups`: divide parts by how two atoms or molecules are related, e.g. "
        "`[self, same molecule, hydrogen bonded]`; what is left is `other`.",
    )
    units: Literal["atoms", "molecules"] = Field("atoms", description="What `relations` are between.")
    connectivity: dict[str, Any] | None = Field(
        None, description="With `groups`: how molecules are found, `{scale: 1.25, ions: [Na], frames: first}`."
    )
    rdf: dict[str, Any] | None = Field(
        None, description="With `groups`: how RDFs are made whose minima bound shells, `{cutoff: 8.0, frames: 500}`."
    )
    groups_every: Count = Field(
        1, description="With `groups`: take groups and relations at every n-th frame and hold them in between."
    )
    max_lag_fs: Positive | None = Field(
        None,
        description="With `relations`: longest window that spectra can be made with later. By default `window_fs`.",
    )
    measured: Text | None = Field(
        None,
        description="Measured spectrum to draw over the final ones: JCAMP-DX, or two columns with their units in the "
        "header.",
        json_schema_extra=FILE,
    )
    measured_units: Text | None = Field(
        None,
        description="With `measured`: units of both axes where the file does not say them, `cm^-1, 10^3 cm^-1`.",
    )

    @field_validator("geometries")
    @classmethod
    def _are_geometries(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from mimyria_wf.errors import MimyriaError
        from mimyria_wf.geometry import ScatteringGeometry

        for text in value:
            try:
                ScatteringGeometry.parse(text)
            except MimyriaError as error:
                statement, _, remedy = str(error).partition("; ")
                raise wrong("", f"are not understood, {statement}", remedy) from None
        return value

    @property
    def group_scheme(self) -> "GroupScheme | None":
        """Groups and relations; None without groups."""
        if self.groups is None:
            return None
        from mimyria_wf.group_schema import GroupScheme

        values = {key: value for key in GROUP_KEYS if (value := getattr(self, key)) is not None}
        return GroupScheme.model_validate({**values, "relations": list(self.relations), "every": self.groups_every})

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.groups is None:
            for key in ("relations", "units", "connectivity", "rdf", "groups_every", "max_lag_fs"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise wrong(key, "does nothing without groups", "add groups:, or remove it")
            return self
        try:
            scheme = self.group_scheme
        except ValidationError as error:
            first, *others = group_mistakes(error)
            raise wrong(*first, others) from None
        if self.max_lag_fs is not None and (scheme is None or not scheme.relations):
            raise wrong("max_lag_fs", "does nothing without relations", "remove it")
        if self.max_lag_fs is not None and self.max_lag_fs < self.window_fs:
            raise wrong(
                "max_lag_fs",
                f"must reach window_fs, {self.window_fs:g}, got {self.max_lag_fs:g}",
                "remove it or raise it",
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.verlet_timestep_fs is not None and not self.verlet_correction:
            raise wrong("verlet_timestep_fs", "does nothing without verlet_correction: true", "add it, or remove this")
        if self.measured_units is not None and self.measured is None:
            raise wrong("measured_units", "does nothing without measured", "add measured: FILE, or remove it")
        if self.laser_nm is not None:
            from mimyria_wf.errors import MimyriaError
            from mimyria_wf.intensity import RamanForm

            try:
                RamanForm(self.statistics, self.laser_nm)
            except MimyriaError as error:
                raise wrong("laser_nm", f"does not fit, {error}") from None
        return self


class Reference(Section):
    """Explicit labels along one whole trajectory, to compare its spectra with the predicted ones."""

    trajectory: Index = Field(0, description="Which trajectory, counted from 0. It never gives training snapshots.")
    n_frames: Count | None = Field(None, description="Only its first frames. By default all of them.")


class Computer(Section):
    """Where jobs of one kind run."""

    code: Annotated[str, Field(strict=True)] = Field(description="AiiDA code, `LABEL@COMPUTER`.")
    max_concurrent: Count = Field(2, description="Jobs of one step in the queue at a time.")
    resources: dict[str, Any] = Field(
        default_factory=lambda: {"num_machines": 1, "num_mpiprocs_per_machine": 1},
        description="AiiDA's scheduler resources.",
    )
    max_wallclock_seconds: Count | None = Field(None, description="Wall clock limit of a job.")
    max_memory_kb: Count | None = Field(None, description="Memory limit of a job.")
    queue_name: Text | None = Field(None, description="Queue or partition.")
    account: Text | None = Field(None, description="Account to charge.")
    qos: Text | None = Field(None, description="Quality of service.")
    custom_scheduler_commands: str = Field("", description="Lines for the head of the batch script.")
    prepend_text: str = Field("", description="Lines before the command, e.g. `module load cp2k`.")
    withmpi: Bool = Field(False, description="Run under MPI.")

    @field_validator("resources")
    @classmethod
    def _known_resources(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, number in value.items():
            if key not in RESOURCES:
                close = suggestion(key, RESOURCES)
                remedy = f"did you mean {close}?" if close else f"known keys are {', '.join(RESOURCES)}"
                raise wrong(key, "is not a scheduler resource", remedy)
            if key != "parallel_env" and not (is_number(number) and isinstance(number, int) and number > 0):
                raise wrong(key, f"must be a whole number of at least 1, got {shown(number)}", "write 1 or more")
        return value

    @field_validator("code")
    @classmethod
    def _names_a_computer(cls, value: str) -> str:
        if not re.fullmatch(r"[^@\s]+@[^@\s]+", value):
            raise wrong("", f"must be LABEL@COMPUTER, got {shown(value)}", "see `verdi code list`; e.g. cp2k@localhost")
        return value

    @property
    def n_cores(self) -> int:
        """Cores that a job occupies, as far as its resources say so."""
        machines = self.resources.get("num_machines", 1)
        if "tot_num_mpiprocs" in self.resources:
            n_processes = self.resources["tot_num_mpiprocs"]
        else:
            n_processes = machines * self.resources.get("num_mpiprocs_per_machine", 1)
        n_threads = self.resources.get("num_cores_per_mpiproc", 1)
        return int(max(n_processes * n_threads, machines * self.resources.get("num_cores_per_machine", 1)))

    @property
    def is_local(self) -> bool:
        """Whether the computer is called localhost, so that what is installed here is what runs."""
        return self.computer == "localhost"

    @property
    def computer(self) -> str:
        """AiiDA's label of the computer."""
        return self.code.split("@")[1]

    def options(self) -> dict[str, Any]:
        """Return the dictionary for ``metadata.options`` of a CalcJob."""
        options: dict[str, Any] = {"resources": dict(self.resources), "withmpi": self.withmpi}
        for key in ("max_wallclock_seconds", "max_memory_kb", "queue_name", "account", "qos"):
            if getattr(self, key) is not None:
                options[key] = getattr(self, key)
        for key in ("custom_scheduler_commands", "prepend_text"):
            if getattr(self, key):
                options[key] = getattr(self, key)
        return options


def _local_code(label: str) -> Computer:
    return Computer.model_validate({"code": f"{label}@localhost"})


class Computers(Section):
    """Codes and scheduler options; a step that is not named runs with `cp2k`, `vasp` or `mimyria`."""

    mimyria: Computer = Field(
        default_factory=lambda: _local_code("mimyria-wf"),
        description="Everything this package computes itself (default `mimyria-wf@localhost`).",
    )
    cp2k: Computer = Field(
        default_factory=lambda: _local_code("cp2k"), description="CP2K, MD and labels (default `cp2k@localhost`)."
    )
    vasp: Computer = Field(
        default_factory=lambda: _local_code("vasp"), description="VASP, labels (default `vasp@localhost`)."
    )
    md: Computer | None = Field(None, description="MD only; its code must be on the computer of `mimyria`.")
    labels: Computer | None = Field(None, description="Labels only; any computer.")
    training: Computer | None = Field(None, description="Training only, e.g. on a GPU node; any computer.")
    prediction: Computer | None = Field(
        None, description="Prediction only; on the computer of `mimyria`, for it reads trajectories where they lie."
    )
    spectra: Computer | None = Field(None, description="Spectra only; on the computer of `mimyria`.")


class Campaign(Section):
    """A whole campaign, from a structure or trajectories to IR and Raman spectra."""

    name: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = Field(
        description="Name of the campaign; letters, digits, `_`, `.` and `-`. Names the group in AiiDA."
    )
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = Field(
        description="Seed of every random choice: velocities, thermostat, starts, snapshots, networks."
    )
    system: System = Field(
        default_factory=lambda: System.model_validate({}), description="The atoms, their charge and their box."
    )
    sampling: Sampling | None = Field(None, description="Molecular dynamics. Absent if `trajectories` are given.")
    trajectories: tuple[TrajectoryFile, ...] | None = Field(
        None, min_length=1, description="Trajectories with velocities made elsewhere, instead of `sampling:`."
    )
    labels: Labels | None = Field(None, description="Response tensors to learn from. Absent if `models` are given.")
    qualification: QualificationSection | None = Field(
        None,
        description="Trial of the labels' level of theory before anything is spent, `false` for none. By default a "
        "short one, but none for `tblite`.",
    )
    training: Training | None = Field(None, description="The networks. Needed with `labels:`.")
    models: Models | None = Field(
        None, description="Networks made elsewhere: used as they are, or with `labels:` as the start of the training."
    )
    convergence: Convergence = Field(
        default_factory=lambda: Convergence.model_validate({}), description="When to stop adding snapshots."
    )
    prediction: Prediction = Field(
        default_factory=lambda: Prediction.model_validate({}), description="The final prediction."
    )
    spectra: Spectra = Field(
        default_factory=lambda: Spectra.model_validate({}), description="Correlation functions and spectra."
    )
    reference: Reference | None = Field(
        None, description="Explicit labels along one trajectory, to judge the networks by spectra (`tblite` only)."
    )
    computers: Computers = Field(
        default_factory=lambda: Computers.model_validate({}),
        description="Codes and scheduler options.",
        json_schema_extra=RUNS_ONLY,
    )

    _source: Source = PrivateAttr(default_factory=Source)

    @model_validator(mode="after")
    def _is_whole(self, info: ValidationInfo) -> Self:
        if isinstance(info.context, Source):
            self._source = info.context
        if self.sampling is None and self.trajectories is None:
            raise wrong("", "has neither sampling nor trajectories", "add sampling: or trajectories: [FILE, ...]")
        if self.sampling is not None and self.trajectories is not None:
            raise wrong("trajectories", "are given together with sampling", "keep one of the two")
        if self.sampling is not None and self.system.structure is None:
            raise wrong("system.structure", "is missing: sampling starts from a structure", "add structure: FILE")
        if self.trajectories is not None and self.system.structure is not None:
            raise wrong(
                "system.structure", "does nothing with trajectories", "remove it: the trajectories hold the atoms"
            )
        if self.labels is None and self.models is None:
            raise wrong("", "has neither labels nor models", "add labels: to train networks, or models: to use yours")
        if self.labels is None and self.training is not None:
            raise wrong("training", "needs labels", "add labels:, or remove training: to use models: as they are")
        if self.labels is not None and self.training is None:
            raise wrong("labels", "are given without training", "add training: {sizes: [...], test_size: ...}")
        if self.training is not None and self.labels is not None:
            if self.training.test_size is None and self.labels.test_given is None:
                raise wrong("training.test_size", "is missing", "add test_size: or labels.test_given:")
            if self.training.pretraining is not None and self.models is not None:
                raise wrong(
                    "training.pretraining",
                    "is given together with models, which start the training",
                    "keep one of the two",
                )
            if self.prediction.members and not self.training.has_committee:
                raise wrong(
                    "prediction.members",
                    f"does not go with training.preset: {self.training.preset}, which has no committee",
                    COMMITTEE_REMEDY,
                )
            if self.training.selection == "committee" and self.labels.given is not None:
                raise wrong(
                    "training.selection",
                    "committee chooses what is labelled, but labels.given are labelled already",
                    "remove it, or give labels.engine",
                )
            if self.models is not None:
                for target in self.models.model_fields_set - set(self.training.targets):
                    raise wrong(
                        f"models.{target}", "is not among training.targets", "add the target or remove the model"
                    )
            for target in get_args(Target):
                own = self.training.overrides.get(target)
                if own is not None and (not isinstance(own, dict) or target not in self.training.targets):
                    raise wrong(
                        f"training.overrides.{target}",
                        f"must be a mapping for a target that is trained, got {shown(own)}",
                        f"targets are {list(self.training.targets)}",
                    )
        computes_labels = self.labels is not None and self.labels.engine is not None
        if self.qualification is not None and self.qualification.run and not computes_labels:
            raise wrong("qualification", "needs labels.engine: it tries the engine's fields", "remove it")
        if self.labels is not None and self.labels.waits_for_qualification and not self.is_qualified:
            key = "field_step_au" if self.labels.field_step_au == "auto" else "scf_threshold"
            raise wrong(f"labels.{key}", "auto needs the qualification", "add qualification: true, or write a number")
        if self.labels is not None:
            self._check_limits(self.labels)
        if self.labels is not None and self.labels.gives_tensors:
            if "pgt" in self.targets:
                raise wrong(
                    "labels.vasp.method",
                    "lepsilon gives no PGT, but training.targets has pgt",
                    "write lcalceps or finite-field, or targets: [apt]",
                )
            if self.qualification is not None and self.qualification.run:
                raise wrong("qualification", "tries forces in fields, which method: lepsilon has not", "remove it")
        if self.reference is not None and (self.labels is None or self.labels.engine != "tblite"):
            raise wrong(
                "reference", "needs labels.engine: tblite", "remove it: one label a frame is too dear otherwise"
            )
        for target, kind, keys in (
            ("apt", "IR", ("measured",)),
            ("pgt", "Raman", ("geometries", "statistics", "laser_nm")),
        ):
            for key in keys if target not in self.targets else ():
                if getattr(self.spectra, key) != Spectra.model_fields[key].default:
                    owner = "training.targets" if self.training is not None else "models"
                    raise wrong(
                        f"spectra.{key}",
                        f"is for {kind} spectra, but {owner} has no {target}",
                        f"add {target} to {owner}, or remove it",
                    )
        if self.sampling is not None and self.spectra.verlet_timestep_fs is not None:
            raise wrong(
                "spectra.verlet_timestep_fs",
                "is for trajectories made elsewhere",
                "remove it: sampling.timestep_fs is used",
            )
        if self.trajectories is not None and self.spectra.verlet_correction and self.spectra.verlet_timestep_fs is None:
            raise wrong(
                "spectra.verlet_correction",
                "needs the time step of the MD, which trajectories do not tell",
                "add verlet_timestep_fs: (the MD's step, not the time between frames)",
            )
        n_trajectories = self.sampling.nve.n_trajectories if self.sampling else math.inf
        if self.reference is not None and self.reference.trajectory >= n_trajectories:
            raise wrong(
                "reference.trajectory",
                f"must be below sampling.nve.n_trajectories = {n_trajectories}, got {self.reference.trajectory}",
                "trajectories count from 0",
            )
        return self

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], directory: Path | str | None = None, name: str | None = None) -> Self:
        """Build a campaign from plain values (of :meth:`to_dict`, or of a test).

        Args:
            data: what the YAML file would hold.
            directory: folder that relative paths start from, default the current one.
            name: what error messages call the file, default nothing.

        Raises:
            CampaignFileError: one line for each mistake.
        """
        source = Source(name, Path(directory) if directory is not None else Path.cwd())
        return cls._validated(data, source)

    @classmethod
    def _validated(cls, data: Any, source: Source) -> Self:
        try:
            return cls.model_validate(data, context=source)
        except ValidationError as error:
            problems = problems_of(error, source, cls)
            raise CampaignFileError([*problems, *_group_problems(data, source, problems)]) from None

    def to_dict(self) -> dict[str, Any]:
        """Return the campaign with its defaults as plain values; :meth:`from_dict` takes them back."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def directory(self) -> Path:
        """Folder that relative paths start from: the campaign file's."""
        return self._source.directory

    @property
    def targets(self) -> tuple[str, ...]:
        """What is learnt or predicted, ``("apt", "pgt")`` or one of them."""
        if self.training is not None:
            return self.training.targets
        assert self.models is not None
        return tuple(target for target in get_args(Target) if getattr(self.models, target) is not None)

    @property
    def is_qualified(self) -> bool:
        """Whether the labels' level of theory is tried before anything is spent.

        tblite's is not unless asked for: its labels take milliseconds, and its default settings are known to be sound.
        """
        if self.labels is None or self.labels.engine is None:
            return False
        if self.qualification is not None:
            return self.qualification.run
        return self.labels.engine != "tblite" and not self.labels.gives_tensors

    @property
    def steps_run(self) -> tuple[Step, ...]:
        """The steps that compute something in this campaign."""
        present: dict[Step, bool] = {
            "md": self.sampling is not None,
            "labels": self.labels is not None and self.labels.engine is not None,
            "training": self.training is not None,
            "prediction": True,
            "spectra": True,
        }
        return tuple(step for step, is_run in present.items() if is_run)

    def label_template(self) -> "Cp2kSection":
        """Return the CP2K input that labels start from, with ``labels.scf_threshold`` in it.

        Raises:
            CampaignError: it cannot be read.
        """
        from mimyria_wf.cp2k_input import parse_template, varied_template

        assert self.labels is not None
        given = self.labels.template
        assert given is not None
        if isinstance(given, dict):
            template = parse_template(json.dumps(given), "labels.template")  # JSON is YAML
        else:
            path = self.path(given)
            template = parse_template(path.read_text(errors="replace"), path.name)
        threshold = self.labels.scf_threshold
        return varied_template(template, eps_scf=threshold) if isinstance(threshold, float) else template

    def vasp_settings(self) -> dict[str, Any]:
        """Return ``labels.vasp`` with the INCAR as tags, ``labels.scf_threshold`` among them.

        Raises:
            CampaignError: the INCAR cannot be read.
        """
        from mimyria_wf.vasp_template import VaspTemplate

        assert self.labels is not None
        vasp = self.labels.vasp
        assert vasp is not None
        template = VaspTemplate.from_settings(vasp.incar if isinstance(vasp.incar, dict) else self.path(vasp.incar))
        if isinstance(self.labels.scf_threshold, float):
            template = template.varied(ediff=self.labels.scf_threshold)
        return {**vasp.model_dump(exclude_none=True), "incar": dict(template.incar)}

    def scf_threshold(self) -> float | None:
        """Return the threshold that the labels' SCF is run to, None where it is not known.

        Raises:
            CampaignError: the template cannot be read.
        """
        from mimyria_wf.cp2k_input import eps_scf

        if self.labels is None:
            return None
        if self.labels.engine == "tblite":
            from mimyria_wf.tblite_engine import EPS_SCF

            return self.labels.tblite_accuracy * EPS_SCF
        if self.labels.engine == "cp2k":
            return eps_scf(self.label_template())
        if self.labels.engine == "vasp":
            from mimyria_wf.vasp_template import VaspTemplate

            return VaspTemplate.from_settings(self.vasp_settings()["incar"]).number("EDIFF", 1e-4)
        return None

    def qualification_settings(self) -> "QualificationSettings":
        """Return what the qualification screens.

        Raises:
            CampaignError: the template cannot be read.
        """
        from mimyria_wf.qualification import THRESHOLDS, QualificationSettings, Tolerances

        labels, own = self.labels, self.scf_threshold()
        assert labels is not None
        assert labels.engine is not None
        section = self.qualification or QualificationSection.model_validate({})
        steps: set[float] = set(section.field_steps_au)
        if not steps and labels.field_step_au == "auto":
            steps = set(QualificationSettings().steps)
        if labels.field_step_au != "auto":
            steps.add(labels.field_step)
        thresholds: set[float] = set(section.thresholds)
        if labels.scf_threshold == "auto" and not thresholds:
            thresholds = set(THRESHOLDS[labels.engine])
        elif thresholds and own is not None and labels.scf_threshold != "auto":
            thresholds.add(own)
        if not steps - {labels.field_step} and len(thresholds) < 2:
            # a tenth of the threshold sees a response that is incomplete, twice the step does not
            tight = None if own is None else own / 10
            if not thresholds and tight is not None and tight >= TIGHTEST_SCF.get(labels.engine, np.inf):
                assert own is not None
                thresholds = {own, tight}
            else:
                steps.add(2 * labels.field_step)
        atoms = section.atoms
        if atoms is None:
            has_dipoles = labels.vasp is None or labels.vasp.method == "finite-field"
            atoms = (0,) if has_dipoles else ()
        return QualificationSettings(
            steps=tuple(sorted(steps)),
            step=None if labels.field_step_au == "auto" else labels.field_step,
            thresholds=tuple(sorted(thresholds, reverse=True)),
            grid=section.grid,
            targets=self.targets,
            atoms=atoms,
            requires_spatial=section.atoms is not None,
            displacement=section.displacement_A,
            polarizability="fields" if "pgt" in section.spatial_targets else "none",
            tolerances=Tolerances(**section.tolerances.model_dump()),
        )

    def _check_limits(self, labels: Labels) -> None:
        """Refuse limits that raise nothing."""
        computer = self.computer_for("labels")
        for key, limit in labels.limits.model_dump(exclude_none=True).items():
            asked = getattr(computer, key)
            # CP2K has a time limit of its own in the template, which is raised, too.
            is_raised = asked is not None or (key == "max_wallclock_seconds" and labels.engine == "cp2k")
            if not is_raised:
                raise wrong(f"labels.limits.{key}", "has nothing to raise", f"add {key} to the computer of the labels")
            if asked is not None and limit <= asked:
                raise wrong(
                    f"labels.limits.{key}", f"must exceed the {asked} that a job gets at first", "raise or remove it"
                )

    def computer_for(self, step: Step) -> Computer:
        """Return code and options of a step: its own, else that of the program that does it, else ``mimyria``."""
        own: Computer | None = getattr(self.computers, step)
        if own is not None:
            return own
        engines = {
            "md": self.sampling.engine if self.sampling else None,
            "labels": self.labels.engine if self.labels else None,
        }
        programs = {"cp2k": self.computers.cp2k, "vasp": self.computers.vasp}
        return programs.get(engines.get(step) or "", self.computers.mimyria)

    def spectrum_settings(self) -> "SpectrumSettings":
        """Return the settings of the spectra."""
        from mimyria_wf.spectrum import SpectrumSettings

        return SpectrumSettings(
            window=self.spectra.window,
            window_length=self.spectra.window_fs,
            estimator=self.spectra.estimator,
            upper_wavenumber=self.spectra.upper_wavenumber_per_cm,
            temperature=self.spectra.temperature_K,
            verlet_timestep=self.verlet_timestep,
            seed=self.seed,
        )

    @property
    def verlet_timestep(self) -> float | None:
        """MD time step that frequencies are corrected for [fs]; None without correction."""
        if not self.spectra.verlet_correction:
            return None
        return self.sampling.timestep if self.sampling is not None else self.spectra.verlet_timestep_fs

    def path(self, value: str) -> Path:
        """Return the absolute path of a path in the file.

        It is relative to the file's folder. A bare name that is not there may be one of the package's CP2K templates.
        """
        return path_from(self.directory, value)

    def atoms(self) -> "Atoms":
        """Return the start structure with the campaign's cell, boundaries, charge and multiplicity (in ``info``).

        Raises:
            CampaignFileError: the file is missing, unreadable, or does not fit the cell given in the campaign.
        """
        from ase.io import read

        here: KeyPath = ("system", "structure")
        if self.system.structure is None:
            raise CampaignFileError([self.problem(here, "is missing", "add structure: FILE")])
        path = self.path(self.system.structure)
        try:
            frames = read(path, index=":")
        except Exception as error:  # noqa: BLE001 - ASE's readers raise whatever their parsing runs into
            reason = (str(error).splitlines() or [""])[0].replace(str(path), path.name) or type(error).__name__
            problem = self.problem(
                here, f"must name a structure that ASE reads, {path.name}: {reason}", "check the file"
            )
            raise CampaignFileError([problem]) from None
        frames = frames if isinstance(frames, list) else [frames]
        if len(frames) != 1 or len(frames[0]) == 0:
            found = f"{len(frames)} frames" if len(frames) != 1 else "no atoms"
            raise CampaignFileError(
                [self.problem(here, f"must hold one structure, {path.name} has {found}", "keep one frame in it")]
            )
        atoms = frames[0]
        atoms.calc = None
        self._set_cell(atoms)
        atoms.info = {"charge": self.system.charge, "multiplicity": self.system.multiplicity}
        return atoms

    def _set_cell(self, atoms: "Atoms") -> None:
        cell, stored = self.system.cell, atoms.cell.array.copy()
        if cell is not None:
            key: KeyPath = ("system", "cell_A" if self.system.cell_A is not None else "cell_A_deg")
            has_cell = atoms.cell.rank == 3
            same_lengths = has_cell and np.allclose(np.linalg.norm(cell, axis=1), atoms.cell.lengths(), rtol=1e-3)
            if same_lengths and not np.allclose(atoms.cell.angles(), _angles(cell), atol=0.1):
                found = ", ".join(f"{angle:.4g}" for angle in atoms.cell.angles())
                raise CampaignFileError(
                    [
                        self.problem(
                            key,
                            f"does not have the angles of the structure file, {found} degrees",
                            "give cell_A_deg: [a, b, c, alpha, beta, gamma], or leave the cell to the structure file",
                        )
                    ]
                )
            atoms.set_cell(cell)
        if self.system.pbc is not None:
            atoms.pbc = self.system.pbc
        elif cell is not None:
            atoms.pbc = True
        if atoms.pbc.any() and atoms.cell.rank < 3:
            found = "none" if not stored.any() else f"{stored.tolist()}"
            raise CampaignFileError(
                [
                    self.problem(
                        ("system", "pbc"), f"is true but there is no cell, got {found}", "add system.cell_A: [a, b, c]"
                    )
                ]
            )

    def reader(self, path: Path, entry: TrajectoryFile) -> "TrajectoryReader":
        """Open one of :meth:`trajectory_files`.

        Raises:
            TrajectoryError: one line that names the file and the remedy.
        """
        from mimyria_wf.trajectory import open_trajectory

        velocities = self.path(entry.velocities) if entry.velocities else None
        return open_trajectory(
            path,
            velocities=velocities,
            timestep=entry.timestep_fs,
            cell=self.system.cell,
            pbc=self.system.pbc or self.system.is_periodic,
            drop_truncated=entry.drop_truncated,
        )

    def trajectory_files(self) -> tuple[tuple[Path, TrajectoryFile], ...]:
        """Return every given trajectory by its path, patterns resolved and sorted; those not found are left out."""
        found: list[tuple[Path, TrajectoryFile]] = []
        for entry in self.trajectories or ():
            found += [(path, entry) for path in self.matches(entry.path)]
        return tuple(found)

    def matches(self, pattern: str) -> tuple[Path, ...]:
        """Return the files that a path or pattern names, sorted; empty if there is none."""
        return matching_files(self.directory, pattern)

    def named_files(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield key path and value of every path in the file."""
        yield from _files(self, ())

    def problem(self, key_path: KeyPath, statement: str, remedy: str = "") -> Problem:
        """Return a problem at a key of this campaign, with its file and line."""
        return self._source.problem(key_path, statement, remedy)

    def content_key(self) -> str:
        """Return the sha256 of what the campaign computes.

        It holds every value with its default and the contents of the files named, not their paths; it leaves out
        comments, order, ``computers`` and other settings that do not change a result.

        Raises:
            CampaignFileError: a file is missing.
        """
        text = json.dumps(self._meaning(self, ()), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _meaning(self, value: Any, key_path: KeyPath) -> Any:
        if isinstance(value, BaseModel):
            kept: dict[str, Any] = {}
            for name, info in type(value).model_fields.items():
                extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
                key = info.alias or name
                entry = getattr(value, name)
                if entry is None or extra.get("runs_only"):
                    continue
                if extra.get("file") and not isinstance(entry, dict):
                    entries = (entry,) if isinstance(entry, str) else entry
                    kept[key] = [self._digest(text, (*key_path, key)) for text in entries]
                elif extra.get("ordered"):
                    kept[key] = [[name, self._meaning(value, (*key_path, key, name))] for name, value in entry.items()]
                else:
                    kept[key] = self._meaning(entry, (*key_path, key))
            return kept
        if isinstance(value, dict):
            return {str(key): self._meaning(entry, (*key_path, key)) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self._meaning(entry, (*key_path, i)) for i, entry in enumerate(value)]
        return value

    def _digest(self, text: str, key_path: KeyPath) -> list[str]:
        paths = self.matches(text)
        if not paths:
            raise CampaignFileError(
                [self.problem(key_path, f"must name a file, {text} does not exist", "check the path")]
            )
        digests = []
        for path in paths:
            for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
                with file.open("rb") as stream:
                    digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        return digests


def _group_problems(data: Any, source: Source, known: Sequence[Problem]) -> list[Problem]:
    """Return what is wrong with groups in a section with other mistakes, at which pydantic stops before it."""
    spectra = data.get("spectra") if isinstance(data, Mapping) else None
    if not isinstance(spectra, Mapping) or not isinstance(spectra.get("groups"), Mapping):
        return []
    if {problem.key_path[:2] for problem in known} & {("spectra", key) for key in GROUP_KEYS}:
        return []
    from mimyria_wf.group_schema import GroupScheme

    try:
        GroupScheme.model_validate({key: spectra[key] for key in GROUP_KEYS if key in spectra})
    except ValidationError as error:
        return [source.problem(key_below(("spectra",), key), *words) for key, *words in group_mistakes(error)]
    return []


def path_from(directory: Path, value: str) -> Path:
    """Return the absolute path of a path in a campaign file, see :meth:`Campaign.path`."""
    path = (directory / Path(value).expanduser()).absolute()
    own = Path(__file__).parent / "templates" / "cp2k" / value
    return own if not path.exists() and Path(value).name == value and own.is_file() else path


def matching_files(directory: Path, pattern: str) -> tuple[Path, ...]:
    """Return the files that a path or pattern in a campaign file names, sorted; empty if there is none."""
    path = path_from(directory, pattern)
    if path.exists():
        return (path,)
    if not set(pattern) & set("*?"):
        return ()
    parts = path.relative_to(path.anchor)
    return tuple(sorted(Path(path.anchor).glob(str(parts))))


def named_files_of(data: Any) -> Iterator[tuple[KeyPath, str]]:
    """Yield key path and value of every path in plain values that need not be a valid campaign."""
    yield from _plain_files(Campaign, data, ())


def _plain_files(section: type[BaseModel], data: Any, key_path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(data, list | tuple):
        for i, entry in enumerate(data):
            yield from _plain_files(section, entry, (*key_path, i))
    elif isinstance(data, str) and section is TrajectoryFile:  # a path stands for {path: ...}
        yield key_path, data
    elif isinstance(data, Mapping):
        for name, info in section.model_fields.items():
            value, here = data.get(info.alias or name), (*key_path, info.alias or name)
            child = section_of(info.annotation)
            if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("file"):
                for i, text in enumerate(value if isinstance(value, list) else [value]):
                    if isinstance(text, str) and text:
                        yield (*here, i) if isinstance(value, list) else here, text
            elif child is not None:
                yield from _plain_files(child, value, here)


def _files(section: BaseModel, key_path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        here = (*key_path, info.alias or name)
        if extra.get("file"):
            if isinstance(value, str):
                yield here, value
            for i, entry in enumerate(value if isinstance(value, tuple) else ()):
                yield (*here, i), entry
        elif isinstance(value, BaseModel):
            yield from _files(value, here)
        elif isinstance(value, tuple):
            for i, entry in enumerate(value):
                if isinstance(entry, BaseModel):
                    yield from _files(entry, (*here, i))


def load_campaign(path: Path | str) -> Campaign:
    """Read a campaign file.

    Args:
        path: YAML file; paths in it are relative to its folder.

    Raises:
        CampaignFileError: one line for each mistake, with file and line.
    """
    path = Path(path)
    name = path.name
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise CampaignFileError([Problem((), f"campaign file {path} does not exist", "check the path")]) from None
    except IsADirectoryError:
        raise CampaignFileError([Problem((), f"{path} is a folder", "name the YAML file in it")]) from None
    except UnicodeDecodeError:
        problem = Problem((), "the file is not text in UTF-8", "save it as UTF-8", name)
        raise CampaignFileError([problem]) from None
    except OSError as error:
        raise CampaignFileError([Problem((), f"cannot read {path}", str(error.strerror))]) from None
    return parse_campaign(text, name=name, directory=path.absolute().parent)


def parse_campaign(text: str, name: str = "campaign.yaml", directory: Path | str | None = None) -> Campaign:
    """Read a campaign from the text of its file.

    Args:
        text: YAML.
        name: what messages call the file.
        directory: folder that paths in it are relative to, default the current one.

    Raises:
        CampaignFileError: one line for each mistake, with file and line.
    """
    data, lines = read_yaml(text, name)
    source = Source(name, Path(directory) if directory is not None else Path.cwd(), lines)
    return Campaign._validated(data, source)
