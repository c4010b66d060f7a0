"""Folders, arrows between them, and what an installation consists of."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import typing
import zipfile
from pathlib import Path

import pytest
from slipstream.protocol.internal import AnyInternal

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "protocol": ROOT / "protocol",
    "runtime": ROOT / "runtime",
    "actors": ROOT / "actors",
    "face": ROOT / "src" / "slipstream",
}
SOURCES = sorted(path for folder in FOLDERS.values() for path in folder.rglob("*.py"))


def module_of(path: Path) -> tuple[str, ...]:
    """``("slipstream", "actors", "tokenizer")`` for ``actors/text/tokenizer.py``."""
    for name, folder in FOLDERS.items():
        if folder in path.parents:
            inside = path.relative_to(folder).with_suffix("").parts
            parts = ("slipstream", *(() if name == "face" else (name,)), *inside)
            return parts[:-1] if parts[-1] == "__init__" else parts
    raise AssertionError(path)


def imports_of(path: Path) -> set[tuple[str, ...]]:
    """The modules that a file imports, anywhere in it, by their absolute names."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module[:-1]
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = (*base, *(node.module.split(".") if node.module else ()))
            # ``from . import x`` may import a module; ``from .x import y`` names it already.
            found.update((*source, alias.name) if node.module is None else source for alias in node.names)
    return found


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_sources_are_found() -> None:
    names = {named(path) for path in SOURCES}
    assert {
        "protocol/codec.py",
        "runtime/process/host.py",
        "actors/gateway/gateway.py",
        "src/slipstream/cli.py",
    } <= names
    assert {"actors/executor/pipeline.py", "actors/scheduler/pool.py"} <= names
    assert ("slipstream", "protocol", "codec") in imports_of(ROOT / "runtime" / "links.py")


# --- arrows -------------------------------------------------------------------------------------

EXECUTOR = {
    f"actors/executor/{name}"
    for name in ("attention", "cache", "devices", "model", "ranks", "sampling", "step", "triton_tools")
}

HTTP = {f"actors/http/{name}" for name in ("bodies", "endpoints", "messages", "responses", "transport")}

ROOMS: dict[str, set[str]] = {
    "protocol": set(),
    "protocol/client": {"protocol", "protocol/formats"},
    "protocol/formats": {"protocol"},
    "runtime": {"protocol", "protocol/client"},
    "runtime/machine": {"protocol"},
    "runtime/options": {"protocol"},
    "runtime/supervision": {"protocol", "runtime", "runtime/machine"},
    "runtime/process": {"protocol", "protocol/client", "runtime", "runtime/machine", "runtime/supervision"},
    "actors": {"protocol"},
    "actors/public": {"protocol", "runtime"},
    "actors/router": {
        "protocol",
        "protocol/client",
        "runtime",
        "runtime/process",
        "actors",
        "actors/public",
    },
    "actors/gateway": {"protocol", "runtime", "runtime/process", "actors", "actors/public"},
    "actors/scheduler": {"protocol", "runtime", "runtime/process", "actors"},
    "actors/text": {
        "protocol",
        "protocol/formats",
        "runtime",
        "runtime/process",
        "actors",
        "actors/text/grammars",
        "actors/text/prompts",
        "actors/text/vocabulary",
    },
    "actors/text/grammars": {"protocol", "protocol/formats", "actors/text/vocabulary"},
    "actors/text/prompts": {"protocol", "protocol/formats", "actors", "actors/text/vocabulary"},
    "actors/text/vocabulary": {"protocol", "actors"},
    "actors/http": {
        "protocol",
        "protocol/client",
        "runtime",
        "runtime/process",
        "actors",
        "actors/text/prompts",
        "actors/text/vocabulary",
        *HTTP,
    },
    "actors/http/bodies": {"protocol", "protocol/formats", "actors/http"},
    "actors/http/endpoints": {
        "protocol",
        "protocol/client",
        "protocol/formats",
        "actors/text/prompts",
        "actors/http",
        *HTTP,
    },
    "actors/http/messages": {"protocol", "protocol/formats", "actors/text/prompts", "actors/http", *HTTP},
    "actors/http/responses": {"protocol", "protocol/formats", "actors/text/prompts", "actors/http", *HTTP},
    "actors/http/transport": {"protocol", "protocol/formats", "actors/http", "actors/http/bodies"},
    "actors/executor": {
        "protocol",
        "runtime",
        "actors/executor/devices",
        "actors/executor/model/adapters",
        "actors/executor/sampling",
        "actors/executor/step",
    },
    "actors/executor/start": {
        "protocol",
        "runtime",
        "runtime/machine",
        "runtime/process",
        "actors",
        "actors/text/grammars",
        "actors/executor",
        "actors/executor/keeping",
        "actors/executor/model/adapters",
        "actors/executor/model/loading",
        *EXECUTOR,
    },
    "actors/executor/cache": {"protocol", "actors/executor/devices"},
    "actors/executor/keeping": {
        "protocol",
        "runtime",
        "actors",
        "actors/executor/attention",
        "actors/executor/devices",
        "actors/executor/model",
        "actors/executor/model/adapters",
        "actors/executor/model/loading",
        "actors/executor/model/quantization",
        "actors/executor/ranks",
    },
    "actors/executor/attention": {
        "protocol",
        "actors/executor/cache",
        "actors/executor/devices",
        "actors/executor/triton_tools",
    },
    "actors/executor/model": {
        "protocol",
        "actors",
        "actors/executor/attention",
        "actors/executor/cache",
        "actors/executor/devices",
        "actors/executor/ranks",
        "actors/executor/model/adapters",
        "actors/executor/model/loading",
        "actors/executor/model/quantization",
        "actors/executor/model/stateful",
        "actors/executor/triton_tools",
    },
    "actors/executor/model/adapters": {
        "protocol",
        "runtime",
        "actors/executor/triton_tools",
        "actors/executor/model",
        "actors/executor/ranks",
    },
    "actors/executor/model/fused": {
        "actors/executor/attention",
        "actors/executor/cache",
        "actors/executor/triton_tools",
        "actors/executor/model",
        "actors/executor/model/adapters",
        "actors/executor/model/quantization",
        "actors/executor/ranks",
    },
    "actors/executor/model/loading": {
        "protocol",
        "actors",
        "actors/executor/attention",
        "actors/executor/cache",
        "actors/executor/model",
        "actors/executor/model/adapters",
        "actors/executor/model/fused",
        "actors/executor/model/invariant",
        "actors/executor/model/products",
        "actors/executor/model/quantization",
        "actors/executor/ranks",
    },
    "actors/executor/model/invariant": {
        "protocol",
        "actors/executor/attention",
        "actors/executor/triton_tools",
        "actors/executor/model",
        "actors/executor/model/fused",
        "actors/executor/model/products",
        "actors/executor/model/quantization",
    },
    "actors/executor/model/products": {
        "protocol",
        "actors/executor/triton_tools",
        "actors/executor/model",
    },
    "actors/executor/model/quantization": {
        "protocol",
        "actors",
        "actors/executor/devices",
        "actors/executor/triton_tools",
    },
    "actors/executor/model/stateful": {"actors/executor/cache"},
    "actors/executor/ranks": {
        "protocol",
        "runtime",
        "actors",
        "actors/executor",
        "actors/executor/model/adapters",
        "actors/executor/model/loading",
        "actors/executor/model/quantization",
        *EXECUTOR,
    },
    "actors/executor/sampling": {
        "protocol",
        "actors/text/grammars",
        "actors/executor/step",
        "actors/executor/triton_tools",
    },
    "actors/executor/devices": {"protocol", "runtime/process"},
    "actors/executor/triton_tools": {"actors/executor/devices"},
    "actors/executor/step": {"protocol", "runtime", *EXECUTOR},
    "src/slipstream": {
        "protocol",
        "protocol/client",
        "actors/http",
        "actors/text/prompts",
        "runtime",
        "runtime/options",
        "runtime/machine",
        "src/slipstream/commands",
        "src/slipstream/options",
        "src/slipstream/serving",
    },
    "src/slipstream/options": {
        "protocol",
        "protocol/formats",
        "actors/executor/devices",
        "runtime/options",
    },
    "src/slipstream/serving": {
        "protocol",
        "protocol/client",
        "protocol/formats",
        "actors",
        "actors/executor/devices",
        "actors/router",
        "actors/text",
        "actors/text/vocabulary",
        "runtime",
        "runtime/machine",
        "runtime/supervision",
        "src/slipstream",
        "src/slipstream/options",
    },
    "src/slipstream/observe": {"protocol", "protocol/client"},
    "src/slipstream/reference": {"protocol"},
    "src/slipstream/bench": {
        "protocol",
        "protocol/client",
        "runtime/options",
        "src/slipstream",
        "src/slipstream/options",
        "src/slipstream/serving",
        "src/slipstream/observe",
    },
    "src/slipstream/drill": {
        "protocol",
        "protocol/client",
        "runtime",
        "runtime/supervision",
        "actors/executor/devices",
        "actors/executor/step",
        "src/slipstream",
    },
    "src/slipstream/commands": {
        "protocol",
        "protocol/client",
        "runtime",
        "runtime/options",
        "actors",
        "actors/executor/model",
        "actors/executor/model/loading",
        "src/slipstream",
        "src/slipstream/options",
        "src/slipstream/serving",
        "src/slipstream/bench",
        "src/slipstream/drill",
        "src/slipstream/observe",
        "src/slipstream/reference",
    },
}
"""Every room, and which others it may import: ``actors → runtime → protocol``, and nothing imports the face."""

ACTORS = {
    "gateway": "actors/gateway",
    "router": "actors/router",
    "tokenizer": "actors/text/tokenizer.py",
    "scheduler": "actors/scheduler",
    "executor": "actors/executor",
    "detokenizer": "actors/text/detokenizer.py",
    "http": "actors/http",
}

MODULES = {module_of(path): path for path in SOURCES}


def files_imported_by(path: Path) -> set[Path]:
    """The files of ours that a file imports."""
    found = imports_of(path)
    return {MODULES[name] for name in found if name in MODULES} | {
        MODULES[name[:-1]] for name in found if name not in MODULES and name[:-1] in MODULES
    }


def room_of(path: Path) -> str:
    return named(path.parent)


def test_every_folder_with_sources_is_a_room_of_the_table() -> None:
    assert set(ROOMS) == {room_of(path) for path in SOURCES}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    wrong = [
        f"{named(path)} imports {named(found)}"
        for path in SOURCES
        if room_of(path) == room
        for found in files_imported_by(path)
        if room_of(found) not in {room, *ROOMS[room]}
    ]
    assert wrong == []


def actor_of(path: Path) -> str | None:
    """Which actor a file is part of; None for one that they share."""
    for name, place in ACTORS.items():
        if path == ROOT / place or (ROOT / place) in path.parents:
            return name
    return None


def test_every_actor_has_its_place() -> None:
    assert {actor_of(ROOT / place / "x.py") for place in ACTORS.values()} == set(ACTORS)
    assert all((ROOT / place).exists() for place in ACTORS.values())
    assert actor_of(ROOT / "actors" / "text" / "answer_text.py") is None


def test_no_actor_imports_another() -> None:
    wrong = [
        f"{named(path)} imports {named(found)}"
        for path in SOURCES
        if actor_of(path) is not None
        for found in files_imported_by(path)
        if actor_of(found) not in (None, actor_of(path))
    ]
    assert wrong == []


ANSWERED_BY_HOSTS = {"DumpTrace"}


def handled() -> set[str]:
    """Types of messages that some actor has a handler for: entries of a table, ``Plan: self.on_plan``."""
    found: set[str] = set()
    for path in SOURCES:
        if named(path).startswith("actors/"):
            found.update(re.findall(r"\b([A-Z]\w+): self\.\w+", path.read_text(encoding="utf-8")))
    return found


def test_every_message_between_actors_has_a_handler() -> None:
    """An actor only counts what it does not expect, so a handler that was forgotten would not be noticed."""
    sent = {kind.__name__ for kind in typing.get_args(AnyInternal)}
    assert sent - handled() == ANSWERED_BY_HOSTS


def circles() -> list[list[Path]]:
    """Files that import each other, directly or through others, each circle once."""
    found: list[list[Path]] = []
    done: set[Path] = set()
    above: list[Path] = []

    def visit(path: Path) -> None:
        above.append(path)
        for next in sorted(files_imported_by(path) - {path}):
            if next in above:
                found.append(above[above.index(next) :])
            elif next not in done:
                visit(next)
        done.add(above.pop())

    for path in SOURCES:
        if path not in done:
            visit(path)
    return found


def test_no_files_import_each_other() -> None:
    assert [[named(path) for path in circle] for circle in circles()] == []


def test_inside_the_package_imports_of_it_are_relative() -> None:
    absolute = [
        named(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and (node.module or "").startswith("slipstream")
        )
        or (isinstance(node, ast.Import) and any(alias.name.startswith("slipstream") for alias in node.names))
    ]
    assert absolute == []


PROTOCOL_NEEDS = {"msgpack", "msgspec", "zmq"}


def test_the_protocol_needs_nothing_but_its_three_dependencies() -> None:
    third_party = {
        found[0]
        for path in SOURCES
        if FOLDERS["protocol"] in path.parents
        for found in imports_of(path)
        if found[0] not in sys.stdlib_module_names and found[0] != "slipstream"
    }
    assert third_party == PROTOCOL_NEEDS


LIGHT = {
    "client": "slipstream.protocol.client.blocking",
    "async client": "slipstream.protocol.client.asynchronous",
    "gateway": "slipstream.actors.gateway.gateway",
    "router": "slipstream.actors.router.router",
    "tokenizer": "slipstream.actors.text.tokenizer",
    "detokenizer": "slipstream.actors.text.detokenizer",
    "scheduler": "slipstream.actors.scheduler.scheduler",
    "http": "slipstream.actors.http.server",
    "host": "slipstream.runtime.process.child",
    "supervisor": "slipstream.serving.service",
}


@pytest.mark.parametrize("module", LIGHT.values(), ids=LIGHT.keys())
def test_only_the_executor_imports_torch_and_transformers(module: str) -> None:
    program = f"import {module}, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/"
    )
    loaded = set(json.loads(done.stdout))
    assert module in loaded
    assert loaded.isdisjoint({"torch", "transformers", "safetensors", "huggingface_hub"})


# --- what no file does --------------------------------------------------------------------------

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {
    "recv_pyobj",
    "send_pyobj",
    "recv_serialized",
    "torch.load",
    "numpy.load",
    "np.load",
    "yaml.load",
    "yaml.unsafe_load",
}


def dangers(source: str) -> list[str]:
    """What in a source could turn bytes into code."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if node.module and node.module.split(".")[0] in FORBIDDEN_MODULES else []
        elif isinstance(node, ast.Name):
            used = isinstance(node.ctx, ast.Load)  # an option of that name is none of them
            found += [node.id] if used and node.id in FORBIDDEN_CALLS | FORBIDDEN_MODULES else []
        elif isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            found += [dotted] if dotted in FORBIDDEN_METHODS or node.attr in FORBIDDEN_METHODS else []
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            allowed = isinstance(node.value, ast.Constant) and node.value.value is False
            found += [] if allowed else [f"{node.arg}={ast.unparse(node.value)}"]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval(text)",
        "exec(code, {})",
        "torch.load(path)",
        "socket.recv_pyobj()",
        "import marshal",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_search_for_dangers_finds_them(source: str) -> None:
    assert dangers(source)


def test_no_file_unpickles_evaluates_or_loads_code() -> None:
    found = {named(path): dangers(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path: what for path, what in found.items() if what} == {}


# --- the layout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["protocol", "runtime", "actors"])
def test_importing_a_folder_from_the_repository_root_says_what_to_import_instead(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: `{name}` is part of the package slipstream: import slipstream.{name} instead"
    )


def test_the_type_checkers_view_has_a_link_to_every_file_of_the_face_and_to_nothing_else() -> None:
    view = ROOT / "typing_layout" / "slipstream"
    links = {path.name: path.resolve() for path in view.iterdir()}
    assert all(path.is_symlink() for path in view.iterdir())
    expected = {path.name: path for path in FOLDERS["face"].glob("*.py")}
    expected |= {name: FOLDERS[name] for name in ("protocol", "runtime", "actors")}
    expected |= {path.parent.name: path.parent for path in FOLDERS["face"].glob("*/__init__.py")}
    assert links == expected


def type_checked() -> list[str]:
    """Where pyright is asked to look."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"]["pyright"]["include"]


def test_the_type_checker_is_shown_no_hidden_folder() -> None:
    """Pyright leaves out what is in one without a word, also where it is asked to look there."""
    told = type_checked()
    assert not [path for path in told if any(part.startswith(".") for part in Path(path).parts)]


def test_the_type_checker_is_shown_every_file_once() -> None:
    """Pyright follows a link to a folder only where it is asked to look there, and then looks there each time."""
    told = type_checked()
    view = Path("typing_layout", "slipstream")
    folders = [view / path.name for path in (ROOT / view).iterdir() if path.is_dir()]
    assert sorted(told) == sorted(map(str, [view, *folders, "tests", "examples", "training"]))


def test_every_package_is_named_in_the_project_file() -> None:
    import tomllib

    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "packages"
    ]
    packages = {".".join(module_of(path)) for path in SOURCES if path.name == "__init__.py"}
    assert set(told) == packages


# --- what is installed --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, where a build can leave its own things."""
    copy = tmp_path_factory.mktemp("source") / "slipstream"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("protocol", "runtime", "actors", "src", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    return copy


def build(source: Path, kind: str) -> Path:
    """A wheel or an sdist, by the build backend itself: nothing is fetched."""
    program = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return source / "dist" / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(source_copy: Path) -> Path:
    return build(source_copy, "wheel")


@pytest.fixture(scope="module")
def sdist(source_copy: Path) -> Path:
    return build(source_copy, "sdist")


def test_a_wheel_installs_the_one_package_with_all_its_parts(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"slipstream"}
    expected = {"/".join(module_of(path)) for path in SOURCES if path.name != "__init__.py"}
    assert {f"{name}.py" for name in expected} <= names
    model = {f"slipstream/model/{path.name}" for path in (FOLDERS["face"] / "model").iterdir()}
    vectors = {
        f"slipstream/protocol/vectors/{path.name}" for path in (ROOT / "protocol" / "vectors").iterdir()
    }
    assert "slipstream/model/model.safetensors" in model
    assert len(vectors) >= 3
    folder = "actors/http/endpoints/page"
    page = {f"slipstream/{folder}/{path.name}" for path in (ROOT / folder).iterdir()}
    assert f"slipstream/{folder}/index.html" in page
    assert model | vectors | page | {"slipstream/py.typed"} <= names


def test_a_wheel_built_from_the_sdist_is_the_same(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    again = build(unpacked, "wheel")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert {name for name in first.namelist() if not name.endswith("RECORD")} == {
            name for name in second.namelist() if not name.endswith("RECORD")
        }


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that has the wheel, and the dependencies of ours."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    python = place / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
    ]
    subprocess.run(
        [*install, str(wheel)], check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    )
    return python


def run_installed(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run something of the installation, from a directory where no source lies."""
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    own = next((python.parent.parent / "lib").glob("python*/site-packages"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLIPSTREAM_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(own), *libraries])
    return subprocess.run(arguments, capture_output=True, text=True, cwd="/", env=environment)


def test_the_installed_package_runs_from_any_directory(installed: Path) -> None:
    done = run_installed(installed, str(installed), "-m", "slipstream", "--help")
    assert done.returncode == 0, done.stderr
    for command in ("serve", "generate", "chat"):
        assert command in done.stdout
    script = run_installed(installed, str(installed.parent / "slipstream"), "--version")
    assert script.stdout.startswith("slipstream ")


def test_the_installed_package_is_the_installed_one_and_its_public_names_are_there(installed: Path) -> None:
    program = (
        "import slipstream, slipstream.serving.service as service;"
        "from slipstream import LLM, AsyncClient, Client, Sidecar, SamplingParams;"
        "print(slipstream.__file__); print((service.BUNDLED_MODEL / 'model.safetensors').stat().st_size)"
    )
    done = run_installed(installed, str(installed), "-c", program)
    assert done.returncode == 0, done.stderr
    file, size = done.stdout.split()
    assert installed.parent.parent in Path(file).parents
    assert int(size) == (FOLDERS["face"] / "model" / "model.safetensors").stat().st_size <= 4_000_000


@pytest.mark.parametrize("name", ["actors", "runtime", "protocol", "tests"])
def test_no_top_level_module_of_a_common_name_is_installed(installed: Path, name: str) -> None:
    done = run_installed(installed, str(installed), "-c", f"import {name}")
    assert done.returncode == 1
    assert f"No module named '{name}'" in done.stderr
