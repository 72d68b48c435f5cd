import { useState } from 'react';
import type { Decision, LiveSnapshot } from '../../api/live';
import { ClassName } from '../../components/ClassName';
import { Panel } from '../../components/Panel';
import { Segments } from '../../components/Segments';
import type { Filter } from '../../lib/decisions';
import { filtered, FILTERS, inSentence, likeWords, shortId } from '../../lib/decisions';
import { clock } from '../../lib/time';
import { classOf } from '../../lib/verdict';
import { usePanelState } from './clock';

const MAX_ROWS = 12;

export function Decisions({ snapshot }: { snapshot: LiveSnapshot }) {
  const [filter, setFilter] = useState<Filter>('all');
  const state = usePanelState(snapshot.workers_at ?? snapshot.at, snapshot.decisions.length > 0);
  const shown = filtered(snapshot.decisions, filter).slice(0, MAX_ROWS);
  const filters = <Segments label="Filter" className="sm opt" choices={FILTERS} value={filter} onChange={setFilter} />;
  return (
    <Panel
      title="What the scheduler decided"
      state={state}
      figure={filters}
      loadingHeight={180}
      empty="Nothing out of the ordinary: no preemption, no rescue, no refusal, no change of the batch limit."
    >
      {shown.length === 0 ? <p className="cover">No decision of this kind lately.</p> : null}
      <ul className="feed">
        {shown.map((decision) => (
          <li key={`${decision.at} ${decision.kind} ${decision.request_id}`}>
            <time>{clock(decision.at)}</time>
            <ClassLabel snapshot={snapshot} classId={decision.class_id} />
            <span className="say">
              <Say decision={decision} />
            </span>
            <span className="x">{likeWords(decision.num_like)}</span>
          </li>
        ))}
      </ul>
    </Panel>
  );
}

/** The sentence, led by the request it is about unless it names that itself. */
function Say({ decision }: { decision: Decision }) {
  const { request_id: id, text } = decision;
  if (id === '' || text.includes(shortId(id))) return text;
  return (
    <>
      <b className="id" title={id}>
        {shortId(id)}
      </b>{' '}
      {inSentence(text)}
    </>
  );
}

function ClassLabel({ snapshot, classId }: { snapshot: LiveSnapshot; classId: string }) {
  const one = classOf(snapshot, classId);
  return one === null ? <span className="k">{classId}</span> : <ClassName id={one.id} color={one.color} light />;
}
