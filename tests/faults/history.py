"""Clients that write while a node is hurt, and the count of what became of it.

Role: `Writers` runs several pipelining clients in threads; each remembers what it submitted and
what was answered. `check` compares that with the store afterwards.
Callers: test_kill, test_dropped_answers, test_window_off and others of this folder.

What is written, each in key spaces of its own:

    p/W/K    puts over and over by writer W alone
    c/N      counters: Txn(version = v) puts, by all writers
    u/N      create-if-absent: all writers want the same names
    b/W/G/I  put batches of BATCH keys, written once, every second one in a single revision

What is counted:

    lost     an acknowledged write that is not there
    doubled  more versions, increments or owners than were written
    half     a batch of which some keys are there and some are not, or with foreign revisions
    unknown  requests without a definite outcome (they may be there or not)
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

from kvnode.base.codes import Kind
from kvnode.client import Client, Outcome, Pending
from kvnode.client.messages import compare, op_put, put_batch, put_request, txn_request
from kvnode.client.sync import decode

BATCH = 20
KEYS = 40
COUNTERS = 6
DEFINITE = (Outcome.EXECUTED, Outcome.REPEATED)


@dataclass
class Verdict:
    """Sums of one check; the first three must be 0. `notes`: the first few findings."""

    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    half: int = 0
    unknown: int = 0
    repeated: int = 0
    refused: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, what: str, text: str) -> None:
        setattr(self, what, getattr(self, what) + 1)
        if len(self.notes) < 12:
            self.notes.append(f"{what}: {text}")

    @property
    def sound(self) -> bool:
        return not (self.lost or self.doubled or self.half)

    def __str__(self) -> str:
        return (
            f"acknowledged {self.acknowledged}, lost {self.lost}, doubled {self.doubled}, "
            f"half batches {self.half}, unknown {self.unknown}, answered from the window "
            f"{self.repeated}, refused {self.refused}"
        )


class Writer(threading.Thread):
    """One client in one thread: rounds of mixed requests, submitted together, then awaited."""

    def __init__(self, endpoint: str, number: int, seed: int, timeout: float, pause: float) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.endpoint = endpoint
        self.number = number
        self.rng = random.Random(f"{seed}-{number}")
        self.timeout = timeout
        self.pause = pause
        self.ending = threading.Event()
        self.error: BaseException | None = None
        self.puts: list[tuple[bytes, bytes, Pending]] = []
        self.increments: list[tuple[int, int, Pending]] = []
        self.creates: list[tuple[int, bytes, Pending]] = []
        self.batches: list[tuple[int, bool, Pending]] = []
        self.versions = [0] * COUNTERS
        self.next_create = 0
        self.answered = 0

    def run(self) -> None:
        try:
            with Client(self.endpoint, timeout=self.timeout, name=self.name) as client:
                while not self.ending.is_set():
                    self.round(client)
                    if self.pause:
                        self.ending.wait(self.pause)
        except BaseException as error:
            self.error = error

    def round(self, client: Client) -> None:
        """One turn: about 20 requests in flight together."""
        rng, sent = self.rng, []
        for _ in range(rng.randint(1, 12)):
            key = b"p/%d/%d" % (self.number, rng.randrange(KEYS))
            value = b"%d.%s" % (len(self.puts), b"x" * rng.choice((0, 20, 300)))
            sent.append(client.submit(Kind.PUT, put_request(key, value)))
            self.puts.append((key, value, sent[-1]))
        increments = []
        for counter in rng.sample(range(COUNTERS), 2):
            version = self.versions[counter]
            key = b"c/%d" % counter
            body = txn_request(
                [compare(key, "version", "=", version)], [op_put(put_request(key, b"n"))]
            )
            sent.append(client.submit(Kind.TXN, body))
            self.increments.append((counter, version, sent[-1]))
            increments.append((counter, version, sent[-1]))
        for _ in range(2):
            name, owner = self.next_create, b"%d" % self.number
            self.next_create += 1
            key = b"u/%d" % name
            body = txn_request(
                [compare(key, "create", "=", 0)], [op_put(put_request(key, owner))]
            )
            sent.append(client.submit(Kind.TXN, body))
            self.creates.append((name, owner, sent[-1]))
        if rng.random() < 0.5:
            group = len(self.batches)
            pairs = [(b"b/%d/%d/%d" % (self.number, group, i), b"v") for i in range(BATCH)]
            one = group % 2 == 0
            kind = Kind.PUT_BATCH_ONE if one else Kind.PUT_BATCH
            sent.append(client.submit(kind, put_batch(pairs)))
            self.batches.append((group, one, sent[-1]))
        client.drain(self.timeout)
        self.answered += sum(p.outcome in DEFINITE for p in sent)
        self.look(client, increments)

    def look(self, client: Client, increments: list[tuple[int, int, Pending]]) -> None:
        """Where the counters are now, for the next round."""
        for counter, version, pending in increments:
            if pending.outcome in DEFINITE and decode(Kind.TXN, pending.answer).succeeded:
                self.versions[counter] = version + 1
            else:
                found = client.get(b"c/%d" % counter, timeout=self.timeout)
                self.versions[counter] = found.version if found else 0


class Writers:
    """Several writers at once. `pause`: seconds between a writer's rounds."""

    def __init__(
        self, endpoint: str, count: int = 3, seed: int = 1, timeout: float = 60, pause: float = 0.0
    ) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self.threads = [Writer(endpoint, n, seed, timeout, pause) for n in range(count)]

    def start(self) -> None:
        for writer in self.threads:
            writer.start()

    @property
    def answered(self) -> int:
        """Requests answered so far, by all."""
        return sum(writer.answered for writer in self.threads)

    def wait_answered(self, more: int, seconds: float = 60) -> None:
        """Waits until `more` further requests were answered."""
        until, goal = time.monotonic() + seconds, self.answered + more
        while self.answered < goal:
            self.raise_error()
            if time.monotonic() > until:
                raise AssertionError(f"no {more} answers within {seconds} s")
            time.sleep(0.005)

    def raise_error(self) -> None:
        for writer in self.threads:
            if writer.error is not None:
                raise writer.error

    def finish(self) -> None:
        """Ends the writers after their round."""
        for writer in self.threads:
            writer.ending.set()
        for writer in self.threads:
            writer.join(self.timeout + 10)
            assert not writer.is_alive(), f"{writer.name} hangs"
        self.raise_error()

    def check(self) -> Verdict:
        """Reads everything back and counts. The writers have finished."""
        verdict = Verdict()
        with Client(self.endpoint, timeout=self.timeout) as client:
            self._check_puts(client, verdict)
            self._check_increments(client, verdict)
            self._check_creates(client, verdict)
            self._check_batches(client, verdict)
        for writer in self.threads:
            for entry in (*writer.puts, *writer.increments, *writer.creates, *writer.batches):
                outcome = entry[-1].outcome
                verdict.acknowledged += outcome in DEFINITE
                verdict.repeated += outcome in (Outcome.REPEATED, Outcome.APPLIED)
                verdict.unknown += outcome is Outcome.UNKNOWN
                verdict.refused += outcome is Outcome.REFUSED
        return verdict

    def _check_puts(self, client: Client, verdict: Verdict) -> None:
        found = {kv.key: kv for kv in client.range(b"p/", prefix=True).kvs}
        rng = random.Random(7)
        for writer in self.threads:
            by_key: dict[bytes, list[tuple[bytes, Pending]]] = defaultdict(list)
            for key, value, pending in writer.puts:
                by_key[key].append((value, pending))
            for key, written in by_key.items():
                sure = [(v, p) for v, p in written if p.outcome in (*DEFINITE, Outcome.APPLIED)]
                perhaps = sum(p.outcome is Outcome.UNKNOWN for _, p in written)
                kv = found.get(key)
                version = kv.version if kv else 0
                if version < len(sure):
                    verdict.note("lost", f"{key!r} has {version} versions of {len(sure)}")
                if version > len(sure) + perhaps:
                    verdict.note(
                        "doubled", f"{key!r} has {version} versions of {len(sure)} + {perhaps}"
                    )
                answered = [(v, p) for v, p in sure if p.outcome in DEFINITE]
                for value, pending in rng.sample(answered, min(3, len(answered))):
                    revision = decode(Kind.PUT, pending.answer).header.revision
                    then = client.get(key, revision=revision)
                    if then is None or then.value != value or then.mod_revision != revision:
                        verdict.note("lost", f"{key!r} at its revision {revision}")

    def _check_increments(self, client: Client, verdict: Verdict) -> None:
        won: dict[int, int] = defaultdict(int)
        perhaps: dict[int, int] = defaultdict(int)
        for writer in self.threads:
            for counter, _, pending in writer.increments:
                if pending.outcome in DEFINITE:
                    won[counter] += decode(Kind.TXN, pending.answer).succeeded
                elif pending.outcome in (Outcome.UNKNOWN, Outcome.APPLIED):
                    perhaps[counter] += 1
        for counter in range(COUNTERS):
            kv = client.get(b"c/%d" % counter)
            version = kv.version if kv else 0
            if version < won[counter]:
                verdict.note("lost", f"counter {counter} is {version}, acknowledged {won[counter]}")
            if version > won[counter] + perhaps[counter]:
                text = f"counter {counter} is {version}, {won[counter]} + {perhaps[counter]} won"
                verdict.note("doubled", text)

    def _check_creates(self, client: Client, verdict: Verdict) -> None:
        owners: dict[int, list[bytes]] = defaultdict(list)
        open_names: dict[int, int] = defaultdict(int)
        for writer in self.threads:
            for name, owner, pending in writer.creates:
                if pending.outcome in DEFINITE:
                    if decode(Kind.TXN, pending.answer).succeeded:
                        owners[name].append(owner)
                    else:
                        owners[name] += []
                elif pending.outcome in (Outcome.UNKNOWN, Outcome.APPLIED):
                    open_names[name] += 1
        found = {kv.key: kv for kv in client.range(b"u/", prefix=True).kvs}
        for name, winners in owners.items():
            kv = found.get(b"u/%d" % name)
            if kv is None:
                verdict.note("lost", f"name {name} was decided and is not there")
            elif len(winners) > 1 or kv.version > 1:
                verdict.note("doubled", f"name {name}: {winners}, version {kv.version}")
            elif winners and kv.value != winners[0]:
                verdict.note("lost", f"name {name} is {kv.value!r}'s, acknowledged {winners}")
            elif not winners and not open_names[name]:
                verdict.note("doubled", f"name {name} exists, all who wanted it were refused")

    def _check_batches(self, client: Client, verdict: Verdict) -> None:
        found = {kv.key: kv for kv in client.range(b"b/", prefix=True).kvs}
        for writer in self.threads:
            for group, one, pending in writer.batches:
                names = [b"b/%d/%d/%d" % (writer.number, group, i) for i in range(BATCH)]
                kvs = [found[name] for name in names if name in found]
                where = f"batch {writer.number}/{group}"
                if len(kvs) not in (0, BATCH):
                    verdict.note("half", f"{where}: {len(kvs)} of {BATCH}")
                    continue
                if not kvs:
                    if pending.outcome in (*DEFINITE, Outcome.APPLIED):
                        verdict.note("lost", where)
                    continue
                if any(kv.version != 1 for kv in kvs):
                    verdict.note("doubled", f"{where}: versions {[kv.version for kv in kvs]}")
                    continue
                revisions = [kv.mod_revision for kv in kvs]
                wanted = [revisions[0] + (0 if one else i) for i in range(BATCH)]
                if revisions != wanted:
                    verdict.note("half", f"{where}: revisions {revisions}")
                elif pending.outcome in DEFINITE:
                    answer = decode(Kind.PUT_BATCH, pending.answer)
                    if (answer.first_revision, answer.last_revision) != (wanted[0], wanted[-1]):
                        verdict.note("lost", f"{where}: answered {answer.first_revision}")
