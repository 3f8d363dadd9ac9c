"""Attention around a ring is attention: outputs and gradients, packed, windowed, capped, grouped."""

import jax
import numpy as np
import pytest
from small_models import QUICK, assert_close

from lmjax.ops.attention import attend_blocked
from lmjax.parallel.mesh import Mesh
from lmjax.parallel.ring import attend_ring

B, L, H, G, K = 2, 48, 4, 2, 8


def make_inputs():
  """Queries, keys, values, a cotangent, and segments of which some end inside a piece."""
  rng = np.random.default_rng(0)
  q, k, v, dout = (rng.normal(size=(B, L, heads, K)).astype(np.float32) for heads in (H, G, G, H))
  segments = np.ones((B, L), np.int32)
  segments[0, 13:34], segments[0, 34:] = 2, 3
  segments[1, 29:] = 0
  return (q, k, v), dout, segments


@pytest.mark.parametrize(
  ('mesh', 'window', 'softcap', 'block'),
  [
    (Mesh(context=2), 0, None, 512),
    (Mesh(context=3), 0, 5.0, 4),
    (Mesh(context=8), 7, None, 3),
    (Mesh(data=2, context=2, tensor=2), 20, 3.0, 6),
  ],
  ids=lambda value: str(value).replace(' x ', ','),
)
def test_a_ring_gives_what_one_device_gives(mesh, window, softcap, block):
  inputs, dout, segments = make_inputs()
  same = {'window': window, 'softcap': softcap, 'scale': 0.3}

  def both_ways(attend, block):
    def run(inputs):
      out, back = jax.vjp(lambda q, k, v: attend(q, k, v, segments, block=block, **same), *inputs)
      return {'out': out, 'gradients': back(dout)}

    return jax.jit(run, compiler_options=QUICK)(inputs)

  expected = both_ways(attend_blocked, L)
  with jax.set_mesh(mesh.build()):
    found = both_ways(attend_ring, block)
  assert_close(found, expected, 2e-6)
