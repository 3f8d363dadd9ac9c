"""What a plan shows, in the terminal and on its page: every figure, where it is from, and no tag of others."""

import copy
import html.parser
import re

import pytest

from lmjax.plan import wording
from lmjax.plan.page import page
from lmjax.plan.report import terminal

MESH = {'data': 10, 'fsdp': 128, 'expert': 1, 'context': 1, 'tensor': 8, 'pipe': 1}
OWNERS = {
  'parameters': 1.15,
  'optimizer moments': 2.31,
  'batch': 0.01,
  'gathered weights': 9.2,
  'activations': 21.73,
  'logits': 8.0,
  'gradients': 4.6,
  'other temporaries': 1.5,
}
FIGURES = [
  ('program', 'compile time', 41.0, 's', 'compiled', 'trace, lower and compile on 2 cores'),
  ('program', 'instructions', 48123, '', 'compiled', 'of the scheduled module'),
  ('memory', 'arguments', 3.46, 'GiB', 'compiled', 'parameters, moments and batch of one GPU'),
  ('memory', 'aliased', 3.45, 'GiB', 'compiled', 'donated: outputs take over what arguments held'),
  ('memory', 'NCCL reserve', 2.5, 'GiB', 'given', 'channels x buffers of each communicator'),
  ('time', 'step', 6990.0, 'ms', 'modelled', 'alpha-beta model over the compiled program'),
  ('time', 'tokens a step', 10485760, '', 'given', '1,280 rows x 8,192'),
  ('time', 'peak of the card', 989.0, 'TFLOP/s', 'given', 'NVIDIA H100 data sheet, dense bf16'),
  ('money', 'bought cards', 1.024e8, '$', 'given', '10,240 x $10,000'),
  ('money', 'rented', 1.3e7, '$', 'modelled', '$1.70 a GPU-hour for 31.2 days'),
  ('money', 'power', 8.1e5, '$', 'modelled', '10,240 x 1,020 W x $0.10/kWh'),
  ('money', 'price of power', 0.1, '$/kWh', 'given', '--price.kwh'),
  ('failures', 'failures', 76.3, '', 'modelled', '2.4e-4 a GPU-day (419 in 54 days on 16,384)'),
  (
    'failures',
    'checkpoint every',
    18.4,
    'min',
    'modelled',
    'sqrt(2 x save time x time to failure)',
  ),
  ('failures', 'checkpoint size', 3.77, 'TB', 'compiled', 'parameters and moments in f32'),
  ('sites', 'one data centre', 1.2e7, 'tokens/s', 'modelled', ''),
  ('sites', 'two data centres', 1.09e7, 'tokens/s', 'modelled', 'data axis over 800 Gb/s, 20 ms'),
]
TIMELINE = [
  ('compute', 'embedding', 'memory', 0.0, 40.0, 4),
  ('network', 'first weights', 'all-gather', 0.0, 90.0, 4),
  ('compute', 'layers, forward', 'product', 90.0, 1150.0, 256),
  ('network', 'weights of the next layer', 'all-gather', 90.0, 900.0, 256),
  ('compute', 'layers, forward', 'attention', 1240.0, 310.0, 256),
  ('network', 'activations', 'reduce-scatter', 1550.0, 180.0, 512),
  ('compute', 'norms', 'memory', 1730.0, 250.0, 256),
  ('compute', 'layers, backward', 'product', 1980.0, 3100.0, 256),
  ('network', 'weights again', 'all-gather', 1980.0, 1700.0, 256),
  ('network', 'gradients', 'reduce-scatter', 3700.0, 1200.0, 256),
  ('compute', 'layers, backward', 'attention', 5080.0, 900.0, 256),
  ('network', 'activations', 'all-gather', 5980.0, 260.0, 512),
  ('compute', 'norms', 'memory', 6240.0, 420.0, 256),
  ('network', 'gradients over replicas', 'all-reduce', 6660.0, 210.0, 1),
  ('compute', 'optimizer', 'memory', 6870.0, 120.0, 1),
]
TRAFFIC = [
  ('all-gather', 'fsdp', True, 512, 90.0, 4.0, 2.69, 'bf16'),
  ('reduce-scatter', 'fsdp', True, 256, 30.1, 0.0, 1.2, 'f32'),
  ('all-gather', 'tensor', False, 512, 50.2, 4.8, 0.26, 'bf16'),
  ('reduce-scatter', 'tensor', False, 512, 30.0, 1.9, 0.18, 'bf16'),
  ('all-reduce', 'data', True, 1, 3.4, 1.3, 0.21, 'f32'),
]


def rows(names, values):
  return [dict(zip(names.split(), each, strict=True)) for each in values]


def candidate(mesh, remat, gib, speed, label='modelled', fits=True, best=False, microbatch=1):
  return {
    'mesh': MESH | mesh,
    'microbatch': microbatch,
    'accumulate': 4 // microbatch,
    'remat': remat,
    'gpus': 10240,
    'peak_gib': gib,
    'tokens_per_second': speed,
    'label': label,
    'fits': fits,
    'best': best,
  }


FITTING = {
  'target': 'posts_moe_314b',
  'accelerator': 'h100',
  'gpus': 10240,
  'fits': True,
  'peak_gib': 48.5,
  'hbm_gib': 71.2,
  'tokens_per_second': 1.2e7,
  'mfu': 0.41,
  'wire_gib': {'fsdp': 120.1, 'tensor': 80.2, 'data': 3.4},
  'exposed_gib': 12.0,
  'days': 31.2,
  'dollars': 1.3e7,
  'goodput': 0.93,
  'warnings': [],
  'compile_seconds': 41.0,
  'mesh': MESH,
  'candidates': [
    candidate({}, 'full', 48.5, 1.2e7, 'compiled', best=True),
    candidate({'data': 20, 'fsdp': 64}, 'full', 50.9, 1.18e7, 'compiled'),
    candidate({'data': 40, 'fsdp': 32}, 'full', 55.8, 1.15e7),
    candidate({}, 'dots', 79.4, 1.31e7, 'compiled', fits=False),
    candidate({}, 'full', 66.0, 1.14e7, microbatch=2),
    candidate({'fsdp': 32, 'expert': 4}, 'full', 44.1, 1.09e7),
    candidate({'fsdp': 256, 'tensor': 4}, 'full', 71.0, 1.17e7),
    candidate({'data': 5}, 'offload', 36.7, 0.97e7, 'compiled'),
    candidate({'data': 5, 'pipe': 2}, 'full', 41.3, 1.02e7),
    candidate({'data': 1, 'fsdp': 1280}, 'full', 46.2, 0.91e7),
  ],
  'figures': rows('group name value unit label note', FIGURES),
  'memory': [{'owner': owner, 'gib': gib} for owner, gib in OWNERS.items()],
  'timeline': rows('stream name kind start_ms ms times', TIMELINE),
  'traffic': rows('kind axis between_nodes count gib exposed_gib seconds dtype', TRAFFIC),
  'flops': {'products': 0.71, 'attention': 0.13, 'experts': 0.0},
  'kernels': {'cublas': 1200, 'triton attention': 192, 'fusion': 5312, 'nccl': 1793},
  'findings': [
    {
      'what': 'a buffer of 4.0 GiB',
      'tensor': 'head',
      'where': 'jit(train_step)/transpose(jvp(loss))/while/body/dot_general (lmjax/ops/loss.py:73)',
      'cost': '4.0 GiB of memory',
      'fix': '--objective.chunk=512',
    }
  ],
  'notes': ['10,000 = 2^4 x 5^4 allows no more than 16 ways of fsdp x tensor: plan for 10,240.'],
}
TOO_LARGE = FITTING | {
  'target': 'posts_dense_70b',
  'fits': False,
  'peak_gib': 84.9,
  'memory': [*FITTING['memory'], {'owner': 'attention probabilities', 'gib': 36.4}],
  'warnings': ['[SPMD] Involuntary full rematerialization of %dot.317 = bf16[1,8192,8192] ' * 12],
  'changes': [
    {
      'flags': flags,
      'peak_gib': gib,
      'fits': gib < 71.2,
      'tokens_per_second': speed,
      'label': 'compiled',
    }
    for flags, gib, speed in [
      ('--model.remat=full', 70.1, 1.1e7),
      ('--mesh.fsdp=256 --mesh.data=5', 66.6, 1.06e7),
      ('--accumulate=8', 77.0, 1.19e7),
    ]
  ],
}
ALONE = FITTING | {
  'target': 'posts_tiny',
  'accelerator': 'cpu',
  'gpus': 1,
  **dict.fromkeys(('hbm_gib', 'fits', 'mfu', 'days', 'dollars', 'goodput', 'peak_gib')),
  'wire_gib': {},
  'exposed_gib': 0.0,
  'mesh': dict.fromkeys(MESH, 1),
  **{key: [] for key in ('candidates', 'figures', 'memory', 'timeline', 'traffic', 'findings')},
  'notes': [],
  'flops': {},
  'kernels': {},
}
KEY_FIGURES = ('posts_moe_314b', '10,240', 'h100', '48.5', '71.2', '12 M', '41.0%', '31.2', '$13 M')
REPORTS = {'fitting': FITTING, 'too large': TOO_LARGE, 'alone': ALONE}


class Checker(html.parser.HTMLParser):
  """Collects what a page says and links to; a tag that closes what is not open fails."""

  def __init__(self, text):
    super().__init__()
    self.open, self.words, self.links, self.charts = [], [], [], []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.links += [attrs[name] for name in ('src', 'href', 'xlink:href') if name in attrs]
    if attrs.get('role') == 'img':
      self.charts.append(attrs)
    if tag != 'meta':
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'style' not in self.open:
      self.words.append(data)

  @property
  def text(self):
    return ' '.join(' '.join(self.words).split())


@pytest.fixture(params=REPORTS.values(), ids=list(REPORTS))
def report(request):
  return request.param


@pytest.mark.parametrize('figure', KEY_FIGURES)
def test_terminal_and_page_tell_every_key_figure(figure):
  assert figure in terminal(FITTING)
  assert figure in Checker(page(FITTING)).text


@pytest.mark.parametrize('row', FITTING['figures'], ids=lambda row: row['name'])
def test_every_figure_is_told_with_where_it_is_from(row):
  value = wording.quantity(row['value'], row['unit'])
  line = next(
    line for line in terminal(FITTING).split('\n') if line.startswith(f'  {row["name"]} ')
  )
  assert value in line
  assert f'({row["label"][0]})' in line
  assert f'{row["name"]} {value} {row["label"]}' in Checker(page(FITTING)).text


@pytest.mark.parametrize('owner', OWNERS)
def test_terminal_and_page_tell_every_owner_of_memory(owner):
  for text in (terminal(FITTING), Checker(page(FITTING)).text):
    assert re.search(rf'{owner} +{OWNERS[owner]:.2f}', text)


def test_terminal_fits_100_columns(report):
  assert max(map(len, terminal(report, 'runs/plan-0001').split('\n'))) <= 100


def test_headline_says_by_how_much_a_plan_does_not_fit():
  assert 'FITS 48.5 of 71.2 GiB (c)' in terminal(FITTING)
  assert 'DOES NOT FIT by 13.7 GiB: 84.9 of 71.2 (c)' in terminal(TOO_LARGE)
  assert 'does not fit by 13.7 GiB: 84.9 of 71.2' in Checker(page(TOO_LARGE)).text


def test_a_plan_that_does_not_fit_shows_what_makes_it_fit_and_plans_with_it():
  for text in (terminal(TOO_LARGE), Checker(page(TOO_LARGE)).text):
    for change in TOO_LARGE['changes']:
      assert change['flags'] in text
    assert '--experiment=plan --target=posts_dense_70b' in text
    assert '--target_flags=--model.remat=full' in text


def test_the_flags_of_the_best_candidate_are_ready_to_paste():
  flags = '--batch=5120 --accumulate=4 --mesh.data=10 --length=4096'
  rows = [row | {'flags': flags} if row['best'] else row for row in FITTING['candidates']]
  report = FITTING | {'candidates': rows}
  told, words = wording.next_command(report)
  assert told == 'run it there'
  assert ' '.join(words) == f'python -m lmjax.main --experiment=posts_moe_314b {flags}'
  pasted = terminal(report).replace(' \\\n   ', '')
  assert ' '.join(words) in pasted


def test_best_candidate_comes_first_and_what_is_left_out_is_counted():
  lines = terminal(FITTING).split('\n')
  first = next(n for n, line in enumerate(lines) if line.startswith('candidates'))
  assert lines[first + 1].startswith('* best')
  assert '(c)' in lines[first + 1]
  assert lines[first + 9] == '  2 more on the page'
  text = Checker(page(FITTING)).text
  assert all(wording.mesh_text(each['mesh']) in text for each in FITTING['candidates'])


def test_findings_warnings_and_notes_are_told():
  for text in (terminal(TOO_LARGE), Checker(page(TOO_LARGE)).text):
    for words in ('a buffer of 4.0 GiB', 'lmjax/ops/loss.py:73', '--objective.chunk=512'):
      assert words in text
    assert 'Involuntary full rematerialization' in text
    assert '10,000 = 2^4 x 5^4' in text


def test_what_is_not_known_is_a_dash():
  assert 'MFU -, - days, - (m)' in terminal(ALONE)
  assert 'goodput modelled -' in Checker(page(ALONE)).text
  for text in (terminal(ALONE), page(ALONE)):
    assert 'None' not in text


@pytest.mark.parametrize(
  'key', ['candidates', 'figures', 'memory', 'timeline', 'traffic', 'findings', 'notes']
)
def test_any_part_may_be_empty(key):
  assert terminal(FITTING | {key: []})
  assert Checker(page(FITTING | {key: []})).charts


def test_what_is_not_known_of_a_row_breaks_nothing():
  emptied = copy.deepcopy(TOO_LARGE)
  for each in emptied['candidates']:
    each['tokens_per_second'] = each['peak_gib'] = None
  for each in emptied['traffic']:
    each['exposed_gib'] = each['seconds'] = None
  for each in emptied['figures']:
    each['value'] = None
  for each in emptied['findings']:
    each['tensor'] = each['where'] = None
  emptied |= {'tokens_per_second': None, 'exposed_gib': None}
  for text in (terminal(emptied), Checker(page(emptied)).text):
    assert 'None' not in text


def test_page_stands_alone(report):
  text = page(report)
  checked = Checker(text)
  assert checked.links == []
  assert 'script' not in text
  for outside in ('http://', 'https://', '@import', 'url('):
    assert outside not in text


def test_charts_are_told_to_screen_readers_and_in_numbers():
  text = page(FITTING)
  charts = Checker(text).charts
  assert len(charts) == 5
  assert text.count('<details>') == 5
  for chart in charts:
    for key in ('aria-labelledby', 'aria-describedby'):
      assert text.count(f'id="{chart[key]}"') == 1


@pytest.mark.parametrize('hostile', ['<script>alert(1)</script>', '"><img src=x>', "'&amp;"])
def test_page_escapes_what_it_is_given(hostile):
  changed = copy.deepcopy(TOO_LARGE)
  changed |= {'target': hostile, 'accelerator': hostile, 'warnings': [hostile], 'notes': [hostile]}
  changed |= {'flops': {hostile: 0.7}, 'kernels': {hostile: 7}}
  for each in changed['findings']:
    each.update(dict.fromkeys(each, hostile))
  for key, names in (
    ('figures', ('name', 'note', 'unit')),
    ('memory', ('owner',)),
    ('timeline', ('name', 'kind')),
    ('traffic', ('kind', 'axis', 'dtype')),
    ('candidates', ('remat',)),
    ('changes', ('flags',)),
  ):
    for each in changed[key]:
      each.update(dict.fromkeys(names, hostile))
  text = page(changed)
  checked = Checker(text)
  assert checked.links == []
  assert hostile not in text
  assert hostile in checked.text


def test_exposed_is_what_computing_waits_for():
  row = lambda stream, start, ms: {'stream': stream, 'start_ms': start, 'ms': ms}
  timeline = [row('compute', 0, 10), row('compute', 20, 10), row('network', 5, 30)]
  assert wording.exposed(timeline) == [(10, 20), (30, 35)]
  assert wording.exposed(timeline[:2]) == []
  assert wording.exposed(timeline[2:]) == [(5, 35)]


def test_breakdown_adds_up_to_the_step():
  spent = dict(wording.breakdown(FITTING['timeline']))
  assert sum(spent.values()) == pytest.approx(wording.step_ms(FITTING['timeline']))
  assert spent['waits for the network'] == pytest.approx(700)


@pytest.mark.parametrize(
  ('value', 'unit', 'text'),
  [
    (None, '$', '-'),
    (3.46, 'GiB', '3.46 GiB'),
    (1.3e7, '$', '$13 M'),
    (10_000, '$', '$10,000'),
    (93.0, '%', '93%'),
    (48123, '', '48,123'),
    (0.0, 'GiB', '0 GiB'),
    (2.4e-4, 'a day', '0.00024 a day'),
    (3.14e11, '', '314 B'),
    ('triton', '', 'triton'),
  ],
)
def test_quantities_are_written_for_people(value, unit, text):
  assert wording.quantity(value, unit) == text
