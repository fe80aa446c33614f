"""The data of the benchmarks: distinct random keys and values, from a seed.

Key number i is what the load generator asks for as key number i (`_core/loadcore.key_text`), so a
file of the first N records is a key space of N. Values are 256 hexadecimal digits.

    record  0 u32 LE key length (32)   4 u32 LE value length (256)   8 key   40 value
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

KEY_BYTES = 32
VALUE_BYTES = 256
RECORD_BYTES = 8 + KEY_BYTES + VALUE_BYTES
CHUNK = 50_000
_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)


def _mix(seed: int, numbers: np.ndarray) -> np.ndarray:
    """The given numbers of splitmix64 started at `seed`."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _hex(numbers: np.ndarray) -> np.ndarray:
    """Rows of u64 as rows of hexadecimal digits, 16 each."""
    raw = numbers.astype(">u8").view(np.uint8).reshape(len(numbers), -1)
    out = np.empty((raw.shape[0], raw.shape[1] * 2), np.uint8)
    out[:, 0::2] = _DIGITS[raw >> 4]
    out[:, 1::2] = _DIGITS[raw & 15]
    return out


def keys(seed: int, first: int, count: int) -> np.ndarray:
    """`count` keys from number `first` on, a row each."""
    numbers = np.arange(2 * first, 2 * (first + count), dtype=np.uint64).reshape(count, 2)
    return _hex(_mix(seed, numbers))


def values(seed: int, first: int, count: int, size: int = VALUE_BYTES) -> np.ndarray:
    """The values beside them; `size` is a multiple of 16."""
    words = size // 16
    numbers = np.arange(words * first, words * (first + count), dtype=np.uint64)
    return _hex(_mix(seed ^ 0xABCD, numbers.reshape(count, words)))


def write_records(path: Path, seed: int, count: int, first: int = 0,
                  value_bytes: int = VALUE_BYTES) -> None:
    """The file that feeder and `loadgen.bulk` take."""
    head = np.frombuffer(
        KEY_BYTES.to_bytes(4, "little") + value_bytes.to_bytes(4, "little"), np.uint8
    )
    with path.open("wb") as out:
        for at in range(0, count, CHUNK):
            n = min(CHUNK, count - at)
            rows = np.empty((n, 8 + KEY_BYTES + value_bytes), np.uint8)
            rows[:, :8] = head
            rows[:, 8:40] = keys(seed, first + at, n)
            rows[:, 40:] = values(seed, first + at, n, value_bytes)
            out.write(rows)


def write_jsonl(path: Path, seed: int, count: int, first: int = 0) -> None:
    """The same records as `kvnode import` takes them: {"key": ..., "value": ...} a line."""
    parts = [np.frombuffer(text, np.uint8) for text in (b'{"key":"', b'","value":"', b'"}\n')]
    with path.open("wb") as out:
        for at in range(0, count, CHUNK):
            n = min(CHUNK, count - at)
            columns = [
                np.broadcast_to(parts[0], (n, len(parts[0]))), keys(seed, first + at, n),
                np.broadcast_to(parts[1], (n, len(parts[1]))), values(seed, first + at, n),
                np.broadcast_to(parts[2], (n, len(parts[2]))),
            ]
            out.write(np.concatenate(columns, axis=1))


def main() -> None:
    """Writes one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jsonl", action="store_true")
    args = parser.parse_args()
    write = write_jsonl if args.jsonl else write_records
    write(args.path, args.seed, args.keys, args.first)


if __name__ == "__main__":
    main()
