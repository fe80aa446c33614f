"""A whole cluster in one process, from one seed: production Raft, log, state machine and sessions.

Reading order: world (time, network), member (one node), clients, checks, simulation (faults and
the run), bugs. `python -m tests.sim --seed 7` replays a seed exactly.
"""
