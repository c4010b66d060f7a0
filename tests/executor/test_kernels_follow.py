"""No kernel that begins while the one before it ends reads or writes too early, whichever way it goes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

READ_WEIGHTS_EARLY = {
    "adapters:_extend_kernel",
    "model:add_norm_kernel",
    "model:norm_kernel",
    "model:sum_add_norm_kernel",
    "one_row:one_row_kernel",
    "quantization:_one_row_kernel",
}
"""Which no kernel of a step writes."""

LAUNCHED_ALONE = {"ranks:_write_kernel"}
"""Before there are steps, and not beside another."""

LABEL = re.compile(r"^(\$\w+):")
BRANCH = re.compile(r"^(@!?%p\d+ )?bra(?:\.uni)? \t?(\$\w+)")
END = re.compile(r"^(@!?%p\d+ )?(ret|exit);")
WAIT = "griddepcontrol.wait"
NEXT_MAY_BEGIN = "griddepcontrol.launch_dependents"
READS = re.compile(r"\b(ld\.(?!param|shared|const)|cp\.async\.(c[ag]|bulk))")
WRITES = re.compile(r"\b(st\.(?!shared|param)|(atom|red)\.(?!shared))")


def before_waiting(ptx: str) -> set[str]:
    """What a kernel does on any way to where it waits: ``reads``, ``writes``, or ``ends`` without having waited."""
    lines = [" ".join(line.split()) for line in ptx[ptx.index(".entry") :].splitlines()]
    labels = {found[1]: place for place, line in enumerate(lines) if (found := LABEL.match(line))}
    done: set[str] = set()
    ahead, seen = [0], set[int]()
    while ahead:
        place = ahead.pop()
        while place < len(lines) and place not in seen:
            seen.add(place)
            line = lines[place]
            if WAIT in line:
                break
            if branch := BRANCH.match(line):
                ahead.append(labels[branch[2]])
                if branch[1] is None:
                    break
            elif end := END.match(line):
                done.add("ends")
                if end[1] is None:
                    break
            done |= {what for what, kind in (("reads", READS), ("writes", WRITES)) if kind.search(line)}
            place += 1
    return done


@pytest.mark.rest
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs Triton's compiler",
)
def test_kernels_wait_before_they_touch_what_a_step_writes() -> None:
    run = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, list[str]] = json.loads(run.stdout)
    assert found.keys() >= READ_WEIGHTS_EARLY | LAUNCHED_ALONE
    for name in LAUNCHED_ALONE:
        del found[name]
    early = {name: done for name, done in found.items() if done}
    assert early == {name: ["reads"] for name in READ_WEIGHTS_EARLY}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("griddepcontrol.wait;\nld.global.b32 %r1, [%rd1];\nst.global.b32 [%rd1], %r1;\nret;", set()),
        ("ld.param.b64 %rd1, [p];\nst.shared.b32 [%r1], %r2;\ngriddepcontrol.wait;\nret;", set()),
        ("ld.global.b32 %r1, [%rd1];\ngriddepcontrol.wait;\nret;", {"reads"}),
        ("cp.async.cg.shared.global [%r1], [%rd1], 16;\ngriddepcontrol.wait;\nret;", {"reads"}),
        ("@%p1 bra $L1;\ngriddepcontrol.wait;\nret;\n$L1:\nst.global.b32 [%rd1], %r1;\nret;", {"writes", "ends"}),
        ("@%p1 bra $L1;\n$L2:\ngriddepcontrol.wait;\nret;\n$L1:\nred.global.add.u32 [%r1], 1;\nbra $L2;", {"writes"}),
        ("@%p1 ret;\ngriddepcontrol.wait;\nret;", {"ends"}),
    ],
)  # fmt: skip
def test_every_way_is_gone(body: str, expected: set[str]) -> None:
    assert before_waiting(f".visible .entry kernel()\n{{\n{body}\n}}") == expected


def main() -> None:
    """Print what each kernel does before it waits, compiled as for a GPU on which kernels overlap."""
    import triton.language as tl
    from slipstream.actors.executor.triton_tools import kernel

    kernel.OVERLAP = tl.constexpr(True)  # before any module takes it from there
    from test_kernels_compile import KERNELS, compiled

    found: dict[str, list[str]] = {}
    for case in {case[0]: case for case in KERNELS}.values():
        ptx = compiled(*case).asm["ptx"]
        found[case[0]] = sorted(before_waiting(ptx))
        if WAIT in ptx and NEXT_MAY_BEGIN not in ptx:
            found[case[0]].append("lets none begin")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
