"""IR and Raman spectra from derivative series, and the distance between two sets of them."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.common.folders import Folder
from aiida.engine import CalcJobProcessSpec, ExitCode

from mimyria_wf.calculators.console import ConsoleCalculation, ConsoleParser
from mimyria_wf.calculators.data import copy_file
from mimyria_wf.calculators.md import flags

SPECTRA_FILES = ("*.csv", "*.json", "*.png", "*.pdf", "*.nc", "jcamp/*.jdx")


def spectra_flags(settings: orm.Dict) -> list[str]:
    """Return the flags of `mimyria-wf spectra`; a geometry may begin with a minus and stands with its flag."""
    values = settings.get_dict()
    geometries = values.pop("geometry", [])
    return [*flags(values), *(f"--geometry={geometry}" for geometry in geometries)]


def spectra_files_of(directory: str) -> list[tuple[str, str, int]]:
    """Return what is retrieved of a folder of spectra."""
    return [(f"{directory}/{name}", ".", 2 + name.count("/")) for name in SPECTRA_FILES]


class SpectraCalculation(ConsoleCalculation):
    """Spectra of all series in a prediction's folder; compared with an earlier set if that is given."""

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs and outputs."""
        super().define(spec)
        spec.input_namespace("derivatives", valid_type=orm.RemoteData, dynamic=True, help="folders of predictions")
        spec.input(
            "series", valid_type=orm.Dict, help='{"files": [{"folder": key in derivatives, "name": of the run}]}'
        )
        spec.input(
            "settings", valid_type=orm.Dict, help="window_fs, upper_wavenumber_per_cm, geometry, statistics, ..."
        )
        spec.input("measured", valid_type=orm.SinglefileData, required=False, help="measured spectrum to overlay")
        spec.input(
            "previous", valid_type=orm.RemoteData, required=False, help="folder of an earlier SpectraCalculation"
        )
        spec.output("comparison", valid_type=orm.Dict, required=False, help="Eq. 16 against the earlier spectra")

    @classmethod
    def parser_entry_point(cls) -> str:
        """Return the entry point of the parser."""
        return "mimyria_wf.spectra"

    def links(self) -> list[tuple[orm.RemoteData, str, str]]:
        """Link the series and the earlier spectra."""
        links = [
            (self.inputs.derivatives[entry["folder"]], f"derivatives/{entry['name']}.h5", f"{entry['name']}.h5")
            for entry in self.inputs.series.get_dict()["files"]
        ]
        if "previous" in self.inputs:
            links.append((self.inputs.previous, "spectra", "previous"))
        return links

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Return the calls."""
        names = [f"{entry['name']}.h5" for entry in self.inputs.series.get_dict()["files"]]
        settings = spectra_flags(self.inputs.settings)
        if "measured" in self.inputs:
            name = self.inputs.measured.filename
            copy_file(folder, name, self.inputs.measured)
            settings += ["--measured", name]
        lines = [["spectra", *names, *settings, "-o", "spectra"]]
        if "previous" in self.inputs:
            lines.append(["compare", "previous", "spectra"])
        return lines

    def prepare_for_submission(self, folder: Folder) -> Any:
        """Retrieve the tables and figures too."""
        info = super().prepare_for_submission(folder)
        info.retrieve_list += spectra_files_of("spectra")
        return info


class SpectraParser(ConsoleParser):
    """Attach what the spectra say of themselves, and the comparison."""

    summary_call = 0

    def attach(self, results: list[dict[str, Any]]) -> ExitCode | None:
        """Attach the comparison."""
        if len(results) > 1:
            self.out("comparison", orm.Dict(results[1]))
        return None


class ComparisonCalculation(ConsoleCalculation):
    """Spectra from explicit labels along one trajectory against the prediction along the same trajectory (Eq. 16)."""

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare inputs."""
        super().define(spec)
        spec.input_namespace(
            "explicit", valid_type=orm.RemoteData, dynamic=True, help="parts in the order of their keys"
        )
        spec.input("predicted", valid_type=orm.RemoteData, help="folder of a PredictionCalculation")
        spec.input("name", valid_type=orm.Str, help="of the run")
        spec.input("settings", valid_type=orm.Dict, help="as for SpectraCalculation")

    def links(self) -> list[tuple[orm.RemoteData, str, str]]:
        """Link both."""
        parts = [(remote, "explicit.h5", f"{key}.h5") for key, remote in sorted(self.inputs.explicit.items())]
        return [*parts, (self.inputs.predicted, f"derivatives/{self.inputs.name.value}.h5", "predicted.h5")]

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Return the calls."""
        settings = [*spectra_flags(self.inputs.settings), "--no-figures"]  # the comparison has one of both
        parts = [f"{key}.h5" for key in sorted(self.inputs.explicit)]
        return [
            ["join", *parts, "-o", "explicit.h5"],
            ["spectra", "explicit.h5", *settings, "-o", "explicit"],
            ["spectra", "predicted.h5", *settings, "-o", "predicted"],
            ["compare", "explicit", "predicted", "--plot", "explicit_vs_predicted.png"],
        ]

    def prepare_for_submission(self, folder: Folder) -> Any:
        """Retrieve tables and figures too."""
        info = super().prepare_for_submission(folder)
        info.retrieve_list += [entry for side in ("explicit", "predicted") for entry in spectra_files_of(side)]
        info.retrieve_list += [("*.png", ".", 0), ("*.pdf", ".", 0)]
        return info
