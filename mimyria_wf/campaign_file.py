"""The YAML file of a campaign as text: plain values, the line of every key, and mistakes as lines of text."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimyria_wf.errors import CampaignError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One mistake, printed as one line.

    Attributes:
        key_path: where in the campaign, e.g. ``("sampling", "nve", "stride")``; empty for the file as a whole.
        statement: what is wrong, what was expected and what was found; reads on from the key path.
        remedy: what to do.
        file: the campaign file as the user named it, None for a campaign that was not read from a file.
        line: line in that file, counted from 1.
    """

    key_path: KeyPath
    statement: str
    remedy: str = ""
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        """Return e.g. ``training.sizes must increase, got [10, 5]: sort them (a.yaml, line 14)``."""
        text = f"{dotted(self.key_path)} {self.statement}".strip()
        if self.remedy:
            text += f": {self.remedy}"
        if self.file is not None:
            text += f" ({self.file}, line {self.line})" if self.line is not None else f" ({self.file})"
        return " ".join(text.split())


class CampaignFileError(CampaignError):
    """All that is wrong with a campaign file, one line for each mistake.

    Attributes:
        problems: the mistakes in the order of their lines.
    """

    def __init__(self, problems: Iterable[Problem]):
        """Join the problems to one message."""
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def dotted(key_path: KeyPath) -> str:
    """Return ``sampling.nve.stride`` or ``training.sizes[2]`` for a key path."""
    text = ""
    for key in key_path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


@dataclass(frozen=True)
class Source:
    """Where a campaign came from: the file's name as given, its folder, and the line of every key."""

    name: str | None = None
    directory: Path = field(default_factory=Path.cwd)
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def line(self, key_path: KeyPath) -> int | None:
        """Return the line of a key, or of the nearest section around it."""
        while key_path not in self.lines and key_path:
            key_path = key_path[:-1]
        return self.lines.get(key_path)

    def problem(self, key_path: KeyPath, statement: str, remedy: str = "") -> Problem:
        """Return a problem that names the line of ``key_path``."""
        return Problem(key_path, statement, remedy, self.name, self.line(key_path))


def read_yaml(text: str, name: str) -> tuple[Any, dict[KeyPath, int]]:
    """Return plain values and the line of every key."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        loaded = YAML(typ="rt", pure=True).load(text)
    except DuplicateKeyError as error:
        mark = error.problem_mark
        key = re.search(r'duplicate key "?([^"\s]+)"?', str(error.problem))
        statement = f"the key {key.group(1) if key else ''} is there twice in one section".replace("  ", " ")
        raise CampaignFileError(
            [Problem((), statement, "remove one of the two", name, mark.line + 1 if mark else None)]
        ) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        statement = f"the file is not valid YAML: {' '.join(filter(None, [error.context, error.problem]))}"
        remedy = "check indentation, colons and brackets there and in the line above"
        if "'\\t'" in statement:
            statement, remedy = "the file has a tab where YAML wants spaces", "replace tabs by spaces"
        elif "single document" in statement:
            statement, remedy = "the file holds several YAML documents", "keep one and remove the lines ---"
        raise CampaignFileError([Problem((), statement, remedy, name, mark.line + 1 if mark else None)]) from None
    except YAMLError as error:
        first = str(error).splitlines()[0]
        raise CampaignFileError(
            [Problem((), f"the file is not valid YAML: {first}", "save it as plain text", name)]
        ) from None
    if loaded is None:
        raise CampaignFileError([Problem((), "the file is empty", "start from one of templates/campaigns", name, 1)])
    if not isinstance(loaded, Mapping):
        statement = f"the file must hold keys and values, got {kind_of(loaded)}"
        raise CampaignFileError([Problem((), statement, "start with e.g. name: my_campaign", name, 1)])
    lines: dict[KeyPath, int] = {(): 1}
    return _plain(loaded, (), lines, name), lines


def _plain(value: Any, key_path: KeyPath, lines: dict[KeyPath, int], name: str) -> Any:
    """Return builtin values for ruamel's, noting the line of every key."""
    if isinstance(value, Mapping):
        plain = {}
        for key, entry in value.items():
            if not isinstance(key, str):
                statement = f"the key {key!r} must be a word, got {kind_of(key)}"
                line = value.lc.key(key)[0] + 1 if key in value.lc.data else lines.get(key_path)  # type: ignore[attr-defined]
                raise CampaignFileError([Problem((), statement, "put it in quotes", name, line)])
            here = (*key_path, str(key))
            if (value.lc.data or {}).get(key) is not None:  # type: ignore[attr-defined]
                lines[here] = value.lc.key(key)[0] + 1  # type: ignore[attr-defined]
            plain[str(key)] = _plain(entry, here, lines, name)
        return plain
    if isinstance(value, list):
        for i in range(len(value)):
            lines[(*key_path, i)] = value.lc.item(i)[0] + 1  # type: ignore[attr-defined]
        return [_plain(entry, (*key_path, i), lines, name) for i, entry in enumerate(value)]
    if isinstance(value, bool) or value is None:
        return value
    for builtin in (int, float, str):
        if isinstance(value, builtin):
            return builtin(value)
    return bool(value) if type(value).__name__ == "ScalarBoolean" else str(value)


def kind_of(value: Any) -> str:
    """Return in words what a YAML value is."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list"
    return "text" if isinstance(value, str) else "a number"


def shown(value: Any) -> str:
    """Return a value as a message shows it, as YAML would have it and at most 60 characters."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
