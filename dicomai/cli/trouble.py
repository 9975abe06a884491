"""What a person is told of an error, expected or not."""

from __future__ import annotations

import os
import tempfile
import traceback

from dicomai.errors import DicomaiError, said_by_system


def sentence_of(error: Exception) -> str:
    """Return what is to be said of an error; of a defect, the details are in a private file."""
    match error:
        case DicomaiError():
            return error.sentence
        case OSError():
            return _system_sentence(error)
    return _defect_sentence(error)


def _system_sentence(error: OSError) -> str:
    remedy = ""
    if isinstance(error, PermissionError):
        remedy = " Run this as the service's user, or as another one that may."
    return f"{said_by_system(error)}{remedy}"


def _defect_sentence(defect: Exception) -> str:
    said = f"This is a defect of dicomai, not of your data or settings: {type(defect).__name__}."
    try:
        details, path = tempfile.mkstemp(prefix="dicomai-error-", suffix=".txt", text=True)
        with os.fdopen(details, "w", encoding="utf-8") as file:
            traceback.print_exception(defect, file=file)
    except OSError as trouble:
        why = trouble.strerror or type(trouble).__name__
        return f"{said} Its details could not be written ({why}): mend that, and try again."
    return (
        f"{said} Details are in {path}; please report it with them, after a look for names of "
        "patients."
    )
