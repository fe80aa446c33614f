"""This member, as the rare requests of every door see it: `api.node.Node` of a gateway.

Role: what is asked seldom and needs more than a request's bytes: status, alarms, defragmentation,
a read barrier, HashKV. The native door (`greeting`) and the handlers of etcd's API (`api`) share
it.
Caller: procs/gateway and its doors.

Invariants:
  1. Each `done` is called once: also when the applier that was to answer died.
  2. HashKV takes at most HASH_WORK a turn, one request at a time; freeing waits for it as for a
     long read. One that freeing passed all the same begins anew.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvnode._core import meters
from kvnode._core.hashkv import HashKeys
from kvnode._core.ranges import RangeReader
from kvnode._core.sharedword import ANSWERED, APPLIED, COMMIT, DAMAGE, SOLE, TERM
from kvnode._core.storetxn import TREE_META
from kvnode.api.node import Done, Facts, HashOfKeys
from kvnode.base.codes import Code
from kvnode.env.clock import monotonic_us
from kvnode.env.link import Message
from kvnode.env.room import Room
from kvnode.proto import rpc_pb2 as rpcpb
from kvnode.wire.frames import ONE, Frame

if TYPE_CHECKING:
    from kvnode.procs.gateway import Gateway

HASH_WORK = 5_000  # units of 100 ns: half a millisecond, the bound is one
HASHES_MAX = 64
BEHIND_US = 2_000
_ALARM = struct.Struct("<QiI")
_ANY_KEY = rpcpb.RangeRequest(key=b"\0", count_only=True).SerializeToString()


@dataclass
class _Hashing:
    """One HashKV that waits or runs; `made` is of `reader`'s snapshots."""

    revision: int
    whole: bool
    done: Callable[[int, HashOfKeys | None], None]
    reader: RangeReader | None = None
    made: HashKeys | None = None


class Member:
    """The `Node` of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.config = gateway.config
        self.defrags: dict[int, Done] = {}
        self.defrag_id = 0
        self.hashes: list[_Hashing] = []
        self.room = Room(gateway.start.layout.state)
        gateway.on_turn.append(self.step_hash)

    @property
    def member_id(self) -> int:
        return self.gateway.start.member

    @property
    def cluster_id(self) -> int:
        return self.gateway.start.cluster

    @property
    def founders(self) -> Sequence[tuple[int, str, Sequence[str]]]:
        """Id, name and peer URLs of all members."""
        return self.gateway.start.founders

    # --- what is known here ---------------------------------------------------------------------

    def header(self) -> rpcpb.ResponseHeader:
        """A response header as of now."""
        gateway = self.gateway
        revision = 0
        if gateway.reader is not None:
            reader = gateway.snapshot(newest=True, wait=False)
            if gateway.snapshot_behind:
                # What was answered before this was asked is in the header, too.
                gateway.words.wait_applied(gateway.words.get(ANSWERED), BEHIND_US)
                reader = gateway.snapshot(newest=True, wait=False)
            revision = reader.revision
            # The turn's end lets go of the snapshot.
            gateway.soon()
        return rpcpb.ResponseHeader(
            cluster_id=self.cluster_id,
            member_id=self.member_id,
            revision=revision,
            raft_term=gateway.words.get(TERM),
        )

    def leader(self) -> int:
        """Member id of the leader, 0: there is none."""
        return self.gateway.leader

    def facts(self) -> Facts:
        """What Status tells."""
        gateway, words = self.gateway, self.gateway.words
        size = used = 0
        alarms: tuple[tuple[int, int], ...] = ()
        if gateway.store is not None and gateway.reader is not None:
            # A map that has grown is adopted only while nothing is read.
            gateway.end_snapshot()
            info = gateway.store.info()
            size = (info["last_page"] + 1) * gateway.store.page_bytes
            with gateway.store.begin_read() as txn:
                used = txn.used_bytes()
                stored = txn.get(TREE_META, b"alarms") or b""
            alarms = tuple((alarm, member) for member, alarm, _ in _ALARM.iter_unpack(stored))
        troubles = []
        if damage := words.get(DAMAGE):
            troubles.append(f"{damage} findings of damaged data, see the log")
        if self.room.low():
            troubles.append(self.room.text())
        return Facts(
            db_bytes=size,
            db_used_bytes=used,
            quota_bytes=gateway.config.quota_backend_bytes,
            leader=self.leader(),
            committed_index=words.get(COMMIT) & ~SOLE,
            applied_index=words.get(APPLIED),
            term=words.get(TERM),
            alarms=alarms,
            troubles=tuple(troubles),
        )

    # --- through the node's other processes -----------------------------------------------------

    def propose(self, kind: int, body: bytes, done: Done) -> None:
        """Executes a request through the log."""
        self.gateway.propose(kind, body, done)

    def barrier(self, done: Callable[[int], None]) -> None:
        """done(code) once everything acknowledged before this call is applied here."""
        self.gateway.read(_ANY_KEY, lambda code, _: done(code))

    def defragment(self, done: Done) -> None:
        """done(code, detail) when a compact map is in use."""
        self.defrag_id += 1
        self.defrags[self.defrag_id] = done
        if not self.gateway.applier.send(Frame.DEFRAG, ONE.pack(self.defrag_id)):
            del self.defrags[self.defrag_id]
            done(Code.UNAVAILABLE, b"")

    def on_applier(self, message: Message) -> None:
        """DEFRAGGED: the answer to a DEFRAG."""
        if message.kind != Frame.DEFRAGGED:
            return
        (number,) = ONE.unpack_from(message.payload)
        done = self.defrags.pop(number, None)
        if done is not None:
            done(int.from_bytes(message.payload[8:12], "little"), bytes(message.payload[12:]))

    def on_applier_down(self) -> None:
        """A defragmentation ended with its applier: who waits hears it."""
        waiting, self.defrags = self.defrags, {}
        for done in waiting.values():
            done(Code.UNAVAILABLE, b"the process that defragments ended: try again")
        self.gateway.pump()

    # --- HashKV ---------------------------------------------------------------------------------

    def hash_keys(
        self, revision: int, whole: bool, done: Callable[[int, HashOfKeys | None], None]
    ) -> None:
        """HashKV at `revision` (0: now), or with `whole` over the other trees too."""
        if len(self.hashes) >= HASHES_MAX:
            done(Code.TOO_MANY_REQUESTS, None)
            return
        began = monotonic_us()

        def timed(code: int, found: HashOfKeys | None) -> None:
            if code == Code.OK:
                name = "hash" if whole else "hash_kv"
                meters.observe(meters.HISTOGRAM[name], (monotonic_us() - began) * 1000)
            done(code, found)

        self.hashes.append(_Hashing(revision, whole, timed))
        self.gateway.soon()

    def lowest_reading(self) -> int:
        """The lowest revision that HashKV reads at, 0: none."""
        made = self.hashes[0].made if self.hashes else None
        return made.lowest if made is not None else 0

    def step_hash(self) -> None:
        """One slice of the first that waits."""
        if not self.hashes:
            return
        gateway, first = self.gateway, self.hashes[0]
        reader = gateway.snapshot()
        begun = first.made is None
        if first.made is None or first.reader is not reader:
            # Another generation's map is another reader: from the start.
            first.made, first.reader = HashKeys(reader, first.revision, first.whole), reader
        made = first.made
        if made.step(HASH_WORK):
            if made.code == Code.COMPACTED and not begun:
                first.made = None
            else:
                del self.hashes[0]
                self._end_hash(first, made)
            gateway.publish_reading()
        elif begun:
            gateway.publish_reading()
        if self.hashes:
            gateway.soon()

    def _end_hash(self, first: _Hashing, made: HashKeys) -> None:
        if made.code != Code.OK:
            first.done(made.code, None)
            return
        first.done(
            Code.OK,
            HashOfKeys(made.crc, made.revision, made.compact_revision, made.current_revision),
        )
