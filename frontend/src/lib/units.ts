// Units of the policy form. The document has seconds and shares; people think in milliseconds and percent.

import type { Json } from './document';
import { count } from './format';
import type { Field } from './schema';

export interface Unit {
  /** Written after the number. */
  label: string;
  /** Shown number = document's number × factor. */
  factor: number;
}

const PLAIN: Unit = { label: '', factor: 1 };
const PERCENT: Unit = { label: '%', factor: 100 };

const SHARES = new Set(['target', 'e2e_target', 'guard', 'capacity_margin', 'reserve_growth']);
const LABELS: Record<string, string> = {
  max_generated_tokens: 'tokens',
  max_prompt_tokens: 'tokens',
  max_output_tokens: 'tokens',
  max_num_batched_tokens: 'tokens',
  max_chunk_tokens: 'tokens',
  max_lead_tokens: 'tokens',
  max_preemptions: 'times',
  max_bypasses: 'times',
  min_slots: 'slots',
  max_slots: 'slots',
  shrink_by: 'slots',
  grow_by: 'slots',
  shrink_above: '× target',
  grow_below: '× target',
  wait_factor: '× bound',
  itl_window_steps: 'steps',
  num_samples: 'samples',
};

/** The unit of a field. Durations below a second are shown in ms; `reference` decides, so that typing never flips it. */
export function unitOf(field: Field, reference: Json | undefined): Unit {
  const name = field.path.slice(field.path.lastIndexOf('.') + 1);
  if (SHARES.has(name)) return PERCENT;
  if (name.endsWith('_s')) return durationUnit(name, reference);
  const label = LABELS[name];
  return label === undefined ? PLAIN : { label, factor: 1 };
}

function durationUnit(name: string, reference: Json | undefined): Unit {
  const isShort = typeof reference === 'number' && reference !== 0 ? Math.abs(reference) < 1 : /tpot|itl|rescue/.test(name);
  return isShort ? { label: 'ms', factor: 1000 } : { label: 's', factor: 1 };
}

/** 0.8 s with ms as unit: 800. Rounded to 12 digits, so that binary fractions stay out of sight. */
export function shown(value: number, unit: Unit): number {
  return Number((value * unit.factor).toPrecision(12));
}

export function stored(value: number, unit: Unit): number {
  return Number((value / unit.factor).toPrecision(12));
}

/** A value of the document in words, for "was 60" and the list of changes. */
export function inWords(value: Json, field: Field | undefined): string {
  if (value === null) return 'not set';
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  if (typeof value === 'string') return choiceWords(value);
  if (typeof value !== 'number') return JSON.stringify(value);
  const unit = field === undefined ? PLAIN : unitOf(field, value);
  const number = shown(value, unit);
  const text = Number.isInteger(number) ? count(number) : String(number);
  const isOneThing = number === 1 && unit.factor === 1 && unit.label.length > 2;
  const label = isOneThing ? unit.label.replace(/s$/, '') : unit.label;
  return label === '' || label.startsWith('×') ? text : `${text} ${label}`;
}

const CHOICES: Record<string, string> = {
  ttft: 'TTFT missed',
  max_wait: 'bound passed',
  equal: 'equally',
  own_weights: 'by their own weights',
};

export function choiceWords(choice: string): string {
  return CHOICES[choice] ?? choice.replaceAll('_', ' ');
}
