"""Text in every character set comes out as the name it is, or not at all."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomai.dicom.charset import UTF8, chosen_for, decode, fits, terms_of


def _name(path: Path) -> tuple[bytes, tuple[str, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about terms that it doesn't know
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    declared = dataset.get_item("SpecificCharacterSet")
    terms = terms_of(declared.value) if declared else ()
    name = dataset.get_item("PatientName")
    return (name.value if name else b""), terms


def test_every_sample_name_is_read_as_expected(sample_data: Path) -> None:
    expected = json.loads((sample_data / "odd" / "charsets.json").read_text())
    wrong = {}
    for name, truth in expected.items():
        raw, terms = _name(sample_data / "odd" / name)
        if truth["patient_name"] is None:
            continue
        read = decode(raw, terms, "PN").strip(" \0").rstrip("=")
        if read != truth["patient_name"].rstrip("="):
            wrong[name] = read
    assert not wrong
    assert len(expected) > 40


@pytest.mark.parametrize(
    "name",
    [
        "undeclared-latin1",
        "declared-utf8-is-latin1",
        "unknown-term",
        "escape-not-declared",
        "escape-cut",
        "odd-double-byte",
    ],
)
def test_bytes_that_their_set_does_not_explain_are_never_guessed(
    sample_data: Path, name: str
) -> None:
    raw, terms = _name(sample_data / "odd" / "charsets-made" / f"{name}.dcm")
    with pytest.raises(UnicodeError):
        decode(raw, terms, "PN")


def test_a_misspelt_term_is_read_as_what_it_means() -> None:
    assert terms_of("ISO-IR 192") == UTF8
    assert terms_of(["", "ISO-2022-IR-87"]) == ("", "ISO 2022 IR 87")
    assert terms_of(["ISO_IR 192", "ISO 2022 IR 87"]) == UTF8
    assert terms_of(["", ""]) == ()


@pytest.mark.parametrize(
    ("terms", "text", "keeps"),
    [
        (("ISO_IR 100",), "Jörg", True),
        (("ISO_IR 100",), "Dvořák", False),
        ((), "Jones", True),
        ((), "Jörg", False),
        (("", "ISO 2022 IR 87"), "Yamada^Tarou=山田^太郎", True),
        (("", "ISO 2022 IR 87"), "山田 und Jörg", False),
        (("GB18030",), "王^小东", True),
    ],
)
def test_a_result_keeps_the_set_of_its_source_only_if_all_text_fits(
    terms: tuple[str, ...], text: str, keeps: bool
) -> None:
    assert chosen_for(terms, [("PN", "Plain"), ("PN", text)]) == (terms if keeps else UTF8)


_SETS = [
    (),
    ("ISO_IR 100",),
    ("ISO_IR 144",),
    ("ISO_IR 13",),
    ("", "ISO 2022 IR 87"),
    ("", "ISO 2022 IR 149"),
    ("", "ISO 2022 IR 58"),
    ("GB18030",),
    UTF8,
]


@given(
    text=st.text(
        st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\\="), max_size=12
    ),
    terms=st.sampled_from(_SETS),
)
def test_whatever_is_said_to_fit_comes_back_from_a_file(text: str, terms: tuple[str, ...]) -> None:
    from pydicom.charset import convert_encodings, encode_string

    if not fits(text, terms, "LO"):
        assert terms != UTF8  # which takes everything
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raw = encode_string(text, convert_encodings(list(terms)))
    assert decode(bytes(raw), terms, "LO") == text


@given(raw=st.binary(max_size=24), terms=st.sampled_from(_SETS))
def test_any_bytes_are_text_or_an_error_of_text(raw: bytes, terms: tuple[str, ...]) -> None:
    try:
        text = decode(raw, terms, "PN")
    except UnicodeError:
        return
    assert "\ufffd" not in text or terms == UTF8 or terms == ("GB18030",)
    assert "\x1b" not in text
