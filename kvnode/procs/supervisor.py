"""The supervisor: starts consensus, applier and gateways, restarts the one that died.

Role: the node's first process. It owns the data directory's lock and identity, makes the run
folder and the shared words, and is the only process that a person or an init system signals.
Caller: `kvnode serve`.

Life of a node: lock the directory, read or make the identity, start the children side by side
(applier and consensus need nothing of each other to open their files; gateways wait for both),
print the banner and `ready`, then wait for signals and deaths. SIGTERM drains: gateways answer
what they took, consensus and applier close with durable marks, all within STOP_SECONDS.

Invariants:
  1. No child outlives the supervisor (PR_SET_PDEATHSIG in each child).
  2. A child that died is started again at once. One that ended by itself RESTARTS_MAX times
     within RESTARTS_SECONDS, crashed in the map FAULTS_MAX times, or said that a restart can't
     help (EXIT_FATAL), stops the node.
  3. The first start of the children is `restart=False`: the applier rolls its map back to the
     last checkpoint unless the clean mark is there; later starts are `restart=True`.

Absent on purpose: any request, any byte of users' data.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import setproctitle

from kvnode import __version__
from kvnode._core import meters
from kvnode._core.sharedword import SharedWords
from kvnode.base import failpoint
from kvnode.base.config import Config, config_to_json
from kvnode.base.errors import CallerError, ConfigError, DiskError
from kvnode.base.ports import parse_url
from kvnode.env.link import private_folder
from kvnode.procs.banner import announce
from kvnode.procs.process import EXIT_FATAL, EXIT_NO_ROOM, Founder, Layout, set_up_log

log = logging.getLogger("supervisor")

FORMAT = 1
STOP_SECONDS = 5.0
RESTARTS_MAX = 6
RESTARTS_SECONDS = 10.0
FAULTS_MAX = 3
_SOCKET_PATH_MAX = 100


@dataclass
class Child:
    """One process of the node."""

    role: str
    number: int = 0
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    status_fd: int = -1
    ready: bool = False
    deaths: list[float] = field(default_factory=list)
    faults: int = 0

    @property
    def title(self) -> str:
        return f"{self.role}-{self.number}" if self.role == "gateway" else self.role


@dataclass(frozen=True)
class Identity:
    """Who this data directory belongs to."""

    name: str
    member: int
    cluster: int
    founders: tuple[Founder, ...]
    """The members that the cluster began with."""


def found_cluster(config: Config) -> Identity:
    """Ids from the peer URLs and the cluster's token, so that equal flags give equal ids.

    The member id comes from its peer URLs and the token, the cluster id from its members'. Both
    are never 0 and fit 63 bits.
    """
    founders = []
    for name, urls in config.cluster_members().items():
        text = "|".join(sorted(urls)) + "|" + config.initial_cluster_token
        digest = hashlib.sha256(text.encode()).digest()
        member = int.from_bytes(digest[:8], "big") >> 1 or 1
        founders.append(Founder(member, name, tuple(sorted(urls))))
    founders.sort()
    own = [founder.id for founder in founders if founder.name == config.name]
    if not own:
        raise ConfigError(
            f'--initial-cluster has no member named "{config.name}": add it, or correct --name'
        )
    if config.initial_cluster_state == "existing" and len(founders) > 1:
        raise ConfigError(
            "--initial-cluster-state existing: this version can't join a running cluster; found "
            "a new one with all its members, or start over the data directory of a member"
        )
    text = "|".join(f"{founder.id:x}" for founder in founders)
    digest = hashlib.sha256(text.encode()).digest()
    cluster = int.from_bytes(digest[:8], "big") >> 1 or 1
    return Identity(config.name, own[0], cluster, tuple(founders))


def open_identity(config: Config, layout: Layout) -> Identity:
    """Reads the directory's identity, or makes it for an empty one."""
    try:
        with open(layout.identity) as file:
            raw = json.load(file)
    except FileNotFoundError:
        if os.path.isdir(layout.wal) and os.listdir(layout.wal):
            raise DiskError(
                f"{layout.identity} is missing but {layout.wal} has a log: restore that file "
                "from a backup, or start with an empty --data-dir"
            ) from None
        identity = found_cluster(config)
        raw = {
            "format": FORMAT,
            "version": __version__,
            "name": identity.name,
            "member": f"{identity.member:x}",
            "cluster": f"{identity.cluster:x}",
            "founders": [[f"{f.id:x}", f.name, f.peer_urls] for f in identity.founders],
        }
        temporary = layout.identity + ".tmp"
        with open(temporary, "w", opener=lambda p, f: os.open(p, f, 0o600)) as file:
            json.dump(raw, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, layout.identity)
        _sync_folder(layout.member)
        return identity
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DiskError(
            f"{layout.identity} is damaged ({error}): restore it from a backup"
        ) from None
    if raw.get("format", 0) > FORMAT:
        raise DiskError(
            f"{config.data_dir} was written by kvnode {raw.get('version')} (format "
            f"{raw.get('format')}), this is {__version__} (format {FORMAT}): use that version"
        )
    if raw["name"] != config.name:
        raise ConfigError(
            f'{config.data_dir} belongs to member "{raw["name"]}", not "{config.name}": '
            f"start with --name {raw['name']}, or choose another --data-dir"
        )
    member = int(raw["member"], 16)
    founders = [
        Founder(int(number, 16), name, tuple(urls))
        for number, name, urls in raw.get("founders", ())
    ] or [Founder(member, raw["name"], tuple(config.cluster_members()[config.name]))]
    return Identity(raw["name"], member, int(raw["cluster"], 16), tuple(founders))


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_data_dir(path: str) -> int:
    """Makes and locks the data directory; returns the lock's descriptor."""
    if os.path.exists(path):
        info = os.lstat(path)
        if not os.path.isdir(path):
            raise ConfigError(f"{path} is not a folder: choose another --data-dir")
        if info.st_uid != os.getuid():
            raise ConfigError(
                f"{path} belongs to user id {info.st_uid}, this process runs as {os.getuid()}: "
                "run as its owner, or change the owner"
            )
        if info.st_mode & 0o077:
            log.warning(
                "data directory was open to others, now 0700", extra={"fields": {"path": path}}
            )
            os.chmod(path, 0o700)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        fd = os.open(
            os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise ConfigError(f"can't use {path} as --data-dir: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise ConfigError(
            f"{path} is in use by another node (pid {owner}): stop it, or choose another --data-dir"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def open_listeners(config: Config) -> dict[str, socket.socket]:
    """Listening sockets of the native protocol by URL.

    They are the supervisor's, so that a gateway's death refuses no connection, all gateways
    accept from one queue, and a port that another process has is found here. A busy port that
    nobody asked for leaves the node without the native protocol, with one loud line.
    """
    opened: dict[str, socket.socket] = {}
    for url in config.listen_zmq_urls:
        address = parse_url(url, ("tcp",))
        try:
            family, kind, proto, _, place = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sock = socket.socket(family, kind, proto)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(place)
            sock.listen(1024)
        except OSError as error:
            text = f"can't listen on {url}: {error.strerror or error}"
            if config.listen_zmq_asked:
                raise ConfigError(f"{text}; {_remedy(error, 'listen-zmq-urls')}") from None
            log.error(
                f"{text}: THE NATIVE PROTOCOL IS NOT SERVED; set --listen-zmq-urls to a free port"
            )
            continue
        opened[url] = sock
    return opened


def open_http_listeners(urls: tuple[str, ...], flag: str) -> dict[str, list[socket.socket]]:
    """Listening sockets of `flag` by URL: one an address, so two where localhost is both
    127.0.0.1 and ::1. A port that somebody else has is an error."""
    opened: dict[str, list[socket.socket]] = {}
    for url in urls:
        if url in opened:
            continue
        address = parse_url(url, ("http", "https"))
        opened[url] = []
        missing = OSError()
        try:
            places = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, kind, proto, _, place in dict.fromkeys(places):
                try:
                    opened[url].append(_listen(family, kind, proto, place))
                except OSError as error:
                    # A machine may have only one of IPv4 and IPv6.
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
                    missing = error
        except OSError as error:
            missing = error
            opened[url] = []
        if not opened[url]:
            raise ConfigError(
                f"can't listen on {url}: {missing.strerror or missing}; {_remedy(missing, flag)}"
            )
    return opened


def _remedy(error: OSError, flag: str) -> str:
    """What to do about a listener that can't be opened."""
    if error.errno == errno.EADDRINUSE:
        return f"stop what uses it, or set --{flag}"
    if error.errno == errno.EACCES:
        return f"run as a user who may, or set --{flag} to a port from 1024 on"
    return f"set --{flag} to an address of this machine"


def _listen(family: int, kind: int, proto: int, place: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # As Go: [::] takes IPv4 as well, any other address is IPv6 alone.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(place[0] != "::"))
        sock.bind(place)
        sock.listen(4096)
    except OSError:
        sock.close()
        raise
    return sock


class Supervisor:
    """Starts, watches and stops the children."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.data = os.path.abspath(config.data_dir)
        self.lock_fd = open_data_dir(self.data)
        self.run_folder = self._make_run_folder()
        words = os.memfd_create("kvnode-words", os.MFD_CLOEXEC)
        self.layout = Layout(self.data, self.run_folder, words)
        for folder in (self.layout.member, self.layout.wal, self.layout.state):
            private_folder(folder)
        # A mark that a power cut left would make an applier that dies before its opening look like
        # one that died after it: its successor would take a torn map for sound.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.layout.map_opened)
        self.identity = open_identity(config, self.layout)
        self.words = SharedWords(self.layout.words, create=True)
        meters.create(self.layout.words, config.gateways)
        meters.attach(self.layout.words, meters.SUPERVISOR, time.time_ns() // 1000)
        if any(
            url.startswith("https://")
            for url in (*config.listen_client_urls, *config.listen_metrics_urls)
        ):
            from kvnode.procs.tls import tls_context  # OpenSSL: only where it is used

            tls_context(config)
        elif config.cert_file or config.key_file:
            log.warning("no URL begins with https://: --cert-file and --key-file are not used")
        self.client_listeners = open_http_listeners(config.listen_client_urls, "listen-client-urls")
        self.metrics_listeners = open_http_listeners(
            config.listen_metrics_urls, "listen-metrics-urls"
        )
        self.listeners = open_listeners(config)
        self.children = [Child("applier"), Child("consensus")]
        self.children += [Child("gateway", n) for n in range(config.gateways)]
        self.poll = select.epoll()
        self.stopping = False
        self.announced = False
        self.exit_status = 0
        self.began = time.monotonic()

    def _make_run_folder(self) -> str:
        """The folder of sockets: below the data directory, or in the system's temporary folder
        when that path is too long for a socket's address."""
        path = os.path.join(self.data, "run")
        if len(path) > _SOCKET_PATH_MAX - 20:
            path = os.path.join(
                tempfile.gettempdir(),
                "kvnode-" + hashlib.sha256(self.data.encode()).hexdigest()[:16],
            )
        private_folder(path)
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        return path

    # --- children -------------------------------------------------------------------------------

    def start(self, child: Child, restart: bool) -> None:
        """Starts one child; its death and its readiness come through the poll."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        argument: dict[str, Any] = {
            "config": config_to_json(self.config),
            "data": self.layout.data,
            "run": self.layout.run,
            "words_fd": self.layout.words_fd,
            "member": self.identity.member,
            "cluster": self.identity.cluster,
            "founders": self.identity.founders,
            "restart": restart,
            "number": child.number,
            "status_fd": write_fd,
            "listeners": {},
            "client_listeners": {},
            "metrics_listeners": {},
            "command": sys.argv,
        }
        pass_fds = [write_fd, self.layout.words_fd]
        if child.role == "gateway":
            argument["listeners"] = {u: sock.fileno() for u, sock in self.listeners.items()}
            pass_fds += argument["listeners"].values()
            for name, listeners in (
                ("client_listeners", self.client_listeners),
                ("metrics_listeners", self.metrics_listeners),
            ):
                argument[name] = {
                    url: [sock.fileno() for sock in socks] for url, socks in listeners.items()
                }
                for fds in argument[name].values():
                    pass_fds += fds
        child.ready = False
        child.process = subprocess.Popen(
            [sys.executable, "-m", f"kvnode.procs.{child.role}", json.dumps(argument)],
            stdin=subprocess.DEVNULL,
            pass_fds=pass_fds,
        )
        os.close(write_fd)
        child.status_fd = read_fd
        child.pidfd = os.pidfd_open(child.process.pid)
        self.poll.register(child.pidfd, select.EPOLLIN)
        self.poll.register(read_fd, select.EPOLLIN)

    def _forget(self, child: Child) -> None:
        for fd in (child.pidfd, child.status_fd):
            if fd >= 0:
                with contextlib.suppress(OSError, ValueError):
                    self.poll.unregister(fd)
                os.close(fd)
        child.pidfd = child.status_fd = -1

    def on_status(self, child: Child) -> None:
        """A child wrote to its status pipe, or closed it."""
        data = os.read(child.status_fd, 64)
        if b"ready" in data:
            child.ready = True
        if not data:
            self.poll.unregister(child.status_fd)
            os.close(child.status_fd)
            child.status_fd = -1

    def on_death(self, child: Child) -> None:
        """A child ended: start it again, or give up."""
        assert child.process is not None
        status = child.process.wait()
        self._forget(child)
        child.process = None
        if self.stopping:
            return
        fields = {"process": child.title, "status": status}
        why = self._hopeless(child, status)
        if why:
            log.error(f"the node stops: {why}", extra={"fields": fields})
            self.exit_status = 1
            self.stopping = True
            return
        log.warning("a process died, starting it again", extra={"fields": fields})
        meters.add(meters.SLOT["restarts"])
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        meters.put(meters.SLOT["dead_cpu_us"], int((used.ru_utime + used.ru_stime) * 1e6))
        failpoint.hit("death")
        self.start(child, restart=True)
        failpoint.hit("restarted")

    def _hopeless(self, child: Child, status: int) -> str:
        """Why starting the child again can't help; empty when it can.

        A SIGKILL came from outside (a person, the kernel for want of memory) and says nothing
        about the next run; a full disk may have room by then.
        """
        if status == EXIT_FATAL:
            return "a process said that it can't run, see the line above"
        if status in (-signal.SIGKILL, EXIT_NO_ROOM):
            return ""
        now = time.monotonic()
        child.deaths = [t for t in child.deaths if now - t < RESTARTS_SECONDS] + [now]
        if status in (-signal.SIGSEGV, -signal.SIGBUS) and child.role != "consensus":
            child.faults += 1
            if child.faults >= FAULTS_MAX:
                return (
                    "reading the map crashed again and again: its file is damaged. Check it with "
                    "`kvnode verify`, then restore a backup or let this member join anew"
                )
        if len(child.deaths) >= RESTARTS_MAX:
            return "a process ends again and again, see the lines above"
        return ""

    # --- life -----------------------------------------------------------------------------------

    def run(self) -> int:
        """Runs the node until it is told to stop; returns the exit status."""
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.poll.register(wake_read, select.EPOLLIN)
        for child in self.children:
            self.start(child, restart=False)
            failpoint.hit("started")
        while not self.stopping:
            # One event a turn: after a death the numbers of its descriptors are the next child's.
            for fd, _ in self.poll.poll(maxevents=1):
                if fd == wake_read:
                    os.read(wake_read, 64)
                    self.stopping = True
                    continue
                for child in self.children:
                    if fd == child.status_fd:
                        self.on_status(child)
                        break
                    if fd == child.pidfd:
                        self.on_death(child)
                        break
            if not self.announced and all(c.ready for c in self.children):
                self.announced = True
                announce(
                    self.config,
                    self.identity.member,
                    self.identity.cluster,
                    self.data,
                    list(self.listeners),
                    time.monotonic() - self.began,
                )
        self.stop()
        return self.exit_status

    def stop(self) -> None:
        """Gateways first, so that what they took is answered; then the others."""
        deadline = time.monotonic() + STOP_SECONDS - 0.5
        self._stop([c for c in self.children if c.role == "gateway"], deadline - 2.5)
        self._stop([c for c in self.children if c.role == "consensus"], deadline - 1.5)
        self._stop([c for c in self.children if c.role == "applier"], deadline)
        shutil.rmtree(self.run_folder, ignore_errors=True)
        log.info("stopped")

    def _stop(self, children: list[Child], deadline: float) -> None:
        for child in children:
            if child.process is not None:
                child.process.send_signal(signal.SIGTERM)
        for child in children:
            if child.process is None:
                continue
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning(
                    "a process did not stop in time", extra={"fields": {"process": child.title}}
                )
                child.process.kill()
                child.process.wait()
            self._forget(child)
            child.process = None


def run(config: Config, warnings: Sequence[str] = ()) -> int:
    """Runs a node in the foreground; returns the exit status. Blocking: until it is stopped.

    warnings: what the configuration has to say, for the log.
    """
    if not __debug__:
        print(
            "kvnode: assertions are part of its safety: do not run python with -O", file=sys.stderr
        )
        return 2
    try:
        set_up_log(config)
    except OSError as error:
        print(f"kvnode: --log-outputs {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    for text in warnings:
        log.warning(text)
    failpoint.arm("supervisor")
    try:
        node = Supervisor(config)
    except (CallerError, DiskError) as error:
        print(f"kvnode: {error}", file=sys.stderr)
        return 2
    setproctitle.setproctitle(f"kvnode: supervisor [{config.name}] {node.data}")
    return node.run()
