"""How much memory is left: to the machine, and to a container."""

from __future__ import annotations

from pathlib import Path

import pytest
from slipstream.runtime.machine.memory import available

GIB = 1 << 30


def machine(folder: Path, groups: str) -> tuple[Path, Path, Path]:
    """One with 8 GiB to have, whose processes are in ``groups``."""
    (folder / "meminfo").write_text(f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\n")
    (folder / "cgroup").write_text(groups)
    (folder / "tree").mkdir()
    return folder / "meminfo", folder / "cgroup", folder / "tree"


def group(folder: Path, names: tuple[str, str, str], limit: object, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cached}\n{names[2]} {cached}\n")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def test_without_a_limit_it_is_what_the_machine_has(tmp_path: Path) -> None:
    where = machine(tmp_path, "0::/\n")
    assert available(*where) == 8 * GIB
    group(where[2] / "slice", V2, "max", 3 * GIB, GIB)
    where[1].write_text("0::/slice\n")
    assert available(*where) == 8 * GIB


@pytest.mark.parametrize(
    ("groups", "below", "names"),
    [("0::/pod/box\n", "", V2), ("12:cpu,cpuacct:/x\n4:memory:/pod/box\n0::/\n", "memory", V1)],
)
def test_a_container_has_what_its_limits_leave(
    tmp_path: Path, groups: str, below: str, names: tuple[str, str, str]
) -> None:
    where = machine(tmp_path, groups)
    top = where[2] / below
    group(top / "pod" / "box", names, 4 * GIB, 3 * GIB, GIB)
    assert available(*where) == 2 * GIB, (
        "the limit, less what is used, and Linux takes back what it has of files"
    )
    group(top / "pod", names, 4 * GIB, 3 * GIB + GIB // 2, 0)
    assert available(*where) == GIB // 2, "the limit around it is nearer"
    group(top / "pod", names, 4 * GIB, 5 * GIB, 0)
    assert available(*where) == 0


def test_a_container_that_sees_only_its_own_groups(tmp_path: Path) -> None:
    where = machine(tmp_path, "0::/system.slice/outside\n")
    group(where[2], V2, 2 * GIB, GIB, 0)
    assert available(*where) == GIB


def test_a_limit_larger_than_the_machine_is_none(tmp_path: Path) -> None:
    where = machine(tmp_path, "4:memory:/\n")
    group(where[2] / "memory", V1, 9223372036854771712, 30 * GIB, 0)
    assert available(*where) == 8 * GIB


def test_here_some_is_left() -> None:
    assert available() > 0
