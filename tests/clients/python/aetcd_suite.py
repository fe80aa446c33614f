"""aetcd, every API of it that one member without users can serve. Run: HOST PORT."""

from __future__ import annotations

import asyncio
import sys

import aetcd
from cases import case, equal, main_async


@case
async def put_get_delete(c, p):
    await c.put(p + b"a", b"1")
    got = await c.get(p + b"a")
    equal("pair", (got.key, got.value, got.version), (p + b"a", b"1", 1))
    equal("previous", (await c.put(p + b"a", b"2", prev_kv=True)).prev_kv.value, b"1")
    equal("serializable", (await c.get(p + b"a", serializable=True)).value, b"2")
    equal("previous", (await c.delete(p + b"a", prev_kv=True)).prev_kv.value, b"2")
    equal("gone", await c.get(p + b"a"), None)


@case
async def ranges(c, p):
    for i in range(9):
        await c.put(p + b"%d" % i, b"%d" % (9 - i))
    got = await c.get_prefix(p)
    equal("prefix", [kv.value for kv in got], [b"%d" % (9 - i) for i in range(9)])
    got = await c.get_prefix(p, sort_order="ascend", sort_target="value")
    equal("by value", [kv.value for kv in got], [b"%d" % i for i in range(1, 10)])
    got = await c.get_prefix(p, sort_order="descend", sort_target="create", keys_only=True)
    equal("keys only", {kv.value for kv in got}, {b""})
    equal("range", len(list(await c.get_range(p + b"2", p + b"5"))), 3)
    equal("deleted", (await c.delete_range(p + b"2", p + b"5")).deleted, 3)
    equal("deleted", (await c.delete_prefix(p)).deleted, 6)
    assert await c.get_all() is not None


@case
async def compare_and_swap(c, p):
    await c.put(p + b"a", b"1")
    equal("replaced", await c.replace(p + b"a", b"1", b"2"), True)
    equal("not again", await c.replace(p + b"a", b"1", b"3"), False)


@case
async def transactions(c, p):
    t = c.transactions
    await c.put(p + b"a", b"1")
    done, _ = await c.transaction(
        compare=[t.value(p + b"a") == b"1", t.version(p + b"a") > 0, t.mod(p + b"a") > 0,
                 t.create(p + b"none") == 0],
        success=[t.put(p + b"b", b"2"), t.get(p + b"a"), t.delete(p + b"a")],
        failure=[t.get(p + b"a")],
    )
    equal("succeeded", done, True)
    equal("keys", [kv.key for kv in await c.get_prefix(p)], [p + b"b"])
    done, _ = await c.transaction(compare=[t.value(p + b"b") == b"x"], success=[],
                                  failure=[t.put(p + b"c", b"3")])
    equal("the other branch", (done, (await c.get(p + b"c")).value), (False, b"3"))


@case
async def watch(c, p):
    watching = await c.watch_prefix(p)
    for i in range(5):
        await c.put(p + b"%d" % i, b"%d" % i)
    await c.delete(p + b"0")
    got = []
    async for event in watching:
        got.append((event.kind, event.kv.value))
        if len(got) == 6:
            break
    await watching.cancel()
    put, delete = aetcd.EventKind.PUT, aetcd.EventKind.DELETE
    equal("events", got, [(put, b"%d" % i) for i in range(5)] + [(delete, b"")])


@case
async def watch_from_history(c, p):
    first = (await c.put(p + b"a", b"1")).header.revision
    await c.put(p + b"a", b"2")
    watching = await c.watch(p + b"a", start_revision=first, prev_kv=True, fragment=True)
    got = []
    async for event in watching:
        got.append((event.kv.value, event.prev_kv.value if event.prev_kv else b""))
        if len(got) == 2:
            break
    await watching.cancel()
    equal("history", got, [(b"1", b""), (b"2", b"1")])


@case
async def watch_filters(c, p):
    watching = await c.watch(p + b"a", kind=aetcd.EventKind.DELETE)
    await c.put(p + b"a", b"1")
    await c.delete(p + b"a")
    async for event in watching:
        equal("kind", event.kind, aetcd.EventKind.DELETE)
        break
    await watching.cancel()


@case
async def watch_once(c, p):
    waiter = asyncio.create_task(c.watch_once(p + b"a", timeout=10))
    while not waiter.done():
        await c.put(p + b"a", b"1")
        await asyncio.sleep(0.05)
    equal("event", waiter.result().kv.value, b"1")


@case
async def watch_compacted(c, p):
    first = (await c.put(p + b"a", b"1")).header.revision
    last = (await c.put(p + b"a", b"2")).header.revision
    await c.compact(last)
    try:
        async for _ in await c.watch(p + b"a", start_revision=first):
            break
        raise AssertionError("no error")
    except aetcd.RevisionCompactedError as error:
        equal("compacted", error.compacted_revision, last)


@case
async def leases(c, p):
    lease = await c.lease(60)
    await c.put(p + b"a", b"1", lease=lease)
    equal("keys", list(await lease.keys()), [p + b"a"])
    equal("granted", await lease.granted_ttl(), 60)
    assert 50 < await lease.remaining_ttl() <= 60
    await lease.refresh()
    await lease.revoke()
    equal("gone", await c.get(p + b"a"), None)


@case
async def lease_of_given_id(c, p):
    lease = await c.lease(60, lease_id=987654321)
    equal("id", lease.id, 987654321)
    await c.revoke_lease(987654321)


@case
async def lease_expires(c, p):
    await c.put(p + b"a", b"1", lease=await c.lease(1))
    while await c.get(p + b"a") is not None:
        await asyncio.sleep(0.05)


@case
async def locks(c, p):
    async with c.lock(p + b"l", ttl=10) as lock:
        equal("held", await lock.is_acquired(), True)
        await lock.refresh()
        other = c.lock(p + b"l", ttl=10)
        equal("not twice", await other.acquire(timeout=0), False)
    equal("free", await other.acquire(timeout=5), True)
    await other.release()


@case
async def upkeep(c, p):
    status = await c.status()
    assert status.version.startswith("3."), status.version
    assert status.db_size > 0 and status.raft_index > 0 and status.raft_term > 0
    members = [member async for member in c.members()]
    equal("members", len(members), 1)
    equal("alarms", [alarm async for alarm in c.list_alarms()], [])
    await c.hash()
    await c.defragment()


async def _all() -> None:
    async with aetcd.Client(host=sys.argv[1], port=int(sys.argv[2]), timeout=20) as client:
        await main_async(client)


asyncio.run(_all())
