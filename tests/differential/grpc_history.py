"""Histories over gRPC with watches and leases in them: generator and target.

Role: what test_grpc.py sends to kvnode and to real etcd alike, beyond the requests of generator.py:
watches with random options on three streams, their cancellation, what they were told, leases kept
alive, listed and left to expire, ranges as streams. Caller: test_grpc.py, by way of runner.py.

A watch is named by its stream and a number of the generator's (`Call`), so that a shortened history
still means the same watches. What a watch was told is asked for by EVENTS: the target first asks
the stream for progress until the server says that the watches have seen the last revision that any
answer named. So both servers may pack events into responses as they like, and are compared in full.

Invariants, checked as responses come (a violation becomes an answer that no server gives):
1. A watch's events ascend by revision; the events of one revision come in one response, or in
   fragments of one.
2. No event comes after progress at or beyond its revision; a response is not behind its events.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import grpc

from kvnode.base.codes import Kind
from kvnode.proto import rpc_pb2 as pb
from tests.differential.generator import KEYS, LEASES, Generator, Op, Step
from tests.differential.runner import CALL_SECONDS_MAX, Answer, EtcdTarget
from tests.support.watchstream import Ended, WatchStream

STREAMS = 3
WATCHES_MAX = 24
DRAIN_SECONDS_MAX = 20.0
ASK_SECONDS = 0.02
EXPIRING = 4242
BROKEN = 99  # a status no server answers with: the target found an invariant broken


@dataclass(frozen=True)
class Call:
    """What kind of request beyond KV and leases; of watches, which one."""

    name: str
    stream: int = 0
    number: int = 0


class GrpcGenerator(Generator):
    """Makes the steps of one run."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.watches: list[tuple[int, int]] = []
        self._numbers = iter(range(1 << 30))

    def step(self) -> Step:
        """The next requests: as the base class', or of the kinds here."""
        roll = self.random.random()
        if roll < 0.14:
            return [self._watch()]
        if roll < 0.19 and self.watches:
            return [self._cancel()]
        if roll < 0.32:
            return self._events()
        if roll < 0.40:
            read = self.range_request()
            # etcd's streams refuse what is sorted or filtered; kvnode's don't.
            read.sort_order = read.sort_target = 0
            read.min_mod_revision = read.max_mod_revision = 0
            read.min_create_revision = read.max_create_revision = 0
            return [Op(Call("RANGE_STREAM"), read)]  # type: ignore[arg-type]
        if roll < 0.47:
            return [self._lease_call()]
        if roll < 0.477:
            return self._expiry()
        return super().step()

    def _watch(self) -> Op:
        stream, number = self.random.randrange(STREAMS), next(self._numbers)
        key, end = self.span()
        create = pb.WatchCreateRequest(
            key=key, range_end=end, prev_kv=self.chance(0.4), fragment=self.chance(0.3),
            progress_notify=self.chance(0.2),
            watch_id=self.random.choice((0, 0, 0, 1, 2, 7, 1 << 40)),
        )
        if self.chance(0.5):
            create.start_revision = min(max(self.old_revision(), 0), self.revision)
        if self.chance(0.15):
            create.filters.append(self.random.choice((0, 1)))
        self.watches.append((stream, number))
        if len(self.watches) > WATCHES_MAX:
            self.watches.pop(0)
        return Op(Call("WATCH", stream, number), create)  # type: ignore[arg-type]

    def _cancel(self) -> Op:
        call = Call("CANCEL", *self.random.choice(self.watches))
        return Op(call, pb.WatchCancelRequest())  # type: ignore[arg-type]

    def _events(self) -> Step:
        """What every watch was told, those that ended or never were included."""
        return [
            Op(Call("EVENTS", *watch), pb.WatchProgressRequest())  # type: ignore[arg-type]
            for watch in self.watches
        ]

    def _lease_call(self) -> Op:
        if self.chance(0.3):
            return Op(Call("LEASES"), pb.LeaseLeasesRequest())  # type: ignore[arg-type]
        lease = self.random.choice((*LEASES, 0, 9))
        return Op(Call("KEEP_ALIVE"), pb.LeaseKeepAliveRequest(ID=lease))  # type: ignore[arg-type]

    def _expiry(self) -> Step:
        """A lease with a few keys ends by itself: one revision, the keys in order."""
        keys = self.random.sample(KEYS, 3)
        puts = [pb.PutRequest(key=key, value=b"short", lease=EXPIRING) for key in keys]
        return [
            Op(Kind.LEASE_GRANT, pb.LeaseGrantRequest(ID=EXPIRING, TTL=1)),
            *(Op(Kind.PUT, put) for put in puts),
            Op(Call("EXPIRE"), pb.LeaseTimeToLiveRequest(ID=EXPIRING)),  # type: ignore[arg-type]
            *self._events(),
        ]


class Broken(Exception):
    """A server did what no watch may see."""


@dataclass
class Watch:
    """One watch of a stream, as its client knows it."""

    number: int
    told: pb.WatchResponse = field(default_factory=pb.WatchResponse)
    last: int = 0           # revision of the last event
    progress: int = 0       # the highest that the server said was all
    fragment: bool = False  # the last response was not the last piece
    ended: bool = False     # by the server

    def on_response(self, response: Any) -> None:
        """Events, a cancellation, or progress."""
        events = response.events
        if events:
            first = events[0].kv.mod_revision
            if first < self.last or (first == self.last and not self.fragment):
                raise Broken(f"revision {first} after {self.last}")
            if first <= self.progress:
                raise Broken(f"revision {first} after progress at {self.progress}")
            revisions = [event.kv.mod_revision for event in events]
            if revisions != sorted(revisions):
                raise Broken(f"revisions {revisions}")
            if response.header.revision < revisions[-1]:
                raise Broken(f"revision {revisions[-1]} by {response.header.revision}")
            self.last = revisions[-1]
            self.told.events.extend(events)
        elif not response.canceled:
            self.on_progress(response.header.revision)
        self.fragment = response.fragment
        if response.canceled:
            self.ended = self.told.canceled = True
            self.told.compact_revision = response.compact_revision
            self.told.cancel_reason = response.cancel_reason

    def on_progress(self, revision: int) -> None:
        """Everything up to `revision` was told, says the server."""
        if revision < self.progress or self.fragment:
            raise Broken(f"progress at {revision} after {self.progress}")
        self.progress = revision


class Stream:
    """A stream of watches, by the generator's numbers."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stream = WatchStream(channel)
        self.by_number: dict[int, Watch] = {}
        self._by_id: dict[int, Watch] = {}
        self._ids: dict[int, int] = {}
        self._synced = -1

    def create(self, number: int, request: Any) -> Any:
        """The server's answer to a new watch."""
        self._synced = -1
        self._stream.send(pb.WatchRequest(create_request=request))
        response = self._until(lambda response: response.created)
        watch = Watch(number)
        self.by_number[number] = watch
        if not response.canceled:
            if response.watch_id in self._by_id:
                raise Broken(f"watch id {response.watch_id} twice")
            self._by_id[response.watch_id] = watch
            self._ids[number] = response.watch_id
        return response

    def cancel(self, number: int) -> Any:
        """The server's answer to the end of a watch; an empty one if there is no such watch."""
        watch_id = self._ids.pop(number, None)
        if watch_id is None:
            return pb.WatchResponse()
        self._stream.cancel(watch_id)
        response = self._until(
            lambda response: response.canceled and response.watch_id == watch_id
        )
        del self._by_id[watch_id]
        return response

    def drain(self, revision: int) -> None:
        """Asks for progress until it reaches a revision: then everything before it has come.

        etcd gives no answer while a watch is there that its history's end ended, nor without any.
        """
        deadline = time.monotonic() + DRAIN_SECONDS_MAX
        while self._synced < revision and self._by_id:
            for number, watch_id in list(self._ids.items()):
                if self._by_id[watch_id].ended:
                    self.cancel(number)
            self._stream.ask_progress()
            until = time.monotonic() + ASK_SECONDS
            while self._synced < revision and (left := until - time.monotonic()) > 0:
                response = self._stream.get(left)
                if response is not None:
                    self._take(response)
            if time.monotonic() > deadline:
                raise Broken(f"no progress to revision {revision} in {DRAIN_SECONDS_MAX} s")

    def _until(self, wanted: Any) -> Any:
        deadline = time.monotonic() + DRAIN_SECONDS_MAX
        while True:
            response = self._stream.get(max(deadline - time.monotonic(), 0.001))
            if response is None:
                raise Broken(f"no answer in {DRAIN_SECONDS_MAX} s")
            if wanted(response):
                return response
            self._take(response)

    def _take(self, response: Any) -> None:
        if response.watch_id == -1 and not response.canceled and not response.events:
            self._synced = max(self._synced, response.header.revision)
            for watch in self._by_id.values():
                watch.on_progress(response.header.revision)
            return
        watch = self._by_id.get(response.watch_id)
        if watch is None:
            raise Broken(f"a response of watch {response.watch_id}, which is not there: {response}")
        watch.on_response(response)

    def close(self) -> None:
        """Ends the stream."""
        self._stream.close()


class GrpcTarget(EtcdTarget):
    """Any server over gRPC, watches and leases included."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.revision = 1
        self._streams = [Stream(self._channel) for _ in range(STREAMS)]
        self._stream_calls = {
            "RANGE_STREAM": (self._channel.unary_stream("/etcdserverpb.KV/RangeStream"),
                             pb.RangeStreamResponse),
            "LEASES": (self._channel.unary_unary("/etcdserverpb.Lease/LeaseLeases"),
                       pb.LeaseLeasesResponse),
            "KEEP_ALIVE": (self._channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive"),
                           pb.LeaseKeepAliveResponse),
        }
        self._left = self._channel.unary_unary("/etcdserverpb.Lease/LeaseTimeToLive")

    def _one(self, op: Op) -> Answer:
        try:
            if isinstance(op.kind, Call):
                answer = Answer(0, "", self._call(op.kind, op.message))
            else:
                if op.kind == Kind.COMPACT:
                    # Whether a watch that lags sees its history or its end is nobody's promise.
                    self._drain()
                answer = super()._one(op)
        except (grpc.RpcError, Ended) as error:
            return Answer(error.code().value[0], error.details() or "", None)
        except Broken as broken:
            return Answer(BROKEN, str(broken), None)
        if answer.response is not None:
            self.revision = max(self.revision, answer.response.header.revision)
        return answer

    def _drain(self) -> None:
        for stream in self._streams:
            stream.drain(self.revision)

    def _call(self, call: Call, message: Any) -> Any:
        stream = self._streams[call.stream]
        if call.name == "WATCH":
            # Events of this very moment are before or after its first revision, never both.
            return stream.create(call.number, message)
        if call.name == "CANCEL":
            stream.drain(self.revision)
            return stream.cancel(call.number)
        if call.name == "EVENTS":
            stream.drain(self.revision)
            watch = stream.by_number.get(call.number)
            if watch is None:
                return pb.WatchResponse()
            told, watch.told = watch.told, pb.WatchResponse()
            return told
        if call.name == "RANGE_STREAM":
            return self._range_stream(message)
        if call.name == "LEASES":
            return self._leases(message)
        if call.name == "KEEP_ALIVE":
            method, response = self._stream_calls["KEEP_ALIVE"]
            answers = method(iter((message.SerializeToString(),)), timeout=CALL_SECONDS_MAX)
            return response.FromString(next(answers))
        return self._expire(message)

    def _range_stream(self, message: Any) -> Any:
        """The parts of an answer as one message, as a client merges them."""
        method, response = self._stream_calls["RANGE_STREAM"]
        whole = pb.RangeResponse()
        for part in method(message.SerializeToString(), timeout=CALL_SECONDS_MAX):
            whole.MergeFrom(response.FromString(part).range_response)
        return whole

    def _leases(self, message: Any) -> Any:
        method, response = self._stream_calls["LEASES"]
        found = response.FromString(method(message.SerializeToString(), timeout=CALL_SECONDS_MAX))
        ids = sorted(lease.ID for lease in found.leases)
        del found.leases[:]
        found.leases.extend(pb.LeaseStatus(ID=lease) for lease in ids)
        return found

    def _expire(self, message: Any) -> Any:
        """Waits until a lease is gone."""
        deadline = time.monotonic() + DRAIN_SECONDS_MAX
        while time.monotonic() < deadline:
            body = self._left(message.SerializeToString(), timeout=CALL_SECONDS_MAX)
            left = pb.LeaseTimeToLiveResponse.FromString(body)
            if left.TTL == -1:
                return left
            time.sleep(0.02)
        raise Broken(f"lease {message.ID} is still there after {DRAIN_SECONDS_MAX} s")

    def close(self) -> None:
        """Ends streams and connection."""
        for stream in self._streams:
            stream.close()
        super().close()
