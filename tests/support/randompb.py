"""Random messages of any schema, from a seed, and damage to their bytes."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.message import Message

INTS = [0, 1, 2, 3, 127, 128, 300, 1 << 31, (1 << 63) - 1, -1, -(1 << 63)]
TEXTS = [b"", b"\0", b"a", b"b", b"k\xff", b"v" * 130]
DEPTH_MAX = 4


def value_of(rng: random.Random, field: Any, depth: int) -> Any:
    """A value for a singular field that is no message."""
    if field.type == field.TYPE_BYTES:
        return rng.choice(TEXTS)
    if field.type == field.TYPE_STRING:
        return rng.choice(["", "a", "name", "ü"])
    if field.type == field.TYPE_BOOL:
        return rng.random() < 0.5
    if field.enum_type is not None:
        return rng.choice([value.number for value in field.enum_type.values])
    value = rng.choice(INTS)
    if field.type in (field.TYPE_INT32, field.TYPE_UINT32):
        return abs(value) % (1 << 31)
    return value % (1 << 64) if field.type == field.TYPE_UINT64 else value


def fill(rng: random.Random, message: Message, depth: int = 0) -> None:
    """Sets some of the fields, members of oneofs among them."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.4:
            continue
        if field.is_repeated:
            many = getattr(message, field.name)
            for _ in range(rng.randrange(3) if depth < DEPTH_MAX else 0):
                if field.message_type is not None:
                    fill(rng, many.add(), depth + 1)
                else:
                    many.append(value_of(rng, field, depth))
        elif field.message_type is not None:
            if depth < DEPTH_MAX:
                inner = getattr(message, field.name)
                inner.SetInParent()
                fill(rng, inner, depth + 1)
        else:
            setattr(message, field.name, value_of(rng, field, depth))


def damage(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, added or taken away."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        out[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(out)
