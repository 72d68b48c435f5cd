import type { Figure } from '../lib/format';

/** A figure with its unit set smaller. */
export function FigureText({ figure }: { figure: Figure }) {
  return (
    <>
      {figure.value}
      {figure.unit === '' ? null : <span className="un"> {figure.unit}</span>}
    </>
  );
}
