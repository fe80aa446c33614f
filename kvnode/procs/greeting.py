"""What a gateway does per connection and per administrative request, not per key-value request.

Role: HELLO with its session, STATUS, DEFRAG, ALARM, the end of a session.
Caller: procs/gateway.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError as ProtobufDecodeError

from kvnode import __version__
from kvnode._core.conns import Conns
from kvnode._core.sharedword import APPLIED, COMMIT, DAMAGE, SOLE, TERM
from kvnode.base.codes import Code, Kind
from kvnode.base.limits import SESSION_WINDOW
from kvnode.env.clock import random_u64
from kvnode.env.link import Message
from kvnode.env.room import Room
from kvnode.proto import kvnodepb_pb2 as kvnodepb
from kvnode.proto import rpc_pb2 as rpcpb
from kvnode.wire.frames import ONE, Frame

if TYPE_CHECKING:
    from kvnode.procs.gateway import Gateway

log = logging.getLogger("gateway")

PROTOCOL_VERSION = 1
CREDIT_BYTES = 64 << 20
HEARTBEAT_MS = 10_000


class Greeter:
    """Rare requests of one gateway."""

    def __init__(self, gateway: Gateway, conns: Conns, batch_bytes_max: int) -> None:
        self.gateway = gateway
        self.conns = conns
        self.batch_bytes_max = batch_bytes_max
        self.defrags: dict[int, Callable[[int, bytes], None]] = {}
        self.defrag_id = 0
        self.room = Room(gateway.start.layout.state)

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

        if kind == Kind.STATUS:
            answer(Code.OK, self.status().SerializeToString())
        elif kind == Kind.DEFRAG:
            self.defrag_id += 1
            self.defrags[self.defrag_id] = answer
            if not gateway.applier.send(Frame.DEFRAG, ONE.pack(self.defrag_id)):
                del self.defrags[self.defrag_id]
                answer(Code.UNAVAILABLE, b"")
        elif kind in (Kind.ALARM, Kind.SESSION_CLOSE):
            gateway.front.propose_for(conns, conn, generation, rid, size, kind, body)
        else:
            answer(Code.UNKNOWN_KIND, b"")

    def on_applier(self, message: Message) -> None:
        """DEFRAGGED: the answer to a DEFRAG."""
        if message.kind != Frame.DEFRAGGED:
            return
        (number,) = ONE.unpack_from(message.payload)
        answer = self.defrags.pop(number, None)
        if answer is None:
            return
        code = int.from_bytes(message.payload[8:12], "little")
        if code:
            answer(code, message.payload[12:])
        else:
            answer(Code.OK, rpcpb.DefragmentResponse(header=self.header()).SerializeToString())

    def on_applier_down(self) -> None:
        """A defragmentation ended with its applier: who waits hears it."""
        waiting, self.defrags = self.defrags, {}
        for answer in waiting.values():
            answer(Code.UNAVAILABLE, b"the process that defragments ended: try again")
        self.gateway.pump()

    def header(self) -> rpcpb.ResponseHeader:
        """A response header as of now."""
        gateway = self.gateway
        revision = 0
        if gateway.reader is not None:
            revision = gateway.snapshot(newest=True).revision
        return rpcpb.ResponseHeader(
            cluster_id=gateway.start.cluster,
            member_id=gateway.start.member,
            revision=revision,
            raft_term=gateway.words.get(TERM),
        )

    def status(self) -> rpcpb.StatusResponse:
        """etcd's Status of this member."""
        gateway = self.gateway
        words = gateway.words
        commit = words.get(COMMIT)
        size, used = 0, 0
        if gateway.store is not None and gateway.reader is not None:
            # A map that has grown is adopted only while nothing is read.
            gateway.end_snapshot()
            info = gateway.store.info()
            size = (info["last_page"] + 1) * gateway.store.page_bytes
            txn = gateway.store.begin_read()
            used = txn.used_bytes()
            txn.end()
        errors = []
        if damage := words.get(DAMAGE):
            errors.append(f"{damage} findings of damaged data, see the log")
        if self.room.low():
            errors.append(self.room.text())
        return rpcpb.StatusResponse(
            errors=errors,
            header=self.header(),
            version=__version__,
            dbSize=size,
            dbSizeInUse=used,
            dbSizeQuota=gateway.config.quota_backend_bytes,
            leader=gateway.start.member,
            raftIndex=commit & ~SOLE,
            raftTerm=words.get(TERM),
            raftAppliedIndex=words.get(APPLIED),
        )
