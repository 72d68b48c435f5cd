// The last step: what publishing does, whether it can be done now, and how far it has got.

import { Textarea } from '@mantine/core';
import { useEffect, useState } from 'react';
import type { LiveSnapshot } from '../../api/live';
import { Icon } from '../../components/Icon';
import { useLive, useLiveClient } from '../../live/context';
import { monotonicS } from '../../live/client';
import { list, plural } from '../../lib/format';
import { guardRails } from '../../lib/guardRails';
import { MAY_LOOK, useMayOperate } from '../../rights';
import type { Editor, Published } from './editor';

export function Comment({ editor }: { editor: Editor }) {
  return (
    <section className="panel" aria-labelledby="why">
      <div className="ph">
        <h2 id="why">Why this change</h2>
        <span className="sub">kept with the version</span>
      </div>
      <div className="pb">
        <Textarea
          aria-labelledby="why"
          id="f-comment"
          autosize
          minRows={3}
          maxRows={8}
          value={editor.comment}
          onChange={(event) => editor.setComment(event.currentTarget.value)}
        />
      </div>
    </section>
  );
}

/** Why publishing cannot be done now; null when it can. */
function blockedBy(editor: Editor, mayOperate: boolean): string | null {
  if (!mayOperate) return MAY_LOOK;
  if (editor.newer !== null) return `v${editor.newer.version} was published meanwhile; move your changes onto it first.`;
  if (editor.changes.length === 0) return 'There is nothing to publish: the draft is the active version.';
  if (editor.mistakes.length > 0) return `Mend ${plural(editor.mistakes.length, 'field')} first.`;
  if (editor.check.kind === 'failed') return `The draft could not be checked: ${editor.check.message}`;
  if (editor.check.kind === 'checking') return 'The draft is being checked.';
  if (editor.comment.trim() === '') return 'Say why in a sentence first; it is kept with the version.';
  return null;
}

export function PublishPanel({ editor, published }: { editor: Editor; published: Published | null }) {
  const { snapshot } = useLive();
  const numWorkers = snapshot?.num_workers ?? 0;
  const blocked = blockedBy(editor, useMayOperate());
  const rails = guardRails(editor.base.document, editor.draft, snapshot);
  const target = numWorkers === 0 ? 'Publish' : `Publish to ${numWorkers === 1 ? 'the worker' : `all ${numWorkers} workers`} now`;
  return (
    <section className="panel" aria-labelledby="publish">
      <div className="ph">
        <h2 id="publish">Publish</h2>
      </div>
      <div className="pub">
        <p>
          Takes effect at the next step, within 1 s. No running request is lost. v{editor.base.version} stays one click away.
        </p>
        {rails.map((rail) => (
          <p className="msgrow" key={rail}>
            <Icon name="warn" />
            <span>
              <b>Before you publish:</b> {rail}
            </span>
          </p>
        ))}
        <div className="acts">
          <button type="button" className="btn pri" disabled={blocked !== null || editor.isPublishing} onClick={editor.publish} aria-describedby="blocked">
            {editor.isPublishing ? 'Publishing' : target}
          </button>
          <span id="blocked" className="k">
            {blocked}
          </span>
        </div>
        {editor.problem === null ? null : (
          <p className="msgrow errr" role="alert">
            <Icon name="bad" />
            <span>{editor.problem}</span>
          </p>
        )}
        {published === null ? null : <Rollout published={published} />}
      </div>
    </section>
  );
}

/** How many workers run what was published, as they report it. */
function Rollout({ published }: { published: Published }) {
  const { snapshot } = useLive();
  const tookS = useTimeToAll(published);
  const { on, missing, num } = rollout(snapshot, published.version);
  const isDone = num > 0 && missing.length === 0;
  return (
    <div className="rollout" role="status" data-testid="rollout">
      <Icon name={isDone ? 'ok' : 'info'} />
      <span>
        <b>
          {on} of {plural(num, 'worker')} {num === 1 ? 'runs' : 'run'} v{published.version}
        </b>
        {isDone && tookS !== null ? `, seen here ${tookS.toFixed(1)} s after you published.` : null}
        {missing.length > 0 ? `; waiting for ${list(missing)}.` : null}
        {num === 0 ? ': no worker is live. The next one to start takes it.' : null}
      </span>
    </div>
  );
}

interface Progress {
  num: number;
  on: number;
  missing: string[];
}

/** Workers that can be heard, and which of them do not run `version` or a later one yet. */
function rollout(snapshot: LiveSnapshot | null, version: number): Progress {
  const heard = (snapshot?.workers ?? []).filter((worker) => worker.state === 'live' || worker.state === 'draining');
  const missing = heard.filter((worker) => worker.policy_version < version).map((worker) => worker.id);
  return { num: heard.length, on: heard.length - missing.length, missing };
}

/** Seconds from asking to publish until every worker had reported the version; null until then. */
function useTimeToAll(published: Published): number | null {
  const client = useLiveClient();
  const [tookS, setTookS] = useState<number | null>(null);
  useEffect(() => {
    const look = (): void => {
      const { num, missing } = rollout(client.getState().snapshot, published.version);
      if (num > 0 && missing.length === 0) setTookS((known) => known ?? monotonicS() - published.askedAt);
    };
    return client.subscribe(look);
  }, [client, published]);
  return tookS;
}
