"""Pins: the digests of the packages that an administrator lets run.

A pin file is TOML with a list of digests per package: `chest-ct-lungs = ["3f0c…"]`. The project's
own packages are pinned beside them in `builtin/pins.toml`, an administrator's in the data folder,
`models/trusted.toml`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

from dicomai.errors import ConfigError
from dicomai.models.package import Package
from dicomai.process import give_to_owner

TRUSTED_NAME: Final = "trusted.toml"
PINS_NAME: Final = "pins.toml"

Pins: TypeAlias = Mapping[str, frozenset[str]]
"""Name of a package to the digests of it that may run."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def read_pins(path: Path) -> Pins:
    """Return the pins in a file; a file that is not there pins nothing.

    Raises
    ------
    ConfigError
        The file is no TOML, or something in it is no list of SHA-256 digests.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}.", subject=str(path)) from None
    for name, digests in table.items():
        if not isinstance(digests, list) or not all(
            isinstance(each, str) and _DIGEST.fullmatch(each) for each in digests
        ):
            raise ConfigError(
                f"{path}, {name}: must be a list of SHA-256 digests of 64 lower-case hex digits. "
                f"Remove the line and run: dicomai models trust {name}",
                subject=str(path),
            )
    return {name: frozenset(digests) for name, digests in table.items()}


def write_pins(path: Path, pins: Pins) -> None:
    """Replace a pin file whole and durably."""
    text = "# Packages that may run, by digest. Written by: dicomai models trust NAME\n" + "".join(
        f"{name} = {sorted(digests)}\n".replace("'", '"') for name, digests in sorted(pins.items())
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    # Made anew: the folder is the service's, and root must not give away what a link there names.
    beside.unlink(missing_ok=True)
    with beside.open("x", encoding="utf-8") as file:
        give_to_owner(file.fileno(), path.parent)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def merged(*pins: Pins) -> Pins:
    """Return the pins of several files together."""
    names = {name for each in pins for name in each}
    return {name: frozenset().union(*(each.get(name, ()) for each in pins)) for name in names}


def trusts(pins: Pins, package: Package) -> bool:
    """Tell whether a package may run in the service."""
    return package.sha256 in pins.get(package.name, frozenset())


def trust(models: Path, package: Package) -> None:
    """Pin a package's present digest in the models folder of the data.

    Digests pinned earlier stay, so that going back to the older package needs no new pin.
    """
    path = models / TRUSTED_NAME
    write_pins(path, merged(read_pins(path), {package.name: frozenset({package.sha256})}))
