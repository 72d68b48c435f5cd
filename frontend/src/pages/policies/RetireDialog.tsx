import { Modal, Select } from '@mantine/core';
import { useState } from 'react';
import { retired } from '../../lib/document';
import type { Editor } from './editor';

/** Ids are permanent: a class is retired, and another one serves what is left of it. */
export function RetireDialog({ classId, editor, onClose }: { classId: string | null; editor: Editor; onClose: () => void }) {
  const others = editor.draft.classes.map((one) => one.id).filter((id) => id !== classId);
  const [chosen, setChosen] = useState<string | null>(null);
  const fallback = chosen !== null && others.includes(chosen) ? chosen : (others[others.length - 1] ?? null);
  const isKnown = editor.base.document.classes.some((one) => one.id === classId);
  const confirm = (): void => {
    if (classId !== null && fallback !== null) editor.edit((draft) => retired(editor.base.document, draft, classId, fallback));
    onClose();
  };
  return (
    <Modal opened={classId !== null} onClose={onClose} title={isKnown ? `Retire ${classId ?? ''}` : `Remove ${classId ?? ''}`} size={400}>
      <div className="dialog">
        {isKnown ? (
          <>
            <p>
              The name stays taken for good. Requests of {classId} that wait or run when you publish, and keys that still name it, are served by:
            </p>
            <Select aria-label="Served by" data={others} value={fallback} onChange={setChosen} allowDeselect={false} />
          </>
        ) : (
          <p>This class was never published; removing it leaves nothing behind.</p>
        )}
        <div className="acts">
          <button type="button" className="btn" onClick={onClose}>
            Keep it
          </button>
          <button type="button" className="btn pri" onClick={confirm}>
            {isKnown ? 'Retire in this draft' : 'Remove'}
          </button>
        </div>
      </div>
    </Modal>
  );
}
