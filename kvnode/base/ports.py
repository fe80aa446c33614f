"""Network ports and the addresses made of them: defaults, URLs, ZeroMQ endpoints.

Callers: config, supervisor, command line. Only text in and text out; nothing is resolved or bound.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from kvnode.base.errors import ConfigError

CLIENT_PORT = 2379
PEER_PORT = 2380
ZMQ_PORT = 2382
ZMQ_PORT_OFFSET = ZMQ_PORT - CLIENT_PORT
"""--listen-zmq-urls by default: the client URL's host, its port + this."""

DEFAULT_ENDPOINT = f"tcp://127.0.0.1:{ZMQ_PORT}"


class Address(NamedTuple):
    """A parsed URL: scheme, host without brackets, port."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """HOST:PORT, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def parse_url(text: str, schemes: tuple[str, ...], default_port: int = 0) -> Address:
    """Reads SCHEME://HOST:PORT; ConfigError says what is wrong with it."""
    split = urlsplit(text)
    if split.scheme not in schemes:
        raise ConfigError(f'"{text}" must begin with {" or ".join(s + "://" for s in schemes)}')
    if split.path not in ("", "/") or split.query or split.fragment or split.username:
        raise ConfigError(f'"{text}" must be {split.scheme}://HOST:PORT and nothing more')
    try:
        port = split.port or default_port
    except ValueError:
        port = 0
    if not port:
        raise ConfigError(f'"{text}" has no port from 1 to 65535')
    if not split.hostname:
        raise ConfigError(f'"{text}" has no host; to listen on all interfaces write 0.0.0.0')
    return Address(split.scheme, split.hostname, port)


def zmq_endpoint(address: Address) -> str:
    """What ZeroMQ binds: it takes numeric addresses and interface names, not "localhost"."""
    host = "127.0.0.1" if address.host == "localhost" else address.host
    return f"tcp://{Address('tcp', host, address.port).netloc}"


def default_zmq_url(client_url: str) -> str:
    """The native listener beside a client URL: on this machine alone where clients have TLS, which
    the native protocol has not."""
    address = parse_url(client_url, ("http", "https"))
    if address.scheme == "https":
        address = address._replace(host="127.0.0.1")
    port = address.port + ZMQ_PORT_OFFSET
    if port > 65535:
        raise ConfigError(
            f'"{client_url}": its port + {ZMQ_PORT_OFFSET} is not a port: set --listen-zmq-urls'
        )
    return zmq_endpoint(Address("tcp", address.host, port))
