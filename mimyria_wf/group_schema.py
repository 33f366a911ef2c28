"""What a file of groups and relations may say; a mistake becomes one line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from ase.data import chemical_symbols
from ase.formula import Formula
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from mimyria_wf.campaign_file import CampaignFileError, dotted, read_yaml, shown
from mimyria_wf.errors import GroupError
from mimyria_wf.topology import BOND_SCALE, IONS

if TYPE_CHECKING:
    from mimyria_wf.frames import TrajectoryReader
    from mimyria_wf.groups import ResolvedGroups

REST = "rest"
OTHER = "other"
RelationKind = Literal["self", "same molecule", "other molecule", "neighbours", "hydrogen bonded"]
_KINDS: tuple[RelationKind, ...] = ("self", "same molecule", "other molecule", "neighbours", "hydrogen bonded")


MOST_ATOMS = 10_000_000
"""Atom indices stay below it."""


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _not_a_truth(value: Any) -> Any:
    """Refuse true and false, which would count as one and zero."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {shown(value)}")
    return value


def _check_name(name: str, what: str) -> None:
    if not name.strip() or "," in name or " x " in name:
        raise ValueError(f"a {what} cannot be named {name!r}: commas and ' x ' separate names of parts")


def _species(value: str) -> str:
    if value not in chemical_symbols[1:]:
        raise ValueError(f"{value!r} is no chemical symbol")
    return value


def hill(text: str) -> str:
    """Return a formula in Hill's order; ValueError if it is none."""
    try:
        formula = Formula(text)
        for symbol in formula.count():
            _species(symbol)
        return str(formula.format("hill"))
    except ValueError:
        raise ValueError(f"{text!r} is no formula such as H2O or O4S") from None


def _indices(value: Any) -> Any:
    """Return atom indices of a number, a range such as "0-5", both ends included, or a list of those."""
    found: list[int] = []
    for one in _as_list(value):
        match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", one) if isinstance(one, str) else None
        if match:
            first, last = int(match[1]), int(match[2])
            if last < first:
                raise ValueError(f"the range {one!r} runs backwards")
            if last >= MOST_ATOMS:  # before the list is built, which could fill the memory
                raise ValueError(f"the range {one!r} goes beyond the {MOST_ATOMS} atoms that can be numbered")
            found += range(first, last + 1)
        elif isinstance(one, int) and not isinstance(one, bool) and one >= 0:
            found.append(one)
        else:
            raise ValueError(f"atom indices are numbers from 0 and ranges such as 0-5, got {one!r}")
    return sorted(set(found))


Real = Annotated[float, BeforeValidator(_not_a_truth)]
Count = Annotated[int, BeforeValidator(_not_a_truth)]
Symbol = Annotated[str, Field(strict=True)]
Symbols = Annotated[list[Symbol], BeforeValidator(_as_list), Field(min_length=1)]
_STRICT = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Condition(BaseModel):
    """Which atoms; several keys in one section must all hold."""

    model_config = _STRICT

    species: Symbols | None = None
    index: Annotated[list[int], BeforeValidator(_indices), Field(min_length=1)] | None = None
    molecule: Annotated[list[Symbol], BeforeValidator(_as_list), Field(min_length=1)] | None = None
    molecule_of: "Condition | None" = None
    within: "Within | None" = None
    group: Symbols | None = None
    all_: "Annotated[list[Condition], Field(min_length=1)] | None" = Field(default=None, alias="all")
    any_: "Annotated[list[Condition], Field(min_length=1)] | None" = Field(default=None, alias="any")
    not_: "Condition | None" = Field(default=None, alias="not")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"group": [value]}
        if isinstance(value, list):
            raise ValueError("a condition is a section or the name of a group, got a list; put it under all: or any:")
        if value is None or value == {}:
            raise ValueError("the condition is empty")
        if not isinstance(value, Mapping | Condition):
            raise ValueError(f"a condition is a section or the name of a group, got {shown(value)}")
        return value

    @field_validator("species")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else [_species(one) for one in value]

    @field_validator("molecule")
    @classmethod
    def _formulas(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else [hill(one) for one in value]

    def children(self) -> Iterator["Condition"]:
        """Yield the conditions directly inside."""
        yield from (c for c in (self.molecule_of, self.not_) if c is not None)
        yield from (*(self.all_ or ()), *(self.any_ or ()))
        if self.within is not None:
            yield self.within.of
            if self.within.by is not None:
                yield self.within.by

    def walk(self) -> Iterator["Condition"]:
        """Yield this condition and all inside."""
        yield self
        for child in self.children():
            yield from child.walk()


class Within(BaseModel):
    """Atoms, or whole molecules, by their distance to the nearest of some atoms of other molecules."""

    model_config = _STRICT

    of: Condition
    by: Condition | None = None
    from_: Real = Field(default=0.0, alias="from", ge=0)
    distance: Annotated[float | None, BeforeValidator(_not_a_truth)] = Field(default=None, gt=0)
    minimum: Annotated[Literal[1, 2, 3] | None, BeforeValidator(_not_a_truth)] = None
    whole_molecules: bool = Field(default=True, strict=True)

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.distance is None) == (self.minimum is None):
            raise ValueError("give either distance (A) or minimum (1, 2 or 3, of the RDF)")
        if self.distance is not None and self.distance <= self.from_:
            raise ValueError(f"distance must be larger than from, got {self.distance:g} and {self.from_:g}")
        return self


class Neighbours(BaseModel):
    """Units of which two atoms are at most a distance apart."""

    model_config = _STRICT

    distance: Real = Field(gt=0)
    by: Condition | None = None


class HydrogenBonds(BaseModel):
    """Donor D and acceptor A at most a distance apart, with an angle H-D-A of at most a limit."""

    model_config = _STRICT

    distance: Real = Field(default=3.5, gt=0)
    angle: Real = Field(default=30.0, gt=0, le=180)
    donors: Symbols = ["N", "O", "F"]
    acceptors: Symbols = ["N", "O", "F"]

    @field_validator("donors", "acceptors")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        return [_species(one) for one in value]


class Relation(BaseModel):
    """How two atoms or molecules are related."""

    model_config = _STRICT

    kind: RelationKind
    name: str
    neighbours: Neighbours | None = None
    hydrogen_bonds: HydrogenBonds | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        name = None
        if isinstance(value, Mapping):
            entries = dict(value)
            name = entries.pop("name", None)
            if "kind" in entries:  # {kind: neighbours, neighbours: {...}}, as a record has it
                key = _kind(entries.pop("kind"))
                own = {"neighbours": "neighbours", "hydrogen bonded": "hydrogen_bonds"}.get(key)
                entries = {key: entries.pop(own, None) if own else None} | {
                    k: v for k, v in entries.items() if v is not None
                }
            if len(entries) != 1:
                raise ValueError(f"a relation has one of the keys {', '.join(_KINDS)}, and name, got {shown(value)}")
            ((key, parameters),) = entries.items()
        else:
            key, parameters = value, None
        kind = _kind(key)
        if isinstance(parameters, bool):
            raise ValueError(f"{kind} is no switch, got {shown(parameters)}; list the relation or leave it out")
        found: dict[str, Any] = {"kind": kind, "name": kind if name is None else name}
        if kind == "neighbours":
            if isinstance(parameters, int | float):
                parameters = {"distance": parameters}
            if parameters is None:
                raise ValueError("neighbours needs a distance: {neighbours: {distance: 4.0}}")
            return found | {"neighbours": parameters}
        if kind == "hydrogen bonded":
            return found | {"hydrogen_bonds": {} if parameters is None else parameters}
        if parameters is not None:
            raise ValueError(f"{kind} has no parameters, got {shown(parameters)}")
        return found


def _kind(key: Any) -> RelationKind:
    kind = str(key).replace("_", " ").replace("neighbors", "neighbours")
    for known in _KINDS:
        if kind == known:
            return known
    raise ValueError(f"{shown(key)} is no relation; relations are {', '.join(_KINDS)}; other is automatic")


class Connectivity(BaseModel):
    """How molecules are found."""

    model_config = _STRICT

    scale: Real = Field(default=BOND_SCALE, gt=0.5, lt=3)
    ions: list[str] = list(IONS)
    frames: Literal["first", "every"] = "first"

    @field_validator("ions")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        return [_species(one) for one in value]


class RdfSettings(BaseModel):
    """How the RDFs are made whose minima bound shells."""

    model_config = _STRICT

    cutoff: Real = Field(default=8.0, gt=1)
    frames: Count = Field(default=500, ge=1)


class GroupScheme(BaseModel):
    """Groups and relations of a cross-correlation analysis, all of them functions of time.

    Attributes:
        groups: conditions by name; an atom is in the first group whose condition it fulfils. A condition that names a
            group means that group's condition, whatever the order. What is left is ``rest``.
        relations: a pair is in the first that it fulfils. What is left is ``other``.
        units: what relations are between, atoms or molecules.
        every: groups and relations are taken at every n-th frame and held in between.
        connectivity: how molecules are found.
        rdf: how RDFs are made.
    """

    model_config = _STRICT

    groups: dict[str, Condition] = Field(min_length=1)
    relations: list[Relation] = []
    units: Literal["atoms", "molecules"] = "atoms"
    every: Count = Field(default=1, ge=1)
    connectivity: Connectivity = Connectivity()
    rdf: RdfSettings = RdfSettings()

    @field_validator("relations", mode="before")
    @classmethod
    def _drop_other(cls, value: Any) -> Any:
        value = _as_list(value)
        return value[:-1] if value and value[-1] == OTHER else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in self.groups:
            if name == REST:
                raise ValueError(f"the group {REST} is made automatically of what is left; choose another name")
            _check_name(name, "group")
        names = [relation.name for relation in self.relations]
        for name in names:
            _check_name(name, "relation")
            if names.count(name) > 1:
                raise ValueError(f"two relations are named {name!r}; give one of them another `name`")
            if name == OTHER:
                raise ValueError(f"the relation {OTHER} is made automatically of what is left; choose another name")
        kinds = [relation.kind for relation in self.relations]
        for kind in ("self", "same molecule", "other molecule"):
            if kinds.count(kind) > 1:
                both = " and ".join(repr(r.name) for r in self.relations if r.kind == kind)
                raise ValueError(f"{both} are both {kind}, so that the second would be empty; leave it out")
        for name, condition in self.groups.items():
            for named in _references(condition):
                self._require(named, f"group {name}")
        for relation in self.relations:
            by = relation.neighbours.by if relation.neighbours is not None else None
            for named in _references(by) if by is not None else ():
                self._require(named, f"relation {relation.name}")
        for name in self.groups:
            self._follow(name, ())
        return self

    def _require(self, named: str, where: str) -> None:
        if named == REST:
            raise ValueError(f"{where} refers to {REST}, which is what all groups leave; use not: instead")
        if named not in self.groups:
            raise ValueError(
                f"{where} refers to the group {named!r}, which is not defined; there are {_list(self.groups)}"
            )

    def _follow(self, name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " -> ".join((*path[path.index(name) :], name))
            raise ValueError(f"groups refer to each other in a circle: {circle}")
        for named in _references(self.groups[name]):
            self._follow(named, (*path, name))

    def resolve(self, readers: "Sequence[TrajectoryReader]") -> "ResolvedGroups":
        """Hold the scheme against trajectories, see :func:`mimyria_wf.groups.resolve`."""
        from mimyria_wf.groups import resolve

        return resolve(self, readers)

    def conditions(self) -> Iterator[Condition]:
        """Yield every condition, also those inside others."""
        for condition in self.groups.values():
            yield from condition.walk()
        for relation in self.relations:
            if relation.neighbours is not None and relation.neighbours.by is not None:
                yield from relation.neighbours.by.walk()

    def to_dict(self) -> dict[str, Any]:
        """Return the scheme as a file would have it."""
        found = self.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)
        if self.relations:
            found["relations"] = [_relation_entry(relation) for relation in self.relations]
        return found


def _relation_entry(relation: Relation) -> Any:
    parameters = relation.neighbours or relation.hydrogen_bonds
    if parameters is None and relation.name == relation.kind:
        return relation.kind
    values = None if parameters is None else parameters.model_dump(by_alias=True, exclude_none=True)
    return {relation.kind: values} | ({} if relation.name == relation.kind else {"name": relation.name})


def _references(condition: Condition) -> list[str]:
    return [name for one in condition.walk() for name in one.group or ()]


def _list(names: Any) -> str:
    return ", ".join(names)


def parse_group_scheme(values: Any, source: str = "groups", lines: Mapping[Any, int] | None = None) -> GroupScheme:
    """Return the scheme of a dict.

    Raises:
        GroupError: one line that says what is wrong, and where.
    """
    if isinstance(values, GroupScheme):
        return values
    if not isinstance(values, Mapping):
        raise GroupError(f"{source}: expected a section with the key groups, got {shown(values)}")
    try:
        return GroupScheme.model_validate(values)
    except ValidationError as error:
        raise GroupError(_message(error, source, lines)) from None


def _message(error: ValidationError, source: str, lines: Mapping[Any, int] | None) -> str:
    # an unknown key is often why another one is missing
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    path = tuple(step for step in first["loc"] if step not in ("hydrogen_bonds",))
    kind, given = first["type"], first.get("input")
    if kind == "extra_forbidden":
        what = f"is an unknown key; {_allowed(path)}"
    elif kind == "missing":
        what = "is missing"
    elif kind == "value_error":
        what = f"is wrong: {first['ctx']['error']}"
    else:
        what = f"is wrong: {first['msg'][0].lower()}{first['msg'][1:]}, got {shown(given)}"
    line = ""
    if lines:
        known = path
        while known not in lines and known:
            known = known[:-1]
        line = f" (line {lines[known]})" if known in lines and known else ""
    here = dotted(path)
    return f"{source}{line}: {here + ' ' if here else ''}{what}" if here else f"{source}{line}: {_plain(what)}"


def _plain(what: str) -> str:
    return what.removeprefix("is wrong: ")


def _allowed(path: tuple[Any, ...]) -> str:
    if len(path) == 1:
        model: type[BaseModel] = GroupScheme
    elif path[0] in ("connectivity", "rdf"):
        model = Connectivity if path[0] == "connectivity" else RdfSettings
    elif path[0] == "relations":
        model = Neighbours if "neighbours" in path else HydrogenBonds
        if "by" in path:
            model = Condition
    else:
        model = Within if path[-2] == "within" else Condition
    return f"known are {_list(f.alias or name for name, f in model.model_fields.items())}"


def read_group_scheme(path: str | Path) -> GroupScheme:
    """Read a YAML file of groups and relations.

    Raises:
        GroupError: one line with the file, the line and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise GroupError(f"{path}: no such file of groups")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GroupError(f"{path}: byte {error.start} is not UTF-8; save the file as plain UTF-8 text") from None
    if not text.strip():
        raise GroupError(f"{path}: the file is empty; it needs the key groups")
    try:
        values, lines = read_yaml(text, str(path))
    except CampaignFileError as error:
        raise GroupError(str(error).replace("start with e.g. name: my_campaign", "start with groups:")) from None
    return parse_group_scheme(values, str(path), lines)
