// The frame of everything that shows numbers. It draws the five states itself, so that no page can forget one.

import type { ReactNode } from 'react';
import { Component, useId } from 'react';
import type { Failure, PanelState } from '../lib/panelState';
import { isOld } from '../lib/panelState';
import { Age } from './Age';
import { Icon } from './Icon';

export interface PanelProps {
  title: ReactNode;
  state: PanelState;
  /** Beside the title, in the secondary colour. */
  sub?: ReactNode;
  /** The key figure, at the right of the header; left out while there is none to trust. */
  figure?: ReactNode;
  /** Controls at the very end of the header. */
  tools?: ReactNode;
  /** One sentence and the next step, for `empty`. */
  empty?: ReactNode;
  className?: string;
  /** Height of the body's skeleton while loading, so that nothing jumps when the numbers come. */
  loadingHeight?: number;
  onRetry?: () => void;
  /** `article` for one of several of a kind. */
  as?: 'section' | 'article';
  children: ReactNode;
}

export function Panel({ as: Tag = 'section', ...props }: PanelProps) {
  const id = useId();
  const { title, state, sub, figure, tools, className = '' } = props;
  const hasFigures = state.kind !== 'loading' && state.kind !== 'error' && state.kind !== 'empty';
  return (
    <Tag
      className={`panel ${className} ${isOld(state) ? 'is-old' : ''}`}
      aria-labelledby={id}
      data-state={state.kind}
      aria-busy={state.kind === 'loading'}
    >
      <div className="ph">
        <h2 id={id}>{title}</h2>
        {hasFigures && sub !== undefined ? <span className="sub opt">{sub}</span> : null}
        <span className="grow" />
        {hasFigures ? figure : null}
        <Age state={state} />
        {hasFigures ? tools : null}
      </div>
      <Body {...props} />
    </Tag>
  );
}

function Body({ state, empty, loadingHeight = 96, onRetry, children }: Omit<PanelProps, 'as'>) {
  if (state.kind === 'loading') return <Skeleton height={loadingHeight} />;
  if (state.kind === 'error') return <FailureNote failure={state.failure} {...(onRetry ? { onRetry } : {})} />;
  if (state.kind === 'empty') return <div className="cover">{empty}</div>;
  return <Guard>{children}</Guard>;
}

export function Skeleton({ height }: { height: number }) {
  return (
    <div className="skeleton" style={{ height }} aria-hidden="true">
      <i />
      <i />
    </div>
  );
}

export function FailureNote({ failure, onRetry }: { failure: Failure; onRetry?: () => void }) {
  return (
    <div className="err" role="alert">
      <b>
        <Icon name="warn" />
        {failure.what}
      </b>
      <span>{failure.detail}</span>
      {failure.id === null ? null : (
        <span className="k">
          error <span className="id">{failure.id}</span>
        </span>
      )}
      {onRetry === undefined ? null : (
        <button type="button" className="btn sm" onClick={onRetry}>
          Try again
        </button>
      )}
    </div>
  );
}

/** One panel that cannot be drawn must not take the others with it. */
class Guard extends Component<{ children: ReactNode }, { message: string | null }> {
  override state: { message: string | null } = { message: null };

  static getDerivedStateFromError(error: unknown): { message: string } {
    return { message: error instanceof Error ? error.message : String(error) };
  }

  override render(): ReactNode {
    const { message } = this.state;
    if (message === null) return this.props.children;
    const failure: Failure = {
      what: 'This panel could not be drawn',
      detail: `The numbers arrived, but the page failed on them: ${message}. The other panels are live.`,
      id: null,
    };
    return <FailureNote failure={failure} onRetry={() => this.setState({ message: null })} />;
  }
}
