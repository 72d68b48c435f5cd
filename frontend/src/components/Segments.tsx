import type { ReactNode } from 'react';

/** A row of choices of which exactly one holds. */
export function Segments<T extends string>(props: {
  label: string;
  choices: readonly (readonly [T, ReactNode])[];
  value: T;
  onChange: (value: T) => void;
  className?: string;
}) {
  return (
    <div className={`seg ${props.className ?? ''}`} role="group" aria-label={props.label}>
      {props.choices.map(([value, words]) => (
        <button key={value} type="button" aria-pressed={value === props.value} onClick={() => props.onChange(value)}>
          {words}
        </button>
      ))}
    </div>
  );
}
