"""The sockets between members: ROUTER for what comes, two DEALERs a peer for what goes.

Role: moves frames (wire/peers) to members by their id, and checks who speaks. Caller: procs/, with
`fileno`, `pending` and `receive` as the loop wants them.

A peer's two connections: `urgent` for what is small and must not wait (heartbeats, votes, read
rounds, answers), `bulk` for entries, proposals and snapshots. A large entry on one never stands
before a heartbeat on the other.

Invariants:
  1. `send` never blocks. A frame that a peer's queue has no room for is dropped and `send` says
     so; nothing is queued for a peer that is not connected. Losing frames is Raft's daily bread.
  2. A frame of another cluster, for another member, or of another version reaches nobody: its
     sender is told why (REFUSED), and the log says it once.
  3. Queues are bounded: QUEUE frames a connection, each at most MESSAGE_BYTES_MAX.

Deliberately absent: retries, order between the two connections, encryption (https:// peer URLs
don't start).
"""

from __future__ import annotations

import logging
import select
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import zmq

from kvnode.base.errors import ConfigError, DecodeError
from kvnode.base.limits import ENTRY_BYTES_MAX, MIB
from kvnode.base.ports import parse_url, zmq_endpoint
from kvnode.wire.peers import Header, PeerFrame, decode_header

log = logging.getLogger("peers")

QUEUE_URGENT = 1024
QUEUE_BULK = 64
MESSAGE_BYTES_MAX = ENTRY_BYTES_MAX + MIB
RECEIVE_MAX = 512
HEARTBEAT_MS = 1000
DEAD_MS = 4000


class Incoming(NamedTuple):
    """A frame that was checked."""

    sender: int
    kind: int
    payload: bytes
    route: bytes          # for `answer`, to whoever is not a member


class _PeerSockets:
    """The way to one peer."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], urls: tuple[str, ...]) -> None:
        self.urls = urls
        self.urgent = self._connect(context, QUEUE_URGENT)
        self.bulk = self._connect(context, QUEUE_BULK)

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]], queue: int) -> zmq.Socket[bytes]:
        sock = context.socket(zmq.DEALER)
        _set_common(sock)
        sock.setsockopt(zmq.SNDHWM, queue)
        sock.setsockopt(zmq.IMMEDIATE, 1)
        sock.setsockopt(zmq.RECONNECT_IVL, 50)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        sock.setsockopt(zmq.CONNECT_TIMEOUT, 2000)
        for url in self.urls:
            sock.connect(zmq_endpoint(parse_url(url, ("http",))))
        return sock

    def close(self) -> None:
        self.urgent.close(0)
        self.bulk.close(0)


def _set_common(sock: zmq.Socket[bytes]) -> None:
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.RCVHWM, QUEUE_URGENT)
    sock.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
    sock.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, DEAD_MS)
    sock.setsockopt(zmq.HEARTBEAT_TTL, DEAD_MS)
    sock.setsockopt(zmq.HANDSHAKE_IVL, 5000)
    sock.setsockopt(zmq.IPV6, 1)


class PeerNet:
    """One member's peer port. `cluster` 0: not known yet, frames of any cluster are taken."""

    def __init__(self, cluster: int, member: int, incarnation: int, urls: Sequence[str]) -> None:
        self.cluster = cluster
        self.member = member
        self.incarnation = incarnation
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._peers: dict[int, _PeerSockets] = {}
        self._said: set[tuple[int, str]] = set()
        self._epoll = select.epoll()
        self._router = self._context.socket(zmq.ROUTER)
        _set_common(self._router)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.SNDHWM, QUEUE_BULK)
        for url in urls:
            endpoint = zmq_endpoint(parse_url(url, ("http",)))
            try:
                self._router.bind(endpoint)
            except zmq.ZMQError as error:
                self._router.close(0)
                raise ConfigError(
                    f"can't listen on {url}: {error.strerror}; stop what uses it, or set "
                    "--listen-peer-urls"
                ) from None
        self._epoll.register(self._router.FD, select.EPOLLIN)
        self.dropped = 0
        self.sent_bytes: dict[int, int] = {}
        self.received_bytes: dict[int, int] = {}

    # --- who is there ---------------------------------------------------------------------------

    def set_members(self, urls: Mapping[int, Sequence[str]]) -> None:
        """Peer URLs by member id, this one's left out or not; connects and lets go."""
        wanted = {m: tuple(u) for m, u in urls.items() if m != self.member and u}
        for member in [m for m, s in self._peers.items() if wanted.get(m) != s.urls]:
            sockets = self._peers.pop(member)
            for sock in (sockets.urgent, sockets.bulk):
                self._epoll.unregister(sock.FD)
            sockets.close()
        for member, peer_urls in wanted.items():
            if member not in self._peers:
                sockets = self._peers[member] = _PeerSockets(self._context, peer_urls)
                for sock in (sockets.urgent, sockets.bulk):
                    self._epoll.register(sock.FD, select.EPOLLIN)

    # --- sending --------------------------------------------------------------------------------

    def send(self, member: int, kind: int, payload: bytes, urgent: bool = False) -> bool:
        """Queues a frame; False: it was dropped (no such peer, not connected, queue full)."""
        sockets = self._peers.get(member)
        if sockets is None:
            return False
        header = Header(kind, self.cluster, self.member, member, self.incarnation).encode()
        try:
            (sockets.urgent if urgent else sockets.bulk).send_multipart(
                (header, payload), zmq.NOBLOCK, copy=len(payload) < 65536
            )
        except zmq.Again:
            self.dropped += 1
            return False
        self.sent_bytes[member] = self.sent_bytes.get(member, 0) + len(payload)
        return True

    def answer(self, to: Incoming, kind: int, payload: bytes) -> None:
        """Answers on the connection that a frame came by; lost if that is gone."""
        header = Header(kind, self.cluster, self.member, to.sender, self.incarnation).encode()
        self._route(to.route, header, payload)

    def _route(self, route: bytes, header: bytes, payload: bytes) -> None:
        try:
            self._router.send_multipart([route, header, payload], zmq.NOBLOCK)
        except zmq.ZMQError:
            self.dropped += 1

    # --- receiving ------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when something may have come."""
        return self._epoll.fileno()

    def pending(self) -> bool:
        """ZeroMQ's descriptors are edge-triggered: ask the sockets."""
        return any(int(sock.EVENTS) & zmq.POLLIN for sock in self._sockets())

    def _sockets(self) -> list[zmq.Socket[bytes]]:
        out = [self._router]
        for peer in self._peers.values():
            out += (peer.urgent, peer.bulk)
        return out

    def receive(self) -> list[Incoming]:
        """Checked frames that came, at most RECEIVE_MAX. Blocking: never."""
        out: list[Incoming] = []
        self._epoll.poll(0)
        for sock in self._sockets():
            router = sock is self._router
            while len(out) < RECEIVE_MAX:
                try:
                    parts = sock.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                route = parts.pop(0) if router else b""
                taken = self._check(route, parts)
                if taken is not None:
                    out.append(taken)
        return out

    def _check(self, route: bytes, parts: list[bytes]) -> Incoming | None:
        if len(parts) != 2:
            self._refuse(route, 0, "a frame has two parts")
            return None
        try:
            header = decode_header(parts[0])
        except DecodeError as error:
            self._refuse(route, 0, str(error))
            return None
        if header.kind == PeerFrame.REFUSED:
            self._say(header.sender, "member {0} refuses this one: "
                      + parts[1][:200].decode(errors="replace"))
            return None
        if header.kind != PeerFrame.ASK_CLUSTER:
            if self.cluster and header.cluster != self.cluster:
                self._refuse(
                    route, header.sender,
                    f"cluster {header.cluster:x} is not this member's cluster {self.cluster:x}")
                return None
            if header.target not in (0, self.member):
                self._refuse(
                    route, header.sender,
                    f"a frame for member {header.target:x} came to member {self.member:x}")
                return None
        self.received_bytes[header.sender] = (
            self.received_bytes.get(header.sender, 0) + len(parts[1]))
        return Incoming(header.sender, header.kind, parts[1], route)

    def _refuse(self, route: bytes, sender: int, why: str) -> None:
        self._say(sender, "a peer that says it is member {0} is refused: " + why)
        if route:
            header = Header(PeerFrame.REFUSED, self.cluster, self.member, sender,
                            self.incarnation).encode()
            self._route(route, header, why.encode())

    def _say(self, member: int, text: str) -> None:
        """Once a member and reason, and not for ever more members than a cluster has."""
        if (member, text) not in self._said and len(self._said) < 100:
            self._said.add((member, text))
            log.warning(text.format(f"{member:x}"))

    def close(self) -> None:
        """Lets go of everything; what is queued is lost."""
        for peer in self._peers.values():
            peer.close()
        self._router.close(0)
        self._epoll.close()
