// Requests to the control plane: session cookies, the CSRF token, and one shape for everything that can go wrong.

export interface Mistake {
  path: string;
  message: string;
}

/** An answer that is not the one asked for. `status` 0: the server could not be reached. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly retryable: boolean,
    readonly mistakes: readonly Mistake[] = [],
    readonly id: string | null = null,
  ) {
    super(message);
    this.name = 'ApiError';
  }
}

interface ErrorBody {
  error?: { code?: string; message?: string; retryable?: boolean; mistakes?: Mistake[]; id?: string };
}

export interface Answer<T> {
  body: T;
  etag: string | null;
}

interface Options {
  method?: 'GET' | 'POST' | 'DELETE';
  body?: unknown;
  ifMatch?: string;
  signal?: AbortSignal;
}

let csrfToken = '';

export function setCsrfToken(token: string): void {
  csrfToken = token;
}

export async function request<T>(path: string, options: Options = {}): Promise<Answer<T>> {
  const response = await send(path, options);
  const body = await readBody(response);
  if (!response.ok) throw toError(response, body);
  return { body: body as T, etag: response.headers.get('ETag') };
}

async function send(path: string, { method = 'GET', body, ifMatch, signal }: Options): Promise<Response> {
  const headers: Record<string, string> = { Accept: 'application/json' };
  if (method !== 'GET') headers['X-CSRFToken'] = csrfToken;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  if (ifMatch !== undefined) headers['If-Match'] = ifMatch;
  try {
    return await fetch(path, {
      method,
      headers,
      credentials: 'same-origin',
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(signal === undefined ? {} : { signal }),
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error;
    throw new ApiError(0, 'unreachable', 'The control plane could not be reached. Nothing was changed.', true);
  }
}

async function readBody(response: Response): Promise<unknown> {
  const text = await response.text();
  if (text === '') return null;
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return null; // a proxy's HTML page: the status says enough
  }
}

function toError(response: Response, body: unknown): ApiError {
  const error = (body as ErrorBody | null)?.error ?? {};
  return new ApiError(
    response.status,
    error.code ?? `http_${response.status}`,
    error.message ?? `The control plane answered ${response.status} ${response.statusText}`.trim() + '.',
    error.retryable ?? response.status >= 500,
    error.mistakes ?? [],
    error.id ?? response.headers.get('X-Request-Id'),
  );
}
