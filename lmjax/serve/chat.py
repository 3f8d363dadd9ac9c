"""/v1/chat/completions."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lmjax.generate.constrain import Grammar
from lmjax.generate.text import Drawn
from lmjax.serve.errors import REFUSALS, STREAM, ApiError, reply
from lmjax.serve.generation import REFUSAL, EventStream, Shown, gather, make_asks, read_format
from lmjax.serve.schemas import ChatCompletion, ChatRequest, Message, ToolChoice
from lmjax.serve.service import Service, new_id
from lmjax.serve.tools import read_calls, schema_of_call

_LEAST_LOGPROB = -9999.0  # as OpenAI's, in place of less


def chat_routes(service: Service) -> APIRouter:
  """The route, for one model."""
  router = APIRouter()

  @router.post(
    '/v1/chat/completions', response_model=ChatCompletion, responses={**REFUSALS, **STREAM}
  )
  async def create_chat_completion(body: ChatRequest, http: Request) -> Any:
    """Continues a conversation; `stream` sends it as server-sent events."""
    service.check(body.model)
    entry = http.scope['state']['audit']
    entry |= {'model': body.model, 'asked': [message.model_dump() for message in body.messages]}
    chat = _Chat(service, body)
    service.check_room()
    why = await run_in_threadpool(service.refuses, chat.asked, 'input')
    if why is not None:
      entry['refused'] = [{'side': 'input', 'why': why}]
      return chat.refused()
    prompt, grammar = await run_in_threadpool(chat.prepare)
    asks = make_asks(
      service,
      body,
      http,
      [prompt],
      asked=body.max_completion_tokens or body.max_tokens,
      param='max_completion_tokens' if body.max_completion_tokens else 'max_tokens',
      alternatives=(body.top_logprobs or 0) if body.logprobs else 0,
      grammar=grammar,
    )
    answers = service.answer(asks)
    shown = Shown(service, answers, entry)
    if body.stream:
      return EventStream(answers, lambda: chat.rows(shown))
    wholes = await gather(http, answers, shown)
    choices = [
      chat.choice(number, whole.text, whole.reason, whole.drawn)
      for number, whole in enumerate(wholes)
    ]
    return reply({**chat.head('chat.completion'), 'choices': choices, 'usage': shown.usage})

  return router


class _Chat:
  """One request: its prompt, and its answers in OpenAI's shape."""

  def __init__(self, service: Service, body: ChatRequest) -> None:
    self._service, self._body = service, body
    self._id, self._created = new_id('chatcmpl'), int(time.time())
    if body.top_logprobs and not body.logprobs:
      raise ApiError(400, 'top_logprobs needs logprobs: send logprobs=true', param='top_logprobs')
    choice = body.tool_choice
    self._tools = [] if choice == 'none' else body.tools or []
    if isinstance(choice, ToolChoice):
      self._tools = [tool for tool in self._tools if tool.function.name == choice.function.name]
    self._forced = choice == 'required' or isinstance(choice, ToolChoice)
    if self._forced and not self._tools:
      raise ApiError(400, 'tool_choice names no tool: send it in tools', param='tool_choice')

  @property
  def asked(self) -> str:
    """What all messages say, for the moderation: whoever asks may call them what he likes."""
    return '\n'.join(_text(message) for message in self._body.messages)

  def prepare(self) -> tuple[list[int], Grammar | None]:
    """The prompt and what the answer must match."""
    messages = [_plain(message) for message in self._body.messages]
    tools = [tool.model_dump(exclude_none=True) for tool in self._tools] or None
    if tools and not self._forced and not self._service.knows_tools(messages, tools):
      raise ApiError(
        400,
        f"{self._service.name}'s chat template does not tell it of tools: send none, or have one "
        'called with tool_choice',
        param='tools',
      )
    form = self._body.response_format
    if self._forced:
      if form is not None and form.type != 'text':
        raise ApiError(
          400, 'tool_choice and response_format contradict: send one', param='tool_choice'
        )
      grammar = self._service.grammars.json_schema(schema_of_call(self._tools))
    else:
      grammar = read_format(self._service, form)
    return self._service.encode_chat(messages, tools), grammar

  def head(self, kind: str) -> dict[str, Any]:
    same = {'created': self._created, 'model': self._service.name}
    return {'id': self._id, 'object': kind, **same}

  def choice(self, number: int, text: str, reason: str, drawn: list[Drawn]) -> dict[str, Any]:
    content, calls = self._read(text)
    message: dict[str, Any] = {'role': 'assistant', 'content': content}
    if calls:
      message['tool_calls'], reason = calls, 'tool_calls'
    logprobs = self._logprobs(drawn)
    return {'index': number, 'message': message, 'finish_reason': reason, 'logprobs': logprobs}

  async def rows(self, shown: Shown) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a stream. Where tools are offered a choice comes as a whole, as it may be a call."""
    for number in range(self._body.n or 1):
      yield self._chunk(number, {'role': 'assistant', 'content': ''}, None, [])
    held = [''] * (self._body.n or 1)
    async for part in shown.parts():
      held[part.number] += part.text
      text, reason = part.text, part.reason
      if self._tools:
        if reason is None:
          continue
        content, calls = self._read(held[part.number])
        if calls:
          indexed = [{'index': i, **call} for i, call in enumerate(calls)]
          yield self._chunk(part.number, {'tool_calls': indexed}, None, [])
          reason = 'tool_calls'
        text = content or ''
      if text:
        yield self._chunk(part.number, {'content': text}, None, part.drawn)
      if reason is not None:
        yield self._chunk(part.number, {}, reason, [] if text else part.drawn)
    if self._body.stream_options is not None and self._body.stream_options.include_usage:
      yield {**self.head('chat.completion.chunk'), 'choices': [], 'usage': shown.usage}

  def refused(self) -> Response:
    """The answer to what the moderation refuses."""
    usage = {'prompt_tokens': 0, 'completion_tokens': 0, 'total_tokens': 0}
    usage['prompt_tokens_details'] = {'cached_tokens': 0}  # type: ignore[assignment]
    if not self._body.stream:
      message = {'role': 'assistant', 'content': REFUSAL}
      choice = {'index': 0, 'message': message, 'finish_reason': 'content_filter', 'logprobs': None}
      return reply({**self.head('chat.completion'), 'choices': [choice], 'usage': usage})
    delta = {'role': 'assistant', 'content': REFUSAL}
    rows = [self._chunk(0, delta, None, []), self._chunk(0, {}, 'content_filter', [])]
    if self._body.stream_options is not None and self._body.stream_options.include_usage:
      rows.append({**self.head('chat.completion.chunk'), 'choices': [], 'usage': usage})
    text = ''.join(f'data: {json.dumps(row)}\n\n' for row in rows) + 'data: [DONE]\n\n'
    return Response(text, media_type='text/event-stream')

  def _read(self, text: str) -> tuple[str | None, list[dict[str, Any]]]:
    if not self._tools:
      return text, []
    said, calls = read_calls(text, [tool.function.name for tool in self._tools])
    return said, calls[:1] if self._body.parallel_tool_calls is False else calls

  def _chunk(
    self, number: int, delta: dict[str, Any], reason: str | None, drawn: list[Drawn]
  ) -> dict[str, Any]:
    same = {'finish_reason': reason, 'logprobs': self._logprobs(drawn) if drawn else None}
    choice = {'index': number, 'delta': delta, **same}
    return {**self.head('chat.completion.chunk'), 'choices': [choice]}

  def _logprobs(self, drawn: list[Drawn]) -> dict[str, Any] | None:
    if not self._body.logprobs:
      return None
    spell = self._service.tokenizer.spell

    def told(token: int, logprob: float) -> dict[str, Any]:
      spelled = spell(token)
      text = spelled.decode('utf-8', 'replace')
      return {'token': text, 'logprob': max(logprob, _LEAST_LOGPROB), 'bytes': list(spelled)}

    return {
      'content': [
        {**told(d.token, d.logprob), 'top_logprobs': [told(*other) for other in d.alternatives]}
        for d in drawn
      ],
      'refusal': None,
    }


def _text(message: Message) -> str:
  content = message.content or ''
  return content if isinstance(content, str) else ''.join(part.text for part in content)


def _plain(message: Message) -> dict[str, Any]:
  """A message as templates read it: its content a text, its calls' arguments objects."""
  role = 'system' if message.role == 'developer' else message.role
  plain: dict[str, Any] = {'role': role, 'content': _text(message)}
  if message.name:
    plain['name'] = message.name
  if message.tool_call_id:
    plain['tool_call_id'] = message.tool_call_id
  if message.tool_calls:
    plain['tool_calls'] = [_plain_call(call.model_dump()) for call in message.tool_calls]
  return plain


def _plain_call(call: dict[str, Any]) -> dict[str, Any]:
  try:
    arguments = json.loads(call['function']['arguments'] or '{}')
  except (ValueError, RecursionError):
    raise ApiError(
      400,
      'messages: the arguments of a tool call are no JSON: send them as they came',
      param='messages',
    ) from None
  return {**call, 'function': {**call['function'], 'arguments': arguments}}
