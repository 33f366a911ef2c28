"""Trajectories as inputs: remote folders, and a manifest that says which file of which folder is which run.

Long trajectories never enter the database. A job links the files it reads from the folders of the jobs that wrote
them, or from a folder that the user points to.
"""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.engine import CalcJobProcessSpec


def define_trajectories(spec: CalcJobProcessSpec) -> None:
    """Declare the inputs ``trajectories`` (folders) and ``manifest``."""
    spec.input_namespace("trajectories", valid_type=orm.RemoteData, dynamic=True, help="folders with trajectory files")
    spec.input(
        "manifest",
        valid_type=orm.Dict,
        help='{"files": [{"folder": key in trajectories, "file": path in it, "name": of the run, "n_frames": ...}]}',
    )


def trajectory_links(inputs: Any) -> list[tuple[orm.RemoteData, str, str]]:
    """Return the links of a job: each trajectory under its own name."""
    return [
        (inputs.trajectories[entry["folder"]], entry["file"], link_name(entry))
        for entry in inputs.manifest.get_dict()["files"]
    ]


def trajectory_names(inputs: Any) -> list[str]:
    """Return the names under which a job finds the trajectories."""
    return [link_name(entry) for entry in inputs.manifest.get_dict()["files"]]


def link_name(entry: dict[str, Any]) -> str:
    """Return the file name in the job: the run's name with the suffix of the file."""
    suffix = "." + entry["file"].rsplit(".", 1)[-1]
    return f"{entry['name']}{suffix}"
