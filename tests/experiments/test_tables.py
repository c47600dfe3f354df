"""The systems on a log of seconds: records, tables, and that nothing is run twice."""

import contextlib
import csv
import dataclasses
import shutil
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import Flag

from ega_jax.auction.reserves import MONOPOLY, NO_RESERVES
from ega_jax.baselines.cascade import cga, cross_dqn
from ega_jax.baselines.cascade.training import Cascade
from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.errors import UserError
from ega_jax.evaluation.comparison import COLUMNS
from ega_jax.evaluation.records import COSTS, LIFTS, VALUED, write_record
from ega_jax.mechanism import Mechanism
from ega_jax.phases.auction import AuctionTraining, SystemKind
from ega_jax.phases.pretraining import Pretraining
from ega_jax.phases.requests import request_of
from ega_jax.reward import model
from ega_jax.systems import compared, reserved
from ega_jax.training.checkpoints import ConfigMismatchError, check_workdir, read_config
from ega_jax.training.files import read_json
from ega_jax.training.loop import NonFiniteLossError
from ega_jax.training.mesh import data_mesh
from ega_jax.types import BookRequest, Request, organic_pois
from experiments import tables
from experiments.common import measuring, protocol, runs, workdirs
from experiments.configs import market

LEVERS = {"alpha": (0.6, 2.0), "kappa": (0.0, 4.0)}
GRID = ("mca", "gr", "ega", "ega-gsp")  # The slow test_protocol.py runs all systems.


def run_command(config, root, monkeypatch, markets=("0",), only=None):
    """Runs the command as its flags would."""

    def open_workdir(kind, free, check):
        check(config)
        check_workdir(root / "run", config.to_dict(), free)
        return config, root / "run"

    monkeypatch.setattr(workdirs, "open_workdir", open_workdir)
    monkeypatch.setattr(measuring, "FRONTIER", LEVERS)
    monkeypatch.setattr(measuring, "LATENCY_LIMIT_S", 0.0)
    # Counting compiles every system once more; test_flops.py covers it.
    monkeypatch.setattr(measuring, "flops_per_request", lambda *_: np.array([6.0, 8.0]))
    flags = {"_MARKETS": list(markets), "_ONLY": only and list(only)}
    flags |= {"_RESULTS": str(root / "results"), "_VALUE": 8, "_RPM": 4, "_PSI": 4}
    for name, value in flags.items():
        monkeypatch.setattr(tables, name, Flag(value))
    tables.main()


@pytest.fixture(scope="module")
def tabulated(finished, tmp_path_factory):
    """A run that finds EGA trained: config, and the folder of workdir and results."""
    config, workdir = finished
    root = tmp_path_factory.mktemp("tables")
    shutil.copytree(workdir, root / "run" / "market-0")
    with pytest.MonkeyPatch.context() as patch:
        note_what_training_reads(patch)
        run_command(config, root, patch, only=GRID)
    return config, root


READ: set[str] = set()  # Splits that were read while systems were trained.


def note_what_training_reads(patch):
    train, split, training = measuring.train_system, AdLogDataset.split, []

    def noted(dataset, name):
        if training:
            READ.add(name)
        return split(dataset, name)

    def watched(run):
        training.append(run.name)
        try:
            return train(run)
        finally:
            training.pop()

    patch.setattr(AdLogDataset, "split", noted)
    patch.setattr(measuring, "train_system", watched)


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def record(root, name):
    (path,) = (root / "results" / "runs").glob(f"*-0-{name}.json")
    return read_json(path)


def test_one_call_serves_all_points_of_a_frontier(tabulated, monkeypatch):
    run = runs.find_system(tabulated[1] / "run" / "market-0", "ega")
    measured = measuring.Measured(run, "gsp", measuring.Sessions(value=8, rpm=4, psi=4))
    monkeypatch.setattr(measuring, "FRONTIER", {"alpha": (5.0,), "kappa": (4.0, 9.0)})
    before = measured.frontier
    monkeypatch.setattr(measuring, "COMPILED_FROM", 8)
    monkeypatch.setattr(measuring, "served_batch", lambda *_: pytest.fail("searched again"))
    after = measured.frontier
    assert (run.folder / "measured" / "value-alpha-5-kappa-4-kappa-9-test-8").exists()
    assert after.keys() == before.keys()
    chex.assert_trees_all_close(vars_of(after), vars_of(before), rtol=1e-5)


def vars_of(frontier):
    return {
        point: {judge: vars(each) for judge, each in found.items()}
        for point, found in frontier.items()
    }


def test_systems_are_in_their_tables(tabulated):
    _, root = tabulated
    expected = {"table2": ("mca", "gr", "ega"), "table3": ("ega", "ega-gsp")}
    for table, names in expected.items():
        rows = read(root / "results" / f"{table}.csv")
        assert tuple(rows[0]) == COLUMNS
        assert tuple(dict.fromkeys(row["system"] for row in rows)) == names
        assert {row["scorer"] for row in rows} == {"model"}, "a log has no truth"
        for name in names:
            shown = {row["metric"] for row in rows if row["system"] == name}
            assert {*VALUED, "rpm", "surplus", "ms"} <= shown
        assert {row["markets"] for row in rows} == {"1"}
    text = (root / "results" / "tables.md").read_text()
    sections = [line for line in text.splitlines() if line.startswith("###")]
    assert sections == ["### table2", "### table3", "### Claims of the paper"]


def test_a_record_holds_what_its_run_measured(tabulated):
    config, root = tabulated
    found = record(root, "ega")
    assert found["lifts"]["model"].keys() == set(LIFTS)
    for name, (low, high) in found["intervals"]["model"].items():
        if low is not None:
            assert low <= found["lifts"]["model"][name] <= high
    along = [(lever, value) for lever, values in LEVERS.items() for value in values]
    points = [(point["lever"], point["setting"]) for point in found["frontier"]]
    assert points == [("own", 0.0), *along]
    assert {point["lever"] for point in record(root, "gr")["frontier"]} == {"own", "kappa"}
    assert [point["lever"] for point in record(root, "mca")["frontier"]] == ["own"]
    assert all(found["means"]["model"][cost] > 0 for cost in COSTS)
    assert found["means"]["model"]["flops"] == 7.0
    assert found["sessions"]["value"] >= found["sessions"]["rpm"] > 0
    assert {"reward", "alignment", "payment", "value-test-8"} <= found["seconds"].keys()
    assert all(seconds > 0 for seconds in found["seconds"].values())
    settings = config.alignment
    assert found["samples"]["alignment"] == settings.num_steps * settings.batch_size
    assert "cga" not in found["samples"], "a model of another system"
    assert found["config"]["auction.system"] == "ega"
    assert found["manifest"]["machine"]["devices"] == jax.device_count()


def test_systems_that_differ_in_the_rule_share_slates(tabulated):
    _, root = tabulated
    own, gsp = (record(root, name)["means"]["model"] for name in ("ega", "ega-gsp"))
    assert own["value"] == gsp["value"]
    kept = read_config(root / "run" / "market-0" / "systems" / "ega")
    assert kept["auction"]["rule"] != "gsp", "another rule leaves the system its own"


def reordered(request, seed, codes=None):
    """The request with its ads in another order; the organic items stay where they were.

    With codes `[I, C]` of all items, ads that share all of them keep their order.
    """
    item, is_ad, bid = (np.array(x) for x in (request.item, request.is_ad, request.bid))
    rng = np.random.default_rng(seed)
    for row in range(len(item)):
        ads = np.flatnonzero(is_ad[row])
        mixed = rng.permutation(ads)
        for alike in [] if codes is None else groups(codes[item[row, ads]]):
            places = np.flatnonzero(np.isin(mixed, ads[alike]))
            mixed[places] = ads[alike]
        item[row, ads], bid[row, ads] = item[row, mixed], bid[row, mixed]
    return dataclasses.replace(request, item=item, is_ad=is_ad, bid=bid)


def groups(rows):
    """The numbers of rows that are alike, in rising order, for each group of more than one."""
    _, number = np.unique(rows, axis=0, return_inverse=True)
    each = [np.flatnonzero(number.ravel() == group) for group in range(number.max() + 1)]
    return [alike for alike in each if len(alike) > 1]


def follows_order(allocate, request, codes=None):
    """Whether slates change with the order in which a request lists its ads."""
    others = [allocate(reordered(request, seed, codes)) for seed in range(3)]
    return any(not np.array_equal(allocate(request), slate) for slate in others)


@pytest.mark.parametrize("name", ["mca", "gr", "ega"])
def test_no_system_reads_the_order_of_ads(tabulated, name):
    _, root = tabulated
    mechanism = Mechanism.restore(root / "run" / "market-0", name)
    shown = lambda request: np.asarray(mechanism.allocate(request).items)
    request = request_of(next(iter(sessions_of(tabulated))))
    # Ads that share all codes are alike for a search without bids: the first one goes first.
    codes = np.asarray(mechanism.system.items.catalogue.poi_codes) if name == "gr" else None
    assert not follows_order(shown, request, codes)


def test_a_system_that_reads_the_order_of_ads_is_caught(tabulated):
    request = request_of(next(iter(sessions_of(tabulated))))
    assert follows_order(lambda request: np.array(request.item)[:, :2], request)


def sessions_of(tabulated):
    """Test sessions of the log."""
    config, root = tabulated
    run = Pretraining(config, root / "run" / "market-0", data_mesh())
    return run.batches("test")


def test_a_request_holds_no_truth_and_no_session(tabulated):
    """What is served sees only these fields of a batch; all else stays with the judges."""
    batch = next(iter(sessions_of(tabulated)))
    shown = {"item", "is_ad", "bid", "history_poi", "history_creative", "context"}
    for kind in (Request, BookRequest):
        own = {field.name for field in dataclasses.fields(kind)}
        assert own <= shown | {"organic", "book"}
    assert {"session", "click_poi", "shown_poi"} <= batch.keys()


def test_systems_are_trained_on_two_splits_alone(tabulated):
    assert {"pretrain", "align"} == READ


def with_kappa(run, kappa):
    """The same training with another worth of clicks."""
    settings = run.settings.changed({"allocation.kappa": kappa})
    pretraining = dataclasses.replace(run.pretraining, settings=settings)
    return dataclasses.replace(run, pretraining=pretraining)


def test_the_auction_and_the_placement_are_taught_by_the_reward_model(tabulated, monkeypatch):
    _, root = tabulated
    mca = runs.find_system(root / "run" / "market-0", "mca")
    auction, run, views = mca.system.cga, with_kappa(mca, 3.0), {}
    cascade, train = Cascade(run), AuctionTraining.train_phase
    monkeypatch.setattr(
        cga, "cga_phase", lambda *_, view, kappa, **__: views.update(cga=view, kappa=kappa)
    )
    monkeypatch.setattr(cross_dqn, "cross_dqn_phase", lambda *_, **__: None)
    monkeypatch.setattr(
        AuctionTraining,
        "train_phase",
        lambda run, phase, *at: train(run, phase, *at) if phase else {},
    )
    _ = cascade.cross_dqn
    assert views["kappa"] == 3.0
    views["cross_dqn"] = cascade._queues(auction)
    batch = next(iter(run.sessions("align", 4, 4)))
    passed = jax.device_get(cascade._passed(batch))
    ranked = passed.ranked
    wanted = np.array([[0, 5, 3], [4, 1, -1], [2, 1, 4], [3, -1, -1]])
    there = [np.flatnonzero(row >= 0) for row in ranked.item]
    slates = np.array(
        [
            [places[i] if i >= 0 else -1 for i in row]
            for places, row in zip(there, wanted, strict=True)
        ]
    )

    @jax.jit
    def expected(params):
        history = batch["history_poi"], batch["history_creative"]
        request = *history, organic_pois(batch), batch.get("context")
        memory = model.encode(params, run.reward_config, run.items, *request)
        shown = (
            jnp.where(slates >= 0, jnp.take_along_axis(x, slates, axis=1), -1)
            for x in (ranked.item, ranked.creative, ranked.is_ad)
        )
        item, creative, is_ad = shown
        shown = item, creative, is_ad == 1
        return model.predict(params, run.reward_config, run.items, memory, *shown).click_poi

    judge = lambda name: jax.jit(lambda batch, slates: views[name](batch)[1](slates))
    judged = judge("cga")(batch, slates[:, None])[:, 0]
    np.testing.assert_allclose(judged, expected(run.reward), rtol=1e-5)
    turned = judge("cga")(batch, slates[:, None, ::-1])[:, 0, ::-1]
    several = (slates >= 0).sum(axis=1) > 1
    assert (jnp.abs(turned - judged).max(axis=1) > 1e-6)[several].all(), "the order counts"
    bid = np.where(slates >= 0, np.take_along_axis(passed.bid, slates, axis=1), 0)
    judged = judge("cross_dqn")(batch, slates)
    np.testing.assert_allclose(judged, (bid + 3.0) * expected(run.reward), rtol=1e-5)


def test_what_is_recorded_is_never_repeated_nor_mixed(tabulated, monkeypatch, capsys):
    config, root = tabulated
    before = (root / "results" / "table2.csv").read_text()
    monkeypatch.setattr(tables, "measure", lambda *_: pytest.fail("run again"))
    run_command(config, root, monkeypatch, only=GRID)
    assert "4 of 4 runs recorded" in capsys.readouterr().out
    assert (root / "results" / "table2.csv").read_text() == before
    config = config.changed({"payment.num_reports": 4})
    with pytest.raises(ConfigMismatchError, match=r"payment\.num_reports"):
        run_command(config, root, monkeypatch)


def test_lifts_that_became_possible_are_added_from_what_was_measured(
    tabulated, tmp_path, monkeypatch
):
    config, root = tabulated
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    for name in ("mca", "gr", "ega"):
        (path,) = (tmp_path / "results" / "runs").glob(f"*-0-{name}.json")
        path.unlink()
    monkeypatch.setattr(measuring, "served_batch", lambda *_, **__: pytest.fail("served again"))
    monkeypatch.setattr(measuring, "judge_batch", lambda *_: pytest.fail("judged again"))
    run_command(config, tmp_path, monkeypatch, only=["ega"])
    assert record(tmp_path, "ega")["lifts"]["model"] == {}
    run_command(config, tmp_path, monkeypatch, only=["mca", "gr", "ega"])
    for name in ("mca", "gr", "ega"):
        ours, theirs = (record(folder, name) for folder in (tmp_path, root))
        assert ours["lifts"] == theirs["lifts"]
        assert ours["means"] == theirs["means"]


def test_a_run_that_fails_is_recorded_and_the_others_go_on(
    tabulated, tmp_path, monkeypatch, capsys
):
    config, root = tabulated
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results")
    results = measuring.Measured.results.fget

    def failing(measured):
        if measured.run.name == "gr":
            raise NonFiniteLossError("the loss is nan at step 7")
        return results(measured)

    monkeypatch.setattr(measuring.Measured, "results", property(failing))
    run_command(config, tmp_path, monkeypatch, only=["gr", "ega"])
    assert record(tmp_path, "gr")["failed"] == "the loss is nan at step 7"
    assert "- gr, market 0: the loss is nan at step 7" in capsys.readouterr().out
    assert record(tmp_path, "ega")["lifts"]["model"] == {}


def test_a_market_that_another_process_is_at_comes_last(finished, tmp_path, monkeypatch):
    order, taken = [], tmp_path / "run" / "market-0" / "systems"

    @contextlib.contextmanager
    def other_process(folder, *, wait=True):
        yield wait or folder != taken

    config = finished[0].changed({"data.path": ""})
    monkeypatch.setattr(tables, "locked", other_process)
    monkeypatch.setattr(tables, "measure", lambda market, name: order.append((market.number, name)))
    monkeypatch.setattr(
        protocol.Market, "state", lambda market, name: "done" * ((market.number, name) in order)
    )
    run_command(config, tmp_path, monkeypatch, markets=("0", "1"))
    assert order == [(number, name) for number in (1, 0) for name in compared()]


def test_a_record_of_other_settings_is_named(tabulated, tmp_path, monkeypatch):
    config, root = tabulated
    shutil.copytree(root / "results", tmp_path / "results")
    with pytest.raises(
        ValueError, match=r"0-mca\.json has config\.payment\.num_reports \d+, not 4"
    ):
        run_command(config.changed({"payment.num_reports": 4}), tmp_path, monkeypatch)


def test_a_record_of_something_else_is_named(tmp_path):
    write_record(tmp_path / "other.json", {"system": "mca"})
    with pytest.raises(ValueError, match=r"other\.json has asked\.value None, not 8"):
        protocol.read_own_record(tmp_path / "other.json", {"asked": {"value": 8}})


def market_of(tabulated):
    config, root = tabulated
    sessions = measuring.Sessions(8, 4, 4)
    return protocol.Market(0, config, root / "run", root / "results", sessions)


def test_reserves_change_neither_the_settings_nor_the_scores_of_their_system(
    tabulated, monkeypatch
):
    place, written = market_of(tabulated), []
    run = place._open("ega-reserves")
    assert run.settings.auction.reserves == MONOPOLY
    assert read_config(place.workdir / "systems" / "ega")["auction"]["reserves"] == NO_RESERVES
    with pytest.raises(UserError, match=r"config\.auction\.reserves: the log has no books"):
        _ = dataclasses.replace(run, kind=SystemKind(lambda _: pytest.fail("trained"))).mechanism
    found = types.SimpleNamespace(
        run=run, rule="rate", results=None, served=None, seconds={}, samples={}, psi={}
    )
    monkeypatch.setattr(protocol.Market, "_measured", lambda *_: found)
    monkeypatch.setattr(protocol.Market, "_write", lambda _, name, found: written.append(name))
    monkeypatch.setattr(protocol, "record_of", lambda *_: {})
    monkeypatch.setattr(protocol, "write_results", lambda *_: pytest.fail("overwritten"))
    place.measure("ega-reserves")
    assert written == ["ega-reserves"]


def test_smoothed_bids_are_measured_with_models_trained_without(tabulated, monkeypatch):
    opened, seen = protocol.Market.open, []

    def noted(self, changes, workdir, place):
        run = opened(self, changes, workdir, place)

        def train(run):
            seen.append(run.settings.allocation.bid_smoothing)
            return kind.train(run)

        kind = run.kind
        return dataclasses.replace(run, kind=SystemKind(train))

    monkeypatch.setattr(protocol.Market, "open", noted)
    place = market_of(tabulated)
    run = place._open("ega-smoothed")
    assert seen == [0.0]
    assert run.settings.allocation.bid_smoothing == 0.5
    assert read_config(place.workdir / "systems" / "ega")["allocation"]["bid_smoothing"] == 0
    measured = measuring.Measured(run, "gsp", measuring.Sessions(8, 4, 4))
    assert measured.path("value", 8).name == "value-smoothing-0.5-test-8"


def test_a_log_without_books_has_no_rows_with_reserves(finished):
    assert tables.systems_for(market.settings("tiny")) == list(compared())
    of_past_bids = {*reserved(), "ega-smoothed"}
    assert set(tables.systems_for(finished[0])) == set(compared()) - of_past_bids


def test_a_phase_that_failed_at_once_took_no_time(tabulated):
    folder = market_of(tabulated).workdir / "stages" / "broken" / "metrics"
    folder.mkdir(parents=True)
    (folder / "broken.jsonl").touch()
    run = runs.find_system(market_of(tabulated).workdir, "ega")
    seconds = measuring.Measured(run, "gsp", measuring.Sessions(8, 4, 4)).seconds
    assert "broken" not in seconds
    assert seconds["alignment"] > 0
    shutil.rmtree(folder.parent)


def test_tables_with_a_reserve_are_refused(finished, tmp_path, monkeypatch):
    config = finished[0].changed({"allocation.reserve": 1.0})
    with pytest.raises(ValueError, match=r"config\.allocation\.reserve: .* without it"):
        run_command(config, tmp_path, monkeypatch)


def test_one_log_is_one_market(finished, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"--markets=0,1: .* is one log, so one market"):
        run_command(finished[0], tmp_path, monkeypatch, markets=("0", "1"))


def test_the_market_of_tuning_shares_no_table(tmp_path, monkeypatch):
    config = market.settings("tiny")
    with pytest.raises(ValueError, match=r"100 is the market of experiments\.tune"):
        run_command(config, tmp_path, monkeypatch, markets=("0", "100"))
    record = {"system": "mca", "market": 0, "data": protocol.kind_of(config), "failed": "no"}
    write_record(tmp_path / "results" / "runs" / "market-tiny-0-mca.json", record)
    with pytest.raises(ValueError, match="would have markets 0, 100"):
        run_command(config, tmp_path, monkeypatch, markets=("100",))
    assert not (tmp_path / "run").exists(), "no workdir is made"


def test_tables_without_learned_prices_are_refused(finished, tmp_path, monkeypatch):
    config = finished[0].changed({"auction.rule": "gsp"})
    with pytest.raises(ValueError, match=r"config\.auction\.rule: .* rate or threshold"):
        run_command(config, tmp_path, monkeypatch)


@pytest.mark.parametrize("variant", ["tiny", "small"])
def test_runs_share_what_they_may(variant, tmp_path):
    settings = market.settings(variant)
    of = protocol.Market(2, settings, tmp_path, tmp_path, measuring.Sessions(1, 1, 1)).folders_of
    for name in ("ega", "ega-gsp", "ega-probed", "ega-smoothed", "ega-reserves"):
        assert of(name) == ("market-2", "ega")
    assert of("gr") == ("market-2", "gr")
    assert of("ega-mtp") == ("market-2-ega-mtp", "ega-mtp")
    is_papers = settings.allocation.token_value == "bid"
    assert of("ega-paper") == ("market-2", "ega" if is_papers else "ega-paper")
