"""Benchmarks beside real etcd: one script a question; `python -m bench.table` runs all."""
