// The classes side by side: one row per field, one column per class.

import type { CSSProperties } from 'react';
import { useState } from 'react';
import { Glyph } from '../../components/ClassName';
import { Icon } from '../../components/Icon';
import { Term } from '../../components/Term';
import type { TermName } from '../../components/terms';
import type { ClassDocument } from '../../lib/document';
import { valueAt, withNewClass } from '../../lib/document';
import { mistakesAt, sentence } from '../../lib/mistakes';
import type { Field } from '../../lib/schema';
import type { Editor } from './editor';
import { FieldInput } from './FieldInput';
import { RetireDialog } from './RetireDialog';

interface Props {
  editor: Editor;
  fields: readonly Field[];
  colorOf: (classId: string) => number;
}

export function ClassForm({ editor, fields, colorOf }: Props) {
  const { draft, base } = editor;
  const [retiring, setRetiring] = useState<string | null>(null);
  const isNew = (one: ClassDocument): boolean => !base.document.classes.some((other) => other.id === one.id);
  const rows = fields.filter((field) => field.path !== 'id');
  const idField = fields.find((field) => field.path === 'id');
  return (
    <section className="panel" aria-labelledby="classes">
      <div className="ph wide">
        <h2 id="classes">Classes</h2>
        <span className="sub opt">one column each; the weight shares the service when all are busy</span>
        <span className="grow" />
        <button type="button" className="btn sm" onClick={() => editor.edit(withNewClass)}>
          Add a class
        </button>
      </div>
      <div className="scroll" tabIndex={0} role="group" aria-label="Fields of the classes">
        <div className="form" style={{ '--classes': draft.classes.length } as CSSProperties}>
          <div className="fh" />
          {draft.classes.map((one, index) => (
            <div className="fh" key={index}>
              <Glyph color={colorOf(one.id)} />
              {isNew(one) && idField !== undefined ? (
                <ClassId editor={editor} index={index} field={idField} />
              ) : (
                <b className="name">{one.id}</b>
              )}
              <button
                type="button"
                className="btn quiet icb sm"
                aria-label={isNew(one) ? `Remove ${one.id}` : `Retire ${one.id}`}
                title={draft.classes.length === 1 ? 'A policy needs at least one class' : isNew(one) ? 'Remove' : 'Retire this class'}
                disabled={draft.classes.length === 1}
                onClick={() => setRetiring(one.id)}
              >
                <Icon name="x" />
              </button>
            </div>
          ))}
          <RowMistakes editor={editor} field={idField} />
          {rows.map((field) => (
            <Row key={field.path} editor={editor} field={field} />
          ))}
        </div>
      </div>
      <RetireDialog classId={retiring} editor={editor} onClose={() => setRetiring(null)} />
    </section>
  );
}

function ClassId({ editor, index, field }: { editor: Editor; index: number; field: Field }) {
  const path = `classes.${index}.id`;
  return (
    <FieldInput
      field={field}
      path={path}
      value={valueAt(editor.draft, path)}
      base={undefined}
      label={`New class ${index + 1}, name`}
      mistake={mistakesAt(editor.mistakes, path)[0]?.message ?? null}
      onChange={editor.set}
    />
  );
}

const TERM_OF: Record<string, TermName> = { 'slo.ttft_s': 'ttft', 'slo.tpot_s': 'tpot', max_wait_s: 'bound', max_parked_s: 'parked' };

function Row({ editor, field }: { editor: Editor; field: Field }) {
  const { draft, base } = editor;
  return (
    <>
      <div className="fl">
        <FieldTitle field={field} />
        {field.description === '' ? null : <small>{field.description}</small>}
      </div>
      {draft.classes.map((one, index) => {
        const path = `classes.${index}.${field.path}`;
        const old = base.document.classes.find((other) => other.id === one.id);
        if (isIdle(one, field)) {
          return (
            <div className="f" key={index}>
              <small className="idle">{field.path.endsWith('max_generated_tokens') ? 'not preempted' : ''}</small>
            </div>
          );
        }
        return (
          <FieldInput
            key={`${index} ${one.id}`}
            field={field}
            path={path}
            value={valueAt(draft, path)}
            base={old === undefined ? undefined : (valueAt(old, field.path) ?? null)}
            label={`${one.id}, ${field.title.replace(/^…/, 'preemption ')}`}
            mistake={mistakesAt(editor.mistakes, path)[0]?.message ?? null}
            onChange={editor.set}
          />
        );
      })}
      <RowMistakes editor={editor} field={field} />
    </>
  );
}

/** The details of preemption say nothing for a class that is never preempted. */
function isIdle(one: ClassDocument, field: Field): boolean {
  const isDetail = field.path.startsWith('preemption.') && field.path !== 'preemption.preemptible';
  return isDetail && valueAt(one, 'preemption.preemptible') === false;
}

function FieldTitle({ field }: { field: Field }) {
  const term = TERM_OF[field.path];
  const [first = '', ...rest] = field.title.split(' ');
  if (term === undefined) return <span>{field.title}</span>;
  if (term === 'bound' || term === 'parked') return <Term name={term}>{field.title}</Term>;
  return (
    <span>
      <Term name={term}>{first}</Term> {rest.join(' ')}
    </span>
  );
}

function RowMistakes({ editor, field }: { editor: Editor; field: Field | undefined }) {
  if (field === undefined) return null;
  const found = editor.draft.classes.flatMap((_, index) => mistakesAt(editor.mistakes, `classes.${index}.${field.path}`));
  if (found.length === 0) return null;
  return (
    <div className="msgrow errr">
      <Icon name="bad" />
      <span>
        {found.map((mistake) => (
          <span key={mistake.path + mistake.message} style={{ display: 'block' }}>
            {sentence(editor.draft, mistake, field)}
          </span>
        ))}
      </span>
    </div>
  );
}
