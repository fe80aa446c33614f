"""The addresses of libzmq's functions, from the very library that pyzmq loaded.

A process must not hold two libzmq: sockets of one are nothing to the other. pyzmq's wheel carries
its own and exports no header for it, so the loaded file is found in the process' map and its
symbols are looked up there. Caller: procs/gateway, for `_core/front`.
"""

from __future__ import annotations

import ctypes
import os

import zmq

from kvnode.base.errors import KvnodeError

NAMES = (
    "zmq_msg_init",
    "zmq_msg_init_size",
    "zmq_msg_init_data",
    "zmq_msg_close",
    "zmq_msg_more",
    "zmq_msg_data",
    "zmq_msg_size",
    "zmq_msg_recv",
    "zmq_msg_send",
    "zmq_msg_get",
    "zmq_errno",
)


def loaded_libzmq() -> str:
    """Path of the libzmq that this process has loaded; KvnodeError if there is not just one."""
    zmq.zmq_version()
    paths = set()
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.split(maxsplit=5)[-1].strip()
            if os.path.basename(path).startswith("libzmq"):
                paths.add(path)
    if len(paths) != 1:
        raise KvnodeError(f"expected one loaded libzmq, found {sorted(paths) or 'none'}")
    return paths.pop()


def functions() -> dict[str, int]:
    """Address by name of every function in NAMES."""
    library = ctypes.CDLL(loaded_libzmq())
    out = {}
    for name in NAMES:
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        assert address is not None
        out[name] = address
    return out
