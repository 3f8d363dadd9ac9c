"""Constants of accelerators and links, each with its source: the one table of the time model.

A user's own card is one `Card`, passed as `--accelerator=package.module:NAME`; it may start from one
of the table:

    H100 = CARDS['h100']
    MINE = dataclasses.replace(
      H100, dollars=22_500.0, sources={**H100.sources, 'dollars': 'our offer of May'}
    )
"""

import dataclasses
import functools
import importlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lmjax.core.clock import peak_flops
from lmjax.core.errors import UserError, nearest
from lmjax.parallel.topology import GPUS, Gpu
from lmjax.plan import machine

GB = 10**9
GIB = 2**30


class Link(NamedTuple):
  """What one device has towards others: bytes a second that it sends, and seconds of one hop."""

  bytes_per_second: float
  latency_seconds: float


@dataclass(frozen=True, kw_only=True)
class Card:
  """One kind of accelerator and the machine around it.

  Attributes:
    name: in words.
    gpu: what XLA's compiler is told of it; None: this machine's CPU.
    flops: dense peak FLOP/s by dtype of operands; 'float32' is TF32 on GPUs.
    memory_bytes, memory_bytes_per_second: of its own memory.
    node: how many share the fast links.
    inside, between, host: links in a node, from node to node, and to the host's memory.
    memory_fraction: share of the memory that XLA's allocator is given.
    reserve_bytes: what CUDA and NCCL take for themselves.
    watts, server_watts: of the card, and its share of the machine around it, under load; None: not
      known.
    dollars, dollars_hour: to buy one, and to rent one for an hour; None: not known.
    matmul, attention: share of the peak that large products and the attention kernel reach.
    memory: share of the memory's rate that what is bound by it reaches.
    link_inside, link_between: share of a link's rate that NCCL reaches.
    launch_seconds: what a kernel takes beside its work.
    sources: field -> where its number is from; what it leaves out is the user's own.

  Raises:
    UserError: a number that cannot be.
  """

  name: str
  gpu: Gpu | None
  flops: Mapping[str, float]
  memory_bytes: float
  memory_bytes_per_second: float
  node: int
  inside: Link
  between: Link
  host: Link
  memory_fraction: float = 0.92
  reserve_bytes: float = 2.5 * GIB
  watts: float | None
  server_watts: float | None
  dollars: float | None
  dollars_hour: float | None
  matmul: float
  attention: float
  memory: float
  link_inside: float
  link_between: float
  launch_seconds: float
  sources: Mapping[str, str]

  def __post_init__(self) -> None:
    for name in (*_SHARES, 'memory_fraction'):
      if not 0 < getattr(self, name) <= 1:
        raise UserError(
          f'card {self.name}: {name}={getattr(self, name)}: expected a share above 0 and at most 1'
        )
    for name in ('memory_bytes', 'memory_bytes_per_second', 'node'):
      if not getattr(self, name) > 0:
        raise UserError(
          f'card {self.name}: {name}={getattr(self, name)}: expected a number above 0'
        )
    if not {'float32', 'bfloat16'} <= self.flops.keys() or min(self.flops.values()) <= 0:
      raise UserError(
        f'card {self.name}: flops={dict(self.flops)}: expected FLOP/s above 0 of float32 and bfloat16'
      )
    own = dict.fromkeys(sourced(), 'your own')
    object.__setattr__(self, 'sources', own | dict(self.sources))

  @property
  def usable_bytes(self) -> float:
    """What a program may take.

    On the safe side: CUDA and NCCL allocate outside XLA's share, where the rest of the memory may be
    enough for them.
    """
    return self.memory_bytes * self.memory_fraction - self.reserve_bytes

  def among(self, devices: int) -> 'Card':
    """What one of so many devices has: of this machine's CPU, its part of what all share."""
    if self.gpu is not None:
      return self
    return dataclasses.replace(
      self,
      flops={dtype: flops / devices for dtype, flops in self.flops.items()},
      memory_bytes=self.memory_bytes / devices,
      memory_bytes_per_second=self.memory_bytes_per_second / devices,
    )


_FITTED = 'fitted on MaxText Llama2-7B on 8 H100s, see lmjax/plan/backtest.py'
_NOT_FITTED = "as the H100's: not fitted"
_ATTENTION = (
  'FlashAttention-2, which the Triton kernel that comes with JAX follows, on an H100: some 350 of '
  '989 TFLOP/s (arXiv:2407.08608, section 1)'
)


def sourced() -> list[str]:
  """Names of the fields of a `Card` that hold numbers: each has a source."""
  return [
    field.name for field in dataclasses.fields(Card) if field.name not in ('name', 'gpu', 'sources')
  ]


_HOP = (
  'latency: a hop of a ring in src/graph/tuning.cc of NCCL 2.19 to 2.27, protocol LL128 (Simple: 3.4 us '
  'over NVLink, 14 us over a network)'
)
_CLOUDS = (
  'a judgement from what clouds asked on demand in spring 2026: A100 $0.8 to 3, H100 $2 to 5, H200 '
  '$2.5 to 7, B200 $4.5 to 8, GB200 $4.5 to 10.5 (price indices of Mercatus, Lyceum and Spheron)'
)
_SHARES = {
  'matmul': 0.708,
  'attention': 0.35,
  'memory': 0.85,
  'link_inside': 0.8,
  'link_between': 0.88,
}


def _nvidia(key: str, sheet: str, *, fitted: bool = False, **numbers) -> Card:
  """A card of NVIDIA's; what is not given is as for all of them."""
  gpu = GPUS[key]
  efficiency = _FITTED if fitted else _NOT_FITTED
  sources = {
    'flops': f'{sheet}, dense; float32: TF32',
    'memory_bytes': "XLA's target configuration of this GPU",
    'memory_bytes_per_second': "XLA's target configuration of this GPU",
    'node': sheet,
    'inside': f'{sheet}, NVLink, one direction; {_HOP}',
    'between': f'{sheet}, one network card a GPU; {_HOP}',
    'host': f'{sheet}, PCIe or C2C, one direction, less a tenth for its protocol; latency: a judgement',
    'memory_fraction': "XLA_CLIENT_MEM_FRACTION=.92, which runs must set: JAX's default is .75",
    'reserve_bytes': 'a judgement: CUDA context 0.5 GiB, and NCCL, which took 0.7 GB a communicator '
    '(github.com/NVIDIA/nccl, issue 964) and 3.3 GB for an all-to-all of 8 H100s (issue 1685)',
    'watts': f'{sheet}, the most of the board',
    'server_watts': 'the most that its server draws (DGX A100 6.5 kW, DGX H100 and H200 10.2, DGX '
    'B200 14.3, a rack of GB200 NVL72 about 120), divided by its GPUs, less the board',
    'dollars': 'given: $10,000 a card',
    'dollars_hour': _CLOUDS,
    'matmul': efficiency,
    'attention': _ATTENTION,
    'memory': 'a judgement: what large copies and fused elementwise kernels reach',
    'link_inside': 'a judgement: large collectives of 8 H100s reach some 350 of 450 GB/s '
    '(github.com/NVIDIA/nccl, issue 864)',
    'link_between': 'a judgement: at best 46 to 48 of 50 GB/s a card (github.com/NVIDIA/nccl-tests, '
    'issue 290), less over many hosts',
    'launch_seconds': 'a kernel of a few elements under a full queue: a judgement',
  }
  return Card(
    name=gpu.name,
    gpu=gpu,
    memory_bytes=gpu.memory_bytes,
    memory_bytes_per_second=gpu.memory_bytes_per_second,
    sources=sources,
    **{'launch_seconds': 3e-6, 'dollars': 10_000.0, **_SHARES, **numbers},
  )


CARDS: dict[str, Card] = {
  'a100': _nvidia(
    'a100',
    'NVIDIA A100 and DGX A100 data sheets',
    flops={'float32': 156e12, 'bfloat16': 312e12},
    node=8,
    inside=Link(300 * GB, 1.9e-6),
    between=Link(25 * GB, 4e-6),
    host=Link(28 * GB, 10e-6),
    watts=400.0,
    server_watts=412.0,
    dollars_hour=1.5,
  ),
  'h100': _nvidia(
    'h100',
    'NVIDIA H100 SXM and DGX H100 data sheets',
    fitted=True,
    flops={'float32': 494e12, 'bfloat16': 989e12, 'float8': 1979e12},
    node=8,
    inside=Link(450 * GB, 1.9e-6),
    between=Link(50 * GB, 4e-6),
    host=Link(57 * GB, 10e-6),
    watts=700.0,
    server_watts=575.0,
    dollars_hour=2.5,
  ),
  'h200': _nvidia(
    'h200',
    'NVIDIA H200 SXM and DGX H200 data sheets',
    flops={'float32': 494e12, 'bfloat16': 989e12, 'float8': 1979e12},
    node=8,
    inside=Link(450 * GB, 1.9e-6),
    between=Link(50 * GB, 4e-6),
    host=Link(57 * GB, 10e-6),
    watts=700.0,
    server_watts=575.0,
    dollars_hour=3.0,
  ),
  'b200': _nvidia(
    'b200',
    'NVIDIA DGX B200 data sheet',
    flops={'float32': 1100e12, 'bfloat16': 2250e12, 'float8': 4500e12},
    node=8,
    inside=Link(900 * GB, 1.9e-6),
    between=Link(50 * GB, 4e-6),
    host=Link(57 * GB, 10e-6),
    watts=1000.0,
    server_watts=788.0,
    dollars_hour=4.5,
  ),
  'gb200': _nvidia(
    'gb200',
    'NVIDIA GB200 NVL72 data sheet',
    flops={'float32': 1250e12, 'bfloat16': 2500e12, 'float8': 5000e12},
    node=72,
    inside=Link(900 * GB, 1.9e-6),
    between=Link(50 * GB, 4e-6),
    host=Link(200 * GB, 10e-6),
    watts=1200.0,
    server_watts=470.0,
    dollars_hour=5.5,
  ),
}


def find(name: str) -> Card:
  """A card of the table, 'cpu' for this machine, or the user's own as 'package.module:NAME'.

  Raises:
    UserError: there is no such card.
  """
  if name == 'cpu':
    return measured()
  if ':' in name:
    return _find_outside(name)
  if name not in CARDS:
    raise UserError(f'unknown accelerator {name!r}: {nearest(name, [*CARDS, "cpu"])}')
  return CARDS[name]


def _find_outside(name: str) -> Card:
  module, _, constant = name.partition(':')
  try:
    names = vars(importlib.import_module(module))
  except Exception as error:  # whatever the user's own module raises
    raise UserError(
      f'--accelerator={name}: {type(error).__name__}: {error}: start from its folder, or set PYTHONPATH'
    ) from None
  if not isinstance(names.get(constant), Card):
    known = [key for key, value in names.items() if isinstance(value, Card)]
    raise UserError(
      f'--accelerator={name}: {module} has no lmjax.plan.cards.Card {constant!r}: '
      f'{nearest(constant, known)}'
    )
  return names[constant]


@functools.cache
def measured() -> Card:
  """This machine's CPU: peaks and memory rate as measured in some seconds, links through its memory.

  One device is the whole machine: several that share its cores are each slower.

  Raises:
    UserError: JAX does not run on the CPU here.
  """
  import jax

  if jax.default_backend() != 'cpu':
    raise UserError(
      f"accelerator=cpu measures this machine's CPU, but JAX runs on its {jax.default_backend()}: set "
      'JAX_PLATFORMS=cpu'
    )
  rate = _copy_rate()
  peaks = {name: peak_flops(name) for name in ('float32', 'bfloat16')}
  copies = 'a copy in its memory, measured here; latency: a judgement'
  link = Link(rate / 2, 10e-6)
  return Card(
    name='this CPU',
    gpu=None,
    flops={name: flops for name, (flops, _) in peaks.items()},
    memory_bytes=machine.memory_free() or os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
    memory_bytes_per_second=rate,
    memory_fraction=1.0,
    reserve_bytes=0.0,
    node=1 << 20,
    inside=link,
    between=link,
    host=link,
    watts=None,
    server_watts=None,
    dollars=None,
    dollars_hour=None,
    **dict.fromkeys(_SHARES, 1.0),
    launch_seconds=5e-6,
    sources={
      'flops': '; '.join(source for _, source in peaks.values()),
      'memory_bytes': 'free memory, measured here',
      'memory_bytes_per_second': 'reading and writing 256 MiB, measured here',
      **dict.fromkeys(('inside', 'between', 'host'), copies),
      'node': 'all devices are on this machine',
      **dict.fromkeys(('memory_fraction', 'reserve_bytes'), 'of the free memory, measured here'),
      **dict.fromkeys(('watts', 'server_watts', 'dollars', 'dollars_hour'), 'not known'),
      **dict.fromkeys(_SHARES, 'of what was measured here'),
      'launch_seconds': 'a call of XLA:CPU: a judgement',
    },
  )


def _copy_rate() -> float:
  """Bytes a second that XLA reads and writes when it changes a large array: the best of some tries."""
  import jax
  import jax.numpy as jnp

  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  large = add(jnp.zeros(1 << 26, jnp.float32)).block_until_ready()
  tries = []
  for _ in range(5):
    start = time.perf_counter()
    large = add(large).block_until_ready()
    tries.append(time.perf_counter() - start)
  return 2 * large.nbytes / min(tries)
