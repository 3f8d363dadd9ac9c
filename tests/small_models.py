"""What tests of models share: parameters with nothing at zero, packed rows, closeness of trees.

Dimensions: B batch, L length.
"""

import math

import jax
import numpy as np

from lmjax.core import tree
from lmjax.core.types import Batch, Params
from lmjax.models.transformer import Decoder
from lmjax.objectives.language import Language
from lmjax.parallel import sharding
from lmjax.parallel.mesh import Mesh
from lmjax.train.equality import QUICK as QUICK
from lmjax.train.equality import make_batch
from lmjax.train.equality import random_params as random_params
from lmjax.train.state import batch_sharding
from lmjax.train.step import make_gradients


def make_posts(lengths: list[int], *, vocab: int, seed: int = 0) -> list[np.ndarray]:
  """Random token ids of posts that each fill so many positions."""
  rng = np.random.default_rng(seed)
  return [rng.integers(0, vocab, length + 1).astype(np.int32) for length in lengths]


def pack(rows: list[list[np.ndarray]], length: int) -> Batch:
  """Each item of `rows` is a list of posts that share a row."""
  shape = (len(rows), length)
  tokens, targets, segments, positions = (np.zeros(shape, np.int32) for _ in range(4))
  for row, members in enumerate(rows):
    start = 0
    for number, post in enumerate(members, 1):
      stop = start + len(post) - 1
      tokens[row, start:stop], targets[row, start:stop] = post[:-1], post[1:]
      segments[row, start:stop], positions[row, start:stop] = number, np.arange(stop - start)
      start = stop
  weights = (segments > 0).astype(np.float32)
  return Batch(
    tokens_BL=tokens,
    targets_BL=targets,
    weights_BL=weights,
    segments_BL=segments,
    positions_BL=positions,
  )  # type: ignore[arg-type]


def gradients(model: Decoder, mesh: Mesh | None = None):
  """Gradients of a packed batch, summed loss and means, over a mesh or on one device."""
  step = make_gradients(Language(chunk=8), model, 1)
  params, batch, rng = random_params(model), make_batch(True), jax.random.key(0)
  if mesh is None:
    return jax.jit(step, compiler_options=QUICK)(params, batch, rng)
  built = mesh.build()
  layout = sharding.shardings(built, model.dims())
  params, batch = jax.device_put(params, layout), jax.device_put(batch, batch_sharding(built))
  with jax.set_mesh(built):
    jitted = jax.jit(step, out_shardings=(layout, None, None), compiler_options=QUICK)
    return jitted(params, batch, rng)


def assert_close(found: Params, expected: Params, tolerance: float = 1e-5) -> None:
  """Per tensor, max |found - expected| <= tolerance x max |expected|."""
  for (path, a), (_, b) in zip(tree.paths(found), tree.paths(expected), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    difference, size = np.abs(a - b).max(), np.abs(b).max()
    assert math.isfinite(difference), path
    assert difference <= tolerance * size, f'{path}: {difference:.2e} of {size:.2e}'


def kept_bytes(f, *operands):
  """What `f` keeps of a forward pass for its gradients."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(jax.vjp(f, *operands)[1]))
