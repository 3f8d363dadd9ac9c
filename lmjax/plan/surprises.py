"""What a compiled step sends that its design does not ask for, and what computing waits for."""

import math

from lmjax.plan.design import WHOLE_DTYPE, Design
from lmjax.plan.estimate import Estimate
from lmjax.plan.finding import MIB, Finding, Weighed, few, file_of, size
from lmjax.plan.origin import Sources
from lmjax.plan.sent import Group, Role, grouped

# Programs that are in order send up to 1.2 times what the design counts: norms, biases, ends of loops.
_SLACK = 1.3
# Below both, a surprise is not worth a line: 1 MiB takes 10 us, and of the step's wire it is a
# thousandth. Gathers along the batch are, since they grow with every replica that is added.
_LEAST_BYTES, _LEAST_SHARE = MIB, 0.001
# What computing may wait for, of a step. Splits over tensor and expert stand in the way of every
# layer: 9% were seen of programs in order at a width of 2,048.
_WAITS = {'stream': 0.12, 'experts': 0.12}
_WAIT = 0.03
_CALLED = {
  'weight': 'weights',
  'gradient': 'gradients',
  'update': 'updates',
  'stream': 'the residual stream',
  'experts': 'rows of experts',
  'context': 'keys and values',
  'pipe': 'the stage before',
}


def surprises(found: Estimate, plan: Design, blamed: set[str]) -> list[Weighed]:
  """Findings about what is sent.

  Args:
    blamed: parameters that are held wrongly, whose traffic follows from that.
  """
  sources = Sources(found.module)
  groups = _merged(grouped(found, plan, sources), plan)
  step = found.timeline.seconds
  least = max(_LEAST_BYTES, _LEAST_SHARE * sum(group.bytes for group in groups))
  result = []
  for group in groups:
    follows = group.role in ('weight', 'gradient', 'update') and blamed.issuperset(group.names)
    judged = _judge(group, plan, sources) if group.bytes > least and not follows else None
    if judged:
      result.append(Weighed((group.seconds + group.exposed) / step, judged))
  result += _crossings(groups, found, sources)
  return result + _waits(groups, found, sources, result)


def _merged(groups: list[Group], plan: Design) -> list[Group]:
  """Weights that are gathered in f32 as one group: one mistake makes them all so."""
  wide = [group for group in groups if _is_wide(group, plan)]
  if not wide:
    return groups
  names = tuple(name for group in wide for name in group.names)
  one = Group('weight', names, [piece for group in wide for piece in group.pieces])
  return [one, *(group for group in groups if group not in wide)]


def _is_wide(group: Group, plan: Design) -> bool:
  """Whether weights are gathered in f32 though products take less."""
  last = group.names[0].split('/')[-1]
  return (
    group.role == 'weight'
    and group.largest.dtype == 'f32'
    and plan.item < 4
    and last not in WHOLE_DTYPE
  )


def _judge(group: Group, plan: Design, sources: Sources) -> Finding | None:
  if group.role == 'weight':
    return _judge_weight(group, plan, sources)
  if group.role == 'gradient':
    return _judge_gradient(group, plan, sources)
  where = group.where(sources)
  if group.role == 'stream':
    times = group.bytes / plan.stream_bytes()
    if times < _SLACK:
      return None
    what = f'the residual stream goes over tensor {times:.1f} times as often as layers need'
    fix = (
      f"constrain(x, 'batch', 'stream', None) in {file_of(where)}, once after each part of a layer"
    )
    return Finding(what, 'residual stream', where, group.cost, fix)
  if group.role == 'update':
    names = f'update of {few(list(group.names))}'
    what = f'the {names} is gathered: it is laid out in another way than what it joins'
    fix = 'lay moments out as their parameters: state_dims in lmjax/train/state.py'
    return Finding(what, names, where, group.cost, fix)
  if group.role != 'other':
    return None
  piece, (name,) = group.largest, group.names
  text = f'{piece.dtype}[{",".join(map(str, piece.shape))}]'
  axes = ' and '.join(sorted(piece.axes))
  what = f'{name} {text} goes through {piece.kind} over {axes}, {piece.times} times a step'
  return Finding(what, name, where, group.cost, _constraint(name, where, axes, plan))


def _constraint(name: str, where: str, axes: str, plan: Design) -> str:
  """What keeps an activation where it is."""
  if name == 'router scores':
    return (
      f'rounds of argmax in place of lax.top_k, as choose in lmjax/ops/moe.py ({file_of(where)})'
    )
  if name == 'logits':
    return (
      "constrain(logits, 'batch', 'length', 'vocab') in lmjax/models/transformer.py, and masked sums "
      f'in place of gathers in {file_of(where)}'
    )
  if 'batch' in name and plan.passes > 1:
    return 'cut microbatches in strides, which leaves rows where they are (lmjax/train/step.py)'
  last = (
    "'mlp'" if name.endswith('mlp') else "'heads', None" if name.endswith('attention') else 'None'
  )
  return f"constrain(x, 'batch', 'length', {last}) in {file_of(where)}: nothing there needs {axes}"


def _judge_weight(group: Group, plan: Design, sources: Sources) -> Finding | None:
  parameters = [plan.parameters[name] for name in group.names]
  allowed = sum(plan.weight_bytes(parameter) for parameter in parameters)
  piece, names = group.largest, few(list(group.names))
  where = group.where(sources)
  if _is_wide(group, plan):
    what = f'gathered in f32, twice the bytes of {plan.model.dtype}: {names}'
    fix = f'x.astype({plan.model.dtype!r}) before it is gathered: no constrain of it in f32 ({file_of(where)})'
    return Finding(what, names, where, group.cost, fix)
  if group.bytes < _SLACK * allowed:
    return None
  axes = ' and '.join(sorted(piece.axes))
  what = f'{names} is gathered over {axes}, {size(group.bytes)} where {size(allowed)} would do'
  fix = f'dimension names of {names}, or their axes in the table of lmjax/parallel/sharding.py'
  return Finding(what, names, where, group.cost, fix)


def _judge_gradient(group: Group, plan: Design, sources: Sources) -> Finding | None:
  allowed = sum(plan.gradient_bytes(plan.parameters[name]) for name in group.names)
  if group.sent < _SLACK * allowed:
    return None
  piece, names = group.largest, f'gradient of {few(list(group.names))}'
  where = group.where(sources)
  axes = ' and '.join(sorted(piece.axes))
  what = f'the {names} is added up over {axes}, {size(group.sent)} where {size(allowed)} would do'
  ends = set(group.names) <= {'head', 'embed'}
  fix = (
    'sums of each device until the last chunk: on_rows in lmjax/ops/loss.py'
    if ends
    else f'the dimension names of {few(list(group.names))}: gradients are summed to its shards once'
  )
  return Finding(what, names, where, group.cost, fix)


def _waits(
  groups: list[Group], found: Estimate, sources: Sources, said: list[Weighed]
) -> list[Weighed]:
  """Roles that computing waits for, but for those that are named already."""
  step, known = found.timeline.seconds, {each.finding.tensor for each in said}
  waiting: dict[tuple[Role, frozenset[str]], list[Group]] = {}
  for group in groups:
    accepted = {name.split('/')[-1] for name in group.names} <= set(WHOLE_DTYPE)
    if group.role != 'other' and not accepted and few(list(group.names)) not in known:
      waiting.setdefault((group.role, group.largest.axes), []).append(group)
  result = []
  for (role, axes), members in waiting.items():
    exposed = sum(group.exposed for group in members)
    if exposed < _WAITS.get(role, _WAIT) * step:
      continue
    whole = Group(role, members[0].names, [piece for group in members for piece in group.pieces])
    names = list(dict.fromkeys(name for group in members for name in group.names))
    over = ' and '.join(sorted(axes))
    what = f'computing waits {exposed / step:.0%} of the step for {_CALLED[role]} over {over}'
    tensor = few(names) if role != 'gradient' else f'gradient of {few(names)}'
    where = whole.where(sources)
    result.append(
      Weighed(exposed / step, Finding(what, tensor, where, whole.cost, _less(role, found)))
    )
  return result


def _less(role: Role, found: Estimate) -> str:
  """Flags with which less is waited for."""
  mesh = found.task.mesh
  if role == 'stream' and mesh.tensor > 1:
    return f'--mesh.tensor={mesh.tensor // 2} --mesh.fsdp={mesh.fsdp * 2}'
  if role == 'experts':
    return f'--mesh.expert={mesh.expert // 2} --mesh.fsdp={mesh.fsdp * 2}'
  if found.task.accumulate > 1:
    return f'--accumulate={found.task.accumulate // 2}'
  return f'--batch={found.task.batch * 2}, more to compute for the same weights'


def _crossings(groups: list[Group], found: Estimate, sources: Sources) -> list[Weighed]:
  """Tensor talks in every layer: between nodes, at a ninth of the rate, it is not to."""
  crossing = [
    piece
    for group in groups
    for piece in group.pieces
    if piece.axes == {'tensor'} and piece.nodes > 1
  ]
  seconds = sum(piece.seconds for piece in crossing)
  if seconds < 0.01 * found.timeline.seconds:
    return []
  mesh, node = found.task.mesh, found.card.node
  inside = math.gcd(mesh.tensor, node)
  whole = Group('stream', ('residual stream',), crossing)
  what = f'mesh.tensor={mesh.tensor} crosses nodes of {node}, {seconds / found.timeline.seconds:.0%} of the step'
  fix = f'--mesh.tensor={inside} --mesh.fsdp={mesh.fsdp * mesh.tensor // inside}'
  where = whole.where(sources)
  share = seconds / found.timeline.seconds
  return [Weighed(share, Finding(what, 'residual stream', where, whole.cost, fix))]
