"""The same HTTP/1.1 requests to kvnode and to a real etcd 3.7.1, answers compared.

Compared are the status, the content type, what else etcd says in headers, and the body: as JSON
where it is JSON, with ids, indexes and sizes that are each server's own taken out, else byte for
byte.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import etcd
from tests.support.etcd import Etcd
from tests.support.node import Node

HEADERS = (
    "content-type", "allow", "access-control-allow-origin", "access-control-allow-methods",
    "access-control-allow-headers", "x-content-type-options", "grpc-metadata-content-type",
    "location",
)
OWN = frozenset({"cluster_id", "member_id", "raft_term", "ID"})
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Ports of kvnode and of etcd, both empty at the module's start."""
    if etcd.find("etcd") is None:
        pytest.skip(etcd.why_missing())
    folder: Path = tmp_path_factory.mktemp("http")
    node, peer = Node(folder / "kvnode"), Etcd(folder / "etcd")
    node.start()
    peer.start()
    yield node.port, peer.port
    node.stop()
    peer.stop()
    node.fsck()


def ask(
    port: int, method: str, target: str, body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        kept = {n: v for n in HEADERS if (v := response.headers.get(n)) is not None}
        return response.status, kept, response.read()
    finally:
        connection.close()


def plain(value: Any) -> Any:
    """Without what is each server's own."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in OWN}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str) and value.startswith("proto:"):
        # etcd's says where in the body, with a space or two as its build chose.
        words = value.replace("\xa0", " ").split(" ")
        if "(line" in words:
            at = words.index("(line")
            del words[at : at + 2]
            words[at - 1] = words[at - 1].rstrip(":") + ":"
        return " ".join(filter(None, words))
    return value


def body_of(answer: Answer) -> Any:
    _, headers, raw = answer
    if headers.get("content-type") == "application/json":
        return [plain(json.loads(line)) for line in raw.splitlines() if line]
    return raw


def same(servers: tuple[int, int], method: str, target: str, body: str | None = None,
         **headers: str) -> None:
    """Both answer alike."""
    raw = None if body is None else body.encode()
    ours, theirs = (ask(port, method, target, raw, headers) for port in servers)
    said = f"{method} {target} {body}\n{ours}\n{theirs}"
    assert ours[0] == theirs[0], said
    assert ours[1] == theirs[1], said
    assert body_of(ours) == body_of(theirs), said


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT", "OPTIONS"])
@pytest.mark.parametrize(
    "target",
    [
        "/health", "/health?serializable=true", "/health?exclude=NOSPACE", "/version", "/livez",
        "/livez?verbose", "/livez/serializable_read", "/livez/serializable_read?verbose",
        "/livez/nope", "/livez/", "/readyz", "/readyz?exclude=nope", "/readyz/data_corruption",
        "/readyz/serializable_read", "/readyz/linearizable_read?verbose", "/readyz/non_learner",
        "/readyz?exclude=serializable_read&exclude=linearizable_read&exclude=non_learner&verbose",
        "/nope", "/", "/v2/keys", "/v3", "/v3/", "/v3/nope", "/v3/kv/put/", "//health", "/a/../b",
        "/v3//kv/put", "/health/", "/v3/kv/lease/grant", "/v3/kv/rangestream",
    ],
)  # fmt: skip
def test_pages(servers: tuple[int, int], method: str, target: str) -> None:
    same(servers, method, target)


def test_readyz_lists_the_same_checks(servers: tuple[int, int]) -> None:
    ours, theirs = (ask(port, "GET", "/readyz?verbose") for port in servers)
    assert ours[:2] == theirs[:2]
    # etcd's order is a Go map's.
    assert sorted(ours[2].splitlines()) == sorted(theirs[2].splitlines())


def test_a_tour(servers: tuple[int, int]) -> None:
    """Writes, reads, transactions, compaction; then leases. One history on both."""
    for path, body in (
        ("kv/put", '{"key":"Zm9v","value":"YmFy"}'),
        ("kv/put", '{"key":"Zm9v","value":"YmF6","prev_kv":true}'),
        ("kv/put", '{"key":"_-8","value":"/+8"}'),
        ("kv/put", '{"key":"Zg","unknown":[1,{"a":2}]} rest'),
        ("kv/put", '{"key":"Zm9v","lease":"123"}'),
        ("kv/put", '{"key":"Zm9v","lease":1e2}'),
        ("kv/put", '{"key":"Zm9v","ignore_value":true,"prevKv":true}'),
        ("kv/put", '{"key":"Zm9v","value":"YQ==","ignore_value":true}'),
        ("kv/range", '{"key":"Zm9v"}'),
        ("kv/range", '{"key":"AA==","range_end":"AA=="}'),
        ("kv/range", '{"key":"AA==","rangeEnd":"AA==","limit":"1","sort_order":"DESCEND"}'),
        ("kv/range", '{"key":"AA==","range_end":"AA==","sort_order":2,"sort_target":"VALUE"}'),
        ("kv/range", '{"key":"AA==","range_end":"AA==","sort_order":"nope"}'),
        ("kv/range", '{"key":"AA==","range_end":"AA==","sort_order":77}'),
        ("kv/range", '{"key":"AA==","range_end":"AA==","count_only":true}'),
        ("kv/range", '{"key":"AA==","range_end":"AA==","keys_only":true}'),
        ("kv/range", '{"key":"Zm9v","revision":"2"}'),
        ("kv/range", '{"key":"Zm9v","revision":"100"}'),
        ("kv/range", '{"key":"bm9uZQ=="}'),
        ("kv/range", "{}"),
        ("kv/range", ""),
        ("kv/txn", '{"compare":[{"result":"EQUAL","target":"VERSION","key":"Zm9v","version":"3"}],'
         '"success":[{"request_put":{"key":"YQ==","value":"YQ=="}},'
         '{"requestRange":{"key":"YQ=="}}],"failure":[{"request_range":{"key":"Zm9v"}},'
         '{"request_delete_range":{"key":"YQ=="}}]}'),
        ("kv/txn", '{"success":[{"request_put":{"key":"YQ==","value":"YQ==","prev_kv":true}},'
         '{"request_txn":{"success":[{"request_range":{"key":"YQ=="}}]}},'
         '{"request_delete_range":{"key":"Zg==","prev_kv":true}}]}'),
        ("kv/txn", '{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}'),
        ("kv/txn", '{"success":[{"request_put":{},"requestRange":{}}]}'),
        ("kv/txn", "{}"),
        ("kv/deleterange", '{"key":"YQ==","prev_kv":true}'),
        ("kv/deleterange", '{"key":"YQ=="}'),
        ("kv/compaction", '{"revision":"3"}'),
        ("kv/compaction", '{"revision":"3"}'),
        ("kv/compaction", '{"revision":"300"}'),
        ("kv/compaction", '{"revision":"4","physical":true}'),
        ("kv/range", '{"key":"Zm9v","revision":2}'),
        ("lease/grant", '{"TTL":"100","ID":"77"}'),
        ("lease/grant", '{"TTL":100,"ID":77}'),
        ("lease/grant", '{"TTL":"9000000001","ID":"78"}'),
        ("lease/grant", '{"ttl":"100","ID":"79"}'),
        ("kv/put", '{"key":"bGVhc2Vk","value":"YQ==","lease":"77"}'),
        ("kv/range", '{"key":"bGVhc2Vk"}'),
        ("lease/revoke", '{"ID":"77"}'),
        ("kv/lease/revoke", '{"ID":"77"}'),
        ("kv/range", '{"key":"bGVhc2Vk"}'),
        ("maintenance/alarm", "{}"),
        ("maintenance/defragment", "{}"),
        ("auth/authenticate", '{"name":"a","password":"b"}'),
    ):  # fmt: skip
        same(servers, "POST", f"/v3/{path}", body)
        if path == "kv/range":
            same(servers, "POST", f"/v3beta/{path}", body)


@pytest.mark.parametrize(
    "body",
    [
        '{"key":"a"}', '{"key":"Zm9v!"}', '{"key":5}', '{"key":true}', '{"key":"Zg="}',
        '{"key":"Z g="}', '{"key":null}', '{"key":"Zm9v","prev_kv":"true"}', "[]", "x", '"a"',
        "null", '{"key":"Zm9v","key":"Zm9v"}', '{"lease":"x"}', '{"lease":1.5}', '{"lease":" 1"}',
        '{"lease":"99999999999999999999"}', '{key:"a"}', "{'key':'a'}", '{"key":"Zm9v",}',
        '{"a":NaN}', '{"key":"Zm9v"', " ", "5", '{"value":{}}', '{"key":[]}', '{"a":[1 2]}',
        '{"a" 1}', "{]", '{"prev_kv":1}', '{"lease":true}', '{"lease":{}}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_put(servers: tuple[int, int], body: str) -> None:
    same(servers, "POST", "/v3/kv/put", body)


def test_methods_and_timeouts(servers: tuple[int, int]) -> None:
    for method in ("GET", "PUT", "DELETE", "HEAD", "OPTIONS"):
        same(servers, method, "/v3/kv/put", "{}" if method == "PUT" else None)
    same(servers, "POST", "/v3/kv/range", '{"key":"Zm9v"}', **{"Grpc-Timeout": "x"})
    same(servers, "POST", "/v3/kv/range", '{"key":"Zm9v"}', **{"Grpc-Timeout": "1n"})
    same(servers, "POST", "/v3/kv/range", '{"key":"Zm9v"}', Accept="text/html")
    same(servers, "GET", "/version", Origin="http://elsewhere")


def lines(port: int, target: str, body: str, count: int) -> tuple[int, dict[str, str], list[Any]]:
    """The first `count` lines of a stream."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", target, body.encode())
        response = connection.getresponse()
        kept = {n: v for n in HEADERS if (v := response.headers.get(n)) is not None}
        assert response.headers.get("transfer-encoding") == "chunked"
        return response.status, kept, [plain(json.loads(response.readline())) for _ in range(count)]
    finally:
        connection.close()


def test_watches(servers: tuple[int, int]) -> None:
    for body in (
        '{"key":"dzE=","value":"YQ=="}', '{"key":"dzE=","value":"Yg=="}', '{"key":"dzI="}',
    ):
        same(servers, "POST", "/v3/kv/put", body)
    same(servers, "POST", "/v3/kv/deleterange", '{"key":"dzE="}')
    revision = json.loads(ask(servers[0], "POST", "/v3/kv/range", b'{"key":"dzI="}')[2])
    first = int(revision["kvs"][0]["mod_revision"]) - 2
    for body, count in (
        (f'{{"create_request":{{"key":"dzE=","start_revision":"{first}"}}}}', 2),
        (f'{{"create_request":{{"key":"dw==","range_end":"eA==","start_revision":{first},'
         '"prev_kv":true,"watch_id":"7"}}', 2),
        (f'{{"create_request":{{"key":"dzE=","start_revision":"{first}",'
         '"filters":["NOPUT"]}}', 2),
        ('{"create_request":{"key":"dzE=","start_revision":"1"}}', 2),
        ('{"create_request":{"key":"dzE="}}{"create_request":{"key":"dzI=","watch_id":9}}', 2),
    ):
        ours, theirs = (lines(port, "/v3/watch", body, count) for port in servers)
        assert ours == theirs, body


def test_keep_alives_in_one_request(servers: tuple[int, int]) -> None:
    same(servers, "POST", "/v3/lease/grant", '{"TTL":"60","ID":"500"}')
    same(servers, "POST", "/v3/lease/keepalive", '{"ID":"500"}')
    same(servers, "POST", "/v3/lease/keepalive", '{"ID":"500"}{"ID":501}')
    same(servers, "POST", "/v3/lease/keepalive", '{"ID":"500"} x')
    same(servers, "POST", "/v3/lease/keepalive", "")


def test_members_as_the_peer_port_tells_them(servers: tuple[int, int]) -> None:
    status, headers, raw = ask(servers[0], "GET", "/members")
    assert (status, headers["content-type"]) == (200, "application/json")
    (member,) = json.loads(raw)
    assert set(member) == {"id", "peerURLs", "name", "clientURLs"}
    assert ask(servers[0], "POST", "/members")[0] == 405


def test_variables_have_etcd_s_names(servers: tuple[int, int]) -> None:
    ours, theirs = (ask(port, "GET", "/debug/vars") for port in servers)
    assert ours[:2] == theirs[:2]
    mine, other = json.loads(ours[2]), json.loads(theirs[2])
    assert set(mine) == set(other)
    assert set(mine["raft.status"]) == set(other["raft.status"])
    assert mine["raft.status"]["raftState"] == other["raft.status"]["raftState"]
