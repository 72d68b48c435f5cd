// One field of the policy: the right control for its kind, its unit, its change marker, its mistake.

import { NumberInput, Select, Switch, TextInput } from '@mantine/core';
import { useState } from 'react';
import type { Json } from '../../lib/document';
import type { Field } from '../../lib/schema';
import type { Unit } from '../../lib/units';
import { choiceWords, inWords, shown, stored, unitOf } from '../../lib/units';

export interface FieldInputProps {
  field: Field;
  /** Where the value stands in the draft. */
  path: string;
  value: Json | undefined;
  /** The value of the base version; undefined where the base has none. */
  base: Json | undefined;
  label: string;
  /** What is wrong with the value. Shown by the form beside the field; read out with it. */
  mistake: string | null;
  onChange: (path: string, value: Json) => void;
  /** Choices of a field whose schema does not list them. */
  choices?: readonly { value: string; label: string }[];
  emptyWords?: string;
}

export function FieldInput(props: FieldInputProps) {
  const { base, value, field, mistake } = props;
  const isChanged = base !== undefined && base !== (value ?? null);
  return (
    <div className={`f ${isChanged ? 'chg' : ''} ${mistake === null ? '' : 'err'}`}>
      <Control {...props} />
      {isChanged ? <small>was {inWords(base, field)}</small> : null}
    </div>
  );
}

function Control(props: FieldInputProps) {
  const { field, choices } = props;
  if (choices !== undefined || field.kind === 'choice') return <ChoiceControl {...props} />;
  if (field.kind === 'boolean') return <SwitchControl {...props} />;
  if (field.kind === 'text') return <TextControl {...props} />;
  return <NumberControl {...props} />;
}

/** Name and mistake for those who do not see the form; the visible message stands under the whole row. */
function accessible({ path, label, mistake }: FieldInputProps) {
  return { id: `f-${path}`, 'aria-label': label, error: mistake, errorProps: { className: 'sr' } };
}

function NumberControl(props: FieldInputProps) {
  const { field, path, value, base, onChange } = props;
  const [unit] = useState<Unit>(() => unitOf(field, base ?? value));
  const [text, setText] = useState<string | number>(() => textOf(value, unit));
  const current = typeof value === 'number' ? value : null;
  const typed = parsed(text, unit);
  // The draft changed from elsewhere (undo, a newer base): show that; else keep what is being typed.
  const display = typed === current ? text : textOf(value, unit);
  return (
    <NumberInput
      {...accessible(props)}
      value={display}
      onChange={(next) => {
        setText(next);
        onChange(path, parsed(next, unit));
      }}
      thousandSeparator=","
      allowDecimal={field.kind === 'number' || unit.factor !== 1}
      placeholder={field.nullable ? 'not set' : ''}
      rightSection={unit.label === '' ? null : <span className="u">{unit.label}</span>}
      rightSectionWidth={unit.label === '' ? 8 : unit.label.length * 7 + 14}
      rightSectionPointerEvents="none"
    />
  );
}

function textOf(value: Json | undefined, unit: Unit): string | number {
  return typeof value === 'number' ? shown(value, unit) : '';
}

function parsed(text: string | number, unit: Unit): number | null {
  const number = typeof text === 'number' ? text : text.trim() === '' ? Number.NaN : Number(text);
  return Number.isFinite(number) ? stored(number, unit) : null;
}

function SwitchControl(props: FieldInputProps) {
  const { path, value, onChange } = props;
  const isOn = value === true;
  return (
    <Switch
      {...accessible(props)}
      checked={isOn}
      onChange={(event) => onChange(path, event.currentTarget.checked)}
      label={isOn ? 'yes' : 'no'}
      withThumbIndicator={false}
      className="switch"
    />
  );
}

function ChoiceControl(props: FieldInputProps) {
  const { field, path, value, onChange, choices, emptyWords } = props;
  const data = choices ?? field.choices.map((choice) => ({ value: choice, label: choiceWords(choice) }));
  return (
    <Select
      {...accessible(props)}
      data={[...(field.nullable ? [{ value: '', label: emptyWords ?? 'not set' }] : []), ...data]}
      value={typeof value === 'string' ? value : ''}
      onChange={(next) => onChange(path, next === null || next === '' ? null : next)}
      allowDeselect={false}
    />
  );
}

function TextControl(props: FieldInputProps) {
  const { path, value, onChange } = props;
  return (
    <TextInput
      {...accessible(props)}
      value={typeof value === 'string' ? value : ''}
      onChange={(event) => onChange(path, event.currentTarget.value)}
    />
  );
}
