"""What does the codec cost a request? Micro-benchmarks of etcdpb and envelope.

    .venv/bin/python -m pytest bench/core_codec.py --benchmark-columns=min,median,rounds

The rounds named `..._x1000` do 1,000 operations inside C: their microseconds are nanoseconds an
operation. protobuf stands beside them as the measure of what a Python object a request costs.
"""

from __future__ import annotations

import random
from typing import Any

from kvnode._core import envelope, messages
from kvnode.base.codes import Code, Kind
from kvnode.proto import rpc_pb2

RNG = random.Random(1)
KEYS = [RNG.randbytes(32) for _ in range(1000)]
VALUES = [RNG.randbytes(256) for _ in KEYS]
PUT = messages.encode_put(KEYS[0], VALUES[0])
PUT_BATCH = messages.encode_put_batch(KEYS, VALUES)
TXN_OPS = [
    messages.encode_op(2, messages.encode_put(k, v))
    for k, v in zip(KEYS[:100], VALUES[:100], strict=True)
]
TXN = messages.encode_txn(success=TXN_OPS)
TXN_WITH_DELETE = messages.encode_txn(
    success=[*TXN_OPS, messages.encode_op(3, messages.encode_delete_range(b"\0", b"\0\0"))]
)
HEADER = (2**63 + 5, 2**62 + 9, 1_000_000, 2)
KEYVALUE = messages.encode_keyvalue(KEYS[0], 1_000_000, 1_000_001, 3, VALUES[0], 0)
GROUPS = [
    {"session": 7, "sequence": i, "lowest": 1, "member": 9, "incarnation": 3, "slot": i,
     "requests": [(Kind.PUT, PUT)]}
    for i in range(1000)
]  # fmt: skip
BATCH = envelope.build_batch(GROUPS)


def test_put_decode_and_check_x1000(benchmark: Any) -> None:
    assert benchmark(messages.repeat_check, Kind.PUT, PUT, 1000) == Code.OK


def test_range_decode_and_check_x1000(benchmark: Any) -> None:
    body = messages.encode_range(KEYS[0])
    assert benchmark(messages.repeat_check, Kind.RANGE, body, 1000) == Code.OK


def test_txn_of_100_puts_decode_and_check_x1000(benchmark: Any) -> None:
    assert benchmark(messages.repeat_check, Kind.TXN, TXN, 1000) == Code.OK


def test_txn_with_range_delete_decode_and_check_x1000(benchmark: Any) -> None:
    assert benchmark(messages.repeat_check, Kind.TXN, TXN_WITH_DELETE, 1000) == Code.OK


def test_put_batch_of_1000_check(benchmark: Any) -> None:
    assert benchmark(messages.repeat_check, Kind.PUT_BATCH, PUT_BATCH, 1) == Code.OK


def test_put_batch_one_of_1000_check(benchmark: Any) -> None:
    assert benchmark(messages.repeat_check, Kind.PUT_BATCH_ONE, PUT_BATCH, 1) == Code.OK


def test_put_answer_x1000(benchmark: Any) -> None:
    benchmark(messages.repeat_put_answer, HEADER, 1000)


def test_keyvalue_decode_and_encode_x1000(benchmark: Any) -> None:
    assert benchmark(messages.repeat_keyvalue, KEYVALUE, 1000) == len(KEYVALUE)


def test_encode_put_from_python(benchmark: Any) -> None:
    benchmark(messages.encode_put, KEYS[0], VALUES[0])


def test_encode_put_batch_of_1000_from_python(benchmark: Any) -> None:
    benchmark(messages.encode_put_batch, KEYS, VALUES)


def test_batch_of_1000_groups_check(benchmark: Any) -> None:
    assert benchmark(envelope.check_batch, BATCH) == (1000, 1000)


def test_batch_of_1000_groups_columns(benchmark: Any) -> None:
    benchmark(envelope.columns, BATCH)


def test_merge_of_10_batches_of_1000_groups(benchmark: Any) -> None:
    benchmark(envelope.merge, [BATCH] * 10)


def test_protobuf_parses_one_put(benchmark: Any) -> None:
    benchmark(rpc_pb2.PutRequest.FromString, PUT)


def test_protobuf_parses_a_txn_of_100(benchmark: Any) -> None:
    benchmark(rpc_pb2.TxnRequest.FromString, TXN)
