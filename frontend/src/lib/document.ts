// The policy document as data: reading and writing by path, and the differences between two documents.
// A path is what the server's mistakes use: `classes.1.max_wait_s`.

export type Json = string | number | boolean | null | Json[] | { [key: string]: Json };
export interface ClassDocument {
  id: string;
  rank: number;
  [key: string]: Json;
}
export interface Document {
  classes: ClassDocument[];
  default_class: string | null;
  retired: Record<string, string>;
  [key: string]: Json;
}

export function valueAt(document: Json | Document, path: string): Json | undefined {
  let value: Json | undefined = document;
  for (const part of path.split('.')) {
    if (value === null || value === undefined || typeof value !== 'object') return undefined;
    value = Array.isArray(value) ? value[Number(part)] : value[part];
  }
  return value;
}

/** A copy with one value replaced; everything else is shared. */
export function withValue<T extends Json | Document>(document: T, path: string, value: Json): T {
  const [head = '', ...rest] = path.split('.');
  if (Array.isArray(document)) {
    const index = Number(head);
    return document.map((item, at) => (at === index ? inside(item, rest, value) : item)) as T;
  }
  const record = document as Record<string, Json>;
  return { ...record, [head]: inside(record[head] ?? {}, rest, value) } as T;
}

function inside(child: Json, rest: string[], value: Json): Json {
  return rest.length === 0 ? value : withValue(child, rest.join('.'), value);
}

export type Change =
  | { kind: 'value'; classId: string | null; field: string; before: Json; after: Json }
  | { kind: 'added'; classId: string }
  | { kind: 'retired'; classId: string; fallback: string | null };

/** What the draft does to the base, classes matched by id: first class by class in the draft's order, then the rest. */
export function changesBetween(base: Document, draft: Document): Change[] {
  const before = new Map(base.classes.map((one) => [one.id, one]));
  const remaining = new Set(draft.classes.map((one) => one.id));
  const changes: Change[] = [];
  for (const one of draft.classes) {
    const old = before.get(one.id);
    if (old === undefined) changes.push({ kind: 'added', classId: one.id });
    else changes.push(...leafChanges(old, one, one.id));
  }
  for (const id of before.keys()) {
    if (!remaining.has(id)) changes.push({ kind: 'retired', classId: id, fallback: draft.retired[id] ?? null });
  }
  return [...changes, ...leafChanges(shared(base), shared(draft), null)];
}

function shared(document: Document): Json {
  const rest: Record<string, Json> = { ...document };
  delete rest.classes;
  delete rest.retired;
  return rest;
}

function leafChanges(before: Json, after: Json, classId: string | null): Change[] {
  const old = new Map(leaves(before));
  const changes: Change[] = [];
  for (const [field, value] of leaves(after)) {
    const was = old.get(field) ?? null;
    if (was !== value) changes.push({ kind: 'value', classId, field, before: was, after: value });
  }
  return changes;
}

function leaves(value: Json, prefix = ''): [string, Json][] {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) return [[prefix, value]];
  return Object.entries(value).flatMap(([key, child]) => leaves(child, prefix === '' ? key : `${prefix}.${key}`));
}

/** The full path of a change's value in `document`; null where its class no longer is. */
export function pathOf(document: Document, classId: string | null, field: string): string | null {
  if (classId === null) return field;
  const index = document.classes.findIndex((one) => one.id === classId);
  return index < 0 ? null : `classes.${index}.${field}`;
}

/** The draft without one change. */
export function reverted(base: Document, draft: Document, change: Change): Document {
  switch (change.kind) {
    case 'value': {
      const path = pathOf(draft, change.classId, change.field);
      return path === null ? draft : withValue(draft, path, change.before);
    }
    case 'added':
      return withoutClass(draft, change.classId);
    case 'retired':
      return restored(base, draft, change.classId);
  }
}

function withoutClass(document: Document, classId: string): Document {
  return { ...document, classes: document.classes.filter((one) => one.id !== classId) };
}

function restored(base: Document, draft: Document, classId: string): Document {
  const old = base.classes.find((one) => one.id === classId);
  if (old === undefined) return draft;
  const retired = { ...draft.retired };
  Reflect.deleteProperty(retired, classId);
  const order = new Map(base.classes.map((one, index) => [one.id, index]));
  const place = (one: ClassDocument): number => order.get(one.id) ?? base.classes.length;
  return { ...draft, retired, classes: [...draft.classes, old].sort((a, b) => place(a) - place(b)) };
}

/** Remove a class; its waiting requests go to `fallback`. A class that was never published just disappears. */
export function retired(base: Document, draft: Document, classId: string, fallback: string): Document {
  const without = withoutClass(draft, classId);
  const moved = without.default_class === classId ? { ...without, default_class: null } : without;
  const known = base.classes.some((one) => one.id === classId);
  return known ? { ...moved, retired: { ...moved.retired, [classId]: fallback } } : moved;
}

/** A new class behind the others: the least urgent one's values under a free name and rank. */
export function withNewClass(draft: Document): Document {
  const model = draft.classes.reduce((last, one) => (one.rank >= last.rank ? one : last));
  const taken = new Set([...draft.classes.map((one) => one.id), ...Object.keys(draft.retired)]);
  let number = draft.classes.length + 1;
  while (taken.has(`class-${number}`)) number += 1;
  return { ...draft, classes: [...draft.classes, { ...model, id: `class-${number}`, rank: model.rank + 1 }] };
}

export interface Rebased {
  document: Document;
  /** Fields that both sides changed; the draft's value was kept. */
  conflicts: Change[];
  /** Changes whose class the new base no longer has. */
  dropped: Change[];
}

/** Carry the draft's changes over to a newer base; nothing of the newer base is lost except where both changed it. */
export function rebased(base: Document, draft: Document, newer: Document): Rebased {
  const theirs = new Set(changesBetween(base, newer).map(changeKey));
  const result: Rebased = { document: newer, conflicts: [], dropped: [] };
  for (const change of changesBetween(base, draft)) {
    const next = applied(result.document, draft, newer, change);
    if (next === null) result.dropped.push(change);
    else {
      result.document = next;
      if (theirs.has(changeKey(change))) result.conflicts.push(change);
    }
  }
  return result;
}

function applied(target: Document, draft: Document, newer: Document, change: Change): Document | null {
  if (change.kind === 'value') {
    const path = pathOf(target, change.classId, change.field);
    return path === null ? null : withValue(target, path, change.after);
  }
  const own = draft.classes.find((one) => one.id === change.classId);
  if (change.kind === 'added') {
    const exists = target.classes.some((one) => one.id === change.classId);
    return own === undefined || exists ? null : { ...target, classes: [...target.classes, own] };
  }
  const exists = target.classes.some((one) => one.id === change.classId);
  return exists && change.fallback !== null ? retired(newer, target, change.classId, change.fallback) : null;
}

export function changeKey(change: Change): string {
  return `${change.kind}:${change.kind === 'value' ? (change.classId ?? '') : change.classId}:${change.kind === 'value' ? change.field : ''}`;
}
