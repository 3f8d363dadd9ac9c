"""/ads: creatives of a brief, reviewed; edited ones reviewed anew, approved, exported, and what is refused."""

import io
import json
import zipfile

import httpx2 as httpx
import pytest
from small_server import SHORT, TIMEOUT, make_service, serving

from lmjax.ads.brief import parse_brief
from lmjax.ads.creative import Copy
from lmjax.ads.maker import Candidate, Maker, Making
from lmjax.ads.record import decide
from lmjax.serve import ads
from lmjax.serve.ads import Desk
from lmjax.serve.keys import Key, hash_key

KEY = 'lmjax-ads'
BRIEF = {
  'product': 'Oat bread',
  'facts': ['baked every morning', '750 g'],
  'formats': ['300x250'],
  'must_not': ['cheap'],
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('ads')


@pytest.fixture(scope='module')
def http(folder):
  desk = Desk(folder / 'creatives', Maker(Making()))
  keys = [Key('ann', hash_key(KEY))]
  with serving(make_service(template=SHORT), folder, keys, desk=desk) as found:
    headers = {'authorization': f'Bearer {KEY}'}
    with httpx.Client(base_url=found, headers=headers, timeout=TIMEOUT) as client:
      yield client


@pytest.fixture(scope='module')
def made(http):
  answer = http.post('/ads', json={'brief': BRIEF, 'candidates': 2, 'templates': 1})
  assert answer.status_code == 200, answer.text
  return answer.json()


def test_creatives_are_by_the_model_and_by_the_template(made):
  makers = [one['made_by'] for one in made['data']]
  assert (makers[0], makers[-1]) == ('tiny', 'template')
  assert made['facts_unsaid'] == []
  for one in made['data']:
    assert (one['verdict'], one['approval']['state'], one['reasons']) == ('passed', 'pending', [])
    assert [image['file'] for image in one['images']] == ['300x250.png', '300x250.svg']
  assert made['data'][0]['disclosure'] == 'Made with AI'


def test_an_edited_copy_is_reviewed_anew(http, made):
  one = made['data'][0]
  copy = {'headline': 'Oat bread', 'body': 'Baked every morning.', 'action': 'See more'}
  good = http.post(f'/ads/{one["id"]}/edit', json=copy).json()
  assert (good['verdict'], good['body']) == ('passed', 'Baked every morning.')
  assert good['made_by'] == 'tiny, edited by hand'
  assert good['id'] != one['id']
  bad = http.post(f'/ads/{good["id"]}/edit', json={**copy, 'body': 'Cures all, 2 kg.'}).json()
  assert bad['verdict'] == 'blocked'
  assert {'figure', 'claim'} <= {reason['kind'] for reason in bad['reasons']}
  assert bad['images'] == []
  answer = http.post(f'/ads/{bad["id"]}/decide', json={'state': 'approved', 'by': 'Kim'})
  assert answer.status_code == 400
  assert answer.json()['error']['message'].startswith('this creative did not pass its checks')


def test_what_was_approved_is_exported_whole_and_nothing_else(http, folder, made):
  one = made['data'][-1]
  address = f'/ads/{one["id"]}'
  answer = http.get(f'{address}/creative.zip')
  assert 'is not approved: approve it first' in answer.json()['error']['message']
  decided = http.post(f'{address}/decide', json={'state': 'approved', 'by': 'Kim'}).json()
  assert (decided['approval']['state'], decided['approval']['by']) == ('approved', 'Kim')
  with zipfile.ZipFile(io.BytesIO(http.get(f'{address}/creative.zip').content)) as archive:
    names = ['copy.json', 'review.json', '300x250.png', '300x250.svg']
    assert archive.namelist() == names
    assert json.loads(archive.read('review.json'))['approval']['by'] == 'Kim'
    assert archive.read('300x250.png') == http.get(f'{address}/300x250.png').content
  (folder / 'creatives' / one['id'] / '300x250.svg').write_text('another')
  message = http.get(f'{address}/creative.zip').json()['error']['message']
  assert message.startswith('this creative/300x250.svg is not the file that was reviewed')


def test_the_oldest_give_way_but_none_that_was_approved(tmp_path, monkeypatch):
  monkeypatch.setattr(ads, '_KEPT', 1)
  desk, brief = Desk(tmp_path, Maker(Making())), parse_brief(BRIEF)
  one = Candidate(Copy('Oat bread', 'Baked every morning.', 'See more'), 'template', {'facts': 0.5})
  _, approved = (desk.add(BRIEF, brief, one)['id'] for _ in range(2))
  assert {path.name for path in tmp_path.iterdir()} == {approved}
  decide(tmp_path / approved, 'approved', 'Kim')
  _, last = (desk.add(BRIEF, brief, one)['id'] for _ in range(2))
  assert {path.name for path in tmp_path.iterdir()} == {approved, last}


@pytest.mark.parametrize(
  ('body', 'code', 'told'),
  [
    ({'brief': {'product': 'Heroin'}}, 'prohibited_goods', 'the brief is refused'),
    ({'brief': {'produkt': 'Bread'}}, 'invalid', 'did you mean product?'),
    ({'brief': {'product': 'Oat' * 30}}, 'invalid_value', 'at most 60'),
    ({'brief': BRIEF, 'candidates': 9}, 'invalid_value', 'less than or equal to 8'),
    ({'candidates': 2}, 'missing_parameter', 'brief is missing'),
  ],
)
def test_what_is_wrong_is_refused(http, body, code, told):
  answer = http.post('/ads', json=body)
  assert answer.status_code == 400
  assert answer.json()['error']['code'] == code
  assert told in answer.json()['error']['message']


def test_nothing_else_of_the_machine_is_read(http, folder, made):
  (folder / 'secret.png').write_bytes(b'secret')
  brief = {**BRIEF, 'picture': str(folder / 'secret.png')}
  answer = http.post('/ads', json={'brief': brief, 'candidates': 1, 'templates': 0}).json()
  assert 'picture' not in answer['data'][0]['images'][0]['alt']
  name = made['data'][0]['id']
  for path in (f'/ads/{name}/brief.json', f'/ads/{name}/..%2Fsecret.png', '/ads/none/copy.json'):
    assert http.get(path).status_code == 404


def test_it_wants_a_key(http, made):
  for path in ('/ads', f'/ads/{made["data"][0]["id"]}/300x250.png'):
    assert (
      httpx.request(
        'GET' if 'png' in path else 'POST', f'{http.base_url}{path}', timeout=TIMEOUT
      ).status_code
      == 401
    )


def test_a_server_without_pillow_says_what_to_install(address):
  answer = httpx.post(f'{address}/ads', json={'brief': BRIEF}, timeout=TIMEOUT)
  assert answer.status_code == 404
  assert "pip install 'lmjax[ads]'" in answer.json()['error']['message']
