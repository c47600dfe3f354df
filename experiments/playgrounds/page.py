"""The page of the playground: it arranges widgets and shows what `ega_jax.playground` computes."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import panel as pn
from jinja2 import Environment, FileSystemLoader
from panel.io.server import get_server
from panel.widgets import Button, FloatSlider, IntInput, IntSlider, Select
from tornado.netutil import bind_sockets
from tornado.websocket import WebSocketClosedError

from ega_jax.errors import UserError
from ega_jax.playground.bid_curve import BidCurve
from ega_jax.playground.views import Controls, Playground
from experiments.playgrounds.charts import CurveCharts

HERE = Path(__file__).parent
HOST = "localhost"
HIGHEST = {"alpha": 6.0, "beta": 32.0, "kappa": 16.0}  # Of the sliders.
LEAST_ALPHA = 0.1  # Alpha is above 0.
SOON_MS = 60  # While a slider moves, its values come faster than slates are computed.
PARTS = ("problem", "slate", "gain", "explanation", "candidates", "history")


class Page:
    """One visitor's widgets, and the parts of the page that follow them."""

    def __init__(self, playground: Playground):
        """Makes the widgets and shows the first request under the trained settings."""
        self._playground = playground
        self._is_setting = False  # Widgets are set together: the parts follow once, afterwards.
        self._is_due = False  # The parts will follow soon.
        last = len(playground.requests) - 1
        self._number: Any = IntInput(label=f"test request, 0 to {last}", value=0, start=0, end=last)
        self._rule = Select(label="payment rule", options=list(playground.mechanism.choices))
        self._levers = lever_sliders(playground)
        self._ad = Select(label="your ad (its logged bid)", options={})
        self._bid: Any = FloatSlider(label="bid of your ad", start=0, end=1, step=0.01)
        self._reset = Button(label="back to the trained settings")
        # Macros, which escape what a log calls its items.
        environment = Environment(loader=FileSystemLoader(HERE), autoescape=True)
        self._write: Any = environment.get_template("fragments.html.jinja").module
        style = {"stylesheets": [(HERE / "fragments.css").read_text()]}
        self._parts = {name: pn.pane.HTML("", **style) for name in PARTS}
        self._charts = CurveCharts()
        self._follow_widgets()
        self._use_trained()

    def template(self, heading: str, subtitle: str) -> pn.Template:
        """The whole page."""
        template = pn.Template((HERE / "page.html.jinja").read_text())
        template.add_variable("heading", heading)
        template.add_variable("subtitle", subtitle)
        controls = pn.Column(*self._widgets, sizing_mode="stretch_width")
        charts = {"clicks": self._charts.clicks, "prices": self._charts.prices}
        for name, part in {"controls": controls, **self._parts, **charts}.items():
            part.sizing_mode = "stretch_width"
            template.add_panel(name, part)
        return template

    @property
    def _widgets(self) -> list[Any]:
        """All widgets, in the order of the page."""
        levers = self._levers.values()
        widgets: list[Any] = [self._number, self._ad, self._bid, self._rule, *levers, self._reset]
        for widget in widgets:
            widget.sizing_mode = "stretch_width"
        return widgets

    @property
    def _controls(self) -> Controls:
        """The settings that the widgets show."""
        levers = {name: slider.value for name, slider in self._levers.items()}
        ad = -1 if self._ad.value is None else self._ad.value
        return Controls(self._number.value, self._rule.value, levers, ad, self._bid.value)

    def _follow_widgets(self) -> None:
        """Updates the page when a widget changes."""
        self._number.param.watch(self._choose_request, "value")
        self._ad.param.watch(self._choose_ad, "value")
        for widget in (self._rule, self._bid, *self._levers.values()):
            widget.param.watch(self._show_soon, "value")
        self._reset.on_click(self._use_trained)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Lets widgets be set without an update of the page after each."""
        self._is_setting = True
        try:
            yield
        finally:
            self._is_setting = False

    def _use_trained(self, _=None) -> None:
        """Sets rule and levers as the mechanism was trained, and the logged bid."""
        with self._together():
            self._rule.value = self._playground.mechanism.rule
            for name, value in self._playground.trained_levers.items():
                self._levers[name].value = value
        self._choose_request()

    def _choose_request(self, _=None) -> None:
        """Shows a request; its first ad becomes the visitor's."""
        if self._is_setting:
            return
        number = self._number.value
        with self._together():
            options = self._playground.ad_titles(number)
            ad = self._playground.first_ad(number) if options else None
            self._ad.param.update(options=options, value=ad)
            self._ad.disabled = self._bid.disabled = not options
        self._put("history", self._write.history(self._playground.history(number)))
        self._choose_ad()

    def _choose_ad(self, _=None) -> None:
        """Sets the bid of the visitor's ad to the logged one."""
        if self._is_setting:
            return
        with self._together():
            if self._ad.value is not None:
                place = self._number.value, self._ad.value
                requests = self._playground.requests
                bid, end = requests.bid(*place), requests.highest_bid(*place)
                self._bid.param.update(end=round(end, 2), value=bid)
        self._show()

    def _show_soon(self, _=None) -> None:
        """Updates the page once for all moves of a slider until then."""
        if not (self._is_setting or self._is_due):
            self._is_due = True
            document: Any = pn.state.curdoc
            document.add_timeout_callback(self._show, SOON_MS)

    def _show(self) -> None:
        """Computes slate and curve, or says which settings do not fit together."""
        self._is_due = False
        controls = self._controls
        try:
            view, curve = self._playground.view(controls), self._playground.curve(controls)
        except UserError as error:
            self._put("problem", self._write.problem(str(error)))
            return
        self._put("problem")
        self._put("slate", self._write.slate(view))
        self._put("explanation", self._write.explanation(view))
        self._put("candidates", self._write.candidates(view))
        self._charts.show(curve, controls.bid)
        self._put("gain", "" if curve is None else self._gain(controls, curve))

    def _put(self, name: str, html: str = "") -> None:
        """Replaces a part of the page."""
        self._parts[name].object = str(html)  # Panel would escape Jinja's markup once more.

    def _gain(self, controls: Controls, curve: BidCurve) -> str:
        """A sentence on what the visitor's ad gets and would gain by another bid."""
        requests = self._playground.requests
        value = requests.bid(controls.number, controls.ad)
        title = self._playground.title(controls.number, controls.ad)
        return self._write.gain(title, curve, curve.at(controls.bid), value, *curve.gain(value))


def lever_sliders(playground: Playground) -> dict[str, Any]:
    """A slider for each lever; those without an effect on the system are disabled."""
    system = playground.mechanism.system
    follows = {"alpha": system.weighs_tokens, "beta": system.weighs_tokens}
    follows["kappa"] = system.weighs_clicks
    reserve = round(float(playground.requests.batch.bid.max()), 2)
    names = {
        "alpha": "alpha: exponent of token bids",
        "beta": "beta: weight without a bid",
        "kappa": "kappa: worth of any click",
        "reserve": "reserve: least bid and price",
    }
    sliders: dict[str, Any] = {}
    for name, label in names.items():
        end = max((HIGHEST | {"reserve": reserve})[name], playground.trained_levers[name])
        start = LEAST_ALPHA if name == "alpha" else 0.0
        sliders[name] = FloatSlider(label=label, start=start, end=end, step=0.1)
        sliders[name].disabled = not follows.get(name, True)
    sliders["max_ads"] = IntSlider(label="most ads in a slate", start=0, end=playground.num_slots)
    return sliders


def free_port(port: int) -> int:
    """Checks that a port of this machine is free, or finds one for port 0.

    Raises:
      UserError: it is in use, or this user may not open it.
    """
    try:
        sockets = bind_sockets(port, HOST)
    except OSError as error:
        raise UserError(
            f"--port={port}: {error.strerror}; choose another port, or 0 for any that is free"
        ) from error
    found = sockets[0].getsockname()[1]
    for each in sockets:
        each.close()
    return found


def is_worth_logging(record: logging.LogRecord) -> bool:
    """False for what the server logs when a visitor leaves while it sends."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, WebSocketClosedError) or "connection was closed" in record.msg)


def serve(playground: Playground, heading: str, subtitle: str, port: int) -> None:
    """Serves the page to this machine until the process is stopped."""
    for name in ("asyncio", "bokeh.server.views.ws"):
        logging.getLogger(name).addFilter(is_worth_logging)
    server = get_server(
        lambda: Page(playground).template(heading, subtitle),
        port=port,
        address=HOST,
        websocket_origin=[f"{HOST}:{port}", f"127.0.0.1:{port}"],
        title=heading,
    )
    print(f"ready: http://{HOST}:{port} (stop with Ctrl-C)", flush=True)
    server.run_until_shutdown()
