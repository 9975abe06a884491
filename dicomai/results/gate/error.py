"""Why the gate refuses an object."""

from __future__ import annotations

from typing import ClassVar, Literal, NoReturn

from dicomai.errors import DicomaiError, ErrorKind

Rule = Literal[
    "readable",  # a Part 10 file that says the same inside and outside
    "attributes",  # what the IOD demands is there
    "identity",  # patient and study are the sources'
    "request",  # order and imaging procedure are the sources'
    "references",  # everything referred to was an input, or is in this set of results
    "geometry",  # every voxel lies where the findings have it
    "coordinates",  # every region of the report lies where the findings have it
    "content",  # codes, numbers and findings: all there, none more
    "tracking",  # SEG and SR name the same thing the same
    "text",  # every character came through
    "status",  # unverified, complete, preliminary
    "provenance",  # model, version, digest, intended use, deviations
]


class GateError(DicomaiError):
    """A result that is not what was found; it is kept and named, not sent."""

    kind: ClassVar[ErrorKind] = "refused"

    def __init__(self, sentence: str, *, subject: str = "", rule: Rule = "readable") -> None:
        super().__init__(sentence, subject=subject)
        self.rule: Rule = rule

    def __reduce__(self) -> tuple[object, ...]:
        return (_again, (self.sentence, self.subject, self.rule))


def _again(sentence: str, subject: str, rule: Rule) -> GateError:
    return GateError(sentence, subject=subject, rule=rule)


def refuse(rule: Rule, subject: str, reason: str) -> NoReturn:
    """Raise the error of a rule, with a sentence that names it and the object."""
    raise GateError(
        f"Result {subject} breaks the rule of {rule}: {reason}.",
        subject=subject,
        rule=rule,
    )
