"""The configuration: one TOML file, environment variables over it, checked before anything starts.

`load` gives `Settings` or raises one `SettingsError` that holds every problem found. The tables are
described in `dicomai.settings.tables` and in the dataclasses of the layers below; `reference` lists
all of them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_origin
from urllib.parse import quote

from pydantic import ValidationError

from dicomai.errors import ConfigError, NotFound
from dicomai.net.node import Node
from dicomai.net.tls import checked
from dicomai.routing.condition import Condition, parse
from dicomai.routing.pull import Pull
from dicomai.routing.route import Route
from dicomai.settings.problems import (
    ENVIRONMENT,
    Location,
    Problem,
    SettingsError,
    Toml,
    cross_checked,
    hint,
    placed,
    tables_of,
    tls_cross_checked,
    translated,
)
from dicomai.settings.reference import Setting, reference
from dicomai.settings.tables import (
    SECTIONS,
    DatabaseSettings,
    DecideSettings,
    Document,
    LogSettings,
    QuerySettings,
    ReceiverSettings,
    RetentionSettings,
    ServiceSettings,
    TlsSettings,
    WorkerSettings,
)

__all__ = [
    "Folders",
    "Problem",
    "Setting",
    "Settings",
    "SettingsError",
    "TlsSettings",
    "check_models",
    "check_tls",
    "find",
    "load",
    "reference",
    "require_utf8",
]

PREFIX: Final = "DICOMAI_"
FILE_VARIABLE: Final = "DICOMAI_CONFIG"
PLACES: Final = (Path("dicomai.toml"), Path("/etc/dicomai/dicomai.toml"))


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
    tls: TlsSettings
    query: QuerySettings
    worker: WorkerSettings
    decide: DecideSettings
    retention: RetentionSettings
    log: LogSettings
    nodes: tuple[Node, ...]
    routes: tuple[Route, ...]
    pulls: tuple[Pull, ...] = ()

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
        """Return the node of a name; NotFound says which there are."""
        for each in self.nodes:
            if each.name == name:
                return each
        known = ", ".join(each.name for each in self.nodes) or "none"
        raise NotFound(f"{self.file} has no node {name!a}. There are: {known}.", subject=name)


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
        With every problem found; whether its models exist says `check_models`, whether the files
        of TLS are right `check_tls`.
    """
    variables = os.environ if environ is None else environ
    file = find(path, variables)
    raw = _read(file)
    origins, problems = _overlay(raw, variables)
    problems += _parse_conditions(file, raw)
    document: Document | None = None
    try:
        document = Document.model_validate(raw)
    except ValidationError as error:
        problems += translated(file, error, origins)
    problems += cross_checked(file, raw)
    if document is not None:
        problems += tls_cross_checked(file, document)
    if document is None or problems:
        raise SettingsError(placed(problems, raw))
    return _resolved(file, document)


def check_models(settings: Settings, names: Collection[str]) -> tuple[Problem, ...]:
    """Return a problem for each route whose model is not among those that are installed."""
    return tuple(
        Problem(
            file=str(settings.file),
            key=f"routes[{number}].model",
            reason=f'no package "{route.model}"{hint(route.model, names)}',
            remedy="See: dicomai models.",
            place=f'route "{route.name}", model',
        )
        for number, route in enumerate(settings.routes)
        if route.mode != "off" and route.model not in names
    )


def check_tls(settings: Settings) -> tuple[Problem, ...]:
    """Return what is wrong with the files of TLS: who starts the service must know before it."""
    try:
        checked(settings.tls.files)
    except ConfigError as error:
        return (
            Problem(file=str(settings.file), key=error.subject, reason=error.sentence, remedy=""),
        )
    return ()


def require_utf8(file: Path, data: Path) -> None:
    """Refuse a data folder whose name is not UTF-8 on the disk: SQLite has no other names.

    Raises
    ------
    SettingsError
        Its bytes are none, or the locale of this process makes others of them.
    """
    try:
        whole = data.resolve()
        if os.fsencode(whole) == str(whole).encode():
            return
    except UnicodeError:
        pass
    problem = Problem(
        file=str(file),
        key="service.data",
        reason=f"the name of the folder {str(data)!a} is no UTF-8, or the locale is none of UTF-8",
        remedy="Give it another name, or set LANG=C.UTF-8.",
    )
    raise SettingsError([problem])


def _expanded(file: Path, key: str, path: Path) -> Path:
    """Return a path that begins with a home folder where it says ~ or ~user."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        problem = Problem(
            file=str(file),
            key=key,
            reason=f"this machine knows no home folder {path.parts[0]!a}",
            remedy="Write the whole path.",
        )
        raise SettingsError([problem]) from error


def _tls_resolved(file: Path, tls: TlsSettings) -> TlsSettings:
    folder = file.resolve().parent
    named = {"certificate": tls.certificate, "key": tls.key, "authorities": tls.authorities}
    return tls.model_copy(
        update={
            name: path and folder / _expanded(file, f"tls.{name}", path)
            for name, path in named.items()
        }
    )


def _resolved(file: Path, document: Document) -> Settings:
    data = file.resolve().parent / _expanded(file, "service.data", document.service.data)
    require_utf8(file, data)
    data = data.resolve()
    # What has a meaning in a URL, as a question mark, may stand in the name of a folder.
    url = document.database.url or f"sqlite:///{quote(str(data / 'dicomai.db'))}"
    return Settings(
        file=file,
        service=document.service.model_copy(update={"data": data}),
        database=document.database.model_copy(update={"url": url}),
        receiver=document.receiver,
        tls=_tls_resolved(file, document.tls),
        query=document.query,
        worker=document.worker,
        decide=document.decide,
        retention=document.retention,
        log=document.log,
        nodes=document.nodes,
        routes=document.routes,
        pulls=document.pulls,
    )


def _read(file: Path) -> Toml:
    written = b""
    try:
        written = file.read_bytes()
        # Notepad and PowerShell begin a file with a mark that no editor shows.
        return tomllib.loads(written.decode("utf-8-sig"))
    except PermissionError:
        reason, remedy = "can't be read by this user", "Run this as the service's user."
    except OSError as error:
        reason, remedy = error.strerror or str(error), "`dicomai init FOLDER` writes one."
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        reason, remedy = f"is no text in UTF-8, at line {line}", "Have the editor save it as UTF-8."
    except tomllib.TOMLDecodeError as error:
        reason, remedy = f"is no TOML: {error}", "Correct that line."
        if set("“”„‘’") & set(written.decode("utf-8-sig")):
            remedy += " Quotes are \" or ' in TOML, and not “ ” ‘ ’."
    raise SettingsError([Problem(file=str(file), key="", reason=reason, remedy=remedy)])


def _overlay(raw: Toml, environ: Mapping[str, str]) -> tuple[dict[Location, str], list[Problem]]:
    """Put variables over the file's values; return which variable gave which value."""
    origins: dict[Location, str] = {}
    problems: list[Problem] = []
    for variable, value in sorted(environ.items()):
        section, found, key = variable.removeprefix(PREFIX).lower().partition("__")
        if not variable.startswith(PREFIX) or not found:
            continue
        model = SECTIONS.get(section)
        known = SECTIONS if model is None else model.model_fields
        wanted = section if model is None else key
        table = raw.setdefault(section, {})
        if wanted not in known or not isinstance(table, dict) or model is None:
            reason = f"no such setting{hint(wanted, known)}"
            remedy = f"Write it as {PREFIX}SECTION__KEY, or unset it."
            problems.append(Problem(file=ENVIRONMENT, key=variable, reason=reason, remedy=remedy))
            if model is None:
                raw.pop(section, None) if table == {} else None
            continue
        is_list = get_origin(model.model_fields[key].annotation) is tuple
        table[key] = [part.strip() for part in value.split(",")] if is_list else value
        origins[section, key] = variable
    return origins, problems


def _parse_conditions(file: Path, raw: Toml) -> list[Problem]:
    """Replace each text of `when` by its Condition."""
    problems = []
    for number, table in tables_of(raw, "routes"):
        texts = table.get("when", [])
        if not isinstance(texts, list):
            continue
        parsed: list[Condition] = []
        for position, text in enumerate(texts):
            key = f"routes[{number}].when[{position}]"
            try:
                parsed.append(parse(str(text)))
            except ConfigError as error:
                remedy = "See docs/how-to/write-a-route.md."
                problems.append(
                    Problem(file=str(file), key=key, reason=error.sentence, remedy=remedy)
                )
        table["when"] = parsed
    return problems
