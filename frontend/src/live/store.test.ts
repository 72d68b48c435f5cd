import { describe, expect, it } from 'vitest';
import type { LiveSnapshot, Point } from '../api/live';
import { INITIAL, receive } from './store';

const point = (at: number): Point => ({
  at,
  ttft: {},
  tpot: {},
  tokens_per_s: {},
  waiting: {},
  step_p50_s: null,
  step_p99_s: null,
  batch_limit: null,
  num_running: null,
  kv_share: {},
  busy: {},
});
const snapshot = (at: number, points: Point[]) => ({ type: 'snapshot', at, new_points: points }) as LiveSnapshot;

describe('the store', () => {
  it('adds the points of a snapshot to the history', () => {
    const past = receive(INITIAL, { type: 'history', points: [point(10), point(20)] }, 0);
    expect(receive(past, snapshot(31, [point(30)]), 1).points.map((one) => one.at)).toEqual([10, 20, 30]);
  });

  it('never shows a point twice, as after a reconnect', () => {
    const past = receive(INITIAL, { type: 'history', points: [point(10), point(20)] }, 0);
    expect(receive(past, snapshot(31, [point(20), point(30)]), 1).points.map((one) => one.at)).toEqual([10, 20, 30]);
  });

  it('keeps the same array while nothing new comes, so that charts rest', () => {
    const past = receive(INITIAL, { type: 'history', points: [point(10)] }, 0);
    expect(receive(past, snapshot(11, []), 1).points).toBe(past.points);
  });

  it('forgets what no chart can show', () => {
    const past = receive(INITIAL, { type: 'history', points: [point(10)] }, 0);
    expect(receive(past, snapshot(50_000, [point(50_000)]), 1).points.map((one) => one.at)).toEqual([50_000]);
  });

  it("takes the server's clock from the fastest delivery", () => {
    const hello = receive(INITIAL, { type: 'hello', pool: 'p', model: 'm', server_time: 1000, interval_s: 1, point_s: 10, operator: 'o' }, 10.4);
    expect(hello.clockOffsetS).toBeCloseTo(989.6);
    const fast = receive(hello, snapshot(1001, []), 11.1);
    expect(fast.clockOffsetS).toBeCloseTo(989.9);
    expect(receive(fast, snapshot(1002, []), 13).clockOffsetS).toBeCloseTo(989.9);
  });
});
