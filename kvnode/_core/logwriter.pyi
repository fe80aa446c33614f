"""Types of logwriter.pyx."""

from typing import TypedDict

import numpy as np
from typing_extensions import Buffer

class WriterStats(TypedDict):
    syncs: int
    bytes: int
    sync_us_sum: int
    sync_us_max: int
    buckets: np.ndarray

class LogWriter:
    error: tuple[int, str] | None
    in_flight_bytes: int
    def submit(
        self, handle: int, offset: int, data: Buffer, tail: int = 0, here: bool = False
    ) -> int: ...
    def rename(self, src: str, dst: str, folder: int) -> int: ...
    def fileno(self) -> int: ...
    def completed(self) -> int: ...
    def in_flight_age_us(self) -> int: ...
    def last_progress_us(self) -> int: ...
    def stats(self) -> WriterStats: ...
    def close(self) -> None: ...
