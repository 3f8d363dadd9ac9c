"""A question answered by the model from posts that were found, which the answer names.

The prompt is `page/answering.json`, which the page uses as well.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from lmjax.data.chat import Message
from lmjax.search.searcher import Hit
from lmjax.serve.generation import REFUSAL, Shown, gather, make_asks
from lmjax.serve.schemas import Generation, Strict
from lmjax.serve.service import Service

PROMPT: dict[str, Any] = json.loads(
  Path(__file__).with_name('page').joinpath('answering.json').read_text(encoding='utf-8')
)
_CITED = re.compile(r'\[(\d{1,3})\]')


class FromPosts(Strict):
  """An answer.

  Attributes:
    text: where it says [n], it names the nth of `posts`.
    posts: ids of what the model was given, in this order; none where nothing relevant was found.
    cited: those of `posts` that the text names. An answer without any is to be checked.
  """

  text: str
  posts: list[str] = Field(max_length=PROMPT['posts'])
  cited: list[str]


def ask_of_posts(question: str, hits: Sequence[Hit]) -> tuple[list[Message], list[str]]:
  """(the conversation that asks the model, ids of the posts in it): the relevant ones among the first."""
  told = [hit.document for hit in hits if hit.relevant][: PROMPT['posts']]
  numbered = [f'[{n}] {one.text[: PROMPT["characters"]]}' for n, one in enumerate(told, 1)]
  asked = 'Posts:\n' + '\n'.join(numbered) + f'\n\nQuestion: {question}'
  messages = [{'role': 'system', 'content': PROMPT['system']}, {'role': 'user', 'content': asked}]
  return messages, [one.id for one in told]


def cited(text: str, posts: Sequence[str]) -> list[str]:
  """The posts that `text` names as [1], [2] ..., each once."""
  numbers = dict.fromkeys(int(found) for found in _CITED.findall(text))
  return [posts[number - 1] for number in numbers if 1 <= number <= len(posts)]


async def answer_question(
  service: Service, question: str, hits: Sequence[Hit], http: Request
) -> dict[str, Any]:
  """A `FromPosts`; the model is not asked where nothing relevant was found.

  Raises:
    ApiError: the model has no chat template, no room for the posts, or no time.
  """
  messages, posts = ask_of_posts(question, hits)
  if not posts:
    return {'text': PROMPT['nothing'], 'posts': [], 'cited': []}
  service.check(service.name)
  entry = http.scope['state']['audit']
  why = await run_in_threadpool(service.refuses, question, 'input')
  if why is not None:
    entry['refused'] = [{'side': 'input', 'why': why}]
    return {'text': REFUSAL, 'posts': posts, 'cited': []}
  prompt = await run_in_threadpool(service.encode_chat, messages)
  tokens = min(PROMPT['tokens'], service.limits.answer_tokens)
  body = Generation.model_validate({'model': service.name, 'temperature': 0, 'seed': 0})
  asks = make_asks(service, body, http, [prompt], asked=tokens, param='answer')
  answers = service.answer(asks)
  (whole,) = await gather(http, answers, Shown(service, answers, entry))
  return {'text': whole.text, 'posts': posts, 'cited': cited(whole.text, posts)}
