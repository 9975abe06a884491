"""Presentation contexts in bytes, beside pynetdicom's reading and writing of the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext, build_context, negotiate_as_acceptor

from dicomai.net.presentation_context import Proposal, answered, parted, results

CLASSES = ["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1", "1.2.3.4.5"]
SYNTAXES = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90", "1.2.3"]
UIDS = st.lists(st.sampled_from(SYNTAXES), min_size=1, unique=True)
PROPOSED = st.lists(st.tuples(st.sampled_from(CLASSES), UIDS), max_size=128)
CHOSEN = st.dictionaries(st.sampled_from(CLASSES), UIDS)


def contexts_of(proposed: list[tuple[str, list[str]]]) -> list[PresentationContext]:
    made = []
    for number, (abstract_syntax, syntaxes) in enumerate(proposed):
        context = PresentationContext()
        context.context_id = 2 * number + 1
        context.abstract_syntax = UID(abstract_syntax)
        context.transfer_syntax = [UID(syntax) for syntax in syntaxes]
        made.append(context)
    return made


def association(contexts: list[PresentationContext], *, answer: bool) -> A_ASSOCIATE:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "CT1", "DICOMAI"
    longest, ours = MaximumLengthNotification(), ImplementationClassUIDNotification()
    longest.maximum_length_received = 131072
    ours.implementation_class_uid = "1.2.3"
    primitive.user_information = [longest, ours]
    if answer:
        primitive.result, primitive.result_source = 0, 1
        primitive.presentation_context_definition_results_list = contexts
    else:
        primitive.presentation_context_definition_list = contexts
    return primitive


@given(proposed=PROPOSED)
def test_a_request_is_parted_into_its_contexts_and_what_pynetdicom_reads(
    proposed: list[tuple[str, list[str]]],
) -> None:
    whole = A_ASSOCIATE_RQ(association(contexts_of(proposed), answer=False)).encode()
    without, proposals = parted(whole)
    assert without == A_ASSOCIATE_RQ(association([], answer=False)).encode()
    assert proposals == tuple(
        Proposal(2 * number + 1, abstract_syntax, tuple(syntaxes))
        for number, (abstract_syntax, syntaxes) in enumerate(proposed)
    )


@given(proposed=PROPOSED, chosen=CHOSEN)
def test_an_answer_says_what_pynetdicom_would(
    proposed: list[tuple[str, list[str]]], chosen: dict[str, list[str]]
) -> None:
    theirs, _ = negotiate_as_acceptor(
        contexts_of(proposed), [build_context(uid, syntaxes) for uid, syntaxes in chosen.items()]
    )
    _, proposals = parted(A_ASSOCIATE_RQ(association(contexts_of(proposed), answer=False)).encode())
    ours = answered(
        A_ASSOCIATE_AC(association([], answer=True)).encode(), results(proposals, chosen)
    )
    assert ours == A_ASSOCIATE_AC(association(theirs, answer=True)).encode()
