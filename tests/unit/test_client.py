"""The client against a toy node that speaks the real protocol and misbehaves on request."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
import zmq

from kvnode.base.codes import Code, Kind
from kvnode.base.errors import CallerError, RequestError, UnavailableError
from kvnode.client import Client, Outcome, engine, messages
from kvnode.client.sync import parse_endpoints
from kvnode.proto import kvnodepb_pb2, rpc_pb2
from tests.unit.native_server import CLUSTER, FakeNode, Store


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as node:
        yield node


@pytest.fixture
def client(node: FakeNode) -> Iterator[Client]:
    with Client(node.endpoint) as client:
        yield client


@pytest.fixture(autouse=True)
def quick_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ATTEMPT_SECONDS", 0.15)


def put_body(key: bytes, value: bytes = b"v") -> bytes:
    return messages.put_request(key, value)


def executed_once(node: FakeNode) -> bool:
    return all(n == 1 for (_, sequence), n in node.store.executed.items() if sequence)


# --- typed calls ----------------------------------------------------------------------------------


def test_put_get_delete(client: Client) -> None:
    first = client.put("a", "1")
    assert first.header.cluster_id == CLUSTER
    assert client.put(b"a", b"2", prev_kv=True).prev_kv.value == b"1"
    kv = client.get("a")
    assert (kv.value, kv.version, kv.create_revision) == (b"2", 2, first.header.revision)
    assert client.get("missing") is None
    assert client.delete_range("a", prev_kv=True).prev_kvs[0].value == b"2"
    assert client.delete_range("a").deleted == 0


def test_range_options(client: Client) -> None:
    client.put_batch([(f"k{i}", f"{9 - i}") for i in range(5)])
    response = client.range("k", prefix=True, limit=2, sort_order="DESCEND", sort_target="VALUE")
    assert ([kv.key for kv in response.kvs], response.more, response.count) == (
        [b"k0", b"k1"], True, 5)  # fmt: skip
    assert client.range("", prefix=True, count_only=True).count == 5
    assert len(client.range("k3", b"\0", keys_only=True).kvs) == 2


def test_txn_and_batches(client: Client) -> None:
    client.put("k", "1")
    response = client.txn(
        [messages.compare("k", "value", "=", "1"), messages.compare("n", "version", "=", 0)],
        [messages.op_put(put_body(b"k", b"2")), messages.op_range(messages.range_request("k"))],
        [messages.op_delete_range(messages.delete_range_request("k"))],
    )
    assert response.succeeded
    assert response.responses[1].response_range.kvs[0].value == b"2"
    one = client.put_batch([("x", "1"), ("y", "2")], one_revision=True)
    assert (one.applied, one.first_revision) == (2, one.last_revision)
    refused = client.put_batch([("x", "1"), ("", "2"), ("z", "3")])
    assert [(r.index, r.code) for r in refused.refused] == [(1, Code.EMPTY_KEY)]
    txn = messages.txn_request(success=[messages.op_put(put_body(b"t"))])
    assert client.txn_batch([txn, txn]).applied == 2


def test_status_compact_defragment(client: Client) -> None:
    client.put("k", "1")
    assert client.status().version == "3.7.0"
    assert client.compact(2, physical=True).header.revision == 2
    assert client.defragment().header.revision == 2
    with pytest.raises(RequestError) as refused:
        client.compact(99)
    assert refused.value.code is Code.FUTURE_REV


def test_refusal_has_code_and_text(client: Client) -> None:
    with pytest.raises(RequestError, match="key is not provided") as refused:
        client.put("", "x")
    assert refused.value.code is Code.EMPTY_KEY


def test_bodies_equal_protobuf() -> None:
    put = rpc_pb2.PutRequest(key=b"k", value=b"v", lease=-5, prev_kv=True, ignore_lease=True)
    assert messages.put_request(
        "k", "v", lease=-5, prev_kv=True, ignore_lease=True
    ) == put.SerializeToString()  # fmt: skip
    ranged = rpc_pb2.RangeRequest(
        key=b"a", range_end=b"b", limit=3, revision=1 << 40, sort_order=2, sort_target=3,
        serializable=True, keys_only=True, count_only=True, min_mod_revision=1,
        max_mod_revision=2, min_create_revision=3, max_create_revision=4)  # fmt: skip
    assert messages.range_request(
        "a", "b", limit=3, revision=1 << 40, sort_order="DESCEND", sort_target="MODIFY",
        serializable=True, keys_only=True, count_only=True, min_mod_revision=1,
        max_mod_revision=2, min_create_revision=3, max_create_revision=4,
    ) == ranged.SerializeToString()  # fmt: skip
    compare = rpc_pb2.Compare(result=3, target=3, key=b"k", value=b"", range_end=b"z")
    raw = messages.compare("k", "value", "!=", b"", range_end="z")
    assert rpc_pb2.Compare.FromString(raw) == compare
    nested = messages.txn_request(
        [messages.compare("k", "lease", "<", 0)],
        [messages.op_txn(messages.txn_request()), messages.op_range(messages.range_request(""))],
    )
    txn = rpc_pb2.TxnRequest.FromString(nested)
    assert txn.compare[0].WhichOneof("target_union") == "lease"
    assert [op.WhichOneof("request") for op in txn.success] == ["request_txn", "request_range"]
    batch = messages.batch([put_body(b"k" * 200), put_body(b"b")])
    assert [p.key for p in kvnodepb_pb2.PutBatch.FromString(batch).puts] == [b"k" * 200, b"b"]


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"a\xfe", b"a\xff")]
)
def test_prefix_end(prefix: bytes, end: bytes) -> None:
    assert messages.prefix_end(prefix) == end


# --- pipelining, window, credit -------------------------------------------------------------------


def test_submitted_together_share_a_message(node: FakeNode, client: Client) -> None:
    client.status()
    node.messages.clear()
    pending = [client.submit(Kind.PUT, put_body(b"k%d" % i)) for i in range(50)]
    client.drain()
    assert node.messages == [50]
    assert {p.outcome for p in pending} == {Outcome.EXECUTED}
    assert [p.sequence for p in pending] == list(range(1, 51))
    revisions = [rpc_pb2.PutResponse.FromString(p.result()).header.revision for p in pending]
    assert revisions == sorted(set(revisions))


def test_window_is_respected(node: FakeNode, client: Client) -> None:
    for i in range(500):  # the node's window is 64; it records violations
        client.submit(Kind.PUT, put_body(b"k%d" % i))
    client.drain()
    assert len(node.store.keys) == 500
    assert max(node.messages) <= 64


def test_credit_is_respected() -> None:
    with FakeNode(credit_bytes=4000, window=4096) as node, Client(node.endpoint) as client:
        for i in range(300):
            client.submit(Kind.PUT, put_body(b"k%d" % i, b"x" * 500))
        client.drain()
        assert len(node.store.keys) == 300
        assert 3000 < node.inflight_max <= 4000
        with pytest.raises(RequestError) as refused:
            client.put("big", b"x" * 5000)
        assert refused.value.code is Code.REQUEST_TOO_LARGE


def test_answers_in_any_order(node: FakeNode, client: Client) -> None:
    client.status()
    node.hold.clear()
    pending = [client.submit(Kind.PUT, put_body(b"k%d" % i)) for i in range(10)]
    client.flush()
    assert not any(p.done for p in pending)
    node.hold.set()
    client.wait(pending[3])
    client.drain()
    assert {p.outcome for p in pending} == {Outcome.EXECUTED}


def test_reads_take_no_sequence(node: FakeNode, client: Client) -> None:
    read = client.submit(Kind.RANGE, messages.range_request("k"))
    write = client.submit(Kind.PUT, put_body(b"k"))
    client.drain()
    assert (read.sequence, write.sequence) == (0, 1)


# --- exactly once ---------------------------------------------------------------------------------


def test_lost_answer_is_repeated_not_executed_again(node: FakeNode, client: Client) -> None:
    client.put("k", "0")
    node.drop_answers = 2
    pending = client.submit(Kind.PUT, put_body(b"k"))
    client.wait(pending)
    assert pending.outcome is Outcome.REPEATED
    assert pending.attempts == 3
    assert node.store.keys[b"k"].version == 2
    assert executed_once(node)
    assert {h.session for h in node.hellos[1:]} == {client.session}


def test_pipeline_survives_lost_answers(node: FakeNode, client: Client) -> None:
    client.status()
    pending = []
    for i in range(400):
        pending.append(client.submit(Kind.PUT, put_body(b"k%d" % (i % 7))))
        if i % 100 == 50:
            client.flush()
            node.drop_answers += 1
    client.drain(20)
    assert {p.outcome for p in pending} <= {Outcome.EXECUTED, Outcome.REPEATED}
    assert executed_once(node)
    assert sum(kv.version for kv in node.store.keys.values()) == 400


def test_without_window_the_check_sees_doubles(node: FakeNode) -> None:
    """The counter that the tests above trust does count: a resend by hand doubles."""
    with Client(node.endpoint, session=False) as client:
        client.put("k", "1")
        client.put("k", "1")
    assert node.store.keys[b"k"].version == 2


def test_write_without_session_is_sent_once(node: FakeNode) -> None:
    with Client(node.endpoint, timeout=0.4, session=False) as client:
        client.status()
        node.drop_answers = 1
        pending = client.submit(Kind.PUT, put_body(b"k"))
        with pytest.raises(UnavailableError, match="outcome unknown"):
            client.wait(pending)
        assert (pending.outcome, pending.attempts) == (Outcome.UNKNOWN, 1)
        assert node.store.keys[b"k"].version == 1
        node.drop_answers = 1
        assert client.get("k").value == b"v"  # a read is simply repeated


def test_deadline_leaves_the_outcome_unknown(node: FakeNode, client: Client) -> None:
    client.status()
    node.mute = True
    pending = client.submit(Kind.PUT, put_body(b"k"))
    with pytest.raises(UnavailableError, match="may or may not"):
        client.wait(pending, 0.3)
    assert pending.outcome is Outcome.UNKNOWN
    read = client.submit(Kind.RANGE, messages.range_request("k"))
    with pytest.raises(UnavailableError, match="nothing was changed"):
        client.wait(read, 0.05)
    node.mute = False
    client.put("later", "works")


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.NO_LEADER, Code.TIMEOUT])
def test_passing_refusals_are_tried_again(node: FakeNode, client: Client, code: Code) -> None:
    node.refuse_next = [code, code]
    pending = client.submit(Kind.PUT, put_body(b"k"))
    client.wait(pending)
    assert (pending.outcome, pending.sequence) == (Outcome.EXECUTED, 1)
    assert executed_once(node)


def test_ended_session_is_replaced_when_nothing_was_executed(
    node: FakeNode, client: Client
) -> None:
    client.put("k", "1")
    old = client.session
    node.refuse_next = [Code.OUTCOME_UNKNOWN]
    pending = client.submit(Kind.PUT, put_body(b"k"))
    client.wait(pending)
    assert pending.outcome is Outcome.EXECUTED
    assert client.session not in (0, old)
    assert node.store.keys[b"k"].version == 2


def test_ended_session_after_a_lost_answer_is_unknown(node: FakeNode, client: Client) -> None:
    client.put("k", "1")
    node.drop_answers = 1
    pending = client.submit(Kind.PUT, put_body(b"k"))
    client.flush()
    while node.drop_answers:
        client.poll(0.01)
    node.refuse_next = [Code.OUTCOME_UNKNOWN]
    with pytest.raises(RequestError) as refused:
        client.wait(pending)
    assert refused.value.code is Code.OUTCOME_UNKNOWN
    assert pending.outcome is Outcome.UNKNOWN
    client.put("k", "3")
    assert node.store.keys[b"k"].version == 3


def test_applied_is_told(node: FakeNode, client: Client) -> None:
    node.refuse_next = [Code.APPLIED]
    pending = client.submit(Kind.PUT, put_body(b"k"))
    with pytest.raises(RequestError) as refused:
        client.wait(pending)
    assert refused.value.code is Code.APPLIED
    assert pending.outcome is Outcome.APPLIED


# --- connections ----------------------------------------------------------------------------------


def test_failover_keeps_the_session() -> None:
    store = Store()
    with FakeNode(store) as first, FakeNode(store) as second:
        with Client([first.endpoint, second.endpoint]) as client:
            client.put("k", "1")
            session = client.session
            first.mute = True
            pending = client.submit(Kind.PUT, put_body(b"k"))
            client.wait(pending)
            assert pending.outcome is Outcome.REPEATED
            assert client.session == session == second.hellos[0].session
        assert store.keys[b"k"].version == 2


def test_first_endpoint_down() -> None:
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    context.destroy(linger=0)
    with FakeNode() as node, Client(f"tcp://127.0.0.1:{port},{node.endpoint}") as client:
        began = time.monotonic()
        client.put("k", "1")
        assert time.monotonic() - began < 1.0
        assert client.get("k").value == b"1"


def test_nobody_there() -> None:
    with Client("tcp://127.0.0.1:1", timeout=0.3) as client:
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=r"nothing was changed.*cannot connect"):
            client.put("k", "1")
        assert time.monotonic() - began < 1.0


def test_node_comes_back_on_the_same_port() -> None:
    store = Store()
    with FakeNode(store) as first:
        endpoint = first.endpoint
        client = Client(endpoint)
        client.put("k", "1")
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    try:
        socket.bind(endpoint)  # a node that does not know us says so
        done = threading.Event()

        def stranger() -> None:
            from kvnode.wire import native

            while not done.is_set():
                if not socket.poll(5):
                    continue
                peer, message = socket.recv_multipart()
                if native.decode_header(message).opcode == native.Opcode.HELLO:
                    socket.send_multipart(
                        [peer, native.encode_error(Code.STOPPED, "starting")]
                    )

        thread = threading.Thread(target=stranger)
        thread.start()
        with pytest.raises(UnavailableError, match="starting"):
            client.get("k", timeout=0.3)
        done.set()
        thread.join()
    finally:
        client.close()
        context.destroy(linger=0)


def test_refused_hello_is_told(node: FakeNode) -> None:
    node.hello_error = (Code.PERMISSION_DENIED, "wrong token")
    with Client(node.endpoint, token="x") as client:
        with pytest.raises(RequestError, match="wrong token") as refused:
            client.put("k", "1")
        assert refused.value.code is Code.PERMISSION_DENIED
    assert node.hellos[0].token == "x"


def test_garbage_ends_only_the_connection(node: FakeNode, client: Client) -> None:
    client.status()
    node.garbage_next = True
    pending = client.submit(Kind.PUT, put_body(b"k"))
    client.wait(pending)
    assert pending.outcome is Outcome.REPEATED


def test_heartbeats_while_waiting() -> None:
    with FakeNode(heartbeat_ms=50) as node, Client(node.endpoint) as client:
        client.status()
        node.hold.clear()
        pending = client.submit(Kind.DEFRAG, b"")
        release = threading.Timer(0.4, node.hold.set)
        release.start()
        client.wait(pending)
        assert node.pings >= 3
        assert len(node.hellos) == 1


def test_silent_node_is_left() -> None:
    with FakeNode(heartbeat_ms=40) as node, Client(node.endpoint, timeout=0.5) as client:
        client.status()
        node.mute = True
        with pytest.raises(UnavailableError, match=r"silent|no answer"):
            client.defragment()
        node.mute = False
        client.status()
        assert len(node.hellos) >= 2


def test_close_ends_session_and_says_goodbye(node: FakeNode) -> None:
    client = Client(node.endpoint)
    client.put("k", "1")
    session = client.session
    client.close()
    client.close()
    deadline = time.monotonic() + 5
    while not node.goodbyes and time.monotonic() < deadline:
        node._thread.join(0.01)
    assert (node.goodbyes, node.closed_sessions) == ([session], [session])
    with pytest.raises(CallerError, match="closed"):
        client.put("k", "2")


def test_fork_opens_a_connection_of_its_own(node: FakeNode, client: Client) -> None:
    client.put("k", "parent")
    left = client.submit(Kind.PUT, put_body(b"other"))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            client.put("child", "1")
            text = f"{client.session} {left.outcome.name}"
            os.write(write, text.encode())
        finally:
            os._exit(0)
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 0
    session, outcome = os.read(read, 100).decode().split()
    os.close(read)
    assert int(session) not in (0, client.session)
    assert outcome == "UNKNOWN"
    client.wait(left)
    assert left.outcome is Outcome.EXECUTED
    assert client.get("child").value == b"1"


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1:2382", "http://127.0.0.1:2379", "tcp://host", "tcp://:1", "tcp://h:x"]
)
def test_bad_endpoints(text: str) -> None:
    with pytest.raises(CallerError, match="tcp://"):
        Client(text)


def test_endpoints() -> None:
    assert parse_endpoints("tcp://a:1, tcp://[::1]:2,") == ["tcp://a:1", "tcp://[::1]:2"]


def test_no_thread_is_started(node: FakeNode) -> None:
    before = set(threading.enumerate())
    with Client(node.endpoint) as client:
        client.put("k", "1")
        assert set(threading.enumerate()) <= before
