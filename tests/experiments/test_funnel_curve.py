"""The curve over books of several sizes: its rows, its funnels, and that nothing is run twice."""

import csv
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from small_market import MARKET
from tiny_auction import TINY
from tiny_runs import Flag, tiny_config

from ega_jax.baselines.cascade import training
from ega_jax.data.market import config as market_config
from ega_jax.errors import UserError
from ega_jax.evaluation.lifts import value_at_clicks
from ega_jax.evaluation.records import OWN
from ega_jax.evaluation.serving import Outcomes
from ega_jax.training.checkpoints import check_workdir
from experiments import funnel
from experiments.benchmarks.auction import Auction, Shape
from experiments.benchmarks.book_serving import shape_of, with_random_book
from experiments.common import measuring, workdirs
from experiments.configs import market


def outcomes(clicks, value):
    """Four sessions of ten impressions each."""
    rng = np.random.default_rng(round(value))
    around = lambda mean: mean * (1 + 0.1 * rng.normal(size=4))
    names = [field.name for field in dataclasses.fields(Outcomes)]
    fields = dict.fromkeys(names, np.zeros(4)) | {"impressions": np.full(4, 10.0)}
    return Outcomes(**fields | {"clicks": around(clicks), "value": around(value)})


def stub(own, *points):
    frontier = {OWN: {"truth": own}}
    frontier |= {("alpha", float(number)): {"truth": point} for number, point in enumerate(points)}
    return SimpleNamespace(costs={"ms": 2.5}, value={"truth": own}, frontier=frontier)


def per_impression(sessions):
    return 1000 * sessions.value.sum() / 40, sessions.clicks.sum() / 40


def test_a_frontier_is_valued_at_the_clicks_of_the_reference():
    mca, own, point = outcomes(1.0, 20.0), outcomes(0.8, 30.0), outcomes(1.5, 22.0)
    row = funnel.measured_row("ega", 200, stub(own, point), mca)
    values, clicks = np.transpose([per_impression(own), per_impression(point)])
    expected = value_at_clicks(values, clicks, per_impression(mca)[1])
    assert values.min() < expected < values.max()
    assert row["value"] == pytest.approx(expected)
    assert row["ctr_poi"] == pytest.approx(clicks[0])
    assert row["low"] < row["value"] < row["high"]
    assert (row["system"], row["ads"], row["ms"]) == ("ega", 200, 2.5)
    few = funnel.measured_row("ega", 200, stub(own), outcomes(3.0, 20.0))
    assert few["value"] == "", "no setting has as many clicks"
    assert few["ctr_poi"] == row["ctr_poi"]


def test_a_system_without_reference_has_its_own_value():
    own = outcomes(0.8, 30.0)
    row = funnel.measured_row("mca", 40, stub(own))
    assert (row["value"], row["ctr_poi"]) == pytest.approx(per_impression(own))
    each = 100 * own.value
    assert each.min() < row["low"] < row["value"] < row["high"] < each.max()


@pytest.mark.parametrize(("recall", "most"), [("20", 20), ("100", 100), ("all", 5000)])
def test_a_recall_is_a_number_of_ads_or_all(recall, most):
    settings = market.settings("small").changed(funnel.recalling(recall))
    budgets = settings.cascade.funnel
    assert budgets.most_of(5000) == most
    assert budgets.most_of(10) == 10
    assert int(budgets.number_of(5000)) == most
    assert (budgets.num_preranked, budgets.num_ranked) == (50, 20)


@pytest.mark.parametrize("recall", ["0", "-3", "some"])
def test_other_recalls_are_refused(recall):
    with pytest.raises(UserError, match=rf"--recalls={recall}: each is a positive"):
        funnel.recalling(recall)


def run_command(settings, root, monkeypatch, ads, recalls=()):
    """Runs the command as its flags would."""

    def open_workdir(kind, free, check):
        check(settings)
        check_workdir(root / "run", settings.to_dict(), free)
        return settings, root / "run"

    monkeypatch.setattr(workdirs, "open_workdir", open_workdir)
    flags = {"_ADS": ads, "_RECALLS": list(recalls), "_MARKET": 0, "_VALUE": 8}
    flags |= {"_RESULTS": str(root / "results"), "_LATENCY_ONLY": False}
    for name, value in flags.items():
        monkeypatch.setattr(funnel, name, Flag(value))
    funnel.main()


def test_each_size_is_a_market_of_its_own(tmp_path, monkeypatch):
    seen = []

    def rows(place, ads, recalls):
        seen.append((place.workdir.relative_to(tmp_path), place.settings.data.market.book))
        yield funnel.row_of("mca", ads, value=1.0, ctr_poi=0.1, low=0.5, high=2.0, ms=1.0)

    monkeypatch.setattr(funnel, "rows_of_market", rows)
    run_command(market.settings("small"), tmp_path, monkeypatch, ["40", "200"])
    assert [(str(path), book) for path, book in seen] == [
        ("run/book-40/market-0", 40),
        ("run/book-200/market-0", 200),
    ]
    assert len((tmp_path / "results" / "funnel.csv").read_text().splitlines()) == 3


def test_what_cannot_be_made_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(funnel, "rows_of_market", lambda *_: pytest.fail("trained"))
    settings = market.settings("small")
    with pytest.raises(UserError, match="the 2 advertisers of a region"):
        run_command(settings, tmp_path, monkeypatch, ["40", "2"])
    with pytest.raises(UserError, match=r"config\.data\.path: --ads sizes simulated markets"):
        run_command(settings.changed({"data.path": "log"}), tmp_path / "log", monkeypatch, ["40"])
    monkeypatch.setattr(funnel, "_MARKET", Flag(100))
    with pytest.raises(UserError, match="--market=100 is the market of"):
        funnel.sized(settings, [40])


def test_only_latency_trains_nothing(tmp_path, monkeypatch):
    timed = []
    monkeypatch.setattr(
        funnel, "book_serving_ms", lambda _, ads, limit_s: timed.append(ads) or ads / 10
    )
    config = SimpleNamespace(to_dict=market.settings("tiny").to_dict)
    monkeypatch.setattr(funnel.flags, "FLAGS", SimpleNamespace(config=config))
    monkeypatch.setattr(workdirs, "open_workdir", lambda *_, **__: pytest.fail("a workdir"))
    flags = {"_LATENCY_ONLY": True, "_ADS": ["40", "1000000"], "_RESULTS": str(tmp_path)}
    for name, value in flags.items():
        monkeypatch.setattr(funnel, name, Flag(value))
    funnel.main()
    assert timed == [40, 1_000_000]
    assert (tmp_path / "funnel.csv").read_text().splitlines()[1:] == [
        "ega,40,,,,,4.0",
        "ega,1000000,,,,,100000.0",
    ]


def test_random_models_have_the_sizes_of_the_config():
    small = shape_of(market.settings("small"))
    assert small == Shape(256, 6, 32, 40, 32, 64, 256, 2, 64)


def test_a_random_book_serves_valid_requests():
    settings = market.settings("tiny")
    shape = dataclasses.replace(shape_of(settings), width=8, hidden=8, blocks=1, reward_width=8)
    mechanism, request = with_random_book(Auction(shape), settings, 30)
    system, _, _, checked, *_ = mechanism.arguments(request, "threshold", max_ads=3)
    assert system.book.book_start.tolist() == [0, 30]
    assert checked.organic.tolist() == [list(range(30, 30 + 16))]


@pytest.mark.slow
def test_a_small_market_has_a_curve(tmp_path, monkeypatch):
    monkeypatch.setitem(market_config.SIZES, "tiny", MARKET)
    monkeypatch.setattr(measuring, "FRONTIER", {"alpha": (0.6,), "kappa": (4.0,)})
    monkeypatch.setattr(measuring, "LATENCY_LIMIT_S", 0.0)
    settings = tiny_config(tmp_path, "kmeans", **TINY).changed({"data.path": ""})
    run_command(settings, tmp_path, monkeypatch, ["12"], ["2", "all"])
    path = tmp_path / "results" / "funnel.csv"
    with path.open() as file:
        rows = {row["system"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["ega", "mca", "mca-recall-2", "mca-recall-all"]
    for name, row in rows.items():
        assert float(row["ms"]) > 0
        if name != "ega":
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    assert rows["mca"]["value"] != rows["mca-recall-all"]["value"], "the funnel counts"
    systems = tmp_path / "run" / "book-12" / "market-0" / "systems"
    assert (systems / "mca" / "checkpoints").is_dir()
    assert not (systems / "mca-recall-2" / "checkpoints").exists(), "nothing is trained for it"
    before = path.read_text()
    monkeypatch.setattr(measuring, "served_batch", lambda *_, **__: pytest.fail("served again"))
    monkeypatch.setattr(training.Cascade, "_ads", lambda *_: pytest.fail("trained again"))
    run_command(settings, tmp_path, monkeypatch, ["12"], ["2", "all"])
    assert path.read_text() == before
