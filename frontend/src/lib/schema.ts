// The policy's JSON Schema, as far as the form reads it: a flat list of fields with titles, kinds and limits.

import type { Json } from './document';

export interface Schema {
  $ref?: string;
  $defs?: Record<string, Schema>;
  type?: string;
  title?: string;
  description?: string;
  default?: Json;
  enum?: string[];
  anyOf?: Schema[];
  properties?: Record<string, Schema>;
  required?: string[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  items?: Schema;
}

export type FieldKind = 'integer' | 'number' | 'boolean' | 'choice' | 'text';

export interface Field {
  /** Relative to its class or to the document: `slo.ttft_s`, `batch_limit.min_slots`. */
  path: string;
  title: string;
  description: string;
  kind: FieldKind;
  nullable: boolean;
  choices: readonly string[];
  minimum: number | null;
  maximum: number | null;
  /** Whether the least or the most is itself too little or too much. */
  isMinimumExcluded: boolean;
  isMaximumExcluded: boolean;
}

export interface Section {
  key: string;
  description: string;
  fields: Field[];
}

/** The fields of one class, nested groups flattened in the schema's order. */
export function classFields(root: Schema): Field[] {
  const items = root.properties?.classes?.items;
  return items === undefined ? [] : fieldsOf(root, items, '');
}

/** The sections that concern all classes, one per object of the document. */
export function sharedSections(root: Schema): Section[] {
  return Object.entries(root.properties ?? {}).flatMap(([key, raw]) => {
    const schema = resolved(root, raw);
    if (schema.properties === undefined) return [];
    const [description = ''] = (schema.description ?? '').split('\n');
    return [{ key, description, fields: fieldsOf(root, schema, `${key}.`) }];
  });
}

function fieldsOf(root: Schema, raw: Schema, prefix: string): Field[] {
  const schema = resolved(root, raw);
  return Object.entries(schema.properties ?? {}).flatMap(([name, child]) => {
    const target = resolved(root, child);
    return target.properties === undefined
      ? [fieldOf(root, child, `${prefix}${name}`, name)]
      : fieldsOf(root, target, `${prefix}${name}.`);
  });
}

function fieldOf(root: Schema, raw: Schema, path: string, name: string): Field {
  const outer = resolved(root, raw);
  const variants = outer.anyOf?.map((one) => resolved(root, one));
  const value = variants?.find((one) => one.type !== 'null') ?? outer;
  return {
    path,
    title: outer.title ?? name,
    description: (outer.description ?? '').replace(/\.$/, ''),
    kind: kindOf(value),
    nullable: variants?.some((one) => one.type === 'null') ?? false,
    choices: value.enum ?? [],
    minimum: value.minimum ?? value.exclusiveMinimum ?? null,
    maximum: value.maximum ?? value.exclusiveMaximum ?? null,
    isMinimumExcluded: value.minimum === undefined && value.exclusiveMinimum !== undefined,
    isMaximumExcluded: value.maximum === undefined && value.exclusiveMaximum !== undefined,
  };
}

function kindOf(schema: Schema): FieldKind {
  if (schema.enum !== undefined) return 'choice';
  if (schema.type === 'integer' || schema.type === 'number' || schema.type === 'boolean') return schema.type;
  return 'text';
}

function resolved(root: Schema, schema: Schema): Schema {
  if (schema.$ref === undefined) return schema;
  const name = schema.$ref.replace('#/$defs/', '');
  return { ...root.$defs?.[name], ...schema };
}
