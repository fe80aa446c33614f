"""The Python client: `Client` (sync), its request bodies in `messages`."""

from __future__ import annotations

from kvnode.client.engine import Outcome, Pending
from kvnode.client.sync import Client

__all__ = ["Client", "Outcome", "Pending"]
