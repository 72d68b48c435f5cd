import type { Cell, LiveSnapshot } from '../../api/live';
import { Glyph } from '../../components/ClassName';
import { count, objective } from '../../lib/format';
import { cellState } from '../../lib/lanes';
import { age, utc } from '../../lib/time';
import { classOf } from '../../lib/verdict';

/** What is known of one sequence. Follows the sequence while it runs; says when it is gone. */
export function CellCard({ id, fallback, snapshot }: { id: string; fallback: Cell; snapshot: LiveSnapshot }) {
  const found = snapshot.workers.flatMap((worker) => worker.cells.map((cell) => ({ cell, worker }))).find(({ cell }) => cell.id === id);
  const cell = found?.cell ?? fallback;
  const one = classOf(snapshot, cell.class_id);
  const why = snapshot.decisions.find((decision) => decision.request_id === id);
  return (
    <div className="tip" data-color={one?.color ?? 0}>
      <b>
        <Glyph color={one?.color ?? 0} />
        <span className="id">{cell.id}</span> {cell.class_id}
      </b>
      <dl>
        <dt>State</dt>
        <dd>{found === undefined ? 'finished' : cellState(cell)}</dd>
        <dt>Age</dt>
        <dd>
          {age(snapshot.at - cell.arrived_at)}, since {utc(cell.arrived_at)}
        </dd>
        <dt>Prompt</dt>
        <dd>
          {count(cell.num_prompt_tokens)} tokens; {count(cell.num_blocks)} KV blocks
        </dd>
        {cell.late && one !== null ? (
          <>
            <dt className="bad">Promise</dt>
            <dd className="bad">first token later than the promised {objective(one.objective.ttft_s)}</dd>
          </>
        ) : null}
      </dl>
      {why === undefined ? null : <q>{why.text}</q>}
    </div>
  );
}
