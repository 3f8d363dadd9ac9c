"""/search: what is found, page by page, and what is refused."""

import json

import httpx2 as httpx
import pytest
from small_encoder import write_encoder
from small_posts import make_posts
from small_server import TIMEOUT, serving

from lmjax.interop.encoder import load_encoder
from lmjax.search.embed import Embedder
from lmjax.search.index import Index
from lmjax.search.searcher import Hit, Searcher
from lmjax.search.sets import Document
from lmjax.serve.answering import PROMPT, ask_of_posts, cited
from lmjax.serve.keys import Key, hash_key

KEY = 'lmjax-search'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('search')


@pytest.fixture(scope='module')
def http(folder, service):
  encoder = write_encoder(folder / 'bert')
  with Index(folder / 'index', Embedder(load_encoder(str(encoder))), str(encoder)) as index:
    index.add(make_posts(40))
    index.settle()
  searcher = Searcher(folder / 'index')
  keys = [Key('ann', hash_key(KEY))]
  with serving(service, folder, keys, warm=False, searcher=searcher) as address:
    headers = {'authorization': f'Bearer {KEY}'}
    with httpx.Client(base_url=address, headers=headers, timeout=TIMEOUT) as found:
      yield found
  searcher.close()


def ask(http, **body):
  answer = http.post('/search', json=body)
  assert answer.status_code == 200, answer.text
  return answer.json()


def test_filters_of_the_body_and_of_the_query_come_together(http):
  wanted = {f'p{n}' for n in range(0, 40, 12)}  # Ada's with a link
  by_body = ask(http, authors=['@ada'], has_link=True, limit=100)
  by_query = ask(http, query='from:ada has:link', limit=100)
  both = ask(http, query='sleep has:link', authors=['Ada'], limit=100)
  for found in (by_body, by_query, both):
    assert {one['id'] for one in found['data']} == wanted
    assert found['cursor'] is None
  assert by_body['relevant']
  assert {one['id'] for one in ask(http, since='2024-02', hashtags=['#pets'])['data']} == {
    *('p33', 'p36', 'p39')
  }


def test_a_hit_has_all_there_is_to_say(http):
  (hit, *_) = ask(http, query='mark7', limit=1)['data']
  assert (hit['id'], hit['author'], hit['likes'], hit['language']) == ('p7', 'bob', 7.0, 'de')
  assert [hit['snippet'][a:b] for a, b in hit['highlights']] == ['mark7']
  assert hit['why'].startswith('has mark7')
  assert sum(hit['reasons'].values()) == pytest.approx(hit['score'], rel=1e-5)


def test_a_cursor_goes_on_where_a_page_ended(http):
  whole = [one['id'] for one in ask(http, query='big cats', limit=100)['data']]
  paged, cursor = [], None
  while not paged or cursor:
    page = ask(http, query='big cats', limit=11, **({'cursor': cursor} if cursor else {}))
    paged, cursor = paged + [one['id'] for one in page['data']], page['cursor']
  assert paged == whole
  first = ask(http, query='big cats', limit=1)['cursor']
  answer = http.post('/search', json={'query': 'dogs', 'cursor': first})
  assert 'is of another query' in answer.json()['error']['message']


def test_where_nothing_relevant_is_found_it_says_so_and_asks_no_model(http):
  found = ask(http, query='zebra from:nobody', answer=True)
  assert found['answer'] == {'text': PROMPT['nothing'], 'posts': [], 'cited': []}
  assert ask(http, query='zebra from:nobody')['answer'] is None


def test_the_model_is_asked_of_the_first_relevant_posts_alone_by_number():
  def hit(number, words):
    document = Document(f'p{number}', f'text {number} ' + 'x' * 700)
    return Hit(number, document, 1.0, {'words': 1.0}, 0.0, words, '', [], ())

  hits = [hit(number, ('text',) if number != 1 else ()) for number in range(9)]
  messages, posts = ask_of_posts('what is it?', hits)
  assert posts == ['p0', 'p2', 'p3', 'p4', 'p5']
  assert [message['role'] for message in messages] == ['system', 'user']
  lines = messages[1]['content'].split('\n')
  assert lines[2].startswith('[2] text 2 x')
  assert len(lines[2]) == len('[2] ') + PROMPT['characters']
  assert lines[-1] == 'Question: what is it?'
  assert cited('It is [2], as [5] and [2] say, not [77] or [0].', posts) == ['p2', 'p5']


@pytest.mark.parametrize(
  ('body', 'told'),
  [
    ({}, 'the query is empty: give words'),
    ({'query': 'x' * 2000}, 'the query has 2,000 characters, and 1,000 are allowed'),
    ({'query': 'a\x07'}, 'is the control character U+0007: remove it'),
    ({'query': '"a'}, 'is opened and not closed'),
    ({'query': 'form:a'}, 'there is no filter form: (did you mean from?)'),
    ({'query': 'a', 'until': 'soon'}, 'until:soon is no date'),
    ({'query': 'a', 'limit': 0}, 'limit: input should be greater than or equal to 1'),
    ({'query': 'a', 'author': 'x'}, 'author: no such parameter'),
    ({'answer': True, 'authors': ['ada']}, 'answer: is for the first page of a query with words'),
    ({'query': 'a', 'answer': True, 'cursor': 'W10='}, 'send query and no cursor'),
    ({'query': 'a', 'cursor': 'W10='}, 'cursor: is none of ours: send it as it came'),
    ({'query': 'a', 'cursor': 'é'}, 'cursor: is none of ours'),
  ],
)
def test_what_is_wrong_is_refused(http, body, told):
  answer = http.post('/search', json=body)
  assert answer.status_code == 400
  assert told in answer.json()['error']['message']


def test_a_query_of_a_megabyte_is_refused(http):
  answer = http.post('/search', json={'query': 'x' * (1 << 20)})
  assert answer.status_code == 413


def test_it_wants_a_key_and_tells_the_audit_no_text(http, folder):
  assert (
    httpx.post(f'{http.base_url}/search', json={'query': 'cats'}, timeout=TIMEOUT).status_code
    == 401
  )
  ask(http, query='mark5')
  text = (folder / 'audit.jsonl').read_text()
  routes = [json.loads(line)['route'] for line in text.splitlines()]
  assert '/search' in routes
  assert 'mark5' not in text


def test_a_server_without_an_index_says_how_to_have_one(client, address):
  answer = httpx.post(f'{address}/search', json={'query': 'cats'}, timeout=TIMEOUT)
  assert answer.status_code == 404
  assert 'start the server with --index=FOLDER' in answer.json()['error']['message']
