"""An exported mechanism serves what the mechanism serves, without the packages of the models.

Mechanisms split a batch over the four devices of the tests, so batches of 8 are compared with
exported batches of 2.
"""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from book_requests import requests_to
from tiny_mechanism import tiny_mechanism
from tiny_models import K, N, P, W, random_requests

from ega_jax import exporting, serving, types
from ega_jax.artefact import DESCRIPTION
from ega_jax.auction.pricing import RULES
from ega_jax.errors import UserError
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.mechanism import TRUTHFUL, Mechanism

REQUESTS = random_requests(11, 8)
FIELDS = {name: x for name, x in vars(REQUESTS).items() if x is not None}
BLOCKED = "flax", "optax", "orbax", "grain", "chex", "absl", "pyarrow", "matplotlib", "rich"
APART = f"""
import importlib.abc, json, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocker())
from ega_jax import serving
folder, request = sys.argv[1], json.loads(sys.argv[2])
slate = serving.load(folder).allocate(request, "clarke", beta=3.0)
print(json.dumps({{name: x.tolist() for name, x in slate._asdict().items()}}))
"""


@pytest.fixture(autouse=True, scope="module")
def _broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exported mechanism; tests must not change it."""
    path = tmp_path_factory.mktemp("exported") / "ega"
    tiny_mechanism().export(path, batch_sizes=(1, 2), num_candidates=N)
    return path


@pytest.fixture(scope="module")
def exported(folder):
    return serving.load(folder)


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory):
    """The exported mechanism of a tiny run."""
    path = tmp_path_factory.mktemp("trained") / "ega"
    Mechanism.restore(finished[1]).export(path, batch_sizes=(2,), num_candidates=10)
    return serving.load(path)


@pytest.fixture
def copied(folder, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(folder, tmp_path / "ega")


def assert_same(found, expected):
    """The same slates and prices, bit for bit."""
    for name in serving.Slate._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), strict=True)


def assert_close(found, expected):
    for name in serving.Slate._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5)


def test_slates_have_the_fields_of_the_mechanisms_own():
    assert list(serving.Slate._fields) == [f.name for f in dataclasses.fields(types.Slate)]


@pytest.mark.parametrize("rule", [*RULES, TRUTHFUL])
def test_every_rule_gives_the_same_slates_and_prices_bit_for_bit(exported, rule):
    expected = tiny_mechanism().allocate(REQUESTS, rule)
    assert_same(exported.allocate(REQUESTS, rule), jax.device_get(expected))


def test_levers_change_what_is_served_as_they_do_in_the_mechanism(exported):
    seen = set()
    for levers in ({}, {"max_ads": 1}, {"alpha": 3.0, "beta": 0.1}, {"reserve": 1.5, "min_gap": 1}):
        found = exported.allocate(REQUESTS, "gsp", **levers)
        expected = tiny_mechanism().allocate(REQUESTS, "gsp", **levers)
        assert_same(found, jax.device_get(expected))
        seen.add(found.items.tobytes() + found.price_per_click.tobytes())
    assert len(seen) == 4


def test_a_mapping_of_lists_is_a_request(exported):
    lists = {name: x.tolist() for name, x in FIELDS.items()}
    expected = exported.allocate(REQUESTS)
    assert_same(exported.allocate(lists), expected)
    assert_same(exported.allocate(lists | {"context": None}), expected)


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_a_batch_of_any_size_is_served(exported, rows):
    some = {name: x[:rows] for name, x in FIELDS.items()}
    expected = exported.allocate(REQUESTS)
    found = exported.allocate(some)
    assert found.items.shape == (rows, K)
    assert_close(found, serving.Slate(*(x[:rows] for x in expected)))


def test_shorter_lists_are_padded(exported):
    shorter = {name: x[:, :4] if x.shape[1] == N else x for name, x in FIELDS.items()}
    shorter["history_poi"] = FIELDS["history_poi"]
    shorter["history_creative"] = FIELDS["history_creative"]
    blank = np.arange(N) >= 4
    padded = {
        "item": np.where(blank, -1, FIELDS["item"]),
        "is_ad": FIELDS["is_ad"] & ~blank,
        "bid": np.where(blank, 0.0, FIELDS["bid"]),
    }
    assert_same(exported.allocate(shorter), exported.allocate(FIELDS | padded))


def test_parameters_are_arguments(exported):
    zeros = {name: np.zeros_like(x) for name, x in exported.parameters.items()}
    items = {n: x for n, x in exported.parameters.items() if n.startswith("system/items/catalogue")}
    silent = dataclasses.replace(exported, parameters=zeros | items)
    pctr = silent.allocate(REQUESTS).pctr
    assert len(np.unique(pctr[pctr > 0])) < len(np.unique(exported.allocate(REQUESTS).pctr))


@pytest.mark.parametrize(
    ("request_", "settings", "message"),
    [
        (FIELDS, {"rule": "vickrey"}, "payment rule 'vickrey' is not one of first_price"),
        (FIELDS, {"gamma": 1.0}, "no lever 'gamma'; valid levers: alpha"),
        (FIELDS, {"beta": -1.0}, "lever beta is -1.0: it must be at least 0"),
        (FIELDS, {"rule": TRUTHFUL, "bid_free": False}, "the truthful mode is bid-free"),
        ({"item": [[1]]}, {}, "the request lacks history_poi; fields: history_poi"),
        (FIELDS | {"prices": [1]}, {}, "a request has no field 'prices'"),
        (FIELDS | {"bid": FIELDS["bid"][:, 1:]}, {}, r"bid is \[8, 5\] and item \[8, 6\]"),
        (FIELDS | {"item": FIELDS["item"] + P}, {}, rf"is outside \[0, {P}\)"),
        (FIELDS | {"bid": FIELDS["bid"] - 1}, {}, "not a bid from 0|not 0, the required bid"),
        (FIELDS | {"context": np.ones((8, 2))}, {}, "a log without a context"),
        ({n: x[:0] for n, x in FIELDS.items()}, {}, "the batch holds no request"),
        (
            {n: np.tile(x, 2) if n in ("item", "is_ad", "bid") else x for n, x in FIELDS.items()},
            {},
            "listed twice",
        ),
        (
            FIELDS
            | {
                "item": np.pad(FIELDS["item"], ((0, 0), (0, 1)), constant_values=-1),
                "is_ad": np.pad(FIELDS["is_ad"], ((0, 0), (0, 1))),
                "bid": np.pad(FIELDS["bid"], ((0, 0), (0, 1))),
            },
            {},
            "item has 7 entries per request and 6 were exported: export with num_candidates=7",
        ),
        (
            {"history_poi": [[1]], "history_creative": [[1]], "organic": [[2]], "book": [0]},
            {},
            "a request names a book and the system has none",
        ),
    ],
)
def test_what_cannot_be_served_is_named(exported, request_, settings, message):
    with pytest.raises(UserError, match=message) as raised:
        exported.allocate(request_, **settings)
    assert "\n" not in str(raised.value)


def _described(folder, **changes):
    content = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / DESCRIPTION).unlink(),
            f"no exported mechanism: it has no {DESCRIPTION}",
        ),
        (lambda f: (f / DESCRIPTION).write_text("{"), "is no JSON"),
        (lambda f: (f / DESCRIPTION).write_text("[]"), "was exported in format None"),
        (lambda f: _described(f, format=99), "in format 99 and this version of ega_jax reads for"),
        (lambda f: _described(f, colour="red"), "is damaged: export the mechanism again"),
        (lambda f: _described(f, platforms=["tpu"]), "for tpu and this process runs on cpu"),
        (lambda f: (f / "parameters.npz").unlink(), "incomplete: parameters.npz is missing"),
        (lambda f: (f / "list-2.stablehlo").write_bytes(b"x"), "damaged: list-2.stablehlo is not"),
    ],
)
def test_a_folder_that_is_not_as_exported_is_refused(copied, change, message):
    change(copied)
    with pytest.raises(UserError, match=message) as raised:
        serving.load(copied)
    assert "\n" not in str(raised.value)
    assert str(copied) in str(raised.value)


def test_a_function_of_another_version_of_jax_is_refused(copied, monkeypatch):
    def deserialize(content):
        raise ValueError("unsupported calling convention 1\nmore")

    monkeypatch.setattr(jax.export, "deserialize", deserialize)
    with pytest.raises(
        UserError, match=r"exported by jax .* cannot read it: export .*again \(unsu"
    ):
        serving.load(copied)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": ()}, "name at least one batch size"),
        ({"batch_sizes": (0,)}, "batch size is 0: it must be a whole number, at least 1"),
        ({"batch_sizes": (2.5,)}, "batch size is 2.5"),
        ({"platforms": ()}, "and one platform"),
        ({"platforms": ("gpu",)}, "no platform 'gpu'; there are cpu, cuda, rocm, tpu"),
        ({"num_candidates": 0}, "num_candidates is 0"),
        ({"num_organic": True}, "num_organic is True"),
    ],
)
def test_what_cannot_be_exported_is_named(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        tiny_mechanism().export(tmp_path / "ega", **options)
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_what_was_there(copied, monkeypatch):
    before = {file.name: file.read_bytes() for file in copied.iterdir()}

    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(exporting, "_describe", fail)
    monkeypatch.setattr(exporting.export, "export", lambda *a, **k: lambda *a: _Nothing())
    with pytest.raises(OSError, match="the disk is full"):
        tiny_mechanism().export(copied, batch_sizes=(1,))
    assert {file.name: file.read_bytes() for file in copied.iterdir()} == before
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


class _Nothing:
    """Stands for an exported function."""

    def serialize(self):
        return b""


def test_another_folder_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match=r"exists and has no artefact\.json: choose another folder"):
        tiny_mechanism().export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_process_without_the_packages_of_the_models_serves(folder, exported):
    lists = {name: x[:2].tolist() for name, x in FIELDS.items()}
    done = subprocess.run(
        [sys.executable, "-c", APART, str(folder), json.dumps(lists)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = serving.Slate(**json.loads(done.stdout.splitlines()[-1]))
    expected = exported.allocate(lists, "clarke", beta=3.0)
    for name in serving.Slate._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


POIS = np.array([5, 8, 3, 1, 5, 2, 9])  # Four ads in the first book, three in the second.
BIDS = np.float32([1.2, 0.8, 2.5, 0.4, 0.9, 1.5, 0.3])


def ledger(bid, **options):
    codes = tiny_mechanism().system.items.catalogue.poi_codes
    return BookLedger(POIS, bid, [0, 4, 7], codes, W, num_slots=K, **options)


def test_requests_to_books_are_served_with_live_bids(tmp_path):
    books = ledger(BIDS)
    mechanism = tiny_mechanism().with_book(books.book)
    mechanism.export(tmp_path / "ega", batch_sizes=(2,), platforms=("cpu",), num_organic=5)
    exported = serving.load(tmp_path / "ega")
    requests = requests_to([0, 1] * 4, 3)
    before = exported.allocate(requests, "gsp")
    assert before.is_ad.any()
    assert_same(before, jax.device_get(mechanism.allocate(requests, "gsp")))
    books.replace(BIDS[::-1].copy())
    refreshed = exported.with_book(books.book)
    after = refreshed.allocate(vars(requests), "gsp")
    assert_same(after, jax.device_get(mechanism.with_book(books.book).allocate(requests, "gsp")))
    assert (after.price_per_click != before.price_per_click).any()
    with np.load(tmp_path / "ega" / "book.npz") as arrays:
        assert_same(refreshed.with_book(arrays).allocate(requests, "gsp"), before)
    with pytest.raises(UserError, match="bid-free and live bids are in the book's order"):
        exported.allocate(requests, TRUTHFUL)
    with pytest.raises(UserError, match=r"request 0, book 0: 7 is outside \[0, 2\)"):
        exported.allocate(requests.replace(book=np.full(8, 7)))
    other = dataclasses.replace(books.book, book_start=books.book.book_start[:2])
    with pytest.raises(
        UserError, match=r"exported one: book_start is int32\[2\] instead of int32\[3\]"
    ):
        exported.with_book(other)
    with pytest.raises(UserError, match="does not fit the exported one: poi is none"):
        exported.with_book({})


def test_a_mechanism_exported_without_a_book_takes_none(exported):
    with pytest.raises(UserError, match="was exported without a book"):
        exported.with_book(ledger(BIDS).book)


def requests_of(mechanism, rows):
    """Random requests with ten candidates and a context."""
    sizes, rng = mechanism.request_sizes, np.random.default_rng(5)
    item = np.stack([rng.permutation(sizes.pois)[:10] for _ in range(rows)]).astype(np.int32)
    is_ad = np.broadcast_to(np.arange(10) < 6, item.shape)
    poi = rng.integers(-1, sizes.pois, (rows, sizes.history_length)).astype(np.int32)
    return types.Request(
        history_poi=poi,
        history_creative=np.where(poi < 0, -1, 2 * poi).astype(np.int32),
        item=item,
        is_ad=is_ad,
        bid=np.where(is_ad, rng.lognormal(size=item.shape), 0.0).astype(np.float32),
        context=rng.normal(size=(rows, sizes.context_width)).astype(np.float32),
    )


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["threshold", "gsp", TRUTHFUL])
def test_a_thousand_requests_get_the_same_slates_and_prices(finished, trained, rule):
    mechanism = Mechanism.restore(finished[1])
    requests = requests_of(mechanism, 1000)
    found, shown = trained.allocate(requests, rule), 0
    for start in range(0, 1000, 8):
        rows = slice(start, start + 8)
        expected = mechanism.allocate(jax.tree.map(lambda x, rows=rows: x[rows], requests), rule)
        assert_same(serving.Slate(*(x[rows] for x in found)), jax.device_get(expected))
        shown += int(np.sum(expected.is_ad))
    assert shown > 1000
