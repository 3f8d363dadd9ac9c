// The place to make advertisements: a brief, creatives side by side with their reviews, and a person's decision.

import { fetchBlob, postJson } from './api.js';
import { download, make } from './dom.js';

const SIZES = ['300x250', '728x90', '160x600', '1200x628', '1080x1080'];
const AGES = ['any', '18-24', '25-34', '35-44', '45-54', '55+'];
const PRICES = ['any', 'low', 'mid', 'high'];

export function show(root, context) {
  new Studio(root, context);
}

class Studio {
  constructor(root, context) {
    this.context = context;
    this.making = null;
    this.note = make('p', { id: 'note', role: 'status' });
    this.by = make('input', { id: 'by', autocomplete: 'name', maxlength: '100' });
    this.list = make('ul', { id: 'creatives', 'aria-label': 'Creatives' });
    this.refused = make('div', { class: 'help' });
    this.button = make('button', { id: 'make', type: 'submit' }, 'Make creatives');
    root.append(
      make('section', { id: 'ads', 'aria-label': 'Ad studio' }, this.form(), this.note, this.list, this.refused),
    );
    document.getElementById('product').focus();
  }

  form() {
    const field = (id, label, attributes = {}) => make('label', {}, label, make('input', { id, ...attributes }));
    const lines = (id, label, attributes = {}) => make('label', {}, label, make('textarea', { id, rows: 3, ...attributes }));
    const choice = (id, label, options) =>
      make('label', {}, label, make('select', { id }, ...options.map((one) => make('option', {}, one))));
    const sizes = SIZES.map((size) =>
      make('label', {}, make('input', { type: 'checkbox', name: 'format', value: size, checked: true }), ` ${size}`),
    );
    const form = make(
      'form',
      { id: 'brief', 'aria-label': 'Brief' },
      field('product', 'Product', { required: true, maxlength: '60', placeholder: 'Oat bread' }),
      lines('facts', 'Facts that may be claimed, a line each', { placeholder: 'baked every morning' }),
      field('interests', 'Interests of the audience, with commas', { placeholder: 'baking' }),
      choice('age', 'Age', AGES),
      choice('price', 'Price', PRICES),
      field('style', 'Style', { placeholder: 'natural' }),
      field('tone', 'Tone', { placeholder: 'friendly' }),
      field('colours', 'Brand colours, with commas', { placeholder: '#0a7755, #ffffff' }),
      field('must', 'Words that must be said, with commas'),
      field('must-not', 'Words that must not be said, with commas'),
      field('picture', 'Picture in words (with skin tone and gender, if people)', { placeholder: 'bread' }),
      make('fieldset', {}, make('legend', {}, 'Sizes'), ...sizes),
      field('count', 'Creatives', { type: 'number', min: '1', max: '8', value: '4' }),
      make('label', {}, 'Who decides', this.by),
      this.button,
    );
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.make();
    });
    return form;
  }

  /** The brief as the server reads it; what is empty is left out. */
  brief() {
    const value = (id) => document.getElementById(id).value.trim();
    const list = (id, sign) => value(id).split(sign).map((one) => one.trim()).filter(Boolean);
    const brief = {
      product: value('product'),
      facts: list('facts', '\n'),
      audience: { age: value('age'), interests: list('interests', ','), style: value('style'), price: value('price') },
      tone: value('tone'),
      formats: [...document.querySelectorAll('[name=format]:checked')].map((node) => node.value),
      colours: list('colours', ','),
      must: list('must', ','),
      must_not: list('must-not', ','),
      picture: value('picture'),
    };
    return Object.fromEntries(Object.entries(brief).filter(([, said]) => said.length !== 0));
  }

  async make() {
    this.making?.abort();
    this.making = new AbortController();
    this.button.disabled = true;
    this.note.textContent = 'Writing, reviewing and drawing ...';
    this.list.replaceChildren();
    this.refused.replaceChildren();
    try {
      const candidates = Number(document.getElementById('count').value);
      const found = await postJson('/ads', { brief: this.brief(), candidates }, this.making.signal);
      this.list.replaceChildren(...found.data.map((one) => this.card(one)));
      this.note.textContent = `${found.data.length} creatives, the best first. None is approved yet.`;
      if (found.facts_unsaid.length) this.note.textContent += ` None says: ${found.facts_unsaid.join('; ')}.`;
      if (found.refused.length) this.refuse(found.refused);
    } catch (error) {
      if (error.name !== 'AbortError') this.note.textContent = error.message;
    }
    this.button.disabled = false;
  }

  refuse(rows) {
    const said = (row) => `${row.headline} | ${row.body}: ${told(row.reasons)}`;
    this.refused.replaceChildren(
      make(
        'details',
        {},
        make('summary', {}, `${rows.length} more did not pass the review`),
        make('ul', {}, ...rows.map((row) => make('li', {}, said(row)))),
      ),
    );
  }

  card(one) {
    const card = make('li', { class: 'creative', 'data-verdict': one.verdict });
    const scores = Object.entries(one.scores).map(([name, value]) => `${name} ${value.toFixed(2)}`);
    const state = one.approval.state + (one.approval.by && ` by ${one.approval.by}`);
    const decide = (label, to) => {
      const blocked = to === 'approved' && one.verdict !== 'passed';
      const onclick = () => this.replace(card, () => this.decide(one, to));
      return make('button', { type: 'button', disabled: blocked || one.approval.state === to, onclick }, label);
    };
    card.append(
      this.banner(one),
      make('h3', {}, one.headline),
      make('p', {}, one.body),
      make('p', {}, `→ ${one.action}`),
      make('p', { class: 'help' }, `${one.made_by} · ${scores.join(' · ')}${one.disclosure && ` · “${one.disclosure}”`}`),
      make('p', { class: 'help' }, `Review: ${one.verdict}${one.reasons.length ? ` (${told(one.reasons)})` : ''} · ${state}`),
      make(
        'p',
        { class: 'row' },
        make('button', { type: 'button', onclick: () => this.edit(card, one) }, 'Edit'),
        decide('Approve', 'approved'),
        decide('Reject', 'rejected'),
        make(
          'button',
          { type: 'button', disabled: one.approval.state !== 'approved', onclick: () => this.export(one) },
          'Export zip',
        ),
      ),
    );
    return card;
  }

  /** A picture of the creative, and a choice of its sizes. */
  banner(one) {
    const files = one.images.filter((image) => image.file.endsWith('.png'));
    if (!files.length) return make('p', { class: 'banner help' }, 'No picture: it did not pass its review.');
    const image = make('img', { alt: files[0].alt });
    const load = async (file) => {
      try {
        URL.revokeObjectURL(image.src);
        image.src = URL.createObjectURL(await fetchBlob(`/ads/${one.id}/${file}`));
      } catch (error) {
        this.note.textContent = error.message;
      }
    };
    const sizes = make(
      'select',
      { 'aria-label': 'Size', onchange: (event) => load(event.target.value) },
      ...files.map(({ file }) => make('option', { value: file }, file.replace('.png', ''))),
    );
    load(files[0].file);
    return make('div', {}, make('div', { class: 'banner' }, image), sizes);
  }

  edit(card, one) {
    const inputs = ['headline', 'body', 'action'].map((name) =>
      make('input', { name, value: one[name], maxlength: '500', 'aria-label': name }),
    );
    const form = make(
      'form',
      {},
      ...inputs,
      make(
        'p',
        { class: 'row' },
        make('button', { type: 'submit' }, 'Review again'),
        make('button', { type: 'button', onclick: () => card.replaceWith(this.card(one)) }, 'Leave'),
      ),
    );
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      const copy = Object.fromEntries(inputs.map((input) => [input.name, input.value]));
      this.replace(card, () => postJson(`/ads/${one.id}/edit`, copy));
    });
    card.replaceChildren(form);
    inputs[0].focus();
  }

  decide(one, state) {
    if (!this.by.value.trim()) {
      this.by.focus();
      throw new Error('Say who decides first.');
    }
    return postJson(`/ads/${one.id}/decide`, { state, by: this.by.value.trim() });
  }

  /** Puts what the server answers in place of a card. */
  async replace(card, ask) {
    try {
      const changed = this.card(await ask());
      card.replaceWith(changed);
      this.note.textContent = '';
      changed.querySelector('button').focus();
    } catch (error) {
      this.note.textContent = error.message;
    }
  }

  async export(one) {
    try {
      download(`creative-${one.id.slice(0, 8)}.zip`, await fetchBlob(`/ads/${one.id}/creative.zip`));
    } catch (error) {
      this.note.textContent = error.message;
    }
  }
}

function told(reasons) {
  return reasons.map((one) => `${one.kind}: ${one.words}`).join('; ');
}
