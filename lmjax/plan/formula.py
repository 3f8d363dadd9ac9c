"""Memory and time of a train step by formula, in microseconds of ours: what to compile, not what to believe.

Counts what a decoder's step must hold, compute and send, with factors read off programs that were
compiled for H100s (posts_dense_8b, posts_dense_70b, posts_moe_314b; see `tests/plan/test_search.py`
for how far they are off).

D width, F mlp hidden, V vocab, T tokens of a device in one pass, N layers of a stage.
"""

import math
from typing import Any, NamedTuple

import jax

from lmjax.ops import grouped
from lmjax.optim.optimizer import Optimizer
from lmjax.parallel.collectives import Collective
from lmjax.parallel.mesh import QUIETEST_FIRST, Mesh
from lmjax.parallel.sharding import TABLE, is_dims
from lmjax.plan import network
from lmjax.plan.cards import Card
from lmjax.plan.network import Group
from lmjax.train.pretrain import Pretrain

REMATS = ('none', 'dots', 'full', 'offload')
# Of the forward pass, what is computed again; bytes that are kept of every product's results.
_AGAIN = {'none': 0.0, 'dots': 0.15, 'full': 1.0, 'offload': 1.0}
_KEPT = {'none': 2.5, 'dots': 1.0, 'full': 0.0, 'offload': 0.0}
# Bytes that pass through memory between products, for each number of the residual stream.
_TOUCHED = {'dense': 300.0, 'moe': 500.0}

_FILLED = 0.95  # of the most, with room for blocks that are filled up


class Way(NamedTuple):
  """One way of splitting the work."""

  mesh: Mesh
  accumulate: int
  remat: str


class Guess(NamedTuple):
  """What a way comes to, by formula.

  Attributes:
    bytes: of a device at its fullest.
    seconds: of a step.
    parts: seconds of computing, and those of each axis that nothing hides.
  """

  way: Way
  bytes: float
  seconds: float
  parts: dict[str, float]


class Sizes(NamedTuple):
  """What a task's step is made of, whatever the mesh.

  Attributes:
    parameters: (size in numbers, dimension names) of every tensor.
    moments: bytes of the optimizer's state for each byte of the parameters.
    on_device: whether these are in the device's memory.
    flops: of a step, all devices together.
  """

  model: Any
  batch: int
  length: int
  chunk: int
  parameters: tuple[tuple[int, tuple[str | None, ...]], ...]
  moments: float
  on_device: bool
  flops: float


def sizes_of(task: Pretrain, model: Any) -> Sizes:
  """`Sizes` of a task; `model` has a vocabulary."""
  shapes = model.shapes()
  tx = task.optimizer.build(model.dims(), task.steps)
  state = jax.eval_shape(tx.init, shapes)
  held = lambda part: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(part))
  dims = jax.tree.leaves(model.dims(), is_leaf=is_dims)
  parameters = tuple(
    (x.size, names) for x, names in zip(jax.tree.leaves(shapes), dims, strict=True)
  )
  optimizer: Optimizer = task.optimizer
  return Sizes(
    model,
    task.batch,
    task.length,
    task.objective.chunk,
    parameters,
    held(state) / held(shapes),
    optimizer.memory == 'device',
    model.flops_per_token(task.length) * task.batch * task.length,
  )


def guess(sizes: Sizes, way: Way, card: Card) -> Guess | None:
  """Memory and time of one way on one card; None where kernels cannot count its arrays."""
  mesh, model = way.mesh.sizes, sizes.model
  ways = mesh['data'] * mesh['fsdp'] * mesh['expert']
  rows = sizes.batch / way.accumulate / ways
  tokens = rows * sizes.length / mesh['context']
  layers = model.layers / mesh['pipe']
  if model.moe is not None:
    routed = tokens * model.moe.top_k * mesh['expert']
    if routed * max(model.width, model.mlp / mesh['tensor']) >= grouped.MOST * _FILLED:
      return None
  parts = _seconds(sizes, way, card, tokens, layers)
  return Guess(way, _bytes(sizes, way, rows, tokens, layers), sum(parts.values()), parts)


def _bytes(sizes: Sizes, way: Way, rows: float, tokens: float, layers: float) -> float:
  mesh, model = way.mesh.sizes, sizes.model
  held = [4.0 * size / _ways(dims, mesh) for size, dims in sizes.parameters]
  state = sum(held) * (1 + sizes.moments * sizes.on_device)
  gradients = sum(held)
  layer = _layer_numbers(sizes, way) / model.layers
  gathered = layer * (2 * 2 + 4)  # two layers of weights in bf16, and the gradients of one
  D, t = model.width, mesh['tensor']
  products = tokens * (_heads(model) + 3 * model.mlp * _experts(model)) / t
  kept = layers * tokens * D * 2 / t * (way.remat != 'offload')
  kept += layers * 4 * (products + 2 * tokens * D / t) * _KEPT[way.remat]
  at_work = 18 * tokens * model.mlp / t + 20 * tokens * D
  if model.moe is not None:
    routed = tokens * model.moe.top_k * mesh['expert']
    at_work = routed * (44 * D + 12 * model.mlp / t)
  head = model.vocab * (8 * D / t + 12 * rows * sizes.chunk / t)
  return state + gradients + gathered + kept + max(at_work, head)


def _seconds(sizes: Sizes, way: Way, card: Card, tokens: float, layers: float) -> dict[str, float]:
  mesh, model, passes = way.mesh.sizes, sizes.model, way.accumulate
  again = 1 + _AGAIN[way.remat] / 3
  kind = 'dense' if model.moe is None else 'moe'
  touched = _TOUCHED[kind] * tokens * model.width * layers * passes
  products = sizes.flops * again / way.mesh.devices / (card.flops[model.dtype] * card.matmul)
  computing = products + touched / (card.memory_bytes_per_second * card.memory)
  if mesh['pipe'] > 1:
    plan = model.pipeline.plan(mesh['pipe'], max(1, int(tokens * mesh['context'] / sizes.length)))
    computing /= 1 - plan.bubble_fraction
  stream = tokens * model.width * layers * passes
  rounds = 2 + _AGAIN[way.remat]  # forward, backward, forward again
  parts = {'computing': computing}
  if mesh['tensor'] > 1:  # gathers in bf16 and scatters in f32 around attention and MLP
    parts['tensor'] = rounds * 2 * _send('all-gather', 'tensor', 6 * stream, mesh, card)
  if mesh['expert'] > 1 and model.moe is not None:
    routed = 6 * stream * model.moe.top_k
    parts['expert'] = rounds * _send('ragged-all-to-all', 'expert', routed, mesh, card)
  if mesh['context'] > 1:
    keys = stream * 2 * model.kv_heads * model.head_dim / model.width / mesh['tensor']
    parts['context'] = rounds * 4 * keys * (mesh['context'] - 1) / _rate('context', mesh, card)
  numbers = _layer_numbers(sizes, way) / mesh['pipe']
  hidden = 0.0
  if mesh['fsdp'] > 1:
    hidden += passes * _send('all-gather', 'fsdp', numbers * 2 * (rounds - 1), mesh, card)
    hidden += passes * _send('reduce-scatter', 'fsdp', numbers * 4, mesh, card)
  if mesh['data'] > 1:
    hidden += passes * _send('all-reduce', 'data', numbers * 4 / mesh['fsdp'], mesh, card)
  parts['weights and gradients'] = max(0.1 * hidden, hidden - computing)
  return parts


def _send(kind: str, axis: str, size: float, mesh: dict[str, int], card: Card) -> float:
  """Seconds of a collective over one axis, `size` as in `Collective.bytes`."""
  one = Collective(kind, (axis,), int(size), 1, 'bf16')
  return network.seconds(one, _group(axis, mesh, card), card)


def _rate(axis: str, mesh: dict[str, int], card: Card) -> float:
  if _group(axis, mesh, card).nodes == 1:
    return card.inside.bytes_per_second * card.link_inside
  return card.between.bytes_per_second * card.link_between


def _group(axis: str, mesh: dict[str, int], card: Card) -> Group:
  """How the devices of one axis lie: those of the axes dealt after it stand between them."""
  inner = math.prod(mesh[other] for other in QUIETEST_FIRST[QUIETEST_FIRST.index(axis) + 1 :])
  together = max(1, min(mesh[axis], card.node // inner))
  return Group(mesh[axis], math.ceil(mesh[axis] / together))


def _layer_numbers(sizes: Sizes, way: Way) -> float:
  """Numbers of all layers as a device uses them: gathered over fsdp, split over the other axes."""
  mesh = {**way.mesh.sizes, 'fsdp': 1, 'pipe': 1}
  return sum(n / _ways(dims, mesh) for n, dims in sizes.parameters if dims[0] == 'layers')


def _ways(dims: tuple[str | None, ...], mesh: dict[str, int]) -> int:
  return math.prod(mesh[axis] for dim in dims for axis in TABLE[dim])


def _heads(model: Any) -> int:
  return (2 * model.heads + 2 * model.kv_heads) * model.head_dim


def _experts(model: Any) -> int:
  return 1 if model.moe is None else model.moe.top_k + model.moe.shared
