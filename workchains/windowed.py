"""What the workchains share: jobs in bounded windows, each submitted once even if the step is run again."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.common.links import LinkType
from aiida.engine import ToContext, WorkChain


class WindowedWorkChain(WorkChain):
    """A workchain that works through ``ctx.queue`` with at most ``ctx.max_concurrent`` jobs at a time.

    AiiDA has no limit of jobs per computer; the window keeps queues of clusters and the two cores of a laptop from
    being flooded. Entries of the queue are plain dictionaries with a ``label``; subclasses turn them into inputs.
    """

    def job(self, entry: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the process class and the inputs of a queue entry."""
        raise NotImplementedError

    def code_for(self, step: str) -> orm.AbstractCode:
        """Return the code that runs a step: its own if there is one."""
        return self.inputs.get(f"{step}_code", self.inputs.code)

    def has_queue(self) -> bool:
        """Are there jobs left to submit?"""
        return bool(self.ctx.queue)

    def submit_window(self) -> ToContext:
        """Submit the next jobs and wait for all of them."""
        window = [self.ctx.queue.pop(0) for _ in range(min(self.ctx.max_concurrent, len(self.ctx.queue)))]
        self.ctx.window = window
        return ToContext(**{entry["label"]: self.submit_once(entry["label"], *self._inputs(entry)) for entry in window})

    def _inputs(self, entry: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return process class and inputs; the second attempt goes on from what the first has left."""
        process, inputs = self.job(entry)
        if entry.get("attempt", 1) > 1 and getattr(process, "resumes", ()):
            ended = self.ctx[entry["label"].removesuffix("_again")]
            if "remote_folder" in ended.outputs:
                inputs["partial"] = ended.outputs.remote_folder
        return process, inputs

    def inspect_window(self) -> Any:
        """Sort the window's jobs into done and failed; a failed job is tried a second time.

        Nodes die and file systems hiccup, so that one repetition is worth its price; what fails twice is not chance.
        """
        for entry in self.ctx.window:
            node = self.ctx[entry["label"]]
            if node.is_finished_ok:
                self.ctx.done.append(entry)
            elif entry.get("attempt", 1) == 1 and self.is_worth_repeating(node):
                self.report(f"{entry['label']} failed ({reason(node)}): trying it once more")
                label = f"{entry['label']}_again"
                self.ctx.queue.append({**entry, "label": label, "attempt": 2})
            else:
                self.ctx.failed.append(entry)
                self.report(f"{entry['label']}<{node.pk}> failed: {reason(node)}")
        return None

    def is_worth_repeating(self, node: orm.ProcessNode) -> bool:
        """Say whether a failed job may succeed the second time: not if the verb itself refused its input."""
        return node.exit_status != 320

    def submit_once(self, label: str, process: Any, inputs: dict[str, Any]) -> orm.ProcessNode:
        """Submit a child, unless this step ran before and already did: then return that child.

        A process that is ended between submitting and saving its state runs the step again when it goes on.
        """
        links = self.node.base.links.get_outgoing(link_type=(LinkType.CALL_CALC, LinkType.CALL_WORK))
        for link in links.all():
            if link.link_label == label and (link.node.is_terminated or link.node.checkpoint is not None):
                assert isinstance(link.node, orm.ProcessNode)
                return link.node
        inputs = {**inputs, "metadata": {**inputs.get("metadata", {}), "call_link_label": label, "label": label}}
        return self.submit(process, **inputs)


def reason(node: orm.ProcessNode) -> str:
    """Return in one line why a process failed."""
    if node.exit_message:
        return str(node.exit_message)
    if node.exception:
        return str(node.exception).strip().splitlines()[-1]
    return node.process_state.value if node.process_state else "it was never started"


def job_metadata(options: dict[str, Any] | None) -> dict[str, Any]:
    """Return CalcJob metadata from the scheduler options of a campaign's ``computers`` section."""
    options = {key: value for key, value in (options or {}).items() if value is not None}
    return {"options": options} if options else {}
