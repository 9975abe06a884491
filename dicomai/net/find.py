"""C-FIND as we ask it: what a node has, match by match (PS3.4 annex C).

Matches are given as they come, so ten thousand of them take no more memory than one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from pydicom import config
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pynetdicom import _config as pynetdicom_config
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from dicomai.dicom.charset import TEXT_VRS, UTF8, Terms, chosen_for, terms_of
from dicomai.dicom.data_set import Element
from dicomai.dicom.header import values_of
from dicomai.dicom.matching import RANGES
from dicomai.errors import DicomaiError, InputError, RefusedError, TransientError
from dicomai.net.calling import GoOn, NothingAccepted, associated, watched
from dicomai.net.node import Node
from dicomai.net.tls import NO_FILES, TlsFiles

PATIENT_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.1.1"
STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"

Level = Literal["patient", "study", "series", "image"]
MatchValue: TypeAlias = str | int | float | Sequence[str | int | float]

# It writes out every answer for its log, names and all, even where nobody listens.
pynetdicom_config.LOG_RESPONSE_IDENTIFIERS = False
pynetdicom_config.LOG_REQUEST_IDENTIFIERS = False

UNIQUE_KEYS: Final[Mapping[Level, str]] = MappingProxyType(
    {
        "patient": "PatientID",
        "study": "StudyInstanceUID",
        "series": "SeriesInstanceUID",
        "image": "SOPInstanceUID",
    }
)
"""What names one thing of a level (PS3.4 C.6.1.1, C.6.2.1)."""

COLUMNS: Final[Mapping[Level, tuple[str, ...]]] = MappingProxyType(
    {
        "patient": ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
        "study": (
            "StudyDate",
            "StudyTime",
            "AccessionNumber",
            "PatientID",
            "PatientName",
            "ModalitiesInStudy",
            "StudyDescription",
            "NumberOfStudyRelatedInstances",
            "StudyInstanceUID",
        ),
        "series": (
            "SeriesNumber",
            "Modality",
            "SeriesDescription",
            "NumberOfSeriesRelatedInstances",
            "SeriesInstanceUID",
        ),
        "image": ("InstanceNumber", "SOPClassUID", "SOPInstanceUID"),
    }
)
"""What is asked for besides the keys that are given."""

# Study root, in which patients are studies' attributes (PS3.4 C.6.2.1).
_ABOVE: Final[Mapping[Level, tuple[str, ...]]] = MappingProxyType(
    {
        "patient": (),
        "study": (),
        "series": ("StudyInstanceUID",),
        "image": ("StudyInstanceUID", "SeriesInstanceUID"),
    }
)
_PENDING: Final = (0xFF00, 0xFF01)
_CANCELLED: Final = 0xFE00
_OUT_OF_RESOURCES: Final = 0xA700
# After matches: the node has more than it tells, by a limit of its own (PS3.4 C.4.1.1.4).
_CUT: Final = (_CANCELLED, _OUT_OF_RESOURCES)
_MESSAGE_ID: Final = 1
# Many nodes have some answers under way when they are told to stop; one that goes on is cut off.
_MOST_AFTER_CANCEL: Final = 5000
_KEYWORDS: Final = tuple(entry[4] for entry in DicomDictionary.values() if entry[4])
# A date or time, or a range of them (PS3.4 C.2.2.2.5), or anything.
_MOMENT: Final = re.compile(r"\*|[0-9.:+ ]*(?:-[0-9.:+ -]*)?")
_DAY: Final = re.compile(r"[0-9]{8}|[0-9]{4}\.[0-9]{2}\.[0-9]{2}")
_NUMBERS: Final = frozenset({"US", "SS", "UL", "SL", "UV", "SV"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to look for.

    Attributes
    ----------
    level
        Of what: patients, studies, series, images.
    keys
        By keyword; an empty value is asked for and matches all (PS3.4 C.2.2.2).
    """

    level: Level
    keys: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One answer: what the node told, by keyword; what is empty there is left out."""

    attributes: Mapping[str, MatchValue]

    def text(self, keyword: str) -> str:
        """Return a value as text, several between backslashes; empty where there is none."""
        value = self.attributes.get(keyword, "")
        values = [value] if isinstance(value, str | int | float) else value
        return "\\".join(str(each) for each in values)


@dataclass(slots=True)
class Cut:
    """Whether a query gave fewer matches than there are.

    Attributes
    ----------
    because
        Why, in a sentence; empty: it gave all.
    refusals
        Whether it counts as well where a node is out of resources (0xA700) before its first match,
        for who can ask for less: dcm4chee-arc answers so where it has more than its limit. So does
        a node that is in trouble, and else that is an error.
    refused
        That was it: the node told nothing.
    """

    because: str = ""
    refusals: bool = False
    refused: bool = False

    @property
    def happened(self) -> bool:
        """There are more."""
        return bool(self.because)


def query(level: Level, keys: Mapping[str, str]) -> Query:
    """Return a query that asks for the usual columns of its level besides its keys.

    Parameters
    ----------
    level
        Of what.
    keys
        By keyword: a value as PS3.4 C.2.2.2 has it (one, several between backslashes, with `*` and
        `?`, a range with `-`), or nothing, to be told.

    Raises
    ------
    InputError
        A keyword does not exist, a value can't be one of its, or the key of a level above is
        missing.
    """
    for keyword, value in keys.items():
        _element(keyword, value)
    for above in _ABOVE[level]:
        if not keys.get(above) or any(sign in keys[above] for sign in "*?\\"):
            raise InputError(
                f"A query for {level} needs {above} with one value: it asks below that.",
                subject=above,
            )
    return Query(level=level, keys={**dict.fromkeys(COLUMNS[level], ""), **keys})


def find(
    node: Node,
    our_ae: str,
    wanted: Query,
    files: TlsFiles = NO_FILES,
    limit: int | None = None,
    cut: Cut | None = None,
    go_on: GoOn = lambda: None,
) -> Iterator[Match]:
    """Give what a node has, each match as it comes.

    Parameters
    ----------
    node
        Whom to ask.
    our_ae
        What we call ourselves.
    wanted
        What to look for, from `query`.
    files
        For TLS, where the node speaks it.
    limit
        After so many matches the query is cancelled (C-CANCEL), and `cut` says so.
    cut
        Says so too where the node tells no more by itself, or nothing if refusals count; for who
        gives none, that is an error.
    go_on
        Called often; raises to break off.

    Raises
    ------
    TransientError
        It can't be reached, gives no answer, or fails for now.
    RefusedError
        It refuses for good, or says what can't be read.
    """
    model = PATIENT_ROOT_FIND if wanted.level == "patient" else STUDY_ROOT_FIND
    root = "patient" if wanted.level == "patient" else "study"
    try:
        with (
            associated(node, our_ae, [build_context(model)], files, go_on=go_on) as association,
            watched(association, go_on),
        ):
            yield from _found(node, association, wanted, model, limit, cut)
    except NothingAccepted as trouble:
        raise RefusedError(
            f"{node.name} takes no C-FIND ({root} root) from {our_ae}. Allow it there.",
            subject=node.name,
        ) from trouble


def _found(
    node: Node,
    association: Association,
    wanted: Query,
    model: str,
    limit: int | None,
    cut: Cut | None,
) -> Iterator[Match]:
    identifier = _identifier(node, wanted)
    told = cut or Cut()
    given = 0
    answers = association.send_c_find(identifier, model, msg_id=_MESSAGE_ID)
    for said, answer in answers:
        if "Status" not in said:
            raise TransientError(
                f"{node.name} gave no answer to a C-FIND for {wanted.level}, or broke off.",
                subject=node.name,
            )
        if said.Status not in _PENDING:
            if told.happened and said.Status == _CANCELLED:
                return
            if given and said.Status in _CUT:
                told.because = _cut(node, wanted, said.Status)
                if cut is None:
                    raise TransientError(told.because, subject=node.name)
                return
            if said.Status != 0:
                error = failed(node, f"look for {wanted.level}", said.Status, said)
                if told.refusals and said.Status == _OUT_OF_RESOURCES:
                    told.because, told.refused = error.sentence, True
                    return
                raise error
            return
        given += 1
        if told.happened:
            if given > (limit or 0) + _MOST_AFTER_CANCEL:
                association.abort()
                return
            continue
        if answer is None:
            raise RefusedError(
                f"{node.name} answered a C-FIND for {wanted.level} with something that can't "
                "be read. Look at its log.",
                subject=node.name,
            )
        if limit is not None and given > limit:
            told.because = f"{node.name} has more than {limit}; the query was cancelled."
            association.send_c_cancel(_MESSAGE_ID, query_model=model)
            continue
        yield match_of(answer, node.charset_default)


def _cut(node: Node, wanted: Query, code: int) -> str:
    return (
        f"{node.name} has more than it tells in one answer when it is asked for {wanted.level} "
        f"(status 0x{code:04X}). Raise the limit of its answers to C-FIND."
    )


def failed(node: Node, what: str, code: int, said: Dataset) -> DicomaiError:
    """Return the error for a status of failure (PS3.4 C.4.1.1.4, C.4.2.1.5, C.4.3.1.4).

    Parameters
    ----------
    what
        What it failed to do, as "look for study".
    code, said
        The status, and the response with the peer's own words.
    """
    comment = str(said.get("ErrorComment") or "")
    own = f", {comment!a}" if comment else ""
    why = {
        0x0122: "it does not know that SOP class",
        0x0124: "we may not",
        0xA701: "it is out of resources",
        0xA702: "it is out of resources",
        0xA801: "it does not know us as a destination: enter our AE title, address and port there",
        _CANCELLED: "somebody cancelled it there",
    }.get(code, "")
    if 0xA900 <= code <= 0xA9FF:
        why = "it takes the request for one of another SOP class"
    sentence = (
        f"{node.name} failed to {what}{': ' * bool(why)}{why} (status 0x{code:04X}{own}). "
        "Look at its log."
    )
    for_good = code in (0x0122, 0x0124, 0xA801) or 0xA900 <= code <= 0xA9FF
    return (RefusedError if for_good else TransientError)(sentence, subject=node.name)


def _identifier(node: Node, wanted: Query) -> Dataset:
    """Return the identifier of a request, in a character set that holds all its text."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = wanted.level.upper()
    # Those above too, for their values say where to look; they were checked.
    for keyword, value in wanted.keys.items():
        identifier.add(_element(keyword, value))
    texts = [
        (dictionary_VR(keyword), value)
        for keyword, value in wanted.keys.items()
        if dictionary_VR(keyword) in TEXT_VRS
    ]
    if not all(value.isascii() for _, value in texts):
        terms = chosen_for(terms_of(node.charset_default), texts) or UTF8
        identifier.SpecificCharacterSet = list(terms) if len(terms) > 1 else terms[0]
    return identifier


def _element(keyword: str, value: str) -> DataElement:
    tag = tag_for_keyword(keyword)
    if tag is None or tag >> 16 in (0x0000, 0x0002):
        near = difflib.get_close_matches(keyword, _KEYWORDS, 1)
        hint = f' "{near[0]}"?' if near else ""
        raise InputError(f'No attribute has the keyword "{keyword}".{hint}', subject=keyword)
    vr = dictionary_VR(tag)
    if vr == "SQ" or vr.startswith("O") or vr == "UN":
        raise InputError(f"{keyword} ({vr}) can't be a key of a query.", subject=keyword)
    vr = vr.partition(" or ")[0]
    try:
        given: object = value.split("\\") if "\\" in value else value
        if vr in RANGES and not all(map(_MOMENT.fullmatch, value.split("\\"))):
            raise ValueError(value)
        if vr == "DA" and not all(map(_is_days, value.split("\\"))):
            raise InputError(
                f"{keyword} (DA) can't be {value!a} in a query. Write a day as 20260131, days in a "
                "row as 20260101-20260131.",
                subject=keyword,
            )
        if vr in _NUMBERS or vr in ("FL", "FD"):
            given = (int if vr in _NUMBERS else float)(value) if value else None
        # Ranges and wild cards are no values of their VRs, and right in a query.
        return DataElement(tag, vr, given, validation_mode=config.IGNORE)
    except (ValueError, TypeError, OverflowError) as trouble:
        raise InputError(
            f"{keyword} ({vr}) can't be {value!a} in a query.", subject=keyword
        ) from trouble


def _is_days(value: str) -> bool:
    """Tell whether it is a day, or two with a hyphen of which one may be left out, or anything.

    A node takes 2026-01-31 for a range that begins in "2026", and finds nothing.
    """
    parts = [each.strip() for each in value.split("-")]
    return value in ("", "*") or (
        len(parts) <= 2 and any(parts) and all(not each or _DAY.fullmatch(each) for each in parts)
    )


def terms_in(identifier: Dataset, charset_default: str) -> Terms:
    """Return the character sets that an identifier declares, or else the default."""
    declared: object = identifier.get_item("SpecificCharacterSet")
    raw = declared.value if isinstance(declared, RawDataElement) else None
    text = (raw or b"").decode("ascii", "replace").rstrip("\0 ")
    return terms_of(text.split("\\")) or terms_of(charset_default)


def match_of(answer: Dataset, charset_default: str) -> Match:
    """Return what an answer tells, read as the header of an object is; none of it was looked at."""
    terms = terms_in(answer, charset_default)
    found: dict[str, MatchValue] = {}
    for tag in sorted(answer.keys()):
        element: object = answer.get_item(tag)
        keyword = keyword_for_tag(tag)
        if not keyword or not isinstance(element, RawDataElement):
            continue
        values = values_of(
            Element(
                tag=int(tag),
                vr=element.VR or dictionary_VR(tag),
                value=element.value,
                items=(),
                offset=0,
                length=0,
            ),
            terms,
            element.is_little_endian,
        )
        whole = [int(each) if _is_whole(each) else each for each in values]
        if whole:
            found[keyword] = whole[0] if len(whole) == 1 else whole
    return Match(attributes=found)


def _is_whole(value: str | float) -> bool:
    return isinstance(value, float) and value.is_integer()
