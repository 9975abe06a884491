"""What can go wrong, sorted by what is to be done about it.

The kind of an error decides what the queue does with its job; its sentence is what an administrator
reads. A sentence names the object, the stage, the reason and the next step.
"""

from __future__ import annotations

import os
from collections.abc import Sized
from typing import ClassVar, Literal, get_args

ErrorKind = Literal[
    "input",  # the data can't be analysed: failed
    "config",  # held until the configuration changes
    "transient",  # back-off with jitter
    "resource",  # down the memory ladder; a full disk is transient
    "crash",  # a runner died, or an analysis's lease ran out: twice, then failed
    "identity",  # failed or held, for a person
    "refused",  # the peer, or the gate of results, said no for good: for a person
    "deadline",  # an analysis took longer than it may: for a person; else as transient
]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)


class DicomaiError(Exception):
    """The root of every error that is expected; anything else is a defect of ours.

    Parameters
    ----------
    sentence
        What a person reads: object, stage, reason, next step.
    subject
        The UID, file, node or setting that the sentence is about, for machines.
    """

    kind: ClassVar[ErrorKind] = "input"
    exit_code: ClassVar[int] = 1

    def __init__(self, sentence: str, *, subject: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.subject = subject

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel from the runner's process to its supervisor.
        return (_again, (type(self), self.sentence, self.subject))


def _again(cls: type[DicomaiError], sentence: str, subject: str) -> DicomaiError:
    return cls(sentence, subject=subject)


class InputError(DicomaiError):
    """The data can't be analysed, and will not be by trying again."""


class ConfigError(DicomaiError):
    """The configuration, a manifest or a pin is wrong."""

    kind = "config"
    exit_code = 3


class NotFound(DicomaiError):
    """What was named on the command line does not exist."""

    exit_code = 4


class TransientError(DicomaiError):
    """It may well work later."""

    kind = "transient"


class SystemTrouble(TransientError):
    """A disk, a share or another part of this machine failed, and nothing of it is in the data."""

    @classmethod
    def of(cls, trouble: OSError) -> SystemTrouble:
        """Return what an administrator reads of an error of the system."""
        return cls(
            f"{said_by_system(trouble)} Look at the disks and the memory of this machine. It is "
            "tried again by itself.",
            subject=_file_of(trouble),
        )


def counted(objects: Sized) -> str:
    """Return how many objects there are, for a sentence."""
    return "1 object" if len(objects) == 1 else f"{len(objects)} objects"


def said_by_system(trouble: OSError) -> str:
    """Return what the system says of an error, and of which file, as a sentence."""
    file = _file_of(trouble)
    reason = trouble.strerror or str(trouble) or type(trouble).__name__
    return f"{file}{': ' if file else ''}{reason[:1].lower()}{reason[1:]}."


def _file_of(trouble: OSError) -> str:
    # Else it is named by the number of a descriptor, or not at all.
    named = isinstance(trouble.filename, str | bytes)
    return os.fsdecode(trouble.filename) if named else ""


class DatabaseError(TransientError):
    """The database is away, or was locked for too long."""

    exit_code = 5


class DiskFull(TransientError):
    """Less room is left than the reserve."""


class ResourceError(DicomaiError):
    """Memory of the device or the host ran out."""

    kind = "resource"


class CrashError(DicomaiError):
    """A runner died; says signal, stage and object."""

    kind = "crash"


class IdentityError(DicomaiError):
    """A result would not belong to its patient."""

    kind = "identity"


class RefusedError(DicomaiError):
    """The peer refused for good."""

    kind = "refused"


class DeadlineError(DicomaiError):
    """The job took longer than it may."""

    kind = "deadline"
