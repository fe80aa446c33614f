"""Bugs put in on purpose: the simulator must catch each. A table says which check caught which.

Bugs that need a rarer order of events than some dozens of seeds bring are caught by the directed
scenarios of tests/raft instead (reads by an older round, overlapping writes, joint quorums).

`python -m tests.sim.bugs` prints bug, seeds needed, and the first words of the check.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from kvnode._core import machine
from kvnode._core.memstore import MemStore
from kvnode._core.storetxn import TREE_SESSIONS
from kvnode.base.ids import Index
from kvnode.raft import ENTRY_NORMAL, Entry
from kvnode.raft.log import RaftLog
from kvnode.wal.log import Log
from tests.raft import test_seeded_bugs as raft_bugs
from tests.sim import member as members
from tests.sim.member import Member
from tests.sim.simulation import Simulation

Patch = pytest.MonkeyPatch
SEEDS_MAX = 100


def vote_not_persisted(patch: Patch) -> None:
    keep = Log.save_hard_state

    def save(log: Log, term: int, vote: int, commit: int) -> None:
        keep(log, term, log.state.vote if log.state.term == term else 0, commit)

    patch.setattr(Log, "save_hard_state", save)


def term_not_persisted(patch: Patch) -> None:
    keep = Log.save_hard_state
    patch.setattr(Log, "save_hard_state",
                  lambda log, term, vote, commit: keep(log, log.state.term or 1, vote, commit))


def applied_before_commit(patch: Patch) -> None:
    keep = RaftLog.take_appliable

    def take(log: RaftLog) -> object:
        committed = log.committed
        log.committed = log.persisted
        span = keep(log)
        log.committed = committed
        return span

    def ready(node: members.Node) -> object:
        log = node.log
        committed = log.committed
        log.committed = max(log.persisted, committed)
        made = keep_ready(node)
        log.committed = min(committed, log.last_index)
        return made

    keep_ready = members.Node.ready
    patch.setattr(RaftLog, "take_appliable", take)
    patch.setattr(members.Node, "ready", ready)


def configuration_lost_on_restart(patch: Patch) -> None:
    keep = Log.save_configuration

    def save(log: Log, configuration: bytes, index: int) -> None:
        if index <= 1:
            keep(log, configuration, index)

    patch.setattr(Log, "save_configuration", save)


def sessions_forgotten_in_a_snapshot(patch: Patch) -> None:
    keep = Member.install

    def install(member: Member, generation: MemStore) -> None:
        bare = generation.clone()
        with bare.begin_write() as txn:
            for key, _ in list(txn.items(TREE_SESSIONS)):
                txn.delete(TREE_SESSIONS, key)
            txn.commit()
        keep(member, bare)

    patch.setattr(Member, "install", install)


def window_switched_off(patch: Patch) -> None:
    keep = machine.Machine
    patch.setattr(members, "Machine", lambda *args: keep(*args, window=False))


def log_cut_above_the_checkpoint(patch: Patch) -> None:
    keep = Member.checkpoint

    def checkpoint(member: Member) -> None:
        saved = member.saved
        keep(member)
        member.saved = saved

    patch.setattr(Member, "checkpoint", checkpoint)


def replaced_entry_applied(patch: Patch) -> None:
    """An entry seen before at its index is applied, though another replaced it in the log."""
    held: dict[tuple[int, int], Entry] = {}
    keep = Log.append
    keep_entries = Log.entries

    def append(log: Log, entries: list[Entry]) -> None:
        for entry in entries:
            held.setdefault((id(log), entry[0]), Entry(*entry))
        keep(log, entries)

    def entries(log: Log, lo: int, hi: int, bytes_max: int) -> list[object]:
        out = keep_entries(log, lo, hi, bytes_max)
        return [
            held.get((id(log), e[0]), e) if e[2] == ENTRY_NORMAL else e for e in out
        ]

    patch.setattr(Log, "append", append)
    patch.setattr(Log, "entries", entries)


def commit_index_ahead_of_the_log(patch: Patch) -> None:
    """A follower believes a heartbeat's commit index beyond what it is known to have."""
    keep = RaftLog.commit_to
    patch.setattr(RaftLog, "commit_to",
                  lambda log, index: keep(log, Index(max(index, log.last_index))))


BUGS: list[Callable[[Patch], None]] = [
    vote_not_persisted,
    term_not_persisted,
    applied_before_commit,
    configuration_lost_on_restart,
    sessions_forgotten_in_a_snapshot,
    window_switched_off,
    log_cut_above_the_checkpoint,
    replaced_entry_applied,
    commit_index_ahead_of_the_log,
    raft_bugs.promises_before_the_sync,
    raft_bugs.applied_before_durable,
    raft_bugs.old_term_committed,
    raft_bugs.vote_for_an_older_log,
    raft_bugs.two_votes_a_term,
    raft_bugs.one_vote_short,
    raft_bugs.read_before_the_term_commits,
    raft_bugs.conflict_not_truncated,
]


def hunt(bug: Callable[[Patch], None], seeds: int = SEEDS_MAX) -> tuple[int, str] | None:
    """(seeds run, what the check said) with the bug put in; None if no seed caught it."""
    with pytest.MonkeyPatch.context() as patch:
        bug(patch)
        for seed in range(seeds):
            try:
                Simulation(seed).run()
            except Exception as error:
                text = str(error).splitlines()[0] if str(error) else ""
                return seed + 1, f"{type(error).__name__}: {text[:110]}"
    return None


def main() -> int:
    """Prints the table; 1 if a bug got away."""
    away = 0
    for bug in BUGS:
        found = hunt(bug)
        seeds, text = found or (SEEDS_MAX, "NOT CAUGHT")
        away += found is None
        print(f"| {bug.__name__.replace('_', ' ')} | {seeds} | {text} |", flush=True)
    return 1 if away else 0


if __name__ == "__main__":
    sys.exit(main())
