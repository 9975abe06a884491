"""Whose an object is, and when a study may be two patients'."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dicomai.dicom.header import Attributes
from dicomai.dicom.identity import Agreed, Ambiguous, IdentityKey, identity_of, judge


def _key(issuer_of_node: str = "", **attributes: str | list[str]) -> str | None:
    return identity_of(attributes, issuer_of_node=issuer_of_node, placeholders=("0", "UNKNOWN")).key


def test_spaces_around_an_id_are_trimmed_and_nothing_else() -> None:
    assert _key(PatientID=" ODD-1 ") == _key(PatientID="ODD-1") == "ODD-1"
    assert _key(PatientID="ODD-01") != _key(PatientID="ODD-1")
    assert _key(PatientID="odd-1") != _key(PatientID="ODD-1")


def test_an_absent_issuer_takes_the_nodes() -> None:
    assert _key("HOSPITAL", PatientID="1") == _key(PatientID="1", IssuerOfPatientID="HOSPITAL")
    assert _key("HOSPITAL", PatientID="1") != _key("CLINIC", PatientID="1")
    assert _key("CLINIC", PatientID="1", IssuerOfPatientID="HOSPITAL") == "1@HOSPITAL"


def test_without_an_id_name_birth_date_and_sex_take_its_place() -> None:
    jane = {"PatientName": "DOE^JANE", "PatientBirthDate": "19600131", "PatientSex": "F"}
    assert _key(**jane) == _key(PatientID="0", **jane) == _key(PatientID="  ", **jane)
    assert _key(**jane) == "@DOE^JANE|19600131|F"
    assert _key(**{**jane, "PatientSex": "M"}) != _key(**jane)
    assert _key(**{**jane, "PatientName": "DOE^JANE^^^"}) == _key(**jane)


def test_what_is_no_birth_date_or_sex_is_no_part_of_the_key() -> None:
    jane = {"PatientName": "DOE^JANE", "PatientBirthDate": "19600131", "PatientSex": "F"}
    for born in ("00000000", "1960", "19600231", "1960.01.31", "1960-1-3"):
        assert _key(**{**jane, "PatientBirthDate": born}) == "@DOE^JANE||F"
    for sex in ("f", "female", "U"):
        assert _key(**{**jane, "PatientSex": sex}) == "@DOE^JANE|19600131|"


@given(
    left=st.tuples(st.text(max_size=4), st.text(max_size=4)),
    right=st.tuples(st.text(max_size=4), st.text(max_size=4)),
)
def test_two_ids_never_share_a_key(left: tuple[str, str], right: tuple[str, str]) -> None:
    trimmed = [tuple(part.strip(" ") for part in each) for each in (left, right)]
    if all(each[0] and each[0] != "0" for each in trimmed) and trimmed[0] != trimmed[1]:
        keys = [_key(PatientID=each[0], IssuerOfPatientID=each[1]) for each in trimmed]
        assert keys[0] != keys[1]


def _judge(*objects: Attributes) -> Agreed | Ambiguous:
    return judge(identity_of(each, issuer_of_node="", placeholders=("0",)) for each in objects)


def test_one_patient_is_agreed() -> None:
    same = _judge({"PatientID": "1"}, {"PatientID": "1 ", "PatientBirthDate": "19600131"})
    assert same == Agreed(key=same.key if isinstance(same, Agreed) else "")


def test_two_keys_are_ambiguous() -> None:
    found = _judge({"PatientID": "1"}, {"PatientID": "2"})
    assert isinstance(found, Ambiguous)
    assert found.keys == ("1", "2")
    assert "2 patients" in found.because


def test_two_known_birth_dates_are_ambiguous() -> None:
    found = _judge(
        {"PatientID": "1", "PatientBirthDate": "19600131"},
        {"PatientID": "1", "PatientBirthDate": "19610131"},
    )
    assert isinstance(found, Ambiguous)
    assert "birth dates" in found.because
    assert isinstance(
        _judge(
            {"PatientID": "1", "PatientBirthDate": "1960.01.31"},
            {"PatientID": "1", "PatientBirthDate": "19600131"},
        ),
        Agreed,
    )


def test_what_is_no_day_is_no_birth_date_of_another_patient() -> None:
    for born in ("00000000", "1960", "19600231", "196001" + "9" * 40):
        found = _judge(
            {"PatientID": "1", "PatientBirthDate": "19600131"},
            {"PatientID": "1", "PatientBirthDate": born},
        )
        assert found == Agreed(key=IdentityKey("1"))


def test_several_ids_in_one_object_are_ambiguous() -> None:
    found = _judge({"PatientID": ["1", "2"]})
    assert isinstance(found, Ambiguous)
    assert "several Patient IDs" in found.because
