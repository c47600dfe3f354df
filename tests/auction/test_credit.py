"""The estimators of the policy gradient against the gradient of the expected value, enumerated."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import LEVERS, batch_of, random_requests, tiny_ega, with_beams

from ega_jax.auction.alignment import AlignmentConfig, policy_loss
from ega_jax.auction.credit import ESTIMATORS
from ega_jax.generation.slate_policy import path_log_probs, taken
from ega_jax.phases.ega import auction_loss

ROWS, DRAWS, CALLS = 4, 64, 150
SAMPLING = ["leave_one_out", "likeliest"]


def requests():
    return jax.tree.map(jnp.asarray, random_requests(3, ROWS))


def prepared_by(system):
    return jax.vmap(lambda request: system.prepare(request, LEVERS))(requests())


@jax.jit
def every_slate(system):
    """All slates of each request: the menu of a search that is wide enough."""
    return jax.vmap(system.find_menu)(prepared_by(system))


def expected_value(params, system, menu):
    """The mean over requests of the policy's expected value, by its probability of every slate."""
    policy = dataclasses.replace(system, decoder=system.decoder.with_parameters(params))

    def of_one(prepared, menu):
        paths = jax.vmap(policy.path, in_axes=(None, 0))(prepared, menu.candidate)
        memory = prepared.memory.encoded
        log_prob = lambda path: taken(
            path_log_probs(policy.decoder, memory, path, LEVERS.alpha, LEVERS.beta), path
        ).sum()
        probability = jnp.where(menu.where, jnp.exp(jax.vmap(log_prob)(paths)), 0.0)
        return jnp.sum(probability * menu.value), probability.sum()

    value, total = jax.vmap(of_one)(prepared_by(policy), menu)
    return value.mean(), total


@functools.cache
def exact():
    """Gradient of the expected value, and the probabilities that it sums."""
    system = tiny_ega()
    menu = every_slate(system)
    params = system.decoder.trainable("all")
    gradient = jax.jit(jax.grad(expected_value, has_aux=True))
    return gradient(params, system, menu)


def estimated(name):
    """The mean gradient of an estimator's unscaled loss, with the sign of a value's gradient."""
    system = with_beams(tiny_ega(), 16)

    @jax.jit
    def gradient(params, key):
        def loss(params):
            policy = dataclasses.replace(system, decoder=system.decoder.with_parameters(params))
            prepared = prepared_by(policy)
            credits = jax.lax.stop_gradient(ESTIMATORS[name](policy, prepared, key, DRAWS))

            def log_z(path, memory):
                own = lambda path: taken(
                    path_log_probs(policy.decoder, memory, path, LEVERS.alpha, LEVERS.beta), path
                )
                return jax.vmap(own)(path)

            found = jax.vmap(log_z)(credits.path, prepared.memory.encoded)
            return policy_loss(found, credits.credit, credits.path.where).mean()

        return jax.tree.map(jnp.negative, jax.grad(loss)(params))

    params = system.decoder.trainable("all")
    total = None
    for number in range(CALLS if name in SAMPLING else 1):
        found = gradient(params, jax.random.key(number))
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    return total, number + 1


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)


def test_the_policys_probabilities_sum_to_1():
    np.testing.assert_allclose(exact()[1], 1.0, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLING)
def test_sampled_credits_estimate_the_gradient_of_the_expected_value(name):
    expected = flat(exact()[0])
    total, calls = estimated(name)
    found = flat(total) / calls
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.98
    assert found @ expected / (expected @ expected) == pytest.approx(1.0, abs=0.1)


def test_contributions_push_towards_the_winner_and_not_along_the_expected_value():
    """They are no estimate of that gradient: its cosine with theirs is far from 1."""
    expected, found = flat(exact()[0]), flat(estimated("contribution")[0])
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine < 0.9


def test_draws_are_slates_of_the_request_at_their_values():
    system = tiny_ega()
    menu = jax.device_get(every_slate(system))
    keys = jax.random.split(jax.random.key(0), ROWS)
    draw = jax.jit(jax.vmap(lambda prepared, key: system.draw_menu(prepared, key, 4000)))
    drawn = jax.device_get(draw(prepared_by(system), keys))
    for row in range(ROWS):
        slates = {tuple(x): n for n, x in enumerate(menu.candidate[row]) if menu.where[row][n]}
        numbers = np.array([slates[tuple(x)] for x in drawn.candidate[row]])
        np.testing.assert_allclose(drawn.value[row], menu.value[row][numbers], rtol=1e-4, atol=1e-6)
        share = np.bincount(numbers, minlength=len(slates))[: len(slates)] / len(numbers)
        probability = np.exp(menu.log_z[row].sum(-1))[: len(slates)]
        deviation = np.sqrt(probability * (1 - probability) / len(numbers))
        assert (np.abs(share - probability) < 5 * deviation + 1e-3).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_alignment_takes_every_estimator(name):
    system = with_beams(tiny_ega(), 8)
    settings = AlignmentConfig(estimator=name, num_samples=4, part="all", kl_weight=0.1)
    loss = jax.jit(jax.value_and_grad(auction_loss(system, settings, LEVERS), has_aux=True))
    params = system.decoder.trainable("all")
    batch = batch_of(requests())
    (total, (metrics, _)), gradient = loss(params, params, batch, jax.random.key(0))
    expected = metrics["policy_loss"] + 0.1 * metrics["kl"]
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6)
    assert metrics["value"] > 0
    assert np.abs(flat(gradient)).max() > 0
