"""etcdserverpb.Cluster: MemberList. Changes of members come later (see `later`)."""

from __future__ import annotations

from kvnode.api.calls import Answer, Router, serve
from kvnode.api.errors import refusal
from kvnode.api.node import Node
from kvnode.base.codes import Code
from kvnode.proto import rpc_pb2 as rpcpb


def members_of(node: Node) -> list[rpcpb.Member]:
    """The members of the cluster."""
    return [
        rpcpb.Member(
            ID=number,
            name=name,
            peerURLs=urls,
            # The others' are not known here.
            clientURLs=node.config.advertise_client_urls if number == node.member_id else (),
            isLearner=False,
        )
        for number, name, urls in node.founders
    ]


class Cluster:
    """The handlers, over one node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def attach(self, router: Router) -> None:
        """Registers them."""
        serve(router, "/etcdserverpb.Cluster/MemberList", self.member_list)

    def member_list(self, request: rpcpb.MemberListRequest, answer: Answer) -> None:
        """With `linearizable` only a member that a quorum follows answers.

        The header has no revision, as etcd's has none here.
        """

        def done(code: int) -> None:
            if code != Code.OK:
                answer.refuse(refusal(code))
                return
            header = self.node.header()
            header.ClearField("revision")
            answer.end(rpcpb.MemberListResponse(header=header, members=members_of(self.node)))

        if request.linearizable:
            self.node.barrier(done)
        else:
            done(Code.OK)
