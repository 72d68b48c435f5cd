// The page's first sentence and its relatives, in words.

import type { ClassLive, LiveSnapshot, Metric, Percentile, Verdict, WorkerLive } from '../api/live';
import { count, figure, latencyBeside, list, objective, percent, plural } from './format';
import { clockMinutes, day, duration, instant, utc } from './time';

const LATE: Record<Metric, string> = { ttft: 'late first tokens', tpot: 'late tokens' };

export function metricName(metric: Metric): string {
  return metric.toUpperCase();
}

export function classOf(snapshot: LiveSnapshot, id: string | null): ClassLive | null {
  return snapshot.classes.find((one) => one.id === id) ?? null;
}

export function promised(one: ClassLive, metric: Metric): string {
  const seconds = metric === 'ttft' ? one.objective.ttft_s : one.objective.tpot_s;
  return `${percent(one.objective.target)} in ${objective(seconds)}`;
}

/** "high is breaking its promise: late first tokens"; in the past tense when the numbers are only the last known. */
export function brokenHeadline(verdict: Verdict, isLastKnown: boolean): string {
  const what = verdict.metric === null ? '' : `: ${LATE[verdict.metric]}`;
  return `${verdict.class_id ?? 'a class'} ${isLastKnown ? 'was' : 'is'} breaking its promise${what}`;
}

/** What the figures of a class count: "last 5 min", or "since the objectives changed at 03:09 UTC" where that is less. */
export function judgedSpan(one: ClassLive | null): string {
  const since = one?.judged_since ?? null;
  return since === null ? `last ${duration(one?.window_s ?? 300)}` : `since the objectives changed at ${clockMinutes(since)} UTC`;
}

/** The same beside a figure, where there is little room. */
export function judgedSpanShort(one: ClassLive): string {
  return one.judged_since === null ? duration(one.window_s) : `since ${clockMinutes(one.judged_since)}`;
}

/** "Last 5 min: 91.2 %; 317 of 3,604 came late." in parts, as the two counts are figures: those of the class's card. */
export function brokenFact(verdict: Verdict, one: ClassLive | null): { lead: string; late: string; of: string; end: string } {
  const share = verdict.attainment === null ? '' : `${percent(verdict.attainment)}; `;
  const again = one !== null && isRecovering(one) ? ` Recovering: kept again from ${percent(one.objective.kept_again, 2)}.` : '';
  const waiting = verdict.metric === 'ttft' && one !== null && one.num_overdue > 0 ? `, ${count(one.num_overdue)} still waiting` : '';
  return {
    lead: `${capital(judgedSpan(one))}: ${share}`,
    late: count(verdict.num_late),
    of: count(verdict.num_requests),
    end: ` came late${waiting}.${again}`,
  };
}

/** Numbers stay with their units where a line ends. */
export function unbroken(text: string): string {
  return text.replace(/(\d) (%|m?s\b|min\b|UTC)/g, '$1\u00a0$2');
}

function capital(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}`;
}

/** "normal and low keep their promises."; who else does not, if anyone. */
export function othersLine(snapshot: LiveSnapshot): string {
  const others = snapshot.classes.filter((one) => one.id !== snapshot.verdict.class_id);
  const kept = others.filter((one) => keepsBoth(one)).map((one) => one.id);
  const broken = others.filter((one) => !keepsBoth(one)).map((one) => one.id);
  const parts: string[] = [];
  if (broken.length > 0) parts.push(`${list(broken)} ${broken.length === 1 ? 'breaks its promise' : 'break theirs'} too.`);
  if (kept.length > 0) parts.push(`${list(kept)} ${kept.length === 1 ? 'keeps its promise' : 'keep their promises'}.`);
  return parts.join(' ');
}

export function keepsBoth(one: ClassLive): boolean {
  return one.ttft_state.kept && one.tpot_state.kept;
}

/**
 * "Closest to its limit: high TPOT, p99 at 35 of 40 ms." The attainment judges; where the percentile would seem to
 * say something else (93 % of a promised 90 % in time, but p95 late), the attainment speaks.
 */
export function closestLine(snapshot: LiveSnapshot): string {
  const { verdict } = snapshot;
  const one = classOf(snapshot, verdict.class_id);
  if (one === null || verdict.metric === null) return '';
  const { governing } = one.objective;
  const measured = one[verdict.metric][governing];
  const limit = verdict.metric === 'ttft' ? one.objective.ttft_s : one.objective.tpot_s;
  if (measured === null && verdict.attainment === null) return '';
  const misses = verdict.attainment !== null && verdict.attainment < one.objective.target;
  const lead = misses ? 'Over its limit, but of too few requests to judge' : 'Closest to its limit';
  const said = measured !== null && measured > limit === misses ? `${governing} at ${besideLimit(measured, limit)}` : attained(one, verdict, limit);
  const span = one.judged_since === null ? '' : `, ${judgedSpan(one)}`;
  return `${lead}: ${one.id} ${metricName(verdict.metric)}, ${said}${span}.`;
}

/** "35 of 40 ms" */
function besideLimit(measured: number, limit: number): string {
  const shown = latencyBeside(measured, limit);
  const [limitValue = '', limitUnit = ''] = objective(limit).split(' ');
  const at = shown.unit === limitUnit ? shown.value : figure(shown);
  return `${at} of ${limitValue} ${limitUnit}`;
}

/** "93 % in 10 s, 90 % promised" */
function attained(one: ClassLive, verdict: Verdict, limit: number): string {
  return `${percent(verdict.attainment)} in ${objective(limit)}, ${percent(one.objective.target)} promised`;
}

/** The quiet line of a page without a broken promise. */
export function quietLine(snapshot: LiveSnapshot, now: number): { head: string; say: string } {
  const { verdict } = snapshot;
  if (verdict.kind === 'no_traffic') {
    return { head: 'No traffic', say: 'Nothing has finished lately, so there is no promise to judge.' };
  }
  const since = verdict.since === null ? '' : `for ${duration(now - verdict.since)}, since ${instant(verdict.since, now)}. `;
  return { head: isUndecidedAnywhere(snapshot) ? 'No promise broken' : 'All promises kept', say: `${since}${closestLine(snapshot)}`.trim() };
}

/** "No worker is connected", and since when. */
export function noWorkerHead(snapshot: LiveSnapshot, now: number, isLastKnown: boolean): string {
  const heard = snapshot.workers_at === null ? '' : `; the last one was heard at ${instant(snapshot.workers_at, now)}`;
  return isLastKnown ? `Last seen at ${utc(snapshot.at)}: no worker was connected` : `No worker is connected${heard}`;
}

export function noWorkerLine(snapshot: LiveSnapshot): string {
  const waiting =
    snapshot.num_waiting === 0 ? '' : ` ${plural(snapshot.num_waiting, 'waiting request keeps its', 'waiting requests keep their')} place.`;
  return `New requests are refused with 503 until a worker is live.${waiting}`;
}

/** What a class's card says of its promise. */
export function promiseLine(one: ClassLive, now: number, isOld: boolean): string {
  const broken = (['ttft', 'tpot'] as const).filter((metric) => !stateOf(one, metric).kept);
  if (broken.length === 0) return keptLine(one);
  const [first = 'ttft', second] = broken;
  const names = second === undefined ? metricName(first) : 'both';
  if (isOld) return `${names} ${second === undefined ? 'was' : 'were'} broken`;
  const since = Math.min(...broken.map((metric) => stateOf(one, metric).broken_since ?? now));
  return `${names} broken ${duration(now - since)}${isRecovering(one) ? ', recovering' : ''}`;
}

/** Every share has reached its target again, but not yet the one from which the promise counts as kept. */
export function isRecovering(one: ClassLive): boolean {
  const shares = [one.attainment, one.ttft_state.attainment, one.tpot_state.attainment];
  return !keepsBoth(one) && shares.every((share) => share === null || share >= one.objective.target);
}

/** Below its target and not broken: so few requests that others may still keep the promise. */
function keptLine(one: ClassLive): string {
  if (one.num_judged === 0) return 'nothing finished';
  return isUndecided(one) ? 'too few to judge' : 'both kept';
}

/** Nothing is broken, but somewhere the few requests there were came late. */
export function isUndecidedAnywhere(snapshot: LiveSnapshot): boolean {
  return snapshot.classes.some(isUndecided);
}

export function isUndecided(one: ClassLive): boolean {
  return keepsBoth(one) && one.attainment !== null && one.attainment < one.objective.target;
}

export function stateOf(one: ClassLive, metric: Metric) {
  return metric === 'ttft' ? one.ttft_state : one.tpot_state;
}

/** Red is the governing percentile of a broken half that is itself over the objective: a joint miss may leave it in time. */
export function isLate(one: ClassLive, metric: Metric, percentile: Percentile): boolean {
  const limit = metric === 'ttft' ? one.objective.ttft_s : one.objective.tpot_s;
  return percentile === one.objective.governing && !stateOf(one, metric).kept && (one[metric][percentile] ?? Infinity) > limit;
}

/** "8.8× burn, gone in 31 h": the pace of the budget; how long it lasts only where it would run out within 30 days. */
export function burnLine(one: ClassLive): string | null {
  if (one.burn_rate === null) return null;
  if (isUndecided(one)) return 'too few to judge';
  const pace = `${one.burn_rate < 10 ? one.burn_rate.toFixed(1) : count(one.burn_rate)}× burn`;
  if (one.budget_left === null || one.burn_rate <= 1) return pace;
  if (one.budget_left <= 0) return `${pace}, used up`;
  return `${pace}, gone in ${inHours((one.budget_left * 30 * 24) / one.burn_rate)}`;
}

/** What is left of the budget; not known while it counts only the few requests that are too few to judge. */
export function budgetShown(one: ClassLive, now: number): number | null {
  const isYoung = one.budget_since !== null && now - one.budget_since < one.window_s;
  return isYoung && isUndecided(one) ? null : one.budget_left;
}

/** What the budget counts: "30 d", or since when where the objectives are younger than that. */
export function budgetSpan(one: ClassLive, now: number): string {
  const isWhole = one.budget_since === null || now - one.budget_since > 29 * 86_400;
  if (isWhole || one.budget_since === null) return '30 d';
  const isToday = Math.floor(one.budget_since / 86_400) === Math.floor(now / 86_400);
  return `since ${isToday ? clockMinutes(one.budget_since) : day(one.budget_since)}`;
}

function inHours(hours: number): string {
  if (hours < 1) return `${Math.max(1, Math.round(hours * 60))} min`;
  return hours < 72 ? `${Math.round(hours)} h` : `${Math.round(hours / 24)} d`;
}

export interface SilentWords {
  head: string;
  say: string;
}

export function silentWords(worker: WorkerLive, snapshot: LiveSnapshot, now: number): SilentWords {
  const head = `${worker.id} has been silent for ${duration(now - worker.seen_at)}, since ${instant(worker.seen_at, now)}`;
  const held = worker.num_running + worker.cells.filter((cell) => cell.state === 'parked').length;
  const requests = held === 1 ? 'its request goes' : `its ${count(held)} requests go`;
  if (held === 0) return { head, say: 'It held no request when it was last heard.' };
  const elsewhere = snapshot.workers.some((one) => one.state === 'live') ? 'on elsewhere' : 'on as soon as another worker is live';
  return { head, say: `${leaseWords(worker, now)} ${requests} ${elsewhere}, after the last token that was published. None is lost, none comes twice.` };
}

function leaseWords(worker: WorkerLive, now: number): string {
  if (worker.lease_ends_at === null) return 'When its lease has run out,';
  const left = worker.lease_ends_at - now;
  return left > 0 ? `Its lease runs out in ${duration(Math.ceil(left))}; then` : `Its lease ran out at ${utc(worker.lease_ends_at)};`;
}

/** The tab's title and the announcement carry the verdict; neither ticks. */
export function tabTitle(snapshot: LiveSnapshot | null, isLost: boolean, page: string): string {
  if (isLost) return 'Not live · Tidegate';
  if (snapshot === null) return `${page} · Tidegate`;
  const silent = snapshot.workers.filter((one) => one.state === 'silent');
  const { verdict } = snapshot;
  if (verdict.kind === 'broken') {
    const what = verdict.metric === null ? 'promise broken' : LATE[verdict.metric];
    return `(${1 + verdict.num_more}) ${verdict.class_id ?? ''}: ${what} · Tidegate`;
  }
  if (verdict.kind === 'no_worker') return '(1) no worker · Tidegate';
  if (silent.length > 0) return `(${silent.length}) ${silent[0]?.id ?? ''} silent · Tidegate`;
  return `${page} · ${quietLine(snapshot, snapshot.at).head.toLowerCase()} · Tidegate`;
}

export function announcement(snapshot: LiveSnapshot | null, lostSince: number | null): string {
  if (snapshot === null) return lostSince === null ? 'Loading.' : 'Not connected.';
  if (lostSince !== null) return `Connection lost. Showing the last known numbers, from ${utc(lostSince)}.`;
  const silent = snapshot.workers.filter((one) => one.state === 'silent').map((one) => one.id);
  const prefix = silent.length > 0 ? `${list(silent)} ${silent.length === 1 ? 'is' : 'are'} silent. ` : '';
  return `${prefix}${verdictSentence(snapshot)}`;
}

function verdictSentence(snapshot: LiveSnapshot): string {
  const { verdict } = snapshot;
  switch (verdict.kind) {
    case 'broken': {
      const since = verdict.since === null ? '' : `, since ${utc(verdict.since)}`;
      return `Live. ${brokenHeadline(verdict, false)}${since}.`;
    }
    case 'kept':
      return `Live. ${quietLine(snapshot, snapshot.at).head}.`;
    case 'no_traffic':
      return 'Live, no traffic.';
    case 'no_worker':
      return 'Live. No worker is connected.';
  }
}
