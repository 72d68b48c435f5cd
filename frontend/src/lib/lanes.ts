// The lanes from queue to device, computed: which cell is where, where each wait stands, why slots are free.

import type { Cell, ClassLive, LiveSnapshot, WorkerLive } from '../api/live';
import { count, plural, wholePercent } from './format';
import { duration } from './time';
import { whyNotStarted } from './waiting';

export interface Bar {
  /** Left edge and height, 0 to 1. */
  x: number;
  height: number;
  late: boolean;
}

const NUM_BINS = 40;

/** The waits of a queue between 0 and the bound, as bars; a bar is late where its waits have passed the objective. */
export function waitBars(waits: readonly number[], objectiveS: number, boundS: number): Bar[] {
  const bins = Array<number>(NUM_BINS).fill(0);
  for (const wait of waits) {
    const index = Math.min(NUM_BINS - 1, Math.floor((wait / boundS) * NUM_BINS));
    bins[index] = (bins[index] ?? 0) + 1;
  }
  return bins.flatMap((num, index) =>
    num === 0
      ? []
      : [{ x: index / NUM_BINS, height: Math.min(1, (5 + num * 3) / 14), late: ((index + 0.5) / NUM_BINS) * boundS > objectiveS }],
  );
}

/** A class's cells on a worker: decoding first, by arrival, then those reading their prompt. Parked ones are elsewhere. */
export function cellsOf(worker: WorkerLive, classId: string): Cell[] {
  const rank = { decode: 0, prefill: 1, parked: 2 };
  return worker.cells
    .filter((cell) => cell.class_id === classId && cell.state !== 'parked')
    .sort((a, b) => rank[a.state] - rank[b.state] || a.arrived_at - b.arrived_at || (a.id < b.id ? -1 : 1));
}

export function parkedCells(workers: readonly WorkerLive[], classId: string): Cell[] {
  return workers
    .flatMap((worker) => worker.cells)
    .filter((cell) => cell.class_id === classId && cell.state === 'parked')
    .sort((a, b) => a.arrived_at - b.arrived_at);
}

export function numFree(worker: WorkerLive): number {
  return Math.max(0, worker.batch_limit - worker.num_running);
}

export function kvShare(worker: WorkerLive): number | null {
  return worker.num_blocks === 0 ? null : worker.num_used_blocks / worker.num_blocks;
}

/** Sequences beyond a limit that shrank meanwhile: nobody is preempted for it. */
export function numOver(worker: WorkerLive): number {
  return Math.max(0, worker.num_running - worker.batch_limit);
}

/** Under a worker's name: "47 of 52 slots, KV 97 %"; "4 of 4, 2 more" where the limit shrank below what runs. */
export function workerLoad(worker: WorkerLive): { slots: string; kv: string } {
  const over = numOver(worker);
  const slots = `${worker.num_running - over} of ${worker.batch_limit}${over === 0 ? '' : `, ${over} more`}`;
  return { slots, kv: `KV ${wholePercent(kvShare(worker))}` };
}

/** The row of free slots: how many, and why nobody takes them, as far as the figures say it. */
export function freeSlots(snapshot: LiveSnapshot): { head: string; why: string } {
  const heard = snapshot.workers.filter((worker) => worker.state === 'live');
  const free = heard.reduce((sum, worker) => sum + numFree(worker), 0);
  const isFull = heard.length > 0 && heard.every((worker) => (kvShare(worker) ?? 0) >= 0.99);
  if (free === 0) return { head: 'No free slot', why: heard.length === 0 ? 'no worker is live' : takenWords(heard) };
  const head = plural(free, 'free slot');
  if (isFull) return { head: `${head} that nobody can use`, why: `${heard.length === 1 ? 'the worker is' : 'every worker is'} out of KV blocks` };
  if (snapshot.num_waiting === 0) return { head, why: 'nobody is waiting' };
  const reason = whyNotStarted(snapshot);
  return { head, why: `${count(snapshot.num_waiting)} waiting${reason === '' ? '' : `. ${reason}`}` };
}

function takenWords(workers: readonly WorkerLive[]): string {
  const over = workers.reduce((sum, worker) => sum + numOver(worker), 0);
  const more = over === 0 ? '' : `; ${plural(over, 'request')} more ${over === 1 ? 'runs' : 'run'} from before it shrank`;
  return `every slot of the batch limit is taken${more}`;
}

/** What stands in a class's parked column when no cell does, or below its cells. */
export function parkedWords(one: ClassLive): string {
  if (one.num_parked === 0) return one.preemptible ? 'none' : 'none, never yields';
  const longest = one.longest_parked_s === null ? '' : `longest ${one.longest_parked_s < 10 ? one.longest_parked_s.toFixed(1) + ' s' : duration(one.longest_parked_s)}`;
  if (one.num_parked_by_memory === 0) return longest;
  const byMemory = one.num_parked_by_memory === one.num_parked ? 'by memory' : `${one.num_parked_by_memory} by memory`;
  return longest === '' ? byMemory : `${byMemory}, ${longest}`;
}

export function cellState(cell: Cell): string {
  switch (cell.state) {
    case 'prefill':
      return `reading its prompt of ${plural(cell.num_prompt_tokens, 'token')}`;
    case 'decode':
      return `decoding, ${plural(cell.num_generated_tokens, 'token')} out`;
    case 'parked':
      return `parked after ${plural(cell.num_generated_tokens, 'token')}`;
  }
}
