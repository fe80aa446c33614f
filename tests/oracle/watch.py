"""What a watcher must be told, out of the full history: the slow twin of _core/watchhub.pyx.

`Told` follows one watcher from outside: each response is checked when it comes (in order, nothing
twice, nothing missing below what the header says, whole revisions only), and `owed` is what is
still to come.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvnode.proto import kv_pb2, rpc_pb2
from tests.oracle.revindex import History, Version


@dataclass(frozen=True)
class Wish:
    """What a client asked for. end: b"" one key, b"\\0" from the key on."""

    key: bytes
    end: bytes = b""
    start: int = 0
    prev_kv: bool = False
    noput: bool = False
    nodelete: bool = False
    fragment: bool = False
    progress_notify: bool = False

    def holds(self, key: bytes) -> bool:
        if not self.end:
            return key == self.key
        return key >= self.key and (self.end == b"\0" or key < self.end)

    def wants(self, version: Version) -> bool:
        return not (self.nodelete if version.value is None else self.noput)

    def request(self, watch_id: int = 0) -> rpc_pb2.WatchRequest:
        create = rpc_pb2.WatchCreateRequest(
            key=self.key, range_end=self.end, start_revision=self.start, prev_kv=self.prev_kv,
            fragment=self.fragment, progress_notify=self.progress_notify, watch_id=watch_id,
        )
        if self.noput:
            create.filters.append(rpc_pb2.WatchCreateRequest.NOPUT)
        if self.nodelete:
            create.filters.append(rpc_pb2.WatchCreateRequest.NODELETE)
        return rpc_pb2.WatchRequest(create_request=create)


def message(key: bytes, version: Version) -> kv_pb2.KeyValue:
    """The KeyValue of an event."""
    if version.value is None:
        return kv_pb2.KeyValue(key=key, mod_revision=version.main)
    return kv_pb2.KeyValue(
        key=key, create_revision=version.create, mod_revision=version.main,
        version=version.version, value=version.value, lease=version.lease,
    )


def events(history: History, wish: Wish, first: int) -> list[tuple[bytes, Version]]:
    """All that the wish concerns from revision `first` on, in order."""
    found = [
        (key, version)
        for key, versions in history.keys.items()
        if wish.holds(key)
        for version in versions
        if version.main >= first and wish.wants(version)
    ]
    return sorted(found, key=lambda item: (item[1].main, item[1].sub))


class Told:
    """One watcher. first: the lowest revision that it is owed."""

    def __init__(self, history: History, wish: Wish, first: int) -> None:
        self.history = history
        self.wish = wish
        self.next = (first, 0)
        self.upto = first - 1       # the greatest revision it knows that it has all of
        self.part: list[kv_pb2.Event] = []

    def owed(self) -> list[tuple[bytes, Version]]:
        return [
            item
            for item in events(self.history, self.wish, self.next[0])
            if (item[1].main, item[1].sub) >= self.next
        ]

    def on_events(self, response: rpc_pb2.WatchResponse) -> None:
        """A response with events."""
        self.part.extend(response.events)
        if response.fragment:
            assert self.wish.fragment
            return
        told, self.part = self.part, []
        owed = self.owed()
        assert len(told) <= len(owed), (told, owed)
        for event, (key, version) in zip(told, owed, strict=False):
            self._equal(event, key, version)
            self.next = (version.main, version.sub + 1)
        assert response.header.revision >= self.next[0]
        self.on_revision(response.header.revision)

    def on_revision(self, revision: int) -> None:
        """The server says that all up to `revision` was sent."""
        assert revision >= self.upto
        missing = [v.main for _, v in self.owed() if v.main <= revision]
        assert not missing, f"said to be at {revision}, but {missing} did not come"
        self.upto = revision

    def on_compacted(self, compact_revision: int) -> None:
        """It was cancelled: its history is gone. Resuming there misses nothing that still is."""
        assert compact_revision > self.upto + 1

    def _equal(self, event: kv_pb2.Event, key: bytes, version: Version) -> None:
        deleted = version.value is None
        assert (event.type == kv_pb2.Event.DELETE) == deleted
        assert event.kv == message(key, version), (event, key, version)
        before = self.history.at(key, version.main - 1)
        if not self.wish.prev_kv or before is None:
            assert not event.HasField("prev_kv")
        elif event.HasField("prev_kv"):
            assert event.prev_kv == message(key, before)
        else:
            assert version.main - 1 < self.history.compacted
