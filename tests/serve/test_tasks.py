"""The tasks as a user starts them: a server that ends when told, a talk in the terminal, a key."""

import builtins
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
from small_models import random_params
from small_server import MODEL, TEMPLATE, TIMEOUT, TOKENIZER

from lmjax.bench import serve as bench
from lmjax.core import command_line
from lmjax.core.errors import UserError
from lmjax.interop import huggingface
from lmjax.serve.task import read_moderation

ROOT = Path(__file__).parents[2]
SMALL = ('--batching.context=128', '--batching.chunk=4', '--batching.rows=2')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('model') / 'tiny'
  huggingface.save(
    path,
    MODEL,
    random_params(MODEL),
    TOKENIZER,
    chat_template=TEMPLATE,
    ends=(TOKENIZER.end,),
    length=256,
    dtype='float32',
  )
  return path


def run(experiment, workdir, *flags):
  command = command_line.parse(['lmjax', f'--experiment={experiment}', *flags])
  assert isinstance(command, command_line.Command)
  return command.task.run(workdir)


def test_a_talk_goes_on_until_exit(folder, tmp_path, monkeypatch, capsys):
  said = iter(['hello', '', '/what', 'again', '/new', 'a' * 200, 'hello', '/exit'])
  monkeypatch.setattr(builtins, 'input', lambda _: next(said))
  flags = (f'--checkpoint={folder}', '--seed=1', '--max_tokens=10', *SMALL)
  report = run('chat', tmp_path, *flags)
  out, err = capsys.readouterr()
  assert report['answers'] == 4
  assert 1 < report['tokens'] <= 30
  assert 'tokens, and 128 fit: begin anew with /new' in err
  answers = out.split('ends, Ctrl-C stops an answer\n')[1:]
  assert answers[0].strip() == answers[-1].split('\n')[1].strip() or len(answers) == 2


@pytest.mark.slow
def test_one_question_is_answered_and_that_is_all(folder, tmp_path):
  flags = (
    f'--checkpoint={folder}',
    '--prompt=hello',
    '--max_tokens=5',
    '--weights=int8',
    '--kv=int8',
    *SMALL,
  )
  assert run('chat', tmp_path, *flags)['answers'] == 1


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path, capsys):
  path = tmp_path / 'keys.jsonl'
  run('api_key', tmp_path, '--name=ada', f'--api_keys={path}')
  key = capsys.readouterr().out.split('\n')[0]
  assert key.startswith('lmjax-')
  assert key not in path.read_text()
  with pytest.raises(UserError, match='no --name was given'):
    run('api_key', tmp_path, f'--api_keys={path}')


@pytest.mark.parametrize(
  ('flags', 'told'),
  [
    (['--host=0.0.0.0'], 'lets others in: make keys with --experiment=api_key'),
    (['--api_keys=/no/such'], 'cannot be read'),
    (
      ['--port=1', '--host=127.0.0.1', '--moderation=no_such:f'],
      "No module named 'no_such'|cannot be",
    ),
    (['--mesh.data=2', '--port=0'], 'serving splits over mesh.tensor alone'),
    (['--checkpoint=/no/such', '--port=0'], 'there is no such folder'),
    (['--batching.chunk=4', '--batching.rows=4', '--port=0'], 'leave no room for prompts'),
  ],
)
def test_what_cannot_be_served_is_told(folder, tmp_path, flags, told):
  with pytest.raises(UserError, match=told):
    run('serve', tmp_path, f'--checkpoint={folder}', *flags)


def test_a_moderation_is_a_function_by_name():
  assert read_moderation('') is None
  assert read_moderation('json:dumps') is json.dumps
  with pytest.raises(UserError, match='there is no such function'):
    read_moderation('json:nothing')


@pytest.mark.slow
def test_sigterm_finishes_what_is_under_way_and_exits_with_0(folder, tmp_path):
  workdir = tmp_path / 'run'
  flags = [f'--checkpoint={folder}', '--port=0', f'--workdir={workdir}', *SMALL]
  command = [sys.executable, '-m', 'lmjax.main', '--experiment=serve', *flags]
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
    address = next(m[1] for line in process.stdout if (m := re.search(r'at (http\S+) ', line)))
    body = {'model': 'tiny', 'messages': [{'role': 'user', 'content': 'a'}], 'max_tokens': 100}
    path = f'{address}/v1/chat/completions'
    with httpx.stream('POST', path, json={**body, 'stream': True}, timeout=TIMEOUT) as answer:
      lines = answer.iter_lines()
      next(lines)
      process.send_signal(signal.SIGTERM)
      assert [line for line in lines if line][-1] == 'data: [DONE]'
    assert process.wait(TIMEOUT) == 0
  report = json.loads((workdir / 'report.json').read_text())
  assert report['counts']['added_tokens'] > 0
  assert json.loads((workdir / 'audit.jsonl').read_text())['status'] == 200


@pytest.mark.slow
def test_sigterm_while_it_compiles_exits_with_0(folder, tmp_path):
  flags = [f'--checkpoint={folder}', '--port=0', f'--workdir={tmp_path / "run"}', *SMALL]
  command = [sys.executable, '-m', 'lmjax.main', '--experiment=serve', *flags]
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
    said = ''
    while 'compiling 1 of' not in said:
      one = process.stdout.read(1)
      assert one, said
      said += one
    process.send_signal(signal.SIGTERM)
    said += process.stdout.read()
    assert process.wait(TIMEOUT) == 0
  assert 'is served at' not in said


def test_a_server_is_measured(address):
  body = {'messages': [{'role': 'user', 'content': 'a'}], 'max_tokens': 8, 'stream': True}
  body |= {'stream_options': {'include_usage': True}, 'logit_bias': {str(TOKENIZER.end): -100.0}}
  cell = bench.measure(address, [(0.01 * n, body) for n in range(4)])
  assert (cell.tokens, len(cell.firsts), cell.shed, cell.errors) == (32, 4, 0, 0)
  assert cell.summary()['ttft_p99_ms'] >= cell.summary()['ttft_p50_ms'] > 0
  assert min(cell.wholes) >= min(cell.firsts)
  wrong = bench.measure(address, [(0.0, {**body, 'max_tokens': 0})])
  assert (wrong.errors, wrong.tokens) == (1, 0)
  assert wrong.summary()['ttft_p99_ms'] is None


@pytest.mark.slow
def test_overload_and_memory_are_measured(address):
  task = bench.BenchServe(tokens=24, requests=1, gap_seconds=0.2, overload=4, soak_minutes=0.005)
  found = task._measure_overload(address, ['a', 'b c'])
  assert (found['requests'], found['errors']) == (64, 0)
  assert 0 < found['shed'] < 1
  assert found['p99_ratio'] > 0
  soaked = task._soak(bench.Server(address, os.getpid()), ['a', 'b c'])
  assert soaked['errors'] == 0
  assert soaked['tokens'] > 0
  assert soaked['last_bytes'] > 1e8
