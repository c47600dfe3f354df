"""Who sees whom, both losses against loops, the batches, and that it learns a walk."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_sequences import dataset_of

from ega_jax.baselines.retrieval import sasrec
from ega_jax.baselines.retrieval.full_ranking import full_ranking
from ega_jax.baselines.retrieval.sasrec import SasrecConfig
from ega_jax.baselines.retrieval.settings import RetrievalSettings
from ega_jax.data import pipeline
from ega_jax.errors import UserError
from ega_jax.training.loop import train
from ega_jax.training.mesh import data_mesh
from ega_jax.training.metrics import read_metrics
from ega_jax.training.optimizer import OptimizerConfig
from ega_jax.training.settings import LoopSettings

P, T, B = 12, 6, 5
CONFIG = SasrecConfig(
    num_items=P, history_length=T, width=8, num_heads=2, hidden=16, blocks=2, dropout_rate=0.0
)
BINARY = dataclasses.replace(CONFIG, loss="binary")
KEY = jax.random.key(0)
STATES = jax.jit(lambda params, x: sasrec.apply(params, CONFIG, lambda network: network(x)))


@pytest.fixture(scope="module")
def params():
    """Parameters large enough that every input matters."""
    fresh = jax.jit(lambda key: sasrec.init(key, CONFIG))(KEY)
    return jax.tree.map(lambda x: x * 10 if x.shape in ((P, 8), (T, 8)) else x, fresh)


def random_history(seed=0):
    """Ids `[B, T]` with padding on the left, one item at least."""
    rng = np.random.default_rng(seed)
    real = np.arange(T) >= np.arange(B)[:, None] % T
    return np.where(real, rng.integers(0, P, (B, T)), -1).astype(np.int32)


def test_a_position_sees_what_came_before_it_alone(params):
    history = random_history()
    later = history.copy()
    later[:, -2:] = (later[:, -2:] + 1) % P
    earlier = np.where(history == history[:, -3:-2], (history + 1) % P, history)
    states = STATES(params, history)
    np.testing.assert_allclose(STATES(params, later)[:, :-2], states[:, :-2], atol=1e-6)
    assert np.all(np.abs(STATES(params, earlier) - states)[:, -3:].max(-1) > 1e-4)


def test_padding_is_as_absent(params):
    history = random_history()
    short = (history[:, :3] == -1).all(axis=1)
    assert 0 < short.sum() < B
    found = STATES(params, history)[short, -3:]
    where = history[short, -3:] >= 0
    np.testing.assert_allclose(STATES(params, history[short, -3:])[where], found[where], atol=1e-5)


def test_scores_are_inner_products_with_the_inputs_embeddings(params):
    history = random_history()
    scores = sasrec.make_scores(CONFIG)(params)(history)
    chex.assert_shape(scores, (B, P))
    states, items = (np.asarray(x) for x in (STATES(params, history), params["items"]))
    expected = [[states[b, -1] @ items[i] for i in range(P)] for b in range(B)]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def batch_of(history):
    target = np.arange(B, dtype=np.int32)[:, None]
    return {"history_poi": history, "target_poi": target}


def steps_of(batch):
    """(row, position, item that follows) of each real position."""
    sequence = np.concatenate([batch["history_poi"], batch["target_poi"]], axis=1)
    return [(b, t, sequence[b, t + 1]) for b in range(B) for t in range(T) if sequence[b, t] >= 0]


def test_softmax_loss_against_a_loop(params):
    batch = batch_of(random_history())
    loss, _ = jax.jit(sasrec.sasrec_loss(CONFIG))(params, (), batch, KEY)
    scores = np.asarray(STATES(params, batch["history_poi"]) @ params["items"].T)
    nll = [np.log(np.exp(scores[b, t]).sum()) - scores[b, t, i] for b, t, i in steps_of(batch)]
    np.testing.assert_allclose(loss, np.mean(nll), rtol=1e-5)


def test_binary_loss_against_a_loop(params):
    batch = batch_of(random_history())
    loss, _ = jax.jit(sasrec.sasrec_loss(BINARY))(params, (), batch, KEY)
    scores = np.asarray(STATES(params, batch["history_poi"]) @ params["items"].T)
    sequence = np.concatenate([batch["history_poi"], batch["target_poi"]], axis=1)
    negatives = np.asarray(sasrec.draw_negatives(jax.random.split(KEY)[1], sequence, P))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    terms = []
    for b, t, item in steps_of(batch):
        if negatives[b, t] >= 0:
            taken, other = scores[b, t, item], scores[b, t, negatives[b, t]]
            terms.append(-np.log(sigmoid(taken)) - np.log(1 - sigmoid(other)))
    assert 0 < len(terms) < len(steps_of(batch))
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)


def test_negatives_are_items_that_the_user_never_took():
    sequence = np.tile(np.array([[-1, 3, 4, 7]], np.int32), (400, 1))
    drawn = np.asarray(sasrec.draw_negatives(KEY, sequence, P))
    assert drawn.shape == (400, 3)
    assert set(drawn.ravel().tolist()) == {-1, *range(P)} - {3, 4, 7}
    np.testing.assert_allclose((drawn == -1).mean(), 3 / P, atol=0.05)


@pytest.mark.parametrize("config", [CONFIG, BINARY])
def test_gradients_are_finite_and_padding_gives_none(params, config):
    gradient = jax.jit(jax.grad(lambda *x: sasrec.sasrec_loss(config)(*x)[0]))
    nothing = {"history_poi": np.full((B, T), -1, np.int32), "target_poi": np.zeros((B, 1), int)}
    chex.assert_tree_all_finite(gradient(params, (), batch_of(random_history()), KEY))
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient(params, (), nothing, KEY)))


def test_an_unknown_loss_lists_the_valid_ones():
    refused = r"config\.sasrec\.loss: 'hinge' is not one of softmax, binary"
    with pytest.raises(UserError, match=refused):
        RetrievalSettings().changed({"sasrec.loss": "hinge"})


@pytest.mark.parametrize(
    ("config", "num_steps"), [(CONFIG, 400), (BINARY, 1600)], ids=["softmax", "binary"]
)
def test_it_learns_a_walk_through_the_items(tmp_path, config, num_steps):
    """Each user has a step and a start of their own: the last two items tell the next one."""
    walks = [[(u + (1 + u // P % 3) * i) % P for i in range(8 + u // 36)] for u in range(72)]
    dataset = dataset_of(walks, P)
    batches = list(
        pipeline.eval_batches(dataset, "test", batch_size=24, history_length=T, num_slots=1)
    )
    scores_of = sasrec.make_scores(config)
    phase = sasrec.sasrec_phase(
        dataset,
        dataclasses.replace(config, dropout_rate=0.1),
        OptimizerConfig(learning_rate=1e-2),
        LoopSettings(batch_size=24, num_steps=num_steps),
        seed=0,
        evaluate=lambda params: full_ranking(scores_of(params), batches),
        evaluate_every=num_steps,
    )
    state = train(phase, workdir=tmp_path, config={}, mesh=data_mesh(jax.devices()[:1]))
    records = read_metrics(tmp_path / "metrics" / "sasrec.jsonl")
    # Who knows the last item, but not the step, has three that are equally likely.
    naive = (1 + 1 / math.log2(3) + 1 / math.log2(4)) / 3
    assert records[-1]["eval/ndcg@5"] > naive + 0.05
    if config.loss == "binary":
        return  # What a sequence holds is never its negative, so that ranks among it stay open.
    assert records[-1]["loss"] < math.log(3) < records[0]["loss"]
    top = jnp.concatenate([scores_of(state.params)(b["history_poi"]).argmax(-1) for b in batches])
    target = np.concatenate([batch["target_poi"][:, 0] for batch in batches])
    assert np.mean(top == target) > 0.8
    assert records[-1]["eval/ndcg@5"] > 0.8
