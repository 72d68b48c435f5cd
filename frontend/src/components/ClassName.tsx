// A class is a hue, a shape and a name; never the hue alone.

const SHAPES = [
  'M6 1 11.5 11H.5Z',
  'M11 6A5 5 0 1 1 1 6a5 5 0 0 1 10 0Z',
  'M2.5 1.5h7a1 1 0 0 1 1 1v7a1 1 0 0 1-1 1h-7a1 1 0 0 1-1-1v-7a1 1 0 0 1 1-1Z',
  'M6 .5 11.5 6 6 11.5.5 6Z',
  'M6 .8 11.4 4.800 9.300 11.200H2.700L.6 4.800Z',
  'M4.200.8h3.600v3.400h3.400v3.600H7.800v3.400H4.200V7.800H.8V4.200h3.400Z',
] as const;

export const NUM_COLORS = SHAPES.length;

export function Glyph({ color }: { color: number }) {
  return (
    <svg className="glyph" viewBox="0 0 12 12" data-color={color} aria-hidden="true">
      <path d={SHAPES[color % NUM_COLORS]} />
    </svg>
  );
}

export function ClassName({ id, color, light = false }: { id: string; color: number; light?: boolean }) {
  return (
    <span className={light ? 'cname light' : 'cname'}>
      <Glyph color={color} />
      {id}
    </span>
  );
}
