"""The page at ``/dashboard``, in a headless Chromium against a real service."""

from __future__ import annotations

import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from chromium import CHROMIUM, Page
from covering import few_of

from slipstream import SamplingParams, Sidecar

browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")

KEY = "a-secret"

COLOURED = """(() => {
  const canvas = document.querySelector("#timeline"), { width, height } = canvas;
  const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const steps = [0, 1, 2, 3].map((i) => getComputedStyle(document.documentElement).getPropertyValue(`--step-${i}`))
    .map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return [0, 1, 2, 3, 4, 5, 6].map((lane) => {
    const { data } = copy.getImageData(0, lane * 32 + 16, width, 1), found = new Set();
    for (let i = 0; i < data.length; i += 4)
      steps.forEach((rgb, step) => { if (rgb.every((v, k) => data[i + k] === v)) found.add(step); });
    return found.size;
  });
})()"""
"""How many of the four colours of steps are in the middle of each lane of the picture."""


@pytest.fixture(scope="module")
def service() -> Iterator[Sidecar]:
    with Sidecar(device="emulated", emulated_step_ms=8.0, max_num_seqs=16, http="127.0.0.1:0") as sidecar:
        yield sidecar


@contextmanager
def under_load(service: Sidecar) -> Iterator[None]:
    """Requests run one after the other until the block ends."""
    ended = threading.Event()

    def ask() -> None:
        with service.client() as client:
            while not ended.is_set():
                params = SamplingParams(max_tokens=200, ignore_eos=True)
                client.generate_many(["Once upon a time"] * 4, params)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        ended.set()
        asking.join()


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_the_page_may_load_nothing_but_its_own_files(service: Sidecar) -> None:
    url = service.ready["http"]
    for path, kind in (
        ("/dashboard", "text/html"),
        ("/dashboard/style.css", "text/css"),
        ("/dashboard/timeline.js", "text/javascript"),
    ):
        status, headers, body = get(url + path)
        assert status == 200
        assert headers["content-type"].startswith(kind)
        assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
        assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in body
    for path in ("/dashboard/none.js", "/dashboard/..%2fapp.py", "/dashboard/%2e%2e/app.py", "/dashboard/.."):
        assert get(url + path)[0] == 404


@browser
def test_the_page_shows_numbers_actors_and_the_last_steps_and_complains_of_nothing(service: Sidecar) -> None:
    with under_load(service), Page(f"{service.ready['http']}/dashboard") as page:
        page.until("document.querySelector('#status').textContent === 'ready'")
        page.until("parseFloat(document.querySelector('#busy').textContent) > 50")
        page.until("parseFloat(document.querySelector('#tokens').textContent.replace(',', '')) > 10")
        page.until("document.querySelector('#ttft td').textContent !== '–'")
        rows = page.value(
            "Object.fromEntries([...document.querySelectorAll('#actors tbody tr')].map((row) =>"
            " [row.cells[0].textContent, row.cells[6].textContent]))"
        )
        assert rows == {name: str(pid) for name, pid in service.pids.items()}
        assert page.text("#model") == "slipstream-bundled"
        page.until(
            "/^\\d+ % of these steps were planned before/.test(document.querySelector('#caption').textContent)"
        )
        page.until(f"{COLOURED}.every((colours) => colours >= 1)")
        page.until(f"{COLOURED}[3] >= 4")
        moved = page.value("document.querySelector('#timeline').toDataURL()")
        page.until(f"document.querySelector('#timeline').toDataURL() !== {moved!r}")
        page.value("document.querySelector('#pause').click()")
        assert page.text("#pause") == "Play"
        assert page.complaints == []
        assert page.requested
        assert all(url.startswith(service.ready["http"]) or url.startswith("data:") for url in page.requested)


@browser
def test_a_restarted_actor_is_seen(service: Sidecar) -> None:
    restarts = (
        "+[...document.querySelectorAll('#actors tr')].find((row) => row.cells[0].textContent === 'detokenizer')"
        "?.cells[4].textContent"
    )
    with Page(f"{service.ready['http']}/dashboard") as page:
        page.until("document.querySelectorAll('#actors tbody tr').length === 6")
        before = page.value(restarts)
        os.kill(service.pids["detokenizer"], signal.SIGKILL)
        page.until(f"{restarts} === {before + 1}")
        page.until("document.querySelector('#status').textContent === 'ready'")


@browser
def test_a_prompt_can_be_tried_stopped_and_refused(service: Sidecar) -> None:
    with Page(f"{service.ready['http']}/dashboard") as page:
        page.value("document.querySelector('[name=max_tokens]').value = 20")
        page.value("document.querySelector('#send').click()")
        page.until("/^20 tokens; the first after \\d+ ms/.test(document.querySelector('#told').textContent)")
        assert len(page.text("#answer")) > 10
        page.value("document.querySelector('[name=max_tokens]').value = 500")
        page.value("document.querySelector('#send').click()")
        page.until("document.querySelector('#answer').textContent.length > 20")
        assert page.text("#send") == "Stop"
        page.value("document.querySelector('#send').click()")
        page.until("document.querySelector('#send').textContent === 'Send'")
        assert page.complaints == []
        page.value("document.querySelector('[name=max_tokens]').value = 1000000")
        page.value("document.querySelector('#send').click()")
        page.until("document.querySelector('#answer').className === 'failed'")
        assert "1000000" in page.text("#answer")
    with service.client() as client:
        assert client.stats()["requests_aborted"] >= 1


@browser
def test_with_an_api_key_the_page_asks_for_it_and_nothing_is_told_without_it() -> None:
    with Sidecar(device="emulated", http="127.0.0.1:0", api_key=KEY) as service:
        url = service.ready["http"]
        assert get(f"{url}/dashboard")[0] == 200
        assert get(f"{url}/dashboard/state")[0] == 401
        assert get(f"{url}/dashboard/state", authorization=f"Bearer {KEY}")[0] == 200
        with Page(f"{url}/dashboard") as page:
            page.until("!document.querySelector('#key').hidden")
            assert page.text("#status") == "locked"
            page.value(f"document.querySelector('#key input').value = {KEY!r}")
            page.value("document.querySelector('#key button').click()")
            page.until("document.querySelector('#status').textContent === 'ready'")
            assert page.value("document.querySelector('#key').hidden")


@browser
@pytest.mark.parametrize("width", few_of([360, 800, 1600], 360))
def test_the_page_fits_any_width(service: Sidecar, width: int) -> None:
    with Page(f"{service.ready['http']}/dashboard", width=width) as page:
        page.until("document.querySelectorAll('#actors tbody tr').length === 6")
        assert page.value("document.documentElement.scrollWidth") <= width
