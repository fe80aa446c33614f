# make run        sets up, then starts a node on loopback
# make test       sets up, then runs the tests
# make test-slow  the long ones: sanitizers, power cuts, 20,000 differential operations, kills
# make test-clients  the clients of other languages, on kvnode and on etcd alike
# make bench      the table of speed and memory beside etcd
# make bench-core the micro-benchmarks of kvnode/_core and of each stage of a put
# make sim        replays one seed of the simulated cluster: make sim SEED=7
# make sim-many   runs seeds for SECONDS (600) and prints what they went through
# make lint       the checks of the house, which `make test` runs too
.PHONY: setup run test test-slow test-clients bench bench-core sim sim-many lint data-rewrite clean

VENV := .venv
PY := $(VENV)/bin/python

setup:
	@sh tools/setup.sh

run: setup
	@exec $(VENV)/bin/kvnode serve $(ARGS)

lint: setup
	@$(PY) tools/checks.py

test: setup
	@$(PY) -m pytest -m "not slow and not clients" $(ARGS)

test-slow: setup
	@$(PY) -m pytest -m slow --timeout 3000 $(ARGS)

test-clients: setup
	@$(PY) -m pytest -m clients --timeout 900 $(ARGS)

bench: setup
	@$(PY) -m bench.table $(ARGS)

# The codec by pytest-benchmark, then the scripts that print a stage's cost each.
bench-core: setup
	@$(PY) -m pytest bench/core_codec.py --benchmark-only --benchmark-columns=min,median,rounds \
	  --benchmark-max-time=0.3 $(ARGS)
	@for name in log index store apply watch; do $(PY) -m bench.core_$$name || exit 1; done

sim: setup
	@$(PY) -m tests.sim --seed $(or $(SEED),0) $(ARGS)

sim-many: setup
	@$(PY) -m tests.sim --seconds $(or $(SECONDS),600) --first $(or $(FIRST),0) $(ARGS)

data-rewrite: setup
	@KVNODE_REWRITE=1 $(PY) -m pytest -q tests/raft tests/state tests/unit/test_docs.py

clean:
	rm -rf build $(VENV) kvnode/*/*.so
