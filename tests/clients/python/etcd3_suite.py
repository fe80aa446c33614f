"""python-etcd3, every API of it that one member without users can serve. Run: HOST PORT."""

from __future__ import annotations

import queue
import sys
import threading

import etcd3
from cases import case, equal, main, until


@case
def put_get_delete(c, p):
    c.put(p + "a", "1")
    value, meta = c.get(p + "a")
    equal("value", value, b"1")
    equal("key", meta.key.decode(), p + "a")
    equal("version", meta.version, 1)
    equal("create and mod", meta.create_revision, meta.mod_revision)
    equal("previous", c.put(p + "a", "2", prev_kv=True).prev_kv.value, b"1")
    equal("deleted", c.delete(p + "a"), True)
    equal("again", c.delete(p + "a"), False)
    equal("gone", c.get(p + "a"), (None, None))


@case
def ranges(c, p):
    for i in range(9):
        c.put(f"{p}{i}", str(9 - i))
    equal("prefix", [v for v, _ in c.get_prefix(p)], [b"%d" % (9 - i) for i in range(9)])
    got = c.get_prefix(p, sort_order="descend", sort_target="key")
    equal("last keys", [m.key.decode() for _, m in got][:2], [p + "8", p + "7"])
    got = c.get_prefix(p, sort_order="ascend", sort_target="value")
    equal("by value", [v for v, _ in got], [b"%d" % i for i in range(1, 10)])
    equal("range", len(list(c.get_range(p + "2", p + "5"))), 3)
    equal("keys only", {v for v, _ in c.get_prefix(p, keys_only=True)}, {b""})
    equal("count", c.get_prefix_response(p, count_only=True).count, 9)
    equal("serializable", c.get(p + "0", serializable=True)[0], b"9")
    equal("deleted", c.delete_prefix(p).deleted, 9)


@case
def get_all(c, p):
    c.put(p + "a", "1")
    assert p + "a" in [m.key.decode() for _, m in c.get_all()]


@case
def compare_and_swap(c, p):
    c.delete(p + "a")
    equal("put if not there", c.put_if_not_exists(p + "a", "1"), True)
    equal("not twice", c.put_if_not_exists(p + "a", "2"), False)
    equal("replaced", c.replace(p + "a", "1", "3"), True)
    equal("not again", c.replace(p + "a", "1", "4"), False)
    equal("value", c.get(p + "a")[0], b"3")


@case
def transactions(c, p):
    t = c.transactions
    c.put(p + "a", "1")
    done, answers = c.transaction(
        compare=[t.value(p + "a") == "1", t.version(p + "a") > 0, t.mod(p + "a") > 0,
                 t.create(p + "none") == 0],
        success=[t.put(p + "b", "2"), t.get(p + "a"), t.delete(p + "a")],
        failure=[t.get(p + "a")],
    )
    equal("succeeded", done, True)
    equal("the get in it", answers[1][0][0], b"1")
    equal("keys", [m.key.decode() for _, m in c.get_prefix(p)], [p + "b"])
    done, _ = c.transaction(compare=[t.value(p + "b") == "x"], success=[t.put(p + "c", "")],
                            failure=[t.txn(compare=[], success=[t.put(p + "d", "4")], failure=[])])
    equal("the other branch", (done, c.get(p + "d")[0]), (False, b"4"))


@case
def watch(c, p):
    events, cancel = c.watch_prefix(p)
    for i in range(5):
        c.put(f"{p}{i}", str(i))
    c.delete(p + "0")
    got = [next(events) for _ in range(6)]
    equal("puts", [e.value for e in got[:5]], [b"%d" % i for i in range(5)])
    assert isinstance(got[5], etcd3.events.DeleteEvent)
    cancel()
    equal("ended", list(events), [])


@case
def watch_from_history(c, p):
    first = c.put(p + "a", "1").header.revision
    c.put(p + "a", "2")
    events, cancel = c.watch(p + "a", start_revision=first, prev_kv=True)
    equal("history", [next(events).value for _ in range(2)], [b"1", b"2"])
    c.put(p + "a", "3")
    event = next(events)
    equal("and on", (event.value, event.prev_value), (b"3", b"2"))
    cancel()


@case
def watch_callback_and_once(c, p):
    heard: queue.Queue = queue.Queue()
    number = c.add_watch_callback(p + "a", heard.put)
    c.put(p + "a", "1")
    equal("heard", heard.get(timeout=10).events[0].value, b"1")
    c.cancel_watch(number)
    timer = threading.Timer(0.2, lambda: c.put(p + "b", "2"))
    timer.start()
    equal("once", c.watch_once(p + "b", timeout=10).value, b"2")
    timer.join()


@case
def watch_compacted(c, p):
    first = c.put(p + "a", "1").header.revision
    last = c.put(p + "a", "2").header.revision
    c.compact(last)
    events, _ = c.watch(p + "a", start_revision=first)
    try:
        next(events)
        raise AssertionError("no error")
    except etcd3.exceptions.RevisionCompactedError as error:
        equal("compacted", error.compacted_revision, last)


@case
def leases(c, p):
    lease = c.lease(60)
    c.put(p + "a", "1", lease=lease)
    equal("keys", [k.decode() for k in lease.keys], [p + "a"])
    equal("granted", lease.granted_ttl, 60)
    assert 50 < lease.remaining_ttl <= 60
    equal("kept alive", lease.refresh()[0].TTL, 60)
    lease.revoke()
    equal("gone", c.get(p + "a"), (None, None))


@case
def lease_of_given_id(c, p):
    lease = c.lease(60, lease_id=123456789)
    equal("id", lease.id, 123456789)
    try:
        c.lease(60, lease_id=123456789)
        raise AssertionError("granted twice")
    except etcd3.exceptions.PreconditionFailedError:
        pass
    lease.revoke()


@case
def lease_expires(c, p):
    c.put(p + "a", "1", lease=c.lease(1))
    until("expired", lambda: c.get(p + "a") == (None, None))


@case
def locks(c, p):
    with c.lock(p + "l", ttl=10) as lock:
        equal("held", lock.is_acquired(), True)
        lock.refresh()
        other = c.lock(p + "l", ttl=10)
        equal("not twice", other.acquire(timeout=0), False)
    equal("free", other.acquire(timeout=5), True)
    other.release()


@case
def upkeep(c, p):
    status = c.status()
    assert status.version.startswith("3."), status.version
    assert status.db_size > 0 and status.raft_index > 0 and status.raft_term > 0
    members = list(c.members)
    equal("members", len(members), 1)
    equal("leader", status.leader.id, members[0].id)
    equal("alarms", list(c.list_alarms()), [])
    assert isinstance(c.hash(), int)
    c.defragment()


@case
def errors(c, p):
    try:
        c.put("", "x")
        raise AssertionError("no error")
    except Exception as error:
        assert "etcdserver: key is not provided" in str(error), error


main(etcd3.client(host=sys.argv[1], port=int(sys.argv[2]), timeout=20))
