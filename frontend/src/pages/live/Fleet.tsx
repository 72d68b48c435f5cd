// The workers and the energy they take.

import type { LiveSnapshot, Point, WorkerLive } from '../../api/live';
import { Panel } from '../../components/Panel';
import { Term } from '../../components/Term';
import { numHeld } from '../../lib/drain';
import { bytes, count, latencyText, significant, watts, wholePercent } from '../../lib/format';
import { kvShare } from '../../lib/lanes';
import { age, utc } from '../../lib/time';
import { useLiveClock, usePanelState } from './clock';
import { DrainButton } from './DrainButton';
import { Sparkline } from './Sparkline';

export function Workers({ snapshot, points }: { snapshot: LiveSnapshot; points: readonly Point[] }) {
  const state = usePanelState(snapshot.workers_at, snapshot.workers.length > 0);
  const total = sharedTotal(snapshot.workers);
  const note = areEstimates(snapshot.workers) ? ', est.' : '';
  return (
    <Panel
      title="Workers"
      state={state}
      loadingHeight={140}
      empty={
        <>
          <b>No worker is connected.</b>
          <span>
            Start one with <code>python -m scheduler_worker.worker</code>; it appears here by itself.
          </span>
        </>
      }
    >
      <div className="scroll" tabIndex={0} role="group" aria-label="Workers, table">
      <table className="ws">
        <thead>
          <tr>
            <th>Worker</th>
            <th>Policy</th>
            <th className="r">
              <Term name="slot">Slots</Term>
            </th>
            <th>
              <Term name="kv">KV cache</Term>
              <span className="hide-m">, 15 min</span>
            </th>
            <th className="r">Step p50</th>
            <th>
              Busy<span className="hide-m">, 15 min</span>
            </th>
            <th className="r">
              Memory<span className="hide-m">{total === null ? '' : ` of ${bytes(total)}`}</span>
            </th>
            <th className="r">Power{note}</th>
            <th className="r">Seen</th>
            <th>
              <span className="sr">Order</span>
            </th>
          </tr>
        </thead>
        <tbody>
          {snapshot.workers.map((worker) => (
            <WorkerRow key={worker.id} worker={worker} snapshot={snapshot} points={points} />
          ))}
        </tbody>
      </table>
      </div>
    </Panel>
  );
}

function WorkerRow({ worker, snapshot, points }: { worker: WorkerLive; snapshot: LiveSnapshot; points: readonly Point[] }) {
  const { device } = worker;
  const kv = kvShare(worker);
  const mark = areEstimates(snapshot.workers) ? '' : estimated(worker);
  const isBehind = snapshot.policy_version !== null && worker.policy_version !== snapshot.policy_version;
  return (
    <tr className={worker.state === 'live' || worker.state === 'draining' ? '' : 'gone'}>
      <td>
        <b className="id">{worker.id}</b> <span className="k hide-m device" title={device.name}>{deviceName(device.name)}</span>
      </td>
      <td data-label="Policy">
        <span data-figure={`${worker.id}.policy_version`} data-value={worker.policy_version}>
          v{worker.policy_version}
        </span>
        {isBehind ? <span className="k">, not yet v{snapshot.policy_version}</span> : null}
      </td>
      <td className="r" data-label="Slots">
        {worker.num_running} of {worker.batch_limit}
      </td>
      <td data-label="KV cache" data-l="kv">
        <span className="nw">
          <Sparkline points={points} read={(point) => point.kv_share[worker.id] ?? null} />
          {wholePercent(kv)}
        </span>
      </td>
      <td className="r" data-label="Step p50">
        {latencyText(worker.step_p50_s)}
      </td>
      <td data-label="Busy" data-l="busy">
        <span className="nw">
          <Sparkline points={points} read={(point) => point.busy[worker.id] ?? null} />
          {wholePercent(device.busy)}
        </span>
      </td>
      <td className="r" data-label="Memory">
        {bytes(device.memory_used_bytes)}
      </td>
      <td className="r" data-label="Power">
        {device.power_w === null ? <Unknown /> : `${watts(device.power_w)}${mark}`}
      </td>
      <td className="r" data-label="Seen">
        <Seen worker={worker} />
      </td>
      <td className="r act">
        <DrainButton worker={worker} snapshot={snapshot} />
      </td>
    </tr>
  );
}

/** Then the column says it once, instead of every cell. */
function areEstimates(workers: readonly WorkerLive[]): boolean {
  return workers.length > 0 && workers.every((worker) => worker.device.energy_estimated);
}

/** The memory that every device has; null where they differ or do not say. */
function sharedTotal(workers: readonly WorkerLive[]): number | null {
  const totals = new Set(workers.map((worker) => worker.device.memory_total_bytes));
  const [first = null] = totals;
  return totals.size === 1 ? first : null;
}

function Unknown() {
  return (
    <span className="k" title="The device does not report it">
      –<span className="sr">not known</span>
    </span>
  );
}

function Seen({ worker }: { worker: WorkerLive }) {
  const { now } = useLiveClock();
  const words = age(now - worker.seen_at);
  const silence = `${worker.state}, ${words} ago`;
  return (
    <span title={utc(worker.seen_at)} data-worker-state={worker.state}>
      {worker.state === 'live' ? words : worker.state === 'draining' ? (numHeld(worker) === 0 ? 'drained' : 'draining') : silence}
    </span>
  );
}

function deviceName(name: string): string {
  return name.replace(/^NVIDIA /, '').replace(/\((R|TM)\)/g, '');
}

function estimated(worker: WorkerLive): string {
  return worker.device.energy_estimated ? ' est.' : '';
}

export function Energy({ snapshot }: { snapshot: LiveSnapshot }) {
  const known = snapshot.workers.filter((worker) => worker.device.power_w !== null || worker.device.joules_per_1k_tokens !== null);
  const state = usePanelState(snapshot.devices_at, known.length > 0);
  const power = known.reduce((sum, worker) => sum + (worker.device.power_w ?? 0), 0);
  const isEstimate = known.some((worker) => worker.device.energy_estimated);
  return (
    <Panel
      title="Energy"
      state={state}
      figure={<span className="val">{`${watts(power)}${isEstimate ? ' est.' : ''}`}</span>}
      loadingHeight={140}
      empty={
        <>
          <b>No device reports its energy.</b>
          <span>It appears here as soon as one does: GPUs through NVML, processors as an estimate.</span>
        </>
      }
    >
      <div className="pb">
        <p className="note" style={{ paddingTop: 0 }}>
          <Term name="joule">Joules per 1,000 tokens</Term>, {isEstimate ? 'estimated' : 'measured'}
        </p>
        <EnergyBars workers={known} />
      </div>
    </Panel>
  );
}

function EnergyBars({ workers }: { workers: readonly WorkerLive[] }) {
  const most = Math.max(1, ...workers.map((worker) => worker.device.joules_per_1k_tokens ?? 0)) * 1.1;
  return (
    <div className="egy">
      {workers.map((worker) => {
        const joules = worker.device.joules_per_1k_tokens;
        return (
          <div key={worker.id}>
            <b className="id" title={worker.id}>
              {worker.id}
            </b>
            <span className="bar">
              <i style={{ width: `${((joules ?? 0) / most) * 100}%` }} />
            </span>
            <span className="r nw">{joules === null ? 'no token yet' : `${joules >= 1000 ? count(joules) : significant(joules)} J${estimated(worker)}`}</span>
          </div>
        );
      })}
    </div>
  );
}

