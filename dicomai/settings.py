"""The configuration: one TOML file, environment variables over it, checked before anything starts.

`load` gives `Settings` or raises one `SettingsError` that holds every problem found. The tables are
described here and in the dataclasses of the layers below; `reference` lists all of them, and the
reference page is printed from it.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias, get_origin
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from pydicom.charset import python_encoding

from dicomai.errors import ConfigError, NotFound
from dicomai.net.node import Node
from dicomai.routing.condition import CALLING_NODE, Condition, parse
from dicomai.routing.route import Route

PREFIX: Final = "DICOMAI_"
FILE_VARIABLE: Final = "DICOMAI_CONFIG"
PLACES: Final = (Path("dicomai.toml"), Path("/etc/dicomai/dicomai.toml"))
ENVIRONMENT: Final = "environment"

_Toml: TypeAlias = dict[str, object]
_Location: TypeAlias = tuple[str | int, ...]


def _ae_title(value: str) -> str:
    # PS3.5 6.2, VR AE; PS3.8 7.1.1.4.
    if not 1 <= len(value.strip()) <= 16 or not value.isascii() or not value.isprintable():
        raise ValueError(f"{value!a} is no AE title: 1 to 16 printable ASCII characters")
    if "\\" in value:
        raise ValueError(f"{value!a} is no AE title: it has a backslash")
    return value.strip()


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"no time zone {value!a}; write it as Europe/Berlin") from error
    return value


def _url(value: str) -> str:
    if value and not value.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
        raise ValueError(
            "no database of ours: leave it empty, or write postgresql://user@host/name"
        )
    return value


def _node(node: Node) -> Node:
    _ae_title(node.ae_title)
    for address in node.addresses:
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError as error:
            raise ValueError(f"address {address!a} is no IP address or network") from error
    if bool(node.host) != bool(node.port) or not 0 <= node.port <= 65535:
        raise ValueError("host and port go together, and a port is 1 to 65535")
    if node.quiet_s <= 0 or node.floor_s < 0:
        raise ValueError("quiet_s must be more than 0 and floor_s not less")
    if node.charset_default and node.charset_default not in python_encoding:
        raise ValueError(
            f"{node.charset_default!a} is no Specific Character Set (PS3.3 C.12.1.1.2)"
        )
    return node


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class ServiceSettings(_Section):
    """What the whole service shares."""

    data: Annotated[
        Path,
        Field(
            description="Folder of spool, archive, quarantine, models and the embedded database; "
            "relative to this file."
        ),
    ] = Path()
    timezone: Annotated[
        str,
        AfterValidator(_zone),
        Field(description="Time zone of the modalities, where objects do not say."),
    ] = "UTC"


class DatabaseSettings(_Section):
    """Where the catalogue and the queue live."""

    url: Annotated[
        str,
        AfterValidator(_url),
        Field(
            description="postgresql://user:password@host/name; empty: SQLite in the data folder."
        ),
    ] = ""


class ReceiverSettings(_Section):
    """The DICOM node that takes studies."""

    ae_title: Annotated[str, AfterValidator(_ae_title), Field(description="What peers call.")] = (
        "DICOMAI"
    )
    host: Annotated[str, Field(description="Address to listen on; 0.0.0.0: every one.")] = "0.0.0.0"  # noqa: S104  a PACS calls from elsewhere; unknown callers are rejected
    port: Annotated[int, Field(ge=1, le=65535, description="TCP port to listen on.")] = 11112
    reserve_bytes: Annotated[
        int,
        Field(ge=0, description="Free space that reception leaves: below it objects are refused."),
    ] = 2_000_000_000
    max_associations: Annotated[
        int, Field(ge=1, description="Associations at a time; more are rejected for now.")
    ] = 50


class WorkerSettings(_Section):
    """How analyses run."""

    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|cuda(:\d+)?)$",
            description="auto (a GPU where there is one), cpu, cuda or cuda:0.",
        ),
    ] = "auto"
    lease_s: Annotated[
        float, Field(gt=0, description="A job whose worker shows no progress for so long is free.")
    ] = 60.0
    deadline_s: Annotated[
        float, Field(gt=0, description="A job that takes longer is killed and failed.")
    ] = 3600.0
    stop_s: Annotated[
        float, Field(gt=0, description="SIGTERM: jobs are given back within this time.")
    ] = 30.0
    ageing_s: Annotated[
        float,
        Field(gt=0, description="One step of priority is worth so much waiting time."),
    ] = 600.0


class DecideSettings(_Section):
    """When a study is whole, and whose it is."""

    patience_s: Annotated[
        float,
        Field(
            gt=0,
            description="After the last object, gaps, open associations and silent hosts hold a "
            "decision up no longer than this.",
        ),
    ] = 900.0
    placeholder_ids: Annotated[
        tuple[str, ...],
        Field(description="Patient IDs that stand for none, as an empty one does."),
    ] = ("0", "UNKNOWN", "ANONYMOUS", "NONE")


class RetentionSettings(_Section):
    """What is kept, for how long."""

    received_days: Annotated[
        float, Field(ge=0, description="Received studies, after their last object.")
    ] = 30.0
    produced_days: Annotated[float, Field(ge=0, description="Our own results.")] = 365.0
    jobs_days: Annotated[float, Field(ge=0, description="Finished jobs in the queue's table.")] = (
        90.0
    )
    reserve_bytes: Annotated[
        NonNegativeInt,
        Field(description="Free space below which the oldest finished studies go earlier."),
    ] = 5_000_000_000


class LogSettings(_Section):
    """What is logged, and how."""

    format: Annotated[
        Literal["auto", "json", "console"],
        Field(description="auto: colours on a terminal, else one JSON object a line."),
    ] = "auto"
    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="No patient's name or ID stands in a line of info or above."),
    ] = "info"


class _Document(_Section):
    service: ServiceSettings = ServiceSettings()
    database: DatabaseSettings = DatabaseSettings()
    receiver: ReceiverSettings = ReceiverSettings()
    worker: WorkerSettings = WorkerSettings()
    decide: DecideSettings = DecideSettings()
    retention: RetentionSettings = RetentionSettings()
    log: LogSettings = LogSettings()
    nodes: tuple[Annotated[Node, AfterValidator(_node)], ...] = ()
    routes: tuple[Route, ...] = ()


_TABLES: Final[Mapping[str, type[Node] | type[Route]]] = {"nodes": Node, "routes": Route}
_SECTIONS: Final[Mapping[str, type[_Section]]] = {
    name: field.annotation
    for name, field in _Document.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, _Section)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where the files of one data folder lie; all absolute."""

    data: Path
    spool: Path
    archive: Path
    quarantine: Path
    models: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration, checked; attributes are named as in the file."""

    file: Path
    service: ServiceSettings
    database: DatabaseSettings
    receiver: ReceiverSettings
    worker: WorkerSettings
    decide: DecideSettings
    retention: RetentionSettings
    log: LogSettings
    nodes: tuple[Node, ...]
    routes: tuple[Route, ...]

    @property
    def folders(self) -> Folders:
        """The folders of the data folder."""
        data = self.service.data
        return Folders(
            data=data,
            spool=data / "spool",
            archive=data / "archive",
            quarantine=data / "quarantine",
            models=data / "models",
        )

    def node(self, name: str) -> Node:
        """Return the node of a name; NotFound names the nearest one."""
        for each in self.nodes:
            if each.name == name:
                return each
        raise NotFound(
            f"{self.file} has no node {name!a}{_hint(name, [each.name for each in self.nodes])}",
            subject=name,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with the configuration."""

    file: str
    key: str
    reason: str
    remedy: str

    @property
    def sentence(self) -> str:
        """File, key, reason and remedy in one line."""
        where = f"{self.file}, {self.key}" if self.key else self.file
        end = "" if self.reason.endswith((".", "?")) else "."
        return f"{where}: {self.reason}{end} {self.remedy}".strip()


class SettingsError(ConfigError):
    """The configuration can't be used; `problems` holds each reason."""

    def __init__(self, problems: Collection[Problem]) -> None:
        super().__init__("\n".join(each.sentence for each in problems))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[object, ...]:
        return (SettingsError, (self.problems,))


def find(path: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the configuration's file: the given one, DICOMAI_CONFIG, ./, /etc/dicomai/."""
    if path is not None:
        return path
    if named := environ.get(FILE_VARIABLE):
        return Path(named)
    for place in PLACES:
        if place.is_file():
            return place
    tried = ", ".join(str(place) for place in PLACES)
    raise ConfigError(
        f"No configuration found: no --config, no {FILE_VARIABLE}, and none of {tried}. "
        "`dicomai init FOLDER` writes one."
    )


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the configuration, checked.

    Parameters
    ----------
    path
        The file; without it DICOMAI_CONFIG, ./dicomai.toml, /etc/dicomai/dicomai.toml.
    environ
        Variables over it, as DICOMAI_RECEIVER__PORT=104; the process's where not given.

    Raises
    ------
    SettingsError
        With every problem found; whether its models exist says `check_models`.
    """
    variables = os.environ if environ is None else environ
    file = find(path, variables)
    raw = _read(file)
    origins, problems = _overlay(raw, variables)
    problems += _parse_conditions(file, raw)
    document: _Document | None = None
    try:
        document = _Document.model_validate(raw)
    except ValidationError as error:
        problems += _translated(file, error, origins)
    problems += _cross_checked(file, raw)
    if document is None or problems:
        raise SettingsError(problems)
    return _resolved(file, document)


def check_models(settings: Settings, names: Collection[str]) -> tuple[Problem, ...]:
    """Return a problem for each route whose model is not among those that are installed."""
    return tuple(
        Problem(
            file=str(settings.file),
            key=f"routes[{number}].model",
            reason=f'no package "{route.model}"{_hint(route.model, names)}',
            remedy="See: dicomai models.",
        )
        for number, route in enumerate(settings.routes)
        if route.mode != "off" and route.model not in names
    )


def _resolved(file: Path, document: _Document) -> Settings:
    data = (file.resolve().parent / document.service.data.expanduser()).resolve()
    url = document.database.url or f"sqlite:///{data / 'dicomai.db'}"
    return Settings(
        file=file,
        service=document.service.model_copy(update={"data": data}),
        database=document.database.model_copy(update={"url": url}),
        receiver=document.receiver,
        worker=document.worker,
        decide=document.decide,
        retention=document.retention,
        log=document.log,
        nodes=document.nodes,
        routes=document.routes,
    )


def _read(file: Path) -> _Toml:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        reason, remedy = error.strerror or str(error), "`dicomai init FOLDER` writes one."
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason, remedy = f"is no TOML in UTF-8: {error}", "Correct that line."
    raise SettingsError([Problem(file=str(file), key="", reason=reason, remedy=remedy)])


def _overlay(raw: _Toml, environ: Mapping[str, str]) -> tuple[dict[_Location, str], list[Problem]]:
    """Put variables over the file's values; return which variable gave which value."""
    origins: dict[_Location, str] = {}
    problems: list[Problem] = []
    for variable, value in sorted(environ.items()):
        section, found, key = variable.removeprefix(PREFIX).lower().partition("__")
        if not variable.startswith(PREFIX) or not found:
            continue
        model = _SECTIONS.get(section)
        known = _SECTIONS if model is None else model.model_fields
        wanted = section if model is None else key
        table = raw.setdefault(section, {})
        if wanted not in known or not isinstance(table, dict) or model is None:
            reason = f"no such setting{_hint(wanted, known)}"
            remedy = f"Write it as {PREFIX}SECTION__KEY, or unset it."
            problems.append(Problem(file=ENVIRONMENT, key=variable, reason=reason, remedy=remedy))
            if model is None:
                raw.pop(section, None) if table == {} else None
            continue
        is_list = get_origin(model.model_fields[key].annotation) is tuple
        table[key] = [part.strip() for part in value.split(",")] if is_list else value
        origins[section, key] = variable
    return origins, problems


def _tables(raw: _Toml, name: str) -> Iterator[tuple[int, _Toml]]:
    """Yield the well-formed ones of [[name]]; what is wrong with the rest pydantic says."""
    tables = raw.get(name, [])
    for number, table in enumerate(tables if isinstance(tables, list) else []):
        if isinstance(table, dict):
            yield number, table


def _parse_conditions(file: Path, raw: _Toml) -> list[Problem]:
    """Replace each text of `when` by its Condition."""
    problems = []
    for number, table in _tables(raw, "routes"):
        texts = table.get("when", [])
        if not isinstance(texts, list):
            continue
        parsed: list[Condition] = []
        for position, text in enumerate(texts):
            key = f"routes[{number}].when[{position}]"
            try:
                parsed.append(parse(str(text)))
            except ConfigError as error:
                remedy = "docs/routes.md lists the forms."
                problems.append(
                    Problem(file=str(file), key=key, reason=error.sentence, remedy=remedy)
                )
        table["when"] = parsed
    return problems


def _cross_checked(file: Path, raw: _Toml) -> list[Problem]:
    """Check names against each other."""
    problems: list[Problem] = []

    def add(key: str, reason: str, remedy: str) -> None:
        problems.append(Problem(file=str(file), key=key, reason=reason, remedy=remedy))

    for table_name, unique in (("nodes", "name"), ("nodes", "ae_title"), ("routes", "name")):
        seen: dict[object, int] = {}
        for number, table in _tables(raw, table_name):
            value = table.get(unique)
            if isinstance(value, str) and seen.setdefault(value, number) != number:
                reason = f'"{value}" is {table_name}[{seen[value]}] too'
                add(f"{table_name}[{number}].{unique}", reason, "Give each one of its own.")
    nodes = {str(table.get("name")): table for _, table in _tables(raw, "nodes")}
    for number, table in _tables(raw, "routes"):
        destinations = table.get("destinations", [])
        for position, name in enumerate(destinations if isinstance(destinations, list) else []):
            key = f"routes[{number}].destinations[{position}]"
            if str(name) not in nodes:
                add(key, f'no node "{name}"{_hint(str(name), nodes)}', "Add it under [[nodes]].")
            elif not nodes[str(name)].get("host"):
                add(key, f'node "{name}" has no host', "Give it host and port.")
        conditions = table.get("when", [])
        for condition in conditions if isinstance(conditions, list) else []:
            if isinstance(condition, Condition) and condition.subject == CALLING_NODE:
                for name in set(condition.values) - set(nodes):
                    reason = f'calling_node: no node "{name}"{_hint(name, nodes)}'
                    add(f"routes[{number}].when", reason, "Add it under [[nodes]].")
    return problems


def _translated(
    file: Path, error: ValidationError, origins: Mapping[_Location, str]
) -> list[Problem]:
    problems = []
    for each in error.errors(include_url=False):
        location = each["loc"]
        reason, remedy = each["msg"].removeprefix("Value error, "), "Correct it."
        if each["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            reason = f"unknown key{_hint(str(location[-1]), _known_keys(location))}"
            remedy = "Correct or remove it."
        elif each["type"] in ("missing", "missing_argument"):
            reason, remedy = "is missing", "Add it."
        elif not isinstance(each["input"], dict | list | Node | Route):
            reason = f"{each['input']!r}: {reason[:1].lower()}{reason[1:]}"
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


def _known_keys(location: _Location) -> list[str]:
    if len(location) == 1:
        return list(_Document.model_fields)
    section = str(location[0])
    if section in _TABLES:
        return [field.name for field in fields(_TABLES[section])]
    return list(_SECTIONS[section].model_fields)


def _dotted(location: _Location) -> str:
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in location
    ).removeprefix(".")


def _hint(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f'; "{near[0]}"?' if near else ""
