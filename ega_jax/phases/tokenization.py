"""From embeddings to semantic tokens: fitted once per workdir, then restored (sec. 4.1.2)."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.data.pipeline import array_batches
from ega_jax.quantization import collisions, residual, rqvae, tokenizer
from ega_jax.quantization.autoencoder import RQVAEConfig
from ega_jax.quantization.kmeans import KMeansConfig
from ega_jax.setting import same_as, setting
from ega_jax.training.checkpoints import (
    is_complete,
    read_metadata,
    restore_tree,
    save_tree,
    saved_shapes,
)
from ega_jax.training.loop import Phase, train
from ega_jax.training.optimizer import OptimizerConfig, make_optimizer
from ega_jax.training.settings import LoopSettings
from ega_jax.training.state import TrainState, make_train_step

KINDS = ("rqvae", "kmeans")
FITTED = "fitted_items"  # In the report of tokens to which items were added.
UNSEEN = "unseen_share"  # In the report of an ad log's tokens: items that were not fitted.


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """The group `tokenizer`: how a tokenizer is fitted."""

    kind: str = setting("rqvae", choices=KINDS)
    num_layers: int = same_as(KMeansConfig, "num_layers")  # C, without a disambiguation code.
    num_codes: int = same_as(KMeansConfig, "num_codes")  # W
    disambiguate: bool = setting(False)  # One more code tells items with the same codes apart.
    num_iterations: int = same_as(KMeansConfig, "num_iterations")  # Of k-means.
    hidden: tuple[int, ...] = same_as(RQVAEConfig, "hidden")  # Widths of the RQ-VAE's encoder.
    latent: int = same_as(RQVAEConfig, "latent")  # Width that the RQ-VAE quantises.
    num_steps: int = setting(2000, at_least=1)  # Of the RQ-VAE.
    batch_size: int = setting(1024, at_least=1)  # Of the RQ-VAE, at most the number of items.
    learning_rate: float = setting(1e-3, above=0)  # Of the RQ-VAE, peak of a cosine.
    checkpoint_every: int = same_as(LoopSettings, "checkpoint_every")

    @property
    def code_layers(self) -> int:
        """C as the generator sees it, the disambiguation code included."""
        return self.num_layers + self.disambiguate

    def model(self) -> KMeansConfig | RQVAEConfig:
        """The config of the tokenizer itself."""
        if self.kind == "kmeans":
            return KMeansConfig(self.num_layers, self.num_codes, self.num_iterations)
        return RQVAEConfig(self.num_layers, self.num_codes, self.hidden, self.latent)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The semantic tokens of a catalogue's POIs or creatives."""

    codes: np.ndarray  # [n, C] int32
    report: dict[str, Any]  # Usage, perplexity, R2 and collisions; see `tokenizer.report`.

    @property
    def num_fitted(self) -> int:
        """Items that were there when the tokenizer was fitted; later ones follow them."""
        return self.report.get(FITTED, len(self.codes))


def tokenize(
    name: str,
    embeddings: np.ndarray,
    settings: TokenizerSettings,
    *,
    workdir: Path,
    config: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    seed: int,
    seen: Callable[[], np.ndarray] | None = None,
) -> Tokens:
    """Fits a tokenizer and assigns codes, or restores what the workdir holds.

    Args:
      name: "poi" or "creative"; the tokenizer is kept in `workdir/tokenizers/NAME`.
      embeddings: `[n, E]` float32.
      settings: how to fit.
      workdir: where checkpoints and the result go.
      config: of the whole run, saved with checkpoints.
      mesh: for the RQ-VAE's training.
      seed: of initialisation and order.
      seen: tells which items `[n]` bool the tokenizer is fitted on; others then get codes beside
        those. Default: all items.

    Returns:
      The codes and their report.
    """
    path = Path(workdir) / "tokenizers" / name
    if not is_complete(path):
        known = np.ones(len(embeddings), bool) if seen is None else seen()
        fitted = _fit(name, embeddings[known], settings, workdir, config, mesh, seed)
        codes = np.zeros((len(embeddings), settings.code_layers), np.int32)
        codes[known] = _first_codes(fitted, embeddings[known], settings)
        if not known.all():
            codes[~known] = _codes_beside(fitted, codes[known], embeddings[~known], settings)
        share = {} if seen is None else {UNSEEN: float(np.mean(~known))}
        _save(path, fitted, embeddings, codes, share)
    return _restore(path, settings, embeddings.shape)[1]


def add_items(
    path: Path, embeddings: np.ndarray, settings: TokenizerSettings, saved_as: Path
) -> int:
    """Gives items that follow the known ones codes by the fitted tokenizer; the known keep theirs.

    Args:
      path: folder of a tokenizer and its codes.
      embeddings: `[n, E]` float32 of all items, the known ones first and unchanged.
      settings: how the tokenizer was fitted.
      saved_as: folder for the tokenizer with the codes of all items.

    Returns:
      How many items were added.
    """
    num_known = num_tokens(path)
    fitted, tokens = _restore(path, settings, (num_known, embeddings.shape[1]))
    known, added = tokens.codes, embeddings[num_known:]
    codes = known
    if len(added):
        codes = np.concatenate([known, _codes_beside(fitted, known, added, settings)])
    report: dict[str, Any] = {FITTED: tokens.num_fitted}
    if UNSEEN in tokens.report:
        unseen = tokens.report[UNSEEN] * num_known + len(added)
        report[UNSEEN] = unseen / len(embeddings)
    _save(saved_as, fitted, embeddings, codes, report)
    return len(added)


def _first_codes(
    fitted: tokenizer.Tokenizer, embeddings: np.ndarray, settings: TokenizerSettings
) -> np.ndarray:
    """Codes `[n, C]` of the items that a tokenizer was fitted on."""
    codes = tokenizer.assign(fitted, embeddings)
    return collisions.disambiguate(codes, settings.num_codes) if settings.disambiguate else codes


def _codes_beside(
    fitted: tokenizer.Tokenizer,
    known: np.ndarray,
    embeddings: np.ndarray,
    settings: TokenizerSettings,
) -> np.ndarray:
    """Codes `[n, C]` of other items beside the known codes `[P, C]`."""
    codes = tokenizer.assign_beside(fitted, known[:, : settings.num_layers], embeddings)
    if settings.disambiguate:
        codes = collisions.disambiguate(codes, settings.num_codes, known)
    return codes


def num_tokens(path: Path) -> int:
    """How many items a saved tokenizer has codes of."""
    return saved_shapes(path)["codes"].shape[0]


def _save(path: Path, fitted, embeddings: np.ndarray, codes: np.ndarray, more: dict) -> None:
    unresolved = tokenizer.assign(fitted, embeddings, resolve=False)
    report = tokenizer.report(fitted, embeddings, codes) | {
        "collision_rate_before": residual.collision_rate(residual.leaf_sizes(unresolved))
    }
    save_tree(path, {"tokenizer": fitted, "codes": jnp.asarray(codes)}, report | more)


def _restore(
    path: Path, settings: TokenizerSettings, shape: tuple[int, ...]
) -> tuple[tokenizer.Tokenizer, Tokens]:
    """A fitted tokenizer and the codes it gave to embeddings of a shape `[n, E]`."""
    target = {
        "tokenizer": tokenizer.abstract(settings.model(), shape[1]),
        "codes": jax.ShapeDtypeStruct((shape[0], settings.code_layers), jnp.int32),
    }
    found = restore_tree(path, target)
    return found["tokenizer"], Tokens(np.asarray(found["codes"]), read_metadata(path))


def _fit(name, embeddings, settings, workdir, config, mesh, seed) -> tokenizer.Tokenizer:
    model = settings.model()
    key = jax.random.key(seed)
    if isinstance(model, KMeansConfig):
        return tokenizer.fit_kmeans(model, embeddings, key)
    tokenizer.check_embeddings(embeddings, settings.num_codes)
    optimizer_config = OptimizerConfig(settings.learning_rate, schedule="cosine", clip_norm=10.0)
    optimizer = make_optimizer(optimizer_config, settings.num_steps)
    key_init, key_steps = jax.random.split(key)

    def init() -> TrainState:
        params, variables = rqvae.init(key_init, model, jnp.asarray(embeddings))
        return TrainState.create(params, optimizer, variables)

    # A batch divides evenly over the devices and is no larger than the catalogue.
    batch_size = min(settings.batch_size, len(embeddings)) // mesh.size * mesh.size
    phase = Phase(
        name=f"rqvae_{name}",
        init=init,
        step=make_train_step(rqvae.make_loss(model), optimizer, key_steps),
        batches=array_batches(
            {"embedding": embeddings},
            batch_size=batch_size,
            seed=seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        num_steps=settings.num_steps,
        checkpoint_every=settings.checkpoint_every,
    )
    state = train(phase, workdir=workdir, config=config, mesh=mesh)
    return tokenizer.from_rqvae(model, state.params, state.variables)
