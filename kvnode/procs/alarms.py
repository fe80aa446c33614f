"""When the node asks, through the log, for the NOSPACE alarm and for its end.

Role: consensus hears from the applier how many bytes of the map are live, and proposes the alarm's
change; every member then applies it at the same place in the log.
Caller: procs/consensus on the leader.
"""

from __future__ import annotations

from kvnode._core.envelope import build_batch
from kvnode.base.codes import Kind
from kvnode.base.limits import QUOTA_CLEAR_PART


class SpaceWatch:
    """Remembers what was proposed last, so that one crossing is one proposal."""

    def __init__(self, quota_bytes: int, member: int) -> None:
        self.quota_bytes = quota_bytes
        self.member = member
        self.asked: bool | None = None

    def on_used(self, used_bytes: int) -> bytes | None:
        """A batch to propose when the live bytes crossed the quota or fell well below it.

        The gap between the two keeps a store at its limit from flapping.
        """
        if used_bytes >= self.quota_bytes:
            want = True
        elif used_bytes < self.quota_bytes * QUOTA_CLEAR_PART:
            want = False
        else:
            return None
        if want == self.asked:
            return None
        self.asked = want
        from kvnode.proto import rpc_pb2 as rpcpb  # 11 ms of a start, for what hardly ever happens

        action = rpcpb.AlarmRequest.ACTIVATE if want else rpcpb.AlarmRequest.DEACTIVATE
        body = rpcpb.AlarmRequest(
            action=action, memberID=self.member, alarm=rpcpb.NOSPACE
        ).SerializeToString()
        return build_batch([self._group(body)])

    def _group(self, body: bytes) -> dict:  # type: ignore[type-arg]
        return {"requests": [(int(Kind.ALARM), body)]}
