"""When the state machine's store is full, and when there is room again.

Role: the decision behind the NOSPACE alarm, which enters the state through the log. Pure: the
process that watches the live bytes asks, and proposes what comes back.
Caller: procs.

The gap between raising and clearing keeps a store at its limit from flapping: it is cleared only
when deletes and compaction brought the live bytes below QUOTA_CLEAR_PART of the quota.
"""

from __future__ import annotations

from kvnode.base.limits import QUOTA_CLEAR_PART

ALARM_NOSPACE = 1


def wanted_alarm(used_bytes: int, quota_bytes: int, raised: bool) -> bool | None:
    """Whether NOSPACE is to be raised (True) or cleared (False); None: leave it as it is.

    `raised`: whether this member's alarm is in the state. A quota of 0 means none.
    """
    if quota_bytes <= 0:
        return False if raised else None
    if not raised and used_bytes >= quota_bytes:
        return True
    if raised and used_bytes < quota_bytes * QUOTA_CLEAR_PART:
        return False
    return None
