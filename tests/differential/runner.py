"""Sends the same steps to two servers and compares every answer.

Role: targets (real etcd over gRPC, kvnode over its native client), comparison, the search for a
shorter failing sequence. Caller: test_differential.py.

Invariants:
1. Both servers are fresh, get the same requests in the same order, and see a batch's writes in
   the order they were given.
2. An answer is (gRPC status, text, response message); of a response only cluster_id, member_id
   and raft_term of the outermost header are left out of the comparison, and of a lease's time
   what it has left and the order of its keys.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from google.protobuf import text_format

from kvnode.base.codes import Kind
from kvnode.proto import rpc_pb2 as pb
from tests.differential.generator import Generator, Op, Step

RESPONSES = {
    Kind.PUT: pb.PutResponse,
    Kind.RANGE: pb.RangeResponse,
    Kind.DELETE_RANGE: pb.DeleteRangeResponse,
    Kind.TXN: pb.TxnResponse,
    Kind.COMPACT: pb.CompactionResponse,
    Kind.LEASE_GRANT: pb.LeaseGrantResponse,
    Kind.LEASE_REVOKE: pb.LeaseRevokeResponse,
    Kind.LEASE_TIME_TO_LIVE: pb.LeaseTimeToLiveResponse,
}
METHODS = {
    Kind.PUT: "KV/Put", Kind.RANGE: "KV/Range", Kind.DELETE_RANGE: "KV/DeleteRange",
    Kind.TXN: "KV/Txn", Kind.COMPACT: "KV/Compact", Kind.LEASE_GRANT: "Lease/LeaseGrant",
    Kind.LEASE_REVOKE: "Lease/LeaseRevoke", Kind.LEASE_TIME_TO_LIVE: "Lease/LeaseTimeToLive",
}
CALL_SECONDS_MAX = 60.0
LINE_CHARS_MAX = 3000
_RUN = re.compile(r"(\w)\1{11,}")


class Answer(NamedTuple):
    """What a server said to one request; `response` is None unless grpc is 0."""

    grpc: int
    text: str
    response: Any


class Target(Protocol):
    """A server's client: sends a step, returns one answer a request."""

    def send(self, step: Step) -> list[Answer]: ...


Start = Callable[[], AbstractContextManager[Target]]


class EtcdTarget:
    """Real etcd over gRPC; the bytes of requests and responses go through untouched."""

    def __init__(self, endpoint: str) -> None:
        import grpc

        self._errors = grpc.RpcError
        limit = 64 << 20
        self._channel = grpc.insecure_channel(
            endpoint,
            options=[("grpc.max_send_message_length", limit),
                     ("grpc.max_receive_message_length", limit)],
        )
        self._calls = {
            kind: self._channel.unary_unary(f"/etcdserverpb.{name}")
            for kind, name in METHODS.items()
        }

    def send(self, step: Step) -> list[Answer]:
        return [self._one(op) for op in step]

    def _one(self, op: Op) -> Answer:
        try:
            body = self._calls[op.kind](op.message.SerializeToString(), timeout=CALL_SECONDS_MAX)
        except self._errors as error:
            return Answer(error.code().value[0], error.details() or "", None)
        return Answer(0, "", RESPONSES[op.kind].FromString(body))

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


class KvnodeTarget:
    """A kvnode node over the native protocol.

    The requests of a step leave in one message, in messages of a few, or each in its own, none
    waiting for an answer: so a step is one log entry, or several that are under way together.
    """

    def __init__(self, endpoint: str) -> None:
        from kvnode.base.errors import RequestError
        from kvnode.client import Client

        self._errors = RequestError
        self._client = Client(endpoint)

    def send(self, step: Step) -> list[Answer]:
        bodies = [(op.kind, op.message.SerializeToString()) for op in step]
        if len(bodies) == 1:
            kind, body = bodies[0]
            return [self._answer(kind, lambda: self._client.call(kind, body))]
        per_message = (len(bodies), 16, 1)[len(bodies) % 3]
        tickets = []
        for number, (kind, body) in enumerate(bodies, 1):
            tickets.append(self._client.submit(kind, body))
            if number % per_message == 0:
                self._client.flush()
        self._client.flush()
        return [
            self._answer(kind, lambda ticket=ticket: self._client.wait(ticket))
            for (kind, _), ticket in zip(bodies, tickets, strict=True)
        ]

    def _answer(self, kind: Kind, get: Callable[[], bytes]) -> Answer:
        try:
            body = get()
        except self._errors as error:
            return Answer(int(error.grpc), error.text, None)
        return Answer(0, "", RESPONSES[kind].FromString(body))

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()


class Mismatch(NamedTuple):
    """Where two servers differed: request `op_index` of step `step_index`."""

    step_index: int
    op_index: int
    op: Op
    expected: Answer
    found: Answer

    def __str__(self) -> str:
        return (
            f"step {self.step_index} request {self.op_index}: {show(self.op)}\n"
            f"  expected {show_answer(self.expected)}\n  found    {show_answer(self.found)}"
        )


class Report(NamedTuple):
    """A run: all steps sent, requests counted, refusals by text, the first mismatch if any."""

    steps: list[Step]
    requests: int
    texts: dict[str, int]
    mismatch: Mismatch | None


def comparable(answer: Answer) -> tuple[int, str, bytes]:
    """An answer without what differs between any two clusters."""
    if answer.response is None:
        return answer.grpc, answer.text, b""
    message = type(answer.response)()
    message.CopyFrom(answer.response)
    for name in ("cluster_id", "member_id", "raft_term"):
        message.header.ClearField(name)
    if isinstance(message, pb.LeaseTimeToLiveResponse):
        message.TTL = min(message.TTL, 0)      # time passes
        message.keys.sort()                    # etcd's stand in no order
    return answer.grpc, answer.text, message.SerializeToString(deterministic=True)


def compare(steps: Iterator[Step] | Sequence[Step], reference: Target, subject: Target,
            heard: Callable[[int], None] = lambda revision: None) -> Report:
    """Sends steps to both until one answer differs or the steps end."""
    sent: list[Step] = []
    texts: dict[str, int] = {}
    requests = 0
    for number, step in enumerate(steps):
        sent.append(step)
        requests += len(step)
        expected, found = reference.send(step), subject.send(step)
        for at, (op, left, right) in enumerate(zip(step, expected, found, strict=True)):
            if comparable(left) != comparable(right):
                return Report(sent, requests, texts, Mismatch(number, at, op, left, right))
            texts[left.text] = texts.get(left.text, 0) + 1
            if left.response is not None:
                heard(left.response.header.revision)
    return Report(sent, requests, texts, None)


def run(seed: int, requests_min: int, reference: Start, subject: Start) -> Report:
    """One run of a seed on fresh servers, at least `requests_min` requests long."""
    generator = Generator(seed)

    def steps() -> Iterator[Step]:
        sent = 0
        while sent < requests_min:
            step = generator.step()
            sent += len(step)
            yield step

    with reference() as left, subject() as right:
        return compare(steps(), left, right, generator.heard)


def shorten(steps: list[Step], reference: Start, subject: Start, seconds_max: float) -> list[Step]:
    """A shorter sequence that still ends in a mismatch: drops chunks while the time lasts."""
    deadline = time.monotonic() + seconds_max
    # The last step is the one that differed: it stays. Batches are first cut into single steps.
    best = steps
    singles = [[op] for step in steps for op in step]

    def fails(candidate: list[Step]) -> list[Step] | None:
        with reference() as left, subject() as right:
            report = compare(candidate, left, right)
        return report.steps if report.mismatch else None

    best = fails(singles) or best
    chunk = max(len(best) // 2, 1)
    while time.monotonic() < deadline:
        at, shorter = 0, False
        while at < len(best) - 1 and time.monotonic() < deadline:
            found = fails(best[:at] + best[at + chunk :]) if at + chunk < len(best) else None
            if found:
                best, shorter = found, True
            else:
                at += chunk
        if chunk == 1 and not shorter:
            break
        chunk = max(chunk // 2, 1)
    return best


def show(op: Op) -> str:
    """A request on one line."""
    return f"{op.kind.name} {{{_line(op.message)}}}"


def show_answer(answer: Answer) -> str:
    """An answer on one line."""
    return f"status {answer.grpc} {answer.text!r}" if answer.response is None else _line(
        answer.response
    )


def _line(message: Any) -> str:
    """A message as text; runs of one byte, as in long keys and values, as `X*length`."""
    text = text_format.MessageToString(message, as_one_line=True)
    return _RUN.sub(lambda run: f"{run[1]}*{len(run[0])}", text)[:LINE_CHARS_MAX]


def explain(seed: int, report: Report, reference: Start, subject: Start,
            seconds_max: float = 30.0) -> str:
    """The text of a failed run: seed, mismatch, the shortest failing sequence found in time."""
    shortest = shorten(report.steps, reference, subject, seconds_max)
    lines = [f"seed {seed}: answers differ after {report.requests} requests", str(report.mismatch)]
    with reference() as left, subject() as right:
        again = compare(shortest, left, right)
    lines.append(f"shortened to {len(shortest)} steps:")
    lines += [f"  {number}: {show(op)}" for number, step in enumerate(shortest) for op in step]
    lines.append(str(again.mismatch))
    return "\n".join(lines)
