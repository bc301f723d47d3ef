"""A real headless Chromium on the app, for its tests, its benchmark and its pictures; it fails on
what Python never sees.

    with serving(runs) as url, chromium() as browser:
        page = Watched(browser, url)
        page.open("spikes", run="demo", spike=400)
        page.check()       # page and console errors, flat charts, requests outside 127.0.0.1

Streamlit draws with Vega in the browser: a chart that is broken there leaves no trace in Python.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    # no name and no address but this machine's is found; routing requests instead would switch
    # the cache of what a page loads off
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
SIZE = {"width": 1440, "height": 1150}
WAIT_S = 60.0
DRAWN = """() => {
  const app = document.querySelector('[data-testid="stApp"]');
  if (!app || app.getAttribute('data-test-script-state') !== 'notRunning') return false;
  if (document.querySelector('[data-testid="stSkeleton"]')) return false;
  if (document.querySelector('[data-testid="stBidiComponent"]:empty')) return false;
  return [...document.querySelectorAll('[data-testid="stVegaLiteChart"]')].every(
    (e) => e.querySelector('canvas, svg.marks'));
}"""
CHARTS = """() => [...document.querySelectorAll('[data-testid="stVegaLiteChart"]')].map((e) => {
  const inner = e.querySelector('canvas, svg.marks');
  const box = inner ? inner.getBoundingClientRect() : {width: 0, height: 0};
  return [Math.round(box.width), Math.round(box.height)];
})"""


def executable() -> str | None:
    """Debian's chromium, or another by its usual name; None where there is none."""
    return (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def serving(runs: Path) -> Iterator[str]:
    """Run `forensics app` over these runs, as a user starts it, and yield its address."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "forensics.cli.main",
        "--runs",
        str(runs),
        "app",
        "--port",
        str(port),
    ]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait_for(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Any) -> None:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as answer,
        ):
            if answer.status == 200:
                return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    log.seek(0)
    raise RuntimeError(f"the app did not start: {log.read().decode(errors='replace')[-2000:]}")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser of Playwright with an empty profile."""
    from playwright.sync_api import sync_playwright

    path = executable()
    assert path, "no chromium on this machine"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """One tab: opens pages, waits until they are drawn, and keeps what went wrong in `faults`."""

    def __init__(
        self, browser: Any, url: str, *, dark: bool = False, size: dict[str, int] | None = None
    ) -> None:
        self.url = url
        self.faults: list[str] = []
        self.context = browser.new_context(
            viewport=size or SIZE, color_scheme="dark" if dark else "light"
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_S * 1000)
        self.page.on("pageerror", lambda error: self.faults.append(f"page error: {error}"))
        self.page.on("console", self._said)
        self.page.on("dialog", self._asked)
        self.page.on("response", self._answered)
        self.page.on("websocket", self._connected)
        self.page.on("request", self._asked_for)

    def open(self, page: str = "", **selection: Any) -> None:
        """Open a page (its name in the URL; the default's is empty) and wait until it is drawn."""
        query = urllib.parse.urlencode(
            {key: value for key, value in selection.items() if value is not None}
        )
        self.page.goto(f"{self.url}/{page}" + (f"?{query}" if query else ""))
        self.settle()

    def settle(self) -> None:
        """Wait until the script has ended and every chart is drawn; errors of the page are
        faults.
        """
        self.page.wait_for_selector('[data-testid="stApp"]')
        calm = 0
        while calm < 3:  # three looks in a row: a rerun may be about to start
            self.page.wait_for_function(DRAWN)
            self.page.wait_for_timeout(100)
            calm = calm + 1 if self.page.evaluate(DRAWN) else 0
        for row in self.page.query_selector_all(
            '[data-testid="stException"], [data-testid="stAlertContentError"]'
        ):
            self.faults.append(f"on the page: {row.inner_text()[:300]}")

    def timed(self, page: str = "", **selection: Any) -> dict[str, float]:
        """Seconds from the request until the verdict's text, the first chart and everything is
        drawn.
        """
        query = urllib.parse.urlencode(selection)
        began = time.perf_counter()
        self.page.goto(f"{self.url}/{page}?{query}", wait_until="commit")
        return self._drawn(began)

    def followed(self, title: str) -> dict[str, float]:
        """Time a click on a page's link in the row on top, without a new load."""
        before = self.page.url
        self.page.evaluate("() => document.querySelector('.fw').classList.add('left')")
        began = time.perf_counter()
        self.page.locator(".st-key-navigation a", has_text=title).click()
        self.page.wait_for_function(
            "(u) => location.href !== u && !document.querySelector('.fw.left')", arg=before
        )
        return self._drawn(began)

    def _drawn(self, began: float) -> dict[str, float]:
        self.page.wait_for_selector(".fw h1")
        verdict = time.perf_counter() - began
        self.page.wait_for_function(
            f"() => ({CHARTS})().some(([w, h]) => h > 0) || ({DRAWN})()"
        )  # some views have none
        first = time.perf_counter() - began
        self.page.wait_for_function(DRAWN)
        drawn = time.perf_counter() - began
        self.settle()
        return {
            "verdict_s": round(verdict, 2),
            "first_chart_s": round(first, 2),
            "all_s": round(drawn, 2),
        }

    def charts(self) -> list[tuple[int, int]]:
        """Width and height of every chart, in pixels."""
        return [tuple(size) for size in self.page.evaluate(CHARTS)]

    def parameters(self) -> dict[str, str]:
        """Of the URL, as it stands in the bar."""
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.page.url).query))

    def click_mark(self, chart: int, x: float, y: float, *, wait: bool = True) -> None:
        """Click into a chart, x and y as shares of its width and height; then wait until all is
        drawn.
        """
        inner = (
            self.page.locator('[data-testid="stVegaLiteChart"]')
            .nth(chart)
            .locator("canvas, svg.marks")
            .first
        )
        inner.scroll_into_view_if_needed()
        box = inner.bounding_box()
        self.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if wait:
            self.page.wait_for_timeout(300)
            self.settle()

    def click_cell(self, chart: int, offset: float, row: int, rows: int, **how: bool) -> None:
        """Click into a heat map of the Spikes page: the cell of a step (as steps from the spike)
        and a row, from the top.
        """
        from app.theme import LABELS

        width, height = self.charts()[chart]
        low, high = -64.5, 32.5
        left, right, foot = LABELS + 7, 9, 12  # pixels around the plot
        value = left + (offset - low) / (high - low) * (width - left - right)
        self.click_mark(
            chart, value / width, (4 + (row + 0.5) / rows * (height - foot)) / height, **how
        )

    def check(self) -> None:
        """Raise AssertionError with everything that went wrong since the tab was opened."""
        flat = [
            f"a chart of {width} × {height} pixels"
            for width, height in self.charts()
            if min(width, height) < 15
        ]
        assert not (self.faults + flat), "\n".join(self.faults + flat)

    def picture(self, path: Path, *, full: bool = True) -> None:
        """Write a picture of the page, or of its window alone."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(path), full_page=full)

    def whole(self) -> None:
        """Make the window as high as the page, so that a picture holds all of it."""
        height = self.page.evaluate(
            "() => { const m = document.querySelector('[data-testid=\"stMain\"]'); return m ?"
            " m.scrollHeight : 0; }"
        )
        self.page.set_viewport_size(
            {"width": SIZE["width"], "height": min(2600, max(SIZE["height"], height + 8))}
        )
        self.settle()

    def close(self) -> None:
        """Close the tab and forget its session."""
        self.context.close()

    def _said(self, message: Any) -> None:
        if message.type == "error" and not message.text.startswith(
            "Failed to load resource"
        ):  # `_answered` has those
            self.faults.append(f"console: {message.text[:500]}")

    def _answered(self, response: Any) -> None:
        # opened on a page, Streamlit's client first asks whether the app lies below that page's
        # path
        probe = re.search(r"/[a-z]+/_stcore/(health|host-config)$", response.url)
        if response.status >= 400 and not probe:
            self.faults.append(f"{response.status} for {response.url[:200]}")

    def _asked(self, dialog: Any) -> None:
        self.faults.append(f"a dialog: {dialog.message[:200]}")
        dialog.dismiss()

    def _asked_for(self, request: Any) -> None:
        if not _is_here(request.url):
            self.faults.append(f"a request to {request.url[:200]}")

    def _connected(self, socket: Any) -> None:
        if not _is_here(socket.url):  # a socket is no request
            self.faults.append(f"a socket to {socket.url[:200]}")


def _is_here(url: str) -> bool:
    target = urllib.parse.urlsplit(url)
    return target.scheme in ("data", "blob") or target.hostname == "127.0.0.1"


def scripted(name: str, *, seconds: float = 60, **selection: Any) -> Any:
    """Return Streamlit's AppTest on a page with this selection in its URL, not yet run."""
    from streamlit.testing.v1 import AppTest
    from streamlit.util import calc_hash

    from app import navigation, start

    test = AppTest.from_file(start.ENTRY, default_timeout=seconds)
    for key, value in selection.items():
        test.query_params[key] = str(value)
    test._page_hash = calc_hash(navigation.views()[name].path)  # switch_page wants a page's file
    return test
