import { ApiError, request, setCsrfToken } from './http';

export interface Session {
  username: string;
  name: string;
  /** Whether this account may change policies and drain workers, or only look. */
  may_operate: boolean;
}

interface SessionBody extends Session {
  csrf_token: string;
}

/** Who is signed in; null for nobody. Also fetches the CSRF token that signing in needs. */
export async function currentSession(): Promise<Session | null> {
  try {
    return remember((await request<SessionBody>('/api/v1/session')).body);
  } catch (error) {
    if (error instanceof ApiError && (error.status === 401 || error.status === 403)) return null;
    throw error;
  }
}

export async function signIn(username: string, password: string): Promise<Session> {
  const { body } = await request<SessionBody>('/api/v1/session', { method: 'POST', body: { username, password } });
  const session = remember(body);
  if (session === null) throw new ApiError(401, 'unauthenticated', 'The control plane did not sign you in.', false);
  return session;
}

export async function signOut(): Promise<void> {
  await request<unknown>('/api/v1/session', { method: 'DELETE' });
}

function remember(body: SessionBody): Session | null {
  setCsrfToken(body.csrf_token);
  return body.username === '' ? null : { username: body.username, name: body.name, may_operate: body.may_operate };
}
