"""One step of a compiled program in time: computing and talking, one stream each.

Instructions are taken in the order that XLA scheduled them in. A collective that was started goes on
beside what is computed until its result is needed; what the device then waits is exposed. Loops run
their body, whose time is told once, as often as the compiler knows. All times are modelled.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lmjax.parallel import collectives
from lmjax.parallel.collectives import Collective
from lmjax.parallel.hlo import Instruction, Module
from lmjax.plan import network
from lmjax.plan.cards import Card
from lmjax.plan.network import Group
from lmjax.plan.work import Work, work

_BODY = re.compile(r'\bbody=%([^\s,]+)')
# Tiles of the result that a core computes, and how near each comes to the largest one's speed: a
# judgement; small ones only matter where large ones leave cores idle.
_TILES = {(128, 256): 1.0, (128, 128): 0.9, (64, 128): 0.75, (64, 64): 0.6}
_HOST = 'S(5)'  # XLA's memory space of the host


class Event(NamedTuple):
  """One instruction in time; of a loop, in its first round.

  Attributes:
    name: of the instruction.
    kind: of `Work`, or of the collective, or 'host' for copies between host and device.
    op_name: where JAX had it from.
    start, seconds: within a round of the innermost loop.
    exposed: of the seconds of a collective, those that computing waits.
    times: rounds in all.
    loops: the loops around it, outermost first, as (name, start, seconds of a round, rounds).
  """

  name: str
  kind: str
  op_name: str
  start: float
  seconds: float
  exposed: float
  times: int
  loops: tuple[tuple[str, float, float, int], ...]
  work: Work | None
  collective: Collective | None
  group: Group | None


class Timeline(NamedTuple):
  """A step: its seconds, and everything in it."""

  seconds: float
  events: list[Event]

  def computing(self) -> Iterator[Event]:
    return (event for event in self.events if event.work is not None)

  def talking(self) -> Iterator[Event]:
    return (event for event in self.events if event.collective is not None)

  def flops(self) -> Counter[str]:
    """By kind of work, of a device in a step."""
    counts: Counter[str] = Counter()
    for event in self.computing():
      assert event.work
      counts[event.work.kind] += event.work.flops * event.times  # type: ignore[assignment]
    return Counter({kind: flops for kind, flops in counts.items() if flops})

  def kernels(self) -> Counter[str]:
    """How often each kernel is launched in a step."""
    counts: Counter[str] = Counter()
    for event in self.computing():
      assert event.work
      counts[event.work.kernel] += event.times
    return counts

  def exposed_seconds(self) -> float:
    return sum(event.exposed * event.times for event in self.talking())


class Machine(NamedTuple):
  """What a program runs on.

  Attributes:
    mesh: size of each axis.
    places: number of the device at each place of the mesh.
    experts_filled: share of the rows given to experts that somebody sent: buffers have room for
      the worst case.
  """

  card: Card
  mesh: Mapping[str, int]
  places: Sequence[int]
  experts_filled: float = 1.0


def simulate(module: Module, machine: Machine) -> Timeline:
  """One step of `module` on `machine`.

  Raises:
    ValueError: the program is of another mesh, or something in it cannot be read with certainty.
  """
  collectives.check_partitions(module, machine.mesh)
  run = _Run(module, machine)
  seconds = run.computation(module.entry, 1, ())
  return Timeline(seconds, run.events)


class _Run:
  """The walk through the program; it collects events."""

  def __init__(self, module: Module, machine: Machine) -> None:
    self.module, self.machine, self.card = module, machine, machine.card
    self.events: list[Event] = []

  def computation(self, name: str, times: int, loops: tuple) -> float:
    """Walks through one computation from time 0; returns when its last result is there."""
    instructions = self.module.computations[name]
    types = {each.name: each.type for each in instructions}
    now, free = 0.0, 0.0  # when computing goes on, and when the network is free
    flying: dict[str, int] = {}  # started collectives -> their event
    for each in instructions:
      if each.opcode.endswith('-done'):
        now = self._land(each, flying, now)
      elif each.opcode == 'while':
        now += self._loop(each, name, now, times, loops)
      elif each.opcode == 'conditional':
        now += max(self._inside(each, branch, now, times, 1, loops) for branch in each.called)
      elif collectives.is_collective(each) or _is_host_copy(each):
        start = max(now, free)
        event = self._talk(each, types, start, times, loops)
        if event is None:
          continue
        self.events.append(event)
        free = start + event.seconds
        if each.opcode.endswith('-start'):
          flying[each.name] = len(self.events) - 1
        else:
          now = self._expose(len(self.events) - 1, now)
      else:
        now += self._compute(each, types, now, times, loops)
    return now

  def _land(self, done: Instruction, flying: dict[str, int], now: float) -> float:
    index = flying.pop(done.operands[0], None) if done.operands else None
    return now if index is None else self._expose(index, now)

  def _expose(self, index: int, now: float) -> float:
    """Has computing wait for an event; returns when it goes on."""
    event = self.events[index]
    end = event.start + event.seconds
    # One may have stood behind others: what they take of the wait is theirs.
    for place in range(index, -1, -1):
      before = self.events[place]
      if before.loops != event.loops or before.work is not None:
        continue
      wait = min(end, before.start + before.seconds) - max(now, before.start)
      if before.start + before.seconds <= now:
        break
      self.events[place] = before._replace(exposed=before.exposed + max(0.0, wait))
    return max(now, end)

  def _loop(
    self, loop: Instruction, computation: str, now: float, times: int, loops: tuple
  ) -> float:
    body = _BODY.search(loop.rest)
    assert body
    known, first = self.module.rounds(loop, computation), len(self.events)
    seconds = self._inside(loop, body[1], now, times, known or 1, loops)
    # One that searches a sorted list may end sooner or later; it sends nothing.
    if known is None and any(event.collective for event in self.events[first:]):
      raise ValueError(f'collectives in a loop of unknown length: {loop}')
    return seconds

  def _inside(self, each, computation: str, now: float, times: int, rounds: int, loops) -> float:
    """Seconds of a computation that an instruction runs so often; its events know where they are."""
    first = len(self.events)
    seconds = self.computation(computation, times * rounds, loops)
    around = (each.name, now, seconds, rounds)
    for index in range(first, len(self.events)):
      event = self.events[index]
      self.events[index] = event._replace(loops=(*loops, around, *event.loops[len(loops) :]))
    return seconds * rounds

  def _talk(
    self, each: Instruction, types: Mapping[str, str], start: float, times: int, loops: tuple
  ) -> Event | None:
    if _is_host_copy(each):
      return self._copy(each, start, times, loops)
    talk = collectives.partners(each, self.machine.mesh)
    if not talk.axes:
      return None
    one = collectives.collective(each, types, talk)
    group = network.group_of(talk, self.machine.places, self.card.node)
    seconds = network.seconds(one, group, self.card)
    return Event(
      each.name, one.kind, each.op_name, start, seconds, 0.0, times, loops, None, one, group
    )

  def _copy(self, each: Instruction, start: float, times: int, loops: tuple) -> Event:
    """A copy from or to the host's memory; of a stack that lies there, one slice."""
    size = min(array.bytes for array in each.arrays if array.size > 1)
    seconds = size / self.card.host.bytes_per_second + self.card.host.latency_seconds
    return Event(
      each.name, 'host', each.op_name, start, seconds, 0.0, times, loops, None, None, None
    )

  def _compute(self, each, types, now, times, loops) -> float:
    done = work(self.module, each, types)
    if done.kind == 'none':
      return 0.0
    if done.kind == 'experts':
      done = done._replace(
        flops=done.flops * self.machine.experts_filled,
        bytes=done.bytes * self.machine.experts_filled,
      )
    seconds = compute_seconds(done, self.card)
    self.events.append(
      Event(each.name, done.kind, each.op_name, now, seconds, 0.0, times, loops, done, None, None)
    )
    return seconds


def _is_host_copy(each: Instruction) -> bool:
  """Whether a copy between device and host begins in it."""
  if not each.opcode.endswith('-start'):
    return False
  return _HOST in {array.space for array in each.arrays}


def compute_seconds(done: Work, card: Card) -> float:
  """The roofline: the slower of its products and its bytes, and a launch."""
  moving = done.bytes / (card.memory_bytes_per_second * card.memory)
  if not done.flops:
    return moving + card.launch_seconds
  share = card.attention if done.kind == 'attention' else card.matmul * filled(done, card)
  return max(done.flops / (_peak(done.dtype, card) * share), moving) + card.launch_seconds


def filled(done: Work, card: Card) -> float:
  """Share of a GPU's cores that a product keeps busy: tiles come in whole waves over them.

  Of the tiles that cuBLAS has, the best for this shape counts.
  """
  if card.gpu is None or len(done.shape) != 2:
    return 1.0
  rows, columns = done.shape
  shares = []
  for tile, share in _TILES.items():
    tiles = math.ceil(rows / tile[0]) * math.ceil(columns / tile[1])
    waves = math.ceil(tiles / card.gpu.cores)
    shares.append(share * rows * columns / (tile[0] * tile[1]) / (waves * card.gpu.cores))
  return max(shares)


def _peak(dtype: str, card: Card) -> float:
  names = {'bf16': 'bfloat16', 'f16': 'bfloat16', 'f32': 'float32'}
  return card.flops[names.get(dtype, 'float8' if dtype.startswith('f8') else 'float32')]
