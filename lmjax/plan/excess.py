"""What a compiled step holds and computes beyond its design: temporaries that are too large, work done twice.

Temporaries are judged where a device is at its fullest, since nothing else costs memory.
"""

from collections import Counter
from collections.abc import Iterator

from lmjax.parallel import hlo
from lmjax.parallel.hlo import Array
from lmjax.plan import memory
from lmjax.plan.design import Design
from lmjax.plan.estimate import Estimate
from lmjax.plan.finding import Finding, Weighed, file_of, size
from lmjax.plan.memory import Buffer
from lmjax.plan.origin import Sources
from lmjax.plan.timeline import Event

# Of a device at its fullest. In programs that are in order logits take up to 6% (posts_dense_8b), no
# single buffer a fifth; what is kept of every layer may be most, but is the inputs of layers then.
_LOGITS, _SCORES, _KEPT, _UNSPLIT, _SINGLE = 0.12, 0.12, 0.12, 0.1, 0.25
_ROOM = 0.5  # of a card's memory: below, keeping is faster than computing again
_MORE = 1.5  # times what is expected: a thing in a wider dtype, or on twice the devices, is twice
# Times the products of the design, which programs in order stay below: kernels skip what is masked.
_TWICE, _LEAST_FLOPS = 1.25, 0.05
_F32 = 0.1  # of the step, in products of f32 operands: routers take a hundredth


def excess(found: Estimate, plan: Design) -> list[Weighed]:
  """Findings about temporaries and products."""
  sources = Sources(found.module)
  buffers = memory.fullest(found.module)
  live = sum(buffer.bytes for buffer in buffers)
  arguments = sum(array.bytes for each in memory.arguments(found.module) for array in each.arrays)
  # The compiler packs better than lives tell; shares are of what it found.
  scale = min(1.0, max(0, found.program.peak_bytes - arguments) / max(1, live))
  held = Held(found, plan, sources, buffers, scale)
  checks = (held.logits, held.scores, held.kept, held.unsplit)
  told = [weighed for check in checks if (weighed := check())]
  if not told and (single := held.single()):
    told.append(single)
  return told + _products(found, plan, sources)


class Held:
  """The temporaries of a device at its fullest, and what is wrong with them."""

  def __init__(
    self, found: Estimate, plan: Design, sources: Sources, buffers: list[Buffer], scale: float
  ) -> None:
    self.found, self.plan, self.sources = found, plan, sources
    self.buffers, self.scale = buffers, scale
    self.weights = {_solid(shape) for shape in self._parameters()}

  def logits(self) -> Weighed | None:
    vocab, task = self.plan.model.vocab, self.plan.task
    ends = {vocab, vocab // self.plan.mesh['tensor']}
    rows = self.plan.rows * min(task.objective.chunk, self.plan.length)
    is_logits = lambda array: (
      array.shape[-1] in ends
      and array.size >= rows * min(ends)
      and _solid(array.shape) not in self.weights
    )
    chosen = [each for each in self._chosen(is_logits) if self._is_from(each, 'ops/loss.py')]
    if self._share(chosen) < _LOGITS or task.objective.chunk <= 64:
      return None
    chunk = max(64, task.objective.chunk // 8)
    what = f'logits of {task.objective.chunk} positions of {self.plan.rows} rows at a time'
    return self._finding(what, 'logits', chosen, f'--objective.chunk={chunk}')

  def scores(self) -> Weighed | None:
    block = min(self.plan.model.attention_block, self.plan.length)
    least = self.plan.rows * block * self.plan.length * self.plan.model.heads
    least = least // self.plan.mesh['tensor'] // 2
    is_scores = lambda array: array.size >= least and array.shape[-1] <= self.plan.length
    chosen = [each for each in self._chosen(is_scores) if self._is_from(each, 'ops/attention.py')]
    if self._share(chosen) < _SCORES:
      return None
    what = f'attention scores of {block} queries with every key at a time'
    fix = (
      f'--model.attention_block={max(128, block // 8)}, or --model.attention=pallas where it can be'
    )
    return self._finding(what, 'attention scores', chosen, fix)

  def kept(self) -> Weighed | None:
    """What every layer leaves for the backward pass: stacks, which no layer itself makes."""
    layers, model = self.plan.model.layers // self.plan.mesh['pipe'], self.plan.model
    rows = {*range(self.plan.rows, self.plan.task.batch + 1, self.plan.rows), self.plan.tokens}
    is_stack = lambda array: (
      array.shape[0] == layers > 1
      and len(array.shape) > 2
      and array.shape[1] in rows
      and _solid(array.shape) not in self.weights
    )
    chosen = [
      each
      for each in self._chosen(is_stack)
      if 'Block' not in self.sources.described(each.source).op_name
      and not self._is_from(each, 'ops/loss.py')
    ]
    inputs = self.plan.item * layers * self.plan.tokens * model.width / self.plan.mesh['tensor']
    total = sum(buffer.bytes for buffer in chosen) * self.scale
    if self._share(chosen) < _KEPT or total < _MORE * inputs:
      return None
    what = f'{size(total)} is kept of every layer, {total / inputs:.1f} times its input'
    if model.remat in ('none', 'dots'):
      if self.found.program.peak_bytes < _ROOM * self.found.card.usable_bytes:
        return None  # what is kept need not be computed again
      return self._finding(what, 'activations of every layer', chosen, '--model.remat=full')
    fix = (
      f"x.astype({model.dtype!r}) and constrain(x, 'batch', 'stream', None), 'stream' over tensor in "
      'the table of lmjax/parallel/sharding.py, where a layer ends (lmjax/models/transformer.py)'
    )
    return self._finding(what, 'residual stream', chosen, fix)

  def unsplit(self) -> Weighed | None:
    """Activations with the rows of other devices too."""
    mesh, lengths = self.plan.mesh, {self.plan.length, self.plan.task.length}
    ways = {mesh['data'], mesh['fsdp'], mesh['expert'], self.plan.task.mesh.devices}
    more = {self.plan.rows * n for n in ways if n > 1}
    has_more = lambda array: (
      len(array.shape) > 2
      and array.shape[0] in more
      and array.shape[1] in lengths
      and _solid(array.shape) not in self.weights
    )
    chosen = [
      each for each in self._chosen(has_more) if not self._is_from(each, 'ops/attention.py')
    ]
    if self._share(chosen) < _UNSPLIT:
      return None
    largest = max(chosen, key=lambda buffer: buffer.bytes)
    where = self.sources.where(largest.source)
    what = f'{largest.shape} has rows of other devices: {self.plan.rows} are its own'
    fix = f"constrain(x, 'batch', 'length', ...) in {file_of(where)}"
    return self._finding(what, 'activations', chosen, fix)

  def single(self) -> Weighed | None:
    """One buffer that is larger than anything a layer, the head or the table needs."""
    if not self.buffers:
      return None
    largest = max(self.buffers, key=lambda buffer: buffer.bytes)
    if self._share([largest]) < _SINGLE or largest.bytes < 2 * self._largest_needed():
      return None
    where = self.sources.where(largest.source)
    what = f'{largest.shape} is larger than anything that a layer needs'
    return self._finding(
      what, where.split(' ')[-1], [largest], f'constrain(x, ...) in {file_of(where)}'
    )

  def _largest_needed(self) -> float:
    """Bytes of the largest buffer that the design knows of."""
    plan, model, t = self.plan, self.plan.model, self.plan.mesh['tensor']
    tables = 4.0 * model.vocab * model.width
    wide = max(model.width, model.mlp // t, model.heads * model.head_dim // t)
    routed = 1 if model.moe is None else model.moe.top_k * plan.mesh['expert']
    layer = 4.0 * plan.tokens * wide * routed
    logits = 4.0 * plan.rows * plan.task.objective.chunk * model.vocab / t
    inputs = plan.item * plan.tokens * model.width * model.layers
    return max(tables, layer, logits, inputs)

  def _parameters(self) -> Iterator[tuple[int, ...]]:
    """Shapes of parameters, and of their gradients, on a device."""
    for parameter in self.plan.parameters.values():
      wanted = self.plan.wanted(parameter.dims)
      for kept in ({}, {axis: place for axis, place in wanted.items() if axis != 'fsdp'}, wanted):
        shape = list(parameter.shape)
        for axis, place in kept.items():
          shape[place] //= self.plan.mesh[axis]
        yield tuple(shape)

  def _chosen(self, is_wanted) -> list[Buffer]:
    found = []
    for buffer in self.buffers:
      array = _largest(buffer)
      if array.shape and is_wanted(array):
        found.append(buffer)
    return found

  def _is_from(self, buffer: Buffer, file: str) -> bool:
    return any(file in line for line in self.sources.lines(self.sources.described(buffer.source)))

  def _share(self, buffers: list[Buffer]) -> float:
    return sum(buffer.bytes for buffer in buffers) * self.scale / self.found.program.peak_bytes

  def _finding(self, what: str, tensor: str, buffers: list[Buffer], fix: str) -> Weighed:
    largest = max(buffers, key=lambda buffer: buffer.bytes)
    total = sum(buffer.bytes for buffer in buffers) * self.scale
    cost = f'{size(total)} of memory'
    where = self.sources.where(largest.source)
    return Weighed(self._share(buffers), Finding(what, tensor, where, cost, fix))


def _largest(buffer: Buffer) -> Array:
  return max(hlo.arrays(buffer.source.type), key=lambda array: array.bytes)


def _solid(shape: tuple[int, ...]) -> tuple[int, ...]:
  """A shape without its ones, in any order."""
  return tuple(sorted(length for length in shape if length > 1))


def _products(found: Estimate, plan: Design, sources: Sources) -> list[Weighed]:
  """Products in f32 where the model says bf16 or could, and more of them than the design has."""
  by_name = {each.name: each for rows in found.module.computations.values() for each in rows}
  flops, slow = Counter[str](), Counter[str]()
  largest: dict[str, Event] = {}
  for event in found.timeline.computing():
    if event.work is None or not event.work.flops or not (part := _part(event.op_name)):
      continue
    flops[part] += event.work.flops * event.times  # type: ignore[assignment]
    if event.work.dtype == 'f32':
      slow[part] += event.seconds * event.times  # type: ignore[assignment]
    largest[part] = max(largest.get(part, event), event, key=lambda each: each.seconds)
  where = {part: sources.where(by_name[event.name]) for part, event in largest.items()}
  return [*_slow(found, plan, slow, where), *_again(found, plan, flops, where)]


def _part(op_name: str) -> str:
  """What part of the model a product is of; '' for the optimizer's."""
  parts = {'attention': 'layers/attention', 'mlp': 'layers/mlp', 'BLV': 'logits', 'BLD,': 'logits'}
  return next((part for name, part in parts.items() if name in op_name), '')


def _slow(found: Estimate, plan: Design, slow: Counter[str], where) -> Iterator[Weighed]:
  seconds, step = sum(slow.values()), found.timeline.seconds
  if seconds < _F32 * step:
    return
  part = slow.most_common(1)[0][0]
  what = (
    f'products in f32 take {seconds / step:.0%} of the step, twice as long as in bf16 or longer'
  )
  fix = '--model.dtype=bfloat16'
  if plan.item < 4:
    fix = f'dot(..., dtype) with the dtype of the model in {file_of(where[part])}'
  finding = Finding(what, f'products of {part}', where[part], f'{1e3 * seconds:.1f} ms a step', fix)
  yield Weighed(seconds / step, finding)


def _again(found: Estimate, plan: Design, flops: Counter[str], where) -> Iterator[Weighed]:
  """Parts that several devices compute alike."""
  expected, total = plan.flops(), sum(flops.values())
  for part, count in flops.items():
    more = count - expected[part]
    if count < _TWICE * expected[part] or more < _LEAST_FLOPS * total:
      continue
    what = f'a device multiplies {count / expected[part]:.1f} times its share of {part}'
    dim = {'layers/attention': 'heads', 'layers/mlp': 'mlp', 'logits': 'vocab'}[part]
    fix = f'dimension {dim!r} in the table of lmjax/parallel/sharding.py, and constrain in {file_of(where[part])}'
    cost = f'{1e3 * found.timeline.seconds * more / total:.1f} ms a step'
    yield Weighed(more / total, Finding(what, part, where[part], cost, fix))
