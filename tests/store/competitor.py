"""A worker process: claims until nothing is left, or stops in the middle of its first job.

Usage: competitor.py URL NAME MODE [LOG]; prints the id of what it did, or "claimed ID" and hangs.
"""

from __future__ import annotations

import signal
import sys

from dicomai.dicom.dates import now
from dicomai.store import analyses, claims
from dicomai.store.engine import open_engine, writing


def main(url: str, name: str, mode: str) -> None:
    engine = open_engine(url)
    print("ready", flush=True)
    sys.stdin.readline()
    while True:
        with writing(engine) as connection:
            job = claims.claim(connection, name, ("analyse",), ("lungs",), now())
        if job is None:
            return
        if mode == "hang":
            print(f"claimed {job.id} {job.claim}", flush=True)
            signal.pause()
        with writing(engine) as connection:
            outcome = analyses.finish(connection, job.held, (), {}, {"by": name}, now())
        print(f"{outcome} {job.id}", flush=True)


main(*sys.argv[1:])
