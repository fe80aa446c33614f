"""/metrics from made-up readings: etcd's names, types and labels, and the exposition format."""

from __future__ import annotations

import math
import os
import time
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from kvnode._core.meters import BOUNDS, HISTOGRAM, OPERATIONS, SLOT
from kvnode.api.metrics import PROBES, Readings, render
from kvnode.api.node import Facts
from kvnode.env.processes import Use, read_use

# Name: type, labels beside le. What dashboards and alerts of etcd's ask for, and what else is kept.
ETCD = {
    "etcd_cluster_version": ("gauge", "cluster_version"),
    "etcd_server_version": ("gauge", "server_version"),
    "etcd_server_id": ("gauge", "server_id"),
    "etcd_server_has_leader": ("gauge", ""),
    "etcd_server_is_leader": ("gauge", ""),
    "etcd_server_is_learner": ("gauge", ""),
    "etcd_server_leader_changes_seen_total": ("counter", ""),
    "etcd_server_proposals_committed_total": ("gauge", ""),
    "etcd_server_proposals_applied_total": ("gauge", ""),
    "etcd_server_proposals_pending": ("gauge", ""),
    "etcd_server_proposals_failed_total": ("counter", ""),
    "etcd_server_heartbeat_send_failures_total": ("counter", ""),
    "etcd_server_slow_apply_total": ("counter", ""),
    "etcd_server_slow_read_indexes_total": ("counter", ""),
    "etcd_server_read_indexes_failed_total": ("counter", ""),
    "etcd_server_quota_backend_bytes": ("gauge", ""),
    "etcd_server_client_requests_total": ("counter", "client_api_version type"),
    "etcd_server_apply_duration_seconds": ("histogram", "op success version"),
    "etcd_server_range_duration_seconds": ("histogram", "success"),
    "etcd_server_health_success": ("counter", ""),
    "etcd_server_health_failures": ("counter", ""),
    "etcd_server_healthcheck": ("gauge", "name type"),
    "etcd_server_healthchecks_total": ("counter", "name status type"),
    "etcd_server_snapshot_apply_in_progress_total": ("gauge", ""),
    "etcd_disk_wal_fsync_duration_seconds": ("histogram", ""),
    "etcd_disk_wal_write_duration_seconds": ("histogram", ""),
    "etcd_disk_wal_write_bytes_total": ("gauge", ""),
    "etcd_disk_backend_commit_duration_seconds": ("histogram", ""),
    "etcd_disk_backend_defrag_duration_seconds": ("histogram", ""),
    "etcd_disk_defrag_inflight": ("gauge", ""),
    "etcd_mvcc_put_total": ("counter", ""),
    "etcd_mvcc_delete_total": ("counter", ""),
    "etcd_mvcc_txn_total": ("counter", ""),
    "etcd_mvcc_range_total": ("counter", ""),
    "etcd_mvcc_db_total_size_in_bytes": ("gauge", ""),
    "etcd_mvcc_db_total_size_in_use_in_bytes": ("gauge", ""),
    "etcd_mvcc_db_open_read_transactions": ("gauge", ""),
    "etcd_mvcc_hash_duration_seconds": ("histogram", ""),
    "etcd_mvcc_hash_rev_duration_seconds": ("histogram", ""),
    "etcd_debugging_mvcc_keys_total": ("gauge", ""),
    "etcd_debugging_mvcc_watcher_total": ("gauge", ""),
    "etcd_debugging_mvcc_watch_stream_total": ("gauge", ""),
    "etcd_debugging_mvcc_slow_watcher_total": ("gauge", ""),
    "etcd_debugging_mvcc_events_total": ("counter", ""),
    "etcd_debugging_mvcc_pending_events_total": ("gauge", ""),
    "etcd_debugging_mvcc_current_revision": ("gauge", ""),
    "etcd_debugging_mvcc_compact_revision": ("gauge", ""),
    "etcd_debugging_lease_granted_total": ("counter", ""),
    "etcd_debugging_lease_revoked_total": ("counter", ""),
    "etcd_debugging_lease_renewed_total": ("counter", ""),
    "etcd_debugging_server_lease_expired_total": ("counter", ""),
    "etcd_network_client_grpc_received_bytes_total": ("counter", ""),
    "etcd_network_client_grpc_sent_bytes_total": ("counter", ""),
    "grpc_server_started_total": ("counter", "grpc_method grpc_service grpc_type"),
    "grpc_server_msg_received_total": ("counter", "grpc_method grpc_service grpc_type"),
    "grpc_server_msg_sent_total": ("counter", "grpc_method grpc_service grpc_type"),
    "grpc_server_handled_total": ("counter", "grpc_code grpc_method grpc_service grpc_type"),
    "grpc_server_handling_seconds": ("histogram", "grpc_method grpc_service grpc_type"),
    "os_fd_used": ("gauge", ""),
    "os_fd_limit": ("gauge", ""),
    "process_cpu_seconds_total": ("counter", ""),
    "process_open_fds": ("gauge", ""),
    "process_max_fds": ("gauge", ""),
    "process_resident_memory_bytes": ("gauge", ""),
    "process_virtual_memory_bytes": ("gauge", ""),
    "process_start_time_seconds": ("gauge", ""),
}


class FakeRegion:
    """A region of chosen values."""

    def __init__(self, **values: int) -> None:
        self.values = {SLOT[name]: value for name, value in values.items()}
        self.observed: dict[int, tuple[list[int], int]] = {}

    def get(self, slot: int) -> int:
        return self.values.get(slot, 0)

    def histogram(self, number: int) -> tuple[list[int], int]:
        return self.observed.get(number, ([0] * (len(BOUNDS[number]) + 1), 0))


def calls(started: int) -> dict[str, dict[str, Any]]:
    return {
        "/etcdserverpb.KV/Put": {
            "type": "unary", "started": started, "handled": {"OK": started - 1, "Canceled": 1},
            "received": started, "received_bytes": 100, "sent": started, "sent_bytes": 200,
            "seconds": [started] + [0] * 11, "seconds_sum": 0.25,
        },
        "/etcdserverpb.Watch/Watch": {
            "type": "bidi_stream", "started": 1, "handled": {"OK": 0, "Canceled": 0},
            "received": 1, "received_bytes": 1, "sent": 5, "sent_bytes": 5,
            "seconds": [0] * 12, "seconds_sum": 0.0,
        },
    }  # fmt: skip


def readings() -> Readings:
    applier = FakeRegion(puts=7, deletes=2, txns=1, revision=9, compact_revision=3)
    applier.observed[HISTOGRAM["apply"]] = ([2, 5] + [0] * 19, 1_000_000)
    gateways = [FakeRegion(ranges=4, watchers=1), FakeRegion(ranges=6, watchers=2)]
    for number, gateway in enumerate(gateways):
        gateway.observed[HISTOGRAM["range"]] = ([3 + number] + [0] * 20, 500_000)
    probe = SLOT["probes"] + 3 * PROBES.index(("readyz", "linearizable_read"))
    gateways[0].values |= {probe: 5, probe + 2: 2}
    gateways[1].values |= {probe + 1: 1, probe + 2: 1}
    return Readings(
        member_id=0xABC,
        facts=Facts(1000, 500, 1 << 31, 0xABC, 20, 19, 2),
        supervisor=FakeRegion(restarts=1, dead_cpu_us=500_000),
        applier=applier,
        consensus=FakeRegion(has_leader=1, is_leader=1, wal_bytes=4096),
        gateways=gateways,
        calls=[calls(10), calls(5)],
        use=Use(1.5, 1 << 20, 1 << 30, 30, 1024, 1.7e9),
        keys=12,
        pending=3,
        leases_renewed=8,
    )


def parsed(text: str) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(text: str) -> dict[tuple[str, str], float]:
    """By sample's name and its labels."""
    return {
        (s.name, ",".join(f"{k}={v}" for k, v in sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_names_types_and_labels_are_etcd_s() -> None:
    text = render(readings()).decode()
    families = parsed(text)
    for name, (kind, labels) in ETCD.items():
        # The parser cuts _total off counters.
        family = families.get(name) or families[name.removesuffix("_total")]
        assert family.type == kind, name
        assert f"# TYPE {name} {kind}\n" in text, name
        assert family.samples or kind == "histogram", name
        for sample in family.samples:
            assert sorted(set(sample.labels) - {"le"}) == labels.split(), name
    own = set(families) - {n.removesuffix("_total") for n in ETCD} - set(ETCD)
    assert all(name.startswith("kvnode_") for name in own)


def test_values_come_from_where_they_are_counted() -> None:
    got = values(render(readings()).decode())
    assert got["etcd_server_proposals_committed_total", ""] == 20
    assert got["etcd_server_proposals_applied_total", ""] == 19
    assert got["etcd_server_proposals_pending", ""] == 3
    assert got["etcd_mvcc_put_total", ""] == 7
    assert got["etcd_mvcc_range_total", ""] == 10
    assert got["etcd_debugging_mvcc_watcher_total", ""] == 3
    assert got["etcd_debugging_mvcc_keys_total", ""] == 12
    assert got["etcd_debugging_lease_renewed_total", ""] == 8
    assert got["etcd_server_id", "server_id=abc"] == 1
    assert got["process_cpu_seconds_total", ""] == 2
    put = "grpc_method=Put,grpc_service=etcdserverpb.KV,grpc_type=unary"
    assert got["grpc_server_started_total", put] == 15
    assert got["grpc_server_handled_total", f"grpc_code=OK,{put}"] == 13
    assert got["grpc_server_handled_total", f"grpc_code=Canceled,{put}"] == 2
    assert got["grpc_server_handling_seconds_count", put] == 15
    assert got["grpc_server_handling_seconds_sum", put] == 0.5
    assert got["etcd_server_client_requests_total", "client_api_version=unknown,type=unary"] == 15
    assert got["etcd_server_client_requests_total", "client_api_version=unknown,type=stream"] == 2
    check = "name=linearizable_read,type=readyz"
    assert got["etcd_server_healthcheck", check] == 0
    where = "name=linearizable_read,status={},type=readyz"
    assert got["etcd_server_healthchecks_total", where.format("success")] == 5
    assert got["etcd_server_healthchecks_total", where.format("error")] == 1
    apply = "op=Put,success=true,version=v3"
    assert got["etcd_server_apply_duration_seconds_count", apply] == 7
    assert got["etcd_server_apply_duration_seconds_sum", apply] == 0.001
    assert got["etcd_server_range_duration_seconds_count", "success=true"] == 7


def test_histograms_rise_to_their_count() -> None:
    families = parsed(render(readings()).decode())
    seen = 0
    for family in families.values():
        if family.type != "histogram":
            continue
        series: dict[str, list[Any]] = {}
        for sample in family.samples:
            key = str(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            series.setdefault(key, []).append(sample)
        for samples in series.values():
            buckets = [s for s in samples if s.name.endswith("_bucket")]
            (count,) = [s.value for s in samples if s.name.endswith("_count")]
            bounds = [float(s.labels["le"]) for s in buckets]
            assert bounds == sorted(bounds) and bounds[-1] == math.inf
            assert [s.value for s in buckets] == sorted(s.value for s in buckets)
            assert buckets[-1].value == count
            seen += 1
    assert seen > 8


def test_buckets_are_etcd_s() -> None:
    families = parsed(render(readings()).decode())
    for name, first, count in (
        ("etcd_disk_wal_fsync_duration_seconds", 0.001, 14),
        ("etcd_disk_backend_commit_duration_seconds", 0.001, 14),
        ("etcd_server_apply_duration_seconds", 0.0001, 20),
        ("etcd_server_range_duration_seconds", 0.0001, 20),
    ):
        bounds = [
            float(s.labels["le"]) for s in families[name].samples if s.name.endswith("_bucket")
        ]
        assert bounds == [*(first * 2**k for k in range(count)), math.inf], name
    assert len(OPERATIONS) == 9


def test_a_reading_of_this_process() -> None:
    use = read_use([os.getpid(), 2**22 + 1])
    assert use.cpu_seconds > 0 and use.resident_bytes > 1 << 20
    assert 0 < use.descriptors < use.descriptors_max
    assert abs(use.start_seconds - time.time()) < 86400
