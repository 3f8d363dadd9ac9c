"""What an advertisement says, how long it may be, and whether all of it comes from its brief.

A text may use the words of the brief and words that claim nothing (words.json); a figure must stand
there with its unit and what qualifies it, a negation with what it denies.
"""

import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmjax.ads.audience import load_taxonomy
from lmjax.ads.brief import Brief, Refused
from lmjax.ads.policy import review_text, views

_DATA = Path(__file__).with_name('words.json')
_FIGURE = re.compile(r'([$€£]?) ?(\d+(?:[.,]\d+)*)[- ]?([%€$£]|[^\W\d_]+)?(?: ([^\W\d_]+))?')
_OFFER = re.compile(
  r'[%€$£]|\b(?:euros?|dollars?|pounds?|cents?|off|half price|discount)\b|\bfree (?:\w+ )?(?:delivery|'
  r'shipping|postage|trial|returns?|gifts?|samples?|entry|fitting|month|refills?|installation)\b'
)
_WORDINGS = ('headlines', 'sentences', 'actions')
LONGEST_PRODUCT = 60  # characters, which the smallest banner has room for


class Copy(NamedTuple):
  """The three texts of an advertisement."""

  headline: str
  body: str
  action: str

  @property
  def text(self) -> str:
    """All of it, a line each."""
    return '\n'.join(self)


class Limits(NamedTuple):
  """The most characters of each text."""

  headline: int
  body: int
  action: int


class Problem(NamedTuple):
  """Why a copy is not shown.

  Attributes:
    kind: 'empty', 'length', 'figure', 'offer', 'repeat', 'claim', 'must', 'must_not', 'policy' or 'harmful'.
    words: which of it.
  """

  kind: str
  words: str


def limits_of(formats: Iterable[tuple[int, int]], product: str = '') -> Limits:
  """What fits all of `formats`, (width, height) in pixels; a headline always has room for the product.

  Raises:
    Refused: no banner has room for the product's name.
  """
  if len(product) > LONGEST_PRODUCT:
    raise Refused(
      'invalid', f'product has {len(product)} characters: give at most {LONGEST_PRODUCT}'
    )
  each = [_limits(*size) for size in formats] or [Limits(60, 140, 22)]
  least = Limits(*(min(row) for row in zip(*each, strict=True)))
  longest = max(len(product), len(capitalised(product)))  # the capital of a letter may be two
  return least._replace(headline=max(least.headline, longest))


def capitalised(text: str) -> str:
  return text[:1].upper() + text[1:]


def _limits(width: int, height: int) -> Limits:
  if min(width, height) <= 100:
    return Limits(36, 70, 16)
  return Limits(40, 90, 18) if width * height < 200_000 else Limits(60, 140, 22)


def find_problems(brief: Brief, copy: Copy, limits: Limits) -> list[Problem]:
  """Why `copy` is no faithful, allowed copy of `brief`; empty where it is one."""
  found = [Problem('empty', name) for name in ('headline', 'action') if not getattr(copy, name)]
  for name, limit in limits._asdict().items():
    if len(getattr(copy, name)) > limit:
      found.append(Problem('length', f'{name}: {len(getattr(copy, name))} of {limit}'))
  source = source_of(brief)
  allowed = _figures(source)
  found += [
    Problem('figure', said) for key, said in _figures(copy.text).items() if key not in allowed
  ]
  found += [Problem('offer', fact) for fact in _shortened(brief, copy.text)]
  said = f' {_plain(copy.text)} '
  times = lambda one: len(re.findall(rf'(?<!\w){re.escape(_plain(one))}(?!\w)', said))
  found += [Problem('repeat', one) for one in brief.facts if _plain(one) and times(one) > 1]
  sentences = [_plain(one) for one in re.split(r'[.!?](?:\s|$)', copy.body) if _plain(one)]
  found += [Problem('repeat', one) for one in set(sentences) if sentences.count(one) > 1]
  found += [Problem('claim', word) for word in _unsupported(source, copy.text)]
  found += [Problem('must', word) for word in brief.must if f' {_plain(word)} ' not in said]
  found += [Problem('must_not', word) for word in brief.must_not if _says(copy.text, word)]
  found += [Problem('policy', f'{one.reason}: {one.words}') for one in review_text(copy.text)]
  return found


def source_of(brief: Brief) -> str:
  """All that an advertisement may claim, a line each."""
  return '\n'.join([brief.product, *brief.facts, *brief.must])


@functools.cache
def vocabulary() -> dict[str, Any]:
  """words.json, `neutral` as one tuple of words; its wordings are plain, and `voices` has those of styles."""
  data = json.loads(_DATA.read_text(encoding='utf-8'))
  return {**data, 'neutral': tuple(dict.fromkeys(' '.join(data['neutral']).split()))}


def voice_of(brief: Brief) -> str:
  """The voice of words.json that the style of a brief's audience is spoken to in; '' is none."""
  style = load_taxonomy().style_of(brief.audience)
  return style if style in vocabulary()['voices'] else ''


def wordings(voice: str) -> dict[str, list[str]]:
  """The headlines, sentences and actions that are plain, and those of a voice."""
  own = vocabulary()['voices'].get(voice, {})
  return {kind: [*vocabulary()[kind], *own.get(kind, [])] for kind in _WORDINGS}


def _figures(text: str) -> dict[tuple[str, ...], str]:
  """Each figure (qualifier, number, unit, and of what it is a share) -> how it is written."""
  numbers = vocabulary()['numbers']
  spelled = re.sub(r'[^\W\d_]+', lambda word: str(numbers.get(word[0], word[0])), text.casefold())
  qualifiers = sorted(vocabulary()['qualifiers'], key=len, reverse=True)
  found = {}
  for match in _FIGURE.finditer(spelled):
    sign, number, unit, share = (part or '' for part in match.groups())
    before = ' '.join(spelled[: match.start()].rpartition('\n')[2].split())
    qualifier = next((one for one in qualifiers if re.search(rf'\b{one}$', before)), '')
    key = (qualifier, _number(number), stem(sign or unit), stem(share) if unit == '%' else '')
    found[key] = match[0].strip()
  return found


def unsaid(brief: Brief, texts: Iterable[str]) -> list[str]:
  """The facts with words that none of the texts says."""
  said = [f' {_plain(text)} ' for text in texts]
  facts = filter(_plain, brief.facts)
  return [fact for fact in facts if not any(f' {_plain(fact)} ' in one for one in said)]


def _shortened(brief: Brief, text: str) -> list[str]:
  """Prices and offers that are told in part, so perhaps without their condition."""
  missing = unsaid(brief, [text])
  whole = {fact: fact not in missing for fact in brief.facts}
  told = {key for fact, is_whole in whole.items() if is_whole for key in _keys(fact)}
  return [
    fact
    for fact, is_whole in whole.items()
    if not is_whole and _OFFER.search(fact.casefold()) and _keys(fact) & _keys(text) - told
  ]


def _keys(text: str) -> set[Any]:
  """The figures of a text, and 'free' where it gives something so."""
  free = {'free'} if re.search(r'\bfree \w', text.casefold()) else set()
  return set(_figures(text)) | free


def _number(text: str) -> str:
  """As digits alone: 1,000 and 1000 are one, 1.5 and 1,5 too."""
  text = re.sub(r'[.,](?=\d{3}(?!\d))', '', text).replace(',', '.')
  return text.rstrip('0').rstrip('.') if '.' in text else text


def _unsupported(source: str, text: str) -> list[str]:
  """Words of `text` that neither the source has nor claim nothing, and what it denies otherwise."""
  negations = set(vocabulary()['negations'])
  known = set(map(stem, words_of(source))) | set(map(stem, vocabulary()['neutral']))
  numbers = vocabulary()['numbers']
  found = [
    word
    for word in words_of(text)
    if stem(word) not in known and word not in negations and word not in numbers
  ]
  said, meant = _denials(text), _denials(source)
  found += [f'{no} {word}' for no, word in said - meant]
  affirmed = {stem(word) for word, denied in _polarity(source) if not denied}
  denied = {stem(word) for word, no in _polarity(source) if no} - affirmed
  neutral = set(map(stem, vocabulary()['neutral']))
  found += [word for word, no in _polarity(text) if not no and stem(word) in denied - neutral]
  return found


def _denials(text: str) -> set[tuple[str, str]]:
  """(negation, the word after it); of `sugar-free` (the word before it, 'free')."""
  negations = set(vocabulary()['negations'])
  found = set()
  for line in text.splitlines():
    words = words_of(line)
    for i, word in enumerate(words):
      if word in ('free', 'less') and i:
        found.add((stem(words[i - 1]), word))
      elif word in negations:
        found.add((word, stem(words[i + 1]) if i + 1 < len(words) else ''))
  return found


def _polarity(text: str) -> list[tuple[str, bool]]:
  """Each word, and whether it is denied: up to two words after a negation, or just before `free`."""
  negations = set(vocabulary()['negations'])
  found = []
  for line in text.splitlines():
    words = words_of(line)
    for i, word in enumerate(words):
      after = words[i + 1] in ('free', 'less') if i + 1 < len(words) else False
      found.append((word, after or any(one in negations for one in words[max(0, i - 2) : i])))
  return found


def words_of(text: str) -> list[str]:
  """The words of a text in lower case, digits left out."""
  return re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", text.casefold())


def stem(word: str) -> str:
  """A word without the endings of plural, participle and possession; what is left is compared alone."""
  word = re.sub(r"['’]s?$", '', word)
  for ending, least in (('ies', 4), ('es', 5), ('s', 4), ('ing', 6), ('ed', 5), ('e', 4), ('y', 4)):
    if word.endswith(ending) and len(word) >= least and not word.endswith('ss'):
      return word[: -len(ending)]
  return word


def _plain(text: str) -> str:
  return ' '.join(re.findall(r'[\w%€$£]+', text.casefold()))


def _says(text: str, word: str) -> bool:
  """Whether `text` says `word` in any disguise that `views` undoes."""
  wanted = [re.sub(r'\W+', r'\\W*', re.escape(one)) for one in views(word) if one.strip()]
  return any(
    re.search(rf'(?<!\w){one}(?:e?s)?(?!\w)', seen) for one in wanted for seen in views(text)
  )


def unlike(copies: Sequence[Copy]) -> list[Copy]:
  """`copies` without those that say the same as one before."""
  return list(
    {(_plain(copy.headline), _plain(copy.body)): copy for copy in reversed(copies)}.values()
  )[::-1]
