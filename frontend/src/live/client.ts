// The websocket of the live view: connects, notices silence, reconnects with growing waits, feeds the store.

import type { LiveMessage } from '../api/live';
import type { ConnectionEvent } from './connection';
import type { LiveState } from './store';
import { connectionChanged, INITIAL, receive } from './store';

/** The server speaks several times a second; this long without a word and the line is dead, whatever TCP believes. */
const SILENCE_S = 5;
/** The close code of a connection without a session. */
const UNAUTHENTICATED = 4401;

export const monotonicS = (): number => performance.now() / 1000;

export class LiveClient {
  private state: LiveState = INITIAL;
  private readonly listeners = new Set<() => void>();
  private socket: WebSocket | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private heardAt = 0;

  constructor(private readonly url: string) {}

  readonly getState = (): LiveState => this.state;

  readonly subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  start(): void {
    window.addEventListener('online', this.retryNow);
    this.open();
  }

  stop(): void {
    window.removeEventListener('online', this.retryNow);
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  readonly retryNow = (): void => {
    if (this.state.connection.kind !== 'waiting') return;
    clearTimeout(this.timer);
    this.change({ kind: 'retry' });
    this.open();
  };

  private open(): void {
    const socket = new WebSocket(this.url);
    this.socket = socket;
    this.heardAt = monotonicS();
    this.watch(socket);
    socket.onmessage = (event: MessageEvent<string>) => this.take(socket, event.data);
    socket.onclose = (event) => this.closed(socket, event.code);
  }

  private take(socket: WebSocket, text: string): void {
    if (socket !== this.socket) return;
    this.heardAt = monotonicS();
    const next = receive(this.state, JSON.parse(text) as LiveMessage, this.heardAt);
    this.set(connectionChanged(next, { kind: 'opened' }));
  }

  private watch(socket: WebSocket): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (socket !== this.socket) return;
      if (monotonicS() - this.heardAt < SILENCE_S) this.watch(socket);
      else this.abandon(socket);
    }, 1000);
  }

  /** A dead line may take minutes to report its own close; do not wait for it. */
  private abandon(socket: WebSocket): void {
    socket.close();
    this.closed(socket, 0);
  }

  private closed(socket: WebSocket, code: number): void {
    if (socket !== this.socket) return;
    this.socket = null;
    clearTimeout(this.timer);
    if (code === UNAUTHENTICATED) {
      this.set({ ...this.state, refused: true });
      return;
    }
    this.change({ kind: 'closed', at: monotonicS(), jitter: Math.random() });
    this.scheduleRetry();
  }

  private scheduleRetry(): void {
    const { connection } = this.state;
    if (connection.kind !== 'waiting') return;
    this.timer = setTimeout(this.retryNow, Math.max(0, connection.retryAt - monotonicS()) * 1000);
  }

  private change(event: ConnectionEvent): void {
    this.set(connectionChanged(this.state, event));
  }

  private set(state: LiveState): void {
    if (state === this.state) return;
    this.state = state;
    for (const listener of this.listeners) listener();
  }
}

export function liveUrl(location: Location): string {
  return `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws/live/`;
}
