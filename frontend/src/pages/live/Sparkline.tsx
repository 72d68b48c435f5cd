import { useMemo } from 'react';
import type { Point } from '../../api/live';
import { useLiveClock } from './clock';

const WIDTH = 72;
const HEIGHT = 18;
const SPAN_S = 900;

/** The last 15 minutes, 0 to 100 %, as one line; the figure of now stands beside it. */
export function Sparkline({ points, read }: { points: readonly Point[]; read: (point: Point) => number | null }) {
  const { now, pointS } = useLiveClock();
  const second = Math.floor(now);
  const path = useMemo(() => sparkPath(points, read, second, pointS), [points, read, second, pointS]);
  return (
    <svg className="spark" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} aria-hidden="true">
      <path className="grid" d="M0 1H72M0 17H72" />
      <path d={path} />
    </svg>
  );
}

export function sparkPath(points: readonly Point[], read: (point: Point) => number | null, now: number, pointS: number): string {
  let path = '';
  let last: number | null = null;
  for (const point of points) {
    const value = read(point);
    if (point.at < now - SPAN_S || value === null) continue;
    const x = ((point.at - (now - SPAN_S)) / SPAN_S) * WIDTH;
    const y = HEIGHT - 1 - Math.min(1, Math.max(0, value)) * (HEIGHT - 2);
    const isJoined = last !== null && point.at - last <= pointS * 2.5;
    path += `${isJoined ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`;
    last = point.at;
  }
  return path;
}
