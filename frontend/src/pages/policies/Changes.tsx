// The draft in one list: what changes, from what to what, each with its own undo.

import { useState } from 'react';
import { ClassName } from '../../components/ClassName';
import { Icon } from '../../components/Icon';
import { Segments } from '../../components/Segments';
import type { Change } from '../../lib/document';
import { changeKey } from '../../lib/document';
import { lowered, plural } from '../../lib/format';
import type { Field } from '../../lib/schema';
import { inWords } from '../../lib/units';
import type { Editor } from './editor';

export interface Names {
  fieldOf: (classId: string | null, path: string) => Field | undefined;
  colorOf: (classId: string) => number;
}

const VIEWS = [
  ['words', 'Words'],
  ['json', 'JSON'],
] as const;

export function Changes({ editor, names }: { editor: Editor; names: Names }) {
  const [view, setView] = useState<'words' | 'json'>('words');
  const { changes, base } = editor;
  const title = changes.length === 0 ? `No change against v${base.version}` : `${plural(changes.length, 'change')} against v${base.version}`;
  return (
    <section className="panel" aria-labelledby="changes">
      <div className="ph wide">
        <h2 id="changes">{title}</h2>
        <span className="grow" />
        <Segments label="View" className="sm" choices={VIEWS} value={view} onChange={setView} />
      </div>
      {view === 'json' ? (
        <div className="pb">
          <pre tabIndex={0} aria-label="The draft as JSON" className="json">
            {JSON.stringify(editor.draft, null, 2)}
          </pre>
        </div>
      ) : (
        <ChangeList changes={changes} names={names} onRevert={editor.revert} />
      )}
    </section>
  );
}

export function ChangeList({ changes, names, onRevert }: { changes: readonly Change[]; names: Names; onRevert?: (change: Change) => void }) {
  if (changes.length === 0) return <p className="note pb">What you change is listed here, and nothing reaches a worker until you publish.</p>;
  return (
    <ul className="diff">
      {changes.map((change) => (
        <li key={changeKey(change)}>
          <ChangeWords change={change} names={names} />
          {onRevert === undefined ? null : (
            <button type="button" className="btn quiet icb sm" aria-label={`Undo: ${changeLabel(change, names)}`} onClick={() => onRevert(change)}>
              <Icon name="undo" />
            </button>
          )}
        </li>
      ))}
    </ul>
  );
}

function ChangeWords({ change, names }: { change: Change; names: Names }) {
  if (change.kind !== 'value') {
    return (
      <>
        <span className="path">
          <ClassName id={change.classId} color={names.colorOf(change.classId)} light />
        </span>
        <span />
        <Icon name="arrow" />
        <ins>{change.kind === 'added' ? 'a new class' : `retired, served by ${change.fallback ?? 'none'}`}</ins>
      </>
    );
  }
  const field = names.fieldOf(change.classId, change.field);
  return (
    <>
      <span className="path">
        {change.classId === null ? (
          <span className="all">all classes</span>
        ) : (
          <ClassName id={change.classId} color={names.colorOf(change.classId)} light />
        )}
        <span className="k">,</span> {fieldWords(change.field, field)}
      </span>
      <del>{inWords(change.before, field)}</del>
      <Icon name="arrow" />
      <ins>{inWords(change.after, field)}</ins>
    </>
  );
}

function changeLabel(change: Change, names: Names): string {
  if (change.kind !== 'value') return `${change.classId}, ${change.kind}`;
  return `${change.classId ?? 'all classes'}, ${fieldWords(change.field, names.fieldOf(change.classId, change.field))}`;
}

/** "weight", "preemption: until it has made", "batch limit: at most". */
function fieldWords(path: string, field: Field | undefined): string {
  const [section = '', ...rest] = path.split('.');
  const title = lowered((field?.title ?? path).replace(/^…/, ''));
  const isWhole = section === 'slo' || (section === 'preemption' && field?.title.startsWith('…') === false);
  return rest.length === 0 || isWhole ? title : `${section.replaceAll('_', ' ')}: ${title}`;
}
