"""How fast a server answers many at once: lmjax's, and others that speak the same API.

Requests arrive when they like, whatever became of those before (an open loop): a Poisson process of
`clients` / `gap_seconds` requests a second. Prompts are real posts. Each server has its turn alone.
"""

import asyncio
import contextlib
import importlib.util
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

from lmjax.bench.contest import PEERS, has_torch, resident_bytes
from lmjax.core import processor
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task
from lmjax.data.sources import Posts, Rows
from lmjax.interop import gguf, huggingface
from lmjax.interop.load import CHECKPOINT, load, locate

_START_SECONDS = 600.0
_ANSWER_SECONDS = 3600.0
_ASK = 'Write a short comment on this post: '
_LEAST = 8  # requests of a measurement
_SAMPLE_SECONDS = 5.0
_LLAMA = (
  'llama-cpp-python is not here: CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python '
  'llama-cpp-python, or pass --llama=false'
)
_SERVED = re.compile(r'served at (http://\S+)')


class Server(NamedTuple):
  """One that runs: where it answers, and its process."""

  address: str
  pid: int


class BenchServe(Task):
  """Tokens a second, and the time to a first token and between tokens, beside others.

  These are transformers' generate over batches of up to 16, and llama-cpp-python a request at a time,
  behind the same API (tools/bench/peers/api.py); any other server of that API may be named. Then ten
  times the arrivals of 16 clients come to lmjax's server, which should send most away and keep its
  promise to the rest.
  """

  checkpoint: str = leaf('smollm2-135m-instruct', CHECKPOINT)
  posts: Posts = part(Posts(), 'What prompts are made of.', inline=True)
  clients: tuple[int, ...] = leaf((1, 4, 16, 64), 'How many ask, each so often.', low=1)
  gap_seconds: float = leaf(4.0, 'Of one client from a request to the next, on average.', above=0.0)
  requests: int = leaf(2, 'Of each client; of few, more, so that there are 8.', low=1)
  tokens: int = leaf(64, 'Of an answer.', low=2)
  peers: bool = leaf(True, "Also run transformers (extra [bench]); else lmjax's server alone.")
  llama: bool = leaf(False, 'Also run llama-cpp-python, which you have built; docs/serving.md.')
  others: tuple[str, ...] = leaf(
    (), 'More servers of the same API that run already: NAME=http://HOST:PORT.'
  )
  overload: float = leaf(10.0, 'Times the arrivals of 16 clients; 0: leave it out.', low=0.0)
  overload_queue: int = leaf(
    3,
    'Requests that may wait for a first token at the server that is overloaded: few, so that none waits long.',
    low=1,
  )
  overload_patience: int = leaf(
    8,
    'Its --batching.patience: answers of one length end together, and who waited would wait for all.',
    low=1,
  )
  soak_minutes: float = leaf(
    0.0,
    "Only let 16 clients ask lmjax's server for so long, and watch its memory; 0: measure all.",
    low=0.0,
  )
  seed: int = leaf(0, 'Of prompts and arrivals.', low=0)

  def run(self, workdir: Path) -> Report:
    """Prints a line a measurement; the report holds all of them."""
    prompts = self._prompts()
    if self.soak_minutes:
      with _lmjax(self.checkpoint, workdir / 'lmjax') as server:
        return {'soak': self._soak(server, prompts)}
    found: dict[str, dict[str, Any]] = {str(n): {} for n in self.clients}
    # The others wait for as long as it takes, with a queue without end.
    patient = f'--batching.queue={max(_LEAST, max(self.clients) * self.requests)}'
    patience = f'--limits.timeout_seconds={_ANSWER_SECONDS}'
    with contextlib.ExitStack() as stack:
      enter = lambda server: stack.enter_context(server).address
      systems = {'lmjax': enter(_lmjax(self.checkpoint, workdir / 'lmjax', patient, patience))}
      if self.peers:
        systems['transformers'] = enter(self._transformers(workdir))
      if self.llama:
        systems['llama-cpp-python'] = enter(self._llama(workdir))
      systems |= dict(_read_other(other) for other in self.others)
      for address in systems.values():
        measure(address, self._load(prompts, 1.0, 1))  # the first answer of some takes longer
      for n in self.clients:
        for name, address in systems.items():
          cell = measure(address, self._load(prompts, n / self.gap_seconds, n * self.requests))
          found[str(n)][name] = cell.summary()
          print(f'  {n} clients, {name}: {_shown(found[str(n)][name])}', flush=True)
    ratios = {n: _ratios(cells) for n, cells in found.items()}
    report: Report = {'clients': found, 'speedup': ratios, 'cores': processor.cores()}
    if self.overload:
      bounds = (
        f'--batching.queue={self.overload_queue}',
        f'--batching.patience={self.overload_patience}',
      )
      with _lmjax(self.checkpoint, workdir / 'overload', *bounds) as server:
        report['overload'] = self._measure_overload(server.address, prompts)
      print(f'  overload: {report["overload"]}', flush=True)
    return report

  def _measure_overload(self, address: str, prompts: Sequence[str]) -> dict[str, Any]:
    """The share sent away, and p99 times of the rest over those at 16 clients, to a first token and in all."""
    rate, count = 16 / self.gap_seconds, 16 * self.requests
    measure(address, self._load(prompts, 1.0, 1))
    usual = measure(address, self._load(prompts, rate, count))
    load = self._load(prompts, rate * self.overload, int(count * self.overload))
    heavy = measure(address, load)
    return {
      'shed': heavy.shed / len(load),
      'p99_ratio': _over(heavy.percentile('firsts', 99), usual.percentile('firsts', 99)),
      'answer_p99_ratio': _over(heavy.percentile('wholes', 99), usual.percentile('wholes', 99)),
      'ttft_p99_ms': [_ms(cell.percentile('firsts', 99)) for cell in (usual, heavy)],
      'requests': len(load),
      'errors': heavy.errors,
    }

  def _soak(self, server: Server, prompts: Sequence[str]) -> dict[str, Any]:
    """Resident memory of the server after a quarter of the time, when all has been used, and at the end."""
    seconds, rate = 60 * self.soak_minutes, 16 / self.gap_seconds
    sizes: list[tuple[float, int]] = []
    ended, begun = threading.Event(), time.monotonic()

    def watch() -> None:
      while not ended.wait(_SAMPLE_SECONDS):
        sizes.append((time.monotonic() - begun, resident_bytes(server.pid)))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
      cell = measure(server.address, self._load(prompts, rate, max(_LEAST, int(rate * seconds))))
    finally:
      ended.set()
      watching.join()
    told = [size for after, size in sizes if after >= seconds / 4] or [resident_bytes(server.pid)]
    tenth = max(1, len(told) // 10)
    first, last = (float(np.mean(part)) for part in (told[:tenth], told[-tenth:]))
    print(
      f'  {first / 2**20:.0f} MiB, then {last / 2**20:.0f} MiB; {_shown(cell.summary())}',
      flush=True,
    )
    same = {'minutes': self.soak_minutes, 'shed': cell.shed, 'errors': cell.errors}
    return {**same, 'tokens': cell.tokens, 'first_bytes': first, 'last_bytes': last}

  def _prompts(self) -> list[str]:
    texts = [post.text for post, _ in zip(self.posts.read(Rows()), range(1000), strict=False)]
    order = np.random.default_rng(self.seed).permutation(len(texts))
    return [_ASK + texts[i] for i in order]

  def _load(self, prompts: Sequence[str], rate: float, count: int) -> list[tuple[float, dict]]:
    """(seconds after the start, body) of every request."""
    count = count if count == 1 else max(_LEAST, count)
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
  def _llama(self, workdir: Path) -> Iterator[Server]:
    path, script = locate(self.checkpoint), PEERS / 'serve_llama.py'
    if not gguf.is_file(path):
      raise UserError(f'--checkpoint={self.checkpoint} is no GGUF file, which --llama needs')
    if not script.exists() or importlib.util.find_spec('llama_cpp') is None:
      raise UserError(_LLAMA)
    command = [sys.executable, str(script), str(path)]
    with _started(command, workdir / 'llama.log') as server:
      yield server

  @contextlib.contextmanager
  def _transformers(self, workdir: Path) -> Iterator[Server]:
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
    with _started(command, workdir / 'transformers.log') as server:
      yield server


class Cell(NamedTuple):
  """What became of the requests of one measurement."""

  tokens: int
  seconds: float
  firsts: list[float]  # to the first token of each answer
  gaps: list[float]  # between tokens
  wholes: list[float]  # to the end of each answer
  shed: int
  errors: int

  def percentile(self, field: str, q: float) -> float | None:
    """In seconds; None where nothing came."""
    values = getattr(self, field)
    return float(np.percentile(values, q)) if values else None

  def summary(self) -> dict[str, Any]:
    ms = lambda field, q: _ms(self.percentile(field, q))
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
  wholes: list[float] = []
  counts = {'tokens': 0, 'shed': 0, 'errors': 0}
  limits = httpx.Limits(max_connections=None)
  async with httpx.AsyncClient(base_url=address, timeout=_ANSWER_SECONDS, limits=limits) as client:
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
          wholes.extend([time.monotonic() - sent] if ended else [])
      except httpx.HTTPError:
        counts['errors'] += 1

    await asyncio.gather(*(ask(*each) for each in load))
    seconds = time.monotonic() - begun
  return Cell(counts['tokens'], seconds, firsts, gaps, wholes, counts['shed'], counts['errors'])


def _event(line: str) -> dict[str, Any]:
  return json.loads(line[6:]) if line.startswith('data: {') else {}


@contextlib.contextmanager
def _lmjax(checkpoint: str, workdir: Path, *flags: str) -> Iterator[Server]:
  same = [f'--checkpoint={checkpoint}', '--port=0', f'--workdir={workdir}', *flags]
  command = [sys.executable, '-m', 'lmjax.main', '--experiment=serve', *same]
  with _started(command, workdir.with_suffix('.log')) as server:
    yield server


@contextlib.contextmanager
def _started(command: Sequence[str], log: Path) -> Iterator[Server]:
  """A server that says `served at ADDRESS` when it is ready; it is ended after."""
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
    yield Server(found.group(1), process.pid)
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


def _ratios(cells: dict[str, dict[str, Any]]) -> dict[str, float | None]:
  """lmjax's tokens a second over each other's."""
  rate = lambda name: cells[name]['tokens_per_second']
  return {name: _over(rate('lmjax'), rate(name)) for name in cells if name != 'lmjax'}


def _over(above: float | None, below: float | None) -> float | None:
  return None if above is None or not below else above / below


def _ms(seconds: float | None) -> float | None:
  return None if seconds is None else 1e3 * seconds


def _shown(cell: dict[str, Any]) -> str:
  ms = lambda field: 'none' if cell[field] is None else f'{cell[field]:.0f}'
  return (
    f'{cell["tokens_per_second"]:.1f} tokens/s, first token {ms("ttft_p50_ms")} ms '
    f'(p99 {ms("ttft_p99_ms")}), between {ms("itl_p50_ms")} ms '
    f'(p99 {ms("itl_p99_ms")}), {cell["errors"]} not answered'
  )
