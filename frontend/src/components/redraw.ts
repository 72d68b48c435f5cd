// One clock for all canvases: at most 4 redraws a second, in one animation frame, and none in a hidden tab.

const MIN_GAP_MS = 250;

const pending = new Map<object, () => void>();
let isArmed = false;
let drawnAt = -Infinity;

export function scheduleRedraw(owner: object, draw: () => void): void {
  pending.set(owner, draw);
  arm();
}

export function cancelRedraw(owner: object): void {
  pending.delete(owner);
}

function arm(): void {
  if (isArmed || pending.size === 0 || document.hidden) return;
  isArmed = true;
  const wait = Math.max(0, drawnAt + MIN_GAP_MS - performance.now());
  setTimeout(() => requestAnimationFrame(flush), wait);
}

function flush(now: number): void {
  isArmed = false;
  drawnAt = now;
  const draws = [...pending.values()];
  pending.clear();
  for (const draw of draws) draw();
}

document.addEventListener('visibilitychange', arm);
