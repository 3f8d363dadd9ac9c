"""/v1/completions: plain text continued, without a chat template."""

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from lmjax.generate.text import Drawn
from lmjax.serve.errors import REFUSALS, STREAM, ApiError, reply
from lmjax.serve.generation import REFUSAL, EventStream, Shown, gather, make_asks, read_format
from lmjax.serve.schemas import Completion, CompletionRequest
from lmjax.serve.service import Service, new_id

_MOST_PROMPTS = 64


def completion_routes(service: Service) -> APIRouter:
  """The route, for one model."""
  router = APIRouter()

  @router.post('/v1/completions', response_model=Completion, responses={**REFUSALS, **STREAM})
  async def create_completion(body: CompletionRequest, http: Request) -> Any:
    """Continues texts, given as text or as token ids."""
    service.check(body.model)
    if body.echo and body.logprobs is not None:
      raise ApiError(
        400, 'echo has no logprobs, which are of added tokens alone: send one', param='echo'
      )
    entry = http.scope['state']['audit']
    entry |= {'model': body.model, 'asked': body.prompt}
    service.check_room()
    prompts = await run_in_threadpool(read_prompts, service, body.prompt, 'prompt')
    texts = [service.tokenizer.text(prompt) for prompt in prompts]
    why = await run_in_threadpool(service.refuses, '\n'.join(texts), 'input')
    if why is not None:
      entry['refused'] = [{'side': 'input', 'why': why}]
      raise ApiError(400, REFUSAL, code='content_filter', param='prompt')
    asks = make_asks(
      service,
      body,
      http,
      prompts,
      asked=body.max_tokens or min(16, service.limits.answer_tokens),
      param='max_tokens',
      alternatives=body.logprobs or 0,
      grammar=await run_in_threadpool(read_format, service, body.response_format),
    )
    answers = service.answer(asks)
    shown = Shown(service, answers, entry)
    same = {'id': new_id('cmpl'), 'object': 'text_completion', 'created': int(time.time())}
    same['model'] = service.name
    n = body.n or 1
    before = [text if body.echo else '' for text in texts for _ in range(n)]
    offsets = list(map(len, before))
    told = lambda number, drawn: _logprobs(service, body, offsets, number, drawn)

    async def rows() -> AsyncIterator[dict[str, Any]]:
      async for part in shown.parts():
        text, before[part.number] = before[part.number] + part.text, ''
        logprobs = told(part.number, part.drawn)
        yield {**same, 'choices': [_choice(part.number, text, part.reason, logprobs)]}
      if body.stream_options is not None and body.stream_options.include_usage:
        yield {**same, 'choices': [], 'usage': shown.usage}

    if body.stream:
      return EventStream(answers, rows)
    wholes = await gather(http, answers, shown)
    choices = [
      _choice(number, before[number] + whole.text, whole.reason, told(number, whole.drawn))
      for number, whole in enumerate(wholes)
    ]
    return reply({**same, 'choices': choices, 'usage': shown.usage})

  return router


def read_prompts(service: Service, given: Any, param: str) -> list[list[int]]:
  """The token ids of each text, or list of ids, of a request.

  Raises:
    ApiError: there is none, too many, or an id that is no token.
  """
  alone = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
  prompts = [given] if alone else given
  if not prompts or len(prompts) > _MOST_PROMPTS:
    raise ApiError(
      400, f'{param}: {len(prompts)} texts, of 1 to {_MOST_PROMPTS}: send others', param=param
    )
  ids = [service.encode_text(p) if isinstance(p, str) else list(p) for p in prompts]
  vocab = service.tokenizer.vocab
  wrong = [token for prompt in ids for token in prompt if not 0 <= token < vocab]
  if wrong or not all(ids):
    told = f'{wrong[0]} is no token, they go from 0 to {vocab - 1}' if wrong else 'no token in one'
    raise ApiError(400, f'{param}: {told}: send others', param=param)
  return ids


def _choice(number: int, text: str, reason: str | None, logprobs: Any) -> dict[str, Any]:
  return {'index': number, 'text': text, 'finish_reason': reason, 'logprobs': logprobs}


def _logprobs(
  service: Service,
  body: CompletionRequest,
  offsets: list[int],
  number: int,
  drawn: list[Drawn],
) -> dict[str, Any] | None:
  """Of the next tokens of an answer, whose place in its text is kept in `offsets`."""
  if body.logprobs is None:
    return None
  spell = lambda token: service.tokenizer.spell(token).decode('utf-8', 'replace')
  found: dict[str, Any] = {
    'tokens': [],
    'token_logprobs': [],
    'top_logprobs': [],
    'text_offset': [],
  }
  for token, logprob, alternatives in drawn:
    found['tokens'].append(spell(token))
    found['token_logprobs'].append(logprob)
    found['top_logprobs'].append({spell(other): p for other, p in alternatives})
    found['text_offset'].append(offsets[number])
    offsets[number] += len(spell(token))
  return found
