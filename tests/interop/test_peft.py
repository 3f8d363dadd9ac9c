"""peft's format: a base's tensor plus B A times alpha / rank is the tensor of the merged model."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_models import random_params

from lmjax.adapt.lora import Adapter, Lora
from lmjax.core.errors import UserError
from lmjax.data.tokenizer import train
from lmjax.interop import huggingface, peft
from lmjax.models.transformer import Decoder

MODEL = Decoder(vocab=320, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=64)


def test_terms_over_the_base_are_the_merged_model(tmp_path):
  lora = Lora(paths=('layers/attention/*', 'layers/mlp/down'), rank=3, alpha=12.0)
  adapter, params = Adapter(MODEL, lora), random_params(MODEL)
  noise = lambda x: jax.random.normal(jax.random.key(x.size), x.shape)
  terms = jax.tree.map(noise, adapter.shapes())
  peft.save(tmp_path / 'terms', MODEL, terms, lora, 'base')
  tokenizer = train(['a'], 300)
  for name, weights in (('base', params), ('merged', adapter.merge(params, terms))):
    huggingface.save(tmp_path / name, MODEL, weights, tokenizer)
  base, merged = (load_file(tmp_path / n / 'model.safetensors') for n in ('base', 'merged'))
  written = load_file(tmp_path / 'terms' / peft.WEIGHTS)
  said = json.loads((tmp_path / 'terms' / peft.CONFIG).read_text())
  assert (said['r'], said['lora_alpha']) == (3, 12.0)
  assert said['target_modules'] == ['down_proj', 'k_proj', 'o_proj', 'q_proj', 'v_proj']
  assert len(written) == 2 * 2 * 5
  for name, tensor in base.items():
    key = f'base_model.model.{name.removesuffix(".weight")}.lora_'
    if f'{key}A.weight' in written:
      tensor = tensor + 4.0 * written[f'{key}B.weight'] @ written[f'{key}A.weight']
      assert not np.allclose(tensor, base[name])
    np.testing.assert_allclose(tensor, merged[name], atol=1e-5)


def test_what_is_no_module_there_is_refused(tmp_path):
  lora = Lora(paths=('embed',))
  terms = Adapter(MODEL, lora).init(jax.random.key(0))
  with pytest.raises(UserError, match='embed is no module of its own in llama'):
    peft.save(tmp_path / 'terms', MODEL, terms, lora, 'base')
