"""The members' table as bytes: beside protobuf's own encoder, and damaged."""

from __future__ import annotations

import random

import pytest

from kvnode.base.errors import DecodeError
from kvnode.proto import rpc_pb2 as rpcpb
from kvnode.wire.members import Member, decode_members, encode_members

TABLE = [
    Member(3, "c", ("http://c:2380",), ("http://c:2379", "http://c:2381")),
    Member(1, "a", ("http://a:2380", "http://a:3380")),
    Member((1 << 63) + 5, "", ("http://[::1]:2380",), (), True),
    Member(4, "näme" * 40, ()),
]


def test_bytes_are_protobufs_and_equal_for_equal_tables() -> None:
    data = encode_members(TABLE)
    twin = b""
    for member in sorted(TABLE):
        one = rpcpb.Member(
            ID=member.id, name=member.name, peerURLs=sorted(member.peer_urls),
            clientURLs=sorted(member.client_urls), isLearner=member.learner,
        )
        # Field 1 there as here is a header of another type: only the framing is compared.
        twin += rpcpb.MemberListResponse(members=[one]).SerializeToString().replace(
            b"\x12", b"\x0a", 1
        )
    assert data == twin
    assert decode_members(data) == sorted(TABLE)
    assert encode_members(reversed(TABLE)) == data
    example = encode_members([Member(1, "a", ("http://h:1",))])
    assert example.hex() == "0a1108011201611a0a687474703a2f2f683a31"


def test_fields_of_a_later_version_are_skipped() -> None:
    later = bytes.fromhex("1a02ffff" "2105000000000000000d01000000" "0a05" "0801" "7a0178")
    assert decode_members(later) == [Member(1, "", ())]


def test_damage_is_refused_or_read_and_nothing_else() -> None:
    data = encode_members(TABLE)
    rng = random.Random(5)
    for _ in range(20_000):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        del broken[rng.randrange(len(broken)) :]
        try:
            decode_members(bytes(broken))
        except DecodeError:
            continue


@pytest.mark.parametrize(
    "text", ["0a", "0a05", "0a0100", "0a00", "0b", "0aff", "80" * 11, "0a0408011201"]
)
def test_what_is_cut_or_without_an_id_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        decode_members(bytes.fromhex(text))
