"""A CalcJob around one verb of the console script ``mimyria-wf``.

Every heavy computation of the package is a verb that also works without AiiDA. This base class runs it with
``--json-file``; the parser turns that file into the output ``summary`` and a line ``error: ...`` on
standard error into the message of the exit code, so that `verdi process show` says what the user must change.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from aiida import orm
from aiida.common import CalcInfo, CodeInfo
from aiida.common.datastructures import CodeRunMode
from aiida.common.folders import Folder
from aiida.engine import CalcJob, CalcJobProcessSpec, ExitCode
from aiida.parsers import Parser


class RepeatableCalculation(CalcJob):
    """A CalcJob that is taken from the cache only if it went well: what failed is worth another try.

    AiiDA's own rule takes failed jobs too, so that a campaign repeated after a full disk would fail at once again.
    """

    @classmethod
    def is_valid_cache(cls, node: orm.ProcessNode) -> bool:
        """Say whether a job of equal inputs may use the outputs of `node`."""
        return bool(node.is_finished_ok) and super().is_valid_cache(node)


class ConsoleCalculation(RepeatableCalculation):
    """Base of the CalcJobs that run ``mimyria-wf <verb>``; subclasses write the command lines and name the outputs."""

    #: files that must be there after success, beside the result file
    retrieve: ClassVar[tuple[str, ...]] = ()
    #: what a job that was ended leaves for the next one to go on from
    resumes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Declare what all verbs share."""
        super().define(spec)
        spec.input("code", valid_type=orm.AbstractCode, help="The console script mimyria-wf.")
        spec.inputs["metadata"]["options"]["resources"].default = {"num_machines": 1, "num_mpiprocs_per_machine": 1}
        spec.inputs["metadata"]["options"]["withmpi"].default = False
        spec.inputs["metadata"]["options"]["parser_name"].default = cls.parser_entry_point()
        spec.output(
            "summary", valid_type=orm.Dict, help="What the verb reports, with units in the keys or beside them."
        )
        spec.default_output_node = "summary"
        if cls.resumes:
            about = "folder of a job that was ended: go on from what it has left"
            spec.input("partial", valid_type=orm.RemoteData, required=False, help=about)
        spec.exit_code(310, "ERROR_NO_RESULT", message="The job ended without a result: {detail}")
        spec.exit_code(311, "ERROR_OUTPUT_MISSING", message="The job ended without the file {name}.")
        spec.exit_code(320, "ERROR_REFUSED", message="{detail}")

    @classmethod
    def parser_entry_point(cls) -> str:
        """Return the entry point of the parser."""
        return "mimyria_wf.console"

    def command_lines(self, folder: Folder) -> list[list[str]]:
        """Write the input files into `folder` and return the arguments of each call of the console script."""
        raise NotImplementedError

    def links(self) -> list[tuple[orm.RemoteData, str, str]]:
        """Return (remote folder, path in it, name in the job) of what is linked from other jobs on the computer."""
        return []

    def prepare_for_submission(self, folder: Folder) -> CalcInfo:
        """Write inputs and return the job: one call after the other in one working directory."""
        info = CalcInfo()
        info.codes_info = []
        for number, arguments in enumerate(self.command_lines(folder)):
            call = CodeInfo()
            call.code_uuid = self.inputs.code.uuid
            call.cmdline_params = [*arguments, "--json-file", result_name(number)]
            call.stdout_name = f"stdout-{number}.txt"
            call.stderr_name = f"stderr-{number}.txt"
            info.codes_info.append(call)
        info.codes_run_mode = CodeRunMode.SERIAL
        # by name, not by pattern: the parser counts on this list, so that a job cut off between two calls is no success
        own: list[Any] = [result_name(number) for number in range(len(info.codes_info))]
        own.append(("std*-*.txt", ".", 0))
        info.retrieve_list = [*own, *((name, ".", name.count("/") + 1) for name in self.retrieve)]
        links = self.links()
        if "partial" in self.inputs:
            links.append((self.inputs.partial, "", "partial"))
            # copied: what ended stays as it was
            copies = (
                f'for f in partial/{what}; do if [ -e "$f" ]; then cp -r "$f" .; fi; done' for what in self.resumes
            )
            info.prepend_text = "\n".join(copies)
        info.remote_symlink_list = [
            (remote.computer.uuid, f"{remote.get_remote_path().rstrip('/')}/{path}".rstrip("/"), name)
            for remote, path, name in links
        ]
        return info


def result_name(number: int) -> str:
    """Return the file with the result of one call."""
    return f"result-{number}.json"


def is_result_name(name: Any) -> bool:
    """Say whether an entry of a retrieve list is the result of a call."""
    return isinstance(name, str) and name.startswith("result-")


class ConsoleParser(Parser):
    """Turn ``result-<n>.json`` into ``summary``; subclasses add outputs in :meth:`attach`."""

    #: which call's result becomes the summary
    summary_call = -1

    def parse(self, **kwargs: Any) -> ExitCode | None:
        """Read the retrieved files."""
        names = self.retrieved.list_object_names()
        # calls run one after the other and the scheduler script does not stop at a failure: the first one counts
        errors = [
            line
            for name in sorted(names)
            if name.startswith("stderr-")
            for line in self.retrieved.get_object_content(name).splitlines()
            if line.strip()
        ]
        refused = [line.removeprefix("error: ") for line in errors if line.startswith("error: ")]
        if refused:
            return self.exit_codes.ERROR_REFUSED.format(detail=refused[0])
        expected = [name for name in self.node.base.attributes.get("retrieve_list") if is_result_name(name)]
        results = []
        for number in range(max(1, len(expected))):
            try:
                results.append(json.loads(self.retrieved.get_object_content(result_name(number))))
            except FileNotFoundError:
                detail = errors[-1] if errors else "it left no message (time limit, memory, or it was ended)"
                return self.exit_codes.ERROR_NO_RESULT.format(detail=detail)
            except ValueError:
                return self.exit_codes.ERROR_NO_RESULT.format(detail=f"{result_name(number)} is cut off")
        for name in self.node.process_class.retrieve:
            if not self._is_there(name):
                return self.exit_codes.ERROR_OUTPUT_MISSING.format(name=name)
        self.out("summary", orm.Dict(results[self.summary_call]))
        return self.attach(results)

    def attach(self, results: list[dict[str, Any]]) -> ExitCode | None:
        """Attach further outputs; `results` holds what each call reported."""
        return None

    def attach_file(self, label: str, name: str) -> None:
        """Attach the retrieved file `name` as output `label`."""
        with self.retrieved.open(name, "rb") as handle:
            self.out(label, orm.SinglefileData(handle, filename=name.rsplit("/", 1)[-1]))

    def _is_there(self, name: str) -> bool:
        folder, _, base = name.rpartition("/")
        try:
            return base in self.retrieved.list_object_names(folder or None)
        except FileNotFoundError:
            return False
