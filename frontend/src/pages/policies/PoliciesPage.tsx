// The Policies page: the active version as a form, a draft of the next one, and all versions before it.

import { useCallback, useEffect, useMemo, useState } from 'react';
import { ApiError } from '../../api/http';
import type { PolicyVersion } from '../../api/policies';
import { activePolicy, policySchema, policyVersions } from '../../api/policies';
import type { Session } from '../../api/session';
import { NUM_COLORS } from '../../components/ClassName';
import { Panel } from '../../components/Panel';
import { TopBar } from '../../components/TopBar';
import type { Failure } from '../../lib/panelState';
import type { Field, Schema } from '../../lib/schema';
import { classFields, sharedSections } from '../../lib/schema';
import { dayAndTime, parseInstant } from '../../lib/time';
import { viewOf } from '../../live/connection';
import { serverNow, useLive, useTick } from '../../live/context';
import { usePlace } from '../../router';
import type { Names } from './Changes';
import { Changes } from './Changes';
import { ClassForm } from './ClassForm';
import type { Published } from './editor';
import { useEditor } from './editor';
import { showField } from './fields';
import { Conflict, General, Steps } from './Notices';
import { Comment, PublishPanel } from './Publish';
import { SharedForm } from './SharedForm';
import { useTrial } from './trial';
import { TryPanel } from './TryPanel';
import { Versions } from './Versions';

interface Loaded {
  schema: Schema;
  active: PolicyVersion;
  versions: PolicyVersion[];
  next: string | null;
}

type Load = { kind: 'loading' } | { kind: 'failed'; failure: Failure } | { kind: 'loaded'; loaded: Loaded };

export function PoliciesPage({ session }: { session: Session }) {
  const [load, setLoad] = useState<Load>({ kind: 'loading' });
  const start = useCallback(() => {
    loadAll().then(
      (loaded) => setLoad({ kind: 'loaded', loaded }),
      (error: unknown) => setLoad({ kind: 'failed', failure: failureOf(error) }),
    );
  }, []);
  useEffect(start, [start]);
  const retry = (): void => {
    setLoad({ kind: 'loading' });
    start();
  };
  if (load.kind === 'loaded') return <Editing initial={load.loaded} session={session} />;
  const state = load.kind === 'failed' ? ({ kind: 'error', failure: load.failure } as const) : ({ kind: 'loading' } as const);
  return (
    <>
      <TopBar title="Policies" />
      <main id="main">
        <Panel title="Classes" state={state} loadingHeight={480} onRetry={retry}>
          {null}
        </Panel>
      </main>
    </>
  );
}

async function loadAll(): Promise<Loaded> {
  const [schema, active, page] = await Promise.all([policySchema(), activePolicy(), policyVersions(null)]);
  return { schema, active, versions: page.results, next: page.next };
}

function failureOf(error: unknown): Failure {
  const detail = error instanceof Error ? error.message : String(error);
  return { what: 'The policy could not be read', detail, id: error instanceof ApiError ? error.id : null };
}

function Editing({ initial, session }: { initial: Loaded; session: Session }) {
  const [base, setBase] = useState(initial.active);
  const [published, setPublished] = useState<Published | null>(null);
  const history = useHistory(initial);
  const live = useLive();
  const tick = useTick(10_000);
  const perClass = useMemo(() => classFields(initial.schema), [initial.schema]);
  const sections = useMemo(() => sharedSections(initial.schema), [initial.schema]);
  const shared = useMemo(() => sections.flatMap((section) => section.fields), [sections]);
  const names = useNames(perClass, shared, base);
  const onBase = useCallback(
    (next: PolicyVersion) => {
      setBase(next);
      history.add(next);
    },
    [history],
  );
  const editor = useEditor({ username: session.username, base, perClass, shared, liveVersion: live.snapshot?.policy_version ?? null, isLive: viewOf(live.connection).kind === 'live', onBase, onPublished: setPublished });
  const trial = useTrial(editor, session.username);
  useAnchor();
  const isDraft = editor.changes.length > 0;
  return (
    <>
      <TopBar
        title={
          <>
            <span className="k crumb">Policies /</span> v{isDraft ? base.version + 1 : base.version}
          </>
        }
        sub={
          <>
            <span className={isDraft ? 'tag draft' : 'tag on'}>{isDraft ? 'draft by you' : 'active'}</span>{' '}
            {isDraft ? `from v${base.version}` : `by ${base.author}, since ${dayAndTime(parseInstant(base.published_at))} UTC`}
          </>
        }
        tools={
          isDraft ? (
            <button type="button" className="btn quiet" onClick={editor.discard}>
              Discard draft
            </button>
          ) : undefined
        }
      />
      <main id="main">
        <Steps editor={editor} isTried={trial.trial?.state === 'done' && trial.numChangedSince === 0} />
        <Conflict editor={editor} names={names} />
        <General editor={editor} perClass={perClass} shared={shared} />
        <div className="cols">
          <div className="col">
            <ClassForm editor={editor} fields={perClass} colorOf={names.colorOf} />
            <SharedForm editor={editor} sections={sections} />
          </div>
          <div className="col side-col">
            <Changes editor={editor} names={names} />
            <TryPanel editor={editor} view={trial} names={names} />
            <Comment editor={editor} />
            <PublishPanel key={published?.version ?? 0} editor={editor} published={published} />
          </div>
        </div>
        <Versions
          versions={history.versions}
          active={base}
          names={names}
          now={serverNow(live, tick)}
          onMore={history.more}
          onRolledBack={(version, made) => {
            setPublished({ ...made });
            editor.edit(() => version.document);
            onBase({ ...version, author: version.author === '' ? session.username : version.author });
          }}
        />
      </main>
    </>
  );
}

function useHistory(initial: Loaded) {
  const [versions, setVersions] = useState(initial.versions);
  const [next, setNext] = useState(initial.next);
  const add = useCallback((version: PolicyVersion) => {
    setVersions((known) => {
      const rest = known.filter((one) => one.version !== version.version);
      return [version, ...rest.map((one) => ({ ...one, state: 'superseded' }))].sort((a, b) => b.version - a.version);
    });
  }, []);
  const more = useCallback(() => {
    if (next === null) return;
    policyVersions(cursorOf(next)).then(
      (page) => {
        setVersions((known) => [...known, ...page.results]);
        setNext(page.next);
      },
      () => undefined, // the button stays; another click tries again
    );
  }, [next]);
  return useMemo(() => ({ versions, add, more: next === null ? null : more }), [versions, add, more, next]);
}

/** The server's `next` may be a cursor or a whole address with one. */
function cursorOf(next: string): string {
  return new URL(next, window.location.origin).searchParams.get('cursor') ?? next;
}

function useNames(perClass: readonly Field[], shared: readonly Field[], base: PolicyVersion): Names {
  const { snapshot } = useLive();
  const colors = snapshot?.classes.map((one) => `${one.id} ${one.color}`).join('|') ?? '';
  return useMemo(() => {
    const known = new Map(colors.split('|').map((pair) => pair.split(' ') as [string, string]));
    const order = [...base.document.classes.map((one) => one.id)];
    return {
      fieldOf: (classId, path) => (classId === null ? shared : perClass).find((field) => field.path === path),
      // The server assigns colours for life; until it has seen a class, the next free one stands in.
      colorOf: (classId) => Number(known.get(classId) ?? (order.includes(classId) ? order.indexOf(classId) : order.length)) % NUM_COLORS,
    };
  }, [perClass, shared, base, colors]);
}

/** `/policies#classes.1.max_wait_s` leads to that field. */
function useAnchor(): void {
  const { anchor } = usePlace();
  useEffect(() => {
    if (anchor !== '') showField(anchor);
  }, [anchor]);
}
