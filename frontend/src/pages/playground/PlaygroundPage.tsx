// One chat with the model, in a class of your choice, with the timing that a client sees.

import { NumberInput, Textarea } from '@mantine/core';
import type { KeyboardEvent } from 'react';
import { useEffect, useMemo, useRef, useState } from 'react';
import type { ChatBody } from '../../api/playground';
import { ClassName } from '../../components/ClassName';
import { Icon } from '../../components/Icon';
import { Panel } from '../../components/Panel';
import { Segments } from '../../components/Segments';
import { TopBar } from '../../components/TopBar';
import { useLive } from '../../live/context';
import type { PanelState } from '../../lib/panelState';
import { AnswerPanel } from './AnswerPanel';
import { curlSnippet, pythonSnippet } from './snippets';
import { useAccess, useChat } from './state';

const READY: PanelState = { kind: 'empty' };

export function PlaygroundPage() {
  const access = useAccess();
  const chat = useChat();
  const [prompt, setPrompt] = useState('');
  const [chosen, setChosen] = useState<string | null>(null);
  const [maxTokens, setMaxTokens] = useState(200);
  const [temperature, setTemperature] = useState(0);
  const ready = access.kind === 'ready' ? access : null;
  const priority = chosen ?? ready?.classes[0] ?? '';
  const body = useMemo(
    (): ChatBody => ({
      model: ready?.model ?? 'MODEL',
      priority,
      messages: [{ role: 'user', content: prompt === '' ? 'Hello' : prompt }],
      max_tokens: maxTokens,
      temperature,
      stream: true,
      stream_options: { include_usage: true },
    }),
    [ready?.model, priority, prompt, maxTokens, temperature],
  );
  const send = (): void => {
    if (ready !== null && prompt.trim() !== '') chat.send(ready.key, body);
  };
  const state: PanelState = access.kind === 'failed' ? { kind: 'error', failure: access.failure } : access.kind === 'asking' ? { kind: 'loading' } : { kind: 'live', ageS: 0 };
  return (
    <>
      <TopBar title="Playground" sub={ready?.model ?? ''} />
      <main id="main">
        <div className="cols play">
          <div className="col">
            <Ask state={state} onRetry={access.retry}>
              <Prompt value={prompt} onChange={setPrompt} onSend={send} />
              <ClassChoice classes={ready?.classes ?? []} value={priority} onChange={setChosen} />
              <div className="pair">
                <Setting label="Answer at most" unit="tokens" value={maxTokens} max={100_000} onChange={setMaxTokens} />
                <Setting label="Temperature" unit="" value={temperature} max={2} onChange={setTemperature} />
              </div>
              <div className="acts">
                <button type="button" className="btn pri" disabled={chat.isRunning || prompt.trim() === ''} onClick={send}>
                  Send
                </button>
                <button type="button" className="btn" disabled={!chat.isRunning} onClick={chat.stop}>
                  Stop
                </button>
                <span className="k">{prompt.trim() === '' ? 'Type a prompt first.' : 'Ctrl + Enter sends.'}</span>
              </div>
            </Ask>
          </div>
          <AnswerPanel chat={chat} />
        </div>
        <Snippets body={body} />
      </main>
    </>
  );
}

/** The form keeps a panel's loading and error states, but its age says nothing, so it has none. */
function Ask({ state, onRetry, children }: { state: PanelState; onRetry: () => void; children: React.ReactNode }) {
  if (state.kind === 'live') {
    return (
      <section className="panel" aria-labelledby="ask">
        <div className="ph">
          <h2 id="ask">Your prompt</h2>
        </div>
        <div className="pb ask">{children}</div>
      </section>
    );
  }
  return (
    <Panel title="Your prompt" state={state} loadingHeight={260} onRetry={onRetry}>
      {READY.kind}
    </Panel>
  );
}

function Prompt({ value, onChange, onSend }: { value: string; onChange: (value: string) => void; onSend: () => void }) {
  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) onSend();
  };
  return (
    <Textarea
      aria-label="Prompt"
      placeholder="Ask something"
      autosize
      minRows={4}
      maxRows={16}
      value={value}
      onChange={(event) => onChange(event.currentTarget.value)}
      onKeyDown={onKeyDown}
    />
  );
}

function ClassChoice({ classes, value, onChange }: { classes: readonly string[]; value: string; onChange: (value: string) => void }) {
  const { snapshot } = useLive();
  const words = (id: string): React.ReactNode => {
    const color = snapshot?.classes.find((one) => one.id === id)?.color;
    return color === undefined ? id : <ClassName id={id} color={color} light />;
  };
  return (
    <div className="choice">
      <span className="lab">Class</span>
      <Segments label="Class" choices={classes.map((id) => [id, words(id)] as const)} value={value} onChange={onChange} />
    </div>
  );
}

function Setting({ label, unit, value, max, onChange }: { label: string; unit: string; value: number; max: number; onChange: (value: number) => void }) {
  return (
    <div className="f">
      <NumberInput
        label={label}
        value={value}
        min={0}
        max={max}
        allowNegative={false}
        rightSection={unit === '' ? null : <span className="u">{unit}</span>}
        rightSectionWidth={unit === '' ? 8 : 56}
        rightSectionPointerEvents="none"
        onChange={(next) => typeof next === 'number' && onChange(next)}
      />
    </div>
  );
}

const LANGUAGES = [
  ['curl', 'curl'],
  ['python', 'Python'],
] as const;

function Snippets({ body }: { body: ChatBody }) {
  const [language, setLanguage] = useState<'curl' | 'python'>('curl');
  const text = (language === 'curl' ? curlSnippet : pythonSnippet)(window.location.origin, body);
  return (
    <section className="panel" aria-labelledby="snippet">
      <div className="ph wide">
        <h2 id="snippet">The same request from elsewhere</h2>
        <span className="grow" />
        <Segments label="Language" className="sm" choices={LANGUAGES} value={language} onChange={setLanguage} />
        <CopyButton text={text} />
      </div>
      <div className="pb">
        <pre tabIndex={0} aria-label="Command">
          {text}
        </pre>
        <p className="note">
          <span className="id">TIDEGATE_KEY</span> is an API key of your own; the Playground’s key is short-lived and stays in this page.
        </p>
      </div>
    </section>
  );
}

function CopyButton({ text }: { text: string }) {
  const [copied, setCopied] = useState<string | null>(null);
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  useEffect(() => () => clearTimeout(timer.current), []);
  const say = (words: string): void => {
    setCopied(words);
    timer.current = setTimeout(() => setCopied(null), 2000);
  };
  const copy = (): void => {
    navigator.clipboard.writeText(text).then(
      () => say('Copied'),
      () => say('Select it and copy'),
    );
  };
  return (
    <button type="button" className="btn sm" onClick={copy}>
      {copied === 'Copied' ? <Icon name="ok" /> : null}
      {copied ?? 'Copy'}
    </button>
  );
}
