"""`dicomai echo` and `dicomai send`: the peers, asked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomai.cli.options import ConfigOption, JsonOption, must_exist, no_dicom
from dicomai.cli.terminal import complain, print_json, progress, say, table, text
from dicomai.errors import ConfigError, InputError, NotFound

if TYPE_CHECKING:
    from dicomai.net.scu import EchoAnswer
    from dicomai.settings import Settings


def echo(
    node: Annotated[
        str, typer.Argument(metavar="[NODE]", help="Its name; without one: our own receiver.")
    ] = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Ask a node whether it answers (C-ECHO).

    Without a name our own receiver is asked.
    """
    from dicomai.net import scu
    from dicomai.settings import load

    settings = load(config)
    if node:
        answer = scu.echo(settings.node(node), settings.receiver.ae_title, settings.tls.files)
    else:
        answer = echo_own_receiver(settings)
    if json:
        print_json(
            {"ok": answer.ok, "sentence": answer.sentence, "seconds": round(answer.seconds, 3)}
        )
    elif answer.ok:
        say(f"{answer.sentence} It took {answer.seconds:.2f} s.")
    else:
        complain(answer.sentence)
    if not answer.ok:
        raise typer.Exit(1)


def send(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name in the configuration.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Send DICOM files to a node (C-STORE)."""
    from dicomai.net import scu
    from dicomai.net.scu import StoreOutcome
    from dicomai.settings import load

    must_exist(*paths)
    settings = load(config)
    target = settings.node(node)
    files, others = dicom_files(paths)
    if not files:
        raise NotFound(no_dicom(*paths))
    # A peer that waits for the rest of one would end the association, and take no other.
    cut = _truncated(files)
    whole = [each for each in files if each not in cut]
    with progress() as shown:
        task = shown.add_task(f"to {node}", total=len(whole))

        def told(_outcome: StoreOutcome) -> None:
            shown.advance(task)

        outcomes = scu.store_objects(
            target, settings.receiver.ae_title, whole, told, settings.tls.files
        )
    outcomes += tuple(
        StoreOutcome(path=path, sop_instance_uid="", status=None, kind="refused", sentence=sentence)
        for path, sentence in cut.items()
    )
    there = [each for each in outcomes if each.kind in ("ok", "warning")]
    if json:
        print_json(
            [
                {"path": str(each.path), "kind": each.kind, "status": each.status}
                | {"sentence": each.sentence}
                for each in outcomes
            ]
        )
    else:
        table(
            ["file", "what happened"],
            [
                (each.path, text(each.sentence, "warn" if each in there else "bad"))
                for each in outcomes
                if each.kind != "ok"
            ],
        )
        say(f"{node} has {len(there)} of {len(files)} objects.")
        if others:
            say(f"Left out, for it is no DICOM: {others} {'file' if others == 1 else 'files'}.")
    if len(there) < len(files):
        raise typer.Exit(1)


def dicom_files(paths: Sequence[Path]) -> tuple[tuple[Path, ...], int]:
    """Return the DICOM files (PS3.10 7.1) among files and in folders, and how many are none.

    A DICOMDIR, which is no object, counts as neither.
    """
    from dicomai.dicom.part10 import is_dicomdir

    found, others = [], 0
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and not is_dicomdir(file):
                with file.open("rb") as opened:
                    if opened.read(132)[128:] == b"DICM":
                        found.append(file)
                    else:
                        others += 1
    return tuple(found), others


def _truncated(files: Sequence[Path]) -> dict[Path, str]:
    """Return the files that end too early, with what is to be said of each."""
    from dicomai.dicom import part10
    from dicomai.dicom.data_set import Truncated

    found = {}
    for path in files:
        try:
            with part10.opened(path):
                pass
        except Truncated as error:
            reason = error.sentence.removesuffix("Send it again.")
            found[path] = f"Not sent. {reason}Get it again from where it came from."
        except (InputError, OSError):
            pass  # its peer may take it all the same, or sending says what is wrong
    return found


def echo_own_receiver(settings: Settings) -> EchoAnswer:
    """Ask our own receiver whether it lives, even if it takes nothing from this machine."""
    answer = _asked_own_receiver(settings)
    if "rejected the association because it does not know" not in answer.sentence:
        return answer
    ours = settings.receiver.ae_title
    lives = f"Our receiver lives, and takes nothing from this machine: no node here is {ours}."
    return replace(answer, ok=True, sentence=lives)


def _asked_own_receiver(settings: Settings) -> EchoAnswer:
    """Return what it says; over TLS where it takes nothing else."""
    from dicomai.net.node import Node
    from dicomai.net.scu import EchoAnswer, echo
    from dicomai.net.tls import TlsFiles, fingerprint

    receiver, tls = settings.receiver, settings.tls
    here = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared only
    node = Node(
        name="dicomai",
        ae_title=receiver.ae_title,
        host=here.get(receiver.host, receiver.host),
        port=receiver.port,
    )
    if not tls.only or tls.certificate is None:
        return echo(node, receiver.ae_title)
    try:
        pin = fingerprint(tls.certificate)
        pinned = replace(node, port=tls.port, tls=True, certificate=pin)
        return echo(pinned, receiver.ae_title, TlsFiles(authorities=tls.certificate))
    except ConfigError as trouble:
        return EchoAnswer(ok=False, sentence=trouble.sentence, seconds=0.0)
