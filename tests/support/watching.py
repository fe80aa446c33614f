"""Watches over a store in memory, and clients that check all they are told."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvnode._core.localcalls import LocalCalls
from kvnode._core.memstore import MemStore
from kvnode._core.ranges import RangeReader
from kvnode._core.watchcalls import Watches
from kvnode._core.watchhub import WatchHub
from kvnode.proto import rpc_pb2
from tests.oracle.watch import Told, Wish
from tests.support.mvcc_writer import Writer


class Site:
    """A hub over a store in memory; `now` is its clock."""

    def __init__(self, limit: int = 1 << 20, **hub: int) -> None:
        self.store = MemStore()
        self.writer = Writer(self.store)
        self.writer.commit()
        self.reader = RangeReader(self.store)
        self.calls = LocalCalls(limit)
        self.hub = WatchHub(self.calls, **hub)
        self.hub.identify(11, 22)
        self.hub.set_term(3)
        self.watches = Watches(self.hub)
        self.now = 0
        self.freed = 0
        self.compacted = 0          # as committed

    def turn(self) -> bool:
        more = self.watches.turn(self.reader, self.now)
        self.reader.close()
        return more

    def settle(self) -> int:
        """Turns until nothing is left to do; how many."""
        turns = 1
        while self.turn():
            turns += 1
            assert turns < 100_000, "the hub never rests"
        return turns

    def write(self, *ops: tuple[bytes, bytes | None]) -> int:
        revision = self.writer.write(*ops)
        self.commit()
        return revision

    def commit(self) -> None:
        self.writer.commit(self.freed)
        self.compacted = self.writer.history.compacted

    def compact(self, revision: int, free: bool = False) -> None:
        self.writer.compact(revision)
        if free:
            self.writer.free(self.freed, revision)
            self.freed = revision
        self.commit()


@dataclass
class Client:
    """One Watch stream."""

    site: Site
    handle: int = -1
    watches: dict[int, Told] = field(default_factory=dict)
    # requests that were not answered yet
    creating: list[Wish] = field(default_factory=list)
    cancelling: list[int] = field(default_factory=list)
    gone: dict[int, Told] = field(default_factory=dict)
    progress: int = 0
    seen: list[rpc_pb2.WatchResponse] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.handle = self.site.calls.open(self.site.watches)

    def send(self, request: rpc_pb2.WatchRequest | bytes) -> None:
        body = request if isinstance(request, bytes) else request.SerializeToString()
        self.site.calls.message(self.handle, body)

    def watch(self, wish: Wish, watch_id: int = 0) -> None:
        self.creating.append(wish)
        self.send(wish.request(watch_id))

    def cancel(self, watch_id: int) -> None:
        self.cancelling.append(watch_id)
        self.send(
            rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=watch_id))
        )

    def ask_progress(self) -> None:
        self.send(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))

    def read(self, count: int = -1) -> list[rpc_pb2.WatchResponse]:
        """Takes responses and checks each."""
        responses = [
            rpc_pb2.WatchResponse.FromString(body)
            for body in self.site.calls.take(self.handle, count)
        ]
        for response in responses:
            self._on_response(response)
        self.seen += responses
        return responses

    def close(self) -> None:
        self.site.calls.reset(self.handle)

    def _on_response(self, r: rpc_pb2.WatchResponse) -> None:
        assert (r.header.cluster_id, r.header.member_id, r.header.raft_term) == (11, 22, 3)
        if r.created:
            wish = self.creating.pop(0)
            if r.canceled:
                assert r.watch_id == -1
                return
            assert r.watch_id not in self.watches
            first = wish.start or r.header.revision + 1
            self.watches[r.watch_id] = Told(self.site.writer.history, wish, first)
        elif r.canceled and r.compact_revision:
            told = self.watches.pop(r.watch_id)
            told.on_compacted(r.compact_revision)
            self.gone[r.watch_id] = told
            assert not r.events
        elif r.canceled:
            assert self.cancelling.pop(0) == r.watch_id
            self.watches.pop(r.watch_id, None)
            self.gone.pop(r.watch_id, None)
        elif r.events:
            self.watches[r.watch_id].on_events(r)
        elif r.watch_id == -1:
            self.progress += 1
            for told in self.watches.values():
                told.on_revision(r.header.revision)
        else:
            told = self.watches[r.watch_id]
            assert told.wish.progress_notify
            told.on_revision(r.header.revision)
