"""A whole member in one process, without links, disk or clock: front, reads, machine, gRPC calls.

`OneMember.turn` does what a gateway's turn and an applier's turn do. Calls come through
`http2.open_local`, so the way of a request is the real one but for the sockets and the log.
"""

from __future__ import annotations

import struct

from kvnode._core.freed import FreedSink
from kvnode._core.front import Front
from kvnode._core.grpckv import METHODS, GrpcSink, KvMethods
from kvnode._core.h2 import Http2
from kvnode._core.machine import Machine
from kvnode._core.memstore import MemStore
from kvnode._core.ranges import RangeReader
from kvnode._core.readqueue import ReadQueue
from kvnode._core.sink import OwnSink, Sinks
from kvnode._core.store import Store
from kvnode.base.codes import Code, Kind
from kvnode.proto import kvnodepb_pb2 as kvnodepb

MEMBER, CLUSTER, TERM, SESSION, INCARNATION = 11, 12, 3, 77, 78


class Call:
    """One call and what came of it."""

    def __init__(self, member: OneMember, path: str, body: bytes | None) -> None:
        self.messages: list[bytes] = []
        self.status: int | None = None
        self.text = ""
        self.made = member.http2.open_local(path, self.messages.append, self.on_end)
        if body is not None:
            self.made.send(body)
            self.made.half_close()

    def on_end(self, status: int, text: str) -> None:
        """The call is over."""
        assert self.status is None
        self.status, self.text = status, text


class OneMember:
    """One member; `asked` says whether somebody asked for a turn."""

    def __init__(
        self,
        store: Store | None = None,
        *,
        max_request_bytes: int = 1_572_864,
        max_txn_ops: int = 128,
        held_bytes_max: int = 96 << 20,
        message_bytes_max: int = 0x7FFFFFFF,
    ) -> None:
        self.store = store or MemStore()
        self.machine = Machine(self.store, MEMBER, CLUSTER)
        self.reader = RangeReader(self.store)
        self.index = self.machine.applied_index
        self.asked = 0
        self.proposals = 0
        self.sinks = Sinks()
        self.own = OwnSink()
        self.freed = FreedSink(self.sinks)
        self.sinks.add(self.own)
        self.sinks.add(self.freed)
        self.reads = ReadQueue(
            self.sinks, member=MEMBER, cluster=CLUSTER, stream_bytes=max_request_bytes,
            message_bytes_max=message_bytes_max,
        )
        self.front = Front(
            self.sinks, self.own, self.freed, self.reads, member=MEMBER, incarnation=INCARNATION,
            max_request_bytes=max_request_bytes, max_batch_bytes=16 << 20,
            max_txn_ops=max_txn_ops,
        )
        self.http2 = Http2(max_message_bytes=max_request_bytes + (512 << 10))
        sink = GrpcSink(self.http2)
        self.sinks.add(sink)
        self.kv = KvMethods(sink, self.front, self.wake, held_bytes_max=held_bytes_max)
        self.front.complete_grants(5, 2)
        for path, number, streams in METHODS:
            self.http2.route(path, self.kv, number, False, streams)
        opened = kvnodepb.SessionOpen(session=SESSION, gateway=True).SerializeToString()
        self.front.propose(1, Kind.SESSION_OPEN, opened)
        self.write()
        assert [code for _, code, _ in self.own.take_answers()] == [Code.OK]
        self.front.set_session(SESSION)

    def wake(self) -> None:
        """Somebody asks for a turn."""
        self.asked += 1

    def write(self) -> None:
        """Applies what has gathered."""
        for _, batch in self.front.take_proposals():
            self.proposals += 1
            self.index += 1
            entry = struct.pack("<QQII", self.index, TERM, 0, len(batch)) + batch
            for _, answers in self.machine.apply(entry):
                self.front.on_results(answers)
        self.front.take_finished()

    def read(self) -> bool:
        """Answers reads, one slice of long ones; True: there is more to do at once."""
        more = False
        self.reads.set_term(TERM)
        self.reader.refresh()
        if self.reads.reads_serializable:
            self.reads.serve_serializable(self.reader)
        if self.reads.reads_gathering:
            self.reads.begin_barrier()
            self.reads.serve_waiting(self.reader)
        if self.reads.long_reads:
            more = self.reads.step_long(self.reader)
        self.freed.turn(self.reader)
        self.reader.close()
        return more

    def turn(self) -> bool:
        """A turn of the gateway, the applier's in it."""
        self.asked = 0
        self.write()
        more = self.read()
        self.sinks.flush()
        return self.reads.release_held() or more or bool(self.asked)

    def run(self, turns_max: int = 10_000) -> None:
        """Turns until nothing is left to do at once."""
        for _ in range(turns_max):
            if not self.turn():
                return
        raise AssertionError("it does not come to rest")

    def free(self, reading: bool = True) -> None:
        """Frees all that compactions left, but what long reads need (unless not `reading`)."""
        lowest = self.reads.lowest_reading() if reading else 0
        while self.machine.free_some(100, lowest or None):
            pass

    def start(self, method: str, body: bytes | None) -> Call:
        """Begins a call: `method` as KV/Put."""
        return Call(self, f"/etcdserverpb.{method}", body)

    def call(self, method: str, body: bytes) -> Call:
        """A call, to its end."""
        call = self.start(method, body)
        self.run()
        assert call.status is not None, f"{method} has no end"
        return call
