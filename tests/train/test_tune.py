"""Going on from a trained model: what is learnt, what is saved, and that a stop changes nothing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import random_params

from lmjax.adapt.lora import Lora
from lmjax.checkpoint.store import Checkpoint
from lmjax.core import tree
from lmjax.core.errors import UserError
from lmjax.core.task import save_config
from lmjax.data.conversations import Chats
from lmjax.data.tokenizer import train
from lmjax.interop import huggingface
from lmjax.interop.load import load
from lmjax.models.transformer import Decoder
from lmjax.objectives.preference import Preference
from lmjax.optim.optimizer import AdamW
from lmjax.train.prefer import Prefer, TrainReward
from lmjax.train.tune import Base
from lmjax.train.tune_chat import TuneChat

SIZES = {'width': 32, 'layers': 2, 'heads': 2, 'kv_heads': 2, 'head_dim': 16, 'mlp': 64}
TEMPLATE = (
  "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}"
  "{{ '<|end|>' if m['role'] == 'assistant' else '|' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
COLOURS = ('red', 'green', 'blue', 'black')


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A published model that has learnt nothing, and files of conversations and pairs."""
  folder = tmp_path_factory.mktemp('base')
  tokenizer = train([f'user:{c}|assistant:yes no' for c in COLOURS], 300)
  model = Decoder(**SIZES).with_vocab(tokenizer.vocab)
  params = jax.tree.map(lambda x: 0.3 * x, random_params(model))
  chat = {'chat_template': TEMPLATE, 'ends': (tokenizer.end,), 'length': 64, 'dtype': 'float32'}
  huggingface.save(folder / 'model', model, params, tokenizer, **chat)
  rows = [(f'{a} {b}', 'yes' if a < b else 'no') for a in COLOURS for b in COLOURS if a != b]
  chats = [{'instruction': asked, 'output': said} for asked, said in rows]
  pairs = [{'prompt': asked, 'chosen': 'yes', 'rejected': 'no'} for asked, _ in rows]
  for name, lines in (('chats', chats), ('pairs', pairs)):
    (folder / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
  return folder


def settings(base, file, **changes):
  return {
    'base': Base(checkpoint=str(base / 'model')),
    'source': Chats(chats=str(base / file), held_out=0.25),
    'steps': 12,
    'batch': 4,
    'length': 64,
    'lora': Lora(paths=('layers/*', 'embed'), rank=4),
    'optimizer': AdamW(peak_lr=0.02, weight_decay=0.0),
    'checkpoint': Checkpoint(every_steps=6),
    'evaluate_every': 6,
    **changes,
  }


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path_factory.getbasetemp() / 'tune-cache'))


def run(task, workdir, name):
  workdir.mkdir(exist_ok=True)
  save_config(task, name, workdir)
  return task.run(workdir)


@pytest.mark.parametrize(
  'lora', [Lora(paths=('layers/*', 'embed'), rank=4), None], ids=['lora', 'full']
)
def test_a_model_learns_to_answer_and_is_found_again(base, tmp_path, lora):
  rate = AdamW(peak_lr=0.02 if lora else 0.005, weight_decay=0.0)
  task = TuneChat(
    **settings(base, 'chats.jsonl', lora=lora, optimizer=rate),
    prompts=('red blue',),
    answer_tokens=4,
  )
  report = run(task, tmp_path / 'a', 'chat_sft_smol')
  assert report['after']['loss'] < report['before']['loss'] - 0.5
  assert report['rows'] == {'in': 12, 'used': 9, 'held_out': 3, 'dropped': {}}
  assert report['steps'] == 12
  assert report['peak_rss_gib'] > 0.1
  assert [answer['prompt'] for answer in report['answers']] == ['red blue']
  loaded, start = load(str(tmp_path / 'a')), load(str(base / 'model'))
  assert loaded.chat_template == TEMPLATE
  assert (loaded.step, loaded.model.layers, loaded.length) == (12, 2, 64)
  assert tree.sha256(loaded.params) != tree.sha256(start.params)
  if lora is None:
    assert report['trainable_params'] == tree.count(start.params)
    assert report['parameters_sha256'] == tree.sha256(loaded.params)
  else:
    assert report['trainable_params'] < tree.count(start.params)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(base, tmp_path):
  task = TuneChat(**settings(base, 'chats.jsonl'))
  whole = run(task, tmp_path / 'whole', 'chat_sft_smol')
  run(dataclasses.replace(task, stop_at=6), tmp_path / 'parts', 'chat_sft_smol')
  parts = run(task, tmp_path / 'parts', 'chat_sft_smol')
  assert parts['parameters_sha256'] == whole['parameters_sha256']
  assert parts['before'] == whole['before']


@pytest.mark.parametrize(
  'kind', ['dpo', *(pytest.param(kind, marks=pytest.mark.slow) for kind in ('ipo', 'kto', 'orpo'))]
)
def test_each_preference_loss_learns_which_answer_is_preferred(base, tmp_path, kind):
  task = Prefer(**settings(base, 'pairs.jsonl'), objective=Preference(kind=kind))
  report = run(task, tmp_path / 'a', 'chat_dpo_smol')
  if kind != 'orpo':  # it begins where the reference is
    assert report['before']['accuracy'] == 0.5
    assert report['before']['margin'] == pytest.approx(0.0, abs=1e-3)
  assert report['after']['accuracy'] == 1.0
  assert report['after']['margin'] > report['before']['margin']


def test_references_are_computed_once(base, tmp_path, capsys):
  task = Prefer(**settings(base, 'pairs.jsonl', steps=1, length=48))
  first = run(task, tmp_path / 'a', 'chat_dpo_smol')
  assert 'computing what the model thinks of 12 pairs' in capsys.readouterr().out
  again = run(task, tmp_path / 'b', 'chat_dpo_smol')
  assert 'computing what the model thinks' not in capsys.readouterr().out
  assert again['parameters_sha256'] == first['parameters_sha256']


def test_a_model_of_rewards_ranks_held_out_pairs(base, tmp_path):
  report = run(TrainReward(**settings(base, 'pairs.jsonl')), tmp_path / 'a', 'reward_smol')
  assert report['before']['accuracy'] == 0.5
  assert report['after']['accuracy'] == 1.0
  with pytest.raises(UserError, match='is a model of rewards'):
    load(str(tmp_path / 'a'))


def test_losses_are_those_of_the_papers():
  c_B, r_B = np.array([1.0, -0.5]), np.array([-0.2, 0.3])
  real_B = jnp.ones(2)
  losses = lambda kind: np.asarray(
    Preference(kind=kind, beta=0.5)._losses(jnp.array(c_B), jnp.array(r_B), real_B)
  )
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  np.testing.assert_allclose(losses('dpo'), -np.log(sigmoid(0.5 * (c_B - r_B))), rtol=1e-6)
  np.testing.assert_allclose(losses('ipo'), (c_B - r_B - 1.0) ** 2, rtol=1e-6)
  kept, left = sigmoid(0.5 * (c_B - 0.05)), sigmoid(0.5 * (0.25 - r_B))
  np.testing.assert_allclose(losses('kto'), 1 - (kept + left) / 2, rtol=1e-6)
  c_B, r_B = -np.abs(c_B), -np.abs(r_B)
  odds = lambda x: np.log(np.exp(x) / (1 - np.exp(x)))
  found = Preference(kind='orpo', beta=0.5)._losses(jnp.array(c_B), jnp.array(r_B), real_B)
  expected = -c_B - 0.5 * np.log(sigmoid(odds(c_B) - odds(r_B)))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('changes', 'told'),
  [
    ({'lora': None, 'base_weights': 'int8'}, 'base_weights=int8 cannot be trained'),
    ({'accumulate': 2, 'objective': Preference(kind='kto')}, 'couples the rows of a batch'),
  ],
)
def test_settings_that_contradict_each_other_are_refused(base, changes, told):
  with pytest.raises(UserError, match=told):
    Prefer(**settings(base, 'pairs.jsonl') | changes)
