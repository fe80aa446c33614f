"""What an operator sees once a node serves: who it is, where it listens, what to try.

Called by the supervisor when every process has said that it is ready. On a terminal it is a few
lines ending with `ready`, in a log one JSON record with the same facts. What waits for etcd looks
for etcd's own sentence (READY): it stands before. The commands it shows can
be pasted as they stand: by the name `kvnode` only where the shell finds this very program by it.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from urllib.parse import urlsplit

from kvnode import __version__
from kvnode.base.config import Config

log = logging.getLogger("supervisor")

DEFAULT_ENDPOINT = "tcp://127.0.0.1:2382"
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
READY = "ready to serve client requests"
ANY_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "*": "127.0.0.1"}


def command() -> str:
    """How a shell in the present folder starts this program."""
    script = os.path.abspath(os.path.join(os.path.dirname(sys.executable), "kvnode"))
    if not os.path.exists(script):
        return f"{shlex.quote(sys.executable)} -m kvnode"
    found = shutil.which("kvnode")
    if found is not None and os.path.realpath(found) == os.path.realpath(script):
        return "kvnode"
    near = os.path.relpath(script)
    return shlex.quote(script if near.startswith("..") else near)


def reachable(url: str) -> str:
    """The endpoint by which a client on this machine reaches the listener `url`."""
    parts = urlsplit(url)
    host = ANY_HOSTS.get(parts.hostname or "")
    return url if host is None else f"tcp://{host}:{parts.port}"


def is_local(url: str) -> bool:
    """True if nothing outside this machine can reach the listener `url`."""
    return urlsplit(url).hostname in LOCAL_HOSTS


def security(config: Config, listeners: list[str]) -> str:
    """Who can do what, said loudly where it is not only this machine."""
    open_urls = [*listeners, *config.listen_client_urls]
    plain = [url for url in open_urls if not url.startswith("https://")]
    if all(map(is_local, open_urls)):
        return "no authentication: reachable from this machine only"
    if all(map(is_local, plain)):
        return "TLS, but NO AUTHENTICATION, and reachable from other machines"
    return "NO TLS, NO AUTHENTICATION, and reachable from other machines"


def announce(
    config: Config, member: int, cluster: int, data: str, listeners: list[str], took_seconds: float
) -> None:
    """Prints the node's facts on standard output, or logs them where the log is JSON."""
    if config.log_json:
        log.info(READY)
        log.info(
            "ready",
            extra={
                "fields": {
                    "version": __version__,
                    "name": config.name,
                    "member-id": f"{member:x}",
                    "cluster-id": f"{cluster:x}",
                    "data-dir": data,
                    "listen-client-urls": list(config.listen_client_urls),
                    "listen-zmq-urls": listeners,
                    "security": security(config, listeners),
                    "took-seconds": round(took_seconds, 3),
                }
            },
        )
        return
    lines = [
        f"kvnode {__version__}",
        f"  member     {config.name} {member:x}, cluster {cluster:x}",
        f"  data       {data}",
        f"  etcd API   {' '.join(config.listen_client_urls)}",
        f"  zmq        {' '.join(listeners) or 'not served'}",
        f"  security   {security(config, listeners)}",
    ]
    if listeners:
        endpoint = reachable(listeners[0])
        start = command() + ("" if endpoint == DEFAULT_ENDPOINT else f" --endpoints {endpoint}")
        lines += [
            "",
            "Try, in another terminal:",
            f"  {start} put greeting hello",
            f"  {start} get greeting",
            f"  {start} status",
        ]
    print("\n".join([*lines, "", READY, "ready"]), flush=True)
