"""What can be wrong with a configuration: file, key, reason and remedy, in one line each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, TypeAlias

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dicomai.errors import ConfigError
from dicomai.net.node import ANY_NODE
from dicomai.routing.condition import CALLING_NODE, Condition
from dicomai.routing.route import SEG_FORMS
from dicomai.settings.tables import SECTIONS, TABLES, Document

ENVIRONMENT: Final = "environment"

_NUMBERED: Final = re.compile(r"(nodes|routes|pulls)\[(\d+)\](.*)")

# By pydantic's types of errors; the values in braces are its context.
_WORDS: Final[Mapping[str, str]] = {
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be {le:g} or less",
    "literal_error": "must be {expected}",
    "finite_number": "must be a finite number",
    "tuple_type": 'is no list; write it in brackets, as ["A"] or ["A", "B"]',
} | {
    f"{kind}_{trouble}": f"is no {word}"
    for kind, word in (
        ("int", "whole number"),
        ("float", "number"),
        ("string", "text"),
        ("bool", "true or false"),
        ("path", "path"),
        ("date", "date, as 2026-01-31"),
    )
    for trouble in ("type", "parsing", "from_float", "parsing_size", "from_datetime_parsing")
}

Toml: TypeAlias = dict[str, object]
Location: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with the configuration.

    Attributes
    ----------
    key
        As scripts read it: `nodes[0].port`.
    place
        As people do, where it differs: `node "PACS1", port`.
    """

    file: str
    key: str
    reason: str
    remedy: str
    place: str = ""

    @property
    def where(self) -> str:
        """The file, and the place in it."""
        return ", ".join(each for each in (self.file, self.place or self.key) if each)

    @property
    def sentence(self) -> str:
        """File, place, reason and remedy in one line."""
        end = "" if self.reason.endswith((".", "?")) else "."
        return f"{self.where}: {self.reason}{end} {self.remedy}".strip()


class SettingsError(ConfigError):
    """The configuration can't be used; `problems` holds each reason."""

    def __init__(self, problems: Collection[Problem]) -> None:
        super().__init__("\n".join(each.sentence for each in problems))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[object, ...]:
        return (SettingsError, (self.problems,))


def tables_of(raw: Toml, name: str) -> Iterator[tuple[int, Toml]]:
    """Yield the well-formed ones of [[name]]; what is wrong with the rest pydantic says."""
    tables = raw.get(name, [])
    for number, table in enumerate(tables if isinstance(tables, list) else []):
        if isinstance(table, dict):
            yield number, table


def name_of(raw: Toml, table: str, number: int) -> str:
    """Return what people call one of [[nodes]], by its place where it has no name of its own."""
    names = {at: each.get("name") for at, each in tables_of(raw, table)}
    name = names.get(number)
    if not isinstance(name, str) or list(names.values()).count(name) > 1:
        return f"{table}[{number}]"
    return f'{table.removesuffix("s")} "{name}"'


def placed(problems: Collection[Problem], raw: Toml) -> list[Problem]:
    """Return problems with the names of the nodes, routes and pulls that their keys number."""
    found = []
    for each in problems:
        if numbered := _NUMBERED.fullmatch(each.key):
            table, number, rest = numbered.groups()
            name = name_of(raw, table, int(number))
            rest = rest.removeprefix(".")
            if name != f"{table}[{number}]":
                each = replace(each, place=f"{name}, {rest}" if rest else name)
        found.append(each)
    return found


def cross_checked(file: Path, raw: Toml) -> list[Problem]:
    """Check names against each other."""
    problems: list[Problem] = []

    def add(key: str, reason: str, remedy: str) -> None:
        problems.append(Problem(file=str(file), key=key, reason=reason, remedy=remedy))

    for table_name, unique in (
        ("nodes", "name"),
        ("nodes", "ae_title"),
        ("routes", "name"),
        ("pulls", "name"),
    ):
        seen: dict[object, int] = {}
        for number, table in tables_of(raw, table_name):
            value = table.get(unique)
            if value == ANY_NODE:
                continue
            if isinstance(value, str) and seen.setdefault(value, number) != number:
                reason = f'"{value}" is {name_of(raw, table_name, seen[value])} too'
                add(f"{table_name}[{number}].{unique}", reason, "Give each one of its own.")
    nodes = {str(table.get("name")): table for _, table in tables_of(raw, "nodes")}
    for number, table in tables_of(raw, "pulls"):
        name = str(table.get("node"))
        if name not in nodes:
            add(f"pulls[{number}].node", f'no node "{name}"{hint(name, nodes)}', "Add it.")
        elif not nodes[name].get("host"):
            add(f"pulls[{number}].node", f'node "{name}" has no host', "Give it host and port.")
    for number, table in tables_of(raw, "routes"):
        destinations = table.get("destinations", [])
        for position, name in enumerate(destinations if isinstance(destinations, list) else []):
            key = f"routes[{number}].destinations[{position}]"
            if str(name) not in nodes:
                add(key, f'no node "{name}"{hint(str(name), nodes)}', "Add it under [[nodes]].")
            elif not nodes[str(name)].get("host"):
                add(key, f'node "{name}" has no host', "Give it host and port.")
        if asked := str(table.get("inputs_from", "")):
            key = f"routes[{number}].inputs_from"
            if asked not in nodes:
                add(key, f'no node "{asked}"{hint(asked, nodes)}', "Add it under [[nodes]].")
            elif not nodes[asked].get("host"):
                add(key, f'node "{asked}" has no host', "Give it host and port.")
        conditions = table.get("when", [])
        for condition in conditions if isinstance(conditions, list) else []:
            if isinstance(condition, Condition) and condition.subject == CALLING_NODE:
                for name in set(condition.values) - set(nodes):
                    reason = f'calling_node: no node "{name}"{hint(name, nodes)}'
                    add(f"routes[{number}].when", reason, "Add it under [[nodes]].")
    for number, table in tables_of(raw, "routes"):
        forms = _forms(table)
        others = [
            each
            for at, other in tables_of(raw, "routes")
            if at < number and other.get("model") == table.get("model")
            for each in _forms(other)
        ]
        clash = next((each for each in forms if set(forms + others) - {each}), None)
        if clash is not None:
            against = next(each for each in (*others, *forms) if each != clash)
            reason = f'"{clash}" and "{against}" of one model: an analysis gives one of them'
            add(f"routes[{number}].objects", reason, "Ask for the same one in all its routes.")
    return problems


def _forms(table: Mapping[str, object]) -> list[str]:
    """Return the forms of Segmentation that a route asks for of which there is one."""
    asked = table.get("objects", ["SEG"])
    return [str(each) for each in asked if each in SEG_FORMS] if isinstance(asked, list) else []


def tls_cross_checked(file: Path, document: Document) -> list[Problem]:
    """Check what needs a certificate of ours, or authorities, against [tls]."""
    problems: list[Problem] = []
    tls = document.tls

    def add(key: str, reason: str, remedy: str) -> None:
        problems.append(Problem(file=str(file), key=key, reason=reason, remedy=remedy))

    if tls.certificate is None:
        for key, is_set in (("key", tls.key is not None), ("only", tls.only)):
            if is_set:
                add(f"tls.{key}", "there is no tls.certificate", "Give both, or neither.")
    elif tls.port == document.receiver.port and not tls.only:
        add("tls.port", "receiver.port is the same", "Give each one of its own.")
    query = document.query
    if query.tls and tls.certificate is None:
        add("query.tls", "there is no tls.certificate", "Name ours there.")
    if query.port is not None and tls.only and not query.tls:
        add("query.tls", "tls.only allows no port without TLS", "Set it to true.")
    if query.port in {document.receiver.port, *({tls.port} if tls.certificate else ())}:
        add("query.port", "the receiver listens there", "Give each one of its own.")
    if tls.authorities is None:
        for number, node in enumerate(document.nodes):
            if node.certificate_required or node.certificate:
                reason = "nobody vouches for its certificate"
                add(f"nodes[{number}]", reason, "Name its authority's in tls.authorities.")
    return problems


def translated(
    file: Path, error: ValidationError, origins: Mapping[Location, str]
) -> list[Problem]:
    problems = []
    for each in error.errors(include_url=False):
        location = each["loc"]
        reason, remedy = each["msg"].removeprefix("Value error, "), "Correct it."
        if each["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            reason = f"unknown key{hint(str(location[-1]), _known_keys(location))}"
            remedy = "Correct or remove it."
        elif each["type"] in ("missing", "missing_argument"):
            reason, remedy = "is missing", "Add it."
        elif each["type"] != "value_error" and not isinstance(each["input"], dict | list):
            reason = _in_our_words(location, each)
        variable = origins.get(location)
        problems.append(
            Problem(
                file=ENVIRONMENT if variable else str(file),
                key=variable or _dotted(location),
                reason=reason,
                remedy=remedy,
            )
        )
    return problems


def _in_our_words(location: Location, error: ErrorDetails) -> str:
    if location[-1] == "port":
        return f"{error['input']!r} is no port: a port is a whole number from 1 to 65535"
    if words := _WORDS.get(error["type"]):
        return f"{error['input']!r} {words.format(**error.get('ctx', {}))}"
    return f"{error['input']!r}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _known_keys(location: Location) -> list[str]:
    if len(location) == 1:
        return list(Document.model_fields)
    section = str(location[0])
    if section in TABLES:
        return [field.name for field in fields(TABLES[section])]
    return list(SECTIONS[section].model_fields)


def _dotted(location: Location) -> str:
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in location
    ).removeprefix(".")


def hint(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f'; "{near[0]}"?' if near else ""
