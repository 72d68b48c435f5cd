// The page's icons: 16 px, drawn with the text's colour.

const PATHS = {
  bad: 'M5.3 1.5h5.4l3.8 3.8v5.4l-3.8 3.8H5.3l-3.8-3.8V5.3ZM8 4.8v3.8M8 11v.2',
  ok: 'M14.5 8a6.5 6.5 0 1 1-13 0 6.5 6.5 0 0 1 13 0ZM5.3 8.2l1.9 1.9 3.6-4',
  info: 'M14.5 8a6.5 6.5 0 1 1-13 0 6.5 6.5 0 0 1 13 0ZM8 7.4v3.6M8 5v.1',
  table: 'M3.5 3h9A1.5 1.5 0 0 1 14 4.5v7a1.5 1.5 0 0 1-1.5 1.5h-9A1.5 1.5 0 0 1 2 11.5v-7A1.5 1.5 0 0 1 3.5 3ZM2 6.5h12M2 9.8h12M6.5 6.5V13',
  live: 'M1.5 8h3l2-5 3 10 2-5h3',
  policy: 'M2 4.5h5M11 4.5h3M2 11.5h3M9 11.5h5M10.8 4.5a1.8 1.8 0 1 1-3.6 0 1.8 1.8 0 0 1 3.6 0ZM8.8 11.5a1.8 1.8 0 1 1-3.6 0 1.8 1.8 0 0 1 3.6 0Z',
  chat: 'M2.5 3h11v8h-6l-3 2.5V11h-2Z',
  off: 'M2 2l12 12M4.2 6.6A6 6 0 0 1 6 5.6M1.8 5A9 9 0 0 1 4 3.5M8.5 3a9 9 0 0 1 5.7 2M9.5 5.4a6 6 0 0 1 2.4 1.4M6.3 9a2.6 2.6 0 0 1 2-.6M8 12h.1',
  x: 'm4 4 8 8M12 4l-8 8',
  arrow: 'M3 8h10M9.5 4.5 13 8l-3.5 3.5',
  undo: 'M3 6h7a3.5 3.5 0 0 1 0 7H6M3 6l3-3M3 6l3 3',
  warn: 'M8 2 14.5 13.5h-13ZM8 6.3v3.5M8 11.7v.1',
  user: 'M10.8 5.2a2.8 2.8 0 1 1-5.6 0 2.8 2.8 0 0 1 5.6 0ZM2.5 14a5.5 5.5 0 0 1 11 0',
} as const;

export type IconName = keyof typeof PATHS | 'theme';

export function Icon({ name }: { name: IconName }) {
  if (name === 'theme') {
    return (
      <svg className="i" viewBox="0 0 16 16" aria-hidden="true">
        <circle cx="8" cy="8" r="6" />
        <path d="M8 2v12a6 6 0 0 0 0-12Z" fill="currentColor" />
      </svg>
    );
  }
  return (
    <svg className="i" viewBox="0 0 16 16" aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  );
}

export function Logo() {
  return (
    <svg viewBox="0 0 20 20" aria-hidden="true">
      <path d="M3 3v14M17 3v14M7 6v11M13 10v7" stroke="currentColor" strokeWidth="2.4" strokeLinecap="round" fill="none" />
    </svg>
  );
}
