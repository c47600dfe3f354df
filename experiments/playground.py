"""Serves a page on this machine on which a trained auction can be tried by hand.

    python -m experiments.playground --workdir=runs/market-tiny
    python -m experiments.playground --workdir=runs/market-tiny --system=mca --port=5010

Pick a test request and see the user's history, the candidates and their bids. Move alpha, beta,
kappa, the reserve, the most ads, the payment rule and the bid of one ad: slate, creatives, prices
and their explanation follow, and so does that ad's click rate and price as a curve over its bid,
with Myerson's price beside it. Click rates are those that the reward model predicts.

Needs the extra `app`: pip install 'ega-jax[app]'. Only this machine can open the page, and the page
asks no other machine for anything. Nothing is written into the workdir.
"""

import importlib.util

import numpy as np
from absl import flags

from ega_jax.errors import UserError
from ega_jax.mechanism import Mechanism
from ega_jax.phases.auction import AuctionTraining
from ega_jax.playground.logged import LoggedRequests, Names
from ega_jax.playground.views import Controls, Playground
from ega_jax.training.progress import ProgressReport
from experiments.common import command, workdirs
from experiments.common.runs import find_system

command.define_system()
flags.adopt_module_key_flags(command)
_PORT = flags.DEFINE_integer("port", 5006, "Port of the page; 0: any that is free.", 0, 65535)
_REQUESTS = flags.DEFINE_integer(
    "num_requests", 200, "About how many test requests to offer, spread over the split.", 1
)


def main() -> None:
    """Runs the command."""
    if importlib.util.find_spec("panel") is None:
        raise UserError("the playground needs Panel: pip install 'ega-jax[app]'")
    from experiments.playgrounds import page  # Imports Panel.

    _, workdir = workdirs.find_workdir()
    run = find_system(workdir, command.named_system())
    port = page.free_port(_PORT.value)
    playground = playground_of(run, _REQUESTS.value)
    warm_up(playground)
    page.serve(playground, "ega_jax playground", f"system {run.name} of {workdir}", port)


def playground_of(run: AuctionTraining, num_requests: int) -> Playground:
    """Reads a trained system, and about as many test requests as wanted.

    Raises:
      UserError: the system smooths bids, and the page's requests have lists without past bids.
    """
    if run.settings.allocation.bid_smoothing:
        raise UserError(f"{run.name} smooths bids by past ones, which this page does not know")
    mechanism = Mechanism.restore(run.pretraining.workdir, run.name)
    batches = run.sessions("test", num_requests, run.settings.auction.batch_size)
    creatives = np.asarray(mechanism.system.items.catalogue.poi_creatives)
    return Playground(
        mechanism=mechanism,
        requests=LoggedRequests.of(batches, run.dataset.books),
        names=Names.load(run.pretraining.folder, creatives),
    )


def warm_up(playground: Playground) -> None:
    """Compiles all that the page computes, so that every change of a widget is answered at once."""
    requests, mechanism = playground.requests, playground.mechanism
    number = next((n for n in range(len(requests)) if requests.ads(n)), 0)
    with ProgressReport("compiling", 0, 3) as progress:
        ad = playground.first_ad(number)
        progress.count(1, 3, "slates")
        levers = playground.trained_levers
        controls = Controls(number, mechanism.rule, levers, ad, requests.bid(number, ad))
        playground.view(controls)
        progress.count(2, 3, "explanations")
        playground.curve(controls)
        progress.count(3, 3, "bid curves")


if __name__ == "__main__":
    command.run(main, __doc__)
