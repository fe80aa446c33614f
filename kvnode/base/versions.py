"""The versions that kvnode tells clients of etcd: one place, so that every door says the same.

etcd's clients parse these as semantic versions and switch features by them (Kubernetes asks
`Status.version` before it uses progress requests), so they are etcd's numbers: the release whose
API is spoken. kvnode's own version is `kvnode.__version__`; banner, log, `--version` and the native
protocol say it.
"""

from __future__ import annotations

ETCD_VERSION = "3.7.1"
"""Status.version, `etcdserver` of /version, the line of `kvnode --version`."""

ETCD_CLUSTER_VERSION = "3.7.0"
"""`etcdcluster` of /version: what all members of the cluster can do."""

ETCD_STORAGE_VERSION = "3.7.0"
"""Status.storageVersion, `storage` of /version: what the stored schema can hold."""

API_VERSION = "3.7"
"""The API as etcdctl prints it."""
