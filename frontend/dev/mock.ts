// A stand-in for the control plane, for work on the pages alone: `npm run dev:mock`. Never part of a build.
// `GET /mock/<scenario>` changes what it plays: broken, wordy, changed, no-cause, calm, silent, empty, no-worker, gap; `drop` cuts every
// socket, `refuse` and `accept` say what happens to new ones, `other-editor` publishes as somebody else, `viewer` may only look; `traffic`, `no-traffic`, `slow-trial` and `failed-trial` are about drafts on traffic.

import { createHash } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { Duplex } from 'node:stream';
import type { Connect, Plugin } from 'vite';
import type { Document } from '../src/lib/document';
import { history, orderDrain, setScenario, snapshot } from './scenario.ts';
import { traffic, trials } from './trials.ts';

interface Version {
  version: number;
  document: Document;
  comment: string;
  author: string;
  published_at: string;
  state: string;
}

const schema = JSON.parse(readFileSync(fileURLToPath(new URL('policy-schema.json', import.meta.url)), 'utf8')) as unknown;
const start = JSON.parse(readFileSync(fileURLToPath(new URL('policy.json', import.meta.url)), 'utf8')) as Document;
const versions: Version[] = [
  { version: 40, document: { ...start, default_class: 'low' }, comment: 'Shorter chunks', author: 'Ines Aalto', published_at: '2026-11-20T14:12:00Z', state: 'superseded' },
  { version: 41, document: start, comment: 'Batch limit up to 64 after the move', author: 'M. Okafor', published_at: '2026-11-21T22:48:00Z', state: 'live' },
];
const sockets = new Set<Duplex>();
let signedIn = true;
let mayOperate = true;
let refusesSockets = false;

export function mockBackend(): Plugin {
  return {
    name: 'tidegate-mock-backend',
    configureServer: serve,
    configurePreviewServer: serve,
  };
}

interface Server {
  middlewares: Connect.Server;
  httpServer: { on: (event: 'upgrade', listener: (request: IncomingMessage, socket: Duplex) => void) => unknown } | null;
}

function serve(server: Server): void {
  server.middlewares.use((request, response, next) => {
    void answer(request, response).then((handled) => {
      if (!handled) next();
    });
  });
  server.httpServer?.on('upgrade', (request, socket) => {
    if (request.url !== '/ws/live/') return;
    if (refusesSockets) socket.destroy();
    else speak(request, socket);
  });
}

async function answer(request: IncomingMessage, response: ServerResponse): Promise<boolean> {
  const url = request.url ?? '/';
  const method = request.method ?? 'GET';
  if (url.startsWith('/mock/')) return control(url.slice(6), response);
  if (url === '/v1/models') return json(response, 200, { data: [{ id: 'smollm2-135m-instruct' }] });
  if (url === '/v1/chat/completions') return stream(await bodyOf(request), response);
  if (!url.startsWith('/api/v1/')) return false;
  const route = `${method} ${url.slice(8).split('?')[0] ?? ''}`;
  const body = method === 'POST' ? await bodyOf(request) : {};
  return rest(route, body, request, response);
}

function control(scenario: string, response: ServerResponse): boolean {
  if (scenario === 'drop') for (const socket of sockets) socket.destroy();
  else if (scenario === 'refuse' || scenario === 'accept') refusesSockets = scenario === 'refuse';
  else if (scenario === 'other-editor') publishAs('M. Okafor', { ...active().document, step: { ...(active().document.step as object), max_chunk_tokens: 256 } }, 'Shorter chunks');
  else if (scenario === 'viewer') mayOperate = false;
  else if (scenario === 'traffic') trials.play('');
  else if (scenario === 'no-traffic' || scenario === 'slow-trial' || scenario === 'failed-trial') trials.play(scenario);
  else setScenario(scenario);
  return json(response, 200, { scenario });
}

function active(): Version {
  return versions[versions.length - 1]!;
}

function publishAs(author: string, document: Document, comment: string): Version {
  active().state = 'superseded';
  const made = { version: active().version + 1, document, comment, author, published_at: new Date().toISOString(), state: 'live' };
  versions.push(made);
  return made;
}

function rest(route: string, body: Record<string, unknown>, request: IncomingMessage, response: ServerResponse): boolean {
  switch (route) {
    case 'GET session':
      return json(response, 200, signedIn ? { username: 'ines', name: 'Ines Aalto', may_operate: mayOperate, csrf_token: 't' } : { username: '', name: '', may_operate: false, csrf_token: 't' });
    case 'POST session':
      signedIn = body.password !== 'wrong';
      if (!signedIn) return problem(response, 401, 'Username or password is wrong. Try again.');
      return json(response, 200, { username: 'ines', name: 'Ines Aalto', may_operate: mayOperate, csrf_token: 't' });
    case 'DELETE session':
      signedIn = false;
      return json(response, 204, null);
    case 'GET policies/active':
      return json(response, 200, active());
    case 'GET policies/schema':
      return json(response, 200, schema);
    case 'GET policies':
      return json(response, 200, { results: [...versions].reverse(), next: null });
    case 'POST policies/validate':
      return validated(body.document as Document, response) && json(response, 200, { valid: true });
    case 'POST policies':
      if (request.headers['if-match'] !== `"v${active().version}"`) return problem(response, 412, 'Another version was published meanwhile.');
      return json(response, 201, publishAs('Ines Aalto', body.document as Document, String(body.comment)));
    case 'GET policies/traffic':
      return json(response, 200, traffic());
    case 'GET policies/trials':
      return json(response, 200, { results: trials.all(), next: null });
    case 'POST policies/trials':
      return json(response, 201, trials.start(body, active()));
    case 'POST playground/key':
      return json(response, 200, { key: 'k', classes: ['high', 'medium', 'low'] });
    default:
      return trial(route, response) || drain(route, response) || rollback(route, body, response);
  }
}

function trial(route: string, response: ServerResponse): boolean {
  const [, method, id] = /^(GET|DELETE) policies\/trials\/(\d+)$/.exec(route) ?? [];
  if (id === undefined) return false;
  return json(response, 200, method === 'DELETE' ? trials.cancel(Number(id)) : trials.read(Number(id)));
}

function drain(route: string, response: ServerResponse): boolean {
  const [, method, worker] = /^(POST|DELETE) fleet\/workers\/([^/]+)\/drain$/.exec(route) ?? [];
  if (worker === undefined) return false;
  orderDrain(worker, method === 'POST');
  return json(response, 202, { id: worker, draining: method === 'POST' });
}

function rollback(route: string, body: Record<string, unknown>, response: ServerResponse): boolean {
  const match = /^POST policies\/(\d+)\/rollback$/.exec(route);
  const old = versions.find((one) => one.version === Number(match?.[1]));
  if (old === undefined) return problem(response, 404, `There is nothing at ${route}.`);
  return json(response, 201, publishAs('Ines Aalto', old.document, String(body.comment)));
}

/** One of the real rules, enough to see where a mistake appears. */
function validated(document: Document, response: ServerResponse): boolean {
  const mistakes = document.classes.flatMap((one, index) => {
    const slo = one.slo as { ttft_s: number };
    const wait = one.max_wait_s as number;
    if (wait >= slo.ttft_s) return [];
    const message = `${one.id}: ${wait} s is shorter than its TTFT objective of ${slo.ttft_s} s, so requests would count as starving before they are late. Choose ${slo.ttft_s} s or more.`;
    return [{ path: `classes.${index}.max_wait_s`, message }];
  });
  if (mistakes.length === 0) return true;
  json(response, 400, { error: { code: 'invalid', message: 'The policy has mistakes.', retryable: false, mistakes } });
  return false;
}

function problem(response: ServerResponse, status: number, message: string): boolean {
  return json(response, status, { error: { code: `http_${status}`, message, retryable: false, mistakes: [] } });
}

function json(response: ServerResponse, status: number, body: unknown): boolean {
  response.writeHead(status, { 'Content-Type': 'application/json' });
  response.end(body === null ? undefined : JSON.stringify(body));
  return true;
}

async function bodyOf(request: IncomingMessage): Promise<Record<string, unknown>> {
  let text = '';
  for await (const piece of request) text += String(piece);
  return text === '' ? {} : (JSON.parse(text) as Record<string, unknown>);
}

async function stream(body: Record<string, unknown>, response: ServerResponse): Promise<boolean> {
  const prompt = JSON.stringify(body.messages);
  if (prompt.includes('refuse')) {
    response.setHeader('Retry-After', '20');
    return json(response, 429, { error: { message: 'The predicted wait of 74 s exceeds low’s bound of 60 s. Come back in 20 s.', type: 'rate_limit', param: null, code: 'would_wait_too_long' } });
  }
  response.writeHead(200, { 'Content-Type': 'text/event-stream' });
  const words = 'The capital of France is Paris. It lies on the Seine, and has about two million people.'.split(' ');
  for (const word of words) {
    await new Promise((resolve) => setTimeout(resolve, 60));
    response.write(`data: ${JSON.stringify({ id: 'req_7f3a51d0', model: body.model, choices: [{ delta: { content: `${word} ` } }] })}\n\n`);
  }
  response.write(`data: ${JSON.stringify({ id: 'req_7f3a51d0', choices: [{ delta: {}, finish_reason: 'stop' }] })}\n\n`);
  response.write(`data: ${JSON.stringify({ id: 'req_7f3a51d0', choices: [], usage: { prompt_tokens: 31, completion_tokens: words.length } })}\n\n`);
  response.end('data: [DONE]\n\n');
  return true;
}

function speak(request: IncomingMessage, socket: Duplex): void {
  const accept = createHash('sha1')
    .update(`${request.headers['sec-websocket-key'] ?? ''}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
    .digest('base64');
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
  sockets.add(socket);
  const now = Date.now() / 1000;
  send(socket, { type: 'hello', pool: 'default', model: 'smollm2-135m-instruct', server_time: now, interval_s: 0.25, point_s: 10, operator: 'ines' });
  send(socket, { type: 'history', points: history(now) });
  const timer = setInterval(() => send(socket, snapshot(Date.now() / 1000, active().version)), 250);
  const end = (): void => {
    clearInterval(timer);
    sockets.delete(socket);
  };
  socket.on('close', end);
  socket.on('error', end);
  socket.on('data', (data: Buffer) => {
    if ((data[0]! & 0x0f) === 8) socket.end();
  });
}

/** One unmasked text frame. */
function send(socket: Duplex, message: unknown): void {
  const payload = Buffer.from(JSON.stringify(message));
  const head =
    payload.length < 126
      ? Buffer.from([0x81, payload.length])
      : payload.length < 65_536
        ? Buffer.from([0x81, 126, payload.length >> 8, payload.length & 255])
        : Buffer.concat([Buffer.from([0x81, 127, 0, 0, 0, 0]), uint32(payload.length)]);
  socket.write(Buffer.concat([head, payload]));
}

function uint32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32BE(value);
  return buffer;
}
