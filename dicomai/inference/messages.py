"""What supervisor and runner say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from dicomai import errors
from dicomai.errors import DicomaiError, ErrorKind
from dicomai.findings import Findings, SourceImage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dicomai.inference.inputs import Source

_CLASSES: Final[Mapping[ErrorKind, type[DicomaiError]]] = MappingProxyType(
    {
        each.kind: each
        for each in (
            errors.InputError,
            errors.ConfigError,
            errors.TransientError,
            errors.ResourceError,
            errors.CrashError,
            errors.IdentityError,
            errors.RefusedError,
            errors.DeadlineError,
        )
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The runner is up."""

    device: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Analyse:
    """Run a package on an input."""

    package_folder: str
    package_sha256: str
    """The digest that the supervisor trusts; another one at the folder is refused."""
    source: Source
    inputs: tuple[SourceImage, ...]
    probabilities: bool = True
    """As `pipeline.analyse` takes it."""
    number: int = 0
    """Of the request; every message about it has the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The runner has got on."""

    stage: str
    fraction: float
    """Of this stage, 0 to 1."""
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Done:
    """What was found."""

    findings: Findings
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Why nothing was found out; the runner stays up."""

    kind: ErrorKind
    sentence: str
    subject: str
    number: int = 0

    def error(self) -> DicomaiError:
        """Return it as the error that it was."""
        return _CLASSES[self.kind](self.sentence, subject=self.subject)
