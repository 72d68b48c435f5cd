// Mistakes of a draft: which field each belongs to, and those the browser finds before the server does.

import type { Mistake } from '../api/http';
import type { Document } from './document';
import { valueAt } from './document';
import { lowered } from './format';
import type { Field } from './schema';
import { inWords } from './units';

/**
 * Fields that must have a value and have none, and numbers outside their field's limits. The server would say so too,
 * only later, and in the document's units instead of those of the form.
 */
export function localMistakes(document: Document, perClass: readonly Field[], shared: readonly Field[]): Mistake[] {
  const paths = document.classes.flatMap((_, index) => perClass.map((field) => ({ field, path: `classes.${index}.${field.path}` })));
  return [...paths, ...shared.map((field) => ({ field, path: field.path }))].flatMap(({ field, path }) => {
    const value = valueAt(document, path);
    if (!field.nullable && (value === null || value === '')) return [{ path, message: 'a value is missing. Give one.' }];
    const message = typeof value === 'number' ? outsideLimits(value, field) : null;
    return message === null ? [] : [{ path, message }];
  });
}

/** "120 % is too much. Choose less than 100 %." */
function outsideLimits(value: number, field: Field): string | null {
  const { minimum, maximum } = field;
  if (minimum !== null && (value < minimum || (field.isMinimumExcluded && value === minimum))) {
    const way = field.isMinimumExcluded ? `more than ${inWords(minimum, field)}` : `${inWords(minimum, field)} or more`;
    return `${inWords(value, field)} is too little. Choose ${way}.`;
  }
  if (maximum !== null && (value > maximum || (field.isMaximumExcluded && value === maximum))) {
    const way = field.isMaximumExcluded ? `less than ${inWords(maximum, field)}` : `${inWords(maximum, field)} or less`;
    return `${inWords(value, field)} is too much. Choose ${way}.`;
  }
  return null;
}

/** Both lists, the browser's first; one message per field and source. */
export function merged(local: readonly Mistake[], server: readonly Mistake[]): Mistake[] {
  const known = new Set(local.map((mistake) => mistake.path));
  return [...local, ...server.filter((mistake) => !known.has(mistake.path))];
}

export function mistakesAt(mistakes: readonly Mistake[], path: string): Mistake[] {
  return mistakes.filter((mistake) => mistake.path === path);
}

/** Mistakes that no field of the form shows; they are listed above it. */
export function homeless(mistakes: readonly Mistake[], paths: ReadonlySet<string>): Mistake[] {
  return mistakes.filter((mistake) => !paths.has(mistake.path));
}

/** Every path the form shows a field for. */
export function formPaths(document: Document, perClass: readonly Field[], shared: readonly Field[]): Set<string> {
  const own = document.classes.flatMap((_, index) => perClass.map((field) => `classes.${index}.${field.path}`));
  return new Set([...own, ...shared.map((field) => field.path), 'default_class']);
}

/** A mistake as a sentence that names its class and field, unless it does so already. */
export function sentence(document: Document, mistake: Mistake, field: Field | undefined): string {
  const match = /^classes\.(\d+)\./.exec(mistake.path);
  const id = match === null ? null : (document.classes[Number(match[1])]?.id ?? null);
  if (id !== null && mistake.message.startsWith(`${id}:`)) return mistake.message;
  const subject = [id, field === undefined ? undefined : lowered(field.title.replace(/^…/, ''))].filter((part) => part !== null && part !== undefined);
  return subject.length === 0 ? `${mistake.path}: ${mistake.message}` : `${subject.join(', ')}: ${mistake.message}`;
}
