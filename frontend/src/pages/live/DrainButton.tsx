// A worker's button: take it out without dropping a request, and let it in again.

import { Modal } from '@mantine/core';
import { useState } from 'react';
import { orderDrain } from '../../api/fleet';
import type { LiveSnapshot, WorkerLive } from '../../api/live';
import { drainWords } from '../../lib/drain';
import { MAY_LOOK, useMayOperate } from '../../rights';
import { useLiveClock } from './clock';

export function DrainButton({ worker, snapshot }: { worker: WorkerLive; snapshot: LiveSnapshot }) {
  const { connection } = useLiveClock();
  const mayOperate = useMayOperate();
  const [isOpen, setOpen] = useState(false);
  const [ordered, setOrdered] = useState<WorkerLive['state'] | null>(null);
  if (worker.state !== 'live' && worker.state !== 'draining') return null;
  const isDraining = worker.state === 'draining';
  const isPending = ordered !== null && ordered !== worker.state;
  return (
    <>
      <button
        type="button"
        className="btn sm"
        aria-label={`${isDraining ? 'Resume' : 'Drain'} ${worker.id}`}
        disabled={isPending || connection !== 'live' || !mayOperate}
        title={!mayOperate ? MAY_LOOK : connection === 'live' ? undefined : 'Not connected: its state is not known.'}
        onClick={() => setOpen(true)}
      >
        {isPending ? 'ordered' : isDraining ? 'Resume' : 'Drain'}
      </button>
      {isOpen ? (
        <Dialog worker={worker} snapshot={snapshot} onClose={() => setOpen(false)} onOrdered={setOrdered} />
      ) : null}
    </>
  );
}

interface DialogProps {
  worker: WorkerLive;
  snapshot: LiveSnapshot;
  onClose: () => void;
  onOrdered: (state: WorkerLive['state']) => void;
}

function Dialog({ worker, snapshot, onClose, onOrdered }: DialogProps) {
  const [drains] = useState(worker.state === 'live');
  const [mistake, setMistake] = useState<string | null>(null);
  const verb = drains ? 'Drain' : 'Resume';
  const order = async (): Promise<void> => {
    try {
      await orderDrain(worker.id, drains);
      onOrdered(drains ? 'draining' : 'live');
      onClose();
    } catch (error) {
      setMistake(error instanceof Error ? error.message : String(error));
    }
  };
  return (
    <Modal opened onClose={onClose} title={`${verb} ${worker.id}`} size={400}>
      <div className="dialog">
        {(drains ? drainWords(worker, snapshot) : ['It takes new requests again at once.']).map((line) => (
          <p key={line}>{line}</p>
        ))}
        {mistake === null ? null : (
          <p className="bad" role="alert">
            {mistake}
          </p>
        )}
        <div className="acts">
          <button type="button" className="btn" onClick={onClose}>
            Leave it
          </button>
          <button type="button" className="btn pri" onClick={() => void order()}>
            {verb} {worker.id}
          </button>
        </div>
      </div>
    </Modal>
  );
}
