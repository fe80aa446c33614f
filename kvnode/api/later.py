"""RPCs of etcd's that this version does not serve: they say so, and those of Auth that have a true
answer while authentication is off give it.

A client that was given a user name asks Authenticate first; etcd refuses that while auth is off,
with a text by which clients go on without a token. AuthStatus says "off", and AuthDisable has
nothing to do.
"""

from __future__ import annotations

from kvnode.api.calls import Answer, Router, refuse_all, serve
from kvnode.api.errors import AUTH_NOT_ENABLED, not_yet
from kvnode.api.node import Node
from kvnode.api.service import SERVICES
from kvnode.proto import rpc_pb2 as rpcpb

_AUTH = "etcdserverpb.Auth"
_TRUE_WHILE_OFF = ("AuthStatus", "Authenticate", "AuthDisable")
_FIRST_AUTH_REVISION = 1

LATER: dict[str, str] = {
    **dict.fromkeys(
        [
            f"/etcdserverpb.Cluster/{name}"
            for name in ("MemberAdd", "MemberRemove", "MemberUpdate", "MemberPromote")
        ],
        "changes of members",
    ),
    "/etcdserverpb.Maintenance/Snapshot": "snapshots over the network",
    "/etcdserverpb.Maintenance/MoveLeader": "a change of leader by request",
    "/etcdserverpb.Maintenance/Downgrade": "downgrades",
    **{
        rpc.path: "users, roles and permissions"
        for rpc in SERVICES[_AUTH]
        if rpc.name not in _TRUE_WHILE_OFF
    },
    **{rpc.path: "the lock service" for rpc in SERVICES["v3lockpb.Lock"]},
    **{rpc.path: "the election service" for rpc in SERVICES["v3electionpb.Election"]},
}
"""What each path stands for, in the text that its callers get."""


def attach(router: Router, node: Node) -> None:
    """Registers them all."""
    for path, what in LATER.items():
        refuse_all(router, path, not_yet(what))

    def authenticate(request: rpcpb.AuthenticateRequest, answer: Answer) -> None:
        answer.refuse(AUTH_NOT_ENABLED)

    def status(request: rpcpb.AuthStatusRequest, answer: Answer) -> None:
        answer.end(
            rpcpb.AuthStatusResponse(
                header=node.header(), enabled=False, authRevision=_FIRST_AUTH_REVISION
            )
        )

    def disable(request: rpcpb.AuthDisableRequest, answer: Answer) -> None:
        answer.end(rpcpb.AuthDisableResponse(header=node.header()))

    serve(router, f"/{_AUTH}/Authenticate", authenticate)
    serve(router, f"/{_AUTH}/AuthStatus", status)
    serve(router, f"/{_AUTH}/AuthDisable", disable)
