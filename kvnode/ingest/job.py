"""A job's memory in the store: which positions are applied, and who may apply more.

Role: starts, resumes and ends an import job; makes each batch's checkpoint. Caller: run.

    /kvnode/import/JOB        {"version":1,"content":..,"session":..,"low":..,"below":..,
                               "holes":[[start,end,records],..],"done":false}
    /kvnode/import/JOB/LANE   {"start":..,"end":..,"records":..,"low":..,"below":..}   LANE 0, 1 ..

Positions below `low` are applied (`below` records), so are those of each [start, end) and of each
hole. A batch and its lane's key are one request, so one log entry: applied both or not at all.

Batches in flight may be applied out of order (one refused in passing is sent again behind others),
hence lanes instead of one key. Batch n writes lane n % lanes and is submitted only when all up to
batch n - lanes are answered, and `low` in it covers those: what it overwrites is never lost.

A process that died may have left batches on their way. They belong to its session; the next
process closes that session through the log before it reads the lanes. Batches of a closed session
are refused, so what is read then is final.

Invariants:
  1. The job's key names the session before any batch of that session is sent; it changes only by
     a transaction that compares its revision. So one session at most can write to a job.
  2. The session of a job's client is never replaced by another (Fenced): the import ends instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from kvnode.base.codes import Kind
from kvnode.base.errors import UnavailableError
from kvnode.client import messages
from kvnode.client.engine import Engine, encode_session_close
from kvnode.client.sync import Client, prefix_range
from kvnode.ingest.records import IngestError

ROOT = "/kvnode/import/"
_VERSION = 1
_TRIES = 10
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Taken(IngestError):
    """The job goes on elsewhere."""


class _OneSession(Engine):
    """An engine that ends when its session does: a new one would not be the job's."""

    def _renew_session(self) -> None:
        raise Taken("the import was taken over by another one of the same job, or its session "
                    "was ended; run the same command to resume")  # fmt: skip


class Fenced(Client):
    """A client whose writes all belong to the session it began with."""

    def __init__(self, endpoints: str | Sequence[str], timeout: float, token: str) -> None:
        super().__init__(endpoints, timeout=timeout, token=token)
        self._engine = _OneSession(self.endpoints, token, True, "kvnode-import")


class Base(msgspec.Struct):
    version: int
    content: str
    session: int
    low: int = 0
    below: int = 0
    holes: list[tuple[int, int, int]] = []
    done: bool = False


class Lane(msgspec.Struct):
    """One batch. All below `low`, which is `below` records, was applied before it was sent."""

    start: int
    end: int
    records: int
    low: int
    below: int


@dataclass
class State:
    """What is applied: all below `low` (`below` records), and (start, end, records) above it."""

    low: int = 0
    below: int = 0
    holes: list[tuple[int, int, int]] = field(default_factory=list)
    done: bool = False
    resumed: bool = False


class Job:
    """One job over one client. `begin` first, then `checkpoint` for each batch, then `finish`.

    lasting: False when nobody can come back to it (standard input without a name): nothing of it
    stays in the store once it is done.
    """

    def __init__(
        self, client: Client, name: str, content: str, lanes: int, lasting: bool = True
    ) -> None:
        if not _JOB_ID.fullmatch(name):
            raise IngestError(f'job id "{name}": use letters, digits, . _ - (at most 100)')
        self._client = client
        self._content = content
        self._key = (ROOT + name).encode()
        self._revision = 0
        self.name = name
        self.lanes = lanes
        self._session = 0
        self._lasting = lasting

    def begin(self, restart: bool) -> State:
        """Takes the job over. IngestError if its sources are not those it began with."""
        for _ in range(_TRIES):
            held = self._client.get(self._key)
            base = self._decode(held.value) if held else None
            if base and not restart:
                if base.content != self._content:
                    raise IngestError(
                        f"job {self.name}: its sources have changed since it began; give another "
                        f"--job-id, or --restart to import them from the beginning"
                    )
                if base.done:
                    return State(base.low, base.below, done=True, resumed=True)
            if base and base.session != self._client.session:
                self._fence(base.session)
            state = State()
            if base and not restart:
                state = merge(base, self._read_lanes())
                state.resumed = True
            fresh = Base(_VERSION, self._content, self._client.session, state.low, state.below,
                         state.holes)  # fmt: skip
            if self._swap(held.mod_revision if held else 0, fresh):
                self._session = self._client.session
                return state
        raise Taken(f"job {self.name}: other imports of the same job keep starting")

    def checkpoint(self, number: int, lane: Lane) -> tuple[bytes, bytes]:
        """(key, value) that goes with batch `number`."""
        return b"%s/%d" % (self._key, number % self.lanes), msgspec.json.encode(lane)

    def finish(self, low: int, below: int, done: bool) -> None:
        """Every batch below `low` is answered: the lanes are folded into the job's key."""
        if not self._swap(
            self._revision, Base(_VERSION, self._content, self._session, low, below, [], done)
        ):
            raise Taken(f"job {self.name} was taken over by another import")

    def _fence(self, session: int) -> None:
        """Nothing of that session is executed any more when this returns."""
        for last in (False, False, False, True):
            try:
                self._client.call(Kind.SESSION_CLOSE, encode_session_close(session))
                return
            except UnavailableError:
                if last:
                    raise

    def _decode(self, value: bytes) -> Base:
        try:
            base = msgspec.json.decode(value, type=Base)
        except msgspec.DecodeError as error:
            raise IngestError(f"job {self.name}: its key {self._key.decode()} is damaged: {error}; "
                              "--restart needs it deleted first") from None  # fmt: skip
        if base.version != _VERSION:
            raise IngestError(f"job {self.name} was written by another version of kvnode")
        return base

    def _read_lanes(self) -> list[Lane]:
        response = self._client.range(self._key + b"/", prefix=True)
        return [msgspec.json.decode(kv.value, type=Lane) for kv in response.kvs]

    def _swap(self, revision: int, base: Base) -> bool:
        """Writes the job's key and drops the lanes, if the key is still as it was read."""
        first, end = prefix_range(self._key + b"/")
        if base.done and not self._lasting:
            own = messages.op_delete_range(messages.delete_range_request(self._key))
        else:
            own = messages.op_put(messages.put_request(self._key, msgspec.json.encode(base)))
        response = self._client.txn(
            [messages.compare(self._key, "mod", "=", revision)],
            [own, messages.op_delete_range(messages.delete_range_request(first, range_end=end))],
        )
        if response.succeeded:
            self._revision = response.header.revision
        return bool(response.succeeded)


def merge(base: Base, lanes: Sequence[Lane]) -> State:
    """The union of what the job's key and its lanes say is applied."""
    spans = sorted([*base.holes, *((lane.start, lane.end, lane.records) for lane in lanes)])
    low, below = max([(base.low, base.below), *((lane.low, lane.below) for lane in lanes)])
    state = State(low, below)
    for start, end, records in spans:
        if end <= state.low:
            continue
        assert start >= state.low, "a batch overlaps what was applied before it"
        if start == state.low:
            state.low, state.below = end, state.below + records
        else:
            state.holes.append((start, end, records))
    return state
