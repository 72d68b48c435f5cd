import { describe, expect, it } from 'vitest';
import { aClass, aSnapshot, aVerdict, aWorker, NOW } from './testing';
import {
  announcement,
  brokenFact,
  brokenHeadline,
  budgetShown,
  budgetSpan,
  burnLine,
  isLate,
  judgedSpanShort,
  noWorkerLine,
  othersLine,
  promised,
  promiseLine,
  quietLine,
  silentWords,
  tabTitle,
} from './verdict';

const BROKEN = aVerdict({ kind: 'broken', class_id: 'high', metric: 'ttft', since: NOW - 260, num_late: 317, num_requests: 3604, attainment: 0.91204 });
function fact(...told: Parameters<typeof brokenFact>): string {
  const { lead, late: num, of, end } = brokenFact(...told);
  return `${lead}${num} of ${of}${end}`;
}

const late = { kept: false, broken_since: NOW - 260, num_late: 317, num_requests: 3604, attainment: 0.912 };

describe('a broken promise', () => {
  it('is one sentence: which class breaks what', () => {
    expect(brokenHeadline(BROKEN, false)).toBe('high is breaking its promise: late first tokens');
  });

  it('goes into the past tense with the last known numbers', () => {
    expect(brokenHeadline(BROKEN, true)).toBe('high was breaking its promise: late first tokens');
  });

  it('says what was measured, over which window, of how many', () => {
    expect(fact(BROKEN, aClass('high', { tpot_state: late }))).toBe('Last 5 min: 91.2 %; 317 of 3,604 came late.');
  });

  it('says how many of the late ones still wait', () => {
    expect(fact(BROKEN, aClass('high', { num_overdue: 13 }))).toBe('Last 5 min: 91.2 %; 317 of 3,604 came late, 13 still waiting.');
  });

  it('says that it recovers, and from where on it is kept, instead of contradicting its share', () => {
    const state = { ...late, attainment: 0.9902 };
    const high = aClass('high', { attainment: 0.9902, tpot_state: state });
    expect(fact({ ...BROKEN, attainment: 0.9902, num_late: 4, num_requests: 410 }, high)).toBe(
      'Last 5 min: 99 %; 4 of 410 came late. Recovering: kept again from 99.1 %.',
    );
    expect(promiseLine(high, NOW, false)).toBe('TPOT broken 4 min 20 s, recovering');
  });

  it('says what the other classes do', () => {
    expect(othersLine(aSnapshot({ verdict: BROKEN }))).toBe('normal and low keep their promises.');
    const both = aSnapshot({ verdict: BROKEN, classes: [aClass('high'), aClass('normal', { tpot_state: late }), aClass('low')] });
    expect(othersLine(both)).toBe('normal breaks its promise too. low keeps its promise.');
  });

  it('is in the tab, with the number of broken promises', () => {
    expect(tabTitle(aSnapshot({ verdict: { ...BROKEN, num_more: 1 } }), false, 'Live')).toBe('(2) high: late first tokens · Tidegate');
  });

  it('is announced with its start, without ticking figures', () => {
    expect(announcement(aSnapshot({ verdict: BROKEN }), null)).toBe('Live. high is breaking its promise: late first tokens, since 03:07:46 UTC.');
  });
});

describe('a quiet page', () => {
  it('names a promise by its share while its late requests have no first token to measure', () => {
    const none = { p50: null, p95: null, p99: null, num: 0 };
    const verdict = aVerdict({ kind: 'kept', class_id: 'high', metric: 'ttft', num_late: 2, num_requests: 2, attainment: 0 });
    const classes = [aClass('high', { ttft: none, attainment: 0, num_judged: 2, num_late: 2, num_overdue: 2 })];
    expect(quietLine(aSnapshot({ verdict, classes }), NOW)).toEqual({
      head: 'No promise broken',
      say: 'Over its limit, but of too few requests to judge: high TTFT, 0 % in 800 ms, 99 % promised.',
    });
  });

  it('names the promise closest to its limit', () => {
    const snapshot = aSnapshot({ verdict: aVerdict({ class_id: 'high', metric: 'tpot' }) });
    expect(quietLine(snapshot, NOW)).toEqual({ head: 'All promises kept', say: 'Closest to its limit: high TPOT, p99 at 35 of 40 ms.' });
  });

  it('does not call a figure over its limit close to it', () => {
    const high = aClass('high', { tpot: { p50: 0.03, p95: 0.05, p99: 0.05, num: 4 } });
    const snapshot = aSnapshot({ classes: [high], verdict: aVerdict({ class_id: 'high', metric: 'tpot', attainment: 0.75 }) });
    expect(quietLine(snapshot, NOW).say).toBe('Over its limit, but of too few requests to judge: high TPOT, p99 at 50 of 40 ms.');
  });

  it('does not call a promise kept that too few requests have missed so far', () => {
    const snapshot = aSnapshot({ classes: [aClass('high', { attainment: 0.75 })], verdict: aVerdict({ class_id: 'high', metric: 'tpot', attainment: 0.75 }) });
    expect(quietLine(snapshot, NOW).head).toBe('No promise broken');
    expect(tabTitle(snapshot, false, 'Live')).toBe('Live · no promise broken · Tidegate');
  });

  it('lets the attainment speak where the percentile is stricter than the promise', () => {
    const low = aClass('low', {
      objective: { ttft_s: 10, tpot_s: 0.3, target: 0.9, kept_again: 0.91, governing: 'p95', max_wait_s: 60 },
      ttft: { p50: 4, p95: 12, p99: 14, num: 400 },
    });
    const snapshot = aSnapshot({ classes: [low], verdict: aVerdict({ class_id: 'low', metric: 'ttft', attainment: 0.93 }) });
    expect(quietLine(snapshot, NOW).say).toBe('Closest to its limit: low TTFT, 93 % in 10 s, 90 % promised.');
  });

  it('says for how long and since when', () => {
    const snapshot = aSnapshot({ verdict: aVerdict({ since: NOW - 600 }) });
    expect(quietLine(snapshot, NOW).say).toBe('for 10 min, since 03:02:06 UTC.');
  });

  it('does not call silence a kept promise', () => {
    expect(quietLine(aSnapshot({ verdict: aVerdict({ kind: 'no_traffic' }) }), NOW).head).toBe('No traffic');
  });
});

describe('a card', () => {
  it('writes its promise', () => {
    expect(promised(aClass('high'), 'ttft')).toBe('99 % in 800 ms');
  });

  it('says which half is broken and for how long', () => {
    expect(promiseLine(aClass('high', { ttft_state: late }), NOW, false)).toBe('TTFT broken 4 min 20 s');
    expect(promiseLine(aClass('high', { ttft_state: late }), NOW, true)).toBe('TTFT was broken');
    expect(promiseLine(aClass('high', { ttft_state: late, tpot_state: late }), NOW, false)).toBe('both broken 4 min 20 s');
    expect(promiseLine(aClass('high'), NOW, false)).toBe('both kept');
  });

  it('does not call a promise kept that a few requests have missed', () => {
    const few = { num_judged: 3, num_late: 1, attainment: 0.667 };
    expect(promiseLine(aClass('high', few), NOW, false)).toBe('too few to judge');
  });

  it('shows no percentile as late that is in time, though both halves together miss', () => {
    expect(isLate(aClass('high', { ttft_state: late }), 'ttft', 'p99')).toBe(false);
    expect(isLate(aClass('high', { ttft_state: late, ttft: { p50: 0.2, p95: 0.4, p99: 0.9, num: 400 } }), 'ttft', 'p99')).toBe(true);
  });

  it('says when nothing was judged', () => {
    expect(promiseLine(aClass('high', { num_judged: 0 }), NOW, false)).toBe('nothing finished');
  });

  it('says how fast the budget burns, and when it is gone only if it will be', () => {
    expect(burnLine(aClass('high', { burn_rate: 8.8, budget_left: 0.38 }))).toBe('8.8× burn, gone in 31 h');
    expect(burnLine(aClass('high', { burn_rate: 0.4, budget_left: 0.7 }))).toBe('0.4× burn');
    expect(burnLine(aClass('high', { burn_rate: 3, budget_left: 0 }))).toBe('3.0× burn, used up');
    expect(burnLine(aClass('high', { burn_rate: null }))).toBeNull();
  });
});

describe('the error budget', () => {
  it('says what it counts: 30 days, or since the objectives are what they are', () => {
    expect(budgetSpan(aClass('high'), NOW)).toBe('30 d');
    expect(budgetSpan(aClass('high', { budget_since: NOW - 3600 }), NOW)).toBe('since 02:12');
    expect(budgetSpan(aClass('high', { budget_since: NOW - 86_400 }), NOW)).toBe('since 23 Nov');
  });
});

describe('a class with too few requests to judge', () => {
  const few = aClass('high', { attainment: 0.666, num_judged: 3, num_late: 1, burn_rate: 6.7, budget_left: 0, budget_since: NOW - 60 });

  it('has no pace, and no budget that only they have used', () => {
    expect([burnLine(few), budgetShown(few, NOW)]).toEqual(['too few to judge', null]);
  });

  it('keeps the budget that others have left', () => {
    expect(budgetShown({ ...few, budget_left: 0.7, budget_since: NOW - 86_400 }, NOW)).toBe(0.7);
  });
});

describe('figures since the objectives changed', () => {
  const high = aClass('high', { judged_since: NOW - 126, budget_since: NOW - 126 });

  it('are said to be of then, in the verdict, on the card and of the budget', () => {
    expect(fact(BROKEN, high)).toBe('Since the objectives changed at 03:10 UTC: 91.2 %; 317 of 3,604 came late.');
    expect(judgedSpanShort(high)).toBe('since 03:10');
    expect(budgetSpan(high, NOW)).toBe('since 03:10');
  });

  it('are said to be of then where all promises are kept', () => {
    const kept = aVerdict({ kind: 'kept', class_id: 'high', metric: 'tpot', attainment: 1 });
    const said = quietLine(aSnapshot({ classes: [high], verdict: kept }), NOW).say;
    expect(said).toContain('since the objectives changed at 03:10 UTC.');
  });
});

describe('a silent worker', () => {
  const silent = aWorker('w2', { state: 'silent', seen_at: NOW - 6, lease_ends_at: NOW + 4, num_running: 49 });

  it('says what happens to its requests', () => {
    expect(silentWords(silent, aSnapshot({ workers: [aWorker('w1'), silent] }), NOW)).toEqual({
      head: 'w2 has been silent for 6 s, since 03:12:00 UTC',
      say: 'Its lease runs out in 4 s; then its 49 requests go on elsewhere, after the last token that was published. None is lost, none comes twice.',
    });
  });

  it('does not promise another worker where there is none', () => {
    expect(silentWords(silent, aSnapshot({ workers: [silent] }), NOW).say).toContain('go on as soon as another worker is live');
  });

  it('says when the lease has already run out', () => {
    const over = { ...silent, lease_ends_at: NOW - 2 };
    expect(silentWords(over, aSnapshot({ workers: [over] }), NOW).say).toMatch(/^Its lease ran out at 03:12:04 UTC; its 49 requests/);
  });
});

describe('without workers or connection', () => {
  it('says what clients get and what waits', () => {
    expect(noWorkerLine(aSnapshot({ num_waiting: 3 }))).toBe('New requests are refused with 503 until a worker is live. 3 waiting requests keep their place.');
  });

  it('never lets the tab claim to be live', () => {
    expect(tabTitle(aSnapshot({ verdict: BROKEN }), true, 'Live')).toBe('Not live · Tidegate');
  });

  it('announces the loss with the time of the last numbers', () => {
    expect(announcement(aSnapshot(), NOW)).toBe('Connection lost. Showing the last known numbers, from 03:12:06 UTC.');
  });
});
