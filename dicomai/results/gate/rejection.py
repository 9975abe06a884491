"""A note that withdraws results: all of them, of this patient, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset

from dicomai.results.gate.classes import KO
from dicomai.results.gate.codes import code_of
from dicomai.results.gate.error import refuse
from dicomai.results.gate.reading import opened, strictly_read

_SAME = (
    "StudyInstanceUID",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "IssuerOfPatientID",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
)
# Quality, patient safety, wrong worklist entry, retention (IHE RAD, IOCM).
_REJECTING = frozenset({"113001", "113037", "113038", "113039"})


def check_rejection(
    octets: bytes,
    results: Sequence[Dataset],
    reason: str,
    *,
    reissued: Dataset | None = None,
    replaced: Sequence[Dataset] = (),
) -> None:
    """Return when a note rejects just these results, for this reason.

    Parameters
    ----------
    reissued
        One of those that take their place for a corrected patient or procedure: the note has its
        identity, and says so; None: they are taken back.
    replaced
        What the results took the place of, for another patient or procedure: the note rejects
        these too, and has the results' identity.

    Raises
    ------
    GateError
        Names the rule that it breaks.
    """
    note = opened(octets)
    with strictly_read(note):
        _check_identity(note, results if reissued is None else (reissued,))
        _check(note, (*results, *replaced), reason, "113037" if reissued is None else "113038")


def _check_identity(note: Dataset, like: Sequence[Dataset]) -> None:
    uid = str(note.SOPInstanceUID)
    for keyword in _SAME:
        for result in like:
            if str(note.get(keyword) or "") != str(result.get(keyword) or ""):
                refuse("identity", uid, f"{keyword} differs from that of {result.SOPInstanceUID}")


def _check(note: Dataset, results: Sequence[Dataset], reason: str, title_code: str) -> None:
    uid = str(note.SOPInstanceUID)
    if note.SOPClassUID != KO or note.Modality != "KO":
        refuse("attributes", uid, "it is no Key Object Selection")
    if uid in {str(result.SOPInstanceUID) for result in results} or str(note.SeriesInstanceUID) in {
        str(result.SeriesInstanceUID) for result in results
    }:
        refuse("identity", uid, "it claims to be one of the results that it rejects")
    title = note.ConceptNameCodeSequence[0]
    if (code_of(title), title.CodingSchemeDesignator) != (title_code, "DCM"):
        refuse("content", uid, "its title does not reject")
    for result in results:
        if result.SOPClassUID == KO and code_of(result.ConceptNameCodeSequence[0]) in _REJECTING:
            refuse("content", uid, f"it rejects another rejection note, {result.SOPInstanceUID}")
    rejected = {
        str(each.ReferencedSOPInstanceUID): str(each.ReferencedSOPClassUID)
        for item in note.ContentSequence
        for each in item.get("ReferencedSOPSequence") or ()
    }
    wanted = {str(each.SOPInstanceUID): str(each.SOPClassUID) for each in results}
    if rejected != wanted:
        refuse("content", uid, "it does not reject just the results of the analysis")
    listed = {
        (study.StudyInstanceUID, series.SeriesInstanceUID, each.ReferencedSOPInstanceUID)
        for study in note.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for each in series.ReferencedSOPSequence
    }
    places = {
        (each.StudyInstanceUID, each.SeriesInstanceUID, each.SOPInstanceUID) for each in results
    }
    if listed != places:
        refuse("references", uid, "its evidence is not the results of the analysis")
    said = " ".join(str(item.get("TextValue", "")) for item in note.ContentSequence)
    if reason not in said:
        refuse("content", uid, "it does not say why")
