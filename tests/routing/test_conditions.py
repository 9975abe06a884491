"""Conditions: what their text means, and which texts are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR, keyword_dict

from dicomai.dicom.header import Attributes, AttributeValue
from dicomai.errors import ConfigError
from dicomai.routing.condition import Seen, holds, parse

KEYWORDS = sorted(keyword for keyword in keyword_dict if keyword)
TEXTS = [word for word in KEYWORDS if dictionary_VR(word) in ("CS", "LO", "SH")]


def _holds(text: str, attributes: Attributes, instances: int = 1, node: str = "CT1") -> bool:
    return holds(parse(text), Seen(attributes=attributes, instances=instances, calling_node=node))


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("Modality = CT", "CT", True),
        ("Modality = ct", "CT", True),
        ("Modality = CT", "MR", False),
        ("Modality = CT", None, False),
        ("Modality != CT", "MR", True),
        ("Modality != CT", None, True),
        ("BodyPartExamined in CHEST, THORAX", "THORAX", True),
        ("BodyPartExamined in CHEST,THORAX", "ABDOMEN", False),
        ("SliceThickness <= 3", 3.0, True),
        ("SliceThickness<3", 3.0, False),
        ("SliceThickness = 3", 3.0, True),
        ("SliceThickness = 3.0", 3.0, True),
        ("SliceThickness <= 3", "2,5", False),
        ("SliceThickness <= 3", None, False),
        ("PixelSpacing <= 0.8", [0.7, 0.8], True),
        ("PixelSpacing < 0.8", [0.7, 0.8], False),
        ("PatientAge >= 18", "065Y", True),
        ("PatientAge >= 18", "017Y", False),
        ("PatientAge >= 18", "006M", False),
        ("PatientAge < 006M", "020W", True),
        ("StudyDate >= 20260101", "20260630", True),
        ("StudyDate >= 20260101", "20251231", False),
        ("SeriesDescription ~ (?i)chest", "Thin CHEST 1.0", True),
        ("SeriesDescription ~ ^chest", "Thin chest", False),
        ("SeriesDescription contains lung", "Thorax LUNG", True),
        ("SeriesDescription = =5 mm", "=5 mm", True),
        ("SeriesDescription = 5' (late)", "5' (late)", True),
        ("SeriesDescription in (AP), (LAT)", "(LAT)", True),
        ("SeriesDescription in [1] thin, T1 [post]", "T1 [post]", True),
        ("PatientName = O'BRIEN, J", "O'BRIEN, J", True),
        ("BodyPartExamined = C-SPINE", "C-SPINE", True),
        ("BodyPartExamined = CHEST (PA)", "CHEST (PA)", True),  # as devices write it
        ("BodyPartExamined ~ ^CHEST,ABDOMEN$", "CHEST,ABDOMEN", True),
        ("ImageType contains AXIAL", ["ORIGINAL", "PRIMARY", "AXIAL"], True),
        ("ImageType contains AXI", ["ORIGINAL", "PRIMARY", "AXIAL"], False),
        ("ImageType = ORIGINAL\\PRIMARY", ["ORIGINAL", "PRIMARY"], True),
        ("ImageType = ORIGINAL", ["ORIGINAL", "PRIMARY"], False),
        ("ConvolutionKernel ~ B[34]0", ["B30f", "3"], True),
        ("ContrastBolusAgent present", "Iomeron", True),
        ("ContrastBolusAgent present", "", False),
        ("ContrastBolusAgent absent", None, True),
        ("ContrastBolusAgent absent", "", True),
    ],
)
def test_what_a_condition_means(text: str, value: AttributeValue | None, expected: bool) -> None:
    keyword = text.replace("<", " <").split()[0]
    attributes = {} if value is None else {keyword: value}

    assert _holds(text, attributes) is expected


def test_the_number_of_instances() -> None:
    assert _holds("instances >= 20", {}, instances=20)
    assert not _holds("instances >= 20", {}, instances=19)


def test_the_calling_node() -> None:
    assert _holds("calling_node = CT1", {}, node="CT1")
    assert not _holds("calling_node in CT2, CT3", {}, node="CT1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Modalty = CT", '"Modalty" is no DICOM keyword; "Modality"?'),
        ("instance >= 2", '; "instances"?'),
        ("Modality", "is no condition"),
        ("Modality like CT", "is no condition"),
        ("Modality =", "has no value"),
        ("Modality == CT", '"Modality == CT": == is no operator. Write "Modality = CT".'),
        ("Modality==CT", 'Write "Modality = CT".'),
        ("SliceThickness =< 3", 'Write "SliceThickness <= 3".'),
        ("instances => 20", 'Write "instances >= 20".'),
        ("Modality <> MR", 'Write "Modality != MR".'),
        ("SeriesDescription =~ chest", 'Write "SeriesDescription ~ chest".'),
        ("Modality in CT,", "has no value"),
        ("Modality present CT", 'nothing may follow "present"'),
        ("SliceThickness = thin", "'thin' is no number"),
        ("StudyDate >= 2026", "is no date, as 20260131"),
        ("PatientAge > old", "is no age, as 18 or 018Y"),
        ("SeriesDescription < 3", "is no number, age or date"),
        ("instances ~ 2", "compared with a whole number"),
        ("calling_node ~ CT", "calling_node takes"),
        ("SeriesDescription ~ (", "is no regular expression"),
        ("SeriesDescription ~ (a+)+$", "can take hours"),
        ("SeriesDescription ~ (?:a|a)*$", "can take hours"),
        ("RequestAttributesSequence = 1", "is a sequence"),
        ("__import__('os') = 1", "is no condition"),
        ("Modality = 'CT'", "write CT without quotes"),
        ("Modality = ‘CT’", "write CT without quotes"),
        ('SeriesDescription = "thin chest"', "write thin chest without quotes"),
        ("Modality in 'CT', 'MR'", "write CT without quotes"),
        ("SeriesDescription = ''", 'Write "SeriesDescription absent"'),
        ('Modality != " "', 'Write "Modality present"'),
        ("Modality in []", 'write "Modality in A, B", without brackets'),
        ("Modality in [CT, MR]", 'write "Modality in CT, MR", without brackets'),
        ("SeriesDescription in (thin, thick)", 'write "SeriesDescription in thin, thick"'),
        ("Modality = CT, MR", 'write "Modality in A, B"'),
        ("Modality = CT and BodyPartExamined = CHEST", "an entry of its own"),
        ("ImageType contains [AXIAL]", "none may hold ["),
    ],
)
def test_what_is_no_condition_is_refused_in_a_sentence(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert words in caught.value.sentence


@given(st.sampled_from(TEXTS), st.text("ABCxyz 019_", min_size=1, max_size=12))
def test_a_parsed_condition_reads_as_it_was_written(keyword: str, value: str) -> None:
    if not (value := value.strip()):
        return
    for sign in ("=", "!=", "contains"):
        condition = parse(f"  {keyword}   {sign} {value} ")
        assert str(condition) == f"{keyword} {sign} {value}"
        assert parse(str(condition)) == condition


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_a_config_error(text: str) -> None:
    try:
        condition = parse(text)
    except ConfigError:
        return
    assert parse(str(condition)) == condition


@given(
    st.floats(0, 100).map(lambda each: round(each, 2)),
    st.floats(0, 100).map(lambda each: round(each, 2)),
)
def test_comparisons_agree_with_arithmetic(value: float, bound: float) -> None:
    attributes = {"SliceThickness": value}
    assert _holds(f"SliceThickness <= {bound}", attributes) == (value <= bound)
    assert _holds(f"SliceThickness > {bound}", attributes) == (value > bound)
    assert _holds(f"SliceThickness = {bound}", attributes) == (value == bound)


@given(st.text(max_size=20), st.text(max_size=20))
def test_equal_and_not_equal_are_opposites(value: str, wanted: str) -> None:
    try:
        parse(f"SeriesDescription = {wanted}")
    except ConfigError:
        return
    attributes = {"SeriesDescription": value}
    equal = _holds(f"SeriesDescription = {wanted}", attributes)
    assert _holds(f"SeriesDescription != {wanted}", attributes) != equal


@pytest.mark.timeout(60)  # the whole of the value would take days
def test_a_long_value_costs_a_regular_expression_little() -> None:
    assert not _holds("SeriesDescription ~ a*a*a*b$", {"SeriesDescription": "a" * 100_000})
