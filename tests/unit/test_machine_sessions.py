"""Sessions: repeats, windows, bounds, whose a session is; exactly-once counted by versions."""

from __future__ import annotations

import random
import struct

import pytest

from kvnode._core.memstore import MemStore
from kvnode._core.storetxn import TREE_KEYS
from kvnode.base.codes import Code, Kind
from kvnode.base.limits import SESSION_WINDOW
from tests.oracle.requests import (
    Compare,
    Delete,
    Group,
    GroupResult,
    KeyValue,
    Put,
    PutBatch,
    Range,
    Request,
    SessionClose,
    SessionOpen,
    Txn,
    decode_results,
    header,
    sub,
)
from tests.support.statemachine import Pair, encode_entry


class Client:
    """Sends groups of one session through a Pair and returns the machine's results."""

    def __init__(self, pair: Pair, session: int = 7, *, user: int = 1, gateway: bool = False):
        self.pair, self.session, self.user, self.gateway = pair, session, user, gateway
        pair.apply([[Group([SessionOpen(session, gateway)], user=user, client=not gateway)]])

    def group(self, requests: list[Request], sequence: int, lowest: int = 0) -> Group:
        return Group(
            requests, self.session, sequence, lowest, client=not self.gateway, user=self.user
        )

    def send(self, *requests: Request, sequence: int, lowest: int = 0) -> GroupResult:
        group = self.group(list(requests), sequence, lowest)
        self.pair.apply([[group]])
        # The pair compared the machine with the model: the model's answer is the machine's.
        return last_result(self.pair)


def last_result(pair: Pair) -> GroupResult:
    """The last entry once more, over a copy of everything before it."""
    index, term, groups = pair.entries[-1]
    fresh = Pair(MemStore(), window=pair.window, sessions_max=pair.sessions_max)
    for entry in pair.entries[:-1]:
        fresh.machine.apply(encode_entry(*entry))
    ((_, data),) = fresh.machine.apply(encode_entry(index, term, groups))
    return decode_results(data)[-1]


def test_a_repeated_put_is_answered_and_not_executed() -> None:
    client = Client(Pair(MemStore()))
    first = client.send(Put(b"a", b"1"), sequence=1)
    again = client.send(Put(b"a", b"1"), sequence=1)
    assert (first.state, again.state) == (0, 1)
    assert first.results == again.results
    assert client.pair.machine.revision == 2


def test_whole_outcomes_are_answered_alike() -> None:
    client = Client(Pair(MemStore()))
    nested = Txn((), (Put(b"n", b"1"), Delete(b"q")))
    requests: list[Request] = [
        Put(b"a", b"1"),
        Delete(b"a"),
        Delete(b"nothing"),
        Txn((Compare(b"a", 0, 0),), (Delete(b"x"), Put(b"t", b"1"), nested, Delete(b"t"))),
        Txn((Compare(b"a", 0, 1),), (), (Delete(b"t"), Txn())),
        PutBatch((Put(b"p"), Put(b""), Put(b"q"))),
        PutBatch((Put(b"p"), Put(b"r")), Kind.PUT_BATCH_ONE),
        PutBatch((Put(b"p"), Put(b"p")), Kind.PUT_BATCH_ONE),
        PutBatch((Txn(success=(Put(b"c"),)), Txn(), Txn(success=(Put(b""),))), Kind.TXN_BATCH),
        Put(b""),
        SessionOpen(99),
    ]
    first = client.send(*requests, sequence=1)
    again = client.send(*requests, sequence=1)
    assert again.state == 1
    assert again.results == first.results
    assert {code for code, _, _ in first.results} == {
        Code.OK, Code.DUPLICATE_KEY, Code.EMPTY_KEY
    }  # fmt: skip


def test_partial_outcomes_say_applied_and_the_revision() -> None:
    client = Client(Pair(MemStore()))
    requests: list[Request] = [
        Put(b"a", b"1", prev_kv=True),
        Txn(success=(Put(b"b"), Range(b"a"))),
        Delete(b"a", prev_kv=True),
    ]
    client.send(*requests, sequence=1)
    again = client.send(*requests, sequence=1)
    assert [code for code, _, _ in again.results] == [Code.APPLIED] * 3
    assert [body for _, _, body in again.results] == [
        sub(1, header(revision, 1, 1, 1)) for revision in (2, 3, 4)
    ]


def test_an_outcome_that_would_be_large_is_partial() -> None:
    client = Client(Pair(MemStore()))
    batch = PutBatch(tuple(Put(b"") for _ in range(3000)))
    assert client.send(batch, sequence=1).results[0][0] == Code.OK
    assert client.send(batch, sequence=1).results[0][0] == Code.APPLIED


def test_any_order_inside_the_window() -> None:
    client = Client(Pair(MemStore()))
    for sequence in (3, 1, 4096, 2, 4000):
        assert client.send(Put(b"k"), sequence=sequence).state == 0
    assert client.send(Put(b"k"), sequence=4000).state == 1
    assert client.send(Put(b"k"), sequence=4097).code == Code.WINDOW_EXCEEDED
    assert client.send(Put(b"k"), sequence=4097, lowest=2).state == 0
    assert client.send(Put(b"k"), sequence=1).code == Code.OUTCOME_UNKNOWN
    assert client.send(Put(b"k"), sequence=2).state == 1
    assert client.send(Put(b"k"), sequence=0).code == Code.OUTCOME_UNKNOWN
    assert client.send(Put(b"k"), sequence=2**64 - 1).code == Code.WINDOW_EXCEEDED
    assert client.send(Put(b"k"), sequence=2**64 - 1, lowest=2**64 - 1).state == 0
    assert client.pair.model.mvcc.latest(b"k") == KeyValue(b"k", 2, 8, 7)


def test_refused_groups_change_nothing() -> None:
    client = Client(Pair(MemStore()))
    client.send(Put(b"k"), sequence=1, lowest=1)
    before = client.pair.machine.state_hash
    assert client.send(Put(b"k"), sequence=SESSION_WINDOW + 1).code == Code.WINDOW_EXCEEDED
    assert client.send(Put(b"k"), sequence=5, lowest=6).code == Code.OUTCOME_UNKNOWN
    # the lowest of a refused group was not taken over
    assert client.send(Put(b"k"), sequence=1).state == 1
    assert client.pair.machine.revision == 2
    assert client.pair.machine.state_hash != before


def test_sessions_serve_only_who_opened_them() -> None:
    pair = Pair(MemStore())
    client, gateway = Client(pair), Client(pair, 8, user=0, gateway=True)
    client.user = 2
    assert client.send(Put(b"k"), sequence=1).code == Code.PERMISSION_DENIED
    gateway.gateway = False
    assert gateway.send(Put(b"k"), sequence=1).code == Code.PERMISSION_DENIED
    client.session = 1000
    assert client.send(Put(b"k"), sequence=1).code == Code.OUTCOME_UNKNOWN
    pair.apply([[Group([SessionOpen(7), SessionClose(7)], user=2, client=True)]])
    assert pair.machine.session_count == 2


def test_closed_and_unknown_sessions_execute_nothing() -> None:
    client = Client(Pair(MemStore()))
    client.send(Put(b"k"), sequence=1)
    # it closes itself, so its own outcome has nowhere to stand
    client.send(SessionClose(7), sequence=2)
    assert client.send(Put(b"k"), sequence=1).code == Code.OUTCOME_UNKNOWN
    client.pair.apply([[Group([SessionOpen(7)], user=1, client=True)]])
    assert client.send(Put(b"k"), sequence=1).state == 0


def test_a_session_that_reopens_itself_knows_that_and_nothing_before() -> None:
    client = Client(Pair(MemStore()))
    client.send(Put(b"k"), sequence=1)
    client.send(SessionClose(7), SessionOpen(7), sequence=2)
    client.pair.open()
    assert client.send(SessionClose(7), SessionOpen(7), sequence=2).state == 1
    # another number of requests under the same sequence is the caller's mistake
    assert client.send(Put(b"k"), sequence=2).code == Code.MALFORMED
    assert client.send(Put(b"k"), sequence=1).state == 0


def test_the_oldest_idle_session_of_the_user_goes() -> None:
    pair = Pair(MemStore(), sessions_max=3)
    clients = {id_: Client(pair, id_) for id_ in (5, 3, 9)}
    other = Client(pair, 100, user=2)
    gateway = Client(pair, 200, user=1, gateway=True)
    clients[5].send(Put(b"k"), sequence=1)
    Client(pair, 50)
    assert clients[3].send(Put(b"k"), sequence=1).code == Code.OUTCOME_UNKNOWN
    pair.open()
    for client in (clients[5], clients[9], other, gateway):
        assert client.send(Put(b"k"), sequence=2).state == 0
    Client(pair, 51)
    assert pair.machine.session_count == 5
    assert clients[5].send(Put(b"k"), sequence=3).state == 0


def test_gateways_sessions_are_bounded_and_not_evicted() -> None:
    pair = Pair(MemStore(), sessions_max=2)
    Client(pair, 1, gateway=True)
    Client(pair, 2, gateway=True)
    pair.apply([[Group([SessionOpen(3, True)])]])
    assert last_result(pair).results[0][0] == Code.TOO_MANY_SESSIONS
    pair.apply([[Group([SessionClose(1), SessionOpen(3, True)], user=1)]])
    assert last_result(pair).results[1][0] == Code.OK


def test_windows_survive_restarts() -> None:
    client = Client(Pair(MemStore()))
    rng = random.Random(4)
    sent = rng.sample(range(1, SESSION_WINDOW), 300)
    for sequence in sent:
        client.pair.apply([[client.group([Put(b"k", b"%d" % sequence)], sequence)]])
    client.pair.open()
    revision = client.pair.machine.revision
    rng.shuffle(sent)
    client.pair.apply([[client.group([Put(b"k")], sequence)] for sequence in sent])
    assert client.pair.machine.revision == revision
    assert client.pair.machine.counters["repeated"] == len(sent)


def retries(window: bool, seed: int) -> tuple[Pair, dict[bytes, int]]:
    """Sends requests one to four times each, in any order inside the window.

    Returns how often each key was to be written: once for each sequence that writes it.
    """
    pair = Pair(MemStore(), window=window)
    client = Client(pair)
    rng = random.Random(seed)
    attempts: list[tuple[int, Request]] = []
    writes: dict[bytes, int] = {}
    for number in range(1, 201):
        key, kind = b"k%d" % rng.randint(0, 20), rng.randint(0, 2)
        requests: list[Request] = [
            Put(key, b"%d" % number),
            Txn((Compare(key, 0, 1, number=-1),), (Put(key, b"%d" % number),)),
            PutBatch((Put(key), Put(b"other"))),
        ]
        for written in [key, b"other"] if kind == 2 else [key]:
            writes[written] = writes.get(written, 0) + 1
        attempts += [(number, requests[kind])] * rng.randint(1, 4)
    attempts.sort(key=lambda attempt: attempt[0] + rng.random() * 30)
    for number, request in attempts:
        pair.apply([[client.group([request], number)]])
        if rng.random() < 0.02:
            pair.open()
    return pair, writes


def count_doubled(pair: Pair, writes: dict[bytes, int]) -> int:
    """Writes beyond one for each sequence, as the keys' versions in the store show them."""
    with pair.store.begin_read() as txn:
        versions = {key: struct.unpack_from("<Q", v, 16)[0] for key, v in txn.items(TREE_KEYS)}
    assert versions.keys() == writes.keys()
    return sum(versions[key] - count for key, count in writes.items())


@pytest.mark.parametrize("seed", range(5))
def test_each_sequence_is_executed_once(seed: int) -> None:
    assert count_doubled(*retries(True, seed)) == 0


def test_the_check_sees_a_window_that_is_off() -> None:
    assert count_doubled(*retries(False, 0)) > 100
