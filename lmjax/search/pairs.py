"""Pairs of texts made of posts alone, one to find the other: what an encoder learns from without judgments.

Draws are functions of (seed, epoch, post), so that a batch is a function of its number.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from lmjax.core.errors import UserError
from lmjax.data.loader import Batches
from lmjax.data.shuffle import draws, permutation
from lmjax.data.split import strip_urls
from lmjax.objectives.contrastive import Pairs

Kind = Literal['crops', 'cloze', 'hashtags', 'title', 'paraphrase']
Drawn = Sequence[int]
"""Four random u64."""

_TAG = re.compile(r'(?<!\w)#(\w+)')
_JOINT = re.compile(r'(?<=[a-z])(?=[A-Z])|_')  # of SolarPower, solar_power
_LEAST = 6  # words of a post that is cut
_EPOCHS = 8  # orders kept in memory


class Source(NamedTuple):
  """What pairs are made of: a post without its links, and what was said of it."""

  text: str
  title: str = ''
  paraphrase: str = ''


def crops(source: Source, drawn: Drawn) -> tuple[str, str] | None:
  """Two spans of 30 to 70 % of the words each, as Contriever (Izacard et al. 2021, arXiv:2112.09118)."""
  words = source.text.split()
  if len(words) < _LEAST:
    return None
  return _span(words, 0.3, 0.7, drawn[:2])[0], _span(words, 0.3, 0.7, drawn[2:])[0]


def cloze(source: Source, drawn: Drawn) -> tuple[str, str] | None:
  """A span of 30 to 50 % of the words and what is left (inverse cloze, Lee et al. 2019, arXiv:1906.00300)."""
  words = source.text.split()
  return None if len(words) < _LEAST else _span(words, 0.3, 0.5, drawn[:2])


def hashtags(source: Source, drawn: Drawn) -> tuple[str, str] | None:
  """The words of its hashtags and the post without these."""
  del drawn
  tags = [_JOINT.sub(' ', tag) for tag in _TAG.findall(source.text)]
  rest = ' '.join(_TAG.sub(' ', source.text).split())
  return (' '.join(tags), rest) if tags and len(rest.split()) > 1 else None


def title(source: Source, drawn: Drawn) -> tuple[str, str] | None:
  """The title of what it links to and the post."""
  del drawn
  alike = source.title and source.title.casefold() in source.text.casefold()
  return (source.title, source.text) if source.title and not alike else None


def paraphrase(source: Source, drawn: Drawn) -> tuple[str, str] | None:
  """What a model made of it and the post."""
  del drawn
  return (source.paraphrase, source.text) if source.paraphrase else None


KINDS: dict[Kind, Callable[[Source, Drawn], tuple[str, str] | None]] = {
  'crops': crops,
  'cloze': cloze,
  'hashtags': hashtags,
  'title': title,
  'paraphrase': paraphrase,
}


def _span(words: Sequence[str], low: float, high: float, drawn: Drawn) -> tuple[str, str]:
  """(some words that stand together, the others): a share from `low` to `high`, never all."""
  least, most = max(1, round(low * len(words))), max(1, int(high * len(words)))
  size = least + drawn[0] % (max(most - least, 0) + 1)
  start = drawn[1] % (len(words) - size + 1)
  chosen = words[start : start + size]
  return ' '.join(chosen), ' '.join([*words[:start], *words[start + size :]])


class Usable(NamedTuple):
  """Sources that give pairs, which kinds each gives, and how many give each kind.

  Attributes:
    left_out: sources that give none.
  """

  sources: list[Source]
  kinds: list[tuple[Kind, ...]]
  counts: dict[str, int]
  left_out: int


def find_usable(sources: Sequence[Source], kinds: Sequence[Kind]) -> Usable:
  """Those of `sources` that give a pair of some kind; UserError where fewer than two do."""
  given: list[tuple[Kind, ...]] = [
    tuple(kind for kind in kinds if KINDS[kind](one, (0,) * 4)) for one in sources
  ]
  chosen = [(one, some) for one, some in zip(sources, given, strict=True) if some]
  if len(chosen) < 2:
    raise UserError(
      f'of {len(sources):,} posts {len(chosen)} give pairs={",".join(kinds)}: pass other --posts, or '
      f'more of {",".join(KINDS)}'
    )
  counts = {kind: sum(kind in some for some in given) for kind in kinds}
  left = len(sources) - len(chosen)
  return Usable([one for one, _ in chosen], [some for _, some in chosen], counts, left)


def draw_pair(usable: Usable, index: int, *key: int | str) -> tuple[str, str]:
  """The pair of a source: of a kind that it gives, each as likely as the others."""
  which, *drawn = draws(5, 'pair', index, *key).tolist()
  kinds = usable.kinds[index]
  pair = KINDS[kinds[which % len(kinds)]](usable.sources[index], drawn)
  assert pair is not None
  return pair


class PairBatches(Batches):
  """Batches of `Pairs`: each source once an epoch, in an order and with a pair of the epoch's own.

  Args:
    encode: texts to their tokens.
    length: L, at which tokens are cut.
  """

  def __init__(
    self,
    usable: Usable,
    encode: Callable[[Sequence[str]], list[np.ndarray]],
    *,
    batch: int,
    length: int,
    seed: int,
  ) -> None:
    self.batch_rows, self.length = batch, length
    self._usable, self._encode, self._seed = usable, encode, seed
    count = len(usable.sources)
    self._order = functools.lru_cache(_EPOCHS)(
      lambda epoch: permutation(count, 'pairs', seed, epoch)
    )

  def _read(self, rows: Sequence[int]) -> Pairs:
    places = [divmod(row, len(self._usable.sources)) for row in rows]
    chosen = [(epoch, int(self._order(epoch)[place])) for epoch, place in places]
    texts = [draw_pair(self._usable, index, self._seed, epoch) for epoch, index in chosen]
    assert self.length is not None
    tokens_SL, lengths_S = pad(self._encode([side for pair in texts for side in pair]), self.length)
    arrays = (tokens_SL[::2], lengths_S[::2], tokens_SL[1::2], lengths_S[1::2])
    return Pairs(*arrays, np.array([index for _, index in chosen], np.int32))  # type: ignore[arg-type]


def pad(texts: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
  """(i32 [texts, L], i32 lengths) of token ids cut at `length`."""
  tokens_SL = np.zeros((len(texts), length), np.int32)
  lengths_S = np.array([min(len(ids), length) for ids in texts], np.int32)
  for row, ids in enumerate(texts):
    tokens_SL[row, : lengths_S[row]] = ids[:length]
  return tokens_SL, lengths_S


def as_source(text: str, title: str = '') -> Source:
  """A post, or a document, as pairs are made of it."""
  return Source(strip_urls(text), title)
