"""Shards give back what was written, post by post in any order, or say that they are damaged."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tokenizers
from generated import make_posts, prepare_posts, write_posts
from tokenizers import decoders, models, pre_tokenizers

from lmjax.core.errors import UserError
from lmjax.data import shards as shards_module

POSTS = make_posts(300, seed=1)


@pytest.fixture
def many(cache, tmp_path, monkeypatch):
  """A corpus of several small shards."""
  monkeypatch.setattr(shards_module, 'SHARD_BYTES', 2000)
  return prepare_posts(write_posts(tmp_path / 'a.jsonl', POSTS))


def test_posts_are_read_in_any_order_over_all_shards(many):
  assert len(many.manifest['parts']['train']['shards']) > 5
  expected = [many.tokenizer.encode(text) for text in many.texts('train')]
  indices = np.random.default_rng(0).integers(0, len(expected), 200)
  for index, tokens in zip(indices, many.read('train', indices), strict=True):
    np.testing.assert_array_equal(tokens, expected[index])


def test_records_hold_neither_start_nor_end(many):
  tokens = np.concatenate(many.read('train', range(many.posts('train'))))
  assert not np.isin(tokens, [many.tokenizer.start, many.tokenizer.end]).any()


def test_threads_read_at_once_and_every_byte_is_counted(many):
  alone = [tokens.tolist() for tokens in many.read('train', range(many.posts('train')))]
  once = many.bytes_read
  assert once == 2 * many.lengths('train').sum()
  orders = [np.random.default_rng(seed).permutation(len(alone)) for seed in range(8)]
  with ThreadPoolExecutor(8) as pool:
    for order, found in zip(orders, pool.map(lambda o: many.read('train', o), orders), strict=True):
      assert [tokens.tolist() for tokens in found] == [alone[index] for index in order]
  assert many.bytes_read == 9 * once


def test_no_post_is_read_past_the_end(many):
  with pytest.raises(IndexError):
    many.read('train', [many.posts('train')])


def test_a_large_vocabulary_takes_four_bytes_a_token(cache, tmp_path):
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  rare = [f'{a}{b}{c}' for a in letters for b in letters for c in letters[:2]]
  ids = {token: index for index, token in enumerate([*rare, *letters])}
  inner = tokenizers.Tokenizer(models.BPE(ids, []))
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = decoders.ByteLevel()
  inner.add_special_tokens(['<|endoftext|>'])
  inner.save(str(tmp_path / 'large.json'))
  path = write_posts(tmp_path / 'a.jsonl', POSTS[:60])
  shards = prepare_posts(path, tokenizer=str(tmp_path / 'large.json'))
  assert shards.manifest['token_bytes'] == 4
  assert min(tokens.min() for tokens in shards.read('train', range(40))) > 1 << 16
  assert sorted([*shards.texts('train'), *shards.texts('held_out')]) == sorted(POSTS[:60])


def test_bytes_that_changed_in_a_shard_are_noticed(many):
  path = many.folder / many.manifest['parts']['train']['shards'][0]['file']
  damaged = bytearray(path.read_bytes())
  damaged[len(damaged) // 100] ^= 0xFF
  path.write_bytes(damaged)
  with pytest.raises(UserError, match=r'train-00000.* is damaged .*delete .* prepared again'):
    list(many.texts('train'))


def test_lengths_that_changed_are_noticed(many):
  path = many.folder / 'train.lengths.npy'
  np.save(path, np.load(path) + np.uint32(1))
  with pytest.raises(UserError, match='has not the length that it says'):
    many.read('train', [3])
