"""Sizes of the suite `accelerator`: the paper's, and tiny ones for a rehearsal on a CPU."""

import dataclasses

from ega_jax.generation.network import GeneratorConfig, GeneratorSettings
from ega_jax.setting import part_of
from experiments.benchmarks.auction import SHAPES, Shape
from experiments.configs import meituan

DTYPE = "bfloat16"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of all parts."""

    auction: Shape
    generator: GeneratorConfig  # For training.
    matrix: int  # Rows of the matrix product.
    training_rows: tuple[int, ...]  # The most valuable first.
    serving_rows: tuple[int, ...]  # Likewise.
    alignment_rows: int
    limit_s: float  # For the calls of one latency.
    book: int  # Ads.
    peer_rows: int  # Batch size of training.
    quick_start: tuple[str, ...]  # Flags of its first command.
    compiled: str  # Name of the auction's shape whose functions are compiled.


def _paper() -> Sizes:
    settings = meituan.settings()
    return Sizes(
        auction=dataclasses.replace(SHAPES["paper"], dtype=DTYPE),
        generator=GeneratorConfig(
            num_codes=settings.tokenizer.num_codes,
            num_layers=settings.tokenizer.code_layers,
            num_slots=settings.data.num_slots,
            history_length=settings.data.history_length,
            **part_of(settings.generator, GeneratorSettings),
        ),
        matrix=8192,
        training_rows=(128, 2048, 1024, 512, 256),
        serving_rows=(1, 32, 8),
        alignment_rows=32,
        limit_s=3.0,
        book=1_000_000,
        peer_rows=512,
        quick_start=(),
        compiled="tiny",  # The quick start's.
    )


def _tiny() -> Sizes:
    widths = {"width": 8, "hidden": 8, "num_heads": 2, "encoder_blocks": 1, "decoder_blocks": 1}
    shared = {"num_codes": 8, "num_slots": 2, "history_length": 4}
    no_warmup = (f"--config.{group}.warmup_steps=0" for group in ("optimizer", "reward"))
    phases = "tokenizer", "training", "reward", "alignment", "payment"
    return Sizes(
        auction=Shape(
            **shared,
            num_candidates=6,
            num_beams=4,
            width=8,
            hidden=8,
            blocks=1,
            reward_width=8,
            dtype=DTYPE,
        ),
        generator=GeneratorConfig(**shared, **widths, num_layers=2, dtype=DTYPE),
        matrix=256,
        training_rows=(4,),
        serving_rows=(2,),
        alignment_rows=2,
        limit_s=0.1,
        book=10_000,
        peer_rows=4,
        quick_start=(
            *(f"--config.{phase}.num_steps=2" for phase in phases),
            *(f"--config.generator.{name}={value}" for name, value in widths.items()),
            *no_warmup,
            "--config.auction.num_sessions=2",
            "--config.payment.num_sessions=32",
        ),
        compiled="tiny",
    )


SIZES = {"paper": _paper(), "tiny": _tiny()}
