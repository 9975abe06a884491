"""A page that sums up: that it is one, and says what it is."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset

from dicomai.findings import Findings
from dicomai.results.gate.error import refuse


def check_page(result: Dataset, findings: Findings, sources: Sequence[Dataset]) -> None:
    """Check that an Encapsulated PDF is whole and says that no one has checked it.

    Where its images name the patient, it has to say that too.
    """
    uid = str(result.SOPInstanceUID)
    if result.MIMETypeOfEncapsulatedDocument != "application/pdf":
        refuse("attributes", uid, "it is not said to be a PDF")
    length = int(result.EncapsulatedDocumentLength)
    document = bytes(result.EncapsulatedDocument)[:length]
    if length not in (len(result.EncapsulatedDocument), len(result.EncapsulatedDocument) - 1):
        refuse("readable", uid, "its document has another length than it says")
    if not document.startswith(b"%PDF-") or b"%%EOF" not in document[-32:]:
        refuse("readable", uid, "its document is no whole PDF")
    if result.VerificationFlag != "UNVERIFIED" or "unverified" not in str(result.DocumentTitle):
        refuse("status", uid, "it does not say that no one has checked it")
    if findings.algorithm.name not in str(result.DocumentTitle):
        refuse("provenance", uid, "its title does not name the model")
    burnt_in = any(str(each.get("BurnedInAnnotation") or "").strip() == "YES" for each in sources)
    if burnt_in and result.BurnedInAnnotation != "YES":
        refuse("status", uid, "it does not say that the patient is burnt into what it shows")
