"""When the node asks, through the log, for the NOSPACE alarm and for its end.

Role: consensus hears from the applier how many bytes of the map are live and whether the alarm
stands, and proposes its change; every member then applies it at the same place in the log. The
decision itself is `state/quota`'s.
Caller: procs/consensus on the leader.
"""

from __future__ import annotations

from kvnode._core.envelope import build_batch
from kvnode.base.codes import Kind
from kvnode.state.quota import wanted_alarm


class SpaceWatch:
    """Remembers what it asked for, so that one crossing is one proposal a term.

    Nothing that was in the state before counts as asked for, so a start proposes only a change.
    """

    def __init__(self, quota_bytes: int, member: int) -> None:
        self.quota_bytes = quota_bytes
        self.member = member
        self.asked: tuple[bool, int] | None = None

    def on_used(self, used_bytes: int, raised: bool, term: int) -> bytes | None:
        """A batch to propose when the alarm is to change, else None.

        raised: whether this member's alarm stands. In another term what was asked for may be
        lost, so it is asked for again.
        """
        want = wanted_alarm(used_bytes, self.quota_bytes, raised)
        if want is None:
            self.asked = None
            return None
        if self.asked == (want, term):
            return None
        self.asked = (want, term)
        from kvnode.proto import rpc_pb2 as rpcpb  # 11 ms of a start, for what hardly ever happens

        action = rpcpb.AlarmRequest.ACTIVATE if want else rpcpb.AlarmRequest.DEACTIVATE
        body = rpcpb.AlarmRequest(
            action=action, memberID=self.member, alarm=rpcpb.NOSPACE
        ).SerializeToString()
        return build_batch([{"requests": [(int(Kind.ALARM), body)]}])

    def forget(self) -> None:
        """What was asked for was not taken: the next report asks again."""
        self.asked = None
