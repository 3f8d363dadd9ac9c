"""How fast a server answers many at once: lmjax's, and others that speak the same API.

Requests arrive when they like, whatever became of those before (an open loop): a Poisson process of
`clients` / `gap_seconds` requests a second. Prompts are real posts. Each server has its turn alone.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmjax.bench.contest import PEERS, has_torch
from lmjax.core import processor
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task
from lmjax.data.sources import Posts, Rows
from lmjax.interop import huggingface
from lmjax.interop.load import CHECKPOINT, load

_START_SECONDS = 600.0
_ASK = 'Write a short comment on this post: '
_SERVED = re.compile(r'served at (http://\S+)')


class BenchServe(Task):
  """Tokens a second, and the time to a first token and between tokens, beside transformers.

  The peer is transformers' generate over batches of up to 16, behind the same API
  (tools/bench/peers/serve.py); any other server of that API may be named. Then ten times the arrivals
  of 16 clients come to lmjax's server, which should send most away and keep its promise to the rest.
  """

  checkpoint: str = leaf('smollm2-135m-instruct', CHECKPOINT)
  posts: Posts = part(Posts(), 'What prompts are made of.', inline=True)
  clients: tuple[int, ...] = leaf((1, 4, 16, 64), 'How many ask, each so often.', low=1)
  gap_seconds: float = leaf(
    10.0, 'Of one client from a request to the next, on average.', above=0.0
  )
  requests: int = leaf(2, 'Of each client.', low=1)
  tokens: int = leaf(64, 'Of an answer.', low=2)
  peers: bool = leaf(True, "Also run transformers (extra [bench]); else lmjax's server alone.")
  others: tuple[str, ...] = leaf(
    (), 'More servers of the same API that run already: NAME=http://HOST:PORT.'
  )
  overload: float = leaf(10.0, 'Times the arrivals of 16 clients; 0: leave it out.', low=0.0)
  seed: int = leaf(0, 'Of prompts and arrivals.', low=0)

  def run(self, workdir: Path) -> Report:
    """Prints a line a measurement; the report holds all of them."""
    prompts = self._prompts()
    found: dict[str, dict[str, Any]] = {str(n): {} for n in self.clients}
    queue = f'--batching.queue={max(self.clients) * self.requests}'
    with contextlib.ExitStack() as stack:
      systems = {'lmjax': stack.enter_context(_lmjax(self.checkpoint, workdir / 'lmjax', queue))}
      if self.peers:
        systems['transformers'] = stack.enter_context(self._transformers(workdir))
      systems |= dict(_read_other(other) for other in self.others)
      for n in self.clients:
        for name, address in systems.items():
          cell = measure(address, self._load(prompts, n / self.gap_seconds, n * self.requests))
          found[str(n)][name] = cell.summary()
          print(f'  {n} clients, {name}: {_shown(found[str(n)][name])}', flush=True)
    report: Report = {'clients': found, 'cores': processor.cores()}
    if self.overload:
      with _lmjax(self.checkpoint, workdir / 'overload') as address:
        report['overload'] = self._measure_overload(address, prompts)
      print(f'  overload: {report["overload"]}', flush=True)
    return report

  def _measure_overload(self, address: str, prompts: Sequence[str]) -> dict[str, Any]:
    """The share sent away, and the p99 time to a first token of the rest over that at 16 clients."""
    rate, count = 16 / self.gap_seconds, 16 * self.requests
    usual = measure(address, self._load(prompts, rate, count))
    many = int(count * self.overload)
    heavy = measure(address, self._load(prompts, rate * self.overload, many))
    ratio = heavy.percentile('firsts', 99) / usual.percentile('firsts', 99)
    same = {'requests': many, 'errors': heavy.errors}
    return {'shed': heavy.shed / many, 'p99_ratio': ratio, **same}

  def _prompts(self) -> list[str]:
    texts = [post.text for post, _ in zip(self.posts.read(Rows()), range(1000), strict=False)]
    order = np.random.default_rng(self.seed).permutation(len(texts))
    return [_ASK + texts[i] for i in order]

  def _load(self, prompts: Sequence[str], rate: float, count: int) -> list[tuple[float, dict]]:
    """(seconds after the start, body) of every request."""
    rng = np.random.default_rng(self.seed + count)
    times = np.cumsum(rng.exponential(1 / rate, count))
    same = {'max_tokens': self.tokens, 'temperature': 0.0, 'stream': True}
    same |= {'stream_options': {'include_usage': True}}
    bodies = [
      {**same, 'messages': [{'role': 'user', 'content': prompts[i % len(prompts)]}]}
      for i in rng.integers(0, len(prompts), count)
    ]
    return list(zip(times.tolist(), bodies, strict=True))

  @contextlib.contextmanager
  def _transformers(self, workdir: Path) -> Iterator[str]:
    script = PEERS / 'serve.py'
    if not script.exists() or not has_torch():
      raise UserError(
        "the peer needs torch and a checkout of lmjax: pip install 'lmjax[bench]', or pass --peers=false"
      )
    folder = workdir / 'hf'
    loaded = load(self.checkpoint)
    huggingface.save(
      folder,
      loaded.model,
      loaded.params,
      loaded.tokenizer,
      chat_template=loaded.chat_template,
      ends=loaded.ends,
      length=loaded.length,
      dtype='float32',
    )
    del loaded
    command = [sys.executable, str(script), str(folder)]
    with _started(command, workdir / 'transformers.log') as address:
      yield address


class Cell(NamedTuple):
  """What became of the requests of one measurement."""

  tokens: int
  seconds: float
  firsts: list[float]  # to the first token of each answer
  gaps: list[float]  # between tokens
  shed: int
  errors: int

  def percentile(self, field: str, q: float) -> float:
    values = getattr(self, field)
    return float(np.percentile(values, q)) if values else float('nan')

  def summary(self) -> dict[str, Any]:
    ms = lambda field, q: 1e3 * self.percentile(field, q)
    return {
      'tokens_per_second': self.tokens / self.seconds,
      'ttft_p50_ms': ms('firsts', 50),
      'ttft_p99_ms': ms('firsts', 99),
      'itl_p50_ms': ms('gaps', 50),
      'itl_p99_ms': ms('gaps', 99),
      'errors': self.errors + self.shed,
    }


def measure(address: str, load: Sequence[tuple[float, dict]]) -> Cell:
  """Sends each request at its time, and waits for all."""
  return asyncio.run(_measure(address, load))


async def _measure(address: str, load: Sequence[tuple[float, dict]]) -> Cell:
  try:
    import httpx2 as httpx
  except ImportError:
    raise UserError("bench_serve needs httpx2 and a server: pip install 'lmjax[bench]'") from None
  firsts: list[float] = []
  gaps: list[float] = []
  counts = {'tokens': 0, 'shed': 0, 'errors': 0}
  limits = httpx.Limits(max_connections=None)
  async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
    try:
      model = (await client.get('/v1/models')).json()['data'][0]['id']
    except httpx.HTTPError as error:
      raise UserError(f'{address} does not answer ({error}): see the logs of the workdir') from None
    begun = time.monotonic()

    async def ask(at: float, body: dict) -> None:
      await asyncio.sleep(max(0.0, begun + at - time.monotonic()))
      sent, last, ended = time.monotonic(), 0.0, False
      path = '/v1/chat/completions'
      try:
        async with client.stream('POST', path, json={**body, 'model': model}) as response:
          counts['shed'] += response.status_code == 429
          counts['errors'] += response.status_code not in (200, 429)
          async for line in response.aiter_lines():
            now, row = time.monotonic(), _event(line)
            ended = ended or line == 'data: [DONE]'
            if row.get('usage'):
              counts['tokens'] += row['usage']['completion_tokens']
            if any(choice['delta'].get('content') for choice in row.get('choices') or []):
              (gaps if last else firsts).append(now - (last or sent))
              last = now
          counts['errors'] += response.status_code == 200 and not ended
      except httpx.HTTPError:
        counts['errors'] += 1

    await asyncio.gather(*(ask(*each) for each in load))
    seconds = time.monotonic() - begun
  return Cell(counts['tokens'], seconds, firsts, gaps, counts['shed'], counts['errors'])


def _event(line: str) -> dict[str, Any]:
  return json.loads(line[6:]) if line.startswith('data: {') else {}


@contextlib.contextmanager
def _lmjax(checkpoint: str, workdir: Path, *flags: str) -> Iterator[str]:
  same = [f'--checkpoint={checkpoint}', '--port=0', f'--workdir={workdir}', *flags]
  command = [sys.executable, '-m', 'lmjax.main', '--experiment=serve', *same]
  with _started(command, workdir.with_suffix('.log')) as address:
    yield address


@contextlib.contextmanager
def _started(command: Sequence[str], log: Path) -> Iterator[str]:
  """The address of a server that says `served at ADDRESS` when it is ready; it is ended after."""
  print(f'  starting {" ".join(command[1:4])} ...', flush=True)
  with log.open('w') as errors:
    process = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ
    )
  late = threading.Timer(_START_SECONDS, process.kill)
  late.start()
  try:
    assert process.stdout is not None
    found = next((m for line in process.stdout if (m := _SERVED.search(line))), None)
    late.cancel()
    if found is None:
      raise UserError(f'{" ".join(command[:4])} ended with {process.wait()}: see {log}')
    yield found.group(1)
  finally:
    late.cancel()
    process.send_signal(signal.SIGTERM)
    try:
      process.wait(60)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def _read_other(text: str) -> tuple[str, str]:
  name, _, address = text.partition('=')
  if not name or not address.startswith('http'):
    raise UserError(f'--others={text}: expected NAME=http://HOST:PORT')
  return name, address.removesuffix('/').removesuffix('/v1')


def _shown(cell: dict[str, Any]) -> str:
  return (
    f'{cell["tokens_per_second"]:.1f} tokens/s, first token {cell["ttft_p50_ms"]:.0f} ms '
    f'(p99 {cell["ttft_p99_ms"]:.0f}), between {cell["itl_p50_ms"]:.0f} ms '
    f'(p99 {cell["itl_p99_ms"]:.0f}), {cell["errors"]} not answered'
  )
