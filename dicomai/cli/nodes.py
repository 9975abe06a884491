"""`dicomai echo` and `dicomai send`: the peers, asked by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dicomai.cli.options import ConfigOption, JsonOption
from dicomai.cli.terminal import complain, print_json, say, span

if TYPE_CHECKING:
    from dicomai.net.node import Node
    from dicomai.net.scu import EchoAnswer
    from dicomai.settings import Settings


def echo(
    node: Annotated[
        str, typer.Argument(metavar="[NODE]", help="Its name; without one: our own receiver.")
    ] = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Ask a node whether it answers (C-ECHO); without one, our own receiver."""
    from dicomai.net import scu
    from dicomai.settings import load

    settings = load(config)
    asked = settings.node(node) if node else own_receiver(settings)
    answer = scu.echo(asked, settings.receiver.ae_title)
    alive = answer.ok or (not node and says_it_lives(answer))
    if json:
        print_json({"ok": alive, "sentence": answer.sentence, "seconds": round(answer.seconds, 3)})
    elif alive:
        say(f"{answer.sentence} {span(answer.seconds)}")
    else:
        complain(answer.sentence)
    if not alive:
        raise typer.Exit(1)


def says_it_lives(answer: EchoAnswer) -> bool:
    """Tell whether our own receiver lives, even if it takes nothing from this machine."""
    return answer.ok or "rejected the association because it does not know" in answer.sentence


def own_receiver(settings: Settings) -> Node:
    """Return our own receiver as a node that this machine can call."""
    from dicomai.net.node import Node

    here = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared only
    return Node(
        name="dicomai",
        ae_title=settings.receiver.ae_title,
        host=here.get(settings.receiver.host, settings.receiver.host),
        port=settings.receiver.port,
    )
