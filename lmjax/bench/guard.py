"""`bench_guard`: has anything that lmjax does become slower, or larger, than it was?

Each kind of work is measured beside a reference computation in the same process, one after the other,
and their ratio depends less on how busy the machine is than seconds, which are never compared. The
reference is a product of matrices that fit the cache; beside a plain read of memory, which others on a
shared machine slow down, ratios were up to twice apart. What the compiler says (instructions, memory)
needs no clock at all. The figures to hold stand in guard.json, for each kind of processor and number of
cores; `--update` writes those of this machine. Exit code 1 if anything is worse.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.bench.train import work_of
from lmjax.core import processor
from lmjax.core.config import leaf
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task
from lmjax.data.packing import fill, plan
from lmjax.generate.engine import generate
from lmjax.generate.prepare import prepare
from lmjax.generate.sampler import Sampler
from lmjax.models.transformer import Decoder

_HELD = Path(__file__).with_name('guard.json')
_SHAPE = {'width': 256, 'layers': 4, 'heads': 4, 'mlp': 1024, 'vocab': 4096, 'length': 128}
_GEMM = 1024
_POSTS = 4096


class BenchGuard(Task):
  """Compares ratios of work to reference computations with those that were held; says what is worse."""

  rounds: int = leaf(15, 'Times that each pair is measured; the median counts.', low=1)
  allowed: float = leaf(
    1.3, 'A time ratio that is so much more than the held one is worse.', above=1
  )
  allowed_size: float = leaf(1.05, 'The same for what the compiler counts.', above=1)
  update: bool = leaf(False, 'Hold the figures of this machine from now on.')

  def run(self, workdir: Path) -> Report:
    del workdir
    kind = f'{processor.name()} {processor.kind()}, {processor.cores()} cores'
    ratios, sizes = measure(self.rounds)
    held = json.loads(_HELD.read_text(encoding='utf-8'))
    if self.update:
      held[kind] = {'ratios': ratios, 'sizes': sizes}
      _HELD.write_text(json.dumps(held, indent=2, sort_keys=True) + '\n', encoding='utf-8')
      print(f'held for {kind} in {_HELD}')
    known = held.get(kind)
    worse = []
    if known is None:
      print(f'nothing is held for {kind}: --update holds the figures of this machine')
    else:
      worse = compare(ratios, known['ratios'], self.allowed)
      worse += compare(sizes, known['sizes'], self.allowed_size)
    for sentence in worse:
      print(f'worse: {sentence}')
    found = {'ratios': ratios, 'sizes': sizes}
    return {**found, 'held': known, 'worse': worse, 'ok': not worse}


def compare(found: dict[str, float], held: dict[str, float], allowed: float) -> list[str]:
  """A sentence for each figure that is more than `allowed` times the held one; prints all."""
  worse = []
  for name, value in found.items():
    if name not in held:
      raise UserError(f'guard.json holds no {name}: pass --update')
    times = value / held[name]
    print(f'{name:28} {value:12.4g}   held {held[name]:12.4g}   {times:5.2f} times')
    if times > allowed:
      worse.append(f'{name} is {times:.2f} times what it was, {allowed:g} is allowed')
  return worse


def measure(rounds: int) -> tuple[dict[str, float], dict[str, float]]:
  """Ratios of times by name, and what the compiler counts by name."""
  step, sizes = _step()
  works = {'train_step': step, 'decode_token': _decode(), 'pack_posts': _pack()}
  gemm = _gemm()
  return {f'{name} / gemm': _ratio(work, gemm, rounds) for name, work in works.items()}, sizes


def _ratio(work: Callable[[], Any], reference: Callable[[], Any], rounds: int) -> float:
  """The median over `rounds` of seconds of `work` over seconds of `reference`, each taken in turn."""
  return statistics.median(_seconds(work) / _seconds(reference) for _ in range(rounds))


def _seconds(work: Callable[[], Any]) -> float:
  start = time.perf_counter()
  jax.block_until_ready(work())
  return time.perf_counter() - start


def _gemm() -> Callable[[], Any]:
  square = jnp.ones((_GEMM, _GEMM))
  multiply = jax.jit(jnp.matmul)
  multiply(square, square).block_until_ready()
  return lambda: [multiply(square, square) for _ in range(16)]


def _step() -> tuple[Callable[[], Any], dict[str, float]]:
  """A warm training step, and the size of its program."""
  work = work_of({**_SHAPE, 'rows': 8, 'dtype': 'float32'})
  compiled = work.step
  memory: Any = compiled.memory_analysis()
  text = compiled.as_text() or ''
  sizes = {
    'step: instructions': float(sum(' = ' in line for line in text.splitlines())),
    'step: temporary bytes': float(memory.temp_size_in_bytes),
  }
  state = work.state

  def take() -> Any:
    nonlocal state
    state, metrics = compiled(state, work.batch)
    return metrics

  jax.block_until_ready(take())
  return take, sizes


def _decode() -> Callable[[], Any]:
  """Thirty-two tokens of one sequence."""
  heads = _SHAPE['heads']
  names = ('vocab', 'width', 'layers', 'mlp')
  shape: dict[str, Any] = {name: _SHAPE[name] for name in names}
  model = Decoder(**shape, heads=heads, kv_heads=heads)
  model, params = prepare(model, model.init(jax.random.key(0)))
  prompt = [np.arange(1, 17, dtype=np.int32)]
  write = lambda: generate(
    model,
    params,
    prompt,
    sampler=Sampler(temperature=0.0),
    max_tokens=32,
    end=_SHAPE['vocab'],  # which is never drawn
    vocab=_SHAPE['vocab'],
    seed=0,
  )
  write()
  return write


def _pack() -> Callable[[], Any]:
  """Four thousand posts packed into rows."""
  draw = np.random.default_rng(0)
  lengths = draw.integers(5, 60, _POSTS)
  posts = [np.ones(length, np.int32) for length in lengths]

  def pack() -> Any:
    pieces = plan(lengths, 128, 'best_fit')
    rows = int(pieces.row[-1]) + 1
    return fill(pieces, [posts[post] for post in pieces.post], rows, 128, start=0, end=1).tokens_BL

  pack()
  return pack
