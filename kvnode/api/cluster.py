"""etcdserverpb.Cluster: MemberList. Changes of members come later (see `later`)."""

from __future__ import annotations

from kvnode.api.calls import Answer, Router, serve
from kvnode.api.errors import refusal
from kvnode.api.node import Node
from kvnode.base.codes import Code
from kvnode.proto import rpc_pb2 as rpcpb


def members_of(node: Node) -> list[rpcpb.Member]:
    """The members of the cluster."""
    config = node.config
    return [
        rpcpb.Member(
            ID=node.member_id,
            name=config.name,
            peerURLs=config.cluster_members()[config.name],
            clientURLs=config.advertise_client_urls,
            isLearner=False,
        )
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
