"""Does put latency stay flat: with many keys, during checkpoints, compaction and defragmentation?

Puts come at a fixed rate and are timed from the moment they were due, so a stall counts for every
put that it delayed. Each ratio is kvnode's p99 under the condition over its p99 in quiet, in
alternation; etcd's own ratio stands beside it for comparison.

quiet        10,000 keys, no other load
many keys    --large-keys keys
checkpoint   5,000 new random keys a second beside, in batches of 100: each checkpoint (one a
             second) then has pages all over the tree to write
compaction   a million revisions of the small key space, compacted at the head during the run
defrag       a defragmentation of that during the run
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator

from bench import common, gen, peers
from bench.common import Row, Sample
from kvnode._core.loadcore import encode_put_batches
from kvnode.base.codes import Kind
from kvnode.loadgen import bulk, native
from kvnode.proto import rpc_pb2 as pb
from tests.support.etcd import Etcd
from tests.support.node import Node

SMALL_KEYS = 10_000
RATE = 1000.0
FIRE_AFTER_SECONDS = 0.5
BESIDE_BATCHES = 50
SECONDS_MIN = 8.0
SETTLE_SECONDS = 10


def paced(args: argparse.Namespace, server: Etcd | Node, key_space: int,
          during: Callable[[], float] | None = None) -> Sample:
    """p99 in milliseconds of puts at RATE; `during` runs beside them and says how long it took."""
    took: list[float] = []

    def fire() -> None:
        time.sleep(FIRE_AFTER_SECONDS)  # the load's, not a test's: it shall be under way
        assert during is not None
        took.append(during())

    thread = threading.Thread(target=fire) if during else None
    seconds = max(args.seconds, SECONDS_MIN)
    cpu = server.cpu_seconds()
    if thread:
        thread.start()
    if isinstance(server, Etcd):
        path = peers.record_files(args, key_space)[0]
        fed = peers.feeder(server, path, clients=200, conns=4, batch=1, rate=RATE, seconds=seconds)
        tool, p50, p99, p999, top = fed.cpu_s, fed.p50_us, fed.p99_us, fed.p999_us, fed.max_us
    else:
        with native.driver(server.endpoint, native.PACED, reads=False, key_space=key_space,
                           seed=args.seed, draw_seed=5) as load:
            done = load.run(seconds, rate=RATE)
        tool, p50, p99, p999, top = (
            done.cpu_seconds, done.p50_us, done.p99_us, done.p999_us, done.max_us
        )
    if thread:
        thread.join()
    cpu = server.cpu_seconds() - cpu
    note = f"p50 {p50 / 1000:.2f} p99.9 {p999 / 1000:.2f} max {top / 1000:.1f} ms"
    if took:
        note += f", beside it {took[0]:.2f} s"
    return Sample(p99 / 1000, cpu, tool, note)


def _timed(action: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        begun = time.monotonic()
        action()
        return time.monotonic() - begun

    return run


def _revision(server: Etcd | Node) -> int:
    if isinstance(server, Etcd):
        return peers.revision(server)
    answer = bulk.call(server.endpoint, Kind.RANGE, pb.RangeRequest(key=b"none"))
    return pb.RangeResponse.FromString(answer).header.revision


def _compact(server: Etcd | Node) -> None:
    revision = _revision(server)
    if isinstance(server, Etcd):
        server.ctl("compaction", str(revision), "--physical")
    else:
        request = pb.CompactionRequest(revision=revision, physical=True)
        bulk.call(server.endpoint, Kind.COMPACT, request)


def _defrag(server: Etcd | Node) -> None:
    if isinstance(server, Etcd):
        server.ctl("defrag")
    else:
        bulk.call(server.endpoint, Kind.DEFRAG, pb.DefragmentRequest())


def _history(args: argparse.Namespace, server: Etcd | Node) -> None:
    """--keys revisions over the small key space: the same records, keys taken again and again."""
    [small] = peers.record_files(args, SMALL_KEYS)
    times = max(args.keys // SMALL_KEYS, 1)
    if isinstance(server, Etcd):
        for _ in range(times):
            peers.feeder(server, small, clients=50, batch=100)
        return
    bodies = encode_put_batches(small.read_bytes(), 1000)
    bulk.feed(server.endpoint, [b for _ in range(times) for b in bodies])


def _dirtying(args: argparse.Namespace, server: Etcd | Node, key_space: int) -> Sample:
    """The paced puts, with new keys beside them that dirty pages all over the tree."""
    count = min(args.keys, peers.FILE_KEYS_MAX)
    path = peers.record_files(args, count)[0]
    seconds = max(args.seconds, SECONDS_MIN)
    batches = min(int(seconds * BESIDE_BATCHES), count // 100)

    def etcd() -> None:
        peers.feeder(server, path, clients=4, batch=100, limit=batches * 100, rate=BESIDE_BATCHES)

    def kvnode() -> None:
        with path.open("rb") as file:
            bodies = encode_put_batches(file.read(gen.RECORD_BYTES * batches * 100), 100)
        begun = time.monotonic()

        def evenly() -> Iterator[bytes]:
            for number, body in enumerate(bodies):
                time.sleep(max(begun + number / BESIDE_BATCHES - time.monotonic(), 0))
                yield body

        bulk.feed(server.endpoint, evenly(), in_flight=4)

    return paced(args, server, key_space, _timed(etcd if isinstance(server, Etcd) else kvnode))


@contextlib.contextmanager
def _side(args: argparse.Namespace, side: str) -> Iterator[tuple[Etcd | Node, Etcd | Node]]:
    """A small and a large server of one side."""
    with peers.folder(args) as small_at, peers.folder(args) as large_at:
        make = peers.etcd if side == "etcd" else lambda path: peers.node(args, path)
        with make(small_at) as small, make(large_at) as large:
            peers.preload(args, small, SMALL_KEYS)
            peers.preload(args, large, args.large_keys)
            time.sleep(SETTLE_SECONDS)  # write-back of the preload must not count as quiet
            yield small, large


CONDITIONS = ("many keys", "checkpoint", "compaction", "defrag")


def _measure(args: argparse.Namespace, side: str) -> dict[str, list[tuple[Sample, Sample]]]:
    """For each condition, pairs of (quiet, stressed)."""
    found: dict[str, list[tuple[Sample, Sample]]] = {name: [] for name in CONDITIONS}
    with _side(args, side) as (small, large):
        for number, name in itertools.product(range(args.rounds), CONDITIONS):
            quiet = paced(args, small, SMALL_KEYS)
            if name == "many keys":
                stressed = paced(args, large, args.large_keys)
            elif name == "checkpoint":
                stressed = _dirtying(args, small, SMALL_KEYS)
            elif name == "compaction":
                _history(args, small)
                stressed = paced(args, small, SMALL_KEYS, _timed(lambda: _compact(small)))
            else:
                stressed = paced(args, small, SMALL_KEYS, _timed(lambda: _defrag(small)))
            common.progress(
                f"round {number + 1} {side} {name}: quiet p99 {quiet.value:.2f} ms ({quiet.note}); "
                f"then {stressed.value:.2f} ms ({stressed.note})"
            )
            found[name].append((quiet, stressed))
    return found


def rows(args: argparse.Namespace) -> list[Row]:
    """A row for each condition."""
    found = {side: _measure(args, side) for side in common.sides(args)}
    made = []
    for name in CONDITIONS:
        pairs = {side: found[side][name] for side in found}
        row = Row(
            f"put p99 at {RATE:.0f}/s, {name} against quiet", "ms", 1.3, 1.1, False,
            *([stressed for _, stressed in pairs.get(side, [])] for side in common.SIDES),
        )
        row.ratios = [s.value / q.value for q, s in pairs.get("kvnode", [])]
        beside = sorted(s.value / q.value for q, s in pairs.get("etcd", []))
        if beside:
            row.note = f"(etcd against itself {beside[len(beside) // 2]:.2f})"
        made.append(row)
    return made


if __name__ == "__main__":
    common.script(__doc__.splitlines()[0], rows)
