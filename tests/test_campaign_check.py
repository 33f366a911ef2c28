"""Everything that check_campaign must say of wrong files, before anything is submitted."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read, write

import mimyria_wf
from mimyria_wf.campaign import load_campaign
from mimyria_wf.campaign_check import CampaignReport, cell_heights, check_campaign, cp2k_data, load_checked
from mimyria_wf.campaign_file import CampaignFileError
from mimyria_wf.frames import Trajectory, default_masses
from mimyria_wf.response import TENSOR_AXES, TENSOR_UNITS
from mimyria_wf.trajectory import write_trajectory

ROOT = Path(mimyria_wf.__file__).parents[1]
TEMPLATES = ROOT / "templates" / "campaigns"
CP2K_TEMPLATES = ROOT / "templates" / "cp2k"
Arrange = Callable[[Path], None]

CLUSTER = """\
name: hexamer
seed: 1
system:
  structure: water.xyz
  volume_A3: 180.0
sampling:
  engine: ase
  calculator: {import: tblite.ase.TBLite, arguments: {method: GFN2-xTB, verbosity: 0}}
  timestep_fs: 0.5
  temperature_K: 220
  nvt: {length_ps: 6.0, equilibration_ps: 1.0}
  nve:
    n_trajectories: 8
    length_ps: 2.0
labels:
  engine: tblite
training:
  sizes: [10, 20, 40]
  test_size: 20
"""
TORCH_SIM = CLUSTER.replace("engine: ase", "engine: torch-sim").replace(
    "tblite.ase.TBLite, arguments: {method: GFN2-xTB, verbosity: 0}",
    "mimyria_wf.flexible_water:flexible_water, arguments: {damping: 0.2}",
)
BULK = """\
name: bulk
seed: 1
system:
  structure: bulk.extxyz
sampling:
  engine: cp2k
  template: md.inp
  timestep_fs: 0.5
  temperature_K: 300
  nvt: {length_ps: 3.0, equilibration_ps: 1.0}
  nve: {n_trajectories: 4, length_ps: 2.0}
labels:
  engine: cp2k
  template: dft.inp
training:
  sizes: [3, 6, 9]
  test_size: 4
"""
GIVEN = """\
name: given
seed: 1
system:
  volume_A3: 30.0
trajectories:
  - a.h5
  - b.h5
labels:
  engine: tblite
training:
  sizes: [2, 4, 6]
  test_size: 2
spectra:
  window_fs: 20
"""
LABELS = """\
name: labels
seed: 1
system:
  volume_A3: 30.0
trajectories: [a.h5, b.h5]
labels:
  given: labels.extxyz
training:
  sizes: [2, 4, 6]
  test_size: 2
spectra:
  window_fs: 20
"""
VASP = BULK.replace(
    "  engine: cp2k\n  template: dft.inp\n",
    "  engine: vasp\n  vasp:\n    incar: {EDIFF: 1.0e-8, ISMEAR: 0, SIGMA: 0.05}\n"
    "    potentials: {family: PBE.54, mapping: {O: O, H: H}}\n",
)
MODELS = """\
name: models
seed: 1
system:
  volume_A3: 30.0
trajectories: [a.h5, b.h5]
models:
  apt: apt.model
spectra:
  window_fs: 20
"""


def water_run(seed: int = 0, n_frames: int = 100, timestep: float = 0.5, **changes: object) -> Trajectory:
    """Return one water molecule that trembles, 300 K."""
    random = np.random.default_rng(seed)
    numbers = np.array([8, 1, 1])
    masses = default_masses(numbers)
    rest = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.97], [0.94, 0.0, -0.24]])
    # (k_B T / m)^(1/2) = 0.0158 A/fs for 1 u at 300 K
    velocities = 0.0158 / np.sqrt(masses)[None, :, None] * random.normal(size=(n_frames, 3, 3))
    values = {
        "numbers": numbers,
        "positions": rest + 0.01 * random.normal(size=(n_frames, 3, 3)),
        "velocities": velocities,
        "cell": np.zeros((3, 3)),
        "pbc": np.zeros(3, dtype=bool),
        "timestep": timestep,
        "masses": masses,
    }
    return Trajectory(**{**values, **changes})  # type: ignore[arg-type]


def labelled(
    path: Path,
    n: int = 10,
    columns: str = "apt:R:9:pgt:R:27",
    value: float = 0.1,
    symbols: str = "OHH",
    level: str = "BLYP",
) -> None:
    """Write labelled waters from two trajectories by hand, so that they can be wrong."""
    random = np.random.default_rng(0)
    stated = "".join(f' {name}_unit="{TENSOR_UNITS[name]}" {name}_axes="{TENSOR_AXES[name]}"' for name in TENSOR_UNITS)
    stated += f" level_of_theory={level}" if level else ""
    width = sum(int(word) for word in columns.split(":") if word.isdigit())
    lines = []
    for k in range(n):
        lines += [str(len(symbols)), f'Properties=species:S:1:pos:R:3:{columns} snapshot="run-{k % 2}/{k}" pbc="F F F"']
        lines[-1] += stated.replace("{k}", str(k))
        for i, symbol in enumerate(symbols):
            row = [*(i + 0.01 * random.normal(size=3)), *([value] * width)]
            lines.append(symbol + " " + " ".join(repr(float(x)) for x in row))
    path.write_text("\n".join(lines) + "\n")


def model(path: Path, target: str = "apt", species: tuple[int, ...] = (1, 8), cutoff: float = 4.0) -> None:
    """Write a network that was never trained."""
    from mimyria_wf.network import build_network, save_model
    from mimyria_wf.presets import MessagePassingSettings

    settings = MessagePassingSettings(
        multiplicities=(2, 1), n_layers=1, edge_l_max=1, cutoff=cutoff, n_radial=2, radial_hidden=(4,)
    )
    save_model(build_network(settings, list(species), target), path)


def good_files(folder: Path) -> None:
    """Write everything that the campaigns above name."""
    (folder / "water.xyz").write_text((TEMPLATES / "water_hexamer.xyz").read_text())
    (folder / "bulk.extxyz").write_text((TEMPLATES / "water_8.extxyz").read_text())
    (folder / "md.inp").write_text((CP2K_TEMPLATES / "water_nnp.inp").read_text())
    (folder / "dft.inp").write_text((CP2K_TEMPLATES / "water_pbe_szv.inp").read_text())


def runs(folder: Path) -> None:
    write_trajectory(folder / "a.h5", water_run(1))
    write_trajectory(folder / "b.h5", water_run(2))


def check(folder: Path, text: str, *arrange: Arrange) -> CampaignReport:
    good_files(folder)
    if "b.h5" in text or "a.h5" in text:
        runs(folder)
    for step in arrange:
        step(folder)
    (folder / "campaign.yaml").write_text(text)
    return check_campaign(load_campaign(folder / "campaign.yaml"))


def edit(name: str, old: str, new: str) -> Arrange:
    """Return a step that replaces text in a file."""

    def step(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return step


def put(name: str, text: str) -> Arrange:
    return lambda folder: (folder / name).write_text(text) and None


def structure(name: str, **changes: object) -> Arrange:
    """Return a step that changes a structure file: symbols, position of the last atom, cell, pbc."""

    def step(folder: Path) -> None:
        atoms = read(folder / name)
        assert isinstance(atoms, Atoms)
        if "symbol" in changes:
            atoms.symbols[-1] = changes["symbol"]
        if "position" in changes:
            atoms.positions[-1] = changes["position"]
        if "cell" in changes:
            atoms.set_cell(changes["cell"])
        if "pbc" in changes:
            atoms.pbc = changes["pbc"]
        write(folder / name, atoms, format="extxyz")

    return step


def run_file(name: str, **changes: object) -> Arrange:
    return lambda folder: write_trajectory(folder / name, water_run(3, **changes))  # type: ignore[arg-type]


def raw_xyz(
    name: str, position: str = "0.0", velocity: str = "0.01", n_frames: int = 60, n_written: int | None = None
) -> Arrange:
    """Return a step that writes extended XYZ with a value of one's own in frame 7."""

    def step(folder: Path) -> None:
        random = np.random.default_rng(5)
        lines = []
        for frame in range(n_frames):
            columns = ":vel:R:3" if velocity else ""
            lines += ["3", f'Properties=species:S:1:pos:R:3{columns} pbc="F F F" time={0.5 * frame}']
            for i, symbol in enumerate("OHH"):
                x = position if frame == 7 and i == 1 else f"{i}.0"
                v = velocity if frame == 7 and i == 1 else f"{0.005 * random.normal():.6f}"
                lines.append(f"{symbol} {x} 0.0 0.0" + (f" {v} 0.001 0.002" if velocity else ""))
        (folder / name).write_text("\n".join(lines[:n_written]) + "\n")

    return step


def swap(text: str, old: str, new: str) -> str:
    assert text.count(old) >= 1
    return text.replace(old, new, 1)


NAN_XYZ = "3\n\nO 0 0 nan\nH 0 0 0.97\nH 0.94 0 -0.24\n"
FRAME = "3\n\nO 0 0 0\nH 0 0 0.97\nH 0.94 0 -0.24\n"
XYZ_GIVEN = swap(GIVEN, "b.h5", "b.xyz")
NEEDS_CP2K_DATA = pytest.mark.skipif(cp2k_data() is None, reason="CP2K's data folder is not on this machine")
TRICLINIC = [9.0, 9.0, 9.0, 60.0, 70.0, 80.0]

BAD = [
    pytest.param(
        swap(CLUSTER, "water.xyz", "watr.xyz"),
        [],
        (
            "system.structure must name an existing file, watr.xyz does not exist: did you mean "
            "water.xyz? (campaign.yaml, line 4)"
        ),
        id="missing_structure",
    ),
    pytest.param(
        swap(CLUSTER, "water.xyz", "no/water.xyz"),
        [],
        (
            "system.structure must name an existing file, no/water.xyz does not exist: the folder no "
            "does not exist either; paths are relative to the campaign file (campaign.yaml, line 4)"
        ),
        id="missing_structure_folder",
    ),
    pytest.param(
        swap(CLUSTER, "water.xyz", "sub"),
        [lambda folder: (folder / "sub").mkdir()],
        "system.structure must name a file, sub is a folder: name the file in it (campaign.yaml, line 4)",
        id="folder_for_file",
    ),
    pytest.param(
        CLUSTER,
        [put("water.xyz", "3\n\nO 0 0\n")],
        "system.structure must name a structure that ASE reads ... (campaign.yaml, line 4)",
        id="unreadable_structure",
    ),
    pytest.param(
        swap(CLUSTER, "water.xyz", "water.foo"),
        [put("water.foo", "what is this\n")],
        "system.structure must name a structure that ASE reads ... (campaign.yaml, line 4)",
        id="unknown_structure_format",
    ),
    pytest.param(
        CLUSTER,
        [put("water.xyz", "")],
        "system.structure must name a structure that ASE reads ... (campaign.yaml, line 4)",
        id="empty_structure",
    ),
    pytest.param(
        CLUSTER,
        [put("water.xyz", FRAME + FRAME)],
        (
            "system.structure must hold one structure, water.xyz has 2 frames: keep one frame in it "
            "(campaign.yaml, line 4)"
        ),
        id="two_structures",
    ),
    pytest.param(
        CLUSTER,
        [put("water.xyz", NAN_XYZ)],
        (
            "system.structure must have finite positions, those of atom 0 are not: correct the file "
            "(campaign.yaml, line 4)"
        ),
        id="nan_position",
    ),
    pytest.param(
        CLUSTER,
        [put("water.xyz", FRAME.replace("0.97", "0.30"))],
        (
            "system.structure has atoms 0 and 1 at a distance of 0.30 A: remove one of them, or check "
            "the length unit (A) and the cell (campaign.yaml, line 4)"
        ),
        id="atoms_on_top_of_each_other",
    ),
    pytest.param(
        swap(CLUSTER, "  volume_A3: 180.0", "  pbc: true"),
        [],
        ("system.pbc is true but there is no cell, got none: add system.cell_A: [a, b, c] (campaign.yaml, line 5)"),
        id="periodic_without_cell",
    ),
    pytest.param(
        swap(BULK, "bulk.extxyz", "bulk.extxyz\n  cell_A: [9.0, 9.0, 9.0]"),
        [structure("bulk.extxyz", cell=TRICLINIC)],
        (
            "system.cell_A does not have the angles of the structure file, 60, 70, 80 degrees: give "
            "cell_A_deg: [a, b, c, alpha, beta, gamma], or leave the cell to the structure file "
            "(campaign.yaml, line 5)"
        ),
        id="three_lengths_for_triclinic",
    ),
    pytest.param(
        swap(BULK, "bulk.extxyz", "bulk.extxyz\n  pbc: [true, true, false]"),
        [],
        (
            "system.pbc must be true or false in all directions, got [True, True, False]: take a "
            "periodic cell with vacuum for a slab or wire (campaign.yaml, line 5)"
        ),
        id="partly_periodic",
    ),
    pytest.param(
        swap(CLUSTER, "  volume_A3: 180.0\n", ""),
        [],
        (
            "system.volume_A3 is missing: a cluster has no volume of its own and n(w) alpha(w) needs "
            "one: add e.g. volume_A3: 180 (campaign.yaml, line 3)"
        ),
        id="no_volume",
    ),
    pytest.param(
        swap(CLUSTER, "  volume_A3", "  charge: 1\n  volume_A3"),
        [],
        (
            "system.charge does not fit: 59 electrons, an odd number, cannot have multiplicity 1 at "
            "charge 1: correct charge or multiplicity (campaign.yaml, line 5)"
        ),
        id="odd_electrons",
    ),
    pytest.param(
        swap(CLUSTER, "  volume_A3", "  multiplicity: 2\n  volume_A3"),
        [],
        (
            "system.multiplicity does not fit: 60 electrons, an even number, cannot have multiplicity 2 "
            "at charge 0: correct charge or multiplicity (campaign.yaml, line 5)"
        ),
        id="wrong_multiplicity",
    ),
    pytest.param(
        swap(CLUSTER, "  volume_A3", "  charge: 60\n  volume_A3"),
        [],
        "system.charge leaves 0 electrons: check the charge (campaign.yaml, line 5)",
        id="no_electrons",
    ),
    pytest.param(
        swap(CLUSTER, "verbosity: 0", "charge: 2"),
        [],
        (
            "sampling.calculator.arguments.charge must be that of the system, 0, got 2: remove it: the "
            "charge comes from system.charge (campaign.yaml, line 8)"
        ),
        id="charge_in_calculator",
    ),
    pytest.param(
        swap(CLUSTER, "tblite.ase.TBLite", "tblight.ase.TBLite"),
        [],
        "sampling.calculator.import does not work, cannot import tblight.ase ... (campaign.yaml, line 8)",
        id="calculator_not_installed",
    ),
    pytest.param(
        swap(CLUSTER, "tblite.ase.TBLite", "tblite.ase.TBLight"),
        [],
        "sampling.calculator.import does not work, tblite.ase has no TBLight ... (campaign.yaml, line 8)",
        id="calculator_without_class",
    ),
    pytest.param(
        swap(
            CLUSTER,
            "tblite.ase.TBLite, arguments: {method: GFN2-xTB, verbosity: 0}",
            "ase.calculators.tip3p.TIP3P, arguments: {radius: 3}",
        ),
        [],
        ("sampling.calculator.arguments does not work, cannot be built with {'radius' ... (campaign.yaml, line 8)"),
        id="calculator_arguments",
    ),
    pytest.param(
        swap(CLUSTER, "tblite.ase.TBLite, arguments: {method: GFN2-xTB, verbosity: 0}", "builtins.dict"),
        [],
        "sampling.calculator.import does not work, dict is not an ASE calculator ... (campaign.yaml, line 8)",
        id="not_a_calculator",
    ),
    pytest.param(
        swap(CLUSTER, "GFN2-xTB", "GFN9-xTB"),
        [],
        "sampling.calculator fails on the start structure ... (campaign.yaml, line 8)",
        id="calculator_method",
    ),
    pytest.param(
        swap(CLUSTER, "  sizes", "  pretraining: {charges: {H2O: 1}}\n  sizes"),
        [],
        (
            "training.pretraining does not fit, H12O6: H2O of charge +1 has an odd number of electrons, which clusters "
            "cannot hold: give its charge, ... (campaign.yaml, line 18)"
        ),
        id="clusters_with_an_odd_electron",
    ),
    pytest.param(
        swap(CLUSTER, "engine: ase", "engine: torch-sim"),
        [],
        "sampling.calculator.import does not work, TBLite is not a potential of torch-sim ... (campaign.yaml, line 8)",
        id="not_a_potential_of_torch_sim",
    ),
    pytest.param(
        swap(TORCH_SIM, "damping: 0.2", "dampening: 0.2"),
        [],
        "sampling.calculator.arguments does not work, cannot be built with ... (campaign.yaml, line 8)",
        id="arguments_of_a_potential_of_torch_sim",
    ),
    pytest.param(
        swap(TORCH_SIM, "engine: torch-sim", "engine: torch-sim\n  device: cuda"),
        [],
        (
            "sampling.device asks for cuda, but torch sees no GPU on this machine: write cpu, or name a code on a "
            "computer with a GPU under computers.md (campaign.yaml, line 8)"
        ),
        id="no_such_device",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
    ),
    pytest.param(
        swap(BULK, "bulk.extxyz", "bulk.extxyz\n  volume_A3: 240.0"),
        [],
        "system.volume_A3 is for clusters, but the system is periodic: remove it (campaign.yaml, line 5)",
        id="volume_of_periodic_structure",
    ),
    pytest.param(
        swap(CLUSTER, "timestep_fs: 0.5", "timestep_fs: 4.0") + "spectra: {upper_wavenumber_per_cm: 4000}\n",
        [],
        (
            "sampling.timestep_fs must not exceed 2.5 fs with hydrogen, got 4: the integration of X-H "
            "stretches is unstable: write 0.5 (campaign.yaml, line 9)"
        ),
        id="unstable_timestep",
    ),
    pytest.param(
        swap(CLUSTER, "    length_ps: 2.0", "    length_ps: 2.0\n    stride: 10"),
        [],
        (
            "sampling.nve.stride asks for 4500 cm^-1, but frames every 5 fs end at 3336 cm^-1 (Nyquist): "
            "store frames every 3.7 fs or less, or lower spectra.upper_wavenumber_per_cm (campaign.yaml, "
            "line 15)"
        ),
        id="nyquist",
    ),
    pytest.param(
        CLUSTER + "spectra: {upper_wavenumber_per_cm: 40000}\n",
        [],
        (
            "spectra.upper_wavenumber_per_cm asks for 40000 cm^-1, but frames every 0.5 fs end at 33356 "
            "cm^-1 (Nyquist): store frames every 0.42 fs or less, or lower "
            "spectra.upper_wavenumber_per_cm (campaign.yaml, line 20)"
        ),
        id="nyquist_of_axis",
    ),
    pytest.param(
        CLUSTER + "spectra: {window_fs: 2000}\n",
        [],
        (
            "spectra.window_fs must be shorter than the trajectories, 2000 fs (nve-000), got 2000: "
            "lengthen the NVE runs or shorten the window (campaign.yaml, line 20)"
        ),
        id="window_longer_than_run",
    ),
    pytest.param(
        swap(BULK, "length_ps: 2.0}", "length_ps: 2.0, remove_rotation: true}"),
        [],
        (
            "sampling.nve.remove_rotation must be false with periodic boundaries, where angular momentum "
            "is not conserved: remove it (campaign.yaml, line 11)"
        ),
        id="rotation_of_periodic",
    ),
    pytest.param(
        swap(BULK, "  engine: cp2k\n  template: dft.inp", "  engine: tblite"),
        [],
        (
            "labels.engine tblite knows no field under periodic boundaries, the system is periodic: use "
            "engine: cp2k, or system.pbc: false for a cluster (campaign.yaml, line 13)"
        ),
        id="tblite_periodic",
    ),
    pytest.param(
        swap(
            CLUSTER, "tblite.ase.TBLite, arguments: {method: GFN2-xTB, verbosity: 0}", "ase.calculators.lj.LennardJones"
        ),
        [structure("water.xyz", symbol="Fr")],
        "labels.engine tblite has no parameters for Fr: use engine: cp2k (campaign.yaml, line 16)",
        id="tblite_element",
    ),
    pytest.param(
        LABELS,
        [lambda folder: labelled(folder / "labels.extxyz", level="BLYP-{k}")],
        (
            "labels.given is refused, labels.extxyz: snapshots 0 and 1 are of different levels of theory: make a file "
            "of each: correct the file (campaign.yaml, line 7)"
        ),
        id="labels_of_two_levels",
    ),
    pytest.param(
        swap(BULK, "  template: dft.inp", "  template: dft.inp\n  gap_eV: 0.1"),
        [],
        (
            "labels.field_step_au of 0.0005 E_h/(e a0) drops 0.16 eV across the cell, more than the gap of 0.1 eV: "
            "electrons would leave their atoms: write 3.0e-5 or less (campaign.yaml, line 12)"
        ),
        id="field_beyond_gap",
    ),
    pytest.param(
        swap(CLUSTER, "  engine: tblite", "  engine: tblite\n  gap_eV: 0.01"),
        [],
        (
            "labels.field_step_au of 0.001 E_h/(e a0) drops 0.42 eV across the cluster, more than the gap of 0.01 eV: "
            "electrons would leave their atoms: write 2.0e-6 or less (campaign.yaml, line 15)"
        ),
        id="field_beyond_gap_of_cluster",
    ),
    pytest.param(
        BULK,
        [edit("dft.inp", "&OT", "&SMEAR\n      &END SMEAR\n      &OT")],
        (
            "labels.template is refused, dft.inp: remove &SMEAR: the polarization in a field is defined for insulators "
            "with integer occupations (campaign.yaml, line 14)"
        ),
        id="smearing",
    ),
    pytest.param(
        swap(BULK, "  template: dft.inp", "  template: dft.inp\n  scf_threshold: 1.0e-5"),
        [],
        (
            "labels.template in dft.inp: EPS_SCF 1e-05 (the looser of SCF and OUTER_SCF) is too loose for a PGT: "
            "use 1e-8 (seen: PGT_xx off by 218 % at 1e-6) (campaign.yaml, line 14)"
        ),
        id="loose_threshold",
    ),
    pytest.param(
        swap(
            BULK, "  template: dft.inp", "  template: {FORCE_EVAL: {METHOD: Quickstep, DFT: {SCF: {EPS_SCF: 1.0e-8}}}}"
        ),
        [],
        "labels.template is refused, the campaign: ... (campaign.yaml, line 14)",
        id="nested_template",
    ),
    pytest.param(
        swap(VASP, "mapping: {O: O, H: H}", "mapping: {O: O}"),
        [],
        (
            "labels.vasp.potentials.mapping must name a potential for every element, H is missing: add H: H "
            "(campaign.yaml, line 16)"
        ),
        id="vasp_potential",
    ),
    pytest.param(
        swap(VASP, "EDIFF: 1.0e-8", "EFIELD_PEAD: 0 0 0.01"),
        [],
        "labels.vasp.incar is refused, INCAR: remove EFIELD_PEAD: ... (campaign.yaml, line 15)",
        id="vasp_field",
    ),
    pytest.param(
        swap(VASP, "ISMEAR: 0", "ISMEAR: 1"),
        [],
        "labels.vasp.incar is refused, INCAR: ISMEAR = 1 is for metals: ... (campaign.yaml, line 15)",
        id="vasp_metal",
    ),
    pytest.param(
        swap(VASP, "  vasp:", "  gap_eV: 0.1\n  vasp:"),
        [],
        "labels.vasp.incar is refused, INCAR: field too strong for the gap: ... (campaign.yaml, line 16)",
        id="vasp_gap",
    ),
    pytest.param(
        swap(VASP, "system:", "system:\n  charge: 2"),
        [],
        "labels.vasp.incar ... (campaign.yaml, line 16)",
        id="vasp_charge",
    ),
    pytest.param(
        swap(VASP, "incar: {EDIFF: 1.0e-8, ISMEAR: 0, SIGMA: 0.05}", "incar: MY_INCAR"),
        [],
        (
            "labels.vasp.incar must name an existing file, MY_INCAR does not exist: check the path: it is relative to "
            "the campaign file (campaign.yaml, line 15)"
        ),
        id="vasp_no_incar",
    ),
    pytest.param(
        swap(
            CLUSTER,
            "  engine: tblite",
            "  engine: vasp\n  vasp: {incar: {ISMEAR: 0}, potentials: {family: PBE.54, mapping: {O: O, H: H}}}",
        ),
        [],
        (
            "labels.engine vasp needs a cell, the system has none: give system.cell_A with vacuum around "
            "(campaign.yaml, line 16)"
        ),
        id="vasp_cluster",
    ),
    pytest.param(
        BULK + "qualification: {atoms: [0, 99]}\n",
        [],
        (
            "qualification.atoms must be below 24, the number of atoms, got [99]: they count from 0 "
            "(campaign.yaml, line 18)"
        ),
        id="qualified_atoms",
    ),
    pytest.param(
        BULK + "qualification: {field_steps_au: [5.0e-4, 0.1]}\n",
        [],
        "qualification.field_steps_au must lie between 1e-05 and 0.01, got 0.1: remove it (campaign.yaml, line 18)",
        id="qualified_steps",
    ),
    pytest.param(
        BULK + "qualification: {thresholds: [1.0e-2]}\n",
        [],
        "qualification.thresholds must lie between 1e-14 and 0.001, got 0.01: remove it (campaign.yaml, line 18)",
        id="qualified_thresholds",
    ),
    pytest.param(
        BULK + "qualification: {snapshots: other.extxyz}\n",
        [lambda folder: write(folder / "other.extxyz", Atoms("N2", positions=[[0, 0, 0], [1, 0, 0]]))],
        (
            "qualification.snapshots must hold the system, H16O8, other.extxyz has N2: take frames of it "
            "(campaign.yaml, line 18)"
        ),
        id="qualified_snapshots",
    ),
    pytest.param(
        BULK + "qualification: {snapshots: none.extxyz}\n",
        [],
        (
            "qualification.snapshots must name an existing file, none.extxyz does not exist: ... "
            "(campaign.yaml, line 18)"
        ),
        id="no_qualified_snapshots",
    ),
    pytest.param(
        swap(CLUSTER, "  engine: tblite", "  engine: tblite\n  field_step_au: 1.0e-6"),
        [],
        (
            "labels.field_step_au must be between 1e-05 and 0.01 E_h/(e a0), got 1e-06: rounding drowns "
            "the differences: write 5.0e-4 (CP2K) or 1.0e-3 (tblite) (campaign.yaml, line 17)"
        ),
        id="field_too_small",
    ),
    pytest.param(
        swap(CLUSTER, "  engine: tblite", "  engine: tblite\n  field_step_au: 0.0257"),
        [],
        (
            "labels.field_step_au must be between 1e-05 and 0.01 E_h/(e a0), got 0.0257: higher orders "
            "of the field spoil the tensors: write 5.0e-4 (CP2K) or 1.0e-3 (tblite) (campaign.yaml, line "
            "17)"
        ),
        id="field_in_volt",
    ),
    pytest.param(
        swap(BULK, "  sizes", "  overrides: {cutoff: 7.0}\n  sizes"),
        [],
        (
            "training.overrides.cutoff has a cutoff of 7 A beyond the cell, whose shortest height is "
            "6.21 A: atoms would be their own neighbours: take a larger cell or a smaller cutoff, or set "
            "system.allow_small_cell: true (campaign.yaml, line 16)"
        ),
        id="cutoff_beyond_cell",
    ),
    pytest.param(
        swap(BULK, "  sizes", "  preset: paper\n  sizes"),
        [structure("bulk.extxyz", cell=[5.9, 6.3, 6.6])],
        (
            "training.preset has a cutoff of 6 A beyond the cell, whose shortest height is 5.90 A: atoms "
            "would be their own neighbours: take a larger cell or a smaller cutoff, or set "
            "system.allow_small_cell: true (campaign.yaml, line 16)"
        ),
        id="cutoff_of_preset_beyond_cell",
    ),
    pytest.param(
        swap(BULK, "  sizes", "  overrides: {apt: {cutoff: 6.1}, pgt: {cutoff: 4}}\n  sizes"),
        [structure("bulk.extxyz", cell=[7.0, 7.0, 7.0, 90, 90, 55])],
        (
            "training.overrides.apt.cutoff has a cutoff of 6.1 A beyond the cell, whose shortest height "
            "is 5.73 A: atoms would be their own neighbours: take a larger cell or a smaller cutoff, or "
            "set system.allow_small_cell: true (campaign.yaml, line 16)"
        ),
        id="cutoff_beyond_height_of_skewed_cell",
    ),
    pytest.param(
        swap(CLUSTER, "  sizes", "  overrides: {n_step: 3}\n  sizes"),
        [],
        (
            "training.overrides.n_step is not a setting of network or training: did you mean n_steps? "
            "(campaign.yaml, line 18)"
        ),
        id="unknown_override",
    ),
    pytest.param(
        swap(CLUSTER, "  sizes", "  overrides:\n    pgt:\n      lerning_rate: 0.1\n  sizes"),
        [],
        (
            "training.overrides.pgt.lerning_rate is not a setting of network or training: did you mean "
            "learning_rate? (campaign.yaml, line 20)"
        ),
        id="unknown_override_of_target",
    ),
    pytest.param(
        swap(CLUSTER, "  sizes", "  overrides: {learning_rate: -0.1}\n  sizes"),
        [],
        ("training.overrides.learning_rate does not fit, learning_rate must be positive ... (campaign.yaml, line 18)"),
        id="override_value",
    ),
    pytest.param(
        swap(CLUSTER, "  sizes", "  overrides: {seed: 4}\n  sizes"),
        [],
        "training.overrides.seed is not an override: it belongs to seed (campaign.yaml, line 18)",
        id="override_of_seed",
    ),
    pytest.param(
        swap(CLUSTER, "[10, 20, 40]", "[10, 30000]"),
        [],
        (
            "training.sizes cannot be met, the training set asks for 30000 snapshots but its "
            "trajectories hold 24000 ... (campaign.yaml, line 18)"
        ),
        id="more_training_than_frames",
    ),
    pytest.param(
        swap(CLUSTER, "test_size: 20", "test_size: 9000"),
        [],
        (
            "training.test_size cannot be met, the test set asks for 9000 snapshots but its trajectories "
            "hold 8000 ... (campaign.yaml, line 19)"
        ),
        id="more_tests_than_frames",
    ),
    pytest.param(
        CLUSTER + "reference: {n_frames: 5000}\n",
        [],
        (
            "reference.n_frames must not exceed the 4000 frames of the trajectory, got 5000: remove it "
            "to take all (campaign.yaml, line 20)"
        ),
        id="reference_frames",
    ),
    pytest.param(
        swap(BULK, "  template: md.inp", "  template: md.inp\n  files: [bulk.extxyz, ../bulk.extxyz]"),
        [lambda folder: (folder.parent / "bulk.extxyz").write_text("") and None],
        (
            "sampling.files must have different file names, bulk.extxyz is there twice: rename one of "
            "them (campaign.yaml, line 8)"
        ),
        id="same_file_names",
    ),
    pytest.param(
        swap(BULK, "dft.inp", "dtf.inp"),
        [],
        (
            "labels.template must name an existing file, dtf.inp does not exist: did you mean dft.inp? "
            "(campaign.yaml, line 14)"
        ),
        id="missing_template",
    ),
    pytest.param(
        BULK,
        [
            edit(
                "dft.inp",
                "    &MGRID",
                "    &PERIODIC_EFIELD\n      INTENSITY 0.001\n    &END PERIODIC_EFIELD\n    &MGRID",
            )
        ],
        "labels.template is refused, dft.inp: remove &PERIODIC_EFIELD ... (campaign.yaml, line 14)",
        id="template_with_field",
    ),
    pytest.param(
        BULK,
        [edit("dft.inp", "&KIND H", "&KIND He")],
        (
            "labels.template is refused, dft.inp: no &KIND H: add one with BASIS_SET and POTENTIAL ... "
            "(campaign.yaml, line 14)"
        ),
        id="template_without_kind",
    ),
    pytest.param(
        BULK,
        [edit("dft.inp", "CHARGE 0", "CHARGE -2")],
        (
            "labels.template is refused, dft.inp: DFT/CHARGE is -2 but the structure's charge is 0 ... "
            "(campaign.yaml, line 14)"
        ),
        id="template_charge",
    ),
    pytest.param(
        swap(BULK, "bulk.extxyz", "bulk.extxyz\n  charge: -2"),
        [],
        (
            "labels.template is refused, dft.inp: DFT/CHARGE is 0 but the structure's charge is -2 ... "
            "(campaign.yaml, line 15)"
        ),
        id="system_charge",
    ),
    pytest.param(
        BULK,
        [edit("dft.inp", "METHOD GPW", "METHOD XTB")],
        (
            "labels.template is refused, dft.inp: GFN1-xTB in a periodic field is wrong in CP2K ... "
            "(campaign.yaml, line 14)"
        ),
        id="template_xtb",
    ),
    pytest.param(
        BULK,
        [edit("dft.inp", "      EPS_SCF 1e-8\n", "      EPS_SCF 1e-6\n")],
        "labels.template in dft.inp: EPS_SCF 1e-06 ... (campaign.yaml, line 14)",
        id="template_loose",
    ),
    pytest.param(
        BULK,
        [edit("dft.inp", "      &OT\n", "      &SMEAR ON\n      &END SMEAR\n      &OT\n")],
        "labels.template is refused, dft.inp: remove &SMEAR ... (campaign.yaml, line 14)",
        id="template_smearing",
    ),
    pytest.param(
        BULK,
        [edit("dft.inp", "      &OT\n", "      &DIAGONALIZATION\n      &END DIAGONALIZATION\n      &OT OFF\n")],
        "labels.template is refused, dft.inp: PERIODIC_EFIELD needs &SCF/&OT ... (campaign.yaml, line 14)",
        id="template_without_ot",
    ),
    pytest.param(
        BULK,
        [edit("dft.inp", "  &SUBSYS\n", "  &SUBSYS\n    &COORD\n      O 0 0 0\n    &END COORD\n")],
        "labels.template is refused, dft.inp: remove &COORD ... (campaign.yaml, line 14)",
        id="template_with_coordinates",
    ),
    pytest.param(
        BULK,
        [edit("dft.inp", "  &SUBSYS\n", "  &SUBSYS\n    &CELL\n      ABC 9 9 9\n    &END CELL\n")],
        "labels.template is refused, dft.inp: remove &CELL ... (campaign.yaml, line 14)",
        id="template_with_cell",
    ),
    pytest.param(
        BULK,
        [edit("dft.inp", "  &DFT", "@SET A 1\n  &DFT")],
        "labels.template is refused, dft.inp: preprocessor directives ... (campaign.yaml, line 14)",
        id="template_preprocessor",
    ),
    pytest.param(
        BULK,
        [edit("dft.inp", "    &END MGRID\n", "")],
        "labels.template is refused, expected &END MGRID for line 9 ... (campaign.yaml, line 14)",
        id="template_unclosed",
    ),
    pytest.param(
        BULK,
        [edit("dft.inp", "SZV-MOLOPT-SR-GTH", "SZW-MOLOPT-SR-GTH")],
        (
            "labels.template asks in dft.inp for BASIS_SET SZW-MOLOPT-SR-GTH of O, which is not in "
            "BASIS_MOLOPT: did you mean SZV-MOLOPT-SR-GTH? (campaign.yaml, line 14)"
        ),
        id="template_basis",
        marks=NEEDS_CP2K_DATA,
    ),
    pytest.param(
        swap(BULK, "dft.inp", "md.inp"),
        [],
        (
            "labels.template is refused, md.inp: METHOD NNP has no electrons that answer a field ... "
            "(campaign.yaml, line 14)"
        ),
        id="label_template_without_electrons",
    ),
    pytest.param(
        BULK,
        [edit("md.inp", "&FORCE_EVAL", "&MOTION\n&END MOTION\n&FORCE_EVAL")],
        "sampling.template is refused, md.inp: remove &MOTION ... (campaign.yaml, line 7)",
        id="md_template_with_motion",
    ),
    pytest.param(
        swap(GIVEN, "a.h5", "nve-*.h5"),
        [],
        (
            "trajectories[0] must name an existing file, nve-*.h5 does not exist: check the path: it is "
            "relative to the campaign file (campaign.yaml, line 6)"
        ),
        id="no_trajectory",
    ),
    pytest.param(
        GIVEN,
        [put("b.h5", "")],
        "trajectories[1] is refused, b.h5: the trajectory is empty ... (campaign.yaml, line 7)",
        id="empty_trajectory",
    ),
    pytest.param(
        XYZ_GIVEN,
        [put("b.xyz", "")],
        "trajectories[1] is refused, b.xyz: the trajectory is empty ... (campaign.yaml, line 7)",
        id="empty_text_trajectory",
    ),
    pytest.param(
        GIVEN,
        [put("b.h5", "not HDF5")],
        "trajectories[1] is refused, b.h5: not a readable HDF5 file ... (campaign.yaml, line 7)",
        id="not_a_trajectory",
    ),
    pytest.param(
        XYZ_GIVEN,
        [raw_xyz("b.xyz", position="nan")],
        (
            "trajectories[1] is refused, b.xyz: NaN or infinite position of atom 1 in frame 7 ... "
            "(campaign.yaml, line 7)"
        ),
        id="nan_in_positions",
    ),
    pytest.param(
        XYZ_GIVEN,
        [raw_xyz("b.xyz", velocity="nan")],
        (
            "trajectories[1] is refused, b.xyz: NaN or infinite velocity of atom 1 in frame 7 ... "
            "(campaign.yaml, line 7)"
        ),
        id="nan_in_velocities",
    ),
    pytest.param(
        XYZ_GIVEN,
        [raw_xyz("b.xyz", position="abc")],
        ("trajectories[1] is refused, b.xyz: frame 7: could not convert string to float ... (campaign.yaml, line 7)"),
        id="text_in_trajectory",
    ),
    pytest.param(
        XYZ_GIVEN,
        [raw_xyz("b.xyz", n_written=298)],
        "trajectories[1] is refused, b.xyz: frame 59 is truncated ... (campaign.yaml, line 7)",
        id="truncated_trajectory",
    ),
    pytest.param(
        XYZ_GIVEN,
        [raw_xyz("b.xyz", velocity="")],
        "trajectories[1] is refused, b.xyz: no velocities ... (campaign.yaml, line 7)",
        id="no_velocities",
    ),
    pytest.param(
        GIVEN,
        [run_file("b.h5", velocities=np.zeros((100, 3, 3)))],
        (
            "trajectories[1] must have velocities, those in b.h5 are all zero: write them in the MD "
            "(campaign.yaml, line 7)"
        ),
        id="zero_velocities",
    ),
    pytest.param(
        swap(GIVEN, "b.h5", "b.traj"),
        [lambda folder: write(folder / "b.traj", [Atoms("OHH", np.eye(3))] * 2)],
        "trajectories[1] is refused, b.traj: the time between frames is unknown ... (campaign.yaml, line 7)",
        id="unknown_time_step",
    ),
    pytest.param(
        GIVEN,
        [run_file("b.h5", timestep=1.0)],
        (
            "trajectories[1] must have one time between frames, b.h5 has 1 fs, a.h5 0.5 fs: thin out the "
            "finer one, or check timestep_fs (campaign.yaml, line 7)"
        ),
        id="other_time_step",
    ),
    pytest.param(
        GIVEN,
        [run_file("b.h5", numbers=np.array([8, 1, 3]))],
        (
            "trajectories[1] must hold one system, b.h5 has HLiO, a.h5 has H2O: leave it out, or give it "
            "a campaign of its own (campaign.yaml, line 7)"
        ),
        id="other_species",
    ),
    pytest.param(
        GIVEN,
        [run_file("b.h5", numbers=np.array([1, 8, 1]))],
        (
            "trajectories[1] must have one order of atoms, that of b.h5 differs from that of a.h5: leave "
            "it out, or give it a campaign of its own (campaign.yaml, line 7)"
        ),
        id="other_order",
    ),
    pytest.param(
        GIVEN,
        [run_file("b.h5", cell=9 * np.eye(3), pbc=np.ones(3, dtype=bool))],
        (
            "trajectories[1] must have one cell, that of b.h5 differs from that of a.h5: leave it out, "
            "or give it a campaign of its own (campaign.yaml, line 7)"
        ),
        id="other_cell",
    ),
    pytest.param(
        GIVEN,
        [run_file("b.h5", metadata={"charge": -2})],
        "system.charge is 0 but b.h5 says -2: write charge: -2 (campaign.yaml, line 3)",
        id="charge_of_trajectory",
    ),
    pytest.param(
        swap(GIVEN, "window_fs: 20", "window_fs: 60"),
        [],
        (
            "spectra.window_fs must be shorter than the trajectories, 50 fs (a), got 60: lengthen the "
            "NVE runs or shorten the window (campaign.yaml, line 14)"
        ),
        id="window_longer_than_trajectory",
    ),
    pytest.param(
        swap(GIVEN, "window_fs: 20", "geometries: [X(ZZ)Y]"),
        [],
        (
            "spectra.window_fs must be shorter than the trajectories, 50 fs (a), got the default 500: lengthen the "
            "NVE runs or shorten the window (campaign.yaml, line 13)"
        ),
        id="default_window_longer_than_trajectory",
    ),
    pytest.param(
        GIVEN + "reference:\n  trajectory: 2\n",
        [],
        (
            "reference.trajectory must be below the number of trajectories, 2, got 2: trajectories count "
            "from 0 (campaign.yaml, line 16)"
        ),
        id="reference_beyond_trajectories",
    ),
    pytest.param(
        LABELS,
        [lambda folder: labelled(folder / "labels.extxyz", columns="apt:R:9")],
        "labels.given is refused, labels.extxyz, snapshot 0 ... (campaign.yaml, line 7)",
        id="labels_lack_pgt",
    ),
    pytest.param(
        LABELS,
        [lambda folder: labelled(folder / "labels.extxyz", value=float("nan"))],
        "labels.given is refused, labels.extxyz, snapshot 0 ... (campaign.yaml, line 7)",
        id="labels_nan",
    ),
    pytest.param(
        LABELS,
        [lambda folder: labelled(folder / "labels.extxyz", columns="apt:R:6:pgt:R:27")],
        "labels.given is refused, labels.extxyz, snapshot 0 ... (campaign.yaml, line 7)",
        id="labels_columns",
    ),
    pytest.param(
        LABELS,
        [lambda folder: labelled(folder / "labels.extxyz", n=5)],
        (
            "training.sizes must not ask for more than the 5 labels given, got 6 and 2 for the test: "
            "lower training.sizes or training.test_size (campaign.yaml, line 9)"
        ),
        id="labels_too_few",
    ),
    pytest.param(
        LABELS,
        [lambda folder: labelled(folder / "labels.extxyz", symbols="HHH")],
        (
            "labels.given must hold every species of the system, O is not in labels.extxyz: label "
            "snapshots that hold it (campaign.yaml, line 7)"
        ),
        id="labels_lack_species",
    ),
    pytest.param(
        LABELS,
        [],
        (
            "labels.given must name an existing file, labels.extxyz does not exist: check the path: it "
            "is relative to the campaign file (campaign.yaml, line 7)"
        ),
        id="labels_missing",
    ),
    pytest.param(
        LABELS,
        [put("labels.extxyz", FRAME)],
        "labels.given is refused, labels.extxyz, snapshot 0 ... (campaign.yaml, line 7)",
        id="labels_without_columns",
    ),
    pytest.param(
        MODELS,
        [],
        (
            "models.apt must name an existing file, apt.model does not exist: check the path: it is "
            "relative to the campaign file (campaign.yaml, line 7)"
        ),
        id="model_missing",
    ),
    pytest.param(
        MODELS,
        [put("apt.model", "not a model")],
        "models.apt is refused, apt.model is not a model file of mimyria_wf ... (campaign.yaml, line 7)",
        id="model_unreadable",
    ),
    pytest.param(
        MODELS,
        [lambda folder: model(folder / "apt.model", target="pgt")],
        "models.apt is refused, apt.model is a model for pgt ... (campaign.yaml, line 7)",
        id="model_of_other_target",
    ),
    pytest.param(
        MODELS,
        [lambda folder: model(folder / "apt.model", species=(8,))],
        (
            "models.apt must know every species of the system, H is not in apt.model (has: O): train a "
            "model with labels of it (campaign.yaml, line 7)"
        ),
        id="model_lacks_species",
    ),
    pytest.param(
        swap(MODELS, "  volume_A3: 30.0", "  cell_A: [3.5, 9.0, 9.0]"),
        [lambda folder: model(folder / "apt.model")],
        (
            "models.apt has a cutoff of 4 A beyond the cell, whose shortest height is 3.50 A: atoms "
            "would be their own neighbours: take a larger cell or a smaller cutoff, or set "
            "system.allow_small_cell: true (campaign.yaml, line 7)"
        ),
        id="model_cutoff_beyond_cell",
    ),
]

WARN = [
    pytest.param(
        swap(CLUSTER, "timestep_fs: 0.5", "timestep_fs: 1.25"),
        [],
        (
            "sampling.timestep_fs is long for hydrogen: 1.25 fs shifts X-H stretches by 107 cm^-1: write "
            "0.5 (campaign.yaml, line 9)"
        ),
        id="long_timestep",
    ),
    pytest.param(
        swap(CLUSTER, "length_ps: 6.0, equilibration_ps: 1.0", "length_ps: 1.0, equilibration_ps: 0.4"),
        [],
        (
            "sampling.nvt.length_ps leaves 75 fs between the starts of the NVE runs, which stay "
            "correlated: lengthen the NVT run: 500 fs and more for a liquid (campaign.yaml, line 11)"
        ),
        id="correlated_starts",
    ),
    pytest.param(
        CLUSTER + "spectra: {window_fs: 1200}\n",
        [],
        (
            "spectra.window_fs of 1200 fs is more than half of a trajectory (2000 fs): noisy "
            "correlations: lengthen the NVE runs or shorten the window (campaign.yaml, line 20)"
        ),
        id="half_window",
    ),
    pytest.param(
        CLUSTER + "prediction: {stride: 16}\n",
        [],
        (
            "prediction.stride of 16 puts 8 fs between predicted tensors, more than a spline bridges: "
            "write 8 (campaign.yaml, line 20)"
        ),
        id="spline",
    ),
    pytest.param(
        CLUSTER + "spectra: {temperature_K: 300}\n",
        [],
        (
            "spectra.temperature_K of 300 K is not that of the sampling, 220 K: remove it: each run has "
            "its own temperature (campaign.yaml, line 20)"
        ),
        id="temperature",
    ),
    pytest.param(
        swap(CLUSTER, "verbosity: 0", "verbosity: 0, accuracy: 1.0"),
        [],
        (
            "sampling.calculator.arguments.accuracy of 1 lets the energy drift by 1-2 meV/ps: write 0.2 "
            "(campaign.yaml, line 8)"
        ),
        id="loose_md",
    ),
    pytest.param(
        swap(CLUSTER, "  engine: tblite", "  engine: tblite\n  accuracy: 1.0"),
        [],
        "labels.accuracy of 1 is loose for second differences: write 0.01 (campaign.yaml, line 17)",
        id="loose_labels",
    ),
    pytest.param(
        swap(CLUSTER, "  engine: tblite", "  engine: tblite\n  field_step_au: 5.0e-3"),
        [],
        (
            "labels.field_step_au of 0.005 E_h/(e a0) is outside 0.0002 to 0.003: try a few steps on one "
            "snapshot first (campaign.yaml, line 17)"
        ),
        id="unusual_field",
    ),
    pytest.param(
        swap(BULK, "  template: dft.inp", "  template: dft.inp\n  gap_eV: 1.0"),
        [],
        (
            "labels.field_step_au of 0.0005 E_h/(e a0) drops 0.16 eV across the cell, more than a tenth of the gap of "
            "1 eV: 3.0e-4 is safe (campaign.yaml, line 12)"
        ),
        id="field_near_gap",
    ),
    pytest.param(
        swap(VASP, "  vasp:", "  gap_eV: 1.0\n  vasp:"),
        [],
        (
            "labels.vasp.incar in INCAR: field too strong for the gap: e|E.a_1| = 0.16 eV, E_gap/(10 N_1) = 0.1 eV "
            "with E_gap = 1 eV: at this gap up to 0.63 of this field; take a smaller step (campaign.yaml, line 16)"
        ),
        id="vasp_field_near_gap",
    ),
    pytest.param(
        swap(BULK, "  template: dft.inp", "  template: dft.inp\n  scf_threshold: auto").replace("dft.inp\n", "x.inp\n"),
        [
            lambda folder: (folder / "x.inp").write_text(
                (folder / "dft.inp").read_text().replace("EPS_SCF 1e-8", "EPS_SCF 1e-6")
            )
        ],
        (
            "labels.template in x.inp: EPS_SCF 1e-06 (the looser of SCF and OUTER_SCF) is too loose for a PGT: "
            "use 1e-8 (seen: PGT_xx off by 218 % at 1e-6) (campaign.yaml, line 14)"
        ),
        id="threshold_that_is_screened",
    ),
    pytest.param(
        swap(CLUSTER, "[10, 20, 40]", "[10, 20]"),
        [],
        (
            "training.sizes has 2 iterations, of which convergence needs at least 3: add sizes, or lower "
            "convergence.minimum_iterations (campaign.yaml, line 18)"
        ),
        id="never_converges",
    ),
    pytest.param(
        CLUSTER + "computers:\n  cp2k: {code: cp2k@cluster}\n",
        [],
        ("computers.cp2k is not used by this campaign: remove it, or check the engines (campaign.yaml, line 21)"),
        id="unused_computer",
    ),
    pytest.param(
        swap(CLUSTER, "[10, 20, 40]", "[10, 20, 4000]"),
        [],
        (
            "training.sizes puts a snapshot every 4.0 fs of trajectory, so that they hardly differ: "
            "lengthen the trajectories or ask for fewer (campaign.yaml, line 18)"
        ),
        id="dense_snapshots",
    ),
    pytest.param(
        swap(CLUSTER, "n_trajectories: 8", "n_trajectories: 1"),
        [],
        (
            "sampling.nve.n_trajectories gives one trajectory, and spectra without error bars: take "
            "several: they are the independent samples (campaign.yaml, line 13)"
        ),
        id="one_trajectory",
    ),
    pytest.param(
        BULK,
        [structure("bulk.extxyz", cell=[60.0, 60.0, 60.0])],
        "system.structure gives a density of 0.00111 g/cm3: check the cell, in A (campaign.yaml, line 4)",
        id="density",
    ),
    pytest.param(
        BULK,
        [],
        (
            "labels.engine cp2k with a cell height of 6.21 A: PERIODIC_EFIELD leaves a net force in "
            "small cells (CP2K before PR 5308): look at the sum rules of the first labels "
            "(campaign.yaml, line 13)"
        ),
        id="small_cell",
    ),
    pytest.param(
        BULK,
        [edit("md.inp", "NNP_INPUT_FILE_NAME NNP", "NNP_INPUT_FILE_NAME /PATH/TO/NNP")],
        (
            "sampling.template still has a placeholder in md.inp, line 6: write the path on your "
            "computer (campaign.yaml, line 7)"
        ),
        id="placeholder",
    ),
    pytest.param(
        BULK,
        [edit("dft.inp", "BASIS_SET_FILE_NAME BASIS_MOLOPT", "BASIS_SET_FILE_NAME MY_BASIS")],
        (
            "labels.template names MY_BASIS in dft.inp, which CP2K does not bring along: list it under "
            "files: (campaign.yaml, line 14)"
        ),
        id="unknown_basis_file",
        marks=NEEDS_CP2K_DATA,
    ),
    pytest.param(
        GIVEN,
        [run_file("b.h5", velocities=20 * np.random.default_rng(0).normal(size=(100, 3, 3)))],
        (
            "trajectories[1] has velocities of 4e+09 K in b.h5: check their unit: vel is in A/fs, CP2K's "
            "files in bohr/au_t (campaign.yaml, line 7)"
        ),
        id="velocity_unit",
    ),
    pytest.param(
        CLUSTER + "convergence: {trajectories: 20}\n",
        [],
        (
            "convergence.trajectories exceeds the number of trajectories, 8, got 20: write 8: that many "
            "are used (campaign.yaml, line 20)"
        ),
        id="more_convergence_trajectories",
    ),
    pytest.param(
        LABELS,
        [
            lambda folder: labelled(folder / "labels.extxyz"),
            lambda folder: put("labels.extxyz", (folder / "labels.extxyz").read_text().replace("run-1/", "run-0/"))(
                folder
            ),
        ],
        (
            "labels.given does not say which trajectories its snapshots are from, so the test set is not "
            "independent: add info snapshot=TRAJECTORY/FRAME, or give labels.test_given (campaign.yaml, "
            "line 7)"
        ),
        id="dependent_test",
    ),
    pytest.param(
        LABELS,
        [lambda folder: labelled(folder / "labels.extxyz", level="")],
        (
            "labels.given is taken as it is, labels.extxyz, snapshot 0: level_of_theory is not stated: "
            "`mimyria-wf import labels` takes it in (campaign.yaml, line 7)"
        ),
        id="labels_of_an_unknown_level",
    ),
    pytest.param(
        swap(CLUSTER, "    length_ps: 2.0", "    length_ps: 1.8\n    stride: 9")
        + "spectra: {upper_wavenumber_per_cm: 3600}\n",
        [],
        (
            "sampling.nve.stride gives frames every 4.5 fs: X-H stretches beyond 3706 cm^-1 fold back: "
            "store frames more often (campaign.yaml, line 15)"
        ),
        id="coarse_frames",
    ),
]


def matches(text: str, pattern: str) -> bool:
    """Compare a line; `` ... `` stands for words that are another module's or another package's."""
    start, gap, end = pattern.partition(" ... ")
    return text == pattern if not gap else text.startswith(start) and text.endswith(end) and "\n" not in text


@pytest.mark.parametrize(("text", "arrange", "message"), BAD)
def test_error_is_one_line_with_file_line_and_remedy(
    tmp_path: Path, text: str, arrange: list[Arrange], message: str
) -> None:
    folder = tmp_path / "campaign"
    folder.mkdir()
    report = check(folder, text, *arrange)
    assert not report.is_valid
    assert len(report.errors) == 1, [str(problem) for problem in report.errors]
    assert matches(str(report.errors[0]), message), str(report.errors[0])
    assert ": " in str(report.errors[0])
    assert str(tmp_path) not in str(report.errors[0])
    with pytest.raises(CampaignFileError):
        report.raise_errors()


@pytest.mark.parametrize(("text", "arrange", "message"), WARN)
def test_warning_does_not_stop(tmp_path: Path, text: str, arrange: list[Arrange], message: str) -> None:
    report = check(tmp_path, text, *arrange)
    assert [str(problem) for problem in report.errors] == []
    assert message in [str(problem) for problem in report.warnings]


def test_there_are_many_kinds_of_bad_data() -> None:
    assert len({case.id for case in BAD}) == len(BAD) >= 40


@pytest.mark.parametrize("text", [CLUSTER, BULK, GIVEN, TORCH_SIM], ids=["cluster", "bulk", "given", "torch_sim"])
def test_good_campaign_has_no_errors(tmp_path: Path, text: str) -> None:
    report = check(tmp_path, text)
    assert [str(problem) for problem in report.errors] == []
    report.raise_errors()


def test_good_labels_and_models_have_no_errors(tmp_path: Path) -> None:
    labels = check(tmp_path, LABELS, lambda folder: labelled(folder / "labels.extxyz"))
    assert [str(problem) for problem in (*labels.errors, *labels.warnings)] == []
    models = check(tmp_path, MODELS, lambda folder: model(folder / "apt.model"))
    assert [str(problem) for problem in (*models.errors, *models.warnings)] == []


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.yaml")), ids=lambda path: path.stem)
def test_templates_are_valid(path: Path) -> None:
    assert [str(problem) for problem in check_campaign(load_campaign(path)).errors] == []


def test_small_cells_are_allowed_on_request(tmp_path: Path) -> None:
    text = swap(BULK, "  sizes", "  overrides: {cutoff: 7.0}\n  sizes")
    assert not check(tmp_path, text).is_valid
    assert check(tmp_path, swap(text, "bulk.extxyz", "bulk.extxyz\n  allow_small_cell: true")).is_valid


def test_cutoff_beyond_half_the_box_is_fine(tmp_path: Path) -> None:
    # the neighbour list holds every image; 6 A in a box of 6.21 A sees none of an atom's own
    assert check(tmp_path, swap(BULK, "  sizes", "  preset: paper\n  sizes")).is_valid


def test_height_of_a_skewed_cell_is_less_than_its_vectors() -> None:
    atoms = Atoms("H", cell=[4.0, 5.0, 6.0, 90, 90, 30], pbc=True)
    assert cell_heights(atoms) == pytest.approx([2.0, 2.5, 6.0], rel=1e-12)  # a sin(gamma), b sin(gamma), c


def test_estimate_counts_the_qualification(tmp_path: Path) -> None:
    """Two thresholds at one step; six points (h, -h, 0) and six displaced dipoles beside them."""
    estimate = check(tmp_path, BULK).estimate
    assert estimate.n_qualification_points == 2 * 13 + 6 + 6
    assert estimate.jobs["qualification"] == 3 + 1  # at most 13 points each
    assert estimate.core_hours["qualification"] is None
    assert "qualification: 38 calculations" in estimate.lines()
    timed = check(
        tmp_path, swap(BULK, "  template: dft.inp", "  template: dft.inp\n  seconds_per_point: 36.0")
    ).estimate
    assert timed.core_hours["qualification"] == pytest.approx(0.38)
    assert "labels: the 13 field points of one snapshot take about 470 s" in timed.lines()
    off = check(tmp_path, BULK + "qualification: false\n").estimate
    assert off.n_qualification_points == 0
    assert "qualification" not in {**off.jobs, **off.core_hours}


def test_a_cell_of_metal_atoms_is_pointed_out(tmp_path: Path) -> None:
    def copper(folder: Path) -> None:
        write(folder / "bulk.extxyz", bulk("Cu", cubic=True))

    report = check(tmp_path, BULK, copper)
    assert [str(p) for p in report.warnings if "metal" in str(p)] == [
        "system.structure holds nothing but Cu, which looks like a metal: it has no polarization in a field: labels "
        "need an insulator; the qualification looks at the gap (campaign.yaml, line 4)"
    ]


def test_estimate_of_the_cluster(tmp_path: Path) -> None:
    estimate = check(tmp_path, CLUSTER + "reference: {trajectory: 1}\n").estimate
    assert estimate.n_atoms == 18
    assert estimate.n_md_steps == 12000 + 8 * 4000
    assert estimate.n_frames == 8 * 4000
    assert estimate.points_per_snapshot == 13
    assert estimate.n_label_snapshots == 40 + 20 + 4000
    assert estimate.n_label_points == 13 * 4060
    # 20 snapshots a job: 10 + 20 of the test, then 10, then 20 more
    assert estimate.jobs == {
        "md": 9,
        "labels": 4,
        "reference": 2,
        "selection": 1,
        "prediction": 8,  # two at a time, after each of three iterations and at the end
        "spectra": 4,
        "stride": 1,
        "training": 6,
        "comparison": 1,
    }
    assert estimate.n_jobs == 36
    hours = estimate.core_hours["labels"]
    assert hours == pytest.approx(13 * 4060 * 2.5e-3 / 3600, rel=1e-12)
    assert any("13 field points" in line for line in estimate.lines())


def test_pretraining_takes_two_jobs_more(tmp_path: Path) -> None:
    report = check(tmp_path, swap(BULK, "  sizes", "  pretraining: {n_snapshots: 4}\n  sizes"))
    assert report.is_valid, report.errors
    assert report.estimate.jobs["pretraining"] == 2


def test_a_committee_chooses_before_each_iteration(tmp_path: Path) -> None:
    text = swap(CLUSTER, "  sizes", "  selection: committee\n  sizes") + "prediction: {stride: 4}\n"
    jobs = check(tmp_path, text).estimate.jobs
    assert jobs["selection"] == 3
    assert "stride" not in jobs


def test_members_need_networks_with_a_committee(tmp_path: Path) -> None:
    text = GIVEN[: GIVEN.index("labels:")] + "models: {apt: apt.pt}\nprediction: {members: 16}\n"
    report = check(tmp_path, text, lambda folder: model(folder / "apt.pt"))
    (problem,) = [str(one) for one in report.errors if one.key_path == ("prediction", "members")]
    assert problem.startswith("prediction.members needs networks with a committee, apt.pt has none: train it with")


def test_torch_sim_runs_all_trajectories_in_one_job(tmp_path: Path) -> None:
    assert check(tmp_path, TORCH_SIM).estimate.jobs["md"] == 2
    few = swap(TORCH_SIM, "length_ps: 2.0", "length_ps: 2.0\n    trajectories_per_job: 3")
    assert check(tmp_path, few).estimate.jobs["md"] == 4


def test_a_calculator_finds_its_files_beside_the_campaign(tmp_path: Path) -> None:
    """The same name, the path here and the name in the job."""
    text = swap(CLUSTER, "verbosity: 0}}", "verbosity: 0}}\n  files: [models/potential.pt]")
    text = swap(text, "method: GFN2-xTB", "method: GFN2-xTB, guess: models/potential.pt")
    (tmp_path / "campaign.yaml").write_text(text)
    sampling = load_campaign(tmp_path / "campaign.yaml").sampling
    assert sampling is not None
    assert sampling.arguments(lambda name: f"<{name}>")["guess"] == "<models/potential.pt>"
    assert sampling.arguments(lambda name: "")["method"] == "GFN2-xTB"


def test_estimate_of_cp2k_is_unknown_until_the_user_knows_better(tmp_path: Path) -> None:
    estimate = check(tmp_path, BULK).estimate
    assert estimate.core_hours["labels"] is None
    assert "labels: unknown until the first job" in estimate.lines()
    assert estimate.core_hours["md"] == pytest.approx(22000 * 24 * 5.7e-4 / 3600, rel=1e-12)  # committee of networks
    text = swap(BULK, "  template: dft.inp", "  template: dft.inp\n  seconds_per_point: 36")
    text += "computers: {cp2k: {code: cp2k@here, resources: {num_machines: 1, num_mpiprocs_per_machine: 4}}}\n"
    estimate = check(tmp_path, text).estimate
    assert estimate.core_hours["labels"] == pytest.approx(13 * 13 * 36 * 4 / 3600, rel=1e-12)


def test_apt_alone_takes_seven_points(tmp_path: Path) -> None:
    estimate = check(tmp_path, swap(CLUSTER, "  sizes", "  targets: [apt]\n  sizes")).estimate
    assert estimate.points_per_snapshot == 7
    assert estimate.jobs["training"] == 3


def test_a_cluster_without_ir_needs_no_volume(tmp_path: Path) -> None:
    text = swap(swap(CLUSTER, "  volume_A3: 180.0\n", ""), "  sizes", "  targets: [pgt]\n  sizes")
    assert check(tmp_path, text).is_valid


def test_calculator_of_another_computer_is_not_imported_here(tmp_path: Path) -> None:
    text = swap(CLUSTER, "tblite.ase.TBLite", "installed.there.Only")
    assert not check(tmp_path, text).is_valid
    assert check(tmp_path, text + "computers: {mimyria: {code: mimyria-wf@cluster}}\n").is_valid


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("{b: {species: O}, a: {any: [{species: S}]}}", "groups name the species S, "),
        ("{a: {index: 18}}", "groups name the atom index 18, but the start structure has 18 atoms, 0 to 17"),
        ("{a: {molecule: O4S}}", "no molecule O4S in the first frame; molecules found: H2O"),
    ],
)
def test_groups_must_occur_in_the_system(tmp_path: Path, groups: str, message: str) -> None:
    (problem,) = check(tmp_path, CLUSTER + f"spectra:\n  groups:\n    {groups}\n").errors
    assert problem.key_path[:3] == ("spectra", "groups", "a")
    assert problem.line == 22
    assert message in f"{problem.statement.removeprefix('does not fit, ')}; {problem.remedy}"
    assert check(tmp_path, CLUSTER + "spectra: {groups: {a: {molecule: H2O}}}\n").is_valid


def test_a_measured_spectrum_needs_units(tmp_path: Path) -> None:
    text = CLUSTER + "spectra:\n  measured: ir.csv\n"
    (problem,) = check(tmp_path, text, put("ir.csv", "1000,1\n1001,2\n")).errors
    assert problem.line == 21
    assert "ir.csv" in str(problem)
    assert "unit" in str(problem)
    assert "spectra.measured_units" in str(problem)
    assert check(tmp_path, text + "  measured_units: cm^-1, cm^-1\n", put("ir.csv", "1000,1\n1001,2\n")).is_valid
    assert check(tmp_path, text, put("ir.csv", "wavenumber [cm^-1], n alpha [cm^-1]\n1000,1\n1001,2\n")).is_valid


@pytest.mark.parametrize("step", ["md", "prediction", "spectra"])
def test_a_step_that_reads_trajectories_runs_where_they_lie(tmp_path: Path, step: str) -> None:
    text = CLUSTER + f"computers:\n  {step}: {{code: mimyria-wf@cluster}}\n"
    (problem,) = check(tmp_path, text).errors
    assert str(problem) == (
        f"computers.{step}.code must be on the computer of computers.mimyria, localhost, where trajectories stay, got "
        "mimyria-wf@cluster: name a code on localhost; only training and labels may run elsewhere "
        "(campaign.yaml, line 21)"
    )
    assert check(tmp_path, text + "  mimyria: {code: console@cluster}\n").is_valid


@pytest.mark.parametrize("step", ["training", "labels"])
def test_what_reads_no_trajectory_may_run_elsewhere(tmp_path: Path, step: str) -> None:
    assert check(tmp_path, CLUSTER + f"computers:\n  {step}: {{code: mimyria-wf@cluster}}\n").is_valid


def test_cp2k_runs_its_md_beside_the_console_script(tmp_path: Path) -> None:
    """One job runs CP2K and turns its files into H5MD: no job has two computers."""
    text = BULK + "computers:\n  mimyria: {code: mimyria-wf@cluster}\n"
    (problem,) = check(tmp_path, text).errors
    assert "computers.cp2k.code must be on the computer of computers.mimyria, cluster" in str(problem)
    assert check(tmp_path, text + "  cp2k: {code: cp2k@cluster}\n  labels: {code: cp2k@other}\n").is_valid


def test_report_is_json(tmp_path: Path) -> None:
    report = check(tmp_path, swap(CLUSTER, "test_size: 20", "test_size: 9000")).to_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["is_valid"] is False
    assert len(report["errors"]) == 1


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    text = swap(swap(CLUSTER, "water.xyz", "water.xyz\n  charge: 1"), "test_size: 20", "test_size: 9000")
    lines = [problem.line for problem in check(tmp_path, text).errors]
    assert lines == [5, 20]


def test_missing_files_are_named_in_one_round_with_a_wrong_key(tmp_path: Path) -> None:
    good_files(tmp_path)
    text = swap(swap(BULK, "seed: 1", "sed: 1"), "dft.inp", "dft.ipn")
    (tmp_path / "campaign.yaml").write_text(text)
    with pytest.raises(CampaignFileError) as caught:
        load_checked(tmp_path / "campaign.yaml")
    assert str(caught.value).splitlines() == [
        "sed is not a key of a campaign: did you mean seed? (campaign.yaml, line 2)",
        "labels.template must name an existing file, dft.ipn does not exist: did you mean dft.inp? "
        "(campaign.yaml, line 14)",
    ]
    text = swap(swap(GIVEN, "window_fs: 20", "window_fs: 20 fs"), "b.h5", "{path: 'c*.h5'}")
    (tmp_path / "campaign.yaml").write_text(text)
    with pytest.raises(CampaignFileError) as caught:
        load_checked(tmp_path / "campaign.yaml")
    assert [problem.key_path for problem in caught.value.problems] == [
        ("trajectories", 0),
        ("trajectories", 1),
        ("spectra", "window_fs"),
    ]
    for broken in (b"a: [", b"\xff", b"- 1"):
        (tmp_path / "campaign.yaml").write_bytes(broken)
        with pytest.raises(CampaignFileError):
            load_checked(tmp_path / "campaign.yaml")
    with pytest.raises(CampaignFileError, match="does not exist"):
        load_checked(tmp_path / "no.yaml")


def test_progress_names_the_file_that_is_read(tmp_path: Path) -> None:
    good_files(tmp_path)
    runs(tmp_path)
    (tmp_path / "campaign.yaml").write_text(GIVEN)
    seen: list[str] = []
    check_campaign(load_campaign(tmp_path / "campaign.yaml"), lambda done, total, what: seen.append(what))
    assert seen == ["reading a.h5", "reading b.h5"]
