"""What an administrator reads in the journal, and what never stands there."""

from __future__ import annotations

import io
import json
import logging
import warnings

import pytest
import structlog
from pydicom import Dataset
from pydicom.config import debug

from dicomai.roles import logs


def test_a_line_carries_the_bound_study_and_job() -> None:
    out = io.StringIO()
    logs.configure("json", "info", out)
    with structlog.contextvars.bound_contextvars(study="1.2.3", job=7):
        structlog.get_logger().info("job done", outcome="delivered", infer_s=1.5)
    line = json.loads(out.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "event": "job done",
        "level": "info",
        "study": "1.2.3",
        "job": 7,
        "outcome": "delivered",
        "infer_s": 1.5,
    }


def test_libraries_may_warn_but_not_chat() -> None:
    out = io.StringIO()
    logs.configure("json", "info", out)
    for library in ("highdicom.sr.sop", "apscheduler.scheduler", "some.other"):
        logging.getLogger(library).info("add segment")
        logging.getLogger(library).warning("a segment is empty")
    structlog.get_logger().info("job done")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == [
        *["a segment is empty"] * 3,
        "job done",
    ]


def test_no_patient_stands_in_a_line_at_info() -> None:
    out = io.StringIO()
    logs.configure("json", "info", out)
    structlog.get_logger().warning(
        "study held",
        patient_id="4711",
        PatientName="Doe^Jane",
        found={"patient_birth_date": "19700101", "keys": 2},
    )
    assert not any(secret in out.getvalue() for secret in ("4711", "Doe", "1970"))
    assert json.loads(out.getvalue())["found"] == {"keys": 2}


def test_debug_shows_the_patient_to_who_asks_for_it() -> None:
    out = io.StringIO()
    logs.configure("json", "debug", out)
    structlog.get_logger().debug("identity compared", patient_id="4711")
    assert json.loads(out.getvalue())["patient_id"] == "4711"


@pytest.mark.parametrize("form", ["json", "console"])
def test_control_characters_of_a_peer_are_written_out(form: logs.LogFormat) -> None:
    out = io.StringIO()
    logs.configure(form, "info", out)
    structlog.get_logger().info("rejected", calling_ae="A\r\n\x1b[31mB\u202e\x9b2J")
    text = out.getvalue()
    assert text.count("\n") == 1
    assert not any(char in text.rstrip("\n") for char in "\r\x1b\u202e\x9b")
    assert "x1b" in text


def test_libraries_speak_through_the_same_chain_and_are_quiet() -> None:
    out = io.StringIO()
    logs.configure("json", "info", out)
    logging.getLogger("apscheduler.executors").info("Running job")
    logging.getLogger("pynetdicom.acse").warning("Association Rejected")
    logging.getLogger("pynetdicom.utils").error("'ascii' codec can't decode byte 0xff")
    logging.getLogger("sqlalchemy.pool").warning("connection %s was lost", 3)
    (line,) = [json.loads(each) for each in out.getvalue().splitlines()]
    assert line["event"] == "connection 3 was lost"
    assert line["logger"] == "sqlalchemy.pool"
    assert line["level"] == "warning"


@pytest.mark.filterwarnings("default")
def test_a_warning_that_quotes_a_name_is_not_logged() -> None:
    out = io.StringIO()
    logs.configure("json", "info", out)
    warnings.warn("Invalid value for VR PN: 'Doe^Jane'", UserWarning, stacklevel=1)
    assert out.getvalue() == ""


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_nor_is_it_where_pydicom_is_imported_later() -> None:
    out = io.StringIO()
    logs.configure("console", "warning", out)
    debug(False, False)  # as pydicom does when it is imported
    Dataset().PatientSex = "Doe^Jane"
    logging.getLogger("pydicom.pixels").warning("Doe^Jane")
    assert out.getvalue() == ""


def test_a_traceback_stays_in_one_json_line() -> None:
    out = io.StringIO()
    logs.configure("json", "info", out)
    try:
        raise ValueError("bad \x1b[2J")
    except ValueError:
        structlog.get_logger().exception("duty failed", duty="sweep")
    line = json.loads(out.getvalue())
    assert "ValueError: bad \\x1b[2J" in line["exception"]
    assert line["duty"] == "sweep"


def test_a_pipe_gets_json_and_no_colour() -> None:
    out = io.StringIO()
    logs.configure("auto", "info", out)
    structlog.get_logger().info("ready")
    json.loads(out.getvalue())
    out = io.StringIO()
    logs.configure("console", "info", out)
    structlog.get_logger().info("ready", port=11112)
    assert "\x1b" not in out.getvalue()
    assert "port=11112" in out.getvalue()


def test_what_is_below_the_level_is_not_written() -> None:
    out = io.StringIO()
    logs.configure("json", "warning", out)
    structlog.get_logger().info("object stored")
    assert out.getvalue() == ""
