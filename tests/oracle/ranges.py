"""etcd 3.7's Range over a History, step by step as etcd does it: the slow twin of ranges.pyx."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvnode.base.codes import Code
from tests.oracle.gosort import go_sorted
from tests.oracle.revindex import History

NONE, ASCEND, DESCEND = range(3)
KEY, VERSION, CREATE, MOD, VALUE = range(5)


@dataclass
class Request:
    key: bytes
    range_end: bytes = b""
    limit: int = 0
    revision: int = 0
    sort_order: int = NONE
    sort_target: int = KEY
    keys_only: bool = False
    count_only: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0


@dataclass
class KV:
    key: bytes
    create: int
    mod: int
    version: int
    value: bytes
    lease: int


@dataclass
class Answer:
    code: Code = Code.OK
    kvs: list[KV] = field(default_factory=list)
    more: bool = False
    count: int = 0


def fetch(history: History, r: Request, revision: int, limit: int) -> tuple[list[KV], int]:
    """The first `limit` (0: all) keys in key order, and how many there are."""
    found = []
    for key in history.scan(r.key, r.range_end):
        v = history.at(key, revision)
        if v is not None and v.value is not None:
            found.append(KV(key, v.create, v.main, v.version, v.value, v.lease))
    return found[:limit] if limit else found, len(found)


def execute(history: History, r: Request) -> Answer:
    if r.revision > history.revision:
        return Answer(Code.FUTURE_REV)
    revision = r.revision if r.revision > 0 else history.revision
    if revision < history.compacted:
        return Answer(Code.COMPACTED)
    plain = r.sort_order == NONE or (r.sort_target == KEY and r.sort_order == ASCEND)
    filters = any(
        (r.min_mod_revision, r.max_mod_revision, r.min_create_revision, r.max_create_revision)
    )
    fetch_limit = r.limit + 1 if r.limit > 0 and plain and not filters else 0
    kvs, count = fetch(history, r, revision, fetch_limit)
    if r.count_only:
        return Answer(count=count)
    if r.keys_only and r.sort_target != VALUE:
        for kv in kvs:
            kv.value, kv.lease = b"", 0
    kvs = [
        kv
        for kv in kvs
        if not (r.max_mod_revision and kv.mod > r.max_mod_revision)
        and not (r.min_mod_revision and kv.mod < r.min_mod_revision)
        and not (r.max_create_revision and kv.create > r.max_create_revision)
        and not (r.min_create_revision and kv.create < r.min_create_revision)
    ]
    order = ASCEND if r.sort_order == NONE and r.sort_target != KEY else r.sort_order
    if order == DESCEND or (order == ASCEND and r.sort_target != KEY):
        by = {
            KEY: lambda kv: kv.key,
            VERSION: lambda kv: kv.version,
            CREATE: lambda kv: kv.create,
            MOD: lambda kv: kv.mod,
            VALUE: lambda kv: kv.value,
        }[r.sort_target]
        kvs = go_sorted(kvs, by, order == DESCEND)
    more = r.limit > 0 and len(kvs) > r.limit
    if more:
        kvs = kvs[: r.limit]
    if r.keys_only:
        for kv in kvs:
            kv.value = b""
    return Answer(Code.OK, kvs, more, count)
