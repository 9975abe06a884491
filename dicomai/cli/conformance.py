"""The tables of the DICOM conformance statement, printed from the code.

`python -m dicomai.cli.conformance docs/conformance.md` prints them anew between their marks in the
page; a test compares them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, get_args

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID
from pynetdicom.presentation import build_context

from dicomai.cli import answers, produced
from dicomai.cli.produced import Table
from dicomai.dicom import charset
from dicomai.dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomai.net import admission, calling, find, receiver
from dicomai.net.find import PATIENT_ROOT_FIND, STUDY_ROOT_FIND, Level
from dicomai.net.get import COMPRESSED, NATIVE, STUDY_ROOT_GET
from dicomai.net.identifier import LEVELS, ROOTS
from dicomai.net.limits import Limits
from dicomai.net.move import STUDY_ROOT_MOVE
from dicomai.net.query_server import MAX_PDU_BYTES as QUERY_PDU_BYTES
from dicomai.net.suboperations import SILENCE_S
from dicomai.net.tls import CIPHER_SUITES, PORT
from dicomai.net.transcode import EXPLICIT, IMPLICIT
from dicomai.settings import reference
from dicomai.store import headers, search

_MARKED: Final = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_ASKED: Final = (PATIENT_ROOT_FIND, STUDY_ROOT_FIND, STUDY_ROOT_MOVE, STUDY_ROOT_GET)
_NETWORK_TABLES: Final = ("[receiver]", "[tls]", "[query]", "[[nodes]]")


def filled(page: str) -> str:
    """Return the page with each of its tables as the code has it."""

    def fill(found: re.Match[str]) -> str:
        return f"{found[1]}{_markdown(*TABLES[found[2]]())}{found[3]}"

    return _MARKED.sub(fill, page)


def named(page: str) -> list[str]:
    """Return the names of the tables in a page."""
    return [found[2] for found in _MARKED.finditer(page)]


def _markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(each) for each in line)} |\n" for line in lines)


def _name(uid: str) -> str:
    return str(UID(uid).name)


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def _services() -> Table:
    rows: list[tuple[str, str, str, str]] = [
        (_name(admission.VERIFICATION), admission.VERIFICATION, "yes", "yes"),
        ("Storage classes", "annex 8.5", "yes", "yes"),
        (_name(admission.MPPS), admission.MPPS, "no", "yes"),
        (_name(admission.COMMITMENT), admission.COMMITMENT, "yes", "yes"),
    ]
    rows += [(_name(uid), uid, _yes(uid in _ASKED), "yes") for uid in ROOTS]
    return (("SOP class", "UID", "user (SCU)", "provider (SCP)"), rows)


def _implementation() -> Table:
    return (
        ("", ""),
        [
            ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
            ("Implementation Version Name", IMPLEMENTATION_VERSION_NAME),
            ("Application Context Name", "1.2.840.10008.3.1.1.1"),
        ],
    )


def _receiver_contexts() -> Table:
    every = "each that is proposed"
    commitment = _name(admission.COMMITMENT)
    return (
        ("abstract syntax", "UID", "transfer syntaxes", "role", "for nodes that"),
        [
            (_name(admission.VERIFICATION), admission.VERIFICATION, every, "SCP", "may `echo`"),
            ("Storage classes (annex 8.5)", "", every, "SCP", "may `store`"),
            (_name(admission.MPPS), admission.MPPS, every, "SCP", "may `store`"),
            (commitment, admission.COMMITMENT, every, "SCP", "may `commit`"),
            (commitment, admission.COMMITMENT, every, "SCU", "have `commitment`"),
        ],
    )


def _query_contexts() -> Table:
    rows = [(_name(admission.VERIFICATION), admission.VERIFICATION, "SCP", "may `echo`")]
    rows += [(_name(uid), uid, "SCP", "may `query`") for uid in ROOTS]
    rows += [("Storage classes (annex 8.5), for C-GET", "", "SCU", "may `query`")]
    return (("abstract syntax", "UID", "role", "for nodes that"), rows)


def _syntaxes(uids: Iterable[str]) -> str:
    return "<br>".join(f"{_name(uid)} ({uid})" for uid in uids)


def _worker_contexts() -> Table:
    usual = [str(uid) for uid in build_context(admission.VERIFICATION).transfer_syntax]
    rows = [
        (activity, f"{_name(uid)} ({uid})", _syntaxes(usual), role)
        for activity, uid, role in (
            ("Asks whether a node is there", admission.VERIFICATION, "SCU"),
            *((f"Asks a node: {ROOTS[uid][0]}", uid, "SCU") for uid in _ASKED),
            ("Asks to commit what was delivered", admission.COMMITMENT, "SCU"),
            ("Reports on what it was asked to commit", admission.COMMITMENT, "SCP"),
        )
    ]
    rows += [
        (
            "Sends results and other objects",
            "each class that is sent",
            "its own, and beside it:<br>" + _syntaxes((EXPLICIT, IMPLICIT)),
            "SCU",
        ),
        (
            "Takes what C-GET brings",
            "each class that the node counts; where it does not say, the usual ones",
            _syntaxes(NATIVE) + "<br>each of these in a context of its own, as room allows:<br>"
            "" + _syntaxes(COMPRESSED),
            "SCP",
        ),
    ]
    return (("activity", "abstract syntax", "transfer syntaxes", "role"), rows)


def _limits() -> Table:
    limits = Limits()
    return (
        ("limit", "receiver", "query", "worker"),
        [
            (
                "maximum PDU length offered, bytes",
                receiver.MAX_PDU_BYTES,
                QUERY_PDU_BYTES,
                calling.MAX_PDU_BYTES,
            ),
            ("longest PDU taken, bytes", limits.pdu_bytes, limits.pdu_bytes, "as offered"),
            ("associations at a time", "`receiver.max_associations`, `max_associations` of a node",
             "`query.max_associations`, `max_associations` of a node", "one for each worker"),
            ("from the connection to the whole request, s (ARTIM)", f"{limits.request_s:g}",
             f"{limits.request_s:g}", ""),
            ("to connect, s", "", "", f"{calling.CONNECT_TIMEOUT_S:g}"),
            ("to answer the association request, s", "", "", f"{calling.ACSE_TIMEOUT_S:g}"),
            ("silence, s", "`receiver.silence_s`", "`receiver.silence_s`",
             f"{calling.DIMSE_TIMEOUT_S:g}; {SILENCE_S:g} while a node fetches"),
            ("slowest message, bytes per s", "`receiver.min_bytes_per_s`",
             "`receiver.min_bytes_per_s`", ""),
            ("operations at a time in an association", 1, 1, 1),
        ],
    )  # fmt: skip


def _query_keys() -> Table:
    counted: Mapping[Level, str] = {
        "patient": "NumberOfPatientRelated",
        "study": "NumberOfStudyRelated",
        "series": "NumberOfSeriesRelated",
        "image": "-",
    }
    every = (*headers.PATIENT, *headers.STUDY, "ModalitiesInStudy")
    rows = []
    for level in LEVELS:
        known = [each for each in every if search.supported(level, each)]
        open_ended = search.supported(level, "ConvolutionKernel")
        told = sorted(each for each in search.COUNTED if each.startswith(counted[level]))
        matched = "every attribute of the top level of the data set" if open_ended else _list(known)
        rows.append((level.upper(), f"`{find.UNIQUE_KEYS[level]}`", matched, _list(told) or "none"))
    return (("level", "unique key", "matched and told", "only told"), rows)


def _list(keywords: Iterable[str]) -> str:
    return ", ".join(f"`{each}`" for each in keywords)


def _find_keys() -> Table:
    return (
        ("level", "information model", "always asked for"),
        [
            (
                level.upper(),
                _name(PATIENT_ROOT_FIND if level == "patient" else STUDY_ROOT_FIND),
                _list(find.COLUMNS[level]),
            )
            for level in get_args(Level)
        ],
    )


def _character_sets() -> Table:
    known = charset.known_terms()
    kinds = {
        "one byte or more, without code extension": [each for each in known if "2022" not in each],
        "with code extension": [each for each in known if "2022" in each],
    }
    return (("", "Specific Character Set"), [(kind, _list(terms)) for kind, terms in kinds.items()])


def _tls() -> Table:
    return (
        ("", ""),
        [
            ("profile", "BCP 195, RFC 8996 and 9325 (PS3.15 B.12)"),
            ("versions", "TLS 1.2, TLS 1.3"),
            ("cipher suites of TLS 1.2", _list(CIPHER_SUITES)),
            ("port", f"`tls.port`, {PORT} unless set; `query.port` with `query.tls`"),
        ],
    )


def _configuration() -> Table:
    return (
        ("parameter", "default", ""),
        [
            (
                f"`{each.table.strip('[]')}.{each.key}`",
                f"`{each.default}`" if each.default else "",
                each.description.replace("|", "\\|"),
            )
            for each in reference()
            if each.table in _NETWORK_TABLES
        ],
    )


def _storage_classes() -> Table:
    found = [
        (entry[0], uid, "retired" if entry[3] else "")
        for uid, entry in UID_dictionary.items()
        if admission.is_storage(uid)
    ]
    return (("SOP class", "UID", ""), sorted(found))


TABLES: Final[Mapping[str, Callable[[], Table]]] = MappingProxyType(
    {
        "services": _services,
        "implementation": _implementation,
        "limits": _limits,
        "rejections": answers.rejections,
        "receiver-contexts": _receiver_contexts,
        "store-statuses": answers.store,
        "step-statuses": answers.steps,
        "commitment-statuses": answers.commitment,
        "commitment-reasons": answers.reasons,
        "query-contexts": _query_contexts,
        "query-keys": _query_keys,
        "query-statuses": answers.query,
        "worker-contexts": _worker_contexts,
        "rejected": answers.rejected,
        "store-answers": answers.to_store,
        "find-keys": _find_keys,
        "find-answers": answers.to_find,
        "configuration": _configuration,
        "character-sets": _character_sets,
        "tls": _tls,
        "objects": produced.objects,
        "carried": produced.carried,
        "attributes": produced.attributes,
        "codes": produced.codes,
        "storage-classes": _storage_classes,
    }
)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
