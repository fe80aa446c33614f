"""The request engine of the client: sequences, packing, credit, resends, failover.

Role: turns submitted requests into messages and answers into outcomes, over one connection at a
time. Caller: client/sync (the public API). Not for several threads at once.

Life of a request: `submit` queues it -> `_send_queue` gives it an id (and a write of a session
its sequence) and packs it -> `_on_answers` closes it. When the connection is lost, every sent
request that is still open goes out again, first, on the next one: a write under the same
(session, sequence), so that the node executes it once; a read as it is.

Invariants:
  1. A sequence is given at the first send and never changes while its session lives, so what is
     sent is gapless and ordered; only sequences below lowest open + window are sent.
  2. An id is sent at most once on a connection; unanswered bytes on it never exceed its credit.
  3. A write without a session is sent at most once: after that only an answer tells its outcome.
  4. A write whose first and only attempt was answered OUTCOME_UNKNOWN was not executed, and goes
     out again under a new session; with more attempts the outcome stays UNKNOWN.
  5. No timer runs between calls: everything happens inside submit, poll, wait, drain.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from enum import Enum

from kvnode.base.codes import Code, Kind
from kvnode.base.errors import CallerError, DecodeError, RequestError, UnavailableError
from kvnode.client.connection import Connection, ConnectionLost
from kvnode.wire import native
from kvnode.wire.native import Hello, Opcode

MESSAGE_BYTES = 256 << 10
"""A message is closed here: large enough to amortize its cost, small enough to overlap."""

QUEUE_BYTES_MAX = 8 << 20
"""Unsent bytes above which `submit` waits instead of queueing."""

ATTEMPT_SECONDS = 1.0
"""A request unanswered for so long is sent again on a new connection; doubles up to 8 times this.
The time that the bytes in flight may take at ATTEMPT_BYTES_PER_SECOND comes on top."""
ATTEMPT_BYTES_PER_SECOND = 16 << 20

BACKOFF_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4)
_GREET_SECONDS = 2.0
_NEVER = float("inf")

WRITES = frozenset({Kind.PUT, Kind.DELETE_RANGE, Kind.TXN, Kind.COMPACT, Kind.PUT_BATCH,
                    Kind.PUT_BATCH_ONE, Kind.TXN_BATCH, Kind.LEASE_GRANT,
                    Kind.LEASE_REVOKE})  # fmt: skip
_READS = frozenset({Kind.RANGE, Kind.STATUS, Kind.LEASE_KEEP_ALIVE, Kind.LEASE_TIME_TO_LIVE,
                    Kind.LEASE_LEASES})  # fmt: skip
_PASSING = frozenset({Code.UNAVAILABLE, Code.NO_LEADER, Code.TIMEOUT, Code.STOPPED,
                      Code.AUTH_OLD_REVISION})  # fmt: skip


_PERHAPS = frozenset({Code.UNAVAILABLE, Code.TIMEOUT, Code.STOPPED})
"""Answers to a write that may have been proposed before."""


def encode_session_close(session: int) -> bytes:
    """kvnodepb.SessionClose."""
    return b"\x08" + native.encode_varint(session)


def _backoff(attempts: int) -> float:
    return BACKOFF_SECONDS[min(max(attempts, 1), len(BACKOFF_SECONDS)) - 1]


class Outcome(Enum):
    """What is known of a request."""

    OPEN = "open"
    """Not answered yet."""
    EXECUTED = "executed"
    """Done by this attempt."""
    REPEATED = "repeated"
    """Done once, by an earlier attempt; this is its stored answer."""
    REFUSED = "refused"
    """Not executed: `code` says why."""
    APPLIED = "applied"
    """Done once, by an earlier attempt whose full answer is no longer known."""
    UNKNOWN = "unknown"
    """Sent, and whether it was executed can't be known any more."""
    NOT_SENT = "not sent"
    """Given up before it left: not executed."""


class Pending:
    """One submitted request. `outcome`, `code` and `answer` hold once `done`.

    answer: the response message's bytes (etcdserverpb or kvnodepb, by `kind`), or for a refusal
    its UTF-8 detail.
    """

    __slots__ = ("answer", "attempts", "body", "code", "due", "id", "kind", "outcome", "sequence")

    def __init__(self, kind: int, body: bytes) -> None:
        self.kind = kind
        self.body = body
        self.id = 0
        self.sequence = 0
        self.attempts = 0
        self.due = 0.0
        self.outcome = Outcome.OPEN
        self.code = 0
        self.answer = b""

    @property
    def done(self) -> bool:
        """Whether an outcome is there (also UNKNOWN)."""
        return self.outcome is not Outcome.OPEN

    def result(self) -> bytes:
        """The response message's bytes; RequestError or UnavailableError if there is none."""
        if self.outcome is Outcome.EXECUTED or self.outcome is Outcome.REPEATED:
            return self.answer
        detail = self.answer.decode("utf-8", "replace")
        if self.outcome is Outcome.OPEN:
            raise UnavailableError("not answered yet")
        if self.code:
            try:
                code = Code(self.code)
            except ValueError:
                raise UnavailableError(f"unknown refusal code {self.code}: {detail}") from None
            raise RequestError(code, detail)
        raise UnavailableError(detail)

    def __repr__(self) -> str:
        return f"<Pending {self.kind} sequence {self.sequence} {self.outcome.value}>"


class Engine:
    """Requests over one connection at a time, to the first endpoint that answers."""

    def __init__(self, endpoints: Sequence[str], token: str, session: bool, name: str) -> None:
        self._endpoints = list(endpoints)
        self._token = token
        self._want_session = session
        self._name = name
        self._pid = os.getpid()
        self._connection: Connection | None = None
        self._endpoint_at = 0
        self._failures = 0
        self._resume_at = 0.0
        self._last_error = ""
        self._closed = False
        self._reset_session()
        self._queue: deque[Pending] = deque()
        self._queue_bytes = 0
        self._sent: dict[int, Pending] = {}
        self._ghosts: dict[int, int] = {}
        self._next_due = _NEVER
        self._inflight_bytes = 0
        self._credit = 0
        self._next_id = 1
        self.messages_sent = self.resends = self.connections = 0

    # --- what the API calls -----------------------------------------------------------------------

    @property
    def session(self) -> int:
        """The session's number; 0 before the first connection or without a session."""
        return self._session

    @property
    def connected(self) -> bool:
        """Whether there is a greeted connection (it may be dead already)."""
        return self._connection is not None

    @property
    def last_error(self) -> str:
        """Why the last connection failed; "" if none did."""
        return self._last_error

    @property
    def open_count(self) -> int:
        """Requests submitted and not answered."""
        return len(self._queue) + len(self._sent)

    def submit(self, pending: Pending) -> None:
        """Queues; sends when a message is full; waits when QUEUE_BYTES_MAX are unsent."""
        self._check_process()
        self._queue.append(pending)
        self._queue_bytes += len(pending.body) + native.ITEM_BYTES
        if self._queue_bytes >= MESSAGE_BYTES and self._connection is not None:
            try:
                self._send_queue(self._connection)
            except (ConnectionLost, DecodeError) as error:
                self._lose(error)

    def queue_full(self) -> bool:
        """Whether `submit` should wait (turn `step`) first."""
        return self._queue_bytes > QUEUE_BYTES_MAX

    def step(self, deadline: float) -> None:
        """One turn: connect if needed, send what may go, take what came; at most until deadline.

        Failures of a connection end it and are remembered; the next step opens another. Raises
        only what no other endpoint could cure: RequestError from HELLO (a wrong token).
        """
        self._check_process()
        now = time.monotonic()
        pausing = self._resume_at > now
        if pausing:
            deadline = min(deadline, self._resume_at)
        try:
            connection = self._connection
            if connection is not None and connection.stale() and not self._sent:
                self._drop_connection()
                connection = None
            if connection is None:
                if pausing:
                    time.sleep(max(0.0, deadline - now))
                    return
                connection = self._connect(deadline)
            if not pausing:
                self._send_queue(connection)
            self._receive(connection, deadline)
        except (ConnectionLost, DecodeError) as error:
            self._lose(error)

    def abandon(self, pending: Pending, why: str) -> None:
        """Closes a request that nobody waits for any more."""
        if pending.done:
            return
        text = f"{why}: {self._last_error}" if self._last_error else why
        pending.answer = text.encode()
        if pending.attempts == 0 or pending.kind in _READS:
            pending.outcome = Outcome.NOT_SENT
        else:
            pending.outcome = Outcome.UNKNOWN
        if self._sent.get(pending.id) is pending:
            # Its bytes stay counted: the gateway still owes the answer on this connection.
            del self._sent[pending.id]
            self._ghosts[pending.id] = len(pending.body) + native.ITEM_BYTES
        elif pending in self._queue:
            self._queue.remove(pending)
            self._queue_bytes -= len(pending.body) + native.ITEM_BYTES
        self._open_sequences.discard(pending.sequence)

    def close(self) -> None:
        """Ends the session, says GOODBYE; open requests become UNKNOWN or NOT_SENT.

        Does not wait for the end of the session: should it get lost, the session ends as an idle
        one.
        """
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._pid:
            return
        for pending in [*self._sent.values(), *self._queue]:
            self.abandon(pending, "the client was closed")
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._session:
                body = encode_session_close(self._session)
                item = (self._take_id(), Kind.SESSION_CLOSE, 0, body)
                connection.send(native.encode_requests(0, 0, [item]))
            connection.close(goodbye_session=self._session)

    # --- connections ------------------------------------------------------------------------------

    def _check_process(self) -> None:
        """In a forked child: leave the parent's sockets, session and requests to the parent."""
        if self._closed:
            raise CallerError("the client is closed")
        if os.getpid() == self._pid:
            return
        for pending in [*self._sent.values(), *self._queue]:
            pending.outcome = Outcome.UNKNOWN
            pending.answer = b"submitted before a fork: the parent process has the answer"
        self._pid = os.getpid()
        self._connection = None
        self._queue.clear()
        self._sent.clear()
        self._ghosts.clear()
        self._queue_bytes = self._inflight_bytes = 0
        self._resume_at = 0.0
        self._reset_session()

    def _reset_session(self) -> None:
        self._session = 0
        self._session_lost = False
        self._window = 1 << 32
        self._next_sequence = 1
        self._lowest_open = 1
        self._open_sequences: set[int] = set()

    def _connect(self, deadline: float) -> Connection:
        if self._session_lost:
            self._renew_session()
        endpoint = self._endpoints[self._endpoint_at % len(self._endpoints)]
        connection = Connection(endpoint)
        hello = Hello(
            native.VERSION,
            native.VERSION,
            self._name,
            self._token,
            self._session,
            self._want_session,
        )
        try:
            limits = connection.greet(hello, min(deadline, time.monotonic() + _GREET_SECONDS))
        except BaseException as error:
            connection.close()
            if isinstance(error, ConnectionLost):
                self._judge_hello(error)
            raise
        self._connection = connection
        self.connections += 1
        self._inflight_bytes = 0
        self._ghosts.clear()
        self._next_due = _NEVER
        self._credit = limits.credit_bytes or MESSAGE_BYTES
        self._window = limits.window or 1
        if self._session and limits.session != self._session:
            self._renew_session()
        self._session = limits.session if self._want_session else 0
        self._requeue_sent()
        return connection

    def _judge_hello(self, error: ConnectionLost) -> None:
        """Tells refusals that another endpoint may not share from those of the caller."""
        if error.code == Code.OUTCOME_UNKNOWN and self._session:
            self._session_lost = True
        elif error.code and error.code not in _PASSING:
            try:
                code = Code(error.code)
            except ValueError:
                return
            if code is not Code.TOO_MANY_REQUESTS:
                raise RequestError(code, str(error)) from error

    def _requeue_sent(self) -> None:
        """Everything sent and unanswered goes to the front of the queue, in its old order."""
        if not self._sent:
            return
        again: list[Pending] = []
        for pending in self._sent.values():
            if self._may_repeat(pending):
                again.append(pending)
            else:
                self._close_unknown(pending, "the connection was lost after it was sent")
        again.sort(key=lambda p: (p.sequence == 0, p.sequence, p.id))
        self.resends += len(again)
        self._queue.extendleft(reversed(again))
        self._queue_bytes += sum(len(p.body) + native.ITEM_BYTES for p in again)
        self._sent.clear()

    @staticmethod
    def _may_repeat(pending: Pending) -> bool:
        return pending.sequence != 0 or pending.kind in _READS

    def _close_unknown(self, pending: Pending, why: str) -> None:
        pending.outcome = Outcome.UNKNOWN
        pending.answer = f"outcome unknown: {why}".encode()
        self._open_sequences.discard(pending.sequence)

    def _renew_session(self) -> None:
        """The session is gone from the state machine: nothing of it can be executed any more."""
        for pending in self._sent.values():
            if pending.sequence:
                self._close_unknown(pending, "the session ended before the answer came")
        self._sent = {i: p for i, p in self._sent.items() if not p.sequence}
        for pending in list(self._queue):
            if pending.sequence and pending.attempts:
                self._queue.remove(pending)
                self._queue_bytes -= len(pending.body) + native.ITEM_BYTES
                self._close_unknown(pending, "the session ended before the answer came")
            else:
                pending.sequence = 0
        self._reset_session()

    def _lose(self, error: Exception) -> None:
        self._last_error = str(error)
        self._drop_connection()
        self._endpoint_at += 1
        self._failures += 1
        rounds, rest = divmod(self._failures, len(self._endpoints))
        if rest == 0:
            self._resume_at = time.monotonic() + _backoff(rounds)

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- sending ----------------------------------------------------------------------------------

    def _send_queue(self, connection: Connection) -> None:
        """Packs and sends what credit and window allow."""
        queue = self._queue
        while queue and not self._session_lost:
            batch: list[Pending] = []
            items: list[tuple[int, int, int, bytes]] = []
            size = 0
            while queue and size < MESSAGE_BYTES:
                pending = queue[0]
                cost = len(pending.body) + native.ITEM_BYTES
                if cost > self._credit:
                    queue.popleft()
                    self._queue_bytes -= cost
                    self._refuse_too_large(pending)
                    continue
                if self._inflight_bytes + size + cost > self._credit:
                    break
                if batch and size + cost > MESSAGE_BYTES:
                    break
                if not self._give_sequence(pending):
                    break
                queue.popleft()
                size += cost
                pending.id = self._take_id()
                batch.append(pending)
                items.append((pending.id, pending.kind, pending.sequence, pending.body))
            if not batch:
                return
            message = native.encode_requests(self._session, self._advance_lowest(), items)
            if not connection.send(message):
                queue.extendleft(reversed(batch))
                return
            self.messages_sent += 1
            self._queue_bytes -= size
            self._inflight_bytes += size
            base = connection.last_sent + self._inflight_bytes / ATTEMPT_BYTES_PER_SECOND
            for pending in batch:
                due = base + ATTEMPT_SECONDS * (1 << min(pending.attempts, 3))
                pending.attempts += 1
                pending.due = due if self._may_repeat(pending) else _NEVER
                self._sent[pending.id] = pending
                if pending.due < self._next_due:
                    self._next_due = pending.due

    def _give_sequence(self, pending: Pending) -> bool:
        """A write of a session gets its sequence; False while the window is full."""
        if pending.sequence or not self._session or pending.kind not in WRITES:
            return True
        sequence = self._next_sequence
        window = self._window
        if sequence >= self._lowest_open + window and sequence >= self._advance_lowest() + window:
            return False
        self._next_sequence = sequence + 1
        self._open_sequences.add(sequence)
        pending.sequence = sequence
        return True

    def _advance_lowest(self) -> int:
        lowest, open_sequences = self._lowest_open, self._open_sequences
        while lowest < self._next_sequence and lowest not in open_sequences:
            lowest += 1
        self._lowest_open = lowest
        return lowest

    def _take_id(self) -> int:
        number = self._next_id
        self._next_id = number + 1 if number < 0xFFFFFFFF else 1
        return number

    def _refuse_too_large(self, pending: Pending) -> None:
        pending.outcome = Outcome.REFUSED
        pending.code = Code.REQUEST_TOO_LARGE
        pending.answer = (
            f"{len(pending.body)} bytes, this connection's credit is {self._credit} bytes".encode()
        )
        self._open_sequences.discard(pending.sequence)

    # --- receiving --------------------------------------------------------------------------------

    def _receive(self, connection: Connection, deadline: float) -> None:
        wait = min(deadline, self._next_due) - time.monotonic()
        for message in connection.receive(max(0.0, wait)):
            header = native.decode_header(message)
            if header.opcode == Opcode.ANSWERS:
                self._on_answers(native.decode_answers(message, header.items))
            elif header.opcode == Opcode.CREDIT:
                self._credit = native.decode_credit(message)
            elif header.opcode == Opcode.ERROR:
                code, text = native.decode_error(message)
                if code == Code.OUTCOME_UNKNOWN and self._session:
                    self._session_lost = True
                raise ConnectionLost(f"{connection.endpoint}: {text}", code)
            elif header.opcode != Opcode.PONG:
                raise DecodeError(f"{connection.endpoint} sent {header.opcode.name}")
        now = time.monotonic()
        if self._next_due <= now:
            self._next_due = min((p.due for p in self._sent.values()), default=_NEVER)
            if self._next_due <= now:
                raise ConnectionLost(f"{connection.endpoint}: a request was not answered in time")
        if self._session_lost and not self._sent:
            raise ConnectionLost("the session has ended; opening another")

    def _on_answers(self, answers: list[tuple[int, int, int, bytes]]) -> None:
        sent = self._sent
        open_sequences = self._open_sequences
        self._failures = 0
        for number, code, state, body in answers:
            pending = sent.pop(number, None)
            if pending is None:
                # Abandoned; an id never sent here is the gateway's fault, but harmless.
                self._inflight_bytes -= self._ghosts.pop(number, 0)
                continue
            self._inflight_bytes -= len(pending.body) + native.ITEM_BYTES
            if code:
                self._on_refusal(pending, code, body)
                continue
            pending.answer = body
            pending.outcome = Outcome.REPEATED if state else Outcome.EXECUTED
            if pending.sequence:
                open_sequences.discard(pending.sequence)

    def _on_refusal(self, pending: Pending, code: int, body: bytes) -> None:
        if code in _PASSING and self._may_repeat(pending):
            # Nothing was consumed: the same request once more, after a pause.
            self._queue.appendleft(pending)
            self._queue_bytes += len(pending.body) + native.ITEM_BYTES
            self._last_error = Code(code).name
            self._resume_at = time.monotonic() + _backoff(pending.attempts)
            return
        if code == Code.OUTCOME_UNKNOWN and pending.sequence:
            self._session_lost = True
            if pending.attempts == 1:
                pending.attempts = 0
                self._queue.append(pending)
                self._queue_bytes += len(pending.body) + native.ITEM_BYTES
                return
            pending.outcome = Outcome.UNKNOWN
        elif code == Code.NO_SPACE and pending.sequence and pending.attempts > 1:
            # A full log refuses before it looks for an earlier attempt's outcome.
            pending.outcome = Outcome.UNKNOWN
        elif code in _PERHAPS and pending.kind not in _READS:
            pending.outcome = Outcome.UNKNOWN
        elif code == Code.APPLIED:
            pending.outcome = Outcome.APPLIED
        else:
            pending.outcome = Outcome.REFUSED
        pending.code = code
        pending.answer = body
        self._open_sequences.discard(pending.sequence)
