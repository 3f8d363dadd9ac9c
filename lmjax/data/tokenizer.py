"""Text to token ids and back, byte for byte: byte-level BPE, trained here or loaded.

Every byte has a token of its own, so any bytes can be encoded and come back exactly. A
`tokenizer.json` is taken only if it keeps that promise (GPT-2, Llama 3, Qwen, SmolLM, ...), and so do
SentencePiece's with a token for each byte (Llama 2, Mistral, Gemma), but that they spell a space as
U+2581 and so give that sign back as a space. Others, such as WordPiece, rewrite letters and are
refused in a sentence. Knows nothing about shards or models.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.core.storage import at

START, END = '<|start|>', '<|end|>'
SMALLEST = 258  # 256 bytes, start and end

# What a merge may not cross, in order: scheme and host of a link; a word with its @ or # and one
# apostrophe; digits; other signs; space. Against GPT-2's pattern the first two lines save 15% of
# the tokens of English news posts at 4,096 tokens (35.7 -> 30.4 a post), and marks that belong to
# a letter (Hindi, Arabic, Thai) stay with it.
WORDS = (
  r' ?https?://[^\s/]+/?'
  r"| ?[@#]?[\p{L}\p{M}]+(?:['’]\p{L}+)?"
  r'| ?\p{N}+'
  r'| ?[^\s\p{L}\p{M}\p{N}]+'
  r'|\s+(?!\S)|\s+'
)

# Names under which tokenizers in the wild keep the two control tokens; the first found is used.
_STARTS = (START, '<|begin_of_text|>', '<|startoftext|>', '<|endoftext|>', '<s>', '[BOS]', '<bos>')
_ENDS = (END, '<|end_of_text|>', '<|endoftext|>', '</s>', '[EOS]', '<eos>')

# What inexact tokenizers change: spaces at the ends and in a row, accents, case, ligatures.
_PROBE = 'é   e\u0301 \u212b\n\n\tİK ﬁ <|end|></s> 1234567 😀 \u200f\u0915\u094d\u0937  '

# In text made of bytes (`surrogateescape`), the bytes that are no UTF-8 are the code points from
# U+DC80. A lone surrogate in a user's text is written as its three bytes and comes out the same.
_STRAY = re.compile('([\udc80-\udcff]+)')
_SURROGATE = re.compile('[\ud800-\udfff]')

# How SentencePiece spells a space, and a byte that no longer piece has.
_SPACE = '\u2581'
_BYTE_PIECE = re.compile('<0x([0-9A-F]{2})>')


class TokenizerConfig(Config):
  """Which tokenizer: one from a file, or one trained on the posts."""

  tokenizer: str = leaf('', 'A byte-level tokenizer.json to use; empty = train one on the posts.')
  vocab: int = leaf(4096, 'Size of a trained vocabulary, in tokens.', low=SMALLEST)

  def load(self) -> 'Tokenizer | None':
    """The tokenizer in the file, or None where one is to be trained."""
    return Tokenizer.load(self.tokenizer) if self.tokenizer else None


class Tokenizer:
  """Byte-level BPE with two control tokens, which no text can spell.

  Attributes:
    start, end: ids of the tokens before and after a post; a loaded tokenizer may use one for both.
    vocab: number of ids, from 0.
    controls: every control token by what it is called, with its id.
    before: ids that the tokenizer itself puts before any text: its start token, or none.
    sha256: hash of what `save` writes.
  """

  def __init__(self, inner: tokenizers.Tokenizer, *, start: str, end: str) -> None:
    # Text is taken as it is: no normaliser, no cutting or padding, and control tokens that a user
    # types stay text.
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True
    self._prefix = _prefix(inner)
    if self._prefix is None:
      inner.normalizer = None
    self._json = inner.to_str()
    if self._prefix is not None:  # spaces are respelled here, where stray bytes are known
      inner.normalizer = None
      if isinstance(inner.pre_tokenizer, pre_tokenizers.Metaspace):
        inner.pre_tokenizer = None
    self._inner = inner
    self._bytes = _token_bytes(inner, self._prefix is not None)
    ids = inner.get_vocab()
    byte_names = _byte_chars() if self._prefix is None else [f'<0x{b:02X}>' for b in range(256)]
    self._stray = np.array([ids.get(name, -1) for name in byte_names], np.int32)
    added = inner.get_added_tokens_decoder()
    self.controls = {token.content: index for index, token in added.items() if token.special}
    alone = inner.encode('', add_special_tokens=True).ids
    self.before = tuple(alone[: 1 if alone[:1] == [ids[start]] else 0])
    self.start, self.end = ids[start], ids[end]
    self.vocab = len(self._bytes)
    self.sha256 = hashlib.sha256(self._json.encode()).hexdigest()

  @classmethod
  def load(cls, path: str | Path, *, every_byte: bool = True) -> 'Tokenizer':
    """The tokenizer in a `tokenizer.json`.

    Args:
      every_byte: False takes one that has no token for some bytes, and leaves these out, as SmolLM2's
        does 21 that hardly any text has: a published model has no other.

    Raises:
      UserError: no such file, no tokenizer, no control tokens, or not exact for every text.
    """
    try:
      text = at(str(path)).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(f'tokenizer {path} cannot be read: {error}') from None
    return cls.from_json(text, path, every_byte=every_byte)

  @classmethod
  def from_json(cls, text: str, path: str | Path, *, every_byte: bool = True) -> 'Tokenizer':
    """`load` of the text of a `tokenizer.json`; `path` says where it is from."""
    try:
      inner = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
      raise UserError(f'tokenizer {path} is not a tokenizer.json: {error}') from None
    start = _control(inner, 'start', _STARTS, path)
    end = _control(inner, 'end', _ENDS, path)
    try:
      found = cls(inner, start=start, end=end)
      exact = found.decode(found.encode(_PROBE)) == _PROBE.encode()
      exact = exact and not (every_byte and np.any(found._stray < 0))
    except KeyError:  # a token that is not made of bytes
      exact = False
    if not exact:
      raise UserError(
        f'tokenizer {path} does not give every text back byte for byte: '
        'pass a byte-level BPE, or none to train one on the posts'
      )
    return found

  def save(self, path: str | Path) -> None:
    """Writes a `tokenizer.json` that `load` and other programs read."""
    Path(path).write_text(self._json, encoding='utf-8')

  def to_json(self) -> str:
    """What `save` writes and `from_json` reads."""
    return self._json

  def encode(self, text: str | bytes) -> np.ndarray:
    """Token ids of one text, i32, without start and end."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
    """Token ids of each text, on all cores; bytes that are no UTF-8 become their byte tokens."""
    clean = [_escaped(text) for text in texts]
    plain = [text if _STRAY.search(text) is None else '' for text in clean]
    found = self._inner.encode_batch_fast(list(map(self._spell, plain)), add_special_tokens=False)
    return [
      np.array(tokens.ids, np.int32) if text is whole else self._encode_stray(whole)
      for whole, text, tokens in zip(clean, plain, found, strict=True)
    ]

  def name(self, token: int) -> str:
    """What a token is called, `<|end|>` say, in the vocabulary."""
    found = self._inner.id_to_token(token)
    assert found is not None, token
    return found

  def spell(self, token: int) -> bytes:
    """The bytes that one token spells within a text; nothing of a control token."""
    return self._bytes[token]

  def decode(self, tokens: Iterable[int]) -> bytes:
    """The bytes that `tokens` spell; control tokens spell nothing."""
    spelled = b''.join([self._bytes[token] for token in np.asarray(tokens).tolist()])
    return spelled.removeprefix(b' ') if self._prefix else spelled

  def text(self, tokens: Iterable[int]) -> str:
    """`decode` as text, with U+FFFD for what is no UTF-8."""
    return self.decode(tokens).decode('utf-8', errors='replace')

  def _spell(self, text: str, first: bool = True) -> str:
    """`text` with its spaces as the vocabulary has them, and the one before it if it is the first."""
    if self._prefix is None or not text:
      return text
    return (self._prefix if first else '') + text.replace(' ', _SPACE)

  def _encode_stray(self, text: str) -> np.ndarray:
    """Ids of a text with stray bytes: each run of them by itself, the text between as usual."""
    runs = []
    for run in _STRAY.split(text):
      if _STRAY.match(run):
        stray = self._stray[[ord(char) - 0xDC00 for char in run]]
        runs.append(stray[stray >= 0])
      elif run:
        spelled = self._spell(run, not runs)
        runs.append(np.array(self._inner.encode(spelled, add_special_tokens=False).ids, np.int32))
    return np.concatenate(runs)


def train(texts: Iterable[str], vocab: int) -> Tokenizer:
  """A byte-level BPE of at most `vocab` tokens; the same for the same texts, in any order."""
  inner = tokenizers.Tokenizer(models.BPE())
  inner.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(WORDS), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  inner.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab,
    special_tokens=[START, END],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  inner.train_from_iterator((_SURROGATE.sub('\ufffd', text) for text in texts), trainer)
  return Tokenizer(inner, start=START, end=END)


def _escaped(text: str | bytes) -> str:
  if isinstance(text, str):
    if _SURROGATE.search(text) is None:
      return text
    text = text.encode('utf-8', 'surrogatepass')
  return text.decode('utf-8', 'surrogateescape')


@functools.cache
def _byte_chars() -> list[str]:
  """The character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
  printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  rest = [byte for byte in range(256) if byte not in printable]
  return [chr(byte if byte in printable else 256 + rest.index(byte)) for byte in range(256)]


def _prefix(inner: tokenizers.Tokenizer) -> str | None:
  """What SentencePiece's tokenizer puts before a text, _SPACE or nothing; None of any other kind.

  It may say so as a normaliser or as a pre-tokeniser.
  """
  if not getattr(inner.model, 'byte_fallback', False):
    return None
  said = json.loads(inner.to_str())
  steps = [said['normalizer'] or {}, said['pre_tokenizer'] or {}]
  steps += [step for parent in steps for step in parent.get('normalizers', [])]
  adds = [s['type'] == 'Prepend' or s.get('prepend_scheme', 'never') != 'never' for s in steps if s]
  return _SPACE if any(adds) else ''


def _token_bytes(inner: tokenizers.Tokenizer, pieces: bool) -> list[bytes]:
  """What each id spells, of SentencePiece's pieces or else; KeyError where it is not made of bytes."""
  byte_of = {char: byte for byte, char in enumerate(_byte_chars())}
  vocab = inner.get_vocab(with_added_tokens=True)
  added = inner.get_added_tokens_decoder()
  spelled = [b''] * (max(vocab.values()) + 1)
  for token, index in vocab.items():
    if index not in added and pieces:
      byte = _BYTE_PIECE.fullmatch(token)
      plain = token.replace(_SPACE, ' ').encode()
      spelled[index] = bytes.fromhex(byte[1]) if byte else plain
    elif index not in added:
      spelled[index] = bytes(byte_of[char] for char in token)
    elif not added[index].special:
      spelled[index] = added[index].content.encode()
  return spelled


def _control(
  inner: tokenizers.Tokenizer, which: str, names: Sequence[str], path: str | Path
) -> str:
  special = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
  found = [name for name in names if name in special]
  if not found:
    raise UserError(
      f'tokenizer {path} has no special token for the {which} of a post: add one of '
      f'{", ".join(names)} (it has {", ".join(sorted(special)) or "none"})'
    )
  return found[0]
