import { PasswordInput, TextInput } from '@mantine/core';
import type { SyntheticEvent } from 'react';
import { useEffect, useState } from 'react';
import { ApiError } from '../api/http';
import type { Session } from '../api/session';
import { signIn } from '../api/session';
import { Icon, Logo } from '../components/Icon';

export function SignIn({ onSignedIn }: { onSignedIn: (session: Session) => void }) {
  const [username, setUsername] = useState('');
  const [password, setPassword] = useState('');
  const [problem, setProblem] = useState<string | null>(null);
  const [isBusy, setIsBusy] = useState(false);
  useEffect(() => {
    document.title = 'Sign in · Tidegate';
  }, []);

  const submit = async (event: SyntheticEvent): Promise<void> => {
    event.preventDefault();
    setIsBusy(true);
    setProblem(null);
    try {
      onSignedIn(await signIn(username, password));
    } catch (error) {
      setProblem(error instanceof ApiError ? error.message : String(error));
      setIsBusy(false);
    }
  };

  return (
    <main className="sign-in" id="main">
      <div className="brand">
        <Logo />
        Tidegate
      </div>
      <form className="panel" onSubmit={(event) => void submit(event)} aria-labelledby="sign-in">
        <h1 id="sign-in">Sign in</h1>
        <TextInput
          label="Username"
          name="username"
          autoComplete="username"
          autoFocus
          required
          withAsterisk={false}
          value={username}
          onChange={(event) => setUsername(event.currentTarget.value)}
        />
        <PasswordInput
          label="Password"
          name="password"
          autoComplete="current-password"
          required
          withAsterisk={false}
          value={password}
          onChange={(event) => setPassword(event.currentTarget.value)}
        />
        {problem === null ? null : (
          <p className="bad state" role="alert" style={{ whiteSpace: 'normal' }}>
            <Icon name="bad" />
            {problem}
          </p>
        )}
        <button type="submit" className="btn pri" disabled={isBusy}>
          {isBusy ? 'Signing in' : 'Sign in'}
        </button>
      </form>
    </main>
  );
}
