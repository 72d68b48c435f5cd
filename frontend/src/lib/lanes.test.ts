import { describe, expect, it } from 'vitest';
import type { Cell } from '../api/live';
import { cellsOf, freeSlots, parkedCells, parkedWords, waitBars, workerLoad } from './lanes';
import { aClass, aSnapshot, aWorker } from './testing';

const cell = (id: string, state: Cell['state'], arrivedAt: number, classId = 'high'): Cell => ({
  id,
  class_id: classId,
  state,
  late: false,
  arrived_at: arrivedAt,
  num_prompt_tokens: 10,
  num_generated_tokens: 0,
  num_blocks: 1,
});

describe('the strip of waits', () => {
  it('places a wait between 0 and the bound, late once past the objective', () => {
    const [early, late] = waitBars([0.1, 1.4], 0.8, 2);
    expect([early?.x, early?.late]).toEqual([0.05, false]);
    expect([late?.x, late?.late]).toEqual([0.7, true]);
  });

  it('keeps what has passed the bound at its end', () => {
    expect(waitBars([99], 0.8, 2)[0]?.x).toBe(39 / 40);
  });
});

describe('the cells of a lane', () => {
  const worker = aWorker('w1', {
    cells: [cell('c', 'prefill', 1), cell('b', 'decode', 3), cell('a', 'decode', 2), cell('p', 'parked', 0), cell('x', 'decode', 0, 'low')],
  });

  it('are those of the class, decoding first, then by arrival', () => {
    expect(cellsOf(worker, 'high').map((one) => one.id)).toEqual(['a', 'b', 'c']);
  });

  it('leave the parked ones to their own column', () => {
    expect(parkedCells([worker], 'high').map((one) => one.id)).toEqual(['p']);
  });
});

describe('free slots', () => {
  it('say that nobody waits', () => {
    expect(freeSlots(aSnapshot())).toEqual({ head: '5 free slots', why: 'nobody is waiting' });
  });

  it('say that nobody can use them only when the blocks are gone', () => {
    const full = aSnapshot({ num_waiting: 9, workers: [aWorker('w1', { num_used_blocks: 995 })] });
    expect(freeSlots(full)).toEqual({ head: '5 free slots that nobody can use', why: 'the worker is out of KV blocks' });
  });

  it('do not count those of a silent worker', () => {
    expect(freeSlots(aSnapshot({ workers: [aWorker('w1', { state: 'silent' })] }))).toEqual({ head: 'No free slot', why: 'no worker is live' });
  });
});

describe('a batch limit below what runs', () => {
  const over = aWorker('w1', { batch_limit: 4, num_running: 6 });

  it('says how many run beyond it, and why they may', () => {
    expect(workerLoad(over).slots).toBe('4 of 4, 2 more');
    expect(freeSlots(aSnapshot({ workers: [over] })).why).toBe('every slot of the batch limit is taken; 2 requests more run from before it shrank');
  });
});

describe('the parked column', () => {
  it('tells parking by priority from parking by memory', () => {
    expect(parkedWords(aClass('low', { num_parked: 3, num_parked_by_memory: 3 }))).toBe('by memory');
    expect(parkedWords(aClass('low', { num_parked: 3, num_parked_by_memory: 1, longest_parked_s: 6.2 }))).toBe('1 by memory, longest 6.2 s');
    expect(parkedWords(aClass('low', { num_parked: 3, longest_parked_s: 75 }))).toBe('longest 1 min 15 s');
    expect(parkedWords(aClass('high', { preemptible: false }))).toBe('none, never yields');
  });
});
