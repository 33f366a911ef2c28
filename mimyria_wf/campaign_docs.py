"""The reference of the campaign file, written from its model: ``python -m mimyria_wf.campaign_docs``."""

import json
from typing import Any, Literal, get_args

from pydantic import BaseModel

from mimyria_wf.campaign import Campaign
from mimyria_wf.campaign_file import KeyPath, dotted
from mimyria_wf.campaign_messages import section_of


def schema_markdown() -> str:
    """Return docs/campaign.md: every key with type, default and meaning, from the model itself."""
    parts = [
        "# Campaign file\n",
        "One YAML file describes a campaign. Keys carry their unit. Unknown keys are errors. Paths are relative to the "
        "file. `mimyria-wf validate FILE.yaml` checks all that can be known before anything runs.\n",
        "This page is written from `mimyria_wf/campaign.py`; "
        "`python -m mimyria_wf.campaign_docs > docs/campaign.md` renews it.\n",
    ]
    parts += _section_markdown(Campaign, ())
    return "\n".join(parts)


def _section_markdown(section: type[BaseModel], key_path: KeyPath) -> list[str]:
    title = f"`{dotted(key_path)}`" if key_path else "Top level"
    about = " ".join((section.__doc__ or "").split())
    rows = [f"## {title}\n", f"{about}\n", "| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    inner: list[tuple[KeyPath, type[BaseModel]]] = []
    seen: set[type[BaseModel]] = set()
    for name, info in section.model_fields.items():
        key = info.alias or name
        child = section_of(info.annotation)
        default = "required" if info.is_required() else _default_text(info.get_default(call_default_factory=True))
        rows.append(f"| `{key}` | {_type_text(info.annotation)} | {default} | {info.description} |")
        if child is not None and child not in seen:
            seen.add(child)
            inner.append(((*key_path, key), child))
    text = ["\n".join(rows) + "\n"]
    for path, child in inner:
        text += _section_markdown(child, path)
    return text


def _default_text(value: Any) -> str:
    if isinstance(value, BaseModel) or value is None:
        return ""
    return f"`{json.dumps(value)}`"


def _type_text(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    words = {float: "number", int: "whole number", bool: "true/false", str: "text", type(None): ""}
    if annotation in words:
        return words[annotation]
    origin, args = getattr(annotation, "__origin__", None), get_args(annotation)
    if origin is Literal:
        return " \\| ".join(f"`{choice}`" for choice in args)
    if origin in (dict,):
        return "section"
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"list of {_type_text(args[0])}"
        return "3 numbers or 3 x 3" if _type_text(args[0]).startswith("3") else f"{len(args)} x {_type_text(args[0])}"
    if hasattr(annotation, "__metadata__"):
        return _type_text(annotation.__origin__)
    return ", ".join(dict.fromkeys(filter(None, (_type_text(part) for part in args))))


if __name__ == "__main__":
    print(schema_markdown(), end="")
