"""Configuration: the table, where values come from, and what is said about wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvnode.base import foreign
from kvnode.base.config import OPTIONS, config_from_json, config_to_json, parse_duration, parse_size
from kvnode.base.configload import flags_help, load_config, parse_flags
from kvnode.base.errors import ConfigError
from kvnode.base.ports import default_zmq_url, parse_url, zmq_endpoint


def load(*flags: str, **environ: str):  # type: ignore[no-untyped-def]
    return load_config(flags, environ)


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "conf.yaml"
    file.write_text("name: file\nmax-txn-ops: 7\ngateways: 2\nlink: zmq\nlog-level: debug\n")
    loaded = load(
        "--config-file", str(file), "--name", "flag",
        KVNODE_NAME="kv", ETCD_NAME="etcd", KVNODE_MAX_TXN_OPS="8", ETCD_MAX_TXN_OPS="9",
        ETCD_LOG_LEVEL="warn",
    )  # fmt: skip
    config, origin = loaded.config, loaded.origin
    assert (config.name, origin["name"]) == ("flag", "flag --name")
    assert (config.max_txn_ops, origin["max-txn-ops"]) == (8, "variable KVNODE_MAX_TXN_OPS")
    assert (config.log_level, origin["log-level"]) == ("warn", "variable ETCD_LOG_LEVEL")
    assert (config.link, origin["link"]) == ("zmq", f"file {file}")
    assert (config.gateways, origin["pre-vote"]) == (2, "default")
    assert (config.data_dir, origin["data-dir"]) == ("flag.kvnode", "default, derived")
    assert "variable ETCD_NAME is not used: flag --name wins" in loaded.warnings
    assert (
        "variable ETCD_MAX_TXN_OPS is not used: variable KVNODE_MAX_TXN_OPS wins"
        in loaded.warnings
    )


def test_every_option_by_every_way(tmp_path: Path) -> None:
    """Each option takes its own default back from flag, variable, YAML and TOML."""
    for name in OPTIONS:
        shown = dict((n, v) for n, v, _ in load().rows())[name]
        if not shown:
            continue
        want = getattr(load(f"--{name}={shown}").config, name.replace("-", "_"))
        variable = {"KVNODE_" + name.upper().replace("-", "_"): shown}
        yaml, toml = tmp_path / "c.yaml", tmp_path / "c.toml"
        yaml.write_text(json.dumps({name: shown}))
        toml.write_text(f"{name} = {json.dumps(shown)}")
        for loaded in (
            load(f"-{name}", shown) if shown not in ("true", "false") else load(f"-{name}={shown}"),
            load(**variable),
            load(f"--config-file={yaml}"),
            load(f"--config-file={toml}"),
        ):
            assert getattr(loaded.config, name.replace("-", "_")) == want, name
            assert loaded.origin[name] not in ("default", "default, derived")


def test_json_round_trip() -> None:
    config = load("--gateways=3", "--listen-zmq-urls=tcp://127.0.0.1:1,tcp://127.0.0.1:2").config
    raw = config_to_json(config)
    assert config_from_json(json.dumps(raw)) == config
    assert config_from_json(json.loads(json.dumps(raw))) == config
    with pytest.raises(ConfigError, match="another version"):
        config_from_json({**raw, "new_thing": 1})


@pytest.mark.parametrize(
    ("client", "zmq"),
    [
        ("http://localhost:2379", "tcp://127.0.0.1:2382"),
        ("http://0.0.0.0:12379", "tcp://0.0.0.0:12382"),
        ("http://[::1]:2379", "tcp://[::1]:2382"),
        ("http://10.1.2.3:2379,http://127.0.0.1:5", "tcp://10.1.2.3:2382"),
        ("https://10.1.2.3:2379", "tcp://127.0.0.1:2382"),
    ],
)
def test_default_zmq_listener(client: str, zmq: str) -> None:
    tls = ["--cert-file=/c", "--key-file=/k"]
    config = load("--listen-client-urls", client, *tls).config
    assert config.listen_zmq_urls == (zmq,)
    assert not config.listen_zmq_asked
    asked = load("--listen-client-urls", client, *tls, "--listen-zmq-urls", zmq).config
    assert asked.listen_zmq_urls == (zmq,) and asked.listen_zmq_asked


def test_derived_defaults() -> None:
    config = load("--name=n1", "--initial-advertise-peer-urls=http://10.0.0.1:2380").config
    assert config.initial_cluster == "n1=http://10.0.0.1:2380"
    assert config.cluster_members() == {"n1": ["http://10.0.0.1:2380"]}
    assert config.advertise_client_urls == config.listen_client_urls
    assert load("--quota-backend-bytes=0").config.quota_backend_bytes == 2 << 30


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--nam=x"], "unknown flag --nam; did you mean --name"),
        (["--listen-zmq-url=x"], "did you mean --listen-zmq-urls"),
        (["--zzz"], "unknown flag --zzz$"),
        (["extra"], '"extra" is not a flag'),
        (["--name"], "--name needs a value"),
        (["--name="], "must be a word"),
        (["--name=a b"], "must be a word"),
        (["--max-txn-ops=many"], '--max-txn-ops "many": must be an integer'),
        (["--max-txn-ops=0"], "must be from 1"),
        (["--max-request-bytes=65MiB"], "must be from 1024"),
        (["--max-request-bytes=1XB"], "such as 64MiB"),
        (["--quota-backend-bytes=-1"], "at least 0"),
        (["--checkpoint-interval=1"], "such as 300ms"),
        (["--pre-vote=maybe"], "true or false"),
        (["--link=tcp"], "must be unix or zmq"),
        (["--log-level=loud"], "must be debug"),
        (["--listen-client-urls=localhost:2379"], "must begin with http://"),
        (["--listen-client-urls=https://localhost:2379"], "set --cert-file and --key-file"),
        (["--listen-client-urls=https://h:1", "--cert-file=/x"], "set --cert-file and --key-file"),
        (["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"], "is below"),
        (["--tls-min-version=TLS1.0"], "must be TLS1.2 or TLS1.3"),
        (["--cipher-suites=RC4"], "no cipher suite that is served"),
        (["--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "--tls-min-version=TLS1.3"],
         "leave it out"),
        (["--logger=capnslog"], "must be zap"),
        (["--metrics=all"], "must be basic or extensive"),
        (["--max-concurrent-streams=0"], "must be from 1"),
        (["--grpc-keepalive-interval=5"], "such as 300ms"),
        (["--session-window=64"], "unknown flag --session-window"),
        (["--initial-advertise-peer-urls=https://h:2380"], "no TLS"),
        (["--listen-client-urls=http://h"], "has no port"),
        (["--listen-client-urls=http://h:99999"], "has no port from 1"),
        (["--listen-client-urls=http://:1"], "has no host"),
        (["--listen-client-urls=http://h:1/x"], "nothing more"),
        (["--listen-client-urls=http://h:65535"], "set --listen-zmq-urls"),
        (["--listen-client-urls="], "at least one URL"),
        (["--listen-zmq-urls=ipc:///x"], "must begin with tcp://"),
        (["--election-timeout=300"], "at least 5 times"),
        (["--initial-cluster=other=http://h:1"], 'no member named "default"'),
        (["--initial-cluster=default"], "not NAME=PEER-URL"),
        (["--initial-cluster=default=http://a:1,b=http://a:1"], "a URL of its own"),
        (["--initial-cluster=default=http://a:1,b=https://b:1"], "no TLS between members"),
        (["--auto-compaction-retention=x"], "such as 300ms"),
        (["--auto-compaction-mode=revision", "--auto-compaction-retention=5m"], "count"),
        (["--trusted-ca-file=/x"], "checks no clients' certificates"),
        (["--client-cert-auth"], "checks no clients' certificates"),
        (["--auto-tls"], "makes none"),
        (["--peer-client-cert-auth=true"], "no TLS between members"),
        (["--peer-cert-file", "/x"], "no TLS between members"),
        (["--discovery=https://discovery.etcd.io/x"], "--initial-cluster names the members"),
        (["--unsafe-no-fsync"], "never acknowledges"),
        (["--feature-gates=InitialCorruptChek=true"], "did you mean InitialCorruptCheck"),
        (["--feature-gates=AllBeta"], "did you mean AllBeta=true"),
        (["--feature-gates=AllBeta=yes"], "no NAME=true"),
    ],
)
def test_wrong_flags(flags: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load(*flags)


def test_wrong_variable_names_itself() -> None:
    with pytest.raises(ConfigError, match="from variable ETCD_MAX_TXN_OPS"):
        load(ETCD_MAX_TXN_OPS="x")


def test_unknown_variables_are_warned_of() -> None:
    loaded = load(ETCD_NAM="x", KVNODE_ZZZ="1", KVNODE_ENDPOINTS="tcp://h:1", ETCD_NAME="")
    assert loaded.warnings == [
        "unknown variable ETCD_NAM is ignored; did you mean --name?",
        "unknown variable KVNODE_ZZZ is ignored",
    ]
    assert loaded.origin["name"] == "default"


def test_etcd_flags_without_effect() -> None:
    loaded = load(
        "--feature-gates=InitialCorruptCheck=true", "--enable-pprof", "--auto-tls=false",
        "--watch-progress-notify-interval=5s", "--snapshot-count=5000", "--cert-file=",
        "--listen-metrics-urls=http://127.0.0.1:2381", "--memory-mlock=false",
    )  # fmt: skip
    assert loaded.warnings == [
        "--feature-gates (flag --feature-gates) has no effect in this version",
        "--enable-pprof (flag --enable-pprof) has no effect on kvnode",
        "--snapshot-count (flag --snapshot-count) is kept, but has no effect in this version",
    ]


def test_etcd_flag_table_is_whole() -> None:
    """Every flag of etcd 3.7's help is known in one of the three tables."""
    flags = """name data-dir wal-dir snapshot-count heartbeat-interval election-timeout
    initial-election-tick-advance listen-peer-urls listen-client-urls listen-client-http-urls
    max-snapshots max-wals memory-mlock quota-backend-bytes backend-bbolt-freelist-type
    backend-batch-interval backend-batch-limit max-txn-ops max-request-bytes
    max-concurrent-streams grpc-keepalive-min-time grpc-keepalive-interval grpc-keepalive-timeout
    socket-reuse-port socket-reuse-address enable-grpc-gateway raft-read-timeout
    raft-write-timeout feature-gates initial-advertise-peer-urls initial-cluster
    initial-cluster-state initial-cluster-token advertise-client-urls discovery discovery-token
    discovery-endpoints discovery-dial-timeout discovery-request-timeout discovery-keepalive-time
    discovery-keepalive-timeout discovery-insecure-transport discovery-insecure-skip-tls-verify
    discovery-cert discovery-key discovery-cacert discovery-user discovery-password
    discovery-fallback discovery-proxy discovery-srv discovery-srv-name strict-reconfig-check
    pre-vote auto-compaction-retention auto-compaction-mode v2-deprecation cert-file key-file
    client-cert-auth client-cert-file client-key-file client-crl-file client-cert-allowed-hostname
    trusted-ca-file auto-tls peer-cert-file peer-key-file peer-client-cert-auth
    peer-client-cert-file peer-client-key-file peer-trusted-ca-file peer-cert-allowed-cn
    peer-cert-allowed-hostname peer-auto-tls self-signed-cert-validity peer-crl-file cipher-suites
    cors host-whitelist tls-min-version tls-max-version auth-token bcrypt-cost auth-token-ttl
    enable-pprof metrics listen-metrics-urls logger log-outputs log-level log-format
    enable-log-rotation log-rotation-config-json warning-unary-request-duration
    enable-distributed-tracing distributed-tracing-address distributed-tracing-service-name
    distributed-tracing-instance-id distributed-tracing-sampling-rate corrupt-check-time
    compact-hash-check-time compaction-batch-limit peer-skip-client-san-verification
    watch-progress-notify-interval warning-apply-duration bootstrap-defrag-threshold-megabytes
    max-learners compaction-sleep-interval downgrade-check-time snapshot-catchup-entries
    force-new-cluster unsafe-no-fsync"""
    known = {*OPTIONS, *foreign.INERT, *foreign.REFUSED}
    assert set(flags.split()) - known == set()
    assert len(known) == len(OPTIONS) + len(foreign.INERT) + len(foreign.REFUSED)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("nam: x", 'unknown key "nam"; did you mean name'),
        ("- a", "must be a mapping"),
        ("name: [", "line 1"),
        ("max-txn-ops: x", "from file"),
        ("max-txn-ops: true", "must be an integer"),
        ("name: on", "must be text"),
        ("client-transport-security: {trusted-ca-file: /x}", "checks no clients' certificates"),
        ("client-transport-security: {cert-fil: /x}", 'unknown key "client-transport-security"'),
        ("peer-transport-security: {cert-file: /x}", "no TLS between members"),
        ("peer-transport-security: {allowed-cn: x}", "no TLS between members"),
        ("unsafe-no-fsync: true", "never acknowledges"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=text):
        load("--config-file", str(file))


def test_etcd_sample_file(tmp_path: Path) -> None:
    """The keys of etcd's own sample file load, empty ones as unset."""
    file = tmp_path / "etcd.conf.yml"
    file.write_text(
        "name: 'default'\ndata-dir:\nsnapshot-count: 10000\nheartbeat-interval: 100\n"
        "listen-client-urls: http://localhost:2379\ninitial-cluster:\npre-vote: true\n"
        "client-transport-security:\n  cert-file:\n  client-cert-auth: false\n"
        "log-outputs: [stderr]\nauto-compaction-retention: \"1\"\nquota-backend-bytes: 0\n"
        "strict-reconfig-check: false\nforce-new-cluster: false\nwal-dir:\nmax-wals: 5\ncors:\n"
        "discovery:\ndiscovery-fallback: 'proxy'\nproxy: 'off'\nproxy-read-timeout: 0\n"
        "enable-pprof: true\nself-signed-cert-validity: 1\nlogger: zap\ntls-max-version: 'TLS1.3'\n"
        "cipher-suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]\nauto-compaction-mode: periodic\n"
        "watch-progress-notify-interval: 600000000000\n"
    )
    assert load("--config-file", str(file)).config.log_outputs == ("stderr",)
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert load(KVNODE_CONFIG_FILE=str(empty)).config == load().config
    with pytest.raises(ConfigError, match="No such file"):
        load("--config-file", str(tmp_path / "none"))


def test_a_files_section_sets_the_flags_it_stands_for(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "client-transport-security: {cert-file: /c, key-file: /k, auto-tls: false}\n"
        "peer-transport-security: {cert-file: '', client-cert-auth: false}\n"
    )
    loaded = load("--config-file", str(file), "--key-file=/other")
    assert (loaded.config.cert_file, loaded.config.key_file) == ("/c", "/other")


@pytest.mark.parametrize(
    ("flags", "environ", "said"),
    [
        # Kubernetes' kubeadm before 1.34
        (["--experimental-initial-corrupt-check=true",
          "--experimental-watch-progress-notify-interval=5s"], {}, ["initial-corrupt-check"]),
        # Patroni's documentation
        (["--data-dir=data/etcd", "--enable-v2=true"], {}, ["enable-v2"]),
        # Helm charts
        ([], {"ETCD_AUTO_COMPACTION_MODE": "periodic", "ETCD_AUTO_COMPACTION_RETENTION": "10",
              "ETCD_METRICS": "basic", "ETCD_LOG_LEVEL": "info", "ETCD_ON_K8S": "yes",
              "ETCD_AUTH_TOKEN": "jwt,priv-key=/k.pem,sign-method=RS256,ttl=10m"},
         ["ETCD_ON_K8S", "ETCD_AUTH_TOKEN"]),
        ([], {"ETCD_EXPERIMENTAL_COMPACTION_BATCH_LIMIT": "10"}, []),
    ],
)  # fmt: skip
def test_older_names_and_what_charts_set(flags, environ, said) -> None:
    warnings = load(*flags, **environ).warnings
    assert len(warnings) == len(said), warnings
    assert all(any(one in warning for warning in warnings) for one in said)


def test_options_of_older_names_act() -> None:
    config = load("--experimental-watch-progress-notify-interval=5s").config
    assert config.watch_progress_notify_interval == 5
    assert load(ETCD_EXPERIMENTAL_COMPACTION_BATCH_LIMIT="10").config.compaction_batch_limit == 10


@pytest.mark.parametrize(
    ("mode", "text", "meaning"),
    [
        ("periodic", "0", 0), ("periodic", "1", 3600), ("periodic", "10h", 36000),
        ("periodic", "30m", 1800), ("periodic", "1h30m", 5400), ("revision", "1000", 1000),
        ("revision", "0", 0),
    ],
)  # fmt: skip
def test_compaction(mode: str, text: str, meaning: float) -> None:
    flags = [f"--auto-compaction-mode={mode}", f"--auto-compaction-retention={text}"]
    assert load(*flags).config.compaction() == (mode, meaning)


def test_parse_flags_like_go() -> None:
    assert parse_flags(["-name", "a", "--pre-vote", "--gateways=2", "--name", "-b"]) == {
        "name": "-b", "pre-vote": "true", "gateways": "2"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("300ms", 0.3), ("1h30m", 5400), ("1.5s", 1.5), ("10m", 600), ("2us", 2e-6)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


def test_sizes_and_urls() -> None:
    sizes = [parse_size(t) for t in ("1", "2K", "64MiB", "1 GB", 5)]
    assert sizes == [1, 2048, 64 << 20, 1 << 30, 5]
    assert zmq_endpoint(parse_url("tcp://localhost:5", ("tcp",))) == "tcp://127.0.0.1:5"
    assert default_zmq_url("http://127.0.0.1:1") == "tcp://127.0.0.1:4"
    assert parse_url("http://[::1]:5", ("http",)).is_loopback


def test_log_format() -> None:
    assert load("--log-format=json").config.log_json
    assert not load("--log-format=console").config.log_json


def test_help_lists_every_option() -> None:
    text = flags_help()
    assert all(f"--{name}" in text for name in OPTIONS)
    assert max(map(len, text.splitlines())) <= 100
