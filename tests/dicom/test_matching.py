"""What matches what in a query (PS3.4 C.2.2.2)."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomai.dicom.matching import key


@pytest.mark.parametrize(
    ("keyword", "asked", "stored", "matches"),
    [
        ("PatientID", "", "P1", True),
        ("PatientID", "*", "", True),
        ("PatientID", "P1", "P1 ", True),
        ("PatientID", "p1", "P1", False),
        ("PatientID", "P?", "P1", True),
        ("PatientID", "P?", "P12", False),
        ("PatientID", "P.", "P1", False),
        ("PatientID", "P*2", "P12", True),
        ("PatientName", "doe^j*", "Doe^Jane", True),
        ("PatientName", "Doe^Jane", "DOE^JANE^^", True),
        ("PatientName", "山田*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("PatientName", "Yamada^Tarou", "Yamada^Tarou=山田^太郎", True),
        ("PatientName", "müller*", "MÜLLER^Jürgen", True),
        ("PatientName", "Muller*", "Müller^Jürgen", False),
        ("StudyInstanceUID", "1.2\\1.3", "1.3", True),
        ("StudyInstanceUID", "1.2*", "1.2.3", False),
        ("StudyDate", "20260301", "20260301", True),
        ("StudyDate", "20260301-20260331", "20260331", True),
        ("StudyDate", "20260301-20260331", "20260401", False),
        ("StudyDate", "20260301-", "20270101", True),
        ("StudyDate", "-20260301", "20260302", False),
        ("StudyDate", "-20260301", "", False),
        ("StudyTime", "10-1015", "101559.5", True),
        ("StudyTime", "10-1015", "101600", False),
        ("StudyTime", "1015", "101500", True),
        ("AcquisitionDateTime", "20260301-20260302", "20260302120000", True),
        ("AcquisitionDateTime", "20260301-20260302", "20260303", False),
        ("ModalitiesInStudy", "CT\\MR", "MR", True),
        ("ModalitiesInStudy", "C*", "CT", True),
        ("InstanceNumber", "1", "1", True),
        ("StudyComments", "a\\b", "a\\b", True),
    ],
)
def test_a_key_matches_as_the_standard_says(
    keyword: str, asked: str, stored: str, matches: bool
) -> None:
    assert key(keyword, asked).matches([stored]) is matches


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_a_key_and_matches_itself(asked: str, stored: str) -> None:
    key("PatientID", asked).matches([stored])
    plain = asked.replace("*", "").replace("?", "").replace("\\", "").strip(" \0")
    assert key("PatientID", plain).matches([plain])
    assert key("PatientName", plain).matches([plain])


@given(st.text(alphabet="ab*?[", min_size=1, max_size=8), st.text(alphabet="ab[\n", max_size=10))
def test_wild_cards_match_as_shells_have_them(pattern: str, value: str) -> None:
    wild = key("StudyDescription", pattern)
    if wild.kind == "wild":
        assert wild.matches([value]) == fnmatchcase(value.strip(" "), pattern.replace("[", "[[]"))


def test_many_wild_cards_take_no_longer_than_a_few() -> None:
    """A peer may send this: with each `*` the time for it was a multiple of that before."""
    wild = key("StudyDescription", "*a" * 12 + "*b")
    endless = key("StudyDescription", "*" * 100_000 + "a*" * 100_000 + "b")
    began = time.process_time()
    assert not wild.matches(["a" * 64])
    assert wild.matches(["a" * 64 + "b"])
    assert not any(endless.matches(["a" * 64]) for _ in range(200))
    assert time.process_time() - began < 2
