"""JCAMP-DX: what is written is valid, and a reader that is not ours finds the same numbers."""

import re

import jcamp
import numpy as np
import pytest

from mimyria_wf.errors import SpectrumError
from mimyria_wf.exchange import read_jcamp, write_jcamp

NU = np.arange(1200) * 2.0
VALUES = 1e-3 * np.exp(-(((NU - 1650) / 40) ** 2)) - 2e-4 * np.exp(-(((NU - 700) / 90) ** 2))
ABOUT = {"title": "water, IR", "data_type": "INFRARED SPECTRUM", "quantity": "n(w) alpha(w)", "unit": "cm^-1"}


def write(path, nu=NU, values=VALUES, **kwargs):
    return write_jcamp(path, nu, values, kind="harmonic (Kubo)", **{**ABOUT, **kwargs})


def test_round_trip_through_an_independent_reader(tmp_path, capsys):
    assert write(tmp_path / "a.jdx", comment="window " * 40, labels={"temperature": "300 K"}) == "a.jdx"
    found = jcamp.readfile(str(tmp_path / "a.jdx"))
    assert capsys.readouterr().out == ""  # where its own checks fail, it prints
    np.testing.assert_allclose(found["x"], NU, atol=1e-9)
    np.testing.assert_allclose(found["y"], VALUES, atol=1e-9 * np.abs(VALUES).max())  # 31 bits
    assert (found["xunits"], found["data type"], found["npoints"]) == ("1/CM", "INFRARED SPECTRUM", 1200)
    spectrum = read_jcamp(tmp_path / "a.jdx")
    np.testing.assert_array_equal(spectrum.y, found["y"])
    assert (spectrum.title, spectrum.y_unit, spectrum.labels["$temperature"]) == ("water, IR", "cm^-1", "300 K")
    assert spectrum.labels["$kind"] == "harmonic (Kubo)"


def test_the_file_obeys_the_standard_read_by_hand(tmp_path):
    """No library: labels in front, TITLE first, END last, 80 characters, X checkpoints at the grid, integers."""
    write(tmp_path / "a.jdx")
    raw = (tmp_path / "a.jdx").read_bytes()
    raw.decode("ascii")
    lines = raw.decode().split("\r\n")
    assert lines[0].startswith("##TITLE=")
    assert lines[1] == "##JCAMP-DX=4.24"
    assert lines[-2:] == ["##END=", ""]
    assert max(map(len, lines)) <= 80
    labels = dict(re.match(r"##([^=]+)=(.*)", line).groups() for line in lines if line.startswith("##"))
    start = lines.index("##XYDATA=(X++(Y..Y))")
    step, factor = float(labels["DELTAX"]), float(labels["YFACTOR"])
    assert float(labels["FIRSTX"]) + step * (int(labels["NPOINTS"]) - 1) == pytest.approx(float(labels["LASTX"]))
    ordinates = []
    for line in lines[start + 1 : -2]:
        x, *words = line.split()
        assert float(x) == pytest.approx(float(labels["FIRSTX"]) + step * len(ordinates))
        ordinates += [int(word) for word in words]
    assert len(ordinates) == int(labels["NPOINTS"])
    assert max(map(abs, ordinates)) < 2**31
    np.testing.assert_allclose(factor * np.array(ordinates), VALUES, atol=1e-9 * VALUES.max())
    assert float(labels["FIRSTY"]) == pytest.approx(factor * ordinates[0])
    assert float(labels["MINY"]) == pytest.approx(VALUES.min(), rel=1e-8)


def test_masked_ends_are_left_out_and_holes_refused(tmp_path):
    values = np.where(NU < 67, np.nan, VALUES)
    write(tmp_path / "a.jdx", values=values)
    spectrum = read_jcamp(tmp_path / "a.jdx")
    assert spectrum.x[0] == 68
    assert len(spectrum.x) == np.isfinite(values).sum()
    values[500] = np.nan
    with pytest.raises(SpectrumError, match="no undefined values, found some at 1000"):
        write(tmp_path / "b.jdx", values=values)
    with pytest.raises(SpectrumError, match="uniform"):
        write(tmp_path / "b.jdx", nu=NU**1.01)
    with pytest.raises(SpectrumError, match="two defined points"):
        write(tmp_path / "b.jdx", values=NU * np.nan)
    write(tmp_path / "zero.jdx", values=0 * NU)
    assert not read_jcamp(tmp_path / "zero.jdx").y.any()


def test_instruments_compress_and_tables_list_pairs(tmp_path):
    """SQZ, DIF and DUP as in the standard's own example of one line; and (XY..XY)."""
    head = "##TITLE=t\n##JCAMP-DX=4.24\n##DATA TYPE=INFRARED SPECTRUM\n##XUNITS=1/CM\n##YUNITS=ABSORBANCE\n"
    grid = "##XFACTOR=1\n##YFACTOR=0.5\n##FIRSTX=100\n##LASTX=104\n##NPOINTS=5\n##FIRSTY=1\n"
    (tmp_path / "dif.jdx").write_text(head + grid + "##XYDATA=(X++(Y..Y))\n100B%KJj\n104E\n##END=\n")
    with_check = "##XYDATA=(X++(Y..Y))\n100B%KJj\n104D\n##END=\n"
    (tmp_path / "dif.jdx").write_text(head + grid + with_check)
    np.testing.assert_allclose(read_jcamp(tmp_path / "dif.jdx").y, [1, 1, 2, 2.5, 2])
    pairs = "##XYPOINTS=(XY..XY)\n100, 1; 103, 2\n104, 3\n##END=\n"
    (tmp_path / "xy.jdx").write_text(head + "##XFACTOR=1\n##YFACTOR=1\n##NPOINTS=3\n" + pairs)
    np.testing.assert_allclose(read_jcamp(tmp_path / "xy.jdx").x, [100, 103, 104])


def test_bad_files_have_a_clear_line(tmp_path):
    with pytest.raises(SpectrumError, match="no such file"):
        read_jcamp(tmp_path / "none.jdx")
    (tmp_path / "text.jdx").write_text("hello")
    with pytest.raises(SpectrumError, match="not a JCAMP-DX file"):
        read_jcamp(tmp_path / "text.jdx")
    write(tmp_path / "a.jdx")
    text = (tmp_path / "a.jdx").read_text()
    for old, new, message in (
        ("##NPOINTS=1200", "##NPOINTS=1100", "NPOINTS=1100"),
        ("##FIRSTY=", "##FIRSTY=7", "FIRSTY"),
        ("(X++(Y..Y))", "(R++(A..A))", "0 abscissas"),
        ("##XYDATA=(X++(Y..Y))\n", "##XYDATA=(X++(Y..Y))\n100 ~~~\n", "cannot be read"),
    ):
        (tmp_path / "bad.jdx").write_text(text.replace(old, new))
        with pytest.raises(SpectrumError, match=message):
            read_jcamp(tmp_path / "bad.jdx")
