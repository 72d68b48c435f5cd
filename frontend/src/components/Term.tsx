import { Tooltip } from '@mantine/core';
import type { ReactNode } from 'react';
import type { TermName } from './terms';
import { TERMS } from './terms';

/** A word with its definition on hover, focus and touch. */
export function Term({ name, children }: { name: TermName; children: ReactNode }) {
  const [title, text] = TERMS[name];
  return (
    <Tooltip
      multiline
      w={304}
      radius={8}
      p={12}
      events={{ hover: true, focus: true, touch: true }}
      classNames={{ tooltip: 'float' }}
      label={
        <span className="tip">
          <b>{title}</b>
          {text}
        </span>
      }
    >
      <button type="button" className="term">
        {children}
      </button>
    </Tooltip>
  );
}
