"""What peers look for is found page by page, however much there is of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from catalogue_rows import NOW, arrive, instance
from sqlalchemy import Engine

from dicomai.dicom.matching import key
from dicomai.store import instances, search
from dicomai.store.engine import reading, writing


def images(engine: Engine, study: str, count: int) -> Mapping[str, str]:
    """Put a series into the catalogue; return where it is."""
    where = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1"}
    arrive(engine, study, count=0)
    with writing(engine) as connection:
        for number in range(count):
            uid = f"{study}.1.{number}"
            row = instance(study, uid, file=uid)
            attributes = {**where, "SOPInstanceUID": uid}
            instances.add(connection, replace(row, attributes=attributes), NOW)
    return where


def test_the_images_of_a_series_come_in_pages(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PAGE", 10)
    where = images(engine, "1.2.3", 25)
    images(engine, "1.2.4", 3)
    pages: list[list[str]] = []
    after: str | None = ""
    while after is not None:
        with reading(engine) as connection:
            keys = [key(*each) for each in where.items()]
            page = search.page(connection, "image", keys, [], after)
        pages.append([str(each["SOPInstanceUID"]) for each in page.found])
        after = page.after
    assert [len(each) for each in pages] == [10, 10, 5]
    found = {uid for each in pages for uid in each}
    assert found == {f"1.2.3.1.{number}" for number in range(25)}


def test_where_nothing_is_named_there_are_no_objects(engine: Engine) -> None:
    images(engine, "1.2.3", 2)
    with reading(engine) as connection:
        assert not list(search.objects(connection))
        assert not list(search.objects(connection, series=["1.2.3.1"], images=["1.2.3.1.0"]))
