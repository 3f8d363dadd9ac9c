"""What a compiled step sends, array by array, and what each is to the model.

An array has its role by the argument that it holds, or by its size and the axes it is sent along.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from lmjax.parallel.hlo import Instruction
from lmjax.plan.design import BATCH, Design
from lmjax.plan.estimate import Estimate
from lmjax.plan.finding import size
from lmjax.plan.origin import Origins, Sources, path_of

Role = Literal['weight', 'gradient', 'update', 'stream', 'experts', 'context', 'pipe', 'other']

# What the einsum of a tensor's product has in it, where that is not its name.
_LETTERS = {'head': 'DV'}


class Piece(NamedTuple):
  """One array of a collective.

  Attributes:
    axes: of the mesh, without parts of them.
    numbers: in it, whole: gathered, or before it is scattered.
    bytes, seconds, exposed: of a step, this array's share.
    arguments: of the step, that it holds.
    source: the instruction that makes it.
  """

  kind: str
  axes: frozenset[str]
  dtype: str
  shape: tuple[int, ...]
  numbers: int
  bytes: float
  seconds: float
  exposed: float
  nodes: int
  times: int
  arguments: frozenset[str]
  source: Instruction


class Group(NamedTuple):
  """Pieces of one role and tensor."""

  role: Role
  names: tuple[str, ...]
  pieces: list[Piece]

  @property
  def bytes(self) -> float:
    return sum(piece.bytes for piece in self.pieces)

  @property
  def sent(self) -> float:
    """An all-reduce sends everything twice."""
    return sum(piece.bytes * (1 + (piece.kind == 'all-reduce')) for piece in self.pieces)

  @property
  def seconds(self) -> float:
    return sum(piece.seconds for piece in self.pieces)

  @property
  def exposed(self) -> float:
    return sum(piece.exposed for piece in self.pieces)

  @property
  def largest(self) -> Piece:
    return max(self.pieces, key=lambda piece: piece.bytes)

  def where(self, sources: Sources) -> str:
    """The line that says most; what XLA moved through a loop has none, or only that of the loop."""
    pieces = sorted(self.pieces, key=lambda piece: -piece.bytes)
    lines = [line for piece in pieces if (line := sources.where(piece.source)).startswith('lmjax')]
    best = [line for line in lines if 'models/transformer.py' not in line]
    given = [name.replace('\\', '') for piece in pieces for name in piece.arguments]
    return (best or lines or given or [''])[0]

  @property
  def cost(self) -> str:
    return f'{size(self.bytes)} on the wire, {1e3 * self.exposed:.1f} ms exposed'


def pieces(found: Estimate, sources: Sources) -> Iterator[Piece]:
  """Every array that is sent in a step."""
  module, origins = found.module, Origins(found.module)
  home = {each.name: (each, rows) for rows in module.computations.values() for each in rows}
  for event in found.timeline.talking():
    one, group = event.collective, event.group
    assert one is not None
    assert group is not None
    instruction, rows = home[event.name]
    by_name = {each.name: each for each in rows}
    count = group.size if one.kind == 'all-gather' else 1
    parts = [part for name in instruction.operands for part in sources.joined(by_name[name])]
    arrays = [(part, array) for part in parts for array in part.arrays]
    if one.kind == 'ragged-all-to-all':  # of the buffers to and fro one has room for the worst case
      arrays = [min(arrays[:2], key=lambda pair: pair[1].bytes)]
    for part, array in arrays:
      share = array.bytes * count / max(1, one.bytes) * event.times
      yield Piece(
        one.kind,
        frozenset(axis.partition(':')[0] for axis in one.axes),
        array.dtype,
        array.shape,
        array.size * count,
        array.bytes * count * event.times,
        event.seconds * share,
        event.exposed * share,
        group.nodes,
        event.times,
        origins.of(part.name),
        part,
      )


def grouped(found: Estimate, plan: Design, sources: Sources) -> list[Group]:
  """What is sent by role and name, most bytes first."""
  groups: dict[tuple[Role, tuple[str, ...]], list[Piece]] = {}
  by_size = _gradient_sizes(plan)
  for piece in pieces(found, sources):
    groups.setdefault(_role(piece, plan, by_size, sources), []).append(piece)
  members = [Group(role, names, sent) for (role, names), sent in groups.items()]
  return sorted(members, key=lambda group: -group.bytes)


def _gradient_sizes(plan: Design) -> dict[int, dict[str, bool]]:
  """Numbers in a gradient on its way -> the parameters that it may be of; True: of one layer."""
  found: dict[int, dict[str, bool]] = {}
  for path, parameter in plan.parameters.items():
    whole = plan.gathered(parameter)
    across = plan.mesh['tensor'] if path == 'embed' else 1
    for sizes, layer in (
      ({whole * across, whole}, False),
      ({whole // plan.times(parameter)}, True),
    ):
      for count in sizes | {count // plan.mesh['fsdp'] for count in sizes}:
        found.setdefault(count, {})[path] = layer
  return found


def _role(piece: Piece, plan: Design, by_size, sources: Sources) -> tuple[Role, tuple[str, ...]]:
  parameters = {path for name in piece.arguments if (path := _parameter(name, plan))}
  if parameters and piece.kind != 'all-reduce':
    return 'weight', tuple(sorted(parameters))
  if piece.axes <= {'tensor'} and piece.numbers in plan.streams():
    return 'stream', ('residual stream',)
  scope = sources.described(piece.source).op_name
  paths = _likely(by_size.get(piece.numbers, {}), scope)
  if piece.kind in ('reduce-scatter', 'all-reduce') and piece.axes & {*BATCH, 'context'} and paths:
    return 'gradient', paths
  if piece.kind.endswith('all-to-all') and piece.axes == {'expert'}:
    return 'experts', ('rows sent to experts',)
  if piece.kind == 'collective-permute' and piece.axes == {'context'}:
    return 'context', ('keys and values passed on',)
  if piece.axes == {'pipe'} and plan.model.width in piece.shape:
    return 'pipe', ('rows passed on',)
  if paths and scope and 'jvp' not in scope:
    return 'update', paths
  return 'other', (_name(piece, plan, sources),)


def _likely(paths: dict[str, bool], scope: str) -> tuple[str, ...]:
  """Of the parameters that a gradient may be of, those that the product is one of in `scope`."""

  def part(path: str) -> str:
    return path.split('/')[-2] if '/' in path else _LETTERS.get(path, path)

  named = [path for path in paths if part(path) in scope]
  return tuple(named or [path for path, layer in paths.items() if layer] or paths)


def _parameter(argument: str, plan: Design) -> str | None:
  path = '/'.join(path_of(argument))
  return path if argument.startswith('state.params') and path in plan.parameters else None


def _name(piece: Piece, plan: Design, sources: Sources) -> str:
  """What a user would call an array that nobody expected, by where it is made."""
  batch = [name for name in piece.arguments if name.startswith('batch.')]
  if batch:
    return batch[0]
  told = sources.described(piece.source)
  if (
    piece.axes <= set(BATCH)
    and piece.numbers % plan.tokens == 0
    and plan.model.width in piece.shape
  ):
    return 'rows of the batch'
  lines, scope = ' '.join(sources.lines(told)), told.op_name
  vocab, experts = plan.model.vocab, plan.model.moe.experts if plan.model.moe else 0
  if piece.shape and piece.shape[-1] in (vocab, vocab // plan.mesh['tensor']):
    return 'logits'
  if experts and ('moe.py' in lines or experts in piece.shape) and 'shard_map' not in scope:
    return 'router scores' if math.prod(piece.shape) <= plan.tokens * experts * 8 else 'experts'
  for part in ('attention', 'mlp'):
    if f'/{part}' in scope:
      return f'activations of layers/{part}'
  return 'embed' if 'embed' in scope else 'activations'
