"""`dicomai models`: which packages there are, what they are for, and which may run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from dicomai.cli import audit
from dicomai.cli.options import ConfigOption, JsonOption
from dicomai.cli.terminal import print_json, say, sheet, table, text
from dicomai.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from dicomai.models.package import Package
    from dicomai.models.registry import Registry
    from dicomai.settings import Settings

app = typer.Typer(help="The model packages.", invoke_without_command=True)

_AFTER_A_CHANGE: Final = "Start the service again if it ran while files of the package changed."
ModelName: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="Of the package.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A package as the list shows it; one with an error is only its name and sentence."""

    name: str
    package: Package | None
    error: str
    trusted: bool
    routes: tuple[str, ...]


@app.callback()
def listing(context: typer.Context, config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the model packages: version, what they take, whether they may run, who uses them."""
    if context.invoked_subcommand is not None:
        return
    settings, registry = opened(config)
    names = sorted((*registry.names, *registry.lacking))
    rows = [_listed(name, registry, settings) for name in names]
    if json:
        print_json([_facts(row) for row in rows])
        return
    table(
        ["model", "version", "takes", "may run", "routes"],
        [
            (row.name, "", "", text(row.error, "bad"), ", ".join(row.routes))
            if row.package is None
            else (
                row.name,
                row.package.manifest.version,
                ", ".join(row.package.manifest.limits.modality),
                text("yes", "good") if row.trusted else text("not trusted", "warn"),
                ", ".join(row.routes),
            )
            for row in rows
        ],
        empty="There is no model package.",
    )


@app.command("show")
def show(name: ModelName, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show one package: intended use, licence, digest, limits, and what it gives."""
    settings, registry = opened(config)
    package = found(registry, name)
    listed = _listed(name, registry, settings)
    if json:
        print_json(_facts(listed) | {"manifest": package.manifest.model_dump(mode="json")})
        return
    manifest = package.manifest
    limits = manifest.limits.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    sheet(
        [
            ("model", f"{package.name} {manifest.version} of {manifest.manufacturer}"),
            ("licence", manifest.licence),
            ("intended use", manifest.intended_use),
            ("not for", manifest.not_for),
            ("looks for", manifest.sought),
            ("gives", "\n".join(f"{each.kind}: {each.label}" for each in manifest.output)),
            ("limits", "\n".join(f"{key}: {_plain(value)}" for key, value in limits.items())),
            ("may run", "yes" if listed.trusted else f"no; dicomai models trust {name}"),
            ("routes", ", ".join(listed.routes) or "none"),
            ("digest", package.sha256),
            ("folder", package.folder),
            ("card", package.card),
        ],
    )


@app.command("trust")
def trust(name: ModelName, config: ConfigOption = None) -> None:
    """Let the package run in the service, as it lies there now: pins its digest.

    Its network is loaded first; a package that can't run is refused.
    """
    from dicomai import settings as configuration
    from dicomai.models import trust as pins
    from dicomai.models.registry import open_registry
    from dicomai.models.runtimes.torch_runtime import load

    settings = configuration.load(config)
    registry = open_registry(settings.folders.models)
    package = found(registry, name)
    load(package, "cpu")
    if registry.trusted(package):
        say(f"{name} {package.manifest.version} is trusted already. {_AFTER_A_CHANGE}")
        return
    pins.trust(settings.folders.models, package)
    audit.record(settings.service.data, "models trust", f"{name} {package.sha256}")
    say(f"{name} {package.manifest.version} may run now. Digest: {package.sha256}")
    say(_AFTER_A_CHANGE)


def opened(config: Path | None) -> tuple[Settings | None, Registry]:
    """Return the configuration, if there is one, and its packages; else the project's."""
    from dicomai import settings as configuration
    from dicomai.models.registry import open_registry

    if config is None:
        try:
            configuration.find(None, os.environ)
        except ConfigError:
            return None, open_registry()
    settings = configuration.load(config)
    return settings, open_registry(settings.folders.models)


def found(registry: Registry, name: str) -> Package:
    if name not in (*registry.names, *registry.lacking):
        known = ", ".join(registry.names) or "none"
        raise NotFound(f"There is no model package {name!a}. There are: {known}.", subject=name)
    return registry.get(name)


def _listed(name: str, registry: Registry, settings: Settings | None) -> Listed:
    routes = () if settings is None else settings.routes
    used = tuple(route.name for route in routes if route.model == name)
    try:
        package = registry.get(name)
    except ConfigError as error:
        return Listed(name=name, package=None, error=error.sentence, trusted=False, routes=used)
    trusted = registry.trusted(package)
    return Listed(name=name, package=package, error="", trusted=trusted, routes=used)


def _facts(listed: Listed) -> dict[str, object]:
    known = {"name": listed.name, "trusted": listed.trusted, "routes": list(listed.routes)}
    if listed.package is None:
        return known | {"error": listed.error}
    manifest = listed.package.manifest
    return known | {
        "version": manifest.version,
        "modality": list(manifest.limits.modality),
        "sha256": listed.package.sha256,
        "folder": str(listed.package.folder),
        "intended_use": manifest.intended_use,
        "not_for": manifest.not_for,
        "licence": manifest.licence,
    }


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(each) for each in value)
    return str(value)
