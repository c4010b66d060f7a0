"""The use of the machine's memory, as Linux reports it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ...protocol.errors import SlipstreamError


class GroupFiles(NamedTuple):
    """The files in which a control group reports the limit and the use of its memory."""

    limit: str
    used: str
    cached: str
    """In ``memory.stat``: pages of files that Linux would take back first."""


VERSION_1 = GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = GroupFiles("memory.max", "memory.current", "inactive_file")


def available(
    meminfo: Path = Path("/proc/meminfo"),
    groups: Path = Path("/proc/self/cgroup"),
    tree: Path = Path("/sys/fs/cgroup"),
) -> int:
    """Bytes that processes can still have: what is free, and what Linux would take from its file cache.

    No more than the control groups of this process leave, which is what the limit of a container is.
    """
    for line in meminfo.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return min([int(rest.split()[0]) << 10, *left_in_groups(groups, tree)])
    raise SlipstreamError(f"{meminfo} does not say MemAvailable: the memory that is left is not known")


def left_in_groups(groups: Path, tree: Path) -> Iterator[int]:
    """The bytes that each control group of this process with a limit has left."""
    if not groups.exists():
        return
    for line in groups.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            files, top = VERSION_2, tree
        elif "memory" in controllers.split(","):
            files, top = VERSION_1, tree / "memory"
        else:
            continue
        inside = top / path.lstrip("/")
        # In a container the path may be the one outside of it, of which only the top is seen.
        for group in (inside, *(up for up in inside.parents if up == top or top in up.parents)):
            limit = group / files.limit
            if limit.exists() and (stated := limit.read_text().strip()) != "max":
                stat = dict(entry.split() for entry in (group / "memory.stat").read_text().splitlines())
                used = int((group / files.used).read_text())
                yield max(0, int(stated) - used + int(stat.get(files.cached, 0)))


def private_bytes(pid: int) -> int:
    """Bytes of a process that it shares with no other; ``OSError`` if it is gone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))
