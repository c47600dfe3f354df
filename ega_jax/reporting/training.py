"""Tokens and training curves of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from ega_jax.reporting.blocks import Charts, Section, Table
from ega_jax.reporting.charts import lines

Record = Mapping[str, float]
CURVES = ("loss", "value", "revenue", "regret")  # Metrics that are drawn.
TOKENS = {  # Column -> key in `results.json`; lists are by layer.
    "codes used": "usage",
    "perplexity": "perplexity",
    "R2": "r2",
    "collision rate": "collision_rate",
    "items of the fullest code": "largest_leaf",
    "new items": "unseen_share",
}


def tokens_section(reports: Mapping[str, Mapping[str, Any]]) -> Section:
    """Describes the semantic tokens, as `results.json` holds them under `tokenizer`."""
    rows = [
        [name, *(report.get(key) for key in TOKENS.values())] for name, report in reports.items()
    ]
    caption = "Lists are by layer. R2 is the share of the embeddings' variance that codes explain."
    return Section("Semantic tokens", [Table(("items", *TOKENS), rows, caption)])


def curves_section(metrics: Mapping[str, Sequence[Record]]) -> Section:
    """Draws the training curves of phases.

    Args:
      metrics: phase -> its logged records, oldest first.
    """
    charts = [
        lines(f"{phase}: {name}", {name: _curve(records, name)}, "step")
        for phase, records in metrics.items()
        for name in CURVES
        if _curve(records, name)[0]
    ]
    return Section("Training", [Charts(charts)])


def _curve(records: Sequence[Record], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric; values that were not finite are left out."""
    known = [record for record in records if record.get(name) is not None]
    return [record["step"] for record in known], [record[name] for record in known]
