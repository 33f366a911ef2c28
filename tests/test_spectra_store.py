"""spectra.nc: others' tools open it, it gives back what was put in, and other forms come from it."""

import json
import shutil

import h5py
import jcamp
import numpy as np
import pytest
import xarray

from mimyria_wf import plots
from mimyria_wf.derivatives import PAIR_NAMES, DerivativeSeries, write_derivatives
from mimyria_wf.errors import SpectrumError
from mimyria_wf.geometry import ScatteringGeometry
from mimyria_wf.intensity import RamanForm
from mimyria_wf.spectra_files import plot_files, raman_files, read_table, spectra_files
from mimyria_wf.spectra_store import read_store
from mimyria_wf.spectrum import LINESHAPE_NAMES, SpectrumSettings, ir_spectrum, raman_spectrum
from mimyria_wf.units import BOLTZMANN, HBAR, C

QUICK = SpectrumSettings(n_bootstrap=50, upper_wavenumber=4000.0, spacing=5.0)
GROUPS = ("solute", "first_shell", "rest")


def correlated(rng, n_frames, shape):
    """Noise that oscillates at some 1600 and 3400 cm^-1."""
    noise = rng.normal(size=(n_frames + 200, *shape))
    time = 0.5 * np.arange(200)
    kernel = sum(np.exp(-time / 30) * np.cos(2 * np.pi * nu * 2.998e-5 * time) for nu in (1600, 3400))
    return np.apply_along_axis(lambda x: np.convolve(x, kernel, "valid")[:n_frames], 0, noise)


def series(i, groups=GROUPS, n_frames=2500):
    rng = np.random.default_rng(i)
    dipole = 1e-3 * correlated(rng, n_frames, (len(groups), 3))
    polarizability = 1e-2 * correlated(rng, n_frames, (len(groups), 6))
    if len(groups) > 1:
        dipole[:, 1] -= 0.7 * dipole[:, 2]  # negative cross terms
    return DerivativeSeries(
        f"nve-{i:03d}", 0.5, 250.0 + 50 * i, dipole, polarizability, groups, volume=900.0, is_periodic=True
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Spectra of three runs in three groups, without figures."""
    path = tmp_path_factory.mktemp("spectra")
    runs = [series(i) for i in range(3)]
    for run in runs:
        write_derivatives(path / f"{run.name}.h5", run)
    files = sorted(path.glob("*.h5"))
    summary = spectra_files(files, path / "out", settings=QUICK, draws=False)
    return path / "out", runs, summary


def test_opens_with_tools_of_others(folder):
    out, runs, summary = folder
    with xarray.open_dataset(out / "spectra.nc") as data:
        sizes = {"wavenumber": len(data.wavenumber), "trajectory": 3, "lineshape": 21, "component": 6, "part": 6}
        assert dict(data.sizes) == sizes
        assert data.wavenumber.attrs["units"] == "cm^-1"
        assert list(data.component.values) == list(PAIR_NAMES)
        assert list(data.lineshape.values) == list(LINESHAPE_NAMES)
        assert list(data.trajectory.values) == [run.name for run in runs]
        assert data.part.values[1] == "solute x first_shell"
        for name in data.variables:
            assert data[name].attrs["long_name"], name
            assert data[name].dtype.kind not in "fi" or data[name].attrs["units"], name
        assert data.ir_n_alpha.dtype == "f8"
        assert data.raman_weighted_per_trajectory.dtype == "f4"
        assert json.loads(data.attrs["settings"])["window"] == "hann"
        assert json.loads(data.attrs["gates"]) == summary["gates"]
        assert json.loads(data.trajectory_record.values[1])["temperature"] == 300.0
        for column, values in read_table(out / "raman.csv").items():
            name = column if column == "wavenumber" else f"raman_{column}"
            np.testing.assert_allclose(data[name], values, rtol=1e-9)
        assert np.isnan(data.raman_vv[data.wavenumber < QUICK.mask]).all()
        xxxx = data.raman_weighted.sel(lineshape="xxxx").interp(wavenumber=1600.0)
        assert float(xxxx) > 0
        # exact additivity survives the file
        total = data.ir_n_alpha
        np.testing.assert_allclose(data.cca_ir.sum("part"), total, rtol=0, atol=1e-10 * float(total.max()))
        largest = np.abs(data.raman_weighted).max("wavenumber")
        difference = np.abs(data.cca_raman_weighted.sum("part") - data.raman_weighted).max("wavenumber")
        assert float((difference / largest).max()) < 1e-10


def test_gives_back_what_was_put_in(folder):
    out, runs, summary = folder
    stored = read_store(out)
    ir, raman = ir_spectrum(runs, QUICK), raman_spectrum(runs, QUICK)
    assert stored.summary == {key: value for key, value in summary.items() if key != "files"}
    assert stored.ir.settings == QUICK
    assert stored.ir.runs.names == ir.runs.names
    np.testing.assert_array_equal(stored.ir.n_alpha, ir.n_alpha)
    np.testing.assert_array_equal(stored.ir.tensor, ir.tensor)
    np.testing.assert_array_equal(stored.raman.weighted_lineshapes, raman.weighted_lineshapes)
    scale = np.abs(raman.per_trajectory).max()
    np.testing.assert_allclose(stored.raman.per_trajectory, raman.per_trajectory, rtol=0, atol=1e-7 * scale)  # 24 bits
    np.testing.assert_allclose(stored.raman.errors["vv"], raman.errors["vv"], rtol=1e-4)
    np.testing.assert_allclose(stored.ir.tensor_error, ir.tensor_error, rtol=1e-4)
    np.testing.assert_array_equal(stored.ir.integrals, ir.integrals)
    assert [part.name for part in stored.cca.parts][-1] == "rest"
    np.testing.assert_allclose(stored.cca.ir.sum(axis=0), ir.n_alpha, rtol=0, atol=1e-10 * ir.n_alpha.max())
    assert read_store(out / "spectra.nc").summary == stored.summary


def test_raman_in_any_geometry_and_form_afterwards(folder, tmp_path):
    out, runs, _ = folder
    form = RamanForm("harmonic", laser_nm=532.0)
    result = raman_files(out, tmp_path, ["Z(XY)-Z", "1,1,0:0,0,1"], form)
    assert sorted(result["files"]) == sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()
    )
    assert "harmonic" in result["kind"]
    raman = raman_spectrum(runs, QUICK)
    nu = raman.wavenumber
    # by hand, each run with its own temperature: (w_in - w)^4 / w_in^4 x / (1 - exp(-x)) / nu^2
    x = HBAR * 2 * np.pi * C * 100 * nu / (BOLTZMANN * np.array([[run.temperature] for run in runs]))
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = (1 - nu * 532e-7) ** 4 * x / (1 - np.exp(-x)) / nu**2
    geometry = ScatteringGeometry.parse("Z(XY)-Z")
    expected = np.mean(factor * geometry.intensity(raman.per_trajectory), axis=0)
    table = read_table(tmp_path / f"raman_geometries_{form.stem}.csv")
    kept = nu > 70
    np.testing.assert_allclose(table[geometry.file_name][kept], expected[kept], rtol=1e-5)
    assert np.isnan(table[geometry.file_name][~(nu >= QUICK.mask)]).all()
    assert np.all(table[f"{geometry.file_name}_error"][kept] > 0)
    averages = read_table(tmp_path / f"raman_{form.stem}.csv")
    # crossed polarizations of a powder are VH
    np.testing.assert_allclose(table[f"{geometry.file_name}_powder"][kept], averages["vh"][kept], rtol=1e-8)
    np.testing.assert_allclose(
        averages["vv"][kept], np.mean(factor * raman.weighted_per_trajectory["vv"], axis=0)[kept], rtol=1e-5
    )
    found = jcamp.readfile(str(tmp_path / "jcamp" / f"raman_{form.stem}_vv.jdx"))
    np.testing.assert_allclose(found["y"], averages["vv"][nu >= QUICK.mask], atol=2e-9 * averages["vv"][kept].max())
    assert "harmonic" in found["$kind"]
    assert found["data type"] == "RAMAN SPECTRUM"


def test_classical_geometries_are_the_stored_lineshapes(folder, tmp_path):
    out, _, _ = folder
    result = raman_files(out, tmp_path, ["Z(XX)Z"], draws=False)
    assert "raman.csv" not in result["files"]  # the folder of spectra has it
    table = read_table(tmp_path / "raman_geometries.csv")
    np.testing.assert_allclose(table["Z_XX_Z"], read_table(out / "lineshapes.csv")["xxxx"], rtol=1e-8)


def test_the_stored_table_and_earlier_geometries_stay(folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folder[0], out)
    before = (out / "raman.csv").read_bytes()
    result = raman_files(out, draws=False)
    assert (out / "raman.csv").read_bytes() == before
    assert result["files"] == []
    assert "left alone" in result["notes"][0]
    raman_files(out, geometries=["Z(XX)Z"], draws=False)
    alone = read_table(out / "raman_geometries.csv")
    raman_files(out, geometries=["1,1,0:0,0,1"], draws=False)
    both = read_table(out / "raman_geometries.csv")
    np.testing.assert_array_equal(both["Z_XX_Z"], alone["Z_XX_Z"])
    assert "1_1_0__0_0_1" in both
    raman_files(out, geometries=["Z(XX)Z"], form=RamanForm("harmonic"), draws=False)
    raman_files(out, form=RamanForm("harmonic"), draws=False)  # forgets no geometry
    summary = json.loads((out / "summary.json").read_text())
    found = {form: list(record["geometries"]) for form, record in summary["raman_forms"].items()}
    assert found == {"classical": ["Z(XX)Z", "1,1,0:0,0,1"], "harmonic": ["Z(XX)Z"]}
    assert set(summary["files"]) == {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    raman_files(out, tmp_path / "elsewhere", draws=False)
    assert list(read_table(tmp_path / "elsewhere" / "raman.csv")) == list(read_table(out / "raman.csv"))
    with pytest.raises(SpectrumError, match="holds other spectra"):
        raman_files(folder[0], out, form=RamanForm("harmonic"), draws=False)


def test_files_say_what_they_hold(folder, tmp_path):
    out = folder[0]
    for form, quantity in (
        (RamanForm("susceptibility"), "chi''(w)"),
        (RamanForm(is_divided=False), "nu^2 I(w)"),
        (RamanForm("harmonic"), "I(w)"),
    ):
        raman_files(out, tmp_path, ["Z(XX)Z"], form, draws=False)
        for name in ("vv", "Z_XX_Z"):
            assert jcamp.readfile(str(tmp_path / "jcamp" / f"raman_{form.stem}_{name}.jdx"))["$quantity"] == quantity
    files = json.loads((tmp_path / "summary.json").read_text())["files"]
    assert files["raman_susceptibility.csv"] == f"Raman, {RamanForm('susceptibility').label}"
    assert files["raman_geometries_harmonic.csv"] == f"Raman, {RamanForm('harmonic').label}"
    stored = json.loads((out / "summary.json").read_text())["files"]
    assert stored["raman.csv"].startswith("Raman, classical")
    assert "times nu^2" in stored["raman_weighted.csv"]
    assert "times nu^2" not in stored["cca_raman_vv.csv"]


def test_overlay_shows_the_warnings_of_all_folders(folder, tmp_path, monkeypatch):
    seen = {}

    def draw(*args, warning="", **kwargs):
        seen["warning"] = warning
        return []

    monkeypatch.setattr(plots, "plot_overlay", draw)
    for name in ("one", "two"):
        shutil.copytree(folder[0], tmp_path / name)
        with h5py.File(tmp_path / name / "spectra.nc", "r+") as file:
            gates = [{"name": f"gate of {name}", "passed": False}]
            file.attrs["gates"] = json.dumps(gates)
    plot_files([tmp_path / "one", tmp_path / "two"], tmp_path / "x.png")
    assert "one: Failed: gate of one" in seen["warning"]
    assert "two: Failed: gate of two" in seen["warning"]


def test_overlay_says_how_curves_are_scaled(folder, tmp_path):
    out, _, _ = folder
    nu = np.linspace(100, 3900, 50)
    absolute, scaled = tmp_path / "absolute.csv", tmp_path / "scaled.csv"
    rows = "\n".join(f"{x} {y}" for x, y in zip(nu, 2 + np.cos(nu / 300)))
    absolute.write_text(f"# units: cm^-1, 10^3 cm^-1\n{rows}")
    scaled.write_text(f"# units: cm^-1, arbitrary units\n{rows}")
    result = plot_files([out], tmp_path / "a.png", measured=[absolute, scaled])
    assert result["files"] == ["a.png", "a.pdf"]
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    computed, first, second = result["curves"]
    assert (computed["factor"], first["factor"]) == (1, 1)
    assert "(absolute)" in first["label"]
    n_alpha = read_store(out).ir
    inside = (n_alpha.wavenumber >= nu[0]) & (n_alpha.wavenumber <= nu[-1])
    largest = (2 + np.cos(nu / 300)).max()
    assert second["factor"] == pytest.approx(n_alpha.n_alpha[inside].max() / largest)
    assert f"scaled by {second['factor']:.4g}" in second["label"]
    half = tmp_path / "half.csv"
    half.write_text("# units: cm^-1, counts\n1500 1\n1700 3\n")
    partial = plot_files([out], tmp_path / "a.png", measured=[half])["curves"][1]
    inside = (n_alpha.wavenumber >= 1500) & (n_alpha.wavenumber <= 1700)
    assert partial["factor"] == pytest.approx(n_alpha.n_alpha[inside].max() / 3)
    mixed = plot_files([out], tmp_path / "b.png", spectra=["ir", "vv", "Z(XX)Z"])
    assert all("(scaled)" in curve["label"] for curve in mixed["curves"])
    forms = plot_files([out], tmp_path / "c.png", spectra=["vv"], forms=[RamanForm(), RamanForm("harmonic")])
    assert [curve["label"] for curve in forms["curves"]] == ["VV, classical", "VV, harmonic"]
    twice = plot_files([out, out / "spectra.nc"], tmp_path / "d.png", labels=["one", "two"], normalise="integral")
    assert twice["curves"][0]["factor"] == twice["curves"][1]["factor"] != 1


def test_bad_input_has_a_clear_line(folder, tmp_path):
    out, _, _ = folder
    with pytest.raises(SpectrumError, match=r"spectra\.nc: no such file; `mimyria-wf spectra` writes it"):
        read_store(tmp_path)
    (tmp_path / "spectra.nc").write_text("no")
    with pytest.raises(SpectrumError, match="cannot be read as NetCDF-4"):
        read_store(tmp_path)
    write_derivatives(tmp_path / "other.h5", series(0))
    with pytest.raises(SpectrumError, match="expected the format 'mimyria_wf spectra 1'"):
        read_store(tmp_path / "other.h5")
    with pytest.raises(SpectrumError, match="is asked for twice"):
        raman_files(out, tmp_path, ["Z(XX)Z", "Z(XX)Z"], draws=False)
    with pytest.raises(SpectrumError, match="cannot be read"):
        raman_files(out, tmp_path, ["Q(XX)Z"], draws=False)
    for kwargs, message in (
        ({"spectra": ["ir", "vv"], "normalise": "absolute"}, "different units"),
        ({"lower": 5000.0, "upper": 6000.0}, "no points between 5000 and 6000"),
        ({"lower": 2.0, "upper": 1.0}, "range must increase"),
        ({"labels": ["a", "b"]}, "2 labels for 1 folders"),
        ({"normalise": "area"}, "normalise is one of"),
        ({"spectra": ["nonsense"]}, "cannot be read"),
    ):
        with pytest.raises(SpectrumError, match=message):
            plot_files([out], tmp_path / "x.png", **kwargs)
    with pytest.raises(SpectrumError, match="given twice"):
        plot_files([out, out], tmp_path / "x.png")
    with pytest.raises(SpectrumError, match="no folder"):
        plot_files([], tmp_path / "x.png")
    only = tmp_path / "only"
    only.mkdir()
    run = series(0, ("all",))
    for name, target in (("ir", {"polarizability_derivative": None}), ("raman", {"dipole_derivative": None})):
        values = {key: getattr(run, key) for key in ("dipole_derivative", "polarizability_derivative")} | target
        single = DerivativeSeries("a", 0.5, 300.0, **values, volume=900.0, is_periodic=True)
        write_derivatives(only / f"{name}.h5", single)
        spectra_files([only / f"{name}.h5"], only / name, settings=QUICK, draws=False)
    with pytest.raises(SpectrumError, match="holds no Raman spectra"):
        raman_files(only / "ir", tmp_path, draws=False)
    with pytest.raises(SpectrumError, match="holds no IR spectrum"):
        plot_files([only / "raman"], tmp_path / "x.png")
    with pytest.raises(SpectrumError, match="need polarizability derivatives"):
        spectra_files([only / "ir.h5"], only / "out", settings=QUICK, draws=False, geometries=["Z(XX)Z"])


def test_files_of_an_earlier_call_go_and_nothing_else_does(tmp_path):
    out = tmp_path / "out"
    for name, groups in (("water", GROUPS), ("quartz", ("all",))):
        run = series(0, groups)
        if name == "quartz":
            run = DerivativeSeries(
                "q", 0.5, 300.0, None, run.polarizability_derivative, groups, volume=900.0, is_periodic=True
            )
        write_derivatives(tmp_path / f"{name}.h5", run)
    spectra_files([tmp_path / "water.h5"], out, settings=QUICK, draws=False)
    raman_files(out, form=RamanForm("harmonic"), draws=False)
    assert {"ir.csv", "cca_ir.csv", "raman_harmonic.csv"} <= {path.name for path in out.iterdir()}
    mine = [out / "mine.csv", out / "jcamp" / "mine.jdx", tmp_path / "outside.csv", out / "sub" / "ir.csv"]
    (out / "sub").mkdir()
    for path in mine:
        path.write_text("mine")
    summary = json.loads((out / "summary.json").read_text())
    summary["files"] |= {"../outside.csv": "", str(tmp_path / "outside.csv"): "", "sub/ir.csv": ""}
    (out / "summary.json").write_text(json.dumps(summary))
    summary = spectra_files([tmp_path / "quartz.h5"], out, settings=QUICK, draws=False)
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == {*summary["files"], "mine.csv", "jcamp/mine.jdx", "sub/ir.csv"}
    assert "ir.csv" not in found
    assert all(path.read_text() == "mine" for path in mine)


def test_overlay_doubts_units(folder, tmp_path):
    ir = read_store(folder[0]).ir
    nu, n_alpha = ir.wavenumber, ir.n_alpha
    for factor, text in ((1.0, ""), (20.0, ""), (1 / 20, ""), (100.0, "second axis"), (1 / 100, "second axis")):
        path = tmp_path / "measured.csv"
        rows = "\n".join(f"{x} {y}" for x, y in zip(nu, factor * n_alpha))
        path.write_text(f"# units: cm^-1, cm^-1\n{rows}")
        result = plot_files([folder[0]], tmp_path / "a.png", measured=[path])
        assert len(result["notes"]) == bool(text)
        assert text in "".join(result["notes"])
        assert ("absolute, units?" if text else "(absolute)") in result["curves"][1]["label"]
    files = sorted(folder[0].parent.glob("*.h5"))
    summary = spectra_files(files, tmp_path / "out", settings=QUICK, draws=False, measured=[path])
    assert [note for note in summary["notes"] if "second axis" in note] == [summary["measured"][0]["note"]]
    path.write_text("# units: cm^-1, counts\n" + "\n".join(f"{x} 1" for x in np.linspace(3, 120, 40)))  # THz
    (note,) = plot_files([folder[0]], tmp_path / "a.png", measured=[path])["notes"]
    assert "from 3 to 120 cm^-1 and hardly overlaps" in note
    with pytest.raises(SpectrumError, match=r"c\.xyz: a picture ends in \.png, \.pdf, \.svg, not in '\.xyz'"):
        plot_files([folder[0]], tmp_path / "c.xyz")
    assert plot_files([folder[0]], tmp_path / "c.svg")["files"] == ["c.svg", "c.pdf"]
