"""What a gateway does per connection and per administrative request, not per key-value request.

Role: HELLO with its session, STATUS, DEFRAG, ALARM, the end of a session.
Caller: procs/gateway.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError as ProtobufDecodeError

from kvnode import __version__
from kvnode._core.conns import Conns
from kvnode.api.maintenance import status_of
from kvnode.base.codes import Code, Kind
from kvnode.base.limits import SESSION_WINDOW
from kvnode.env.clock import random_u64
from kvnode.proto import kvnodepb_pb2 as kvnodepb
from kvnode.proto import rpc_pb2 as rpcpb

if TYPE_CHECKING:
    from kvnode.procs.gateway import Gateway

log = logging.getLogger("gateway")

LEASE_QUESTIONS = frozenset({Kind.LEASE_KEEP_ALIVE, Kind.LEASE_TIME_TO_LIVE, Kind.LEASE_LEASES})
PROTOCOL_VERSION = 1
CREDIT_BYTES = 64 << 20
HEARTBEAT_MS = 10_000


class Greeter:
    """Rare requests of one gateway."""

    def __init__(self, gateway: Gateway, conns: Conns, batch_bytes_max: int) -> None:
        self.gateway = gateway
        self.conns = conns
        self.batch_bytes_max = batch_bytes_max

    def session_open(self, session: int, gateway: bool = False, name: str = "") -> bytes:
        """The body of a SESSION_OPEN."""
        return kvnodepb.SessionOpen(
            session=session, gateway=gateway, client_name=name
        ).SerializeToString()

    def on_hello(self, conn: int, generation: int, body: bytes) -> None:
        """Negotiates; opens a session when the client wants a new one."""
        conns = self.conns
        try:
            hello = kvnodepb.Hello.FromString(body)
        except ProtobufDecodeError:
            conns.reject(conn, generation, Code.MALFORMED, b"HELLO")
            return
        if hello.version_min > PROTOCOL_VERSION or hello.version_max < PROTOCOL_VERSION:
            conns.reject(
                conn, generation, Code.MALFORMED,
                f"this node speaks version {PROTOCOL_VERSION}".encode(),
            )
            return
        if hello.session or not hello.want_session:
            self._greet(conn, generation, hello.session)
            return
        session = random_u64()

        def opened(code: int, _: bytes) -> None:
            if code:
                conns.reject(conn, generation, code, b"no session")
            else:
                self._greet(conn, generation, session)

        body = self.session_open(session, name=hello.client_name[:64])
        self.gateway.propose(Kind.SESSION_OPEN, body, opened)

    def _greet(self, conn: int, generation: int, session: int) -> None:
        gateway = self.gateway
        answer = kvnodepb.HelloOk(
            version=PROTOCOL_VERSION,
            server_version=__version__,
            cluster_id=gateway.start.cluster,
            member_id=gateway.start.member,
            session=session,
            window=SESSION_WINDOW,
            max_request_bytes=gateway.config.max_request_bytes,
            credit_bytes=CREDIT_BYTES,
            max_txn_ops=gateway.config.max_txn_ops,
            heartbeat_ms=HEARTBEAT_MS,
        )
        self.conns.greet(
            conn, generation, session, 0, CREDIT_BYTES, answer.SerializeToString()
        )

    def on_request(
        self, conn: int, generation: int, rid: int, size: int, kind: int, body: bytes
    ) -> None:
        """A request that is not a key-value request."""
        gateway = self.gateway
        conns = self.conns

        def answer(code: int, response: bytes) -> None:
            conns.answer_request(conn, generation, rid, size, code, response)

        def defragmented(code: int, detail: bytes) -> None:
            header = gateway.member.header()
            done = rpcpb.DefragmentResponse(header=header).SerializeToString()
            answer(code, detail if code else done)

        if kind == Kind.STATUS:
            answer(Code.OK, status_of(gateway.member, __version__).SerializeToString())
        elif kind == Kind.DEFRAG:
            gateway.member.defragment(defragmented)
        elif kind in LEASE_QUESTIONS:
            gateway.services.keep_alives.calls.ask(kind, body, answer)
        elif kind in (Kind.ALARM, Kind.SESSION_CLOSE):
            gateway.front.propose_for(conns, conn, generation, rid, size, kind, body)
        else:
            answer(Code.UNKNOWN_KIND, b"")
