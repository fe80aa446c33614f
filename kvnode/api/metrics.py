"""/metrics: what the node's processes count, as Prometheus text with etcd's names.

Role: `Exposition` is a custom collector of prometheus_client over `Readings`; `render` its text.
Caller: procs/httpside.

Names, types, labels and buckets are etcd 3.7.1's (`etcd_*`, `grpc_server_*`, `os_fd_*`,
`process_*`), values are this node's own; kvnode's additions are `kvnode_*`. Where etcd's name has
no exact counterpart here:

  etcd_disk_backend_commit_duration_seconds   commits of the map (without a sync, which is the
                                              checkpoint's)
  etcd_server_apply_duration_seconds          a batch is one transaction: each request in it counts
                                              with the batch's mean
  etcd_server_proposals_{committed,applied}_total   indexes of the log, as in etcd
  etcd_server_client_requests_total           started calls; clients' versions are not told apart
  grpc_server_*                               JSON calls count as the RPC they became, so a Range
                                              over many keys as RangeStream (api/jsongateway)
  etcd_mvcc_db_open_read_transactions         1: gateways hold a snapshot only within a turn
  os_fd_*, process_*                          of all processes of the node: env/processes

A metric of etcd's that this node can't fill is absent, not zero. Histograms of the RPCs' handling
times are always there, not only with --metrics=extensive: an alert of etcd's own mixin needs them.

Invariants:
  1. Counters never fall while the node runs, but when a gateway was started again (grpc_*).
  2. Rendering reads; it changes nothing and asks no other process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from kvnode._core import meters
from kvnode._core.meters import BOUNDS, HISTOGRAM, OPERATIONS, SLOT
from kvnode.api.node import Facts
from kvnode.base.versions import ETCD_CLUSTER_VERSION, ETCD_VERSION
from kvnode.env.processes import Use

GRPC_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PROBES: tuple[tuple[str, str], ...] = (
    ("livez", "serializable_read"),
    ("readyz", "data_corruption"),
    ("readyz", "serializable_read"),
    ("readyz", "linearizable_read"),
    ("readyz", "non_learner"),
)
"""Checks in the order of their slots, three words each: good, bad, last result."""

Labels = Mapping[str, str]


class Counted(Protocol):
    """A region of a process (`_core/meters.Region`)."""

    def get(self, slot: int) -> int: ...

    def histogram(self, number: int) -> tuple[list[int], int]: ...


@dataclass
class Readings:
    """All that one scrape shows."""

    member_id: int
    facts: Facts
    supervisor: Counted
    applier: Counted
    consensus: Counted
    gateways: Sequence[Counted]
    calls: Sequence[Mapping[str, Mapping[str, Any]]]
    """Each gateway's counters of RPCs by path: `_core/streams` counters."""
    use: Use
    keys: int
    pending: int
    """Proposals without an answer."""
    leases_renewed: int = 0
    leases_expired: int = 0
    features: Mapping[str, bool] = field(default_factory=dict)


class _Counter(str):
    """The type `counter` of a name that is not to get a `_total` of prometheus_client's."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


def _metric(name: str, text: str, kind: str) -> Metric:
    metric = Metric(name, text, kind)
    # Metric cuts `_total` off a counter's name; generate_latest puts it on again.
    metric.name = name
    if kind == "counter":
        metric.type = _Counter("counter")
    return metric


def counter(name: str, text: str, value: float, labels: Labels | None = None) -> Metric:
    """A counter of one sample."""
    metric = _metric(name, text, "counter")
    metric.add_sample(name, dict(labels or {}), value)
    return metric


def gauge(name: str, text: str, value: float, labels: Labels | None = None) -> Metric:
    """A gauge of one sample."""
    metric = _metric(name, text, "gauge")
    metric.add_sample(name, dict(labels or {}), value)
    return metric


def add_histogram(
    metric: Metric, labels: Labels, bounds: Iterable[float], counts: Iterable[int], total: float
) -> None:
    """One series of a histogram; `counts` has one more than there are bounds."""
    running = 0
    for bound, count in zip([*bounds, float("inf")], counts, strict=True):
        running += count
        metric.add_sample(
            f"{metric.name}_bucket", {**labels, "le": floatToGoString(bound)}, running
        )
    metric.add_sample(f"{metric.name}_sum", dict(labels), total)
    metric.add_sample(f"{metric.name}_count", dict(labels), running)


def _sum_histogram(regions: Sequence[Counted], number: int) -> tuple[list[int], int]:
    read = [region.histogram(number) for region in regions]
    return [sum(column) for column in zip(*(r[0] for r in read), strict=True)], sum(
        r[1] for r in read
    )


class Exposition(Collector):
    """The collector of one scrape."""

    def __init__(self, readings: Readings) -> None:
        self.r = readings

    def collect(self) -> Iterator[Metric]:
        yield from self.member()
        yield from self.consensus()
        yield from self.applier()
        yield from self.storage()
        yield from self.gateway()
        yield from self.health()
        yield from self.leases()
        yield from self.grpc()
        yield from self.processes()

    def _total(self, name: str) -> int:
        return sum(region.get(SLOT[name]) for region in self.r.gateways)

    def _histogram(self, name: str, text: str, key: str, regions: Sequence[Counted]) -> Metric:
        number = HISTOGRAM[key]
        metric = _metric(name, text, "histogram")
        counts, total = _sum_histogram(regions, number)
        add_histogram(metric, {}, [b / 1e9 for b in BOUNDS[number]], counts, total / 1e9)
        return metric

    def member(self) -> Iterator[Metric]:
        """What this member is."""
        yield gauge("etcd_cluster_version", "Version of the cluster's API.", 1,
                    {"cluster_version": ETCD_CLUSTER_VERSION.rpartition(".")[0]})
        yield gauge("etcd_server_version", "Version of etcd's API that is served.", 1,
                    {"server_version": ETCD_VERSION})
        yield gauge("etcd_server_id", "This member's id in hexadecimal.", 1,
                    {"server_id": f"{self.r.member_id:x}"})
        features = _metric("etcd_server_feature_enabled", "1: the feature is on.", "gauge")
        for name, on in self.r.features.items():
            features.add_sample(features.name, {"name": name, "stage": "ALPHA"}, int(on))
        if features.samples:
            yield features

    def consensus(self) -> Iterator[Metric]:
        """Raft and its log."""
        get, slot, facts = self.r.consensus.get, SLOT, self.r.facts
        yield gauge("etcd_server_has_leader", "1: a leader is known.",
                    get(slot["has_leader"]))
        yield gauge("etcd_server_is_leader", "1: this member leads.", get(slot["is_leader"]))
        yield gauge("etcd_server_is_learner", "1: this member does not vote.", 0)
        yield gauge("etcd_server_snapshot_apply_in_progress_total",
                    "1: a snapshot of another member is being installed.", 0)
        yield counter("etcd_server_leader_changes_seen_total", "Changes of leader seen.",
                      get(slot["leader_changes"]))
        yield gauge("etcd_server_proposals_committed_total", "Index committed up to.",
                    facts.committed_index)
        yield gauge("etcd_server_proposals_applied_total", "Index applied up to.",
                    facts.applied_index)
        yield gauge("etcd_server_proposals_pending", "Proposals without an answer.",
                    self.r.pending)
        yield counter("etcd_server_proposals_failed_total", "Proposals that were not taken.",
                      self._total("proposals_failed"))
        yield counter("etcd_server_heartbeat_send_failures_total",
                      "Heartbeats that could not be sent in time.",
                      get(slot["heartbeat_failures"]))
        yield counter("etcd_server_slow_read_indexes_total", "Read barriers that took too long.",
                      get(slot["slow_read_indexes"]))
        yield counter("etcd_server_read_indexes_failed_total", "Read barriers that failed.",
                      get(slot["read_indexes_failed"]))
        regions = [self.r.consensus]
        yield self._histogram("etcd_disk_wal_fsync_duration_seconds", "Syncs of the log.",
                              "wal_fsync", regions)
        yield self._histogram("etcd_disk_wal_write_duration_seconds", "Writes of the log.",
                              "wal_write", regions)
        yield gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the log.",
                    get(slot["wal_bytes"]))

    def applier(self) -> Iterator[Metric]:
        """The state machine."""
        get, slot = self.r.applier.get, SLOT
        yield counter("etcd_mvcc_put_total", "Puts, those of transactions included.",
                      get(slot["puts"]))
        yield counter("etcd_mvcc_delete_total", "Deleted keys.", get(slot["deletes"]))
        yield counter("etcd_mvcc_txn_total", "Transactions.", get(slot["txns"]))
        yield gauge("etcd_debugging_mvcc_current_revision", "Revision of the store.",
                    get(slot["revision"]))
        yield gauge("etcd_debugging_mvcc_compact_revision", "Revision of the last compaction.",
                    get(slot["compact_revision"]))
        yield gauge("etcd_debugging_mvcc_keys_total",
                    "Keys, deleted ones included until their compaction.", self.r.keys)
        yield counter("etcd_server_slow_apply_total", "Requests applied in more than 100 ms.",
                      get(slot["slow_applies"]))
        metric = _metric("etcd_server_apply_duration_seconds",
                         "Execution of requests by the state machine.", "histogram")
        for number, name in enumerate(OPERATIONS):
            for bad, success in enumerate(("true", "false")):
                at = HISTOGRAM["apply"] + 2 * number + bad
                counts, total = self.r.applier.histogram(at)
                if any(counts):
                    labels = {"version": "v3", "op": name, "success": success}
                    bounds = [b / 1e9 for b in BOUNDS[at]]
                    add_histogram(metric, labels, bounds, counts, total / 1e9)
        yield metric

    def storage(self) -> Iterator[Metric]:
        """The map."""
        facts, regions = self.r.facts, [self.r.applier]
        yield gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the map's file as far as used.",
                    facts.db_bytes)
        yield gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of the map's live pages.",
                    facts.db_used_bytes)
        yield gauge("etcd_server_quota_backend_bytes", "Live bytes above which writes end.",
                    facts.quota_bytes)
        yield gauge("etcd_mvcc_db_open_read_transactions", "Read transactions that are open.", 1)
        yield self._histogram("etcd_disk_backend_commit_duration_seconds", "Commits of the map.",
                              "commit", regions)
        yield self._histogram("etcd_disk_backend_defrag_duration_seconds", "Defragmentations.",
                              "defrag", regions)
        yield gauge("etcd_disk_defrag_inflight", "1: a defragmentation is under way.",
                    self.r.applier.get(SLOT["defrag_running"]))
        gateways = self.r.gateways
        yield self._histogram("etcd_mvcc_hash_duration_seconds", "Hash.", "hash", gateways)
        yield self._histogram("etcd_mvcc_hash_rev_duration_seconds", "HashKV.", "hash_kv",
                              gateways)
        yield gauge("kvnode_damage_findings", "Findings of damaged data by the scrubber.",
                    len([t for t in facts.troubles if "damage" in t]))

    def gateway(self) -> Iterator[Metric]:
        """Reads and watches."""
        gateways = self.r.gateways
        yield counter("etcd_mvcc_range_total", "Ranges.", self._total("ranges"))
        metric = _metric("etcd_server_range_duration_seconds", "Answering of ranges.",
                         "histogram")
        for key, success in (("range", "true"), ("range_failed", "false")):
            number = HISTOGRAM[key]
            counts, total = _sum_histogram(gateways, number)
            if any(counts):
                bounds = [b / 1e9 for b in BOUNDS[number]]
                add_histogram(metric, {"success": success}, bounds, counts, total / 1e9)
        yield metric
        yield gauge("etcd_debugging_mvcc_watcher_total", "Watchers.", self._total("watchers"))
        yield gauge("etcd_debugging_mvcc_watch_stream_total", "Streams of watches.",
                    self._total("watch_streams"))
        yield gauge("etcd_debugging_mvcc_slow_watcher_total", "Watchers that lag behind.",
                    self._total("slow_watchers"))
        yield gauge("etcd_debugging_mvcc_pending_events_total", "Events that wait to be sent.",
                    self._total("pending_events"))
        yield counter("etcd_debugging_mvcc_events_total", "Events sent.", self._total("events"))

    def health(self) -> Iterator[Metric]:
        """The health pages."""
        yield counter("etcd_server_health_success", "Health checks that succeeded.",
                      self._total("health_good"))
        yield counter("etcd_server_health_failures", "Health checks that failed.",
                      self._total("health_bad"))
        last = _metric("etcd_server_healthcheck", "Last result of each check.", "gauge")
        counts = _metric("etcd_server_healthchecks_total", "Checks by result.", "counter")
        for number, (kind, name) in enumerate(PROBES):
            good, bad, state = (
                [region.get(SLOT["probes"] + 3 * number + k) for region in self.r.gateways]
                for k in range(3)
            )
            labels = {"type": kind, "name": name}
            if not sum(good) + sum(bad):
                continue
            # One gateway's last check may be an old one: any that failed shows.
            last.add_sample(last.name, labels, int(1 not in state))
            for status, value in (("success", sum(good)), ("error", sum(bad))):
                if value:
                    counts.add_sample(counts.name, {**labels, "status": status}, value)
        yield last
        yield counts

    def leases(self) -> Iterator[Metric]:
        """Leases."""
        applier = self.r.applier.get
        yield counter("etcd_debugging_lease_granted_total", "Leases granted.",
                      applier(SLOT["leases_granted"]))
        yield counter("etcd_debugging_lease_revoked_total", "Leases revoked, expired included.",
                      applier(SLOT["leases_revoked"]))
        yield counter("etcd_debugging_lease_renewed_total", "Leases kept alive.",
                      self.r.leases_renewed)
        yield counter("etcd_debugging_server_lease_expired_total", "Leases that expired.",
                      self.r.leases_expired)

    def grpc(self) -> Iterator[Metric]:
        """RPCs by method, all gateways together."""
        names = {
            "started": ("grpc_server_started_total", "RPCs started."),
            "received": ("grpc_server_msg_received_total", "Messages received."),
            "sent": ("grpc_server_msg_sent_total", "Messages sent."),
        }
        metrics = {key: _metric(*name, "counter") for key, name in names.items()}
        handled = _metric("grpc_server_handled_total", "RPCs ended, by code.", "counter")
        seconds = _metric("grpc_server_handling_seconds", "Handling of RPCs.", "histogram")
        requests = {"unary": 0, "stream": 0}
        received = sent = 0
        for path in sorted({path for calls in self.r.calls for path in calls}):
            one = [calls[path] for calls in self.r.calls if path in calls]
            service, _, method = path[1:].partition("/")
            kind = one[0]["type"]
            labels = {"grpc_type": kind, "grpc_service": service, "grpc_method": method}
            for key, metric in metrics.items():
                metric.add_sample(metric.name, labels, sum(c[key] for c in one))
            for code in one[0]["handled"]:
                handled.add_sample(handled.name, {**labels, "grpc_code": code},
                                   sum(c["handled"][code] for c in one))
            counts = [sum(column) for column in zip(*(c["seconds"] for c in one), strict=True)]
            if any(counts):
                total = sum(c["seconds_sum"] for c in one)
                add_histogram(seconds, labels, GRPC_BOUNDS, counts, total)
            if service.startswith(("etcdserverpb.", "v3")):
                requests["unary" if kind == "unary" else "stream"] += sum(
                    c["started"] for c in one
                )
            received += sum(c["received_bytes"] for c in one)
            sent += sum(c["sent_bytes"] for c in one)
        yield from (*metrics.values(), handled, seconds)
        served = _metric("etcd_server_client_requests_total", "Calls started.", "counter")
        for kind, value in requests.items():
            if value:
                labels = {"type": kind, "client_api_version": "unknown"}
                served.add_sample(served.name, labels, value)
        yield served
        yield counter("etcd_network_client_grpc_received_bytes_total",
                      "Bytes of messages from clients.", received)
        yield counter("etcd_network_client_grpc_sent_bytes_total",
                      "Bytes of messages to clients.", sent)

    def processes(self) -> Iterator[Metric]:
        """Of the node's processes together."""
        use, supervisor = self.r.use, self.r.supervisor.get
        dead = supervisor(SLOT["dead_cpu_us"]) / 1e6
        yield gauge("os_fd_used", "Descriptors open in the process nearest to its limit.",
                    use.descriptors)
        yield gauge("os_fd_limit", "That process's limit.", use.descriptors_max)
        yield counter("process_cpu_seconds_total", "CPU time, user and system.",
                      round(use.cpu_seconds + dead, 2))
        yield gauge("process_open_fds", "As os_fd_used.", use.descriptors)
        yield gauge("process_max_fds", "As os_fd_limit.", use.descriptors_max)
        yield gauge("process_resident_memory_bytes",
                    "Resident memory, pages that are shared counted once.", use.resident_bytes)
        yield gauge("process_virtual_memory_bytes", "Address space.", use.virtual_bytes)
        yield gauge("process_start_time_seconds", "Unix time of the node's start.",
                    use.start_seconds)
        yield counter("kvnode_process_restarts_total", "Processes of the node started again.",
                      supervisor(SLOT["restarts"]))
        yield gauge("kvnode_grpc_connections", "Connections that speak HTTP/2.",
                    self._total("grpc_connections"))
        yield counter("kvnode_http_requests_total", "Requests over HTTP/1.1.",
                      self._total("http_requests"))


def render(readings: Readings) -> bytes:
    """The text of /metrics."""
    return generate_latest(Exposition(readings))  # type: ignore[arg-type]


def count_probe(kind: str, name: str, good: bool) -> None:
    """Counts a health check in this process's region; `name` is empty for /health."""
    if not name:
        meters.add(SLOT["health_good" if good else "health_bad"])
        return
    at = SLOT["probes"] + 3 * PROBES.index((kind, name))
    meters.add(at if good else at + 1)
    meters.put(at + 2, 2 if good else 1)
