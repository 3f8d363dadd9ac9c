"""Copy by a language model, held by a grammar to sentences that claim nothing, the brief's facts and lengths.

What the grammar lets through is still checked (`creative.find_problems`). Extras [ads], [serve].
"""

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from lmjax.ads.brief import Brief
from lmjax.ads.creative import Copy, Limits, source_of, vocabulary
from lmjax.core.errors import UserError
from lmjax.data import chat
from lmjax.generate.constrain import Grammars
from lmjax.generate.continuous import Batching, Engine, Settings
from lmjax.generate.prepare import prepare
from lmjax.generate.sampler import Sampler
from lmjax.generate.scheduler import Request
from lmjax.generate.text import Ended, Piece, TextListener
from lmjax.interop.load import Loaded

_TOKENS = 160  # of an answer at most; the grammar ends it far earlier
_ROWS = 4  # copies at a time


class Writer:
  """Writes copies with one model."""

  def __init__(self, loaded: Loaded, sampler: Sampler) -> None:
    """`loaded`: a model with a chat template; UserError where it has none."""
    if loaded.chat_template is None:
      raise UserError(
        f'{loaded.path} has no chat template, so it cannot be told of a brief: tune it with chat_sft '
        'first, or pass another --checkpoint'
      )
    self._loaded, self._sampler = loaded, sampler
    self._grammars = Grammars(loaded.tokenizer, frozenset(loaded.ends))
    model, params = prepare(loaded.model, loaded.params)
    batching = Batching(rows=_ROWS, chunk=128, queue=256, lookup=0)
    self._engine = Engine(
      model, params, vocab=loaded.tokenizer.vocab, batching=batching, slots=1024
    )

  def write(self, brief: Brief, limits: Limits, count: int, seed: int) -> list[tuple[Copy, float]]:
    """`count` copies and the mean log-probability of their tokens, nats; unreadable ones are left out."""
    tokenizer, template = self._loaded.tokenizer, self._loaded.chat_template
    prompt = chat.encode(template or '', _messages(brief, limits), tokenizer, answer=True).tolist()
    grammar = self._grammars.json_schema(copy_schema(brief, limits))
    found: list[list[Piece | Ended]] = [[] for _ in range(count)]
    requests = [
      Request(
        prompt=prompt,
        max_tokens=_TOKENS,
        settings=Settings(self._sampler, seed=seed, choice=i, constraint=grammar.fresh()),
        listener=TextListener(tokenizer, found[i].append),
        ends=frozenset(self._loaded.ends),
      )
      for i in range(count)
    ]
    self._engine.submit(*requests)
    while self._engine.step():
      pass
    return [read for pieces in found if (read := _read(pieces)) is not None]


def _read(pieces: Sequence[Piece | Ended]) -> tuple[Copy, float] | None:
  spoken = [piece for piece in pieces if isinstance(piece, Piece)]
  logprobs = [drawn.logprob for piece in spoken for drawn in piece.drawn]
  try:
    said = json.loads(''.join(piece.text for piece in spoken))
    return Copy(*(said[name].strip() for name in Copy._fields)), sum(logprobs) / len(logprobs)
  except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
    return None


def _messages(brief: Brief, limits: Limits) -> list[dict[str, str]]:
  lines = [f'Product: {brief.product}', *(f'Fact: {fact}' for fact in brief.facts)]
  lines += [f'Use the word: {word}' for word in brief.must]
  if brief.tone:
    lines.append(f'Tone: {brief.tone}')
  if brief.audience.interests:
    lines.append(f'For people who like: {", ".join(brief.audience.interests)}')
  system = (
    'You write short, friendly advertisements. You use only the facts that you are given. You answer '
    f'with JSON: a headline of at most {limits.headline} characters that makes people curious, a body of '
    f'at most {limits.body} characters that says the facts in whole sentences, and a call to action.'
  )
  return [{'role': 'system', 'content': system}, {'role': 'user', 'content': '\n'.join(lines)}]


def copy_schema(brief: Brief, limits: Limits) -> dict[str, Any]:
  """A JSON schema of copies: sentences of words.json, filled with the brief's product and facts."""
  said = source_of(brief._replace(must=())).casefold()
  wanted = [word for word in brief.must if word.casefold() not in said]
  facts = [_clean(fact) for fact in (*brief.facts, *wanted) if _clean(fact)]
  words = vocabulary()
  fill = lambda name: '|'.join(re.escape(one) for one in _filled(words[name], brief.product, facts))
  heads, sentences = fill('headlines'), fill('sentences')
  text = lambda pattern, limit: {'type': 'string', 'pattern': f'^{pattern}$', 'maxLength': limit}
  return {
    'type': 'object',
    'properties': {
      'headline': text(f'({heads})', limits.headline),
      'body': text(f'({sentences})( ({sentences})){{0,2}}', limits.body),
      'action': {
        'type': 'string',
        'enum': [one for one in words['actions'] if len(one) <= limits.action],
      },
    },
    'required': list(Copy._fields),
    'additionalProperties': False,
  }


def _filled(frames: Sequence[str], product: str, facts: Sequence[str]) -> list[str]:
  """Each frame with the product and every choice of facts, none twice."""
  found: dict[str, None] = {}
  name = _clean(product)
  for frame in frames:
    slots = len(re.findall(r'{[Ff]act}', frame))
    for chosen in itertools.permutations(facts, slots):
      rest = iter(chosen)
      fill = {'{product}': lambda: name, '{Product}': lambda: _upper(name)}
      fill |= {
        '{fact}': lambda rest=rest: _lower(next(rest)),
        '{Fact}': lambda rest=rest: _upper(next(rest)),
      }
      found[re.sub(r'{\w+}', lambda slot, fill=fill: fill[slot[0]](), frame)] = None
  return list(found)


def _clean(text: str) -> str:
  return ' '.join(text.replace('"', '').replace('\\', '').split()).rstrip('.')


def _upper(text: str) -> str:
  return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
  """As within a sentence, but for names: a word of more capitals, or one alone, stays."""
  return text if text[1:2].isupper() or not text[1:2].isalpha() else text[:1].lower() + text[1:]
