// The settings page: a form that is made from the schema of the configuration,
// and the change that the edits amount to, as a JSON merge patch. A change is
// tried first: it is kept when somebody says so on this page after the gateway
// has started anew with it, or else goes away.

import { $, ask as request, el, said, theme } from './dom.js';

const trialSeconds = 300;
let token = null, view = null, draft = null, trial = null;
try { token = sessionStorage.token ?? null; } catch { /* private mode */ }

const clone = v => v === undefined ? undefined : JSON.parse(JSON.stringify(v));
const same = (a, b) => JSON.stringify(sorted(a)) === JSON.stringify(sorted(b));
const sorted = v => Array.isArray(v) ? v.map(sorted) : v && typeof v === 'object' ? Object.fromEntries(Object.keys(v).sort().map(k => [k, sorted(v[k])])) : v;

// ask asks as whoever has signed in.
async function ask(method, path, body) {
  try {
    return await request(method, path, body, token && { Authorization: 'Bearer ' + token });
  } catch (err) {
    if (err.code === 'sign_in') signOut();
    throw err;
  }
}

function signOut() {
  token = view = draft = trial = null;
  try { delete sessionStorage.token; } catch { /* private mode */ }
  for (const id of ['settings', 'trial', 'bar', 'out']) $(id).hidden = true;
  $('form').replaceChildren();
  $('signin').hidden = false;
  $('digits').focus();
}

$('out').addEventListener('click', signOut);
$('codeform').addEventListener('submit', async e => {
  e.preventDefault();
  $('refusal').textContent = '';
  try {
    token = (await ask('POST', '/settings/session', { code: $('digits').value.replace(/\s/g, '') })).token;
    try { sessionStorage.token = token; } catch { /* private mode */ }
    $('digits').value = '';
    await load();
  } catch (err) {
    $('refusal').textContent = said(err);
  }
});

// load fetches the configuration and begins a new draft of it.
async function load() {
  view = await ask('GET', '/settings');
  draft = clone(view.config);
  $('signin').hidden = true;
  for (const id of ['settings', 'out']) $(id).hidden = false;
  $('who').textContent = draft.name + ', revision ' + view.rev;
  $('rev').textContent = `revision ${view.rev}` + (view.by ? `, by ${view.by}` : '');
  $('sealed').hidden = !view.sealed;
  const open = new Set([...document.querySelectorAll('details[open]')].map(d => d.dataset.path));
  $('form').replaceChildren(...fields(view.schema, [], draft, view.config));
  for (const d of document.querySelectorAll('details')) if (open.has(d.dataset.path)) d.open = true;
  changed();
  showTrial();
}

// at and put read and write the draft; what becomes empty is left out.
const at = path => path.reduce((v, k) => v?.[k], draft);
function put(path, value) {
  const walk = (v, [k, ...rest], n) => {
    if (!rest.length) {
      if (value === undefined && !Array.isArray(v)) delete v[k]; else v[k] = value;
      return;
    }
    v[k] ??= typeof rest[0] === 'number' ? [] : {};
    walk(v[k], rest, n + 1);
    if (!Array.isArray(v[k]) && !Object.keys(v[k]).length && was(path.slice(0, n + 1)) === undefined) delete v[k];
  };
  walk(draft, path, 0);
  changed();
}
const was = path => path.reduce((v, k) => v?.[k], view.config);
const name = path => path.reduce((s, k) => typeof k === 'number' ? `${s}[${k}]` : s ? `${s}.${k}` : k, '');

// fields makes the inputs of an object: plain settings first, groups below.
function fields(schema, path) {
  const all = Object.entries(schema.properties).map(([k, s]) => [k, s, [...path, k]]);
  const group = s => s.type === 'object' || s.type === 'array' && s.items.type === 'object';
  return [
    ...all.filter(([, s]) => !group(s)).map(([k, s, p]) => setting(k, s, p)),
    ...all.filter(([, s]) => group(s)).map(([k, s, p]) => {
      const inner = el('div.in');
      const d = el('details.group', { 'data-path': name(p) }, el('summary', el('b', k), ' ', el('span', s.description ?? '')), inner);
      const fill = () => inner.replaceChildren(...(s.type === 'object' ? fields(s, p) : entries(s, p, fill)));
      fill();
      return d;
    }),
  ];
}

// entries makes the inputs of a list of things.
function entries(schema, path, again) {
  const list = at(path) ?? [];
  const add = el('button', { type: 'button' }, 'Add');
  add.addEventListener('click', () => { put([...path, list.length], {}); again(); });
  return [
    ...list.map((v, i) => {
      const drop = el('button', { type: 'button' }, 'Remove');
      drop.addEventListener('click', () => {
        const rest = at(path).filter((_, j) => j !== i);
        put(path, rest.length ? rest : was(path) === undefined ? undefined : []);
        again();
      });
      return el('div.entry', el('div.top', el('b', String(v.id ?? `${path.at(-1)} ${i + 1}`)), drop), fields(schema.items, [...path, i]));
    }),
    el('div', add),
  ];
}

let ids = 0;
function setting(key, schema, path) {
  const id = 'f' + ++ids, value = at(path), fallback = schema.default;
  let input;
  if (schema.enum || schema.type === 'boolean') {
    const words = schema.enum ?? [true, false];
    const text = v => v === true ? 'yes' : v === false ? 'no' : String(v);
    input = el('select', { id }, !words.includes('') && el('option', { value: '' }, fallback !== undefined ? `${text(fallback)}, unless set` : 'not set'),
      words.map(w => el('option', { value: JSON.stringify(w) }, w === '' ? 'not set' : text(w))));
    input.value = value === undefined ? '' : JSON.stringify(value);
    input.addEventListener('change', () => put(path, input.value === '' ? undefined : JSON.parse(input.value)));
  } else if (schema.type === 'array') {
    input = el('textarea', { id, rows: Math.max(2, value?.length ?? 0), spellcheck: 'false', placeholder: 'one on each line' }, (value ?? []).join('\n'));
    input.addEventListener('input', () => {
      const lines = input.value.split('\n').map(l => l.trim()).filter(Boolean).map(l => schema.items.type === 'integer' && /^-?\d+$/.test(l) ? Number(l) : l);
      put(path, lines.length ? lines : was(path) === undefined ? undefined : []);
    });
  } else {
    const number = schema.type === 'integer';
    input = el('input', { id, autocomplete: 'off', spellcheck: 'false', type: number ? 'number' : 'text', step: number && 1, min: number && schema.minimum, max: number && schema.maximum, placeholder: fallback, maxlength: schema.maxLength });
    input.value = value ?? '';
    input.addEventListener('input', () => put(path, input.value === '' && !input.validity.badInput ? undefined : number && Number.isSafeInteger(Number(input.value)) && !input.validity.badInput ? Number(input.value) : input.value));
  }
  const range = !/\d\.\.\d/.test(schema.description) && schema.type === 'integer' && schema.minimum !== undefined && schema.maximum !== undefined ? ` (${schema.minimum} to ${schema.maximum})` : '';
  return el('div.setting', { 'data-path': name(path), 'data-find': (name(path) + ' ' + (schema.description ?? '')).toLowerCase() },
    el('label', { for: id }, key), input, schema.description && el('p.doc', schema.description + range + '.'));
}

// patch is what to send to make b of a (RFC 7396).
function patch(a, b) {
  const p = {};
  for (const k of new Set([...Object.keys(a), ...Object.keys(b)])) {
    if (!(k in b)) p[k] = null;
    else if (same(a[k], b[k])) continue;
    else if (b[k] && typeof b[k] === 'object' && !Array.isArray(b[k])) p[k] = patch(a[k] ?? {}, b[k]);
    else p[k] = b[k];
  }
  return p;
}

function changed() {
  const p = patch(view.config, draft), any = Object.keys(p).length > 0;
  let n = 0;
  for (const f of document.querySelectorAll('.setting')) {
    const path = f.dataset.path.match(/[^.[\]]+/g).map(k => /^\d+$/.test(k) ? Number(k) : k);
    const is = !same(at(path), was(path));
    f.classList.toggle('changed', is);
    n += is;
  }
  $('bar').hidden = !any || !!view.pending;
  $('count').textContent = n === 1 ? '1 setting differs' : `${n || 'Some'} settings differ`;
  $('apply').disabled = view.sealed;
  $('outcome').replaceChildren();
  for (const w of document.querySelectorAll('.wrong')) w.remove();
}

const txn = () => 'page-' + [...crypto.getRandomValues(new Uint8Array(8))].map(b => b.toString(16).padStart(2, '0')).join('');

async function propose(mode) {
  for (const b of ['check', 'apply', 'undo']) $(b).disabled = true;
  try {
    const r = await ask('POST', '/config', { txn: txn(), base_rev: view.rev, mode, confirm_s: trialSeconds, config: patch(view.config, draft) });
    if (r.state === 'rejected') refused(r);
    else if (mode === 'dry_run') {
      $('outcome').replaceChildren(el('table', el('thead', el('tr', ['Setting', 'Now', 'Then'].map(h => el('th', { scope: 'col' }, h)))),
        el('tbody', (r.changes ?? []).map(c => el('tr', el('td', c.path), el('td', c.old || '–'), el('td', c.new || '–'))))));
    } else {
      trial = { txn: r.txn, rev: r.rev };
      $('bar').hidden = true;
      follow();
    }
  } catch (err) {
    if (token) $('outcome').replaceChildren(el('p.refusal', said(err)));
  }
  for (const b of ['check', 'apply', 'undo']) $(b).disabled = false;
  if (view) $('apply').disabled = view.sealed;
}

// refused shows each error at its setting, and all of them in the bar.
function refused(r) {
  for (const w of document.querySelectorAll('.wrong')) w.remove();
  const errors = r.errors?.length ? r.errors : [{ message: r.error }];
  let first;
  for (const e of errors) {
    const f = [...document.querySelectorAll('.setting')].find(f => f.dataset.path === e.path);
    if (!f) continue;
    f.append(el('p.wrong', e.message));
    for (let d = f.closest('details'); d; d = d.parentElement.closest('details')) d.open = true;
    first ??= f;
  }
  first?.scrollIntoView({ block: 'center' });
  $('outcome').replaceChildren(...errors.map(e => el('p.refusal', (e.path ? e.path + ': ' : '') + e.message)));
}

$('check').addEventListener('click', () => propose('dry_run'));
$('apply').addEventListener('click', () => propose('merge'));
$('undo').addEventListener('click', load);

// follow waits for the gateway to come back with the change.
let following = false;
async function follow() {
  if (following) return;
  following = true;
  while (token && trial) {
    showTrial('The gateway stops charging in the ordinary way and starts anew with the change ...');
    await new Promise(r => setTimeout(r, 1000));
    try {
      const v = await ask('GET', '/settings');
      if (v.pending ? v.pending.phase === 'pending_confirm' : v.rev === trial.rev || v.outcome?.txn === trial.txn) break;
    } catch { /* it starts */ }
  }
  following = false;
  if (token) await load().catch(() => setTimeout(follow, 1000));
}

// showTrial tells how the newest change stands.
function showTrial(wait) {
  const place = $('trial'), p = view?.pending;
  place.className = 'card';
  if (wait) {
    place.hidden = false;
    place.replaceChildren(el('p', wait));
  } else if (p && p.phase === 'pending_confirm') {
    place.hidden = false;
    place.classList.add('on');
    const keep = el('button.main', { type: 'button' }, 'Keep it'), back = el('button', { type: 'button' }, 'Go back');
    keep.addEventListener('click', () => end('confirm'));
    back.addEventListener('click', () => end('rollback'));
    place.replaceChildren(el('h2', 'On trial'), el('p', 'The change is in force and the gateway has checked itself. Unless you keep it, the settings before it are in force again in ', el('b', { id: 'left' }), '.'),
      view.sealed ? el('p.muted', 'It is kept or cancelled at the gateway, or by a signed order.') : el('div.buttons', keep, back));
    tick();
  } else if (p) {
    if (!trial) trial = { txn: p.txn, rev: p.rev };
    follow();
  } else if (trial && view) {
    const o = view.outcome;
    place.hidden = false;
    if (o?.txn === trial.txn && o.state === 'rolled_back') {
      place.classList.add('bad');
      place.replaceChildren(el('h2', 'The settings before it are in force'), el('p', o.why));
    } else place.replaceChildren(el('h2', 'Kept'), el('p', `Revision ${view.rev} is in force.`));
    trial = null;
  }
}

async function end(how) {
  const p = view.pending;
  trial = { txn: p.txn, rev: p.rev };
  try {
    const r = await ask('POST', '/config/' + how, { txn: p.txn });
    if (r.state === 'rejected') { trial = null; refused(r); await load(); return; }
    if (how === 'confirm') await load(); else await follow();
  } catch { if (token) follow(); }
}

function tick() {
  const place = $('left');
  if (!place || !view?.pending) return;
  const s = Math.max(0, Math.round((new Date(view.pending.deadline) - Date.now()) / 1000));
  place.textContent = `${Math.floor(s / 60)}:${String(s % 60).padStart(2, '0')}`;
  if (!s) { trial = { txn: view.pending.txn, rev: view.pending.rev }; follow(); }
}
setInterval(tick, 500);

// find shows the settings whose name or meaning contains the words.
$('find').addEventListener('input', () => {
  const words = $('find').value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = f => words.every(w => f.dataset.find.includes(w));
  for (const f of document.querySelectorAll('.setting')) f.hidden = words.length > 0 && !fits(f);
  for (const d of [...document.querySelectorAll('details')].reverse()) {
    const any = [...d.querySelectorAll('.setting')].some(f => !f.hidden);
    d.hidden = words.length > 0 && !any;
    d.open = words.length > 0 && any;
  }
});

theme();
if (token) load().catch(err => { if (!err.code) setTimeout(() => location.reload(), 3000); else signOut(); });
else signOut();
