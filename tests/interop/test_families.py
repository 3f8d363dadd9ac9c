"""Families of published models against logits of transformers, which these tests do without."""

import json

import numpy as np
import pytest
import tiny

from lmjax.core.errors import UserError
from lmjax.interop import families, huggingface, tensors
from lmjax.models.layers import Norm
from lmjax.models.transformer import Decoder
from lmjax.parallel.mesh import Mesh

GOLDENS = json.loads(tiny.GOLDENS.read_text())
NAMES = sorted(tiny.CONFIGS)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('folders')
  return {name: tiny.write_folder(root / name, name) for name in NAMES}


@pytest.mark.parametrize('name', sorted(GOLDENS))
def test_logits_are_those_of_transformers(folders, name):
  folder = huggingface.read(folders[name])
  params = huggingface.load_params(folders[name], folder)
  found = tiny.sampled(tiny.logits(folder.model, params, tiny.tokens()))
  np.testing.assert_allclose(found, GOLDENS[name], atol=1e-4)


def test_grok_is_what_its_release_computes(folders):
  folder = huggingface.read(folders['grok-1'])
  params = huggingface.load_params(folders['grok-1'], folder)
  expected = grok(tiny.tensors_of('grok-1'), tiny.CONFIGS['grok-1'], tiny.tokens())
  np.testing.assert_allclose(tiny.logits(folder.model, params, tiny.tokens()), expected, atol=1e-4)


def grok(t, c, tokens):
  """Grok-1 in NumPy, after its description (github.com/xai-org/grok-1, model.py), f64 [B, L, V]."""
  norm = lambda x, name: (
    x / np.sqrt(np.mean(x * x, -1, keepdims=True) + c['rms_norm_eps']) * t[f'{name}.scale']
  )
  linear = lambda x, name: x @ t[f'{name}.weight'].astype(float).T
  gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  softmax = lambda x: (
    np.exp(x - x.max(-1, keepdims=True))
    / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)
  )
  x = t['model.embed_tokens.weight'][tokens].astype(float) * c['embedding_multiplier_scale']
  L, heads, groups, K = tokens.shape[1], 6, 3, 8
  turn = np.exp(1j * np.arange(L)[:, None] * 10_000.0 ** (-np.arange(0, K, 2) / K))[None, :, None]

  def rotate(x):
    z = (x[..., : K // 2] + 1j * x[..., K // 2 :]) * turn
    return np.concatenate([z.real, z.imag], -1)

  def attend(h, at):
    q, k, v = (linear(h, f'{at}.{n}_proj').reshape(*tokens.shape, -1, K) for n in ('q', 'k', 'v'))
    k, v = (np.repeat(y, heads // groups, 2) for y in (rotate(k), v))
    scores = np.einsum('blhk,bmhk->bhlm', rotate(q), k) * c['attn_output_multiplier']
    scores = c['max_attn_value'] * np.tanh(scores / c['max_attn_value'])
    scores = np.where(np.tri(L, dtype=bool), scores, -1e30)
    y = np.einsum('bhlm,bmhk->blhk', softmax(scores), v)
    return linear(y.reshape(*tokens.shape, -1), f'{at}.o_proj')

  def experts(h, at):
    probs = softmax(linear(h, f'{at}.gate'))
    best = np.argsort(-probs, -1)[..., : c['num_experts_per_tok']]
    out = np.zeros_like(h)
    for e in range(c['num_experts']):
      gate = np.where((best == e).any(-1), probs[..., e], 0.0)[..., None]
      name = f'{at}.experts.{e}'
      hidden = gelu(linear(h, f'{name}.linear')) * linear(h, f'{name}.linear_v')
      out += gate * linear(hidden, f'{name}.linear_1')
    return out

  for layer in range(4):
    at = f'model.layers.{layer}'
    y = attend(norm(x, f'{at}.pre_attn_norm'), f'{at}.attn')
    x = x + norm(y, f'{at}.post_attn_norm')
    y = experts(norm(x, f'{at}.pre_moe_norm'), f'{at}.moe_block')
    x = x + norm(y, f'{at}.post_moe_norm')
  out = norm(x, 'model.norm') @ t['model.embed_tokens.weight'].astype(float).T
  return out * c['output_multiplier_scale']


@pytest.mark.parametrize('name', NAMES)
def test_a_model_is_written_as_the_family_it_was_read_from(folders, name):
  model = huggingface.read(folders[name]).model
  kind, keys = families.write(model)
  assert kind == name
  assert families.read(keys, 'there')[1] == model


@pytest.mark.parametrize('name', NAMES)
def test_tensors_given_are_those_taken(folders, name):
  folder = huggingface.read(folders[name])
  params = huggingface.load_params(folders[name], folder)
  wanted = tensors.pieces(folder.model, folder.family.names, folder.family.order)
  given, drawn = dict(tensors.give(params, wanted)), tiny.tensors_of(name)
  assert given.keys() == drawn.keys()
  assert all(np.array_equal(given[key], drawn[key]) for key in drawn)


@pytest.mark.parametrize(
  ('name', 'mesh'), [('qwen2', Mesh(fsdp=2, tensor=3)), ('mixtral', Mesh(fsdp=2, pipe=2))]
)
def test_a_mesh_gets_the_same_parameters(folders, name, mesh):
  folder = huggingface.read(folders[name])
  mesh = mesh.build()
  params = huggingface.load_params(folders[name], folder)
  split = huggingface.load_params(folders[name], folder, mesh)
  assert tiny.same(params, split)
  query = split['layers']['attention']['query']
  assert len(query.sharding.device_set) == mesh.size
  assert query.addressable_shards[0].data.size * mesh.size == query.size


@pytest.mark.parametrize(
  ('name', 'change', 'message'),
  [
    ('llama', {'model_type': 'lama'}, r"model_type='lama' is not known here: did you mean llama\?"),
    ('llama', {'hidden_act': 'relu'}, "hidden_act='relu' is not known here: known are silu"),
    ('llama', {'attention_bias': False}, 'mlp_bias without attention_bias'),
    ('llama', {'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, "rope scaling 'yarn'"),
    ('llama', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor is not 1'),
    ('llama', {'hidden_size': None, 'num_attention_heads': 5}, 'width=None: expected an integer'),
    ('qwen3_moe', {'mlp_only_layers': [0]}, 'mlp_only_layers'),
    ('qwen2_moe', {'shared_expert_intermediate_size': 49}, 'is not a multiple'),
    ('gemma2', {'use_bidirectional_attention': True}, 'use_bidirectional_attention'),
    ('gpt2', {'add_cross_attention': True}, 'add_cross_attention'),
    ('gpt2', {'activation_function': 'relu'}, "activation_function='relu'"),
  ],
)
def test_what_a_decoder_cannot_do_is_refused(name, change, message):
  with pytest.raises(UserError, match=message):
    families.read(tiny.config_of(name) | change, 'folder')


def test_a_missing_key_is_named():
  config = tiny.config_of('llama')
  del config['hidden_size']
  with pytest.raises(UserError, match="folder: its config.json has no 'hidden_size'"):
    families.read(config, 'folder')


def test_a_model_of_no_family_is_refused_with_the_nearest():
  model = Decoder(vocab=96, activation='relu2', embedding_norm=Norm())
  told = (
    r'the nearest, \w+, is not for model.activation=relu2 \(swiglu there\), model.embedding_norm=on'
  )
  with pytest.raises(UserError, match=told):
    families.write(model)
