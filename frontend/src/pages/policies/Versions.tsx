// Every version ever published, newest first: compare with the active one, or roll back to it.

import { Modal, Textarea } from '@mantine/core';
import { useState } from 'react';
import type { PolicyVersion } from '../../api/policies';
import { rollBack } from '../../api/policies';
import { Icon } from '../../components/Icon';
import { changesBetween } from '../../lib/document';
import { dayAndTime, duration, parseInstant } from '../../lib/time';
import { monotonicS } from '../../live/client';
import { MAY_LOOK, useMayOperate } from '../../rights';
import type { Names } from './Changes';
import { ChangeList } from './Changes';
import type { Published } from './editor';

interface Props {
  versions: readonly PolicyVersion[];
  active: PolicyVersion;
  names: Names;
  now: number;
  onMore: (() => void) | null;
  onRolledBack: (version: PolicyVersion, published: Published) => void;
}

export function Versions({ versions, active, names, now, onMore, onRolledBack }: Props) {
  const [compared, setCompared] = useState<PolicyVersion | null>(null);
  const [target, setTarget] = useState<PolicyVersion | null>(null);
  return (
    <section className="panel" aria-labelledby="versions">
      <div className="ph wide">
        <h2 id="versions" tabIndex={-1}>Versions</h2>
        <span className="sub">never changed after publishing</span>
      </div>
      <div className="scroll" tabIndex={0} role="group" aria-label="Versions">
        <table className="hist">
          <thead>
            <tr>
              <th>Version</th>
              <th>State</th>
              <th>Comment</th>
              <th>Author</th>
              <th>Published (UTC)</th>
              <th className="r">Active for</th>
              <th className="r">Action</th>
            </tr>
          </thead>
          <tbody>
            {versions.map((version) => (
              <VersionRow
                key={version.version}
                version={version}
                isActive={version.version === active.version}
                activeFor={activeFor(version, versions, now)}
                onCompare={() => setCompared(version)}
                onRollBack={() => setTarget(version)}
              />
            ))}
          </tbody>
        </table>
      </div>
      {onMore === null ? null : (
        <div className="pb">
          <button type="button" className="btn sm" onClick={onMore}>
            Older versions
          </button>
        </div>
      )}
      <CompareDialog version={compared} active={active} names={names} onClose={() => setCompared(null)} />
      <RollBackDialog target={target} active={active} names={names} onClose={() => setTarget(null)} onDone={onRolledBack} />
    </section>
  );
}

function activeFor(version: PolicyVersion, versions: readonly PolicyVersion[], now: number): string {
  const next = versions.find((other) => other.version === version.version + 1);
  const end = next === undefined ? now : parseInstant(next.published_at);
  return duration(end - parseInstant(version.published_at));
}

interface RowProps {
  version: PolicyVersion;
  isActive: boolean;
  activeFor: string;
  onCompare: () => void;
  onRollBack: () => void;
}

function VersionRow({ version, isActive, activeFor: lasted, onCompare, onRollBack }: RowProps) {
  const name = `v${version.version}`;
  const mayOperate = useMayOperate();
  return (
    <tr>
      <td>
        <b>{name}</b>
      </td>
      <td>
        <span className={`tag ${isActive ? 'on' : ''}`}>{isActive ? 'active' : version.state}</span>
      </td>
      <td className="c">{version.comment}</td>
      <td>{version.author}</td>
      <td>{dayAndTime(parseInstant(version.published_at))}</td>
      <td className="r">{lasted}</td>
      <td className="r">
        {isActive ? null : (
          <span className="acts">
            <button type="button" className="btn sm" onClick={onCompare} aria-label={`Compare ${name} with the active version`}>
              Compare
            </button>
            <button type="button" className="btn sm" onClick={onRollBack} disabled={!mayOperate} title={mayOperate ? undefined : MAY_LOOK}>
              <Icon name="undo" />
              Roll back to {name}
            </button>
          </span>
        )}
      </td>
    </tr>
  );
}

interface DialogProps {
  active: PolicyVersion;
  names: Names;
  onClose: () => void;
}

function CompareDialog({ version, active, names, onClose }: DialogProps & { version: PolicyVersion | null }) {
  if (version === null) return null;
  const changes = changesBetween(version.document, active.document);
  return (
    <Modal opened onClose={onClose} title={`From v${version.version} to v${active.version}, active`} size={560}>
      {changes.length === 0 ? <p>The two documents are the same.</p> : <ChangeList changes={changes} names={names} />}
    </Modal>
  );
}

interface RollBackProps extends DialogProps {
  target: PolicyVersion | null;
  onDone: Props['onRolledBack'];
}

function RollBackDialog({ target, active, names, onClose, onDone }: RollBackProps) {
  if (target === null) return null;
  return (
    <Modal opened onClose={onClose} title={`Roll back to v${target.version}`} size={560}>
      <RollBackForm target={target} active={active} names={names} onClose={onClose} onDone={onDone} />
    </Modal>
  );
}

function RollBackForm({ target, active, names, onClose, onDone }: RollBackProps & { target: PolicyVersion }) {
  const [comment, setComment] = useState(`Roll back to v${target.version}`);
  const [problem, setProblem] = useState<string | null>(null);
  const [isBusy, setIsBusy] = useState(false);
  const changes = changesBetween(active.document, target.document);
  const run = async (): Promise<void> => {
    setIsBusy(true);
    const askedAt = monotonicS();
    try {
      const made = await rollBack(target.version, comment);
      onDone(made, { version: made.version, askedAt });
      onClose();
    } catch (error) {
      setProblem(error instanceof Error ? error.message : String(error));
      setIsBusy(false);
    }
  };
  return (
    <div className="dialog">
      <p>
        Publishes the document of v{target.version} as a new version. It takes effect at the next step; no running request is lost. Against v
        {active.version} it changes:
      </p>
      <ChangeList changes={changes} names={names} />
      <Textarea label="Why" autosize minRows={2} value={comment} onChange={(event) => setComment(event.currentTarget.value)} />
      {problem === null ? null : (
        <p className="msgrow errr" role="alert">
          <Icon name="bad" />
          <span>{problem}</span>
        </p>
      )}
      <div className="acts">
        <button type="button" className="btn" onClick={onClose}>
          Keep v{active.version}
        </button>
        <button type="button" className="btn pri" disabled={isBusy || comment.trim() === ''} onClick={() => void run()}>
          {isBusy ? 'Rolling back' : `Roll back to v${target.version}`}
        </button>
      </div>
    </div>
  );
}
