"""The main job's first half: from a dataset to a pre-trained generator (paper sec. 4.4.1)."""

import dataclasses
import functools
import itertools
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ega_jax.data import pipeline
from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.data.interactions import with_interactions
from ega_jax.data.market.logs import write_market
from ega_jax.data.not_learned import not_learned
from ega_jax.data.seen_items import seen_pois
from ega_jax.data.sequences import SequenceDataset
from ega_jax.errors import UserError
from ega_jax.generation import generator
from ega_jax.generation.generator import GeneratorConfig
from ega_jax.generation.network import GeneratorSettings
from ega_jax.generation.pretraining import CodeTree, code_tree, pretraining_loss
from ega_jax.phases.context import context_scale
from ega_jax.phases.settings import PhaseSettings
from ega_jax.phases.tokenization import Tokens, tokenize
from ega_jax.setting import part_of
from ega_jax.training.checkpoints import PhaseCheckpoints, check_workdir, restore_tree
from ega_jax.training.loop import Phase, train
from ega_jax.training.metrics import read_metrics
from ega_jax.training.optimizer import make_optimizer
from ega_jax.training.progress import ProgressReport
from ega_jax.training.state import TrainState, make_train_step
from ega_jax.types import Catalogue, LossFn, Params


@dataclasses.dataclass(frozen=True)
class Batches:
    """The first batches of a dataset; can be iterated over again."""

    batches: grain.IterDataset
    num_batches: int

    def __iter__(self):
        """Starts a new pass."""
        return itertools.islice(self.batches, self.num_batches)


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """The phases from data to a pre-trained generator, bound to a workdir.

    Each step is made when it is first asked for, and restored from the workdir where an earlier
    run has made it: dataset, tokens, generator.

    Attributes:
      settings: of the whole job.
      workdir: where everything is kept.
      mesh: the devices to train on.
    """

    settings: PhaseSettings
    workdir: Path
    mesh: jax.sharding.Mesh

    @property
    def folder(self) -> Path:
        """The dataset's folder: `data.path`, or the workdir's own market."""
        return Path(self.settings.data.path or self.workdir / "data").expanduser()

    @functools.cached_property
    def dataset(self) -> pipeline.Dataset:
        """The dataset of the folder, validated; a market is made if it is absent.

        Raises:
          DataError: the folder breaks a rule of its format.
        """
        data = self.settings.data
        if not data.path:
            if jax.process_index() == 0 and not self.folder.exists():
                self._make_market()
            multihost_utils.sync_global_devices("market")
        with ProgressReport("validating", 0, 1) as progress:
            dataset = pipeline.open_dataset(
                self.folder, data.num_slots or None, data.fractions, progress.count
            )
        for text in not_learned(dataset.summary):
            _warn(f"{self.folder}: {text}")
        return dataset

    def _make_market(self) -> None:
        market = self.settings.data.market
        with ProgressReport("simulating", 0, market.config.num_sessions) as progress:
            sequences = Path(market.sequences).expanduser() if market.sequences else None
            write_market(market.config, self.folder, sequences, progress.count)

    @property
    def is_ad_log(self) -> bool:
        """Whether the dataset is an ad log, with candidates of its own for each request."""
        return not isinstance(self.dataset, SequenceDataset)

    @property
    def ad_log(self) -> AdLogDataset:
        """The dataset of an auction.

        Raises:
          UserError: it holds sequences, which have no auction.
        """
        if not isinstance(self.dataset, AdLogDataset):
            raise UserError(f"{self.folder} holds sequences; an auction needs an ad log")
        return self.dataset

    @property
    def embeddings(self) -> dict[str, np.ndarray]:
        """Of the POIs and, where there are any, of the creatives, as the dataset has them."""
        given = {"poi": self.dataset.item_embedding}
        if self.dataset.summary.num_creatives:
            given["creative"] = self.dataset.creative_embedding
        return given

    def check_items(self) -> None:
        """Binds the workdir's tokens to the dataset's items, or checks that they are bound to them.

        Raises:
          ConfigMismatchError: the workdir's tokens are of other items than the dataset's.
        """
        check_workdir(self.workdir / "tokenizers", checksums(self.embeddings))

    @functools.cached_property
    def seen(self) -> dict[str, np.ndarray]:
        """The items of an ad log that come in its split "pretrain": `[P]` and `[R]` bool."""
        pois = seen_pois(self.ad_log)
        return {"poi": pois, "creative": pois[self.ad_log.creative_poi]}

    @functools.cached_property
    def tokens(self) -> dict[str, Tokens]:
        """Tokens of the POIs and, where there are any, of the creatives.

        On an ad log, tokenizers are fitted on the items of the split "pretrain"; others come later
        in the log, and get their codes from the fitted tokenizer.

        Raises:
          ConfigMismatchError: the workdir's tokens are of other items than the dataset's.
        """
        self.check_items()
        embeddings = self.embeddings | {"poi": self._item_embedding()}
        return {
            name: tokenize(
                name,
                embedding,
                self.settings.tokenizer,
                workdir=self.workdir,
                config=self.settings.to_dict(),
                mesh=self.mesh,
                seed=self.settings.seed,
                seen=(lambda name=name: self.seen[name]) if self.is_ad_log else None,
            )
            for name, embedding in embeddings.items()
        }

    def _item_embedding(self) -> np.ndarray:
        """What the POI tokens are made of.

        Raises:
          UserError: interactions are wanted of an ad log.
        """
        share, dataset = self.settings.data.interactions, self.dataset
        if not share:
            return dataset.item_embedding
        if not isinstance(dataset, SequenceDataset):
            raise UserError(f"config.data.interactions={share} is for sequences; this is an ad log")
        return with_interactions(dataset, share)

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """The items' codes, and which creatives a POI owns."""
        summary, tokens = self.dataset.summary, self.tokens
        num_layers = tokens["poi"].codes.shape[1]
        no_creatives = np.zeros((0, num_layers), np.int32)
        creative_codes = tokens["creative"].codes if "creative" in tokens else no_creatives
        owned = owned_creatives(self.dataset.creative_poi, summary.num_items)
        return Catalogue(*map(jnp.asarray, (tokens["poi"].codes, creative_codes, owned)))

    @functools.cached_property
    def tree(self) -> CodeTree:
        """Which POI codes exist after which."""
        return code_tree(self.tokens["poi"].codes, self.generator_config.num_codes)

    @property
    def loss_tree(self) -> CodeTree | None:
        """The tree that the likelihood is normalised over, if it is."""
        return self.tree if self.settings.training.existing_codes_only else None

    @functools.cached_property
    def generator_config(self) -> GeneratorConfig:
        """Sizes of the generator, some of which follow from data and tokens."""
        data, tokenizer = self.settings.data, self.settings.tokenizer
        return GeneratorConfig(
            num_codes=tokenizer.num_codes,
            num_layers=tokenizer.code_layers,
            num_slots=data.num_slots or self.dataset.summary.num_slots,
            history_length=data.history_length,
            context=context_scale(self.dataset, self.workdir),
            creatives=self.dataset.summary.num_creatives > 0,
            **part_of(self.settings.generator, GeneratorSettings),
        )

    @property
    def validation_split(self) -> str:
        """The held-out split that is measured during training."""
        return "align" if self.is_ad_log else "validation"

    def batches(self, split: str, num_rows: int | None = None) -> grain.IterDataset:
        """A held-out split as batches, or about `num_rows` of its rows, evenly spread."""
        size = self.settings.evaluation.batch_size
        max_batches = None if num_rows is None else -(-num_rows // size)
        return pipeline.eval_batches(
            self.dataset, split, batch_size=size, max_batches=max_batches, **self._shapes
        )

    @property
    def _shapes(self) -> dict[str, Any]:
        return {
            "history_length": self.settings.data.history_length,
            "num_slots": self.generator_config.num_slots,
            "exposure_weight": self.settings.data.exposure_weight,
        }

    def _training_batches(self, process_index: int = 0, process_count: int = 1):
        return pipeline.train_batches(
            self.dataset,
            "pretrain" if self.is_ad_log else "train",
            batch_size=self.settings.training.batch_size,
            sort_by_length=self.settings.training.sort_by_length,
            seed=self.settings.seed,
            process_index=process_index,
            process_count=process_count,
            **self._shapes,
        )

    def training_epoch(self) -> Iterable[Mapping[str, Any]]:
        """One pass over what the generator trains on; every host sees all of it."""
        if self.is_ad_log:
            return self.batches("pretrain")
        num_batches = -(-self.dataset.summary.num_rows // self.settings.training.batch_size)
        return Batches(self._training_batches(), num_batches)

    def train_generator(self, evaluate=None) -> Params:
        """Trains the generator to the end, from its last checkpoint if there is one.

        Args:
          evaluate: `params -> {name: value}`, run every `training.evaluate_every` steps.

        Returns:
          The parameters.
        """
        phase = self.generator_phase(evaluate)
        config = self.settings.to_dict()
        return train(phase, workdir=self.workdir, config=config, mesh=self.mesh).params

    def samples_per_second(self) -> float:
        """Median speed of the generator's training."""
        records = read_metrics(self.workdir / "metrics" / "generator.jsonl")
        return float(np.median([record["samples_per_second"] for record in records]))

    @property
    def newest_step(self) -> int:
        """The generator's steps so far, as its newest checkpoint has them; 0 without one."""
        return self.checkpoints.latest_step() or 0

    @property
    def is_finished(self) -> bool:
        """Whether the generator has had all its steps."""
        return self.newest_step == self.settings.training.num_steps

    def check_finished(self) -> None:
        """Refuses a workdir without a generator that is trained to its end.

        What is built on a generator must not change under it.

        Raises:
          FileNotFoundError: the workdir has none.
          UserError: pre-training stopped before its end.
        """
        self._check_begun()
        if not self.is_finished:
            raise UserError(
                f"the generator in {self.workdir} has {self.newest_step} of "
                f"{self.settings.training.num_steps} steps: run experiments.pretrain with it"
            )

    def _check_begun(self) -> None:
        if not self.newest_step:
            raise FileNotFoundError(
                f"{self.workdir} holds no generator: run experiments.pretrain with it first"
            )

    def restore_generator(self) -> Params:
        """The pre-trained parameters; raises as `check_finished`."""
        self.check_finished()
        return self.newest_generator()

    def newest_generator(self) -> Params:
        """The parameters of the newest checkpoint, of a stopped run too.

        Raises:
          FileNotFoundError: the workdir has none.
        """
        self._check_begun()
        path = self.checkpoints.path(self.newest_step)
        return restore_tree(path, jax.eval_shape(self.init)).params

    @property
    def checkpoints(self) -> PhaseCheckpoints:
        """Of the generator."""
        return PhaseCheckpoints(self.workdir / "checkpoints" / "generator")

    @property
    def init(self) -> Callable[[], TrainState]:
        """Makes the state before the first step; data and tokens are made before it is traced."""
        config, catalogue, optimizer = self.generator_config, self.catalogue, self._optimizer

        def init() -> TrainState:
            key = jax.random.fold_in(jax.random.key(self.settings.seed), 1)
            return TrainState.create(generator.init(key, config, catalogue), optimizer)

        return init

    @property
    def _optimizer(self):
        return make_optimizer(self.settings.optimizer, self.settings.training.num_steps)

    @property
    def loss(self) -> LossFn:
        """The loss of interest pre-training (29)."""
        return pretraining_loss(self.generator_config, self.catalogue, self.loss_tree)

    def generator_phase(self, evaluate=None, loss: LossFn | None = None) -> Phase:
        """Training from fresh parameters, by another loss than the pre-training's if one is given.

        Args:
          evaluate: see `train_generator`.
          loss: in the form that the training loop takes.
        """
        training = self.settings.training
        key = jax.random.fold_in(jax.random.key(self.settings.seed), 2)
        return Phase(
            name="generator",
            init=self.init,
            step=make_train_step(loss or self.loss, self._optimizer, key),
            batches=self._training_batches(jax.process_index(), jax.process_count()),
            num_steps=training.num_steps,
            checkpoint_every=training.checkpoint_every,
            log_every=training.log_every,
            evaluate=evaluate and (lambda state: evaluate(state.params)),
            evaluate_every=training.evaluate_every,
        )


@functools.cache
def _warn(text: str) -> None:
    """Prints a warning once, however many systems of a workdir open its dataset."""
    if jax.process_index() == 0:
        print(f"warning: {text}", file=sys.stderr)


def checksums(embeddings: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What binds the tokens of a workdir to the embeddings that they were made of."""
    crc32 = {name: f"{zlib.crc32(x.tobytes()):08x}" for name, x in embeddings.items()}
    return {"data.path": {"embeddings_crc32": crc32}}


def owned_creatives(creative_poi: np.ndarray, num_pois: int) -> np.ndarray:
    """Lists each POI's creatives.

    Args:
      creative_poi: `[R]` int32, the POI that owns each creative.
      num_pois: `P`.

    Returns:
      `[P, M]` int32 creative ids in ascending order, -1 where none; `M` is the most of any POI.
    """
    counts = np.bincount(creative_poi, minlength=num_pois)
    owned = np.full((num_pois, counts.max(initial=0)), -1, np.int32)
    order = np.argsort(creative_poi, kind="stable").astype(np.int32)
    place = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
    owned[creative_poi[order], place] = order
    return owned
