"""The playground as a visitor uses it, in a browser; and its refusals."""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import time

import pytest
from browsing import opened
from tiny_runs import forkserver, run_apart, run_command

from experiments.common.runs import find_system
from experiments.playground import playground_of

pytest.importorskip("panel")
SMALLEST = 12.0  # Pixels of text.
WAIT_S = 600  # It compiles first, and a machine may be slow.


@contextlib.contextmanager
def served(workdir, folder):
    """Runs the command in a process of its own: the address that it prints."""
    output = folder / "printed.txt"
    arguments = [f"--workdir={workdir}", "--port=0", "--num_requests=4"]
    target = ("experiments.playground", arguments, str(output))
    process = forkserver().Process(target=run_command, args=target)
    process.start()
    try:
        yield address(process, output)
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.join()
    assert "Traceback" not in output.read_text()


def address(process, output):
    """Waits until the page is ready."""
    for _ in range(10 * WAIT_S):
        text = output.read_text() if output.exists() else ""
        if found := re.search(r"ready: (\S+)", text):
            return found[1]
        assert process.is_alive(), text
        time.sleep(0.1)
    raise AssertionError(f"not ready: {text}")


@pytest.fixture(scope="module")
def address_of_page(finished, tmp_path_factory):
    with served(finished[1], tmp_path_factory.mktemp("playground")) as found:
        yield found


@contextlib.contextmanager
def visit(url, width):
    """The page in a browser, once it shows a slate; see `opened`."""
    with opened(url, width) as found:
        found[0].locator("ol.slate li").first.wait_for()
        yield found


def kinds(page):
    return page.locator("ol.slate .kind").all_inner_texts()


def press(page, slider, key):
    """Presses a key on the handle of a slider, found by its name."""
    named = page.locator(".bk-input-group").filter(has_text=slider)
    named.locator(".noUi-handle").press(key)


def errors(messages):
    """Errors of the page's scripts and of the console."""
    return [str(each) for each in messages if getattr(each, "type", "error") == "error"]


def test_a_slider_changes_the_slate(address_of_page):
    with visit(address_of_page, 1280) as (page, messages, requests):
        before = kinds(page)
        assert "ad" in before
        assert page.locator("canvas").count() >= 2, "the curves are drawn"
        press(page, "most ads in a slate", "Home")
        page.locator("ol.slate li.ad").first.wait_for(state="detached")
        assert set(kinds(page)) == {"organic"}
        page.get_by_role("button", name="back to the trained settings").click()
        page.locator("ol.slate li.ad").first.wait_for()
        assert kinds(page) == before
        assert errors(messages) == []
    outside = [url for url in requests if not url.startswith(("data:", "blob:"))]
    assert len(outside) > 3
    assert [url for url in outside if "://localhost:" not in url] == []


def test_another_request_has_another_history_and_another_ad(address_of_page):
    with visit(address_of_page, 1280) as (page, messages, _):
        before = page.locator("ol.visits").text_content()
        number = page.get_by_label("test request")
        number.fill("3")
        number.press("Enter")
        page.locator("ol.visits").filter(has_not_text=before).wait_for()
        assert errors(messages) == []


def test_the_truthful_mode_takes_a_reserve(address_of_page):
    with visit(address_of_page, 1280) as (page, messages, _):
        press(page, "reserve", "PageUp")
        page.get_by_label("payment rule").select_option("truthful")
        page.wait_for_timeout(3000)  # One search under other settings.
        assert page.locator("ol.slate li").count() > 0
        assert page.locator(".problem").count() == 0
        assert errors(messages) == []


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_legible(address_of_page, tmp_path, width):
    with visit(address_of_page, width) as (page, messages, _):
        page.wait_for_timeout(1000)  # Charts are drawn after the slate.
        shot = tmp_path / f"playground-{width}.png"
        page.screenshot(path=shot, full_page=True)
        widest = page.evaluate("document.documentElement.scrollWidth")
        parts = page.locator("ol.slate *, table *, ol.visits *, label, .noUi-target, h2, p")
        sizes = parts.evaluate_all("all => all.map(x => parseFloat(getComputedStyle(x).fontSize))")
        charts = page.locator(".bk-Figure").evaluate_all("all => all.map(x => x.clientWidth)")
        assert errors(messages) == []
    assert widest <= width
    assert min(sizes) >= SMALLEST
    assert len(charts) == 2
    assert min(charts) > 250
    assert shot.stat().st_size > 10_000


def test_what_a_log_calls_its_items_is_text(finished):
    from experiments.playgrounds.page import Page

    playground = playground_of(find_system(finished[1], "ega"), num_requests=4)
    titles = ["<script>alert(1)</script>"] * len(playground.names.titles)
    names = dataclasses.replace(playground.names, titles=titles)
    page = Page(dataclasses.replace(playground, names=names))
    written = [page._parts[name].object for name in ("slate", "candidates", "history", "gain")]
    assert all("&lt;script&gt;" in html and "<script>" not in html for html in written)


def test_bad_input_is_one_line(finished, tmp_path):
    workdir = finished[1]
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(workdir / "config.json", unfinished)
    half = shutil.copytree(unfinished, tmp_path / "half")
    shutil.copytree(workdir / "systems", half / "systems")
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = {
            (f"--workdir={tmp_path / 'none'}",): "is not a workdir: run experiments.pretrain first",
            (f"--workdir={unfinished}",): "holds no system 'ega', but none",
            (f"--workdir={half}",): "is not trained to its end: run experiments.auction_align",
            (f"--workdir={workdir}", "--system=mca"): "holds no system 'mca', but ega",
            (f"--workdir={workdir}", f"--port={port}"): f"--port={port}: Address already in use",
        }
        for arguments, message in wrong.items():
            code, printed = run_apart("experiments.playground", arguments, tmp_path)
            assert code == 1, printed
            assert message in printed
            assert len(printed.strip().splitlines()) == 1
