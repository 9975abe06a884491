"""A model package: a folder with `model.toml`, weights and `CARD.md`, and its digest."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dicomai.errors import ConfigError
from dicomai.findings import Algorithm
from dicomai.models import model_toml
from dicomai.models.manifest import MANIFEST_NAME, Manifest
from dicomai.routing.selection import InputSpec, parse_input

CARD_NAME: Final = "CARD.md"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package as it lies on disk.

    Attributes
    ----------
    manifest
        What it says of itself.
    sha256
        Lower-case hex digest of manifest, weights and card; what an administrator pins.
    folder
        Where it lies.
    """

    manifest: Manifest
    sha256: str
    folder: Path

    @property
    def name(self) -> str:
        """How routes and the command line call it."""
        return self.manifest.name

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / self.manifest.weights

    @property
    def card(self) -> Path:
        """How it was made and what it reaches, for people."""
        return self.folder / CARD_NAME

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What it takes, as routes choose it."""
        return tuple(
            parse_input(
                each.name,
                each.kind,
                each.when,
                each.prefer,
                source=each.source,
                max_age_days=each.max_age_days,
                optional=each.optional,
                for_processing=self.manifest.limits.for_processing,
            )
            for each in self.manifest.input
        )

    @property
    def algorithm(self) -> Algorithm:
        """Who every result of it names."""
        return Algorithm(
            name=self.manifest.name,
            version=self.manifest.version,
            package_sha256=self.sha256,
            manufacturer=self.manifest.manufacturer,
            intended_use=self.manifest.intended_use,
            not_for=self.manifest.not_for,
            family=self.manifest.family.code,
        )


def load(folder: Path) -> Package:
    """Return the package in a folder, its manifest checked and its digest taken.

    Raises
    ------
    ConfigError
        A file is missing or can't be read, or the manifest has an error; names file, key and
        remedy.
    """
    manifest = model_toml.read(folder / MANIFEST_NAME)
    return Package(manifest=manifest, sha256=digest(folder, manifest), folder=folder)


def digest(folder: Path, manifest: Manifest) -> str:
    """Return the SHA-256 of a package, lower-case hex: name, length and bytes of each file.

    The order is that of the names, so the digest depends on nothing but what the files hold.
    """
    total = hashlib.sha256()
    for name in sorted((MANIFEST_NAME, CARD_NAME, manifest.weights)):
        try:
            with (folder / name).open("rb") as file:
                length = os.fstat(file.fileno()).st_size
                total.update(f"{name}\0{length}\0".encode())
                while chunk := file.read(_CHUNK):
                    total.update(chunk)
        except FileNotFoundError:
            raise ConfigError(
                f"Model package {folder}: {name} is missing. Copy the package again, whole.",
                subject=str(folder / name),
            ) from None
        except OSError as error:
            path = folder / name
            raise ConfigError(model_toml.unreadable(path, error), subject=str(path)) from None
    return total.hexdigest()


def verify(package: Package) -> None:
    """Compare a package with what lies on disk now.

    Raises
    ------
    ConfigError
        A file has changed since the package was loaded.
    """
    found = digest(package.folder, package.manifest)
    if found != package.sha256:
        raise ConfigError(
            f"Model package {package.name} in {package.folder} has changed since it was read: its "
            f"digest was {package.sha256[:12]}…, now {found[:12]}…. Restore it, or restart and "
            f"trust it again: dicomai models trust {package.name}",
            subject=package.name,
        )
