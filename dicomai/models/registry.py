"""The packages there are: those of the project, and those in the data folder."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dicomai.errors import ConfigError
from dicomai.models import trust
from dicomai.models.manifest import MANIFEST_NAME
from dicomai.models.package import Package, load
from dicomai.models.trust import Pins

BUILTIN: Final = Path(__file__).parent / "builtin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Where packages lie, and which of them may run.

    Attributes
    ----------
    folders
        Each holds packages, in folders that bear their names. The first folder that has a name
        gives it, so an administrator's package of the same name stands before the project's.
    pins
        See `trust`.
    """

    folders: tuple[Path, ...]
    pins: Pins

    @property
    def names(self) -> tuple[str, ...]:
        """Of all packages, sorted."""
        return tuple(
            sorted(
                {
                    path.parent.name
                    for folder in self.folders
                    for path in folder.glob(f"*/{MANIFEST_NAME}")
                }
            )
        )

    @property
    def lacking(self) -> tuple[str, ...]:
        """The folders among the packages that hold no manifest, as an archive's own, sorted."""
        folders = (each for folder in self.folders for each in folder.glob("[!._]*"))
        return tuple(sorted({each.name for each in folders if each.is_dir()} - set(self.names)))

    def get(self, name: str) -> Package:
        """Return a package by its name, trusted or not.

        Raises
        ------
        ConfigError
            There is none of that name (the nearest name is proposed), or it has an error.
        """
        for folder in self.folders:
            if name in self.names and (folder / name / MANIFEST_NAME).exists():
                package = load(folder / name)
                if package.name != name:
                    raise ConfigError(
                        f"{package.folder / MANIFEST_NAME}, name: says {package.name!r}, but its "
                        f"folder is called {name!r}. Give both the same name.",
                        subject=name,
                    )
                return package
        for folder in self.folders:
            if name in self.lacking and (folder / name).is_dir():
                return load(folder / name)  # which says what is missing
        near = difflib.get_close_matches(name, self.names, n=1, cutoff=0.4)
        proposal = f'; "{near[0]}"?' if near else "."
        raise ConfigError(f'no package "{name}"{proposal} See: dicomai models', subject=name)

    def trusted(self, package: Package) -> bool:
        """Tell whether its digest is pinned."""
        return trust.trusts(self.pins, package)

    def get_trusted(self, name: str) -> Package:
        """Return a package that may run in the service.

        Raises
        ------
        ConfigError
            As `get`; or its digest is not pinned.
        """
        package = self.get(name)
        if not self.trusted(package):
            raise ConfigError(
                f"Model package {name} in {package.folder} has the digest "
                f"{package.sha256[:12]}…, which nobody trusted. If it is the right one: "
                f"dicomai models trust {name}",
                subject=name,
            )
        return package


def open_registry(models: Path | None = None) -> Registry:
    """Return the project's packages and those in a folder of models, with the pins of both.

    Parameters
    ----------
    models
        The models folder of the data; None for the project's packages alone.
    """
    builtin_pins = trust.read_pins(BUILTIN / trust.PINS_NAME)
    if models is None:
        return Registry(folders=(BUILTIN,), pins=builtin_pins)
    return Registry(
        folders=(models, BUILTIN),
        pins=trust.merged(builtin_pins, trust.read_pins(models / trust.TRUSTED_NAME)),
    )
