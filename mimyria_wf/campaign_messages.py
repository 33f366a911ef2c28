"""What mistakes in a campaign file are called: pydantic's errors in words that name key, value and remedy."""

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from mimyria_wf.campaign_file import KeyPath, Problem, Source, dotted, is_number, kind_of, shown


def wrong(
    key: str, statement: str, remedy: str = "", others: Sequence[tuple[str, str, str]] = ()
) -> PydanticCustomError:
    """Return the error of a rule between keys; ``key`` names the one to change, "" the section itself.

    ``others`` are further mistakes there, each key, statement and remedy.
    """
    context = {"key": key, "statement": statement, "remedy": remedy, "others": list(others)}
    return PydanticCustomError("campaign", "{statement}", context)


def group_mistakes(error: ValidationError) -> list[tuple[str, str, str]]:
    """Return key, statement and remedy of each mistake in groups and relations (:mod:`.group_schema`)."""
    found: dict[tuple[str, ...], tuple[str, str, str]] = {}
    # an unknown key is often why another one is missing
    for details in sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden"):
        path = tuple(str(step) for step in details["loc"] if step != "hydrogen_bonds")
        found.setdefault(path[:2], _group_mistake(details, path))  # one line a group or relation
    return list(found.values())


def _group_mistake(details: ErrorDetails, path: tuple[str, ...]) -> tuple[str, str, str]:
    from mimyria_wf.group_schema import _allowed

    kind, given = details["type"], details.get("input")
    if kind == "extra_forbidden":
        return ".".join(path), "is unknown there", _allowed(details["loc"])
    if kind == "missing":
        return ".".join(path), "is missing", "add it"
    if kind == "value_error":
        statement, _, remedy = str(details["ctx"]["error"]).partition("; ")
        return ".".join(path) or "groups", f"is wrong, {statement}", remedy
    wanted = details["msg"].removeprefix("Input should be ")
    return ".".join(path), f"must be {wanted[:1].lower()}{wanted[1:]}, got {shown(given)}", ""


_UNITS = (
    "fs",
    "ps",
    "ns",
    "as",
    "A",
    "A3",
    "nm",
    "nm3",
    "K",
    "C",
    "au",
    "eV",
    "per_cm",
    "per_ps",
    "per_fs",
    "deg",
    "A_deg",
    "V_per_A",
    "s",
    "seconds",
    "cm1",
)


def _stem(key: str) -> str:
    """Return a key without its unit."""
    for unit in sorted(_UNITS, key=len, reverse=True):
        if key.lower().endswith(f"_{unit.lower()}"):
            return key[: -len(unit) - 1].lower()
    return key.lower()


def suggestion(key: str, known: Sequence[str]) -> str | None:
    """Return the known key that was most likely meant; the same word with another unit comes first."""
    same = [other for other in known if _stem(other) == _stem(key)]
    if same:
        return same[0]
    lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(key.lower(), list(lower), n=1, cutoff=0.6)
    return lower[close[0]] if close else None


def section_at(root: type[BaseModel], key_path: KeyPath) -> type[BaseModel] | None:
    """Return the section class at a key path below ``root``."""
    section: type[BaseModel] | None = root
    for key in key_path:
        if isinstance(key, int) or section is None:
            continue
        fields = {info.alias or name: info for name, info in section.model_fields.items()}
        section = section_of(fields[key].annotation) if key in fields else None
    return section


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section class inside an annotation such as ``Nvt | None`` or ``tuple[TrajectoryFile, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part)) is not None), None)


def keys_of(section: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in section.model_fields.items()]


def _elsewhere(root: type[BaseModel], key: str) -> str | None:
    """Return the dotted path of a key of this name in another section."""

    def search(section: type[BaseModel], key_path: KeyPath) -> str | None:
        for name, info in section.model_fields.items():
            here = (*key_path, info.alias or name)
            if here[-1] == key:
                return dotted(here)
        for name, info in section.model_fields.items():
            inner = section_of(info.annotation)
            if inner is not None and (found := search(inner, (*key_path, info.alias or name))):
                return found
        return None

    return search(root, ())


def problems_of(error: ValidationError, source: Source, root: type[BaseModel]) -> list[Problem]:
    """Return one problem a mistake: a key that is missing because it was misspelt counts once."""
    all_details = error.errors()
    meant: set[KeyPath] = set()
    for details in all_details:
        if details["type"] == "extra_forbidden":
            *around, key = details["loc"]
            section = section_at(root, tuple(around))
            close = suggestion(str(key), keys_of(section)) if section else None
            meant.add((*around, close or ""))
    problems = []
    for details in all_details:
        if details["type"] == "missing" and details["loc"] in meant:
            continue
        problems.append(_problem(details, source, root))
        for key, statement, remedy in details.get("ctx", {}).get("others", ()):
            problems.append(source.problem(key_below(details["loc"], key), statement, remedy))
    return problems


def key_below(around: KeyPath, key: str) -> KeyPath:
    """Return the path of a dotted key below another path."""
    return (*around, *(int(part) if part.isdigit() else part for part in key.split(".") if part))


_WANTED = {
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "tuple_type": "a list",
    "list_type": "a list",
    "finite_number": "a finite number",
}


_LIMITS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _problem(details: ErrorDetails, source: Source, root: type[BaseModel]) -> Problem:
    """Return one of pydantic's errors in our words."""
    key_path: KeyPath = tuple(key for key in details["loc"])
    kind, found, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "campaign":
        where = key_below(key_path, context["key"])
        if context["key"] == "" and not key_path:
            return source.problem((), f"the campaign {context['statement']}", context["remedy"])
        return source.problem(where, context["statement"], context["remedy"])
    if kind == "extra_forbidden":
        return _unknown_key(key_path, source, root)
    if kind == "missing":
        section = section_at(root, key_path[:-1])
        fields = {info.alias or name: info for name, info in section.model_fields.items()} if section else {}
        key = str(key_path[-1])
        if "[type=missing" and key not in fields:
            return source.problem(key_path[:-1], f"must have more entries, got {shown(found)}", "add the missing ones")
        about = (fields[key].description or "").split(". ")[0].rstrip(".")
        about = about[:1].lower() + about[1:] if about[1:2].islower() else about
        return source.problem(key_path, "is missing", f"add {key}: ({about})")
    if kind in _WANTED:
        return source.problem(key_path, f"must be {_WANTED[kind]}, got {shown(found)}", _type_remedy(kind, found))
    if kind in _LIMITS:
        word, key = _LIMITS[kind]
        remedy = {"gt": "write a positive number", "ge": f"write {context[key]:g} or more"}.get(key, "lower it")
        return source.problem(key_path, f"must be {word} {context[key]:g}, got {shown(found)}", remedy)
    if kind == "literal_error":
        section = section_at(root, key_path[:-1])
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        close = suggestion(str(found), choices) if isinstance(found, str) else None
        if is_number(found) and section is not None:
            siblings = [key for key in keys_of(section) if key != key_path[-1]]
            close = suggestion(str(key_path[-1]), [key for key in siblings if _stem(key) == key_path[-1]])
        remedy = f"did you mean {close}?" if close else "choose one of them"
        wanted = ", ".join(choices[:-1]) + f" or {choices[-1]}" if len(choices) > 1 else choices[0]
        return source.problem(key_path, f"must be {wanted}, got {shown(found)}", remedy)
    if kind in ("too_short", "string_too_short"):
        return source.problem(key_path, f"must not be empty, got {shown(found)}", "add a value or remove the key")
    if kind == "too_long":
        return source.problem(
            key_path, f"must have {context['max_length']} entries, got {context['actual_length']}", "remove the others"
        )
    if kind == "string_pattern_mismatch":
        return source.problem(
            key_path, f"must be one word of letters, digits, _ . and -, got {shown(found)}", "e.g. liquid_water-300K"
        )
    return source.problem(key_path, f"is wrong: {details['msg']}, got {shown(found)}")


def _unknown_key(key_path: KeyPath, source: Source, root: type[BaseModel]) -> Problem:
    key, section = str(key_path[-1]), section_at(root, key_path[:-1])
    known = keys_of(section) if section else []
    where = dotted(key_path[:-1]) or "a campaign"
    close = suggestion(key, known)
    elsewhere = _elsewhere(root, key)
    if close is not None and (_stem(close) == _stem(key) or elsewhere is None):
        remedy = f"did you mean {close}?"
        unit = close[len(_stem(close)) + 1 :]
        if _stem(close) == _stem(key) and unit:
            remedy += f" It is in {unit.replace('per_', '1/').replace('_', ', ')}"
    elif elsewhere is not None:
        remedy = f"it belongs to {elsewhere}"
    else:
        remedy = f"known keys are {', '.join(known)}"
    return source.problem(key_path, f"is not a key of {where}", remedy)


def _type_remedy(kind: str, found: Any) -> str:
    if kind in ("float_type", "int_type") and isinstance(found, str):
        number = re.match(r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*\D*$", found)
        if number:
            return f"write {number.group(1)} without quotes; the unit is in the key"
    if kind == "int_from_float" or (kind == "int_type" and isinstance(found, float)):
        return f"write a whole number, e.g. {math.ceil(found)}" if math.isfinite(found) else "write a whole number"
    if kind == "string_type" and isinstance(found, bool | int | float):
        return f'put it in quotes: "{found}"'
    if kind in ("bool_type", "bool_parsing"):
        return "write true or false"
    if kind in ("tuple_type", "list_type"):
        return f"write [{found}]" if kind_of(found) in ("a number", "text") else "write [first, second]"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return "write its keys below it, indented" if found is None else "write {key: value} or indented keys below it"
    return "write a whole number" if kind.startswith("int") else "write a plain number"
