"""A gateway for the clients of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_gateway import FakeGateway, Handler, echo


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/public"


@pytest.fixture
def serve(endpoint: str) -> Iterator[Callable[..., FakeGateway]]:
    started: list[FakeGateway] = []

    def start(handler: Handler = echo, **options: Any) -> FakeGateway:
        started.append(FakeGateway(endpoint, handler, **options))
        return started[-1]

    yield start
    for gateway in started:
        gateway.stop()
