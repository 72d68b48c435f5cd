/** Bring a field of the form, or a titled part of the page, into view and focus it, however often it is asked for. */
export function showField(path: string): void {
  const field = document.getElementById(`f-${path}`) ?? document.getElementById(path);
  field?.scrollIntoView({ block: 'center' });
  field?.focus({ preventScroll: true });
}
