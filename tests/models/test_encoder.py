"""The encoder: what it sees, its two layouts, its vectors. B rows, L length."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.core import tree
from lmjax.core.errors import UserError
from lmjax.models.encoder import Encoder, pool

MODEL = Encoder(vocab=64, width=16, layers=2, heads=2, mlp=32, positions=24)
LENGTHS = (5, 3, 9)


@pytest.fixture(scope='module')
def params():
  start = MODEL.init(jax.random.key(0))
  noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)
  return jax.tree.map(noise, start)


def texts():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 64, length) for length in LENGTHS]


def vectors(model, params, rows, length, pooling='mean'):
  """The vectors of rows of texts, in order."""
  tokens, segments, positions = np.zeros((3, len(rows), length), np.int32)
  for row, members in enumerate(rows):
    start = 0
    for number, text in enumerate(members, 1):
      place = (row, slice(start, start + len(text)))
      tokens[place], segments[place], positions[place] = text, number, np.arange(len(text))
      start += len(text)
  hidden_BLD = model.apply(params, tokens, segments, positions).hidden_BLD
  found = pool(hidden_BLD, jnp.asarray(segments), max(map(len, rows)), pooling)
  return np.concatenate([np.asarray(found)[r, : len(m)] for r, m in enumerate(rows)])


@pytest.mark.parametrize('pooling', ['mean', 'first', 'last'])
def test_a_text_has_the_same_vector_alone_padded_and_packed(params, pooling):
  alone = np.concatenate([vectors(MODEL, params, [[t]], len(t), pooling) for t in texts()])
  padded = vectors(MODEL, params, [[text] for text in texts()], 12, pooling)
  packed = vectors(MODEL, params, [texts()], 20, pooling)
  np.testing.assert_allclose(padded, alone, atol=2e-6)
  np.testing.assert_allclose(packed, alone, atol=2e-6)
  np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1.0, atol=1e-6)


def test_every_token_sees_those_after_it(params):
  text = texts()[2]
  one, other = np.zeros((2, 1, 9), np.int32)
  one[0], other[0] = text, text
  other[0, -1] = (text[-1] + 1) % 64
  ones, places = np.ones((1, 9), np.int32), np.arange(9, dtype=np.int32)[None]
  a, b = (MODEL.apply(params, x, ones, places).hidden_BLD for x in (one, other))
  assert np.abs(np.asarray(a - b))[0, 0].max() > 1e-4


def test_both_layouts_are_one_model(params):
  listed = dataclasses.replace(MODEL, layout='list')
  start = MODEL.init(jax.random.key(3))
  jax.tree.map(np.testing.assert_array_equal, tree.stack(listed.init(jax.random.key(3))), start)
  a = vectors(MODEL, params, [texts()], 20)
  np.testing.assert_allclose(vectors(listed, tree.unstack(params), [texts()], 20), a, atol=1e-6)
  names = lambda dims: [str(d) for d in jax.tree.leaves(dims, is_leaf=lambda x: type(x) is tuple)]
  assert all(name.startswith("('layers'") for name in names(MODEL.dims()['layers']))


def test_heads_that_do_not_divide_the_width_are_refused():
  with pytest.raises(UserError, match=r'width=384 is not a multiple of heads=7: pass heads one of'):
    Encoder(heads=7)


def test_hidden_states_are_those_of_transformers(tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  from small_encoder import write_encoder

  from lmjax.interop.encoder import load_encoder

  folder = write_encoder(tmp_path / 'bert')
  loaded = load_encoder(str(folder))
  theirs = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
  tokens = np.arange(20, dtype=np.int32).reshape(2, 10)
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens, dtype=torch.long)).last_hidden_state.numpy()
  places = np.broadcast_to(np.arange(10, dtype=np.int32), (2, 10))
  found = loaded.model.apply(loaded.params, tokens, np.ones_like(tokens), places).hidden_BLD
  np.testing.assert_allclose(np.asarray(found), expected, atol=1e-5)
