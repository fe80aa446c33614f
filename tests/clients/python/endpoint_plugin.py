"""A pytest plugin for the own tests of etcd3 and aetcd: their default address is $TEST_ENDPOINT.

Most of their tests take an address from the environment; a few use the client's default one.
"""

from __future__ import annotations

import os
from contextlib import suppress

HOST, PORT = os.environ["TEST_ENDPOINT"].split(":")

with suppress(ImportError):
    import hypothesis

    # Each example runs etcdctl a few times: as many as time allows.
    hypothesis.settings.register_profile("few", max_examples=12)
    hypothesis.settings.load_profile("few")


def _defaults(function) -> None:
    function.__defaults__ = tuple(
        {"localhost": HOST, 2379: int(PORT)}.get(value, value) for value in function.__defaults__
    )


with suppress(ImportError):
    import etcd3

    _defaults(etcd3.client)
    _defaults(etcd3.Etcd3Client.__init__)
with suppress(ImportError):
    import aetcd

    _defaults(aetcd.Client.__init__)
