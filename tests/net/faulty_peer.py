"""A real server that plays a script of faults: one answer for each C-STORE, C-FIND as it is told.

``faulty_peer.py PORT '{"stores": [...], ...}'`` prints ``ready`` when it listens.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

from pydicom.dataset import Dataset
from pynetdicom import AE, evt, service_class
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_context

# A Patient ID of no length, which nothing ends.
UNREADABLE = b"\x10\0\x20\0\xff\xff\xff\xffP1"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"


def main() -> None:
    port, script = int(sys.argv[1]), json.loads(sys.argv[2])
    answers = iter(script.get("stores", []))

    def store(event: evt.Event) -> Dataset | int:
        answer = next(answers, 0)
        if answer == "abort":
            event.assoc.abort()
            return 0
        if answer == "die":
            os._exit(1)
        status = Dataset()
        status.Status = answer
        if comment := script.get("comment"):
            status.ErrorComment = comment
        return status

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        for found in script.get("finds", []):
            if isinstance(found, int):
                yield found, None
                continue
            answer = Dataset()
            answer.unreadable = found is None
            for keyword, value in (found or {}).items():
                setattr(answer, keyword, value)
            yield 0xFF00, answer

    def encoded(answer: Dataset, *syntax: bool) -> bytes | None:
        return UNREADABLE if answer.unreadable else encode(answer, *syntax)

    if None in script.get("finds", []):
        service_class.encode = encoded

    left = int(script.get("dies_after_bytes", 0))

    def counted(event: evt.Event) -> None:
        nonlocal left
        if left:
            left -= min(left, len(event.data))
            if not left:
                os._exit(1)

    entity = AE(script.get("ae_title", "PACS1"))
    entity.maximum_pdu_size = script.get("pdu", 16382)
    if script.get("reject"):
        entity.require_calling_aet = ["NOBODY"]
    entity.require_called_aet = bool(script.get("strict"))
    for sop_class, syntaxes in script.get("takes", {}).items():
        entity.supported_contexts = [
            *entity.supported_contexts,
            build_context(sop_class, syntaxes),
        ]
    if "finds" in script:
        entity.add_supported_context(FIND)
    server = entity.start_server(
        ("127.0.0.1", port),
        block=False,
        evt_handlers=[
            (evt.EVT_C_STORE, store),
            (evt.EVT_C_FIND, find),
            (evt.EVT_DATA_RECV, counted),
        ],
    )
    assert server is not None
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
