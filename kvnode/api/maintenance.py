"""etcdserverpb.Maintenance: Status, Alarm, Defragment, Hash, HashKV.

Where etcd's answer has a header and where not, and which of its fields are filled, is etcd 3.7's.
Absent: Snapshot, MoveLeader, Downgrade (see `later`).
"""

from __future__ import annotations

from kvnode.api.calls import Answer, Router, serve
from kvnode.api.errors import Refused, refusal
from kvnode.api.node import HashOfKeys, Node
from kvnode.base.codes import Code, Grpc, Kind
from kvnode.base.versions import ETCD_STORAGE_VERSION, ETCD_VERSION
from kvnode.proto import rpc_pb2 as rpcpb

NO_LEADER = "etcdserver: no leader"


def alarm_text(alarm: int, member: int) -> str:
    """An alarm as etcd's Status names it (Go's text form of AlarmMember)."""
    known = rpcpb.AlarmType.DESCRIPTOR.values_by_number.get(alarm)
    return f"memberID:{member}  alarm:{known.name if known else alarm}"


def status_of(node: Node, version: str = ETCD_VERSION) -> rpcpb.StatusResponse:
    """Status of this member. `version`: what the door that asks calls this program."""
    # The header first: it waits until what was answered before is in the map.
    header = node.header()
    facts = node.facts()
    errors = [] if facts.leader else [NO_LEADER]
    errors += [alarm_text(*alarm) for alarm in facts.alarms]
    return rpcpb.StatusResponse(
        header=header,
        version=version,
        dbSize=facts.db_bytes,
        leader=facts.leader,
        raftIndex=facts.committed_index,
        raftTerm=facts.term,
        raftAppliedIndex=facts.applied_index,
        errors=[*errors, *facts.troubles],
        dbSizeInUse=facts.db_used_bytes,
        isLearner=False,
        storageVersion=ETCD_STORAGE_VERSION,
        dbSizeQuota=facts.quota_bytes,
        downgradeInfo=rpcpb.DowngradeInfo(enabled=False),
    )


class Maintenance:
    """The handlers, over one node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def attach(self, router: Router) -> None:
        """Registers them."""
        service = "/etcdserverpb.Maintenance/"
        serve(router, service + "Status", self.status)
        serve(router, service + "Alarm", self.alarm)
        serve(router, service + "Defragment", self.defragment)
        serve(router, service + "Hash", self.hash)
        serve(router, service + "HashKV", self.hash_kv)

    def status(self, request: rpcpb.StatusRequest, answer: Answer) -> None:
        """What this member is and how far it is; not linearizable, as etcd's."""
        answer.end(status_of(self.node))

    def alarm(self, request: rpcpb.AlarmRequest, answer: Answer) -> None:
        """Reads, sets or clears alarms, each through the log."""
        if request.action not in rpcpb.AlarmRequest.AlarmAction.values():
            # etcd 3.7 ends its process here; a client's number is the client's fault.
            raise Refused(Grpc.INVALID_ARGUMENT, "kvnode: unknown alarm action")
        self.node.propose(Kind.ALARM, request.SerializeToString(), answer.settle)

    def defragment(self, request: rpcpb.DefragmentRequest, answer: Answer) -> None:
        """Answers when the compact map is in use. etcd's response has no header."""

        def done(code: int, detail: bytes) -> None:
            if code != Code.OK:
                answer.refuse(refusal(code, detail))
            else:
                answer.end(rpcpb.DefragmentResponse())

        self.node.defragment(done)

    def hash(self, request: rpcpb.HashRequest, answer: Answer) -> None:
        """A CRC over everything stored: comparable between members, not with etcd's."""

        def done(code: int, found: HashOfKeys | None) -> None:
            if found is None:
                answer.refuse(refusal(code))
                return
            header = self.node.header()
            header.revision = found.current_revision
            answer.end(rpcpb.HashResponse(header=header, hash=found.crc))

        self.node.hash_keys(0, True, done)

    def hash_kv(self, request: rpcpb.HashKVRequest, answer: Answer) -> None:
        """etcd's CRC over the history up to a revision: equal to etcd's for an equal history."""

        def done(code: int, found: HashOfKeys | None) -> None:
            if found is None:
                answer.refuse(refusal(code))
                return
            header = self.node.header()
            header.revision = found.current_revision
            answer.end(
                rpcpb.HashKVResponse(
                    header=header,
                    hash=found.crc,
                    compact_revision=found.compact_revision,
                    hash_revision=found.revision,
                )
            )

        self.node.hash_keys(request.revision, False, done)
