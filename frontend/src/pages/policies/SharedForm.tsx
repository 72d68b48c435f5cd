// What concerns all classes together, one group per section of the document.

import { Icon } from '../../components/Icon';
import { valueAt } from '../../lib/document';
import { mistakesAt, sentence } from '../../lib/mistakes';
import type { Field, Section } from '../../lib/schema';
import type { Editor } from './editor';
import { FieldInput } from './FieldInput';

const DEFAULT_CLASS: Field = {
  path: 'default_class',
  title: 'Default class',
  description: 'For keys and requests that name none',
  kind: 'choice',
  nullable: true,
  choices: [],
  minimum: null,
  maximum: null,
  isMinimumExcluded: false,
  isMaximumExcluded: false,
};

export function SharedForm({ editor, sections }: { editor: Editor; sections: readonly Section[] }) {
  return (
    <section className="panel" aria-labelledby="shared">
      <div className="ph">
        <h2 id="shared">All classes together</h2>
      </div>
      <div className="grp first">
        <div className="pair">
          <DefaultClass editor={editor} />
          <Retired editor={editor} />
        </div>
      </div>
      {sections.map((section) => (
        <Group key={section.key} editor={editor} section={section} />
      ))}
    </section>
  );
}

function Group({ editor, section }: { editor: Editor; section: Section }) {
  return (
    <div className="grp" role="group" aria-label={sectionTitle(section)}>
      <h3>{sectionTitle(section)}</h3>
      <div className="pair four">
        {section.fields.map((field) => (
          <SharedField key={field.path} editor={editor} field={field} />
        ))}
      </div>
    </div>
  );
}

/** "Batch limit: how many sequences one worker runs at once, …" */
function sectionTitle(section: Section): string {
  const name = section.key.replaceAll('_', ' ');
  const title = `${name.charAt(0).toUpperCase()}${name.slice(1)}`;
  const text = section.description.replace(/\.$/, '');
  return text === '' ? title : `${title}: ${text.charAt(0).toLowerCase()}${text.slice(1)}`;
}

function SharedField({ editor, field }: { editor: Editor; field: Field }) {
  const found = mistakesAt(editor.mistakes, field.path);
  return (
    <div>
      <label htmlFor={`f-${field.path}`}>{field.title}</label>
      <FieldInput
        field={field}
        path={field.path}
        value={valueAt(editor.draft, field.path)}
        base={valueAt(editor.base.document, field.path) ?? null}
        label={field.title}
        mistake={found[0]?.message ?? null}
        onChange={editor.set}
      />
      <div>
        <Mistakes editor={editor} field={field} />
        {field.description === '' ? null : <small className="hint">{field.description}</small>}
      </div>
    </div>
  );
}

function Mistakes({ editor, field }: { editor: Editor; field: Field }) {
  const found = mistakesAt(editor.mistakes, field.path);
  if (found.length === 0) return null;
  return (
    <p className="msgrow errr">
      <Icon name="bad" />
      <span>{found.map((mistake) => sentence(editor.draft, mistake, field)).join(' ')}</span>
    </p>
  );
}

function DefaultClass({ editor }: { editor: Editor }) {
  const found = mistakesAt(editor.mistakes, DEFAULT_CLASS.path);
  return (
    <div>
      <label htmlFor="f-default_class">{DEFAULT_CLASS.title}</label>
      <FieldInput
        field={DEFAULT_CLASS}
        path="default_class"
        value={editor.draft.default_class}
        base={editor.base.document.default_class}
        label={DEFAULT_CLASS.title}
        mistake={found[0]?.message ?? null}
        onChange={editor.set}
        choices={editor.draft.classes.map((one) => ({ value: one.id, label: one.id }))}
        emptyWords="the least urgent"
      />
      <div>
        <Mistakes editor={editor} field={DEFAULT_CLASS} />
        <small className="hint">{DEFAULT_CLASS.description}</small>
      </div>
    </div>
  );
}

function Retired({ editor }: { editor: Editor }) {
  const entries = Object.entries(editor.draft.retired);
  return (
    <div>
      <span className="lab">Retired classes</span>
      <p className="retired">
        {entries.length === 0 ? <span className="k">none</span> : entries.map(([old, heir]) => <span key={old}>{`${old} → ${heir}`}</span>)}
      </p>
      <small className="hint">And the class that serves what is left of each</small>
    </div>
  );
}
