"""`bench_train`: a training step of lmjax beside the same step in torch, and beside the machine's limit.

Two decoders of Llama's shape, 13.8M and 110M parameters, on steps of 1,024 and 4,096 tokens, in f32 and
bf16; on a GPU one of 1.3B too, where asked. Every contestant is a process of its own (lmjax/bench/contest.py).
"""

import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.bench import contest
from lmjax.bench.contest import Contest, Figure, Side
from lmjax.bench.side import Turn
from lmjax.core import processor
from lmjax.core.compilation import compile_lowered
from lmjax.core.config import leaf
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task, device
from lmjax.core.types import Batch
from lmjax.models.transformer import Decoder
from lmjax.objectives.language import Language
from lmjax.optim.optimizer import AdamW
from lmjax.parallel.accelerator import preset
from lmjax.train.state import TrainState, init_state
from lmjax.train.step import Step, make_step

_DTYPES = {'f32': 'float32', 'bf16': 'bfloat16'}
_GEMM = {'cpu': 2048, 'gpu': 8192}
SHAPES = {
  '13.8m': {'width': 320, 'layers': 8, 'heads': 5, 'mlp': 1024, 'vocab': 8192},
  '110m': {'width': 768, 'layers': 12, 'heads': 12, 'mlp': 2048, 'vocab': 32_000},
  '1.3b': {'width': 2048, 'layers': 24, 'heads': 16, 'mlp': 5632, 'vocab': 32_000},
}


class BenchTrain(Task):
  """Times a training step beside torch, eager and compiled, and beside the peak of matrix products."""

  shapes: tuple[Literal['13.8m', '110m', '1.3b'], ...] = leaf(
    ('13.8m', '110m'), 'Models, by parameters.'
  )
  tokens: tuple[int, ...] = leaf((1024, 4096), 'Tokens of a step, multiples of length.', low=1)
  length: int = leaf(256, 'Tokens of a row.', low=2)
  dtypes: tuple[Literal['f32', 'bf16'], ...] = leaf(
    ('f32', 'bf16'), 'Compute dtypes; bf16 is left out on a CPU that has no products in it.'
  )
  rounds: int = leaf(5, 'Turns that each contestant takes.', low=1)
  seconds: float = leaf(3.0, 'Roughly how long a turn is.', above=0.0)
  peers: bool = leaf(True, 'Run torch too, of the extra [bench].')

  def __post_init__(self) -> None:
    super().__post_init__()
    for tokens in self.tokens:
      if tokens % self.length:
        nearest = tokens // self.length * self.length
        raise UserError(
          f'tokens={tokens} is not a multiple of length={self.length}: the nearest are '
          f'{nearest or self.length} and {(nearest or self.length) + self.length}'
        )

  def run(self, workdir: Path) -> Report:
    cells = {}
    dtypes = [dtype for dtype in self.dtypes if dtype == 'f32' or processor.multiplies_bf16()]
    if len(dtypes) < len(self.dtypes):
      print('bf16 is left out: this CPU has no products in it, and torch takes minutes for a step')
    for name in self.shapes:
      for tokens in self.tokens:
        for dtype in dtypes:
          label = f'{name}, {tokens:,} tokens, {dtype}'
          print(label, flush=True)
          cells[label] = self._cell(name, tokens, dtype, workdir)
    return report(cells)

  def _cell(self, name: str, tokens: int, dtype: str, workdir: Path) -> dict[str, Any]:
    """Medians, spreads and ratios of one model, step size and dtype."""
    shape = {**SHAPES[name], 'length': self.length, 'rows': tokens // self.length}
    flops = tokens * model_of(shape, dtype).flops_per_token(self.length)
    settings = {**shape, 'dtype': _DTYPES[dtype], 'seconds': self.seconds}
    sides = [
      contest.ours('lmjax', f'{__name__}:step_turn', settings),
      contest.ours('peak', f'{__name__}:gemm_turn', {'dtype': _DTYPES[dtype]}),
    ]
    if self.peers:
      for compiled, mode in ((False, 'eager'), (True, 'compile')):
        peer = {**settings, 'compile': compiled}
        sides.append(contest.peer(f'torch_{mode}', 'train.py', peer))
    return figures(contest.compete(sides, self.rounds, workdir / 'stderr.log'), sides, flops, dtype)


def figures(found: Contest, sides: list[Side], flops: float, dtype: str) -> dict[str, Any]:
  """Medians, spreads and ratios of a contest whose step has `flops`."""
  of_peak = [
    flops / step.figures['seconds'] / peak.figures['flops_per_second']
    for step, peak in zip(found.turns['lmjax'], found.turns['peak'], strict=True)
  ]
  ratios = {f'{dtype}_of_peak': Figure.of(of_peak)}
  for side in sides:
    if side.name.startswith('torch'):
      ratios[f'{dtype}_vs_{side.name}'] = found.ratio(side.name, 'lmjax', 'seconds')
  seconds = {
    side.name: found.figure(side.name, 'seconds')._asdict() for side in sides if side.name != 'peak'
  }
  return {
    'seconds': seconds,
    'peak_gflops': found.figure('peak', 'gflops')._asdict(),
    'ratios': {name: figure._asdict() for name, figure in ratios.items()},
    'disturbed_turns': found.disturbed,
  }


def report(cells: dict[str, dict[str, Any]]) -> Report:
  """The report of all cells; of each ratio the cell where lmjax does worst counts."""
  ratios: dict[str, float] = {}
  for cell in cells.values():
    for name, figure in cell['ratios'].items():
      ratios[name] = min(figure['median'], ratios.get(name, figure['median']))
  return {'ratios': ratios, 'cells': cells, 'cores': processor.cores(), 'device': device()}


def model_of(shape: dict[str, Any], dtype: str) -> Decoder:
  heads = shape['heads']
  return Decoder(
    vocab=shape['vocab'],
    width=shape['width'],
    layers=shape['layers'],
    heads=heads,
    kv_heads=heads,
    head_dim=shape['width'] // heads,
    mlp=shape['mlp'],
    dtype=_DTYPES.get(dtype, dtype),  # type: ignore[arg-type]
    layout='list',
    attention_block=64,
  )


class Work(NamedTuple):
  """A compiled step and what it is given."""

  step: Any
  state: TrainState
  batch: Batch


def work_of(settings: dict[str, Any]) -> Work:
  """The train step of `settings` on rows of random tokens."""
  model = model_of(settings, settings['dtype'])
  tx = AdamW(peak_lr=1e-4, clip_norm=None).build(model.dims(), 1000)
  # A GPU has room for all logits of a step; a CPU is faster where those of a chunk stay in its cache.
  on_cpu = jax.default_backend() == 'cpu'
  chunk = max(32, 512 // settings['rows']) if on_cpu else settings['length']
  step = make_step(Language(chunk=chunk), model, tx, 1)
  state = jax.jit(lambda: init_state(model, tx, 0))()
  shape = (settings['rows'], settings['length'])
  tokens = np.random.default_rng(0).integers(
    0, settings['vocab'], (shape[0], shape[1] + 1), np.int32
  )
  batch = Batch(
    tokens_BL=jnp.asarray(tokens[:, :-1]),
    targets_BL=jnp.asarray(tokens[:, 1:]),
    weights_BL=jnp.ones(shape),
    segments_BL=jnp.ones(shape, jnp.int32),
    positions_BL=jnp.broadcast_to(jnp.arange(shape[1]), shape),
  )
  return Work(compile_step(step, state, batch), state, batch)


def compile_step(step: Step, state: TrainState, batch: Batch) -> Any:
  """`step` as a run compiles it, on one device."""
  lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
  return compile_lowered(lowered, preset(jax.devices()[0].device_kind).compiler_options)


def step_turn(settings: dict[str, Any]) -> Turn:
  """Takes warm steps; a turn is as many as take about `seconds`, after one that is not counted.

  While others have their turns a virtual machine takes freed memory back: the first step after waits for it.
  """
  step, state, batch = work_of(settings)

  def take(count: int) -> float:
    nonlocal state
    start = time.perf_counter()
    for _ in range(count):
      state, metrics = step(state, batch)
    jax.block_until_ready(state)
    del metrics
    return (time.perf_counter() - start) / count

  def turn() -> dict[str, Any]:
    take(1)
    return {'seconds': take(count)}

  take(2)
  count = max(1, round(settings['seconds'] / take(1)))
  return turn


def gemm_turn(settings: dict[str, Any]) -> Turn:
  """The peak: products of square matrices with f32 results."""
  width = _GEMM[jax.default_backend()]
  x = jax.random.normal(jax.random.key(0), (width, width), settings['dtype'])
  multiply = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))

  def turn() -> dict[str, Any]:
    start = time.perf_counter()
    for _ in range(8):
      y = multiply(x)
    y.block_until_ready()
    rate = 8 * 2 * width**3 / (time.perf_counter() - start)
    return {'flops_per_second': rate, 'gflops': rate / 1e9}

  turn()
  return turn
