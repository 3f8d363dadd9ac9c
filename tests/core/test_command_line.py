import json
import os
import threading

import pytest
from tiny_tasks import Color, Inner, Middle, Tiny

from lmjax.core import command_line
from lmjax.core.command_line import Command
from lmjax.core.config import leaves, to_json
from lmjax.core.errors import UserError


def parse(*args):
  return command_line.parse(['lmjax', *args])


def tiny(*args):
  """The task that flags of `Tiny` give."""
  command = parse('--experiment=tiny_tasks:tiny', *args)
  assert isinstance(command, Command)
  return command.task


@pytest.fixture
def flag_file(tmp_path):
  def write(*lines):
    path = tmp_path / 'flags.txt'
    path.write_text('\n'.join(lines) + '\n')
    return f'--flagfile={path}'

  return write


@pytest.fixture
def config_file(tmp_path):
  def write(task, experiment='tiny_tasks:tiny'):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps({'experiment': experiment, 'config': to_json(task)}))
    return f'--config={path}'

  return write


FLAGS = [
  (['--width=3'], Tiny(width=3)),
  (['--width', '3'], Tiny(width=3)),
  (['-width=3'], Tiny(width=3)),
  (['--width=3', '--width=4'], Tiny(width=4)),
  (['--rate', '1e-3'], Tiny(rate=1e-3)),
  (['--flag=false'], Tiny(flag=False)),
  (['--noflag'], Tiny(flag=False)),
  (['--noflag', '--flag'], Tiny()),
  (['--text=a=b --c'], Tiny(text='a=b --c')),
  (['--text='], Tiny(text='')),
  (['--text', '--list'], Tiny(text='--list')),
  (['--kind=fast', '--level=2'], Tiny(kind='fast', level=2)),
  (['--color=BLUE', '--spare=RED'], Tiny(color=Color.BLUE, spare=Color.RED)),
  (['--limit=4', '--limit=none'], Tiny(limit=None)),
  (['--sizes=3,4,5', '--pair=1,2'], Tiny(sizes=(3, 4, 5), pair=(1, 2.0))),
  (['--sizes='], Tiny(sizes=())),
  (['--colors=BLUE,RED'], Tiny(colors=(Color.BLUE, Color.RED))),
  (['--middle.inner.size=6'], Tiny(middle=Middle(inner=Inner(size=6)))),
  (['--present=none'], Tiny(present=None)),
  (['--present=none', '--present=on'], Tiny()),
  (['--absent=on'], Tiny(absent=Inner())),
  (['--absent=on', '--absent.size=6'], Tiny(absent=Inner(size=6))),
  (['--absent.size=6'], Tiny(absent=Inner(size=6))),
  (['--middle.rare.step=1'], Tiny(middle=Middle(rare=Inner(step=1)))),
]


class TestFlags:
  @pytest.mark.parametrize(('args', 'task'), FLAGS)
  def test_set_leaves(self, args, task):
    assert tiny(*args) == task

  @pytest.mark.parametrize('task', [task for _, task in FLAGS])
  def test_in_a_config_file_are_the_same(self, config_file, task):
    assert parse(config_file(task)) == Command('tiny_tasks:tiny', task, None)

  @pytest.mark.parametrize(('args', 'task'), [f for f in FLAGS if len(f[0]) == 1])
  def test_in_a_flag_file_are_the_same(self, flag_file, args, task):
    assert tiny(flag_file('# a comment', '', *args)) == task

  def test_take_the_name_of_the_experiment_in_either_form_and_any_place(self):
    assert parse('--width', '3', '--experiment', 'tiny_tasks:tiny') == Command(
      'tiny_tasks:tiny', Tiny(width=3), None
    )

  def test_name_the_workdir(self):
    command = parse('--experiment=tiny_tasks:tiny', '--workdir=some/where')
    assert str(command.workdir) == 'some/where'


class TestFlagFile:
  def test_may_name_the_experiment(self, flag_file):
    assert parse(flag_file('--experiment=tiny_tasks:tiny', '--width=3')).task == Tiny(width=3)

  def test_loses_to_flags_after_it_and_wins_over_those_before(self, flag_file):
    file = flag_file('--width=3')
    assert tiny(file, '--width=4') == Tiny(width=4)
    assert tiny('--width=4', *file.split('=')) == Tiny(width=3)

  def test_may_be_a_pipe(self, tmp_path, flag_file):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text('--width=3\n'))
    writer.start()
    assert tiny(f'--flagfile={pipe}') == Tiny(width=3)
    writer.join()

  def test_that_cannot_be_read_is_refused(self, tmp_path):
    with pytest.raises(
      UserError, match=r"No such file.*'/no/file': pass a text file with one flag"
    ):
      tiny('--flagfile=/no/file')
    with pytest.raises(UserError, match=r'Is a directory.*: pass a text file with one flag a line'):
      tiny(f'--flagfile={tmp_path}')
    with pytest.raises(UserError, match=r'no file is named: pass a text file'):
      tiny('--flagfile')
    (tmp_path / 'binary').write_bytes(b'--width=\xff\xfe\x00')
    with pytest.raises(UserError, match=r'not a text: pass a text file'):
      tiny(f'--flagfile={tmp_path / "binary"}')


class TestConfigFile:
  def test_gives_way_to_flags_beside_it(self, config_file):
    saved = config_file(Tiny(width=3, rate=0.5, present=None, absent=Inner(size=6)))
    assert parse(saved, '--width=4').task == Tiny(
      width=4, rate=0.5, present=None, absent=Inner(size=6)
    )
    assert parse(saved, '--present.size=2', '--absent=none').task == Tiny(
      width=3, rate=0.5, present=Inner(size=2)
    )

  def test_may_stand_beside_the_name_of_its_own_experiment_alone(self, config_file):
    saved = config_file(Tiny(width=3))
    assert parse(saved, '--experiment=tiny_tasks:tiny').task == Tiny(width=3)
    match = (
      r'--experiment=posts_tiny contradicts --config=.*, which is of tiny_tasks:tiny: drop one'
    )
    with pytest.raises(UserError, match=match):
      parse(saved, '--experiment=posts_tiny')

  def test_that_is_none_is_refused(self, tmp_path):
    path = tmp_path / 'config.json'
    with pytest.raises(
      UserError, match=r'No such file or directory: pass the config.json of a run'
    ):
      parse(f'--config={path}')
    with pytest.raises(UserError, match=r'Is a directory: pass the config.json of a run'):
      parse(f'--config={tmp_path}')
    texts = (b'', b'no json', b'[]', b'3', b'{}', b'{"experiment": "x", "config": 3}', b'\xff\xfe')
    for text in texts:
      path.write_bytes(text)
      with pytest.raises(UserError, match=r'is not the config.json of a run: pass RUN/config.json'):
        parse(f'--config={path}')

  @pytest.mark.parametrize(
    ('experiment', 'values', 'told'),
    [
      ('gone', {}, "unknown experiment 'gone': known are"),
      ('tiny_tasks:tiny', {'widht': 3}, r"unknown setting 'widht': did you mean width\?"),
      ('tiny_tasks:tiny', {'width': 'x'}, "width='x': expected an integer of 1 or more"),
      ('tiny_tasks:tiny', {'absent': 'on', 'absent.size': 3}, 'absent.size=3 is not a multiple'),
    ],
  )
  def test_that_no_longer_fits_is_refused_by_its_name(self, tmp_path, experiment, values, told):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps({'experiment': experiment, 'config': values}))
    with pytest.raises(UserError, match=f'^--config={path}: {told}'):
      parse(f'--config={path}')


class TestMistakes:
  @pytest.mark.parametrize(
    ('args', 'told'),
    [
      ([], 'no experiment was named: pass --experiment=NAME, .*--list shows them all'),
      (['--width=3'], 'no experiment was named: pass --experiment=NAME'),
      (['--experiment='], 'no experiment was named: pass --experiment=NAME'),
      (['--experiment'], '--experiment has no value: pass --experiment=VALUE'),
      (['--experiment=posts_tin'], r"unknown experiment 'posts_tin': did you mean posts_tiny\?"),
      (['--list', 'junk'], "unexpected argument 'junk': flags look like --name=value"),
      (['--list', '--halp'], r'unknown flag --halp: did you mean --help\?'),
      (['--list=maybe'], '--list=maybe: expected true or false'),
    ],
  )
  def test_of_the_general_flags(self, args, told):
    with pytest.raises(UserError, match=f'^{told}'):
      parse(*args)

  @pytest.mark.parametrize(
    ('args', 'told'),
    [
      (['--widht=3'], r'unknown flag --widht: did you mean --width\?$'),
      (['--wid=3'], r'unknown flag --wid: did you mean --width\?$'),
      (
        ['--middle.iner.size=3'],
        r'unknown flag --middle.iner.size: did you mean --middle.inner.size',
      ),
      (['--zebra'], 'unknown flag --zebra: --help lists those there are$'),
      (['--nowidth'], 'unknown flag --nowidth: did you mean --width'),
      (['--width 3'], r'unknown flag --width 3: did you mean --width\?$'),
      (['--width'], '--width has no value: pass --width=VALUE$'),
      (['--present'], '--present has no value: pass --present=VALUE$'),
      (['--width=x'], '--width=x: expected an integer of 1 or more$'),
      (['--width='], '--width=: expected an integer of 1 or more$'),
      (['--rate=2'], '--rate=2: expected a number above 0 and at most 1$'),
      (['--flag=maybe'], '--flag=maybe: expected true or false$'),
      (['--noflag=true'], '--noflag=true does not take an argument$'),
      (['--absent=off'], '--absent=off: expected one of: none, on$'),
      (['--color=red'], '--color=red: expected one of: RED, BLUE$'),
      (['--width=3', 'junk'], "unexpected argument 'junk': flags look like --name=value$"),
      (['--flag', 'false'], "unexpected argument 'false': flags look like --name=value$"),
      (['--', '--width=3'], "unexpected argument '--width=3': flags look like --name=value$"),
      (['-'], "unexpected argument '-': flags look like --name=value$"),
      (
        ['--present=none', '--present.size=6'],
        '--present=none contradicts --present.size=6: drop one of them$',
      ),
      (
        ['--middle.inner.size=5'],
        '--middle.inner.size=5 is not a multiple of --middle.inner.step=2: '
        'pass --middle.inner.step=1$',
      ),
    ],
  )
  def test_of_the_flags_of_an_experiment(self, args, told):
    with pytest.raises(UserError, match=f'^{told}'):
      tiny(*args)


class TestTexts:
  def test_list_shows_every_experiment_and_its_line(self):
    lines = parse('--list').split('\n')
    assert any(line.startswith('posts_tiny  ') and line.endswith('.') for line in lines)

  def test_help_alone_shows_the_general_flags_and_the_experiments(self):
    for args in (['--help'], ['-h']):
      text = parse(*args)
      for word in ('--experiment=NAME', '--config=', '--flagfile=', '--list', 'posts_sample'):
        assert word in text

  def test_help_of_an_experiment_shows_every_flag_with_value_range_and_doc(self):
    text = parse('--experiment=tiny_tasks:tiny', '--help', '--width=3', '--present=none')
    for leaf in leaves(Tiny()):
      assert f'\n  --{leaf.name}=' in text
    for line in (
      '  --width=3\n      Width. (an integer of 1 or more)\n',
      '  --flag=true\n      Yes or no. (true or false)\n',
      '  --color=RED\n      What color. (one of: RED, BLUE)\n',
      '  --limit=none\n',
      '  --sizes=1,2\n',
      '  --present=none\n      A part that is on. (one of: none, on)\n',
      '  --pace=1\n      How to run. (an integer; may change between starts)\n',
    ):
      assert line in text

  def test_help_still_refuses_mistakes(self):
    with pytest.raises(UserError, match='unknown flag --widht'):
      tiny('--help', '--widht=3')


def test_a_leaf_called_like_a_general_flag_is_a_bug(tmp_path, monkeypatch):
  (tmp_path / 'clash.py').write_text(
    'from lmjax.core.config import leaf\nfrom lmjax.core.task import Task\n'
    "class Clash(Task):\n  workdir: str = leaf('', 'Taken.')\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(AssertionError, match='a leaf cannot be called workdir: rename it'):
    parse('--experiment=clash:Clash')
