"""UIDs become paths: only what PS3.5 chapter 9 allows gets through."""

from __future__ import annotations

import uuid
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from dicomai.dicom import uid
from dicomai.errors import InputError


@pytest.mark.parametrize(
    "good",
    ["1.2.840.10008.1.1", "0", "1", "2.25." + "9" * 59, "1.2.840.0123.5", "1.02", "01.2", "00"],
)
def test_a_uid_passes(good: str) -> None:
    assert uid.validated(good, "StudyInstanceUID") == good


@pytest.mark.parametrize("padding", ["\0", " ", "\0\0"])
def test_padding_is_stripped(padding: str) -> None:
    assert uid.validated("1.2.3" + padding, "StudyInstanceUID") == "1.2.3"


@pytest.mark.parametrize(
    "bad",
    ["", ".", "..", "1..2", "1.2.", "../1.2", "/etc", "1.2\\3", "1.2\n", "1.\0002", "1.²",
     "1." + "2" * 63, "CON", "1.2;DROP", "%2e%2e"],
)  # fmt: skip
def test_what_is_no_uid_is_refused_by_name(bad: str) -> None:
    with pytest.raises(InputError, match="StudyInstanceUID"):
        uid.validated(bad, "StudyInstanceUID")


@pytest.mark.parametrize(
    ("value", "leads"),
    [("1.2.840.0123.5", True), ("01.2", True), ("1.00", True), ("1.0.2", False), ("1.20.10", False),
     ("0", False), ("1.2.0", False)],
)  # fmt: skip
def test_a_number_that_begins_with_zero_is_seen(value: str, leads: bool) -> None:
    assert uid.has_leading_zero(value) == leads
    with warnings.catch_warnings(action="ignore"):
        assert UID(value).is_valid == (not leads)


@given(st.uuids(), st.lists(st.text(max_size=5), max_size=3))
def test_derived_uids_are_valid_and_repeat(root: uuid.UUID, parts: list[str]) -> None:
    made = uid.derived(root, *parts)
    assert uid.validated(made, "SOPInstanceUID") == made
    assert not uid.has_leading_zero(made)
    assert UID(made).is_valid
    assert made == uid.derived(root, *parts)
    assert made != uid.derived(root, *parts, "another")
