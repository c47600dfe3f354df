"""A report as one HTML file that needs nothing beside itself."""

from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from ega_jax.evaluation.off_policy import Ratio
from ega_jax.reporting.blocks import Report

TEMPLATE = "page.html.jinja"


def html_of(report: Report) -> str:
    """Renders a report; all text in it is escaped, but for the SVG of its charts."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ega_jax.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"shown": shown, "interval": interval, "is_amount": is_amount, "svg": Markup}
    environment.filters |= filters
    warnings = [w for part in report.parts for section in part.sections for w in section.warnings]
    return environment.get_template(TEMPLATE).render(report=report, warnings=warnings)


def is_amount(cell: Any) -> bool:
    """Whether a cell of a table is a number or stands for none: it is aligned to the right."""
    numbers = Ratio | int | float | np.number
    return cell is None or (isinstance(cell, numbers) and not isinstance(cell, bool))


def shown(cell: Any) -> str:
    """A cell as text, numbers with three digits.

    Examples:
      >>> [shown(cell) for cell in (0.12345, 12345.6, 7, True, None, float("nan"), [0.5, 2])]
      ['0.123', '12,346', '7', 'yes', '-', 'undefined', '0.5, 2']
    """
    if cell is None:
        return "-"
    if isinstance(cell, Ratio):
        return shown(cell.value)
    if isinstance(cell, bool | np.bool_):
        return "yes" if cell else "no"
    if isinstance(cell, int | np.integer):
        return f"{cell:,}" if abs(cell) >= 10_000 else str(cell)
    if isinstance(cell, float | np.floating):
        return _decimal(float(cell))
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        return ", ".join(map(shown, cell))
    return str(cell)


def _decimal(value: float) -> str:
    if not np.isfinite(value):
        return "undefined"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def interval(cell: Any) -> str:
    """The interval of a cell, "" if it has none."""
    if not isinstance(cell, Ratio) or not np.isfinite((cell.low, cell.high)).all():
        return ""
    return f"{shown(cell.low)} to {shown(cell.high)}"
