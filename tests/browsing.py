"""A page in a headless Chromium."""

import contextlib
import shutil

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@contextlib.contextmanager
def opened(url, width):
    """A browser's page, its messages and errors, and the addresses that it asks for."""
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium here")
    messages, requests = [], []
    with playwright.sync_playwright() as run:
        chromium = run.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: messages.append(message))
        page.on("pageerror", lambda error: messages.append(error))
        page.on("request", lambda request: requests.append(request.url))
        page.on("websocket", lambda socket: requests.append(socket.url))
        page.goto(url)
        yield page, messages, requests
        chromium.close()
