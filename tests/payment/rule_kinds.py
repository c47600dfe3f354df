"""The contract functions as they are called: on the host with numbers, and traced in float32."""

from types import SimpleNamespace

import jax

from ega_jax.payment import rules

HOST = rules
TRACED = SimpleNamespace(
    gsp=jax.jit(rules.gsp, static_argnums=2),
    vcg=jax.jit(rules.vcg),
    clarke=jax.jit(rules.clarke),
    myerson=jax.jit(rules.myerson),
)
KINDS = {"host": HOST, "float32": TRACED}
