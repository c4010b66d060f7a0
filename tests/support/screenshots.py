"""Make the pictures of the live views in ``docs/images``: ``python tests/support/screenshots.py``.

A service of the bundled model on the CPU, with requests that come and go, is looked at by the dashboard, in both
colour schemes, and by ``slipstream top``, in a moment in which the machine has the time for it.
"""

from __future__ import annotations

import asyncio
import io
import random
import re
import threading
import time
from pathlib import Path

from chromium import Page
from rich.console import Console
from slipstream.protocol.client.snapshot import Observer

from slipstream import AsyncClient, SamplingParams, Sidecar
from slipstream.observe.top import View

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"

OPENINGS = ("Once upon a time", "One rainy morning, Anna found", "The little fox", "What is 27 + 15?")

FONT_FACES = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""They name a place in the net."""

CALM = (
    "parseFloat(document.querySelector('#busy').textContent) > 90"
    " && document.querySelector('#caption').textContent.startsWith('100 %')"
)
"""The machine was not busy with other things in the last two seconds."""

LOOK_S = 20.0


async def load(endpoint: str, ended: threading.Event) -> None:
    """About a dozen requests at a time, new ones every now and then."""
    rng = random.Random(7)
    async with AsyncClient(endpoint) as client:
        asked: set[asyncio.Task[object]] = set()
        while not ended.is_set():
            if len(asked) < 7:
                params = SamplingParams(max_tokens=rng.randrange(40, 250), ignore_eos=True)
                asked.add(asyncio.create_task(client.complete(rng.choice(OPENINGS), params)))
            await asyncio.sleep(rng.expovariate(9.0))
            asked = {task for task in asked if not task.done()}
        for task in asked:
            task.cancel()


def dashboard(url: str) -> None:
    with Page(f"{url}/dashboard", width=1240, height=1000) as page:
        page.until("document.querySelector('#status').textContent === 'ready'")
        page.value("document.querySelector('[name=prompt]').value = 'Tell me a story about a little fox.'")
        page.value("document.querySelector('[name=max_tokens]').value = 90")
        page.value("document.querySelector('#send').click()")
        page.until("document.querySelector('#told').textContent !== ''")
        time.sleep(LOOK_S)
        page.until(CALM)
        time.sleep(2.0)
        page.screenshot(IMAGES / "dashboard.png")
        page.set_dark(True)
        time.sleep(1.0)
        page.screenshot(IMAGES / "dashboard-dark.png")


def top(sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        observer, view = Observer(client.welcome.model), View("ipc:///tmp/slipstream")
        shown = None
        for _ in range(18):
            shown = view.of(
                observer.snapshot(client.actors(), client.stats(), client.trace(observer.seconds))
            )
            time.sleep(0.5)
    console = Console(
        width=124, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(shown)
    drawn = FONT_FACES.sub("", console.export_svg(title="slipstream top"))
    drawn = drawn.replace("font-family: Fira Code,", "font-family: ui-monospace, DejaVu Sans Mono,")
    (IMAGES / "top.svg").write_text(drawn, encoding="utf-8")


def main() -> None:
    ended = threading.Event()
    with Sidecar(device="cpu", max_num_seqs=8, http="127.0.0.1:0") as sidecar:
        asking = threading.Thread(target=lambda: asyncio.run(load(sidecar.endpoint, ended)))
        asking.start()
        try:
            dashboard(sidecar.ready["http"])
            top(sidecar)
        finally:
            ended.set()
            asking.join()


if __name__ == "__main__":
    main()
