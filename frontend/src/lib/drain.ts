// Taking a worker out, in words: what it means for what runs, what waits and what comes.

import type { LiveSnapshot, WorkerLive } from '../api/live';
import { count, plural } from './format';

/** The sequences that a worker runs or has parked. */
export function numHeld(worker: WorkerLive): number {
  return worker.num_running + worker.cells.filter((cell) => cell.state === 'parked').length;
}

/** What draining this worker does, before it is ordered. */
export function drainWords(worker: WorkerLive, snapshot: LiveSnapshot): string[] {
  const held = numHeld(worker);
  const ends = held === 0 ? 'It runs nothing now.' : `Its ${held === 1 ? 'request ends' : `${count(held)} requests end`} here; none is dropped.`;
  return [`It takes no new request from then on. ${ends}`, othersWords(worker, snapshot), 'The order holds for a day, or until you let it resume.'];
}

function othersWords(worker: WorkerLive, snapshot: LiveSnapshot): string {
  const others = snapshot.workers.filter((one) => one.id !== worker.id && one.state === 'live').length;
  if (others > 0) return `What waits and what comes goes to ${others === 1 ? 'the other worker' : `the other ${count(others)} workers`}.`;
  const waiting = snapshot.num_waiting === 0 ? '' : ` ${plural(snapshot.num_waiting, 'waiting request keeps its', 'waiting requests keep their')} place.`;
  return `No other worker is live: new requests are refused with 503 until one is, or until this one resumes.${waiting}`;
}

/** "draining, 3 left", then "drained, safe to stop". */
export function drainState(worker: WorkerLive): string {
  const held = numHeld(worker);
  return held === 0 ? 'drained, safe to stop' : `draining, ${count(held)} left`;
}

/** Whether workers are connected and none of them takes requests because an operator said so. */
export function allDrain(snapshot: LiveSnapshot): boolean {
  const present = snapshot.workers.filter((one) => one.state !== 'gone');
  return present.length > 0 && present.every((one) => one.state === 'draining');
}
