"""A loaded model behind an engine, as routes ask it: prompts in, pieces of text out.

Knows nothing of HTTP but the errors that a wrong request gets.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from lmjax.adapt.quantize import quantize
from lmjax.core.errors import UserError
from lmjax.data import chat
from lmjax.generate.constrain import Grammar, Grammars
from lmjax.generate.continuous import Batching, Engine, Stopped
from lmjax.generate.prepare import is_prepared, prepare
from lmjax.generate.sampler import Sampler
from lmjax.generate.scheduler import Full, Request
from lmjax.generate.settings import Settings
from lmjax.generate.text import Ended, Piece, TextListener
from lmjax.interop.load import Loaded
from lmjax.serve.errors import ApiError, unknown_model
from lmjax.serve.limits import Limits
from lmjax.serve.metrics import Metrics

Moderation = Callable[[str, str], str | None]
"""(text, 'input' or 'output') -> why it is refused, or None."""


ENDED = 'the engine has ended: start the server again'
GRACE_SECONDS = 60.0  # after its deadline, in which the engine is to tell a request that it is over


class Ask(NamedTuple):
  """What one answer is asked for with.

  Attributes:
    stops: strings before which it ends.
    ends: tokens that end it, beside the model's own.
    owner: whose turn it is, see `scheduler.Request`.
    grammar: what it must match, or None.
    name: what the log calls it.
  """

  prompt: list[int]
  max_tokens: int
  settings: Settings
  stops: Sequence[str]
  ends: Sequence[int]
  owner: str
  priority: int
  seconds: float
  grammar: Grammar | None
  name: str = ''


class Service:
  """One model: its engine, its words, its name.

  Attributes:
    preparations: what routes need besides the engine, which `warm` calls one by one.
  """

  def __init__(
    self,
    loaded: Loaded,
    *,
    name: str,
    batching: Batching,
    limits: Limits,
    sampler: Sampler,
    int8: bool = False,
    int8_cache: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    moderation: Moderation | None = None,
  ) -> None:
    """Lays the model out; `warm` compiles it.

    Args:
      name: what the API calls it.
      sampler: where a request does not say how to draw.
      int8, int8_cache: weights, and keys and values, are kept in int8.
      moderation: looks at what is asked and answered, or None.

    Raises:
      UserError: int8 is asked for where it cannot be.
    """
    model, params = prepare(loaded.model, loaded.params) if mesh is None else loaded[:2]
    if int8:
      if not is_prepared(params):
        raise UserError('weights=int8 is for one CPU so far: pass --weights=trained')
      params = quantize(params)
    self.name, self.limits, self.sampler, self.moderation = name, limits, sampler, moderation
    self.created, self.batching = int(time.time()), batching
    self.tokenizer, self.template = loaded.tokenizer, loaded.chat_template
    self.ends = frozenset(loaded.ends)
    self.model, self.params = model, params
    self.metrics = Metrics(lambda: self.engine)
    made_for = [n for n in (loaded.length, loaded.model.positions, batching.context) if n]
    self.engine = Engine(
      model,
      params,
      vocab=loaded.tokenizer.vocab,
      batching=batching,
      slots=min(made_for),
      int8_cache=int8_cache,
      mesh=mesh,
    )
    self.ready = self._closed = False
    self.preparations: list[Callable[[], Any]] = []
    self._grammars: Grammars | None = None
    self._step_seconds = 0.5  # that a request in the queue is likely to wait

  def warm(self) -> Iterator[tuple[int, int]]:
    """Compiles, calls the `preparations` of routes, then begins to answer; see `Engine.warm`."""
    done, more = 0, len(self.preparations)
    for done, of in self.engine.warm():
      if self._closed:
        return
      yield done, of + more
    for number, make_ready in enumerate(self.preparations, done + 1):
      make_ready()
      if self._closed:
        return
      yield number, done + more
    self.engine.start()
    self.ready = not self._closed

  def close(self, drain_seconds: float) -> None:
    """Answers what is there, then ends; `warm` ends with the program that it is compiling."""
    self.ready, self._closed = False, True
    self.engine.stop(drain_seconds)

  def check(self, name: str) -> None:
    """ApiError where `name` is another model's, or this one cannot answer."""
    self.check_engine()
    if not self.ready:
      raise ApiError(503, 'the model is being made ready: try again', retry_seconds=5)
    if name != self.name:
      raise unknown_model(name, [self.name])

  def check_engine(self) -> None:
    """ApiError where the engine has failed."""
    if self.engine.failure is not None:
      raise ApiError(503, ENDED)

  def encode_chat(self, messages: Sequence[chat.Message], tools: Any = None) -> list[int]:
    """The prompt of a conversation, by the model's template.

    Raises:
      ApiError: it has none.
      UserError: it refuses the messages.
    """
    if self.template is None:
      raise ApiError(
        400, f'{self.name} has no chat template: use /v1/completions', param='messages'
      )
    ids = chat.encode(self.template, messages, self.tokenizer, answer=True, tools=tools)
    return ids.tolist()

  def knows_tools(self, messages: Sequence[chat.Message], tools: Any) -> bool:
    """Whether the template tells the model of tools."""
    return self.encode_chat(messages, tools) != self.encode_chat(messages)

  def encode_text(self, text: str) -> list[int]:
    """A text's tokens, after the start token where the model wants one or there is no text."""
    ids = [*self.tokenizer.before, *self.tokenizer.encode(text).tolist()]
    return ids or [self.tokenizer.start]

  def room(self, prompt: int, asked: int | None, param: str) -> int:
    """Tokens that an answer may have.

    Raises:
      ApiError: the prompt and what is asked for do not fit.
    """
    slots, most = self.engine.slots, self.limits.answer_tokens
    if asked is not None and asked > most:
      raise ApiError(
        400,
        f'{param}={asked} is more than the {most} that an answer may have: ask for fewer',
        param=param,
      )
    if prompt + (asked or 1) > slots:
      wanted = f' and {asked} tokens to answer' if asked else ''
      message = (
        f'the prompt has {prompt} tokens{wanted}, and {slots} fit in all: shorten it by '
        f'{prompt + (asked or 1) - slots}'
      )
      raise ApiError(
        400, message, code='context_length_exceeded', param=param if asked else 'messages'
      )
    return asked or min(most, slots - prompt)

  @property
  def grammars(self) -> Grammars:
    if self._grammars is None:
      self._grammars = Grammars(self.tokenizer, self.ends)
    return self._grammars

  def refuses(self, text: str, side: str) -> str | None:
    """Why the moderation refuses `text`, or None."""
    return None if self.moderation is None else self.moderation(text, side)

  def answer(self, asks: Sequence[Ask]) -> 'Answers':
    """Begins answers.

    Raises:
      ApiError: 429, there is no room for them now, 400, there never is for so many, or 503.
    """
    most = self.batching.queue
    if len(asks) > most:
      message = f'{len(asks)} answers at once, and {most} fit: ask for fewer, n or prompts'
      raise ApiError(400, message, param='n')
    answers = Answers(self, asks)
    try:
      self.engine.submit(*answers.requests)
    except Full:
      raise self._overloaded() from None
    except Stopped:
      raise ApiError(503, ENDED) from None
    return answers

  def check_room(self) -> None:
    """ApiError 429 where there is none: before a prompt is encoded, as refusing must cost little."""
    if self.engine.full:
      raise self._overloaded()

  def _overloaded(self) -> ApiError:
    seconds = max(1, round(self._step_seconds * (1 + self.engine.waiting)))
    message = f'as many requests wait as may: try again in {seconds} s'
    return ApiError(429, message, code='overloaded', retry_seconds=seconds)

  def took(self, seconds: float) -> None:
    """Learns how long answers take, for who is told to come back later."""
    rows = max(1, self.engine.running)
    self._step_seconds += 0.1 * (seconds / rows - self._step_seconds)


class Answers:
  """What comes of some requests that were begun together."""

  def __init__(self, service: Service, asks: Sequence[Ask]) -> None:
    self._service = service
    self._loop = asyncio.get_running_loop()
    self._told: asyncio.Queue[tuple[int, Piece | Ended]] = asyncio.Queue()
    now = time.monotonic()
    self._patience = now + max(ask.seconds for ask in asks) + GRACE_SECONDS
    self.requests = [
      Request(
        ask.prompt,
        ask.max_tokens,
        ask.settings,
        TextListener(service.tokenizer, self._sink(number), ask.stops),
        ends=service.ends | frozenset(ask.ends),
        priority=ask.priority,
        owner=ask.owner,
        deadline=now + ask.seconds,
        name=ask.name,
      )
      for number, ask in enumerate(asks)
    ]

  async def events(self) -> AsyncIterator[tuple[int, Piece | Ended]]:
    """(which answer, what comes next of it), until all have ended; those left are cancelled.

    Raises:
      ApiError: 503, the engine says nothing, not even that the deadline is over.
    """
    begun, left = time.monotonic(), len(self.requests)
    last = [0.0] * left
    try:
      while left:
        try:
          async with asyncio.timeout(max(0.0, self._patience - time.monotonic())):
            number, event = await self._told.get()
        except TimeoutError:
          raise ApiError(503, 'the engine does not go on: start the server again') from None
        now = time.monotonic()
        if isinstance(event, Ended):
          left -= 1
          self._service.took(now - begun)
        elif last[number]:
          for _ in event.drawn:
            self._service.metrics.between_tokens.observe((now - last[number]) / len(event.drawn))
        else:
          self._service.metrics.first_token.observe(now - begun)
        last[number] = now
        yield number, event
    finally:
      self.cancel()

  def cancel(self) -> None:
    """Has the engine drop what is not done; no more than a step later its rows are free."""
    for request in self.requests:
      self._service.engine.cancel(request)

  def _sink(self, number: int) -> Callable[[Piece | Ended], None]:
    def sink(event: Piece | Ended) -> None:
      with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
        self._loop.call_soon_threadsafe(self._told.put_nowait, (number, event))

    return sink


def new_id(kind: str) -> str:
  return f'{kind}-{secrets.token_hex(12)}'
