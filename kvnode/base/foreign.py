"""Flags of etcd's that have no option here: what becomes of each.

Role: a flag that some documentation, chart or script passes to etcd is never "unknown". It is said
once at start that it has no effect (INERT), it is read under its present name (`present_name`), or
the start is refused because ignoring it would promise what is not kept (REFUSED).
Callers: configload. What acts here stands in config.Config.

Sources: `etcd --help` of 3.7.1, and for older names those that kubeadm, the Helm charts and
Patroni's documentation pass to 3.4 to 3.6.
"""

from __future__ import annotations

from collections.abc import Mapping

FLAG, VALUE = bool, str


def _words(text: str) -> list[str]:
    return text.split()


_NO_EFFECT = "has no effect on kvnode"
_LATER = "has no effect in this version"
_NO_V2 = "has no effect: etcd's v2 API is not served, let clients use v3 (Patroni: etcd3)"
_LMDB = "has no effect: kvnode's storage has nothing that it would tune"
_NO_AUTH = "has no effect in this version, which has no authentication"
_NO_MEMBERS = "has no effect on how members work here"
_CHECKED = "has no effect: kvnode checks all stored data by itself (--scrub-period)"

INERT: Mapping[str, tuple[type, str]] = {
    **dict.fromkeys(
        _words("initial-election-tick-advance memory-mlock enable-pprof"), (FLAG, _NO_EFFECT)
    ),
    **dict.fromkeys(
        _words("""socket-reuse-port socket-reuse-address enable-log-rotation
        enable-distributed-tracing"""),
        (FLAG, _LATER),
    ),
    **dict.fromkeys(
        _words("""wal-dir max-snapshots max-wals v2-deprecation feature-gates log-package-levels
        self-signed-cert-validity log-rotation-config-json warning-apply-duration
        distributed-tracing-address distributed-tracing-service-name
        distributed-tracing-instance-id distributed-tracing-sampling-rate downgrade-check-time
        listen-client-http-urls"""),
        (VALUE, _LATER),
    ),
    **dict.fromkeys(
        _words("""backend-bbolt-freelist-type backend-batch-interval backend-batch-limit
        compaction-sleep-interval bootstrap-defrag-threshold-megabytes"""),
        (VALUE, _LMDB),
    ),
    **dict.fromkeys(_words("auth-token bcrypt-cost auth-token-ttl"), (VALUE, _NO_AUTH)),
    **dict.fromkeys(
        _words("""raft-read-timeout raft-write-timeout max-learners snapshot-catchup-entries
        proxy proxy-failure-wait proxy-refresh-interval proxy-dial-timeout proxy-write-timeout
        proxy-read-timeout discovery-fallback"""),
        (VALUE, _NO_MEMBERS),
    ),
    **dict.fromkeys(
        _words("""peer-skip-client-san-verification discovery-insecure-transport
        discovery-insecure-skip-tls-verify"""),
        (FLAG, _NO_MEMBERS),
    ),
    **dict.fromkeys(_words("corrupt-check-time compact-hash-check-time"), (VALUE, _CHECKED)),
    **dict.fromkeys(_words("initial-corrupt-check compact-hash-check-enabled"), (FLAG, _CHECKED)),
    **dict.fromkeys(
        _words("""enable-lease-checkpoint enable-lease-checkpoint-persist
        txn-mode-write-with-shared-buffer stop-grpc-service-on-defrag debug"""),
        (FLAG, _NO_EFFECT),
    ),
    "enable-v2": (FLAG, _NO_V2),
    "enable-v2v3": (VALUE, _NO_V2),
}  # fmt: skip
"""Accepted, with whether it takes a value, and what is said of it once."""

_TLS = (
    "this version checks no clients' certificates and makes none: it serves TLS with --cert-file "
    "and --key-file"
)
_PEER_TLS = "this version has no TLS between members"
_NOT_YET = "in this version --initial-cluster names the members"
REFUSED: Mapping[str, tuple[type, str]] = {
    **dict.fromkeys(["client-cert-auth", "auto-tls"], (FLAG, _TLS)),
    **dict.fromkeys(
        _words("""client-cert-file client-key-file client-crl-file client-cert-allowed-hostname
        trusted-ca-file"""),
        (VALUE, _TLS),
    ),
    **dict.fromkeys(["peer-client-cert-auth", "peer-auto-tls"], (FLAG, _PEER_TLS)),
    **dict.fromkeys(
        _words("""peer-cert-file peer-key-file peer-client-cert-file peer-client-key-file
        peer-trusted-ca-file peer-cert-allowed-cn peer-cert-allowed-hostname peer-crl-file"""),
        (VALUE, _PEER_TLS),
    ),
    **dict.fromkeys(
        _words("""discovery discovery-token discovery-endpoints discovery-dial-timeout
        discovery-request-timeout discovery-keepalive-time discovery-keepalive-timeout
        discovery-cert discovery-key discovery-cacert discovery-user discovery-password
        discovery-proxy discovery-srv discovery-srv-name"""),
        (VALUE, _NOT_YET),
    ),
    "unsafe-no-fsync": (FLAG, "kvnode never acknowledges what is not synced"),
    "force-new-cluster": (FLAG, _NOT_YET),
}
"""Refused when set, with the reason."""

FEATURE_GATES = frozenset(
    _words("""AllAlpha AllBeta CompactHashCheck FastLeaseKeepAlive InitialCorruptCheck
    LeaseCheckpoint LeaseCheckpointPersist PriorityRequest SetMemberLocalAddr
    StopGRPCServiceOnDefrag TxnModeWriteWithSharedBuffer""")
)
"""What --feature-gates may name; none of them switches anything here."""

_OLD = "experimental-"
SECTIONS: Mapping[str, str] = {
    "client-transport-security": "",
    "peer-transport-security": "peer-",
}
"""Sections of etcd's config file: what goes before their keys to make a flag of each."""

_SECTION_KEYS = {
    "peer-allowed-cn": "peer-cert-allowed-cn",
    "peer-allowed-hostname": "peer-cert-allowed-hostname",
    "allowed-hostname": "client-cert-allowed-hostname",
}


def present_name(name: str) -> str:
    """The flag's name in etcd 3.7: without the prefix that it had when it was new."""
    return name.removeprefix(_OLD) if name.startswith(_OLD) else name


def section_flag(section: str, key: str) -> str:
    """The flag that a key of a section of the config file stands for."""
    name = SECTIONS[section] + key
    return _SECTION_KEYS.get(name, name)


def is_foreign(name: str) -> bool:
    """Whether it is one of etcd's that is no option here."""
    return name in INERT or name in REFUSED
