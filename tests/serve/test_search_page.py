"""The page's Search place in a real Chromium: as one types, by keyboard, and answers that name their posts."""

import json
import re
import shutil

import numpy as np
import pytest
from small_encoder import write_encoder
from small_models import random_params
from small_posts import make_posts
from small_server import MODEL, TOKENIZER, make_service, serving

from lmjax.generate.continuous import Batching
from lmjax.interop.encoder import load_encoder
from lmjax.search.embed import Embedder
from lmjax.search.index import Index
from lmjax.search.searcher import Searcher
from lmjax.search.sets import Document
from lmjax.serve.limits import Limits

playwright = pytest.importorskip('playwright.sync_api')
playwright.expect.set_options(timeout=60_000)  # ms
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(CHROMIUM is None, reason='there is no chromium here'),
]
BAD = Document('bad', 'evil <img src=x onerror="window.hacked=1"> 😀 sleep')


@pytest.fixture(scope='module')
def address(tmp_path_factory):
  folder = tmp_path_factory.mktemp('search')
  encoder = write_encoder(folder / 'bert')
  with Index(folder / 'index', Embedder(load_encoder(str(encoder))), str(encoder)) as index:
    index.add([*make_posts(40), BAD])
    index.settle()
  plain = re.compile(rb'[a-z]+ ?')  # an answer of letters alone, which never ends by itself
  words = [[bool(plain.fullmatch(TOKENIZER.spell(token)))] for token in range(TOKENIZER.vocab)]
  params = random_params(MODEL)
  params |= {'embed': params['embed'] * np.array(words, np.float32)}
  batching = Batching(rows=4, context=4096, chunk=16, queue=8, lookup=0)
  service = make_service(Limits(answer_tokens=200), batching, params=params)
  with serving(service, folder, searcher=Searcher(folder / 'index')) as found:
    yield found


@pytest.fixture
def page(address):
  with playwright.sync_playwright() as started:
    browser = started.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
    found = browser.new_page()
    wrong = []
    found.on('pageerror', lambda error: wrong.append(str(error)))
    found.goto(f'{address}/#search')
    found.locator('#query').wait_for()
    yield found
    browser.close()
    assert wrong == []


def test_posts_come_as_one_types_with_filters_reasons_and_more(page):
  page.locator('#query').press_sequentially('mark7', delay=20)
  page.get_by_text('Why: has mark7').wait_for()
  assert page.locator('.hit mark').first.inner_text() == 'mark7'
  page.get_by_text('Found in ').wait_for()
  page.locator('.hit summary').first.click()
  playwright.expect(page.locator('.hit').first).to_contain_text('Meaning: ')
  playwright.expect(page.locator('.hit')).to_have_count(10)
  page.locator('#more').click()
  playwright.expect(page.locator('.hit')).to_have_count(20)
  page.locator('#query').fill('')
  page.get_by_label('Author').fill('ada')
  page.get_by_label('With a link').check()
  playwright.expect(page.locator('.hit')).to_have_count(4)
  page.locator('#query').fill('form:ada')
  page.get_by_text('there is no filter form:').wait_for()


def test_what_is_stale_is_given_up(page):
  given_up = []
  page.on('requestfailed', lambda request: given_up.append(request.post_data_json['query']))

  def slow(route):
    if route.request.post_data_json['query'] == 'slow':
      return  # never answered
    route.continue_()

  page.route('**/search', slow)
  with page.expect_request('**/search'):
    page.locator('#query').fill('slow')
  page.locator('#query').fill('mark9')
  page.get_by_text('Why: has mark9').wait_for()
  assert given_up == ['slow']


def test_it_works_by_keyboard_and_nothing_in_a_post_runs(page):
  page.locator('#query').fill('evil')
  page.locator('.hit mark').first.wait_for()
  page.keyboard.press('ArrowDown')
  assert 'evil <img' in page.evaluate('document.activeElement.innerText')
  page.keyboard.press('ArrowUp')
  assert page.evaluate('document.activeElement.id') == 'query'
  page.keyboard.press('ArrowDown')
  page.keyboard.press('/')
  assert page.evaluate('document.activeElement.id') == 'query'
  assert page.evaluate('window.hacked') is None
  assert page.locator('main img').count() == 0
  page.set_viewport_size({'width': 360, 'height': 640})
  assert page.evaluate('document.documentElement.scrollWidth') <= 360


def test_an_answer_is_the_models_and_says_where_it_names_no_post(page):
  page.evaluate('localStorage.setItem("lmjax.settings", \'{"max_tokens": 5}\')')
  page.locator('#query').fill('mark7')
  page.locator('#answer').click()
  page.get_by_text('This names no post: check it against the first').wait_for()


def test_an_answer_leads_to_the_posts_it_names(page):
  rows = [
    {'choices': [{'delta': {'content': 'It sleeps [2], not [77].'}, 'finish_reason': 'stop'}]}
  ]
  rows += [{'choices': [], 'usage': {}}]
  body = ''.join(f'data: {json.dumps(row)}\n\n' for row in rows) + 'data: [DONE]\n\n'
  asked = []

  def answer(route):
    asked.append(route.request.post_data_json['messages'])
    route.fulfill(body=body, content_type='text/event-stream')

  page.route('**/v1/chat/completions', answer)
  page.locator('#query').fill('mark7 sleep')
  page.locator('#answer').click()
  page.get_by_role('button', name='Post [2]').click()
  playwright.expect(page.locator('.cite')).to_have_count(1)
  second = page.locator('.hit').nth(1)
  assert second.evaluate('node => node === document.activeElement')
  shown = second.locator('p').first.inner_text()
  assert asked[0][1]['content'].splitlines()[2] == f'[2] {shown}'


def test_the_api_answers_from_posts_as_the_page_does(page, address):
  answer = page.request.post(f'{address}/search', data={'query': 'mark7', 'answer': True})
  found = answer.json()
  assert found['answer']['posts'] == [hit['id'] for hit in found['data'][:5]]
  assert found['answer']['text']
  assert found['answer']['cited'] == []


def test_nothing_relevant_is_said_and_no_model_asked(page):
  asked = []
  page.route(
    '**/v1/chat/completions', lambda route: (asked.append(route.request.url), route.abort())
  )
  page.locator('#query').fill('zebra from:nobody')
  page.locator('#answer').click()
  page.get_by_text('Nothing relevant was found, so there is no answer.').wait_for()
  assert asked == []
