// Why does this tenant wait? One table: who waits in each class, what its oldest request lacks, who goes first.

import type { ClassLive, LiveSnapshot, TenantWaiting } from '../../api/live';
import { ClassName } from '../../components/ClassName';
import { Panel } from '../../components/Panel';
import { count, plural } from '../../lib/format';
import { age } from '../../lib/time';
import { moreWords, predictedStart, tokenShare, waitingClasses, whyAnchor } from '../../lib/waiting';
import { usePanelState } from './clock';

export function WhoWaits({ snapshot }: { snapshot: LiveSnapshot }) {
  const classes = waitingClasses(snapshot);
  const state = usePanelState(snapshot.workers_at ?? snapshot.at, classes.length > 0);
  return (
    <Panel
      title="Who waits, and why"
      sub="by tenant, the longest wait first"
      state={state}
      loadingHeight={120}
      empty="Nobody waits: each request has started."
    >
      <table className="whowaits">
        <thead>
          <tr>
            <th>Tenant</th>
            <th className="r">Waiting</th>
            <th className="r">Oldest wait</th>
            <th>Would start</th>
            <th>Tokens of the class, last minute</th>
            <th>Why its oldest request waits</th>
          </tr>
        </thead>
        {classes.map((one) => (
          <ClassRows key={one.id} one={one} />
        ))}
      </table>
    </Panel>
  );
}

function ClassRows({ one }: { one: ClassLive }) {
  const more = moreWords(one);
  return (
    <tbody id={whyAnchor(one.id)} aria-label={one.id}>
      <tr className="of">
        <th colSpan={6} scope="rowgroup">
          <ClassName id={one.id} color={one.color} /> <span className="k">{plural(one.waiting.num, 'request')} waiting</span>
        </th>
      </tr>
      {one.waiting.tenants.map((tenant) => (
        <TenantRow key={tenant.tenant} tenant={tenant} objectiveS={one.objective.ttft_s} />
      ))}
      {more === '' ? null : (
        <tr>
          <td colSpan={6} className="k">
            {more}
          </td>
        </tr>
      )}
    </tbody>
  );
}

function TenantRow({ tenant, objectiveS }: { tenant: TenantWaiting; objectiveS: number }) {
  const waits = tenant.num > 0;
  return (
    <tr className={waits ? '' : 'k'}>
      <td className="tn" title={tenant.tenant}>
        {tenant.tenant}
      </td>
      <td className="r" data-label="waiting">
        {waits ? count(tenant.num) : 'none'}
      </td>
      <td className={`r ${waits && tenant.oldest_s > objectiveS ? 'bad' : ''}`} data-label="oldest wait">
        {waits ? age(tenant.oldest_s) : ''}
      </td>
      <td data-label="would start">{predictedStart(tenant)}</td>
      <td data-label="tokens, last minute">{tokenShare(tenant)}</td>
      <td className="say">{waits ? tenant.why.join(' ') : `${plural(tenant.num_running, 'request')} running`}</td>
    </tr>
  );
}
