"""Writes a report on one or several workdirs as one HTML file that can be sent to anybody.

    python -m experiments.report --workdir=runs/market-tiny
    python -m experiments.report --workdir=runs/a,runs/b --out=comparison.html

The report shows what was run on what, the data, tokens and training, the reward model on the log
and on the slates served, every system under every payment rule, value against clicks, what
advertisers gain by lying, some slates with explanations, and a part for advertisers: what each got,
why it lost, and what other bids would get it. Several workdirs, with commas between, are compared.
The file needs no other file and no network.

Serves a few hundred test sessions. What is measured is kept in the workdir, so that a second report
takes seconds.
"""

from pathlib import Path

from absl import flags

from ega_jax.errors import UserError
from ega_jax.reporting.blocks import Part, Report
from ega_jax.reporting.comparison import comparison_section
from ega_jax.reporting.overview import key_figures
from ega_jax.reporting.page import html_of
from ega_jax.training.files import replacing
from experiments.common import command, workdirs
from experiments.common.runs import find_system, trained_systems
from experiments.reports.parts import WorkdirStudy, part_of
from experiments.reports.studies import Study

command.define_system("all of them", "Systems of the workdir, with commas between")
flags.adopt_module_key_flags(command)
# Other commands have flags of these names.
_OUT = flags.DEFINE_string(
    "out", None, "File to write; default: report.html in the first workdir.", allow_override=True
)
_SESSIONS = flags.DEFINE_integer(
    "num_sessions",
    256,
    "About how many test sessions to serve; whole batches.",
    1,
    allow_override=True,
)


def main() -> None:
    """Runs the command."""
    folders = (flags.FLAGS.workdir or "runs/market-tiny").split(",")
    studies = [study_of(folder) for folder in dict.fromkeys(folders)]
    out = Path(_OUT.value or studies[0].workdir / "report.html").expanduser()
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out={out}: name a file in a folder that exists")
    page = html_of(report_of(studies))
    with replacing(out) as written:
        written.write_text(page)
    print(f"{out} ({len(page.encode()) / 2**20:.1f} MiB)")


def study_of(folder: str) -> WorkdirStudy:
    """Finds the systems of a workdir; measures nothing.

    Raises:
      FileNotFoundError: the folder is no workdir, or has no such system.
      UserError: no system is trained to its end.
    """
    settings, workdir = workdirs.opened(folder)
    names = flags.FLAGS.system.split(",") if flags.FLAGS.system else trained_systems(workdir)
    if not names:
        raise UserError(f"{workdir} has no trained system: run experiments.auction_align first")
    systems = {name: Study(find_system(workdir, name), _SESSIONS.value) for name in names}
    return WorkdirStudy(folder, workdir, settings, systems)


def report_of(studies: list[WorkdirStudy]) -> Report:
    """Measures what is missing, and puts the report together."""
    parts = [part_of(study) for study in studies]
    first = studies[0]
    if len(studies) > 1:
        compared = comparison_section({study.name: study.measured for study in studies})
        return Report(
            title="Comparison of " + ", ".join(study.workdir.name for study in studies),
            subtitle="Generative advertising, by ega_jax",
            figures=(),
            parts=[Part("Comparison", [compared]), *parts],
        )
    name = command.EGA if command.EGA in first.measured else next(iter(first.measured))
    measurements, visits = first.measured[name]
    judge = "true click probabilities" if visits.judge == "truth" else "the reward model"
    return Report(
        title=f"Report on {first.workdir.name}",
        subtitle=f"Generative advertising, by ega_jax. Figures of {name}, by {judge}:",
        figures=key_figures(measurements, visits),
        parts=parts,
    )


if __name__ == "__main__":
    command.run(main, __doc__)
