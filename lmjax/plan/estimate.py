"""What one compiled train step comes to on one kind of machine: memory, time, traffic.

Bytes, FLOPs, kernels and collectives are the compiler's; seconds are the model of `timeline`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lmjax.parallel import hlo
from lmjax.parallel.hlo import Module
from lmjax.plan import memory, network, timeline
from lmjax.plan.cards import Card
from lmjax.plan.compile import Program
from lmjax.plan.timeline import Event, Timeline
from lmjax.train.pretrain import Pretrain

GIB = 2**30
_ROWS = 300  # of the timeline that are shown at most


class Estimate(NamedTuple):
  """A task, compiled, on a card.

  Attributes:
    task: with its mesh, batch, accumulate and remat.
    program, module: what the compiler made of its step.
    timeline: one step in time.
    tokens_per_second: of all devices together.
    mfu: of the peak in the model's compute dtype, the FLOPs counted as in training.
  """

  task: Pretrain
  card: Card
  program: Program
  module: Module
  timeline: Timeline
  tokens_per_second: float
  mfu: float

  @property
  def gpus(self) -> int:
    return self.task.mesh.devices

  @property
  def peak_gib(self) -> float:
    return self.program.peak_bytes / GIB

  @property
  def fits(self) -> bool:
    return self.program.peak_bytes <= self.card.usable_bytes


def estimate(task: Pretrain, card: Card, program: Program) -> Estimate:
  """Reads `program`, the compiled step of `task`, and lets it run on `card`."""
  card = card.among(task.mesh.devices)
  module = hlo.parse(program.text)
  machine = timeline.Machine(card, program.mesh, program.places, 1.0 / task.mesh.expert)
  step = timeline.simulate(module, machine)
  tokens = task.batch * task.length
  rate = tokens / step.seconds
  peak = card.flops[task.model.dtype] * task.mesh.devices
  mfu = rate * model_of(task).flops_per_token(task.length) / peak
  return Estimate(task, card, program, module, step, rate, mfu)


def model_of(task: Pretrain) -> Any:
  """The model of a task with a vocabulary: its own, or the one its tokenizer will have."""
  return task.model.with_vocab(task.model.vocab or task.text.vocab)


def memory_rows(found: Estimate) -> list[dict[str, Any]]:
  """GiB of a device by owner; their sum is the peak."""
  model = model_of(found.task)
  arguments = memory.arguments(found.module)
  parameters = [each for each in arguments if each.op_name.startswith('state.params')]
  shapes = frozenset(each.arrays[0].shape for each in parameters)
  stages = found.task.mesh.pipe
  shape = memory.Shape(
    model.vocab // found.task.mesh.tensor, model.width, model.layers // stages, shapes
  )
  owners = memory.owners(found.module, found.program, shape)
  return [{'owner': name, 'gib': size / GIB} for name, size in owners.items()]


def traffic_rows(found: Estimate) -> list[dict[str, Any]]:
  """Collectives of a step that are alike together, most bytes first."""
  rows: dict[tuple, dict[str, Any]] = {}
  for event in found.timeline.talking():
    one, group = event.collective, event.group
    assert one is not None
    assert group is not None
    inside, between = network.sent_bytes(one, group)
    key = (one.kind, ','.join(one.axes), group.nodes > 1, one.dtype)
    names = ('kind', 'axis', 'between_nodes', 'dtype')
    row = rows.setdefault(
      key,
      dict(zip(names, key, strict=True))
      | {'count': 0, 'gib': 0.0, 'between_gib': 0.0, 'exposed_gib': 0.0, 'seconds': 0.0},
    )
    sent = max(inside, between)
    row['count'] += event.times
    row['gib'] += sent * event.times / GIB
    row['between_gib'] += between * event.times / GIB
    row['exposed_gib'] += sent * event.times * exposed_share(event) / GIB
    row['seconds'] += event.seconds * event.times
  return sorted(rows.values(), key=lambda row: -row['gib'])


def exposed_share(event: Event) -> float:
  """Of a collective, the share of its time in which the device waits."""
  return event.exposed / event.seconds if event.seconds else 0.0


def wire_gib(traffic: list[dict[str, Any]]) -> dict[str, float]:
  """GiB that a device sends in a step, by mesh axis."""
  total: dict[str, float] = {}
  for row in traffic:
    total[row['axis']] = total.get(row['axis'], 0.0) + row['gib']
  return total


def flops_rows(found: Estimate) -> dict[str, float]:
  """PFLOP of a device in a step by what computes them; inside kernels by their formulas."""
  names = {'product': 'products', 'attention': 'attention', 'experts': 'experts'}
  flops = found.timeline.flops()
  return {name: flops[kind] / 1e15 for kind, name in names.items()}  # type: ignore[index]


def timeline_rows(found: Estimate) -> list[dict[str, Any]]:
  """The step as rows to draw: a loop's first round, stretched over all of its rounds."""
  rows = []
  for event in found.timeline.events:
    start, length = event.start, event.seconds
    for _, begin, _, rounds in reversed(event.loops):
      start, length = begin + start * rounds, length * rounds
    rows.append(
      {
        'stream': 'compute' if event.work else 'network',
        'name': label(event),
        'kind': event.kind,
        'start_ms': 1e3 * start,
        'ms': 1e3 * length,
        'times': event.times,
      }
    )
  rows.sort(key=lambda row: row['start_ms'])
  return _merged(rows, found.timeline.seconds * 1e3 / _ROWS)


def label(event: Event) -> str:
  """Where in the model something is computed or sent: 'mlp, backward'."""
  where = event.op_name
  part = next(
    (name for name in ('attention', 'mlp', 'Ends.embed', 'BLD,DV', 'VD') if name in where), None
  )
  names = {'Ends.embed': 'embedding', 'BLD,DV': 'head', 'VD': 'head', None: 'rest'}
  direction = 'backward' if 'transpose(' in where else 'forward'
  if 'rematted' in where:
    direction = 'recomputed'
  if part is None and 'jvp' not in where:
    return 'update'
  return f'{names.get(part, part)}, {direction}'


def _merged(rows: list[dict[str, Any]], least_ms: float) -> list[dict[str, Any]]:
  """Rows of a stream that follow each other without a gap, alike or shorter than `least_ms`, as one."""
  merged: dict[str, list[dict[str, Any]]] = {'compute': [], 'network': []}
  for row in rows:
    lane = merged[row['stream']]
    last = lane[-1] if lane else None
    if last is None or row['start_ms'] - last['start_ms'] - last['ms'] > least_ms / 10:
      lane.append(dict(row))
    elif (last['kind'], last['name']) == (row['kind'], row['name']) or row['ms'] < least_ms:
      last['ms'] = max(last['ms'], row['start_ms'] + row['ms'] - last['start_ms'])
    else:
      lane.append(dict(row))
  return merged['compute'] + merged['network']


def candidate_row(found: Estimate) -> dict[str, Any]:
  """A line of the table of candidates."""
  return {**way(found.task), 'peak_gib': found.peak_gib, 'fits': found.fits} | {
    'tokens_per_second': found.tokens_per_second,
    'mfu': found.mfu,
    'label': 'compiled',
  }


def way(task: Pretrain) -> dict[str, Any]:
  """How a task splits its work."""
  sizes: Mapping[str, int] = task.mesh.sizes
  ways = sizes['data'] * sizes['fsdp'] * sizes['expert']
  return {
    'mesh': dict(sizes),
    'microbatch': task.batch // task.accumulate // ways,
    'accumulate': task.accumulate,
    'remat': task.model.remat,
    'gpus': task.mesh.devices,
  }
