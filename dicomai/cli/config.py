"""`dicomai config check` and `dicomai init`: a configuration right before anything starts."""

from __future__ import annotations

import os
import shlex
from importlib.resources import files
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dicomai.cli.options import ConfigOption, JsonOption
from dicomai.cli.terminal import print_json, say, sheet, table
from dicomai.errors import ConfigError

if TYPE_CHECKING:
    from dicomai.settings import Problem, Settings

app = typer.Typer(help="The configuration file.", no_args_is_help=True)

EXAMPLE: Final = "dicomai.toml"
_LOCALTIME: Final = Path("/etc/localtime")


@app.command("check")
def check(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check the configuration; name each error with file, key and remedy."""
    from dicomai import settings as configuration

    problems: tuple[Problem, ...] = ()
    settings: Settings | None = None
    try:
        settings = configuration.load(config)
    except configuration.SettingsError as error:
        problems = error.problems
    if settings is not None:
        problems = configuration.check_tls(settings) + model_problems(settings)
        problems += _database_problems(settings)
    if json:
        print_json(
            [
                {"file": str(each.file), "key": each.key, "reason": each.reason}
                | {"remedy": each.remedy}
                for each in problems
            ]
        )
        if problems:
            raise typer.Exit(ConfigError.exit_code)
        return
    if problems:
        raise configuration.SettingsError(problems)
    assert settings is not None
    _show(settings)


def load_checked(config: Path | None) -> Settings:
    """Return the configuration, models and certificates checked too, for everything that starts.

    Raises
    ------
    ConfigError
        With a sentence per problem.
    """
    from dicomai import settings as configuration

    settings = configuration.load(config)
    if problems := configuration.check_tls(settings) + model_problems(settings):
        raise configuration.SettingsError(problems)
    return settings


def model_problems(settings: Settings) -> tuple[Problem, ...]:
    """Return what is wrong with the models of the routes: missing, broken or not trusted."""
    from dicomai import settings as configuration
    from dicomai.models.registry import open_registry

    registry = open_registry(settings.folders.models)
    problems = list(configuration.check_models(settings, registry.names))
    for number, route in enumerate(settings.routes):
        if route.mode == "off" or route.model not in registry.names:
            continue
        try:
            registry.get_trusted(route.model)
        except ConfigError as error:
            problems.append(
                configuration.Problem(
                    file=str(settings.file),
                    key=f"routes[{number}].model",
                    reason=error.sentence,
                    remedy="",
                    place=f'route "{route.name}", model',
                )
            )
    return tuple(problems)


def _database_problems(settings: Settings) -> tuple[Problem, ...]:
    """Return what is wrong with the URL of the database, which is not asked."""
    from dicomai.settings import Problem
    from dicomai.store.engine import shown

    try:
        shown(settings.database.url)
    except ConfigError as error:
        file, key = str(settings.file), "database.url"
        return (Problem(file=file, key=key, reason=error.sentence, remedy=""),)
    return ()


def _show(settings: Settings) -> None:
    from dicomai.store.engine import shown

    database = shown(settings.database.url)
    receiver, tls = settings.receiver, settings.tls
    ports = [] if tls.only else [f"port {receiver.port}"]
    if tls.certificate is not None:
        ports.append(f"port {tls.port} with TLS")
    say(f"{settings.file} is right.")
    sheet(
        [
            ("data folder", settings.service.data),
            ("database", database),
            ("receiver", f"{receiver.ae_title} on {receiver.host}, {', '.join(ports)}"),
            ("nodes", ", ".join(node.name for node in settings.nodes) or "none: nobody may send"),
        ],
    )
    table(
        ["route", "mode", "model", "to"],
        [
            (route.name, route.mode, route.model, ", ".join(route.destinations) or "nobody")
            for route in settings.routes
        ],
        empty="There is no route: nothing that comes is analysed.",
    )


def init(
    folder: Annotated[Path, typer.Argument(help="The data folder; made if it is not there.")],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="Where the configuration goes.",
            show_default="FOLDER/dicomai.toml",
            readable=False,
        ),
    ] = None,
) -> None:
    """Set up a new service in a folder.

    Writes a commented configuration, makes the data folders and the database. What is there
    already stays as it is; a database of an older version is brought up to date.
    """
    from dicomai import settings as configuration
    from dicomai.cli.database import bring_up
    from dicomai.store.engine import open_engine

    file = folder / EXAMPLE if config is None else config
    configuration.require_utf8(file, folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = file.exists()
    if not kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_example(folder, file), encoding="utf-8")
    settings = configuration.load(file)
    for each in (
        settings.folders.spool,
        settings.folders.archive,
        settings.folders.quarantine,
        settings.folders.models,
    ):
        # Images of patients: for the service's user and group only.
        each.mkdir(parents=True, exist_ok=True, mode=0o750)
    bring_up(open_engine(settings.database.url))
    here = "" if file.resolve() == Path.cwd() / EXAMPLE else f" --config {shlex.quote(str(file))}"
    say(
        f"{'Kept' if kept else 'Wrote'} {file}. The data folder is {settings.service.data}, "
        f"its database is up to date.\n"
        f"Next: look through the configuration, then start the service: dicomai serve{here}"
    )


def _example(folder: Path, file: Path) -> str:
    text = (files("dicomai.config") / EXAMPLE).read_text(encoding="utf-8")
    if file.parent.resolve() != folder.resolve():
        # A text of JSON is one of TOML.
        in_toml = dumps(str(folder.resolve()), ensure_ascii=False)
        text = _with(text, 'data = "."', f"data = {in_toml}")
    return _with(text, 'timezone = "UTC"', f'timezone = "{local_zone()}"')


def _with(text: str, line: str, other: str) -> str:
    assert line in text
    return text.replace(line, other, 1)


def local_zone() -> str:
    """Return this machine's time zone by its name, as Europe/Berlin, or UTC."""
    named = os.environ.get("TZ", "").removeprefix(":") or str(_LOCALTIME)
    if Path(named).is_absolute():  # TZ may name a file, as :/etc/localtime
        named = Path(named).resolve().as_posix().partition("zoneinfo/")[2]
    from zoneinfo import available_timezones

    return named if named in available_timezones() else "UTC"
