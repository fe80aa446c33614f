"""etcd's KV over gRPC calls, on a member in one process: answers, refusals, long ranges, bounds."""

from __future__ import annotations

import random
import re

import pytest

from kvnode._core import grpcstatus
from kvnode.base.codes import STATUS, Code, Grpc
from kvnode.proto import rpc_pb2 as rpcpb
from tests.support.onemember import CLUSTER, MEMBER, TERM, OneMember


def put(member: OneMember, key: bytes, value: bytes = b"v", **more: object) -> rpcpb.PutResponse:
    made = rpcpb.PutRequest(key=key, value=value, **more).SerializeToString()
    call = member.call("KV/Put", made)
    assert call.status == 0, call.text
    return rpcpb.PutResponse.FromString(call.messages[0])


def range_(member: OneMember, **options: object) -> rpcpb.RangeResponse:
    call = member.call("KV/Range", rpcpb.RangeRequest(**options).SerializeToString())
    assert call.status == 0, call.text
    (message,) = call.messages
    return rpcpb.RangeResponse.FromString(message)


def stream(member: OneMember, **options: object) -> list[rpcpb.RangeResponse]:
    call = member.call("KV/RangeStream", rpcpb.RangeRequest(**options).SerializeToString())
    assert call.status == 0, call.text
    return [rpcpb.RangeStreamResponse.FromString(m).range_response for m in call.messages]


def merged(parts: list[rpcpb.RangeResponse]) -> rpcpb.RangeResponse:
    whole = rpcpb.RangeResponse()
    for part in parts:
        whole.MergeFrom(part)
    return whole


def filled(keys: int, value_bytes: int = 100, seed: int = 1, **more: int) -> OneMember:
    """A member with keys k000000.. in random order, values of random bytes up to twice as long."""
    member = OneMember(**more)
    rng = random.Random(seed)
    for number in rng.sample(range(keys), keys):
        body = rpcpb.PutRequest(
            key=b"k%06d" % number, value=rng.randbytes(rng.randrange(2 * value_bytes))
        ).SerializeToString()
        member.start("KV/Put", body)
    member.run()
    return member


def test_the_table_is_the_one_of_codes() -> None:
    for code, (grpc, text) in STATUS.items():
        assert grpcstatus.status(code) == (grpc, text)
    assert grpcstatus.status(len(Code))[0] == Grpc.INTERNAL


def test_every_unary_method_answers_with_its_header() -> None:
    member = OneMember()
    assert put(member, b"a", b"1").header.revision == 2
    got = range_(member, key=b"a")
    assert (got.header.cluster_id, got.header.member_id) == (CLUSTER, MEMBER)
    assert (got.header.revision, got.header.raft_term) == (2, TERM)
    assert [(kv.key, kv.value) for kv in got.kvs] == [(b"a", b"1")]
    again = put(member, b"a", b"2", prev_kv=True)
    assert again.prev_kv.value == b"1"
    txn = rpcpb.TxnRequest(
        compare=[rpcpb.Compare(key=b"a", target=3, value=b"2")],
        success=[rpcpb.RequestOp(request_put=rpcpb.PutRequest(key=b"b", value=b"x"))],
    )
    call = member.call("KV/Txn", txn.SerializeToString())
    assert rpcpb.TxnResponse.FromString(call.messages[0]).succeeded
    call = member.call("KV/DeleteRange", rpcpb.DeleteRangeRequest(key=b"b").SerializeToString())
    assert rpcpb.DeleteRangeResponse.FromString(call.messages[0]).deleted == 1
    call = member.call("KV/Compact", rpcpb.CompactionRequest(revision=3).SerializeToString())
    assert rpcpb.CompactionResponse.FromString(call.messages[0]).header.revision == 5


def test_requests_of_one_turn_are_one_proposal() -> None:
    member = OneMember()
    before = member.proposals
    body = rpcpb.PutRequest(key=b"k", value=b"v").SerializeToString()
    calls = [member.start("KV/Put", body) for _ in range(50)]
    assert member.asked == 1
    member.run()
    assert member.proposals == before + 1
    assert [call.status for call in calls] == [0] * 50


def test_leases_get_an_id_and_a_least_ttl() -> None:
    member = OneMember()
    ids = set()
    for _ in range(20):
        call = member.call("Lease/LeaseGrant", rpcpb.LeaseGrantRequest(TTL=1).SerializeToString())
        got = rpcpb.LeaseGrantResponse.FromString(call.messages[0])
        assert 0 < got.ID < 1 << 63 and got.TTL == 2
        ids.add(got.ID)
    assert len(ids) == 20
    given = rpcpb.LeaseGrantRequest(TTL=60, ID=5).SerializeToString()
    assert member.call("Lease/LeaseGrant", given).status == 0
    call = member.call("Lease/LeaseGrant", given)
    assert (call.status, call.text) == (Grpc.FAILED_PRECONDITION, STATUS[Code.LEASE_EXIST][1])
    revoke = rpcpb.LeaseRevokeRequest(ID=5).SerializeToString()
    assert member.call("Lease/LeaseRevoke", revoke).status == 0
    call = member.call("Lease/LeaseRevoke", revoke)
    assert (call.status, call.text) == (Grpc.NOT_FOUND, STATUS[Code.LEASE_NOT_FOUND][1])


@pytest.mark.parametrize(
    ("method", "body", "code"),
    [
        ("KV/Put", b"", Code.EMPTY_KEY),
        ("KV/Put", b"\x0a\x01a\x30\x01", Code.KEY_NOT_FOUND),
        ("KV/Put", b"\x0a\x01a\x12\x01v\x28\x01\x30\x01", Code.VALUE_PROVIDED),
        ("KV/Range", b"", Code.EMPTY_KEY),
        ("KV/Range", b"\x0a\x01a\x20\x63", Code.FUTURE_REV),
        ("KV/Range", b"\x0a\x01a\x28\x07", Code.INVALID_SORT),
        ("KV/RangeStream", b"", Code.EMPTY_KEY),
        ("KV/RangeStream", b"\x0a\x01a\x20\x63", Code.FUTURE_REV),
        ("KV/RangeStream", b"\x0a\x01a\x28\x07", Code.INVALID_SORT),
        ("KV/DeleteRange", b"", Code.EMPTY_KEY),
        ("KV/Txn", b"\x12\x00", Code.KEY_NOT_FOUND),
        ("KV/Compact", b"\x08\x63", Code.FUTURE_REV),
    ],
)
def test_refusals_have_the_table_s_text(method: str, body: bytes, code: Code) -> None:
    member = OneMember()
    call = member.call(method, body)
    assert (call.status, call.text) == STATUS[code]
    assert call.messages == []


def test_what_is_no_message_is_refused_in_grpc_s_words() -> None:
    member = OneMember()
    for method in ("Put", "Range", "DeleteRange", "Txn", "Compact"):
        call = member.call(f"KV/{method}", b"\x0a\x05a")
        assert call.status == Grpc.INTERNAL
        assert call.text.startswith("grpc: error unmarshalling request: proto:")
    call = member.call("KV/RangeStream", b"\x0a\x05a")
    assert call.status == Grpc.INTERNAL
    assert call.text.startswith("grpc: failed to unmarshal the received message: proto:")


def test_garbage_ends_with_a_status() -> None:
    rng = random.Random(4)
    member = OneMember()
    good = [
        ("KV/Put", rpcpb.PutRequest(key=b"k", value=b"v" * 40, prev_kv=True)),
        ("KV/Range", rpcpb.RangeRequest(key=b"a", range_end=b"z", limit=3, sort_order=2)),
        ("KV/RangeStream", rpcpb.RangeRequest(key=b"a", range_end=b"z", keys_only=True)),
        ("KV/DeleteRange", rpcpb.DeleteRangeRequest(key=b"a", range_end=b"z")),
        ("KV/Txn", rpcpb.TxnRequest(
            compare=[rpcpb.Compare(key=b"k", target=3, value=b"v")],
            success=[rpcpb.RequestOp(request_put=rpcpb.PutRequest(key=b"q"))],
        )),
        ("KV/Compact", rpcpb.CompactionRequest(revision=1)),
        ("Lease/LeaseGrant", rpcpb.LeaseGrantRequest(TTL=9)),
        ("Lease/LeaseRevoke", rpcpb.LeaseRevokeRequest(ID=9)),
    ]
    for _ in range(3000):
        method, message = good[rng.randrange(len(good))]
        body = bytearray(message.SerializeToString())
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(body) + 1)
            body[at:at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        assert member.call(method, bytes(body)).status is not None


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("target", range(5))
def test_sorted_and_filtered_streams_are_the_sorted_range(order: int, target: int) -> None:
    """etcd's RangeStream refuses these."""
    member = filled(3000, value_bytes=60)
    revision = range_(member, key=b"k").header.revision
    put(member, b"k000007", b"later")
    for options in ({}, {"limit": 1234}, {"revision": revision}, {"min_mod_revision": 900},
                    {"max_create_revision": 2000, "limit": 700}):
        asked = {"key": b"k", "range_end": b"l", "sort_order": order, "sort_target": target,
                 **options}
        parts = stream(member, **asked)
        assert merged(parts) == range_(member, **asked)
        assert len(parts) > 1


def test_too_much_at_once_is_refused_and_not_queued() -> None:
    member = OneMember(held_bytes_max=100_000)
    body = rpcpb.PutRequest(key=b"k", value=bytes(10_000)).SerializeToString()
    calls = [member.start("KV/Put", body) for _ in range(20)]
    member.run()
    refused = [call for call in calls if call.status]
    assert 9 <= len(refused) <= 12
    assert {(call.status, call.text) for call in refused} == {STATUS[Code.TOO_MANY_REQUESTS]}
    assert member.call("KV/Put", body).status == 0


# --- ranges over many keys ------------------------------------------------------------------------


def test_chunks_of_a_stream_are_etcd_s() -> None:
    member = filled(1000)
    parts = stream(member, key=b"k", range_end=b"l")
    # 10 keys, then twice as many while a message is below half of what a request may have.
    assert [len(p.kvs) for p in parts] == [10, 20, 40, 80, 160, 320, 370]
    assert all(not p.HasField("header") and not p.count and not p.more for p in parts[:-1])
    assert parts[-1].header.revision == 1001 and parts[-1].count == 1000
    assert merged(parts) == range_(member, key=b"k", range_end=b"l")


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 7},
        {"limit": 10},
        {"limit": 11},
        {"limit": 300},
        {"limit": 10_000},
        {"keys_only": True},
        {"count_only": True},
        {"revision": 300},
        {"revision": 2, "limit": 5},
        {"serializable": True},
        {"key": b"k000017", "range_end": b""},
        {"key": b"x", "range_end": b"y"},
        {"sort_order": 1, "sort_target": 0},
    ],
)
def test_a_stream_merges_to_the_range(options: dict[str, object]) -> None:
    member = filled(400)
    asked = {"key": b"k", "range_end": b"l"} | options
    assert merged(stream(member, **asked)) == range_(member, **asked)


SORTS = [{}, {"sort_order": 2}, {"sort_order": 1, "sort_target": 4}, {"sort_target": 3}]


@pytest.mark.parametrize("options", SORTS)
def test_a_long_range_is_what_the_machine_answers(options: dict[str, object]) -> None:
    """Over several slices, while others write and delete: as at its revision."""
    member = filled(9000)
    asked = rpcpb.RangeRequest(key=b"k", range_end=b"l", limit=8500, **options)
    before = member.start("KV/Range", asked.SerializeToString())
    more = rpcpb.DeleteRangeRequest(key=b"k0005", range_end=b"k0007").SerializeToString()
    member.turn()
    assert before.status is None and member.reads.long_reads
    member.start("KV/DeleteRange", more)
    member.start("KV/Put", rpcpb.PutRequest(key=b"k1", value=b"new").SerializeToString())
    member.run()
    assert before.status == 0
    got = rpcpb.RangeResponse.FromString(before.messages[0])
    assert got.count == 9000 and got.more and len(got.kvs) == 8500
    inside = rpcpb.TxnRequest(
        success=[rpcpb.RequestOp(request_range=asked)]
    )
    inside.success[0].request_range.revision = 9001
    done = member.call("KV/Txn", inside.SerializeToString())
    whole = rpcpb.TxnResponse.FromString(done.messages[0]).responses[0].response_range
    assert list(got.kvs) == list(whole.kvs)


@pytest.mark.parametrize("method", ["KV/Range", "KV/RangeStream"])
def test_who_does_not_read_keeps_nothing_in_memory(method: str) -> None:
    member = filled(300, value_bytes=100_000)
    asked = rpcpb.RangeRequest(key=b"k", range_end=b"l").SerializeToString()
    call = member.start(method, asked)
    call.made.pause()
    member.run()
    assert call.status is None
    assert member.http2.out_bytes < 8 << 20
    assert member.reads.lowest_reading() == 301
    assert put(member, b"other").header.revision == 302, "nobody is held up"
    call.made.resume()
    member.run()
    assert call.status == 0
    assert member.reads.lowest_reading() == 0
    size = sum(map(len, call.messages))
    assert 20 << 20 < size < 40 << 20


def test_freeing_waits_for_a_long_read() -> None:
    member = filled(300, value_bytes=100_000)
    asked = rpcpb.RangeRequest(key=b"k", range_end=b"l").SerializeToString()
    call = member.start("KV/Range", asked)
    call.made.pause()
    member.run()
    delete = rpcpb.DeleteRangeRequest(key=b"k", range_end=b"l").SerializeToString()
    assert member.call("KV/DeleteRange", delete).status == 0
    compact = rpcpb.CompactionRequest(revision=302, physical=True).SerializeToString()
    physical = member.start("KV/Compact", compact)
    member.run()
    member.free()
    member.run()
    assert physical.status is None, "what the long read needs is not freed"
    call.made.resume()
    member.run()
    assert call.status == 0 and len(rpcpb.RangeResponse.FromString(call.messages[0]).kvs) == 300
    member.free()
    member.run()
    assert physical.status == 0


@pytest.mark.parametrize("method", ["KV/Range", "KV/RangeStream"])
def test_a_read_that_freeing_passed_ends_with_an_error(method: str) -> None:
    member = filled(300, value_bytes=100_000)
    asked = rpcpb.RangeRequest(key=b"k", range_end=b"l").SerializeToString()
    call = member.start(method, asked)
    call.made.pause()
    member.run()
    delete = rpcpb.DeleteRangeRequest(key=b"k", range_end=b"l").SerializeToString()
    assert member.call("KV/DeleteRange", delete).status == 0
    member.call("KV/Compact", rpcpb.CompactionRequest(revision=302).SerializeToString())
    member.free(reading=False)
    call.made.resume()
    member.run()
    # A message that was begun can't be taken back: its call then ends as broken.
    assert (call.status, call.text) == (Grpc.INTERNAL, STATUS[Code.COMPACTED][1])
    assert sum(map(len, call.messages)) < 20 << 20


def test_a_cancelled_read_is_forgotten() -> None:
    member = filled(300, value_bytes=100_000)
    asked = rpcpb.RangeRequest(key=b"k", range_end=b"l").SerializeToString()
    call = member.start("KV/Range", asked)
    call.made.pause()
    member.run()
    assert member.reads.long_reads == 1
    member.asked = 0
    call.made.cancel()
    assert member.asked, "a turn is asked for"
    member.run()
    assert member.reads.long_reads == 0 and member.reads.lowest_reading() == 0


def test_many_long_reads_take_turns() -> None:
    member = filled(9000)
    asked = rpcpb.RangeRequest(key=b"k", range_end=b"l").SerializeToString()
    calls = [member.start("KV/Range", asked) for _ in range(20)]
    turns = 0
    while any(call.status is None for call in calls):
        member.turn()
        turns += 1
        assert turns < 2000
    assert {call.status for call in calls} == {0}
    assert len({call.messages[0] for call in calls}) == 1


@pytest.mark.parametrize("options", [{}, {"sort_order": 2}, {"sort_order": 1, "sort_target": 4}])
def test_sizes_are_right_whatever_the_index_tells(options: dict[str, object]) -> None:
    """Lengths around the largest that an index entry has room for; old versions; leases."""
    member = OneMember()
    lengths = [0, 1, 127, 128, 16383, 16384, 65533, 65534, 65535, 65536, 200_000]
    for number in range(80):
        put(member, b"%03d" % number, bytes(lengths[number % len(lengths)]))
        put(member, b"%03d" % number, bytes(lengths[(number * 7 + 1) % len(lengths)]))
    for revision in (0, 100):
        asked = {"key": b"0", "range_end": b"1", "revision": revision} | options
        got = range_(member, **asked)
        assert len(got.kvs) == got.count == (80 if revision == 0 else 50)
        if not options:
            assert merged(stream(member, **asked)) == got


def test_a_message_above_grpc_s_bound_is_refused() -> None:
    """Never built: its size comes first."""
    member = filled(300, value_bytes=10_000, message_bytes_max=1 << 20)
    asked = rpcpb.RangeRequest(key=b"k", range_end=b"l")
    size = len(rpcpb.RangeResponse(kvs=range_(member, key=b"k", range_end=b"l", limit=99).kvs)
               .SerializeToString())
    assert size < 1 << 20
    call = member.call("KV/Range", asked.SerializeToString())
    assert call.status == Grpc.RESOURCE_EXHAUSTED and call.messages == []
    assert re.fullmatch(
        r"grpc: trying to send message larger than max \(\d{7} vs. 1048576\)", call.text
    )


# --- compaction -----------------------------------------------------------------------------------


def test_a_physical_compaction_waits_for_the_freeing() -> None:
    member = filled(50)
    for number in range(50):
        put(member, b"k%06d" % number)
    body = rpcpb.CompactionRequest(revision=80, physical=True).SerializeToString()
    call = member.start("KV/Compact", body)
    logical = member.start("KV/Compact", rpcpb.CompactionRequest(revision=81).SerializeToString())
    member.run()
    assert call.status is None and logical.status == 0
    assert member.machine.compact_revision == 81
    member.free()
    member.run()
    assert call.status == 0
    assert rpcpb.CompactionResponse.FromString(call.messages[0]).header.revision == 101
    again = member.call("KV/Compact", body)
    assert (again.status, again.text) == STATUS[Code.COMPACTED]
