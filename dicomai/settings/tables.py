"""The tables of the configuration file, as pydantic checks them one by one."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt
from pydicom.charset import python_encoding
from pydicom.datadict import tag_for_keyword

from dicomai.models.device import DEVICE_PATTERN
from dicomai.net.limits import Limits
from dicomai.net.node import ANY_NODE, Node
from dicomai.net.tls import PORT as TLS_PORT
from dicomai.net.tls import TlsFiles, pin_of
from dicomai.routing.pull import Pull
from dicomai.routing.route import Route

# It becomes part of a file's name in the spool.
_NODE_NAME: Final = re.compile(r"\w[\w .-]*")
_NODE_NAME_BYTES: Final = 64


def _ae_title(value: str) -> str:
    # PS3.5 6.2, VR AE; PS3.8 7.1.1.4.
    if not 1 <= len(value.strip()) <= 16 or not value.isascii() or not value.isprintable():
        raise ValueError(f"{value!a} is no AE title: 1 to 16 printable ASCII characters")
    if "\\" in value:
        raise ValueError(f"{value!a} is no AE title: it has a backslash")
    return value.strip()


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"no time zone {value!a}; write it as Europe/Berlin") from error
    return value


def _url(value: str) -> str:
    if value and not value.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
        raise ValueError(
            "no database of ours: leave it empty, or write postgresql://user@host/name"
        )
    return value


def _node(node: Node) -> Node:
    if not _NODE_NAME.fullmatch(node.name) or len(node.name.encode()) > _NODE_NAME_BYTES:
        raise ValueError(
            f"{node.name!a} is no name of a node: letters, digits, spaces, points, hyphens and "
            f"underscores, {_NODE_NAME_BYTES} bytes at most"
        )
    _ae_title(node.ae_title)
    for address in node.addresses:
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError as error:
            raise ValueError(f"address {address!a} is no IP address or network") from error
    if bool(node.host) != bool(node.port) or not 0 <= node.port <= 65535:
        raise ValueError("host and port go together, and a port is 1 to 65535")
    if node.host and node.ae_title == ANY_NODE:
        raise ValueError("a node that gets results needs an AE title of its own, not *")
    if node.max_associations < 0:
        raise ValueError("max_associations is 0, for as many as the receiver takes, or more")
    if node.certificate:
        pin_of(node.certificate)
    if (node.certificate or node.certificate_required) and not node.tls:
        raise ValueError("a node that is known by its certificate needs tls = true")
    if "commit" in node.may and not node.host:
        raise ValueError("a node that may commit needs host and port: there it is told")
    if node.commitment and not node.host:
        raise ValueError("a node that is asked for storage commitment needs host and port")
    if node.commitment_s <= 0:
        raise ValueError("commitment_s must be more than 0")
    if node.quiet_s <= 0 or node.floor_s < 0:
        raise ValueError("quiet_s must be more than 0 and floor_s not less")
    if node.charset_default and node.charset_default not in python_encoding:
        raise ValueError(
            f"{node.charset_default!a} is no Specific Character Set (PS3.3 C.12.1.1.2)"
        )
    return node


def _pull(pull: Pull) -> Pull:
    if pull.every_s < 1 or pull.days < 0:
        raise ValueError("every_s must be 1 or more, and days 0 or more")
    for each in pull.keys:
        keyword, found, _ = each.partition("=")
        if not found or tag_for_keyword(keyword) is None:
            raise ValueError(f"{each!a} is no KEYWORD=VALUE with a keyword of DICOM")
    return pull


def _path(value: object) -> object:
    return None if value == "" else value


OptionalPath = Annotated[Path | None, BeforeValidator(_path)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class ServiceSettings(Section):
    """What the whole service shares."""

    data: Annotated[
        Path,
        Field(
            description="Folder of spool, archive, quarantine, models and the embedded database; "
            "relative to this file."
        ),
    ] = Path()
    timezone: Annotated[
        str,
        AfterValidator(_zone),
        Field(description="Time zone of the modalities, where objects do not say."),
    ] = "UTC"


class DatabaseSettings(Section):
    """Where the catalogue and the queue live."""

    url: Annotated[
        str,
        AfterValidator(_url),
        Field(
            description="postgresql://user:password@host/name; empty: SQLite in the data folder."
        ),
    ] = ""


class ReceiverSettings(Section):
    """The DICOM node that takes studies."""

    ae_title: Annotated[str, AfterValidator(_ae_title), Field(description="What peers call.")] = (
        "DICOMAI"
    )
    host: Annotated[str, Field(description="Address to listen on; 0.0.0.0: every one.")] = "0.0.0.0"  # noqa: S104  a PACS calls from elsewhere; unknown callers are rejected
    port: Annotated[int, Field(ge=1, le=65535, description="TCP port to listen on.")] = 11112
    reserve_bytes: Annotated[
        int,
        Field(ge=0, description="Free space that reception leaves: below it objects are refused."),
    ] = 2_000_000_000
    max_associations: Annotated[
        int, Field(ge=1, description="Associations at a time; more are rejected for now.")
    ] = 50
    processes: Annotated[
        int,
        Field(ge=1, le=64, description="Receiver processes that share the port."),
    ] = 1
    max_object_bytes: Annotated[
        int, Field(ge=1, description="Larger objects are refused, and nothing of them is kept.")
    ] = 10_000_000_000
    silence_s: Annotated[
        float, Field(gt=0, description="A peer that sends nothing for so long is cut off.")
    ] = 120.0
    min_bytes_per_s: Annotated[
        float,
        Field(
            ge=0,
            description="A peer that sends an object slower than this, seen over silence_s, is "
            "cut off.",
        ),
    ] = 1000.0

    @property
    def limits(self) -> Limits:
        """What one association may take."""
        return Limits(
            object_bytes=self.max_object_bytes,
            silence_s=self.silence_s,
            bytes_per_s=self.min_bytes_per_s,
        )


class TlsSettings(Section):
    """TLS for the receiver and for what we call (PS3.15 B.12)."""

    certificate: Annotated[
        OptionalPath,
        Field(
            description="Our certificate, and after it those between it and its authority; PEM, "
            "relative to this file. With it the receiver takes TLS."
        ),
    ] = None
    key: Annotated[
        OptionalPath,
        Field(description="Its private key, without a password; empty: in the same file."),
    ] = None
    authorities: Annotated[
        OptionalPath,
        Field(
            description="Certificates of the authorities whose peers we believe; empty: the "
            "system's for those that we call, and no certificate is asked of those that call us."
        ),
    ] = None
    port: Annotated[
        int, Field(ge=1, le=65535, description="TCP port to listen on for TLS; dicom-tls is 2762.")
    ] = TLS_PORT
    only: Annotated[
        bool, Field(description="Nothing is taken without TLS: receiver.port stays closed.")
    ] = False

    @property
    def files(self) -> TlsFiles:
        """Where our side of TLS lies."""
        return TlsFiles(certificate=self.certificate, key=self.key, authorities=self.authorities)


class QuerySettings(Section):
    """Where peers ask what the archive has, and fetch it (C-FIND, C-GET, C-MOVE)."""

    port: Annotated[
        int | None,
        Field(ge=1, le=65535, description="TCP port to listen on; without it nobody may ask."),
    ] = None
    tls: Annotated[
        bool, Field(description="The port takes TLS and nothing else, with the files of [tls].")
    ] = False
    max_associations: Annotated[
        int, Field(ge=1, description="Associations at a time; more are rejected for now.")
    ] = 20


class WorkerSettings(Section):
    """How analyses run."""

    device: Annotated[
        str,
        Field(
            pattern=DEVICE_PATTERN,
            description="auto (a GPU where there is one), cpu, cuda or cuda:0.",
        ),
    ] = "auto"
    warm_bytes: Annotated[
        int,
        Field(
            gt=0,
            description="What the weights of models that stay loaded on a device may take; the "
            "least recently used go first.",
        ),
    ] = 4 * 2**30
    lease_s: Annotated[
        float, Field(gt=0, description="A job whose worker shows no progress for so long is free.")
    ] = 60.0
    deadline_s: Annotated[
        float,
        Field(
            gt=0,
            description=(
                "An analysis that takes longer is killed and failed; a retrieval or delivery goes "
                "on later."
            ),
        ),
    ] = 3600.0
    stop_s: Annotated[
        float, Field(gt=0, description="SIGTERM: jobs are given back within this time.")
    ] = 30.0
    ageing_s: Annotated[
        float,
        Field(gt=0, description="One step of priority is worth so much waiting time."),
    ] = 600.0


class DecideSettings(Section):
    """When a study is whole, and whose it is."""

    patience_s: Annotated[
        float,
        Field(
            gt=0,
            description="After the last object, gaps, open associations and silent hosts hold a "
            "decision up no longer than this.",
        ),
    ] = 900.0
    input_wait_s: Annotated[
        float,
        Field(
            gt=0,
            description="A prior or a further series that a model takes is waited for no longer "
            "than this, while routes.inputs_from is asked for it.",
        ),
    ] = 600.0
    placeholder_ids: Annotated[
        tuple[str, ...],
        Field(description="Patient IDs that stand for none, as an empty one does."),
    ] = ("0", "UNKNOWN", "ANONYMOUS", "NONE")


class RetentionSettings(Section):
    """What is kept, for how long."""

    received_days: Annotated[
        float, Field(ge=0, description="Received studies, after their last object.")
    ] = 30.0
    produced_days: Annotated[float, Field(ge=0, description="Our own results.")] = 365.0
    committed_days: Annotated[
        float,
        Field(
            ge=0,
            description='Studies of which a node with "commit" in its `may` was promised '
            "something, after the promise: until then nothing of them goes, not even to make room.",
        ),
    ] = 365.0
    jobs_days: Annotated[
        float,
        Field(
            ge=0,
            description="Finished jobs in the queue's table; analyses at least as long as their "
            "results.",
        ),
    ] = 90.0
    reserve_bytes: Annotated[
        NonNegativeInt,
        Field(description="Free space below which the oldest finished studies go earlier."),
    ] = 5_000_000_000


class LogSettings(Section):
    """What is logged, and how."""

    format: Annotated[
        Literal["auto", "json", "console"],
        Field(description="auto: colours on a terminal, else one JSON object a line."),
    ] = "auto"
    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="No patient's name or ID stands in a line of info or above."),
    ] = "info"


class Document(Section):
    service: ServiceSettings = ServiceSettings()
    database: DatabaseSettings = DatabaseSettings()
    receiver: ReceiverSettings = ReceiverSettings()
    tls: TlsSettings = TlsSettings()
    query: QuerySettings = QuerySettings()
    worker: WorkerSettings = WorkerSettings()
    decide: DecideSettings = DecideSettings()
    retention: RetentionSettings = RetentionSettings()
    log: LogSettings = LogSettings()
    nodes: tuple[Annotated[Node, AfterValidator(_node)], ...] = ()
    routes: tuple[Route, ...] = ()
    pulls: tuple[Annotated[Pull, AfterValidator(_pull)], ...] = ()


TABLES: Final[Mapping[str, type[Node] | type[Route] | type[Pull]]] = {
    "nodes": Node,
    "routes": Route,
    "pulls": Pull,
}
SECTIONS: Final[Mapping[str, type[Section]]] = {
    name: field.annotation
    for name, field in Document.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
