// What stands above the form: how far the draft is, who published meanwhile, mistakes that belong to no field.

import { Stepper } from '@mantine/core';
import { useState } from 'react';
import { Icon } from '../../components/Icon';
import { changesBetween } from '../../lib/document';
import { plural } from '../../lib/format';
import { formPaths, homeless } from '../../lib/mistakes';
import type { Field } from '../../lib/schema';
import type { Names } from './Changes';
import { ChangeList } from './Changes';
import type { Editor } from './editor';
import { showField } from './fields';

/** Trying is a step that may be left out: publishing never waits for it. */
export function Steps({ editor, isTried }: { editor: Editor; isTried: boolean }) {
  const isDraft = editor.changes.length > 0;
  const isValid = editor.mistakes.length === 0 && editor.check.kind === 'checked';
  const step = !isDraft ? 3 : !isValid ? 0 : isTried ? 2 : 1;
  return (
    <section className="panel steps" aria-label="Where this version stands">
      <Stepper active={step} size="xs" iconSize={20} allowNextStepsSelect={false} classNames={{ root: 'stepper' }}>
        <Stepper.Step label="Draft" completedIcon="1" icon="1" />
        <Stepper.Step label="Validated" completedIcon="2" icon="2" />
        <Stepper.Step label="Tried" completedIcon="3" icon="3" />
        <Stepper.Step label="Active" completedIcon="4" icon="4" />
      </Stepper>
      <span className="msg">
        <StepMessage editor={editor} />
      </span>
    </section>
  );
}

function StepMessage({ editor }: { editor: Editor }) {
  const first = editor.mistakes[0];
  if (editor.changes.length === 0) return `v${editor.base.version} is active. Change a field to draft v${editor.base.version + 1}.`;
  if (first !== undefined) {
    return (
      <>
        Mend{' '}
        <a href={`#${first.path}`} onClick={() => showField(first.path)}>
          {plural(editor.mistakes.length, 'field')}
        </a>{' '}
        to go on. Nothing here touches a worker until you publish.
      </>
    );
  }
  if (editor.check.kind === 'failed') return `Could not be checked: ${editor.check.message}`;
  if (editor.check.kind === 'checking') return 'Checking.';
  return 'Ready to publish. Nothing here touches a worker until you do.';
}

/** Two editors: nothing is overwritten, and both ways on are one click. */
export function Conflict({ editor, names }: { editor: Editor; names: Names }) {
  const [shows, setShows] = useState(false);
  const { newer, base, changes, note } = editor;
  if (newer === null) return note === null ? null : <p className="panel notice">{note}</p>;
  return (
    <section className="panel notice conflict" role="alert">
      <p>
        <Icon name="warn" />
        <span>
          <b>
            {newer.author} published v{newer.version} while you edited.
          </b>{' '}
          Nothing is overwritten.
        </span>
        <span className="grow" />
        <button type="button" className="btn" aria-expanded={shows} onClick={() => setShows(!shows)}>
          See the difference
        </button>
        <button type="button" className="btn pri" onClick={editor.moveOntoNewer}>
          Move my {plural(changes.length, 'change')} onto v{newer.version}
        </button>
      </p>
      {shows ? <ChangeList changes={changesBetween(base.document, newer.document)} names={names} /> : null}
    </section>
  );
}

export function General({ editor, perClass, shared }: { editor: Editor; perClass: readonly Field[]; shared: readonly Field[] }) {
  const found = homeless(editor.mistakes, formPaths(editor.draft, perClass, shared));
  if (found.length === 0) return null;
  return (
    <section className="panel notice" role="alert">
      {found.map((mistake) => (
        <p className="msgrow errr" key={mistake.path + mistake.message}>
          <Icon name="bad" />
          <span>
            {mistake.path}: {mistake.message}
          </span>
        </p>
      ))}
    </section>
  );
}
