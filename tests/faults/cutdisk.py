"""A small ext4 in a file that loses power on demand.

EXT4_IOC_SHUTDOWN without a log flush drops everything that was not synced, as a power cut does
(no reordering inside the device and no torn sectors: those it does not show). Needs root and loop
mounts; `available()` says what is missing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
BUSY_SECONDS = 20.0


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


def available(folder: Path) -> str:
    """Empty, or why no loop mount can be made here."""
    if os.geteuid() != 0:
        return "power cuts need root (loop mounts)"
    missing = [name for name in ("mkfs.ext4", "mount", "umount") if shutil.which(name) is None]
    if missing:
        return f"power cuts need {', '.join(missing)}"
    disk = CutDisk(folder / "probe", 16)
    try:
        disk.mount()
        disk.cut()
    except OSError as error:
        return f"power cuts need loop mounts of ext4: {error}"
    finally:
        disk.close()
    return ""


class CutDisk:
    """An ext4 of `mib` MiB, mounted at `path` between mount() and cut()."""

    def __init__(self, folder: Path, mib: int) -> None:
        folder.mkdir(parents=True)
        self.image = folder / "disk.img"
        self.path = folder / "mnt"
        self.path.mkdir()
        self.mounted = False
        with self.image.open("wb") as out:
            out.truncate(mib << 20)
        run("mkfs.ext4", "-q", "-F", str(self.image))

    def mount(self) -> None:
        run("mount", "-o", "loop", str(self.image), str(self.path))
        self.mounted = True

    def cut(self) -> None:
        """From here on nothing reaches the disk. End the processes on it, then unmount()."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Blocking: the threads of a process that was killed let go of its map after its end."""
        until = time.monotonic() + BUSY_SECONDS
        while self.mounted:
            try:
                run("umount", str(self.path))
                self.mounted = False
            except OSError as error:
                if "busy" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        """Unmounts whatever happened before, lazily if it must be."""
        try:
            self.unmount()
        except OSError:
            run("umount", "-l", str(self.path))
            self.mounted = False
