"""Registers every handler of this room with the HTTP/2 floor.

Called by the gateway once, before the first connection. The hot methods (KV, Watch, Lease) are
`_core`'s and are not registered here; `PYTHON_PATHS` are the others.
"""

from __future__ import annotations

from kvnode.api import later, reflection
from kvnode.api.calls import Router
from kvnode.api.cluster import Cluster
from kvnode.api.health import Health
from kvnode.api.maintenance import Maintenance
from kvnode.api.node import Node
from kvnode.api.service import RPCS

_HOT = ("/etcdserverpb.KV/", "/etcdserverpb.Watch/", "/etcdserverpb.Lease/")

PYTHON_PATHS: frozenset[str] = frozenset(path for path in RPCS if not path.startswith(_HOT))
"""What `attach` registers."""


def attach(router: Router, node: Node) -> Health:
    """Registers all handlers; the health service is given back, for a gateway that drains."""
    Maintenance(node).attach(router)
    Cluster(node).attach(router)
    later.attach(router, node)
    reflection.attach(router)
    health = Health()
    health.attach(router)
    return health
