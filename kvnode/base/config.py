"""The configuration of a node: one declarative table, and the value a start makes of it.

Role: `Config` is the table. Each of its fields is an option: name (dashes for underscores),
default, type (by its parser), help, unit, whether the name is etcd's, and whether it acts already.
Callers: `configload` fills it from flags, variables, file; procs/ reads it; `config_to_json` and
`config_from_json` carry it to child processes.

Invariants:
  1. A Config is complete and checked: derived defaults (data directory, cluster, ZeroMQ listener)
     are filled in, and `check` passed.
  2. Equal inputs give equal Configs: nothing here looks at the machine, except `log_json`, which
     asks for a terminal when nobody decided.

Flags of etcd that have nothing to act on here stand in `foreign`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvnode.base import limits, ports
from kvnode.base.ciphers import check_suites
from kvnode.base.errors import ConfigError

Parser = Callable[[object], Any]


# --- types: each takes text or a value of the config file, and raises ValueError ------------------


def parse_text(value: object) -> str:
    """Text; a number of the file is taken as it is written."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("must be text")
    return str(value)


def parse_count(value: object) -> int:
    """An integer."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("must be an integer")
    try:
        return int(value)
    except ValueError:
        raise ValueError("must be an integer") from None


def parse_flag(value: object) -> bool:
    """true or false, as Go's flags: also 1, t, 0, f."""
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in ("1", "t", "true"):
        return True
    if text in ("0", "f", "false"):
        return False
    raise ValueError("must be true or false")


def parse_size(value: object) -> int:
    """Bytes, or with a unit: 64MiB, 2GiB (K, M, G are powers of 1024)."""
    match = re.fullmatch(r"(-?\d+)\s*(?:([KMG])(?:i?B)?)?", str(value), re.IGNORECASE)
    if isinstance(value, bool) or not match:
        raise ValueError("must be a number of bytes, or one with a unit such as 64MiB")
    shift = {"": 0, "K": 10, "M": 20, "G": 30}[(match[2] or "").upper()]
    return int(match[1]) << shift


_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(value: object) -> float:
    """Seconds from Go's form (1h30m, 300ms, 0); an integer of the file is nanoseconds, as etcd's.

    Float seconds are given back exactly by `10m`, `0.5s` and the like.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value / 1e9
    text = str(value)
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("must be a duration with a unit, such as 300ms, 10m or 1h30m")
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def parse_list(value: object) -> tuple[str, ...]:
    """Values separated by commas, or a list of the file."""
    items = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return tuple(str(item).strip() for item in items if str(item).strip())


# --- checks: raise ValueError ---------------------------------------------------------------------


def _one_of(*words: str) -> Callable[[Any], None]:
    def check(value: str) -> None:
        if value not in words:
            said = [word for word in words if word]
            last = said.pop()
            raise ValueError(f"must be {', '.join(said)} or {last}" if said else f"must be {last}")

    return check


def _between(low: float, high: float = float("inf")) -> Callable[[Any], None]:
    def check(value: float) -> None:
        if not low <= value <= high:
            bound = f"from {low:g} to {high:g}" if high != float("inf") else f"at least {low:g}"
            raise ValueError(f"must be {bound}")

    return check


def _urls(*schemes: str) -> Callable[[Any], None]:
    def check(value: tuple[str, ...]) -> None:
        for url in value:
            if url.startswith("https://") and "https" not in schemes:
                raise ValueError(
                    f'has "{url}", but this version has no TLS there: use http:// on a network '
                    f"you trust, or put a TLS proxy in front"
                )
            ports.parse_url(url, schemes)

    return check


def _name(value: str) -> None:
    if not value or not re.fullmatch(r"[^\s,=/]+", value):
        raise ValueError("must be a word without spaces, commas, = and /")


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name and default."""

    parse: Parser
    help: str
    group: str
    unit: str = ""
    etcd: bool = True
    acts: bool = True
    """False: kept and checked, but nothing acts on it yet; setting it gives a warning."""
    check: Callable[[Any], None] | None = None


def _option(default: Any, parse: Parser, help: str, group: str, **more: Any) -> Any:
    return field(default=default, metadata={"option": Option(parse, help, group, **more)})


MEMBER, CLUSTER, SECURITY = "Member", "Clustering", "Security"
STORAGE, LOGGING, ZMQ = "Storage", "Logging", "kvnode"


@dataclass(frozen=True, kw_only=True)
class Config:
    """One node's configuration. Durations are seconds, sizes bytes, unless the unit says more."""

    # fmt: off
    name: str = _option("default", parse_text, "This member's name.", MEMBER, check=_name)
    data_dir: str = _option("", parse_text, "Data directory (default: NAME.kvnode).", MEMBER)
    listen_client_urls: tuple[str, ...] = _option(
        (f"http://localhost:{ports.CLIENT_PORT}",), parse_list,
        "URLs to serve etcd's API on, gRPC and HTTP alike; https:// needs --cert-file and "
        "--key-file.", MEMBER, check=_urls("http", "https"))
    advertise_client_urls: tuple[str, ...] = _option(
        (), parse_list, "Client URLs told to others (default: --listen-client-urls).", MEMBER,
        check=_urls("http", "https"))
    listen_peer_urls: tuple[str, ...] = _option(
        (f"http://localhost:{ports.PEER_PORT}",), parse_list, "URLs to serve other members on.",
        MEMBER, check=_urls("http"))
    listen_metrics_urls: tuple[str, ...] = _option(
        (), parse_list, "Further URLs for /metrics and the health pages.", MEMBER,
        check=_urls("http"))
    cors: tuple[str, ...] = _option(
        ("*",), parse_list, "Origins that browsers may call from over HTTP/1.1.", MEMBER)
    host_whitelist: tuple[str, ...] = _option(
        ("*",), parse_list, "Host names that HTTP/1.1 requests without TLS may name.", MEMBER)
    enable_grpc_gateway: bool = _option(
        True, parse_flag, "Serve JSON over HTTP/1.1 below /v3/.", MEMBER)
    metrics: str = _option(
        "basic", parse_text, "basic or extensive; histograms of RPCs are told either way.", MEMBER,
        check=_one_of("basic", "extensive"))
    max_concurrent_streams: int = _option(
        (1 << 32) - 1, parse_count, "Most calls that one connection may have open.", MEMBER,
        check=_between(1, (1 << 32) - 1))
    grpc_keepalive_min_time: float = _option(
        5.0, parse_duration, "A client that pings more often than this is told to go.", MEMBER,
        check=_between(0))
    grpc_keepalive_interval: float = _option(
        7200.0, parse_duration, "Silence after which a connection is pinged (0 = never).", MEMBER,
        check=_between(0))
    grpc_keepalive_timeout: float = _option(
        20.0, parse_duration, "Time for the answer to that ping, before the connection ends.",
        MEMBER, check=_between(0))
    watch_progress_notify_interval: float = _option(
        600.0, parse_duration, "Time between progress notices to idle watches that asked for "
        "them.", MEMBER, check=_between(0.1))
    heartbeat_interval: int = _option(
        100, parse_count, "Time between heartbeats of the leader.", MEMBER, unit="ms",
        check=_between(1, 10_000))
    election_timeout: int = _option(
        1000, parse_count, "Time without a leader after which a member stands for election.",
        MEMBER, unit="ms", check=_between(10, 50_000))
    max_txn_ops: int = _option(
        limits.TXN_OPS_DEFAULT, parse_count, "Most operations in a transaction.", MEMBER,
        check=_between(1, 1_000_000))
    max_request_bytes: int = _option(
        limits.REQUEST_BYTES_DEFAULT, parse_size, "Largest request.", MEMBER, unit="bytes",
        check=_between(1024, limits.REQUEST_BYTES_CEILING))

    initial_advertise_peer_urls: tuple[str, ...] = _option(
        (f"http://localhost:{ports.PEER_PORT}",), parse_list,
        "This member's peer URLs told to the cluster; its id comes from them.", CLUSTER,
        check=_urls("http"))
    initial_cluster: str = _option(
        "", parse_text, "NAME=PEER-URL,... of a new cluster (default: this member alone).",
        CLUSTER)
    initial_cluster_state: str = _option(
        "new", parse_text, "new or existing.", CLUSTER,
        check=_one_of("new", "existing"))
    initial_cluster_token: str = _option(
        "etcd-cluster", parse_text, "Keeps clusters of equal addresses apart.", CLUSTER)
    pre_vote: bool = _option(
        True, parse_flag, "Ask for votes before raising the term.", CLUSTER)
    strict_reconfig_check: bool = _option(
        True, parse_flag, "Refuse changes of members that would lose the quorum.", CLUSTER,
        acts=False)
    auto_compaction_mode: str = _option(
        "periodic", parse_text, "periodic or revision.", CLUSTER,
        check=_one_of("periodic", "revision"))
    auto_compaction_retention: str = _option(
        "0", parse_text, "History kept by automatic compaction: a duration (a bare number is "
        "hours) or a count of revisions; 0 = off.", CLUSTER)

    cert_file: str = _option(
        "", parse_text, "Certificate (chain) that clients see on https:// URLs, in PEM.", SECURITY)
    key_file: str = _option("", parse_text, "Its private key, in PEM.", SECURITY)
    cipher_suites: tuple[str, ...] = _option(
        (), parse_list, "TLS 1.2 suites that are offered, by IANA name (default: OpenSSL's).",
        SECURITY, check=check_suites)
    tls_min_version: str = _option(
        "TLS1.2", parse_text, "Oldest TLS version: TLS1.2 or TLS1.3.", SECURITY,
        check=_one_of("TLS1.2", "TLS1.3"))
    tls_max_version: str = _option(
        "", parse_text, "Newest TLS version (default: the newest there is).", SECURITY,
        check=_one_of("", "TLS1.2", "TLS1.3"))

    quota_backend_bytes: int = _option(
        limits.QUOTA_BYTES_DEFAULT, parse_size, "Live data above which writes are refused "
        "(0: 2 GiB).", STORAGE, unit="bytes", check=_between(0))
    snapshot_count: int = _option(
        10_000, parse_count, "etcd's log length; kvnode cuts its log by checkpoints.", STORAGE,
        acts=False, check=_between(1))
    compaction_batch_limit: int = _option(
        1000, parse_count, "Most records looked at in one slice of freeing.", STORAGE,
        check=_between(1))
    wal_segment_bytes: int = _option(
        limits.SEGMENT_BYTES_DEFAULT, parse_size, "Size of one file of the log.", STORAGE,
        unit="bytes", etcd=False, check=_between(64 << 10, 1 << 30))
    checkpoint_interval: float = _option(
        limits.CHECKPOINT_SECONDS, parse_duration, "Longest time between checkpoints of the map.",
        STORAGE, unit="s", etcd=False, check=_between(0.01, 60))
    checkpoint_dirty_bytes: int = _option(
        limits.CHECKPOINT_DIRTY_BYTES, parse_size, "Changed pages after which one is due.",
        STORAGE, unit="bytes", etcd=False, check=_between(1 << 20, 4 << 30))
    scrub_period: float = _option(
        3600.0, parse_duration, "Time in which all stored data is read and checked once "
        "(0 = never).", STORAGE, unit="s", etcd=False, check=_between(0))

    log_level: str = _option(
        "info", parse_text, "debug, info, warn, error, panic or fatal.", LOGGING,
        check=_one_of("debug", "info", "warn", "error", "panic", "fatal"))
    log_format: str = _option(
        "auto", parse_text, "json, console, or auto: console on a terminal.", LOGGING,
        check=_one_of("auto", "json", "console"))
    log_outputs: tuple[str, ...] = _option(
        ("default",), parse_list, "stderr, stdout, or files that are appended to; default and "
        "systemd/journal are stderr.", LOGGING)
    logger: str = _option("zap", parse_text, "zap: structured records.", LOGGING,
        check=_one_of("zap"))
    warning_unary_request_duration: float = _option(
        0.3, parse_duration, "A unary call that takes longer is logged (0 = none).", LOGGING,
        check=_between(0))

    listen_zmq_urls: tuple[str, ...] = _option(
        (), parse_list, "tcp://HOST:PORT of the native protocol (default: the first client URL's "
        "host, its port + 3; beside https:// this machine alone).", ZMQ, etcd=False,
        check=_urls("tcp"))
    link: str = _option(
        "unix", parse_text, "Between the processes of the node: unix sockets or zmq.", ZMQ,
        etcd=False, check=_one_of("unix", "zmq"))
    gateways: int = _option(
        1, parse_count, "Gateway processes.", ZMQ, etcd=False, check=_between(1, 64))
    force_read_barrier: bool = _option(
        False, parse_flag, "Ask consensus for each batch of reads, though one voter could tell "
        "from shared memory.", ZMQ, etcd=False)
    # fmt: on

    listen_zmq_asked: bool = False
    """Whether --listen-zmq-urls was set by someone: a busy port is an error then."""

    @property
    def log_json(self) -> bool:
        """Whether this process logs JSON lines."""
        if self.log_format == "auto":
            return not sys.stderr.isatty()
        return self.log_format == "json"

    def compaction(self) -> tuple[str, float]:
        """How history is compacted by itself: ("periodic", seconds kept), ("revision", count of
        revisions kept), or a mode and 0: not at all."""
        mode, text = self.auto_compaction_mode, self.auto_compaction_retention
        try:
            if text.isdigit():
                return mode, float(text) * (3600 if mode == "periodic" else 1)
            if mode == "revision":
                raise ValueError("must be a count of revisions in mode revision")
            return mode, parse_duration(text)
        except ValueError as error:
            raise ConfigError(f'--auto-compaction-retention "{text}": {error}') from None

    def cluster_members(self) -> dict[str, list[str]]:
        """initial_cluster as name -> peer URLs; a name may stand several times."""
        members: dict[str, list[str]] = {}
        for part in parse_list(self.initial_cluster):
            name, equals, url = part.partition("=")
            if not equals or not name or not url:
                raise ConfigError(f'--initial-cluster: "{part}" is not NAME=PEER-URL')
            members.setdefault(name, []).append(url)
        return members


OPTIONS: dict[str, Option] = {
    item.name.replace("_", "-"): item.metadata["option"]
    for item in dataclasses.fields(Config)
    if "option" in item.metadata
}
"""The table by flag name, in the order of the help."""


def parse_option(name: str, value: object) -> Any:
    """A value in its option's type, checked; ConfigError names the flag and what to write."""
    option = OPTIONS[name]
    try:
        parsed = option.parse(value)
        if option.check is not None:
            option.check(parsed)
    except (ValueError, ConfigError) as error:
        shown = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        raise ConfigError(f'--{name} "{shown}": {error}') from None
    return parsed


def complete(values: Mapping[str, Any]) -> Config:
    """A Config of parsed values by flag name, with derived defaults; checked across options."""
    fields = {name.replace("-", "_"): value for name, value in values.items()}
    config = Config(**fields)
    derived: dict[str, Any] = {"listen_zmq_asked": bool(config.listen_zmq_urls)}
    if not config.data_dir:
        derived["data_dir"] = f"{config.name}.kvnode"
    if not config.listen_client_urls:
        raise ConfigError("--listen-client-urls must have at least one URL")
    if not config.advertise_client_urls:
        derived["advertise_client_urls"] = config.listen_client_urls
    if not config.listen_zmq_urls:
        derived["listen_zmq_urls"] = (ports.default_zmq_url(config.listen_client_urls[0]),)
    else:
        derived["listen_zmq_urls"] = tuple(
            ports.zmq_endpoint(ports.parse_url(url, ("tcp",))) for url in config.listen_zmq_urls
        )
    if not config.initial_cluster:
        derived["initial_cluster"] = ",".join(
            f"{config.name}={url}" for url in config.initial_advertise_peer_urls
        )
    if not config.quota_backend_bytes:
        derived["quota_backend_bytes"] = limits.QUOTA_BYTES_DEFAULT
    config = dataclasses.replace(config, **derived)
    _check_together(config)
    return config


def _check_together(config: Config) -> None:
    if config.election_timeout < 5 * config.heartbeat_interval:
        raise ConfigError(
            f"--election-timeout {config.election_timeout} (ms) must be at least 5 times "
            f"--heartbeat-interval {config.heartbeat_interval}"
        )
    members = config.cluster_members()
    if config.name not in members:
        raise ConfigError(
            f'--initial-cluster has no member named "{config.name}": add '
            f"{config.name}=PEER-URL, or correct --name"
        )
    _check_peers(members)
    if any(url.startswith("https://") for url in config.listen_client_urls) and not (
        config.cert_file and config.key_file
    ):
        raise ConfigError("--listen-client-urls has https://: set --cert-file and --key-file")
    if config.tls_min_version > (config.tls_max_version or config.tls_min_version):
        raise ConfigError(
            f"--tls-max-version {config.tls_max_version} is below --tls-min-version "
            f"{config.tls_min_version}"
        )
    if config.cipher_suites and config.tls_min_version == "TLS1.3":
        raise ConfigError("--cipher-suites chooses among TLS1.2's: leave it out with TLS1.3 alone")
    config.compaction()


def _check_peers(members: Mapping[str, list[str]]) -> None:
    """--initial-cluster: peer URLs that can be kept, each of one member."""
    owners: dict[str, str] = {}
    for name, urls in members.items():
        for url in urls:
            if url.startswith("https://"):
                raise ConfigError(
                    f'--initial-cluster has "{url}", but this version has no TLS between members: '
                    "use http:// on a network you trust"
                )
            ports.parse_url(url, ("http",))
            if owners.setdefault(url, name) != name:
                raise ConfigError(
                    f"--initial-cluster has {url} for {owners[url]} and for {name}: each member "
                    "needs a URL of its own"
                )


def config_to_json(config: Config) -> dict[str, Any]:
    """The Config as a value of JSON."""
    return dataclasses.asdict(config)


def config_from_json(raw: Mapping[str, Any] | str) -> Config:
    """The Config of what `config_to_json` gave, as a value or as text."""
    values: dict[str, Any] = json.loads(raw) if isinstance(raw, str) else dict(raw)
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    try:
        return Config(**values)
    except TypeError as error:
        raise ConfigError(f"configuration of another version: {error}") from None
