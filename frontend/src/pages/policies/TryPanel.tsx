// Try on traffic: what the draft would have done to requests that really came, before any worker hears of it.

import { Progress } from '@mantine/core';
import { useState } from 'react';
import type { Effect, Trial, TrialResult } from '../../api/trials';
import { ClassName } from '../../components/ClassName';
import { Icon } from '../../components/Icon';
import { Segments } from '../../components/Segments';
import { Term } from '../../components/Term';
import { count, plural } from '../../lib/format';
import { clock, dayAndTime, instant, parseInstant, utc } from '../../lib/time';
import { MAY_LOOK, useMayOperate } from '../../rights';
import type { Row } from '../../lib/trial';
import { isKey, progressWords, rowsOf, trafficBlocks, trafficWords, trustWords, windowOf, windowWords } from '../../lib/trial';
import type { Names } from './Changes';
import type { Editor } from './editor';
import type { TrialView } from './trial';

export function TryPanel({ editor, view, names }: { editor: Editor; view: TrialView; names: Names }) {
  const { trial } = view;
  const result = trial?.result ?? null;
  return (
    <section className="panel" aria-labelledby="try" data-testid="trial">
      <div className="ph wide">
        <h2 id="try">Try on traffic</h2>
        <span className="grow" />
        {result === null || editor.changes.length === 0 ? null : <span className="sub">{spanOf(result)}</span>}
      </div>
      {editor.changes.length === 0 ? (
        <p className="note pb">Change a field, and see here what the change would have done to the requests that really came. No worker hears of it.</p>
      ) : (
        <>
          <Choice editor={editor} view={view} />
          {trial === null || view.isRunning ? null : <Outcome trial={trial} view={view} names={names} basePublishedAt={editor.base.published_at} />}
        </>
      )}
    </section>
  );
}

/** "03:00:12 to 03:30:00 UTC, 49,212 requests" */
function spanOf(result: TrialResult): string {
  const isShort = Math.floor(result.from_at / 86_400) === Math.floor(result.to_at / 86_400);
  const from = isShort ? clock(result.from_at) : instant(result.from_at, result.to_at);
  return `${from} to ${utc(result.to_at)}, ${plural(result.num_requests, 'request')}`;
}

function Choice({ editor, view }: { editor: Editor; view: TrialView }) {
  const [chosen, setChosen] = useState<string | null>(null);
  const { traffic, isRunning, trial } = view;
  return (
    <div className="pub">
      {isRunning && trial !== null ? (
        <Running trial={trial} onCancel={view.cancel} />
      ) : (
        <Start editor={editor} view={view} words={windowOf(traffic, chosen, trial)} onWords={setChosen} />
      )}
      {view.problem === null ? null : <Problem text={view.problem} />}
    </div>
  );
}

function Start({ editor, view, words, onWords }: { editor: Editor; view: TrialView; words: string; onWords: (words: string) => void }) {
  const { traffic, trial } = view;
  const windows = traffic?.windows ?? [];
  const window = windows.find((one) => windowWords(one.window_s) === words);
  const num = window?.num_requests ?? 0;
  const blocked = useMayOperate() ? blockedBy(editor, view, num) : MAY_LOOK;
  const isKnown = trial?.result !== undefined && trial.result !== null && view.numChangedSince === 0;
  return (
    <>
      {traffic === null ? null : (
        <div className="acts">
          <Segments label="Recorded traffic" className="sm" choices={windows.map((one) => [windowWords(one.window_s), windowWords(one.window_s)] as const)} value={words} onChange={onWords} />
          <span className="k" data-testid="trial-traffic">
            {trafficWords(traffic, num)}
          </span>
        </div>
      )}
      <div className="acts">
        <button type="button" className="btn" disabled={blocked !== null || view.isStarting} onClick={() => view.start(window?.window_s ?? null)} aria-describedby="try-blocked">
          {isKnown ? 'Try again' : 'Try this draft'}
        </button>
        <span id="try-blocked" className="k">
          {blocked ?? `Simulates these requests twice, under v${editor.base.version} and under the draft. Nothing reaches a worker.`}
        </span>
      </div>
    </>
  );
}

function blockedBy(editor: Editor, view: TrialView, num: number): string | null {
  if (editor.newer !== null) return `v${editor.newer.version} was published meanwhile; move your changes onto it first.`;
  const blocked = trafficBlocks(view.traffic, num);
  if (blocked !== null) return blocked;
  if (editor.mistakes.length > 0) return `Mend ${plural(editor.mistakes.length, 'field')} first.`;
  if (editor.check.kind === 'checking') return 'The draft is being checked.';
  return null;
}

function Running({ trial, onCancel }: { trial: Trial; onCancel: () => void }) {
  const share = trial.num_total === 0 ? 0 : trial.num_done / trial.num_total;
  return (
    <div className="trying">
      <p className="k">Recorded traffic: {windowWords(trial.window_s)}</p>
      <Progress value={share * 100} color="ink" size="sm" aria-label="Replayed" />
      <div className="acts">
        <span role="status">{progressWords(trial)}</span>
        <span className="grow" />
        <button type="button" className="btn sm" onClick={onCancel}>
          Cancel
        </button>
      </div>
    </div>
  );
}

function Problem({ text }: { text: string }) {
  return (
    <p className="msgrow errr" role="alert">
      <Icon name="bad" />
      <span>{text}</span>
    </p>
  );
}

function Outcome({ trial, view, names, basePublishedAt }: { trial: Trial; view: TrialView; names: Names; basePublishedAt: string }) {
  const { result } = trial;
  if (trial.state === 'cancelled') return <p className="note pb" role="status">{trial.problem}</p>;
  if (trial.state === 'failed') return <div className="pub"><Problem text={trial.problem} /></div>;
  if (result === null) return null;
  return (
    <>
      {view.numChangedSince === 0 ? null : (
        <p className="stale-note">
          <Icon name="info" />
          <span>
            Computed on {dayAndTime(parseInstant(trial.finished_at ?? trial.created_at))} UTC for an earlier state of this draft. You changed {plural(view.numChangedSince, 'field')} since.
          </span>
        </p>
      )}
      <div className="said" role="status" data-testid="trial-verdict">
        <p className="headline">{result.verdict.headline}</p>
        <Effects effects={result.verdict.effects.filter((one) => !result.verdict.headline.includes(one.text))} names={names} />
      </div>
      <Figures result={result} baseVersion={trial.base_version} names={names} />
      <Caveats result={result} trust={trustWords(result, trial.base_version, basePublishedAt)} />
    </>
  );
}

const KINDS = [
  ['better', '↑', 'Better'],
  ['worse', '↓', 'Worse'],
  ['same', '=', 'Same'],
] as const;

function Effects({ effects, names }: { effects: readonly Effect[]; names: Names }) {
  return (
    <dl className="effects">
      {KINDS.map(([kind, sign, words]) => {
        const found = effects.filter((one) => one.kind === kind);
        return found.length === 0 ? null : (
          <div key={kind}>
            <dt>
              <span aria-hidden="true">{sign}</span> {words}
            </dt>
            {found.map((one) => (
              <dd key={one.text}>
                <ClassName id={one.class_id} color={names.colorOf(one.class_id)} /> {one.text.slice(one.class_id.length).trimStart()}.
              </dd>
            ))}
          </div>
        );
      })}
    </dl>
  );
}

function Figures({ result, baseVersion, names }: { result: TrialResult; baseVersion: number; names: Names }) {
  const [showsAll, setShowsAll] = useState(false);
  const classes = result.classes.filter((one) => (one.active?.num ?? 0) + (one.draft?.num ?? 0) > 0);
  const rows = classes.map((one) => [one, rowsOf(one).filter((row) => showsAll || isKey(row))] as const);
  return (
    <>
      <div className="scroll" tabIndex={0} role="group" aria-label="Figures of the trial">
        <table className="trial">
          <thead>
            <tr>
              <th>Figure</th>
              {showsAll ? <th className="r">measured</th> : null}
              <th className="r">v{baseVersion}, active</th>
              <th className="r">draft</th>
              <th>Difference</th>
            </tr>
          </thead>
          {rows.map(([one, shown]) => (
            <tbody key={one.class_id} aria-label={one.class_id}>
              <tr>
                <th scope="rowgroup" colSpan={showsAll ? 5 : 4}>
                  <ClassName id={one.class_id} color={names.colorOf(one.class_id)} /> <small>{plural((one.draft ?? one.active)?.num ?? 0, 'request')}</small>
                </th>
              </tr>
              {shown.map((row) => (
                <FigureRow key={row.figure} row={row} showsAll={showsAll} />
              ))}
            </tbody>
          ))}
        </table>
      </div>
      <p className="note pb">
        <button type="button" className="btn sm" aria-pressed={showsAll} onClick={() => setShowsAll(!showsAll)}>
          {showsAll ? 'Show what differs' : 'Show all figures'}
        </button>
      </p>
    </>
  );
}

function FigureRow({ row, showsAll }: { row: Row; showsAll: boolean }) {
  return (
    <tr>
      <td>{row.figure.startsWith('TTFT') ? <><Term name="ttft">TTFT</Term>{row.figure.slice(4)}</> : row.figure}</td>
      {showsAll ? <td className="r k">{row.measured}</td> : null}
      <td className={`r ${row.activeBroken ? 'bad' : ''}`}>{row.active}</td>
      <td className={`r ${row.draftBroken ? 'bad' : ''}`}>
        <b>{row.draft}</b>
      </td>
      <td className="d">{row.difference}</td>
    </tr>
  );
}

function Caveats({ result, trust }: { result: TrialResult; trust: readonly string[] }) {
  return (
    <div className="note pb caveats">
      {trust.length === 0 ? null : (
        <p data-testid="trial-trust">
          <b>How sure this is:</b> {trust.join(' ')}
        </p>
      )}
      <p>
        {plural(result.num_requests, 'request')}
        {result.num_refused === 0 ? ', none of them refused when it came' : `, ${count(result.num_refused)} of them refused when they came`}; replayed on {plural(result.num_workers, 'worker')} with{' '}
        {plural(result.num_slots, 'slot')} and {count(result.num_kv_tokens)} tokens of KV cache, as they are now.
        {result.num_guessed === 0 ? '' : ` The answers of ${count(result.num_guessed)} have no known length; it was drawn from their class’s.`}
        {result.num_cached === 0 ? '' : ` ${count(result.num_cached)} had part of their prompt in the cache; here it is computed.`}
        {result.is_cut ? ' There was more; the newest were taken.' : ''} Each side is judged by its own objectives. Differences below 5 %, of shares below 0.5 points, are written as “same”. The way from worker to client is not
        simulated.
      </p>
    </div>
  );
}
