"""The cascade trained on a log with books and contexts: its phases, figures and mechanism."""

import dataclasses
import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_auction import TINY
from tiny_runs import NUM_POIS, NUM_SLOTS, tiny_config, write_ad_log

from ega_jax.data.books import Books
from ega_jax.mechanism import Mechanism
from ega_jax.phases.pretraining import Pretraining
from ega_jax.phases.requests import request_of
from ega_jax.systems import UNPRICED, training_of
from ega_jax.training.mesh import data_mesh
from ega_jax.training.metrics import read_metrics
from ega_jax.types import BookRequest

HALF = NUM_POIS // 2  # Book 7 lists the first half of the POIs, book 3 the second.
STAGES = ("tiger", "two_tower", "hstu", "peri_cr")


def write_book_log(folder):
    """The log of `write_ad_log`, whose sessions name one of two books and have a context."""
    path = write_ad_log(folder) / "sessions" / "part-0.parquet"
    columns = pq.read_table(path).to_pydict()
    del columns["ad_poi"], columns["ad_bid"]
    rows = range(len(columns["session_id"]))
    columns["book_id"] = [(7, 3)[row % 2] for row in rows]
    context = np.random.default_rng(1).normal(size=(len(rows), 2))
    columns["context"] = list(context.astype(np.float32))
    for row in rows:
        ads, others = (HALF * (row % 2) + HALF * n for n in (0, 1))
        organic = [(others + n) % NUM_POIS for n in range(HALF)]
        shown = [ads + row % HALF, *organic[: NUM_SLOTS - 1]]
        columns["organic_poi"][row], columns["shown_poi"][row] = organic, shown
        columns["shown_creative"][row] = [2 * poi for poi in shown]
    pq.write_table(pa.table(columns), path)
    (folder / "books").mkdir()
    bid = np.random.default_rng(0).random((2, HALF)).tolist()
    books = {"book_id": [7, 3], "ad_poi": np.arange(NUM_POIS).reshape(2, -1).tolist()}
    pq.write_table(pa.table(books | {"ad_bid": bid}), folder / "books" / "part-0.parquet")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained cascade, without payment networks."""
    root = tmp_path_factory.mktemp("cascade")
    config = tiny_config(write_book_log(root / "data"), kind="kmeans", **TINY)
    settings = config.changed(
        UNPRICED | {"auction.system": "mca", "auction.rule": "gsp"}
        | {f"cascade.{stage}.evaluate_every": 2 for stage in (*STAGES, "cga", "cross_dqn")}
    )  # fmt: skip
    first = Pretraining(settings, root / "run", data_mesh())
    first.train_generator()
    found = training_of(first, root / "run" / "systems" / "mca")
    with jax.numpy_rank_promotion("allow"):
        found.mechanism.save(found.folder / "mechanism")
    return found


def test_every_stage_is_trained_and_measured(run):
    for stage in (*STAGES, "cga", "cross_dqn"):
        shared = run.pretraining.workdir / "stages" / stage
        folder = shared if stage in STAGES else run.folder
        records = read_metrics(folder / "metrics" / f"{stage}.jsonl")
        assert all(np.isfinite(list(record.values())).all() for record in records)
        assert any(name.startswith("eval/") for name in records[-1]), stage
    assert 0 <= records[-1]["eval/reward"] < 10


def test_its_restored_mechanism_serves_books(run):
    mechanism = Mechanism.restore(run.pretraining.workdir, "mca")
    assert mechanism.system.book is None
    mechanism = mechanism.with_book(run.system.book)
    request = request_of(next(iter(run.sessions("test", 4, 4))))
    assert isinstance(request, BookRequest)
    slate = jax.device_get(mechanism.allocate(request, reserve=0.1))
    shown = slate.items[slate.is_ad] // HALF
    book = np.broadcast_to(request.book[:, None], slate.items.shape)[slate.is_ad]
    assert shown.size
    np.testing.assert_array_equal(shown, book)
    assert slate.bid[slate.is_ad].min() >= 0.1
    first = jax.tree.map(lambda x: x[0], request)
    passed = run.system.prepare(first, mechanism.levers).memory
    assert passed.recalled.shape == (3,)
    assert passed.ranked.is_ad.sum() == 2
    elsewhere = first.replace(context=first.context + 1)
    moved = run.system.prepare(elsewhere, mechanism.levers).memory.ranked
    assert np.abs(moved.click - passed.ranked.click).max() > 1e-6
    assert json.dumps(mechanism.explain(request).to_dict())


def test_reserves_count_in_measuring_alone(run, monkeypatch):
    monkeypatch.setattr(Books, "past_bids", lambda self, _: np.full_like(self.bid, 0.8))
    settings = run.settings.changed({"auction.reserves": "monopoly"})
    pretraining = dataclasses.replace(run.pretraining, settings=settings)
    reserved = dataclasses.replace(run, pretraining=pretraining).mechanism
    book = reserved.system.book
    full = list(run.sessions("pretrain", 40, 4))[:-1]
    requests = [request_of(batch) for batch in full]
    least = dict(zip(np.asarray(book.poi).tolist(), np.asarray(book.reserve), strict=True))
    assert np.asarray(run.system.book.reserve).max() == 0 < max(least.values())

    def below_reserve(mechanism):
        """Ads that are shown, bid less than their reserve, and pay less than it."""
        slates = [jax.device_get(mechanism.allocate(request)) for request in requests]
        is_ad = np.concatenate([slate.is_ad for slate in slates])
        names = "items", "bid", "price_per_click"
        items, *amounts = (np.concatenate([getattr(x, n) for x in slates])[is_ad] for n in names)
        needed = np.array([least[poi] for poi in items.tolist()])
        return [len(items), *((amount < needed).sum() for amount in amounts)]

    assert all(below_reserve(run.mechanism))
    shown, *below = below_reserve(reserved)
    assert shown > 0 == sum(below)
