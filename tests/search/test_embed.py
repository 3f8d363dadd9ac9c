"""Vectors of encoders and decoders: each text by itself, the first numbers of them, pooled as asked."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_encoder import write_encoder
from small_models import random_params

from lmjax.core.errors import UserError
from lmjax.data.tokenizer import train
from lmjax.interop.encoder import load_encoder
from lmjax.interop.load import Loaded
from lmjax.models.transformer import Decoder
from lmjax.search.embed import Embedder, batches, open_embedder

TEXTS = ['look', 'user system arguments', 'name']
TOKENIZER = train(['look at the name of a user'] * 3, 300)
MODEL = Decoder(vocab=300, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48)
DECODER = Loaded(MODEL, random_params(MODEL), TOKENIZER, Path('tiny'), 0, None, (), None)


def test_a_decoder_makes_vectors_that_padding_never_changes():
  embedder = Embedder(DECODER)
  together = embedder.embed(TEXTS)
  np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, rtol=1e-5)
  for text, vector in zip(TEXTS, together, strict=True):
    np.testing.assert_allclose(embedder.embed([text])[0], vector, atol=1e-5)


def test_pooled_by_the_last_token_it_is_that_tokens():
  embedder = Embedder(DECODER, pooling='last')
  assert embedder.name != Embedder(DECODER).name
  (last,) = embedder.embed([TEXTS[1]])
  ((which, tokens),) = embedder.embed_tokens([TEXTS[1]])
  assert which == 0
  np.testing.assert_allclose(last, tokens[-1], atol=1e-6)


def test_fewer_dimensions_are_the_first_ones_of_length_one(tmp_path):
  path = str(write_encoder(tmp_path / 'bert'))
  whole, short = open_embedder(path), open_embedder(path, dimensions=6)
  texts = ['cats sleep', 'dogs']
  firsts = whole.embed(texts)[:, :6]
  firsts /= np.linalg.norm(firsts, axis=1, keepdims=True)
  np.testing.assert_allclose(short.embed(texts), firsts, atol=1e-6)
  assert short.name != whole.name
  with pytest.raises(UserError, match='dimensions=17: this encoder has 16'):
    open_embedder(path, dimensions=17)


def test_batches_hold_every_text_once_and_few_shapes():
  lengths = np.random.default_rng(0).integers(0, 90, 500)
  tokens = [np.full(n, n, np.int32) for n in lengths]
  seen, shapes = [], set()
  for chosen, tokens_BL, lengths_B in batches(tokens):
    seen += chosen.tolist()
    shapes.add(tokens_BL.shape)
    assert tokens_BL.size <= 1024
    assert lengths_B.tolist() == lengths[chosen].tolist()
    for row, index in enumerate(chosen):
      np.testing.assert_array_equal(tokens_BL[row, : lengths[index]], tokens[index])
  assert sorted(seen) == list(range(500))
  assert len(shapes) <= 26  # a length each, and the shortest texts in powers of 2


def test_a_long_text_does_not_pad_the_short_ones():
  tokens = [np.zeros(n, np.int32) for n in (256, *[16] * 999)]
  shapes = [tokens_BL.shape for _, tokens_BL, _ in batches(tokens)]
  assert shapes[0] == (1, 256)
  assert sum(rows * length for rows, length in shapes) == sum(map(len, tokens))


def test_queries_share_few_programs():
  shapes = {
    tokens_BL.shape
    for length in range(1, 65)
    for _, tokens_BL, _ in batches([np.zeros(length, np.int32)])
  }
  assert shapes == {(1, 16), (1, 32), (1, 48), (1, 64)}
  assert list(batches([])) == []


def test_the_longest_text_stays_within_the_positions_and_pooling_is_in_the_name(tmp_path):
  loaded = load_encoder(str(write_encoder(tmp_path / 'bert')))
  model = dataclasses.replace(loaded.model, positions=10)
  places = loaded.params['positions'][:10]
  short = loaded._replace(model=model, params=loaded.params | {'positions': places})
  assert np.isfinite(Embedder(short).embed(['cats sleep ' * 20])).all()
  assert Embedder(loaded).name == Embedder(loaded, pooling=loaded.model.pooling).name
  assert Embedder(loaded).name != Embedder(loaded, pooling='last').name
