"""Copy by a language model: a plan says which facts, a grammar which sentences that claim nothing, and lengths.

What the grammar lets through is still checked (`creative.find_problems`). Extras [ads], [serve].
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmjax.ads.brief import Brief
from lmjax.ads.creative import Copy, Limits, capitalised, source_of, vocabulary, voice_of, wordings
from lmjax.core.errors import UserError
from lmjax.data import chat
from lmjax.generate.constrain import Grammar, Grammars
from lmjax.generate.continuous import Batching, Engine
from lmjax.generate.prepare import prepare
from lmjax.generate.sampler import Sampler
from lmjax.generate.scheduler import Request
from lmjax.generate.settings import Settings
from lmjax.generate.text import Ended, Piece, TextListener
from lmjax.interop.load import Loaded

TOKENS = 160  # of an answer at most; the grammar ends it far earlier
_ROWS = 4  # copies at a time
_SENTENCES, _FACTS = 3, 2  # of a body, of a sentence, at most


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
    prompt = chat.encode(
      template or '', copy_messages(brief, limits), tokenizer, answer=True
    ).tolist()
    grammars = copy_grammars(self._grammars, brief, limits, count, seed)
    found: list[list[Piece | Ended]] = [[] for _ in range(count)]
    requests = [
      Request(
        prompt=prompt,
        max_tokens=TOKENS,
        settings=Settings(self._sampler, seed=seed, choice=i, constraint=grammars[i]),
        listener=TextListener(tokenizer, found[i].append),
        ends=frozenset(self._loaded.ends),
      )
      for i in range(count)
    ]
    self._engine.submit(*requests)
    while self._engine.step():
      pass
    return [read for pieces in found if (read := read_copy(pieces)) is not None]


def copy_grammars(
  grammars: Grammars, brief: Brief, limits: Limits, count: int, seed: int
) -> list[Grammar]:
  """What each of `count` copies is held to, by a plan of its own."""
  plans = (plan_copy(brief, limits, np.random.default_rng((seed, i))) for i in range(count))
  return [grammars.json_schema(copy_schema(brief, limits, plan)) for plan in plans]


def read_copy(pieces: Sequence[Piece | Ended]) -> tuple[Copy, float] | None:
  """The copy that an answer is and the mean log-probability of its tokens; None where it is none."""
  spoken = [piece for piece in pieces if isinstance(piece, Piece)]
  logprobs = [drawn.logprob for piece in spoken for drawn in piece.drawn]
  try:
    said = json.loads(''.join(piece.text for piece in spoken))
    return Copy(*(said[name].strip() for name in Copy._fields)), sum(logprobs) / len(logprobs)
  except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
    return None


def copy_messages(brief: Brief, limits: Limits) -> list[dict[str, str]]:
  """What a model is asked for the copy of a brief, when it writes as when it learns to (`copies.py`)."""
  audience = brief.audience
  lines = [f'Product: {brief.product}', *(f'Fact: {fact}' for fact in brief.facts)]
  lines += [f'Use the word: {word}' for word in brief.must]
  said = {
    'Tone': brief.tone,
    'For people who like': ', '.join(audience.interests),
    'Of age': '' if audience.age == 'any' else audience.age,
    'Of style': audience.style,
    'Looking for prices': '' if audience.price == 'any' else audience.price,
  }
  lines += [f'{name}: {words}' for name, words in said.items() if words]
  system = (
    'You write short advertisements for the people named, of the facts given alone. You answer with '
    f'JSON: a headline of at most {limits.headline} characters, a body of at most {limits.body} '
    'characters, and a call to action.'
  )
  return [{'role': 'system', 'content': system}, {'role': 'user', 'content': '\n'.join(lines)}]


def answer_of(copy: Copy) -> str:
  """A copy as the grammar has a model answer it, which `read_copy` reads."""
  return json.dumps(copy._asdict(), ensure_ascii=False, separators=(',', ':'))


class Plan(NamedTuple):
  """Which facts a copy says and in what order, so that each is said once; the words are left to a model.

  Attributes:
    head: the facts of the headline, none or one.
    sentences: of each sentence of the body its facts, none, one or two.
  """

  head: tuple[str, ...]
  sentences: tuple[tuple[str, ...], ...]


def plan_copy(brief: Brief, limits: Limits, random: np.random.Generator) -> Plan:
  """A plan with all facts of a brief in an order drawn at random, or as many as fit the body.

  Moryossef et al. 2019 (arXiv:1904.03396): what is said is planned, then put into words.
  """
  said = source_of(brief._replace(must=())).casefold()
  wanted = [word for word in brief.must if word.casefold() not in said]
  facts = [_clean(fact) for fact in random.permutation([*brief.facts, *wanted]).tolist()]
  facts = sorted(dict.fromkeys(filter(None, facts)), key=lambda fact: fact not in wanted)
  most = _SENTENCES * _FACTS
  for kept in range(min(len(facts), most + 1), -1, -1):
    order = random.choice([1, -1])
    for head, rest in _heads(facts[:kept])[::order]:
      plan = Plan(head, _split(rest, random))
      if _fits(brief, plan, limits):
        closed = plan._replace(sentences=(*plan.sentences, ()))
        room = len(plan.sentences) < _SENTENCES and _fits(brief, closed, limits)
        return closed if room and (not rest or random.integers(2)) else plan
  return Plan((), ())


def _heads(facts: Sequence[str]) -> list[tuple[tuple[str, ...], Sequence[str]]]:
  """The fact of a headline and the others: each in turn, then none."""
  each = [((fact,), [*facts[:i], *facts[i + 1 :]]) for i, fact in enumerate(facts)]
  return [*each, ((), facts)]


def _split(facts: Sequence[str], random: np.random.Generator) -> tuple[tuple[str, ...], ...]:
  """Facts in their order as sentences of one or two each, at most three."""
  if not facts:
    return ()
  least = -(-len(facts) // _FACTS)
  count = (
    int(random.integers(least, min(_SENTENCES, len(facts)) + 1)) if least <= _SENTENCES else least
  )
  doubled = set(random.permutation(count)[: len(facts) - count].tolist())
  rest = iter(facts)
  return tuple(tuple(itertools.islice(rest, 1 + (i in doubled))) for i in range(count))


def _fits(brief: Brief, plan: Plan, limits: Limits) -> bool:
  """Whether some words for a plan are within the limits, none of it without words."""
  words = vocabulary()
  head = _filled(words['headlines'], brief.product, plan.head)
  body = [_filled(words['sentences'], brief.product, facts) for facts in plan.sentences]
  if not head or not all(body) or len(body) > _SENTENCES:
    return False
  length = sum(min(map(len, one)) + 1 for one in body) - 1
  return min(map(len, head)) <= limits.headline and length <= limits.body


def copy_schema(brief: Brief, limits: Limits, plan: Plan) -> dict[str, Any]:
  """A JSON schema of copies by a plan: sentences of words.json, filled with the brief's product and facts."""
  words = wordings(voice_of(brief))
  text = lambda parts, limit: {
    'type': 'string',
    'pattern': f'^{" ".join(map(_any_of, _within(parts, limit)))}$',
  }
  filled = lambda name, facts: _filled(words[name], brief.product, facts)
  return {
    'type': 'object',
    'properties': {
      'headline': text([filled('headlines', plan.head)], limits.headline),
      'body': text([filled('sentences', one) for one in plan.sentences], limits.body),
      'action': {
        'type': 'string',
        'enum': [one for one in words['actions'] if len(one) <= limits.action],
      },
    },
    'required': list(Copy._fields),
    'additionalProperties': False,
    'x-guidance': {'whitespace_flexible': False},  # llguidance's: no tokens are spent on blanks
  }


def _within(parts: Sequence[Sequence[str]], limit: int) -> list[list[str]]:
  """Of each part of a text the wordings that fit `limit` whatever the others are: room is shared out evenly.

  A pattern of these needs no bound of length, which llguidance checks with more work than it allows itself.
  """
  shortest = [min(map(len, part)) for part in parts]
  spare = (limit + 1 - sum(length + 1 for length in shortest)) // max(len(parts), 1)
  return [
    [one for one in part if len(one) <= length + spare]
    for part, length in zip(parts, shortest, strict=True)
  ]


def _any_of(texts: Sequence[str]) -> str:
  return f'({"|".join(map(re.escape, texts))})'


def _filled(frames: Sequence[str], product: str, facts: Sequence[str]) -> list[str]:
  """The frames that have room for just these facts, with them in their order and the product."""
  name = _clean(product)
  found = []
  for frame in frames:
    if _slots(frame) == len(facts):
      rest = iter(facts)
      fill = {'{product}': lambda: name, '{Product}': lambda: capitalised(name)}
      fill |= {
        '{fact}': lambda rest=rest: _lower(next(rest)),
        '{Fact}': lambda rest=rest: capitalised(next(rest)),
      }
      found.append(re.sub(r'{\w+}', lambda slot, fill=fill: fill[slot[0]](), frame))
  return found


def _slots(frame: str) -> int:
  """How many facts a wording has room for."""
  return len(re.findall(r'{[Ff]act}', frame))


def draw_copies(
  brief: Brief, limits: Limits, count: int, random: np.random.Generator
) -> list[Copy]:
  """`count` copies without a model: the choices that the grammar leaves are drawn, no wording twice in a body."""
  words = wordings(voice_of(brief))
  draw = lambda: word_copy(brief, plan_copy(brief, limits, random), random, words)
  return [draw() for _ in range(count)]


def word_copy(
  brief: Brief, plan: Plan, random: np.random.Generator, words: Mapping[str, Sequence[str]]
) -> Copy:
  """A plan in `words` (see `wordings`) drawn at random, of any length."""
  used: set[str] = set()

  def say(kind: str, facts: Sequence[str]) -> str:
    fitting = [frame for frame in words[kind] if _slots(frame) == len(facts)]
    left = [frame for frame in fitting if frame not in used] or fitting
    used.add(frame := left[random.integers(len(left))])
    return _filled([frame], brief.product, facts)[0]

  head = say('headlines', plan.head)
  body = ' '.join(say('sentences', facts) for facts in plan.sentences)
  return Copy(head, body, say('actions', ()))


def _clean(text: str) -> str:
  return ' '.join(text.replace('"', '').replace('\\', '').split()).rstrip('.')


def _lower(text: str) -> str:
  """As within a sentence, but for names: a word of more capitals, or one alone, stays."""
  return text if text[1:2].isupper() or not text[1:2].isalpha() else text[:1].lower() + text[1:]
