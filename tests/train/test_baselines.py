from collections import Counter, defaultdict

import numpy as np
import pytest

from lmjax.train.baselines import Posts, baselines, kneser_ney, lzma_bits, order0_bits

VOCAB = 12


def as_posts(token_lists):
  lengths = np.array([len(tokens) for tokens in token_lists], np.int64)
  flat = np.array([token for tokens in token_lists for token in tokens], np.int32)
  return Posts(flat, lengths, [bytes(97 + token for token in tokens) for tokens in token_lists])


def random_posts(seed, count):
  """Posts with repeated phrases, some of one token, one empty."""
  rng = np.random.default_rng(seed)
  phrases = [list(rng.integers(0, VOCAB - 2, size=rng.integers(1, 5))) for _ in range(12)]
  picks = [rng.integers(12, size=rng.integers(1, 5)) for _ in range(count)]
  return [[], *([token for pick in post for token in phrases[pick]] for post in picks)]


class NaiveKneserNey:
  """The definition, an n-gram at a time, in dictionaries."""

  def __init__(self, posts, order):
    self.order = order
    raw = [Counter() for _ in range(order + 2)]
    for post in posts:
      words = ['<s>', *post, '</s>']
      for n in range(1, order + 1):
        for at in range(len(words) - n + 1):
          raw[n][tuple(words[at : at + n])] += 1
    self.counts = [Counter() for _ in range(order + 1)]
    self.words = defaultdict(set)
    for n in range(1, order + 1):
      left = Counter(gram[1:] for gram in raw[n + 1])
      for gram, count in raw[n].items():
        if gram != ('<s>',):
          self.counts[n][gram] = count if n == order or gram[0] == '<s>' else left[gram]
          self.words[gram[:-1]].add(gram[-1])

  def p(self, word, context):
    context = tuple(context)
    if not context:
      lower = 1 / (VOCAB + 1)
    else:
      lower = self.p(word, context[1:])
    counts = self.counts[len(context) + 1]
    total = sum(counts[(*context, other)] for other in self.words[context])
    if not total:
      return lower
    once, twice = (sum(value == times for value in counts.values()) for times in (1, 2))
    discount = max(once, 1) / max(once + 2 * twice, 2)
    kept = max(counts[(*context, word)] - discount, 0)
    return (kept + discount * len(self.words[context]) * lower) / total

  def log2_p(self, post):
    words = ['<s>', *post, '</s>']
    contexts = [words[max(0, at - self.order + 1) : at] for at in range(1, len(words))]
    return [np.log2(self.p(word, context)) for word, context in zip(words[1:], contexts)]


@pytest.mark.parametrize('order', [1, 2, 3, 5])
def test_kneser_ney_is_its_definition(order):
  train, held_out = random_posts(0, 60), random_posts(1, 20) + random_posts(0, 5)
  naive = NaiveKneserNey(train, order)
  expected = np.concatenate([naive.log2_p(post) for post in held_out])
  ours = kneser_ney(as_posts(train), as_posts(held_out), VOCAB, order)
  np.testing.assert_allclose(ours, expected, rtol=1e-12)


@pytest.mark.parametrize('seed', range(6))
def test_kneser_ney_sums_to_one_after_any_context(seed):
  train = random_posts(0, 60)
  rng = np.random.default_rng(seed)
  seen = train[1 + seed][: rng.integers(0, 6)]
  for context in (seen, list(rng.integers(0, VOCAB, size=5)), []):
    posts = as_posts([[*context, word] for word in range(VOCAB)] + [context])
    log2_p = kneser_ney(as_posts(train), posts, VOCAB)
    words = log2_p[:-1][: VOCAB * (len(context) + 2)].reshape(VOCAB, -1)[:, len(context)]
    assert np.exp2(words).sum() + np.exp2(log2_p[-1]) == pytest.approx(1, abs=1e-12)


def test_kneser_ney_fits_ids_of_any_vocabulary():
  far = lambda posts: as_posts([])._replace(
    tokens=posts.tokens.astype(np.int64) + 2**40, lengths=posts.lengths
  )
  train, held_out = as_posts(random_posts(0, 30)), as_posts(random_posts(1, 10))
  near = kneser_ney(train, held_out, 2**41)
  np.testing.assert_array_equal(kneser_ney(far(train), far(held_out), 2**41), near)


def test_kneser_ney_never_costs_infinity():
  train = as_posts([[0, 1, 2]] * 50)
  assert np.isfinite(kneser_ney(train, as_posts([[5, 6], [2, 0]]), VOCAB)).all()


def test_order0_charges_bytes_and_ends_by_frequency():
  # a 2 + 1, b 1 + 1, end 2 + 1 of 5 + 257 in all
  bits = order0_bits([b'aa', b'b'], [b'ab', b'z'])
  assert bits == pytest.approx(-np.log2(np.array([3, 2, 1, 3, 3]) / 262).sum())


def test_lzma_charges_what_the_file_grows_by():
  rng = np.random.default_rng(0)
  texts = [bytes(rng.integers(97, 123, size=100, dtype=np.uint8)) for _ in range(50)]
  bits = lzma_bits(texts[:40], texts[40:])
  assert bits / 1000 == pytest.approx(np.log2(26), rel=0.1)
  assert lzma_bits(texts, texts[:10]) < 0.1 * bits


def test_baselines_are_per_held_out_byte():
  train, held_out = as_posts(random_posts(0, 60)), as_posts(random_posts(0, 30))
  found = baselines(train, held_out, VOCAB)
  size = sum(map(len, held_out.texts))
  assert set(found) == {'order0', 'lzma', 'kneser_ney'}
  assert found['kneser_ney'] == pytest.approx(-kneser_ney(train, held_out, VOCAB).sum() / size)
  assert 0 < found['kneser_ney'] < found['order0'] < 8
