r"""The language of the state machine's scripts, and what they print.

A script is blocks of commands, a line `----`, and what the commands print. Each command line is
one log entry of one group, unless it is one of the tools below. KVNODE_REWRITE=1 writes the
outputs anew.

    put KEY [VALUE] [lease=N] [prev] [ignore_value] [ignore_lease]
    del KEY [END] [prev]          END: a key, * (from the key on)
    get KEY [END] [rev=N] [limit=N] [sort=desc] [by=mod] [keys] [count]
    txn if TARGET(KEY[,END])OP OPERAND ... then { op ; op } else { op }
    compact N
    batch|one|txns { op ; op }
    alarm on|off|list NAME
    open|close SESSION [gateway]
    SESSION:SEQUENCE[:LOWEST] command...        the same inside a session of user 1

Tools: `free N` slices with N records each until done, `once N` a single slice, `restart`,
`records` (each with flags, depth and previous), `sessions`, `hash`, `reset`.
"""

from __future__ import annotations

import re

from kvnode._core.machine import Machine
from kvnode._core.memstore import MemStore
from kvnode._core.storetxn import TREE_SESSIONS
from kvnode.base.codes import Code, Kind
from kvnode.proto import kvnodepb_pb2, rpc_pb2
from tests.oracle.requests import (
    TARGETS,
    Alarm,
    Compact,
    Compare,
    Delete,
    Group,
    Put,
    PutBatch,
    Range,
    Request,
    SessionClose,
    SessionOpen,
    Txn,
    decode_results,
)
from tests.support.fsck import read_records, record_key
from tests.support.statemachine import encode_entry

RESPONSES = {
    Kind.PUT: rpc_pb2.PutResponse,
    Kind.RANGE: rpc_pb2.RangeResponse,
    Kind.DELETE_RANGE: rpc_pb2.DeleteRangeResponse,
    Kind.TXN: rpc_pb2.TxnResponse,
    Kind.ALARM: rpc_pb2.AlarmResponse,
    Kind.PUT_BATCH: kvnodepb_pb2.BatchResponse,
    Kind.PUT_BATCH_ONE: kvnodepb_pb2.BatchResponse,
    Kind.TXN_BATCH: kvnodepb_pb2.BatchResponse,
}
COMPARE = re.compile(r"(\w+)\(([^,)]+)(?:,([^)]+))?\)(=|!=|<|>)(.*)")
RESULTS = {"=": 0, ">": 1, "<": 2, "!=": 3}
BATCHES = {"batch": Kind.PUT_BATCH, "one": Kind.PUT_BATCH_ONE, "txns": Kind.TXN_BATCH}
ALARMS = {"NOSPACE": 1, "CORRUPT": 2}
STATES = ("", "repeated", "refused")


def end_of(word: str) -> bytes:
    return b"\0" if word == "*" else word.encode()


class Parser:
    """One command's words, left to right."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def next(self) -> str:
        return self.words.pop(0)

    def options(self) -> tuple[list[str], dict[str, str]]:
        """Words up to the end of the operation: plain ones, and name=value ones."""
        plain, named = [], {}
        while self.words and self.words[0] not in (";", "}"):
            word = self.next()
            name, equals, value = word.partition("=")
            if equals:
                named[name] = value
            else:
                plain.append(word)
        return plain, named

    def request(self) -> Request:
        verb = self.next()
        if verb == "txn":
            return self.txn()
        if verb in BATCHES:
            return PutBatch(tuple(self.ops()), BATCHES[verb])
        plain, named = self.options()
        if verb == "put":
            value = plain[1] if plain[1:] and plain[1] not in FLAGS else ""
            flags = {word: True for word in plain if word in FLAGS}
            flags["prev_kv"] = flags.pop("prev", False)
            return Put(plain[0].encode(), value.encode(), int(named.get("lease", 0)), **flags)
        if verb == "del":
            prev = "prev" in plain
            rest = [word for word in plain if word != "prev"]
            return Delete(rest[0].encode(), end_of(rest[1]) if rest[1:] else b"", prev)
        if verb == "get":
            return self.get(plain, named)
        if verb == "compact":
            return Compact(int(plain[0]))
        if verb == "alarm":
            return Alarm(["list", "on", "off"].index(plain[0]), 1, ALARMS.get(plain[1], 0))
        if verb == "open":
            return SessionOpen(int(plain[0]), "gateway" in plain)
        assert verb == "close", verb
        return SessionClose(int(plain[0]))

    def get(self, plain: list[str], named: dict[str, str]) -> Range:
        ends = [word for word in plain[1:] if word not in ("keys", "count")]
        targets = ("key", "version", "create", "mod", "value")
        return Range(
            plain[0].encode(),
            end_of(ends[0]) if ends else b"",
            limit=int(named.get("limit", 0)),
            revision=int(named.get("rev", 0)),
            order=("none", "asc", "desc").index(named.get("sort", "none")),
            target=targets.index(named.get("by", "key")),
            keys_only="keys" in plain,
            count_only="count" in plain,
        )

    def ops(self) -> list:
        """`{ op ; op }`"""
        assert self.next() == "{"
        out = []
        while self.words[0] != "}":
            out.append(self.request())
            if self.words[0] == ";":
                self.next()
        self.next()
        return out

    def txn(self) -> Txn:
        compares, branches = [], {"then": [], "else": []}
        while self.words and self.words[0] in ("if", "then", "else"):
            word = self.next()
            if word in branches:
                branches[word] = self.ops()
                continue
            while self.words and (match := COMPARE.fullmatch(self.words[0])):
                self.next()
                compares.append(compare(*match.groups()))
        return Txn(tuple(compares), tuple(branches["then"]), tuple(branches["else"]))


FLAGS = ("prev", "ignore_value", "ignore_lease")


def compare(target: str, key: str, end: str | None, sign: str, operand: str) -> Compare:
    number = int(operand) if target != "value" else 0
    return Compare(
        key.encode(),
        TARGETS.index(target),
        RESULTS[sign],
        number,
        operand.encode(),
        end_of(end) if end else b"",
    )


# --- printing -----------------------------------------------------------------------------------


def show_kv(kv: object) -> str:
    out = f"{kv.key.decode()}={kv.value.decode()}"  # type: ignore[attr-defined]
    return out + f" c{kv.create_revision} m{kv.mod_revision} v{kv.version}"  # type: ignore[attr-defined]


def show(response: object, at: str = "") -> list[str]:
    """A response as lines: `rev N` is the header's revision."""
    name = type(response).__name__
    r: object = response
    line = f"{at}rev {r.header.revision}" if r.HasField("header") else at + "no header"  # type: ignore[attr-defined]
    below = at + "  "
    if name == "PutResponse":
        return [line + (f" prev {show_kv(r.prev_kv)}" if r.HasField("prev_kv") else "")]  # type: ignore[attr-defined]
    if name == "DeleteRangeResponse":
        return [f"{line} deleted {r.deleted}", *(f"{below}{show_kv(kv)}" for kv in r.prev_kvs)]  # type: ignore[attr-defined]
    if name == "RangeResponse":
        line += f" count {r.count}" + (" more" if r.more else "")  # type: ignore[attr-defined]
        return [line, *(f"{below}{show_kv(kv)}" for kv in r.kvs)]  # type: ignore[attr-defined]
    if name == "TxnResponse":
        lines = [f"{line} {'then' if r.succeeded else 'else'}"]  # type: ignore[attr-defined]
        for op in r.responses:  # type: ignore[attr-defined]
            lines += show(getattr(op, op.WhichOneof("response")), below)
        return lines
    if name == "BatchResponse":
        line += f" applied {r.applied} revisions {r.first_revision}-{r.last_revision}"  # type: ignore[attr-defined]
        return [line, *(f"{below}{i.index}: {Code(i.code).name}" for i in r.refused)]  # type: ignore[attr-defined]
    return [line, *(f"{below}{a.alarm} of {a.memberID}" for a in r.alarms)]  # type: ignore[attr-defined]


class Script:
    """A machine that commands act on."""

    def __init__(self) -> None:
        self.store = MemStore()
        self.machine = Machine(self.store, 1, 1)

    def run(self, line: str) -> list[str]:
        words = line.split()
        tool = getattr(self, "do_" + words[0], None)
        if tool is not None:
            return tool(*words[1:])
        group = Group([], user=1, client=True)
        if ":" in words[0]:
            numbers = [int(word) for word in words.pop(0).split(":")]
            group.session, group.sequence, group.lowest = (*numbers, 0)[:3]
        parser = Parser(words)
        group.requests.append(parser.request())
        assert not parser.words, parser.words
        return self.apply(group)

    def apply(self, group: Group) -> list[str]:
        index = self.machine.applied_index + 1
        ((_, data),) = self.machine.apply(encode_entry(index, 1, [group]))
        (result,) = decode_results(data)
        if result.state == 2:
            return [f"refused {Code(result.code).name}"]
        ((code, kind, body),) = result.results
        state = [STATES[result.state]] if result.state else []
        if code == Code.APPLIED:
            revision = rpc_pb2.CompactionResponse.FromString(body).header.revision
            return [*state, f"APPLIED at rev {revision}"]
        if code:
            return [*state, Code(code).name]
        message = RESPONSES.get(Kind(kind), rpc_pb2.AlarmResponse)
        return state + show(message.FromString(body))

    def do_reset(self) -> list[str]:
        self.__init__()  # type: ignore[misc]
        return []

    def do_restart(self) -> list[str]:
        self.machine = Machine(self.store, 1, 1)
        return []

    def do_free(self, budget: str) -> list[str]:
        slices = 1
        while self.machine.free_some(int(budget)):
            slices += 1
        return [f"{slices} slices, freed {self.machine.freed_revision}"]

    def do_once(self, budget: str) -> list[str]:
        more = self.machine.free_some(int(budget))
        return [f"freed {self.machine.freed_revision}" + (", more" if more else "")]

    def do_hash(self) -> list[str]:
        return [f"{self.machine.state_hash:016x} at rev {self.machine.revision}"]

    def do_records(self) -> list[str]:
        out = []
        for (main, sub), record in read_records(self.store).items():
            flag = " tombstone" if record.flags & 1 else ""
            key = record_key(record.kv).decode()
            prev = "" if record.prev == (0, 0) else " prev {}.{}".format(*record.prev)
            out.append(f"{main}.{sub} {key}{flag} depth {record.depth}{prev}")
        return out

    def do_sessions(self) -> list[str]:
        with self.store.begin_read() as txn:
            return [
                f"{int.from_bytes(key, 'big')}: {value.hex()}"
                for key, value in txn.items(TREE_SESSIONS)
            ]
