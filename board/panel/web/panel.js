// The live page. It asks the API of the gateway that served it and nothing
// else. Server-sent events say when something changed; summaries are fetched
// then, at most once a second.

import { $, api, ask, el, said, theme } from './dom.js';

// draw replaces a place's content only when its data has changed, so that
// focus, selection and animations live on.
const drawn = new Map();
function draw(id, data, make) {
  const key = JSON.stringify(data);
  if (drawn.get(id) === key) return;
  drawn.set(id, key);
  $(id).replaceChildren(...[make()].flat().filter(Boolean));
}

// Numbers for people.
const num = (v, digits = 0) => v.toLocaleString(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits });
const watts = w => Math.abs(w) >= 1000 ? num(w / 1000, 2) + ' kW' : num(w) + ' W';
const wh = v => Math.abs(v) >= 1000 ? num(v / 1000, Math.abs(v) >= 1e5 ? 0 : Math.abs(v) >= 1e4 ? 1 : 2) + ' kWh' : num(v) + ' Wh';
const price = p => num(p / 1e6, 3);                            // nano/Wh -> unit/kWh
const money = n => num(n / 1e9, Math.abs(n) < 1e8 && n ? 4 : 2); // nano -> unit
const clock = t => new Date(t).toLocaleTimeString();
const short = id => id.startsWith('sys:') ? id.slice(4) : id.slice(0, 6) + '…';
const plural = (n, one, many = one + 's') => num(n) + ' ' + (n === 1 ? one : many);
const zeroID = '0'.repeat(32);

const data = { status: null, market: null, members: [], sessions: [], energy: null, ledger: null, snapshot: null, blocks: [], guard: null };

// house draws what stands there: panels if it ever produced, a sun while it
// sells, a car while one is plugged in.
function picture({ pv, selling, car, charging }) {
  const s = el('svg.pic', { viewBox: '0 0 170 104', 'aria-hidden': 'true' });
  if (selling) {
    const rays = [...Array(8)].map((_, i) => {
      const a = i * Math.PI / 4;
      return el('line.ray', { x1: 22 + 15 * Math.cos(a), y1: 20 + 15 * Math.sin(a), x2: 22 + 20 * Math.cos(a), y2: 20 + 20 * Math.sin(a) });
    });
    s.append(el('g.sunny', rays), el('circle.sunball', { cx: 22, cy: 20, r: 10 }));
  }
  s.append(
    el('rect.wall', { x: 42, y: 52, width: 70, height: 50 }),
    el('path.roof', { d: 'M34 54 77 20l43 34z' }),
    el('rect.pane', { x: 51, y: 63, width: 16, height: 14, rx: 1.5 }),
    el('rect.door', { x: 80, y: 70, width: 17, height: 32, rx: 1.5 }));
  if (pv) s.append(el('path.pv', { d: 'M46.5 48 72 28h10L56.5 48z' }), el('path.pv', { d: 'M60 48 84 29.500l8 6.500L76 48z' }));
  if (car) {
    s.append(
      el('rect.post', { x: 112, y: 66, width: 6, height: 36, rx: 2 }),
      el('path.cable' + (charging ? '.on' : ''), { d: 'M118 74c8 2 4 14 10 16' }),
      el('path.body', { d: 'M124 95v-7q0-3 4-4l6-1 6-8q1-1 3-1h13q2 0 3 1l6 8 2 1q2 1 2 4v7z' }),
      el('path.glass', { d: 'M139 83l4.500-6h6v6zM152 83v-6h4.500l4 6z' }),
      el('circle.tyre', { cx: 135, cy: 96, r: 6 }), el('circle.tyre', { cx: 159, cy: 96, r: 6 }));
    if (charging) s.append(el('path.bolt', { d: 'M150 54l-7 11h5l-2 8 8-12h-5z' }));
  }
  return s;
}

function street() {
  const { market, members, sessions, status } = data;
  const open = sessions.filter(s => ['held', 'charging', 'metered'].includes(s.state));
  const houses = members.filter(m => m.active).map(m => {
    const h = market?.houses.find(h => h.name === m.name) ?? { bought_wh: 0, sold_wh: 0, charged_wh: 0, import_wh: 0, export_wh: 0 };
    const session = open.find(s => s.gateway_name === m.name);
    return { name: m.name, self: m.self, up: m.self || m.connected, pv: m.produced_wh > 0 || m.export_wh > 0, h, session };
  });
  draw('street', houses, () => houses.length ? houses.map(x => {
    const { h, session } = x;
    const sells = h.sold_wh + h.export_wh > 0 && h.sold_wh + h.export_wh >= h.bought_wh + h.import_wh;
    const buys = !sells && h.bought_wh > 0;
    const takes = !sells && !buys && h.import_wh > 0;
    const does = sells ? (h.sold_wh ? 'sells ' + wh(h.sold_wh) : 'feeds in ' + wh(h.export_wh))
      : buys ? 'buys ' + wh(h.bought_wh) : takes ? 'takes ' + wh(h.import_wh) : 'quiet';
    const notes = [];
    if (sells && h.sold_wh && h.export_wh) notes.push(wh(h.export_wh) + ' more to the grid');
    if (buys && h.import_wh) notes.push(wh(h.import_wh) + ' from the grid');
    if (takes) notes.push('from the grid');
    if (session) notes.push(session.state === 'charging' ? `car charging, ${wh(session.wh)} of ${wh(session.max_wh)}` : 'car: ' + session.state);
    if (h.price_nano_per_wh) notes.push(`price here ${price(h.price_nano_per_wh)}`);
    const charging = session?.state === 'charging';
    return el('li.house' + (sells ? '.sells' : buys ? '.buys' : takes ? '.takes' : ''),
      picture({ pv: x.pv, selling: sells, car: !!session, charging }),
      el('h3', x.name, x.self && el('span.tag', 'this house'), !x.up && el('span.tag', 'not connected')),
      el('p.does', does), el('p.sub', notes.map(n => el('span', n))),
      el('div.wire'), el('div.rail'));
  }) : el('li.empty', 'No members yet.'));

  const last = market?.last;
  draw('grid', last ?? null, () => {
    if (!last) return el('span.muted', 'The first slot has not been cleared yet.');
    const e = last.energy;
    return [
      el('span', el('b.t', wh(e.traded_wh)), ' between neighbours'),
      el('span', el('b.g', wh(e.grid_import_wh)), ' from the grid'),
      el('span', el('b.s', wh(e.grid_export_wh)), ' to the grid'),
      el('span', el('b', money(last.fees_nano)), ` ${market.currency} for the use of the wires`),
    ];
  });
  $('slot').textContent = last ? `slot ${last.slot}, cleared in block ${last.height}` : '';
  if (status) document.title = `${status.gateway} · joulegate`;
}

function prices() {
  const m = data.market;
  if (!m) return;
  const last = m.last, hist = m.history ?? [];
  const now = hist.at(-1)?.price_nano_per_wh;
  $('price').textContent = last ? price(now) : '–';
  $('unit').textContent = m.currency + '/kWh';
  if ($('why').textContent !== m.why) $('why').textContent = m.why;
  draw('scale', last && [last.retail, last.feed_in, m.houses.map(h => h.price_nano_per_wh)], () => {
    if (!last) return null;
    const at = p => Math.min(100, Math.max(0, 100 * (p - last.feed_in) / Math.max(1, last.retail - last.feed_in)));
    const ps = m.houses.map(h => h.price_nano_per_wh).filter(p => p > 0);
    const lo = Math.min(...ps, now), hi = Math.max(...ps, now);
    const span = el('div.span', { title: `houses pay ${price(lo)} to ${price(hi)}, by distance` });
    span.style.left = `min(${at(lo)}%, 100% - 6px)`;
    span.style.width = Math.max(0, at(hi) - at(lo)) + '%';
    return [
      el('div.track', { role: 'img', 'aria-label': `Between ${price(last.feed_in)}, which the grid pays, and ${price(last.retail)}, which it asks: ${price(lo)} to ${price(hi)}` }, span),
      el('div.ends', el('span', 'grid pays ', el('b', price(last.feed_in))), el('span', 'grid asks ', el('b', price(last.retail)))),
    ];
  });
  draw('history', hist, () => {
    if (hist.length < 2) return null;
    const n = 48, bars = hist.slice(-n), up = Math.max(1, ...bars.map(b => b.traded_wh + b.import_wh)), down = Math.max(up * .15, ...bars.map(b => b.export_wh));
    const y0 = 100 * up / (up + down), k = 100 / (up + down), w = 100 / n, s = el('svg', {
      viewBox: '0 0 100 100', preserveAspectRatio: 'none', role: 'img',
      'aria-label': `Energy in the last ${bars.length} slots: ${wh(bars.reduce((a, b) => a + b.traded_wh, 0))} between neighbours`,
    });
    bars.forEach((b, i) => {
      const x = 100 - (bars.length - i) * w + w * .12, bw = w * .76;
      s.append(el('rect.traded', { x, width: bw, y: y0 - b.traded_wh * k, height: b.traded_wh * k }),
        el('rect.import', { x, width: bw, y: y0 - (b.traded_wh + b.import_wh) * k, height: b.import_wh * k }),
        el('rect.export', { x, width: bw, y: y0, height: b.export_wh * k }));
    });
    s.append(el('line.zero', { x1: 0, x2: 100, y1: y0, y2: y0 }));
    return [s, el('p.legend', el('span.t', el('i'), 'between neighbours'), el('span', el('i'), 'from the grid'), el('span.s', el('i'), 'to the grid'), el('span', 'per slot, newest right'))];
  });
}

const roles = { site: 'House connection', production: 'Solar inverter', charger: 'Charger', connection: 'Connection to the grid' };

function here() {
  const s = data.snapshot;
  if (!s) return;
  $('heretime').textContent = s.live ? 'read ' + clock(s.time) : 'the control loop stands still: charger off';
  draw('here', [s.meters, s.chargers, s.alarms, s.utility], () => {
    const rows = (s.alarms ?? []).map(a => el('div.row.alarm', el('h3', a.text), el('span.val', '⚠'), el('p.sub', `${a.code} · ${a.subject} · since ${clock(a.since)}`)));
    if (s.utility) rows.push(el('div.row', el('h3', 'The utility limits charging'), el('p.sub', s.utility)));
    for (const m of s.meters ?? []) {
      const out = m.power_w < 0;
      rows.push(el('div.row', el('h3', roles[m.role] ?? m.role),
        el('span.val' + (out ? '.out' : '.in'), watts(Math.abs(m.power_w))),
        el('p.sub', [m.role === 'production' ? 'producing' : m.power_w === 0 ? 'nothing flows' : out ? (m.role === 'charger' ? 'out of the car' : 'feeding in') : m.role === 'charger' ? 'into the car' : 'drawing', m.quality, m.profile, `${wh(m.import_wh)} in, ${wh(m.export_wh)} out`].join(' · '))));
    }
    for (const c of s.chargers ?? []) {
      rows.push(el('div.row', el('h3', 'Connector ' + c.id + ' ', el('span.pill.' + (c.fault ? 'bad' : c.state === 'charging' ? 'car' : 'ok'), c.fault || c.state)),
        el('span.val', watts(c.power_w)),
        c.max_wh ? el('div.sub', el('progress', { max: c.max_wh, value: c.session_wh, 'aria-label': 'energy of the session' }), `${wh(c.session_wh)} of ${wh(c.max_wh)} at most ${price(c.cap_nano_per_wh)} per kWh`) : null,
        el('p.sub', `${c.why || 'waiting for a car'} · ${c.actuator === 'wallbox' ? 'wallbox' : 'relay'} ${c.relay_closed ? 'closed' : 'open'}` + (c.starts_in_s ? ` · starts in ${num(c.starts_in_s)} s` : '') + (c.temperature_mdegc != null ? ` · ${num(Math.round(c.temperature_mdegc / 100) / 10)} °C` : '') + (c.offline ? ' · without the ledger' : '') + (c.limit_ma ? ` · limit ${num(c.limit_ma / 1000)} A` : '')),
        c.plan && el('p.sub', 'plan: ' + num(c.plan.wh / 1000) + ' kWh' + (c.plan.by ? ' by ' + new Date(c.plan.by).toLocaleTimeString([], {hour: '2-digit', minute: '2-digit'}) : '') + (c.plan.report ? ' · ' + c.plan.report : '')),
        c.sale && el('p.sub', `gives ${wh(c.sale.sold_wh)} of ${wh(c.sale.sell_wh)}, sold from ${price(c.sale.sell_limit_nano_per_wh)} per kWh · ${c.sale.why}` + (c.sale.promised_wh ? ` · ${wh(c.sale.promised_wh)} promised` : '') + (c.sale.short_wh ? ` · ${wh(c.sale.short_wh)} short of what was promised` : '')),
        c.fault ? el('p.sub', `A person has to repair it, then: joulegate charger clear ${c.id}`) : null));
    }
    return rows.length ? el('div.rows', rows) : el('p.empty', 'No meter is configured.');
  });
}

function ledger() {
  const l = data.ledger, st = data.status;
  if (l) $('ledger').textContent = l.halted ? 'HALTED: ' + l.halted : (l.sync ? l.sync + ' · ' : l.catching_up ? 'catching up · ' : '') + `height ${num(l.height)} · ${plural(l.validators, 'validator')} · ${l.waiting ? plural(l.waiting, 'transaction') + ' waiting · ' : ''}${l.open_payouts ? plural(l.open_payouts, 'payout') + ' to pay' + (l.overdue_payouts ? `, ${num(l.overdue_payouts)} OVERDUE` : '') + ' · ' : ''}${l.open_disputes ? plural(l.open_disputes, 'dispute') + ' open · ' : ''}${l.quarantined_meters ? plural(l.quarantined_meters, 'meter') + ' in QUARANTINE · ' : ''}${l.attestations?.length ? `attested by ${short(l.attestations[0].auditor)} (${l.attestations[0].scope}) until ${new Date(l.attestations[0].expires_ms).toLocaleDateString()}` : 'no third party has attested this microgrid'} · ${l.update_height ? `UPDATE joulegate before block ${num(l.update_height)} · ` : ''}state ${l.state_hash.slice(0, 12)}`;
  if (st) {
    $('who').textContent = `${st.gateway} in ${st.chain} · ${plural(st.members, 'member')}, ${plural(st.peers, 'peer')} connected`;
    $('basis').textContent = (st.basis === 'simulated' ? 'Simulated money. ' : '') + `joulegate ${st.version} · prepaid credit with a discount, redeemable at par.`;
  }
  const list = $('blocks');
  const have = new Set([...list.children].map(c => c.dataset.height));
  for (const b of [...data.blocks].sort((a, b) => a.height - b.height)) {
    if (have.has(String(b.height))) continue;
    const what = b.what?.length ? b.what : [b.txs ? plural(b.txs, 'transaction') : 'empty'];
    const li = el('li.block' + (have.size ? '.new' : ''),
      el('div.n', '#' + num(b.height), el('time', { datetime: b.time }, clock(b.time))),
      el('code', { title: 'state ' + b.state_hash }, b.state_hash.slice(0, 16)),
      el('ul', what.slice(0, 4).map(w => el('li', { title: w }, w)), what.length > 4 && el('li', `and ${what.length - 4} more`)));
    li.dataset.height = b.height;
    list.prepend(li);
  }
  while (list.children.length > 32) list.lastChild.remove();
}

const words = { held: 'money held', charging: 'charging', metered: 'settling', closed: 'closed', expired: 'expired', interrupted: 'interrupted' };
const looks = { held: 'sun', charging: 'car', metered: 'sun', closed: 'ok', expired: 'bad', interrupted: 'bad' };

function sessions() {
  const all = [...data.sessions].sort((a, b) => b.opened_ms - a.opened_ms);
  const cur = data.status?.currency ?? '';
  $('sessioncount').textContent = all.length ? `${all.filter(s => s.state === 'closed').length} closed, ${all.filter(s => words[s.state] && !['closed', 'expired', 'interrupted'].includes(s.state)).length} open` : '';
  draw('sessions', [all, cur], () => all.length ? el('table',
    el('thead', el('tr', el('th', { scope: 'col' }, 'Driver'), el('th', { scope: 'col' }, 'At'), el('th', { scope: 'col' }, 'State'),
      el('th.num', { scope: 'col' }, 'Energy'), el('th.num', { scope: 'col' }, 'Held'), el('th.num', { scope: 'col' }, 'Paid'),
      el('th.num', { scope: 'col' }, 'Discount'), el('th.num', { scope: 'col' }, 'Given back'), el('th', { scope: 'col' }, 'Receipt'))),
    el('tbody', all.slice(0, 25).map(s => {
      const done = ['closed', 'interrupted'].includes(s.state);
      return el('tr',
        el('td', { title: s.driver }, short(s.driver), el('small', clock(s.opened_ms))),
        el('td', s.gateway_name, el('small', 'connector ' + s.connector)),
        el('td', el('span.pill.' + (looks[s.state] ?? 'wait'), words[s.state] ?? s.state)),
        el('td.num', wh(s.wh), s.local_wh > 0 && el('small', wh(s.local_wh) + ' local')),
        el('td.num', money(s.hold_nano), el('small', `≤ ${price(s.cap_nano_per_wh)}/kWh`)),
        el('td.num', done ? money(s.paid_nano) : '–', s.sell_wh > 0 && el('small', `gave ${wh(s.sold_wh ?? 0)}, received ${money(s.earned_nano ?? 0)}`), s.firm_paid_nano > 0 && el('small', `+ ${money(s.firm_paid_nano)} for what was promised`)),
        el('td.num', s.credit_redeemed_nano ? el('span.plus', money(s.credit_redeemed_nano) + ' used') : s.redeem && !done ? 'to be used' : '–', s.credit_earned_nano > 0 && el('small', '+' + money(s.credit_earned_nano) + ' earned')),
        el('td.num', done || s.state === 'expired' ? money(s.released_nano) : '–'),
        el('td', s.refunded_nano > 0 && el('small', money(s.refunded_nano) + ' refunded'), s.not_for_billing && el('small', { title: s.not_for_billing }, 'not for billing'), done ? el('a', { href: `${api}/receipts/${s.id}?format=html` }, 'receipt') : '', done && el('small', el('a', { href: `${api}/receipts/${s.id}?format=ocmf` }, 'OCMF'))));
    }))) : el('p.empty', `No car has charged yet. A driver asks for a price first: joulegate session quote`));
}

function energy() {
  const e = data.energy;
  if (!e) return;
  draw('energy', e, () => {
    const part = (cls, label, v) => {
      const d = el('div.' + cls, { title: `${label} ${wh(v)}` }, `${label} ${wh(v)}`);
      d.style.flexGrow = Math.max(0, v);
      return v > 0 && d;
    };
    const inn = [part('produced', 'produced', e.produced_wh), part('import', 'from the grid', e.grid_import_wh), e.loss_wh < 0 && part('loss', 'gained', -e.loss_wh)];
    const out = [part('consumed', 'consumed', e.consumed_wh), part('export', 'to the grid', e.grid_export_wh), e.loss_wh > 0 && part('loss', 'lost', e.loss_wh)];
    const holds = e.produced_wh + e.grid_import_wh === e.consumed_wh + e.grid_export_wh + e.loss_wh;
    return [
      el('div.balance', el('div.bar', inn), el('p.equals', { 'aria-label': holds ? 'equals' : 'does not equal' }, holds ? '=' : '≠'), el('div.bar', out)),
      el('p.facts', el('span', el('b', wh(e.traded_wh)), ' of it traded between neighbours'),
        el('span', el('b', num(100 * Math.max(0, e.produced_wh - e.grid_export_wh) / Math.max(1, e.consumed_wh)) + ' %'), ' of what was used came from these roofs')),
    ];
  });
}

const senses = { domain: 'Names', packet: 'Network', process: 'Programs', load: 'Machine' };
const acts = { block: 'An address is blocked', kill: 'End a program', quarantine: 'A neighbour is shut out', safe_stop: 'Charging is stopped', refuse: 'What goes past the name server is refused' };
const asks = { block: 'Block an address?', kill: 'End a program?', quarantine: 'Shut a neighbour out?', safe_stop: 'Stop charging?', refuse: 'Refuse what goes past the name server?' };
const cannot = { block: 'Addresses cannot be blocked here', kill: 'Programs cannot be ended here', quarantine: 'Neighbours cannot be shut out here', safe_stop: 'Charging cannot be stopped here', refuse: 'What goes past the name server cannot be refused here' };
const day = t => new Date(t).toLocaleString([], { dateStyle: 'short', timeStyle: 'short' });

function guard() {
  const g = data.guard;
  if (!g) return;
  const sees = (g.coverage ?? []).filter(c => c.level !== 'none').length;
  const active = (g.rules ?? []).filter(r => r.mode !== 'observe');
  $('guardstate').textContent = g.mode === 'off' ? 'off' : `${sees} of ${(g.coverage ?? []).length} sensors see · ` + (active.length ? `${plural(active.length, 'rule')} may act or ask` : 'observes, does nothing by itself') + (g.held_back ? ` · ${num(g.held_back)} records held back` : '');
  draw('guard', [g.mode, (g.coverage ?? []).map(c => [c.sensor, c.level, c.reason, c.lost]), g.findings, g.reactions, g.questions, g.silent, g.suspended, g.unable], () => {
    if (g.mode === 'off') return el('p.empty', 'The guard is off.');
    const button = (text, order, title) => {
      const b = el('button', { type: 'button' }, text);
      b.addEventListener('click', () => command(order, title));
      return b;
    };
    const why = r => `${g.words?.[r.rule] ?? r.rule} (${r.rule})`;
    const rows = [];
    for (const q of g.questions ?? []) rows.push(el('div.row.asks', el('h3', asks[q.action] ?? q.action), el('span.buttons', button('Yes', { do: 'answer', id: q.id, yes: true }, asks[q.action]), button('No', { do: 'answer', id: q.id }, asks[q.action])), el('p.sub', `${why(q)} · asked ${day(q.since)}, forgotten ${day(q.until)} · number ${q.id}`)));
    for (const r of g.reactions ?? []) rows.push(el(r.action === 'refuse' ? 'div.row' : 'div.row.alarm', el('h3', acts[r.action] ?? r.action), button('Release', { do: 'release', id: r.id }, 'Release it?'), el('p.sub', `${why(r)} · until ${day(r.until)} · number ${r.id}`)));
    if (g.suspended) rows.push(el('div.row', el('h3', 'Everything was released'), button('React again', { do: 'resume' }, 'React again?'), el('p.sub', `nothing is done before ${day(g.suspended)}`)));
    for (const [what, reason] of Object.entries(g.unable ?? {})) rows.push(el('div.row.alarm', el('h3', cannot[what] ?? what), el('p.sub', reason)));
    for (const n of g.silent ?? []) rows.push(el('div.row.alarm', el('h3', `The guard of ${n} is silent`), el('p.sub', 'it has promised to say that it is at work, and has not')));
    const found = (g.findings ?? []).slice(0, 8);
    return [
      el('ul.senses', (g.coverage ?? []).map(c => el('li', el('span.pill' + (c.level === 'none' ? '' : c.lost ? '.sun' : '.ok'), senses[c.sensor] ?? c.sensor), el('span.sub', c.level === 'none' ? (c.reason || 'sees nothing') : c.level + (c.reason ? ': ' + c.reason : '') + (c.lost ? `, ${num(c.lost)} missed` : ''))))),
      rows.length && el('div.rows', rows),
      found.length ? el('div.scroll', { tabindex: 0, role: 'region', 'aria-label': 'Findings' }, el('table', el('thead', el('tr', ['Last', 'Severity', 'What was found', 'Count'].map(h => el('th', { scope: 'col' }, h)))),
        el('tbody', found.map(f => el('tr', el('td', day(f.last)), el('td', el('span.pill' + ({ critical: '.bad', high: '.bad', medium: '.sun' }[f.severity] ?? ''), f.severity)), el('td.long', g.words?.[f.rule] ?? f.rule, el('small', f.rule)), el('td', num(f.count))))))) : el('p.empty', 'Nothing was found.'),
      el('p.sub', 'Findings are signed and linked: verifiable by a third party. Addresses, names and programs are shown at the gateway only: joulegate guard status. ', el('a', { href: api + '/guard/report' }, 'Report')),
    ];
  });
}

// command gives the guard one order, with a code that whoever looks after the
// gateway has made.
function command(order, title) {
  const d = $('code');
  $('h-code').textContent = title;
  $('refusal').textContent = '';
  $('digits').value = '';
  $('send').onclick = async e => {
    e.preventDefault();
    if (!$('digits').reportValidity()) return;
    try {
      await ask('POST', '/guard/orders', { ...order, code: $('digits').value });
      d.close();
      soon();
    } catch (err) { $('refusal').textContent = said(err); }
  };
  d.showModal();
}

function render() { street(); prices(); here(); ledger(); sessions(); energy(); guard(); }

// The slot's clock runs between updates.
setInterval(() => {
  const s = data.market?.slot_seconds ?? data.status?.slot_seconds;
  if (!s) return;
  const left = Math.ceil(s - (Date.now() / 1000) % s);
  $('slottime').textContent = `this slot ends in ${left >= 90 ? Math.ceil(left / 60) + ' min' : left + ' s'}`;
}, 500);

// refresh fetches the summaries; one failure does not hide the others.
async function refresh() {
  const take = async (path, key) => {
    try {
      const r = await fetch(api + path, { cache: 'no-store' });
      if (r.ok) data[key] = await r.json();
    } catch { /* the status pill tells */ }
  };
  await Promise.all([take('/status', 'status'), take('/market/status', 'market'), take('/members', 'members'), take('/sessions', 'sessions'), take('/energy', 'energy'), take('/ledger/status', 'ledger'), take('/guard/card', 'guard')]);
  data.members ??= []; data.sessions ??= [];
  for (const b of data.ledger?.blocks ?? []) if (!data.blocks.some(x => x.height === b.height)) data.blocks.push(b);
  render();
}

let due = false, busy = false;
async function soon() {
  due = true;
  if (busy) return;
  busy = true;
  while (due) {
    due = false;
    await refresh();
    await new Promise(r => setTimeout(r, 1000));
  }
  busy = false;
}

function link(cls, text) { const p = $('link'); p.className = 'pill ' + cls; if (p.textContent !== text) p.textContent = text; }

function listen() {
  const es = new EventSource(api + '/live');
  es.onopen = () => { link('ok live', 'live'); soon(); };
  es.onerror = () => {
    link('bad', 'gateway not reached');
    if (es.readyState === EventSource.CLOSED) setTimeout(listen, 3000); // refused; the browser retries only lost connections
  };
  es.addEventListener('snapshot', e => { data.snapshot = JSON.parse(e.data); here(); });
  es.addEventListener('block', e => {
    data.blocks = [...data.blocks.slice(-40), JSON.parse(e.data)];
    ledger();
    soon();
  });
  es.addEventListener('event', soon);
}

theme();
soon();
setInterval(soon, 15000);
listen();
