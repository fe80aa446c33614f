"""The synchronous Python client of the native protocol (2382).

    with Client("tcp://127.0.0.1:2382") as client:
        client.put("greeting", "hello")
        print(client.get("greeting").value)

Callers: applications, the command line, ingest, tests. A Client belongs to one thread. After a
fork the child's first call opens its own connection and session; requests that the parent left
open are the parent's.

Exactly-once: with `session=True` every write carries (session, sequence). It is sent again after
a timeout or a lost connection, on any endpoint, and executed once. Only when its deadline passes
unanswered is the outcome unknown: UnavailableError then says so.

Errors: RequestError(code) for a refusal of the node, UnavailableError when no answer came in time,
CallerError for a wrong use. Responses are messages of `kvnode.proto`, imported at the first one.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from kvnode.base.codes import Kind
from kvnode.base.errors import CallerError, UnavailableError
from kvnode.client import messages
from kvnode.client.engine import WRITES, Engine, Outcome, Pending
from kvnode.client.messages import Data

TIMEOUT_SECONDS = 5.0


class Client:
    """A connection to a kvnode cluster.

    endpoints: "tcp://HOST:PORT", several separated by commas or as a list; the first that answers
    is used, the next after a failure.
    timeout: seconds a call may take, retries included.
    token: handed to the node in HELLO.
    session: False sends writes without a session: each is sent at most once.

    Blocking: the constructor does not; the first call connects.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        timeout: float = TIMEOUT_SECONDS,
        token: str = "",
        session: bool = True,
        name: str = "python",
    ) -> None:
        self.endpoints = parse_endpoints(endpoints)
        self.timeout = timeout
        self._engine = Engine(self.endpoints, token, session, name)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def session(self) -> int:
        """The session's number; 0 before the first call and without a session."""
        return self._engine.session

    @property
    def open_count(self) -> int:
        """Requests submitted and not answered yet."""
        return self._engine.open_count

    def close(self) -> None:
        """Says GOODBYE and closes; requests still open become UNKNOWN or NOT_SENT. Idempotent."""
        self._engine.close()

    # --- one request at a time --------------------------------------------------------------------

    def call(self, kind: int, body: bytes, timeout: float | None = None) -> bytes:
        """Sends one request and returns its response message's bytes.

        Blocking: up to `timeout` seconds (default: the client's).
        Durability: a write that returns is on disk on a quorum and applied.
        """
        return self.wait(self.submit(kind, body), timeout)

    def put(
        self,
        key: Data,
        value: Data = b"",
        *,
        lease: int = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Writes one key; returns etcdserverpb.PutResponse.

        Durability: when it returns the write is synced on a quorum and visible to every read.
        """
        body = messages.put_request(
            key,
            value,
            lease=lease,
            prev_kv=prev_kv,
            ignore_value=ignore_value,
            ignore_lease=ignore_lease,
        )
        return decode(Kind.PUT, self.call(Kind.PUT, body, timeout))

    def get(
        self,
        key: Data,
        *,
        revision: int = 0,
        serializable: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """The key's mvccpb.KeyValue, or None if it does not exist (at that revision)."""
        response = self.range(key, revision=revision, serializable=serializable, timeout=timeout)
        return response.kvs[0] if response.kvs else None

    def range(
        self,
        key: Data,
        range_end: Data = b"",
        *,
        prefix: bool = False,
        timeout: float | None = None,
        **options: Any,
    ) -> Any:
        """Reads [key, range_end); returns etcdserverpb.RangeResponse.

        range_end empty: that key alone; b"\\0": all keys from `key` on. prefix: all keys that
        begin with `key` (an empty one: all keys). options: those of `messages.range_request`.
        Linearizable unless serializable=True.
        """
        if prefix:
            key, range_end = prefix_range(messages.as_bytes(key))
        body = messages.range_request(key, range_end, **options)
        return decode(Kind.RANGE, self.call(Kind.RANGE, body, timeout))

    def delete_range(
        self,
        key: Data,
        range_end: Data = b"",
        *,
        prefix: bool = False,
        prev_kv: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Deletes [key, range_end), as in `range`; returns etcdserverpb.DeleteRangeResponse."""
        if prefix:
            key, range_end = prefix_range(messages.as_bytes(key))
        body = messages.delete_range_request(key, range_end, prev_kv=prev_kv)
        return decode(Kind.DELETE_RANGE, self.call(Kind.DELETE_RANGE, body, timeout))

    def txn(
        self,
        compares: Sequence[bytes] = (),
        success: Sequence[bytes] = (),
        failure: Sequence[bytes] = (),
        *,
        timeout: float | None = None,
    ) -> Any:
        """A transaction from `messages.compare` and `messages.op_...` bytes; its TxnResponse."""
        body = messages.txn_request(compares, success, failure)
        return decode(Kind.TXN, self.call(Kind.TXN, body, timeout))

    def compact(
        self, revision: int, *, physical: bool = False, timeout: float | None = None
    ) -> Any:
        """Forgets what was superseded before `revision`; returns CompactionResponse."""
        body = messages.compaction_request(revision, physical=physical)
        return decode(Kind.COMPACT, self.call(Kind.COMPACT, body, timeout))

    def put_batch(
        self,
        pairs: Iterable[tuple[Data, Data]],
        *,
        one_revision: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Writes many keys as one request and one log entry; returns kvnodepb.BatchResponse.

        one_revision: all in one revision (keys must be unique, all or none), else one each, and a
        refused put is listed in `refused` while the others are applied.
        """
        body = messages.put_batch(pairs)
        kind = Kind.PUT_BATCH_ONE if one_revision else Kind.PUT_BATCH
        return decode(kind, self.call(kind, body, timeout))

    def txn_batch(self, txns: Iterable[bytes], *, timeout: float | None = None) -> Any:
        """Many transactions (TxnRequest bytes) as one request, each with its own revision."""
        body = messages.batch(txns)
        return decode(Kind.TXN_BATCH, self.call(Kind.TXN_BATCH, body, timeout))

    # --- leases -----------------------------------------------------------------------------------

    def grant(self, ttl: int, lease: int = 0, *, timeout: float | None = None) -> Any:
        """A lease of `ttl` seconds (the node may give more); returns LeaseGrantResponse.

        lease: the id wanted (int64), 0: one is made. Keys are attached by `put(lease=...)`.
        """
        from kvnode._core.messages import encode_lease_grant

        body = encode_lease_grant(ttl, lease)
        return decode(Kind.LEASE_GRANT, self.call(Kind.LEASE_GRANT, body, timeout))

    def revoke(self, lease: int, *, timeout: float | None = None) -> Any:
        """Ends a lease and deletes its keys in one revision; returns LeaseRevokeResponse."""
        return self._lease(Kind.LEASE_REVOKE, lease, False, timeout)

    def keep_alive(self, lease: int, *, timeout: float | None = None) -> Any:
        """Gives a lease its whole time; LeaseKeepAliveResponse, TTL 0: the lease is gone."""
        return self._lease(Kind.LEASE_KEEP_ALIVE, lease, False, timeout)

    def time_to_live(
        self, lease: int, *, keys: bool = False, timeout: float | None = None
    ) -> Any:
        """LeaseTimeToLiveResponse: TTL -1 if the lease is gone; keys: those attached, sorted."""
        return self._lease(Kind.LEASE_TIME_TO_LIVE, lease, keys, timeout)

    def leases(self, timeout: float | None = None) -> Any:
        """LeaseLeasesResponse: all leases, those that end first before the others."""
        return decode(Kind.LEASE_LEASES, self.call(Kind.LEASE_LEASES, b"", timeout))

    def _lease(self, kind: Kind, lease: int, keys: bool, timeout: float | None) -> Any:
        from kvnode._core.messages import encode_lease

        return decode(kind, self.call(kind, encode_lease(lease, keys), timeout))

    def status(self, timeout: float | None = None) -> Any:
        """etcdserverpb.StatusResponse of the member that answers."""
        return decode(Kind.STATUS, self.call(Kind.STATUS, b"", timeout))

    def defragment(self, timeout: float | None = None) -> Any:
        """Builds a new storage generation while writers go on; returns DefragmentResponse."""
        return decode(Kind.DEFRAG, self.call(Kind.DEFRAG, b"", timeout))

    # --- many in flight ---------------------------------------------------------------------------

    def submit(self, kind: int, body: bytes) -> Pending:
        """Queues a request; requests submitted without a wait between them share messages.

        Nothing is sent before a message is full (256 KiB), or flush, poll, wait or drain.
        Blocking: only while more than 8 MiB wait to be sent; UnavailableError after the timeout.
        """
        pending = Pending(kind, body)
        engine = self._engine
        if engine.queue_full():
            deadline = time.monotonic() + self.timeout
            while engine.queue_full():
                if time.monotonic() >= deadline:
                    raise UnavailableError(self._no_answer("8 MiB of requests wait to be sent"))
                engine.step(deadline)
        engine.submit(pending)
        return pending

    def flush(self) -> None:
        """Sends what credit and window allow now. Blocking: only to connect, up to the timeout."""
        self._engine.step(time.monotonic() if self._engine.connected else self._deadline(None))

    def poll(self, timeout: float = 0.0) -> None:
        """Sends and receives for up to `timeout` seconds, or until something came."""
        self._engine.step(time.monotonic() + timeout)

    def wait(self, pending: Pending, timeout: float | None = None) -> bytes:
        """Waits for one request and returns its response's bytes.

        RequestError if it was refused. UnavailableError when time is up: the request is closed
        then, and a write that was sent has `outcome` UNKNOWN.
        """
        deadline = self._deadline(timeout)
        engine = self._engine
        try:
            while not pending.done:
                engine.step(deadline)
                if time.monotonic() >= deadline and not pending.done:
                    engine.abandon(pending, self._gave_up(pending, timeout))
        except BaseException:
            engine.abandon(pending, "interrupted")
            raise
        return pending.result()

    def drain(self, timeout: float | None = None) -> None:
        """Waits until nothing is open; outcomes are in the Pendings.

        UnavailableError when time is up; what is open stays open, and drain may be called again.
        """
        deadline = self._deadline(timeout)
        while self._engine.open_count:
            self._engine.step(deadline)
            if time.monotonic() >= deadline and self._engine.open_count:
                raise UnavailableError(
                    self._no_answer(f"{self._engine.open_count} requests are still open")
                )

    # --- internals --------------------------------------------------------------------------------

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self.timeout if timeout is None else timeout)

    def _gave_up(self, pending: Pending, timeout: float | None) -> str:
        seconds = self.timeout if timeout is None else timeout
        if pending.attempts and pending.kind in WRITES:
            fate = "outcome unknown: it was sent, and may or may not have been executed"
        else:
            fate = "nothing was changed"
        return f"no answer from {', '.join(self.endpoints)} in {seconds:g} s; {fate}"

    def _no_answer(self, what: str) -> str:
        last = self._engine.last_error
        return f"no answer from {', '.join(self.endpoints)}; {what}" + (f": {last}" if last else "")


def parse_endpoints(endpoints: str | Sequence[str]) -> list[str]:
    """The endpoints as a list of tcp://HOST:PORT; CallerError says what is wrong with one."""
    texts = endpoints.split(",") if isinstance(endpoints, str) else list(endpoints)
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise CallerError(
            "no endpoint given: use tcp://HOST:PORT, for example tcp://127.0.0.1:2382"
        )
    for text in texts:
        if "://" not in text or not text.startswith("tcp://"):
            raise CallerError(
                f'endpoint "{text}" is not tcp://HOST:PORT (kvnode\'s native port is 2382; '
                f"http:// and gRPC endpoints are etcdctl's)"
            )
        try:
            port = urlsplit(text).port
        except ValueError:
            port = None
        if not port or not urlsplit(text).hostname:
            raise CallerError(f'endpoint "{text}" has no host or port: use tcp://HOST:PORT')
    return texts


def prefix_range(prefix: bytes) -> tuple[bytes, bytes]:
    """(key, range_end) of all keys that begin with `prefix`; an empty one means all keys."""
    return (prefix, messages.prefix_end(prefix)) if prefix else (b"\0", b"\0")


def decode(kind: int, answer: bytes) -> Any:
    """The response message of a request of that kind; imports kvnode.proto at the first use."""
    return _response_types()[kind].FromString(answer)


@functools.cache
def _response_types() -> dict[int, Any]:
    from kvnode.proto import kvnodepb_pb2, rpc_pb2

    return {
        Kind.PUT: rpc_pb2.PutResponse,
        Kind.RANGE: rpc_pb2.RangeResponse,
        Kind.DELETE_RANGE: rpc_pb2.DeleteRangeResponse,
        Kind.TXN: rpc_pb2.TxnResponse,
        Kind.COMPACT: rpc_pb2.CompactionResponse,
        Kind.PUT_BATCH: kvnodepb_pb2.BatchResponse,
        Kind.PUT_BATCH_ONE: kvnodepb_pb2.BatchResponse,
        Kind.TXN_BATCH: kvnodepb_pb2.BatchResponse,
        Kind.ALARM: rpc_pb2.AlarmResponse,
        Kind.STATUS: rpc_pb2.StatusResponse,
        Kind.DEFRAG: rpc_pb2.DefragmentResponse,
        Kind.LEASE_GRANT: rpc_pb2.LeaseGrantResponse,
        Kind.LEASE_REVOKE: rpc_pb2.LeaseRevokeResponse,
        Kind.LEASE_KEEP_ALIVE: rpc_pb2.LeaseKeepAliveResponse,
        Kind.LEASE_TIME_TO_LIVE: rpc_pb2.LeaseTimeToLiveResponse,
        Kind.LEASE_LEASES: rpc_pb2.LeaseLeasesResponse,
    }


__all__ = ["Client", "Outcome", "Pending", "decode", "parse_endpoints"]
