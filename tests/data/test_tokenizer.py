"""Any bytes come back and nothing that is typed is a control token, or the file is refused."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lmjax.core.errors import UserError
from lmjax.data.tokenizer import END, START, Tokenizer, TokenizerConfig, train

TEXTS = [
  'the ferry is late again: http://ex.org/x1',
  'the ferry left, the sea is calm @harbour',
  'नमस्ते दुनिया 😀😀 #sea it’s 1234567',
] * 9
TRAINED = train(TEXTS, 400)

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@given(
  st.one_of(st.binary(), any_text, st.binary().map(lambda b: b'the ferry \xf0\x9f\x98\x80' + b))
)
def test_any_bytes_come_back(text):
  raw = text if isinstance(text, bytes) else text.encode('utf-8', 'surrogatepass')
  assert TRAINED.decode(TRAINED.encode(text)) == raw


@given(st.lists(st.one_of(st.binary(max_size=9), st.text(max_size=9)), max_size=5))
def test_a_batch_is_each_text_alone(texts):
  for alone, together in zip(map(TRAINED.encode, texts), TRAINED.encode_batch(texts), strict=True):
    np.testing.assert_array_equal(alone, together)
    assert together.dtype == np.int32


def test_stray_bytes_become_byte_tokens_and_the_text_around_them_stays():
  parts = [TRAINED.encode(part) for part in (b'the ferry', b'\xff', b'\xfe', ' is late')]
  np.testing.assert_array_equal(TRAINED.encode(b'the ferry\xff\xfe is late'), np.concatenate(parts))
  assert len(parts[1]) == len(parts[2]) == 1


def test_control_tokens_that_a_user_types_stay_text():
  for tokens in (TRAINED.encode(f'a{END}b{START}'), TRAINED.encode_batch([f'a{END}b{START}'])[0]):
    assert not {TRAINED.start, TRAINED.end} & set(tokens.tolist())
    assert TRAINED.text(tokens) == f'a{END}b{START}'


def test_control_tokens_spell_nothing():
  assert TRAINED.decode([TRAINED.start, *TRAINED.encode('sea'), TRAINED.end]) == b'sea'


def test_bytes_that_are_no_text_are_shown_as_such():
  assert TRAINED.text(TRAINED.encode(b'sea \xff')) == 'sea \ufffd'


def test_training_depends_on_the_texts_and_not_on_their_order():
  assert train(TEXTS[::-1], 400).sha256 == TRAINED.sha256
  assert train(TEXTS, 300).sha256 != TRAINED.sha256


def test_the_vocabulary_holds_every_byte_and_is_no_larger_than_asked():
  assert train(TEXTS, 258).vocab == 258
  assert train(TEXTS, 300).vocab == 300
  assert TRAINED.vocab <= 400
  with pytest.raises(UserError, match='of 258 or more'):
    TokenizerConfig(vocab=257)


def test_a_word_keeps_its_sign_and_a_link_its_host():
  tokenizer = train(TEXTS, 2000)
  for text in (' @harbour', ' #sea', ' it’s', ' http://ex.org/', 'नमस्ते'):
    assert len(tokenizer.encode(text)) == 1


def test_a_saved_tokenizer_is_loaded_the_same(tmp_path):
  TRAINED.save(tmp_path / 'tokenizer.json')
  loaded = TokenizerConfig(tokenizer=str(tmp_path / 'tokenizer.json')).load()
  assert loaded is not None
  assert loaded.sha256 == TRAINED.sha256
  assert (loaded.start, loaded.end, loaded.vocab) == (TRAINED.start, TRAINED.end, TRAINED.vocab)
  np.testing.assert_array_equal(loaded.encode(TEXTS[2]), TRAINED.encode(TEXTS[2]))


def _byte_level(special: list[str], **spaces) -> tokenizers.Tokenizer:
  """As GPT-2, Llama 3 and Qwen save theirs."""
  inner = tokenizers.Tokenizer(models.BPE())
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(**{'add_prefix_space': False, **spaces})
  inner.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
  )
  inner.train_from_iterator(TEXTS, trainer)
  return inner


def _save(inner: tokenizers.Tokenizer, folder) -> str:
  inner.save(str(folder / 'tokenizer.json'))
  return str(folder / 'tokenizer.json')


def test_a_foreign_byte_level_tokenizer_neither_normalises_nor_cuts(tmp_path):
  inner = _byte_level(['<|endoftext|>'])
  inner.add_tokens(['late again'])  # an added token that is no control token is text
  inner.normalizer = normalizers.NFC()
  inner.enable_truncation(4)
  inner.enable_padding(length=64)
  tokenizer = Tokenizer.load(_save(inner, tmp_path))
  text = 'e\u0301, the ferry is late again and again <|endoftext|>'
  assert tokenizer.text(tokenizer.encode(text)) == text
  assert tokenizer.start == tokenizer.end == 0
  assert tokenizer.decode([0]) == b''


@pytest.mark.parametrize(
  ('special', 'start', 'end'),
  [(['<s>', '</s>'], 0, 1), (['x', '<|end_of_text|>', '<|begin_of_text|>'], 2, 1)],
)
def test_start_and_end_are_found_under_their_common_names(tmp_path, special, start, end):
  tokenizer = Tokenizer.load(_save(_byte_level(special), tmp_path))
  assert (tokenizer.start, tokenizer.end) == (start, end)


def test_a_tokenizer_that_changes_text_is_refused(tmp_path):
  words = tokenizers.Tokenizer(models.WordPiece({'[UNK]': 0, 'sea': 1}, unk_token='[UNK]'))
  words.add_special_tokens(['<s>', '</s>'])
  prefixed = _byte_level(['<s>', '</s>'], add_prefix_space=True)
  few_bytes = tokenizers.Tokenizer(models.BPE({'a': 0}, []))
  few_bytes.add_special_tokens(['<s>', '</s>'])
  for inner in (words, prefixed, few_bytes):
    with pytest.raises(UserError, match='byte for byte: pass a byte-level BPE, or none'):
      Tokenizer.load(_save(inner, tmp_path))


def _pieces(prefix: str, as_normaliser: bool) -> tokenizers.Tokenizer:
  """As Llama 2 and Mistral (with a prefix) and Gemma (without) save theirs."""
  names = ['<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256))]
  names += ['▁', 's', 'e', 'a', 'se', 'sea', '▁sea', '▁▁']
  merges = [('s', 'e'), ('se', 'a'), ('▁', 'sea'), ('▁', '▁')]
  vocab = {name: index for index, name in enumerate(names)}
  bpe = models.BPE(vocab, merges, unk_token='<unk>', fuse_unk=True, byte_fallback=True)
  inner = tokenizers.Tokenizer(bpe)
  if as_normaliser:
    steps = [normalizers.Prepend('▁')] if prefix else []
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(' ', '▁')])
  else:
    scheme = 'first' if prefix else 'never'
    inner.pre_tokenizer = pre_tokenizers.Metaspace('▁', prepend_scheme=scheme, split=False)
  inner.add_special_tokens(['<unk>', '<s>', '</s>'])
  return inner


@pytest.mark.parametrize('as_normaliser', [True, False])
@pytest.mark.parametrize('prefix', ['▁', ''])
def test_a_sentencepiece_tokenizer_gives_its_ids_and_every_byte_back(
  tmp_path, prefix, as_normaliser
):
  path = _save(_pieces(prefix, as_normaliser), tmp_path)
  tokenizer = Tokenizer.load(path)
  expected = tokenizers.Tokenizer.from_file(path).encode('sea  sea é', add_special_tokens=False)
  assert tokenizer.encode('sea  sea é').tolist() == expected.ids
  assert (tokenizer.start, tokenizer.end) == (1, 2)
  for text in (
    b'',
    b' ',
    b' sea',
    b'sea\xff sea\xfe',
    b'\xff sea',
    b' \xff',
    b'</s>',
    '😀'.encode(),
  ):
    assert tokenizer.decode(tokenizer.encode(text)) == text
  tokenizer.save(tmp_path / 'again.json')
  assert Tokenizer.load(tmp_path / 'again.json').sha256 == tokenizer.sha256
  again = tokenizers.Tokenizer.from_file(str(tmp_path / 'again.json'))
  assert again.encode('sea  sea é', add_special_tokens=False).ids == expected.ids


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
  with pytest.raises(UserError, match=r'gone\.json cannot be read: .*No such file'):
    Tokenizer.load(tmp_path / 'gone.json')
  (tmp_path / 'list.json').write_text('[1, 2]')
  with pytest.raises(UserError, match=r'list\.json is not a tokenizer\.json'):
    Tokenizer.load(tmp_path / 'list.json')


def test_a_tokenizer_without_control_tokens_is_refused(tmp_path):
  with pytest.raises(
    UserError, match=r'no special token for the start of a post: add one of <\|start'
  ):
    Tokenizer.load(_save(_byte_level(['[PAD]']), tmp_path))
  with pytest.raises(UserError, match=r'for the end of a post: .*it has \[BOS\]'):
    Tokenizer.load(_save(_byte_level(['[BOS]']), tmp_path))
