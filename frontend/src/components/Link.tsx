import type { AnchorHTMLAttributes, MouseEvent } from 'react';
import { go } from '../router';

/** A link inside the app: follows without loading the page again, but stays a link for new tabs. */
export function Link({ to, ...rest }: { to: string } & AnchorHTMLAttributes<HTMLAnchorElement>) {
  const follow = (event: MouseEvent): void => {
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || event.button !== 0) return;
    event.preventDefault();
    go(to);
  };
  return <a {...rest} href={to} onClick={follow} />;
}
