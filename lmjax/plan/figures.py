"""A plan's numbers with where each is from: compiled, modelled or given.

Compiled: read from the program that the compiler made. Modelled: computed from that and constants.
Given: by the user, a data sheet or a publication.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from lmjax.core.errors import UserError
from lmjax.core.task import Report
from lmjax.plan import estimate, formula
from lmjax.plan.cards import GB, GIB, Card
from lmjax.plan.estimate import Estimate
from lmjax.plan.failures import Failures, Losses, across_sites, losses
from lmjax.plan.money import Bill, Money, bill

_NEAR = 1.05  # a rounder number of GPUs may be this much larger
_ROUNDER = 8  # and must divide by a power of two this much larger


class Figure(NamedTuple):
  """One number, its unit, and where it is from."""

  group: str
  name: str
  value: float | str | None
  unit: str
  label: str
  note: str = ''


def summary(found: Estimate, tokens: float, money: Money, failures: Failures) -> Report:
  """What the report holds of the way that was chosen, but for findings and other ways."""
  traffic = estimate.traffic_rows(found)
  memory = estimate.memory_rows(found)
  state = sum(row['gib'] for row in memory if row['owner'] in ('parameters', 'optimizer moments'))
  lost = losses(failures, found.gpus, checkpoint_bytes(found))
  cost = bill(money, found.card, found.gpus, tokens, found.tokens_per_second, lost.goodput)
  listed = [
    *_memory(found, state),
    *_program(found),
    *_time(found, traffic),
    *_failures(found, failures, lost),
    *_sites(found, failures),
    *_money(cost, tokens, money, found.card),
  ]
  return {
    'fits': found.fits,
    'peak_gib': found.peak_gib,
    'hbm_gib': found.card.usable_bytes / GIB,
    'tokens_per_second': found.tokens_per_second,
    'mfu': found.mfu,
    'wire_gib': estimate.wire_gib(traffic),
    'exposed_gib': sum(row['exposed_gib'] for row in traffic),
    'days': cost.days,
    'dollars': cost.rented_dollars if cost.bought_dollars is None else cost.bought_dollars,
    'goodput': lost.goodput,
    'warnings': found.program.warnings,
    'compile_seconds': found.program.seconds,
    'mesh': found.task.mesh.sizes,
    'figures': [figure._asdict() for figure in listed],
    'memory': memory,
    'timeline': estimate.timeline_rows(found),
    'traffic': traffic,
    'flops': estimate.flops_rows(found),
    'kernels': dict(found.timeline.kernels().most_common()),
  }


def checkpoint_bytes(found: Estimate) -> float:
  """Of parameters and moments of the whole model; they are saved as they are, whatever holds them."""
  sizes = formula.sizes_of(found.task, estimate.model_of(found.task))
  return 4.0 * sum(size for size, _ in sizes.parameters) * (1 + sizes.moments)


def _memory(found: Estimate, state: float) -> Iterator[Figure]:
  program, card = found.program, found.card
  yield Figure('memory', 'arguments', program.argument_bytes / GIB, 'GiB', 'compiled')
  yield Figure('memory', 'of them the state', state, 'GiB', 'compiled', 'parameters and moments')
  yield Figure('memory', 'temporaries', program.temporary_bytes / GIB, 'GiB', 'compiled')
  alias = 'arguments that results take over'
  yield Figure('memory', 'donated', program.alias_bytes / GIB, 'GiB', 'compiled', alias)
  yield Figure('memory', 'peak', found.peak_gib, 'GiB', 'compiled')
  yield Figure(
    'memory', 'of the card', card.memory_bytes / GIB, 'GiB', 'given', card.sources['memory_bytes']
  )
  yield Figure(
    'memory', 'for programs', card.memory_fraction, '', 'given', card.sources['memory_fraction']
  )
  yield Figure(
    'memory', 'reserved', card.reserve_bytes / GIB, 'GiB', 'given', card.sources['reserve_bytes']
  )


def _program(found: Estimate) -> Iterator[Figure]:
  program = found.program
  flops = sum(found.timeline.flops().values()) / 1e15
  note = 'products exactly; attention and expert kernels by their formulas'
  yield Figure('program', 'FLOPs a device and step', flops, 'PFLOP', 'compiled', note)
  yield Figure('program', 'compile time', program.seconds, 's', 'compiled', 'on this machine')
  held = program.resident_bytes / GIB
  yield Figure('program', 'memory of the compiler', held, 'GiB', 'compiled', 'on this machine')


def _time(found: Estimate, traffic: list[dict[str, Any]]) -> Iterator[Figure]:
  step, card = found.timeline, found.card
  yield Figure('time', 'step', step.seconds, 's', 'modelled')
  rate = found.tokens_per_second / found.gpus
  yield Figure('time', 'tokens/s a GPU', rate, '', 'modelled')
  exposed = step.exposed_seconds()
  yield Figure('time', 'waiting for the network', exposed, 's', 'modelled', 'of a step')
  talking = sum(row['seconds'] for row in traffic)
  yield Figure('time', 'on the network', talking, 's', 'modelled', 'hidden or not')
  for field in ('matmul', 'attention', 'memory', 'link_inside', 'link_between'):
    name = {'link_inside': 'NVLink', 'link_between': 'network'}.get(field, field)
    yield Figure(
      'time', f'share of peak: {name}', getattr(card, field), '', 'given', card.sources[field]
    )


def _failures(found: Estimate, given: Failures, lost: Losses) -> Iterator[Figure]:
  source = 'Llama 3, arXiv:2407.21783, section 3.3.4, unless you gave your own'
  rate = given.per_gpu_day * 1000
  yield Figure('failures', 'rate', rate, 'a day and 1,000 GPUs', 'given', source)
  yield Figure('failures', 'expected', lost.failures_a_day, 'a day', 'modelled')
  mean = _finite(lost.mean_time_seconds / 3600)
  yield Figure('failures', 'mean time between', mean, 'h', 'modelled')
  yield Figure('failures', 'restart', given.restart_seconds, 's', 'given')
  yield Figure('failures', 'a save blocks', given.save_seconds, 's', 'given')
  note = 'Daly 2006, eq. 37'
  best = _finite(lost.interval_seconds)
  yield Figure('failures', 'save every', best, 's', 'modelled', note)
  steps = _finite(min(lost.interval_seconds / found.timeline.seconds, found.task.steps))
  steps = steps and max(1, math.floor(steps))
  yield Figure('failures', 'that is every', steps, 'steps', 'modelled', '--checkpoint.every_steps')
  yield Figure('failures', 'goodput', lost.goodput, '', 'modelled', 'Daly 2006, eq. 20')
  size = checkpoint_bytes(found) / GB
  yield Figure('failures', 'checkpoint', size, 'GB', 'modelled', 'parameters and moments')
  write = lost.write_bytes_per_second / GB
  yield Figure('failures', 'storage, to write in time', write, 'GB/s', 'modelled', 'all hosts')
  read = lost.read_bytes_per_second / GB
  note = f'all hosts, within {given.restore_seconds:g} s'
  yield Figure('failures', 'storage, to read back', read, 'GB/s', 'modelled', note)


def _sites(found: Estimate, given: Failures) -> Iterator[Figure]:
  if given.sites == 1:
    return
  if found.task.mesh.data % 2:
    raise UserError(
      f'failures.sites=2 splits mesh.data between them, which is {found.task.mesh.data}: pass '
      '--target_flags or --gpus that make it even'
    )
  sizes = formula.sizes_of(found.task, estimate.model_of(found.task))
  gradients = 4.0 * sum(size for size, _ in sizes.parameters)
  passes = found.task.accumulate
  backward = 2 / 3 * found.timeline.seconds / passes
  two = across_sites(given, gradients, backward)
  yield Figure('sites', 'link', given.site_gbps, 'Gb/s', 'given', 'in all, each direction')
  note = 'gradients in f32, once a step'
  yield Figure('sites', 'crosses the link', two.gradient_bytes / GB, 'GB', 'modelled', note)
  yield Figure('sites', 'in', two.seconds, 's', 'modelled')
  yield Figure('sites', 'not hidden', two.exposed_seconds, 's', 'modelled', 'a step')
  slower = found.timeline.seconds / (found.timeline.seconds + two.exposed_seconds)
  yield Figure('sites', 'speed beside one site', slower, '', 'modelled', 'figures above are of one')
  yield Figure('sites', 'link that hides it', two.hidden_gbps, 'Gb/s', 'modelled')
  note = 'when a site is lost: the same run on half of mesh.data, its batch accumulated twice'
  yield Figure('sites', 'speed that is left', two.share_left, '', 'modelled', note)


def _money(cost: Bill, tokens: float, given: Money, card: Card) -> Iterator[Figure]:
  yield Figure('money', 'tokens', tokens, '', 'given')
  yield Figure('money', 'days', cost.days, 'days', 'modelled', 'failures included')
  price = card.dollars if given.dollars_card is None else given.dollars_card
  source = card.sources['dollars'] if given.dollars_card is None else 'your own'
  yield Figure('money', 'a card', price, '$ each', 'given', source)
  hour = card.dollars_hour if given.dollars_hour is None else given.dollars_hour
  source = card.sources['dollars_hour'] if given.dollars_hour is None else 'your own'
  yield Figure('money', 'a card rented', hour, '$/h', 'given', source)
  yield Figure('money', 'power', cost.megawatt, 'MW', 'modelled', f'PUE {given.pue:g}')
  yield Figure('money', 'energy', cost.megawatt_hours, 'MWh', 'modelled')
  yield Figure('money', 'buying the cards', cost.purchase_dollars, '$ in all', 'modelled')
  note = f'over {given.years:g} years'
  yield Figure('money', 'bought: write-off', cost.write_off_dollars, '$', 'modelled', note)
  note = f'${given.kwh_dollars:g} a kWh'
  yield Figure('money', 'bought: power', cost.power_dollars, '$', 'modelled', note)
  yield Figure('money', 'rented', cost.rented_dollars, '$', 'modelled')


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def rounder(gpus: int) -> int | None:
  """A number of GPUs a little larger than `gpus` that splits many more ways; None without one."""
  power = 1 << 30
  while power >= _ROUNDER * _power_of_two(gpus):
    found = -(-gpus // power) * power
    if found <= _NEAR * gpus and gpus > 16:
      return found
    power //= 2
  return None


def awkward(gpus: int) -> list[str]:
  """A sentence where `gpus` divides few ways, with a number that divides more."""
  other = rounder(gpus)
  if other is None:
    return []
  return [
    f'{gpus:,} = {_factors(gpus)}: widths, heads, layers and experts of models divide by powers of '
    f'two, so fsdp, expert, context, tensor and pipe together can split at most '
    f'{_power_of_two(gpus)} ways; {other:,} = {_factors(other)} leaves {_power_of_two(other):,}: '
    f'prefer --gpus={other}'
  ]


def _power_of_two(number: int) -> int:
  return number & -number


def _factors(number: int) -> str:
  found: dict[int, int] = {}
  divisor = 2
  while number > 1:
    if divisor * divisor > number:
      divisor = number
    while number % divisor == 0:
      found[divisor] = found.get(divisor, 0) + 1
      number //= divisor
    divisor += 1
  return ' x '.join(f'{base}^{power}' if power > 1 else f'{base}' for base, power in found.items())
