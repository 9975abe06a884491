"""The query role: what peers ask is answered from catalogue and archive."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from dicomai.dicom.matching import Key, key
from dicomai.errors import NotFound
from dicomai.net import scu
from dicomai.net.answering import Kept, OnSent
from dicomai.net.identifier import Asked
from dicomai.net.query_server import QueryConfig, answer
from dicomai.net.scu import StoreOutcome
from dicomai.roles import database
from dicomai.roles.tree import Life
from dicomai.settings import Settings
from dicomai.store import search
from dicomai.store.engine import open_engine, reading


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueArchive:
    """The archive as it is answered from; see `dicomai.net.answering.Archive`."""

    settings: Settings
    engine: Engine

    @property
    def ae_title(self) -> str:
        """What we are called."""
        return self.settings.receiver.ae_title

    def heeds(self, asked: Asked) -> bool:
        """Tell whether all keys are matched that are asked for."""
        return not asked.strange and all(
            search.supported(asked.level, each.keyword)
            for each in _keys(asked)
            if each.kind != "universal"
        )

    def search(self, asked: Asked) -> Iterator[Mapping[str, Sequence[str]]]:
        """Give each match, page by page: no transaction lasts while a peer reads."""
        keys = _keys(asked)
        after: str | None = ""
        while after is not None:
            with reading(self.engine) as connection:
                page = search.page(connection, asked.level, keys, asked.keys, after)
            for found in page.found:
                yield {keyword: search.texts(value) for keyword, value in found.items()}
            after = page.after

    def objects(self, asked: Asked) -> Sequence[Kept]:
        """Return the objects that are meant."""
        data = self.settings.folders.data
        with reading(self.engine) as connection:
            return [
                Kept(
                    path=data / each.path,
                    sop_class_uid=each.sop_class_uid,
                    sop_instance_uid=each.sop_instance_uid,
                )
                for each in search.objects(
                    connection,
                    patients=asked.uids("patient"),
                    studies=asked.uids("study"),
                    series=asked.uids("series"),
                    images=asked.uids("image"),
                )
            ]

    def send(
        self, destination: str, objects: Sequence[Kept], originator: tuple[str, int], told: OnSent
    ) -> None:
        """Send objects to the node that has an AE title.

        Raises
        ------
        NotFound
            There is none, or it has no address.
        """
        node = next(
            (each for each in self.settings.nodes if each.ae_title == destination and each.host),
            None,
        )
        if node is None:
            raise NotFound(f"No node with host has AE title {destination}.", subject=destination)
        by_path = {each.path: each for each in objects}

        def on_each(outcome: StoreOutcome) -> None:
            told(by_path[outcome.path], outcome.status)

        scu.store_objects(
            node, self.ae_title, tuple(by_path), on_each, self.settings.tls.files, originator
        )


def query(settings: Settings, life: Life) -> None:
    """Answer until told to stop."""
    assert settings.query.port is not None
    engine = open_engine(settings.database.url)
    pulse = threading.Thread(target=_beat, args=(life,), name="pulse", daemon=True)
    pulse.start()
    database.watch(engine, life.stop).start()
    answer(
        QueryConfig(
            ae_title=settings.receiver.ae_title,
            host=settings.receiver.host,
            port=settings.query.port,
            nodes=settings.nodes,
            max_associations=settings.query.max_associations,
            tls=settings.tls.files if settings.query.tls else None,
            limits=settings.receiver.limits,
        ),
        CatalogueArchive(settings=settings, engine=engine),
        life.ready,
        life.stop,
    )


def _keys(asked: Asked) -> list[Key]:
    return [key(keyword, value) for keyword, value in asked.keys.items()]


def _beat(life: Life) -> None:
    while not life.stop.wait(1.0):
        life.pulse()
