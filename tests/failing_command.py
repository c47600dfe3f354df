"""A command that fails as its flag says: by a user's mistake or by a bug."""

from absl import flags

from ega_jax.errors import UserError
from experiments.common import command

flags.adopt_module_key_flags(command)
_HOW = flags.DEFINE_enum("how", "user", ["user", "bug", "import"], "Whose fault it is.")


def main():
    """Raises."""
    if _HOW.value == "user":
        raise UserError("column 'bid': not a number")
    if _HOW.value == "import":
        raise ImportError("no module")
    raise ValueError("shapes (3,) and (4,)")
