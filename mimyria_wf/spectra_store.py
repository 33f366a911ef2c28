"""``spectra.nc``: everything that a set of spectra is, in NetCDF-4, for any scattering geometry or form afterwards.

Dimensions ``wavenumber``, ``trajectory``, ``lineshape`` (the 21 pairs of polarizability components), ``component`` (xx
yy zz yz xz xy) and ``part`` (of the cross-correlation analysis). Raman is read as the classical nu^2 I only, which is
finite everywhere; 1/nu^2, quantum and laser factors are applied afterwards and can thus not be applied twice. Means are
double precision; spectra of single runs, which errors and factors that depend on a run's temperature are made from,
single precision. Settings, gates, notes and the record of each run are JSON in attributes and string variables.

The averages with 1/nu^2 and the depolarization ratio stand beside it for the programs of others and are not read back.
Forms and scattering geometries are in tables of their own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
from numpy.typing import NDArray

from mimyria_wf.cca import CcaSpectra, Part
from mimyria_wf.derivatives import PAIR_NAMES
from mimyria_wf.errors import SpectrumError
from mimyria_wf.spectrum import (
    IR_KIND,
    IR_UNIT,
    LINESHAPE_NAMES,
    RAMAN_KIND,
    RAMAN_UNIT,
    RAMAN_WEIGHTED_UNIT,
    IrSpectrum,
    RamanKind,
    RamanSpectrum,
    Runs,
    SpectrumSettings,
)

Array = NDArray[Any]

STORE_NAME = "spectra.nc"
FORMAT = "mimyria_wf spectra 1"
_WEIGHTED_KIND = "classical nu^2 I(nu), no laser factor, no Bose factor"
INTENSITY_THRESHOLD = 0.01
"""Fraction of the largest nu^2 VV below which a depolarization ratio is not given."""
_MODEL_ERROR = "error of the network, root mean square deviation of the committee's members from the prediction"
_MEMBER_KINDS: tuple[RamanKind, ...] = ("iso", "vh")
_RECORDS = ("gates", "notes", "kind", "units", "settings", "corrections", "cca")
"""Entries of the summary that become attributes."""


@dataclass(frozen=True)
class StoredSpectra:
    """What a file of spectra holds.

    Attributes:
        ir: IR spectrum, or None.
        raman: Raman lineshapes, or None.
        cca: parts of the cross-correlation analysis, or None.
        summary: as in ``summary.json``.
    """

    ir: IrSpectrum | None
    raman: RamanSpectrum | None
    cca: CcaSpectra | None
    summary: Mapping[str, Any]


def write_store(
    path: str | Path,
    ir: IrSpectrum | None,
    raman: RamanSpectrum | None,
    cca: CcaSpectra | None,
    summary: Mapping[str, Any],
) -> str:
    """Write spectra of the same runs on the same axis; returns the file's name."""
    path = Path(path)
    spectrum = ir or raman
    assert spectrum is not None
    with h5netcdf.File(path, "w") as file:
        file.attrs["Conventions"] = "CF-1.11"
        file.attrs["format"] = FORMAT
        file.attrs["title"] = "IR and Raman spectra from molecular dynamics"
        file.attrs["source"] = "mimyria_wf"
        file.attrs["spectrum_settings"] = json.dumps(asdict(spectrum.settings))
        for key in _RECORDS:
            if key in summary:
                file.attrs[key] = json.dumps(summary[key])
        others = {key: value for key, value in summary.items() if key not in (*_RECORDS, "trajectories")}
        file.attrs["summary"] = json.dumps(others)
        writer = _Writer(file)
        writer.axis("wavenumber", spectrum.wavenumber, "cm^-1", "wavenumber, omega / (2 pi c)")
        writer.names("trajectory", spectrum.runs.names, "name of the run")
        writer.names("component", PAIR_NAMES, "pair of Cartesian axes, symmetric")
        _write_runs(writer, spectrum.runs, summary.get("trajectories", []))
        if ir is not None:
            _write_ir(writer, ir)
        if raman is not None:
            _write_raman(writer, raman)
        if cca is not None:
            _write_cca(writer, cca)
    return path.name


class _Writer:
    """Creates dimensions and variables with unit and name."""

    def __init__(self, file: h5netcdf.File) -> None:
        self.file = file

    def axis(self, name: str, values: Array, unit: str, long_name: str) -> None:
        self.file.dimensions[name] = len(values)
        self.put(name, (name,), values, unit, long_name)

    def names(self, dimension: str, names: Sequence[str], long_name: str) -> None:
        self.file.dimensions[dimension] = len(names)
        self.texts(dimension, dimension, names, long_name)

    def texts(self, name: str, dimension: str, texts: Sequence[str], long_name: str) -> None:
        variable = self.file.create_variable(name, (dimension,), dtype=h5py.string_dtype())
        variable[:] = np.array(texts, dtype=object)
        variable.attrs["long_name"] = long_name

    def put(
        self, name: str, dimensions: tuple[str, ...], values: Array, unit: str, long_name: str, **attributes: str
    ) -> None:
        """Write one variable; what is per trajectory in single precision."""
        values = np.asarray(values)
        is_per_run = len(dimensions) > 1 and dimensions[0] == "trajectory" and dimensions[-1] == "wavenumber"
        if is_per_run:
            values = values.astype(np.float32)
        # single precision has few bits that compress, doubles of smooth spectra hardly any
        options: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if is_per_run else {}
        variable = self.file.create_variable(name, dimensions, data=values, **options)
        variable.attrs.update({"units": unit, "long_name": long_name, **attributes})


def _write_runs(writer: _Writer, runs: Runs, records: Sequence[Mapping[str, Any]]) -> None:
    along = ("trajectory",)
    writer.put("n_frames", along, np.asarray(runs.n_frames, dtype=np.int64), "1", "frames, weights of the means")
    writer.put("temperature", along, runs.temperatures, "K", "kinetic temperature of the run")
    writer.put("timestep", (), np.array(runs.timestep), "fs", "time between frames")
    writer.texts("origin", "trajectory", runs.origins or ("velocities",) * len(runs.names), "origin of the derivatives")
    if records:
        writer.texts("trajectory_record", "trajectory", [json.dumps(r) for r in records], "record of the run, JSON")


def _write_ir(writer: _Writer, ir: IrSpectrum) -> None:
    nu = "wavenumber"
    about = {"kind": IR_KIND}
    writer.put("ir_n_alpha", (nu,), ir.n_alpha, IR_UNIT, "IR absorption n(w) alpha(w)", **about)
    writer.put("ir_n_alpha_error", (nu,), ir.error, IR_UNIT, "standard error over trajectories")
    writer.put("ir_n_alpha_per_trajectory", ("trajectory", nu), ir.per_trajectory, IR_UNIT, "n(w) alpha(w) of each run")
    writer.put("ir_integral", ("trajectory",), ir.integrals, "cm^-2", "integral of n alpha over the whole axis")
    if ir.raw_integrals is not None:
        text = "the same before the correction of differences"
        writer.put("ir_raw_integral", ("trajectory",), ir.raw_integrals, "cm^-2", text)
    text = "IR absorption tensor; n alpha is the mean of xx, yy and zz"
    writer.put("ir_tensor", ("component", nu), ir.tensor, IR_UNIT, text, **about)
    writer.put("ir_tensor_error", ("component", nu), ir.tensor_error, IR_UNIT, "standard error over trajectories")
    text = "IR absorption tensor of each run"
    writer.put("ir_tensor_per_trajectory", ("trajectory", "component", nu), ir.tensor_per_trajectory, IR_UNIT, text)

    if ir.members is not None and ir.model_error is not None:
        writer.file.dimensions.setdefault("member", len(ir.members))
        writer.put("ir_n_alpha_model_error", (nu,), ir.model_error, IR_UNIT, _MODEL_ERROR)
        writer.put("ir_members", ("member", nu), ir.members, IR_UNIT, "n(w) alpha(w) of each member of the committee")


def _write_raman(writer: _Writer, raman: RamanSpectrum) -> None:
    nu = "wavenumber"
    writer.names("lineshape", LINESHAPE_NAMES, "pair of polarizability components")
    text = "nu^2 times the classical Raman lineshape, Eq. 7"
    about = {"kind": _WEIGHTED_KIND, "undefined_below_without_weight": f"{raman.settings.mask:.6g} cm^-1"}
    values = raman.weighted_lineshapes
    writer.put("raman_weighted", ("lineshape", nu), values, RAMAN_WEIGHTED_UNIT, text, **about)
    writer.put(
        "raman_weighted_per_trajectory",
        ("trajectory", "lineshape", nu),
        raman.per_trajectory,
        RAMAN_WEIGHTED_UNIT,
        "the same of each run",
        kind=_WEIGHTED_KIND,
    )
    unit = "e^4 a0^4 E_h^-2 cm^-2"
    text = "integral of nu^2 I over the whole axis"
    writer.put("raman_integral", ("trajectory", "lineshape"), raman.integrals, unit, text)
    if raman.raw_integrals is not None:
        text = "the same before the correction of differences"
        writer.put("raman_raw_integral", ("trajectory", "lineshape"), raman.raw_integrals, unit, text)
    for kind, mean in raman.weighted.items():
        writer.put(f"raman_weighted_{kind}", (nu,), mean, RAMAN_WEIGHTED_UNIT, f"{kind} of nu^2 I", kind=_WEIGHTED_KIND)
        error = raman.weighted_errors[kind]
        writer.put(
            f"raman_weighted_{kind}_error", (nu,), error, RAMAN_WEIGHTED_UNIT, "standard error over trajectories"
        )

    if raman.members is not None:
        writer.file.dimensions.setdefault("member", len(raman.members))
        for kind, error in raman.weighted_model_errors.items():
            writer.put(f"raman_weighted_{kind}_model_error", (nu,), error, RAMAN_WEIGHTED_UNIT, _MODEL_ERROR)
        for index, kind in enumerate(_MEMBER_KINDS):
            text = f"{kind} of nu^2 I of each member of the committee"
            values = raman.members[:, index]
            writer.put(f"raman_weighted_{kind}_members", ("member", nu), values, RAMAN_WEIGHTED_UNIT, text)
    for name in ("iso", "aniso", "vv", "vh"):
        text = f"{name} of the classical Raman lineshape with 1/w^2, nan below the mask; for reading, not for forms"
        writer.put(f"raman_{name}", (nu,), getattr(raman, name), RAMAN_UNIT, text, kind=RAMAN_KIND)
        writer.put(f"raman_{name}_error", (nu,), raman.errors[name], RAMAN_UNIT, "standard error over trajectories")
    ratio = judged_depolarization(raman)
    text = f"VH/VV, nan below the mask and where nu^2 VV is below {100 * INTENSITY_THRESHOLD:g} % of its maximum"
    writer.put("raman_depolarization", (nu,), ratio, "1", text)
    error = np.where(np.isfinite(ratio), raman.errors["depolarization"], np.nan)
    writer.put("raman_depolarization_error", (nu,), error, "1", "standard error over trajectories")


def judged_depolarization(raman: RamanSpectrum) -> Array:
    """Return VH/VV, (n,), NaN below the mask and where nu^2 VV is below 1 % of its largest value above the mask."""
    vv, ratio = raman.weighted["vv"], raman.depolarization
    is_defined = np.isfinite(ratio)
    if not is_defined.any():
        return ratio
    return np.where(is_defined & (vv > INTENSITY_THRESHOLD * vv[is_defined].max()), ratio, np.nan)


def _write_cca(writer: _Writer, cca: CcaSpectra) -> None:
    nu = "wavenumber"
    writer.names("part", [part.name for part in cca.parts], "part of the cross-correlation analysis")
    writer.texts("part_first", "part", [part.first for part in cca.parts], "group")
    writer.texts("part_second", "part", [part.second for part in cca.parts], "group")
    writer.texts("part_relation", "part", [part.relation or "" for part in cca.parts], "relation; empty: any")
    error = "standard error over trajectories"
    if cca.ir_per_trajectory is not None:
        writer.put("cca_ir", ("part", nu), cca.ir, IR_UNIT, "parts of n alpha; they sum to ir_n_alpha", kind=IR_KIND)
        writer.put("cca_ir_error", ("part", nu), cca.ir_error, IR_UNIT, error)
        text = "parts of n alpha of each run"
        writer.put("cca_ir_per_trajectory", ("trajectory", "part", nu), cca.ir_per_trajectory, IR_UNIT, text)
    if cca.ir_tensor is not None:
        text = "parts of the IR absorption tensor"
        writer.put("cca_ir_tensor", ("part", "component", nu), cca.ir_tensor, IR_UNIT, text, kind=IR_KIND)
    if cca.weighted_lineshapes is not None:
        text = "parts of nu^2 I; they sum to raman_weighted"
        dimensions = ("part", "lineshape", nu)
        writer.put(
            "cca_raman_weighted", dimensions, cca.weighted_lineshapes, RAMAN_WEIGHTED_UNIT, text, kind=_WEIGHTED_KIND
        )
    for kind, values in (cca.weighted_per_trajectory or {}).items():
        text = f"parts of nu^2 I, {kind}, of each run"
        name = f"cca_raman_weighted_{kind}_per_trajectory"
        writer.put(name, ("trajectory", "part", nu), values, RAMAN_WEIGHTED_UNIT, text, kind=_WEIGHTED_KIND)


def store_path(path: str | Path) -> Path:
    """Return the file of spectra in a folder, or the path itself if it is one.

    Raises:
        SpectrumError: it is not there.
    """
    path = Path(path)
    found = path / STORE_NAME if path.is_dir() else path
    if not found.is_file():
        raise SpectrumError(f"{found}: no such file; `mimyria-wf spectra` writes it")
    return found


def read_store(path: str | Path) -> StoredSpectra:
    """Read ``spectra.nc``, or the one in a folder.

    Raises:
        SpectrumError: no such file, or not one of ours.
    """
    path = store_path(path)
    try:
        file = h5netcdf.File(path, "r")
    except OSError as error:
        raise SpectrumError(f"{path} cannot be read as NetCDF-4: {error}") from None
    with file:
        if file.attrs.get("format") != FORMAT:
            raise SpectrumError(f"{path}: expected the format {FORMAT!r}, found {file.attrs.get('format')!r}")
        summary = json.loads(file.attrs["summary"])
        summary |= {key: json.loads(file.attrs[key]) for key in _RECORDS if key in file.attrs}
        if "trajectory_record" in file.variables:
            summary["trajectories"] = [json.loads(text) for text in _texts(file, "trajectory_record")]
        settings = SpectrumSettings(**json.loads(file.attrs["spectrum_settings"]))
        runs = Runs(
            tuple(_texts(file, "trajectory")),
            _values(file, "n_frames"),
            float(_values(file, "timestep")),
            _values(file, "temperature"),
            tuple(_texts(file, "origin")),
        )
        nu = _values(file, "wavenumber")
        return StoredSpectra(
            _read_ir(file, nu, runs, settings),
            _read_raman(file, nu, runs, settings),
            _read_cca(file, nu, runs, settings),
            summary,
        )


def _values(file: h5netcdf.File, name: str) -> Array:
    values = np.asarray(file.variables[name][...])
    return values.astype(float) if values.dtype.kind == "f" else values


def _optional(file: h5netcdf.File, name: str) -> Array | None:
    return _values(file, name) if name in file.variables else None


def _texts(file: h5netcdf.File, name: str) -> list[str]:
    return [text.decode() if isinstance(text, bytes) else str(text) for text in file.variables[name][...]]


def _read_ir(file: h5netcdf.File, nu: Array, runs: Runs, settings: SpectrumSettings) -> IrSpectrum | None:
    if "ir_n_alpha" not in file.variables:
        return None
    ir = IrSpectrum(
        wavenumber=nu,
        per_trajectory=_values(file, "ir_n_alpha_per_trajectory"),
        integrals=_values(file, "ir_integral"),
        runs=runs,
        settings=settings,
        tensor_per_trajectory=_values(file, "ir_tensor_per_trajectory"),
        raw_integrals=_optional(file, "ir_raw_integral"),
        members=_optional(file, "ir_members"),
    )
    # the means are stored in double precision, what is left of the runs is not: keep the better ones
    vars(ir)["n_alpha"] = _values(file, "ir_n_alpha")
    vars(ir)["error"] = _values(file, "ir_n_alpha_error")
    vars(ir)["tensor"] = _values(file, "ir_tensor")
    return ir


def _read_raman(file: h5netcdf.File, nu: Array, runs: Runs, settings: SpectrumSettings) -> RamanSpectrum | None:
    if "raman_weighted" not in file.variables:
        return None
    per_trajectory, integrals = _values(file, "raman_weighted_per_trajectory"), _values(file, "raman_integral")
    members = None
    if "raman_weighted_iso_members" in file.variables:
        members = np.stack([_values(file, f"raman_weighted_{kind}_members") for kind in _MEMBER_KINDS], axis=1)
    raman = RamanSpectrum(nu, per_trajectory, integrals, runs, settings, _optional(file, "raman_raw_integral"), members)
    vars(raman)["weighted_lineshapes"] = _values(file, "raman_weighted")
    return raman


def _read_cca(file: h5netcdf.File, nu: Array, runs: Runs, settings: SpectrumSettings) -> CcaSpectra | None:
    if "part" not in file.variables:
        return None
    known = zip(*(_texts(file, name) for name in ("part_first", "part_second", "part_relation")))

    kinds: tuple[RamanKind, ...] = ("iso", "vh")
    weighted: dict[RamanKind, Array] = {}
    for kind in kinds:
        values = _optional(file, f"cca_raman_weighted_{kind}_per_trajectory")
        if values is not None:
            weighted[kind] = values
    cca = CcaSpectra(
        wavenumber=nu,
        parts=tuple(Part(first, second, relation or None) for first, second, relation in known),
        ir_per_trajectory=_optional(file, "cca_ir_per_trajectory"),
        weighted_per_trajectory=weighted or None,
        weighted_lineshapes=_optional(file, "cca_raman_weighted"),
        ir_tensor=_optional(file, "cca_ir_tensor"),
        runs=runs,
        settings=settings,
    )
    if cca.ir_per_trajectory is not None:
        vars(cca)["ir"] = _values(file, "cca_ir")
    return cca
