"""Many sequences at a time, each joining and leaving when it likes: the engine behind the server.

Every step is one program over T tokens, whoever they are of: the next tokens of sequences, guesses
at what follows those, and chunks of prompts. T is one of a few sizes, which `warm` compiles. Knows
nothing about text. T tokens, R draws, V vocab.
"""

import contextlib
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.core.types import Params
from lmjax.generate.cache import cache_dims, copy_row, with_rows, without_rows
from lmjax.generate.sampler import Draws, draw
from lmjax.generate.scheduler import Request, Running, Scheduler, Span, Step
from lmjax.generate.settings import Settings, draws_of, no_shape, prepare_draws
from lmjax.generate.text import Drawn, Usage
from lmjax.models.transformer import Decoder
from lmjax.parallel.sharding import constrain, spec

ALTERNATIVES = 20  # the likeliest tokens that a draw can tell of
_LOG = logging.getLogger(__name__)


class Batching(Config):
  """How many sequences share a step, and what is kept of them."""

  rows: int = leaf(16, 'Sequences at a time.', low=1)
  context: int = leaf(
    2048, 'Tokens of a sequence, prompt and answer; less if it was made for less.', low=2
  )
  chunk: int = leaf(128, 'Tokens of a step at most, which long prompts are cut to.', low=2)
  queue: int = leaf(32, 'Requests that may wait for their first token; more are refused.', low=1)
  patience: int | None = leaf(
    None, 'Steps in which a row must be sure to be free, or a request is refused; none: any.', low=1
  )
  lookup: int = leaf(
    4, 'Tokens guessed ahead by what followed the same words before; 0: none.', low=0
  )


class Stopped(RuntimeError):
  """The engine has failed, or was told to stop."""


class Listener(Protocol):
  """Is told of one request, by the engine's thread."""

  def token(self, drawn: Drawn) -> bool:
    """Takes in the next token, not an end token; True where no more is wanted."""
    ...

  def end(self, reason: str, usage: Usage) -> None:
    """No more comes; see `text.Ended`."""
    ...


@dataclasses.dataclass
class Counts:
  """What the engine has done since its start."""

  steps: int = 0
  prompt_tokens: int = 0
  reused_tokens: int = 0
  added_tokens: int = 0
  guessed_tokens: int = 0
  guessed_right: int = 0
  busy_seconds: float = 0.0


class _Drawing(NamedTuple):
  """Of each of R draws: the tokens, their log-probabilities, and lazily the likeliest ones.

  failed: why the draws of a sequence mean nothing.
  """

  tokens: list[int]
  logprobs: list[float]
  logits_RV: jax.Array
  failed: dict[Running, Exception]


class Engine:
  """A model, a cache of some rows, and whoever uses them.

  `submit` may be called from any thread; `start` begins one that steps, or `step` is called by hand.
  """

  def __init__(
    self,
    model: Decoder,
    params: Params,
    *,
    vocab: int,
    batching: Batching,
    slots: int,
    int8_cache: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    watch: Callable[[Step], None] | None = None,
  ) -> None:
    """Makes the cache.

    Args:
      model, params: from `prepare`, which is fastest, or as they were trained, on `mesh` if given.
      vocab: ids from here on are padding of the model's table and are never drawn.
      slots: tokens that a sequence has room for.
      int8_cache: keys and values are kept in int8, with a scale for each token and head.
      watch: is told of every step before it is computed.
    """
    self.slots, self.counts = slots, Counts()
    self.failure: BaseException | None = None
    self._model, self._params, self._vocab, self._mesh = model, params, vocab, mesh
    wanted = max(batching.rows, 32)
    self._scheduler = Scheduler(
      rows=batching.rows,
      slots=slots,
      budget=batching.chunk,
      queue=batching.queue,
      patience=batching.patience,
      drafts=batching.lookup,
      wanted=wanted,
    )
    self._sizes = _sizes(batching.chunk)
    self._rows, self._wanted, self._watch = batching.rows, wanted, watch
    self._cache = self._empty_cache(batching.rows, int8_cache)
    self._change = threading.Condition()
    self._thread: threading.Thread | None = None
    self._stopping = False

  @property
  def capacity(self) -> int:
    """Tokens that the cache has room for."""
    return self.slots * self._rows

  @property
  def cache_bytes(self) -> int:
    """Of all keys and values that there is room for."""
    return sum(x.nbytes for x in jax.tree.leaves(self._cache))

  @property
  def waiting(self) -> int:
    return self._scheduler.waiting

  @property
  def full(self) -> bool:
    """Whether a request that comes now is refused."""
    with self._change:
      return self._scheduler.room < 1

  @property
  def running(self) -> int:
    return len(self._scheduler.running)

  @property
  def cached_tokens(self) -> int:
    return self._scheduler.cached_tokens

  def warm(self) -> Iterator[tuple[int, int]]:
    """Compiles every size, and says after each (how many are done, of how many)."""
    with self._on_mesh():
      for number, size in enumerate(self._sizes, 1):
        none = np.zeros(size, np.int32)
        drawn = np.zeros(min(size, self._wanted), np.int32)
        logits_RV = self._forward(none, none, none, none, drawn)
        R = len(drawn)
        shaped_RV = _shape(logits_RV, *no_shape(R, logits_RV.shape[1]))
        jax.block_until_ready(_draw(shaped_RV, logits_RV, draws_of([(Settings(), 0)] * R)))
        jax.block_until_ready(_alternatives(logits_RV))
        yield number, len(self._sizes)
      self._copy(0, 0)

  def submit(self, *requests: Request) -> None:
    """Queues requests, whose `settings` are a `Settings` and whose `listener` is a `Listener`; all or none.

    Raises:
      UserError: it could never be answered.
      Full: the queue is.
      Stopped: nobody will answer.
    """
    with self._change:
      if self.failure is not None or self._stopping:
        raise Stopped('the engine has ended')
      self._scheduler.add(*requests)
      self._change.notify()

  def cancel(self, request: Request) -> None:
    """Has the next step drop a request."""
    with self._change:
      request.cancelled = True
      self._change.notify()

  def start(self) -> None:
    """Begins a thread that steps until `stop`."""
    self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
    self._thread.start()

  def wait(self) -> None:
    """Returns when the thread has ended: it was stopped, or `failure` says why."""
    if self._thread is not None:
      self._thread.join()

  def stop(self, drain_seconds: float = 0.0) -> None:
    """Ends the thread; whoever is not done after `drain_seconds` is cancelled."""
    with self._change:
      self._stopping = True
      self._change.notify()
    end = time.monotonic() + drain_seconds
    while time.monotonic() < end and (self.waiting or self.running) and self.failure is None:
      time.sleep(0.01)
    with self._change:
      for request in self._scheduler.requests():
        request.cancelled = True
      self._change.notify()
    self.wait()

  def step(self) -> bool:
    """Computes one step; False where there was nothing to do."""
    with self._change:
      plan = self._scheduler.plan(time.monotonic())
    if self._watch is not None:
      self._watch(plan)
    for request, running, reason in plan.ended:
      _end(request, running, reason)
    for source, target in plan.copies:
      self._copy(source, target)
    if not plan.spans:
      return bool(plan.ended)
    begun = time.perf_counter()
    drawing = self._compute(plan.spans)
    first = 0
    for span in plan.spans:
      self._advance(span, drawing, first)
      first += span.wanted
    self.counts.steps += 1
    self.counts.busy_seconds += time.perf_counter() - begun
    return True

  def _run(self) -> None:
    try:
      with self._on_mesh():
        while True:
          with self._change:
            self._change.wait_for(lambda: self._stopping or self._scheduler.requests())
            if not self._scheduler.requests():
              return
          self.step()
    except BaseException as error:
      _LOG.exception('the engine has ended')
      with self._change:
        self.failure = error
      for request in self._scheduler.requests():
        _end(request, None, 'error')

  def _on_mesh(self) -> contextlib.AbstractContextManager:
    return jax.set_mesh(self._mesh) if self._mesh is not None else contextlib.nullcontext()

  def _compute(self, spans: Sequence[Span]) -> _Drawing:
    """One forward pass and the draws that the spans want, in their order."""
    tokens = [token for span in spans for token in span.tokens]
    size = next(size for size in self._sizes if size >= len(tokens))
    ids, rows, positions, segments = np.zeros((4, size), np.int32)
    R = min(size, self._wanted)
    wanted = np.zeros(R, np.int32)
    ids[: len(tokens)], segments[: len(tokens)] = tokens, 1
    owners: list[tuple[Running, int]] = []
    first = 0
    for span in spans:
      stop = first + len(span.tokens)
      rows[first:stop] = span.running.row
      positions[first:stop] = np.arange(span.start, span.start + len(span.tokens))
      for place in range(stop - span.wanted, stop):
        wanted[len(owners)] = place
        owners.append((span.running, int(positions[place]) + 1))
      first = stop
    logits_RV = self._forward(ids, rows, positions, segments, wanted)
    if not owners:
      return _Drawing([], [], logits_RV, {})
    draws, shape, failed = prepare_draws(owners, R, logits_RV.shape[1])
    shaped_RV = logits_RV if shape is None else _shape(logits_RV, *shape)
    token_R, logprob_R = jax.device_get(_draw(shaped_RV, logits_RV, draws))
    return _Drawing(token_R.tolist(), logprob_R.tolist(), logits_RV, failed)

  def _advance(self, span: Span, drawing: _Drawing, first: int) -> None:
    """Hands a span's new tokens over, and ends its sequence where it is done."""
    running, request, new = span.running, span.running.request, []
    failed = drawing.failed.get(running)
    if failed is None:
      with self._change:
        new = self._scheduler.advance(span, drawing.tokens[first : first + span.wanted])
    self.counts.added_tokens += len(new)
    self.counts.guessed_tokens += span.drafts
    self.counts.guessed_right += max(0, len(new) - 1)
    self.counts.prompt_tokens += 0 if span.start >= len(request.prompt) else len(span.tokens)
    if span.start == running.reused:  # its first
      self.counts.reused_tokens += running.reused
    try:
      if failed is not None:
        raise failed
      reason = self._tell(request, new, drawing, first)
    except UserError as error:  # its constraint cannot be kept
      _LOG.warning('request %s: %s', request.name, error)
      reason = 'constraint'
    except Exception:  # of its settings, constraint or listener: the others go on
      _LOG.exception('request %s has failed', request.name)
      reason = 'error'
    if new and not reason and running.added >= request.max_tokens:
      reason = 'length'
    if reason:
      with self._change:
        self._scheduler.finish(running)
      _end(request, running, reason)

  def _tell(self, request: Request, new: Sequence[int], drawing: _Drawing, first: int) -> str:
    """Tells a request its new tokens, from the `first`-th drawn on; 'stop' where it is done."""
    settings: Settings = request.settings
    for place, token in enumerate(new, first):
      done = settings.constraint is not None and settings.constraint.accept(token)
      if token in request.ends:
        return 'stop'
      drawn = Drawn(token, drawing.logprobs[place], self._likeliest(drawing, place, settings))
      if request.listener.token(drawn) or done:
        return 'stop'
    return ''

  def _likeliest(
    self, drawing: _Drawing, place: int, settings: Settings
  ) -> list[tuple[int, float]]:
    if not settings.alternatives:
      return []
    logprob_RA, token_RA = _alternatives(drawing.logits_RV)
    tokens, logprobs = np.asarray(token_RA)[place], np.asarray(logprob_RA)[place]
    return list(zip(tokens.tolist(), logprobs.tolist(), strict=True))[: settings.alternatives]

  def _forward(self, tokens_T, rows_T, positions_T, segments_T, wanted_R) -> jax.Array:
    logits_RV, self._cache = _forward(
      self._model,
      self._vocab,
      self._params,
      self._cache,
      *(tokens_T, rows_T, positions_T, segments_T, wanted_R),
    )
    return logits_RV

  def _copy(self, source: int, target: int) -> None:
    scanned = self._model.layout == 'scan'
    self._cache = copy_row(scanned, self._cache, np.int32(source), np.int32(target))

  def _empty_cache(self, rows: int, int8: bool):
    cache = self._model.init_cache(rows, self.slots, int8)
    if self._mesh is None:
      return cache
    where = jax.NamedSharding(self._mesh, spec(cache_dims(self._model)))
    return jax.tree.map(lambda x: jax.device_put(x, where), cache)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _forward(model, vocab, params, cache, tokens_T, rows_T, positions_T, segments_T, wanted_R):
  """Logits f32 [R, V] after the tokens `wanted_R`, and the cache with all of them written."""
  one = lambda x_T: x_T[:, None]
  output = model.apply(
    params, one(tokens_T), one(segments_T), one(positions_T), with_rows(model, cache, rows_T)
  )
  logits_R1V = model.logits(params, output.hidden_BLD[wanted_R])
  new = without_rows(model, output.cache)
  dims = cache_dims(model)  # or on a mesh what is given back could not take its place
  new = jax.tree.map(lambda x: constrain(x, *dims), new)
  return logits_R1V[:, 0, :vocab], new


@jax.jit
def _draw(shaped_RV: jax.Array, logits_RV: jax.Array, draws: Draws) -> tuple[jax.Array, jax.Array]:
  """Tokens i32 [R] drawn from the shaped logits, and their log-probabilities by the model's own."""
  token_R = draw(shaped_RV, draws)
  chosen_R1 = jnp.take_along_axis(logits_RV, token_R[:, None], axis=1)
  return token_R, chosen_R1[:, 0] - jax.nn.logsumexp(logits_RV, axis=1)


@jax.jit
def _alternatives(logits_RV: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities and ids [R, 20] of the likeliest tokens."""
  k = min(ALTERNATIVES, logits_RV.shape[1])
  logits_RA, token_RA = jax.lax.top_k(logits_RV, k)
  return logits_RA - jax.nn.logsumexp(logits_RV, axis=1)[:, None], token_RA


@jax.jit
def _shape(logits_RV, repetition_RV, add_RV) -> jax.Array:
  divided_RV = jnp.where(logits_RV > 0, logits_RV / repetition_RV, logits_RV * repetition_RV)
  return divided_RV + add_RV


def _sizes(most: int) -> list[int]:
  """The powers of two below `most`, and it."""
  return [*(2**i for i in range(most.bit_length()) if 2**i < most), most]


def _usage(request: Request, running: Running | None) -> Usage:
  reused, added = (0, 0) if running is None else (running.reused, running.added)
  return Usage(len(request.prompt), reused, added)


def _end(request: Request, running: Running | None, reason: str) -> None:
  """Tells a request that no more comes; a listener that fails is its own."""
  try:
    request.listener.end(reason, _usage(request, running))
  except Exception:
    _LOG.exception('request %s has failed', request.name)
