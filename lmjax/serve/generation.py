"""What chat and completions share: a body's settings, and what of the answers may be shown."""

import asyncio
import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lmjax.generate.constrain import Grammar
from lmjax.generate.sampler import Sampler
from lmjax.generate.settings import Settings
from lmjax.generate.text import Drawn, Ended, Usage
from lmjax.serve.errors import ApiError
from lmjax.serve.guard import key_of
from lmjax.serve.schemas import SEEDS, Format, Generation, JsonSchema, PlainFormat, SchemaFormat
from lmjax.serve.service import ENDED, Answers, Ask, Service

REFUSAL = 'I cannot help with that.'
"""What is answered in place of what the moderation refuses."""

_SENTENCE = re.compile(r'[.!?\n][\s"\')]*')


class Part(NamedTuple):
  """The next of one answer; with a reason it is the last."""

  number: int
  text: str
  drawn: list[Drawn]
  reason: str | None


class Whole(NamedTuple):
  """All of one answer."""

  text: str
  drawn: list[Drawn]
  reason: str


class Gone(ApiError):
  """The client does not listen any more; its status, nginx's, is for the counts and the audit alone."""

  def __init__(self) -> None:
    super().__init__(499, 'the client has gone')


def make_asks(
  service: Service,
  body: Generation,
  http: HttpRequest,
  prompts: Sequence[list[int]],
  *,
  asked: int | None,
  param: str,
  alternatives: int = 0,
  grammar: Grammar | None = None,
) -> list[Ask]:
  """n asks for every prompt, in the order of the answers; ApiError where they cannot be."""
  if body.stream_options is not None and not body.stream:
    raise ApiError(400, 'stream_options needs stream: send stream=true', param='stream_options')
  seed = secrets.randbits(32) if body.seed is None else body.seed % SEEDS
  sampler, n = read_sampler(body, service.sampler), body.n or 1
  bias = _read_bias(body.logit_bias or {}, service.tokenizer.vocab)
  stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
  key, most = key_of(http.scope), service.limits.timeout_seconds
  asks = []
  for number, prompt in enumerate([prompt for prompt in prompts for _ in range(n)]):
    mine = grammar if grammar is None or number == 0 else grammar.fresh()
    settings = Settings(
      sampler=sampler,
      seed=seed,
      choice=number % n,
      presence=body.presence_penalty or 0.0,
      frequency=body.frequency_penalty or 0.0,
      repetition=body.repetition_penalty or 1.0,
      bias=bias,
      alternatives=alternatives,
      constraint=mine,
    )
    asks.append(
      Ask(
        prompt,
        service.room(len(prompt), asked, param),
        settings,
        stops,
        body.stop_token_ids or [],
        key.name,
        key.priority + (body.priority or 0),
        min(most, body.timeout_seconds or most),
        mine,
        http.scope['state']['audit']['request'],
      )
    )
  return asks


def read_sampler(body: Generation, default: Sampler) -> Sampler:
  """How a request draws; what it does not say is as in `default`."""
  chosen = lambda given, usual: usual if given is None else given
  limit = lambda given, usual: usual if given is None else (given if given > 0 else None)
  return Sampler(
    temperature=chosen(body.temperature, default.temperature),
    top_k=limit(body.top_k, default.top_k),
    top_p=chosen(body.top_p, default.top_p),
    min_p=limit(body.min_p, default.min_p),
  )


def read_format(service: Service, form: Format | None) -> Grammar | None:
  """The grammar of a `response_format`; UserError where it is not understood."""
  if form is None or (isinstance(form, PlainFormat) and form.type == 'text'):
    return None
  if isinstance(form, PlainFormat):
    return service.grammars.json_schema(None)
  if isinstance(form, SchemaFormat):
    schema: JsonSchema = form.json_schema
    return service.grammars.json_schema(schema.fields)
  return service.grammars.regex(form.pattern)


def _read_bias(given: dict[str, float], vocab: int) -> dict[int, float]:
  bias = {}
  for name, value in given.items():
    if not name.isdecimal() or len(name) > 12 or int(name) >= vocab:
      raise ApiError(
        400,
        f'logit_bias: {name[:20]!r} is no token: they go from 0 to {vocab - 1}',
        param='logit_bias',
      )
    bias[int(name)] = value
  return bias


class Shown:
  """What of some answers may be shown, and the tokens that they took.

  Where there is a moderation, text waits for the end of its sentence and is shown only if the whole
  answer up to there is not refused; else the answer ends with a refusal.
  """

  def __init__(self, service: Service, answers: Answers, entry: dict[str, Any]) -> None:
    """`entry`: of the audit, which is told how the answers ended."""
    self._service, self._answers, self._entry = service, answers, entry
    count = len(answers.requests)
    self._texts, self._shown = [''] * count, [0] * count
    self._drawn: list[list[Drawn]] = [[] for _ in range(count)]
    self._usages: dict[int, Usage] = {}
    self._refused: set[int] = set()

  async def parts(self) -> AsyncIterator[Part]:
    """Raises ApiError where one is not done in time, Gone where nobody listens."""
    async for number, event in self._answers.events():
      if isinstance(event, Ended):
        self._usages[number] = event.usage
        reason = 'content_filter' if number in self._refused else event.reason
        self._check(number, reason)
        if number not in self._refused:
          yield await self._last(number, reason)
      elif number not in self._refused:
        self._texts[number] += event.text
        self._drawn[number] += event.drawn
        part = await self._next(number)
        if part is not None:
          yield part

  @property
  def usage(self) -> dict[str, Any]:
    """In OpenAI's shape; a prompt counts once, however many answers it has."""
    settings = [request.settings for request in self._answers.requests]
    firsts = [usage for number, usage in self._usages.items() if settings[number].choice == 0]
    prompt = sum(usage.prompt for usage in firsts)
    added = sum(usage.added for usage in self._usages.values())
    return {
      'prompt_tokens': prompt,
      'completion_tokens': added,
      'total_tokens': prompt + added,
      'prompt_tokens_details': {'cached_tokens': sum(usage.reused for usage in firsts)},
    }

  def _check(self, number: int, reason: str) -> None:
    self._entry.setdefault('reasons', []).append(reason)
    self._entry.setdefault('answered', []).append(self._texts[number])
    usage = self.usage
    self._entry['prompt_tokens'] = usage['prompt_tokens']
    self._entry['tokens'] = usage['completion_tokens']
    if reason == 'deadline':
      raise ApiError(
        408, 'not done before its deadline: ask for fewer tokens, or later', code='timeout'
      )
    if reason == 'constraint':
      raise ApiError(
        400,
        'the answer cannot be held to its schema or pattern any further, as that is too complex: '
        'make it simpler, with fewer and smaller repetitions',
        code='invalid_value',
        param='response_format',
      )
    if reason == 'error':
      ended = self._service.engine.failure is not None
      told = ENDED if ended else 'its log says why, under the id in X-Request-Id'
      raise ApiError(500, f'the server could not go on with this answer: {told}')
    if reason == 'cancelled':
      raise Gone

  async def _next(self, number: int) -> Part | None:
    text = self._texts[number]
    stop = len(text)
    if self._service.moderation is not None:
      ends = [match.end() for match in _SENTENCE.finditer(text)]
      stop = max([0, *ends])
      if stop > self._shown[number] and await self._is_refused(number, text[:stop]):
        return Part(number, REFUSAL, [], 'content_filter')
    return self._part(number, stop, None) if stop > self._shown[number] else None

  async def _last(self, number: int, reason: str) -> Part:
    text = self._texts[number]
    if len(text) > self._shown[number] and await self._is_refused(number, text):
      return Part(number, REFUSAL, [], 'content_filter')
    return self._part(number, len(text), reason)

  def _part(self, number: int, stop: int, reason: str | None) -> Part:
    drawn, self._drawn[number] = self._drawn[number], []
    part = Part(number, self._texts[number][self._shown[number] : stop], drawn, reason)
    self._shown[number] = stop
    return part

  async def _is_refused(self, number: int, text: str) -> bool:
    if self._service.moderation is None:
      return False
    # It may be slow, and meanwhile others are answered and clients that go are noticed.
    why = await run_in_threadpool(self._service.refuses, text, 'output')
    if why is None:
      return False
    self._entry.setdefault('refused', []).append({'side': 'output', 'why': why})
    self._refused.add(number)
    self._service.engine.cancel(self._answers.requests[number])
    return True


async def gather(http: HttpRequest, answers: Answers, shown: Shown) -> list[Whole]:
  """Every answer as a whole; they are dropped where the client goes."""
  count = len(answers.requests)
  texts, reasons = [''] * count, [''] * count
  kept: list[list[Drawn]] = [[] for _ in range(count)]
  async with _watched(http.receive, answers):
    async for part in shown.parts():
      if part.reason == 'content_filter':
        texts[part.number], kept[part.number] = part.text, []
      else:
        texts[part.number] += part.text
        kept[part.number] += part.drawn
      reasons[part.number] = part.reason or ''
  return [Whole(*whole) for whole in zip(texts, kept, reasons, strict=True)]


class EventStream(Response):
  """Server-sent events of some answers, which are dropped where the client goes."""

  media_type = 'text/event-stream'

  def __init__(self, answers: Answers, rows: Callable[[], AsyncIterator[dict[str, Any]]]) -> None:
    self._answers, self._rows = answers, rows
    self.status_code, self.background = 200, None
    self.init_headers({'Cache-Control': 'no-store', 'X-Accel-Buffering': 'no'})

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    await send(
      {'type': 'http.response.start', 'status': self.status_code, 'headers': self.raw_headers}
    )
    say = lambda text, more=True: send(
      {'type': 'http.response.body', 'body': text.encode('utf-8', 'replace'), 'more_body': more}
    )
    row = lambda body: f'data: {json.dumps(body, ensure_ascii=False, separators=(",", ":"))}\n\n'
    with contextlib.suppress(OSError):  # nobody listens
      async with _watched(receive, self._answers):
        try:
          async for body in self._rows():
            await say(row(body))
          await say('data: [DONE]\n\n')
        except ApiError as error:
          await say(row(error.body))
        await say('', more=False)


@contextlib.asynccontextmanager
async def _watched(receive: Receive, answers: Answers) -> AsyncIterator[None]:
  """Cancels answers as soon as their client goes, and when the block ends."""

  async def watch() -> None:
    while (await receive())['type'] != 'http.disconnect':
      pass
    answers.cancel()

  watching = asyncio.create_task(watch())
  try:
    yield
  finally:
    watching.cancel()
    answers.cancel()
