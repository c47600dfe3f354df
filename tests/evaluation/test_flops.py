"""FLOPs against counts by hand, against XLA where there are no loops, and of serving a request."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from book_requests import requests_to
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from tiny_cascade import with_funnel
from tiny_mechanism import tiny_mechanism
from tiny_models import GENERATOR, LEVERS, K, P, W, random_requests

from ega_jax.auction.pricing import PricingConfig
from ega_jax.evaluation.flops import flops_of, flops_per_request
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.mechanism import Mechanism
from experiments.benchmarks.generator import Model

M = 8
X = jnp.ones((M, M))
PRODUCT = 2 * M**3


def products(count):
    """A scan of products with `X`."""
    return lambda x: lax.scan(lambda x, _: (x @ X, None), x, length=count)[0]


def test_a_product_counts_a_multiplication_and_an_addition():
    assert flops_of(jnp.matmul, jnp.ones((3, 4)), jnp.ones((4, 5))) == 2 * 3 * 4 * 5
    assert flops_of(jnp.matmul, jnp.ones((7, 3, 4)), jnp.ones((7, 4, 5))) == 7 * 2 * 3 * 4 * 5


def test_a_scan_counts_by_its_length():
    assert flops_of(products(7), X) == 7 * PRODUCT
    assert flops_of(jax.jit(products(7)), X) == 7 * PRODUCT
    assert flops_of(lambda rows: lax.map(lambda x: x @ X, rows), jnp.ones((5, M, M))) == 5 * PRODUCT
    assert flops_of(lambda x: lax.scan(lambda x, _: (x, x), x, length=7)[1], X) == 0


def test_a_scan_with_constants_carry_and_rows():
    def step(carry, row):
        return carry @ X, (row @ carry, row + 1.0)

    rows = jnp.ones((5, 2, M))
    each = PRODUCT + 2 * 2 * M * M + 2 * M
    assert flops_of(lambda x, rows: lax.scan(step, x, rows), X, rows) == 5 * each


def test_loops_in_loops_multiply():
    nested = lambda x: lax.scan(lambda x, _: (products(5)(x), None), x, length=3)[0]
    assert flops_of(nested, X) == 3 * 5 * PRODUCT


@pytest.mark.parametrize("trips", [0, 1, 6])
def test_a_loop_of_unknown_length_counts_the_trips_of_this_call(trips):
    loop = lambda x, trips: lax.fori_loop(0, trips, lambda _, x: x @ X, x)
    assert flops_of(loop, X, trips) == trips * (PRODUCT + 2)  # `i < trips` and `i + 1`.


def test_rows_of_a_loop_wait_for_the_longest():
    loop = jax.vmap(lambda trips: lax.fori_loop(0, trips, lambda _, x: x @ X, X))
    assert flops_of(loop, jnp.array([2, 5, 0])) == 5 * 3 * (PRODUCT + 2)


def test_rows_of_a_loop_that_have_ended_keep_their_values():
    """The trips of the outer loop are the results of the inner ones."""
    inner = jax.vmap(lambda trips: lax.fori_loop(0, trips, lambda _, n: n + 1, 0))
    loop = lambda trips: lax.fori_loop(0, inner(trips)[1], lambda _, x: x @ X, X)
    counts = 5 * 3 * 3, 2 * (PRODUCT + 2)  # Of the inner loops three additions and comparisons.
    assert flops_of(loop, jnp.array([5, 2, 0])) == sum(counts)


def test_a_conditional_counts_the_branch_that_runs():
    branch = lambda which, x: lax.cond(which, products(3), lambda x: x @ X, x)
    one = flops_of(branch, False, X)
    assert flops_of(branch, True, X) - one == 2 * PRODUCT
    switch = lambda which, x: lax.switch(which, [products(n) for n in range(4)], x)
    counts = [flops_of(switch, which, X) for which in range(4)]
    assert np.diff(counts).tolist() == [PRODUCT] * 3


def test_both_branches_run_under_vmap():
    branch = jax.vmap(lambda which: lax.cond(which, products(3), lambda x: x @ X, X))
    assert flops_of(branch, jnp.array([True, False])) == pytest.approx(2 * 4 * PRODUCT, rel=0.1)


def test_vmap_counts_every_row():
    assert flops_of(jax.vmap(products(7)), jnp.ones((5, M, M))) == 5 * 7 * PRODUCT


def test_a_gradient_counts_one_product_forward_and_two_back():
    both = jax.value_and_grad(lambda x, w: (x @ w).sum(), argnums=(0, 1))
    assert flops_of(both, X, X) == 3 * PRODUCT + M * M - 1
    through = jax.grad(lambda x: products(7)(x).sum())
    assert flops_of(through, X) == pytest.approx(2 * 7 * PRODUCT, rel=0.1)


def test_what_is_computed_again_counts_again():
    loss = lambda w: jnp.sin(X @ w).sum()
    again = flops_of(jax.grad(jax.checkpoint(loss)), X) - flops_of(jax.grad(loss), X)
    assert again == pytest.approx(PRODUCT, rel=0.1)


def test_functions_with_gradients_by_hand_count():
    @jax.custom_vjp
    def by_hand(x):
        return products(7)(x)

    by_hand.defvjp(lambda x: (by_hand(x), None), lambda _, g: (g @ X,))
    assert flops_of(by_hand, X) == 7 * PRODUCT
    assert flops_of(jax.grad(lambda x: by_hand(x).sum()), X) == 8 * PRODUCT + M * M - 1
    forward = jax.custom_jvp(products(7))
    forward.defjvp(lambda x, t: (forward(*x), t[0] @ X))
    assert flops_of(forward, X) == 7 * PRODUCT


def test_the_work_of_all_devices_counts():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    each = lambda trips: lax.map(lambda n: lax.fori_loop(0, n, lambda _, x: x @ X, X), trips)
    spread = jax.shard_map(
        each,
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec("data"),
        check_vma=False,
    )
    assert flops_of(spread, jnp.arange(8)) == sum(range(8)) * (PRODUCT + 2)


def xla(function, *arguments):
    """XLA's count of a function without loops, as it is written."""
    costs = jax.jit(function).lower(*arguments).cost_analysis()
    return costs["flops"] + costs.get("transcendentals", 0.0)


def perceptron(x):
    return jax.nn.softmax(jax.nn.gelu(x @ X) @ X)


def attention(x):
    heads = lambda x: x.reshape(M, 2, M // 2)
    return jax.nn.dot_product_attention(heads(x @ X), heads(x @ X), heads(x @ X)).reshape(M, M) @ X


@pytest.mark.parametrize("function", [jnp.matmul, perceptron, attention])
def test_without_loops_xla_agrees(function):
    given = (X, X) if function is jnp.matmul else (X,)
    assert flops_of(function, *given) == xla(function, *given)


def test_xla_agrees_on_a_training_step():
    config = dataclasses.replace(GENERATOR, creatives=False, width=32, hidden=64)
    step, given = Model(config, num_items=8).training(16)
    # XLA's count lacks some of the optimizer's additions and products with constants.
    assert flops_of(step, *given) == pytest.approx(xla(step, *given), rel=0.02)


def search(num_slots):
    """A beam search, which is a scan over slots, and its arguments; the last is the history."""
    config = dataclasses.replace(GENERATOR, creatives=False, num_slots=num_slots)
    found = Model(config, num_items=16).search(num_beams=4, ads=16)
    return found.func, found.args


def test_a_search_counts_every_slot():
    counts = [flops_of(function, *given) for function, given in map(search, (2, 4, 8))]
    assert counts[1] > 1.8 * counts[0]
    assert counts[2] > 1.8 * counts[1]


def test_a_search_counts_the_same_for_every_history():
    function, (*given, history) = search(3)
    other = (history + 1) % 16
    assert flops_of(function, *given, history) == flops_of(function, *given, other)


REQUESTS = random_requests(3, 6)


def test_serving_counts_what_differs_between_requests():
    """The mechanism looks at four distinct items at a time."""
    items, gsp = (REQUESTS.item >= 0).sum(1), flops_per_request(tiny_mechanism(), REQUESTS, "gsp")
    few = gsp[items <= 4]
    assert gsp.shape == (6,)
    assert few.min() == few.max() < gsp.max()


def test_a_learned_price_counts_its_searches():
    gsp, threshold, clarke = (
        flops_per_request(tiny_mechanism(), REQUESTS, rule)
        for rule in ("gsp", "threshold", "clarke")
    )
    assert (threshold > 5 * gsp).all()
    np.testing.assert_array_equal(threshold, clarke)
    num_ads = REQUESTS.is_ad.sum(1)
    assert threshold[num_ads.argmax()] > threshold[num_ads.argmin()]


def test_the_truthful_mode_counts_no_searches():
    truthful, gsp = (flops_per_request(tiny_mechanism(), REQUESTS, r) for r in ("truthful", "gsp"))
    np.testing.assert_array_equal(truthful, gsp)


def test_a_request_counts_alone():
    last = jax.tree.map(lambda x: x[4:5], REQUESTS)
    every = flops_per_request(tiny_mechanism(), REQUESTS, "threshold")
    np.testing.assert_array_equal(flops_per_request(tiny_mechanism(), last), every[4:5])


def test_a_cascade_that_ranks_more_counts_more():
    pricing = PricingConfig(hidden=(8, 4), probes=(), heads=())
    given = {"recall_share": 1.0, "most_recalled": 99, "num_preranked": 3}
    few, more = (
        flops_per_request(Mechanism(system, {}, pricing, LEVERS, "gsp"), REQUESTS)
        for system in (with_funnel(**given, num_ranked=n) for n in (1, 3))
    )
    assert (few > 0).all()
    assert (more > few).all()


def test_a_request_to_a_book_counts():
    system = tiny_mechanism().system
    codes = system.items.catalogue.poi_codes
    ads, bids = np.arange(P, dtype=np.int32), np.linspace(1, 2, P, dtype=np.float32)
    book = BookLedger(ads, bids, [0, 3, P], codes, W, num_slots=K).book
    found = flops_per_request(tiny_mechanism().with_book(book), requests_to([0, 1], 0), "gsp")
    assert 0 < found[0] < found[1]
