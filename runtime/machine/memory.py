"""What the machine's memory is taken for, as Linux tells it."""

from __future__ import annotations

from pathlib import Path

from ...protocol.errors import SlipstreamError


def available(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that processes can still have: what is free, and what Linux would take from its file cache."""
    for line in meminfo.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) << 10
    raise SlipstreamError(f"{meminfo} does not say MemAvailable: the memory that is left is not known")


def private_bytes(pid: int) -> int:
    """Bytes of a process that it shares with no other; ``OSError`` if it is gone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))
