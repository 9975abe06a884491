"""Logs: one line per event, JSON for machines or text for people, and no patient in either.

Whatever this process logs, by structlog or by the standard library (pynetdicom, SQLAlchemy,
APScheduler), goes through one chain to one stream. systemd's journal or the container's engine
keeps it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

# Keys that name a patient. They may be logged, but are seen at level debug only.
PATIENT_KEYS: Final = frozenset(
    key.replace("_", "")
    for key in (
        "patient",
        "patient_name",
        "patient_id",
        "patient_key",
        "patient_birth_date",
        "birth_date",
        "other_patient_ids",
        "other_patient_names",
        "identity_key",
    )
)

# Libraries may warn an administrator; some tell even then more than is to be read.
_LIBRARIES: Final = logging.WARNING
_QUIET: Final[Mapping[str, int]] = {
    "pynetdicom": logging.ERROR,
    # Our own lines say the same with names; what a handler of ours raises is pynetdicom.events'.
    "pynetdicom.transport": logging.CRITICAL,
    "pynetdicom.acse": logging.CRITICAL,
    "pynetdicom.assoc": logging.CRITICAL,
    # A page for each AE title that is no ASCII; whoever calls himself so is rejected in one line.
    "pynetdicom.utils": logging.CRITICAL,
    # Both quote values of data sets, names of patients among them.
    "pydicom": logging.CRITICAL,
    "py.warnings": logging.CRITICAL,
}

# C0 and C1 controls, DEL, line and paragraph separators, what turns the direction of text, and
# halves of letters: what stands for a byte of a file's name that is no UTF-8.
_CONTROLS: Final[Mapping[int, str]] = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        0x2028,
        0x2029,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
    )
}
_CONTROLS_IN_TRACEBACK: Final[Mapping[int, str]] = {
    code: text for code, text in _CONTROLS.items() if code not in (0x09, 0x0A)
}

# structlog's own type of an event.
_Event = MutableMapping[str, Any]


def escaped(text: str) -> str:
    r"""Return text whose control characters are written out, as \x1b."""
    return text.translate(_CONTROLS)


def configure(format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:  # noqa: A002 - the setting's name
    """Send every log line of this process through one chain; may be called again.

    Parameters
    ----------
    format
        ``json``, ``console``, or ``auto``: console on a terminal, else JSON.
    level
        The least level that is written. At ``debug`` patients' names and ids are shown too.
    stream
        Where to; None: stderr.
    """
    out = sys.stderr if stream is None else stream
    number = getattr(logging, level.upper())
    chain: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    if number > logging.DEBUG:
        chain.append(_without_patient)
    as_text = format == "console" or (format == "auto" and out.isatty())
    structlog.configure(
        processors=[*chain, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_names: logging.getLogger("dicomai"),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*chain, _name_library],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _without_controls,
                *_renderers(as_text=as_text, colours=as_text and out.isatty()),
            ],
        )
    )
    if number > logging.DEBUG:
        # A library sets its own level as it is imported (pydicom), which may come later.
        handler.addFilter(_is_to_be_read)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number if number == logging.DEBUG else max(number, _LIBRARIES))
    logging.getLogger("dicomai").setLevel(number)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a log that can't be written must not end the work
    for name, least in _QUIET.items():
        logger = logging.getLogger(name)
        logger.setLevel(number if number == logging.DEBUG else least)
        logger.handlers.clear()
        logger.propagate = True


def _is_to_be_read(record: logging.LogRecord) -> bool:
    return all(
        record.levelno >= least
        for name, least in _QUIET.items()
        if f"{record.name}.".startswith(f"{name}.")
    )


def _renderers(*, as_text: bool, colours: bool) -> list[structlog.typing.Processor]:
    if as_text:
        return [
            structlog.dev.ConsoleRenderer(
                colors=colours, timestamp_key="time", sort_keys=False, pad_event_to=0
            )
        ]
    return [
        structlog.processors.JSONRenderer(default=str),
    ]


def _name_library(_logger: Any, _method: str, event: _Event) -> _Event:
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        event["logger"] = record.name
    return event


def _without_patient(_logger: Any, _method: str, event: _Event) -> _Event:
    for key in [key for key in event if _names_patient(key)]:
        del event[key]
    for key, value in event.items():
        event[key] = _pruned(value)
    return event


def _names_patient(key: object) -> bool:
    return isinstance(key, str) and key.replace("_", "").lower() in PATIENT_KEYS


def _pruned(value: object) -> object:
    if isinstance(value, dict):
        return {key: _pruned(each) for key, each in value.items() if not _names_patient(key)}
    return value


def _without_controls(_logger: Any, _method: str, event: _Event) -> _Event:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = value.translate(
                _CONTROLS_IN_TRACEBACK if key == "exception" else _CONTROLS
            )
    return event
