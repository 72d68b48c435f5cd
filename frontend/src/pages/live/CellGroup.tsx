// A group of cells with one tab stop; arrow keys move inside it.

import { Modal } from '@mantine/core';
import type { KeyboardEvent } from 'react';
import { useRef, useState } from 'react';
import type { Cell } from '../../api/live';
import { shortId } from '../../lib/decisions';
import { cellState } from '../../lib/lanes';
import type { Pointed } from './Lanes';

interface Props {
  cells: readonly Cell[];
  label: string;
  onPoint: (pointed: Pointed | null) => void;
}

/** The next index for a key; null for keys that do not move. */
export function moved(key: string, index: number, num: number): number | null {
  switch (key) {
    case 'ArrowRight':
    case 'ArrowDown':
      return Math.min(num - 1, index + 1);
    case 'ArrowLeft':
    case 'ArrowUp':
      return Math.max(0, index - 1);
    case 'Home':
      return 0;
    case 'End':
      return num - 1;
    default:
      return null;
  }
}

export function CellGroup({ cells, label, onPoint }: Props) {
  const group = useRef<HTMLDivElement>(null);
  const [current, setCurrent] = useState(0);
  const stop = Math.min(current, cells.length - 1);

  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key === 'Escape') onPoint(null);
    const next = moved(event.key, stop, cells.length);
    if (next === null) return;
    event.preventDefault();
    setCurrent(next);
    (group.current?.children[next] as HTMLElement | undefined)?.focus();
  };

  const [isListed, setIsListed] = useState(false);
  return (
    <div className="cellbox">
    <div className="cells" role="group" aria-label={label} ref={group} onKeyDown={onKeyDown} onBlur={() => onPoint(null)}>
      {cells.map((cell, index) => (
        <button
          key={cell.id}
          type="button"
          className={`cell ${cell.state} ${cell.late ? 'late' : ''}`}
          tabIndex={index === stop ? 0 : -1}
          aria-label={`${cell.id}, ${cell.class_id}, ${cellState(cell)}${cell.late ? ', first token late' : ''}`}
          onMouseEnter={(event) => onPoint({ cell, target: event.currentTarget })}
          onFocus={(event) => {
            setCurrent(index);
            onPoint({ cell, target: event.currentTarget });
          }}
        />
      ))}
    </div>
      {cells.length === 0 ? null : (
        <button type="button" className="cells-target" aria-label={`${label}: open the list`} onClick={() => setIsListed(true)} />
      )}
      <Modal opened={isListed} onClose={() => setIsListed(false)} title={label}>
        <CellList cells={cells} />
      </Modal>
    </div>
  );
}

/** The same cells as words, for fingers. */
function CellList({ cells }: { cells: readonly Cell[] }) {
  return (
    <ul className="cell-list">
      {cells.map((cell) => (
        <li key={cell.id}>
          <b className="id">{shortId(cell.id)}</b>
          <span>{cellState(cell)}</span>
          {cell.late ? <span className="bad">first token late</span> : null}
        </li>
      ))}
    </ul>
  );
}
