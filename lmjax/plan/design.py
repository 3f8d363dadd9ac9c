"""What a step needs when nothing is wrong: how its tensors are split, and what it has to send.

The split is written down here apart from the table of `parallel.sharding`, so that a mistake there
shows. Knows nothing of compiled programs.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from lmjax.parallel.sharding import is_dims
from lmjax.train.pretrain import Pretrain

# Dimension of a parameter -> the axis that can split it. Tensors without `embed` are small.
SPLITS = {
  'embed': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'vocab': 'tensor',
  'expert': 'expert',
  'layers': 'pipe',
}
BATCH = ('data', 'fsdp', 'expert')
# Gathered as they are kept, once a pass: products with them begin before they are rounded. The
# router's numbers are so few and so delicate that its products stay in f32.
WHOLE_DTYPE = ('embed', 'head', 'router')
_SIZES = {'float32': 4, 'bfloat16': 2, 'float8': 1}


class Parameter(NamedTuple):
  """A tensor of the model.

  Attributes:
    path: 'layers/mlp/up'.
    shape: of all devices together.
    dims: its dimension names.
  """

  path: str
  shape: tuple[int, ...]
  dims: tuple[str | None, ...]

  @property
  def size(self) -> int:
    return math.prod(self.shape)


class Design(NamedTuple):
  """A task as a device sees it.

  Attributes:
    mesh: size of each axis.
    rows: of one pass on a device.
    length: of a row on a device.
    passes: microbatches of a step.
    items: parts that a pass goes through a pipeline in.
    ticks: turns in which a stage works on one, or on none; 1 without a pipeline.
  """

  task: Pretrain
  model: Any
  mesh: dict[str, int]
  parameters: dict[str, Parameter]
  rows: int
  length: int
  passes: int
  items: int
  ticks: int

  @property
  def tokens(self) -> int:
    """Of a device in one pass."""
    return self.rows * self.length

  @property
  def item(self) -> int:
    """Bytes of a number in the compute dtype."""
    return _SIZES[self.model.dtype]

  def wanted(self, dims: tuple[str | None, ...]) -> dict[str, int]:
    """Axis -> the dimension that it can split, of a parameter with these dimension names."""
    found: dict[str, int] = {}
    for place, dim in enumerate(dims):
      axis = SPLITS.get(dim or '')
      if axis and axis not in found and self.mesh[axis] > 1:
        found[axis] = place
    if 'fsdp' not in found and self.mesh['fsdp'] > 1 and len(dims) > 1:
      found['fsdp'] = len(dims) - 1  # any dimension would do: a matrix has one that is long enough
    return found

  def gathered(self, parameter: Parameter) -> int:
    """Numbers of a parameter that a device multiplies with: all of it but for other axes than fsdp."""
    axes = [axis for axis in self.wanted(parameter.dims) if axis != 'fsdp']
    return parameter.size // math.prod(self.mesh[axis] for axis in axes)

  def times(self, parameter: Parameter) -> int:
    """Slices that a parameter is used in, one after another: its layers."""
    return parameter.shape[0] // self.mesh['pipe'] if parameter.dims[:1] == ('layers',) else 1

  def turns(self, parameter: Parameter) -> float:
    """How often in a step a device goes through a parameter: a pipeline does in every tick."""
    in_layers = parameter.dims[:1] == ('layers',)
    return self.passes * (self.ticks / self.model.pipeline.rounds if in_layers else 1.0)

  def weight_bytes(self, parameter: Parameter) -> float:
    """Of the gathers that a step needs: forward, when computed again, and backward."""
    if parameter.path.split('/')[-1] in WHOLE_DTYPE:
      # Tokens are looked up in the whole table: over tensor too, where XLA finds that cheaper.
      across = self.mesh['tensor'] if parameter.path == 'embed' else 1
      return 4.0 * self.gathered(parameter) * (1 + across) * self.passes
    rounds = 2 if self.model.remat == 'none' else 3
    return rounds * self.item * self.gathered(parameter) * self.turns(parameter)

  def gradient_bytes(self, parameter: Parameter) -> float:
    """Sent for the sums of a gradient in f32: over fsdp to shards, and those over the other axes.

    The table's is added up whole, also over tensor: scattered rows do not fall to shards by themselves.
    """
    size = 4.0 * self.gathered(parameter) * self.turns(parameter)
    shards = 1 if parameter.path in WHOLE_DTYPE else self.mesh['fsdp']
    across = self.mesh['tensor'] if parameter.path == 'embed' else 1
    passes = 1 if shards > 1 else 2
    return size * across * passes + 2.0 * size / shards

  def streams(self) -> set[int]:
    """Sizes of what tensor axes gather and scatter: the residual stream, whole or a chunk of the loss."""
    chunk = self.task.objective.chunk
    lengths = {self.length, *([chunk] if chunk < self.length else [])}
    rows = {self.rows, self.rows // self.items}
    return {n * length * self.model.width for n in rows for length in lengths}

  def stream_bytes(self) -> float:
    """Of the residual stream over tensor in a step, at most.

    Each of the two parts of a layer gathers and scatters it forward, backward and when computed
    again; some of it in f32. Of the loss, gradients to its input.
    """
    one = 4.0 * self.tokens * self.model.width
    layers = self.model.layers // self.mesh['pipe']
    return one * (12 * layers * self.idle + 6) * self.passes

  @property
  def idle(self) -> float:
    """What a stage does in all ticks, as a multiple of what there is to do."""
    return self.ticks / (self.items * self.model.pipeline.rounds)

  def flops(self) -> dict[str, float]:
    """Of products of a device in a step, what is computed again included, by part of the model."""
    model, task = self.model, self.task
    again = 4 / 3 if model.remat in ('full', 'offload') else 1.0
    tokens = task.batch * task.length / task.mesh.devices
    head = 6.0 * model.width * model.vocab
    attention = 6.0 * sum(p.size for p in self.parameters.values() if 'attention' in p.path)
    attention += 12.0 * model.layers * model.heads * model.head_dim * task.length
    rest = model.flops_per_token(task.length) - attention - head
    head *= self.mesh['pipe']  # every stage has all of it, once the rows have come round
    again *= self.idle
    parts = {'layers/attention': again * attention, 'layers/mlp': again * rest, 'logits': head}
    return {name: count * tokens for name, count in parts.items()}


def design(task: Pretrain, model: Any) -> Design:
  """The design of a task; `model` has a vocabulary."""
  mesh = dict(task.mesh.sizes)
  ways = math.prod(mesh[axis] for axis in BATCH)
  parameters = {parameter.path: parameter for parameter in _parameters(model)}
  rows = task.batch // task.accumulate // ways
  length = task.length // mesh['context']
  items = ticks = 1
  if mesh['pipe'] > 1:
    pipeline = model.pipeline.plan(mesh['pipe'], rows)
    items, ticks = pipeline.microbatches, pipeline.ticks
  return Design(task, model, mesh, parameters, rows, length, task.accumulate, items, ticks)


def _parameters(model: Any) -> Iterator[Parameter]:
  shapes = model.shapes()
  dims = jax.tree.leaves(model.dims(), is_leaf=is_dims)
  for (path, x), names in zip(jax.tree.leaves_with_path(shapes), dims, strict=True):
    yield Parameter(jax.tree_util.keystr(path, simple=True, separator='/'), x.shape, names)
