// One row per class from queue to device to parked, one column per worker.

import { Popover } from '@mantine/core';
import type { CSSProperties } from 'react';
import { memo, useState } from 'react';
import type { Cell, ClassLive, LiveSnapshot, WorkerLive } from '../../api/live';
import { ClassName } from '../../components/ClassName';
import { Panel } from '../../components/Panel';
import { Term } from '../../components/Term';
import { drainState } from '../../lib/drain';
import { count, objective, wholePercent } from '../../lib/format';
import * as lanes from '../../lib/lanes';
import { age, duration } from '../../lib/time';
import { whyAnchor } from '../../lib/waiting';
import { CellCard } from './CellCard';
import { CellGroup } from './CellGroup';
import { useLiveClock, usePanelState } from './clock';

const MAX_COLUMNS = 6;

export interface Pointed {
  cell: Cell;
  target: HTMLElement;
}

export function Lanes({ snapshot }: { snapshot: LiveSnapshot }) {
  const state = usePanelState(snapshot.workers_at ?? snapshot.at, snapshot.classes.length > 0);
  const [pointed, setPointed] = useState<Pointed | null>(null);
  const workers = snapshot.workers.filter((worker) => worker.state !== 'gone');
  return (
    <Panel title="From queue to device" sub={<Sums snapshot={snapshot} />} state={state} loadingHeight={280} empty="No class is known yet.">
      <div className="lanes" style={gridOf(workers.length)} onMouseLeave={() => setPointed(null)}>
        <Header workers={workers} />
        {snapshot.classes.map((one) => (
          <Lane key={one.id} one={one} workers={workers} onPoint={setPointed} />
        ))}
        <FreeRow snapshot={snapshot} workers={workers} />
      </div>
      <LaneLegend />
      <SharedCard pointed={pointed} snapshot={snapshot} onClose={() => setPointed(null)} />
    </Panel>
  );
}

function Sums({ snapshot }: { snapshot: LiveSnapshot }) {
  return (
    <>
      <Sum name="num_waiting" value={snapshot.num_waiting} /> waiting, <Sum name="num_running" value={snapshot.num_running} /> running in{' '}
      <Sum name="num_slots" value={snapshot.num_slots} /> slots, <Sum name="num_parked" value={snapshot.num_parked} /> parked
    </>
  );
}

function Sum({ name, value }: { name: string; value: number }) {
  return (
    <span data-figure={name} data-value={value}>
      {count(value)}
    </span>
  );
}

function gridOf(numWorkers: number): CSSProperties {
  const columns = Math.max(1, numWorkers);
  // On phones each lane is a row of an even number of columns, halved for name and queue.
  const phoneColumns = columns % 2 === 0 ? columns : columns * 2;
  return { '--workers': columns, '--phone-columns': phoneColumns, '--phone-span': phoneColumns / columns } as CSSProperties;
}

function Header({ workers }: { workers: readonly WorkerLive[] }) {
  return (
    <>
      <div className="h c0">
        <b>Class</b>share of service
      </div>
      <div className="h wt">
        <b>Waiting</b>by time waited so far
      </div>
      {workers.map((worker) => (
        <WorkerHead key={worker.id} worker={worker} />
      ))}
      {workers.length === 0 ? <div className="h w">no worker is connected</div> : null}
      <div className="h w pk">
        <b>
          <Term name="parked">Parked</Term>
        </b>
        preempted
      </div>
    </>
  );
}

function WorkerHead({ worker }: { worker: WorkerLive }) {
  const { now } = useLiveClock();
  const { slots, kv } = lanes.workerLoad(worker);
  if (worker.state === 'silent') {
    return (
      <div className="h w quiet-col">
        <b title={worker.id}>{worker.id}</b>last heard {duration(now - worker.seen_at)} ago
      </div>
    );
  }
  return (
    <div className="h w">
      <b title={worker.id}>{worker.id}</b>
      <span className="nw">{slots}</span>
      <span className="opt"> slots,</span> <span className="nw">{kv}</span>
      {worker.state === 'draining' ? (
        <>
          <span className="opt">, </span>
          <span>{drainState(worker)}</span>
        </>
      ) : null}
    </div>
  );
}

function Lane({ one, workers, onPoint }: { one: ClassLive; workers: readonly WorkerLive[]; onPoint: (pointed: Pointed | null) => void }) {
  const parked = lanes.parkedCells(workers, one.id);
  return (
    <>
      <div className="c0" data-color={one.color}>
        <ClassName id={one.id} color={one.color} />
        <Share one={one} />
      </div>
      <div className="wait" data-color={one.color}>
        <Waiting one={one} />
      </div>
      {workers.map((worker) => (
        <div key={worker.id} className={`w run ${worker.state === 'silent' ? 'quiet-col' : ''}`} data-color={one.color}>
          <Running one={one} worker={worker} isDense={workers.length > MAX_COLUMNS} onPoint={onPoint} />
        </div>
      ))}
      {workers.length === 0 ? <div className="w run" /> : null}
      <div className="w park" data-color={one.color}>
        <span className="ponly">Parked</span>
        {parked.length === 0 ? null : <CellGroup cells={parked} label={`${one.id}: ${parked.length} parked`} onPoint={onPoint} />}
        <p className="none">{lanes.parkedWords(one)}</p>
      </div>
    </>
  );
}

function Share({ one }: { one: ClassLive }) {
  const got = wholePercent(one.share_got);
  const due = wholePercent(one.share_due);
  const words = one.share_got === null ? `no service yet, due ${due}` : `gets ${got}, due ${due}`;
  return (
    <>
      <p>{words}</p>
      <div className="share" role="img" aria-label={words}>
        <i style={{ width: `${(one.share_got ?? 0) * 100}%` }} />
        <u style={{ left: `calc(${one.share_due * 100}% - 1px)` }} />
      </div>
    </>
  );
}

function Waiting({ one }: { one: ClassLive }) {
  const { waiting } = one;
  const isLate = waiting.num_late > 0;
  return (
    <>
      <p>
        <b data-figure={`${one.id}.waiting`} data-value={waiting.num}>
          {count(waiting.num)}
        </b>
        {waiting.num === 0 ? ' waiting' : ', oldest '}
        {waiting.num === 0 ? null : <b className={isLate ? 'bad' : ''}>{age(waiting.oldest_s)}</b>}
        {isLate ? <span className="bad">, {count(waiting.num_late)} late</span> : null}
        {waiting.num === 0 ? null : (
          <>
            {' '}
            <a className="why" href={`#${whyAnchor(one.id)}`} aria-label={`Why requests of ${one.id} wait`}>
              why
            </a>
          </>
        )}
      </p>
      <Strip one={one} />
    </>
  );
}

function Strip({ one }: { one: ClassLive }) {
  const { ttft_s: slo, max_wait_s: bound } = one.objective;
  const at = Math.min(1, slo / bound) * 100;
  const bars = lanes.waitBars(one.waiting.waits_s, slo, bound);
  const label = `${one.waiting.num} waiting; the oldest has waited ${age(one.waiting.oldest_s)} of at most ${objective(bound)}`;
  return (
    <svg role="img" aria-label={label}>
      {bars.map((bar) => (
        <rect
          key={bar.x}
          x={`${bar.x * 100 + 0.3}%`}
          width="1.9%"
          y={20 - bar.height * 14}
          height={bar.height * 14}
          rx="1"
          fill={bar.late ? 'var(--red)' : 'var(--c)'}
        />
      ))}
      <line x1="0" x2="100%" y1="21" y2="21" stroke="var(--line2)" />
      <line x1={`${at}%`} x2={`${at}%`} y1="2" y2="24" stroke="var(--ink)" strokeDasharray="3 2" />
      <line x1="100%" x2="100%" y1="2" y2="24" stroke="var(--ink)" strokeWidth="2" />
      {at < 16 ? null : (
        <text x="0" y="34">
          0
        </text>
      )}
      {at > 6 && at < 62 ? (
        <text x={`${at}%`} y="34" textAnchor="middle">
          {objective(slo)}
        </text>
      ) : null}
      <text x="100%" y="34" textAnchor="end">
        bound {objective(bound)}
      </text>
    </svg>
  );
}

interface RunningProps {
  one: ClassLive;
  worker: WorkerLive;
  isDense: boolean;
  onPoint: (pointed: Pointed | null) => void;
}

const Running = memo(function Running({ one, worker, isDense, onPoint }: RunningProps) {
  const cells = lanes.cellsOf(worker, one.id);
  const label = `${one.id} on ${worker.id}: ${cells.length} running`;
  if (isDense) return <Stack cells={cells} label={label} numSlots={worker.batch_limit} />;
  return <CellGroup cells={cells} label={label} onPoint={onPoint} />;
});

/** Many workers: the same facts as one bar per worker. */
function Stack({ cells, label, numSlots }: { cells: readonly Cell[]; label: string; numSlots: number }) {
  const decoding = cells.filter((cell) => cell.state === 'decode').length;
  const width = (num: number): CSSProperties => ({ width: `${(num / Math.max(1, numSlots)) * 100}%` });
  return (
    <div role="img" aria-label={label}>
      <div className="stack">
        <i style={width(decoding)} />
        <i className="prefill" style={width(cells.length - decoding)} />
      </div>
      <span className="none">{cells.length}</span>
    </div>
  );
}

function FreeRow({ snapshot, workers }: { snapshot: LiveSnapshot; workers: readonly WorkerLive[] }) {
  const { head, why } = lanes.freeSlots(snapshot);
  return (
    <>
      <div className="fre">
        <b>{head}</b>
        <br />
        {why}
      </div>
      {workers.map((worker) => (
        <div key={worker.id} className={`w fr ${worker.state === 'silent' ? 'quiet-col' : ''}`}>
          <FreeCells worker={worker} isDense={workers.length > MAX_COLUMNS} />
        </div>
      ))}
      {workers.length === 0 ? <div className="w fr" /> : null}
      <div className="w fr pk" />
    </>
  );
}

function FreeCells({ worker, isDense }: { worker: WorkerLive; isDense: boolean }) {
  const free = lanes.numFree(worker);
  if (free === 0) return 'none';
  if (isDense || free > 128) return count(free);
  return (
    <div className="cells" role="img" aria-label={`${free} free on ${worker.id}`}>
      {Array.from({ length: free }, (_, index) => (
        <i key={index} className="cell free" />
      ))}
    </div>
  );
}

function LaneLegend() {
  return (
    <div className="lanefoot">
      <span data-color="0">
        <i className="cell" />
        decoding: one token per step
      </span>
      <span data-color="0">
        <i className="cell prefill" />
        reading its prompt
      </span>
      <span data-color="2">
        <i className="cell parked" />
        parked
      </span>
      <span>
        <i className="cell free" />
        free slot
      </span>
      <span data-color="0">
        <i className="cell late" />
        first token came too late
      </span>
      <span className="k">Point at a square, or move with the arrow keys, to read about it.</span>
    </div>
  );
}

/** One card for all cells, placed beside the one pointed at. */
function SharedCard({ pointed, snapshot, onClose }: { pointed: Pointed | null; snapshot: LiveSnapshot; onClose: () => void }) {
  if (!pointed?.target.isConnected) return null;
  const box = pointed.target.getBoundingClientRect();
  return (
    <Popover opened position="bottom-start" withinPortal shadow="md" onClose={onClose} trapFocus={false} returnFocus={false} width={304}>
      <Popover.Target>
        <span
          aria-hidden="true"
          style={{ position: 'fixed', left: box.left, top: box.top, width: box.width, height: box.height, pointerEvents: 'none' }}
        />
      </Popover.Target>
      <Popover.Dropdown className="float" style={{ pointerEvents: 'none' }} role="tooltip" id="cell-card">
        <CellCard id={pointed.cell.id} fallback={pointed.cell} snapshot={snapshot} />
      </Popover.Dropdown>
    </Popover>
  );
}
