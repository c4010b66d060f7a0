"""The documents for users: every command and every Python block in them is run, and every link leads somewhere.

A ``bash`` or ``python`` block has to succeed, and to print what a comment behind a ``print`` says; one that ends with
``slipstream serve`` is run until the service is ready, then told to stop. A ``console`` block has to print what it
shows, ``…`` standing for anything. A block that cannot be run here has the reason in a comment before it:
``<!-- not run: … -->``. All ask one service, on an emulated device.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from slipstream import Sidecar
from slipstream.serving.service import BUNDLED_MODEL

ROOT = Path(__file__).parents[2]
FACE = ROOT / "src" / "slipstream"
DOCUMENTS = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in (
            "quickstart",
            "embedding",
            "operating",
            "tuning",
            "troubleshooting",
            "options",
            "protocol",
            "agents",
        )
    ),
]
NEAR = 120.0
"""Seconds within which any of them ends on a busy machine."""

BIN = Path(sys.executable).parent
ENDPOINT = re.compile(r"ipc:///tmp/slipstream(?![\w-])")
"""How the documents name the endpoint of the service."""

FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    place: str
    language: str
    text: str
    reason: str | None
    """Why it is not run."""

    @property
    def serves(self) -> bool:
        last = self.text.rstrip().splitlines()[-1]
        return "slipstream serve" in last and "--print-config" not in last


def blocks_of(text: str, name: str) -> list[Block]:
    return [
        Block(
            f"{name}:{text.count(chr(10), 0, found.start()) + 1}",
            found["language"],
            found["text"],
            found["reason"],
        )
        for found in FENCE.finditer(text)
    ]


BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path.read_text(encoding="utf-8"), path.name)]


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages and block.reason is None]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of one whose program is installed, with a service at the documents' endpoint."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLIPSTREAM_")}
    place = f"ipc://{tmp_path_factory.mktemp('docs')}/s"
    with Sidecar(device="emulated", emulated_step_ms=1, max_num_seqs=16, endpoint=place):
        yield own | {
            "PATH": f"{BIN}:{own['PATH']}",
            "SLIPSTREAM_DEVICE": "emulated",
            "MODEL": str(BUNDLED_MODEL),
            "HF_HUB_OFFLINE": "1",
            "SERVICE": place,
        }


def here(text: str, environment: dict[str, str]) -> str:
    return ENDPOINT.sub(environment["SERVICE"], text)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block, id=block.place, marks=[] if block.place.startswith("README") else [pytest.mark.rest]
        )
        for block in of("bash", "python")
    ],
)
def test_what_a_document_says_to_run_succeeds(
    block: Block, environment: dict[str, str], tmp_path: Path
) -> None:
    command = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
    if block.serves:
        text = ENDPOINT.sub(f"ipc://{tmp_path}/s", block.text)
        serve_until_ready([*command, text.rstrip()], environment, tmp_path)
        return
    done = subprocess.run(
        [*command, here(block.text, environment)],
        capture_output=True,
        text=True,
        timeout=NEAR,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    lines = done.stdout.splitlines()
    assert [shown for shown in shown_by(block.text) if shown not in lines] == [], done.stdout


def shown_by(text: str) -> list[str]:
    """What the comments behind ``print`` say that is printed."""
    return re.findall(r"^ *print\(.*\)  # (.*)$", text, re.MULTILINE)


def serve_until_ready(command: list[str], environment: dict[str, str], folder: Path) -> None:
    """Run a command that does not end by itself; SIGTERM has to end it with code 0."""
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=folder, env=environment
    ) as process:
        assert process.stderr is not None
        seen: list[str] = []
        for line in process.stderr:
            seen.append(line)
            if line.startswith("ready in "):
                process.send_signal(signal.SIGTERM)
        assert process.wait(NEAR) == 0, "".join(seen)
        assert any(line.startswith("ready in ") for line in seen)


@pytest.mark.parametrize("block", of("console"), ids=lambda block: block.place)
def test_what_a_document_shows_is_what_is_printed(
    block: Block, environment: dict[str, str], tmp_path: Path
) -> None:
    for command, expected in sessions(block.text):
        done = subprocess.run(
            ["bash", "-c", here(command, environment)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=NEAR,
            cwd=tmp_path,
            env=environment,
        )
        assert matches(expected, done.stdout), f"$ {command}\n{done.stdout}\nis not\n{expected}"


def sessions(text: str) -> list[tuple[str, str]]:
    """Each command of a console block with what it shows."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [(part.partition("\n")[0], part.partition("\n")[2].strip()) for part in parts]


def matches(expected: str, printed: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in expected.split("…"))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


# --- that these tests can fail --------------------------------------------------------------------


def test_blocks_are_found_with_their_place_and_reason() -> None:
    text = "# T\n\n```bash\ntrue\n```\n\n<!-- not run: needs a GPU -->\n```python\nx\n```\n"
    first, second = blocks_of(text, "t.md")
    assert (first.place, first.language, first.text, first.reason) == ("t.md:3", "bash", "true\n", None)
    assert (second.language, second.reason) == ("python", "needs a GPU")
    assert len(of("bash")) >= 8
    assert len(of("python")) >= 8
    assert len(of("console")) >= 6


def test_what_is_printed_has_to_match_as_a_whole() -> None:
    assert matches("a … c", "a b\nb c\n")
    assert not matches("a … c", "a b\nb c d\n")
    assert not matches("a.c", "abc")
    assert shown_by("f(x)  # no\n    print(f(x))  # a (b)\n") == ["a (b)"]
    assert sessions("$ one\nsays\n\n$ two\n") == [("one", "says"), ("two", "")]


def test_only_these_languages_are_used_and_what_is_not_run_has_a_reason() -> None:
    assert {block.language for block in BLOCKS} <= {"bash", "python", "console", "json"}
    for block in BLOCKS:
        assert block.reason is None or len(block.reason) > 5, block.place


# --- links --------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """What a link can point at in a document: its headings, as they are written in links."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        FACE / "model" / "README.md",
        *(ROOT / "docs").glob("*.md"),
    ]
)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_in_a_document_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{path.name} links to {target}"


NAME_IN_FILE = re.compile(r"\[`([\w.]+)(?:\(\))?`\]\(([^)\s#]+\.py)\)")


def missing_names(text: str, folder: Path) -> list[str]:
    """Names in links such as ``[`Planner.plan`](planner.py)`` that the linked file does not define."""
    missing: list[str] = []
    for name, target in NAME_IN_FILE.findall(text):
        source = (folder / target).read_text(encoding="utf-8")
        parts = [] if name.endswith(".py") or name == Path(target).stem else name.split(".")
        defined = re.findall(r"^\s*(?:(?:async )?def |class )?(\w+)(?:\(| *[:=])", source, re.MULTILINE)
        missing += [name for part in parts if part not in (*defined, Path(target).stem)]
    return missing


MEMBER = re.compile(r"`([A-Z]\w+)\.([a-z_]\w*)(?:\(\))?`")
OURS = {
    path: path.read_text(encoding="utf-8")
    for folder in ("actors", "runtime", "protocol", "src/slipstream")
    for path in (ROOT / folder).rglob("*.py")
}


def missing_members(text: str) -> list[str]:
    """Members such as ``Planner.plan`` of which no file of ours has the class and the method or field."""
    return [
        f"{owner}.{name}"
        for owner, name in MEMBER.findall(text)
        if not any(
            re.search(rf"^class {owner}\b", source, re.MULTILINE)
            and re.search(rf"^\s+(?:(?:async )?def |self\.)?{name}\b *[(:=]", source, re.MULTILINE)
            for source in OURS.values()
        )
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_method_and_field_that_is_named_is_there(path: Path) -> None:
    assert missing_members(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_that_links_to_a_file_is_defined_there(path: Path) -> None:
    assert missing_names(path.read_text(encoding="utf-8"), path.parent) == []


def test_a_name_that_is_gone_is_found() -> None:
    text = "[`Pipeline.launch`](actors/executor/pipeline.py), [`Pipeline.gone`](actors/executor/pipeline.py)"
    assert missing_names(text, ROOT) == ["Pipeline.gone"]
    assert missing_members("`Pipeline.launch`, `Pipeline.gone()`, `Gone.launch` and `Plan.joins`") == [
        "Pipeline.gone",
        "Gone.launch",
    ]


OWN_PATH = re.compile(
    r"(?<![\w./-])(?:(?:actors|runtime|protocol|tests|examples|training|docs|src/slipstream)/[\w./-]*\w)"
)
"""A path in this repository, as texts name it: in backquotes, in a command, in a link."""


def dead_paths(text: str) -> list[str]:
    return [found for found in OWN_PATH.findall(text) if not (ROOT / found).exists()]


@pytest.mark.parametrize(
    "path", [*PAGES, ROOT / "Makefile", ROOT / ".ci" / "run"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_file_that_is_named_is_there(path: Path) -> None:
    assert dead_paths(path.read_text(encoding="utf-8")) == []


def test_a_path_that_is_gone_is_found() -> None:
    text = (
        "see `actors/executor/pipeline.py` and run `pytest tests/test_gone.py -k x` with ipc:///tmp/tests/x"
    )
    assert dead_paths(text) == ["tests/test_gone.py"]


def test_every_module_is_named_by_its_file_name_in_the_documents() -> None:
    """A link's text that is a file name is the name of the file that it leads to."""
    for path in PAGES:
        for shown, target in re.findall(
            r"\[`?([\w/]+\.py)`?\]\(([^)\s#]+)\)", path.read_text(encoding="utf-8")
        ):
            assert target.endswith(shown.rpartition("/")[2]), f"{path.name}: {shown} leads to {target}"
