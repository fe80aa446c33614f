"""How long from exec to `ready` with --keys keys, after a clean stop and after kill -9?

kvnode's whole node is killed, every process of it, so a start recovers as after a power cut.
Some puts precede each kill, so that there is a log to apply again.
"""

from __future__ import annotations

import argparse

from bench import common, peers
from bench.common import Row, Sample
from kvnode.loadgen import native
from tests.support.etcd import Etcd
from tests.support.node import Node

PUTS_BEFORE = 20_000


def _dirty(args: argparse.Namespace, server: Etcd | Node) -> None:
    if isinstance(server, Etcd):
        [path] = peers.record_files(args, args.keys)
        peers.feeder(server, path, clients=50, batch=1, limit=min(PUTS_BEFORE, args.keys))
        return
    with native.driver(server.endpoint, native.PACKED, reads=False, key_space=args.keys,
                       seed=args.seed, draw_seed=9) as load:
        load.run(60.0, requests_max=min(PUTS_BEFORE, args.keys))


def _restart(args: argparse.Namespace, server: Etcd | Node, clean: bool) -> Sample:
    _dirty(args, server)
    note = ""
    if clean:
        note = f"stopped in {server.stop():.2f} s"
    else:
        server.kill()
    server.start()
    return Sample(server.ready_seconds, server.cpu_seconds(), 0.0, note)


def rows(args: argparse.Namespace) -> list[Row]:
    """Clean and killed."""
    with peers.loaded(args, args.keys) as servers:
        found = {}
        for clean in (True, False):
            common.progress("clean stop" if clean else "kill -9")
            measures = {
                side: lambda _, server=server, clean=clean: _restart(args, server, clean)
                for side, server in servers.items()
            }
            found[clean] = common.interleave(args, measures)
    return [
        Row("restart to ready, clean", "s", 0.5, 0.2, False, **found[True]),
        Row("restart to ready, after kill -9", "s", 1, 0.4, False, **found[False]),
    ]


if __name__ == "__main__":
    common.script(__doc__.splitlines()[0], rows)
