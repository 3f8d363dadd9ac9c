"""The page in a real Chromium: what it shows is what the API says, kept over a reload, and nothing runs."""

import json
import re
import shutil

import numpy as np
import openai
import pytest
from small_models import random_params
from small_server import MODEL, TEMPLATE, TOKENIZER, make_service, serving

from lmjax.data.preference import encode_pair
from lmjax.generate.continuous import Batching
from lmjax.serve.limits import Limits

playwright = pytest.importorskip('playwright.sync_api')
playwright.expect.set_options(timeout=60_000)  # ms
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(CHROMIUM is None, reason='there is no chromium here'),
]


@pytest.fixture(scope='module')
def address(tmp_path_factory):
  """A server whose likeliest tokens are all letters, so that Markdown leaves them as they are."""
  plain = re.compile(rb'[a-z]+ ?')
  words = [[bool(plain.fullmatch(TOKENIZER.spell(token)))] for token in range(TOKENIZER.vocab)]
  params = random_params(MODEL)
  params |= {'embed': params['embed'] * np.array(words, np.float32)}
  batching = Batching(rows=4, context=16_384, chunk=16, queue=8, lookup=0)
  service = make_service(Limits(answer_tokens=16_000), batching, params=params)
  with serving(service, tmp_path_factory.mktemp('page')) as found:
    yield found


@pytest.fixture(scope='module')
def browser():
  with playwright.sync_playwright() as started:
    found = started.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
    yield found
    found.close()


@pytest.fixture
def page(browser, address):
  context = browser.new_context(accept_downloads=True)
  found = context.new_page()
  wrong = []
  found.on('pageerror', lambda error: wrong.append(str(error)))
  found.on('console', lambda said: wrong.append(said.text) if said.type == 'error' else None)
  found.goto(address)
  found.locator('#box').wait_for()
  yield found
  context.close()
  assert wrong == []


def set_up(page, **settings):
  page.evaluate('s => localStorage.setItem("lmjax.settings", JSON.stringify(s))', settings)


def ask(page, text, wait=True):
  page.locator('#box').fill(text)
  page.keyboard.press('Enter')
  if wait:
    page.locator('#send').wait_for(state='visible')
    page.locator('article.answer .speed').last.wait_for()


def answers(page):
  return page.locator('article.answer .text').all_inner_texts()


def test_the_pages_text_is_the_apis(page, address):
  set_up(page, temperature=0, max_tokens=40, system='be brief')
  ask(page, 'hello <|end|>')
  ask(page, 'again')
  client = openai.OpenAI(base_url=f'{address}/v1', api_key='none')
  messages = [{'role': 'system', 'content': 'be brief'}]
  for asked, shown in zip(['hello <|end|>', 'again'], answers(page), strict=True):
    messages.append({'role': 'user', 'content': asked})
    same = {'model': 'tiny', 'temperature': 0, 'max_tokens': 40}
    said = client.chat.completions.create(messages=messages, **same).choices[0].message.content
    assert re.fullmatch('[a-z ]+', said)
    assert shown.split() == said.split()
    messages.append({'role': 'assistant', 'content': said})
  assert re.search(r'tokens/s, first after \d', page.locator('.speed').last.inner_text())


def test_a_conversation_is_there_after_a_reload_beside_others(page):
  set_up(page, max_tokens=5, temperature=0)
  ask(page, 'the first')
  page.locator('#new').click()
  ask(page, 'the second')
  page.reload()
  kept = page.locator('#conversations .open')
  playwright.expect(kept).to_have_text(
    ['the second', 'the first']
  )  # once the server says it is ready
  page.get_by_role('button', name='the first', exact=True).click()
  playwright.expect(page.locator('article.user .text')).to_have_text(['the first'])
  assert len(answers(page)) == 1
  page.get_by_role('button', name='Delete the second').click()
  playwright.expect(kept).to_have_text(['the first'])


def test_an_answer_can_be_stopped_and_asked_again(page):
  set_up(page, max_tokens=16_000, temperature=0)
  ask(page, 'talk', wait=False)
  page.locator('article.answer .text p').wait_for()
  page.locator('#stop').press('Enter')  # a click would wait until the growing page stands still
  page.locator('#send').wait_for(state='visible')
  playwright.expect(page.locator('.speed')).to_contain_text('stopped')
  set_up(page, max_tokens=5, temperature=0)
  page.get_by_role('button', name='Retry').click()
  page.get_by_text('2 of 2').wait_for()
  page.locator('#send').wait_for(state='visible')
  assert 0 < len(answers(page)[-1].split()) <= 5
  page.get_by_role('button', name='Edit').click()
  page.get_by_label('Edited message').fill('say')
  page.get_by_role('button', name='Ask again').click()
  page.locator('#send').wait_for(state='visible')
  playwright.expect(page.locator('article.user .text')).to_have_text(['say'])


def test_marks_become_pairs_of_preference(page, tmp_path):
  set_up(page, max_tokens=5, temperature=1)
  ask(page, 'which')
  page.get_by_role('button', name='Good answer').click()
  page.locator('#export').click()
  playwright.expect(page.locator('#note')).to_contain_text('No pair yet')
  page.get_by_role('button', name='Retry').click()
  page.get_by_text('2 of 2').wait_for()
  page.locator('#send').wait_for(state='visible')
  page.get_by_role('button', name='Bad answer').click()
  with page.expect_download() as download:
    page.locator('#export').click()
  download.value.save_as(tmp_path / 'pairs.jsonl')
  (row,) = map(json.loads, (tmp_path / 'pairs.jsonl').read_text().splitlines())
  assert row['prompt'] == [{'role': 'user', 'content': 'which'}]
  assert row['chosen'][0]['role'] == row['rejected'][0]['role'] == 'assistant'
  pair = encode_pair(row, TEMPLATE, TOKENIZER, 512)  # as DPO reads it
  assert pair.chosen.weights.sum() > 0


def test_nothing_in_a_text_runs_or_loads(page):
  bad = (
    '<script>window.hacked=1</script><img src=x onerror="window.hacked=1">'
    '[click](javascript:window.hacked=1) <iframe srcdoc="<script>parent.hacked=1</script>"></iframe>'
    '<svg onload="window.hacked=1"></svg>\n\n```html\n<script>shown()</script>\n```\n**bold**'
  )
  answer = {'text': bad, 'mark': 0, 'reason': 'stop', 'tokens': 1, 'seconds': 1, 'first': 1}
  turn = {'user': bad, 'answers': [answer], 'shown': 0}
  page.evaluate(
    'c => localStorage.setItem("lmjax.conversations", JSON.stringify([c]))',
    {'id': '1', 'title': bad, 'turns': [turn]},
  )
  page.reload()
  page.locator('article.answer strong').wait_for()
  page.wait_for_timeout(200)
  assert page.evaluate('window.hacked') is None
  assert page.locator('main').locator('script, img, iframe, svg').count() == 0
  assert page.locator('article.answer a[href^=javascript]').count() == 0
  assert '<img src=x' in page.locator('article.answer').inner_text()
  assert 'shown()' in page.locator('article.answer pre').inner_text()
  assert page.locator('article.user .text').inner_text().startswith('<script>')


def test_it_fits_a_phone_and_works_by_keyboard(page):
  page.set_viewport_size({'width': 360, 'height': 640})
  set_up(page, max_tokens=60, temperature=0)
  ask(page, 'a long line ' * 20)
  wide = page.evaluate('document.documentElement.scrollWidth')
  assert wide <= 360
  assert page.locator('#box').bounding_box()['y'] < 640
  page.keyboard.press('Tab')
  assert page.evaluate('document.activeElement.id') == 'send'
  names = page.evaluate(
    '[...document.querySelectorAll("button")].map(b => b.getAttribute("aria-label") || b.innerText)'
  )
  assert all(name.strip() for name in names)


def test_settings_are_kept_and_empty_ones_left_out(page):
  page.get_by_role('button', name='Settings').click()
  page.get_by_label('Temperature').fill('0.3')
  page.get_by_label('System prompt').fill('short')
  page.get_by_label('API key').fill('lmjax-k')
  page.get_by_role('button', name='Done').click()
  page.wait_for_function('localStorage["lmjax.settings"]')  # kept once the dialog has closed
  assert page.evaluate('JSON.parse(localStorage["lmjax.settings"])') == {
    'system': 'short',
    'temperature': 0.3,
  }
  assert page.evaluate('sessionStorage["lmjax.key"]') == 'lmjax-k'
