"""What is compiled can be lowered for GPU and TPU too, though nothing here has one."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import export
from tiny_models import SHAPE

from ega_jax import mechanism
from ega_jax.generation.pretraining import code_tree, pretraining_loss
from ega_jax.phases.requests import request_of
from ega_jax.quantization import autoencoder, kmeans, rqvae
from experiments.benchmarks.auction import Auction


@pytest.fixture(scope="module", autouse=True)
def _broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def auction():
    return Auction(SHAPE)


def lowers(function, *arguments):
    """Lowers a function for both platforms; raises where an operation does not exist there."""
    exported = export.export(jax.jit(function), platforms=("cuda", "tpu"))(*arguments)
    return set(exported.platforms) == {"cuda", "tpu"} and exported.mlir_module_serialized


def test_tokenizers():
    x, key = jnp.ones((64, 6)), jax.random.key(0)
    config = autoencoder.RQVAEConfig(num_layers=2, num_codes=8, hidden=(8,), latent=4)
    state = jax.eval_shape(lambda: rqvae.init(key, config, x))
    assert lowers(jax.grad(rqvae.make_loss(config), has_aux=True), *state, {"embedding": x}, key)
    config = kmeans.KMeansConfig(num_layers=2, num_codes=8)
    assert lowers(lambda x: kmeans.residual_kmeans(key, x, config), x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pretraining(auction, dtype):
    config = dataclasses.replace(auction.system.decoder.config, dtype=dtype)
    catalogue = auction.system.items.catalogue
    tree = code_tree(jax.device_get(catalogue.poi_codes), config.num_codes)
    loss = pretraining_loss(config, catalogue, tree)
    batch = auction.batch(2)
    targets = {
        "target_poi": batch["shown_poi"],
        "target_creative": batch["shown_creative"],
        "target_weight": jnp.ones(batch["shown_poi"].shape),
    }
    key = jax.random.key(0)
    assert lowers(
        jax.grad(loss, has_aux=True), auction.system.decoder.params, (), batch | targets, key
    )


def test_the_auction_s_training_steps(auction):
    for phase, (_, (step, given)) in auction.steps().items():
        assert lowers(step, *given), phase


def test_serving(auction, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    served = auction.mechanism()
    request = request_of(auction.batch(2))

    def serve(system, networks, request, levers, chosen):
        return mechanism.serve(system, networks, served.pricing, request, levers, chosen)[0]

    chosen, levers = served._settings("threshold", {})
    assert lowers(serve, served.system, served.networks, request, levers, chosen)
