// The place to search posts, and to have a question answered from what is found.

import { searchPosts, streamChat } from './api.js';
import { make } from './dom.js';
import { readSettings } from './settings.js';

const WAIT = 150; // ms after a key, before what was typed is looked for
// What the model is told, as /search tells it.
const ANSWERING = await (await fetch('/page/answering.json')).json();
const NAMES = {
  words: 'Words',
  words_rank: 'Place by words',
  meaning: 'Meaning',
  meaning_rank: 'Place by meaning',
  freshness: 'Recent',
  engagement: 'Likes',
};

export function show(root, context) {
  new Search(root, context);
}

class Search {
  constructor(root, context) {
    this.context = context;
    this.hits = [];
    this.cursor = null;
    this.searching = null;
    this.answering = null;
    this.timer = 0;
    const later = () => this.later();
    const field = (id, label, attributes) =>
      make('label', { for: id }, label, make('input', { id, ...attributes, oninput: later }));
    this.box = make('input', {
      id: 'query',
      type: 'search',
      maxlength: '1000',
      autocomplete: 'off',
      'aria-label': 'Search posts',
      'aria-describedby': 'search-help',
      placeholder: 'words, "phrases", #tags, from:name, -not',
      oninput: later,
    });
    this.button = make('button', { id: 'answer', type: 'button', onclick: () => this.answer() }, 'Answer');
    this.filters = make(
      'fieldset',
      { id: 'filters' },
      make('legend', {}, 'Filters'),
      field('author', 'Author', { type: 'text', autocomplete: 'off' }),
      field('since', 'Since', { type: 'date' }),
      field('until', 'Until', { type: 'date' }),
      field('language', 'Language', { type: 'text', size: '4', maxlength: '8', placeholder: 'en' }),
      field('has-link', 'With a link', { type: 'checkbox' }),
    );
    this.note = make('p', { id: 'note', role: 'status' });
    this.said = make('div', { id: 'said', 'aria-live': 'polite', hidden: true });
    this.list = make('ol', { id: 'hits', 'aria-label': 'Posts found' });
    this.more = make('button', { id: 'more', type: 'button', hidden: true, onclick: () => this.next() }, 'More');
    const form = make('form', { id: 'look', role: 'search' }, this.box, this.button);
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.search();
    });
    const help = 'Up and Down go through the posts, / comes back here, Escape stops an answer.';
    this.root = make(
      'section',
      { id: 'search', 'aria-label': 'Search' },
      form,
      make('p', { id: 'search-help', class: 'help' }, help),
      this.filters,
      this.note,
      this.said,
      this.list,
      this.more,
    );
    this.root.addEventListener('keydown', (event) => this.key(event));
    root.append(this.root);
    this.box.focus();
  }

  key(event) {
    const typing = event.target.matches('input');
    if (event.key === '/' && !typing) {
      event.preventDefault();
      this.box.focus();
    } else if (event.key === 'Escape') {
      this.answering?.abort();
    } else if (['ArrowDown', 'ArrowUp'].includes(event.key) && (!typing || event.target === this.box)) {
      const nodes = [this.box, ...this.list.children];
      const at = nodes.findIndex((node) => node.contains(document.activeElement));
      event.preventDefault();
      nodes[Math.min(Math.max(at + (event.key === 'ArrowDown' ? 1 : -1), 0), nodes.length - 1)].focus();
    }
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.search(), WAIT);
  }

  asked() {
    const value = (id) => document.getElementById(id).value.trim();
    return {
      query: this.box.value.trim(),
      ...(value('author') && { authors: [value('author')] }),
      ...(value('since') && { since: value('since') }),
      ...(value('until') && { until: value('until') }),
      ...(value('language') && { languages: [value('language')] }),
      ...(document.getElementById('has-link').checked && { has_link: true }),
    };
  }

  /** Looks for what is typed; what was looked for before is given up. */
  async search() {
    clearTimeout(this.timer);
    this.answering?.abort();
    this.searching?.abort();
    this.said.hidden = true;
    const asked = this.asked();
    if (Object.keys(asked).length === 1 && !asked.query) {
      this.show([], null, '');
      return;
    }
    const found = await this.fetch(asked);
    if (!found) return;
    const none = found.data.length ? 'Nothing close was found; these are the nearest.' : 'Nothing was found.';
    this.show(found.data, found.cursor, found.relevant ? `Found in ${found.milliseconds} ms.` : none);
  }

  async next() {
    const found = await this.fetch({ ...this.asked(), cursor: this.cursor });
    if (!found) return;
    const first = this.hits.length;
    this.show([...this.hits, ...found.data], found.cursor, this.note.textContent);
    this.list.children[first]?.focus();
  }

  /** What the server finds, or nothing where that failed or is not wanted any more. */
  async fetch(asked) {
    const stopper = new AbortController();
    this.searching = stopper;
    try {
      const found = await searchPosts(asked, stopper.signal);
      return stopper.signal.aborted ? null : found;
    } catch (error) {
      if (error.name !== 'AbortError') this.show([], null, error.message);
      return null;
    }
  }

  show(hits, cursor, note) {
    [this.hits, this.cursor, this.note.textContent] = [hits, cursor, note];
    this.list.replaceChildren(...hits.map((hit) => this.hit(hit)));
    this.more.hidden = !cursor;
  }

  hit(hit) {
    const when = hit.time === null ? '' : new Date(1000 * hit.time).toISOString().slice(0, 10);
    const copies = hit.copies.length ? `${hit.copies.length} more that say the same` : '';
    const told = [hit.author, when, copies].filter(Boolean).join(' · ');
    const reasons = Object.entries(hit.reasons).map(([name, value]) =>
      make('li', {}, `${NAMES[name] ?? name}: ${value.toFixed(2)}`),
    );
    return make(
      'li',
      { tabindex: '0', class: 'hit' },
      make('p', { class: 'plain' }, ...marked(hit.snippet, hit.highlights)),
      make('p', { class: 'help' }, told || hit.id),
      make('details', {}, make('summary', {}, `Why: ${hit.why}`), make('ul', {}, ...reasons)),
    );
  }

  /** Has the model answer from the posts that were found, if any has to do with the question. */
  async answer() {
    await this.search();
    const posts = this.hits.filter((hit) => hit.relevant).slice(0, ANSWERING.posts);
    if (!this.box.value.trim()) return;
    this.said.hidden = false;
    if (!posts.length) {
      this.said.replaceChildren(make('p', {}, ANSWERING.nothing));
      return;
    }
    const stopper = new AbortController();
    this.answering = stopper;
    const text = make('p', { class: 'plain', 'aria-busy': 'true' });
    this.said.replaceChildren(text);
    const numbered = posts.map((hit, n) => `[${n + 1}] ${hit.text.slice(0, ANSWERING.characters)}`).join('\n');
    const messages = [
      { role: 'system', content: ANSWERING.system },
      { role: 'user', content: `Posts:\n${numbered}\n\nQuestion: ${this.box.value.trim()}` },
    ];
    const { max_tokens = ANSWERING.tokens, seed } = readSettings();
    const body = { model: this.context.model, messages, max_tokens, temperature: 0, ...(seed && { seed }) };
    let said = '';
    try {
      for await (const piece of streamChat(body, stopper.signal)) {
        said += piece.text ?? '';
        text.textContent = said;
      }
    } catch (error) {
      if (error.name !== 'AbortError') this.note.textContent = error.message;
    }
    text.removeAttribute('aria-busy');
    if (said) this.cite(text, said, posts);
    else text.textContent = 'The model gave no answer.';
  }

  /** Makes [n] lead to the post, and says so where an answer names none. */
  cite(node, said, posts) {
    const places = posts.map((hit) => this.hits.indexOf(hit));
    let cited = 0;
    const parts = said.split(/(\[\d+\])/).map((part) => {
      const place = places[Number(/^\[(\d+)\]$/.exec(part)?.[1]) - 1];
      if (place === undefined) return part;
      cited += 1;
      const go = () => this.list.children[place].focus();
      return make('button', { type: 'button', class: 'cite', 'aria-label': `Post ${part}`, onclick: go }, part);
    });
    node.replaceChildren(...parts);
    const note = cited
      ? `Made from the first ${posts.length} relevant posts.`
      : `This names no post: check it against the first ${posts.length} relevant ones below.`;
    this.said.append(make('p', { class: 'help' }, note));
  }
}

/** Text and marks; places count characters, not UTF-16 units. */
function marked(text, highlights) {
  const signs = [...text];
  const parts = [];
  let end = 0;
  for (const [from, to] of highlights) {
    parts.push(signs.slice(end, from).join(''), make('mark', {}, signs.slice(from, to).join('')));
    end = to;
  }
  return [...parts, signs.slice(end).join('')];
}
