"""Chromium for the tests that look at pages as a reader does: found on PATH, and not silent about faults."""

import os
import pathlib
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

SITE = pathlib.Path(__file__).resolve().parents[1] / "_build" / "site"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATH = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    """A headless window with a fresh profile; playwright's context, whose `new_page` opens a tab."""
    if PATH is None:
        leave = pytest.fail if os.environ.get("CI") else pytest.skip
        leave("no Chromium on PATH: the pages were not opened")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        context = playwright.chromium.launch_persistent_context(
            str(profile),
            executable_path=PATH,
            headless=True,
            args=FLAGS,
            viewport={"width": 1280, "height": 900},
        )
        yield context
        context.close()


# The theme scrolls smoothly: a place measured on the way is soon another.
AT_ONCE = """addEventListener("DOMContentLoaded", () => {
    document.documentElement.style.scrollBehavior = "auto"; })"""


def chosen(theme: str) -> str:
    """A script for a tab that is to open pages in the light or the dark theme."""
    return f'localStorage.setItem("mode", "{theme}"); localStorage.setItem("theme", "{theme}");'


@contextmanager
def watched(window, own: tuple[str, ...] = ()) -> Iterator:
    """A fresh tab; at the end it must not have complained, nor asked anything of the network.

    own: what the addresses begin with that may be asked.
    """
    tab, asked, complaints = window.new_page(), [], []
    tab.add_init_script(AT_ONCE)

    def note_request(request):
        if request.url.startswith(("http", "ws")) and not request.url.startswith(own):
            asked.append(request.url)

    tab.on("request", note_request)
    tab.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    tab.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        yield tab
    finally:
        tab.close()
    assert not asked, "a page asked the network"
    assert not complaints, "the console of a page"


@pytest.fixture
def tab(window):
    with watched(window) as tab:
        yield tab


@pytest.fixture
def subfolder(tmp_path):
    """The address of the site in a subfolder of a server on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):  # browsers ask every host for this one
            if self.path != "/favicon.ico":
                return super().do_GET()
            self.send_response_only(204)
            self.end_headers()

    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "book").symlink_to(SITE, target_is_directory=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/deep/book"
        server.shutdown()
