"""An association that brings objects: pynetdicom's, but for the presentation contexts."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from pynetdicom.ae import ApplicationEntity
from pynetdicom.pdu import A_ASSOCIATE_AC, _PDUType
from pynetdicom.presentation import build_context, build_role

from dicomai.net.limits import Limits
from dicomai.net.presentation_context import Proposal, Result, answered, parted, results
from dicomai.net.upper_layer import Acceptor, Storage
from dicomai.spool.part import Bytes


class StorageAcceptor(Acceptor):
    """One whose presentation contexts are read and answered here.

    Attributes
    ----------
    proposals
        What the peer proposes.
    contexts
        What of it was accepted, by the ID of the context.
    """

    def __init__(self, entity: ApplicationEntity, limits: Limits, storage: Storage) -> None:
        super().__init__(entity, limits, storage)
        self.proposals: tuple[Proposal, ...] = ()
        self.contexts: dict[int, Result] = {}
        self._results: tuple[Result, ...] = ()

    def hear(self, wire: socket.socket, first_pdu: Bytes) -> None:
        """Take the connection, and the request that was read of it already."""
        request, self.proposals = parted(bytes(first_pdu))
        super().hear(wire, request)

    def choose(self, chosen: Mapping[str, Sequence[str]]) -> None:
        """Say for each abstract syntax that is taken the transfer syntaxes, best first."""
        self._results = results(self.proposals, chosen)
        self.contexts = {each.context_id: each for each in self._results if each.accepted}

    def grant(self, roles: Mapping[str, tuple[bool, bool]]) -> None:
        """Say for each SOP class whether the peer may be its SCU, and its SCP."""
        for uid, (scu, scp) in roles.items():
            self.acceptor.add_negotiation_item(build_role(uid, scu_role=scu, scp_role=scp))

    def encoded(self, pdu: _PDUType) -> bytes:
        """Return the bytes of a PDU that is to be sent."""
        encoded = super().encoded(pdu)
        return answered(encoded, self._results) if isinstance(pdu, A_ASSOCIATE_AC) else encoded

    def before_service(self, context_id: int) -> None:
        """Have pynetdicom know the context of a message that it gets."""
        if (context := self.contexts.get(context_id)) is not None:
            known = build_context(context.abstract_syntax, context.transfer_syntax)
            # Not by its setter, which takes odd ones only: some peers have others.
            known._context_id, known.result = context_id, 0
            known._as_scp, known._as_scu = True, False
            self._accepted_cx.setdefault(context_id, known)
