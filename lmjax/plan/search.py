"""Which ways of splitting a job to compile: all are judged by formula, the best few are compiled."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from lmjax.core import config
from lmjax.core.errors import UserError
from lmjax.parallel.mesh import Mesh
from lmjax.plan import formula
from lmjax.plan.cards import Card
from lmjax.plan.estimate import Estimate, model_of
from lmjax.plan.formula import REMATS, Sizes, Way
from lmjax.train.pretrain import Pretrain

# By formula a way may hold this much of the memory that there is and is still worth compiling.
_WORTH = 1.1
_STAGES = (1, 2, 4, 8)
_CONTEXTS = (1, 2, 4, 8, 16)
_LONG = 32_768  # tokens of a row from which its length is split without need


def promising(task: Pretrain, gpus: int, card: Card) -> Iterator[Pretrain]:
  """`task` done in the ways that hold by formula, fastest first and each mesh once.

  Where none holds, those that need least memory first.
  """
  sizes = formula.sizes_of(task, model_of(task))
  guesses = (formula.guess(sizes, way, card) for way in all_ways(sizes, gpus, card))
  found = [one for one in guesses if one is not None]
  holding = [one for one in found if one.bytes <= _WORTH * card.usable_bytes]
  ranked = sorted(holding, key=lambda one: one.seconds)
  seen: set[Mesh] = set()
  for one in ranked or sorted(found, key=lambda one: one.bytes):
    if one.way.mesh not in seen and (changed := apply(task, one.way)) is not None:
      seen.add(one.way.mesh)
      yield changed


def all_ways(sizes: Sizes, gpus: int, card: Card) -> Iterator[Way]:
  """Every mesh of `gpus` devices that divides the model, with every microbatch and remat."""
  model = sizes.model
  experts = 1 if model.moe is None else model.moe.experts
  heads = min(model.kv_heads, card.node)
  for tensor in _divisors(gpus, heads):
    for expert in _divisors(gpus // tensor, experts):
      if experts % expert or not _divides(model, tensor):
        continue
      for pipe in _STAGES:
        for context in _CONTEXTS:
          left, rest = divmod(gpus, tensor * expert * pipe * context)
          long = sizes.length >= _LONG or gpus // (tensor * pipe) > sizes.batch
          if rest or model.layers % pipe or (context > 1 and not long):
            continue
          for fsdp in _divisors(left, left):
            mesh = Mesh(
              data=left // fsdp, fsdp=fsdp, expert=expert, context=context, tensor=tensor, pipe=pipe
            )
            yield from _on_mesh(sizes, mesh)


def _on_mesh(sizes: Sizes, mesh: Mesh) -> Iterator[Way]:
  ways = mesh.data * mesh.fsdp * mesh.expert
  rows, rest = divmod(sizes.batch, ways)
  if rest or sizes.model.width % mesh.fsdp:
    return
  for accumulate in _divisors(rows, rows):
    if accumulate & (accumulate - 1) == 0:
      for remat in REMATS:
        yield Way(mesh, accumulate, remat)


def _divides(model: Any, tensor: int) -> bool:
  """Whether `tensor` splits all that the axis of this name splits."""
  over = [value for value, dim in model.dimension_sizes.values() if dim != 'expert']
  names = [dim for _, dim in model.dimension_sizes.values() if dim != 'expert']
  return all(value % tensor == 0 for value, dim in zip(over, names, strict=True) if dim != 'embed')


def _divisors(number: int, most: int) -> list[int]:
  return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def apply(task: Pretrain, way: Way) -> Pretrain | None:
  """`task` done this way; None where it cannot be."""
  try:
    model = dataclasses.replace(task.model, remat=way.remat)  # type: ignore[arg-type]
    return dataclasses.replace(task, mesh=way.mesh, accumulate=way.accumulate, model=model)
  except UserError:
    return None


def flags(task: Pretrain, base: Pretrain) -> str:
  """The flags that make `task` of `base`, for pasting: '--mesh.data=80 --accumulate=2'."""
  old = {leaf.name: leaf.value for leaf in config.leaves(base)}
  changed = [leaf for leaf in config.leaves(task) if leaf.value != old[leaf.name]]
  return ' '.join(f'--{leaf.name}={config.to_text(leaf.value)}' for leaf in changed)


def pareto(found: Iterable[Estimate]) -> list[Estimate]:
  """Those that no other beats at once in speed, memory and number of GPUs, fastest first."""
  key = lambda one: (-one.tokens_per_second, one.program.peak_bytes, one.gpus)
  ranked = sorted(found, key=key)
  beats = lambda a, b: all(x <= y for x, y in zip(key(a), key(b))) and key(a) != key(b)
  return [one for one in ranked if not any(beats(other, one) for other in ranked)]


def changes(task: Pretrain, card: Card) -> list[Pretrain]:
  """Ways of making a task that does not fit smaller, cheapest by formula first."""
  sizes = formula.sizes_of(task, model_of(task))
  tried: list[tuple[float, Pretrain]] = []
  for changed in _smaller(task):
    way = Way(changed.mesh, changed.accumulate, changed.model.remat)
    made = (
      sizes if changed.optimizer == task.optimizer else formula.sizes_of(changed, model_of(changed))
    )
    one = formula.guess(made, way, card)
    if one is not None and one.bytes <= _WORTH * card.usable_bytes:
      tried.append((one.seconds, changed))
  return [changed for _, changed in sorted(tried, key=lambda pair: pair[0])]


def _smaller(task: Pretrain) -> Iterator[Pretrain]:
  """Tasks that differ from `task` in one or two settings that save memory, on as many devices."""
  singles = [*_settings(task)]
  for one in singles:
    if (changed := _override(task, one)) is not None:
      yield changed
  for index, one in enumerate(singles):
    for other in singles[index + 1 :]:
      if not one.keys() & other.keys() and (changed := _override(task, one | other)) is not None:
        yield changed


def _settings(task: Pretrain) -> Iterator[dict[str, Any]]:
  place = REMATS.index(task.model.remat)
  yield from ({'model.remat': remat} for remat in REMATS[place + 1 :])
  for factor in (2, 4, 8):
    yield {'accumulate': task.accumulate * factor}
    if task.mesh.data % factor == 0:
      data = task.mesh.data // factor
      for axis in ('fsdp', 'tensor', 'expert'):
        yield {'mesh.data': data, f'mesh.{axis}': getattr(task.mesh, axis) * factor}
    if task.mesh.fsdp % factor == 0:
      yield {'mesh.fsdp': task.mesh.fsdp // factor, 'mesh.tensor': task.mesh.tensor * factor}
  yield {'optimizer.moment_dtype': 'bfloat16'}
  yield {'optimizer.memory': 'pinned_host'}


def _override(task: Pretrain, settings: dict[str, Any]) -> Pretrain | None:
  try:
    return config.override(task, settings)
  except (UserError, KeyError):
    return None
