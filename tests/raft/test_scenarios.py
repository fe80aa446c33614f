"""Directed scenarios for what random lives seldom hit; `cluster` checks while they are played.

Each is a script (see `scripts`) that ends well only if a rule of Raft is kept: it is built so that
breaking the rule makes two leaders in a term, two entries at an index, or a stale read.
"""

from __future__ import annotations

import pytest

from tests.raft.scripts import Script
from tests.raft.test_scripts import play_lines

SCENARIOS: dict[str, str] = {
    # Member 2 votes for 1, crashes, and is asked by 3 in the same term.
    "vote survives a crash": """
        cluster 3 pre_vote=False check_quorum=False
        settle
        campaign 1 / ready 1 / persist 1 / drop 1->3
        deliver 1->2 / ready 2 / persist 2 / crash 2 / restart 2
        campaign 3 / ready 3 / persist 3 / drop 3->1
        deliver 3->2 / ready 2 / persist 2
        deliver 2->3 / ready 3 / deliver 2->1 / ready 1
    """,
    # The leader sent an entry, one of two followers has it, and the leader's write is lost.
    "own entry counts when durable": """
        cluster 3
        settle
        campaign 1 / settle
        propose 1 a / ready 1 / drop 1->3
        deliver 1->2 / ready 2 / persist 2 / deliver 2->1 / ready 1
        deliver 1->2 / settle-one 2
        crash 1 / restart 1 / cut 2 1 / cut 2 3
        tick 3 10 / campaign 3 / settle
        propose 3 b / settle
    """,
    # A leader with a lease is cut off; the others elect, write and apply.
    "a lease ends before the followers' promise": """
        cluster 3 read_lease=True
        settle
        tick 1 10 / tick 2 10 / tick 3 10
        campaign 1 / settle / tick 1 / settle
        cut 1 2 / cut 1 3
        tick 1 9 / tick 2 11 / tick 3 11
        campaign 2 / settle / propose 2 x / settle
        read 1 r / ready 1
    """,
    # Two of the old voters don't know that a joint phase began; they may still elect one of them.
    "a joint phase needs both halves": """
        cluster 3
        settle
        campaign 1 / settle
        joiner 4 / joiner 5
        change 1 +4 +5 -2 -3
        ready 1 / persist 1 / deliver / ready 2 / persist 2 / ready 3 / persist 3 / deliver
        cut 1 2 / cut 1 3 / cut 4 2 / cut 4 3 / cut 5 2 / cut 5 3
        settle / tick 1 / settle / propose 1 new / settle
        tick 2 20 / tick 3 11 / campaign 2 / settle / propose 2 old / settle
    """,
    # A new leader counts copies of an older term's entry, which a third one may still replace.
    "an older term's entry does not commit by copies": """
        cluster 5 pre_vote=False check_quorum=False
        settle
        campaign 1 / settle
        propose 1 a / ready 1 / persist 1 / deliver 1->2 / drop / ready 2 / persist 2 / drop
        crash 1 / crash 2
        campaign 5 / settle
        cut 5 3 / cut 5 4 / propose 5 b / settle / crash 5 / heal
        restart 1 / restart 2
        campaign 1 / settle
        status
    """,
    # A member that acknowledged nothing yet crashes with entries that it had only in memory.
    "a request for votes waits for the vote": """
        cluster 3 pre_vote=False check_quorum=False
        settle
        campaign 1 / settle
        propose 1 a / ready 1 / persist 1 / deliver / ready 2 / persist 2 / deliver 2->1 / ready 1
        deliver 1->2 / settle-one 2 / settle-one 1 / drop
        ready 3 / campaign 3 / ready 3 / deliver 3->2 / settle-one 2
        crash 3 / restart 3 / crash 1
        campaign 3 / ready 3 / persist 3 / deliver 2->3 / ready 3 / persist 3
        deliver / settle
    """,
    # An entry is replaced while its write is under way; that write says nothing about the new one.
    "a replaced entry's write does not vouch for the new one": """
        cluster 5 pre_vote=False check_quorum=False
        settle
        campaign 1 / settle
        propose 1 a / ready 1 / deliver 1->3 / ready 3 / drop / crash 1
        campaign 2 / ready 2 / persist 2 / deliver 2->4 / deliver 2->5 / drop
        settle-one 4 / settle-one 5 / deliver / tick 2 / ready 2
        copy 2->3 append / deliver 2->3 heartbeat / ready 3 / deliver 2->3 append 1 / ready 3
        persist 3 2 / deliver 2->3 append / ready 3
    """,
}


def play(text: str) -> None:
    """Run a scenario; a failed check raises."""
    lines = [line for row in text.strip().splitlines() for line in row.split("/")]
    play_lines(Script(), lines)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str) -> None:
    play(SCENARIOS[name])
