"""What `--checkpoint` takes, and the tasks that score and export what it names."""

import json

import gguf_files
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file
from test_gguf import add_tokenizer

from lmjax.core import assets, command_line
from lmjax.core.errors import UserError
from lmjax.data.tokenizer import train
from lmjax.generate.score import score
from lmjax.interop.load import load, locate
from lmjax.train.sample import Sample


@pytest.fixture
def folder(tmp_path):
  """A tiny Qwen2 with a tokenizer of its own."""
  path = tiny.write_folder(tmp_path / 'qwen', 'qwen2')
  config = tiny.config_of('qwen2') | {'vocab_size': 262, 'eos_token_id': [1, 2]}
  (path / 'config.json').write_text(json.dumps(config))
  for file in path.glob('*.safetensors'):
    held = load_file(file)
    if 'model.embed_tokens.weight' in held:
      held['model.embed_tokens.weight'] = tiny.draw('model.embed_tokens.weight', (262, 48))
    save_file(held, file)
  train(['a text', 'another'], 262).save(path / 'tokenizer.json')
  (path / 'chat_template.jinja').write_text('{{ messages }}')
  return path


def run(experiment, tmp_path, *flags):
  command = command_line.parse(['lmjax', f'--experiment={experiment}', *flags])
  assert isinstance(command, command_line.Command)
  return command.task.run(tmp_path)


def test_a_folder_is_loaded_with_what_it_says(folder):
  loaded = load(str(folder))
  assert (loaded.model.vocab, loaded.step, loaded.length) == (262, 0, tiny.PLACES)
  assert (loaded.ends, loaded.chat_template) == ((1, 2), '{{ messages }}')


def test_a_gguf_file_is_loaded(tmp_path):
  gguf_files.write(tmp_path / 'model.gguf', 'llama', extra=add_tokenizer)
  with pytest.raises(UserError, match='model.vocab=96 is less than the 259 tokens'):
    load(str(tmp_path / 'model.gguf'))


def test_an_assets_name_is_its_file(tmp_path, monkeypatch):
  monkeypatch.setattr(assets, 'fetch', lambda name: tmp_path / name)
  assert locate('SmolLM2-135M-Instruct') == tmp_path / 'smollm2-135m-instruct'
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'smollm2-135m-instruct').mkdir()
  assert str(locate('smollm2-135m-instruct')) == 'smollm2-135m-instruct'


@pytest.mark.slow
def test_samples_are_drawn_of_weights_in_int8(folder, tmp_path):
  drawn = Sample(checkpoint=str(folder), weights='int8', samples=1, max_tokens=3).run(tmp_path)
  assert len(drawn['samples']) == 1


def test_nothing_of_the_kind_is_refused():
  with pytest.raises(UserError, match='no such folder: .*did you mean smollm2-135m-instruct'):
    load('smollm2-135m')


@pytest.mark.parametrize(
  ('change', 'told'),
  [
    (
      lambda held: held | {'model.norm.weight': np.ones(47, np.float32)},
      r'tensor model.norm.weight: expected shape \(48,\), found \(47,\)',
    ),
    (
      lambda held: {key: held[key] for key in held if key != 'model.norm.weight'},
      r'has no tensor model.norm.weight, expected is one of shape \(48,\)',
    ),
    (
      lambda held: held | {'model.other.weight': np.ones(3, np.float32)},
      r'has a tensor model.other.weight of shape \(3,\), expected is none',
    ),
    (
      lambda held: held | {'model.norm.weight': np.ones(48, np.int8)},
      'tensor model.norm.weight is of I8: expected is one of F64, F32, F16, BF16',
    ),
  ],
)
def test_a_folder_that_does_not_match_names_the_tensor(folder, change, told):
  for file in folder.glob('*.safetensors'):
    held = load_file(file)
    if 'model.norm.weight' in held:
      save_file(change(held), file)
  with pytest.raises(UserError, match=told):
    load(str(folder))


def test_a_folder_without_weights_is_refused(folder):
  (folder / 'model-00002-of-00002.safetensors').unlink()
  with pytest.raises(UserError, match='has no model-00002-of-00002.safetensors: expected are'):
    load(str(folder))


def test_gpt2_saved_without_its_head_has_shorter_names(tmp_path):
  from lmjax.interop import huggingface

  path = tiny.write_folder(tmp_path / 'gpt2', 'gpt2')
  read = huggingface.read(path)
  whole = huggingface.load_params(path, read)
  (path / 'model.safetensors.index.json').unlink()
  held = {key.removeprefix('transformer.'): value for key, value in tiny.tensors_of('gpt2').items()}
  held['h.0.attn.bias'] = np.ones((1, 1, 8, 8), np.float32)
  save_file(held, path / 'model.safetensors')
  assert tiny.same(huggingface.load_params(path, read), whole)


def test_score_adds_tokens_and_logprob_to_each_row(folder, tmp_path):
  rows = [{'text': 'a text', 'id': 7}, {'text': 'another <|end|> text'}, {'text': ''}]
  (tmp_path / 'in.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
  flags = (
    f'--checkpoint={folder}',
    f'--texts={tmp_path}/in.jsonl',
    f'--output={tmp_path}/o/out.jsonl',
  )
  report = run('score', tmp_path, *flags)
  loaded = load(str(folder))
  tokens = loaded.tokenizer.encode_batch([row['text'] for row in rows])
  expected = score(loaded.model, loaded.params, tokens)
  found = [json.loads(line) for line in (tmp_path / 'o/out.jsonl').read_text().splitlines()]
  assert [row['tokens'] for row in found] == list(map(len, tokens))
  np.testing.assert_allclose([row['logprob'] for row in found], expected, rtol=1e-6)
  assert (found[0]['id'], found[0]['text'], found[2]['logprob']) == (7, 'a text', 0)
  assert report['tokens'] == sum(map(len, tokens))


@pytest.mark.parametrize('line', ['{"txt": 1}', '{"text": 1}', '[1]', 'no'])
def test_a_row_without_a_text_is_refused(folder, tmp_path, line):
  (tmp_path / 'in.jsonl').write_text(f'{{"text": "a"}}\n{line}\n')
  flags = (
    f'--checkpoint={folder}',
    f'--texts={tmp_path}/in.jsonl',
    f'--output={tmp_path}/out.jsonl',
  )
  with pytest.raises(UserError, match='in.jsonl: line 2 is not a JSON object with a text'):
    run('score', tmp_path, *flags)


def test_an_exported_folder_is_loaded_as_the_same_model(folder, tmp_path):
  out = tmp_path / 'out'
  report = run(
    'export_hf', tmp_path, f'--checkpoint={folder}', f'--output={out}', '--dtype=float32'
  )
  assert set(report['files']) == {path.name for path in out.iterdir()} - {'chat_template.jinja'}
  before, after = load(str(folder)), load(str(out))
  assert tiny.same(before.params, after.params)
  assert before._replace(params={}, tokenizer=None, path=out) == after._replace(
    params={}, tokenizer=None
  )
  assert after.tokenizer.sha256 == before.tokenizer.sha256
  with pytest.raises(UserError, match='is there already: pass a folder that is empty or new'):
    run('export_hf', tmp_path, f'--checkpoint={folder}', f'--output={out}')


def test_an_export_in_bfloat16_is_rounded(folder, tmp_path):
  run(
    'export_hf', tmp_path, f'--checkpoint={folder}', f'--output={tmp_path}/out', '--dtype=bfloat16'
  )
  before, after = load(str(folder)).params['embed'], load(f'{tmp_path}/out').params['embed']
  np.testing.assert_allclose(before, after, rtol=4e-3)
  assert not np.array_equal(before, after)


@pytest.mark.parametrize(
  ('experiment', 'flags', 'told'),
  [
    ('score', [], 'no --checkpoint was given: pass --checkpoint=RUN'),
    ('score', ['--checkpoint=a'], 'no --texts was given'),
    ('score', ['--checkpoint=a', '--texts=/no/file', '--output=b'], 'cannot be read'),
    ('export_hf', ['--checkpoint=a'], 'no --output was given: pass --output=DIR'),
  ],
)
def test_what_a_task_needs_is_asked_for(experiment, flags, told, tmp_path):
  with pytest.raises(UserError, match=told):
    run(experiment, tmp_path, *flags)
