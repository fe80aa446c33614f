"""Elections: campaigning, voting, counting, giving leadership away.

Caller: `node`. Own votes count only when they are durable (R3), so even a sole voter leads one
`on_persisted` after `campaign`. With pre-vote a member first asks whether it could win: nobody's
term moves because of a member that was cut off. A member that heard from its leader within the
last election timeout ignores both kinds of requests (check-quorum's other half, and the promise
that lease reads stand on), unless the leader itself asked for the election.

Configurations take force at their commit, so whether a member knows of a commit may decide whether
it can win: a member that needs the vote of one who was just demoted, and whose log is longer, would
ask in vain for ever. Requests and refusals therefore carry an entry known to be committed; whoever
has that entry in its log knows it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvnode.base.ids import MemberID, Term
from kvnode.raft import replication
from kvnode.raft.progress import REPLICATE, SNAPSHOT
from kvnode.raft.quorum import VoteResult, joint_votes
from kvnode.raft.types import (
    CONTEXT_TRANSFER,
    NO_MEMBER,
    PRE_VOTE,
    PRE_VOTE_RESPONSE,
    TIMEOUT_NOW,
    VOTE,
    VOTE_RESPONSE,
    Message,
    Role,
)

if TYPE_CHECKING:
    from kvnode.raft.state import Raft


def maybe_campaign(r: Raft) -> bool:
    """Start an election if this member may; a sole voter needs nobody's opinion first."""
    if r.role == Role.LEADER or not r.promotable():
        return False
    if r.config.pre_vote and not r.sole:
        _pre_campaign(r)
    else:
        campaign(r, transfer=False)
    return True


def _pre_campaign(r: Raft) -> None:
    r.become_pre_candidate()
    _ask_all(r, PRE_VOTE, Term(r.term + 1), context=0)
    _count(r, r.id, granted=True)


def campaign(r: Raft, transfer: bool) -> None:
    """Ask for votes in a new term; the requests leave when term and own vote are durable (R5)."""
    r.become_candidate()
    _ask_all(r, VOTE, r.term, CONTEXT_TRANSFER if transfer else 0)


def _ask_all(r: Raft, kind: int, term: Term, context: int) -> None:
    queue = r.messages_after_persist if kind == VOTE else r.messages
    index, log_term, commit = r.log.last_index, r.log.last_term, r.log.committed
    commit_term = r.log.term(commit)
    for member in r.configuration.all_voters():
        if member != r.id:
            queue.append(
                Message(
                    kind, member, r.id, term, index, log_term, commit,
                    context=context, commit_term=commit_term,
                )
            )


def refuse_vote(r: Raft, message: Message) -> None:
    """Answer no, in the own term, and say what is committed."""
    kind = PRE_VOTE_RESPONSE if message.type == PRE_VOTE else VOTE_RESPONSE
    commit = r.log.committed
    r.send(
        Message(
            kind, message.sender, r.id, r.term,
            commit=commit, reject=True, commit_term=r.log.term(commit),
        )
    )


def learn_commit(r: Raft, message: Message) -> None:
    """A committed entry is committed whoever tells; matters only if it is in this log."""
    if message.commit > r.log.committed and r.log.matches(message.commit, message.commit_term):
        replication.commit_to(r, message.commit)


def on_vote_durable(r: Raft) -> None:
    """Term and vote reached the disk: a candidate's own vote counts from now on."""
    if r.role == Role.CANDIDATE and r.durable_term == r.term and r.durable_vote == r.id:
        _count(r, r.id, granted=True)


def on_vote_request(r: Raft, message: Message) -> None:
    """VOTE of this term, or PRE_VOTE of this or a later one.

    Learners answer too: a learner may have been promoted without knowing it yet, and its vote may
    be needed to elect the one who would tell it.
    """
    learn_commit(r, message)
    pre = message.type == PRE_VOTE
    may_vote = (
        r.vote == message.sender
        or (r.vote == NO_MEMBER and r.leader == NO_MEMBER)
        or (pre and message.term > r.term)
    )
    kind = PRE_VOTE_RESPONSE if pre else VOTE_RESPONSE
    if not may_vote or not r.log.is_up_to_date(message.index, message.log_term):
        refuse_vote(r, message)
        return
    # The term asked for, not the own one: the asker ignores answers to another campaign.
    answer = Message(kind, message.sender, r.id, message.term)
    if pre:
        r.send(answer)
        return
    assert r.vote in (NO_MEMBER, message.sender), "R1: one vote a term"
    r.vote = message.sender
    r.election_elapsed = 0
    r.send_after_persist(answer)


def on_vote_response(r: Raft, message: Message) -> None:
    """A vote for or against the campaign under way."""
    learn_commit(r, message)
    if r.role == Role.PRE_CANDIDATE:
        asked = Term(r.term + 1)
        expected = message.type == PRE_VOTE_RESPONSE and (message.reject or message.term == asked)
    else:
        expected = message.type == VOTE_RESPONSE
    if expected:
        _count(r, message.sender, granted=not message.reject)


def _count(r: Raft, member: MemberID, granted: bool) -> None:
    r.votes.setdefault(member, granted)
    result = joint_votes(r.configuration.voters, r.configuration.outgoing, r.votes)
    if result == VoteResult.LOST:
        r.become_follower(r.term, NO_MEMBER)
    elif result == VoteResult.WON and r.role == Role.PRE_CANDIDATE:
        campaign(r, transfer=False)
    elif result == VoteResult.WON and r.durable_term == r.term and r.durable_vote == r.id:
        r.become_leader()


def on_timeout_now(r: Raft) -> None:
    """The leader wants this member to lead: no pre-vote, and leases don't count."""
    if r.role == Role.FOLLOWER and r.promotable():
        campaign(r, transfer=True)


def send_timeout_now(r: Raft, member: MemberID) -> None:
    """Make `member` campaign at once."""
    r.timeout_now_sent = True
    r.send(Message(TIMEOUT_NOW, member, r.id, r.term))


def best_successor(r: Raft) -> MemberID:
    """The voter whose log is nearest to the leader's; 0 if nobody was heard from."""
    best = NO_MEMBER
    for member in r.configuration.voters:
        progress = r.progress.get(member)
        if progress is None or not progress.recent_active or progress.state == SNAPSHOT:
            continue
        if best == NO_MEMBER or progress.match > r.progress[best].match:
            best = member
    return best


def give_up_leadership(r: Raft) -> None:
    """Step down now; the best follower is asked to take over."""
    successor = best_successor(r)
    if successor != NO_MEMBER:
        send_timeout_now(r, successor)
    r.become_follower(r.term, NO_MEMBER)


def check_quorum(r: Raft) -> None:
    """Once an election timeout: a leader that a majority does not answer steps down."""
    votes = {member: progress.recent_active for member, progress in r.progress.items()}
    votes[r.id] = True
    if joint_votes(r.configuration.voters, r.configuration.outgoing, votes) != VoteResult.WON:
        r.become_follower(r.term, NO_MEMBER)
        return
    for progress in r.progress.values():
        if not progress.recent_active and progress.state == REPLICATE:
            progress.become_probe()   # nothing more is sent on trust, nor kept in memory for it
        progress.recent_active = False
