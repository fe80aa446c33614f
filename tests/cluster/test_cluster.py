"""Three members as real processes: service by each, deaths of members and of single processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kvnode.base.codes import Kind
from kvnode.client import Client
from kvnode.client.messages import put_request
from kvnode.proto import rpc_pb2 as rpcpb
from tests.faults.history import Writers
from tests.support.cluster import Cluster
from tests.support.node import Node

FAILOVER_SECONDS_MAX = 10.0   # under 2 s is the goal and is printed; a busy machine takes longer
ROLES = ("gateway", "consensus", "applier")
FLAGS = ("--checkpoint-interval", "200ms")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three members that serve; their states and directories are compared at the end."""
    made = Cluster(tmp_path, 3, *FLAGS)
    try:
        made.start()
        yield made
        made.settle()
        made.stop()
    finally:
        made.kill()
    made.fsck()


def grpc_put(node: Node, key: bytes, value: bytes = b"1") -> int:
    """The revision of a put over gRPC."""
    with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        call = channel.unary_unary("/etcdserverpb.KV/Put")
        raw = call(rpcpb.PutRequest(key=key, value=value).SerializeToString(), timeout=20)
    return rpcpb.PutResponse.FromString(raw).header.revision


def grpc_get(node: Node, key: bytes, serializable: bool = False) -> rpcpb.RangeResponse:
    with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        call = channel.unary_unary("/etcdserverpb.KV/Range")
        body = rpcpb.RangeRequest(key=key, serializable=serializable).SerializeToString()
        return rpcpb.RangeResponse.FromString(call(body, timeout=20))


def test_every_member_serves_reads_and_writes_over_both_protocols(cluster: Cluster) -> None:
    revision = 1
    for number, writer in enumerate(cluster.nodes):
        revision += 1
        assert grpc_put(writer, b"g%d" % number, b"1") == revision
        for reader in cluster.nodes:
            found = grpc_get(reader, b"g%d" % number)
            assert [kv.mod_revision for kv in found.kvs] == [revision]
            assert found.header.raft_term >= 2 and found.header.revision == revision
        with Client(writer.endpoint) as client:
            revision += 1
            assert client.put(b"n%d" % number, b"2").header.revision == revision
        for reader in cluster.nodes:
            with Client(reader.endpoint) as client:
                found = client.get(b"n%d" % number)
                assert found is not None and found.mod_revision == revision
    said = [cluster.status(node) for node in cluster.nodes]
    assert len({s.leader for s in said}) == 1 and said[0].leader
    assert len({s.header.member_id for s in said}) == 3
    assert len({s.header.cluster_id for s in said}) == 1


def test_a_leaders_death_costs_two_seconds_and_nothing_acknowledged(cluster: Cluster) -> None:
    writers = Writers(cluster.endpoints, count=3, timeout=60, pause=0.01)
    writers.start()
    writers.wait_answered(100)
    leader = cluster.leader()
    other = next(node for node in cluster.nodes if node is not leader)
    with Client(other.endpoint, timeout=30) as probe:
        probe.put(b"probe")
        killed = time.monotonic()
        leader.kill()
        probe.put(b"probe")
        took = time.monotonic() - killed
        assert probe.get(b"probe").version == 2
    writers.wait_answered(200)
    writers.finish()
    leader.start()
    verdict = writers.check()
    assert verdict.sound, f"{verdict}\n{verdict.notes}"
    assert took < FAILOVER_SECONDS_MAX, f"{took:.2f} s without an acknowledgement"


def test_a_follower_that_was_away_catches_up_from_the_log(cluster: Cluster) -> None:
    for hard in (False, True):
        follower = cluster.followers()[0]
        if hard:
            follower.kill()
        else:
            follower.stop()
        with Client(cluster.leader().endpoint) as client:
            for number in range(300):
                client.put(b"away/%d" % number, b"%d" % hard)
        follower.start()
        cluster.settle()
        found = grpc_get(follower, b"away/299", serializable=True)
        assert [kv.value for kv in found.kvs] == [b"%d" % hard]


def test_processes_of_every_member_die_under_load(cluster: Cluster) -> None:
    writers = Writers(cluster.endpoints, count=3, timeout=60, pause=0.01)
    writers.start()
    for node in cluster.nodes:
        for role in ROLES:
            writers.wait_answered(60)
            node.kill_process(role)
    writers.wait_answered(100)
    writers.finish()
    verdict = writers.check()
    assert verdict.sound, f"{verdict}\n{verdict.notes}"


def test_all_members_killed_at_once_and_started_again(cluster: Cluster) -> None:
    writers = Writers(cluster.endpoints, count=3, timeout=60, pause=0.01)
    writers.start()
    for _ in range(2):
        writers.wait_answered(100)
        cluster.kill()
        cluster.start()
    writers.wait_answered(100)
    writers.finish()
    verdict = writers.check()
    assert verdict.sound, f"{verdict}\n{verdict.notes}"


def test_a_member_without_its_quorum_says_so_and_the_proposal_stays_open(cluster: Cluster) -> None:
    grpc_put(cluster.nodes[0], b"before", b"1")
    alone = cluster.leader()
    others = [node for node in cluster.nodes if node is not alone]
    for node in others:
        node.kill()
    assert grpc_get(alone, b"before", serializable=True).count == 1
    with Client(alone.endpoint, timeout=60) as client:
        pending = client.submit(Kind.PUT, put_request(b"native", b"1"))
        client.flush()
        for ask in (grpc_put, grpc_get):
            with pytest.raises(grpc.RpcError) as caught:
                ask(alone, b"over grpc")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert caught.value.details() in (
                "etcdserver: request timed out", "etcdserver: no leader",
            )
        assert cluster.status(alone).leader == 0
        cluster.start(others)
        client.wait(pending)
        found = client.get(b"native")
        assert found is not None and found.version == 1
    # What timed out was not given up: its bytes stayed open, and are executed once.
    assert [kv.version for kv in grpc_get(alone, b"over grpc").kvs] == [1]


def test_leases_live_by_keep_alives_through_any_member_and_end_everywhere(
    cluster: Cluster,
) -> None:
    clients = [Client(node.endpoint, timeout=30) for node in cluster.nodes]
    leases = [client.grant(3).ID for client in clients]
    for lease, client in zip(leases, clients, strict=True):
        client.put(b"leased/%d" % lease, b"v", lease=lease)
    for lease in leases:
        # The member that asks is seldom the one that granted, or the leader.
        for client in clients:
            assert client.keep_alive(lease).TTL == 3
            assert client.time_to_live(lease).grantedTTL == 3
    for client in clients:
        assert {found.ID for found in client.leases().leases} == set(leases)
    leader = cluster.leader()
    alive = [c for c, n in zip(clients, cluster.nodes, strict=True) if n is not leader]
    leader.kill()
    until = time.monotonic() + 6
    while time.monotonic() < until:
        for client in alive:
            assert client.keep_alive(leases[0]).TTL == 3
        time.sleep(0.3)
    until = time.monotonic() + 30
    while len(alive[0].leases().leases) > 1:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert [found.ID for found in alive[1].leases().leases] == leases[:1]
    assert alive[1].get(b"leased/%d" % leases[1]) is None
    assert alive[0].get(b"leased/%d" % leases[0]) is not None
    leader.start()
    for client in clients:
        client.close()


def test_a_leader_that_stops_hands_over_first(cluster: Cluster) -> None:
    term = cluster.status(cluster.nodes[0]).raftTerm
    leader = cluster.leader()
    other = next(node for node in cluster.nodes if node is not leader)
    with Client(other.endpoint) as client:
        client.put(b"before")
        leader.stop()
        began = time.monotonic()
        client.put(b"after")
        took = time.monotonic() - began
    assert cluster.status(other).raftTerm == term + 1
    leader.start()
    print(f"\na leader that stops hands over in {took:.2f} s")
    assert took < FAILOVER_SECONDS_MAX
