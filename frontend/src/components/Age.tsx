import type { PanelState } from '../lib/panelState';
import { age, duration } from '../lib/time';

/** How old a panel's numbers are, in the panel's corner. */
export function Age({ state }: { state: PanelState }) {
  switch (state.kind) {
    case 'loading':
      return <span className="age">loading</span>;
    case 'error':
      return <span className="age">error</span>;
    case 'empty':
      return null;
    case 'live':
      return <span className="age">{age(state.ageS)} ago</span>;
    case 'stale':
    case 'disconnected':
      return <span className="age old">stale, {duration(state.ageS)}</span>;
  }
}
