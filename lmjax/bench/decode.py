"""How fast tokens follow one another, and prompts are read: beside transformers' generate.

Decoding one sequence reads every weight once a token, so the machine's read bandwidth bounds it: the
report says which share of that is reached. Weights are random, which changes no time.
"""

import math
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.bench.contest import Contest, Figure, Side, compete, ours, peer
from lmjax.core import processor
from lmjax.core.compilation import keep_compiled
from lmjax.core.config import leaf
from lmjax.core.task import Report, Task
from lmjax.core.types import Params
from lmjax.generate.engine import generate
from lmjax.generate.prepare import prepare
from lmjax.generate.sampler import Sampler
from lmjax.models.transformer import Decoder
from lmjax.plan.chips import read_rate

# Llama's shape: one of 110M parameters, and that of SmolLM2-135M; both tied.
_NAMES = ('vocab', 'width', 'layers', 'heads', 'kv_heads', 'head_dim', 'mlp')
SHAPES = {
  '110m': dict(zip(_NAMES, (32_000, 768, 12, 12, 12, 64, 2048), strict=True)),
  '135m': dict(zip(_NAMES, (49_152, 576, 30, 9, 3, 64, 1536), strict=True)),
}
_PROMPT, _LONG_PROMPT = 32, 512
_BATCH = 8
_READ_BYTES = 1 << 30
_READS = 5  # of a turn
_DTYPES = {'110m': ('float32', 'bfloat16'), '135m': ('float32',)}


class Decode(Task):
  """Measures tokens a second of decoders with 110M and 135M parameters, beside transformers.

  Every side is a process of its own; they are made ready, then take turns, so that what slows the
  machine down slows all. A turn decodes one sequence, decodes eight (f32, 110M) and reads a prompt of
  512 tokens (110M), after a prompt of 32; a plain read of 1 GiB on all cores takes turns with them. Ratios are
  medians over the rounds of what the sides did in the same round, with their lowest and highest beside.
  """

  rounds: int = leaf(3, 'Turns that every side takes; the medians are reported.', low=1)
  tokens: int = leaf(32, 'Tokens decoded in a turn.', low=2)
  peers: bool = leaf(True, "Also run transformers (extra [bench]); else only lmjax's own speed.")

  def run(self, workdir: Path) -> Report:
    """Prints a table; the report holds medians, spreads and ratios."""
    contest = compete(self._sides(), self.rounds, workdir / 'sides.log')
    rows = {
      side: {name: contest.figure(side, name) for name in turns[0].figures}
      for side, turns in contest.turns.items()
    }
    for side, figures in rows.items():
      for name, figure in figures.items():
        print(f'{side:28} {name:16} {figure}')
    ratios = self._ratios(contest)
    for name, figure in ratios.items():
      print(f'{name:40} {figure}')
    return {
      'ratios': {name: figure.median for name, figure in ratios.items()},
      'spreads': {name: [figure.low, figure.high] for name, figure in ratios.items()},
      'sides': {
        side: {name: figure._asdict() for name, figure in figures.items()}
        for side, figures in rows.items()
      },
      'disturbed_turns': contest.disturbed,
      'rounds': self.rounds,
      'cores': processor.cores(),
    }

  def _sides(self) -> list[Side]:
    sides = [ours('read', 'lmjax.bench.decode:read_side', {})]
    for size, shape in SHAPES.items():
      for dtype in _DTYPES[size]:
        settings = {'shape': shape, 'dtype': dtype, 'cases': self._cases(size, dtype)}
        sides.append(ours(f'lmjax {size} {dtype}', 'lmjax.bench.decode:side', settings))
        if self.peers:
          sides.append(peer(f'transformers {size} {dtype}', 'decode.py', settings))
    return sides

  def _cases(self, size: str, dtype: str) -> list[dict[str, Any]]:
    case = lambda name, batch, prompt, tokens: {
      'name': name,
      'batch': batch,
      'prompt': prompt,
      'tokens': tokens,
    }
    cases = [case('b1', 1, _PROMPT, self.tokens)]
    if size == '110m':
      cases.append(case('prefill', 1, _LONG_PROMPT, 1))
      if dtype == 'float32':
        cases.append(case('b8', _BATCH, _PROMPT, self.tokens))
    return cases

  def _ratios(self, contest: Contest) -> dict[str, Figure]:
    ratios = {}
    if self.peers:
      for name, size in (('b1', '110m'), ('b1', '135m'), ('b8', '110m')):
        above, below = f'lmjax {size} float32', f'transformers {size} float32'
        ratios[f'f32_{name}_{size}_vs_transformers'] = contest.ratio(above, below, name)
      for name, case in (('best_b1', 'b1'), ('prefill_512', 'prefill')):
        above, below = (_best(contest, program, case) for program in ('lmjax', 'transformers'))
        ratios[f'{name}_vs_transformers_best'] = contest.ratio(above, below, case)
    for name, read in (('bandwidth_share', 'best'), ('bandwidth_share_of_median_read', 'median')):
      ratios[name] = min(_bandwidth_share(contest, size, read) for size in SHAPES)
    return ratios


def _best(contest: Contest, program: str, case: str) -> str:
  """The side of `program` on the 110M decoder whose dtype is fastest in `case`."""
  return max(
    (f'{program} 110m {dtype}' for dtype in _DTYPES['110m']),
    key=lambda side: contest.figure(side, case).median,
  )


def _bandwidth_share(contest: Contest, size: str, name: str) -> Figure:
  """Bytes of weights that f32 decoding reads a second, over those of the `name` plain read of a turn."""
  sides = contest.turns[f'lmjax {size} float32'], contest.turns['read']
  return Figure.of(
    [
      decode.figures['b1'] * decode.figures['bytes_a_token'] / read.figures[name]
      for decode, read in zip(*sides, strict=True)
    ]
  )


def side(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
  """Our side: `settings` as of tools/bench/peers/decode.py."""
  keep_compiled()
  model, params = prepare(*random_model(settings['shape'], settings['dtype']))
  matrices = params | {'embed': params['embed'][:0]}  # of the table, one row a token is read

  def turn() -> dict[str, Any]:
    rates = {case['name']: _tokens_per_second(model, params, case) for case in settings['cases']}
    return rates | {'bytes_a_token': sum(x.nbytes for x in jax.tree.leaves(matrices))}

  turn()
  return turn


def random_model(shape: dict[str, int], dtype: str) -> tuple[Decoder, Params]:
  """A decoder of `shape` and random parameters, nothing at zero."""
  model: Any = Decoder(**shape, dtype=dtype)  # type: ignore[arg-type]
  shapes = model.shapes()
  rng = np.random.default_rng(0)
  draw = lambda x: rng.standard_normal(math.prod(x.shape), np.float32).reshape(x.shape) * 0.02
  return model, jax.tree.map(lambda x: jax.numpy.asarray(draw(x)), shapes)


def _tokens_per_second(model: Decoder, params: Params, case: dict[str, Any]) -> float:
  """New tokens after the first, or those of the prompt where one is all there is."""
  batch, prompt, tokens = case['batch'], case['prompt'], case['tokens']
  rng = np.random.default_rng(1)
  prompts = list(rng.integers(0, model.vocab, (batch, prompt)).astype(np.int32))
  prefill = _seconds(model, params, prompts, 1)
  if tokens == 1:
    return batch * prompt / prefill
  return batch * (tokens - 1) / (_seconds(model, params, prompts, tokens) - prefill)


def _seconds(model: Decoder, params: Params, prompts: list[np.ndarray], tokens: int) -> float:
  assert model.vocab is not None
  start = time.perf_counter()
  new = generate(
    model,
    params,
    prompts,
    sampler=Sampler(temperature=0.0),
    max_tokens=tokens,
    end=-1,  # no token ends a row
    vocab=model.vocab,
    seed=0,
  )
  assert all(len(row) == tokens for row in new)
  return time.perf_counter() - start


def read_side(_: dict[str, Any]) -> Callable[[], dict[str, Any]]:
  """Bytes a second that memory is read at, a GPU's or by all cores: the maximum of a large array.

  The best of a turn's reads is what the memory can, the median what there was of it in that turn, as
  others on a shared machine read too.
  """
  if jax.default_backend() != 'cpu':
    return lambda: dict.fromkeys(('best', 'median'), read_rate(_READ_BYTES))
  pieces = np.array_split(np.ones(_READ_BYTES // 8, np.int64), processor.cores())

  def read() -> float:
    start = time.perf_counter()
    threads = [threading.Thread(target=np.max, args=(piece,)) for piece in pieces]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return time.perf_counter() - start

  def turn() -> dict[str, Any]:
    rates = [_READ_BYTES / read() for _ in range(_READS)]
    return {'best': max(rates), 'median': statistics.median(rates)}

  return turn
