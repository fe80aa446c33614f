"""Writers whose every answer goes into a model, and the comparison of a node with that model.

Role: test_power_cut_node cuts the power under them. Each writer owns its keys and has at most one
request open on a key, so what the store must hold follows from the answers alone; a request that
was not answered may have been executed or not, but only whole.

Keys:

    s/NNNNNNN   the preloaded space: puts, batches of puts, deletes of short ranges
    big/W/N     values of 1 MB, written over and over, deleted now and then
    hot/W/N     few keys whose history is remembered, for reads at old revisions

Findings raise `Wrong`: lost (an acknowledged write is not there), wrong (other bytes, versions or
revisions, a key that was deleted or never written), half (a batch or range of which only a part is
there), doubled.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from kvnode.base.codes import Code, Kind
from kvnode.base.errors import RequestError
from kvnode.client import Client, Outcome, Pending
from kvnode.client.messages import (
    compaction_request,
    delete_range_request,
    put_batch,
    put_request,
    range_request,
)
from kvnode.client.sync import decode

BATCH = 100
SPAN = 5
BIG_BYTES = 1_000_000
BIGS = 4
HOTS = 12
PAGE = 50_000
KEEP_REVISIONS = 2_000
DEFINITE = (Outcome.EXECUTED, Outcome.REPEATED)


class Wrong(Exception):
    """The node is not what its answers said."""


class Version(NamedTuple):
    """What the store says of one key."""

    value: bytes
    create: int
    mod: int
    version: int


@dataclass
class Write:
    """One request: the keys it touches and what it makes of them (None: deleted)."""

    pending: Pending
    effects: list[tuple[bytes, bytes | None]]
    one_revision: bool = True


@dataclass
class Model:
    """All keys as the answers said, and the highest revision they named."""

    keys: dict[bytes, Version] = field(default_factory=dict)
    history: dict[bytes, list[tuple[int, bytes | None]]] = field(default_factory=dict)
    revision: int = 1
    compacted: int = 0
    compacting: int = 0
    acknowledged: int = 0
    unknown: int = 0
    repeated: int = 0
    refused: int = 0
    touched: set[bytes] = field(default_factory=set)

    def after(self, key: bytes, value: bytes | None, mod: int) -> Version | None:
        """The key's next version, written at `mod`."""
        if value is None:
            return None
        old = self.keys.get(key)
        if old is None:
            return Version(value, mod, mod, 1)
        return Version(value, old.create, mod, old.version + 1)

    def fold(self, write: Write, first: int) -> None:
        """A write was executed; its first (or only) revision is `first`, 0 if that is not known
        (a deletion that was only seen)."""
        for number, (key, value) in enumerate(write.effects):
            mod = first if write.one_revision else first + number
            made = self.after(key, value, mod)
            if made is not None:
                self.keys[key] = made
            elif self.keys.pop(key, None) is None:
                continue
            self.revision = max(self.revision, mod)
            self.touched.add(key)
            if not key.startswith(b"hot/"):
                continue
            if not first:
                self.history.pop(key, None)
            else:
                self.history.setdefault(key, []).append((mod, value))


def first_revision(write: Write) -> int:
    """The revision that an executed write was answered with."""
    pending = write.pending
    answer = decode(pending.kind, pending.answer)
    if pending.kind == Kind.PUT_BATCH:
        if answer.refused or answer.applied != len(write.effects):
            raise Wrong(f"batch of {len(write.effects)}: {answer.applied} applied")
        return answer.first_revision
    return answer.header.revision


class Writer:
    """One client; `begin` starts it, `halt` ends its thread, its open requests stay in `open`."""

    def __init__(self, number: int, writers: int, keys: int, seed: int, endpoint: str) -> None:
        self.number = number
        self.thread: threading.Thread | None = None
        self.rng = random.Random(f"{seed}-{number}")
        self.span = range(keys * number // writers, keys * (number + 1) // writers)
        self.endpoint = endpoint
        self.model = Model()
        self.open: list[Write] = []
        self.client: Client | None = None
        self.serial = 0
        self.error: BaseException | None = None
        self.ending = threading.Event()

    def begin(self) -> None:
        assert not self.open
        name = f"cut-writer-{self.number}"
        self.ending.clear()
        if self.client is None:
            self.client = Client(self.endpoint, timeout=60, name=name)
        self.thread = threading.Thread(target=self.run, name=name, daemon=True)
        self.thread.start()

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                self.round()
        except BaseException as error:
            self.error = error

    def halt(self) -> None:
        self.ending.set()
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        """Ends the thread with everything answered."""
        self.halt()
        assert self.client is not None
        self.client.drain(30)
        self.take_answers()
        if self.open:
            raise Wrong(f"without a cut: {self.open[0].pending}")

    def drop(self) -> None:
        """Leaves this client and its session; what was open stays unanswered for ever."""
        if self.client is not None:
            self.client.close()
            self.client = None
        self.model.unknown += len(self.open)

    # --- load -----------------------------------------------------------------------------------

    def value(self, size: int) -> bytes:
        self.serial += 1
        head = b"%d.%d." % (self.number, self.serial)
        return head + b"v" * (size - len(head))

    def round(self) -> None:
        """Some twenty requests on different keys, sent together; what is answered is folded."""
        assert self.client is not None
        taken: set[bytes] = set()
        for _ in range(self.rng.randint(1, 20)):
            made = self.make(self.rng.random())
            if taken.isdisjoint(key for key, _ in made[2]):
                taken.update(key for key, _ in made[2])
                self.send(*made)
        while self.open and not self.ending.is_set():
            self.client.poll(0.05)
            self.take_answers()
        if self.number == 0 and self.rng.random() < 0.1 and not self.open:
            self.compact()

    def send(
        self, kind: int, body: bytes, effects: list[tuple[bytes, bytes | None]], one: bool = True
    ) -> None:
        assert self.client is not None
        self.open.append(Write(self.client.submit(kind, body), effects, one))

    def make(
        self, chance: float
    ) -> tuple[int, bytes, list[tuple[bytes, bytes | None]], bool]:
        """(kind, body, effects, one revision) of one random request."""
        rng = self.rng
        if chance < 0.04:
            key = b"big/%d/%d" % (self.number, rng.randrange(BIGS))
            if rng.random() < 0.25:
                return Kind.DELETE_RANGE, delete_range_request(key), [(key, None)], True
            value = self.value(BIG_BYTES)
            return Kind.PUT, put_request(key, value), [(key, value)], True
        if chance < 0.2:
            key = b"hot/%d/%d" % (self.number, rng.randrange(HOTS))
            if rng.random() < 0.2:
                return Kind.DELETE_RANGE, delete_range_request(key), [(key, None)], True
            value = self.value(40)
            return Kind.PUT, put_request(key, value), [(key, value)], True
        if chance < 0.35:
            numbers = rng.sample(self.span, BATCH)
            pairs = [(b"s/%07d" % n, self.value(64)) for n in numbers]
            one = rng.random() < 0.5
            kind = Kind.PUT_BATCH_ONE if one else Kind.PUT_BATCH
            return kind, put_batch(pairs), list(pairs), one
        if chance < 0.45:
            first = rng.randrange(self.span.start, self.span.stop - SPAN)
            keys = [b"s/%07d" % n for n in range(first, first + SPAN)]
            body = delete_range_request(keys[0], b"s/%07d" % (first + SPAN))
            return Kind.DELETE_RANGE, body, [(key, None) for key in keys], True
        key, value = b"s/%07d" % rng.choice(self.span), self.value(rng.choice((64, 64, 3000)))
        return Kind.PUT, put_request(key, value), [(key, value)], True

    def take_answers(self) -> None:
        still = []
        for write in self.open:
            outcome = write.pending.outcome
            if outcome in DEFINITE:
                self.model.acknowledged += 1
                self.model.repeated += outcome is Outcome.REPEATED
                self.model.fold(write, first_revision(write))
            elif outcome is Outcome.REFUSED:
                self.model.refused += 1
            elif outcome is not Outcome.NOT_SENT:
                still.append(write)
        self.open = still

    def compact(self) -> None:
        """Everything but the last revisions goes."""
        assert self.client is not None
        at = self.model.revision - KEEP_REVISIONS
        if at <= self.model.compacting:
            return
        self.model.compacting = at
        pending = self.client.submit(Kind.COMPACT, compaction_request(at))
        while not pending.done and not self.ending.is_set():
            self.client.poll(0.05)
        if pending.outcome in DEFINITE:
            self.model.compacted = at

    # --- after the cut --------------------------------------------------------------------------

    def settle(self, there: dict[int, int]) -> None:
        """The client sends what is open once more: every answer must fit what was read before.

        there: id of each open write that was found executed -> its first revision.
        """
        assert self.client is not None
        self.client.drain(30)
        for write in list(self.open):
            outcome = write.pending.outcome
            found = there.get(id(write))
            if found and outcome in DEFINITE and (first := first_revision(write)) != found:
                raise Wrong(f"doubled: {write.pending} with revision {first}, was there {found}")
        self.take_answers()
        self.model.unknown += len(self.open)
        self.resolve(there)

    def resolve(self, there: dict[int, int]) -> None:
        """Nobody will answer any more: what was read counts."""
        for write in self.open:
            if id(write) in there:
                self.model.fold(write, there[id(write)])
        self.open = []


class Checker:
    """Compares a node with the models of all writers."""

    def __init__(self, endpoint: str, writers: list[Writer], seed: int) -> None:
        self.endpoint = endpoint
        self.writers = writers
        self.rng = random.Random(seed)

    def check(self, full: bool) -> dict[int, int]:
        """Raises Wrong, or returns which open writes are there, with their first revisions."""
        with Client(self.endpoint, timeout=30, session=False, name="checker") as client:
            head = client.range(b"s/", count_only=True, prefix=True)
            newest = max(writer.model.revision for writer in self.writers)
            if head.header.revision < newest:
                raise Wrong(f"lost: at revision {head.header.revision}, answered {newest}")
            there: dict[int, int] = {}
            seen = self.read(client, head.header.revision, full)
            if not full:
                self.check_count(head.count, seen)
            for writer in self.writers:
                doubtful = {key for write in writer.open for key, _ in write.effects}
                self.compare(writer, seen, doubtful, full)
                for write in writer.open:
                    first = self.found(writer.model, write, seen)
                    if first is not None:
                        there[id(write)] = first
                writer.model.touched.clear()
            if full and seen:
                raise Wrong(f"{len(seen)} keys too many: {sorted(seen)[:3]}")
            self.check_history(client)
        return there

    def read(self, client: Client, revision: int, full: bool) -> dict[bytes, Version]:
        """All keys, or those that were touched since the last check."""
        if not full:
            return self.read_touched(client, revision)
        seen: dict[bytes, Version] = {}
        key = b"\0"
        while key:
            page = client.range(key, b"\0", limit=PAGE, revision=revision)
            for kv in page.kvs:
                seen[kv.key] = Version(kv.value, kv.create_revision, kv.mod_revision, kv.version)
            key = page.kvs[-1].key + b"\0" if page.more else b""
        return seen

    def read_touched(self, client: Client, revision: int) -> dict[bytes, Version]:
        wanted = set()
        for writer in self.writers:
            wanted |= writer.model.touched
            wanted.update(key for write in writer.open for key, _ in write.effects)
        seen = {}
        sent = [
            client.submit(Kind.RANGE, range_request(key, revision=revision)) for key in wanted
        ]
        client.drain(60)
        for pending in sent:
            for kv in decode(Kind.RANGE, pending.result()).kvs:
                seen[kv.key] = Version(kv.value, kv.create_revision, kv.mod_revision, kv.version)
        return seen

    def check_count(self, count: int, seen: dict[bytes, Version]) -> None:
        """As many keys of the preloaded space as there must be."""
        must = 0
        for writer in self.writers:
            doubtful = {key for write in writer.open for key, _ in write.effects}
            known = writer.model.keys
            must += sum(key.startswith(b"s/") for key in known)
            must += sum((key in seen) - (key in known) for key in doubtful if key[:2] == b"s/")
        if count != must:
            raise Wrong(f"{count} keys, must be {must}")

    @staticmethod
    def compare(
        writer: Writer, seen: dict[bytes, Version], doubtful: set[bytes], full: bool
    ) -> None:
        """The keys that no open request touches must be exactly the model's; takes them away."""
        keys = writer.model.keys
        for key in keys if full else writer.model.touched:
            if key in doubtful:
                continue
            is_now, expected = seen.pop(key, None), keys.get(key)
            if is_now != expected:
                raise Wrong(f"{key!r} is {shown(is_now)}, must be {shown(expected)}")

    @staticmethod
    def found(model: Model, write: Write, seen: dict[bytes, Version]) -> int | None:
        """The first revision of an open write that was executed; None: it was not."""
        states = [(key, value, seen.pop(key, None)) for key, value in write.effects]
        old = all(now == model.keys.get(key) for key, _, now in states)
        changed = [now.mod for _, value, now in states if value is not None and now is not None]
        first = changed[0] if changed else 0
        new = all(
            now == model.after(key, value, first if write.one_revision else first + number)
            for number, (key, value, now) in enumerate(states)
        )
        if old:
            return None
        if not new:
            text = [(key, shown(now)) for key, _, now in states]
            raise Wrong(f"half: {write.pending}: {text[:4]}")
        return first

    def check_history(self, client: Client) -> None:
        """Reads at old revisions, and the refusal of compacted ones."""
        compacted = max(writer.model.compacted for writer in self.writers)
        perhaps = max(writer.model.compacting for writer in self.writers)
        if compacted > 1:
            try:
                client.get(b"hot/0/0", revision=compacted - 1)
            except RequestError as error:
                if error.code is not Code.COMPACTED:
                    raise
            else:
                raise Wrong(f"compaction at {compacted} was lost")
        for writer in self.writers:
            for key in self.rng.sample(sorted(writer.model.history), min(3, len(
                    writer.model.history))):
                rows = writer.model.history[key]
                at = self.rng.choice(rows)[0]
                if at < perhaps:
                    continue
                kv = client.get(key, revision=at)
                expected = [value for mod, value in rows if mod <= at][-1]
                if (kv.value if kv is not None else None) != expected:
                    raise Wrong(f"{key!r} at revision {at} is {shown(kv)}")


def shown(version: object) -> str:
    return repr(version)[:120]


def preload(endpoint: str, writers: list[Writer], keys: int) -> None:
    """Puts every key of the space once, in batches of 1,000."""
    owner = {number: writer for writer in writers for number in (writer.span,)}
    with Client(endpoint, timeout=120, name="preload") as client:
        sent: list[tuple[Writer, Write]] = []
        for span, writer in owner.items():
            for first in range(span.start, span.stop, 1000):
                pairs = [
                    (b"s/%07d" % n, b"preloaded %07d" % n + b"." * 40)
                    for n in range(first, min(first + 1000, span.stop))
                ]
                pending = client.submit(Kind.PUT_BATCH, put_batch(pairs))
                sent.append((writer, Write(pending, list(pairs), False)))
        client.drain(120)
    for writer, write in sent:
        writer.model.fold(write, first_revision(write))
        writer.model.touched.clear()
    assert sum(len(writer.model.keys) for writer in writers) == keys


class Reader(threading.Thread):
    """Keeps long reads running in the gateway: big ranges, one after another, not decoded."""

    def __init__(self, endpoint: str, keys: int) -> None:
        super().__init__(name="cut-reader", daemon=True)
        self.endpoint = endpoint
        self.keys = keys
        self.ending = threading.Event()
        self.served = 0

    def run(self) -> None:
        client = Client(self.endpoint, timeout=60, session=False, name=self.name)
        body = range_request(b"s/", b"s0", limit=min(self.keys, 200_000))
        while not self.ending.is_set():
            pending = client.submit(Kind.RANGE, body)
            while not pending.done and not self.ending.is_set():
                client.poll(0.05)
            self.served += pending.done
            time.sleep(0.01)
        client.close()
