"""Sessions and the apply loop over tests/oracle/mvcc.py: what kvnode/_core/machine must do.

`apply(index, term, groups)` takes one log entry as values and returns the result groups of the
model's own member. A session is a dict of outcomes; there is no storage, so a crash is modelled
by the tests (they copy the model).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvnode.base.codes import Code, Kind
from kvnode.base.limits import SESSION_WINDOW, SESSIONS_PER_USER_MAX
from tests.oracle.mvcc import (
    EVENT_CLOSE,
    EVENT_EVICT,
    EVENT_MALFORMED,
    EVENT_OPEN,
    EVENT_OUTCOME,
    EVENT_REPEATED,
    Mvcc,
    Refused,
)
from tests.oracle.requests import (
    Alarm,
    Compact,
    Delete,
    Group,
    GroupResult,
    LeaseCheckpoint,
    LeaseGrant,
    LeaseRevoke,
    Poison,
    Put,
    PutBatch,
    Range,
    Request,
    SessionClose,
    SessionOpen,
    Txn,
    header,
    num,
    sub,
    varint,
)


@dataclass
class Session:
    user: int
    gateway: bool
    lowest: int = 1
    highest: int = 0
    last_index: int = 0
    outcomes: dict[int, list[bytes]] = field(default_factory=dict)  # sequence -> one a request


class Ignored(Exception):
    """The session is another's, or the group is beyond what may be executed."""

    def __init__(self, code: Code) -> None:
        self.code = code


@dataclass
class StateMachine:
    mvcc: Mvcc = field(default_factory=Mvcc)
    sessions: dict[int, Session] = field(default_factory=dict)
    auth_revision: int = 0
    applied: int = 0
    window: bool = True
    sessions_max: int = SESSIONS_PER_USER_MAX

    def apply(self, index: int, term: int, groups: list[Group] | None) -> list[GroupResult]:
        """`groups` None: an entry whose data is no batch."""
        assert index == self.applied + 1
        self.applied = index
        self.mvcc.term = term
        if groups is None:
            self.mvcc.fold_event(EVENT_MALFORMED, index)
            return []
        if any(group.flags & ~1 for group in groups):
            self.mvcc.fold_event(EVENT_MALFORMED, index)
            results = [refused(group, Code.UNKNOWN_FLAGS) for group in groups]
        else:
            results = [self.group(group) for group in groups]
        return [r for g, r in zip(groups, results, strict=True) if g.member == self.mvcc.member]

    def group(self, group: Group) -> GroupResult:
        try:
            state, results = self.run(group)
        except Ignored as refusal:
            return refused(group, refusal.code)
        return GroupResult(group.slot, group.incarnation, state, 0, len(results), tuple(results))

    def run(self, group: Group) -> tuple[int, list[tuple[int, int, bytes]]]:
        session = None
        if group.session:
            session = self.find(group)
            if self.window and group.sequence in session.outcomes:
                return 1, self.repeat(group, session)
        if group.auth_revision < self.auth_revision:
            raise Ignored(Code.AUTH_OLD_REVISION)
        done = [(r.kind, *self.execute(group, r)) for r in group.requests]
        session = self.sessions.get(group.session)  # a request may have closed it
        if session is not None:
            self.keep(group, session, [outcome for _, _, _, outcome in done])
        return 0, [(int(code), int(kind), body) for kind, code, body, _ in done]

    def find(self, group: Group) -> Session:
        session = self.sessions.get(group.session)
        if session is None:
            raise Ignored(Code.OUTCOME_UNKNOWN)
        if session.user != group.user or session.gateway == group.client:
            raise Ignored(Code.PERMISSION_DENIED)
        lowest = max(session.lowest, group.lowest)
        if group.sequence < lowest:
            raise Ignored(Code.OUTCOME_UNKNOWN)
        if group.sequence - lowest >= SESSION_WINDOW:
            raise Ignored(Code.WINDOW_EXCEEDED)
        return session

    def touch(self, group: Group, session: Session) -> None:
        session.last_index = self.applied
        session.lowest = max(session.lowest, group.lowest)
        for sequence in [s for s in session.outcomes if s < session.lowest]:
            del session.outcomes[sequence]

    def keep(self, group: Group, session: Session, outcomes: list[bytes]) -> None:
        self.touch(group, session)
        session.highest = max(session.highest, group.sequence)
        session.outcomes[group.sequence] = outcomes
        self.mvcc.fold_event(
            EVENT_OUTCOME, group.session, group.sequence, session.lowest, b"".join(outcomes)
        )

    def repeat(self, group: Group, session: Session) -> list[tuple[int, int, bytes]]:
        outcomes = session.outcomes[group.sequence]
        if len(outcomes) != len(group.requests):
            raise Ignored(Code.MALFORMED)
        self.touch(group, session)
        self.mvcc.fold_event(EVENT_REPEATED, group.session, group.sequence, session.lowest)
        return [self.answer(outcome) for outcome in outcomes]

    # --- one request

    def execute(self, group: Group, request: Request) -> tuple[Code, bytes, bytes]:
        """(code, response body, outcome)"""
        try:
            body, outcome = self.dispatch(group, request)
        except Refused as refusal:
            code = refusal.code
            outcome = varint(code) + varint(request.kind << 1) + varint(self.mvcc.revision)
            return code, b"", outcome
        return Code.OK, body, outcome

    def dispatch(self, group: Group, request: Request) -> tuple[bytes, bytes]:
        mvcc = self.mvcc
        if isinstance(request, Put):
            return mvcc.put(request)
        if isinstance(request, Delete):
            return mvcc.delete(request)
        if isinstance(request, Range):
            return mvcc.range_request(request)
        if isinstance(request, Txn):
            return mvcc.txn(request)
        if isinstance(request, Compact):
            return mvcc.compact(request.revision)
        if isinstance(request, PutBatch):
            one = request.kind == Kind.PUT_BATCH_ONE
            return mvcc.batch_one(request) if one else mvcc.batch(request)
        if isinstance(request, Alarm):
            return mvcc.alarm(request.action, request.member, request.alarm)
        if isinstance(request, LeaseGrant):
            return mvcc.lease_grant(request.lease, request.ttl)
        if isinstance(request, LeaseRevoke):
            return mvcc.lease_revoke(request.lease)
        if isinstance(request, LeaseCheckpoint):
            return mvcc.lease_checkpoint(request.points)
        if isinstance(request, SessionOpen):
            self.open(group.user, request)
        elif isinstance(request, SessionClose):
            self.close(group.user, request.session)
        else:
            assert isinstance(request, Poison)
            known = request.kind in [k.value for k in Kind] and request.kind < Kind.STATUS
            raise Refused(Code.MALFORMED if known else Code.UNKNOWN_KIND)
        return sub(1, mvcc.head(mvcc.revision)), mvcc.outcome(request.kind, False)

    def open(self, user: int, request: SessionOpen) -> None:
        if request.session == 0:
            raise Refused(Code.MALFORMED)
        known = self.sessions.get(request.session)
        if known is not None:
            if known.user != user or known.gateway != request.gateway:
                raise Refused(Code.PERMISSION_DENIED)
            return
        peers = {
            id_: s
            for id_, s in self.sessions.items()
            if s.gateway == request.gateway and (s.user == user or s.gateway)
        }
        if len(peers) >= self.sessions_max:
            if request.gateway:
                raise Refused(Code.TOO_MANY_SESSIONS)
            oldest = min(peers, key=lambda id_: (peers[id_].last_index, id_))
            del self.sessions[oldest]
            self.mvcc.fold_event(EVENT_EVICT, oldest)
        session = Session(user, request.gateway, last_index=self.applied)
        self.sessions[request.session] = session
        self.mvcc.fold_event(EVENT_OPEN, request.session, user, request.gateway)

    def close(self, user: int, id_: int) -> None:
        session = self.sessions.get(id_)
        if session is None:
            return
        if session.user != user:
            raise Refused(Code.PERMISSION_DENIED)
        del self.sessions[id_]
        self.mvcc.fold_event(EVENT_CLOSE, id_)

    # --- answers from outcomes

    def answer(self, outcome: bytes) -> tuple[int, int, bytes]:
        read = Reader(outcome)
        code, kind_partial, revision = read(), read(), read()
        kind, partial = kind_partial >> 1, kind_partial & 1
        if code:
            return code, kind, b""
        head = sub(1, self.mvcc.head(revision))
        if partial:
            return Code.APPLIED, kind, head
        if kind == Kind.DELETE_RANGE:
            return 0, kind, head + num(2, read())
        if kind == Kind.LEASE_GRANT:
            return 0, kind, head + num(2, read()) + num(3, read())
        if kind == Kind.TXN:
            changed = txn_changes(Reader(outcome[read.at :]))
            return 0, kind, head + txn_body(read, [revision - changed, revision])
        if kind in (Kind.PUT_BATCH, Kind.PUT_BATCH_ONE, Kind.TXN_BATCH):
            first, applied, refused = read(), read(), read()
            body = head
            for _ in range(refused):
                body += sub(2, num(1, read()) + num(2, read()))
            return (
                0,
                kind,
                body + num(3, first) + num(4, revision if first else 0) + num(5, applied),
            )
        return 0, kind, head


def refused(group: Group, code: Code) -> GroupResult:
    return GroupResult(group.slot, group.incarnation, 2, int(code), len(group.requests), ())


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def __call__(self) -> int:
        number, shift = 0, 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number


def txn_changes(read: Reader) -> bool:
    """Whether the transaction of this outcome wrote anything."""
    read()
    changed = False
    for _ in range(read()):
        kind = read()
        if kind == Kind.PUT:
            changed = True
        elif kind == Kind.DELETE_RANGE:
            changed |= read() > 0
        elif kind == Kind.TXN:
            changed |= txn_changes(read)
    return changed


def txn_body(read: Reader, seen: list[int]) -> bytes:
    """The answer without its header; seen[0] is the revision that operations show by now."""
    succeeded, ops = read(), read()
    body = num(2, succeeded)
    for _ in range(ops):
        kind = read()
        if kind == Kind.PUT:
            seen[0] = seen[1]
            body += sub(3, sub(2, sub(1, header(seen[0]))))
        elif kind == Kind.DELETE_RANGE:
            deleted = read()
            if deleted:
                seen[0] = seen[1]
            body += sub(3, sub(3, sub(1, header(seen[0])) + num(2, deleted)))
        else:
            assert kind == Kind.TXN
            body += sub(3, sub(4, sub(1, b"") + txn_body(read, seen)))
    return body
