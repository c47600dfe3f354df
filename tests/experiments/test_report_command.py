"""The report of a finished workdir: one file, complete, and nothing where it cannot be made."""

import re
import shutil

import pytest
from absl.testing import flagsaver
from browsing import opened
from tiny_auction import training
from tiny_runs import Flag, run_apart

from ega_jax.baselines.settings import Settings
from ega_jax.evaluation.auction import scores
from ega_jax.evaluation.report import read_results
from ega_jax.training.checkpoints import read_config
from experiments import report
from experiments.common import runs

SECTIONS = (
    *("What was run", "Systems and payment rules", "Value against clicks", "Data", "Training"),
    *("Predicted and known clicks of the slates served", "What advertisers gain by lying"),
    *("Slates of ega, explained", "For advertisers: results under ega", "Reward model on the log"),
    *("How much of what is served the log supports", "Settings, and how to repeat it"),
)
REFERENCES = r"https?:|//|@import|<script|<iframe|<img|<object|\ssrc=|url\((?!#)"
LARGEST = 5 * 2**20  # Bytes.
SMALLEST = 8.0  # Pixels of text in figures.


@pytest.fixture(scope="module")
def reported(finished, tmp_path_factory):
    """A workdir with its report."""
    workdir = shutil.copytree(finished[1], tmp_path_factory.mktemp("reported") / "run")
    again = lambda *_: pytest.fail("auction_align keeps what it has judged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.common.measuring.judge_batch", again)
        made(workdir, workdir / "report.html")
    return workdir


def made(workdirs, out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_SESSIONS", Flag(4))
        patch.setattr(report, "_OUT", Flag(str(out)))
        with flagsaver.flagsaver(workdir=str(workdirs), system=None):
            report.main()
    return out.read_text()


def test_a_report_is_complete(reported):
    html = (reported / "report.html").read_text()
    for title in SECTIONS:
        assert f"<h3>{title}</h3>" in html
    assert "by the reward model:" in html, "a log of one's own has no truth"
    assert "python -m experiments.pretrain" in html


def test_a_report_is_one_small_file(reported):
    html = (reported / "report.html").read_text()
    assert re.findall(REFERENCES, html) == []
    references = re.findall(r'href="([^"]*)"', html)
    assert all(each.startswith("#") or each == "data:," for each in references)
    ids = set(re.findall(r'\sid="([^"]*)"', html))
    assert {each[1:] for each in references if each.startswith("#")} <= ids
    assert len(html.encode()) < LARGEST


def test_a_second_report_measures_nothing_and_is_the_same(reported, tmp_path, monkeypatch):
    for name in ("reports.studies.landscape", "common.measuring.visit_batch"):
        monkeypatch.setattr(f"experiments.{name}", lambda *_: pytest.fail("measured again"))
    first = (reported / "report.html").read_text()
    assert made(reported, tmp_path / "again.html") == first


def test_what_is_judged_is_kept_for_its_settings_alone(reported):
    config = Settings.from_dict(read_config(reported / "systems" / "ega"))
    kept = runs.kept_judged(training(config, reported))
    stored = read_results(reported)["systems"]["ega"]["model"]
    assert scores(kept["model"], config.auction.rule) == pytest.approx(stored, nan_ok=True)
    others = config.changed({"auction.num_losing": config.auction.num_losing + 1})
    assert runs.kept_judged(training(others, reported)) is None
    assert runs.kept_judged(training(config, reported), "tune") is None, "never judged"


def test_several_workdirs_are_compared(reported, tmp_path):
    other = shutil.copytree(reported, tmp_path / "other")
    html = made(f"{reported},{other}", tmp_path / "both.html")
    assert "Comparison of run, other" in html
    for workdir in (reported, other):
        assert f"<h2>{workdir}</h2>" in html
    assert re.findall(REFERENCES, html.replace(str(tmp_path), "")) == []


def test_bad_input_is_one_line(reported, tmp_path):
    without = tmp_path / "pretrained"
    without.mkdir()
    shutil.copy(reported / "config.json", without)
    half = shutil.copytree(without, tmp_path / "half")
    shutil.copytree(reported / "systems", half / "systems")
    lines = {
        f"--workdir={tmp_path / 'none'}": "is not a workdir: run experiments.pretrain first",
        f"--workdir={without}": "has no trained system: run experiments.auction_align first",
        f"--workdir={half}": "has no trained system: run experiments.auction_align first",
        f"--workdir={reported},{without}": "has no trained system",
    }
    before = sorted(reported.rglob("*"))
    for flag, message in lines.items():
        code, printed = run_apart("experiments.report", [flag], tmp_path)
        assert code == 1, printed
        assert message in printed
        assert len(printed.strip().splitlines()) == 1
    arguments = [f"--workdir={reported}", f"--out={tmp_path / 'no' / 'folder.html'}"]
    code, printed = run_apart("experiments.report", arguments, tmp_path)
    assert (code, "name a file in a folder that exists" in printed) == (1, True)
    assert sorted(reported.rglob("*")) == before


def test_a_report_that_fails_leaves_no_file(reported, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "html_of", lambda found: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        made(reported, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_without_scrolling_sideways(reported, tmp_path, width):
    """The page asks for nothing else, and text in figures is large enough to read."""
    with opened((reported / "report.html").as_uri(), width) as (page, messages, requests):
        page.screenshot(path=tmp_path / f"report-{width}.png", full_page=True)
        widest = page.evaluate("document.documentElement.scrollWidth")
        heights = page.evaluate(
            "[...document.querySelectorAll('svg text')].map(text => {"
            " const m = text.getScreenCTM();"  # Labels of axes are rotated.
            " return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(m.a, m.b); })"
        )
    assert widest <= width
    assert min(heights) >= SMALLEST
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert (tmp_path / f"report-{width}.png").stat().st_size > 10_000
