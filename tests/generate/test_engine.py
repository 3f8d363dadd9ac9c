"""Cached generation is generation by full forward passes, and each row's is its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import QUICK, random_params

from lmjax.generate import engine
from lmjax.generate.sampler import Sampler, row_keys
from lmjax.models.layers import Norm
from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder

# Of the table's 24 ids the tokenizer has 20; a 12th of all draws ends a row.
VOCAB, END, MAX_TOKENS, SEED = 20, 7, 16, 3
SIZES = {'vocab': 24, 'width': 32, 'layers': 2, 'heads': 4, 'head_dim': 8, 'mlp': 48}
MODELS = {
  'scan': Decoder(**SIZES, kv_heads=2, head='untied', windows=(6, 0)),
  'list': Decoder(**SIZES, kv_heads=4, qk_norm=Norm(), layout='list'),
  'moe': Decoder(**SIZES, kv_heads=1, moe=MoE(experts=4, top_k=2)),
}
DRAW = Sampler(temperature=1.5, top_k=15)
GREEDY = Sampler(temperature=0.0)
# The longest takes more than one bucket of the engine.
LENGTHS = (5, 33, 12)

each_model = pytest.mark.parametrize('model', MODELS.values(), ids=MODELS)


def make_prompts(lengths=LENGTHS, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, VOCAB, length).astype(np.int32) for length in lengths]


def generate(model, prompts, sampler=DRAW, params=None, end=END):
  params = random_params(model) if params is None else params
  settings = {'sampler': sampler, 'max_tokens': MAX_TOKENS, 'vocab': VOCAB, 'seed': SEED}
  return [row.tolist() for row in engine.generate(model, params, prompts, end=end, **settings)]


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def next_token(model, sampler, params, tokens_1L, row, place):
  """The token at `place` of a row, from a full forward pass over those before it."""
  positions_1L = jnp.arange(tokens_1L.shape[1])[None]
  segments_1L = (positions_1L < place).astype(jnp.int32)
  output = model.apply(params, tokens_1L, segments_1L, positions_1L)
  logits_1LV = model.logits(params, output.hidden_BLD)
  keys_1 = row_keys(jax.random.key(SEED), row[None], place[None])
  return sampler(logits_1LV[:, place - 1, :VOCAB], keys_1)[0]


def generate_naively(model, prompts, sampler=DRAW):
  params = random_params(model)
  new = []
  for row, prompt in enumerate(prompts):
    tokens = np.zeros((1, max(LENGTHS) + MAX_TOKENS), np.int32)
    tokens[0, : len(prompt)] = prompt
    added = []
    for place in range(len(prompt), len(prompt) + MAX_TOKENS):
      token = next_token(model, sampler, params, tokens, np.int32(row), np.int32(place)).item()
      if token == END:
        break
      tokens[0, place] = token
      added.append(token)
    new.append(added)
  return new


@each_model
def test_cached_generation_is_generation_by_full_forward_passes(model):
  prompts = make_prompts()
  assert generate(model, prompts) == generate_naively(model, prompts)


def test_an_end_token_stops_its_row_alone():
  rows = [row for seed in range(4) for row in generate(MODELS['scan'], make_prompts(seed=seed))]
  lengths = [len(row) for row in rows]
  assert all(END not in row for row in rows)
  assert min(lengths) < MAX_TOKENS
  assert max(lengths) == MAX_TOKENS


@each_model
def test_a_row_does_not_depend_on_what_else_is_in_the_batch(model):
  prompts, others = make_prompts(), make_prompts(LENGTHS[::-1], seed=1)
  together = generate(model, prompts)
  for row, prompt in enumerate(prompts):
    mixed = [prompt if i == row else other for i, other in enumerate(others)]
    assert generate(model, mixed)[row] == together[row]


def test_prompts_of_several_lengths_in_a_batch_equal_each_alone():
  prompts, model = make_prompts((5, 31, 12)), MODELS['scan']
  together = generate(model, prompts, GREEDY)
  assert [generate(model, [prompt], GREEDY)[0] for prompt in prompts] == together


def test_ids_that_the_tokenizer_has_not_are_never_drawn():
  model = MODELS['scan']
  params = random_params(model)
  # Of each pair one is by far the likeliest token, whatever the hidden state.
  head = params['head'].copy()
  head[:, VOCAB::2], head[:, VOCAB + 1 :: 2] = 50 * head[:, :1], -50 * head[:, :1]
  rows = generate(model, make_prompts(), params=params | {'head': head})
  assert all(token < VOCAB for row in rows for token in row)


def test_the_same_seed_draws_the_same_and_rows_of_one_prompt_differ():
  prompts = make_prompts((12, 12, 33))
  prompts[1] = prompts[0]
  first, second, _ = generate(MODELS['scan'], prompts)
  assert first != second
  assert generate(MODELS['scan'], prompts)[:2] == [first, second]
