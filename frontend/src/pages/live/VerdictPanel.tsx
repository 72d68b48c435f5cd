// The page opens with one sentence: which class breaks which promise, since when, how many requests, why, what to do.

import type { LiveSnapshot } from '../../api/live';
import { Age } from '../../components/Age';
import { Glyph } from '../../components/ClassName';
import { Icon } from '../../components/Icon';
import { Link } from '../../components/Link';
import { allDrain } from '../../lib/drain';
import type { PanelState } from '../../lib/panelState';
import { isOld } from '../../lib/panelState';
import { clock, duration, instant, utc } from '../../lib/time';
import * as words from '../../lib/verdict';
import { useLiveClock, usePanelState } from './clock';

export function VerdictPanel({ snapshot }: { snapshot: LiveSnapshot }) {
  const state = usePanelState(snapshot.gateways_at ?? snapshot.at, true, 'gateways');
  switch (snapshot.verdict.kind) {
    case 'broken':
      return <Broken snapshot={snapshot} state={state} />;
    case 'no_worker':
      return <NoWorker snapshot={snapshot} state={state} />;
    case 'kept':
    case 'no_traffic':
      return <Quiet snapshot={snapshot} state={state} />;
  }
}

interface Props {
  snapshot: LiveSnapshot;
  state: PanelState;
}

function Broken({ snapshot, state }: Props) {
  const { verdict } = snapshot;
  const { now } = useLiveClock();
  const one = words.classOf(snapshot, verdict.class_id);
  const seenAt = isOld(state) ? snapshot.at : null;
  return (
    <section className={`panel verdict ${isOld(state) ? 'is-old' : ''}`} aria-labelledby="verdict" data-state={state.kind} data-verdict={snapshot.verdict.kind}>
      <div className="what">
        <h2 className="head" id="verdict">
          <Icon name="bad" />
          <span>
            {one === null ? null : <Glyph color={one.color} />}
            {words.brokenHeadline(verdict, seenAt !== null)}
          </span>
        </h2>
        {verdict.since === null ? null : (
          <p className="since">
            for <b>{duration((seenAt ?? now) - verdict.since)}</b>, since {instant(verdict.since, now)}
            {seenAt === null ? null : `; last seen at ${utc(seenAt)}`}
          </p>
        )}
        <p className="fact">
          {one === null || verdict.metric === null ? null : `Promised: ${words.promised(one, verdict.metric)}. `}
          <Fact snapshot={snapshot} />
          <br />
          {words.othersLine(snapshot)}
        </p>
        <div className="acts">
          <Action snapshot={snapshot} />
          <Link className="btn" to="/policies#versions">
            Earlier versions
          </Link>
        </div>
      </div>
      <Why snapshot={snapshot} state={state} />
    </section>
  );
}

function Fact({ snapshot }: { snapshot: LiveSnapshot }) {
  const { verdict } = snapshot;
  const { lead, late, of, end } = words.brokenFact(verdict, words.classOf(snapshot, verdict.class_id));
  return (
    <>
      {words.unbroken(lead)}
      <span data-figure="verdict.num_late" data-value={verdict.num_late}>
        {late}
      </span>{' '}
      of{' '}
      <span data-figure="verdict.num_requests" data-value={verdict.num_requests}>
        {of}
      </span>
      {end}
    </>
  );
}

function Action({ snapshot }: { snapshot: LiveSnapshot }) {
  const { rule_path: rule } = snapshot.verdict;
  return rule === null ? (
    <Link className="btn" to="/policies">
      Open the policy
    </Link>
  ) : (
    <Link className="btn pri" to={`/policies#${rule}`}>
      Draft a change to this rule
    </Link>
  );
}

function Why({ snapshot, state }: Props) {
  const { causes } = snapshot.verdict;
  return (
    <div className="why">
      <div className="why-head">
        <h3>Why, as the scheduler saw it</h3>
        <Age state={state} />
      </div>
      {causes.length === 0 ? (
        <p className="k">No cause found in the scheduler’s events.</p>
      ) : (
        <ol>
          {causes.map((cause) => (
            <li key={`${cause.at} ${cause.text}`}>
              <time>{clock(cause.at)}</time>
              <span>{cause.text}</span>
            </li>
          ))}
        </ol>
      )}
    </div>
  );
}

function Quiet({ snapshot, state }: Props) {
  const { now } = useLiveClock();
  const { head, say } = words.quietLine(snapshot, isOld(state) ? snapshot.at : now);
  const seen = isOld(state) ? `Last seen at ${utc(snapshot.at)}: ` : '';
  return (
    <section className={`panel kept ${isOld(state) ? 'is-old' : ''}`} aria-label={head} data-state={state.kind} data-verdict={snapshot.verdict.kind}>
      <Icon name={snapshot.verdict.kind === 'kept' && !words.isUndecidedAnywhere(snapshot) ? 'ok' : 'info'} />
      <b>
        {seen}
        {seen === '' ? head : head.toLowerCase()}
      </b>
      <span className="say">{say}</span>
      <span className="grow" />
      <Age state={state} />
    </section>
  );
}

function NoWorker({ snapshot, state }: Props) {
  const { now } = useLiveClock();
  return (
    <section className={`panel silent ${isOld(state) ? 'is-old' : ''}`} aria-label="No worker" data-state={state.kind} data-verdict={snapshot.verdict.kind}>
      <Icon name="off" />
      <div>
        <h2>{words.noWorkerHead(snapshot, now, isOld(state))}</h2>
        <p>{words.noWorkerLine(snapshot)}</p>
      </div>
      <span className="grow" />
      <Age state={state} />
    </section>
  );
}

/** A silent worker is neither a lost connection nor a broken promise, and says what happens next. */
export function SilentWorkers({ snapshot }: { snapshot: LiveSnapshot }) {
  const { now } = useLiveClock();
  return snapshot.workers
    .filter((worker) => worker.state === 'silent')
    .map((worker) => {
      const { head, say } = words.silentWords(worker, snapshot, now);
      return (
        <section key={worker.id} className="panel silent" aria-label={`${worker.id} is silent`}>
          <Icon name="off" />
          <div>
            <h2>{head}</h2>
            <p>{say}</p>
          </div>
        </section>
      );
    });
}

/** Nobody broke anything, and yet every new request is refused. */
export function AllDrain({ snapshot }: { snapshot: LiveSnapshot }) {
  if (!allDrain(snapshot)) return null;
  return (
    <section className="panel silent" aria-label="Every worker is draining">
      <Icon name="off" />
      <div>
        <h2>Every worker is draining</h2>
        <p>{words.noWorkerLine(snapshot)}</p>
      </div>
    </section>
  );
}
