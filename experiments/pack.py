"""Packs a trained mechanism as one file, for people who do not have its data.

    python -m experiments.pack --workdir=runs/market-tiny --out=market-tiny.zip
    python -m experiments.pack --workdir=runs/market-tiny --system=gr --out=gr.zip

The file holds the config, the tokenizers, the results and the mechanism of one system, with a
checksum of each file; no data and no pickle. Data paths in the config are left empty.
`Mechanism.restore("market-tiny.zip")` reads it. A system whose training is not finished is refused,
and then nothing is written.
"""

from pathlib import Path

from absl import flags

from ega_jax.archive import pack
from ega_jax.mechanism import Mechanism
from experiments.common import command, workdirs

command.define_system()
flags.adopt_module_key_flags(command)
_OUT = flags.DEFINE_string("out", None, "File to write.", required=True)


def main() -> None:
    """Runs the command.

    Raises:
      FileNotFoundError: there is no such workdir, or no trained system of that name in it.
    """
    system = command.named_system()
    _, workdir = workdirs.find_workdir()
    Mechanism.restore(workdir, system)  # What cannot be restored is not packed.
    out = Path(_OUT.value).expanduser().absolute()
    files = pack(workdir, out, system)
    print(f"{out}: {len(files)} files, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    command.run(main, __doc__)
