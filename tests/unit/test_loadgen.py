"""The load generator against a small server of its own protocol, over real libzmq."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator

import pytest
import zmq

from kvnode._core.loadcore import Load, LoadError, bucket, encode_put_batches, key_text
from kvnode.base.codes import Code, Kind
from kvnode.base.errors import PeerError
from kvnode.loadgen import bulk, native, zmtp
from kvnode.proto import kvnodepb_pb2, rpc_pb2

MASK = (1 << 64) - 1


def splitmix64(seed: int, n: int) -> int:
    z = (seed + (n + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


class Echo:
    """A ROUTER that answers every request with success, keeps what it got, and can misbehave."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.stopper = self.context.socket(zmq.PAIR)
        self.stopper.bind("inproc://stop")
        self.requests: list[tuple[int, bytes]] = []
        self.counts: list[int] = []
        self.code = Code.OK
        self.twice = False
        self.error = b""
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        stop = self.context.socket(zmq.PAIR)
        stop.connect("inproc://stop")
        poller = zmq.Poller()
        poller.register(stop, zmq.POLLIN)
        poller.register(self.socket, zmq.POLLIN)
        while stop not in dict(poller.poll()):
            peer, message = self.socket.recv_multipart()
            self.socket.send_multipart([peer, self._answer(message)])
        stop.close()

    def _answer(self, message: bytes) -> bytes:
        _, opcode, _, _, count, _, _, _ = zmtp.HEADER.unpack_from(message)
        head = zmtp.HEADER.pack
        if opcode == zmtp.HELLO:
            ok = kvnodepb_pb2.HelloOk(version=1, credit_bytes=64 << 20).SerializeToString()
            return head(zmtp.MAGIC, zmtp.HELLO_OK, 0, 0, 1, 0, 0, 0) + ok
        if self.error:
            body = struct.pack("<I", Code.MALFORMED) + self.error
            return head(zmtp.MAGIC, zmtp.ERROR, 0, 0, 1, 0, 0, 0) + body
        self.counts.append(count)
        out, at = [], zmtp.HEADER.size
        for _ in range(count):
            number, size, kind, _, _, _, _ = bulk.ITEM.unpack_from(message, at)
            body = message[at + 24 : at + 24 + size]
            self.requests.append((kind, body))
            at += 24 + size
            answer = self._response(kind, body) if not self.code else b""
            out.append(bulk.ANSWER.pack(number, len(answer), self.code, 0, 0, 0) + answer)
        assert at == len(message)
        out *= 2 if self.twice else 1
        return head(zmtp.MAGIC, zmtp.ANSWERS, 0, 0, len(out), 0, 0, 0) + b"".join(out)

    def _response(self, kind: int, body: bytes) -> bytes:
        if kind == Kind.PUT_BATCH:
            puts = kvnodepb_pb2.PutBatch.FromString(body).puts
            self.requests[-1:] = [(Kind.PUT, put.SerializeToString()) for put in puts]
            return kvnodepb_pb2.BatchResponse(applied=len(puts)).SerializeToString()
        if kind == Kind.RANGE:
            found = rpc_pb2.RangeResponse(count=1)
            found.kvs.add(key=rpc_pb2.RangeRequest.FromString(body).key, value=b"v" * 256)
            return found.SerializeToString()
        return rpc_pb2.PutResponse().SerializeToString()

    def close(self) -> None:
        self.stopper.send(b"")
        self.thread.join()
        self.stopper.close()
        self.socket.close()
        self.context.term()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def drive(echo: Echo, shape: native.Shape, requests: int, reads: bool = False) -> native.Result:
    options = {"reads": reads, "key_space": 50, "seed": 3, "draw_seed": 4}
    with native.driver(echo.endpoint, shape, **options) as load:
        return load.run(60.0, requests_max=requests)


def test_keys_are_those_of_splitmix64() -> None:
    for seed, i in ((1, 0), (1, 1), (77, 999_999), (MASK, 5)):
        text = f"{splitmix64(seed, 2 * i):016x}{splitmix64(seed, 2 * i + 1):016x}"
        assert key_text(seed, i) == text.encode()


def test_a_bucket_holds_its_value_within_two_percent() -> None:
    numbers = [bucket(us) for us in range(5000)]
    assert numbers == sorted(numbers)
    for us in [*range(300), 12_345, 10**6, 10**9]:
        counts = [0] * 4096
        counts[bucket(us)] = 1
        assert native.quantile(counts, 0.5) == pytest.approx(us, rel=0.02)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize(
    "shape",
    [native.PACKED, native.Shape(1, 99, True, 30), native.Shape(7, 3, True),
     native.Shape(7, 3, False), native.ALONE],
)
def test_every_request_is_sent_as_asked_and_answered(
    echo: Echo, shape: native.Shape, reads: bool
) -> None:
    result = drive(echo, shape, 3000, reads)
    assert result.requests == len(echo.requests) == 3000
    assert result.messages == len(echo.counts)
    most = (shape.pack_max or shape.in_flight) if shape.packed else 1
    assert max(echo.counts) <= most
    assert 0 < result.p50_us <= result.p99_us <= result.max_us
    space = {key_text(3, i) for i in range(50)}
    seen = set()
    for kind, body in echo.requests:
        assert kind == (Kind.RANGE if reads else Kind.PUT)
        message = (rpc_pb2.RangeRequest if reads else rpc_pb2.PutRequest).FromString(body)
        seen.add(message.key)
        assert reads or len(message.value) == 256
    assert seen == space


def test_paced_requests_keep_their_rate(echo: Echo) -> None:
    with native.driver(
        echo.endpoint, native.PACED, reads=False, key_space=9, seed=1, draw_seed=1
    ) as load:
        result = load.run(0.5, rate=400)
    assert result.requests == 200
    assert set(echo.counts) == {1}


def test_refusals_errors_and_answers_to_nothing_end_a_run(echo: Echo) -> None:
    echo.code = Code.NO_SPACE
    with pytest.raises(LoadError, match="database space exceeded"):
        drive(echo, native.ALONE, 3)
    echo.code, echo.twice = Code.OK, True
    with pytest.raises(LoadError, match="not an answer to an open request"):
        drive(echo, native.ALONE, 3)
    echo.error = b"credit exceeded"
    with pytest.raises(LoadError, match="credit exceeded"):
        drive(echo, native.ALONE, 3)


def test_random_bytes_in_place_of_answers_only_raise(echo: Echo) -> None:
    """The fuzz contract of the parser: it accepts, or raises LoadError."""
    import socket

    rng = random.Random(5)
    for _ in range(300):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            good = zmtp.HEADER.pack(zmtp.MAGIC, zmtp.ANSWERS, 0, 0, 1, 0, 0, 0)
            good += bulk.ANSWER.pack(0, 0, 0, 0, 0, 0)
            data = bytearray(zmtp.frame(len(good)) + good)
            for _ in range(rng.choice((0, 1, 2, 4))):
                data[rng.randrange(len(data))] = rng.randrange(256)
            theirs.sendall(data[: rng.choice((len(data), rng.randrange(len(data) + 1)))])
            theirs.shutdown(socket.SHUT_WR)
            load = Load([ours.fileno()], 1, reads=False, packed=True, key_space=1, seed=1,
                        draw_seed=1)
            try:
                load.run(1.0, requests_max=1)
            except LoadError:
                continue
            assert load.answered == 1


def test_bulk_batches_hold_the_records_and_count_every_put(echo: Echo) -> None:
    rng = random.Random(1)
    records = [(rng.randbytes(rng.randrange(1, 40)), rng.randbytes(rng.randrange(0, 300)))
               for _ in range(257)]
    data = b"".join(struct.pack("<II", len(k), len(v)) + k + v for k, v in records)
    bodies = encode_put_batches(data, 10)
    assert len(bodies) == 26
    result = bulk.feed(echo.endpoint, bodies)
    assert result.puts == 257
    puts = [rpc_pb2.PutRequest.FromString(body) for _, body in echo.requests]
    assert [(put.key, put.value) for put in puts] == records
    for cut in (1, 7, 8, len(data) - 1):
        with pytest.raises(ValueError, match="ends inside a record"):
            encode_put_batches(data[:cut], 10)
    echo.code = Code.NO_SPACE
    with pytest.raises(PeerError, match="space exceeded"):
        bulk.feed(echo.endpoint, bodies)
