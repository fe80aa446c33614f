"""A tiny node for client tests: a ROUTER that speaks the native protocol over a toy store.

Single revisions, no history: enough of etcd's semantics for the client and the command line. It
counts every execution, checks the protocol strictly, and can be told to misbehave.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import zmq

from kvnode.base.codes import Code, Kind
from kvnode.proto import kv_pb2, kvnodepb_pb2, rpc_pb2
from kvnode.wire import native
from kvnode.wire.native import HelloOk, Opcode

CLUSTER, MEMBER, TERM = 14841639068965178418, 10276657743932975437, 2


class Refused(Exception):
    def __init__(self, code: Code) -> None:
        self.code = code


@dataclass
class Store:
    """The newest version of each key; outcomes a session."""

    revision: int = 1
    compacted: int = 0
    next_session: int = 1000
    keys: dict[bytes, Any] = field(default_factory=dict)
    sessions: dict[int, dict[int, bytes]] = field(default_factory=dict)
    executed: Counter[tuple[int, int]] = field(default_factory=Counter)

    def header(self) -> Any:
        return rpc_pb2.ResponseHeader(
            cluster_id=CLUSTER, member_id=MEMBER, revision=self.revision, raft_term=TERM
        )

    def select(self, request: Any) -> list[bytes]:
        key, end = request.key, request.range_end
        if not key:
            raise Refused(Code.EMPTY_KEY)
        if not end:
            return [key] if key in self.keys else []
        return sorted(k for k in self.keys if k >= key and (end == b"\0" or k < end))

    def put(self, request: Any, revision: int) -> Any:
        if not request.key:
            raise Refused(Code.EMPTY_KEY)
        old = self.keys.get(request.key)
        if request.ignore_value and old is None:
            raise Refused(Code.KEY_NOT_FOUND)
        new = kv_pb2.KeyValue(
            key=request.key,
            value=old.value if request.ignore_value else request.value,
            mod_revision=revision,
            create_revision=old.create_revision if old else revision,
            version=old.version + 1 if old else 1,
            lease=request.lease,
        )
        self.keys[request.key] = new
        return rpc_pb2.PutResponse(prev_kv=old if request.prev_kv else None)

    def range(self, request: Any) -> Any:
        if request.revision > self.revision:
            raise Refused(Code.FUTURE_REV)
        if 0 < request.revision < self.compacted:
            raise Refused(Code.COMPACTED)
        kvs = [self.keys[k] for k in self.select(request)]
        count = len(kvs)
        if request.sort_order:
            name = ("key", "version", "create_revision", "mod_revision", "value")
            kvs.sort(
                key=lambda kv: getattr(kv, name[request.sort_target]),
                reverse=request.sort_order == 2,
            )
        more = 0 < request.limit < count
        kvs = kvs[: request.limit or None]
        if request.keys_only:
            kvs = [kv_pb2.KeyValue.FromString(kv.SerializeToString()) for kv in kvs]
            for kv in kvs:
                kv.value = b""
        if request.count_only:
            kvs = []
        return rpc_pb2.RangeResponse(kvs=kvs, more=more, count=count)

    def delete(self, request: Any) -> Any:
        gone = [self.keys.pop(k) for k in self.select(request)]
        return rpc_pb2.DeleteRangeResponse(
            deleted=len(gone), prev_kvs=gone if request.prev_kv else []
        )

    def holds(self, compare: Any) -> bool:
        kv = self.keys.get(compare.key, kv_pb2.KeyValue())
        name = compare.WhichOneof("target_union") or "version"
        have, want = getattr(kv, name), getattr(compare, name)
        if name == "value" and compare.key not in self.keys:
            return False
        return (have == want, have > want, have < want, have != want)[compare.result]

    def txn(self, request: Any, revision: int) -> Any:
        ok = all(self.holds(c) for c in request.compare)
        response = rpc_pb2.TxnResponse(succeeded=ok)
        for op in request.success if ok else request.failure:
            name = op.WhichOneof("request")
            body = getattr(op, name)
            answer = {
                "request_range": self.range,
                "request_put": lambda b: self.put(b, revision),
                "request_delete_range": self.delete,
                "request_txn": lambda b: self.txn(b, revision),
            }[name](body)
            answer.header.revision = revision
            getattr(response.responses.add(), name.replace("request", "response")).CopyFrom(answer)
        return response

    def execute(self, kind: int, body: bytes) -> bytes:
        next_revision = self.revision + 1
        response: Any
        if kind == Kind.PUT:
            response = self.put(rpc_pb2.PutRequest.FromString(body), next_revision)
            self.revision = next_revision
        elif kind == Kind.RANGE:
            response = self.range(rpc_pb2.RangeRequest.FromString(body))
        elif kind == Kind.DELETE_RANGE:
            response = self.delete(rpc_pb2.DeleteRangeRequest.FromString(body))
            self.revision += bool(response.deleted)
        elif kind == Kind.TXN:
            response = self.txn(rpc_pb2.TxnRequest.FromString(body), next_revision)
            self.revision = next_revision
        elif kind == Kind.COMPACT:
            revision = rpc_pb2.CompactionRequest.FromString(body).revision
            if revision <= self.compacted:
                raise Refused(Code.COMPACTED)
            if revision > self.revision:
                raise Refused(Code.FUTURE_REV)
            self.compacted = revision
            response = rpc_pb2.CompactionResponse()
        elif kind in (Kind.PUT_BATCH, Kind.PUT_BATCH_ONE, Kind.TXN_BATCH):
            response = self.batch(kind, body)
        elif kind == Kind.STATUS:
            response = rpc_pb2.StatusResponse(
                version="3.7.0",
                dbSize=20480,
                leader=MEMBER,
                raftIndex=26,
                raftTerm=TERM,
                raftAppliedIndex=26,
                dbSizeInUse=12288,
                storageVersion="3.7.0",
                dbSizeQuota=2147483648,
            )
        elif kind == Kind.DEFRAG:
            response = rpc_pb2.DefragmentResponse()
        else:
            raise Refused(Code.UNKNOWN_KIND)
        response.header.CopyFrom(self.header())
        return bytes(response.SerializeToString())

    def batch(self, kind: int, body: bytes) -> Any:
        answer = kvnodepb_pb2.BatchResponse(first_revision=self.revision + 1)
        if kind == Kind.TXN_BATCH:
            items = kvnodepb_pb2.TxnBatch.FromString(body).txns
        else:
            items = kvnodepb_pb2.PutBatch.FromString(body).puts
        one = self.revision + 1
        for index, item in enumerate(items):
            revision = one if kind == Kind.PUT_BATCH_ONE else self.revision + 1
            try:
                self.txn(item, revision) if kind == Kind.TXN_BATCH else self.put(item, revision)
            except Refused as refused:
                answer.refused.add(index=index, code=refused.code)
                continue
            answer.applied += 1
            self.revision = revision
        answer.last_revision = self.revision
        return answer


class FakeNode:
    """The ROUTER and its thread. Faults are plain attributes, read for each message."""

    def __init__(self, store: Store | None = None, **limits: int) -> None:
        self.store = store or Store()
        self.limits = {"window": 64, "credit_bytes": 1 << 20, "heartbeat_ms": 2000, **limits}
        self.drop_answers = 0  # messages of answers to lose
        self.mute = False  # hears everything, says nothing
        self.refuse_next: list[Code] = []  # codes for the next requests, executed or not
        self.hello_error: tuple[int, str] | None = None
        self.garbage_next = False
        self.hold = threading.Event()  # cleared: requests wait unanswered
        self.hold.set()
        self.hellos: list[Any] = []
        self.messages: list[int] = []  # requests in each REQUESTS message
        self.pings = 0
        self.goodbyes: list[int] = []
        self.closed_sessions: list[int] = []
        self.inflight_max = 0
        self.violations: list[str] = []
        self._stop = False
        self._held: list[tuple[bytes, native.Request, int]] = []
        self._inflight: Counter[bytes] = Counter()
        self._session_of: dict[bytes, int] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> FakeNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        assert not self.violations, self.violations

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        while not self._stop:
            if self._held and self.hold.is_set():
                self._release()
            if self._socket.poll(5):
                peer, *frames = self._socket.recv_multipart()
                self._on_message(peer, frames[0])
        self._socket.close(0)

    def _say(self, peer: bytes, message: bytes) -> None:
        if not self.mute:
            self._socket.send_multipart([peer, message])

    def _on_message(self, peer: bytes, message: bytes) -> None:
        header = native.decode_header(message)
        if header.opcode == Opcode.HELLO:
            self._on_hello(peer, native.decode_hello(message))
        elif header.opcode == Opcode.PING:
            self.pings += 1
            self._say(peer, native.encode_message(Opcode.PONG))
        elif header.opcode == Opcode.GOODBYE:
            self.goodbyes.append(header.session)
        elif header.opcode == Opcode.REQUESTS:
            self._on_requests(peer, header, message)
        else:
            self.violations.append(f"opcode {header.opcode}")

    def _on_hello(self, peer: bytes, hello: Any) -> None:
        self.hellos.append(hello)
        if self.hello_error:
            self._say(peer, native.encode_error(*self.hello_error))
            return
        session = hello.session
        if hello.want_session and session not in self.store.sessions:
            session = self.store.next_session
            self.store.next_session += 1
            self.store.sessions[session] = {}
        self._session_of[peer] = session
        self._say(
            peer,
            native.encode_hello_ok(
                HelloOk(
                    version=1,
                    server_version="0.1.0",
                    cluster_id=CLUSTER,
                    member_id=MEMBER,
                    session=session,
                    max_request_bytes=1 << 20,
                    max_txn_ops=128,
                    **self.limits,
                )
            ),
        )

    def _on_requests(self, peer: bytes, header: native.Header, message: bytes) -> None:
        if peer not in self._session_of:
            self._say(peer, native.encode_error(Code.MALFORMED, "HELLO comes first"))
            return
        if header.session not in (0, self._session_of[peer]):
            self.violations.append(f"session {header.session}")
        requests = list(native.decode_requests(message, header.items))
        self.messages.append(len(requests))
        for request in requests:
            self._inflight[peer] += len(request.body) + native.ITEM_BYTES
            if request.sequence >= header.lowest_open + self.limits["window"]:
                self.violations.append(f"sequence {request.sequence} beyond the window")
        self.inflight_max = max(self.inflight_max, self._inflight[peer])
        if self._inflight[peer] > self.limits["credit_bytes"]:
            self.violations.append(f"{self._inflight[peer]} bytes exceed the credit")
        if not self.hold.is_set():
            self._held += [(peer, request, header.session) for request in requests]
            return
        self._answer(peer, [self._serve(peer, r, header.session) for r in requests])

    def _release(self) -> None:
        held, self._held = self._held, []
        for peer, request, session in reversed(held):  # answers come in any order
            self._answer(peer, [self._serve(peer, request, session)])

    def _answer(self, peer: bytes, answers: list[tuple[int, int, int, bytes]]) -> None:
        if self.drop_answers > 0:
            self.drop_answers -= 1
            return
        if self.garbage_next:
            self.garbage_next = False
            self._say(peer, b"not a message")
            return
        self._say(peer, native.encode_answers(answers))

    def _serve(
        self, peer: bytes, request: native.Request, session: int
    ) -> tuple[int, int, int, bytes]:
        self._inflight[peer] -= len(request.body) + native.ITEM_BYTES
        if request.kind == Kind.SESSION_CLOSE:
            message = kvnodepb_pb2.SessionClose.FromString(request.body)
            self.closed_sessions.append(message.session)
            return request.id, 0, 0, b""
        if self.refuse_next:
            code = self.refuse_next.pop(0)
            if code is Code.OUTCOME_UNKNOWN:
                self.store.sessions.pop(session, None)
            return request.id, code, 0, b"told to"
        outcomes = self.store.sessions.get(session)
        if request.sequence:
            if outcomes is None:
                return request.id, Code.OUTCOME_UNKNOWN, 0, b""
            if request.sequence in outcomes:
                return request.id, 0, 1, outcomes[request.sequence]
        try:
            body = self.store.execute(request.kind, request.body)
        except Refused as refused:
            return request.id, refused.code, 0, b""
        self.store.executed[session, request.sequence] += 1
        if request.sequence and outcomes is not None:
            outcomes[request.sequence] = body
        return request.id, 0, 0, body
